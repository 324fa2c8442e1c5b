//! GGUF files that lie: typed errors that name the culprit, never a panic or a huge allocation.

use std::path::PathBuf;

use moshi_core::Error;
use moshi_core::checkpoint::TensorFile;
use moshi_core::config::LmConfig;
use moshi_core::exec::{BlockFormat, Scalar};
use moshi_core::lm::{LanguageModel, LmOptions};
use tempfile::TempDir;

use crate::support::Dice;
use crate::support::gguf::{Gguf, Kind, Record, Value};
use crate::support::models::{TinyRepo, config};
use crate::support::tensors::{Tensor, Tensors};

fn written(bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn error_of(bytes: &[u8]) -> String {
    let (_folder, path) = written(bytes);
    match TensorFile::open(&path) {
        Err(Error::Checkpoint { path: named, reason }) => {
            assert_eq!(named, path);
            reason
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it opens"),
    }
}

/// Two small tensors with metadata of every kind.
fn valid() -> Gguf {
    let mut file = Gguf::new();
    file.metadata = vec![
        ("general.alignment".into(), Value::U32(32)),
        ("general.name".into(), Value::Text("small")),
        ("general.tags".into(), Value::Texts(vec!["a", "b"])),
    ];
    file.push("first", &Tensor::new(&[2, 32], vec![127.0; 64]), Kind::Blocks(BlockFormat::Q8_0));
    file.push("second", &Tensor::new(&[3], vec![1.0; 3]), Kind::F32);
    file
}

/// Bytes before the metadata: magic, version, two counts.
const FIXED: usize = 24;

#[test]
fn a_valid_file_opens_in_both_versions_and_with_any_alignment() {
    for (version, alignment) in [(3, 32), (2, 32), (3, 64), (3, 8)] {
        let mut file = valid();
        (file.version, file.alignment) = (version, alignment);
        file.metadata[0].1 = Value::U32(alignment as u32);
        let (_folder, path) = written(&file.bytes());
        let opened = TensorFile::open(&path).unwrap();
        assert_eq!(opened.read_f32("first").unwrap(), [127.0; 64]);
        assert_eq!(opened.read_f32("second").unwrap(), [1.0; 3]);
        assert_eq!(opened.metadata()["general.name"], "small");
    }
}

#[test]
fn every_truncation_is_refused() {
    let bytes = valid().bytes();
    // The file ends with padding that holds no value.
    let end = bytes.len() - (32 - 12);
    for len in 4..end {
        let reason = error_of(&bytes[..len]);
        assert!(reason.contains("GGUF"), "{len}: {reason}");
    }
    let (_folder, path) = written(&bytes[..end]);
    TensorFile::open(&path).unwrap();
}

#[test]
fn lying_files_are_refused() {
    type Change = fn(&mut Gguf);
    let cases: &[(&str, Change)] = &[
        ("version 1", |f| f.version = 1),
        ("version 4", |f| f.version = 4),
        ("big-endian", |f| f.version = 3u32.swap_bytes()),
        ("do not fit", |f| f.tensor_count = Some(u64::MAX)),
        ("do not fit", |f| f.tensor_count = Some(1 << 40)),
        ("a tensor name", |f| f.tensor_count = Some(1 << 3)),
        ("no multiple of 32", |f| f.tensors[1].offset = Some(69)),
        ("truncated", |f| f.tensors[1].offset = Some(1 << 20)),
        ("truncated", |f| f.tensors[1].offset = Some(u64::MAX - 31)),
        ("overlap", |f| f.tensors[1].offset = Some(32)),
        ("two tensors are called first", |f| f.tensors[1].name = "first".into()),
        ("two metadata entries", |f| f.metadata[2].0 = "general.name".into()),
        ("Q6_K", |f| f.tensors[0].kind = 14),
        ("Q2_K", |f| f.tensors[0].kind = 10),
        ("F64", |f| f.tensors[0].kind = 28),
        ("type 31", |f| f.tensors[0].kind = 31),
        ("type 4294967295", |f| f.tensors[0].kind = u32::MAX),
        ("no whole blocks of 32", |f| f.tensors[0].shape = vec![2, 31]),
        ("no whole blocks of 256", |f| {
            (f.tensors[0].kind, f.tensors[0].shape) = (12, vec![2, 32]);
        }),
        ("impossible shape", |f| f.tensors[1].shape = vec![1 << 40, 1 << 40]),
        ("impossible shape", |f| f.tensors[1].shape = vec![u64::MAX, 4]),
        ("impossible shape", |f| f.tensors[0].shape = vec![1 << 62, 32]),
        ("truncated", |f| f.tensors[1].shape = vec![1 << 30]),
        ("5 axes", |f| f.tensors[1].shape = vec![1, 1, 1, 1, 3]),
        ("one axis", |f| f.tensors[0].shape = vec![64]),
        ("general.alignment is 0", |f| f.metadata[0].1 = Value::U32(0)),
        ("general.alignment is 33", |f| f.metadata[0].1 = Value::U32(33)),
        ("general.alignment is 4294967295", |f| f.metadata[0].1 = Value::U32(u32::MAX)),
        ("not a whole number", |f| f.metadata[0].1 = Value::Text("32")),
    ];
    for (expected, change) in cases {
        let mut file = valid();
        change(&mut file);
        let reason = error_of(&file.bytes());
        assert!(reason.contains(expected), "expected {expected:?}: {reason}");
    }
}

#[test]
fn lying_metadata_is_refused() {
    let patched = |at: usize, bytes: &[u8]| {
        let mut file = valid().bytes();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        error_of(&file)
    };
    // Number of entries, then the first entry: length of its key, key, type.
    assert!(patched(16, &u64::MAX.to_le_bytes()).contains("metadata entries do not fit"));
    assert!(patched(FIXED, &u64::MAX.to_le_bytes()).contains("key"));
    assert!(patched(FIXED, &(1u64 << 40).to_le_bytes()).contains("key"));
    assert!(patched(FIXED + 8, &[0xff]).contains("not UTF-8"));
    let kind = FIXED + 8 + "general.alignment".len();
    assert!(patched(kind, &13u32.to_le_bytes()).contains("unknown type 13"));
    // A list of lists of lists.
    let mut deep = b"GGUF".to_vec();
    deep.extend(3u32.to_le_bytes());
    deep.extend(0u64.to_le_bytes());
    deep.extend(1u64.to_le_bytes());
    deep.extend(1u64.to_le_bytes());
    deep.extend(b"k");
    deep.extend(9u32.to_le_bytes());
    for _ in 0..50 {
        deep.extend(9u32.to_le_bytes());
        deep.extend(1u64.to_le_bytes());
    }
    assert!(error_of(&deep).contains("nests lists too deeply"));
    // A list whose length is a lie.
    let mut long = deep[..FIXED + 8 + 1 + 4].to_vec();
    long.extend(10u32.to_le_bytes());
    long.extend(u64::MAX.to_le_bytes());
    assert!(error_of(&long).contains("do not fit"));
}

#[test]
fn random_damage_never_panics() {
    let valid = valid().bytes();
    let mut dice = Dice(11);
    let mut refused = 0;
    for _ in 0..3000 {
        let mut bytes = valid.clone();
        for _ in 0..=dice.below(4) {
            let at = 4 + dice.below(bytes.len() - 4);
            bytes[at] = dice.next() as u8;
        }
        let (_folder, path) = written(&bytes);
        match TensorFile::open(&path) {
            Ok(file) => {
                for name in file.tensors().keys() {
                    let _ = file.read_f32(name);
                }
            }
            Err(Error::Checkpoint { .. }) => refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(refused > 500, "{refused}");
}

#[test]
fn blocks_with_scales_that_are_not_finite_are_refused() {
    let repo = TinyRepo::new();
    let mut wide = config();
    wide["dim"] = 32.into();
    let config = LmConfig::from_json("config.json", &wide.to_string()).unwrap();
    let widths = moshi_core::checkpoint::layout::GatedWidths { temporal: 88, depth: 16 };
    let expected = moshi_core::checkpoint::layout::language_model(&config, widths);
    let tensors: Tensors = crate::support::models::weights(&expected, &mut Dice(1));
    let path = repo.file("model.gguf");
    let load = |file: &Gguf| {
        file.write(&path);
        LanguageModel::load(&Scalar, &path, &config, &LmOptions::default()).map(drop)
    };
    let schedule = [0, 1];
    let mut file = Gguf::of(&tensors.candle(&schedule), |_, t| Kind::of(BlockFormat::Q8_0, t));
    load(&file).unwrap();
    for scale in [[0x00, 0x7c], [0x00, 0x7e]] {
        let is_head = |record: &&mut Record| record.name == "text_linear.weight";
        let record = file.tensors.iter_mut().find(is_head).unwrap();
        record.bytes[..2].copy_from_slice(&scale);
        let error = load(&file).unwrap_err().to_string();
        assert!(error.contains("text_linear.weight") && error.contains("not finite"), "{error}");
    }
}
