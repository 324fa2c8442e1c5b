//! The codec as a whole.

use super::decoder::Decoder;
use super::encoder::Encoder;
use super::load::Loader;
use super::quantizer::Quantizer;
use super::state::{DecoderState, EncoderState};
use crate::checkpoint::{Catalog, Fingerprint, SourceFile, TensorFile, layout};
use crate::config::MimiConfig;
use crate::error::{Error, Result, check_finite};
use crate::exec::{AttentionPlan, Executor, Rotary, RotaryStyle};

/// Frames per call of the offline paths: amortises weight reads, bounds memory.
const OFFLINE_CHUNK_FRAMES: usize = 8;

/// Which past positions the transformers of the codec see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// The last `context` positions before the end of the query's frame, the rule of the
    /// original's streaming mode: the first position of a frame sees one key less than the last.
    Moshi {
        /// Positions.
        context: usize,
    },
    /// This many positions up to and including the query, the rule of the original's offline mode.
    Last(usize),
}

impl Window {
    /// Lowest visible position of a query.
    fn lowest(self, position: u64, positions_per_frame: u64) -> u64 {
        match self {
            Self::Last(count) => (position + 1).saturating_sub(count as u64),
            Self::Moshi { context } => {
                let end = position - position % positions_per_frame + positions_per_frame;
                // A window shorter than a frame would hide a query from itself.
                end.saturating_sub(context as u64).min(position)
            }
        }
    }
}

/// How positions of the transformers turn into what attention sees.
pub(super) struct Positions<'a> {
    window: Window,
    rotary: &'a Rotary,
    /// Positions per code frame.
    pub(super) per_frame: usize,
}

impl Positions<'_> {
    /// Plans `time` new positions of streams that stand at `starts`.
    pub(super) fn plan(&self, starts: Vec<u64>, time: usize) -> AttentionPlan {
        let lowest = |position| self.window.lowest(position, self.per_frame as u64);
        AttentionPlan::new(starts, time, Some(self.rotary), lowest)
    }
}

/// Which halves of the codec to load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MimiParts {
    /// Encoder and decoder.
    #[default]
    Both,
    /// Audio to codes.
    Encoder,
    /// Codes to audio.
    Decoder,
}

/// How to load a codec.
#[derive(Clone, Copy, Debug)]
pub struct MimiOptions {
    /// Codebooks to use; codes of the first ones do not depend on how many are used.
    pub num_codebooks: usize,
    /// Halves to load.
    pub parts: MimiParts,
    /// Window of the streaming paths; `None` is the original's streaming rule.
    pub window: Option<usize>,
    /// Window of the streaming paths equals that of the offline ones.
    pub exact: bool,
}

impl Default for MimiOptions {
    fn default() -> Self {
        Self { num_codebooks: 8, parts: MimiParts::Both, window: None, exact: false }
    }
}

/// Bytes that a codec takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MimiMemory {
    /// Its weights, in f32.
    pub weight_bytes: u64,
    /// Keys and values of one stream.
    pub stream_bytes: u64,
}

impl MimiMemory {
    /// Computes it from the config; tails of convolutions (below 1 MB) are left out.
    pub fn of(config: &MimiConfig, options: &MimiOptions) -> Self {
        let first_unused = options.num_codebooks.saturating_sub(1);
        let unused = |name: &str| {
            let rest = name.strip_prefix("quantizer.rvq_rest.vq.layers.");
            let level = rest.and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
            level.is_some_and(|level| level >= first_unused)
                || match options.parts {
                    MimiParts::Both => false,
                    MimiParts::Encoder => name.starts_with("decoder") || name.starts_with("up"),
                    MimiParts::Decoder => name.starts_with("encoder") || name.starts_with("down"),
                }
        };
        let used = layout::mimi(config).into_iter().filter(|tensor| !unused(&tensor.name));
        // A config may ask for more than there are bytes in the world; no file will have it.
        let bytes_of = |sizes: &[usize]| {
            let value_bytes = size_of::<f32>() as u64;
            sizes.iter().fold(value_bytes, |bytes, &size| bytes.saturating_mul(size as u64))
        };
        let weight_bytes = used.map(|tensor| bytes_of(&tensor.shapes[0]));
        let sides = if options.parts == MimiParts::Both { 2 } else { 1 };
        let window = options.window.unwrap_or(config.context);
        Self {
            weight_bytes: weight_bytes.fold(0, u64::saturating_add),
            stream_bytes: bytes_of(&[
                sides,
                config.num_layers,
                2,
                config.heads.key_width(),
                window,
            ]),
        }
    }
}

/// The codec: immutable weights, shared by all streams.
pub struct Mimi<E: Executor> {
    exec: E,
    config: MimiConfig,
    num_codebooks: usize,
    rotary: Rotary,
    streaming_window: Window,
    offline_window: Window,
    encoder: Option<Encoder<E>>,
    decoder: Option<Decoder<E>>,
    quantizer: Quantizer<E>,
    fingerprint: Fingerprint,
}

impl<E: Executor> Mimi<E> {
    /// Loads the weights of a file, whose tensors must be exactly those of the config.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Checkpoint`], [`Error::Tensors`] for the file;
    /// [`Error::Input`] for a number of codebooks or a window out of range.
    pub fn load(
        exec: &E,
        file: impl Into<SourceFile>,
        config: &MimiConfig,
        options: &MimiOptions,
    ) -> Result<Self> {
        let file = TensorFile::open(file)?;
        let catalog = Catalog::mimi(&file, config.heads.query)?;
        Self::from_catalog(exec, &catalog, config, options)
    }

    /// Loads the weights of a catalogue, whose tensors must be exactly those of the config.
    ///
    /// # Errors
    /// As [`Mimi::load`].
    pub fn from_catalog(
        exec: &E,
        catalog: &Catalog<'_>,
        config: &MimiConfig,
        options: &MimiOptions,
    ) -> Result<Self> {
        let num_codebooks = options.num_codebooks;
        if !(1..=config.total_codebooks).contains(&num_codebooks) {
            let reason = format!("{num_codebooks} is not between 1 and {}", config.total_codebooks);
            return Err(Error::input("num_codebooks", reason));
        }
        let offline_window = Window::Last(options.window.unwrap_or(config.context));
        let streaming_window = match options.window {
            Some(window) if window == 0 || window > MAX_WINDOW => {
                let reason = format!("{window} is not between 1 and {MAX_WINDOW} positions");
                return Err(Error::input("window", reason));
            }
            None if !options.exact => Window::Moshi { context: config.context },
            _ => offline_window,
        };
        catalog.check(&layout::mimi(config))?;
        let loader = Loader { exec, catalog, config };
        let (encode, decode) =
            (options.parts != MimiParts::Decoder, options.parts != MimiParts::Encoder);
        let mut config = config.clone();
        let encoder = encode.then(|| Encoder::load(&loader)).transpose()?;
        let decoder = decode.then(|| Decoder::load(&loader)).transpose()?;
        let quantizer = Quantizer::load(&loader, num_codebooks, (encode, decode))?;
        config.context = options.window.unwrap_or(config.context);
        log::info!(
            "codec {}: {num_codebooks} codebooks on {}",
            catalog.path().display(),
            exec.name()
        );
        Ok(Self {
            exec: exec.clone(),
            num_codebooks,
            rotary: Rotary::new(RotaryStyle::Interleaved, config.heads.width, config.max_period),
            streaming_window,
            offline_window,
            encoder,
            decoder,
            quantizer,
            fingerprint: Fingerprint::of(
                &catalog.files(),
                &[&format!("{config:?} {num_codebooks} {streaming_window:?}")],
            ),
            config,
        })
    }

    /// The config, with the window in force as `context`.
    pub fn config(&self) -> &MimiConfig {
        &self.config
    }

    /// Codebooks in use.
    pub fn num_codebooks(&self) -> usize {
        self.num_codebooks
    }

    /// Identity of weights and settings.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// True when audio can be encoded.
    pub fn has_encoder(&self) -> bool {
        self.encoder.is_some()
    }

    /// True when codes can be decoded.
    pub fn has_decoder(&self) -> bool {
        self.decoder.is_some()
    }

    /// A fresh encoding stream for calls of one frame.
    ///
    /// # Errors
    /// [`Error::Session`] when only the decoder is loaded.
    pub fn encoder_state(&self) -> Result<EncoderState<E>> {
        EncoderState::new(&self.exec, self.encoder()?.lane_shape(&self.config, 1))
    }

    /// A fresh decoding stream for calls of one frame.
    ///
    /// # Errors
    /// [`Error::Session`] when only the encoder is loaded.
    pub fn decoder_state(&self) -> Result<DecoderState<E>> {
        DecoderState::new(&self.exec, self.decoder()?.lane_shape(&self.config, 1))
    }

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
        if streams.is_empty() {
            return Ok(Vec::new());
        }
        let latent = self.latent_step(streams, pcm, 1, self.streaming_window)?;
        self.quantizer.encode(&self.exec, &latent, self.num_codebooks)
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
        if streams.is_empty() {
            return Ok(Vec::new());
        }
        let count = self.check_codes(codes, streams.len())?;
        let latent = self.quantizer.decode(&self.exec, codes, count)?;
        self.pcm_step(streams, &latent, 1, self.streaming_window)
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
        let latent = self.exec.upload(latent.to_vec(), self.config.dimension())?;
        self.pcm_step(streams, &latent, 1, self.streaming_window)
    }

    /// Encodes a whole recording: zero-padded to whole frames, `[frame, num_codebooks]`.
    ///
    /// # Errors
    /// [`Error::Input`] for samples that are not finite.
    pub fn encode(&self, pcm: &[f32]) -> Result<Vec<u32>> {
        let mut codes = Vec::new();
        self.latents(pcm, |latent| {
            codes.extend(self.quantizer.encode(&self.exec, &latent, self.num_codebooks)?);
            Ok(())
        })?;
        Ok(codes)
    }

    /// Latents of a whole recording before quantisation, `[frame, dimension]`.
    ///
    /// # Errors
    /// As [`Mimi::encode`].
    pub fn encode_to_latent(&self, pcm: &[f32]) -> Result<Vec<f32>> {
        let mut latents = Vec::new();
        self.latents(pcm, |latent| {
            latents.extend(self.exec.download(&latent)?);
            Ok(())
        })?;
        Ok(latents)
    }

    /// Codes `[frame, num_codebooks]` of latents `[frame, dimension]`.
    ///
    /// # Errors
    /// [`Error::Input`] for a wrong length or values that are not finite.
    pub fn quantise(&self, latents: &[f32]) -> Result<Vec<u32>> {
        self.encoder()?;
        let frames = latents.len() / self.config.dimension();
        self.check_latent(latents, frames)?;
        if frames == 0 {
            return Ok(Vec::new());
        }
        let latent = self.exec.upload(latents.to_vec(), self.config.dimension())?;
        self.quantizer.encode(&self.exec, &latent, self.num_codebooks)
    }

    /// Latents `[frame, dimension]` of codes `[frame, count]`.
    ///
    /// # Errors
    /// [`Error::Input`] for a length that is no multiple of `frames` or codes out of range.
    pub fn dequantise(&self, codes: &[u32], frames: usize) -> Result<Vec<f32>> {
        self.decoder()?;
        if frames == 0 {
            return Ok(Vec::new());
        }
        let count = self.check_codes(codes, frames)?;
        self.exec.download(&self.quantizer.decode(&self.exec, codes, count)?)
    }

    /// Decodes whole recordings' codes `[frame, count]` to `frames * frame_samples` samples.
    ///
    /// # Errors
    /// As [`Mimi::dequantise`].
    pub fn decode(&self, codes: &[u32], frames: usize) -> Result<Vec<f32>> {
        let latents = self.dequantise(codes, frames)?;
        self.decode_latent(&latents)
    }

    /// Decodes latents `[frame, dimension]`.
    ///
    /// # Errors
    /// [`Error::Input`] for a wrong length or values that are not finite.
    pub fn decode_latent(&self, latents: &[f32]) -> Result<Vec<f32>> {
        let decoder = self.decoder()?;
        let dim = self.config.dimension();
        self.check_latent(latents, latents.len() / dim)?;
        let shape = decoder.lane_shape(&self.config, OFFLINE_CHUNK_FRAMES);
        let mut state = DecoderState::new(&self.exec, shape)?;
        let mut pcm = Vec::new();
        for chunk in latents.chunks(dim * OFFLINE_CHUNK_FRAMES) {
            let latent = self.exec.upload(chunk.to_vec(), dim)?;
            let frames = chunk.len() / dim;
            pcm.extend(self.pcm_step(&mut [&mut state], &latent, frames, self.offline_window)?);
        }
        Ok(pcm)
    }

    fn latents(&self, pcm: &[f32], mut each: impl FnMut(E::Buffer) -> Result<()>) -> Result<()> {
        let encoder = self.encoder()?;
        check_finite("pcm", pcm)?;
        let shape = encoder.lane_shape(&self.config, OFFLINE_CHUNK_FRAMES);
        let mut state = EncoderState::new(&self.exec, shape)?;
        let frame = self.config.frame_samples;
        for chunk in pcm.chunks(frame * OFFLINE_CHUNK_FRAMES) {
            let frames = chunk.len().div_ceil(frame);
            let mut chunk = chunk.to_vec();
            chunk.resize(frames * frame, 0.0);
            each(self.latent_step(&mut [&mut state], &chunk, frames, self.offline_window)?)?;
        }
        Ok(())
    }

    fn latent_step(
        &self,
        streams: &mut [&mut EncoderState<E>],
        pcm: &[f32],
        frames: usize,
        window: Window,
    ) -> Result<E::Buffer> {
        let encoder = self.encoder()?;
        let expected = streams.len() * frames * self.config.frame_samples;
        if pcm.len() != expected {
            let reason = format!(
                "{} samples for {} streams; a frame has exactly {} samples",
                pcm.len(),
                streams.len(),
                self.config.frame_samples
            );
            return Err(Error::input("pcm", reason));
        }
        check_finite("pcm", pcm)?;
        encoder.forward(&self.exec, pcm.to_vec(), streams, frames, &self.positions(window))
    }

    fn pcm_step(
        &self,
        streams: &mut [&mut DecoderState<E>],
        latent: &E::Buffer,
        frames: usize,
        window: Window,
    ) -> Result<Vec<f32>> {
        self.decoder()?.forward(&self.exec, latent, frames, streams, &self.positions(window))
    }

    fn positions(&self, window: Window) -> Positions<'_> {
        Positions { window, rotary: &self.rotary, per_frame: self.config.positions_per_frame }
    }

    fn encoder(&self) -> Result<&Encoder<E>> {
        self.encoder.as_ref().ok_or_else(|| Error::Session {
            reason: "this codec was loaded without its encoder".into(),
        })
    }

    fn decoder(&self) -> Result<&Decoder<E>> {
        self.decoder.as_ref().ok_or_else(|| Error::Session {
            reason: "this codec was loaded without its decoder".into(),
        })
    }

    fn check_codes(&self, codes: &[u32], rows: usize) -> Result<usize> {
        let count = codes.len() / rows;
        if codes.len() != count * rows || !(1..=self.num_codebooks).contains(&count) {
            let reason = format!(
                "{} codes for {rows} frames; a frame has 1 to {} codes",
                codes.len(),
                self.num_codebooks
            );
            return Err(Error::input("codes", reason));
        }
        let size = self.config.codebook_size;
        match codes.iter().position(|&code| code as usize >= size) {
            None => Ok(count),
            Some(i) => {
                let reason = format!(
                    "code {} of codebook {} in frame {}; codes are below {size}",
                    codes[i],
                    i % count,
                    i / count
                );
                Err(Error::input("codes", reason))
            }
        }
    }

    fn check_latent(&self, latent: &[f32], rows: usize) -> Result<()> {
        let dim = self.config.dimension();
        if latent.len() != rows * dim {
            let reason = format!("{} values are no multiple of {dim}", latent.len());
            return Err(Error::input("latent", reason));
        }
        check_finite("latent", latent)
    }
}

/// Ten minutes of positions; a ring of them stays far below memory limits.
const MAX_WINDOW: usize = 16_384;
