//! A file of named tensors, mapped or in memory, whose header has been checked.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use half::{bf16, f16};
use moshi_kernels::scalar::BlockFormat;
use safetensors::Dtype;

use super::header::Header;
use super::source::{FileBytes, SourceFile};
use super::{gguf, safetensors as safetensors_header};
use crate::error::{Error, Result};

/// How a file stores the values of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// One after the other.
    Plain(Dtype),
    /// In blocks of few bits.
    Blocks(BlockFormat),
}

impl Encoding {
    /// True when the values are weights: floats, or blocks that decode to floats.
    pub fn is_float(self) -> bool {
        matches!(self, Self::Plain(Dtype::F32 | Dtype::F16 | Dtype::BF16) | Self::Blocks(_))
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(dtype) => write!(f, "{dtype:?}"),
            Self::Blocks(BlockFormat::Q4K) => f.write_str("Q4_K"),
            Self::Blocks(format) => write!(f, "{format:?}"),
        }
    }
}

/// Where a tensor lies in its file.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// Form of the values.
    pub encoding: Encoding,
    /// Shape, outermost axis first.
    pub shape: Vec<usize>,
    pub(super) bytes: Range<usize>,
}

/// Containers of tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// `.safetensors`.
    Safetensors,
    /// `.gguf`.
    Gguf,
}

/// A safetensors or GGUF file, read in place; which of them, its first bytes say.
pub struct TensorFile {
    file: SourceFile,
    bytes: FileBytes,
    container: Container,
    header: Range<usize>,
    tensors: BTreeMap<String, TensorInfo>,
    metadata: BTreeMap<String, String>,
}

impl TensorFile {
    /// Opens a file and checks its header: lengths, counts, offsets inside the file, no overlaps.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Io`], or [`Error::Checkpoint`] saying what is wrong.
    pub fn open(file: impl Into<SourceFile>) -> Result<Self> {
        let file = file.into();
        let bytes = file.bytes()?;
        let (container, kind, parsed) = if bytes.starts_with(gguf::MAGIC) {
            (Container::Gguf, "GGUF", gguf::parse(&bytes))
        } else {
            (Container::Safetensors, "safetensors", safetensors_header::parse(&bytes))
        };
        let Header { tensors, metadata, bytes: header } =
            parsed.map_err(|reason| Error::Checkpoint {
                path: file.path().into(),
                reason: format!("not a readable {kind} file: {reason}"),
            })?;
        Ok(Self { file, bytes, container, header, tensors, metadata })
    }

    /// A file that was never written.
    pub(super) fn made(
        file: SourceFile,
        bytes: Vec<u8>,
        container: Container,
        tensors: BTreeMap<String, TensorInfo>,
    ) -> Self {
        let (bytes, metadata) = (FileBytes::from(bytes), BTreeMap::new());
        Self { file, bytes, container, header: 0..0, tensors, metadata }
    }

    /// The container.
    pub fn container(&self) -> Container {
        self.container
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// When the file was last written, as text; empty for one in memory.
    pub(crate) fn last_change(&self) -> String {
        let time = std::fs::metadata(self.path()).and_then(|metadata| metadata.modified());
        time.map_or_else(|_| String::new(), |time| format!("{time:?}"))
    }

    /// Free-form entries of the header (`__metadata__` of safetensors).
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// All tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// Size of the file in bytes.
    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// One tensor's place.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when there is none of that name.
    pub fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.tensors.get(name).ok_or_else(|| Error::Checkpoint {
            path: self.path().into(),
            reason: format!("has no tensor {name}"),
        })
    }

    /// Values of a float tensor (F32, F16, BF16, blocks) as f32.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for an unknown name or another type.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let rows = self.info(name)?.shape.first().copied().unwrap_or(1);
        self.read_rows_f32(name, 0..rows)
    }

    /// Values of some rows (along the first axis) of a float tensor as f32.
    ///
    /// # Errors
    /// As [`TensorFile::read_f32`].
    pub fn read_rows_f32(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>> {
        let (encoding, bytes) = self.row_bytes(name, rows)?;
        Ok(match encoding {
            Encoding::Plain(Dtype::F32) => {
                bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
            }
            Encoding::Plain(Dtype::F16) => {
                bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()
            }
            Encoding::Plain(Dtype::BF16) => {
                bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()
            }
            Encoding::Blocks(format) => {
                let mut values = vec![0.0; bytes.len() / format.bytes() * format.weights()];
                format.decode(bytes, &mut values);
                values
            }
            Encoding::Plain(_) => return Err(self.wrong_type(name, encoding, FLOATS)),
        })
    }

    /// The stored bytes of some rows (along the first axis) of a tensor.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for an unknown name.
    ///
    /// # Panics
    /// For rows that the tensor does not have.
    pub fn row_bytes(&self, name: &str, rows: Range<usize>) -> Result<(Encoding, &[u8])> {
        let info = self.info(name)?;
        let total_rows = info.shape.first().copied().unwrap_or(1);
        assert!(rows.end <= total_rows, "rows {rows:?} of {name} {:?}", info.shape);
        let row_bytes = info.bytes.len() / total_rows.max(1);
        let start = info.bytes.start;
        let range = start + rows.start * row_bytes..start + rows.end * row_bytes;
        Ok((info.encoding, &self.bytes[range]))
    }

    /// Values of an integer tensor (I64, I32, U32, I16, U16, U8, BOOL) as i64.
    ///
    /// # Errors
    /// As [`TensorFile::read_f32`].
    pub fn read_i64(&self, name: &str) -> Result<Vec<i64>> {
        let info = self.info(name)?;
        let bytes = &self.bytes[info.bytes.clone()];
        let Encoding::Plain(dtype) = info.encoding else {
            return Err(self.wrong_type(name, info.encoding, INTEGERS));
        };
        Ok(match dtype {
            Dtype::I64 => bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
            Dtype::I32 => {
                bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b).into()).collect()
            }
            Dtype::U32 => {
                bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b).into()).collect()
            }
            Dtype::I16 => {
                bytes.as_chunks().0.iter().map(|b| i16::from_le_bytes(*b).into()).collect()
            }
            Dtype::U16 => {
                bytes.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b).into()).collect()
            }
            Dtype::U8 | Dtype::BOOL => bytes.iter().map(|&b| b.into()).collect(),
            _ => return Err(self.wrong_type(name, info.encoding, INTEGERS)),
        })
    }

    pub(super) fn header_bytes(&self) -> &[u8] {
        &self.bytes[self.header.clone()]
    }

    pub(super) fn tensor_bytes(&self, info: &TensorInfo) -> &[u8] {
        &self.bytes[info.bytes.clone()]
    }

    fn wrong_type(&self, name: &str, got: Encoding, expected: &str) -> Error {
        Error::Checkpoint {
            path: self.path().into(),
            reason: format!("tensor {name} is {got}, expected {expected}"),
        }
    }
}

const FLOATS: &str = "F32, F16 or BF16";
const INTEGERS: &str = "I64, I32, U32, I16, U16, U8 or BOOL";
