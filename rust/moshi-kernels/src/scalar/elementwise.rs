//! Norms, activations, softmax and codebook search.

use super::dot;

/// Root-mean-square norm of every row: `y = x * (alpha * rsqrt(mean(x^2) + eps))`, the product of
/// `alpha` and the reciprocal root formed first (Zhang and Sennrich, 2019; the order is Moshi's).
pub fn rms_norm(x: &[f32], alpha: &[f32], eps: f32, y: &mut [f32]) {
    let width = alpha.len();
    for (row, out) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
        let mean_square = dot(row, row) / width as f32;
        let scale = 1.0 / (mean_square + eps).sqrt();
        for i in 0..width {
            out[i] = row[i] * (alpha[i] * scale);
        }
    }
}

/// Layer norm of every row with biased variance: `y = (x - mean) / sqrt(var + eps) * w + b`.
pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32]) {
    let width = weight.len();
    for (row, out) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
        let mean = row.iter().sum::<f32>() / width as f32;
        for i in 0..width {
            out[i] = row[i] - mean;
        }
        let variance = dot(out, out) / width as f32;
        let scale = 1.0 / (variance + eps).sqrt();
        for i in 0..width {
            out[i] = out[i] * scale * weight[i] + bias[i];
        }
    }
}

/// `x += y`.
pub fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

/// `x += scale * y`, `scale` one value per channel of every row.
pub fn add_scaled(x: &mut [f32], y: &[f32], scale: &[f32]) {
    for (x, y) in x.chunks_exact_mut(scale.len()).zip(y.chunks_exact(scale.len())) {
        for i in 0..scale.len() {
            x[i] += scale[i] * y[i];
        }
    }
}

/// Exponential linear unit with alpha 1, in place.
pub fn elu(x: &mut [f32]) {
    for value in x {
        if *value < 0.0 {
            *value = value.exp_m1();
        }
    }
}

/// Gaussian error linear unit by the error function (not its tanh approximation), in place.
pub fn gelu(x: &mut [f32]) {
    for value in x {
        *value = 0.5 * *value * (1.0 + libm::erff(*value * std::f32::consts::FRAC_1_SQRT_2));
    }
}

/// Gated unit: rows of `x` are `[gate, value]`, `y = silu(gate) * value` is half as wide.
pub fn silu_gate(x: &[f32], width: usize, y: &mut [f32]) {
    for (row, out) in x.chunks_exact(2 * width).zip(y.chunks_exact_mut(width)) {
        let (gate, value) = row.split_at(width);
        for i in 0..width {
            out[i] = gate[i] / (1.0 + (-gate[i]).exp()) * value[i];
        }
    }
}

/// Softmax in place, stabilised by the maximum.
pub fn softmax(x: &mut [f32]) {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for value in x.iter_mut() {
        *value = (*value - max).exp();
        sum += *value;
    }
    for value in x {
        *value /= sum;
    }
}

/// Index of the codebook entry nearest to `x` in Euclidean distance; the first one on ties.
///
/// `entries` is `[entry, width]` and `half_squared_norms[e]` is half the squared norm of entry
/// `e`, so that the distance order is that of `half_squared_norms[e] - x . e`.
pub fn nearest(x: &[f32], entries: &[f32], half_squared_norms: &[f32]) -> usize {
    let (mut best, mut best_score) = (0, f32::INFINITY);
    for (e, entry) in entries.chunks_exact(x.len()).enumerate() {
        let score = half_squared_norms[e] - dot(x, entry);
        if score < best_score {
            (best, best_score) = (e, score);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f32, b: f32) -> bool {
        (a - b).abs() < 1e-6
    }

    #[test]
    fn norms_match_their_formulas() {
        let x = [3.0, 4.0];
        let mut y = [0.0; 2];
        rms_norm(&x, &[1.0, 2.0], 0.0, &mut y);
        let rms = 12.5f32.sqrt();
        assert!(close(y[0], 3.0 / rms) && close(y[1], 8.0 / rms), "{y:?}");
        layer_norm(&x, &[1.0, 1.0], &[0.0, 1.0], 0.0, &mut y);
        assert!(close(y[0], -1.0) && close(y[1], 2.0), "{y:?}");
    }

    #[test]
    fn activations_match_reference_values() {
        let mut x = [-1.0, 0.0, 2.0];
        elu(&mut x);
        assert!(close(x[0], -0.632_120_6) && x[1] == 0.0 && x[2] == 2.0);
        let mut x = [-1.0, 0.5];
        gelu(&mut x);
        assert!(close(x[0], -0.158_655_26) && close(x[1], 0.345_731_2), "{x:?}");
        let mut y = [0.0];
        silu_gate(&[1.0, 3.0], 1, &mut y);
        assert!(close(y[0], 3.0 * 0.731_058_6));
    }

    #[test]
    fn softmax_sums_to_one_for_large_inputs() {
        let mut x = [1000.0, 1000.0, f32::NEG_INFINITY];
        softmax(&mut x);
        assert_eq!(x, [0.5, 0.5, 0.0]);
    }

    #[test]
    fn nearest_takes_the_first_of_equals() {
        let entries = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0];
        assert_eq!(nearest(&[0.9, 0.1], &entries, &[0.5, 0.5, 0.5]), 0);
        assert_eq!(nearest(&[0.1, 0.9], &entries, &[0.5, 0.5, 0.5]), 1);
    }
}
