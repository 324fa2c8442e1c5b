//! The language model as a whole: one step of any number of streams.

use moshi_kernels::scalar::softmax;

use super::conditioning::ConditionProvider;
use super::depth::Depth;
use super::embedding::{Embedding, as_id, check_token};
use super::files::LmFiles;
use super::load::Loader;
use super::precision::{Footprint, WeightType};
use super::sampling::{CounterRng, Sampling, sample};
use super::state::{Lane, LmState};
use super::{UNGENERATED_TOKEN, ZERO_TOKEN};
use crate::checkpoint::{Catalog, Fingerprint, SourceFile, layout};
use crate::config::{GenerationConfig, LmConfig, ModelFiles, TEXT_END_TOKEN};
use crate::error::{Error, Result};
use crate::exec::{Activation, AttentionPlan, Executor, Norm, Rotary};
use crate::nn::{Transformer, rms_norm_f32};
use crate::stages::{Stage, StageListener};

/// How to load a language model.
#[derive(Clone, Debug, Default)]
pub struct LmOptions {
    /// Storage of weights; `None` keeps bf16 and blocks of few bits as the checkpoint has them and
    /// widens others to f32.
    pub dtype: Option<WeightType>,
    /// Copies the text embedding of padding over that of token 2 (end of sentence), so that an
    /// early end acts as padding: what the original does for Hibiki.
    pub end_acts_as_padding: bool,
    /// Adapter to fuse.
    pub lora: Option<SourceFile>,
}

/// Interventions of a caller in a step, in the order in which they happen.
pub trait StepHooks {
    /// May change the text logits before sampling.
    fn text_logits(&mut self, _logits: &mut [f32]) {}
    /// May replace the sampled text token.
    fn text_token(&mut self, sampled: i64) -> i64 {
        sampled
    }
    /// Tokens to use instead of running the depth transformer, one per generated codebook.
    fn replace_audio(&mut self) -> Option<Vec<i64>> {
        None
    }
    /// May replace the token of a codebook as it is sampled; the next codebooks depend on it.
    fn audio_token(&mut self, _codebook: usize, sampled: i64) -> i64 {
        sampled
    }
    /// May replace sampled audio tokens after all of them are drawn.
    fn audio_tokens(&mut self, _tokens: &mut [i64]) {}
}

/// No intervention.
pub struct NoHooks;

impl StepHooks for NoHooks {}

/// One stream's part of a step.
pub struct LmSlot<'a, E: Executor> {
    /// The stream.
    pub state: &'a mut LmState<E>,
    /// Tokens of the user's codebooks of this frame; more than the model takes are ignored.
    pub user_tokens: &'a [i64],
    /// Sampling settings.
    pub sampling: &'a Sampling,
    /// Seed of the session.
    pub seed: u64,
    /// Interventions.
    pub hooks: &'a mut dyn StepHooks,
    /// Keep intermediate values.
    pub trace: bool,
}

/// What a step gives for one stream.
#[derive(Clone, Debug)]
pub struct LmOutput {
    /// Text token drawn in this step.
    pub text_token: i64,
    /// Audio tokens drawn in this step, one per generated codebook.
    pub audio_tokens: Vec<i64>,
    /// The newest complete frame: text, then own codebooks. `None` while delays fill.
    pub row: Option<Vec<i64>>,
    /// Text logits after guidance, before hooks.
    pub text_logits: Vec<f32>,
    /// Probabilities of every extra head.
    pub extra_heads: Vec<Vec<f32>>,
    /// Intermediate values, when asked for.
    pub trace: Option<LmTrace>,
}

/// Intermediate values of a step.
#[derive(Clone, Debug, Default)]
pub struct LmTrace {
    /// Model input, one token per stream.
    pub input: Vec<i64>,
    /// Normalised temporal output.
    pub hidden: Vec<f32>,
    /// Logits `[codebook][branch][card]` of the depth transformer before guidance.
    pub depth_logits: Vec<Vec<Vec<f32>>>,
}

/// The language model: immutable weights, shared by all streams.
pub struct LanguageModel<E: Executor> {
    pub(super) exec: E,
    pub(super) config: LmConfig,
    pub(super) temporal: Transformer<E>,
    pub(super) provider: ConditionProvider<E>,
    rotary: Rotary,
    audio_embeddings: Vec<Embedding<E>>,
    text_embedding: Embedding<E>,
    out_norm: Norm<E>,
    text_head: E::Weight,
    extra_heads: Vec<E::Weight>,
    depth: Option<Depth<E>>,
    dtype: WeightType,
    fingerprint: Fingerprint,
}

impl<E: Executor> LanguageModel<E> {
    /// Loads the weights of a file, whose tensors must be exactly those of the config.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Checkpoint`] or [`Error::Tensors`] for the file.
    pub fn load(
        exec: &E,
        file: impl Into<SourceFile>,
        config: &LmConfig,
        options: &LmOptions,
    ) -> Result<Self> {
        let files = LmFiles::open(file, config, options.lora.as_ref())?;
        Self::from_catalog(exec, &files.catalog(config)?, config, options)
    }

    /// Loads the weights of a catalogue, whose tensors must be exactly those of the config.
    ///
    /// # Errors
    /// As [`LanguageModel::load`].
    pub fn from_catalog(
        exec: &E,
        catalog: &Catalog<'_>,
        config: &LmConfig,
        options: &LmOptions,
    ) -> Result<Self> {
        let expected = layout::language_model(config, layout::gated_widths_of(catalog, config));
        catalog.check(&expected)?;
        let Footprint { dtype, storages, .. } =
            Footprint::new(exec, catalog, &expected, options.dtype);
        let loader = Loader { exec, catalog, dtype: options.dtype };
        let shape = &config.temporal.shape;
        let replaced =
            options.end_acts_as_padding.then_some((config.text_padding_id, TEXT_END_TOKEN));
        let embedding = |name: &str, replaced| Embedding::load(&loader, name, replaced);
        // File names and sampling defaults change no result of a given session.
        let identity = LmConfig {
            files: ModelFiles::default(),
            generation: GenerationConfig::default(),
            ..config.clone()
        };
        let settings = format!("{identity:?} {storages:?} {replaced:?}");
        log::info!(
            "language model {}: weights {} on {}",
            catalog.path().display(),
            dtype.name(),
            exec.name()
        );
        Ok(Self {
            exec: exec.clone(),
            temporal: loader.transformer(
                "transformer",
                shape,
                None,
                config.temporal.cross_attention,
            )?,
            provider: ConditionProvider::load(exec, catalog, config)?,
            rotary: Rotary::new(
                config.temporal.rotary,
                shape.heads.width,
                config.temporal.max_period,
            ),
            audio_embeddings: (0..config.num_codebooks)
                .map(|k| embedding(&format!("emb.{k}"), None))
                .collect::<Result<_>>()?,
            text_embedding: embedding("text_emb", replaced)?,
            out_norm: rms_norm_f32(exec, catalog, "out_norm.alpha")?,
            text_head: loader.weight("text_linear.weight")?,
            extra_heads: (0..config.num_extra_heads)
                .map(|head| loader.weight(&format!("extra_heads.{head}.weight")))
                .collect::<Result<_>>()?,
            depth: Depth::load(&loader, config)?,
            dtype,
            fingerprint: Fingerprint::of(&catalog.files(), &[&settings]),
            config: config.clone(),
        })
    }

    /// The config.
    pub fn config(&self) -> &LmConfig {
        &self.config
    }

    /// Storage of most weights.
    pub fn dtype(&self) -> WeightType {
        self.dtype
    }

    /// Identity of weights and settings.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Runs one step of every slot as one batch. Streams that are not passed stay as they are.
    ///
    /// # Errors
    /// [`Error::Input`] for tokens that are missing or out of range. Tokens from the caller are
    /// checked before anything changes; after bad tokens from a hook the streams of this call
    /// must be reset.
    pub fn step(&self, slots: &mut [LmSlot<'_, E>]) -> Result<Vec<LmOutput>> {
        self.step_observed(slots, &mut ())
    }

    /// As [`LanguageModel::step`], telling `listener` when a stage ends.
    ///
    /// # Errors
    /// As [`LanguageModel::step`].
    pub fn step_observed(
        &self,
        slots: &mut [LmSlot<'_, E>],
        listener: &mut dyn StageListener,
    ) -> Result<Vec<LmOutput>> {
        if slots.is_empty() {
            return Ok(Vec::new());
        }
        for slot in &*slots {
            self.check_user_tokens(slot.user_tokens)?;
        }
        let inputs = slots.iter_mut().map(|slot| self.inputs(slot)).collect::<Result<Vec<_>>>()?;
        let (hidden, mut outputs) = self.temporal_step(slots, inputs)?;
        for (slot, output) in slots.iter_mut().zip(&mut outputs) {
            output.text_token = self.draw_text(slot, &output.text_logits)?;
        }
        listener.ended(Stage::Temporal);
        self.depth_step(slots, &hidden, &mut outputs)?;
        for (slot, output) in slots.iter_mut().zip(&mut outputs) {
            slot.hooks.audio_tokens(&mut output.audio_tokens);
            for &token in &output.audio_tokens {
                check_token("forced audio", token, self.config.card as i64)?;
            }
            let mut tokens = vec![output.text_token];
            tokens.extend(&output.audio_tokens);
            output.row = slot.state.delays.finish(&tokens);
        }
        listener.ended(Stage::Depth);
        Ok(outputs)
    }

    /// Largest token of every stream.
    pub(super) fn token_limits(&self) -> Vec<i64> {
        let mut limits = vec![self.config.card as i64; self.config.num_streams()];
        limits[0] = self.text_embedding.max_token();
        limits
    }

    fn check_user_tokens(&self, tokens: &[i64]) -> Result<()> {
        let expected = self.config.num_user_codebooks();
        if tokens.len() < expected {
            let reason = format!("{} tokens; the model takes {expected}", tokens.len());
            return Err(Error::input("tokens", reason));
        }
        tokens[..expected]
            .iter()
            .try_for_each(|&token| check_token("tokens", token, self.config.card as i64))
    }

    /// Stores the user's tokens and collects this step's input, one token per stream.
    fn inputs(&self, slot: &mut LmSlot<'_, E>) -> Result<Vec<i64>> {
        let first_user = 1 + self.config.num_generated;
        for j in 0..self.config.num_user_codebooks() {
            slot.state.delays.provide(first_user + j, slot.user_tokens[j]);
        }
        (0..self.config.num_streams()).map(|stream| slot.state.delays.input(stream)).collect()
    }

    /// Temporal transformer, text head and extra heads.
    fn temporal_step(
        &self,
        slots: &mut [LmSlot<'_, E>],
        inputs: Vec<Vec<i64>>,
    ) -> Result<(E::Buffer, Vec<LmOutput>)> {
        let exec = &self.exec;
        let mut rows = Vec::new();
        let mut starts = Vec::new();
        for (slot, input) in slots.iter().zip(&inputs) {
            for branch in 0..slot.state.lanes.len() {
                rows.push(branch_input(slot.state, input, branch));
                starts.push(slot.state.offset());
            }
        }
        let mut x = self.embed(&rows)?;
        let context = self.config.temporal.context as u64;
        let plan =
            AttentionPlan::new(starts, 1, Some(&self.rotary), |p| (p + 1).saturating_sub(context));
        let plan = exec.plan(plan)?;
        let mut lanes: Vec<&mut Lane<E>> =
            slots.iter_mut().flat_map(|slot| slot.state.lanes.iter_mut()).collect();
        self.add_sums(&mut x, &lanes)?;
        self.temporal.forward(
            exec,
            &mut x,
            (0, &plan),
            &mut lanes,
            |lane, layer| &mut lane.rings[layer],
            |lane, layer| lane.memory.get(layer),
        )?;
        let hidden = exec.norm(&x, &self.out_norm)?;
        let logits =
            exec.download(&exec.linear(&hidden, &self.text_head, Activation::Identity)?)?;
        let heads = self
            .extra_heads
            .iter()
            .map(|head| exec.download(&exec.linear(&hidden, head, Activation::Identity)?))
            .collect::<Result<Vec<_>>>()?;
        let host_hidden =
            if slots.iter().any(|s| s.trace) { exec.download(&hidden)? } else { Vec::new() };

        let mut outputs = Vec::with_capacity(slots.len());
        let mut row = 0;
        for (slot, input) in slots.iter().zip(inputs) {
            let branches = slot.state.lanes.len();
            let text_only = slot.state.guidance.is_some_and(|rule| rule.no_text);
            let text_logits = if text_only {
                row_of(&logits, row, self.config.text_card_out).to_vec()
            } else {
                mix(slot.state, &logits, row, self.config.text_card_out)
            };
            let extra_heads = heads
                .iter()
                .map(|head| {
                    let mut p = row_of(head, row, self.config.extra_head_dim).to_vec();
                    softmax(&mut p);
                    p
                })
                .collect();
            let dim = self.config.temporal.shape.dim;
            let trace = slot.trace.then(|| LmTrace {
                input,
                hidden: row_of(&host_hidden, row, dim).to_vec(),
                depth_logits: Vec::new(),
            });
            outputs.push(LmOutput {
                text_token: UNGENERATED_TOKEN,
                audio_tokens: Vec::new(),
                row: None,
                text_logits,
                extra_heads,
                trace,
            });
            row += branches;
        }
        Ok((hidden, outputs))
    }

    /// Sum of the embeddings of all streams, audio first.
    fn embed(&self, rows: &[Vec<i64>]) -> Result<E::Buffer> {
        let exec = &self.exec;
        let audio = self.audio_embeddings.iter().filter_map(Embedding::plain);
        let mut tables: Vec<&E::Table> = audio.collect();
        debug_assert_eq!(tables.len(), self.config.num_codebooks);
        let text = self.text_embedding.plain();
        tables.extend(text);
        let ids: Vec<Option<u32>> = rows
            .iter()
            .flat_map(|row| {
                let audio = row[1..].iter().copied();
                audio.chain(text.map(|_| row[0])).map(as_id)
            })
            .collect();
        let mut x = exec.embed(&tables, &ids)?;
        if text.is_none() {
            let tokens: Vec<i64> = rows.iter().map(|row| row[0]).collect();
            exec.add(&mut x, &self.text_embedding.embed(exec, &tokens)?)?;
        }
        Ok(x)
    }

    fn add_sums(&self, x: &mut E::Buffer, lanes: &[&mut Lane<E>]) -> Result<()> {
        if lanes.iter().all(|lane| lane.sum.is_none()) {
            return Ok(());
        }
        let dim = self.config.temporal.shape.dim;
        let mut sums = vec![0.0; lanes.len() * dim];
        for (row, lane) in sums.chunks_exact_mut(dim).zip(lanes) {
            if let Some(sum) = &lane.sum {
                row.copy_from_slice(sum);
            }
        }
        self.exec.add(x, &self.exec.upload(sums, dim)?)
    }

    fn draw_text(&self, slot: &mut LmSlot<'_, E>, logits: &[f32]) -> Result<i64> {
        let mut logits = logits.to_vec();
        slot.hooks.text_logits(&mut logits);
        let sampling = slot.sampling;
        let uniform = CounterRng::new(slot.seed).uniform(slot.state.offset(), 0);
        let sampled =
            sample(&logits, sampling.text_temperature, sampling.top_k_text, uniform) as i64;
        let token = slot.hooks.text_token(sampled);
        check_token("forced text", token, self.text_embedding.max_token())?;
        Ok(token)
    }

    /// Audio tokens of every slot.
    fn depth_step(
        &self,
        slots: &mut [LmSlot<'_, E>],
        hidden: &E::Buffer,
        outputs: &mut [LmOutput],
    ) -> Result<()> {
        let Some(depth) = &self.depth else {
            for slot in slots.iter_mut() {
                if slot.hooks.replace_audio().is_some_and(|tokens| !tokens.is_empty()) {
                    return Err(Error::input("forced audio", "the model generates no audio"));
                }
            }
            return Ok(());
        };
        let mut replaced = Vec::with_capacity(slots.len());
        for slot in slots.iter_mut() {
            let tokens = slot.hooks.replace_audio();
            if tokens.as_ref().is_some_and(|tokens| tokens.len() != depth.num_codebooks()) {
                let reason = format!("needs {} tokens", depth.num_codebooks());
                return Err(Error::input("forced audio", reason));
            }
            replaced.push(tokens);
        }
        if replaced.iter().any(Option::is_none) {
            let mut previous: Vec<i64> = outputs.iter().map(|o| o.text_token).collect();
            for k in 0..depth.num_codebooks() {
                let by_lane: Vec<i64> = slots
                    .iter()
                    .zip(&previous)
                    .flat_map(|(slot, &token)| std::iter::repeat_n(token, slot.state.lanes.len()))
                    .collect();
                let mut lanes: Vec<&mut Lane<E>> =
                    slots.iter_mut().flat_map(|slot| slot.state.lanes.iter_mut()).collect();
                let logits = depth.step(&self.exec, k, hidden, &by_lane, &mut lanes)?;
                let mut row = 0;
                for ((slot, output), previous) in
                    slots.iter_mut().zip(&mut *outputs).zip(&mut previous)
                {
                    let mixed = mix(slot.state, &logits, row, self.config.card);
                    let rng = CounterRng::new(slot.seed);
                    let uniform = rng.uniform(slot.state.offset(), 1 + k as u32);
                    let Sampling { temperature, top_k, .. } = *slot.sampling;
                    let sampled = sample(&mixed, temperature, top_k, uniform) as i64;
                    *previous = slot.hooks.audio_token(k, sampled);
                    check_token("forced audio", *previous, self.config.card as i64)?;
                    output.audio_tokens.push(*previous);
                    let branches = slot.state.lanes.len();
                    if let Some(trace) = &mut output.trace {
                        let of = |row| row_of(&logits, row, self.config.card).to_vec();
                        trace.depth_logits.push((row..row + branches).map(of).collect());
                    }
                    row += branches;
                }
            }
        }
        for (output, tokens) in outputs.iter_mut().zip(replaced) {
            if let Some(tokens) = tokens {
                output.audio_tokens = tokens;
                if let Some(trace) = &mut output.trace {
                    trace.depth_logits.clear();
                }
            }
        }
        Ok(())
    }
}

/// Input of a branch: the null branch of guidance may see less.
fn branch_input<E: Executor>(state: &LmState<E>, input: &[i64], branch: usize) -> Vec<i64> {
    let mut input = input.to_vec();
    let Some(rule) = state.guidance.filter(|_| branch == 1) else { return input };
    if rule.no_text && !state.delays.before_start(0, 0) {
        input[0] = ZERO_TOKEN;
    }
    if let Some(until) = rule.masked_until {
        for (stream, token) in input.iter_mut().enumerate() {
            let masked = state.delays.before_start(stream, until);
            if masked && !state.delays.before_start(stream, 0) {
                *token = ZERO_TOKEN;
            }
        }
    }
    input
}

fn row_of(values: &[f32], row: usize, width: usize) -> &[f32] {
    &values[row * width..(row + 1) * width]
}

/// Logits of a stream whose branches start at `row`, guided if it has two.
fn mix<E: Executor>(state: &LmState<E>, logits: &[f32], row: usize, width: usize) -> Vec<f32> {
    let conditioned = row_of(logits, row, width);
    let Some(rule) = state.guidance else { return conditioned.to_vec() };
    let null = row_of(logits, row + 1, width);
    let mixed = conditioned.iter().zip(null).map(|(c, n)| n + (c - n) * rule.coefficient);
    mixed.collect()
}
