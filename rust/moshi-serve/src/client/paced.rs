//! A conversation from a recording, at the pace of speech.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep, sleep_until};

use super::{ChatClient, ClientEvent, Latency};
use crate::error::ServeError;

/// Time for the first message, and for the last frames.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause between looks at whether to stop.
const LOOK_AROUND: Duration = Duration::from_millis(50);
/// Time for the server's half of the goodbye, and for what it still had to say before it.
const GOODBYE: Duration = Duration::from_secs(5);
/// Code of a connection that ended without one, by the protocol.
const BROKEN: u16 = 1006;

/// What is sent in a frame's time.
#[derive(Debug, Clone)]
pub enum Outgoing {
    /// Samples.
    Samples(Vec<f32>),
    /// Samples that were packed before, as the server's address says.
    Packed(Arc<[u8]>),
}

impl From<Vec<f32>> for Outgoing {
    fn from(samples: Vec<f32>) -> Self {
        Self::Samples(samples)
    }
}

/// How long a frame is.
#[derive(Debug, Clone, Copy)]
pub struct FrameLength {
    /// In samples.
    pub samples: usize,
    /// In time.
    pub time: Duration,
}

/// What a conversation gave and how it went.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The model's audio; empty where it is only counted.
    pub samples: Vec<f32>,
    /// Its length.
    pub heard_samples: usize,
    /// What it said.
    pub text: String,
    /// From a frame that is packed and about to be written to the last byte of its result.
    pub latency: Latency,
    /// What steps of the server took, as its metadata told.
    pub steps: Latency,
    /// Frames sent.
    pub sent_frames: usize,
    /// Largest lag that the server told, in milliseconds.
    pub lag_ms: u64,
    /// Frames that the server dropped.
    pub dropped_frames: u64,
    /// Frames that were neither answered nor said to be dropped.
    pub unanswered_frames: usize,
    /// The newest metadata.
    pub metadata: Value,
    /// What the server told its users.
    pub notices: Vec<String>,
    /// How the server ended it before all was answered, if it did: code and reason. The code is
    /// 1006 for a connection that broke.
    pub closed: Option<(u16, String)>,
}

/// Sends frames, one each frame time, and takes what comes until every frame has
/// its result, or the server ends, or `stop` says so. Then it says goodbye, and takes what the
/// server says until it says goodbye, too: the text of a frame follows its audio.
///
/// # Errors
/// [`ServeError::Connect`] when the server never listens.
pub async fn converse(
    client: &mut ChatClient,
    frames: impl Iterator<Item = impl Into<Outgoing>>,
    frame: FrameLength,
    mut heard: impl FnMut(&ClientEvent),
    stop: impl Fn() -> bool,
) -> Result<Report, ServeError> {
    let mut report = Report::default();
    let refused = |reason: String| ServeError::Connect { url: "server".into(), reason };
    loop {
        match tokio::time::timeout(PATIENCE, client.next()).await {
            Err(_) => return Err(refused("it does not listen; it may be full".into())),
            Ok(ClientEvent::Ready) => break,
            Ok(ClientEvent::Closed(said)) => {
                let (code, reason) = said.unwrap_or_else(broken);
                return Err(refused(format!("refused with code {code}: {reason}")));
            }
            Ok(event) => take(&mut report, event, &mut heard),
        }
    }
    let mut frames = frames.peekable();
    let mut sent_at = VecDeque::new();
    let mut answered = 0;
    let start = Instant::now();
    let mut next = start;
    loop {
        if stop() {
            break;
        }
        if frames.peek().is_none() {
            let missing = (report.sent_frames as u64).saturating_sub(report.dropped_frames);
            if answered as u64 >= missing || Instant::now() >= next + PATIENCE {
                break;
            }
        }
        tokio::select! {
            () = sleep_until(next), if frames.peek().is_some() => {
                let Some(outgoing) = frames.next() else { continue };
                // Where nothing can be sent any more, the next event says why.
                match outgoing.into() {
                    Outgoing::Samples(samples) => client.send(&samples).await?,
                    Outgoing::Packed(bytes) => client.send_packed(&bytes).await,
                };
                sent_at.push_back(client.sent_at());
                report.sent_frames += 1;
                next += frame.time;
            }
            event = client.next() => {
                if let ClientEvent::Closed(said) = event {
                    report.closed = Some(said.unwrap_or_else(broken));
                    break;
                }
                let dropped = report.dropped_frames;
                take(&mut report, event, &mut heard);
                // The oldest go first; they have no answer.
                let more = report.dropped_frames.saturating_sub(dropped) as usize;
                sent_at.drain(..more.min(sent_at.len()));
                // Output frame n answers input frame n of those that were not dropped.
                while answered < report.heard_samples / frame.samples.max(1) {
                    answered += 1;
                    if let Some(at) = sent_at.pop_front() {
                        report.latency.add(client.received_at().duration_since(at));
                    }
                }
            }
            () = sleep(LOOK_AROUND) => {}
        }
    }
    report.unanswered_frames = sent_at.len();
    if report.closed.is_none() && client.hang_up().await {
        let last_words = async {
            loop {
                match client.next().await {
                    ClientEvent::Closed(_) => break,
                    event => take(&mut report, event, &mut heard),
                }
            }
        };
        // Whoever says nothing any more is left.
        let _ = tokio::time::timeout(GOODBYE, last_words).await;
    }
    Ok(report)
}

fn broken() -> (u16, String) {
    (BROKEN, "the connection broke".to_owned())
}

fn take(report: &mut Report, event: ClientEvent, heard: &mut impl FnMut(&ClientEvent)) {
    heard(&event);
    match event {
        ClientEvent::Audio(samples) => {
            report.heard_samples += samples.len();
            report.samples.extend(samples);
        }
        ClientEvent::Counted(samples) => report.heard_samples += samples,
        ClientEvent::Text(text) => report.text.push_str(&text),
        ClientEvent::Metadata(metadata) => {
            report.lag_ms = report.lag_ms.max(metadata["lag_ms"].as_u64().unwrap_or(0));
            // 0 before the first step.
            let step_ms = metadata["step_ms"].as_f64();
            if let Some(ms) = step_ms.filter(|ms| (f64::MIN_POSITIVE..1e6).contains(ms)) {
                report.steps.add(Duration::from_secs_f64(ms / 1e3));
            }
            report.dropped_frames = metadata["dropped_frames"].as_u64().unwrap_or(0);
            report.metadata = metadata;
        }
        ClientEvent::Notice(text) => report.notices.push(text),
        ClientEvent::Ready | ClientEvent::Closed(_) => {}
    }
}
