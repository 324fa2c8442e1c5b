//! One file from the hub into the cache: resumed, verified, and never half there.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha1::Sha1;
use sha2::{Digest, Sha256};
use ureq::http::header::CONTENT_RANGE;

use crate::cache::RepoCache;
use crate::client::{Client, FileFacts};
use crate::failure::{Failure, size};
use crate::options::HubOptions;

const CHUNK_BYTES: usize = 256 << 10;
/// Attempts in a row that bring no byte.
const MAX_ATTEMPTS: u32 = 5;
/// How often someone who waits looks, and may be stopped.
const TICK: Duration = Duration::from_millis(100);

/// A file to download.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Download<'a> {
    pub(crate) client: &'a Client,
    pub(crate) cache: &'a RepoCache,
    pub(crate) options: &'a HubOptions,
    pub(crate) repo: &'a str,
    pub(crate) commit: &'a str,
    pub(crate) file: &'a str,
}

impl Download<'_> {
    /// Brings the file into the cache and gives its path there.
    pub(crate) fn run(&self) -> Result<PathBuf, Failure> {
        let facts = self.retry(|| 0, || self.client.facts(self.repo, self.commit, self.file))?;
        let blob = self.cache.blob(&facts.etag);
        let disk = |error| Failure::disk(&blob, error);
        if !Self::is_complete(&blob, &facts) {
            let _lock = self.lock(&facts.etag)?;
            // Another process may have brought it meanwhile.
            if !Self::is_complete(&blob, &facts) {
                self.options.progress.start(self.file, facts.size_bytes);
                let result = self.fetch(&blob, &facts);
                self.options.progress.finish();
                result?;
            }
        }
        self.cache.link(self.commit, self.file, &facts.etag).map_err(disk)
    }

    /// True for a blob of the promised size.
    fn is_complete(blob: &Path, facts: &FileFacts) -> bool {
        let Ok(found) = std::fs::metadata(blob) else { return false };
        let complete = facts.size_bytes.is_none_or(|size| size == found.len());
        if !complete {
            log::warn!("{} has a wrong size and is downloaded again", blob.display());
        }
        complete
    }

    /// Waits for the lock of a blob, for as long as another process downloads it.
    fn lock(&self, etag: &str) -> Result<File, Failure> {
        let mut waits = false;
        loop {
            let locked = self.cache.try_lock(etag);
            if let Some(lock) = locked.map_err(|e| Failure::disk(&self.cache.blob(etag), e))? {
                return Ok(lock);
            }
            if !waits {
                log::warn!("{}: waiting for another process that downloads it", self.label());
                waits = true;
            }
            self.pause(TICK, 0)?;
        }
    }

    fn fetch(&self, blob: &Path, facts: &FileFacts) -> Result<(), Failure> {
        // As older versions of Python's hub client call it, which resume it too.
        let partial = blob.with_file_name(format!("{}.incomplete", facts.etag));
        let disk = |error| Failure::disk(&partial, error);
        let begun = length(&partial);
        let start = Instant::now();
        let (label, total) = (self.label(), facts.size_bytes.map_or("?".into(), size));
        match begun {
            0 => log::info!("downloading {label} ({total})"),
            _ => log::info!("downloading {label} ({total}), of which {} are here", size(begun)),
        }
        self.fill(&partial, facts)?;
        if let Err(failure) = self.verify(&partial, facts) {
            std::fs::remove_file(&partial).map_err(disk)?;
            if begun == 0 {
                return Err(failure);
            }
            // The beginning came from an earlier run and may be at fault.
            log::warn!("{label}: what an earlier download left is damaged; starting anew");
            self.fill(&partial, facts)?;
            if let Err(failure) = self.verify(&partial, facts) {
                std::fs::remove_file(&partial).map_err(disk)?;
                return Err(failure);
            }
        }
        std::fs::rename(&partial, blob).map_err(disk)?;
        log::info!("downloaded {label} in {:.1} s", start.elapsed().as_secs_f64());
        Ok(())
    }

    /// Fetches until the partial file is as long as promised.
    fn fill(&self, partial: &Path, facts: &FileFacts) -> Result<(), Failure> {
        let have = || length(partial);
        self.retry(have, || {
            let have = have();
            match facts.size_bytes {
                Some(size) if have == size && size > 0 => return Ok(()),
                Some(size) if have > size => {
                    std::fs::remove_file(partial).map_err(|e| Failure::disk(partial, e))?;
                }
                _ => {}
            }
            let result = self.attempt(partial, facts);
            match result {
                // Whatever came makes this a new failure, not a repeated one.
                Err(failure) if failure.is_outage() && length(partial) > have => {
                    Err(Attempt::Progressed(failure))
                }
                result => result.map_err(Attempt::Failed),
            }
        })
    }

    fn attempt(&self, partial: &Path, facts: &FileFacts) -> Result<(), Failure> {
        let disk = |source: io::Error| Failure::Disk {
            path: partial.into(),
            source,
            missing_bytes: facts.size_bytes.map(|size| size.saturating_sub(length(partial))),
        };
        let mut have = length(partial);
        let response = self.client.content(self.repo, self.commit, self.file, have)?;
        let resumes = response.status() == 206 && {
            let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
            range.is_some_and(|range| range.starts_with(&format!("bytes {have}-")))
        };
        if response.status() == 416 || response.status() == 206 && !resumes {
            std::fs::remove_file(partial).map_err(disk)?;
            return Err(Failure::Unreachable("the hub cannot resume the download".into()));
        }
        let mut file = if resumes {
            File::options().append(true).open(partial)
        } else {
            have = 0;
            File::create(partial)
        }
        .map_err(disk)?;
        let mut body = response.into_body().into_reader();
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            if self.options.progress.at(have).is_break() {
                return Err(Failure::Stopped);
            }
            let count = body.read(&mut chunk).map_err(|error| match error.into() {
                ureq::Error::Timeout(_) => Failure::Unreachable("no byte came for long".into()),
                error => Failure::Unreachable(error.to_string()),
            })?;
            if count == 0 {
                break;
            }
            file.write_all(&chunk[..count]).map_err(disk)?;
            have += count as u64;
            if facts.size_bytes.is_some_and(|size| have > size) {
                return Err(Failure::Garbled(format!("more bytes of {} than promised", self.file)));
            }
        }
        // Some file systems find out at the end that they are full.
        file.sync_all().map_err(disk)?;
        match facts.size_bytes {
            Some(size) if have < size => Err(Failure::Unreachable("the connection was cut".into())),
            _ => Ok(()),
        }
    }

    /// Compares the content with its hash, where the etag is one.
    fn verify(&self, partial: &Path, facts: &FileFacts) -> Result<(), Failure> {
        let hexadecimal = facts.etag.bytes().all(|b| b.is_ascii_hexdigit());
        let found = match facts.etag.len() {
            64 if hexadecimal => self.digest(partial, Sha256::new()),
            40 if hexadecimal => {
                let header = format!("blob {}\0", length(partial));
                self.digest(partial, Sha1::new().chain_update(header))
            }
            _ => {
                log::info!("{}: the hub gives no checksum", self.label());
                return Ok(());
            }
        }?;
        if found == facts.etag.to_lowercase() {
            return Ok(());
        }
        Err(Failure::Damaged(format!(
            "the checksum of {} is {found} instead of {}: damaged on the way, and deleted; run \
             again, and should it happen again, tell the repository's owner",
            self.file, facts.etag
        )))
    }

    fn digest<D: Digest>(&self, path: &Path, mut digest: D) -> Result<String, Failure> {
        let disk = |error| Failure::disk(path, error);
        let have = length(path);
        let mut file = File::open(path).map_err(disk)?;
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let count = file.read(&mut chunk).map_err(disk)?;
            if count == 0 {
                break;
            }
            digest.update(&chunk[..count]);
            if self.options.progress.at(have).is_break() {
                return Err(Failure::Stopped);
            }
        }
        Ok(hexadecimal(&digest.finalize()))
    }

    /// Tries again after an outage, with growing pauses; `have` gives the bytes that are there.
    fn retry<T, F: Into<Attempt>>(
        &self,
        have: impl Fn() -> u64,
        mut attempt: impl FnMut() -> Result<T, F>,
    ) -> Result<T, Failure> {
        let mut failures = 0;
        loop {
            let failure = match attempt().map_err(Into::into) {
                Ok(value) => return Ok(value),
                Err(Attempt::Failed(failure)) => failure,
                Err(Attempt::Progressed(failure)) => {
                    failures = 0;
                    failure
                }
            };
            failures += 1;
            if !failure.is_outage() || failures >= MAX_ATTEMPTS {
                return Err(failure);
            }
            log::info!("{}: {failure:?}; trying again", self.label());
            let pause = match failure {
                Failure::Busy { wait: Some(wait), .. } => wait,
                _ => self.options.retry_pause * 2u32.pow(failures - 1),
            };
            self.pause(pause, have())?;
        }
    }

    /// Waits, unless it is stopped.
    fn pause(&self, time: Duration, have: u64) -> Result<(), Failure> {
        let end = Instant::now() + time;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            if self.options.progress.at(have).is_break() {
                return Err(Failure::Stopped);
            }
            std::thread::sleep(left.min(TICK));
        }
        Ok(())
    }

    fn label(&self) -> String {
        format!("{}/{}", self.repo, self.file)
    }
}

/// How an attempt ended that is worth another one.
enum Attempt {
    Failed(Failure),
    Progressed(Failure),
}

impl From<Failure> for Attempt {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Length of a file, 0 when it is not there.
fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |facts| facts.len())
}

/// Lower-case digits of some bytes.
fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
