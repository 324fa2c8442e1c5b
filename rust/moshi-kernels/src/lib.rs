//! Kernels of moshi-rs: functions from slices to slices, and what else needs `unsafe`.
//!
//! This crate knows nothing about tensors, models or checkpoints. It is the only crate of the
//! workspace in which `unsafe` is allowed; every block carries a `SAFETY` note.
//!
//! - [`scalar`]: the reference kernels, single-threaded and bit-reproducible.
//! - [`packed`]: the fast products, over panels of weights, on any of those instruction sets.
//! - [`pool`], [`arena`]: threads and memory for them.
//! - [`isa`]: which instructions this processor has.
//! - [`huge_memory`], [`heap`]: memory on large pages, and how the allocator keeps what is freed.
//! - [`measure`], [`counting_allocator`]: what the machine can do, and what a step allocates.
//! - [`mapped_file`]: read-only memory maps.
//! - `cuda_driver`, with the feature `cuda`: NVIDIA's driver, found at run time.

#[cfg(target_arch = "x86_64")]
mod ahead;
pub mod arena;
pub mod counting_allocator;
#[cfg(all(
    feature = "cuda",
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
pub mod cuda_driver;
pub mod heap;
pub mod huge_memory;
pub mod isa;
pub mod mapped_file;
pub mod measure;
pub mod packed;
pub mod pool;
mod rows;
pub mod scalar;

pub use huge_memory::HugeMemory;
pub use isa::Isa;
pub use mapped_file::MappedFile;
