//! Benchmarks of moshi-rs; see `step.rs`.
