//! What this machine can do at most: bytes read from memory and multiplications per second.
//!
//! Other programs share the machine, so a measurement is the best of several short ones, and only
//! ratios of numbers of the same minute mean something.

#![allow(unsafe_code, reason = "intrinsics of a detected instruction set")]
#![allow(
    clippy::inline_always,
    reason = "compiled for the instruction set of the caller only where it is inlined"
)]

use std::hint::black_box;
use std::io;
use std::sync::Barrier;
use std::time::Instant;

use crate::huge_memory::HugeMemory;

/// A block of memory, larger than caches, to measure how fast it is read.
#[derive(Debug)]
pub struct ReadTest {
    memory: HugeMemory,
}

impl ReadTest {
    /// Takes `bytes` of memory; a GiB is more than the caches of any processor of today.
    ///
    /// # Errors
    /// When there is not so much memory.
    pub fn new(bytes: usize) -> io::Result<Self> {
        let mut memory = HugeMemory::zeroed(bytes)?;
        for page in memory.chunks_mut(4096) {
            page[0] = 1;
        }
        Ok(Self { memory })
    }

    /// Bytes per second that `threads` threads read together: the best of `passes` passes.
    pub fn bytes_per_second(&self, threads: usize, passes: usize) -> f64 {
        let threads = threads.max(1);
        let share = self.memory.len().div_ceil(threads).next_multiple_of(4096);
        let barrier = Barrier::new(threads);
        let read = |part: &[u8]| {
            let pass = |_| {
                barrier.wait();
                let start = Instant::now();
                black_box(sum(part));
                (start, Instant::now())
            };
            (0..passes.max(1)).map(pass).collect::<Vec<_>>()
        };
        let mut parts = self.memory.chunks(share);
        let first = parts.next().unwrap_or_default();
        let others = (1..threads).map(|_| parts.next().unwrap_or_default());
        // Of every thread and pass: when it began and when it ended.
        let spans: Vec<Vec<(Instant, Instant)>> = std::thread::scope(|scope| {
            let read = &read;
            let others: Vec<_> = others.map(|part| scope.spawn(move || read(part))).collect();
            let own = read(first);
            let join = |other: std::thread::ScopedJoinHandle<'_, _>| {
                other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            std::iter::once(own).chain(others.into_iter().map(join)).collect()
        });
        let seconds = (0..passes.max(1)).filter_map(|pass| {
            let start = spans.iter().map(|thread| thread[pass].0).min()?;
            let end = spans.iter().map(|thread| thread[pass].1).max()?;
            Some((end - start).as_secs_f64())
        });
        self.memory.len() as f64 / seconds.fold(f64::INFINITY, f64::min)
    }
}

/// Floating-point operations per second of one thread: a multiplication and an addition each, on
/// 32-bit floats in registers.
pub fn flops_per_second() -> f64 {
    let rounds = 2_000_000u32;
    let best = (0..5)
        .map(|_| {
            let start = Instant::now();
            black_box(multiply_add(black_box(rounds)));
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min);
    2.0 * f64::from(rounds) * (CHAINS * WIDTH) as f64 / best
}

/// Independent chains of operations: enough to hide the latency of one.
const CHAINS: usize = 10;
/// Floats of a chain.
const WIDTH: usize = 16;

fn sum(bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        use crate::isa::Isa;
        if Isa::Avx512Vnni.is_available() {
            // SAFETY: the processor has the features.
            return unsafe { x86::sum_avx512(bytes) };
        }
        if Isa::Avx2.is_available() {
            // SAFETY: the processor has the features.
            return unsafe { x86::sum_avx2(bytes) };
        }
    }
    sum_words(bytes, |_| ())
}

/// Sum of words; `ahead` is shown every line before it is read.
#[inline(always)]
fn sum_words(bytes: &[u8], ahead: impl Fn(&[u8])) -> u64 {
    let mut lanes = [0u64; 32];
    let (chunks, _) = bytes.as_chunks::<256>();
    for chunk in chunks {
        chunk.chunks_exact(64).for_each(&ahead);
        for (lane, word) in lanes.iter_mut().zip(chunk.as_chunks::<8>().0) {
            *lane = lane.wrapping_add(u64::from_ne_bytes(*word));
        }
    }
    lanes.iter().fold(0, |sum, lane| sum.wrapping_add(*lane))
}

fn multiply_add(rounds: u32) -> f32 {
    #[cfg(target_arch = "x86_64")]
    {
        use crate::isa::Isa;
        if Isa::Avx512Vnni.is_available() {
            // SAFETY: the processor has the features.
            return unsafe { x86::multiply_add_avx512(rounds) };
        }
        if Isa::Avx2.is_available() {
            // SAFETY: the processor has the features.
            return unsafe { x86::multiply_add_avx2(rounds) };
        }
    }
    let mut chains = [[black_box(1.0f32); WIDTH]; CHAINS];
    for _ in 0..rounds {
        for chain in &mut chains {
            for lane in chain {
                *lane = *lane * 0.999 + 0.001;
            }
        }
    }
    chains.as_flattened().iter().sum()
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        _mm256_fmadd_ps, _mm256_set1_ps, _mm256_storeu_ps, _mm512_add_epi64, _mm512_fmadd_ps,
        _mm512_loadu_si512, _mm512_reduce_add_epi64, _mm512_reduce_add_ps, _mm512_set1_ps,
        _mm512_setzero_si512,
    };

    use std::hint::black_box;

    use super::{CHAINS, sum_words};
    use crate::ahead::ask_ahead;

    /// Of eight-byte words, 512 bytes at a time: compilers cut wide registers in halves here, and a
    /// quarter of the rate is lost.
    #[target_feature(enable = "avx512f")]
    pub(super) fn sum_avx512(bytes: &[u8]) -> u64 {
        let mut sums = [_mm512_setzero_si512(); 8];
        let (chunks, _) = bytes.as_chunks::<512>();
        for chunk in chunks {
            for (sum, line) in sums.iter_mut().zip(chunk.as_chunks::<64>().0) {
                ask_ahead(line);
                // SAFETY: sixty-four bytes.
                let words = unsafe { _mm512_loadu_si512(line.as_ptr().cast()) };
                *sum = _mm512_add_epi64(*sum, words);
            }
        }
        let total = sums.iter().map(|sum| _mm512_reduce_add_epi64(*sum));
        total.fold(0u64, |total, sum| total.wrapping_add(sum.cast_unsigned()))
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn sum_avx2(bytes: &[u8]) -> u64 {
        sum_words(bytes, ask_ahead)
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn multiply_add_avx512(rounds: u32) -> f32 {
        let mut chains = [_mm512_set1_ps(black_box(1.0)); CHAINS];
        let (factor, term) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(0.001)));
        for _ in 0..rounds {
            for chain in &mut chains {
                *chain = _mm512_fmadd_ps(*chain, factor, term);
            }
        }
        chains.iter().map(|chain| _mm512_reduce_add_ps(*chain)).sum()
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn multiply_add_avx2(rounds: u32) -> f32 {
        let (factor, term) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(0.001)));
        let mut sum = 0.0;
        // Sixteen registers hold half of the chains at a time.
        for _ in 0..2 {
            let mut chains = [_mm256_set1_ps(black_box(1.0)); CHAINS];
            for _ in 0..rounds {
                for chain in &mut chains {
                    *chain = _mm256_fmadd_ps(*chain, factor, term);
                }
            }
            for chain in chains {
                let mut lanes = [0.0f32; 8];
                // SAFETY: the array holds eight floats.
                unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), chain) };
                sum += lanes.iter().sum::<f32>();
            }
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_read_whatever_the_number_of_threads() {
        let test = ReadTest::new(3 << 20).unwrap();
        // One byte of every page is 1.
        assert_eq!(sum(&test.memory), (3 << 20) / 4096);
        for threads in [1, 2, 3] {
            let rate = test.bytes_per_second(threads, 2);
            assert!(rate.is_finite() && rate > 0.0);
        }
    }

    #[test]
    fn variants_compute_the_same_fixed_point() {
        // 1 * 0.999 + 0.001 = 1.
        let expected = (CHAINS * WIDTH) as f32;
        assert!((multiply_add(1000) - expected).abs() < 0.1);
        assert!(flops_per_second() > 0.0);
    }
}
