//! The command line, run in-process: exit codes and files.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use moshi_audio::{AudioReader, read_mono};
use moshi_cli::ChatRequest;
use moshi_core::checkpoint::TensorFile;
use safetensors::Dtype;
use serde_json::json;

use crate::support::models::{FRAME, TinyRepo};
use crate::support::tensors::{Tensor, Tensors};
use crate::support::{golden, repository};

fn run<I: AsRef<OsStr>>(args: impl IntoIterator<Item = I>) -> i32 {
    moshi_cli::main_from(arguments(args), None)
}

fn arguments<I: AsRef<OsStr>>(args: impl IntoIterator<Item = I>) -> Vec<OsString> {
    let program = OsString::from("moshi-rs");
    std::iter::once(program).chain(args.into_iter().map(|a| a.as_ref().to_owned())).collect()
}

/// Arguments of mixed kinds.
macro_rules! args {
    ($($arg:expr),+ $(,)?) => {
        [$(OsString::from($arg)),+]
    };
}

fn hello() -> PathBuf {
    repository("tests/audio/hello.wav")
}

fn channels(path: &Path) -> usize {
    AudioReader::open(path).unwrap().channels()
}

#[test]
fn help_and_bad_usage_have_their_codes() {
    assert_eq!(run(["--help"]), 0);
    assert_eq!(run(["--version"]), 0);
    assert_eq!(run(["run", "--help"]), 0);
    let nothing: [&str; 0] = [];
    assert_eq!(run(nothing), 2);
    assert_eq!(run(["sing"]), 2);
    assert_eq!(run(["verify"]), 2);
    assert_eq!(run(["run", "a.wav", "--revision", "r"]), 5, "the input is looked at first");
    assert_eq!(run(["run", "a.wav", "--model", "m", "--stereo"]), 2, "stereo needs an output");
    assert_eq!(run(["run", "a.wav", "--model", "m", "--pad=-1"]), 2);
    assert_eq!(run(["run", "a.wav", "--model", "m", "--device", "abacus"]), 2);
}

#[test]
fn an_adapter_of_the_command_line_takes_the_place_of_the_configs() {
    let repo = TinyRepo::new();
    repo.set("lora_name", json!("none.safetensors"));
    let mut adapter = Tensors::default();
    adapter.insert("text_linear.lora_A.weight", Tensor::new(&[2, 16], vec![0.1; 32]));
    adapter.insert("text_linear.lora_B.weight", Tensor::new(&[50, 2], vec![0.1; 100]));
    let path = repo.file("own.safetensors");
    adapter.write(&path, Dtype::F32);
    let opens = |given: &[&OsStr]| {
        let mut opens = None;
        let mut chat = |request: ChatRequest| {
            opens = Some(request.opener.unwrap().open().is_ok());
            0
        };
        let model = args!["chat", "--model", repo.path()];
        let given = model.iter().map(OsString::as_os_str).chain(given.iter().copied());
        moshi_cli::main_from(arguments(given), Some(&mut chat));
        opens.unwrap()
    };
    assert!(!opens(&[]));
    assert!(opens(&["--lora".as_ref(), path.as_os_str()]));
}

#[test]
fn chat_leaves_the_devices_to_its_caller() {
    let model = golden("dialogue_repo");
    let mut requests = Vec::new();
    let mut chat = |request: ChatRequest| {
        requests.push(request);
        7
    };
    let listing = arguments(args!["chat", "--list-devices"]);
    assert_eq!(moshi_cli::main_from(listing, Some(&mut chat)), 7);
    let talking = args!["chat", "--model", &model, "--input-device", "usb", "--seed", "3"];
    assert_eq!(moshi_cli::main_from(arguments(talking), Some(&mut chat)), 7);

    let [listing, talking] = &requests[..] else { panic!("{requests:?}") };
    assert!(listing.opener.is_none());
    assert_eq!(talking.input_device.as_deref(), Some("usb"));
    assert_eq!(talking.output_device, None);
    let (model, session) = talking.opener.as_ref().unwrap().open().unwrap();
    assert_eq!(model.info().frame_samples, 1920);
    assert_eq!(session.seed(), 3);
}

#[test]
fn chat_needs_devices() {
    assert_eq!(run(["chat", "--model", "m"]), 2, "nobody has the devices");
    let mut chat = |_: ChatRequest| panic!("bad usage is not passed on");
    let bad = ["chat", "--list-devices", "--model", "m"];
    assert_eq!(moshi_cli::main_from(arguments(bad), Some(&mut chat)), 2);
}

#[test]
fn verify_passes_and_fails() {
    assert_eq!(run(args!["verify", golden("stt"), golden("kv_repeat")]), 0);
    assert_eq!(run(args!["verify", golden("stt"), "--executor", "candle"]), 0);
    assert_eq!(run(args!["verify", golden("no_such_case")]), 1);

    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden("stt")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let expected = folder.path().join("expected.safetensors");
    let mut bytes = std::fs::read(&expected).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 0x55;
    std::fs::write(&expected, bytes).unwrap();
    assert_eq!(run(args!["verify", golden("kv_repeat"), folder.path()]), 1);
}

#[test]
fn failures_have_their_codes() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.wav");
    let model = golden("dialogue_repo");
    assert_eq!(run(args!["run", hello(), "--model", folder.path().join("none")]), 3);
    assert_eq!(run(args!["info", folder.path()]), 3, "an empty folder");
    assert_eq!(run(args!["encode", hello(), "--model", folder.path(), "-o", &out]), 3);

    let config = folder.path().join("config.json");
    std::fs::write(&config, "{\"dim\": \"wide\"}").unwrap();
    assert_eq!(run(args!["info", folder.path()]), 2, "a bad config");

    let noise = folder.path().join("noise.wav");
    std::fs::write(&noise, [7; 999]).unwrap();
    assert_eq!(run(args!["run", &noise, "--model", &model, "-o", &out]), 5);
    assert_eq!(run(args!["encode", &noise, "--model", &model, "-o", &out]), 5);
    assert_eq!(run(args!["run", folder.path().join("no.wav"), "--model", &model]), 5);
    let hot = args!["run", hello(), "--model", &model, "--temperature=-3"];
    assert_eq!(run(hot), 5, "a setting out of range");
    let many = args!["encode", hello(), "--model", &model, "-o", &out, "--codebooks", "99"];
    assert_eq!(run(many), 5);
    let foreign = if cfg!(target_os = "macos") { "cuda" } else { "metal" };
    assert_eq!(run(args!["run", hello(), "--model", &model, "--device", foreign]), 4);
    assert_eq!(run(args!["verify", golden("stt"), "--device", foreign]), 4);
    let codec = args!["encode", hello(), "--model", &model, "-o", &out, "--device", foreign];
    assert_eq!(run(codec), 4);
    assert!(!out.exists(), "a failed command leaves no file");

    std::fs::write(folder.path().join("codes"), "text").unwrap();
    let decode = args!["decode", folder.path().join("codes"), "--model", &model, "-o", &out];
    assert_eq!(run(decode), 5);
}

#[test]
fn encode_then_decode_gives_audio_back() {
    let folder = tempfile::tempdir().unwrap();
    let (tokens, wav) = (folder.path().join("hello.safetensors"), folder.path().join("hello.wav"));
    let model = golden("dialogue_repo");
    assert_eq!(run(args!["encode", hello(), "--model", &model, "-o", &tokens]), 0);
    let file = TensorFile::open(&tokens).unwrap();
    let [codebooks, frames] = file.info("codes").unwrap().shape[..] else { panic!("two axes") };
    let samples = read_mono(&hello(), 24_000).unwrap().len();
    assert_eq!((codebooks, frames), (8, samples.div_ceil(1920)));
    assert!(file.read_i64("codes").unwrap().iter().all(|code| (0..64).contains(code)));

    for executor in ["scalar", "candle"] {
        let decode =
            args!["decode", &tokens, "--model", &model, "-o", &wav, "--executor", executor];
        assert_eq!(run(decode), 0);
        let pcm = read_mono(&wav, 24_000).unwrap();
        assert_eq!(pcm.len(), frames * 1920);
        assert!(pcm.iter().any(|v| v.abs() > 1e-3), "not silence");
        assert_eq!(
            (channels(&wav), AudioReader::open(&wav).unwrap().sample_rate_hz()),
            (1, 24_000)
        );
    }
    let codec = args!["encode", hello(), "--model", model.join("mimi.safetensors"), "-o", &tokens];
    assert_eq!(run(codec), 0, "a codec file with its config beside it");
}

#[test]
fn a_seed_repeats_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let model = golden("dialogue_repo");
    let wav = |name: &str| folder.path().join(name);
    for (name, seed) in [("one.wav", "5"), ("two.wav", "5"), ("three.wav", "6")] {
        let run_it = args!["run", hello(), "--model", &model, "-o", wav(name), "--seed", seed];
        assert_eq!(run(run_it), 0);
    }
    let read = |name: &str| std::fs::read(wav(name)).unwrap();
    assert!(read("one.wav").len() > 10_000);
    assert!(read("one.wav") == read("two.wav"), "equal seeds");
    assert!(read("one.wav") != read("three.wav"), "other seeds");
    assert_eq!(channels(&wav("one.wav")), 1);

    let stereo = args![
        "run",
        hello(),
        "--model",
        &model,
        "-o",
        wav("stereo.wav"),
        "--seed",
        "5",
        "--stereo",
        "--json",
        "--pad",
        "0.5",
    ];
    assert_eq!(run(stereo), 0);
    assert_eq!(channels(&wav("stereo.wav")), 2);
    let quiet = args!["run", hello(), "--model", &model, "--temperature", "0", "--dtype", "bf16"];
    assert_eq!(run(quiet), 0, "no output file is needed");
}

#[test]
fn info_describes_any_folder() {
    let tiny = TinyRepo::new();
    assert_eq!(FRAME, 4);
    for folder in [golden("dialogue_repo"), tiny.path().into(), tiny.file("config.json")] {
        assert_eq!(run(args!["info", "--json", &folder]), 0);
        assert_eq!(run(args!["info", &folder]), 0);
    }
}
