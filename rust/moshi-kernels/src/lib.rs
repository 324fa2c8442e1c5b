//! Kernels of moshi-rs: functions from slices to slices, and the memory map.
//!
//! This crate knows nothing about tensors, models or checkpoints. It is the only crate of the
//! workspace in which `unsafe` is allowed; every block carries a `SAFETY` note.
//!
//! - [`scalar`]: the reference kernels, single-threaded and bit-reproducible.
//! - [`mapped_file`]: read-only memory maps.

pub mod mapped_file;
pub mod scalar;

pub use mapped_file::MappedFile;
