//! Recomputing reference cases: a folder with `case.json`, configs, weights, inputs and what the
//! PyTorch original computed from them in f32.
//!
//! Every tensor of every `expected*.safetensors` is either an input of the case or compared; one
//! that is neither fails the case. Results are computed before anything expected is read.

mod compare;
mod dialogue;
mod language_model;
mod mimi;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use moshi_core::checkpoint::TensorFile;
use moshi_core::exec::Executor;
use moshi_core::{Error, Result};
use serde_json::Value;

pub use compare::{Check, Measure};

/// What to compare one expected tensor with.
pub(crate) struct Computed {
    /// Tensor in the expected file.
    pub(crate) name: String,
    /// Own shape.
    pub(crate) shape: Vec<usize>,
    /// Own values.
    pub(crate) values: Values,
    /// Axis that counts steps, for "first differing step".
    pub(crate) step_axis: usize,
    /// Elements that mean nothing in the reference.
    pub(crate) ignore: Option<Ignore>,
}

/// Says of an element, by its index, that it means nothing.
pub(crate) type Ignore = Box<dyn Fn(&[usize]) -> bool>;

/// Values of a computed tensor and how they are judged.
pub(crate) enum Values {
    /// Codes and tokens: equal.
    Tokens(Vec<i64>),
    /// Logits, probabilities, latents: deviation relative to the spread.
    Floats(Vec<f32>),
    /// Audio: signal-to-noise ratio.
    Audio(Vec<f32>),
}

/// Everything computed for one expected file.
pub(crate) struct Results {
    /// Tensors of the file that are inputs.
    pub(crate) inputs: Vec<&'static str>,
    /// Tensors to compare.
    pub(crate) computed: Vec<Computed>,
}

/// Outcome of one case.
#[derive(Debug)]
pub struct CaseReport {
    /// The case's folder.
    pub folder: PathBuf,
    /// One row per expected tensor, and per text list.
    pub checks: Vec<Check>,
}

impl CaseReport {
    /// True when every check passed and there was at least one.
    pub fn passed(&self) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(|check| check.passed)
    }
}

/// A case folder, opened.
pub(crate) struct Case {
    pub(crate) folder: PathBuf,
    pub(crate) json: Value,
}

impl Case {
    fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("case.json");
        let text = std::fs::read_to_string(&path).map_err(|source| {
            if source.kind() == std::io::ErrorKind::NotFound {
                let hint = ": a case is a folder with case.json, configs, weights and \
                            expected*.safetensors";
                Error::NotFound { path: path.clone(), hint: hint.into() }
            } else {
                Error::Io { path: path.clone(), source }
            }
        })?;
        let json = serde_json::from_str(&text).map_err(|e| Error::ConfigFile {
            file: path.display().to_string(),
            reason: format!("not valid JSON: {e}"),
        })?;
        Ok(Self { folder: folder.into(), json })
    }

    /// An error about a field of `case.json`.
    pub(crate) fn field_error(&self, field: &str, reason: &str) -> Error {
        Error::Config {
            file: self.folder.join("case.json").display().to_string(),
            field: field.into(),
            value: self.json[field].to_string(),
            reason: reason.into(),
        }
    }

    pub(crate) fn text(&self, file: &str) -> Result<String> {
        let path = self.folder.join(file);
        std::fs::read_to_string(&path).map_err(|source| {
            if source.kind() == std::io::ErrorKind::NotFound {
                Error::NotFound { path, hint: String::new() }
            } else {
                Error::Io { path, source }
            }
        })
    }

    /// `expected*.safetensors`, sorted, with the part between `expected` and the extension.
    fn expected_files(&self) -> Result<BTreeMap<String, PathBuf>> {
        let entries = std::fs::read_dir(&self.folder)
            .map_err(|source| Error::Io { path: self.folder.clone(), source })?;
        let mut files = BTreeMap::new();
        for entry in entries {
            let path =
                entry.map_err(|source| Error::Io { path: self.folder.clone(), source })?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let suffix = name.strip_prefix("expected").and_then(|n| n.strip_suffix(".safetensors"));
            if let Some(suffix) = suffix {
                files.insert(suffix.to_owned(), path.clone());
            }
        }
        if files.is_empty() {
            let path = self.folder.join("expected.safetensors");
            return Err(Error::NotFound { path, hint: String::new() });
        }
        Ok(files)
    }
}

/// Recomputes a case under an executor and compares.
///
/// # Errors
/// When the case cannot be run at all; what deviates is in the report.
pub fn verify_case<E: Executor>(exec: &E, folder: &Path) -> Result<CaseReport> {
    let case = Case::open(folder)?;
    let kind = case.json["kind"].as_str().unwrap_or_default();
    let mut checks = Vec::new();
    for (suffix, path) in case.expected_files()? {
        let file = TensorFile::open(&path)?;
        let results = match kind {
            "mimi" if suffix.is_empty() => mimi::compute(exec, &case, &file)?,
            "language_model" => language_model::compute(exec, &case, &suffix, &file)?,
            "dialogue" if suffix.is_empty() => dialogue::compute(exec, &case, &file, &mut checks)?,
            "mimi" | "dialogue" => {
                let reason = "is a second expected file, which this kind of case does not have";
                return Err(Error::Checkpoint { path, reason: reason.into() });
            }
            _ => {
                let reason = "must be \"mimi\", \"language_model\" or \"dialogue\"";
                return Err(case.field_error("kind", reason));
            }
        };
        checks.extend(compare::compare(&file, results)?);
    }
    Ok(CaseReport { folder: folder.into(), checks })
}
