//! A memory-mapped safetensors file whose header has been checked.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use moshi_kernels::MappedFile;
use safetensors::{Dtype, SafeTensors};

use crate::error::{Error, Result};

/// Where a tensor lies in its file.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// Element type.
    pub dtype: Dtype,
    /// Shape, outermost axis first.
    pub shape: Vec<usize>,
    bytes: Range<usize>,
}

/// A safetensors file, mapped read-only.
pub struct TensorFile {
    path: PathBuf,
    map: MappedFile,
    header: Range<usize>,
    tensors: BTreeMap<String, TensorInfo>,
    metadata: BTreeMap<String, String>,
}

impl TensorFile {
    /// Opens and checks a file: header length, JSON, offsets inside the file, no gaps.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Io`], or [`Error::Checkpoint`] saying what is wrong.
    pub fn open(path: &Path) -> Result<Self> {
        let map = MappedFile::open(path).map_err(|e| Error::read(path, e))?;
        let bad = |reason: String| Error::Checkpoint { path: path.into(), reason };
        if map.starts_with(b"GGUF") {
            return Err(bad("is a GGUF file, which this version does not read; use the \
                            safetensors file of the same model"
                .into()));
        }
        let (header_len, parsed) = SafeTensors::read_metadata(&map)
            .map_err(|e| bad(format!("not a valid safetensors file: {e}")))?;
        // The length prefix is eight bytes, after which offsets count from the header's end.
        let data_start = header_len + LENGTH_PREFIX;
        let mut tensors = BTreeMap::new();
        for (name, info) in parsed.tensors() {
            let (from, to) = info.data_offsets;
            let bytes = data_start + from..data_start + to;
            if bytes.end > map.len() {
                return Err(bad(format!(
                    "tensor {name} ends at byte {}, the file has {}: truncated download?",
                    bytes.end,
                    map.len()
                )));
            }
            let shape = info.shape.clone();
            tensors.insert(name, TensorInfo { dtype: info.dtype, shape, bytes });
        }
        let end = tensors.values().map(|info| info.bytes.end).max().unwrap_or(data_start);
        if end != map.len() {
            let len = map.len();
            return Err(bad(format!("the header describes {end} bytes, the file has {len}")));
        }
        let metadata = parsed.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone()));
        let metadata = metadata.collect();
        Ok(Self { path: path.into(), map, header: 0..data_start, tensors, metadata })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Free-form texts of the header (`__metadata__`).
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// All tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// Size of the file in bytes.
    pub fn len_bytes(&self) -> usize {
        self.map.len()
    }

    /// One tensor's place.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when there is none of that name.
    pub fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.tensors.get(name).ok_or_else(|| Error::Checkpoint {
            path: self.path.clone(),
            reason: format!("has no tensor {name}"),
        })
    }

    /// Values of a float tensor (F32, F16, BF16) as f32.
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
        let info = self.info(name)?;
        let total_rows = info.shape.first().copied().unwrap_or(1).max(1);
        let row_bytes = info.bytes.len() / total_rows;
        let start = info.bytes.start;
        let bytes = &self.map[start + rows.start * row_bytes..start + rows.end * row_bytes];
        Ok(match info.dtype {
            Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::F16 => {
                bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()
            }
            Dtype::BF16 => {
                bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()
            }
            other => return Err(self.wrong_type(name, other, "F32, F16 or BF16")),
        })
    }

    /// Values of an integer tensor (I64, I32, U32, I16, U16, U8, BOOL) as i64.
    ///
    /// # Errors
    /// As [`TensorFile::read_f32`].
    pub fn read_i64(&self, name: &str) -> Result<Vec<i64>> {
        let info = self.info(name)?;
        let bytes = &self.map[info.bytes.clone()];
        Ok(match info.dtype {
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
            other => {
                return Err(self.wrong_type(name, other, "I64, I32, U32, I16, U16, U8 or BOOL"));
            }
        })
    }

    pub(super) fn header_bytes(&self) -> &[u8] {
        &self.map[self.header.clone()]
    }

    pub(super) fn tensor_bytes(&self, info: &TensorInfo) -> &[u8] {
        &self.map[info.bytes.clone()]
    }

    fn wrong_type(&self, name: &str, got: Dtype, expected: &str) -> Error {
        Error::Checkpoint {
            path: self.path.clone(),
            reason: format!("tensor {name} is {got:?}, expected {expected}"),
        }
    }
}

const LENGTH_PREFIX: usize = 8;
