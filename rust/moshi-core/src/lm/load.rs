//! From canonical tensors to the language model's weights in an executor's form.

use super::precision::{WeightType, storage_of};
use crate::checkpoint::{Catalog, PackedFile};
use crate::config::TransformerShape;
use crate::error::{Error, Result};
use crate::exec::{Executor, HostMatrix, Norm, Storage};
use crate::nn::{
    CrossAttention, FeedForward, LAYER_NORM_EPS, Layer, Projections, Transformer, rms_norm_f32,
};

/// Reads the parts that both transformers share.
pub(super) struct Loader<'a, E> {
    pub(super) exec: &'a E,
    pub(super) catalog: &'a Catalog<'a>,
    /// `None` keeps what the checkpoint has.
    pub(super) dtype: Option<WeightType>,
    /// Where weights are kept as the executor has them.
    pub(super) packed: Option<&'a PackedFile>,
}

impl<E: Executor> Loader<'_, E> {
    /// A matrix in the storage that its role and the wanted type give it.
    pub(super) fn matrix(&self, name: &str) -> Result<HostMatrix> {
        let matrix = self.catalog.matrix(name)?;
        let storage = self.storage(name, matrix.cols);
        matrix.store(storage).ok_or_else(|| self.too_large(name))
    }

    pub(super) fn weight(&self, name: &str) -> Result<E::Weight> {
        if let Some(weight) = self.kept(name)? {
            self.catalog.skip(name);
            return Ok(weight);
        }
        let matrix = self.catalog.matrix(name)?;
        let storage = self.storage(name, matrix.cols);
        let weight = self.exec.weight_in(matrix, storage)?.ok_or_else(|| self.too_large(name))?;
        if let (Some(file), Some(bytes)) = (self.packed, self.exec.packed(&weight)) {
            file.put(name, bytes);
        }
        Ok(weight)
    }

    /// A weight that an earlier load kept.
    fn kept(&self, name: &str) -> Result<Option<E::Weight>> {
        let Some(bytes) = self.packed.and_then(|file| file.get(name)) else { return Ok(None) };
        let Some(&[rows, ref others @ ..]) = self.catalog.shape(name) else { return Ok(None) };
        let cols = others.iter().product();
        self.exec.weight_from_packed(self.storage(name, cols), rows, cols, bytes)
    }

    fn storage(&self, name: &str, cols: usize) -> Storage {
        storage_of(name, cols, self.catalog.nearest_storage(name), self.dtype)
    }

    fn too_large(&self, name: &str) -> Error {
        Error::Checkpoint {
            path: self.catalog.path().into(),
            reason: format!("tensor {name} has values too large for blocks of few bits"),
        }
    }

    pub(super) fn vector(&self, name: &str) -> Result<E::Vector> {
        self.exec.vector(self.catalog.read(name)?)
    }

    /// The stack under `{prefix}.layers`; `sets` is `None` when gatings carry no set number.
    pub(super) fn transformer(
        &self,
        prefix: &str,
        shape: &TransformerShape,
        sets: Option<usize>,
        cross: bool,
    ) -> Result<Transformer<E>> {
        let layers = (0..shape.num_layers)
            .map(|layer| {
                let prefix = format!("{prefix}.layers.{layer}");
                let norm = |name: &str| {
                    rms_norm_f32(self.exec, self.catalog, &format!("{prefix}.{name}.alpha"))
                };
                let projections = |set: usize| self.projections(&prefix, set, sets.is_some());
                Ok(Layer {
                    norm1: norm("norm1")?,
                    norm2: norm("norm2")?,
                    sets: (0..sets.unwrap_or(1)).map(projections).collect::<Result<_>>()?,
                    scales: None,
                    cross: cross.then(|| self.cross(&prefix)).transpose()?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Transformer { heads: shape.heads, layers })
    }

    fn projections(&self, prefix: &str, set: usize, numbered: bool) -> Result<Projections<E>> {
        let gating =
            if numbered { format!("{prefix}.gating.{set}") } else { format!("{prefix}.gating") };
        Ok(Projections {
            in_proj: self.weight(&format!("{prefix}.self_attn.in_projs.{set}.weight"))?,
            out_proj: self.weight(&format!("{prefix}.self_attn.out_projs.{set}.weight"))?,
            feed_forward: FeedForward::Gated {
                linear_in: self.weight(&format!("{gating}.linear_in.weight"))?,
                linear_out: self.weight(&format!("{gating}.linear_out.weight"))?,
            },
        })
    }

    fn cross(&self, prefix: &str) -> Result<CrossAttention<E>> {
        let name = format!("{prefix}.cross_attention.in_projs.0.weight");
        let joined = self.matrix(&name)?;
        let query_rows = joined.rows / 3;
        let (q, kv) = joined.split_rows(query_rows);
        Ok(CrossAttention {
            norm: Norm::Layer {
                weight: self.vector(&format!("{prefix}.norm_cross.weight"))?,
                bias: self.vector(&format!("{prefix}.norm_cross.bias"))?,
                eps: LAYER_NORM_EPS,
            },
            q_proj: self.exec.weight(q)?,
            kv_proj: self.exec.weight(kv)?,
            out_proj: self.weight(&format!("{prefix}.cross_attention.out_projs.0.weight"))?,
        })
    }
}
