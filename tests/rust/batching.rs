//! A stream's results do not depend on who else is in its batch.

use std::sync::Arc;

use moshi_core::exec::Executor;
use moshi_core::lm::{
    CounterRng, LanguageModel, LmOutput, LmSlot, LmState, LmStreamOptions, NoHooks, Sampling,
    StepHooks, sample,
};
use moshi_core::{Error, Model, Session, SessionOptions, StepOutput, step_batch};
use proptest::prelude::*;
use safetensors::Dtype;

use crate::support::models::{FRAME, TinyRepo, greedy, sampled};
use crate::support::scenarios::{Id, Scenario, step, user_tokens};
use crate::support::{Dice, assert_same_as_alone, audio, property};

executors!(
    random_masks_and_resets_equal_single_runs,
    tokens_do_not_depend_on_batch_mates,
    seeds_decide_tokens,
    every_draw_has_its_own_number,
    guided_and_unguided_streams_mix,
    sessions_of_two_models_do_not_mix,
    frames_and_sessions_must_pair_up,
);

fn hot(model: &Arc<Model>, seed: u64) -> Session {
    let sampling = Sampling { temperature: 1.5, text_temperature: 2.0, top_k: 0, top_k_text: 40 };
    let options =
        SessionOptions { seed: Some(seed), sampling: Some(sampling), ..SessionOptions::default() };
    Session::new(model, &options).unwrap()
}

#[track_caller]
fn assert_output<E: Executor>(exec: &E, got: &StepOutput, expected: &StepOutput) {
    assert_eq!(got.tokens, expected.tokens);
    assert_eq!(got.user_codes, expected.user_codes);
    assert_eq!(got.text, expected.text);
    assert_same_as_alone(exec, &got.pcm, &expected.pcm);
}

fn three(model: &Arc<Model>) -> [Session; 3] {
    [greedy(model), sampled(model, 21), hot(model, 22)]
}

/// Some of three sessions in any order.
fn order(dice: &mut Dice) -> Vec<usize> {
    let mut order: Vec<usize> = (0..3).filter(|_| dice.below(3) > 0).collect();
    for i in (1..order.len()).rev() {
        order.swap(i, dice.below(i + 1));
    }
    order
}

fn random_masks_and_resets_equal_single_runs<E: Executor>(exec: &E) {
    let repo = TinyRepo::new();
    let model = repo.load(exec);
    property(8, &any::<u64>(), |seed| {
        let mut dice = Dice(seed);
        let (mut batched, mut single) = (three(&model), three(&model));
        let mut steps = 0;
        for round in 0..25 {
            for i in 0..3 {
                if dice.below(10) == 0 {
                    batched[i].reset().unwrap();
                    single[i].reset().unwrap();
                }
            }
            let order = order(&mut dice);
            let frames: Vec<Vec<f32>> =
                order.iter().map(|&i| audio(seed ^ (3 * round + i as u64), FRAME)).collect();
            let mut slots: Vec<Option<&mut Session>> = batched.iter_mut().map(Some).collect();
            let mut batch: Vec<&mut Session> =
                order.iter().map(|&i| slots[i].take().unwrap()).collect();
            let inputs: Vec<&[f32]> = frames.iter().map(Vec::as_slice).collect();
            let outputs = step_batch(&mut batch, &inputs).unwrap();
            assert_eq!(outputs.len(), order.len());
            for ((&i, frame), output) in order.iter().zip(&frames).zip(&outputs) {
                assert_output(exec, output, &single[i].step(frame).unwrap());
                steps += 1;
            }
        }
        assert!(steps > 20);
        for (batched, single) in batched.iter().zip(&single) {
            assert_eq!(batched.steps(), single.steps());
        }
    });
}

fn tokens_do_not_depend_on_batch_mates<E: Executor>(exec: &E) {
    let repo = TinyRepo::new();
    let model = repo.load(exec);
    let run = |mates: u64, place: usize| -> Vec<StepOutput> {
        let mut sessions = [sampled(&model, 5), hot(&model, mates), greedy(&model)];
        sessions.swap(0, place);
        let frame = |round: usize, i: usize| {
            let seed = if i == place { 900 } else { mates + i as u64 };
            audio(seed + 1000 * round as u64, FRAME)
        };
        (0..20)
            .map(|round| {
                let frames: Vec<Vec<f32>> = (0..3).map(|i| frame(round, i)).collect();
                let inputs: Vec<&[f32]> = frames.iter().map(Vec::as_slice).collect();
                let mut batch: Vec<&mut Session> = sessions.iter_mut().collect();
                step_batch(&mut batch, &inputs).unwrap().swap_remove(place)
            })
            .collect()
    };
    let expected = run(1, 0);
    for (mates, place) in [(2, 0), (3, 1), (4, 2)] {
        for (got, expected) in run(mates, place).iter().zip(&expected) {
            assert_output(exec, got, expected);
        }
    }
}

fn seeds_decide_tokens<E: Executor>(exec: &E) {
    let repo = TinyRepo::new();
    let model = repo.load(exec);
    let pcm = audio(6, 30 * FRAME);
    let run = |mut session: Session| -> Vec<Option<Vec<i64>>> {
        pcm.chunks_exact(FRAME).map(|frame| session.step(frame).unwrap().tokens).collect()
    };
    let first = run(hot(&model, 1));
    assert_eq!(first, run(hot(&model, 1)));
    assert_ne!(first, run(hot(&model, 2)));
    assert_ne!(first, run(hot(&model, 1 << 40 | 1)), "all bits of a seed count");
    assert_eq!(run(greedy(&model)), run(greedy(&model)));
    let chosen = || Session::new(&model, &SessionOptions::default()).unwrap();
    assert_ne!(chosen().seed(), chosen().seed(), "a session without a seed draws one");
}

/// A draw is a function of the logits and of seed, step and stream, as documented.
fn every_draw_has_its_own_number<E: Executor>(exec: &E) {
    let scenario = Scenario::new(Id::A);
    let lm = scenario.load(exec, &scenario.weights(), Dtype::F32);
    let mut state = lm.new_state(&LmStreamOptions::default()).unwrap();
    let sampling = Sampling { temperature: 1.3, text_temperature: 0.9, top_k: 11, top_k_text: 17 };
    let seed = 0xfeed_0123_4567_89ab;
    let rng = CounterRng::new(seed);
    let mut order = [0; 64];
    for call in 0..20 {
        let output = step(&lm, &mut state, call, (&sampling, seed), &mut NoHooks);
        let number = |stream| rng.uniform(call as u64, stream);
        let text = sample(&output.text_logits, 0.9, 17, number(0), &mut order);
        assert_eq!(output.text_token, text as i64, "text of call {call}");
        let logits = &output.trace.unwrap().depth_logits;
        assert_eq!(logits.len(), output.audio_tokens.len());
        for (k, (logits, token)) in (1..).zip(logits.iter().zip(&output.audio_tokens)) {
            assert_eq!(
                *token,
                sample(&logits[0], 1.3, 11, number(k), &mut order) as i64,
                "stream {k}"
            );
        }
    }
}

/// A language-model stream with its own hooks and draws.
struct Stream<E: Executor> {
    state: LmState<E>,
    hooks: Box<dyn StepHooks + Send>,
    sampling: Sampling,
    seed: u64,
}

fn streams<E: Executor>(scenario: &Scenario, lm: &LanguageModel<E>) -> Vec<Stream<E>> {
    let options: [LmStreamOptions; 3] = [scenario.stream(), scenario.guided(), scenario.stream()];
    let warm = Sampling { temperature: 0.8, text_temperature: 0.8, top_k: 10, top_k_text: 10 };
    options
        .iter()
        .zip([Sampling::greedy(), warm, warm])
        .zip(7..)
        .map(|((options, sampling), seed)| Stream {
            state: lm.new_state(options).unwrap(),
            hooks: scenario.hooks(),
            sampling,
            seed,
        })
        .collect()
}

fn lm_step<E: Executor>(
    lm: &LanguageModel<E>,
    streams: &mut [&mut Stream<E>],
    users: &[Vec<i64>],
) -> Vec<LmOutput> {
    let mut slots: Vec<LmSlot<'_, E>> = streams
        .iter_mut()
        .zip(users)
        .map(|(stream, user_tokens)| LmSlot {
            state: &mut stream.state,
            user_tokens,
            sampling: &stream.sampling,
            seed: stream.seed,
            hooks: &mut *stream.hooks,
            trace: false,
        })
        .collect();
    lm.step(&mut slots).unwrap()
}

fn guided_and_unguided_streams_mix<E: Executor>(exec: &E) {
    for id in [Id::B, Id::E] {
        let scenario = Scenario::new(id);
        let lm = scenario.load(exec, &scenario.weights(), Dtype::F32);
        let (mut batched, mut single) = (streams(&scenario, &lm), streams(&scenario, &lm));
        let mut dice = Dice(4);
        for round in 0..20 {
            let order = order(&mut dice);
            let users: Vec<Vec<i64>> = order.iter().map(|i| user_tokens(round + 5 * i)).collect();
            let mut slots: Vec<Option<&mut Stream<E>>> = batched.iter_mut().map(Some).collect();
            let mut batch: Vec<&mut Stream<E>> =
                order.iter().map(|&i| slots[i].take().unwrap()).collect();
            let outputs = lm_step(&lm, &mut batch, &users);
            for ((&i, user), output) in order.iter().zip(&users).zip(&outputs) {
                let alone = lm_step(&lm, &mut [&mut single[i]], std::slice::from_ref(user));
                assert_eq!(output.text_token, alone[0].text_token, "{id:?} stream {i}");
                assert_eq!(output.audio_tokens, alone[0].audio_tokens, "{id:?} stream {i}");
                assert_eq!(output.row, alone[0].row);
                assert_same_as_alone(exec, &output.text_logits, &alone[0].text_logits);
            }
        }
        assert!(batched.iter().all(|stream| stream.state.offset() > 5));
    }
}

fn sessions_of_two_models_do_not_mix<E: Executor>(exec: &E) {
    let repo = TinyRepo::new();
    let (mut one, mut other) = (sampled(&repo.load(exec), 1), sampled(&repo.load(exec), 1));
    let frame = audio(3, FRAME);
    let before = (one.snapshot().unwrap(), other.snapshot().unwrap());
    let result = step_batch(&mut [&mut one, &mut other], &[&frame, &frame]);
    assert!(matches!(result, Err(Error::Session { .. })), "{result:?}");
    assert_eq!((one.snapshot().unwrap(), other.snapshot().unwrap()), before);
    assert_output(exec, &one.step(&frame).unwrap(), &other.step(&frame).unwrap());
}

fn frames_and_sessions_must_pair_up<E: Executor>(exec: &E) {
    let repo = TinyRepo::new();
    let model = repo.load(exec);
    let (mut one, mut other) = (sampled(&model, 1), sampled(&model, 2));
    let good = audio(3, FRAME);
    let before = (one.snapshot().unwrap(), other.snapshot().unwrap());
    assert!(step_batch(&mut [], &[]).unwrap().is_empty());
    let result = step_batch(&mut [&mut one, &mut other], &[&good]);
    assert!(matches!(result, Err(Error::Input { what: "frames", .. })), "{result:?}");
    for bad in [vec![0.0; FRAME - 1], vec![f32::NAN; FRAME], Vec::new()] {
        let result = step_batch(&mut [&mut one, &mut other], &[&good, &bad]);
        assert!(matches!(result, Err(Error::Input { what: "frame", .. })), "{result:?}");
    }
    assert_eq!((one.snapshot().unwrap(), other.snapshot().unwrap()), before);
}
