//! What the daemon logs: nothing of what is said, and no secret, however much it is asked to tell.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::{SinkExt, StreamExt};
use log::{Level, LevelFilter, Log, Metadata, Record};
use moshi_serve::ServeConfig;
use moshi_serve::client::{ChatClient, ClientOptions};
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::support::{Echo, Running, config, frames, greeted, http, talk};

/// Keeps everything that is logged in this process.
struct Keeper(Mutex<String>);

static KEEPER: Keeper = Keeper(Mutex::new(String::new()));

impl Log for Keeper {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Traces of the WebSocket library hold its frames; `moshi-rs` shows none of its messages.
        metadata.level() < Level::Trace || metadata.target().starts_with("moshi")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            writeln!(kept, "{} {} {}", record.level(), record.target(), record.args()).unwrap();
        }
    }

    fn flush(&self) {}
}

const KEY: &str = "a-key-that-nobody-may-see";
/// Stands in every word that this session's model says.
const SEED: &str = "77665544332211";

#[tokio::test]
async fn logs_hold_no_text_no_audio_and_no_secrets() {
    log::set_logger(&KEEPER).unwrap();
    log::set_max_level(LevelFilter::Trace);
    let folder = tempfile::tempdir().unwrap();
    let settings = ServeConfig {
        api_keys: vec![KEY.into()],
        compat_query_keys: true,
        state_dir: Some(folder.path().join("state")),
        ..config(3)
    };
    let server = Running::start(&Arc::new(Echo::new()), settings);

    let own = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let parameters = vec![own("seed", SEED), own("email", "someone@private.example")];
    let options =
        ClientOptions { api_key: Some(KEY.into()), parameters, ..ClientOptions::default() };
    let mut client = ChatClient::connect(&server.url(), &options).await.unwrap();
    let token = greeted(&mut client).await["resume_token"].as_str().unwrap().to_owned();
    let (_, said) = talk(&mut client, &frames(9)).await;
    assert!(said.contains(SEED), "{said}");
    client.send_message(vec![0xee; 100]).await;
    client.send_message(b"\x01OggSbroken-audio-bytes".to_vec()).await;
    drop(client);

    let header = format!("Authorization: Bearer {KEY}\r\n");
    let (_, body) = http(server.address, "POST /api/ticket", &header).await;
    let answer: serde_json::Value = serde_json::from_str(&body).unwrap();
    let ticket = answer["ticket"].as_str().unwrap();
    let offer = format!("Sec-WebSocket-Protocol: moshi, ticket.{ticket}\r\n");
    http(server.address, "GET /v1/models", &offer).await;
    http(server.address, &format!("GET /v1/models?api_key={KEY}"), "").await;
    http(server.address, "GET /v1/models", "Authorization: Bearer wrong-secret-of-a-stranger\r\n")
        .await;
    http(server.address, "GET /api/chat?seed=text-in-a-number", &header).await;

    let url = format!("{}/v1/realtime?api_key={KEY}", server.url());
    let tcp = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let request = url.into_client_request().unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(request, tcp).await.unwrap();
    let item = json!({
        "type": "message",
        "role": "user",
        "content": [{ "type": "input_text", "text": "words that a user typed" }],
    });
    for text in [
        json!({ "type": "conversation.item.create", "item": item }).to_string(),
        json!({ "type": "input_audio_buffer.append", "audio": "not base64 at all!" }).to_string(),
        "{ broken json of a user".to_owned(),
    ] {
        socket.send(Message::Text(text.into())).await.unwrap();
        socket.next().await.unwrap().unwrap();
    }
    drop(socket);
    server.stop().await;

    let kept = KEEPER.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert!(kept.contains("moshi_serve"), "nothing was logged");
    for secret in [
        KEY,
        SEED,
        &token,
        ticket,
        "private.example",
        "wrong-secret",
        "text-in-a-number",
        "that a user typed",
        "not base64",
        "broken json",
        "OggS",
        "4f676753",
        "broken-audio",
    ] {
        assert!(!kept.contains(secret), "{secret:?} is in the logs:\n{kept}");
    }
}
