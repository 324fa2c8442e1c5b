//! The one transformer, shared by the codec, the temporal and the depth transformer.

mod transformer;

pub use transformer::{CrossAttention, FeedForward, Layer, Projections, Transformer, rms_norm_f32};

/// Epsilon of `rms_norm_f32`.
pub(crate) const RMS_NORM_F32_EPS: f32 = 1e-8;
/// Epsilon of `layer_norm`.
pub(crate) const LAYER_NORM_EPS: f32 = 1e-5;
