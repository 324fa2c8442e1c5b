//! Sixteen numbers at a time, in the words of every instruction set: the vocabulary in which
//! the kernels of [`super::products`] are written once.
//!
//! Every module has the same functions. `F` holds 16 floats, `I` 16 integers. Products of integers
//! are exact in all of them, and products and sums of floats that follow integer products are
//! rounded one by one, so that kernels of few bits give the same bits everywhere. `fma` rounds
//! once where the processor can.

/// Bytes of 16 rows of four 8-bit weights.
const GROUP: usize = 64;

/// Plain loops, for the compiler to do what it can.
pub(super) mod scalar {
    use half::{bf16, f16};

    use super::GROUP;

    pub(crate) type F = [f32; 16];
    pub(crate) type I = [i32; 16];
    /// Rows of activations that a kernel of floats takes at a time.
    pub(crate) const FLOAT_ROWS: usize = 4;
    /// Rows of activations that a kernel of few bits takes at a time.
    pub(crate) const BLOCK_ROWS: usize = 4;
    /// Lanes of a position's value whose sums registers hold.
    pub(crate) const VALUE_LANES: usize = 4;

    /// Nothing: the processor guesses.
    #[inline]
    pub(crate) fn ask_ahead(_bytes: &[u8]) {}

    #[inline]
    pub(crate) fn splat(value: f32) -> F {
        [value; 16]
    }

    #[inline]
    pub(crate) fn load(bytes: &[u8; 64]) -> F {
        let mut values = [0.0; 16];
        for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
            *value = f32::from_le_bytes(*bytes);
        }
        values
    }

    #[inline]
    pub(crate) fn load_bf16(bytes: &[u8; 32]) -> F {
        let mut values = [0.0; 16];
        for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
            *value = bf16::from_le_bytes(*bytes).to_f32();
        }
        values
    }

    #[inline]
    pub(crate) fn load_f16(bytes: &[u8; 32]) -> F {
        let mut values = [0.0; 16];
        for (value, bits) in values.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *value = f16::from_le_bytes(*bits).to_f32();
        }
        values
    }

    #[inline]
    pub(crate) fn load_i8(bytes: &[u8; 16]) -> F {
        bytes.map(|byte| f32::from(byte.cast_signed()))
    }

    #[inline]
    pub(crate) fn load_sums(sums: &[f32; 16]) -> F {
        *sums
    }

    #[inline]
    pub(crate) fn store(values: F, out: &mut [f32; 16]) {
        *out = values;
    }

    #[inline]
    pub(crate) fn fma(a: F, b: F, c: F) -> F {
        add(mul(a, b), c)
    }

    #[inline]
    pub(crate) fn mul(a: F, b: F) -> F {
        std::array::from_fn(|i| a[i] * b[i])
    }

    #[inline]
    pub(crate) fn add(a: F, b: F) -> F {
        std::array::from_fn(|i| a[i] + b[i])
    }

    #[inline]
    pub(crate) fn to_float(values: I) -> F {
        values.map(|value| value as f32)
    }

    /// Start of a sum of products with weights that are stored 128 too large.
    #[inline]
    pub(crate) fn start_8(sum: i32) -> I {
        [-128 * sum; 16]
    }

    /// Adds the products of four weights of every row and four activations.
    #[inline]
    pub(crate) fn dot_8(mut sums: I, weights: &[u8; GROUP], quad: i32) -> I {
        let x = quad.to_le_bytes().map(|byte| i32::from(byte.cast_signed()));
        for (sum, weights) in sums.iter_mut().zip(weights.as_chunks::<4>().0) {
            for (weight, x) in weights.iter().zip(x) {
                *sum += i32::from(*weight) * x;
            }
        }
        sums
    }

    /// Start of a sum of products with weights that are stored `offset` too large.
    #[inline]
    pub(crate) fn start_4(sum: i32, offset: i32) -> I {
        [-offset * sum; 16]
    }

    /// As [`dot_8`] for weights of 4 bits: the low nibbles meet `low`, the high ones `high`.
    #[inline]
    pub(crate) fn dot_4(sums: I, weights: &[u8; GROUP], low: i32, high: i32) -> I {
        let sums = dot_8(sums, &weights.map(|byte| byte & 15), low);
        dot_8(sums, &weights.map(|byte| byte >> 4), high)
    }
}

/// Two registers of eight.
#[cfg(target_arch = "x86_64")]
pub(super) mod avx2 {
    use std::arch::x86_64::{
        __m128i, __m256, __m256i, _mm_loadu_si128, _mm_unpackhi_epi64, _mm256_abs_epi8,
        _mm256_add_epi16, _mm256_add_epi32, _mm256_add_ps, _mm256_and_si256, _mm256_castsi256_ps,
        _mm256_castsi256_si128, _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps, _mm256_cvtepu16_epi32,
        _mm256_cvtph_ps, _mm256_extracti128_si256, _mm256_fmadd_ps, _mm256_loadu_ps,
        _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_mul_ps,
        _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps,
        _mm256_setzero_si256, _mm256_sign_epi8, _mm256_slli_epi32, _mm256_srli_epi16,
        _mm256_storeu_ps, _mm256_xor_si256,
    };

    use super::GROUP;
    pub(crate) use crate::ahead::ask_ahead;

    pub(crate) type F = [__m256; 2];
    pub(crate) type I = [__m256i; 2];
    pub(crate) const FLOAT_ROWS: usize = 2;
    pub(crate) const BLOCK_ROWS: usize = 2;
    pub(crate) const VALUE_LANES: usize = 4;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(crate) fn splat(value: f32) -> F {
        [_mm256_set1_ps(value); 2]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(crate) fn load(bytes: &[u8; 64]) -> F {
        // SAFETY: eight of sixteen floats.
        let low = unsafe { _mm256_loadu_ps(bytes.as_ptr().cast()) };
        // SAFETY: the other eight.
        let high = unsafe { _mm256_loadu_ps(bytes.as_ptr().add(32).cast()) };
        [low, high]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(crate) fn load_bf16(bytes: &[u8; 32]) -> F {
        // SAFETY: sixteen values of two bytes.
        let bits = unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) };
        let widen = |half: __m128i| _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(half));
        let low = widen(_mm256_castsi256_si128(bits));
        let high = widen(_mm256_extracti128_si256::<1>(bits));
        [_mm256_castsi256_ps(low), _mm256_castsi256_ps(high)]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(crate) fn load_f16(bytes: &[u8; 32]) -> F {
        // SAFETY: thirty-two bytes.
        let bits = unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) };
        let low = _mm256_cvtph_ps(_mm256_castsi256_si128(bits));
        let high = _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(bits));
        [low, high]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(crate) fn load_i8(bytes: &[u8; 16]) -> F {
        // SAFETY: sixteen bytes.
        let bytes = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
        let low = _mm256_cvtepi8_epi32(bytes);
        let high = _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(bytes, bytes));
        to_float([low, high])
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(crate) fn load_sums(sums: &[f32; 16]) -> F {
        // SAFETY: eight of sixteen floats.
        let low = unsafe { _mm256_loadu_ps(sums.as_ptr()) };
        // SAFETY: the other eight.
        let high = unsafe { _mm256_loadu_ps(sums.as_ptr().add(8)) };
        [low, high]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(crate) fn store(values: F, out: &mut [f32; 16]) {
        // SAFETY: eight of sixteen floats.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), values[0]) };
        // SAFETY: the other eight.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr().add(8), values[1]) };
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(crate) fn fma(a: F, b: F, c: F) -> F {
        [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(crate) fn mul(a: F, b: F) -> F {
        [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(crate) fn add(a: F, b: F) -> F {
        [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(crate) fn to_float(values: I) -> F {
        [_mm256_cvtepi32_ps(values[0]), _mm256_cvtepi32_ps(values[1])]
    }

    // Weights are made signed before they are multiplied: nothing to take off.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(crate) fn start_8(_sum: i32) -> I {
        [_mm256_setzero_si256(); 2]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(crate) fn dot_8(sums: I, weights: &[u8; GROUP], quad: i32) -> I {
        let (offset, x) = (_mm256_set1_epi8(i8::MIN), _mm256_set1_epi32(quad));
        let dot = |sum: __m256i, bytes: __m256i| {
            let signed = _mm256_xor_si256(bytes, offset);
            // Pairs of products of magnitudes up to 128 and 127 fit into 16 bits.
            let (magnitude, x) = (_mm256_abs_epi8(signed), _mm256_sign_epi8(x, signed));
            let pairs = _mm256_maddubs_epi16(magnitude, x);
            _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        };
        let bytes = load_bytes(weights);
        [dot(sums[0], bytes[0]), dot(sums[1], bytes[1])]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(crate) fn start_4(sum: i32, offset: i32) -> I {
        [_mm256_set1_epi32(-offset * sum); 2]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(crate) fn dot_4(sums: I, weights: &[u8; GROUP], low: i32, high: i32) -> I {
        let (low, high) = (_mm256_set1_epi32(low), _mm256_set1_epi32(high));
        let mask = _mm256_set1_epi8(15);
        let dot = |sum: __m256i, bytes: __m256i| {
            let lows = _mm256_maddubs_epi16(_mm256_and_si256(bytes, mask), low);
            let nibbles = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), mask);
            // Four products of up to 15 and 127 fit into 16 bits.
            let pairs = _mm256_add_epi16(lows, _mm256_maddubs_epi16(nibbles, high));
            _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        };
        let bytes = load_bytes(weights);
        [dot(sums[0], bytes[0]), dot(sums[1], bytes[1])]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn load_bytes(bytes: &[u8; GROUP]) -> I {
        // SAFETY: thirty-two of sixty-four bytes.
        let low = unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) };
        // SAFETY: the other thirty-two.
        let high = unsafe { _mm256_loadu_si256(bytes.as_ptr().add(32).cast()) };
        [low, high]
    }
}

/// One register of sixteen.
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512 {
    use std::arch::x86_64::{
        __m512, __m512i, _mm_loadu_si128, _mm256_loadu_si256, _mm512_add_ps, _mm512_and_si512,
        _mm512_castsi512_ps, _mm512_cvtepi8_epi32, _mm512_cvtepi32_ps, _mm512_cvtepu16_epi32,
        _mm512_cvtph_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512,
        _mm512_mul_ps, _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps, _mm512_slli_epi32,
        _mm512_srli_epi16, _mm512_storeu_ps,
    };

    use super::GROUP;
    pub(crate) use crate::ahead::ask_ahead;

    pub(crate) type F = __m512;
    pub(crate) type I = __m512i;
    pub(crate) const FLOAT_ROWS: usize = 8;
    pub(crate) const BLOCK_ROWS: usize = 8;
    pub(crate) const VALUE_LANES: usize = 8;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(crate) fn splat(value: f32) -> F {
        _mm512_set1_ps(value)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(crate) fn load(bytes: &[u8; 64]) -> F {
        // SAFETY: sixteen floats.
        unsafe { _mm512_loadu_ps(bytes.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(crate) fn load_bf16(bytes: &[u8; 32]) -> F {
        // SAFETY: sixteen values of two bytes.
        let bits = unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) };
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(crate) fn load_f16(bytes: &[u8; 32]) -> F {
        // SAFETY: thirty-two bytes.
        _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) })
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(crate) fn load_i8(bytes: &[u8; 16]) -> F {
        // SAFETY: sixteen bytes.
        let bytes = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
        to_float(_mm512_cvtepi8_epi32(bytes))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(crate) fn load_sums(sums: &[f32; 16]) -> F {
        // SAFETY: sixteen floats.
        unsafe { _mm512_loadu_ps(sums.as_ptr()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(crate) fn store(values: F, out: &mut [f32; 16]) {
        // SAFETY: sixteen floats.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), values) };
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(crate) fn fma(a: F, b: F, c: F) -> F {
        _mm512_fmadd_ps(a, b, c)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(crate) fn mul(a: F, b: F) -> F {
        _mm512_mul_ps(a, b)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(crate) fn add(a: F, b: F) -> F {
        _mm512_add_ps(a, b)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(crate) fn to_float(values: I) -> F {
        _mm512_cvtepi32_ps(values)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(crate) fn start_8(sum: i32) -> I {
        _mm512_set1_epi32(-128 * sum)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(crate) fn dot_8(sums: I, weights: &[u8; GROUP], quad: i32) -> I {
        _mm512_dpbusd_epi32(sums, load_bytes(weights), _mm512_set1_epi32(quad))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(crate) fn start_4(sum: i32, offset: i32) -> I {
        _mm512_set1_epi32(-offset * sum)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(crate) fn dot_4(sums: I, weights: &[u8; GROUP], low: i32, high: i32) -> I {
        let (bytes, mask) = (load_bytes(weights), _mm512_set1_epi8(15));
        let lows = _mm512_and_si512(bytes, mask);
        let highs = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask);
        let sums = _mm512_dpbusd_epi32(sums, lows, _mm512_set1_epi32(low));
        _mm512_dpbusd_epi32(sums, highs, _mm512_set1_epi32(high))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn load_bytes(bytes: &[u8; GROUP]) -> I {
        // SAFETY: sixty-four bytes.
        unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
    }
}
