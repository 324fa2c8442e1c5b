//! Memory of activations, used again from step to step.

use std::sync::{Arc, Mutex, PoisonError};

use moshi_kernels::packed::Quantised;

use crate::scratch::{Spare, Taken};

/// Memory of buffers that are gone.
#[derive(Default)]
pub(super) struct Memory {
    floats: Mutex<Vec<Vec<f32>>>,
    rounded: Spare<Quantised>,
}

/// Activations `[rows, width]`; the memory goes back to the executor.
pub struct Buffer {
    width: usize,
    len: usize,
    memory: Vec<f32>,
    home: Arc<Memory>,
}

/// More buffers than any step has at a time.
const MOST_SPARE: usize = 64;

impl Memory {
    /// A buffer of any values.
    pub(super) fn buffer(self: &Arc<Self>, rows: usize, width: usize) -> Buffer {
        let len = rows * width;
        Buffer { width, len, memory: self.take(len), home: Arc::clone(self) }
    }

    /// Memory for rounded activations.
    pub(super) fn rounded(&self) -> Taken<'_, Quantised> {
        self.rounded.take()
    }

    /// The smallest piece that is large enough, so that large ones are left for those who need
    /// them.
    fn take(&self, len: usize) -> Vec<f32> {
        let mut spare = self.floats.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = spare.iter().enumerate().filter(|(_, memory)| memory.len() >= len);
        let smallest = fitting.min_by_key(|(_, memory)| memory.len()).map(|(index, _)| index);
        match smallest {
            Some(index) => spare.swap_remove(index),
            None => {
                drop(spare);
                vec![0.0; len]
            }
        }
    }

    fn give_back(&self, memory: Vec<f32>) {
        let mut spare = self.floats.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < MOST_SPARE {
            if spare.capacity() == 0 {
                spare.reserve(MOST_SPARE);
            }
            spare.push(memory);
        }
    }
}

impl Buffer {
    pub(super) fn width(&self) -> usize {
        self.width
    }

    pub(super) fn rows(&self) -> usize {
        self.len / self.width
    }

    pub(super) fn reshape(&mut self, width: usize) {
        debug_assert_eq!(self.len % width, 0);
        self.width = width;
    }

    pub(super) fn values(&self) -> &[f32] {
        &self.memory[..self.len]
    }

    pub(super) fn values_mut(&mut self) -> &mut [f32] {
        &mut self.memory[..self.len]
    }

    pub(super) fn row(&self, row: usize) -> &[f32] {
        &self.values()[row * self.width..(row + 1) * self.width]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.home.give_back(std::mem::take(&mut self.memory));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_buffers_is_used_again() {
        let memory = Arc::<Memory>::default();
        let first = memory.buffer(3, 5);
        let place = first.memory.as_ptr();
        drop(first);
        let second = memory.buffer(2, 7);
        assert_eq!(second.memory.as_ptr(), place);
        assert_eq!((second.rows(), second.values().len()), (2, 14));
    }
}
