//! How many threads a step takes: as many as help to read its weights.
//!
//! Memory is read no faster by many threads than by some, and threads that do not help take the
//! processor from others. Groups of streams, which share nothing, take all.

use std::time::{Duration, Instant};

use moshi_kernels::packed::{PackedMatrix, Store};

use super::Cpu;

/// More than the caches of most processors; the largest weights up to this are measured with.
const SAMPLE_BYTES: usize = 128 << 20;
/// Every number of threads gets as many turns, interleaved; its fastest counts.
const TURNS: usize = 4;
/// Fewer threads are better when more of them save less than this, in percent.
const LEAST_GAIN: f64 = 3.0;

/// Measures with the largest of these weights and sets the number of threads.
pub(super) fn tune(exec: &Cpu, weights: &[&PackedMatrix]) {
    let pool = &exec.shared.pool;
    let mut largest = weights.to_vec();
    largest.sort_by_key(|weight| std::cmp::Reverse(weight.bytes()));
    let mut bytes = 0;
    largest.retain(|weight| {
        let wanted = bytes < SAMPLE_BYTES;
        bytes += weight.bytes();
        wanted
    });
    let sample: usize = largest.iter().map(|weight| weight.bytes()).sum();
    let counts: Vec<usize> = counts(pool.capacity()).collect();
    let mut times = vec![Duration::MAX; counts.len()];
    for _ in 0..TURNS {
        for (time, &count) in times.iter_mut().zip(&counts) {
            pool.set_threads(count);
            *time = (*time).min(pass(exec, &largest));
        }
    }
    let (best, saved) = fewest_of_the_best(&counts, &times);
    log::info!(
        "{best} of {} threads read {:.0} MB of weights the fastest",
        pool.capacity(),
        sample as f64 / 1e6
    );
    pool.set_watched_threads(best, saved);
}

/// Time of one row's product with every weight.
fn pass(exec: &Cpu, weights: &[&PackedMatrix]) -> Duration {
    let start = Instant::now();
    for weight in weights {
        let mut x = exec.buffer(1, weight.cols());
        x.values_mut().fill(1.0);
        let mut y = exec.buffer(1, weight.rows());
        exec.product(&x, weight, Store::Set(None), y.values_mut());
    }
    start.elapsed()
}

/// All small numbers, then some: 1 2 3 4 6 8 12 16 ... and the largest.
fn counts(most: usize) -> impl Iterator<Item = usize> {
    let steps = (0..usize::BITS - 1).flat_map(|power| [2 << power, 3 << power]);
    std::iter::once(1).chain(steps).take_while(move |&count| count < most).chain([most])
}

/// The smallest number whose time is close to the best, and what part of the time the last of them
/// saves.
fn fewest_of_the_best(counts: &[usize], times: &[Duration]) -> (usize, f64) {
    let best = times.iter().min().copied().unwrap_or_default();
    let enough = best.mul_f64(1.0 + LEAST_GAIN / 100.0);
    let Some(at) = times.iter().position(|time| *time <= enough).filter(|&at| at > 0) else {
        return (1, 0.0);
    };
    let saved = 1.0 - times[at].as_secs_f64() / times[at - 1].as_secs_f64();
    (counts[at], saved / (counts[at] - counts[at - 1]) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_tried_are_few_and_end_with_the_largest() {
        assert_eq!(counts(2).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(counts(5).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert_eq!(counts(32).collect::<Vec<_>>(), [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]);
    }

    #[test]
    fn threads_that_do_not_help_stay_out() {
        let times = [1000, 600, 500, 490, 495].map(Duration::from_micros);
        let (best, saved) = fewest_of_the_best(&[1, 2, 3, 4, 6], &times);
        assert!(best == 3 && (saved - 1.0 / 6.0).abs() < 1e-9, "{saved}");
        let (_, saved) = fewest_of_the_best(&[4, 6], &times[..2]);
        assert!((saved - 0.2).abs() < 1e-9, "{saved} for each of two");
        assert_eq!(fewest_of_the_best(&[1, 2], &times[3..]), (1, 0.0));
    }
}
