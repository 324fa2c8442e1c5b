//! Latent to audio: learnt upsampling, transformer, SEANet decoder.

use super::load::{Channels, Conv, Loader, ResidualBlock};
use super::state::{DecoderState, LaneShape};
use super::window::Positions;
use crate::config::MimiConfig;
use crate::error::Result;
use crate::exec::{Epilogue, Executor};
use crate::nn::Transformer;

/// Weights of the decoder.
pub(super) struct Decoder<E: Executor> {
    upsample: Conv<E>,
    pub(super) transformer: Transformer<E>,
    first: Conv<E>,
    stages: Vec<(Conv<E>, ResidualBlock<E>)>,
    last: Conv<E>,
}

impl<E: Executor> Decoder<E> {
    pub(super) fn load(loader: &Loader<'_, E>) -> Result<Self> {
        let ratios = &loader.config.seanet.ratios;
        let mut stages = Vec::with_capacity(ratios.len());
        for (stage, ratio) in ratios.iter().enumerate() {
            let name = format!("decoder.model.{}.convtr.convtr", 2 + 3 * stage);
            let up = loader.conv_transposed(&name, *ratio, Channels::Mixed)?;
            stages.push((up, loader.residual(3 + 3 * stage, "decoder")?));
        }
        let last = format!("decoder.model.{}.conv.conv", 2 + 3 * ratios.len());
        Ok(Self {
            upsample: loader.conv_transposed(
                "upsample.convtr.convtr.convtr",
                loader.config.positions_per_frame,
                Channels::Separate,
            )?,
            transformer: loader.transformer("decoder_transformer")?,
            first: loader.conv("decoder.model.0.conv.conv", 1)?,
            stages,
            last: loader.conv(&last, 1)?,
        })
    }

    /// Sizes of a stream's state; tails in the order in which [`Decoder::forward`] uses them.
    pub(super) fn lane_shape(&self, config: &MimiConfig, chunk_frames: usize) -> LaneShape {
        let mut tails = vec![LaneShape::tail_of(&self.upsample), LaneShape::tail_of(&self.first)];
        for (up, residual) in &self.stages {
            tails.push(LaneShape::tail_of(up));
            tails.push(LaneShape::tail_of(&residual.reduce));
            tails.push(LaneShape::tail_of(&residual.expand));
        }
        tails.push(LaneShape::tail_of(&self.last));
        LaneShape::new(config, tails, chunk_frames)
    }

    /// Latents `[stream * frames, dimension]` to `[stream * frames * frame_samples]`.
    pub(super) fn forward(
        &self,
        exec: &E,
        latent: &E::Buffer,
        frames: usize,
        streams: &mut [&mut DecoderState<E>],
        positions: &Positions<'_>,
    ) -> Result<E::Buffer> {
        let mut tails = 0..;
        let mut conv = |x: &E::Buffer,
                        conv: &Conv<E>,
                        epilogue: Epilogue<'_, E::Buffer>,
                        streams: &mut [&mut DecoderState<E>]| {
            let index = tails.next().expect("endless");
            let y =
                exec.convolve(x, &conv.weights, epilogue, streams, |s| &mut s.lane.tails[index])?;
            exec.reshape(y, conv.output_width)
        };
        let mut x = conv(latent, &self.upsample, Epilogue::None, streams)?;

        let time = frames * positions.per_frame;
        let plan = positions.plan(streams.len(), streams.iter().map(|s| s.lane.position), time);
        let plan = exec.plan(plan)?;
        self.transformer.forward(
            exec,
            &mut x,
            (0, &plan),
            streams,
            |s, layer| &mut s.lane.rings[layer],
            |_, _| None,
        )?;
        for stream in streams.iter_mut() {
            stream.lane.position += time as u64;
        }

        let mut h = conv(&x, &self.first, Epilogue::Elu, streams)?;
        for (up, residual) in &self.stages {
            let x = conv(&h, up, Epilogue::None, streams)?;
            h = exec.elu(&x)?;
            h = conv(&h, &residual.reduce, Epilogue::Elu, streams)?;
            h = conv(&h, &residual.expand, Epilogue::AddElu(&x), streams)?;
        }
        conv(&h, &self.last, Epilogue::None, streams)
    }
}
