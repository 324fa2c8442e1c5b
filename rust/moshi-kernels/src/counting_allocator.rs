//! The system's allocator with a counter, for programs that measure their own steps.
#![allow(unsafe_code, reason = "a global allocator cannot be written without")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The system's allocator. It counts allocations of all threads while [`Counted`] values live, and
/// costs one read of a flag otherwise.
///
/// A program makes it its own: `#[global_allocator] static ALLOCATOR: CountingAllocator = ...`.
#[derive(Debug, Default)]
pub struct CountingAllocator;

/// Set by the first allocation that passes through the counting allocator.
static INSTALLED: AtomicBool = AtomicBool::new(false);
static COUNTING: AtomicU64 = AtomicU64::new(0);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

/// Counts allocations from its start on.
#[derive(Debug)]
pub struct Counted(());

impl Counted {
    /// Starts to count; `None` in programs with another allocator.
    pub fn start() -> Option<Self> {
        COUNTING.fetch_add(1, Ordering::SeqCst);
        let counted = Self(());
        let before = ALLOCATIONS.load(Ordering::SeqCst);
        drop(std::hint::black_box(Box::new(before)));
        (INSTALLED.load(Ordering::SeqCst) && ALLOCATIONS.load(Ordering::SeqCst) > before)
            .then_some(counted)
    }

    /// Allocations and reallocations so far, of all threads; only differences mean something.
    pub fn total(&self) -> u64 {
        ALLOCATIONS.load(Ordering::Relaxed)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        COUNTING.fetch_sub(1, Ordering::SeqCst);
    }
}

// SAFETY: every call is passed on unchanged; counting does not allocate.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `GlobalAlloc::dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `GlobalAlloc::realloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[inline]
fn count() {
    if COUNTING.load(Ordering::Relaxed) > 0 {
        INSTALLED.store(true, Ordering::Relaxed);
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[global_allocator]
    static ALLOCATOR: CountingAllocator = CountingAllocator;

    #[test]
    fn allocations_are_counted_while_somebody_counts() {
        let counted = Counted::start().expect("this test binary has the allocator");
        let before = counted.total();
        let mut values = std::hint::black_box(vec![1u8; 100]);
        values.reserve_exact(10_000);
        assert!(counted.total() >= before + 2, "an allocation and a reallocation");
    }
}
