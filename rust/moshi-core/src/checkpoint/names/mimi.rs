//! Names of codec tensors. Canonical are Kyutai's with packed projections
//! (`self_attn.in_proj_weight`).

use std::collections::BTreeMap;

use super::whole;
use crate::checkpoint::TensorFile;
use crate::checkpoint::catalog::{Entry, Piece};
use crate::error::TensorProblems;

/// Kyutai's own codec files, older spellings included.
pub(in crate::checkpoint) fn mimi(
    file: &TensorFile,
    problems: &mut TensorProblems,
) -> BTreeMap<String, Entry> {
    let mut entries = BTreeMap::new();
    for (name, info) in file.tensors() {
        let Some(canonical) = current_spelling(name) else { continue };
        if entries.insert(canonical.clone(), whole(name, &info.shape)).is_some() {
            problems.unexpected.push(format!("{name} (another spelling of {canonical})"));
        }
    }
    fold_weight_norms(file, &mut entries);
    entries
}

/// `None` for weights of the teacher that are used in training only.
fn current_spelling(name: &str) -> Option<String> {
    if name.starts_with("wavlm_") {
        return None;
    }
    for (from, to) in [
        (".self_attn.in_proj.weight", ".self_attn.in_proj_weight"),
        (".self_attn.in_projs.0.weight", ".self_attn.in_proj_weight"),
        (".self_attn.out_projs.0.weight", ".self_attn.out_proj.weight"),
        ("_codebook.inited", "_codebook._initialized"),
        ("_codebook.cluster_size", "_codebook.cluster_usage"),
        ("_codebook.embed_avg", "_codebook.embedding_sum"),
        ("_codebook.embed_sum", "_codebook.embedding_sum"),
    ] {
        if let Some(prefix) = name.strip_suffix(from) {
            return Some(format!("{prefix}{to}"));
        }
    }
    Some(name.into())
}

/// Joins `weight_g` and `weight_v` of convolutions that were saved without folding.
fn fold_weight_norms(file: &TensorFile, entries: &mut BTreeMap<String, Entry>) {
    let gains: Vec<String> =
        entries.keys().filter(|name| name.ends_with(".weight_g")).cloned().collect();
    for gain in gains {
        let base = gain.trim_end_matches("_g").to_owned();
        let direction = format!("{base}_v");
        let Some(info) = file.tensors().get(&direction) else { continue };
        let shape = info.shape.clone();
        let rows = shape.first().copied().unwrap_or(0);
        if file.tensors()[&gain].shape.iter().product::<usize>() != rows {
            continue;
        }
        entries.remove(&gain);
        entries.remove(&direction);
        entries.insert(base, Entry { shape, pieces: vec![Piece::WeightNorm { gain, direction }] });
    }
}

/// Hugging Face's naming of the codec: other paths, separate projections, permuted rotary rows.
pub(in crate::checkpoint) fn mimi_from_hugging_face(
    file: &TensorFile,
    num_heads: usize,
    problems: &mut TensorProblems,
) -> BTreeMap<String, Entry> {
    let mut entries = BTreeMap::new();
    let mut again = |name: &str, canonical: &str| {
        problems.unexpected.push(format!("{name} (another spelling of {canonical})"));
    };
    let mut projections: BTreeMap<String, [Option<String>; 3]> = BTreeMap::new();
    let decoder_indices = file.tensors().keys().filter_map(|name| {
        name.strip_prefix("decoder.layers.")?.split('.').next()?.parse::<usize>().ok()
    });
    let last = decoder_indices.max().unwrap_or(0);
    for (name, info) in file.tensors() {
        let parts: Vec<&str> = name.split('.').collect();
        let canonical = match parts.as_slice() {
            [side @ ("encoder" | "decoder"), "layers", index, rest @ ..] => {
                seanet_name(side, index, rest, last)
            }
            [
                side @ ("encoder_transformer" | "decoder_transformer"),
                "layers",
                layer,
                rest @ ..,
            ] => {
                let prefix = format!("{side}.transformer.layers.{layer}");
                let projection = match rest {
                    ["self_attn", "q_proj", "weight"] => Some(0),
                    ["self_attn", "k_proj", "weight"] => Some(1),
                    ["self_attn", "v_proj", "weight"] => Some(2),
                    _ => None,
                };
                if let Some(i) = projection {
                    let packed = format!("{prefix}.self_attn.in_proj_weight");
                    projections.entry(packed).or_default()[i] = Some(name.clone());
                    continue;
                }
                transformer_name(rest).map(|rest| format!("{prefix}.{rest}"))
            }
            ["downsample", "conv", "weight"] => Some("downsample.conv.conv.conv.weight".into()),
            ["upsample", "conv", "weight"] => Some("upsample.convtr.convtr.convtr.weight".into()),
            ["quantizer", branch, rest @ ..] => quantizer_name(branch, rest),
            _ => None,
        };
        let canonical = canonical.unwrap_or_else(|| name.clone());
        if entries.insert(canonical.clone(), whole(name, &info.shape)).is_some() {
            again(name, &canonical);
        }
    }
    for (packed, parts) in projections {
        let [Some(q), Some(k), Some(v)] = &parts else {
            for name in parts.into_iter().flatten() {
                let shape = file.tensors()[&name].shape.clone();
                entries.insert(name.clone(), whole(&name, &shape));
            }
            continue;
        };
        let shape_of = |name: &String| file.tensors()[name].shape.clone();
        let mut shape = shape_of(q);
        let alike = shape.len() == 2 && shape_of(k) == shape && shape_of(v) == shape;
        if !alike || shape.contains(&0) || !shape[0].is_multiple_of(2 * num_heads) {
            for name in [q, k, v] {
                entries.insert(name.clone(), whole(name, &shape_of(name)));
            }
            continue;
        }
        let v_piece = Piece::whole(v, &shape);
        shape[0] *= 3;
        let interleave = |tensor: &String| Piece::Interleave { tensor: tensor.clone(), num_heads };
        let pieces = vec![interleave(q), interleave(k), v_piece];
        if entries.insert(packed.clone(), Entry { shape, pieces }).is_some() {
            again(q, &packed);
        }
    }
    entries
}

/// `last` is the index of the decoder's last module.
fn seanet_name(side: &str, index: &str, rest: &[&str], last: usize) -> Option<String> {
    let index: usize = index.parse().ok()?;
    // In the decoder every third module from index 2 on is a transposed convolution, but for the
    // last one.
    let transposed = side == "decoder" && index % 3 == 2 && index < last;
    let kind = if transposed { "convtr" } else { "conv" };
    match rest {
        ["conv", leaf] => Some(format!("{side}.model.{index}.{kind}.{kind}.{leaf}")),
        ["block", inner, "conv", leaf] => {
            Some(format!("{side}.model.{index}.block.{inner}.conv.conv.{leaf}"))
        }
        _ => None,
    }
}

fn transformer_name(rest: &[&str]) -> Option<String> {
    Some(match rest {
        ["input_layernorm", leaf] => format!("norm1.{leaf}"),
        ["post_attention_layernorm", leaf] => format!("norm2.{leaf}"),
        ["self_attn", "o_proj", "weight"] => "self_attn.out_proj.weight".into(),
        ["mlp", "fc1", "weight"] => "linear1.weight".into(),
        ["mlp", "fc2", "weight"] => "linear2.weight".into(),
        ["self_attn_layer_scale", "scale"] => "layer_scale_1.scale".into(),
        ["mlp_layer_scale", "scale"] => "layer_scale_2.scale".into(),
        _ => return None,
    })
}

fn quantizer_name(branch: &str, rest: &[&str]) -> Option<String> {
    let branch = match branch {
        "semantic_residual_vector_quantizer" => "rvq_first",
        "acoustic_residual_vector_quantizer" => "rvq_rest",
        _ => return None,
    };
    match rest {
        ["layers", level, "codebook", leaf] => {
            let leaf = match *leaf {
                "embed_sum" => "embedding_sum",
                "initialized" => "_initialized",
                other => other,
            };
            Some(format!("quantizer.{branch}.vq.layers.{level}._codebook.{leaf}"))
        }
        [projection, "weight"] => Some(format!("quantizer.{branch}.{projection}.weight")),
        _ => None,
    }
}
