//! Asking for memory before it is read.
#![allow(unsafe_code, reason = "hints to the processor")]
#![allow(clippy::inline_always, reason = "a call would take longer than the hint")]

use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};

/// From where a line is asked for into the innermost cache.
const NEAR_BYTES: usize = 4096;
/// From where it is asked for into the next one, which waits for more lines of memory at a time than
/// the innermost.
const FAR_BYTES: usize = 16_384;

/// Asks for the bytes that a loop through memory will read some lines from here: one that does much
/// with each byte does not look far ahead by itself.
#[inline(always)]
pub(crate) fn ask_ahead(bytes: &[u8]) {
    let start = bytes.as_ptr();
    #[allow(unused_unsafe, reason = "older compilers call it unsafe")]
    // SAFETY: a hint reads nothing, wherever it points, and every processor of this architecture has
    // it.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(NEAR_BYTES).cast());
        _mm_prefetch::<_MM_HINT_T1>(start.wrapping_add(FAR_BYTES).cast());
    }
}
