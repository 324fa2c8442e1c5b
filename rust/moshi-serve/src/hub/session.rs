//! A conversation as a connection sees it: how it is asked for, fed and left.

use std::collections::VecDeque;
use std::time::Duration;

use moshi_wire::framer::Framer;
use tokio::sync::{mpsc, oneshot, watch};

use super::{End, Hub, OUTPUT_FRAMES, OpenError};
use crate::backend::{StreamOptions, StreamSettings};
use crate::scheduler::{Overflow, Pushed, Scheduler, SlotId};
use crate::tokens::Token;

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
    /// What the engine's step took, for all conversations that were in it.
    pub took: Duration,
}

pub(super) struct Opening {
    pub(super) handle: SessionHandle,
    pub(super) settings: oneshot::Receiver<moshi_core::Result<StreamSettings>>,
}

impl Opening {
    pub(super) async fn finish(self) -> Result<SessionHandle, OpenError> {
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
pub(super) enum Leave {
    Park,
    Close,
    End(End),
}

/// A conversation as a connection sees it. Dropping it parks the conversation, see
/// [`SessionHandle::close`].
pub struct SessionHandle {
    pub(super) hub: Hub,
    pub(super) slot: SlotId,
    pub(super) generation: u64,
    pub(super) token: Token,
    pub(super) framer: Framer,
    pub(super) events: mpsc::Receiver<OutputFrame>,
    pub(super) ended: watch::Receiver<Option<End>>,
    pub(super) settings: Option<StreamSettings>,
    pub(super) backlog: VecDeque<Vec<f32>>,
    pub(super) stepped: bool,
    pub(super) leave: Leave,
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
        let mut dropped = 0;
        self.feed(|scheduler, slot, now| {
            scheduler.touch(slot, now);
            let moved = !frames.is_empty();
            for frame in frames {
                dropped += usize::from(scheduler.push(slot, frame, now) == Pushed::DroppedOldest);
            }
            moved
        });
        self.hub.shared.metrics.dropped_frames.inc_by(dropped as u64);
        dropped
    }

    /// Feeds samples of a conversation that pushes back: what does not fit yet is kept. Call
    /// [`SessionHandle::pump`] until it gives 0, and take no more input while it gives much.
    pub fn offer(&mut self, samples: &[f32]) -> usize {
        self.touch();
        self.backlog.extend(self.framer.push(samples));
        self.pump()
    }

    /// As [`SessionHandle::offer`] for who also takes the results: feeds nothing while many of them
    /// wait to be taken. An engine that is faster than a connection must not make it a slow reader.
    pub fn offer_with_room(&mut self, samples: &[f32]) -> usize {
        self.touch();
        self.backlog.extend(self.framer.push(samples));
        self.pump_with_room()
    }

    /// As [`SessionHandle::pump`], see [`SessionHandle::offer_with_room`].
    pub fn pump_with_room(&mut self) -> usize {
        if self.has_room() { self.pump() } else { self.backlog.len() }
    }

    /// Feeds samples that did not come from the client: they are no sign of life, and are left out
    /// where there is no room for them.
    pub fn fill_with_room(&mut self, samples: &[f32]) {
        if !self.backlog.is_empty() || !self.has_room() {
            return;
        }
        let frames = self.framer.push(samples);
        self.feed(|scheduler, slot, now| {
            let mut moved = false;
            for frame in frames {
                moved |= scheduler.push(slot, frame, now) == Pushed::Accepted;
            }
            moved
        });
    }

    /// The client has given a sign of life other than audio.
    pub fn touch(&mut self) {
        self.feed(|scheduler, slot, now| {
            scheduler.touch(slot, now);
            false
        });
    }

    /// Feeds kept frames as far as they fit, and gives the number of those that are left. They are
    /// the client's: it is not idle while it waits for them.
    pub fn pump(&mut self) -> usize {
        let mut backlog = std::mem::take(&mut self.backlog);
        if !backlog.is_empty() {
            self.feed(|scheduler, slot, now| {
                scheduler.touch(slot, now);
                let mut moved = false;
                while let Some(frame) = backlog.pop_front() {
                    if let Pushed::Full(frame) = scheduler.push(slot, frame, now) {
                        backlog.push_front(frame);
                        break;
                    }
                    moved = true;
                }
                moved
            });
        }
        self.backlog = backlog;
        self.backlog.len()
    }

    fn has_room(&self) -> bool {
        self.events.len() < OUTPUT_FRAMES / 2
    }

    /// Runs `action` if the conversation is still this connection's, and wakes the worker if it
    /// says so.
    fn feed(&self, action: impl FnOnce(&mut Scheduler<Vec<f32>>, SlotId, Duration) -> bool) {
        let shared = &self.hub.shared;
        let mut state = shared.lock();
        if !state.belongs_to(self.slot, self.generation) {
            return;
        }
        let moved = action(&mut state.scheduler, self.slot, shared.now());
        drop(state);
        if moved {
            shared.wake.notify_one();
        }
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

    /// As [`SessionHandle::close`], for a reason that the connection has found.
    pub fn close_for(mut self, reason: End) {
        self.leave = Leave::End(reason);
    }
}

impl Drop for SessionHandle {
    fn drop(&mut self) {
        self.hub.leave(self);
    }
}
