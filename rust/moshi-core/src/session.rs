//! One conversation: a stream of an engine with its settings, its framing and its text.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::config::GenerationConfig;
use crate::engine::{Frame, Slot, StreamState};
use crate::error::{Error, Result, check_finite};
use crate::lm::{Conditions, Guidance, LmStreamOptions, Sampling};
use crate::model::{Model, StepMemory};
use crate::snapshot::{Reader, Writer};
use crate::stages::Noise;
use crate::text::Detokenizer;

/// Frames that [`Session::push`] may leave waiting for [`Session::pull`]: about a minute.
pub const MAX_WAITING_FRAMES: usize = 750;

/// Settings of a session.
#[derive(Clone, Debug, Default)]
pub struct SessionOptions {
    /// Seed of the draws; `None` draws one, which [`Session::seed`] shows.
    pub seed: Option<u64>,
    /// Sampling; `None` takes what the checkpoint recommends.
    pub sampling: Option<Sampling>,
    /// Values of conditions; `None` takes the model's defaults.
    pub conditions: Option<Conditions>,
    /// Guidance; `None` takes what the checkpoint recommends.
    pub guidance: Option<Guidance>,
    /// Starts without the step that makes the first frame count. The first step then returns
    /// nothing, as the original's does.
    pub unprimed: bool,
}

/// What one step gives.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepOutput {
    /// Own audio, one frame; silence while delays fill.
    pub pcm: Vec<f32>,
    /// New text, often empty.
    pub text: String,
    /// Tokens of the frame: text, then own codebooks. `None` while delays fill.
    pub tokens: Option<Vec<i64>>,
    /// Codes of the user's frame.
    pub user_codes: Vec<u32>,
}

/// One conversation.
pub struct Session {
    model: Arc<Model>,
    state: StreamState,
    sampling: Sampling,
    seed: u64,
    unprimed: bool,
    detokenizer: Detokenizer,
    /// Samples of an incomplete frame.
    partial: Vec<f32>,
    waiting: VecDeque<(Vec<f32>, String)>,
    steps: u64,
    /// Set while a step runs: a failed one leaves parts of the state ahead of others.
    broken: bool,
}

impl Session {
    /// Starts a conversation.
    ///
    /// # Errors
    /// [`Error::Input`] for settings or conditions out of range.
    pub fn new(model: &Arc<Model>, options: &SessionOptions) -> Result<Self> {
        let sampling = options.sampling.unwrap_or_else(|| model.default_sampling());
        sampling.check()?;
        let GenerationConfig { guidance, .. } = model.config().generation;
        let recommended = (guidance - 1.0).abs() > f64::EPSILON;
        let stream = LmStreamOptions {
            conditions: options
                .conditions
                .clone()
                .unwrap_or_else(|| model.default_conditions().clone()),
            guidance: options
                .guidance
                .clone()
                .or_else(|| recommended.then(|| Guidance::new(guidance))),
        };
        let mut session = Self {
            state: model.engine().new_state(&stream)?,
            model: Arc::clone(model),
            sampling,
            seed: options.seed.unwrap_or_else(random_seed),
            unprimed: options.unprimed,
            detokenizer: Detokenizer::default(),
            partial: Vec::new(),
            waiting: VecDeque::new(),
            steps: 0,
            broken: false,
        };
        session.prime()?;
        Ok(session)
    }

    /// Continues a conversation from a snapshot of the same model.
    ///
    /// # Errors
    /// [`Error::Snapshot`] for anything but an intact snapshot of this model.
    pub fn restore(model: &Arc<Model>, blob: &[u8]) -> Result<Self> {
        let mut reader = Reader::open(blob, &model.fingerprint())?;
        let frame = model.info().frame_samples;
        let seed = reader.u64()?;
        let sampling = Sampling::read(&mut reader)?;
        let unprimed = reader.flag()?;
        let steps = reader.position()?;
        let detokenizer = Detokenizer::from_pending(reader.bytes(3)?);
        let partial_len = reader.bounded(frame as u64 - 1)? as usize;
        let partial = reader.floats(partial_len)?;
        let count = reader.bounded(MAX_WAITING_FRAMES as u64)?;
        let waiting = (0..count)
            .map(|_| {
                let pcm = reader.floats(frame)?;
                let text = std::str::from_utf8(reader.bytes(1 << 20)?);
                let text = text.map_err(|_| Error::snapshot("holds text that is not UTF-8"))?;
                Ok((pcm, text.to_owned()))
            })
            .collect::<Result<_>>()?;
        let state = model.engine().read_state(&mut reader)?;
        reader.finish()?;
        let model = Arc::clone(model);
        Ok(Self {
            model,
            state,
            sampling,
            seed,
            unprimed,
            detokenizer,
            partial,
            waiting,
            steps,
            broken: false,
        })
    }

    /// Gives the conversation a past of noise as long as its context, so that the next steps cost
    /// what they do after hours. For measurements: what it says from then on means nothing.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn fill(&mut self) -> Result<()> {
        self.model.engine().fill(&mut self.state, &mut Noise::new(self.seed))
    }

    /// Forgets the conversation; settings and seed stay. Equals a new session with them.
    ///
    /// # Errors
    /// [`Error::Device`] only.
    pub fn reset(&mut self) -> Result<()> {
        let Self {
            model,
            state,
            sampling: _,
            seed: _,
            unprimed: _,
            detokenizer,
            partial,
            waiting,
            steps,
            broken,
        } = self;
        model.engine().reset(state)?;
        *detokenizer = Detokenizer::default();
        partial.clear();
        waiting.clear();
        *steps = 0;
        *broken = false;
        self.prime()
    }

    /// Steps one frame: exactly `frame_samples` samples at the model's rate.
    ///
    /// # Errors
    /// [`Error::Input`] for a wrong length or samples that are not finite; nothing changes then.
    /// [`Error::Session`] while pushed samples wait for the rest of their frame.
    pub fn step(&mut self, pcm: &[f32]) -> Result<StepOutput> {
        let mut outputs = step_batch(&mut [self], &[pcm])?;
        Ok(outputs.pop().expect("one output per session"))
    }

    /// Takes any number of samples, steps every complete frame and keeps the rest. Results wait
    /// for [`Session::pull`]. Returns the number of frames stepped.
    ///
    /// # Errors
    /// [`Error::Input`] for samples that are not finite, [`Error::Capacity`] when more than
    /// [`MAX_WAITING_FRAMES`] results would wait; nothing is taken then. [`Error::Session`] after
    /// a failed step.
    pub fn push(&mut self, samples: &[f32]) -> Result<usize> {
        self.check_whole()?;
        check_finite("samples", samples)?;
        let frame = self.model.info().frame_samples;
        let frames = (self.partial.len() + samples.len()) / frame;
        if self.waiting.len() + frames > MAX_WAITING_FRAMES {
            let reason =
                format!("at most {MAX_WAITING_FRAMES} frames wait; call pull() or push less");
            return Err(Error::Capacity { what: "the session's output", reason });
        }
        let mut all = std::mem::take(&mut self.partial);
        all.extend_from_slice(samples);
        for pcm in all.chunks_exact(frame) {
            let output = self.step(pcm)?;
            self.waiting.push_back((output.pcm, output.text));
        }
        self.partial = all.split_off(frames * frame);
        Ok(frames)
    }

    /// The oldest waiting result of [`Session::push`]: own audio of a frame and new text.
    pub fn pull(&mut self) -> Option<(Vec<f32>, String)> {
        self.waiting.pop_front()
    }

    /// The whole state as bytes, see [`crate::snapshot`].
    ///
    /// # Errors
    /// [`Error::Session`] after a failed step, [`Error::Device`].
    pub fn snapshot(&self) -> Result<Vec<u8>> {
        self.check_whole()?;
        let mut writer = Writer::default();
        writer.u64(self.seed);
        self.sampling.write(&mut writer);
        writer.flag(self.unprimed);
        writer.u64(self.steps);
        writer.bytes(self.detokenizer.pending());
        writer.u64(self.partial.len() as u64);
        writer.floats(&self.partial);
        writer.u64(self.waiting.len() as u64);
        for (pcm, text) in &self.waiting {
            writer.floats(pcm);
            writer.bytes(text.as_bytes());
        }
        self.model.engine().write_state(&self.state, &mut writer)?;
        Ok(writer.seal(&self.model.fingerprint()))
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The seed in use.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Sampling settings.
    pub fn sampling(&self) -> &Sampling {
        &self.sampling
    }

    /// Frames stepped since the start or the last reset.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    fn prime(&mut self) -> Result<()> {
        if self.unprimed {
            return Ok(());
        }
        self.model.engine().prime(&mut self.state, &self.sampling, self.seed)
    }

    fn check_whole(&self) -> Result<()> {
        if self.broken {
            let reason = "an earlier step failed half-way; reset the session".into();
            return Err(Error::Session { reason });
        }
        Ok(())
    }

    /// Ends a step. What the output held goes to the frame, to serve another step.
    fn finish(&mut self, frame: &mut Frame, output: &mut StepOutput) {
        self.broken = false;
        self.steps += 1;
        let StepOutput { pcm, text, tokens, user_codes } = output;
        std::mem::swap(&mut frame.pcm, pcm);
        std::mem::swap(&mut frame.row, tokens);
        std::mem::swap(&mut frame.user_codes, user_codes);
        text.clear();
        if let Some(token) = tokens.as_ref().map(|row| row[0])
            && !self.model.is_silent_text(token)
        {
            let tokenizer = self.model.tokenizer();
            text.reserve(tokenizer.longest_text() + MOST_REPLACED);
            self.detokenizer.push_into(tokenizer.piece(token), text);
        }
    }
}

/// Steps several sessions of one model as one batch, one frame each; weights are read once.
///
/// # Errors
/// [`Error::Input`] for unequal numbers or bad frames, [`Error::Session`] for sessions of
/// different models; nothing changes then.
pub fn step_batch(sessions: &mut [&mut Session], frames: &[&[f32]]) -> Result<Vec<StepOutput>> {
    let mut outputs = Vec::new();
    step_batch_into(sessions, frames, &mut outputs)?;
    Ok(outputs)
}

/// As [`step_batch`], replacing what `outputs` holds, whose memory is used again. On a CPU, a step
/// of as many sessions as an earlier one allocates nothing once their delays are filled. After an
/// error, `outputs` means nothing.
///
/// # Errors
/// As [`step_batch`].
pub fn step_batch_into(
    sessions: &mut [&mut Session],
    frames: &[&[f32]],
    outputs: &mut Vec<StepOutput>,
) -> Result<()> {
    outputs.resize_with(sessions.len(), StepOutput::default);
    if sessions.len() != frames.len() {
        let reason = format!("{} frames for {} sessions", frames.len(), sessions.len());
        return Err(Error::input("frames", reason));
    }
    let Some(model) = sessions.first().map(|s| Arc::clone(&s.model)) else {
        return Ok(());
    };
    let expected = model.info().frame_samples;
    for (session, frame) in sessions.iter().zip(frames) {
        if !Arc::ptr_eq(&session.model, &model) {
            let reason = "all sessions of a batch must come from the same loaded model".into();
            return Err(Error::Session { reason });
        }
        session.check_whole()?;
        if frame.len() != expected {
            let reason = format!("{} samples; a frame has exactly {expected}", frame.len());
            return Err(Error::input("frame", reason));
        }
        check_finite("frame", frame)?;
        if !session.partial.is_empty() {
            let reason = format!(
                "{} pushed samples wait for the rest of their frame; push more or reset",
                session.partial.len()
            );
            return Err(Error::Session { reason });
        }
    }
    for session in sessions.iter_mut() {
        session.broken = true;
    }
    let mut memory = model.step_memory();
    let StepMemory { scratch, frames: done } = &mut *memory;
    let slots = sessions.iter_mut().zip(frames).map(|(session, pcm)| Slot {
        state: &mut session.state,
        pcm,
        sampling: &session.sampling,
        seed: session.seed,
    });
    model.engine().step_into(scratch.list(frames.len(), slots), done, &mut ())?;
    for ((session, frame), output) in sessions.iter_mut().zip(done).zip(outputs) {
        session.finish(frame, output);
    }
    Ok(())
}

/// Bytes that stand for what is left of a broken character.
const MOST_REPLACED: usize = 12;

/// A seed from the operating system's randomness, by way of the standard hasher's keys.
pub fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}
