//! Models by name: a path or a repository on the hub, with a bar while files are downloaded.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use moshi_core::checkpoint::Repo;
use moshi_hub::{HubOptions, Progress};

use crate::options::SpeechArgs;

/// What the environment and the command line say about the hub.
pub(crate) fn options(revision: Option<&String>) -> HubOptions {
    HubOptions {
        revision: revision.cloned(),
        progress: Arc::new(Bar::default()),
        ..HubOptions::from_env()
    }
}

/// Opens a model, the one in the box when none is named, and has all files at hand that these
/// arguments ask for, so that loading downloads nothing.
pub(crate) fn open(args: &SpeechArgs) -> moshi_core::Result<Repo> {
    let repo = moshi_box::open_repo(args.model.as_deref(), &options(args.revision.as_ref()))?;
    repo.tokenizer_file()?;
    repo.mimi_file()?;
    repo.moshi_file()?;
    if args.lora.is_none() {
        repo.lora_file()?;
    }
    Ok(repo)
}

/// A bar on stderr: bytes, rate and time to go. Hidden where stderr is no terminal.
#[derive(Debug, Default)]
struct Bar(Mutex<Option<Line>>);

#[derive(Debug)]
struct Line {
    bar: ProgressBar,
    /// What an earlier run left does not count into the rate.
    begun: bool,
}

impl Bar {
    fn line(&self) -> std::sync::MutexGuard<'_, Option<Line>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress for Bar {
    fn start(&self, file: &str, total_bytes: Option<u64>) {
        let target = ProgressDrawTarget::stderr_with_hz(8);
        let bar = ProgressBar::with_draw_target(total_bytes, target);
        let template = match total_bytes {
            Some(_) => "{msg} {bar:30} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} to go",
            None => "{msg} {spinner} {bytes}  {bytes_per_sec}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(file.to_owned());
        *self.line() = Some(Line { bar, begun: false });
    }

    fn at(&self, bytes: u64) -> ControlFlow<()> {
        if let Some(line) = &mut *self.line() {
            line.bar.set_position(bytes);
            if !line.begun {
                line.bar.reset_eta();
                line.begun = true;
            }
        }
        // Ctrl-C ends the process here; what is on disk is resumed by the next one.
        ControlFlow::Continue(())
    }

    fn finish(&self) {
        if let Some(line) = self.line().take() {
            line.bar.finish_and_clear();
        }
    }
}
