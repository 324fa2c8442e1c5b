//! `moshi-rs run`: an audio file through the step loop.

use std::io::{IsTerminal, stdout};
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use moshi_audio::{AudioReader, MonoReader, WavWriter};
use moshi_core::lm::Sampling;
use moshi_core::{Model, Session, SessionOptions};
use serde_json::json;

use crate::hub;
use crate::interrupt::{EXIT_INTERRUPTED, Watch};
use crate::options::{RunArgs, SpeechArgs};
use crate::output::{CliError, Loading, Result, line, one_line, progress, text};

/// Ten minutes: enough for any last word, and a bound on a mistyped number.
const MAX_PAD_SECONDS: f64 = 600.0;

pub(crate) fn run(args: &RunArgs) -> Result<i32> {
    if !(0.0..=MAX_PAD_SECONDS).contains(&args.pad) {
        let reason = format!("--pad {} is not between 0 and {MAX_PAD_SECONDS}", args.pad);
        return Err(CliError::Usage(reason));
    }
    // A mistyped name should not cost the loading of a model.
    drop(AudioReader::open(&args.input)?);
    let (model, mut session) = open(&args.speech, &Loading::new(args.json))?;
    let info = model.info().clone();
    let rate = info.sample_rate_hz as u32;
    let mut reader = MonoReader::open(&args.input, rate)?;
    let channels = if args.stereo { 2 } else { 1 };
    let mut writer =
        args.output.as_ref().map(|path| WavWriter::create(path, rate, channels)).transpose()?;

    let frame = info.frame_samples;
    let pad = (args.pad * info.sample_rate_hz as f64) as usize;
    let total = reader.total_samples().map(|n| (n + pad as u64).div_ceil(frame as u64));
    // Where the text appears, it shows the progress, and a bar would wipe it out.
    let text_on_terminal = !args.json && stdout().is_terminal();
    let bar = if text_on_terminal { ProgressBar::hidden() } else { progress(total, "frames") };
    let mut samples = Vec::new();
    let mut times = Vec::new();
    let mut said = String::new();
    let mut open = true;
    let watch = Watch::new();
    while open && !watch.requested() {
        open = reader.read(&mut samples)?;
        if !open {
            samples.resize((samples.len() + pad).next_multiple_of(frame), 0.0);
        }
        let whole = samples.len() - samples.len() % frame;
        for pcm in samples[..whole].chunks_exact(frame) {
            if watch.requested() {
                break;
            }
            let start = Instant::now();
            let output = session.step(pcm)?;
            times.push(start.elapsed());
            if let Some(writer) = &mut writer {
                writer.write(&interleave(pcm, output.pcm, args.stereo))?;
            }
            if !args.json && !output.text.is_empty() {
                // The first word begins with a space, as every word does.
                let start = said.is_empty();
                text(if start { output.text.trim_start() } else { &output.text })?;
            }
            said.push_str(&output.text);
            bar.inc(1);
        }
        samples.drain(..whole);
    }
    bar.finish_and_clear();
    if let Some(writer) = writer {
        writer.finish()?;
    }
    summarise(args, &model, &session, &said, &times)?;
    Ok(if watch.requested() { EXIT_INTERRUPTED } else { 0 })
}

/// Loads the model and opens a session as the options say.
pub(crate) fn open(
    args: &SpeechArgs,
    loading: &Loading,
) -> moshi_core::Result<(Arc<Model>, Session)> {
    let repo = hub::open(args)?;
    let model = Model::open(&repo, &args.load_options(), loading)?;
    loading.finish();
    let options = SessionOptions {
        seed: args.seed,
        sampling: Some(sampling(args, &model)),
        ..SessionOptions::default()
    };
    let session = Session::new(&model, &options)?;
    Ok((model, session))
}

/// What the options say, else what the model recommends.
pub(crate) fn sampling(args: &SpeechArgs, model: &Model) -> Sampling {
    let default = model.default_sampling();
    Sampling {
        temperature: args.temperature.unwrap_or(default.temperature),
        text_temperature: args.text_temperature.unwrap_or(default.text_temperature),
        top_k: args.top_k.unwrap_or(default.top_k),
        top_k_text: args.top_k_text.unwrap_or(default.top_k_text),
    }
}

/// User left, model right; or the model alone.
fn interleave(user: &[f32], own: Vec<f32>, stereo: bool) -> Vec<f32> {
    if !stereo {
        return own;
    }
    user.iter().zip(&own).flat_map(|(&user, &own)| [user.clamp(-1.0, 1.0), own]).collect()
}

fn summarise(
    args: &RunArgs,
    model: &Model,
    session: &Session,
    said: &str,
    times: &[Duration],
) -> Result<()> {
    let info = model.info();
    let mut sorted: Vec<f64> = times.iter().map(|t| t.as_secs_f64() * 1e3).collect();
    sorted.sort_by(f64::total_cmp);
    let [p50, p95, p99] = [0.50, 0.95, 0.99].map(|q| percentile(&sorted, q));
    let budget_ms = 1e3 / info.frame_rate_hz;
    let busy_ms: f64 = sorted.iter().sum();
    let audio_ms = sorted.len() as f64 * budget_ms;
    let factor = if audio_ms > 0.0 { busy_ms / audio_ms } else { 0.0 };
    if args.json {
        line(json!({
            "model": info.source,
            "text": said,
            "seed": session.seed(),
            "frames": sorted.len(),
            "executor": info.executor,
            "ms_per_frame": { "p50": p50, "p95": p95, "p99": p99 },
            "real_time_factor": factor,
            "output": args.output.as_ref().map(|path| path.display().to_string()),
        }))?;
        return Ok(());
    }
    line("")?;
    line(format_args!(
        "{} frames of {budget_ms:.0} ms ({}): p50 {p50:.2} ms, p95 {p95:.2} ms, p99 {p99:.2} ms \
         per frame, real-time factor {factor:.3}",
        sorted.len(),
        info.executor
    ))?;
    line(format_args!("{}, seed {}", one_line(&info.source), session.seed()))?;
    if let Some(path) = &args.output {
        line(format_args!("audio written to {}", path.display()))?;
    }
    Ok(())
}

/// Nearest-rank percentile of sorted values.
fn percentile(sorted: &[f64], q: f64) -> f64 {
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let sorted: Vec<f64> = (1..=100u8).map(f64::from).collect();
        assert_eq!(
            [0.5, 0.95, 0.99, 1.0].map(|q| percentile(&sorted, q)),
            [50.0, 95.0, 99.0, 100.0]
        );
        assert_eq!(percentile(&[], 0.5), 0.0);
    }

    #[test]
    fn stereo_has_the_user_on_the_left() {
        assert_eq!(interleave(&[0.5, 2.0], vec![0.1, 0.2], true), [0.5, 0.1, 1.0, 0.2]);
        assert_eq!(interleave(&[0.5], vec![0.1], false), [0.1]);
    }
}
