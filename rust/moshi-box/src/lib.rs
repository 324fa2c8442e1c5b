//! The model in the box: a checkpoint that the program carries in itself, and the default wherever
//! no model is named.
//!
//! Its files are those of the folder `checkpoint`, a repository in the official layout; they are
//! read where the program lies in memory, and touch no disk.
#![forbid(unsafe_code)]

use std::path::Path;
use std::sync::Arc;

use moshi_core::checkpoint::{CodecFiles, FileSource, InMemory, Repo};
use moshi_core::{Error, Result};
use moshi_hub::HubOptions;

/// How messages call it: no path and no repository on a hub can have this name by accident.
pub const LABEL: &str = "<model in the box>";

macro_rules! files {
    ($($name:literal),+ $(,)?) => {
        &[$(($name, include_bytes!(concat!("../checkpoint/", $name)))),+]
    };
}

/// Its files by name, with their contents.
pub static FILES: &[(&str, &[u8])] = files![
    "LICENSE",
    "README.md",
    "config.json",
    "mimi.safetensors",
    "mimi_config.json",
    "model.safetensors",
    "tokenizer.model",
];

/// The box as a repository of files.
pub fn source() -> Arc<dyn FileSource> {
    Arc::new(InMemory::new(LABEL, FILES))
}

/// Opens the model `name` as [`moshi_hub::open_repo`] does, or the box when none is named.
///
/// # Errors
/// Those of [`moshi_hub::open_repo`]; [`Error::Config`] for a revision without a name.
pub fn open_repo(name: Option<&Path>, options: &HubOptions) -> Result<Repo> {
    match name {
        Some(name) => moshi_hub::open_repo(name, options),
        None => Repo::from_source(default_source(options)?),
    }
}

/// The files of the model `name` as [`moshi_hub::open_source`] has them, or of the box when none is
/// named.
///
/// # Errors
/// Those of [`moshi_hub::open_source`]; [`Error::Config`] for a revision without a name.
pub fn open_source(name: Option<&Path>, options: &HubOptions) -> Result<Arc<dyn FileSource>> {
    match name {
        Some(name) => moshi_hub::open_source(name, options),
        None => default_source(options),
    }
}

/// Opens the codec of `name` as [`moshi_hub::open_codec`] does, or that of the box when none is
/// named.
///
/// # Errors
/// Those of [`moshi_hub::open_codec`]; [`Error::Config`] for a revision without a name.
pub fn open_codec(name: Option<&Path>, options: &HubOptions) -> Result<CodecFiles> {
    match name {
        Some(name) => moshi_hub::open_codec(name, options),
        None => CodecFiles::from_source(default_source(options)?),
    }
}

fn default_source(options: &HubOptions) -> Result<Arc<dyn FileSource>> {
    if let Some(revision) = &options.revision {
        return Err(Error::Config {
            file: "option".into(),
            field: "revision".into(),
            value: format!("\"{revision}\""),
            reason: "only a hub has revisions, and no model is named".into(),
        });
    }
    log::info!("no model is named: taking {LABEL}");
    Ok(source())
}
