//! Audio of the protocol: the client's bytes to samples, and the model's samples to bytes.

use std::time::Duration;

use moshi_wire::WireError;
use moshi_wire::chat::ChatMessage;
use moshi_wire::opus::{OpusReader, OpusWriter};
use moshi_wire::pcm::{self, Coding, SampleReader};
use tokio::time::Instant;

/// Damaged packets of a conversation within [`DAMAGE_WINDOW`] that are survived.
const MAX_DAMAGE: u64 = 50;
const DAMAGE_WINDOW: Duration = Duration::from_secs(10);

/// Audio that may be decoded at once. Bytes are cheap for a client: a megabyte of them can be hours.
const MAX_BURST: Duration = Duration::from_secs(10);
/// Audio that may be decoded per time that passes: more than any model steps for a client that
/// waits for each answer, and little work for a processor.
const MAX_PACE: u32 = 16;

/// The client's coding of audio.
pub(super) enum Listener {
    Opus(Box<OpusReader>),
    Plain(SampleReader),
}

impl Listener {
    fn push(&mut self, bytes: &[u8], most: usize, samples: &mut Vec<f32>) {
        match self {
            Self::Opus(reader) => reader.push_at_most(bytes, most, samples),
            // As long as their bytes.
            Self::Plain(reader) => reader.push(bytes, samples),
        }
    }

    fn errors(&self) -> u64 {
        match self {
            Self::Opus(reader) => reader.errors(),
            Self::Plain(_) => 0,
        }
    }
}

/// Our coding of audio: the same one.
pub(super) enum Mouth {
    Opus(Box<OpusWriter>),
    Plain,
}

impl Mouth {
    pub(super) fn push(&mut self, samples: &[f32]) -> Result<Vec<u8>, WireError> {
        match self {
            Self::Opus(writer) => writer.push(samples),
            Self::Plain => Ok(pcm::encode(Coding::Pcm16, samples)),
        }
    }
}

pub(super) fn codec(rate_hz: u32, plain: bool) -> Result<(Listener, Mouth), WireError> {
    if plain {
        return Ok((Listener::Plain(SampleReader::new(Coding::Pcm16)), Mouth::Plain));
    }
    let reader = Box::new(OpusReader::new(rate_hz)?);
    Ok((Listener::Opus(reader), Mouth::Opus(Box::new(OpusWriter::new(rate_hz)?))))
}

/// How much audio may be decoded. Time is a parameter, counted from any fixed point.
#[derive(Debug)]
struct Allowance {
    left: Duration,
    reckoned: Duration,
}

impl Allowance {
    fn new(now: Duration) -> Self {
        Self { left: MAX_BURST, reckoned: now }
    }

    fn left(&mut self, now: Duration) -> Duration {
        let passed = now.saturating_sub(self.reckoned);
        self.reckoned = now;
        self.left = self.left.saturating_add(passed.saturating_mul(MAX_PACE)).min(MAX_BURST);
        self.left
    }

    fn spend(&mut self, audio: Duration) {
        self.left = self.left.saturating_sub(audio);
    }
}

/// The user's audio on its way in.
pub(super) struct Ears {
    reader: Listener,
    rate_hz: u32,
    start: Instant,
    allowance: Allowance,
    pub(super) samples: Vec<f32>,
    window: Instant,
    before_window: u64,
    unknown: u64,
}

impl Ears {
    pub(super) fn new(reader: Listener, rate_hz: u32) -> Self {
        let now = Instant::now();
        Self {
            reader,
            rate_hz,
            start: now,
            allowance: Allowance::new(Duration::ZERO),
            samples: Vec::new(),
            window: now,
            before_window: 0,
            unknown: 0,
        }
    }

    /// Takes a message; audio lands in `samples`, as much as may be decoded now. False when too
    /// much of it is damaged.
    pub(super) fn hear(&mut self, message: &[u8]) -> bool {
        match ChatMessage::decode(message) {
            Ok(ChatMessage::Audio(bytes)) => self.take(bytes),
            Ok(_) => {}
            Err(_) => self.unknown += 1,
        }
        if self.window.elapsed() > DAMAGE_WINDOW {
            self.window = Instant::now();
            self.before_window = self.damage();
        }
        self.damage() - self.before_window <= MAX_DAMAGE
    }

    fn take(&mut self, bytes: &[u8]) {
        let left = self.allowance.left(self.start.elapsed());
        let most = (left.as_secs_f64() * f64::from(self.rate_hz)) as usize;
        let before = self.samples.len();
        self.reader.push(bytes, most, &mut self.samples);
        let came = (self.samples.len() - before) as f64 / f64::from(self.rate_hz);
        self.allowance.spend(Duration::from_secs_f64(came));
    }

    pub(super) fn damage(&self) -> u64 {
        self.reader.errors() + self.unknown
    }
}

#[cfg(test)]
mod tests {
    use moshi_wire::opus::OpusWriter;

    use super::*;

    const RATE_HZ: u32 = 24_000;

    #[test]
    fn the_pace_of_time_is_never_too_much() {
        let mut allowance = Allowance::new(Duration::ZERO);
        assert_eq!(allowance.left(Duration::ZERO), MAX_BURST);
        allowance.spend(MAX_BURST + Duration::from_secs(9));
        assert_eq!(allowance.left(Duration::ZERO), Duration::ZERO);
        for half_seconds in 1..100 {
            let now = Duration::from_millis(500) * half_seconds;
            assert!(allowance.left(now) >= Duration::from_millis(500));
            allowance.spend(Duration::from_millis(500));
        }
        assert_eq!(allowance.left(Duration::from_secs(1_000)), MAX_BURST);
        assert_eq!(allowance.left(Duration::from_secs(999)), MAX_BURST, "time does not go back");
    }

    #[test]
    fn a_long_message_is_a_short_time() {
        let pages = OpusWriter::new(RATE_HZ).unwrap().push(&vec![0.1; 40 * 24_000]).unwrap();
        let (listener, _) = codec(RATE_HZ, false).unwrap();
        let mut ears = Ears::new(listener, RATE_HZ);
        let message = ChatMessage::Audio(&pages).encode();
        for _ in 0..3 {
            assert!(ears.hear(&message));
        }
        let heard = Duration::from_secs_f64(ears.samples.len() as f64 / f64::from(RATE_HZ));
        let most = MAX_BURST + ears.start.elapsed() * MAX_PACE + Duration::from_secs(1);
        assert!(heard >= MAX_BURST && heard <= most, "{heard:?} of {most:?}");
    }
}
