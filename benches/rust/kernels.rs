//! Kernels one by one: products of all layer shapes, attention over full rings, and the
//! convolutions of the codec.
//!
//! Weights and rings take more memory than caches hold, and every call takes the next of them, as
//! a step does. Memory is read before and after every benchmark; the table at the end has the share
//! of that rate. `BENCH_THREADS` is the number of threads, else one. Arguments are criterion's: a
//! part of a name chooses benchmarks, as in `cargo bench -p moshi-benches --bench kernels -- q8`.
#![allow(clippy::print_stdout, reason = "a benchmark reports to the terminal")]

use std::cell::RefCell;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use criterion::{Criterion, Throughput};
use moshi_benches::convolutions::{Packed, convolutions};
use moshi_benches::layers::{
    Format, Layer, Sequence, Shape, activations, depth, multiply, temporal,
};
use moshi_benches::statistics::{Spread, agree};
use moshi_core::config::{LmConfig, MimiConfig};
use moshi_core::stages::Noise;
use moshi_kernels::arena::Arena;
use moshi_kernels::isa::Isa;
use moshi_kernels::measure::{ReadTest, flops_per_second};
use moshi_kernels::packed::{Kernels, PackedRing, Quantised, RingFormat};
use moshi_kernels::pool::Pool;

const BATCHES: [usize; 3] = [1, 4, 8];
const SAMPLES: usize = 10;
/// More than the caches of processors of today.
const BYTES: usize = 512 << 20;

fn main() -> Result<()> {
    let threads = match std::env::var("BENCH_THREADS") {
        Ok(count) => count.parse().context("BENCH_THREADS is no number")?,
        Err(_) => 1,
    };
    let isa = Isa::chosen().map_err(anyhow::Error::msg)?;
    let bench = Bench {
        kernels: Kernels::new(isa).context("this processor lacks it")?,
        pool: Pool::new(threads),
        read_test: ReadTest::new(2 * BYTES)?,
        rows: RefCell::default(),
    };
    let mut criterion = Criterion::default()
        .sample_size(SAMPLES)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(500))
        .without_plots()
        .configure_from_args();
    bench.products(&mut criterion)?;
    bench.attention(&mut criterion)?;
    bench.convolutions(&mut criterion)?;
    println!("\n{} with {threads} thread(s); medians", isa.name());
    bench.print();
    criterion.final_summary();
    Ok(())
}

struct Bench {
    kernels: Kernels,
    pool: Pool,
    read_test: ReadTest,
    rows: RefCell<Vec<Row>>,
}

/// What was measured of one kernel.
struct Row {
    name: String,
    bytes: usize,
    multiplications: usize,
    seconds: f64,
    /// Rates at which memory is read before and after.
    reads: [f64; 2],
}

/// What a call reads and computes.
#[derive(Clone, Copy)]
struct Work {
    bytes: usize,
    multiplications: usize,
}

impl Bench {
    fn on(&self) -> (Kernels, &Pool) {
        (self.kernels, &self.pool)
    }

    /// Measures `call`, which takes the number of the call.
    fn measure(
        &self,
        criterion: &mut Criterion,
        (group, name): (&str, &str),
        work: Work,
        mut call: impl FnMut(usize),
    ) {
        let mut samples: Vec<f64> = Vec::new();
        let mut calls = 0;
        let read = || self.read_test.bytes_per_second(self.pool.threads(), 2);
        let mut before = None;
        let mut benchmarks = criterion.benchmark_group(group);
        benchmarks.throughput(Throughput::Bytes(work.bytes as u64));
        benchmarks.bench_function(name, |bencher| {
            before.get_or_insert_with(read);
            bencher.iter_custom(|iterations| {
                let start = Instant::now();
                for _ in 0..iterations {
                    call(calls);
                    calls += 1;
                }
                let elapsed = start.elapsed();
                samples.push(elapsed.as_secs_f64() / iterations as f64);
                elapsed
            });
        });
        benchmarks.finish();
        // Nothing, where another one was asked for.
        let Some(before) = before else { return };
        // The first ones warm up.
        let measured = &samples[samples.len().saturating_sub(SAMPLES)..];
        self.rows.borrow_mut().push(Row {
            name: format!("{group} {name}"),
            bytes: work.bytes,
            multiplications: work.multiplications,
            seconds: Spread::of(measured).median,
            reads: [before, read()],
        });
    }

    fn products(&self, criterion: &mut Criterion) -> Result<()> {
        let sets = [
            ("stt-1b", temporal("stt-1b")?),
            ("moshi-7b", temporal("moshi-7b")?),
            ("moshi-7b depth", depth("moshi-7b")?),
        ];
        for (model, layers) in sets {
            for (label, shape) in distinct(&layers) {
                for format in Format::ALL {
                    self.product(criterion, (model, &label), shape, format)?;
                }
            }
        }
        Ok(())
    }

    fn product(
        &self,
        criterion: &mut Criterion,
        (model, label): (&str, &str),
        shape: Shape,
        format: Format,
    ) -> Result<()> {
        // Packed for the first benchmark that is asked for.
        let arena = Arena::default();
        let packed = RefCell::new(None);
        for rows in BATCHES {
            let Shape { outputs, inputs } = shape;
            let x = activations(rows * inputs);
            let mut y = vec![0.0; rows * outputs];
            let mut rounded = Quantised::default();
            let mut failure = None;
            let work =
                Work { bytes: bytes_of(format, shape), multiplications: rows * outputs * inputs };
            let name = format!("{label} {outputs}x{inputs} {} rows {rows}", format.name());
            self.measure(criterion, (model, &name), work, |call| {
                let mut packed = packed.borrow_mut();
                if packed.is_none() {
                    match Sequence::of_shape(&arena, shape, format, BYTES) {
                        Ok(sequence) => *packed = Some(sequence),
                        Err(error) => failure = Some(error),
                    }
                }
                let Some(sequence) = &*packed else { return };
                let matrix = &sequence.matrices()[call % sequence.matrices().len()];
                multiply(self.on(), matrix, &x, &mut rounded, &mut y);
            });
            if let Some(error) = failure {
                return Err(error);
            }
        }
        Ok(())
    }

    fn attention(&self, criterion: &mut Criterion) -> Result<()> {
        for model in ["stt-1b", "moshi-7b"] {
            let temporal = LmConfig::known(model).context("a public model")?.temporal;
            let (heads, context) = (temporal.shape.heads, temporal.context);
            let formats =
                [(RingFormat::Q8, "q8"), (RingFormat::Bf16, "bf16"), (RingFormat::F32, "f32")];
            for (format, name) in formats {
                let work = Work {
                    bytes: PackedRing::bytes_of(heads, context, format),
                    multiplications: 2 * context * heads.query_width(),
                };
                let rings = RefCell::new(Vec::new());
                let query = activations(heads.query_width());
                let mut out = vec![0.0; heads.query_width()];
                let (mut scratch, mut failure) = (Vec::new(), None);
                let name = format!("attention over {context} positions {name}");
                self.measure(criterion, (model, &name), work, |call| {
                    let mut rings = rings.borrow_mut();
                    if rings.is_empty() {
                        let all = (0..temporal.shape.num_layers).map(|_| {
                            let mut ring = PackedRing::new(heads, context, format)?;
                            fill(&mut ring, context);
                            Ok(ring)
                        });
                        match all.collect::<std::io::Result<Vec<_>>>() {
                            Ok(all) => *rings = all,
                            Err(error) => failure = Some(error),
                        }
                    }
                    let Some(ring) = rings.get(call % rings.len().max(1)) else { return };
                    scratch.resize(ring.scratch_len(), 0.0);
                    let visible = 0..context as u64;
                    ring.attend(self.on(), &query, visible, &mut scratch, &mut out);
                });
                if let Some(error) = failure {
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    fn convolutions(&self, criterion: &mut Criterion) -> Result<()> {
        let arena = Arena::default();
        for convolution in convolutions(&MimiConfig::default()) {
            let mut packed = Packed::new(&arena, convolution, Format::F32)?;
            let convolution = packed.convolution().clone();
            let name = convolution.name.trim_end_matches(".weight");
            let work =
                Work { bytes: packed.bytes(), multiplications: convolution.multiplications() };
            let (shape, positions) = (convolution.shape, convolution.positions);
            let name = format!("{name} {}x{} at {positions}", shape.outputs, shape.inputs);
            self.measure(criterion, ("mimi", &name), work, |_| packed.run(self.on()));
        }
        Ok(())
    }

    fn print(&self) {
        let flops = flops_per_second() * self.pool.threads() as f64;
        println!(
            "{:<62} {:>8} {:>9} {:>7} {:>8} {:>8} {:>8}",
            "kernel", "MB", "ms", "GB/s", "% memory", "GFLOP/s", "% f32"
        );
        for row in &*self.rows.borrow() {
            let rate = row.bytes as f64 / row.seconds;
            let operations = 2.0 * row.multiplications as f64 / row.seconds;
            let rejected = if agree(row.reads) { "" } else { "  rejected: memory's rate changed" };
            println!(
                "{:<62} {:>8.2} {:>9.4} {:>7.2} {:>8.1} {:>8.1} {:>8.1}{rejected}",
                row.name,
                row.bytes as f64 / 1e6,
                1e3 * row.seconds,
                rate / 1e9,
                100.0 * rate / f64::midpoint(row.reads[0], row.reads[1]),
                operations / 1e9,
                100.0 * operations / flops
            );
        }
    }
}

/// Every shape once, under the name of its role.
fn distinct(layers: &[Layer]) -> Vec<(String, Shape)> {
    let mut all: Vec<(String, Shape)> = Vec::new();
    for Layer { name, shape } in layers {
        if all.iter().all(|(_, known)| known != shape) {
            let mut parts = name.trim_end_matches(".weight").split('.');
            let role = parts.rfind(|part| part.parse::<usize>().is_err());
            all.push((role.unwrap_or(name).into(), *shape));
        }
    }
    all
}

fn bytes_of(format: Format, Shape { outputs, inputs }: Shape) -> usize {
    use moshi_kernels::packed::Packing;
    let packing = match format {
        Format::Q8 => Packing::Q8,
        Format::Q4 => Packing::Q4,
        Format::Q4Affine => Packing::Q4Affine,
        Format::Q4K => Packing::Q4K,
        Format::Bf16 => Packing::Bf16,
        Format::F32 => Packing::F32,
    };
    packing.bytes_of(outputs, inputs)
}

fn fill(ring: &mut PackedRing, positions: usize) {
    let width = ring.heads().key_width();
    let mut noise = Noise::new(9);
    for position in 0..positions as u64 {
        ring.write(position, &noise.take(width), &noise.take(width));
    }
}
