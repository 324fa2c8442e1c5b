//! Cases of kind `mimi`: the codec offline, streaming, and in desynchronised slots.

use moshi_core::Result;
use moshi_core::checkpoint::TensorFile;
use moshi_core::config::MimiConfig;
use moshi_core::exec::Executor;
use moshi_core::mimi::{DecoderState, EncoderState, Mimi, MimiOptions};

use super::{Case, Computed, Results, Values};

/// Samples of the ragged recording in its last, partial frame.
const RAGGED_EXTRA_SAMPLES: usize = 777;
/// Slot 0 of the batch is reset before this frame.
const BATCH_RESET_FRAME: usize = 9;

pub(super) fn compute<E: Executor>(exec: &E, case: &Case, file: &TensorFile) -> Result<Results> {
    let config = MimiConfig::from_json("mimi_config.json", &case.text("mimi_config.json")?)?;
    let count = match case.json.get("num_codebooks") {
        None => config.total_codebooks,
        Some(value) => value
            .as_u64()
            .ok_or_else(|| case.field_error("num_codebooks", "expected a whole number"))?
            as usize,
    };
    let options = MimiOptions { num_codebooks: count, ..MimiOptions::default() };
    let mimi = Mimi::load(exec, &case.folder.join("mimi.safetensors"), &config, &options)?;

    let has = |name: &str| file.tensors().contains_key(name);
    let pcm = file.read_f32("pcm")?;
    let codes = mimi.encode(&pcm)?;
    let frames = codes.len() / count;
    let dim = config.dimension();
    let latents = mimi.dequantise(&codes, frames)?;
    let samples = frames * config.frame_samples;
    let mut computed = vec![
        tokens("codes", vec![1, count, frames], by_codebook(&codes, count)),
        floats("latent", vec![1, dim, frames], transpose(&mimi.encode_to_latent(&pcm)?, dim)),
        floats("latent_quantised", vec![1, dim, frames], transpose(&latents, dim)),
        audio("decoded", vec![1, 1, samples], mimi.decode(&codes, frames)?),
    ];
    if has("ragged_codes") {
        let frames = file.info("ragged_codes")?.shape.last().copied().unwrap_or(0);
        let whole = frames.saturating_sub(1) * config.frame_samples;
        let codes = mimi.encode(&pcm[..(whole + RAGGED_EXTRA_SAMPLES).min(pcm.len())])?;
        let shape = vec![1, count, codes.len() / count];
        computed.push(tokens("ragged_codes", shape, by_codebook(&codes, count)));
    }
    stream(&mimi, &pcm, &mut computed)?;
    let mut inputs = vec!["pcm"];
    if has("batch_pcm") {
        inputs.push("batch_pcm");
        batch(&mimi, &file.read_f32("batch_pcm")?, &mut computed)?;
    }
    Ok(Results { inputs, computed })
}

/// Frame by frame.
fn stream<E: Executor>(mimi: &Mimi<E>, pcm: &[f32], computed: &mut Vec<Computed>) -> Result<()> {
    let (mut encoder, mut decoder) = (mimi.encoder_state()?, mimi.decoder_state()?);
    let (mut all_codes, mut decoded) = (Vec::new(), Vec::new());
    for frame in pcm.chunks_exact(mimi.config().frame_samples) {
        let codes = mimi.encode_step(&mut [&mut encoder], frame)?;
        decoded.extend(mimi.decode_step(&mut [&mut decoder], &codes)?);
        all_codes.extend(codes);
    }
    let count = mimi.num_codebooks();
    let shape = vec![1, count, all_codes.len() / count];
    computed.push(tokens("stream_codes", shape, by_codebook(&all_codes, count)));
    computed.push(audio("stream_decoded", vec![1, 1, decoded.len()], decoded));
    Ok(())
}

/// Two slots: slot 0 is reset on the way, slot 1 runs on even frames only.
fn batch<E: Executor>(mimi: &Mimi<E>, pcm: &[f32], computed: &mut Vec<Computed>) -> Result<()> {
    let (count, frame) = (mimi.num_codebooks(), mimi.config().frame_samples);
    let per_slot = pcm.len() / 2;
    let frames = per_slot / frame;
    let mut encoders = [mimi.encoder_state()?, mimi.encoder_state()?];
    let mut decoders = [mimi.decoder_state()?, mimi.decoder_state()?];
    let mut codes = vec![0i64; 2 * count * frames];
    let mut decoded = vec![0.0f32; 2 * frames * frame];
    for t in 0..frames {
        if t == BATCH_RESET_FRAME {
            encoders[0].reset()?;
            decoders[0].reset()?;
        }
        let active = if t % 2 == 0 { 2 } else { 1 };
        let input: Vec<f32> = (0..active)
            .flat_map(|slot| &pcm[slot * per_slot + t * frame..slot * per_slot + (t + 1) * frame])
            .copied()
            .collect();
        let mut slots: Vec<&mut EncoderState<E>> = encoders.iter_mut().take(active).collect();
        let step = mimi.encode_step(&mut slots, &input)?;
        let mut slots: Vec<&mut DecoderState<E>> = decoders.iter_mut().take(active).collect();
        let out = mimi.decode_step(&mut slots, &step)?;
        for slot in 0..active {
            for k in 0..count {
                codes[(slot * count + k) * frames + t] = step[slot * count + k].into();
            }
            let at = slot * frames * frame + t * frame;
            decoded[at..at + frame].copy_from_slice(&out[slot * frame..(slot + 1) * frame]);
        }
    }
    let mut codes = tokens("batch_codes", vec![2, count, frames], codes);
    codes.ignore = Some(Box::new(|index| index[0] == 1 && index[2] % 2 == 1));
    let mut decoded = audio("batch_decoded", vec![2, 1, frames * frame], decoded);
    decoded.ignore = Some(Box::new(move |index| index[0] == 1 && (index[2] / frame) % 2 == 1));
    computed.extend([codes, decoded]);
    Ok(())
}

fn tokens(name: &str, shape: Vec<usize>, values: Vec<i64>) -> Computed {
    let values = Values::Tokens(values);
    Computed { name: name.into(), shape, values, step_axis: 2, ignore: None }
}

fn floats(name: &str, shape: Vec<usize>, values: Vec<f32>) -> Computed {
    let values = Values::Floats(values);
    Computed { name: name.into(), shape, values, step_axis: 2, ignore: None }
}

pub(super) fn audio(name: &str, shape: Vec<usize>, values: Vec<f32>) -> Computed {
    let values = Values::Audio(values);
    Computed { name: name.into(), shape, values, step_axis: 2, ignore: None }
}

/// `[frame][codebook]` to `[codebook][frame]`.
pub(super) fn by_codebook(codes: &[u32], count: usize) -> Vec<i64> {
    (0..count).flat_map(|k| codes.chunks_exact(count).map(move |f| f[k].into())).collect()
}

fn transpose(values: &[f32], width: usize) -> Vec<f32> {
    (0..width).flat_map(|c| values.chunks_exact(width).map(move |row| row[c])).collect()
}
