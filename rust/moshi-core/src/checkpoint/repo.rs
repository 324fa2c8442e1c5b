//! A local folder laid out like a public repository.

use std::path::{Path, PathBuf};

use crate::config::{LmConfig, MimiConfig};
use crate::error::{Error, Result};

/// Configs and file paths of a model folder.
#[derive(Clone, Debug)]
pub struct Repo {
    /// The folder.
    pub folder: PathBuf,
    /// Language-model config: `config.json`, or the built-in Moshi 7B where there is none.
    pub config: LmConfig,
    /// Codec config: the file that the config names, or the public Mimi.
    pub mimi_config: MimiConfig,
}

impl Repo {
    /// Opens a folder (or the `config.json` in it) and parses its configs; weights stay unread.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a missing folder, else as the config parsers.
    pub fn open(path: &Path) -> Result<Self> {
        let folder = if path.is_file() && path.file_name().is_some_and(|n| n == "config.json") {
            path.parent().unwrap_or(Path::new(".")).to_path_buf()
        } else {
            path.to_path_buf()
        };
        if !folder.is_dir() {
            let hint = if folder.is_file() {
                ": expected a folder with config.json and the files that it names"
            } else {
                ": expected a model folder; to get one from a hub, download the repository \
                 first, for example with `hf download OWNER/REPO --local-dir FOLDER`"
            };
            return Err(Error::NotFound { path: folder, hint: hint.into() });
        }
        let config_path = folder.join("config.json");
        let config = if config_path.exists() {
            LmConfig::from_json(&config_path.display().to_string(), &read_text(&config_path)?)?
        } else if folder.join("model.safetensors").exists() {
            log::info!("{}: no config.json, taken for Moshi 7B", folder.display());
            LmConfig::moshi_7b()
        } else {
            let hint = ": a model folder holds config.json and the files that it names";
            return Err(Error::NotFound { path: config_path, hint: hint.into() });
        };
        let mimi_config = match &config.files.mimi_config_name {
            None => MimiConfig::default(),
            Some(name) => codec_config(&resolve(&folder, name)?)?,
        };
        Ok(Self { folder, config, mimi_config })
    }

    /// Language-model weights.
    ///
    /// # Errors
    /// [`Error::Config`] for a name that leaves the folder.
    pub fn moshi_path(&self) -> Result<PathBuf> {
        resolve(&self.folder, &self.config.files.moshi_name)
    }

    /// Codec weights.
    ///
    /// # Errors
    /// As [`Repo::moshi_path`].
    pub fn mimi_path(&self) -> Result<PathBuf> {
        resolve(&self.folder, &self.config.files.mimi_name)
    }

    /// SentencePiece model.
    ///
    /// # Errors
    /// As [`Repo::moshi_path`].
    pub fn tokenizer_path(&self) -> Result<PathBuf> {
        resolve(&self.folder, &self.config.files.tokenizer_name)
    }

    /// Adapter weights, when the config names some.
    ///
    /// # Errors
    /// As [`Repo::moshi_path`].
    pub fn lora_path(&self) -> Result<Option<PathBuf>> {
        self.config.files.lora_name.as_ref().map(|name| resolve(&self.folder, name)).transpose()
    }
}

/// A codec on its own: weights and config.
#[derive(Clone, Debug)]
pub struct CodecFiles {
    /// Safetensors file.
    pub weights: PathBuf,
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
            let own = path.with_file_name("mimi_config.json");
            let theirs = path.with_file_name("config.json");
            let config = if own.exists() {
                codec_config(&own)?
            } else if is_codec_config(&theirs) {
                codec_config(&theirs)?
            } else {
                MimiConfig::default()
            };
            return Ok(Self { weights: path.into(), config });
        }
        let config_path = path.join("config.json");
        if is_codec_config(&config_path) {
            return Self::open(&path.join("model.safetensors"));
        }
        let alone = path.join("mimi.safetensors");
        if !config_path.exists() && alone.exists() {
            return Self::open(&alone);
        }
        let repo = Repo::open(path)?;
        Ok(Self { weights: repo.mimi_path()?, config: repo.mimi_config })
    }
}

/// True for a `config.json` of Hugging Face's codec class.
fn is_codec_config(path: &Path) -> bool {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    json["model_type"] == "mimi"
}

fn codec_config(path: &Path) -> Result<MimiConfig> {
    MimiConfig::from_json(&path.display().to_string(), &read_text(path)?)
}

/// Reads a text file.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| Error::read(path, e))
}

/// A file of a repository. A config is untrusted: plain names stay inside the folder.
fn resolve(folder: &Path, name: &str) -> Result<PathBuf> {
    let refuse = |reason: &str| Error::Config {
        file: folder.join("config.json").display().to_string(),
        field: "file name".into(),
        value: format!("\"{name}\""),
        reason: reason.into(),
    };
    if let Some(path) = name.strip_prefix("file://") {
        return Ok(PathBuf::from(path));
    }
    if let Some(rest) = name.strip_prefix("hf://") {
        let local = rest.rsplit('/').next().unwrap_or(rest);
        let path = folder.join(local);
        if path.exists() {
            return Ok(path);
        }
        let hint = format!(": it is {name}; download it into the model folder");
        return Err(Error::NotFound { path, hint });
    }
    let plain = Path::new(name).components().all(|c| matches!(c, std::path::Component::Normal(_)));
    if name.is_empty() || !plain {
        return Err(refuse("must be a file inside the model folder"));
    }
    Ok(folder.join(name))
}
