//! The native binary `moshi-rs`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use moshi_kernels::counting_allocator::CountingAllocator;

/// Counts for `bench`; elsewhere it passes everything on.
#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    let code = moshi_cli::main_from(std::env::args_os().collect(), None);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
