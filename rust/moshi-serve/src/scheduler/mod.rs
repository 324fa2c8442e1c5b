//! Who may speak, and whose frame is next: a pure data structure without threads, sockets or a
//! clock. Time is a parameter, counted from any fixed point.
//!
//! Every conversation holds a slot from admission to its end. Its frames wait in a bounded queue.
//! The worker asks [`Scheduler::decide`] what to do; connections call the rest. A slot whose
//! connection is lost is parked: it keeps its place until its grace is over.

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

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    const RULES: Rules = Rules {
        frame: ms(80),
        coalesce: ms(5),
        max_lag_frames: 3,
        max_upload_frames: 10,
        max_queue: 2,
        grace: ms(30_000),
        max_parked: 2,
        idle: ms(120_000),
    };

    fn scheduler(slots: usize) -> Scheduler<u32> {
        Scheduler::new(RULES, Capacity::fixed(slots))
    }

    fn admit(scheduler: &mut Scheduler<u32>) -> SlotId {
        scheduler.admit(ms(0), Overflow::DropOldest).unwrap()
    }

    fn step(decision: Decision<u32>) -> Vec<(SlotId, u32)> {
        match decision {
            Decision::Step(batch) => batch.into_iter().map(|r| (r.slot, r.frame)).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_lone_frame_is_stepped_at_once() {
        let mut s = scheduler(2);
        let a = admit(&mut s);
        assert_eq!(s.decide(ms(100)), Decision::Idle);
        s.push(a, 1, ms(100));
        assert_eq!(step(s.decide(ms(100))), [(a, 1)]);
        assert_eq!(s.decide(ms(101)), Decision::Idle);
    }

    #[test]
    fn a_frame_waits_for_one_that_is_due_and_no_longer() {
        let mut s = scheduler(3);
        let [a, b, c] = [(); 3].map(|()| admit(&mut s));
        for (slot, at) in [(a, 100), (b, 103), (c, 140)] {
            s.push(slot, 0, ms(at));
            step(s.decide(ms(at + 20)));
        }
        s.push(a, 1, ms(180));
        assert_eq!(s.decide(ms(180)), Decision::Wait(ms(185)), "b is due at 183, c is not");
        s.push(b, 2, ms(182));
        assert_eq!(step(s.decide(ms(182))), [(a, 1), (b, 2)]);
        s.push(a, 3, ms(260));
        assert_eq!(s.decide(ms(260)), Decision::Wait(ms(265)));
        assert_eq!(step(s.decide(ms(265))), [(a, 3)], "b is late");
        s.push(a, 4, ms(340));
        assert_eq!(step(s.decide(ms(340))), [(a, 4)], "b stopped sending");
    }

    /// Steps of a dialogue that sends at the pace of time and of an upload that never ends, in ten
    /// seconds of an engine of these step times for one and two. No frame of the dialogue waits.
    fn steps_beside_an_upload(capacity: Capacity, times: [u64; 2]) -> (usize, usize) {
        let mut s = Scheduler::new(RULES, capacity);
        let dialogue = admit(&mut s);
        let upload = s.admit(ms(0), Overflow::PushBack).unwrap();
        let (mut now, mut next) = (ms(0), ms(80));
        let (mut said, mut sent) = (0, 0);
        while now < ms(10_000) {
            while next <= now {
                s.push(dialogue, 0, next);
                next += RULES.frame;
            }
            while s.push(upload, 0, now) == Pushed::Accepted {}
            match s.decide(now) {
                Decision::Step(batch) => {
                    for ready in &batch {
                        if ready.slot == dialogue {
                            said += 1;
                            // The first one cannot be expected.
                            let waited = now - ready.arrived;
                            assert!(waited <= RULES.coalesce || said == 1, "{now:?} {ready:?}");
                        } else {
                            sent += 1;
                        }
                    }
                    let took = ms(times[batch.len() - 1]);
                    now += took;
                    s.capacity_mut().observe(batch.len(), took, now);
                }
                Decision::Wait(until) => {
                    assert!(until > now);
                    now = until.min(next);
                }
                Decision::Idle => now = next,
            }
        }
        (said, sent)
    }

    #[test]
    fn an_upload_takes_the_time_that_dialogues_leave() {
        for fixed in [false, true] {
            let capacity = |times: [u64; 2]| match fixed {
                true => Capacity::fixed(4),
                false => {
                    let steps = [(1, ms(times[0])), (2, ms(times[1]))];
                    Capacity::measured(RULES.frame, &steps, 4)
                }
            };
            let (said, sent) = steps_beside_an_upload(capacity([10, 12]), [10, 12]);
            assert!(said >= 123 && sent >= 5 * said, "{fixed} {said} {sent}");
            let (said, sent) = steps_beside_an_upload(capacity([50, 60]), [50, 60]);
            assert!(said >= 123 && sent.abs_diff(said) <= 3, "{fixed} {said} {sent}");
        }
    }

    #[test]
    fn an_old_frame_of_an_upload_keeps_no_dialogues_apart() {
        let mut s = scheduler(3);
        let [a, b] = [(); 2].map(|()| admit(&mut s));
        let upload = s.admit(ms(0), Overflow::PushBack).unwrap();
        for (slot, at) in [(a, 100), (b, 103)] {
            s.push(slot, 0, ms(at));
            step(s.decide(ms(at + 20)));
        }
        s.push(upload, 7, ms(130));
        s.push(a, 1, ms(180));
        assert_eq!(s.decide(ms(180)), Decision::Wait(ms(185)));
        s.push(b, 2, ms(183));
        assert_eq!(step(s.decide(ms(183))), [(a, 1), (b, 2), (upload, 7)]);
    }

    #[test]
    fn a_dialogue_keeps_its_newest_frames() {
        let mut s = scheduler(1);
        let a = admit(&mut s);
        for frame in 0..3 {
            assert_eq!(s.push(a, frame, ms(0)), Pushed::Accepted);
        }
        for frame in 3..6 {
            assert_eq!(s.push(a, frame, ms(0)), Pushed::DroppedOldest);
        }
        let Decision::Step(batch) = s.decide(ms(1)) else { panic!() };
        let only = &batch[0];
        assert_eq!((only.frame, only.waiting, only.dropped), (3, 2, 3));
    }

    #[test]
    fn an_upload_gets_its_frame_back() {
        let mut s = scheduler(1);
        let a = s.admit(ms(0), Overflow::PushBack).unwrap();
        for frame in 0..10 {
            assert_eq!(s.push(a, frame, ms(0)), Pushed::Accepted);
        }
        assert_eq!(s.push(a, 10, ms(0)), Pushed::Full(10));
        for frame in 0..10 {
            assert_eq!(step(s.decide(ms(1))), [(a, frame)]);
        }
        assert_eq!(s.push(a + 1, 0, ms(0)), Pushed::Gone);
    }

    #[test]
    fn a_full_house_refuses_and_the_line_is_first_in_first_out() {
        let mut s = scheduler(1);
        let a = admit(&mut s);
        let full = Refusal::Full { used: 1, capacity: 1 };
        assert_eq!(s.admit(ms(0), Overflow::DropOldest), Err(full));
        let [first, second] = [(); 2].map(|()| s.enqueue().unwrap());
        assert_eq!(s.enqueue(), Err(full));
        let waiting =
            |s: &mut Scheduler<u32>, ticket| s.admit_waiting(ticket, ms(1), Overflow::DropOldest);
        assert_eq!(waiting(&mut s, first), Ok(None));
        assert!(!s.has_room_for_line());
        assert!(s.remove(a) && !s.remove(a));
        assert!(s.has_room_for_line());
        assert_eq!(waiting(&mut s, second), Ok(None), "not its turn");
        assert!(s.admit(ms(1), Overflow::DropOldest).is_err(), "nobody overtakes the line");
        let b = waiting(&mut s, first).unwrap().unwrap();
        assert!(b > a);
        s.leave_line(second);
        assert_eq!(s.line_len(), 0);
        s.drain();
        assert_eq!(s.admit(ms(1), Overflow::DropOldest), Err(Refusal::Draining));
        assert_eq!(s.enqueue(), Err(Refusal::Draining));
        assert!(s.is_draining());
    }

    #[test]
    fn a_parked_slot_counts_until_its_grace_is_over() {
        let mut s = scheduler(1);
        let a = admit(&mut s);
        s.push(a, 1, ms(10));
        assert!(s.park(a, ms(20)).is_empty());
        assert_eq!((s.used(), s.parked()), (1, 1));
        assert_eq!(s.push(a, 2, ms(30)), Pushed::Gone);
        assert_eq!(s.decide(ms(30)), Decision::Idle);
        assert!(s.admit(ms(30), Overflow::DropOldest).is_err());
        assert!(s.unpark(a, ms(40)));
        assert_eq!(s.push(a, 3, ms(41)), Pushed::Accepted);
        assert_eq!(step(s.decide(ms(41))), [(a, 3)]);
        s.park(a, ms(50));
        assert_eq!(s.next_deadline(), Some(ms(30_050)));
        assert!(s.expire(ms(30_049)).is_empty());
        assert_eq!(s.expire(ms(30_050)), [a]);
        assert!(!s.unpark(a, ms(30_051)));
        assert_eq!(s.used(), 0);
    }

    #[test]
    fn the_longest_parked_go_first() {
        let mut s = scheduler(4);
        let [a, b, c] = [(); 3].map(|()| admit(&mut s));
        assert!(s.park(b, ms(1)).is_empty());
        assert!(s.park(a, ms(2)).is_empty());
        assert_eq!(s.park(c, ms(3)), [b]);
        assert_eq!(s.parked(), 2);
    }

    #[test]
    fn silence_makes_a_slot_idle() {
        let mut s = scheduler(2);
        let [a, b] = [(); 2].map(|()| admit(&mut s));
        s.touch(b, ms(60_000));
        s.push(a, 1, ms(60_000));
        assert_eq!(s.next_deadline(), Some(ms(120_000)));
        assert!(s.idle(ms(119_999)).is_empty());
        assert_eq!(s.idle(ms(120_000)), [a]);
        s.park(a, ms(120_000));
        assert_eq!(s.idle(ms(500_000)), [b]);
    }

    #[test]
    fn for_ever_is_a_time_like_others() {
        let (idle, grace, coalesce) = (Duration::MAX, Duration::MAX, Duration::MAX);
        let mut s = Scheduler::new(Rules { idle, grace, coalesce, ..RULES }, Capacity::fixed(2));
        let [a, b] = [(); 2].map(|()| admit(&mut s));
        s.push(a, 1, ms(1));
        s.push(b, 2, ms(1));
        assert_eq!(step(s.decide(ms(2))), [(a, 1), (b, 2)]);
        s.park(b, ms(3));
        assert!(s.idle(ms(u64::MAX)).is_empty() && s.expire(ms(u64::MAX)).is_empty());
        assert_eq!(s.next_deadline(), Some(Duration::MAX));
    }
}
