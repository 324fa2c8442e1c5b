//! `moshi-rs info`: what a model is and whose, without loading or downloading weights.

use std::path::Path;

use moshi_core::Error;
use moshi_core::checkpoint::{CodecFiles, FileSource, Repo, SourceFile, TensorFile};
use moshi_core::config::MimiConfig;
use moshi_hub::HubOptions;
use serde_json::{Value, json};

use crate::card::{self, Card};
use crate::hub;
use crate::options::InfoArgs;
use crate::output::{CliError, Result, line, one_line};

pub(crate) fn info(args: &InfoArgs) -> Result<i32> {
    let options = HubOptions { skip_weights: true, ..hub::options(args.revision.as_ref()) };
    if args.card {
        return print_card(args, &options);
    }
    let facts = if args.model.as_ref().is_some_and(|model| model.is_file()) {
        of_model(&moshi_box::open_repo(args.model.as_deref(), &options)?)?
    } else {
        let source = moshi_box::open_source(args.model.as_deref(), &options)?;
        match Repo::from_source(source.clone()) {
            Ok(repo) => of_model(&repo)?,
            Err(error) => match CodecFiles::alone(&*source) {
                Ok(Some((weights, config))) => of_codec(&*source, weights, &config)?,
                Ok(None) | Err(_) => return Err(error.into()),
            },
        }
    };
    if args.json {
        line(format_args!("{facts:#}"))?;
        return Ok(0);
    }
    for (section, value) in facts.as_object().into_iter().flatten() {
        match value.as_object() {
            None => line(one_line(&format!("{section}: {}", plain(value))))?,
            Some(fields) => {
                line(format_args!("{section}:"))?;
                for (name, value) in fields {
                    line(one_line(&format!("  {name}: {}", plain(value))))?;
                }
            }
        }
    }
    Ok(0)
}

/// The model card, without the front matter that is for programs.
fn print_card(args: &InfoArgs, options: &HubOptions) -> Result<i32> {
    let source = match args.model.as_deref().filter(|model| model.is_file()) {
        // The folder of a file.
        Some(file) => moshi_box::open_source(file.parent(), options)?,
        None => moshi_box::open_source(args.model.as_deref(), options)?,
    };
    let label = source.label();
    let card = source
        .find("README.md")?
        .ok_or_else(|| CliError::Input(format!("{label} has no model card (README.md)")))?;
    for text in card::body(&card)?.lines() {
        line(one_line(text))?;
    }
    Ok(0)
}

fn of_model(repo: &Repo) -> Result<Value> {
    let config = &repo.config;
    let temporal = &config.temporal;
    let origin = origin(repo.source(), repo.moshi_file().ok())?;
    let mut language_model = weights(repo.moshi_file())?;
    extend(
        &mut language_model,
        json!({
            "dim": temporal.shape.dim,
            "layers": temporal.shape.num_layers,
            "heads": temporal.shape.heads.query,
            "context_frames": temporal.context,
            "text_vocabulary": config.text_card,
            "audio_streams_in": config.num_user_codebooks(),
            "audio_streams_out": config.num_generated,
            "latency_frames": config.max_delay(),
            "depth_layers": config.depth.as_ref().map_or(0, |d| d.shape.num_layers),
            "conditions": config.conditioners.iter().map(|c| &c.name).collect::<Vec<_>>(),
        }),
    );
    let mut codec = codec(repo.mimi_file(), &repo.mimi_config)?;
    extend(&mut codec, json!({ "codebooks_used": config.codec_codebooks() }));
    let (tokenizer, present) = match repo.tokenizer_file() {
        Err(Error::NotFound { path, .. }) => (path, false),
        file => (file?.path().to_owned(), true),
    };
    Ok(json!({
        "folder": repo.label(),
        "model_type": config.model_type.name(),
        "origin": origin,
        "language_model": language_model,
        "codec": codec,
        "tokenizer": { "file": tokenizer.display().to_string(), "present": present },
    }))
}

/// A repository that holds a codec and no model.
fn of_codec(
    source: &dyn FileSource,
    weights: moshi_core::Result<SourceFile>,
    config: &MimiConfig,
) -> Result<Value> {
    Ok(json!({
        "folder": source.label(),
        "model_type": "mimi",
        "origin": origin(source, weights.as_ref().ok().cloned())?,
        "codec": codec(weights, config)?,
    }))
}

fn codec(file: moshi_core::Result<SourceFile>, config: &MimiConfig) -> Result<Value> {
    let mut codec = weights(file)?;
    extend(
        &mut codec,
        json!({
            "sample_rate_hz": config.sample_rate_hz,
            "frame_rate_hz": config.frame_rate_hz(),
            "frame_samples": config.frame_samples,
            "codebooks_stored": config.total_codebooks,
            "codebook_size": config.codebook_size,
        }),
    );
    Ok(codec)
}

/// Size of a weights file, or that it is not there.
fn weights(file: moshi_core::Result<SourceFile>) -> Result<Value> {
    let file = match file.and_then(TensorFile::open) {
        Err(Error::NotFound { path, .. }) => {
            return Ok(json!({ "file": path.display().to_string(), "present": false }));
        }
        file => file?,
    };
    let path = file.path();
    let parameters: u64 =
        file.tensors().values().map(|t| t.shape.iter().product::<usize>() as u64).sum();
    Ok(json!({
        "file": path.display().to_string(),
        "present": true,
        "bytes": file.len_bytes(),
        "parameters": parameters,
        "tensors": file.tensors().len(),
    }))
}

fn extend(object: &mut Value, more: Value) {
    if let (Value::Object(object), Value::Object(more)) = (object, more) {
        object.extend(more);
    }
}

/// Licence and attribution, as the repository states them: `null` is what it does not state.
fn origin(source: &dyn FileSource, weights: Option<SourceFile>) -> Result<Value> {
    let card = match source.find("README.md")? {
        Some(file) => Card::read(&file)?,
        None => Card::default(),
    };
    let licence_file = source.list()?.into_iter().find(|name| is_licence(name));
    // Metadata of the weights' file, where it is here.
    let metadata = weights.and_then(|file| TensorFile::open(file).ok());
    let metadata = metadata.map(|file| file.metadata().clone()).unwrap_or_default();
    Ok(json!({
        "owner": label_owner(&source.label()),
        "license": card.text("license"),
        "license_name": card.text("license_name"),
        "license_link": card.text("license_link"),
        "license_file": licence_file,
        "base_model": card.text("base_model"),
        "datasets": card.text("datasets"),
        "weights_metadata": (!metadata.is_empty()).then_some(metadata),
    }))
}

/// The account of `owner/name`; `None` for a folder.
fn label_owner(label: &str) -> Option<&str> {
    let (owner, _) = label.split_once('/')?;
    (!Path::new(label).exists() && !owner.is_empty()).then_some(owner)
}

fn is_licence(name: &str) -> bool {
    let name = name.to_uppercase();
    ["LICENSE", "LICENCE", "COPYING"].iter().any(|start| name.starts_with(start))
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "not stated".into(),
        Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join(", "),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
