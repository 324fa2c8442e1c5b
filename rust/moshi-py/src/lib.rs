//! The Python module `moshi_rs._core`: frozen classes over `moshi-core`, nothing more.
//!
//! One class per file; [`runtime`] is the only way from Python into the engine, [`array`] the
//! only place that looks at NumPy arrays, [`errors`] the only table of exceptions. Docstrings
//! live here, types in `python/moshi_rs/_core.pyi`.
#![forbid(unsafe_code)]

mod array;
mod batch;
mod build_info;
mod errors;
mod hub;
mod language_model;
mod lm_stream;
mod logging;
mod mimi;
mod mimi_stream;
mod model;
mod options;
mod runtime;
mod session;

/// Streaming inference of Kyutai's Moshi family, the native part.
#[pyo3::pymodule(gil_used = true)]
mod _core {
    use std::ffi::OsString;

    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::build_info::build_info;
    #[pymodule_export]
    use crate::language_model::LanguageModel;
    #[pymodule_export]
    use crate::lm_stream::{LmStep, LmStream};
    #[pymodule_export]
    use crate::mimi::Mimi;
    #[pymodule_export]
    use crate::mimi_stream::MimiStream;
    #[pymodule_export]
    use crate::model::StreamingModel;
    #[pymodule_export]
    use crate::session::{Session, step_batch};

    use crate::runtime;

    /// Runs the command line.
    ///
    /// Args:
    ///     args: Program name, then arguments.
    ///
    /// Returns:
    ///     The exit code: 0 fine, 1 a check fell short, 2 usage or config, 3 checkpoint,
    ///     4 device, 5 input, 130 interrupted.
    #[pyfunction]
    fn cli_main(py: Python<'_>, args: Vec<OsString>) -> PyResult<i32> {
        runtime::enter(py, || Ok(moshi_cli::main_from(args)))
    }

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
