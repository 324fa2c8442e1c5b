//! What a frame of the codec reads, computed from its config.

use super::MimiMode;
use crate::checkpoint::layout;
use crate::config::MimiConfig;
use crate::exec::{Executor, KeyStorage, Storage};
use crate::stages::Traffic;

/// Traffic of the two directions of a codec.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MimiTraffic {
    /// Audio to codes.
    pub encode: Traffic,
    /// Codes to audio.
    pub decode: Traffic,
}

impl MimiTraffic {
    /// Traffic of a codec that is run with `num_codebooks` codebooks.
    pub fn of<E: Executor>(
        exec: &E,
        config: &MimiConfig,
        num_codebooks: usize,
        mode: MimiMode,
    ) -> Self {
        let matrix = mode.storage().bytes_of(1, 1);
        let mut traffic = Self::default();
        for tensor in layout::mimi(config) {
            let name = tensor.name.as_str();
            let shape = &tensor.shapes[0];
            let values: u64 = shape.iter().map(|&size| size as u64).product();
            let value_bytes = if shape.len() > 1 { matrix } else { size_of::<f32>() as u64 };
            let bytes = values * value_bytes;
            if let Some(side) = name.strip_prefix("quantizer.") {
                traffic.add_quantiser(exec, side, shape, num_codebooks);
                continue;
            }
            let encodes = name.starts_with("encoder") || name.starts_with("down");
            let part = if encodes { &mut traffic.encode } else { &mut traffic.decode };
            part.weight_bytes += bytes;
            if shape.len() > 1 {
                part.multiplications += values * positions(name, config) as u64;
            }
        }
        let layers = config.num_layers as u64;
        let keys = exec.key_storage(None, mode.keys()).unwrap_or(KeyStorage::F32);
        let ring = exec.ring_bytes(config.heads, config.context, keys);
        let attention = 2 * config.positions_per_frame * config.context;
        for part in [&mut traffic.encode, &mut traffic.decode] {
            part.stream_bytes += layers * ring;
            part.multiplications += layers * (attention * config.heads.query_width()) as u64;
        }
        traffic
    }

    fn add_quantiser<E: Executor>(
        &mut self,
        exec: &E,
        name: &str,
        shape: &[usize],
        num_codebooks: usize,
    ) {
        let values: u64 = shape.iter().map(|&size| size as u64).product();
        let bytes = Storage::F32.bytes_of(values as usize, 1);
        if name.ends_with("input_proj.weight") {
            self.encode.weight_bytes += bytes;
            self.encode.multiplications += values;
        } else if name.ends_with("output_proj.weight") {
            self.decode.weight_bytes += bytes;
            self.decode.multiplications += values;
        } else if name.ends_with("embedding_sum") {
            let level = name.split('.').nth(3).and_then(|level| level.parse::<usize>().ok());
            let first_rest = usize::from(name.starts_with("rvq_rest"));
            if level.is_some_and(|level| level + first_rest < num_codebooks) {
                self.encode.weight_bytes += exec.search_bytes(shape[0], shape[1]);
                self.encode.multiplications += values;
                self.decode.stream_bytes += bytes / shape[0] as u64;
            }
        }
    }
}

/// Positions of a frame at which a layer's weights are applied.
fn positions(name: &str, config: &MimiConfig) -> usize {
    let ratios = &config.seanet.ratios;
    let stages = ratios.len();
    let index = |prefix: &str| -> Option<usize> {
        name.strip_prefix(prefix)?.split('.').next()?.parse().ok()
    };
    let inner = config.positions_per_frame;
    if let Some(index) = index("encoder.model.") {
        // Residual blocks stand before the convolution that divides the positions.
        let divided = index / 3;
        return config.frame_samples / ratios.iter().rev().take(divided).product::<usize>();
    }
    if let Some(index) = index("decoder.model.") {
        // A transposed convolution, at 2, 5, ..., is applied at the positions that it multiplies.
        let multiplied = (index / 3).min(stages);
        return inner * ratios.iter().take(multiplied).product::<usize>();
    }
    if name.starts_with("downsample") || name.starts_with("upsample") { 1 } else { inner }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::Scalar;

    /// Millions of multiplications and of weights per frame of the public codec.
    #[test]
    fn the_public_codec_has_its_known_cost() {
        let traffic = MimiTraffic::of(&Scalar, &MimiConfig::default(), 8, MimiMode::Exact);
        let close = |got: u64, expected: f64| {
            let got = got as f64 / 1e6;
            assert!((got - expected).abs() < 0.01 * expected, "{got} against {expected}");
        };
        close(traffic.encode.multiplications, 221.2);
        close(traffic.decode.multiplications, 219.7);
        close(traffic.encode.weight_bytes / 4, 43.3);
        close(traffic.decode.weight_bytes / 4, 40.2);
        close(traffic.encode.stream_bytes, 8.2);
    }

    #[test]
    fn more_codebooks_are_searched_longer() {
        let of =
            |count| MimiTraffic::of(&Scalar, &MimiConfig::default(), count, MimiMode::Exact).encode;
        let more = of(32).multiplications - of(8).multiplications;
        assert_eq!(more, 24 * 2048 * 256);
    }
}
