//! Why a conversation ends or cannot begin, and how each protocol says so.

/// Why a conversation was ended from this side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The client did not read what it was sent.
    SlowReader,
    /// No input for too long.
    Idle,
    /// The daemon shuts down.
    Draining,
    /// Another connection took the conversation over with its token.
    TakenOver,
    /// The engine failed.
    Failed,
}

impl End {
    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::SlowReader => "slow_reader",
            Self::Idle => "idle",
            Self::Draining => "draining",
            Self::TakenOver => "taken_over",
            Self::Failed => "failed",
        }
    }

    /// Code and reason of the close frame.
    pub fn close(self) -> (u16, &'static str) {
        match self {
            Self::SlowReader => (1008, "slow reader: output was not taken in time"),
            Self::Idle => (1000, "no audio for too long"),
            Self::Draining => (1001, "the server is shutting down"),
            Self::TakenOver => (1000, "resumed by another connection"),
            Self::Failed => (1011, "internal error"),
        }
    }
}

/// Why a conversation could not begin.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// All slots are taken.
    #[error("all {capacity} sessions are in use; try again later")]
    Full {
        /// Slots there are.
        capacity: usize,
    },
    /// The daemon shuts down.
    #[error("the server is shutting down; connect to another one, or again later")]
    Draining,
    /// Nothing is kept under this token.
    #[error("unknown or expired resume token; start a new session without it")]
    UnknownToken,
    /// The engine refused the settings.
    #[error(transparent)]
    Engine(#[from] moshi_core::Error),
    /// The engine is gone.
    #[error("the engine has failed; the server is about to exit")]
    Failed,
}

impl OpenError {
    /// Its name in metrics and protocols.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Full { .. } => "full",
            Self::Draining => "draining",
            Self::UnknownToken => "unknown_token",
            Self::Engine(_) => "settings",
            Self::Failed => "failed",
        }
    }

    /// Code of the close frame; the text is its reason.
    pub fn close_code(&self) -> u16 {
        match self {
            Self::Full { .. } => 1013,
            Self::Draining => 1001,
            Self::UnknownToken | Self::Engine(_) => 1008,
            Self::Failed => 1011,
        }
    }
}
