//! `moshi-rs compare-formats`.

use moshi_audio::MonoReader;
use moshi_core::checkpoint::Repo;
use moshi_core::exec::Executor;
use moshi_core::lm::WeightType;
use moshi_core::with_executor;
use serde_json::{Value, json};

use crate::compare::{Agreement, Comparison, Course};
use crate::hub;
use crate::options::CompareFormatsArgs;
use crate::output::{CliError, Result, line, one_line, progress};

pub(crate) fn compare_formats(args: &CompareFormatsArgs) -> Result<i32> {
    let repo = moshi_box::open_repo(args.model.as_deref(), &hub::options(args.revision.as_ref()))?;
    if repo.config.num_user_codebooks() == 0 {
        let reason = format!("{} hears nothing: there is no course to compare", repo.label());
        return Err(CliError::Usage(reason));
    }
    let pcm = recording(args, &repo)?;
    let compute = &args.compute;
    with_executor!(compute.device(), compute.cpu_executor(), exec => {
        compare(&exec, args, &repo, &pcm)
    })
}

/// Whole frames of the recording, with silence to fill the last one.
fn recording(args: &CompareFormatsArgs, repo: &Repo) -> Result<Vec<f32>> {
    let (rate, frame) = (repo.mimi_config.sample_rate_hz, repo.mimi_config.frame_samples);
    let mut reader = MonoReader::open(&args.input, rate as u32)?;
    let most = args.frames.map(|frames| frames * frame);
    let mut pcm = Vec::new();
    while reader.read(&mut pcm)? && most.is_none_or(|most| pcm.len() < most) {}
    pcm.resize(pcm.len().next_multiple_of(frame), 0.0);
    pcm.truncate(most.unwrap_or(usize::MAX));
    if pcm.is_empty() {
        return Err(CliError::Input(format!("{} has no samples", args.input.display())));
    }
    Ok(pcm)
}

fn compare<E: Executor>(
    exec: &E,
    args: &CompareFormatsArgs,
    repo: &Repo,
    pcm: &[f32],
) -> Result<i32> {
    let formats = [WeightType::Bf16, WeightType::Q8, WeightType::Q4];
    let bar = progress(Some(1 + formats.len() as u64), "formats");
    let course = Course::of(exec, repo, pcm, WeightType::F32, args.seed)?;
    bar.inc(1);
    let mut comparisons = Vec::new();
    for dtype in formats {
        comparisons.push(course.follow(exec, repo, dtype, args.kv_dtype.key_storage())?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    if args.json {
        line(json!({
            "model": repo.label(),
            "executor": exec.name(),
            "reference": WeightType::F32.name(),
            "seed": args.seed,
            "steps": course.len(),
            "formats": comparisons.iter().map(as_json).collect::<Vec<_>>(),
        }))?;
        return Ok(0);
    }
    line(format_args!(
        "{}: {} steps of {} against f32, on {}",
        one_line(&repo.label()),
        course.len(),
        args.input.display(),
        exec.name()
    ))?;
    let keys: Vec<&str> = comparisons.iter().map(|c| c.kv_dtype.name()).collect();
    line(format_args!("keys and values in {}", keys.join(", ")))?;
    line("share of steps with the same most probable token; mean and largest divergence in nats")?;
    line(format_args!(
        "{:<6} {:>8}   {:<28}{:<28}all codebooks",
        "format", "MB", "text", "first codebook"
    ))?;
    for comparison in &comparisons {
        line(format_args!(
            "{:<6} {:>8.1} {}  {}  {}",
            comparison.dtype.name(),
            comparison.weight_bytes as f64 / 1e6,
            cell(&comparison.text),
            cell(&comparison.first_codebook),
            cell(&comparison.codebooks)
        ))?;
    }
    Ok(0)
}

fn cell(agreement: &Agreement) -> String {
    if agreement.count == 0 {
        return format!("{:<26}", "     -");
    }
    format!(
        "{:6.2} % {:8.1e} {:8.1e}",
        100.0 * agreement.same_top(),
        agreement.mean_divergence(),
        agreement.largest_divergence()
    )
}

fn as_json(comparison: &Comparison) -> Value {
    let of = |agreement: &Agreement| {
        json!({
            "predictions": agreement.count,
            "same_top": agreement.same_top(),
            "mean_divergence": agreement.mean_divergence(),
            "largest_divergence": agreement.largest_divergence(),
        })
    };
    json!({
        "dtype": comparison.dtype.name(),
        "kv_dtype": comparison.kv_dtype.name(),
        "weight_bytes": comparison.weight_bytes,
        "text": of(&comparison.text),
        "first_codebook": of(&comparison.first_codebook),
        "codebooks": of(&comparison.codebooks),
    })
}
