//! What a step of a language model reads, computed from its config.

use super::conditioning::usual_positions;
use super::precision::{WeightType, is_table, storage_of};
use crate::checkpoint::layout::{self, GatedWidths};
use crate::config::LmConfig;
use crate::exec::{Executor, KeyStorage, Storage};
use crate::stages::Traffic;

/// Traffic of the two transformers of a language model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LmTraffic {
    /// Temporal transformer with embeddings and heads.
    pub temporal: Traffic,
    /// Depth transformer: a weight set counts as often as a step uses it.
    pub depth: Traffic,
}

impl LmTraffic {
    /// Traffic of a model whose checkpoint stores `stored` and that is loaded as `wanted`, with
    /// keys and values in `keys`, see [`Executor::key_storage`]. A model that attends to a voice
    /// is counted with [`VOICE_POSITIONS`](super::VOICE_POSITIONS) of it.
    pub fn of<E: Executor>(
        exec: &E,
        config: &LmConfig,
        widths: GatedWidths,
        stored: Storage,
        wanted: Option<WeightType>,
        keys: KeyStorage,
    ) -> Self {
        let mut traffic = Self::default();
        for tensor in layout::language_model(config, widths) {
            let name = tensor.name.as_str();
            if name.starts_with("condition_provider.") {
                continue;
            }
            let part = if name.starts_with("depformer") || name.starts_with("linears.") {
                &mut traffic.depth
            } else {
                &mut traffic.temporal
            };
            let &[rows, cols] = &tensor.shapes[0][..] else {
                part.weight_bytes += Storage::F32.bytes_of(tensor.shapes[0].iter().product(), 1);
                continue;
            };
            let storage = storage_of(name, cols, stored, wanted);
            if is_table(name) {
                part.stream_bytes += storage.bytes_of(1, cols);
                continue;
            }
            // Keys and values of a conditioning sequence are computed when a stream opens.
            let rows = if name.contains("cross_attention.in_proj") { rows / 3 } else { rows };
            let uses = uses(name, config);
            part.weight_bytes += uses * exec.weight_bytes(storage, rows, cols);
            part.multiplications += uses * (rows * cols) as u64;
        }
        let temporal = &config.temporal;
        let layers = temporal.shape.num_layers as u64;
        let heads = temporal.shape.heads;
        for (heads, positions) in
            [(heads, temporal.context), (heads.ungrouped(), usual_positions(config))]
        {
            traffic.temporal.stream_bytes += layers * exec.ring_bytes(heads, positions, keys);
            traffic.temporal.multiplications +=
                layers * (2 * positions * heads.query_width()) as u64;
        }
        traffic
    }
}

/// How often a step reads a matrix: once, or for every codebook whose weight set it belongs to.
fn uses(name: &str, config: &LmConfig) -> u64 {
    let Some(depth) = &config.depth else { return 1 };
    let number = |part: &str| part.split('.').next()?.parse::<usize>().ok();
    let set = ["depformer_in.", ".in_projs.", ".out_projs.", ".gating."]
        .iter()
        .filter(|_| name.starts_with("depformer"))
        .find_map(|marker| number(name.split_once(marker)?.1));
    set.map_or(1, |set| depth.schedule.iter().filter(|&&of| of == set).count() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use moshi_kernels::isa::Isa;

    use crate::exec::{Cpu, Scalar};

    fn traffic(name: &str, wanted: WeightType) -> LmTraffic {
        let config = LmConfig::known(name).unwrap();
        let widths = layout::first_gated_widths(&config);
        LmTraffic::of(&Scalar, &config, widths, Storage::Bf16, Some(wanted), KeyStorage::F32)
    }

    /// Published counts of parameters that a step reads, in millions: temporal with heads, depth.
    #[test]
    fn streamed_parameters_agree_with_the_published_models() {
        for (name, temporal, depth) in [
            ("moshi-7b", 6708.0, 667.0),
            ("hibiki-1b", 920.5, 650.2),
            ("hibiki-2b", 2049.8, 748.8),
            ("hibiki-zero-3b", 1860.0, 1678.0),
            ("stt-1b", 838.7, 0.0),
            ("stt-2.6b", 2474.7, 0.0),
            ("tts-0.75b", 308.3, 723.8),
        ] {
            let bf16 = traffic(name, WeightType::Bf16);
            let millions = |part: Traffic| part.weight_bytes as f64 / 2e6;
            for (got, expected) in [(bf16.temporal, temporal), (bf16.depth, depth)] {
                let got = millions(got);
                let slack = 0.003 * expected + 3.0;
                assert!((got - expected).abs() < slack, "{name}: {got} against {expected}");
            }
        }
    }

    #[test]
    fn fewer_bits_are_fewer_bytes_and_as_many_multiplications() {
        let [wide, narrow] = [WeightType::Bf16, WeightType::Q8].map(|w| traffic("stt-1b", w));
        assert_eq!(wide.temporal.multiplications, narrow.temporal.multiplications);
        let ratio = wide.temporal.weight_bytes as f64 / narrow.temporal.weight_bytes as f64;
        assert!((ratio - 16.0 / 8.5).abs() < 0.01, "{ratio}");
    }

    #[test]
    fn a_voice_is_read_beside_the_past() {
        let exec = Cpu::with(Isa::Scalar, Some(1)).unwrap();
        for (name, voice) in [("stt-1b", 0), ("moshi-7b", 0), ("tts-0.75b", 0), ("tts-1.6b", 625)] {
            let config = LmConfig::known(name).unwrap();
            let widths = layout::first_gated_widths(&config);
            let [f32, bf16, q8] = [KeyStorage::F32, KeyStorage::Bf16, KeyStorage::Q8].map(|keys| {
                let stored = (Storage::Bf16, Some(WeightType::Bf16));
                let lm = LmTraffic::of(&exec, &config, widths, stored.0, stored.1, keys);
                lm.temporal.stream_bytes as usize
            });
            let shape = &config.temporal.shape;
            let slots = config.temporal.context.next_multiple_of(16);
            let own = slots * shape.heads.key;
            let rows = own + usize::next_multiple_of(voice, 16) * shape.heads.query;
            let rows = 2 * shape.num_layers * rows;
            assert_eq!(f32 - bf16, 2 * rows * shape.heads.width, "{name}");
            assert_eq!(bf16 - q8, rows * (shape.heads.width - 2), "{name}");
        }
    }

    #[test]
    fn weights_are_read_once_for_all_streams() {
        let one = Traffic { weight_bytes: 100, stream_bytes: 7, multiplications: 1 };
        assert_eq!((one.bytes(1), one.bytes(4)), (107, 128));
    }
}
