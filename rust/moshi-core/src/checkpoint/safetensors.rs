//! The header of a safetensors file: where its tensors lie, and its metadata.
//!
//! Eight bytes with the length of the header, the header as JSON, data without gaps. The crate of
//! that name describes the entries; they are checked here, so that errors name the tensor.

use std::collections::BTreeMap;

use safetensors::tensor::TensorInfo as Described;
use serde::Deserialize;

use super::header::{Header, check_count, check_tensor, impossible};
use super::tensor_file::{Encoding, TensorInfo};

#[derive(Deserialize)]
struct Json {
    #[serde(default, rename = "__metadata__")]
    metadata: Option<BTreeMap<String, String>>,
    #[serde(flatten)]
    tensors: BTreeMap<String, Described>,
}

/// Parses and checks a header; the error says what is wrong.
pub(super) fn parse(file: &[u8]) -> Result<Header, String> {
    let truncated = format!("the file has {} bytes: truncated download?", file.len());
    let (length, rest) = file.split_first_chunk().ok_or_else(|| truncated.clone())?;
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return Err(format!("its header of {length} bytes is too long"));
    }
    let header = rest
        .get(..length as usize)
        .ok_or_else(|| format!("its header has {length} bytes, {truncated}"))?;
    let Json { metadata, tensors: described } =
        serde_json::from_slice(header).map_err(|e| format!("its header: {e}"))?;
    check_count(described.len())?;
    let data = &rest[header.len()..];
    let data_start = file.len() - data.len();
    let mut in_order: Vec<_> = described.into_iter().collect();
    in_order.sort_by_key(|(_, info)| info.data_offsets);
    let mut tensors = BTreeMap::new();
    let mut end = 0;
    for (name, Described { dtype, shape, data_offsets: (from, to) }) in in_order {
        check_tensor(&name, &shape)?;
        let bits = shape.iter().try_fold(dtype.bitsize(), |bits, &size| bits.checked_mul(size));
        let bits = bits.ok_or_else(|| impossible(&name, &shape))?;
        if from != end {
            return Err(format!(
                "tensor {name} begins at offset {from}, the one before it ends at {end}"
            ));
        }
        if !bits.is_multiple_of(8) || to.checked_sub(from) != Some(bits / 8) {
            return Err(format!(
                "tensor {name} is {dtype:?} {shape:?}, which does not take the bytes from {from} \
                 to {to}"
            ));
        }
        if to > data.len() {
            return Err(format!(
                "tensor {name} ends at offset {to} after the header of {data_start} bytes, \
                 {truncated}"
            ));
        }
        end = to;
        let bytes = data_start + from..data_start + to;
        tensors.insert(name, TensorInfo { encoding: Encoding::Plain(dtype), shape, bytes });
    }
    if end != data.len() {
        let described = data_start + end;
        return Err(format!("the header describes {described} bytes, the file has {}", file.len()));
    }
    Ok(Header { tensors, metadata: metadata.unwrap_or_default(), bytes: 0..data_start })
}

/// The limit of the format's own library.
const MAX_HEADER_BYTES: u64 = 100_000_000;
