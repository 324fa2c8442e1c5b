//! What can go wrong on the way to a hub, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use moshi_core::Error;

/// Why a request or a download failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// No usable answer: no connection, a timeout, a connection that was cut.
    Unreachable(String),
    /// The hub is overloaded or broken at the moment.
    Busy { status: u16, wait: Option<Duration> },
    /// The hub says no. `code` is its `x-error-code`, or empty.
    Refused { status: u16, code: String },
    /// An answer that makes no sense.
    Garbled(String),
    /// The cache cannot be written; so many bytes were still to come.
    Disk { path: PathBuf, source: io::Error, missing_bytes: Option<u64> },
    /// The content is not what the hub promised; it is deleted.
    Damaged(String),
    /// The caller stopped the download.
    Stopped,
}

/// Where it happened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) endpoint: &'a str,
    pub(crate) repo: &'a str,
    pub(crate) revision: &'a str,
    /// The file; `None` when the repository itself was asked for.
    pub(crate) file: Option<&'a str>,
    pub(crate) has_token: bool,
    pub(crate) cache: &'a Path,
}

impl Failure {
    pub(crate) fn disk(path: &Path, source: io::Error) -> Self {
        Self::Disk { path: path.into(), source, missing_bytes: None }
    }

    /// True when the cache may stand in for the hub.
    pub(crate) fn is_outage(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Busy { .. })
    }

    /// The error that users see.
    pub(crate) fn into_error(self, place: Place<'_>) -> Error {
        let hub = |reason: String| Error::Hub { repo: place.repo.into(), reason };
        match self {
            Self::Unreachable(reason) => hub(format!(
                "cannot reach {}: {reason}; check the connection (and HTTPS_PROXY, HF_ENDPOINT), \
                 then run again: a download goes on where it stopped",
                place.endpoint
            )),
            Self::Busy { status: 429, .. } => hub(format!(
                "{} asks for fewer requests (status 429); wait some minutes{}",
                place.endpoint,
                if place.has_token { "" } else { ", or log in for a higher limit" }
            )),
            Self::Busy { status, .. } => hub(format!(
                "{} has a problem at the moment (status {status}); try again later",
                place.endpoint
            )),
            Self::Refused { status, code } => refused(status, &code, place),
            Self::Garbled(reason) => hub(format!(
                "{} gave an answer that is not a hub's: {reason}; check HF_ENDPOINT and any proxy",
                place.endpoint
            )),
            Self::Disk { path, source, missing_bytes } => {
                let (state, way_out) = match source.kind() {
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                        ("is full", "make room, or set HF_HUB_CACHE to a folder on a larger disk")
                    }
                    // FAT ends at 4 GB, and a process may have a limit.
                    io::ErrorKind::FileTooLarge => (
                        "takes no files of this size",
                        "set HF_HUB_CACHE to a folder on another disk, or raise `ulimit -f`",
                    ),
                    _ => return Error::Io { path, source },
                };
                let need = missing_bytes.map_or(String::new(), |bytes| {
                    format!(" {} more are needed for {};", size(bytes), place.file.unwrap_or(""))
                });
                hub(format!(
                    "the disk with {} {state}:{need} {way_out}, and run again: in the same cache a \
                     download goes on where it stopped",
                    place.cache.display()
                ))
            }
            Self::Damaged(reason) => hub(reason),
            Self::Stopped => {
                hub("download stopped; run again and it goes on where it stopped".into())
            }
        }
    }
}

fn refused(status: u16, code: &str, place: Place<'_>) -> Error {
    let Place { endpoint, repo, revision, file, has_token, .. } = place;
    let hub = |reason: String| Error::Hub { repo: repo.into(), reason };
    let missing = |path: String, hint: String| Error::NotFound { path: path.into(), hint };
    let log_in = if has_token {
        "check that your token is valid and may read it"
    } else {
        "log in with `hf auth login`, or set HF_TOKEN to a token of \
         your account that may read it"
    };
    match (status, code) {
        (_, "GatedRepo") => hub(format!(
            "the repository is gated: accept its conditions on {endpoint}/{repo}, then {log_in}"
        )),
        (404, "EntryNotFound" | "") if file.is_some() => {
            let file = file.unwrap_or_default();
            missing(format!("{repo}/{file}"), format!(": not in revision \"{revision}\""))
        }
        (404, "RevisionNotFound") => missing(
            format!("{repo}@{revision}"),
            format!(
                ": the repository has no branch, tag or commit of this name; see \
                 {endpoint}/{repo}/tree/main"
            ),
        ),
        (404, _) | (401, "RepoNotFound") => {
            // A hub without error codes does not say which of the two is missing.
            let or_revision = match (code, revision) {
                ("", revision) if revision != "main" => format!(" with revision \"{revision}\""),
                _ => String::new(),
            };
            missing(
                repo.into(),
                format!(
                    ": no such folder here, and {endpoint} has no repository of this \
                     name{or_revision}, or it is private: check the name; for a private one, \
                     {log_in}"
                ),
            )
        }
        (401, _) if has_token => hub(format!(
            "{endpoint} does not accept the token (status 401): it is wrong or expired; make a new \
             one on {endpoint}/settings/tokens and log in with `hf auth login` or set HF_TOKEN"
        )),
        (401, _) => hub(format!("{endpoint} wants to know who you are (status 401): {log_in}")),
        (403, _) => hub(format!(
            "{endpoint} refuses access (status 403): if {endpoint}/{repo} shows conditions, accept \
             them there; {log_in}"
        )),
        _ => hub(format!("{endpoint} refuses the request (status {status}{})", of_code(code))),
    }
}

fn of_code(code: &str) -> String {
    if code.is_empty() { String::new() } else { format!(", {code}") }
}

/// A size for people.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} bytes"),
        10_000..1_000_000 => format!("{:.0} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(file: Option<&str>, has_token: bool) -> Place<'_> {
        Place {
            endpoint: "https://hub",
            repo: "owner/name",
            revision: "v1",
            file,
            has_token,
            cache: Path::new("/cache"),
        }
    }

    #[test]
    fn a_full_disk_says_how_much_and_where() {
        for kind in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded] {
            let failure = Failure::Disk {
                path: "/cache/blob".into(),
                source: kind.into(),
                missing_bytes: Some(1_500_000_000),
            };
            let text = failure.into_error(place(Some("model.safetensors"), false)).to_string();
            for part in ["/cache is full", "1.50 GB", "model.safetensors", "HF_HUB_CACHE"] {
                assert!(text.contains(part), "{part}: {text}");
            }
        }
        let denied = Failure::disk(Path::new("/cache"), io::ErrorKind::PermissionDenied.into());
        assert!(matches!(denied.into_error(place(None, false)), Error::Io { .. }));
    }

    #[test]
    fn every_refusal_says_what_to_do() {
        for (status, code, file, has_token, expected) in [
            (401, "", None, false, "hf auth login"),
            (401, "", None, true, "wrong or expired"),
            (401, "RepoNotFound", None, false, "check the name"),
            (401, "GatedRepo", None, false, "accept its conditions on https://hub/owner/name"),
            (403, "GatedRepo", None, true, "accept its conditions on https://hub/owner/name"),
            (403, "", Some("a"), true, "accept"),
            (404, "RepoNotFound", None, true, "no repository of this name, or it is private"),
            (404, "", None, true, "with revision \"v1\""),
            (404, "RevisionNotFound", None, true, "owner/name@v1"),
            (404, "EntryNotFound", Some("a.json"), true, "owner/name/a.json"),
            (418, "Teapot", None, true, "status 418, Teapot"),
        ] {
            let failure = Failure::Refused { status, code: code.into() };
            let error = failure.into_error(place(file, has_token));
            let text = error.to_string();
            assert!(text.contains(expected), "{status} {code}: {text}");
            let is_missing = status == 404 || code == "RepoNotFound";
            assert_eq!(matches!(error, Error::NotFound { .. }), is_missing, "{text}");
        }
    }

    #[test]
    fn sizes_are_readable() {
        let sizes = [12, 12_000, 1_234_567, 15_400_000_000].map(size);
        assert_eq!(sizes, ["12 bytes", "12 kB", "1.2 MB", "15.40 GB"]);
    }
}
