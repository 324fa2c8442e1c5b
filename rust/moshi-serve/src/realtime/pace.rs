//! When a client pauses its audio: until when what it sent lasts, and whether silence is due.
//!
//! Time is a parameter, so that chunks of any length at the pace of time are told from pauses
//! without waiting for them.

use std::time::Duration;

use tokio::time::Instant;

/// Audio that is late by so much is a pause.
const PAUSE: Duration = Duration::from_millis(160);
/// Audio that came faster than life is not waited for longer than this.
const MOST_AHEAD: Duration = Duration::from_secs(2);

/// How far the audio of a session reaches. It has none before the first.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    covered_until: Option<Instant>,
}

impl Pace {
    /// Audio of this length came.
    pub(crate) fn heard(&mut self, length: Duration, now: Instant) {
        let from = self.covered_until.map_or(now, |until| until.max(now));
        self.covered_until = Some((from + length).min(now + MOST_AHEAD));
    }

    /// The model is still at work on what came: it misses nothing.
    pub(crate) fn busy(&mut self, now: Instant) {
        if let Some(until) = &mut self.covered_until {
            *until = now.max(*until);
        }
    }

    /// True when a frame of silence is due; it counts as given.
    pub(crate) fn takes_silence(&mut self, frame: Duration, now: Instant) -> bool {
        match &mut self.covered_until {
            Some(until) if now > *until + PAUSE => {
                *until += frame;
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: Duration = Duration::from_millis(80);

    /// Frames of silence between two times, asked for every 20 ms.
    fn silence(pace: &mut Pace, start: Instant, from_ms: u64, to_ms: u64) -> usize {
        let times = (from_ms..to_ms).step_by(20).map(|ms| start + Duration::from_millis(ms));
        times.filter(|&now| pace.takes_silence(FRAME, now)).count()
    }

    #[test]
    fn chunks_at_the_pace_of_time_have_no_silence_between_them() {
        for chunk_ms in [20, 100, 160, 500, 1_900] {
            let (mut pace, start) = (Pace::default(), Instant::now());
            assert_eq!(silence(&mut pace, start, 0, 1_000), 0, "nothing came yet");
            for chunk in 0..20 {
                let at = chunk * chunk_ms;
                pace.heard(Duration::from_millis(chunk_ms), start + Duration::from_millis(at));
                // Each chunk but the first is late by less than a pause.
                let late = at + chunk_ms + 150;
                assert_eq!(silence(&mut pace, start, at, late), 0, "{chunk_ms} {chunk}");
            }
        }
    }

    #[test]
    fn a_pause_is_silence_at_the_pace_of_time() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        pace.heard(FRAME, start);
        // From 80 ms on, with the first after 240.
        assert_eq!(silence(&mut pace, start, 0, 260), 0);
        assert_eq!(silence(&mut pace, start, 260, 280), 1);
        assert_eq!(silence(&mut pace, start, 280, 1_080), 10);
        pace.heard(FRAME, start + Duration::from_millis(1_080));
        assert_eq!(silence(&mut pace, start, 1_080, 1_300), 0);
    }

    #[test]
    fn an_upload_is_not_waited_for_and_a_busy_model_owes_nothing() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        pace.heard(Duration::from_secs(60), start);
        let after = start + MOST_AHEAD + PAUSE;
        assert!(!pace.takes_silence(FRAME, after));
        assert!(pace.takes_silence(FRAME, after + Duration::from_millis(1)));
        pace.busy(start + Duration::from_secs(10));
        assert_eq!(silence(&mut pace, start, 10_000, 10_160), 0);
        assert_eq!(silence(&mut pace, start, 10_180, 10_980), 10, "no debt of ten seconds");
    }
}
