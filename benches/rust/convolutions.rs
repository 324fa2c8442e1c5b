//! The convolutions of a codec as products of windows, with random weights.

use anyhow::Result;
use moshi_core::checkpoint::layout;
use moshi_core::config::MimiConfig;
use moshi_kernels::arena::Arena;
use moshi_kernels::packed::{FloatRows, Kernels, PackedMatrix, Store};
use moshi_kernels::pool::Pool;

use crate::layers::{Format, Shape, activations, pack};

/// A convolution of one frame: `positions` windows that start `stride` values apart.
///
/// A transposed one whose kernel is two strides long is the same thing: the windows are pairs of
/// adjacent inputs, the outputs those of a whole stride.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Convolution {
    /// Name of the tensor.
    pub name: String,
    /// Outputs and values of a window.
    pub shape: Shape,
    /// Windows of a frame.
    pub positions: usize,
    /// Values between the starts of windows.
    pub stride: usize,
}

impl Convolution {
    /// Multiplications of a frame.
    pub fn multiplications(&self) -> usize {
        self.positions * self.shape.outputs * self.shape.inputs
    }
}

/// The convolutions of encoder and decoder of a codec, in order. The depthwise one, a thousandth of
/// the work, is left out.
pub fn convolutions(config: &MimiConfig) -> Vec<Convolution> {
    let mut all = Vec::new();
    let mut time = config.frame_samples;
    for tensor in layout::mimi(config) {
        let [outputs, inputs, taps] = tensor.shapes[0][..] else { continue };
        let name = tensor.name;
        if name.starts_with("decoder.model.0.") {
            time = config.positions_per_frame;
        }
        let transposed = name.contains("convtr") && !name.starts_with("upsample");
        // Kernels of changing rate are two strides long.
        let stride = if taps.is_multiple_of(2) { taps / 2 } else { 1 };
        if name.starts_with("upsample") || name.starts_with("quantizer") {
            continue;
        }
        if name.starts_with("downsample") {
            time = config.positions_per_frame;
        }
        if transposed {
            // Stored as [inputs, outputs, taps].
            let shape = Shape { outputs: stride * inputs, inputs: 2 * outputs };
            all.push(Convolution { name, shape, positions: time, stride: outputs });
            time *= stride;
        } else {
            time /= stride;
            let shape = Shape { outputs, inputs: inputs * taps };
            all.push(Convolution { name, shape, positions: time, stride: stride * inputs });
        }
    }
    all
}

/// A convolution with weights and the samples of a frame.
pub struct Packed {
    convolution: Convolution,
    matrix: PackedMatrix,
    x: Vec<f32>,
    y: Vec<f32>,
}

impl Packed {
    /// Packs random weights.
    ///
    /// # Errors
    /// When there is no memory for them.
    pub fn new(arena: &Arena, convolution: Convolution, format: Format) -> Result<Self> {
        let Convolution { shape, positions, stride, .. } = convolution;
        let mut matrices = pack(arena, shape, format, 1)?;
        Ok(Self {
            matrix: matrices.remove(0),
            x: activations((positions - 1) * stride + shape.inputs),
            y: vec![0.0; positions * shape.outputs],
            convolution,
        })
    }

    /// The convolution.
    pub fn convolution(&self) -> &Convolution {
        &self.convolution
    }

    /// Bytes of the weights.
    pub fn bytes(&self) -> usize {
        self.matrix.bytes()
    }

    /// Computes a frame.
    pub fn run(&mut self, on: (Kernels, &Pool)) {
        let windows = FloatRows {
            x: &self.x,
            stride: self.convolution.stride,
            rows_per_group: self.convolution.positions,
            group_stride: self.x.len(),
        };
        self.matrix.multiply(on, windows, Store::Set(None), &mut self.y);
    }
}

#[cfg(test)]
mod tests {
    use moshi_core::exec::Scalar;
    use moshi_core::mimi::{MimiMode, MimiTraffic};
    use moshi_kernels::isa::Isa;

    use super::*;

    #[test]
    fn rates_fall_to_those_of_the_transformer_and_rise_again() {
        let all = convolutions(&MimiConfig::default());
        let named = |name: &str| all.iter().find(|conv| conv.name.starts_with(name)).unwrap();
        assert_eq!(named("encoder.model.0.").positions, 1920);
        assert_eq!(named("encoder.model.14.").positions, 2);
        assert_eq!(named("downsample.").positions, 1);
        assert_eq!(named("decoder.model.0.").positions, 2);
        assert_eq!(named("decoder.model.14.").positions, 1920);
        let up = named("decoder.model.2.");
        assert_eq!((up.positions, up.stride), (2, 1024));
        assert_eq!(up.shape, Shape { outputs: 8 * 512, inputs: 2 * 1024 });
    }

    #[test]
    fn most_of_the_codec_is_here() {
        let config = MimiConfig::default();
        let traffic = MimiTraffic::of(&Scalar, &config, 8, MimiMode::Exact);
        let whole = traffic.encode.multiplications + traffic.decode.multiplications;
        let ours: usize = convolutions(&config).iter().map(Convolution::multiplications).sum();
        let share = ours as f64 / whole as f64;
        assert!((0.5..1.0).contains(&share), "{share}");
    }

    #[test]
    fn a_packed_one_computes() {
        let all = convolutions(&MimiConfig::default());
        let small = all.iter().find(|conv| conv.shape.inputs <= 64).unwrap();
        let mut packed = Packed::new(&Arena::default(), small.clone(), Format::F32).unwrap();
        packed.run((Kernels::new(Isa::Scalar).unwrap(), &Pool::new(1)));
        assert!(packed.y.iter().all(|value| value.is_finite() && *value != 0.0));
        assert!(packed.bytes() >= 4 * small.shape.outputs * small.shape.inputs);
    }
}
