//! Names and shapes of all tensors that a config implies, in canonical spelling.

use super::{Catalog, Expected};
use crate::config::{ConditionerKind, LmConfig, MimiConfig, OutputNorm, TransformerShape};

/// Tensors of a language model. `gated_width` chooses among the feed-forward widths that a shape
/// may have in files; [`gated_widths_of`] takes them from a file.
pub fn language_model(config: &LmConfig, widths: GatedWidths) -> Vec<Expected> {
    let temporal = &config.temporal;
    let dim = temporal.shape.dim;
    let mut all = Vec::new();
    for k in 0..config.num_codebooks {
        all.push(Expected::new(format!("emb.{k}.weight"), &[config.card + 1, dim]));
    }
    all.push(Expected::new("text_emb.weight", &[config.text_card + 1, dim]));
    if config.demux_second_stream {
        all.push(Expected::new("text_emb.out1.weight", &[dim, dim]));
        all.push(Expected::new("text_emb.out2.weight", &[dim, dim]));
    }
    for layer in 0..temporal.shape.num_layers {
        let prefix = format!("transformer.layers.{layer}");
        layer_norms(&mut all, &prefix, dim);
        attention(&mut all, &prefix, &temporal.shape, 1);
        gating(&mut all, &format!("{prefix}.gating"), dim, widths.temporal);
        if temporal.cross_attention {
            let cross = format!("{prefix}.cross_attention");
            all.push(Expected::new(format!("{cross}.in_projs.0.weight"), &[3 * dim, dim]));
            all.push(Expected::new(format!("{cross}.out_projs.0.weight"), &[dim, dim]));
            all.push(Expected::new(format!("{prefix}.norm_cross.weight"), &[dim]));
            all.push(Expected::new(format!("{prefix}.norm_cross.bias"), &[dim]));
        }
    }
    all.push(alpha("out_norm.alpha", dim));
    all.push(Expected::new("text_linear.weight", &[config.text_card_out, dim]));
    for head in 0..config.num_extra_heads {
        let name = format!("extra_heads.{head}.weight");
        all.push(Expected::new(name, &[config.extra_head_dim, dim]));
    }
    depth(&mut all, config, widths.depth);
    for conditioner in &config.conditioners {
        let prefix = format!("condition_provider.conditioners.{}", conditioner.name);
        let width = match &conditioner.kind {
            ConditionerKind::Lut { num_bins, dim, .. } => {
                all.push(Expected::new(format!("{prefix}.embed.weight"), &[num_bins + 1, *dim]));
                *dim
            }
            ConditionerKind::Tensor { dim } | ConditionerKind::Number { dim, .. } => *dim,
        };
        all.push(Expected::new(format!("{prefix}.output_proj.weight"), &[dim, width]));
        all.push(Expected::new(format!("{prefix}.learnt_padding"), &[1, 1, dim]));
    }
    all
}

/// Gated feed-forward widths of the two transformers.
#[derive(Clone, Copy, Debug, Default)]
pub struct GatedWidths {
    /// Temporal transformer.
    pub temporal: usize,
    /// Depth transformer.
    pub depth: usize,
}

/// The feed-forward widths that PyTorch's files have.
pub fn first_gated_widths(config: &LmConfig) -> GatedWidths {
    let first = |shape: &TransformerShape| shape.gated_widths()[0];
    let depth = config.depth.as_ref();
    GatedWidths {
        temporal: first(&config.temporal.shape),
        depth: depth.map_or(0, |depth| first(&depth.shape)),
    }
}

/// Takes the feed-forward widths from a file where it has an accepted one, else from the config.
pub fn gated_widths_of(catalog: &Catalog<'_>, config: &LmConfig) -> GatedWidths {
    let choose = |shape: &TransformerShape, name: &str| {
        let accepted = shape.gated_widths();
        let stored = catalog.shape(name).and_then(|shape| shape.last().copied());
        stored.filter(|width| accepted.contains(width)).unwrap_or(accepted[0])
    };
    let depth = config.depth.as_ref();
    GatedWidths {
        temporal: choose(&config.temporal.shape, "transformer.layers.0.gating.linear_out.weight"),
        depth: depth.map_or(0, |depth| {
            choose(&depth.shape, "depformer.layers.0.gating.0.linear_out.weight")
        }),
    }
}

fn depth(all: &mut Vec<Expected>, config: &LmConfig, gated_width: usize) {
    let Some(depth) = &config.depth else { return };
    let (dim, sets) = (depth.shape.dim, depth.num_sets());
    let temporal_dim = config.temporal.shape.dim;
    for set in 0..sets {
        all.push(Expected::new(format!("depformer_in.{set}.weight"), &[dim, temporal_dim]));
    }
    let width = depth.low_rank.unwrap_or(dim);
    all.push(Expected::new("depformer_text_emb.weight", &[config.text_card + 1, width]));
    if let Some(rank) = depth.low_rank {
        let low_rank = Expected::new("depformer_text_emb.low_rank.weight", &[dim, rank]);
        all.push(if config.demux_second_stream { low_rank.optional() } else { low_rank });
    }
    if config.demux_second_stream {
        all.push(Expected::new("depformer_text_emb.out1.weight", &[dim, width]));
        all.push(Expected::new("depformer_text_emb.out2.weight", &[dim, width]));
    }
    for k in 0..config.num_generated - 1 {
        let prefix = format!("depformer_emb.{k}");
        all.push(Expected::new(format!("{prefix}.weight"), &[config.card + 1, width]));
        if let Some(rank) = depth.low_rank {
            all.push(Expected::new(format!("{prefix}.low_rank.weight"), &[dim, rank]));
        }
    }
    for layer in 0..depth.shape.num_layers {
        let prefix = format!("depformer.layers.{layer}");
        layer_norms(all, &prefix, dim);
        attention(all, &prefix, &depth.shape, sets);
        for set in 0..sets {
            gating(all, &format!("{prefix}.gating.{set}"), dim, gated_width);
        }
    }
    for k in 0..config.num_generated {
        match depth.output_norm {
            None => {}
            Some(OutputNorm::Rms) => all.push(alpha(&format!("depformer_norms.{k}.alpha"), dim)),
            Some(OutputNorm::Layer) => {
                all.push(Expected::new(format!("depformer_norms.{k}.weight"), &[dim]));
                all.push(Expected::new(format!("depformer_norms.{k}.bias"), &[dim]));
            }
        }
        all.push(Expected::new(format!("linears.{k}.weight"), &[config.card, dim]));
    }
}

fn alpha(name: &str, dim: usize) -> Expected {
    Expected::new(name, &[1, 1, dim]).or(&[dim])
}

fn layer_norms(all: &mut Vec<Expected>, prefix: &str, dim: usize) {
    all.push(alpha(&format!("{prefix}.norm1.alpha"), dim));
    all.push(alpha(&format!("{prefix}.norm2.alpha"), dim));
}

fn attention(all: &mut Vec<Expected>, prefix: &str, shape: &TransformerShape, sets: usize) {
    for set in 0..sets {
        let name = format!("{prefix}.self_attn.in_projs.{set}.weight");
        all.push(Expected::new(name, &[shape.heads.fused_width(), shape.dim]));
        let name = format!("{prefix}.self_attn.out_projs.{set}.weight");
        all.push(Expected::new(name, &[shape.dim, shape.dim]));
    }
}

fn gating(all: &mut Vec<Expected>, prefix: &str, dim: usize, width: usize) {
    all.push(Expected::new(format!("{prefix}.linear_in.weight"), &[2 * width, dim]));
    all.push(Expected::new(format!("{prefix}.linear_out.weight"), &[dim, width]));
}

/// Tensors of a codec.
pub fn mimi(config: &MimiConfig) -> Vec<Expected> {
    let mut all = Vec::new();
    seanet(&mut all, config);
    let dim = config.dimension();
    for side in ["encoder_transformer", "decoder_transformer"] {
        for layer in 0..config.num_layers {
            let prefix = format!("{side}.transformer.layers.{layer}");
            for norm in ["norm1", "norm2"] {
                all.push(Expected::new(format!("{prefix}.{norm}.weight"), &[dim]));
                all.push(Expected::new(format!("{prefix}.{norm}.bias"), &[dim]));
            }
            let ff = config.dim_feedforward;
            for (name, shape) in [
                ("self_attn.in_proj_weight", [3 * dim, dim]),
                ("self_attn.out_proj.weight", [dim, dim]),
                ("linear1.weight", [ff, dim]),
                ("linear2.weight", [dim, ff]),
            ] {
                all.push(Expected::new(format!("{prefix}.{name}"), &shape));
            }
            for scale in ["layer_scale_1.scale", "layer_scale_2.scale"] {
                all.push(Expected::new(format!("{prefix}.{scale}"), &[dim]));
            }
        }
    }
    let kernel = 2 * config.positions_per_frame;
    all.push(Expected::new("downsample.conv.conv.conv.weight", &[dim, dim, kernel]));
    all.push(Expected::new("upsample.convtr.convtr.convtr.weight", &[dim, 1, kernel]));
    let width = config.codebook_dim;
    let branches = [("rvq_first", 1), ("rvq_rest", config.total_codebooks - 1)];
    for (branch, levels) in branches {
        let prefix = format!("quantizer.{branch}");
        if levels == 0 {
            continue;
        }
        all.push(Expected::new(format!("{prefix}.input_proj.weight"), &[width, dim, 1]));
        all.push(Expected::new(format!("{prefix}.output_proj.weight"), &[dim, width, 1]));
        for level in 0..levels {
            let book = format!("{prefix}.vq.layers.{level}._codebook");
            let entries = config.codebook_size;
            all.push(Expected::new(format!("{book}.embedding_sum"), &[entries, width]));
            all.push(Expected::new(format!("{book}.cluster_usage"), &[entries]));
            all.push(Expected::new(format!("{book}._initialized"), &[1]).or(&[]).optional());
        }
    }
    all
}

fn seanet(all: &mut Vec<Expected>, config: &MimiConfig) {
    let seanet = &config.seanet;
    let stages = seanet.ratios.len();
    let mut conv = |name: String, shape: [usize; 3], outputs: usize| {
        all.push(Expected::new(format!("{name}.weight"), &shape));
        all.push(Expected::new(format!("{name}.bias"), &[outputs]));
    };
    let residual = |conv: &mut dyn FnMut(String, [usize; 3], usize), prefix: String, c: usize| {
        let hidden = c / seanet.compress;
        let taps = seanet.residual_kernel_size;
        conv(format!("{prefix}.block.1.conv.conv"), [hidden, c, taps], hidden);
        conv(format!("{prefix}.block.3.conv.conv"), [c, hidden, 1], c);
    };
    let mut channels = seanet.num_filters;
    conv("encoder.model.0.conv.conv".into(), [channels, 1, seanet.kernel_size], channels);
    for (stage, ratio) in seanet.ratios.iter().rev().enumerate() {
        residual(&mut conv, format!("encoder.model.{}", 1 + 3 * stage), channels);
        let name = format!("encoder.model.{}.conv.conv", 3 + 3 * stage);
        conv(name, [2 * channels, channels, 2 * ratio], 2 * channels);
        channels *= 2;
    }
    let (dim, last) = (seanet.dimension, seanet.last_kernel_size);
    conv(format!("encoder.model.{}.conv.conv", 2 + 3 * stages), [dim, channels, last], dim);
    conv("decoder.model.0.conv.conv".into(), [channels, dim, seanet.kernel_size], channels);
    for (stage, ratio) in seanet.ratios.iter().enumerate() {
        let name = format!("decoder.model.{}.convtr.convtr", 2 + 3 * stage);
        conv(name, [channels, channels / 2, 2 * ratio], channels / 2);
        channels /= 2;
        residual(&mut conv, format!("decoder.model.{}", 3 + 3 * stage), channels);
    }
    conv(format!("decoder.model.{}.conv.conv", 2 + 3 * stages), [1, channels, last], 1);
}
