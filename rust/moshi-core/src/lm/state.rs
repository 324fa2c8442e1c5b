//! What one stream of the language model remembers.

use std::ops::Range;

use super::conditioning::{Conditions, Fused, MAX_POSITIONS};
use super::delays::DelayCache;
use super::model::LanguageModel;
use crate::error::{Error, Result};
use crate::exec::{Activation, Executor, KeyStorage};
use crate::snapshot::{Reader, Writer};
use crate::stages::Noise;

/// Classifier-free guidance (Ho and Salimans 2022): logits of a second, unconditioned branch are
/// pushed away from: `null + (conditioned - null) * coefficient`.
#[derive(Clone, Debug, PartialEq)]
pub struct Guidance {
    /// Strength; 1 changes nothing.
    pub coefficient: f64,
    /// Conditions of the null branch; `None` drops every condition.
    pub null_conditions: Option<Conditions>,
    /// The null branch sees no text, and text logits are those of the conditioned branch.
    pub no_text: bool,
    /// The null branch sees no tokens at all before this frame.
    pub masked_until: Option<u64>,
}

impl Guidance {
    /// Guidance against dropped conditions.
    pub fn new(coefficient: f64) -> Self {
        Self { coefficient, null_conditions: None, no_text: false, masked_until: None }
    }
}

/// How a stream is opened.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LmStreamOptions {
    /// Values of the model's conditions.
    pub conditions: Conditions,
    /// Guidance; needs twice the work.
    pub guidance: Option<Guidance>,
}

/// The parts of [`Guidance`] that matter after the start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct GuidanceRule {
    pub(super) coefficient: f32,
    pub(super) no_text: bool,
    pub(super) masked_until: Option<u64>,
}

/// One row of the batch: the conditioned branch of a stream, or its null branch.
pub(super) struct Lane<E: Executor> {
    pub(super) rings: Vec<E::Ring>,
    pub(super) depth_rings: Vec<E::Ring>,
    /// Keys and values of the conditioning sequence, one ring per layer; empty without.
    pub(super) memory: Vec<E::Ring>,
    memory_len: usize,
    /// Added to every input.
    pub(super) sum: Option<Vec<f32>>,
}

/// Past of one stream.
pub struct LmState<E: Executor> {
    pub(super) delays: DelayCache,
    /// The conditioned branch, then the null branch under guidance.
    pub(super) lanes: Vec<Lane<E>>,
    pub(super) guidance: Option<GuidanceRule>,
    context: usize,
    ring_width: usize,
}

impl<E: Executor> LmState<E> {
    /// Steps done since the start or the last reset.
    pub fn offset(&self) -> u64 {
        self.delays.offset()
    }

    /// Forgets the past; conditions and guidance stay. Equals a new stream with them.
    pub fn reset(&mut self) {
        // Rings need no clearing: positions restart, so old entries are never visible.
        let Self { delays, lanes: _, guidance: _, context: _, ring_width: _ } = self;
        delays.reset();
    }

    fn kept(&self) -> Range<u64> {
        let offset = self.offset();
        offset.saturating_sub(self.context as u64)..offset
    }
}

impl<E: Executor> LanguageModel<E> {
    /// A fresh stream.
    ///
    /// # Errors
    /// [`Error::Input`] for unknown, missing or ill-typed conditions or a guidance coefficient
    /// that is not finite.
    pub fn new_state(&self, options: &LmStreamOptions) -> Result<LmState<E>> {
        let mut conditions = vec![options.conditions.clone()];
        let mut rule = None;
        // A coefficient of 1 gives the conditioned logits: the null branch would be wasted.
        let guides = |guidance: &&Guidance| {
            guidance.coefficient.is_nan() || (guidance.coefficient - 1.0).abs() > f64::EPSILON
        };
        if let Some(guidance) = options.guidance.as_ref().filter(guides) {
            if !(guidance.coefficient as f32).is_finite() {
                let reason = format!("{} is not a finite 32-bit number", guidance.coefficient);
                return Err(Error::input("guidance", reason));
            }
            let null = guidance.null_conditions.clone();
            conditions.push(null.unwrap_or_else(|| self.provider.null(&options.conditions)));
            rule = Some(GuidanceRule {
                coefficient: guidance.coefficient as f32,
                no_text: guidance.no_text,
                masked_until: guidance.masked_until,
            });
        }
        let lanes = conditions
            .iter()
            .map(|conditions| {
                let Fused { sum, cross } = self.provider.fuse(&self.exec, conditions)?;
                let mut lane = self.empty_lane()?;
                lane.sum = sum;
                if let Some((sequence, positions)) = cross {
                    lane.memory = self.memory(&sequence)?;
                    lane.memory_len = positions;
                }
                Ok(lane)
            })
            .collect::<Result<_>>()?;
        Ok(self.state_of(lanes, rule))
    }

    /// An independent copy of a stream.
    pub fn fork(&self, state: &LmState<E>) -> Result<LmState<E>> {
        let mut writer = Writer::default();
        self.write_state(state, &mut writer)?;
        self.read_state(&mut Reader::new(&writer.into_bytes()))
    }

    /// Gives a stream a past as long as the attention window, made of noise and of the token 0:
    /// what a measurement starts from.
    pub fn fill(&self, state: &mut LmState<E>, noise: &mut Noise) -> Result<()> {
        state.delays.fill(self.config.temporal.context.max(self.config.max_delay() + 1) as u64);
        let kept = state.kept();
        let values = (kept.end - kept.start) as usize * state.ring_width;
        for lane in &mut state.lanes {
            for ring in &mut lane.rings {
                self.exec.import_ring(ring, kept.start, &noise.take(values))?;
            }
        }
        Ok(())
    }

    /// Appends a stream to a snapshot.
    pub fn write_state(&self, state: &LmState<E>, writer: &mut Writer) -> Result<()> {
        writer.flag(state.guidance.is_some());
        if let Some(rule) = state.guidance {
            writer.f64(rule.coefficient.into());
            writer.flag(rule.no_text);
            writer.flag(rule.masked_until.is_some());
            writer.u64(rule.masked_until.unwrap_or(0));
        }
        state.delays.write(writer);
        for lane in &state.lanes {
            writer.flag(lane.sum.is_some());
            writer.floats(lane.sum.as_deref().unwrap_or_default());
            writer.u64(lane.memory_len as u64);
            for ring in &lane.memory {
                writer.floats(&self.exec.export_ring(ring, 0..lane.memory_len as u64)?);
            }
            for ring in &lane.rings {
                writer.floats(&self.exec.export_ring(ring, state.kept())?);
            }
        }
        Ok(())
    }

    /// Takes a stream from a snapshot.
    ///
    /// # Errors
    /// [`Error::Snapshot`] for whatever does not fit this model.
    pub fn read_state(&self, reader: &mut Reader<'_>) -> Result<LmState<E>> {
        let mut rule = None;
        if reader.flag()? {
            let coefficient = reader.f64()? as f32;
            if !coefficient.is_finite() {
                return Err(Error::snapshot("holds a guidance coefficient out of range"));
            }
            let no_text = reader.flag()?;
            let masked = reader.flag()?;
            let until = reader.u64()?;
            rule =
                Some(GuidanceRule { coefficient, no_text, masked_until: masked.then_some(until) });
        }
        let branches = if rule.is_some() { 2 } else { 1 };
        let lanes = (0..branches).map(|_| self.empty_lane()).collect::<Result<_>>()?;
        let mut state = self.state_of(lanes, rule);
        state.delays.read(reader, &self.token_limits())?;
        let kept = state.kept();
        let dim = self.config.temporal.shape.dim;
        let values = (kept.end - kept.start) as usize * state.ring_width;
        for lane in &mut state.lanes {
            lane.sum = if reader.flag()? { Some(reader.floats(dim)?) } else { None };
            lane.memory_len = reader.bounded(MAX_POSITIONS as u64)? as usize;
            if lane.memory_len > 0 {
                if !self.config.temporal.cross_attention {
                    return Err(Error::snapshot(
                        "holds a sequence that the model cannot attend to",
                    ));
                }
                for _ in 0..self.temporal.layers.len() {
                    let values = reader.floats(lane.memory_len * 2 * dim)?;
                    let heads = self.temporal.cross_heads();
                    let mut ring = self.exec.ring(heads, lane.memory_len, self.kv_dtype())?;
                    self.exec.import_ring(&mut ring, 0, &values)?;
                    lane.memory.push(ring);
                }
            }
            for ring in &mut lane.rings {
                self.exec.import_ring(ring, kept.start, &reader.floats(values)?)?;
            }
        }
        Ok(state)
    }

    fn state_of(&self, lanes: Vec<Lane<E>>, guidance: Option<GuidanceRule>) -> LmState<E> {
        let mut initial = vec![self.config.card as i64; self.config.num_streams()];
        initial[0] = self.config.text_card as i64;
        LmState {
            delays: DelayCache::new(self.config.delays.clone(), initial),
            lanes,
            guidance,
            context: self.config.temporal.context,
            ring_width: 2 * self.config.temporal.shape.heads.key_width(),
        }
    }

    fn empty_lane(&self) -> Result<Lane<E>> {
        let temporal = &self.config.temporal;
        let keys = self.kv_dtype();
        let ring = |_| self.exec.ring(temporal.shape.heads, temporal.context, keys);
        let rings = (0..temporal.shape.num_layers).map(ring).collect::<Result<_>>()?;
        let depth_rings = match &self.config.depth {
            None => Vec::new(),
            Some(depth) => (0..depth.shape.num_layers)
                .map(|_| {
                    self.exec.ring(depth.shape.heads, self.config.num_generated, KeyStorage::F32)
                })
                .collect::<Result<_>>()?,
        };
        Ok(Lane { rings, depth_rings, memory: Vec::new(), memory_len: 0, sum: None })
    }

    /// Keys and values of a conditioning sequence for every layer.
    fn memory(&self, sequence: &E::Buffer) -> Result<Vec<E::Ring>> {
        let cross = self.temporal.layers.iter().filter_map(|layer| layer.cross.as_ref());
        cross
            .map(|cross| {
                let kv = self.exec.linear(sequence, &cross.kv_proj, Activation::Identity)?;
                self.exec.memory(&kv, self.temporal.cross_heads(), self.kv_dtype())
            })
            .collect()
    }
}
