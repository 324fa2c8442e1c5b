//! Matrices in the order in which a product reads them, and that product.
//!
//! Outputs are cut into panels of 16, padded with zeros. A panel holds its weights input by input
//! (floats) or in tiles of 32 or 256 inputs (few bits), so that the inner loop reads memory from end to
//! end, multiplies 16 outputs at once, and needs no sums across a register:
//!
//! | format | a tile of 16 outputs and 32 inputs, 256 of `Q4K` | bits per weight |
//! |---|---|---|
//! | `Q8` | 8 × 64 B: of every output four weights plus 128; 16 × f16 scales | 8.5 |
//! | `Q4` | 4 × 64 B: low nibbles inputs 4g.., high nibbles 16+4g.., plus 8; 16 × f16 scales | 4.5 |
//! | `Q4Affine` | as `Q4` without the 8; then 16 × f16 offsets | 5 |
//! | `Q4K` | 8 tiles as of `Q4Affine`, together: 16 × f16 scales and offsets, times 8 × 16 bytes | 4.625 |
//! | `Bf16`, `F32` | input by input 16 weights | 16, 32 |
//!
//! Activations are rounded to 8 bits in blocks of 32 for the formats of few bits, and stay f32 for
//! the others. All rows of a product share one pass over the weights, eight at a time.
//!
//! The layout follows no instruction set: a packed matrix gives the same values everywhere, equal
//! bits for few bits, up to the rounding of sums for floats.
#![allow(unsafe_code, reason = "kernels for a detected instruction set")]

/// Calls the variant of a kernel for the instruction set of `Kernels`.
macro_rules! dispatch {
    ($kernels:expr, $module:ident::$function:ident($($argument:expr),* $(,)?)) => {
        match $kernels.isa() {
            // SAFETY: a value of `Kernels` exists only where its instruction set was detected.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { $module::avx2::$function($($argument),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => unsafe { $module::avx512::$function($($argument),*) },
            _ => $module::scalar::$function($($argument),*),
        }
    };
}

mod activations;
mod elementwise;
mod lanes;
mod outputs;
mod pack;
mod products;
mod ring;
#[cfg(test)]
mod tests;

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

pub use activations::Quantised;
pub use ring::{PackedRing, RingFormat};

use crate::arena::{Arena, Piece};
use crate::isa::Isa;
use crate::pool::Pool;
use crate::rows::Rows;
use crate::scalar::{BlockFormat, MatrixRef};
use outputs::Outputs;
use pack::pack_row;
pub use products::FloatRows;
use products::{BLOCK, K_BLOCKS, Lane16, Lane32, PANEL, Tile4, Tile4Affine, Tile4K, Tile8};

/// How a packed matrix stores its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// 8 bits and a scale for every 32 inputs.
    Q8,
    /// 4 bits and a scale for every 32 inputs.
    Q4,
    /// 4 bits, a scale and an offset for every 32 inputs.
    Q4Affine,
    /// 4 bits, a byte of scale and of offset for every 32 inputs, 16 bits of both for 256.
    Q4K,
    /// bfloat16.
    Bf16,
    /// 32-bit floats.
    F32,
}

impl Packing {
    /// What a matrix of this storage is packed to.
    pub fn of(matrix: MatrixRef<'_>) -> Self {
        match matrix {
            MatrixRef::F32(_) => Self::F32,
            MatrixRef::Bf16(_) => Self::Bf16,
            MatrixRef::Blocks(BlockFormat::Q8_0, _) => Self::Q8,
            MatrixRef::Blocks(BlockFormat::Q4_0, _) => Self::Q4,
            MatrixRef::Blocks(BlockFormat::Q4_1, _) => Self::Q4Affine,
            MatrixRef::Blocks(BlockFormat::Q4K, _) => Self::Q4K,
        }
    }

    /// Bytes of a packed matrix.
    pub fn bytes_of(self, rows: usize, cols: usize) -> usize {
        rows.div_ceil(PANEL) * self.panel_bytes(cols)
    }

    fn panel_bytes(self, cols: usize) -> usize {
        match self {
            Self::Q8 => cols.div_ceil(BLOCK) * size_of::<Tile8>(),
            Self::Q4 => cols.div_ceil(BLOCK) * size_of::<Tile4>(),
            Self::Q4Affine => cols.div_ceil(BLOCK) * size_of::<Tile4Affine>(),
            Self::Q4K => cols.div_ceil(K_BLOCKS * BLOCK) * size_of::<Tile4K>(),
            Self::Bf16 => cols * size_of::<Lane16>(),
            Self::F32 => cols * size_of::<Lane32>(),
        }
    }

    /// True when activations are rounded to 8 bits.
    pub fn rounds_activations(self) -> bool {
        matches!(self, Self::Q8 | Self::Q4 | Self::Q4Affine | Self::Q4K)
    }
}

/// A matrix `[out, in]` in panels.
#[derive(Debug)]
pub struct PackedMatrix {
    rows: usize,
    cols: usize,
    packing: Packing,
    piece: Piece,
}

/// What happens to a product before it is stored.
#[derive(Clone, Copy, Debug)]
pub enum Store<'a> {
    /// `y = product + bias`, `[out]` or nothing.
    Set(Option<&'a [f32]>),
    /// `y += scale * product`, `[out]` or 1.
    Add(Option<&'a [f32]>),
}

/// The kernels of one instruction set, proof that the processor has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernels(Isa);

impl Kernels {
    /// The kernels for `isa`; `None` where the processor lacks it.
    pub fn new(isa: Isa) -> Option<Self> {
        isa.is_available().then_some(Self(isa))
    }

    /// The instruction set.
    pub fn isa(self) -> Isa {
        self.0
    }
}

impl PackedMatrix {
    /// Name of the form of [`PackedMatrix::packed`]: another one after every change of it.
    pub const FORM: &str = "panels of 16, 2";

    /// A matrix from the bytes that [`PackedMatrix::packed`] gave of one of this shape and packing;
    /// `None` for a wrong number of bytes.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn from_packed(
        (arena, pool): (&Arena, &Pool),
        rows: usize,
        cols: usize,
        packing: Packing,
        bytes: &[u8],
    ) -> io::Result<Option<Self>> {
        if bytes.len() != packing.bytes_of(rows, cols) {
            return Ok(None);
        }
        let mut piece = arena.take(bytes.len())?;
        let parts = Rows::new(piece.bytes_mut(), COPIED_BYTES);
        let whole = bytes.len() / COPIED_BYTES;
        split(pool, whole, bytes.len(), &|part| {
            // SAFETY: every part of the bytes is one part of the work.
            let to = unsafe { parts.row(part) };
            to.copy_from_slice(&bytes[part * COPIED_BYTES..(part + 1) * COPIED_BYTES]);
        });
        let rest = whole * COPIED_BYTES;
        piece.bytes_mut()[rest..].copy_from_slice(&bytes[rest..]);
        Ok(Some(Self { rows, cols, packing, piece }))
    }

    /// Packs a matrix `[rows, cols]`, with one thread. Blocks must be those of whole rows.
    ///
    /// # Errors
    /// When there is no memory for it.
    ///
    /// # Panics
    /// If the lengths do not fit together: a bug of the caller.
    pub fn pack(
        arena: &Arena,
        rows: usize,
        cols: usize,
        matrix: MatrixRef<'_>,
    ) -> io::Result<Self> {
        Self::pack_on((arena, &Pool::new(1)), rows, cols, matrix)
    }

    /// As [`PackedMatrix::pack`], on the threads of a pool.
    ///
    /// # Errors
    /// As [`PackedMatrix::pack`].
    ///
    /// # Panics
    /// As [`PackedMatrix::pack`].
    pub fn pack_on(
        (arena, pool): (&Arena, &Pool),
        rows: usize,
        cols: usize,
        matrix: MatrixRef<'_>,
    ) -> io::Result<Self> {
        Self::pack_panels((arena, pool), rows, cols, Packing::of(matrix), matrix, |panel, range| {
            for (lane, row) in range.enumerate() {
                pack_row(panel, lane, matrix, row, cols);
            }
        })
    }

    /// As [`PackedMatrix::pack_on`], after rounding to blocks of `format`; `None` when values are too
    /// large for them. Rows must be whole blocks.
    ///
    /// # Errors
    /// As [`PackedMatrix::pack`].
    ///
    /// # Panics
    /// As [`PackedMatrix::pack`].
    pub fn pack_rounded(
        (arena, pool): (&Arena, &Pool),
        rows: usize,
        cols: usize,
        matrix: MatrixRef<'_>,
        format: BlockFormat,
    ) -> io::Result<Option<Self>> {
        let too_large = AtomicBool::new(false);
        let packing = Packing::of(MatrixRef::Blocks(format, &[]));
        let pack = |panel: &mut [u8], range: Range<usize>| {
            let mut values = vec![0.0; cols];
            for (lane, row) in range.enumerate() {
                matrix.row(row, cols, &mut values);
                match format.encode(&values) {
                    Some(blocks) => {
                        pack_row(panel, lane, MatrixRef::Blocks(format, &blocks), 0, cols);
                    }
                    None => too_large.store(true, Ordering::Relaxed),
                }
            }
        };
        let packed = Self::pack_panels((arena, pool), rows, cols, packing, matrix, pack)?;
        Ok((!too_large.into_inner()).then_some(packed))
    }

    /// Calls `pack` for every panel and the rows in it.
    fn pack_panels(
        (arena, pool): (&Arena, &Pool),
        rows: usize,
        cols: usize,
        packing: Packing,
        matrix: MatrixRef<'_>,
        pack: impl Fn(&mut [u8], Range<usize>) + Sync,
    ) -> io::Result<Self> {
        assert_eq!(matrix.len(), rows * cols, "weight is not [out, in]");
        let mut piece = arena.take(packing.bytes_of(rows, cols))?;
        let panel_bytes = packing.panel_bytes(cols);
        if panel_bytes > 0 {
            let panels = Rows::new(piece.bytes_mut(), panel_bytes);
            split(pool, rows.div_ceil(PANEL), rows * cols, &|panel| {
                // SAFETY: every panel is one part of the work.
                let bytes = unsafe { panels.row(panel) };
                pack(bytes, panel * PANEL..((panel + 1) * PANEL).min(rows));
            });
        }
        Ok(Self { rows, cols, packing, piece })
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The format.
    pub fn packing(&self) -> Packing {
        self.packing
    }

    /// Adds row `row` of a matrix of floats to `out`, `[in]`.
    ///
    /// # Panics
    /// If the matrix has few bits, or no such row: bugs of the caller.
    pub fn add_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && self.packing == Packing::F32, "a row of floats");
        let panel = &self.piece.bytes()[row / PANEL * self.packing.panel_bytes(self.cols)..];
        let lanes: &[Lane32] = panel.as_chunks().0;
        for (out, lane) in out.iter_mut().zip(lanes) {
            *out += f32::from_le_bytes(lane.as_chunks().0[row % PANEL]);
        }
    }

    /// Bytes that a product reads.
    pub fn bytes(&self) -> usize {
        self.packed().len()
    }

    /// The weights as they lie in memory, the same for every instruction set.
    pub fn packed(&self) -> &[u8] {
        self.piece.bytes()
    }

    /// `y = W x` for rows of floats. `y` is `[row, out]`.
    ///
    /// # Panics
    /// If the lengths do not fit together, or the format rounds activations: bugs of the caller.
    pub fn multiply(
        &self,
        (kernels, pool): (Kernels, &Pool),
        x: FloatRows<'_>,
        store: Store<'_>,
        y: &mut [f32],
    ) {
        let Some(rows) = self.rows_of(y) else { return };
        let out = Outputs::new(y, self.rows, store);
        let bytes = self.piece.bytes();
        let blocks = rows.div_ceil(ROWS_OF_A_PART);
        let units = self.rows.div_ceil(2 * PANEL) * blocks;
        let lanes = 2 * self.cols;
        let of = |unit: usize| {
            let (pair, block) = (unit / blocks, unit % blocks);
            let rows = block * ROWS_OF_A_PART..((block + 1) * ROWS_OF_A_PART).min(rows);
            (pair, (x, rows, self.cols))
        };
        let cost = self.bytes().max(self.rows * self.cols * rows);
        match self.packing {
            Packing::F32 => {
                let all: &[Lane32] = bytes.as_chunks().0;
                split(pool, units, cost, &|unit| {
                    let (pair, x) = of(unit);
                    let lanes = &all[pair * lanes..((pair + 1) * lanes).min(all.len())];
                    dispatch!(kernels, products::float_rows(lanes, x, &out, 2 * pair));
                });
            }
            Packing::Bf16 => {
                let all: &[Lane16] = bytes.as_chunks().0;
                split(pool, units, cost, &|unit| {
                    let (pair, x) = of(unit);
                    let lanes = &all[pair * lanes..((pair + 1) * lanes).min(all.len())];
                    dispatch!(kernels, products::half_float_rows(lanes, x, &out, 2 * pair));
                });
            }
            _ => panic!("this format takes rounded activations"),
        }
    }

    /// As [`PackedMatrix::multiply`] for rows of rounded activations.
    ///
    /// # Panics
    /// If the lengths do not fit together, or the format takes floats: bugs of the caller.
    pub fn multiply_rounded(
        &self,
        (kernels, pool): (Kernels, &Pool),
        x: &Quantised,
        store: Store<'_>,
        y: &mut [f32],
    ) {
        let Some(rows) = self.rows_of(y) else { return };
        assert_eq!((x.rows(), x.width()), (rows, self.cols), "input of another shape");
        let x = (x, rows);
        let out = Outputs::new(y, self.rows, store);
        let bytes = self.piece.bytes();
        let (panels, tiles) = (self.rows.div_ceil(PANEL), self.cols / BLOCK);
        let of = |panel: usize| panel * tiles..(panel + 1) * tiles;
        match self.packing {
            Packing::Q8 => {
                let all: &[Tile8] = bytes.as_chunks().0;
                split(pool, panels, self.bytes(), &|panel| {
                    dispatch!(kernels, products::eight_bits_rows(&all[of(panel)], x, &out, panel));
                });
            }
            Packing::Q4 => {
                let all: &[Tile4] = bytes.as_chunks().0;
                split(pool, panels, self.bytes(), &|panel| {
                    dispatch!(kernels, products::four_bits_rows(&all[of(panel)], x, &out, panel));
                });
            }
            Packing::Q4Affine => {
                let all: &[Tile4Affine] = bytes.as_chunks().0;
                split(pool, panels, self.bytes(), &|panel| {
                    dispatch!(kernels, products::affine_rows(&all[of(panel)], x, &out, panel));
                });
            }
            Packing::Q4K => {
                let all: &[Tile4K] = bytes.as_chunks().0;
                let tiles = tiles / K_BLOCKS;
                split(pool, panels, self.bytes(), &|panel| {
                    let tiles = &all[panel * tiles..(panel + 1) * tiles];
                    dispatch!(kernels, products::k_rows(tiles, x, &out, panel));
                });
            }
            _ => panic!("this format takes floats"),
        }
    }

    /// Rows of an output; `None` when there is nothing to compute.
    fn rows_of(&self, y: &[f32]) -> Option<usize> {
        let rows = y.len().checked_div(self.rows)?;
        assert_eq!(y.len(), rows * self.rows, "output is not [rows, out]");
        (rows > 0 && self.cols > 0).then_some(rows)
    }
}

/// Calls `work` with every number below `units`, in parts for the threads of the pool where `cost`,
/// roughly bytes, is worth waking them.
pub(crate) fn split(pool: &Pool, units: usize, cost: usize, work: &(dyn Fn(usize) + Sync)) {
    if pool.capacity() == 1 || cost < LEAST_SHARED {
        (0..units).for_each(work);
        return;
    }
    let threads = pool.threads();
    let parts = (cost / LEAST_PART).clamp(threads, PARTS_PER_THREAD * threads).min(units);
    pool.run(parts, &|part| {
        (start_of(part, (parts, threads), units)..start_of(part + 1, (parts, threads), units))
            .for_each(work);
    });
}

/// Where a part begins: first a large one for every thread, since what is asked for ahead at the end
/// of one is another thread's; then small ones, for whoever is free.
fn start_of(part: usize, (parts, threads): (usize, usize), units: usize) -> usize {
    if parts < 2 * threads {
        return units * part / parts;
    }
    let large = units * LARGE_SHARE[0] / LARGE_SHARE[1];
    match part.checked_sub(threads) {
        None => large * part / threads,
        Some(small) => large + (units - large) * small / (parts - threads),
    }
}

/// Bytes that a part of a copy takes.
const COPIED_BYTES: usize = 1 << 18;
/// Rows of floats that a part of a product takes: long convolutions have few outputs and many rows.
const ROWS_OF_A_PART: usize = 64;
/// Below this, a thread is slower to come than the work takes.
const LEAST_SHARED: usize = 128 << 10;
/// More parts than threads, so that those who are late take fewer, and wait for little at the end.
const PARTS_PER_THREAD: usize = 8;
/// What the large parts of all threads take of the work.
const LARGE_SHARE: [usize; 2] = [5, 8];
/// Below this, taking a part costs as much as working on it.
const LEAST_PART: usize = 32 << 10;
