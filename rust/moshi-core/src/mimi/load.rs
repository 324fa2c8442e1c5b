//! From canonical tensors to the codec's weights in an executor's form.

use super::model::MimiMode;
use crate::checkpoint::Catalog;
use crate::config::MimiConfig;
use crate::error::Result;
use crate::exec::{Executor, HostConv, Norm};
use crate::nn::{FeedForward, LAYER_NORM_EPS, Layer, Projections, Transformer};

/// Reads the parts that encoder and decoder share.
pub(super) struct Loader<'a, E> {
    pub(super) exec: &'a E,
    pub(super) catalog: &'a Catalog<'a>,
    pub(super) config: &'a MimiConfig,
    pub(super) mode: MimiMode,
}

impl<E: Executor> Loader<'_, E> {
    /// A causal convolution stored as `[output, input, tap]`, called `{name}.weight`.
    pub(super) fn conv(&self, name: &str, stride: usize) -> Result<Conv<E>> {
        let weight_name = format!("{name}.weight");
        let weight = self.catalog.read(&weight_name)?;
        let shape = self.catalog.shape(&weight_name).expect("read above").to_vec();
        let bias_name = format!("{name}.bias");
        let bias = self.catalog.shape(&bias_name).is_some();
        let bias = bias.then(|| self.catalog.read(&bias_name)).transpose()?;
        let [outputs, inputs, kernel] = shape[..] else { unreachable!("shapes are checked") };
        self.build(HostConv::new([outputs, inputs, kernel], stride, weight, bias))
    }

    /// A transposed convolution of `2 * stride` taps, stored as `[input, output / groups, tap]`.
    ///
    /// Output block `t` (of `stride` positions) depends on inputs `t - 1` and `t` only, so it is
    /// a convolution of two taps and stride 1 whose output rows hold `stride` positions each.
    pub(super) fn conv_transposed(
        &self,
        name: &str,
        stride: usize,
        channels: Channels,
    ) -> Result<Conv<E>> {
        let weight_name = format!("{name}.weight");
        let stored = self.catalog.read(&weight_name)?;
        let shape = self.catalog.shape(&weight_name).expect("read above").to_vec();
        let [inputs, outputs, taps] = shape[..] else { unreachable!("shapes are checked") };
        // Of separate channels, the stored weights are those of one input each: its own.
        let (outputs, seen) = match channels {
            Channels::Mixed => (outputs, inputs),
            Channels::Separate => (inputs, 1),
        };
        let mut weight = Vec::with_capacity(stride * outputs * seen * 2);
        for j in 0..stride {
            for o in 0..outputs {
                for i in 0..seen {
                    let from = (i * outputs + o) * taps;
                    weight.extend([stored[from + stride + j], stored[from + j]]);
                }
            }
        }
        let bias_name = format!("{name}.bias");
        let bias = self.catalog.shape(&bias_name).is_some();
        let bias = bias.then(|| self.catalog.read(&bias_name)).transpose()?;
        let bias = bias.map(|bias| bias.repeat(stride));
        let shape = [stride * outputs, inputs, 2];
        let separate = channels == Channels::Separate;
        let conv = HostConv { separate, ..HostConv::new(shape, 1, weight, bias) };
        let mut conv = self.build(conv)?;
        conv.output_width = outputs;
        Ok(conv)
    }

    fn build(&self, conv: HostConv) -> Result<Conv<E>> {
        let conv = conv.store(self.mode.storage());
        let (history, input_width, output_width) = (conv.history(), conv.inputs, conv.outputs);
        Ok(Conv { weights: self.exec.conv(conv)?, history, input_width, output_width })
    }

    pub(super) fn residual(&self, index: usize, side: &str) -> Result<ResidualBlock<E>> {
        let prefix = format!("{side}.model.{index}.block");
        Ok(ResidualBlock {
            reduce: self.conv(&format!("{prefix}.1.conv.conv"), 1)?,
            expand: self.conv(&format!("{prefix}.3.conv.conv"), 1)?,
        })
    }

    pub(super) fn transformer(&self, side: &str) -> Result<Transformer<E>> {
        let layers = (0..self.config.num_layers)
            .map(|layer| self.layer(&format!("{side}.transformer.layers.{layer}")))
            .collect::<Result<_>>()?;
        Ok(Transformer { heads: self.config.heads, layers })
    }

    pub(super) fn vector(&self, name: &str) -> Result<E::Vector> {
        self.exec.vector(self.catalog.read(name)?)
    }

    pub(super) fn weight(&self, name: &str) -> Result<E::Weight> {
        let matrix = self.catalog.matrix(name)?.widened();
        let matrix = matrix.store(self.mode.storage()).expect("any width fits floats");
        self.exec.weight(matrix)
    }

    fn layer(&self, prefix: &str) -> Result<Layer<E>> {
        let norm = |name: &str| -> Result<Norm<E>> {
            Ok(Norm::Layer {
                weight: self.vector(&format!("{prefix}.{name}.weight"))?,
                bias: self.vector(&format!("{prefix}.{name}.bias"))?,
                eps: LAYER_NORM_EPS,
            })
        };
        let weight = |name: &str| self.weight(&format!("{prefix}.{name}"));
        let scale = |name: &str| self.vector(&format!("{prefix}.{name}.scale"));
        Ok(Layer {
            norm1: norm("norm1")?,
            norm2: norm("norm2")?,
            sets: vec![Projections {
                in_proj: weight("self_attn.in_proj_weight")?,
                out_proj: weight("self_attn.out_proj.weight")?,
                feed_forward: FeedForward::Plain {
                    linear1: weight("linear1.weight")?,
                    linear2: weight("linear2.weight")?,
                },
            }],
            scales: Some([scale("layer_scale_1")?, scale("layer_scale_2")?]),
            cross: None,
        })
    }
}

/// Which inputs an output channel of a transposed convolution sees.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Channels {
    /// All of them.
    Mixed,
    /// Its own.
    Separate,
}

/// A causal convolution, plain or transposed, with the size of the state that it needs.
pub(super) struct Conv<E: Executor> {
    pub(super) weights: E::Conv,
    /// Input rows of the past that a stream keeps.
    pub(super) history: usize,
    pub(super) input_width: usize,
    /// Channels of an output position; a transposed convolution gives several positions a row.
    pub(super) output_width: usize,
}

/// `x + conv1(ELU(conv3(ELU(x))))`, then the ELU that always follows.
pub(super) struct ResidualBlock<E: Executor> {
    pub(super) reduce: Conv<E>,
    pub(super) expand: Conv<E>,
}
