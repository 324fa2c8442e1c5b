//! The one way from connections to the engine: every protocol opens a [`SessionHandle`] here, feeds
//! it samples and takes frames from it.
//!
//! Locks are held for microseconds: a connection puts a frame into a queue, the worker takes what
//! is ready. No lock is held while the engine steps, and none across an `await`.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use moshi_wire::framer::Framer;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::backend::{Card, StreamOptions, StreamSettings};
use crate::metrics::{Metrics, label};
use crate::scheduler::{Overflow, Pushed, Refusal, Scheduler, SlotId};
use crate::tokens::{Token, TokenHash};

/// Frames that may wait for a connection to send them: five seconds.
pub(crate) const OUTPUT_FRAMES: usize = 64;
/// The worker looks around at least this often.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// A worker that has not looked around for so long is stuck.
const STUCK: Duration = Duration::from_secs(2);

/// Why a conversation was ended from this side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The client did not read what it was sent.
    SlowReader,
    /// No input for too long.
    Idle,
    /// The daemon shuts down.
    Draining,
    /// Another connection took the conversation over with its token.
    TakenOver,
    /// The engine failed.
    Failed,
}

impl End {
    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::SlowReader => "slow_reader",
            Self::Idle => "idle",
            Self::Draining => "draining",
            Self::TakenOver => "taken_over",
            Self::Failed => "failed",
        }
    }
}

/// Why a conversation could not begin.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// All slots are taken.
    #[error("all {capacity} sessions are in use; try again later")]
    Full {
        /// Slots there are.
        capacity: usize,
    },
    /// The daemon shuts down.
    #[error("the server is shutting down; connect to another one, or again later")]
    Draining,
    /// Nothing is kept under this token.
    #[error("unknown or expired resume token; start a new session without it")]
    UnknownToken,
    /// The engine refused the settings.
    #[error(transparent)]
    Engine(#[from] moshi_core::Error),
    /// The engine is gone.
    #[error("the engine has failed; the server is about to exit")]
    Failed,
}

impl OpenError {
    /// Its name in metrics and protocols.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Full { .. } => "full",
            Self::Draining => "draining",
            Self::UnknownToken => "unknown_token",
            Self::Engine(_) => "settings",
            Self::Failed => "failed",
        }
    }
}

/// How a conversation begins.
#[derive(Debug, Clone)]
pub struct SessionRequest {
    /// Settings of the stream; those of a resumed one are its own.
    pub stream: StreamOptions,
    /// What to do when the input outruns the model.
    pub overflow: Overflow,
    /// Token of the conversation to go on with.
    pub resume: Option<String>,
    /// Name of the protocol in metrics.
    pub protocol: &'static str,
}

/// One step's result for a connection.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputFrame {
    /// The model's audio.
    pub pcm: Vec<f32>,
    /// New text, often empty.
    pub text: String,
    /// Steps of the conversation so far, this one included.
    pub step: u64,
    /// How far the input is ahead of the model.
    pub lag: Duration,
    /// Input frames dropped so far.
    pub dropped: u64,
}

pub(crate) enum Command {
    Open {
        slot: SlotId,
        stream: StreamOptions,
        blob: Option<Vec<u8>>,
        events: mpsc::Sender<OutputFrame>,
        reply: oneshot::Sender<moshi_core::Result<StreamSettings>>,
    },
    Attach {
        slot: SlotId,
        events: mpsc::Sender<OutputFrame>,
        reply: oneshot::Sender<moshi_core::Result<StreamSettings>>,
    },
    Forget(SlotId),
    Snapshot(oneshot::Sender<Vec<(SlotId, Vec<u8>)>>),
    Stop,
}

/// A slot's connection.
struct Link {
    generation: u64,
    end: watch::Sender<Option<End>>,
    token: TokenHash,
}

pub(crate) struct State {
    pub(crate) scheduler: Scheduler<Vec<f32>>,
    pub(crate) commands: Vec<Command>,
    links: HashMap<SlotId, Link>,
    tokens: HashMap<TokenHash, SlotId>,
    generation: u64,
    failed: bool,
}

impl State {
    /// Ends a conversation and forgets it.
    fn end(&mut self, slot: SlotId, reason: End) {
        self.forget(slot, Some(reason));
    }

    fn forget(&mut self, slot: SlotId, reason: Option<End>) {
        self.scheduler.remove(slot);
        if let Some(link) = self.links.remove(&slot) {
            self.tokens.remove(&link.token);
            if reason.is_some() {
                link.end.send_replace(reason);
            }
        }
        self.commands.push(Command::Forget(slot));
    }
}

pub(crate) struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    freed: Notify,
    epoch: Instant,
    heartbeat_ms: AtomicU64,
    pub(crate) card: Card,
    pub(crate) metrics: Metrics,
    failure: watch::Sender<Option<String>>,
    state_dir: Option<PathBuf>,
    grace: Duration,
}

impl Shared {
    pub(crate) fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // What a panic leaves behind the lock is whole: every change is a few plain operations.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn beat(&self) {
        self.heartbeat_ms.store(self.now().as_millis() as u64, Ordering::Relaxed);
    }

    /// Waits for a command or a frame, at most `limit`.
    pub(crate) fn wait<'a>(
        &self,
        guard: MutexGuard<'a, State>,
        limit: Option<Duration>,
    ) -> MutexGuard<'a, State> {
        let limit = limit.unwrap_or(HEARTBEAT).min(HEARTBEAT);
        self.wake.wait_timeout(guard, limit).unwrap_or_else(PoisonError::into_inner).0
    }

    fn changed(&self, guard: MutexGuard<'_, State>) {
        drop(guard);
        self.wake.notify_one();
        self.freed.notify_waiters();
    }

    /// Ends conversations that are over by time.
    pub(crate) fn expire(&self, state: &mut State, now: Duration) {
        let expired = state.scheduler.expire(now);
        let idle = state.scheduler.idle(now);
        if expired.is_empty() && idle.is_empty() {
            return;
        }
        for slot in expired {
            state.forget(slot, None);
            self.count_end("grace_over");
        }
        for slot in idle {
            state.end(slot, End::Idle);
        }
        self.freed.notify_waiters();
    }

    /// Ends conversations whose output nobody takes.
    pub(crate) fn end_slow(&self, slots: &[SlotId]) {
        if slots.is_empty() {
            return;
        }
        let mut state = self.lock();
        for &slot in slots {
            state.end(slot, End::SlowReader);
            self.metrics.slow_readers.inc();
        }
        self.changed(state);
    }

    /// The worker is gone: everything ends.
    pub(crate) fn fail(&self, reason: String) {
        let mut state = self.lock();
        state.failed = true;
        state.scheduler.drain();
        let slots: Vec<SlotId> = state.links.keys().copied().collect();
        for slot in slots {
            state.end(slot, End::Failed);
        }
        for command in std::mem::take(&mut state.commands) {
            drop(command);
        }
        self.changed(state);
        self.failure.send_replace(Some(reason));
    }

    pub(crate) fn count_end(&self, reason: &str) {
        self.metrics.ended.get_or_create(&label("reason", reason)).inc();
    }
}

/// What the daemon knows about its state, for readiness and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// Takes callers.
    Ready,
    /// Shuts down.
    Draining,
    /// The engine failed or is stuck.
    Failed,
}

/// Numbers of slots.
#[derive(Debug, Clone, Copy)]
pub struct Slots {
    /// In use, parked ones included.
    pub used: usize,
    /// Without a connection.
    pub parked: usize,
    /// There are.
    pub capacity: usize,
    /// Callers in the waiting line.
    pub waiting: usize,
}

/// Settings of a [`Hub`] beside the scheduler's.
#[derive(Debug, Clone, Default)]
pub struct HubOptions {
    /// Where conversations survive a restart; `None` keeps them in memory only.
    pub state_dir: Option<PathBuf>,
    /// How long a conversation without a connection is kept.
    pub grace: Duration,
}

/// The meeting point of connections and worker.
#[derive(Clone)]
pub struct Hub {
    pub(crate) shared: Arc<Shared>,
}

impl Hub {
    pub(crate) fn new(card: Card, scheduler: Scheduler<Vec<f32>>, options: HubOptions) -> Self {
        let metrics = Metrics::new(env!("CARGO_PKG_VERSION"), &card.executor);
        let state = State {
            scheduler,
            commands: Vec::new(),
            links: HashMap::new(),
            tokens: HashMap::new(),
            generation: 0,
            failed: false,
        };
        let shared = Shared {
            state: Mutex::new(state),
            wake: Condvar::new(),
            freed: Notify::new(),
            epoch: Instant::now(),
            heartbeat_ms: AtomicU64::new(0),
            card,
            metrics,
            failure: watch::Sender::new(None),
            state_dir: options.state_dir,
            grace: options.grace,
        };
        Self { shared: Arc::new(shared) }
    }

    /// What is being served.
    pub fn card(&self) -> &Card {
        &self.shared.card
    }

    /// Counters.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Numbers of slots.
    pub fn slots(&self) -> Slots {
        let state = self.shared.lock();
        Slots {
            used: state.scheduler.used(),
            parked: state.scheduler.parked(),
            capacity: state.scheduler.capacity().sessions(),
            waiting: state.scheduler.line_len(),
        }
    }

    /// The text of `/metrics`.
    pub fn metrics_text(&self) -> String {
        let slots = self.slots();
        let metrics = self.metrics();
        let state = |name| metrics.slots.get_or_create(&label("state", name)).clone();
        state("used").set(slots.used as i64);
        state("parked").set(slots.parked as i64);
        state("capacity").set(slots.capacity as i64);
        metrics.waiting.set(slots.waiting as i64);
        let frames = self.shared.lock().scheduler.longest_queue() as u32;
        metrics.lag_ms.set((self.card().frame_time() * frames).as_millis() as i64);
        metrics.text()
    }

    /// Whether callers are welcome.
    pub fn readiness(&self) -> Readiness {
        let state = self.shared.lock();
        let beat = Duration::from_millis(self.shared.heartbeat_ms.load(Ordering::Relaxed));
        if state.failed || self.shared.now() > beat + STUCK {
            Readiness::Failed
        } else if state.scheduler.is_draining() {
            Readiness::Draining
        } else {
            Readiness::Ready
        }
    }

    /// Resolves when the engine fails, with the reason.
    pub async fn failure(&self) -> String {
        let mut failure = self.shared.failure.subscribe();
        match failure.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            // The sender lives as long as the hub.
            Err(_) => "the engine is gone".into(),
        }
    }

    /// How long a lost conversation is kept.
    pub fn grace(&self) -> Duration {
        self.shared.grace
    }

    /// Opens or resumes a conversation; waits in the line if there is one and it has room.
    /// Dropping the future leaves the line.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(&self, request: SessionRequest) -> Result<SessionHandle, OpenError> {
        let protocol = request.protocol;
        let opened = self.open_uncounted(request).await;
        match &opened {
            Ok(_) => self.metrics().sessions.get_or_create(&label("protocol", protocol)).inc(),
            Err(error) => {
                self.metrics().rejected.get_or_create(&label("reason", error.name())).inc()
            }
        };
        opened
    }

    async fn open_uncounted(&self, request: SessionRequest) -> Result<SessionHandle, OpenError> {
        let mut blob = None;
        if let Some(token) = &request.resume {
            let hash = Token::hash_of(token);
            if let Some(opening) = self.take_over(hash, token) {
                return opening.finish().await;
            }
            blob = Some(self.load(hash).ok_or(OpenError::UnknownToken)?);
        }
        let slot = self.admit(request.overflow).await?;
        self.start(slot, &request, blob).finish().await
    }

    async fn admit(&self, overflow: Overflow) -> Result<SlotId, OpenError> {
        let refuse = |refusal| match refusal {
            Refusal::Full { capacity, .. } => OpenError::Full { capacity },
            Refusal::Draining if self.shared.lock().failed => OpenError::Failed,
            Refusal::Draining => OpenError::Draining,
        };
        let ticket = match self.admit_or_enqueue(overflow).map_err(refuse)? {
            Place::Slot(slot) => return Ok(slot),
            Place::Line(ticket) => ticket,
        };
        let line = InLine { shared: &self.shared, ticket };
        loop {
            let freed = self.shared.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            let now = self.shared.now();
            let admitted = self.shared.lock().scheduler.admit_waiting(line.ticket, now, overflow);
            if let Some(slot) = admitted.map_err(refuse)? {
                return Ok(slot);
            }
            freed.await;
        }
    }

    fn admit_or_enqueue(&self, overflow: Overflow) -> Result<Place, Refusal> {
        let mut state = self.shared.lock();
        match state.scheduler.admit(self.shared.now(), overflow) {
            Ok(slot) => Ok(Place::Slot(slot)),
            Err(Refusal::Full { .. }) => state.scheduler.enqueue().map(Place::Line),
            Err(refusal) => Err(refusal),
        }
    }

    fn start(&self, slot: SlotId, request: &SessionRequest, blob: Option<Vec<u8>>) -> Opening {
        let token = Token::new();
        let (events, receiver) = mpsc::channel(OUTPUT_FRAMES);
        let (reply, settings) = oneshot::channel();
        let mut state = self.shared.lock();
        let handle = self.link(&mut state, slot, token, receiver);
        if !state.failed {
            let stream = request.stream;
            state.commands.push(Command::Open { slot, stream, blob, events, reply });
        }
        self.shared.changed(state);
        Opening { handle, settings }
    }

    /// A conversation that is in memory goes on under this connection.
    fn take_over(&self, hash: TokenHash, token: &str) -> Option<Opening> {
        let mut state = self.shared.lock();
        let slot = *state.tokens.get(&hash)?;
        if !state.scheduler.unpark(slot, self.shared.now()) {
            return None;
        }
        if let Some(link) = state.links.get(&slot) {
            link.end.send_replace(Some(End::TakenOver));
        }
        let (events, receiver) = mpsc::channel(OUTPUT_FRAMES);
        let (reply, settings) = oneshot::channel();
        let handle = self.link(&mut state, slot, Token::from(token), receiver);
        state.commands.push(Command::Attach { slot, events, reply });
        self.shared.changed(state);
        Some(Opening { handle, settings })
    }

    fn link(
        &self,
        state: &mut State,
        slot: SlotId,
        token: Token,
        events: mpsc::Receiver<OutputFrame>,
    ) -> SessionHandle {
        state.generation += 1;
        let generation = state.generation;
        let (end, ended) = watch::channel(None);
        state.tokens.insert(token.hash(), slot);
        state.links.insert(slot, Link { generation, end, token: token.hash() });
        SessionHandle {
            hub: self.clone(),
            slot,
            generation,
            token,
            framer: Framer::new(self.card().frame_samples),
            events,
            ended,
            settings: None,
            backlog: VecDeque::new(),
            stepped: false,
            leave: Leave::Park,
        }
    }

    fn leave(&self, handle: &SessionHandle) {
        let mut state = self.shared.lock();
        let ours =
            state.links.get(&handle.slot).is_some_and(|link| link.generation == handle.generation);
        if !ours {
            self.shared.count_end(handle.end_reason().map_or("closed", End::name));
            return;
        }
        // A conversation that has not begun is not worth a slot.
        let park = handle.leave == Leave::Park
            && (handle.stepped || handle.settings.is_some_and(|s| s.steps > 0))
            && !self.shared.grace.is_zero();
        if park {
            self.shared.count_end("lost");
            for gone in state.scheduler.park(handle.slot, self.shared.now()) {
                state.forget(gone, None);
                self.shared.count_end("resume_memory");
            }
        } else {
            self.shared.count_end("closed");
            state.forget(handle.slot, None);
        }
        self.shared.changed(state);
    }

    /// Takes no new callers. Running conversations go on.
    pub fn drain(&self) {
        let mut state = self.shared.lock();
        state.scheduler.drain();
        self.shared.changed(state);
    }

    /// Ends all conversations that have a connection.
    pub fn end_all(&self, reason: End) {
        let mut state = self.shared.lock();
        let slots: Vec<SlotId> = state.links.keys().copied().collect();
        for slot in slots {
            state.end(slot, reason);
        }
        self.shared.changed(state);
    }

    /// Writes every conversation to the state directory, if there is one, and gives their number.
    ///
    /// # Errors
    /// What the operating system says about the directory.
    pub async fn save(&self) -> std::io::Result<usize> {
        let Some(dir) = &self.shared.state_dir else { return Ok(0) };
        let blobs = self.snapshots().await.unwrap_or_default();
        let mut saved = 0;
        for (slot, blob) in blobs {
            let hash = self.shared.lock().links.get(&slot).map(|link| link.token);
            if let Some(hash) = hash {
                crate::tokens::save(dir, hash, &blob)?;
                saved += 1;
            }
        }
        Ok(saved)
    }

    /// Asks the worker for all conversations. Without a worker, the answer is an error.
    fn snapshots(&self) -> oneshot::Receiver<Vec<(SlotId, Vec<u8>)>> {
        let (reply, blobs) = oneshot::channel();
        let mut state = self.shared.lock();
        if !state.failed {
            state.commands.push(Command::Snapshot(reply));
        }
        self.shared.changed(state);
        blobs
    }

    fn load(&self, hash: TokenHash) -> Option<Vec<u8>> {
        let dir: &Path = self.shared.state_dir.as_deref()?;
        // The hub is there when the daemon is ready.
        crate::tokens::take(dir, hash, self.shared.grace, self.shared.now())
    }

    /// Ends the worker after what it is doing.
    pub(crate) fn stop(&self) {
        let mut state = self.shared.lock();
        state.commands.push(Command::Stop);
        self.shared.changed(state);
    }
}

enum Place {
    Slot(SlotId),
    Line(u64),
}

/// A place in the waiting line, given up when dropped.
struct InLine<'a> {
    shared: &'a Shared,
    ticket: u64,
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.scheduler.leave_line(self.ticket);
        self.shared.changed(state);
    }
}

struct Opening {
    handle: SessionHandle,
    settings: oneshot::Receiver<moshi_core::Result<StreamSettings>>,
}

impl Opening {
    async fn finish(self) -> Result<SessionHandle, OpenError> {
        let Self { mut handle, settings } = self;
        let settings = settings.await.map_err(|_| OpenError::Failed)?;
        match settings {
            Ok(settings) => {
                handle.settings = Some(settings);
                Ok(handle)
            }
            Err(error) => {
                handle.leave = Leave::Close;
                Err(error.into())
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leave {
    Park,
    Close,
}

/// A conversation as a connection sees it. Dropping it parks the conversation, see
/// [`SessionHandle::close`].
pub struct SessionHandle {
    hub: Hub,
    slot: SlotId,
    generation: u64,
    token: Token,
    framer: Framer,
    events: mpsc::Receiver<OutputFrame>,
    ended: watch::Receiver<Option<End>>,
    settings: Option<StreamSettings>,
    backlog: VecDeque<Vec<f32>>,
    stepped: bool,
    leave: Leave,
}

impl SessionHandle {
    /// What it runs with.
    pub fn settings(&self) -> StreamSettings {
        self.settings.expect("handed out only after the engine answered")
    }

    /// Opens the conversation again after the connection is lost.
    pub fn token(&self) -> &Token {
        &self.token
    }

    /// Feeds samples at the model's rate and gives the number of old frames that were dropped for
    /// them. For conversations that push back, [`SessionHandle::offer`] loses nothing.
    pub fn push(&mut self, samples: &[f32]) -> usize {
        let frames = self.framer.push(samples);
        let shared = &self.hub.shared;
        let now = shared.now();
        let mut state = shared.lock();
        let mut dropped = 0;
        if frames.is_empty() {
            state.scheduler.touch(self.slot, now);
            return 0;
        }
        for frame in frames {
            match state.scheduler.push(self.slot, frame, now) {
                Pushed::DroppedOldest => dropped += 1,
                Pushed::Accepted | Pushed::Full(_) | Pushed::Gone => {}
            }
        }
        drop(state);
        shared.wake.notify_one();
        shared.metrics.dropped_frames.inc_by(dropped as u64);
        dropped
    }

    /// Feeds samples of a conversation that pushes back: what does not fit yet is kept. Call
    /// [`SessionHandle::pump`] until it gives 0, and take no more input while it gives much.
    pub fn offer(&mut self, samples: &[f32]) -> usize {
        self.backlog.extend(self.framer.push(samples));
        self.pump()
    }

    /// As [`SessionHandle::offer`] for who also takes the results: feeds nothing while many of them
    /// wait to be taken. An engine that is faster than a connection must not make it a slow reader.
    pub fn offer_with_room(&mut self, samples: &[f32]) -> usize {
        self.backlog.extend(self.framer.push(samples));
        self.pump_with_room()
    }

    /// As [`SessionHandle::pump`], see [`SessionHandle::offer_with_room`].
    pub fn pump_with_room(&mut self) -> usize {
        if self.events.len() < OUTPUT_FRAMES / 2 { self.pump() } else { self.backlog.len() }
    }

    /// Feeds kept frames as far as they fit, and gives the number of those that are left.
    pub fn pump(&mut self) -> usize {
        let shared = &self.hub.shared;
        let mut state = shared.lock();
        let now = shared.now();
        state.scheduler.touch(self.slot, now);
        let mut moved = false;
        while let Some(frame) = self.backlog.pop_front() {
            if let Pushed::Full(frame) = state.scheduler.push(self.slot, frame, now) {
                self.backlog.push_front(frame);
                break;
            }
            moved = true;
        }
        drop(state);
        if moved {
            shared.wake.notify_one();
        }
        self.backlog.len()
    }

    /// Forgets samples that no step has taken from here yet.
    pub fn clear_input(&mut self) {
        self.framer.clear();
        self.backlog.clear();
    }

    /// The next result; `None` after the end, see [`SessionHandle::end_reason`].
    pub async fn next(&mut self) -> Option<OutputFrame> {
        let frame = self.events.recv().await;
        self.stepped |= frame.is_some();
        frame
    }

    /// Resolves when the conversation was ended from this side.
    pub fn ended(&self) -> impl Future<Output = End> + Send + use<> {
        let mut ended = self.ended.clone();
        async move {
            match ended.wait_for(Option::is_some).await {
                Ok(end) => end.unwrap_or(End::Failed),
                // The conversation is forgotten without a reason.
                Err(_) => End::Failed,
            }
        }
    }

    /// Why the conversation was ended from this side, if it was.
    pub fn end_reason(&self) -> Option<End> {
        *self.ended.borrow()
    }

    /// Ends the conversation for good: its slot is free at once.
    pub fn close(mut self) {
        self.leave = Leave::Close;
    }
}

impl Drop for SessionHandle {
    fn drop(&mut self) {
        self.hub.leave(self);
    }
}
