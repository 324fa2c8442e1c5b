//! Options of the daemon and its clients.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use moshi_serve::config::DEFAULT_PORT;
use moshi_serve::{ServeConfig, Tls};

use crate::options::{DeviceArgs, SpeechArgs};
use crate::output::{CliError, Result};

/// Keys may also come from here, so that they stand in no list of processes.
const KEY_VARIABLE: &str = "MOSHI_RS_API_KEY";

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Address to listen on. Any but this machine's own needs API keys, or --insecure.
    #[arg(long, default_value = "127.0.0.1")]
    pub(crate) host: IpAddr,
    /// Port to listen on; 0 takes a free one.
    #[arg(long, default_value_t = DEFAULT_PORT)]
    pub(crate) port: u16,
    /// File of API keys, one a line; # begins a comment. MOSHI_RS_API_KEY holds one more.
    #[arg(long, value_name = "FILE")]
    pub(crate) api_key_file: Option<PathBuf>,
    /// Let other machines connect without a key.
    #[arg(long)]
    pub(crate) insecure: bool,
    /// Accept keys as parameters of the address, where logs of others may show them.
    #[arg(long)]
    pub(crate) compat_query_keys: bool,
    /// Origin of pages on another host that may connect, as https://example.org. Repeatable.
    #[arg(long, value_name = "ORIGIN")]
    pub(crate) allow_origin: Vec<String>,
    /// Encryption. Browsers on other machines give a microphone to encrypted pages only.
    #[arg(long, value_enum, default_value_t = TlsArg::Off)]
    pub(crate) tls: TlsArg,
    /// Certificate chain in PEM; implies encryption.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Private key in PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Conversations at the same time: a number, or auto to measure what fits in real time.
    #[arg(long, value_name = "N", default_value = "auto", value_parser = sessions)]
    pub(crate) max_sessions: Sessions,
    /// Callers that may wait for a slot when all are taken; others are refused at once.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) queue: usize,
    /// Longest wait of a ready frame for those of other sessions.
    #[arg(long, value_name = "MS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(..=40))]
    pub(crate) coalesce_ms: u64,
    /// How long a session without a connection is kept for who has its token; 0 is not at all.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) resume_grace: u64,
    /// Memory for sessions without a connection, in MB; the longest lost give way.
    #[arg(long, value_name = "MB", default_value_t = 1024)]
    pub(crate) resume_memory: u64,
    /// Folder where sessions outlive a stop, readable by you alone. They hold conversations.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Time that running sessions have after SIGTERM or Ctrl-C; a second one ends them at once.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) drain: u64,
    /// Time without input after which a session ends.
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) idle_timeout: u64,
    /// Connections of one address.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) max_connections_per_address: usize,
    #[command(flatten)]
    pub(crate) speech: SpeechArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TlsArg {
    /// None, unless --tls-cert is given.
    Off,
    /// With a certificate made at the start.
    SelfSigned,
}

/// A fixed number of conversations, or what fits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sessions(Option<usize>);

fn sessions(text: &str) -> Result<Sessions, String> {
    if text == "auto" {
        return Ok(Sessions(None));
    }
    match text.parse() {
        Ok(count) if count > 0 => Ok(Sessions(Some(count))),
        _ => Err("neither auto nor a number from 1".into()),
    }
}

impl ServeArgs {
    pub(crate) fn config(&self) -> Result<ServeConfig> {
        let tls = match (&self.tls_cert, &self.tls_key, self.tls) {
            (Some(certificate), Some(key), _) => {
                Tls::Files { certificate: certificate.clone(), key: key.clone() }
            }
            (_, _, TlsArg::SelfSigned) => Tls::SelfSigned,
            (_, _, TlsArg::Off) => Tls::Off,
        };
        let mut api_keys = match &self.api_key_file {
            Some(path) => keys_of(path)?,
            None => Vec::new(),
        };
        api_keys.extend(key_of_environment());
        Ok(ServeConfig {
            host: self.host,
            port: self.port,
            tls,
            api_keys,
            insecure: self.insecure,
            compat_query_keys: self.compat_query_keys,
            allow_origins: self.allow_origin.clone(),
            max_sessions: self.max_sessions.0,
            queue: self.queue,
            coalesce: Duration::from_millis(self.coalesce_ms),
            resume_grace: Duration::from_secs(self.resume_grace),
            resume_memory_bytes: self.resume_memory.saturating_mul(1_000_000),
            state_dir: self.state_dir.clone(),
            drain: Duration::from_secs(self.drain),
            idle: Duration::from_secs(self.idle_timeout),
            max_connections_per_address: self.max_connections_per_address,
            ..ServeConfig::default()
        })
    }
}

fn keys_of(path: &std::path::Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| CliError::Input(format!("{}: {error}", path.display())))?;
    let lines = text.lines().map(str::trim);
    let keys: Vec<String> = lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect();
    if keys.is_empty() {
        let reason = format!("{} holds no key; write one a line", path.display());
        return Err(CliError::Input(reason));
    }
    Ok(keys)
}

fn key_of_environment() -> Option<String> {
    std::env::var(KEY_VARIABLE).ok().filter(|key| !key.is_empty())
}

/// How to connect to a server.
#[derive(Debug, Args)]
pub(crate) struct ConnectArgs {
    /// File with the API key. MOSHI_RS_API_KEY does as well.
    #[arg(long, value_name = "FILE")]
    pub(crate) api_key_file: Option<PathBuf>,
    /// Certificate in PEM to trust, of a server with one of its own.
    #[arg(long, value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
}

impl ConnectArgs {
    pub(crate) fn key(&self) -> Result<Option<String>> {
        match &self.api_key_file {
            Some(path) => Ok(keys_of(path)?.into_iter().next()),
            None => Ok(key_of_environment()),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct ClientArgs {
    /// Server, as ws://host:8998 or wss://host:8998.
    #[arg(required_unless_present = "list_devices")]
    pub(crate) url: Option<String>,
    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
    /// Seed of the session.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    #[command(flatten)]
    pub(crate) recording: RecordingArgs,
    #[command(flatten)]
    pub(crate) devices: DeviceArgs,
}

/// A recording instead of devices.
#[derive(Debug, Args)]
#[command(next_help_heading = "A recording instead of sound devices")]
pub(crate) struct RecordingArgs {
    /// Recording to say, at the pace of speech.
    #[arg(
        long = "in",
        value_name = "FILE",
        conflicts_with_all = ["input_device", "output_device", "record"]
    )]
    pub(crate) input: Option<PathBuf>,
    /// Write the model's audio to this wav file.
    #[arg(long = "out", value_name = "FILE", requires = "input")]
    pub(crate) output: Option<PathBuf>,
    /// Silence to add after the recording, in seconds, so that the model can finish.
    #[arg(long, default_value_t = 0.0, value_name = "SECONDS", requires = "input")]
    pub(crate) pad: f64,
    /// Print one JSON object instead of text and timings.
    #[arg(long, requires = "input")]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LoadtestArgs {
    /// Server, as ws://host:8998 or wss://host:8998; with /?audio=pcm16 behind it, audio travels as
    /// samples in place of Opus, which takes less of this machine.
    pub(crate) url: String,
    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
    /// Conversations at the same time.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) sessions: u16,
    /// How long.
    #[arg(long, value_name = "S", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub(crate) seconds: u32,
    /// Recording that every conversation repeats. Without it, a sound like a voice.
    #[arg(long = "in", value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}
