//! The files of a language model, and what their weights will take in memory.

use super::conditioning::usual_positions;
use super::precision::{Footprint, WeightType};
use crate::checkpoint::{Catalog, Lora, SourceFile, TensorFile, layout};
use crate::config::{LmConfig, TransformerShape};
use crate::error::Result;
use crate::exec::{Executor, KeyStorage};

/// The files of a language model, opened.
pub struct LmFiles {
    weights: TensorFile,
    lora: Option<Lora>,
}

impl LmFiles {
    /// Opens weights and adapter; only their headers are read.
    ///
    /// # Errors
    /// As [`TensorFile::open`].
    pub fn open(
        weights: impl Into<SourceFile>,
        config: &LmConfig,
        lora: Option<&SourceFile>,
    ) -> Result<Self> {
        let weights = TensorFile::open(weights)?;
        let lora = lora.map(|file| Lora::open(file, config)).transpose()?;
        Ok(Self { weights, lora })
    }

    /// The weights file.
    pub fn weights(&self) -> &TensorFile {
        &self.weights
    }

    /// The catalogue of the weights with the adapter fused in.
    ///
    /// # Errors
    /// As [`Catalog::language_model`].
    pub fn catalog(&self, config: &LmConfig) -> Result<Catalog<'_>> {
        let catalog = Catalog::language_model(&self.weights, config)?;
        Ok(match &self.lora {
            Some(lora) => catalog.with_lora(lora),
            None => catalog,
        })
    }
}

/// Bytes that a language model takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LmMemory {
    /// Its weights.
    pub weight_bytes: u64,
    /// Keys and values of one stream without guidance, which doubles them; a model that attends
    /// to a voice is counted with [`VOICE_POSITIONS`](super::VOICE_POSITIONS) of it.
    pub stream_bytes: u64,
    /// Storage of most weights.
    pub dtype: WeightType,
    /// Storage of keys and values.
    pub kv_dtype: KeyStorage,
}

impl LmMemory {
    /// Computes it before anything is allocated.
    ///
    /// # Errors
    /// As [`LanguageModel::load`](super::LanguageModel::load).
    pub fn of<E: Executor>(
        exec: &E,
        catalog: &Catalog<'_>,
        config: &LmConfig,
        dtype: Option<WeightType>,
        kv_dtype: Option<KeyStorage>,
    ) -> Result<Self> {
        let expected = layout::language_model(config, layout::gated_widths_of(catalog, config));
        catalog.check(&expected)?;
        let footprint = Footprint::new(exec, catalog, &expected, dtype);
        let rings = |shape: &TransformerShape, positions: usize, storage: KeyStorage| {
            shape.num_layers as u64 * exec.ring_bytes(shape.heads, positions, storage)
        };
        let depth = config.depth.as_ref();
        let depth = depth.map(|d| rings(&d.shape, config.num_generated, KeyStorage::F32));
        let keys = exec.key_storage(kv_dtype, footprint.dtype.keys())?;
        let shape = &config.temporal.shape;
        let temporal = rings(shape, config.temporal.context, keys);
        let positions = usual_positions(config);
        let cross =
            shape.num_layers as u64 * exec.ring_bytes(shape.heads.ungrouped(), positions, keys);
        Ok(Self {
            weight_bytes: footprint.bytes,
            stream_bytes: temporal + cross + depth.unwrap_or(0),
            dtype: footprint.dtype,
            kv_dtype: keys,
        })
    }
}
