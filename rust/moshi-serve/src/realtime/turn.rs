//! From an endless stream to responses: a full-duplex model has no turns, the clients of this
//! protocol want some. A response opens with speech and closes with silence.

use std::collections::VecDeque;

use crate::hub::OutputFrame;

/// Louder than this, in root mean square, is speech: -45 dBFS.
const SPEECH_RMS: f32 = 0.005_623;
/// Frames of sound without text that open a response.
const OPENING_FRAMES: u32 = 2;
/// Frames before the opening that belong to it.
const PRE_ROLL_FRAMES: usize = 2;
/// Frames of silence that close a response.
const CLOSING_FRAMES: u32 = 8;
/// Frames that a response waits for speech when a client asked for it: five seconds.
const REQUESTED_FRAMES: u32 = 62;

/// What a frame does to the responses.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Turn {
    /// A response opens before the frames.
    pub(crate) opens: bool,
    /// Frames of the open response.
    pub(crate) frames: Vec<OutputFrame>,
    /// The response closes after the frames.
    pub(crate) closes: bool,
}

/// Finds the responses.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    open: bool,
    held: VecDeque<OutputFrame>,
    loud: u32,
    quiet: u32,
    /// Frames that silence is still allowed to last.
    patience: u32,
}

impl Turns {
    pub(crate) fn is_open(&self) -> bool {
        self.open
    }

    /// Takes the next frame of the model.
    pub(crate) fn step(&mut self, frame: OutputFrame) -> Turn {
        let speaks = !frame.text.is_empty() || rms(&frame.pcm) >= SPEECH_RMS;
        let starts = !frame.text.is_empty();
        self.loud = if speaks { self.loud + 1 } else { 0 };
        self.quiet = if speaks { 0 } else { self.quiet + 1 };
        if !self.open {
            self.held.push_back(frame);
            if !starts && self.loud < OPENING_FRAMES {
                while self.held.len() > PRE_ROLL_FRAMES {
                    self.held.pop_front();
                }
                return Turn::default();
            }
            self.open = true;
            self.patience = 0;
            return Turn { opens: true, frames: self.held.drain(..).collect(), closes: false };
        }
        if speaks {
            self.patience = 0;
        }
        self.patience = self.patience.saturating_sub(1);
        let closes = self.quiet >= CLOSING_FRAMES && self.patience == 0;
        if closes {
            self.open = false;
            self.loud = 0;
        }
        Turn { opens: false, frames: vec![frame], closes }
    }

    /// Opens a response without speech. False when one is open.
    pub(crate) fn request(&mut self) -> bool {
        if self.open {
            return false;
        }
        self.open = true;
        self.quiet = 0;
        self.patience = REQUESTED_FRAMES;
        self.held.clear();
        true
    }
}

pub(crate) fn rms(pcm: &[f32]) -> f32 {
    (pcm.iter().map(|sample| sample * sample).sum::<f32>() / pcm.len().max(1) as f32).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn frame(step: u64, loud: bool, text: &str) -> OutputFrame {
        let pcm = vec![if loud { 0.1 } else { 0.0 }; 8];
        OutputFrame {
            pcm,
            text: text.into(),
            step,
            lag: Duration::ZERO,
            dropped: 0,
            took: Duration::ZERO,
        }
    }

    fn steps(turn: &Turn) -> Vec<u64> {
        turn.frames.iter().map(|frame| frame.step).collect()
    }

    #[test]
    fn text_opens_at_once_with_what_came_before() {
        let mut turns = Turns::default();
        for step in 1..=5 {
            assert_eq!(turns.step(frame(step, false, "")), Turn::default());
        }
        let turn = turns.step(frame(6, false, " hi"));
        assert!(turn.opens && !turn.closes && turns.is_open());
        assert_eq!(steps(&turn), [4, 5, 6]);
    }

    #[test]
    fn sound_opens_when_it_lasts_and_silence_closes_when_it_lasts() {
        let mut turns = Turns::default();
        for (step, loud) in [(1, true), (2, false), (3, true)] {
            assert!(!turns.step(frame(step, loud, "")).opens);
        }
        assert!(turns.step(frame(4, true, "")).opens);
        for step in 5..12 {
            let turn = turns.step(frame(step, false, ""));
            assert_eq!((turn.closes, steps(&turn)), (false, vec![step]));
        }
        assert!(turns.step(frame(12, false, "")).closes);
        assert!(!turns.is_open());
    }

    #[test]
    fn a_requested_response_waits_for_speech() {
        let mut turns = Turns::default();
        assert!(turns.request() && !turns.request());
        for step in 1..62 {
            assert!(!turns.step(frame(step, false, "")).closes, "{step}");
        }
        assert!(turns.step(frame(62, false, "")).closes);
        turns.request();
        turns.step(frame(63, true, " yes"));
        let closes: Vec<bool> =
            (0..8).map(|n| turns.step(frame(64 + n, false, "")).closes).collect();
        assert_eq!(closes, [false, false, false, false, false, false, false, true]);
    }
}
