//! Whether the user speaks, by loudness alone: for clients that want to know, changing nothing for
//! the model. Judged in frames of the model, so that the cutting of the audio makes no difference.

use moshi_wire::framer::Framer;
use serde_json::Value;

use super::turn::rms;

/// Frames that are looked at for a beginning, and how many of them must be loud.
const WINDOW: usize = 4;
const LOUD: usize = 3;
const THRESHOLD: f64 = 0.5;
const PREFIX_MS: u64 = 300;
const SILENCE_MS: u64 = 500;

/// When the user began or stopped, in milliseconds of the audio that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speech {
    Started { audio_start_ms: u64 },
    Stopped { audio_end_ms: u64 },
}

/// Finds speech in the audio of a session.
#[derive(Debug)]
pub(super) struct Detector {
    framer: Framer,
    frame_samples: u64,
    rate_hz: u64,
    /// Samples judged.
    samples: u64,
    window: [bool; WINDOW],
    speaking: bool,
    /// Samples since the last loud frame.
    quiet: u64,
}

impl Detector {
    pub(super) fn new(frame_samples: usize, rate_hz: u32) -> Self {
        Self {
            framer: Framer::new(frame_samples),
            frame_samples: frame_samples as u64,
            rate_hz: rate_hz.into(),
            samples: 0,
            window: [false; WINDOW],
            speaking: false,
            quiet: 0,
        }
    }

    /// Takes samples; `settings` are those of `turn_detection`, null for none.
    pub(super) fn push(&mut self, samples: &[f32], settings: &Value) -> Vec<Speech> {
        let frames = self.framer.push(samples);
        frames.iter().filter_map(|frame| self.step(frame, settings)).collect()
    }

    /// The client has taken what was said until now for itself, or takes it back.
    pub(super) fn restart(&mut self) {
        self.window = [false; WINDOW];
        self.speaking = false;
        self.quiet = 0;
    }

    fn step(&mut self, frame: &[f32], settings: &Value) -> Option<Speech> {
        self.samples += self.frame_samples;
        if settings.is_null() {
            self.restart();
            return None;
        }
        let number = |name: &str, default: u64| settings[name].as_u64().unwrap_or(default);
        let threshold = settings["threshold"].as_f64().unwrap_or(THRESHOLD);
        // From -60 dBFS to -20.
        let level = 10f32.powf((-60.0 + 40.0 * threshold as f32) / 20.0);
        let loud = rms(frame) >= level;
        self.window.rotate_left(1);
        self.window[WINDOW - 1] = loud;
        self.quiet = if loud { 0 } else { self.quiet + self.frame_samples };
        let now_ms = self.milliseconds(self.samples);
        if self.speaking {
            let patience = number("silence_duration_ms", SILENCE_MS);
            if self.milliseconds(self.quiet) < patience {
                return None;
            }
            self.speaking = false;
            return Some(Speech::Stopped { audio_end_ms: now_ms });
        }
        if self.window.iter().filter(|&&loud| loud).count() < LOUD {
            return None;
        }
        self.speaking = true;
        let first = self.window.iter().position(|&loud| loud).unwrap_or_default();
        let lasted = self.milliseconds((WINDOW - first) as u64 * self.frame_samples);
        let prefix = number("prefix_padding_ms", PREFIX_MS);
        let audio_start_ms = now_ms.saturating_sub(lasted).saturating_sub(prefix);
        Some(Speech::Started { audio_start_ms })
    }

    fn milliseconds(&self, samples: u64) -> u64 {
        samples * 1000 / self.rate_hz
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const FRAME: usize = 1920;

    fn found(detector: &mut Detector, settings: &Value, loudness: &[(usize, f32)]) -> Vec<Speech> {
        let push =
            |&(frames, level): &(usize, f32)| detector.push(&vec![level; frames * FRAME], settings);
        loudness.iter().flat_map(push).collect()
    }

    #[test]
    fn three_of_four_frames_are_speech_and_silence_that_lasts_ends_it() {
        let on = json!({ "type": "server_vad", "silence_duration_ms": 320 });
        let mut detector = Detector::new(FRAME, 24_000);
        let loudness = [(10, 0.0), (2, 0.1), (1, 0.0), (1, 0.1), (3, 0.0), (1, 0.1), (4, 0.0)];
        let expected = [
            Speech::Started { audio_start_ms: 800 - 300 },
            Speech::Stopped { audio_end_ms: (10 + 4 + 4 + 4) * 80 },
        ];
        assert_eq!(found(&mut detector, &on, &loudness), expected);
        assert_eq!(found(&mut detector, &on, &[(2, 0.1), (2, 0.0), (2, 0.1), (9, 0.0)]), []);
        let quiet = json!({ "type": "server_vad", "threshold": 1.0 });
        assert_eq!(found(&mut detector, &quiet, &[(9, 0.09)]), [], "-20 dBFS is 0.1");
    }

    #[test]
    fn nothing_is_found_where_nobody_asks() {
        let mut detector = Detector::new(FRAME, 24_000);
        assert_eq!(found(&mut detector, &Value::Null, &[(9, 0.5), (9, 0.0)]), []);
        let on = json!({ "type": "semantic_vad", "prefix_padding_ms": 0 });
        let expected = [Speech::Started { audio_start_ms: 18 * 80 }];
        assert_eq!(found(&mut detector, &on, &[(3, 0.5)]), expected);
        detector.restart();
        assert_eq!(found(&mut detector, &on, &[(9, 0.0)]), []);
    }
}
