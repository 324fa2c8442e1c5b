//! Audio files in and out.
//!
//! Reading: [`AudioReader`] streams any wav, aiff, flac, mp3, ogg (Vorbis, Opus), webm or m4a file
//! as mono `f32` blocks at the rate of the file; [`MonoReader`] adds a [`Resampler`] and delivers
//! the rate the model needs. Nothing here loads a whole file except [`read_mono`], which says so.
//!
//! Writing: [`WavWriter`] makes 16-bit PCM files that appear under their name only when complete.
//!
//! Containers and codecs come from `symphonia`, Opus from `ropus`, resampling from `rubato` and wav
//! output from `hound`; this crate joins them, trims what encoders pad, and types the errors.
#![forbid(unsafe_code)]

mod error;
mod media;
mod mono;
mod opus;
mod reader;
mod resample;
mod wav;

pub use error::AudioError;
pub use mono::{MonoReader, read_mono};
pub use reader::AudioReader;
pub use resample::{MAX_RATE_HZ, MIN_RATE_HZ, Resampler};
pub use wav::WavWriter;
