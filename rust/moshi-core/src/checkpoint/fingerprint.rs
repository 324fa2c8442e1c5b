//! Identity of a set of weights, cheap enough to take at every load.

use sha2::{Digest, Sha256};

use super::TensorFile;

/// SHA-256 over file headers and the ends of every tensor: two checkpoints that differ by
/// training differ here, without reading gigabytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Takes the fingerprint of some files and of texts that change results (configs, types).
    pub fn of(files: &[&TensorFile], texts: &[&str]) -> Self {
        let mut hash = Sha256::new();
        for file in files {
            hash.update(file.header_bytes());
            for info in file.tensors().values() {
                let bytes = file.tensor_bytes(info);
                hash.update(&bytes[..bytes.len().min(SAMPLE_BYTES)]);
                hash.update(&bytes[bytes.len().saturating_sub(SAMPLE_BYTES)..]);
            }
        }
        for text in texts {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        }
        Self(hash.finalize().into())
    }

    /// The 32 bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl std::fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0[..8].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

const SAMPLE_BYTES: usize = 1024;
