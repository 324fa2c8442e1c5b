//! The depth transformer: the own audio tokens of one frame, codebook by codebook.

use super::embedding::Embedding;
use super::state::Lane;
use crate::config::{LmConfig, OutputNorm};
use crate::error::Result;
use crate::exec::{Activation, AttentionPlan, Executor, Norm};
use crate::lm::load::Loader;
use crate::nn::{LAYER_NORM_EPS, Transformer, rms_norm_f32};
use crate::scratch::Scratch;

/// Weights of the depth transformer.
pub(super) struct Depth<E: Executor> {
    /// Weight set of every codebook.
    schedule: Vec<usize>,
    /// Projection of the temporal output, per weight set.
    input: Vec<E::Weight>,
    /// Embedding of the previous token, per codebook: text first.
    embeddings: Vec<Embedding<E>>,
    transformer: Transformer<E>,
    norms: Vec<Norm<E>>,
    heads: Vec<E::Weight>,
}

impl<E: Executor> Depth<E> {
    pub(super) fn load(loader: &Loader<'_, E>, config: &LmConfig) -> Result<Option<Self>> {
        let Some(depth) = &config.depth else { return Ok(None) };
        let sets = depth.num_sets();
        let codebooks = 0..config.num_generated;
        let embedding = |k: usize| {
            let name = match k.checked_sub(1) {
                None => "depformer_text_emb".to_owned(),
                Some(previous) => format!("depformer_emb.{previous}"),
            };
            Embedding::load(loader, &name, None)
        };
        let norm = |k: usize, kind: OutputNorm| -> Result<Norm<E>> {
            let name = format!("depformer_norms.{k}");
            Ok(match kind {
                OutputNorm::Rms => {
                    rms_norm_f32(loader.exec, loader.catalog, &format!("{name}.alpha"))?
                }
                OutputNorm::Layer => Norm::Layer {
                    weight: loader.vector(&format!("{name}.weight"))?,
                    bias: loader.vector(&format!("{name}.bias"))?,
                    eps: LAYER_NORM_EPS,
                },
            })
        };
        let norms = match depth.output_norm {
            None => Vec::new(),
            Some(kind) => codebooks.clone().map(|k| norm(k, kind)).collect::<Result<_>>()?,
        };
        Ok(Some(Self {
            schedule: depth.schedule.clone(),
            input: (0..sets)
                .map(|set| loader.weight(&format!("depformer_in.{set}.weight")))
                .collect::<Result<_>>()?,
            embeddings: codebooks.clone().map(embedding).collect::<Result<_>>()?,
            transformer: loader.transformer("depformer", &depth.shape, Some(sets), false)?,
            norms,
            heads: codebooks
                .map(|k| loader.weight(&format!("linears.{k}.weight")))
                .collect::<Result<_>>()?,
        }))
    }

    /// Codebooks generated per frame.
    pub(super) fn num_codebooks(&self) -> usize {
        self.schedule.len()
    }

    /// Logits `[lane, card]` of codebook `k`, given the temporal output and the previous token of
    /// every lane. Codebooks must be asked for in order from 0.
    pub(super) fn step(
        &self,
        (exec, scratch): (&E, &Scratch),
        k: usize,
        hidden: &E::Buffer,
        previous: &[i64],
        lanes: &mut [&mut Lane<E>],
    ) -> Result<E::Buffer> {
        let set = self.schedule[k];
        let mut x = exec.linear(hidden, &self.input[set], Activation::Identity)?;
        exec.add(&mut x, &self.embeddings[k].embed((exec, scratch), previous)?)?;
        let starts = scratch.list(lanes.len(), std::iter::repeat(k as u64));
        let plan = AttentionPlan::new(scratch, starts, 1, None, |_| 0);
        let plan = exec.plan(plan)?;
        self.transformer.forward(
            exec,
            &mut x,
            (set, &plan),
            lanes,
            |lane, layer| &mut lane.depth_rings[layer],
            |_, _| None,
        )?;
        let head = &self.heads[k];
        match self.norms.get(k) {
            Some(norm) => exec.linear_of_norm(&x, norm, head, Activation::Identity),
            None => exec.linear(&x, head, Activation::Identity),
        }
    }
}
