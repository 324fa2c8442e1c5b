//! The Python module `moshi_rs._core`: frozen classes over `moshi-core`, nothing more.
//!
//! One class per file; [`runtime`] is the only way from Python into the engine, [`array`] the
//! only place that looks at NumPy arrays, [`errors`] the only table of exceptions. Docstrings
//! live here, types in `python/moshi_rs/_core.pyi`.
#![forbid(unsafe_code)]

mod array;
mod batch;
mod build_info;
mod cli;
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
// Needs no GIL: classes are frozen and `Sync`, state is behind `runtime::Exclusive`, every step
// runs detached anyway, and nothing here is `unsafe`.
#[pyo3::pymodule(gil_used = false)]
mod _core {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::build_info::build_info;
    #[pymodule_export]
    use crate::cli::cli_main;
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

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
