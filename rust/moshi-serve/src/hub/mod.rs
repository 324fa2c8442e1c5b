//! The one way from connections to the engine: every protocol opens a [`SessionHandle`] here, feeds
//! it samples and takes frames from it.
//!
//! Locks are held for microseconds: a connection puts a frame into a queue, the worker takes what
//! is ready. No lock is held while the engine steps, and none across an `await`.

mod endings;
mod session;
mod shared;

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use moshi_wire::framer::Framer;
use tokio::sync::{Notify, mpsc, oneshot, watch};

pub use self::endings::{End, OpenError};
use self::session::{Leave, Opening};
pub use self::session::{OutputFrame, SessionHandle, SessionRequest};
use self::shared::Link;
pub(crate) use self::shared::{Command, Shared, State, next_commands};
use crate::backend::Card;
use crate::metrics::{Metrics, label};
use crate::scheduler::{Overflow, Refusal, Scheduler, SlotId};
use crate::tokens::{Token, TokenHash};

/// Frames that may wait for a connection to send them: five seconds.
const OUTPUT_FRAMES: usize = 64;
/// A worker that has not looked around for so long is stuck.
const STUCK: Duration = Duration::from_secs(2);

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
            commands: VecDeque::new(),
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

    /// The text of `/metrics`, in the form of OpenMetrics.
    pub fn metrics_text(&self) -> String {
        self.measured().text()
    }

    /// As [`Hub::metrics_text`], in the older text format.
    pub fn classic_metrics_text(&self) -> String {
        self.measured().classic_text()
    }

    /// The metrics, with what is looked up when they are asked for.
    fn measured(&self) -> &Metrics {
        let slots = self.slots();
        let metrics = self.metrics();
        let state = |name| metrics.slots.get_or_create(&label("state", name)).clone();
        state("used").set(slots.used as i64);
        state("parked").set(slots.parked as i64);
        state("capacity").set(slots.capacity as i64);
        metrics.waiting.set(slots.waiting as i64);
        let frames = self.shared.lock().scheduler.longest_queue() as u32;
        metrics.lag.set((self.card().frame_time() * frames).as_secs_f64());
        metrics
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
        let Some(token) = &request.resume else {
            let slot = self.admit(request.overflow).await?;
            return self.start(slot, &request, None).finish().await;
        };
        let hash = Token::hash_of(token);
        if let Some(opening) = self.take_over(hash, token) {
            return opening.finish().await;
        }
        if !self.is_saved(hash) {
            return Err(OpenError::UnknownToken);
        }
        // Who is refused, or leaves the line, finds the conversation the next time.
        let slot = self.admit(request.overflow).await?;
        let Some(blob) = self.take_saved(hash) else {
            self.give_back(slot);
            return Err(OpenError::UnknownToken);
        };
        self.start(slot, &request, Some(blob)).finish().await
    }

    fn give_back(&self, slot: SlotId) {
        let mut state = self.shared.lock();
        state.scheduler.remove(slot);
        self.shared.changed(state);
    }

    /// What a new conversation would be refused with now, `draining` if that is given; counted as a
    /// refusal.
    pub(crate) fn refuses(&self, draining: Option<OpenError>) -> Option<OpenError> {
        let full = || self.shared.lock().scheduler.refuses();
        let error = draining.or_else(|| full().map(|refusal| self.refused(refusal)))?;
        self.metrics().rejected.get_or_create(&label("reason", error.name())).inc();
        Some(error)
    }

    fn refused(&self, refusal: Refusal) -> OpenError {
        match refusal {
            Refusal::Full { capacity, .. } => OpenError::Full { capacity },
            Refusal::Draining if self.shared.lock().failed => OpenError::Failed,
            Refusal::Draining => OpenError::Draining,
        }
    }

    async fn admit(&self, overflow: Overflow) -> Result<SlotId, OpenError> {
        let refuse = |refusal| self.refused(refusal);
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
        // Whoever resumes may be gone before they hear of another token.
        let known = request.resume.as_deref().filter(|_| blob.is_some());
        let token = known.map_or_else(Token::new, Token::from);
        let (events, receiver) = mpsc::channel(OUTPUT_FRAMES);
        let (reply, settings) = oneshot::channel();
        let mut state = self.shared.lock();
        let mut handle = self.link(&mut state, slot, token, receiver);
        handle.stepped = blob.is_some();
        if !state.failed {
            let stream = request.stream;
            state.commands.push_back(Command::Open { slot, stream, blob, events, reply });
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
        let mut handle = self.link(&mut state, slot, Token::from(token), receiver);
        // Not begun by this connection, and not to be lost with it.
        handle.stepped = true;
        state.commands.push_back(Command::Attach { slot, events, reply });
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
        // Who was not let in has been counted as rejected.
        let count_end = |reason| {
            if handle.settings.is_some() {
                self.shared.count_end(reason);
            }
        };
        let mut state = self.shared.lock();
        if !state.belongs_to(handle.slot, handle.generation) {
            count_end(handle.end_reason().map_or("closed", End::name));
            return;
        }
        // A conversation that has not begun is not worth a slot.
        let park = handle.leave == Leave::Park
            && (handle.stepped || handle.settings.is_some_and(|s| s.steps > 0))
            && !self.shared.grace.is_zero();
        if park {
            count_end("lost");
            for gone in state.scheduler.park(handle.slot, self.shared.now()) {
                state.forget(gone, None);
            }
        } else {
            let reason = match handle.leave {
                Leave::End(reason) => reason.name(),
                Leave::Park | Leave::Close => "closed",
            };
            if handle.leave == Leave::End(End::SlowReader) {
                self.metrics().slow_readers.inc();
            }
            count_end(reason);
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
    /// One that cannot be written is told to the log and keeps no other from being saved.
    pub async fn save(&self) -> usize {
        let Some(dir) = &self.shared.state_dir else { return 0 };
        let blobs = self.snapshots().await.unwrap_or_default();
        let mut saved = 0;
        for (slot, blob) in blobs {
            let hash = self.shared.lock().links.get(&slot).map(|link| link.token);
            match hash.map(|hash| crate::tokens::save(dir, hash, &blob)) {
                Some(Ok(())) => saved += 1,
                Some(Err(error)) => log::error!("a session cannot be saved: {error}"),
                None => {}
            }
        }
        saved
    }

    /// Asks the worker for all conversations. Without a worker, the answer is an error.
    fn snapshots(&self) -> oneshot::Receiver<Vec<(SlotId, Vec<u8>)>> {
        let (reply, blobs) = oneshot::channel();
        let mut state = self.shared.lock();
        if !state.failed {
            state.commands.push_back(Command::Snapshot(reply));
        }
        self.shared.changed(state);
        blobs
    }

    fn is_saved(&self, hash: TokenHash) -> bool {
        let dir = self.shared.state_dir.as_deref();
        dir.is_some_and(|dir| crate::tokens::is_saved(dir, hash))
    }

    fn take_saved(&self, hash: TokenHash) -> Option<Vec<u8>> {
        let dir: &Path = self.shared.state_dir.as_deref()?;
        // The hub is there when the daemon is ready.
        crate::tokens::take(dir, hash, self.shared.grace, self.shared.now())
    }

    /// Ends the worker after what it is doing.
    pub(crate) fn stop(&self) {
        let mut state = self.shared.lock();
        state.commands.push_back(Command::Stop);
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
