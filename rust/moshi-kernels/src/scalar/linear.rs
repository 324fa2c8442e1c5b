//! `y = W x` for any number of rows, with a fixed order of summation.
#![allow(unsafe_code, reason = "intrinsics of a detected instruction set")]

use half::bf16;

use super::BlockFormat;

/// Lanes of partial sums in a dot product. Part of the definition of the result: element `i` is
/// added to lane `i % LANES` in ascending order, then the lanes are summed pairwise.
pub(crate) const LANES: usize = 16;
/// Rows of `x` that share one pass over a weight row.
const BLOCK_ROWS: usize = 4;

/// A borrowed row-major matrix `[out, in]` in one of the storage types.
#[derive(Clone, Copy, Debug)]
pub enum MatrixRef<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// bfloat16 values, widened exactly to f32 before use.
    Bf16(&'a [bf16]),
    /// Rows of whole blocks, decoded to f32 before use.
    Blocks(BlockFormat, &'a [u8]),
}

impl MatrixRef<'_> {
    /// Row `row` of rows of `cols` values, as floats.
    ///
    /// # Panics
    /// If there is no such row, or blocks are not those of whole rows: bugs of the caller.
    pub fn row(self, row: usize, cols: usize, out: &mut [f32]) {
        let range = row * cols..(row + 1) * cols;
        match self {
            Self::F32(values) => out.copy_from_slice(&values[range]),
            Self::Bf16(values) => {
                out.iter_mut().zip(&values[range]).for_each(|(out, value)| *out = value.to_f32());
            }
            Self::Blocks(format, bytes) => {
                let row_bytes = format.bytes_of(cols).expect("rows are whole blocks");
                format.decode(&bytes[row * row_bytes..(row + 1) * row_bytes], out);
            }
        }
    }

    /// Number of stored values.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
            Self::Blocks(format, bytes) => bytes.len() / format.bytes() * format.weights(),
        }
    }

    /// True when nothing is stored.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Dot product of two slices of equal length, in the crate's fixed order of summation.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if let Some(avx2) = avx2::Avx2::detect() {
        return avx2.dot_rows([a], b)[0];
    }
    Portable.dot_rows([a], b)[0]
}

/// `y[row, o] = bias[o] + sum_i x[row * row_stride + i] * w[o, i]`.
///
/// `x` holds overlapping or adjacent rows: row `r` starts at `r * row_stride` and is `in_width`
/// long, which makes a strided causal convolution over time-major samples the same operation.
/// `y` is `[rows, out]`.
///
/// # Panics
/// If the lengths do not fit together: a bug of the caller.
pub fn linear(
    x: &[f32],
    row_stride: usize,
    in_width: usize,
    weight: MatrixRef<'_>,
    bias: Option<&[f32]>,
    y: &mut [f32],
) {
    let out_width = weight.len().checked_div(in_width).unwrap_or(0);
    assert_eq!(weight.len(), out_width * in_width, "weight is not [out, in]");
    if out_width == 0 {
        return;
    }
    let rows = y.len() / out_width;
    assert_eq!(y.len(), rows * out_width, "output is not [rows, out]");
    assert!(rows == 0 || x.len() >= (rows - 1) * row_stride + in_width, "input too short");
    let job = Job { x, row_stride, in_width, out_width, rows, bias };
    #[cfg(target_arch = "x86_64")]
    if let Some(avx2) = avx2::Avx2::detect() {
        return job.run(avx2, weight, y);
    }
    job.run(Portable, weight, y);
}

/// Dot products of some rows with one weight row, in the fixed order of summation.
trait DotRows: Copy {
    fn dot_rows<const ROWS: usize>(self, x: [&[f32]; ROWS], w: &[f32]) -> [f32; ROWS];
}

/// The definition of the result; any other implementation gives the same bits.
#[derive(Clone, Copy)]
struct Portable;

#[derive(Clone, Copy)]
struct Job<'a> {
    x: &'a [f32],
    row_stride: usize,
    in_width: usize,
    out_width: usize,
    rows: usize,
    bias: Option<&'a [f32]>,
}

impl Job<'_> {
    fn run(&self, dots: impl DotRows, weight: MatrixRef<'_>, y: &mut [f32]) {
        match weight {
            MatrixRef::F32(values) => {
                for (o, weight_row) in values.chunks_exact(self.in_width).enumerate() {
                    self.one_output(dots, o, weight_row, y);
                }
            }
            MatrixRef::Bf16(values) => {
                let mut widened = vec![0.0; self.in_width];
                for (o, weight_row) in values.chunks_exact(self.in_width).enumerate() {
                    for (wide, narrow) in widened.iter_mut().zip(weight_row) {
                        *wide = narrow.to_f32();
                    }
                    self.one_output(dots, o, &widened, y);
                }
            }
            MatrixRef::Blocks(format, bytes) => {
                let mut widened = vec![0.0; self.in_width];
                let row_bytes = format.bytes_of(self.in_width).expect("rows are whole blocks");
                for (o, weight_row) in bytes.chunks_exact(row_bytes).enumerate() {
                    format.decode(weight_row, &mut widened);
                    self.one_output(dots, o, &widened, y);
                }
            }
        }
    }

    fn one_output(&self, dots: impl DotRows, o: usize, weight_row: &[f32], y: &mut [f32]) {
        let bias = self.bias.map_or(0.0, |bias| bias[o]);
        let row = |r: usize| &self.x[r * self.row_stride..r * self.row_stride + self.in_width];
        let mut store = |r: usize, sums: &[f32]| {
            for (i, sum) in sums.iter().enumerate() {
                y[(r + i) * self.out_width + o] = sum + bias;
            }
        };
        let (mut r, rows) = (0, self.rows);
        while r + BLOCK_ROWS <= rows {
            let block = [row(r), row(r + 1), row(r + 2), row(r + 3)];
            store(r, &dots.dot_rows(block, weight_row));
            r += BLOCK_ROWS;
        }
        if r + 2 <= rows {
            store(r, &dots.dot_rows([row(r), row(r + 1)], weight_row));
            r += 2;
        }
        if r < rows {
            store(r, &dots.dot_rows([row(r)], weight_row));
        }
    }
}

impl DotRows for Portable {
    fn dot_rows<const ROWS: usize>(self, x: [&[f32]; ROWS], w: &[f32]) -> [f32; ROWS] {
        x.map(|x| {
            let mut lanes = [0.0f32; LANES];
            for (x, w) in x.chunks(LANES).zip(w.chunks(LANES)) {
                for ((lane, x), w) in lanes.iter_mut().zip(x).zip(w) {
                    *lane += x * w;
                }
            }
            sum_lanes(lanes)
        })
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        __m256, _mm256_add_ps, _mm256_loadu_ps, _mm256_mul_ps, _mm256_setzero_ps, _mm256_storeu_ps,
    };

    use super::{DotRows, LANES, sum_lanes};

    /// Proof that the CPU has AVX2.
    #[derive(Clone, Copy)]
    pub(super) struct Avx2(());

    impl Avx2 {
        pub(super) fn detect() -> Option<Self> {
            std::arch::is_x86_feature_detected!("avx2").then_some(Self(()))
        }
    }

    impl DotRows for Avx2 {
        fn dot_rows<const ROWS: usize>(self, x: [&[f32]; ROWS], w: &[f32]) -> [f32; ROWS] {
            // SAFETY: a value of this type exists only where AVX2 was detected.
            unsafe { dot_rows(x, w) }
        }
    }

    // Multiplications and additions stay separate instructions: a fused multiply-add would round
    // once instead of twice and give other bits than the portable code.
    #[target_feature(enable = "avx2")]
    fn dot_rows<const ROWS: usize>(x: [&[f32]; ROWS], w: &[f32]) -> [f32; ROWS] {
        let x = x.map(|row| &row[..w.len()]);
        let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
        let whole = w.len() - w.len() % LANES;
        let mut i = 0;
        while i < whole {
            let weights = load_lanes(w, i);
            for r in 0..ROWS {
                let values = load_lanes(x[r], i);
                for half in 0..2 {
                    let product = _mm256_mul_ps(values[half], weights[half]);
                    sums[r][half] = _mm256_add_ps(sums[r][half], product);
                }
            }
            i += LANES;
        }
        let mut out = [0.0; ROWS];
        for r in 0..ROWS {
            let mut lanes = [0.0f32; LANES];
            // SAFETY: the array holds 16 floats: two unaligned stores of eight.
            unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sums[r][0]) };
            // SAFETY: as above, the second half.
            unsafe { _mm256_storeu_ps(lanes.as_mut_ptr().add(8), sums[r][1]) };
            for ((lane, x), w) in lanes.iter_mut().zip(&x[r][whole..]).zip(&w[whole..]) {
                *lane += x * w;
            }
            out[r] = sum_lanes(lanes);
        }
        out
    }

    /// Sixteen floats from index `i` on, which must exist.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn load_lanes(values: &[f32], i: usize) -> [__m256; 2] {
        debug_assert!(i + LANES <= values.len());
        // SAFETY: the caller's loop stays below the largest multiple of LANES in the length.
        let low = unsafe { _mm256_loadu_ps(values.as_ptr().add(i)) };
        // SAFETY: as above, eight floats further.
        let high = unsafe { _mm256_loadu_ps(values.as_ptr().add(i + 8)) };
        [low, high]
    }
}

/// Pairwise sum. Compiled for the instruction set of the caller, into which it is inlined.
#[allow(clippy::inline_always, reason = "callers are compiled for several instruction sets")]
#[inline(always)]
pub(crate) fn sum_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    #[test]
    fn linear_matches_f64_and_is_independent_of_the_number_of_rows() {
        for (rows, width, out) in [(1, 1, 1), (5, 37, 9), (9, 64, 17), (4, 100, 3)] {
            let (x, w, b) = (noise(rows * width, 1), noise(out * width, 2), noise(out, 3));
            let mut y = vec![0.0; rows * out];
            linear(&x, width, width, MatrixRef::F32(&w), Some(&b), &mut y);
            for r in 0..rows {
                let mut alone = vec![0.0; out];
                let row = &x[r * width..(r + 1) * width];
                linear(row, width, width, MatrixRef::F32(&w), Some(&b), &mut alone);
                assert_eq!(alone, y[r * out..(r + 1) * out], "row {r} depends on its neighbours");
                for o in 0..out {
                    let exact: f64 = (0..width)
                        .map(|i| f64::from(row[i]) * f64::from(w[o * width + i]))
                        .sum::<f64>()
                        + f64::from(b[o]);
                    assert!((exact - f64::from(alone[o])).abs() < 1e-4);
                }
            }
        }
    }

    #[test]
    fn dispatched_code_equals_the_portable_code_bit_for_bit() {
        let (x, w) = (noise(7 * 203, 4), noise(11 * 203, 5));
        let mut dispatched = vec![0.0; 77];
        linear(&x, 203, 203, MatrixRef::F32(&w), None, &mut dispatched);
        let mut portable = vec![0.0; 77];
        let job = Job { x: &x, row_stride: 203, in_width: 203, out_width: 11, rows: 7, bias: None };
        job.run(Portable, MatrixRef::F32(&w), &mut portable);
        assert_eq!(dispatched, portable);
    }

    #[test]
    fn bf16_weights_equal_their_widened_values() {
        let (x, w) = (noise(3 * 50, 6), noise(4 * 50, 7));
        let narrow: Vec<bf16> = w.iter().map(|&v| bf16::from_f32(v)).collect();
        let wide: Vec<f32> = narrow.iter().map(|v| v.to_f32()).collect();
        let (mut a, mut b) = (vec![0.0; 12], vec![0.0; 12]);
        linear(&x, 50, 50, MatrixRef::Bf16(&narrow), None, &mut a);
        linear(&x, 50, 50, MatrixRef::F32(&wide), None, &mut b);
        assert_eq!(a, b);
    }

    #[test]
    fn blocks_equal_their_decoded_values() {
        let (x, w) = (noise(3 * 64, 8), noise(5 * 64, 9));
        let bytes = BlockFormat::Q4_1.encode(&w).unwrap();
        let mut wide = vec![0.0; w.len()];
        BlockFormat::Q4_1.decode(&bytes, &mut wide);
        let (mut a, mut b) = (vec![0.0; 15], vec![0.0; 15]);
        linear(&x, 64, 64, MatrixRef::Blocks(BlockFormat::Q4_1, &bytes), None, &mut a);
        linear(&x, 64, 64, MatrixRef::F32(&wide), None, &mut b);
        assert_eq!(a, b);
    }

    #[test]
    fn overlapping_rows_are_a_strided_window() {
        let x: Vec<f32> = (0..6u8).map(f32::from).collect();
        let mut y = vec![0.0; 2];
        linear(&x, 2, 4, MatrixRef::F32(&[1.0, 1.0, 1.0, 1.0]), None, &mut y);
        assert_eq!(y, [6.0, 14.0]);
    }
}
