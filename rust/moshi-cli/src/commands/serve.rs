//! `moshi-rs serve`.

use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;

use moshi_core::{LoadObserver, Memory, Model};
use moshi_kernels::heap::keep_compact;
use moshi_serve::{ModelBackend, Server};

use crate::commands::run::sampling;
use crate::hub;
use crate::output::{Loading, Result, line};
use crate::serve_options::ServeArgs;

pub(crate) fn serve(args: &ServeArgs) -> Result<i32> {
    keep_compact();
    let server = Server::bind(args.config()?)?;
    let loading = Watching { shown: Loading::new(false), session_bytes: Cell::new(0) };
    let repo = hub::open(&args.speech)?;
    let model = Model::open(&repo, &args.speech.load_options(), &loading)?;
    loading.shown.finish();
    let sampling = sampling(&args.speech, &model);
    let name = public_name(&model.info().source);
    let backend = ModelBackend::new(model, name.clone(), loading.session_bytes.get())
        .with_defaults(sampling, args.speech.seed);
    let worker = server.start(Arc::new(backend))?;
    let scheme = if server.is_encrypted() { "https" } else { "http" };
    let slots = worker.hub().slots();
    line(format_args!(
        "serving {name} on {scheme}://{} for {} {} at a time; Ctrl-C stops",
        server.address()?,
        slots.capacity,
        if slots.capacity == 1 { "session" } else { "sessions" }
    ))?;
    if let Some(note) = server.tls_note() {
        line(note)?;
    }
    server.run_until_signal(worker)?;
    Ok(0)
}

/// The model in the box, without spaces and brackets.
const BOX_NAME: &str = "moshi-box";

/// Clients need not know where a folder is on this machine.
fn public_name(source: &str) -> String {
    if source == moshi_box::LABEL {
        return BOX_NAME.to_owned();
    }
    let path = Path::new(source);
    match path.file_name() {
        Some(name) if path.exists() => name.to_string_lossy().into_owned(),
        _ => source.to_owned(),
    }
}

/// Shows the loading, and remembers what a session takes.
struct Watching {
    shown: Loading,
    session_bytes: Cell<u64>,
}

impl LoadObserver for Watching {
    fn memory(&self, memory: &Memory) {
        self.session_bytes.set(memory.session_bytes());
        self.shown.memory(memory);
    }

    fn progress(&self, bytes: u64, total_bytes: u64) {
        self.shown.progress(bytes, total_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_known_by_their_last_name() {
        let folder = env!("CARGO_MANIFEST_DIR");
        assert_eq!(public_name(folder), "moshi-cli");
        assert_eq!(public_name("kyutai/moshiko-pytorch-bf16"), "kyutai/moshiko-pytorch-bf16");
    }
}
