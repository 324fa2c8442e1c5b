//! The daemon: one process, many full-duplex conversations stepped as one batch.
//!
//! A connection is a task that speaks a protocol; the engine belongs to one thread, the
//! [`worker`]. They meet in the [`hub`]: a connection opens a session there, feeds it samples and
//! takes frames from it. Who gets a slot and whose frame is next is decided by the [`scheduler`], a
//! plain data structure. No Python runs in here.
//!
//! ```text
//! socket ─▶ wire (Ogg, Opus, JSON) ─▶ framer ─▶ [bounded queue] ─▶ worker: one batched step
//! socket ◀─ wire ◀─ [bounded queue] ◀──────────────────────────────────┘
//! ```
#![forbid(unsafe_code)]

mod auth;
pub mod backend;
pub mod capacity;
mod chat;
pub mod client;
pub mod config;
pub mod error;
pub mod hub;
mod line;
mod memory;
pub mod metrics;
mod realtime;
mod routes;
pub mod scheduler;
pub mod server;
mod starting;
mod tls;
pub mod tokens;
mod web;
mod websocket;
pub mod worker;

pub use backend::{Backend, Card, ModelBackend};
pub use config::{ServeConfig, Tls};
pub use error::ServeError;
pub use server::{Server, Signals, Stop};
