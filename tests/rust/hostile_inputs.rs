//! Callers that pass nonsense: an error that names it, and a stream that has not moved.

use moshi_core::exec::Executor;
use moshi_core::lm::{Condition, Guidance, LmSlot, LmStreamOptions, NoHooks, Sampling, StepHooks};
use moshi_core::mimi::{Mimi, MimiOptions};
use moshi_core::{Error, Session, SessionOptions, session::MAX_WAITING_FRAMES};
use safetensors::Dtype;

use crate::support::models::{FRAME, TinyRepo, sampled};
use crate::support::scenarios::{Id, Scenario, step, user_tokens};
use crate::support::{assert_bits, audio};

executors!(
    bad_frames_change_nothing,
    bad_settings_are_refused,
    bad_codec_input_changes_nothing,
    bad_tokens_change_nothing,
    bad_hooks_leave_a_stream_that_can_be_reset,
    bad_conditions_are_refused,
    extreme_guidance_never_panics,
    full_output_queues_refuse_more,
);

#[track_caller]
fn input_error<T>(result: Result<T, Error>, about: &str) -> String {
    match result.map(drop) {
        Err(Error::Input { what, reason }) => {
            assert_eq!(what, about, "{reason}");
            reason
        }
        other => panic!("expected Error::Input about {about}, got {other:?}"),
    }
}

fn bad_frames_change_nothing<E: Executor>(exec: &E) {
    let repo = TinyRepo::new();
    let model = repo.load(exec);
    let (mut session, mut control) = (sampled(&model, 1), sampled(&model, 1));
    for frame in audio(1, 10 * FRAME).chunks_exact(FRAME) {
        for len in [0, 1, FRAME - 1, FRAME + 1, 1900] {
            assert!(input_error(session.step(&vec![0.1; len]), "frame").contains(&len.to_string()));
        }
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30, f32::MIN] {
            let bad = [0.0, 0.0, value, 0.0];
            assert!(input_error(session.step(&bad), "frame").contains("index 2"));
            assert!(input_error(session.push(&bad), "samples").contains("index 2"));
        }
        let expected = control.step(frame).unwrap();
        assert_eq!(session.step(frame).unwrap(), expected);
    }
    for extreme in [1e6, -1e6, f32::MIN_POSITIVE / 8.0] {
        session.step(&[extreme; FRAME]).unwrap();
    }
    session.reset().unwrap();
    session.push(&[0.5]).unwrap();
    let waiting = session.step(&[0.0; FRAME]);
    assert!(matches!(waiting, Err(Error::Session { .. })), "{waiting:?}");
    session.push(&[0.5; FRAME - 1]).unwrap();
    assert!(session.step(&[0.0; FRAME]).is_ok());
}

fn bad_settings_are_refused<E: Executor>(exec: &E) {
    let model = TinyRepo::new().load(exec);
    let with = |sampling: Sampling| {
        let sampling = Some(sampling);
        Session::new(&model, &SessionOptions { sampling, ..SessionOptions::default() })
    };
    let greedy = Sampling::greedy();
    for bad in [-0.1, f64::NAN, f64::INFINITY, 1e9] {
        input_error(with(Sampling { temperature: bad, ..greedy }), "temperature");
        input_error(with(Sampling { text_temperature: bad, ..greedy }), "text_temperature");
    }
    let odd =
        Sampling { temperature: 5e-324, text_temperature: 100.0, top_k: usize::MAX, top_k_text: 1 };
    with(odd).unwrap().step(&[0.1; FRAME]).unwrap();
}

fn bad_codec_input_changes_nothing<E: Executor>(exec: &E) {
    let folder = TinyRepo::new();
    let repo = folder.open();
    let path = repo.mimi_file().unwrap();
    let load = |num_codebooks| {
        let options = MimiOptions { num_codebooks, ..MimiOptions::default() };
        Mimi::load(exec, &path, &repo.mimi_config, &options)
    };
    for count in [0, 5, usize::MAX] {
        input_error(load(count), "num_codebooks");
    }
    let mimi = load(4).unwrap();
    let (mut encoder, mut decoder) = (mimi.encoder_state().unwrap(), mimi.decoder_state().unwrap());
    for len in [0, FRAME - 1, FRAME + 1, 2 * FRAME] {
        input_error(mimi.encode_step(&mut [&mut encoder], &vec![0.0; len]), "pcm");
    }
    input_error(mimi.encode_step(&mut [&mut encoder], &[f32::NAN; FRAME]), "pcm");
    input_error(mimi.encode(&[0.0, f32::INFINITY]), "pcm");
    for codes in [&[][..], &[16], &[0, 0, 0, 16], &[0; 5], &[u32::MAX; 4]] {
        input_error(mimi.decode_step(&mut [&mut decoder], codes), "codes");
        if !codes.is_empty() {
            input_error(mimi.decode(codes, 1), "codes");
        }
    }
    input_error(mimi.decode(&[0; 7], 2), "codes");
    for latent in [vec![0.0; 7], vec![f32::NAN; 8]] {
        input_error(mimi.decode_latent(&latent), "latent");
        input_error(mimi.decode_latent_step(&mut [&mut decoder], &latent), "latent");
        input_error(mimi.quantise(&latent), "latent");
    }
    assert_eq!((encoder.position(), decoder.position()), (0, 0));
    assert!(mimi.encode_step(&mut [], &[]).unwrap().is_empty());
    assert!(mimi.decode_step(&mut [], &[]).unwrap().is_empty());
    let text = input_error(mimi.decode(&[0, 0, 0, 0, 3, 0, 99, 0], 2), "codes");
    assert!(
        text.contains("99") && text.contains("codebook 2") && text.contains("frame 1"),
        "{text}"
    );
}

fn bad_tokens_change_nothing<E: Executor>(exec: &E) {
    let scenario = Scenario::new(Id::A);
    let lm = scenario.load(exec, &scenario.weights(), Dtype::F32);
    let options = LmStreamOptions::default();
    let (mut state, mut control) =
        (lm.new_state(&options).unwrap(), lm.new_state(&options).unwrap());
    let greedy = Sampling::greedy();
    for call in 0..8 {
        for bad in [&[][..], &[1], &[1, 25], &[-2, 0], &[i64::MIN, 0], &[i64::MAX, 0]] {
            let slot = LmSlot {
                state: &mut state,
                user_tokens: bad,
                sampling: &greedy,
                seed: 0,
                hooks: &mut NoHooks,
                trace: false,
            };
            input_error(lm.step(&mut [slot]), "tokens");
        }
        assert_eq!(state.offset(), call as u64);
        let got = step(&lm, &mut state, call, (&greedy, 0), &mut NoHooks);
        let expected = step(&lm, &mut control, call, (&greedy, 0), &mut NoHooks);
        assert_eq!(got.row, expected.row);
        assert_bits(&got.text_logits, &expected.text_logits);
    }
    let edge = LmSlot {
        state: &mut state,
        user_tokens: &[-1, 24, 999],
        sampling: &greedy,
        seed: 0,
        hooks: &mut NoHooks,
        trace: false,
    };
    assert!(lm.step(&mut [edge]).is_ok(), "nothing, the initial token, and one too many");
    assert!(lm.step(&mut []).unwrap().is_empty());
}

/// Returns whatever it is told to.
#[derive(Clone, Default)]
struct Meddler {
    text: Option<i64>,
    replaced: Option<Vec<i64>>,
    first: Option<i64>,
    audio: Option<i64>,
    logits: Option<f32>,
}

impl StepHooks for Meddler {
    fn text_logits(&mut self, logits: &mut [f32]) {
        logits.fill(self.logits.unwrap_or(0.0));
    }

    fn text_token(&mut self, sampled: i64) -> i64 {
        self.text.unwrap_or(sampled)
    }

    fn replace_audio(&mut self) -> Option<Vec<i64>> {
        self.replaced.clone()
    }

    fn audio_token(&mut self, codebook: usize, sampled: i64) -> i64 {
        self.first.filter(|_| codebook == 0).unwrap_or(sampled)
    }

    fn audio_tokens(&mut self, tokens: &mut [i64]) {
        if let Some(token) = self.audio {
            tokens.fill(token);
        }
    }
}

fn bad_hooks_leave_a_stream_that_can_be_reset<E: Executor>(exec: &E) {
    let scenario = Scenario::new(Id::A);
    let lm = scenario.load(exec, &scenario.weights(), Dtype::F32);
    let mut state = lm.new_state(&LmStreamOptions::default()).unwrap();
    let warm = Sampling { temperature: 1.0, text_temperature: 1.0, top_k: 5, top_k_text: 5 };
    let fresh: Vec<_> =
        (0..5).map(|call| step(&lm, &mut state, call, (&warm, 1), &mut NoHooks).row).collect();
    let none = Meddler::default();
    for (hooks, about) in [
        (Meddler { text: Some(41), ..none.clone() }, "forced text"),
        (Meddler { text: Some(-2), ..none.clone() }, "forced text"),
        (Meddler { replaced: Some(vec![1]), ..none.clone() }, "forced audio"),
        (Meddler { replaced: Some(vec![1, 25]), ..none.clone() }, "forced audio"),
        (Meddler { first: Some(-2), ..none.clone() }, "forced audio"),
        (Meddler { first: Some(25), ..none.clone() }, "forced audio"),
        (Meddler { audio: Some(-2), ..none.clone() }, "forced audio"),
        (Meddler { audio: Some(i64::MAX), ..none.clone() }, "forced audio"),
    ] {
        let mut hooks = hooks;
        let slot = LmSlot {
            state: &mut state,
            user_tokens: &user_tokens(0),
            sampling: &warm,
            seed: 1,
            hooks: &mut hooks,
            trace: true,
        };
        input_error(lm.step(&mut [slot]), about);
        state.reset();
        for (call, row) in fresh.iter().enumerate() {
            assert_eq!(step(&lm, &mut state, call, (&warm, 1), &mut NoHooks).row, *row);
        }
        state.reset();
    }
    for logits in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut hooks = Meddler { logits: Some(logits), ..none.clone() };
        let output = step(&lm, &mut state, 0, (&warm, 1), &mut hooks);
        assert!((0..40).contains(&output.text_token));
    }
    let given_first = |first: i64| {
        let mut state = lm.new_state(&LmStreamOptions::default()).unwrap();
        let mut hooks = Meddler { first: Some(first), ..none.clone() };
        let output = step(&lm, &mut state, 0, (&warm, 1), &mut hooks);
        assert_eq!(output.audio_tokens[0], first);
        output.trace.unwrap().depth_logits
    };
    let (one, other) = (given_first(3), given_first(4));
    assert_eq!(one[0], other[0]);
    assert_ne!(one[1], other[1], "the second codebook sees the first");
    let mut forced = Meddler { text: Some(40), replaced: Some(vec![-1, 24]), ..none };
    let output = step(&lm, &mut state, 0, (&warm, 1), &mut forced);
    assert_eq!((output.text_token, output.audio_tokens), (40, vec![-1, 24]));
}

fn bad_conditions_are_refused<E: Executor>(exec: &E) {
    let scenario = Scenario::new(Id::B);
    let lm = scenario.load(exec, &scenario.weights(), Dtype::F32);
    let refused = |name: &str, value: Option<Condition>| {
        let mut stream = scenario.stream();
        match value {
            Some(value) => drop(stream.conditions.insert(name.into(), value)),
            None => drop(stream.conditions.remove(name)),
        }
        let reason = input_error(lm.new_state(&stream), "conditions");
        assert!(reason.contains(name), "{reason}");
    };
    let text = |text: &str| Some(Condition::Text(text.into()));
    let sequence = |values: usize, mask: usize| {
        Some(Condition::Sequence { values: vec![0.1; values], mask: vec![true; mask] })
    };
    refused("mood", text("good"));
    refused("cfg", None);
    refused("cfg", text("9.5"));
    refused("cfg", sequence(6, 1));
    refused("cfg", Some(Condition::NullSequence(3)));
    refused("speaker_wavs", None);
    refused("speaker_wavs", text("me"));
    refused("speaker_wavs", sequence(0, 0));
    refused("speaker_wavs", sequence(7, 1));
    refused("speaker_wavs", sequence(6, 2));
    refused("speaker_wavs", Some(Condition::NullSequence(0)));
    refused("speaker_wavs", Some(Condition::NullSequence(usize::MAX)));
    refused("speaker_wavs", sequence(6 * 20_000, 20_000));
    let mut nan = scenario.stream();
    let values = vec![f32::NAN; 6];
    nan.conditions.insert("speaker_wavs".into(), Condition::Sequence { values, mask: vec![true] });
    input_error(lm.new_state(&nan), "conditions");
}

fn extreme_guidance_never_panics<E: Executor>(exec: &E) {
    let scenario = Scenario::new(Id::E);
    let lm = scenario.load(exec, &scenario.weights(), Dtype::F32);
    let open = |guidance: Guidance| {
        lm.new_state(&LmStreamOptions { guidance: Some(guidance), ..scenario.stream() })
    };
    for bad in [f64::NAN, f64::INFINITY, 1e300] {
        input_error(open(Guidance::new(bad)), "guidance");
    }
    for masked_until in [0, 3, u64::MAX - 1, u64::MAX] {
        for coefficient in [0.0, -2.0, 1e30] {
            let guidance =
                Guidance { masked_until: Some(masked_until), ..Guidance::new(coefficient) };
            let mut state = open(guidance).unwrap();
            for call in 0..6 {
                let output = step(&lm, &mut state, call, (&Sampling::greedy(), 0), &mut NoHooks);
                assert!((0..40).contains(&output.text_token));
            }
        }
    }
    let mut unknown = scenario.guided();
    let null = [("mood".to_owned(), Condition::Null)].into();
    unknown.guidance.as_mut().unwrap().null_conditions = Some(null);
    input_error(lm.new_state(&unknown), "conditions");
}

fn full_output_queues_refuse_more<E: Executor>(exec: &E) {
    let model = TinyRepo::new().load(exec);
    let mut session = sampled(&model, 1);
    let too_much = vec![0.0; (MAX_WAITING_FRAMES + 1) * FRAME];
    assert!(matches!(session.push(&too_much), Err(Error::Capacity { .. })));
    assert_eq!((session.steps(), session.pull()), (0, None), "nothing was taken");
    assert_eq!(session.push(&too_much[FRAME..]).unwrap(), MAX_WAITING_FRAMES);
    assert_eq!(session.push(&[0.0; FRAME - 1]).unwrap(), 0);
    assert!(matches!(session.push(&[0.0]), Err(Error::Capacity { .. })));
    assert!(session.pull().is_some());
    assert_eq!(session.push(&[0.0]).unwrap(), 1);
}
