//! The step loop: two seconds of silence into a model, its text to the terminal.
#![allow(clippy::print_stdout, reason = "it is what the program does")]

use std::path::Path;

use moshi_core::{LoadOptions, Model, Session, SessionOptions};

fn main() -> moshi_core::Result<()> {
    let model = Model::load(Path::new("tests/golden/dialogue_repo"), &LoadOptions::default())?;
    let options = SessionOptions { seed: Some(7), ..SessionOptions::default() };
    let mut session = Session::new(&model, &options)?;
    let silence = vec![0.0; model.info().frame_samples];
    for _ in 0..25 {
        print!("{}", session.step(&silence)?.text);
    }
    println!();
    Ok(())
}
