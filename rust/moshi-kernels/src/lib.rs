//! Kernels of moshi-rs: functions from slices to slices, and what else needs `unsafe`.
//!
//! This crate knows nothing about tensors, models or checkpoints. It is the only crate of the
//! workspace in which `unsafe` is allowed; every block carries a `SAFETY` note.
//!
//! - [`scalar`]: the reference kernels, single-threaded and bit-reproducible.
//! - [`mapped_file`]: read-only memory maps.
//! - `cuda_driver`, with the feature `cuda`: NVIDIA's driver, found at run time.

#[cfg(all(
    feature = "cuda",
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
pub mod cuda_driver;
pub mod mapped_file;
pub mod scalar;

pub use mapped_file::MappedFile;
