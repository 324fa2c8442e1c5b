//! Config files of the family, accepted as the public repositories carry them.
//!
//! Parsing gives typed structs in which only values that a released model uses can exist; any
//! other value is an [`Error::Config`] that names field and value. Files are read by
//! [`crate::checkpoint`], not here.

mod conditioning;
mod fields;
mod known;
mod lm;
mod mimi;
mod rust_toml;

pub use conditioning::{ConditionerConfig, ConditionerKind, FuserConfig};
pub use fields::Fields;
pub use lm::{
    DepthConfig, GenerationConfig, LmConfig, ModelFiles, ModelType, OutputNorm, TemporalConfig,
    TransformerShape,
};
pub(crate) use lm::{MAX_TEMPERATURE, TEXT_END_TOKEN};
pub use mimi::{MimiConfig, SeanetConfig};

use crate::error::{Error, Result};

/// Parses JSON text into fields of the file `file`.
pub(crate) fn parse_json<'a>(file: &'a str, text: &str) -> Result<Fields<'a>> {
    let value: serde_json::Value = serde_json::from_str(text).map_err(|e| Error::ConfigFile {
        file: file.into(),
        reason: format!("not valid JSON: {e}"),
    })?;
    Fields::new(file, "", value)
}
