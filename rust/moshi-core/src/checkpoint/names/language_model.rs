//! Names of language-model tensors. Canonical is the PyTorch layout with split projections
//! (`self_attn.in_projs.{set}.weight`).

use std::collections::BTreeMap;

use super::{Renamed, quantised, whole};
use crate::checkpoint::TensorFile;
use crate::checkpoint::catalog::{Entry, Piece};
use crate::config::LmConfig;
use crate::error::TensorProblems;

/// Whose names a language-model file uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The PyTorch package's, projections packed or split.
    PyTorch,
    /// The Rust crate's on Candle: one depth transformer for every codebook, whether or not
    /// codebooks share weights.
    Candle,
    /// The MLX package's: Candle's with other names for embeddings, slices and norms.
    Mlx,
}

impl Layout {
    /// The layout of a file. A model without depth transformer has the same names in both.
    pub fn of(file: &TensorFile) -> Self {
        let has = |name| file.tensors().contains_key(name);
        if has("audio_embs.0.weight") || has("depformer.slices.0.linear_in.weight") {
            Self::Mlx
        } else if has("depformer.0.linear_in.weight") {
            Self::Candle
        } else {
            Self::PyTorch
        }
    }

    /// True for canonical tensors that files of this layout have no name for.
    pub fn lacks(self, name: &str) -> bool {
        let demux = name.ends_with("emb.out1.weight") || name.ends_with("emb.out2.weight");
        match self {
            Self::PyTorch => false,
            Self::Candle => demux || name.starts_with("depformer_norms."),
            Self::Mlx => name.starts_with("depformer_norms."),
        }
    }

    /// Name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::PyTorch => "PyTorch",
            Self::Candle => "Candle",
            Self::Mlx => "MLX",
        }
    }
}

/// All tensors of a language model under canonical names.
pub(in crate::checkpoint) fn language_model(
    file: &TensorFile,
    config: &LmConfig,
    problems: &mut TensorProblems,
) -> BTreeMap<String, Entry> {
    let layout = Layout::of(file);
    let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
    for (name, info) in file.tensors() {
        if quantised::is_companion(file, name) {
            continue;
        }
        let spelled = if layout == Layout::Mlx { candle_spelling(name) } else { name.clone() };
        let slices = layout != Layout::PyTorch;
        let renamed = match depth_of_candle(&spelled, config).filter(|_| slices) {
            Some(canonical) => Ok(vec![(canonical, whole(name, &info.shape))]),
            None => pytorch(&spelled, name, &info.shape, config),
        };
        let renamed = match renamed {
            Ok(renamed) => renamed,
            Err(problem) => {
                problems.misshapen.push(problem);
                continue;
            }
        };
        for (canonical, entry) in renamed {
            let Some(first) = entries.get(&canonical) else {
                entries.insert(canonical, entry);
                continue;
            };
            let copied = slices && name.starts_with("depformer.");
            match first.pieces.as_slice() {
                [Piece::Rows { tensor, .. }] if copied => {
                    if !same_content(file, tensor, name) {
                        let differs = format!(
                            "{name}: differs from {tensor}, although the config makes them one \
                             tensor ({canonical})"
                        );
                        problems.misshapen.push(differs);
                    }
                }
                _ => problems.unexpected.push(format!("{name} (another spelling of {canonical})")),
            }
        }
    }
    quantised::attach_scales(file, &mut entries, problems);
    join_cross_projections(&mut entries);
    entries
}

/// MLX's name in Candle's spelling.
fn candle_spelling(name: &str) -> String {
    if let Some(rest) = name.strip_prefix("audio_embs.") {
        return format!("emb.{rest}");
    }
    let name = name.replacen("depformer.slices.", "depformer.", 1);
    for norm in ["norm1", "norm2", "out_norm"] {
        if let Some(prefix) = name.strip_suffix(&format!("{norm}.weight")) {
            return format!("{prefix}{norm}.alpha");
        }
    }
    name
}

/// Canonical name of a tensor of the depth transformer of one codebook. Codebooks that share a
/// weight set have copies of it.
fn depth_of_candle(name: &str, config: &LmConfig) -> Option<String> {
    let (codebook, rest) = name.strip_prefix("depformer.")?.split_once('.')?;
    let codebook: usize = codebook.parse().ok()?;
    let set = *config.depth.as_ref()?.schedule.get(codebook)?;
    if let Some(part) = rest.strip_prefix("emb.") {
        return Some(match codebook.checked_sub(1) {
            None => format!("depformer_text_emb.{part}"),
            Some(previous) => format!("depformer_emb.{previous}.{part}"),
        });
    }
    match rest {
        "linear_in.weight" => return Some(format!("depformer_in.{set}.weight")),
        "linear_out.weight" => return Some(format!("linears.{codebook}.weight")),
        _ => {}
    }
    let (layer, rest) = rest.strip_prefix("transformer.layers.")?.split_once('.')?;
    let rest = match rest {
        "self_attn.in_proj_weight" | "self_attn.in_proj.weight" => {
            format!("self_attn.in_projs.{set}.weight")
        }
        "self_attn.out_proj.weight" => format!("self_attn.out_projs.{set}.weight"),
        "gating.linear_in.weight" => format!("gating.{set}.linear_in.weight"),
        "gating.linear_out.weight" => format!("gating.{set}.linear_out.weight"),
        norm => norm.to_owned(),
    };
    Some(format!("depformer.layers.{layer}.{rest}"))
}

fn same_content(file: &TensorFile, first: &str, second: &str) -> bool {
    let whole = |name: &str| {
        let rows = file.tensors()[name].shape.first().copied().unwrap_or(1);
        (file.row_bytes(name, 0..rows).ok(), &file.tensors()[name].shape)
    };
    whole(first) == whole(second)
}

/// Joins projections of the cross-attention that were saved as queries and the rest.
fn join_cross_projections(entries: &mut BTreeMap<String, Entry>) {
    const QUERIES: &str = ".cross_attention.in_proj_weight_q";
    let names: Vec<String> =
        entries.keys().filter(|name| name.ends_with(QUERIES)).cloned().collect();
    for name in names {
        let prefix = name.trim_end_matches("in_proj_weight_q");
        let (rest, joined) =
            (format!("{prefix}in_proj_weight_kv"), format!("{prefix}in_projs.0.weight"));
        let columns = |name: &str| match entries.get(name)?.shape.as_slice() {
            &[_, columns] => Some(columns),
            _ => None,
        };
        let alike = columns(&name).is_some() && columns(&name) == columns(&rest);
        if !alike || entries.contains_key(&joined) {
            continue;
        }
        let (Some(mut queries), Some(others)) = (entries.remove(&name), entries.remove(&rest))
        else {
            continue;
        };
        queries.shape[0] += others.shape[0];
        queries.pieces.extend(others.pieces);
        entries.insert(joined, queries);
    }
}

/// Splits packed projections; everything else keeps its name. `name` is spelled as PyTorch does,
/// `tensor` as the file does.
fn pytorch(
    name: &str,
    tensor: &str,
    shape: &[usize],
    config: &LmConfig,
) -> Result<Renamed, String> {
    let Some((prefix, split)) = packed_projection(name, "weight") else {
        return Ok(vec![(name.into(), whole(tensor, shape))]);
    };
    let sets = weight_sets(prefix, config);
    let &[rows, _] = shape else {
        return Err(format!("{tensor}: expected a matrix, got {shape:?}"));
    };
    if !rows.is_multiple_of(sets) {
        return Err(format!("{tensor}: {rows} rows do not divide by {sets} weight sets"));
    }
    let each = rows / sets;
    let entries = (0..sets).map(|set| {
        let mut shape = shape.to_vec();
        shape[0] = each;
        let rows = set * each..(set + 1) * each;
        let pieces = vec![Piece::Rows { tensor: tensor.into(), rows }];
        (format!("{prefix}{split}{set}.weight"), Entry { shape, pieces })
    });
    Ok(entries.collect())
}

/// Weight sets that are packed into one tensor whose name begins with `prefix`: 1 but for the
/// self-attentions of the depth transformer.
pub(in crate::checkpoint) fn weight_sets(prefix: &str, config: &LmConfig) -> usize {
    let Some(depth) = &config.depth else { return 1 };
    let layer = prefix
        .strip_prefix("depformer.layers.")
        .and_then(|rest| rest.strip_suffix(".self_attn")?.parse::<usize>().ok());
    // A layer that the model lacks is not worth an entry for every set.
    match layer {
        Some(layer) if layer < depth.shape.num_layers => depth.num_sets(),
        _ => 1,
    }
}

/// For a packed projection of an attention, with `leaf` after its name (`weight`,
/// `lora_A.weight`): what precedes it, and the name of its parts up to their number.
pub(in crate::checkpoint) fn packed_projection<'n>(
    name: &'n str,
    leaf: &str,
) -> Option<(&'n str, &'static str)> {
    let base = name.strip_suffix(leaf)?;
    let (prefix, split) =
        [(".in_proj_", ".in_projs."), (".in_proj.", ".in_projs."), (".out_proj.", ".out_projs.")]
            .into_iter()
            .find_map(|(packed, split)| Some((base.strip_suffix(packed)?, split)))?;
    let attention = prefix.ends_with("self_attn") || prefix.ends_with("cross_attention");
    attention.then_some((prefix, split))
}
