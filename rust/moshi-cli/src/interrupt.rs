//! Ctrl-C: a streaming loop leaves no half-written file, anything else stops at once. A second Ctrl-C
//! always stops at once.

use std::sync::Once;
use std::sync::atomic::{AtomicU8, Ordering};

/// What shells expect of a program that SIGINT ended.
pub(crate) const EXIT_INTERRUPTED: i32 = 130;

const STOP_AT_ONCE: u8 = 0;
const WATCHED: u8 = 1;
const REQUESTED: u8 = 2;

static STATE: AtomicU8 = AtomicU8::new(STOP_AT_ONCE);
static HANDLER: Once = Once::new();

/// While it lives, the first Ctrl-C only sets [`Watch::requested`].
pub(crate) struct Watch(());

impl Watch {
    pub(crate) fn new() -> Self {
        HANDLER.call_once(|| {
            // Without a handler the default action remains, which is to stop at once.
            if let Err(error) = ctrlc::set_handler(on_interrupt) {
                log::debug!("no Ctrl-C handler: {error}");
            }
        });
        STATE.store(WATCHED, Ordering::SeqCst);
        Self(())
    }

    #[allow(clippy::unused_self, reason = "only who watches may ask")]
    pub(crate) fn requested(&self) -> bool {
        STATE.load(Ordering::SeqCst) == REQUESTED
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        STATE.store(STOP_AT_ONCE, Ordering::SeqCst);
    }
}

#[allow(clippy::exit, reason = "nothing is in progress that would have to be completed")]
fn on_interrupt() {
    if STATE.compare_exchange(WATCHED, REQUESTED, Ordering::SeqCst, Ordering::SeqCst).is_err() {
        std::process::exit(EXIT_INTERRUPTED);
    }
}
