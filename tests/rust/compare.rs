//! Formats of few bits predict what f32 predicts, to the degree that their rounding allows.

use moshi_audio::MonoReader;
use moshi_cli::compare::{Comparison, Course};
use moshi_core::checkpoint::Repo;
use moshi_core::exec::{Cpu, KeyStorage};
use moshi_core::lm::WeightType;
use moshi_hub::HubOptions;

use crate::support::repository;

fn question(repo: &Repo, name: &str) -> Vec<f32> {
    let (rate, frame) = (repo.mimi_config.sample_rate_hz, repo.mimi_config.frame_samples);
    let path = repository("tests/audio").join(name);
    let mut pcm = Vec::new();
    let mut reader = MonoReader::open(&path, rate as u32).unwrap();
    while reader.read(&mut pcm).unwrap() {}
    // Time to answer.
    pcm.resize((pcm.len() + 25 * frame).next_multiple_of(frame), 0.0);
    pcm
}

#[test]
fn the_box_predicts_the_same_in_few_bits() {
    let exec = Cpu::new(None).unwrap();
    let repo = moshi_box::open_repo(None, &HubOptions::default()).unwrap();
    let pcm = question(&repo, "box_sky.wav");
    let course = Course::of(&exec, &repo, &pcm, WeightType::F32, 1).unwrap();
    let frames = pcm.len() / repo.mimi_config.frame_samples;
    assert_eq!(course.len(), frames + 1, "one step is silence before the recording");
    let with_keys = |dtype, keys| course.follow(&exec, &repo, dtype, keys).unwrap();
    let follow = |dtype| with_keys(dtype, None);

    let Comparison { text, first_codebook, codebooks, .. } = follow(WeightType::F32);
    assert_eq!((text.count, first_codebook.count), (course.len(), course.len()));
    assert_eq!(codebooks.count, repo.config.num_generated * course.len());
    for same in [text, first_codebook, codebooks] {
        assert_eq!((same.same_top(), same.largest_divergence()), (1.0, 0.0));
    }

    let bf16 = follow(WeightType::Bf16);
    let q8 = follow(WeightType::Q8);
    let q4 = follow(WeightType::Q4);
    for (close, most) in [(&bf16, 1e-5), (&q8, 1e-4)] {
        let name = close.dtype.name();
        for agreement in [&close.text, &close.first_codebook, &close.codebooks] {
            assert_eq!(agreement.same_top(), 1.0, "{name}: {agreement:?}");
            assert!(agreement.mean_divergence() <= most, "{name}: {agreement:?}");
            assert!(agreement.mean_divergence() > 0.0, "{name} rounds");
        }
    }
    let keys = with_keys(WeightType::F32, Some(KeyStorage::Q8));
    let both = with_keys(WeightType::Q8, Some(KeyStorage::Q8));
    for close in [&keys, &both] {
        assert_eq!(close.kv_dtype, KeyStorage::Q8);
        for agreement in [&close.text, &close.first_codebook, &close.codebooks] {
            assert_eq!(agreement.same_top(), 1.0, "{agreement:?}");
            assert!(agreement.mean_divergence() <= 1e-4, "{agreement:?}");
            assert!(agreement.mean_divergence() > 0.0, "it rounds");
        }
    }
    assert!(q4.codebooks.mean_divergence() > q8.codebooks.mean_divergence());
    assert!(q4.weight_bytes < q8.weight_bytes && q8.weight_bytes < bf16.weight_bytes);
}

#[test]
fn the_command_wants_a_recording_and_a_model_that_hears() {
    let run = |args: &[&str]| {
        let args = ["moshi-rs", "compare-formats"].iter().chain(args).map(Into::into).collect();
        moshi_cli::main_from(args, None)
    };
    let audio = repository("tests/audio/box_joke.wav");
    let audio = audio.to_str().unwrap();
    assert_eq!(run(&[audio, "--frames", "2", "--executor", "cpu"]), 0);
    assert_eq!(run(&[audio, "--frames", "2", "--executor", "cpu", "--json"]), 0);
    assert_eq!(run(&[]), 2);
    assert_eq!(run(&[audio, "--frames", "0"]), 2);
    assert_eq!(run(&["/nowhere.wav"]), 5);
    assert_eq!(run(&[audio, "--model", "/nowhere"]), 3);
}
