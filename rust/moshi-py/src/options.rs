//! Options of the Python classes, from their spelling to the engine's types.

use moshi_core::exec::KeyStorage;
use moshi_core::lm::{Condition, Conditions, Sampling, WeightType};
use moshi_core::mimi::{MimiMode, MimiOptions, MimiParts};
use moshi_core::{Device, Error};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::{array, errors};

/// `auto`, `cpu`, `cuda`, `metal`.
pub(crate) fn device(name: &str) -> PyResult<Device> {
    let all = [Device::Auto, Device::Cpu, Device::Cuda, Device::Metal];
    all.into_iter().find(|device| device.name() == name).ok_or_else(|| {
        errors::option("device", quoted(name), r#"one of "auto", "cpu", "cuda", "metal""#)
    })
}

/// Device of the parts that this version runs on the CPU only.
pub(crate) fn cpu_only(name: &str) -> PyResult<()> {
    match device(name)? {
        Device::Auto | Device::Cpu => Ok(()),
        Device::Cuda | Device::Metal => Err(errors::to_python(&Error::Device {
            device: name.into(),
            reason: "codec and language model on their own run on the CPU in this version; use \
                     device=\"cpu\", or StreamingModel, which takes other devices"
                .into(),
        })),
    }
}

/// Storage of the language model's weights.
pub(crate) fn dtype(name: &str) -> PyResult<Option<WeightType>> {
    match name {
        "auto" => Ok(None),
        "f32" => Ok(Some(WeightType::F32)),
        "bf16" => Ok(Some(WeightType::Bf16)),
        "q8" => Ok(Some(WeightType::Q8)),
        "q4" => Ok(Some(WeightType::Q4)),
        _ => Err(errors::option(
            "dtype",
            quoted(name),
            r#"one of "auto", "f32", "bf16", "q8", "q4""#,
        )),
    }
}

/// Storage of keys and values.
pub(crate) fn kv_dtype(name: &str) -> PyResult<Option<KeyStorage>> {
    let all = [KeyStorage::F32, KeyStorage::Bf16, KeyStorage::Q8];
    match all.into_iter().find(|storage| storage.name() == name) {
        None if name != "auto" => {
            let reason = r#"one of "auto", "f32", "bf16", "q8""#;
            Err(errors::option("kv_dtype", quoted(name), reason))
        }
        storage => Ok(storage),
    }
}

/// A number of threads.
pub(crate) fn threads(value: Option<&Bound<'_, PyAny>>) -> PyResult<Option<usize>> {
    match value.map(|value| whole::<usize>("threads", value)).transpose()? {
        Some(0) => Err(errors::input("threads", "0 is not at least 1")),
        threads => Ok(threads),
    }
}

/// Storage of the codec's weights, as the argument `name`.
pub(crate) fn codec_mode(name: &'static str, value: &str) -> PyResult<MimiMode> {
    match value {
        "exact" => Ok(MimiMode::Exact),
        "fast" => Ok(MimiMode::Fast),
        _ => Err(errors::option(name, quoted(value), r#"one of "exact", "fast""#)),
    }
}

/// Codec options.
pub(crate) fn mimi(
    num_codebooks: &Bound<'_, PyAny>,
    mode: &str,
    window: &Bound<'_, PyAny>,
    parts: &str,
) -> PyResult<MimiOptions> {
    let mode = codec_mode("mode", mode)?;
    let parts = match parts {
        "both" => MimiParts::Both,
        "encoder" => MimiParts::Encoder,
        "decoder" => MimiParts::Decoder,
        _ => {
            let reason = r#"one of "both", "encoder", "decoder""#;
            return Err(errors::option("parts", quoted(parts), reason));
        }
    };
    let (window, exact) = match window.extract::<&str>() {
        Ok("moshi") => (None, false),
        Ok("exact") => (None, true),
        Ok(other) => {
            let reason = r#""moshi", "exact" or a number of positions"#;
            return Err(errors::option("window", quoted(other), reason));
        }
        Err(_) => (Some(whole("window", window)?), false),
    };
    let num_codebooks = whole("num_codebooks", num_codebooks)?;
    Ok(MimiOptions { num_codebooks, parts, window, exact, mode })
}

/// Sampling settings of a caller, each optional.
pub(crate) struct SamplingArgs<'a, 'py> {
    pub(crate) temperature: Option<f64>,
    pub(crate) text_temperature: Option<f64>,
    pub(crate) top_k: Option<&'a Bound<'py, PyAny>>,
    pub(crate) top_k_text: Option<&'a Bound<'py, PyAny>>,
}

impl SamplingArgs<'_, '_> {
    /// The defaults with what the caller gave.
    pub(crate) fn over(self, defaults: Sampling) -> PyResult<Sampling> {
        let count = |what, value: Option<&Bound<'_, PyAny>>, default| {
            value.map_or(Ok(default), |value| whole(what, value))
        };
        Ok(Sampling {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            text_temperature: self.text_temperature.unwrap_or(defaults.text_temperature),
            top_k: count("top_k", self.top_k, defaults.top_k)?,
            top_k_text: count("top_k_text", self.top_k_text, defaults.top_k_text)?,
        })
    }
}

/// Seed of a session.
pub(crate) fn seed(value: Option<&Bound<'_, PyAny>>) -> PyResult<Option<u64>> {
    value.map(|value| whole("seed", value)).transpose()
}

/// A whole number that fits `T`; negative or huge ones are bad input, not an overflow.
pub(crate) fn whole<T>(what: &str, value: &Bound<'_, PyAny>) -> PyResult<T>
where
    T: for<'a, 'py> FromPyObject<'a, 'py, Error = PyErr>,
{
    value.extract().map_err(|error: PyErr| {
        let py = value.py();
        if error.is_instance_of::<pyo3::exceptions::PyOverflowError>(py) {
            errors::input(what, format!("{value} is out of range"))
        } else {
            errors::wrong_type(what, error.value(py))
        }
    })
}

/// Values of conditions by name: a text, `None`, `[positions, width]`, or that with a mask.
pub(crate) fn conditions(values: &Bound<'_, PyDict>) -> PyResult<Conditions> {
    // A copy: converting a value runs Python code, during which others may change the dict.
    values
        .copy()?
        .iter()
        .map(|(name, value)| {
            let name: String =
                name.extract().map_err(|_| errors::wrong_type("conditions", "names are str"))?;
            Ok((name, condition(&value)?))
        })
        .collect()
}

fn condition(value: &Bound<'_, PyAny>) -> PyResult<Condition> {
    const WHAT: &str = "conditions";
    if value.is_none() {
        return Ok(Condition::Null);
    }
    if let Ok(text) = value.extract::<String>() {
        return Ok(Condition::Text(text));
    }
    if let Ok(number) = value.extract::<f64>() {
        return Ok(Condition::Number(number));
    }
    let (rows, mask) = match value.cast::<PyTuple>() {
        Ok(pair) => {
            let (rows, mask): (Bound<'_, PyAny>, Bound<'_, PyAny>) = pair
                .extract()
                .map_err(|_| errors::wrong_type(WHAT, "a tuple must be (array, mask)"))?;
            (rows, Some(array::flags(WHAT, &mask)?))
        }
        Err(_) => (value.clone(), None),
    };
    let rows = array::floats(WHAT, &rows)?;
    let [positions, _] = rows.dims(WHAT, "[positions, width]")?;
    let mask = mask.unwrap_or_else(|| vec![true; positions]);
    if mask.len() != positions {
        let reason = format!("{} flags for {positions} positions", mask.len());
        return Err(errors::input(WHAT, reason));
    }
    Ok(Condition::Sequence { values: rows.data, mask })
}

fn quoted(value: &str) -> String {
    format!("\"{value}\"")
}
