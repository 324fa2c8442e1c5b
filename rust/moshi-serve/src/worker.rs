//! The one thread that owns the engine. It steps whatever is ready as soon as it is free, and lets
//! conversations join and leave between steps.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use moshi_core::Error;
use moshi_core::error::panic_text;
use moshi_core::stages::Noise;
use moshi_wire::WireError;
use moshi_wire::opus::{OpusReader, OpusWriter};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::backend::{Backend, Card, StreamOptions};
use crate::capacity::{Beside, Capacity};
use crate::hub::{Command, Hub, HubOptions, OutputFrame, Shared, next_commands};
use crate::scheduler::{Decision, Ready, Rules, Scheduler, SlotId};

/// Steps of one size that are timed at the start, after one that warms up. Odd: the median counts.
const TIMED_STEPS: usize = 9;

struct Live<S> {
    stream: S,
    events: mpsc::Sender<OutputFrame>,
    steps: u64,
}

/// The running worker.
pub struct Worker {
    thread: JoinHandle<()>,
    hub: Hub,
}

impl Worker {
    /// Measures the engine, unless `sessions` fixes the number of conversations, and starts the
    /// thread. `rules.max_parked` is what memory allows; `most` bounds the measured number.
    ///
    /// # Errors
    /// What the engine says to a first conversation, or the operating system to a thread.
    pub fn start<B: Backend>(
        backend: Arc<B>,
        rules: Rules,
        sessions: Option<usize>,
        most: usize,
        options: HubOptions,
    ) -> moshi_core::Result<Self> {
        let capacity = match sessions {
            Some(sessions) => Capacity::fixed(sessions),
            None => measure(&*backend, most)?,
        };
        if !capacity.is_real_time() {
            log::warn!(
                "a step of one session takes {:.0} ms of the {:.0} ms that it may: \
                 this machine is too slow for this model, audio will be dropped",
                capacity.step_time(1).as_secs_f64() * 1e3,
                rules.frame.as_secs_f64() * 1e3
            );
        }
        let scheduler = Scheduler::new(rules, capacity);
        let hub = Hub::new(backend.card().clone(), scheduler, options);
        let shared = Arc::clone(&hub.shared);
        shared.beat();
        let run = move || {
            let outcome = catch_unwind(AssertUnwindSafe(|| run(&*backend, &shared)));
            let reason = match outcome {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error.to_string(),
                Err(panic) => format!("internal error: {}", panic_text(&*panic)),
            };
            log::error!("the engine failed: {reason}");
            shared.fail(reason);
        };
        let thread = std::thread::Builder::new().name("moshi-worker".into()).spawn(run).map_err(
            |error| Error::Device {
                device: "worker".into(),
                reason: format!("no thread: {error}"),
            },
        )?;
        Ok(Self { thread, hub })
    }

    /// Where connections meet it.
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Ends it after its current step.
    pub fn stop(self) {
        self.hub.stop();
        // A panic was reported when it happened.
        let _ = self.thread.join();
    }
}

/// Times steps of one, two, four and more streams with full contexts, until one takes half of a
/// frame's time or there is no memory for more.
fn measure<B: Backend>(backend: &B, mut most: usize) -> moshi_core::Result<Capacity> {
    let card = backend.card();
    let silence = vec![0.0; card.frame_samples];
    let options = StreamOptions { seed: Some(0), sampling: None };
    let mut streams = Vec::new();
    let mut steps = Vec::new();
    loop {
        let wanted = (streams.len() * 2).clamp(1, most.max(1));
        while streams.len() < wanted.min(most.max(1)) {
            let filled = backend.open(&options).and_then(|mut stream| {
                backend.fill(&mut stream)?;
                Ok(stream)
            });
            match filled {
                Ok(stream) => streams.push(stream),
                Err(error) if streams.is_empty() => return Err(error),
                Err(error) => {
                    log::warn!("no room for more than {} sessions: {error}", streams.len());
                    most = streams.len();
                }
            }
        }
        if steps.last().is_some_and(|&(timed, _)| timed == streams.len()) {
            break;
        }
        let frames = vec![&silence[..]; streams.len()];
        let mut times = Vec::new();
        for _ in 0..=TIMED_STEPS {
            let mut streams: Vec<&mut B::Stream> = streams.iter_mut().collect();
            let start = Instant::now();
            backend.step(&mut streams, &frames)?;
            times.push(start.elapsed());
        }
        let timed = &mut times[1..];
        timed.sort_unstable();
        let usual = timed[TIMED_STEPS / 2];
        steps.push((streams.len(), usual));
        if usual * 2 >= card.frame_time() || streams.len() >= most {
            break;
        }
    }
    let beside = Beside {
        frame: connection_time(card)?,
        step_threads: card.threads,
        processors: std::thread::available_parallelism().map_or(1, usize::from),
    };
    let capacity = Capacity::measured(card.frame_time(), &steps, most).with(beside);
    for (streams, took) in &steps {
        log::debug!("a step of {streams} takes {:.1} ms", took.as_secs_f64() * 1e3);
    }
    log::debug!("a connection takes {:.1} ms a frame", beside.frame.as_secs_f64() * 1e3);
    log::info!("{} sessions fit in real time", capacity.sessions());
    Ok(capacity)
}

/// What unpacking a frame of Opus and packing the answer takes: the median of some tries.
fn connection_time(card: &Card) -> moshi_core::Result<Duration> {
    let failed =
        |error: WireError| Error::Device { device: "opus".into(), reason: error.to_string() };
    let mut writer = OpusWriter::new(card.sample_rate_hz).map_err(failed)?;
    let mut reader = OpusReader::new(card.sample_rate_hz).map_err(failed)?;
    let noise = Noise::new(1).take(card.frame_samples);
    let mut samples = Vec::new();
    let mut times = Vec::new();
    for _ in 0..=TIMED_STEPS {
        samples.clear();
        let start = Instant::now();
        let pages = writer.push(&noise).map_err(failed)?;
        reader.push(&pages, &mut samples);
        times.push(start.elapsed());
    }
    let timed = &mut times[1..];
    timed.sort_unstable();
    Ok(timed[TIMED_STEPS / 2])
}

/// The loop. Ends with [`Command::Stop`], or an error of the engine.
fn run<B: Backend>(backend: &B, shared: &Shared) -> moshi_core::Result<()> {
    let mut live: BTreeMap<SlotId, Live<B::Stream>> = BTreeMap::new();
    loop {
        let mut state = shared.lock();
        let (commands, batch) = loop {
            shared.beat();
            let now = shared.now();
            shared.expire(&mut state, now);
            shared.rest(&mut state, now);
            let commands = next_commands(&mut state.commands);
            let until = match state.scheduler.decide(now) {
                Decision::Step(batch) => break (commands, batch),
                _ if !commands.is_empty() => break (commands, Vec::new()),
                Decision::Wait(until) => Some(until),
                Decision::Idle => state.scheduler.next_deadline(),
            };
            state = shared.wait(state, until.map(|until| until.saturating_sub(now)));
        };
        drop(state);
        if commands.iter().any(|command| matches!(command, Command::Stop)) {
            return Ok(());
        }
        // Conversations that run come first. A new one has no frames before it is open.
        if !batch.is_empty() {
            step(backend, shared, &mut live, batch)?;
        }
        for command in commands {
            obey(backend, &mut live, command);
        }
    }
}

fn obey<B: Backend>(backend: &B, live: &mut BTreeMap<SlotId, Live<B::Stream>>, command: Command) {
    // A reply that nobody waits for is followed by `Forget`.
    match command {
        Command::Open { slot, stream, blob, events, reply } => {
            let opened = match blob {
                Some(blob) => backend.restore(&blob),
                None => backend.open(&stream),
            };
            let _ = reply.send(opened.map(|stream| {
                let settings = backend.settings(&stream);
                live.insert(slot, Live { stream, events, steps: settings.steps });
                settings
            }));
        }
        Command::Attach { slot, events, reply } => {
            // Without a reply, the caller learns that the conversation is gone.
            if let Some(live) = live.get_mut(&slot) {
                live.events = events;
                let _ = reply.send(Ok(backend.settings(&live.stream)));
            }
        }
        Command::Forget(slot) => {
            live.remove(&slot);
        }
        Command::Snapshot(reply) => {
            let mut blobs = Vec::new();
            for (&slot, live) in live.iter().filter(|(_, live)| live.steps > 0) {
                match backend.snapshot(&live.stream) {
                    Ok(blob) => blobs.push((slot, blob)),
                    Err(error) => log::warn!("a session cannot be saved: {error}"),
                }
            }
            let _ = reply.send(blobs);
        }
        Command::Stop => {}
    }
}

fn step<B: Backend>(
    backend: &B,
    shared: &Shared,
    live: &mut BTreeMap<SlotId, Live<B::Stream>>,
    batch: Vec<Ready<Vec<f32>>>,
) -> moshi_core::Result<()> {
    // A slot may have frames after its conversation ended.
    let mut batch: Vec<Ready<Vec<f32>>> =
        batch.into_iter().filter(|ready| live.contains_key(&ready.slot)).collect();
    batch.sort_by_key(|ready| ready.slot);
    let mut wanted = batch.iter().map(|ready| ready.slot).peekable();
    let mut members: Vec<&mut Live<B::Stream>> = live
        .iter_mut()
        .filter(|(slot, _)| wanted.next_if_eq(*slot).is_some())
        .map(|(_, live)| live)
        .collect();
    if members.is_empty() {
        return Ok(());
    }
    let frames: Vec<&[f32]> = batch.iter().map(|ready| &ready.frame[..]).collect();
    let mut streams: Vec<&mut B::Stream> =
        members.iter_mut().map(|live| &mut live.stream).collect();
    let start = Instant::now();
    let outputs = backend.step(&mut streams, &frames)?;
    let took = start.elapsed();

    let metrics = &shared.metrics;
    metrics.step_seconds.observe(took.as_secs_f64());
    metrics.step_streams.observe(batch.len() as f64);
    let frame_time = shared.card.frame_time();
    if took > frame_time {
        metrics.late_steps.inc();
        log::debug!("a step of {} took {:.0} ms", batch.len(), took.as_secs_f64() * 1e3);
    }
    let now = shared.now();
    let mut slow = Vec::new();
    for ((live, ready), output) in members.iter_mut().zip(&batch).zip(outputs) {
        live.steps += 1;
        metrics.frame_seconds.observe(now.saturating_sub(ready.arrived).as_secs_f64());
        let frame = OutputFrame {
            pcm: output.pcm,
            text: output.text,
            step: live.steps,
            lag: frame_time * ready.waiting as u32,
            dropped: ready.dropped,
            took,
        };
        // A receiver that is gone has parked or closed its conversation.
        if let Err(TrySendError::Full(_)) = live.events.try_send(frame) {
            slow.push(ready.slot);
        }
    }
    shared.end_slow(&slow);
    shared.lock().scheduler.capacity_mut().observe(batch.len(), took, now);
    Ok(())
}

/// What the scheduler needs to know about a backend.
pub(crate) fn rules(
    frame: Duration,
    coalesce: Duration,
    max_queue: usize,
    grace: Duration,
    max_parked: usize,
    idle: Duration,
) -> Rules {
    Rules {
        frame,
        coalesce,
        max_lag_frames: MAX_LAG_FRAMES,
        max_upload_frames: MAX_UPLOAD_FRAMES,
        max_queue,
        grace,
        max_parked,
        idle,
    }
}

/// Frames that a dialogue may be behind.
const MAX_LAG_FRAMES: usize = 3;
/// Frames of an upload that wait here; the connection holds the rest.
const MAX_UPLOAD_FRAMES: usize = 8;
