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

/// The client's coding of audio.
pub(super) enum Listener {
    Opus(Box<OpusReader>),
    Plain(SampleReader),
}

impl Listener {
    fn push(&mut self, bytes: &[u8], samples: &mut Vec<f32>) {
        match self {
            Self::Opus(reader) => reader.push(bytes, samples),
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

/// The user's audio on its way in.
pub(super) struct Ears {
    reader: Listener,
    pub(super) samples: Vec<f32>,
    window: Instant,
    before_window: u64,
    unknown: u64,
}

impl Ears {
    pub(super) fn new(reader: Listener) -> Self {
        Self { reader, samples: Vec::new(), window: Instant::now(), before_window: 0, unknown: 0 }
    }

    /// Takes a message; audio lands in `samples`. False when too much of it is damaged.
    pub(super) fn hear(&mut self, message: &[u8]) -> bool {
        match ChatMessage::decode(message) {
            Ok(ChatMessage::Audio(bytes)) => self.reader.push(bytes, &mut self.samples),
            Ok(_) => {}
            Err(_) => self.unknown += 1,
        }
        if self.window.elapsed() > DAMAGE_WINDOW {
            self.window = Instant::now();
            self.before_window = self.damage();
        }
        self.damage() - self.before_window <= MAX_DAMAGE
    }

    pub(super) fn damage(&self) -> u64 {
        self.reader.errors() + self.unknown
    }
}
