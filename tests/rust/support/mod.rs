//! What the tests share: paths, the executor macro, comparisons, seeded randomness.

pub(crate) mod allocator;
pub(crate) mod fake_hub;
pub(crate) mod gguf;
pub(crate) mod history;
pub(crate) mod models;
pub(crate) mod scenarios;
pub(crate) mod tensors;

use std::path::{Path, PathBuf};

use moshi_core::exec::Executor;
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Makes three tests of every generic function `fn name<E: Executor>(exec: &E)`, four in a CUDA
/// build.
macro_rules! executors {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            #[test]
            fn scalar() {
                super::$name(&moshi_core::exec::Scalar);
            }

            #[test]
            fn candle() {
                super::$name(&moshi_core::exec::Candle::cpu());
            }

            #[test]
            fn cpu() {
                super::$name(&moshi_core::exec::Cpu::new(None).unwrap());
            }

            #[cfg(feature = "cuda")]
            #[test]
            fn cuda() {
                $crate::support::on_cuda(super::$name);
            }
        }
    )+};
}

/// Runs a test on the GPU, unless this machine has no driver for one.
#[cfg(feature = "cuda")]
#[allow(clippy::print_stderr, reason = "a test that did not run must say so")]
pub(crate) fn on_cuda(test: impl FnOnce(&moshi_core::exec::Candle)) {
    match moshi_core::exec::Candle::cuda() {
        Err(moshi_core::Error::Device { reason, .. }) if reason.contains(NO_DRIVER) => {
            eprintln!("not run: {reason}");
        }
        exec => test(&exec.unwrap()),
    }
}

/// What the error says on a machine without NVIDIA's driver.
#[cfg(feature = "cuda")]
pub(crate) const NO_DRIVER: &str = "driver must be installed";

/// A file or folder of the repository.
pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(path)
}

/// A file or folder below `tests/golden`.
pub(crate) fn golden(path: &str) -> PathBuf {
    repository("tests/golden").join(path)
}

/// True for the executor that promises equal bits.
pub(crate) fn is_exact<E: Executor>(exec: &E) -> bool {
    exec.name().starts_with("scalar")
}

/// Equal bits under the scalar executor, else [`assert_close`].
#[track_caller]
pub(crate) fn assert_same<E: Executor>(exec: &E, got: &[f32], expected: &[f32]) {
    if is_exact(exec) {
        assert_bits(got, expected);
    } else {
        assert_close(got, expected, 1e-4);
    }
}

/// Equal bits under executors that compute a row the same way whatever is beside it, else
/// [`assert_close`].
#[track_caller]
pub(crate) fn assert_same_as_alone<E: Executor>(exec: &E, got: &[f32], expected: &[f32]) {
    if is_exact(exec) || exec.name().starts_with("cpu") {
        assert_bits(got, expected);
    } else {
        assert_close(got, expected, 1e-4);
    }
}

/// Equal bits.
#[track_caller]
pub(crate) fn assert_bits(got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len());
    let differing = got.iter().zip(expected).position(|(a, b)| a.to_bits() != b.to_bits());
    if let Some(i) = differing {
        panic!("value {i} of {} is {}, expected {}", got.len(), got[i], expected[i]);
    }
}

/// Values that deviate by at most `tolerance`, absolute or of the largest expected one.
#[track_caller]
pub(crate) fn assert_close(got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len());
    let scale = expected.iter().fold(1.0f32, |scale, v| scale.max(v.abs()));
    for (i, (a, b)) in got.iter().zip(expected).enumerate() {
        let close = (a - b).abs() <= tolerance * scale;
        assert!(close, "value {i} of {} is {a}, expected {b}", got.len());
    }
}

/// Seeded random numbers (SplitMix64).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// Any number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// A number in -1..1.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// Numbers in -1..1.
    pub(crate) fn units(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.unit()).collect()
    }
}

/// Audio that keeps a codec busy: two tones and noise.
pub(crate) fn audio(seed: u64, samples: usize) -> Vec<f32> {
    let mut dice = Dice(seed);
    let pitch = 0.01 + 0.05 * dice.unit().abs();
    (0..samples)
        .map(|i| {
            let t = i as f32;
            0.3 * (t * pitch).sin() + 0.2 * (t * pitch * 3.1).sin() + 0.2 * dice.unit()
        })
        .collect()
}

/// Runs a property on `cases` values of a strategy, always the same ones.
pub(crate) fn property<S: Strategy>(cases: u32, strategy: &S, test: impl Fn(S::Value)) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let result = runner.run(strategy, |value| {
        test(value);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}
