//! One module per command.

mod codec;
mod info;
mod run;
mod verify;

use crate::options::Command;
use crate::output::Result;

/// Runs a command and gives its exit code.
pub(crate) fn run(command: Command) -> Result<i32> {
    match command {
        Command::Run(args) => run::run(&args),
        Command::Encode(args) => codec::encode(&args),
        Command::Decode(args) => codec::decode(&args),
        Command::Info(args) => info::info(&args),
        Command::Verify(args) => verify::verify(&args),
    }
}
