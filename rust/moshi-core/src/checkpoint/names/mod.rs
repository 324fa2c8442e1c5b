//! The only place that knows other spellings of tensor names.

mod language_model;
mod mimi;
mod quantised;

pub use language_model::Layout;
pub(super) use language_model::{language_model, packed_projection, weight_sets};
pub(super) use mimi::{mimi, mimi_from_hugging_face};

use super::TensorFile;
use super::catalog::{Entry, Piece};

/// Canonical names with their places in a file.
type Renamed = Vec<(String, Entry)>;

/// Layouts that exist in public but are none of ours, with what to do.
pub(super) fn foreign_layout(file: &TensorFile) -> Option<&'static str> {
    let tensors = file.tensors();
    let has = |name: &str| tensors.contains_key(name);
    let any = |suffix: &str| tensors.keys().any(|name| name.ends_with(suffix));
    if any(".lora_A.weight") && !has("text_linear.weight") {
        return Some("is a LoRA adapter, not a model; name it as `lora_name` in config.json");
    }
    if has("encoder.init_conv1d.conv.conv.weight") {
        return Some("is a codec saved by MLX; use the original safetensors file");
    }
    None
}

/// As [`foreign_layout`], for the names that only language models have.
pub(super) fn foreign_language_model(file: &TensorFile) -> Option<&'static str> {
    let names = || file.tensors().keys();
    if names().any(|name| name.starts_with("llm.") || name.starts_with("audio_linears.")) {
        return Some("is a MoshiVis checkpoint, which this version does not run");
    }
    let transformers = |name: &String| {
        // In a codec of Kyutai's naming, a number follows.
        let decoder = name.strip_prefix("decoder.model.");
        decoder.is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
            || ["model.layers.", "codec_model."].iter().any(|start| name.starts_with(start))
    };
    names().any(transformers).then_some(
        "is in the Hugging Face transformers layout, which this version does not read; take the \
         `-pytorch-` repository of the model",
    )
}

fn whole(name: &str, shape: &[usize]) -> Entry {
    Entry { shape: shape.to_vec(), pieces: vec![Piece::whole(name, shape)] }
}
