//! The engine's log records go to Python's `logging`, under the logger `moshi_rs`.
//!
//! Nothing is buffered: a record attaches to the interpreter and is handed over. That cannot
//! deadlock, since no thread waits for the engine's locks while it holds the GIL.

use std::sync::Once;

use log::{Level, LevelFilter, Log, Metadata, Record};
use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::prelude::*;

/// Name of the Python logger.
const LOGGER: &str = "moshi_rs";
/// Common start of the targets of this project's crates; other crates' records are dropped.
const TARGETS: &str = "moshi_";

struct PythonLogger;

/// Starts forwarding. Not done at import: the command line, when it comes first, sets up its own.
pub(crate) fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        if log::set_logger(&PythonLogger).is_ok() {
            // Records of a step are traces; they must not cost a trip to the interpreter.
            log::set_max_level(LevelFilter::Debug);
        }
    });
}

impl Log for PythonLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with(TARGETS)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let level = match record.level() {
            Level::Error => 40,
            Level::Warn => 30,
            Level::Info => 20,
            Level::Debug | Level::Trace => 10,
        };
        let message = record.args().to_string();
        // `None` while the interpreter shuts down: there is nobody left to tell.
        let _ = Python::try_attach(|py| {
            let logger = py.import("logging").and_then(|m| m.call_method1("getLogger", (LOGGER,)));
            let logged = logger.and_then(|logger| logger.call_method1("log", (level, message)));
            match logged {
                Ok(_) => {}
                // Ctrl-C came while the record was handed over. It is meant for the call that
                // logs, which looks for signals.
                Err(error) if error.is_instance_of::<PyKeyboardInterrupt>(py) => {
                    let thread = py.import("_thread");
                    if let Err(error) = thread.and_then(|t| t.call_method0("interrupt_main")) {
                        error.write_unraisable(py, None);
                    }
                }
                Err(error) => error.write_unraisable(py, None),
            }
        });
    }

    fn flush(&self) {}
}
