//! A restored stream goes on as if nothing had happened.

use std::sync::Arc;

use moshi_core::checkpoint::Repo;
use moshi_core::exec::{Candle, Executor, Scalar};
use moshi_core::lm::{LmOutput, LmState, LmStreamOptions, NoHooks, Sampling};
use moshi_core::mimi::{Mimi, MimiOptions};
use moshi_core::snapshot::{Reader, Writer};
use moshi_core::{LoadOptions, Model, NoObserver, Session, SessionOptions, StepOutput};
use proptest::prelude::*;
use safetensors::Dtype;

use crate::support::models::{CONTEXT, FRAME, TinyRepo, greedy, sampled};
use crate::support::scenarios::{Id, Scenario, step};
use crate::support::{assert_bits, assert_close, audio, golden, property};

executors!(
    sessions_continue_bit_for_bit,
    pushed_samples_and_waiting_results_survive,
    codec_streams_continue,
    language_model_streams_continue,
    forks_diverge_independently,
    a_session_without_its_first_step_survives,
);

fn steps(session: &mut Session, seed: u64, count: usize) -> Vec<StepOutput> {
    let pcm = audio(seed, count * session.model().info().frame_samples);
    let frame = session.model().info().frame_samples;
    pcm.chunks_exact(frame).map(|frame| session.step(frame).unwrap()).collect()
}

#[track_caller]
fn assert_outputs(got: &[StepOutput], expected: &[StepOutput]) {
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(expected) {
        assert_eq!(got.tokens, expected.tokens);
        assert_eq!(got.user_codes, expected.user_codes);
        assert_eq!(got.text, expected.text);
        assert_bits(&got.pcm, &expected.pcm);
    }
}

fn assert_continues(model: &Arc<Model>, mut session: Session, before: usize) {
    steps(&mut session, 40, before);
    let blob = session.snapshot().unwrap();
    let mut restored = Session::restore(model, &blob).unwrap();
    assert_eq!(restored.snapshot().unwrap(), blob, "after {before} steps");
    assert_eq!((restored.steps(), restored.seed()), (before as u64, session.seed()));
    assert_eq!(restored.sampling(), session.sampling());
    let expected = steps(&mut session, 41, 2 * CONTEXT);
    assert_outputs(&steps(&mut restored, 41, 2 * CONTEXT), &expected);
    restored.reset().unwrap();
    session.reset().unwrap();
    assert_outputs(&steps(&mut restored, 42, 3), &steps(&mut session, 42, 3));
}

fn sessions_continue_bit_for_bit<E: Executor>(exec: &E) {
    let repo = TinyRepo::new();
    let model = repo.load(exec);
    for before in [0, 1, 2, CONTEXT - 2, CONTEXT - 1, CONTEXT, CONTEXT + 1, 5 * CONTEXT] {
        assert_continues(&model, sampled(&model, 9), before);
        assert_continues(&model, greedy(&model), before);
    }
    property(4, &(any::<u64>(), 0usize..40), |(seed, before)| {
        assert_continues(&model, sampled(&model, seed), before);
    });
}

fn pushed_samples_and_waiting_results_survive<E: Executor>(exec: &E) {
    let repo = TinyRepo::new();
    let model = repo.load(exec);
    for samples in [1, FRAME - 1, FRAME, 5 * FRAME + 2, 13 * FRAME + 3] {
        let mut session = sampled(&model, 10);
        session.push(&audio(50, samples)).unwrap();
        session.pull();
        let blob = session.snapshot().unwrap();
        let mut restored = Session::restore(&model, &blob).unwrap();
        assert_eq!(restored.snapshot().unwrap(), blob);
        let more = audio(51, 3 * FRAME);
        assert_eq!(session.push(&more).unwrap(), restored.push(&more).unwrap());
        loop {
            let (expected, got) = (session.pull(), restored.pull());
            assert_eq!(got, expected);
            if got.is_none() {
                break;
            }
        }
    }
}

fn a_session_without_its_first_step_survives<E: Executor>(exec: &E) {
    let repo = TinyRepo::new();
    let model = repo.load(exec);
    let options = SessionOptions { seed: Some(4), unprimed: true, ..SessionOptions::default() };
    let mut session = Session::new(&model, &options).unwrap();
    let mut restored = Session::restore(&model, &session.snapshot().unwrap()).unwrap();
    let expected = steps(&mut session, 60, 8);
    assert_eq!(expected[0].tokens, None, "the first step returns nothing");
    assert_outputs(&steps(&mut restored, 60, 8), &expected);
    restored.reset().unwrap();
    assert_outputs(&steps(&mut restored, 60, 8), &expected);
}

/// Runs the same conversation on two executors, handing it over on the way.
#[test]
fn the_other_executor_continues() {
    let tiny = TinyRepo::new();
    for repo in [Repo::open(&golden("dialogue_repo")).unwrap(), tiny.open()] {
        let scalar =
            Model::from_repo(&Scalar, &repo, &LoadOptions::default(), &NoObserver).unwrap();
        let candle =
            Model::from_repo(&Candle::cpu(), &repo, &LoadOptions::default(), &NoObserver).unwrap();
        assert_eq!(scalar.fingerprint(), candle.fingerprint());
        for (from, to) in [(&scalar, &candle), (&candle, &scalar)] {
            let mut session = greedy(from);
            steps(&mut session, 70, 9);
            let mut restored = Session::restore(to, &session.snapshot().unwrap()).unwrap();
            let expected = steps(&mut session, 71, 9);
            for (got, expected) in steps(&mut restored, 71, 9).iter().zip(&expected) {
                assert_eq!(got.tokens, expected.tokens);
                assert_eq!(got.user_codes, expected.user_codes);
                assert_close(&got.pcm, &expected.pcm, 1e-4);
            }
        }
    }
}

fn codec_streams_continue<E: Executor>(exec: &E) {
    let tiny = TinyRepo::new();
    let repo = tiny.open();
    let options = MimiOptions { num_codebooks: 4, ..MimiOptions::default() };
    let path = repo.mimi_file().unwrap();
    let mimi = Mimi::load(exec, &path, &repo.mimi_config, &options).unwrap();
    for before in [0, 1, 2, 3, 4, 17] {
        let (mut encoder, mut decoder) =
            (mimi.encoder_state().unwrap(), mimi.decoder_state().unwrap());
        for frame in audio(80, before * FRAME).chunks_exact(FRAME) {
            let codes = mimi.encode_step(&mut [&mut encoder], frame).unwrap();
            mimi.decode_step(&mut [&mut decoder], &codes).unwrap();
        }
        let mut writer = Writer::default();
        encoder.write(&mut writer).unwrap();
        decoder.write(&mut writer).unwrap();
        let bytes = writer.into_bytes();
        let (mut encoder2, mut decoder2) =
            (mimi.encoder_state().unwrap(), mimi.decoder_state().unwrap());
        let mut reader = Reader::new(&bytes);
        encoder2.read(&mut reader).unwrap();
        decoder2.read(&mut reader).unwrap();
        reader.finish().unwrap();
        assert_eq!(encoder2.position(), encoder.position());
        let mut fork = decoder.fork().unwrap();
        for frame in audio(81, 12 * FRAME).chunks_exact(FRAME) {
            let codes = mimi.encode_step(&mut [&mut encoder], frame).unwrap();
            assert_eq!(mimi.encode_step(&mut [&mut encoder2], frame).unwrap(), codes);
            let pcm = mimi.decode_step(&mut [&mut decoder], &codes).unwrap();
            for state in [&mut decoder2, &mut fork] {
                assert_bits(&mimi.decode_step(&mut [state], &codes).unwrap(), &pcm);
            }
        }
        let damaged = encoder.read(&mut Reader::new(&bytes[..bytes.len() / 3]));
        assert!(damaged.is_err());
        assert_eq!(encoder.position(), 0, "a state is new after a failed read");
    }
}

fn language_model_streams_continue<E: Executor>(exec: &E) {
    let warm = Sampling { temperature: 0.9, text_temperature: 0.7, top_k: 12, top_k_text: 6 };
    for (id, guided) in [
        (Id::A, false),
        (Id::B, false),
        (Id::B, true),
        (Id::C, false),
        (Id::D, false),
        (Id::E, true),
    ] {
        let scenario = Scenario::new(id);
        let lm = scenario.load(exec, &scenario.weights(), Dtype::F32);
        let options: LmStreamOptions = if guided { scenario.guided() } else { scenario.stream() };
        for before in [0, 1, 4, 9, 23] {
            let mut state = lm.new_state(&options).unwrap();
            let run = |state: &mut LmState<E>, calls: std::ops::Range<usize>| -> Vec<LmOutput> {
                calls.map(|call| step(&lm, state, call, (&warm, 31), &mut NoHooks)).collect()
            };
            run(&mut state, 0..before);
            let mut writer = Writer::default();
            lm.write_state(&state, &mut writer).unwrap();
            let bytes = writer.into_bytes();
            let mut reader = Reader::new(&bytes);
            let mut restored = lm.read_state(&mut reader).unwrap();
            reader.finish().unwrap();
            assert_eq!(restored.offset(), before as u64);
            let expected = run(&mut state, before..before + 12);
            for (got, expected) in run(&mut restored, before..before + 12).iter().zip(&expected) {
                assert_eq!(got.row, expected.row, "{id:?} from call {before}");
                assert_eq!(got.audio_tokens, expected.audio_tokens);
                assert_bits(&got.text_logits, &expected.text_logits);
            }
        }
    }
}

fn forks_diverge_independently<E: Executor>(exec: &E) {
    let repo = TinyRepo::new();
    let model = repo.load(exec);
    let mut original = sampled(&model, 12);
    steps(&mut original, 90, 10);
    let blob = original.snapshot().unwrap();
    let fork = || Session::restore(&model, &blob).unwrap();
    let expected = [91, 92].map(|seed| steps(&mut fork(), seed, 12));
    assert_ne!(expected[0], expected[1], "the two futures differ");
    let (mut one, mut two) = (fork(), fork());
    let (mut said_one, mut said_two) = (Vec::new(), Vec::new());
    let (pcm_one, pcm_two) = (audio(91, 12 * FRAME), audio(92, 12 * FRAME));
    for (a, b) in pcm_one.chunks_exact(FRAME).zip(pcm_two.chunks_exact(FRAME)) {
        said_one.push(one.step(a).unwrap());
        said_two.push(two.step(b).unwrap());
    }
    assert_outputs(&said_one, &expected[0]);
    assert_outputs(&said_two, &expected[1]);
    assert_eq!(original.snapshot().unwrap(), blob, "the original has not moved");
}
