//! Devices: what a name stands for in this build and on this machine, and the executor for it.

use crate::error::Result;
use crate::exec::{Candle, Cpu, Scalar};

/// Where computation runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The best device of this build that this machine has.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The first CUDA device.
    Cuda,
    /// The default Metal device.
    Metal,
}

/// Which implementation of the operations runs on the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuExecutor {
    /// Packed weights, the processor's widest instructions, several threads: the default.
    Cpu {
        /// Threads; `None` leaves the number to the executor, see [`Cpu::new`].
        threads: Option<usize>,
    },
    /// Plain slices, the reference: the same bits on every processor.
    Scalar,
    /// Candle tensors.
    Candle,
}

impl Default for CpuExecutor {
    fn default() -> Self {
        Self::Cpu { threads: None }
    }
}

/// An executor of either kind; [`with_executor!`](crate::with_executor) takes it apart.
pub enum AnyExecutor {
    /// Plain slices.
    Scalar(Scalar),
    /// Candle tensors.
    Candle(Candle),
    /// Packed weights.
    Cpu(Cpu),
}

impl Device {
    /// Name in options and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Metal => "metal",
        }
    }

    /// Opens the device. `Auto` warns when this build has a device that does not open, and takes
    /// the CPU; any other device opens or fails.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) when the device is not in this build or not in
    /// this machine.
    pub fn open(self, cpu: CpuExecutor) -> Result<AnyExecutor> {
        let candle = match self {
            Self::Auto => built_devices().find_map(Self::open_or_warn),
            Self::Cpu => None,
            Self::Cuda => Some(Candle::cuda()?),
            Self::Metal => Some(Candle::metal()?),
        };
        Ok(match (candle, cpu) {
            (Some(candle), _) => AnyExecutor::Candle(candle),
            (None, CpuExecutor::Candle) => AnyExecutor::Candle(Candle::cpu()),
            (None, CpuExecutor::Scalar) => AnyExecutor::Scalar(Scalar),
            (None, CpuExecutor::Cpu { threads }) => AnyExecutor::Cpu(Cpu::new(threads)?),
        })
    }

    fn open_or_warn(self) -> Option<Candle> {
        let opened = if self == Self::Cuda { Candle::cuda() } else { Candle::metal() };
        opened.map_err(|error| log::warn!("{error}; device auto takes the CPU instead")).ok()
    }
}

/// Devices beside the CPU that this build can use.
fn built_devices() -> impl Iterator<Item = Device> {
    [(Device::Cuda, cfg!(feature = "cuda")), (Device::Metal, cfg!(feature = "metal"))]
        .into_iter()
        .filter_map(|(device, built)| built.then_some(device))
}

/// Opens a device and runs `$body` with `$exec` bound to its executor.
#[macro_export]
macro_rules! with_executor {
    ($device:expr, $cpu:expr, $exec:ident => $body:expr) => {
        match $device.open($cpu)? {
            $crate::device::AnyExecutor::Scalar($exec) => $body,
            $crate::device::AnyExecutor::Candle($exec) => $body,
            $crate::device::AnyExecutor::Cpu($exec) => $body,
        }
    };
}
