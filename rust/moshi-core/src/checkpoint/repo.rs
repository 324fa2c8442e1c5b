//! A model repository: its configs, and the files that they name.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::source::{FileSource, Folder, SourceFile, is_plain};
use crate::config::{LmConfig, MimiConfig};
use crate::error::{Error, Result};

/// Parsed configs of a model repository and the way to its files.
#[derive(Clone, Debug)]
pub struct Repo {
    /// Language-model config: `config.json`, `config.toml`, or the built-in Moshi 7B where there
    /// is neither.
    pub config: LmConfig,
    /// Codec config: the file that the config names, or the public Mimi.
    pub mimi_config: MimiConfig,
    source: Arc<dyn FileSource>,
    config_name: String,
    weights_name: String,
}

impl Repo {
    /// Opens a folder, or a config or a weights file in one, and parses its configs; weights stay
    /// unread. A weights file takes the place of the one that the config names.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a missing folder, else as the config parsers.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.is_file() {
            return Self::from_source(Arc::new(Folder::open(path)?));
        }
        let folder = Arc::new(Folder::open(path.parent().unwrap_or(Path::new(".")))?);
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("json" | "toml") => Self::with_files(folder, Some(name), None),
            _ => Self::with_files(folder, None, Some(name)),
        }
    }

    /// Opens a repository wherever its files come from.
    ///
    /// # Errors
    /// As [`Repo::open`], and those of the source.
    pub fn from_source(source: Arc<dyn FileSource>) -> Result<Self> {
        Self::with_files(source, None, None)
    }

    fn with_files(
        source: Arc<dyn FileSource>,
        config_name: Option<&str>,
        weights_name: Option<&str>,
    ) -> Result<Self> {
        let found = match config_name {
            Some(name) => Some(name),
            None => first_present(&*source, &CONFIG_NAMES)?,
        };
        let config = match found {
            None => LmConfig::moshi_7b(),
            Some(name) => {
                let file = required(&*source, name)?;
                let (file, text) = (file.path().display().to_string(), read_text(&file)?);
                if is_toml(name) {
                    LmConfig::from_toml(&file, &text)?
                } else {
                    LmConfig::from_json(&file, &text)?
                }
            }
        };
        let weights_name = match (weights_name, &config.files.moshi_name) {
            (Some(given), _) => given.to_owned(),
            (None, Some(named)) => named.clone(),
            (None, None) => only_weights(&*source)?,
        };
        if found.is_none() {
            log::info!("{}: no config.json, taken for Moshi 7B", source.label());
        }
        let mut repo = Self {
            config,
            mimi_config: MimiConfig::default(),
            source,
            config_name: found.unwrap_or(CONFIG_NAMES[0]).into(),
            weights_name,
        };
        if let Some(name) = &repo.config.files.mimi_config_name {
            repo.mimi_config = codec_config(&repo.resolve("mimi_config_name", name)?)?;
        }
        Ok(repo)
    }

    /// How messages call it: the folder's path, `owner/name`, or what it is.
    pub fn label(&self) -> String {
        self.source.label()
    }

    /// The config file's name as errors show it.
    pub fn config_file(&self) -> String {
        format!("{}/{}", self.label(), self.config_name)
    }

    /// Where its files come from.
    pub fn source(&self) -> &dyn FileSource {
        &*self.source
    }

    /// Language-model weights.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such file, [`Error::Config`] for a name that leaves
    /// the repository, which only a local folder's config may have, as `file://PATH`.
    pub fn moshi_file(&self) -> Result<SourceFile> {
        self.resolve("moshi_name", &self.weights_name)
    }

    /// Codec weights.
    ///
    /// # Errors
    /// As [`Repo::moshi_file`].
    pub fn mimi_file(&self) -> Result<SourceFile> {
        self.resolve("mimi_name", &self.config.files.mimi_name)
    }

    /// SentencePiece model.
    ///
    /// # Errors
    /// As [`Repo::moshi_file`].
    pub fn tokenizer_file(&self) -> Result<SourceFile> {
        self.resolve("tokenizer_name", &self.config.files.tokenizer_name)
    }

    /// Adapter weights, when the config names some.
    ///
    /// # Errors
    /// As [`Repo::moshi_file`].
    pub fn lora_file(&self) -> Result<Option<SourceFile>> {
        let name = self.config.files.lora_name.as_ref();
        name.map(|name| self.resolve("lora_name", name)).transpose()
    }

    /// A file that a config names. A config is untrusted: plain names stay inside the repository.
    fn resolve(&self, field: &str, name: &str) -> Result<SourceFile> {
        let refuse = |reason: &str| Error::Config {
            file: self.config_file(),
            field: field.into(),
            value: format!("\"{name}\""),
            reason: reason.into(),
        };
        if let Some(path) = name.strip_prefix("file://") {
            if !self.source.is_local() {
                return Err(refuse(
                    "only a model folder may name files outside; download this one",
                ));
            }
            return Ok(SourceFile::on_disk(path));
        }
        if let Some(rest) = name.strip_prefix("hf://") {
            let slashes: Vec<usize> = rest.match_indices('/').map(|(i, _)| i).collect();
            let &[_, second, ..] = slashes.as_slice() else {
                return Err(refuse("expected hf://OWNER/NAME/FILE"));
            };
            let (repo, file) = (&rest[..second], &rest[second + 1..]);
            if !is_plain(repo) || !is_plain(file) {
                return Err(refuse("expected hf://OWNER/NAME/FILE"));
            }
            return self.source.find_elsewhere(repo, file);
        }
        if !is_plain(name) {
            return Err(refuse("must be a file inside the model folder"));
        }
        required(&*self.source, name)
    }
}

const CONFIG_NAMES: [&str; 2] = ["config.json", "config.toml"];
/// Weights of a repository whose config names none, before its only GGUF file is taken.
const DEFAULT_WEIGHTS: &str = "model.safetensors";

fn is_toml(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == "toml")
}

fn first_present<'n>(source: &dyn FileSource, names: &[&'n str]) -> Result<Option<&'n str>> {
    for &name in names {
        if source.find(name)?.is_some() {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// The weights of a repository whose config names none.
fn only_weights(source: &dyn FileSource) -> Result<String> {
    let names = source.list()?;
    if names.iter().any(|name| name == DEFAULT_WEIGHTS) {
        return Ok(DEFAULT_WEIGHTS.into());
    }
    let is_weights = |name: &&String| {
        let extension = Path::new(name).extension().unwrap_or_default();
        extension == "gguf" || name.starts_with("model.") && extension == "safetensors"
    };
    let candidates: Vec<&String> = names.iter().filter(is_weights).collect();
    match candidates.as_slice() {
        [only] => Ok((*only).clone()),
        several => {
            let hint = if several.is_empty() {
                ": a model folder holds config.json and the files that it names".to_owned()
            } else {
                format!(": the folder has {several:?}; name one of these files as the model")
            };
            Err(Error::NotFound { path: in_source(source, DEFAULT_WEIGHTS), hint })
        }
    }
}

fn required(source: &dyn FileSource, name: &str) -> Result<SourceFile> {
    let missing = || Error::NotFound { path: in_source(source, name), hint: source.hint(name) };
    source.find(name)?.ok_or_else(missing)
}

fn in_source(source: &dyn FileSource, name: &str) -> PathBuf {
    Path::new(&source.label()).join(name)
}

/// A codec on its own: weights and config.
#[derive(Clone, Debug)]
pub struct CodecFiles {
    /// Safetensors file.
    pub weights: SourceFile,
    /// Config, the public Mimi's where the files carry none.
    pub config: MimiConfig,
}

impl CodecFiles {
    /// Finds a codec in a model folder, in a folder with a codec alone, or as a safetensors file.
    /// Its config is `mimi_config.json`, or a `config.json` of Hugging Face's kind, beside the
    /// weights, else that of the public Mimi.
    ///
    /// # Errors
    /// [`Error::NotFound`], else as the config parsers.
    pub fn open(path: &Path) -> Result<Self> {
        let extension = path.extension().unwrap_or_default();
        if extension == "safetensors" || path.is_file() && extension != "json" {
            let folder = path.parent().unwrap_or(Path::new("."));
            let config = match Folder::open(folder) {
                Ok(folder) => config_beside_codec(&folder)?,
                // The missing file is named when it is opened.
                Err(_) => MimiConfig::default(),
            };
            return Ok(Self { weights: path.into(), config });
        }
        let folder = if path.is_file() { path.parent().unwrap_or(Path::new(".")) } else { path };
        Self::from_source(Arc::new(Folder::open(folder)?))
    }

    /// Finds the codec of a repository, as [`CodecFiles::open`] does in a folder.
    ///
    /// # Errors
    /// As [`CodecFiles::open`], and those of the source.
    pub fn from_source(source: Arc<dyn FileSource>) -> Result<Self> {
        if let Some(name) = lone_codec(&*source)? {
            let config = config_beside_codec(&*source)?;
            return Ok(Self { weights: required(&*source, name)?, config });
        }
        let repo = Repo::from_source(source)?;
        Ok(Self { weights: repo.mimi_file()?, config: repo.mimi_config })
    }

    /// Weights, which may be missing, and config of the codec of a source that is no model; `None`
    /// where there is none either.
    ///
    /// # Errors
    /// As the config parsers, and those of the source.
    pub fn alone(source: &dyn FileSource) -> Result<Option<(Result<SourceFile>, MimiConfig)>> {
        let Some(name) = lone_codec(source)? else { return Ok(None) };
        Ok(Some((required(source, name), config_beside_codec(source)?)))
    }
}

/// Name of the weights of a codec that needs no model's config to be found.
fn lone_codec(source: &dyn FileSource) -> Result<Option<&'static str>> {
    match source.find("config.json")? {
        Some(file) if is_codec_config(&file)? => Ok(Some("model.safetensors")),
        Some(_) => Ok(None),
        // Asked of the list, as weights may stay on a hub.
        None => {
            let weights = "mimi.safetensors";
            Ok(source.list()?.iter().any(|name| name == weights).then_some(weights))
        }
    }
}

fn config_beside_codec(source: &dyn FileSource) -> Result<MimiConfig> {
    if let Some(own) = source.find("mimi_config.json")? {
        return codec_config(&own);
    }
    match source.find("config.json")? {
        Some(theirs) if is_codec_config(&theirs)? => codec_config(&theirs),
        _ => Ok(MimiConfig::default()),
    }
}

/// True for a `config.json` of Hugging Face's codec class.
fn is_codec_config(file: &SourceFile) -> Result<bool> {
    let json: serde_json::Value = serde_json::from_str(&read_text(file)?).map_err(|e| {
        Error::ConfigFile { file: file.path().display().to_string(), reason: e.to_string() }
    })?;
    Ok(json["model_type"] == "mimi")
}

fn codec_config(file: &SourceFile) -> Result<MimiConfig> {
    MimiConfig::from_json(&file.path().display().to_string(), &read_text(file)?)
}

/// Reads a text file of a size that configs have.
fn read_text(file: &SourceFile) -> Result<String> {
    // Also an error for a pipe or a device, which may never end.
    let bytes = file.bytes()?;
    let bad = |reason| Error::ConfigFile { file: file.path().display().to_string(), reason };
    if bytes.len() > MAX_TEXT_BYTES {
        return Err(bad(format!("has {} bytes; at most {MAX_TEXT_BYTES} are read", bytes.len())));
    }
    String::from_utf8(bytes.to_vec()).map_err(|e| bad(format!("is not UTF-8 text: {e}")))
}

const MAX_TEXT_BYTES: usize = 4 << 20;
