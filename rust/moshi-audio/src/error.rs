//! The one error type of the crate.
//!
//! Every variant carries what a caller needs to act on it (the path, the position, the name of the
//! codec), and every message says what to do about it. Causes from the operating system are part
//! of the message rather than of the `source` chain, so printing an error once tells everything.

use std::io;
use std::path::PathBuf;

use crate::{MAX_RATE_HZ, MIN_RATE_HZ};

/// Why an audio file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum AudioError {
    /// The file could not be opened for reading.
    #[error("cannot open {path}: {cause}; check the path and its permissions")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        cause: io::Error,
    },
    /// Reading from the storage failed, or the path is not a regular file.
    #[error("cannot read {path} past frame {frame}: {cause}; check the storage and try again")]
    Read {
        /// The file.
        path: PathBuf,
        /// Frames decoded before the failure, at the rate of the file.
        frame: u64,
        /// What the operating system said.
        cause: io::Error,
    },
    /// No supported container was recognised.
    #[error(
        "{path} is not an audio file of a known format; \
         convert it to wav, flac, mp3, ogg, webm or m4a"
    )]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
    /// The container is known, the codec inside is not.
    #[error("{path} holds {codec} audio, which has no decoder here; convert it to wav or flac")]
    UnsupportedCodec {
        /// The file.
        path: PathBuf,
        /// The name of the codec, or its identifier in hexadecimal.
        codec: String,
    },
    /// The container or codec is known, but the file uses a feature that is not supported.
    #[error("{path} uses an unsupported feature ({feature}); convert it to wav or flac")]
    UnsupportedFeature {
        /// The file.
        path: PathBuf,
        /// The feature, in the words of the decoder.
        feature: String,
    },
    /// The data is malformed or ends too early.
    #[error("{path} is corrupt after frame {frame}: {detail}; get a fresh copy of the file")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Frames decoded before the damage, at the rate of the file.
        frame: u64,
        /// What is wrong, in the words of the decoder.
        detail: String,
    },
    /// The file has no audio track, or the track holds nothing that tells its rate.
    #[error("{path} holds no audio; pass a file with an audio track")]
    NoAudio {
        /// The file.
        path: PathBuf,
    },
    /// A sample is NaN, infinite or absurdly large, in a file being read or in data to be written.
    #[error(
        "{path} has a sample that is nan, infinite or far out of range \
         at frame {frame}, channel {channel}; repair or re-export the audio"
    )]
    NonFinite {
        /// The file.
        path: PathBuf,
        /// The frame of the sample, counted from the start of the file at its rate.
        frame: u64,
        /// The channel of the sample, from 0.
        channel: usize,
    },
    /// A sample rate is outside of what the resampler takes.
    #[error(
        "sample rate {rate_hz} Hz is out of range; \
         use a rate between {MIN_RATE_HZ} and {MAX_RATE_HZ} Hz"
    )]
    SampleRate {
        /// The rate in Hz.
        rate_hz: u32,
    },
    /// A wav file with this number of channels cannot be written.
    #[error("cannot write {path} with {channels} channels; use 1 to {max}")]
    Channels {
        /// The file.
        path: PathBuf,
        /// The number asked for.
        channels: usize,
        /// The largest number possible.
        max: usize,
    },
    /// Interleaved samples to write do not fill whole frames.
    #[error("cannot write {samples} samples to {path}: not a multiple of {channels} channels")]
    PartialFrame {
        /// The file.
        path: PathBuf,
        /// Length of the data passed, in samples.
        samples: usize,
        /// Channels of the file.
        channels: usize,
    },
    /// The data would pass the size a wav file can state.
    #[error("{path} would pass the wav limit of {limit_bytes} data bytes; split the recording")]
    WavTooLong {
        /// The file.
        path: PathBuf,
        /// The most data bytes the file can hold.
        limit_bytes: u64,
    },
    /// Creating, writing or renaming the output failed.
    #[error("cannot write {path}: {cause}; check free space and permissions")]
    Write {
        /// The file as the caller named it.
        path: PathBuf,
        /// What the operating system said.
        cause: io::Error,
    },
}
