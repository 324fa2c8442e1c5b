//! A predictable backend, a server on a free port, and the simplest HTTP client.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use moshi_core::lm::Sampling;
use moshi_core::{Error, Result, StepOutput};
use moshi_serve::backend::{Backend, Card, StreamOptions, StreamSettings};
use moshi_serve::client::{ChatClient, ClientEvent, ClientOptions};
use moshi_serve::hub::Hub;
use moshi_serve::{ServeConfig, ServeError, Server};
use moshi_wire::opus::{OpusReader, OpusWriter};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

pub(crate) const FRAME: usize = 1920;
pub(crate) const RATE_HZ: u32 = 24_000;

/// Answers every frame with itself at half the volume and turned by its own past, and with a word
/// at every third step.
pub(crate) struct Echo {
    card: Card,
    pub(crate) step_time: Duration,
    pub(crate) panics: AtomicBool,
    /// Streams that may be opened, ever.
    pub(crate) room: AtomicUsize,
    /// What a stream with a full context adds to a step.
    pub(crate) full_step_time: Duration,
    /// Steps wait while it is set.
    pub(crate) holds: AtomicBool,
    /// A step waits.
    pub(crate) is_held: AtomicBool,
    /// What was done: steps and openings.
    pub(crate) done: Mutex<Vec<&'static str>>,
}

#[derive(Debug, Clone)]
pub(crate) struct EchoStream {
    seed: u64,
    sampling: Sampling,
    steps: u64,
    past: f32,
    full: bool,
}

impl Echo {
    pub(crate) fn new() -> Self {
        let card = Card {
            name: "echo".into(),
            sample_rate_hz: RATE_HZ,
            frame_samples: FRAME,
            latency_frames: 0,
            sampling: Sampling::greedy(),
            seed: None,
            session_bytes: 1_000_000,
            executor: "echo".into(),
            threads: 1,
        };
        Self {
            card,
            step_time: Duration::ZERO,
            panics: AtomicBool::new(false),
            room: AtomicUsize::new(usize::MAX),
            full_step_time: Duration::ZERO,
            holds: AtomicBool::new(false),
            is_held: AtomicBool::new(false),
            done: Mutex::default(),
        }
    }

    /// What a lone stream gives for these frames.
    pub(crate) fn alone(frames: &[Vec<f32>], seed: u64) -> (Vec<Vec<f32>>, String) {
        let echo = Self::new();
        let mut stream = echo.open(&StreamOptions { seed: Some(seed), sampling: None }).unwrap();
        let step = |frame: &Vec<f32>| echo.step(&mut [&mut stream], &[frame]).unwrap().remove(0);
        let outputs: Vec<StepOutput> = frames.iter().map(step).collect();
        let text = outputs.iter().map(|output| output.text.as_str()).collect();
        (outputs.into_iter().map(|output| output.pcm).collect(), text)
    }
}

impl Backend for Echo {
    type Stream = EchoStream;

    fn card(&self) -> &Card {
        &self.card
    }

    fn open(&self, options: &StreamOptions) -> Result<EchoStream> {
        let taken =
            self.room.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        if taken.is_err() {
            return Err(Error::Device { device: "echo".into(), reason: "out of memory".into() });
        }
        self.done.lock().unwrap().push("open");
        let sampling = options.sampling.unwrap_or(self.card.sampling);
        let seed = options.seed.unwrap_or(1);
        Ok(EchoStream { seed, sampling, steps: 0, past: 0.0, full: false })
    }

    fn fill(&self, stream: &mut EchoStream) -> Result<()> {
        stream.full = true;
        Ok(())
    }

    fn restore(&self, blob: &[u8]) -> Result<EchoStream> {
        let bad = || Error::Snapshot { reason: "not an echo".into() };
        let word = |at: usize| -> Result<u64> {
            let bytes = blob.get(at..at + 8).ok_or_else(bad)?;
            Ok(u64::from_le_bytes(bytes.try_into().map_err(|_| bad())?))
        };
        let past = f32::from_bits(word(16)? as u32);
        Ok(EchoStream {
            seed: word(0)?,
            sampling: self.card.sampling,
            steps: word(8)?,
            past,
            full: false,
        })
    }

    fn snapshot(&self, stream: &EchoStream) -> Result<Vec<u8>> {
        let words = [stream.seed, stream.steps, stream.past.to_bits().into()];
        Ok(words.iter().flat_map(|word| word.to_le_bytes()).collect())
    }

    fn step(&self, streams: &mut [&mut EchoStream], frames: &[&[f32]]) -> Result<Vec<StepOutput>> {
        assert!(!self.panics.load(Ordering::SeqCst), "a broken invariant of the test");
        let full = streams.iter().filter(|stream| stream.full).count();
        std::thread::sleep(self.step_time + self.full_step_time * full as u32);
        while self.holds.load(Ordering::SeqCst) {
            self.is_held.store(true, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(1));
        }
        self.done.lock().unwrap().push("step");
        let step = |(stream, frame): (&mut EchoStream, &&[f32])| {
            stream.steps += 1;
            let own = (stream.seed % 100) as f32 / 1000.0;
            let pcm = frame.iter().map(|sample| 0.5 * sample + own + 0.1 * stream.past).collect();
            stream.past = 0.5 * stream.past + frame[0];
            let text = if stream.steps % 3 == 0 {
                format!(" word{}.{}", stream.seed, stream.steps)
            } else {
                String::new()
            };
            StepOutput { pcm, text, tokens: None, user_codes: Vec::new() }
        };
        Ok(streams.iter_mut().map(|stream| &mut **stream).zip(frames).map(step).collect())
    }

    fn settings(&self, stream: &EchoStream) -> StreamSettings {
        StreamSettings { seed: stream.seed, sampling: stream.sampling, steps: stream.steps }
    }
}

/// A server in this process.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) hub: Hub,
    stop: mpsc::Sender<()>,
    task: JoinHandle<std::result::Result<(), ServeError>>,
}

/// Settings for tests: a free port, `slots` sessions, no time to drain.
pub(crate) fn config(slots: usize) -> ServeConfig {
    ServeConfig {
        port: 0,
        max_sessions: Some(slots),
        drain: Duration::ZERO,
        ..ServeConfig::default()
    }
}

impl Running {
    pub(crate) fn start<B: Backend>(backend: &Arc<B>, config: ServeConfig) -> Self {
        let server = Server::bind(config).unwrap();
        let address = server.address().unwrap();
        let worker = server.start(Arc::clone(backend)).unwrap();
        let hub = worker.hub().clone();
        let (stop, stopped) = mpsc::channel(2);
        let task = tokio::spawn(server.run(worker, stopped));
        Self { address, hub, stop, task }
    }

    pub(crate) fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    pub(crate) async fn connect(&self, parameters: &[(&str, &str)]) -> ChatClient {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let parameters = parameters.iter().map(own).collect();
        let options = ClientOptions { parameters, ..ClientOptions::default() };
        ChatClient::connect(&self.url(), &options).await.unwrap()
    }

    /// As if by a signal.
    pub(crate) async fn request_stop(&self) {
        self.stop.send(()).await.unwrap();
    }

    pub(crate) async fn outcome(self) -> std::result::Result<(), ServeError> {
        self.task.await.unwrap()
    }

    pub(crate) async fn stop(self) {
        self.request_stop().await;
        self.outcome().await.unwrap();
    }

    /// Waits until the numbers of used and parked slots are these.
    pub(crate) async fn slots(&self, used: usize, parked: usize) {
        eventually(|| {
            let slots = self.hub.slots();
            (slots.used, slots.parked) == (used, parked)
        })
        .await;
    }
}

/// Waits for something that will be.
pub(crate) async fn eventually(is: impl Fn() -> bool) {
    for _ in 0..2_000 {
        if is() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it never came");
}

/// Frames of a moving tone.
pub(crate) fn frames(count: usize) -> Vec<Vec<f32>> {
    let sample = |i: usize| 0.3 * (i as f32 * (0.02 + (i / 4000) as f32 * 0.003)).sin();
    (0..count).map(|n| (n * FRAME..(n + 1) * FRAME).map(sample).collect()).collect()
}

/// What a server hears of these frames: they go through Opus.
pub(crate) fn heard(frames: &[Vec<f32>]) -> Vec<Vec<f32>> {
    through_opus(frames)
}

/// What a client hears of these frames.
pub(crate) fn through_opus(frames: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let mut writer = OpusWriter::new(RATE_HZ).unwrap();
    let mut reader = OpusReader::new(RATE_HZ).unwrap();
    let through = |frame: &Vec<f32>| {
        let mut samples = Vec::new();
        reader.push(&writer.push(frame).unwrap(), &mut samples);
        assert_eq!(samples.len(), frame.len());
        samples
    };
    frames.iter().map(through).collect()
}

/// Reads the handshake and the metadata.
pub(crate) async fn greeted(client: &mut ChatClient) -> serde_json::Value {
    assert_eq!(client.next().await, ClientEvent::Ready);
    match client.next().await {
        ClientEvent::Metadata(metadata) => metadata,
        other => panic!("{other:?}"),
    }
}

/// Sends frames one after the other, each after the answer to the one before, and gives all audio
/// and text. Every frame has exactly one answer.
pub(crate) async fn talk(client: &mut ChatClient, frames: &[Vec<f32>]) -> (Vec<Vec<f32>>, String) {
    let mut audio = Vec::new();
    let mut said = String::new();
    for frame in frames {
        assert!(client.send(frame).await.unwrap());
        loop {
            match client.next().await {
                ClientEvent::Audio(samples) => break audio.push(samples),
                ClientEvent::Text(text) => said.push_str(&text),
                ClientEvent::Metadata(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
    (audio, said)
}

/// Text that comes after the last audio.
pub(crate) async fn last_words(client: &mut ChatClient, text: &mut String, expected: &str) {
    while text.len() < expected.len() {
        match client.next().await {
            ClientEvent::Text(more) => text.push_str(&more),
            ClientEvent::Closed(said) => panic!("closed: {said:?}"),
            _ => {}
        }
    }
}

/// How a server closes.
pub(crate) async fn closed(client: &mut ChatClient) -> Option<(u16, String)> {
    loop {
        if let ClientEvent::Closed(said) = client.next().await {
            return said;
        }
    }
}

/// Status and body of a request without body. `headers` end in a line end each.
pub(crate) async fn http(address: SocketAddr, request: &str, headers: &str) -> (u16, String) {
    http_with_body(address, request, headers, "").await
}

/// As [`http`], with a body.
pub(crate) async fn http_with_body(
    address: SocketAddr,
    request: &str,
    headers: &str,
    body: &str,
) -> (u16, String) {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let host =
        if headers.contains("Host:") { String::new() } else { format!("Host: {address}\r\n") };
    let length =
        if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let text =
        format!("{request} HTTP/1.1\r\n{host}{headers}{length}Connection: close\r\n\r\n{body}");
    socket.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    (status, body.unwrap_or_default())
}

/// Headers that ask for a WebSocket; `Connection` is what [`http`] adds.
pub(crate) const UPGRADE: &str = "Connection: upgrade\r\nUpgrade: websocket\r\n\
                                  Sec-WebSocket-Version: 13\r\n\
                                  Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
