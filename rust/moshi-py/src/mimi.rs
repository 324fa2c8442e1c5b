//! `Mimi`, the codec.

use std::path::PathBuf;
use std::sync::{Arc, MutexGuard};

use moshi_core::Result;
use moshi_core::checkpoint::CodecFiles;
use moshi_core::exec::Cpu;
use moshi_core::mimi::{DecoderState, EncoderState};
use numpy::{PyArray2, PyArrayDyn};
use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::batch::Batch;
use crate::mimi_stream::{MimiStream, State};
use crate::session::check_distinct;
use crate::{array, errors, hub, logging, options, runtime};

pub(crate) type Codec = moshi_core::mimi::Mimi<Cpu>;

/// Mimi, the streaming audio codec: 24 kHz audio to 12.5 frames of tokens per second and back.
///
/// Whole recordings go through ``encode`` and ``decode``; ``stream`` gives an object that takes
/// one frame of 80 ms at a time. It runs on the CPU.
#[pyclass(frozen, module = "moshi_rs")]
pub(crate) struct Mimi {
    codec: Arc<Codec>,
}

#[pymethods]
impl Mimi {
    /// Loads a codec.
    ///
    /// Args:
    ///     path: A safetensors file of weights, a model folder whose config names it, a folder
    ///         with a codec alone, or "owner/name" of either on the Hugging Face hub. The config
    ///         is ``mimi_config.json`` (or Hugging Face's ``config.json``) beside the weights,
    ///         else that of the public Mimi. None is the codec of the model in the box.
    ///     num_codebooks: Codebooks to use, 1 to those stored. Codes of the first ones do not
    ///         depend on how many are used.
    ///     mode: "exact": f32 weights. "fast": weights, keys and values in bf16, which halves
    ///         what a frame reads; codebooks stay in f32, and few codes differ.
    ///     window: Which past the streaming calls attend to: "moshi" is the rule of the
    ///         original's streaming, "exact" that of its offline mode, a number is a window of
    ///         that many positions (25 per second) everywhere.
    ///     threads: Threads per call, at least 1. None measures when the model is loaded how many
    ///         help, at most as many as the process may use, and gives way to other programs.
    ///         Results do not depend on it.
    ///     parts: "both", or only the "encoder" or the "decoder".
    ///     device: "auto" or "cpu", which are the same here.
    ///
    /// Returns:
    ///     The codec.
    ///
    /// Raises:
    ///     ConfigError: An option or a field of the config that this version does not accept.
    ///     InputError: ``num_codebooks`` or ``window`` out of range.
    ///     CheckpointNotFoundError: A missing file.
    ///     CheckpointError: Weights that are damaged or do not fit the config, or a hub that
    ///         cannot be reached or refuses access.
    ///     DeviceError: Another device than the CPU.
    #[staticmethod]
    #[pyo3(signature = (
        path=None, *, num_codebooks=None, mode="exact", window=None, threads=None, parts="both",
        device="cpu"
    ), text_signature = "(path=None, *, num_codebooks=8, mode='exact', window='moshi', threads=None, parts='both', device='cpu')")]
    #[expect(clippy::too_many_arguments, reason = "one per option of the Python API")]
    fn load(
        py: Python<'_>,
        path: Option<PathBuf>,
        num_codebooks: Option<&Bound<'_, PyAny>>,
        mode: &str,
        window: Option<&Bound<'_, PyAny>>,
        threads: Option<&Bound<'_, PyAny>>,
        parts: &str,
        device: &str,
    ) -> PyResult<Self> {
        logging::install();
        options::cpu_only(device)?;
        let default_codebooks = 8usize.into_pyobject(py)?.into_any();
        let default_window = PyString::new(py, "moshi").into_any();
        let options = options::mimi(
            num_codebooks.unwrap_or(&default_codebooks),
            mode,
            window.unwrap_or(&default_window),
            parts,
        )?;
        let threads = options::threads(threads)?;
        let codec = hub::enter(py, None, |hub| {
            let CodecFiles { weights, config } = moshi_box::open_codec(path.as_deref(), hub)?;
            Codec::load(&Cpu::new(threads)?, weights, &config, &options)
        })?;
        Ok(Self { codec: Arc::new(codec) })
    }

    /// Encodes whole recordings; a last frame that is not full is padded with silence.
    ///
    /// Args:
    ///     pcm: Samples at ``sample_rate``: ``[samples]`` or ``[batch, 1, samples]``; float32 in
    ///         [-1, 1], or float64, or int16 at full scale.
    ///
    /// Returns:
    ///     Codes, uint32: ``[num_codebooks, frames]`` or ``[batch, num_codebooks, frames]``.
    ///
    /// Raises:
    ///     InputError: Another shape, or samples that are not finite.
    ///     TypeError: Not an array, or an array of another dtype.
    ///     SessionError: The encoder is not loaded.
    fn encode<'py>(
        &self,
        py: Python<'py>,
        pcm: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyArrayDyn<u32>>> {
        let batch = Batch::of_signals(array::samples("pcm", pcm)?)?;
        let rows = self.codec.num_codebooks();
        let codes = runtime::enter(py, || {
            batch.map(|pcm| Ok(array::transposed(&self.codec.encode(pcm)?, rows)))
        })?;
        batch.columns(py, codes, rows)
    }

    /// Decodes whole recordings.
    ///
    /// Args:
    ///     codes: Integers, ``[codebooks, frames]`` or ``[batch, codebooks, frames]``, with 1 to
    ///         ``num_codebooks`` codebooks.
    ///
    /// Returns:
    ///     Samples, float32: ``[frames * frame_size]`` or ``[batch, 1, frames * frame_size]``.
    ///
    /// Raises:
    ///     InputError: Another shape, or a code out of range.
    ///     TypeError: Not an array of integers.
    ///     SessionError: The decoder is not loaded.
    fn decode<'py>(
        &self,
        py: Python<'py>,
        codes: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
        let (batch, frames) = Batch::of_columns("codes", array::codes("codes", codes)?)?;
        let pcm = runtime::enter(py, || {
            batch.map(|codes| self.codec.decode(&array::transposed(codes, frames), frames))
        })?;
        batch.signals(py, pcm)
    }

    /// Latents of whole recordings.
    ///
    /// Args:
    ///     pcm: Samples as for ``encode``.
    ///     quantize: Return the latents that the decoder would see after quantisation; needs
    ///         both halves of the codec.
    ///
    /// Returns:
    ///     float32 ``[dim, frames]`` or ``[batch, dim, frames]``.
    ///
    /// Raises:
    ///     InputError: Another shape, or samples that are not finite.
    ///     TypeError: Not an array, or an array of another dtype.
    ///     SessionError: A half of the codec is not loaded.
    #[pyo3(signature = (pcm, *, quantize=false))]
    fn encode_to_latent<'py>(
        &self,
        py: Python<'py>,
        pcm: &Bound<'py, PyAny>,
        quantize: bool,
    ) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
        let batch = Batch::of_signals(array::samples("pcm", pcm)?)?;
        let dim = self.codec.config().dimension();
        let latents = runtime::enter(py, || {
            batch.map(|pcm| {
                let latents = if quantize {
                    let codes = self.codec.encode(pcm)?;
                    self.codec.dequantise(&codes, codes.len() / self.codec.num_codebooks())?
                } else {
                    self.codec.encode_to_latent(pcm)?
                };
                Ok(array::transposed(&latents, dim))
            })
        })?;
        batch.columns(py, latents, dim)
    }

    /// Latents of codes: what the decoder sees.
    ///
    /// Args:
    ///     codes: Codes as for ``decode``.
    ///
    /// Returns:
    ///     float32 ``[dim, frames]`` or ``[batch, dim, frames]``.
    ///
    /// Raises:
    ///     InputError: Another shape, or a code out of range.
    ///     TypeError: Not an array of integers.
    ///     SessionError: The decoder is not loaded.
    fn decode_latent<'py>(
        &self,
        py: Python<'py>,
        codes: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
        let (batch, frames) = Batch::of_columns("codes", array::codes("codes", codes)?)?;
        let dim = self.codec.config().dimension();
        let latents = runtime::enter(py, || {
            batch.map(|codes| {
                let codes = array::transposed(codes, frames);
                Ok(array::transposed(&self.codec.dequantise(&codes, frames)?, dim))
            })
        })?;
        batch.columns(py, latents, dim)
    }

    /// Decodes latents of whole recordings.
    ///
    /// Args:
    ///     latent: float32 or float64, ``[dim, frames]`` or ``[batch, dim, frames]``.
    ///
    /// Returns:
    ///     Samples, float32: ``[frames * frame_size]`` or ``[batch, 1, frames * frame_size]``.
    ///
    /// Raises:
    ///     InputError: Another shape, or values that are not finite.
    ///     TypeError: Not an array of floats.
    ///     SessionError: The decoder is not loaded.
    fn decode_from_latent<'py>(
        &self,
        py: Python<'py>,
        latent: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
        let latent = array::floats("latent", latent)?;
        let dim = self.codec.config().dimension();
        if latent.shape.iter().nth_back(1).is_some_and(|&rows| rows != dim) {
            let reason = format!("shape {:?} is not [..., {dim}, frames]", latent.shape);
            return Err(errors::input("latent", reason));
        }
        let (batch, frames) = Batch::of_columns("latent", latent)?;
        let pcm = runtime::enter(py, || {
            batch.map(|latent| self.codec.decode_latent(&array::transposed(latent, frames)))
        })?;
        batch.signals(py, pcm)
    }

    /// Opens a stream of single frames.
    ///
    /// Returns:
    ///     The stream, at its beginning.
    fn stream(&self, py: Python<'_>) -> PyResult<MimiStream> {
        runtime::enter(py, || MimiStream::new(&self.codec))
    }

    /// Continues a stream from its snapshot.
    ///
    /// Args:
    ///     blob: Bytes from ``MimiStream.snapshot`` of the same codec, loaded with the same
    ///         options.
    ///
    /// Returns:
    ///     A new stream that goes on where the other one was.
    ///
    /// Raises:
    ///     InputError: Not an intact snapshot of this codec.
    fn restore(&self, py: Python<'_>, blob: &[u8]) -> PyResult<MimiStream> {
        runtime::enter(py, || MimiStream::restore(&self.codec, blob))
    }

    /// Encodes one frame of each of several streams as one batch.
    ///
    /// Streams that are not passed stay as they are: pass the streams that have a frame.
    ///
    /// Args:
    ///     streams: Different streams of this codec.
    ///     frames: One frame per stream: a sequence of arrays ``[frame_size]``, or an array
    ///         ``[len(streams), frame_size]``.
    ///
    /// Returns:
    ///     Codes, uint32 ``[len(streams), num_codebooks]``.
    ///
    /// Raises:
    ///     InputError: Unequal numbers, or a bad frame; no stream changes then.
    ///     SessionError: A stream is busy, given twice or of another codec, or the encoder is not
    ///         loaded.
    fn encode_step_batch<'py>(
        &self,
        py: Python<'py>,
        streams: Vec<Py<MimiStream>>,
        frames: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyArray2<u32>>> {
        let frames = array::signals("frames", frames)?;
        let (count, width) = (streams.len(), self.codec.config().frame_samples);
        if frames.len() != count {
            let reason = format!("{} frames for {count} streams", frames.len());
            return Err(errors::input("frames", reason));
        }
        if let Some(bad) = frames.iter().find(|frame| frame.len() != width) {
            let reason = format!("{} samples; a frame has exactly {width}", bad.len());
            return Err(errors::input("frames", reason));
        }
        let codes = runtime::enter(py, || {
            let mut guards = self.lock_all(&streams)?;
            let mut states: Vec<&mut EncoderState<Cpu>> =
                guards.iter_mut().map(|guard| guard.encoder()).collect::<Result<_>>()?;
            self.codec.encode_step(&mut states, &frames.concat())
        })?;
        array::matrix(py, codes, count, self.codec.num_codebooks())
    }

    /// Decodes one frame of each of several streams as one batch.
    ///
    /// Streams that are not passed stay as they are: pass the streams that have a frame.
    ///
    /// Args:
    ///     streams: Different streams of this codec.
    ///     codes: Integers, ``[len(streams), codebooks]``, with 1 to ``num_codebooks`` codebooks.
    ///
    /// Returns:
    ///     Samples, float32 ``[len(streams), frame_size]``.
    ///
    /// Raises:
    ///     InputError: Another shape, or a code out of range; no stream changes then.
    ///     SessionError: A stream is busy, given twice or of another codec, or the decoder is not
    ///         loaded.
    fn decode_step_batch<'py>(
        &self,
        py: Python<'py>,
        streams: Vec<Py<MimiStream>>,
        codes: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let codes = array::codes("codes", codes)?;
        let [rows, _] = codes.dims("codes", "[streams, codebooks]")?;
        if rows != streams.len() {
            let reason = format!("{rows} rows for {} streams", streams.len());
            return Err(errors::input("codes", reason));
        }
        let pcm = runtime::enter(py, || {
            let mut guards = self.lock_all(&streams)?;
            let mut states: Vec<&mut DecoderState<Cpu>> =
                guards.iter_mut().map(|guard| guard.decoder()).collect::<Result<_>>()?;
            self.codec.decode_step(&mut states, &codes.data)
        })?;
        array::matrix(py, pcm, rows, self.codec.config().frame_samples)
    }

    /// Samples per second: an int.
    #[getter]
    fn sample_rate(&self) -> usize {
        self.codec.config().sample_rate_hz
    }

    /// Code frames per second: a float.
    #[getter]
    fn frame_rate(&self) -> f64 {
        self.codec.config().frame_rate_hz()
    }

    /// Samples of a frame: an int.
    #[getter]
    fn frame_size(&self) -> usize {
        self.codec.config().frame_samples
    }

    /// Codebooks in use: an int.
    #[getter]
    fn num_codebooks(&self) -> usize {
        self.codec.num_codebooks()
    }

    /// Codebooks stored: an int.
    #[getter]
    fn total_codebooks(&self) -> usize {
        self.codec.config().total_codebooks
    }

    /// Entries of a codebook: codes are below this int.
    #[getter]
    fn cardinality(&self) -> usize {
        self.codec.config().codebook_size
    }

    fn __repr__(&self) -> String {
        format!(
            "Mimi(num_codebooks={}, total_codebooks={}, cardinality={}, sample_rate={})",
            self.num_codebooks(),
            self.total_codebooks(),
            self.cardinality(),
            self.sample_rate()
        )
    }
}

impl Mimi {
    fn lock_all<'a>(&self, streams: &'a [Py<MimiStream>]) -> Result<Vec<MutexGuard<'a, State>>> {
        check_distinct("stream", streams)?;
        streams.iter().map(|stream| stream.get().lock_for(&self.codec)).collect()
    }
}
