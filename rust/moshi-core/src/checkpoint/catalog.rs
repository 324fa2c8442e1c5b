//! Tensors of a file under canonical names, checked as a whole before use.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::{Lora, TensorFile, names};
use crate::config::LmConfig;
use crate::error::{Error, Result, TensorProblems};
use crate::exec::HostMatrix;

/// A tensor that a config asks for.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Canonical name.
    pub name: String,
    /// Accepted shapes.
    pub shapes: Vec<Vec<usize>>,
    /// False when the file may lack it.
    pub required: bool,
}

impl Expected {
    /// A required tensor of one shape.
    pub fn new(name: impl Into<String>, shape: &[usize]) -> Self {
        Self { name: name.into(), shapes: vec![shape.to_vec()], required: true }
    }

    /// Accepts another shape too.
    pub fn or(mut self, shape: &[usize]) -> Self {
        self.shapes.push(shape.to_vec());
        self
    }

    /// Allows the file to lack it.
    pub fn optional(mut self) -> Self {
        self.required = false;
        self
    }
}

/// One or more pieces of file tensors that make up a canonical tensor, joined along rows.
#[derive(Debug)]
pub(super) enum Piece {
    /// Some rows of a tensor.
    Rows { tensor: String, rows: Range<usize> },
    /// A projection whose rows within each head are even ones, then odd ones: interleaved back.
    Interleave { tensor: String, num_heads: usize },
    /// A weight-normalised convolution: `gain * direction / |direction|`, norms per first axis.
    WeightNorm { gain: String, direction: String },
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) shape: Vec<usize>,
    pub(super) pieces: Vec<Piece>,
}

/// Canonical names to places in a file.
pub struct Catalog<'f> {
    file: &'f TensorFile,
    lora: Option<&'f Lora>,
    entries: BTreeMap<String, Entry>,
    problems: TensorProblems,
}

impl<'f> Catalog<'f> {
    /// Catalogue of a language model in the PyTorch layout, packed or split projections.
    pub fn language_model(file: &'f TensorFile, config: &LmConfig) -> Result<Self> {
        Self::new(file, |name, info| names::language_model(name, info, config))
    }

    /// Catalogue of a codec in Kyutai's or Hugging Face's naming.
    pub fn mimi(file: &'f TensorFile, num_heads: usize) -> Result<Self> {
        if file.tensors().contains_key("encoder.layers.0.conv.weight") {
            let mut problems = TensorProblems::default();
            let entries = names::mimi_from_hugging_face(file, num_heads, &mut problems);
            return Ok(Self { file, lora: None, entries, problems });
        }
        let mut catalog = Self::new(file, |name, info| Ok(names::mimi(name, info)))?;
        names::fold_weight_norms(file, &mut catalog.entries);
        Ok(catalog)
    }

    fn new(
        file: &'f TensorFile,
        rename: impl Fn(&str, &[usize]) -> Result<Vec<(String, Entry)>, String>,
    ) -> Result<Self> {
        let mut entries = BTreeMap::new();
        let mut problems = TensorProblems::default();
        for (name, info) in file.tensors() {
            match rename(name, &info.shape) {
                Ok(renamed) => {
                    for (canonical, entry) in renamed {
                        if entries.insert(canonical.clone(), entry).is_some() {
                            let again = format!("{name} (another spelling of {canonical})");
                            problems.unexpected.push(again);
                        }
                    }
                }
                Err(problem) => problems.misshapen.push(problem),
            }
        }
        if let Some(known) = names::foreign_layout(file) {
            return Err(Error::Checkpoint { path: file.path().into(), reason: known.into() });
        }
        Ok(Self { file, lora: None, entries, problems })
    }

    /// Adds an adapter that is fused into every weight as it is read.
    pub fn with_lora(mut self, lora: &'f Lora) -> Self {
        self.lora = Some(lora);
        self
    }

    /// Shape of a canonical tensor, if the file has it.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|entry| entry.shape.as_slice())
    }

    /// Compares with what the config asks for.
    ///
    /// # Errors
    /// [`Error::Tensors`] listing every missing, unexpected and misshapen tensor at once.
    pub fn check(&self, expected: &[Expected]) -> Result<()> {
        let mut problems = self.problems.clone();
        let mut known = BTreeSet::new();
        for tensor in expected {
            known.insert(tensor.name.as_str());
            match self.entries.get(&tensor.name) {
                None if tensor.required => {
                    problems.missing.push(format!("{} {:?}", tensor.name, tensor.shapes[0]));
                }
                None => {}
                Some(entry) => self.check_one(tensor, entry, &mut problems),
            }
        }
        let unknown = self.entries.keys().filter(|name| !known.contains(name.as_str()));
        problems.unexpected.extend(unknown.cloned());
        if let Some(lora) = self.lora {
            lora.check(|name| self.shape(name), &mut problems);
        }
        if problems.is_empty() {
            return Ok(());
        }
        Err(Error::Tensors { path: self.file.path().into(), problems })
    }

    fn check_one(&self, tensor: &Expected, entry: &Entry, problems: &mut TensorProblems) {
        if !tensor.shapes.contains(&entry.shape) {
            let shapes: Vec<String> = tensor.shapes.iter().map(|s| format!("{s:?}")).collect();
            problems.misshapen.push(format!(
                "{}: expected {}, got {:?}",
                tensor.name,
                shapes.join(" or "),
                entry.shape
            ));
        }
        for name in entry.pieces.iter().flat_map(Piece::tensors) {
            let dtype = self.file.tensors()[name].dtype;
            if !names::is_float(dtype) && !tensor.name.ends_with("_initialized") {
                problems
                    .misshapen
                    .push(format!("{name}: expected F32, F16 or BF16, got {dtype:?}"));
            }
        }
    }

    /// Values of a canonical tensor as f32, adapter included.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when it is missing or not a float tensor; [`Catalog::check`] first.
    pub fn read(&self, name: &str) -> Result<Vec<f32>> {
        let entry = self.entries.get(name).ok_or_else(|| Error::Checkpoint {
            path: self.file.path().into(),
            reason: format!("has no tensor {name}"),
        })?;
        let mut values = Vec::with_capacity(entry.shape.iter().product());
        for piece in &entry.pieces {
            values.extend(piece.read(self.file)?);
        }
        if let Some(lora) = self.lora {
            lora.fuse(name, &mut values, entry.shape.last().copied().unwrap_or(1))?;
        }
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            return Err(Error::Checkpoint {
                path: self.file.path().into(),
                reason: format!("tensor {name} has the value {} at index {i}", values[i]),
            });
        }
        Ok(values)
    }

    /// A canonical matrix (trailing axes of a kernel of one tap are dropped).
    ///
    /// # Errors
    /// As [`Catalog::read`].
    pub fn matrix(&self, name: &str) -> Result<HostMatrix> {
        let data = self.read(name)?;
        let rows = self.entries[name].shape.first().copied().unwrap_or(0);
        if data.is_empty() || rows == 0 {
            let reason = format!("tensor {name} is empty");
            return Err(Error::Checkpoint { path: self.file.path().into(), reason });
        }
        Ok(HostMatrix { rows, cols: data.len() / rows, data })
    }

    /// True when every weight matrix of the file is stored in bf16.
    pub fn is_bf16(&self) -> bool {
        let float = self.file.tensors().values().filter(|info| info.shape.len() == 2);
        let mut float = float.peekable();
        float.peek().is_some() && float.all(|info| info.dtype == safetensors::Dtype::BF16)
    }
}

impl Piece {
    pub(super) fn whole(tensor: &str, shape: &[usize]) -> Self {
        Self::Rows { tensor: tensor.into(), rows: 0..shape.first().copied().unwrap_or(1) }
    }

    fn tensors(&self) -> Vec<&str> {
        match self {
            Self::Rows { tensor, .. } | Self::Interleave { tensor, .. } => vec![tensor],
            Self::WeightNorm { gain, direction } => vec![gain, direction],
        }
    }

    fn read(&self, file: &TensorFile) -> Result<Vec<f32>> {
        match self {
            Self::Rows { tensor, rows } => file.read_rows_f32(tensor, rows.clone()),
            Self::Interleave { tensor, num_heads } => {
                let values = file.read_f32(tensor)?;
                let rows = file.info(tensor)?.shape[0];
                let (width, head) = (values.len() / rows, rows / num_heads);
                let mut out = Vec::with_capacity(values.len());
                for row in 0..rows {
                    let (h, i) = (row / head, row % head);
                    let from = h * head + if i % 2 == 0 { i / 2 } else { head / 2 + i / 2 };
                    out.extend_from_slice(&values[from * width..(from + 1) * width]);
                }
                Ok(out)
            }
            Self::WeightNorm { gain, direction } => {
                let (gain, mut values) = (file.read_f32(gain)?, file.read_f32(direction)?);
                let width = values.len() / gain.len().max(1);
                for (row, gain) in values.chunks_exact_mut(width.max(1)).zip(gain) {
                    let norm = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
                    for value in row {
                        *value = (f64::from(*value) * f64::from(gain) / norm) as f32;
                    }
                }
                Ok(values)
            }
        }
    }
}
