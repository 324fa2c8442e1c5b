//! Requests to a hub: blocking, with the token for the hub alone.

use std::fmt;
use std::time::Duration;

use moshi_core::checkpoint::is_plain;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use ureq::http::header::{AUTHORIZATION, ETAG, LOCATION, RANGE, RETRY_AFTER};
use ureq::http::{Method, Request, Response, Uri};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use crate::failure::Failure;
use crate::options::HubOptions;

/// Far more than the description of any repository.
const MAX_LISTING_BYTES: u64 = 64 << 20;
const MAX_REDIRECTS: usize = 8;
const MAX_WAIT: Duration = Duration::from_secs(60);
const MAX_CONNECT: Duration = Duration::from_secs(10);

/// What a file name keeps in an address.
const PATH: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');
/// What a revision keeps: its slashes are no separators.
const REVISION: &AsciiSet = &PATH.add(b'/');

pub(crate) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

/// Without the token.
impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// What a repository holds at a revision.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) commit: String,
    /// Plain names only.
    pub(crate) files: Vec<String>,
}

/// What the hub says of a file.
#[derive(Debug)]
pub(crate) struct FileFacts {
    /// Names the blob in the cache. For large files it is the SHA-256, for small ones git's hash.
    pub(crate) etag: String,
    pub(crate) size_bytes: Option<u64>,
}

#[derive(Deserialize)]
struct Description {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Client {
    pub(crate) fn new(options: &HubOptions) -> Result<Self, Failure> {
        let mut tls = TlsConfig::builder();
        if let Some(path) = &options.certificates {
            let pem = std::fs::read(path).map_err(|e| Failure::disk(path, e))?;
            let certificates = parse_pem(&pem).filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            });
            tls = tls.root_certs(RootCerts::from(certificates));
        }
        let config = Agent::config_builder()
            .tls_config(tls.build())
            .user_agent(concat!("moshi-rs/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            // Followed here, where the token can be kept from other hosts.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(Some(options.timeout))
            .timeout_connect(Some(options.timeout.min(MAX_CONNECT)))
            .timeout_recv_response(Some(options.timeout))
            .timeout_per_read(Some(options.timeout))
            .build();
        Ok(Self {
            agent: config.into(),
            endpoint: options.endpoint.clone(),
            token: options.token.clone(),
        })
    }

    /// Resolves a revision and lists its files, in one request.
    pub(crate) fn list(&self, repo: &str, revision: &str) -> Result<Listing, Failure> {
        let revision = utf8_percent_encode(revision, REVISION);
        let url = format!("{}/api/models/{repo}/revision/{revision}", self.endpoint);
        let mut response = self.request(&Method::GET, url, 0, |_| false)?;
        let body = response.body_mut().with_config().limit(MAX_LISTING_BYTES).read_to_vec();
        let body = body.map_err(|error| unreachable(&error))?;
        let garbled = |reason: String| Failure::Garbled(format!("as list of files, {reason}"));
        let found: Description =
            serde_json::from_slice(&body).map_err(|error| garbled(error.to_string()))?;
        if !is_commit(&found.sha) {
            return Err(garbled("its commit is not 40 hexadecimal digits".into()));
        }
        let names = found.siblings.into_iter().map(|sibling| sibling.rfilename);
        let (files, hostile): (Vec<String>, Vec<String>) = names.partition(|name| is_safe(name));
        if let Some(name) = hostile.first() {
            log::warn!("{repo}: ignoring {} unusable file names, {name:?} first", hostile.len());
        }
        Ok(Listing { commit: found.sha, files })
    }

    /// Asks for a file without its content.
    pub(crate) fn facts(&self, repo: &str, commit: &str, file: &str) -> Result<FileFacts, Failure> {
        let url = self.file_url(repo, commit, file);
        let linked = |response: &Response<Body>| text(response, LINKED_ETAG).is_some();
        let response = self.request(&Method::HEAD, url, 0, linked)?;
        let etag = text(&response, LINKED_ETAG)
            .or_else(|| text(&response, ETAG.as_str()))
            .ok_or_else(|| Failure::Garbled(format!("no etag for {file}")))?;
        let etag = etag.trim_start_matches("W/").trim_matches('"');
        let legal = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if etag.is_empty() || etag.len() > 128 || !etag.chars().all(legal) {
            return Err(Failure::Garbled(format!("the etag {etag:?} for {file}")));
        }
        let size = text(&response, LINKED_SIZE).or_else(|| match response.status().as_u16() {
            200 => text(&response, "content-length"),
            _ => None,
        });
        Ok(FileFacts { etag: etag.to_owned(), size_bytes: size.and_then(|n| n.parse().ok()) })
    }

    /// Asks for a file's content from `start` on. The status is 200 (all of it), 206 (from
    /// `start` on) or 416 (there is nothing there).
    pub(crate) fn content(
        &self,
        repo: &str,
        commit: &str,
        file: &str,
        start: u64,
    ) -> Result<Response<Body>, Failure> {
        let url = self.file_url(repo, commit, file);
        self.request(&Method::GET, url, start, |response| response.status() == 416)
    }

    fn file_url(&self, repo: &str, commit: &str, file: &str) -> String {
        format!("{}/{repo}/resolve/{commit}/{}", self.endpoint, utf8_percent_encode(file, PATH))
    }

    /// Follows redirects until an answer is `enough` or good.
    fn request(
        &self,
        method: &Method,
        mut url: String,
        start: u64,
        enough: impl Fn(&Response<Body>) -> bool,
    ) -> Result<Response<Body>, Failure> {
        let garbled = |error: &dyn fmt::Display| Failure::Garbled(error.to_string());
        let hub: Uri = self.endpoint.parse().map_err(|e| garbled(&e))?;
        for _ in 0..MAX_REDIRECTS {
            let uri: Uri = url.parse().map_err(|e| garbled(&e))?;
            let mut request = Request::builder().method(method).uri(&uri);
            if start > 0 {
                request = request.header(RANGE, format!("bytes={start}-"));
            }
            if let Some(token) = self.token.as_ref().filter(|_| is_same_server(&uri, &hub)) {
                request = request.header(AUTHORIZATION, format!("Bearer {token}"));
            }
            let request = request.body(()).map_err(|e| garbled(&e))?;
            log::debug!("{method} {}{}", uri.authority().map_or("", |a| a.as_str()), uri.path());
            let response = self.agent.run(request).map_err(|error| unreachable(&error))?;
            let status = response.status();
            if status.is_success() || enough(&response) {
                return Ok(response);
            }
            if !status.is_redirection() {
                return Err(refusal(&response));
            }
            let location = text(&response, LOCATION.as_str()).unwrap_or_default();
            url = join(&uri, location)
                .filter(|to| to.starts_with("https://") || hub.scheme_str() == Some("http"))
                .ok_or_else(|| Failure::Garbled(format!("a redirect to {location:?}")))?;
        }
        Err(Failure::Garbled("more redirects than any hub has".into()))
    }
}

const LINKED_ETAG: &str = "x-linked-etag";
const LINKED_SIZE: &str = "x-linked-size";

/// True for the full name of a commit.
pub(crate) fn is_commit(revision: &str) -> bool {
    revision.len() == 40
        && revision.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// True for a name that stays inside its folder on every system.
pub(crate) fn is_safe(name: &str) -> bool {
    is_plain(name) && !name.contains(|c: char| c.is_control() || c == ':')
}

fn text<'r>(response: &'r Response<Body>, header: &str) -> Option<&'r str> {
    response.headers().get(header)?.to_str().ok()
}

fn is_same_server(a: &Uri, b: &Uri) -> bool {
    let port = |uri: &Uri| {
        uri.port_u16().or(if uri.scheme_str() == Some("https") { Some(443) } else { Some(80) })
    };
    a.scheme() == b.scheme() && a.host() == b.host() && port(a) == port(b)
}

/// The address that a redirect from `base` leads to.
fn join(base: &Uri, location: &str) -> Option<String> {
    if location.starts_with("https://") || location.starts_with("http://") {
        return Some(location.to_owned());
    }
    let scheme = base.scheme_str()?;
    if location.starts_with("//") {
        return Some(format!("{scheme}:{location}"));
    }
    location
        .starts_with('/')
        .then(|| format!("{scheme}://{}{location}", base.authority().map_or("", |a| a.as_str())))
}

fn refusal(response: &Response<Body>) -> Failure {
    let status = response.status().as_u16();
    if status == 429 || status >= 500 {
        let wait = text(response, RETRY_AFTER.as_str()).and_then(|seconds| seconds.parse().ok());
        let wait = wait.map(|seconds| Duration::from_secs(seconds).min(MAX_WAIT));
        return Failure::Busy { status, wait };
    }
    Failure::Refused { status, code: text(response, "x-error-code").unwrap_or_default().to_owned() }
}

fn unreachable(error: &ureq::Error) -> Failure {
    match error {
        ureq::Error::HostNotFound => Failure::Unreachable("no such host, or no connection".into()),
        ureq::Error::Rustls(_) | ureq::Error::Tls(_) => Failure::Unreachable(format!(
            "{error} (behind a company's proxy, set SSL_CERT_FILE to its certificates)"
        )),
        ureq::Error::Protocol(_) | ureq::Error::LargeResponseHeader(..) | ureq::Error::Http(_) => {
            Failure::Garbled(error.to_string())
        }
        _ => Failure::Unreachable(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_stays_with_the_hub() {
        let uri = |text: &str| text.parse::<Uri>().expect("an address");
        let hub = uri("https://hub.example");
        assert!(is_same_server(&uri("https://hub.example:443/x"), &hub));
        for other in
            ["http://hub.example/", "https://cdn.hub.example/", "https://hub.example:8443/"]
        {
            assert!(!is_same_server(&uri(other), &hub), "{other}");
        }
    }

    #[test]
    fn redirects_are_joined() {
        let base: Uri = "https://hub:81/a/b?c".parse().expect("an address");
        let to = |location: &str| join(&base, location);
        assert_eq!(to("/x?y").as_deref(), Some("https://hub:81/x?y"));
        assert_eq!(to("//cdn/x").as_deref(), Some("https://cdn/x"));
        assert_eq!(to("http://cdn/x").as_deref(), Some("http://cdn/x"));
        assert_eq!((to(""), to("file:///etc/passwd"), to("x")), (None, None, None));
    }

    #[test]
    fn names_stay_inside() {
        for name in ["a", "a/b.json", "ä b", "a..b"] {
            assert!(is_safe(name), "{name}");
        }
        for name in ["", "..", "../a", "a/../b", "/a", "./a", "a\\b", "C:a", "a\nb", "a\0"] {
            assert!(!is_safe(name), "{name:?}");
        }
    }

    #[test]
    fn a_commit_is_forty_digits() {
        assert!(is_commit(&"0a".repeat(20)));
        assert!(
            !is_commit(&"0A".repeat(20))
                && !is_commit("main")
                && !is_commit(&"../".repeat(14)[..40])
        );
    }
}
