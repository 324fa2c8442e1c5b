//! Config of the language model as the Rust programs of the family write it: `config.toml` of the
//! `-rs-` repositories, with the shape under `[model]`, or a server's config with one model under
//! `[modules.NAME.model]`, or a file that is nothing but the shape.
//!
//! These files say less than `config.json`: the delays follow from `[gen]`, or are the two frames
//! that the Rust programs assume; every codebook has weights of its own in the depth transformer;
//! all conditions are added to the input.

mod program;

use serde_json::Value;

use super::conditioning::{ConditionerConfig, ConditionerKind, FuserConfig, condition_names};
use super::fields::{MAX_CONTEXT, MAX_COUNT};
use super::lm::{TEXT_END_TOKEN, check_feed_forward, check_heads, check_layer_sets};
use super::{DepthConfig, Fields, LmConfig, TemporalConfig, TransformerShape};
use crate::error::{Error, Result};
use crate::exec::RotaryStyle;

impl LmConfig {
    /// Parses a `config.toml` of a Rust program; `file` is its name for errors.
    ///
    /// # Errors
    /// [`Error::ConfigFile`] for broken TOML, [`Error::Config`] naming the field otherwise.
    pub fn from_toml(file: &str, text: &str) -> Result<Self> {
        let value: Value = toml::from_str(text).map_err(|e| Error::ConfigFile {
            file: file.into(),
            reason: format!("not valid TOML in line {}: {}", line_of(text, &e), e.message()),
        })?;
        if let Some(field) = not_finite(&value) {
            return Err(Error::Config {
                file: file.into(),
                field,
                value: "not finite".into(),
                reason: "expected a number".into(),
            });
        }
        let top = Fields::new(file, "", value)?;
        let (program, model) = model_table(&top)?;
        let config = from_tables(&program, &model)?;
        // The same table in a file that is nothing but the shape.
        program.warn_about_unknown();
        model.warn_about_unknown();
        Ok(config)
    }
}

/// The line that an error is about; its own text is a page with a drawing.
fn line_of(text: &str, error: &toml::de::Error) -> usize {
    let before = error.span().map_or("", |span| text.get(..span.start).unwrap_or(text));
    1 + before.matches('\n').count()
}

/// Name of a field that is infinite or not a number. TOML has no null, JSON no such numbers, so
/// they are the nulls.
fn not_finite(value: &Value) -> Option<String> {
    let in_item = |(name, value): (String, &Value)| {
        let rest = not_finite(value)?;
        Some(if rest.is_empty() { name } else { format!("{name}.{rest}") })
    };
    match value {
        Value::Null => Some(String::new()),
        Value::Object(map) => map.iter().map(|(k, v)| (k.clone(), v)).find_map(in_item),
        Value::Array(items) => {
            items.iter().enumerate().map(|(i, v)| (i.to_string(), v)).find_map(in_item)
        }
        _ => None,
    }
}

/// The table with file names and the table with the shape.
fn model_table<'f>(top: &Fields<'f>) -> Result<(Fields<'f>, Fields<'f>)> {
    if let Some(model) = top.object("model")? {
        return Ok((top.clone(), model));
    }
    if top.has("transformer") {
        return Ok((top.clone(), top.clone()));
    }
    let Some(modules) = top.object("modules")? else {
        let reason = "is required: the file is no config of a language model";
        return Err(top.error("model", "absent", reason));
    };
    // Of the server, which this is not.
    for unused in ["static_dir", "log_dir", "instance_name", "authorized_ids"] {
        top.get(unused);
    }
    top.warn_about_unknown();
    let mut found = Vec::new();
    for name in modules.names() {
        let Some(module) = modules.object(name)? else { continue };
        if let Some(model) = module.object("model")? {
            found.push((module, model));
        }
    }
    let count = found.len();
    match found.pop() {
        Some(only) if count == 1 => Ok(only),
        _ => {
            let reason = "needs exactly one module with a `model` table";
            Err(top.error("modules", format!("with {count} of them"), reason))
        }
    }
}

fn from_tables(program: &Fields<'_>, model: &Fields<'_>) -> Result<LmConfig> {
    let num_codebooks =
        model.at_most("audio_codebooks", model.required("audio_codebooks")?, MAX_COUNT)?;
    let card = above_one(model, "audio_vocab_size")? - 1;
    let text_card = above_one(model, "text_in_vocab_size")? - 1;
    if text_card < TEXT_END_TOKEN {
        let reason = format!("must be above {TEXT_END_TOKEN}, the token that ends a text");
        return Err(model.error("text_in_vocab_size", text_card + 1, reason));
    }
    let table = model.object("transformer")?;
    let table = table.ok_or_else(|| model.error("transformer", "absent", "is required"))?;
    let shape = shape(&table)?;
    let max_period = table.number_or("max_period", 10_000.0)?;
    if max_period <= 1.0 {
        return Err(table.error("max_period", max_period, "must be above 1"));
    }
    table.only("positional_embedding", &["Rope"], "None")?;
    let temporal = TemporalConfig {
        shape,
        context: table.at_most("context", table.required("context")?, MAX_CONTEXT)?,
        max_period,
        rotary: RotaryStyle::Interleaved,
        cross_attention: false,
    };
    table.warn_about_unknown();
    let depth = depth(model)?;
    let num_generated = depth.as_ref().map_or(0, |depth| depth.schedule.len());
    if num_generated > num_codebooks {
        let reason = format!("exceeds audio_codebooks = {num_codebooks}");
        return Err(model.error("depformer.num_slices", num_generated, reason));
    }
    let mut conditioners = conditioners(model)?;
    program::set_delay(program, &mut conditioners)?;
    let fused = conditioners.iter().map(|c| c.name.clone()).collect();
    let gen_table = program.object("gen")?;
    let (padding, end_padding) = program::text_tokens(gen_table.as_ref(), text_card)?;
    let delays = program::delays(gen_table.as_ref(), num_codebooks, num_generated)?;
    if let Some(table) = &gen_table {
        table.warn_about_unknown();
    }
    let (num_extra_heads, extra_head_dim) = match model.object("extra_heads")? {
        None => (0, 6),
        Some(heads) => (
            heads.at_most("num_heads", heads.required("num_heads")?, MAX_COUNT)?,
            heads.required("dim")?,
        ),
    };
    program::check_unused(program)?;
    let model_type = program::model_type(program, num_generated, &conditioners)?;
    Ok(LmConfig {
        model_type,
        files: program::files(program)?,
        temporal,
        depth,
        card,
        text_card,
        text_card_out: model.at_most(
            "text_out_vocab_size",
            model.required("text_out_vocab_size")?,
            text_card + 1,
        )?,
        demux_second_stream: false,
        text_padding_id: padding,
        text_end_padding_id: end_padding,
        delays,
        num_codebooks,
        num_generated,
        num_extra_heads,
        extra_head_dim,
        conditioners,
        fuser: FuserConfig { sum: fused, ..FuserConfig::default() },
        generation: program::generation(program, model_type)?,
        lora_scaling: program.number_or("lora_scaling", 2.0)?,
        multistream: false,
    })
}

fn above_one(f: &Fields<'_>, name: &str) -> Result<usize> {
    match f.required(name)? {
        1 => Err(f.error(name, 1, "must be at least 2: it counts the initial token")),
        size => Ok(size),
    }
}

/// Shape of a transformer table, whose other fields must be those of released models.
fn shape(t: &Fields<'_>) -> Result<TransformerShape> {
    let dim = t.required("d_model")?;
    let query = t.at_most("num_heads", t.required("num_heads")?, MAX_COUNT)?;
    let repeat = t.positive_or("kv_repeat", 1)?;
    let heads = check_heads(dim, query, repeat, |per_head, value, reason| {
        t.error(if per_head { "num_heads" } else { "kv_repeat" }, value, reason)
    })?;
    let dim_feedforward = t.required("dim_feedforward")?;
    check_feed_forward(dim_feedforward)
        .map_err(|reason| t.error("dim_feedforward", dim_feedforward, reason))?;
    t.only("gating", &["silu"], "none")?;
    t.only("norm", &["RmsNorm"], "LayerNorm")?;
    for (flag, accepted) in [
        ("causal", true),
        ("norm_first", true),
        ("bias_ff", false),
        ("bias_attn", false),
        ("use_conv_block", false),
        ("shared_cross_attn", false),
    ] {
        t.only_flag(flag, accepted, accepted)?;
    }
    t.only_null("layer_scale")?;
    if let Some(value) = t.get("cross_attention") {
        let reason = "this format does not say what is attended to; use the repository with \
                      config.json";
        return Err(t.error("cross_attention", value, reason));
    }
    for unused in ["conv_kernel_size", "use_conv_bias", "max_seq_len", "conv_layout"] {
        t.get(unused);
    }
    Ok(TransformerShape {
        dim,
        heads,
        num_layers: t.at_most("num_layers", t.required("num_layers")?, MAX_COUNT)?,
        dim_feedforward,
    })
}

fn depth(model: &Fields<'_>) -> Result<Option<DepthConfig>> {
    let Some(depth) = model.object("depformer")? else { return Ok(None) };
    let table = depth.object("transformer")?;
    let table = table.ok_or_else(|| depth.error("transformer", "absent", "is required"))?;
    let shape = shape(&table)?;
    table.only("positional_embedding", &["None"], "None")?;
    // The window is the frame.
    for unused in ["context", "max_period"] {
        table.get(unused);
    }
    table.warn_about_unknown();
    let slices = depth.at_most("num_slices", depth.required("num_slices")?, MAX_COUNT)?;
    let low_rank = depth.size("low_rank_embeddings")?.filter(|&rank| rank > 0);
    depth.warn_about_unknown();
    check_layer_sets(shape.num_layers, slices)
        .map_err(|reason| table.error("num_layers", shape.num_layers, reason))?;
    let schedule = (0..slices).collect();
    Ok(Some(DepthConfig { shape, schedule, low_rank, output_norm: None }))
}

fn conditioners(model: &Fields<'_>) -> Result<Vec<ConditionerConfig>> {
    let Some(all) = model.object("conditioners")? else { return Ok(Vec::new()) };
    let names = condition_names(model, &all)?;
    let one = |name: String| {
        let wrong = || all.error(&name, "not a table", "expected a table with a `type`");
        let fields = all.object(&name)?.ok_or_else(wrong)?;
        let dim = fields.required("dim")?;
        let kind = match fields.only("type", &["Lut", "ContinuousAttribute"], "")?.as_str() {
            "Lut" => ConditionerKind::lut(&fields, dim)?,
            _ => ConditionerKind::Number {
                dim,
                scale: fields.number_or("scale_factor", 1.0)?,
                max_period: fields.number_or("max_period", 10_000.0)?,
                default: None,
            },
        };
        if let ConditionerKind::Number { max_period, .. } = kind
            && (!dim.is_multiple_of(2) || dim < 4 || max_period <= 0.0)
        {
            let reason = "needs an even dim of at least 4 and a max_period above 0";
            return Err(all.error(&name, format!("of dim {dim}"), reason));
        }
        fields.warn_about_unknown();
        Ok(ConditionerConfig { name, kind })
    };
    names.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelType;

    const HIBIKI: &str = r#"
        mimi_name = "mimi.safetensors"
        moshi_name = "hibiki.safetensors"
        tokenizer_name = "tokenizer.model"
        [model]
        text_in_vocab_size = 48001
        text_out_vocab_size = 48000
        audio_vocab_size = 2049
        audio_codebooks = 16
        [model.transformer]
        d_model = 2048
        num_heads = 16
        num_layers = 16
        dim_feedforward = 8192
        causal = true
        norm_first = true
        bias_ff = false
        bias_attn = false
        context = 500
        max_period = 100000
        use_conv_block = false
        use_conv_bias = true
        gating = "silu"
        norm = "RmsNorm"
        positional_embedding = "Rope"
        conv_layout = false
        conv_kernel_size = 3
        kv_repeat = 1
        max_seq_len = 4096
        [model.depformer]
        num_slices = 8
        [model.depformer.transformer]
        d_model = 1024
        num_heads = 16
        num_layers = 6
        dim_feedforward = 4096
        context = 8
        gating = "silu"
        norm = "RmsNorm"
        positional_embedding = "None"
        max_period = 10000
        [model.conditioners.description]
        type = "Lut"
        n_bins = 31
        dim = 16
        possible_values = ["very_bad", "bad", "neutral", "good", "very_good"]
    "#;

    const SERVER: &str = r#"
        static_dir = "static"
        [modules.asr]
        path = "/api/asr-streaming"
        type = "BatchedAsr"
        lm_model_file = "hf://kyutai/stt-1b-en_fr-candle/model.safetensors"
        text_tokenizer_file = "hf://kyutai/stt-1b-en_fr-candle/tokenizer.model"
        audio_tokenizer_file = "hf://kyutai/stt-1b-en_fr-candle/mimi.safetensors"
        [modules.asr.model]
        audio_vocab_size = 2049
        text_in_vocab_size = 8001
        text_out_vocab_size = 8000
        audio_codebooks = 32
        extra_heads = { num_heads = 4, dim = 6 }
        [modules.asr.model.transformer]
        d_model = 2048
        num_heads = 16
        num_layers = 16
        dim_feedforward = 8192
        context = 750
        max_period = 100000
        gating = "silu"
        norm = "RmsNorm"
        positional_embedding = "Rope"
        [modules.asr.model.conditioners.delay]
        type = "ContinuousAttribute"
        dim = 64
        scale_factor = 10.0
        max_period = 10000.0
        [modules.other]
        path = "/nothing"
        type = "Py"
    "#;

    fn parse(text: &str) -> Result<LmConfig> {
        LmConfig::from_toml("config.toml", text)
    }

    #[test]
    fn a_translation_repository_parses() {
        let config = parse(HIBIKI).unwrap();
        assert_eq!(config.model_type, ModelType::Hibiki);
        assert_eq!(config.files.moshi_name.as_deref(), Some("hibiki.safetensors"));
        assert_eq!((config.text_card, config.text_card_out, config.card), (48_000, 48_000, 2048));
        assert_eq!((config.num_codebooks, config.num_generated), (16, 8));
        let side = [0, 2, 2, 2, 2, 2, 2, 2];
        assert_eq!(config.delays, [&[0][..], &side, &side].concat());
        assert_eq!(config.temporal.shape.gated_widths()[1], 5632);
        assert_eq!(config.fuser.sum, ["description"]);
        let told = format!("{HIBIKI}\n[gen]\nacoustic_delay = 1\n");
        assert_eq!(parse(&told).unwrap().max_delay(), 1);
    }

    #[test]
    fn a_servers_only_model_parses() {
        let config = parse(SERVER).unwrap();
        assert_eq!(config.model_type, ModelType::Stt);
        assert_eq!(config.num_user_codebooks(), 32);
        assert_eq!((config.num_extra_heads, config.extra_head_dim), (4, 6));
        assert_eq!(config.generation.text_temperature, 0.0);
        assert_eq!(config.conditioners[0].kind, delay(None));
    }

    fn delay(default: Option<f64>) -> ConditionerKind {
        ConditionerKind::Number { dim: 64, scale: 10.0, max_period: 10_000.0, default }
    }

    #[test]
    fn a_server_chooses_the_delay_of_a_conditioned_model() {
        let with = |line: &str| parse(&SERVER.replacen("type =", &format!("{line}\ntype ="), 1));
        for (line, default) in [
            ("conditioning_delay = 0.5", Some(-0.5)),
            ("conditioning_delay = 2", Some(-2.0)),
            ("conditioning_learnt_padding = true", None),
            ("conditioning_learnt_padding = false\nconditioning_delay = 0.5", Some(-0.5)),
        ] {
            assert_eq!(with(line).unwrap().conditioners[0].kind, delay(default), "{line}");
        }
        for line in [
            "conditioning_delay = 0.5\nconditioning_learnt_padding = true",
            "conditioning_delay = \"short\"",
            "conditioning_learnt_padding = 1",
            "asr_delay_in_tokens = -1",
        ] {
            let field = line.split(' ').next().unwrap();
            match with(line) {
                Err(Error::Config { field: f, .. }) => {
                    assert_eq!(f, format!("modules.asr.{field}"));
                }
                other => panic!("{line}: {other:?}"),
            }
        }
        let elsewhere = SERVER.replace("conditioners.delay", "conditioners.other");
        assert!(
            parse(&elsewhere.replacen("type =", "conditioning_learnt_padding = true\ntype =", 1))
                .is_ok()
        );
        let elsewhere = elsewhere.replacen("type =", "conditioning_delay = 0.5\ntype =", 1);
        assert!(parse(&elsewhere).unwrap_err().to_string().contains("leave it out"));
    }

    #[test]
    fn a_bare_shape_parses() {
        let bare = HIBIKI.replace("[model]\n", "").replace("[model.", "[");
        assert_eq!(parse(&bare).unwrap(), parse(HIBIKI).unwrap());
    }

    #[test]
    fn bad_files_name_the_field() {
        for (from, to, expected) in [
            ("d_model = 2048", "d_model = 2047", "model.transformer.num_heads"),
            ("context = 500", "context = 0", "model.transformer.context"),
            ("audio_codebooks = 16", "audio_codebooks = 4", "depformer.num_slices"),
            ("audio_vocab_size = 2049", "audio_vocab_size = 1", "model.audio_vocab_size"),
            ("text_in_vocab_size = 48001", "text_in_vocab_size = 2", "model.text_in_vocab_size"),
            ("n_bins = 31", "n_bins = 3", "conditioners.description.n_bins"),
            ("type = \"Lut\"", "type = \"Tensor\"", "conditioners.description.type"),
            ("norm = \"RmsNorm\"", "norm = \"LayerNorm\"", "transformer.norm"),
            ("bias_ff = false", "bias_ff = true", "transformer.bias_ff"),
            ("num_slices = 8", "num_slices = -1", "depformer.num_slices"),
            ("conv_layout = false", "cross_attention = [\"Normal\"]", "cross_attention"),
            ("max_period = 100000", "max_period = nan", "max_period"),
            ("[model]", "[other]", "model.audio_codebooks"),
        ] {
            assert!(HIBIKI.contains(from), "{from}");
            match parse(&HIBIKI.replacen(from, to, 1)) {
                Err(Error::Config { file, field, .. }) => {
                    assert!(field.ends_with(expected), "{to}: {field}");
                    assert_eq!(file, "config.toml");
                }
                other => panic!("{to}: {other:?}"),
            }
        }
        let two =
            format!("{SERVER}\n[modules.second]\n[modules.second.model]\naudio_codebooks = 1");
        assert!(parse(&two).unwrap_err().to_string().contains("exactly one"));
        assert!(matches!(parse("[model\n"), Err(Error::ConfigFile { .. })));
    }
}
