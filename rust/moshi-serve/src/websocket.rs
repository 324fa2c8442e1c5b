//! From an HTTP request to a WebSocket, and the limits of one.

use std::time::Duration;

use axum::body::Body;
use axum::http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{CapacityError, ProtocolError};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Bytes, Error, Message};

use crate::auth::protocols;

/// Of the random number in a request, by the protocol.
const KEY_BYTES: usize = 16;
/// Time that a peer may take to accept what it is sent.
const WRITE_STALL: Duration = Duration::from_secs(5);
/// Time for a last word to a peer that may be gone.
const FAREWELL: Duration = Duration::from_millis(500);
/// The same for one that is there and does not read: it gets the reason if it reads again.
const LATE_FAREWELL: Duration = Duration::from_secs(5);
/// What is read from the socket at once.
const READ_BUFFER_BYTES: usize = 16 * 1024;
/// Answers that may wait for a peer that sends and does not read, beside a largest message.
const MAX_UNSENT_BYTES: usize = 8 << 20;
/// Pings and pongs that a peer may send at once, and each second from then on. Every ping costs an
/// answer. Those of minutes may come at once where a connection was not read for so long.
const MAX_CONTROL_FRAMES: f64 = 200.0;
const CONTROL_FRAMES_PER_S: f64 = 10.0;
/// Codes after which the rest of what a peer sends is no WebSocket any more.
const UNREADABLE: [CloseCode; 3] = [CloseCode::Protocol, CloseCode::Invalid, CloseCode::Size];
/// Longest reason in a close frame, by the protocol.
const MAX_REASON_BYTES: usize = 123;

/// What a peer sent.
#[derive(Debug)]
pub(crate) enum Received {
    Binary(Bytes),
    Text(String),
    /// Its socket lives.
    Pong,
    /// It said goodbye.
    Closed,
    /// The connection broke.
    Lost,
    /// What ends the connection.
    Misuse(Misuse),
}

/// What a peer may not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Misuse {
    /// A message beyond the limit.
    TooLarge,
    /// Pings or pongs beyond the limit.
    Flooding,
    /// Frames that are against the protocol.
    Protocol,
    /// Text that is not UTF-8.
    Text,
}

impl Misuse {
    /// Code and reason of the close frame.
    pub(crate) fn close(self) -> (u16, &'static str) {
        match self {
            Self::TooLarge => (1009, "message too large"),
            Self::Flooding => (1008, "too many pings; one every few seconds is enough"),
            Self::Protocol => (1002, "not the WebSocket protocol"),
            Self::Text => (1007, "text that is not UTF-8"),
        }
    }
}

/// How many control frames a peer may still send.
#[derive(Debug)]
struct Controls {
    at: Instant,
    left: f64,
}

impl Controls {
    fn begin(now: Instant) -> Self {
        Self { at: now, left: MAX_CONTROL_FRAMES }
    }

    /// Counts one; false when there are too many.
    fn count(&mut self, now: Instant) -> bool {
        let grown = now.duration_since(self.at).as_secs_f64() * CONTROL_FRAMES_PER_S;
        self.left = (self.left + grown).min(MAX_CONTROL_FRAMES) - 1.0;
        self.at = now;
        self.left >= 0.0
    }
}

/// A server's end of a WebSocket.
pub(crate) struct Socket {
    stream: WebSocketStream<TokioIo<Upgraded>>,
    controls: Controls,
    stalled: bool,
}

impl Socket {
    pub(crate) async fn receive(&mut self) -> Received {
        match self.stream.next().await {
            Some(Ok(Message::Binary(bytes))) => Received::Binary(bytes),
            Some(Ok(Message::Text(text))) => Received::Text(text.as_str().to_owned()),
            // The library answers pings itself.
            Some(Ok(Message::Pong(_) | Message::Ping(_) | Message::Frame(_))) => {
                if self.controls.count(Instant::now()) {
                    Received::Pong
                } else {
                    Received::Misuse(Misuse::Flooding)
                }
            }
            Some(Err(Error::Capacity(CapacityError::MessageTooLong { .. }))) => {
                Received::Misuse(Misuse::TooLarge)
            }
            Some(Ok(Message::Close(_)) | Err(Error::ConnectionClosed)) => Received::Closed,
            Some(Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake))) => {
                Received::Lost
            }
            Some(Err(Error::Protocol(_))) => Received::Misuse(Misuse::Protocol),
            Some(Err(Error::Utf8(_))) => Received::Misuse(Misuse::Text),
            Some(Err(_)) | None => Received::Lost,
        }
    }

    /// Sends and flushes; false when the peer is gone or does not take it.
    pub(crate) async fn send(&mut self, message: Message) -> bool {
        let sent = timeout(WRITE_STALL, self.stream.send(message)).await;
        self.stalled |= sent.is_err();
        matches!(sent, Ok(Ok(())))
    }

    /// True when the peer did not take what it was sent, but may be there.
    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled
    }

    pub(crate) async fn send_bytes(&mut self, bytes: Vec<u8>) -> bool {
        self.send(Message::Binary(bytes.into())).await
    }

    pub(crate) async fn send_text(&mut self, text: String) -> bool {
        self.send(Message::Text(text.into())).await
    }

    pub(crate) async fn ping(&mut self) -> bool {
        self.send(Message::Ping(Bytes::new())).await
    }

    /// Says why, and closes. What a peer is still sending is thrown away for a moment: an answer to
    /// unread bytes is a reset, which would overtake the reason.
    pub(crate) async fn close(mut self, code: u16, reason: &str) {
        self.say_goodbye(code, reason).await;
    }

    /// Sends the answer to a goodbye that was received. Nothing is to be sent after it.
    pub(crate) async fn answer_goodbye(&mut self) {
        // The protocol's own answer waits to be sent, and says the peer's code.
        let farewell = async { while let Some(Ok(_)) = self.stream.next().await {} };
        let _ = timeout(FAREWELL, farewell).await;
    }

    /// As [`Socket::close`], for one that is borrowed: nothing is to be sent after it.
    pub(crate) async fn refuse(&mut self, misuse: Misuse) {
        let (code, reason) = misuse.close();
        self.say_goodbye(code, reason).await;
    }

    async fn say_goodbye(&mut self, code: u16, reason: &str) {
        let mut end = reason.len().min(MAX_REASON_BYTES);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        let frame = CloseFrame { code: CloseCode::from(code), reason: reason[..end].into() };
        let farewell = async {
            // After the peer's close frame, this fails: what is left to do is in `next` either way.
            let _ = self.stream.send(Message::Close(Some(frame))).await;
            while let Some(received) = self.stream.next().await {
                if received.is_err() {
                    break;
                }
            }
            if UNREADABLE.contains(&CloseCode::from(code)) {
                let mut rest = vec![0; READ_BUFFER_BYTES];
                while self.stream.get_mut().read(&mut rest).await.is_ok_and(|count| count > 0) {}
            }
        };
        let patience = if self.stalled { LATE_FAREWELL } else { FAREWELL };
        let _ = timeout(patience, farewell).await;
    }
}

/// True for a request that wants to become a WebSocket.
pub(crate) fn asks_for_upgrade(headers: &HeaderMap) -> bool {
    has_token(headers, &CONNECTION, "upgrade")
        && has_token(headers, &UPGRADE, "websocket")
        && headers.get(SEC_WEBSOCKET_VERSION).is_some_and(|version| version == "13")
}

/// Answers a request for a WebSocket, and runs `serve` on it. `protocol` is the sub-protocol to
/// agree on, if the client offers it.
pub(crate) fn upgrade<F, S>(
    request: &mut Request<Body>,
    protocol: &'static str,
    max_message_bytes: usize,
    serve: F,
) -> Response<Body>
where
    F: FnOnce(Socket) -> S + Send + 'static,
    S: Future<Output = ()> + Send + 'static,
{
    let headers = request.headers();
    let asks = asks_for_upgrade(headers);
    let is_key = |key: &&HeaderValue| STANDARD.decode(key).is_ok_and(|key| key.len() == KEY_BYTES);
    let key = headers.get(SEC_WEBSOCKET_KEY).filter(|_| asks).filter(is_key);
    let Some(accept) = key.map(|key| derive_accept_key(key.as_bytes())) else {
        let mut response = Response::new(Body::from("this address speaks WebSocket\n"));
        *response.status_mut() = StatusCode::UPGRADE_REQUIRED;
        response.headers_mut().insert(UPGRADE, "websocket".parse().expect("plain text"));
        return response;
    };
    let agreed = protocols(headers).any(|offer| offer == protocol);
    let upgrading = hyper::upgrade::on(request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgrading.await else { return };
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_BYTES)
            .write_buffer_size(0)
            .max_write_buffer_size(max_message_bytes + MAX_UNSENT_BYTES)
            .max_message_size(Some(max_message_bytes))
            .max_frame_size(Some(max_message_bytes));
        let io = TokioIo::new(upgraded);
        let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
        let controls = Controls::begin(Instant::now());
        serve(Socket { stream: socket, controls, stalled: false }).await;
    });
    let mut response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(CONNECTION, "upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_ACCEPT, accept);
    if agreed {
        response = response.header(SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    response.body(Body::empty()).expect("all values are plain text")
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(token)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_frames_are_limited_at_once_and_not_over_a_life() {
        let start = Instant::now();
        let mut controls = Controls::begin(start);
        let later = |seconds: u64| start + Duration::from_secs(seconds);
        assert!((0..200).all(|_| controls.count(start)));
        assert!(!controls.count(start));
        assert!((1..1_000).all(|second| (0..9).all(|_| controls.count(later(second)))));
        assert!((0..200).all(|_| controls.count(later(2_000))));
        assert!(!controls.count(later(2_000)));
    }
}
