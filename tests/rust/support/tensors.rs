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

    /// Tensors joined along the first axis.
    pub(crate) fn joined(parts: &[Self]) -> Self {
        let mut shape = parts[0].shape.clone();
        shape[0] = parts.iter().map(|part| part.shape[0]).sum();
        let data = parts.iter().flat_map(|part| part.data.iter().copied()).collect();
        Self::new(&shape, data)
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
            let found =
                PROJECTIONS.iter().find_map(|(from, to)| Some((name.strip_suffix(from)?, to)));
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

/// Tensors of any type, as bytes.
#[derive(Default)]
pub(crate) struct Raw(pub(crate) BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>);

impl Raw {
    pub(crate) fn push(&mut self, name: &str, dtype: Dtype, shape: Vec<usize>, bytes: Vec<u8>) {
        self.0.insert(name.into(), (dtype, shape, bytes));
    }

    pub(crate) fn floats(&mut self, name: &str, tensor: &Tensor) {
        self.push(name, Dtype::F32, tensor.shape.clone(), encode(&tensor.data, Dtype::F32));
    }

    pub(crate) fn get(&mut self, name: &str) -> &mut (Dtype, Vec<usize>, Vec<u8>) {
        self.0.get_mut(name).unwrap_or_else(|| panic!("no tensor {name}"))
    }

    pub(crate) fn write(&self, path: &Path) {
        let views = self.0.iter().map(|(name, (dtype, shape, bytes))| {
            (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        serialize_to_file(views, None, path).unwrap();
    }
}

/// Projections that are packed or split.
const PROJECTIONS: [(&str, &str); 2] =
    [(".in_proj_weight", ".in_projs"), (".out_proj.weight", ".out_projs")];

impl Tensors {
    /// Split projections of a language model packed into one tensor, `depth_sets` in the depth
    /// transformer.
    pub(crate) fn packed(&self, depth_sets: usize) -> Self {
        let mut out = self.clone();
        for (packed, split) in PROJECTIONS {
            let first = format!("{split}.0.weight");
            for name in self.0.keys().filter(|name| name.ends_with(&first)) {
                let prefix = name.strip_suffix(&first).unwrap();
                let sets = if name.starts_with("depformer.") { depth_sets } else { 1 };
                let parts: Vec<Tensor> = (0..sets)
                    .map(|set| out.take(&format!("{prefix}{split}.{set}.weight")))
                    .collect();
                out.insert(&format!("{prefix}{packed}"), Tensor::joined(&parts));
            }
        }
        out
    }

    /// An adapter's split projections packed, `A` and `B` each joined along rows.
    pub(crate) fn packed_adapter(&self, depth_sets: usize) -> Self {
        let mut out = self.clone();
        for (packed, split) in [("in_proj", "in_projs"), ("out_proj", "out_projs")] {
            for side in ["lora_A", "lora_B"] {
                let first = format!(".{split}.0.{side}.weight");
                for name in self.0.keys().filter(|name| name.ends_with(&first)) {
                    let prefix = name.strip_suffix(&first).unwrap();
                    let sets = if name.starts_with("depformer.") { depth_sets } else { 1 };
                    let part = |set: usize| format!("{prefix}.{split}.{set}.{side}.weight");
                    let parts: Vec<Tensor> = (0..sets).map(|set| out.take(&part(set))).collect();
                    let name = format!("{prefix}.{packed}.{side}.weight");
                    out.insert(&name, Tensor::joined(&parts));
                }
            }
        }
        out
    }

    /// The PyTorch layout, packed or split, in Candle's: one depth transformer per codebook.
    pub(crate) fn candle(&self, schedule: &[usize]) -> Self {
        let sets = schedule.iter().max().map_or(0, |max| max + 1);
        let mut out = Self::default();
        let packed = self.packed(sets);
        for (name, tensor) in &packed.0 {
            for (new, tensor) in candle_names(name, tensor, schedule, sets) {
                out.insert(&new, tensor);
            }
        }
        out
    }
}

impl Tensors {
    /// As [`Tensors::candle`], in the spelling of MLX, norms of one axis.
    pub(crate) fn mlx(&self, schedule: &[usize]) -> Self {
        let mut out = Self::default();
        for (name, mut tensor) in self.candle(schedule).0 {
            let depth = name.strip_prefix("depformer.").map(|n| format!("depformer.slices.{n}"));
            let audio = name.strip_prefix("emb.").map(|n| format!("audio_embs.{n}"));
            let name = depth.or(audio).unwrap_or(name);
            let name = name.replace("in_proj_weight", "in_proj.weight");
            if name.ends_with("alpha") {
                tensor.shape = vec![tensor.data.len()];
            }
            out.insert(&name.replace("alpha", "weight"), tensor);
        }
        out
    }
}

fn candle_names(
    name: &str,
    tensor: &Tensor,
    schedule: &[usize],
    sets: usize,
) -> Vec<(String, Tensor)> {
    let numbered = |prefix: &str| {
        let (number, rest) = name.strip_prefix(prefix)?.split_once('.')?;
        Some((number.parse::<usize>().ok()?, rest.to_owned()))
    };
    let codebooks = || schedule.iter().enumerate();
    if let Some((set, rest)) = numbered("depformer_in.") {
        let users = codebooks().filter(|(_, own)| **own == set);
        return users
            .map(|(k, _)| (format!("depformer.{k}.linear_in.{rest}"), tensor.clone()))
            .collect();
    }
    if let Some((k, rest)) = numbered("linears.") {
        return vec![(format!("depformer.{k}.linear_out.{rest}"), tensor.clone())];
    }
    if let Some(rest) = name.strip_prefix("depformer_text_emb.") {
        return vec![(format!("depformer.0.emb.{rest}"), tensor.clone())];
    }
    if let Some((k, rest)) = numbered("depformer_emb.") {
        return vec![(format!("depformer.{}.emb.{rest}", k + 1), tensor.clone())];
    }
    let Some((layer, rest)) = numbered("depformer.layers.") else {
        return vec![(name.into(), tensor.clone())];
    };
    let prefix = |k: usize| format!("depformer.{k}.transformer.layers.{layer}");
    codebooks()
        .filter_map(|(k, &set)| {
            if let Some(gating) = rest.strip_prefix("gating.") {
                let (number, leaf) = gating.split_once('.').unwrap();
                let own = number.parse::<usize>().unwrap() == set;
                return own.then(|| (format!("{}.gating.{leaf}", prefix(k)), tensor.clone()));
            }
            let part = if rest.starts_with("self_attn") {
                let each = tensor.shape[0] / sets;
                tensor.rows(set * each, (set + 1) * each)
            } else {
                tensor.clone()
            };
            Some((format!("{}.{rest}", prefix(k)), part))
        })
        .collect()
}

fn encode(values: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        other => panic!("{other:?} is not used here"),
    }
}
