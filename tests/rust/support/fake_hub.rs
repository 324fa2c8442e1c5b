//! A hub on this machine: one repository, its description, its files, and any fault on demand.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use serde_json::json;
use sha1::Sha1;
use sha2::{Digest, Sha256};

pub(crate) const REPO: &str = "tiny/dialogue";
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub(crate) const TOKEN: &str = "hf_secret";

#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Path of the address, not decoded.
    pub(crate) path: String,
    /// By lower-case name.
    pub(crate) headers: BTreeMap<String, String>,
}

#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// The connection ends after so many bytes of the body.
    pub(crate) cut: Option<usize>,
}

/// A fault: given a request and how many came before it, an answer in place of the usual one.
type Fault = Box<dyn Fn(&Request, &Answer, usize) -> Option<Answer> + Send>;

#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    /// Names that the description has beyond the files.
    extra_names: Vec<String>,
    requests: Vec<Request>,
    fault: Option<Fault>,
    /// Where large files are: the address of another server.
    storage: Option<String>,
    closed: bool,
}

pub(crate) struct FakeHub {
    address: String,
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

impl Answer {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), cut: None }
    }

    pub(crate) fn with(mut self, header: &str, value: impl ToString) -> Self {
        self.headers.retain(|(name, _)| name != header);
        self.headers.push((header.into(), value.to_string()));
        self
    }

    fn refusal(status: u16, code: &str) -> Self {
        Self::new(status, "no").with("x-error-code", code)
    }
}

impl FakeHub {
    /// A hub whose repository has these files.
    pub(crate) fn new(files: BTreeMap<String, Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        let shared = state.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.lock().unwrap().closed {
                    break;
                }
                let shared = shared.clone();
                std::thread::spawn(move || serve(&shared, stream.unwrap()));
            }
        });
        Self { address, state, thread: Some(thread) }
    }

    /// A hub with the files of a folder.
    pub(crate) fn of_folder(folder: &Path) -> Self {
        let files = std::fs::read_dir(folder).unwrap().map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, std::fs::read(path).unwrap())
        });
        Self::new(files.collect())
    }

    pub(crate) fn address(&self) -> String {
        self.address.clone()
    }

    /// Moves large files to another server.
    pub(crate) fn store_at(&self, storage: &Self) {
        storage.state().files = self.state().files.clone();
        self.state().storage = Some(storage.address());
    }

    /// Adds or replaces a file.
    pub(crate) fn put(&self, name: &str, content: impl Into<Vec<u8>>) {
        self.state().files.insert(name.into(), content.into());
    }

    pub(crate) fn list_also(&self, names: &[&str]) {
        self.state().extra_names = names.iter().map(|name| (*name).to_owned()).collect();
    }

    pub(crate) fn fail(
        &self,
        fault: impl Fn(&Request, &Answer, usize) -> Option<Answer> + Send + 'static,
    ) {
        self.state().fault = Some(Box::new(fault));
    }

    pub(crate) fn recover(&self) {
        self.state().fault = None;
    }

    /// Requests since the last call.
    pub(crate) fn take_requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state().requests)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// No longer answers.
    pub(crate) fn close(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.state().closed = true;
            drop(TcpStream::connect(self.address.trim_start_matches("http://")));
            thread.join().unwrap();
        }
    }
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        self.close();
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

/// Hash of a file in git.
pub(crate) fn git_hash(bytes: &[u8]) -> String {
    let header = format!("blob {}\0", bytes.len());
    hexadecimal(&Sha1::new().chain_update(header).chain_update(bytes).finalize())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn serve(state: &Mutex<State>, mut stream: TcpStream) {
    let Some(request) = read_request(&stream) else { return };
    let answer = {
        let mut state = state.lock().unwrap();
        let usual = answer(&state, &request);
        let fault = state.fault.as_ref();
        let before = state.requests.len();
        let answer = fault.and_then(|f| f(&request, &usual, before)).unwrap_or(usual);
        state.requests.push(request.clone());
        answer
    };
    let mut head = format!("HTTP/1.1 {} x\r\nconnection: close\r\n", answer.status);
    for (name, value) in &answer.headers {
        write!(head, "{name}: {value}\r\n").unwrap();
    }
    if !answer.headers.iter().any(|(name, _)| name == "content-length") {
        write!(head, "content-length: {}\r\n", answer.body.len()).unwrap();
    }
    head.push_str("\r\n");
    let count = answer.cut.unwrap_or(answer.body.len()).min(answer.body.len());
    let body = if request.method == "HEAD" { &[] } else { &answer.body[..count] };
    // A client that gave up is fine.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream.take(1 << 20)).lines();
    let first = lines.next()?.ok()?;
    let (method, rest) = first.split_once(' ')?;
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line.ok()?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    Some(Request { method: method.into(), path: rest.split(' ').next()?.into(), headers })
}

fn answer(state: &State, request: &Request) -> Answer {
    if let Some(file) = request.path.strip_prefix("/storage/") {
        return content(&state.files[file], request);
    }
    if let Some(rest) = request.path.strip_prefix("/api/models/") {
        let Some(revision) = rest.strip_prefix(&format!("{REPO}/revision/")) else {
            return Answer::refusal(404, "RepoNotFound");
        };
        if !["main", "v1", "refs%2Fpr%2F1", COMMIT].contains(&revision) {
            return Answer::refusal(404, "RevisionNotFound");
        }
        let names = state.files.keys().chain(&state.extra_names);
        let siblings: Vec<_> = names.map(|name| json!({ "rfilename": name })).collect();
        return Answer::new(200, json!({ "sha": COMMIT, "siblings": siblings }).to_string());
    }
    let Some(file) = request.path.strip_prefix(&format!("/{REPO}/resolve/{COMMIT}/")) else {
        return Answer::refusal(404, "RepoNotFound");
    };
    let Some(bytes) = state.files.get(file) else {
        return Answer::refusal(404, "EntryNotFound");
    };
    if !file.ends_with(".safetensors") {
        return content(bytes, request).with("etag", format!("\"{}\"", git_hash(bytes)));
    }
    let storage = state.storage.clone().unwrap_or_default();
    Answer::new(302, "")
        .with("location", format!("{storage}/storage/{file}"))
        .with("x-linked-etag", format!("\"{}\"", sha256(bytes)))
        .with("x-linked-size", bytes.len())
}

fn content(bytes: &[u8], request: &Request) -> Answer {
    let range = request.headers.get("range").and_then(|range| range.strip_prefix("bytes="));
    let Some(start) = range.and_then(|range| range.trim_end_matches('-').parse::<usize>().ok())
    else {
        return Answer::new(200, bytes);
    };
    let total = bytes.len();
    if start >= total {
        return Answer::new(416, "").with("content-range", format!("bytes */{total}"));
    }
    let range = format!("bytes {start}-{}/{total}", total - 1);
    Answer::new(206, &bytes[start..]).with("content-range", range)
}
