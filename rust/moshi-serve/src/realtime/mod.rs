//! OpenAI's Realtime protocol at `/v1/realtime`, over a model that has no turns.
//!
//! The model always hears and may always speak; [`turn`] cuts what it says into responses. A commit
//! or a request for a response changes nothing in the model, but is answered as clients expect.
//! Settings that mean nothing here are kept and told back, never refused: some clients end at the
//! first error. Where a client pauses its audio, the model hears silence at the pace of time.

pub(crate) mod audio;
mod client_events;
mod events;
mod fixture;
mod items;
pub(crate) mod live;
mod pace;
mod response;
pub(crate) mod secrets;
mod turn;
mod vad;

use std::borrow::Cow;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Request, Response as HttpResponse, StatusCode};
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval};

use self::audio::{AudioIn, AudioOut};
use self::events::{BadSetting, Dialect, Response, Settings, id};
use self::items::Items;
use self::pace::Pace;
use self::turn::{Turn, Turns};
use self::vad::{Detector, Speech};
use crate::auth::{Promise, UsedTicket, protocols};
use crate::backend::{Card, StreamOptions};
use crate::hub::{End, OpenError, SessionHandle, SessionRequest};
use crate::line::{Early, Watch, wait_for_slot};
use crate::routes::{App, refusal};
use crate::scheduler::Overflow;
use crate::server::Counted;
use crate::websocket::{Misuse, Received, Socket, asks_for_upgrade, upgrade};

/// Largest message of a client with a key: five minutes of samples, in base64.
const MAX_MESSAGE_BYTES: usize = 24 << 20;
/// Largest message where no key is asked for: half a minute.
const MAX_KEYLESS_MESSAGE_BYTES: usize = 2 << 20;
/// Frames that a connection holds for the model before it reads no more: ten seconds.
pub(crate) const MAX_BACKLOG_FRAMES: usize = 125;
/// Pause between looks at the clock.
pub(crate) const TICK: Duration = Duration::from_millis(20);
const PING_EVERY: Duration = Duration::from_secs(10);
/// A peer that sends nothing, not even answers to pings, for so long is gone.
const DEAD_AFTER: Duration = Duration::from_secs(25);

/// `GET /v1/realtime`.
pub(crate) async fn handler(
    State(app): State<Arc<App>>,
    axum::Extension(counted): axum::Extension<Counted>,
    mut request: Request<Body>,
) -> HttpResponse<Body> {
    if let Some(response) = refuse_now(&app, &mut request) {
        return response;
    }
    let dialect = dialect(request.headers());
    let mut settings = Settings::new(&app.hub.card().name);
    let ticket = request.extensions().get::<UsedTicket>();
    if let Some(Promise(promised)) = ticket.and_then(UsedTicket::promise) {
        // Written here, from settings that were taken.
        let promised: Value = serde_json::from_str(promised).unwrap_or_default();
        if let Err(BadSetting(param, reason)) = settings.update(&promised) {
            let message = format!("{param}: {reason}");
            return refusal(StatusCode::BAD_REQUEST, "invalid_value", &message);
        }
        if let Some(id) = promised["id"].as_str() {
            id.clone_into(&mut settings.id);
        }
    }
    let most = max_message_bytes(&app);
    upgrade(&mut request, "realtime", most, move |socket| async move {
        run(&app, socket, dialect, settings).await;
        drop(counted);
    })
}

/// The answer to who asks for a conversation and cannot have one now; a ticket stays good. Before
/// the upgrade: clients wait longer after it than after a connection that was made and closed.
pub(crate) fn refuse_now(app: &App, request: &mut Request<Body>) -> Option<HttpResponse<Body>> {
    if !asks_for_upgrade(request.headers()) {
        return None;
    }
    let draining = app.drain.borrow().is_some().then_some(OpenError::Draining);
    let error = app.hub.refuses(draining)?;
    if let Some(ticket) = request.extensions_mut().remove() {
        app.auth.give_back(ticket);
    }
    let status = match &error {
        OpenError::Full { .. } => StatusCode::TOO_MANY_REQUESTS,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    Some(refusal(status, refused(&error).1, &error.to_string()))
}

/// Type and code of the error by which a conversation is refused.
pub(crate) fn refused(error: &OpenError) -> (&'static str, &'static str) {
    match error {
        OpenError::Full { .. } => ("rate_limit_error", "session_limit_reached"),
        OpenError::Draining => ("server_error", "server_draining"),
        _ => ("server_error", "internal_error"),
    }
}

fn dialect(headers: &HeaderMap) -> Dialect {
    let header = headers.get("openai-beta").is_some_and(|value| value == "realtime=v1");
    let offered = protocols(headers).any(|offer| offer == "openai-beta.realtime-v1");
    if header || offered { Dialect::Beta } else { Dialect::Current }
}

pub(crate) fn max_message_bytes(app: &App) -> usize {
    // Nobody without a key comes so far where one is asked for.
    if app.auth.is_required() { MAX_MESSAGE_BYTES } else { MAX_KEYLESS_MESSAGE_BYTES }
}

pub(crate) fn too_large(app: &App) -> String {
    format!("messages have at most {} MiB here; send audio in parts", max_message_bytes(app) >> 20)
}

/// A session for a protocol whose input may come faster than life.
pub(crate) fn session_request(protocol: &'static str) -> SessionRequest {
    SessionRequest {
        stream: StreamOptions::default(),
        overflow: Overflow::PushBack,
        resume: None,
        protocol,
    }
}

async fn run(app: &App, mut socket: Socket, dialect: Dialect, settings: Settings) {
    let request = session_request("realtime");
    let watch = Watch { ping_every: PING_EVERY, dead_after: DEAD_AFTER };
    let mut early = Early::default();
    let hear = |message| early.keep(message);
    let handle = match wait_for_slot(&app.hub, &mut socket, request, watch, hear).await {
        Some(Ok(handle)) => handle,
        None => return,
        Some(Err(error)) => {
            let (kind, code) = refused(&error);
            let text = error.to_string();
            let body = json!({ "type": kind, "code": code, "message": text, "param": null });
            let event = json!({ "type": "error", "event_id": id("event"), "error": body });
            socket.send_text(event.to_string()).await;
            return socket.close(error.close_code(), &text).await;
        }
    };
    let model_hz = app.hub.card().sample_rate_hz;
    let session = Session {
        app,
        ears: AudioIn::new(settings.input, model_hz),
        mouth: AudioOut::new(settings.output, model_hz),
        settings,
        dialect,
        socket,
        handle,
        conversation: id("conv"),
        turns: Turns::default(),
        response: None,
        items: Items::default(),
        heard: Heard::new(app.hub.card()),
        frames_heard: 0,
        backlog: 0,
    };
    session.run(early).await;
}

/// What is known about the input.
struct Heard {
    /// Samples since the last commit, at the model's rate.
    uncommitted: u64,
    pace: Pace,
    detector: Detector,
    /// The item that the user's speech will be.
    speaking: Option<String>,
}

impl Heard {
    fn new(card: &Card) -> Self {
        let detector = Detector::new(card.frame_samples, card.sample_rate_hz);
        Self { uncommitted: 0, pace: Pace::default(), detector, speaking: None }
    }

    /// The item of what was heard until now; speech begins anew.
    fn take_item(&mut self) -> String {
        self.detector.restart();
        self.speaking.take().unwrap_or_else(|| id("item"))
    }
}

struct Session<'a> {
    app: &'a App,
    socket: Socket,
    handle: SessionHandle,
    dialect: Dialect,
    settings: Settings,
    conversation: String,
    ears: AudioIn,
    mouth: AudioOut,
    turns: Turns,
    response: Option<Response>,
    items: Items,
    heard: Heard,
    /// By the model, since the last response ended.
    frames_heard: u64,
    backlog: usize,
}

/// The connection is gone.
struct Gone;

type Sent = Result<(), Gone>;

impl Session<'_> {
    async fn run(mut self, early: Early) {
        let ending = self.converse(early).await;
        let Self { socket, handle, .. } = self;
        let ending = ending.map(|(code, reason)| (code, Cow::from(reason)));
        leave(handle, socket, ending).await;
    }

    async fn converse(&mut self, early: Early) -> Result<(u16, String), Gone> {
        let session = self.settings.json(self.dialect);
        self.send("session.created", json!({ "session": session })).await?;
        if self.dialect == Dialect::Beta {
            let conversation =
                json!({ "id": self.conversation, "object": "realtime.conversation" });
            self.send("conversation.created", json!({ "conversation": conversation })).await?;
        }
        for message in early.into_messages() {
            self.obey(&message).await?;
        }
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ping = interval(PING_EVERY);
        ping.reset();
        let mut ended = pin!(self.handle.ended());
        let mut alive = Instant::now();
        let mut drain = self.app.drain.clone();
        let mut told = false;
        loop {
            tokio::select! {
                end = &mut ended => return self.over(end).await,
                frame = self.handle.next() => {
                    let Some(frame) = frame else {
                        let end = self.handle.end_reason().unwrap_or(End::Failed);
                        return self.over(end).await;
                    };
                    self.backlog = self.handle.pump_with_room();
                    self.frames_heard += 1;
                    let turn = self.turns.step(frame);
                    self.speak(turn).await?;
                }
                received = self.socket.receive(), if self.backlog < MAX_BACKLOG_FRAMES => {
                    alive = Instant::now();
                    match received {
                        Received::Text(text) => self.obey(text.as_bytes()).await?,
                        Received::Binary(bytes) => self.obey(&bytes).await?,
                        Received::Pong => {}
                        Received::Closed => return Ok((1000, String::new())),
                        Received::Lost => return Err(Gone),
                        Received::Misuse(misuse) => {
                            let (code, reason) = misuse.close();
                            if misuse != Misuse::TooLarge {
                                return Ok((code, reason.to_owned()));
                            }
                            let text = too_large(self.app);
                            let name = "message_too_large";
                            self.error("invalid_request_error", name, None, &text, None).await?;
                            return Ok((code, text));
                        }
                    }
                }
                _ = tick.tick() => {
                    self.backlog = self.handle.pump_with_room();
                    self.fill_pause();
                }
                _ = ping.tick() => {
                    let held_back = self.backlog >= MAX_BACKLOG_FRAMES;
                    if (alive.elapsed() > DEAD_AFTER && !held_back) || !self.socket.ping().await {
                        return Err(Gone);
                    }
                }
                changed = drain.changed(), if !told => {
                    told = true;
                    let left = *drain.borrow();
                    if let (Ok(()), Some(left)) = (changed, left) {
                        self.tell_the_end(left).await?;
                    }
                }
            }
        }
    }

    /// Tells when the server ends the session; of the protocol's events the one that stops nobody.
    async fn tell_the_end(&mut self, left: Duration) -> Sent {
        self.settings.expires_at = Some((since_1970() + left).as_secs());
        let session = self.settings.json(self.dialect);
        self.send("session.updated", json!({ "session": session })).await
    }

    /// What is finished is still the client's, and what the model was saying ends with it.
    async fn over(&mut self, end: End) -> Result<(u16, String), Gone> {
        // Who did not read what was sent would not read this either.
        if end != End::SlowReader {
            while let Some(frame) = self.handle.next().await {
                let turn = self.turns.step(frame);
                self.speak(turn).await?;
            }
            let status = if end == End::Failed { "failed" } else { "incomplete" };
            self.close_response(status, None).await?;
        }
        if end == End::Draining {
            // Last: at an error some clients stop listening.
            let text = OpenError::Draining.to_string();
            self.error("server_error", "server_draining", None, &text, None).await?;
        }
        Ok(farewell(end))
    }

    /// Once audio has come, a pause in it is silence at the pace of time.
    fn fill_pause(&mut self) {
        let card = self.app.hub.card();
        let now = Instant::now();
        if self.backlog > 0 {
            self.heard.pace.busy(now);
        } else if self.heard.pace.takes_silence(card.frame_time(), now) {
            self.handle.fill_with_room(&vec![0.0; card.frame_samples]);
        }
    }

    async fn hear(&mut self, samples: &[f32]) -> Sent {
        self.heard.pace.heard(length(samples, self.app.hub.card()), Instant::now());
        self.heard.uncommitted += samples.len() as u64;
        self.backlog = self.handle.offer_with_room(samples);
        let found = self.heard.detector.push(samples, &self.settings.turn_detection);
        for speech in found {
            match speech {
                Speech::Started { audio_start_ms } => {
                    let item = id("item");
                    let body = json!({ "item_id": item, "audio_start_ms": audio_start_ms });
                    self.heard.speaking = Some(item);
                    self.send("input_audio_buffer.speech_started", body).await?;
                }
                Speech::Stopped { audio_end_ms } => {
                    let item = self.heard.speaking.take().unwrap_or_else(|| id("item"));
                    let body = json!({ "item_id": item, "audio_end_ms": audio_end_ms });
                    self.send("input_audio_buffer.speech_stopped", body).await?;
                    self.commit(item).await?;
                }
            }
        }
        Ok(())
    }

    /// Tells that what was heard until now is an item of the conversation.
    async fn commit(&mut self, item: String) -> Sent {
        self.heard.uncommitted = 0;
        let body = json!({ "item_id": item, "previous_item_id": self.items.last() });
        self.send("input_audio_buffer.committed", body).await?;
        let item = json!({
            "id": item,
            "object": "realtime.item",
            "type": "message",
            "status": "completed",
            "role": "user",
            "content": [{ "type": "input_audio", "transcript": null }],
        });
        self.add_item(item, &Value::Null).await
    }

    /// Puts an item behind the one that `after` names, and tells so.
    async fn add_item(&mut self, item: Value, after: &Value) -> Sent {
        let previous = self.items.insert(item.clone(), after);
        let body = json!({ "item": item, "previous_item_id": previous });
        if self.dialect == Dialect::Beta {
            return self.send("conversation.item.created", body).await;
        }
        self.send("conversation.item.added", body.clone()).await?;
        self.send("conversation.item.done", body).await
    }

    async fn speak(&mut self, turn: Turn) -> Sent {
        if turn.opens {
            self.open_response(Value::Null).await?;
        }
        for frame in turn.frames {
            self.speak_frame(frame).await?;
        }
        if turn.closes {
            self.close_response("completed", None).await?;
        }
        Ok(())
    }

    async fn send(&mut self, name: &'static str, mut body: Value) -> Sent {
        body["type"] = self.dialect.name(name).into();
        body["event_id"] = id("event").into();
        if self.socket.send_text(body.to_string()).await { Ok(()) } else { Err(Gone) }
    }

    async fn error(
        &mut self,
        kind: &str,
        code: &str,
        param: Option<&str>,
        message: &str,
        cause: Option<&Value>,
    ) -> Sent {
        let error = json!({
            "type": kind,
            "code": code,
            "message": message,
            "param": param,
            "event_id": cause.cloned().unwrap_or_default(),
        });
        self.send("error", json!({ "error": error })).await
    }
}

/// Leaves the conversation, which these clients begin anew when they connect again, then the
/// connection.
async fn leave(
    handle: SessionHandle,
    socket: Socket,
    ending: Result<(u16, Cow<'static, str>), Gone>,
) {
    match ending {
        Ok((code, reason)) => {
            handle.close();
            socket.close(code, &reason).await;
        }
        Err(Gone) if socket.is_stalled() => {
            let (code, reason) = End::SlowReader.close();
            handle.close_for(End::SlowReader);
            socket.close(code, reason).await;
        }
        Err(Gone) => handle.close(),
    }
}

fn farewell(end: End) -> (u16, String) {
    let (code, reason) = end.close();
    (code, reason.to_owned())
}

/// Time as the protocols tell it.
pub(crate) fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// How long samples at the model's rate last.
pub(crate) fn length(samples: &[f32], card: &Card) -> Duration {
    Duration::from_secs_f64(samples.len() as f64 / f64::from(card.sample_rate_hz))
}
