//! Why the daemon cannot start or had to stop.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Failures of the daemon and of its clients.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Options that do not go together.
    #[error("{0}")]
    Config(String),
    /// The address cannot be had.
    #[error("cannot listen on {address}: {cause}; choose another --port or --host")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        cause: io::Error,
    },
    /// A file of keys, certificates or state.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// From the engine before the first caller.
    #[error(transparent)]
    Engine(#[from] moshi_core::Error),
    /// The engine failed while serving.
    #[error("the engine failed: {0}")]
    Worker(String),
    /// The operating system refused a runtime, a thread or a signal handler.
    #[error("cannot start: {0}")]
    Runtime(io::Error),
    /// A server could not be reached, or refused.
    #[error("{url}: {reason}")]
    Connect {
        /// The server, without secrets.
        url: String,
        /// What happened and what to do.
        reason: String,
    },
}
