//! `y = W x` for any number of rows, with a fixed order of summation.
#![allow(unsafe_code, reason = "calls to functions compiled for a detected instruction set")]
#![allow(clippy::inline_always, reason = "code must be compiled into each instruction set's copy")]

use half::bf16;

/// Lanes of partial sums in a dot product. Part of the definition of the result: element `i` is
/// added to lane `i % LANES` in ascending order, then the lanes are summed pairwise.
const LANES: usize = 16;
/// Rows of `x` that share one pass over a weight row.
const BLOCK_ROWS: usize = 4;

/// A borrowed row-major matrix `[out, in]` in one of the storage types.
#[derive(Clone, Copy, Debug)]
pub enum MatrixRef<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// bfloat16 values, widened exactly to f32 before use.
    Bf16(&'a [bf16]),
}

impl MatrixRef<'_> {
    /// Number of stored values.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    /// True when nothing is stored.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Dot product of two slices of equal length, in the crate's fixed order of summation.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    dot_rows([a], b)[0]
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
    let job = Job { x, row_stride, in_width, out_width, bias };
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the CPU has AVX2, which is all that the function requires.
        return unsafe { linear_avx2(&job, weight, y) };
    }
    linear_portable(&job, weight, y);
}

#[derive(Clone, Copy)]
struct Job<'a> {
    x: &'a [f32],
    row_stride: usize,
    in_width: usize,
    out_width: usize,
    bias: Option<&'a [f32]>,
}

// Multiplications and additions stay separate instructions (no fused multiply-add), so this
// function computes the same bits as the portable one.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn linear_avx2(job: &Job<'_>, weight: MatrixRef<'_>, y: &mut [f32]) {
    linear_portable(job, weight, y);
}

#[inline(always)]
fn linear_portable(job: &Job<'_>, weight: MatrixRef<'_>, y: &mut [f32]) {
    match weight {
        MatrixRef::F32(values) => {
            for (o, weight_row) in values.chunks_exact(job.in_width).enumerate() {
                one_output(job, o, weight_row, y);
            }
        }
        MatrixRef::Bf16(values) => {
            let mut widened = vec![0.0; job.in_width];
            for (o, weight_row) in values.chunks_exact(job.in_width).enumerate() {
                for (wide, narrow) in widened.iter_mut().zip(weight_row) {
                    *wide = narrow.to_f32();
                }
                one_output(job, o, &widened, y);
            }
        }
    }
}

#[inline(always)]
fn one_output(job: &Job<'_>, o: usize, weight_row: &[f32], y: &mut [f32]) {
    let bias = job.bias.map_or(0.0, |bias| bias[o]);
    let row = |r: usize| &job.x[r * job.row_stride..r * job.row_stride + job.in_width];
    let rows = y.len() / job.out_width;
    let mut r = 0;
    while r + BLOCK_ROWS <= rows {
        let sums = dot_rows([row(r), row(r + 1), row(r + 2), row(r + 3)], weight_row);
        for (i, sum) in sums.into_iter().enumerate() {
            y[(r + i) * job.out_width + o] = sum + bias;
        }
        r += BLOCK_ROWS;
    }
    if r + 2 <= rows {
        let sums = dot_rows([row(r), row(r + 1)], weight_row);
        y[r * job.out_width + o] = sums[0] + bias;
        y[(r + 1) * job.out_width + o] = sums[1] + bias;
        r += 2;
    }
    if r < rows {
        y[r * job.out_width + o] = dot_rows([row(r)], weight_row)[0] + bias;
    }
}

#[inline(always)]
fn dot_rows<const ROWS: usize>(x: [&[f32]; ROWS], w: &[f32]) -> [f32; ROWS] {
    let x = x.map(|row| &row[..w.len()]);
    let mut lanes = [[0.0f32; LANES]; ROWS];
    let whole = w.len() - w.len() % LANES;
    let mut i = 0;
    while i < whole {
        let w_chunk: &[f32; LANES] = w[i..i + LANES].try_into().expect("chunk of LANES");
        for r in 0..ROWS {
            let x_chunk: &[f32; LANES] = x[r][i..i + LANES].try_into().expect("chunk of LANES");
            for lane in 0..LANES {
                lanes[r][lane] += x_chunk[lane] * w_chunk[lane];
            }
        }
        i += LANES;
    }
    for r in 0..ROWS {
        for (lane, j) in (whole..w.len()).enumerate() {
            lanes[r][lane] += x[r][j] * w[j];
        }
    }
    lanes.map(sum_lanes)
}

#[inline(always)]
fn sum_lanes(mut lanes: [f32; LANES]) -> f32 {
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
        let job = Job { x: &x, row_stride: 203, in_width: 203, out_width: 11, bias: None };
        linear_portable(&job, MatrixRef::F32(&w), &mut portable);
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
    fn overlapping_rows_are_a_strided_window() {
        let x: Vec<f32> = (0..6u8).map(f32::from).collect();
        let mut y = vec![0.0; 2];
        linear(&x, 2, 4, MatrixRef::F32(&[1.0, 1.0, 1.0, 1.0]), None, &mut y);
        assert_eq!(y, [6.0, 14.0]);
    }
}
