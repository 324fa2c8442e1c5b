//! `moshi-rs client` and `moshi-rs loadtest`: conversations with a server.

use std::io::{IsTerminal, stdout};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use moshi_audio::{WavWriter, read_mono};
use moshi_serve::client::{
    ChatClient, ClientEvent, ClientOptions, FrameLength, LoadOptions, block_on, converse, load_test,
};
use serde_json::json;

use crate::interrupt::{EXIT_INTERRUPTED, Watch};
use crate::output::{CliError, EXIT_FELL_SHORT, Result, line, one_line, text};
use crate::serve_options::{ClientArgs, ConnectArgs, LoadtestArgs, RecordingArgs};

/// Rate of every released model, which the audio of the protocol has.
const RATE_HZ: u32 = 24_000;
/// Samples of 80 ms.
const FRAME: usize = 1_920;
const FRAME_TIME: Duration = Duration::from_millis(80);
const FRAME_LENGTH: FrameLength = FrameLength { samples: FRAME, time: FRAME_TIME };
/// A bound on a mistyped number.
const MAX_PAD_SECONDS: f64 = 600.0;

fn options(connect: &ConnectArgs) -> Result<ClientOptions> {
    Ok(ClientOptions {
        api_key: connect.key()?,
        certificate: connect.ca_file.clone(),
        parameters: vec![("stats".into(), "1".into())],
        sample_rate_hz: RATE_HZ,
        counts_only: false,
    })
}

fn frames(path: &Path, pad: f64) -> Result<Vec<f32>> {
    let mut samples = read_mono(path, RATE_HZ)?;
    let pad = (pad * f64::from(RATE_HZ)) as usize;
    samples.resize((samples.len() + pad).next_multiple_of(FRAME), 0.0);
    Ok(samples)
}

pub(crate) fn client(args: &ClientArgs) -> Result<i32> {
    let RecordingArgs { input, output, pad, json: as_json } = &args.recording;
    let (Some(url), Some(input)) = (&args.url, input) else {
        // The Python package holds conversations through devices before it comes here.
        let reason = "the sound devices are those of the Python package: pip install \
                      \"moshi-rs[audio,client]\", then python -m moshi_rs client; or name a \
                      recording: --in FILE";
        return Err(CliError::Usage(reason.into()));
    };
    if !(0.0..=MAX_PAD_SECONDS).contains(pad) {
        let reason = format!("--pad {pad} is not between 0 and {MAX_PAD_SECONDS}");
        return Err(CliError::Usage(reason));
    }
    let samples = frames(input, *pad)?;
    let mut writer = output.as_ref().map(|path| WavWriter::create(path, RATE_HZ, 1)).transpose()?;
    let mut options = options(&args.connect)?;
    options.parameters.extend(args.seed.map(|seed| ("seed".into(), seed.to_string())));
    let watch = Watch::new();
    let live = !as_json && stdout().is_terminal();
    let report = block_on(async {
        let mut client = ChatClient::connect(url, &options).await?;
        let show = |event: &ClientEvent| {
            if let (true, ClientEvent::Text(said)) = (live, event) {
                // A terminal that is gone ends the command at its next line.
                let _ = text(said);
            }
        };
        let input = samples.chunks(FRAME).map(<[f32]>::to_vec);
        let report = converse(&mut client, input, FRAME_LENGTH, show, || watch.requested()).await?;
        client.close().await;
        Ok(report)
    })?;
    if let Some(writer) = &mut writer {
        writer.write(&report.samples)?;
    }
    if let Some(writer) = writer {
        writer.finish()?;
    }
    let latency = &report.latency;
    let [p50, p95, p99] = [0.5, 0.95, 0.99].map(|share| latency.percentile_ms(share));
    let late = latency.over(FRAME_TIME) + report.unanswered_frames;
    let seconds = report.samples.len() as f64 / f64::from(RATE_HZ);
    if *as_json {
        line(json!({
            "text": report.text,
            "seconds": seconds,
            "sent_frames": report.sent_frames,
            "latency_ms": { "p50": p50, "p95": p95, "p99": p99 },
            "late_frames": late,
            "dropped_frames": report.dropped_frames,
            "lag_ms": report.lag_ms,
            "server": report.metadata["server"],
            "model": report.metadata["lm_model_file"],
            "seed": report.metadata["seed"],
            "notices": report.notices,
            "closed": report.closed.as_ref().map(|(code, reason)| json!([code, reason])),
        }))?;
    } else {
        line(if live { String::new() } else { report.text.trim_start().to_owned() })?;
        line(format_args!(
            "{seconds:.2} s of audio; round trip p50 {p50:.1} ms, p95 {p95:.1} ms, p99 {p99:.1} ms; \
             {late} late frames, {} dropped, lag at most {} ms",
            report.dropped_frames, report.lag_ms
        ))?;
        for notice in &report.notices {
            line(format_args!("the server says: {}", one_line(notice)))?;
        }
        if let Some((code, reason)) = &report.closed {
            line(format_args!("closed by the server with code {code}: {}", one_line(reason)))?;
        }
    }
    Ok(if watch.requested() { EXIT_INTERRUPTED } else { 0 })
}

pub(crate) fn loadtest(args: &LoadtestArgs) -> Result<i32> {
    let samples = match &args.input {
        Some(path) => frames(path, 0.0)?,
        None => voice_like(),
    };
    let options = LoadOptions {
        url: args.url.clone(),
        client: options(&args.connect)?,
        sessions: args.sessions.into(),
        duration: Duration::from_secs(args.seconds.into()),
        samples,
        frame: FRAME_LENGTH,
    };
    let watch = Watch::new();
    let stop = Arc::new(AtomicBool::new(false));
    let report = std::thread::scope(|scope| {
        let test = scope.spawn(|| block_on(load_test(options, Arc::clone(&stop))));
        while !test.is_finished() {
            stop.store(watch.requested(), Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(50));
        }
        test.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    let [p50, p95, p99, most] =
        [0.5, 0.95, 0.99, 1.0].map(|share| report.latency.percentile_ms(share));
    let step = (report.steps.frames() > 0).then(|| report.steps.percentile_ms(0.5));
    // What network and waiting took of the slowest frames: more where their steps were slow, too.
    let overhead = step.map(|step| (p99 - step).max(0.0));
    let of_which = step.map_or(String::new(), |ms| format!(", of which a step takes {ms:.1} ms"));
    let slowest_refusal = report.refused.iter().max().map_or(0.0, |time| time.as_secs_f64() * 1e3);
    if args.json {
        line(json!({
            "sessions": args.sessions,
            "completed": report.completed,
            "cut": report.cut,
            "refused": report.refused.len(),
            "slowest_refusal_ms": slowest_refusal,
            "sent_frames": report.sent_frames,
            "answered_frames": report.latency.frames(),
            "latency_ms": { "p50": p50, "p95": p95, "p99": p99, "max": most },
            "step_ms": step,
            "step_p99_ms": step.map(|_| report.steps.percentile_ms(0.99)),
            "overhead_p99_ms": overhead,
            "late_frames": report.late_frames,
            "dropped_frames": report.dropped_frames,
            "lag_ms": report.lag_ms,
            "reasons": report.reasons,
        }))?;
    } else {
        line(format_args!(
            "{} of {} sessions ran to their end, {} cut, {} refused \
             (slowest refusal {slowest_refusal:.0} ms)",
            report.completed,
            args.sessions,
            report.cut,
            report.refused.len()
        ))?;
        line(format_args!(
            "{} frames: p50 {p50:.1} ms, p95 {p95:.1} ms, p99 {p99:.1} ms, max {most:.1} ms{of_which}; \
             {} late, {} dropped, lag at most {} ms",
            report.latency.frames(),
            report.late_frames,
            report.dropped_frames,
            report.lag_ms
        ))?;
        for reason in &report.reasons {
            line(format_args!("ended: {}", one_line(reason)))?;
        }
    }
    if watch.requested() {
        return Ok(EXIT_INTERRUPTED);
    }
    let in_time = report.late_frames == 0 && report.dropped_frames == 0 && report.cut == 0;
    Ok(if in_time { 0 } else { EXIT_FELL_SHORT })
}

/// Ten seconds of a buzz whose pitch and loudness move like a voice's.
fn voice_like() -> Vec<f32> {
    let rate = RATE_HZ as f32;
    let mut phase = 0.0f32;
    let sample = |i: usize| {
        let t = i as f32 / rate;
        phase = (phase + (120.0 + 30.0 * (t * 2.1).sin()) / rate).fract();
        let loudness = (0.5 + 0.5 * (t * 11.0).sin()) * if t % 4.0 < 2.5 { 0.3 } else { 0.0 };
        loudness * (phase * std::f32::consts::TAU).sin()
    };
    (0..10 * RATE_HZ as usize).map(sample).collect()
}
