//! One connection to `/api/chat`.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderValue, Uri};
use futures_util::{SinkExt, StreamExt};
use moshi_wire::WireError;
use moshi_wire::chat::ChatMessage;
use moshi_wire::opus::{OpusCounter, OpusReader, OpusWriter};
use moshi_wire::pcm::{self, Coding, SampleReader};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use crate::error::ServeError;
use crate::tls;

/// Time to connect, and to shake hands.
const CONNECT: Duration = Duration::from_secs(10);
/// Time that a server may take to accept what it is sent.
const WRITE_STALL: Duration = Duration::from_secs(10);
/// Time to say goodbye.
const FAREWELL: Duration = Duration::from_secs(1);

/// How to connect.
#[derive(Debug, Clone, Default)]
pub struct ClientOptions {
    /// API key, sent as a header.
    pub api_key: Option<String>,
    /// A certificate in PEM to trust beside the public ones.
    pub certificate: Option<PathBuf>,
    /// Parameters to add to the address.
    pub parameters: Vec<(String, String)>,
    /// Rate of the samples, in and out, in Hz; one that Opus knows. 0 is 24,000.
    pub sample_rate_hz: u32,
    /// What comes is counted and not unpacked, which takes no time worth a word.
    pub counts_only: bool,
}

impl ClientOptions {
    fn rate_hz(&self) -> u32 {
        if self.sample_rate_hz == 0 { 24_000 } else { self.sample_rate_hz }
    }
}

/// What a server sends.
#[derive(Debug, Clone, PartialEq)]
pub enum ClientEvent {
    /// It listens.
    Ready,
    /// Samples.
    Audio(Vec<f32>),
    /// So many samples, see [`ClientOptions::counts_only`].
    Counted(usize),
    /// Text that follows the text before.
    Text(String),
    /// Facts about the session.
    Metadata(Value),
    /// A notice for people.
    Notice(String),
    /// The end: code and reason, if it said them.
    Closed(Option<(u16, String)>),
}

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A conversation as its client sees it.
pub struct ChatClient {
    socket: WebSocketStream<Box<dyn Io>>,
    audio: Audio,
    closed: bool,
    sent_at: Instant,
    received_at: Instant,
}

/// The form in which samples travel.
struct Audio {
    packer: Packer,
    unpacker: Unpacker,
}

/// What makes messages of samples.
pub(super) enum Packer {
    Opus(Box<OpusWriter>),
    Pcm16,
}

enum Unpacker {
    Opus(Box<OpusReader>),
    Pcm16(SampleReader),
    OpusCounter(OpusCounter),
    Pcm16Counter,
}

impl Packer {
    /// As the server at `url` wants it.
    ///
    /// # Errors
    /// [`ServeError::Config`] for an address that is none, or a rate that Opus does not know.
    pub(super) fn new(url: &str, options: &ClientOptions) -> Result<Self, ServeError> {
        Self::of(&Address::parse(url, &options.parameters)?, options)
    }

    fn of(address: &Address, options: &ClientOptions) -> Result<Self, ServeError> {
        if address.wants_pcm16() {
            return Ok(Self::Pcm16);
        }
        Ok(Self::Opus(Box::new(OpusWriter::new(options.rate_hz()).map_err(codec)?)))
    }

    pub(super) fn pack(&mut self, samples: &[f32]) -> Result<Vec<u8>, ServeError> {
        match self {
            Self::Opus(writer) => writer.push(samples).map_err(codec),
            Self::Pcm16 => Ok(pcm::encode(Coding::Pcm16, samples)),
        }
    }
}

impl Unpacker {
    fn of(address: &Address, options: &ClientOptions) -> Result<Self, ServeError> {
        let rate_hz = options.rate_hz();
        Ok(match (address.wants_pcm16(), options.counts_only) {
            (true, true) => Self::Pcm16Counter,
            (true, false) => Self::Pcm16(SampleReader::new(Coding::Pcm16)),
            (false, true) => Self::OpusCounter(OpusCounter::new(rate_hz)),
            (false, false) => Self::Opus(Box::new(OpusReader::new(rate_hz).map_err(codec)?)),
        })
    }

    fn unpack(&mut self, bytes: &[u8]) -> ClientEvent {
        let mut samples = Vec::new();
        match self {
            Self::OpusCounter(counter) => return ClientEvent::Counted(counter.push(bytes)),
            Self::Pcm16Counter => return ClientEvent::Counted(bytes.len() / 2),
            Self::Opus(reader) => reader.push(bytes, &mut samples),
            Self::Pcm16(reader) => reader.push(bytes, &mut samples),
        }
        ClientEvent::Audio(samples)
    }
}

fn codec(error: WireError) -> ServeError {
    ServeError::Config(error.to_string())
}

impl ChatClient {
    /// Connects to a server at `ws://`, `wss://`, `http://` or `https://`; without a path, to
    /// `/api/chat`. With `audio=pcm16` in the address, samples travel as they are, else as Opus.
    ///
    /// # Errors
    /// [`ServeError::Connect`] with what the server said; [`ServeError::Config`] for an address
    /// that is none.
    pub async fn connect(url: &str, options: &ClientOptions) -> Result<Self, ServeError> {
        let address = Address::parse(url, &options.parameters)?;
        let shown = address.shown();
        let refuse = |reason: String| ServeError::Connect { url: shown.clone(), reason };
        let connecting = TcpStream::connect((address.host.as_str(), address.port));
        let tcp = match timeout(CONNECT, connecting).await {
            Err(_) => return Err(refuse("no answer; check address and firewall".into())),
            Ok(Err(error)) => return Err(refuse(format!("{error}; is the server running?"))),
            Ok(Ok(tcp)) => tcp,
        };
        let _ = tcp.set_nodelay(true);
        let io: Box<dyn Io> = if address.secure {
            let connector = tls::connecting(options.certificate.as_deref())?;
            let name = ServerName::try_from(address.host.clone())
                .map_err(|_| refuse("not a host name that a certificate can have".into()))?;
            match timeout(CONNECT, connector.connect(name, tcp)).await {
                Err(_) => return Err(refuse("no answer to the TLS handshake".into())),
                Ok(Err(error)) => {
                    let hint = "trust a self-signed certificate with --ca-file";
                    return Err(refuse(format!("TLS: {error}; {hint}")));
                }
                Ok(Ok(tls)) => Box::new(tls),
            }
        } else {
            Box::new(tcp)
        };
        let mut request = address
            .uri()
            .into_client_request()
            .map_err(|error| ServeError::Config(format!("{shown}: {error}")))?;
        if let Some(key) = &options.api_key {
            let mut value = HeaderValue::try_from(format!("Bearer {key}"))
                .map_err(|_| ServeError::Config("the API key cannot be sent in a header".into()))?;
            value.set_sensitive(true);
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        let config = WebSocketConfig::default().write_buffer_size(0).read_buffer_size(16 * 1024);
        let socket =
            match timeout(CONNECT, client_async_with_config(request, io, Some(config))).await {
                Err(_) => return Err(refuse("no answer to the WebSocket handshake".into())),
                Ok(Err(Error::Http(response))) => {
                    let body = response.body().as_deref().unwrap_or_default();
                    return Err(refuse(format!("{}{}", response.status(), message_of(body))));
                }
                Ok(Err(error)) => return Err(refuse(error.to_string())),
                Ok(Ok((socket, _))) => socket,
            };
        Ok(Self {
            socket,
            audio: Audio {
                packer: Packer::of(&address, options)?,
                unpacker: Unpacker::of(&address, options)?,
            },
            closed: false,
            sent_at: Instant::now(),
            received_at: Instant::now(),
        })
    }

    /// Sends samples; false when the connection is gone.
    ///
    /// # Errors
    /// [`ServeError::Config`] if the codec fails.
    pub async fn send(&mut self, samples: &[f32]) -> Result<bool, ServeError> {
        let bytes = self.audio.packer.pack(samples)?;
        Ok(self.send_packed(&bytes).await)
    }

    /// Sends what a [`Packer`] made; false when the connection is gone.
    pub(super) async fn send_packed(&mut self, bytes: &[u8]) -> bool {
        self.sent_at = Instant::now();
        if bytes.is_empty() {
            return !self.closed;
        }
        self.send_message(ChatMessage::Audio(bytes).encode()).await
    }

    /// When the last samples were packed and about to be written.
    pub fn sent_at(&self) -> Instant {
        self.sent_at
    }

    /// When the last message came, before it was unpacked.
    pub fn received_at(&self) -> Instant {
        self.received_at
    }

    /// Sends a message as it is; false when the connection is gone. A server that takes nothing for
    /// long is gone too.
    pub async fn send_message(&mut self, message: Vec<u8>) -> bool {
        if self.closed {
            return false;
        }
        match timeout(WRITE_STALL, self.socket.send(Message::Binary(message.into()))).await {
            Ok(sent) => sent.is_ok(),
            Err(_) => {
                self.closed = true;
                false
            }
        }
    }

    /// What comes next; after the end, the end again.
    pub async fn next(&mut self) -> ClientEvent {
        while !self.closed {
            match self.socket.next().await {
                Some(Ok(Message::Binary(bytes))) => {
                    self.received_at = Instant::now();
                    if let Some(event) = self.event(&bytes) {
                        return event;
                    }
                }
                Some(Ok(Message::Close(frame))) => {
                    self.closed = true;
                    let said = frame.map(|f| (u16::from(f.code), f.reason.as_str().to_owned()));
                    return ClientEvent::Closed(said);
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => self.closed = true,
            }
        }
        ClientEvent::Closed(None)
    }

    fn event(&mut self, message: &[u8]) -> Option<ClientEvent> {
        Some(match ChatMessage::decode(message).ok()? {
            ChatMessage::Handshake { .. } => ClientEvent::Ready,
            ChatMessage::Audio(bytes) => self.audio.unpacker.unpack(bytes),
            ChatMessage::Text(text) | ChatMessage::ColoredText(_, text) => {
                ClientEvent::Text(text.to_owned())
            }
            ChatMessage::Metadata(json) => ClientEvent::Metadata(serde_json::from_str(json).ok()?),
            ChatMessage::Error(text) => ClientEvent::Notice(text.to_owned()),
            ChatMessage::Ping
            | ChatMessage::Control(_)
            | ChatMessage::Image(_)
            | ChatMessage::Rating(_) => return None,
        })
    }

    /// Says goodbye, and no more; false when the connection is gone. What the server still had to
    /// say comes from [`ChatClient::next`], then its own goodbye.
    pub async fn hang_up(&mut self) -> bool {
        !self.closed && self.socket.close(None).await.is_ok()
    }

    /// Says goodbye and waits for the server's.
    pub async fn close(mut self) {
        let farewell = async {
            if self.hang_up().await {
                while let Some(Ok(_)) = self.socket.next().await {}
            }
        };
        let _ = timeout(FAREWELL, farewell).await;
    }
}

/// The message of an error in JSON, cut to a line.
fn message_of(body: &[u8]) -> String {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let message = value["error"]["message"].as_str().unwrap_or_default();
    let line: String = message.chars().filter(|c| !c.is_control()).take(300).collect();
    if line.is_empty() { line } else { format!(": {line}") }
}

struct Address {
    secure: bool,
    host: String,
    port: u16,
    authority: String,
    path: String,
}

impl Address {
    fn parse(url: &str, parameters: &[(String, String)]) -> Result<Self, ServeError> {
        let bad = |reason: &str| ServeError::Config(format!("{url}: {reason}"));
        let full = if url.contains("://") { url.to_owned() } else { format!("ws://{url}") };
        let uri: Uri = full.parse().map_err(|_| bad("not an address like ws://host:8998"))?;
        let secure = match uri.scheme_str() {
            Some("ws" | "http") => false,
            Some("wss" | "https") => true,
            _ => return Err(bad("begin with ws://, wss://, http:// or https://")),
        };
        let authority = uri.authority().ok_or_else(|| bad("names no host"))?;
        if authority.as_str().contains('@') {
            return Err(bad("give the key with --api-key-file or MOSHI_RS_API_KEY"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if authority.port_u16().is_none() && authority.as_str() != authority.host() {
            return Err(bad("has no port from 0 to 65535 behind its host"));
        }
        let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let mut path = match uri.path() {
            "" | "/" => "/api/chat".to_owned(),
            path => path.to_owned(),
        };
        let mut query = uri.query().unwrap_or_default().to_owned();
        for (name, value) in parameters {
            if !query.is_empty() {
                query.push('&');
            }
            query.extend([escape(name), "=".to_owned(), escape(value)]);
        }
        if !query.is_empty() {
            path.push('?');
            path.push_str(&query);
        }
        Ok(Self { secure, host, port, authority: authority.as_str().to_owned(), path })
    }

    fn wants_pcm16(&self) -> bool {
        let query = self.path.split_once('?').map_or("", |(_, query)| query);
        query.split('&').any(|pair| pair == "audio=pcm16")
    }

    fn scheme(&self) -> &'static str {
        if self.secure { "wss" } else { "ws" }
    }

    fn uri(&self) -> String {
        format!("{}://{}{}", self.scheme(), self.authority, self.path)
    }

    /// Without parameters, which may hold secrets.
    fn shown(&self) -> String {
        let path = self.path.split('?').next().unwrap_or_default();
        format!("{}://{}{path}", self.scheme(), self.authority)
    }
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_completed() {
        let parameters = [("resume".to_owned(), "a b&c".to_owned())];
        for (url, uri) in [
            ("localhost:8998", "ws://localhost:8998/api/chat?resume=a%20b%26c"),
            ("http://[::1]:1/", "ws://[::1]:1/api/chat?resume=a%20b%26c"),
            ("https://h/x?y=1", "wss://h/x?y=1&resume=a%20b%26c"),
        ] {
            assert_eq!(Address::parse(url, &parameters).unwrap().uri(), uri);
        }
        let address = Address::parse("https://h/x?key=secret", &[]).unwrap();
        assert_eq!((address.port, address.shown().as_str()), (443, "wss://h/x"));
        for bad in ["ftp://h", "ws://", "http://user:pw@h", "ws://h:port"] {
            assert!(Address::parse(bad, &[]).is_err(), "{bad}");
        }
    }
}
