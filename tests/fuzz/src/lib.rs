//! What the targets share: tiny models, files in memory, and everything that can be done with a
//! file once it opened.

pub mod build;
pub mod seeds;
pub mod wire;

use std::io::Write;
use std::path::Path;
use std::sync::LazyLock;

use moshi_core::Error;
use moshi_core::checkpoint::{Catalog, Lora, TensorFile, layout};
use moshi_core::config::{LmConfig, MimiConfig};
use moshi_core::exec::Scalar;
use moshi_core::lm::{
    LanguageModel, LmMemory, LmOptions, LmSlot, LmStreamOptions, NoHooks, Sampling, WeightType,
};
use moshi_core::mimi::{Mimi, MimiOptions};
use tempfile::NamedTempFile;

/// A language model of about a thousand weights, with two weight sets in the depth transformer.
pub static LM: LazyLock<LmConfig> = LazyLock::new(|| lm_config(LM_CONFIG));

/// The same with rows as wide as a block or a group of quantised values.
pub static WIDE_LM: LazyLock<LmConfig> =
    LazyLock::new(|| lm_config(&LM_CONFIG.replace("\"dim\": 4", "\"dim\": 32")));

/// A codec of about a thousand weights.
pub static CODEC: LazyLock<MimiConfig> =
    LazyLock::new(|| MimiConfig::from_json("mimi.json", MIMI_CONFIG).expect("it is valid"));

fn lm_config(text: &str) -> LmConfig {
    LmConfig::from_json("config.json", text).expect("it is valid")
}

pub const LM_CONFIG: &str = r#"{"card": 3, "text_card": 4, "existing_text_padding_id": 3,
    "dim": 4, "num_heads": 1, "num_layers": 1, "hidden_scale": 1, "causal": true, "context": 2,
    "gating": "silu", "norm": "rms_norm_f32", "positional_embedding": "rope", "depformer_dim": 2,
    "depformer_dim_feedforward": 3, "depformer_num_heads": 1, "depformer_num_layers": 1,
    "depformer_multi_linear": true, "depformer_pos_emb": "none", "n_q": 3, "dep_q": 2,
    "depformer_weights_per_step": true, "delays": [0, 0, 1, 0], "lora_scaling": 2.0}"#;

pub const MIMI_CONFIG: &str = r#"{"sample_rate": 50, "frame_rate": 12.5,
    "seanet": {"dimension": 2, "n_filters": 2, "ratios": [2], "kernel_size": 2,
        "last_kernel_size": 1, "residual_kernel_size": 1},
    "quantizer": {"dimension": 2, "n_q": 2, "bins": 2},
    "transformer": {"num_heads": 1, "num_layers": 1, "context": 2, "dim_feedforward": 2}}"#;

/// Writes bytes to a file where that costs no disk.
pub fn in_memory(bytes: &[u8]) -> NamedTempFile {
    let folder = Path::new("/dev/shm");
    let file = if folder.is_dir() { NamedTempFile::new_in(folder) } else { NamedTempFile::new() };
    let mut file = file.expect("a temporary file");
    file.write_all(bytes).expect("room for the input");
    file
}

/// What a hostile file may end in; the message names the file. Always false: nothing was loaded.
fn refused(error: &Error, path: &Path) -> bool {
    let named = match error {
        Error::Checkpoint { path, .. } | Error::Tensors { path, .. } => path,
        other => panic!("not an error of a checkpoint: {other}"),
    };
    assert_eq!(named, path);
    assert!(error.to_string().len() < 100_000, "the message is endless");
    false
}

/// Opens a file of weights and does everything with it that loading does. True if it was the file
/// of one of the tiny models.
pub fn weights(bytes: &[u8]) -> bool {
    let file = in_memory(bytes);
    let file = match TensorFile::open(file.path()) {
        Ok(file) => file,
        Err(error) => return refused(&error, file.path()),
    };
    read_all(&file);
    [language_model(&file, &LM, None), language_model(&file, &WIDE_LM, None), codec(&file)]
        .contains(&true)
}

/// Opens an adapter for the tiny language model. True if it was one.
pub fn adapter(bytes: &[u8]) -> bool {
    // The map outlives the file's name.
    static MODEL: LazyLock<TensorFile> = LazyLock::new(|| {
        let file = in_memory(&build::language_model(&LM).safetensors());
        TensorFile::open(file.path()).expect("the tiny model opens")
    });
    let file = in_memory(bytes);
    match Lora::open(file.path(), &LM) {
        Ok(lora) => language_model(&MODEL, &LM, Some(&lora)),
        Err(error) => refused(&error, file.path()),
    }
}

fn read_all(file: &TensorFile) {
    for (name, info) in file.tensors() {
        let rows = info.shape.first().copied().unwrap_or(1);
        let values: usize = info.shape.iter().product();
        let (encoding, _) = file.row_bytes(name, 0..rows).expect("it has this tensor");
        let floats = file.read_f32(name);
        assert_eq!(floats.is_ok(), encoding.is_float());
        if let Ok(floats) = floats {
            assert_eq!(floats.len(), values, "{name}");
        }
        if let Ok(integers) = file.read_i64(name) {
            assert_eq!(integers.len(), values, "{name}");
        }
    }
}

/// Loads a file that fits the tiny language model, in every type, and steps it.
fn language_model(file: &TensorFile, config: &LmConfig, lora: Option<&Lora>) -> bool {
    let catalog = match Catalog::language_model(file, config) {
        Ok(catalog) => catalog,
        Err(error) => return refused(&error, file.path()),
    };
    let catalog = match lora {
        Some(lora) => catalog.with_lora(lora),
        None => catalog,
    };
    let expected = layout::language_model(config, layout::gated_widths_of(&catalog, config));
    if let Err(error) = catalog.check(&expected) {
        return refused(&error, file.path());
    }
    LmMemory::of(&Scalar, &catalog, config, None, None).expect("it fits");
    for dtype in [None, Some(WeightType::Bf16), Some(WeightType::Q4)] {
        let options = LmOptions { dtype, ..LmOptions::default() };
        let model = match LanguageModel::from_catalog(&Scalar, &catalog, config, &options) {
            Ok(model) => model,
            // Values that are not finite are in the model's file or in the adapter's.
            Err(Error::Checkpoint { .. }) => return false,
            Err(other) => panic!("not an error of a checkpoint: {other}"),
        };
        let mut state = model.new_state(&LmStreamOptions::default()).expect("a stream");
        let slot = LmSlot {
            state: &mut state,
            user_tokens: &[1],
            sampling: &Sampling::greedy(),
            seed: 0,
            hooks: &mut NoHooks,
            trace: false,
        };
        model.step(&mut [slot]).expect("a step");
    }
    true
}

/// Loads a file that fits the tiny codec, and runs a frame through it.
fn codec(file: &TensorFile) -> bool {
    let config = &*CODEC;
    let catalog = match Catalog::mimi(file, config.heads.query) {
        Ok(catalog) => catalog,
        Err(error) => return refused(&error, file.path()),
    };
    if let Err(error) = catalog.check(&layout::mimi(config)) {
        return refused(&error, file.path());
    }
    let options = MimiOptions { num_codebooks: 2, ..MimiOptions::default() };
    let mimi = match Mimi::from_catalog(&Scalar, &catalog, config, &options) {
        Ok(mimi) => mimi,
        Err(error) => return refused(&error, file.path()),
    };
    // Weights may be huge, in which case sums overflow; what must hold is that codes are codes.
    if let Ok(codes) = mimi.encode(&vec![0.1; config.frame_samples]) {
        assert!(codes.iter().all(|&code| (code as usize) < config.codebook_size));
        let _ = mimi.decode(&codes, 1);
    }
    true
}
