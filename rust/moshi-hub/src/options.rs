//! Where the hub and its cache are. The variables and their defaults are those of Python's
//! `huggingface_hub`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::progress::{Progress, Silent};

/// How to reach a hub and where to keep its files.
#[derive(Clone)]
pub struct HubOptions {
    /// Address of the hub, without a slash at the end.
    pub endpoint: String,
    /// Folder of the cache.
    pub cache: PathBuf,
    /// Access token, for private and gated repositories.
    pub token: Option<String>,
    /// Branch, tag or commit; `None` is `main`.
    pub revision: Option<String>,
    /// Only use what the cache has.
    pub offline: bool,
    /// Take files of weights from the cache only; those that are not there count as missing.
    pub skip_weights: bool,
    /// PEM file of certificates to trust instead of the built-in ones.
    pub certificates: Option<PathBuf>,
    /// How long a silent server is waited for.
    pub timeout: Duration,
    /// Pause before the second attempt; doubled for each further one.
    pub retry_pause: Duration,
    /// Watches downloads.
    pub progress: Arc<dyn Progress>,
}

const PUBLIC_HUB: &str = "https://huggingface.co";

impl Default for HubOptions {
    /// The public hub and a cache in the current folder's `.cache`, without a token.
    fn default() -> Self {
        Self {
            endpoint: PUBLIC_HUB.into(),
            cache: ".cache/huggingface/hub".into(),
            token: None,
            revision: None,
            offline: false,
            skip_weights: false,
            certificates: None,
            timeout: Duration::from_secs(30),
            retry_pause: Duration::from_secs(1),
            progress: Arc::new(Silent),
        }
    }
}

impl HubOptions {
    /// What the environment says.
    pub fn from_env() -> Self {
        let home = std::env::home_dir().unwrap_or_default();
        Self::from_variables(&home, |name| std::env::var(name).ok())
    }

    fn from_variables(home: &Path, variable: impl Fn(&str) -> Option<String>) -> Self {
        let variable = |name: &str| {
            variable(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
        };
        let path = |name: &str| {
            variable(name).map(|value| match value.strip_prefix("~/") {
                Some(rest) => home.join(rest),
                None => PathBuf::from(value),
            })
        };
        let flag = |name: &str| {
            let is_true = |value: &String| ["1", "ON", "YES", "TRUE"].contains(&value.as_str());
            variable(name).map(|value| value.to_uppercase()).as_ref().is_some_and(is_true)
        };
        let common = path("HF_HOME").unwrap_or_else(|| {
            path("XDG_CACHE_HOME").unwrap_or_else(|| home.join(".cache")).join("huggingface")
        });
        let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| common.join("token"));
        let stored_token = || {
            let text = std::fs::read_to_string(token_file).ok()?;
            Some(text.trim().to_owned()).filter(|token| !token.is_empty())
        };
        // Python takes the variables of tokens for implicit too.
        let silent = flag("HF_HUB_DISABLE_IMPLICIT_TOKEN");
        let token = || {
            let named = variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN"));
            named.or_else(stored_token)
        };
        let default = Self::default();
        let seconds = variable("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|value| value.parse().ok());
        Self {
            endpoint: variable("HF_ENDPOINT")
                .map_or(default.endpoint, |value| value.trim_end_matches('/').to_owned()),
            cache: path("HF_HUB_CACHE")
                .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
                .unwrap_or_else(|| common.join("hub")),
            token: if silent { None } else { token() },
            offline: flag("HF_HUB_OFFLINE") || flag("TRANSFORMERS_OFFLINE"),
            certificates: path("SSL_CERT_FILE").or_else(|| path("REQUESTS_CA_BUNDLE")),
            timeout: seconds.map_or(default.timeout, |s: u32| Duration::from_secs(s.max(1).into())),
            ..default
        }
    }
}

/// Without the token.
impl fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubOptions")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("token", &self.token.as_ref().map(|_| "..."))
            .field("revision", &self.revision)
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(home: &Path, variables: &[(&str, &str)]) -> HubOptions {
        HubOptions::from_variables(home, |name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_defaults_are_those_of_python() {
        let options = options(Path::new("/home/me"), &[]);
        assert_eq!(options.endpoint, "https://huggingface.co");
        assert_eq!(options.cache, Path::new("/home/me/.cache/huggingface/hub"));
        assert_eq!((options.token, options.offline, options.revision), (None, false, None));
    }

    #[test]
    fn the_nearest_variable_places_the_cache() {
        let home = Path::new("/home/me");
        let mut variables = vec![("XDG_CACHE_HOME", "/xdg")];
        assert_eq!(options(home, &variables).cache, Path::new("/xdg/huggingface/hub"));
        variables.push(("HF_HOME", "~/hf"));
        assert_eq!(options(home, &variables).cache, Path::new("/home/me/hf/hub"));
        variables.push(("HUGGINGFACE_HUB_CACHE", "/old"));
        assert_eq!(options(home, &variables).cache, Path::new("/old"));
        variables.push(("HF_HUB_CACHE", "/cache"));
        assert_eq!(options(home, &variables).cache, Path::new("/cache"));
    }

    #[test]
    fn a_token_comes_from_a_variable_or_a_file_and_is_never_shown() {
        let home = tempfile::tempdir().expect("a temporary folder");
        let stored = home.path().join("token");
        std::fs::write(&stored, "hf_stored\n").expect("a token file");
        let folder = home.path().to_str().expect("unicode");
        let mut variables = vec![("HF_HOME", folder)];
        assert_eq!(options(home.path(), &variables).token.as_deref(), Some("hf_stored"));
        variables.push(("HF_TOKEN", " "));
        assert_eq!(options(home.path(), &variables).token.as_deref(), Some("hf_stored"));
        variables.pop();
        variables.push(("HF_TOKEN", "hf_variable "));
        let both = options(home.path(), &variables);
        assert_eq!(both.token.as_deref(), Some("hf_variable"));
        assert!(!format!("{both:?}").contains("hf_"), "{both:?}");
        variables.push(("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"));
        assert_eq!(options(home.path(), &variables).token, None);
        variables.pop();
        variables.push(("HF_HUB_DISABLE_IMPLICIT_TOKEN", "0"));
        assert_eq!(options(home.path(), &variables).token.as_deref(), Some("hf_variable"));
        let elsewhere = [("HF_TOKEN_PATH", stored.to_str().expect("unicode"))];
        let found = options(Path::new("/nowhere"), &elsewhere).token;
        assert_eq!(found.as_deref(), Some("hf_stored"));
    }

    #[test]
    fn switches_and_addresses_are_read_as_python_reads_them() {
        let home = Path::new("/");
        for (value, offline) in
            [("1", true), ("true", true), ("yes", true), ("0", false), ("", false)]
        {
            assert_eq!(options(home, &[("HF_HUB_OFFLINE", value)]).offline, offline, "{value}");
        }
        let mirror = options(home, &[("HF_ENDPOINT", "https://mirror.example/")]);
        assert_eq!(mirror.endpoint, "https://mirror.example");
        let patient = options(home, &[("HF_HUB_DOWNLOAD_TIMEOUT", "90")]);
        assert_eq!(patient.timeout, Duration::from_secs(90));
    }
}
