//! Streaming mono resampler over the FFT resampler of `rubato`.
//!
//! `rubato` works in blocks of a fixed size and delays its output by half a filter; this wrapper
//! collects input to whole blocks, drops the delay and pads the end. So the output does not depend
//! on how the input was cut, sample `n` of it sits at the time `n / to_hz` of the input, and its
//! length is the exact product, rounded.
//!
//! The filter passes up to about 0.95 of the lower Nyquist frequency; latency is two blocks of at
//! least 1024 samples at the lower of the two rates.

use rubato::audioadapter_buffers::direct::SequentialSlice;
use rubato::{Fft, FixedSync, Resampler as _, WindowFunction};

use crate::AudioError;

/// The lowest sample rate in Hz that is accepted.
pub const MIN_RATE_HZ: u32 = 1_000;
/// The highest sample rate in Hz that is accepted.
pub const MAX_RATE_HZ: u32 = 768_000;

/// Shortest filter at the lower rate, in samples: sets how close the pass band gets to Nyquist.
const MIN_BLOCK: usize = 1024;
/// As [`MIN_BLOCK`], where waiting costs more than the last kilohertz: 16 ms at 8 kHz.
const MIN_LIVE_BLOCK: usize = 128;

/// Converts a mono stream from one sample rate to another.
///
/// Feed chunks of any size to [`process`](Self::process) and end with [`finish`](Self::finish).
/// The output is the same bit for bit however the input is cut into chunks.
pub struct Resampler {
    from_hz: u32,
    to_hz: u32,
    /// `None` where the rates are equal.
    fft: Option<Fft<f32>>,
    pending: Vec<f32>,
    block_in: usize,
    block: Vec<f32>,
    /// Output samples still to drop to undo the delay of the filter.
    delay: usize,
    input_len: u64,
    output_len: u64,
}

impl std::fmt::Debug for Resampler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resampler")
            .field("from_hz", &self.from_hz)
            .field("to_hz", &self.to_hz)
            .field("input_len", &self.input_len)
            .field("output_len", &self.output_len)
            .finish_non_exhaustive()
    }
}

impl Resampler {
    /// A resampler from `from_hz` to `to_hz`.
    ///
    /// # Errors
    /// [`AudioError::SampleRate`] for a rate outside [`MIN_RATE_HZ`] to [`MAX_RATE_HZ`].
    pub fn new(from_hz: u32, to_hz: u32) -> Result<Self, AudioError> {
        Self::with_block(from_hz, to_hz, MIN_BLOCK)
    }

    /// As [`new`](Self::new), for a live stream: an eighth of the latency, a gentler filter.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn live(from_hz: u32, to_hz: u32) -> Result<Self, AudioError> {
        Self::with_block(from_hz, to_hz, MIN_LIVE_BLOCK)
    }

    fn with_block(from_hz: u32, to_hz: u32, min_block: usize) -> Result<Self, AudioError> {
        for rate_hz in [from_hz, to_hz] {
            if !(MIN_RATE_HZ..=MAX_RATE_HZ).contains(&rate_hz) {
                return Err(AudioError::SampleRate { rate_hz });
            }
        }
        let mut resampler = Self {
            from_hz,
            to_hz,
            fft: None,
            pending: Vec::new(),
            block_in: 0,
            block: Vec::new(),
            delay: 0,
            input_len: 0,
            output_len: 0,
        };
        if from_hz != to_hz {
            let gcd = gcd(from_hz, to_hz);
            let (unit_in, unit_out) = ((from_hz / gcd) as usize, (to_hz / gcd) as usize);
            // An even number of units makes the delay, half a block, a whole number of samples.
            let units = min_block.div_ceil(unit_in.min(unit_out)).next_multiple_of(2);
            let fft = Fft::new_custom(
                from_hz as usize,
                to_hz as usize,
                units * unit_in,
                1,
                1,
                WindowFunction::BlackmanHarris2,
                FixedSync::Both,
            )
            .map_err(|_| AudioError::SampleRate { rate_hz: from_hz })?;
            resampler.block_in = fft.input_frames_next();
            resampler.block = vec![0.0; fft.output_frames_max()];
            resampler.delay = fft.output_delay();
            resampler.fft = Some(fft);
        }
        Ok(resampler)
    }

    /// Takes the next samples of the input and appends to `output` what is ready.
    ///
    /// Any chunk size is fine, also none at all; `output` may stay as it is until a whole block has
    /// come together.
    pub fn process(&mut self, input: &[f32], output: &mut Vec<f32>) {
        self.input_len += input.len() as u64;
        let Some(mut fft) = self.fft.take() else {
            output.extend_from_slice(input);
            return;
        };
        let mut rest = input;
        if !self.pending.is_empty() {
            let take = rest.len().min(self.block_in - self.pending.len());
            self.pending.extend_from_slice(&rest[..take]);
            rest = &rest[take..];
            if self.pending.len() == self.block_in {
                let pending = std::mem::take(&mut self.pending);
                self.run_block(&mut fft, &pending, output);
                self.pending = pending;
                self.pending.clear();
            }
        }
        let blocks = rest.chunks_exact(self.block_in);
        let tail = blocks.remainder();
        for block in blocks {
            self.run_block(&mut fft, block, output);
        }
        self.pending.extend_from_slice(tail);
        self.fft = Some(fft);
    }

    /// Appends the rest of the output and makes the resampler ready for a new stream.
    ///
    /// With this the output holds `round(input_len * to_hz / from_hz)` samples in all.
    pub fn finish(&mut self, output: &mut Vec<f32>) {
        if let Some(mut fft) = self.fft.take() {
            let total = scaled_len(self.input_len, self.from_hz, self.to_hz);
            let mut block = std::mem::take(&mut self.pending);
            while self.output_len < total {
                block.resize(self.block_in, 0.0);
                self.run_block(&mut fft, &block, output);
                block.clear();
            }
            output.truncate(output.len() - (self.output_len - total) as usize);
            fft.reset();
            block.clear();
            self.pending = block;
            self.delay = fft.output_delay();
            self.fft = Some(fft);
        }
        self.input_len = 0;
        self.output_len = 0;
    }

    /// Resamples exactly one block and appends what is past the delay.
    fn run_block(&mut self, fft: &mut Fft<f32>, input: &[f32], output: &mut Vec<f32>) {
        let size = self.block.len();
        let written = SequentialSlice::new(input, 1, input.len())
            .ok()
            .zip(SequentialSlice::new_mut(&mut self.block, 1, size).ok())
            .and_then(|(from, mut to)| fft.process_into_buffer(&from, &mut to, None).ok())
            .map(|(_, written)| written)
            .expect("both buffers have the sizes the resampler asked for");
        let skip = self.delay.min(written);
        self.delay -= skip;
        output.extend_from_slice(&self.block[skip..written]);
        self.output_len += (written - skip) as u64;
    }
}

/// `len` samples at `from_hz` as a number of samples at `to_hz`, rounded to nearest.
pub(crate) fn scaled_len(len: u64, from_hz: u32, to_hz: u32) -> u64 {
    let (len, from, to) = (u128::from(len), u128::from(from_hz), u128::from(to_hz));
    u64::try_from((2 * len * to + from) / (2 * from)).unwrap_or(u64::MAX)
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}
