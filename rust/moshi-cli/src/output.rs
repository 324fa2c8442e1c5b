//! What reaches the terminal: results on stdout, progress and logs on stderr, exit codes.

use std::io::Write;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use moshi_audio::AudioError;
use moshi_core::{Error, LoadObserver, Memory};
use moshi_serve::ServeError;

pub(crate) const EXIT_FELL_SHORT: i32 = 1;
pub(crate) const EXIT_USAGE: i32 = 2;
const EXIT_CHECKPOINT: i32 = 3;
const EXIT_DEVICE: i32 = 4;
const EXIT_INPUT: i32 = 5;

/// Any failure of a command.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// From the engine.
    #[error(transparent)]
    Engine(#[from] Error),
    /// From an audio file.
    #[error(transparent)]
    Audio(#[from] AudioError),
    /// From the daemon or a client of one.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// Options that do not go together, or a value out of range.
    #[error("{0}")]
    Usage(String),
    /// A file that a command reads or writes, other than audio and checkpoints.
    #[error("{0}")]
    Input(String),
    /// The terminal or pipe that takes the output is gone.
    #[error("cannot write the output: {0}")]
    Output(#[from] std::io::Error),
}

pub(crate) type Result<T, E = CliError> = std::result::Result<T, E>;

impl CliError {
    fn exit_code(&self) -> i32 {
        match self {
            Self::Engine(error) => engine_code(error),
            Self::Serve(error) => match error {
                ServeError::Engine(error) => engine_code(error),
                ServeError::Config(_) | ServeError::Bind { .. } => EXIT_USAGE,
                ServeError::File { .. } | ServeError::Connect { .. } => EXIT_INPUT,
                ServeError::Worker(_) | ServeError::Runtime(_) => EXIT_FELL_SHORT,
            },
            Self::Usage(_) => EXIT_USAGE,
            Self::Audio(_) | Self::Input(_) => EXIT_INPUT,
            Self::Output(_) => EXIT_FELL_SHORT,
        }
    }
}

fn engine_code(error: &Error) -> i32 {
    match error {
        Error::Config { .. } | Error::ConfigFile { .. } => EXIT_USAGE,
        Error::NotFound { .. }
        | Error::Io { .. }
        | Error::Hub { .. }
        | Error::Checkpoint { .. }
        | Error::Tensors { .. } => EXIT_CHECKPOINT,
        Error::Device { .. } | Error::Capacity { .. } => EXIT_DEVICE,
        Error::Input { .. } | Error::Snapshot { .. } | Error::Session { .. } => EXIT_INPUT,
    }
}

/// Prints an error and gives its exit code.
pub(crate) fn report(error: &CliError) -> i32 {
    let broken_pipe =
        matches!(error, CliError::Output(e) if e.kind() == std::io::ErrorKind::BrokenPipe);
    if !broken_pipe {
        let _ = writeln!(std::io::stderr(), "error: {}", one_line(&error.to_string()));
    }
    error.exit_code()
}

/// The text with control characters escaped: names and texts in files may hold sequences that a
/// terminal obeys.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

/// Prints a line to stdout.
pub(crate) fn line(text: impl std::fmt::Display) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}

/// Prints without a line end and shows it at once.
pub(crate) fn text(text: &str) -> Result<()> {
    let mut out = std::io::stdout();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Warnings by default, `-v` for information, `-vv` for everything.
pub(crate) fn init_logging(verbose: u8) {
    let level = match verbose {
        0 => log::LevelFilter::Warn,
        1 => log::LevelFilter::Info,
        _ => log::LevelFilter::Debug,
    };
    let mut builder = env_logger::Builder::new();
    // A decoder's complaints about odd files come as our own errors.
    builder.filter_level(log::LevelFilter::Warn).filter_module("symphonia", log::LevelFilter::Off);
    for module in
        ["moshi_core", "moshi_box", "moshi_hub", "moshi_cli", "moshi_audio", "moshi_serve"]
    {
        builder.filter_module(module, level);
    }
    // In Python, a logger may be set already; its configuration wins.
    let _ = builder.format_target(false).try_init();
}

/// A bar over `total` steps on stderr, or a counter when the total is unknown. Hidden where
/// stderr is no terminal.
pub(crate) fn progress(total: Option<u64>, unit: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr_with_hz(8));
    let template = match total {
        Some(_) => format!("{{bar:30}} {{pos}}/{{len}} {unit}  {{elapsed}} of {{duration}}"),
        None => format!("{{spinner}} {{pos}} {unit}  {{elapsed}}"),
    };
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style);
    }
    bar
}

/// Shows the loading of a model on stderr: what it will take, then a bar over the bytes read.
pub(crate) struct Loading {
    bar: ProgressBar,
    quiet: bool,
}

impl Loading {
    /// `quiet` leaves out the line about memory.
    pub(crate) fn new(quiet: bool) -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(8));
        let template = "{bar:30} {bytes} of {total_bytes}  {bytes_per_sec}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self { bar, quiet }
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl LoadObserver for Loading {
    fn memory(&self, memory: &Memory) {
        if !self.quiet {
            let _ = writeln!(std::io::stderr(), "memory: {memory}");
        }
    }

    fn progress(&self, bytes: u64, total_bytes: u64) {
        self.bar.set_length(total_bytes);
        self.bar.set_position(bytes);
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        self.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_one_line_whatever_names_are_in_them() {
        assert_eq!(one_line("tensor a\nb\u{1b}[2J ü"), "tensor a\\nb\\u{1b}[2J ü");
    }
}
