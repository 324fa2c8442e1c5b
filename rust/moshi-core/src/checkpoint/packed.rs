//! Weights in the form in which an executor multiplies them, kept in a file of their own: whoever
//! loads a model again reads them from there, and rounds and reorders nothing.
//!
//! The file is a safetensors file of bytes, one tensor for each matrix, named by what it was made
//! from. It is written under a name of its own and put in its place when it is whole. A file that
//! cannot be read or written costs its advantage and no model; only a folder that cannot be made is
//! an error.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{Fingerprint, TensorFile};
use crate::error::{Error, Result};
use crate::session::random_seed;

/// Room in the header for each tensor, beside its name.
const HEADER_BYTES_OF_A_TENSOR: usize = 96;
/// Bytes before the header: its length.
const LENGTH_BYTES: usize = 8;
const EXTENSION: &str = "packed.safetensors";
/// Extension of a file that is being written.
const PART: &str = "part";
/// A file that nobody wrote to for so long was left by a process that was killed.
const ABANDONED: Duration = Duration::from_secs(3600);

/// The packed weights of one model, from an earlier load or for a later one.
pub(crate) struct PackedFile {
    path: PathBuf,
    found: Option<TensorFile>,
    writer: RefCell<Option<Writer>>,
}

struct Writer {
    file: BufWriter<File>,
    path: PathBuf,
    header_bytes: usize,
    header: Map<String, Value>,
    data_bytes: usize,
}

impl PackedFile {
    /// The file in `folder` for weights of this identity, kept in this form. `names` are all that
    /// may be kept.
    ///
    /// # Errors
    /// [`Error::Io`] when there is no such folder and it cannot be made.
    pub(crate) fn open<'n>(
        folder: &Path,
        identity: Fingerprint,
        form: &str,
        names: impl Iterator<Item = &'n str>,
    ) -> Result<Self> {
        fs::create_dir_all(folder).map_err(|source| Error::Io { path: folder.into(), source })?;
        let hash = Sha256::new().chain_update(identity.bytes()).chain_update(form).finalize();
        let name = hash.iter().take(16).fold(0u128, |name, &byte| name << 8 | u128::from(byte));
        let path = folder.join(format!("{name:032x}.{EXTENSION}"));
        let found = match TensorFile::open(path.as_path()) {
            Ok(file) => Some(file),
            Err(Error::NotFound { .. }) => None,
            Err(error) => {
                log::warn!("packed weights are made anew: {error}");
                None
            }
        };
        let writer = match &found {
            Some(_) => None,
            None => Writer::begin(&path, names).map_or_else(
                |error| {
                    log::warn!("packed weights are not kept: {}: {error}", path.display());
                    None
                },
                Some,
            ),
        };
        match &found {
            Some(_) => log::info!("packed weights from {}", path.display()),
            None => log::info!("packed weights will be in {}", path.display()),
        }
        Ok(Self { path, found, writer: RefCell::new(writer) })
    }

    /// The bytes of a matrix that an earlier load kept.
    pub(crate) fn get(&self, name: &str) -> Option<&[u8]> {
        let file = self.found.as_ref()?;
        file.tensors().get(name).map(|info| file.tensor_bytes(info))
    }

    /// Keeps the bytes of a matrix.
    pub(crate) fn put(&self, name: &str, bytes: &[u8]) {
        let mut writer = self.writer.borrow_mut();
        if let Some(Err(error)) = writer.as_mut().map(|writer| writer.put(name, bytes)) {
            log::warn!("packed weights are not kept: {}: {error}", self.path.display());
            *writer = None;
        }
    }

    /// Puts the file in its place, once all is in it.
    pub(crate) fn finish(self) {
        let Some(writer) = self.writer.into_inner() else { return };
        if let Err(error) = writer.finish(&self.path) {
            log::warn!("packed weights are not kept: {}: {error}", self.path.display());
        }
    }
}

impl Writer {
    fn begin<'n>(path: &Path, names: impl Iterator<Item = &'n str>) -> io::Result<Self> {
        let room: usize = names.map(|name| name.len() + HEADER_BYTES_OF_A_TENSOR).sum();
        let header_bytes = (room + LENGTH_BYTES + 2).next_multiple_of(64) - LENGTH_BYTES;
        remove_abandoned(path)?;
        // Processes in containers have the same numbers.
        let part = path.with_extension(format!("{:016x}.{PART}", random_seed()));
        let mut file = BufWriter::new(File::create_new(&part)?);
        file.seek(SeekFrom::Start((LENGTH_BYTES + header_bytes) as u64))?;
        Ok(Self { file, path: part, header_bytes, header: Map::new(), data_bytes: 0 })
    }

    fn put(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        let end = self.data_bytes + bytes.len();
        let entry = json!({
            "dtype": "U8",
            "shape": [bytes.len()],
            "data_offsets": [self.data_bytes, end],
        });
        self.header.insert(name.to_owned(), entry);
        self.data_bytes = end;
        Ok(())
    }

    fn finish(mut self, path: &Path) -> io::Result<()> {
        let header = Value::Object(std::mem::take(&mut self.header)).to_string();
        if header.len() > self.header_bytes {
            return Err(io::Error::other("the header has no room for all names"));
        }
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&(self.header_bytes as u64).to_le_bytes())?;
        write!(self.file, "{header:<width$}", width = self.header_bytes)?;
        self.file.flush()?;
        self.file.get_ref().sync_all()?;
        fs::rename(&self.path, path)
    }
}

/// Removes what killed processes left of files in this folder.
fn remove_abandoned(path: &Path) -> io::Result<()> {
    let Some(folder) = path.parent() else { return Ok(()) };
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let age = || entry.metadata().ok()?.modified().ok()?.elapsed().ok();
        if is_part(&entry.file_name()) && age().is_some_and(|age| age > ABANDONED) {
            // Another process may have been faster.
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}

/// True for names that [`Writer::begin`] gives.
fn is_part(name: &std::ffi::OsStr) -> bool {
    let hex = |text: &str, len: usize| {
        text.len() == len && text.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let parts: Vec<&str> = name.to_str().unwrap_or_default().split('.').collect();
    matches!(parts[..], [name, "packed", number, PART] if hex(name, 32) && hex(number, 16))
}

impl Drop for Writer {
    fn drop(&mut self) {
        // In its place by now, or of no use to anybody.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(folder: &Path, form: &str) -> PackedFile {
        let identity = Fingerprint::of(&[], &["a model"]);
        PackedFile::open(folder, identity, form, ["one", "two"].into_iter()).unwrap()
    }

    fn files(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn what_was_put_is_found_by_the_same_model_in_the_same_form() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("made");
        let file = open(&folder, "panels");
        assert_eq!(file.get("one"), None);
        file.put("one", &[1, 2, 3]);
        file.put("two", &[4; 1000]);
        assert_eq!(open(&folder, "panels").get("one"), None, "not whole yet");
        file.finish();
        let again = open(&folder, "panels");
        assert_eq!(again.get("one"), Some(&[1, 2, 3][..]));
        assert_eq!(again.get("two"), Some(&[4; 1000][..]));
        assert_eq!(again.get("three"), None);
        assert_eq!(open(&folder, "rows").get("one"), None);
        assert_eq!(files(&folder), 1, "nothing half-written stays");
    }

    #[test]
    fn a_damaged_file_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let file = open(folder.path(), "panels");
        file.put("one", &[7; 64]);
        let path = file.path.clone();
        file.finish();
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        let file = open(folder.path(), "panels");
        assert_eq!(file.get("one"), None);
        file.put("one", &[7; 64]);
        file.finish();
        assert_eq!(fs::read(&path).unwrap(), whole);
    }

    #[test]
    fn only_own_files_are_abandoned() {
        let own = format!("{:032x}.packed.{:016x}.part", 7, 8);
        assert!(is_part(own.as_ref()));
        for other in ["a.part", "x.packed.y.part", "download.part", &own[1..], "a.packed.0.part"] {
            assert!(!is_part(other.as_ref()), "{other}");
        }
    }

    #[test]
    fn a_folder_that_cannot_be_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let identity = Fingerprint::of(&[], &[]);
        let opened = PackedFile::open(file.path(), identity, "panels", [].into_iter());
        assert!(matches!(opened, Err(Error::Io { path, .. }) if path == file.path()));
    }
}
