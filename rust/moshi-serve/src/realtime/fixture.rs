//! A recording that a Live client has played to its user in place of the model's voice.

use std::collections::VecDeque;

use moshi_wire::framer::Framer;
use serde_json::Value;

use super::audio::{AudioIn, BadAudio, Format};

/// The longest recording, in seconds.
const MAX_SECONDS: usize = 30;
const TOO_LONG: &str = "audio is longer than 30 s";

/// What is left to play, in frames of the model.
pub(super) struct Fixture {
    frames: VecDeque<Vec<f32>>,
    /// The `event_id` of the request.
    pub(super) cause: Value,
}

impl Fixture {
    /// From samples of 16 bits at 24 kHz in base64, whatever format the session has. The last frame
    /// is filled with silence.
    pub(super) fn parse(
        event: &Value,
        model_hz: u32,
        frame_samples: usize,
    ) -> Result<Self, &'static str> {
        let format = Format::default();
        let mut reader = AudioIn::new(format, model_hz);
        let mut samples = reader.take(&event["audio"]).map_err(|bad| match bad {
            BadAudio::NotBase64 => "audio is not base64",
            BadAudio::TooLong => TOO_LONG,
        })?;
        samples.extend(reader.finish());
        if samples.is_empty() {
            return Err("audio is empty");
        }
        if samples.len() > MAX_SECONDS * model_hz as usize {
            return Err(TOO_LONG);
        }
        let mut framer = Framer::new(frame_samples);
        let mut frames: VecDeque<Vec<f32>> = framer.push(&samples).into();
        frames.extend(framer.flush());
        Ok(Self { frames, cause: event["event_id"].clone() })
    }

    /// The next frame to play.
    pub(super) fn next_frame(&mut self) -> Option<Vec<f32>> {
        self.frames.pop_front()
    }

    /// True when all of it was played.
    pub(super) fn is_over(&self) -> bool {
        self.frames.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::json;

    use super::*;

    fn parse(samples: usize) -> Result<Fixture, &'static str> {
        let audio = STANDARD.encode(vec![0x40; 2 * samples]);
        Fixture::parse(&json!({ "audio": audio, "event_id": "e" }), 24_000, 1_920)
    }

    #[test]
    fn a_recording_is_cut_into_frames_and_filled_up() {
        let mut fixture = parse(1_920 + 100).unwrap();
        assert_eq!(fixture.cause, "e");
        let first = fixture.next_frame().unwrap();
        assert!(first.iter().all(|&sample| sample > 0.5));
        assert!(!fixture.is_over());
        let last = fixture.next_frame().unwrap();
        assert!(last[99] > 0.5 && last[100..].iter().all(|&sample| sample == 0.0));
        assert!(fixture.is_over() && fixture.next_frame().is_none());
    }

    #[test]
    fn what_cannot_be_played_says_why() {
        assert!(parse(30 * 24_000).is_ok());
        assert_eq!(parse(30 * 24_000 + 1).err(), Some("audio is longer than 30 s"));
        assert_eq!(parse(0).err(), Some("audio is empty"));
        for bad in [json!({}), json!({ "audio": 7 }), json!({ "audio": "!" })] {
            let refused = Fixture::parse(&bad, 24_000, 1_920).err();
            assert_eq!(refused, Some("audio is not base64"), "{bad}");
        }
    }
}
