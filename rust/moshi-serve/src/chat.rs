//! The Moshi WebSocket `/api/chat`, as the clients of the original speak it.
//!
//! Nothing of the protocol is sent before the handshake, which says that the model listens from now
//! on; metadata follow. Every step is one audio message of whole Ogg pages, then the text if there
//! is some. Audio is decoded and encoded here, never on the worker.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, Response, StatusCode};
use moshi_core::lm::Sampling;
use moshi_wire::WireError;
use moshi_wire::chat::ChatMessage;
use moshi_wire::opus::{OpusReader, OpusWriter};
use moshi_wire::pcm::{self, Coding, SampleReader};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::auth::parameters;
use crate::backend::StreamOptions;
use crate::hub::{End, OpenError, OutputFrame, SessionHandle, SessionRequest};
use crate::metrics::label;
use crate::routes::{App, build_facts, refusal};
use crate::scheduler::Overflow;
use crate::server::Counted;
use crate::websocket::{Received, Socket, upgrade};

/// The hottest that the engine takes.
const MAX_TEMPERATURE: f64 = 100.0;
/// Largest message of a client.
const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// Pause between WebSocket pings.
const PING_EVERY: Duration = Duration::from_secs(5);
/// A peer that sends nothing, not even answers to pings, for so long is gone.
const DEAD_AFTER: Duration = Duration::from_secs(20);
/// Pause between repeated metadata.
const STATS_EVERY: Duration = Duration::from_secs(1);
/// Damaged packets of a conversation within [`DAMAGE_WINDOW`] that are survived.
const MAX_DAMAGE: u64 = 50;
const DAMAGE_WINDOW: Duration = Duration::from_secs(10);

/// What the address asks for.
#[derive(Debug, Clone, Default, PartialEq)]
struct Parameters {
    temperature: Option<f64>,
    text_temperature: Option<f64>,
    top_k: Option<usize>,
    top_k_text: Option<usize>,
    seed: Option<u64>,
    max_steps: Option<u64>,
    resume: Option<String>,
    /// Audio as samples of 16 bits, for pages without an Opus encoder.
    plain: bool,
    /// Metadata every second, not only when something is wrong.
    stats: bool,
}

impl Parameters {
    /// Unknown names are passed over, malformed numbers are not; values out of range are limited.
    fn parse(pairs: &[(String, String)]) -> Result<Self, String> {
        fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<Option<T>, String> {
            let wrong = |_| format!("parameter {name} is not a number in range");
            value.parse().map(Some).map_err(wrong)
        }
        let temperature = |name: &str, value: &str| {
            let parsed: Option<f64> = number(name, value)?;
            match parsed {
                Some(value) if value.is_nan() => Err(format!("parameter {name} is not a number")),
                parsed => Ok(parsed.map(|value| value.clamp(0.0, MAX_TEMPERATURE))),
            }
        };
        let plain = |value: &str| match value {
            "opus" => Ok(false),
            "pcm16" => Ok(true),
            _ => Err("parameter audio is neither opus nor pcm16".to_owned()),
        };
        let mut parameters = Self::default();
        for (name, value) in pairs {
            match name.as_str() {
                "text_temperature" => parameters.text_temperature = temperature(name, value)?,
                "audio_temperature" => parameters.temperature = temperature(name, value)?,
                "text_topk" => parameters.top_k_text = number(name, value)?,
                "audio_topk" => parameters.top_k = number(name, value)?,
                "seed" | "audio_seed" => parameters.seed = number(name, value)?,
                "max_steps" => parameters.max_steps = number(name, value)?,
                "resume" => parameters.resume = Some(value.clone()),
                "audio" => parameters.plain = plain(value)?,
                "stats" => parameters.stats = value == "1",
                _ => {}
            }
        }
        Ok(parameters)
    }

    fn request(&self, default: Sampling) -> SessionRequest {
        let sampling = Sampling {
            temperature: self.temperature.unwrap_or(default.temperature),
            text_temperature: self.text_temperature.unwrap_or(default.text_temperature),
            top_k: self.top_k.unwrap_or(default.top_k),
            top_k_text: self.top_k_text.unwrap_or(default.top_k_text),
        };
        SessionRequest {
            stream: StreamOptions { seed: self.seed, sampling: Some(sampling) },
            overflow: Overflow::DropOldest,
            resume: self.resume.clone(),
            protocol: "chat",
        }
    }
}

/// `GET /api/chat`.
pub(crate) async fn handler(
    State(app): State<Arc<App>>,
    axum::Extension(counted): axum::Extension<Counted>,
    mut request: Request<Body>,
) -> Response<Body> {
    let parameters = match Parameters::parse(&parameters(request.uri())) {
        Ok(parameters) => parameters,
        Err(reason) => return refusal(StatusCode::BAD_REQUEST, "invalid_value", &reason),
    };
    if app.drain.borrow().is_some() {
        let reason = OpenError::Draining.to_string();
        return refusal(StatusCode::SERVICE_UNAVAILABLE, "draining", &reason);
    }
    upgrade(&mut request, "moshi", MAX_MESSAGE_BYTES, move |socket| async move {
        run(&app, socket, &parameters).await;
        drop(counted);
    })
}

async fn run(app: &App, mut socket: Socket, parameters: &Parameters) {
    let (listener, mouth) = match codec(app.hub.card().sample_rate_hz, parameters.plain) {
        Ok(codec) => codec,
        Err(error) => return socket.close(1011, &error.to_string()).await,
    };
    let mut ears = Ears::new(listener);
    let request = parameters.request(app.hub.card().sampling);
    let handle = match wait_for_slot(app, &mut socket, request, &mut ears).await {
        Some(Ok(handle)) => handle,
        Some(Err(error)) => return socket.close(refusal_code(&error), &error.to_string()).await,
        None => return,
    };
    let conversation = Conversation {
        app,
        socket,
        handle,
        ears,
        mouth,
        parameters,
        drain: app.drain.clone(),
        lag: Duration::ZERO,
        dropped: 0,
        said: None,
    };
    conversation.run().await;
}

fn refusal_code(error: &OpenError) -> u16 {
    match error {
        OpenError::Full { .. } => 1013,
        OpenError::Draining => 1001,
        OpenError::UnknownToken | OpenError::Engine(_) => 1008,
        OpenError::Failed => 1011,
    }
}

/// Opens the conversation, and keeps the connection alive while it waits in the line. `None` when
/// the client left.
async fn wait_for_slot(
    app: &App,
    socket: &mut Socket,
    request: SessionRequest,
    ears: &mut Ears,
) -> Option<Result<SessionHandle, OpenError>> {
    let mut opening = pin!(app.hub.open(request));
    let mut ping = interval(PING_EVERY);
    ping.reset();
    loop {
        tokio::select! {
            biased;
            opened = &mut opening => return Some(opened),
            received = socket.receive() => match received {
                // Clients may talk before the handshake: only the newest frame is of interest.
                Received::Binary(bytes) => {
                    let _ = ears.hear(&bytes);
                    let excess = ears.samples.len().saturating_sub(app.hub.card().frame_samples);
                    ears.samples.drain(..excess);
                }
                Received::Text(_) | Received::Pong => {}
                Received::Closed | Received::Lost | Received::TooLarge => return None,
            },
            _ = ping.tick() => if !socket.ping().await { return None },
        }
    }
}

/// The client's coding of audio.
enum Listener {
    Opus(Box<OpusReader>),
    Plain(SampleReader),
}

impl Listener {
    fn push(&mut self, bytes: &[u8], samples: &mut Vec<f32>) {
        match self {
            Self::Opus(reader) => reader.push(bytes, samples),
            Self::Plain(reader) => reader.push(bytes, samples),
        }
    }

    fn errors(&self) -> u64 {
        match self {
            Self::Opus(reader) => reader.errors(),
            Self::Plain(_) => 0,
        }
    }
}

/// Our coding of audio: the same one.
enum Mouth {
    Opus(Box<OpusWriter>),
    Plain,
}

impl Mouth {
    fn push(&mut self, samples: &[f32]) -> Result<Vec<u8>, WireError> {
        match self {
            Self::Opus(writer) => writer.push(samples),
            Self::Plain => Ok(pcm::encode(Coding::Pcm16, samples)),
        }
    }
}

fn codec(rate_hz: u32, plain: bool) -> Result<(Listener, Mouth), WireError> {
    if plain {
        return Ok((Listener::Plain(SampleReader::new(Coding::Pcm16)), Mouth::Plain));
    }
    let reader = Box::new(OpusReader::new(rate_hz)?);
    Ok((Listener::Opus(reader), Mouth::Opus(Box::new(OpusWriter::new(rate_hz)?))))
}

/// The user's audio on its way in.
struct Ears {
    reader: Listener,
    samples: Vec<f32>,
    window: Instant,
    before_window: u64,
    unknown: u64,
}

impl Ears {
    fn new(reader: Listener) -> Self {
        Self { reader, samples: Vec::new(), window: Instant::now(), before_window: 0, unknown: 0 }
    }

    /// Takes a message; audio lands in `samples`. False when too much of it is damaged.
    fn hear(&mut self, message: &[u8]) -> bool {
        match ChatMessage::decode(message) {
            Ok(ChatMessage::Audio(bytes)) => self.reader.push(bytes, &mut self.samples),
            Ok(_) => {}
            Err(_) => self.unknown += 1,
        }
        if self.window.elapsed() > DAMAGE_WINDOW {
            self.window = Instant::now();
            self.before_window = self.damage();
        }
        self.damage() - self.before_window <= MAX_DAMAGE
    }

    fn damage(&self) -> u64 {
        self.reader.errors() + self.unknown
    }
}

struct Conversation<'a> {
    app: &'a App,
    socket: Socket,
    handle: SessionHandle,
    ears: Ears,
    mouth: Mouth,
    parameters: &'a Parameters,
    drain: watch::Receiver<Option<Duration>>,
    lag: Duration,
    dropped: u64,
    /// When metadata were sent last, and what drops they told.
    said: Option<(Instant, u64)>,
}

/// How a conversation is over.
enum Over {
    /// The client said goodbye.
    Goodbye,
    /// The connection is lost; the conversation may go on with its token.
    Lost,
    /// This side closes, with a code and a reason. The conversation is over for good.
    Close(u16, String),
}

impl Conversation<'_> {
    async fn run(mut self) {
        let over = match self.greet().await {
            Some(()) => self.converse().await,
            None => Over::Lost,
        };
        let Self { app, socket, handle, ears, .. } = self;
        app.hub.metrics().damaged.inc_by(ears.damage());
        match over {
            Over::Goodbye => {
                handle.close();
                socket.close(1000, "").await;
            }
            Over::Lost => drop(handle),
            Over::Close(code, reason) => {
                handle.close();
                socket.close(code, &reason).await;
            }
        }
    }

    async fn greet(&mut self) -> Option<()> {
        let handshake = ChatMessage::Handshake { protocol: 0, model: 0 };
        self.send(handshake.encode()).await?;
        self.send_metadata().await?;
        let early = std::mem::take(&mut self.ears.samples);
        self.handle.push(&early);
        Some(())
    }

    async fn converse(&mut self) -> Over {
        let mut ping = interval(PING_EVERY);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ping.reset();
        let mut ended = pin!(self.handle.ended());
        let mut heard = Instant::now();
        let mut spoke = Instant::now();
        let mut notified = false;
        loop {
            tokio::select! {
                end = &mut ended => return self.farewell(end).await,
                frame = self.handle.next() => {
                    let Some(frame) = frame else {
                        let end = self.handle.end_reason().unwrap_or(End::Failed);
                        return self.farewell(end).await;
                    };
                    spoke = Instant::now();
                    match self.speak(frame).await {
                        Some(None) => {}
                        Some(Some(over)) => return over,
                        None => return Over::Lost,
                    }
                }
                received = self.socket.receive() => {
                    heard = Instant::now();
                    match received {
                        Received::Binary(bytes) => {
                            if !self.hear(&bytes) {
                                let reason = "too much damaged audio; send Opus in Ogg pages";
                                return Over::Close(1007, reason.into());
                            }
                        }
                        Received::Text(_) | Received::Pong => {}
                        Received::Closed => return Over::Goodbye,
                        Received::Lost => return Over::Lost,
                        Received::TooLarge => {
                            let reason = format!("messages have at most {MAX_MESSAGE_BYTES} bytes");
                            return Over::Close(1009, reason);
                        }
                    }
                }
                _ = ping.tick() => {
                    if heard.elapsed() > DEAD_AFTER || !self.socket.ping().await {
                        return Over::Lost;
                    }
                    if spoke.elapsed() >= PING_EVERY && self.send(ChatMessage::Ping.encode()).await.is_none() {
                        return Over::Lost;
                    }
                }
                changed = self.drain.changed(), if !notified => {
                    let left = *self.drain.borrow();
                    notified = changed.is_err() || left.is_some();
                    if let Some(left) = left {
                        let text = format!("the server shuts down in {} s", left.as_secs());
                        if self.send(ChatMessage::Error(&text).encode()).await.is_none() {
                            return Over::Lost;
                        }
                    }
                }
            }
        }
    }

    fn hear(&mut self, bytes: &[u8]) -> bool {
        self.count_bytes("in", bytes.len());
        let good = self.ears.hear(bytes);
        self.handle.push(&self.ears.samples);
        self.ears.samples.clear();
        good
    }

    /// `None` when the client is gone, `Some(Some(_))` when this was the last frame.
    async fn speak(&mut self, frame: OutputFrame) -> Option<Option<Over>> {
        let pages = match self.mouth.push(&frame.pcm) {
            Ok(pages) => pages,
            Err(error) => return Some(Some(Over::Close(1011, error.to_string()))),
        };
        if !pages.is_empty() {
            self.send(ChatMessage::Audio(&pages).encode()).await?;
        }
        if !frame.text.is_empty() {
            self.send(ChatMessage::Text(&frame.text).encode()).await?;
        }
        self.lag = frame.lag;
        self.dropped = frame.dropped;
        let due = self.said.is_none_or(|(at, dropped)| {
            at.elapsed() >= STATS_EVERY && (self.parameters.stats || dropped != self.dropped)
        });
        if due {
            self.send_metadata().await?;
        }
        if self.parameters.max_steps.is_some_and(|most| frame.step >= most) {
            let text = "session limit reached";
            self.send(ChatMessage::Error(text).encode()).await?;
            return Some(Some(Over::Close(1000, text.into())));
        }
        Some(None)
    }

    async fn farewell(&mut self, end: End) -> Over {
        let (code, reason) = match end {
            End::SlowReader => (1008, "slow reader: output was not taken in time"),
            End::Idle => (1000, "no audio for too long"),
            End::Draining => (1001, "the server is shutting down"),
            End::TakenOver => (1000, "resumed by another connection"),
            End::Failed => (1011, "internal error"),
        };
        // What is finished is still the client's.
        if end == End::Draining {
            while let Some(frame) = self.handle.next().await {
                if !matches!(self.speak(frame).await, Some(None)) {
                    break;
                }
            }
        }
        Over::Close(code, reason.into())
    }

    async fn send_metadata(&mut self) -> Option<()> {
        self.said = Some((Instant::now(), self.dropped));
        let text = self.metadata().to_string();
        self.send(ChatMessage::Metadata(&text).encode()).await
    }

    /// The fields that the original's web client checks, then our own.
    fn metadata(&self) -> Value {
        let settings = self.handle.settings();
        let card = self.app.hub.card();
        let Sampling { temperature, text_temperature, top_k, top_k_text } = settings.sampling;
        json!({
            "text_temperature": text_temperature,
            "text_topk": top_k_text,
            "audio_temperature": temperature,
            "audio_topk": top_k,
            "pad_mult": 0,
            "repetition_penalty_context": 32,
            "repetition_penalty": 1.0,
            "lm_model_file": card.name,
            "mimi_model_file": card.name,
            "instance_name": "moshi-rs",
            "build_info": build_facts(),
            "server": concat!("moshi-rs/", env!("CARGO_PKG_VERSION")),
            "sample_rate": card.sample_rate_hz,
            "frame_ms": card.frame_time().as_millis() as u64,
            "latency_frames": card.latency_frames,
            // As text: a JavaScript number cannot hold every seed.
            "seed": settings.seed.to_string(),
            "max_steps": self.parameters.max_steps,
            "steps": settings.steps,
            "lag_ms": self.lag.as_millis() as u64,
            "dropped_frames": self.dropped,
            "resume_token": self.handle.token().text(),
            "resume_grace_s": self.app.hub.grace().as_secs(),
        })
    }

    async fn send(&mut self, message: Vec<u8>) -> Option<()> {
        self.count_bytes("out", message.len());
        self.socket.send_bytes(message).await.then_some(())
    }

    fn count_bytes(&self, direction: &str, bytes: usize) {
        let counter = &self.app.hub.metrics().bytes;
        counter.get_or_create(&label("direction", direction)).inc_by(bytes as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &str) -> Result<Parameters, String> {
        let pairs: Vec<(String, String)> = query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        Parameters::parse(&pairs)
    }

    #[test]
    fn the_web_clients_parameters_are_understood() {
        let query = "text_temperature=0.7&text_topk=25&audio_temperature=0.8&audio_topk=250\
                     &pad_mult=0&text_seed=3&audio_seed=4&repetition_penalty_context=64\
                     &repetition_penalty=1&email=a@b.c&max_steps=9&stats=1";
        let expected = Parameters {
            temperature: Some(0.8),
            text_temperature: Some(0.7),
            top_k: Some(250),
            top_k_text: Some(25),
            seed: Some(4),
            max_steps: Some(9),
            resume: None,
            plain: false,
            stats: true,
        };
        assert_eq!(parse(query), Ok(expected));
    }

    #[test]
    fn numbers_are_limited_or_refused() {
        assert_eq!(parse("audio_temperature=-1").unwrap().temperature, Some(0.0));
        let hot = parse("audio_temperature=1e300").unwrap().temperature;
        assert_eq!(hot, Some(MAX_TEMPERATURE));
        for bad in ["audio=mp3", "audio_topk=-1", "text_topk=x", "text_temperature=NaN", "seed=1.5"]
        {
            let reason = parse(bad).unwrap_err();
            assert!(reason.contains(bad.split('=').next().unwrap()), "{reason}");
        }
    }
}
