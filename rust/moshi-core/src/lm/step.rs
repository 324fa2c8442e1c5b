//! One step of any number of streams, as one batch.

use moshi_kernels::scalar::softmax;

use super::embedding::{Embedding, as_id, check_token};
use super::model::LanguageModel;
use super::sampling::{CounterRng, Sampling, sample};
use super::state::{Lane, LmState};
use super::{UNGENERATED_TOKEN, ZERO_TOKEN};
use crate::error::{Error, Result};
use crate::exec::{Activation, AttentionPlan, Executor};
use crate::scratch::{FirstError, GroupScratch, Scratch, lengths};
use crate::stages::{Stage, StageListener};

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
    pub hooks: &'a mut (dyn StepHooks + Send),
    /// Keep intermediate values.
    pub trace: bool,
}

/// What a step gives for one stream.
#[derive(Clone, Debug, Default)]
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

/// What a step needs beside the streams.
pub(super) struct StepMemory<E: Executor> {
    scratch: GroupScratch,
    /// Normalised temporal output of every group, between the halves of a step.
    hidden: Vec<Option<E::Buffer>>,
}

impl<E: Executor> Default for StepMemory<E> {
    fn default() -> Self {
        Self { scratch: GroupScratch::default(), hidden: Vec::new() }
    }
}

/// Streams that are stepped together.
struct Group<'a, 's, E: Executor> {
    scratch: &'a mut Scratch,
    slots: &'a mut [LmSlot<'s, E>],
    outputs: &'a mut [LmOutput],
    hidden: &'a mut Option<E::Buffer>,
}

impl<E: Executor> LanguageModel<E> {
    /// Runs one step of every slot as one batch. Streams that are not passed stay as they are.
    ///
    /// # Errors
    /// [`Error::Input`] for tokens that are missing or out of range. Tokens from the caller are
    /// checked before anything changes; after bad tokens from a hook the streams of this call
    /// must be reset.
    pub fn step(&self, slots: &mut [LmSlot<'_, E>]) -> Result<Vec<LmOutput>> {
        let mut outputs = Vec::new();
        self.step_into(slots, &mut outputs, &mut ())?;
        Ok(outputs)
    }

    /// As [`LanguageModel::step`], replacing what `outputs` holds, whose memory is used again, and
    /// telling `listener` when a stage ends. Once delays are filled, a step like the one before
    /// allocates nothing on executors of the CPU that keep their memory. After an error, `outputs`
    /// means nothing.
    ///
    /// # Errors
    /// As [`LanguageModel::step`].
    pub fn step_into(
        &self,
        slots: &mut [LmSlot<'_, E>],
        outputs: &mut Vec<LmOutput>,
        listener: &mut dyn StageListener,
    ) -> Result<()> {
        outputs.resize_with(slots.len(), LmOutput::default);
        if slots.is_empty() {
            return Ok(());
        }
        for slot in &*slots {
            self.check_user_tokens(slot.user_tokens)?;
        }
        let groups = self.exec.groups(slots.len(), self.weights);
        let mut memory = self.memory.take();
        let StepMemory { scratch, hidden } = &mut *memory;
        // After an error, some are left.
        hidden.clear();
        hidden.resize_with(groups, || None);
        let (list, scratches) = scratch.reset(groups);
        let (mut slots, mut outputs) = (slots, &mut outputs[..]);
        let each = lengths(slots.len(), groups).zip(scratches).zip(hidden);
        let parts = each.map(|((count, scratch), hidden)| Group {
            scratch,
            slots: slots.split_off_mut(..count).expect("as many as there are"),
            outputs: outputs.split_off_mut(..count).expect("as many"),
            hidden,
        });
        let parts = list.list(groups, parts);
        let error = FirstError::default();
        self.exec.each(parts, |exec, group| error.note(self.think(exec, group)));
        error.take()?;
        listener.ended(Stage::Temporal);
        self.exec.each(parts, |exec, group| error.note(self.speak(exec, group)));
        error.take()?;
        listener.ended(Stage::Depth);
        Ok(())
    }

    /// The first half of a step: the temporal transformer and the text token.
    fn think(&self, exec: &E, group: &mut Group<'_, '_, E>) -> Result<()> {
        let Group { scratch, slots, outputs, hidden } = group;
        let scratch = &**scratch;
        let order = scratch.list(self.config.text_card_out, std::iter::repeat(0));
        **hidden = Some(self.temporal_step((exec, scratch), slots, outputs)?);
        for (slot, output) in slots.iter_mut().zip(outputs.iter_mut()) {
            output.text_token = self.draw_text(scratch, slot, &output.text_logits, order)?;
        }
        Ok(())
    }

    /// The second half: the depth transformer, the audio tokens, and the frame that is complete.
    fn speak(&self, exec: &E, group: &mut Group<'_, '_, E>) -> Result<()> {
        let Group { scratch, slots, outputs, hidden } = group;
        let scratch = &**scratch;
        let order = scratch.list(self.config.card, std::iter::repeat(0));
        let hidden = hidden.take().expect("the first half was done");
        self.depth_step((exec, scratch), slots, &hidden, outputs, order)?;
        drop(hidden);
        for (slot, output) in slots.iter_mut().zip(outputs.iter_mut()) {
            slot.hooks.audio_tokens(&mut output.audio_tokens);
            for &token in &output.audio_tokens {
                check_token("forced audio", token, self.config.card as i64)?;
            }
            let LmOutput { text_token, audio_tokens, row, .. } = output;
            let streams = 1 + audio_tokens.len();
            let tokens = (0..streams)
                .map(|stream| stream.checked_sub(1).map_or(*text_token, |k| audio_tokens[k]));
            match slot.state.delays.finish(tokens) {
                None => *row = None,
                Some(tokens) => {
                    let row = row.get_or_insert_default();
                    row.clear();
                    row.extend(tokens);
                }
            }
        }
        Ok(())
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

    /// Stores the users' tokens and collects this step's input, `[lane, stream]`.
    fn inputs<'a>(&self, scratch: &'a Scratch, slots: &mut [LmSlot<'_, E>]) -> Result<&'a [i64]> {
        let (streams, first_user) = (self.config.num_streams(), 1 + self.config.num_generated);
        let rows = scratch.list(lanes_of(slots) * streams, std::iter::repeat(UNGENERATED_TOKEN));
        let mut lanes = rows.chunks_exact_mut(streams);
        for slot in slots {
            for (user, &token) in
                (first_user..).zip(&slot.user_tokens[..self.config.num_user_codebooks()])
            {
                slot.state.delays.provide(user, token);
            }
            for branch in 0..slot.state.lanes.len() {
                let row = lanes.next().expect("one row per lane");
                for (stream, token) in row.iter_mut().enumerate() {
                    *token = slot.state.delays.input(stream)?;
                }
                if branch == 1 {
                    hide(slot.state, row);
                }
            }
        }
        Ok(rows)
    }

    /// Temporal transformer, text head and extra heads.
    fn temporal_step(
        &self,
        (exec, scratch): (&E, &Scratch),
        slots: &mut [LmSlot<'_, E>],
        outputs: &mut [LmOutput],
    ) -> Result<E::Buffer> {
        let rows = self.inputs(scratch, slots)?;
        let count = lanes_of(slots);
        let starts = slots
            .iter()
            .flat_map(|slot| std::iter::repeat_n(slot.state.offset(), slot.state.lanes.len()));
        let starts = scratch.list(count, starts);
        let mut x = self.embed((exec, scratch), rows)?;
        let context = self.config.temporal.context as u64;
        let lowest = |p: u64| (p + 1).saturating_sub(context);
        let plan = AttentionPlan::new(scratch, starts, 1, Some(&self.rotary), lowest);
        let plan = exec.plan(plan)?;
        let lanes = slots.iter_mut().flat_map(|slot| slot.state.lanes.iter_mut());
        let lanes: &mut [&mut Lane<E>] = scratch.list(count, lanes);
        self.add_sums((exec, scratch), &mut x, lanes)?;
        self.temporal.forward(
            exec,
            &mut x,
            (0, &plan),
            lanes,
            |lane, layer| &mut lane.rings[layer],
            |lane, layer| lane.memory.get(layer),
        )?;
        let hidden = exec.norm(&x, &self.out_norm)?;
        let logits = exec.linear(&hidden, &self.text_head, Activation::Identity)?;
        let logits = exec.values(&logits)?;
        let mut row = 0;
        for (slot, output) in slots.iter().zip(&mut *outputs) {
            let text_only = slot.state.guidance.is_some_and(|rule| rule.no_text);
            let text_logits = if text_only {
                row_of(&logits, row, self.config.text_card_out)
            } else {
                mix(scratch, slot.state, &logits, row, self.config.text_card_out)
            };
            replace(&mut output.text_logits, text_logits);
            row += slot.state.lanes.len();
        }
        for output in &mut *outputs {
            output.extra_heads.resize_with(self.extra_heads.len(), Vec::new);
        }
        for (head, weight) in self.extra_heads.iter().enumerate() {
            let logits = exec.linear(&hidden, weight, Activation::Identity)?;
            let logits = exec.values(&logits)?;
            let mut row = 0;
            for (slot, output) in slots.iter().zip(&mut *outputs) {
                let logits = row_of(&logits, row, self.config.extra_head_dim);
                replace(&mut output.extra_heads[head], logits);
                softmax(&mut output.extra_heads[head]);
                row += slot.state.lanes.len();
            }
        }
        self.trace(exec, slots, rows, &hidden, outputs)?;
        Ok(hidden)
    }

    /// Begins the traces of the slots that want one.
    fn trace(
        &self,
        exec: &E,
        slots: &[LmSlot<'_, E>],
        rows: &[i64],
        hidden: &E::Buffer,
        outputs: &mut [LmOutput],
    ) -> Result<()> {
        for output in &mut *outputs {
            output.trace = None;
        }
        if !slots.iter().any(|slot| slot.trace) {
            return Ok(());
        }
        let hidden = exec.values(hidden)?;
        let mut row = 0;
        for (slot, output) in slots.iter().zip(outputs) {
            output.trace = slot.trace.then(|| LmTrace {
                input: rows[row * self.config.num_streams()..][..self.config.num_streams()].into(),
                hidden: row_of(&hidden, row, self.config.temporal.shape.dim).to_vec(),
                depth_logits: Vec::new(),
            });
            row += slot.state.lanes.len();
        }
        Ok(())
    }

    /// Sum of the embeddings of all streams, audio first; `rows` is `[lane, stream]`.
    fn embed(&self, (exec, scratch): (&E, &Scratch), rows: &[i64]) -> Result<E::Buffer> {
        let text = self.text_embedding.plain();
        let audio = self.audio_embeddings.iter().filter_map(Embedding::plain);
        let count = self.config.num_codebooks + usize::from(text.is_some());
        let tables: &[&E::Table] = scratch.list(count, audio.chain(text));
        let rows = || rows.chunks_exact(self.config.num_streams());
        let ids = rows().flat_map(|row| {
            let audio = row[1..].iter().copied();
            audio.chain(text.map(|_| row[0])).map(as_id)
        });
        let mut x = exec.embed(tables, scratch.list(rows().len() * count, ids))?;
        if text.is_none() {
            let tokens = scratch.list(rows().len(), rows().map(|row| row[0]));
            exec.add(&mut x, &self.text_embedding.embed((exec, scratch), tokens)?)?;
        }
        Ok(x)
    }

    fn add_sums(
        &self,
        (exec, scratch): (&E, &Scratch),
        x: &mut E::Buffer,
        lanes: &[&mut Lane<E>],
    ) -> Result<()> {
        if lanes.iter().all(|lane| lane.sum.is_none()) {
            return Ok(());
        }
        let dim = self.config.temporal.shape.dim;
        let sums = scratch.list(lanes.len() * dim, std::iter::repeat(0.0));
        for (row, lane) in sums.chunks_exact_mut(dim).zip(lanes) {
            if let Some(sum) = &lane.sum {
                row.copy_from_slice(sum);
            }
        }
        exec.add(x, &exec.upload(sums, dim)?)
    }

    fn draw_text(
        &self,
        scratch: &Scratch,
        slot: &mut LmSlot<'_, E>,
        logits: &[f32],
        order: &mut [u32],
    ) -> Result<i64> {
        let logits = scratch.list(logits.len(), logits.iter().copied());
        slot.hooks.text_logits(logits);
        let Sampling { text_temperature, top_k_text, .. } = *slot.sampling;
        let uniform = CounterRng::new(slot.seed).uniform(slot.state.offset(), 0);
        let sampled = sample(logits, text_temperature, top_k_text, uniform, order) as i64;
        let token = slot.hooks.text_token(sampled);
        check_token("forced text", token, self.text_embedding.max_token())?;
        Ok(token)
    }

    /// Audio tokens of every slot.
    fn depth_step(
        &self,
        (exec, scratch): (&E, &Scratch),
        slots: &mut [LmSlot<'_, E>],
        hidden: &E::Buffer,
        outputs: &mut [LmOutput],
        order: &mut [u32],
    ) -> Result<()> {
        for output in &mut *outputs {
            output.audio_tokens.clear();
        }
        let Some(depth) = &self.depth else {
            for slot in slots.iter_mut() {
                if slot.hooks.replace_audio().is_some_and(|tokens| !tokens.is_empty()) {
                    return Err(Error::input("forced audio", "the model generates no audio"));
                }
            }
            return Ok(());
        };
        let replaced = scratch.list(slots.len(), std::iter::repeat(false));
        for ((slot, output), replaced) in slots.iter_mut().zip(&mut *outputs).zip(&mut *replaced) {
            let Some(tokens) = slot.hooks.replace_audio() else { continue };
            if tokens.len() != depth.num_codebooks() {
                let reason = format!("needs {} tokens", depth.num_codebooks());
                return Err(Error::input("forced audio", reason));
            }
            output.audio_tokens = tokens;
            *replaced = true;
        }
        if replaced.iter().all(|replaced| *replaced) {
            return Ok(());
        }
        let previous = scratch.list(slots.len(), outputs.iter().map(|o| o.text_token));
        let count = lanes_of(slots);
        for k in 0..depth.num_codebooks() {
            let by_lane = slots
                .iter()
                .zip(&*previous)
                .flat_map(|(slot, &token)| std::iter::repeat_n(token, slot.state.lanes.len()));
            let by_lane = scratch.list(count, by_lane);
            let lanes = slots.iter_mut().flat_map(|slot| slot.state.lanes.iter_mut());
            let lanes = scratch.list(count, lanes);
            let logits = depth.step((exec, scratch), k, hidden, by_lane, lanes)?;
            let logits = exec.values(&logits)?;
            let mut row = 0;
            for (((slot, output), previous), &replaced) in
                slots.iter_mut().zip(&mut *outputs).zip(&mut *previous).zip(&*replaced)
            {
                let branches = row..row + slot.state.lanes.len();
                let mixed = mix(scratch, slot.state, &logits, row, self.config.card);
                row = branches.end;
                if replaced {
                    continue;
                }
                let rng = CounterRng::new(slot.seed);
                let uniform = rng.uniform(slot.state.offset(), 1 + k as u32);
                let Sampling { temperature, top_k, .. } = *slot.sampling;
                let sampled = sample(mixed, temperature, top_k, uniform, order) as i64;
                *previous = slot.hooks.audio_token(k, sampled);
                check_token("forced audio", *previous, self.config.card as i64)?;
                output.audio_tokens.push(*previous);
                if let Some(trace) = &mut output.trace {
                    let of = |row| row_of(&logits, row, self.config.card).to_vec();
                    trace.depth_logits.push(branches.map(of).collect());
                }
            }
        }
        Ok(())
    }
}

/// Rows of a batch.
fn lanes_of<E: Executor>(slots: &[LmSlot<'_, E>]) -> usize {
    slots.iter().map(|slot| slot.state.lanes.len()).sum()
}

/// Takes from the input of guidance's null branch what it must not see.
fn hide<E: Executor>(state: &LmState<E>, input: &mut [i64]) {
    let Some(rule) = state.guidance else { return };
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
}

fn replace(values: &mut Vec<f32>, by: &[f32]) {
    values.clear();
    values.extend_from_slice(by);
}

fn row_of(values: &[f32], row: usize, width: usize) -> &[f32] {
    &values[row * width..(row + 1) * width]
}

/// Logits of a stream whose branches start at `row`, guided if it has two.
fn mix<'a, E: Executor>(
    scratch: &'a Scratch,
    state: &LmState<E>,
    logits: &'a [f32],
    row: usize,
    width: usize,
) -> &'a [f32] {
    let conditioned = row_of(logits, row, width);
    let Some(rule) = state.guidance else { return conditioned };
    let null = row_of(logits, row + 1, width);
    let mixed = conditioned.iter().zip(null).map(|(c, n)| n + (c - n) * rule.coefficient);
    scratch.list(width, mixed)
}
