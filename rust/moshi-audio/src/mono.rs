//! A file as mono samples at a rate of choice: [`AudioReader`] and [`Resampler`] in one.
//!
//! This is what feeds the model: it streams, so a recording of hours needs no more memory than one
//! of seconds. [`read_mono`] is the convenience for short files and tests.

use std::path::Path;

use crate::resample::scaled_len;
use crate::{AudioError, AudioReader, Resampler};

/// Reads an audio file block by block as mono samples at a target rate.
#[derive(Debug)]
pub struct MonoReader {
    reader: AudioReader,
    resampler: Resampler,
    target_rate_hz: u32,
    finished: bool,
}

impl MonoReader {
    /// Opens a file to be read as mono at `target_rate_hz`.
    ///
    /// # Errors
    /// The errors of [`AudioReader::open`], and [`AudioError::SampleRate`] for a target rate out of
    /// range.
    pub fn open(path: &Path, target_rate_hz: u32) -> Result<Self, AudioError> {
        let reader = AudioReader::open(path)?;
        let resampler = Resampler::new(reader.sample_rate_hz(), target_rate_hz)?;
        Ok(Self { reader, resampler, target_rate_hz, finished: false })
    }

    /// The length the container states, in samples at the target rate.
    ///
    /// `None` where it states none; see [`AudioReader::duration_frames`] for how exact it is.
    pub fn total_samples(&self) -> Option<u64> {
        let frames = self.reader.duration_frames()?;
        Some(scaled_len(frames, self.reader.sample_rate_hz(), self.target_rate_hz))
    }

    /// The sample rate of the file in Hz.
    pub fn source_rate_hz(&self) -> u32 {
        self.reader.sample_rate_hz()
    }

    /// Corrupt packets, or runs of them, dropped so far.
    pub fn skipped_packets(&self) -> u64 {
        self.reader.skipped_packets()
    }

    /// Appends the next samples to `out`; false when there are no more.
    ///
    /// A call may append nothing and still return true.
    ///
    /// # Errors
    /// The errors of [`AudioReader::read_block`].
    pub fn read(&mut self, out: &mut Vec<f32>) -> Result<bool, AudioError> {
        if self.finished {
            return Ok(false);
        }
        if let Some(block) = self.reader.read_block()? {
            self.resampler.process(block, out);
        } else {
            self.resampler.finish(out);
            self.finished = true;
        }
        Ok(true)
    }
}

/// Reads a whole file as mono samples at `target_rate_hz` into memory.
///
/// # Errors
/// The errors of [`MonoReader::open`] and [`MonoReader::read`].
pub fn read_mono(path: &Path, target_rate_hz: u32) -> Result<Vec<f32>, AudioError> {
    let mut reader = MonoReader::open(path, target_rate_hz)?;
    let mut samples = Vec::new();
    while reader.read(&mut samples)? {}
    Ok(samples)
}
