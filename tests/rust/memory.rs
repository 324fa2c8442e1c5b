//! Long conversations stay flat: nothing that a frame allocates outlives it.

use moshi_core::exec::{Executor, Scalar};
use moshi_core::{Session, step_batch};

use crate::support::allocator::live_bytes;
use crate::support::models::{CONTEXT, FRAME, TinyRepo, greedy, sampled};
use crate::support::{Dice, audio};

const STEPS: usize = 20_000;
/// Small vectors that keep their capacity, such as the bytes of an incomplete character.
const SLACK_BYTES: isize = 512;

executors!(snapshots_stop_growing);

/// Memory counted on this thread; the scalar executor uses no other.
#[test]
fn twenty_thousand_steps_leave_nothing_behind() {
    let before = live_bytes();
    let repo = TinyRepo::new();
    let model = repo.load(&Scalar);
    assert!(live_bytes() > before + 10_000, "the count sees the model");
    let mut session = sampled(&model, 1);
    let pcm = audio(1, 97 * FRAME);
    let mut frames = pcm.chunks_exact(FRAME).cycle();
    let mut step = |session: &mut Session| session.step(frames.next().unwrap()).unwrap();
    for _ in 0..3 * CONTEXT {
        step(&mut session);
    }
    let warm = live_bytes();
    let mut spoken = 0;
    for _ in 0..STEPS {
        spoken += usize::from(!step(&mut session).text.is_empty());
    }
    let grown = live_bytes() - warm;
    assert!(grown.abs() <= SLACK_BYTES, "{grown} bytes more after {STEPS} steps");
    assert!(spoken > STEPS / 100, "the session talks");
    assert_eq!(session.steps(), (STEPS + 3 * CONTEXT) as u64);
    drop((session, model, repo, pcm));
    assert!(live_bytes() - before <= SLACK_BYTES, "everything is freed");
}

#[test]
fn batches_pushes_and_resets_leave_nothing_behind() {
    let repo = TinyRepo::new();
    let model = repo.load(&Scalar);
    let mut sessions = [sampled(&model, 1), greedy(&model)];
    let frame = audio(2, FRAME);
    let mut dice = Dice(3);
    let mut round = |sessions: &mut [Session; 2]| {
        let [one, two] = sessions;
        step_batch(&mut [&mut *one, &mut *two], &[&frame, &frame]).unwrap();
        one.push(&audio(4, FRAME + 1)).unwrap();
        one.push(&audio(5, FRAME - 1)).unwrap();
        while one.pull().is_some() {}
        if dice.below(50) == 0 {
            two.reset().unwrap();
            *one = Session::restore(one.model(), &one.snapshot().unwrap()).unwrap();
        }
    };
    for _ in 0..200 {
        round(&mut sessions);
    }
    let warm = live_bytes();
    for _ in 0..2000 {
        round(&mut sessions);
    }
    let grown = live_bytes() - warm;
    assert!(grown.abs() <= SLACK_BYTES, "{grown} bytes more");
}

fn snapshots_stop_growing<E: Executor>(exec: &E) {
    let repo = TinyRepo::new();
    let model = repo.load(exec);
    let mut session = greedy(&model);
    let mut sizes = Vec::new();
    for frame in audio(6, 10 * CONTEXT * FRAME).chunks_exact(FRAME) {
        sizes.push(session.snapshot().unwrap().len());
        session.step(frame).unwrap();
    }
    assert!(sizes[0] < sizes[CONTEXT], "the past is stored");
    let full = &sizes[CONTEXT + 1..];
    assert!(full.len() > 40 && full.iter().all(|size| *size == full[0]), "{full:?}");
}
