//! The one way from Python into the engine: [`enter`] releases the GIL, turns panics into
//! `InternalError` and errors into their exceptions. [`Exclusive`] is the lock around everything
//! that a step changes: it never waits, since a second call at the same time is a mistake.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, TryLockError};

use moshi_core::error::panic_text;
use moshi_core::{Error, Result};
use pyo3::prelude::*;

use crate::errors;

/// Runs `f` without the GIL.
pub(crate) fn enter<T, F>(py: Python<'_>, f: F) -> PyResult<T>
where
    F: FnOnce() -> Result<T> + Send,
    T: Send,
{
    // Whatever a panic leaves half-done is behind an `Exclusive`, which it poisons.
    match py.detach(|| catch_unwind(AssertUnwindSafe(f))) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(errors::to_python(&error)),
        Err(panic) => Err(errors::internal(panic_text(&*panic))),
    }
}

/// State that one call at a time may use.
pub(crate) struct Exclusive<T> {
    what: &'static str,
    state: Mutex<T>,
}

impl<T> Exclusive<T> {
    /// `what` names the object in errors.
    pub(crate) fn new(what: &'static str, state: T) -> Self {
        Self { what, state: Mutex::new(state) }
    }

    /// The state, unless another call has it or an earlier one broke it.
    pub(crate) fn lock(&self) -> Result<MutexGuard<'_, T>> {
        match self.state.try_lock() {
            Ok(guard) => Ok(guard),
            Err(TryLockError::WouldBlock) => Err(self
                .refuse("is busy: another call is using it; use one session or stream per thread")),
            Err(TryLockError::Poisoned(_)) => {
                Err(self.refuse("was broken by an internal error of an earlier call; reset it"))
            }
        }
    }

    /// As [`Exclusive::lock`], for a caller that replaces all of the state.
    pub(crate) fn lock_for_reset(&self) -> Result<MutexGuard<'_, T>> {
        self.state.clear_poison();
        self.lock()
    }

    fn refuse(&self, reason: &str) -> Error {
        Error::Session { reason: format!("this {} {reason}", self.what) }
    }
}
