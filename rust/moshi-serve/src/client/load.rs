//! Many conversations at real-time pace, and what they measure together.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::connection::Packer;
use super::{ChatClient, ClientOptions, FrameLength, Latency, Outgoing, converse};
use crate::error::ServeError;

/// What to do.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// The server.
    pub url: String,
    /// How to connect.
    pub client: ClientOptions,
    /// Conversations at the same time.
    pub sessions: usize,
    /// How long each lasts.
    pub duration: Duration,
    /// What they say, again and again, at the rate of the server's model.
    pub samples: Vec<f32>,
    /// How long a frame is.
    pub frame: FrameLength,
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct LoadReport {
    /// Conversations that ran to their end.
    pub completed: usize,
    /// Conversations that the server accepted and ended before their time.
    pub cut: usize,
    /// Conversations that the server refused, each with the time that it took.
    pub refused: Vec<Duration>,
    /// Reasons of refusals and ends before time.
    pub reasons: Vec<String>,
    /// Times of all frames.
    pub latency: Latency,
    /// What steps of the server took, as its metadata told.
    pub steps: Latency,
    /// Frames whose result came more than a frame's time after their input was sent, or never.
    pub late_frames: usize,
    /// Frames sent.
    pub sent_frames: usize,
    /// Frames that the server dropped.
    pub dropped_frames: u64,
    /// Largest lag that the server told, in milliseconds.
    pub lag_ms: u64,
}

/// Runs the conversations, their starts spread over a frame's time. Setting `stop` ends them. What
/// they hear is counted, and what they say in tests of up to ten minutes is packed once for all,
/// before the first begins: many callers take little time of the processors that the server may be
/// using, too.
///
/// # Errors
/// [`ServeError`] when not even one can connect.
pub async fn load_test(
    options: LoadOptions,
    stop: Arc<AtomicBool>,
) -> Result<LoadReport, ServeError> {
    let frames = packed_frames(&options)?;
    let options = Arc::new(options);
    let mut tasks = Vec::new();
    for number in 0..options.sessions {
        let (options, frames, stop) =
            (Arc::clone(&options), Arc::clone(&frames), Arc::clone(&stop));
        tasks.push(tokio::spawn(one(options, frames, number, stop)));
    }
    let mut report = LoadReport::default();
    let mut first_error = None;
    for task in tasks {
        let outcome =
            task.await.map_err(|error| ServeError::Config(format!("a session failed: {error}")))?;
        match outcome {
            Ok(session) => {
                match session.closed {
                    None => report.completed += 1,
                    Some((code, reason)) => {
                        report.cut += 1;
                        report.reasons.push(format!("{code}: {reason}"));
                    }
                }
                let late = session.latency.over(options.frame.time);
                report.late_frames += late + session.unanswered_frames;
                report.latency.extend(&session.latency);
                report.steps.extend(&session.steps);
                report.sent_frames += session.sent_frames;
                report.dropped_frames += session.dropped_frames;
                report.lag_ms = report.lag_ms.max(session.lag_ms);
            }
            Err((took, error)) => {
                report.refused.push(took);
                report.reasons.push(error.to_string());
                first_error.get_or_insert(error);
            }
        }
    }
    match first_error {
        Some(error) if report.refused.len() == options.sessions => Err(error),
        _ => Ok(report),
    }
}

/// Longest test whose audio is kept packed: some megabytes.
const MOST_PACKED: Duration = Duration::from_secs(600);

impl LoadOptions {
    fn frames(&self) -> usize {
        (self.duration.as_secs_f64() / self.frame.time.as_secs_f64()).ceil() as usize
    }

    /// What is said in a frame.
    fn said(&self, index: usize) -> Vec<f32> {
        let len = self.samples.len().max(1);
        let sample = |at: usize| self.samples.get(at % len).copied().unwrap_or(0.0);
        (0..self.frame.samples).map(|i| sample(index * self.frame.samples + i)).collect()
    }
}

/// What every conversation sends, frame by frame; nothing where each packs it itself.
fn packed_frames(options: &LoadOptions) -> Result<Arc<[Arc<[u8]>]>, ServeError> {
    let mut packer = Packer::new(&options.url, &options.client)?;
    let count = if options.duration > MOST_PACKED { 0 } else { options.frames() };
    (0..count).map(|index| packer.pack(&options.said(index)).map(Arc::from)).collect()
}

async fn one(
    options: Arc<LoadOptions>,
    frames: Arc<[Arc<[u8]>]>,
    number: usize,
    stop: Arc<AtomicBool>,
) -> Result<super::Report, (Duration, ServeError)> {
    let delay = options.frame.time * number as u32 / options.sessions.max(1) as u32;
    tokio::time::sleep(delay).await;
    let start = Instant::now();
    let failed = |error| (start.elapsed(), error);
    let mut parameters = options.client.parameters.clone();
    parameters.push(("stats".into(), "1".into()));
    let client = ClientOptions { parameters, counts_only: true, ..options.client.clone() };
    let mut client = ChatClient::connect(&options.url, &client).await.map_err(failed)?;
    let frames = (0..options.frames()).map(|index| match frames.get(index) {
        Some(packed) => Outgoing::Packed(Arc::clone(packed)),
        None => Outgoing::Samples(options.said(index)),
    });
    let stopped = || stop.load(Ordering::Relaxed);
    let report =
        converse(&mut client, frames, options.frame, |_| {}, stopped).await.map_err(failed)?;
    client.close().await;
    Ok(report)
}
