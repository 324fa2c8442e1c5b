//! LoRA adapters (Hu et al. 2021, arXiv:2106.09685), fused into weights as they are read.

use std::path::Path;

use super::TensorFile;
use crate::error::{Result, TensorProblems};

/// An adapter file: `W' = W + scaling * B A` in f32 for every `<linear>.lora_{A,B}.weight`.
pub struct Lora {
    file: TensorFile,
    scaling: f32,
}

impl Lora {
    /// Opens an adapter.
    ///
    /// # Errors
    /// As [`TensorFile::open`].
    pub fn open(path: &Path, scaling: f64) -> Result<Self> {
        Ok(Self { file: TensorFile::open(path)?, scaling: scaling as f32 })
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
        for (name, info) in self.file.tensors() {
            let base = name.strip_suffix(A).or_else(|| name.strip_suffix(B));
            let Some(target) = base.and_then(|base| shape(&format!("{base}.weight"))) else {
                problems.unexpected.push(format!("{name} (adapter)"));
                continue;
            };
            let base = base.expect("checked above");
            let partner = |suffix: &str| self.file.tensors().get(&format!("{base}{suffix}"));
            let (Some(a), Some(b)) = (partner(A), partner(B)) else {
                problems.missing.push(format!("the partner of {name} (adapter)"));
                continue;
            };
            let fits = matches!(
                (a.shape.as_slice(), b.shape.as_slice(), target),
                ([rank, input], [output, rank_b], [rows, cols])
                    if rank == rank_b && *rank > 0 && input == cols && output == rows
            );
            if !fits {
                problems.misshapen.push(format!(
                    "{name} (adapter): {:?} does not fit {target:?} with its partner",
                    info.shape
                ));
            }
        }
    }

    /// Adds the adapter's part to a weight `[out, in]` with rows of `width`.
    pub(super) fn fuse(&self, name: &str, values: &mut [f32], width: usize) -> Result<()> {
        let Some(base) = name.strip_suffix(".weight") else { return Ok(()) };
        let (a_name, b_name) = (format!("{base}{A}"), format!("{base}{B}"));
        if !self.file.tensors().contains_key(&a_name) {
            return Ok(());
        }
        let (a, b) = (self.file.read_f32(&a_name)?, self.file.read_f32(&b_name)?);
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

const A: &str = ".lora_A.weight";
const B: &str = ".lora_B.weight";
