//! Keys and values in 8 bits: one scale for the row of a head.

use half::bf16;

/// How a row is kept in 8 bits: `value = scale * q`, `q` in -127..=127, rounded to nearest.
///
/// The scale is the largest magnitude divided by 127, in bf16. Its few digits make every
/// `scale * q` exact, so that a row of such values is stored again as the same bits.
#[derive(Clone, Copy, Debug)]
pub struct EightBits {
    scale: bf16,
    inverse: f32,
}

impl EightBits {
    /// For this row. Where one of its values is infinite or no number, all of them become none.
    pub fn of(row: &[f32]) -> Self {
        let largest = row.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        // Not a number where one of the values is none or infinite, else zero.
        let poison: f32 = row.iter().map(|value| value * 0.0).sum();
        if poison.is_nan() || largest > LARGEST {
            return Self { scale: bf16::NAN, inverse: 0.0 };
        }
        let scale = bf16::from_f32(largest / 127.0);
        if scale.to_f32() < f32::MIN_POSITIVE {
            return Self { scale: bf16::ZERO, inverse: 0.0 };
        }
        Self { scale, inverse: 1.0 / scale.to_f32() }
    }

    /// The scale.
    pub fn scale(self) -> bf16 {
        self.scale
    }

    /// A value of the row in 8 bits.
    pub fn round(self, value: f32) -> i8 {
        // Adding 1.5 * 2^23 rounds to the nearest integer, whose low bits are then the last ones.
        ((value * self.inverse + ROUNDING).to_bits() as u8).cast_signed()
    }

    /// Rounds a row to the values that its 8 bits stand for.
    pub fn round_row(row: &mut [f32]) {
        let bits = Self::of(row);
        for value in row {
            *value = bits.scale.to_f32() * f32::from(bits.round(*value));
        }
    }
}

const ROUNDING: f32 = 12_582_912.0;
/// Below the largest float by more than a scale is rounded up.
const LARGEST: f32 = 3e38;

#[cfg(test)]
mod tests {
    use super::*;

    fn rounded(row: &[f32]) -> Vec<f32> {
        let mut row = row.to_vec();
        EightBits::round_row(&mut row);
        row
    }

    fn rows() -> impl Iterator<Item = Vec<f32>> {
        (0..2000).map(|seed| {
            let size = 10f32.powf((seed % 71) as f32 - 35.0);
            (0..24).map(|i| size * ((i * 7 + seed) as f32 * 0.61).sin()).collect()
        })
    }

    #[test]
    fn values_come_back_within_half_a_step() {
        for row in rows() {
            let step = row.iter().fold(0.0f32, |a, v| a.max(v.abs())) / 127.0;
            for (value, rounded) in row.iter().zip(rounded(&row)) {
                assert!((value - rounded).abs() <= 0.51 * step, "{value} became {rounded}");
            }
        }
    }

    #[test]
    fn rounded_rows_are_stored_as_the_same_bits() {
        for row in rows() {
            let once = rounded(&row);
            let (first, second) = (EightBits::of(&row), EightBits::of(&once));
            assert_eq!(first.scale(), second.scale());
            for (value, again) in row.iter().zip(&once) {
                assert_eq!(first.round(*value), second.round(*again));
            }
            assert_eq!(rounded(&once), once);
        }
    }

    #[test]
    fn extremes_stay_what_they_are() {
        assert_eq!(rounded(&[0.0, -0.0]), [0.0, 0.0]);
        assert_eq!(rounded(&[1e-39, -1e-40]), [0.0, 0.0]);
        assert!(rounded(&[2.9e38, -2.9e38]).iter().all(|value| value.is_finite()));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
            assert!(rounded(&[1.0, bad]).iter().all(|value| value.is_nan()), "{bad}");
        }
    }
}
