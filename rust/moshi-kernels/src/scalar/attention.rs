//! Attention of one query position over a ring of keys and values, and rotary embeddings.

use std::ops::Range;

use super::{dot, softmax};

/// Shape of multi-head attention with grouped keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub query: usize,
    /// Key and value heads; query head `h` reads key head `h / (query / key)`.
    pub key: usize,
    /// Width of one head.
    pub width: usize,
}

impl Heads {
    /// Width of all query heads together.
    pub fn query_width(&self) -> usize {
        self.query * self.width
    }

    /// Width of all key (or value) heads together.
    pub fn key_width(&self) -> usize {
        self.key * self.width
    }

    /// The same with keys and values for every query head.
    pub fn ungrouped(self) -> Self {
        Self { key: self.query, ..self }
    }

    /// Width of a fused projection: queries, keys, values.
    pub fn fused_width(&self) -> usize {
        self.query_width() + 2 * self.key_width()
    }
}

/// Rotates the heads of one position in place (RoPE, Su et al. 2021).
///
/// `x` is `[head, width]`, `cos` and `sin` are `[width / 2]`. Pairs are `(2i, 2i + 1)` when
/// `interleaved`, `(i, i + width / 2)` otherwise.
pub fn rotate(x: &mut [f32], cos: &[f32], sin: &[f32], interleaved: bool) {
    let half = cos.len();
    for head in x.chunks_exact_mut(2 * half) {
        for i in 0..half {
            let (a, b) = if interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
            let (re, im) = (head[a], head[b]);
            head[a] = re * cos[i] - im * sin[i];
            head[b] = re * sin[i] + im * cos[i];
        }
    }
}

/// Attention of one position: `out[h] = sum_p softmax(q[h] . k[p] / sqrt(width)) v[p]` over the
/// absolute positions `visible`.
///
/// `query` and `out` are `[query head, width]`. `keys` and `values` are `[key head, slot, width]`
/// rings of `capacity` slots, position `p` in slot `p % capacity`. An empty range gives zeros.
/// `scores` is scratch space; it is resized as needed.
pub fn attend(
    query: &[f32],
    heads: Heads,
    (keys, values, capacity): (&[f32], &[f32], usize),
    visible: Range<u64>,
    scores: &mut Vec<f32>,
    out: &mut [f32],
) {
    let count = (visible.end - visible.start) as usize;
    assert!(count <= capacity, "more positions visible than the ring holds");
    out.fill(0.0);
    if count == 0 {
        return;
    }
    let scale = 1.0 / (heads.width as f32).sqrt();
    scores.resize(count, 0.0);
    for h in 0..heads.query {
        let q = &query[h * heads.width..(h + 1) * heads.width];
        let ring = (h / (heads.query / heads.key)) * capacity * heads.width;
        let slot = |p: u64| ring + (p % capacity as u64) as usize * heads.width;
        for (score, p) in scores.iter_mut().zip(visible.clone()) {
            *score = dot(q, &keys[slot(p)..slot(p) + heads.width]) * scale;
        }
        softmax(scores);
        let out = &mut out[h * heads.width..(h + 1) * heads.width];
        for (weight, p) in scores.iter().zip(visible.clone()) {
            for (out, value) in out.iter_mut().zip(&values[slot(p)..slot(p) + heads.width]) {
                *out += weight * value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotation_by_a_quarter_turn() {
        let mut x = [1.0, 0.0, 0.0, 1.0];
        rotate(&mut x, &[0.0, 0.0], &[1.0, 1.0], true);
        assert_eq!(x, [0.0, 1.0, -1.0, 0.0]);
        let mut x = [1.0, 0.0, 0.0, 1.0];
        rotate(&mut x, &[0.0, 0.0], &[1.0, 1.0], false);
        assert_eq!(x, [0.0, -1.0, 1.0, 0.0]);
    }

    #[test]
    fn wrapped_ring_gives_the_bits_of_an_unwrapped_one() {
        let heads = Heads { query: 2, key: 1, width: 2 };
        let position = |p: u64| [(p as f32 * 0.37).sin(), (p as f32 * 0.73).cos()];
        let fill = |capacity: usize, range: Range<u64>| {
            let mut ring = vec![f32::NAN; capacity * 2];
            for p in range {
                let slot = (p % capacity as u64) as usize * 2;
                ring[slot..slot + 2].copy_from_slice(&position(p));
            }
            ring
        };
        let (small, large) = (fill(4, 7..11), fill(16, 0..11));
        let (mut a, mut b, mut scores) = ([0.0; 4], [0.0; 4], Vec::new());
        let query = [0.3, -0.4, 1.0, 2.0];
        attend(&query, heads, (&small, &small, 4), 7..11, &mut scores, &mut a);
        attend(&query, heads, (&large, &large, 16), 7..11, &mut scores, &mut b);
        assert_eq!(a, b);
        assert!(a.iter().all(|v| v.is_finite()));
    }

    #[test]
    fn nothing_visible_gives_zeros() {
        let heads = Heads { query: 1, key: 1, width: 1 };
        let mut out = [7.0];
        attend(&[1.0], heads, (&[f32::NAN], &[f32::NAN], 1), 5..5, &mut Vec::new(), &mut out);
        assert_eq!(out, [0.0]);
    }
}
