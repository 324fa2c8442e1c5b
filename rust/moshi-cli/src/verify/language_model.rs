//! Cases of kind `language_model`: greedy steps from given user tokens.

use moshi_core::checkpoint::{SourceFile, TensorFile};
use moshi_core::config::LmConfig;
use moshi_core::exec::Executor;
use moshi_core::lm::{
    Condition, Conditions, Guidance, LanguageModel, LmOptions, LmSlot, LmStreamOptions, NoHooks,
    Sampling,
};
use moshi_core::{Error, Result};
use serde_json::Value;

use super::{Case, Computed, Results, Values};

pub(super) fn compute<E: Executor>(
    exec: &E,
    case: &Case,
    suffix: &str,
    file: &TensorFile,
) -> Result<Results> {
    let config_name = format!("config{suffix}.json");
    let config = LmConfig::from_json(&config_name, &case.text(&config_name)?)?;
    let options = LmOptions {
        dtype: Some(moshi_core::lm::WeightType::F32),
        lora: config
            .files
            .lora_name
            .as_ref()
            .map(|name| SourceFile::on_disk(case.folder.join(name))),
        ..LmOptions::default()
    };
    let weights = config.files.moshi_name.as_deref().unwrap_or("model.safetensors");
    let lm = LanguageModel::load(exec, &case.folder.join(weights), &config, &options)?;
    let stream = LmStreamOptions {
        conditions: conditions(case, "conditions", true)?,
        guidance: guidance(case)?,
    };
    let mut state = lm.new_state(&stream)?;

    let info = file.info("user_tokens")?;
    let [1, streams, steps] = info.shape[..] else {
        return Err(Error::Checkpoint {
            path: file.path().into(),
            reason: format!("user_tokens has shape {:?}, expected [1, n, steps]", info.shape),
        });
    };
    let user = file.read_i64("user_tokens")?;
    let sampling = Sampling::greedy();
    let (mut rows, mut text_logits) = (Vec::new(), Vec::new());
    let (mut depth_logits, mut heads) = (Vec::new(), Vec::new());
    for t in 0..steps {
        let user_tokens: Vec<i64> = (0..streams).map(|k| user[k * steps + t]).collect();
        let mut slots = [LmSlot {
            state: &mut state,
            user_tokens: &user_tokens,
            sampling: &sampling,
            seed: 0,
            hooks: &mut NoHooks,
            trace: true,
        }];
        let output = lm.step(&mut slots)?.pop().expect("one slot");
        rows.extend(output.row);
        text_logits.extend(output.text_logits);
        heads.extend(output.extra_heads.concat());
        depth_logits.extend(output.trace.expect("asked for").depth_logits.concat().concat());
    }

    let width = 1 + config.num_generated;
    let tokens = (0..width).flat_map(|k| rows.iter().map(move |row| row[k])).collect();
    let mut computed = vec![
        Computed {
            name: "tokens".into(),
            shape: vec![1, width, rows.len()],
            values: Values::Tokens(tokens),
            step_axis: 2,
            ignore: None,
        },
        floats("text_logits", vec![steps, config.text_card_out], text_logits),
    ];
    if config.num_generated > 0 {
        let branches = if stream.guidance.is_some() { 2 } else { 1 };
        let shape = vec![steps, config.num_generated, branches, config.card];
        computed.push(floats("depformer_logits", shape, depth_logits));
    }
    if config.num_extra_heads > 0 {
        let shape = vec![steps, config.num_extra_heads, config.extra_head_dim];
        computed.push(floats("extra_heads", shape, heads));
    }
    Ok(Results { inputs: vec!["user_tokens"], computed })
}

fn floats(name: &str, shape: Vec<usize>, values: Vec<f32>) -> Computed {
    let values = Values::Floats(values);
    Computed { name: name.into(), shape, values, step_axis: 0, ignore: None }
}

fn guidance(case: &Case) -> Result<Option<Guidance>> {
    let Some(value) = case.json.get("cfg_coef").filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    let coefficient =
        value.as_f64().ok_or_else(|| case.field_error("cfg_coef", "expected a number"))?;
    if (coefficient - 1.0).abs() < f64::EPSILON {
        return Ok(None);
    }
    let given = case.json.get("null_conditions").is_some_and(|value| !value.is_null());
    let null_conditions =
        if given { Some(conditions(case, "null_conditions", false)?) } else { None };
    let flag = |name: &str| case.json[name].as_bool().unwrap_or(false);
    Ok(Some(Guidance {
        coefficient,
        null_conditions,
        no_text: flag("cfg_is_no_text"),
        masked_until: case.json["cfg_is_masked_until"].as_u64(),
    }))
}

/// Text conditions by name, and sequences from files.
fn conditions(case: &Case, field: &str, sequences: bool) -> Result<Conditions> {
    let mut conditions = Conditions::new();
    if let Some(map) = case.json[field].as_object() {
        for (name, value) in map {
            let condition = match value {
                Value::String(text) => Condition::Text(text.clone()),
                Value::Null => Condition::Null,
                _ => return Err(case.field_error(field, "expected texts by name")),
            };
            conditions.insert(name.clone(), condition);
        }
    }
    let map = case.json["tensor_conditions"].as_object().filter(|_| sequences);
    for (name, spec) in map.into_iter().flatten() {
        let part = |key: &str| {
            spec[key].as_str().ok_or_else(|| {
                case.field_error("tensor_conditions", "needs `file`, `tensor` and `mask`")
            })
        };
        let file = TensorFile::open(&case.folder.join(part("file")?))?;
        conditions.insert(
            name.clone(),
            Condition::Sequence {
                values: file.read_f32(part("tensor")?)?,
                mask: file.read_i64(part("mask")?)?.into_iter().map(|m| m != 0).collect(),
            },
        );
    }
    Ok(conditions)
}
