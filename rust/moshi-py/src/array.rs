//! Between NumPy and slices: the only checks of dtype, shape and memory layout.
//!
//! Inputs are copied before the interpreter is released, since other threads may write to an array
//! from then on, and checked after that. Without a GIL such a write can also meet the copy itself;
//! as with NumPy's own functions, it is up to the caller that none does. Outputs own their memory
//! and are C-contiguous.

use numpy::{
    Element, IxDyn, PyArray1, PyArray2, PyArrayDescrMethods, PyArrayDyn, PyArrayMethods,
    PyUntypedArray, PyUntypedArrayMethods,
};
use pyo3::exceptions::PyOverflowError;
use pyo3::prelude::*;

use crate::errors;

/// Full scale of 16-bit samples.
const INT16_SCALE: f32 = 1.0 / 32_768.0;

/// The content of an array in C order.
pub(crate) struct Array<T> {
    pub(crate) data: Vec<T>,
    pub(crate) shape: Vec<usize>,
}

impl<T> Array<T> {
    /// Checks the number of dimensions; `layout` names them.
    pub(crate) fn dims<const N: usize>(&self, what: &str, layout: &str) -> PyResult<[usize; N]> {
        <[usize; N]>::try_from(&*self.shape)
            .map_err(|_| errors::input(what, format!("shape {:?} is not {layout}", self.shape)))
    }
}

/// Samples: float32, float64, or int16 scaled to [-1, 1).
pub(crate) fn samples(what: &str, value: &Bound<'_, PyAny>) -> PyResult<Array<f32>> {
    let array = untyped(what, value)?;
    let dtype = array.dtype();
    match (dtype.kind(), dtype.itemsize()) {
        (b'i', 2) => {
            let mut array: Array<f32> = converted(what, array)?;
            array.data.iter_mut().for_each(|sample| *sample *= INT16_SCALE);
            Ok(array)
        }
        (b'f', 4 | 8) => converted(what, array),
        _ => Err(wrong_dtype(what, array, "float32, float64 or int16")),
    }
}

/// Samples of one channel, `[samples]`.
pub(crate) fn signal(what: &str, value: &Bound<'_, PyAny>) -> PyResult<Vec<f32>> {
    let array = samples(what, value)?;
    array.dims::<1>(what, "[samples]")?;
    Ok(array.data)
}

/// One signal per element: a list of arrays, or the rows of an array.
pub(crate) fn signals(what: &str, values: &Bound<'_, PyAny>) -> PyResult<Vec<Vec<f32>>> {
    values.try_iter()?.map(|value| signal(what, &value?)).collect()
}

/// Real numbers: float32 or float64.
pub(crate) fn floats(what: &str, value: &Bound<'_, PyAny>) -> PyResult<Array<f32>> {
    let array = untyped(what, value)?;
    let dtype = array.dtype();
    match (dtype.kind(), dtype.itemsize()) {
        (b'f', 4 | 8) => converted(what, array),
        _ => Err(wrong_dtype(what, array, "float32 or float64")),
    }
}

/// Whole numbers of any width.
pub(crate) fn integers(what: &str, value: &Bound<'_, PyAny>) -> PyResult<Array<i64>> {
    let array = untyped(what, value)?;
    match (array.dtype().kind(), array.dtype().itemsize()) {
        // NumPy's conversion would wrap what int64 cannot hold.
        (b'u', 8) => {
            let Array { data, shape } = converted::<u64>(what, array)?;
            let whole = |value: u64| {
                i64::try_from(value)
                    .map_err(|_| errors::input(what, format!("{value} is out of range")))
            };
            Ok(Array { data: data.into_iter().map(whole).collect::<PyResult<_>>()?, shape })
        }
        (b'i' | b'u', _) => converted(what, array),
        _ => Err(wrong_dtype(what, array, "integers")),
    }
}

/// Flags, `[positions]`: booleans, or whole numbers that are zero or not.
pub(crate) fn flags(what: &str, value: &Bound<'_, PyAny>) -> PyResult<Vec<bool>> {
    let array = untyped(what, value)?;
    let array: Array<i64> = match array.dtype().kind() {
        b'b' | b'i' | b'u' => converted(what, array)?,
        _ => return Err(wrong_dtype(what, array, "booleans")),
    };
    array.dims::<1>(what, "[positions]")?;
    Ok(array.data.into_iter().map(|flag| flag != 0).collect())
}

/// Codes, which are never negative.
pub(crate) fn codes(what: &str, value: &Bound<'_, PyAny>) -> PyResult<Array<u32>> {
    let Array { data, shape } = integers(what, value)?;
    let code = |code: i64| {
        u32::try_from(code).map_err(|_| errors::input(what, format!("{code} is not a code")))
    };
    Ok(Array { data: data.into_iter().map(code).collect::<PyResult<_>>()?, shape })
}

/// Tokens, `[streams]`: an array or a sequence of integers.
pub(crate) fn tokens(what: &str, value: &Bound<'_, PyAny>) -> PyResult<Vec<i64>> {
    if value.cast::<PyUntypedArray>().is_err() {
        return value.extract().map_err(|error: PyErr| {
            if error.is_instance_of::<PyOverflowError>(value.py()) {
                return errors::input(what, "a token is out of range");
            }
            errors::wrong_type(what, "expected an integer array or a sequence of integers")
        });
    }
    let array = integers(what, value)?;
    array.dims::<1>(what, "[streams]")?;
    Ok(array.data)
}

/// A vector for Python.
pub(crate) fn vector<T: Element>(py: Python<'_>, data: Vec<T>) -> Bound<'_, PyArray1<T>> {
    PyArray1::from_vec(py, data)
}

/// An array of any shape for Python.
pub(crate) fn shaped<'py, T: Element>(
    py: Python<'py>,
    data: Vec<T>,
    shape: &[usize],
) -> PyResult<Bound<'py, PyArrayDyn<T>>> {
    PyArray1::from_vec(py, data).reshape(IxDyn(shape))
}

/// A matrix for Python.
pub(crate) fn matrix<T: Element>(
    py: Python<'_>,
    data: Vec<T>,
    rows: usize,
    columns: usize,
) -> PyResult<Bound<'_, PyArray2<T>>> {
    PyArray1::from_vec(py, data).reshape([rows, columns])
}

/// `[row][width]` to `[width][row]`.
pub(crate) fn transposed<T: Copy>(rows: &[T], width: usize) -> Vec<T> {
    if width == 0 {
        return Vec::new();
    }
    (0..width).flat_map(|c| rows.iter().copied().skip(c).step_by(width)).collect()
}

fn untyped<'a, 'py>(
    what: &str,
    value: &'a Bound<'py, PyAny>,
) -> PyResult<&'a Bound<'py, PyUntypedArray>> {
    value.cast().map_err(|_| {
        let got = value.get_type().name().map_or_else(|_| "an object".into(), |n| n.to_string());
        errors::wrong_type(what, format!("expected a numpy.ndarray, got {got}"))
    })
}

/// Content of an array as `T`; anything but aligned C order in that very type is converted by
/// NumPy first.
fn converted<T: Element + Copy>(
    what: &str,
    array: &Bound<'_, PyUntypedArray>,
) -> PyResult<Array<T>> {
    let fast = array.cast::<PyArrayDyn<T>>().ok().filter(|a| a.is_c_contiguous() && a.is_aligned());
    let array = match fast {
        Some(array) => array.clone(),
        None => {
            let dtype = numpy::dtype::<T>(array.py());
            // Positional: order="C", casting="unsafe", subok=False, copy=True.
            let copy = array.call_method1("astype", (dtype, "C", "unsafe", false, true))?;
            copy.cast_into::<PyArrayDyn<T>>()?
        }
    };
    let view = array
        .try_readonly()
        .map_err(|_| errors::input(what, "another call is writing to this array"))?;
    Ok(Array { data: view.as_slice()?.to_vec(), shape: view.shape().to_vec() })
}

fn wrong_dtype(what: &str, array: &Bound<'_, PyUntypedArray>, expected: &str) -> PyErr {
    errors::wrong_type(what, format!("dtype {} is not {expected}", array.dtype()))
}
