//! Config of the codec: the JSON named by `mimi_config_name`, or the values of the public Mimi.

use super::fields::{MAX_CONTEXT, MAX_COUNT};
use super::{Fields, parse_json};
use crate::error::Result;
use crate::exec::Heads;

/// The convolutional part (SEANet), the same numbers for encoder and decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct SeanetConfig {
    /// Channels of the latent.
    pub dimension: usize,
    /// Channels after the first convolution; doubled at every stage.
    pub num_filters: usize,
    /// Strides in the decoder's order; the encoder runs them backwards.
    pub ratios: Vec<usize>,
    /// Taps of the outermost convolution.
    pub kernel_size: usize,
    /// Taps of the convolution next to the latent.
    pub last_kernel_size: usize,
    /// Taps of the residual blocks.
    pub residual_kernel_size: usize,
    /// Division of channels inside residual blocks.
    pub compress: usize,
}

/// Everything about a codec that its weights do not say.
#[derive(Clone, Debug, PartialEq)]
pub struct MimiConfig {
    /// Samples per second.
    pub sample_rate_hz: usize,
    /// Samples per code frame.
    pub frame_samples: usize,
    /// Transformer positions per code frame: the stride of the learnt resampling.
    pub positions_per_frame: usize,
    /// Convolutional part.
    pub seanet: SeanetConfig,
    /// Heads of both transformers.
    pub heads: Heads,
    /// Layers of each transformer.
    pub num_layers: usize,
    /// Feed-forward width.
    pub dim_feedforward: usize,
    /// Attention window in positions.
    pub context: usize,
    /// Base of the rotary frequencies.
    pub max_period: f64,
    /// Codebooks stored.
    pub total_codebooks: usize,
    /// Entries of a codebook.
    pub codebook_size: usize,
    /// Width of an entry.
    pub codebook_dim: usize,
}

impl Default for MimiConfig {
    /// The public Mimi: 24 kHz, 12.5 Hz, 32 codebooks of 2048 entries.
    fn default() -> Self {
        Self::from_json("built-in mimi", "{}").expect("the built-in config is valid")
    }
}

impl MimiConfig {
    /// Parses a codec config, Kyutai's or the one of Hugging Face's `transformers`; `file` is its
    /// name for errors. Absent fields take the values of the public Mimi.
    ///
    /// # Errors
    /// [`crate::Error::ConfigFile`] for broken JSON, [`crate::Error::Config`] naming the field
    /// otherwise.
    pub fn from_json(file: &str, text: &str) -> Result<Self> {
        let fields = parse_json(file, text)?;
        if hugging_face::is_dialect(&fields) {
            return Self::from_json(file, &hugging_face::translate(&fields)?.to_string());
        }
        let config = Self::from_fields(file, &fields)?;
        fields.warn_about_unknown();
        Ok(config)
    }

    /// Code frames per second.
    pub fn frame_rate_hz(&self) -> f64 {
        self.sample_rate_hz as f64 / self.frame_samples as f64
    }

    /// Width of the latent and of the transformers.
    pub fn dimension(&self) -> usize {
        self.seanet.dimension
    }

    fn from_fields(file: &str, f: &Fields<'_>) -> Result<Self> {
        let empty = || Fields::new(file, "", serde_json::json!({}));
        let seanet_fields = f.object("seanet")?.map_or_else(empty, Ok)?;
        let seanet = seanet(&seanet_fields)?;
        let transformer = f.object("transformer")?.map_or_else(empty, Ok)?;
        let quantizer = f.object("quantizer")?.map_or_else(empty, Ok)?;
        f.only_number("channels", 1.0)?;
        let sample_rate_hz = f.positive_or("sample_rate", 24_000)?;
        let frame_rate = f.number_or("frame_rate", 12.5)?;
        let hop: usize = seanet.ratios.iter().product();
        let resample = sample_rate_hz as f64 / hop as f64 / frame_rate;
        let whole = resample.round();
        if (resample - whole).abs() > 1e-9 || !(2.0..=64.0).contains(&whole) {
            let reason = format!(
                "sample_rate / product of ratios / frame_rate = {resample} must be a whole \
                 number from 2 to 64"
            );
            return Err(f.error("frame_rate", frame_rate, reason));
        }
        let positions_per_frame = whole as usize;
        if hop * positions_per_frame > MAX_FRAME_SAMPLES {
            let reason = format!("a frame must have at most {MAX_FRAME_SAMPLES} samples");
            return Err(f.error("frame_rate", frame_rate, reason));
        }
        let dim = seanet.dimension;
        let heads = heads(&transformer, dim)?;
        let max_period = transformer.number_or("max_period", 10_000.0)?;
        if max_period <= 1.0 {
            return Err(transformer.error("max_period", max_period, "must be above 1"));
        }
        check_width(&quantizer, "input_dimension", dim)?;
        check_width(&quantizer, "output_dimension", dim)?;
        let config = Self {
            sample_rate_hz,
            frame_samples: hop * positions_per_frame,
            positions_per_frame,
            seanet,
            heads,
            num_layers: transformer.count_or("num_layers", 8, MAX_COUNT)?,
            dim_feedforward: transformer.positive_or("dim_feedforward", 2048)?,
            context: transformer.count_or("context", 250, MAX_CONTEXT)?,
            max_period,
            total_codebooks: quantizer.count_or("n_q", 32, MAX_COUNT)?,
            codebook_size: quantizer.positive_or("bins", 2048)?,
            codebook_dim: quantizer.positive_or("dimension", 256)?,
        };
        transformer.warn_about_unknown();
        quantizer.warn_about_unknown();
        Ok(config)
    }
}

/// More than a minute of audio; every frame is one buffer.
const MAX_FRAME_SAMPLES: usize = 1 << 21;

fn check_width(f: &Fields<'_>, name: &str, dim: usize) -> Result<()> {
    let width = f.positive_or(name, dim)?;
    if width == dim {
        return Ok(());
    }
    let reason = format!("must equal seanet.dimension = {dim}, as in every released codec");
    Err(f.error(name, width, reason))
}

fn heads(f: &Fields<'_>, dim: usize) -> Result<Heads> {
    check_width(f, "d_model", dim)?;
    check_width(f, "input_dimension", dim)?;
    for width in f.sizes("output_dimensions")?.unwrap_or_default() {
        if width != dim {
            let reason = format!("must equal seanet.dimension = {dim}");
            return Err(f.error("output_dimensions", width, reason));
        }
    }
    f.only_flag("causal", true, true)?;
    f.only_flag("conv_layout", true, true)?;
    f.only("gating", &["none"], "none")?;
    f.only("norm", &["layer_norm"], "layer_norm")?;
    f.only("positional_embedding", &["rope"], "rope")?;
    f.get("layer_scale");
    let query = f.count_or("num_heads", 8, MAX_COUNT)?;
    if !dim.is_multiple_of(query) || !(dim / query).is_multiple_of(2) {
        let reason = format!("d_model = {dim} must be an even multiple of it");
        return Err(f.error("num_heads", query, reason));
    }
    Ok(Heads { query, key: query, width: dim / query })
}

fn seanet(f: &Fields<'_>) -> Result<SeanetConfig> {
    f.only_number("channels", 1.0)?;
    f.only_flag("causal", true, true)?;
    f.only_number("n_residual_layers", 1.0)?;
    f.only("activation", &["ELU"], "ELU")?;
    f.only("norm", &["none"], "none")?;
    f.only("pad_mode", &["constant"], "constant")?;
    f.only_flag("true_skip", true, true)?;
    f.only_number("trim_right_ratio", 1.0)?;
    f.only_null("final_activation")?;
    for name in ["dilation_base", "disable_norm_outer_blocks", "activation_params", "norm_params"] {
        f.get(name);
    }
    let ratios = f.sizes("ratios")?.unwrap_or_else(|| vec![8, 6, 5, 4]);
    if ratios.is_empty() || ratios.len() > 8 || ratios.iter().any(|r| !(2..=64).contains(r)) {
        let reason = "needs 1 to 8 strides from 2 to 64";
        return Err(f.error("ratios", format!("{ratios:?}"), reason));
    }
    let config = SeanetConfig {
        dimension: f.positive_or("dimension", 512)?,
        num_filters: f.positive_or("n_filters", 64)?,
        ratios,
        kernel_size: f.positive_or("kernel_size", 7)?,
        last_kernel_size: f.positive_or("last_kernel_size", 3)?,
        residual_kernel_size: f.positive_or("residual_kernel_size", 3)?,
        compress: f.positive_or("compress", 2)?,
    };
    if !config.num_filters.is_multiple_of(config.compress) {
        let reason = format!("must divide n_filters = {}", config.num_filters);
        return Err(f.error("compress", config.compress, reason));
    }
    f.warn_about_unknown();
    Ok(config)
}

/// The `MimiConfig` of Hugging Face's `transformers`: the same numbers under other names.
mod hugging_face {
    use serde_json::{Map, Value, json};

    use super::Fields;
    use crate::error::Result;

    /// Fields of training, of the Python class, or of no effect with one residual layer.
    const IGNORED: [&str; 16] = [
        "architectures",
        "attention_dropout",
        "dilation_growth_rate",
        "frame_size",
        "initializer_range",
        "layer_scale_initial_scale",
        "max_position_embeddings",
        "normalize",
        "rope_theta",
        "torch_dtype",
        "dtype",
        "transformers_version",
        "use_cache",
        "use_streaming",
        "_name_or_path",
        "encodec_frame_rate",
    ];

    pub(super) fn is_dialect(f: &Fields<'_>) -> bool {
        f.names().any(|name| name == "upsampling_ratios" || name == "num_quantizers")
    }

    pub(super) fn translate(f: &Fields<'_>) -> Result<Value> {
        f.only("model_type", &["mimi"], "mimi")?;
        f.only_flag("use_causal_conv", true, true)?;
        f.only_flag("use_conv_shortcut", false, false)?;
        f.only("hidden_act", &["gelu"], "gelu")?;
        f.only_flag("attention_bias", false, false)?;
        f.only_number("num_semantic_quantizers", 1.0)?;
        let heads = f.positive_or("num_attention_heads", 8)?;
        f.only_number("num_key_value_heads", heads as f64)?;
        let hidden = f.positive_or("hidden_size", 512)?;
        f.only_number("head_dim", (hidden / heads) as f64)?;
        f.only_number("upsample_groups", hidden as f64)?;
        f.only_number("norm_eps", 1e-5)?;
        let codebook_dim = f.positive_or("codebook_dim", 256)?;
        f.only_number("vector_quantization_hidden_dimension", codebook_dim as f64)?;
        // Newer files nest the rotary base.
        let rope = f.object("rope_parameters")?;
        let rope_theta = match &rope {
            Some(rope) => rope.number_or("rope_theta", 10_000.0)?,
            None => f.number_or("rope_theta", 10_000.0)?,
        };
        for name in IGNORED {
            f.get(name);
        }
        let renamed = |names: &[(&str, &str)]| {
            let fields = names.iter().filter_map(|(theirs, ours)| {
                f.get(theirs).map(|value| ((*ours).to_owned(), value.clone()))
            });
            Value::Object(fields.collect::<Map<_, _>>())
        };
        let mut translated = json!({
            "sample_rate": f.get("sampling_rate"),
            "frame_rate": f.get("frame_rate"),
            "channels": f.get("audio_channels"),
            "seanet": renamed(&[
                ("hidden_size", "dimension"),
                ("num_filters", "n_filters"),
                ("num_residual_layers", "n_residual_layers"),
                ("upsampling_ratios", "ratios"),
                ("kernel_size", "kernel_size"),
                ("last_kernel_size", "last_kernel_size"),
                ("residual_kernel_size", "residual_kernel_size"),
                ("compress", "compress"),
                ("pad_mode", "pad_mode"),
                ("trim_right_ratio", "trim_right_ratio"),
            ]),
            "quantizer": renamed(&[
                ("codebook_size", "bins"),
                ("codebook_dim", "dimension"),
                ("num_quantizers", "n_q"),
            ]),
            "transformer": renamed(&[
                ("hidden_size", "d_model"),
                ("num_hidden_layers", "num_layers"),
                ("intermediate_size", "dim_feedforward"),
                ("num_attention_heads", "num_heads"),
                ("sliding_window", "context"),
            ]),
        });
        translated["transformer"]["max_period"] = rope_theta.into();
        f.warn_about_unknown();
        Ok(translated)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_dialects_describe_the_public_codec() {
        let theirs = r#"{"model_type": "mimi", "sampling_rate": 24000, "frame_rate": 12.5,
            "hidden_size": 512, "num_filters": 64, "upsampling_ratios": [8, 6, 5, 4],
            "num_quantizers": 32, "codebook_size": 2048, "codebook_dim": 256,
            "num_hidden_layers": 8, "num_attention_heads": 8, "sliding_window": 250}"#;
        assert_eq!(MimiConfig::from_json("test", theirs).unwrap(), MimiConfig::default());
        assert_eq!(MimiConfig::default().frame_samples, 1920);
    }

    #[test]
    fn the_other_dialect_is_checked_too() {
        let with = |more: &str| {
            let text = format!(r#"{{"num_quantizers": 8, "hidden_size": 512{more}}}"#);
            MimiConfig::from_json("test", &text)
        };
        for (field, value) in [
            ("norm_eps", "0.5"),
            ("upsample_groups", "1"),
            ("head_dim", "3"),
            ("vector_quantization_hidden_dimension", "9"),
        ] {
            let error = with(&format!(r#", "{field}": {value}"#)).unwrap_err().to_string();
            assert!(error.contains(field) && error.contains(value), "{error}");
        }
        let nested = with(r#", "rope_parameters": {"rope_theta": 500.0}"#).unwrap();
        assert_eq!(nested.max_period, 500.0);
        assert_eq!(with(r#", "rope_theta": 700.0"#).unwrap().max_period, 700.0);
    }
}
