//! The scalar executor: plain slices over the reference kernels of `moshi-kernels`.
//!
//! A row's result does not depend on other rows, on their number or on the instruction set: within
//! one build, equal inputs give equal bits. One thread.

use std::borrow::Cow;
use std::ops::Range;

use half::bf16;
use moshi_kernels::scalar::{self as kernels, EightBits, Heads, MatrixRef};

use super::tail::Tail;
use super::{
    Activation, AttentionPlan, Epilogue, Executor, HostConv, HostMatrix, HostValues, KeyStorage,
    Norm, RotaryStyle, Storage,
};
use crate::error::Result;

/// Executor on plain slices: the reference for faster ones.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scalar;

/// Activations `[rows, width]`.
pub struct Buffer {
    width: usize,
    data: Vec<f32>,
}

impl Buffer {
    fn rows(&self) -> usize {
        self.data.len() / self.width
    }

    fn row(&self, r: usize) -> &[f32] {
        &self.data[r * self.width..(r + 1) * self.width]
    }
}

/// Rows to look up, with half squared norms for the search when stored in f32.
pub struct Table {
    matrix: HostMatrix,
    half_squared_norms: Vec<f32>,
}

/// A convolution with weights `[output, tap, input]`: a window of time-major rows is contiguous.
pub struct Conv {
    inputs: usize,
    outputs: usize,
    kernel: usize,
    stride: usize,
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
}

/// Keys and values, `[key head, slot, width]` each: floats, rounded as their storage asks.
pub struct Ring {
    heads: Heads,
    capacity: usize,
    storage: KeyStorage,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Ring {
    fn write(&mut self, position: u64, keys: &[f32], values: &[f32]) {
        let slot = (position % self.capacity as u64) as usize;
        let width = self.heads.width;
        for head in 0..self.heads.key {
            let (to, from) = ((head * self.capacity + slot) * width, head * width);
            for (stored, row) in [(&mut self.keys, keys), (&mut self.values, values)] {
                let stored = &mut stored[to..to + width];
                stored.copy_from_slice(&row[from..from + width]);
                match self.storage {
                    KeyStorage::F32 => {}
                    KeyStorage::Bf16 => {
                        for value in stored {
                            *value = bf16::from_f32(*value).to_f32();
                        }
                    }
                    KeyStorage::Q8 => EightBits::round_row(stored),
                }
            }
        }
    }
}

impl Executor for Scalar {
    type Buffer = Buffer;
    type Weight = HostMatrix;
    type Vector = Vec<f32>;
    type Table = Table;
    type Conv = Conv;
    type Ring = Ring;
    type Tail = Tail;
    type Plan<'a> = AttentionPlan<'a>;

    fn name(&self) -> String {
        "scalar on cpu".into()
    }

    fn device(&self) -> &'static str {
        "cpu"
    }

    fn threads(&self) -> usize {
        1
    }

    fn weight(&self, matrix: HostMatrix) -> Result<HostMatrix> {
        Ok(matrix)
    }

    fn table_bytes(&self, storage: Storage, rows: usize, cols: usize) -> u64 {
        let norms = if storage == Storage::F32 { rows } else { 0 };
        storage.bytes_of(rows, cols) + Storage::F32.bytes_of(norms, 1)
    }

    fn vector(&self, values: Vec<f32>) -> Result<Vec<f32>> {
        Ok(values)
    }

    fn table(&self, matrix: HostMatrix) -> Result<Table> {
        let half_squared_norms = match &matrix.values {
            HostValues::F32(data) => {
                let rows = data.chunks_exact(matrix.cols);
                rows.map(|row| kernels::dot(row, row) / 2.0).collect()
            }
            _ => Vec::new(),
        };
        Ok(Table { matrix, half_squared_norms })
    }

    fn conv(&self, conv: HostConv) -> Result<Conv> {
        let conv = conv.mixed();
        let weight = conv.by_tap();
        let HostConv { outputs, inputs, kernel, stride, bias, .. } = conv;
        Ok(Conv { inputs, outputs, kernel, stride, weight, bias })
    }

    fn key_storage(&self, wanted: Option<KeyStorage>, _usual: KeyStorage) -> Result<KeyStorage> {
        Ok(wanted.unwrap_or(KeyStorage::F32))
    }

    fn ring(&self, heads: Heads, capacity: usize, storage: KeyStorage) -> Result<Ring> {
        let len = heads.key_width() * capacity;
        Ok(Ring { heads, capacity, storage, keys: vec![0.0; len], values: vec![0.0; len] })
    }

    fn export_ring(&self, ring: &Ring, span: Range<u64>) -> Result<Vec<f32>> {
        let width = ring.heads.width;
        let mut out =
            Vec::with_capacity((span.end - span.start) as usize * 2 * ring.heads.key_width());
        for position in span {
            let slot = (position % ring.capacity as u64) as usize;
            for data in [&ring.keys, &ring.values] {
                for head in 0..ring.heads.key {
                    let from = (head * ring.capacity + slot) * width;
                    out.extend_from_slice(&data[from..from + width]);
                }
            }
        }
        Ok(out)
    }

    fn import_ring(&self, ring: &mut Ring, start: u64, data: &[f32]) -> Result<()> {
        let key_width = ring.heads.key_width();
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
        Ok(Buffer { width, data: data.to_vec() })
    }

    fn values<'a>(&self, x: &'a Buffer) -> Result<Cow<'a, [f32]>> {
        Ok(Cow::Borrowed(&x.data))
    }

    fn reshape(&self, x: Buffer, width: usize) -> Result<Buffer> {
        debug_assert_eq!(x.data.len() % width, 0);
        Ok(Buffer { width, data: x.data })
    }

    fn plan<'a>(&self, plan: AttentionPlan<'a>) -> Result<AttentionPlan<'a>> {
        Ok(plan)
    }

    fn embed(&self, tables: &[&Table], ids: &[Option<u32>]) -> Result<Buffer> {
        let width = tables[0].matrix.cols;
        let mut data = vec![0.0; ids.len() / tables.len() * width];
        for (out, ids) in data.chunks_exact_mut(width).zip(ids.chunks_exact(tables.len())) {
            for (table, id) in tables.iter().zip(ids) {
                if let Some(id) = id {
                    table.matrix.add_row(*id as usize, out);
                }
            }
        }
        Ok(Buffer { width, data })
    }

    fn add(&self, x: &mut Buffer, y: &Buffer) -> Result<()> {
        kernels::add(&mut x.data, &y.data);
        Ok(())
    }

    fn norm(&self, x: &Buffer, norm: &Norm<Self>) -> Result<Buffer> {
        let mut data = vec![0.0; x.data.len()];
        match norm {
            Norm::Rms { alpha, eps } => kernels::rms_norm(&x.data, alpha, *eps, &mut data),
            Norm::Layer { weight, bias, eps } => {
                kernels::layer_norm(&x.data, weight, bias, *eps, &mut data);
            }
        }
        Ok(Buffer { width: x.width, data })
    }

    fn linear(&self, x: &Buffer, weight: &HostMatrix, activation: Activation) -> Result<Buffer> {
        let mut data = vec![0.0; x.rows() * weight.rows];
        kernels::linear(&x.data, weight.cols, weight.cols, weight.as_ref(), None, &mut data);
        match activation {
            Activation::Identity => Ok(Buffer { width: weight.rows, data }),
            Activation::Gelu => {
                kernels::gelu(&mut data);
                Ok(Buffer { width: weight.rows, data })
            }
            Activation::SiluGate => {
                let width = weight.rows / 2;
                let mut gated = vec![0.0; x.rows() * width];
                kernels::silu_gate(&data, width, &mut gated);
                Ok(Buffer { width, data: gated })
            }
        }
    }

    fn linear_add(
        &self,
        residual: &mut Buffer,
        x: &Buffer,
        weight: &HostMatrix,
        scale: Option<&Vec<f32>>,
    ) -> Result<()> {
        let y = self.linear(x, weight, Activation::Identity)?;
        match scale {
            Some(scale) => kernels::add_scaled(&mut residual.data, &y.data, scale),
            None => kernels::add(&mut residual.data, &y.data),
        }
        Ok(())
    }

    fn self_attention<S>(
        &self,
        qkv: &Buffer,
        heads: Heads,
        plan: &AttentionPlan<'_>,
        streams: &mut [S],
        ring: impl Fn(&mut S) -> &mut Ring,
    ) -> Result<Buffer> {
        let (query_width, key_width) = (heads.query_width(), heads.key_width());
        let mut out = vec![0.0; qkv.rows() * query_width];
        let mut query = vec![0.0; query_width];
        let mut key = vec![0.0; key_width];
        let mut scores = Vec::new();
        let half = heads.width / 2;
        for (s, stream) in streams.iter_mut().enumerate() {
            let ring = ring(stream);
            let rows = s * plan.time..(s + 1) * plan.time;
            let rotate = |row: usize, x: &mut [f32]| {
                if let Some(style) = plan.rotary {
                    let angles = row * half..(row + 1) * half;
                    let interleaved = style == RotaryStyle::Interleaved;
                    kernels::rotate(x, &plan.cos[angles.clone()], &plan.sin[angles], interleaved);
                }
            };
            for (position, row) in (plan.starts[s]..).zip(rows.clone()) {
                let (keys, values) = qkv.row(row)[query_width..].split_at(key_width);
                key.copy_from_slice(keys);
                rotate(row, &mut key);
                ring.write(position, &key, values);
            }
            for row in rows {
                query.copy_from_slice(&qkv.row(row)[..query_width]);
                rotate(row, &mut query);
                kernels::attend(
                    &query,
                    heads,
                    (&ring.keys, &ring.values, ring.capacity),
                    plan.visible[row].clone(),
                    &mut scores,
                    &mut out[row * query_width..(row + 1) * query_width],
                );
            }
        }
        Ok(Buffer { width: query_width, data: out })
    }

    fn memory(&self, kv: &Buffer, heads: Heads, storage: KeyStorage) -> Result<Ring> {
        let mut ring = self.ring(heads, kv.rows(), storage)?;
        self.import_ring(&mut ring, 0, &kv.data)?;
        Ok(ring)
    }

    fn cross_attention<S>(
        &self,
        q: &Buffer,
        heads: Heads,
        streams: &[S],
        memory: impl Fn(&S) -> Option<&Ring>,
    ) -> Result<Buffer> {
        let mut out = vec![0.0; q.data.len()];
        let mut scores = Vec::new();
        for ((stream, query), out) in
            streams.iter().zip(q.data.chunks_exact(q.width)).zip(out.chunks_exact_mut(q.width))
        {
            if let Some(ring) = memory(stream) {
                let all = 0..ring.capacity as u64;
                let ring = (&ring.keys[..], &ring.values[..], ring.capacity);
                kernels::attend(query, heads, ring, all, &mut scores, out);
            }
        }
        Ok(Buffer { width: q.width, data: out })
    }

    fn convolve<S>(
        &self,
        x: &Buffer,
        conv: &Conv,
        epilogue: Epilogue<'_, Buffer>,
        streams: &mut [S],
        tail: impl Fn(&mut S) -> &mut Tail,
    ) -> Result<Buffer> {
        let time = x.rows() / streams.len();
        debug_assert_eq!(time % conv.stride, 0);
        let per_stream = time / conv.stride * conv.outputs;
        let mut data = vec![0.0; per_stream * streams.len()];
        let mut padded = Vec::new();
        for ((stream, out), x) in streams
            .iter_mut()
            .zip(data.chunks_exact_mut(per_stream))
            .zip(x.data.chunks_exact(time * conv.inputs))
        {
            let tail = tail(stream);
            padded.clear();
            padded.extend_from_slice(tail.values());
            padded.extend_from_slice(x);
            tail.set(&padded[x.len()..]);
            kernels::linear(
                &padded,
                conv.stride * conv.inputs,
                conv.kernel * conv.inputs,
                MatrixRef::F32(&conv.weight),
                conv.bias.as_deref(),
                out,
            );
        }
        match epilogue {
            Epilogue::None => {}
            Epilogue::Elu => kernels::elu(&mut data),
            Epilogue::AddElu(residual) => {
                kernels::add(&mut data, &residual.data);
                kernels::elu(&mut data);
            }
        }
        Ok(Buffer { width: conv.outputs, data })
    }

    fn elu(&self, x: &Buffer) -> Result<Buffer> {
        let mut data = x.data.clone();
        kernels::elu(&mut data);
        Ok(Buffer { width: x.width, data })
    }

    fn quantise(&self, residual: &mut Buffer, codebook: &Table, codes: &mut [u32]) -> Result<()> {
        let MatrixRef::F32(entries) = codebook.matrix.as_ref() else {
            unreachable!("codebooks are stored in f32");
        };
        let width = codebook.matrix.cols;
        for (row, code) in residual.data.chunks_exact_mut(width).zip(codes) {
            let index = kernels::nearest(row, entries, &codebook.half_squared_norms);
            let entry = &entries[index * width..(index + 1) * width];
            for (value, entry) in row.iter_mut().zip(entry) {
                *value -= entry;
            }
            *code = index as u32;
        }
        Ok(())
    }
}
