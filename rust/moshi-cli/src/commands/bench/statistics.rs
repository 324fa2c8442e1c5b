//! Percentiles of times.

/// The times of many steps, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Summary {
    pub(super) mean: f64,
    pub(super) min: f64,
    pub(super) p50: f64,
    pub(super) p95: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

impl Summary {
    /// Of any number of times; all zero without any.
    pub(super) fn of(times: &[f64]) -> Self {
        if times.is_empty() {
            return Self::default();
        }
        let mut sorted = times.to_vec();
        sorted.sort_by(f64::total_cmp);
        let rank = |share: f64| {
            let rank = (share * sorted.len() as f64).ceil() as usize;
            sorted[rank.clamp(1, sorted.len()) - 1]
        };
        Self {
            mean: sorted.iter().sum::<f64>() / sorted.len() as f64,
            min: sorted[0],
            p50: rank(0.5),
            p95: rank(0.95),
            p99: rank(0.99),
            max: rank(1.0),
        }
    }
}

/// True when two rates differ by a tenth at most: what lies between them is worth something.
pub(super) fn agree([before, after]: [f64; 2]) -> bool {
    (before - after).abs() <= 0.1 * before.max(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks_in_any_order() {
        let times: Vec<f64> = (1..=200u8).rev().map(f64::from).collect();
        let summary = Summary::of(&times);
        assert_eq!((summary.min, summary.p50, summary.p95), (1.0, 100.0, 190.0));
        assert_eq!((summary.p99, summary.max, summary.mean), (198.0, 200.0, 100.5));
        assert_eq!(Summary::of(&[3.0]).p99, 3.0);
        assert_eq!(Summary::of(&[]), Summary::default());
    }

    #[test]
    fn rates_agree_within_a_tenth() {
        assert!(agree([10.0, 9.1]) && agree([9.1, 10.0]));
        assert!(!agree([10.0, 8.9]));
    }
}
