//! The load test against servers that fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use moshi_serve::client::{ClientOptions, FrameLength, LoadOptions, LoadReport, load_test};
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{Echo, FRAME, Running, config, frames};

const FRAMES: usize = 4;

fn options(url: String) -> LoadOptions {
    let frame_time = Duration::from_millis(80);
    LoadOptions {
        url,
        client: ClientOptions::default(),
        sessions: 1,
        duration: frame_time * FRAMES as u32,
        samples: frames(FRAMES).concat(),
        frame: FrameLength { samples: FRAME, time: frame_time },
    }
}

/// A server that listens, takes so many messages in silence, and then cuts the connection or
/// keeps it.
async fn against_a_failing_server(messages: usize, cuts: bool) -> LoadReport {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = Arc::clone(&stop);
    tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let mut socket = tokio_tungstenite::accept_async(tcp).await.unwrap();
        socket.send(Message::Binary(vec![0; 9].into())).await.unwrap();
        for _ in 0..messages {
            socket.next().await.unwrap().unwrap();
        }
        if cuts {
            return;
        }
        // Nothing more will come: there is no need to wait for the client's patience to end.
        stopping.store(true, Ordering::Relaxed);
        while socket.next().await.is_some() {}
    });
    load_test(options(url), stop).await.unwrap()
}

#[tokio::test]
async fn frames_without_an_answer_are_late() {
    let report = against_a_failing_server(FRAMES, false).await;
    assert!(report.sent_frames > 0);
    assert_eq!((report.late_frames, report.latency.frames()), (report.sent_frames, 0));
}

#[tokio::test]
async fn a_session_that_is_cut_did_not_run_to_its_end() {
    let report = against_a_failing_server(1, true).await;
    assert_eq!((report.completed, report.cut), (0, 1));
    assert!(report.reasons[0].contains("broke"), "{:?}", report.reasons);
}

#[tokio::test]
async fn a_good_server_answers_everything() {
    let server = Running::start(&Arc::new(Echo::new()), config(1));
    for path in ["", "/?audio=pcm16"] {
        let stop = Arc::new(AtomicBool::new(false));
        let url = format!("{}{path}", server.url());
        let report = load_test(options(url), stop).await.unwrap();
        assert_eq!((report.completed, report.cut), (1, 0), "{path}");
        assert_eq!((report.sent_frames, report.latency.frames()), (FRAMES, FRAMES), "{path}");
        server.slots(0, 0).await;
    }
    server.stop().await;
}
