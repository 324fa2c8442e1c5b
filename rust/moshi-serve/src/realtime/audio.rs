//! Audio in JSON: base64 of samples in a coding, to the model's rate and back.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use moshi_audio::Resampler;
use moshi_wire::pcm::{self, Coding, SampleReader};
use serde_json::{Value, json};

/// Padding may be missing in what clients send.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Audio of one event, as bytes of samples of 16 bits at 24 kHz: more than five minutes.
const MAX_EVENT_BYTES: usize = 15 << 20;

/// Why the audio of an event cannot be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadAudio {
    #[error("audio is not base64")]
    NotBase64,
    #[error("audio of one event lasts at most 327 s; send it in parts")]
    TooLong,
}

/// A coding and its rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Format {
    pub(crate) coding: Coding,
    pub(crate) rate_hz: u32,
}

impl Default for Format {
    fn default() -> Self {
        Self { coding: Coding::Pcm16, rate_hz: 24_000 }
    }
}

impl Format {
    /// From `{"type": "audio/pcm", "rate": 24000}`, or the older names.
    pub(crate) fn parse(value: &Value) -> Option<Self> {
        let (name, rate) = match value {
            Value::String(name) => (name.as_str(), None),
            object => (object["type"].as_str()?, object["rate"].as_u64()),
        };
        match (name, rate) {
            ("audio/pcm" | "pcm16", None | Some(24_000)) => Some(Self::default()),
            ("audio/pcm", Some(16_000)) => Some(Self { coding: Coding::Pcm16, rate_hz: 16_000 }),
            ("audio/pcmu" | "g711_ulaw", None | Some(8_000)) => {
                Some(Self { coding: Coding::MuLaw, rate_hz: 8_000 })
            }
            ("audio/pcma" | "g711_alaw", None | Some(8_000)) => {
                Some(Self { coding: Coding::ALaw, rate_hz: 8_000 })
            }
            _ => None,
        }
    }

    fn bytes_per_second(self) -> usize {
        let sample_bytes = if self.coding == Coding::Pcm16 { 2 } else { 1 };
        sample_bytes * self.rate_hz as usize
    }

    pub(crate) fn json(self) -> Value {
        match self.coding {
            Coding::Pcm16 => json!({ "type": "audio/pcm", "rate": self.rate_hz }),
            Coding::MuLaw => json!({ "type": "audio/pcmu" }),
            Coding::ALaw => json!({ "type": "audio/pcma" }),
        }
    }

    /// Its name in the beta protocol.
    pub(crate) fn beta_name(self) -> &'static str {
        match self.coding {
            Coding::Pcm16 => "pcm16",
            Coding::MuLaw => "g711_ulaw",
            Coding::ALaw => "g711_alaw",
        }
    }
}

/// What a client sends, to samples at the model's rate.
pub(crate) struct AudioIn {
    reader: SampleReader,
    resampler: Option<Resampler>,
    /// Whatever the coding: as long as [`MAX_EVENT_BYTES`] last in the default one.
    max_event_bytes: usize,
}

impl AudioIn {
    pub(crate) fn new(format: Format, model_hz: u32) -> Self {
        let (usual, bytes) = (Format::default(), format.bytes_per_second());
        Self {
            max_event_bytes: MAX_EVENT_BYTES / usual.bytes_per_second() * bytes,
            reader: SampleReader::new(format.coding),
            resampler: between(format.rate_hz, model_hz),
        }
    }

    /// Samples at the model's rate, of the value of an event.
    ///
    /// # Errors
    /// [`BadAudio`]; nothing is taken then.
    pub(crate) fn take(&mut self, value: &Value) -> Result<Vec<f32>, BadAudio> {
        self.decode(value.as_str().ok_or(BadAudio::NotBase64)?)
    }

    fn decode(&mut self, text: &str) -> Result<Vec<f32>, BadAudio> {
        let bytes = BASE64.decode(text).map_err(|_| BadAudio::NotBase64)?;
        if bytes.len() > self.max_event_bytes {
            return Err(BadAudio::TooLong);
        }
        let mut samples = Vec::new();
        self.reader.push(&bytes, &mut samples);
        let Some(resampler) = &mut self.resampler else { return Ok(samples) };
        let mut resampled = Vec::new();
        resampler.process(&samples, &mut resampled);
        Ok(resampled)
    }

    /// What a resampler still holds, where nothing follows.
    pub(crate) fn finish(&mut self) -> Vec<f32> {
        let mut rest = Vec::new();
        if let Some(resampler) = &mut self.resampler {
            resampler.finish(&mut rest);
        }
        rest
    }
}

/// The model's samples, to what a client gets.
pub(crate) struct AudioOut {
    coding: Coding,
    resampler: Option<Resampler>,
}

impl AudioOut {
    pub(crate) fn new(format: Format, model_hz: u32) -> Self {
        Self { coding: format.coding, resampler: between(model_hz, format.rate_hz) }
    }

    /// Empty while a resampler collects.
    pub(crate) fn encode(&mut self, samples: &[f32]) -> String {
        let Some(resampler) = &mut self.resampler else {
            return BASE64.encode(pcm::encode(self.coding, samples));
        };
        let mut resampled = Vec::new();
        resampler.process(samples, &mut resampled);
        BASE64.encode(pcm::encode(self.coding, &resampled))
    }
}

fn between(from_hz: u32, to_hz: u32) -> Option<Resampler> {
    if from_hz == to_hz {
        return None;
    }
    // Rates are those of `Format` and of a loaded model.
    Resampler::live(from_hz, to_hz).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_have_two_names() {
        for (value, format) in [
            (json!({ "type": "audio/pcm", "rate": 24_000 }), Format::default()),
            (json!({ "type": "audio/pcm" }), Format::default()),
            (json!("pcm16"), Format::default()),
            (json!("g711_ulaw"), Format { coding: Coding::MuLaw, rate_hz: 8_000 }),
            (json!({ "type": "audio/pcma" }), Format { coding: Coding::ALaw, rate_hz: 8_000 }),
        ] {
            assert_eq!(Format::parse(&value), Some(format), "{value}");
            assert_eq!(Format::parse(&format.json()), Some(format));
            assert_eq!(Format::parse(&format.beta_name().into()), Some(format));
        }
        for bad in [json!(null), json!("mp3"), json!({ "type": "audio/pcm", "rate": 44_100 })] {
            assert_eq!(Format::parse(&bad), None, "{bad}");
        }
    }

    #[test]
    fn audio_comes_back_in_every_format() {
        let tone: Vec<f32> = (0..24_000).map(|i| 0.4 * (i as f32 * 0.05).sin()).collect();
        for format in [
            Format::default(),
            Format { coding: Coding::Pcm16, rate_hz: 16_000 },
            Format { coding: Coding::MuLaw, rate_hz: 8_000 },
        ] {
            let (mut out, mut back) = (AudioOut::new(format, 24_000), AudioIn::new(format, 24_000));
            let mut again = Vec::new();
            for frame in tone.chunks(1920) {
                again.extend(back.decode(&out.encode(frame)).unwrap());
            }
            assert!(again.len() > 24_000 - 24_000 / 10, "{format:?}: {}", again.len());
            let worst = again[2_000..]
                .iter()
                .zip(&tone[2_000..])
                .fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs()));
            assert!(worst < 0.03, "{format:?}: {worst}");
        }
        let mut audio = AudioIn::new(Format::default(), 24_000);
        assert_eq!(audio.decode("!!"), Err(BadAudio::NotBase64));
        assert_eq!(audio.decode("AAA"), Ok(vec![0.0]));
        assert_eq!(audio.take(&Value::Null), Err(BadAudio::NotBase64));
    }

    #[test]
    fn an_event_lasts_at_most_so_long_in_every_format() {
        let seconds = MAX_EVENT_BYTES / 48_000;
        for format in [
            Format::default(),
            Format { coding: Coding::Pcm16, rate_hz: 16_000 },
            Format { coding: Coding::ALaw, rate_hz: 8_000 },
        ] {
            let mut audio = AudioIn::new(format, 24_000);
            let most = seconds * format.bytes_per_second();
            let more = BASE64.encode(vec![0; most + 2]);
            assert_eq!(audio.decode(&more), Err(BadAudio::TooLong), "{format:?}");
            if format == Format::default() {
                let samples = audio.decode(&BASE64.encode(vec![0; most])).unwrap();
                assert_eq!(samples.len(), seconds * 24_000);
            }
        }
        assert!(BadAudio::TooLong.to_string().contains(&seconds.to_string()));
    }
}
