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
    Condition, Conditions, LanguageModel, LmSlot, LmState, LmStreamOptions, NoHooks, Sampling,
    ZERO_TOKEN,
};
use crate::mimi::{DecoderState, EncoderState, Mimi};
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
#[derive(Clone, Debug, Default)]
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
        self.step_observed(slots, &mut ())
    }
    /// As [`Engine::step`], telling `listener` when a stage ends.
    fn step_observed(
        &self,
        slots: &mut [Slot<'_>],
        listener: &mut dyn StageListener,
    ) -> Result<Vec<Frame>>;
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
        Ok(Self { exec, mimi, lm })
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

    /// Encodes the user's frames, `[slot][codebook]`.
    fn listen(&self, states: &mut [&mut SpeechState<E>], slots: &[&[f32]]) -> Result<Vec<u32>> {
        let pcm = slots.concat();
        let mut encoders: Vec<&mut EncoderState<E>> =
            states.iter_mut().map(|state| &mut state.encoder).collect();
        self.mimi.encode_step(&mut encoders, &pcm)
    }

    /// Decodes the frames that are complete.
    fn speak(&self, states: &mut [&mut SpeechState<E>], frames: &mut [Frame]) -> Result<()> {
        let mut codes = Vec::new();
        let mut decoders = Vec::new();
        let mut speaking = Vec::new();
        for (state, frame) in states.iter_mut().zip(frames) {
            frame.pcm = vec![0.0; self.frame_samples()];
            let (Some(row), Some(decoder)) = (&frame.row, &mut state.decoder) else { continue };
            // Sampled tokens are codes; only a hook could put a marker here.
            codes.extend(row[1..].iter().map(|&token| token.max(0) as u32));
            decoders.push(decoder);
            speaking.push(frame);
        }
        let pcm = self.mimi.decode_step(&mut decoders, &codes)?;
        for (frame, pcm) in speaking.into_iter().zip(pcm.chunks_exact(self.frame_samples())) {
            frame.pcm.copy_from_slice(pcm);
        }
        Ok(())
    }
}

impl<E: Executor> Engine for SpeechEngine<E> {
    fn name(&self) -> String {
        self.exec.name()
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

    fn step_observed(
        &self,
        slots: &mut [Slot<'_>],
        listener: &mut dyn StageListener,
    ) -> Result<Vec<Frame>> {
        let pcm: Vec<&[f32]> = slots.iter().map(|slot| slot.pcm).collect();
        let settings: Vec<(&Sampling, u64)> = slots.iter().map(|s| (s.sampling, s.seed)).collect();
        let mut states =
            slots.iter_mut().map(|slot| Self::state_mut(slot.state)).collect::<Result<Vec<_>>>()?;
        if states.is_empty() {
            return Ok(Vec::new());
        }
        let codes = self.listen(&mut states, &pcm)?;
        listener.ended(Stage::Encode);
        let codebooks = self.mimi.num_codebooks();
        let tokens: Vec<i64> = codes.iter().map(|&code| code.into()).collect();

        let mut hooks: Vec<NoHooks> = settings.iter().map(|_| NoHooks).collect();
        let mut lm_slots: Vec<LmSlot<'_, E>> = states
            .iter_mut()
            .zip(tokens.chunks_exact(codebooks))
            .zip(&settings)
            .zip(&mut hooks)
            .map(|(((state, user_tokens), &(sampling, seed)), hooks)| LmSlot {
                state: &mut state.lm,
                user_tokens,
                sampling,
                seed,
                hooks,
                trace: false,
            })
            .collect();
        let outputs = self.lm.step_observed(&mut lm_slots, listener)?;
        let mut frames: Vec<Frame> = outputs
            .into_iter()
            .zip(codes.chunks_exact(codebooks))
            .map(|(output, codes)| Frame {
                user_codes: codes.to_vec(),
                row: output.row,
                pcm: Vec::new(),
            })
            .collect();
        self.speak(&mut states, &mut frames)?;
        listener.ended(Stage::Decode);
        Ok(frames)
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
