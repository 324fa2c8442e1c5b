//! Rows of one slice, each written by one thread.
#![allow(unsafe_code, reason = "threads write disjoint parts of one slice")]

use std::marker::PhantomData;

/// Rows of equal length.
pub(crate) struct Rows<'a, T> {
    start: *mut T,
    count: usize,
    width: usize,
    _borrowed: PhantomData<&'a mut [T]>,
}

// SAFETY: rows do not overlap, and callers of `row` keep them apart.
unsafe impl<T: Send> Sync for Rows<'_, T> {}

impl<'a, T> Rows<'a, T> {
    pub(crate) fn new(values: &'a mut [T], width: usize) -> Self {
        let count = values.len() / width;
        Self { start: values.as_mut_ptr(), count, width, _borrowed: PhantomData }
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// # Safety
    /// A row is borrowed once at a time.
    #[allow(clippy::mut_from_ref, reason = "rows are kept apart by the caller")]
    pub(crate) unsafe fn row(&self, row: usize) -> &mut [T] {
        assert!(row < self.count, "rows of this slice");
        // SAFETY: inside the borrowed slice; the caller borrows no row twice.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.width), self.width) }
    }
}
