//! Writes GGUF files.

use std::path::Path;

use moshi_core::exec::BlockFormat;

use super::tensors::{Tensor, Tensors};

/// A metadata value.
pub(crate) enum Value {
    U32(u32),
    Text(&'static str),
    /// A list of texts.
    Texts(Vec<&'static str>),
}

/// What a tensor is stored as.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    F32,
    Blocks(BlockFormat),
}

impl Kind {
    fn number(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::Blocks(BlockFormat::Q4_0) => 2,
            Self::Blocks(BlockFormat::Q4_1) => 3,
            Self::Blocks(BlockFormat::Q8_0) => 8,
            Self::Blocks(BlockFormat::Q4K) => 12,
        }
    }

    /// Blocks where a matrix has whole ones and the rest as floats, as public files are made.
    pub(crate) fn of(format: BlockFormat, tensor: &Tensor) -> Self {
        match tensor.shape.as_slice() {
            [_, cols] if format.bytes_of(*cols).is_some() => Self::Blocks(format),
            _ => Self::F32,
        }
    }
}

/// One tensor: record and bytes.
pub(crate) struct Record {
    pub(crate) name: String,
    /// Outermost first.
    pub(crate) shape: Vec<u64>,
    pub(crate) kind: u32,
    pub(crate) offset: Option<u64>,
    pub(crate) bytes: Vec<u8>,
}

/// A file in memory. Tests that need a broken one change what they like before it is written.
pub(crate) struct Gguf {
    pub(crate) version: u32,
    pub(crate) alignment: usize,
    pub(crate) metadata: Vec<(String, Value)>,
    pub(crate) tensors: Vec<Record>,
    pub(crate) tensor_count: Option<u64>,
}

impl Gguf {
    pub(crate) fn new() -> Self {
        Self { version: 3, alignment: 32, metadata: vec![], tensors: vec![], tensor_count: None }
    }

    /// All tensors, each as `kind` says.
    pub(crate) fn of(tensors: &Tensors, kind: impl Fn(&str, &Tensor) -> Kind) -> Self {
        let mut file = Self::new();
        for (name, tensor) in &tensors.0 {
            file.push(name, tensor, kind(name, tensor));
        }
        file
    }

    pub(crate) fn push(&mut self, name: &str, tensor: &Tensor, kind: Kind) {
        let bytes = match kind {
            Kind::F32 => tensor.data.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Kind::Blocks(format) => format.encode(&tensor.data).unwrap(),
        };
        self.tensors.push(Record {
            name: name.into(),
            shape: tensor.shape.iter().map(|&n| n as u64).collect(),
            kind: kind.number(),
            offset: None,
            bytes,
        });
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        let count = self.tensor_count.unwrap_or(self.tensors.len() as u64);
        out.extend(count.to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        let text = |out: &mut Vec<u8>, text: &str| {
            out.extend((text.len() as u64).to_le_bytes());
            out.extend(text.as_bytes());
        };
        for (key, value) in &self.metadata {
            text(&mut out, key);
            match value {
                Value::U32(value) => {
                    out.extend(4u32.to_le_bytes());
                    out.extend(value.to_le_bytes());
                }
                Value::Text(value) => {
                    out.extend(8u32.to_le_bytes());
                    text(&mut out, value);
                }
                Value::Texts(values) => {
                    out.extend(9u32.to_le_bytes());
                    out.extend(8u32.to_le_bytes());
                    out.extend((values.len() as u64).to_le_bytes());
                    for value in values {
                        text(&mut out, value);
                    }
                }
            }
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            text(&mut out, &tensor.name);
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().rev().for_each(|n| out.extend(n.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(offset).to_le_bytes());
            offset += tensor.bytes.len().next_multiple_of(self.alignment) as u64;
        }
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
            out.extend(&tensor.bytes);
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out
    }

    pub(crate) fn write(&self, path: &Path) {
        std::fs::write(path, self.bytes()).unwrap();
    }
}
