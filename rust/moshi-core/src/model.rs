//! A model folder, loaded and wired: what every session of a process shares.

use std::path::Path;
use std::sync::Arc;

use crate::checkpoint::{Fingerprint, Repo};
use crate::config::{LmConfig, ModelType};
use crate::device::{CpuExecutor, Device};
use crate::engine::{Engine, SpeechEngine, default_conditions};
use crate::error::{Error, Result};
use crate::exec::{Executor, WeightType};
use crate::lm::{Conditions, LanguageModel, LmOptions, Sampling};
use crate::mimi::{Mimi, MimiOptions, MimiParts};
use crate::text::Tokenizer;
use crate::with_executor;

/// How to load a model.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Where to run.
    pub device: Device,
    /// Implementation on the CPU.
    pub cpu_executor: CpuExecutor,
    /// Storage of the language model's weights; `None` follows the checkpoint.
    pub dtype: Option<WeightType>,
}

/// A loaded model.
pub struct Model {
    engine: Box<dyn Engine>,
    tokenizer: Tokenizer,
    config: LmConfig,
    info: ModelInfo,
    conditions: Conditions,
}

/// Facts about a loaded model.
#[derive(Clone, Debug)]
pub struct ModelInfo {
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
    /// `cpu`, `cuda` or `metal`.
    pub device: &'static str,
    /// Executor and device.
    pub executor: String,
}

impl Model {
    /// Loads a folder laid out like a public repository.
    ///
    /// # Errors
    /// Whatever is wrong with its files, or [`Error::Device`].
    pub fn load(path: &Path, options: &LoadOptions) -> Result<Arc<Self>> {
        let repo = Repo::open(path)?;
        with_executor!(options.device, options.cpu_executor, exec => {
            Self::from_repo(&exec, &repo, options.dtype)
        })
    }

    /// Loads an opened folder on an executor.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn from_repo<E: Executor>(
        exec: &E,
        repo: &Repo,
        dtype: Option<WeightType>,
    ) -> Result<Arc<Self>> {
        if repo.config.model_type == ModelType::Tts {
            return Err(Error::Config {
                file: repo.folder.join("config.json").display().to_string(),
                field: "model_type".into(),
                value: "\"tts\"".into(),
                reason: "a text-to-speech model hears nothing; load it as a language model".into(),
            });
        }
        let tokenizer = Tokenizer::load(&repo.tokenizer_path()?)?;
        let config = repo.config.clone();
        let mimi_options = MimiOptions {
            num_codebooks: config.codec_codebooks(),
            parts: if config.num_generated == 0 { MimiParts::Encoder } else { MimiParts::Both },
            ..MimiOptions::default()
        };
        let mimi = Mimi::load(exec, &repo.mimi_path()?, &repo.mimi_config, &mimi_options)?;
        let lm_options = LmOptions {
            dtype,
            end_acts_as_padding: config.model_type == ModelType::Hibiki,
            lora: repo.lora_path()?,
        };
        let lm = LanguageModel::load(exec, &repo.moshi_path()?, &config, &lm_options)?;
        let info = ModelInfo {
            model_type: config.model_type,
            sample_rate_hz: repo.mimi_config.sample_rate_hz,
            frame_samples: repo.mimi_config.frame_samples,
            frame_rate_hz: repo.mimi_config.frame_rate_hz(),
            latency_frames: config.max_delay(),
            dtype: lm.dtype(),
            device: exec.device(),
            executor: exec.name(),
        };
        log::info!(
            "loaded {} ({}, weights {:?}) on {}",
            repo.folder.display(),
            config.model_type.name(),
            info.dtype,
            info.executor
        );
        let conditions = default_conditions(&config);
        let engine = Box::new(SpeechEngine::new(exec.clone(), mimi, lm)?);
        Ok(Arc::new(Self { engine, tokenizer, config, info, conditions }))
    }

    /// Facts.
    pub fn info(&self) -> &ModelInfo {
        &self.info
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

    /// True for text tokens that are never shown.
    pub(crate) fn is_silent_text(&self, token: i64) -> bool {
        let silent = [self.config.text_padding_id, self.config.text_end_padding_id];
        usize::try_from(token).map_or(true, |token| silent.contains(&token))
    }
}
