//! Pre-norm transformer over streams with rings of keys and values.
//!
//! Weights are `&self`; rings belong to the streams. Axes: `[stream * time, width]`.

use super::RMS_NORM_F32_EPS;
use crate::checkpoint::Catalog;
use crate::error::Result;
use crate::exec::{Activation, Executor, Heads, Norm};

/// Feed-forward part of a layer.
pub enum FeedForward<E: Executor> {
    /// `W_out (silu(gate) * value)` with `[gate, value] = W_in x` (Shazeer 2020).
    Gated {
        /// `[2 * width, dim]`.
        linear_in: E::Weight,
        /// `[dim, width]`.
        linear_out: E::Weight,
    },
    /// `W_2 gelu(W_1 x)`.
    Plain {
        /// `[width, dim]`.
        linear1: E::Weight,
        /// `[dim, width]`.
        linear2: E::Weight,
    },
}

/// The matrices of a layer. A depth layer has one set of them per group of codebooks.
pub struct Projections<E: Executor> {
    /// Queries, keys, values: `[fused width, dim]`.
    pub in_proj: E::Weight,
    /// `[dim, query width]`.
    pub out_proj: E::Weight,
    /// Feed-forward.
    pub feed_forward: FeedForward<E>,
}

/// Attention to a conditioning sequence, between self-attention and feed-forward.
pub struct CrossAttention<E: Executor> {
    /// Norm of the query side.
    pub norm: Norm<E>,
    /// Queries: `[dim, dim]`.
    pub q_proj: E::Weight,
    /// Keys and values of the sequence: `[2 * dim, dim]`.
    pub kv_proj: E::Weight,
    /// `[dim, dim]`.
    pub out_proj: E::Weight,
}

/// One layer.
pub struct Layer<E: Executor> {
    /// Norm before attention.
    pub norm1: Norm<E>,
    /// Norm before the feed-forward.
    pub norm2: Norm<E>,
    /// Weight sets; one unless this is a depth layer.
    pub sets: Vec<Projections<E>>,
    /// Per-channel scales of the attention and feed-forward branches.
    pub scales: Option<[E::Vector; 2]>,
    /// Attention to a conditioning sequence.
    pub cross: Option<CrossAttention<E>>,
}

/// A stack of layers without a final norm.
pub struct Transformer<E: Executor> {
    /// Attention shape.
    pub heads: Heads,
    /// Layers in order.
    pub layers: Vec<Layer<E>>,
}

impl<E: Executor> Transformer<E> {
    /// Attention shape of the conditioning sequence, whose keys are never grouped.
    pub fn cross_heads(&self) -> Heads {
        self.heads.ungrouped()
    }

    /// The matrices that every step multiplies.
    pub(crate) fn weights(&self) -> impl Iterator<Item = &E::Weight> {
        self.layers.iter().flat_map(|layer| &layer.sets).flat_map(|set| {
            let [first, second] = match &set.feed_forward {
                FeedForward::Gated { linear_in, linear_out } => [linear_in, linear_out],
                FeedForward::Plain { linear1, linear2 } => [linear1, linear2],
            };
            [&set.in_proj, &set.out_proj, first, second]
        })
    }

    /// Runs the rows of `x` through all layers with weight set `set`.
    ///
    /// `ring(stream, layer)` and `memory(stream, layer)` find a stream's state.
    pub fn forward<S>(
        &self,
        exec: &E,
        x: &mut E::Buffer,
        (set, plan): (usize, &E::Plan<'_>),
        streams: &mut [S],
        ring: impl Fn(&mut S, usize) -> &mut E::Ring,
        memory: impl Fn(&S, usize) -> Option<&E::Ring>,
    ) -> Result<()> {
        for (i, layer) in self.layers.iter().enumerate() {
            let set = &layer.sets[set];
            let scale = |branch: usize| layer.scales.as_ref().map(|scales| &scales[branch]);
            let qkv = exec.linear_of_norm(x, &layer.norm1, &set.in_proj, Activation::Identity)?;
            let h = exec.self_attention(&qkv, self.heads, plan, streams, |s| ring(s, i))?;
            exec.linear_add(x, &h, &set.out_proj, scale(0))?;
            if let Some(cross) = &layer.cross {
                let q = exec.linear_of_norm(x, &cross.norm, &cross.q_proj, Activation::Identity)?;
                let h = exec.cross_attention(&q, self.cross_heads(), streams, |s| memory(s, i))?;
                exec.linear_add(x, &h, &cross.out_proj, None)?;
            }
            match &set.feed_forward {
                FeedForward::Gated { linear_in, linear_out } => {
                    let h =
                        exec.linear_of_norm(x, &layer.norm2, linear_in, Activation::SiluGate)?;
                    exec.linear_add(x, &h, linear_out, scale(1))?;
                }
                FeedForward::Plain { linear1, linear2 } => {
                    let h = exec.linear_of_norm(x, &layer.norm2, linear1, Activation::Gelu)?;
                    exec.linear_add(x, &h, linear2, scale(1))?;
                }
            }
        }
        Ok(())
    }
}

/// Loads an `rms_norm_f32` of the given tensor.
pub fn rms_norm_f32<E: Executor>(exec: &E, catalog: &Catalog<'_>, name: &str) -> Result<Norm<E>> {
    Ok(Norm::Rms { alpha: exec.vector(catalog.read(name)?)?, eps: RMS_NORM_F32_EPS })
}
