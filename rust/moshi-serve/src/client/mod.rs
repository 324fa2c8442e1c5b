//! Clients of the daemon: a connection that speaks the Moshi protocol, a conversation from a
//! recording at real-time pace, and many of them as a load test.

mod connection;
mod load;
mod paced;
mod stats;

pub use connection::{ChatClient, ClientEvent, ClientOptions};
pub use load::{LoadOptions, LoadReport, load_test};
pub use paced::{FrameLength, Outgoing, Report, converse};
pub use stats::Latency;

use crate::error::ServeError;

/// Runs a client to its end on threads of its own.
///
/// # Errors
/// [`ServeError::Runtime`] if there are none, else what `future` gives.
pub fn block_on<T>(future: impl Future<Output = Result<T, ServeError>>) -> Result<T, ServeError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(ServeError::Runtime)?;
    runtime.block_on(future)
}
