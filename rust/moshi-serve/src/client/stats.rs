//! Percentiles of what a client measures.

use std::time::Duration;

/// Times of frames, from sending the input to having the output.
#[derive(Debug, Clone, Default)]
pub struct Latency {
    ms: Vec<f64>,
}

impl Latency {
    pub(crate) fn add(&mut self, time: Duration) {
        self.ms.push(time.as_secs_f64() * 1e3);
    }

    pub(crate) fn extend(&mut self, other: &Self) {
        self.ms.extend_from_slice(&other.ms);
    }

    /// Frames measured.
    pub fn frames(&self) -> usize {
        self.ms.len()
    }

    /// Frames that took longer.
    pub fn over(&self, limit: Duration) -> usize {
        let limit = limit.as_secs_f64() * 1e3;
        self.ms.iter().filter(|&&ms| ms > limit).count()
    }

    /// Nearest-rank percentile in milliseconds; `share` from 0 to 1.
    pub fn percentile_ms(&self, share: f64) -> f64 {
        let mut sorted = self.ms.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let mut latency = Latency::default();
        for ms in (1..=100).rev() {
            latency.add(Duration::from_millis(ms));
        }
        assert_eq!([0.5, 0.95, 0.99, 1.0].map(|p| latency.percentile_ms(p)), [50., 95., 99., 100.]);
        assert_eq!(latency.over(Duration::from_millis(98)), 2);
        assert_eq!(Latency::default().percentile_ms(0.5), 0.0);
    }
}
