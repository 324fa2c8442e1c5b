//! Tensors of a file under canonical names, checked as a whole before use.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use half::bf16;
use safetensors::Dtype;

use super::names::{self, Layout};
use super::{Encoding, Lora, TensorFile};
use crate::config::LmConfig;
use crate::error::{Error, Result, TensorProblems};
use crate::exec::{BlockFormat, HostMatrix, HostValues, Storage};

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
    /// Some rows of 8-bit integers, each row with a scale of its own: `q s / 127`.
    Scaled { tensor: String, scales: String, rows: Range<usize> },
    /// Some rows of packed integers, groups of a row with a scale and an offset: `q s + b`.
    Affine { tensor: String, scales: String, offsets: String, rows: Range<usize>, affine: Affine },
    /// A projection whose rows within each head are even ones, then odd ones: interleaved back.
    Interleave { tensor: String, num_heads: usize },
    /// A weight-normalised convolution: `gain * direction / |direction|`, norms per first axis.
    WeightNorm { gain: String, direction: String },
}

/// How integers are packed into words and grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Affine {
    /// 4 or 8.
    pub(super) bits: usize,
    /// Values that share scale and offset.
    pub(super) group: usize,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) shape: Vec<usize>,
    pub(super) pieces: Vec<Piece>,
}

/// Canonical names to places in a file.
pub struct Catalog<'f> {
    file: &'f TensorFile,
    layout: Layout,
    lora: Option<&'f Lora>,
    progress: Option<&'f dyn Fn(u64)>,
    entries: BTreeMap<String, Entry>,
    problems: TensorProblems,
}

impl<'f> Catalog<'f> {
    /// Catalogue of a language model: in the PyTorch layout, packed or split projections, or in
    /// those of Candle and MLX, with one depth transformer for every codebook.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for a layout that this engine does not read.
    pub fn language_model(file: &'f TensorFile, config: &LmConfig) -> Result<Self> {
        refuse(file, names::foreign_layout(file).or_else(|| names::foreign_language_model(file)))?;
        let mut problems = TensorProblems::default();
        let entries = names::language_model(file, config, &mut problems);
        Ok(Self { file, layout: Layout::of(file), lora: None, progress: None, entries, problems })
    }

    /// Catalogue of a codec in Kyutai's or Hugging Face's naming.
    ///
    /// # Errors
    /// As [`Catalog::language_model`].
    pub fn mimi(file: &'f TensorFile, num_heads: usize) -> Result<Self> {
        let mut problems = TensorProblems::default();
        let entries = if file.tensors().contains_key("encoder.layers.0.conv.weight") {
            names::mimi_from_hugging_face(file, num_heads, &mut problems)
        } else {
            refuse(file, names::foreign_layout(file))?;
            names::mimi(file, &mut problems)
        };
        Ok(Self { file, layout: Layout::PyTorch, lora: None, progress: None, entries, problems })
    }

    /// Adds an adapter that is fused into every weight as it is read.
    pub fn with_lora(mut self, lora: &'f Lora) -> Self {
        self.lora = Some(lora);
        self
    }

    /// Calls back with the number of bytes of every tensor as it is read.
    pub fn with_progress(mut self, progress: &'f dyn Fn(u64)) -> Self {
        self.progress = Some(progress);
        self
    }

    /// Whose names the file uses.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The file of the weights.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// All files that values come from.
    pub fn files(&self) -> Vec<&TensorFile> {
        std::iter::once(self.file).chain(self.lora.map(Lora::file)).collect()
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
                    let why = if self.layout.lacks(&tensor.name) {
                        format!(" (the {} layout cannot hold it)", self.layout.name())
                    } else {
                        String::new()
                    };
                    let missing = format!("{} {:?}{why}", tensor.name, tensor.shapes[0]);
                    problems.missing.push(missing);
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
        // Scaled integers have been checked against their scales.
        let floats = entry
            .pieces
            .iter()
            .filter(|piece| !matches!(piece, Piece::Scaled { .. } | Piece::Affine { .. }));
        for name in floats.flat_map(Piece::tensors) {
            let encoding = self.file.tensors()[name].encoding;
            if !encoding.is_float() && !tensor.name.ends_with("_initialized") {
                problems
                    .misshapen
                    .push(format!("{name}: expected F32, F16 or BF16, got {encoding}"));
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
        self.report(entry);
        check_finite(self.file, name, &values)?;
        if let Some(lora) = self.lora.filter(|lora| lora.changes(name)) {
            lora.fuse(name, &mut values, entry.shape.last().copied().unwrap_or(1))?;
            check_finite(lora.file(), name, &values)?;
        }
        Ok(values)
    }

    /// A canonical matrix (trailing axes of a kernel of one tap are dropped) in the storage that
    /// [`Catalog::storage`] gives.
    ///
    /// # Errors
    /// As [`Catalog::read`].
    pub fn matrix(&self, name: &str) -> Result<HostMatrix> {
        let bad = |reason| Error::Checkpoint { path: self.file.path().into(), reason };
        let shape = self.shape(name).ok_or_else(|| bad(format!("has no tensor {name}")))?;
        let rows = shape.first().copied().unwrap_or(0);
        if shape.contains(&0) || rows == 0 {
            return Err(bad(format!("tensor {name} is empty")));
        }
        let cols = shape.iter().skip(1).product();
        let values = match self.storage(name) {
            Storage::F32 => HostValues::F32(self.read(name)?),
            Storage::Bf16 => {
                let bytes = self.bytes(name)?;
                let values = bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b));
                HostValues::Bf16(values.collect())
            }
            Storage::Blocks(format) => HostValues::Blocks(format, self.bytes(name)?),
        };
        let finite = match &values {
            // Checked as it was read.
            HostValues::F32(_) => true,
            HostValues::Bf16(values) => values.iter().all(|v| v.is_finite()),
            HostValues::Blocks(format, bytes) => format.are_finite(bytes),
        };
        if !finite {
            return Err(bad(format!("tensor {name} has values that are not finite")));
        }
        Ok(HostMatrix { rows, cols, values })
    }

    /// The storage in which a canonical matrix is read without loss: the file's own for bf16 and
    /// blocks, unless an adapter changes the matrix, else f32.
    pub fn storage(&self, name: &str) -> Storage {
        let changed = self.lora.is_some_and(|lora| lora.changes(name));
        let Some(entry) = self.entries.get(name).filter(|_| !changed) else { return Storage::F32 };
        let encodings = entry.pieces.iter().map(|piece| match piece {
            Piece::Rows { tensor, .. } => Some(self.file.tensors()[tensor].encoding),
            _ => None,
        });
        let common = encodings.reduce(|a, b| a.filter(|_| a == b)).flatten();
        match common {
            Some(Encoding::Plain(Dtype::BF16)) => Storage::Bf16,
            Some(Encoding::Blocks(format)) => Storage::Blocks(format),
            _ => Storage::F32,
        }
    }

    /// The storage of about as many bits as the file spends on a canonical matrix: as
    /// [`Catalog::storage`], or blocks of 8 or 4 bits for integers with scales.
    pub fn nearest_storage(&self, name: &str) -> Storage {
        let changed = self.lora.is_some_and(|lora| lora.changes(name));
        let first = self.entries.get(name).and_then(|entry| entry.pieces.first());
        match first.filter(|_| !changed) {
            Some(Piece::Scaled { .. }) => Storage::Blocks(BlockFormat::Q8_0),
            Some(Piece::Affine { affine: Affine { bits: 8, .. }, .. }) => {
                Storage::Blocks(BlockFormat::Q8_0)
            }
            Some(Piece::Affine { .. }) => Storage::Blocks(BlockFormat::Q4_1),
            _ => self.storage(name),
        }
    }

    /// The stored bytes of a tensor whose pieces are rows.
    fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for piece in &self.entries[name].pieces {
            let Piece::Rows { tensor, rows } = piece else { unreachable!("storage is f32 then") };
            bytes.extend_from_slice(self.file.row_bytes(tensor, rows.clone())?.1);
        }
        self.report(&self.entries[name]);
        Ok(bytes)
    }

    /// Counts a tensor as read that nobody needs to read.
    pub(crate) fn skip(&self, name: &str) {
        if let Some(entry) = self.entries.get(name) {
            self.report(entry);
        }
    }

    fn report(&self, entry: &Entry) {
        let Some(progress) = self.progress else { return };
        let bytes = entry.pieces.iter().map(|piece| match piece {
            Piece::Rows { tensor, rows } => {
                self.file.row_bytes(tensor, rows.clone()).map_or(0, |(_, bytes)| bytes.len())
            }
            _ => piece.tensors().iter().map(|t| self.file.tensors()[*t].bytes.len()).sum(),
        });
        progress(bytes.sum::<usize>() as u64);
    }
}

fn check_finite(file: &TensorFile, name: &str, values: &[f32]) -> Result<()> {
    let Some(i) = values.iter().position(|v| !v.is_finite()) else { return Ok(()) };
    Err(Error::Checkpoint {
        path: file.path().into(),
        reason: format!("tensor {name} has the value {} at index {i}", values[i]),
    })
}

/// An error about a file whose layout is a known one of others.
fn refuse(file: &TensorFile, foreign: Option<&str>) -> Result<()> {
    match foreign {
        None => Ok(()),
        Some(known) => Err(Error::Checkpoint { path: file.path().into(), reason: known.into() }),
    }
}

impl Piece {
    pub(super) fn whole(tensor: &str, shape: &[usize]) -> Self {
        Self::Rows { tensor: tensor.into(), rows: 0..shape.first().copied().unwrap_or(1) }
    }

    fn tensors(&self) -> Vec<&str> {
        match self {
            Self::Rows { tensor, .. } | Self::Interleave { tensor, .. } => vec![tensor],
            Self::Scaled { tensor, scales, .. } => vec![tensor, scales],
            Self::Affine { tensor, scales, offsets, .. } => vec![tensor, scales, offsets],
            Self::WeightNorm { gain, direction } => vec![gain, direction],
        }
    }

    fn read(&self, file: &TensorFile) -> Result<Vec<f32>> {
        match self {
            Self::Rows { tensor, rows } => file.read_rows_f32(tensor, rows.clone()),
            Self::Scaled { tensor, scales, rows } => {
                let scales = file.read_rows_f32(scales, rows.clone())?;
                let (_, bytes) = file.row_bytes(tensor, rows.clone())?;
                let width = bytes.len() / rows.len().max(1);
                let scaled =
                    bytes.chunks_exact(width.max(1)).zip(scales).flat_map(|(row, scale)| {
                        row.iter().map(move |q| f32::from(q.cast_signed()) * scale / 127.0)
                    });
                Ok(scaled.collect())
            }
            Self::Affine { tensor, scales, offsets, rows, affine } => {
                let scales = file.read_rows_f32(scales, rows.clone())?;
                let offsets = file.read_rows_f32(offsets, rows.clone())?;
                let (_, bytes) = file.row_bytes(tensor, rows.clone())?;
                let integers: Vec<u8> = match affine.bits {
                    8 => bytes.to_vec(),
                    _ => bytes.iter().flat_map(|byte| [byte & 15, byte >> 4]).collect(),
                };
                let groups = integers.chunks_exact(affine.group).zip(scales.iter().zip(&offsets));
                let values = groups.flat_map(|(group, (scale, offset))| {
                    group.iter().map(move |&q| f32::from(q) * scale + offset)
                });
                Ok(values.collect())
            }
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
