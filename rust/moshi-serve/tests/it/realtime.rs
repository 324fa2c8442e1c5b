//! OpenAI's protocols as their clients see them.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::{SinkExt, StreamExt};
use moshi_serve::ServeConfig;
use moshi_wire::pcm::{Coding, SampleReader, encode};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::support::{Echo, FRAME, Running, config, eventually, frames};

pub(crate) struct Client(pub(crate) WebSocketStream<TcpStream>);

impl Client {
    pub(crate) async fn connect(
        server: &Running,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Self {
        let mut request = format!("{}{path}", server.url()).into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().append(*name, value.parse().unwrap());
        }
        let tcp = TcpStream::connect(server.address).await.unwrap();
        let (socket, _) = tokio_tungstenite::client_async(request, tcp).await.unwrap();
        Self(socket)
    }

    pub(crate) async fn send(&mut self, event: Value) {
        self.0.send(Message::Text(event.to_string().into())).await.unwrap();
    }

    pub(crate) async fn next(&mut self) -> Value {
        loop {
            match self.0.next().await.unwrap().unwrap() {
                Message::Text(text) => return serde_json::from_str(text.as_str()).unwrap(),
                Message::Close(frame) => panic!("closed: {frame:?}"),
                _ => {}
            }
        }
    }

    /// The next event of this type; others before it are passed over.
    pub(crate) async fn find(&mut self, kind: &str) -> Value {
        loop {
            let event = self.next().await;
            if event["type"] == kind {
                return event;
            }
            assert_ne!(event["type"], "error", "{event}");
        }
    }

    pub(crate) async fn say(&mut self, kind: &str, frames: &[Vec<f32>]) {
        for frame in frames {
            let audio = STANDARD.encode(encode(Coding::Pcm16, frame));
            self.send(json!({ "type": kind, "audio": audio })).await;
        }
    }

    pub(crate) async fn close_code(&mut self) -> Option<u16> {
        while let Some(Ok(message)) = self.0.next().await {
            if let Message::Close(frame) = message {
                return frame.map(|frame| frame.code.into());
            }
        }
        None
    }
}

pub(crate) fn samples(event: &Value) -> Vec<f32> {
    let bytes = STANDARD.decode(event["delta"].as_str().unwrap()).unwrap();
    let mut samples = Vec::new();
    SampleReader::new(Coding::Pcm16).push(&bytes, &mut samples);
    samples
}

/// What the server hears of these frames: they are quantised.
pub(crate) fn quantised(frames: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let through = |frame: &Vec<f32>| {
        let mut samples = Vec::new();
        SampleReader::new(Coding::Pcm16).push(&encode(Coding::Pcm16, frame), &mut samples);
        samples
    };
    frames.iter().map(through).collect()
}

#[tokio::test]
async fn speech_becomes_a_response_in_the_order_that_clients_expect() {
    let server = Running::start(&Arc::new(Echo::new()), config(1));
    let mut client = Client::connect(&server, "/v1/realtime?model=echo", &[]).await;
    let created = client.next().await;
    assert_eq!(
        (&created["type"], &created["session"]["type"]),
        (&"session.created".into(), &"realtime".into())
    );
    assert_eq!(created["session"]["audio"]["output"]["format"]["rate"], 24_000);
    client.send(json!({ "type": "session.update", "session": { "instructions": "hm" } })).await;
    assert_eq!(client.next().await["session"]["instructions"], "hm");

    let said = frames(12);
    let (pcm, text) = Echo::alone(&quantised(&said), 1);
    client.say("input_audio_buffer.append", &said).await;
    client.say("input_audio_buffer.append", &vec![vec![0.0; FRAME]; 30]).await;
    let mut order = Vec::new();
    let (mut audio, mut transcript) = (Vec::new(), String::new());
    loop {
        let event = client.next().await;
        let kind = event["type"].as_str().unwrap().to_owned();
        match kind.as_str() {
            "response.output_audio.delta" => audio.extend(samples(&event)),
            "response.output_audio_transcript.delta" => {
                transcript.push_str(event["delta"].as_str().unwrap());
            }
            _ => {}
        }
        if order.last() != Some(&kind) && event["delta"].is_null() {
            order.push(kind.clone());
        }
        if transcript.len() >= text.len() {
            break;
        }
    }
    assert_eq!(
        order,
        [
            "response.created",
            "response.output_item.added",
            "conversation.item.added",
            "response.content_part.added",
        ]
    );
    assert!(transcript.starts_with(&text), "{transcript} is not {text}");
    let expected: Vec<f32> = pcm.concat();
    let offset = audio.len().min(expected.len());
    let start =
        expected.windows(8).position(|w| w.iter().zip(&audio).all(|(a, b)| (a - b).abs() < 1e-4));
    assert!(start.is_some_and(|start| start % FRAME == 0), "{offset} samples, from {start:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_requested_response_can_be_cancelled_and_carries_its_metadata() {
    let server = Running::start(&Arc::new(Echo::new()), config(1));
    let mut client = Client::connect(&server, "/v1/realtime", &[]).await;
    client.find("session.created").await;
    let asked = json!({ "metadata": { "client_event_id": "abc" } });
    client.send(json!({ "type": "response.create", "response": asked })).await;
    let created = client.find("response.created").await;
    assert_eq!(created["response"]["metadata"]["client_event_id"], "abc");
    client.send(json!({ "type": "response.create", "event_id": "e2" })).await;
    let error = loop {
        let event = client.next().await;
        if event["type"] == "error" {
            break event;
        }
    };
    assert_eq!(error["error"]["code"], "conversation_already_has_active_response");
    assert_eq!(error["error"]["event_id"], "e2");
    client.send(json!({ "type": "response.cancel" })).await;
    let done = client.find("response.done").await;
    assert_eq!(done["response"]["status"], "cancelled");
    assert_eq!(done["response"]["status_details"]["reason"], "client_cancelled");
    client.send(json!({ "type": "response.cancel" })).await;
    assert_eq!(client.next().await["error"]["code"], "response_cancel_not_active");
    server.stop().await;
}

#[tokio::test]
async fn what_clients_send_besides_is_answered() {
    let server = Running::start(&Arc::new(Echo::new()), config(1));
    let mut client = Client::connect(&server, "/v1/realtime", &[]).await;
    client.find("session.created").await;
    client.send(json!({ "type": "input_audio_buffer.commit" })).await;
    assert_eq!(client.next().await["error"]["code"], "input_audio_buffer_commit_empty");
    client.say("input_audio_buffer.append", &frames(2)).await;
    client.send(json!({ "type": "input_audio_buffer.commit" })).await;
    let item = client.find("input_audio_buffer.committed").await["item_id"].clone();
    client.find("conversation.item.done").await;
    client.send(json!({ "type": "input_audio_buffer.clear" })).await;
    client.find("input_audio_buffer.cleared").await;
    client.send(json!({ "type": "conversation.item.retrieve", "item_id": item })).await;
    assert_eq!(client.find("conversation.item.retrieved").await["item"]["role"], "user");
    let mine = json!({ "id": "mine", "type": "message", "role": "user", "content": [] });
    client.send(json!({ "type": "conversation.item.create", "item": mine })).await;
    assert_eq!(client.find("conversation.item.added").await["item"]["id"], "mine");
    client.send(json!({ "type": "conversation.item.delete", "item_id": "mine" })).await;
    client.find("conversation.item.deleted").await;
    for (event, code) in [
        (
            json!({ "type": "conversation.item.delete", "item_id": "mine" }),
            "item_delete_invalid_item_id",
        ),
        (json!({ "type": "dance" }), "invalid_value"),
        (json!({ "type": "input_audio_buffer.append", "audio": "!" }), "invalid_value"),
        (json!({ "type": "session.update", "session": 3 }), "invalid_value"),
    ] {
        client.send(event.clone()).await;
        let error = loop {
            let answer = client.next().await;
            if answer["type"] == "error" {
                break answer;
            }
        };
        assert_eq!(error["error"]["code"], code, "{event}");
    }
    client.0.send(Message::Text("{".into())).await.unwrap();
    let error = loop {
        let answer = client.next().await;
        if answer["type"] == "error" {
            break answer;
        }
    };
    assert_eq!(error["error"]["code"], "invalid_json");
    server.stop().await;
}

#[tokio::test]
async fn the_beta_has_its_own_names() {
    let server = Running::start(&Arc::new(Echo::new()), config(1));
    let headers = [("openai-beta", "realtime=v1")];
    let mut client = Client::connect(&server, "/v1/realtime?model=x", &headers).await;
    let created = client.find("session.created").await;
    assert_eq!(created["session"]["input_audio_format"], "pcm16");
    client.find("conversation.created").await;
    client.send(json!({ "type": "session.update", "session": { "turn_detection": { "type": "server_vad" } } })).await;
    assert_eq!(
        client.find("session.updated").await["session"]["turn_detection"]["type"],
        "server_vad"
    );
    client.say("input_audio_buffer.append", &frames(8)).await;
    client.find("input_audio_buffer.speech_started").await;
    client.find("response.audio.delta").await;
    client.find("response.audio_transcript.delta").await;
    server.stop().await;
}

#[tokio::test]
async fn a_full_house_is_told_as_a_rate_limit() {
    let server = Running::start(&Arc::new(Echo::new()), config(1));
    let mut first = Client::connect(&server, "/v1/realtime", &[]).await;
    first.find("session.created").await;
    for path in ["/v1/realtime", "/v1/live/sessions"] {
        let request = format!("{}{path}", server.url()).into_client_request().unwrap();
        let tcp = TcpStream::connect(server.address).await.unwrap();
        let error = tokio_tungstenite::client_async(request, tcp).await.unwrap_err();
        let Error::Http(response) = error else { panic!("{error}") };
        assert_eq!(response.status(), 429, "{path}");
        assert!(response.headers().contains_key("retry-after"), "{path}");
        let body: Value = serde_json::from_slice(response.body().as_deref().unwrap()).unwrap();
        assert_eq!(body["error"]["type"], "rate_limit_error", "{path}");
        assert_eq!(body["error"]["code"], "session_limit_reached", "{path}");
    }
    // Who came while there was room is told inside.
    server.slots(1, 0).await;
    drop(first);
    server.slots(0, 0).await;
    let mut late = Client::connect(&server, "/v1/live/sessions", &[]).await;
    let mut first = Client::connect(&server, "/v1/realtime", &[]).await;
    first.find("session.created").await;
    late.send(json!({ "type": "session.start", "session": { "model": "echo" } })).await;
    assert_eq!(late.next().await["error"]["code"], "session_limit_reached");
    assert_eq!(late.close_code().await, Some(1013));
    server.stop().await;
}

#[tokio::test]
async fn who_waits_is_heard_and_who_leaves_the_line_is_noticed() {
    let settings = ServeConfig { queue: 2, ..config(1) };
    let server = Running::start(&Arc::new(Echo::new()), settings);
    let mut first = Client::connect(&server, "/v1/realtime", &[]).await;
    first.find("session.created").await;
    let waiting = |callers| {
        let hub = server.hub.clone();
        async move { eventually(|| hub.slots().waiting == callers).await }
    };
    let hasty = Client::connect(&server, "/v1/realtime", &[]).await;
    waiting(1).await;
    drop(hasty);
    waiting(0).await;
    let mut live = Client::connect(&server, "/v1/live/sessions", &[]).await;
    live.send(json!({ "type": "session.start", "session": { "model": "echo" } })).await;
    waiting(1).await;
    live.send(json!({ "type": "session.close" })).await;
    let mut next = Client::connect(&server, "/v1/realtime", &[]).await;
    next.send(json!({ "type": "session.update", "session": { "instructions": "early" } })).await;
    next.say("input_audio_buffer.append", &frames(12)).await;
    waiting(2).await;
    drop(first);
    live.find("session.started").await;
    live.find("session.closed").await;
    next.find("session.created").await;
    let session = next.find("session.updated").await["session"].clone();
    assert_eq!(session["instructions"], "early");
    next.find("response.output_audio.delta").await;
    server.stop().await;
}

#[tokio::test]
async fn a_live_session_answers_every_frame_and_says_goodbye() {
    let server = Running::start(&Arc::new(Echo::new()), config(1));
    let mut client = Client::connect(&server, "/v1/live/sessions", &[]).await;
    client
        .send(json!({ "type": "session.start", "event_id": "s", "session": { "model": "echo" } }))
        .await;
    let started = client.next().await;
    assert_eq!(
        (&started["type"], &started["client_event_id"]),
        (&"session.started".into(), &"s".into())
    );
    assert_eq!(started["session"]["status"], "active");
    let said = frames(9);
    let (pcm, text) = Echo::alone(&quantised(&said), 1);
    client.say("session.input_audio.append", &said).await;
    let (mut audio, mut transcript) = (Vec::new(), String::new());
    while audio.len() < 9 || transcript.len() < text.len() {
        let event = client.next().await;
        match event["type"].as_str().unwrap() {
            "session.output_audio.delta" => audio.push(samples(&event)),
            "session.output_transcript.delta" => {
                assert_eq!(event["end_ms"].as_u64().unwrap() % 240, 0);
                transcript.push_str(event["delta"].as_str().unwrap());
            }
            other => panic!("{other}"),
        }
    }
    assert!(transcript.starts_with(&text));
    for (got, expected) in audio.iter().zip(&pcm) {
        assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-4));
    }
    client
        .send(
            json!({ "type": "session.commentary.append", "content": "hi", "delegation_id": null }),
        )
        .await;
    client.find("session.commentary.appended").await;
    assert_eq!(client.find("info").await["code"], "context_ignored");
    client.send(json!({ "type": "session.close" })).await;
    let closed = client.find("session.closed").await;
    assert_eq!(closed["reason"], "close_requested");
    // The SDK knows no other status.
    assert_eq!(closed["session"]["status"], "active");
    assert_eq!(client.close_code().await, Some(1000));
    server.slots(0, 0).await;

    let mut client = Client::connect(&server, "/v1/live/sessions", &[]).await;
    let session = json!({ "model": "echo", "audio": { "format": { "type": "audio/pcmu" } } });
    client.send(json!({ "type": "session.start", "session": session })).await;
    let format = &client.next().await["session"]["audio"]["format"];
    assert_eq!((&format["type"], &format["rate"]), (&"audio/pcmu".into(), &8000.into()));
    drop(client);

    let mut client = Client::connect(&server, "/v1/live/sessions", &[]).await;
    client.send(json!({ "type": "session.update" })).await;
    assert_eq!(client.next().await["error"]["code"], "invalid_value");
    assert_eq!(client.close_code().await, Some(1008));
    server.stop().await;
}

#[tokio::test]
async fn a_live_client_has_a_recording_played() {
    let server = Running::start(&Arc::new(Echo::new()), config(1));
    let mut client = Client::connect(&server, "/v1/live/sessions", &[]).await;
    client.send(json!({ "type": "session.start", "session": { "model": "echo" } })).await;
    client.find("session.started").await;
    let recording = quantised(&frames(3));
    let play = |samples: &[f32], id: &str| {
        let audio = STANDARD.encode(encode(Coding::Pcm16, samples));
        json!({ "type": "session.output_audio.fixture.play", "audio": audio, "event_id": id })
    };
    client.send(play(&[], "empty")).await;
    let refused = client.next().await;
    assert_eq!(
        (&refused["error"]["code"], &refused["error"]["client_event_id"]),
        (&"invalid_value".into(), &"empty".into())
    );
    client.send(play(&recording.concat(), "song")).await;
    let playing = client.find("session.output_audio.fixture.playing").await;
    assert_eq!(playing["client_event_id"], "song");
    client.send(play(&recording.concat(), "other")).await;
    assert_eq!(client.next().await["error"]["code"], "fixture_active");
    // The client goes on talking; neither is it heard, nor does the model speak.
    client.say("session.input_audio.append", &frames(3)).await;
    for frame in &recording {
        let event = client.next().await;
        assert_eq!(event["type"], "session.output_audio.delta");
        let got = samples(&event);
        assert!(got.iter().zip(frame).all(|(a, b)| (a - b).abs() < 1e-4));
    }
    let played = client.find("session.output_audio.fixture.played").await;
    assert_eq!(played["client_event_id"], "song");
    // Silence went in: what comes out now has no trace of the three frames.
    client.say("session.input_audio.append", &[vec![0.0; FRAME]]).await;
    let silence = vec![vec![0.0; FRAME]; 4];
    let (pcm, _) = Echo::alone(&silence, 1);
    let after = client.find("session.output_audio.delta").await;
    assert!(samples(&after).iter().zip(&pcm[3]).all(|(a, b)| (a - b).abs() < 1e-4));
    server.stop().await;
}

#[tokio::test]
async fn a_recording_is_played_to_a_client_that_sends_nothing() {
    let server = Running::start(&Arc::new(Echo::new()), config(1));
    let mut client = Client::connect(&server, "/v1/live/sessions", &[]).await;
    client.send(json!({ "type": "session.start", "session": { "model": "echo" } })).await;
    let audio = STANDARD.encode(encode(Coding::Pcm16, &frames(2).concat()));
    client.send(json!({ "type": "session.output_audio.fixture.play", "audio": audio })).await;
    client.find("session.output_audio.fixture.played").await;
    server.stop().await;
}

/// Values of every kind where another is expected.
fn odd_values() -> Vec<Value> {
    let deep = (0..60).fold(json!(1), |inner, _| json!([inner]));
    vec![
        json!(null),
        json!(true),
        json!(-1.5e300),
        json!("text"),
        json!([]),
        json!({ "format": 7, "input": "x", "type": [] }),
        deep,
    ]
}

#[tokio::test]
async fn odd_events_are_answered_and_hurt_nobody() {
    let server = Running::start(&Arc::new(Echo::new()), config(3));
    let mut witness = Client::connect(&server, "/v1/realtime", &[]).await;
    witness.find("session.created").await;
    let mut client = Client::connect(&server, "/v1/realtime", &[]).await;
    client.find("session.created").await;
    for kind in [
        "session.update",
        "input_audio_buffer.append",
        "conversation.item.create",
        "conversation.item.retrieve",
        "conversation.item.truncate",
        "response.create",
        "no.such.event",
    ] {
        for odd in odd_values() {
            let event = json!({
                "type": kind,
                "event_id": odd,
                "session": { "audio": odd, "turn_detection": odd, "output_modalities": odd },
                "audio": odd,
                "item": odd,
                "item_id": odd,
                "response": odd,
            });
            client.send(event).await;
            client.send(json!({ "type": kind, "session": odd })).await;
        }
    }
    for text in ["", "{", "[]", "7", "\"\u{0}\"", &"[".repeat(100_000)] {
        client.0.send(Message::Text(text.into())).await.unwrap();
        client.0.send(Message::Binary(text.to_owned().into())).await.unwrap();
    }
    client.send(json!({ "type": "session.update", "session": { "instructions": "well" } })).await;
    while client.next().await["session"]["instructions"] != "well" {}
    witness.send(json!({ "type": "session.update", "session": {} })).await;
    witness.find("session.updated").await;
    server.stop().await;
}

#[tokio::test]
async fn odd_live_sessions_start_or_say_why_not() {
    let server = Running::start(&Arc::new(Echo::new()), config(1));
    for odd in odd_values() {
        for session in [odd.clone(), json!({ "audio": odd }), json!({ "audio": { "format": odd } })]
        {
            let mut client = Client::connect(&server, "/v1/live/sessions", &[]).await;
            client.send(json!({ "type": "session.start", "session": session })).await;
            let answer = client.next().await;
            if answer["type"] == "error" {
                assert_eq!(client.close_code().await, Some(1008), "{session}");
                continue;
            }
            assert_eq!(answer["type"], "session.started", "{session}");
            assert!(answer["session"]["audio"]["format"].is_object(), "{session}");
            for kind in ["session.update", "session.input_audio.append", "session.thinking.append"]
            {
                client.send(json!({ "type": kind, "session": odd, "audio": odd })).await;
            }
            client.send(json!({ "type": "session.close" })).await;
            assert_eq!(client.close_code().await, Some(1000), "{session}");
            server.slots(0, 0).await;
        }
    }
    server.stop().await;
}
