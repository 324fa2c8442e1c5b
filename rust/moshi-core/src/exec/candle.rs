//! The Candle executor: every operation in Candle tensors, on any Candle device.
//!
//! It serves CUDA and Metal; on the CPU it is a second opinion on the scalar executor. On the CPU,
//! where Candle has no bf16 product and rounds activations before it multiplies blocks of few
//! bits, all weights are widened to f32. Elsewhere products with bf16 weights are in bf16, and
//! blocks are multiplied by Candle's own kernels, which round activations to 8 bits.

use std::borrow::Cow;
use std::ops::Range;

use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{DType, Device, Module, Tensor};
use candle_nn::{ops, rotary_emb};
use moshi_kernels::scalar::{BlockFormat, Heads};

use super::{
    Activation, AttentionPlan, Epilogue, Executor, HostConv, HostMatrix, HostValues, KeyStorage,
    Norm, RotaryStyle, Storage,
};
use crate::error::{Error, Result, candle_reason};

/// Executor on a Candle device.
#[derive(Clone, Debug)]
pub struct Candle {
    device: Device,
}

/// A matrix that multiplies.
pub enum Weight {
    /// f32 or bf16.
    Floats(Tensor),
    /// Blocks of few bits.
    Blocks(QMatMul),
}

/// Keys and values, `[key head, slot, width]` each, written in place.
pub struct Ring {
    heads: Heads,
    capacity: usize,
    keys: Tensor,
    values: Tensor,
}

/// A convolution with weight `[output, input, tap]`.
pub struct Conv {
    inputs: usize,
    outputs: usize,
    stride: usize,
    weight: Tensor,
    bias: Option<Tensor>,
}

/// The plan with its angles on the device.
pub struct Plan<'a> {
    host: AttentionPlan<'a>,
    /// Cosines and sines, `[row, half width]`.
    angles: Option<(Tensor, Tensor)>,
}

/// Rows to look up and half their squared norms, `[1, entry]`.
pub struct Table {
    rows: Tensor,
    half_squared_norms: Tensor,
}

impl Candle {
    /// On the CPU.
    pub fn cpu() -> Self {
        Self { device: Device::Cpu }
    }

    /// On the first CUDA device.
    ///
    /// # Errors
    /// [`Error::Device`] when this build has no CUDA support or no driver or device is found.
    pub fn cuda() -> Result<Self> {
        if !candle_core::utils::cuda_is_available() {
            return Err(missing_feature("cuda"));
        }
        // Elsewhere the program does not start without the driver.
        #[cfg(all(
            feature = "cuda",
            target_os = "linux",
            any(target_arch = "x86_64", target_arch = "aarch64")
        ))]
        moshi_kernels::cuda_driver::load()
            .map_err(|reason| unavailable("cuda", reason, "NVIDIA's driver must be installed"))?;
        // A stream of its own: the default one is another in every thread, and a session may move
        // from thread to thread.
        let device = Device::new_cuda_with_stream(0)
            .map_err(|e| unavailable("cuda", &candle_reason(&e), "`nvidia-smi` must list a GPU"))?;
        Ok(Self { device })
    }

    /// On the default Metal device.
    ///
    /// # Errors
    /// [`Error::Device`] when this build has no Metal support or no device is found.
    pub fn metal() -> Result<Self> {
        if !candle_core::utils::metal_is_available() {
            return Err(missing_feature("metal"));
        }
        let unavailable =
            |reason: &str| unavailable("metal", reason, "this Mac must have a Metal GPU");
        // Candle panics where there is none.
        let device = std::panic::catch_unwind(|| Device::new_metal(0))
            .map_err(|_| unavailable("no device found"))?
            .map_err(|e| unavailable(&candle_reason(&e)))?;
        Ok(Self { device })
    }

    fn tensor(&self, data: Vec<f32>, rows: usize, cols: usize) -> Result<Tensor> {
        Ok(Tensor::from_vec(data, (rows, cols), &self.device)?)
    }

    /// The matrix as a tensor of floats: bf16 stays bf16 off the CPU.
    fn float_tensor(&self, matrix: HostMatrix) -> Result<Tensor> {
        let (rows, cols, storage) = (matrix.rows, matrix.cols, matrix.storage());
        let tensor = self.tensor(matrix.into_floats(), rows, cols)?;
        match float_storage(storage, self.device.is_cpu()) {
            Storage::Bf16 => Ok(tensor.to_dtype(DType::BF16)?),
            _ => Ok(tensor),
        }
    }

    /// Blocks as Candle's kernels take them.
    fn blocks(
        &self,
        rows: usize,
        cols: usize,
        format: BlockFormat,
        bytes: &[u8],
    ) -> Result<Weight> {
        let dtype = match format {
            BlockFormat::Q8_0 => GgmlDType::Q8_0,
            BlockFormat::Q4_0 => GgmlDType::Q4_0,
            BlockFormat::Q4_1 => GgmlDType::Q4_1,
            BlockFormat::Q4K => GgmlDType::Q4K,
        };
        let storage = QStorage::from_data(Cow::Borrowed(bytes), &self.device, dtype)?;
        Ok(Weight::Blocks(QMatMul::from_qtensor(QTensor::new(storage, (rows, cols))?)?))
    }

    fn product(x: &Tensor, weight: &Weight) -> Result<Tensor> {
        match weight {
            Weight::Floats(weight) if weight.dtype() == DType::F32 => Ok(x.matmul(&weight.t()?)?),
            Weight::Floats(weight) => {
                let product = x.to_dtype(weight.dtype())?.matmul(&weight.t()?)?;
                Ok(product.to_dtype(DType::F32)?)
            }
            Weight::Blocks(weight) => Ok(weight.forward(&x.contiguous()?)?),
        }
    }
}

/// What a matrix becomes that is kept in floats.
fn float_storage(given: Storage, on_cpu: bool) -> Storage {
    match given {
        Storage::Bf16 if !on_cpu => Storage::Bf16,
        _ => Storage::F32,
    }
}

fn missing_feature(feature: &str) -> Error {
    Error::Device {
        device: feature.into(),
        reason: format!(
            "this build has no {feature} support; build it from source with \
             `pip install . --config-settings=build-args=\"--features {feature}\"` or \
             `cargo build --release -p moshi-cli --features {feature}`, or use device \"cpu\""
        ),
    }
}

fn unavailable(device: &str, reason: &str, advice: &str) -> Error {
    Error::Device {
        device: device.into(),
        reason: format!("{reason}; {advice}, or use device \"cpu\""),
    }
}

/// `[rows, heads * width]` to `[heads, rows, width]`.
fn split_heads(x: &Tensor, heads: usize, width: usize) -> Result<Tensor> {
    let rows = x.dim(0)?;
    Ok(x.reshape((rows, heads, width))?.transpose(0, 1)?.contiguous()?)
}

/// Rotates `[heads, rows, width]` by angles `[rows, half width]`.
fn rotate(x: &Tensor, (cos, sin): &(Tensor, Tensor), style: RotaryStyle) -> Result<Tensor> {
    let x = x.unsqueeze(0)?;
    let rotated = match style {
        RotaryStyle::Interleaved => rotary_emb::rope_i(&x, cos, sin)?,
        RotaryStyle::SplitHalves => rotary_emb::rope(&x, cos, sin)?,
    };
    Ok(rotated.squeeze(0)?)
}

/// Attention of `q` (`[query heads, rows, width]`) over `keys` and `values`
/// (`[key heads, slots, width]`) with an additive mask `[rows, slots]`; gives
/// `[rows, query width]`.
fn attend(
    q: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    mask: Option<&Tensor>,
    heads: Heads,
) -> Result<Tensor> {
    let (_, rows, width) = q.dims3()?;
    let slots = keys.dim(1)?;
    let repeat = heads.query / heads.key;
    let q = (q * (1.0 / (width as f64).sqrt()))?.reshape((heads.key, repeat * rows, width))?;
    let mut scores = q.matmul(&keys.t()?.contiguous()?)?;
    if let Some(mask) = mask {
        scores = scores
            .reshape((heads.key, repeat, rows, slots))?
            .broadcast_add(mask)?
            .reshape((heads.key, repeat * rows, slots))?;
    }
    let out = ops::softmax_last_dim(&scores)?.matmul(values)?;
    let out = out.reshape((heads.query, rows, width))?.transpose(0, 1)?.contiguous()?;
    Ok(out.reshape((rows, heads.query_width()))?)
}

impl Executor for Candle {
    type Buffer = Tensor;
    type Weight = Weight;
    type Vector = Tensor;
    type Table = Table;
    type Conv = Conv;
    type Ring = Ring;
    type Tail = Tensor;
    type Plan<'a> = Plan<'a>;

    fn name(&self) -> String {
        format!("candle on {}", self.device())
    }

    fn device(&self) -> &'static str {
        match self.device {
            Device::Cpu => "cpu",
            Device::Cuda(_) => "cuda",
            Device::Metal(_) => "metal",
        }
    }

    fn threads(&self) -> usize {
        if self.device.is_cpu() { moshi_kernels::pool::available_threads() } else { 1 }
    }

    fn weight_bytes(&self, storage: Storage, rows: usize, cols: usize) -> u64 {
        let storage = if self.device.is_cpu() { Storage::F32 } else { storage };
        storage.bytes_of(rows, cols)
    }

    fn table_bytes(&self, storage: Storage, rows: usize, cols: usize) -> u64 {
        let kept = float_storage(storage, self.device.is_cpu());
        kept.bytes_of(rows, cols) + Storage::F32.bytes_of(rows, 1)
    }

    fn weight(&self, matrix: HostMatrix) -> Result<Weight> {
        match &matrix.values {
            HostValues::Blocks(format, bytes) if !self.device.is_cpu() => {
                self.blocks(matrix.rows, matrix.cols, *format, bytes)
            }
            _ => Ok(Weight::Floats(self.float_tensor(matrix)?)),
        }
    }

    fn vector(&self, values: Vec<f32>) -> Result<Tensor> {
        let len = values.len();
        Ok(Tensor::from_vec(values, len, &self.device)?)
    }

    fn table(&self, matrix: HostMatrix) -> Result<Table> {
        let rows = self.float_tensor(matrix)?;
        let squares = rows.to_dtype(DType::F32)?.sqr()?;
        let half_squared_norms = (squares.sum(1)? * 0.5)?.unsqueeze(0)?;
        Ok(Table { rows, half_squared_norms })
    }

    fn conv(&self, conv: HostConv) -> Result<Conv> {
        let HostConv { outputs, inputs, kernel, stride, weight, bias, .. } = conv.mixed();
        let weight = Tensor::from_vec(weight, (outputs, inputs, kernel), &self.device)?;
        let bias = bias.map(|bias| self.vector(bias)).transpose()?;
        Ok(Conv { inputs, outputs, stride, weight, bias })
    }

    fn ring(&self, heads: Heads, capacity: usize, _storage: KeyStorage) -> Result<Ring> {
        let zeros = || Tensor::zeros((heads.key, capacity, heads.width), DType::F32, &self.device);
        Ok(Ring { heads, capacity, keys: zeros()?, values: zeros()? })
    }

    fn export_ring(&self, ring: &Ring, span: Range<u64>) -> Result<Vec<f32>> {
        if span.is_empty() {
            return Ok(Vec::new());
        }
        let slots: Vec<u32> = span.map(|p| (p % ring.capacity as u64) as u32).collect();
        let count = slots.len();
        let slots = Tensor::from_vec(slots, count, &self.device)?;
        let pick = |data: &Tensor| -> Result<Tensor> {
            let picked = data.index_select(&slots, 1)?.transpose(0, 1)?.contiguous()?;
            Ok(picked.reshape((count, ring.heads.key_width()))?)
        };
        let both = Tensor::cat(&[pick(&ring.keys)?, pick(&ring.values)?], 1)?;
        Ok(both.flatten_all()?.to_vec1()?)
    }

    fn import_ring(&self, ring: &mut Ring, start: u64, data: &[f32]) -> Result<()> {
        let key_width = ring.heads.key_width();
        let both = self.upload(data, 2 * key_width)?;
        let keys = split_heads(&both.narrow(1, 0, key_width)?, ring.heads.key, ring.heads.width)?;
        let values =
            split_heads(&both.narrow(1, key_width, key_width)?, ring.heads.key, ring.heads.width)?;
        write(ring, start, &keys, &values)
    }

    fn tail(&self, rows: usize, width: usize) -> Result<Tensor> {
        // GPUs give no buffer of size 0, which a convolution without a past would ask for.
        let zeros = Tensor::zeros((rows.max(1), width), DType::F32, &self.device)?;
        Ok(zeros.narrow(0, 0, rows)?)
    }

    fn export_tail(&self, tail: &Tensor) -> Result<Vec<f32>> {
        self.download(tail)
    }

    fn import_tail(&self, tail: &mut Tensor, data: &[f32]) -> Result<()> {
        if !data.is_empty() {
            *tail = self.tensor(data.to_vec(), tail.dim(0)?, tail.dim(1)?)?;
        }
        Ok(())
    }

    fn fill_tail(&self, tail: &mut Tensor, x: &Tensor, row: usize) -> Result<()> {
        if tail.elem_count() > 0 {
            *tail = x.narrow(0, row, 1)?.broadcast_as(tail.shape())?.contiguous()?;
        }
        Ok(())
    }

    fn upload(&self, data: &[f32], width: usize) -> Result<Tensor> {
        self.tensor(data.to_vec(), data.len() / width, width)
    }

    fn values<'a>(&self, x: &'a Tensor) -> Result<Cow<'a, [f32]>> {
        Ok(Cow::Owned(x.flatten_all()?.to_vec1()?))
    }

    fn reshape(&self, x: Tensor, width: usize) -> Result<Tensor> {
        let rows = x.elem_count() / width;
        Ok(x.reshape((rows, width))?)
    }

    fn plan<'a>(&self, plan: AttentionPlan<'a>) -> Result<Plan<'a>> {
        let angles = match plan.rotary {
            None => None,
            Some(_) => {
                let half = plan.cos.len() / plan.visible.len();
                Some((self.upload(plan.cos, half)?, self.upload(plan.sin, half)?))
            }
        };
        Ok(Plan { host: plan, angles })
    }

    fn embed(&self, tables: &[&Table], ids: &[Option<u32>]) -> Result<Tensor> {
        let rows = ids.len() / tables.len();
        let mut sum: Option<Tensor> = None;
        for (k, table) in tables.iter().enumerate() {
            let column = || ids.iter().skip(k).step_by(tables.len());
            let indices: Vec<u32> = column().map(|id| id.unwrap_or(0)).collect();
            let indices = Tensor::from_vec(indices, rows, &self.device)?;
            let mut picked = table.rows.index_select(&indices, 0)?.to_dtype(DType::F32)?;
            if column().any(Option::is_none) {
                let present = column().map(|id| f32::from(u8::from(id.is_some()))).collect();
                picked = picked.broadcast_mul(&self.tensor(present, rows, 1)?)?;
            }
            sum = Some(match sum {
                None => picked,
                Some(sum) => (sum + picked)?,
            });
        }
        Ok(sum.expect("at least one table"))
    }

    fn add(&self, x: &mut Tensor, y: &Tensor) -> Result<()> {
        *x = (&*x + y)?;
        Ok(())
    }

    fn norm(&self, x: &Tensor, norm: &Norm<Self>) -> Result<Tensor> {
        match norm {
            Norm::Rms { alpha, eps } => {
                let mean_square = x.sqr()?.mean_keepdim(1)?;
                let scale = (mean_square + f64::from(*eps))?.sqrt()?.recip()?;
                Ok((x * alpha.broadcast_mul(&scale)?)?)
            }
            Norm::Layer { weight, bias, eps } => {
                let centred = x.broadcast_sub(&x.mean_keepdim(1)?)?;
                let variance = centred.sqr()?.mean_keepdim(1)?;
                let scale = (variance + f64::from(*eps))?.sqrt()?.recip()?;
                Ok(centred.broadcast_mul(&scale)?.broadcast_mul(weight)?.broadcast_add(bias)?)
            }
        }
    }

    fn linear(&self, x: &Tensor, weight: &Weight, activation: Activation) -> Result<Tensor> {
        let y = Self::product(x, weight)?;
        Ok(match activation {
            Activation::Identity => y,
            Activation::Gelu => y.gelu_erf()?,
            Activation::SiluGate => {
                let width = y.dim(1)? / 2;
                (y.narrow(1, 0, width)?.silu()? * y.narrow(1, width, width)?)?
            }
        })
    }

    fn linear_add(
        &self,
        residual: &mut Tensor,
        x: &Tensor,
        weight: &Weight,
        scale: Option<&Tensor>,
    ) -> Result<()> {
        let mut y = Self::product(x, weight)?;
        if let Some(scale) = scale {
            y = y.broadcast_mul(scale)?;
        }
        self.add(residual, &y)
    }

    fn self_attention<S>(
        &self,
        qkv: &Tensor,
        heads: Heads,
        plan: &Plan<'_>,
        streams: &mut [S],
        ring: impl Fn(&mut S) -> &mut Ring,
    ) -> Result<Tensor> {
        let (query_width, key_width) = (heads.query_width(), heads.key_width());
        let mut q = split_heads(&qkv.narrow(1, 0, query_width)?, heads.query, heads.width)?;
        let mut k = split_heads(&qkv.narrow(1, query_width, key_width)?, heads.key, heads.width)?;
        let v = qkv.narrow(1, query_width + key_width, key_width)?;
        let v = split_heads(&v, heads.key, heads.width)?;
        if let (Some(style), Some(angles)) = (plan.host.rotary, &plan.angles) {
            q = rotate(&q, angles, style)?;
            k = rotate(&k, angles, style)?;
        }
        let time = plan.host.time;
        let mut outputs = Vec::with_capacity(streams.len());
        for (s, stream) in streams.iter_mut().enumerate() {
            let ring = ring(stream);
            let mine = |x: &Tensor| x.narrow(1, s * time, time)?.contiguous();
            let start = plan.host.starts[s];
            write(ring, start, &mine(&k)?, &mine(&v)?)?;
            let end = start + time as u64;
            let filled = end.min(ring.capacity as u64) as usize;
            let keys = ring.keys.narrow(1, 0, filled)?.contiguous()?;
            let values = ring.values.narrow(1, 0, filled)?.contiguous()?;
            let mask = self.mask(&plan.host.visible[s * time..(s + 1) * time], end, filled)?;
            outputs.push(attend(&mine(&q)?, &keys, &values, mask.as_ref(), heads)?);
        }
        Ok(Tensor::cat(&outputs, 0)?)
    }

    fn memory(&self, kv: &Tensor, heads: Heads, storage: KeyStorage) -> Result<Ring> {
        let (rows, key_width) = (kv.dim(0)?, heads.key_width());
        let ring = self.ring(heads, rows, storage)?;
        let keys = split_heads(&kv.narrow(1, 0, key_width)?, heads.key, heads.width)?;
        let values = split_heads(&kv.narrow(1, key_width, key_width)?, heads.key, heads.width)?;
        write(&ring, 0, &keys, &values)?;
        Ok(ring)
    }

    fn cross_attention<S>(
        &self,
        q: &Tensor,
        heads: Heads,
        streams: &[S],
        memory: impl Fn(&S) -> Option<&Ring>,
    ) -> Result<Tensor> {
        let mut outputs = Vec::with_capacity(streams.len());
        for (s, stream) in streams.iter().enumerate() {
            let query = q.narrow(0, s, 1)?;
            outputs.push(match memory(stream) {
                None => query.zeros_like()?,
                Some(ring) => {
                    let query = split_heads(&query, heads.query, heads.width)?;
                    attend(&query, &ring.keys, &ring.values, None, heads)?
                }
            });
        }
        Ok(Tensor::cat(&outputs, 0)?)
    }

    fn convolve<S>(
        &self,
        x: &Tensor,
        conv: &Conv,
        epilogue: Epilogue<'_, Tensor>,
        streams: &mut [S],
        tail: impl Fn(&mut S) -> &mut Tensor,
    ) -> Result<Tensor> {
        let time = x.dim(0)? / streams.len();
        let mut padded = Vec::with_capacity(streams.len());
        for (s, stream) in streams.iter_mut().enumerate() {
            let tail = tail(stream);
            let rows = x.narrow(0, s * time, time)?;
            let history = tail.dim(0)?;
            let whole = if history == 0 { rows } else { Tensor::cat(&[&*tail, &rows], 0)? };
            *tail = whole.narrow(0, time, history)?.copy()?;
            padded.push(whole);
        }
        let padded = Tensor::stack(&padded, 0)?.transpose(1, 2)?.contiguous()?;
        debug_assert_eq!(padded.dim(1)?, conv.inputs);
        let y = padded.conv1d(&conv.weight, 0, conv.stride, 1, 1)?;
        let mut y = y.transpose(1, 2)?.contiguous()?.reshape(((), conv.outputs))?;
        if let Some(bias) = &conv.bias {
            y = y.broadcast_add(bias)?;
        }
        match epilogue {
            Epilogue::None => Ok(y),
            Epilogue::Elu => self.elu(&y),
            Epilogue::AddElu(residual) => self.elu(&(y + residual)?),
        }
    }

    fn elu(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.elu(1.0)?)
    }

    fn quantise(&self, residual: &mut Tensor, codebook: &Table, codes: &mut [u32]) -> Result<()> {
        let products = residual.matmul(&codebook.rows.t()?)?;
        let scores = (products.neg()?).broadcast_add(&codebook.half_squared_norms)?;
        let indices = scores.argmin(1)?;
        *residual = (&*residual - codebook.rows.index_select(&indices, 0)?)?;
        codes.copy_from_slice(&indices.to_vec1::<u32>()?);
        Ok(())
    }
}

impl Candle {
    /// Additive mask `[rows, slots]` over a ring whose newest position is `end - 1`; `None` when
    /// every row sees every slot.
    fn mask(&self, visible: &[Range<u64>], end: u64, slots: usize) -> Result<Option<Tensor>> {
        if visible.iter().all(|range| range.end - range.start == slots as u64) {
            return Ok(None);
        }
        let oldest = end - slots as u64;
        let mut mask = vec![f32::NEG_INFINITY; visible.len() * slots];
        for (row, range) in mask.chunks_exact_mut(slots).zip(visible) {
            for position in range.start.max(oldest)..range.end {
                row[(position % slots as u64) as usize] = 0.0;
            }
        }
        Ok(Some(self.tensor(mask, visible.len(), slots)?))
    }
}

/// Writes `[key heads, positions, width]` from position `start` on.
fn write(ring: &Ring, start: u64, keys: &Tensor, values: &Tensor) -> Result<()> {
    let count = keys.dim(1)?;
    let mut done = 0;
    while done < count {
        let slot = ((start + done as u64) % ring.capacity as u64) as usize;
        let run = (count - done).min(ring.capacity - slot);
        for (to, from) in [(&ring.keys, keys), (&ring.values, values)] {
            to.slice_set(&from.narrow(1, done, run)?.contiguous()?, 1, slot)?;
        }
        done += run;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_become_floats_where_rows_are_looked_up() {
        let blocks = Storage::Blocks(BlockFormat::Q8_0);
        for (given, on_cpu, kept) in [
            (blocks, false, Storage::F32),
            (blocks, true, Storage::F32),
            (Storage::Bf16, false, Storage::Bf16),
            (Storage::Bf16, true, Storage::F32),
        ] {
            assert_eq!(float_storage(given, on_cpu), kept);
        }
    }

    #[test]
    fn blocks_multiply_by_candles_own_kernels() {
        let (rows, cols) = (3, 256);
        let wave = |n: usize, f: f32| (0..n).map(|i| (i as f32 * f).sin()).collect::<Vec<f32>>();
        let exec = Candle::cpu();
        let x = exec.upload(&wave(2 * cols, 0.3), cols).unwrap();
        for format in [BlockFormat::Q8_0, BlockFormat::Q4_0, BlockFormat::Q4_1] {
            let matrix = HostMatrix::floats(rows, cols, wave(rows * cols, 0.7));
            let matrix = matrix.store(Storage::Blocks(format)).unwrap();
            let HostValues::Blocks(_, bytes) = &matrix.values else { unreachable!() };
            let blocks = exec.blocks(rows, cols, format, bytes).unwrap();
            let products = |weight: &Weight| {
                exec.download(&exec.linear(&x, weight, Activation::Identity).unwrap()).unwrap()
            };
            let (own, floats) =
                (products(&blocks), products(&exec.weight(matrix.clone()).unwrap()));
            for (a, b) in own.iter().zip(&floats) {
                assert!((a - b).abs() < 0.1, "{format:?}: {a} against {b}");
            }
        }
    }
}
