//! Tests of the public interface, on the fixtures in `tests/audio` of the repository.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod damage;
mod decode;
mod resample;
mod wav;

use std::path::PathBuf;

/// The path of a fixture.
fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/audio/")).join(name)
}

/// Signal-to-noise ratio of `actual` against `expected` in dB.
fn snr_db(expected: &[f32], actual: &[f32]) -> f64 {
    assert_eq!(expected.len(), actual.len());
    let signal: f64 = expected.iter().map(|&x| f64::from(x).powi(2)).sum();
    let noise: f64 =
        expected.iter().zip(actual).map(|(&x, &y)| (f64::from(x) - f64::from(y)).powi(2)).sum();
    10.0 * (signal / noise).log10()
}

/// The normalised correlation of two signals of the same length.
fn correlation(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// A small generator with a fixed sequence for each seed (xorshift).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}
