//! The cache on disk, laid out as Python's `huggingface_hub` lays it out:
//!
//! ```text
//! models--owner--name/blobs/<etag>                    content, by hash
//! models--owner--name/snapshots/<commit>/<file>       links to blobs
//! models--owner--name/refs/<revision>                 the commit that a branch or tag stood for
//! .locks/models--owner--name/<etag>.lock              held while a blob is written
//! ```

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::client::{is_commit, is_safe};

/// One repository's part of the cache.
#[derive(Clone, Debug)]
pub(crate) struct RepoCache {
    folder: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    pub(crate) fn new(cache: &Path, repo: &str) -> Self {
        let name = format!("models--{}", repo.replace('/', "--"));
        Self { folder: cache.join(&name), locks: cache.join(".locks").join(&name) }
    }

    /// Where a file of a commit is or will be.
    pub(crate) fn pointer(&self, commit: &str, file: &str) -> PathBuf {
        self.snapshot(commit).join(file)
    }

    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// The commit that a revision stood for when the hub was last asked.
    pub(crate) fn commit_of(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let text = std::fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// Notes the commit of a branch or tag.
    pub(crate) fn note_commit(&self, revision: &str, commit: &str) -> io::Result<()> {
        if is_commit(revision) || self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        std::fs::create_dir_all(path.parent().unwrap_or(&path))?;
        // Written aside and renamed: a reader sees the old commit or the new one.
        let writer = (std::process::id(), std::thread::current().id());
        let aside = self.folder.join(format!(".ref-{}-{:?}", writer.0, writer.1));
        std::fs::write(&aside, commit)?;
        std::fs::rename(&aside, &path)
    }

    /// Names of the files that the cache has of a commit; `None` when it has none at all.
    pub(crate) fn list(&self, commit: &str) -> Option<Vec<String>> {
        let root = self.snapshot(commit);
        let mut names = Vec::new();
        let mut folders = vec![String::new()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(root.join(&folder)).ok()?.flatten() {
                let Ok(name) = entry.file_name().into_string() else { continue };
                let name = format!("{folder}{name}");
                // Follows links: one whose blob is gone is no file.
                match std::fs::metadata(entry.path()) {
                    Ok(facts) if facts.is_dir() => folders.push(format!("{name}/")),
                    Ok(_) if is_safe(&name) => names.push(name),
                    _ => {}
                }
            }
        }
        names.sort();
        (!names.is_empty()).then_some(names)
    }

    /// Takes the lock of a blob, which the file holds while it is open; `None` while another
    /// process has it.
    pub(crate) fn try_lock(&self, etag: &str) -> io::Result<Option<File>> {
        std::fs::create_dir_all(&self.locks)?;
        std::fs::create_dir_all(self.folder.join("blobs"))?;
        let path = self.locks.join(format!("{etag}.lock"));
        let file = File::options().create(true).truncate(false).write(true).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                log::warn!("the cache's disk has no locks: let one process download at a time");
                Ok(Some(file))
            }
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Makes a blob appear as a file of a commit.
    pub(crate) fn link(&self, commit: &str, file: &str, etag: &str) -> io::Result<PathBuf> {
        let pointer = self.pointer(commit, file);
        if pointer.exists() {
            return Ok(pointer);
        }
        std::fs::create_dir_all(pointer.parent().unwrap_or(&pointer))?;
        // A link whose blob was deleted.
        if pointer.is_symlink() {
            std::fs::remove_file(&pointer)?;
        }
        let up = "../".repeat(2 + file.matches('/').count());
        match symlink(Path::new(&format!("{up}blobs/{etag}")), &pointer) {
            Ok(()) => Ok(pointer),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(pointer),
            Err(_) => {
                // Links need a privilege on Windows; the blob then moves to its only file.
                std::fs::rename(self.blob(etag), &pointer)?;
                Ok(pointer)
            }
        }
    }

    fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    let target: PathBuf = target.components().collect();
    std::os::windows::fs::symlink_file(target, link)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_target: &Path, _link: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn a_blob_is_linked_and_listed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let cache = RepoCache::new(folder.path(), "owner/name");
        assert_eq!(cache.list(COMMIT), None);
        let lock = cache.try_lock("abc").expect("a lock");
        assert!(lock.is_some() && cache.try_lock("abc").expect("no lock").is_none());
        drop(lock);
        assert!(cache.try_lock("abc").expect("a lock").is_some());

        std::fs::write(cache.blob("abc"), "text").expect("a blob");
        let path = cache.link(COMMIT, "deep/er/file.txt", "abc").expect("a link");
        assert_eq!(std::fs::read_to_string(&path).expect("its text"), "text");
        assert_eq!(cache.list(COMMIT), Some(vec!["deep/er/file.txt".to_owned()]));

        std::fs::rename(cache.blob("abc"), cache.blob("def")).expect("another blob");
        assert_eq!(cache.list(COMMIT), None, "a link to nothing is no file");
        let again = cache.link(COMMIT, "deep/er/file.txt", "def").expect("a new link");
        assert_eq!(std::fs::read_to_string(again).expect("its text"), "text");
    }

    #[test]
    fn revisions_are_noted() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let cache = RepoCache::new(folder.path(), "owner/name");
        assert_eq!(cache.commit_of("refs/pr/1"), None);
        cache.note_commit("refs/pr/1", COMMIT).expect("a note");
        cache.note_commit(COMMIT, COMMIT).expect("nothing to note");
        assert_eq!(cache.commit_of("refs/pr/1").as_deref(), Some(COMMIT));
        assert_eq!(cache.commit_of(COMMIT).as_deref(), Some(COMMIT));
        let refs = folder.path().join("models--owner--name/refs");
        assert_eq!(std::fs::read_dir(&refs).expect("a folder").count(), 1);
        std::fs::write(refs.join("main"), "../../elsewhere").expect("a bad note");
        assert_eq!(cache.commit_of("main"), None);
    }
}
