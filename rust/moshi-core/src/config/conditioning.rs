//! Config of conditions: which values steer a model, and how they enter it.

use super::Fields;
use super::fields::MAX_COUNT;
use crate::error::Result;

/// One named condition.
#[derive(Clone, Debug, PartialEq)]
pub struct ConditionerConfig {
    /// Name by which callers give its value.
    pub name: String,
    /// What kind of value it takes.
    pub kind: ConditionerKind,
}

/// Kinds of conditions.
#[derive(Clone, Debug, PartialEq)]
pub enum ConditionerKind {
    /// A text looked up in a table.
    Lut {
        /// Entries of the table.
        num_bins: usize,
        /// Width of an entry.
        dim: usize,
        /// Texts in order of their entries; `None` hashes any text to an entry.
        possible_values: Option<Vec<String>>,
    },
    /// A sequence of vectors with a mask.
    Tensor {
        /// Width of a vector.
        dim: usize,
    },
    /// A number, as cosines and sines of it at several frequencies.
    Number {
        /// Cosines and sines.
        dim: usize,
        /// The number is multiplied by it.
        scale: f64,
        /// Ratio of the highest to the lowest frequency.
        max_period: f64,
        /// The number in a conversation that gives none; `None` is no value.
        default: Option<f64>,
    },
}

impl ConditionerKind {
    /// A table with entries of width `dim`.
    pub(super) fn lut(lut: &Fields<'_>, dim: usize) -> Result<Self> {
        let values = lut.texts("possible_values")?;
        let num_bins = lut.required("n_bins")?;
        if values.len() > num_bins {
            let reason = format!("{} possible_values need as many bins", values.len());
            return Err(lut.error("n_bins", num_bins, reason));
        }
        let possible_values = if values.is_empty() { None } else { Some(values) };
        Ok(Self::Lut { num_bins, dim, possible_values })
    }
}

/// How conditions enter the temporal transformer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FuserConfig {
    /// Conditions added to every input.
    pub sum: Vec<String>,
    /// Conditions concatenated in time into the sequence of the cross-attention.
    pub cross: Vec<String>,
    /// Scale of the sinusoids added to that sequence; `None` adds none.
    pub cross_position_scale: Option<f64>,
}

/// Parses `conditioners`, sorted by name.
pub(super) fn conditioners(f: &Fields<'_>) -> Result<Vec<ConditionerConfig>> {
    let Some(all) = f.object("conditioners")? else { return Ok(Vec::new()) };
    let names = condition_names(f, &all)?;
    let mut conditioners = Vec::with_capacity(names.len());
    for name in names {
        let wrong = || all.error(&name, "not an object", "expected an object with a `type`");
        let fields = all.object(&name)?.ok_or_else(wrong)?;
        let kind = match fields.only("type", &["lut", "tensor"], "")?.as_str() {
            "lut" => {
                let lut = fields.object("lut")?.ok_or_else(wrong)?;
                lut.only("tokenizer", &["noop"], "noop")?;
                ConditionerKind::lut(&lut, lut.required("dim")?)?
            }
            _ => {
                let tensor = fields.object("tensor")?.ok_or_else(wrong)?;
                ConditionerKind::Tensor { dim: tensor.required("dim")? }
            }
        };
        conditioners.push(ConditionerConfig { name, kind });
    }
    Ok(conditioners)
}

/// Names of the entries of `conditioners`, sorted.
pub(super) fn condition_names(f: &Fields<'_>, all: &Fields<'_>) -> Result<Vec<String>> {
    let mut names: Vec<String> = all.names().map(String::from).collect();
    if names.len() > MAX_COUNT {
        let reason = format!("must be at most {MAX_COUNT} conditions");
        return Err(f.error("conditioners", names.len(), reason));
    }
    names.sort();
    Ok(names)
}

/// Parses `fuser`, whose names must be conditioners.
pub(super) fn fuser(f: &Fields<'_>, conditioners: &[ConditionerConfig]) -> Result<FuserConfig> {
    let Some(fuser) = f.object("fuser")? else { return Ok(FuserConfig::default()) };
    let prepend = fuser.texts("prepend")?;
    if !prepend.is_empty() {
        let reason = "prepended conditions are used by no released model";
        return Err(fuser.error("prepend", format!("{prepend:?}"), reason));
    }
    let (sum, cross) = (fuser.texts("sum")?, fuser.texts("cross")?);
    for (field, names) in [("sum", &sum), ("cross", &cross)] {
        if names.len() > MAX_COUNT {
            let reason = format!("must name at most {MAX_COUNT} conditions");
            return Err(fuser.error(field, names.len(), reason));
        }
        for name in names {
            if !conditioners.iter().any(|c| c.name == *name) {
                return Err(fuser.error(field, format!("\"{name}\""), "names no conditioner"));
            }
        }
    }
    for name in &sum {
        let by_name = |c: &&ConditionerConfig| c.name == *name;
        let tensor = |c: &ConditionerConfig| matches!(c.kind, ConditionerKind::Tensor { .. });
        if conditioners.iter().find(by_name).is_some_and(tensor) {
            return Err(fuser.error("sum", format!("\"{name}\""), "a sequence cannot be summed"));
        }
    }
    let positions = fuser.flag_or("cross_attention_pos_emb", false)?;
    let scale = fuser.number_or("cross_attention_pos_emb_scale", 1.0)?;
    fuser.warn_about_unknown();
    Ok(FuserConfig { sum, cross, cross_position_scale: positions.then_some(scale) })
}
