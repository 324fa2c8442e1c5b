//! Bytes that a codec takes, known before anything is allocated.

use super::model::{MimiMode, MimiOptions, MimiParts};
use crate::checkpoint::layout;
use crate::config::MimiConfig;
use crate::exec::{Executor, KeyStorage};

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
    pub fn of<E: Executor>(exec: &E, config: &MimiConfig, options: &MimiOptions) -> Self {
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
        let bytes_of = |value_bytes: u64, sizes: &[usize]| {
            sizes.iter().fold(value_bytes, |bytes, &size| bytes.saturating_mul(size as u64))
        };
        let weight_bytes = used.map(|tensor| {
            let shape = &tensor.shapes[0];
            let is_codebook = tensor.name.ends_with("embedding_sum");
            let halved = options.mode == MimiMode::Fast && shape.len() > 1 && !is_codebook;
            let searched = is_codebook && options.parts != MimiParts::Decoder;
            let copy = if searched { exec.search_copy_bytes(shape[0], shape[1]) } else { 0 };
            bytes_of(if halved { 2 } else { 4 }, shape).saturating_add(copy)
        });
        let sides = if options.parts == MimiParts::Both { 2 } else { 1 };
        let window = options.window.unwrap_or(config.context);
        let keys = exec.key_storage(None, options.mode.keys()).unwrap_or(KeyStorage::F32);
        let value_bytes = if keys == KeyStorage::F32 { 4 } else { 2 };
        Self {
            weight_bytes: weight_bytes.fold(0, u64::saturating_add),
            stream_bytes: bytes_of(
                value_bytes,
                &[sides, config.num_layers, 2, config.heads.key_width(), window],
            ),
        }
    }
}
