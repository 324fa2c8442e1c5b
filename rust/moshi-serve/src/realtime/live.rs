//! OpenAI's Live protocol at `/v1/live/sessions`: audio in both directions all the time, as the
//! model itself works. One delta a step; the time of a session is the time that the model has heard.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, Response};
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::audio::{AudioIn, AudioOut, Format};
use super::events::id;
use super::fixture::Fixture;
use super::pace::Pace;
use super::{
    Gone, MAX_BACKLOG_FRAMES, TICK, leave, length, max_message_bytes, refuse_now, refused,
    session_request, since_1970, too_large,
};
use crate::hub::{End, OutputFrame, SessionHandle};
use crate::line::{Early, Watch, wait_for_slot};
use crate::routes::App;
use crate::server::Counted;
use crate::websocket::{Misuse, Received, Socket, upgrade};

/// Time for the first event.
const START: Duration = Duration::from_secs(10);
/// Pause between reports of usage, and between pings.
const USAGE_EVERY: Duration = Duration::from_secs(10);
const DEAD_AFTER: Duration = Duration::from_secs(25);

/// `GET /v1/live/sessions`.
pub(crate) async fn handler(
    State(app): State<Arc<App>>,
    axum::Extension(counted): axum::Extension<Counted>,
    mut request: Request<Body>,
) -> Response<Body> {
    if let Some(response) = refuse_now(&app, &mut request) {
        return response;
    }
    let most = max_message_bytes(&app);
    upgrade(&mut request, "realtime", most, move |socket| async move {
        run(&app, socket).await;
        drop(counted);
    })
}

async fn run(app: &App, mut socket: Socket) {
    let start = match timeout(START, first_event(&mut socket)).await {
        Ok(Some(start)) => start,
        Ok(None) => return,
        Err(_) => return socket.close(1008, "no session.start within 10 s").await,
    };
    let refuse =
        |code: &str, message: &str| error_event(code, message, None, start.get("event_id"));
    if start["type"] != "session.start" {
        let text = "the first event must be session.start";
        socket.send_text(refuse("invalid_value", text).to_string()).await;
        return socket.close(1008, text).await;
    }
    let asked = &start["session"]["audio"]["format"];
    let format = if asked.is_null() { Some(Format::default()) } else { Format::parse(asked) };
    let Some(format) = format else {
        let text = "unknown audio format";
        socket.send_text(refuse("invalid_value", text).to_string()).await;
        return socket.close(1008, text).await;
    };
    let request = session_request("live");
    let watch = Watch { ping_every: USAGE_EVERY, dead_after: DEAD_AFTER };
    let mut early = Early::default();
    let hear = |message| early.keep(message);
    let handle = match wait_for_slot(&app.hub, &mut socket, request, watch, hear).await {
        Some(Ok(handle)) => handle,
        None => return,
        Some(Err(error)) => {
            let text = error.to_string();
            socket.send_text(refuse(refused(&error).1, &text).to_string()).await;
            return socket.close(error.close_code(), &text).await;
        }
    };
    let model_hz = app.hub.card().sample_rate_hz;
    let mut resource = start["session"].clone();
    if !resource.is_object() {
        resource = json!({});
    }
    resource["id"] = id("live").into();
    resource["object"] = "live.session".into();
    resource["status"] = "active".into();
    // Sessions have no end of their own; a day is a promise that can be kept.
    resource["expires_at"] = (since_1970().as_secs() + 86_400).into();
    // What is no object cannot be written into.
    if !resource["audio"].is_object() {
        resource["audio"] = json!({});
    }
    // Of telephone codings, too: here it is a must.
    resource["audio"]["format"] = format.json();
    resource["audio"]["format"]["rate"] = format.rate_hz.into();
    let session = Live {
        app,
        socket,
        handle,
        resource,
        ears: AudioIn::new(format, model_hz),
        mouth: AudioOut::new(format, model_hz),
        muted: false,
        pace: Pace::default(),
        backlog: 0,
        steps: 0,
        informed: false,
        fixture: None,
    };
    session.run(start.get("event_id").cloned(), early).await;
}

async fn first_event(socket: &mut Socket) -> Option<Value> {
    loop {
        let text = match socket.receive().await {
            Received::Text(text) => text.into_bytes(),
            Received::Binary(bytes) => bytes.to_vec(),
            Received::Pong => continue,
            Received::Lost => return None,
            Received::Closed => {
                socket.answer_goodbye().await;
                return None;
            }
            Received::Misuse(misuse) => {
                socket.refuse(misuse).await;
                return None;
            }
        };
        return Some(serde_json::from_slice(&text).unwrap_or_default());
    }
}

fn error_event(code: &str, message: &str, param: Option<&str>, cause: Option<&Value>) -> Value {
    let kind = match code {
        "session_limit_reached" => "rate_limit_error",
        "server_draining" | "internal_error" => "server_error",
        _ => "invalid_request_error",
    };
    json!({
        "type": "error",
        "event_id": id("event"),
        "error": {
            "code": code,
            "message": message,
            "type": kind,
            "param": param,
            "client_event_id": cause.cloned().unwrap_or_default(),
        },
    })
}

struct Live<'a> {
    app: &'a App,
    socket: Socket,
    handle: SessionHandle,
    resource: Value,
    ears: AudioIn,
    mouth: AudioOut,
    muted: bool,
    pace: Pace,
    backlog: usize,
    steps: u64,
    informed: bool,
    /// Plays in place of the model's voice, which hears silence meanwhile.
    fixture: Option<Fixture>,
}

impl Live<'_> {
    async fn run(mut self, cause: Option<Value>, early: Early) {
        let ending = self.converse(cause, early).await;
        let Self { socket, handle, .. } = self;
        leave(handle, socket, ending.map(|(code, reason)| (code, reason.into()))).await;
    }

    async fn converse(
        &mut self,
        cause: Option<Value>,
        early: Early,
    ) -> Result<(u16, &'static str), Gone> {
        let body = json!({ "session": self.resource, "client_event_id": cause });
        self.send("session.started", body).await?;
        for message in early.into_messages() {
            if self.obey(&message).await? {
                return self.closed("close_requested", 1000, "").await;
            }
        }
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut usage = interval(USAGE_EVERY);
        usage.reset();
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
                    self.speak(frame).await?;
                }
                received = self.socket.receive(), if self.backlog < MAX_BACKLOG_FRAMES => {
                    alive = Instant::now();
                    let event = match received {
                        Received::Text(text) => text.into_bytes(),
                        Received::Binary(bytes) => bytes.to_vec(),
                        Received::Pong => continue,
                        Received::Closed => return Ok((1000, "")),
                        Received::Lost => return Err(Gone),
                        Received::Misuse(misuse) => {
                            if misuse == Misuse::TooLarge {
                                let text = too_large(self.app);
                                let error = error_event("message_too_large", &text, None, None);
                                self.send_event(error).await?;
                            }
                            return Ok(misuse.close());
                        }
                    };
                    if self.obey(&event).await? {
                        return self.closed("close_requested", 1000, "").await;
                    }
                }
                _ = tick.tick() => {
                    self.backlog = self.handle.pump_with_room();
                    self.fill_pause();
                }
                _ = usage.tick() => {
                    let held_back = self.backlog >= MAX_BACKLOG_FRAMES;
                    if (alive.elapsed() > DEAD_AFTER && !held_back) || !self.socket.ping().await {
                        return Err(Gone);
                    }
                    let body = json!({
                        "usage": { "seconds": self.seconds() },
                        "context_window": { "usage_ratio": 0.0 },
                    });
                    self.send("session.usage.updated", body).await?;
                }
                changed = drain.changed(), if !told => {
                    told = true;
                    let left = *drain.borrow();
                    if let (Ok(()), Some(left)) = (changed, left) {
                        self.resource["expires_at"] = (since_1970() + left).as_secs().into();
                        let left = left.as_secs();
                        let text = format!("the server shuts down in {left} s; connect to another one");
                        let body = json!({ "code": "server_draining", "message": text });
                        self.send("info", body).await?;
                    }
                }
            }
        }
    }

    fn fill_pause(&mut self) {
        let card = self.app.hub.card();
        let now = Instant::now();
        if self.fixture.is_some() {
            // Who has a recording played waits for its end.
            self.handle.touch();
        }
        if self.backlog > 0 {
            self.pace.busy(now);
        } else if self.pace.takes_silence(card.frame_time(), now) {
            self.handle.fill_with_room(&vec![0.0; card.frame_samples]);
        }
    }

    /// Does what an event asks for; true when it asks for the end.
    async fn obey(&mut self, message: &[u8]) -> Result<bool, Gone> {
        self.handle.touch();
        let event: Value = serde_json::from_slice(message).unwrap_or_default();
        let cause = event.get("event_id");
        match event["type"].as_str().unwrap_or_default() {
            "session.input_audio.append" => {
                let mut samples = match self.ears.take(&event["audio"]) {
                    Ok(samples) => samples,
                    Err(bad) => {
                        let text = bad.to_string();
                        let error = error_event("invalid_value", &text, Some("audio"), cause);
                        return self.send_event(error).await.map(|()| false);
                    }
                };
                if self.muted || self.fixture.is_some() {
                    samples.fill(0.0);
                }
                self.pace.heard(length(&samples, self.app.hub.card()), Instant::now());
                self.backlog = self.handle.offer_with_room(&samples);
            }
            "session.input_audio.mute" => {
                self.muted = true;
                self.send("session.input_audio.muted", json!({ "client_event_id": cause })).await?;
            }
            "session.input_audio.unmute" => {
                self.muted = false;
                self.send("session.input_audio.unmuted", json!({ "client_event_id": cause }))
                    .await?;
            }
            kind @ ("session.instructions.append"
            | "session.thinking.append"
            | "session.commentary.append") => {
                let name = format!("{kind}ed");
                let now = self.milliseconds();
                let body = json!({ "start_ms": now, "end_ms": now, "client_event_id": cause });
                self.send(&name, body).await?;
                if !std::mem::replace(&mut self.informed, true) {
                    let text = "this model reads no text; what is appended has no effect";
                    let body = json!({ "code": "context_ignored", "message": text });
                    self.send("info", body).await?;
                }
            }
            "session.update" => {
                for name in ["delegation", "triggers"] {
                    if let Some(value) = event["session"].get(name) {
                        self.resource[name] = value.clone();
                    }
                }
                let body = json!({ "session": self.resource, "client_event_id": cause });
                self.send("session.updated", body).await?;
            }
            "session.output_audio.fixture.play" => self.play(&event).await?,
            "session.close" => return Ok(true),
            _ => {
                let text = "no such event, or one that this model cannot follow";
                self.send_event(error_event("unsupported", text, Some("type"), cause)).await?;
            }
        }
        Ok(false)
    }

    /// Plays a recording to the user, as fast as steps go on: of audio that comes, or of silence.
    async fn play(&mut self, event: &Value) -> Result<(), Gone> {
        let cause = event.get("event_id");
        if self.fixture.is_some() {
            let text = "a recording is playing; wait for session.output_audio.fixture.played";
            return self.send_event(error_event("fixture_active", text, None, cause)).await;
        }
        let card = self.app.hub.card();
        match Fixture::parse(event, card.sample_rate_hz, card.frame_samples) {
            Err(text) => {
                let error = error_event("invalid_value", text, Some("audio"), cause);
                self.send_event(error).await
            }
            Ok(fixture) => {
                self.fixture = Some(fixture);
                self.pace.heard(Duration::ZERO, Instant::now());
                let body = json!({ "client_event_id": cause });
                self.send("session.output_audio.fixture.playing", body).await
            }
        }
    }

    async fn speak(&mut self, mut frame: OutputFrame) -> Result<(), Gone> {
        let start = self.milliseconds();
        self.steps += 1;
        let mut played = None;
        if let Some(fixture) = &mut self.fixture {
            frame.pcm = fixture.next_frame().unwrap_or(frame.pcm);
            frame.text.clear();
            if fixture.is_over() {
                played = self.fixture.take();
            }
        }
        let delta = self.mouth.encode(&frame.pcm);
        if !delta.is_empty() {
            let event = json!({ "type": "session.output_audio.delta", "delta": delta });
            self.send_event(event).await?;
        }
        if !frame.text.is_empty() {
            let end = self.milliseconds();
            let body = json!({ "delta": frame.text, "start_ms": start, "end_ms": end });
            self.send("session.output_transcript.delta", body).await?;
        }
        if let Some(fixture) = played {
            let body = json!({ "client_event_id": fixture.cause });
            self.send("session.output_audio.fixture.played", body).await?;
        }
        Ok(())
    }

    async fn over(&mut self, end: End) -> Result<(u16, &'static str), Gone> {
        // Who did not read what was sent would not read the rest either.
        if end != End::SlowReader {
            while let Some(frame) = self.handle.next().await {
                self.speak(frame).await?;
            }
        }
        let (code, text) = end.close();
        match end {
            End::TakenOver => self.closed("close_requested", code, text).await,
            End::Idle | End::Draining => self.closed("expired", code, text).await,
            End::SlowReader | End::Failed => Ok((code, text)),
        }
    }

    async fn closed(
        &mut self,
        reason: &str,
        code: u16,
        text: &'static str,
    ) -> Result<(u16, &'static str), Gone> {
        let body = json!({
            "reason": reason,
            "session": self.resource,
            "usage": { "seconds": self.seconds() },
        });
        self.send("session.closed", body).await?;
        Ok((code, text))
    }

    fn milliseconds(&self) -> u64 {
        self.steps * self.app.hub.card().frame_time().as_millis() as u64
    }

    fn seconds(&self) -> f64 {
        self.steps as f64 * self.app.hub.card().frame_time().as_secs_f64()
    }

    async fn send(&mut self, name: &str, mut body: Value) -> Result<(), Gone> {
        body["type"] = name.into();
        body["event_id"] = id("event").into();
        self.send_event(body).await
    }

    async fn send_event(&mut self, event: Value) -> Result<(), Gone> {
        if self.socket.send_text(event.to_string()).await { Ok(()) } else { Err(Gone) }
    }
}
