//! Nothing that is computed depends on the number of threads.

use moshi_core::exec::{Cpu, Executor, KeyStorage};
use moshi_core::lm::WeightType;
use moshi_core::{LoadOptions, Model, NoObserver, Session, SessionOptions, StepOutput};

use crate::support::audio;

const FRAMES: usize = 12;

fn speech(threads: Option<usize>, dtype: WeightType, kv_dtype: KeyStorage) -> Vec<StepOutput> {
    let repo = moshi_box::open_repo(None, &moshi_hub::HubOptions::default()).unwrap();
    let kv_dtype = Some(kv_dtype);
    let options = LoadOptions { dtype: Some(dtype), kv_dtype, ..LoadOptions::default() };
    let exec = Cpu::new(threads).unwrap();
    let model = Model::from_repo(&exec, &repo, &options, &NoObserver).unwrap();
    assert!(threads.is_none_or(|threads| threads == exec.threads()), "a number is a number");
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
