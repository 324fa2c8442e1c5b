//! Recordings with or without a batch axis, in and out of the codec's offline calls.

use moshi_core::Result;
use numpy::{Element, PyArrayDyn};
use pyo3::prelude::*;

use crate::array::Array;
use crate::{array, errors};

/// Recordings of equal shape, one after the other, with or without a batch axis.
pub(crate) struct Batch<T> {
    data: Vec<T>,
    /// Length of the batch axis, if there is one.
    count: Option<usize>,
    /// Values per recording.
    len: usize,
}

impl Batch<f32> {
    /// `[samples]` or `[batch, 1, samples]`.
    pub(crate) fn of_signals(array: Array<f32>) -> PyResult<Self> {
        let (count, len) = match array.shape[..] {
            [samples] => (None, samples),
            [batch, 1, samples] => (Some(batch), samples),
            _ => {
                let reason =
                    format!("shape {:?} is neither [samples] nor [batch, 1, samples]", array.shape);
                return Err(errors::input("pcm", reason));
            }
        };
        Ok(Self { data: array.data, count, len })
    }
}

impl<T: Sync> Batch<T> {
    /// `[rows, frames]` or `[batch, rows, frames]`; also returns the number of frames.
    pub(crate) fn of_columns(what: &str, array: Array<T>) -> PyResult<(Self, usize)> {
        let (count, rows, frames) = match array.shape[..] {
            [rows, frames] => (None, rows, frames),
            [batch, rows, frames] => (Some(batch), rows, frames),
            _ => {
                let shape = &array.shape;
                let reason =
                    format!("shape {shape:?} is neither [rows, frames] nor [batch, rows, frames]");
                return Err(errors::input(what, reason));
            }
        };
        if rows == 0 {
            return Err(errors::input(what, format!("shape {:?} has no rows", array.shape)));
        }
        Ok((Self { data: array.data, count, len: rows * frames }, frames))
    }

    pub(crate) fn map<U>(&self, each: impl Fn(&[T]) -> Result<Vec<U>>) -> Result<Vec<U>> {
        let mut out = Vec::new();
        for i in 0..self.count.unwrap_or(1) {
            out.extend(each(&self.data[i * self.len..(i + 1) * self.len])?);
        }
        Ok(out)
    }

    /// Results of `rows` rows each.
    pub(crate) fn columns<'py, U: Element>(
        &self,
        py: Python<'py>,
        data: Vec<U>,
        rows: usize,
    ) -> PyResult<Bound<'py, PyArrayDyn<U>>> {
        let columns = data.len() / (rows * self.count.unwrap_or(1)).max(1);
        match self.count {
            None => array::shaped(py, data, &[rows, columns]),
            Some(batch) => array::shaped(py, data, &[batch, rows, columns]),
        }
    }

    /// Results of one channel each.
    pub(crate) fn signals<'py, U: Element>(
        &self,
        py: Python<'py>,
        data: Vec<U>,
    ) -> PyResult<Bound<'py, PyArrayDyn<U>>> {
        match self.count {
            None => {
                let samples = data.len();
                array::shaped(py, data, &[samples])
            }
            Some(_) => self.columns(py, data, 1),
        }
    }
}
