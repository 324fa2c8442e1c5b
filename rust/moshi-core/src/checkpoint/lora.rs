//! LoRA adapters (Hu et al. 2021, arXiv:2106.09685), fused into weights as they are read.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{SourceFile, TensorFile, names};
use crate::config::LmConfig;
use crate::error::{Result, TensorProblems};

/// An adapter file: `W' = W + scaling * B A` in f32 for every `<linear>.lora_{A,B}.weight`, and
/// whole embeddings that were trained along and replace the model's.
///
/// The names of linear layers are those of the PyTorch layout; projections of the attentions may
/// be split or packed, in which case the parts of all weight sets follow each other in the rows.
pub struct Lora {
    file: TensorFile,
    scaling: f32,
    /// By canonical weight, `A` and `B`.
    adapters: BTreeMap<String, [Option<Part>; 2]>,
    /// By canonical name.
    embeddings: Vec<String>,
    problems: TensorProblems,
}

/// Some rows of a tensor of the adapter's file.
struct Part {
    tensor: String,
    rows: Range<usize>,
}

impl Lora {
    /// Opens an adapter for a model.
    ///
    /// # Errors
    /// As [`TensorFile::open`].
    pub fn open(file: impl Into<SourceFile>, config: &LmConfig) -> Result<Self> {
        let mut lora = Self {
            file: TensorFile::open(file)?,
            scaling: config.lora_scaling as f32,
            adapters: BTreeMap::new(),
            embeddings: Vec::new(),
            problems: TensorProblems::default(),
        };
        let tensors: Vec<(String, Vec<usize>)> =
            lora.file.tensors().iter().map(|(n, info)| (n.clone(), info.shape.clone())).collect();
        for (name, shape) in tensors {
            let side = [A, B].into_iter().position(|leaf| name.ends_with(&format!(".{leaf}")));
            match side {
                Some(side) => lora.add_part(&name, &shape, side, config),
                None if name.contains("emb") => lora.embeddings.push(name),
                None => lora.problems.unexpected.push(format!("{name} (adapter)")),
            }
        }
        Ok(lora)
    }

    fn add_part(&mut self, name: &str, shape: &[usize], side: usize, config: &LmConfig) {
        let leaf = [A, B][side];
        let rows = shape.first().copied().unwrap_or(0);
        let (targets, each) = match names::packed_projection(name, leaf) {
            None => {
                let base = name.strip_suffix(leaf).expect("the side was found by it");
                (vec![format!("{base}weight")], rows)
            }
            Some((prefix, split)) => {
                let sets = names::weight_sets(prefix, config);
                if !rows.is_multiple_of(sets) {
                    let problem = format!(
                        "{name} (adapter): {rows} rows do not divide by {sets} weight sets"
                    );
                    return self.problems.misshapen.push(problem);
                }
                let targets = (0..sets).map(|set| format!("{prefix}{split}{set}.weight"));
                (targets.collect(), rows / sets)
            }
        };
        for (set, target) in targets.into_iter().enumerate() {
            let part = Part { tensor: name.into(), rows: set * each..(set + 1) * each };
            let place = &mut self.adapters.entry(target.clone()).or_default()[side];
            if place.replace(part).is_some() {
                let again = format!("{name} (adapter, another spelling for {target})");
                self.problems.unexpected.push(again);
            }
        }
    }

    /// The adapter's file.
    pub fn file(&self) -> &TensorFile {
        &self.file
    }

    /// Adds the problems of an adapter whose targets have the shapes that `shape` gives.
    pub(super) fn check<'s>(
        &self,
        shape: impl Fn(&str) -> Option<&'s [usize]>,
        problems: &mut TensorProblems,
    ) {
        problems.unexpected.extend(self.problems.unexpected.iter().cloned());
        problems.misshapen.extend(self.problems.misshapen.iter().cloned());
        for (target, parts) in &self.adapters {
            let named = parts.iter().flatten().map(|part| part.tensor.as_str());
            let names = named.collect::<Vec<_>>().join(" and ");
            let Some(shape) = shape(target) else {
                let unexpected = parts.iter().flatten().map(|part| &part.tensor);
                problems.unexpected.extend(unexpected.map(|name| format!("{name} (adapter)")));
                continue;
            };
            let [Some(a), Some(b)] = parts else {
                problems.missing.push(format!("the partner of {names} (adapter)"));
                continue;
            };
            let sizes = |part: &Part| {
                let info = &self.file.tensors()[&part.tensor];
                match info.shape.as_slice() {
                    [_, cols] if info.encoding.is_float() => Some((part.rows.len(), *cols)),
                    _ => None,
                }
            };
            let fits = matches!(
                (sizes(a), sizes(b), shape),
                (Some((rank, input)), Some((output, rank_b)), [rows, cols])
                    if rank == rank_b && rank > 0 && input == *cols && output == *rows
            );
            if !fits {
                let problem = format!("{names} (adapter): do not fit {target} {shape:?}");
                problems.misshapen.push(problem);
            }
        }
        for name in &self.embeddings {
            let info = &self.file.tensors()[name];
            match shape(name) {
                None => problems.unexpected.push(format!("{name} (adapter)")),
                Some(shape) if shape != info.shape || !info.encoding.is_float() => {
                    problems.misshapen.push(format!(
                        "{name} (adapter): expected floats {shape:?}, got {} {:?}",
                        info.encoding, info.shape
                    ));
                }
                Some(_) => {}
            }
        }
    }

    /// True when the adapter changes this weight.
    pub(super) fn changes(&self, name: &str) -> bool {
        self.adapters.contains_key(name) || self.embeddings.iter().any(|own| own == name)
    }

    /// Adds the adapter's part to a weight `[out, in]` with rows of `width`, or replaces it.
    pub(super) fn fuse(&self, name: &str, values: &mut Vec<f32>, width: usize) -> Result<()> {
        if self.embeddings.iter().any(|own| own == name) {
            *values = self.file.read_f32(name)?;
            return Ok(());
        }
        let Some([Some(a), Some(b)]) = self.adapters.get(name) else { return Ok(()) };
        let read = |part: &Part| self.file.read_rows_f32(&part.tensor, part.rows.clone());
        let (a, b) = (read(a)?, read(b)?);
        let rank = a.len() / width;
        for (row, b) in values.chunks_exact_mut(width).zip(b.chunks_exact(rank)) {
            for (b, a) in b.iter().zip(a.chunks_exact(width)) {
                let factor = self.scaling * b;
                for (value, a) in row.iter_mut().zip(a) {
                    *value += factor * a;
                }
            }
        }
        Ok(())
    }
}

const A: &str = "lora_A.weight";
const B: &str = "lora_B.weight";
