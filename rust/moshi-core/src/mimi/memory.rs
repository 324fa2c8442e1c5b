//! Bytes that a codec takes, known before anything is allocated.

use super::model::{MimiMode, MimiOptions, MimiParts};
use crate::checkpoint::layout;
use crate::config::MimiConfig;

/// Bytes that a codec takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MimiMemory {
    /// Its weights.
    pub weight_bytes: u64,
    /// Keys and values of one stream.
    pub stream_bytes: u64,
}

impl MimiMemory {
    /// Computes it from the config; tails of convolutions (below 1 MB) are left out.
    pub fn of(config: &MimiConfig, options: &MimiOptions) -> Self {
        let first_unused = options.num_codebooks.saturating_sub(1);
        let unused = |name: &str| {
            let rest = name.strip_prefix("quantizer.rvq_rest.vq.layers.");
            let level = rest.and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
            level.is_some_and(|level| level >= first_unused)
                || match options.parts {
                    MimiParts::Both => false,
                    MimiParts::Encoder => name.starts_with("decoder") || name.starts_with("up"),
                    MimiParts::Decoder => name.starts_with("encoder") || name.starts_with("down"),
                }
        };
        let used = layout::mimi(config).into_iter().filter(|tensor| !unused(&tensor.name));
        // A config may ask for more than there are bytes in the world; no file will have it.
        let bytes_of = |sizes: &[usize]| {
            let value_bytes = size_of::<f32>() as u64;
            sizes.iter().fold(value_bytes, |bytes, &size| bytes.saturating_mul(size as u64))
        };
        let weight_bytes = used.map(|tensor| {
            let bytes = bytes_of(&tensor.shapes[0]);
            let halved = options.mode == MimiMode::Fast
                && tensor.shapes[0].len() > 1
                && !tensor.name.ends_with("embedding_sum");
            // The search keeps a second copy, of half the bytes.
            let searched =
                options.parts != MimiParts::Decoder && tensor.name.ends_with("embedding_sum");
            match (halved, searched) {
                (true, _) => bytes / 2,
                (_, true) => bytes.saturating_add(bytes / 2),
                _ => bytes,
            }
        });
        let sides = if options.parts == MimiParts::Both { 2 } else { 1 };
        let window = options.window.unwrap_or(config.context);
        Self {
            weight_bytes: weight_bytes.fold(0, u64::saturating_add),
            stream_bytes: bytes_of(&[
                sides,
                config.num_layers,
                2,
                config.heads.key_width(),
                window,
            ]),
        }
    }
}
