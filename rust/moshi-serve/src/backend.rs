//! What the worker steps: a batched engine behind a trait, so that tests can put a predictable one
//! in its place and other kinds of models fit in.

use std::sync::Arc;
use std::time::Duration;

use moshi_core::lm::Sampling;
use moshi_core::{Model, Result, Session, SessionOptions, StepOutput, step_batch};

/// What is being served.
#[derive(Debug, Clone)]
pub struct Card {
    /// Name of the model for clients: never a path.
    pub name: String,
    /// Samples per second, in and out.
    pub sample_rate_hz: u32,
    /// Samples of a frame.
    pub frame_samples: usize,
    /// Frames between input and the answer to it.
    pub latency_frames: usize,
    /// What a session takes where it says nothing.
    pub sampling: Sampling,
    /// Seed of a session that names none; `None` draws one for each.
    pub seed: Option<u64>,
    /// Bytes of one session's state.
    pub session_bytes: u64,
    /// Executor and device.
    pub executor: String,
    /// Processors that a step keeps busy.
    pub threads: usize,
}

impl Card {
    /// Time of a frame.
    pub fn frame_time(&self) -> Duration {
        Duration::from_secs_f64(self.frame_samples as f64 / f64::from(self.sample_rate_hz))
    }

    /// True where sessions take the machine's own memory. A system may promise more of it than
    /// there is, while a device refuses.
    pub(crate) fn is_in_main_memory(&self) -> bool {
        self.executor.contains("cpu")
    }
}

/// How a stream begins.
#[derive(Debug, Clone, Copy, Default)]
pub struct StreamOptions {
    /// Seed; `None` draws one.
    pub seed: Option<u64>,
    /// Sampling; `None` is the card's.
    pub sampling: Option<Sampling>,
}

/// What a stream runs with.
#[derive(Debug, Clone, Copy)]
pub struct StreamSettings {
    /// Seed.
    pub seed: u64,
    /// Sampling.
    pub sampling: Sampling,
    /// Frames stepped so far.
    pub steps: u64,
}

/// A batched engine.
pub trait Backend: Send + Sync + 'static {
    /// State of one conversation.
    type Stream: Send;

    /// What is being served.
    fn card(&self) -> &Card;
    /// A new conversation.
    ///
    /// # Errors
    /// What the engine says about the options.
    fn open(&self, options: &StreamOptions) -> Result<Self::Stream>;
    /// Makes a conversation cost what one does that has gone on for long: its context is full, of
    /// anything.
    ///
    /// # Errors
    /// What the device says.
    fn fill(&self, stream: &mut Self::Stream) -> Result<()>;
    /// A conversation from [`Backend::snapshot`].
    ///
    /// # Errors
    /// For bytes that are not an intact snapshot of this model.
    fn restore(&self, blob: &[u8]) -> Result<Self::Stream>;
    /// A conversation as bytes.
    ///
    /// # Errors
    /// What the device says.
    fn snapshot(&self, stream: &Self::Stream) -> Result<Vec<u8>>;
    /// One frame of every stream, as one batch.
    ///
    /// # Errors
    /// What the device says; all streams of the batch are lost then.
    fn step(&self, streams: &mut [&mut Self::Stream], frames: &[&[f32]])
    -> Result<Vec<StepOutput>>;
    /// What a stream runs with.
    fn settings(&self, stream: &Self::Stream) -> StreamSettings;
}

/// A loaded model as a backend.
#[derive(Clone)]
pub struct ModelBackend {
    model: Arc<Model>,
    card: Card,
}

impl ModelBackend {
    /// Serves `model` under a name; `session_bytes` is what each session's state takes.
    pub fn new(model: Arc<Model>, name: String, session_bytes: u64) -> Self {
        let info = model.info();
        let card = Card {
            name,
            sample_rate_hz: info.sample_rate_hz as u32,
            frame_samples: info.frame_samples,
            latency_frames: info.latency_frames,
            sampling: model.default_sampling(),
            seed: None,
            session_bytes,
            executor: info.executor.clone(),
            // One feeds a device.
            threads: if info.device == "cpu" { model.most_threads() } else { 1 },
        };
        Self { model, card }
    }

    /// What sessions take where they say nothing.
    pub fn with_defaults(mut self, sampling: Sampling, seed: Option<u64>) -> Self {
        self.card.sampling = sampling;
        self.card.seed = seed;
        self
    }
}

impl Backend for ModelBackend {
    type Stream = Session;

    fn card(&self) -> &Card {
        &self.card
    }

    fn open(&self, options: &StreamOptions) -> Result<Session> {
        let options = SessionOptions {
            seed: options.seed.or(self.card.seed),
            sampling: Some(options.sampling.unwrap_or(self.card.sampling)),
            ..SessionOptions::default()
        };
        Session::new(&self.model, &options)
    }

    fn fill(&self, stream: &mut Session) -> Result<()> {
        stream.fill()
    }

    fn restore(&self, blob: &[u8]) -> Result<Session> {
        Session::restore(&self.model, blob)
    }

    fn snapshot(&self, stream: &Session) -> Result<Vec<u8>> {
        stream.snapshot()
    }

    fn step(&self, streams: &mut [&mut Session], frames: &[&[f32]]) -> Result<Vec<StepOutput>> {
        step_batch(streams, frames)
    }

    fn settings(&self, stream: &Session) -> StreamSettings {
        StreamSettings { seed: stream.seed(), sampling: *stream.sampling(), steps: stream.steps() }
    }
}
