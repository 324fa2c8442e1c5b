//! The error type of the crate. Bad input is an error with data in it; a broken invariant panics.

use std::any::Any;
use std::fmt;
use std::path::PathBuf;

/// Result with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong on bad input, one variant per kind of cure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field of a config file has a value that this engine does not accept.
    #[error("config {file}: field `{field}` is {value}: {reason}")]
    Config {
        /// The file, or the name of a built-in config or an option.
        file: String,
        /// The field, dotted for nested ones.
        field: String,
        /// The offending value as JSON.
        value: String,
        /// What would be accepted.
        reason: String,
    },
    /// A config file is unreadable as a whole.
    #[error("config {file}: {reason}")]
    ConfigFile {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file or folder does not exist.
    #[error("no such file: {}{hint}", path.display())]
    NotFound {
        /// The missing path.
        path: PathBuf,
        /// What to do about it, starting with a separator, or empty.
        hint: String,
    },
    /// A file exists but cannot be read or written.
    #[error("cannot access {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A repository on a hub exists as far as known, but cannot be had: no access, no connection,
    /// no space, a damaged download.
    #[error("{repo}: {reason}")]
    Hub {
        /// `owner/name`.
        repo: String,
        /// What happened and what to do.
        reason: String,
    },
    /// A file is not what its name promises: not safetensors, not a SentencePiece model, ...
    #[error("checkpoint {}: {reason}", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The tensors of a file are not those that its config asks for.
    #[error("checkpoint {} does not fit its config: {problems}", path.display())]
    Tensors {
        /// The file.
        path: PathBuf,
        /// Every disagreement.
        problems: TensorProblems,
    },
    /// A value passed by the caller is unusable.
    #[error("{what}: {reason}")]
    Input {
        /// The argument.
        what: &'static str,
        /// What is wrong with it, with the limit it breaks.
        reason: String,
    },
    /// A snapshot is not one of ours, not of this model, or damaged.
    #[error("snapshot: {reason}")]
    Snapshot {
        /// What is wrong with it.
        reason: String,
    },
    /// The device or its library failed.
    #[error("device {device}: {reason}")]
    Device {
        /// Device or executor name.
        device: String,
        /// What failed and what to do.
        reason: String,
    },
    /// A bounded resource is used up.
    #[error("{what} is full: {reason}")]
    Capacity {
        /// The resource.
        what: &'static str,
        /// Its limit and what to do.
        reason: String,
    },
    /// A call that the state of the session does not allow.
    #[error("session: {reason}")]
    Session {
        /// What is not allowed and why.
        reason: String,
    },
}

impl Error {
    /// An [`Error::Input`] about `what`.
    pub fn input(what: &'static str, reason: impl Into<String>) -> Self {
        Self::Input { what, reason: reason.into() }
    }

    pub(crate) fn snapshot(reason: impl Into<String>) -> Self {
        Self::Snapshot { reason: reason.into() }
    }

    pub(crate) fn read(path: &std::path::Path, source: std::io::Error) -> Self {
        if source.kind() == std::io::ErrorKind::NotFound {
            Self::NotFound { path: path.into(), hint: String::new() }
        } else {
            Self::Io { path: path.into(), source }
        }
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Device { device: "candle".into(), reason: candle_reason(&error) }
    }
}

/// What a Candle error says, without the backtrace that it adds when `RUST_BACKTRACE` is set.
pub(crate) fn candle_reason(error: &candle_core::Error) -> String {
    match error {
        candle_core::Error::WithBacktrace { inner, .. } => candle_reason(inner),
        error => error.to_string(),
    }
}

/// All disagreements between a checkpoint and its config.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct TensorProblems {
    /// Tensors that the config asks for and the file lacks, with the expected shape.
    pub missing: Vec<String>,
    /// Tensors of the file that the config does not know.
    pub unexpected: Vec<String>,
    /// Tensors whose shape or type differs: `name: expected ..., got ...`.
    pub misshapen: Vec<String>,
}

impl TensorProblems {
    /// True when there is no disagreement.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.misshapen.is_empty()
    }
}

impl fmt::Display for TensorProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (label, names) in [
            ("missing", &self.missing),
            ("unexpected", &self.unexpected),
            ("of another shape or type", &self.misshapen),
        ] {
            if names.is_empty() {
                continue;
            }
            let shown = names[..names.len().min(MAX_SHOWN)].join(", ");
            write!(f, "{separator}{} {label}: {shown}", names.len())?;
            if names.len() > MAX_SHOWN {
                write!(f, " and {} more", names.len() - MAX_SHOWN)?;
            }
            separator = "; ";
        }
        Ok(())
    }
}

/// Names of each kind in a message; the lists have all of them.
const MAX_SHOWN: usize = 50;

/// Far above any audio, latent or condition, far below what overflows inside a model: one such
/// value would stay in a stream's attention window as NaN.
const MAX_MAGNITUDE: f32 = 1e6;

/// What a caught panic says.
pub fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// Refuses NaN, infinities and absurd magnitudes, naming the first.
pub(crate) fn check_finite(what: &'static str, values: &[f32]) -> Result<()> {
    let Some(i) = values.iter().position(|v| v.is_nan() || v.abs() > MAX_MAGNITUDE) else {
        return Ok(());
    };
    let value = values[i];
    let limit =
        if value.is_finite() { format!("above {MAX_MAGNITUDE:e}") } else { "not finite".into() };
    Err(Error::input(what, format!("value {value} at index {i} is {limit}")))
}
