//! Many streams stepped as one batch: codec in, language model, codec out.
//!
//! [`Engine`] erases the executor: a step costs milliseconds, a dynamic call nothing. States are
//! opaque values that belong to the engine that made them.

use std::any::Any;

use crate::checkpoint::Fingerprint;
use crate::config::{ConditionerKind, LmConfig};
use crate::error::{Error, Result};
use crate::exec::Executor;
use crate::lm::{
    Condition, Conditions, LanguageModel, LmOutput, LmSlot, LmState, LmStreamOptions, NoHooks,
    Sampling, ZERO_TOKEN,
};
use crate::mimi::{DecoderState, EncoderState, Mimi};
use crate::scratch::{Scratch, Spare};
use crate::snapshot::{Reader, Writer};
use crate::stages::{Noise, Stage, StageListener};

/// State of one stream of an [`Engine`].
pub struct StreamState(Box<dyn Any + Send>);

/// One stream's part of a step.
pub struct Slot<'a> {
    /// The stream.
    pub state: &'a mut StreamState,
    /// The user's frame: [`Engine::frame_samples`] samples.
    pub pcm: &'a [f32],
    /// Sampling settings.
    pub sampling: &'a Sampling,
    /// Seed of the session.
    pub seed: u64,
}

/// What a step gives for one stream.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Frame {
    /// Codes of the user's frame, one per codebook; empty for models that hear nothing.
    pub user_codes: Vec<u32>,
    /// The newest complete frame: text, then own codebooks. `None` while delays fill.
    pub row: Option<Vec<i64>>,
    /// Own audio of that frame; silence while delays fill.
    pub pcm: Vec<f32>,
}

/// A batched step over any set of streams. Weights are shared, attention is per stream.
pub trait Engine: Send + Sync {
    /// Executor and device.
    fn name(&self) -> String;
    /// The most threads that a step takes.
    fn most_threads(&self) -> usize;
    /// Samples per frame.
    fn frame_samples(&self) -> usize;
    /// Identity of weights and settings.
    fn fingerprint(&self) -> Fingerprint;
    /// A fresh stream.
    fn new_state(&self, options: &LmStreamOptions) -> Result<StreamState>;
    /// Forgets the past of a stream: it equals a new one.
    fn reset(&self, state: &mut StreamState) -> Result<()>;
    /// Runs the language model's first step, which ignores the user's tokens, so that the first
    /// real frame is heard and answered without a frame of delay.
    fn prime(&self, state: &mut StreamState, sampling: &Sampling, seed: u64) -> Result<()>;
    /// Gives a stream a past as long as its windows, made of noise: what a measurement starts from.
    fn fill(&self, state: &mut StreamState, noise: &mut Noise) -> Result<()>;
    /// Steps every slot as one batch. All inputs are checked before anything changes.
    fn step(&self, slots: &mut [Slot<'_>]) -> Result<Vec<Frame>> {
        let mut frames = Vec::new();
        self.step_into(slots, &mut frames, &mut ())?;
        Ok(frames)
    }
    /// As [`Engine::step`], replacing what `frames` holds, whose memory is used again, and telling
    /// `listener` when a stage ends. On the executor of the CPU, a step with as many slots as an
    /// earlier one allocates nothing once the streams' delays are filled. After an error, `frames`
    /// means nothing.
    fn step_into(
        &self,
        slots: &mut [Slot<'_>],
        frames: &mut Vec<Frame>,
        listener: &mut dyn StageListener,
    ) -> Result<()>;
    /// Appends a stream to a snapshot.
    fn write_state(&self, state: &StreamState, writer: &mut Writer) -> Result<()>;
    /// Takes a stream from a snapshot.
    fn read_state(&self, reader: &mut Reader<'_>) -> Result<StreamState>;
}

/// Speech in, speech and text out: dialogue, translation, and transcription (no own audio).
pub struct SpeechEngine<E: Executor> {
    exec: E,
    mimi: Mimi<E>,
    lm: LanguageModel<E>,
    memory: Spare<Memory>,
}

/// What a step needs beside the streams.
#[derive(Default)]
struct Memory {
    scratch: Scratch,
    codes: Vec<u32>,
    outputs: Vec<LmOutput>,
    pcm: Vec<f32>,
}

struct SpeechState<E: Executor> {
    encoder: EncoderState<E>,
    decoder: Option<DecoderState<E>>,
    lm: LmState<E>,
}

impl<E: Executor> SpeechEngine<E> {
    /// Joins a codec and a language model.
    ///
    /// # Errors
    /// [`Error::Config`] when they do not fit together.
    pub fn new(exec: E, mimi: Mimi<E>, lm: LanguageModel<E>) -> Result<Self> {
        let config = lm.config();
        let refuse = |field: &str, value: usize, reason: String| {
            Err(Error::Config {
                file: "language model".into(),
                field: field.into(),
                value: value.to_string(),
                reason,
            })
        };
        if config.num_user_codebooks() == 0 {
            let reason = "a model without input streams cannot converse".into();
            return refuse("dep_q", config.num_generated, reason);
        }
        if config.card != mimi.config().codebook_size {
            let size = mimi.config().codebook_size;
            return refuse("card", config.card, format!("the codec has {size} codes"));
        }
        let needed = config.num_user_codebooks().max(config.num_generated);
        if needed > mimi.num_codebooks() {
            let have = mimi.num_codebooks();
            return refuse("n_q", config.num_codebooks, format!("the codec runs {have} codebooks"));
        }
        exec.tune(&[lm.step_weights(), mimi.step_weights()].concat())?;
        Ok(Self { exec, mimi, lm, memory: Spare::default() })
    }

    fn state(state: &StreamState) -> Result<&SpeechState<E>> {
        state.0.downcast_ref().ok_or_else(foreign_state)
    }

    fn state_mut(state: &mut StreamState) -> Result<&mut SpeechState<E>> {
        state.0.downcast_mut().ok_or_else(foreign_state)
    }

    fn decodes(&self) -> bool {
        self.lm.config().num_generated > 0
    }

    /// Decodes the frames that are complete, `pcm` in between; others are silent.
    fn speak(
        &self,
        scratch: &Scratch,
        states: &mut [(&mut SpeechState<E>, &Sampling, u64)],
        frames: &mut [Frame],
        pcm: &mut Vec<f32>,
    ) -> Result<()> {
        let samples = self.frame_samples();
        let speaks =
            |state: &SpeechState<E>, frame: &Frame| frame.row.is_some() && state.decoder.is_some();
        let speaking = states.iter().zip(&*frames).filter(|((s, ..), f)| speaks(s, f)).count();
        let rows = states.iter().zip(&*frames).filter(|((s, ..), f)| speaks(s, f));
        // Sampled tokens are codes; only a hook could put a marker here.
        let codes = rows
            .flat_map(|(_, frame)| frame.row.iter().flat_map(|row| &row[1..]))
            .map(|&token| token.max(0) as u32);
        let codes = scratch.list(speaking * self.lm.config().num_generated, codes);
        let decoders = states
            .iter_mut()
            .zip(&*frames)
            .filter_map(|((state, ..), frame)| frame.row.as_ref().and(state.decoder.as_mut()));
        self.mimi.decode_step_into(scratch.list(speaking, decoders), codes, pcm)?;
        let mut pcm = pcm.chunks_exact(samples);
        for ((state, ..), frame) in states.iter().zip(frames) {
            let spoken = if speaks(state, frame) { pcm.next() } else { None };
            frame.pcm.clear();
            match spoken {
                Some(spoken) => frame.pcm.extend_from_slice(spoken),
                None => frame.pcm.resize(samples, 0.0),
            }
        }
        Ok(())
    }
}

impl<E: Executor> Engine for SpeechEngine<E> {
    fn name(&self) -> String {
        self.exec.name()
    }

    fn most_threads(&self) -> usize {
        self.exec.most_threads()
    }

    fn frame_samples(&self) -> usize {
        self.mimi.config().frame_samples
    }

    fn fingerprint(&self) -> Fingerprint {
        let parts = [self.mimi.fingerprint(), self.lm.fingerprint()];
        Fingerprint::of(&[], &[&parts.map(|part| format!("{:?}", part.bytes())).concat()])
    }

    fn new_state(&self, options: &LmStreamOptions) -> Result<StreamState> {
        Ok(StreamState(Box::new(SpeechState {
            encoder: self.mimi.encoder_state()?,
            decoder: self.decodes().then(|| self.mimi.decoder_state()).transpose()?,
            lm: self.lm.new_state(options)?,
        })))
    }

    fn reset(&self, state: &mut StreamState) -> Result<()> {
        let SpeechState { encoder, decoder, lm } = Self::state_mut(state)?;
        encoder.reset()?;
        if let Some(decoder) = decoder {
            decoder.reset()?;
        }
        lm.reset();
        Ok(())
    }

    fn prime(&self, state: &mut StreamState, sampling: &Sampling, seed: u64) -> Result<()> {
        let state = Self::state_mut(state)?;
        let silence = vec![ZERO_TOKEN; self.lm.config().num_user_codebooks()];
        self.lm.step(&mut [LmSlot {
            state: &mut state.lm,
            user_tokens: &silence,
            sampling,
            seed,
            hooks: &mut NoHooks,
            trace: false,
        }])?;
        Ok(())
    }

    fn fill(&self, state: &mut StreamState, noise: &mut Noise) -> Result<()> {
        let SpeechState { encoder, decoder, lm } = Self::state_mut(state)?;
        encoder.fill(noise)?;
        if let Some(decoder) = decoder {
            decoder.fill(noise)?;
        }
        self.lm.fill(lm, noise)
    }

    fn step_into(
        &self,
        slots: &mut [Slot<'_>],
        frames: &mut Vec<Frame>,
        listener: &mut dyn StageListener,
    ) -> Result<()> {
        frames.resize_with(slots.len(), Frame::default);
        for slot in &*slots {
            Self::state(slot.state)?;
        }
        if slots.is_empty() {
            return Ok(());
        }
        let count = slots.len();
        let mut memory = self.memory.take();
        memory.scratch.reset();
        let Memory { scratch, codes, outputs, pcm } = &mut *memory;

        let samples = slots.iter().map(|slot| slot.pcm.len()).sum();
        let heard = scratch.list(samples, slots.iter().flat_map(|slot| slot.pcm).copied());
        let states = slots.iter_mut().map(|slot| {
            let state = Self::state_mut(slot.state).unwrap_or_else(|_| unreachable!("checked"));
            (state, slot.sampling, slot.seed)
        });
        let states = scratch.list(count, states);
        let encoders = states.iter_mut().map(|(state, ..)| &mut state.encoder);
        self.mimi.encode_step_into(scratch.list(count, encoders), heard, codes)?;
        listener.ended(Stage::Encode);

        let codebooks = self.mimi.num_codebooks();
        let tokens = scratch.list(codes.len(), codes.iter().map(|&code| i64::from(code)));
        let hooks = scratch.list(count, std::iter::repeat_with(|| NoHooks));
        let lm_slots = states.iter_mut().zip(tokens.chunks_exact(codebooks)).zip(hooks).map(
            |(((state, sampling, seed), user_tokens), hooks)| LmSlot {
                state: &mut state.lm,
                user_tokens,
                sampling,
                seed: *seed,
                hooks,
                trace: false,
            },
        );
        self.lm.step_into(scratch.list(count, lm_slots), outputs, listener)?;
        for ((frame, output), codes) in
            frames.iter_mut().zip(outputs).zip(codes.chunks_exact(codebooks))
        {
            frame.user_codes.clear();
            frame.user_codes.extend_from_slice(codes);
            // What the frame held before serves the next step.
            std::mem::swap(&mut frame.row, &mut output.row);
        }
        self.speak(scratch, states, frames, pcm)?;
        listener.ended(Stage::Decode);
        Ok(())
    }

    fn write_state(&self, state: &StreamState, writer: &mut Writer) -> Result<()> {
        let SpeechState { encoder, decoder, lm } = Self::state(state)?;
        encoder.write(writer)?;
        if let Some(decoder) = decoder {
            decoder.write(writer)?;
        }
        self.lm.write_state(lm, writer)
    }

    fn read_state(&self, reader: &mut Reader<'_>) -> Result<StreamState> {
        let mut encoder = self.mimi.encoder_state()?;
        encoder.read(reader)?;
        let mut decoder = self.decodes().then(|| self.mimi.decoder_state()).transpose()?;
        if let Some(decoder) = &mut decoder {
            decoder.read(reader)?;
        }
        let lm = self.lm.read_state(reader)?;
        Ok(StreamState(Box::new(SpeechState { encoder, decoder, lm })))
    }
}

fn foreign_state() -> Error {
    Error::Session { reason: "this state belongs to another kind of engine".into() }
}

/// Conditions for a conversation when the caller gives none: what the config says, the best
/// quality where the model distinguishes qualities, else no value.
pub fn default_conditions(config: &LmConfig) -> Conditions {
    let best = "very_good".to_owned();
    let fused = config.fuser.sum.iter().chain(&config.fuser.cross);
    let value = |name: &String| match config.conditioner(name).ok().map(|c| &c.kind) {
        Some(ConditionerKind::Lut { possible_values: Some(values), .. })
            if values.contains(&best) =>
        {
            Condition::Text(best.clone())
        }
        Some(ConditionerKind::Number { default: Some(number), .. }) => Condition::Number(*number),
        _ => Condition::Null,
    };
    fused.map(|name| (name.clone(), value(name))).collect()
}
