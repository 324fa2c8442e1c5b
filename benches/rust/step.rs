//! Time of a whole step on the small reference checkpoint: the executors and batch sizes against
//! each other, interleaved in one run, as ratios. Absolute times say little on shared machines.
#![allow(clippy::print_stdout, reason = "a benchmark reports to the terminal")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use moshi_core::{CpuExecutor, LoadOptions, Model, Session, SessionOptions, step_batch};

const ROUNDS: usize = 15;
const FRAMES_PER_ROUND: usize = 10;

struct Case {
    label: &'static str,
    model: Arc<Model>,
    sessions: Vec<Session>,
    times: Vec<Duration>,
}

fn main() -> anyhow::Result<()> {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/dialogue_repo"));
    let mut cases = Vec::new();
    for (label, executor, count) in [
        ("scalar, 1 session", CpuExecutor::Scalar, 1),
        ("scalar, 4 sessions", CpuExecutor::Scalar, 4),
        ("candle, 1 session", CpuExecutor::Candle, 1),
        ("candle, 4 sessions", CpuExecutor::Candle, 4),
    ] {
        let options = LoadOptions { cpu_executor: executor, ..LoadOptions::default() };
        let model = Model::load(folder, &options)?;
        let sessions = (0..count)
            .map(|seed| {
                let options = SessionOptions { seed: Some(seed), ..SessionOptions::default() };
                Session::new(&model, &options)
            })
            .collect::<moshi_core::Result<_>>()?;
        cases.push(Case { label, model, sessions, times: Vec::new() });
    }
    for round in 0..=ROUNDS {
        for case in &mut cases {
            let frame = vec![0.01; case.model.info().frame_samples];
            for _ in 0..FRAMES_PER_ROUND {
                let mut sessions: Vec<&mut Session> = case.sessions.iter_mut().collect();
                let frames = vec![frame.as_slice(); sessions.len()];
                let start = Instant::now();
                step_batch(&mut sessions, &frames)?;
                // The first round warms up.
                if round > 0 {
                    case.times.push(start.elapsed());
                }
            }
        }
    }
    let median = |case: &mut Case| {
        case.times.sort_unstable();
        case.times[case.times.len() / 2].as_secs_f64() * 1e3 / case.sessions.len() as f64
    };
    let base = median(&mut cases[0]);
    println!("median milliseconds per frame and session, and ratio to the first line");
    for case in &mut cases {
        let ms = median(case);
        println!("{:<20} {ms:8.3} ms {:6.2}", case.label, ms / base);
    }
    Ok(())
}
