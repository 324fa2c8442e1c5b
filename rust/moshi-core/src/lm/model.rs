//! The language model as a whole: its weights, from a checkpoint.

use std::path::PathBuf;

use super::conditioning::ConditionProvider;
use super::depth::Depth;
use super::embedding::Embedding;
use super::files::LmFiles;
use super::load::Loader;
use super::precision::{Footprint, WeightType};
use super::step::StepMemory;
use crate::checkpoint::{Catalog, Expected, Fingerprint, PackedFile, SourceFile, layout};
use crate::config::{GenerationConfig, LmConfig, ModelFiles, TEXT_END_TOKEN};
use crate::error::Result;
use crate::exec::{Executor, KeyStorage, Norm, Reuse, Rotary};
use crate::nn::{Transformer, rms_norm_f32};
use crate::scratch::Spare;

/// How to load a language model.
#[derive(Clone, Debug, Default)]
pub struct LmOptions {
    /// Storage of weights; `None` keeps bf16 and blocks of few bits as the checkpoint has them and
    /// widens others to f32.
    pub dtype: Option<WeightType>,
    /// Storage of keys and values; `None` takes bf16, and f32 beside weights in f32, where the
    /// executor can choose.
    pub kv_dtype: Option<KeyStorage>,
    /// Copies the text embedding of padding over that of token 2 (end of sentence), so that an
    /// early end acts as padding: what the original does for Hibiki.
    pub end_acts_as_padding: bool,
    /// Adapter to fuse.
    pub lora: Option<SourceFile>,
    /// Folder in which weights are kept as the executor packs them, for the next load; `None`
    /// keeps none.
    pub packed_cache: Option<PathBuf>,
}

/// The language model: immutable weights, shared by all streams.
pub struct LanguageModel<E: Executor> {
    pub(super) exec: E,
    pub(super) config: LmConfig,
    pub(super) temporal: Transformer<E>,
    pub(super) provider: ConditionProvider<E>,
    pub(super) rotary: Rotary,
    pub(super) audio_embeddings: Vec<Embedding<E>>,
    pub(super) text_embedding: Embedding<E>,
    pub(super) out_norm: Norm<E>,
    pub(super) text_head: E::Weight,
    pub(super) extra_heads: Vec<E::Weight>,
    pub(super) depth: Option<Depth<E>>,
    dtype: WeightType,
    kv_dtype: KeyStorage,
    fingerprint: Fingerprint,
    pub(super) weights: Reuse,
    pub(super) memory: Spare<StepMemory<E>>,
}

impl<E: Executor> LanguageModel<E> {
    /// Loads the weights of a file, whose tensors must be exactly those of the config.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound), [`Error::Checkpoint`](crate::Error::Checkpoint)
    /// or [`Error::Tensors`](crate::Error::Tensors) for the file,
    /// [`Error::Device`](crate::Error::Device) for an executor that lacks the storage of keys.
    pub fn load(
        exec: &E,
        file: impl Into<SourceFile>,
        config: &LmConfig,
        options: &LmOptions,
    ) -> Result<Self> {
        let files = LmFiles::open(file, config, options.lora.as_ref())?;
        let model = Self::from_catalog(exec, &files.catalog(config)?, config, options)?;
        model.tune()?;
        Ok(model)
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
        let Footprint { dtype, storages, bytes } =
            Footprint::new(exec, catalog, &expected, options.dtype);
        let kv_dtype = exec.key_storage(options.kv_dtype, dtype.keys())?;
        let shape = &config.temporal.shape;
        let replaced =
            options.end_acts_as_padding.then_some((config.text_padding_id, TEXT_END_TOKEN));
        // File names and sampling defaults change no result of a given session.
        let identity = LmConfig {
            files: ModelFiles::default(),
            generation: GenerationConfig::default(),
            ..config.clone()
        };
        let settings = format!("{identity:?} {storages:?} {replaced:?}");
        let fingerprint = Fingerprint::of(&catalog.files(), &[&settings]);
        let packed = packed_file(exec, catalog, &expected, fingerprint, options)?;
        let loader = Loader { exec, catalog, dtype: options.dtype, packed: packed.as_ref() };
        let embedding = |name: &str, replaced| Embedding::load(&loader, name, replaced);
        log::info!(
            "language model {}: weights {}, keys and values {} on {}",
            catalog.path().display(),
            dtype.name(),
            kv_dtype.name(),
            exec.name()
        );
        let model = Self {
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
            kv_dtype,
            fingerprint,
            config: config.clone(),
            weights: Reuse { bytes, rows_per_stream: 1 },
            memory: Spare::default(),
        };
        if let Some(packed) = packed {
            packed.finish();
        }
        Ok(model)
    }

    /// Lets the executor measure how to run this model best, see [`Executor::tune`].
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device).
    pub fn tune(&self) -> Result<()> {
        self.exec.tune(&self.step_weights())
    }

    /// The matrices that a step reads most of.
    pub(crate) fn step_weights(&self) -> Vec<&E::Weight> {
        self.temporal.weights().collect()
    }

    /// The config.
    pub fn config(&self) -> &LmConfig {
        &self.config
    }

    /// Storage of most weights.
    pub fn dtype(&self) -> WeightType {
        self.dtype
    }

    /// Storage of keys and values of the temporal transformer, those of a conditioning sequence
    /// included.
    pub fn kv_dtype(&self) -> KeyStorage {
        self.kv_dtype
    }

    /// Identity of weights and settings. The storage of keys and values is none of them: a stream
    /// moves to a model that keeps them otherwise.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Largest token of every stream.
    pub(super) fn token_limits(&self) -> Vec<i64> {
        let mut limits = vec![self.config.card as i64; self.config.num_streams()];
        limits[0] = self.text_embedding.max_token();
        limits
    }
}

/// Where the packed weights of this model are or will be kept, if they are to be.
fn packed_file<E: Executor>(
    exec: &E,
    catalog: &Catalog<'_>,
    expected: &[Expected],
    fingerprint: Fingerprint,
    options: &LmOptions,
) -> Result<Option<PackedFile>> {
    let (Some(folder), Some(form)) = (&options.packed_cache, exec.packed_form()) else {
        return Ok(None);
    };
    // The fingerprint knows the ends of tensors only, and another version may round otherwise.
    let changed: Vec<String> = catalog.files().iter().map(|file| file.last_change()).collect();
    let form = format!("{form} {} {changed:?}", env!("CARGO_PKG_VERSION"));
    let names = expected.iter().map(|tensor| tensor.name.as_str());
    PackedFile::open(folder, fingerprint, &form, names).map(Some)
}
