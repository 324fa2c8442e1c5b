//! Convolutions of the fast executor: products with windows of time-major rows, or each channel
//! for itself.

use moshi_kernels::packed::{FloatRows, PackedMatrix, Store};

use super::memory::Buffer;
use super::{Cpu, Tail};
use crate::error::Result;
use crate::exec::{Epilogue, HostConv, HostMatrix};

/// A causal convolution.
pub struct Conv {
    inputs: usize,
    outputs: usize,
    kernel: usize,
    stride: usize,
    weight: Weight,
    bias: Option<Vec<f32>>,
}

enum Weight {
    /// `[output, taps and inputs]`.
    Mixed(PackedMatrix),
    /// `[taps and inputs]` of a single output, of which a panel would be empty but for one lane.
    Single(Vec<f32>),
    /// `[tap, output]`: as many weights as outputs, so that reading them takes no time worth
    /// packing for.
    Separate(Vec<f32>),
}

impl Conv {
    pub(super) fn new(
        conv: HostConv,
        pack: impl FnOnce(HostMatrix) -> Result<PackedMatrix>,
    ) -> Result<Self> {
        let HostConv { outputs, inputs, kernel, stride, storage, .. } = conv;
        let weight = if conv.separate {
            let taps = |tap| conv.weight.iter().skip(tap).step_by(kernel).copied();
            Weight::Separate((0..kernel).flat_map(taps).collect())
        } else if outputs == 1 {
            Weight::Single(conv.by_tap())
        } else {
            let weight = HostMatrix::floats(outputs, kernel * inputs, conv.by_tap());
            Weight::Mixed(pack(weight.store(storage).expect("any width fits floats"))?)
        };
        Ok(Self { inputs, outputs, kernel, stride, weight, bias: conv.bias })
    }

    /// One output row of a convolution of separate channels.
    fn separate(&self, weight: &[f32], window: &[f32], out: &mut [f32]) {
        out.fill(0.0);
        let taps = weight.chunks_exact(self.outputs).zip(window.chunks_exact(self.inputs));
        for (weight, x) in taps {
            let blocks = out.chunks_exact_mut(self.inputs).zip(weight.chunks_exact(self.inputs));
            for (out, weight) in blocks {
                for ((out, weight), x) in out.iter_mut().zip(weight).zip(x) {
                    *out += weight * x;
                }
            }
        }
        for (out, bias) in out.iter_mut().zip(self.bias.iter().flatten()) {
            *out += bias;
        }
    }
}

impl Cpu {
    pub(super) fn convolution<S>(
        &self,
        x: &Buffer,
        conv: &Conv,
        epilogue: Epilogue<'_, Buffer>,
        streams: &mut [S],
        tail: impl Fn(&mut S) -> &mut Tail,
    ) -> Buffer {
        let time = x.rows() / streams.len();
        debug_assert_eq!(time % conv.stride, 0);
        let history = (conv.kernel - conv.stride) * conv.inputs;
        let (new, whole) = (time * conv.inputs, history + time * conv.inputs);
        // Without a past there is nothing to put before.
        let mut padded = (history > 0).then(|| self.buffer(streams.len(), whole));
        if let Some(padded) = &mut padded {
            let rows = padded.values_mut().chunks_exact_mut(whole);
            let streams = streams.iter_mut().zip(x.values().chunks_exact(new));
            for ((stream, x), padded) in streams.zip(rows) {
                let tail = tail(stream);
                padded[..history].copy_from_slice(tail.values());
                padded[history..].copy_from_slice(x);
                tail.set(&padded[new..]);
            }
        }
        let padded = padded.as_ref().map_or(x.values(), Buffer::values);
        let per_stream = time / conv.stride;
        let mut y = self.buffer(streams.len() * per_stream, conv.outputs);
        let step = conv.stride * conv.inputs;
        let windows =
            FloatRows { x: padded, stride: step, rows_per_group: per_stream, group_stride: whole };
        match &conv.weight {
            Weight::Single(weight) => {
                let bias = conv.bias.as_ref().map_or(0.0, |bias| bias[0]);
                self.shared.kernels.dots(&self.shared.pool, windows, weight, bias, y.values_mut());
            }
            Weight::Mixed(weight) => {
                let store = Store::Set(conv.bias.as_deref());
                weight.multiply(self.on(), windows, store, y.values_mut());
            }
            Weight::Separate(weight) => {
                let windows = padded
                    .chunks_exact(whole)
                    .flat_map(|padded| padded.windows(conv.kernel * conv.inputs).step_by(step));
                let rows = y.values_mut().chunks_exact_mut(conv.outputs);
                rows.zip(windows).for_each(|(out, window)| conv.separate(weight, window, out));
            }
        }
        match epilogue {
            Epilogue::None => {}
            Epilogue::Elu => self.shared.kernels.elu(&self.shared.pool, y.values_mut()),
            Epilogue::AddElu(residual) => {
                self.shared.kernels.add_elu(&self.shared.pool, y.values_mut(), residual.values());
            }
        }
        y
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::{Executor, Scalar};

    /// Two streams of three positions, twice, so that the second call sees a past.
    fn outputs<E: Executor>(exec: &E, conv: HostConv) -> Vec<f32> {
        let (history, inputs) = (conv.history(), conv.inputs);
        let mut tails = [(); 2].map(|()| exec.tail(history, inputs).unwrap());
        let conv = exec.conv(conv).unwrap();
        let x: Vec<f32> = (0..2 * 2 * 3 * inputs).map(|i| (i as f32 * 0.37).sin()).collect();
        let mut all = Vec::new();
        for x in x.chunks_exact(2 * 3 * inputs) {
            let x = exec.upload(x, inputs).unwrap();
            let y = exec.convolve(&x, &conv, Epilogue::None, &mut tails, |tail| tail).unwrap();
            all.extend(exec.download(&y).unwrap());
        }
        all
    }

    #[test]
    fn separate_channels_equal_a_matrix_of_zeros_around_them() {
        let noise = |count: usize| (0..count).map(|i| (i as f32 * 0.61).cos()).collect::<Vec<_>>();
        for (kernel, stride, bias) in
            [(2, 1, None), (2, 1, Some(noise(24))), (3, 1, None), (3, 3, None)]
        {
            let weight = noise(24 * kernel);
            let conv = HostConv::new([24, 12, kernel], stride, weight, bias);
            let conv = HostConv { separate: true, ..conv };
            let expected = outputs(&Scalar, conv.clone());
            let got = outputs(&Cpu::new(Some(1)).unwrap(), conv.clone());
            let mixed = outputs(&Cpu::new(Some(1)).unwrap(), conv.mixed());
            assert_eq!(got.len(), 2 * 2 * 3 / stride * 24);
            for ((got, mixed), expected) in got.iter().zip(&mixed).zip(&expected) {
                assert!((got - expected).abs() < 1e-6, "{got} is not {expected}");
                assert!((got - mixed).abs() < 1e-6, "{got} is not {mixed}");
            }
        }
    }

    #[test]
    fn a_single_output_equals_the_reference() {
        let noise = |count: usize| (0..count).map(|i| (i as f32 * 0.61).cos()).collect::<Vec<_>>();
        for (kernel, stride, bias) in
            [(1, 1, None), (3, 1, None), (7, 1, Some(vec![0.25])), (3, 3, Some(vec![-1.0]))]
        {
            let conv = HostConv::new([1, 12, kernel], stride, noise(12 * kernel), bias);
            let expected = outputs(&Scalar, conv.clone());
            for threads in [1, 2] {
                let got = outputs(&Cpu::new(Some(threads)).unwrap(), conv.clone());
                assert_eq!(got.len(), 2 * 2 * 3 / stride);
                for (got, expected) in got.iter().zip(&expected) {
                    assert!((got - expected).abs() < 1e-5, "{got} is not {expected}");
                }
            }
        }
    }
}
