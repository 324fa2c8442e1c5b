//! Values that the PyTorch original computes for models whose weights follow from their names:
//! tokens of 12 greedy calls, hidden states and logits.

use moshi_core::exec::Executor;
use moshi_core::lm::WeightType;
use moshi_core::lm::{Condition, LanguageModel, LmOutput, LmStreamOptions};
use moshi_core::snapshot::{Reader, Writer};
use safetensors::Dtype;

use crate::support::assert_close;
use crate::support::scenarios::{ALL, DIM, Id, Scenario, fnv1a, generated, run};

const CALLS: usize = 12;
/// Listed values have five decimals.
const TOLERANCE: f32 = 1e-4;

executors!(
    scenario_a,
    scenario_b,
    scenario_b_guided,
    scenario_c,
    scenario_d,
    scenario_e,
    scenario_e_guided,
    conditions_have_the_listed_sums,
    split_spelling_and_half_precision_load,
    guidance_of_one_changes_no_token,
);

#[test]
fn generated_weights_start_with_the_listed_values() {
    assert_eq!(fnv1a("text_linear.weight"), 0x0451_8753_bcb7_5380);
    assert_eq!(fnv1a("emb.0.weight"), 0x7e5e_ef39_4367_bf29);
    for (name, shape, start) in [
        ("text_linear.weight", vec![40, 32], [0.234_769_4, 0.024_467_8, -0.268_090_2, 0.037_132_8]),
        ("emb.0.weight", vec![25, 32], [-0.549_829_6, -0.841_446_8, -0.315_285_4, -0.953_518_2]),
        ("voice", vec![1, 7, 6], [-0.526_803, 0.606_972, -0.492_507_4, 0.239_633_1]),
    ] {
        assert_close(&generated(name, &shape).data[..4], &start, 1e-6);
    }
}

#[test]
fn scenarios_have_the_listed_sizes() {
    let sizes = [(46_496, 41), (63_136, 74), (47_328, 40), (30_624, 20), (28_128, 30)];
    for (id, (parameters, tensors)) in ALL.into_iter().zip(sizes) {
        let weights = Scenario::new(id).weights();
        assert_eq!((weights.parameters(), weights.0.len()), (parameters, tensors), "{id:?}");
    }
}

struct Listed<'a> {
    text: &'a str,
    /// Codebooks by comma, calls by space; empty without generated audio.
    audio: &'a str,
    /// Returned rows by call; `None` is "nothing".
    rows: &'a [(usize, Option<&'a [i64]>)],
    /// Model inputs by call.
    inputs: &'a [(usize, &'a [i64])],
}

fn outputs<E: Executor>(exec: &E, id: Id, guided: bool, listed: &Listed<'_>) -> Vec<LmOutput> {
    let scenario = Scenario::new(id);
    let lm = scenario.load(exec, &scenario.weights(), Dtype::F32);
    assert_eq!(lm.dtype(), WeightType::F32);
    let stream = if guided { scenario.guided() } else { scenario.stream() };
    let outputs = run(&scenario, &lm, &stream, CALLS);
    assert_eq!(texts(&outputs), listed.text);
    assert_eq!(audios(&outputs), listed.audio);
    for (call, row) in listed.rows {
        assert_eq!(outputs[*call].row.as_deref(), *row, "row of call {call}");
    }
    for (call, input) in listed.inputs {
        let trace = outputs[*call].trace.as_ref().unwrap();
        assert_eq!(trace.input, *input, "input of call {call}");
    }
    outputs
}

fn texts(outputs: &[LmOutput]) -> String {
    let tokens: Vec<String> = outputs.iter().map(|o| o.text_token.to_string()).collect();
    tokens.join(" ")
}

fn audios(outputs: &[LmOutput]) -> String {
    let frame = |o: &LmOutput| {
        let tokens: Vec<String> = o.audio_tokens.iter().map(ToString::to_string).collect();
        tokens.join(",")
    };
    outputs.iter().map(frame).collect::<Vec<_>>().join(" ").trim().to_owned()
}

#[track_caller]
fn assert_hidden(output: &LmOutput, expected: [f32; 4]) {
    let trace = output.trace.as_ref().unwrap();
    assert_eq!(trace.hidden.len(), DIM);
    assert_close(&trace.hidden[..4], &expected, TOLERANCE);
}

#[track_caller]
fn assert_text(output: &LmOutput, expected: [f32; 4]) {
    assert_close(&output.text_logits[..4], &expected, TOLERANCE);
}

/// Logits of the first and of the last codebook.
#[track_caller]
fn assert_depth(output: &LmOutput, first: [f32; 4], last: [f32; 4]) {
    let logits = &output.trace.as_ref().unwrap().depth_logits;
    assert_close(&logits[0][0][..4], &first, TOLERANCE);
    assert_close(&logits[logits.len() - 1][0][..4], &last, TOLERANCE);
}

fn scenario_a<E: Executor>(exec: &E) {
    let listed = Listed {
        text: "29 29 0 36 36 31 3 11 38 10 34 4",
        audio: "3,23 17,14 17,17 17,23 7,15 8,15 14,7 8,17 8,22 14,20 19,6 7,22",
        rows: &[
            (0, None),
            (1, Some(&[29, 3, 14])),
            (2, Some(&[29, 17, 17])),
            (3, Some(&[0, 17, 23])),
            (11, Some(&[34, 19, 22])),
        ],
        inputs: &[(1, &[29, 3, 24, 8, 24]), (11, &[34, 19, 6, 6, 2])],
    };
    let o = outputs(exec, Id::A, false, &listed);
    assert_hidden(&o[0], [-0.23809, -0.13006, 0.28579, -1.29020]);
    assert_text(&o[0], [-1.14778, -1.20660, -0.76333, -0.34955]);
    assert_depth(
        &o[0],
        [0.03106, 2.40194, 0.96760, 3.94245],
        [1.65502, -2.81067, -2.73627, -0.19596],
    );
    assert_hidden(&o[6], [1.16625, -0.42046, -1.51420, -1.00032]);
    assert_text(&o[6], [0.95627, -0.65393, -0.17184, 2.62530]);
    assert_depth(
        &o[6],
        [-1.40331, 0.43424, 1.06545, -2.00056],
        [-2.36920, -3.15430, -1.80235, -1.63187],
    );
    assert_hidden(&o[11], [-1.31234, -0.67375, 0.91848, 1.37495]);
    assert_text(&o[11], [0.34641, 1.63310, 1.02334, 1.06352]);
    assert_depth(
        &o[11],
        [-1.72475, 1.05534, 3.50178, -2.12811],
        [-0.66789, -0.32382, 0.27067, -0.12762],
    );
}

fn scenario_b<E: Executor>(exec: &E) {
    let listed = Listed {
        text: "3 70 275 3 349 32 44 255 32 331 36 70",
        audio: "17,15,15,17 10,23,17,19 17,2,15,17 19,11,9,17 10,8,13,6 10,16,20,17 \
                17,11,13,17 20,8,14,22 10,10,9,1 0,17,11,17 17,5,16,0 20,0,11,0",
        rows: &[
            (0, None),
            (1, None),
            (2, Some(&[3, 17, 2, 15, 17])),
            (11, Some(&[331, 0, 0, 11, 0])),
        ],
        inputs: &[],
    };
    let o = outputs(exec, Id::B, false, &listed);
    assert_text(&o[11], [-0.52847, -1.28537, -1.23945, 0.63308]);
}

fn scenario_b_guided<E: Executor>(exec: &E) {
    let listed = Listed {
        text: "3 70 275 3 357 18 44 260 10 331 21 48",
        audio: "17,15,15,17 10,23,17,19 17,16,9,17 0,11,9,9 20,8,9,15 17,1,9,2 \
                2,1,6,5 14,11,6,5 10,1,6,5 19,20,15,5 10,22,15,2 10,23,11,1",
        rows: &[],
        inputs: &[],
    };
    let o = outputs(exec, Id::B, true, &listed);
    assert_text(&o[11], [0.03862, -0.66897, 0.58398, -1.68978]);
    assert_eq!(o[11].trace.as_ref().unwrap().depth_logits[0].len(), 2, "both branches are traced");
}

fn scenario_c<E: Executor>(exec: &E) {
    let listed = Listed {
        text: "21 37 5 9 9 31 29 32 26 9 34 15",
        audio: "15,10 14,10 4,3 14,21 16,11 5,19 14,9 17,3 10,11 16,11 20,15 5,15",
        rows: &[(2, Some(&[21, 15, 3])), (11, Some(&[9, 16, 15]))],
        inputs: &[(1, &[21, 15, 24, 8, 24]), (11, &[34, 20, 15, 6, 19])],
    };
    let o = outputs(exec, Id::C, false, &listed);
    assert_hidden(&o[0], [-2.04049, 1.09359, 0.84304, 0.49166]);
    assert_text(&o[0], [-0.22754, -1.33140, -1.81971, -0.44095]);
    assert_depth(
        &o[0],
        [0.23553, 0.07067, 1.18706, -2.08621],
        [-0.69982, -0.68510, 0.19866, 1.42870],
    );
    assert_hidden(&o[6], [2.13642, -1.77291, 0.09009, -0.43367]);
    assert_text(&o[6], [0.58863, 0.16458, -0.06816, 1.37845]);
    assert_depth(
        &o[6],
        [0.66008, -0.72085, 1.20333, 0.12617],
        [-0.83756, 1.20417, -0.21791, 0.57824],
    );
    assert_hidden(&o[11], [-1.15109, -1.66816, -0.20104, -0.20030]);
    assert_text(&o[11], [0.40753, 1.06126, 0.91798, 0.01238]);
    assert_depth(
        &o[11],
        [0.58002, -1.78490, -1.14765, 0.83678],
        [0.29522, 0.78751, 0.91862, -0.63214],
    );
}

fn scenario_d<E: Executor>(exec: &E) {
    let listed = Listed {
        text: "29 36 29 4 7 39 39 21 0 14 25 29",
        audio: "",
        rows: &[(0, Some(&[29])), (11, Some(&[29]))],
        inputs: &[(11, &[25, 6, 9, 12])],
    };
    let o = outputs(exec, Id::D, false, &listed);
    assert_hidden(&o[6], [0.46428, 0.33040, -1.10487, 1.09890]);
    assert_text(&o[6], [0.07872, -0.98639, -0.24945, 0.95655]);
    assert_hidden(&o[11], [-0.24866, 0.67093, 1.19997, -0.05343]);
    assert_text(&o[11], [-0.00637, -0.12262, 0.04460, -1.69491]);
    assert_eq!(o[11].extra_heads.len(), 2);
    let first = [0.00876, 0.11853, 0.47094, 0.08238, 0.27687, 0.04252];
    let second = [0.14972, 0.20654, 0.07349, 0.40838, 0.07448, 0.08739];
    assert_close(&o[11].extra_heads[0], &first, TOLERANCE);
    assert_close(&o[11].extra_heads[1], &second, TOLERANCE);
}

fn scenario_e<E: Executor>(exec: &E) {
    let listed = Listed {
        text: "29 16 20 7 14 16 3 11 32 3 13 0",
        audio: "8,9 8,16 17,9 8,5 14,7 8,21 14,7 8,22 8,15 14,1 23,13 19,14",
        rows: &[(2, Some(&[29, 8, 9]))],
        inputs: &[],
    };
    let o = outputs(exec, Id::E, false, &listed);
    assert_text(&o[11], [3.13358, 0.32702, -0.39543, 1.73694]);
}

fn scenario_e_guided<E: Executor>(exec: &E) {
    let listed = Listed {
        text: "12 12 12 12 30 24 39 14 12 3 13 30",
        audio: "1,17 8,9 8,9 8,9 8,17 16,20 7,22 14,16 8,22 16,16 1,23 8,7",
        rows: &[(11, Some(&[3, 16, 7]))],
        inputs: &[(11, &[13, 1, 23, 6, 19])],
    };
    let o = outputs(exec, Id::E, true, &listed);
    assert_text(&o[11], [0.33364, 1.75654, 0.28500, 2.50991]);
}

/// The vector that a fresh stream adds to every input, taken from its snapshot.
fn sum_of<E: Executor>(lm: &LanguageModel<E>, stream: &LmStreamOptions) -> Vec<f32> {
    let mut writer = Writer::default();
    lm.write_state(&lm.new_state(stream).unwrap(), &mut writer).unwrap();
    let bytes = writer.into_bytes();
    let mut reader = Reader::new(&bytes);
    assert!(!reader.flag().unwrap(), "no guidance");
    assert_eq!(reader.u64().unwrap(), 0, "no step yet");
    for _ in 0..lm.config().num_streams() * (lm.config().max_delay() + 2) {
        reader.i64().unwrap();
    }
    assert!(reader.flag().unwrap(), "has a sum");
    reader.floats(DIM).unwrap()
}

fn conditions_have_the_listed_sums<E: Executor>(exec: &E) {
    let scenario = Scenario::new(Id::B);
    let lm = scenario.load(exec, &scenario.weights(), Dtype::F32);
    let given = sum_of(&lm, &scenario.stream());
    assert_close(&given[..4], &[0.085_625, -0.274_548_8, 1.234_800_8, -0.113_335_7], 1e-6);
    let mut stream = scenario.stream();
    for name in ["cfg", "control"] {
        stream.conditions.insert(name.into(), Condition::Null);
    }
    let null = sum_of(&lm, &stream);
    let expected = [0.025_347_4, -0.126_105_9, -0.056_942, -0.071_811_3];
    assert_close(&null[..4], &expected, 1e-6);
}

fn split_spelling_and_half_precision_load<E: Executor>(exec: &E) {
    for id in ALL {
        let scenario = Scenario::new(id);
        let packed = scenario.weights();
        let split = packed.split(scenario.sets);
        assert!(split.0.len() >= packed.0.len() && !split.0.keys().eq(packed.0.keys()));
        let alias = packed.renamed(|name| name.replace(".in_proj_weight", ".in_proj.weight"));
        let streams: Vec<LmStreamOptions> = match id {
            Id::B | Id::E => vec![scenario.stream(), scenario.guided()],
            _ => vec![scenario.stream()],
        };
        for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
            let lm = scenario.load(exec, &packed, dtype);
            let stored = if dtype == Dtype::BF16 { WeightType::Bf16 } else { WeightType::F32 };
            assert_eq!(lm.dtype(), stored);
            for stream in &streams {
                let expected = run(&scenario, &lm, stream, CALLS);
                assert!(expected.iter().all(|o| o.text_logits.iter().all(|v| v.is_finite())));
                for weights in [&split, &alias] {
                    let lm = scenario.load(exec, weights, dtype);
                    let got = run(&scenario, &lm, stream, CALLS);
                    assert_eq!(texts(&got), texts(&expected));
                    assert_eq!(audios(&got), audios(&expected));
                    for (got, expected) in got.iter().zip(&expected) {
                        assert_close(&got.text_logits, &expected.text_logits, 0.0);
                    }
                }
            }
        }
    }
}

fn guidance_of_one_changes_no_token<E: Executor>(exec: &E) {
    let scenario = Scenario::new(Id::E);
    let lm = scenario.load(exec, &scenario.weights(), Dtype::F32);
    let mut stream = scenario.guided();
    stream.guidance.as_mut().unwrap().coefficient = 1.0;
    let (one, none) =
        (run(&scenario, &lm, &stream, CALLS), run(&scenario, &lm, &scenario.stream(), CALLS));
    assert_eq!(texts(&one), texts(&none));
    assert_eq!(audios(&one), audios(&none));
}
