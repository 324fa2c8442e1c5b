//! Streaming decoder: any supported file as mono blocks at its own sample rate.
//!
//! `symphonia` finds the container, splits it into packets and decodes them. Trimming of encoder delay and padding is left to it where
//! it knows (mp3, Vorbis, the end of Ogg Opus).
//!
//! Damage policy: lossy codecs recover at the next packet, so a packet that does not decode is
//! dropped, counted and logged, and a file that is cut off ends there. In lossless and PCM data
//! damage is an error, and so is a file of which no packet decodes. Parsers of other crates may panic on
//! malformed data where overflow checks are on; that ends here as an error, too.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use symphonia::core::audio::Channels;
use symphonia::core::codecs::audio::{AudioDecoder, AudioDecoderOptions};
use symphonia::core::errors::Error as MediaError;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatOptions, FormatReader, TrackType};
use symphonia::core::io::{MediaSourceStream, MediaSourceStreamOptions};
use symphonia::core::meta::MetadataOptions;
use symphonia::core::packet::Packet;

use crate::AudioError;
use crate::media::{
    codec_name, codecs, contain_panics, duration_frames, is_open_ended, is_recoverable, media_error,
};
use crate::resample::{MAX_RATE_HZ, MIN_RATE_HZ};

/// The largest sample taken for audio, where full scale is 1: more can only come from damage, and
/// could overflow in the arithmetic after it.
const MAX_MAGNITUDE: f32 = 1e6;

/// Where a reader is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// `mono` holds the block decoded by `open`, not handed out yet.
    Primed,
    Reading,
    /// At the end, or past an error.
    Finished,
}

/// Reads an audio file block by block, mixed down to mono at the rate of the file.
///
/// Memory use does not depend on the length of the file.
pub struct AudioReader {
    path: PathBuf,
    format: Box<dyn FormatReader>,
    decoder: Box<dyn AudioDecoder>,
    track_id: u32,
    recoverable: bool,
    /// The file was written to a pipe: its header states no length.
    open_ended: bool,
    /// Where the next packet should start, in ticks of the track, if these are samples.
    next_pts: Option<i64>,
    sample_rate_hz: u32,
    channels: usize,
    duration_frames: Option<u64>,
    interleaved: Vec<f32>,
    mono: Vec<f32>,
    state: State,
    frames: u64,
    skipped: u64,
}

impl std::fmt::Debug for AudioReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AudioReader")
            .field("path", &self.path)
            .field("sample_rate_hz", &self.sample_rate_hz)
            .field("channels", &self.channels)
            .field("frames", &self.frames)
            .finish_non_exhaustive()
    }
}

impl AudioReader {
    /// Opens a file, finds its audio track and decodes the first block.
    ///
    /// # Errors
    /// [`AudioError::Open`] or [`AudioError::Read`] if the file is missing, unreadable or a folder,
    /// [`AudioError::UnknownFormat`], [`AudioError::UnsupportedCodec`] or
    /// [`AudioError::UnsupportedFeature`] if it cannot be decoded, [`AudioError::NoAudio`] if there
    /// is no audio track, [`AudioError::SampleRate`] for an absurd rate, and the errors of
    /// [`read_block`](Self::read_block) for the first block.
    pub fn open(path: &Path) -> Result<Self, AudioError> {
        let open_error = |cause| AudioError::Open { path: path.to_path_buf(), cause };
        let file = File::open(path).map_err(open_error)?;
        if file.metadata().map_err(open_error)?.is_dir() {
            return Err(open_error(io::Error::from(io::ErrorKind::IsADirectory)));
        }
        contain_panics(path, 0, || Self::from_file(path, file))
    }

    fn from_file(path: &Path, mut file: File) -> Result<Self, AudioError> {
        let open_ended = is_open_ended(&mut file).map_err(|cause| AudioError::Read {
            path: path.to_path_buf(),
            frame: 0,
            cause,
        })?;
        let mut hint = Hint::new();
        if let Some(extension) = path.extension().and_then(|e| e.to_str()) {
            hint.with_extension(extension);
        }
        let format = symphonia::default::get_probe()
            .probe(
                &hint,
                MediaSourceStream::new(Box::new(file), MediaSourceStreamOptions::default()),
                FormatOptions::default(),
                MetadataOptions::default(),
            )
            .map_err(|error| match error {
                MediaError::Unsupported(_) => {
                    AudioError::UnknownFormat { path: path.to_path_buf() }
                }
                other => media_error(path, 0, other),
            })?;

        let no_audio = || AudioError::NoAudio { path: path.to_path_buf() };
        let track = format.default_track(TrackType::Audio).ok_or_else(no_audio)?;
        let params = track
            .codec_params
            .as_ref()
            .and_then(|params| params.audio())
            .ok_or_else(no_audio)?
            .clone();
        let decoder = codecs()
            .make_audio_decoder(&params, &AudioDecoderOptions::default())
            .map_err(|error| match error {
                MediaError::Unsupported(_)
                    if codecs().get_audio_decoder(params.codec).is_none() =>
                {
                    AudioError::UnsupportedCodec {
                        path: path.to_path_buf(),
                        codec: codec_name(params.codec),
                    }
                }
                other => media_error(path, 0, other),
            })?;
        let mut reader = Self {
            path: path.to_path_buf(),
            track_id: track.id,
            recoverable: is_recoverable(params.codec),
            open_ended,
            next_pts: None,
            sample_rate_hz: params.sample_rate.unwrap_or(0),
            channels: params.channels.as_ref().map_or(0, Channels::count),
            duration_frames: None,
            interleaved: Vec::new(),
            mono: Vec::new(),
            state: State::Reading,
            frames: 0,
            skipped: 0,
            decoder,
            format,
        };
        // Some containers leave rate and channels to the codec: only the first block tells.
        if reader.decode_block()? {
            reader.state = State::Primed;
        }
        if reader.sample_rate_hz == 0 || reader.channels == 0 {
            return Err(no_audio());
        }
        if !(MIN_RATE_HZ..=MAX_RATE_HZ).contains(&reader.sample_rate_hz) {
            return Err(AudioError::SampleRate { rate_hz: reader.sample_rate_hz });
        }
        reader.duration_frames = reader
            .format
            .tracks()
            .iter()
            .find(|track| track.id == reader.track_id && !open_ended)
            .and_then(|track| {
                duration_frames(track, reader.format.media_info(), &params, reader.sample_rate_hz)
            });
        Ok(reader)
    }

    /// The sample rate of the file in Hz.
    pub fn sample_rate_hz(&self) -> u32 {
        self.sample_rate_hz
    }

    /// The number of channels in the file, before the mix to mono.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// The length the container states, in frames at the rate of the file.
    ///
    /// `None` where it states none. Good for a progress bar: a cut-off file delivers less, and some
    /// containers are not exact.
    pub fn duration_frames(&self) -> Option<u64> {
        self.duration_frames
    }

    /// Corrupt packets, or runs of them, dropped so far.
    pub fn skipped_packets(&self) -> u64 {
        self.skipped
    }

    /// The next block as mono samples (the mean of the channels), or `None` at the end.
    ///
    /// Blocks are never empty; their length is up to the codec. After an error the stream is at its
    /// end.
    ///
    /// # Errors
    /// [`AudioError::Corrupt`] for damaged data, [`AudioError::NonFinite`] for a NaN,
    /// infinite or absurdly large sample, [`AudioError::UnsupportedFeature`] if the sample rate changes midway, and
    /// [`AudioError::Read`] if the storage fails.
    pub fn read_block(&mut self) -> Result<Option<&[f32]>, AudioError> {
        let ready = if self.state == State::Primed {
            self.state = State::Reading;
            true
        } else {
            self.decode_block()?
        };
        Ok(ready.then_some(self.mono.as_slice()))
    }

    /// Decodes packets until `mono` holds a new block; false at the end of the stream.
    fn decode_block(&mut self) -> Result<bool, AudioError> {
        if self.state == State::Finished {
            return Ok(false);
        }
        let (path, frame) = (self.path.clone(), self.frames);
        let outcome = contain_panics(&path, frame, || self.try_decode_block());
        if !matches!(outcome, Ok(true)) {
            self.state = State::Finished;
        }
        outcome
    }

    fn try_decode_block(&mut self) -> Result<bool, AudioError> {
        loop {
            let packet = match self.format.next_packet() {
                Ok(Some(packet)) => packet,
                Ok(None) => return self.end_of_stream(),
                Err(MediaError::IoError(cause))
                    if cause.kind() == io::ErrorKind::UnexpectedEof
                        && (self.open_ended || self.recoverable) =>
                {
                    return self.end_of_stream();
                }
                Err(error) => return Err(media_error(&self.path, self.frames, error)),
            };
            if packet.track_id != self.track_id {
                continue;
            }
            self.check_gap(&packet)?;
            let decoded = match self.decoder.decode(&packet) {
                Ok(decoded) => decoded,
                Err(MediaError::DecodeError(detail)) if self.recoverable => {
                    self.skip_packet(detail);
                    continue;
                }
                // The packet is in memory: reading past its end says nothing about the storage.
                Err(MediaError::IoError(_)) if self.recoverable => {
                    self.skip_packet("the packet ends too early");
                    continue;
                }
                Err(MediaError::IoError(cause)) => {
                    return Err(self.corrupt(format!("a packet ends too early ({cause})")));
                }
                Err(error) => return Err(media_error(&self.path, self.frames, error)),
            };
            if decoded.frames() == 0 {
                continue;
            }
            let (rate_hz, channels) = (decoded.spec().rate(), decoded.num_planes());
            decoded.copy_to_vec_interleaved(&mut self.interleaved);
            if self.frames == 0 {
                self.sample_rate_hz = rate_hz;
                self.channels = channels;
            } else if rate_hz != self.sample_rate_hz {
                return Err(AudioError::UnsupportedFeature {
                    path: self.path.clone(),
                    feature: format!("sample rate change to {rate_hz} Hz midway"),
                });
            }
            self.mix_down(channels)?;
            return Ok(true);
        }
    }

    /// Fills `mono` with the mean of the channels of `interleaved`.
    fn mix_down(&mut self, channels: usize) -> Result<(), AudioError> {
        let usable = |sample: &f32| sample.abs() <= MAX_MAGNITUDE;
        if let Some(index) = self.interleaved.iter().position(|sample| !usable(sample)) {
            return Err(AudioError::NonFinite {
                path: self.path.clone(),
                frame: self.frames + (index / channels) as u64,
                channel: index % channels,
            });
        }
        if channels == 1 {
            std::mem::swap(&mut self.mono, &mut self.interleaved);
        } else {
            let scale = 1.0 / channels as f32;
            self.mono.clear();
            let frames = self.interleaved.chunks_exact(channels);
            self.mono.extend(frames.map(|frame| frame.iter().sum::<f32>() * scale));
        }
        self.frames += self.mono.len() as u64;
        Ok(())
    }

    /// Notices packets that the demuxer dropped, from the time of the one after them.
    fn check_gap(&mut self, packet: &Packet) -> Result<(), AudioError> {
        let in_samples = self.format.tracks().iter().any(|track| {
            track.id == self.track_id
                && track.time_base.is_some_and(|base| {
                    base.numer.get() == 1 && base.denom.get() == self.sample_rate_hz
                })
        });
        let start = packet.pts.get();
        let gap = self.next_pts.map_or(0, |expected| start.saturating_sub(expected));
        let end = start.saturating_add_unsigned(packet.block_dur().get());
        self.next_pts = in_samples.then_some(end);
        if gap > 0 {
            if !self.recoverable {
                return Err(self.corrupt(format!("{gap} frames are damaged or missing")));
            }
            self.skip_packet("some data was damaged or missing");
        }
        Ok(())
    }

    fn corrupt(&self, detail: String) -> AudioError {
        AudioError::Corrupt { path: self.path.clone(), frame: self.frames, detail }
    }

    fn skip_packet(&mut self, detail: &str) {
        self.skipped += 1;
        log::warn!(
            "{}: dropped a corrupt packet after frame {}: {detail}",
            self.path.display(),
            self.frames
        );
    }

    fn end_of_stream(&self) -> Result<bool, AudioError> {
        if self.frames == 0 && self.skipped > 0 {
            return Err(self.corrupt(format!("none of {} packets decodes", self.skipped)));
        }
        if let Some(expected) = self.duration_frames.filter(|&expected| self.frames < expected) {
            log::warn!("{}: ends after {} of {expected} frames", self.path.display(), self.frames);
        }
        Ok(false)
    }
}
