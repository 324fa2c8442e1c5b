//! Tensors in memory: read, renamed, rewritten in another type, written as safetensors.

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use moshi_core::checkpoint::TensorFile;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

/// A tensor of floats.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Vec<f32>,
}

impl Tensor {
    pub(crate) fn new(shape: &[usize], data: Vec<f32>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), data.len(), "{shape:?}");
        Self { shape: shape.to_vec(), data }
    }

    /// Some rows, along the first axis.
    pub(crate) fn rows(&self, from: usize, to: usize) -> Self {
        let width = self.data.len() / self.shape[0];
        let mut shape = self.shape.clone();
        shape[0] = to - from;
        Self { shape, data: self.data[from * width..to * width].to_vec() }
    }

    /// The matrix times a vector, in f64.
    pub(crate) fn times(&self, x: &[f64]) -> Vec<f64> {
        let rows = self.data.chunks_exact(x.len());
        rows.map(|row| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum()).collect()
    }
}

/// Tensors by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tensors(pub(crate) BTreeMap<String, Tensor>);

impl Tensors {
    /// All tensors of a file, as floats.
    pub(crate) fn read(path: &Path) -> Self {
        let file = TensorFile::open(path).unwrap();
        let read =
            |name: &String| Tensor::new(&file.tensors()[name].shape, file.read_f32(name).unwrap());
        Self(file.tensors().keys().map(|name| (name.clone(), read(name))).collect())
    }

    /// Writes all tensors in one type.
    pub(crate) fn write(&self, path: &Path, dtype: Dtype) {
        let bytes: Vec<(&String, &Tensor, Vec<u8>)> =
            self.0.iter().map(|(name, t)| (name, t, encode(&t.data, dtype))).collect();
        let views = bytes.iter().map(|(name, tensor, bytes)| {
            (name.as_str(), TensorView::new(dtype, tensor.shape.clone(), bytes).unwrap())
        });
        serialize_to_file(views, None, path).unwrap();
    }

    /// Number of values.
    pub(crate) fn parameters(&self) -> usize {
        self.0.values().map(|tensor| tensor.data.len()).sum()
    }

    pub(crate) fn insert(&mut self, name: &str, tensor: Tensor) {
        self.0.insert(name.into(), tensor);
    }

    pub(crate) fn take(&mut self, name: &str) -> Tensor {
        self.0.remove(name).unwrap_or_else(|| panic!("no tensor {name}"))
    }

    pub(crate) fn get(&self, name: &str) -> &Tensor {
        self.0.get(name).unwrap_or_else(|| panic!("no tensor {name}"))
    }

    /// The same tensors under other names.
    pub(crate) fn renamed(&self, rename: impl Fn(&str) -> String) -> Self {
        Self(self.0.iter().map(|(name, tensor)| (rename(name), tensor.clone())).collect())
    }

    /// Packed projections of a language model split into one tensor per weight set.
    pub(crate) fn split(&self, depth_sets: usize) -> Self {
        let mut out = Self::default();
        for (name, tensor) in &self.0 {
            let packed = [(".in_proj_weight", ".in_projs"), (".out_proj.weight", ".out_projs")];
            let found = packed.iter().find_map(|(from, to)| Some((name.strip_suffix(from)?, to)));
            let Some((prefix, to)) = found else {
                out.insert(name, tensor.clone());
                continue;
            };
            let sets = if name.starts_with("depformer.") { depth_sets } else { 1 };
            let each = tensor.shape[0] / sets;
            for set in 0..sets {
                let rows = tensor.rows(set * each, (set + 1) * each);
                out.insert(&format!("{prefix}{to}.{set}.weight"), rows);
            }
        }
        out
    }
}

fn encode(values: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        other => panic!("{other:?} is not used here"),
    }
}
