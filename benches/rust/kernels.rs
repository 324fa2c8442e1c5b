//! The products of a language model's layers, as a share of the rate at which memory is read.
//!
//! Weights are larger than caches and every pass reads all of them. Passes of the read test and of
//! all formats are interleaved, so that whatever else the machine does hits all of them alike; the
//! best and the median pass of each are compared with those of the read test.
#![allow(clippy::print_stdout, reason = "a benchmark reports to the terminal")]

use std::time::Instant;

use anyhow::Context;
use moshi_kernels::arena::Arena;
use moshi_kernels::isa::Isa;
use moshi_kernels::measure::ReadTest;
use moshi_kernels::packed::{FloatRows, Kernels, PackedMatrix, Quantised, Store};
use moshi_kernels::pool::{Pool, available_threads};
use moshi_kernels::scalar::{BlockFormat, MatrixRef};

const ROUNDS: usize = 9;
/// Bytes of weights of every format: more than the caches of any processor of today.
const BYTES: usize = 512 << 20;
/// Outputs and inputs of a layer: the projections of a transformer of width 2048.
const LAYER: (usize, usize) = (6144, 2048);
const BATCHES: [usize; 4] = [1, 2, 4, 8];

struct Case {
    name: &'static str,
    layers: Vec<PackedMatrix>,
}

fn main() -> anyhow::Result<()> {
    let isa = Isa::chosen().map_err(anyhow::Error::msg)?;
    let kernels = Kernels::new(isa).context("this processor lacks it")?;
    let arena = Arena::default();
    let cases = cases(&arena)?;
    let read_test = ReadTest::new(BYTES)?;
    println!(
        "kernels for {}; share of the rate at which memory is read, best (median)",
        isa.name()
    );
    for threads in [1, available_threads()] {
        let pool = Pool::new(threads);
        let mut reads = Vec::new();
        let mut times = vec![vec![Vec::new(); BATCHES.len()]; cases.len()];
        for _ in 0..ROUNDS {
            reads.push(BYTES as f64 / read_test.bytes_per_second(threads, 1));
            for (case, times) in cases.iter().zip(&mut times) {
                for (rows, times) in BATCHES.into_iter().zip(times) {
                    times.push(case.pass((kernels, &pool), rows));
                }
            }
        }
        let read = Spread::of(&mut reads);
        let rate = |seconds: f64| BYTES as f64 / seconds / 1e9;
        println!(
            "{threads} thread(s): memory {:.1} ({:.1}) GB/s",
            rate(read.best),
            rate(read.median)
        );
        for (case, times) in cases.iter().zip(&mut times) {
            let one = Spread::of(&mut times[0]);
            let scale = case.bytes() as f64 / BYTES as f64;
            println!(
                "  {:<5} {:5.1}% ({:5.1}%)",
                case.name,
                100.0 * scale * read.best / one.best,
                100.0 * scale * read.median / one.median
            );
            for (rows, times) in BATCHES.into_iter().zip(times).skip(1) {
                let many = Spread::of(times);
                println!(
                    "        {rows} rows cost {:.2} ({:.2}) times one",
                    many.best / one.best,
                    many.median / one.median
                );
            }
        }
        if available_threads() == 1 {
            break;
        }
    }
    Ok(())
}

fn cases(arena: &Arena) -> anyhow::Result<Vec<Case>> {
    let (rows, cols) = LAYER;
    let floats: Vec<f32> = (0..rows * cols).map(|i| ((i % 1021) as f32 - 510.0) / 1e4).collect();
    let half: Vec<half::bf16> = floats.iter().map(|&v| half::bf16::from_f32(v)).collect();
    let blocks = |format: BlockFormat| format.encode(&floats).context("finite scales");
    let [eight, four, affine] = [BlockFormat::Q8_0, BlockFormat::Q4_0, BlockFormat::Q4_1];
    let (q8, q4, q4a) = (blocks(eight)?, blocks(four)?, blocks(affine)?);
    let of = |name, matrix: MatrixRef<'_>| -> anyhow::Result<Case> {
        let mut layers = vec![PackedMatrix::pack(arena, rows, cols, matrix)?];
        while layers.len() * layers[0].bytes() < BYTES {
            layers.push(PackedMatrix::pack(arena, rows, cols, matrix)?);
        }
        Ok(Case { name, layers })
    };
    Ok(vec![
        of("q8", MatrixRef::Blocks(eight, &q8))?,
        of("q4", MatrixRef::Blocks(four, &q4))?,
        of("q4a", MatrixRef::Blocks(affine, &q4a))?,
        of("bf16", MatrixRef::Bf16(&half))?,
        of("f32", MatrixRef::F32(&floats))?,
    ])
}

impl Case {
    fn bytes(&self) -> usize {
        self.layers.iter().map(PackedMatrix::bytes).sum()
    }

    /// Seconds of one product with every layer.
    fn pass(&self, on: (Kernels, &Pool), rows: usize) -> f64 {
        let (outputs, inputs) = LAYER;
        let x: Vec<f32> = (0..rows * inputs).map(|i| (i % 251) as f32 / 251.0 - 0.5).collect();
        let mut y = vec![0.0; rows * outputs];
        let mut rounded = Quantised::default();
        let start = Instant::now();
        for layer in &self.layers {
            if layer.packing().rounds_activations() {
                rounded.set(&x, inputs);
                layer.multiply_rounded(on, &rounded, Store::Set(None), &mut y);
            } else {
                let rows = FloatRows::adjacent(&x, inputs);
                layer.multiply(on, rows, Store::Set(None), &mut y);
            }
        }
        start.elapsed().as_secs_f64()
    }
}

/// Best and median of some times.
struct Spread {
    best: f64,
    median: f64,
}

impl Spread {
    fn of(times: &mut [f64]) -> Self {
        times.sort_by(f64::total_cmp);
        Self { best: times[0], median: times[times.len() / 2] }
    }
}
