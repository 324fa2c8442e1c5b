//! Settings of the daemon.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::auth::MIN_KEY_BYTES;
use crate::error::ServeError;

/// The port of the original's servers.
pub const DEFAULT_PORT: u16 = 8998;

/// How connections are encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tls {
    /// Not at all.
    Off,
    /// With a certificate made at the start, for this machine's names.
    SelfSigned,
    /// With the operator's certificate.
    Files {
        /// Certificate chain in PEM.
        certificate: PathBuf,
        /// Private key in PEM.
        key: PathBuf,
    },
}

/// All settings. [`ServeConfig::default`] is what `moshi-rs serve` does without options.
#[derive(Debug, Clone)]
pub struct ServeConfig {
    /// Address to listen on.
    pub host: IpAddr,
    /// Port; 0 takes a free one.
    pub port: u16,
    /// Encryption.
    pub tls: Tls,
    /// Keys of which callers must have one; none is only for this machine.
    pub api_keys: Vec<String>,
    /// Allows other machines to connect without a key.
    pub insecure: bool,
    /// Accepts keys as parameters of the address.
    pub compat_query_keys: bool,
    /// Origins of pages on other hosts that may connect.
    pub allow_origins: Vec<String>,
    /// Conversations at the same time; `None` measures the machine.
    pub max_sessions: Option<usize>,
    /// Callers that may wait for a slot.
    pub queue: usize,
    /// How long a ready frame waits for others.
    pub coalesce: Duration,
    /// How long a lost conversation is kept.
    pub resume_grace: Duration,
    /// Bytes that kept conversations may take.
    pub resume_memory_bytes: u64,
    /// Where conversations survive a restart.
    pub state_dir: Option<PathBuf>,
    /// Time that running conversations have when the daemon is told to stop.
    pub drain: Duration,
    /// Time without input after which a conversation ends.
    pub idle: Duration,
    /// Connections of one address.
    pub max_connections_per_address: usize,
    /// Connections of all.
    pub max_connections: usize,
}

impl Default for ServeConfig {
    fn default() -> Self {
        Self {
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: DEFAULT_PORT,
            tls: Tls::Off,
            api_keys: Vec::new(),
            insecure: false,
            compat_query_keys: false,
            allow_origins: Vec::new(),
            max_sessions: None,
            queue: 0,
            coalesce: Duration::from_millis(5),
            resume_grace: Duration::from_secs(30),
            resume_memory_bytes: 1 << 30,
            state_dir: None,
            drain: Duration::from_secs(30),
            idle: Duration::from_secs(120),
            max_connections_per_address: 64,
            max_connections: 1024,
        }
    }
}

impl ServeConfig {
    /// Where to listen.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.host, self.port)
    }

    /// Refuses what would be unsafe or cannot work.
    ///
    /// # Errors
    /// [`ServeError::Config`] with what to do.
    pub fn check(&self) -> Result<(), ServeError> {
        let refuse = |reason: String| Err(ServeError::Config(reason));
        if !self.host.is_loopback() && self.api_keys.is_empty() && !self.insecure {
            return refuse(format!(
                "--host {} lets other machines connect; give keys with --api-key-file or \
                 MOSHI_RS_API_KEY, or allow everybody with --insecure",
                self.host
            ));
        }
        if let Some(key) = self.api_keys.iter().find(|key| key.len() < MIN_KEY_BYTES) {
            return refuse(format!(
                "an API key has {} characters; use at least {MIN_KEY_BYTES}, for example from \
                 `openssl rand -hex 24`",
                key.len()
            ));
        }
        let printable = |key: &String| key.bytes().all(|byte| byte.is_ascii_graphic());
        if !self.api_keys.iter().all(printable) {
            return refuse(
                "an API key has spaces or other characters that headers cannot carry".into(),
            );
        }
        if self.max_sessions == Some(0) {
            return refuse("--max-sessions 0 serves nobody; use 1 or more, or auto".into());
        }
        let origin = |text: &String| {
            text.split_once("://").is_some_and(|(scheme, host)| {
                ["http", "https"].contains(&scheme) && !host.is_empty() && !host.contains('/')
            })
        };
        if let Some(bad) = self.allow_origins.iter().find(|text| !origin(text)) {
            return refuse(format!("--allow-origin {bad} is not like https://example.org"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_this_machine_only() {
        let config = ServeConfig::default();
        config.check().unwrap();
        assert_eq!(config.address().to_string(), "127.0.0.1:8998");
    }

    #[test]
    fn unsafe_or_senseless_settings_are_refused_with_advice() {
        let open = IpAddr::from([0, 0, 0, 0]);
        let default = ServeConfig::default;
        for (config, advice) in [
            (ServeConfig { host: open, ..default() }, "--insecure"),
            (ServeConfig { api_keys: vec!["short".into()], ..default() }, "at least 16"),
            (ServeConfig { api_keys: vec!["with a space in it ".into()], ..default() }, "spaces"),
            (ServeConfig { max_sessions: Some(0), ..default() }, "auto"),
            (ServeConfig { allow_origins: vec!["example.org".into()], ..default() }, "https://"),
        ] {
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(advice), "{error}");
        }
        let key = vec!["0123456789abcdef".to_owned()];
        for config in [
            ServeConfig { host: open, api_keys: key, ..default() },
            ServeConfig { host: open, insecure: true, ..default() },
        ] {
            config.check().unwrap();
        }
    }
}
