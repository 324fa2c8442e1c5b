//! Into how many groups a step divides its streams.
//!
//! Threads either share every operation, each reading a part of the weights, or each takes a group
//! of streams through all operations. The first reads weights once; the second never waits, and
//! finds what it wrote in its own caches. So groups are better where weights are read at no cost:
//! small ones, which stay in the caches, and those that meet so many rows that computing takes
//! longer than reading.

use super::super::Reuse;

/// Weights that are read at the speed of caches.
const CACHED_BYTES: u64 = 16 << 20;
/// Rows of a product that take longer to compute than its weights to read.
const COMPUTED_ROWS: usize = 20;
/// Groups for every thread, at most: a thread that the system interrupts leaves the rest to others.
const ROUNDS: usize = 4;
/// Streams of a group, at least, where threads have several.
const STREAMS: usize = 8;

/// Most groups that a number of threads gets.
pub(super) fn most(threads: usize) -> usize {
    ROUNDS * threads
}

/// Groups of `streams` streams for `threads` threads.
pub(super) fn of(streams: usize, weights: Reuse, threads: usize) -> usize {
    let rows = streams / threads * weights.rows_per_stream;
    let alone = weights.bytes <= CACHED_BYTES || rows >= COMPUTED_ROWS;
    if threads == 1 || !alone {
        return 1;
    }
    let rounds = (streams / (threads * STREAMS)).clamp(1, ROUNDS);
    streams.min(threads * rounds)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn small_weights_are_read_by_every_thread() {
        let small = Reuse { bytes: 5 * MIB, rows_per_stream: 1 };
        let groups = |streams, threads| of(streams, small, threads);
        assert_eq!([1, 2, 3, 8, 16].map(|streams| groups(streams, 2)), [1, 2, 2, 2, 2]);
        assert_eq!([32, 46, 54, 500].map(|streams| groups(streams, 2)), [4, 4, 6, 8]);
        assert_eq!(groups(46, 1), 1);
        assert!((1..1000).all(|streams| groups(streams, 3) <= most(3)));
    }

    #[test]
    fn large_weights_are_shared_until_they_meet_many_rows() {
        // The public codec; with 8 streams on two threads, groups were a seventh faster.
        let codec = Reuse { bytes: 165 * MIB, rows_per_stream: 5 };
        assert_eq!([2, 4, 6, 8].map(|streams| of(streams, codec, 2)), [1, 1, 1, 2]);
        let language = Reuse { bytes: 1000 * MIB, rows_per_stream: 1 };
        assert_eq!([8, 39, 40].map(|streams| of(streams, language, 2)), [1, 1, 4]);
    }
}
