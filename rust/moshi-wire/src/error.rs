//! The one error type of the crate.

/// Why bytes of a peer could not be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A message without even a kind byte.
    #[error("empty message; the first byte of a message is its kind")]
    Empty,
    /// A kind that this protocol does not have.
    #[error("unknown message kind {kind:#04x}")]
    UnknownKind {
        /// The first byte.
        kind: u8,
    },
    /// The payload does not fit its kind.
    #[error("message of kind {kind:#04x}: {reason}")]
    Payload {
        /// The first byte.
        kind: u8,
        /// What is wrong with the rest.
        reason: &'static str,
    },
    /// The audio encoder refused its settings or its input.
    #[error("opus encoder: {reason}")]
    Encoder {
        /// What the codec says.
        reason: String,
    },
    /// The audio decoder cannot be made at this rate.
    #[error("opus decoder at {rate_hz} Hz: {reason}")]
    Decoder {
        /// The rate asked for.
        rate_hz: u32,
        /// What the codec says.
        reason: String,
    },
}
