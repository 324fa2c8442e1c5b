//! Models by name: downloads without the GIL, told to `logging`, stopped by Ctrl-C.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use moshi_core::Result;
use moshi_hub::{HubOptions, Progress};
use pyo3::prelude::*;

use crate::runtime;

/// Runs `load` without the GIL, with what the environment says about the hub.
pub(crate) fn enter<T, F>(py: Python<'_>, revision: Option<&str>, load: F) -> PyResult<T>
where
    F: FnOnce(&HubOptions) -> Result<T> + Send,
    T: Send,
{
    let watch = Arc::new(Watch::default());
    let options = HubOptions {
        revision: revision.map(Into::into),
        progress: watch.clone(),
        ..HubOptions::from_env()
    };
    let result = runtime::enter(py, || load(&options));
    // The signal's exception says more than the download that it stopped.
    match watch.state().signal.take() {
        Some(signal) => Err(signal),
        None => result,
    }
}

const SIGNAL_PERIOD: Duration = Duration::from_millis(200);
const REPORT_PERIOD: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
struct Watch(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    file: String,
    total_bytes: Option<u64>,
    checked: Option<Instant>,
    reported: Option<Instant>,
    signal: Option<PyErr>,
}

impl Watch {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress for Watch {
    fn start(&self, file: &str, total_bytes: Option<u64>) {
        let mut state = self.state();
        state.file = file.into();
        state.total_bytes = total_bytes;
        state.reported = Some(Instant::now());
    }

    fn at(&self, bytes: u64) -> ControlFlow<()> {
        let mut state = self.state();
        let is_due =
            |last: Option<Instant>, period| last.is_none_or(|last| last.elapsed() >= period);
        if let Some(total) = state.total_bytes.filter(|&total| total > 0)
            && is_due(state.reported, REPORT_PERIOD)
        {
            let percent = 100.0 * bytes as f64 / total as f64;
            log::info!("{}: {percent:.0} % of {:.1} MB", state.file, total as f64 / 1e6);
            state.reported = Some(Instant::now());
        }
        if is_due(state.checked, SIGNAL_PERIOD) {
            state.checked = Some(Instant::now());
            #[allow(
                clippy::redundant_closure_for_method_calls,
                reason = "its lifetime is not general"
            )]
            let signals = Python::attach(|py| py.check_signals());
            if let Err(signal) = signals {
                state.signal = Some(signal);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }

    fn finish(&self) {
        self.state().total_bytes = None;
    }
}
