//! 16-bit PCM wav output over `hound`.
//!
//! Data goes to a hidden temporary file beside the target, which takes the final name only when
//! [`WavWriter::finish`] has flushed everything to the storage: a crash, an error or a dropped
//! writer leaves nothing under that name, and an older file there stays until it is replaced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::AudioError;

/// The sizes in a wav header have 32 bits; this keeps room for the longest header.
const LIMIT_BYTES: u64 = u32::MAX as u64 - 128;
/// As many channels as the header can assign to speakers.
const MAX_CHANNELS: usize = 18;

/// Writes interleaved `f32` samples to a 16-bit PCM wav file.
pub struct WavWriter {
    path: PathBuf,
    /// Before `temporary`, so that a drop closes the file before it is removed.
    inner: hound::WavWriter<BufWriter<File>>,
    temporary: Temporary,
    channels: usize,
    bytes: u64,
    limit_bytes: u64,
}

impl std::fmt::Debug for WavWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WavWriter")
            .field("path", &self.path)
            .field("channels", &self.channels)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl WavWriter {
    /// Starts a file of `channels` channels at `sample_rate_hz`.
    ///
    /// The file appears at `path` only with [`finish`](Self::finish).
    ///
    /// # Errors
    /// [`AudioError::Channels`] for a number of channels out of range, [`AudioError::Write`] if the
    /// temporary file beside `path` cannot be created.
    pub fn create(path: &Path, sample_rate_hz: u32, channels: usize) -> Result<Self, AudioError> {
        if !(1..=MAX_CHANNELS).contains(&channels) {
            return Err(AudioError::Channels {
                path: path.to_path_buf(),
                channels,
                max: MAX_CHANNELS,
            });
        }
        let write_error = |cause| AudioError::Write { path: path.to_path_buf(), cause };
        let (temporary, file) = Temporary::beside(path).map_err(write_error)?;
        let spec = hound::WavSpec {
            channels: channels as u16,
            sample_rate: sample_rate_hz,
            bits_per_sample: 16,
            sample_format: hound::SampleFormat::Int,
        };
        let inner = hound::WavWriter::new(BufWriter::new(file), spec)
            .map_err(|error| write_error(into_io(error)))?;
        Ok(Self {
            path: path.to_path_buf(),
            temporary,
            inner,
            channels,
            bytes: 0,
            limit_bytes: LIMIT_BYTES,
        })
    }

    /// Appends interleaved samples, clamped to -1 to 1 and truncated to 16 bits.
    ///
    /// # Errors
    /// [`AudioError::PartialFrame`] if the length is no multiple of the channels,
    /// [`AudioError::NonFinite`] for a NaN or infinite sample, [`AudioError::WavTooLong`] if the
    /// file would become larger than a wav file can be (in these cases nothing of the slice is
    /// written, and the file can still be finished), [`AudioError::Write`] if the storage fails.
    pub fn write(&mut self, interleaved: &[f32]) -> Result<(), AudioError> {
        if !interleaved.len().is_multiple_of(self.channels) {
            return Err(AudioError::PartialFrame {
                path: self.path.clone(),
                samples: interleaved.len(),
                channels: self.channels,
            });
        }
        if let Some(index) = interleaved.iter().position(|sample| !sample.is_finite()) {
            return Err(AudioError::NonFinite {
                path: self.path.clone(),
                frame: self.bytes / (2 * self.channels as u64) + (index / self.channels) as u64,
                channel: index % self.channels,
            });
        }
        let bytes = self.bytes + 2 * interleaved.len() as u64;
        if bytes > self.limit_bytes {
            let limit_bytes = self.limit_bytes;
            return Err(AudioError::WavTooLong { path: self.path.clone(), limit_bytes });
        }
        self.bytes = bytes;
        for sample in interleaved {
            let value = (sample.clamp(-1.0, 1.0) * 32_767.0) as i16;
            self.inner.write_sample(value).map_err(|error| AudioError::Write {
                path: self.path.clone(),
                cause: into_io(error),
            })?;
        }
        Ok(())
    }

    /// Completes the file and gives it its final name, replacing an older file there.
    ///
    /// # Errors
    /// [`AudioError::Write`] if flushing or renaming fails; the temporary file is removed.
    pub fn finish(self) -> Result<(), AudioError> {
        let Self { path, mut temporary, inner, .. } = self;
        inner
            .finalize()
            .map_err(into_io)
            .and_then(|()| OpenOptions::new().write(true).open(&temporary.path)?.sync_all())
            .and_then(|()| temporary.rename_to(&path))
            .map_err(|cause| AudioError::Write { path, cause })
    }
}

/// A file that is removed on drop unless it was renamed.
struct Temporary {
    path: PathBuf,
    keep: bool,
}

impl Temporary {
    /// Creates a new file with an unused hidden name in the directory of `target`.
    fn beside(target: &Path) -> io::Result<(Self, File)> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let name = target
            .file_name()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a file name"))?;
        if target.is_dir() {
            return Err(io::Error::from(io::ErrorKind::IsADirectory));
        }
        loop {
            let unique = COUNTER.fetch_add(1, Ordering::Relaxed);
            let mut hidden = std::ffi::OsString::from(".");
            hidden.push(name);
            hidden.push(format!(".{}-{unique}.tmp", std::process::id()));
            let path = target.with_file_name(hidden);
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => return Ok((Self { path, keep: false }, file)),
                // Left behind by a killed process that had the same id.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn rename_to(&mut self, target: &Path) -> io::Result<()> {
        fs::rename(&self.path, target)?;
        self.keep = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = fs::remove_file(&self.path)
        {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

fn into_io(error: hound::Error) -> io::Error {
    match error {
        hound::Error::IoError(error) => error,
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_limit_is_an_error_and_keeps_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("long.wav");
        let mut writer = WavWriter::create(&path, 24_000, 2).unwrap();
        writer.limit_bytes = 100;
        writer.write(&[0.5; 48]).unwrap();
        assert!(matches!(
            writer.write(&[0.5; 4]),
            Err(AudioError::WavTooLong { limit_bytes: 100, .. })
        ));
        writer.write(&[0.5; 2]).unwrap();
        writer.finish().unwrap();
        assert_eq!(hound::WavReader::open(&path).unwrap().duration(), 25);
    }

    #[test]
    fn the_size_limit_leaves_room_for_every_header() {
        for channels in [1, 2, MAX_CHANNELS] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("empty.wav");
            WavWriter::create(&path, 24_000, channels).unwrap().finish().unwrap();
            let header = fs::metadata(&path).unwrap().len();
            assert!(u32::try_from(LIMIT_BYTES + header).is_ok(), "{channels}: {header}");
        }
    }
}
