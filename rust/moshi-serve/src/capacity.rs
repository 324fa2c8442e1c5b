//! How many conversations the engine can hold in real time, from measured steps.
//!
//! Steps of one, two, four and more streams are measured before the first caller comes. Between and
//! behind the measured sizes the time is taken as a straight line: weights are read once, every
//! stream adds its share. Packing and unpacking the audio of connections takes processors, too, of
//! which there are only so many. While conversations run, the ratio of measured to predicted times is
//! followed, so that a machine that gets busy admits fewer. While none runs, what was learnt fades:
//! nothing would tell that an overload is over.

use std::time::Duration;

/// Part of a frame's time that a step may take, and of the processors that steps and connections
/// may take together.
const BUDGET: f64 = 0.8;
/// Connections are counted so often: their frames come unevenly, and those of a whole batch wait for
/// the processors when the next step begins.
const CONNECTIONS: f64 = 4.0;
/// Weight of a new measurement.
const LEARNING_RATE: f64 = 0.02;
/// The same for the usual time of a step.
const USUAL_RATE: f64 = 0.1;
/// Bounds of the learnt ratio: beyond them something else is wrong.
const RATIO: (f64, f64) = (0.5, 8.0);
/// Without a step for so long, what was learnt begins to fade. Pauses within a conversation are
/// shorter.
const QUIET: Duration = Duration::from_secs(1);
/// Time in which what was learnt fades to a third.
const FADING: Duration = Duration::from_secs(15);

/// An estimate, or a fixed number.
#[derive(Debug, Clone)]
pub struct Capacity {
    fixed: Option<usize>,
    frame_s: f64,
    /// Streams and seconds of a step, by streams.
    measured: Vec<(f64, f64)>,
    beside: Beside,
    /// Seconds of a step where nothing was measured.
    usual_s: f64,
    ratio: f64,
    /// When a step was observed last, or fading was reckoned.
    reckoned: Duration,
    most: usize,
}

/// What connections take of the processors that steps take, too.
#[derive(Debug, Clone, Copy)]
pub struct Beside {
    /// Time of one processor for a frame of one stream.
    pub frame: Duration,
    /// Processors that a step keeps busy.
    pub step_threads: usize,
    /// Processors that there are.
    pub processors: usize,
}

impl Beside {
    /// Nothing.
    const NONE: Self = Self { frame: Duration::ZERO, step_threads: 0, processors: 0 };
}

impl Capacity {
    /// As the operator says.
    pub fn fixed(sessions: usize) -> Self {
        Self {
            fixed: Some(sessions),
            frame_s: 0.0,
            measured: Vec::new(),
            beside: Beside::NONE,
            usual_s: 0.0,
            ratio: 1.0,
            reckoned: Duration::ZERO,
            most: sessions,
        }
    }

    /// From measured steps, each with its number of streams; at most `most` conversations.
    pub fn measured(frame: Duration, steps: &[(usize, Duration)], most: usize) -> Self {
        let mut measured: Vec<(f64, f64)> =
            steps.iter().map(|&(streams, took)| (streams as f64, took.as_secs_f64())).collect();
        measured.sort_by(|a, b| a.0.total_cmp(&b.0));
        let reckoned = Duration::ZERO;
        let frame_s = frame.as_secs_f64();
        let beside = Beside::NONE;
        Self { fixed: None, frame_s, measured, beside, usual_s: 0.0, ratio: 1.0, reckoned, most }
    }

    /// As much beside the steps.
    pub fn with(mut self, beside: Beside) -> Self {
        self.beside = beside;
        self
    }

    /// Conversations that fit, at least one.
    pub fn sessions(&self) -> usize {
        if let Some(fixed) = self.fixed {
            return fixed;
        }
        let fits = |streams: usize| {
            let usual_s = self.predict(streams);
            let step_s = usual_s * self.ratio;
            // Without the ratio: what connections take of the processors is in it already.
            let busy_s = usual_s * self.beside.step_threads as f64
                + CONNECTIONS * streams as f64 * self.beside.frame.as_secs_f64();
            let budget_s = self.frame_s * BUDGET;
            step_s <= budget_s && busy_s <= budget_s * self.beside.processors.max(1) as f64
        };
        // Times grow with the number of streams, so the largest that fits can be bisected.
        let (mut low, mut high) = (1, self.most.max(1));
        while low < high {
            let middle = (low + high).div_ceil(2);
            if fits(middle) {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        low
    }

    /// False when even one conversation is too much for this machine.
    pub fn is_real_time(&self) -> bool {
        self.fixed.is_some() || self.predict(1) * self.ratio <= self.frame_s
    }

    /// Time of a step of so many streams; where nothing was measured, of the last steps.
    pub fn step_time(&self, streams: usize) -> Duration {
        let predicted = (self.predict(streams) * self.ratio).max(0.0);
        Duration::from_secs_f64(if self.measured.is_empty() { self.usual_s } else { predicted })
    }

    /// Learns from a step that ended `now`.
    pub fn observe(&mut self, streams: usize, took: Duration, now: Duration) {
        self.reckoned = now;
        let weight = if self.usual_s > 0.0 { USUAL_RATE } else { 1.0 };
        self.usual_s += weight * (took.as_secs_f64() - self.usual_s);
        let predicted = self.predict(streams);
        if predicted > 0.0 {
            let ratio = (took.as_secs_f64() / predicted).clamp(RATIO.0, RATIO.1);
            self.ratio += LEARNING_RATE * (ratio - self.ratio);
        }
    }

    /// Forgets a part of what was learnt if no step was observed for a while. To be called often.
    pub fn rest(&mut self, now: Duration) {
        let quiet = now.saturating_sub(self.reckoned);
        if quiet >= QUIET {
            self.ratio = faded(self.ratio, quiet);
            self.reckoned = now;
        }
    }

    fn predict(&self, streams: usize) -> f64 {
        let x = streams as f64;
        match self.measured[..] {
            [] => 0.0,
            [(streams, seconds)] => seconds * x / streams,
            [..] => {
                let next = self.measured.iter().position(|&(at, _)| at >= x);
                let right = next.unwrap_or(self.measured.len() - 1).max(1);
                let ((x0, y0), (x1, y1)) = (self.measured[right - 1], self.measured[right]);
                (y0 + (y1 - y0) * (x - x0) / (x1 - x0)).max(0.0)
            }
        }
    }
}

/// A learnt ratio after `quiet` without a measurement: on its way back to 1, the ratio of the
/// measured steps.
fn faded(ratio: f64, quiet: Duration) -> f64 {
    1.0 + (ratio - 1.0) * (-quiet.as_secs_f64() / FADING.as_secs_f64()).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: f64) -> Duration {
        Duration::from_secs_f64(ms / 1e3)
    }

    #[test]
    fn the_budget_decides() {
        let steps = [(1, ms(10.0)), (2, ms(14.0)), (4, ms(22.0))];
        let capacity = Capacity::measured(ms(80.0), &steps, 64);
        assert_eq!(capacity.sessions(), 14, "6 + 4 n milliseconds in 64");
        assert!(capacity.is_real_time());
        assert!((capacity.step_time(3).as_secs_f64() - 0.018).abs() < 1e-9);
        assert_eq!(Capacity::measured(ms(80.0), &steps, 5).sessions(), 5);
        assert_eq!(Capacity::fixed(3).sessions(), 3);
    }

    #[test]
    fn connections_share_the_processors() {
        let steps = [(1, ms(10.0)), (2, ms(14.0)), (4, ms(22.0))];
        let alone = Capacity::measured(ms(80.0), &steps, 64);
        let beside = |frame, step_threads, processors| {
            alone.clone().with(Beside { frame, step_threads, processors }).sessions()
        };
        assert_eq!(beside(ms(2.0), 2, 2), 7, "2 (6 + 4 n) + 8 n milliseconds in 128");
        assert_eq!(beside(ms(2.0), 2, 16), 14, "the step decides");
        assert_eq!(beside(ms(2.0), 1, 2), 10, "6 + 4 n + 8 n milliseconds in 128");
        assert_eq!(beside(ms(60.0), 2, 2), 1);
        let mut busy = alone.with(Beside { frame: ms(2.0), step_threads: 2, processors: 2 });
        (0..400).for_each(|_| busy.observe(2, ms(16.0), ms(0.0)));
        assert_eq!(busy.sessions(), 7, "steps that wait for connections are not counted twice");
    }

    #[test]
    fn a_slow_engine_holds_one_and_says_so() {
        let capacity = Capacity::measured(ms(80.0), &[(1, ms(100.0))], 64);
        assert_eq!(capacity.sessions(), 1);
        assert!(!capacity.is_real_time());
        assert_eq!(Capacity::measured(ms(80.0), &[(1, ms(20.0))], 64).sessions(), 3);
    }

    #[test]
    fn a_busy_machine_admits_fewer() {
        let mut capacity = Capacity::measured(ms(80.0), &[(1, ms(10.0)), (2, ms(20.0))], 64);
        assert_eq!(capacity.sessions(), 6);
        for _ in 0..400 {
            capacity.observe(2, ms(40.0), ms(0.0));
        }
        assert_eq!(capacity.sessions(), 3);
        for _ in 0..400 {
            capacity.observe(2, ms(20.0), ms(0.0));
        }
        assert_eq!(capacity.sessions(), 6);
    }

    #[test]
    fn what_was_learnt_fades_in_any_steps() {
        let s = Duration::from_secs;
        assert_eq!(faded(8.0, s(0)), 8.0);
        assert_eq!(faded(1.0, s(1_000)), 1.0);
        assert!((faded(8.0, FADING) - (1.0 + 7.0 / std::f64::consts::E)).abs() < 1e-9);
        assert!((faded(faded(0.5, s(3)), s(4)) - faded(0.5, s(7))).abs() < 1e-9);
        assert!(faded(8.0, s(120)) < 1.01);
    }

    #[test]
    fn an_idle_engine_recovers_from_an_overload() {
        let s = Duration::from_secs;
        let mut capacity = Capacity::measured(ms(80.0), &[(1, ms(10.0)), (2, ms(20.0))], 64);
        for _ in 0..400 {
            capacity.observe(2, ms(160.0), s(100));
        }
        assert_eq!(capacity.sessions(), 1);
        capacity.rest(s(100) + QUIET / 2);
        assert_eq!(capacity.sessions(), 1, "a pause is no end");
        let mut before = capacity.sessions();
        for half_seconds in 1..240 {
            capacity.rest(s(100) + half_seconds * ms(500.0));
            assert!(capacity.sessions() >= before);
            before = capacity.sessions();
        }
        assert_eq!(before, 6);
    }
}
