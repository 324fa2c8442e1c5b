//! What both containers say about their tensors, and the limits that both must keep.

use std::collections::BTreeMap;
use std::ops::Range;

use super::tensor_file::TensorInfo;

/// What a header says.
pub(super) struct Header {
    pub(super) tensors: BTreeMap<String, TensorInfo>,
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) bytes: Range<usize>,
}

/// Refuses a number of tensors that no model has: later steps take time and memory for each.
pub(super) fn check_count(count: usize) -> Result<(), String> {
    if count <= MAX_TENSORS {
        return Ok(());
    }
    Err(format!("it has {count} tensors; at most {MAX_TENSORS} are read"))
}

/// Refuses names that would break a line of a message, and axes that could overflow when parts of
/// a tensor are joined: those of a tensor without values are bounded by nothing else.
pub(super) fn check_tensor(name: &str, shape: &[usize]) -> Result<(), String> {
    if name.len() > MAX_NAME_BYTES {
        let len = name.len();
        return Err(format!("a tensor name has {len} bytes; at most {MAX_NAME_BYTES} are read"));
    }
    if name.chars().any(char::is_control) {
        return Err(format!("the tensor name {name:?} has control characters"));
    }
    if shape.iter().any(|&size| size > MAX_AXIS) {
        return Err(impossible(name, shape));
    }
    Ok(())
}

pub(super) fn impossible(name: &str, shape: &[usize]) -> String {
    format!("tensor {name} has the impossible shape {shape:?}")
}

/// Thirty times the largest public model, every weight set split.
const MAX_TENSORS: usize = 1 << 16;
const MAX_NAME_BYTES: usize = 512;
const MAX_AXIS: usize = 1 << 30;
