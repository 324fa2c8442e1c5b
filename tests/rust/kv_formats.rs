//! Keys and values in every storage: what is kept, what it takes, and where it is refused.

use std::sync::Arc;

use moshi_core::exec::{Candle, Cpu, Executor, KeyStorage, Scalar};
use moshi_core::lm::WeightType;
use moshi_core::{
    Error, LoadObserver, LoadOptions, Memory, Model, NoObserver, Session, StepOutput,
};
use moshi_hub::HubOptions;

use crate::support::models::{CONTEXT, TinyRepo, greedy, sampled};
use crate::support::{assert_bits, audio};

const ALL: [KeyStorage; 3] = [KeyStorage::F32, KeyStorage::Bf16, KeyStorage::Q8];

fn options(kv_dtype: KeyStorage) -> LoadOptions {
    LoadOptions { kv_dtype: Some(kv_dtype), ..LoadOptions::default() }
}

fn load<E: Executor>(exec: &E, repo: &TinyRepo, kv_dtype: KeyStorage) -> Arc<Model> {
    let model = Model::from_repo(exec, &repo.open(), &options(kv_dtype), &NoObserver).unwrap();
    assert_eq!(model.info().kv_dtype, kv_dtype);
    model
}

fn steps(session: &mut Session, seed: u64, count: usize) -> Vec<StepOutput> {
    let frame = session.model().info().frame_samples;
    let pcm = audio(seed, count * frame);
    pcm.chunks_exact(frame).map(|frame| session.step(frame).unwrap()).collect()
}

fn snapshots_continue_bit_for_bit<E: Executor>(exec: &E) {
    let repo = TinyRepo::new();
    for kv_dtype in ALL {
        let model = load(exec, &repo, kv_dtype);
        for before in [0, 1, CONTEXT - 1, CONTEXT, 3 * CONTEXT + 1] {
            let mut session = sampled(&model, 9);
            steps(&mut session, 40, before);
            let blob = session.snapshot().unwrap();
            let mut restored = Session::restore(&model, &blob).unwrap();
            assert_eq!(restored.snapshot().unwrap(), blob, "{kv_dtype:?} after {before} steps");
            let expected = steps(&mut session, 41, 2 * CONTEXT);
            for (got, expected) in steps(&mut restored, 41, 2 * CONTEXT).iter().zip(&expected) {
                assert_eq!(got.tokens, expected.tokens, "{kv_dtype:?}");
                assert_bits(&got.pcm, &expected.pcm);
            }
        }
    }
}

#[test]
fn snapshots_continue_bit_for_bit_on_the_processor() {
    snapshots_continue_bit_for_bit(&Cpu::new(Some(1)).unwrap());
}

#[test]
fn snapshots_continue_bit_for_bit_in_the_reference() {
    snapshots_continue_bit_for_bit(&Scalar);
}

#[test]
fn sessions_move_between_storages() {
    let repo = TinyRepo::new();
    let exec = Cpu::new(Some(1)).unwrap();
    let [full, half, eight] = ALL.map(|kv_dtype| load(&exec, &repo, kv_dtype));
    let mut session = greedy(&eight);
    steps(&mut session, 50, 2 * CONTEXT);
    let blob = session.snapshot().unwrap();
    // All values of 8 bits are floats of 32.
    let mut wide = Session::restore(&full, &blob).unwrap();
    assert_eq!(wide.snapshot().unwrap(), blob);
    steps(&mut wide, 51, 3);
    let blob = wide.snapshot().unwrap();
    for model in [&half, &eight] {
        let mut narrow = Session::restore(model, &blob).unwrap();
        let rounded = narrow.snapshot().unwrap();
        assert_ne!(rounded, blob, "the past is rounded to the model's storage");
        let again = Session::restore(model, &rounded).unwrap();
        assert_eq!(again.snapshot().unwrap(), rounded, "once");
        steps(&mut narrow, 52, CONTEXT);
    }
}

#[test]
fn the_box_says_the_same_with_keys_in_eight_bits() {
    let repo = moshi_box::open_repo(None, &HubOptions::default()).unwrap();
    let speech = |exec: Option<&Cpu>, dtype, kv_dtype| {
        let options =
            LoadOptions { dtype: Some(dtype), kv_dtype: Some(kv_dtype), ..LoadOptions::default() };
        let model = match exec {
            Some(exec) => Model::from_repo(exec, &repo, &options, &NoObserver).unwrap(),
            None => Model::from_repo(&Scalar, &repo, &options, &NoObserver).unwrap(),
        };
        // It greets whoever is silent.
        let (frames, frame) = (if exec.is_some() { 45 } else { 6 }, model.info().frame_samples);
        let mut session = greedy(&model);
        let said: Vec<StepOutput> =
            (0..frames).map(|_| session.step(&vec![0.0; frame]).unwrap()).collect();
        let text: String = said.iter().map(|output| output.text.as_str()).collect();
        (said.into_iter().map(|output| output.tokens).collect::<Vec<_>>(), text)
    };
    let exec = Cpu::new(Some(1)).unwrap();
    let full = speech(Some(&exec), WeightType::F32, KeyStorage::F32);
    let eight = speech(Some(&exec), WeightType::F32, KeyStorage::Q8);
    assert_eq!(full.1.trim(), "Hi there! How can I help you?");
    assert_eq!(eight.1, full.1);
    assert_eq!(speech(Some(&exec), WeightType::Q8, KeyStorage::Q8).1, full.1);
    let reference = speech(None, WeightType::F32, KeyStorage::Q8);
    assert_eq!(reference.0, eight.0[..reference.0.len()], "the reference rounds the same way");
}

#[derive(Default)]
struct Announced(std::cell::Cell<Option<Memory>>);

impl LoadObserver for Announced {
    fn memory(&self, memory: &Memory) {
        self.0.set(Some(*memory));
    }
}

#[test]
fn the_memory_of_a_session_is_that_of_its_storage() {
    let repo = TinyRepo::new();
    let exec = Cpu::new(Some(1)).unwrap();
    let bytes = ALL.map(|kv_dtype| {
        let announced = Announced::default();
        Model::from_repo(&exec, &repo.open(), &options(kv_dtype), &announced).unwrap();
        let memory = announced.0.get().unwrap();
        assert_eq!(memory.language_model.kv_dtype, kv_dtype);
        let shown = memory.to_string();
        assert!(shown.contains(&format!("keys and values in {}", kv_dtype.name())), "{shown}");
        memory.session_bytes()
    });
    // Two layers of 16 slots, two heads of 8 channels: keys as they are, values padded to 16, two
    // scales.
    let rows = 2 * 16 * 2;
    assert_eq!(bytes[0] - bytes[1], rows * (8 + 16) * 2);
    assert_eq!(bytes[1] - bytes[2], rows * (8 + 16) - rows * 2 * 2);
}

#[test]
fn what_keeps_floats_refuses_fewer_bits_and_says_what_to_do() {
    let repo = TinyRepo::new();
    for kv_dtype in [KeyStorage::Bf16, KeyStorage::Q8] {
        let loaded =
            Model::from_repo(&Candle::cpu(), &repo.open(), &options(kv_dtype), &NoObserver);
        let error = loaded.err().unwrap();
        let text = error.to_string();
        assert!(matches!(error, Error::Device { .. }), "{text}");
        for words in [kv_dtype.name(), "f32", "kv_dtype at auto", "executor cpu"] {
            assert!(text.contains(words), "{text}");
        }
    }
    load(&Candle::cpu(), &repo, KeyStorage::F32);
    let model = repo.load(&Candle::cpu());
    assert_eq!(model.info().kv_dtype, KeyStorage::F32);
}

#[test]
fn what_is_usual_follows_the_weights_where_the_executor_can_choose() {
    let exec = Cpu::new(Some(1)).unwrap();
    for (dtype, usual) in [
        (WeightType::F32, KeyStorage::F32),
        (WeightType::Bf16, KeyStorage::Bf16),
        (WeightType::Q8, KeyStorage::Bf16),
        (WeightType::Q4, KeyStorage::Bf16),
    ] {
        assert_eq!(exec.key_storage(None, dtype.keys()).unwrap(), usual);
        assert_eq!(Scalar.key_storage(None, dtype.keys()).unwrap(), KeyStorage::F32);
    }
}
