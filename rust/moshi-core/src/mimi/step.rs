//! One frame of any number of streams of the codec.

use super::model::Mimi;
use super::state::{DecoderState, EncoderState};
use super::window::Window;
use crate::error::{Error, Result, check_finite};
use crate::exec::Executor;
use crate::scratch::{FirstError, Scratch, lengths};

impl<E: Executor> Mimi<E> {
    /// Encodes one frame of every stream: `pcm` is `[stream, frame_samples]`, the result
    /// `[stream, num_codebooks]`. Streams that are not passed stay as they are.
    ///
    /// # Errors
    /// [`Error::Input`] for a wrong length or samples that are not finite; nothing changes then.
    pub fn encode_step(
        &self,
        streams: &mut [&mut EncoderState<E>],
        pcm: &[f32],
    ) -> Result<Vec<u32>> {
        let mut codes = Vec::new();
        self.encode_step_into(streams, pcm, &mut codes)?;
        Ok(codes)
    }

    /// As [`Mimi::encode_step`], replacing the contents of `codes`: without allocation once it is
    /// as long.
    ///
    /// # Errors
    /// As [`Mimi::encode_step`].
    pub fn encode_step_into(
        &self,
        streams: &mut [&mut EncoderState<E>],
        pcm: &[f32],
        codes: &mut Vec<u32>,
    ) -> Result<()> {
        codes.clear();
        if streams.is_empty() {
            return Ok(());
        }
        self.check_samples(pcm, streams.len())?;
        codes.resize(streams.len() * self.num_codebooks, 0);
        let groups = self.exec.groups(streams.len(), self.weights[0]);
        let mut memory = self.memory.take();
        let (list, scratches) = memory.reset(groups);
        let (mut streams, mut pcm, mut codes) = (streams, pcm, &mut codes[..]);
        let parts = lengths(streams.len(), groups).zip(scratches).map(|(count, scratch)| {
            let streams = streams.split_off_mut(..count).expect("as many as there are");
            let pcm = pcm.split_off(..count * self.config.frame_samples).expect("checked");
            let codes = codes.split_off_mut(..count * self.num_codebooks).expect("as many");
            (scratch, streams, pcm, codes)
        });
        let parts = list.list(groups, parts);
        let error = FirstError::default();
        self.exec.each(parts, |exec, (scratch, streams, pcm, codes)| {
            let window = self.streaming_window;
            let latent = self.latent_step((exec, scratch), streams, pcm, 1, window);
            error.note(latent.and_then(|latent| self.codes_of((exec, scratch), &latent, codes)));
        });
        error.take()
    }

    /// Decodes one frame of every stream: `codes` is `[stream, count]` with `count` codebooks per
    /// stream, the result `[stream, frame_samples]`.
    ///
    /// # Errors
    /// [`Error::Input`] for a wrong number of codebooks or codes out of range; nothing changes
    /// then.
    pub fn decode_step(
        &self,
        streams: &mut [&mut DecoderState<E>],
        codes: &[u32],
    ) -> Result<Vec<f32>> {
        let mut pcm = Vec::new();
        self.decode_step_into(streams, codes, &mut pcm)?;
        Ok(pcm)
    }

    /// As [`Mimi::decode_step`], replacing the contents of `pcm`: without allocation once it is as
    /// long.
    ///
    /// # Errors
    /// As [`Mimi::decode_step`].
    pub fn decode_step_into(
        &self,
        streams: &mut [&mut DecoderState<E>],
        codes: &[u32],
        pcm: &mut Vec<f32>,
    ) -> Result<()> {
        pcm.clear();
        if streams.is_empty() {
            return Ok(());
        }
        self.decoder()?;
        let count = self.check_codes(codes, streams.len())?;
        let frame = self.config.frame_samples;
        pcm.resize(streams.len() * frame, 0.0);
        let groups = self.exec.groups(streams.len(), self.weights[1]);
        let mut memory = self.memory.take();
        let (list, scratches) = memory.reset(groups);
        let (mut streams, mut codes, mut pcm) = (streams, codes, &mut pcm[..]);
        let parts = lengths(streams.len(), groups).zip(scratches).map(|(streams_of, scratch)| {
            let codes = codes.split_off(..streams_of * count).expect("checked");
            let pcm = pcm.split_off_mut(..streams_of * frame).expect("as many");
            let streams = streams.split_off_mut(..streams_of).expect("as many as there are");
            (scratch, streams, codes, pcm)
        });
        let parts = list.list(groups, parts);
        let error = FirstError::default();
        self.exec.each(parts, |exec, (scratch, streams, codes, pcm)| {
            let window = self.streaming_window;
            let latent = self.quantizer.decode((exec, scratch), codes, count);
            let spoken = latent.and_then(|latent| {
                self.pcm_step((exec, scratch), streams, &latent, 1, window, pcm)
            });
            error.note(spoken);
        });
        error.take()
    }

    /// Decodes one frame of latents (`[stream, dimension]`) of every stream.
    ///
    /// # Errors
    /// [`Error::Input`] for a wrong length or values that are not finite.
    pub fn decode_latent_step(
        &self,
        streams: &mut [&mut DecoderState<E>],
        latent: &[f32],
    ) -> Result<Vec<f32>> {
        self.check_latent(latent, streams.len())?;
        let latent = self.exec.upload(latent, self.config.dimension())?;
        let mut pcm = vec![0.0; streams.len() * self.config.frame_samples];
        let on = (&self.exec, &*self.scratch());
        self.pcm_step(on, streams, &latent, 1, self.streaming_window, &mut pcm)?;
        Ok(pcm)
    }

    /// Codes of latents, one row of all codebooks for each.
    pub(super) fn codes_of(
        &self,
        on: (&E, &Scratch),
        latent: &E::Buffer,
        codes: &mut [u32],
    ) -> Result<()> {
        self.quantizer.encode(on, latent, self.num_codebooks, codes)
    }

    /// Latents of `frames` frames of every stream.
    pub(super) fn latent_step(
        &self,
        (exec, scratch): (&E, &Scratch),
        streams: &mut [&mut EncoderState<E>],
        pcm: &[f32],
        frames: usize,
        window: Window,
    ) -> Result<E::Buffer> {
        let positions = self.positions(scratch, window);
        self.encoder()?.forward(exec, pcm, streams, frames, &positions)
    }

    /// Samples of `frames` latents of every stream.
    pub(super) fn pcm_step(
        &self,
        (exec, scratch): (&E, &Scratch),
        streams: &mut [&mut DecoderState<E>],
        latent: &E::Buffer,
        frames: usize,
        window: Window,
        pcm: &mut [f32],
    ) -> Result<()> {
        let positions = self.positions(scratch, window);
        let buffer = self.decoder()?.forward(exec, latent, frames, streams, &positions)?;
        pcm.copy_from_slice(&exec.values(&buffer)?);
        Ok(())
    }

    /// Checks one frame of every stream.
    fn check_samples(&self, pcm: &[f32], streams: usize) -> Result<()> {
        self.encoder()?;
        let frame = self.config.frame_samples;
        if pcm.len() != streams * frame {
            let reason = format!(
                "{} samples for {streams} streams; a frame has exactly {frame} samples",
                pcm.len()
            );
            return Err(Error::input("pcm", reason));
        }
        check_finite("pcm", pcm)
    }
}
