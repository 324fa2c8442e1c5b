//! Positions, windows and rotary angles of one step, computed once on the host.

use std::ops::Range;

use crate::scratch::Scratch;

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
#[derive(Clone, Copy, Debug)]
pub struct AttentionPlan<'a> {
    /// New positions per stream in this step.
    pub time: usize,
    /// Absolute position of each stream's first new row.
    pub starts: &'a [u64],
    /// Visible absolute positions of each row, `[stream * time]`; ends after the row's own.
    pub visible: &'a [Range<u64>],
    /// Layout of rotated pairs; `None` without position embedding.
    pub rotary: Option<RotaryStyle>,
    /// Cosines per row, `[stream * time, half width]`; empty without position embedding.
    pub cos: &'a [f32],
    /// Sines, as the cosines.
    pub sin: &'a [f32],
}

impl<'a> AttentionPlan<'a> {
    /// Plans `time` new positions for every stream. `lowest` gives the lowest visible position
    /// for a query position. Angles are formed in f64, so that day-long sessions keep their phase.
    pub fn new(
        scratch: &'a Scratch,
        starts: &'a [u64],
        time: usize,
        rotary: Option<&Rotary>,
        lowest: impl Fn(u64) -> u64,
    ) -> Self {
        let rows = starts.len() * time;
        let positions =
            || starts.iter().flat_map(|&start| (0..time as u64).map(move |t| start + t));
        let frequencies = rotary.map_or(&[][..], |rotary| &rotary.frequencies[..]);
        let angles = || {
            let of = |position: u64| {
                let turn = move |frequency: &f64| {
                    (frequency * position as f64).rem_euclid(std::f64::consts::TAU)
                };
                frequencies.iter().map(turn)
            };
            positions().flat_map(of)
        };
        let count = rows * frequencies.len();
        Self {
            time,
            starts,
            visible: scratch.list(rows, positions().map(|p| lowest(p)..p + 1)),
            rotary: rotary.map(|r| r.style),
            cos: scratch.list(count, angles().map(|angle| angle.cos() as f32)),
            sin: scratch.list(count, angles().map(|angle| angle.sin() as f32)),
        }
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
        let scratch = Scratch::default();
        let dot = |a: u64, b: u64| {
            let starts = [a, b];
            let plan = AttentionPlan::new(&scratch, &starts, 1, Some(&rotary), |_| 0);
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
        let scratch = Scratch::default();
        let plan = AttentionPlan::new(&scratch, &[5, 0], 2, None, |p| p.saturating_sub(3));
        assert_eq!(plan.visible, [2..6, 3..7, 0..1, 0..2]);
    }
}
