//! What is measured: a model, from files or of random weights, with streams in full flow.

use std::time::Instant;

use moshi_core::checkpoint::{Catalog, RandomWidth, Repo, TensorFile, layout};
use moshi_core::config::{ConditionerKind, LmConfig, MimiConfig};
use moshi_core::engine::{Engine, Frame, Slot, SpeechEngine, StreamState};
use moshi_core::exec::Executor;
use moshi_core::lm::{
    Condition, Conditions, LanguageModel, LmFiles, LmMemory, LmOptions, LmOutput, LmSlot, LmState,
    LmStreamOptions, LmTraffic, NoHooks, Sampling, VOICE_POSITIONS,
};
use moshi_core::mimi::{DecoderState, Mimi, MimiMemory, MimiOptions, MimiParts, MimiTraffic};
use moshi_core::scratch::Scratch;
use moshi_core::stages::{Noise, Stage, StageListener, Traffic};
use moshi_core::with_executor;

use crate::hub;
use crate::options::BenchArgs;
use crate::output::Result;

/// A loaded model with its streams, whose windows are full.
pub(super) struct Subject {
    pub(super) name: String,
    /// True when no file was read.
    pub(super) random: bool,
    pub(super) executor: String,
    /// Of a step, when it was loaded.
    pub(super) threads: usize,
    pub(super) dtype: &'static str,
    pub(super) kv_dtype: &'static str,
    pub(super) frame_ms: f64,
    pub(super) load_seconds: f64,
    /// Weights of all parts.
    pub(super) weight_bytes: u64,
    /// Of every stage, in the order of [`Stage::ALL`].
    pub(super) traffic: [Traffic; 4],
    rig: Box<dyn Rig>,
    frames: Vec<Frame>,
    hash: u64,
}

/// A model that takes steps.
trait Rig {
    /// Replaces `frames` by one of every stream.
    fn step(
        &mut self,
        frames: &mut Vec<Frame>,
        listener: &mut dyn StageListener,
    ) -> moshi_core::Result<()>;
}

impl Subject {
    /// Loads what the arguments name.
    pub(super) fn load(args: &BenchArgs) -> Result<Self> {
        let named = args.model.as_ref().and_then(|model| model.to_str());
        let known = named.and_then(|name| Some((name, LmConfig::known(name)?)));
        let compute = &args.compute;
        with_executor!(compute.device(), compute.cpu_executor(), exec => match known {
            Some((name, config)) => Self::of_shape(&exec, name, config, args),
            None => Self::of_repo(&exec, args),
        })
    }

    /// Random weights in the shapes of a public model.
    fn of_shape<E: Executor>(
        exec: &E,
        name: &str,
        config: LmConfig,
        args: &BenchArgs,
    ) -> Result<Self> {
        let mimi_config = MimiConfig::default();
        let tensors = layout::language_model(&config, layout::first_gated_widths(&config));
        let lm = TensorFile::random(name, &tensors, RandomWidth::Bf16, 1);
        let mimi = TensorFile::random("mimi", &layout::mimi(&mimi_config), RandomWidth::F32, 2);
        let lm = Catalog::language_model(&lm, &config)?;
        let mimi = Catalog::mimi(&mimi, mimi_config.heads.query)?;
        Self::new(exec, name.into(), (&lm, &config), (&mimi, &mimi_config), args, true)
    }

    /// The weights of a repository.
    fn of_repo<E: Executor>(exec: &E, args: &BenchArgs) -> Result<Self> {
        let options = hub::options(args.revision.as_ref());
        let repo: Repo = moshi_box::open_repo(args.model.as_deref(), &options)?;
        let mimi = TensorFile::open(&repo.mimi_file()?)?;
        let lora = repo.lora_file()?;
        let lm = LmFiles::open(&repo.moshi_file()?, &repo.config, lora.as_ref())?;
        let lm = lm.catalog(&repo.config)?;
        let mimi = Catalog::mimi(&mimi, repo.mimi_config.heads.query)?;
        let (config, mimi_config) = (&repo.config, &repo.mimi_config);
        Self::new(exec, repo.label(), (&lm, config), (&mimi, mimi_config), args, false)
    }

    fn new<E: Executor>(
        exec: &E,
        name: String,
        (lm, config): (&Catalog<'_>, &LmConfig),
        (mimi, mimi_config): (&Catalog<'_>, &MimiConfig),
        args: &BenchArgs,
        random: bool,
    ) -> Result<Self> {
        let start = Instant::now();
        let (hears, speaks) = (config.num_user_codebooks() > 0, config.num_generated > 0);
        let parts = match (hears, speaks) {
            (true, true) => MimiParts::Both,
            (true, false) => MimiParts::Encoder,
            (false, _) => MimiParts::Decoder,
        };
        let mode = args.codec.mode();
        let mimi_options = MimiOptions {
            num_codebooks: config.codec_codebooks(),
            parts,
            mode,
            ..MimiOptions::default()
        };
        let dtype = args.dtype.weight_type();
        let kv_dtype = args.kv_dtype.key_storage();
        let options = LmOptions { dtype, kv_dtype, ..LmOptions::default() };
        let memory = LmMemory::of(exec, lm, config, dtype, kv_dtype)?;
        let weight_bytes =
            memory.weight_bytes + MimiMemory::of(exec, mimi_config, &mimi_options).weight_bytes;
        let widths = layout::gated_widths_of(lm, config);
        let stored = lm.nearest_storage("transformer.layers.0.gating.linear_in.weight");
        let lm_traffic = LmTraffic::of(exec, config, widths, stored, dtype, memory.kv_dtype);
        let codec = MimiTraffic::of(exec, mimi_config, config.codec_codebooks(), mode);
        let mimi = Mimi::from_catalog(exec, mimi, mimi_config, &mimi_options)?;
        let lm = LanguageModel::from_catalog(exec, lm, config, &options)?;
        let used = |part: Traffic, used: bool| if used { part } else { Traffic::default() };
        let sampling = Sampling::from(&config.generation);
        let stream = LmStreamOptions { conditions: conditions(config), guidance: None };
        let rig: Box<dyn Rig> = if hears {
            let engine = Box::new(SpeechEngine::new(exec.clone(), mimi, lm)?);
            Box::new(EngineRig::new(engine, args.sessions, sampling, &stream)?)
        } else {
            lm.tune()?;
            Box::new(SynthesisRig::new(lm, mimi, args.sessions, sampling, &stream)?)
        };
        Ok(Self {
            name,
            random,
            executor: exec.name(),
            threads: exec.threads(),
            dtype: memory.dtype.name(),
            kv_dtype: memory.kv_dtype.name(),
            frame_ms: 1e3 / mimi_config.frame_rate_hz(),
            load_seconds: start.elapsed().as_secs_f64(),
            weight_bytes,
            traffic: [
                used(codec.encode, hears),
                lm_traffic.temporal,
                lm_traffic.depth,
                used(codec.decode, speaks),
            ],
            rig,
            frames: Vec::new(),
            hash: FNV_START,
        })
    }

    /// One step of all streams.
    pub(super) fn step(&mut self, listener: &mut dyn StageListener) -> Result<()> {
        self.rig.step(&mut self.frames, listener)?;
        for frame in &self.frames {
            let codes = frame.user_codes.iter().map(|&code| u64::from(code));
            let tokens = frame.row.iter().flatten().map(|&token| token.cast_unsigned());
            let samples = frame.pcm.iter().map(|sample| u64::from(sample.to_bits()));
            self.hash = digest(self.hash, codes.chain(tokens).chain(samples));
        }
        Ok(())
    }

    /// Digest of all that was computed: equal inputs, seeds and arithmetic give equal ones.
    pub(super) fn output_hash(&self) -> String {
        format!("{:016x}", self.hash)
    }
}

fn digest(start: u64, values: impl Iterator<Item = u64>) -> u64 {
    values.fold(start, |hash, value| (hash ^ value).wrapping_mul(FNV_PRIME))
}

/// FNV-1a over 64 bits, a value at a time.
const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// Values for every condition, a full voice among them.
fn conditions(config: &LmConfig) -> Conditions {
    let fused = config.fuser.sum.iter().chain(&config.fuser.cross);
    let value = |name: &String| {
        let kind = config.conditioners.iter().find(|c| c.name == *name).map(|c| &c.kind);
        match kind {
            Some(ConditionerKind::Lut { possible_values: Some(values), .. }) => {
                values.last().map_or(Condition::Null, |value| Condition::Text(value.clone()))
            }
            Some(ConditionerKind::Tensor { dim }) => Condition::Sequence {
                values: Noise::new(3).take(VOICE_POSITIONS * dim),
                mask: vec![true; VOICE_POSITIONS],
            },
            Some(ConditionerKind::Number { default: Some(number), .. }) => {
                Condition::Number(*number)
            }
            _ => Condition::Null,
        }
    };
    fused.map(|name| (name.clone(), value(name))).collect()
}

/// Streams with a past, made one after the other from the same noise.
fn streams<S>(
    count: usize,
    mut make: impl FnMut(&mut Noise) -> moshi_core::Result<S>,
) -> moshi_core::Result<(Vec<S>, Noise)> {
    let mut noise = Noise::new(4);
    let states = (0..count).map(|_| make(&mut noise)).collect::<moshi_core::Result<_>>()?;
    Ok((states, noise))
}

/// Audio in, audio or text out: the engine of sessions.
struct EngineRig {
    engine: Box<dyn Engine>,
    states: Vec<StreamState>,
    sampling: Sampling,
    noise: Noise,
    pcm: Vec<f32>,
    scratch: Scratch,
}

impl EngineRig {
    fn new(
        engine: Box<dyn Engine>,
        sessions: usize,
        sampling: Sampling,
        options: &LmStreamOptions,
    ) -> moshi_core::Result<Self> {
        let (states, noise) = streams(sessions, |noise| {
            let mut state = engine.new_state(options)?;
            engine.fill(&mut state, noise)?;
            Ok(state)
        })?;
        let pcm = vec![0.0; sessions * engine.frame_samples()];
        Ok(Self { engine, states, sampling, noise, pcm, scratch: Scratch::default() })
    }
}

impl Rig for EngineRig {
    fn step(
        &mut self,
        frames: &mut Vec<Frame>,
        listener: &mut dyn StageListener,
    ) -> moshi_core::Result<()> {
        let frame = self.engine.frame_samples();
        for sample in &mut self.pcm {
            *sample = 0.1 * (self.noise.bits() >> 40) as f32 / (1u64 << 24) as f32;
        }
        self.scratch.reset();
        let count = self.states.len();
        let slots = self
            .states
            .iter_mut()
            .zip(self.pcm.chunks_exact(frame))
            .zip(0..)
            .map(|((state, pcm), seed)| Slot { state, pcm, sampling: &self.sampling, seed });
        self.engine.step_into(self.scratch.list(count, slots), frames, listener)
    }
}

/// Nothing in, text and audio out.
struct SynthesisRig<E: Executor> {
    lm: LanguageModel<E>,
    mimi: Mimi<E>,
    states: Vec<(LmState<E>, DecoderState<E>)>,
    sampling: Sampling,
    scratch: Scratch,
    outputs: Vec<LmOutput>,
    pcm: Vec<f32>,
}

impl<E: Executor> SynthesisRig<E> {
    fn new(
        lm: LanguageModel<E>,
        mimi: Mimi<E>,
        sessions: usize,
        sampling: Sampling,
        options: &LmStreamOptions,
    ) -> moshi_core::Result<Self> {
        let (states, _) = streams(sessions, |noise| {
            let (mut state, mut decoder) = (lm.new_state(options)?, mimi.decoder_state()?);
            lm.fill(&mut state, noise)?;
            decoder.fill(noise)?;
            Ok((state, decoder))
        })?;
        let scratch = Scratch::default();
        let (outputs, pcm) = (Vec::new(), Vec::new());
        Ok(Self { lm, mimi, states, sampling, scratch, outputs, pcm })
    }
}

impl<E: Executor> Rig for SynthesisRig<E> {
    fn step(
        &mut self,
        frames: &mut Vec<Frame>,
        listener: &mut dyn StageListener,
    ) -> moshi_core::Result<()> {
        let Self { lm, mimi, states, sampling, scratch, outputs, pcm } = self;
        listener.ended(Stage::Encode);
        scratch.reset();
        let (scratch, sampling, count) = (&*scratch, &*sampling, states.len());
        frames.resize_with(count, Frame::default);
        let hooks = scratch.list(count, std::iter::repeat_with(|| NoHooks));
        let slots = states.iter_mut().zip(hooks).zip(0..).map(|(((state, _), hooks), seed)| {
            LmSlot { state, user_tokens: &[], sampling, seed, hooks, trace: false }
        });
        lm.step_into(scratch.list(count, slots), outputs, listener)?;
        for (frame, output) in frames.iter_mut().zip(outputs) {
            std::mem::swap(&mut frame.row, &mut output.row);
        }
        let audio = || frames.iter().filter_map(|frame| frame.row.as_ref()).flat_map(|r| &r[1..]);
        let codes = scratch.list(audio().count(), audio().map(|&token| token.max(0) as u32));
        let decoders = scratch.list(count, states.iter_mut().map(|(_, decoder)| decoder));
        mimi.decode_step_into(decoders, codes, pcm)?;
        listener.ended(Stage::Decode);
        for (frame, pcm) in frames.iter_mut().zip(pcm.chunks_exact(mimi.config().frame_samples)) {
            frame.pcm.clear();
            frame.pcm.extend_from_slice(pcm);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_condition_of_every_known_model_has_a_value() {
        for name in LmConfig::KNOWN {
            let config = LmConfig::known(name).unwrap();
            let conditions = conditions(&config);
            assert_eq!(conditions.len(), config.fuser.sum.len() + config.fuser.cross.len());
            assert!(conditions.values().all(|value| *value != Condition::Null), "{name}");
        }
    }
}
