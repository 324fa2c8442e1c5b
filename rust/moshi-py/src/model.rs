//! `StreamingModel`.

use std::path::PathBuf;
use std::sync::Arc;

use moshi_core::lm::Guidance;
use moshi_core::{CpuExecutor, LoadOptions, Model, NoObserver, SessionOptions};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::options::{self, SamplingArgs};
use crate::runtime::{self, Exclusive};
use crate::session::{Output, Session};
use crate::{array, hub, logging};

/// A speech-to-speech or transcription model, loaded once and shared by any number of sessions.
///
/// ``step`` runs a default session, which opens at the first call; ``new_session`` opens more.
#[pyclass(frozen, module = "moshi_rs")]
pub(crate) struct StreamingModel {
    model: Arc<Model>,
    seed: Option<u64>,
    default_session: Exclusive<Option<moshi_core::Session>>,
}

impl StreamingModel {
    /// `seed` is that of the default session.
    pub(crate) fn new(model: Arc<Model>, seed: Option<u64>) -> Self {
        Self { model, seed, default_session: Exclusive::new("model's default session", None) }
    }
}

#[pymethods]
impl StreamingModel {
    /// Loads a model.
    ///
    /// Args:
    ///     path_or_repo: Folder laid out like a public repository: ``config.json`` and the files
    ///         that it names; a file in one; or "owner/name" of a repository on the Hugging Face
    ///         hub, whose files are downloaded once, verified, and kept in the cache of
    ///         ``huggingface_hub``. None is the model in the box, which is inside the package.
    ///     device: "auto", "cpu", "cuda" or "metal". "auto" is the best device of this build; when
    ///         that is not in this machine, it logs a warning and takes the CPU.
    ///     dtype: Storage of the language model's weights: "auto" keeps the checkpoint's type,
    ///         "f32", "bf16", "q8" (8 bits and a scale for every 32 weights), "q4" (4 bits;
    ///         heads keep 8, embeddings 16).
    ///     kv_dtype: Storage of keys and values, what a session remembers: "f32", "bf16", or "q8"
    ///         (8 bits and a scale for every position and head). "auto" is bf16, f32 beside
    ///         weights in f32. GPUs keep "f32", whatever the weights.
    ///     seed: Seed of the default session; None draws one.
    ///     threads: Threads per step, at least 1. None measures when the model is loaded how many
    ///         help, at most as many as the process may use, and gives way to other programs.
    ///         Results do not depend on it.
    ///     revision: Branch, tag or commit of a repository on the hub; None is "main".
    ///     codec: Storage of the codec's weights: "exact" keeps f32; "fast" keeps bf16, of which a
    ///         frame reads half as much, and few codes differ.
    ///     packed_cache: Folder in which packed weights are kept, as large as the model in memory,
    ///         so that the next load is faster; None keeps none.
    ///
    /// Returns:
    ///     The model.
    ///
    /// Raises:
    ///     ConfigError: An option or a field of the config that this version does not accept.
    ///     CheckpointNotFoundError: The folder, the repository, the revision or a file is missing.
    ///     CheckpointError: Weights that are damaged or do not fit the config (all disagreements
    ///         are listed), a hub that cannot be reached or refuses access, or a folder for packed
    ///         weights that cannot be made.
    ///     DeviceError: The device is not in this build or not in this machine, or does not keep
    ///         keys and values in ``kv_dtype``.
    #[staticmethod]
    #[pyo3(signature = (
        path_or_repo=None, *, device="auto", dtype="auto", kv_dtype="auto", seed=None,
        threads=None, revision=None, codec="exact", packed_cache=None
    ))]
    #[expect(clippy::too_many_arguments, reason = "one per option of the Python API")]
    fn load(
        py: Python<'_>,
        path_or_repo: Option<PathBuf>,
        device: &str,
        dtype: &str,
        kv_dtype: &str,
        seed: Option<&Bound<'_, PyAny>>,
        threads: Option<&Bound<'_, PyAny>>,
        revision: Option<&str>,
        codec: &str,
        packed_cache: Option<PathBuf>,
    ) -> PyResult<Self> {
        logging::install();
        let threads = options::threads(threads)?;
        let options = LoadOptions {
            device: options::device(device)?,
            cpu_executor: CpuExecutor::Cpu { threads },
            dtype: options::dtype(dtype)?,
            kv_dtype: options::kv_dtype(kv_dtype)?,
            lora: None,
            codec: options::codec_mode("codec", codec)?,
            packed_cache,
        };
        let seed = options::seed(seed)?;
        let model = hub::enter(py, revision, |hub| {
            Model::open(&moshi_box::open_repo(path_or_repo.as_deref(), hub)?, &options, &NoObserver)
        })?;
        Ok(Self::new(model, seed))
    }

    /// Steps one frame of the default session: 80 ms in, 80 ms out.
    ///
    /// The session opens at the first call with the checkpoint's sampling settings and the seed
    /// given to ``load``.
    ///
    /// Args:
    ///     frame: Samples as for ``Session.step``, ``[frame_size]``.
    ///
    /// Returns:
    ///     Own audio, float32 ``[frame_size]``, and new text, often empty.
    ///
    /// Raises:
    ///     InputError: A wrong number of samples, or samples that are not finite.
    ///     TypeError: Not an array, or an array of another dtype.
    ///     SessionError: Another thread is stepping the default session.
    fn step<'py>(&self, py: Python<'py>, frame: &Bound<'py, PyAny>) -> PyResult<Output<'py>> {
        let frame = array::signal("frame", frame)?;
        let output = runtime::enter(py, || {
            let mut session = self.default_session.lock()?;
            let session = match &mut *session {
                Some(session) => session,
                none => {
                    let options = SessionOptions { seed: self.seed, ..SessionOptions::default() };
                    none.insert(moshi_core::Session::new(&self.model, &options)?)
                }
            };
            session.step(&frame)
        })?;
        Ok((array::vector(py, output.pcm), output.text))
    }

    /// Opens an independent session.
    ///
    /// Args:
    ///     seed: Seed of the draws, 0 to 2**64 - 1; None draws one, which ``Session.seed`` shows.
    ///     temperature: Temperature of audio tokens; 0 takes the most probable one.
    ///     text_temperature: Temperature of text tokens.
    ///     top_k: Audio tokens are drawn from this many most probable ones; 0 is all.
    ///     top_k_text: As ``top_k``, for text tokens.
    ///     conditions: Values of the model's conditions by name, over the model's defaults: a
    ///         str, None (no value), a float array ``[positions, width]``, or a tuple of such an
    ///         array and a mask ``[positions]``.
    ///     guidance: Coefficient of classifier-free guidance.
    ///
    /// None, where nothing else is said, takes what the checkpoint recommends.
    ///
    /// Returns:
    ///     The session.
    ///
    /// Raises:
    ///     InputError: A setting out of range, or a condition that the model does not take.
    #[pyo3(signature = (
        *, seed=None, temperature=None, text_temperature=None, top_k=None, top_k_text=None,
        conditions=None, guidance=None
    ))]
    #[expect(clippy::too_many_arguments, reason = "one per option of the Python API")]
    fn new_session(
        &self,
        py: Python<'_>,
        seed: Option<&Bound<'_, PyAny>>,
        temperature: Option<f64>,
        text_temperature: Option<f64>,
        top_k: Option<&Bound<'_, PyAny>>,
        top_k_text: Option<&Bound<'_, PyAny>>,
        conditions: Option<&Bound<'_, PyDict>>,
        guidance: Option<f64>,
    ) -> PyResult<Session> {
        let sampling = SamplingArgs { temperature, text_temperature, top_k, top_k_text };
        let given = conditions.map(options::conditions).transpose()?;
        let options = SessionOptions {
            seed: options::seed(seed)?,
            sampling: Some(sampling.over(self.model.default_sampling())?),
            conditions: given.map(|given| {
                let mut all = self.model.default_conditions().clone();
                all.extend(given);
                all
            }),
            guidance: guidance.map(Guidance::new),
            unprimed: false,
        };
        let session = runtime::enter(py, || moshi_core::Session::new(&self.model, &options))?;
        Ok(Session::new(session))
    }

    /// Continues a session from its snapshot.
    ///
    /// Args:
    ///     blob: Bytes from ``Session.snapshot`` of the same model, loaded with the same options.
    ///
    /// Returns:
    ///     A new session that goes on where the other one was.
    ///
    /// Raises:
    ///     InputError: Not an intact snapshot of this model.
    fn restore(&self, py: Python<'_>, blob: &[u8]) -> PyResult<Session> {
        let session = runtime::enter(py, || moshi_core::Session::restore(&self.model, blob))?;
        Ok(Session::new(session))
    }

    /// Samples of a frame: an int, 1920 for the released models.
    #[getter]
    fn frame_size(&self) -> usize {
        self.model.info().frame_samples
    }

    /// Samples per second, in and out: an int, 24000 for the released models.
    #[getter]
    fn sample_rate(&self) -> usize {
        self.model.info().sample_rate_hz
    }

    /// Frames per second: a float, 12.5 for the released models.
    #[getter]
    fn frame_rate(&self) -> f64 {
        self.model.info().frame_rate_hz
    }

    /// Largest delay of a stream in frames; own audio lags the user's frame by one more.
    #[getter]
    fn latency_frames(&self) -> usize {
        self.model.info().latency_frames
    }

    /// Where the model runs: "cpu", "cuda" or "metal".
    #[getter]
    fn device(&self) -> &'static str {
        self.model.info().device
    }

    /// Facts about the model.
    ///
    /// Returns:
    ///     A dict with ``source`` (the folder or "owner/name", or "<model in the box>"),
    ///     ``model_type``, ``device``, ``executor``, ``dtype``, ``kv_dtype``, ``sample_rate`` (Hz),
    ///     ``frame_size`` (samples), ``frame_rate`` (Hz), ``latency_frames``, ``num_codebooks``
    ///     (audio streams of the language model), ``text_vocabulary`` (tokens), ``conditions``
    ///     (names) and ``sampling`` (a dict of the checkpoint's defaults).
    fn info<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let facts = self.model.info();
        let config = self.model.config();
        let defaults = self.model.default_sampling();
        let sampling = PyDict::new(py);
        sampling.set_item("temperature", defaults.temperature)?;
        sampling.set_item("text_temperature", defaults.text_temperature)?;
        sampling.set_item("top_k", defaults.top_k)?;
        sampling.set_item("top_k_text", defaults.top_k_text)?;
        sampling.set_item("guidance", config.generation.guidance)?;
        let conditions: Vec<&str> = config.conditioners.iter().map(|c| c.name.as_str()).collect();
        let info = PyDict::new(py);
        info.set_item("source", &facts.source)?;
        info.set_item("model_type", facts.model_type.name())?;
        info.set_item("device", facts.device)?;
        info.set_item("executor", &facts.executor)?;
        info.set_item("dtype", facts.dtype.name())?;
        info.set_item("kv_dtype", facts.kv_dtype.name())?;
        info.set_item("sample_rate", facts.sample_rate_hz)?;
        info.set_item("frame_size", facts.frame_samples)?;
        info.set_item("frame_rate", facts.frame_rate_hz)?;
        info.set_item("latency_frames", facts.latency_frames)?;
        info.set_item("num_codebooks", config.num_codebooks)?;
        info.set_item("text_vocabulary", config.text_card_out)?;
        info.set_item("conditions", conditions)?;
        info.set_item("sampling", sampling)?;
        Ok(info)
    }

    fn __repr__(&self) -> String {
        let info = self.model.info();
        format!(
            "StreamingModel({:?}, model_type='{}', device='{}', dtype='{}')",
            info.source,
            info.model_type.name(),
            info.device,
            info.dtype.name()
        )
    }
}
