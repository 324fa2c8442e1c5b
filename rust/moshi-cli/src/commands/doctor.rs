//! `moshi-rs doctor`: what this machine can do, and which models run on it in real time.
//!
//! A step reads every weight once, so memory sets a bound that no program can beat; the codec's
//! convolutions compute more than they read. The prediction is the sum of both bounds, divided by
//! the share of them that kernels reach.

use moshi_core::checkpoint::layout;
use moshi_core::config::{LmConfig, MimiConfig};
use moshi_core::exec::{Cpu, Executor, KeyStorage, Storage};
use moshi_core::lm::{LmTraffic, WeightType};
use moshi_core::mimi::{MimiMode, MimiTraffic};
use moshi_core::stages::Traffic;
use moshi_kernels::isa::Isa;
use moshi_kernels::measure::flops_per_second;
use serde_json::{Value, json};

use super::bench::{Machine, read_rate};
use crate::options::DoctorArgs;
use crate::output::{Result, line};

/// Share of the bounds that kernels reach.
const REACHED: f64 = 0.85;
/// Real time with room for what else a machine does.
const COMFORTABLE: f64 = 0.7;

pub(crate) fn doctor(args: &DoctorArgs) -> Result<i32> {
    let machine = Machine::new();
    // Sizes are the same on every set of instructions; a wrong choice is told below.
    let exec = Cpu::with(Isa::Scalar, Some(1))
        .unwrap_or_else(|| unreachable!("every machine has the scalar kernels"));
    let mut counts = vec![1];
    if machine.threads > 1 {
        counts.push(machine.threads);
    }
    let rates = counts
        .into_iter()
        .map(|threads| Ok((threads, read_rate(threads)?)))
        .collect::<Result<Vec<_>>>()?;
    let flops = flops_per_second();
    let predictions = predictions(&exec, &rates, flops, args.kv_dtype.key_storage())?;
    if args.json {
        return print_json(&machine, &rates, flops, &predictions);
    }
    line(format_args!("processors: {}", machine.threads))?;
    let chosen = machine.chosen.as_ref().map_or_else(Clone::clone, |isa| isa.name().into());
    line(format_args!("instructions: {chosen} (has {})", machine.available.join(", ")))?;
    let pages = machine.huge_pages.as_deref().unwrap_or("unknown");
    line(format_args!("large pages: {pages}"))?;
    for (threads, rate) in &rates {
        line(format_args!("memory, {threads} thread(s): {:.1} GB/s", rate / 1e9))?;
    }
    line(format_args!("multiplications, 1 thread: {:.0} GFLOP/s", flops / 1e9))?;
    line("predicted milliseconds per frame of 80 ms, codec included:")?;
    if let Some(keys) = args.kv_dtype.key_storage() {
        line(format_args!("  (keys and values in {})", keys.name()))?;
    }
    if machine.chosen != Ok(Isa::Avx512Vnni) {
        line("  (bounds of the memory: the kernels of these instructions are slower than it)")?;
    }
    for prediction in &predictions {
        let Prediction { model, dtype, frame_ms, by_threads, .. } = prediction;
        let times: Vec<String> = by_threads
            .iter()
            .map(|(threads, ms)| format!("{ms:7.1} with {threads} thread(s)"))
            .collect();
        let verdict = prediction.verdict();
        line(format_args!("  {model:<15} {dtype:<5}{}   {verdict}", times.join(", ")))?;
        debug_assert!(*frame_ms > 0.0);
    }
    Ok(0)
}

/// How long a step of a model would take.
struct Prediction {
    model: &'static str,
    dtype: &'static str,
    kv_dtype: &'static str,
    frame_ms: f64,
    bytes: u64,
    /// Threads and milliseconds.
    by_threads: Vec<(usize, f64)>,
}

impl Prediction {
    fn fastest(&self) -> f64 {
        self.by_threads.iter().map(|(_, ms)| *ms).fold(f64::INFINITY, f64::min)
    }

    fn verdict(&self) -> &'static str {
        match self.fastest() / self.frame_ms {
            share if share <= COMFORTABLE => "real time",
            share if share <= 1.0 => "tight",
            _ => "too slow",
        }
    }
}

fn predictions(
    exec: &Cpu,
    rates: &[(usize, f64)],
    flops: f64,
    keys: Option<KeyStorage>,
) -> Result<Vec<Prediction>> {
    let mimi = MimiConfig::default();
    let types = [WeightType::Bf16, WeightType::Q8, WeightType::Q4];
    let models = LmConfig::KNOWN.into_iter().filter_map(|m| Some((m, LmConfig::known(m)?)));
    models
        .flat_map(|(model, config)| types.map(|dtype| (model, config.clone(), dtype)))
        .map(|(model, config, dtype)| {
            let widths = layout::first_gated_widths(&config);
            let keys = exec.key_storage(keys, dtype.keys())?;
            let lm = LmTraffic::of(exec, &config, widths, Storage::Bf16, Some(dtype), keys);
            let codec = MimiTraffic::of(exec, &mimi, config.codec_codebooks(), MimiMode::Exact);
            let mut all = Traffic::default();
            let (hears, speaks) = (config.num_user_codebooks() > 0, config.num_generated > 0);
            let mut codec_operations = 0.0;
            for (part, used) in [(codec.encode, hears), (codec.decode, speaks)] {
                if used {
                    all += part;
                    codec_operations += 2.0 * part.multiplications as f64;
                }
            }
            all += lm.temporal;
            all += lm.depth;
            let milliseconds = |&(threads, rate): &(usize, f64)| {
                let read = all.bytes(1) as f64 / rate;
                let computed = codec_operations / (flops * threads as f64);
                (threads, 1e3 * (read + computed) / REACHED)
            };
            Ok(Prediction {
                model,
                dtype: dtype.name(),
                kv_dtype: keys.name(),
                frame_ms: 1e3 / mimi.frame_rate_hz(),
                bytes: all.bytes(1),
                by_threads: rates.iter().map(milliseconds).collect(),
            })
        })
        .collect()
}

fn print_json(
    machine: &Machine,
    rates: &[(usize, f64)],
    flops: f64,
    predictions: &[Prediction],
) -> Result<i32> {
    let rates: Vec<Value> = rates
        .iter()
        .map(|(threads, rate)| json!({ "threads": threads, "bytes_per_second": rate }))
        .collect();
    let predictions: Vec<Value> = predictions
        .iter()
        .map(|prediction| {
            let times: Vec<Value> = prediction
                .by_threads
                .iter()
                .map(|(threads, ms)| json!({ "threads": threads, "ms": ms }))
                .collect();
            json!({
                "model": prediction.model,
                "dtype": prediction.dtype,
                "kv_dtype": prediction.kv_dtype,
                "bytes": prediction.bytes,
                "frame_ms": prediction.frame_ms,
                "predicted": times,
                "real_time": prediction.fastest() <= prediction.frame_ms,
            })
        })
        .collect();
    line(json!({
        "processors": machine.threads,
        "instructions": machine.available,
        "instructions_used": machine.chosen.as_ref().ok().map(|isa| isa.name()),
        "large_pages": machine.huge_pages,
        "read": rates,
        "flops_per_second": flops,
        "models": predictions,
    }))?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(model: &str, dtype: &str, rate: f64) -> Prediction {
        with_keys(model, dtype, rate, None)
    }

    fn with_keys(model: &str, dtype: &str, rate: f64, keys: Option<KeyStorage>) -> Prediction {
        let exec = Cpu::new(Some(1)).unwrap();
        let all = predictions(&exec, &[(1, rate)], 1e11, keys).unwrap();
        all.into_iter().find(|p| p.model == model && p.dtype == dtype).unwrap()
    }

    #[test]
    fn more_memory_rate_and_fewer_bits_are_faster() {
        let q8 = of("stt-1b", "q8", 32e9);
        assert!((30.0..70.0).contains(&q8.fastest()), "{}", q8.fastest());
        assert_eq!(q8.verdict(), "real time");
        assert_eq!(of("moshi-7b", "q4", 25e9).verdict(), "too slow");
        assert_eq!(of("moshi-7b", "q4", 400e9).verdict(), "real time");
        assert!(of("stt-1b", "q4", 32e9).fastest() < q8.fastest());
        assert!(of("stt-1b", "bf16", 32e9).fastest() > q8.fastest());
        let keys = |keys| with_keys("moshi-7b", "q4", 32e9, Some(keys)).bytes;
        let [f32, bf16, q8] = [KeyStorage::F32, KeyStorage::Bf16, KeyStorage::Q8].map(keys);
        assert_eq!(bf16, of("moshi-7b", "q4", 32e9).bytes);
        // 32 layers, 3008 slots, keys and values of 32 heads of 128 channels; a scale is two bytes.
        let rows = 32 * 3008 * 2 * 32;
        assert_eq!((f32 - bf16, bf16 - q8), (rows * 2 * 128, rows * (128 - 2)));
    }
}
