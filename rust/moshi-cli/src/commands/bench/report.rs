//! The result of a measurement, for people and as JSON.

use moshi_core::stages::Stage;
use serde_json::{Value, json};

use super::Run;
use super::statistics::{Summary, agree};
use crate::options::BenchArgs;
use crate::output::{Result, line};

/// Everything about a run.
pub(super) struct Report<'a> {
    pub(super) args: &'a BenchArgs,
    pub(super) run: &'a Run,
    /// Threads of a step, and of the read test.
    pub(super) threads: usize,
    /// Bytes per second before and after.
    pub(super) read_rates: [f64; 2],
}

impl Report<'_> {
    pub(super) fn print(&self) -> Result<()> {
        if self.args.json {
            return line(self.json());
        }
        let (run, subject) = (self.run, &self.run.subject);
        let weights = if subject.random { ", random weights" } else { "" };
        line(format_args!(
            "{}{weights}: {}, keys and values {}, codec {}, {} on {}, loaded in {:.1} s",
            subject.name,
            subject.dtype,
            subject.kv_dtype,
            self.args.codec.name(),
            plural(self.args.sessions, "session"),
            subject.executor,
            subject.load_seconds
        ))?;
        let all = run.summary();
        line(format_args!(
            "{} steps of {:.0} ms of audio: p50 {:.2} ms, p95 {:.2}, p99 {:.2}, max {:.2}; {}",
            run.steps.len(),
            subject.frame_ms,
            all.p50,
            all.p95,
            all.p99,
            all.max,
            plural(run.late_frames, "late frame")
        ))?;
        line("stage       p50 ms   p95 ms   share   MB read   of memory's rate")?;
        for stage in Stage::ALL {
            let times = run.stage(stage);
            let bytes = self.bytes(stage);
            if bytes == 0 {
                continue;
            }
            line(format_args!(
                "{:<9} {:>8.2} {:>8.2} {:>6.1}% {:>9.1} {:>10.1}%",
                stage.name(),
                times.p50,
                times.p95,
                100.0 * times.mean / all.mean,
                bytes as f64 / 1e6,
                100.0 * self.memory_share(stage)
            ))?;
        }
        let [before, after] = self.read_rates.map(|rate| rate / 1e9);
        let verdict = if agree(self.read_rates) { "" } else { ": too far apart, measure again" };
        line(format_args!(
            "memory is read at {before:.1} GB/s before and {after:.1} GB/s after, with {}{verdict}",
            plural(self.threads, "thread")
        ))?;
        let megabytes = |bytes: Option<u64>| match bytes {
            Some(bytes) => format!("{:.0} MB", bytes as f64 / 1e6),
            None => "unknown".into(),
        };
        line(format_args!(
            "memory: weights {}, resident {}, on large pages {}; allocations per step: {}",
            megabytes(Some(subject.weight_bytes)),
            megabytes(run.resident_bytes),
            megabytes(run.huge_page_bytes),
            run.allocations.map_or("unknown".into(), |count| format!("{count:.1}"))
        ))?;
        line(format_args!("output {}", subject.output_hash()))
    }

    fn json(&self) -> Value {
        let (run, subject) = (self.run, &self.run.subject);
        let all = run.summary();
        let stages: Vec<Value> = Stage::ALL
            .into_iter()
            .filter(|&stage| self.bytes(stage) > 0)
            .map(|stage| {
                let traffic = subject.traffic[stage as usize];
                json!({
                    "name": stage.name(),
                    "ms": times(&run.stage(stage)),
                    "bytes": self.bytes(stage),
                    "weight_bytes": traffic.weight_bytes,
                    "multiplications": traffic.multiplications * self.args.sessions as u64,
                    "share_of_read_rate": self.memory_share(stage),
                })
            })
            .collect();
        json!({
            "model": subject.name,
            "random_weights": subject.random,
            "dtype": subject.dtype,
            "kv_dtype": subject.kv_dtype,
            "codec": self.args.codec.name(),
            "executor": subject.executor,
            "threads": self.threads,
            "sessions": self.args.sessions,
            "steps": run.steps.len(),
            "warm_up_steps": super::WARM_UP,
            "paced": self.args.paced,
            "frame_ms": subject.frame_ms,
            "ms": times(&all),
            "real_time_factor": all.mean / subject.frame_ms,
            "late_frames": run.late_frames,
            "stages": stages,
            "read_bytes_per_second": {
                "before": self.read_rates[0],
                "after": self.read_rates[1],
                "agree": agree(self.read_rates),
            },
            "allocations_per_step": run.allocations,
            "weight_bytes": subject.weight_bytes,
            "resident_bytes": run.resident_bytes,
            "huge_page_bytes": run.huge_page_bytes,
            "load_seconds": subject.load_seconds,
            "output_hash": subject.output_hash(),
        })
    }

    /// Bytes that a stage reads in a step of all sessions.
    fn bytes(&self, stage: Stage) -> u64 {
        self.run.subject.traffic[stage as usize].bytes(self.args.sessions as u64)
    }

    /// The rate at which a stage reads, as a share of what memory allows.
    fn memory_share(&self, stage: Stage) -> f64 {
        let seconds = self.run.stage(stage).p50 / 1e3;
        let rate = f64::midpoint(self.read_rates[0], self.read_rates[1]);
        if seconds > 0.0 { self.bytes(stage) as f64 / seconds / rate } else { 0.0 }
    }
}

fn times(summary: &Summary) -> Value {
    let Summary { mean, min, p50, p95, p99, max } = *summary;
    json!({ "mean": mean, "min": min, "p50": p50, "p95": p95, "p99": p99, "max": max })
}

fn plural(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}
