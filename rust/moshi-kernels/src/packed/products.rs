//! The inner loops: panels of 16 outputs times rows of activations, once for every instruction set.
//!
//! An output is one chain of sums in the order of its inputs, whatever the number of rows and
//! panels that are computed beside it.
#![allow(
    clippy::inline_always,
    reason = "compiled for the instruction set of the caller only where it is inlined"
)]

use std::ops::Range;

use super::activations::{Block, Quantised};
use super::lanes;
use super::outputs::{Outputs, Whole};

/// Inputs of a block of few bits.
pub(super) const BLOCK: usize = 32;
/// Outputs of a panel.
pub(super) const PANEL: usize = 16;
/// Eight groups of weights, then a scale of 16 bits for every output.
pub(super) type Tile8 = [u8; 8 * 64 + 32];
/// Four groups of weights, then a scale of 16 bits for every output.
pub(super) type Tile4 = [u8; 4 * 64 + 32];
/// As [`Tile4`], then an offset of 16 bits for every output.
pub(super) type Tile4Affine = [u8; 4 * 64 + 64];
/// Eight times the weights of [`Tile4`]; then for every output a scale and an offset of 16 bits, and
/// eight times a byte of scale, eight times a byte of offset, of which 6 bits are used.
pub(super) type Tile4K = [u8; K_PARTS[3] + K_BLOCKS * PANEL];
/// Blocks that share the scale and the offset of 16 bits in [`Tile4K`].
pub(super) const K_BLOCKS: usize = 8;
/// Where they lie in it: scales and offsets of 16 bits, then bytes of scales and of offsets.
pub(super) const K_PARTS: [usize; 4] = {
    let scales = K_BLOCKS * 4 * 64;
    let bytes = scales + 2 * 2 * PANEL;
    [scales, scales + 2 * PANEL, bytes, bytes + K_BLOCKS * PANEL]
};
/// One input's weights of 16 outputs.
pub(super) type Lane32 = [u8; 4 * PANEL];
/// One input's weights of 16 outputs in bf16.
pub(super) type Lane16 = [u8; 2 * PANEL];
/// One channel's keys of 16 positions in 8 bits, or 16 channels of a value.
pub(super) type Lane8 = [u8; PANEL];

/// Positions whose values a cache of 32 KiB holds, whatever their width.
const VALUE_POSITIONS: usize = 32;

/// A number that is stored in bf16.
#[inline(always)]
pub(super) fn widened(bytes: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
}

/// Slices of one length, which the compiler then knows: `map` would hide it.
#[inline(always)]
fn cut<T, const N: usize>(mut slices: [&[T]; N], len: usize) -> [&[T]; N] {
    for slice in &mut slices {
        *slice = &slice[..len];
    }
    slices
}

/// Part of an array at a fixed place.
#[inline(always)]
pub(super) fn part<const N: usize>(bytes: &[u8], at: usize) -> &[u8; N] {
    bytes[at..at + N].try_into().expect("a constant range")
}

/// Rows of floats, in groups of as many: rows of a group start `stride` apart and may overlap, as
/// the windows of a convolution do, and groups start `group_stride` apart.
#[derive(Clone, Copy, Debug)]
pub struct FloatRows<'a> {
    /// All values.
    pub x: &'a [f32],
    /// Values between the starts of rows.
    pub stride: usize,
    /// Rows of a group.
    pub rows_per_group: usize,
    /// Values between the starts of groups.
    pub group_stride: usize,
}

impl<'a> FloatRows<'a> {
    /// Rows of `width` values, one after the other.
    pub fn adjacent(x: &'a [f32], width: usize) -> Self {
        Self { x, stride: width, rows_per_group: usize::MAX, group_stride: 0 }
    }

    #[inline(always)]
    pub(super) fn row(&self, row: usize, width: usize) -> &'a [f32] {
        let [row] = self.take(row, width);
        row
    }

    /// `N` rows from `first` on.
    #[inline(always)]
    fn take<const N: usize>(&self, first: usize, width: usize) -> [&'a [f32]; N] {
        let (mut group, mut place) = (first / self.rows_per_group, first % self.rows_per_group);
        let mut rows: [&[f32]; N] = [&[]; N];
        for row in &mut rows {
            let start = group * self.group_stride + place * self.stride;
            *row = &self.x[start..start + width];
            place += 1;
            if place == self.rows_per_group {
                (group, place) = (group + 1, 0);
            }
        }
        rows
    }
}

/// A panel times all rows, as many at a time as registers allow.
macro_rules! rows_of_blocks {
    ($name:ident, $kernel:ident, $tile:ty, $(#[$features:meta])?) => {
        $(#[$features])?
        pub(crate) fn $name(
            tiles: &[$tile],
            (x, rows): (&Quantised, usize),
            out: &Outputs<'_>,
            panel: usize,
        ) {
            let mut first = 0;
            while first < rows {
                let left = rows - first;
                if left >= BLOCK_ROWS {
                    put(out, panel, first, $kernel::<BLOCK_ROWS>(tiles, x.take(first)));
                    first += BLOCK_ROWS;
                } else if left >= 4 {
                    put(out, panel, first, $kernel::<4>(tiles, x.take(first)));
                    first += 4;
                } else if left >= 2 {
                    put(out, panel, first, $kernel::<2>(tiles, x.take(first)));
                    first += 2;
                } else {
                    put(out, panel, first, $kernel::<1>(tiles, x.take(first)));
                    first += 1;
                }
            }
        }
    };
}

/// Two panels, or the last one, times some rows.
macro_rules! rows_of_floats {
    ($name:ident, $kernel:ident, $lane:ty, $(#[$features:meta])?) => {
        $(#[$features])?
        pub(crate) fn $name(
            lanes: &[$lane],
            (x, rows, width): (FloatRows<'_>, Range<usize>, usize),
            out: &Outputs<'_>,
            panel: usize,
        ) {
            macro_rules! step {
                ($rows:expr, $first:ident) => {{
                    if lanes.len() > width {
                        let (one, two) = lanes.split_at(width);
                        let [one, two] = $kernel::<2, { $rows }>([one, two], x.take($first, width));
                        put(out, panel, $first, one);
                        put(out, panel + 1, $first, two);
                    } else {
                        let [one] = $kernel::<1, { $rows }>([lanes], x.take($first, width));
                        put(out, panel, $first, one);
                    }
                    $first += $rows;
                }};
            }
            let mut first = rows.start;
            while first < rows.end {
                let left = rows.end - first;
                if left >= FLOAT_ROWS {
                    step!(FLOAT_ROWS, first)
                } else if left >= 4 {
                    step!(4, first)
                } else if left >= 2 {
                    step!(2, first)
                } else {
                    step!(1, first)
                }
            }
        }
    };
}

/// `P` panels of weights, widened to f32 where they are narrower, times `N` rows.
macro_rules! panels_times_rows {
    ($name:ident, $load:ident, $lane:ty, $(#[$features:meta])?) => {
        $(#[$features])?
        pub(crate) fn $name<const P: usize, const N: usize>(
            lanes: [&[$lane]; P],
            x: [&[f32]; N],
        ) -> [[F; N]; P] {
            let inputs = lanes[0].len();
            let (lanes, x) = (cut(lanes, inputs), cut(x, inputs));
            let mut sums: [[F; N]; P] = [[splat(0.0); N]; P];
            for i in 0..inputs {
                let mut weights: [F; P] = [splat(0.0); P];
                for p in 0..P {
                    ask_ahead(&lanes[p][i]);
                    weights[p] = $load(&lanes[p][i]);
                }
                for n in 0..N {
                    let value = splat(x[n][i]);
                    for p in 0..P {
                        sums[p][n] = fma(weights[p], value, sums[p][n]);
                    }
                }
            }
            sums
        }
    };
}

/// Attention over tiles of 16 positions.
macro_rules! scores_and_values {
    ($scores:ident, $weigh:ident, $kernel:ident, $load:ident, $lane:ty, $(#[$features:meta])?) => {
        /// Products of a query with whole tiles of keys. Behind the keys of a tile of 8 bits lie
        /// the scales of its positions.
        $(#[$features])?
        pub(crate) fn $scores(keys: &[$lane], query: &[f32], scores: &mut [f32]) {
            let width = query.len();
            let (mut scores, _) = scores.as_chunks_mut::<PANEL>();
            let tile = keys.len() / scores.len().max(1);
            let mut tiles = keys.chunks_exact(tile.max(1));
            macro_rules! step {
                ($tiles:expr) => {
                    while scores.len() >= $tiles {
                        let mut taken: [&[$lane]; $tiles] = [&[]; $tiles];
                        for (taken, tile) in taken.iter_mut().zip(&mut tiles) {
                            *taken = tile;
                        }
                        let mut keys = taken;
                        for t in 0..$tiles {
                            keys[t] = &taken[t][..width];
                        }
                        let products = $kernel::<{ $tiles }, 1>(keys, [query]);
                        let (out, rest) = scores.split_at_mut($tiles);
                        for t in 0..$tiles {
                            store(products[t][0], &mut out[t]);
                            let scales = taken[t][width..].as_flattened().as_chunks().0;
                            for (score, scale) in out[t].iter_mut().zip(scales) {
                                *score *= widened(*scale);
                            }
                        }
                        scores = rest;
                    }
                };
            }
            step!(4);
            step!(2);
            step!(1);
        }

        /// Adds the values of positions, weighted, to `sums`: one chain in the order of the
        /// positions for every channel.
        $(#[$features])?
        pub(crate) fn $weigh(values: &[$lane], weights: &[f32], sums: &mut [[f32; PANEL]]) {
            #[inline]
            $(#[$features])?
            fn some_lanes<const LANES: usize>(
                values: &[$lane],
                (first, lanes): (usize, usize),
                weights: &[f32],
                sums: &mut [[f32; PANEL]; LANES],
            ) {
                let mut totals: [F; LANES] = [splat(0.0); LANES];
                for l in 0..LANES {
                    totals[l] = load_sums(&sums[l]);
                }
                for (position, weight) in values.chunks_exact(lanes).zip(weights) {
                    let weight = splat(*weight);
                    let position = &position[first..first + LANES];
                    for l in 0..LANES {
                        ask_ahead(&position[l]);
                        totals[l] = fma($load(&position[l]), weight, totals[l]);
                    }
                }
                for l in 0..LANES {
                    store(totals[l], &mut sums[l]);
                }
            }
            let lanes = sums.len();
            // Where registers do not hold the sums of all channels, a cache holds these values
            // until all of them are weighted.
            let blocks = values.chunks(VALUE_POSITIONS * lanes);
            for (values, weights) in blocks.zip(weights.chunks(VALUE_POSITIONS)) {
                let mut first = 0;
                macro_rules! step {
                    ($lanes:expr) => {
                        while let Some(sums) = sums[first..].first_chunk_mut::<{ $lanes }>() {
                            some_lanes(values, (first, lanes), weights, sums);
                            first += $lanes;
                        }
                    };
                }
                step!(VALUE_LANES);
                step!(2);
                step!(1);
            }
        }
    };
}

macro_rules! kernels {
    ($name:ident, $(#[$features:meta])?) => {
        pub(super) mod $name {
            use super::lanes::$name::{
                BLOCK_ROWS, F, FLOAT_ROWS, I, VALUE_LANES, add, ask_ahead, dot_4, dot_8, fma, load, load_bf16,
                load_f16, load_i8, load_sums, mul, splat, start_4, start_8, store, to_float,
            };
            use super::{
                BLOCK, Block, FloatRows, K_BLOCKS, K_PARTS, Lane8, Lane16, Lane32, Outputs, PANEL,
                Quantised, Range, Tile4, Tile4Affine, Tile4K, Tile8, VALUE_POSITIONS, Whole,
                cut, part, widened,
            };

            rows_of_blocks!(eight_bits_rows, eight_bits, Tile8, $(#[$features])?);
            rows_of_blocks!(four_bits_rows, four_bits, Tile4, $(#[$features])?);
            rows_of_blocks!(affine_rows, four_bits_affine, Tile4Affine, $(#[$features])?);
            rows_of_blocks!(k_rows, four_bits_k, Tile4K, $(#[$features])?);
            rows_of_floats!(float_rows, floats, Lane32, $(#[$features])?);
            rows_of_floats!(half_float_rows, half_floats, Lane16, $(#[$features])?);

            /// Weights of 8 bits: a panel's tiles times `N` rows of blocks.
            $(#[$features])?
            pub(crate) fn eight_bits<const N: usize>(
                tiles: &[Tile8],
                x: [&[Block]; N],
            ) -> [F; N] {
                let x = cut(x, tiles.len());
                let mut sums: [F; N] = [splat(0.0); N];
                for (b, tile) in tiles.iter().enumerate() {
                    let mut products: [I; N] = [start_8(0); N];
                    for n in 0..N {
                        products[n] = start_8(x[n][b].sum);
                    }
                    for group in 0..BLOCK / 4 {
                        let weights = part(tile, 64 * group);
                        ask_ahead(weights);
                        for n in 0..N {
                            products[n] = dot_8(products[n], weights, x[n][b].quads[group]);
                        }
                    }
                    let scales = load_f16(part(tile, 512));
                    for n in 0..N {
                        let scale = mul(scales, splat(x[n][b].scale));
                        sums[n] = add(sums[n], mul(to_float(products[n]), scale));
                    }
                }
                sums
            }

            /// Symmetric weights of 4 bits, as [`eight_bits`].
            $(#[$features])?
            pub(crate) fn four_bits<const N: usize>(
                tiles: &[Tile4],
                x: [&[Block]; N],
            ) -> [F; N] {
                let x = cut(x, tiles.len());
                let mut sums: [F; N] = [splat(0.0); N];
                for (b, tile) in tiles.iter().enumerate() {
                    let mut products: [I; N] = [start_4(0, 8); N];
                    for n in 0..N {
                        products[n] = start_4(x[n][b].sum, 8);
                    }
                    for group in 0..4 {
                        let weights = part(tile, 64 * group);
                        ask_ahead(weights);
                        for n in 0..N {
                            let quads = &x[n][b].quads;
                            products[n] =
                                dot_4(products[n], weights, quads[group], quads[4 + group]);
                        }
                    }
                    let scales = load_f16(part(tile, 256));
                    for n in 0..N {
                        let scale = mul(scales, splat(x[n][b].scale));
                        sums[n] = add(sums[n], mul(to_float(products[n]), scale));
                    }
                }
                sums
            }

            /// Weights of 4 bits with an offset, as [`eight_bits`].
            $(#[$features])?
            pub(crate) fn four_bits_affine<const N: usize>(
                tiles: &[Tile4Affine],
                x: [&[Block]; N],
            ) -> [F; N] {
                let x = cut(x, tiles.len());
                let mut sums: [F; N] = [splat(0.0); N];
                for (b, tile) in tiles.iter().enumerate() {
                    let mut products: [I; N] = [start_4(0, 0); N];
                    for group in 0..4 {
                        let weights = part(tile, 64 * group);
                        ask_ahead(weights);
                        for n in 0..N {
                            let quads = &x[n][b].quads;
                            products[n] =
                                dot_4(products[n], weights, quads[group], quads[4 + group]);
                        }
                    }
                    let (scales, offsets) = (load_f16(part(tile, 256)), load_f16(part(tile, 288)));
                    for n in 0..N {
                        let block = &x[n][b];
                        let scale = mul(scales, splat(block.scale));
                        sums[n] = add(sums[n], mul(to_float(products[n]), scale));
                        let offset = splat(block.scale * block.sum as f32);
                        sums[n] = add(sums[n], mul(offsets, offset));
                    }
                }
                sums
            }

            /// Weights of 4 bits whose scales and offsets are products, as [`eight_bits`].
            $(#[$features])?
            pub(crate) fn four_bits_k<const N: usize>(
                tiles: &[Tile4K],
                x: [&[Block]; N],
            ) -> [F; N] {
                let x = cut(x, K_BLOCKS * tiles.len());
                let mut sums: [F; N] = [splat(0.0); N];
                for (b, tile) in tiles.iter().enumerate() {
                    let [scales, offsets, ..] = K_PARTS;
                    let all_scales = load_f16(part(tile, scales));
                    let all_offsets = load_f16(part(tile, offsets));
                    for j in 0..K_BLOCKS {
                        let mut products: [I; N] = [start_4(0, 0); N];
                        for group in 0..4 {
                            let weights = part(tile, 64 * (4 * j + group));
                            ask_ahead(weights);
                            for n in 0..N {
                                let quads = &x[n][K_BLOCKS * b + j].quads;
                                products[n] =
                                    dot_4(products[n], weights, quads[group], quads[4 + group]);
                            }
                        }
                        let [.., scales, offsets] = K_PARTS;
                        let scales = load_i8(part(tile, scales + PANEL * j));
                        let offsets = load_i8(part(tile, offsets + PANEL * j));
                        let (scales, offsets) = (mul(all_scales, scales), mul(all_offsets, offsets));
                        for n in 0..N {
                            let block = &x[n][K_BLOCKS * b + j];
                            let scale = mul(scales, splat(block.scale));
                            sums[n] = add(sums[n], mul(to_float(products[n]), scale));
                            let offset = splat(block.scale * block.sum as f32);
                            sums[n] = add(sums[n], mul(offsets, offset));
                        }
                    }
                }
                sums
            }

            panels_times_rows!(floats, load, Lane32, $(#[$features])?);
            panels_times_rows!(half_floats, load_bf16, Lane16, $(#[$features])?);
            panels_times_rows!(bytes, load_i8, Lane8, $(#[$features])?);

            scores_and_values!(scores_32, weigh_32, floats, load, Lane32, $(#[$features])?);
            scores_and_values!(scores_16, weigh_16, half_floats, load_bf16, Lane16, $(#[$features])?);
            scores_and_values!(scores_8, weigh_8, bytes, load_i8, Lane8, $(#[$features])?);

            /// Stores the sums of a panel for the rows from `first` on.
            #[inline]
            $(#[$features])?
            fn put<const N: usize>(
                out: &Outputs<'_>,
                panel: usize,
                first: usize,
                sums: [F; N],
            ) {
                for n in 0..N {
                    let Some((y, by)) = out.whole(panel, first + n) else {
                        let mut values = [0.0; PANEL];
                        store(sums[n], &mut values);
                        out.put_some(panel, first + n, &values);
                        continue;
                    };
                    let sum = match by {
                        Whole::Set(None) => sums[n],
                        Whole::Set(Some(bias)) => add(sums[n], load_sums(bias)),
                        Whole::Add(None) => add(load_sums(y), sums[n]),
                        Whole::Add(Some(scale)) => {
                            add(load_sums(y), mul(load_sums(scale), sums[n]))
                        }
                    };
                    store(sum, y);
                }
            }
        }
    };
}

kernels!(scalar,);
#[cfg(target_arch = "x86_64")]
kernels!(avx2, #[target_feature(enable = "avx2,fma,f16c")]);
#[cfg(target_arch = "x86_64")]
kernels!(
    avx512,
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
);
