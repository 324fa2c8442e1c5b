//! What the benchmarks share: matrices of true shapes, and ratios of times of the same run.
//!
//! Other programs use the same machine, so that a time alone says little. Whatever is compared is
//! measured in turns, round by round, and compared round by round; the rate at which memory is
//! read is measured in every round too, and before and after all of them.

pub mod convolutions;
pub mod layers;
pub mod statistics;
