//! The model in the box: what the program carries equals the same files in a folder, and is what
//! every command takes where no model is named.

use std::ffi::OsString;
use std::mem::discriminant;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use moshi_box::{FILES, LABEL, open_codec, open_repo, source};
use moshi_cli::ChatRequest;
use moshi_core::checkpoint::{CodecFiles, FileSource, InMemory, Repo, TensorFile};
use moshi_core::config::MimiConfig;
use moshi_core::exec::{Executor, Scalar};
use moshi_core::lm::WeightType;
use moshi_core::mimi::{Mimi, MimiOptions};
use moshi_core::{Error, LoadOptions, Model, NoObserver, Session, SessionOptions, StepOutput};
use moshi_hub::HubOptions;

use crate::support::{assert_same, audio, repository};

executors!(
    speech_is_that_of_the_same_files_in_a_folder,
    codes_are_those_of_the_same_files_in_a_folder,
);

type Files = Vec<(&'static str, &'static [u8])>;

fn folder() -> PathBuf {
    repository("rust/moshi-box/checkpoint")
}

fn load<E: Executor>(exec: &E, repo: &Repo, dtype: Option<WeightType>) -> Arc<Model> {
    let options = LoadOptions { dtype, ..LoadOptions::default() };
    Model::from_repo(exec, repo, &options, &NoObserver).unwrap()
}

fn steps(session: &mut Session, frames: usize) -> Vec<StepOutput> {
    let frame = session.model().info().frame_samples;
    let pcm = audio(3, frames * frame);
    pcm.chunks_exact(frame).map(|frame| session.step(frame).unwrap()).collect()
}

#[test]
fn it_is_small_and_complete() {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let carried = FILES.iter().find(|(own, _)| *own == name);
        let (_, contents) = carried.unwrap_or_else(|| panic!("{name} is not in the box"));
        assert!(std::fs::read(&path).unwrap() == *contents, "{name} differs");
        assert!(contents.len() <= 10_000_000, "{name} has {} bytes", contents.len());
        names.push(name);
    }
    names.sort();
    let sorted: Vec<&str> = FILES.iter().map(|(name, _)| *name).collect();
    assert_eq!(sorted, names);
    let total: usize = FILES.iter().map(|(_, contents)| contents.len()).sum();
    assert!((100_000..=16_000_000).contains(&total), "{total} bytes");
}

#[test]
fn it_is_in_the_official_layout() {
    let repo = Repo::from_source(source()).unwrap();
    assert_eq!(repo.label(), LABEL);
    assert_eq!(repo.source().list().unwrap().len(), FILES.len());
    for (file, name) in [
        (repo.moshi_file(), "model.safetensors"),
        (repo.mimi_file(), "mimi.safetensors"),
        (repo.tokenizer_file(), "tokenizer.model"),
    ] {
        assert_eq!(file.unwrap().path(), Path::new(LABEL).join(name));
    }
    assert!(repo.lora_file().unwrap().is_none());
    assert_ne!(repo.mimi_config, MimiConfig::default(), "mimi_config.json is read");
    let shown = format!("{repo:?}");
    assert!(shown.contains(LABEL) && shown.len() < 20_000, "contents are not shown: {shown}");
}

#[test]
fn it_is_taken_where_no_model_is_named() {
    let options = HubOptions::default();
    assert_eq!(open_repo(None, &options).unwrap().label(), LABEL);
    let codec = open_codec(None, &options).unwrap();
    assert_eq!(codec.weights.path(), Path::new(LABEL).join("mimi.safetensors"));
    let named = open_repo(Some(&folder()), &options).unwrap();
    assert_eq!(named.label(), folder().display().to_string());

    let options = HubOptions { revision: Some("main".into()), ..options };
    for error in [open_repo(None, &options).unwrap_err(), open_codec(None, &options).unwrap_err()] {
        let text = error.to_string();
        assert!(matches!(error, Error::Config { .. }), "{text}");
        assert!(text.contains("revision") && text.contains("no model is named"), "{text}");
    }
}

fn speech_is_that_of_the_same_files_in_a_folder<E: Executor>(exec: &E) {
    const FRAMES: usize = 6;
    let (carried, on_disk) = (Repo::from_source(source()).unwrap(), Repo::open(&folder()).unwrap());
    let types = [WeightType::F32, WeightType::Bf16, WeightType::Q8, WeightType::Q4];
    for dtype in types.map(Some).into_iter().chain([None]) {
        let (carried, on_disk) = (load(exec, &carried, dtype), load(exec, &on_disk, dtype));
        assert_eq!(carried.fingerprint(), on_disk.fingerprint());
        assert_eq!(carried.info().source, LABEL);
        assert_eq!(on_disk.info().source, folder().display().to_string());
        let options = SessionOptions { seed: Some(11), ..SessionOptions::default() };
        let mut sessions = [&carried, &on_disk].map(|model| Session::new(model, &options).unwrap());
        let [from_box, from_folder] = sessions.each_mut().map(|session| steps(session, FRAMES));
        assert!(from_box.iter().any(|output| output.tokens.is_some()), "tokens come");
        for (got, expected) in from_box.iter().zip(&from_folder) {
            assert_eq!(got.user_codes, expected.user_codes, "{dtype:?}");
            assert_eq!(got.tokens, expected.tokens, "{dtype:?}");
            assert_eq!(got.text, expected.text, "{dtype:?}");
            assert_same(exec, &got.pcm, &expected.pcm);
        }
        // A snapshot goes on with either.
        let blob = sessions[0].snapshot().unwrap();
        let again = [&carried, &on_disk].map(|model| {
            let tokens = |output: StepOutput| (output.tokens, output.text);
            let mut session = Session::restore(model, &blob).unwrap();
            steps(&mut session, 2).into_iter().map(tokens).collect::<Vec<_>>()
        });
        assert_eq!(again[0], again[1], "{dtype:?}");
    }
}

fn codes_are_those_of_the_same_files_in_a_folder<E: Executor>(exec: &E) {
    let files = [CodecFiles::from_source(source()).unwrap(), CodecFiles::open(&folder()).unwrap()];
    assert_eq!(files[0].config, files[1].config);
    let pcm = audio(5, 5 * files[0].config.frame_samples);
    let [carried, on_disk] = files.map(|CodecFiles { weights, config }| {
        let options =
            MimiOptions { num_codebooks: config.total_codebooks, ..MimiOptions::default() };
        let mimi = Mimi::load(exec, weights, &config, &options).unwrap();
        let codes = mimi.encode(&pcm).unwrap();
        let decoded = mimi.decode(&codes, 5).unwrap();
        (codes, decoded)
    });
    assert_eq!(carried.0, on_disk.0);
    assert_same(exec, &carried.1, &on_disk.1);
}

fn file(name: &str) -> &'static [u8] {
    FILES.iter().find(|(own, _)| *own == name).unwrap().1
}

/// The files of the box, one of them replaced, or left out.
fn with(name: &str, contents: Option<Vec<u8>>) -> Files {
    let contents = contents.map(|bytes| &*bytes.leak());
    let replaced = FILES.iter().filter_map(|&(own, original)| {
        if own == name { contents.map(|bytes| (own, bytes)) } else { Some((own, original)) }
    });
    replaced.collect()
}

/// The box's `config.json` with another value.
fn config(field: &str, value: &str) -> Vec<u8> {
    let mut config: serde_json::Value = serde_json::from_slice(file("config.json")).unwrap();
    config[field] = value.into();
    config.to_string().into_bytes()
}

fn load_from(source: impl FileSource + 'static) -> Error {
    let loaded = Repo::from_source(Arc::new(source)).and_then(|repo| {
        Model::from_repo(&Scalar, &repo, &LoadOptions::default(), &NoObserver).map(drop)
    });
    loaded.unwrap_err()
}

#[test]
fn bad_files_in_memory_are_the_errors_of_bad_files_in_a_folder() {
    let half = |name: &str| file(name)[..file(name).len() / 2].to_vec();
    let flipped = |name: &str, at: usize, byte: u8| {
        let mut bytes = file(name).to_vec();
        bytes[at] = byte;
        bytes
    };
    let mut not_finite = file("model.safetensors").to_vec();
    let end = not_finite.len();
    not_finite[end - 4096..].fill(0xff);
    let cases: Vec<(&str, Option<Vec<u8>>)> = vec![
        ("config.json", Some(Vec::new())),
        ("config.json", Some(b"{\"dim\": ".to_vec())),
        ("config.json", Some(vec![0xff; 9])),
        ("config.json", Some(vec![b' '; (4 << 20) + 1])),
        ("config.json", Some(config("dim", "wide"))),
        ("config.json", Some(config("tokenizer_name", "../tokenizer.model"))),
        ("config.json", Some(config("tokenizer_name", "hf://alone"))),
        ("config.json", Some(config("moshi_name", "other.safetensors"))),
        ("mimi_config.json", None),
        ("mimi_config.json", Some(b"[]".to_vec())),
        ("tokenizer.model", None),
        ("tokenizer.model", Some(Vec::new())),
        ("tokenizer.model", Some(vec![0xff; 64])),
        ("mimi.safetensors", None),
        ("mimi.safetensors", Some(Vec::new())),
        ("mimi.safetensors", Some(half("mimi.safetensors"))),
        ("mimi.safetensors", Some(file("model.safetensors").to_vec())),
        ("model.safetensors", None),
        ("model.safetensors", Some(b"GGUF".to_vec())),
        ("model.safetensors", Some(half("model.safetensors"))),
        ("model.safetensors", Some(flipped("model.safetensors", 7, 0x7f))),
        ("model.safetensors", Some(flipped("model.safetensors", 8, b'['))),
        ("model.safetensors", Some(file("mimi.safetensors").to_vec())),
        ("model.safetensors", Some(not_finite)),
    ];
    for (name, contents) in cases {
        let files = with(name, contents);
        let folder = tempfile::tempdir().unwrap();
        for (name, contents) in &files {
            std::fs::write(folder.path().join(name), contents).unwrap();
        }
        let expected = load_from(moshi_core::checkpoint::Folder::open(folder.path()).unwrap());
        let got = load_from(InMemory::new(LABEL, files.leak()));
        assert_eq!(discriminant(&got), discriminant(&expected), "{name}: {got}");
        let path = folder.path().display().to_string();
        assert_eq!(got.to_string(), expected.to_string().replace(&path, LABEL));
        assert!(got.to_string().contains(LABEL), "{name}: {got}");
    }
}

#[test]
fn files_of_other_repositories_are_those_in_memory() {
    let moved = config("tokenizer_name", "hf://somebody/else/deep/tokenizer.model");
    let files = with("config.json", Some(moved)).leak();
    let repo = Repo::from_source(Arc::new(InMemory::new(LABEL, files))).unwrap();
    let found = repo.tokenizer_file().unwrap();
    assert_eq!(found.path(), Path::new(LABEL).join("tokenizer.model"));

    let lost = config("tokenizer_name", "hf://somebody/else/lost.model");
    let files = with("config.json", Some(lost)).leak();
    let error = load_from(InMemory::new(LABEL, files));
    let text = error.to_string();
    assert!(matches!(error, Error::NotFound { .. }), "{text}");
    assert!(text.contains(LABEL) && text.contains("lost.model of somebody/else"), "{text}");
}

fn run(args: Vec<OsString>) -> i32 {
    moshi_cli::main_from(arguments(args), None)
}

fn arguments(args: Vec<OsString>) -> Vec<OsString> {
    std::iter::once("moshi-rs".into()).chain(args).collect()
}

/// Arguments of mixed kinds.
macro_rules! args {
    ($($arg:expr),+ $(,)?) => {
        vec![$(OsString::from($arg)),+]
    };
}

/// Codes of a token file, whose header has its entries in no order; bytes of any other file.
fn contents(path: &Path) -> Vec<i64> {
    if path.extension().is_some_and(|extension| extension == "safetensors") {
        return TensorFile::open(path).unwrap().read_i64("codes").unwrap();
    }
    std::fs::read(path).unwrap().into_iter().map(i64::from).collect()
}

#[test]
fn commands_take_it_where_no_model_is_named() {
    let scratch = tempfile::tempdir().unwrap();
    let out = |name: &str| scratch.path().join(name);
    let hello = repository("tests/audio/hello.wav");
    let named = args!["--model", folder()];
    for (unnamed, output) in [
        (args!["run", &hello, "--seed", "5", "-o"], "answer.wav"),
        (args!["encode", &hello, "-o"], "codes.safetensors"),
        (args!["decode", out("codes.safetensors"), "-o"], "again.wav"),
    ] {
        let with_output = |name: &str| [unnamed.clone(), args![out(name)]].concat();
        assert_eq!(run(with_output(output)), 0, "{output}");
        let reference = format!("reference-{output}");
        assert_eq!(run([with_output(&reference), named.clone()].concat()), 0, "{output}");
        let [got, expected] = [output, &reference].map(|name| contents(&out(name)));
        assert!(got.len() > 100 && got == expected, "{output}");
    }
    assert_eq!(run(args!["info"]), 0);
    assert_eq!(run(args!["info", "--json"]), 0);
    for command in [args!["run", &hello], args!["encode", &hello, "-o", out("x")], args!["info"]] {
        assert_eq!(run([command, args!["--revision", "main"]].concat()), 2);
    }
}

#[test]
fn chat_takes_it_where_no_model_is_named() {
    let mut labels = Vec::new();
    let mut chat = |request: ChatRequest| {
        let (model, _) = request.opener.expect("a conversation").open().unwrap();
        labels.push(model.info().source.clone());
        0
    };
    assert_eq!(moshi_cli::main_from(arguments(args!["chat"]), Some(&mut chat)), 0);
    assert_eq!(labels, [LABEL]);
}
