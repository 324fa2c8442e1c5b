//! Snapshots that nobody took: damaged, foreign, or made up with a valid checksum.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use moshi_core::exec::{Executor, Scalar};
use moshi_core::lm::WeightType;
use moshi_core::{Error, LoadOptions, Model, NoObserver, Session};
use sha2::{Digest, Sha256};

use crate::support::models::{CONTEXT, FRAME, TinyRepo, sampled};
use crate::support::{Dice, audio, is_exact};

executors!(damaged_snapshots_are_refused, made_up_states_never_panic);

/// Magic, version, fingerprint, length of the payload.
const HEADER: usize = 8 + 4 + 32 + 8;
const CHECKSUM: usize = 32;

/// A conversation with something in every field: past, incomplete frame, waiting results.
fn snapshot(model: &Arc<Model>) -> Vec<u8> {
    let mut session = sampled(model, 3);
    session.push(&audio(1, (2 * CONTEXT + 3) * FRAME + 3)).unwrap();
    while session.pull().is_some() {}
    session.push(&audio(2, 2 * FRAME)).unwrap();
    session.snapshot().unwrap()
}

fn refused(model: &Arc<Model>, blob: &[u8]) -> bool {
    matches!(Session::restore(model, blob), Err(Error::Snapshot { .. }))
}

fn reason(model: &Arc<Model>, blob: &[u8]) -> String {
    match Session::restore(model, blob) {
        Err(error @ Error::Snapshot { .. }) => error.to_string(),
        Err(other) => panic!("another error: {other}"),
        Ok(_) => panic!("accepted"),
    }
}

/// The blob with a checksum that fits its bytes.
fn resealed(mut blob: Vec<u8>) -> Vec<u8> {
    let body = blob.len() - CHECKSUM;
    let checksum = Sha256::digest(&blob[..body]);
    blob[body..].copy_from_slice(&checksum);
    blob
}

fn damaged_snapshots_are_refused<E: Executor>(exec: &E) {
    let repo = TinyRepo::new();
    let model = repo.load(exec);
    let blob = snapshot(&model);
    assert!(Session::restore(&model, &blob).is_ok());
    let step = if is_exact(exec) { 7 } else { 101 };
    for position in
        (0..blob.len()).step_by(step).chain(0..HEADER).chain(blob.len() - 40..blob.len())
    {
        let mut flipped = blob.clone();
        flipped[position] ^= 1 << (position % 8);
        assert!(refused(&model, &flipped), "bit of byte {position}");
    }
    for len in (0..HEADER + CHECKSUM + 2).chain((0..blob.len()).step_by(step * 3)) {
        assert!(refused(&model, &blob[..len]), "{len} bytes");
    }
    let longer = [blob.clone(), vec![0]].concat();
    assert!(refused(&model, &longer));
    assert!(refused(&model, &[]));

    let with = |at: usize, bytes: &[u8]| {
        let mut blob = blob.clone();
        blob[at..at + bytes.len()].copy_from_slice(bytes);
        resealed(blob)
    };
    assert!(reason(&model, &with(0, b"MOSHISNQ")).contains("magic"));
    assert!(reason(&model, &with(8, &2u32.to_le_bytes())).contains("version 2"));
    assert!(reason(&model, &with(12, &[7; 32])).contains("another model"));
    let len = (blob.len() - HEADER - CHECKSUM) as u64;
    for wrong in [0, len - 1, len + 1, u64::MAX] {
        assert!(reason(&model, &with(44, &wrong.to_le_bytes())).contains("declares"), "{wrong}");
    }
}

#[test]
fn snapshots_of_other_models_are_refused() {
    let repo = TinyRepo::new();
    let model = repo.load(&Scalar);
    let blob = snapshot(&model);
    let again =
        Model::from_repo(&Scalar, &repo.open(), &LoadOptions::default(), &NoObserver).unwrap();
    assert!(Session::restore(&again, &blob).is_ok(), "the same files, loaded again");

    let other = TinyRepo::seeded(2).load(&Scalar);
    assert!(reason(&other, &blob).contains("another model"));
    let bf16 = LoadOptions { dtype: Some(WeightType::Bf16), ..LoadOptions::default() };
    let half = Model::from_repo(&Scalar, &repo.open(), &bf16, &NoObserver).unwrap();
    assert!(reason(&half, &blob).contains("load options"));
    repo.set("context", serde_json::json!(CONTEXT + 1));
    assert!(reason(&repo.load(&Scalar), &blob).contains("another model"));
}

#[derive(Default)]
struct Tally {
    refused: usize,
    usable: usize,
    broken: usize,
    panicked: Vec<String>,
}

/// Restores a made-up snapshot and uses whatever comes out.
fn try_use(model: &Arc<Model>, blob: &[u8], what: &str, tally: &mut Tally) {
    let frame = [0.1; FRAME];
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut session = match Session::restore(model, blob) {
            Ok(session) => session,
            Err(Error::Snapshot { .. }) => return 'r',
            Err(other) => panic!("another error: {other}"),
        };
        while session.pull().is_some() {}
        session.push(&frame[1..]).unwrap_or(0);
        if session.push(&frame[..1]).and_then(|_| session.push(&frame)).is_ok() {
            session.snapshot().unwrap();
            return 'u';
        }
        // Some wrong tokens show only when they reach the codec; then the session says so until
        // it is reset.
        assert!(matches!(session.step(&frame), Err(Error::Session { .. })));
        assert!(matches!(session.snapshot(), Err(Error::Session { .. })));
        session.reset().unwrap();
        session.step(&frame).unwrap();
        'b'
    }));
    match outcome {
        Ok('r') => tally.refused += 1,
        Ok('u') => tally.usable += 1,
        Ok(_) => tally.broken += 1,
        Err(_) => tally.panicked.push(what.to_owned()),
    }
}

fn made_up_states_never_panic<E: Executor>(exec: &E) {
    let repo = TinyRepo::new();
    let model = repo.load(exec);
    let blob = snapshot(&model);
    let payload = HEADER..blob.len() - CHECKSUM;
    let numbers = [u64::MAX, 1 << 48, (1 << 48) + 1, 1 << 63, 1 << 32, 17, 16, -3i64 as u64, 2, 0];
    let nan = f32::NAN.to_bits();
    let floats = u64::from(nan) << 32 | u64::from(nan);
    let patterns: Vec<u64> =
        numbers.into_iter().chain([floats, f64::NAN.to_bits(), f64::MAX.to_bits()]).collect();
    let mut tally = Tally::default();
    let mut dice = Dice(5);
    let sampled = if is_exact(exec) { 400 } else { 40 };
    let offsets: Vec<usize> =
        (0..180).chain((0..sampled).map(|_| dice.below(payload.len() - 8))).collect();
    for (i, offset) in offsets.into_iter().enumerate() {
        let everything = is_exact(exec) || i % 6 == 0;
        for &pattern in patterns.iter().filter(|_| everything) {
            let mut forged = blob.clone();
            let at = payload.start + offset;
            forged[at..at + 8].copy_from_slice(&pattern.to_le_bytes());
            let what = format!("{pattern:#x} at {offset} of the payload");
            try_use(&model, &resealed(forged), &what, &mut tally);
        }
    }
    if is_exact(exec) {
        // The one token that is an input of the language model but no code of the codec.
        let beyond = 16u64.to_le_bytes();
        for at in payload.start..payload.end - 8 {
            let mut forged = blob.clone();
            forged[at..at + 8].copy_from_slice(&beyond);
            try_use(&model, &resealed(forged), &format!("16 at {at}"), &mut tally);
        }
    }
    for len in (0..payload.len()).step_by(if is_exact(exec) { 13 } else { 211 }) {
        let mut forged = [&blob[..HEADER + len], &[0; CHECKSUM][..]].concat();
        forged[44..HEADER].copy_from_slice(&(len as u64).to_le_bytes());
        let forged = resealed(forged);
        assert!(refused(&model, &forged), "payload cut to {len} bytes");
    }
    assert!(tally.panicked.is_empty(), "{:#?}", tally.panicked);
    assert!(tally.refused > 100 && tally.usable > 100, "both kinds occur");
    assert!(!is_exact(exec) || tally.broken > 0, "tokens beyond the codec's range occur");
}
