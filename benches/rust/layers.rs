//! The matrices of a step of a public language model, with random weights in any format.

use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use half::bf16;
use moshi_core::checkpoint::{Expected, layout};
use moshi_core::config::LmConfig;
use moshi_core::stages::Noise;
use moshi_kernels::arena::Arena;
use moshi_kernels::packed::{FloatRows, Kernels, PackedMatrix, Quantised, Store};
use moshi_kernels::pool::Pool;
use moshi_kernels::scalar::{BlockFormat, MatrixRef};

/// A matrix `[outputs, inputs]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Rows.
    pub outputs: usize,
    /// Columns.
    pub inputs: usize,
}

/// A matrix of a model by what it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Canonical name of the tensor.
    pub name: String,
    /// Its shape.
    pub shape: Shape,
}

/// A format of weights under measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// 8 bits and a scale for every 32 weights.
    Q8,
    /// 4 bits and a scale for every 32 weights.
    Q4,
    /// 4 bits, a scale and an offset for every 32 weights.
    Q4Affine,
    /// 4 bits, 6 bits of scale and offset for every 32 weights, 16 bits of both for 256.
    Q4K,
    /// bfloat16.
    Bf16,
    /// 32-bit floats.
    F32,
}

impl Format {
    /// All, those of few bits first.
    pub const ALL: [Self; 6] =
        [Self::Q8, Self::Q4, Self::Q4Affine, Self::Q4K, Self::Bf16, Self::F32];

    /// Name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q8 => "q8",
            Self::Q4 => "q4",
            Self::Q4Affine => "q4-affine",
            Self::Q4K => "q4k",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
        }
    }

    /// The encoding in blocks, of the formats that have one.
    pub fn blocks(self) -> Option<BlockFormat> {
        match self {
            Self::Q8 => Some(BlockFormat::Q8_0),
            Self::Q4 => Some(BlockFormat::Q4_0),
            Self::Q4Affine => Some(BlockFormat::Q4_1),
            Self::Q4K => Some(BlockFormat::Q4K),
            Self::Bf16 | Self::F32 => None,
        }
    }
}

/// The matrices that a step of the temporal transformer of the public model `name` multiplies, in
/// order, the head of text last.
///
/// # Errors
/// For names of no public model.
pub fn temporal(name: &str) -> Result<Vec<Layer>> {
    let used = |tensor: &str| tensor.starts_with("transformer.") || tensor == "text_linear.weight";
    matrices(name, used)
}

/// The matrices of the depth transformer, as [`temporal`]: every weight set once.
///
/// # Errors
/// As [`temporal`].
pub fn depth(name: &str) -> Result<Vec<Layer>> {
    let used = |tensor: &str| {
        tensor.starts_with("depformer.")
            || tensor.starts_with("depformer_in.")
            || tensor.starts_with("linears.")
    };
    matrices(name, used)
}

fn matrices(name: &str, used: impl Fn(&str) -> bool) -> Result<Vec<Layer>> {
    let config = LmConfig::known(name).with_context(|| format!("{name} is no public model"))?;
    let tensors = layout::language_model(&config, layout::first_gated_widths(&config));
    let matrix = |tensor: &Expected| match tensor.shapes[0][..] {
        [outputs, inputs] if used(&tensor.name) => {
            Some(Layer { name: tensor.name.clone(), shape: Shape { outputs, inputs } })
        }
        _ => None,
    };
    Ok(tensors.iter().filter_map(matrix).collect())
}

/// Random weights at the scale that keeps activations near 1.
pub fn weights(shape: Shape) -> Vec<f32> {
    let scale = (3.0 / shape.inputs as f32).sqrt();
    let mut values = Noise::new(shape.outputs as u64).take(shape.outputs * shape.inputs);
    for value in &mut values {
        *value *= scale;
    }
    values
}

/// Weights in the encoding that only others write.
fn candle_blocks(floats: Vec<f32>, Shape { outputs, inputs }: Shape) -> Result<Vec<u8>> {
    let weights = Tensor::from_vec(floats, (outputs, inputs), &Device::Cpu)?;
    Ok(QTensor::quantize(&weights, GgmlDType::Q4K)?.data()?.into_owned())
}

/// Packs random weights of a shape, `copies` times.
///
/// # Errors
/// When there is no memory for them.
pub fn pack(
    arena: &Arena,
    shape: Shape,
    format: Format,
    copies: usize,
) -> Result<Vec<PackedMatrix>> {
    let floats = weights(shape);
    let half: Vec<bf16>;
    let blocks: Vec<u8>;
    let matrix = match (format, format.blocks()) {
        (_, Some(encoding)) => {
            blocks = match encoding {
                BlockFormat::Q4K => candle_blocks(floats.clone(), shape)?,
                _ => encoding.encode(&floats).context("scales of noise are finite")?,
            };
            MatrixRef::Blocks(encoding, &blocks)
        }
        (Format::Bf16, None) => {
            half = floats.iter().map(|&value| bf16::from_f32(value)).collect();
            MatrixRef::Bf16(&half)
        }
        _ => MatrixRef::F32(&floats),
    };
    let one = || Ok(PackedMatrix::pack(arena, shape.outputs, shape.inputs, matrix)?);
    (0..copies).map(|_| one()).collect()
}

/// Matrices that are multiplied one after the other.
pub struct Sequence {
    matrices: Vec<PackedMatrix>,
}

impl Sequence {
    /// Packs all layers; equal shapes have equal values in memory of their own.
    ///
    /// # Errors
    /// As [`pack`].
    pub fn new(arena: &Arena, layers: &[Layer], format: Format) -> Result<Self> {
        let mut stock: Vec<(Shape, Vec<PackedMatrix>)> = Vec::new();
        for layer in layers {
            if stock.iter().all(|(shape, _)| *shape != layer.shape) {
                let copies = layers.iter().filter(|other| other.shape == layer.shape).count();
                stock.push((layer.shape, pack(arena, layer.shape, format, copies)?));
            }
        }
        let matrices = layers
            .iter()
            .filter_map(|layer| stock.iter_mut().find(|(shape, _)| *shape == layer.shape)?.1.pop());
        Ok(Self { matrices: matrices.collect() })
    }

    /// As [`Sequence::new`] with copies of one shape, at least `bytes` of them.
    ///
    /// # Errors
    /// As [`pack`].
    pub fn of_shape(arena: &Arena, shape: Shape, format: Format, bytes: usize) -> Result<Self> {
        let mut matrices = pack(arena, shape, format, 1)?;
        let copies = bytes.div_ceil(matrices[0].bytes()).saturating_sub(1);
        matrices.extend(pack(arena, shape, format, copies)?);
        Ok(Self { matrices })
    }

    /// Bytes that one pass reads.
    pub fn bytes(&self) -> usize {
        self.matrices.iter().map(PackedMatrix::bytes).sum()
    }

    /// Multiplications of one pass for one row.
    pub fn multiplications(&self) -> usize {
        self.matrices.iter().map(|matrix| matrix.rows() * matrix.cols()).sum()
    }

    /// The matrices.
    pub fn matrices(&self) -> &[PackedMatrix] {
        &self.matrices
    }

    /// Seconds of one product of `rows` rows with every matrix, rounding of activations included.
    pub fn pass(&self, on: (Kernels, &Pool), rows: usize) -> f64 {
        let widest = |of: fn(&PackedMatrix) -> usize| self.matrices.iter().map(of).max();
        let x = activations(rows * widest(PackedMatrix::cols).unwrap_or(0));
        let mut y = vec![0.0; rows * widest(PackedMatrix::rows).unwrap_or(0)];
        let mut rounded = Quantised::default();
        let start = Instant::now();
        for matrix in &self.matrices {
            let y = &mut y[..rows * matrix.rows()];
            multiply(on, matrix, &x[..rows * matrix.cols()], &mut rounded, y);
        }
        start.elapsed().as_secs_f64()
    }
}

/// `y = W x`, with activations rounded where the format does so.
pub fn multiply(
    on: (Kernels, &Pool),
    matrix: &PackedMatrix,
    x: &[f32],
    rounded: &mut Quantised,
    y: &mut [f32],
) {
    if matrix.packing().rounds_activations() {
        rounded.set(on.0, x, matrix.cols());
        matrix.multiply_rounded(on, rounded, Store::Set(None), y);
    } else {
        matrix.multiply(on, FloatRows::adjacent(x, matrix.cols()), Store::Set(None), y);
    }
}

/// Activations in -1..1.
pub fn activations(count: usize) -> Vec<f32> {
    Noise::new(7).take(count)
}

#[cfg(test)]
mod tests {
    use moshi_kernels::isa::Isa;

    use super::*;

    #[test]
    fn layers_are_those_of_the_public_models() {
        let layers = temporal("stt-1b").unwrap();
        // Four matrices in each of sixteen layers, and the head.
        assert_eq!(layers.len(), 4 * 16 + 1);
        let values: usize = layers.iter().map(|l| l.shape.outputs * l.shape.inputs).sum();
        assert_eq!(values, 16 * (4 * 2048 * 2048 + 3 * 5632 * 2048) + 8000 * 2048);
        assert!(depth("stt-1b").unwrap().is_empty());
        assert!(depth("moshi-7b").unwrap().len() > 200);
        assert!(temporal("gpt").is_err());
    }

    #[test]
    fn a_sequence_reads_every_matrix_in_its_own_memory() {
        let shape = |outputs, inputs| Shape { outputs, inputs };
        let layers = [shape(32, 256), shape(48, 512), shape(32, 256)]
            .map(|shape| Layer { name: String::new(), shape });
        let arena = Arena::default();
        let on = (Kernels::new(Isa::Scalar).unwrap(), &Pool::new(1));
        for format in Format::ALL {
            let sequence = Sequence::new(&arena, &layers, format).unwrap();
            let sizes: Vec<_> = sequence.matrices().iter().map(|m| (m.rows(), m.cols())).collect();
            assert_eq!(sizes, [(32, 256), (48, 512), (32, 256)], "{}", format.name());
            assert_eq!(sequence.multiplications(), 2 * 32 * 256 + 48 * 512);
            assert!(sequence.pass(on, 3) > 0.0);
            let many = Sequence::of_shape(&arena, shape(32, 256), format, 1_000_000).unwrap();
            assert!((1_000_000..1_040_000).contains(&many.bytes()), "{}", format.name());
        }
    }
}
