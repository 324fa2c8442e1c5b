//! What measurements start from: random weights, and streams whose past is full.

use moshi_core::checkpoint::{Catalog, RandomWidth, TensorFile, layout};
use moshi_core::config::{LmConfig, MimiConfig};
use moshi_core::exec::Executor;
use moshi_core::lm::{
    LanguageModel, LmOptions, LmSlot, LmStreamOptions, NoHooks, Sampling, WeightType,
};
use moshi_core::mimi::{Mimi, MimiOptions};
use moshi_core::stages::{Noise, Stage, StageListener};

use crate::support::models::{CONTEXT, FRAME, config, mimi_config};

executors!(full_streams_step, random_codecs_run_from_a_full_past);

#[derive(Default)]
struct Heard(Vec<Stage>);

impl StageListener for Heard {
    fn ended(&mut self, stage: Stage) {
        self.0.push(stage);
    }
}

fn full_streams_step<E: Executor>(exec: &E) {
    let config = LmConfig::from_json("config.json", &config().to_string()).unwrap();
    let tensors = layout::language_model(&config, layout::first_gated_widths(&config));
    let file = TensorFile::random("noise", &tensors, RandomWidth::Bf16, 1);
    let catalog = Catalog::language_model(&file, &config).unwrap();
    for dtype in [WeightType::F32, WeightType::Bf16, WeightType::Q8] {
        let options = LmOptions { dtype: Some(dtype), ..LmOptions::default() };
        let lm = LanguageModel::from_catalog(exec, &catalog, &config, &options).unwrap();
        let run = |seed: u64| {
            let mut state = lm.new_state(&LmStreamOptions::default()).unwrap();
            lm.fill(&mut state, &mut Noise::new(seed)).unwrap();
            assert_eq!(state.offset(), CONTEXT as u64);
            let mut heard = Heard::default();
            let slot = LmSlot {
                state: &mut state,
                user_tokens: &[1, 2],
                sampling: &Sampling::greedy(),
                seed: 0,
                hooks: &mut NoHooks,
                trace: false,
            };
            let mut outputs = Vec::new();
            lm.step_into(&mut [slot], &mut outputs, &mut heard).unwrap();
            let output = outputs.remove(0);
            assert_eq!(heard.0, [Stage::Temporal, Stage::Depth]);
            assert!(output.row.is_some(), "delays are over");
            assert!(output.text_logits.iter().all(|logit| logit.is_finite()));
            output.text_logits
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2), "the past is seen");
    }
}

fn random_codecs_run_from_a_full_past<E: Executor>(exec: &E) {
    let config = MimiConfig::from_json("mimi.json", &mimi_config().to_string()).unwrap();
    let file = TensorFile::random("noise", &layout::mimi(&config), RandomWidth::F32, 1);
    let catalog = Catalog::mimi(&file, config.heads.query).unwrap();
    let options = MimiOptions { num_codebooks: 2, ..MimiOptions::default() };
    let mimi = Mimi::from_catalog(exec, &catalog, &config, &options).unwrap();
    let (mut encoder, mut decoder) = (mimi.encoder_state().unwrap(), mimi.decoder_state().unwrap());
    encoder.fill(&mut Noise::new(1)).unwrap();
    decoder.fill(&mut Noise::new(2)).unwrap();
    assert!(encoder.position() >= config.context as u64 - 1);
    let codes = mimi.encode_step(&mut [&mut encoder], &[0.1; FRAME]).unwrap();
    let pcm = mimi.decode_step(&mut [&mut decoder], &codes).unwrap();
    assert_eq!((codes.len(), pcm.len()), (2, FRAME));
    assert!(pcm.iter().all(|sample| sample.is_finite()));
}

#[test]
fn the_command_measures_the_box_and_refuses_what_it_cannot_count() {
    let run = |args: &[&str]| {
        let args = ["moshi-rs"].iter().chain(args).map(Into::into).collect();
        moshi_cli::main_from(args, None)
    };
    assert_eq!(run(&["bench", "--frames", "2", "--sessions", "2", "--json"]), 0);
    assert_eq!(run(&["bench", "--frames", "2", "--executor", "cpu", "--dtype", "q8"]), 0);
    assert_eq!(run(&["doctor", "--json"]), 0);
    assert_eq!(run(&["bench", "--sessions", "0"]), 2);
    assert_eq!(run(&["bench", "--frames", "0"]), 2);
    assert_eq!(run(&["bench", "--model", "/nowhere"]), 3);
}
