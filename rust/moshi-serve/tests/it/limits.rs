//! The table of limits as a client sees it on its socket.

use std::sync::Arc;

use futures_util::{SinkExt, StreamExt};
use moshi_serve::ServeConfig;
use serde_json::json;
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{Echo, FRAME, Running, config, eventually, frames, greeted, talk};

type Socket = WebSocketStream<TcpStream>;

/// Bytes that the system keeps for a client which does not read. Systems tell late that there is
/// room again in a buffer that holds less than a packet.
const RECEIVE_BUFFER_BYTES: u32 = 65_536;

async fn connect(server: &Running, path: &str) -> Socket {
    let tcp = TcpSocket::new_v4().unwrap();
    tcp.set_recv_buffer_size(RECEIVE_BUFFER_BYTES).unwrap();
    let tcp = tcp.connect(server.address).await.unwrap();
    let url = format!("{}{path}", server.url());
    tokio_tungstenite::client_async(url, tcp).await.unwrap().0
}

/// Talks without listening until the server has had enough, then gives the messages that came and
/// how the server closed.
async fn talk_without_listening(
    server: &Running,
    socket: Socket,
    message: Message,
) -> (usize, u16, String) {
    let (mut mouth, mut ears) = socket.split();
    let talking = tokio::spawn(async move { while mouth.send(message.clone()).await.is_ok() {} });
    eventually(|| server.hub.metrics().slow_readers.get() > 0).await;
    server.slots(0, 0).await;
    let mut messages = 0;
    loop {
        match ears.next().await.unwrap().unwrap() {
            Message::Close(frame) => {
                talking.abort();
                let frame = frame.unwrap();
                return (messages, frame.code.into(), frame.reason.as_str().to_owned());
            }
            _ => messages += 1,
        }
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_is_closed_with_a_reason() {
    let server = Running::start(&Arc::new(Echo::new()), config(1));
    let socket = connect(&server, "/api/chat?audio=pcm16").await;
    let audio = [vec![1], vec![0; 2 * FRAME]].concat();
    let (messages, code, reason) =
        talk_without_listening(&server, socket, Message::Binary(audio.into())).await;
    assert_eq!(code, 1008);
    assert!(reason.contains("slow reader"), "{reason}");
    // What waits for it is bounded by the system's buffers: a few seconds of speech.
    assert!(messages < 100, "{messages}");
    let text = server.hub.metrics_text();
    assert!(text.contains("moshi_slow_readers_total 1"), "{text}");
    assert!(text.contains("moshi_sessions_ended_total{reason=\"slow_reader\"} 1"), "{text}");
    server.stop().await;
}

#[tokio::test]
async fn so_is_a_live_client() {
    use base64::Engine as _;
    let server = Running::start(&Arc::new(Echo::new()), config(1));
    let mut socket = connect(&server, "/v1/live/sessions").await;
    let start = json!({ "type": "session.start", "session": { "model": "echo" } });
    socket.send(Message::Text(start.to_string().into())).await.unwrap();
    let audio = base64::engine::general_purpose::STANDARD.encode(vec![0; 2 * FRAME]);
    let append = json!({ "type": "session.input_audio.append", "audio": audio });
    let (messages, code, reason) =
        talk_without_listening(&server, socket, Message::Text(append.to_string().into())).await;
    assert_eq!((code, reason.contains("slow reader")), (1008, true), "{reason}");
    assert!(messages < 100, "{messages}");
    server.stop().await;
}

#[tokio::test]
async fn a_caller_in_the_line_is_pinged_and_hears_nothing_else() {
    let server = Running::start(&Arc::new(Echo::new()), ServeConfig { queue: 1, ..config(1) });
    let mut first = server.connect(&[]).await;
    greeted(&mut first).await;
    let mut second = connect(&server, "/api/chat").await;
    eventually(|| server.hub.slots().waiting == 1).await;
    let waited = second.next().await.unwrap().unwrap();
    assert!(matches!(waited, Message::Ping(_)), "{waited:?}");
    talk(&mut first, &frames(1)).await;
    first.close().await;
    loop {
        match second.next().await.unwrap().unwrap() {
            Message::Ping(_) => {}
            Message::Binary(handshake) => break assert_eq!(handshake[..], [0; 9]),
            other => panic!("{other:?}"),
        }
    }
    server.stop().await;
}
