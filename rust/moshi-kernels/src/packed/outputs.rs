//! Outputs of a product, written panel by panel by several threads.

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

    /// Stores the outputs of a panel for the rows from `first` on.
    #[inline]
    pub(super) fn put(&self, panel: usize, first: usize, values: &[[f32; PANEL]]) {
        let start = panel * PANEL;
        assert!(start < self.width, "panels of this product");
        let count = PANEL.min(self.width - start);
        assert!(first + values.len() <= self.rows, "rows of this product");
        for (row, values) in (first..).zip(values) {
            // SAFETY: inside the output, whose borrow this value holds; no other thread has these
            // rows of the panel.
            let y = unsafe {
                std::slice::from_raw_parts_mut(self.start.add(row * self.width + start), count)
            };
            let values = &values[..count];
            match self.store {
                Store::Set(None) => y.copy_from_slice(values),
                Store::Set(Some(bias)) => {
                    for ((y, value), bias) in y.iter_mut().zip(values).zip(&bias[start..]) {
                        *y = value + bias;
                    }
                }
                Store::Add(None) => {
                    for (y, value) in y.iter_mut().zip(values) {
                        *y += value;
                    }
                }
                Store::Add(Some(scale)) => {
                    for ((y, value), scale) in y.iter_mut().zip(values).zip(&scale[start..]) {
                        *y += scale * value;
                    }
                }
            }
        }
    }
}
