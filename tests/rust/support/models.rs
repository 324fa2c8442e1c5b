//! A model folder so small that thousands of steps take no time, with seeded random weights.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use moshi_core::checkpoint::{Expected, Repo, layout};
use moshi_core::config::{LmConfig, MimiConfig};
use moshi_core::exec::Executor;
use moshi_core::lm::Sampling;
use moshi_core::{LoadOptions, Model, NoObserver, Session, SessionOptions};
use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::tensors::{Tensor, Tensors};
use super::{Dice, golden};

/// Samples of a frame of [`TinyRepo`].
pub(crate) const FRAME: usize = 4;
/// Attention window of the language model of [`TinyRepo`], in frames.
pub(crate) const CONTEXT: usize = 6;

/// A temporary model folder: 4 samples per frame, 2 codebooks each way, context of 6.
pub(crate) struct TinyRepo {
    folder: TempDir,
}

impl TinyRepo {
    pub(crate) fn new() -> Self {
        Self::seeded(1)
    }

    /// With weights of another seed.
    pub(crate) fn seeded(seed: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (config, mimi_config) = (config(), mimi_config());
        let lm = LmConfig::from_json("config.json", &config.to_string()).unwrap();
        let mimi = MimiConfig::from_json("mimi.json", &mimi_config.to_string()).unwrap();
        let widths = layout::GatedWidths { temporal: 44, depth: 16 };
        let mut dice = Dice(seed);
        let write = |name: &str, expected: Vec<Expected>, dice: &mut Dice| {
            weights(&expected, dice).write(&folder.path().join(name), Dtype::F32);
        };
        write("model.safetensors", layout::language_model(&lm, widths), &mut dice);
        write("mimi.safetensors", layout::mimi(&mimi), &mut dice);
        for (name, value) in [("config.json", config), ("mimi_config.json", mimi_config)] {
            std::fs::write(folder.path().join(name), value.to_string()).unwrap();
        }
        let tokenizer = golden("dialogue_repo/tokenizer.model");
        std::fs::copy(tokenizer, folder.path().join("tokenizer.model")).unwrap();
        Self { folder }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn open(&self) -> Repo {
        Repo::open(self.path()).unwrap()
    }

    pub(crate) fn load<E: Executor>(&self, exec: &E) -> Arc<Model> {
        Model::from_repo(exec, &self.open(), &LoadOptions::default(), &NoObserver).unwrap()
    }

    /// Replaces a field of `config.json`.
    pub(crate) fn set(&self, field: &str, value: Value) {
        let path = self.file("config.json");
        let mut config: Value =
            serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        config[field] = value;
        std::fs::write(path, config.to_string()).unwrap();
    }
}

/// A conversation with the model's own sampling settings.
pub(crate) fn sampled(model: &Arc<Model>, seed: u64) -> Session {
    Session::new(model, &SessionOptions { seed: Some(seed), ..SessionOptions::default() }).unwrap()
}

/// A conversation that always takes the most probable token.
pub(crate) fn greedy(model: &Arc<Model>) -> Session {
    let options = SessionOptions {
        seed: Some(0),
        sampling: Some(Sampling::greedy()),
        ..SessionOptions::default()
    };
    Session::new(model, &options).unwrap()
}

/// Language-model config of [`TinyRepo`].
pub(crate) fn config() -> Value {
    json!({
        "card": 16, "text_card": 50, "existing_text_padding_id": 3,
        "dim": 16, "num_heads": 2, "num_layers": 2, "hidden_scale": 4.125, "causal": true,
        "layer_scale": null, "context": CONTEXT, "max_period": 10000, "gating": "silu",
        "norm": "rms_norm_f32", "positional_embedding": "rope",
        "depformer_dim": 8, "depformer_dim_feedforward": 24, "depformer_num_heads": 2,
        "depformer_num_layers": 1, "depformer_multi_linear": true, "depformer_pos_emb": "none",
        "depformer_weights_per_step": true,
        "n_q": 4, "dep_q": 2, "delays": [0, 0, 1, 0, 1], "model_type": "moshi",
        "moshi_name": "model.safetensors", "mimi_name": "mimi.safetensors",
        "mimi_config_name": "mimi_config.json", "tokenizer_name": "tokenizer.model",
        "lm_gen_config": { "temp": 0.8, "temp_text": 0.7, "top_k": 8, "top_k_text": 25 }
    })
}

/// Codec config of [`TinyRepo`].
pub(crate) fn mimi_config() -> Value {
    json!({
        "sample_rate": 50, "frame_rate": 12.5,
        "seanet": { "dimension": 8, "n_filters": 4, "ratios": [2] },
        "quantizer": {
            "dimension": 4, "n_q": 4, "bins": 16, "input_dimension": 8, "output_dimension": 8
        },
        "transformer": {
            "d_model": 8, "num_heads": 2, "num_layers": 1, "context": 6, "dim_feedforward": 16,
            "input_dimension": 8, "output_dimensions": [8]
        }
    })
}

/// Random values for all tensors that a config asks for, at scales that keep signals alive.
pub(crate) fn weights(expected: &[Expected], dice: &mut Dice) -> Tensors {
    let mut all = Tensors::default();
    for Expected { name, shapes, .. } in expected {
        let shape = &shapes[0];
        let fan_in = shape[1..].iter().product::<usize>().max(1) as f32;
        let (offset, scale) = match name.as_str() {
            n if n.ends_with("alpha") => (1.0, 0.1),
            n if n.contains("norm") && n.ends_with("weight") => (1.0, 0.1),
            n if n.contains("layer_scale") => (0.2, 0.1),
            n if n.ends_with("cluster_usage") => (1.0, 0.5),
            n if n.ends_with("_initialized") => (1.0, 0.0),
            n if n.ends_with("bias") || n.ends_with("learnt_padding") => (0.0, 0.1),
            n if n.ends_with("embedding_sum") || n.contains("emb.") => (0.0, 1.0),
            _ => (0.0, (3.0 / fan_in).sqrt()),
        };
        let count = shape.iter().product();
        let data = dice.units(count).into_iter().map(|r| offset + scale * r).collect();
        all.insert(name, Tensor::new(shape, data));
    }
    all
}
