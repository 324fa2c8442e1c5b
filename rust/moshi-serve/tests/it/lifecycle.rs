//! Lost connections, restarts and shutting down.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use moshi_serve::client::{ChatClient, ClientEvent, ClientOptions};
use moshi_serve::{ServeConfig, ServeError};
use sha2::{Digest, Sha256};

use crate::support::{
    Echo, Running, closed, config, frames, greeted, heard, http, last_words, talk, through_opus,
};

fn token(metadata: &serde_json::Value) -> String {
    metadata["resume_token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_cut_conversation_goes_on_with_its_token() {
    let server = Running::start(&Arc::new(Echo::new()), config(1));
    let first = frames(6);
    let second = frames(13)[6..].to_vec();
    // The second connection is a new Opus stream each way.
    let all = [heard(&first), heard(&second)].concat();
    let (pcm, expected) = Echo::alone(&all, 9);

    let mut client = server.connect(&[("seed", "9")]).await;
    let metadata = greeted(&mut client).await;
    let (audio, mut text) = talk(&mut client, &first).await;
    assert!(audio == through_opus(&pcm[..6]));
    last_words(&mut client, &mut text, " word9.3 word9.6").await;
    drop(client);
    server.slots(1, 1).await;
    let mut refused = server.connect(&[]).await;
    assert_eq!(closed(&mut refused).await.unwrap().0, 1013, "a kept session counts");

    let mut client = server.connect(&[("resume", &token(&metadata))]).await;
    let again = greeted(&mut client).await;
    assert_eq!((&again["steps"], &again["seed"]), (&6.into(), &"9".into()));
    assert_eq!(token(&again), token(&metadata));
    server.slots(1, 0).await;
    let (audio, more) = talk(&mut client, &second).await;
    text.push_str(&more);
    last_words(&mut client, &mut text, &expected).await;
    assert_eq!(text, expected);
    assert!(audio == through_opus(&pcm[6..]));
    client.close().await;
    server.slots(0, 0).await;
    server.stop().await;
}

#[tokio::test]
async fn a_second_connection_with_the_token_takes_over() {
    let server = Running::start(&Arc::new(Echo::new()), config(1));
    let mut old = server.connect(&[]).await;
    let metadata = greeted(&mut old).await;
    talk(&mut old, &frames(2)).await;
    let mut new = server.connect(&[("resume", &token(&metadata))]).await;
    assert_eq!(greeted(&mut new).await["steps"], 2);
    let (code, reason) = closed(&mut old).await.unwrap();
    assert!(code == 1000 && reason.contains("another connection"), "{code} {reason}");
    talk(&mut new, &frames(2)).await;
    server.slots(1, 0).await;
    server.stop().await;
}

#[tokio::test]
async fn kept_sessions_end_with_their_grace_and_within_their_memory() {
    let settings = ServeConfig { resume_grace: Duration::from_millis(150), ..config(3) };
    let server = Running::start(&Arc::new(Echo::new()), settings);
    let mut client = server.connect(&[]).await;
    let metadata = greeted(&mut client).await;
    talk(&mut client, &frames(1)).await;
    drop(client);
    server.slots(0, 0).await;
    let text = server.hub.metrics_text();
    let ends: Vec<&str> =
        text.lines().filter(|line| line.starts_with("moshi_sessions_ended_total")).collect();
    assert_eq!(ends, ["moshi_sessions_ended_total{reason=\"lost\"} 1"], "one end each");
    let mut late = server.connect(&[("resume", &token(&metadata))]).await;
    let (code, reason) = closed(&mut late).await.unwrap();
    assert!(code == 1008 && reason.contains("unknown or expired"), "{code} {reason}");
    server.stop().await;

    // One session takes a megabyte.
    let settings = ServeConfig { resume_memory_bytes: 1_500_000, ..config(3) };
    let server = Running::start(&Arc::new(Echo::new()), settings);
    let mut tokens = Vec::new();
    for lost in 1..=2 {
        let mut client = server.connect(&[]).await;
        tokens.push(token(&greeted(&mut client).await));
        talk(&mut client, &frames(1)).await;
        drop(client);
        server.slots(1, 1).await;
        assert!(lost <= 2);
    }
    assert_eq!(closed(&mut server.connect(&[("resume", &tokens[0])]).await).await.unwrap().0, 1008);
    assert_eq!(greeted(&mut server.connect(&[("resume", &tokens[1])]).await).await["steps"], 1);
    server.stop().await;
}

#[tokio::test]
async fn shutting_down_gives_running_sessions_time_and_takes_no_new_ones() {
    let settings = ServeConfig { drain: Duration::from_secs(60), ..config(2) };
    let server = Running::start(&Arc::new(Echo::new()), settings);
    let mut client = server.connect(&[]).await;
    greeted(&mut client).await;
    server.request_stop().await;
    let ClientEvent::Notice(notice) = client.next().await else { panic!("no notice") };
    assert!(notice.contains("60 s"), "{notice}");
    let (status, body) = http(server.address, "GET /readyz", "").await;
    assert!(status == 503 && body.contains("draining"), "{status} {body}");
    let refused = ChatClient::connect(&server.url(), &ClientOptions::default()).await;
    let Err(ServeError::Connect { reason, .. }) = refused else { panic!("not refused") };
    assert!(reason.contains("503") && reason.contains("shutting down"), "{reason}");
    talk(&mut client, &frames(3)).await;
    client.close().await;
    server.outcome().await.unwrap();
}

#[tokio::test]
async fn a_second_request_ends_at_once() {
    let settings = ServeConfig { drain: Duration::from_secs(600), ..config(2) };
    let server = Running::start(&Arc::new(Echo::new()), settings);
    let mut client = server.connect(&[]).await;
    greeted(&mut client).await;
    server.request_stop().await;
    server.request_stop().await;
    assert_eq!(closed(&mut client).await.unwrap().0, 1001);
    server.outcome().await.unwrap();
}

#[tokio::test]
async fn sessions_outlive_a_stop_in_the_state_folder_only() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("state");
    let settings = || ServeConfig { state_dir: Some(dir.clone()), ..config(2) };
    let server = Running::start(&Arc::new(Echo::new()), settings());
    let mut client = server.connect(&[("seed", "4")]).await;
    let metadata = greeted(&mut client).await;
    let first = frames(5);
    talk(&mut client, &first).await;
    server.stop().await;
    let files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap()).collect();
    assert_eq!(files.len(), 1);
    assert!(!files[0].file_name().to_string_lossy().contains(&token(&metadata)));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&files[0].path()), mode(&dir)), (0o600, 0o700));
    }

    let server =
        Running::start(&Arc::new(Echo::new()), ServeConfig { max_sessions: Some(1), ..settings() });
    let mut other = server.connect(&[]).await;
    greeted(&mut other).await;
    let mut refused = server.connect(&[("resume", &token(&metadata))]).await;
    assert_eq!(closed(&mut refused).await.unwrap().0, 1013, "and may come again");
    other.close().await;
    server.slots(0, 0).await;
    let mut client = server.connect(&[("resume", &token(&metadata))]).await;
    let again = greeted(&mut client).await;
    assert_eq!((again["steps"].as_u64(), token(&again)), (Some(5), token(&metadata)));
    let second = frames(8)[5..].to_vec();
    let (pcm, _) = Echo::alone(&[heard(&first), heard(&second)].concat(), 4);
    let (audio, _) = talk(&mut client, &second).await;
    assert!(audio == through_opus(&pcm[5..]));
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0, "what is in memory is in no file");
    client.close().await;
    server.stop().await;

    let server = Running::start(&Arc::new(Echo::new()), config(1));
    let mut client = server.connect(&[("resume", &token(&metadata))]).await;
    assert_eq!(closed(&mut client).await.unwrap().0, 1008);
    server.stop().await;
}

#[tokio::test]
async fn a_session_that_cannot_be_saved_keeps_no_other_from_it() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("state");
    let settings = || ServeConfig { state_dir: Some(dir.clone()), ..config(2) };
    let saved = || -> Vec<_> {
        std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect()
    };
    let server = Running::start(&Arc::new(Echo::new()), settings());
    let mut first = server.connect(&[]).await;
    let unlucky = token(&greeted(&mut first).await);
    talk(&mut first, &frames(1)).await;
    let mut second = server.connect(&[]).await;
    let lucky = token(&greeted(&mut second).await);
    talk(&mut second, &frames(3)).await;
    // Nothing can be put where a folder is.
    let name = URL_SAFE_NO_PAD.encode(Sha256::digest(unlucky.as_bytes()));
    std::fs::create_dir_all(dir.join(format!("{name}.session")).join("in the way")).unwrap();
    server.stop().await;
    let files = saved();
    assert_eq!(files.len(), 2, "the folder, the other session, no half of a file: {files:?}");

    let server = Running::start(&Arc::new(Echo::new()), settings());
    let mut client = server.connect(&[("resume", &lucky)]).await;
    assert_eq!(greeted(&mut client).await["steps"], 3);
    let mut client = server.connect(&[("resume", &unlucky)]).await;
    assert_eq!(closed(&mut client).await.unwrap().0, 1008);
    server.stop().await;
}
