//! Matrices on the host, in the form in which executors store them.

use half::bf16;
use moshi_kernels::scalar::{BlockFormat, MatrixRef};

/// How the values of a matrix are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Storage {
    /// 32-bit floats.
    F32,
    /// bfloat16, widened to f32 before every use.
    Bf16,
    /// Blocks of few bits. Executors decode them to f32, or round activations to 8 bits for them.
    Blocks(BlockFormat),
}

impl Storage {
    /// Bytes of a matrix of `rows` rows of `cols` values.
    pub fn bytes_of(self, rows: usize, cols: usize) -> u64 {
        let (count, bytes) = match self {
            Self::F32 => (cols, 4),
            Self::Bf16 => (cols, 2),
            Self::Blocks(format) => (cols.div_ceil(format.weights()), format.bytes()),
        };
        rows as u64 * count as u64 * bytes as u64
    }
}

/// The values of a matrix.
#[derive(Clone, Debug)]
pub enum HostValues {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// bfloat16.
    Bf16(Vec<bf16>),
    /// Rows of whole blocks.
    Blocks(BlockFormat, Vec<u8>),
}

/// A matrix on the host, `[rows, cols]` row-major.
#[derive(Clone, Debug)]
pub struct HostMatrix {
    /// Output channels, entries of a table.
    pub rows: usize,
    /// Input channels, width of an entry.
    pub cols: usize,
    /// `rows * cols` values.
    pub values: HostValues,
}

impl HostMatrix {
    /// A matrix of 32-bit floats.
    pub fn floats(rows: usize, cols: usize, data: Vec<f32>) -> Self {
        debug_assert_eq!(rows * cols, data.len());
        Self { rows, cols, values: HostValues::F32(data) }
    }

    /// Storage of the values.
    pub fn storage(&self) -> Storage {
        match &self.values {
            HostValues::F32(_) => Storage::F32,
            HostValues::Bf16(_) => Storage::Bf16,
            HostValues::Blocks(format, _) => Storage::Blocks(*format),
        }
    }

    /// The matrix as kernels take it.
    pub fn as_ref(&self) -> MatrixRef<'_> {
        match &self.values {
            HostValues::F32(data) => MatrixRef::F32(data),
            HostValues::Bf16(data) => MatrixRef::Bf16(data),
            HostValues::Blocks(format, bytes) => MatrixRef::Blocks(*format, bytes),
        }
    }

    /// Adds row `index` to `out` (`[cols]`).
    pub fn add_row(&self, index: usize, out: &mut [f32]) {
        let range = index * self.cols..(index + 1) * self.cols;
        match &self.values {
            HostValues::F32(data) => {
                out.iter_mut().zip(&data[range]).for_each(|(out, value)| *out += value);
            }
            HostValues::Bf16(data) => {
                out.iter_mut().zip(&data[range]).for_each(|(out, value)| *out += value.to_f32());
            }
            HostValues::Blocks(format, bytes) => {
                let row = format.bytes_of(self.cols).expect("rows are whole blocks");
                let blocks = bytes[index * row..(index + 1) * row].chunks_exact(format.bytes());
                let mut values = [0.0; BlockFormat::MOST_WEIGHTS];
                let values = &mut values[..format.weights()];
                for (block, out) in blocks.zip(out.chunks_exact_mut(format.weights())) {
                    format.decode(block, values);
                    out.iter_mut().zip(&*values).for_each(|(out, value)| *out += value);
                }
            }
        }
    }

    /// Row `index` as floats, `[cols]`.
    pub fn row(&self, index: usize) -> Vec<f32> {
        let mut row = vec![0.0; self.cols];
        self.add_row(index, &mut row);
        row
    }

    /// Makes row `to` a copy of row `from`.
    pub fn copy_row(&mut self, from: usize, to: usize) {
        let copy = |width: usize| (from * width..(from + 1) * width, to * width);
        let (range, to) = match &self.values {
            HostValues::Blocks(format, _) => {
                copy(format.bytes_of(self.cols).expect("rows are whole blocks"))
            }
            _ => copy(self.cols),
        };
        match &mut self.values {
            HostValues::F32(data) => data.copy_within(range, to),
            HostValues::Bf16(data) => data.copy_within(range, to),
            HostValues::Blocks(_, bytes) => bytes.copy_within(range, to),
        }
    }

    /// The first `rows` rows and the others.
    pub fn split_rows(self, rows: usize) -> (Self, Self) {
        let cols = self.cols;
        let (first, second) = match self.values {
            HostValues::F32(mut data) => {
                let rest = data.split_off(rows * cols);
                (HostValues::F32(data), HostValues::F32(rest))
            }
            HostValues::Bf16(mut data) => {
                let rest = data.split_off(rows * cols);
                (HostValues::Bf16(data), HostValues::Bf16(rest))
            }
            HostValues::Blocks(format, mut bytes) => {
                let row = format.bytes_of(cols).expect("rows are whole blocks");
                let rest = bytes.split_off(rows * row);
                (HostValues::Blocks(format, bytes), HostValues::Blocks(format, rest))
            }
        };
        let others = self.rows - rows;
        (Self { rows, cols, values: first }, Self { rows: others, cols, values: second })
    }

    /// The values as floats.
    pub fn into_floats(self) -> Vec<f32> {
        match self.values {
            HostValues::F32(data) => data,
            HostValues::Bf16(data) => data.into_iter().map(bf16::to_f32).collect(),
            HostValues::Blocks(format, bytes) => {
                let mut data = vec![0.0; self.rows * self.cols];
                format.decode(&bytes, &mut data);
                data
            }
        }
    }

    /// The matrix in f32.
    pub fn widened(self) -> Self {
        Self::floats(self.rows, self.cols, self.into_floats())
    }

    /// Converts to a storage. `None` when its values or its width do not fit that storage: rows
    /// that are not whole blocks, a scale beyond 16-bit floats.
    pub fn store(self, storage: Storage) -> Option<Self> {
        if self.storage() == storage {
            return Some(self);
        }
        let (rows, cols) = (self.rows, self.cols);
        let data = self.into_floats();
        let values = match storage {
            Storage::F32 => HostValues::F32(data),
            Storage::Bf16 => HostValues::Bf16(data.into_iter().map(bf16::from_f32).collect()),
            Storage::Blocks(format) => {
                format.bytes_of(cols)?;
                HostValues::Blocks(format, format.encode(&data)?)
            }
        };
        Some(Self { rows, cols, values })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix() -> HostMatrix {
        HostMatrix::floats(4, 32, (0..128u8).map(f32::from).collect())
    }

    #[test]
    fn rows_are_the_same_in_every_storage() {
        for storage in [Storage::F32, Storage::Bf16, Storage::Blocks(BlockFormat::Q8_0)] {
            let mut stored = matrix().store(storage).unwrap();
            assert_eq!(stored.storage(), storage);
            let (first, second) = stored.clone().split_rows(1);
            assert_eq!((first.rows, second.rows), (1, 3));
            assert_eq!(first.row(0), stored.row(0));
            assert_eq!(second.row(2), stored.row(3));
            stored.copy_row(3, 0);
            assert_eq!(stored.row(0), second.row(2));
            assert_eq!(stored.clone().into_floats()[..32], stored.row(0));
        }
    }

    #[test]
    fn what_does_not_fit_blocks_is_refused() {
        let blocks = Storage::Blocks(BlockFormat::Q8_0);
        assert!(HostMatrix::floats(1, 33, vec![0.0; 33]).store(blocks).is_none());
        assert!(HostMatrix::floats(1, 32, vec![1e30; 32]).store(blocks).is_none());
    }
}
