//! Configs with values that no released model uses, that make no sense, or that would ask for
//! the moon: an error that names field and value. And the oddities that released configs do have.

use moshi_core::checkpoint::Repo;
use moshi_core::config::{LmConfig, MimiConfig};
use moshi_core::exec::Scalar;
use moshi_core::lm::{LanguageModel, LmOptions};
use moshi_core::mimi::{Mimi, MimiOptions};
use moshi_core::{Error, LoadOptions, Model, NoObserver};
use serde_json::{Map, Value, json};

use crate::support::Dice;
use crate::support::models::{TinyRepo, config, mimi_config};

/// A config with one value replaced; fields of nested objects are dotted. `absent` removes it.
fn with(mut base: Value, field: &str, value: Value) -> Value {
    let mut at = &mut base;
    let (path, last) = field.rsplit_once('.').unwrap_or(("", field));
    for part in path.split('.').filter(|part| !part.is_empty()) {
        if at[part].is_null() {
            at[part] = json!({});
        }
        at = &mut at[part];
    }
    if value == "absent" {
        at.as_object_mut().unwrap().remove(last);
    } else {
        at[last] = value;
    }
    base
}

/// The value that the error names is that of the field, or shown in the second form.
#[track_caller]
fn assert_names<T>(result: Result<T, Error>, field: &str, value: &Value) {
    let error = match result.map(drop) {
        Err(error @ Error::Config { .. }) => error,
        other => panic!("{field} = {value}: expected Error::Config, got {other:?}"),
    };
    let text = error.to_string();
    let Error::Config { field: named, value: shown, .. } = error else { unreachable!() };
    assert!(field.starts_with(&named) || named.starts_with(field), "{field} = {value}: {text}");
    assert!(text.contains(&named) && text.contains(&shown), "{text}");
    let plain = |text: &str| text.replace([' ', '"'], "");
    let part_of = |whole: &str, part: &str| plain(whole).contains(&plain(part));
    let named = part_of(&value.to_string(), &shown) || part_of(&shown, &value.to_string());
    let absent = value == "absent" || value.is_null();
    assert!(named || absent, "{field} = {value}: {text}");
}

const HUGE: u64 = 1 << 40;

#[test]
fn unreleased_language_models_are_refused() {
    let mut cases = vec![
        ("causal", json!(false)),
        ("layer_scale", json!(0.01)),
        ("positional_scale", json!(0.5)),
        ("norm_emb", json!(true)),
        ("bias_proj", json!(true)),
        ("depformer_multi_linear", json!(false)),
        ("depformer_multi_linear", json!("absent")),
        ("depformer_weights_per_step", json!(false)),
        ("depformer_weights_per_step", json!("absent")),
        ("depformer_layer_scale", json!(0.1)),
        ("depformer_gating", json!("gelu")),
        ("depformer_norm", json!("rms_norm")),
        ("depformer_norm", json!("layer_norm_f32")),
        ("depformer_pos_emb", json!("absent")),
        ("gating", json!("absent")),
        ("norm", json!("absent")),
        ("positional_embedding", json!("absent")),
        ("model_type", json!("personaplex")),
        ("model_type", json!(7)),
        ("fuser.prepend", json!(["first_speaker"])),
        ("conditioners.who", json!({ "type": "multi_arc_encoder" })),
        ("conditioners.who.lut", json!({ "n_bins": 1, "dim": 4, "tokenizer": "whitespace" })),
    ];
    for gating in [
        "none",
        "sigmoid",
        "tanh",
        "relu",
        "leaky_relu",
        "elu",
        "gelu",
        "mish",
        "softsign",
        "identity",
    ] {
        cases.push(("gating", json!(gating)));
    }
    for norm in ["layer_norm", "layer_norm_f32", "rms_norm"] {
        cases.push(("norm", json!(norm)));
    }
    for kind in ["sin", "sin_rope", "none"] {
        cases.push(("positional_embedding", json!(kind)));
    }
    for kind in ["sin", "rope", "rope_concat"] {
        cases.push(("depformer_pos_emb", json!(kind)));
    }
    for (field, value) in &cases {
        let mut base = config();
        if *field == "conditioners.who.lut" {
            base = with(base, "conditioners.who.type", json!("lut"));
        }
        let text = with(base, field, value.clone()).to_string();
        assert_names(LmConfig::from_json("config.json", &text), field, value);
    }
    assert!(cases.len() > 35);
}

#[test]
fn absurd_language_models_are_refused() {
    let cases = [
        ("dim", json!(0)),
        ("dim", json!(-16)),
        ("dim", json!(1.5)),
        ("dim", json!("16")),
        ("dim", json!(HUGE)),
        ("dim", json!(1e300)),
        ("num_heads", json!(0)),
        ("num_heads", json!(3)),
        ("num_heads", json!(16)),
        ("num_heads", json!(HUGE)),
        ("num_layers", json!(0)),
        ("num_layers", json!("absent")),
        ("num_layers", json!(1 << 24)),
        ("kv_repeat", json!(0)),
        ("kv_repeat", json!(3)),
        ("context", json!(0)),
        ("context", json!("absent")),
        ("context", json!(null)),
        ("context", json!(1 << 24)),
        ("context", json!(u64::MAX)),
        ("max_period", json!(0)),
        ("max_period", json!(1)),
        ("max_period", json!(-100)),
        ("max_period", json!("long")),
        ("hidden_scale", json!(0)),
        ("hidden_scale", json!(-4)),
        ("hidden_scale", json!(1e9)),
        ("card", json!(0)),
        ("card", json!(HUGE)),
        ("text_card", json!(0)),
        ("text_card", json!([1])),
        ("text_card_out", json!(0)),
        ("text_card_out", json!(1000)),
        ("n_q", json!(0)),
        ("dep_q", json!(5)),
        ("dep_q", json!(-1)),
        ("delays", json!([0, 0, 1, 0])),
        ("delays", json!([])),
        ("delays", json!("absent")),
        ("delays", json!([0, 0, -1, 0, 1])),
        ("delays", json!([0, 0, 100_000, 0, 1])),
        ("delays", json!(1)),
        ("depformer_dim", json!(0)),
        ("depformer_num_heads", json!(3)),
        ("depformer_num_layers", json!(0)),
        ("depformer_num_layers", json!(1 << 24)),
        ("depformer_kv_repeat", json!(7)),
        ("depformer_dim_feedforward", json!(0)),
        ("depformer_dim_feedforward", json!([])),
        ("depformer_dim_feedforward", json!([24, 25])),
        ("depformer_weights_per_step_schedule", json!([0])),
        ("depformer_weights_per_step_schedule", json!([0, 2])),
        ("depformer_weights_per_step_schedule", json!([1, 1])),
        ("depformer_weights_per_step_schedule", json!([0, 16_000_000])),
        ("depformer_weights_per_step_schedule", json!("0,1")),
        ("extra_heads_num_heads", json!(1 << 24)),
        ("extra_heads_dim", json!(0)),
        ("existing_text_padding_id", json!(-3)),
        ("lm_gen_config", json!([])),
        ("lm_gen_config.temp", json!("hot")),
        ("lm_gen_config.top_k", json!(-1)),
        ("tts_config", json!(true)),
        ("moshi_name", json!(5)),
        ("mimi_config_name", json!({})),
        ("conditioners", json!([])),
        ("conditioners.who", json!("lut")),
        ("conditioners.who", json!({})),
        ("conditioners.who", json!({ "type": "tensor", "tensor": { "dim": 0 } })),
        ("conditioners.who", json!({ "type": "lut", "lut": { "n_bins": 0, "dim": 4 } })),
        ("fuser", json!({ "sum": ["nobody"] })),
        ("fuser.sum", json!("who")),
    ];
    for (field, value) in &cases {
        let text = with(config(), field, value.clone()).to_string();
        let result = LmConfig::from_json("config.json", &text);
        if field.starts_with("conditioners.who") {
            // Which of the nested fields is missing depends on the kind.
            assert!(matches!(result, Err(Error::Config { .. })), "{field} = {value}: {result:?}");
        } else {
            assert_names(result, field, value);
        }
    }
    let fuser = json!({ "cross": ["voice"] });
    let voice = json!({ "type": "tensor", "tensor": { "dim": 4 } });
    let text = with(with(config(), "conditioners.voice", voice), "fuser", fuser).to_string();
    let result = LmConfig::from_json("config.json", &text);
    assert_names(result, "cross_attention", &json!(false));
}

#[test]
fn unreleased_and_absurd_codecs_are_refused() {
    let cases = [
        ("channels", json!(2)),
        ("sample_rate", json!(0)),
        ("sample_rate", json!("24k")),
        ("frame_rate", json!(13)),
        ("frame_rate", json!(0)),
        ("frame_rate", json!(-12.5)),
        ("frame_rate", json!(25)),
        ("seanet", json!([])),
        ("seanet.channels", json!(2)),
        ("seanet.causal", json!(false)),
        ("seanet.n_residual_layers", json!(2)),
        ("seanet.activation", json!("ReLU")),
        ("seanet.norm", json!("weight_norm")),
        ("seanet.pad_mode", json!("reflect")),
        ("seanet.true_skip", json!(false)),
        ("seanet.trim_right_ratio", json!(0.5)),
        ("seanet.final_activation", json!("Tanh")),
        ("seanet.ratios", json!([])),
        ("seanet.ratios", json!([1])),
        ("seanet.ratios", json!([65])),
        ("seanet.ratios", json!([2, 2, 2, 2, 2, 2, 2, 2, 2])),
        ("seanet.ratios", json!("2")),
        ("seanet.compress", json!(3)),
        ("seanet.compress", json!(0)),
        ("seanet.kernel_size", json!(0)),
        ("seanet.last_kernel_size", json!(0)),
        ("seanet.residual_kernel_size", json!(0)),
        ("seanet.dimension", json!(0)),
        ("seanet.n_filters", json!(HUGE)),
        ("transformer.causal", json!(false)),
        ("transformer.conv_layout", json!(false)),
        ("transformer.gating", json!("silu")),
        ("transformer.norm", json!("rms_norm_f32")),
        ("transformer.positional_embedding", json!("sin")),
        ("transformer.num_heads", json!(0)),
        ("transformer.num_heads", json!(3)),
        ("transformer.d_model", json!(16)),
        ("transformer.input_dimension", json!(16)),
        ("transformer.output_dimensions", json!([16])),
        ("transformer.context", json!(0)),
        ("transformer.context", json!(1 << 24)),
        ("transformer.num_layers", json!(0)),
        ("transformer.num_layers", json!(1 << 24)),
        ("transformer.dim_feedforward", json!(0)),
        ("transformer.max_period", json!(0.5)),
        ("quantizer.input_dimension", json!(16)),
        ("quantizer.output_dimension", json!(16)),
        ("quantizer.n_q", json!(0)),
        ("quantizer.n_q", json!(1 << 24)),
        ("quantizer.bins", json!(0)),
        ("quantizer.dimension", json!(0)),
    ];
    for (field, value) in &cases {
        let text = with(mimi_config(), field, value.clone()).to_string();
        assert_names(MimiConfig::from_json("mimi.json", &text), field, value);
    }
    let base = with(mimi_config(), "seanet.ratios", json!([64, 64, 64, 16]));
    let text = with(with(base, "sample_rate", json!(1 << 23)), "frame_rate", json!(1)).to_string();
    assert_names(MimiConfig::from_json("mimi.json", &text), "frame_rate", &json!(1));
}

#[test]
fn oddities_of_released_configs_are_accepted() {
    let parse = |config: Value| LmConfig::from_json("config.json", &config.to_string()).unwrap();
    for (field, value) in [
        ("cross_attention", json!([])),
        ("conditioners", json!({})),
        ("conditioners", json!(null)),
        ("fuser", json!(null)),
        ("max_period", json!(100_000.0)),
        ("context", json!(6.0)),
        ("depformer_causal", json!(false)),
        ("gradient_checkpointing", json!(true)),
        ("betas", json!([0.9, 0.95])),
        ("model_id", json!({ "sig": "37c6cfd6", "epoch": 200 })),
        ("a_field_of_the_future", json!({ "deep": [1, 2, 3] })),
        ("depformer_dim_feedforward", json!([24, 24])),
        ("tts_config", json!({ "audio_delay": 1.28, "second_stream_ahead": 2 })),
    ] {
        let parsed = parse(with(config(), field, value));
        assert_eq!((parsed.num_codebooks, parsed.temporal.context), (4, 6), "{field}");
    }
    assert!(!parse(with(config(), "cross_attention", json!([]))).temporal.cross_attention);
    assert!(parse(with(config(), "demux_second_text_stream", json!(true))).demux_second_stream);
    let alias = with(config(), "lm_gen_config", json!({ "text_temp": 0.25 }));
    assert!((parse(alias).generation.text_temperature - 0.25).abs() < 1e-12);
    let seven = LmConfig::moshi_7b();
    assert_eq!((seven.temporal.shape.dim, seven.num_codebooks, seven.max_delay()), (4096, 16, 1));
}

#[test]
fn broken_json_is_refused() {
    let deep = "[".repeat(200_000);
    let long = format!("{{\"dim\": 1{}}}", "0".repeat(400));
    for text in ["", "{", "[]", "null", "1", "\"text\"", "{\"dim\":}", "{}{}", &deep, &long, "\0"] {
        let lm = LmConfig::from_json("config.json", text).map(drop);
        assert!(matches!(lm, Err(Error::ConfigFile { .. })), "{lm:?}");
        let mimi = MimiConfig::from_json("mimi.json", text).map(drop);
        assert!(matches!(mimi, Err(Error::ConfigFile { .. })), "{mimi:?}");
        assert!(lm.unwrap_err().to_string().contains("config.json"));
    }
    let repo = TinyRepo::new();
    std::fs::write(repo.file("config.json"), [b'{', 0xff, b'}']).unwrap();
    let error = Repo::open(repo.path()).unwrap_err();
    assert!(matches!(error, Error::ConfigFile { .. }) && error.to_string().contains("config.json"));
}

#[test]
fn file_names_stay_inside_the_folder() {
    let load = |field: &str, name: &str| {
        let repo = TinyRepo::new();
        repo.set(field, json!(name));
        Repo::open(repo.path())
            .and_then(|repo| Model::from_repo(&Scalar, &repo, &LoadOptions::default(), &NoObserver))
            .map(drop)
    };
    let fields = ["moshi_name", "mimi_name", "tokenizer_name", "mimi_config_name", "lora_name"];
    for field in fields {
        for name in [
            "../weights",
            "a/../../weights",
            "/etc/passwd",
            "..",
            ".",
            "",
            "./model.safetensors",
            "a//model.safetensors",
            "a/./model.safetensors",
            "model.safetensors/",
            "hf://owner/repo/a//b.bin",
        ] {
            let result = load(field, name);
            let Err(error @ Error::Config { .. }) = result else {
                panic!("{field} = {name:?}: {result:?}")
            };
            assert!(error.to_string().contains(&format!("{name:?}")), "{error}");
        }
        for name in ["none.bin", "hf://owner/repo/none.bin", "file:///none.bin"] {
            let result = load(field, name);
            assert!(matches!(result, Err(Error::NotFound { .. })), "{field} = {name}: {result:?}");
        }
    }
    assert!(load("moshi_name", "hf://owner/repo/model.safetensors").is_ok());
    let result = load("existing_text_padding_id", "3");
    assert!(matches!(result, Err(Error::Config { .. })));
}

#[test]
fn models_that_cannot_converse_are_refused() {
    for (field, value) in [
        ("model_type", json!("tts")),
        ("card", json!(17)),
        ("existing_text_padding_id", json!(51)),
        ("dep_q", json!(4)),
    ] {
        let repo = TinyRepo::new();
        repo.set(field, value.clone());
        let result = Repo::open(repo.path()).and_then(|repo| {
            Model::from_repo(&Scalar, &repo, &LoadOptions::default(), &NoObserver)
        });
        let refused = matches!(result, Err(Error::Config { .. } | Error::Tensors { .. }));
        assert!(refused, "{field} = {value}");
    }
}

/// Any JSON value, sometimes absurd.
fn any_value(dice: &mut Dice) -> Value {
    match dice.below(12) {
        0 => Value::Null,
        1 => json!(dice.below(2) == 0),
        2 => json!(dice.below(70)),
        3 => json!(dice.next()),
        4 => json!(-(dice.below(1000) as i64)),
        5 => json!(dice.unit() * 1e6),
        6 => json!(f64::from(dice.unit()) * 1e300),
        7 => json!(["", "silu", "rope", "../x", "lut", "none"][dice.below(6)]),
        8 => json!([]),
        9 => json!([dice.below(5), dice.below(5)]),
        10 => {
            json!({ "type": "lut", "lut": { "n_bins": dice.below(9), "dim": 1 << dice.below(25) } })
        }
        _ => json!(1u64 << dice.below(25)),
    }
}

/// Replaces some fields, nested ones too.
fn scramble(object: &mut Map<String, Value>, dice: &mut Dice) {
    let names: Vec<String> = object.keys().cloned().collect();
    for name in names {
        match &mut object[&name] {
            Value::Object(inner) if dice.below(2) == 0 => scramble(inner, dice),
            value if dice.below(20) == 0 => *value = any_value(dice),
            _ => {}
        }
    }
}

#[test]
fn scrambled_configs_never_panic() {
    let repo = TinyRepo::new();
    let mut dice = Dice(2);
    let (mut refused, mut loaded) = (0, 0);
    for _ in 0..400 {
        let (mut lm, mut mimi) = (config(), mimi_config());
        scramble(lm.as_object_mut().unwrap(), &mut dice);
        scramble(mimi.as_object_mut().unwrap(), &mut dice);
        let lm = LmConfig::from_json("config.json", &lm.to_string()).and_then(|config| {
            let path = repo.file("model.safetensors");
            LanguageModel::load(&Scalar, &path, &config, &LmOptions::default()).map(drop)
        });
        let mimi = MimiConfig::from_json("mimi.json", &mimi.to_string()).and_then(|config| {
            let options = MimiOptions { num_codebooks: 1, ..MimiOptions::default() };
            Mimi::load(&Scalar, &repo.file("mimi.safetensors"), &config, &options).map(drop)
        });
        for result in [lm, mimi] {
            match result {
                Ok(()) => loaded += 1,
                Err(Error::Config { .. } | Error::Tensors { .. }) => refused += 1,
                Err(other) => panic!("another error: {other}"),
            }
        }
    }
    assert!(refused > 100 && loaded > 100, "{refused} refused, {loaded} loaded");
}
