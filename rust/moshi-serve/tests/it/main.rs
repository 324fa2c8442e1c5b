//! The daemon on real sockets: the protocol against a direct run, and what must not break it.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod box_model;
mod chat;
mod faults;
mod lifecycle;
mod limits;
mod load;
mod privacy;
mod realtime;
mod realtime_edges;
mod security;
mod starting;
mod support;
