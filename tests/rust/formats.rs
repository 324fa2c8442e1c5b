//! One model in every file format and layout: the same tokens.

use std::path::Path;

use moshi_cli::verify::{CaseReport, verify_case};
use moshi_core::checkpoint::{Container, TensorFile, layout};
use moshi_core::config::LmConfig;
use moshi_core::exec::{Executor, Scalar};
use moshi_core::lm::{
    Condition, LanguageModel, LmOptions, LmSlot, LmStreamOptions, NoHooks, Sampling,
};
use moshi_core::{Error, Model, Session, SessionOptions};
use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::gguf::{Gguf, Kind};
use crate::support::models::{TinyRepo, greedy, weights};
use crate::support::tensors::Tensors;
use crate::support::{Dice, golden};

executors!(
    split_projections_give_the_same_tokens,
    candle_layout_gives_the_same_tokens,
    mlx_layout_gives_the_same_tokens,
    gguf_floats_give_the_same_tokens,
    candle_layout_refuses_what_it_cannot_hold,
    adapters_apply_in_every_spelling,
    adapters_bring_embeddings,
);

/// Language-model cases of the original, with what the Candle layout can express of them.
const CASES: [&str; 5] = ["moshi", "hibiki", "kv_repeat", "odd_shapes", "guidance_masked"];

/// A copy of a case with other weights.
fn case_with(case: &str, moshi_name: &str, write: impl FnOnce(&Tensors, &Path)) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden(case)).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name == "model.safetensors" || name.contains("lora") {
            continue;
        }
        std::fs::copy(&path, folder.path().join(name)).unwrap();
    }
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    config["moshi_name"] = json!(moshi_name);
    std::fs::write(path, config.to_string()).unwrap();
    let original = Tensors::read(&golden(case).join("model.safetensors"));
    write(&original, &folder.path().join(moshi_name));
    folder
}

fn depth_schedule(case: &str) -> Vec<usize> {
    let text = std::fs::read_to_string(golden(case).join("config.json")).unwrap();
    let config = LmConfig::from_json("config.json", &text).unwrap();
    config.depth.map(|depth| depth.schedule).unwrap_or_default()
}

#[track_caller]
fn assert_passes(report: moshi_core::Result<CaseReport>, what: &str) {
    let report = report.unwrap();
    let failed: Vec<_> = report.checks.iter().filter(|check| !check.passed).collect();
    assert!(report.passed(), "{what}: {failed:?}");
}

fn split_projections_give_the_same_tokens<E: Executor>(exec: &E) {
    for case in CASES {
        let sets = depth_schedule(case).iter().max().map_or(0, |max| max + 1);
        let folder = case_with(case, "split.safetensors", |tensors, path| {
            tensors.packed(sets).split(sets).write(path, Dtype::F32);
        });
        assert_passes(verify_case(exec, folder.path()), case);
    }
}

fn candle_layout_gives_the_same_tokens<E: Executor>(exec: &E) {
    for case in CASES {
        let schedule = depth_schedule(case);
        let folder = case_with(case, "candle.safetensors", |tensors, path| {
            let converted = tensors.candle(&schedule);
            assert!(converted.0.contains_key("depformer.1.emb.weight"), "{case}");
            converted.write(path, Dtype::F32);
        });
        assert_passes(verify_case(exec, folder.path()), case);
    }
}

fn mlx_layout_gives_the_same_tokens<E: Executor>(exec: &E) {
    for case in CASES.into_iter().chain(["stt"]) {
        let schedule = depth_schedule(case);
        let folder = case_with(case, "mlx.safetensors", |tensors, path| {
            let converted = tensors.mlx(&schedule);
            assert!(converted.0.contains_key("out_norm.weight"), "{case}");
            converted.write(path, Dtype::F32);
        });
        assert_passes(verify_case(exec, folder.path()), case);
    }
}

fn gguf_floats_give_the_same_tokens<E: Executor>(exec: &E) {
    for case in CASES.into_iter().chain(["stt"]) {
        let schedule = depth_schedule(case);
        let folder = case_with(case, "model.gguf", |tensors, path| {
            Gguf::of(&tensors.candle(&schedule), |_, _| Kind::F32).write(path);
            assert_eq!(TensorFile::open(path).unwrap().container(), Container::Gguf);
        });
        assert_passes(verify_case(exec, folder.path()), case);
    }
}

fn candle_layout_refuses_what_it_cannot_hold<E: Executor>(exec: &E) {
    for (case, lacking) in [
        ("tts", &["text_emb.out1", "depformer_text_emb.out2", "depformer_norms.0"][..]),
        ("hibiki_zero", &["depformer_norms.3"]),
    ] {
        let schedule = depth_schedule(case);
        let folder = case_with(case, "candle.safetensors", |tensors, path| {
            let mut converted = tensors.candle(&schedule);
            converted.0.retain(|name, _| !name.contains(".out") || name.contains(".out_"));
            converted.0.retain(|name, _| !name.starts_with("depformer_norms"));
            converted.write(path, Dtype::F32);
        });
        let Err(Error::Tensors { problems, .. }) = verify_case(exec, folder.path()) else {
            panic!("{case} loads")
        };
        for name in lacking {
            let missing = problems.missing.iter().find(|problem| problem.starts_with(name));
            assert!(missing.is_some_and(|m| m.contains("Candle")), "{case}: {problems:?}");
        }
    }
    // Copies of one tensor that differ.
    let folder = case_with("hibiki", "candle.safetensors", |tensors, path| {
        let mut converted = tensors.candle(&depth_schedule("hibiki"));
        converted.0.get_mut("depformer.5.linear_in.weight").unwrap().data[7] += 1.0;
        converted.0.get_mut("depformer.3.transformer.layers.0.norm1.alpha").unwrap().data[0] = 9.0;
        converted.write(path, Dtype::F32);
    });
    let Err(Error::Tensors { problems, .. }) = verify_case(exec, folder.path()) else {
        panic!("differing copies load")
    };
    assert_eq!(problems.misshapen.len(), 2, "{problems:?}");
    assert!(problems.misshapen[1].contains("depformer.5.linear_in.weight"), "{problems:?}");
}

fn adapters_apply_in_every_spelling<E: Executor>(exec: &E) {
    let rename: [fn(&Tensors, usize) -> Tensors; 2] =
        [|tensors, _| tensors.clone(), Tensors::packed_adapter];
    let mut names = Vec::new();
    for spelling in rename {
        let folder = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(golden("moshi")).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
        let adapter = spelling(&Tensors::read(&golden("moshi/lora.safetensors")), 8);
        adapter.write(&folder.path().join("lora.safetensors"), Dtype::F32);
        names.push(adapter.0.len());
        assert_passes(verify_case(exec, folder.path()), "moshi with adapter");
    }
    assert!(names[1] < names[0], "{names:?}");
}

fn adapters_bring_embeddings<E: Executor>(exec: &E) {
    let folder = tempfile::tempdir().unwrap();
    let original = Tensors::read(&golden("moshi/model.safetensors"));
    let text = std::fs::read_to_string(golden("moshi/config.json")).unwrap();
    let config = LmConfig::from_json("config.json", &text).unwrap();
    let lora = folder.path().join("lora.safetensors");
    let mut adapter = Tensors::default();
    for name in ["text_emb.weight", "depformer_emb.2.weight"] {
        let mut tensor = original.get(name).clone();
        tensor.data.iter_mut().for_each(|value| *value = -*value);
        adapter.insert(name, tensor);
    }
    adapter.write(&lora, Dtype::F32);
    let merged = folder.path().join("merged.safetensors");
    let mut tensors = original.clone();
    tensors.0.extend(adapter.0.clone());
    tensors.write(&merged, Dtype::F32);
    let load = |path: &Path, lora: Option<&Path>| {
        let options = LmOptions { lora: lora.map(Into::into), ..LmOptions::default() };
        LanguageModel::load(exec, path, &config, &options)
    };
    let base = golden("moshi/model.safetensors");
    let adapted = load(&base, Some(&lora)).unwrap();
    let expected = load(&merged, None).unwrap();
    let user = [0; 8];
    let step = |lm: &LanguageModel<E>| {
        let mut state = lm.new_state(&LmStreamOptions::default()).unwrap();
        let slot = LmSlot {
            state: &mut state,
            user_tokens: &user,
            sampling: &Sampling::greedy(),
            seed: 0,
            hooks: &mut NoHooks,
            trace: false,
        };
        lm.step(&mut [slot]).unwrap().remove(0).text_logits
    };
    assert_eq!(step(&adapted), step(&expected));
    assert_ne!(step(&adapted), step(&load(&base, None).unwrap()));

    adapter.insert("text_emb.other", original.get("text_emb.weight").clone());
    adapter.write(&lora, Dtype::F32);
    let Err(Error::Tensors { problems, .. }) = load(&base, Some(&lora)).map(drop) else {
        panic!("an unknown embedding loads")
    };
    assert!(problems.unexpected[0].contains("text_emb.other"), "{problems:?}");
}

/// The config of [`TinyRepo`] as the Rust programs write it.
const CONFIG_TOML: &str = r#"
    moshi_name = "candle.safetensors"
    mimi_name = "mimi.safetensors"
    mimi_config_name = "mimi_config.json"
    tokenizer_name = "tokenizer.model"
    [gen]
    acoustic_delay = 1
    generated_audio_codebooks = 2
    input_audio_codebooks = 2
    [model]
    text_in_vocab_size = 51
    text_out_vocab_size = 50
    audio_vocab_size = 17
    audio_codebooks = 4
    [model.transformer]
    d_model = 16
    num_heads = 2
    num_layers = 2
    dim_feedforward = 64
    context = 6
    max_period = 10000
    gating = "silu"
    norm = "RmsNorm"
    positional_embedding = "Rope"
    [model.depformer]
    num_slices = 2
    [model.depformer.transformer]
    d_model = 8
    num_heads = 2
    num_layers = 1
    dim_feedforward = 24
    context = 2
    gating = "silu"
    norm = "RmsNorm"
    positional_embedding = "None"
"#;

#[test]
fn a_repository_of_the_rust_programs_is_the_same_model() {
    let repo = TinyRepo::new();
    let said = || {
        let model = Model::load(repo.path(), &moshi_core::LoadOptions::default()).unwrap();
        let mut session = greedy(&model);
        (0..10).map(|_| session.step(&[0.1; 4]).unwrap().pcm).collect::<Vec<_>>()
    };
    let expected = said();
    let tensors = Tensors::read(&repo.file("model.safetensors"));
    tensors.candle(&[0, 1]).write(&repo.file("candle.safetensors"), Dtype::F32);
    std::fs::remove_file(repo.file("model.safetensors")).unwrap();
    std::fs::remove_file(repo.file("config.json")).unwrap();
    std::fs::write(repo.file("config.toml"), CONFIG_TOML).unwrap();
    assert_eq!(said(), expected);
}

/// [`CONFIG_TOML`] of a model that takes a delay.
fn with_delay() -> String {
    format!(
        "{CONFIG_TOML}\n[model.conditioners.delay]\ntype = \"ContinuousAttribute\"\ndim = 4\n\
         scale_factor = 10.0\nmax_period = 100.0\n"
    )
}

#[test]
fn the_delay_of_a_config_is_that_of_every_session() {
    let repo = TinyRepo::new();
    std::fs::remove_file(repo.file("config.json")).unwrap();
    let config = LmConfig::from_toml("config.toml", &with_delay()).unwrap();
    let widths = layout::GatedWidths { temporal: 44, depth: 16 };
    let tensors = weights(&layout::language_model(&config, widths), &mut Dice(4));
    tensors.candle(&[0, 1]).write(&repo.file("candle.safetensors"), Dtype::F32);
    let said = |line: &str, delay: Option<Condition>| {
        std::fs::write(repo.file("config.toml"), format!("{line}\n{}", with_delay())).unwrap();
        let model = Model::load(repo.path(), &moshi_core::LoadOptions::default()).unwrap();
        let options = SessionOptions {
            seed: Some(0),
            conditions: delay.map(|delay| [("delay".to_owned(), delay)].into()),
            ..SessionOptions::default()
        };
        let mut session = Session::new(&model, &options).unwrap();
        (0..10).map(|_| session.step(&[0.1; 4]).unwrap().pcm).collect::<Vec<_>>()
    };
    let half = said("conditioning_delay = 0.5", None);
    assert_eq!(half, said("", Some(Condition::Number(-0.5))));
    let learnt = said("conditioning_learnt_padding = true", None);
    assert_eq!(learnt, said("conditioning_delay = 0.5", Some(Condition::Null)));
    assert_ne!(half, learnt);
}

#[test]
fn a_number_conditions_every_step() {
    let config = LmConfig::from_toml("config.toml", &with_delay()).unwrap();
    let widths = layout::GatedWidths { temporal: 44, depth: 16 };
    let tensors = weights(&layout::language_model(&config, widths), &mut Dice(4));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    tensors.candle(&[0, 1]).write(&path, Dtype::F32);
    let lm = LanguageModel::load(&Scalar, &path, &config, &LmOptions::default()).unwrap();
    let logits = |value: Condition| {
        let conditions = [("delay".to_owned(), value)].into();
        let mut state = lm.new_state(&LmStreamOptions { conditions, guidance: None })?;
        let slot = LmSlot {
            state: &mut state,
            user_tokens: &[0, 0],
            sampling: &Sampling::greedy(),
            seed: 0,
            hooks: &mut NoHooks,
            trace: false,
        };
        Ok::<_, Error>(lm.step(&mut [slot])?.remove(0).text_logits)
    };
    let (half, one) = (logits(Condition::Number(-0.5)).unwrap(), logits(Condition::Number(-1.0)));
    assert_ne!(half, one.unwrap());
    assert_ne!(half, logits(Condition::Null).unwrap());
    for wrong in [Condition::Number(f64::NAN), Condition::Text("0.5".into())] {
        let error = logits(wrong).unwrap_err().to_string();
        assert!(error.contains("`delay`") && error.contains("number"), "{error}");
    }
}

#[test]
fn a_gguf_file_is_a_model_by_itself() {
    let repo = TinyRepo::new();
    let schedule = [0, 1];
    let tensors = Tensors::read(&repo.file("model.safetensors"));
    let path = repo.file("other.gguf");
    Gguf::of(&tensors.packed(2).candle(&schedule), |_, _| Kind::F32).write(&path);
    let said = |path: &Path| {
        let model = Model::load(path, &moshi_core::LoadOptions::default()).unwrap();
        let mut session = greedy(&model);
        (0..10).map(|_| session.step(&[0.1; 4]).unwrap().pcm).collect::<Vec<_>>()
    };
    let expected = said(repo.path());
    assert_eq!(said(&path), expected);
    // The only weights of a folder whose config names none.
    std::fs::remove_file(repo.file("model.safetensors")).unwrap();
    repo.set("moshi_name", Value::Null);
    assert_eq!(said(repo.path()), expected);
    std::fs::copy(&path, repo.file("second.gguf")).unwrap();
    let error = moshi_core::checkpoint::Repo::open(repo.path()).unwrap_err().to_string();
    assert!(error.contains("other.gguf") && error.contains("second.gguf"), "{error}");
}
