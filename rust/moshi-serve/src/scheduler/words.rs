//! What the scheduler is told, and what it answers.

use std::time::Duration;

/// Name of a slot; never used twice.
pub type SlotId = u64;

/// What to do with a frame that finds its queue full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overflow {
    /// Drop the oldest and count it: a dialogue must not fall behind.
    DropOldest,
    /// Give the frame back: an upload can wait.
    PushBack,
}

/// Why a caller gets no slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Every slot is taken, and so is every place of the waiting line.
    Full {
        /// Slots taken, parked ones included.
        used: usize,
        /// Slots there are.
        capacity: usize,
    },
    /// The daemon takes no new conversations.
    Draining,
}

/// What became of a pushed frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Pushed<F> {
    /// It waits.
    Accepted,
    /// It waits, and an older one was dropped.
    DroppedOldest,
    /// It did not fit and comes back.
    Full(F),
    /// There is no such slot, or it has no connection.
    Gone,
}

/// A frame on its way into a step.
#[derive(Debug, PartialEq, Eq)]
pub struct Ready<F> {
    /// Whose it is.
    pub slot: SlotId,
    /// The frame.
    pub frame: F,
    /// When it came.
    pub arrived: Duration,
    /// Frames of the same slot that wait behind it.
    pub waiting: usize,
    /// Frames of the slot that were dropped so far.
    pub dropped: u64,
}

/// What the worker should do now.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision<F> {
    /// Step these, in order of their slots.
    Step(Vec<Ready<F>>),
    /// Look again at this time, or when something happens.
    Wait(Duration),
    /// Wait until something happens.
    Idle,
}

/// Settings of a [`Scheduler`](super::Scheduler).
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Time between two frames of one slot.
    pub frame: Duration,
    /// Longest wait of a ready frame for those of other slots.
    pub coalesce: Duration,
    /// Frames that may wait of a slot that drops.
    pub max_lag_frames: usize,
    /// Frames that may wait of a slot that pushes back.
    pub max_upload_frames: usize,
    /// Callers that may wait for a slot.
    pub max_queue: usize,
    /// How long a slot without a connection is kept.
    pub grace: Duration,
    /// Slots that may be parked at the same time.
    pub max_parked: usize,
    /// Time without input after which a slot with a connection is given up.
    pub idle: Duration,
}
