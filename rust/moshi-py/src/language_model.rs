//! `LanguageModel`: the language model on its own, token by token.

use std::path::PathBuf;
use std::sync::Arc;

use moshi_core::exec::Cpu;
use moshi_core::lm::{Guidance, LmOptions, LmStreamOptions, Sampling};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::lm_stream::{LmStream, Settings};
use crate::options::{self, SamplingArgs};
use crate::{errors, hub, logging, runtime};

pub(crate) type Weights = moshi_core::lm::LanguageModel<Cpu>;

/// The language model of a checkpoint, without its codec.
///
/// It reads and writes tokens; ``stream`` opens a sequence of steps. It runs on the CPU.
#[pyclass(frozen, module = "moshi_rs")]
pub(crate) struct LanguageModel {
    weights: Arc<Weights>,
}

#[pymethods]
impl LanguageModel {
    /// Loads the language model of a model.
    ///
    /// Args:
    ///     path: The folder, the ``config.json`` or the weights in it, or "owner/name" of a
    ///         repository on the Hugging Face hub. None is the model in the box.
    ///     device: "auto" or "cpu", which are the same here.
    ///     dtype: Storage of the weights: "auto" keeps the checkpoint's type, "f32", "bf16",
    ///         "q8", "q4", as for ``StreamingModel.load``.
    ///     kv_dtype: Storage of keys and values: "auto", "f32", "bf16", "q8", as for
    ///         ``StreamingModel.load``.
    ///
    /// Returns:
    ///     The language model. Unlike ``StreamingModel``, it leaves all embeddings as stored: it
    ///     does not make an early end of sentence of a translation model act as padding.
    ///
    /// Raises:
    ///     ConfigError: An option or a field of the config that this version does not accept.
    ///     CheckpointNotFoundError: A missing file.
    ///     CheckpointError: Weights that are damaged or do not fit the config, or a hub that
    ///         cannot be reached or refuses access.
    ///     DeviceError: Another device than the CPU.
    #[staticmethod]
    #[pyo3(signature = (path=None, *, device="cpu", dtype="auto", kv_dtype="auto"))]
    fn load(
        py: Python<'_>,
        path: Option<PathBuf>,
        device: &str,
        dtype: &str,
        kv_dtype: &str,
    ) -> PyResult<Self> {
        logging::install();
        options::cpu_only(device)?;
        let (dtype, kv_dtype) = (options::dtype(dtype)?, options::kv_dtype(kv_dtype)?);
        let weights = hub::enter(py, None, |hub| {
            let repo = moshi_box::open_repo(path.as_deref(), hub)?;
            let lora = repo.lora_file()?;
            let options = LmOptions { dtype, kv_dtype, lora, ..LmOptions::default() };
            Weights::load(&Cpu::new(None)?, repo.moshi_file()?, &repo.config, &options)
        })?;
        Ok(Self { weights: Arc::new(weights) })
    }

    /// Opens a stream.
    ///
    /// Args:
    ///     conditions: Values of the model's conditions by name: a str, None (no value), a float
    ///         array ``[positions, width]``, or a tuple of such an array and a mask
    ///         ``[positions]``. All conditions that the model uses must be given.
    ///     guidance: Coefficient of classifier-free guidance; None or 1 is without.
    ///     null_conditions: Conditions of the branch that guidance pushes away from; None drops
    ///         all values.
    ///     no_text: That branch sees no text, and text logits are those of the other branch.
    ///     masked_until: That branch sees no tokens at all before this frame.
    ///     seed: Seed of the draws, 0 to 2**64 - 1; None draws one, which ``LmStream.seed`` shows.
    ///     temperature: Temperature of audio tokens; 0 takes the most probable one.
    ///     text_temperature: Temperature of text tokens.
    ///     top_k: Audio tokens are drawn from this many most probable ones; 0 is all.
    ///     top_k_text: As ``top_k``, for text tokens.
    ///
    /// None, where nothing else is said, takes what the checkpoint recommends.
    ///
    /// Returns:
    ///     The stream, at its beginning.
    ///
    /// Raises:
    ///     InputError: A setting out of range, a condition that the model does not take or that
    ///         is missing, or an option of guidance without guidance.
    #[pyo3(signature = (
        *, conditions=None, guidance=None, null_conditions=None, no_text=false, masked_until=None,
        seed=None, temperature=None, text_temperature=None, top_k=None, top_k_text=None
    ))]
    #[expect(clippy::too_many_arguments, reason = "one per option of the Python API")]
    fn stream(
        &self,
        py: Python<'_>,
        conditions: Option<&Bound<'_, PyDict>>,
        guidance: Option<f64>,
        null_conditions: Option<&Bound<'_, PyDict>>,
        no_text: bool,
        masked_until: Option<&Bound<'_, PyAny>>,
        seed: Option<&Bound<'_, PyAny>>,
        temperature: Option<f64>,
        text_temperature: Option<f64>,
        top_k: Option<&Bound<'_, PyAny>>,
        top_k_text: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<LmStream> {
        // NaN passes, for the engine to refuse.
        let without = |coefficient: f64| (coefficient - 1.0).abs() <= f64::EPSILON;
        let guided = guidance.filter(|&coefficient| !without(coefficient));
        let for_guidance = null_conditions.is_some() || no_text || masked_until.is_some();
        if guidance.is_none() && for_guidance {
            let reason = "null_conditions, no_text and masked_until need it";
            return Err(errors::input("guidance", reason));
        }
        let guidance = Guidance {
            coefficient: guided.unwrap_or(1.0),
            null_conditions: null_conditions.map(options::conditions).transpose()?,
            no_text,
            masked_until: masked_until.map(|m| options::whole("masked_until", m)).transpose()?,
        };
        let options = LmStreamOptions {
            conditions: conditions.map(options::conditions).transpose()?.unwrap_or_default(),
            guidance: guided.map(|_| guidance),
        };
        let defaults = Sampling::from(&self.weights.config().generation);
        let sampling = SamplingArgs { temperature, text_temperature, top_k, top_k_text };
        let settings = Settings {
            sampling: sampling.over(defaults)?,
            seed: options::seed(seed)?.unwrap_or_else(moshi_core::session::random_seed),
        };
        runtime::enter(py, || {
            settings.sampling.check()?;
            Ok(LmStream::new(&self.weights, settings, self.weights.new_state(&options)?))
        })
    }

    /// Continues a stream from its snapshot.
    ///
    /// Args:
    ///     blob: Bytes from ``LmStream.snapshot`` of the same language model, loaded with the
    ///         same options.
    ///
    /// Returns:
    ///     A new stream that goes on where the other one was.
    ///
    /// Raises:
    ///     InputError: Not an intact snapshot of this language model.
    fn restore(&self, py: Python<'_>, blob: &[u8]) -> PyResult<LmStream> {
        runtime::enter(py, || LmStream::restore(&self.weights, blob))
    }

    /// Audio streams, generated and given: an int.
    #[getter]
    fn num_codebooks(&self) -> usize {
        self.weights.config().num_codebooks
    }

    /// Audio streams that the model generates: an int.
    #[getter]
    fn num_generated(&self) -> usize {
        self.weights.config().num_generated
    }

    /// Audio streams that the caller gives at every step: an int.
    #[getter]
    fn num_user_codebooks(&self) -> usize {
        self.weights.config().num_user_codebooks()
    }

    /// Entries of an audio codebook: an int.
    #[getter]
    fn cardinality(&self) -> usize {
        self.weights.config().card
    }

    /// Text tokens that the model can predict: an int.
    #[getter]
    fn text_cardinality(&self) -> usize {
        self.weights.config().text_card_out
    }

    /// Delay of every stream in frames, text first: a list of ints.
    #[getter]
    fn delays(&self) -> Vec<usize> {
        self.weights.config().delays.clone()
    }

    /// Storage of most weights: "f32", "bf16", "q8" or "q4".
    #[getter]
    fn dtype(&self) -> &'static str {
        self.weights.dtype().name()
    }

    /// Storage of keys and values: "f32", "bf16" or "q8".
    #[getter]
    fn kv_dtype(&self) -> &'static str {
        self.weights.kv_dtype().name()
    }

    fn __repr__(&self) -> String {
        let config = self.weights.config();
        format!(
            "LanguageModel(model_type='{}', num_codebooks={}, num_generated={}, dtype='{}')",
            config.model_type.name(),
            config.num_codebooks,
            config.num_generated,
            self.dtype()
        )
    }
}
