//! The fast executor of the processor: packed weights, its widest instructions, several threads.
//!
//! A row's result depends neither on other rows nor on the number of threads. Weights of few bits
//! meet activations that are rounded to 8 bits in blocks of 32; bf16 and f32 weights meet f32
//! activations. Memory of activations is used again from step to step.

mod conv;
mod groups;
mod memory;
mod table;
mod tuning;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use moshi_kernels::arena::Arena;
use moshi_kernels::isa::Isa;
use moshi_kernels::packed::{
    FloatRows, Kernels, PackedMatrix, PackedRing, Packing, RingFormat, Store,
};
use moshi_kernels::pool::{Pool, available_threads};
use moshi_kernels::scalar::{self, BlockFormat, Heads};

use self::conv::Conv;
use self::memory::{Buffer, Memory};
use self::table::{Table, searched_in};
use super::tail::Tail;
use super::{
    Activation, AttentionPlan, Epilogue, Executor, HostConv, HostMatrix, KeyStorage, Norm, Reuse,
    RotaryStyle, Storage,
};
use crate::error::{Error, Result};

/// Executor over packed weights.
#[derive(Clone)]
pub struct Cpu {
    shared: Arc<Shared>,
    /// Of [`Executor::each`], every item has its own: so what a step takes does not depend on which
    /// of them meet.
    memory: Arc<Memory>,
}

struct Shared {
    kernels: Kernels,
    pool: Pool,
    /// The number of threads is to be measured.
    tunes: bool,
    arena: Arena,
    /// Of the items of [`Executor::each`].
    memories: Vec<Arc<Memory>>,
}

impl Cpu {
    /// An executor of `threads` threads, at most 16 or as many as this process may use. `None` leaves the number to it: as many as this process
    /// may use, until [`Executor::tune`] has measured how many help; then those, as long as other
    /// programs leave them the processors.
    ///
    /// # Errors
    /// [`Error::Device`] when `MOSHI_RS_ISA` names what this processor does not have.
    pub fn new(threads: Option<usize>) -> Result<Self> {
        let isa = Isa::chosen().map_err(|reason| Error::Device { device: "cpu".into(), reason })?;
        Ok(Self::with(isa, threads).unwrap_or_else(|| unreachable!("checked when it was chosen")))
    }

    /// As [`Cpu::new`] with a given instruction set; `None` when this processor lacks it.
    pub fn with(isa: Isa, threads: Option<usize>) -> Option<Self> {
        let available = available_threads();
        let pool = Pool::new(threads.map_or(available, |n| n.min(available.max(MOST_ASKED))));
        let shared = Shared {
            kernels: Kernels::new(isa)?,
            memories: (0..groups::most(pool.capacity())).map(|_| Arc::default()).collect(),
            pool,
            tunes: threads.is_none(),
            arena: Arena::default(),
        };
        Some(Self { shared: Arc::new(shared), memory: Arc::default() })
    }

    /// Instruction set in use.
    pub fn isa(&self) -> Isa {
        self.shared.kernels.isa()
    }

    /// Memory and threads to pack with.
    fn packer(&self) -> (&Arena, &Pool) {
        (&self.shared.arena, &self.shared.pool)
    }

    fn on(&self) -> (Kernels, &Pool) {
        (self.shared.kernels, &self.shared.pool)
    }

    /// A buffer of any values.
    fn buffer(&self, rows: usize, width: usize) -> Buffer {
        self.memory.buffer(rows, width)
    }

    /// `y` after an activation.
    fn activated(&self, mut y: Buffer, activation: Activation) -> Buffer {
        match activation {
            Activation::Identity => y,
            Activation::Gelu => {
                self.shared.kernels.gelu(y.values_mut());
                y
            }
            Activation::SiluGate => {
                let width = y.width() / 2;
                let mut gated = self.buffer(y.rows(), width);
                self.shared.kernels.silu_gate(y.values(), width, gated.values_mut());
                gated
            }
        }
    }

    /// `y = store(W x)`, rounding `x` where the weights have few bits.
    fn product(&self, x: &Buffer, weight: &PackedMatrix, store: Store<'_>, y: &mut [f32]) {
        self.product_of(x.values(), weight, store, y);
    }

    fn product_of(&self, x: &[f32], weight: &PackedMatrix, store: Store<'_>, y: &mut [f32]) {
        if !weight.packing().rounds_activations() {
            let rows = FloatRows::adjacent(x, weight.cols());
            return weight.multiply(self.on(), rows, store, y);
        }
        let mut rounded = self.memory.rounded();
        rounded.set(self.shared.kernels, x, weight.cols());
        weight.multiply_rounded(self.on(), &rounded, store, y);
    }
}

/// A caller may have this many threads on machines with fewer processors, where they gain nothing.
const MOST_ASKED: usize = 16;

fn no_memory(error: &std::io::Error) -> Error {
    let advice = "choose a dtype of fewer bits or a smaller model";
    Error::Device { device: "cpu".into(), reason: format!("no memory left ({error}): {advice}") }
}

fn packing(storage: Storage) -> Packing {
    match storage {
        Storage::F32 => Packing::F32,
        Storage::Bf16 => Packing::Bf16,
        Storage::Blocks(BlockFormat::Q8_0) => Packing::Q8,
        Storage::Blocks(BlockFormat::Q4_0) => Packing::Q4,
        Storage::Blocks(BlockFormat::Q4_1) => Packing::Q4Affine,
        Storage::Blocks(BlockFormat::Q4K) => Packing::Q4K,
    }
}

fn ring_format(storage: KeyStorage) -> RingFormat {
    match storage {
        KeyStorage::F32 => RingFormat::F32,
        KeyStorage::Bf16 => RingFormat::Bf16,
        KeyStorage::Q8 => RingFormat::Q8,
    }
}

impl Executor for Cpu {
    type Buffer = Buffer;
    type Weight = PackedMatrix;
    type Vector = Vec<f32>;
    type Table = Table;
    type Conv = Conv;
    type Ring = PackedRing;
    type Tail = Tail;
    type Plan<'a> = AttentionPlan<'a>;

    fn name(&self) -> String {
        format!("cpu ({}, {} threads)", self.isa().name(), self.threads())
    }

    fn device(&self) -> &'static str {
        "cpu"
    }

    fn threads(&self) -> usize {
        self.shared.pool.threads()
    }

    fn most_threads(&self) -> usize {
        self.shared.pool.capacity()
    }

    fn tune(&self, weights: &[&PackedMatrix]) -> Result<()> {
        if self.shared.tunes && self.shared.pool.capacity() > 1 {
            tuning::tune(self, weights);
        }
        Ok(())
    }

    fn groups(&self, streams: usize, weights: Reuse) -> usize {
        groups::of(streams, weights, self.most_threads())
    }

    fn each<T: Send>(&self, items: &mut [T], work: impl Fn(&Self, &mut T) + Sync) {
        if let [item] = items {
            return work(self, item);
        }
        self.shared.pool.each(items, &|number, item| {
            let memory = Arc::clone(&self.shared.memories[number]);
            work(&Self { shared: Arc::clone(&self.shared), memory }, item);
        });
    }

    fn weight_bytes(&self, storage: Storage, rows: usize, cols: usize) -> u64 {
        packing(storage).bytes_of(rows, cols) as u64
    }

    fn table_bytes(&self, storage: Storage, rows: usize, cols: usize) -> u64 {
        storage.bytes_of(rows, cols)
    }

    fn search_bytes(&self, rows: usize, cols: usize) -> u64 {
        self.weight_bytes(searched_in(cols), rows, cols)
    }

    fn search_copy_bytes(&self, rows: usize, cols: usize) -> u64 {
        self.search_bytes(rows, cols)
    }

    fn key_storage(&self, wanted: Option<KeyStorage>, usual: KeyStorage) -> Result<KeyStorage> {
        Ok(wanted.unwrap_or(usual))
    }

    fn ring_bytes(&self, heads: Heads, capacity: usize, storage: KeyStorage) -> u64 {
        PackedRing::bytes_of(heads, capacity, ring_format(storage)) as u64
    }

    fn weight(&self, matrix: HostMatrix) -> Result<PackedMatrix> {
        PackedMatrix::pack_on(self.packer(), matrix.rows, matrix.cols, matrix.as_ref())
            .map_err(|e| no_memory(&e))
    }

    fn weight_in(&self, matrix: HostMatrix, storage: Storage) -> Result<Option<PackedMatrix>> {
        let HostMatrix { rows, cols, .. } = matrix;
        match storage {
            Storage::Blocks(format)
                if storage != matrix.storage() && format.bytes_of(cols).is_some() =>
            {
                PackedMatrix::pack_rounded(self.packer(), rows, cols, matrix.as_ref(), format)
                    .map_err(|e| no_memory(&e))
            }
            _ => matrix.store(storage).map(|matrix| self.weight(matrix)).transpose(),
        }
    }

    fn packed_form(&self) -> Option<&'static str> {
        Some(PackedMatrix::FORM)
    }

    fn packed<'w>(&self, weight: &'w PackedMatrix) -> Option<&'w [u8]> {
        Some(weight.packed())
    }

    fn weight_from_packed(
        &self,
        storage: Storage,
        rows: usize,
        cols: usize,
        bytes: &[u8],
    ) -> Result<Option<PackedMatrix>> {
        PackedMatrix::from_packed(self.packer(), rows, cols, packing(storage), bytes)
            .map_err(|e| no_memory(&e))
    }

    fn vector(&self, values: Vec<f32>) -> Result<Vec<f32>> {
        Ok(values)
    }

    fn table(&self, matrix: HostMatrix) -> Result<Table> {
        Ok(Table::new(matrix))
    }

    fn conv(&self, conv: HostConv) -> Result<Conv> {
        Conv::new(conv, |matrix| self.weight(matrix))
    }

    fn ring(&self, heads: Heads, capacity: usize, storage: KeyStorage) -> Result<PackedRing> {
        PackedRing::new(heads, capacity, ring_format(storage)).map_err(|e| no_memory(&e))
    }

    fn export_ring(&self, ring: &PackedRing, span: Range<u64>) -> Result<Vec<f32>> {
        let count = (span.end - span.start) as usize;
        let mut out = Vec::with_capacity(count * 2 * ring.heads().key_width());
        span.for_each(|position| ring.read(position, &mut out));
        Ok(out)
    }

    fn import_ring(&self, ring: &mut PackedRing, start: u64, data: &[f32]) -> Result<()> {
        let key_width = ring.heads().key_width();
        for (position, row) in (start..).zip(data.chunks_exact(2 * key_width)) {
            let (keys, values) = row.split_at(key_width);
            ring.write(position, keys, values);
        }
        Ok(())
    }

    fn tail(&self, rows: usize, width: usize) -> Result<Tail> {
        Ok(Tail::new(rows, width))
    }

    fn export_tail(&self, tail: &Tail) -> Result<Vec<f32>> {
        Ok(tail.values().to_vec())
    }

    fn import_tail(&self, tail: &mut Tail, data: &[f32]) -> Result<()> {
        tail.set(data);
        Ok(())
    }

    fn fill_tail(&self, tail: &mut Tail, x: &Buffer, row: usize) -> Result<()> {
        tail.fill(x.row(row));
        Ok(())
    }

    fn upload(&self, data: &[f32], width: usize) -> Result<Buffer> {
        let mut buffer = self.buffer(data.len() / width, width);
        buffer.values_mut().copy_from_slice(data);
        Ok(buffer)
    }

    fn values<'a>(&self, x: &'a Buffer) -> Result<Cow<'a, [f32]>> {
        Ok(Cow::Borrowed(x.values()))
    }

    fn reshape(&self, mut x: Buffer, width: usize) -> Result<Buffer> {
        x.reshape(width);
        Ok(x)
    }

    fn plan<'a>(&self, plan: AttentionPlan<'a>) -> Result<AttentionPlan<'a>> {
        Ok(plan)
    }

    fn embed(&self, tables: &[&Table], ids: &[Option<u32>]) -> Result<Buffer> {
        let width = tables[0].matrix.cols;
        let mut sums = self.buffer(ids.len() / tables.len(), width);
        let rows = sums.values_mut().chunks_exact_mut(width);
        for (out, ids) in rows.zip(ids.chunks_exact(tables.len())) {
            out.fill(0.0);
            for (table, id) in tables.iter().zip(ids) {
                if let Some(id) = id {
                    table.matrix.add_row(*id as usize, out);
                }
            }
        }
        Ok(sums)
    }

    fn add(&self, x: &mut Buffer, y: &Buffer) -> Result<()> {
        scalar::add(x.values_mut(), y.values());
        Ok(())
    }

    fn norm(&self, x: &Buffer, norm: &Norm<Self>) -> Result<Buffer> {
        let mut y = self.buffer(x.rows(), x.width());
        let kernels = self.shared.kernels;
        match norm {
            Norm::Rms { alpha, eps } => {
                kernels.rms_norm(x.values(), alpha, *eps, y.values_mut());
            }
            Norm::Layer { weight, bias, eps } => {
                kernels.layer_norm(x.values(), weight, bias, *eps, y.values_mut());
            }
        }
        Ok(y)
    }

    fn linear(&self, x: &Buffer, weight: &PackedMatrix, activation: Activation) -> Result<Buffer> {
        let mut y = self.buffer(x.rows(), weight.rows());
        self.product(x, weight, Store::Set(None), y.values_mut());
        Ok(self.activated(y, activation))
    }

    fn linear_of_norm(
        &self,
        x: &Buffer,
        norm: &Norm<Self>,
        weight: &PackedMatrix,
        activation: Activation,
    ) -> Result<Buffer> {
        match norm {
            Norm::Rms { alpha, eps } if weight.packing().rounds_activations() => {
                let mut rounded = self.memory.rounded();
                rounded.set_normed(self.shared.kernels, x.values(), alpha, *eps);
                let mut y = self.buffer(x.rows(), weight.rows());
                weight.multiply_rounded(self.on(), &rounded, Store::Set(None), y.values_mut());
                Ok(self.activated(y, activation))
            }
            _ => self.linear(&self.norm(x, norm)?, weight, activation),
        }
    }

    fn linear_add(
        &self,
        residual: &mut Buffer,
        x: &Buffer,
        weight: &PackedMatrix,
        scale: Option<&Vec<f32>>,
    ) -> Result<()> {
        let store = Store::Add(scale.map(Vec::as_slice));
        self.product(x, weight, store, residual.values_mut());
        Ok(())
    }

    fn self_attention<S>(
        &self,
        qkv: &Buffer,
        heads: Heads,
        plan: &AttentionPlan<'_>,
        streams: &mut [S],
        ring: impl Fn(&mut S) -> &mut PackedRing,
    ) -> Result<Buffer> {
        let (query_width, key_width) = (heads.query_width(), heads.key_width());
        let mut out = self.buffer(qkv.rows(), query_width);
        // One position, rotated: queries, then keys.
        let mut rotated = self.buffer(1, query_width + key_width);
        let half = heads.width / 2;
        let rotate = |row: usize, x: &mut [f32]| {
            if let Some(style) = plan.rotary {
                let angles = row * half..(row + 1) * half;
                let interleaved = style == RotaryStyle::Interleaved;
                scalar::rotate(x, &plan.cos[angles.clone()], &plan.sin[angles], interleaved);
            }
        };
        for (s, stream) in streams.iter_mut().enumerate() {
            let ring = ring(stream);
            let rows = s * plan.time..(s + 1) * plan.time;
            let (query, key) = rotated.values_mut().split_at_mut(query_width);
            for (position, row) in (plan.starts[s]..).zip(rows.clone()) {
                let (keys, values) = qkv.row(row)[query_width..].split_at(key_width);
                key.copy_from_slice(keys);
                rotate(row, key);
                ring.write(position, key, values);
            }
            let mut scratch = self.buffer(1, ring.scratch_len());
            for row in rows {
                query.copy_from_slice(&qkv.row(row)[..query_width]);
                rotate(row, query);
                ring.attend(
                    self.on(),
                    query,
                    plan.visible[row].clone(),
                    scratch.values_mut(),
                    &mut out.values_mut()[row * query_width..(row + 1) * query_width],
                );
            }
        }
        Ok(out)
    }

    fn memory(&self, kv: &Buffer, heads: Heads, storage: KeyStorage) -> Result<PackedRing> {
        let mut ring = self.ring(heads, kv.rows(), storage)?;
        self.import_ring(&mut ring, 0, kv.values())?;
        Ok(ring)
    }

    fn cross_attention<S>(
        &self,
        q: &Buffer,
        _heads: Heads,
        streams: &[S],
        memory: impl Fn(&S) -> Option<&PackedRing>,
    ) -> Result<Buffer> {
        let mut out = self.buffer(q.rows(), q.width());
        for (row, stream) in streams.iter().enumerate() {
            let out = &mut out.values_mut()[row * q.width()..(row + 1) * q.width()];
            match memory(stream) {
                None => out.fill(0.0),
                Some(ring) => {
                    let mut scratch = self.buffer(1, ring.scratch_len());
                    let all = 0..ring.capacity() as u64;
                    ring.attend(self.on(), q.row(row), all, scratch.values_mut(), out);
                }
            }
        }
        Ok(out)
    }

    fn convolve<S>(
        &self,
        x: &Buffer,
        conv: &Conv,
        epilogue: Epilogue<'_, Buffer>,
        streams: &mut [S],
        tail: impl Fn(&mut S) -> &mut Tail,
    ) -> Result<Buffer> {
        Ok(self.convolution(x, conv, epilogue, streams, tail))
    }

    fn elu(&self, x: &Buffer) -> Result<Buffer> {
        let mut y = self.buffer(x.rows(), x.width());
        y.values_mut().copy_from_slice(x.values());
        self.shared.kernels.elu(&self.shared.pool, y.values_mut());
        Ok(y)
    }

    fn quantise(&self, residual: &mut Buffer, codebook: &Table, codes: &mut [u32]) -> Result<()> {
        codebook.nearest(self, residual.values(), codes)?;
        codebook.subtract(residual.values_mut(), codes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stages::Noise;

    #[test]
    fn a_product_of_a_norm_is_the_norm_and_then_the_product() {
        let exec = Cpu::new(Some(1)).unwrap();
        let (rows, outputs, inputs) = (3, 48, 64);
        let mut noise = Noise::new(3);
        let x = exec.upload(&noise.take(rows * inputs), inputs).unwrap();
        let matrix = HostMatrix::floats(outputs, inputs, noise.take(outputs * inputs));
        let ones = || vec![1.5; inputs];
        let norms = [
            Norm::<Cpu>::Rms { alpha: noise.take(inputs), eps: 1e-8 },
            Norm::Layer { weight: ones(), bias: ones(), eps: 1e-5 },
        ];
        let formats = [BlockFormat::Q8_0, BlockFormat::Q4_0, BlockFormat::Q4_1];
        let storages = formats.map(Storage::Blocks).into_iter().chain([Storage::F32]);
        for storage in storages {
            let weight = exec.weight_in(matrix.clone(), storage).unwrap().unwrap();
            for norm in &norms {
                for activation in [Activation::Identity, Activation::Gelu, Activation::SiluGate] {
                    let fused = exec.linear_of_norm(&x, norm, &weight, activation).unwrap();
                    let normed = exec.norm(&x, norm).unwrap();
                    let apart = exec.linear(&normed, &weight, activation).unwrap();
                    assert_eq!(fused.width(), apart.width());
                    assert_eq!(fused.values(), apart.values(), "{storage:?} {activation:?}");
                }
            }
        }
    }
}
