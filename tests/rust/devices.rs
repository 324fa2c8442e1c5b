//! Devices that a build lacks or a machine lacks.

use moshi_core::device::AnyExecutor;
use moshi_core::exec::Executor;
use moshi_core::{CpuExecutor, Device, Error};

/// Name of the executor, or device and reason of the error.
fn open(device: Device) -> Result<String, (String, String)> {
    match device.open(CpuExecutor::default()) {
        Ok(AnyExecutor::Scalar(exec)) => Ok(exec.name()),
        Ok(AnyExecutor::Candle(exec)) => Ok(exec.name()),
        Ok(AnyExecutor::Cpu(exec)) => Ok(exec.name()),
        Err(Error::Device { device, reason }) => Err((device, reason)),
        Err(other) => panic!("{other}"),
    }
}

/// What the error about a device that is not in this build must say.
#[track_caller]
fn assert_names_the_build(device: Device, features: &str) {
    let (name, reason) = open(device).unwrap_err();
    assert_eq!(name, device.name());
    for command in ["pip install . --config-settings=build-args=", "cargo build --release"] {
        assert!(reason.contains(command) && reason.contains(features), "{reason}");
    }
}

#[test]
fn the_processor_always_opens() {
    assert!(open(Device::Cpu).unwrap().starts_with("cpu ("));
    let candle = Device::Cpu.open(CpuExecutor::Candle).unwrap();
    assert!(matches!(candle, AnyExecutor::Candle(exec) if exec.device() == "cpu"));
    let packed = Device::Cpu.open(CpuExecutor::Cpu { threads: Some(1) }).unwrap();
    assert!(matches!(packed, AnyExecutor::Cpu(exec) if exec.threads() == 1));
}

#[test]
#[cfg(not(any(feature = "cuda", target_os = "macos")))]
fn auto_is_the_processor_in_a_build_without_another_device() {
    assert_eq!(open(Device::Auto), open(Device::Cpu));
}

#[test]
#[cfg(not(feature = "cuda"))]
fn a_build_without_cuda_names_the_command_that_adds_it() {
    assert_names_the_build(Device::Cuda, "--features cuda");
}

#[test]
#[cfg(not(target_os = "macos"))]
fn a_build_without_metal_names_the_command_that_adds_it() {
    assert_names_the_build(Device::Metal, "--features metal");
}

#[test]
#[cfg(feature = "cuda")]
fn cuda_opens_where_there_is_a_driver_and_names_the_driver_elsewhere() {
    use crate::support::NO_DRIVER;

    match open(Device::Cuda) {
        Ok(name) => assert!(name.starts_with("candle on cuda"), "{name}"),
        Err((device, reason)) => {
            assert_eq!(device, "cuda");
            assert!(reason.contains("libcuda.so.1") && reason.contains(NO_DRIVER), "{reason}");
            assert_eq!(open(Device::Auto), open(Device::Cpu), "auto takes the CPU");
        }
    }
}
