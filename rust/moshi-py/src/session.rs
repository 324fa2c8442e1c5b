//! `Session` and `step_batch`.

use moshi_core::Error;
use numpy::PyArray1;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::array;
use crate::runtime::{self, Exclusive};

/// Audio and text of a frame.
pub(crate) type Output<'py> = (Bound<'py, PyArray1<f32>>, String);

/// One conversation with a model.
///
/// Made by ``StreamingModel.new_session`` and ``StreamingModel.restore``. Sessions of one model
/// are independent and may run in parallel threads; a second call into the same session at the
/// same time raises ``SessionError``, it never waits. Sessions are not picklable: ``snapshot``
/// gives bytes.
#[pyclass(frozen, module = "moshi_rs")]
pub(crate) struct Session {
    inner: Exclusive<moshi_core::Session>,
    seed: u64,
}

impl Session {
    pub(crate) fn new(session: moshi_core::Session) -> Self {
        Self { seed: session.seed(), inner: Exclusive::new("session", session) }
    }
}

#[pymethods]
impl Session {
    /// Steps one frame: 80 ms in, 80 ms out.
    ///
    /// Args:
    ///     frame: Samples, mono, at the model's rate, ``[frame_size]``: float32 in [-1, 1], or
    ///         float64, or int16 at full scale.
    ///
    /// Returns:
    ///     Own audio, float32 ``[frame_size]`` (silence while the delays of the streams fill),
    ///     and new text, often empty.
    ///
    /// Raises:
    ///     InputError: A wrong number of samples, or samples that are not finite. The session is
    ///         unchanged then.
    ///     TypeError: Not an array, or an array of another dtype.
    ///     SessionError: The session is busy, pushed samples wait for the rest of their frame, or
    ///         an earlier step failed half-way.
    fn step<'py>(&self, py: Python<'py>, frame: &Bound<'py, PyAny>) -> PyResult<Output<'py>> {
        let frame = array::signal("frame", frame)?;
        let output = runtime::enter(py, || self.inner.lock()?.step(&frame))?;
        Ok((array::vector(py, output.pcm), output.text))
    }

    /// Takes any number of samples and steps every frame that they complete.
    ///
    /// Results wait for ``pull``; samples of an incomplete frame wait for the next ``push``.
    ///
    /// Args:
    ///     samples: Samples as for ``step``, ``[any]``.
    ///
    /// Returns:
    ///     The number of frames stepped.
    ///
    /// Raises:
    ///     InputError: Samples that are not finite, or not one-dimensional.
    ///     TypeError: As for ``step``.
    ///     CapacityError: More than 750 results would wait; nothing is taken then.
    ///     SessionError: The session is busy, or an earlier step failed half-way.
    fn push(&self, py: Python<'_>, samples: &Bound<'_, PyAny>) -> PyResult<usize> {
        let samples = array::signal("samples", samples)?;
        runtime::enter(py, || self.inner.lock()?.push(&samples))
    }

    /// Takes the oldest result of ``push``.
    ///
    /// Returns:
    ///     Own audio, float32 ``[frame_size]``, and new text; None when no result waits.
    ///
    /// Raises:
    ///     SessionError: The session is busy.
    fn pull<'py>(&self, py: Python<'py>) -> PyResult<Option<Output<'py>>> {
        let output = runtime::enter(py, || Ok(self.inner.lock()?.pull()))?;
        Ok(output.map(|(pcm, text)| (array::vector(py, pcm), text)))
    }

    /// Forgets the conversation: equals a new session with the same settings and seed.
    ///
    /// Raises:
    ///     SessionError: The session is busy.
    fn reset(&self, py: Python<'_>) -> PyResult<()> {
        runtime::enter(py, || self.inner.lock_for_reset()?.reset())
    }

    /// The whole state as bytes, with settings, seed, pushed samples and waiting results.
    ///
    /// Returns:
    ///     Bytes for ``StreamingModel.restore`` of the same model with the same load options.
    ///
    /// Raises:
    ///     SessionError: The session is busy, or an earlier step failed half-way.
    fn snapshot<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let blob = runtime::enter(py, || self.inner.lock()?.snapshot())?;
        Ok(PyBytes::new(py, &blob))
    }

    /// An independent copy that continues from here with the same seed.
    ///
    /// Returns:
    ///     A new session; fed the same frames, it gives the same results as this one.
    ///
    /// Raises:
    ///     SessionError: The session is busy, or an earlier step failed half-way.
    fn fork(&self, py: Python<'_>) -> PyResult<Self> {
        let copy = runtime::enter(py, || {
            let session = self.inner.lock()?;
            moshi_core::Session::restore(session.model(), &session.snapshot()?)
        })?;
        Ok(Self::new(copy))
    }

    /// Seed of the draws, an int below 2**64: given, or drawn at the start.
    #[getter]
    fn seed(&self) -> u64 {
        self.seed
    }

    fn __repr__(&self) -> String {
        // Only what needs no lock: a representation must not get in the way of a step.
        format!("Session(seed={})", self.seed)
    }
}

/// Steps several sessions of one model as one batch, one frame each.
///
/// Weights are read once for all sessions, and the GIL is released once. Results equal those of
/// stepping each session alone.
///
/// Args:
///     sessions: Different sessions of one loaded model.
///     frames: One frame per session, as for ``Session.step``: a sequence of arrays, or an array
///         ``[len(sessions), frame_size]``.
///
/// Returns:
///     Audio and text of every session, in order, as from ``Session.step``.
///
/// Raises:
///     InputError: Unequal numbers, or a bad frame; no session changes then.
///     SessionError: A session is busy or given twice, or the sessions are of different models.
#[pyfunction]
pub(crate) fn step_batch<'py>(
    py: Python<'py>,
    sessions: Vec<Py<Session>>,
    frames: &Bound<'py, PyAny>,
) -> PyResult<Vec<Output<'py>>> {
    let frames = array::signals("frames", frames)?;
    let outputs = runtime::enter(py, || {
        check_distinct("session", &sessions)?;
        let mut guards = sessions
            .iter()
            .map(|session| session.get().inner.lock())
            .collect::<moshi_core::Result<Vec<_>>>()?;
        let mut sessions: Vec<&mut moshi_core::Session> =
            guards.iter_mut().map(|guard| &mut **guard).collect();
        let frames: Vec<&[f32]> = frames.iter().map(Vec::as_slice).collect();
        moshi_core::step_batch(&mut sessions, &frames)
    })?;
    let to_python = |output: moshi_core::StepOutput| (array::vector(py, output.pcm), output.text);
    Ok(outputs.into_iter().map(to_python).collect())
}

/// Refuses an object that occurs twice in a batch.
pub(crate) fn check_distinct<T>(what: &str, objects: &[Py<T>]) -> moshi_core::Result<()> {
    let mut addresses: Vec<usize> = objects.iter().map(|object| object.as_ptr() as usize).collect();
    addresses.sort_unstable();
    if addresses.windows(2).any(|pair| pair[0] == pair[1]) {
        let reason = format!("a {what} is given twice in one batch");
        return Err(Error::Session { reason });
    }
    Ok(())
}
