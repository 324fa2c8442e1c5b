//! `moshi-rs encode` and `moshi-rs decode`: audio to Mimi tokens and back.

use std::collections::HashMap;

use moshi_audio::{MonoReader, WavWriter};
use moshi_core::checkpoint::{CodecFiles, Fingerprint, TensorFile};
use moshi_core::exec::Executor;
use moshi_core::mimi::{Mimi, MimiOptions, MimiParts};
use moshi_core::with_executor;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

use crate::hub;
use crate::interrupt::{EXIT_INTERRUPTED, Watch};
use crate::options::{CodecArgs, DecodeArgs, EncodeArgs};
use crate::output::{CliError, Result, line, one_line, progress};

/// Tensor of a token file: `[codebook, frame]`.
const CODES: &str = "codes";

pub(crate) fn encode(args: &EncodeArgs) -> Result<i32> {
    let compute = &args.codec.compute;
    with_executor!(compute.device(), compute.cpu_executor(), exec => encode_with(&exec, args))
}

pub(crate) fn decode(args: &DecodeArgs) -> Result<i32> {
    let compute = &args.codec.compute;
    with_executor!(compute.device(), compute.cpu_executor(), exec => decode_with(&exec, args))
}

/// Metadata of a token file: by which codec the codes are to be read, and what it was called.
const CODEC: &str = "codec";
const CODEC_FILE: &str = "codec_file";

/// What tells one codec's file from another's, and its name.
type CodecName = (String, String);

fn load<E: Executor>(
    exec: &E,
    codec: &CodecArgs,
    codebooks: Option<usize>,
    parts: MimiParts,
) -> Result<(Mimi<E>, CodecName)> {
    let CodecFiles { weights, config } =
        moshi_box::open_codec(codec.model.as_deref(), &hub::options(codec.revision.as_ref()))?;
    let fingerprint = Fingerprint::of(&[&TensorFile::open(&weights)?], &[]);
    let name = (format!("{fingerprint:?}"), weights.path().display().to_string());
    let num_codebooks = codebooks.unwrap_or(config.total_codebooks);
    let options = MimiOptions { num_codebooks, parts, exact: true, ..MimiOptions::default() };
    Ok((Mimi::load(exec, weights, &config, &options)?, name))
}

fn encode_with<E: Executor>(exec: &E, args: &EncodeArgs) -> Result<i32> {
    let (mimi, (codec, codec_file)) =
        load(exec, &args.codec, Some(args.codebooks), MimiParts::Encoder)?;
    let (frame, rate) = (mimi.config().frame_samples, mimi.config().sample_rate_hz as u32);
    let mut reader = MonoReader::open(&args.input, rate)?;
    let total = reader.total_samples().map(|samples| samples.div_ceil(frame as u64));
    let bar = progress(total, "frames");
    let mut state = mimi.encoder_state()?;
    let (mut samples, mut codes) = (Vec::new(), Vec::new());
    let mut open = true;
    let watch = Watch::new();
    while open {
        open = reader.read(&mut samples)?;
        if !open {
            samples.resize(samples.len().next_multiple_of(frame), 0.0);
        }
        let whole = samples.len() - samples.len() % frame;
        for pcm in samples[..whole].chunks_exact(frame) {
            codes.extend(mimi.encode_step(&mut [&mut state], pcm)?);
            bar.inc(1);
            if watch.requested() {
                return Ok(EXIT_INTERRUPTED);
            }
        }
        samples.drain(..whole);
    }
    bar.finish_and_clear();

    let count = mimi.num_codebooks();
    let frames = codes.len() / count;
    let bytes: Vec<u8> = (0..count)
        .flat_map(|k| codes.chunks_exact(count).flat_map(move |f| i64::from(f[k]).to_le_bytes()))
        .collect();
    let fail = |e: safetensors::SafeTensorError| {
        CliError::Input(format!("cannot write {}: {e}", args.output.display()))
    };
    let view = TensorView::new(Dtype::I64, vec![count, frames], &bytes).map_err(fail)?;
    let metadata = HashMap::from([
        ("sample_rate_hz".to_owned(), rate.to_string()),
        ("frame_rate_hz".to_owned(), mimi.config().frame_rate_hz().to_string()),
        (CODEC.to_owned(), codec),
        (CODEC_FILE.to_owned(), codec_file),
    ]);
    serialize_to_file([(CODES, view)], Some(metadata), &args.output).map_err(fail)?;
    line(format_args!(
        "{frames} frames of {count} codebooks written to {}",
        args.output.display()
    ))?;
    Ok(0)
}

fn decode_with<E: Executor>(exec: &E, args: &DecodeArgs) -> Result<i32> {
    // Whatever is wrong with this file, it is input and no checkpoint.
    let bad = |error: moshi_core::Error| CliError::Input(format!("token file: {error}"));
    let file = TensorFile::open(&args.input).map_err(bad)?;
    let shape = file.info(CODES).map_err(bad)?.shape.clone();
    let [count, frames] = shape[..] else {
        let path = args.input.display();
        let reason = format!("{path}: `{CODES}` has shape {shape:?}, expected [codebook, frame]");
        return Err(CliError::Input(reason));
    };
    let codes = file
        .read_i64(CODES)
        .map_err(bad)?
        .into_iter()
        .map(|code| {
            u32::try_from(code).map_err(|_| {
                CliError::Input(format!("{}: {code} is no code", args.input.display()))
            })
        })
        .collect::<Result<Vec<u32>>>()?;
    let (mimi, (codec, codec_file)) = load(exec, &args.codec, None, MimiParts::Decoder)?;
    if let Some(wanted) = file.metadata().get(CODEC).filter(|&wanted| *wanted != codec) {
        let made_by = file.metadata().get(CODEC_FILE).map_or(wanted, |name| name);
        log::warn!(
            "{} was made by {}, which differs from {codec_file}: unless both hold one codec, the \
             sound will be nonsense; name the codec with --model",
            args.input.display(),
            one_line(made_by)
        );
    }
    let size = mimi.config().codebook_size;
    if let Some(i) = codes.iter().position(|&code| code as usize >= size) {
        let (k, t) = (i / frames, i % frames);
        let path = args.input.display();
        let reason = format!(
            "{path}: code {} of codebook {k} in frame {t}; codes of {codec_file} are below {size}",
            codes[i]
        );
        return Err(CliError::Input(reason));
    }
    let rate = mimi.config().sample_rate_hz as u32;
    let mut writer = WavWriter::create(&args.output, rate, 1)?;
    let mut state = mimi.decoder_state()?;
    let bar = progress(Some(frames as u64), "frames");
    let watch = Watch::new();
    for t in 0..frames {
        if watch.requested() {
            return Ok(EXIT_INTERRUPTED);
        }
        let frame: Vec<u32> = (0..count).map(|k| codes[k * frames + t]).collect();
        writer.write(&mimi.decode_step(&mut [&mut state], &frame)?)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    writer.finish()?;
    let seconds = frames as f64 / mimi.config().frame_rate_hz();
    line(format_args!("{seconds:.2} s written to {}", args.output.display()))?;
    Ok(0)
}
