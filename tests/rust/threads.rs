//! Nothing that is computed depends on the number of threads.

use std::sync::Arc;

use moshi_core::exec::{Cpu, Executor, KeyStorage};
use moshi_core::lm::WeightType;
use moshi_core::{LoadOptions, Model, NoObserver, Session, SessionOptions, StepOutput, step_batch};

use crate::support::audio;

const FRAMES: usize = 12;

fn model(threads: Option<usize>, dtype: WeightType, kv_dtype: KeyStorage) -> Arc<Model> {
    let repo = moshi_box::open_repo(None, &moshi_hub::HubOptions::default()).unwrap();
    let kv_dtype = Some(kv_dtype);
    let options = LoadOptions { dtype: Some(dtype), kv_dtype, ..LoadOptions::default() };
    let exec = Cpu::new(threads).unwrap();
    let model = Model::from_repo(&exec, &repo, &options, &NoObserver).unwrap();
    assert!(threads.is_none_or(|threads| threads == exec.threads()), "a number is a number");
    model
}

fn speech(threads: Option<usize>, dtype: WeightType, kv_dtype: KeyStorage) -> Vec<StepOutput> {
    let model = model(threads, dtype, kv_dtype);
    let options = SessionOptions { seed: Some(4), ..SessionOptions::default() };
    let mut session = Session::new(&model, &options).unwrap();
    let frame = model.info().frame_samples;
    let pcm = audio(7, FRAMES * frame);
    pcm.chunks_exact(frame).map(|frame| session.step(frame).unwrap()).collect()
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    for (dtype, keys) in [
        (WeightType::F32, KeyStorage::F32),
        (WeightType::Q8, KeyStorage::Bf16),
        (WeightType::Q8, KeyStorage::Q8),
    ] {
        let expected = speech(Some(1), dtype, keys);
        for threads in [Some(2), Some(3), Some(7), None] {
            assert!(speech(threads, dtype, keys) == expected, "{threads:?} {dtype:?} {keys:?}");
        }
    }
}

#[test]
fn sessions_of_a_batch_are_divided_among_threads_without_a_trace() {
    // One for some of the threads, one for each, and several groups for each.
    for count in [2, 3, 37] {
        let batch = |threads| {
            let model = model(Some(threads), WeightType::Bf16, KeyStorage::Bf16);
            let open = |seed| SessionOptions { seed: Some(seed), ..SessionOptions::default() };
            let mut sessions: Vec<Session> =
                (0..count).map(|seed| Session::new(&model, &open(seed)).unwrap()).collect();
            let mut sessions: Vec<&mut Session> = sessions.iter_mut().collect();
            let frame = model.info().frame_samples;
            let pcm = audio(9, (4 + sessions.len()) * frame);
            let mut steps = Vec::new();
            for step in 0..4 {
                let heard: Vec<&[f32]> =
                    pcm.chunks_exact(frame).skip(step).take(sessions.len()).collect();
                steps.extend(step_batch(&mut sessions, &heard).unwrap());
            }
            steps
        };
        let expected = batch(1);
        for threads in [2, 3] {
            assert!(batch(threads) == expected, "{count} sessions, {threads} threads");
        }
    }
}
