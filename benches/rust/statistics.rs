//! Medians and spreads of what was measured round by round.

use serde_json::{Value, json};

/// Median and extremes of some numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The middle one; of an even count, the mean of the middle two.
    pub median: f64,
    /// The smallest.
    pub least: f64,
    /// The largest.
    pub most: f64,
}

impl Spread {
    /// Of at least one number; all are NaN without any.
    pub fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let [Some(&least), Some(&most)] = [sorted.first(), sorted.last()] else {
            return Self { median: f64::NAN, least: f64::NAN, most: f64::NAN };
        };
        let middle = sorted.len() / 2;
        let lower = if sorted.len().is_multiple_of(2) { middle - 1 } else { middle };
        Self { median: f64::midpoint(sorted[lower], sorted[middle]), least, most }
    }

    /// Of `numerators` divided by `denominators`, round by round.
    pub fn of_ratios(numerators: &[f64], denominators: &[f64]) -> Self {
        let ratios: Vec<f64> = numerators.iter().zip(denominators).map(|(n, d)| n / d).collect();
        Self::of(&ratios)
    }

    /// All numbers times a positive factor.
    pub fn times(self, factor: f64) -> Self {
        let Self { median, least, most } = self;
        Self { median: factor * median, least: factor * least, most: factor * most }
    }

    /// As an object.
    pub fn json(self) -> Value {
        json!({ "median": self.median, "least": self.least, "most": self.most })
    }
}

/// True when two rates differ by a tenth at most: what lies between them is worth something.
pub fn agree([before, after]: [f64; 2]) -> bool {
    (before - after).abs() <= 0.1 * before.max(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_counts() {
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]), Spread { median: 2.0, least: 1.0, most: 3.0 });
        assert_eq!(Spread::of(&[4.0, 1.0]).median, 2.5);
        assert!(Spread::of(&[]).median.is_nan());
        let halved = Spread::of(&[2.0, 4.0]).times(0.5);
        assert_eq!((halved.least, halved.median, halved.most), (1.0, 1.5, 2.0));
    }

    #[test]
    fn ratios_are_those_of_a_round() {
        // A machine that is twice as slow in the second round changes no ratio.
        let ratio = Spread::of_ratios(&[3.0, 6.0], &[1.0, 2.0]);
        assert_eq!(ratio, Spread { median: 3.0, least: 3.0, most: 3.0 });
    }

    #[test]
    fn rates_agree_within_a_tenth() {
        assert!(agree([10.0, 9.1]) && agree([9.1, 10.0]));
        assert!(!agree([10.0, 8.9]));
    }
}
