//! Reference kernels on plain slices, one thread.
//!
//! Every output value is computed by the same sequence of operations whatever the number of rows,
//! their order or the instruction set, so results do not depend on batch mates, and are equal bit
//! for bit on every machine that runs the same build (exponentials are the platform's). They are the twins against which faster kernels are tested.
//!
//! Axes: activations are `[row, width]`, rows of one stream adjacent; weights are `[out, in]`.

mod attention;
mod blocks;
mod eight_bits;
mod elementwise;
mod linear;

pub use attention::{Heads, attend, rotate};
pub use blocks::BlockFormat;
pub(crate) use blocks::q4_k_group;
pub use eight_bits::EightBits;
pub use elementwise::{
    add, add_scaled, elu, gelu, layer_norm, nearest, rms_norm, silu_gate, softmax,
};
pub(crate) use linear::{LANES, sum_lanes};
pub use linear::{MatrixRef, dot, linear};
