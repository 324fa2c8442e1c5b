//! Model repositories on the Hugging Face hub, as a [`FileSource`].
//!
//! A model is given by name: an existing path is that folder or file, `owner/name` is a repository
//! on the hub. Its files are downloaded when they are first asked for, verified, and kept in the
//! cache that Python's `huggingface_hub` uses, so that each finds what the other has downloaded.
//!
//! - [`HubOptions`]: endpoint, cache, token, revision; the only place that reads the environment.
//! - [`HubRepo`]: one repository at one revision, pinned to a commit at first use.
//! - [`Progress`]: how downloads are shown and stopped.
#![forbid(unsafe_code)]

mod cache;
mod client;
mod download;
mod failure;
mod options;
mod progress;
mod repo;

use std::path::Path;
use std::sync::Arc;

use moshi_core::checkpoint::{CodecFiles, FileSource, Folder, Repo};
use moshi_core::{Error, Result};

pub use options::HubOptions;
pub use progress::{Progress, Silent};
pub use repo::HubRepo;

/// The repository that `name` stands for: an existing folder, or `owner/name` on the hub.
///
/// # Errors
/// [`Error::NotFound`] when it is neither, [`Error::Input`] for a revision that cannot be. What
/// is on the hub shows when a file is asked for.
pub fn open_source(name: &Path, options: &HubOptions) -> Result<Arc<dyn FileSource>> {
    match on_hub(name, options)? {
        Some(repo) => Ok(repo),
        None => Ok(Arc::new(Folder::open(name)?)),
    }
}

/// Opens a model: a folder, a file in one, or `owner/name` on the hub.
///
/// # Errors
/// As [`open_source`] and [`Repo::open`].
pub fn open_repo(name: &Path, options: &HubOptions) -> Result<Repo> {
    match on_hub(name, options)? {
        Some(repo) => Repo::from_source(repo),
        None => Repo::open(name),
    }
}

/// Opens a codec: a folder, a file, or `owner/name` on the hub.
///
/// # Errors
/// As [`open_source`] and [`CodecFiles::open`].
pub fn open_codec(name: &Path, options: &HubOptions) -> Result<CodecFiles> {
    match on_hub(name, options)? {
        Some(repo) => CodecFiles::from_source(repo),
        None => CodecFiles::open(name),
    }
}

/// The repository on the hub that `name` stands for; `None` for a path, existing or not.
fn on_hub(name: &Path, options: &HubOptions) -> Result<Option<Arc<HubRepo>>> {
    if name.as_os_str().is_empty() {
        // As from a variable that is not set; else it would be the current folder.
        return Err(Error::Config {
            file: "option".into(),
            field: "model".into(),
            value: "\"\"".into(),
            reason: "expected a folder, a file in one, or OWNER/NAME".into(),
        });
    }
    if name.exists() {
        return match &options.revision {
            None => Ok(None),
            Some(revision) => Err(Error::Config {
                file: "option".into(),
                field: "revision".into(),
                value: format!("\"{revision}\""),
                reason: format!("only a hub has revisions, and {} is a path", name.display()),
            }),
        };
    }
    let repo = name.to_str().filter(|name| is_repo_name(name));
    repo.map(|repo| Ok(Arc::new(HubRepo::new(repo, options)?))).transpose()
}

/// Longest part of a repository's name.
const MAX_PART_BYTES: usize = 96;
/// A missing file with one of these endings is a mistyped path and no repository.
const FILE_ENDINGS: [&str; 4] = [".safetensors", ".gguf", ".json", ".git"];

/// True for `owner/name` as a hub accepts it.
fn is_repo_name(name: &str) -> bool {
    let legal_part = |part: &str| {
        let edge = |c: char| c.is_ascii_alphanumeric() || c == '_';
        (1..=MAX_PART_BYTES).contains(&part.len())
            && part.starts_with(edge)
            && part.ends_with(edge)
            && part.chars().all(|c| edge(c) || c == '-' || c == '.')
            && !part.contains("--")
            && !part.contains("..")
    };
    let Some((owner, rest)) = name.split_once('/') else { return false };
    legal_part(owner) && legal_part(rest) && !FILE_ENDINGS.iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_has_an_owner_and_a_name() {
        for name in ["kyutai/moshiko-pytorch-bf16", "a/b", "A_1/x.y-z_", "o/v0.1"] {
            assert!(is_repo_name(name), "{name}");
        }
        let long = format!("a/{}", "b".repeat(MAX_PART_BYTES + 1));
        for name in [
            "",
            "a",
            "/",
            "a/",
            "/b",
            "a/b/c",
            "./b",
            "../b",
            "a/..",
            "a/.b",
            "-a/b",
            "a/b-",
            "a/b--c",
            "a b/c",
            "a\\b/c",
            "a/b:c",
            "ä/b",
            "a/model.safetensors",
            "a/config.json",
            "~/models",
            &long,
        ] {
            assert!(!is_repo_name(name), "{name}");
        }
    }

    #[test]
    fn anything_else_says_both_readings() {
        let error = open_source(Path::new("no/such/folder"), &HubOptions::default()).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::NotFound { .. }), "{text}");
        assert!(text.contains("no/such/folder") && text.contains("OWNER/NAME"), "{text}");
    }

    #[test]
    fn an_empty_name_is_not_the_current_folder() {
        let options = HubOptions::default();
        let error = open_source(Path::new(""), &options).unwrap_err();
        assert!(matches!(error, Error::Config { .. }), "{error}");
        assert!(open_repo(Path::new(""), &options).is_err());
        assert!(open_codec(Path::new(""), &options).is_err());
    }

    #[test]
    fn a_path_has_no_revision() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let options = HubOptions { revision: Some("main".into()), ..HubOptions::default() };
        let error = open_source(folder.path(), &options).unwrap_err();
        assert!(matches!(error, Error::Config { .. }), "{error}");
        let source = open_source(folder.path(), &HubOptions::default()).expect("a folder");
        assert_eq!(source.label(), folder.path().display().to_string());
    }
}
