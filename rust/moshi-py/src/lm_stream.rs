//! `LmStream` and `LmStep`: steps of the language model.

use std::sync::Arc;

use moshi_core::Result;
use moshi_core::exec::Cpu;
use moshi_core::lm::{LmOutput, LmSlot, LmState, Sampling, StepHooks};
use moshi_core::snapshot::{Reader, Writer};
use numpy::{PyArray1, PyArray2};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::language_model::Weights;
use crate::runtime::{self, Exclusive};
use crate::{array, options};

/// Settings that stay for the life of a stream.
#[derive(Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) sampling: Sampling,
    pub(crate) seed: u64,
}

/// One stream of a language model.
///
/// Made by ``LanguageModel.stream`` and ``LanguageModel.restore``. A second call at the same time
/// raises ``SessionError``.
#[pyclass(frozen, module = "moshi_rs")]
pub(crate) struct LmStream {
    weights: Arc<Weights>,
    settings: Settings,
    state: Exclusive<LmState<Cpu>>,
}

/// What one step of a language model gives.
#[pyclass(frozen, get_all, module = "moshi_rs")]
pub(crate) struct LmStep {
    /// The newest complete frame, int64 ``[1 + num_generated]``: text, then own codebooks. None
    /// while the delays of the streams fill.
    tokens: Option<Py<PyArray1<i64>>>,
    /// Text logits after guidance, float32 ``[text_cardinality]``.
    logits: Py<PyArray1<f32>>,
    /// Probabilities of every extra head, float32 ``[heads, classes]``.
    heads: Py<PyArray2<f32>>,
    /// Text token drawn or forced in this step: an int.
    text_token: i64,
    /// Audio tokens drawn or forced in this step, int64 ``[num_generated]``; they enter
    /// ``tokens`` after their delays.
    audio_tokens: Py<PyArray1<i64>>,
}

/// Tokens that a caller puts in place of sampled ones.
struct Forced {
    text: Option<i64>,
    audio: Option<Vec<i64>>,
}

impl StepHooks for Forced {
    fn text_token(&mut self, sampled: i64) -> i64 {
        self.text.unwrap_or(sampled)
    }

    fn replace_audio(&mut self) -> Option<Vec<i64>> {
        self.audio.take()
    }
}

impl LmStream {
    pub(crate) fn new(weights: &Arc<Weights>, settings: Settings, state: LmState<Cpu>) -> Self {
        Self { weights: Arc::clone(weights), settings, state: Exclusive::new("stream", state) }
    }

    pub(crate) fn restore(weights: &Arc<Weights>, blob: &[u8]) -> Result<Self> {
        let mut reader = Reader::open(blob, &weights.fingerprint())?;
        let seed = reader.u64()?;
        let sampling = Sampling::read(&mut reader)?;
        let state = weights.read_state(&mut reader)?;
        reader.finish()?;
        Ok(Self::new(weights, Settings { sampling, seed }, state))
    }
}

#[pymethods]
impl LmStream {
    /// Runs one step, one frame of every stream.
    ///
    /// Args:
    ///     tokens: Tokens of the user's codebooks of this frame: integers, ``[num_user_codebooks]``
    ///         (more are ignored, so a row of codes fits); -1 is "nothing".
    ///     text: Text token to use in place of the sampled one.
    ///     audio: Audio tokens to use in place of running the depth transformer, ``[num_generated]``.
    ///
    /// Returns:
    ///     The tokens, logits and heads of the step.
    ///
    /// Raises:
    ///     InputError: Tokens missing or out of range; the stream is unchanged then.
    ///     TypeError: Not integers.
    ///     SessionError: The stream is busy.
    #[pyo3(signature = (tokens, *, text=None, audio=None))]
    fn step(
        &self,
        py: Python<'_>,
        tokens: &Bound<'_, PyAny>,
        text: Option<&Bound<'_, PyAny>>,
        audio: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<LmStep> {
        let text = text.map(|text| options::whole::<i64>("text", text)).transpose()?;
        let user_tokens = array::tokens("tokens", tokens)?;
        let audio = audio.map(|audio| array::tokens("audio", audio)).transpose()?;
        let output = runtime::enter(py, || {
            let mut state = self.state.lock()?;
            let slot = LmSlot {
                state: &mut state,
                user_tokens: &user_tokens,
                sampling: &self.settings.sampling,
                seed: self.settings.seed,
                hooks: &mut Forced { text, audio },
                trace: false,
            };
            let mut outputs = self.weights.step(&mut [slot])?;
            Ok(outputs.pop().expect("one output per slot"))
        })?;
        let LmOutput { text_token, audio_tokens, row, text_logits, extra_heads, trace: _ } = output;
        let config = self.weights.config();
        let classes = if extra_heads.is_empty() { 0 } else { config.extra_head_dim };
        let heads = array::matrix(py, extra_heads.concat(), extra_heads.len(), classes)?;
        Ok(LmStep {
            tokens: row.map(|row| array::vector(py, row).unbind()),
            logits: array::vector(py, text_logits).unbind(),
            heads: heads.unbind(),
            text_token,
            audio_tokens: array::vector(py, audio_tokens).unbind(),
        })
    }

    /// Forgets the past: equals a new stream with the same conditions, settings and seed.
    ///
    /// Raises:
    ///     SessionError: The stream is busy.
    fn reset(&self, py: Python<'_>) -> PyResult<()> {
        runtime::enter(py, || {
            self.state.lock_for_reset()?.reset();
            Ok(())
        })
    }

    /// An independent copy that continues from here with the same seed.
    ///
    /// Returns:
    ///     The copy.
    ///
    /// Raises:
    ///     SessionError: The stream is busy.
    fn fork(&self, py: Python<'_>) -> PyResult<Self> {
        runtime::enter(py, || {
            let copy = self.weights.fork(&*self.state.lock()?)?;
            Ok(Self::new(&self.weights, self.settings, copy))
        })
    }

    /// The whole state as bytes, with conditions, settings and seed.
    ///
    /// Returns:
    ///     Bytes for ``LanguageModel.restore`` of the same language model.
    ///
    /// Raises:
    ///     SessionError: The stream is busy.
    fn snapshot<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let blob = runtime::enter(py, || {
            let state = self.state.lock()?;
            let mut writer = Writer::default();
            writer.u64(self.settings.seed);
            self.settings.sampling.write(&mut writer);
            self.weights.write_state(&state, &mut writer)?;
            Ok(writer.seal(&self.weights.fingerprint()))
        })?;
        Ok(PyBytes::new(py, &blob))
    }

    /// Seed of the draws, an int below 2**64: given, or drawn at the start.
    #[getter]
    fn seed(&self) -> u64 {
        self.settings.seed
    }

    fn __repr__(&self) -> String {
        // Only what needs no lock: a representation must not get in the way of a step.
        format!("LmStream(seed={})", self.settings.seed)
    }
}

#[pymethods]
impl LmStep {
    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let tokens = match &self.tokens {
            Some(tokens) => tokens.bind(py).call_method0("tolist")?.repr()?.to_string(),
            None => "None".into(),
        };
        Ok(format!("LmStep(tokens={tokens}, text_token={})", self.text_token))
    }
}
