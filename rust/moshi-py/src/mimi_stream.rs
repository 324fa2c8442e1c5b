//! `MimiStream`: one stream of frames through the codec, either way.

use std::sync::{Arc, MutexGuard};

use moshi_core::exec::Cpu;
use moshi_core::mimi::{DecoderState, EncoderState};
use moshi_core::snapshot::{Reader, Writer};
use moshi_core::{Error, Result};
use numpy::PyArray1;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::array;
use crate::mimi::Codec;
use crate::runtime::{self, Exclusive};

/// One stream through a codec: frames of 80 ms to codes, codes to frames.
///
/// Made by ``Mimi.stream`` and ``Mimi.restore``. Encoding and decoding remember their own pasts
/// and are independent of each other. A second call at the same time raises ``SessionError``.
#[pyclass(frozen, module = "moshi_rs")]
pub(crate) struct MimiStream {
    codec: Arc<Codec>,
    state: Exclusive<State>,
}

/// The halves that are loaded.
pub(crate) struct State {
    encoder: Option<EncoderState<Cpu>>,
    decoder: Option<DecoderState<Cpu>>,
}

impl State {
    fn new(codec: &Codec) -> Result<Self> {
        Ok(Self {
            encoder: codec.has_encoder().then(|| codec.encoder_state()).transpose()?,
            decoder: codec.has_decoder().then(|| codec.decoder_state()).transpose()?,
        })
    }

    pub(crate) fn encoder(&mut self) -> Result<&mut EncoderState<Cpu>> {
        self.encoder.as_mut().ok_or_else(|| missing("encoder"))
    }

    pub(crate) fn decoder(&mut self) -> Result<&mut DecoderState<Cpu>> {
        self.decoder.as_mut().ok_or_else(|| missing("decoder"))
    }
}

impl MimiStream {
    pub(crate) fn new(codec: &Arc<Codec>) -> Result<Self> {
        Ok(Self::with(codec, State::new(codec)?))
    }

    pub(crate) fn restore(codec: &Arc<Codec>, blob: &[u8]) -> Result<Self> {
        let mut reader = Reader::open(blob, &codec.fingerprint())?;
        let mut state = State::new(codec)?;
        let State { encoder, decoder } = &mut state;
        if [reader.flag()?, reader.flag()?] != [encoder.is_some(), decoder.is_some()] {
            let reason = "was taken from a codec with other parts loaded".into();
            return Err(Error::Snapshot { reason });
        }
        if let Some(encoder) = encoder {
            encoder.read(&mut reader)?;
        }
        if let Some(decoder) = decoder {
            decoder.read(&mut reader)?;
        }
        reader.finish()?;
        Ok(Self::with(codec, state))
    }

    /// The state, if this is a stream of `codec`.
    pub(crate) fn lock_for(&self, codec: &Arc<Codec>) -> Result<MutexGuard<'_, State>> {
        if !Arc::ptr_eq(&self.codec, codec) {
            let reason = "a stream belongs to another loaded codec".into();
            return Err(Error::Session { reason });
        }
        self.state.lock()
    }

    fn with(codec: &Arc<Codec>, state: State) -> Self {
        Self { codec: Arc::clone(codec), state: Exclusive::new("stream", state) }
    }
}

#[pymethods]
impl MimiStream {
    /// Encodes one frame.
    ///
    /// Args:
    ///     frame: Samples at the codec's rate, ``[frame_size]``: float32 in [-1, 1], or float64,
    ///         or int16 at full scale.
    ///
    /// Returns:
    ///     Codes, uint32 ``[num_codebooks]``.
    ///
    /// Raises:
    ///     InputError: A wrong number of samples, or samples that are not finite. The stream is
    ///         unchanged then.
    ///     TypeError: Not an array, or an array of another dtype.
    ///     SessionError: The stream is busy, or the encoder is not loaded.
    fn encode_step<'py>(
        &self,
        py: Python<'py>,
        frame: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyArray1<u32>>> {
        let frame = array::signal("frame", frame)?;
        let codes = runtime::enter(py, || {
            self.codec.encode_step(&mut [self.state.lock()?.encoder()?], &frame)
        })?;
        Ok(array::vector(py, codes))
    }

    /// Decodes one frame.
    ///
    /// Args:
    ///     codes: Integers, ``[codebooks]``, with 1 to ``num_codebooks`` codebooks.
    ///
    /// Returns:
    ///     Samples, float32 ``[frame_size]``.
    ///
    /// Raises:
    ///     InputError: Another shape, or a code out of range. The stream is unchanged then.
    ///     TypeError: Not an array of integers.
    ///     SessionError: The stream is busy, or the decoder is not loaded.
    fn decode_step<'py>(
        &self,
        py: Python<'py>,
        codes: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let codes = array::codes("codes", codes)?;
        codes.dims::<1>("codes", "[codebooks]")?;
        let pcm = runtime::enter(py, || {
            self.codec.decode_step(&mut [self.state.lock()?.decoder()?], &codes.data)
        })?;
        Ok(array::vector(py, pcm))
    }

    /// Forgets the past: equals a new stream.
    ///
    /// Raises:
    ///     SessionError: The stream is busy.
    fn reset(&self, py: Python<'_>) -> PyResult<()> {
        runtime::enter(py, || {
            let mut state = self.state.lock_for_reset()?;
            let State { encoder, decoder } = &mut *state;
            encoder.as_mut().map_or(Ok(()), EncoderState::reset)?;
            decoder.as_mut().map_or(Ok(()), DecoderState::reset)
        })
    }

    /// An independent copy that continues from here.
    ///
    /// Returns:
    ///     The copy.
    ///
    /// Raises:
    ///     SessionError: The stream is busy.
    fn fork(&self, py: Python<'_>) -> PyResult<Self> {
        runtime::enter(py, || {
            let state = self.state.lock()?;
            let copy = State {
                encoder: state.encoder.as_ref().map(EncoderState::fork).transpose()?,
                decoder: state.decoder.as_ref().map(DecoderState::fork).transpose()?,
            };
            Ok(Self::with(&self.codec, copy))
        })
    }

    /// The whole state as bytes.
    ///
    /// Returns:
    ///     Bytes for ``Mimi.restore`` of the same codec, loaded with the same options.
    ///
    /// Raises:
    ///     SessionError: The stream is busy.
    fn snapshot<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let blob = runtime::enter(py, || {
            let state = self.state.lock()?;
            let mut writer = Writer::default();
            writer.flag(state.encoder.is_some());
            writer.flag(state.decoder.is_some());
            if let Some(encoder) = &state.encoder {
                encoder.write(&mut writer)?;
            }
            if let Some(decoder) = &state.decoder {
                decoder.write(&mut writer)?;
            }
            Ok(writer.seal(&self.codec.fingerprint()))
        })?;
        Ok(PyBytes::new(py, &blob))
    }

    fn __repr__(&self) -> String {
        // Only what needs no lock: a representation must not get in the way of a step.
        format!("MimiStream(num_codebooks={})", self.codec.num_codebooks())
    }
}

fn missing(part: &str) -> Error {
    Error::Session { reason: format!("this codec was loaded without its {part}") }
}
