//! One module per command.

mod bench;
pub(crate) mod chat;
mod client;
mod codec;
mod compare_formats;
mod doctor;
mod info;
mod run;
mod serve;
mod verify;

use chat::Chat;

use crate::options::Command;
use crate::output::Result;

/// Runs a command and gives its exit code.
pub(crate) fn run(command: Command, chat: Option<Chat<'_>>) -> Result<i32> {
    match command {
        Command::Run(args) => run::run(&args),
        Command::Chat(args) => chat::chat(args, chat),
        Command::Serve(args) => serve::serve(&args),
        Command::Client(args) => client::client(&args),
        Command::Loadtest(args) => client::loadtest(&args),
        Command::Encode(args) => codec::encode(&args),
        Command::Decode(args) => codec::decode(&args),
        Command::Info(args) => info::info(&args),
        Command::Verify(args) => verify::verify(&args),
        Command::Bench(args) => bench::bench(&args),
        Command::CompareFormats(args) => compare_formats::compare_formats(&args),
        Command::Doctor(args) => doctor::doctor(&args),
    }
}
