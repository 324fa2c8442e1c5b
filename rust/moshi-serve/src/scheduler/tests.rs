//! Rules of admission and batching, with time as a parameter.

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
                        let waited = now.saturating_sub(ready.arrived);
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
        let capacity = |times: [u64; 2]| {
            if fixed {
                return Capacity::fixed(4);
            }
            let steps = [(1, ms(times[0])), (2, ms(times[1]))];
            Capacity::measured(RULES.frame, &steps, 4)
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
    let (coalesce, grace, idle) = (Duration::MAX, Duration::MAX, Duration::MAX);
    let mut s = Scheduler::new(Rules { coalesce, grace, idle, ..RULES }, Capacity::fixed(2));
    let [a, b] = [(); 2].map(|()| admit(&mut s));
    s.push(a, 1, ms(1));
    s.push(b, 2, ms(1));
    assert_eq!(step(s.decide(ms(2))), [(a, 1), (b, 2)]);
    s.park(b, ms(3));
    assert!(s.idle(ms(u64::MAX)).is_empty() && s.expire(ms(u64::MAX)).is_empty());
    assert_eq!(s.next_deadline(), Some(Duration::MAX));
}
