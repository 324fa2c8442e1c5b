//! `moshi-rs bench`: how long a step takes, stage by stage, and how much of that is memory.
//!
//! A number of a shared machine means little alone. So the rate at which the same threads read
//! memory is measured in the same run, before and after, and every stage is given as a share of it.

mod machine;
mod report;
mod statistics;
mod subject;

pub(crate) use machine::Machine;

use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use moshi_core::stages::{Stage, StageListener};
use moshi_kernels::counting_allocator::Counted;
use moshi_kernels::measure::ReadTest;

use crate::options::BenchArgs;
use crate::output::{CliError, Result, progress};
use report::Report;
use statistics::Summary;
use subject::Subject;

/// Steps before the first one that counts.
const WARM_UP: usize = 10;
/// More than the caches of any processor of today.
const READ_TEST_BYTES: usize = 1 << 30;
const READ_PASSES: usize = 3;

pub(crate) fn bench(args: &BenchArgs) -> Result<i32> {
    let subject = Subject::load(args)?;
    let threads = subject.threads;
    let before = read_rate(threads)?;
    let run = measure(args, subject)?;
    let after = read_rate(threads)?;
    Report { args, run: &run, threads, read_rates: [before, after] }.print()?;
    Ok(0)
}

/// What was measured.
struct Run {
    subject: Subject,
    /// Of every counted step, in milliseconds.
    steps: Vec<f64>,
    /// Of every stage of every counted step, in milliseconds, in the order of [`Stage::ALL`].
    stages: [Vec<f64>; 4],
    late_frames: usize,
    /// Per counted step; `None` where the program does not count.
    allocations: Option<f64>,
    resident_bytes: Option<u64>,
    huge_page_bytes: Option<u64>,
}

impl Run {
    fn summary(&self) -> Summary {
        Summary::of(&self.steps)
    }

    fn stage(&self, stage: Stage) -> Summary {
        Summary::of(&self.stages[stage as usize])
    }
}

fn measure(args: &BenchArgs, mut subject: Subject) -> Result<Run> {
    let frame = Duration::from_secs_f64(subject.frame_ms / 1e3);
    let counted = Counted::start();
    let mut clock = Clock::default();
    let mut steps = Vec::with_capacity(args.frames);
    let (mut late_frames, mut allocations) = (0, 0);
    let bar = if args.json {
        ProgressBar::hidden()
    } else {
        progress(Some((WARM_UP + args.frames) as u64), "steps")
    };
    let mut due = Instant::now();
    for step in 0..WARM_UP + args.frames {
        if args.paced {
            if step == WARM_UP {
                // What the first steps took longer is no lag of those that count.
                due = Instant::now();
            }
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        } else {
            due = Instant::now();
        }
        clock.reserve();
        let allocated = counted.as_ref().map_or(0, Counted::total);
        let start = Instant::now();
        clock.last = Some(start);
        subject.step(&mut clock)?;
        let end = Instant::now();
        due += frame;
        if step < WARM_UP {
            clock.forget();
            continue;
        }
        allocations += counted.as_ref().map_or(0, Counted::total) - allocated;
        steps.push((end - start).as_secs_f64() * 1e3);
        late_frames += usize::from(end > due);
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(Run {
        subject,
        late_frames,
        allocations: counted.map(|_| allocations as f64 / steps.len() as f64),
        steps,
        stages: clock.stages,
        resident_bytes: machine::resident_bytes(),
        huge_page_bytes: machine::huge_page_bytes(),
    })
}

/// Bytes per second.
pub(crate) fn read_rate(threads: usize) -> Result<f64> {
    let test = ReadTest::new(READ_TEST_BYTES).map_err(|error| {
        CliError::Usage(format!("no memory of 1 GiB to measure how fast it is read: {error}"))
    })?;
    Ok(test.bytes_per_second(threads, READ_PASSES))
}

/// Times of stages, each from the end of the last one.
#[derive(Default)]
struct Clock {
    last: Option<Instant>,
    stages: [Vec<f64>; 4],
}

impl Clock {
    /// What a list needs to grow must not count as allocations of the step.
    fn reserve(&mut self) {
        self.stages.iter_mut().for_each(|stage| stage.reserve(1));
    }

    fn forget(&mut self) {
        self.stages.iter_mut().for_each(Vec::clear);
    }
}

impl StageListener for Clock {
    fn ended(&mut self, stage: Stage) {
        let now = Instant::now();
        if let Some(last) = self.last.replace(now) {
            self.stages[stage as usize].push((now - last).as_secs_f64() * 1e3);
        }
    }
}
