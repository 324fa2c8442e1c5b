//! Norms and activations without branches, compiled for every instruction set.
//!
//! Exponentials are polynomials: within 3e-7 of the true value, relative, which is a few units in
//! the last place; the error function is within 2e-7, absolute (Abramowitz and Stegun, 7.1.26).
#![allow(
    clippy::inline_always,
    reason = "compiled for the instruction set of the caller only where it is inlined"
)]

use super::products::FloatRows;
use super::{Kernels, split};
use crate::isa::Isa;
use crate::pool::Pool;
use crate::rows::Rows;
use crate::scalar::{LANES, sum_lanes};

impl Kernels {
    /// Exponential linear unit with alpha 1, in place.
    pub fn elu(self, pool: &Pool, x: &mut [f32]) {
        in_parts(pool, x, EXPONENTIAL, &|_, x| dispatch!(self, variants::elu(x)));
    }

    /// `x = elu(x + y)`.
    pub fn add_elu(self, pool: &Pool, x: &mut [f32], y: &[f32]) {
        let work = |first: usize, x: &mut [f32]| {
            dispatch!(self, variants::add_elu(x, &y[first..]));
        };
        in_parts(pool, x, EXPONENTIAL, &work);
    }

    /// Gaussian error linear unit by the error function, in place.
    pub fn gelu(self, x: &mut [f32]) {
        dispatch!(self, variants::gelu(x));
    }

    /// Gated unit: rows of `x` are `[gate, value]`, `y = silu(gate) * value` is half as wide.
    pub fn silu_gate(self, x: &[f32], width: usize, y: &mut [f32]) {
        for (row, y) in x.chunks_exact(2 * width).zip(y.chunks_exact_mut(width)) {
            let (gate, value) = row.split_at(width);
            dispatch!(self, variants::silu_gate(gate, value, y));
        }
    }

    /// Root-mean-square norm of every row, as [`crate::scalar::rms_norm`].
    pub fn rms_norm(self, x: &[f32], alpha: &[f32], eps: f32, y: &mut [f32]) {
        let width = alpha.len();
        for (row, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            dispatch!(self, variants::rms_norm(row, alpha, eps, y));
        }
    }

    /// Layer norm of every row, as [`crate::scalar::layer_norm`].
    pub fn layer_norm(self, x: &[f32], weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32]) {
        let width = weight.len();
        for (row, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            dispatch!(self, variants::layer_norm(row, weight, bias, eps, y));
        }
    }

    /// Products of every row of `x` with `weight`, and `bias`.
    pub fn dots(self, pool: &Pool, x: FloatRows<'_>, weight: &[f32], bias: f32, y: &mut [f32]) {
        let width = weight.len();
        in_parts(pool, y, size_of_val(weight), &|first, y| {
            for (row, y) in (first..).zip(y) {
                *y = dispatch!(self, variants::dot(x.row(row, width), weight)) + bias;
            }
        });
    }

    /// `x = exp(x - max)`; gives the sum.
    pub(super) fn exp_minus(self, x: &mut [f32], max: f32) -> f32 {
        dispatch!(self, variants::exp_minus(x, max))
    }
}

/// Calls `work` with parts of `x` and where they begin, on the threads of the pool where that helps.
/// `cost` is what a value takes, in bytes that can be read meanwhile.
fn in_parts(pool: &Pool, x: &mut [f32], cost: usize, work: &(dyn Fn(usize, &mut [f32]) + Sync)) {
    let part = (PART_BYTES / cost.max(1)).max(LANES);
    let whole = x.len() / part * part;
    let (parts, rest) = x.split_at_mut(whole);
    let parts = Rows::new(parts, part);
    split(pool, whole / part, whole * cost, &|number| {
        // SAFETY: every row is one part of the work.
        work(number * part, unsafe { parts.row(number) });
    });
    work(whole, rest);
}

/// What a part takes, in bytes that can be read meanwhile.
const PART_BYTES: usize = 32 << 10;
/// The same for an exponential.
const EXPONENTIAL: usize = 8;

/// Sums in lanes of their own, then pairwise: no order for the compiler to keep.
#[inline(always)]
fn sum(count: usize, term: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let whole = count - count % LANES;
    let mut i = 0;
    while i < whole {
        for (lane, total) in lanes.iter_mut().enumerate() {
            *total += term(i + lane);
        }
        i += LANES;
    }
    for (lane, total) in lanes.iter_mut().enumerate().take(count - whole) {
        *total += term(whole + lane);
    }
    sum_lanes(lanes)
}

/// What a root-mean-square norm multiplies with, beside its weights.
#[inline(always)]
pub(super) fn rms_scale(x: &[f32], eps: f32) -> f32 {
    let mean_square = sum(x.len(), |i| x[i] * x[i]) / x.len() as f32;
    1.0 / (mean_square + eps).sqrt()
}

/// `a * b + c`, rounded once where the processor does that in one instruction; elsewhere it would be
/// a call of a function.
#[inline(always)]
fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

#[inline(always)]
fn exp<const FUSED: bool>(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    // Adding and taking off 1.5 * 2^23 rounds; the low bits of the sum are the integer.
    let shifted = multiply_add::<FUSED>(x, std::f32::consts::LOG2_E, ROUNDING);
    let whole = shifted - ROUNDING;
    let rest = multiply_add::<FUSED>(whole, -LN_2_HIGH, x);
    let rest = multiply_add::<FUSED>(whole, -LN_2_LOW, rest);
    let mut polynomial = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        polynomial = multiply_add::<FUSED>(polynomial, rest, coefficient);
    }
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    polynomial * power
}

const ROUNDING: f32 = 12_582_912.0;
/// The logarithm of 2 in two parts; products of the first with small integers are exact.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;

#[inline(always)]
fn elu<const FUSED: bool>(x: f32) -> f32 {
    if x < 0.0 { exp::<FUSED>(x) - 1.0 } else { x }
}

#[inline(always)]
fn gelu<const FUSED: bool>(x: f32) -> f32 {
    let magnitude = (x * std::f32::consts::FRAC_1_SQRT_2).abs();
    let t = 1.0 / (1.0 + 0.327_591_1 * magnitude);
    let mut polynomial = 1.061_405_4;
    for coefficient in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6, 0.0] {
        polynomial = multiply_add::<FUSED>(polynomial, t, coefficient);
    }
    let erf = 1.0 - polynomial * exp::<FUSED>(-magnitude * magnitude);
    0.5 * x * (1.0 + if x < 0.0 { -erf } else { erf })
}

macro_rules! elementwise {
    ($name:ident, $fused:literal, $(#[$features:meta])?) => {
        pub(super) mod $name {
            use super::super::{LANES, elu as elu_of, exp, gelu as gelu_of, rms_scale, sum};

            $(#[$features])?
            pub(crate) fn elu(x: &mut [f32]) {
                for value in x {
                    *value = elu_of::<$fused>(*value);
                }
            }

            $(#[$features])?
            pub(crate) fn add_elu(x: &mut [f32], y: &[f32]) {
                for (x, y) in x.iter_mut().zip(y) {
                    *x = elu_of::<$fused>(*x + *y);
                }
            }

            $(#[$features])?
            pub(crate) fn gelu(x: &mut [f32]) {
                for value in x {
                    *value = gelu_of::<$fused>(*value);
                }
            }

            $(#[$features])?
            pub(crate) fn silu_gate(gate: &[f32], value: &[f32], y: &mut [f32]) {
                for ((y, gate), value) in y.iter_mut().zip(gate).zip(value) {
                    *y = *gate / (1.0 + exp::<$fused>(-*gate)) * *value;
                }
            }

            $(#[$features])?
            pub(crate) fn rms_norm(x: &[f32], alpha: &[f32], eps: f32, y: &mut [f32]) {
                let scale = rms_scale(x, eps);
                for ((y, x), alpha) in y.iter_mut().zip(x).zip(alpha) {
                    *y = *x * (*alpha * scale);
                }
            }

            $(#[$features])?
            pub(crate) fn layer_norm(
                x: &[f32],
                weight: &[f32],
                bias: &[f32],
                eps: f32,
                y: &mut [f32],
            ) {
                let mean = sum(x.len(), |i| x[i]) / x.len() as f32;
                let variance = sum(x.len(), |i| (x[i] - mean) * (x[i] - mean)) / x.len() as f32;
                let scale = 1.0 / (variance + eps).sqrt();
                for (((y, x), weight), bias) in y.iter_mut().zip(x).zip(weight).zip(bias) {
                    *y = (*x - mean) * scale * *weight + *bias;
                }
            }

            $(#[$features])?
            pub(crate) fn dot(x: &[f32], y: &[f32]) -> f32 {
                let y = &y[..x.len()];
                sum(x.len(), |i| x[i] * y[i])
            }

            $(#[$features])?
            pub(crate) fn exp_minus(x: &mut [f32], max: f32) -> f32 {
                let mut lanes = [0.0f32; LANES];
                for chunk in x.chunks_mut(LANES) {
                    for (value, lane) in chunk.iter_mut().zip(&mut lanes) {
                        *value = exp::<$fused>(*value - max);
                        *lane += *value;
                    }
                }
                sum(LANES, |i| lanes[i])
            }
        }
    };
}

mod variants {
    elementwise!(scalar, false,);
    #[cfg(target_arch = "x86_64")]
    elementwise!(avx2, true, #[target_feature(enable = "avx2,fma,f16c")]);
    #[cfg(target_arch = "x86_64")]
    elementwise!(
        avx512,
        true,
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scalar;

    fn each(test: impl Fn(Kernels)) {
        Isa::available().filter_map(Kernels::new).for_each(test);
    }

    fn wave(count: usize) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * 0.61).sin() * (i % 13) as f32 - 1.0).collect()
    }

    #[track_caller]
    fn assert_close(got: &[f32], expected: &[f32], tolerance: f32) {
        assert_eq!(got.len(), expected.len());
        for (a, b) in got.iter().zip(expected) {
            assert!((a - b).abs() <= tolerance * b.abs().max(1.0), "{a} is not {b}");
        }
    }

    #[test]
    fn exponentials_are_exact_to_a_few_units() {
        for exp in [exp::<false>, exp::<true>] {
            for i in -8700..=8800 {
                let x = i as f32 / 100.0;
                let (got, expected) = (f64::from(exp(x)), f64::from(x).exp());
                assert!((got / expected - 1.0).abs() < 5e-7, "exp({x}) is {got}, not {expected}");
            }
            assert!(exp(-1e9) < 1e-37 && exp(f32::NEG_INFINITY) < 1e-37);
            assert!(exp(f32::NAN).is_nan());
        }
    }

    #[test]
    fn every_variant_equals_the_reference_kernels() {
        each(|kernels| {
            let pool = Pool::new(2);
            // Less than a part, and several with a rest.
            for count in [131, 9 * PART_BYTES / EXPONENTIAL + 131] {
                let x = wave(count);
                let (mut a, mut b) = (x.clone(), x.clone());
                kernels.elu(&pool, &mut a);
                scalar::elu(&mut b);
                assert_close(&a, &b, 1e-6);
                let (mut a, mut b) = (x.clone(), x.clone());
                let y: Vec<f32> = x.iter().rev().copied().collect();
                kernels.add_elu(&pool, &mut a, &y);
                scalar::add(&mut b, &y);
                scalar::elu(&mut b);
                assert_close(&a, &b, 1e-6);
            }
            let (x, weight) = (wave(2 * 5000 + 45), wave(47));
            let rows = FloatRows { x: &x, stride: 2, rows_per_group: usize::MAX, group_stride: 0 };
            let mut y = vec![0.0; 5000];
            kernels.dots(&pool, rows, &weight, 0.5, &mut y);
            let dot = |at: usize| scalar::dot(&x[at..at + 47], &weight) + 0.5;
            let expected: Vec<f32> = (0..5000).map(|row| dot(2 * row)).collect();
            assert_close(&y, &expected, 1e-4);
            // Windows of two streams.
            let rows = FloatRows { x: &x, stride: 2, rows_per_group: 1500, group_stride: 4000 };
            let mut y = vec![0.0; 3000];
            kernels.dots(&pool, rows, &weight, 0.5, &mut y);
            let expected: Vec<f32> =
                (0..3000).map(|row| dot(row / 1500 * 4000 + row % 1500 * 2)).collect();
            assert_close(&y, &expected, 1e-4);

            let x = wave(131);
            let (mut a, mut b) = (x.clone(), x.clone());
            kernels.gelu(&mut a);
            scalar::gelu(&mut b);
            assert_close(&a, &b, 1e-6);

            let (mut a, mut b) = (vec![0.0; 60], vec![0.0; 60]);
            kernels.silu_gate(&x[..120], 30, &mut a);
            scalar::silu_gate(&x[..120], 30, &mut b);
            assert_close(&a, &b, 1e-6);

            let (alpha, bias) = (wave(37), wave(37));
            let (mut a, mut b) = (vec![0.0; 111], vec![0.0; 111]);
            kernels.rms_norm(&x[..111], &alpha, 1e-8, &mut a);
            scalar::rms_norm(&x[..111], &alpha, 1e-8, &mut b);
            assert_close(&a, &b, 1e-5);
            kernels.layer_norm(&x[..111], &alpha, &bias, 1e-5, &mut a);
            scalar::layer_norm(&x[..111], &alpha, &bias, 1e-5, &mut b);
            assert_close(&a, &b, 1e-5);
        });
    }
}
