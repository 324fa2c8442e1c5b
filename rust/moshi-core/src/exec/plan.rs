//! Positions, windows and rotary angles of one step, computed once on the host.

use std::ops::Range;

/// How the two numbers of a rotated pair lie in a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotaryStyle {
    /// Pairs `(2i, 2i + 1)`: config value `rope`.
    Interleaved,
    /// Pairs `(i, i + width / 2)`: config value `rope_concat`.
    SplitHalves,
}

/// Rotary position embedding (RoPE, Su et al. 2021): frequencies of one kind of head.
#[derive(Clone, Debug)]
pub struct Rotary {
    /// Layout of pairs.
    pub style: RotaryStyle,
    frequencies: Vec<f64>,
}

impl Rotary {
    /// Frequencies `max_period^(-2i / head_width)`.
    pub fn new(style: RotaryStyle, head_width: usize, max_period: f64) -> Self {
        let half = head_width / 2;
        let frequencies =
            (0..half).map(|i| (-(i as f64) * max_period.ln() / half as f64).exp()).collect();
        Self { style, frequencies }
    }

    /// Half the width of a head.
    pub fn half_width(&self) -> usize {
        self.frequencies.len()
    }
}

/// What attention needs to know about one step over some streams; valid for all layers.
#[derive(Clone, Debug)]
pub struct AttentionPlan {
    /// New positions per stream in this step.
    pub time: usize,
    /// Absolute position of each stream's first new row.
    pub starts: Vec<u64>,
    /// Visible absolute positions of each row, `[stream * time]`; ends after the row's own.
    pub visible: Vec<Range<u64>>,
    /// Layout of rotated pairs; `None` without position embedding.
    pub rotary: Option<RotaryStyle>,
    /// Cosines per row, `[stream * time, half width]`; empty without position embedding.
    pub cos: Vec<f32>,
    /// Sines, as the cosines.
    pub sin: Vec<f32>,
}

impl AttentionPlan {
    /// Plans `time` new positions for every stream. `lowest` gives the lowest visible position
    /// for a query position. Angles are formed in f64, so that day-long sessions keep their phase.
    pub fn new(
        starts: Vec<u64>,
        time: usize,
        rotary: Option<&Rotary>,
        lowest: impl Fn(u64) -> u64,
    ) -> Self {
        let positions: Vec<u64> =
            starts.iter().flat_map(|&start| (0..time as u64).map(move |t| start + t)).collect();
        let visible = positions.iter().map(|&p| lowest(p)..p + 1).collect();
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        if let Some(rotary) = rotary {
            cos.reserve(positions.len() * rotary.half_width());
            sin.reserve(positions.len() * rotary.half_width());
            for &position in &positions {
                for frequency in &rotary.frequencies {
                    let angle = (frequency * position as f64).rem_euclid(std::f64::consts::TAU);
                    cos.push(angle.cos() as f32);
                    sin.push(angle.sin() as f32);
                }
            }
        }
        Self { time, starts, visible, rotary: rotary.map(|r| r.style), cos, sin }
    }

    /// Streams in this step.
    pub fn streams(&self) -> usize {
        self.starts.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn day_long_positions_keep_relative_phase() {
        let rotary = Rotary::new(RotaryStyle::Interleaved, 64, 10_000.0);
        let dot = |a: u64, b: u64| {
            let plan = AttentionPlan::new(vec![a, b], 1, Some(&rotary), |_| 0);
            let (a, b) = (0..32, 32..64);
            a.zip(b)
                .map(|(i, j)| {
                    f64::from(plan.cos[i]) * f64::from(plan.cos[j])
                        + f64::from(plan.sin[i]) * f64::from(plan.sin[j])
                })
                .sum::<f64>()
        };
        let day = 24 * 3600 * 25;
        assert!((dot(0, 100) - dot(day, day + 100)).abs() < 1e-5);
    }

    #[test]
    fn visible_ranges_end_at_the_query() {
        let plan = AttentionPlan::new(vec![5, 0], 2, None, |p| p.saturating_sub(3));
        assert_eq!(plan.visible, [2..6, 3..7, 0..1, 0..2]);
    }
}
