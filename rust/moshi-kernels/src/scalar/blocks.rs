//! Weights in blocks of few bits, in the encodings of GGUF files.
//!
//! A block holds consecutive weights of one row; rows are whole numbers of blocks, so that rows
//! and row ranges are contiguous bytes. Layouts as defined by ggml (`ggml-common.h`):
//!
//! | format | weights | bytes | content | value of weight `i` |
//! |---|---|---|---|---|
//! | `Q8_0` | 32 | 34 | f16 `d`, 32 × i8 `q` | `d q` |
//! | `Q4_0` | 32 | 18 | f16 `d`, 16 B: low nibbles are weights 0–15, high ones 16–31 | `d (q - 8)` |
//! | `Q4_1` | 32 | 20 | f16 `d`, f16 `m`, 16 B as above | `d q + m` |
//! | `Q4_K` | 256 | 144 | f16 `d`, f16 `dmin`, 12 B of 6-bit scales and minima of 8 groups, 128 B: 32 B for every two groups, low nibbles the first | `d s q - dmin m` |

use half::f16;

/// An encoding of weights in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockFormat {
    /// 8 bits, one scale: 8.5 bits per weight.
    Q8_0,
    /// 4 bits, one scale: 4.5 bits per weight.
    Q4_0,
    /// 4 bits, scale and offset: 5 bits per weight.
    Q4_1,
    /// 4 bits, 6-bit scales and offsets of groups of 32: 4.5 bits per weight.
    Q4K,
}

impl BlockFormat {
    /// Weights of the largest block.
    pub const MOST_WEIGHTS: usize = 256;

    /// Weights in a block; row widths are multiples of it.
    pub const fn weights(self) -> usize {
        match self {
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 => 32,
            Self::Q4K => 256,
        }
    }

    /// Bytes of a block.
    pub fn bytes(self) -> usize {
        match self {
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q4K => 144,
        }
    }

    /// Bytes of `weights` weights, `None` unless they are whole blocks.
    pub fn bytes_of(self, weights: usize) -> Option<usize> {
        weights.is_multiple_of(self.weights()).then(|| weights / self.weights() * self.bytes())
    }

    /// Decodes whole blocks to as many values as they hold.
    ///
    /// # Panics
    /// If the lengths do not fit together: a bug of the caller.
    pub fn decode(self, blocks: &[u8], values: &mut [f32]) {
        assert_eq!(self.bytes_of(values.len()), Some(blocks.len()), "blocks do not fit values");
        let pairs = blocks.chunks_exact(self.bytes()).zip(values.chunks_exact_mut(self.weights()));
        for (block, values) in pairs {
            match self {
                Self::Q8_0 => decode_q8_0(block, values),
                Self::Q4_0 => {
                    let d = read_f16(block, 0);
                    decode_nibbles(&block[2..], values, |q| d * (q - 8.0));
                }
                Self::Q4_1 => {
                    let (d, m) = (read_f16(block, 0), read_f16(block, 2));
                    decode_nibbles(&block[4..], values, |q| d * q + m);
                }
                Self::Q4K => decode_q4_k(block, values),
            }
        }
    }

    /// Encodes values, whole blocks of them, so that the largest value of a block is exact up to
    /// the rounding of its scale. `None` for `Q4_K`, which this crate only reads, and when a scale
    /// exceeds the 16-bit floats.
    ///
    /// # Panics
    /// If the values are not whole blocks: a bug of the caller.
    pub fn encode(self, values: &[f32]) -> Option<Vec<u8>> {
        let size = self.bytes_of(values.len()).expect("whole blocks");
        let mut out = Vec::with_capacity(size);
        for values in values.chunks_exact(self.weights()) {
            match self {
                Self::Q8_0 => encode_q8_0(values, &mut out),
                Self::Q4_0 => encode_q4_0(values, &mut out),
                Self::Q4_1 => encode_q4_1(values, &mut out),
                Self::Q4K => return None,
            }
        }
        self.are_finite(&out).then_some(out)
    }

    /// True when all scales and offsets of some blocks are finite, and with them all values.
    pub fn are_finite(self, blocks: &[u8]) -> bool {
        let offsets: &[usize] = match self {
            Self::Q8_0 | Self::Q4_0 => &[0],
            Self::Q4_1 | Self::Q4K => &[0, 2],
        };
        let finite = |block: &[u8]| offsets.iter().all(|&at| read_f16(block, at).is_finite());
        blocks.chunks_exact(self.bytes()).all(finite)
    }
}

fn read_f16(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn decode_q8_0(block: &[u8], values: &mut [f32]) {
    let d = read_f16(block, 0);
    for (value, &q) in values.iter_mut().zip(&block[2..]) {
        *value = d * f32::from(q.cast_signed());
    }
}

/// Low nibbles are the first half, high nibbles the second.
fn decode_nibbles(bytes: &[u8], values: &mut [f32], value: impl Fn(f32) -> f32) {
    let (low, high) = values.split_at_mut(bytes.len());
    for ((low, high), &byte) in low.iter_mut().zip(high).zip(bytes) {
        *low = value(f32::from(byte & 15));
        *high = value(f32::from(byte >> 4));
    }
}

fn decode_q4_k(block: &[u8], values: &mut [f32]) {
    let (d, dmin) = (read_f16(block, 0), read_f16(block, 2));
    let (packed, nibbles) = block[4..].split_at(12);
    for (pair, values) in values.chunks_exact_mut(64).enumerate() {
        let bytes = &nibbles[pair * 32..(pair + 1) * 32];
        for (half, values) in values.chunks_exact_mut(32).enumerate() {
            let (scale, minimum) = six_bits(packed, 2 * pair + half);
            let (scale, minimum) = (d * f32::from(scale), dmin * f32::from(minimum));
            for (value, &byte) in values.iter_mut().zip(bytes) {
                *value = scale * f32::from(byte >> (4 * half) & 15) - minimum;
            }
        }
    }
}

/// Scale `s`, minimum `m` and the 32 integers `q` of a group of a `Q4_K` block: weights are
/// `d s q - dmin m`.
pub(crate) fn q4_k_group(block: &[u8], group: usize) -> (u8, u8, [u8; 32]) {
    let (packed, nibbles) = block[4..].split_at(12);
    let (scale, minimum) = six_bits(packed, group);
    let bytes = &nibbles[group / 2 * 32..];
    let shift = 4 * (group % 2);
    let q = std::array::from_fn(|i| bytes[i] >> shift & 15);
    (scale, minimum, q)
}

/// Scale and minimum of a group: the first four have six bits of their own bytes, the others four
/// bits of the last bytes and the two top bits of the first ones.
fn six_bits(packed: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        return (packed[group] & 63, packed[group + 4] & 63);
    }
    let low = packed[group + 4];
    (low & 15 | packed[group - 4] >> 6 << 4, low >> 4 | packed[group] >> 6 << 4)
}

fn encode_q8_0(values: &[f32], out: &mut Vec<u8>) {
    let largest = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let d = f16::from_f32(largest / 127.0);
    out.extend(d.to_le_bytes());
    let inverse = inverse(largest / 127.0);
    out.extend(values.iter().map(|v| ((v * inverse).round() as i8).cast_unsigned()));
}

fn encode_q4_0(values: &[f32], out: &mut Vec<u8>) {
    // The value of largest magnitude becomes -8, whatever its sign.
    let largest = values.iter().fold(0.0f32, |m, &v| if v.abs() > m.abs() { v } else { m });
    let d = largest / -8.0;
    out.extend(f16::from_f32(d).to_le_bytes());
    let inverse = inverse(d);
    encode_nibbles(values, out, |v| v * inverse + 8.0);
}

fn encode_q4_1(values: &[f32], out: &mut Vec<u8>) {
    let lowest = values.iter().copied().fold(f32::INFINITY, f32::min);
    let highest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let d = (highest - lowest) / 15.0;
    out.extend(f16::from_f32(d).to_le_bytes());
    out.extend(f16::from_f32(lowest).to_le_bytes());
    let inverse = inverse(d);
    encode_nibbles(values, out, |v| (v - lowest) * inverse);
}

fn encode_nibbles(values: &[f32], out: &mut Vec<u8>, scaled: impl Fn(f32) -> f32) {
    let nibble = |value: f32| scaled(value).round().clamp(0.0, 15.0) as u8;
    let (low, high) = values.split_at(values.len() / 2);
    out.extend(low.iter().zip(high).map(|(&low, &high)| nibble(low) | nibble(high) << 4));
}

/// `1 / d`, or 0 for a block of equal values.
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENCODED: [BlockFormat; 3] = [BlockFormat::Q8_0, BlockFormat::Q4_0, BlockFormat::Q4_1];

    fn wave(n: usize) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * 0.7).sin() * (1.0 + i as f32 / 64.0) - 0.2).collect()
    }

    fn decoded(format: BlockFormat, blocks: &[u8]) -> Vec<f32> {
        let mut values = vec![0.0; blocks.len() / format.bytes() * format.weights()];
        format.decode(blocks, &mut values);
        values
    }

    #[test]
    fn encoding_loses_half_a_step_at_most() {
        let values = wave(128);
        for (format, levels) in ENCODED.into_iter().zip([127.0, 8.0, 15.0]) {
            let back = decoded(format, &format.encode(&values).unwrap());
            for (values, back) in values.chunks(32).zip(back.chunks(32)) {
                let largest = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                let spread = if format == BlockFormat::Q4_1 { 2.0 * largest } else { largest };
                // Half a step of rounding, a whole one where Q4_0 clips its positive end, and the
                // rounding of scales to f16.
                let steps = if format == BlockFormat::Q4_0 { 1.0 } else { 0.5 };
                let limit = spread / levels * steps + 2e-3 * largest;
                for (a, b) in values.iter().zip(back) {
                    assert!((a - b).abs() <= limit, "{format:?}: {a} became {b}");
                }
            }
        }
    }

    #[test]
    fn encoding_what_was_decoded_gives_the_same_blocks() {
        for format in ENCODED {
            let blocks = format.encode(&wave(256)).unwrap();
            let again = format.encode(&decoded(format, &blocks)).unwrap();
            assert_eq!(decoded(format, &blocks), decoded(format, &again), "{format:?}");
        }
    }

    #[test]
    fn equal_values_survive() {
        for format in ENCODED {
            assert_eq!(decoded(format, &format.encode(&[0.0; 32]).unwrap()), [0.0; 32]);
        }
        let ones = decoded(BlockFormat::Q4_1, &BlockFormat::Q4_1.encode(&[1.0; 32]).unwrap());
        assert_eq!(ones, [1.0; 32]);
    }

    #[test]
    fn hand_made_blocks_decode_to_their_definition() {
        let mut q4_0 = f16::from_f32(0.5).to_le_bytes().to_vec();
        q4_0.extend([0x9f; 16]);
        let values = decoded(BlockFormat::Q4_0, &q4_0);
        assert_eq!((values[0], values[31]), (0.5 * 7.0, 0.5));

        let mut q4_k =
            [f16::from_f32(2.0).to_le_bytes(), f16::from_f32(3.0).to_le_bytes()].concat();
        // Groups 0 to 3: scale 33, minimum 2. Groups 4 to 7: low nibbles 5 and 6, top bits 2 and 1.
        q4_k.extend([0x21 | 2 << 6; 4]);
        q4_k.extend([0x02 | 1 << 6; 4]);
        q4_k.extend([0x05 | 6 << 4; 4]);
        q4_k.extend([0xe1; 128]);
        let values = decoded(BlockFormat::Q4K, &q4_k);
        let group = |i: usize| values[i * 32];
        assert_eq!(group(0), 2.0 * 33.0 * 1.0 - 3.0 * 2.0);
        assert_eq!(group(1), 2.0 * 33.0 * 14.0 - 3.0 * 2.0);
        assert_eq!(group(4), 2.0 * 37.0 * 1.0 - 3.0 * 22.0);
        assert_eq!(group(7), 2.0 * 37.0 * 14.0 - 3.0 * 22.0);
    }
}
