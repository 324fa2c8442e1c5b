//! What this build is, the first thing asked in a bug report.

use pyo3::prelude::*;
use pyo3::types::PyDict;

/// Features that change the build.
const FEATURES: [(&str, bool); 2] =
    [("cuda", cfg!(feature = "cuda")), ("metal", cfg!(feature = "metal"))];

/// Facts about this build and the machine.
///
/// Returns:
///     A dict with ``version``, ``commit`` (None when unknown), ``target``, ``profile``,
///     ``features`` (optional parts compiled in), ``executors`` (implementations of the
///     operations), ``devices`` (values of the option ``device`` that this build knows) and
///     ``cpu_flags`` (instruction sets of this machine that matter to the kernels).
#[pyfunction]
pub(crate) fn build_info(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let features: Vec<&str> =
        FEATURES.into_iter().filter(|(_, on)| *on).map(|(name, _)| name).collect();
    let devices: Vec<&str> = std::iter::once("cpu").chain(features.iter().copied()).collect();
    let info = PyDict::new(py);
    info.set_item("version", env!("CARGO_PKG_VERSION"))?;
    info.set_item("commit", option_env!("MOSHI_RS_COMMIT"))?;
    info.set_item("target", env!("MOSHI_RS_TARGET"))?;
    info.set_item("profile", env!("MOSHI_RS_PROFILE"))?;
    info.set_item("features", features)?;
    info.set_item("executors", ["scalar", "candle"])?;
    info.set_item("devices", devices)?;
    info.set_item("cpu_flags", cpu_flags())?;
    Ok(info)
}

#[cfg(target_arch = "x86_64")]
fn cpu_flags() -> Vec<&'static str> {
    let flags = [
        ("sse4.2", std::arch::is_x86_feature_detected!("sse4.2")),
        ("avx", std::arch::is_x86_feature_detected!("avx")),
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
        ("f16c", std::arch::is_x86_feature_detected!("f16c")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
        ("avx512bw", std::arch::is_x86_feature_detected!("avx512bw")),
        ("avx512vnni", std::arch::is_x86_feature_detected!("avx512vnni")),
        ("avx512bf16", std::arch::is_x86_feature_detected!("avx512bf16")),
    ];
    flags.into_iter().filter(|(_, on)| *on).map(|(name, _)| name).collect()
}

#[cfg(target_arch = "aarch64")]
fn cpu_flags() -> Vec<&'static str> {
    let flags = [
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
        ("dotprod", std::arch::is_aarch64_feature_detected!("dotprod")),
        ("fp16", std::arch::is_aarch64_feature_detected!("fp16")),
        ("bf16", std::arch::is_aarch64_feature_detected!("bf16")),
        ("i8mm", std::arch::is_aarch64_feature_detected!("i8mm")),
    ];
    flags.into_iter().filter(|(_, on)| *on).map(|(name, _)| name).collect()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn cpu_flags() -> Vec<&'static str> {
    Vec::new()
}
