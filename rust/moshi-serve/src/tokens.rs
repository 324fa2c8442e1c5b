//! Tokens of conversations that may go on after a lost connection, and their files.
//!
//! A token is 24 random bytes. The daemon keeps its SHA-256 only: neither memory nor the state
//! directory gives anybody a token. Files are readable by their owner alone.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

pub(crate) type TokenHash = [u8; 32];

/// Random bytes of a token.
const TOKEN_BYTES: usize = 24;
/// Extensions of a saved conversation, and of one that is being written.
const SAVED: &str = "session";
const PART: &str = "part";

/// A secret that opens one conversation.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    pub(crate) fn new() -> Self {
        Self(random_text())
    }

    /// The text for the client.
    pub fn text(&self) -> &str {
        &self.0
    }

    pub(crate) fn hash(&self) -> TokenHash {
        Self::hash_of(&self.0)
    }

    pub(crate) fn hash_of(text: &str) -> TokenHash {
        Sha256::digest(text.as_bytes()).into()
    }
}

impl From<&str> for Token {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

/// An unguessable text of 32 URL-safe characters.
pub(crate) fn random_text() -> String {
    let mut bytes = [0; TOKEN_BYTES];
    getrandom::fill(&mut bytes).expect("the operating system has randomness");
    URL_SAFE_NO_PAD.encode(bytes)
}

fn file(dir: &Path, hash: TokenHash) -> PathBuf {
    dir.join(format!("{}.{SAVED}", URL_SAFE_NO_PAD.encode(hash)))
}

/// Writes a conversation for its owner's eyes only. Its file is there whole or not at all.
pub(crate) fn save(dir: &Path, hash: TokenHash, blob: &[u8]) -> std::io::Result<()> {
    let path = file(dir, hash);
    let part = path.with_extension(PART);
    // One that is left from a crash would keep its permissions.
    remove(&part)?;
    let saved = write(&part, blob).and_then(|()| std::fs::rename(&part, &path));
    if saved.is_err() {
        // What went wrong is the answer, not what remains of it.
        let _ = remove(&part);
    }
    saved
}

fn write(path: &Path, blob: &[u8]) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(blob)?;
    file.sync_all()
}

fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// True when there is a conversation that [`take`] may give.
pub(crate) fn is_saved(dir: &Path, hash: TokenHash) -> bool {
    file(dir, hash).is_file()
}

/// Reads and removes a conversation, unless its time is over: `grace` after it was written, and
/// after the daemon was ready again, which it is for `ready_for`.
pub(crate) fn take(
    dir: &Path,
    hash: TokenHash,
    grace: Duration,
    ready_for: Duration,
) -> Option<Vec<u8>> {
    let path = file(dir, hash);
    let written = std::fs::metadata(&path).and_then(|meta| meta.modified()).ok()?;
    // A clock that was set back makes no conversation old.
    let age = SystemTime::now().duration_since(written).unwrap_or_default();
    let fresh = age.min(ready_for) <= grace;
    let blob = if fresh { std::fs::read(&path).ok() } else { None };
    if let Err(error) = std::fs::remove_file(&path) {
        log::warn!("cannot remove a saved session: {error}");
        return None;
    }
    blob
}

/// Removes conversations that were written before this time: nobody came back for them. Whatever
/// else is in the directory is not ours.
pub(crate) fn sweep(dir: &Path, before: SystemTime) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if !entry.file_type()?.is_file() || !is_ours(&entry.file_name()) {
            continue;
        }
        match entry.metadata().and_then(|meta| meta.modified()) {
            Ok(written) if written < before => remove(&entry.path())?,
            _ => {}
        }
    }
    Ok(())
}

/// True for names that [`save`] gives.
fn is_ours(name: &std::ffi::OsStr) -> bool {
    name.to_str().and_then(|name| name.split_once('.')).is_some_and(|(hash, extension)| {
        let decoded = URL_SAFE_NO_PAD.decode(hash);
        [SAVED, PART].contains(&extension)
            && decoded.is_ok_and(|hash| hash.len() == size_of::<TokenHash>())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_secrets() {
        let (a, b) = (Token::new(), Token::new());
        assert_ne!(a.text(), b.text());
        assert_eq!(a.text().len(), 32);
        assert_eq!(a.hash(), Token::from(a.text()).hash());
        assert!(!format!("{a:?}").contains(a.text()));
    }

    const HOUR: Duration = Duration::from_secs(3600);

    fn age(path: &Path, by: Duration) {
        let file = std::fs::File::options().append(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - by).unwrap();
    }

    #[test]
    fn a_conversation_is_saved_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let (dir, hash) = (folder.path(), Token::new().hash());
        let path = file(dir, hash);
        // Left by a crash, and an older one of the same conversation.
        std::fs::write(path.with_extension(PART), "torn").unwrap();
        std::fs::write(&path, "old").unwrap();
        save(dir, hash, b"whole").unwrap();
        let names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(names, std::slice::from_ref(&path));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(take(dir, hash, HOUR, Duration::ZERO).unwrap(), b"whole");
        assert_eq!(take(dir, hash, HOUR, Duration::ZERO), None, "once");

        // Where a file cannot be put in its place, nothing half is left.
        std::fs::create_dir(&path).unwrap();
        save(dir, hash, b"whole").unwrap_err();
        assert!(!path.with_extension(PART).exists());
    }

    #[test]
    fn the_time_that_the_daemon_was_away_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let (dir, minute) = (folder.path(), HOUR / 60);
        for (age_of_file, ready_for, kept) in [
            (HOUR, Duration::ZERO, true),
            (HOUR, minute / 2, true),
            (HOUR, 2 * minute, false),
            (minute / 2, 2 * minute, true),
        ] {
            let hash = Token::new().hash();
            save(dir, hash, b"kept").unwrap();
            age(&file(dir, hash), age_of_file);
            let taken = take(dir, hash, minute, ready_for);
            assert_eq!(taken.is_some(), kept, "{age_of_file:?} {ready_for:?}");
            assert!(!file(dir, hash).exists());
        }
    }

    #[test]
    fn only_old_conversations_are_swept() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        let [old, new] = [(); 2].map(|()| file(dir, Token::new().hash()));
        let torn = file(dir, Token::new().hash()).with_extension(PART);
        let foreign = ["work.session", "notes.txt", "AAAA.session"].map(|name| dir.join(name));
        for path in [&old, &new, &torn].into_iter().chain(&foreign) {
            std::fs::write(path, "x").unwrap();
            age(path, if path == &new { Duration::ZERO } else { 2 * HOUR });
        }
        let folder_of_ours = file(dir, Token::new().hash());
        std::fs::create_dir(&folder_of_ours).unwrap();
        sweep(dir, SystemTime::now() - HOUR).unwrap();
        assert!(!old.exists() && !torn.exists());
        assert!(new.exists() && folder_of_ours.exists());
        assert!(foreign.iter().all(|path| path.exists()));
    }
}
