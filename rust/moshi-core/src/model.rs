//! A model repository, loaded and wired: what every session of a process shares.

use std::cell::Cell;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::checkpoint::{Catalog, Fingerprint, Repo, TensorFile};
use crate::config::{LmConfig, ModelType};
use crate::device::{CpuExecutor, Device};
use crate::engine::{Engine, Frame, SpeechEngine, default_conditions};
use crate::error::{Error, Result};
use crate::exec::{Executor, KeyStorage};
use crate::lm::{Conditions, LanguageModel, LmFiles, LmMemory, LmOptions, Sampling, WeightType};
use crate::mimi::{Mimi, MimiMemory, MimiMode, MimiOptions, MimiParts};
use crate::scratch::{Scratch, Spare, Taken};
use crate::text::Tokenizer;
use crate::with_executor;

/// Bytes that a model takes, known before anything is allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// The language model.
    pub language_model: LmMemory,
    /// The codec.
    pub codec: MimiMemory,
}

impl Memory {
    /// Weights of all parts, shared by all sessions.
    pub fn weight_bytes(&self) -> u64 {
        self.language_model.weight_bytes + self.codec.weight_bytes
    }

    /// What every session adds. Guidance doubles the language model's part.
    pub fn session_bytes(&self) -> u64 {
        self.language_model.stream_bytes + self.codec.stream_bytes
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = |bytes: u64| match bytes as f64 {
            large if large >= 1e9 => format!("{:.1} GB", large / 1e9),
            small => format!("{:.1} MB", small / 1e6),
        };
        write!(
            f,
            "{} for weights (language model {} in {}, codec {}) and {} for every session (keys and \
             values in {})",
            size(self.weight_bytes()),
            size(self.language_model.weight_bytes),
            self.language_model.dtype.name(),
            size(self.codec.weight_bytes),
            size(self.session_bytes()),
            self.language_model.kv_dtype.name()
        )
    }
}

/// Hears about the loading of a model.
pub trait LoadObserver {
    /// Before weights are read: what they will take.
    fn memory(&self, _memory: &Memory) {}
    /// After every tensor: bytes read, and of all files.
    fn progress(&self, _bytes: u64, _total_bytes: u64) {}
}

/// Hears nothing.
pub struct NoObserver;

impl LoadObserver for NoObserver {}

/// How to load a model.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Where to run.
    pub device: Device,
    /// Implementation on the CPU.
    pub cpu_executor: CpuExecutor,
    /// Storage of the language model's weights; `None` follows the checkpoint.
    pub dtype: Option<WeightType>,
    /// Storage of the language model's keys and values; `None` takes bf16, and f32 beside weights
    /// in f32, where the executor can choose.
    pub kv_dtype: Option<KeyStorage>,
    /// Adapter to fuse into the language model, in place of the one that the config names.
    pub lora: Option<PathBuf>,
    /// Storage of the codec's weights.
    pub codec: MimiMode,
    /// Folder in which packed weights are kept, so that the next load is faster; `None` keeps none.
    pub packed_cache: Option<PathBuf>,
}

/// A loaded model.
pub struct Model {
    engine: Box<dyn Engine>,
    tokenizer: Tokenizer,
    config: LmConfig,
    info: ModelInfo,
    conditions: Conditions,
    memory: Spare<StepMemory>,
}

/// What a step of sessions needs beside them.
#[derive(Default)]
pub(crate) struct StepMemory {
    pub(crate) scratch: Scratch,
    pub(crate) frames: Vec<Frame>,
}

/// Facts about a loaded model.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// Where its files come from, as [`Repo::label`] calls it.
    pub source: String,
    /// Program of the checkpoint.
    pub model_type: ModelType,
    /// Samples per second, in and out.
    pub sample_rate_hz: usize,
    /// Samples per frame.
    pub frame_samples: usize,
    /// Frames per second.
    pub frame_rate_hz: f64,
    /// Largest delay of a stream in frames.
    pub latency_frames: usize,
    /// Storage of the language model's weights.
    pub dtype: WeightType,
    /// Storage of the language model's keys and values.
    pub kv_dtype: KeyStorage,
    /// `cpu`, `cuda` or `metal`.
    pub device: &'static str,
    /// Executor and device.
    pub executor: String,
}

impl Model {
    /// Loads a folder laid out like a public repository, or a file in one.
    ///
    /// # Errors
    /// Whatever is wrong with its files, or [`Error::Device`].
    pub fn load(path: &Path, options: &LoadOptions) -> Result<Arc<Self>> {
        Self::open(&Repo::open(path)?, options, &NoObserver)
    }

    /// Loads an opened repository on the device that the options name.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn open(
        repo: &Repo,
        options: &LoadOptions,
        observer: &dyn LoadObserver,
    ) -> Result<Arc<Self>> {
        with_executor!(options.device, options.cpu_executor, exec => {
            Self::from_repo(&exec, repo, options, observer)
        })
    }

    /// Loads an opened repository on an executor.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn from_repo<E: Executor>(
        exec: &E,
        repo: &Repo,
        options: &LoadOptions,
        observer: &dyn LoadObserver,
    ) -> Result<Arc<Self>> {
        if repo.config.model_type == ModelType::Tts {
            return Err(Error::Config {
                file: repo.config_file(),
                field: "model_type".into(),
                value: "\"tts\"".into(),
                reason: "a text-to-speech model hears nothing; load it as a language model".into(),
            });
        }
        let tokenizer = Tokenizer::load(&repo.tokenizer_file()?)?;
        let config = repo.config.clone();
        let mimi_options = MimiOptions {
            num_codebooks: config.codec_codebooks(),
            parts: if config.num_generated == 0 { MimiParts::Encoder } else { MimiParts::Both },
            mode: options.codec,
            ..MimiOptions::default()
        };
        let lm_options = LmOptions {
            dtype: options.dtype,
            kv_dtype: options.kv_dtype,
            end_acts_as_padding: config.model_type == ModelType::Hibiki,
            lora: match &options.lora {
                Some(path) => Some(path.into()),
                None => repo.lora_file()?,
            },
            packed_cache: options.packed_cache.clone(),
        };
        let mimi_file = TensorFile::open(&repo.mimi_file()?)?;
        let lm_files = LmFiles::open(&repo.moshi_file()?, &config, lm_options.lora.as_ref())?;

        let total = (mimi_file.len_bytes() + lm_files.weights().len_bytes()) as u64;
        let done = Cell::new(0);
        let progress = |bytes: u64| {
            done.set(done.get() + bytes);
            observer.progress(done.get(), total);
        };
        let mimi = Catalog::mimi(&mimi_file, repo.mimi_config.heads.query)?;
        let lm = lm_files.catalog(&config)?;
        let memory = Memory {
            language_model: LmMemory::of(exec, &lm, &config, options.dtype, options.kv_dtype)?,
            codec: MimiMemory::of(exec, &repo.mimi_config, &mimi_options),
        };
        log::info!("{} takes {memory}", repo.label());
        observer.memory(&memory);
        let mimi = mimi.with_progress(&progress);
        let mimi = Mimi::from_catalog(exec, &mimi, &repo.mimi_config, &mimi_options)?;
        let lm = lm.with_progress(&progress);
        let lm = LanguageModel::from_catalog(exec, &lm, &config, &lm_options)?;
        let info = ModelInfo {
            source: repo.label(),
            model_type: config.model_type,
            sample_rate_hz: repo.mimi_config.sample_rate_hz,
            frame_samples: repo.mimi_config.frame_samples,
            frame_rate_hz: repo.mimi_config.frame_rate_hz(),
            latency_frames: config.max_delay(),
            dtype: lm.dtype(),
            kv_dtype: lm.kv_dtype(),
            device: exec.device(),
            executor: exec.name(),
        };
        log::info!(
            "loaded {} ({}, weights {}, keys and values {}) on {}",
            repo.label(),
            config.model_type.name(),
            info.dtype.name(),
            info.kv_dtype.name(),
            info.executor
        );
        let conditions = default_conditions(&config);
        let engine = Box::new(SpeechEngine::new(exec.clone(), mimi, lm)?);
        let memory = Spare::default();
        Ok(Arc::new(Self { engine, tokenizer, config, info, conditions, memory }))
    }

    /// Facts.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// The most threads that a step takes, see [`crate::exec::Executor::most_threads`].
    pub fn most_threads(&self) -> usize {
        self.engine.most_threads()
    }

    /// Config of the language model.
    pub fn config(&self) -> &LmConfig {
        &self.config
    }

    /// The text tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Identity of weights and settings.
    pub fn fingerprint(&self) -> Fingerprint {
        self.engine.fingerprint()
    }

    /// Sampling settings that the checkpoint recommends.
    pub fn default_sampling(&self) -> Sampling {
        Sampling::from(&self.config.generation)
    }

    /// Conditions of a session that names none.
    pub fn default_conditions(&self) -> &Conditions {
        &self.conditions
    }

    pub(crate) fn engine(&self) -> &dyn Engine {
        &*self.engine
    }

    pub(crate) fn step_memory(&self) -> Taken<'_, StepMemory> {
        let mut memory = self.memory.take();
        memory.scratch.reset();
        memory
    }

    /// True for text tokens that are never shown.
    pub(crate) fn is_silent_text(&self, token: i64) -> bool {
        let silent = [self.config.text_padding_id, self.config.text_end_padding_id];
        usize::try_from(token).map_or(true, |token| silent.contains(&token))
    }
}
