//! Outputs of a product, written panel by panel by several threads.
#![allow(
    clippy::inline_always,
    reason = "compiled for the instruction set of the caller only where it is inlined"
)]

use std::marker::PhantomData;

use super::Store;
use super::products::PANEL;

/// `[row, out]`, of which every panel of some rows is written by the one thread that computes it.
pub(super) struct Outputs<'a> {
    start: *mut f32,
    width: usize,
    rows: usize,
    store: Store<'a>,
    _borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: panels are columns of their own, and some rows of one are computed by one part of the work.
unsafe impl Send for Outputs<'_> {}
// SAFETY: as above.
unsafe impl Sync for Outputs<'_> {}

impl<'a> Outputs<'a> {
    pub(super) fn new(y: &'a mut [f32], width: usize, store: Store<'a>) -> Self {
        if let Store::Set(Some(scale)) | Store::Add(Some(scale)) = store {
            assert_eq!(scale.len(), width, "one value per output");
        }
        let rows = y.len() / width;
        Self { start: y.as_mut_ptr(), width, rows, store, _borrowed: PhantomData }
    }

    /// A panel of a row and what belongs to it, where the panel is full.
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "every panel of a row is one thread's alone")]
    pub(super) fn whole(&self, panel: usize, row: usize) -> Option<(&mut [f32; PANEL], Whole<'_>)> {
        let start = panel * PANEL;
        if row >= self.rows || start + PANEL > self.width {
            return None;
        }
        // SAFETY: inside the output, whose borrow this value holds; no other thread has this panel
        // of the row.
        let y = unsafe { &mut *self.start.add(row * self.width + start).cast() };
        let of_panel =
            |scale: &'a [f32]| scale[start..start + PANEL].try_into().expect("a range of as many");
        let by = match self.store {
            Store::Set(bias) => Whole::Set(bias.map(of_panel)),
            Store::Add(scale) => Whole::Add(scale.map(of_panel)),
        };
        Some((y, by))
    }

    /// Stores the outputs of a panel that is not full for a row.
    #[inline(never)]
    pub(super) fn put_some(&self, panel: usize, row: usize, values: &[f32; PANEL]) {
        let start = panel * PANEL;
        assert!(start < self.width, "panels of this product");
        assert!(row < self.rows, "rows of this product");
        let count = PANEL.min(self.width - start);
        // SAFETY: as in `whole`.
        let y = unsafe {
            std::slice::from_raw_parts_mut(self.start.add(row * self.width + start), count)
        };
        for (i, (y, value)) in y.iter_mut().zip(values).enumerate() {
            *y = match self.store {
                Store::Set(None) => *value,
                Store::Set(Some(bias)) => value + bias[start + i],
                Store::Add(None) => *y + value,
                Store::Add(Some(scale)) => *y + scale[start + i] * value,
            };
        }
    }
}

/// What happens to a full panel of sums, as [`Store`].
pub(super) enum Whole<'a> {
    Set(Option<&'a [f32; PANEL]>),
    Add(Option<&'a [f32; PANEL]>),
}
