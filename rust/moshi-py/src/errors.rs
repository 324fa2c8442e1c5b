//! From the engine's errors to the exceptions of `moshi_rs.errors`.

use moshi_core::Error;
use pyo3::PyErr;
use pyo3::exceptions::PyTypeError;

/// The Python classes.
mod classes {
    #![allow(unreachable_pub, reason = "the macro makes its types public")]
    #![allow(missing_docs, reason = "documented in python/moshi_rs/errors.py")]
    use pyo3::import_exception;

    import_exception!(moshi_rs.errors, CapacityError);
    import_exception!(moshi_rs.errors, CheckpointError);
    import_exception!(moshi_rs.errors, CheckpointNotFoundError);
    import_exception!(moshi_rs.errors, ConfigError);
    import_exception!(moshi_rs.errors, DeviceError);
    import_exception!(moshi_rs.errors, InputError);
    import_exception!(moshi_rs.errors, InternalError);
    import_exception!(moshi_rs.errors, SessionError);
}

/// The exception of an error. Exhaustive on purpose: a new variant must choose its class here.
pub(crate) fn to_python(error: &Error) -> PyErr {
    let text = error.to_string();
    match error {
        Error::Config { .. } | Error::ConfigFile { .. } => classes::ConfigError::new_err(text),
        Error::NotFound { .. } => classes::CheckpointNotFoundError::new_err(text),
        Error::Io { .. } | Error::Hub { .. } | Error::Checkpoint { .. } | Error::Tensors { .. } => {
            classes::CheckpointError::new_err(text)
        }
        Error::Input { .. } | Error::Snapshot { .. } => classes::InputError::new_err(text),
        Error::Device { .. } => classes::DeviceError::new_err(text),
        Error::Capacity { .. } => classes::CapacityError::new_err(text),
        Error::Session { .. } => classes::SessionError::new_err(text),
    }
}

/// An option whose value this version does not accept.
pub(crate) fn option(name: &str, value: impl std::fmt::Display, reason: &str) -> PyErr {
    classes::ConfigError::new_err(format!("option {name} is {value}: {reason}"))
}

/// A value that the caller passed and that is unusable.
pub(crate) fn input(what: &str, reason: impl std::fmt::Display) -> PyErr {
    classes::InputError::new_err(format!("{what}: {reason}"))
}

/// A value of the wrong type.
pub(crate) fn wrong_type(what: &str, reason: impl std::fmt::Display) -> PyErr {
    PyTypeError::new_err(format!("{what}: {reason}"))
}

/// A broken invariant of the engine.
pub(crate) fn internal(text: &str) -> PyErr {
    classes::InternalError::new_err(format!(
        "internal error: {text}; this is a bug in moshi-rs, please report it with the output of \
         moshi_rs.build_info()"
    ))
}
