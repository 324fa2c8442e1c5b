//! The test suite of moshi-rs: one binary, so that it links once.
//!
//! Every test of a model runs under all executors: bit for bit under the scalar one, equal
//! tokens and close floats under the others.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[macro_use]
mod support;

mod allocations;
mod batching;
mod bench;
mod cli;
mod codec_modes;
mod compare;
mod devices;
mod few_bits;
mod formats;
mod golden_vectors;
mod hostile_configs;
mod hostile_corpus;
mod hostile_files;
mod hostile_gguf;
mod hostile_inputs;
mod hub;
mod in_the_box;
mod kv_formats;
mod layering;
mod layouts;
mod memory;
mod packed_cache;
mod parity;
mod rings;
mod snapshots;
mod snapshots_forged;
mod streaming;
mod text;
mod threads;
