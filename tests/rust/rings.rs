//! Rings of the attention window against everything ever seen: in single attention calls, and in
//! whole models against a second implementation in f64.

use moshi_core::exec::{AttentionPlan, Executor, Heads, KeyStorage, Rotary, RotaryStyle};
use moshi_core::lm::{LmOutput, LmStreamOptions, Sampling};
use moshi_core::scratch::Scratch;
use safetensors::Dtype;

use crate::support::history;
use crate::support::scenarios::{Id, Scenario, run, step};
use crate::support::{Dice, assert_close, assert_same};

executors!(
    ring_of_the_window_equals_a_ring_of_everything,
    steps_equal_the_full_history,
    reset_language_model_streams_equal_new_ones,
);

const HEADS: Heads = Heads { query: 4, key: 2, width: 8 };
const CONTEXT: usize = 5;
const PERIOD: f64 = 100.0;

/// One stream with a ring of the window, a ring of everything, and plain lists.
struct Past<E: Executor> {
    window: E::Ring,
    everything: E::Ring,
    keys: Vec<Vec<f64>>,
    values: Vec<Vec<f64>>,
}

/// Attention of one row over the lists, in f64.
fn naive<E: Executor>(past: &mut Past<E>, qkv: &[f32], interleaved: bool) -> Vec<f32> {
    let position = past.keys.len();
    let wide: Vec<f64> = qkv.iter().map(|v| f64::from(*v)).collect();
    let (queries, rest) = wide.split_at(HEADS.query_width());
    let (keys, values) = rest.split_at(HEADS.key_width());
    let rotate = |x: &[f64]| -> Vec<f64> {
        let heads = x.chunks_exact(HEADS.width);
        heads.flat_map(|head| history::rotated(head, position, PERIOD, interleaved)).collect()
    };
    past.keys.push(rotate(keys));
    past.values.push(values.to_vec());
    let first = (position + 1).saturating_sub(CONTEXT);
    history::attention(&rotate(queries), HEADS, &past.keys[first..], &past.values[first..])
        .into_iter()
        .map(|v| v as f32)
        .collect()
}

fn ring_of_the_window_equals_a_ring_of_everything<E: Executor>(exec: &E) {
    for (style, time) in [
        (RotaryStyle::Interleaved, 1),
        (RotaryStyle::SplitHalves, 1),
        (RotaryStyle::Interleaved, 2),
    ] {
        let rotary = Rotary::new(style, HEADS.width, PERIOD);
        let rounds = 3 * CONTEXT;
        let past = || Past::<E> {
            window: exec.ring(HEADS, CONTEXT + time - 1, KeyStorage::F32).unwrap(),
            everything: exec.ring(HEADS, rounds * time, KeyStorage::F32).unwrap(),
            keys: Vec::new(),
            values: Vec::new(),
        };
        let mut streams = [past(), past()];
        let mut dice = Dice(time as u64);
        for round in 0..rounds {
            // The second stream misses every third round, so that positions differ.
            let active = if round % 3 == 2 { 1 } else { 2 };
            let mut active: Vec<&mut Past<E>> = streams.iter_mut().take(active).collect();
            let rows = dice.units(active.len() * time * HEADS.fused_width());
            let starts: Vec<u64> = active.iter().map(|past| past.keys.len() as u64).collect();
            let scratch = Scratch::default();
            let plan = AttentionPlan::new(&scratch, &starts, time, Some(&rotary), |p| {
                (p + 1).saturating_sub(CONTEXT as u64)
            });
            let plan = exec.plan(plan).unwrap();
            let qkv = exec.upload(&rows, HEADS.fused_width()).unwrap();
            let small =
                exec.self_attention(&qkv, HEADS, &plan, &mut active, |s| &mut s.window).unwrap();
            let large = exec
                .self_attention(&qkv, HEADS, &plan, &mut active, |s| &mut s.everything)
                .unwrap();
            let small = exec.download(&small).unwrap();
            assert_same(exec, &small, &exec.download(&large).unwrap());
            let per_stream = time * HEADS.fused_width();
            let mut expected = Vec::new();
            for (past, rows) in active.iter_mut().zip(rows.chunks_exact(per_stream)) {
                for row in rows.chunks_exact(HEADS.fused_width()) {
                    expected.extend(naive(*past, row, style == RotaryStyle::Interleaved));
                }
            }
            assert_close(&small, &expected, 1e-5);
        }
        assert_eq!(streams[0].keys.len(), rounds * time);
    }
}

fn steps_equal_the_full_history<E: Executor>(exec: &E) {
    for id in [Id::A, Id::C, Id::D] {
        let scenario = Scenario::new(id);
        let weights = scenario.weights();
        let lm = scenario.load(exec, &weights, Dtype::F32);
        let calls = 6 * lm.config().temporal.context;
        let outputs = run(&scenario, &lm, &LmStreamOptions::default(), calls);
        let input = |o: &LmOutput| o.trace.as_ref().unwrap().input.clone();
        let inputs: Vec<Vec<i64>> = outputs.iter().map(input).collect();
        let expected = history::text_logits(&scenario, &weights, &inputs);
        assert_eq!(expected.len(), calls);
        for (output, expected) in outputs.iter().zip(expected) {
            let expected: Vec<f32> = expected.into_iter().map(|v| v as f32).collect();
            assert_close(&output.text_logits, &expected, 1e-4);
        }
    }
}

fn reset_language_model_streams_equal_new_ones<E: Executor>(exec: &E) {
    for id in [Id::A, Id::B, Id::D, Id::E] {
        let scenario = Scenario::new(id);
        let lm = scenario.load(exec, &scenario.weights(), Dtype::F32);
        let stream = match id {
            Id::B | Id::E => scenario.guided(),
            _ => scenario.stream(),
        };
        let sampling =
            Sampling { temperature: 0.9, text_temperature: 1.1, top_k: 9, top_k_text: 0 };
        let mut state = lm.new_state(&stream).unwrap();
        let mut continue_from = |first: usize| -> Vec<LmOutput> {
            let mut hooks = scenario.hooks();
            let outputs = (first..first + 15)
                .map(|call| step(&lm, &mut state, call, (&sampling, 5), &mut *hooks))
                .collect();
            assert_eq!(state.offset(), 15);
            state.reset();
            assert_eq!(state.offset(), 0);
            outputs
        };
        let fresh = continue_from(0);
        continue_from(100);
        for (again, fresh) in continue_from(0).iter().zip(&fresh) {
            assert_eq!(again.row, fresh.row);
            assert_eq!(again.audio_tokens, fresh.audio_tokens);
            assert_close(&again.text_logits, &fresh.text_logits, 0.0);
        }
    }
}
