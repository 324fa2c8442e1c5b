//! What connections and the worker share, behind one lock.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::{End, OutputFrame};
use crate::backend::{Card, StreamOptions, StreamSettings};
use crate::metrics::{Metrics, label};
use crate::scheduler::{Scheduler, SlotId};
use crate::tokens::TokenHash;

/// The worker looks around at least this often.
const HEARTBEAT: Duration = Duration::from_millis(500);

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

/// What the worker is to do before its next step. One conversation is opened at a time: those that
/// run do not wait for a crowd of new ones.
pub(crate) fn next_commands(commands: &mut VecDeque<Command>) -> Vec<Command> {
    let opens = |command: &Command| matches!(command, Command::Open { .. });
    let count = commands.iter().position(opens).map_or(commands.len(), |at| at + 1);
    commands.drain(..count).collect()
}

/// A slot's connection.
pub(super) struct Link {
    pub(super) generation: u64,
    pub(super) end: watch::Sender<Option<End>>,
    pub(super) token: TokenHash,
}

pub(crate) struct State {
    pub(crate) scheduler: Scheduler<Vec<f32>>,
    pub(crate) commands: VecDeque<Command>,
    pub(super) links: HashMap<SlotId, Link>,
    pub(super) tokens: HashMap<TokenHash, SlotId>,
    pub(super) generation: u64,
    pub(super) failed: bool,
}

impl State {
    /// False once another connection has the slot, or nobody has it.
    pub(super) fn belongs_to(&self, slot: SlotId, generation: u64) -> bool {
        self.links.get(&slot).is_some_and(|link| link.generation == generation)
    }

    /// Ends a conversation and forgets it.
    pub(super) fn end(&mut self, slot: SlotId, reason: End) {
        self.forget(slot, Some(reason));
    }

    pub(super) fn forget(&mut self, slot: SlotId, reason: Option<End>) {
        self.scheduler.remove(slot);
        if let Some(link) = self.links.remove(&slot) {
            self.tokens.remove(&link.token);
            if reason.is_some() {
                link.end.send_replace(reason);
            }
        }
        self.commands.push_back(Command::Forget(slot));
    }
}

pub(crate) struct Shared {
    pub(super) state: Mutex<State>,
    pub(super) wake: Condvar,
    pub(super) freed: Notify,
    pub(super) epoch: Instant,
    pub(super) heartbeat_ms: AtomicU64,
    pub(crate) card: Card,
    pub(crate) metrics: Metrics,
    pub(super) failure: watch::Sender<Option<String>>,
    pub(super) state_dir: Option<PathBuf>,
    pub(super) grace: Duration,
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

    pub(super) fn changed(&self, guard: MutexGuard<'_, State>) {
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
            // Its end was counted when its connection was lost.
            state.forget(slot, None);
        }
        for slot in idle {
            state.end(slot, End::Idle);
        }
        self.freed.notify_waiters();
    }

    /// Lets the estimate of the engine's speed recover while nothing runs, and calls who waits if
    /// there is room now.
    pub(crate) fn rest(&self, state: &mut State, now: Duration) {
        state.scheduler.capacity_mut().rest(now);
        if state.scheduler.has_room_for_line() {
            self.freed.notify_waiters();
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversations_open_one_at_a_time() {
        let open = |slot| Command::Open {
            slot,
            stream: StreamOptions { seed: None, sampling: None },
            blob: None,
            events: mpsc::channel(1).0,
            reply: oneshot::channel().0,
        };
        let mut commands: VecDeque<Command> =
            [Command::Forget(1), open(2), Command::Forget(3), open(4), Command::Forget(5)].into();
        let counts = [(); 4].map(|()| next_commands(&mut commands).len());
        assert_eq!(counts, [2, 2, 1, 0]);
    }
}
