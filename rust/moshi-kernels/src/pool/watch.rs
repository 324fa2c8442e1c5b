//! Whether more threads help: on a machine that other programs use, a thread that the system takes
//! off its processor in the middle of a part holds up all others.

use std::time::{Duration, Instant};

/// Judges the time of operations in windows.
#[derive(Debug)]
pub(super) struct Watch {
    /// Threads when nothing disturbs.
    most: usize,
    /// Part of an operation's time that the last of them saves then.
    saved: f64,
    worked: Duration,
    waited: Duration,
    /// When to try one thread more, and how long after the next disturbance.
    retry: Option<Instant>,
    pause: Duration,
}

/// Time of operations between judgements.
const WINDOW: Duration = Duration::from_millis(100);
/// The caller may wait for this part of the time, however little a thread saves.
const MOST_WAITED: f64 = 0.2;
const SHORTEST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

impl Watch {
    /// Judges up to `most` threads, the last of which saves a part of an operation's time.
    pub(super) fn new(most: usize, saved: f64) -> Self {
        let zero = Duration::ZERO;
        Self { most, saved, worked: zero, waited: zero, retry: None, pause: SHORTEST_PAUSE }
    }

    /// Takes note of an operation of `threads` threads: how long it took, and how long of that the
    /// caller waited. Returns another number of threads where that is better.
    pub(super) fn note(
        &mut self,
        threads: usize,
        worked: Duration,
        waited: Duration,
        now: Instant,
    ) -> Option<usize> {
        self.worked += worked;
        self.waited += waited;
        if self.worked < WINDOW {
            return None;
        }
        // To wait for less than the last thread saves is better than to do without it. Of fewer
        // threads, each saves more.
        let saved = self.saved * self.most as f64 / threads.max(1) as f64;
        let most_waited = self.worked.mul_f64(saved.clamp(MOST_WAITED, 1.0));
        let disturbed = self.waited > most_waited;
        (self.worked, self.waited) = (Duration::ZERO, Duration::ZERO);
        if disturbed && threads > 1 {
            self.retry = Some(now + self.pause);
            self.pause = (2 * self.pause).min(LONGEST_PAUSE);
            return Some(threads - 1);
        }
        if threads < self.most {
            self.retry.take_if(|retry| *retry <= now)?;
            // In case the next window is good and this is not yet all.
            self.retry = Some(now + SHORTEST_PAUSE);
            return Some(threads + 1);
        }
        self.pause = SHORTEST_PAUSE;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_go_when_the_caller_waits_and_come_back_later_and_later() {
        let (mut watch, start) = (Watch::new(3, 1.0 / 3.0), Instant::now());
        let mut at = |threads, waited, seconds| {
            let (worked, waited) = (Duration::from_millis(150), Duration::from_millis(waited));
            watch.note(threads, worked, waited, start + Duration::from_secs(seconds))
        };
        assert_eq!(at(3, 10, 0), None, "all is well");
        assert_eq!(at(3, 40, 0), None, "two threads would take longer");
        assert_eq!(at(3, 60, 0), Some(2));
        assert_eq!(at(2, 10, 1), None, "too early");
        assert_eq!(at(2, 10, 2), Some(3));
        assert_eq!(at(3, 100, 2), Some(2));
        assert_eq!(at(2, 100, 2), Some(1));
        assert_eq!(at(1, 0, 9), None, "three disturbances");
        assert_eq!(at(1, 0, 10), Some(2));
        assert_eq!(at(2, 0, 12), Some(3));
        assert_eq!(at(3, 0, 13), None);
        assert_eq!(at(3, 140, 13), Some(2));
        assert_eq!(at(2, 0, 15), Some(3), "a good window makes it forget");
    }

    #[test]
    fn a_thread_that_saves_little_goes_sooner() {
        let now = Instant::now();
        let judge = |saved, waited| {
            let (worked, waited) = (Duration::from_millis(100), Duration::from_millis(waited));
            Watch::new(2, saved).note(2, worked, waited, now)
        };
        assert_eq!([15, 25].map(|waited| judge(0.05, waited)), [None, Some(1)]);
        assert_eq!([35, 45].map(|waited| judge(0.4, waited)), [None, Some(1)]);
    }

    #[test]
    fn short_operations_add_up() {
        let (mut watch, now) = (Watch::new(2, 0.5), Instant::now());
        let (long, short) = (Duration::from_millis(3), Duration::from_millis(2));
        let judged = (0..40).filter_map(|_| watch.note(2, long, short, now)).count();
        assert_eq!(judged, 1);
    }
}
