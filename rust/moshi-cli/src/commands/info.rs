//! `moshi-rs info`: what a folder holds, without loading weights.

use moshi_core::checkpoint::{Repo, TensorFile};
use serde_json::json;

use crate::options::InfoArgs;
use crate::output::{Result, line};

pub(crate) fn info(args: &InfoArgs) -> Result<i32> {
    let repo = Repo::open(&args.model)?;
    let config = &repo.config;
    let moshi = TensorFile::open(&repo.moshi_path()?)?;
    let mimi = TensorFile::open(&repo.mimi_path()?)?;
    let parameters = |file: &TensorFile| -> u64 {
        file.tensors().values().map(|t| t.shape.iter().product::<usize>() as u64).sum()
    };
    let temporal = &config.temporal;
    let facts = json!({
        "folder": repo.folder.display().to_string(),
        "model_type": config.model_type.name(),
        "language_model": {
            "file": moshi.path().display().to_string(),
            "bytes": moshi.len_bytes(),
            "parameters": parameters(&moshi),
            "tensors": moshi.tensors().len(),
            "dim": temporal.shape.dim,
            "layers": temporal.shape.num_layers,
            "heads": temporal.shape.heads.query,
            "context_frames": temporal.context,
            "text_vocabulary": config.text_card,
            "audio_streams_in": config.num_user_codebooks(),
            "audio_streams_out": config.num_generated,
            "latency_frames": config.max_delay(),
            "depth_layers": config.depth.as_ref().map_or(0, |d| d.shape.num_layers),
            "conditions": config.conditioners.iter().map(|c| c.name.clone()).collect::<Vec<_>>(),
        },
        "codec": {
            "file": mimi.path().display().to_string(),
            "bytes": mimi.len_bytes(),
            "parameters": parameters(&mimi),
            "sample_rate_hz": repo.mimi_config.sample_rate_hz,
            "frame_rate_hz": repo.mimi_config.frame_rate_hz(),
            "frame_samples": repo.mimi_config.frame_samples,
            "codebooks_used": config.codec_codebooks(),
            "codebooks_stored": repo.mimi_config.total_codebooks,
            "codebook_size": repo.mimi_config.codebook_size,
        },
        "tokenizer": repo.tokenizer_path()?.display().to_string(),
    });
    if args.json {
        line(format_args!("{facts:#}"))?;
        return Ok(0);
    }
    for (section, value) in facts.as_object().into_iter().flatten() {
        match value.as_object() {
            None => line(format_args!("{section}: {}", plain(value)))?,
            Some(fields) => {
                line(format_args!("{section}:"))?;
                for (name, value) in fields {
                    line(format_args!("  {name}: {}", plain(value)))?;
                }
            }
        }
    }
    Ok(0)
}

fn plain(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
