//! Audio to latent: SEANet encoder, transformer, learnt downsampling.

use super::load::{Conv, Loader, ResidualBlock};
use super::state::{EncoderState, LaneShape};
use super::window::Positions;
use crate::config::MimiConfig;
use crate::error::Result;
use crate::exec::{Epilogue, Executor};
use crate::nn::Transformer;

/// Weights of the encoder.
pub(super) struct Encoder<E: Executor> {
    first: Conv<E>,
    stages: Vec<(ResidualBlock<E>, Conv<E>)>,
    last: Conv<E>,
    pub(super) transformer: Transformer<E>,
    downsample: Conv<E>,
}

impl<E: Executor> Encoder<E> {
    pub(super) fn load(loader: &Loader<'_, E>) -> Result<Self> {
        let ratios = &loader.config.seanet.ratios;
        let mut stages = Vec::with_capacity(ratios.len());
        for (stage, ratio) in ratios.iter().rev().enumerate() {
            let residual = loader.residual(1 + 3 * stage, "encoder")?;
            let name = format!("encoder.model.{}.conv.conv", 3 + 3 * stage);
            stages.push((residual, loader.conv(&name, *ratio)?));
        }
        let last = format!("encoder.model.{}.conv.conv", 2 + 3 * ratios.len());
        Ok(Self {
            first: loader.conv("encoder.model.0.conv.conv", 1)?,
            stages,
            last: loader.conv(&last, 1)?,
            transformer: loader.transformer("encoder_transformer")?,
            downsample: loader
                .conv("downsample.conv.conv.conv", loader.config.positions_per_frame)?,
        })
    }

    /// Sizes of a stream's state; tails in the order in which [`Encoder::forward`] uses them.
    pub(super) fn lane_shape(&self, config: &MimiConfig, chunk_frames: usize) -> LaneShape {
        let mut tails = vec![LaneShape::tail_of(&self.first)];
        for (residual, down) in &self.stages {
            tails.push(LaneShape::tail_of(&residual.reduce));
            tails.push(LaneShape::tail_of(&residual.expand));
            tails.push(LaneShape::tail_of(down));
        }
        tails.push(LaneShape::tail_of(&self.last));
        tails.push(LaneShape::tail_of(&self.downsample));
        LaneShape::new(config, tails, chunk_frames)
    }

    /// `[stream * frames * frame_samples, 1]` to latents `[stream * frames, dimension]`.
    pub(super) fn forward(
        &self,
        exec: &E,
        pcm: &[f32],
        streams: &mut [&mut EncoderState<E>],
        frames: usize,
        positions: &Positions<'_>,
    ) -> Result<E::Buffer> {
        let mut tails = 0..;
        let mut conv = |x: &E::Buffer,
                        conv: &Conv<E>,
                        epilogue: Epilogue<'_, E::Buffer>,
                        streams: &mut [&mut EncoderState<E>]| {
            let index = tails.next().expect("endless");
            exec.convolve(x, &conv.weights, epilogue, streams, |s| &mut s.lane.tails[index])
        };
        let mut x = exec.upload(pcm, 1)?;
        x = conv(&x, &self.first, Epilogue::None, streams)?;
        for (residual, down) in &self.stages {
            let h = exec.elu(&x)?;
            let h = conv(&h, &residual.reduce, Epilogue::Elu, streams)?;
            let h = conv(&h, &residual.expand, Epilogue::AddElu(&x), streams)?;
            x = conv(&h, down, Epilogue::None, streams)?;
        }
        let h = exec.elu(&x)?;
        let mut x = conv(&h, &self.last, Epilogue::None, streams)?;

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
        let index = tails.next().expect("endless");
        for (s, stream) in streams.iter_mut().enumerate() {
            if stream.lane.position == 0 {
                // The downsampling repeats its first input into the past, not zeros.
                exec.fill_tail(&mut stream.lane.tails[index], &x, s * time)?;
            }
            stream.lane.position += time as u64;
        }
        exec.convolve(&x, &self.downsample.weights, Epilogue::None, streams, |s| {
            &mut s.lane.tails[index]
        })
    }
}
