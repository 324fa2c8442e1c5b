//! Keys and values of past positions, in the order in which attention reads them.
//!
//! Keys lie in tiles of 16 positions, channel by channel, as the weights of a panel of 16 outputs
//! do: a score is such a product. Values lie position by position. Both are f32 or bf16;
//! arithmetic is in f32.

use std::io;
use std::ops::Range;

use half::bf16;

use super::products::{Lane16, Lane32, PANEL};
use super::rows::Rows;
use super::{Kernels, split};
use crate::huge_memory::{HUGE_PAGE_BYTES, HugeMemory};
use crate::isa::Isa;
use crate::pool::Pool;
use crate::scalar::Heads;

use super::products;

/// How a ring stores its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingFormat {
    /// 32-bit floats.
    F32,
    /// bfloat16, rounded when a position is written.
    Bf16,
}

impl RingFormat {
    fn value_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// Keys and values of the last positions of one layer of one stream.
#[derive(Debug)]
pub struct PackedRing {
    heads: Heads,
    format: RingFormat,
    capacity: usize,
    /// Capacity in whole tiles.
    slots: usize,
    memory: Memory,
}

#[derive(Debug)]
enum Memory {
    Small(Vec<u8>),
    Huge(HugeMemory),
}

impl PackedRing {
    /// An empty ring of `capacity` positions.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new(heads: Heads, capacity: usize, format: RingFormat) -> io::Result<Self> {
        let bytes = Self::bytes_of(heads, capacity, format);
        let memory = if bytes < HUGE_PAGE_BYTES {
            Memory::Small(vec![0; bytes])
        } else {
            Memory::Huge(HugeMemory::zeroed(bytes)?)
        };
        Ok(Self { heads, format, capacity, slots: capacity.next_multiple_of(PANEL), memory })
    }

    /// Bytes of a ring.
    pub fn bytes_of(heads: Heads, capacity: usize, format: RingFormat) -> usize {
        let widths = heads.width + heads.width.next_multiple_of(PANEL);
        capacity.next_multiple_of(PANEL) * heads.key * widths * format.value_bytes()
    }

    /// Positions held.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Shape of the heads.
    pub fn heads(&self) -> Heads {
        self.heads
    }

    /// Floats of scratch memory that [`PackedRing::attend`] needs.
    pub fn scratch_len(&self) -> usize {
        self.heads.query * self.slots
    }

    /// Stores a position: `keys` and `values` are `[key head, width]`.
    pub fn write(&mut self, position: u64, keys: &[f32], values: &[f32]) {
        let slot = self.slot(position);
        for head in 0..self.heads.key {
            let from = head * self.heads.width;
            for channel in 0..self.heads.width {
                let (key_at, value_at) =
                    (self.key_at(head, slot, channel), self.value_at(head, slot));
                self.put(key_at, keys[from + channel]);
                self.put(value_at + channel, values[from + channel]);
            }
        }
    }

    /// Appends a stored position to `out`: keys, then values.
    pub fn read(&self, position: u64, out: &mut Vec<f32>) {
        let slot = self.slot(position);
        for head in 0..self.heads.key {
            let keys = (0..self.heads.width).map(|c| self.get(self.key_at(head, slot, c)));
            out.extend(keys);
        }
        for head in 0..self.heads.key {
            let start = self.value_at(head, slot);
            out.extend((start..start + self.heads.width).map(|at| self.get(at)));
        }
    }

    /// Attention of one position over the absolute positions `visible`, as
    /// [`crate::scalar::attend`]: `query` and `out` are `[query head, width]`; `scratch` has
    /// [`PackedRing::scratch_len`] floats.
    ///
    /// # Panics
    /// If more positions are visible than the ring holds: a bug of the caller.
    pub fn attend(
        &self,
        (kernels, pool): (Kernels, &Pool),
        query: &[f32],
        visible: Range<u64>,
        scratch: &mut [f32],
        out: &mut [f32],
    ) {
        let Heads { query: heads, width, .. } = self.heads;
        let count = (visible.end - visible.start) as usize;
        assert!(count <= self.capacity, "more positions visible than the ring holds");
        if count == 0 {
            out.fill(0.0);
            return;
        }
        let first = self.slot(visible.start);
        let runs = if first + count <= self.slots {
            [first..first + count, 0..0]
        } else {
            [first..self.slots, 0..first + count - self.slots]
        };
        let cost = 2 * count * heads * width * self.format.value_bytes();
        let (scores, outs) = (Rows::new(scratch, self.slots), Rows::new(out, width));
        split(pool, heads, cost, &|head| {
            // SAFETY: every head is one part of the work, with rows of its own.
            let scores = unsafe { scores.row(head) };
            // SAFETY: as above.
            let out = unsafe { outs.row(head) };
            self.attend_head(
                kernels,
                head,
                &query[head * width..(head + 1) * width],
                &runs,
                scores,
                out,
            );
        });
    }

    fn attend_head(
        &self,
        kernels: Kernels,
        head: usize,
        query: &[f32],
        runs: &[Range<usize>; 2],
        scores: &mut [f32],
        out: &mut [f32],
    ) {
        let width = self.heads.width;
        let head = head / (self.heads.query / self.heads.key);
        let bytes = self.bytes();
        let value_bytes = self.format.value_bytes();
        let keys = &bytes[value_bytes * self.key_at(head, 0, 0)..];
        for run in runs {
            let tiles = run.start / PANEL..run.end.div_ceil(PANEL);
            let scores = &mut scores[tiles.start * PANEL..tiles.end * PANEL];
            let keys = &keys[value_bytes * tiles.start * PANEL * width..];
            let keys = &keys[..value_bytes * tiles.len() * PANEL * width];
            match self.format {
                RingFormat::F32 => {
                    let lanes: &[Lane32] = keys.as_chunks().0;
                    dispatch!(kernels, products::scores_32(lanes, query, scores));
                }
                RingFormat::Bf16 => {
                    let lanes: &[Lane16] = keys.as_chunks().0;
                    dispatch!(kernels, products::scores_16(lanes, query, scores));
                }
            }
        }
        let scale = 1.0 / (width as f32).sqrt();
        let mut max = f32::NEG_INFINITY;
        for score in runs.iter().flat_map(|run| scores[run.clone()].iter()) {
            max = max.max(*score);
        }
        // The scale is positive: the largest score stays the largest.
        let mut total = 0.0;
        for run in runs {
            let scores = &mut scores[run.clone()];
            for score in scores.iter_mut() {
                *score = (*score - max) * scale;
            }
            total += kernels.exp_minus(scores, 0.0);
        }
        let lanes_per_slot = width.div_ceil(PANEL);
        let values = &bytes[value_bytes * self.value_at(head, 0)..];
        for panel in 0..lanes_per_slot {
            let mut sums = [0.0; PANEL];
            for run in runs {
                let weights = &scores[run.clone()];
                let first = run.start * lanes_per_slot;
                match self.format {
                    RingFormat::F32 => {
                        let lanes: &[Lane32] = values.as_chunks().0;
                        dispatch!(
                            kernels,
                            products::weigh_32(
                                &lanes[first..],
                                (panel, lanes_per_slot),
                                weights,
                                &mut sums
                            )
                        );
                    }
                    RingFormat::Bf16 => {
                        let lanes: &[Lane16] = values.as_chunks().0;
                        dispatch!(
                            kernels,
                            products::weigh_16(
                                &lanes[first..],
                                (panel, lanes_per_slot),
                                weights,
                                &mut sums
                            )
                        );
                    }
                }
            }
            let out = &mut out[panel * PANEL..((panel + 1) * PANEL).min(width)];
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = sum / total;
            }
        }
    }

    fn slot(&self, position: u64) -> usize {
        (position % self.slots as u64) as usize
    }

    /// Place of a key's channel, in values.
    fn key_at(&self, head: usize, slot: usize, channel: usize) -> usize {
        let tile = head * self.slots / PANEL + slot / PANEL;
        (tile * self.heads.width + channel) * PANEL + slot % PANEL
    }

    /// Place of a value's first channel, in values.
    fn value_at(&self, head: usize, slot: usize) -> usize {
        let keys = self.heads.key * self.slots * self.heads.width;
        keys + (head * self.slots + slot) * self.heads.width.next_multiple_of(PANEL)
    }

    fn bytes(&self) -> &[u8] {
        match &self.memory {
            Memory::Small(bytes) => bytes,
            Memory::Huge(bytes) => bytes,
        }
    }

    fn put(&mut self, at: usize, value: f32) {
        let bytes = match &mut self.memory {
            Memory::Small(bytes) => &mut bytes[..],
            Memory::Huge(bytes) => &mut bytes[..],
        };
        match self.format {
            RingFormat::F32 => bytes[4 * at..4 * at + 4].copy_from_slice(&value.to_le_bytes()),
            RingFormat::Bf16 => {
                let value = bf16::from_f32(value);
                bytes[2 * at..2 * at + 2].copy_from_slice(&value.to_le_bytes());
            }
        }
    }

    fn get(&self, at: usize) -> f32 {
        let bytes = self.bytes();
        match self.format {
            RingFormat::F32 => f32::from_le_bytes(bytes.as_chunks().0[at]),
            RingFormat::Bf16 => bf16::from_le_bytes(bytes.as_chunks().0[at]).to_f32(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scalar;

    fn noise(count: usize, seed: f32) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * 0.7 + seed).sin() * 1.5).collect()
    }

    #[test]
    fn attention_equals_the_reference_over_what_the_ring_stores() {
        let pool = Pool::new(2);
        for (query, key, width) in [(4, 4, 64), (4, 2, 24), (2, 1, 8)] {
            let heads = Heads { query, key, width };
            for format in [RingFormat::F32, RingFormat::Bf16] {
                let capacity = 37;
                let mut ring = PackedRing::new(heads, capacity, format).unwrap();
                let plain = key * capacity * width;
                let (mut keys, mut values) = (vec![0.0; plain], vec![0.0; plain]);
                for position in 0..90u64 {
                    let row = noise(2 * key * width, position as f32);
                    let (k, v) = row.split_at(key * width);
                    ring.write(position, k, v);
                    let mut stored = Vec::new();
                    ring.read(position, &mut stored);
                    if format == RingFormat::F32 {
                        assert_eq!(stored, row);
                    }
                    for head in 0..key {
                        let to = (head * capacity + position as usize % capacity) * width;
                        let from = head * width;
                        keys[to..to + width].copy_from_slice(&stored[from..from + width]);
                        let from = from + key * width;
                        values[to..to + width].copy_from_slice(&stored[from..from + width]);
                    }
                    let visible = (position + 1).saturating_sub(capacity as u64)..position + 1;
                    let q = noise(query * width, 0.3);
                    let mut expected = vec![0.0; query * width];
                    let stored = (&keys[..], &values[..], capacity);
                    let mut scores = Vec::new();
                    scalar::attend(&q, heads, stored, visible.clone(), &mut scores, &mut expected);
                    for kernels in Isa::available().filter_map(Kernels::new) {
                        let mut scratch = vec![f32::NAN; ring.scratch_len()];
                        let mut out = vec![f32::NAN; query * width];
                        ring.attend((kernels, &pool), &q, visible.clone(), &mut scratch, &mut out);
                        for (a, b) in out.iter().zip(&expected) {
                            assert!((a - b).abs() < 1e-5, "{kernels:?} {format:?}: {a} is not {b}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn nothing_visible_gives_zeros() {
        let heads = Heads { query: 1, key: 1, width: 4 };
        let ring = PackedRing::new(heads, 3, RingFormat::F32).unwrap();
        let kernels = Kernels::new(Isa::Scalar).unwrap();
        let mut out = [7.0; 4];
        let mut scratch = vec![0.0; ring.scratch_len()];
        ring.attend((kernels, &Pool::new(1)), &[1.0; 4], 5..5, &mut scratch, &mut out);
        assert_eq!(out, [0.0; 4]);
    }
}
