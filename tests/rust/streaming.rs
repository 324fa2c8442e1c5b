//! Streams equal recordings, chunks equal frames, fewer codebooks equal the first ones, and a
//! reset stream equals a new one.

use moshi_core::config::MimiConfig;
use moshi_core::exec::Executor;
use moshi_core::mimi::{Mimi, MimiOptions, MimiParts};
use moshi_core::{Error, Session, StepOutput};
use proptest::prelude::*;

use crate::support::models::{FRAME, TinyRepo, greedy, sampled};
use crate::support::{assert_bits, assert_same, audio, golden, property};

const SAMPLES: usize = 1920;
/// More than the codec's attention window of five frames.
const FRAMES: usize = 12;

executors!(
    streaming_with_the_exact_window_equals_offline,
    fewer_codebooks_give_the_first_codes,
    fewer_codes_decode_as_a_smaller_codec_would,
    halves_work_alone,
    windows_can_be_numbers,
    latents_lead_to_the_same_audio,
    pushed_chunks_equal_steps,
    reset_sessions_equal_new_ones,
    reset_codec_streams_equal_new_ones,
);

fn codec<E: Executor>(exec: &E, options: &MimiOptions) -> Mimi<E> {
    let text = std::fs::read_to_string(golden("mimi/mimi_config.json")).unwrap();
    let config = MimiConfig::from_json("mimi_config.json", &text).unwrap();
    Mimi::load(exec, &golden("mimi/mimi.safetensors"), &config, options).unwrap()
}

fn exact(num_codebooks: usize) -> MimiOptions {
    MimiOptions { num_codebooks, exact: true, ..MimiOptions::default() }
}

fn encode_frames<E: Executor>(mimi: &Mimi<E>, pcm: &[f32]) -> Vec<u32> {
    let mut state = mimi.encoder_state().unwrap();
    pcm.chunks_exact(SAMPLES)
        .flat_map(|frame| mimi.encode_step(&mut [&mut state], frame).unwrap())
        .collect()
}

fn decode_frames<E: Executor>(mimi: &Mimi<E>, codes: &[u32], count: usize) -> Vec<f32> {
    let mut state = mimi.decoder_state().unwrap();
    codes
        .chunks_exact(count)
        .flat_map(|frame| mimi.decode_step(&mut [&mut state], frame).unwrap())
        .collect()
}

fn streaming_with_the_exact_window_equals_offline<E: Executor>(exec: &E) {
    let mimi = codec(exec, &exact(8));
    let pcm = audio(1, FRAMES * SAMPLES);
    let codes = mimi.encode(&pcm).unwrap();
    assert_eq!(codes.len(), FRAMES * 8);
    assert_eq!(encode_frames(&mimi, &pcm), codes);
    let decoded = mimi.decode(&codes, FRAMES).unwrap();
    assert_same(exec, &decode_frames(&mimi, &codes, 8), &decoded);
    assert_eq!(mimi.encode(&pcm[..5 * SAMPLES]).unwrap(), codes[..5 * 8], "causal");
}

fn fewer_codebooks_give_the_first_codes<E: Executor>(exec: &E) {
    let pcm = audio(2, FRAMES * SAMPLES);
    let all = encode_frames(&codec(exec, &exact(12)), &pcm);
    for count in [1, 3, 8] {
        let codes = encode_frames(&codec(exec, &exact(count)), &pcm);
        let expected: Vec<u32> = all.chunks_exact(12).flat_map(|f| f[..count].to_vec()).collect();
        assert_eq!(codes, expected, "{count} codebooks");
    }
}

fn fewer_codes_decode_as_a_smaller_codec_would<E: Executor>(exec: &E) {
    let large = codec(exec, &exact(12));
    let codes = large.encode(&audio(3, FRAMES * SAMPLES)).unwrap();
    for count in [1, 3, 12] {
        let first: Vec<u32> = codes.chunks_exact(12).flat_map(|f| f[..count].to_vec()).collect();
        let expected = decode_frames(&codec(exec, &exact(count)), &first, count);
        assert_bits(&decode_frames(&large, &first, count), &expected);
        assert_same(exec, &large.decode(&first, FRAMES).unwrap(), &expected);
    }
}

fn halves_work_alone<E: Executor>(exec: &E) {
    let pcm = audio(4, FRAMES * SAMPLES);
    let both = codec(exec, &exact(8));
    let encoder = codec(exec, &MimiOptions { parts: MimiParts::Encoder, ..exact(8) });
    let decoder = codec(exec, &MimiOptions { parts: MimiParts::Decoder, ..exact(8) });
    assert!(encoder.has_encoder() && !encoder.has_decoder());
    assert!(!decoder.has_encoder() && decoder.has_decoder());
    let codes = encode_frames(&both, &pcm);
    assert_eq!(encode_frames(&encoder, &pcm), codes);
    assert_bits(&decode_frames(&decoder, &codes, 8), &decode_frames(&both, &codes, 8));

    let missing = |result: Result<(), Error>| matches!(result, Err(Error::Session { .. }));
    assert!(missing(encoder.decoder_state().map(drop)));
    assert!(missing(encoder.decode(&codes, FRAMES).map(drop)));
    assert!(missing(encoder.dequantise(&codes, FRAMES).map(drop)));
    assert!(missing(encoder.decode_latent(&[]).map(drop)));
    assert!(missing(decoder.encoder_state().map(drop)));
    assert!(missing(decoder.encode(&pcm).map(drop)));
    assert!(missing(decoder.encode_to_latent(&pcm).map(drop)));
    assert!(missing(decoder.quantise(&[]).map(drop)));
}

fn windows_can_be_numbers<E: Executor>(exec: &E) {
    let pcm = audio(5, FRAMES * SAMPLES);
    let with = |window| codec(exec, &MimiOptions { window: Some(window), ..exact(8) });
    let latents = |mimi: &Mimi<E>| mimi.encode_to_latent(&pcm).unwrap();
    let context = codec(exec, &exact(8));
    assert_eq!(context.config().context, 10);
    assert_bits(&latents(&with(10)), &latents(&context));
    for window in [1, 7, 13, 500] {
        let mimi = with(window);
        assert_eq!(mimi.config().context, window);
        assert_eq!(encode_frames(&mimi, &pcm), mimi.encode(&pcm).unwrap(), "window {window}");
        assert_ne!(latents(&mimi), latents(&context), "window {window}");
    }
    assert_bits(&latents(&with(500)), &latents(&with(1000)));
    for window in [0, 16_385, usize::MAX] {
        let options = MimiOptions { window: Some(window), ..exact(8) };
        let config = context.config();
        let result = Mimi::load(exec, &golden("mimi/mimi.safetensors"), config, &options);
        assert!(matches!(result, Err(Error::Input { what: "window", .. })), "{window}");
    }
}

fn latents_lead_to_the_same_audio<E: Executor>(exec: &E) {
    let mimi = codec(exec, &exact(8));
    let pcm = audio(6, FRAMES * SAMPLES - 700);
    let codes = mimi.encode(&pcm).unwrap();
    assert_eq!(mimi.quantise(&mimi.encode_to_latent(&pcm).unwrap()).unwrap(), codes);
    let latents = mimi.dequantise(&codes, FRAMES).unwrap();
    let decoded = mimi.decode(&codes, FRAMES).unwrap();
    assert_bits(&mimi.decode_latent(&latents).unwrap(), &decoded);
    let mut state = mimi.decoder_state().unwrap();
    let stepped: Vec<f32> = latents
        .chunks_exact(mimi.config().dimension())
        .flat_map(|latent| mimi.decode_latent_step(&mut [&mut state], latent).unwrap())
        .collect();
    assert_same(exec, &stepped, &decoded);
    assert!(mimi.encode(&[]).unwrap().is_empty());
    assert!(mimi.decode(&[], 0).unwrap().is_empty());
}

fn pulled(session: &mut Session) -> Vec<(Vec<f32>, String)> {
    std::iter::from_fn(|| session.pull()).collect()
}

fn pushed_chunks_equal_steps<E: Executor>(exec: &E) {
    let repo = TinyRepo::new();
    let model = repo.load(exec);
    let pcm = audio(7, 25 * FRAME);
    let mut stepped = sampled(&model, 11);
    let expected: Vec<StepOutput> =
        pcm.chunks_exact(FRAME).map(|frame| stepped.step(frame).unwrap()).collect();
    property(12, &prop::collection::vec(0usize..3 * FRAME + 2, 1..60), |chunks| {
        let mut session = sampled(&model, 11);
        let (mut rest, mut frames, mut results) = (&pcm[..], 0, Vec::new());
        for chunk in chunks {
            let (now, later) = rest.split_at(chunk.min(rest.len()));
            frames += session.push(now).unwrap();
            if chunk % 2 == 0 {
                results.extend(pulled(&mut session));
            }
            rest = later;
        }
        frames += session.push(rest).unwrap();
        results.extend(pulled(&mut session));
        assert_eq!((frames, results.len()), (25, 25));
        for ((pcm, text), expected) in results.iter().zip(&expected) {
            assert_bits(pcm, &expected.pcm);
            assert_eq!(*text, expected.text);
        }
        assert_eq!(session.steps(), 25);
    });
}

fn assert_outputs(got: &[StepOutput], expected: &[StepOutput]) {
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(expected) {
        assert_eq!(got.tokens, expected.tokens);
        assert_eq!(got.user_codes, expected.user_codes);
        assert_eq!(got.text, expected.text);
        assert_bits(&got.pcm, &expected.pcm);
    }
}

fn reset_sessions_equal_new_ones<E: Executor>(exec: &E) {
    let repo = TinyRepo::new();
    let model = repo.load(exec);
    let run = |session: &mut Session, seed: u64| -> Vec<StepOutput> {
        let pcm = audio(seed, 20 * FRAME);
        pcm.chunks_exact(FRAME).map(|frame| session.step(frame).unwrap()).collect()
    };
    for mut pair in [[sampled(&model, 3), sampled(&model, 3)], [greedy(&model), greedy(&model)]] {
        let [fresh, used] = &mut pair;
        let expected = run(fresh, 8);
        run(used, 9);
        used.push(&audio(10, 2 * FRAME + 1)).unwrap();
        used.reset().unwrap();
        assert_eq!(used.steps(), 0);
        assert!(used.pull().is_none());
        assert_outputs(&run(used, 8), &expected);
    }
}

fn reset_codec_streams_equal_new_ones<E: Executor>(exec: &E) {
    let mimi = codec(exec, &MimiOptions::default());
    let (before, after) = (audio(12, FRAMES * SAMPLES), audio(13, FRAMES * SAMPLES));
    let (mut encoder, mut decoder) = (mimi.encoder_state().unwrap(), mimi.decoder_state().unwrap());
    let mut run = |pcm: &[f32]| -> (Vec<u32>, Vec<f32>) {
        let (mut codes, mut decoded) = (Vec::new(), Vec::new());
        for frame in pcm.chunks_exact(SAMPLES) {
            let frame = mimi.encode_step(&mut [&mut encoder], frame).unwrap();
            decoded.extend(mimi.decode_step(&mut [&mut decoder], &frame).unwrap());
            codes.extend(frame);
        }
        assert_eq!(encoder.position(), 2 * FRAMES as u64);
        encoder.reset().unwrap();
        decoder.reset().unwrap();
        assert_eq!((encoder.position(), decoder.position()), (0, 0));
        (codes, decoded)
    };
    run(&before);
    let (codes, decoded) = run(&after);
    assert_eq!(codes, encode_frames(&mimi, &after));
    assert_bits(&decoded, &decode_frames(&mimi, &codes, 8));
}
