//! The narrow waist: the few fused operations that every model of the family is made of.
//!
//! Models are generic over [`Executor`] and written once. An executor owns the form of weights,
//! activations and caches; nothing above it knows what they look like.
//!
//! Axes: a [`Executor::Buffer`] is `[row, width]` in f32. Rows are grouped by stream: with `t`
//! positions per stream, stream `s` owns rows `s * t .. (s + 1) * t`. Time-major samples with
//! `c` channels are the same thing, which makes reshaping free.
//!
//! State (rings, tails) belongs to streams, not to the executor: operations that need it take
//! the streams as a slice and a closure that finds the piece of state in one of them, so that
//! weights are read once for all streams while each keeps its own past.

mod candle;
mod cpu;
mod host;
mod plan;
mod scalar;
mod tail;

pub use self::candle::Candle;
pub use self::cpu::Cpu;
pub use self::host::{HostMatrix, HostValues, Storage};
pub use self::plan::{AttentionPlan, Rotary, RotaryStyle};
pub use self::scalar::Scalar;
pub use moshi_kernels::isa::Isa;
pub use moshi_kernels::scalar::{BlockFormat, Heads};

use std::borrow::Cow;
use std::ops::Range;

use half::bf16;

use crate::error::{Error, Result};

/// A causal convolution on the host.
#[derive(Clone, Debug)]
pub struct HostConv {
    /// Output channels.
    pub outputs: usize,
    /// Input channels.
    pub inputs: usize,
    /// Taps.
    pub kernel: usize,
    /// Step between output positions, in input positions.
    pub stride: usize,
    /// Output channel `o` sees the input channel `o % inputs` alone.
    pub separate: bool,
    /// `[output, input, tap]` row-major; `[output, tap]` where channels are separate.
    pub weight: Vec<f32>,
    /// `[output]`.
    pub bias: Option<Vec<f32>>,
    /// In what the weights may be kept without another rounding: f32, or bf16 where they are all
    /// such numbers.
    pub storage: Storage,
}

impl HostConv {
    /// A convolution with weights `[output, input, tap]` of these sizes.
    pub fn new(
        [outputs, inputs, kernel]: [usize; 3],
        stride: usize,
        weight: Vec<f32>,
        bias: Option<Vec<f32>>,
    ) -> Self {
        let (separate, storage) = (false, Storage::F32);
        Self { outputs, inputs, kernel, stride, separate, weight, bias, storage }
    }

    /// The same with every output seeing all inputs, most of them times zero.
    fn mixed(self) -> Self {
        let Self { outputs, inputs, kernel, .. } = self;
        if !self.separate {
            return self;
        }
        let mut weight = vec![0.0; outputs * inputs * kernel];
        for (o, taps) in self.weight.chunks_exact(kernel).enumerate() {
            let to = (o * inputs + o % inputs) * kernel;
            weight[to..to + kernel].copy_from_slice(taps);
        }
        Self { separate: false, weight, ..self }
    }

    /// The convolution with weights rounded to a storage of floats.
    pub fn store(mut self, storage: Storage) -> Self {
        if storage == Storage::Bf16 {
            self.weight.iter_mut().for_each(|w| *w = bf16::from_f32(*w).to_f32());
            self.storage = storage;
        }
        self
    }

    /// Positions of the past that the convolution sees: `kernel - stride`.
    pub fn history(&self) -> usize {
        self.kernel - self.stride
    }

    /// The weights as `[output, tap, input]`: a window of time-major rows is contiguous.
    fn by_tap(&self) -> Vec<f32> {
        let Self { outputs, inputs, kernel, .. } = *self;
        let mut by_tap = vec![0.0; self.weight.len()];
        for o in 0..outputs {
            for i in 0..inputs {
                for j in 0..kernel {
                    by_tap[(o * kernel + j) * inputs + i] =
                        self.weight[(o * inputs + i) * kernel + j];
                }
            }
        }
        by_tap
    }
}

/// How executors that can choose store keys and values of past positions. Attention computes in
/// f32 whatever they are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyStorage {
    /// 32-bit floats.
    F32,
    /// bfloat16, rounded when a position is written.
    Bf16,
    /// 8 bits, rounded when a position is written: a scale for the keys and one for the values of
    /// every position and head.
    Q8,
}

impl KeyStorage {
    /// Name in options and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Q8 => "q8",
        }
    }
}

/// Weights that a part of a step reads, and how often it uses them.
#[derive(Clone, Copy, Debug)]
pub struct Reuse {
    /// Bytes of all of them.
    pub bytes: u64,
    /// Rows of activations of one stream that the average weight is multiplied with.
    pub rows_per_stream: usize,
}

/// What a linear layer applies to its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    Identity,
    /// Gaussian error linear unit by the exact error function.
    Gelu,
    /// Output is `[gate, value]`; the result `silu(gate) * value` is half as wide.
    SiluGate,
}

/// Norm applied to every row.
pub enum Norm<E: Executor> {
    /// `x * (alpha * rsqrt(mean(x^2) + eps))`.
    Rms {
        /// Per-channel scale.
        alpha: E::Vector,
        /// Added under the root.
        eps: f32,
    },
    /// `(x - mean) / sqrt(var + eps) * weight + bias`, biased variance.
    Layer {
        /// Per-channel scale.
        weight: E::Vector,
        /// Per-channel offset.
        bias: E::Vector,
        /// Added under the root.
        eps: f32,
    },
}

/// What a convolution applies to its output.
pub enum Epilogue<'a, B> {
    /// Nothing.
    None,
    /// ELU with alpha 1.
    Elu,
    /// Adds a buffer of the output's shape, then ELU.
    AddElu(&'a B),
}

/// The operations. Shapes in the method documentation are `[rows, width]`.
///
/// An implementation must give the same values for a row whatever other rows are in the buffer,
/// up to rounding; [`Scalar`] gives the same bits.
pub trait Executor: Clone + Send + Sync + 'static {
    /// Activations, `[rows, width]` f32.
    type Buffer: Send;
    /// A matrix `[out, in]` that multiplies activations.
    type Weight: Send + Sync;
    /// One f32 value per channel.
    type Vector: Send + Sync;
    /// Rows to look up: an embedding table or a codebook.
    type Table: Send + Sync;
    /// A causal convolution.
    type Conv: Send + Sync;
    /// Keys and values of past positions of one layer of one stream.
    type Ring: Send + Sync;
    /// The last input rows of a convolution of one stream.
    type Tail: Send + Sync;
    /// Positions, windows and rotations of one step, shared by all layers.
    type Plan<'a>;

    /// Name for logs: executor and device.
    fn name(&self) -> String;
    /// `cpu`, `cuda` or `metal`.
    fn device(&self) -> &'static str;
    /// Threads that take part in a step at the moment.
    fn threads(&self) -> usize;
    /// The most that may take part: where groups of streams do, see [`Executor::groups`].
    fn most_threads(&self) -> usize {
        self.threads()
    }
    /// Chooses what is chosen by measurement, such as the number of threads, given the weights
    /// that a step reads.
    fn tune(&self, _weights: &[&Self::Weight]) -> Result<()> {
        Ok(())
    }
    /// Into how many groups to divide `streams` streams that have nothing but weights in common, for
    /// [`Executor::each`]: 1 where operations on all of them at once use the device better.
    fn groups(&self, _streams: usize, _weights: Reuse) -> usize {
        1
    }
    /// Calls `work` with every item and an executor for it, at the same time where there are
    /// threads: what `work` does takes one of them. At most as many items as
    /// [`Executor::groups`] gave.
    fn each<T: Send>(&self, items: &mut [T], work: impl Fn(&Self, &mut T) + Sync) {
        for item in items {
            work(self, item);
        }
    }
    /// Bytes that [`Executor::weight`] takes for a matrix in a storage.
    fn weight_bytes(&self, storage: Storage, rows: usize, cols: usize) -> u64 {
        storage.bytes_of(rows, cols)
    }
    /// Bytes that [`Executor::table`] takes for a matrix in a storage.
    fn table_bytes(&self, storage: Storage, rows: usize, cols: usize) -> u64;
    /// Bytes that [`Executor::quantise`] reads of a codebook `[rows, cols]`, candidates aside.
    fn search_bytes(&self, rows: usize, cols: usize) -> u64 {
        Storage::F32.bytes_of(rows, cols)
    }
    /// Bytes that it keeps for that beside the table.
    fn search_copy_bytes(&self, _rows: usize, _cols: usize) -> u64 {
        0
    }
    /// How this executor stores keys and values of a model that is asked for `wanted`, or for
    /// nothing, where `usual` fits the model's weights.
    ///
    /// # Errors
    /// [`Error::Device`] when it cannot store them so.
    fn key_storage(&self, wanted: Option<KeyStorage>, _usual: KeyStorage) -> Result<KeyStorage> {
        match wanted {
            None | Some(KeyStorage::F32) => Ok(KeyStorage::F32),
            Some(other) => Err(Error::Device {
                device: self.device().into(),
                reason: format!(
                    "{} keeps keys and values in f32, not in {}: leave kv_dtype at auto, or take \
                     the executor cpu",
                    self.name(),
                    other.name()
                ),
            }),
        }
    }
    /// Bytes that [`Executor::ring`] takes.
    fn ring_bytes(&self, heads: Heads, capacity: usize, _storage: KeyStorage) -> u64 {
        Storage::F32.bytes_of(capacity, 2 * heads.key_width())
    }

    // Construction, at load time.

    /// Takes a matrix over, keeping its storage where the device can multiply it.
    fn weight(&self, matrix: HostMatrix) -> Result<Self::Weight>;
    /// As [`Executor::weight`], after [`HostMatrix::store`]; `None` when the values or the width do
    /// not fit that storage.
    fn weight_in(&self, matrix: HostMatrix, storage: Storage) -> Result<Option<Self::Weight>> {
        matrix.store(storage).map(|matrix| self.weight(matrix)).transpose()
    }
    /// Name of the form of [`Executor::packed`], which changes with it; `None` where weights are kept
    /// as they are.
    fn packed_form(&self) -> Option<&'static str> {
        None
    }
    /// A weight as bytes that [`Executor::weight_from_packed`] takes.
    fn packed<'w>(&self, _weight: &'w Self::Weight) -> Option<&'w [u8]> {
        None
    }
    /// A weight of `rows` outputs and `cols` inputs from the bytes that one of the same shape and
    /// storage had; `None` for a wrong number of bytes.
    fn weight_from_packed(
        &self,
        _storage: Storage,
        _rows: usize,
        _cols: usize,
        _bytes: &[u8],
    ) -> Result<Option<Self::Weight>> {
        Ok(None)
    }
    /// Stores per-channel values.
    fn vector(&self, values: Vec<f32>) -> Result<Self::Vector>;
    /// Takes over rows to look up; codebooks that are searched are in f32.
    fn table(&self, matrix: HostMatrix) -> Result<Self::Table>;
    /// Stores a convolution, always in f32.
    fn conv(&self, conv: HostConv) -> Result<Self::Conv>;

    // State of one stream.

    /// An empty ring of `capacity` positions, in what [`Executor::key_storage`] gave or in f32.
    fn ring(&self, heads: Heads, capacity: usize, storage: KeyStorage) -> Result<Self::Ring>;
    /// Keys and values of the absolute positions `span`: `[position, keys then values]`.
    fn export_ring(&self, ring: &Self::Ring, span: Range<u64>) -> Result<Vec<f32>>;
    /// Inverse of [`Executor::export_ring`] for positions from `start` on.
    fn import_ring(&self, ring: &mut Self::Ring, start: u64, data: &[f32]) -> Result<()>;
    /// A tail of zeros, `[rows, width]`.
    fn tail(&self, rows: usize, width: usize) -> Result<Self::Tail>;
    /// The tail's rows.
    fn export_tail(&self, tail: &Self::Tail) -> Result<Vec<f32>>;
    /// Inverse of [`Executor::export_tail`].
    fn import_tail(&self, tail: &mut Self::Tail, data: &[f32]) -> Result<()>;
    /// Sets every row of the tail to `x[row]`.
    fn fill_tail(&self, tail: &mut Self::Tail, x: &Self::Buffer, row: usize) -> Result<()>;

    // Data movement.

    /// Uploads `[rows, width]`.
    fn upload(&self, data: &[f32], width: usize) -> Result<Self::Buffer>;
    /// All values, borrowed where the buffer is in the host's memory.
    fn values<'a>(&self, x: &'a Self::Buffer) -> Result<Cow<'a, [f32]>>;
    /// All values, copied.
    fn download(&self, x: &Self::Buffer) -> Result<Vec<f32>> {
        Ok(self.values(x)?.into_owned())
    }
    /// Reinterprets `[rows, width]` as rows of another width; free.
    fn reshape(&self, x: Self::Buffer, width: usize) -> Result<Self::Buffer>;
    /// Prepares what attention needs to know about the positions of this step.
    fn plan<'a>(&self, plan: AttentionPlan<'a>) -> Result<Self::Plan<'a>>;

    // Arithmetic.

    /// `out[r] = sum_k tables[k][ids[r * tables.len() + k]]`, summed in order of `k`; an id of
    /// `None` adds nothing. Ids must be below the number of entries.
    fn embed(&self, tables: &[&Self::Table], ids: &[Option<u32>]) -> Result<Self::Buffer>;
    /// `x += y`.
    fn add(&self, x: &mut Self::Buffer, y: &Self::Buffer) -> Result<()>;
    /// Normalises every row.
    fn norm(&self, x: &Self::Buffer, norm: &Norm<Self>) -> Result<Self::Buffer>;
    /// `activation(W x)`, `[rows, out]`.
    fn linear(
        &self,
        x: &Self::Buffer,
        weight: &Self::Weight,
        activation: Activation,
    ) -> Result<Self::Buffer>;
    /// [`Executor::norm`], then [`Executor::linear`].
    fn linear_of_norm(
        &self,
        x: &Self::Buffer,
        norm: &Norm<Self>,
        weight: &Self::Weight,
        activation: Activation,
    ) -> Result<Self::Buffer> {
        self.linear(&self.norm(x, norm)?, weight, activation)
    }
    /// `residual += scale * (W x)`, `scale` per channel or 1.
    fn linear_add(
        &self,
        residual: &mut Self::Buffer,
        x: &Self::Buffer,
        weight: &Self::Weight,
        scale: Option<&Self::Vector>,
    ) -> Result<()>;
    /// Splits `qkv` (`[rows, queries then keys then values]`), rotates queries and keys as the
    /// plan says, appends keys and values to the rings and attends to the visible positions.
    /// Returns `[rows, query width]`.
    fn self_attention<S>(
        &self,
        qkv: &Self::Buffer,
        heads: Heads,
        plan: &Self::Plan<'_>,
        streams: &mut [S],
        ring: impl Fn(&mut S) -> &mut Self::Ring,
    ) -> Result<Self::Buffer>;
    /// Keys and values of a fixed sequence (`[positions, keys then values]`) as a full ring, as
    /// [`Executor::ring`].
    fn memory(&self, kv: &Self::Buffer, heads: Heads, storage: KeyStorage) -> Result<Self::Ring>;
    /// Attends from one row per stream to every position of the stream's memory. A stream
    /// without memory gets zeros.
    fn cross_attention<S>(
        &self,
        q: &Self::Buffer,
        heads: Heads,
        streams: &[S],
        memory: impl Fn(&S) -> Option<&Self::Ring>,
    ) -> Result<Self::Buffer>;
    /// Causal convolution over each stream's rows, continued from its tail, which is updated.
    /// `[rows, inputs]` to `[rows / stride, outputs]`; rows per stream must divide by the stride.
    fn convolve<S>(
        &self,
        x: &Self::Buffer,
        conv: &Self::Conv,
        epilogue: Epilogue<'_, Self::Buffer>,
        streams: &mut [S],
        tail: impl Fn(&mut S) -> &mut Self::Tail,
    ) -> Result<Self::Buffer>;
    /// ELU with alpha 1.
    fn elu(&self, x: &Self::Buffer) -> Result<Self::Buffer>;
    /// Nearest entry to every row (first on ties), whose value is subtracted from the row; its
    /// number goes to `codes`, `[rows]`.
    fn quantise(
        &self,
        residual: &mut Self::Buffer,
        codebook: &Self::Table,
        codes: &mut [u32],
    ) -> Result<()>;
}
