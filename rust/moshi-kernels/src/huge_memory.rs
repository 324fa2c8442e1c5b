//! Large blocks of memory on pages of 2 MiB, where the system has them.
//!
//! Weights are read once a step and from end to end: with pages of 4 KiB, a good part of the time
//! goes into finding them.

use std::io;
use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

/// A zeroed block of bytes that starts at a multiple of 2 MiB.
///
/// Pages cost memory only once they are written to.
#[derive(Debug)]
pub struct HugeMemory {
    map: MmapMut,
    start: usize,
    len: usize,
}

impl HugeMemory {
    /// A block of `len` bytes.
    ///
    /// # Errors
    /// When the system has no such memory.
    pub fn zeroed(len: usize) -> io::Result<Self> {
        let too_large = || io::Error::new(io::ErrorKind::OutOfMemory, "too large");
        let padded = len.checked_add(HUGE_PAGE_BYTES).ok_or_else(too_large)?;
        let map = MmapMut::map_anon(padded)?;
        let start = map.as_ptr().align_offset(HUGE_PAGE_BYTES);
        // Only a wish: systems without such pages say no, and all goes on with small ones.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self { map, start, len })
    }
}

impl Deref for HugeMemory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map[self.start..self.start + self.len]
    }
}

impl DerefMut for HugeMemory {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.map[self.start..self.start + self.len]
    }
}

/// Size of a large page.
pub const HUGE_PAGE_BYTES: usize = 2 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_zeroed_aligned_and_of_their_size() {
        for len in [0, 1, HUGE_PAGE_BYTES + 3] {
            let mut memory = HugeMemory::zeroed(len).unwrap();
            assert_eq!(memory.len(), len);
            assert_eq!(memory.as_ptr() as usize % HUGE_PAGE_BYTES, 0);
            assert!(memory.iter().all(|&byte| byte == 0));
            memory.fill(7);
            assert!(memory.iter().all(|&byte| byte == 7));
        }
        assert!(HugeMemory::zeroed(usize::MAX).is_err());
    }
}
