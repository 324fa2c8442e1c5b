//! Small language models whose weights follow from their tensors' names, so that values computed
//! by the original for the same weights can be listed without shipping a file.

use std::path::Path;

use moshi_core::config::LmConfig;
use moshi_core::exec::Executor;
use moshi_core::lm::{
    Condition, Guidance, LanguageModel, LmOptions, LmOutput, LmSlot, LmState, LmStreamOptions,
    NoHooks, Sampling, StepHooks,
};
use safetensors::Dtype;
use serde_json::{Value, json};

use super::tensors::{Tensor, Tensors};

/// Width of the residual stream of every scenario.
pub(crate) const DIM: usize = 32;
const DEPTH_DIM: usize = 16;
/// Audio codebook size of every scenario.
pub(crate) const CARD: usize = 24;
/// Text vocabulary of every scenario.
pub(crate) const TEXT_CARD: usize = 40;

/// Which model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Id {
    /// Dialogue.
    A,
    /// Text to speech: muxed text, cross-attention, factored embeddings, a weight schedule.
    B,
    /// Grouped keys, split-half rotary pairs, norms before the heads.
    C,
    /// Speech to text, with extra heads.
    D,
    /// Translation, with a summed condition.
    E,
}

/// Every model.
pub(crate) const ALL: [Id; 5] = [Id::A, Id::B, Id::C, Id::D, Id::E];

/// A config with what the shapes of its tensors follow from.
pub(crate) struct Scenario {
    pub(crate) id: Id,
    pub(crate) config: Value,
    /// Rows of the temporal fused projection.
    pub(crate) fused: usize,
    /// Width of the temporal gated feed-forward.
    pub(crate) gate: usize,
    pub(crate) layers: usize,
    /// Distinct weight sets of the depth transformer.
    pub(crate) sets: usize,
    depth_gate: usize,
    depth_layers: usize,
    rank: Option<usize>,
}

impl Scenario {
    pub(crate) fn new(id: Id) -> Self {
        let mut config = json!({
            "card": CARD, "text_card": TEXT_CARD, "causal": true, "layer_scale": null,
            "gating": "silu", "norm": "rms_norm_f32", "max_period": 10000,
            "positional_embedding": "rope", "depformer_multi_linear": true,
            "depformer_weights_per_step": true, "depformer_pos_emb": "none",
            "depformer_dim": DEPTH_DIM, "depformer_num_heads": 2, "depformer_num_layers": 2,
            "dim": DIM, "num_heads": 2, "num_layers": 2, "hidden_scale": 4.125, "n_q": 4,
        });
        let mut set = |more: Value| {
            let more = more.as_object().unwrap().clone();
            config.as_object_mut().unwrap().extend(more);
        };
        let mut scenario = Self {
            id,
            config: Value::Null,
            fused: 3 * DIM,
            gate: 88,
            layers: 2,
            sets: 2,
            depth_gate: 44,
            depth_layers: 2,
            rank: None,
        };
        match id {
            Id::A => set(json!({
                "dep_q": 2, "context": 5, "depformer_dim_feedforward": 66, "delays": [0, 0, 1, 0, 1]
            })),
            Id::B => {
                scenario.sets = 3;
                scenario.depth_gate = 32;
                scenario.rank = Some(8);
                let steps = ["1.0", "1.5", "2.0", "2.5", "3.0", "3.5", "4.0"];
                set(json!({
                    "dep_q": 4, "context": 6, "depformer_dim_feedforward": 48,
                    "depformer_low_rank_embeddings": 8, "demux_second_stream": true,
                    "depformer_weights_per_step_schedule": [0, 1, 2, 2], "cross_attention": true,
                    "delays": [0, 0, 2, 2, 2], "model_type": "tts",
                    "conditioners": {
                        "speaker_wavs": { "type": "tensor", "tensor": { "dim": 6 } },
                        "cfg": lut(7, 4, &steps),
                        "control": lut(1, 32, &["ok"]),
                    },
                    "fuser": {
                        "sum": ["control", "cfg"], "cross": ["speaker_wavs"],
                        "cross_attention_pos_emb": true, "cross_attention_pos_emb_scale": 1.0
                    },
                }));
            }
            Id::C => {
                scenario.sets = 1;
                scenario.fused = DIM + 2 * 16;
                scenario.gate = 128;
                scenario.depth_gate = 64;
                set(json!({
                    "positional_embedding": "rope_concat", "num_heads": 4, "kv_repeat": 2,
                    "depformer_kv_repeat": 1, "hidden_scale": 6, "max_period": 20000, "dep_q": 2,
                    "context": 5, "depformer_dim_feedforward": null,
                    "depformer_norm": "layer_norm", "delays": [0, 0, 2, 0, 2],
                    "depformer_weights_per_step_schedule": [0, 0],
                }));
            }
            Id::D => {
                scenario.sets = 0;
                set(json!({
                    "n_q": 3, "dep_q": 0, "context": 4, "delays": [0, 0, 0, 0],
                    "extra_heads_num_heads": 2, "extra_heads_dim": 6, "model_type": "stt",
                }));
            }
            Id::E => {
                scenario.layers = 1;
                scenario.depth_layers = 1;
                let levels = ["very_bad", "bad", "neutral", "good", "very_good"];
                set(json!({
                    "num_layers": 1, "depformer_num_layers": 1, "dep_q": 2, "context": 8,
                    "depformer_dim_feedforward": 66, "delays": [0, 0, 2, 0, 2],
                    "conditioners": { "description": lut(31, 8, &levels) },
                    "fuser": { "sum": ["description"] },
                }));
            }
        }
        Self { config, ..scenario }
    }

    pub(crate) fn lm_config(&self) -> LmConfig {
        LmConfig::from_json("scenario", &self.config.to_string()).unwrap()
    }

    /// All weights, in the packed spelling of the PyTorch layout.
    pub(crate) fn weights(&self) -> Tensors {
        let mut all = Tensors::default();
        let mut add = |name: String, shape: &[usize]| all.insert(&name, generated(&name, shape));
        let config = self.lm_config();
        for k in 0..config.num_codebooks {
            add(format!("emb.{k}.weight"), &[CARD + 1, DIM]);
        }
        add("text_emb.weight".into(), &[TEXT_CARD + 1, DIM]);
        for layer in 0..self.layers {
            let at = |name: &str| format!("transformer.layers.{layer}.{name}");
            add(at("norm1.alpha"), &[1, 1, DIM]);
            add(at("norm2.alpha"), &[1, 1, DIM]);
            add(at("self_attn.in_proj_weight"), &[self.fused, DIM]);
            add(at("self_attn.out_proj.weight"), &[DIM, DIM]);
            add(at("gating.linear_in.weight"), &[2 * self.gate, DIM]);
            add(at("gating.linear_out.weight"), &[DIM, self.gate]);
            if self.id == Id::B {
                add(at("cross_attention.in_proj_weight"), &[3 * DIM, DIM]);
                add(at("cross_attention.out_proj.weight"), &[DIM, DIM]);
                add(at("norm_cross.weight"), &[DIM]);
                add(at("norm_cross.bias"), &[DIM]);
            }
        }
        add("out_norm.alpha".into(), &[1, 1, DIM]);
        add("text_linear.weight".into(), &[TEXT_CARD, DIM]);
        for head in 0..config.num_extra_heads {
            add(format!("extra_heads.{head}.weight"), &[6, DIM]);
        }
        for set in 0..self.sets {
            add(format!("depformer_in.{set}.weight"), &[DEPTH_DIM, DIM]);
        }
        if self.sets > 0 {
            self.depth_weights(config.num_generated, &mut add);
        }
        let mut conditioner = |name: &str, bins: Option<usize>, width: usize| {
            let at = |part: &str| format!("condition_provider.conditioners.{name}.{part}");
            if let Some(bins) = bins {
                add(at("embed.weight"), &[bins + 1, width]);
            }
            add(at("output_proj.weight"), &[DIM, width]);
            add(at("learnt_padding"), &[1, 1, DIM]);
        };
        match self.id {
            Id::B => {
                conditioner("speaker_wavs", None, 6);
                conditioner("cfg", Some(7), 4);
                conditioner("control", Some(1), 32);
            }
            Id::E => conditioner("description", Some(31), 8),
            _ => {}
        }
        if self.id == Id::B {
            for (name, shape) in [
                ("text_emb.out1.weight", [DIM, DIM]),
                ("text_emb.out2.weight", [DIM, DIM]),
                ("depformer_text_emb.out1.weight", [DEPTH_DIM, 8]),
                ("depformer_text_emb.out2.weight", [DEPTH_DIM, 8]),
            ] {
                add(name.into(), &shape);
            }
        }
        all
    }

    fn depth_weights(&self, codebooks: usize, add: &mut impl FnMut(String, &[usize])) {
        let width = self.rank.unwrap_or(DEPTH_DIM);
        let mut embedding = |name: String, rows: usize| {
            add(format!("{name}.weight"), &[rows, width]);
            if let Some(rank) = self.rank {
                add(format!("{name}.low_rank.weight"), &[DEPTH_DIM, rank]);
            }
        };
        embedding("depformer_text_emb".into(), TEXT_CARD + 1);
        for k in 0..codebooks - 1 {
            embedding(format!("depformer_emb.{k}"), CARD + 1);
        }
        for layer in 0..self.depth_layers {
            let at = |name: &str| format!("depformer.layers.{layer}.{name}");
            add(at("norm1.alpha"), &[1, 1, DEPTH_DIM]);
            add(at("norm2.alpha"), &[1, 1, DEPTH_DIM]);
            add(at("self_attn.in_proj_weight"), &[self.sets * 3 * DEPTH_DIM, DEPTH_DIM]);
            add(at("self_attn.out_proj.weight"), &[self.sets * DEPTH_DIM, DEPTH_DIM]);
            for set in 0..self.sets {
                let gating = |part: &str| at(&format!("gating.{set}.{part}.weight"));
                add(gating("linear_in"), &[2 * self.depth_gate, DEPTH_DIM]);
                add(gating("linear_out"), &[DEPTH_DIM, self.depth_gate]);
            }
        }
        for k in 0..codebooks {
            if self.id == Id::C {
                add(format!("depformer_norms.{k}.weight"), &[DEPTH_DIM]);
                add(format!("depformer_norms.{k}.bias"), &[DEPTH_DIM]);
            }
            add(format!("linears.{k}.weight"), &[CARD, DEPTH_DIM]);
        }
    }

    /// Loads weights by way of a file in one type.
    pub(crate) fn load<E: Executor>(
        &self,
        exec: &E,
        weights: &Tensors,
        dtype: Dtype,
    ) -> LanguageModel<E> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        weights.write(&path, dtype);
        self.load_file(exec, &path)
    }

    pub(crate) fn load_file<E: Executor>(&self, exec: &E, path: &Path) -> LanguageModel<E> {
        LanguageModel::load(exec, path, &self.lm_config(), &LmOptions::default()).unwrap()
    }

    /// Conditions as the listed values were made with.
    pub(crate) fn stream(&self) -> LmStreamOptions {
        let text = |value: &str| Condition::Text(value.into());
        let conditions = match self.id {
            Id::B => vec![("speaker_wavs", voice()), ("cfg", text("2.0")), ("control", text("ok"))],
            Id::E => vec![("description", text("very_good"))],
            _ => Vec::new(),
        };
        let conditions = conditions.into_iter().map(|(name, value)| (name.into(), value)).collect();
        LmStreamOptions { conditions, guidance: None }
    }

    /// As [`Scenario::stream`], with the guidance that the primed scenarios add.
    pub(crate) fn guided(&self) -> LmStreamOptions {
        let guidance = match self.id {
            Id::B => Guidance { no_text: true, ..Guidance::new(1.5) },
            Id::E => Guidance {
                null_conditions: Some(
                    [("description".into(), Condition::Text("very_bad".into()))].into(),
                ),
                ..Guidance::new(3.0)
            },
            other => panic!("scenario {other:?} has no guided form"),
        };
        LmStreamOptions { guidance: Some(guidance), ..self.stream() }
    }

    pub(crate) fn hooks(&self) -> Box<dyn StepHooks + Send> {
        if self.id == Id::B { Box::new(MuxedText { call: 0 }) } else { Box::new(NoHooks) }
    }
}

fn lut(bins: usize, dim: usize, values: &[&str]) -> Value {
    json!({
        "type": "lut",
        "lut": { "n_bins": bins, "dim": dim, "tokenizer": "noop", "possible_values": values }
    })
}

fn voice() -> Condition {
    let values = generated("voice", &[1, 7, 6]).data;
    Condition::Sequence { values, mask: vec![true, true, true, true, true, false, false] }
}

/// Chooses text tokens as the text-to-speech scenario's listed values were made with.
struct MuxedText {
    call: usize,
}

impl StepHooks for MuxedText {
    fn text_token(&mut self, sampled: i64) -> i64 {
        let second = [-1, 0, 5, -1, 7][self.call % 5];
        let main = if self.call.is_multiple_of(3) { 3 } else { sampled };
        self.call += 1;
        (second + 1) * (TEXT_CARD as i64 + 1) + main
    }
}

/// Tokens of the user at a call.
pub(crate) fn user_tokens(call: usize) -> Vec<i64> {
    (0..4).map(|j| ((7 * call + 3 * j + 1) % CARD) as i64).collect()
}

/// One traced step of one stream.
pub(crate) fn step<E: Executor>(
    lm: &LanguageModel<E>,
    state: &mut LmState<E>,
    call: usize,
    (sampling, seed): (&Sampling, u64),
    hooks: &mut (dyn StepHooks + Send),
) -> LmOutput {
    let user_tokens = user_tokens(call);
    let slot = LmSlot { state, user_tokens: &user_tokens, sampling, seed, hooks, trace: true };
    lm.step(&mut [slot]).unwrap().pop().unwrap()
}

/// Greedy steps of a fresh stream.
pub(crate) fn run<E: Executor>(
    scenario: &Scenario,
    lm: &LanguageModel<E>,
    stream: &LmStreamOptions,
    calls: usize,
) -> Vec<LmOutput> {
    let mut state = lm.new_state(stream).unwrap();
    let mut hooks = scenario.hooks();
    let greedy = (&Sampling::greedy(), 0);
    (0..calls).map(|call| step(lm, &mut state, call, greedy, &mut *hooks)).collect()
}

/// FNV-1a over 64 bits.
pub(crate) fn fnv1a(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The tensor of a name: pseudo-random values at a scale that the name decides.
pub(crate) fn generated(name: &str, shape: &[usize]) -> Tensor {
    let hash = fnv1a(name);
    let has = |part: &str| name.contains(part);
    let norm = has(".norm") || name.starts_with("out_norm") || name.starts_with("depformer_norms");
    let table = name.ends_with("embed.weight")
        || (has("emb")
            && name.ends_with(".weight")
            && !has("low_rank")
            && !has("out1")
            && !has("out2"));
    let value = |r: f64| match (norm, table) {
        (true, _) if name.ends_with("bias") => 0.1 * r,
        (true, _) => 1.0 + 0.1 * r,
        _ if name.ends_with("learnt_padding") => 0.1 * r,
        (_, true) => r,
        _ => r * (3.0 / *shape.last().unwrap() as f64).sqrt(),
    };
    let draw = |i: u64| {
        let z = hash.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let z = z ^ (z >> 31);
        2.0 * ((z >> 40) as f64 / f64::from(1u32 << 24)) - 1.0
    };
    let count = shape.iter().product::<usize>() as u64;
    Tensor::new(shape, (1..=count).map(|i| value(draw(i)) as f32).collect())
}
