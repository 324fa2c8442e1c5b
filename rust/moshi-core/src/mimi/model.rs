//! The codec as a whole.

use super::decoder::Decoder;
use super::encoder::Encoder;
use super::load::Loader;
use super::quantizer::Quantizer;
use super::state::{DecoderState, EncoderState};
use super::traffic::MimiTraffic;
use super::window::{Positions, Window};
use crate::checkpoint::{Catalog, Fingerprint, SourceFile, TensorFile, layout};
use crate::config::MimiConfig;
use crate::error::{Error, Result, check_finite};
use crate::exec::{Executor, KeyStorage, Reuse, Rotary, RotaryStyle, Storage};
use crate::nn::Transformer;
use crate::scratch::{GroupScratch, Scratch, Spare, Taken};

/// Frames per call of the offline paths: amortises weight reads, bounds memory.
const OFFLINE_CHUNK_FRAMES: usize = 8;

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

/// How a codec keeps its weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MimiMode {
    /// In f32: codes are those of the original.
    #[default]
    Exact,
    /// Convolutions, transformers, projections, keys and values in bf16, which halves what a frame
    /// reads; codebooks and arithmetic stay in f32. Few codes of the first codebook differ.
    Fast,
}

impl MimiMode {
    /// Storage of the weights that multiply.
    pub(super) fn storage(self) -> Storage {
        match self {
            Self::Exact => Storage::F32,
            Self::Fast => Storage::Bf16,
        }
    }

    /// Storage of what attention remembers.
    pub(super) fn keys(self) -> KeyStorage {
        match self {
            Self::Exact => KeyStorage::F32,
            Self::Fast => KeyStorage::Bf16,
        }
    }
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
    /// Storage of the weights.
    pub mode: MimiMode,
}

impl Default for MimiOptions {
    fn default() -> Self {
        Self {
            num_codebooks: 8,
            parts: MimiParts::Both,
            window: None,
            exact: false,
            mode: MimiMode::default(),
        }
    }
}

/// The codec: immutable weights, shared by all streams.
pub struct Mimi<E: Executor> {
    pub(super) exec: E,
    pub(super) config: MimiConfig,
    pub(super) num_codebooks: usize,
    rotary: Rotary,
    pub(super) streaming_window: Window,
    offline_window: Window,
    encoder: Option<Encoder<E>>,
    decoder: Option<Decoder<E>>,
    pub(super) quantizer: Quantizer<E>,
    keys: KeyStorage,
    fingerprint: Fingerprint,
    /// Weights of the two directions.
    pub(super) weights: [Reuse; 2],
    scratch: Spare<Scratch>,
    pub(super) memory: Spare<GroupScratch>,
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
        let codec = Self::from_catalog(exec, &catalog, config, options)?;
        codec.tune()?;
        Ok(codec)
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
        let loader = Loader { exec, catalog, config, mode: options.mode };
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
        let traffic = MimiTraffic::of(exec, &config, num_codebooks, options.mode);
        let value_bytes = options.mode.storage().bytes_of(1, 1);
        Ok(Self {
            exec: exec.clone(),
            num_codebooks,
            rotary: Rotary::new(RotaryStyle::Interleaved, config.heads.width, config.max_period),
            streaming_window,
            offline_window,
            encoder,
            decoder,
            quantizer,
            keys: exec.key_storage(None, options.mode.keys())?,
            fingerprint: Fingerprint::of(
                &catalog.files(),
                &[&match options.mode {
                    MimiMode::Exact => format!("{config:?} {num_codebooks} {streaming_window:?}"),
                    mode @ MimiMode::Fast => {
                        format!("{config:?} {num_codebooks} {streaming_window:?} {mode:?}")
                    }
                }],
            ),
            weights: [traffic.encode, traffic.decode].map(|part| Reuse {
                bytes: part.weight_bytes,
                rows_per_stream: (part.multiplications * value_bytes / part.weight_bytes) as usize,
            }),
            config,
            scratch: Spare::default(),
            memory: Spare::default(),
        })
    }

    /// Lets the executor measure how to run this codec best, see [`Executor::tune`].
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn tune(&self) -> Result<()> {
        self.exec.tune(&self.step_weights())
    }

    /// The matrices that a step reads most of.
    pub(crate) fn step_weights(&self) -> Vec<&E::Weight> {
        let encoder = self.encoder.iter().map(|encoder| &encoder.transformer);
        let decoder = self.decoder.iter().map(|decoder| &decoder.transformer);
        encoder.chain(decoder).flat_map(Transformer::weights).collect()
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
        EncoderState::new(&self.exec, self.encoder()?.lane_shape(&self.config, 1).with(self.keys))
    }

    /// A fresh decoding stream for calls of one frame.
    ///
    /// # Errors
    /// [`Error::Session`] when only the encoder is loaded.
    pub fn decoder_state(&self) -> Result<DecoderState<E>> {
        DecoderState::new(&self.exec, self.decoder()?.lane_shape(&self.config, 1).with(self.keys))
    }

    /// Encodes a whole recording: zero-padded to whole frames, `[frame, num_codebooks]`.
    ///
    /// # Errors
    /// [`Error::Input`] for samples that are not finite.
    pub fn encode(&self, pcm: &[f32]) -> Result<Vec<u32>> {
        let mut codes = Vec::new();
        self.latents(pcm, |scratch, latent, frames| {
            let done = codes.len();
            codes.resize(done + frames * self.num_codebooks, 0);
            self.codes_of((&self.exec, scratch), latent, &mut codes[done..])
        })?;
        Ok(codes)
    }

    /// Latents of a whole recording before quantisation, `[frame, dimension]`.
    ///
    /// # Errors
    /// As [`Mimi::encode`].
    pub fn encode_to_latent(&self, pcm: &[f32]) -> Result<Vec<f32>> {
        let mut latents = Vec::new();
        self.latents(pcm, |_, latent, _| {
            latents.extend_from_slice(&self.exec.values(latent)?);
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
        let mut codes = Vec::new();
        if frames > 0 {
            let latent = self.exec.upload(latents, self.config.dimension())?;
            codes.resize(frames * self.num_codebooks, 0);
            self.codes_of((&self.exec, &self.scratch()), &latent, &mut codes)?;
        }
        Ok(codes)
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
        let scratch = &self.scratch();
        self.exec.download(&self.quantizer.decode((&self.exec, scratch), codes, count)?)
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
        let shape = decoder.lane_shape(&self.config, OFFLINE_CHUNK_FRAMES).with(self.keys);
        let mut state = DecoderState::new(&self.exec, shape)?;
        let mut pcm = Vec::new();
        for chunk in latents.chunks(dim * OFFLINE_CHUNK_FRAMES) {
            let latent = self.exec.upload(chunk, dim)?;
            let (frames, window) = (chunk.len() / dim, self.offline_window);
            let (done, streams) = (pcm.len(), &mut [&mut state]);
            pcm.resize(done + frames * self.config.frame_samples, 0.0);
            let on = (&self.exec, &*self.scratch());
            self.pcm_step(on, streams, &latent, frames, window, &mut pcm[done..])?;
        }
        Ok(pcm)
    }

    /// Calls `each` with the latents of every chunk of a recording and their number.
    fn latents(
        &self,
        pcm: &[f32],
        mut each: impl FnMut(&Scratch, &E::Buffer, usize) -> Result<()>,
    ) -> Result<()> {
        let encoder = self.encoder()?;
        check_finite("pcm", pcm)?;
        let shape = encoder.lane_shape(&self.config, OFFLINE_CHUNK_FRAMES).with(self.keys);
        let mut state = EncoderState::new(&self.exec, shape)?;
        let frame = self.config.frame_samples;
        for chunk in pcm.chunks(frame * OFFLINE_CHUNK_FRAMES) {
            let frames = chunk.len().div_ceil(frame);
            let mut chunk = chunk.to_vec();
            chunk.resize(frames * frame, 0.0);
            let (scratch, streams) = (&self.scratch(), &mut [&mut state]);
            let (on, window) = ((&self.exec, &**scratch), self.offline_window);
            let latent = self.latent_step(on, streams, &chunk, frames, window)?;
            each(scratch, &latent, frames)?;
        }
        Ok(())
    }

    pub(super) fn scratch(&self) -> Taken<'_, Scratch> {
        let mut scratch = self.scratch.take();
        scratch.reset();
        scratch
    }

    pub(super) fn positions<'a>(&'a self, scratch: &'a Scratch, window: Window) -> Positions<'a> {
        let per_frame = self.config.positions_per_frame;
        Positions { window, rotary: &self.rotary, scratch, per_frame }
    }

    pub(super) fn encoder(&self) -> Result<&Encoder<E>> {
        self.encoder.as_ref().ok_or_else(|| Error::Session {
            reason: "this codec was loaded without its encoder".into(),
        })
    }

    pub(super) fn decoder(&self) -> Result<&Decoder<E>> {
        self.decoder.as_ref().ok_or_else(|| Error::Session {
            reason: "this codec was loaded without its decoder".into(),
        })
    }

    pub(super) fn check_codes(&self, codes: &[u32], rows: usize) -> Result<usize> {
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

    pub(super) fn check_latent(&self, latent: &[f32], rows: usize) -> Result<()> {
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
