//! Rows to look up, and the search for the nearest of them.

use std::sync::OnceLock;

use moshi_kernels::packed::{PackedMatrix, Store};
use moshi_kernels::scalar;

use super::{Cpu, no_memory};
use crate::error::Result;
use crate::exec::{BlockFormat, HostMatrix, HostValues, Storage};

/// What codebooks are searched in where they fit.
const BLOCKS: BlockFormat = BlockFormat::Q8_0;

/// What a codebook of this width is searched in.
pub(super) fn searched_in(width: usize) -> Storage {
    if BLOCKS.bytes_of(width).is_some() { Storage::Blocks(BLOCKS) } else { Storage::Bf16 }
}

/// Relative error of a sum of 256 products in f32, generously; more where there are more.
const SUM_ERROR: f32 = 3e-5;
/// Square root of the smallest square of a float, about.
const TINY: f32 = 1e-22;

/// Rows to look up; prepared for the search when it is first searched.
pub struct Table {
    pub(super) matrix: HostMatrix,
    search: OnceLock<Search>,
}

/// The entries rounded to 8 bits, or bf16 where they are no whole blocks: a quarter or half of the
/// bytes to read. Their scores leave few candidates, among which the true entries decide: the
/// result is that of a search in f32.
struct Search {
    rounded: PackedMatrix,
    half_squared_norms: Vec<f32>,
    /// How wrong the score of a rounded entry may be.
    errors: Vec<Error>,
}

/// By how much the score of one rounded entry may be wrong, as parts of the length of `x`, of what
/// rounding takes from `x`, and always: entry, `x`, sum and difference are rounded.
#[derive(Clone, Copy)]
struct Error {
    of_length: f32,
    of_rounding: f32,
    always: f32,
}

impl Table {
    pub(super) fn new(matrix: HostMatrix) -> Self {
        Self { matrix, search: OnceLock::new() }
    }

    fn search(&self, exec: &Cpu) -> Result<&Search> {
        if let Some(search) = self.search.get() {
            return Ok(search);
        }
        let search = Search::new(exec, &self.matrix)?;
        Ok(self.search.get_or_init(|| search))
    }

    /// The nearest entry to every row of `x`, the first of equals.
    pub(super) fn nearest(&self, exec: &Cpu, x: &[f32], codes: &mut [u32]) -> Result<()> {
        let search = self.search(exec)?;
        let mut scores = exec.buffer(codes.len(), self.matrix.rows);
        exec.product_of(x, &search.rounded, Store::Set(None), scores.values_mut());
        let rows = x.chunks_exact(self.matrix.cols);
        let scores = scores.values_mut().chunks_exact_mut(self.matrix.rows);
        for ((code, x), scores) in codes.iter_mut().zip(rows).zip(scores) {
            *code = search.nearest(self.entries(), x, scores) as u32;
        }
        Ok(())
    }

    /// Takes off the entry of its code from every row of `x`.
    pub(super) fn subtract(&self, x: &mut [f32], codes: &[u32]) {
        let width = self.matrix.cols;
        for (row, &code) in x.chunks_exact_mut(width).zip(codes) {
            let entry = &self.entries()[code as usize * width..(code as usize + 1) * width];
            row.iter_mut().zip(entry).for_each(|(value, entry)| *value -= entry);
        }
    }

    fn entries(&self) -> &[f32] {
        floats(&self.matrix)
    }
}

impl Search {
    fn new(exec: &Cpu, codebook: &HostMatrix) -> Result<Self> {
        let (rows, cols) = (codebook.rows, codebook.cols);
        let entries = floats(codebook);
        // Values may be too large for the scales of blocks.
        let stored = [searched_in(cols), Storage::Bf16]
            .into_iter()
            .find_map(|storage| codebook.clone().store(storage))
            .expect("anything fits bf16");
        let rounded = PackedMatrix::pack_on(exec.packer(), rows, cols, stored.as_ref())
            .map_err(|e| no_memory(&e))?;
        let sums = SUM_ERROR * (cols as f32 / 256.0).max(1.0);
        let error = |(row, entry): (usize, &[f32])| {
            let squares = entry.iter().zip(stored.row(row)).map(|(a, b)| (a - b) * (a - b));
            let rounding = squares.sum::<f32>().sqrt() + TINY;
            let length = scalar::dot(entry, entry).sqrt() + TINY;
            Error {
                of_length: rounding + sums * length,
                of_rounding: length + rounding,
                always: f32::EPSILON * length * length,
            }
        };
        Ok(Self {
            rounded,
            half_squared_norms: entries
                .chunks_exact(cols)
                .map(|row| scalar::dot(row, row) / 2.0)
                .collect(),
            errors: entries.chunks_exact(cols).enumerate().map(error).collect(),
        })
    }

    /// `scores` are the products of `x` with the rounded entries.
    fn nearest(&self, entries: &[f32], x: &[f32], scores: &mut [f32]) -> usize {
        let exact = self.candidates(x, scores).map(|index| {
            let entry = &entries[index * x.len()..(index + 1) * x.len()];
            (index, self.half_squared_norms[index] - scalar::dot(x, entry))
        });
        first_smallest(exact)
    }

    /// The entries that may be the nearest, in order.
    fn candidates(&self, x: &[f32], scores: &mut [f32]) -> impl Iterator<Item = usize> {
        let length = scalar::dot(x, x).sqrt() + TINY;
        let rounds = self.rounded.packing().rounds_activations();
        let rounding = if rounds { rounding_of(x) } else { 0.0 };
        let mut limit = f32::INFINITY;
        for ((score, norm), error) in
            scores.iter_mut().zip(&self.half_squared_norms).zip(&self.errors)
        {
            let error = length * error.of_length + rounding * error.of_rounding + error.always;
            // From here on, the smallest that the score can be.
            limit = limit.min(norm - *score + error);
            *score = norm - *score - error;
        }
        // Where numbers are too large to tell, an entry is a candidate.
        let scores = scores.iter().enumerate();
        let may_be = move |least: f32| least <= limit || least.is_nan() || !limit.is_finite();
        scores.filter(move |&(_, &least)| may_be(least)).map(|(index, _)| index)
    }
}

fn floats(codebook: &HostMatrix) -> &[f32] {
    let HostValues::F32(values) = &codebook.values else {
        unreachable!("codebooks are stored in f32");
    };
    values
}

/// Largest distance of `x` from what is made of it for weights of few bits: half a step of each block.
fn rounding_of(x: &[f32]) -> f32 {
    let width = BLOCKS.weights();
    let block = |x: &[f32]| largest(x.iter().map(|value| value.abs())) / 127.0 * 0.51;
    let squares = x.chunks(width).map(block).map(|step| width as f32 * step * step);
    squares.sum::<f32>().sqrt() + TINY
}

fn largest(values: impl Iterator<Item = f32>) -> f32 {
    values.fold(0.0, f32::max)
}

/// Index of the smallest value, the first of equals; 0 of none.
fn first_smallest(values: impl Iterator<Item = (usize, f32)>) -> usize {
    let keep = |best: (usize, f32), next: (usize, f32)| if next.1 < best.1 { next } else { best };
    values.fold((0, f32::INFINITY), keep).0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::Isa;
    use crate::stages::Noise;

    #[test]
    fn the_first_of_equals_is_nearest() {
        assert_eq!(first_smallest([(4, 3.0), (7, 1.0), (9, 1.0)].into_iter()), 7);
    }

    /// The nearest entry, without any rounding or candidate.
    fn nearest(table: &Table, x: &[f32]) -> u32 {
        let half = |row: &[f32]| scalar::dot(row, row) / 2.0 - scalar::dot(x, row);
        let scores = table.entries().chunks_exact(x.len()).map(half).enumerate();
        first_smallest(scores) as u32
    }

    #[test]
    fn the_rounded_search_finds_what_a_search_in_f32_finds() {
        for exec in Isa::available().filter_map(|isa| Cpu::with(isa, Some(1))) {
            // In 8 bits, and in bf16.
            for cols in [64, 45] {
                compare(&exec, cols);
            }
        }
    }

    fn compare(exec: &Cpu, cols: usize) {
        let mut noise = Noise::new(5);
        let (rows, count) = (256, 200);
        let mut entries = noise.take(rows * cols);
        // Many entries that few bits cannot tell apart.
        for row in 1..64 {
            let (first, rest) = entries.split_at_mut(row * cols);
            for (value, other) in rest[..cols].iter_mut().zip(first) {
                *value = *other * (1.0 + row as f32 * 1e-5);
            }
        }
        let x = noise.take(count * cols);
        for scale in [1.0, 1e-3, 1e4, 1e15, 1e19, 1e30] {
            let scaled = entries.iter().map(|value| value * scale).collect();
            let table = Table::new(HostMatrix::floats(rows, cols, scaled));
            let near = x.iter().map(|value| value * scale).collect::<Vec<_>>();
            // At the entries themselves, too.
            for x in [&near, &table.entries().to_vec()] {
                let mut codes = vec![0; x.len() / cols];
                table.nearest(exec, x, &mut codes).unwrap();
                for (x, code) in x.chunks_exact(cols).zip(codes) {
                    assert_eq!(code, nearest(&table, x), "at scale {scale}");
                }
            }
        }
    }

    #[test]
    fn odd_rows_and_entries_have_a_nearest_too() {
        let exec = Cpu::new(Some(1)).unwrap();
        let mut noise = Noise::new(8);
        let mut entries = noise.take(64 * 32);
        // Too large for either.
        entries[5 * 32] = f32::MAX;
        let table = Table::new(HostMatrix::floats(64, 32, entries));
        let near = table.entries()[9 * 32..10 * 32].to_vec();
        for x in [vec![0.0; 32], near, vec![f32::MIN_POSITIVE; 32]] {
            let mut code = [99];
            table.nearest(&exec, &x, &mut code).unwrap();
            assert_eq!(code[0], nearest(&table, &x), "{x:?}");
        }
        let mut code = [99];
        table.nearest(&exec, &[f32::NAN; 32], &mut code).unwrap();
        assert_eq!(code, [0], "no entry is near to what is no number");
    }

    #[test]
    fn few_entries_are_compared_in_full() {
        let exec = Cpu::new(Some(1)).unwrap();
        let mut noise = Noise::new(6);
        let (rows, cols) = (2048, 256);
        let mut entries = noise.take(rows * cols);
        // One that is far from all others takes nothing from their bounds.
        entries[7 * cols..8 * cols].iter_mut().for_each(|value| *value *= 100.0);
        let table = Table::new(HostMatrix::floats(rows, cols, entries));
        let search = table.search(&exec).unwrap();
        let x = noise.take(cols);
        let mut scores = vec![0.0; rows];
        exec.product_of(&x, &search.rounded, Store::Set(None), &mut scores);
        let count = search.candidates(&x, &mut scores).count();
        assert!((1..64).contains(&count), "{count} of {rows} are candidates");
    }
}
