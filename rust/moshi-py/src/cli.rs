//! `cli_main`: the command line, with Python's sound devices for the command `chat`.

use std::ffi::OsString;

use moshi_cli::{ChatRequest, SessionOpener};
use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyDict, PyTuple};

use crate::model::StreamingModel;
use crate::runtime;
use crate::session::Session;

/// Runs the command line.
///
/// Args:
///     args: Program name, then arguments.
///     chat: Holds the conversation of the command ``chat`` and returns the exit code; without
///         it, that command is an error. It gets the options, a dict with ``input_device``,
///         ``output_device`` (numbers or parts of names, as str, or None), ``record`` (a path or
///         None), and a callable that loads the model and returns it with a session, or None
///         when a list of the devices is asked for.
///
/// Returns:
///     The exit code: 0 fine, 1 a check fell short, 2 usage or config, 3 checkpoint,
///     4 device, 5 input, 130 interrupted.
#[pyfunction]
#[pyo3(signature = (args, chat=None))]
pub(crate) fn cli_main(
    py: Python<'_>,
    args: Vec<OsString>,
    chat: Option<Py<PyAny>>,
) -> PyResult<i32> {
    let mut raised = None;
    let code = runtime::enter(py, || {
        let Some(chat) = chat else { return Ok(moshi_cli::main_from(args, None)) };
        let mut converse = |request| {
            let code = Python::attach(|py| call(py, &chat, request));
            code.unwrap_or_else(|error| {
                raised = Some(error);
                1
            })
        };
        Ok(moshi_cli::main_from(args, Some(&mut converse)))
    })?;
    raised.map_or(Ok(code), Err)
}

fn call(py: Python<'_>, chat: &Py<PyAny>, request: ChatRequest) -> PyResult<i32> {
    let options = PyDict::new(py);
    options.set_item("input_device", request.input_device)?;
    options.set_item("output_device", request.output_device)?;
    options.set_item("record", request.record)?;
    let open = request.opener.map(|opener| opener_for_python(py, opener)).transpose()?;
    chat.call1(py, (options, open))?.extract(py)
}

fn opener_for_python(py: Python<'_>, opener: SessionOpener) -> PyResult<Bound<'_, PyCFunction>> {
    let open = move |args: &Bound<'_, PyTuple>, _: Option<&Bound<'_, PyDict>>| {
        let (model, session) = runtime::enter(args.py(), || opener.open())?;
        PyResult::Ok((StreamingModel::new(model, None), Session::new(session)))
    };
    PyCFunction::new_closure(py, Some(c"open_session"), None, open)
}
