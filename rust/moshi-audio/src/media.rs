//! What `symphonia` needs around it: the codec registry, lengths, names and errors.
//!
//! The registry is its default one plus [`crate::opus`]. Errors of parsers and decoders become
//! [`AudioError`] here, with the path and the position, and panics of them do, too.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::OnceLock;

use symphonia::core::codecs::audio::well_known as codec_ids;
use symphonia::core::codecs::audio::{AudioCodecId, AudioCodecParameters};
use symphonia::core::codecs::registry::CodecRegistry;
use symphonia::core::errors::Error as MediaError;
use symphonia::core::formats::{MediaInfo, Track};

use crate::AudioError;
use crate::opus::{OpusDecoder, pre_skip_frames};

/// Whether this is a wav file whose header states no true length, as programs write to a pipe.
pub(crate) fn is_open_ended(file: &mut File) -> io::Result<bool> {
    let mut header = Vec::with_capacity(8);
    file.by_ref().take(8).read_to_end(&mut header)?;
    file.rewind()?;
    let stated = match header.as_slice() {
        [b'R', b'I', b'F', b'F', size @ ..] => size.try_into().map_or(0, u32::from_le_bytes),
        _ => return Ok(false),
    };
    // Some write the largest 32-bit number there, others the largest signed one, rounded down.
    Ok(stated >= 0x7fff_0000 && u64::from(stated) > file.metadata()?.len())
}

/// Turns a panic of a parser or decoder into an error; what it worked on must not be used again.
pub(crate) fn contain_panics<T>(
    path: &Path,
    frame: u64,
    decode: impl FnOnce() -> Result<T, AudioError>,
) -> Result<T, AudioError> {
    catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(|_| {
        Err(AudioError::Corrupt {
            path: path.to_path_buf(),
            frame,
            detail: "the decoder gave up on malformed data".to_owned(),
        })
    })
}

/// The codecs of `symphonia` and Opus.
pub(crate) fn codecs() -> &'static CodecRegistry {
    static CODECS: OnceLock<CodecRegistry> = OnceLock::new();
    CODECS.get_or_init(|| {
        let mut registry = CodecRegistry::new();
        symphonia::default::register_enabled_codecs(&mut registry);
        registry.register_audio_decoder::<OpusDecoder>();
        registry
    })
}

/// The stated length of a track in frames without encoder delay and padding.
pub(crate) fn duration_frames(
    track: &Track,
    media: &MediaInfo,
    params: &AudioCodecParameters,
    rate_hz: u32,
) -> Option<u64> {
    if let Some(frames) = track.num_frames {
        // Granule positions of Opus count the pre-skip.
        let skip =
            if params.codec == codec_ids::CODEC_ID_OPUS { pre_skip_frames(params) } else { 0 };
        return Some(frames.saturating_sub(skip));
    }
    let (duration, base) =
        track.duration.zip(track.time_base).or(media.duration.zip(media.time_base))?;
    let ticks = u128::from(duration.get()) * u128::from(base.numer.get());
    u64::try_from(ticks * u128::from(rate_hz) / u128::from(base.denom.get())).ok()
}

/// Whether a decoder of this codec can go on after a packet it could not decode.
pub(crate) fn is_recoverable(codec: AudioCodecId) -> bool {
    matches!(
        codec,
        codec_ids::CODEC_ID_MP3
            | codec_ids::CODEC_ID_VORBIS
            | codec_ids::CODEC_ID_OPUS
            | codec_ids::CODEC_ID_AAC
    )
}

/// The usual name of a codec without a decoder here.
pub(crate) fn codec_name(codec: AudioCodecId) -> String {
    let name = match codec {
        codec_ids::CODEC_ID_SPEEX => "speex",
        codec_ids::CODEC_ID_MP1 => "mp1",
        codec_ids::CODEC_ID_MP2 => "mp2",
        codec_ids::CODEC_ID_AC3 => "ac-3",
        codec_ids::CODEC_ID_EAC3 => "e-ac-3",
        codec_ids::CODEC_ID_DCA => "dts",
        codec_ids::CODEC_ID_WMA => "wma",
        codec_ids::CODEC_ID_WAVPACK => "wavpack",
        codec_ids::CODEC_ID_MUSEPACK => "musepack",
        codec_ids::CODEC_ID_ADPCM_G722 => "g.722",
        codec_ids::CODEC_ID_ADPCM_G726 => "g.726",
        other => return format!("codec {other}"),
    };
    name.to_owned()
}

pub(crate) fn media_error(path: &Path, frame: u64, error: MediaError) -> AudioError {
    let path = path.to_path_buf();
    match error {
        MediaError::IoError(cause) if cause.kind() == io::ErrorKind::UnexpectedEof => {
            AudioError::Corrupt { path, frame, detail: "the file ends too early".to_owned() }
        }
        MediaError::IoError(cause) => AudioError::Read { path, frame, cause },
        MediaError::Unsupported(feature) => {
            AudioError::UnsupportedFeature { path, feature: feature.to_owned() }
        }
        MediaError::ResetRequired => {
            AudioError::UnsupportedFeature { path, feature: "chained streams".to_owned() }
        }
        other => AudioError::Corrupt { path, frame, detail: other.to_string() },
    }
}
