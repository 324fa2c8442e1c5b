//! Conditions of a stream: named values that steer the temporal transformer, either added to
//! every input or attended to as a sequence.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use crate::checkpoint::Catalog;
use crate::config::{ConditionerConfig, ConditionerKind, FuserConfig, LmConfig};
use crate::error::{Error, Result, check_finite};
use crate::exec::{Activation, Executor, HostMatrix};

/// Value of one condition.
#[derive(Clone, Debug, PartialEq)]
pub enum Condition {
    /// No value: the learnt padding.
    Null,
    /// Value of a text condition.
    Text(String),
    /// Value of a number condition.
    Number(f64),
    /// Value of a sequence condition.
    Sequence {
        /// `[position, width]` row-major.
        values: Vec<f32>,
        /// One flag per position; masked positions take the learnt padding.
        mask: Vec<bool>,
    },
    /// A sequence of this many positions, all masked: the null of a sequence condition.
    NullSequence(usize),
}

/// Values by condition name.
pub type Conditions = BTreeMap<String, Condition>;

/// Weights of all conditioners.
pub(super) struct ConditionProvider<E: Executor> {
    conditioners: Vec<Conditioner<E>>,
    fuser: FuserConfig,
    dim: usize,
}

struct Conditioner<E: Executor> {
    config: ConditionerConfig,
    /// Table of a text condition, `[bins + 1, width]`.
    table: Option<HostMatrix>,
    output_proj: E::Weight,
    learnt_padding: Vec<f32>,
}

/// Conditions in the form in which a stream keeps them.
pub(super) struct Fused<E: Executor> {
    /// Added to every input, `[dim]`.
    pub(super) sum: Option<Vec<f32>>,
    /// Sequence to attend to, `[position, dim]`, and its number of positions.
    pub(super) cross: Option<(E::Buffer, usize)>,
}

impl<E: Executor> ConditionProvider<E> {
    pub(super) fn load(exec: &E, catalog: &Catalog<'_>, config: &LmConfig) -> Result<Self> {
        let conditioners = config
            .conditioners
            .iter()
            .map(|config| {
                let prefix = format!("condition_provider.conditioners.{}", config.name);
                let table = match config.kind {
                    ConditionerKind::Lut { .. } => {
                        Some(catalog.matrix(&format!("{prefix}.embed.weight"))?)
                    }
                    ConditionerKind::Tensor { .. } | ConditionerKind::Number { .. } => None,
                };
                let projection = catalog.matrix(&format!("{prefix}.output_proj.weight"))?;
                Ok(Conditioner {
                    config: config.clone(),
                    table,
                    output_proj: exec.weight(projection.widened())?,
                    learnt_padding: catalog.read(&format!("{prefix}.learnt_padding"))?,
                })
            })
            .collect::<Result<_>>()?;
        let dim = config.temporal.shape.dim;
        Ok(Self { conditioners, fuser: config.fuser.clone(), dim })
    }

    /// Every fused condition without a value; sequences keep the length of `like`.
    pub(super) fn null(&self, like: &Conditions) -> Conditions {
        let fused = self.fuser.sum.iter().chain(&self.fuser.cross);
        let null = |name: &String| match like.get(name) {
            Some(Condition::Sequence { mask, .. }) => Condition::NullSequence(mask.len()),
            Some(Condition::NullSequence(len)) => Condition::NullSequence(*len),
            _ => Condition::Null,
        };
        fused.map(|name| (name.clone(), null(name))).collect()
    }

    /// Computes what the fuser asks for. All of its conditions must be given.
    pub(super) fn fuse(&self, exec: &E, conditions: &Conditions) -> Result<Fused<E>> {
        for name in conditions.keys() {
            if !self.conditioners.iter().any(|c| c.config.name == *name) {
                let known = self.conditioners.iter().map(|c| c.config.name.as_str());
                let known: Vec<&str> = known.collect();
                let reason = format!("no condition `{name}`; the model has {known:?}");
                return Err(Error::input("conditions", reason));
            }
        }
        let mut sum: Option<Vec<f32>> = None;
        for name in &self.fuser.sum {
            let value = self.one(exec, name, conditions)?;
            match &mut sum {
                None => sum = Some(value),
                Some(sum) => sum.iter_mut().zip(value).for_each(|(sum, value)| *sum += value),
            }
        }
        if self.fuser.cross.is_empty() {
            return Ok(Fused { sum, cross: None });
        }
        let mut sequence = Vec::new();
        for name in &self.fuser.cross {
            sequence.extend(self.one(exec, name, conditions)?);
        }
        let positions = sequence.len() / self.dim;
        check_positions("cross conditions", positions)?;
        if let Some(scale) = self.fuser.cross_position_scale {
            add_sinusoids(&mut sequence, self.dim, scale);
        }
        Ok(Fused { sum, cross: Some((exec.upload(&sequence, self.dim)?, positions)) })
    }

    /// `[position, dim]` of one condition.
    fn one(&self, exec: &E, name: &str, conditions: &Conditions) -> Result<Vec<f32>> {
        let conditioner = self.conditioners.iter().find(|c| c.config.name == name);
        let conditioner = conditioner.expect("the fuser names conditioners that exist");
        let Some(value) = conditions.get(name) else {
            let expected = conditioner.expects();
            let reason = format!("the condition `{name}` is missing; it takes {expected}");
            return Err(Error::input("conditions", reason));
        };
        conditioner.compute(exec, value)
    }
}

impl<E: Executor> Conditioner<E> {
    fn expects(&self) -> String {
        match &self.config.kind {
            ConditionerKind::Lut { possible_values: Some(values), .. } => {
                format!("none or one of {values:?}")
            }
            ConditionerKind::Lut { .. } => "none or any text".into(),
            ConditionerKind::Tensor { dim } => format!("an array [positions, {dim}]"),
            ConditionerKind::Number { .. } => "none or a number".into(),
        }
    }

    fn compute(&self, exec: &E, value: &Condition) -> Result<Vec<f32>> {
        let name = &self.config.name;
        match (&self.config.kind, value) {
            (_, Condition::Null) => Ok(self.learnt_padding.clone()),
            (ConditionerKind::Tensor { .. }, Condition::NullSequence(len)) => {
                check_positions(name, *len)?;
                Ok(self.learnt_padding.repeat(*len))
            }
            (ConditionerKind::Lut { num_bins, possible_values, .. }, Condition::Text(text)) => {
                let index = match possible_values {
                    Some(values) => values.iter().position(|v| v == text).ok_or_else(|| {
                        let expected = self.expects();
                        Error::input(
                            "conditions",
                            format!("`{name}` is \"{text}\"; it takes {expected}"),
                        )
                    })?,
                    None => hashed_bin(text, *num_bins),
                };
                let table = self.table.as_ref().expect("text conditions have a table");
                let row = exec.upload(&table.row(index), table.cols)?;
                exec.download(&exec.linear(&row, &self.output_proj, Activation::Identity)?)
            }
            (ConditionerKind::Number { dim, scale, max_period, .. }, Condition::Number(value)) => {
                if !value.is_finite() {
                    let reason = format!("`{name}` is {value}; it takes a finite number");
                    return Err(Error::input("conditions", reason));
                }
                let waves = exec.upload(&sinusoids(value * scale, *dim, *max_period), *dim)?;
                exec.download(&exec.linear(&waves, &self.output_proj, Activation::Identity)?)
            }
            (ConditionerKind::Tensor { dim }, Condition::Sequence { values, mask }) => {
                check_positions(name, mask.len())?;
                if values.len() != mask.len() * dim {
                    let reason = format!(
                        "`{name}` has {} values for {} positions of width {dim}",
                        values.len(),
                        mask.len()
                    );
                    return Err(Error::input("conditions", reason));
                }
                check_finite("conditions", values)?;
                let rows = exec.upload(values, *dim)?;
                let rows = exec.linear(&rows, &self.output_proj, Activation::Identity)?;
                let mut out = exec.download(&rows)?;
                let width = self.learnt_padding.len();
                for (row, present) in out.chunks_exact_mut(width).zip(mask) {
                    if !present {
                        row.copy_from_slice(&self.learnt_padding);
                    }
                }
                Ok(out)
            }
            _ => {
                let expected = self.expects();
                Err(Error::input("conditions", format!("`{name}` takes {expected}")))
            }
        }
    }
}

/// Positions of a voice in the public text-to-speech models: five recordings of ten seconds.
pub const VOICE_POSITIONS: usize = 625;
/// Room for many voices, and a bound of memory.
pub(super) const MAX_POSITIONS: usize = 1 << 14;

/// Positions that a stream of this model usually attends to beside its own past:
/// [`VOICE_POSITIONS`] for every sequence, one for every other value, none for most models.
pub(super) fn usual_positions(config: &LmConfig) -> usize {
    let positions = |name: &String| {
        let conditioner = config.conditioners.iter().find(|c| c.name == *name);
        match conditioner.map(|c| &c.kind) {
            Some(ConditionerKind::Tensor { .. }) => VOICE_POSITIONS,
            _ => 1,
        }
    };
    if !config.temporal.cross_attention {
        return 0;
    }
    config.fuser.cross.iter().map(positions).sum()
}

fn check_positions(name: &str, count: usize) -> Result<()> {
    if (1..=MAX_POSITIONS).contains(&count) {
        return Ok(());
    }
    let reason = format!("`{name}` has {count} positions; it takes 1 to {MAX_POSITIONS}");
    Err(Error::input("conditions", reason))
}

/// Bin of a text in a table without listed values: its SHA-256 as a big-endian number, modulo.
fn hashed_bin(text: &str, num_bins: usize) -> usize {
    let bins = num_bins as u64;
    Sha256::digest(text.as_bytes()).iter().fold(0u64, |acc, &b| (acc * 256 + u64::from(b)) % bins)
        as usize
}

/// Adds `scale * [cos(p / 10000^(i / (dim / 2 - 1))), sin(...)]` to position `p`.
fn add_sinusoids(sequence: &mut [f32], dim: usize, scale: f64) {
    for (position, row) in sequence.chunks_exact_mut(dim).enumerate() {
        for (value, (cos, sin)) in angles(position as f64, dim, 10_000.0).enumerate() {
            row[value] += (scale * cos) as f32;
            row[dim / 2 + value] += (scale * sin) as f32;
        }
    }
}

/// `[cos(value / max_period^(i / (dim / 2 - 1))), sin(...)]`, `[dim]`.
fn sinusoids(value: f64, dim: usize, max_period: f64) -> Vec<f32> {
    let cosines = angles(value, dim, max_period).map(|(cos, _)| cos as f32);
    cosines.chain(angles(value, dim, max_period).map(|(_, sin)| sin as f32)).collect()
}

/// Cosine and sine of a value at every frequency.
fn angles(value: f64, dim: usize, max_period: f64) -> impl Iterator<Item = (f64, f64)> {
    let half = dim / 2;
    (0..half).map(move |i| {
        let exponent = i as f64 / (half as f64 - 1.0).max(1.0);
        let angle = value / max_period.powf(exponent);
        (angle.cos(), angle.sin())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_waves_from_fast_to_slow() {
        let waves = sinusoids(2.0, 4, 100.0);
        let expected = [2f64.cos(), 0.02f64.cos(), 2f64.sin(), 0.02f64.sin()];
        assert_eq!(waves, expected.map(|v| v as f32));
    }

    #[test]
    fn hashing_equals_the_big_number_modulo() {
        // sha256("") = e3b0c442...b855; the last byte decides modulo powers of two.
        assert_eq!(hashed_bin("", 256), 0x55);
        assert_eq!(hashed_bin("", 1), 0);
    }
}
