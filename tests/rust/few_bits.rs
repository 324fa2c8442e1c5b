//! Weights in few bits: blocks, and integers with scales, equal the values that they stand for.

use std::path::Path;

use moshi_core::Error;
use moshi_core::checkpoint::{Catalog, Encoding, TensorFile, layout};
use moshi_core::config::LmConfig;
use moshi_core::exec::{BlockFormat, Candle, Executor, Scalar};
use moshi_core::lm::{
    LanguageModel, LmFiles, LmMemory, LmOptions, LmOutput, LmSlot, LmStreamOptions, NoHooks,
    Sampling, WeightType,
};
use safetensors::Dtype;
use serde_json::json;

use crate::support::allocator::live_bytes;
use crate::support::gguf::{Gguf, Kind};
use crate::support::models::{config, weights};
use crate::support::tensors::{Raw, Tensor, Tensors};
use crate::support::{Dice, assert_close, golden, is_exact};

executors!(
    blocks_equal_their_decoded_values,
    every_float_checkpoint_can_be_stored_in_few_bits,
    integers_with_scales_equal_their_values,
    scales_that_do_not_fit_are_refused,
);

/// A config whose temporal transformer is wide enough for blocks of 256.
fn wide_config() -> LmConfig {
    let mut json = config();
    json["dim"] = json!(256);
    json["hidden_scale"] = json!(3.0);
    json["depformer_dim"] = json!(64);
    json["depformer_dim_feedforward"] = json!(96);
    LmConfig::from_json("wide.json", &json.to_string()).unwrap()
}

fn wide_weights(config: &LmConfig) -> Tensors {
    let widths = layout::GatedWidths { temporal: 512, depth: 64 };
    weights(&layout::language_model(config, widths), &mut Dice(5))
}

/// What is announced before loading, beside what loading has allocated on this thread.
fn announced_and_taken<E: Executor>(exec: &E, path: &Path) -> (u64, u64) {
    let config = wide_config();
    let files = LmFiles::open(path, &config, None).unwrap();
    let catalog = files.catalog(&config).unwrap();
    let announced = LmMemory::of(exec, &catalog, &config, None, None).unwrap().weight_bytes;
    let before = live_bytes();
    let lm = LanguageModel::from_catalog(exec, &catalog, &config, &LmOptions::default()).unwrap();
    let taken = live_bytes() - before;
    drop(lm);
    (announced, u64::try_from(taken).unwrap())
}

#[test]
fn the_memory_that_is_announced_is_what_loading_takes() {
    let config = wide_config();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    for kind in [Kind::F32, Kind::Blocks(BlockFormat::Q8_0)] {
        Gguf::of(&wide_weights(&config).candle(&[0, 1]), |_, _| kind).write(&path);
        let both =
            [announced_and_taken(&Scalar, &path), announced_and_taken(&Candle::cpu(), &path)];
        for (announced, taken) in both {
            // Names, shapes, and vectors that are longer in memory than their content.
            let rest = 30_000;
            assert!((announced..announced + rest).contains(&taken), "{announced} {taken}");
        }
    }
}

/// Greedy steps over the same user tokens.
fn steps<E: Executor>(lm: &LanguageModel<E>, count: usize) -> Vec<LmOutput> {
    let mut state = lm.new_state(&LmStreamOptions::default()).unwrap();
    let mut dice = Dice(3);
    (0..count)
        .map(|_| {
            let user: Vec<i64> = (0..2).map(|_| dice.below(16) as i64).collect();
            let slot = LmSlot {
                state: &mut state,
                user_tokens: &user,
                sampling: &Sampling::greedy(),
                seed: 0,
                hooks: &mut NoHooks,
                trace: true,
            };
            lm.step(&mut [slot]).unwrap().remove(0)
        })
        .collect()
}

fn assert_same_steps<E: Executor>(exec: &E, a: &LanguageModel<E>, b: &LanguageModel<E>) {
    if exec.name().starts_with("cpu") {
        // Activations are rounded where one of the two has few bits, and so are keys and values: a
        // token may differ, and all later ones with it.
        let [a, b] = [a, b].map(|lm| steps(lm, 1).remove(0).text_logits);
        assert_close(&a, &b, 0.03);
        return;
    }
    let tolerance = if is_exact(exec) { 0.0 } else { 1e-4 };
    for (a, b) in steps(a, 12).iter().zip(steps(b, 12)) {
        assert_eq!((a.text_token, &a.audio_tokens), (b.text_token, &b.audio_tokens));
        assert_close(&a.text_logits, &b.text_logits, tolerance);
        let (a, b) = (a.trace.as_ref().unwrap(), b.trace.as_ref().unwrap());
        assert_close(&a.depth_logits[1][0], &b.depth_logits[1][0], tolerance);
    }
}

fn blocks_equal_their_decoded_values<E: Executor>(exec: &E) {
    let config = wide_config();
    let folder = tempfile::tempdir().unwrap();
    let load = |name: &str, dtype| {
        let options = LmOptions { dtype, ..LmOptions::default() };
        LanguageModel::load(exec, &folder.path().join(name), &config, &options).unwrap()
    };
    for (format, dtype) in [
        (BlockFormat::Q8_0, WeightType::Q8),
        (BlockFormat::Q4_0, WeightType::Q4),
        (BlockFormat::Q4_1, WeightType::Q4),
        (BlockFormat::Q4K, WeightType::Q4),
    ] {
        let tensors = wide_weights(&config);
        let schedule = config.depth.as_ref().unwrap().schedule.clone();
        let mut file = Gguf::of(&tensors.candle(&schedule), |_, tensor| match format {
            BlockFormat::Q4K => Kind::of(BlockFormat::Q4_1, tensor),
            format => Kind::of(format, tensor),
        });
        if format == BlockFormat::Q4K {
            as_q4_k(&mut file);
        }
        let path = folder.path().join("model.gguf");
        file.write(&path);
        let stored = TensorFile::open(&path).unwrap();
        let encoding =
            stored.info("transformer.layers.0.gating.linear_in.weight").unwrap().encoding;
        assert_eq!(encoding, Encoding::Blocks(format));
        Tensors::read(&path).write(&folder.path().join("decoded.safetensors"), Dtype::F32);
        let blocks = load("model.gguf", None);
        assert_eq!(blocks.dtype(), dtype);
        let decoded = load("decoded.safetensors", None);
        assert_eq!(decoded.dtype(), WeightType::F32);
        assert_same_steps(exec, &blocks, &decoded);
        assert_same_steps(exec, &load("model.gguf", Some(WeightType::F32)), &decoded);
    }
}

/// Turns matrices whose rows are whole blocks of 256 into Q4_K, scales and nibbles at random.
fn as_q4_k(file: &mut Gguf) {
    let mut dice = Dice(8);
    for tensor in &mut file.tensors {
        let &[rows, cols] = tensor.shape.as_slice() else { continue };
        if cols % 256 != 0 {
            continue;
        }
        tensor.kind = 12;
        tensor.bytes = (0..rows * cols / 256 * 144).map(|_| dice.next() as u8).collect();
        for block in tensor.bytes.chunks_exact_mut(144) {
            for at in [0, 2] {
                let scale = half::f16::from_f32(1e-4 + 1e-5 * dice.unit());
                block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
            }
        }
    }
}

fn every_float_checkpoint_can_be_stored_in_few_bits<E: Executor>(exec: &E) {
    let config = wide_config();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let spread = |dtype, wanted| {
        wide_weights(&config).write(&path, dtype);
        let load = |dtype| {
            let options = LmOptions { dtype, ..LmOptions::default() };
            LanguageModel::load(exec, &path, &config, &options).unwrap()
        };
        let (few, full) = (load(Some(wanted)), load(Some(WeightType::F32)));
        assert_eq!(few.dtype(), wanted);
        let (a, b) = (&steps(&few, 1)[0], &steps(&full, 1)[0]);
        let error: f32 =
            a.text_logits.iter().zip(&b.text_logits).map(|(a, b)| (a - b).powi(2)).sum();
        let size: f32 = b.text_logits.iter().map(|b| b * b).sum();
        assert!(error > 0.0, "{wanted:?} is no other model");
        (error / size).sqrt()
    };
    for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
        let (eight, four) = (spread(dtype, WeightType::Q8), spread(dtype, WeightType::Q4));
        assert!(eight < 0.02 && four < 0.3 && eight < four, "{dtype:?}: {eight} and {four}");
    }
}

/// Rows of 8-bit integers with a scale each, as the PyTorch package stores them, and their values.
fn in_eight_bits(tensors: &Tensors) -> (Raw, Tensors) {
    let (mut stored, mut values) = (Raw::default(), Tensors::default());
    for (name, tensor) in &tensors.0 {
        let linear = tensor.shape.len() == 2 && !name.contains("emb");
        if !linear {
            stored.floats(name, tensor);
            values.insert(name, tensor.clone());
            continue;
        }
        let cols = tensor.shape[1];
        let rows = tensor.data.chunks_exact(cols);
        let scales: Vec<f32> =
            rows.clone().map(|row| row.iter().fold(0.0, |m: f32, v| m.max(v.abs()))).collect();
        let integers: Vec<i8> = rows
            .zip(&scales)
            .flat_map(|(row, scale)| row.iter().map(move |v| (v * 127.0 / scale).round() as i8))
            .collect();
        let decoded = integers
            .chunks_exact(cols)
            .zip(&scales)
            .flat_map(|(row, scale)| row.iter().map(move |&q| f32::from(q) * scale / 127.0));
        values.insert(name, Tensor::new(&tensor.shape, decoded.collect()));
        let bytes = integers.iter().map(|q| q.cast_unsigned()).collect();
        stored.push(name, Dtype::I8, tensor.shape.clone(), bytes);
        let scales = Tensor::new(&[scales.len()], scales);
        stored.floats(&format!("{name}_scb"), &scales);
    }
    (stored, values)
}

/// Four bits in groups of 32 with scale and offset, as MLX stores them, and their values.
fn in_four_bits(tensors: &Tensors) -> (Raw, Tensors) {
    let (mut stored, mut values) = (Raw::default(), Tensors::default());
    for (name, tensor) in &tensors.0 {
        let Some(base) = name.strip_suffix(".weight").filter(|_| tensor.shape.len() == 2) else {
            stored.floats(name, tensor);
            values.insert(name, tensor.clone());
            continue;
        };
        let (mut nibbles, mut decoded) = (Vec::new(), Vec::new());
        let (mut scales, mut offsets) = (Vec::new(), Vec::new());
        for group in tensor.data.chunks_exact(32) {
            let low = group.iter().copied().fold(f32::INFINITY, f32::min);
            let high = group.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let scale = (high - low) / 15.0;
            scales.push(scale);
            offsets.push(low);
            for value in group {
                let q = ((value - low) / scale).round() as u8;
                nibbles.push(q);
                decoded.push(f32::from(q) * scale + low);
            }
        }
        values.insert(name, Tensor::new(&tensor.shape, decoded));
        let bytes = nibbles.chunks_exact(2).map(|pair| pair[0] | pair[1] << 4).collect();
        let [rows, cols] = [tensor.shape[0], tensor.shape[1]];
        stored.push(name, Dtype::U32, vec![rows, cols / 8], bytes);
        for (part, data) in [("scales", scales), ("biases", offsets)] {
            stored.floats(&format!("{base}.{part}"), &Tensor::new(&[rows, cols / 32], data));
        }
    }
    (stored, values)
}

fn integers_with_scales_equal_their_values<E: Executor>(exec: &E) {
    let config = wide_config();
    let schedule = config.depth.as_ref().unwrap().schedule.clone();
    let pytorch = wide_weights(&config).packed(2);
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for ((stored, values), dtype) in [
        (in_eight_bits(&pytorch), WeightType::Q8),
        (in_four_bits(&pytorch.mlx(&schedule)), WeightType::Q4),
    ] {
        stored.write(&path("stored.safetensors"));
        values.write(&path("values.safetensors"), Dtype::F32);
        let load = |name: &str, dtype| {
            let options = LmOptions { dtype, ..LmOptions::default() };
            LanguageModel::load(exec, &path(name), &config, &options).unwrap()
        };
        let floats = load("values.safetensors", None);
        assert_same_steps(exec, &load("stored.safetensors", Some(WeightType::F32)), &floats);
        let few = load("stored.safetensors", None);
        assert_eq!(few.dtype(), dtype);
        let (a, b) = (&steps(&few, 1)[0].text_logits, &steps(&floats, 1)[0].text_logits);
        assert_close(a, b, 0.03);
    }
}

fn scales_that_do_not_fit_are_refused<E: Executor>(exec: &E) {
    let config = wide_config();
    let schedule = config.depth.as_ref().unwrap().schedule.clone();
    let pytorch = wide_weights(&config).packed(2);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let refused = |stored: &Raw, expected: &str| {
        stored.write(&path);
        match LanguageModel::load(exec, &path, &config, &LmOptions::default()).map(drop) {
            Err(Error::Tensors { problems, .. }) => {
                let all = problems.to_string();
                assert!(all.contains(expected), "{expected}: {all}");
            }
            other => panic!("{expected}: {other:?}"),
        }
    };
    let (mut eight, _) = in_eight_bits(&pytorch);
    eight.get("text_linear.weight_scb").1[0] -= 1;
    eight.get("text_linear.weight_scb").2.truncate(49 * 4);
    refused(&eight, "text_linear.weight_scb: does not fit");
    let (mut eight, _) = in_eight_bits(&pytorch);
    eight.0.remove("text_linear.weight_scb");
    refused(&eight, "text_linear.weight: expected F32, F16 or BF16, got I8");
    let (mut four, _) = in_four_bits(&pytorch.mlx(&schedule));
    let name = "transformer.layers.1.gating.linear_out";
    four.get(&format!("{name}.biases")).1 = vec![16, 256];
    refused(&four, "transformer.layers.1.gating.linear_out.weight: does not fit");
    let (mut four, _) = in_four_bits(&pytorch.mlx(&schedule));
    four.get("text_linear.scales").1 = vec![50 * 8];
    four.get("text_linear.biases").1 = vec![50 * 8];
    refused(&four, "text_linear.scales: no known way");
}

#[test]
fn integers_equal_those_of_mlx() {
    let mut json = config();
    json["dim"] = json!(64);
    let config = LmConfig::from_json("config.json", &json.to_string()).unwrap();
    for bits in [4, 8] {
        let file = TensorFile::open(&golden(&format!("mlx_{bits}_bits.safetensors"))).unwrap();
        let catalog = Catalog::language_model(&file, &config).unwrap();
        for (base, canonical) in [
            ("text_linear", "text_linear.weight"),
            ("audio_embs.0", "emb.0.weight"),
            ("depformer.slices.0.linear_in", "depformer_in.0.weight"),
            (
                "transformer.layers.0.self_attn.in_proj",
                "transformer.layers.0.self_attn.in_projs.0.weight",
            ),
        ] {
            let expected = file.read_f32(&format!("{base}.values")).unwrap();
            assert_close(&catalog.read(canonical).unwrap(), &expected, 1e-6);
            assert_eq!(catalog.shape(canonical).unwrap()[1], 64);
        }
    }
}

#[test]
fn encodings_equal_those_of_ggml() {
    let file = TensorFile::open(&golden("gguf_blocks.gguf")).unwrap();
    let mut compared = 0;
    for (name, info) in file.tensors() {
        if name.ends_with(".values") {
            continue;
        }
        assert_eq!(info.encoding.to_string().to_lowercase(), *name);
        let expected = file.read_f32(&format!("{name}.values")).unwrap();
        assert_close(&file.read_f32(name).unwrap(), &expected, 1e-6);
        assert_eq!(info.shape[0], 3);
        compared += 1;
    }
    assert_eq!(compared, 6);
    assert_eq!(file.metadata()["general.license"], "cc-by-4.0");
    assert_eq!(file.metadata()["test.list"], "a list of 2");
}
