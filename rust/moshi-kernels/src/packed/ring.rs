//! Keys and values of past positions, in the order in which attention reads them.
//!
//! Keys lie in tiles of 16 positions, channel by channel, as the weights of a panel of 16 outputs
//! do: a score is such a product. Values lie position by position. Both are f32, bf16 or
//! [8 bits](EightBits), whose scales lie behind every tile of keys and behind all values of a
//! head; arithmetic is in f32.

use std::io;
use std::ops::Range;

use half::bf16;

use super::products::{Lane8, Lane16, Lane32, PANEL, part, widened};
use super::{Kernels, split};
use crate::huge_memory::{HUGE_PAGE_BYTES, HugeMemory};
use crate::isa::Isa;
use crate::pool::Pool;
use crate::rows::Rows;
use crate::scalar::{EightBits, Heads};

use super::products;

/// How a ring stores its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingFormat {
    /// 32-bit floats.
    F32,
    /// bfloat16, rounded when a position is written.
    Bf16,
    /// [8 bits](EightBits) and a scale for every position and key head, keys and values apart.
    Q8,
}

impl RingFormat {
    fn value_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
            Self::Q8 => 1,
        }
    }

    fn scale_bytes(self) -> usize {
        match self {
            Self::F32 | Self::Bf16 => 0,
            Self::Q8 => 2,
        }
    }

    /// Bytes of 16 positions' keys of a head.
    fn key_tile_bytes(self, width: usize) -> usize {
        PANEL * (width * self.value_bytes() + self.scale_bytes())
    }

    /// Bytes of a position's value of a head, which is whole lanes, without its scale.
    fn value_row_bytes(self, width: usize) -> usize {
        width.next_multiple_of(PANEL) * self.value_bytes()
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
        let slots = capacity.next_multiple_of(PANEL);
        let keys = slots / PANEL * format.key_tile_bytes(heads.width);
        let values = slots * (format.value_row_bytes(heads.width) + format.scale_bytes());
        heads.key * (keys + values)
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
        self.heads.query * self.scratch_row()
    }

    /// Of every query head: a score of each position, and the sums of its output in whole lanes.
    fn scratch_row(&self) -> usize {
        self.slots + self.heads.width.next_multiple_of(PANEL)
    }

    /// Stores a position: `keys` and `values` are `[key head, width]`.
    pub fn write(&mut self, position: u64, keys: &[f32], values: &[f32]) {
        let (slot, width) = (self.slot(position), self.heads.width);
        let heads = keys.chunks_exact(width).zip(values.chunks_exact(width));
        for (head, (keys, values)) in heads.enumerate() {
            self.put(self.key_row(head, slot), keys);
            self.put(self.value_row(head, slot), values);
        }
    }

    /// Appends a stored position to `out`: keys, then values.
    pub fn read(&self, position: u64, out: &mut Vec<f32>) {
        let slot = self.slot(position);
        let keys = (0..self.heads.key).map(|head| self.key_row(head, slot));
        keys.for_each(|row| self.get(row, out));
        let values = (0..self.heads.key).map(|head| self.value_row(head, slot));
        values.for_each(|row| self.get(row, out));
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
        let cost = count * heads * self.format.key_tile_bytes(width) / PANEL * 2;
        let (scratches, outs) = (Rows::new(scratch, self.scratch_row()), Rows::new(out, width));
        split(pool, heads, cost, &|head| {
            // SAFETY: every head is one part of the work, with rows of its own.
            let scratch = unsafe { scratches.row(head) };
            // SAFETY: as above.
            let out = unsafe { outs.row(head) };
            self.attend_head(
                kernels,
                head,
                &query[head * width..(head + 1) * width],
                &runs,
                scratch,
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
        scratch: &mut [f32],
        out: &mut [f32],
    ) {
        let (scores, sums) = scratch.split_at_mut(self.slots);
        sums.fill(0.0);
        let width = self.heads.width;
        let head = head / (self.heads.query / self.heads.key);
        let tile_bytes = self.format.key_tile_bytes(width);
        let keys = &self.bytes()[self.key_row(head, 0).first..];
        for run in runs {
            let tiles = run.start / PANEL..run.end.div_ceil(PANEL);
            let scores = &mut scores[tiles.start * PANEL..tiles.end * PANEL];
            let keys = &keys[tile_bytes * tiles.start..tile_bytes * tiles.end];
            match self.format {
                RingFormat::F32 => {
                    let lanes: &[Lane32] = keys.as_chunks().0;
                    dispatch!(kernels, products::scores_32(lanes, query, scores));
                }
                RingFormat::Bf16 => {
                    let lanes: &[Lane16] = keys.as_chunks().0;
                    dispatch!(kernels, products::scores_16(lanes, query, scores));
                }
                RingFormat::Q8 => {
                    let lanes: &[Lane8] = keys.as_chunks().0;
                    dispatch!(kernels, products::scores_8(lanes, query, scores));
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
        for run in runs {
            self.weigh(kernels, head, run, &mut scores[run.clone()], sums.as_chunks_mut().0);
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = *sum / total;
        }
    }

    /// Adds the values of a run of positions, weighted, to `sums`.
    fn weigh(
        &self,
        kernels: Kernels,
        head: usize,
        run: &Range<usize>,
        weights: &mut [f32],
        sums: &mut [[f32; PANEL]],
    ) {
        let Row { first, scale, .. } = self.value_row(head, run.start);
        let values = &self.bytes()[first..];
        let values = &values[..run.len() * self.format.value_row_bytes(self.heads.width)];
        match self.format {
            RingFormat::F32 => {
                let lanes: &[Lane32] = values.as_chunks().0;
                dispatch!(kernels, products::weigh_32(lanes, weights, sums));
            }
            RingFormat::Bf16 => {
                let lanes: &[Lane16] = values.as_chunks().0;
                dispatch!(kernels, products::weigh_16(lanes, weights, sums));
            }
            RingFormat::Q8 => {
                let scales = self.bytes()[scale..].as_chunks().0;
                for (weight, scale) in weights.iter_mut().zip(scales) {
                    *weight *= widened(*scale);
                }
                let lanes: &[Lane8] = values.as_chunks().0;
                dispatch!(kernels, products::weigh_8(lanes, weights, sums));
            }
        }
    }

    fn slot(&self, position: u64) -> usize {
        (position % self.slots as u64) as usize
    }

    /// Where a position's keys of a head are.
    fn key_row(&self, head: usize, slot: usize) -> Row {
        let width = self.heads.width;
        let tile = head * self.slots / PANEL + slot / PANEL;
        let (start, place) = (tile * self.format.key_tile_bytes(width), slot % PANEL);
        let (value, scale) = (self.format.value_bytes(), self.format.scale_bytes());
        Row {
            first: start + place * value,
            step: PANEL * value,
            scale: start + PANEL * width * value + place * scale,
        }
    }

    /// Where a position's value of a head is.
    fn value_row(&self, head: usize, slot: usize) -> Row {
        let Heads { key: heads, width, .. } = self.heads;
        let (row, scale) = (self.format.value_row_bytes(width), self.format.scale_bytes());
        let keys = heads * self.slots / PANEL * self.format.key_tile_bytes(width);
        let start = keys + head * self.slots * (row + scale);
        Row {
            first: start + slot * row,
            step: self.format.value_bytes(),
            scale: start + self.slots * row + slot * scale,
        }
    }

    fn bytes(&self) -> &[u8] {
        match &self.memory {
            Memory::Small(bytes) => bytes,
            Memory::Huge(bytes) => bytes,
        }
    }

    fn put(&mut self, row: Row, values: &[f32]) {
        let bytes = match &mut self.memory {
            Memory::Small(bytes) => &mut bytes[..],
            Memory::Huge(bytes) => &mut bytes[..],
        };
        let places = (row.first..).step_by(row.step);
        match self.format {
            RingFormat::F32 => {
                for (at, value) in places.zip(values) {
                    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
                }
            }
            RingFormat::Bf16 => {
                for (at, value) in places.zip(values) {
                    let value = bf16::from_f32(*value);
                    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
                }
            }
            RingFormat::Q8 => {
                let bits = EightBits::of(values);
                bytes[row.scale..row.scale + 2].copy_from_slice(&bits.scale().to_le_bytes());
                for (at, value) in places.zip(values) {
                    bytes[at] = bits.round(*value).cast_unsigned();
                }
            }
        }
    }

    fn get(&self, row: Row, out: &mut Vec<f32>) {
        let bytes = self.bytes();
        let places = (row.first..).step_by(row.step).take(self.heads.width);
        match self.format {
            RingFormat::F32 => {
                out.extend(places.map(|at| f32::from_le_bytes(*part(bytes, at))));
            }
            RingFormat::Bf16 => out.extend(places.map(|at| widened(*part(bytes, at)))),
            RingFormat::Q8 => {
                let scale = widened(*part(bytes, row.scale));
                out.extend(places.map(|at| scale * f32::from(bytes[at].cast_signed())));
            }
        }
    }
}

/// Places in a ring, in bytes.
#[derive(Clone, Copy)]
struct Row {
    first: usize,
    /// From one channel to the next.
    step: usize,
    /// Of the scale, where there is one.
    scale: usize,
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
        for (query, key, width) in [(4, 4, 64), (4, 2, 24), (2, 1, 8), (2, 2, 208)] {
            let heads = Heads { query, key, width };
            for format in [RingFormat::F32, RingFormat::Bf16, RingFormat::Q8] {
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

    #[test]
    fn what_was_read_is_stored_as_the_same_bits() {
        let heads = Heads { query: 2, key: 2, width: 40 };
        for format in [RingFormat::F32, RingFormat::Bf16, RingFormat::Q8] {
            let mut ring = PackedRing::new(heads, 20, format).unwrap();
            let mut copy = PackedRing::new(heads, 20, format).unwrap();
            for position in 0..50 {
                let row = noise(2 * heads.key_width(), position as f32);
                let (keys, values) = row.split_at(heads.key_width());
                ring.write(position, keys, values);
                let mut stored = Vec::new();
                ring.read(position, &mut stored);
                let (keys, values) = stored.split_at(heads.key_width());
                copy.write(position, keys, values);
                assert_eq!(copy.bytes(), ring.bytes(), "{format:?}");
            }
        }
    }

    #[test]
    fn eight_bits_take_a_byte_and_their_share_of_a_scale() {
        let heads = Heads { query: 8, key: 4, width: 128 };
        let bytes = |format| PackedRing::bytes_of(heads, 3000, format);
        let values = 2 * 3008 * 4 * 128;
        assert_eq!(bytes(RingFormat::F32), 4 * values);
        assert_eq!(bytes(RingFormat::Bf16), 2 * values);
        assert_eq!(bytes(RingFormat::Q8), values + values / 128 * 2);
        for format in [RingFormat::F32, RingFormat::Bf16, RingFormat::Q8] {
            let ring = PackedRing::new(heads, 3000, format).unwrap();
            assert!(ring.bytes().len() >= bytes(format));
        }
    }

    #[test]
    fn results_do_not_depend_on_threads() {
        // Enough for threads to share even 8 bits.
        let heads = Heads { query: 16, key: 16, width: 128 };
        for format in [RingFormat::F32, RingFormat::Bf16, RingFormat::Q8] {
            let mut ring = PackedRing::new(heads, 128, format).unwrap();
            for position in 0..200 {
                let row = noise(2 * heads.key_width(), position as f32);
                let (keys, values) = row.split_at(heads.key_width());
                ring.write(position, keys, values);
            }
            let query = noise(heads.query_width(), 0.3);
            for kernels in Isa::available().filter_map(Kernels::new) {
                let outs = [1, 2, 3].map(|threads| {
                    let mut scratch = vec![f32::NAN; ring.scratch_len()];
                    let mut out = vec![f32::NAN; heads.query_width()];
                    let pool = Pool::new(threads);
                    ring.attend((kernels, &pool), &query, 80..200, &mut scratch, &mut out);
                    out.iter().map(|value| value.to_bits()).collect::<Vec<_>>()
                });
                assert!(outs.iter().all(|out| *out == outs[0]), "{kernels:?} {format:?}");
            }
        }
    }
}
