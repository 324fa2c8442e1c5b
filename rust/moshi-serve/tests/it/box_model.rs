//! The model in the box behind the socket says what it says to a direct session.

use std::sync::Arc;

use moshi_box::open_repo;
use moshi_core::lm::Sampling;
use moshi_core::{LoadOptions, Model, NoObserver, Session, SessionOptions};
use moshi_hub::HubOptions;
use moshi_serve::ModelBackend;

use crate::support::{Running, config, frames, greeted, heard, talk, through_opus};

#[tokio::test]
async fn text_and_audio_are_those_of_a_direct_session() {
    const FRAMES: usize = 8;
    let repo = open_repo(None, &HubOptions::default()).unwrap();
    let model = Model::open(&repo, &LoadOptions::default(), &NoObserver).unwrap();
    let frames = frames(FRAMES);
    let options = |seed, sampling| SessionOptions {
        seed: Some(seed),
        sampling: Some(sampling),
        ..SessionOptions::default()
    };
    let recommended = model.default_sampling();
    let backend = ModelBackend::new(Arc::clone(&model), "box".into(), 1 << 20);
    let server = Running::start(&Arc::new(backend), config(3));
    let greedy = [("audio_temperature", "0"), ("text_temperature", "0")];
    let top_k = [("text_topk", "0"), ("audio_topk", "0")];
    let mut sessions = Vec::new();
    for (seed, sampling) in [(11, Sampling::greedy()), (12, recommended), (13, recommended)] {
        let seed_text = seed.to_string();
        let mut parameters = vec![("seed", seed_text.as_str())];
        if sampling == Sampling::greedy() {
            parameters.extend(greedy.iter().chain(&top_k));
        }
        let mut client = server.connect(&parameters).await;
        let metadata = greeted(&mut client).await;
        assert_eq!(metadata["lm_model_file"], "box");
        assert_eq!(metadata["seed"], seed_text);
        sessions.push((seed, sampling, client));
    }
    let mut tasks = Vec::new();
    for (seed, sampling, mut client) in sessions {
        let mut session = Session::new(&model, &options(seed, sampling)).unwrap();
        let frames = frames.clone();
        tasks.push(tokio::spawn(async move {
            let (audio, text) = talk(&mut client, &frames).await;
            let outputs: Vec<_> =
                heard(&frames).iter().map(|frame| session.step(frame).unwrap()).collect();
            // Text follows its audio, and the last one may still be on its way.
            let said: String = outputs.iter().map(|output| output.text.as_str()).collect();
            let before: String =
                outputs[..FRAMES - 1].iter().map(|output| output.text.as_str()).collect();
            assert!(text == said || text == before, "{seed}: {text:?} is not {said:?}");
            let pcm: Vec<Vec<f32>> = outputs.into_iter().map(|output| output.pcm).collect();
            assert!(audio == through_opus(&pcm), "session {seed} sounds different");
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    server.stop().await;
}
