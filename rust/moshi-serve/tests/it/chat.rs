//! The Moshi WebSocket as its clients see it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use moshi_serve::ServeConfig;
use moshi_serve::client::{ChatClient, ClientEvent, ClientOptions, FrameLength, converse};
use moshi_wire::chat::ChatMessage;
use moshi_wire::opus::OpusWriter;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{
    Echo, FRAME, RATE_HZ, Running, closed, config, frames, greeted, heard, http, last_words, talk,
    through_opus,
};

#[tokio::test]
async fn a_conversation_is_that_of_a_direct_run() {
    let server = Running::start(&Arc::new(Echo::new()), config(2));
    let frames = frames(12);
    let (pcm, expected) = Echo::alone(&heard(&frames), 7);
    let mut client = server.connect(&[("audio_seed", "7"), ("email", "a@b.c")]).await;
    greeted(&mut client).await;
    let (audio, mut text) = talk(&mut client, &frames).await;
    last_words(&mut client, &mut text, &expected).await;
    assert_eq!(text, expected);
    assert!(audio == through_opus(&pcm), "the same packets for the same samples");
    client.close().await;
    server.slots(0, 0).await;
    server.stop().await;
}

#[tokio::test]
async fn the_first_messages_are_handshake_and_complete_metadata() {
    let server = Running::start(&Arc::new(Echo::new()), config(1));
    let url = format!("{}/api/chat?text_temperature=1000&audio_topk=12", server.url());
    let (mut socket, _) = tokio_tungstenite::client_async(
        url,
        tokio::net::TcpStream::connect(server.address).await.unwrap(),
    )
    .await
    .unwrap();
    let first = socket.next().await.unwrap().unwrap();
    assert_eq!(first, Message::Binary(vec![0; 9].into()));
    let second = socket.next().await.unwrap().unwrap().into_data();
    assert_eq!(second[0], 4);
    let metadata: serde_json::Value = serde_json::from_slice(&second[1..]).unwrap();
    for number in [
        "text_temperature",
        "text_topk",
        "audio_temperature",
        "audio_topk",
        "pad_mult",
        "repetition_penalty_context",
        "repetition_penalty",
        "sample_rate",
        "lag_ms",
        "step_ms",
        "dropped_frames",
        "resume_grace_s",
    ] {
        assert!(metadata[number].is_number(), "{number} in {metadata}");
    }
    for text in ["lm_model_file", "instance_name", "server", "seed", "resume_token"] {
        assert!(metadata[text].is_string(), "{text} in {metadata}");
    }
    let build = metadata["build_info"].as_object().unwrap();
    assert!(build.len() == 10 && build.values().all(serde_json::Value::is_string));
    assert_eq!(metadata["audio_topk"], 12);
    assert_eq!(metadata["text_temperature"], 100.0);
    server.stop().await;
}

#[tokio::test]
async fn bad_parameters_and_plain_requests_are_refused_before_the_upgrade() {
    let server = Running::start(&Arc::new(Echo::new()), config(1));
    let (status, body) = http(server.address, "GET /api/chat?audio_topk=x", "").await;
    assert_eq!(status, 400);
    assert!(body.contains("audio_topk") && body.contains("invalid_value"), "{body}");
    assert_eq!(http(server.address, "GET /api/chat", "").await.0, 426);
    assert_eq!(http(server.address, "GET /nowhere", "").await.0, 404);
    server.stop().await;
}

#[tokio::test]
async fn sessions_do_not_hear_each_other() {
    let server = Running::start(&Arc::new(Echo::new()), config(4));
    let frames = frames(9);
    let mut clients = Vec::new();
    for seed in 1..=4u64 {
        let mut client = server.connect(&[("audio_seed", &seed.to_string())]).await;
        greeted(&mut client).await;
        let frames = frames[seed as usize..].to_vec();
        clients.push(tokio::spawn(async move {
            let (pcm, expected) = Echo::alone(&heard(&frames), seed);
            let (audio, mut text) = talk(&mut client, &frames).await;
            last_words(&mut client, &mut text, &expected).await;
            assert_eq!(text, expected);
            assert!(audio == through_opus(&pcm), "session {seed}");
        }));
    }
    for client in clients {
        client.await.unwrap();
    }
    server.stop().await;
}

#[tokio::test]
async fn a_session_ends_at_the_length_that_it_asked_for() {
    let server = Running::start(&Arc::new(Echo::new()), config(1));
    let mut client = server.connect(&[("max_steps", "2")]).await;
    greeted(&mut client).await;
    talk(&mut client, &frames(2)).await;
    assert_eq!(client.next().await, ClientEvent::Notice("session limit reached".into()));
    assert_eq!(closed(&mut client).await.unwrap().0, 1000);
    server.slots(0, 0).await;
    server.stop().await;
}

#[tokio::test]
async fn a_full_house_refuses_with_a_code_and_a_reason() {
    let server = Running::start(&Arc::new(Echo::new()), config(1));
    let mut first = server.connect(&[]).await;
    greeted(&mut first).await;
    let mut second = server.connect(&[]).await;
    let (code, reason) = closed(&mut second).await.unwrap();
    assert_eq!(code, 1013);
    assert!(reason.contains("all 1 sessions"), "{reason}");
    let text = server.hub.metrics_text();
    assert!(text.contains("moshi_sessions_rejected_total{reason=\"full\"} 1"), "{text}");
    first.close().await;
    server.slots(0, 0).await;
    greeted(&mut server.connect(&[]).await).await;
    server.stop().await;
}

#[tokio::test]
async fn callers_in_the_line_are_served_in_turn_and_hear_nothing_before() {
    let server = Running::start(&Arc::new(Echo::new()), ServeConfig { queue: 2, ..config(1) });
    let mut first = server.connect(&[]).await;
    greeted(&mut first).await;
    let mut second = server.connect(&[]).await;
    crate::support::eventually(|| server.hub.slots().waiting == 1).await;
    let mut gone = server.connect(&[]).await;
    crate::support::eventually(|| server.hub.slots().waiting == 2).await;
    let mut refused = server.connect(&[]).await;
    assert_eq!(closed(&mut refused).await.unwrap().0, 1013);
    assert!(tokio::time::timeout(Duration::from_millis(100), gone.next()).await.is_err());
    drop(gone);
    crate::support::eventually(|| server.hub.slots().waiting == 1).await;
    first.close().await;
    greeted(&mut second).await;
    talk(&mut second, &frames(2)).await;
    server.stop().await;
}

#[tokio::test]
async fn a_recording_at_the_pace_of_speech_has_an_answer_for_every_frame() {
    let server = Running::start(&Arc::new(Echo::new()), config(1));
    let mut client = server.connect(&[("seed", "3"), ("stats", "1")]).await;
    let frames = frames(15);
    let (_, expected) = Echo::alone(&heard(&frames), 3);
    let report = converse(
        &mut client,
        frames.clone().into_iter(),
        FrameLength { samples: FRAME, time: Duration::from_millis(20) },
        |_| {},
        || false,
    )
    .await
    .unwrap();
    // A machine that stalls for longer than a dialogue may lag makes the server drop.
    let text = server.hub.metrics_text();
    let dropped = text.lines().find(|line| line.starts_with("moshi_input_dropped_frames_total"));
    let dropped: usize = dropped.unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    assert_eq!(report.sent_frames, 15);
    assert_eq!(report.samples.len(), (15 - dropped) * 1920);
    if dropped == 0 {
        assert_eq!(report.latency.frames(), 15);
        assert_eq!(report.text, expected);
    }
    server.stop().await;
}

#[tokio::test]
async fn text_that_comes_long_after_its_audio_is_waited_for() {
    const LATE: Duration = Duration::from_millis(600);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let mut socket = tokio_tungstenite::accept_async(tcp).await.unwrap();
        let binary = |message: ChatMessage<'_>| Message::Binary(message.encode().into());
        let handshake = ChatMessage::Handshake { protocol: 0, model: 0 };
        socket.send(binary(handshake)).await.unwrap();
        socket.next().await.unwrap().unwrap();
        let pages = OpusWriter::new(RATE_HZ).unwrap().push(&frames(1)[0]).unwrap();
        socket.send(binary(ChatMessage::Audio(&pages))).await.unwrap();
        tokio::time::sleep(LATE).await;
        socket.send(binary(ChatMessage::Text(" at last"))).await.unwrap();
        while let Some(Ok(_)) = socket.next().await {}
    });
    let mut client = ChatClient::connect(&url, &ClientOptions::default()).await.unwrap();
    let frame = FrameLength { samples: FRAME, time: Duration::from_millis(80) };
    let said = converse(&mut client, frames(1).into_iter(), frame, |_| {}, || false);
    let report = said.await.unwrap();
    assert_eq!(report.text, " at last");
    assert_eq!((report.latency.frames(), report.closed), (1, None));
    serving.await.unwrap();
}

#[tokio::test]
async fn facts_are_served() {
    let server = Running::start(&Arc::new(Echo::new()), config(3));
    let get = async |path: &str| http(server.address, &format!("GET {path}"), "").await;
    for path in ["/healthz", "/readyz", "/health", "/ping", "/v2/health/live", "/v2/health/ready"] {
        assert_eq!(get(path).await.0, 200, "{path}");
    }
    let json = |body: &str| serde_json::from_str::<serde_json::Value>(body).unwrap();
    let ready = json(&get("/readyz").await.1);
    assert_eq!((&ready["status"], &ready["models"][0]["slots_total"]), (&"ok".into(), &3.into()));
    assert_eq!(json(&get("/api/build_info").await.1).as_object().unwrap().len(), 10);
    let modules = json(&get("/api/modules_info").await.1);
    assert_eq!(modules[0]["total_slots"], "3");
    let models = json(&get("/v1/models").await.1);
    assert_eq!(models["data"][0]["id"], "echo");
    assert_eq!(get("/v1/models/echo").await.0, 200);
    assert_eq!(get("/v1/models/other").await.0, 404);
    let metrics = get("/metrics").await.1;
    assert!(metrics.contains("moshi_slots{state=\"capacity\"} 3"), "{metrics}");
    assert!(metrics.contains("# TYPE moshi_slow_readers_total counter"), "{metrics}");
    let accept = "Accept: application/openmetrics-text; version=1.0.0, text/plain; q=0.5\r\n";
    let metrics = http(server.address, "GET /metrics", accept).await.1;
    assert!(metrics.contains("# TYPE moshi_slow_readers counter"), "{metrics}");
    assert!(metrics.trim_end().ends_with("# EOF"), "{metrics}");
    let page = get("/").await;
    assert!(page.0 == 200 && page.1.contains("<html"), "{page:?}");
    server.stop().await;
}
