//! A step in full flow asks the system for no memory: every kind of model, all slots, text
//! included.
//!
//! One thread computes everything here, so that its count is that of the step. Where several take
//! groups of streams, every group has memory of its own, used again as here; `moshi-rs bench` counts
//! what all threads ask for.

use moshi_core::exec::{Cpu, KeyStorage};
use moshi_core::lm::{LmOutput, LmSlot, NoHooks, Sampling, WeightType};
use moshi_core::{
    LoadOptions, Model, NoObserver, Session, SessionOptions, StepOutput, step_batch_into,
};

use crate::support::allocator::allocations;
use crate::support::audio;
use crate::support::models::{FRAME, TinyRepo, sampled};
use crate::support::scenarios::{ALL, Id, Scenario, user_tokens};

/// Steps before the first one that counts: delays are filled, and lists have grown.
const WARM_UP: usize = 40;
/// More than the windows of the small models; the box speaks in them.
const STEPS: usize = 100;

fn cpu() -> Cpu {
    Cpu::new(Some(1)).unwrap()
}

/// Allocations of the steps after the first ones, and the bytes of text in them.
fn in_full_flow(sessions: &mut [Session], pcm: &[f32]) -> (u64, usize) {
    let frame = sessions[0].model().info().frame_samples;
    let mut sessions: Vec<&mut Session> = sessions.iter_mut().collect();
    let mut outputs: Vec<StepOutput> = Vec::new();
    let (mut counted, mut text) = (0, 0);
    for (step, pcm) in pcm.chunks_exact(frame).cycle().take(WARM_UP + STEPS).enumerate() {
        let frames = vec![pcm; sessions.len()];
        let before = allocations();
        step_batch_into(&mut sessions, &frames, &mut outputs).unwrap();
        if step >= WARM_UP {
            counted += allocations() - before;
            text += outputs.iter().map(|output| output.text.len()).sum::<usize>();
            assert!(outputs.iter().all(|output| output.tokens.is_some()), "delays are over");
        }
    }
    (counted, text)
}

#[test]
fn conversations_with_the_box_allocate_nothing() {
    let repo = moshi_box::open_repo(None, &moshi_hub::HubOptions::default()).unwrap();
    for (dtype, kv_dtype) in [
        (WeightType::F32, None),
        (WeightType::Bf16, None),
        (WeightType::Q8, None),
        (WeightType::Q8, Some(KeyStorage::Q8)),
    ] {
        let options = LoadOptions { dtype: Some(dtype), kv_dtype, ..LoadOptions::default() };
        let model = Model::from_repo(&cpu(), &repo, &options, &NoObserver).unwrap();
        let session =
            |seed| Session::new(&model, &SessionOptions { seed: Some(seed), ..Default::default() });
        let mut sessions: Vec<Session> = (0..3).map(|seed| session(seed).unwrap()).collect();
        let pcm = audio(5, 20 * model.info().frame_samples);
        let (counted, _) = in_full_flow(&mut sessions, &pcm);
        assert_eq!(counted, 0, "{}, {kv_dtype:?}", dtype.name());
    }
}

#[test]
fn text_allocates_nothing() {
    let model = TinyRepo::new().load(&cpu());
    let (counted, text) = in_full_flow(&mut [sampled(&model, 1)], &audio(1, 97 * FRAME));
    assert!(text > 0, "the session talks");
    assert_eq!(counted, 0);
}

#[test]
fn language_models_of_every_kind_allocate_nothing() {
    for id in ALL {
        let scenario = Scenario::new(id);
        let lm = scenario.load(&cpu(), &scenario.weights(), safetensors::Dtype::F32);
        let guided = matches!(id, Id::B | Id::E);
        let streams =
            [scenario.stream(), if guided { scenario.guided() } else { scenario.stream() }];
        let mut states = streams.map(|stream| lm.new_state(&stream).unwrap());
        let sampling =
            Sampling { temperature: 0.8, text_temperature: 0.7, top_k: 5, top_k_text: 0 };
        let mut outputs: Vec<LmOutput> = Vec::new();
        for call in 0..WARM_UP + STEPS {
            let tokens = user_tokens(call);
            let [one, two] = &mut states;
            let (mut hooks, mut more) = (NoHooks, NoHooks);
            let slot = |state, seed, hooks| LmSlot {
                state,
                user_tokens: &tokens,
                sampling: &sampling,
                seed,
                hooks,
                trace: false,
            };
            let mut slots = [slot(one, 1, &mut hooks), slot(two, 2, &mut more)];
            let before = allocations();
            lm.step_into(&mut slots, &mut outputs, &mut ()).unwrap();
            let counted = allocations() - before;
            assert!(call < WARM_UP || counted == 0, "{id:?}: {counted} in step {call}");
        }
        assert!(outputs.iter().all(|output| output.row.is_some()), "{id:?}");
    }
}
