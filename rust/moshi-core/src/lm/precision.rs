//! How the weights of a language model are stored in memory.

use crate::checkpoint::{Catalog, Expected};
use crate::exec::{BlockFormat, Executor, KeyStorage, Storage};

/// Storage of a language model's weights, as callers choose it.
///
/// Under [`WeightType::Q8`] and [`WeightType::Q4`] norms and conditions keep f32, and embeddings, of
/// which a step reads a few rows only, keep bf16. Whether activations are rounded to 8 bits before
/// a product is the executor's matter: `cpu` rounds them, `scalar` does not.
/// Matrices whose rows are no whole blocks of 32 keep f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightType {
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// 8 bits in blocks of 32 with one scale (`Q8_0`).
    Q8,
    /// 4 bits in blocks of 32: with scale and offset (`Q4_1`) in the temporal transformer, with a
    /// scale (`Q4_0`) in the depth transformer. Heads have 8 bits.
    Q4,
}

impl WeightType {
    /// Name in options and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Q8 => "q8",
            Self::Q4 => "q4",
        }
    }

    /// How keys and values are stored beside such weights where nothing else is asked for and the
    /// executor can choose.
    pub fn keys(self) -> KeyStorage {
        match self {
            Self::F32 => KeyStorage::F32,
            Self::Bf16 | Self::Q8 | Self::Q4 => KeyStorage::Bf16,
        }
    }

    /// The type that a storage counts as.
    pub(super) fn of(storage: Storage) -> Self {
        match storage {
            Storage::F32 => Self::F32,
            Storage::Bf16 => Self::Bf16,
            Storage::Blocks(BlockFormat::Q8_0) => Self::Q8,
            Storage::Blocks(BlockFormat::Q4_0 | BlockFormat::Q4_1 | BlockFormat::Q4K) => Self::Q4,
        }
    }
}

/// Storage of the matrix `name` of `cols` columns that the checkpoint has in something like
/// `stored`.
pub(super) fn storage_of(
    name: &str,
    cols: usize,
    stored: Storage,
    wanted: Option<WeightType>,
) -> Storage {
    // Conditions are computed once a session and read by nothing else.
    if name.starts_with("condition_provider.") {
        return Storage::F32;
    }
    let fits = |storage| match storage {
        Storage::Blocks(format) if format.bytes_of(cols).is_none() => Storage::F32,
        fitting => fitting,
    };
    let Some(wanted) = wanted.filter(|&wanted| wanted != WeightType::of(stored)) else {
        return fits(stored);
    };
    let wanted = match wanted {
        WeightType::F32 => Storage::F32,
        WeightType::Bf16 => Storage::Bf16,
        WeightType::Q8 | WeightType::Q4 if is_table(name) => Storage::Bf16,
        WeightType::Q4 if name.starts_with("transformer.") => Storage::Blocks(BlockFormat::Q4_1),
        WeightType::Q4 if name.starts_with("depformer") && !name.contains("emb.") => {
            Storage::Blocks(BlockFormat::Q4_0)
        }
        WeightType::Q8 | WeightType::Q4 => Storage::Blocks(BlockFormat::Q8_0),
    };
    fits(wanted)
}

/// True for matrices whose rows are looked up.
pub(super) fn is_table(name: &str) -> bool {
    name.ends_with("emb.weight")
        || name.starts_with("emb.")
        || name.starts_with("depformer_emb.") && !name.ends_with(".low_rank.weight")
}

/// What the weights of a catalogue will be in memory.
pub(super) struct Footprint {
    /// Bytes of all weights.
    pub(super) bytes: u64,
    /// The type of most of them.
    pub(super) dtype: WeightType,
    /// Storage of every matrix, in order of the expected tensors.
    pub(super) storages: Vec<Storage>,
}

impl Footprint {
    pub(super) fn new<E: Executor>(
        exec: &E,
        catalog: &Catalog<'_>,
        expected: &[Expected],
        wanted: Option<WeightType>,
    ) -> Self {
        let mut footprint = Self { bytes: 0, dtype: WeightType::F32, storages: Vec::new() };
        let mut values = [0u64; 4];
        for Expected { name, .. } in expected {
            let Some(shape) = catalog.shape(name) else { continue };
            let (&[rows, cols] | &[_, rows, cols]) = shape else {
                footprint.bytes += 4 * shape.iter().product::<usize>() as u64;
                continue;
            };
            let matrix = shape.len() == 2;
            let storage = if matrix {
                storage_of(name, cols, catalog.nearest_storage(name), wanted)
            } else {
                Storage::F32
            };
            footprint.bytes += if is_table(name) {
                exec.table_bytes(storage, rows, cols)
            } else {
                exec.weight_bytes(storage, rows, cols)
            };
            if matrix {
                values[WeightType::of(storage) as usize] += (rows * cols) as u64;
                footprint.storages.push(storage);
            }
        }
        let all = [WeightType::F32, WeightType::Bf16, WeightType::Q8, WeightType::Q4];
        footprint.dtype =
            all.into_iter().max_by_key(|&t| values[t as usize]).unwrap_or(WeightType::F32);
        footprint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_depends_on_the_role_of_a_matrix() {
        let four = |name: &str| storage_of(name, 64, Storage::F32, Some(WeightType::Q4));
        let blocks = |format| Storage::Blocks(format);
        assert_eq!(four("transformer.layers.0.gating.linear_in.weight"), blocks(BlockFormat::Q4_1));
        assert_eq!(four("depformer.layers.0.gating.1.linear_in.weight"), blocks(BlockFormat::Q4_0));
        assert_eq!(four("depformer_in.0.weight"), blocks(BlockFormat::Q4_0));
        for head in ["text_linear.weight", "linears.0.weight", "extra_heads.0.weight"] {
            assert_eq!(four(head), blocks(BlockFormat::Q8_0));
        }
        for projection in ["depformer_emb.0.low_rank.weight", "text_emb.out1.weight"] {
            assert_eq!(four(projection), blocks(BlockFormat::Q8_0));
        }
        for table in ["emb.0.weight", "text_emb.weight", "depformer_text_emb.weight"] {
            assert_eq!(four(table), Storage::Bf16);
        }
        let conditions = "condition_provider.conditioners.speaker.output_proj.weight";
        assert_eq!(four(conditions), Storage::F32);
    }

    #[test]
    fn rows_of_odd_width_stay_floats() {
        let odd = storage_of("linears.0.weight", 33, Storage::F32, Some(WeightType::Q8));
        assert_eq!(odd, Storage::F32);
    }

    #[test]
    fn blocks_of_as_many_bits_are_kept() {
        let stored = Storage::Blocks(BlockFormat::Q4K);
        let kept = storage_of("linears.0.weight", 256, stored, Some(WeightType::Q4));
        assert_eq!(kept, stored);
        let widened = storage_of("linears.0.weight", 256, stored, Some(WeightType::F32));
        assert_eq!(widened, Storage::F32);
    }
}
