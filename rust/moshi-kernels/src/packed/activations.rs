//! Activations in blocks of 8 bits, made once for all matrices that multiply them.
#![allow(
    clippy::inline_always,
    reason = "compiled for the instruction set of the caller only where it is inlined"
)]

use super::Kernels;
use super::elementwise::rms_scale;
use super::products::BLOCK;
use crate::isa::Isa;

/// 32 activations: `value = scale * q`, `q` in -127..=127.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Block {
    /// Four `q` each, the first one in the lowest byte.
    pub(super) quads: [i32; BLOCK / 4],
    /// Largest magnitude divided by 127.
    pub(super) scale: f32,
    /// Sum of all `q`.
    pub(super) sum: i32,
}

/// Rows of activations in blocks, in memory that is used again.
#[derive(Debug, Default)]
pub struct Quantised {
    blocks: Vec<Block>,
    row_blocks: usize,
}

impl Quantised {
    /// Takes rows `x`, `[rows, width]`; the width must be whole blocks of 32.
    pub fn set(&mut self, kernels: Kernels, x: &[f32], width: usize) {
        let blocks = self.blocks_of(x, width);
        dispatch!(kernels, variants::round(x, blocks));
    }

    /// Takes the root-mean-square norms of rows `x`, see [`crate::scalar::rms_norm`], without
    /// writing them down: the same as [`Kernels::rms_norm`] and [`Quantised::set`].
    pub fn set_normed(&mut self, kernels: Kernels, x: &[f32], alpha: &[f32], eps: f32) {
        let width = alpha.len();
        let blocks = self.blocks_of(x, width).chunks_exact_mut(width / BLOCK);
        for (x, blocks) in x.chunks_exact(width).zip(blocks) {
            dispatch!(kernels, variants::round_normed(x, alpha, eps, blocks));
        }
    }

    fn blocks_of(&mut self, x: &[f32], width: usize) -> &mut [Block] {
        assert!(width > 0 && width.is_multiple_of(BLOCK), "rows of whole blocks");
        debug_assert!(x.len().is_multiple_of(width));
        self.row_blocks = width / BLOCK;
        self.blocks.resize(x.len() / BLOCK, Block::default());
        &mut self.blocks
    }

    /// Blocks of `N` rows from `first` on.
    #[inline(always)]
    pub(super) fn take<const N: usize>(&self, first: usize) -> [&[Block]; N] {
        let mut rows: [&[Block]; N] = [&[]; N];
        for (row, blocks) in
            rows.iter_mut().zip(self.blocks.chunks_exact(self.row_blocks).skip(first))
        {
            *row = blocks;
        }
        rows
    }

    /// Rows held.
    pub fn rows(&self) -> usize {
        self.blocks.len().checked_div(self.row_blocks).unwrap_or(0)
    }

    /// Values of a row.
    pub fn width(&self) -> usize {
        self.row_blocks * BLOCK
    }

    /// The rows as the floats that they stand for.
    pub fn values(&self) -> Vec<f32> {
        let values = |block: &Block| {
            let bytes = block.quads.map(i32::to_le_bytes);
            let scale = block.scale;
            bytes.into_iter().flatten().map(move |q| scale * f32::from(q.cast_signed()))
        };
        self.blocks.iter().flat_map(values).collect()
    }
}

// Without branches or sums of floats, for the compiler to vectorise.
#[inline(always)]
fn quantise(values: &[f32; BLOCK]) -> Block {
    // Magnitudes are in the order of their bits, with what is no number above all.
    let magnitudes = values.iter().map(|value| value.to_bits() & !SIGN);
    let largest = magnitudes.fold(0, u32::max);
    if largest >= f32::INFINITY.to_bits() {
        return Block { quads: [0; BLOCK / 4], scale: f32::NAN, sum: 0 };
    }
    let largest = f32::from_bits(largest);
    if largest < SMALLEST {
        return Block::default();
    }
    let scale = largest / 127.0;
    let inverse = 127.0 / largest;
    let mut bytes = [0u8; BLOCK];
    let mut sum = 0;
    for (byte, value) in bytes.iter_mut().zip(values) {
        // Adding and taking off 1.5 * 2^23 rounds to the nearest integer, ties to even; the low
        // bits then hold the integer.
        let rounded = (value * inverse + ROUNDING).to_bits().wrapping_sub(ROUNDING.to_bits());
        sum += rounded.cast_signed();
        *byte = rounded as u8;
    }
    let mut quads = [0; BLOCK / 4];
    for (quad, bytes) in quads.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *quad = i32::from_le_bytes(*bytes);
    }
    Block { quads, scale, sum }
}

const ROUNDING: f32 = 12_582_912.0;
const SIGN: u32 = 1 << 31;
/// Values below it count as zero: their inverse would be infinite.
const SMALLEST: f32 = 1e-30;

macro_rules! rounding {
    ($name:ident, $(#[$features:meta])?) => {
        pub(super) mod $name {
            use super::super::{BLOCK, Block, quantise, rms_scale};

            $(#[$features])?
            pub(crate) fn round(x: &[f32], blocks: &mut [Block]) {
                for (block, x) in blocks.iter_mut().zip(x.as_chunks().0) {
                    *block = quantise(x);
                }
            }

            $(#[$features])?
            pub(crate) fn round_normed(x: &[f32], alpha: &[f32], eps: f32, blocks: &mut [Block]) {
                let scale = rms_scale(x, eps);
                let parts = x.as_chunks::<BLOCK>().0.iter().zip(alpha.as_chunks::<BLOCK>().0);
                for (block, (x, alpha)) in blocks.iter_mut().zip(parts) {
                    *block = quantise(&std::array::from_fn(|i| x[i] * (alpha[i] * scale)));
                }
            }
        }
    };
}

mod variants {
    rounding!(scalar,);
    #[cfg(target_arch = "x86_64")]
    rounding!(avx2, #[target_feature(enable = "avx2,fma,f16c")]);
    #[cfg(target_arch = "x86_64")]
    rounding!(
        avx512,
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounded(x: &[f32], width: usize) -> Quantised {
        let each = Isa::available().filter_map(Kernels::new).map(|kernels| {
            let mut quantised = Quantised::default();
            quantised.set(kernels, x, width);
            quantised
        });
        // What is no number is unequal to itself.
        let same = |a: &Quantised, b: &Quantised| format!("{a:?}") == format!("{b:?}");
        each.reduce(|a, b| if same(&a, &b) { a } else { panic!("{a:?} is not {b:?}") }).unwrap()
    }

    #[test]
    fn a_norm_on_the_way_gives_the_same_bits() {
        let x: Vec<f32> = (0..192).map(|i| (i as f32 * 0.37).sin() * i as f32).collect();
        let alpha: Vec<f32> = (0..96).map(|i| 1.0 + (i as f32 * 0.7).cos()).collect();
        for kernels in Isa::available().filter_map(Kernels::new) {
            let mut normed = vec![0.0; x.len()];
            kernels.rms_norm(&x, &alpha, 1e-8, &mut normed);
            let (mut at_once, mut after) = (Quantised::default(), Quantised::default());
            at_once.set_normed(kernels, &x, &alpha, 1e-8);
            after.set(kernels, &normed, alpha.len());
            assert_eq!(at_once.blocks, after.blocks, "{kernels:?}");
        }
    }

    #[test]
    fn values_come_back_within_half_a_step() {
        let x: Vec<f32> = (0..96).map(|i| (i as f32 * 0.37).sin() * i as f32).collect();
        let quantised = rounded(&x, 48 * 2);
        for (block, (x, back)) in x.chunks(BLOCK).zip(quantised.values().chunks(BLOCK)).enumerate()
        {
            let largest = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            for (x, back) in x.iter().zip(back) {
                assert!((x - back).abs() <= largest / 127.0 * 0.501, "{x} became {back}");
            }
            let sum: i32 = back.iter().map(|v| (v / (largest / 127.0)).round() as i32).sum();
            assert_eq!(quantised.blocks[block].sum, sum);
        }
    }

    #[test]
    fn zeros_stay_zeros() {
        let quantised = rounded(&[0.0; 32], 32);
        assert_eq!(quantised.blocks, [Block::default()]);
    }

    #[test]
    fn what_is_no_number_stays_none_and_what_is_tiny_is_zero() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = [0.5; 2 * BLOCK];
            x[7] = bad;
            let quantised = rounded(&x, 2 * BLOCK);
            let values = quantised.values();
            assert!(values[..BLOCK].iter().all(|value| value.is_nan()), "{bad}");
            assert!(values[BLOCK..].iter().all(|value| (value - 0.5).abs() < 0.01));
        }
        let quantised = rounded(&[f32::MIN_POSITIVE; BLOCK], BLOCK);
        assert!(quantised.values().iter().all(|&value| value == 0.0));
    }
}
