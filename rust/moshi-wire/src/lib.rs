//! Bytes to messages and samples and back: the protocols of the daemon, without sockets or clocks.
//!
//! Everything that arrives from strangers is parsed here, with bounds on every buffer, so that it
//! can be tested and fuzzed as plain functions. Damage is counted and survived where the protocol
//! has a way to go on (Ogg pages, Opus packets), and an error with data in it where it has none.
//!
//! - [`chat`]: messages of the Moshi WebSocket `/api/chat`, one kind byte and a payload;
//! - [`ogg`]: pages of RFC 3533, read from any cutting of the byte stream, written one packet each;
//! - [`opus`]: a live Opus stream in such pages, to samples at the model's rate and back;
//! - [`pcm`]: plain samples of 16 bits, and G.711;
//! - [`framer`]: any chunks of samples to frames of a fixed size.
#![forbid(unsafe_code)]

pub mod chat;
mod error;
pub mod framer;
pub mod ogg;
pub mod opus;
pub mod pcm;

pub use error::WireError;
