//! Activations in blocks of 8 bits, made once for all matrices that multiply them.
#![allow(
    clippy::inline_always,
    reason = "compiled for the instruction set of the caller only where it is inlined"
)]

use super::products::BLOCK;

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
    pub fn set(&mut self, x: &[f32], width: usize) {
        debug_assert!(width.is_multiple_of(BLOCK) && x.len().is_multiple_of(width));
        self.row_blocks = width / BLOCK;
        self.blocks.clear();
        self.blocks.extend(x.as_chunks().0.iter().map(quantise));
    }

    /// Blocks of `N` rows from `first` on.
    #[inline(always)]
    pub(super) fn take<const N: usize>(&self, first: usize) -> [&[Block]; N] {
        std::array::from_fn(|n| {
            let start = (first + n) * self.row_blocks;
            &self.blocks[start..start + self.row_blocks]
        })
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

// Without branches, for the compiler to vectorise.
fn quantise(values: &[f32; BLOCK]) -> Block {
    let mut largest = [0.0f32; 8];
    for chunk in values.as_chunks::<8>().0 {
        for (largest, value) in largest.iter_mut().zip(chunk) {
            let magnitude = value.abs();
            *largest = if magnitude > *largest { magnitude } else { *largest };
        }
    }
    let largest = largest.iter().fold(0.0f32, |a, &b| a.max(b));
    // Not a number where one of the values is none or infinite, else zero.
    let poison: f32 = values.iter().map(|value| value * 0.0).sum();
    if poison.is_nan() || largest < SMALLEST {
        return Block { quads: [0; BLOCK / 4], scale: poison, sum: 0 };
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
/// Values below it count as zero: their inverse would be infinite.
const SMALLEST: f32 = 1e-30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_within_half_a_step() {
        let x: Vec<f32> = (0..96).map(|i| (i as f32 * 0.37).sin() * i as f32).collect();
        let mut quantised = Quantised::default();
        quantised.set(&x, 48 * 2);
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
        let mut quantised = Quantised::default();
        quantised.set(&[0.0; 32], 32);
        assert_eq!(quantised.blocks, [Block::default()]);
    }

    #[test]
    fn what_is_no_number_stays_none_and_what_is_tiny_is_zero() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = [0.5; 2 * BLOCK];
            x[7] = bad;
            let mut quantised = Quantised::default();
            quantised.set(&x, 2 * BLOCK);
            let values = quantised.values();
            assert!(values[..BLOCK].iter().all(|value| value.is_nan()), "{bad}");
            assert!(values[BLOCK..].iter().all(|value| (value - 0.5).abs() < 0.01));
        }
        let mut quantised = Quantised::default();
        quantised.set(&[f32::MIN_POSITIVE; BLOCK], BLOCK);
        assert!(quantised.values().iter().all(|&value| value == 0.0));
    }
}
