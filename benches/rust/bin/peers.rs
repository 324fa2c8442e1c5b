//! The products of a language model's step, ours and those of Candle, in turns.
//!
//! Every round reads memory, then multiplies all matrices of the temporal transformer of STT-1B in
//! every format and with 1, 4 and 8 rows; ratios are those of a round. Both sides take the number
//! of threads from `RAYON_NUM_THREADS`, else all. `make bench` compiles Candle for the processor
//! at hand; ours chooses at run time either way.
#![allow(clippy::print_stdout, reason = "a benchmark reports to the terminal")]

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{Device, Module, Tensor};
use moshi_benches::layers::{Format, Layer, Sequence, Shape, activations, temporal, weights};
use moshi_benches::statistics::{Spread, agree};
use moshi_kernels::arena::Arena;
use moshi_kernels::isa::Isa;
use moshi_kernels::measure::ReadTest;
use moshi_kernels::packed::Kernels;
use moshi_kernels::pool::Pool;
use serde_json::{Value, json};

const MODEL: &str = "stt-1b";
const BATCHES: [usize; 3] = [1, 4, 8];
/// More than the caches of any processor of today.
const READ_BYTES: usize = 1 << 30;
const READ_PASSES: usize = 3;
/// Matrices of 16- and 32-bit formats: a part of the model is as telling, and fits into memory.
const FLOAT_MATRICES: usize = 16;

fn main() -> Result<()> {
    let options = Options::of(std::env::args().skip(1))?;
    let isa = Isa::chosen().map_err(anyhow::Error::msg)?;
    let kernels = Kernels::new(isa).context("this processor lacks it")?;
    let threads = candle_core::utils::get_num_threads();
    let pool = Pool::new(threads);
    let arena = Arena::default();
    let layers = temporal(MODEL)?;
    let mut cases = Vec::new();
    for format in Format::ALL {
        let layers =
            if format.blocks().is_some() { &layers[..] } else { &layers[..FLOAT_MATRICES] };
        cases.push(Case::new(format.name(), Side::Ours(Sequence::new(&arena, layers, format)?)));
        for dtype in candles(format) {
            let name = format!("candle {}", format!("{dtype:?}").to_lowercase());
            cases.push(Case::new(&name, Side::Candle(Candle::new(layers, *dtype)?)));
        }
    }
    check_equal_products(&cases, (kernels, &pool))?;

    let test = ReadTest::new(READ_BYTES)?;
    let read = |passes| test.bytes_per_second(threads, passes);
    let mut reads = Vec::new();
    let before = read(READ_PASSES);
    for round in 0..=options.rounds {
        let rate = read(1);
        for case in &mut cases {
            case.round((kernels, &pool))?;
        }
        if round == 0 {
            // It warmed up.
            cases.iter_mut().for_each(Case::forget);
        } else {
            reads.push(rate);
        }
    }
    let run = Run { threads, isa, reads, ends: [before, read(READ_PASSES)] };
    print(&run, &cases);
    if let Some(path) = &options.json {
        let json = serde_json::to_string_pretty(&as_json(&run, &cases))?;
        std::fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// What the command line says.
struct Options {
    rounds: usize,
    json: Option<PathBuf>,
}

impl Options {
    fn of(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Self { rounds: 9, json: None };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{argument} of what?"));
            match argument.as_str() {
                "--json" => options.json = Some(value()?.into()),
                "--rounds" => options.rounds = value()?.parse().context("--rounds")?,
                _ => bail!("usage: peers [--rounds N] [--json FILE], not {argument}"),
            }
        }
        ensure!(options.rounds > 0, "--rounds: at least one");
        Ok(options)
    }
}

/// Candle's encodings to compare with a format of ours.
fn candles(format: Format) -> &'static [GgmlDType] {
    match format {
        Format::Q8 => &[GgmlDType::Q8_0],
        Format::Q4 => &[GgmlDType::Q4_0],
        Format::Q4K => &[GgmlDType::Q4K],
        // Its Q4_1 has no vector instructions; it widens bf16 to f32 as it loads.
        Format::Q4Affine | Format::Bf16 => &[],
        Format::F32 => &[GgmlDType::F32],
    }
}

/// One side of a comparison, and its times.
struct Case {
    name: String,
    side: Side,
    /// Of every batch, seconds of every round.
    seconds: [Vec<f64>; BATCHES.len()],
}

enum Side {
    Ours(Sequence),
    Candle(Candle),
}

impl Case {
    fn new(name: &str, side: Side) -> Self {
        Self { name: name.into(), side, seconds: [const { Vec::new() }; BATCHES.len()] }
    }

    fn round(&mut self, on: (Kernels, &Pool)) -> Result<()> {
        for (rows, seconds) in BATCHES.into_iter().zip(&mut self.seconds) {
            seconds.push(match &self.side {
                Side::Ours(sequence) => sequence.pass(on, rows),
                Side::Candle(candle) => candle.pass(rows)?,
            });
        }
        Ok(())
    }

    fn forget(&mut self) {
        self.seconds.iter_mut().for_each(Vec::clear);
    }

    fn bytes(&self) -> usize {
        match &self.side {
            Side::Ours(sequence) => sequence.bytes(),
            Side::Candle(candle) => candle.bytes,
        }
    }
}

/// The same matrices in Candle.
struct Candle {
    matrices: Vec<(Shape, QMatMul)>,
    bytes: usize,
}

impl Candle {
    fn new(layers: &[Layer], dtype: GgmlDType) -> Result<Self> {
        let mut stock: Vec<(Shape, Vec<u8>)> = Vec::new();
        let (mut matrices, mut bytes) = (Vec::new(), 0);
        for Layer { shape, .. } in layers {
            let Shape { outputs, inputs } = *shape;
            if stock.iter().all(|(known, _)| known != shape) {
                let floats = Tensor::from_vec(weights(*shape), (outputs, inputs), &Device::Cpu)?;
                stock.push((*shape, QTensor::quantize(&floats, dtype)?.data()?.into_owned()));
            }
            let Some((_, data)) = stock.iter().find(|(known, _)| known == shape) else { continue };
            bytes += data.len();
            let storage = QStorage::from_data(data.into(), &Device::Cpu, dtype)?;
            let matrix = QMatMul::from_qtensor(QTensor::new(storage, (outputs, inputs))?)?;
            matrices.push((*shape, matrix));
        }
        Ok(Self { matrices, bytes })
    }

    fn pass(&self, rows: usize) -> Result<f64> {
        let mut inputs: Vec<Tensor> = Vec::new();
        for (shape, _) in &self.matrices {
            if inputs.iter().all(|x| x.dim(1).ok() != Some(shape.inputs)) {
                let x = activations(rows * shape.inputs);
                inputs.push(Tensor::from_vec(x, (rows, shape.inputs), &Device::Cpu)?);
            }
        }
        let start = Instant::now();
        for (shape, matrix) in &self.matrices {
            let x = inputs.iter().find(|x| x.dim(1).ok() == Some(shape.inputs));
            let y = matrix.forward(x.context("an input of every width")?)?;
            std::hint::black_box(y);
        }
        Ok(start.elapsed().as_secs_f64())
    }
}

/// Fails unless Candle's first products equal ours up to the rounding of the format.
fn check_equal_products(cases: &[Case], on: (Kernels, &Pool)) -> Result<()> {
    let mut ours: Vec<f32> = Vec::new();
    for case in cases {
        match &case.side {
            Side::Ours(sequence) => {
                let matrix = &sequence.matrices()[0];
                ours = vec![0.0; matrix.rows()];
                let x = activations(matrix.cols());
                let mut rounded = moshi_kernels::packed::Quantised::default();
                moshi_benches::layers::multiply(on, matrix, &x, &mut rounded, &mut ours);
            }
            Side::Candle(candle) => {
                let (shape, matrix) = &candle.matrices[0];
                let x = activations(shape.inputs);
                let x = Tensor::from_vec(x, (1, shape.inputs), &Device::Cpu)?;
                let theirs: Vec<f32> = matrix.forward(&x)?.flatten_all()?.to_vec1()?;
                let square = |values: &mut dyn Iterator<Item = f32>| -> f32 {
                    values.map(|value| value * value).sum()
                };
                let error = square(&mut ours.iter().zip(&theirs).map(|(a, b)| a - b));
                let relative = (error / square(&mut theirs.iter().copied())).sqrt();
                // Two formats of 4 bits differ by their own errors.
                ensure!(relative < 0.2, "{}: products differ by {relative}", case.name);
            }
        }
    }
    Ok(())
}

/// What holds for all cases.
struct Run {
    threads: usize,
    isa: Isa,
    /// Bytes per second in every round.
    reads: Vec<f64>,
    /// Bytes per second before and after, the best of some passes.
    ends: [f64; 2],
}

impl Run {
    /// Share of the rate of memory that a case of one row reaches.
    fn share(&self, case: &Case) -> Spread {
        let rates: Vec<f64> =
            case.seconds[0].iter().map(|seconds| case.bytes() as f64 / seconds).collect();
        Spread::of_ratios(&rates, &self.reads)
    }
}

/// Candle's cases with ours of the format before them.
fn pairs(cases: &[Case]) -> impl Iterator<Item = (&Case, &Case)> {
    let mut ours = None;
    cases.iter().filter_map(move |case| match case.side {
        Side::Ours(_) => {
            ours = Some(case);
            None
        }
        Side::Candle(_) => Some((ours?, case)),
    })
}

fn print(run: &Run, cases: &[Case]) {
    let [before, after] = run.ends.map(|rate| rate / 1e9);
    println!(
        "products of {MODEL}, {} thread(s), {}, {} rounds; medians (least, most)",
        run.threads,
        run.isa.name(),
        run.reads.len()
    );
    println!("memory is read at {before:.1} GB/s before and {after:.1} GB/s after");
    if !agree(run.ends) {
        println!("REJECTED: the rates differ by more than a tenth; measure again");
    }
    println!("\nweights          MB      GB/s   of memory's rate       4 rows, 8 rows against 1");
    for case in cases {
        let megabytes = case.bytes() as f64 / 1e6;
        let one = Spread::of(&case.seconds[0]).median;
        let share = run.share(case).times(100.0);
        let many = |i: usize| Spread::of_ratios(&case.seconds[i], &case.seconds[0]).median;
        println!(
            "{:<12} {megabytes:>7.0} {:>9.2} {:>7.1}% ({:.1}, {:.1}) {:>12.2} {:>7.2}",
            case.name,
            megabytes / 1e3 / one,
            share.median,
            share.least,
            share.most,
            many(1),
            many(2)
        );
    }
    println!("\nhow many times as long Candle takes, with 1, 4 and 8 rows");
    for (ours, candle) in pairs(cases) {
        let ratio = |i: usize| {
            let Spread { median, least, most } =
                Spread::of_ratios(&candle.seconds[i], &ours.seconds[i]);
            format!("{median:6.2} ({least:.2}, {most:.2})")
        };
        println!(
            "{:<12} against {:<9} {} {} {}",
            candle.name,
            ours.name,
            ratio(0),
            ratio(1),
            ratio(2)
        );
    }
}

fn as_json(run: &Run, cases: &[Case]) -> Value {
    let case = |case: &Case| {
        let batches = BATCHES.iter().zip(&case.seconds).map(|(rows, seconds)| {
            json!({
                "rows": rows,
                "ms": Spread::of(seconds).times(1e3).json(),
                "against_one_row": Spread::of_ratios(seconds, &case.seconds[0]).json(),
            })
        });
        json!({
            "name": case.name,
            "bytes": case.bytes(),
            "share_of_read_rate": run.share(case).json(),
            "batches": batches.collect::<Vec<_>>(),
        })
    };
    let ratio = |(ours, candle): (&Case, &Case)| {
        let times =
            (0..BATCHES.len()).map(|i| Spread::of_ratios(&candle.seconds[i], &ours.seconds[i]));
        json!({
            "ours": ours.name,
            "peer": candle.name,
            "rows": BATCHES,
            "times_as_long": times.map(Spread::json).collect::<Vec<_>>(),
        })
    };
    json!({
        "model": MODEL,
        "threads": run.threads,
        "instructions": run.isa.name(),
        "rounds": run.reads.len(),
        "read_bytes_per_second": {
            "before": run.ends[0],
            "after": run.ends[1],
            "agree": agree(run.ends),
            "rounds": Spread::of(&run.reads).json(),
        },
        "cases": cases.iter().map(case).collect::<Vec<_>>(),
        "ratios": pairs(cases).map(ratio).collect::<Vec<_>>(),
    })
}
