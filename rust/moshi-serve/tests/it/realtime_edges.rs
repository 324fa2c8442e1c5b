//! OpenAI's protocols where clients are hasty, hostile or interrupted.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use moshi_serve::ServeConfig;
use moshi_wire::pcm::{Coding, encode};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::realtime::{Client, quantised, samples};
use crate::support::{Echo, FRAME, Running, config, frames};

const REALTIME: &str = "/v1/realtime";
const LIVE: &str = "/v1/live/sessions";

fn append(kind: &str, samples: &[f32]) -> Value {
    json!({ "type": kind, "audio": STANDARD.encode(encode(Coding::Pcm16, samples)) })
}

async fn live(server: &Running, session: Value) -> Client {
    let mut client = Client::connect(server, LIVE, &[]).await;
    client.send(json!({ "type": "session.start", "session": session })).await;
    client
}

#[tokio::test]
async fn long_chunks_at_the_pace_of_time_have_no_silence_between_them() {
    let server = Running::start(&Arc::new(Echo::new()), config(1));
    let mut client = live(&server, json!({ "model": "echo" })).await;
    client.find("session.started").await;
    let said = frames(30);
    let (pcm, _) = Echo::alone(&quantised(&said), 1);
    // The second chunk comes while the first one still lasts.
    client.send(append("session.input_audio.append", &said[..15].concat())).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    client.send(append("session.input_audio.append", &said[15..].concat())).await;
    for expected in &pcm {
        let got = samples(&client.find("session.output_audio.delta").await);
        assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-4));
    }
    server.stop().await;
}

#[tokio::test]
async fn a_pause_is_silence() {
    let server = Running::start(&Arc::new(Echo::new()), config(1));
    let mut client = live(&server, json!({ "model": "echo" })).await;
    client.find("session.started").await;
    client.send(append("session.input_audio.append", &frames(2).concat())).await;
    for _ in 0..6 {
        client.find("session.output_audio.delta").await;
    }
    server.stop().await;
}

#[tokio::test]
async fn silence_in_place_of_audio_is_no_sign_of_life() {
    let idle = Duration::from_millis(600);
    let server = Running::start(&Arc::new(Echo::new()), ServeConfig { idle, ..config(2) });
    let mut realtime = Client::connect(&server, REALTIME, &[]).await;
    realtime.find("session.created").await;
    realtime.send(append("input_audio_buffer.append", &frames(2).concat())).await;
    let mut live = live(&server, json!({ "model": "echo" })).await;
    live.send(append("session.input_audio.append", &frames(2).concat())).await;
    // Silence is on its way before the end.
    for _ in 0..4 {
        live.find("session.output_audio.delta").await;
    }
    assert_eq!(live.find("session.closed").await["reason"], "expired");
    assert_eq!(live.close_code().await, Some(1000));
    assert_eq!(realtime.close_code().await, Some(1000));
    server.slots(0, 0).await;
    server.stop().await;
}

#[tokio::test]
async fn live_sessions_start_whatever_is_in_place_of_an_object() {
    let server = Running::start(&Arc::new(Echo::new()), config(1));
    for session in [
        json!({ "model": "echo", "audio": "loud" }),
        json!({ "audio": [] }),
        json!({ "audio": 3 }),
        json!({ "audio": { "format": null } }),
        json!([]),
        json!("x"),
    ] {
        let mut client = live(&server, session.clone()).await;
        let started = client.next().await;
        assert_eq!(started["type"], "session.started", "{session}");
        let format = &started["session"]["audio"]["format"];
        assert_eq!(format["rate"], 24_000, "{session}");
        client.send(json!({ "type": "session.update", "session": session })).await;
        client.find("session.updated").await;
        client.send(json!({ "type": "session.close" })).await;
        client.find("session.closed").await;
        server.slots(0, 0).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn what_a_session_keeps_of_its_client_is_bounded() {
    let server = Running::start(&Arc::new(Echo::new()), config(1));
    let mut client = Client::connect(&server, REALTIME, &[]).await;
    client.find("session.created").await;
    let update = json!({ "tracing": "auto", "x": "y".repeat(1000), "instructions": "kind" });
    client.send(json!({ "type": "session.update", "session": update })).await;
    let session = client.find("session.updated").await["session"].clone();
    assert_eq!((&session["tracing"], &session["instructions"]), (&"auto".into(), &"kind".into()));
    assert!(session.get("x").is_none(), "a key that no client reads is not kept");
    let long = "y".repeat(300 << 10);
    client
        .send(json!({ "type": "session.update", "event_id": "e", "session": { "voice": long } }))
        .await;
    let error = client.next().await["error"].clone();
    assert_eq!((&error["code"], &error["event_id"]), (&"invalid_value".into(), &"e".into()));
    assert!(error["message"].as_str().unwrap().contains("256 KiB"), "{error}");

    // Three items of which two fit.
    let text = "y".repeat(400 << 10);
    for name in ["a", "b", "c"] {
        let content = json!([{ "type": "input_text", "text": text }]);
        let item = json!({ "id": name, "type": "message", "role": "user", "content": content });
        client.send(json!({ "type": "conversation.item.create", "item": item })).await;
        client.find("conversation.item.done").await;
    }
    for (name, kept) in [("a", false), ("b", true), ("c", true)] {
        client.send(json!({ "type": "conversation.item.retrieve", "item_id": name })).await;
        let answer = client.next().await;
        assert_eq!(answer["type"] == "conversation.item.retrieved", kept, "{name}");
    }
    server.stop().await;
}

#[tokio::test]
async fn items_follow_those_that_they_name() {
    let server = Running::start(&Arc::new(Echo::new()), config(1));
    let mut client = Client::connect(&server, REALTIME, &[]).await;
    client.find("session.created").await;
    let create = |name: &str, after: Value| {
        let item = json!({ "id": name, "type": "message", "role": "user", "content": [] });
        json!({ "type": "conversation.item.create", "item": item, "previous_item_id": after })
    };
    for (name, after, previous) in [
        ("a", json!(null), json!(null)),
        ("b", json!(null), json!("a")),
        ("first", json!("root"), json!(null)),
        ("second", json!("first"), json!("first")),
        ("c", json!(null), json!("b")),
        ("d", json!("unheard of"), json!("c")),
    ] {
        client.send(create(name, after)).await;
        let added = client.find("conversation.item.added").await;
        assert_eq!(added["previous_item_id"], previous, "{name}");
        let done = client.find("conversation.item.done").await;
        assert_eq!(done["previous_item_id"], previous, "{name}");
    }
    // The response is an item from its beginning.
    client.send(json!({ "type": "response.create" })).await;
    let answer = client.find("conversation.item.added").await;
    assert_eq!(answer["previous_item_id"], "d");
    let id = answer["item"]["id"].clone();
    client.send(create("e", json!(null))).await;
    assert_eq!(client.find("conversation.item.added").await["previous_item_id"], id);
    client.send(json!({ "type": "response.cancel" })).await;
    loop {
        let done = client.find("conversation.item.done").await;
        if done["item"]["id"] == id {
            assert_eq!(done["previous_item_id"], "d");
            break;
        }
    }
    client.send(json!({ "type": "conversation.item.retrieve", "item_id": id })).await;
    let item = client.find("conversation.item.retrieved").await["item"].clone();
    assert_eq!(item["status"], "incomplete");
    server.stop().await;
}

#[tokio::test]
async fn speech_is_found_in_frames_however_it_is_cut() {
    let server = Running::start(&Arc::new(Echo::new()), config(1));
    let vad = json!({ "turn_detection": { "type": "server_vad", "silence_duration_ms": 500 } });
    let voice = frames(8).concat();
    let silence = vec![0.0; 10 * FRAME];
    for chunk in [8 * FRAME, FRAME / 4, 2_400] {
        let headers = [("openai-beta", "realtime=v1")];
        let mut client = Client::connect(&server, REALTIME, &headers).await;
        client.find("session.created").await;
        client.send(json!({ "type": "session.update", "session": vad })).await;
        client.find("session.updated").await;
        for part in voice.chunks(chunk).chain(silence.chunks(chunk)) {
            client.send(append("input_audio_buffer.append", part)).await;
        }
        let started = client.find("input_audio_buffer.speech_started").await;
        assert_eq!(started["audio_start_ms"], 0, "{chunk}");
        let stopped = client.find("input_audio_buffer.speech_stopped").await;
        // Seven frames are the first that last half a second.
        assert_eq!(stopped["audio_end_ms"], (8 + 7) * 80, "{chunk}");
        let committed = client.find("input_audio_buffer.committed").await;
        assert_eq!(committed["item_id"], started["item_id"]);
        drop(client);
        server.slots(0, 0).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn shutting_down_closes_what_the_model_is_saying() {
    let server = Running::start(&Arc::new(Echo::new()), config(1));
    let mut client = Client::connect(&server, REALTIME, &[]).await;
    client.find("session.created").await;
    client.say("input_audio_buffer.append", &frames(12)).await;
    let mut transcript = String::new();
    while transcript.is_empty() {
        let event = client.find("response.output_audio_transcript.delta").await;
        transcript.push_str(event["delta"].as_str().unwrap());
    }
    server.request_stop().await;
    let done = loop {
        let event = client.next().await;
        match event["type"].as_str().unwrap() {
            "response.output_audio_transcript.delta" => {
                transcript.push_str(event["delta"].as_str().unwrap());
            }
            "response.done" => break event,
            _ => {}
        }
    };
    assert_eq!(done["response"]["status"], "incomplete");
    assert_eq!(done["response"]["output"][0]["content"][0]["transcript"], transcript);
    assert_eq!(client.next().await["error"]["code"], "server_draining", "the last event");
    assert_eq!(client.close_code().await, Some(1001));
    server.outcome().await.unwrap();
}

/// Of the events of this protocol, `error` would end some clients, and others end at unknown ones.
#[tokio::test]
async fn sessions_are_told_when_the_server_ends_them() {
    let settings = ServeConfig { drain: Duration::from_secs(600), ..config(2) };
    let server = Running::start(&Arc::new(Echo::new()), settings);
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let beta = ("openai-beta", "realtime=v1");
    let mut current = Client::connect(&server, REALTIME, &[]).await;
    let mut older = Client::connect(&server, REALTIME, &[beta]).await;
    let created = current.find("session.created").await;
    assert_eq!(created["session"]["expires_at"], Value::Null, "nobody knows yet");
    older.find("conversation.created").await;
    let before = now();
    server.request_stop().await;
    let deltas = ["response.output_audio.delta", "response.audio.delta"];
    for (client, delta) in [&mut current, &mut older].into_iter().zip(deltas) {
        let event = client.next().await;
        assert_eq!(event["type"], "session.updated");
        let end = event["session"]["expires_at"].as_u64().unwrap();
        assert!((before + 600..=now() + 600).contains(&end), "{end}");
        // The conversation goes on.
        client.say("input_audio_buffer.append", &frames(12)).await;
        client.find(delta).await;
        client.send(json!({ "type": "session.update", "session": { "type": "realtime" } })).await;
        let again = client.find("session.updated").await;
        assert_eq!(again["session"]["expires_at"], end);
    }
    server.request_stop().await;
    for client in [&mut current, &mut older] {
        assert_eq!(client.find("error").await["error"]["code"], "server_draining");
        assert_eq!(client.close_code().await, Some(1001));
    }
    server.outcome().await.unwrap();
}

async fn said_to_goodbye(server: &Running, path: &str, code: CloseCode) -> Option<u16> {
    let mut client = Client::connect(server, path, &[]).await;
    let frame = CloseFrame { code, reason: "".into() };
    client.0.close(Some(frame)).await.unwrap();
    client.close_code().await
}

#[tokio::test]
async fn a_goodbye_before_the_beginning_is_answered() {
    let settings = ServeConfig { queue: 3, ..config(1) };
    let server = Running::start(&Arc::new(Echo::new()), settings);
    for path in [REALTIME, LIVE, "/api/chat"] {
        assert_eq!(said_to_goodbye(&server, path, CloseCode::Normal).await, Some(1000), "{path}");
    }
    server.slots(0, 0).await;
    let mut inside = Client::connect(&server, REALTIME, &[]).await;
    inside.find("session.created").await;
    for path in [REALTIME, LIVE, "/api/chat"] {
        let said = said_to_goodbye(&server, path, CloseCode::Away).await;
        assert_eq!(said, Some(1001), "{path}: in the waiting line");
    }
    drop(inside);
    server.stop().await;
}

#[tokio::test]
async fn items_have_a_type() {
    let server = Running::start(&Arc::new(Echo::new()), config(1));
    let mut client = Client::connect(&server, REALTIME, &[]).await;
    client.find("session.created").await;
    for item in [json!({ "type": "wat" }), json!({}), json!("x"), Value::Null] {
        client.send(json!({ "type": "conversation.item.create", "item": item })).await;
        let error = client.next().await;
        assert_eq!(error["error"]["param"], "item.type", "{item}");
    }
    let item = json!({ "type": "function_call_output", "call_id": "c", "output": "{}" });
    client.send(json!({ "type": "conversation.item.create", "item": item })).await;
    client.find("conversation.item.done").await;
    server.stop().await;
}

#[tokio::test]
async fn live_sessions_are_told_of_the_shutdown_and_get_what_is_finished() {
    let settings = ServeConfig { drain: Duration::from_secs(600), ..config(1) };
    let server = Running::start(&Arc::new(Echo::new()), settings);
    let mut client = live(&server, json!({ "model": "echo" })).await;
    client.find("session.started").await;
    server.request_stop().await;
    let info = client.find("info").await;
    assert_eq!(info["code"], "server_draining");
    assert!(info["message"].as_str().unwrap().contains("600 s"), "{info}");
    server.request_stop().await;
    let closed = client.find("session.closed").await;
    assert_eq!(closed["reason"], "expired");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!(closed["session"]["expires_at"].as_u64().unwrap() <= now + 600, "{closed}");
    assert_eq!(client.close_code().await, Some(1001));
    server.outcome().await.unwrap();
}

#[tokio::test]
async fn messages_may_be_long_where_a_key_was_asked_for() {
    const KEY: &str = "a-key-that-is-long-enough";
    let settings = ServeConfig { api_keys: vec![KEY.into()], ..config(1) };
    let server = Running::start(&Arc::new(Echo::new()), settings);
    let bearer = format!("Bearer {KEY}");
    let silence = append("input_audio_buffer.append", &vec![0.0; 900 * FRAME]);
    assert!(silence.to_string().len() > 4 << 20);
    let mut client = Client::connect(&server, REALTIME, &[("authorization", &bearer)]).await;
    client.find("session.created").await;
    client.send(silence.clone()).await;
    client.send(json!({ "type": "input_audio_buffer.commit" })).await;
    client.find("input_audio_buffer.committed").await;
    server.stop().await;

    let server = Running::start(&Arc::new(Echo::new()), config(1));
    let mut client = Client::connect(&server, REALTIME, &[]).await;
    client.find("session.created").await;
    client.send(silence).await;
    let error = client.next().await["error"].clone();
    assert_eq!(error["code"], "message_too_large");
    assert!(error["message"].as_str().unwrap().contains("2 MiB"), "{error}");
    assert_eq!(client.close_code().await, Some(1009));
    server.stop().await;
}
