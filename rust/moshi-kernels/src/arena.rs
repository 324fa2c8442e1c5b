//! Memory for weights: a few large blocks, filled once in the order in which a step reads them.
#![allow(unsafe_code, reason = "pieces of one block are handed out as values of their own")]

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use crate::huge_memory::{HUGE_PAGE_BYTES, HugeMemory};

/// Hands out pieces of large blocks, one after the other. A block is freed with its last piece.
#[derive(Debug, Default)]
pub struct Arena {
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    chunk: Option<Arc<Chunk>>,
    used: usize,
    /// Blocks double until they are large.
    next_bytes: usize,
}

struct Chunk {
    _memory: HugeMemory,
    start: *mut u8,
    len: usize,
}

// SAFETY: the memory is reached through pieces only, which never overlap.
unsafe impl Send for Chunk {}
// SAFETY: as above.
unsafe impl Sync for Chunk {}

impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chunk of {} bytes", self.len)
    }
}

impl Arena {
    /// A piece of `len` bytes, all zero, that starts at a multiple of 64.
    ///
    /// # Errors
    /// When the system has no memory for it.
    pub fn take(&self, len: usize) -> io::Result<Piece> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = open.chunk.as_ref().is_some_and(|chunk| chunk.len - open.used >= len);
        if !fits {
            open.next_bytes = (2 * open.next_bytes).clamp(FIRST_BYTES, LARGEST_BYTES);
            let len = len.max(open.next_bytes);
            let mut memory = HugeMemory::zeroed(len)?;
            let start = memory.as_mut_ptr();
            open.chunk = Some(Arc::new(Chunk { _memory: memory, start, len }));
            open.used = 0;
        }
        let chunk = open.chunk.clone().ok_or(io::ErrorKind::OutOfMemory)?;
        let offset = open.used;
        open.used = (offset + len).next_multiple_of(ALIGNMENT).min(chunk.len);
        Ok(Piece { chunk, offset, len })
    }
}

/// Some bytes of an [`Arena`], which no other piece holds.
#[derive(Debug)]
pub struct Piece {
    chunk: Arc<Chunk>,
    offset: usize,
    len: usize,
}

impl Piece {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: inside the block, which lives as long as this piece; nobody else writes there.
        unsafe { std::slice::from_raw_parts(self.chunk.start.add(self.offset), self.len) }
    }

    /// The bytes, to fill.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for reading; the piece is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.chunk.start.add(self.offset), self.len) }
    }
}

const ALIGNMENT: usize = 64;
const FIRST_BYTES: usize = HUGE_PAGE_BYTES;
/// Pages that nobody writes to cost nothing, so the end of a block may stay unused.
const LARGEST_BYTES: usize = 256 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_zeroed_aligned_and_apart() {
        let arena = Arena::default();
        let mut pieces: Vec<Piece> =
            [1, 64, 100, FIRST_BYTES, 3, 0].map(|len| arena.take(len).unwrap()).into();
        for (i, piece) in pieces.iter_mut().enumerate() {
            assert_eq!(piece.bytes().as_ptr() as usize % ALIGNMENT, 0);
            assert!(piece.bytes().iter().all(|&byte| byte == 0));
            piece.bytes_mut().fill(i as u8 + 1);
        }
        drop(arena);
        for (i, piece) in pieces.iter().enumerate() {
            assert!(piece.bytes().iter().all(|&byte| byte == i as u8 + 1));
        }
    }
}
