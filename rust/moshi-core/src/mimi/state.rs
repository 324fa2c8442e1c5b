//! What one stream remembers: convolution tails, attention rings, its position.

use std::ops::Range;

use super::load::Conv;
use crate::config::MimiConfig;
use crate::error::{Error, Result};
use crate::exec::{Executor, Heads, KeyStorage};
use crate::snapshot::{Reader, Writer};
use crate::stages::Noise;

/// Past of one direction of one stream.
pub(super) struct Lane<E: Executor> {
    pub(super) tails: Vec<E::Tail>,
    pub(super) rings: Vec<E::Ring>,
    /// Transformer positions seen.
    pub(super) position: u64,
    shape: LaneShape,
}

/// Sizes of a [`Lane`].
#[derive(Clone, Debug)]
pub(super) struct LaneShape {
    /// Rows and width of every tail.
    tails: Vec<(usize, usize)>,
    num_layers: usize,
    heads: Heads,
    keys: KeyStorage,
    /// Positions that a ring keeps for later steps.
    window: usize,
    /// Positions per call, at most.
    chunk: usize,
}

impl LaneShape {
    /// For calls of at most `chunk_frames` code frames.
    pub(super) fn new(
        config: &MimiConfig,
        tails: Vec<(usize, usize)>,
        chunk_frames: usize,
    ) -> Self {
        Self {
            tails,
            num_layers: config.num_layers,
            heads: config.heads,
            keys: KeyStorage::F32,
            window: config.context,
            chunk: chunk_frames * config.positions_per_frame,
        }
    }

    /// The same with keys and values stored so.
    pub(super) fn with(self, keys: KeyStorage) -> Self {
        Self { keys, ..self }
    }

    pub(super) fn tail_of<E: Executor>(conv: &Conv<E>) -> (usize, usize) {
        (conv.history, conv.input_width)
    }
}

impl<E: Executor> Lane<E> {
    pub(super) fn new(exec: &E, shape: LaneShape) -> Result<Self> {
        let tails = shape.tails.iter().map(|&(rows, width)| exec.tail(rows, width));
        let tails = tails.collect::<Result<_>>()?;
        let capacity = shape.window + shape.chunk - 1;
        let rings = (0..shape.num_layers).map(|_| exec.ring(shape.heads, capacity, shape.keys));
        let rings = rings.collect::<Result<_>>()?;
        Ok(Self { tails, rings, position: 0, shape })
    }

    fn reset(&mut self, exec: &E) -> Result<()> {
        // Rings need no clearing: positions restart, so old entries are never visible.
        let Self { tails, rings: _, position, shape } = self;
        for (tail, &(rows, width)) in tails.iter_mut().zip(&shape.tails) {
            *tail = exec.tail(rows, width)?;
        }
        *position = 0;
        Ok(())
    }

    /// Positions whose keys later steps can see.
    fn kept(&self) -> Range<u64> {
        self.position.saturating_sub(self.shape.window as u64)..self.position
    }

    /// Gives the stream a past as long as its window: zeros in the convolutions, `noise` in
    /// attention.
    fn fill(&mut self, exec: &E, noise: &mut Noise) -> Result<()> {
        self.reset(exec)?;
        self.position = self.shape.window as u64;
        self.position -= self.position % self.shape.chunk as u64;
        let kept = self.kept();
        let values = 2 * self.shape.heads.key_width() * (kept.end - kept.start) as usize;
        for ring in &mut self.rings {
            exec.import_ring(ring, kept.start, &noise.take(values))?;
        }
        Ok(())
    }

    fn write(&self, exec: &E, writer: &mut Writer) -> Result<()> {
        writer.u64(self.position);
        for tail in &self.tails {
            writer.floats(&exec.export_tail(tail)?);
        }
        for ring in &self.rings {
            writer.floats(&exec.export_ring(ring, self.kept())?);
        }
        Ok(())
    }

    fn read(&mut self, exec: &E, reader: &mut Reader<'_>) -> Result<()> {
        self.position = reader.position()?;
        for (tail, (rows, width)) in self.tails.iter_mut().zip(&self.shape.tails) {
            exec.import_tail(tail, &reader.floats(rows * width)?)?;
        }
        let kept = self.kept();
        let width = 2 * self.shape.heads.key_width();
        let count = (kept.end - kept.start) as usize * width;
        for ring in &mut self.rings {
            exec.import_ring(ring, kept.start, &reader.floats(count)?)?;
        }
        Ok(())
    }
}

macro_rules! direction {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        pub struct $name<E: Executor> {
            pub(super) exec: E,
            pub(super) lane: Lane<E>,
        }

        impl<E: Executor> $name<E> {
            pub(super) fn new(exec: &E, shape: LaneShape) -> Result<Self> {
                Ok(Self { exec: exec.clone(), lane: Lane::new(exec, shape)? })
            }

            /// Forgets the past: the state equals a new one.
            pub fn reset(&mut self) -> Result<()> {
                self.lane.reset(&self.exec)
            }

            /// Gives the stream a past as long as its attention window, made of noise: what a
            /// measurement starts from.
            pub fn fill(&mut self, noise: &mut Noise) -> Result<()> {
                self.lane.fill(&self.exec, noise)
            }

            /// Transformer positions seen since the start or the last reset.
            pub fn position(&self) -> u64 {
                self.lane.position
            }

            /// An independent copy.
            pub fn fork(&self) -> Result<Self> {
                let mut writer = Writer::default();
                self.write(&mut writer)?;
                let mut copy = Self::new(&self.exec, self.lane.shape.clone())?;
                let bytes = writer.into_bytes();
                copy.read(&mut Reader::new(&bytes))?;
                Ok(copy)
            }

            /// Appends the state to a snapshot.
            pub fn write(&self, writer: &mut Writer) -> Result<()> {
                self.lane.write(&self.exec, writer)
            }

            /// Takes the state from a snapshot.
            ///
            /// # Errors
            /// [`Error::Snapshot`]; the state is then reset.
            pub fn read(&mut self, reader: &mut Reader<'_>) -> Result<()> {
                let result = self.lane.read(&self.exec, reader);
                if matches!(result, Err(Error::Snapshot { .. })) {
                    self.reset()?;
                }
                result
            }
        }
    };
}

direction! {
    /// Past of one encoded stream.
    EncoderState
}
direction! {
    /// Past of one decoded stream.
    DecoderState
}
