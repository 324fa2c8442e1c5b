//! A file of random weights that lies on no disk, for measurements of models whose files are not
//! at hand.
//!
//! The tensors of a true file lie one after the other. Here those of equal scale share one piece
//! of noise, as long as the largest of them, so that 7 billion parameters fit into memory beside
//! what the loader makes of them.

use std::collections::BTreeMap;

use half::bf16;
use safetensors::Dtype;

use super::tensor_file::{Container, Encoding, TensorFile, TensorInfo};
use super::{Expected, SourceFile};
use crate::stages::Noise;

impl TensorFile {
    /// Random weights of the tensors `expected`: bf16 or f32, uniform at the scale that keeps
    /// activations near 1; norms, scales and counts are 1.
    pub fn random(label: &str, expected: &[Expected], width: RandomWidth, seed: u64) -> Self {
        let value_bytes = width.bytes();
        let mut lengths: BTreeMap<Scale, usize> = BTreeMap::new();
        for tensor in expected {
            let values = tensor.shapes[0].iter().product::<usize>();
            let longest = lengths.entry(Scale::of(tensor)).or_default();
            *longest = values.max(*longest);
        }
        let mut noise = Noise::new(seed);
        let mut bytes = Vec::with_capacity(lengths.values().sum::<usize>() * value_bytes);
        let mut starts = BTreeMap::new();
        for (&scale, &values) in &lengths {
            starts.insert(scale, bytes.len());
            scale.write(values, width, &mut noise, &mut bytes);
        }
        let info = |tensor: &Expected| {
            let shape = tensor.shapes[0].clone();
            let start = starts[&Scale::of(tensor)];
            let bytes = start..start + shape.iter().product::<usize>() * value_bytes;
            TensorInfo { encoding: Encoding::Plain(width.dtype()), shape, bytes }
        };
        let tensors = expected.iter().map(|tensor| (tensor.name.clone(), info(tensor))).collect();
        let file = SourceFile::in_memory(label, &[]);
        Self::made(file, bytes, Container::Safetensors, tensors)
    }
}

/// Bits of a random weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RandomWidth {
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
}

impl RandomWidth {
    fn bytes(self) -> usize {
        match self {
            Self::F32 => size_of::<f32>(),
            Self::Bf16 => size_of::<bf16>(),
        }
    }

    fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::Bf16 => Dtype::BF16,
        }
    }
}

/// What the values of a tensor are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Scale {
    One,
    /// Uniform in plus or minus two to this power.
    Uniform(i32),
}

impl Scale {
    fn of(tensor: &Expected) -> Self {
        let shape = &tensor.shapes[0];
        let inputs = shape.iter().skip(1).product::<usize>();
        // A vector of one row is a padding; one of one axis belongs to a norm, a bias, a scale.
        if shape.len() < 2 || tensor.name.ends_with("alpha") {
            return if tensor.name.ends_with("bias") { Self::Uniform(-6) } else { Self::One };
        }
        // The variance of a uniform value is a third of its square.
        Self::Uniform((3.0 / inputs as f64).sqrt().log2().round() as i32)
    }

    fn write(self, values: usize, width: RandomWidth, noise: &mut Noise, bytes: &mut Vec<u8>) {
        // Seven bits and a sign are exact in both types.
        let scale = match self {
            Self::One => 0.0,
            Self::Uniform(exponent) => f32::powi(2.0, exponent - 7),
        };
        let value = |byte: u8| match self {
            Self::One => 1.0,
            Self::Uniform(_) => scale * (f32::from(byte.cast_signed()) + 0.5),
        };
        let table: Vec<f32> = (0..=u8::MAX).map(value).collect();
        let mut left = values;
        while left > 0 {
            let count = left.min(8);
            for byte in &noise.bits().to_le_bytes()[..count] {
                let value = table[usize::from(*byte)];
                match width {
                    RandomWidth::F32 => bytes.extend(value.to_le_bytes()),
                    RandomWidth::Bf16 => bytes.extend(bf16::from_f32(value).to_le_bytes()),
                }
            }
            left -= count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_keep_activations_near_one_and_norms_are_one() {
        let expected = [
            Expected::new("linear.weight", &[64, 256]),
            Expected::new("norm.alpha", &[1, 1, 64]),
            Expected::new("conv.weight", &[8, 4, 64]),
            Expected::new("conv.bias", &[8]),
        ];
        for width in [RandomWidth::F32, RandomWidth::Bf16] {
            let file = TensorFile::random("noise", &expected, width, 1);
            let weights = file.read_f32("linear.weight").unwrap();
            assert_eq!(weights.len(), 64 * 256);
            let variance = weights.iter().map(|w| w * w).sum::<f32>() / weights.len() as f32;
            assert!((0.5..2.0).contains(&(variance * 256.0)), "{variance}");
            assert!(file.read_f32("norm.alpha").unwrap().iter().all(|&alpha| alpha == 1.0));
            assert!(file.read_f32("conv.bias").unwrap().iter().all(|bias| bias.abs() < 0.02));
            // Equal scales share their noise.
            assert_eq!(file.read_f32("conv.weight").unwrap()[..], weights[..8 * 4 * 64]);
        }
    }
}
