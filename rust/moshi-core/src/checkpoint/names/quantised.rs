//! Weights that other packages store in few bits, with scales in tensors beside them.
//!
//! - The PyTorch package: `NAME` in I8 and `NAME_scb` in F32, one scale for every row: `q s / 127`.
//! - MLX: `BASE.weight` in U32 words that hold 4 or 8 bits each, lowest bits first, with
//!   `BASE.scales` and `BASE.biases` for groups of a row: `q s + b`.

use std::collections::BTreeMap;

use safetensors::Dtype;

use crate::checkpoint::catalog::{Affine, Entry, Piece};
use crate::checkpoint::{Encoding, TensorFile, TensorInfo};
use crate::error::TensorProblems;

/// True for scales and offsets of a weight that the file has.
pub(super) fn is_companion(file: &TensorFile, name: &str) -> bool {
    let has = |name: &str| file.tensors().contains_key(name);
    if let Some(weight) = name.strip_suffix("_scb") {
        return has(weight);
    }
    let base = name.strip_suffix(".scales").or_else(|| name.strip_suffix(".biases"));
    base.is_some_and(|base| has(&format!("{base}.weight")))
}

/// Gives the pieces of entries their scales.
pub(super) fn attach_scales(
    file: &TensorFile,
    entries: &mut BTreeMap<String, Entry>,
    problems: &mut TensorProblems,
) {
    let affine = affine_of(file);
    for entry in entries.values_mut() {
        for piece in &mut entry.pieces {
            let Piece::Rows { tensor, rows } = piece else { continue };
            let info = &file.tensors()[tensor];
            let scales = format!("{tensor}_scb");
            if let Some(scale_info) = file.tensors().get(&scales) {
                if has_type(info, Dtype::I8)
                    && fits(scale_info, &info.shape[..info.shape.len().min(1)])
                {
                    let (tensor, rows) = (tensor.clone(), rows.clone());
                    *piece = Piece::Scaled { tensor, scales, rows };
                } else {
                    problems.misshapen.push(format!("{scales}: does not fit {tensor}"));
                }
                continue;
            }
            let Some(base) = tensor.strip_suffix(".weight").map(str::to_owned) else { continue };
            let (scales, offsets) = (format!("{base}.scales"), format!("{base}.biases"));
            let (Some(scale_info), Some(offset_info)) =
                (file.tensors().get(&scales), file.tensors().get(&offsets))
            else {
                continue;
            };
            let (&[total, words], Some(affine)) = (info.shape.as_slice(), affine) else {
                problems.misshapen.push(format!("{scales}: no known way to scale {tensor}"));
                continue;
            };
            let cols = words.saturating_mul(32) / affine.bits;
            let expected = [total, cols / affine.group];
            let whole = cols.is_multiple_of(affine.group);
            if !whole
                || !has_type(info, Dtype::U32)
                || !fits(scale_info, &expected)
                || !fits(offset_info, &expected)
            {
                problems.misshapen.push(format!(
                    "{tensor}: does not fit {scales} and {offsets} with {} bits in groups of {}",
                    affine.bits, affine.group
                ));
                continue;
            }
            entry.shape[1] = cols;
            let (tensor, rows) = (tensor.clone(), rows.clone());
            *piece = Piece::Affine { tensor, scales, offsets, rows, affine };
        }
    }
}

/// Bits and size of groups, which a file does not say: from a matrix whose width is known.
fn affine_of(file: &TensorFile) -> Option<Affine> {
    let last = |name: &str| file.tensors().get(name)?.shape.last().copied().filter(|&n| n > 0);
    let dim = last("out_norm.weight").or_else(|| last("out_norm.alpha"))?;
    let (words, groups) = (last("text_linear.weight")?, last("text_linear.scales")?);
    let affine = Affine { bits: words.checked_mul(32)? / dim, group: dim / groups };
    let known = matches!(affine.bits, 4 | 8) && matches!(affine.group, 32 | 64 | 128);
    known.then_some(affine)
}

fn has_type(info: &TensorInfo, dtype: Dtype) -> bool {
    info.encoding == Encoding::Plain(dtype)
}

fn fits(info: &TensorInfo, shape: &[usize]) -> bool {
    info.encoding.is_float() && info.shape == shape
}
