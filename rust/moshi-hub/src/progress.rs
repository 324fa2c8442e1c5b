//! How a download is shown and stopped.

use std::fmt::Debug;
use std::ops::ControlFlow;

/// Watches downloads. One file is under way at a time per [`crate::HubRepo`].
pub trait Progress: Debug + Send + Sync {
    /// A file of `total_bytes` (when known) begins, or begins anew.
    fn start(&self, file: &str, total_bytes: Option<u64>);
    /// So many bytes of it are on disk. Called at least ten times a second while bytes arrive,
    /// and while waiting. [`ControlFlow::Break`] stops the download; what is there is kept.
    fn at(&self, bytes: u64) -> ControlFlow<()>;
    /// The file is complete and verified, or has failed.
    fn finish(&self);
}

/// Shows nothing and never stops.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn start(&self, _file: &str, _total_bytes: Option<u64>) {}

    fn at(&self, _bytes: u64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn finish(&self) {}
}
