//! The command line of moshi-rs, as a library: the native binary and Python's console script both
//! call [`main_from`].
#![forbid(unsafe_code)]

mod card;
mod commands;
pub mod compare;
mod hub;
mod interrupt;
mod options;
mod output;
mod serve_options;
pub mod verify;

use std::ffi::OsString;

use clap::Parser;
use clap::error::ErrorKind;

pub use commands::chat::{Chat, ChatRequest, SessionOpener};
pub use output::CliError;

/// Runs the command line `args` (program name first) and returns the exit code: 0 fine, 1 a check
/// fell short, 2 usage or config, 3 checkpoint, 4 device, 5 input, 130 interrupted.
///
/// `chat` holds the conversation of the command `chat`; without it, that command is an error.
pub fn main_from(args: Vec<OsString>, chat: Option<Chat<'_>>) -> i32 {
    let cli = match options::Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            let help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            // Nothing is left to do when the terminal is gone.
            let _ = error.print();
            return if help { 0 } else { output::EXIT_USAGE };
        }
    };
    output::init_logging(cli.verbose);
    match commands::run(cli.command, chat) {
        Ok(code) => code,
        Err(error) => output::report(&error),
    }
}
