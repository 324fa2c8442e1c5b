//! A conversation on its way: audio in and out, metadata, pings, and its end.

use std::pin::pin;
use std::time::Duration;

use moshi_core::lm::Sampling;
use moshi_wire::chat::ChatMessage;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::audio::{Ears, Mouth};
use super::parameters::Parameters;
use super::{DEAD_AFTER, MAX_MESSAGE_BYTES, PING_EVERY};
use crate::hub::{End, OutputFrame, SessionHandle};
use crate::metrics::label;
use crate::routes::{App, build_facts};
use crate::websocket::{Misuse, Received, Socket};

/// Pause between repeated metadata.
const STATS_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Conversation<'a> {
    pub(super) app: &'a App,
    pub(super) socket: Socket,
    pub(super) handle: SessionHandle,
    pub(super) ears: Ears,
    pub(super) mouth: Mouth,
    pub(super) parameters: &'a Parameters,
    pub(super) drain: watch::Receiver<Option<Duration>>,
    pub(super) lag: Duration,
    pub(super) dropped: u64,
    /// What the last step took.
    pub(super) took: Duration,
    /// When metadata were sent last, and what drops they told.
    pub(super) said: Option<(Instant, u64)>,
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
    pub(super) async fn run(mut self) {
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
            Over::Lost if socket.is_stalled() => {
                let (code, reason) = End::SlowReader.close();
                handle.close_for(End::SlowReader);
                socket.close(code, reason).await;
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
                        Received::Misuse(misuse) => {
                            let (code, reason) = misuse.close();
                            let limit = match misuse {
                                Misuse::TooLarge => format!(": at most {MAX_MESSAGE_BYTES} bytes"),
                                _ => String::new(),
                            };
                            return Over::Close(code, format!("{reason}{limit}"));
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
        self.took = frame.took;
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
        // What is finished is still the client's.
        if end == End::Draining {
            while let Some(frame) = self.handle.next().await {
                if !matches!(self.speak(frame).await, Some(None)) {
                    break;
                }
            }
        }
        let (code, reason) = end.close();
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
            // To the microsecond.
            "step_ms": (self.took.as_secs_f64() * 1e6).round() / 1e3,
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
