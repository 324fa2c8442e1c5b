//! The last input rows of a convolution, on the host: what both executors of plain slices keep.

/// `[rows, width]`, oldest first.
pub struct Tail {
    width: usize,
    rows: Vec<f32>,
}

impl Tail {
    /// Zeros.
    pub(super) fn new(rows: usize, width: usize) -> Self {
        Self { width, rows: vec![0.0; rows * width] }
    }

    /// All values.
    pub(super) fn values(&self) -> &[f32] {
        &self.rows
    }

    /// Replaces all values.
    pub(super) fn set(&mut self, values: &[f32]) {
        self.rows.copy_from_slice(values);
    }

    /// Sets every row.
    pub(super) fn fill(&mut self, row: &[f32]) {
        self.rows.chunks_exact_mut(self.width).for_each(|to| to.copy_from_slice(row));
    }
}
