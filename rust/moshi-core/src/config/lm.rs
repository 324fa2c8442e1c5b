//! Config of the language model: `config.json` of the public PyTorch repositories, and the
//! built-in values of Moshi 7B for repositories that carry none.

use serde_json::Value;

use super::conditioning::{ConditionerConfig, FuserConfig, conditioners, fuser};
use super::fields::{MAX_CONTEXT, MAX_COUNT};
use super::{Fields, parse_json};
use crate::error::{Error, Result};
use crate::exec::{Heads, RotaryStyle};

/// Which program a checkpoint belongs to; decides how its streams are wired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelType {
    /// Full-duplex dialogue.
    Moshi,
    /// Simultaneous speech translation.
    Hibiki,
    /// Speech to text.
    Stt,
    /// Text to speech.
    Tts,
}

impl ModelType {
    /// The name in config files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Moshi => "moshi",
            Self::Hibiki => "hibiki",
            Self::Stt => "stt",
            Self::Tts => "tts",
        }
    }
}

/// Names of the files of a repository.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelFiles {
    /// Language-model weights; `None` when the config does not say.
    pub moshi_name: Option<String>,
    /// Codec weights.
    pub mimi_name: String,
    /// Codec config, when the codec is not the standard one.
    pub mimi_config_name: Option<String>,
    /// SentencePiece model.
    pub tokenizer_name: String,
    /// Adapter weights.
    pub lora_name: Option<String>,
}

/// Shape of one transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct TransformerShape {
    /// Width of the residual stream.
    pub dim: usize,
    /// Attention heads.
    pub heads: Heads,
    /// Layers.
    pub num_layers: usize,
    /// Nominal feed-forward width, from which the gated width follows.
    pub dim_feedforward: usize,
}

impl TransformerShape {
    /// Widths that the gated feed-forward of this shape may have in files: implementations
    /// differ in one special case.
    pub fn gated_widths(&self) -> Vec<usize> {
        if self.dim_feedforward == 4 * self.dim {
            vec![21 * self.dim / 8, 11 * self.dim / 4, 2 * self.dim_feedforward / 3]
        } else {
            vec![2 * self.dim_feedforward / 3]
        }
    }
}

/// The temporal transformer: one step per frame.
#[derive(Clone, Debug, PartialEq)]
pub struct TemporalConfig {
    /// Shape.
    pub shape: TransformerShape,
    /// Attention window in steps.
    pub context: usize,
    /// Base of the rotary frequencies.
    pub max_period: f64,
    /// Layout of rotated pairs.
    pub rotary: RotaryStyle,
    /// True when every layer attends to a conditioning sequence.
    pub cross_attention: bool,
}

/// The depth transformer: one step per generated codebook of a frame.
#[derive(Clone, Debug, PartialEq)]
pub struct DepthConfig {
    /// Shape.
    pub shape: TransformerShape,
    /// Weight set of every codebook (`depformer_weights_per_step_schedule`).
    pub schedule: Vec<usize>,
    /// Rank of the embeddings, when they are factored.
    pub low_rank: Option<usize>,
    /// Norm before every output head.
    pub output_norm: Option<OutputNorm>,
}

impl DepthConfig {
    /// Distinct weight sets.
    pub fn num_sets(&self) -> usize {
        self.schedule.iter().max().map_or(0, |max| max + 1)
    }
}

/// Norm before the depth transformer's heads (`depformer_norm`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputNorm {
    /// `layer_norm`, epsilon 1e-5.
    Layer,
    /// `rms_norm_f32`, epsilon 1e-8.
    Rms,
}

/// Sampling defaults of a checkpoint (`lm_gen_config`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GenerationConfig {
    /// False means greedy.
    pub use_sampling: bool,
    /// Temperature of audio tokens.
    pub temperature: f64,
    /// Temperature of text tokens.
    pub text_temperature: f64,
    /// Audio tokens are drawn from this many most probable ones; 0 is all.
    pub top_k: usize,
    /// As `top_k`, for text.
    pub top_k_text: usize,
    /// Coefficient of classifier-free guidance.
    pub guidance: f64,
}

impl Default for GenerationConfig {
    fn default() -> Self {
        Self {
            use_sampling: true,
            temperature: 0.8,
            text_temperature: 0.7,
            top_k: 250,
            top_k_text: 25,
            guidance: 1.0,
        }
    }
}

/// Everything about a language model that its weights do not say.
#[derive(Clone, Debug, PartialEq)]
pub struct LmConfig {
    /// Program.
    pub model_type: ModelType,
    /// Files of the repository.
    pub files: ModelFiles,
    /// Temporal transformer.
    pub temporal: TemporalConfig,
    /// Depth transformer; `None` when no audio is generated.
    pub depth: Option<DepthConfig>,
    /// Audio codebook size, which is also the id of the initial token.
    pub card: usize,
    /// Text vocabulary size, which is also the id of the initial token.
    pub text_card: usize,
    /// Rows of the text head.
    pub text_card_out: usize,
    /// Text ids carry two tokens (`demux_second_stream`).
    pub demux_second_stream: bool,
    /// Text id that means "nothing to say".
    pub text_padding_id: usize,
    /// Text id that ends a run of padding.
    pub text_end_padding_id: usize,
    /// Delay in frames of every stream: text, then audio.
    pub delays: Vec<usize>,
    /// Audio streams.
    pub num_codebooks: usize,
    /// Audio streams that are generated: the first ones.
    pub num_generated: usize,
    /// Extra heads on the temporal output.
    pub num_extra_heads: usize,
    /// Classes of an extra head.
    pub extra_head_dim: usize,
    /// Named conditions, sorted by name.
    pub conditioners: Vec<ConditionerConfig>,
    /// How they enter.
    pub fuser: FuserConfig,
    /// Sampling defaults.
    pub generation: GenerationConfig,
    /// Scale of the adapter named in `files.lora_name`, when there is one.
    pub lora_scaling: f64,
    /// True when the codec's codebooks are shared by two speakers (`tts_config.multistream`).
    pub multistream: bool,
}

impl LmConfig {
    /// Parses a `config.json`; `file` is its name for errors.
    ///
    /// # Errors
    /// [`Error::ConfigFile`] for broken JSON, [`Error::Config`] naming the field otherwise.
    pub fn from_json(file: &str, text: &str) -> Result<Self> {
        let fields = parse_json(file, text)?;
        let config = Self::from_fields(&fields)?;
        fields.warn_about_unknown();
        Ok(config)
    }

    /// The values of Moshi 7B, for the first public repositories, which carry no config.
    pub fn moshi_7b() -> Self {
        let text = include_str!("presets/moshi_7b.json");
        Self::from_json("built-in moshi_7b", text).expect("the built-in config is valid")
    }

    /// Streams in all: text and audio.
    pub fn num_streams(&self) -> usize {
        1 + self.num_codebooks
    }

    /// Audio streams given by the caller at every step.
    pub fn num_user_codebooks(&self) -> usize {
        self.num_codebooks - self.num_generated
    }

    /// Largest delay in frames.
    pub fn max_delay(&self) -> usize {
        self.delays.iter().copied().max().unwrap_or(0)
    }

    /// Codebooks that the codec is run with for this model.
    pub fn codec_codebooks(&self) -> usize {
        let codebooks = self.num_generated.max(self.num_user_codebooks());
        if self.multistream { codebooks / 2 } else { codebooks }
    }

    fn from_fields(f: &Fields<'_>) -> Result<Self> {
        let model_type = match f.only("model_type", &MODEL_TYPES, "moshi")?.as_str() {
            "hibiki" => ModelType::Hibiki,
            "stt" => ModelType::Stt,
            "tts" => ModelType::Tts,
            _ => ModelType::Moshi,
        };
        let card = f.positive_or("card", 1024)?;
        let num_codebooks = f.count_or("n_q", 8, MAX_COUNT)?;
        let num_generated = f.size_or("dep_q", 8)?;
        if num_generated > num_codebooks {
            return Err(f.error("dep_q", num_generated, format!("exceeds n_q = {num_codebooks}")));
        }
        let delays = f.sizes("delays")?.unwrap_or_else(|| vec![0]);
        if delays.len() != num_codebooks + 1 {
            let reason = format!("needs n_q + 1 = {} entries", num_codebooks + 1);
            return Err(f.error("delays", format!("{delays:?}"), reason));
        }
        if let Some(delay) = delays.iter().find(|&&delay| delay > MAX_DELAY) {
            return Err(f.error("delays", delay, format!("must be at most {MAX_DELAY} frames")));
        }
        let text_card = f.positive_or("text_card", 32_000)?;
        let text_padding_id = f.size_or("existing_text_padding_id", 3)?;
        if text_padding_id > text_card {
            let reason = format!("must be at most text_card = {text_card}");
            return Err(f.error("existing_text_padding_id", text_padding_id, reason));
        }
        if text_card < TEXT_END_TOKEN {
            let reason = format!("must be at least {TEXT_END_TOKEN}, the token that ends a text");
            return Err(f.error("text_card", text_card, reason));
        }
        let temporal = temporal(f)?;
        let depth = depth(f, num_generated)?;
        ignored_and_fixed(f)?;
        let conditioners = conditioners(f)?;
        let fuser = fuser(f, &conditioners)?;
        if !fuser.cross.is_empty() && !temporal.cross_attention {
            return Err(f.error("cross_attention", false, "the fuser lists cross conditions"));
        }
        let demux = f.flag_or("demux_second_stream", false)?
            || f.flag_or("demux_second_text_stream", false)?;
        let multistream = match f.object("tts_config")? {
            Some(tts) => tts.flag_or("multistream", false)?,
            None => false,
        };
        Ok(Self {
            model_type,
            files: files(f)?,
            temporal,
            depth,
            card,
            text_card,
            text_card_out: f.count_or("text_card_out", text_card, text_card + 1)?,
            demux_second_stream: demux,
            text_padding_id,
            text_end_padding_id: f.size_or("existing_text_end_padding_id", 0)?,
            delays,
            num_codebooks,
            num_generated,
            num_extra_heads: f.at_most(
                "extra_heads_num_heads",
                f.size_or("extra_heads_num_heads", 0)?,
                MAX_COUNT,
            )?,
            extra_head_dim: f.positive_or("extra_heads_dim", 6)?,
            conditioners,
            fuser,
            generation: generation(f)?,
            lora_scaling: f.number_or("lora_scaling", 2.0)?,
            multistream,
        })
    }
}

/// Codec of the first public repositories, whose configs do not name it.
pub(super) const DEFAULT_MIMI_NAME: &str = "tokenizer-e351c8d8-checkpoint125.safetensors";
/// Tokenizer of the first public repositories.
pub(super) const DEFAULT_TOKENIZER_NAME: &str = "tokenizer_spm_32k_3.model";
const MODEL_TYPES: [&str; 4] = ["moshi", "hibiki", "stt", "tts"];
/// Text token "end of sentence" of all released models.
pub(crate) const TEXT_END_TOKEN: usize = 2;
/// Above it every distribution is uniform to the eye.
pub(crate) const MAX_TEMPERATURE: f64 = 100.0;
/// Far above any useful strength of guidance.
const MAX_GUIDANCE: f64 = 1000.0;
/// Below this, the gated width is zero.
const MIN_FEEDFORWARD: usize = 2;
/// Weight sets of all layers of the depth transformer: ten times what any released model has.
const MAX_LAYER_SETS: usize = 1 << 13;
/// Ten seconds: far above the two frames of released models, low enough to bound the delay cache.
pub(super) const MAX_DELAY: usize = 125;

fn files(f: &Fields<'_>) -> Result<ModelFiles> {
    let optional = |name: &str| -> Result<Option<String>> {
        Ok(if f.has(name) { Some(f.text_or(name, "")?) } else { None })
    };
    Ok(ModelFiles {
        moshi_name: optional("moshi_name")?,
        mimi_name: f.text_or("mimi_name", DEFAULT_MIMI_NAME)?,
        mimi_config_name: optional("mimi_config_name")?,
        tokenizer_name: f.text_or("tokenizer_name", DEFAULT_TOKENIZER_NAME)?,
        lora_name: optional("lora_name")?,
    })
}

fn shape(
    f: &Fields<'_>,
    prefix: &str,
    ff: impl Fn(usize) -> Result<usize>,
) -> Result<TransformerShape> {
    let name = |field: &str| format!("{prefix}{field}");
    let (dim_name, heads_name, layers_name) = (name("dim"), name("num_heads"), name("num_layers"));
    let dim = f.positive_or(&dim_name, if prefix.is_empty() { 128 } else { 256 })?;
    let query = f.count_or(&heads_name, 8, MAX_COUNT)?;
    let repeat = match prefix {
        "" => f.positive_or("kv_repeat", 1)?,
        _ => f.positive_or(&name("kv_repeat"), f.positive_or("kv_repeat", 1)?)?,
    };
    let heads = check_heads(dim, query, repeat, |per_head, value, reason| {
        f.error(&if per_head { heads_name.clone() } else { name("kv_repeat") }, value, reason)
    })?;
    let dim_feedforward = ff(dim)?;
    check_feed_forward(dim_feedforward).map_err(|reason| f.error(&dim_name, dim, reason))?;
    Ok(TransformerShape {
        dim,
        heads,
        num_layers: f.at_most(&layers_name, f.required(&layers_name)?, MAX_COUNT)?,
        dim_feedforward,
    })
}

/// Heads of a width, or an error about their number (`true`) or about how often keys repeat.
pub(super) fn check_heads(
    dim: usize,
    query: usize,
    repeat: usize,
    error: impl Fn(bool, usize, String) -> Error,
) -> Result<Heads> {
    if !dim.is_multiple_of(query) || !(dim / query).is_multiple_of(2) {
        return Err(error(true, query, format!("the width {dim} must be an even multiple of it")));
    }
    if !query.is_multiple_of(repeat) {
        return Err(error(false, repeat, format!("must divide the number of heads, {query}")));
    }
    Ok(Heads { query, key: query / repeat, width: dim / query })
}

/// Refuses widths of which gating leaves nothing.
pub(super) fn check_feed_forward(width: usize) -> Result<(), String> {
    if width < MIN_FEEDFORWARD {
        return Err(format!("gives a feed-forward width below {MIN_FEEDFORWARD}"));
    }
    Ok(())
}

/// Refuses a depth transformer of more tensors than are worth listing.
pub(super) fn check_layer_sets(layers: usize, sets: usize) -> Result<(), String> {
    if layers * sets > MAX_LAYER_SETS {
        return Err(format!("times {sets} weight sets must be at most {MAX_LAYER_SETS}"));
    }
    Ok(())
}

fn temporal(f: &Fields<'_>) -> Result<TemporalConfig> {
    let scale = hidden_scale(f)?;
    let shape = shape(f, "", |dim| Ok((scale * dim as f64) as usize))?;
    let rotary = match f.only("positional_embedding", &["rope", "rope_concat"], "sin")?.as_str() {
        "rope" => RotaryStyle::Interleaved,
        _ => RotaryStyle::SplitHalves,
    };
    let max_period = f.number_or("max_period", 10_000.0)?;
    if max_period <= 1.0 {
        return Err(f.error("max_period", max_period, "must be above 1"));
    }
    Ok(TemporalConfig {
        shape,
        context: f.at_most("context", f.required("context")?, MAX_CONTEXT)?,
        max_period,
        rotary,
        cross_attention: f.flag_or("cross_attention", false)?,
    })
}

fn hidden_scale(f: &Fields<'_>) -> Result<f64> {
    let scale = f.number_or("hidden_scale", 4.0)?;
    if !(scale > 0.0 && scale <= 64.0) {
        return Err(f.error("hidden_scale", scale, "must be between 0 and 64"));
    }
    Ok(scale)
}

/// Depth fields that the original ignores or that nothing released depends on.
const UNUSED_DEPTH_FIELDS: &[&str] =
    &["depformer_context", "depformer_causal", "depformer_max_period"];
/// Depth fields, which mean nothing in a model without a depth transformer.
const DEPTH_FIELDS: &[&str] = &[
    "depformer_dim",
    "depformer_dim_feedforward",
    "depformer_gating",
    "depformer_kv_repeat",
    "depformer_layer_scale",
    "depformer_low_rank_embeddings",
    "depformer_multi_linear",
    "depformer_norm",
    "depformer_num_heads",
    "depformer_num_layers",
    "depformer_pos_emb",
    "depformer_weights_per_step",
    "depformer_weights_per_step_schedule",
];

fn depth(f: &Fields<'_>, num_generated: usize) -> Result<Option<DepthConfig>> {
    let meaningless = if num_generated == 0 { DEPTH_FIELDS } else { &[] };
    for name in UNUSED_DEPTH_FIELDS.iter().chain(meaningless) {
        f.get(name);
    }
    if num_generated == 0 {
        return Ok(None);
    }
    f.only_flag("depformer_multi_linear", true, false)?;
    f.only_flag("depformer_weights_per_step", true, false)?;
    f.only("depformer_pos_emb", &["none"], "sin")?;
    if f.has("depformer_gating") {
        f.only("depformer_gating", &["silu"], "silu")?;
    }
    f.only_null("depformer_layer_scale")?;
    let scale = hidden_scale(f)?;
    let shape = shape(f, "depformer_", |dim| {
        let name = "depformer_dim_feedforward";
        match f.get(name) {
            Some(Value::Array(items)) if items.windows(2).any(|pair| pair[0] != pair[1]) => {
                Err(f.error(name, Value::Array(items.clone()), "only equal widths are supported"))
            }
            Some(Value::Array(_)) => match f.sizes(name)?.as_deref() {
                Some([first, ..]) => Ok(*first),
                _ => Err(f.error(name, "[]", "is empty")),
            },
            _ => f.positive_or(name, (scale * dim as f64) as usize),
        }
    })?;
    let schedule = match f.sizes("depformer_weights_per_step_schedule")? {
        None => (0..num_generated).collect(),
        Some(schedule) => check_schedule(f, schedule, num_generated)?,
    };
    let sets = schedule.iter().max().map_or(0, |max| max + 1);
    check_layer_sets(shape.num_layers, sets)
        .map_err(|reason| f.error("depformer_num_layers", shape.num_layers, reason))?;
    let output_norm = match f.get("depformer_norm") {
        None => None,
        Some(_) => match f.only("depformer_norm", &["layer_norm", "rms_norm_f32"], "")?.as_str() {
            "layer_norm" => Some(OutputNorm::Layer),
            _ => Some(OutputNorm::Rms),
        },
    };
    let low_rank = f.size("depformer_low_rank_embeddings")?.filter(|&rank| rank > 0);
    Ok(Some(DepthConfig { shape, schedule, low_rank, output_norm }))
}

fn check_schedule(
    f: &Fields<'_>,
    schedule: Vec<usize>,
    num_generated: usize,
) -> Result<Vec<usize>> {
    let name = "depformer_weights_per_step_schedule";
    let shown = format!("{schedule:?}");
    if schedule.len() != num_generated {
        return Err(f.error(name, shown, format!("needs dep_q = {num_generated} entries")));
    }
    let sets = schedule.iter().max().map_or(0, |max| max + 1);
    if (0..sets.min(num_generated + 1)).any(|set| !schedule.contains(&set)) {
        return Err(f.error(name, shown, "skips a weight set"));
    }
    Ok(schedule)
}

/// Fields with one value in all released models, and fields that inference does not need.
fn ignored_and_fixed(f: &Fields<'_>) -> Result<()> {
    f.only_flag("causal", true, true)?;
    f.only_null("layer_scale")?;
    f.only("gating", &["silu"], "none")?;
    f.only("norm", &["rms_norm_f32"], "layer_norm")?;
    f.only_flag("norm_emb", false, false)?;
    f.only_flag("bias_proj", false, false)?;
    f.only_number("positional_scale", 1.0)?;
    for name in [
        "quantize",
        "lora",
        "lora_rank",
        "gradient_checkpointing",
        "betas",
        "model_id",
        "stt_config",
    ] {
        f.get(name);
    }
    Ok(())
}

fn generation(f: &Fields<'_>) -> Result<GenerationConfig> {
    let Some(g) = f.object("lm_gen_config")? else { return Ok(GenerationConfig::default()) };
    let d = GenerationConfig::default();
    let within = |name: &str, default: f64, range: std::ops::RangeInclusive<f64>| {
        let value = g.number_or(name, default)?;
        if range.contains(&value) {
            return Ok(value);
        }
        let reason = format!("must be between {} and {}", range.start(), range.end());
        Err(g.error(name, value, reason))
    };
    let text_alias = within("text_temp", d.text_temperature, 0.0..=MAX_TEMPERATURE)?;
    let config = GenerationConfig {
        use_sampling: g.flag_or("use_sampling", d.use_sampling)?,
        temperature: within("temp", d.temperature, 0.0..=MAX_TEMPERATURE)?,
        text_temperature: within("temp_text", text_alias, 0.0..=MAX_TEMPERATURE)?,
        top_k: g.size_or("top_k", d.top_k)?,
        top_k_text: g.size_or("top_k_text", d.top_k_text)?,
        guidance: within("cfg_coef", d.guidance, -MAX_GUIDANCE..=MAX_GUIDANCE)?,
    };
    g.warn_about_unknown();
    Ok(config)
}

impl LmConfig {
    /// The conditioner of a name.
    ///
    /// # Errors
    /// [`Error::Input`] listing the names that exist.
    pub fn conditioner(&self, name: &str) -> Result<&ConditionerConfig> {
        self.conditioners.iter().find(|c| c.name == name).ok_or_else(|| {
            let known: Vec<&str> = self.conditioners.iter().map(|c| c.name.as_str()).collect();
            Error::input("conditions", format!("no condition `{name}`; the model has {known:?}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(field: &str, value: Value) -> Result<LmConfig> {
        let text = include_str!("presets/moshi_7b.json");
        let mut json: Value = serde_json::from_str(text).unwrap();
        json[field] = value;
        LmConfig::from_json("test", &json.to_string())
    }

    #[test]
    fn widths_that_round_to_nothing_are_refused() {
        for (field, value) in
            [("hidden_scale", Value::from(1e-9)), ("depformer_dim_feedforward", Value::from(1))]
        {
            assert!(matches!(with(field, value), Err(Error::Config { .. })), "{field}");
        }
    }

    #[test]
    fn recommended_settings_out_of_range_name_their_field() {
        for (name, value) in [("temp", -1.0), ("temp_text", 1e9), ("cfg_coef", 1e300)] {
            let error = with("lm_gen_config", serde_json::json!({ name: value })).unwrap_err();
            assert!(error.to_string().contains(&format!("lm_gen_config.{name}")), "{error}");
        }
    }
}
