//! Opus for the codec registry of `symphonia`, over the decoder of `ropus`.
//!
//! The identification header (RFC 7845, section 5.1) arrives as the extra data of the track, from
//! Ogg, Matroska and MP4 alike. It tells the channel mapping, the gain, and the pre-skip: samples
//! at the start that only let the decoder converge. The demuxers do not trim the pre-skip, so the
//! decoder does; the end they do mark, from the granule position of the last page.

use ropus::OpusMSDecoder;
use symphonia::core::audio::{
    AsGenericAudioBufferRef, AudioBuffer, AudioMut, AudioSpec, Channels, GenericAudioBufferRef,
};
use symphonia::core::codecs::CodecInfo;
use symphonia::core::codecs::audio::well_known::CODEC_ID_OPUS;
use symphonia::core::codecs::audio::{
    AudioCodecParameters, AudioDecoder, AudioDecoderOptions, FinalizeResult,
};
use symphonia::core::codecs::registry::{RegisterableAudioDecoder, SupportedAudioCodec};
use symphonia::core::errors::{Result, decode_error, unsupported_error};
use symphonia::core::packet::PacketRef;

/// Opus always decodes to this rate, in Hz.
const RATE_HZ: u32 = 48_000;
/// Most frames in one packet: 120 ms.
const MAX_FRAMES: usize = 5_760;
/// The identification header up to the channel mapping table, in bytes.
const HEAD_LEN: usize = 19;

static SUPPORTED: [SupportedAudioCodec; 1] = [SupportedAudioCodec {
    id: CODEC_ID_OPUS,
    info: CodecInfo { short_name: "opus", long_name: "Opus", profiles: &[] },
}];

/// What the identification header says.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    channels: u8,
    pre_skip: u16,
    gain: i16,
    streams: u8,
    coupled: u8,
    mapping: Vec<u8>,
}

impl Head {
    fn parse(data: &[u8]) -> Result<Self> {
        if data.len() < HEAD_LEN || !data.starts_with(b"OpusHead") {
            return decode_error("opus: malformed identification header");
        }
        let channels = data[9];
        let (streams, coupled, mapping) = match (data[18], channels) {
            (0, 1 | 2) => (1, channels - 1, (0..channels).collect()),
            (1, 1..=8) => {
                let table = data.get(HEAD_LEN..HEAD_LEN + 2 + usize::from(channels));
                match table {
                    Some(table) => (table[0], table[1], table[2..].to_vec()),
                    None => return decode_error("opus: truncated channel mapping"),
                }
            }
            _ => return unsupported_error("opus channel mapping"),
        };
        Ok(Self {
            channels,
            pre_skip: u16::from_le_bytes([data[10], data[11]]),
            gain: i16::from_le_bytes([data[16], data[17]]),
            streams,
            coupled,
            mapping,
        })
    }

    /// What to assume where the container carries no header.
    fn plain(channels: u8) -> Self {
        let mapping = (0..channels).collect();
        Self { channels, pre_skip: 0, gain: 0, streams: 1, coupled: channels - 1, mapping }
    }
}

/// The samples to drop at the start of a track with this header, in frames.
pub(crate) fn pre_skip_frames(params: &AudioCodecParameters) -> u64 {
    params
        .extra_data
        .as_deref()
        .and_then(|data| Head::parse(data).ok())
        .map_or(0, |head| u64::from(head.pre_skip))
}

/// The Opus decoder as `symphonia` sees it.
pub(crate) struct OpusDecoder {
    params: AudioCodecParameters,
    inner: OpusMSDecoder,
    channels: usize,
    /// Frames of the pre-skip still to drop.
    skip: usize,
    pcm: Vec<i16>,
    buf: AudioBuffer<f32>,
}

impl OpusDecoder {
    fn try_new(params: &AudioCodecParameters, opts: AudioDecoderOptions) -> Result<Self> {
        let head = match (&params.extra_data, params.channels.as_ref().map(Channels::count)) {
            (Some(data), _) => Head::parse(data)?,
            (None, Some(2)) => Head::plain(2),
            (None, _) => Head::plain(1),
        };
        let channels = usize::from(head.channels);
        let layout = match &params.channels {
            Some(layout) if layout.count() == channels => layout.clone(),
            _ => Channels::Discrete(u16::from(head.channels)),
        };
        let Ok(mut inner) = OpusMSDecoder::new(
            RATE_HZ as i32,
            i32::from(head.channels),
            i32::from(head.streams),
            i32::from(head.coupled),
            &head.mapping,
        ) else {
            return decode_error("opus: invalid channel mapping");
        };
        inner.set_gain(i32::from(head.gain));
        let mut params = params.clone();
        params.with_sample_rate(RATE_HZ).with_channels(layout.clone());
        Ok(Self {
            params,
            inner,
            channels,
            skip: if opts.gapless { usize::from(head.pre_skip) } else { 0 },
            pcm: vec![0; MAX_FRAMES * channels],
            buf: AudioBuffer::new(AudioSpec::new(RATE_HZ, layout), MAX_FRAMES),
        })
    }
}

impl AudioDecoder for OpusDecoder {
    fn reset(&mut self) {
        self.inner.reset();
    }

    fn codec_info(&self) -> &CodecInfo {
        &SUPPORTED[0].info
    }

    fn codec_params(&self) -> &AudioCodecParameters {
        &self.params
    }

    fn decode_ref(&mut self, packet: &PacketRef<'_>) -> Result<GenericAudioBufferRef<'_>> {
        self.buf.clear();
        // An empty packet would ask the decoder to conceal a loss.
        if packet.data.is_empty() {
            return decode_error("opus: empty packet");
        }
        let decoded = i32::try_from(packet.data.len()).map_or(Err(0), |len| {
            self.inner.decode(Some(packet.data), len, &mut self.pcm, MAX_FRAMES as i32, false)
        });
        let Ok(frames) = decoded.map(|frames| (frames.max(0) as usize).min(MAX_FRAMES)) else {
            return decode_error("opus: invalid packet");
        };
        self.buf.render_uninit(Some(frames));
        for channel in 0..self.channels {
            if let Some(plane) = self.buf.plane_mut(channel) {
                let samples = self.pcm[channel..].iter().step_by(self.channels);
                for (out, &sample) in plane.iter_mut().zip(samples) {
                    *out = f32::from(sample) / 32_768.0;
                }
            }
        }
        let start = (packet.trim_start.get() as usize).max(self.skip).min(frames);
        self.skip -= start.min(self.skip);
        let end = (packet.trim_end.get() as usize).min(frames - start);
        self.buf.trim(start, end);
        Ok(self.buf.as_generic_audio_buffer_ref())
    }

    fn finalize(&mut self) -> FinalizeResult {
        FinalizeResult::default()
    }

    fn last_decoded(&self) -> GenericAudioBufferRef<'_> {
        self.buf.as_generic_audio_buffer_ref()
    }
}

impl RegisterableAudioDecoder for OpusDecoder {
    fn try_registry_new(
        params: &AudioCodecParameters,
        opts: &AudioDecoderOptions,
    ) -> Result<Box<dyn AudioDecoder>> {
        Ok(Box::new(Self::try_new(params, *opts)?))
    }

    fn supported_codecs() -> &'static [SupportedAudioCodec] {
        &SUPPORTED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(channels: u8, family: u8, tail: &[u8]) -> Vec<u8> {
        let mut data = b"OpusHead\x01".to_vec();
        data.push(channels);
        data.extend([0x38, 0x01, 0x80, 0xbb, 0, 0, 0x00, 0xff, family]);
        data.extend(tail);
        data
    }

    #[test]
    fn header_fields() {
        let stereo = Head::parse(&head(2, 0, &[])).unwrap();
        assert_eq!((stereo.pre_skip, stereo.gain), (312, -256));
        assert_eq!((stereo.streams, stereo.coupled, stereo.mapping), (1, 1, vec![0, 1]));
        let surround = Head::parse(&head(6, 1, &[4, 2, 0, 4, 1, 2, 3, 5])).unwrap();
        assert_eq!((surround.streams, surround.coupled, surround.mapping.len()), (4, 2, 6));
    }

    #[test]
    fn malformed_headers_are_errors() {
        for bad in [
            head(0, 0, &[]),
            head(3, 0, &[]),
            head(9, 1, &[0; 11]),
            head(6, 1, &[4, 2, 0]),
            head(2, 255, &[]),
            head(2, 0, &[])[..18].to_vec(),
            vec![0; 30],
        ] {
            assert!(Head::parse(&bad).is_err(), "{bad:?}");
        }
        let mut params = AudioCodecParameters::new();
        params.for_codec(CODEC_ID_OPUS);
        params.with_extra_data(head(2, 1, &[1, 0, 0, 7]).into());
        assert!(OpusDecoder::try_new(&params, AudioDecoderOptions::default()).is_err());
    }
}
