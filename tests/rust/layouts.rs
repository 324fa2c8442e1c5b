//! Other spellings of the same codec: Hugging Face's layout, weight-norm pairs, older names.

use std::collections::BTreeMap;

use moshi_core::checkpoint::CodecFiles;
use moshi_core::config::MimiConfig;
use moshi_core::exec::{Executor, Scalar};
use moshi_core::mimi::{Mimi, MimiOptions};
use safetensors::Dtype;
use serde_json::json;

use crate::support::tensors::{Tensor, Tensors};
use crate::support::{Dice, assert_bits, assert_close, audio, golden};

const HEADS: usize = 4;
const FRAMES: usize = 8;
const SAMPLES: usize = 1920;

executors!(
    hugging_face_layout_is_the_same_codec,
    both_layouts_in_one_file_are_refused,
    weight_norm_pairs_fold,
    older_names_are_the_same_codec,
    half_precision_files_load,
);

/// The codec under the names of the public file.
fn original() -> Tensors {
    let saved = Tensors::read(&golden("mimi/mimi.safetensors"));
    let packed = [("in_projs.0.weight", "in_proj_weight"), ("out_projs.0.", "out_proj.")];
    saved.renamed(|name| {
        packed.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
    })
}

fn load<E: Executor>(exec: &E, weights: &Tensors, dtype: Dtype) -> Mimi<E> {
    try_load(exec, weights, dtype).unwrap()
}

fn try_load<E: Executor>(exec: &E, weights: &Tensors, dtype: Dtype) -> moshi_core::Result<Mimi<E>> {
    let text = std::fs::read_to_string(golden("mimi/mimi_config.json")).unwrap();
    let config = MimiConfig::from_json("mimi_config.json", &text).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mimi.safetensors");
    weights.write(&path, dtype);
    Mimi::load(exec, &path, &config, &MimiOptions::default())
}

fn round_trip<E: Executor>(mimi: &Mimi<E>) -> (Vec<u32>, Vec<f32>) {
    let codes = mimi.encode(&audio(1, FRAMES * SAMPLES)).unwrap();
    let decoded = mimi.decode(&codes, FRAMES).unwrap();
    (codes, decoded)
}

fn assert_same_codec<E: Executor>(exec: &E, weights: &Tensors) {
    let (codes, decoded) = round_trip(&load(exec, weights, Dtype::F32));
    let (expected_codes, expected) = round_trip(&load(exec, &original(), Dtype::F32));
    assert_eq!(codes, expected_codes);
    assert_bits(&decoded, &expected);
}

/// Kyutai's names to Hugging Face's.
fn hugging_face(kyutai: &Tensors) -> Tensors {
    let mut out = Tensors::default();
    for (name, tensor) in &kyutai.0 {
        if let Some(prefix) = name.strip_suffix(".in_proj_weight") {
            let rows = tensor.shape[0] / 3;
            let prefix = prefix.replace("_transformer.transformer.", "_transformer.");
            for (i, part) in ["q_proj", "k_proj", "v_proj"].into_iter().enumerate() {
                let rows = tensor.rows(i * rows, (i + 1) * rows);
                let rows = if i < 2 { even_rows_first(&rows) } else { rows };
                out.insert(&format!("{prefix}.{part}.weight"), rows);
            }
            continue;
        }
        let mut name = name.clone();
        for (from, to) in [
            ("encoder.model", "encoder.layers"),
            ("decoder.model", "decoder.layers"),
            (".conv.conv.conv.", ".conv."),
            (".convtr.convtr.convtr.", ".conv."),
            (".conv.conv.", ".conv."),
            (".convtr.convtr.", ".conv."),
            ("rvq_first.vq.", "rvq_first."),
            ("rvq_rest.vq.", "rvq_rest."),
            ("rvq_first", "semantic_residual_vector_quantizer"),
            ("rvq_rest", "acoustic_residual_vector_quantizer"),
            ("_codebook", "codebook"),
            ("_initialized", "initialized"),
            ("embedding_sum", "embed_sum"),
            ("_transformer.transformer.", "_transformer."),
            ("linear1", "mlp.fc1"),
            ("linear2", "mlp.fc2"),
            ("out_proj", "o_proj"),
            ("norm1", "input_layernorm"),
            ("norm2", "post_attention_layernorm"),
            ("layer_scale_1", "self_attn_layer_scale"),
            ("layer_scale_2", "mlp_layer_scale"),
        ] {
            name = name.replace(from, to);
        }
        out.insert(&name, tensor.clone());
    }
    out
}

/// Within each head, the even rows and then the odd ones.
fn even_rows_first(tensor: &Tensor) -> Tensor {
    let (rows, width) = (tensor.shape[0], tensor.shape[1]);
    let head = rows / HEADS;
    let order = (0..HEADS).flat_map(|h| {
        let row = move |i: usize| h * head + i;
        (0..head).step_by(2).map(row).chain((1..head).step_by(2).map(row))
    });
    let data = order.flat_map(|row| tensor.data[row * width..(row + 1) * width].to_vec());
    Tensor::new(&tensor.shape, data.collect())
}

fn hugging_face_layout_is_the_same_codec<E: Executor>(exec: &E) {
    let kyutai = original();
    let converted = hugging_face(&kyutai);
    let layers = 2 * 2;
    assert_eq!(converted.0.len(), kyutai.0.len() + 2 * layers);
    assert!(converted.0.contains_key("encoder.layers.0.conv.weight"));
    assert_same_codec(exec, &converted);
}

#[test]
fn a_folder_of_hugging_face_with_a_codec_alone_is_described_and_loads() {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({
        "model_type": "mimi", "sampling_rate": 24000, "frame_rate": 12.5,
        "hidden_size": 32, "num_filters": 8, "upsampling_ratios": [8, 6, 5, 4],
        "num_quantizers": 12, "codebook_size": 64, "codebook_dim": 16, "num_hidden_layers": 2,
        "num_attention_heads": HEADS, "intermediate_size": 64, "sliding_window": 10
    });
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    hugging_face(&original()).write(&folder.path().join("model.safetensors"), Dtype::F32);

    let args = ["moshi-rs".into(), "info".into(), folder.path().as_os_str().to_owned()];
    assert_eq!(moshi_cli::main_from(args.to_vec(), None), 0);
    let CodecFiles { weights, config } = CodecFiles::open(folder.path()).unwrap();
    let mimi = Mimi::load(&Scalar, &weights, &config, &MimiOptions::default()).unwrap();
    assert_eq!(round_trip(&mimi), round_trip(&load(&Scalar, &original(), Dtype::F32)));
}

#[test]
fn a_broken_config_beside_a_codec_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let weights = folder.path().join("model.safetensors");
    original().write(&weights, Dtype::F32);
    for (contents, expected) in [(&b"{\"model_type\": "[..], "EOF"), (&[0xff; 9], "UTF-8")] {
        std::fs::write(folder.path().join("config.json"), contents).unwrap();
        for path in [&weights, folder.path()] {
            let Err(error) = CodecFiles::open(path) else { panic!("a broken config") };
            let text = error.to_string();
            assert!(matches!(error, moshi_core::Error::ConfigFile { .. }), "{text}");
            assert!(text.contains("config.json") && text.contains(expected), "{text}");
        }
    }
}

fn both_layouts_in_one_file_are_refused<E: Executor>(exec: &E) {
    let kyutai = original();
    let mut both = hugging_face(&kyutai);
    let name = "encoder.model.0.conv.conv.bias";
    both.insert(name, kyutai.get(name).clone());
    match try_load(exec, &both, Dtype::F32) {
        Err(moshi_core::Error::Tensors { problems, .. }) => {
            assert!(problems.unexpected.len() == 1 && problems.unexpected[0].contains(name));
        }
        other => panic!("{:?}", other.err()),
    }
}

fn weight_norm_pairs_fold<E: Executor>(exec: &E) {
    let mut dice = Dice(2);
    let mut pairs = Tensors::default();
    for (name, tensor) in original().0 {
        let conv = name.ends_with("conv.conv.weight") || name.ends_with("convtr.convtr.weight");
        if !conv {
            pairs.insert(&name, tensor);
            continue;
        }
        let width = tensor.data.len() / tensor.shape[0];
        let (mut gains, mut direction) = (Vec::new(), Vec::new());
        for row in tensor.data.chunks_exact(width) {
            gains.push(row.iter().map(|v| v * v).sum::<f32>().sqrt());
            let stretch = 1.5 + dice.unit();
            direction.extend(row.iter().map(|v| v * stretch));
        }
        let gains = Tensor::new(&[tensor.shape[0], 1, 1], gains);
        pairs.insert(&format!("{name}_g"), gains);
        pairs.insert(&format!("{name}_v"), Tensor::new(&tensor.shape, direction));
    }
    assert!(pairs.0.len() > original().0.len() + 20);
    let (codes, decoded) = round_trip(&load(exec, &pairs, Dtype::F32));
    let (expected_codes, expected) = round_trip(&load(exec, &original(), Dtype::F32));
    assert_eq!(codes, expected_codes);
    assert_close(&decoded, &expected, 1e-5);
}

fn older_names_are_the_same_codec<E: Executor>(exec: &E) {
    let spellings: [&[(&str, &str)]; 3] = [
        &[(".in_proj_weight", ".in_proj.weight"), ("._initialized", ".inited")],
        &[
            (".in_proj_weight", ".in_projs.0.weight"),
            (".out_proj.weight", ".out_projs.0.weight"),
            ("cluster_usage", "cluster_size"),
        ],
        &[("embedding_sum", "embed_avg")],
    ];
    for spelling in spellings {
        let mut renamed = original().renamed(|name| {
            spelling.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
        });
        assert!(!renamed.0.keys().eq(original().0.keys()), "{spelling:?}");
        renamed.insert("wavlm_proj.weight", Tensor::new(&[2], vec![0.0; 2]));
        assert_same_codec(exec, &renamed);
    }
    let sums = original().renamed(|name| name.replace("embedding_sum", "embed_sum"));
    assert_same_codec(exec, &sums);
}

fn half_precision_files_load<E: Executor>(exec: &E) {
    for dtype in [Dtype::BF16, Dtype::F16] {
        let (codes, decoded) = round_trip(&load(exec, &original(), dtype));
        let (expected, _) = round_trip(&load(exec, &original(), Dtype::F32));
        assert!(decoded.iter().all(|v| v.is_finite()));
        let mut equal = BTreeMap::new();
        for (i, (a, b)) in codes.iter().zip(&expected).enumerate() {
            *equal.entry(i % 8).or_insert(0) += usize::from(a == b);
        }
        assert!(equal[&0] >= FRAMES / 2, "most codes of the first codebook survive {dtype:?}");
    }
}
