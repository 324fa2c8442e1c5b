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
    dir.join(format!("{}.session", URL_SAFE_NO_PAD.encode(hash)))
}

/// Writes a conversation for its owner's eyes only.
pub(crate) fn save(dir: &Path, hash: TokenHash, blob: &[u8]) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let path = file(dir, hash);
    // An older file of the same conversation would keep its permissions.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => options.open(path)?.write_all(blob),
    }
}

/// Reads and removes a conversation, unless it is older than `grace`.
pub(crate) fn take(dir: &Path, hash: TokenHash, grace: Duration) -> Option<Vec<u8>> {
    let path = file(dir, hash);
    let written = std::fs::metadata(&path).and_then(|meta| meta.modified()).ok()?;
    let fresh = SystemTime::now().duration_since(written).is_ok_and(|age| age <= grace);
    let blob = if fresh { std::fs::read(&path).ok() } else { None };
    if let Err(error) = std::fs::remove_file(&path) {
        log::warn!("cannot remove a saved session: {error}");
        return None;
    }
    blob
}

/// Removes what nobody came back for.
pub(crate) fn sweep(dir: &Path, grace: Duration) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let written = std::fs::metadata(&path).and_then(|meta| meta.modified());
        let age = written.ok().and_then(|at| SystemTime::now().duration_since(at).ok());
        let ours = path.extension().is_some_and(|extension| extension == "session");
        if ours && age.is_some_and(|age| age > grace) {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
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
}
