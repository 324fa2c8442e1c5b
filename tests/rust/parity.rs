//! Cases computed by the PyTorch original, stored under `tests/golden`.

use std::path::Path;

use moshi_cli::verify::{CaseReport, Measure, verify_case};
use moshi_core::checkpoint::TensorFile;
use moshi_core::config::MimiConfig;
use moshi_core::exec::{Cpu, Executor, Isa};
use moshi_core::mimi::{Mimi, MimiOptions};
use safetensors::Dtype;
use tempfile::TempDir;

use crate::support::tensors::{Tensor, Tensors};
use crate::support::{assert_close, golden};

/// Every case with its number of checks, inputs included, and of comparisons.
const CASES: [(&str, usize, usize); 12] = [
    ("dialogue_repo", 5, 4),
    ("guidance_masked", 3, 2),
    ("guidance_no_text", 3, 2),
    ("hibiki", 4, 3),
    ("hibiki_zero", 3, 2),
    ("kv_repeat", 4, 3),
    ("mimi", 11, 9),
    ("mimi_200hz", 6, 5),
    ("moshi", 8, 6),
    ("odd_shapes", 3, 2),
    ("stt", 4, 3),
    ("tts", 4, 3),
];

executors!(
    every_case_passes,
    tampered_values_fail,
    unknown_tensors_fail,
    empty_expectations_fail,
    small_codec_agrees_in_both_windows,
);

#[test]
fn every_case_folder_is_listed() {
    let mut folders: Vec<String> = std::fs::read_dir(golden(""))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("case.json").exists())
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    folders.sort();
    assert_eq!(folders, CASES.map(|(name, ..)| name.to_owned()));
}

fn every_case_passes<E: Executor>(exec: &E) {
    for (name, checks, comparisons) in CASES {
        let report = verify_case(exec, &golden(name)).unwrap();
        let failed: Vec<String> =
            report.checks.iter().filter(|c| !c.passed).map(ToString::to_string).collect();
        assert!(failed.is_empty() && report.passed(), "{name}: {failed:#?}");
        assert_eq!((report.checks.len(), compared(&report)), (checks, comparisons), "{name}");
    }
}

#[test]
fn every_case_passes_on_every_instruction_set() {
    for isa in Isa::available() {
        every_case_passes(&Cpu::with(isa, Some(2)).unwrap());
    }
}

fn compared(report: &CaseReport) -> usize {
    report.checks.iter().filter(|check| check.measure != Measure::Input).count()
}

/// Name, type, shape and bytes.
type Raw = (String, Dtype, Vec<usize>, Vec<u8>);

/// A copy of a case whose `expected.safetensors` has been changed.
fn tampered(case: &str, change: impl FnOnce(&mut Vec<Raw>)) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden(case)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let path = folder.path().join("expected.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> = file
        .tensors()
        .into_iter()
        .map(|(name, view)| (name, view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        .collect();
    change(&mut tensors);
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        let view = safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).unwrap();
        (name.as_str(), view)
    });
    safetensors::serialize_to_file(views, None, &path).unwrap();
    folder
}

/// Names of the failed checks.
fn failures<E: Executor>(exec: &E, folder: &Path) -> Vec<String> {
    let report = verify_case(exec, folder).unwrap();
    let failed = report.checks.iter().filter(|check| !check.passed);
    let failed: Vec<String> = failed.map(|check| check.tensor.clone()).collect();
    assert_eq!(report.passed(), failed.is_empty());
    failed
}

fn tampered_values_fail<E: Executor>(exec: &E) {
    for (tensor, value) in [
        ("tokens", 1i64.to_le_bytes().to_vec()),
        ("text_logits", 100f32.to_le_bytes().to_vec()),
        ("text_logits", f32::NAN.to_le_bytes().to_vec()),
        ("extra_heads", 0.9f32.to_le_bytes().to_vec()),
    ] {
        let folder = tampered("stt", |tensors| {
            let found = tensors.iter_mut().find(|(name, ..)| name == tensor).unwrap();
            assert_ne!(found.3[..value.len()], value);
            found.3[..value.len()].copy_from_slice(&value);
        });
        assert_eq!(failures(exec, folder.path()), [tensor]);
    }
    let folder = tampered("stt", |tensors| {
        let logits = tensors.iter_mut().find(|(name, ..)| name == "text_logits").unwrap();
        logits.2.swap(0, 1);
    });
    assert_eq!(failures(exec, folder.path()), ["text_logits"], "another shape");
    for value in [f32::NAN, f32::INFINITY, 100.0] {
        let folder = tampered("mimi_200hz", |tensors| {
            let audio = tensors.iter_mut().find(|(name, ..)| name == "decoded").unwrap();
            audio.3[..4].copy_from_slice(&value.to_le_bytes());
        });
        assert_eq!(failures(exec, folder.path()), ["decoded"], "{value}");
    }
}

fn unknown_tensors_fail<E: Executor>(exec: &E) {
    let folder = tampered("stt", |tensors| {
        tensors.push(("surprise".into(), Dtype::F32, vec![1], vec![0; 4]));
    });
    assert_eq!(failures(exec, folder.path()), ["surprise"]);
}

fn empty_expectations_fail<E: Executor>(exec: &E) {
    let folder = tampered("stt", |tensors| tensors.retain(|(name, ..)| name == "user_tokens"));
    assert_eq!(failures(exec, folder.path()), ["-"]);
    std::fs::remove_file(folder.path().join("expected.safetensors")).unwrap();
    assert!(verify_case(exec, folder.path()).is_err());
}

/// `[channel, frame]` to `[frame][channel]`.
fn time_major(tensor: &Tensor) -> Vec<f32> {
    let [_, channels, frames] = tensor.shape[..] else { panic!("{:?}", tensor.shape) };
    (0..frames).flat_map(|t| (0..channels).map(move |c| tensor.data[c * frames + t])).collect()
}

/// Codec, inputs and outputs in one file, with its config in the header.
fn small_codec_agrees_in_both_windows<E: Executor>(exec: &E) {
    let path = golden("mimi_tiny_golden.safetensors");
    let file = TensorFile::open(&path).unwrap();
    let config = MimiConfig::from_json("mimi_tiny_golden", &file.metadata()["config"]).unwrap();
    let mut weights = Tensors::default();
    for name in file.tensors().keys() {
        if let Some(stripped) = name.strip_prefix("weights.") {
            let shape = &file.tensors()[name].shape;
            weights.insert(stripped, Tensor::new(shape, file.read_f32(name).unwrap()));
        }
    }
    assert!(weights.0.len() > 100);
    let folder = tempfile::tempdir().unwrap();
    let weights_path = folder.path().join("mimi.safetensors");
    weights.write(&weights_path, Dtype::F32);

    let floats = |name: &str| {
        let shape = &file.tensors()[name].shape;
        Tensor::new(shape, file.read_f32(name).unwrap())
    };
    let codes = |name: &str| -> Vec<u32> {
        let values = file.read_i64(name).unwrap().into_iter().map(|v| v as f32).collect();
        let tensor = Tensor::new(&file.tensors()[name].shape, values);
        time_major(&tensor).into_iter().map(|v| v as u32).collect()
    };
    let pcm = floats("io.pcm").data;
    for (exact, kind) in [(false, "stream"), (true, "offline")] {
        let options = MimiOptions { exact, ..MimiOptions::default() };
        let mimi = Mimi::load(exec, &weights_path, &config, &options).unwrap();
        let (mut encoder, mut decoder) =
            (mimi.encoder_state().unwrap(), mimi.decoder_state().unwrap());
        let (mut heard, mut said) = (Vec::new(), Vec::new());
        let offline_codes = codes("io.codes_offline");
        for (frame, codes) in pcm.chunks_exact(1920).zip(offline_codes.chunks_exact(8)) {
            heard.extend(mimi.encode_step(&mut [&mut encoder], frame).unwrap());
            said.extend(mimi.decode_step(&mut [&mut decoder], codes).unwrap());
        }
        assert_eq!(heard, codes(&format!("io.codes_{kind}")));
        assert_close(&said, &floats(&format!("io.pcm_out_{kind}")).data, 1e-5);

        assert_eq!(mimi.encode(&pcm).unwrap(), offline_codes);
        let latent = mimi.encode_to_latent(&pcm).unwrap();
        assert_close(&latent, &time_major(&floats("io.latent_offline")), 2e-5);
        let latent = mimi.dequantise(&offline_codes, 24).unwrap();
        assert_close(&latent, &time_major(&floats("io.decoded_latent_offline")), 2e-5);
        let decoded = mimi.decode(&offline_codes, 24).unwrap();
        assert_close(&decoded, &floats("io.pcm_out_offline").data, 1e-5);
        assert_eq!(mimi.encode(&pcm[..6460]).unwrap(), codes("io.codes_partial_6460"));
    }
    assert_ne!(codes("io.codes_stream"), codes("io.codes_offline"), "the windows differ");
}
