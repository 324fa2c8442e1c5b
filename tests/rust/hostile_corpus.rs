//! A corpus of hostile files, each of which takes the place of one in a small model that loads:
//! every one ends in its typed error, which names the file and the culprit in it.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use moshi_core::checkpoint::Repo;
use moshi_core::exec::Scalar;
use moshi_core::{Error, LoadOptions, Model, NoObserver};
use safetensors::Dtype;
use serde_json::{Map, Value, json};

use crate::support::gguf::{self, Gguf};
use crate::support::models::{TinyRepo, config, mimi_config};
use crate::support::repository;
use crate::support::tensors::{Tensor, Tensors};

/// The error that a file must end in.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ends {
    Checkpoint,
    Tensors,
    Config,
    ConfigFile,
}

struct Hostile {
    file: &'static str,
    bytes: Vec<u8>,
    ends: Ends,
    words: String,
}

/// Makes a good file a hostile one.
type Change<T> = fn(&mut T);
/// Names and shapes.
type Shapes<'a> = &'a [(&'a str, &'a [usize])];

const GGUF: &str = "model.gguf";
const WEIGHTS: &str = "model.safetensors";
const CODEC: &str = "mimi.safetensors";
const ADAPTER: &str = "adapter.safetensors";
const CONFIG: &str = "config.json";
/// Read where there is no [`CONFIG`].
const TOML: &str = "config.toml";
const CODEC_CONFIG: &str = "mimi_config.json";

/// The whole corpus. It grows by a line for every file that ever got through.
fn corpus() -> Vec<Hostile> {
    let repo = TinyRepo::new();
    [gguf(&repo), safetensors(&repo), adapters(), configs()].into_iter().flatten().collect()
}

#[test]
fn every_hostile_file_ends_in_its_typed_error() {
    let corpus = corpus();
    let contents: HashSet<_> = corpus.iter().map(|h| (h.file, h.bytes.as_slice())).collect();
    assert_eq!(contents.len(), corpus.len(), "every file counts once");
    let mut files_by_name: BTreeMap<&str, usize> = BTreeMap::new();
    let mut astray = Vec::new();
    for hostile in &corpus {
        let Hostile { file, bytes, ends, words } = hostile;
        *files_by_name.entry(file).or_default() += 1;
        let repo = TinyRepo::new();
        std::fs::write(repo.file(file), bytes).unwrap();
        match *file {
            GGUF => repo.set("moshi_name", json!(GGUF)),
            ADAPTER => repo.set("lora_name", json!(ADAPTER)),
            TOML => std::fs::remove_file(repo.file(CONFIG)).unwrap(),
            _ => {}
        }
        let loaded = Repo::open(repo.path()).and_then(|repo| {
            Model::from_repo(&Scalar, &repo, &LoadOptions::default(), &NoObserver)
        });
        let (kind, text) = match &loaded {
            Ok(_) => (None, "it loads".into()),
            Err(error) => (kind(error), error.to_string()),
        };
        // Wrong tensors of an adapter are listed with those of the model that it is for.
        let named = if *ends == Ends::Tensors && *file == ADAPTER { WEIGHTS } else { file };
        let one_line = text.len() < 20_000 && !text.contains('\n');
        let code = exit_code(repo.path());
        let expected_code = if matches!(ends, Ends::Config | Ends::ConfigFile) { 2 } else { 3 };
        let named = text.contains(named) && text.contains(words);
        if kind != Some(*ends) || !named || !one_line || code != expected_code {
            astray.push(format!("{file}: expected {ends:?}, {words:?}; got {code}, {text}"));
        }
    }
    assert!(astray.is_empty(), "{astray:#?}");
    for (file, at_least) in [(GGUF, 15), (WEIGHTS, 15), (ADAPTER, 10), (CONFIG, 10)] {
        assert!(files_by_name[file] >= at_least, "{file}: {files_by_name:?}");
    }
    assert!(corpus.len() >= 50, "{}", corpus.len());
}

fn kind(error: &Error) -> Option<Ends> {
    Some(match error {
        Error::Checkpoint { .. } => Ends::Checkpoint,
        Error::Tensors { .. } => Ends::Tensors,
        Error::Config { .. } => Ends::Config,
        Error::ConfigFile { .. } => Ends::ConfigFile,
        _ => return None,
    })
}

fn exit_code(model: &Path) -> i32 {
    let audio = repository("tests/audio/hello.wav");
    let args = ["moshi-rs".as_ref(), "run".as_ref(), audio.as_os_str(), "--model".as_ref()];
    moshi_cli::main_from(
        args.into_iter().chain([model.as_os_str()]).map(std::ffi::OsStr::to_owned).collect(),
        None,
    )
}

fn gguf(repo: &TinyRepo) -> Vec<Hostile> {
    let weights = Tensors::read(&repo.file(WEIGHTS));
    let valid = || {
        let mut file = Gguf::of(&weights, |_, _| gguf::Kind::F32);
        file.metadata = vec![
            ("general.alignment".into(), gguf::Value::U32(32)),
            ("general.name".into(), gguf::Value::Text("small")),
        ];
        file
    };
    let first = weights.0.keys().next().unwrap();
    let mut all = Vec::new();
    let mut add = |ends, words: &str, bytes| {
        let words = words.replace("FIRST", first);
        all.push(Hostile { file: GGUF, bytes, ends, words });
    };
    let cases: [(&str, Change<Gguf>); 19] = [
        ("version 1", |f| f.version = 1),
        ("version 77", |f| f.version = 77),
        ("big-endian", |f| f.version = 3u32.swap_bytes()),
        ("18446744073709551615 tensors do not fit", |f| f.tensor_count = Some(u64::MAX)),
        ("FIRST begins at offset 8", |f| f.tensors[0].offset = Some(8)),
        ("FIRST has 1024 bytes from offset", |f| f.tensors[0].offset = Some(1 << 40)),
        ("FIRST has 1024 bytes from offset 18446744073709551584", |f| {
            f.tensors[0].offset = Some(u64::MAX - 31);
        }),
        ("overlap", |f| f.tensors[1].offset = Some(0)),
        ("two tensors are called FIRST", |f| {
            f.tensors[1].name = f.tensors[0].name.clone();
        }),
        ("two metadata entries are called general.name", |f| {
            f.metadata[0].0 = "general.name".into();
        }),
        ("FIRST is stored as Q6_K", |f| f.tensors[0].kind = 14),
        ("FIRST is stored as type 99", |f| f.tensors[0].kind = 99),
        ("FIRST has the shape [32, 8], whose rows", |f| f.tensors[0].kind = 8),
        ("FIRST has 5 axes", |f| {
            f.tensors[0].shape = vec![1; 5];
        }),
        ("FIRST has the impossible shape", |f| {
            f.tensors[0].shape = vec![1 << 30, 1 << 30, 1 << 30];
        }),
        ("FIRST has the impossible shape [4611686018427387904, 0]", |f| {
            f.tensors[0].shape = vec![1 << 62, 0];
        }),
        ("general.alignment is 3;", |f| f.metadata[0].1 = gguf::Value::U32(3)),
        ("general.alignment is not", |f| f.metadata[0].1 = gguf::Value::Text("32")),
        ("\"depformer\\n\\u{1b}[2J\" has control characters", |f| {
            f.tensors[0].name = "depformer\n\u{1b}[2J".into();
        }),
    ];
    for (words, change) in cases {
        let mut file = valid();
        change(&mut file);
        add(Ends::Checkpoint, words, file.bytes());
    }
    let whole = valid().bytes();
    add(Ends::Checkpoint, "truncated download", whole[..30].to_vec());
    add(Ends::Checkpoint, "transformer.layers.1.self_attn", whole[..whole.len() - 64].to_vec());
    let mut nested = b"GGUF\x03\0\0\0".to_vec();
    nested.extend([0u64, 1, 1].iter().flat_map(|n| n.to_le_bytes()));
    nested.push(b'k');
    nested.extend(9u32.to_le_bytes());
    for _ in 0..9 {
        nested.extend(9u32.to_le_bytes());
        nested.extend(1u64.to_le_bytes());
    }
    add(Ends::Checkpoint, "metadata k nests lists too deeply", nested);
    let mut fewer = valid();
    fewer.tensors.remove(0);
    add(Ends::Tensors, "1 missing: FIRST [32, 8]", fewer.bytes());
    let mut infinite = valid();
    infinite.tensors[0].bytes[..4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    add(Ends::Checkpoint, "FIRST has the value inf at index 0", infinite.bytes());
    all
}

/// The header of a safetensors file and what follows it.
fn parts(file: &[u8]) -> (Map<String, Value>, Vec<u8>) {
    let header_len = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let (header, body) = file[8..].split_at(header_len);
    (serde_json::from_slice(header).unwrap(), body.to_vec())
}

fn joined(header: &[u8], body: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, body].concat()
}

fn saved(tensors: &Tensors) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(WEIGHTS);
    tensors.write(&path, Dtype::F32);
    std::fs::read(path).unwrap()
}

/// The first tensor that does not end within `body_bytes`, in the order of the file.
fn first_beyond(header: &Map<String, Value>, body_bytes: usize) -> &str {
    let end = |name: &&String| header[*name]["data_offsets"][1].as_u64().unwrap_or(0) as usize;
    let beyond = header.keys().filter(|name| end(name) > body_bytes);
    beyond.min_by_key(end).unwrap()
}

fn safetensors(repo: &TinyRepo) -> Vec<Hostile> {
    let whole = std::fs::read(repo.file(WEIGHTS)).unwrap();
    let (header, body) = parts(&whole);
    let mut all = Vec::new();
    let mut add = |ends, words: &str, bytes| {
        all.push(Hostile { file: WEIGHTS, bytes, ends, words: words.into() });
    };
    add(Ends::Checkpoint, "the file has 0 bytes: truncated download?", vec![]);
    add(Ends::Checkpoint, "the file has 7 bytes: truncated download?", whole[..7].to_vec());
    add(Ends::Checkpoint, "its header has", whole[..100].to_vec());
    add(Ends::Checkpoint, "18446744073709551615 bytes is too long", vec![0xff; 64]);
    add(Ends::Checkpoint, "its header: expected value", joined(b"weights", &[]));
    add(Ends::Checkpoint, "its header: ", joined(b"{\"\xff\": 1}", &[]));
    add(Ends::Checkpoint, "recursion limit", joined("{\"a\":[".repeat(9999).as_bytes(), &[]));
    for kept in [body.len() - 1, body.len() / 3, 0] {
        let words = format!("tensor {} ends at offset", first_beyond(&header, kept));
        add(Ends::Checkpoint, &words, whole[..whole.len() - body.len() + kept].to_vec());
    }
    add(Ends::Checkpoint, "the header describes", [&whole[..], &[0]].concat());
    // A tensor of 50 rows of 16, and changes of what is said about it.
    let name = "text_linear.weight";
    let offset = header[name]["data_offsets"][0].as_u64().unwrap();
    for (field, value, words) in [
        ("dtype", json!("F33"), "unknown variant `F33`".to_owned()),
        ("dtype", json!("F64"), format!("tensor {name} is F64 [50, 16], which")),
        ("shape", json!([50, -16]), "-16".into()),
        ("shape", json!([50, 17]), format!("tensor {name} is F32 [50, 17], which")),
        ("shape", json!([1 << 30, 1 << 30, 16]), format!("tensor {name} has the impossible")),
        ("shape", json!([1u64 << 63, 0]), format!("tensor {name} has the impossible")),
        ("data_offsets", json!([offset + 8, offset + 3208]), "begins at offset".into()),
        ("data_offsets", json!([offset, offset + 6400]), "which does not take".into()),
        ("data_offsets", json!([offset, offset - 8]), "which does not take".into()),
        ("data_offsets", json!([offset, u64::MAX]), "which does not take".into()),
    ] {
        let mut lying = header.clone();
        lying[name][field] = value;
        let bytes = joined(Value::Object(lying).to_string().as_bytes(), &body);
        add(Ends::Checkpoint, &words, bytes);
    }
    // Sizes whose sum with the length of the header is that of the file again, after an overflow.
    let sizes = [1u64 << 61; 7].into_iter().chain([(1 << 61) - 1024]);
    let mut at = 0u64;
    let circle: Map<String, Value> = (0..8)
        .zip(sizes)
        .map(|(i, size)| {
            let (from, to) = (at, at + size);
            at = to;
            let shape = json!([1 << 30, size >> 30]);
            (i.to_string(), json!({"dtype": "U8", "shape": shape, "data_offsets": [from, to]}))
        })
        .collect();
    let text = Value::Object(circle).to_string();
    add(Ends::Checkpoint, "impossible shape", joined(text.as_bytes(), &[]));
    let extra = |name: &str| {
        let mut more = header.clone();
        let end = body.len();
        more.insert(name.into(), json!({"dtype": "U8", "shape": [0], "data_offsets": [end, end]}));
        joined(Value::Object(more).to_string().as_bytes(), &body)
    };
    add(Ends::Checkpoint, "\"a\\rb\" has control characters", extra("a\rb"));
    add(Ends::Checkpoint, "a tensor name has 5000 bytes", extra(&"n".repeat(5000)));
    add(Ends::Tensors, "1 unexpected: surprise", extra("surprise"));
    let many: Map<String, Value> = (0..70_000)
        .map(|i| (i.to_string(), json!({"dtype": "U8", "shape": [0], "data_offsets": [0, 0]})))
        .collect();
    let many = Value::Object(many).to_string();
    add(Ends::Checkpoint, "it has 70000 tensors; at most", joined(many.as_bytes(), &[]));

    let ones = |shape: &[usize]| Tensor::new(shape, vec![1.0; shape.iter().product()]);
    let weights = Tensors::read(&repo.file(WEIGHTS));
    let cases: [(Ends, &str, Change<Tensors>); 5] = [
        (Ends::Tensors, "1 missing: out_norm.alpha [1, 1, 16]", |w| drop(w.take("out_norm.alpha"))),
        (Ends::Checkpoint, "tensor emb.1.weight has the value NaN at index 5", |w| {
            w.0.get_mut("emb.1.weight").unwrap().data[5] = f32::NAN;
        }),
        (Ends::Tensors, "another spelling of transformer.layers.0.self_attn.in_projs.0", |w| {
            let packed = w.get("transformer.layers.0.self_attn.in_projs.0.weight").clone();
            w.insert("transformer.layers.0.self_attn.in_proj_weight", packed);
        }),
        (Ends::Tensors, "text_linear.weight_scb: does not fit text_linear.weight", |w| {
            w.insert("text_linear.weight_scb", Tensor::new(&[50], vec![1.0; 50]));
        }),
        (
            Ends::Tensors,
            "2 unexpected: transformer.layers.0.cross_attention.in_proj_weight_kv",
            |w| {
                for part in ["q", "kv"] {
                    let name =
                        format!("transformer.layers.0.cross_attention.in_proj_weight_{part}");
                    w.insert(&name, Tensor::new(&[], vec![1.0]));
                }
            },
        ),
    ];
    for (ends, words, change) in cases {
        let mut changed = weights.clone();
        change(&mut changed);
        add(ends, words, saved(&changed));
    }
    for (name, kind) in [
        ("llm.text_emb.weight", "MoshiVis"),
        ("audio_linears.0.weight", "MoshiVis"),
        ("model.layers.0.mlp.up_proj.weight", "take the `-pytorch-` repository"),
        ("decoder.model.embed_tokens.weight", "take the `-pytorch-` repository"),
        ("codec_model.quantizer.layers.0.weight", "take the `-pytorch-` repository"),
    ] {
        let mut foreign = Tensors::default();
        foreign.insert(name, ones(&[1]));
        add(Ends::Checkpoint, kind, saved(&foreign));
    }
    let codec = Tensors::read(&repo.file(CODEC));
    add(Ends::Tensors, "unexpected: decoder.model.0.conv.conv.bias", saved(&codec));
    let mut add = |ends, words: &str, bytes| {
        all.push(Hostile { file: CODEC, bytes, ends, words: words.into() });
    };
    let mut lacking = codec.clone();
    lacking.take("downsample.conv.conv.conv.weight");
    add(Ends::Tensors, "1 missing: downsample.conv.conv.conv.weight [8, 8, 4]", saved(&lacking));
    let mut infinite = codec.clone();
    infinite.0.get_mut("decoder.model.0.conv.conv.bias").unwrap().data[1] = f32::INFINITY;
    let words = "tensor decoder.model.0.conv.conv.bias has the value inf at index 1";
    add(Ends::Checkpoint, words, saved(&infinite));
    let mut empty = Tensors::default();
    empty.insert("encoder.layers.0.conv.weight", ones(&[4, 1, 7]));
    for part in ["q", "k", "v"] {
        let name = format!("encoder_transformer.layers.0.self_attn.{part}_proj.weight");
        empty.insert(&name, ones(&[0, 8]));
    }
    add(Ends::Tensors, "encoder_transformer.layers.0.self_attn.k_proj.weight", saved(&empty));
    let mut bent = codec;
    bent.insert("upsample.convtr.convtr.convtr.weight", ones(&[8, 1, 3]));
    add(Ends::Tensors, "expected [8, 1, 4], got [8, 1, 3]", saved(&bent));
    all
}

/// Adapters for the weights of [`TinyRepo`]: text head [50, 16], two weight sets in depth.
fn adapters() -> Vec<Hostile> {
    let mut all = Vec::new();
    let mut add = |ends, words: &str, bytes| {
        all.push(Hostile { file: ADAPTER, bytes, ends, words: words.into() });
    };
    let of = |tensors: Shapes<'_>| {
        let mut all = Tensors::default();
        for &(name, shape) in tensors {
            all.insert(name, Tensor::new(shape, vec![0.1; shape.iter().product()]));
        }
        all
    };
    let (a, b) = ("text_linear.lora_A.weight", "text_linear.lora_B.weight");
    let misfit = "text_linear.lora_A.weight and text_linear.lora_B.weight (adapter): do not fit \
                  text_linear.weight [50, 16]";
    let packed = "depformer.layers.0.self_attn.in_proj.lora_A.weight";
    let split = "transformer.layers.0.self_attn.in_projs.0.lora_A.weight";
    let again = "transformer.layers.0.self_attn.in_proj.lora_A.weight";
    let cases: [(&str, Shapes<'_>); 11] = [
        (misfit, &[(a, &[2, 15]), (b, &[50, 2])]),
        (misfit, &[(a, &[2, 16]), (b, &[50, 3])]),
        (misfit, &[(a, &[2, 16]), (b, &[49, 2])]),
        (misfit, &[(a, &[0, 16]), (b, &[50, 0])]),
        (misfit, &[(a, &[32]), (b, &[100])]),
        (misfit, &[(a, &[]), (b, &[])]),
        ("1 missing: the partner of text_linear.lora_A.weight (adapter)", &[(a, &[2, 16])]),
        ("1 unexpected: nowhere.lora_A.weight (adapter)", &[("nowhere.lora_A.weight", &[2, 16])]),
        ("1 unexpected: text_linear.bias (adapter)", &[("text_linear.bias", &[50])]),
        ("3 rows do not divide by 2 weight sets", &[(packed, &[3, 8])]),
        ("another spelling for", &[(split, &[2, 16]), (again, &[2, 16])]),
    ];
    for (words, tensors) in cases {
        add(Ends::Tensors, words, saved(&of(tensors)));
    }
    let words = "emb.0.weight (adapter): expected floats [17, 16], got F32 [16, 17]";
    add(Ends::Tensors, words, saved(&of(&[("emb.0.weight", &[16, 17])])));
    let good = of(&[(a, &[2, 16]), (b, &[50, 2])]);
    let mut infinite = good.clone();
    infinite.0.get_mut(b).unwrap().data[3] = f32::INFINITY;
    add(Ends::Checkpoint, "tensor text_linear.weight has the value", saved(&infinite));
    let whole = saved(&good);
    let (header, body) = parts(&whole);
    let words = format!("tensor {} ends at offset", first_beyond(&header, body.len() - 1));
    add(Ends::Checkpoint, &words, whole[..whole.len() - 1].to_vec());
    let gguf = Gguf::of(&good, |_, _| gguf::Kind::F32).bytes();
    add(Ends::Checkpoint, "tensor text_linear.lora_B.weight has", gguf[..gguf.len() - 64].to_vec());
    all
}

fn configs() -> Vec<Hostile> {
    let mut all = Vec::new();
    let mut add = |file, ends, words: &str, bytes: &[u8]| {
        all.push(Hostile { file, bytes: bytes.to_vec(), ends, words: words.into() });
    };
    let conditions: Map<String, Value> = (0..600)
        .map(|i| (i.to_string(), json!({"type": "tensor", "tensor": {"dim": 4}})))
        .collect();
    let schedule: Vec<usize> = (0..500).collect();
    for (words, fields) in [
        ("field `dim` is 1099511627776: must be at most", json!({"dim": 1u64 << 40})),
        ("field `dim` is \"wide\": expected a whole number", json!({"dim": "wide"})),
        ("field `dim` is -16", json!({"dim": -16})),
        ("field `num_heads` is 3: the width 16 must be an even multiple", json!({"num_heads": 3})),
        ("field `num_layers` is 100000: must be at most 512", json!({"num_layers": 100_000})),
        ("field `context` is 0: must be at least 1", json!({"context": 0})),
        ("field `norm` is \"layer_norm\"", json!({"norm": "layer_norm"})),
        ("field `dep_q` is 5: exceeds n_q = 4", json!({"dep_q": 5})),
        ("field `delays` is [0]: needs n_q + 1 = 5 entries", json!({"delays": [0]})),
        ("field `card` is 0", json!({"card": 0})),
        ("field `fuser.sum` is \"nobody\"", json!({"fuser": {"sum": ["nobody"]}})),
        ("field `conditioners` is 600: must be at most", json!({"conditioners": conditions})),
        ("field `fuser.sum` is 9999: must name at most", json!({"fuser": {"sum": vec![""; 9999]}})),
        (
            "field `depformer_num_layers` is 400: times 500 weight sets must be at most",
            json!({
                "n_q": 500, "dep_q": 500, "delays": vec![0; 501], "depformer_num_layers": 400,
                "depformer_weights_per_step_schedule": schedule
            }),
        ),
        ("field `mimi_name` is \"../x\": must be a file inside", json!({"mimi_name": "../x"})),
        ("field `mimi_name` is \"a//x\": must be a file inside", json!({"mimi_name": "a//x"})),
        ("field `moshi_name` is 7: expected a text", json!({"moshi_name": 7})),
        ("field `depformer_num_heads` is [[[", json!({"depformer_num_heads": nested(100)})),
    ] {
        let mut whole = config();
        fields.as_object().unwrap().iter().for_each(|(k, v)| whole[k] = v.clone());
        add(CONFIG, Ends::Config, words, whole.to_string().as_bytes());
    }
    add(CONFIG, Ends::ConfigFile, "not valid JSON: EOF", b"{\"dim\": 16");
    add(CONFIG, Ends::ConfigFile, "not valid JSON: EOF", b"");
    add(CONFIG, Ends::ConfigFile, "not valid JSON: recursion limit", "[".repeat(9999).as_bytes());
    add(CONFIG, Ends::ConfigFile, "not UTF-8", b"{\"dim\": \"\xff\"}");
    add(CONFIG, Ends::ConfigFile, "expected an object", "[0]".as_bytes());
    add(CONFIG, Ends::ConfigFile, "5000000 bytes; at most", &vec![b' '; 5_000_000]);
    for (words, text) in [
        ("field `model` is absent", "dim = 16"),
        ("field `model.audio_vocab_size` is absent", "[model]\naudio_codebooks = 4"),
        ("field `model.context` is not finite", "[model]\ncontext = inf"),
        ("field `model.audio_codebooks` is 9999999", "[model]\naudio_codebooks = 9999999"),
        ("field `modules` is with 2 of them", "[modules.a.model]\n[modules.b.model]"),
    ] {
        add(TOML, Ends::Config, words, text.as_bytes());
    }
    add(TOML, Ends::ConfigFile, "not valid TOML in line 2", b"a = 1\nb = \n");
    add(TOML, Ends::ConfigFile, "not valid TOML in line 1", "a.".repeat(9999).as_bytes());
    let mut codec = mimi_config();
    codec["frame_rate"] = json!(13);
    add(CODEC_CONFIG, Ends::Config, "field `frame_rate` is 13", codec.to_string().as_bytes());
    let mut codec = mimi_config();
    codec["seanet"]["ratios"] = json!(vec![2; 9]);
    let words = "field `seanet.ratios` is [2, 2, 2, 2, 2, 2, 2, 2, 2]: needs 1 to 8";
    add(CODEC_CONFIG, Ends::Config, words, codec.to_string().as_bytes());
    add(CODEC_CONFIG, Ends::ConfigFile, "not valid JSON", b"]");
    all
}

fn nested(depth: usize) -> Value {
    (0..depth).fold(json!(1), |inner, _| json!([inner]))
}
