//! Who may speak, and whose frame is next: a pure data structure without threads, sockets or a
//! clock. Time is a parameter, counted from any fixed point.
//!
//! Every conversation holds a slot from admission to its end. Its frames wait in a bounded queue.
//! The worker asks [`Scheduler::decide`] what to do; connections call the rest. A slot whose
//! connection is lost is parked: it keeps its place until its grace is over.

#[cfg(test)]
mod tests;
mod words;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

pub use self::words::{Decision, Overflow, Pushed, Ready, Refusal, Rules, SlotId};
use crate::capacity::Capacity;

#[derive(Debug)]
struct Slot<F> {
    frames: VecDeque<(F, Duration)>,
    overflow: Overflow,
    last_input: Duration,
    /// When the last whole frame came: the next one is due a frame's time later.
    last_frame: Option<Duration>,
    /// When its last frame was taken for a step.
    last_step: Option<Duration>,
    dropped: u64,
    /// Set while there is no connection: when to give up.
    parked_until: Option<Duration>,
}

/// The data structure.
#[derive(Debug)]
pub struct Scheduler<F> {
    rules: Rules,
    capacity: Capacity,
    slots: BTreeMap<SlotId, Slot<F>>,
    next: SlotId,
    line: VecDeque<u64>,
    next_ticket: u64,
    draining: bool,
}

impl<F> Scheduler<F> {
    /// An empty one.
    pub fn new(rules: Rules, capacity: Capacity) -> Self {
        Self {
            rules,
            capacity,
            slots: BTreeMap::new(),
            next: 1,
            line: VecDeque::new(),
            next_ticket: 1,
            draining: false,
        }
    }

    /// Takes a slot at once, past nobody who waits.
    ///
    /// # Errors
    /// A [`Refusal`].
    pub fn admit(&mut self, now: Duration, overflow: Overflow) -> Result<SlotId, Refusal> {
        if self.line.is_empty() { self.take_slot(now, overflow) } else { Err(self.full()) }
    }

    /// What a new conversation would be told now, if it would get neither a slot nor a place in the
    /// waiting line.
    pub fn refuses(&self) -> Option<Refusal> {
        if self.draining {
            return Some(Refusal::Draining);
        }
        let full = self.slots.len() >= self.capacity.sessions() || !self.line.is_empty();
        (full && self.line.len() >= self.rules.max_queue).then(|| self.full())
    }

    /// Takes a place in the waiting line.
    ///
    /// # Errors
    /// A [`Refusal`].
    pub fn enqueue(&mut self) -> Result<u64, Refusal> {
        if self.draining {
            return Err(Refusal::Draining);
        }
        if self.line.len() >= self.rules.max_queue {
            return Err(self.full());
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.line.push_back(ticket);
        Ok(ticket)
    }

    /// A slot for who waits first in line; `None` for everybody else, and while all are taken.
    ///
    /// # Errors
    /// [`Refusal::Draining`].
    pub fn admit_waiting(
        &mut self,
        ticket: u64,
        now: Duration,
        overflow: Overflow,
    ) -> Result<Option<SlotId>, Refusal> {
        if self.line.front() != Some(&ticket) {
            return if self.draining { Err(Refusal::Draining) } else { Ok(None) };
        }
        match self.take_slot(now, overflow) {
            Ok(slot) => {
                self.line.pop_front();
                Ok(Some(slot))
            }
            Err(Refusal::Full { .. }) => Ok(None),
            Err(refusal) => Err(refusal),
        }
    }

    /// Leaves the waiting line.
    pub fn leave_line(&mut self, ticket: u64) {
        self.line.retain(|&other| other != ticket);
    }

    /// Callers in the waiting line.
    pub fn line_len(&self) -> usize {
        self.line.len()
    }

    fn take_slot(&mut self, now: Duration, overflow: Overflow) -> Result<SlotId, Refusal> {
        if self.draining {
            return Err(Refusal::Draining);
        }
        if self.slots.len() >= self.capacity.sessions() {
            return Err(self.full());
        }
        let slot = self.next;
        self.next += 1;
        let state = Slot {
            frames: VecDeque::new(),
            overflow,
            last_input: now,
            last_frame: None,
            last_step: None,
            dropped: 0,
            parked_until: None,
        };
        self.slots.insert(slot, state);
        Ok(slot)
    }

    fn full(&self) -> Refusal {
        Refusal::Full { used: self.slots.len(), capacity: self.capacity.sessions() }
    }

    /// Adds a frame. Whether it is a sign of life is for [`Scheduler::touch`] to say.
    pub fn push(&mut self, slot: SlotId, frame: F, now: Duration) -> Pushed<F> {
        let Some(slot) = self.slots.get_mut(&slot).filter(|slot| slot.parked_until.is_none())
        else {
            return Pushed::Gone;
        };
        slot.last_frame = Some(now);
        let limit = match slot.overflow {
            Overflow::DropOldest => self.rules.max_lag_frames,
            Overflow::PushBack => self.rules.max_upload_frames,
        };
        if slot.frames.len() < limit.max(1) {
            slot.frames.push_back((frame, now));
            return Pushed::Accepted;
        }
        if slot.overflow == Overflow::PushBack {
            return Pushed::Full(frame);
        }
        slot.frames.pop_front();
        slot.frames.push_back((frame, now));
        slot.dropped += 1;
        Pushed::DroppedOldest
    }

    /// Sign of life of a slot.
    pub fn touch(&mut self, slot: SlotId, now: Duration) {
        if let Some(slot) = self.slots.get_mut(&slot) {
            slot.last_input = now;
        }
    }

    /// What to do now. A ready frame waits for others only while one of them is due within the
    /// coalescing time, judged by when its slot's last one came.
    ///
    /// An upload, which has a frame ready whenever it is asked, takes no time from dialogues: it is
    /// stepped alone only while none of them is due before the step's end, and joins their steps
    /// at the pace of time.
    pub fn decide(&mut self, now: Duration) -> Decision<F> {
        let dialogue = self.oldest(Overflow::DropOldest);
        let Some(oldest) = dialogue.or_else(|| self.oldest(Overflow::PushBack)) else {
            return Decision::Idle;
        };
        let deadline = oldest.saturating_add(self.rules.coalesce);
        if now < deadline && self.next_due(now, deadline, |_| true).is_some() {
            return Decision::Wait(deadline);
        }
        if dialogue.is_none() {
            let ready = self.connected().filter(|slot| !slot.frames.is_empty()).count();
            let end = now.saturating_add(self.capacity.step_time(ready));
            let is_dialogue = |slot: &Slot<F>| slot.overflow == Overflow::DropOldest;
            if let Some(due) = self.next_due(now, end, is_dialogue) {
                return Decision::Wait(due.saturating_add(self.rules.coalesce));
            }
        }
        let pause = self.rules.frame * 3 / 4;
        let joins = |slot: &Slot<F>| {
            let rested = || slot.last_step.is_none_or(|last| now >= last.saturating_add(pause));
            dialogue.is_none() || slot.overflow == Overflow::DropOldest || rested()
        };
        let mut batch = Vec::new();
        for (&id, slot) in &mut self.slots {
            if slot.parked_until.is_some() || !joins(slot) {
                continue;
            }
            if let Some((frame, arrived)) = slot.frames.pop_front() {
                slot.last_step = Some(now);
                let (waiting, dropped) = (slot.frames.len(), slot.dropped);
                batch.push(Ready { slot: id, frame, arrived, waiting, dropped });
            }
        }
        Decision::Step(batch)
    }

    fn connected(&self) -> impl Iterator<Item = &Slot<F>> {
        self.slots.values().filter(|slot| slot.parked_until.is_none())
    }

    /// When the longest waiting frame came of slots of a kind.
    fn oldest(&self, overflow: Overflow) -> Option<Duration> {
        let of_kind = self.connected().filter(|slot| slot.overflow == overflow);
        of_kind.filter_map(|slot| slot.frames.front()).map(|(_, at)| *at).min()
    }

    /// When the first frame is due that comes until `until`, of these slots. One that is late by
    /// the coalescing time is not waited for.
    fn next_due(
        &self,
        now: Duration,
        until: Duration,
        of: impl Fn(&Slot<F>) -> bool,
    ) -> Option<Duration> {
        let is_awaited =
            |due: &Duration| *due <= until && due.saturating_add(self.rules.coalesce) > now;
        self.connected()
            .filter(|slot| slot.frames.is_empty() && of(slot))
            .filter_map(|slot| Some(slot.last_frame?.saturating_add(self.rules.frame)))
            .filter(is_awaited)
            .min()
    }

    /// A slot has lost its connection: its frames are forgotten, its place is kept for the grace.
    /// Gives the slots that had to go for it: the longest parked ones, perhaps this one.
    pub fn park(&mut self, slot: SlotId, now: Duration) -> Vec<SlotId> {
        let Some(state) = self.slots.get_mut(&slot) else { return Vec::new() };
        state.frames.clear();
        state.parked_until = Some(now.saturating_add(self.rules.grace));
        let mut parked: Vec<(Duration, SlotId)> =
            self.slots.iter().filter_map(|(&id, slot)| Some((slot.parked_until?, id))).collect();
        parked.sort_unstable();
        let excess = parked.len().saturating_sub(self.rules.max_parked);
        let gone: Vec<SlotId> = parked[..excess].iter().map(|&(_, id)| id).collect();
        for id in &gone {
            self.slots.remove(id);
        }
        gone
    }

    /// A slot has a connection again. False when there is no such slot.
    pub fn unpark(&mut self, slot: SlotId, now: Duration) -> bool {
        self.slots.get_mut(&slot).is_some_and(|slot| {
            slot.frames.clear();
            slot.parked_until = None;
            slot.last_input = now;
            slot.last_frame = None;
            true
        })
    }

    /// Gives a slot back. False when there is none.
    pub fn remove(&mut self, slot: SlotId) -> bool {
        self.slots.remove(&slot).is_some()
    }

    /// Takes away and gives the parked slots whose grace is over.
    pub fn expire(&mut self, now: Duration) -> Vec<SlotId> {
        let over = |slot: &Slot<F>| slot.parked_until.is_some_and(|until| until <= now);
        let gone: Vec<SlotId> =
            self.slots.iter().filter(|(_, slot)| over(slot)).map(|(&id, _)| id).collect();
        for id in &gone {
            self.slots.remove(id);
        }
        gone
    }

    /// Slots with a connection that have been silent for too long.
    pub fn idle(&self, now: Duration) -> Vec<SlotId> {
        let idle = |slot: &Slot<F>| {
            slot.parked_until.is_none() && now >= slot.last_input.saturating_add(self.rules.idle)
        };
        self.slots.iter().filter(|(_, slot)| idle(slot)).map(|(&id, _)| id).collect()
    }

    /// When [`Scheduler::expire`] or [`Scheduler::idle`] will have something to give.
    pub fn next_deadline(&self) -> Option<Duration> {
        let deadline = |slot: &Slot<F>| {
            slot.parked_until.unwrap_or(slot.last_input.saturating_add(self.rules.idle))
        };
        self.slots.values().map(deadline).min()
    }

    /// Takes no new conversations from now on.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// True after [`Scheduler::drain`].
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// Slots in use, parked ones included.
    pub fn used(&self) -> usize {
        self.slots.len()
    }

    /// Parked slots.
    pub fn parked(&self) -> usize {
        self.slots.values().filter(|slot| slot.parked_until.is_some()).count()
    }

    /// Frames that wait in the longest queue.
    pub fn longest_queue(&self) -> usize {
        self.slots.values().map(|slot| slot.frames.len()).max().unwrap_or(0)
    }

    /// What is known about the engine's speed.
    pub fn capacity(&self) -> &Capacity {
        &self.capacity
    }

    /// As [`Scheduler::capacity`], to add a measurement.
    pub fn capacity_mut(&mut self) -> &mut Capacity {
        &mut self.capacity
    }

    /// True when who waits first in line could have a slot.
    pub fn has_room_for_line(&self) -> bool {
        !self.line.is_empty() && self.slots.len() < self.capacity.sessions()
    }
}
