//! Streaming inference of Kyutai's Moshi family (Défossez et al. 2024, arXiv:2410.00037).
//!
//! The path of a frame: 80 ms of the user's audio are encoded by [`mimi`], read with the past by
//! the language model in [`lm`], which draws a text token and the tokens of its own audio, and
//! decoded by [`mimi`] again. [`Session`] is one conversation over a shared [`Model`];
//! [`step_batch`] steps many as one batch.
//!
//! Weights are immutable and shared; every stream's state is a value of its own. Models are
//! written once over the narrow waist in [`exec`].
#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod config;
pub mod device;
pub mod engine;
pub mod error;
pub mod exec;
pub mod lm;
pub mod mimi;
pub mod model;
pub mod nn;
pub mod scratch;
pub mod session;
pub mod snapshot;
pub mod stages;
pub mod text;

pub use device::{CpuExecutor, Device};
pub use error::{Error, Result};
pub use model::{LoadObserver, LoadOptions, Memory, Model, ModelInfo, NoObserver};
pub use session::{Session, SessionOptions, StepOutput, step_batch, step_batch_into};
