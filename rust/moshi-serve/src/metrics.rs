//! Counters and histograms of the daemon. All names are here; none has a label that tells callers
//! apart.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Media type of [`Metrics::text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Media type of [`Metrics::classic_text`].
pub const CLASSIC_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

type Labels = Vec<(&'static str, String)>;

/// Everything that is counted.
pub struct Metrics {
    registry: Registry,
    /// Conversations that began, by protocol.
    pub sessions: Family<Labels, Counter>,
    /// Conversations that ended, by reason. One that is kept for its token has ended as lost, and
    /// begins once more if its token comes.
    pub ended: Family<Labels, Counter>,
    /// Callers turned away, by reason.
    pub rejected: Family<Labels, Counter>,
    /// Slots by state: used, parked, and how many there are.
    pub slots: Family<Labels, Gauge>,
    /// Callers in the waiting line.
    pub waiting: Gauge,
    /// Seconds of a batched step.
    pub step_seconds: Histogram,
    /// Streams in a step.
    pub step_streams: Histogram,
    /// Steps that took longer than a frame.
    pub late_steps: Counter,
    /// Seconds from a frame's arrival to its result.
    pub frame_seconds: Histogram,
    /// Seconds that the slowest conversation's input is ahead of the model.
    pub lag: Gauge<f64, AtomicU64>,
    /// Input frames dropped because the model was behind.
    pub dropped_frames: Counter,
    /// Conversations closed because their client did not read.
    pub slow_readers: Counter,
    /// Damaged packets and messages.
    pub damaged: Counter,
    /// Payload bytes by direction.
    pub bytes: Family<Labels, Counter>,
}

/// A set with one label.
pub fn label(name: &'static str, value: &str) -> Labels {
    vec![(name, value.to_owned())]
}

impl Metrics {
    /// All zero. `version` and `executor` go into the constant metric `moshi_build_info`.
    pub fn new(version: &str, executor: &str) -> Self {
        let mut registry = Registry::with_prefix("moshi");
        let metrics = Self {
            registry: Registry::default(),
            sessions: Family::default(),
            ended: Family::default(),
            rejected: Family::default(),
            slots: Family::default(),
            waiting: Gauge::default(),
            step_seconds: Histogram::new([
                0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.1, 0.16, 0.32,
            ]),
            step_streams: Histogram::new([1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0, 64.0]),
            late_steps: Counter::default(),
            frame_seconds: Histogram::new([
                0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.12, 0.16, 0.24, 0.32,
            ]),
            lag: Gauge::default(),
            dropped_frames: Counter::default(),
            slow_readers: Counter::default(),
            damaged: Counter::default(),
            bytes: Family::default(),
        };
        let r = &mut registry;
        let build = Family::<Labels, Gauge>::default();
        build
            .get_or_create(&vec![
                ("version", version.to_owned()),
                ("executor", executor.to_owned()),
            ])
            .set(1);
        r.register("build_info", "Version and executor", build);
        r.register("sessions", "Conversations begun", metrics.sessions.clone());
        r.register("sessions_ended", "Conversations ended", metrics.ended.clone());
        r.register("sessions_rejected", "Callers turned away", metrics.rejected.clone());
        r.register("slots", "Slots by state", metrics.slots.clone());
        r.register("queue_depth", "Callers waiting for a slot", metrics.waiting.clone());
        let seconds = Unit::Seconds;
        let steps = metrics.step_seconds.clone();
        r.register_with_unit("step", "Time of a batched step", seconds.clone(), steps);
        r.register("step_streams", "Streams in a step", metrics.step_streams.clone());
        let late = metrics.late_steps.clone();
        r.register("step_deadline_miss", "Steps longer than a frame", late);
        let frames = metrics.frame_seconds.clone();
        r.register_with_unit(
            "frame_latency",
            "From a frame's arrival to its result",
            seconds,
            frames,
        );
        let lag = metrics.lag.clone();
        r.register_with_unit("lag", "Largest lead of the input over the model", Unit::Seconds, lag);
        let dropped = metrics.dropped_frames.clone();
        r.register("input_dropped_frames", "Input frames dropped for lag", dropped);
        r.register(
            "slow_readers",
            "Conversations closed for not reading",
            metrics.slow_readers.clone(),
        );
        r.register("damaged_input", "Damaged packets and messages", metrics.damaged.clone());
        r.register("payload_bytes", "Payload by direction", metrics.bytes.clone());
        Self { registry, ..metrics }
    }

    /// The exposition in the older text format, for whoever does not ask for OpenMetrics: counters
    /// are called by their samples there, and units and the end are no comments.
    pub fn classic_text(&self) -> String {
        let text = self.text();
        let counters: HashSet<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
            .collect();
        let mut classic = String::with_capacity(text.len());
        for line in text.lines() {
            let mut words = line.splitn(4, ' ');
            match (words.next(), words.next(), words.next(), words.next()) {
                (Some("#"), Some("UNIT" | "EOF"), ..) => {}
                (Some("#"), Some(kind), Some(name), Some(rest)) if counters.contains(name) => {
                    let _ = writeln!(classic, "# {kind} {name}_total {rest}");
                }
                _ => {
                    classic.push_str(line);
                    classic.push('\n');
                }
            }
        }
        classic
    }

    /// The exposition, in OpenMetrics text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if encode(&mut text, &self.registry).is_err() {
            // Formatting into a string does not fail.
            let _ = writeln!(text, "# EOF");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_those_of_the_manual() {
        let metrics = Metrics::new("1.0", "scalar");
        metrics.sessions.get_or_create(&label("protocol", "chat")).inc();
        metrics.step_seconds.observe(0.01);
        let text = metrics.text();
        for line in [
            "moshi_build_info{version=\"1.0\",executor=\"scalar\"} 1",
            "moshi_sessions_total{protocol=\"chat\"} 1",
            "moshi_step_seconds_bucket{le=\"0.01\"} 1",
            "moshi_input_dropped_frames_total 0",
            "moshi_lag_seconds 0.0",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        let classic = metrics.classic_text();
        for line in [
            "# TYPE moshi_sessions_total counter",
            "moshi_sessions_total{protocol=\"chat\"} 1",
            "# TYPE moshi_lag_seconds gauge",
            "moshi_lag_seconds 0.0",
        ] {
            assert!(classic.lines().any(|l| l == line), "{line} is not in\n{classic}");
        }
        assert!(!classic.contains("# UNIT") && !classic.contains("# EOF"), "{classic}");
    }
}
