//! Comparing computed tensors with expected ones.

use std::fmt;

use moshi_core::Result;
use moshi_core::checkpoint::TensorFile;

use super::{Computed, Results, Values};

/// Floats may deviate by this share of the expected values' standard deviation.
const MAX_DEVIATION: f64 = 1e-4;
/// Audio must agree to this signal-to-noise ratio.
const MIN_SNR_DB: f64 = 60.0;

/// How two tensors agree.
#[derive(Debug, Clone, PartialEq)]
pub enum Measure {
    /// An input of the case: nothing to compare.
    Input,
    /// Equal and all values.
    Equal {
        /// Values that agree.
        equal: usize,
        /// Values compared.
        total: usize,
    },
    /// Largest deviation over the standard deviation of what is expected.
    Deviation(f64),
    /// Signal-to-noise ratio in dB.
    Snr(f64),
    /// Not comparable, and why.
    Failed(String),
}

/// One row of a report.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// Expected file.
    pub file: String,
    /// Tensor.
    pub tensor: String,
    /// Agreement.
    pub measure: Measure,
    /// First step with a deviation beyond the bound.
    pub first_differing_step: Option<usize>,
    /// Whether the agreement suffices.
    pub passed: bool,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.passed { "ok  " } else { "FAIL" };
        write!(f, "  {verdict} {:<28} {:<20} ", self.file, self.tensor)?;
        match &self.measure {
            Measure::Input => write!(f, "input of the case"),
            Measure::Equal { equal, total } => write!(f, "{equal} of {total} equal"),
            Measure::Deviation(worst) => {
                write!(f, "worst deviation {worst:.2e} of the spread (bound {MAX_DEVIATION:.0e})")
            }
            Measure::Snr(db) => write!(f, "SNR {db:.1} dB (bound {MIN_SNR_DB} dB)"),
            Measure::Failed(reason) => write!(f, "{reason}"),
        }?;
        match self.first_differing_step {
            Some(step) => write!(f, ", first differing step {step}"),
            None => Ok(()),
        }
    }
}

/// One row per tensor of the file; a file without anything to compare fails.
pub(super) fn compare(file: &TensorFile, results: Results) -> Result<Vec<Check>> {
    let file_name = file.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    let row = |tensor: &str, measure: Measure, first: Option<usize>, passed: bool| Check {
        file: file_name.clone(),
        tensor: tensor.into(),
        measure,
        first_differing_step: first,
        passed,
    };
    let mut checks = Vec::new();
    for name in file.tensors().keys() {
        if results.inputs.contains(&name.as_str()) {
            checks.push(row(name, Measure::Input, None, true));
        } else if let Some(computed) = results.computed.iter().find(|c| c.name == *name) {
            let (measure, first, passed) = judge(file, computed)?;
            checks.push(row(name, measure, first, passed));
        } else {
            let reason = Measure::Failed("nothing is known to compare this tensor with".into());
            checks.push(row(name, reason, None, false));
        }
    }
    if !checks.iter().any(|check| check.measure != Measure::Input) {
        let reason = Measure::Failed("the file holds nothing to compare".into());
        checks.push(row("-", reason, None, false));
    }
    Ok(checks)
}

fn judge(file: &TensorFile, computed: &Computed) -> Result<(Measure, Option<usize>, bool)> {
    let expected_shape = &file.info(&computed.name)?.shape;
    if *expected_shape != computed.shape {
        let reason = format!("shape {:?}, expected {expected_shape:?}", computed.shape);
        return Ok((Measure::Failed(reason), None, false));
    }
    let counts = |i: usize| match &computed.ignore {
        None => true,
        Some(ignore) => !ignore(&index_of(i, &computed.shape)),
    };
    let step_of = |i: usize| index_of(i, &computed.shape)[computed.step_axis];
    match &computed.values {
        Values::Tokens(values) => {
            let expected = file.read_i64(&computed.name)?;
            let pairs = || (0..values.len()).filter(|&i| counts(i));
            let total = pairs().count();
            let differing = || pairs().filter(|&i| values[i] != expected[i]);
            let equal = total - differing().count();
            let first = differing().map(step_of).min();
            Ok((Measure::Equal { equal, total }, first, equal == total && total > 0))
        }
        Values::Floats(values) => {
            let expected = file.read_f32(&computed.name)?;
            let used: Vec<usize> = (0..values.len()).filter(|&i| counts(i)).collect();
            let spread = spread(used.iter().map(|&i| f64::from(expected[i])));
            let off = |i: usize| (f64::from(values[i]) - f64::from(expected[i])).abs() / spread;
            let worst = used.iter().map(|&i| off(i)).fold(0.0, worse);
            let bad = |&&i: &&usize| off(i) > MAX_DEVIATION || off(i).is_nan();
            let first = used.iter().filter(bad).map(|&i| step_of(i)).min();
            let passed = worst <= MAX_DEVIATION && !used.is_empty();
            Ok((Measure::Deviation(worst), first, passed))
        }
        Values::Audio(values) => {
            let expected = file.read_f32(&computed.name)?;
            let (mut signal, mut noise) = (0.0, 0.0);
            for i in (0..values.len()).filter(|&i| counts(i)) {
                signal += f64::from(expected[i]).powi(2);
                noise += (f64::from(values[i]) - f64::from(expected[i])).powi(2);
            }
            let snr = 10.0 * (signal / noise.max(1e-30)).log10();
            // `max` above ignores NaN, which is the worst noise there is.
            let passed = noise.is_finite() && snr >= MIN_SNR_DB && signal > 0.0;
            Ok((Measure::Snr(if noise.is_nan() { f64::NAN } else { snr }), None, passed))
        }
    }
}

/// The larger deviation; NaN is the worst of all.
fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

/// Standard deviation.
fn spread(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let count = values.clone().count().max(1) as f64;
    let mean = values.clone().sum::<f64>() / count;
    let variance = values.map(|v| (v - mean).powi(2)).sum::<f64>() / count;
    variance.sqrt().max(1e-12)
}

fn index_of(mut i: usize, shape: &[usize]) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for (axis, &size) in shape.iter().enumerate().rev() {
        index[axis] = i % size;
        i /= size;
    }
    index
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_row_major() {
        assert_eq!(index_of(7, &[2, 2, 3]), [1, 0, 1]);
    }

    #[test]
    fn nan_is_never_close() {
        assert!(worse(0.0, f64::NAN).is_nan());
        assert!(worse(f64::NAN, 1.0).is_nan());
    }
}
