//! Checkpoints that are cut, lying, foreign or made up: a typed error that names the culprit,
//! never a panic.

use std::path::{Path, PathBuf};

use moshi_core::Error;
use moshi_core::checkpoint::{SourceFile, TensorFile};
use moshi_core::config::{LmConfig, MimiConfig};
use moshi_core::exec::Scalar;
use moshi_core::lm::{LanguageModel, LmOptions};
use moshi_core::mimi::{Mimi, MimiOptions};
use moshi_core::text::Tokenizer;
use safetensors::Dtype;
use tempfile::TempDir;

use crate::support::models::{TinyRepo, config, mimi_config};
use crate::support::tensors::{Tensor, Tensors};
use crate::support::{Dice, golden};

fn load_lm(path: &Path) -> Result<LanguageModel<Scalar>, Error> {
    let config = LmConfig::from_json("config.json", &config().to_string()).unwrap();
    LanguageModel::load(&Scalar, path, &config, &LmOptions::default())
}

fn load_mimi(path: &Path) -> Result<Mimi<Scalar>, Error> {
    let config = MimiConfig::from_json("mimi.json", &mimi_config().to_string()).unwrap();
    let options = MimiOptions { num_codebooks: 4, ..MimiOptions::default() };
    Mimi::load(&Scalar, path, &config, &options)
}

struct File {
    folder: TempDir,
}

impl File {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("weights.safetensors")
    }

    fn with(&self, bytes: &[u8]) -> PathBuf {
        std::fs::write(self.path(), bytes).unwrap();
        self.path()
    }

    /// A header and a body.
    fn safetensors(&self, header: &str, body: &[u8]) -> PathBuf {
        let length = (header.len() as u64).to_le_bytes();
        self.with(&[&length[..], header.as_bytes(), body].concat())
    }

    fn tensors(&self, tensors: &Tensors) -> PathBuf {
        tensors.write(&self.path(), Dtype::F32);
        self.path()
    }
}

/// The message of an [`Error::Checkpoint`], which names the file.
#[track_caller]
fn checkpoint_error<T>(result: Result<T, Error>) -> String {
    match result.map(drop) {
        Err(error @ Error::Checkpoint { .. }) => {
            let text = error.to_string();
            assert!(text.contains("weights.safetensors"), "{text}");
            text
        }
        other => panic!("expected Error::Checkpoint, got {other:?}"),
    }
}

/// The lists of an [`Error::Tensors`].
#[track_caller]
fn tensor_errors<T>(result: Result<T, Error>) -> moshi_core::error::TensorProblems {
    match result.map(drop) {
        Err(Error::Tensors { problems, .. }) => problems,
        other => panic!("expected Error::Tensors, got {other:?}"),
    }
}

fn lm_weights(repo: &TinyRepo) -> Tensors {
    Tensors::read(&repo.file("model.safetensors"))
}

fn mimi_weights(repo: &TinyRepo) -> Tensors {
    Tensors::read(&repo.file("mimi.safetensors"))
}

#[test]
fn truncated_files_are_refused() {
    let (repo, file) = (TinyRepo::new(), File::new());
    for name in ["model.safetensors", "mimi.safetensors"] {
        let whole = std::fs::read(repo.file(name)).unwrap();
        let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
        let lengths = [0, 1, 7, 8, 9, header / 2, header - 1, header, header + 1, whole.len() - 1];
        for len in lengths.into_iter().chain((0..whole.len()).step_by(whole.len() / 60)) {
            let path = file.with(&whole[..len]);
            checkpoint_error(load_lm(&path));
            checkpoint_error(load_mimi(&path));
        }
        checkpoint_error(load_lm(&file.with(&[&whole[..], &[0]].concat())));
    }
}

#[test]
fn lying_headers_are_refused() {
    let (repo, file) = (TinyRepo::new(), File::new());
    let whole = std::fs::read(repo.file("model.safetensors")).unwrap();
    let header = u64::from_le_bytes(whole[..8].try_into().unwrap());
    for length in [0, 1, header - 1, header + 1, header + 8, whole.len() as u64, 1 << 40, u64::MAX]
    {
        let lying = [&length.to_le_bytes()[..], &whole[8..]].concat();
        checkpoint_error(load_lm(&file.with(&lying)));
    }
    let one = |offsets: &str| {
        format!(
            r#"{{"text_linear.weight":{{"dtype":"F32","shape":[2],"data_offsets":{offsets}}}}}"#
        )
    };
    for offsets in [
        "[0,4]",
        "[4,12]",
        "[8,0]",
        "[0,16]",
        "[0]",
        "[0,8,8]",
        "[-8,0]",
        "\"0\"",
        "[0,18446744073709551615]",
        "[18446744073709551608,18446744073709551615]",
    ] {
        checkpoint_error(TensorFile::open(&file.safetensors(&one(offsets), &[0; 8])));
    }
    let two = |second: &str| {
        format!(
            r#"{{"a":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}},
                "b":{{"dtype":"F32","shape":[2],"data_offsets":{second}}}}}"#
        )
    };
    assert!(TensorFile::open(&file.safetensors(&two("[8,16]"), &[0; 16])).is_ok());
    for second in ["[0,8]", "[4,12]", "[12,20]"] {
        checkpoint_error(TensorFile::open(&file.safetensors(&two(second), &[0; 20])));
    }
    let deep = "[".repeat(100_000);
    for header in [
        "",
        "null",
        "[]",
        "{",
        "{\"a\":1}",
        "\u{fffd}",
        r#"{"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,0]}}"#,
        r#"{"__metadata__":{"k":1}}"#,
        &deep,
    ] {
        checkpoint_error(TensorFile::open(&file.safetensors(header, &[0; 4])));
    }
    checkpoint_error(TensorFile::open(&file.with(&[0xff; 64])));
}

#[test]
fn flipped_header_bytes_never_panic() {
    let (repo, file) = (TinyRepo::new(), File::new());
    let whole = std::fs::read(repo.file("model.safetensors")).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let mut dice = Dice(1);
    let mut refused = 0;
    for _ in 0..300 {
        let mut bytes = whole.clone();
        bytes[dice.below(header)] ^= 1 << dice.below(7);
        match load_lm(&file.with(&bytes)).map(drop) {
            Ok(()) => {}
            Err(Error::Checkpoint { .. } | Error::Tensors { .. }) => refused += 1,
            Err(other) => panic!("another error: {other}"),
        }
    }
    assert!(refused > 250, "{refused}");
}

#[test]
fn every_disagreement_is_listed_at_once() {
    let (repo, file) = (TinyRepo::new(), File::new());
    let mut weights = lm_weights(&repo);
    weights.take("out_norm.alpha");
    weights.take("linears.1.weight");
    weights.insert("surprise.weight", Tensor::new(&[1], vec![0.0]));
    weights.insert("emb.0.weight", Tensor::new(&[3, 16], vec![0.0; 48]));
    weights.insert("text_linear.weight", Tensor::new(&[16, 50], vec![0.0; 800]));
    let path = file.tensors(&weights);
    let problems = tensor_errors(load_lm(&path));
    assert_eq!(problems.missing.len(), 2, "{problems:?}");
    assert_eq!(problems.unexpected, ["surprise.weight"]);
    assert_eq!(problems.misshapen.len(), 2, "{problems:?}");
    let text = load_lm(&path).map(drop).unwrap_err().to_string();
    for part in [
        "weights.safetensors",
        "2 missing: out_norm.alpha [1, 1, 16]",
        "linears.1.weight [16, 8]",
        "1 unexpected: surprise.weight",
        "emb.0.weight: expected [17, 16], got [3, 16]",
        "text_linear.weight: expected [50, 16], got [16, 50]",
    ] {
        assert!(text.contains(part), "{part:?} is in {text}");
    }

    let mut weights = mimi_weights(&repo);
    weights.take("downsample.conv.conv.conv.weight");
    weights.insert("encoder.model.0.conv.conv.bias", Tensor::new(&[5], vec![0.0; 5]));
    let problems = tensor_errors(load_mimi(&file.tensors(&weights)));
    assert_eq!((problems.missing.len(), problems.misshapen.len()), (1, 1), "{problems:?}");
}

#[test]
fn odd_shapes_of_packed_tensors_are_refused() {
    let (repo, file) = (TinyRepo::new(), File::new());
    for (shape, count) in
        [(vec![], 1), (vec![0], 0), (vec![0, 16], 0), (vec![7], 7), (vec![1, 1, 1], 1)]
    {
        for name in [
            "transformer.layers.0.self_attn.in_proj_weight",
            "depformer.layers.0.self_attn.in_proj_weight",
            "depformer.layers.0.self_attn.out_proj.weight",
            "out_norm.alpha",
            "emb.0.weight",
        ] {
            let mut weights = lm_weights(&repo);
            let split = name.replace("_weight", "s.").replace(".weight", "s.");
            weights.0.retain(|other, _| !other.starts_with(&split));
            weights.insert(name, Tensor::new(&shape, vec![0.0; count]));
            let problems = tensor_errors(load_lm(&file.tensors(&weights)));
            assert!(!problems.misshapen.is_empty(), "{name} {shape:?}");
        }
        for name in [
            "encoder.model.0.conv.conv.weight_g",
            "encoder.model.0.conv.conv.weight_v",
            "encoder_transformer.transformer.layers.0.self_attn.in_proj_weight",
            "quantizer.rvq_first.vq.layers.0._codebook.cluster_usage",
        ] {
            let mut weights = mimi_weights(&repo);
            weights.insert(name, Tensor::new(&shape, vec![0.0; count]));
            if let Some(base) = name.strip_suffix("_v") {
                weights.take(base);
                weights.insert(&format!("{base}_g"), Tensor::new(&shape, vec![0.0; count]));
            }
            tensor_errors(load_mimi(&file.tensors(&weights)));
        }
    }
    let mut hugging_face = Tensors::default();
    hugging_face.insert("encoder.layers.0.conv.weight", Tensor::new(&[], vec![0.0]));
    for part in ["q", "k", "v"] {
        let name = format!("encoder_transformer.layers.0.self_attn.{part}_proj.weight");
        hugging_face.insert(&name, Tensor::new(&[], vec![0.0]));
    }
    tensor_errors(load_mimi(&file.tensors(&hugging_face)));
}

#[test]
fn two_spellings_of_a_tensor_are_refused() {
    let (repo, file) = (TinyRepo::new(), File::new());
    let mut weights = lm_weights(&repo);
    let split = "transformer.layers.0.self_attn.in_projs.0.weight";
    let packed = weights.get(split).clone();
    weights.insert("transformer.layers.0.self_attn.in_proj_weight", packed);
    let problems = tensor_errors(load_lm(&file.tensors(&weights)));
    assert!(problems.unexpected.len() == 1 && problems.unexpected[0].contains(split));

    let mut weights = mimi_weights(&repo);
    let usage = "quantizer.rvq_first.vq.layers.0._codebook.cluster_usage";
    weights.insert(&usage.replace("usage", "size"), weights.get(usage).clone());
    let problems = tensor_errors(load_mimi(&file.tensors(&weights)));
    assert!(problems.unexpected.len() == 1 && problems.unexpected[0].contains(usage));
}

#[test]
fn integers_are_no_weights() {
    let file = File::new();
    let header =
        r#"{"text_linear.weight":{"dtype":"I64","shape":[50,16],"data_offsets":[0,6400]}}"#;
    let problems = tensor_errors(load_lm(&file.safetensors(header, &[0; 6400])));
    assert!(
        problems.misshapen[0].contains("text_linear.weight: expected F32, F16 or BF16, got I64")
    );
}

#[test]
fn values_must_be_finite() {
    let (repo, file) = (TinyRepo::new(), File::new());
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for (name, at) in [
            ("emb.1.weight", 5),
            ("out_norm.alpha", 0),
            ("depformer.layers.0.gating.1.linear_in.weight", 17),
        ] {
            let mut weights = lm_weights(&repo);
            weights.0.get_mut(name).unwrap().data[at] = value;
            let text = checkpoint_error(load_lm(&file.tensors(&weights)));
            assert!(text.contains(&format!("tensor {name}")) && text.contains("index"), "{text}");
        }
        let mut weights = mimi_weights(&repo);
        weights.0.get_mut("decoder.model.0.conv.conv.bias").unwrap().data[1] = value;
        let text = checkpoint_error(load_mimi(&file.tensors(&weights)));
        assert!(text.contains("tensor decoder.model.0.conv.conv.bias"), "{text}");
    }
}

#[test]
fn other_kinds_of_files_are_named() {
    let file = File::new();
    checkpoint_error(load_lm(&file.with(b"")));
    assert!(checkpoint_error(load_lm(&file.with(b"GGUF\x03\0\0\0"))).contains("GGUF"));
    let folder = file.folder.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    let error = load_lm(&folder).map(drop).unwrap_err();
    assert!(matches!(error, Error::Io { .. }) && error.to_string().contains("folder"), "{error}");
    let error = load_lm(&folder.join("none")).map(drop).unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }) && error.to_string().contains("none"));

    let one = |name: &str| {
        let mut tensors = Tensors::default();
        tensors.insert(name, Tensor::new(&[1], vec![0.0]));
        file.tensors(&tensors)
    };
    for (name, kind) in [
        ("llm.text_emb.weight", "MoshiVis"),
        ("text_linear.lora_A.weight", "LoRA"),
        ("model.layers.0.mlp.up_proj.weight", "transformers"),
    ] {
        let text = checkpoint_error(load_lm(&one(name)));
        assert!(text.contains(kind), "{name}: {text}");
    }
    let text = checkpoint_error(load_mimi(&one("encoder.init_conv1d.conv.conv.weight")));
    assert!(text.contains("MLX"), "{text}");
    tensor_errors(load_lm(&one("anything.else")));
}

#[test]
fn adapters_must_fit() {
    let (repo, file) = (TinyRepo::new(), File::new());
    let config = LmConfig::from_json("config.json", &config().to_string()).unwrap();
    let load = |path: PathBuf| {
        let options = LmOptions { lora: Some(SourceFile::on_disk(path)), ..LmOptions::default() };
        LanguageModel::load(&Scalar, &repo.file("model.safetensors"), &config, &options)
    };
    let adapter = |a: &[usize], b: &[usize], value: f32| {
        let mut tensors = Tensors::default();
        for (part, shape) in [("A", a), ("B", b)] {
            let data = vec![value; shape.iter().product()];
            let name = format!("text_linear.lora_{part}.weight");
            tensors.insert(&name, Tensor::new(shape, data));
        }
        tensors
    };
    assert!(load(file.tensors(&adapter(&[2, 16], &[50, 2], 0.1))).is_ok());
    for (a, b) in [
        (&[2, 15][..], &[50, 2][..]),
        (&[2, 16], &[50, 3]),
        (&[2, 16], &[49, 2]),
        (&[0, 16], &[50, 0]),
        (&[32], &[100]),
        (&[], &[]),
    ] {
        let problems = tensor_errors(load(file.tensors(&adapter(a, b, 0.1))));
        assert!(problems.misshapen.iter().any(|p| p.contains("text_linear.lora_A")), "{a:?} {b:?}");
    }
    let mut alone = adapter(&[2, 16], &[50, 2], 0.1);
    alone.take("text_linear.lora_B.weight");
    assert_eq!(tensor_errors(load(file.tensors(&alone))).missing.len(), 1);
    let lost = adapter(&[2, 16], &[50, 2], 0.1).renamed(|name| name.replace("text", "test"));
    assert_eq!(tensor_errors(load(file.tensors(&lost))).unexpected.len(), 2);
    let nan = load(file.tensors(&adapter(&[2, 16], &[50, 2], f32::NAN)));
    assert!(matches!(nan, Err(Error::Checkpoint { .. })));
}

#[test]
fn broken_tokenizers_are_refused() {
    let file = File::new();
    let path = file.path();
    let load = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        Tokenizer::load(&path)
    };
    checkpoint_error(load(b""));
    let mut dice = Dice(9);
    for len in [1, 2, 10, 100, 1000, 10_000] {
        for _ in 0..20 {
            let bytes: Vec<u8> = (0..len).map(|_| dice.next() as u8).collect();
            checkpoint_error(load(&bytes));
        }
    }
    let real = std::fs::read(golden("dialogue_repo/tokenizer.model")).unwrap();
    let (mut refused, mut cut) = (0, 0);
    for len in (0..real.len()).step_by(real.len() / 80) {
        cut += 1;
        match load(&real[..len]) {
            // A cut between two fields leaves a shorter model that is well-formed.
            Ok(tokenizer) => assert!(tokenizer.vocab_size() <= 50),
            result => {
                checkpoint_error(result);
                refused += 1;
            }
        }
    }
    assert!(refused > cut / 2, "{refused} of {cut}");
    for _ in 0..200 {
        let mut bytes = real.clone();
        let at = dice.below(bytes.len().min(2000));
        bytes[at] ^= 1 << dice.below(8);
        if let Ok(tokenizer) = load(&bytes) {
            let _ = tokenizer.encode("hello world");
        }
    }
    assert!(matches!(Tokenizer::load(&path.join("none")), Err(Error::Io { .. })));
    assert!(matches!(Tokenizer::load(&path.with_extension("x")), Err(Error::NotFound { .. })));
}
