//! Where the files of a model repository come from.

use std::fmt::{self, Debug};
use std::ops::Deref;
use std::path::{Component, Path, PathBuf};

use moshi_kernels::MappedFile;

use crate::error::{Error, Result};

/// A file as a source has it: on disk, or in memory from the start.
#[derive(Clone, PartialEq, Eq)]
pub struct SourceFile {
    path: PathBuf,
    contents: Option<&'static [u8]>,
}

impl SourceFile {
    /// A file to open at `path`.
    pub fn on_disk(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), contents: None }
    }

    /// A file whose contents the program carries; `path` is what messages call it.
    pub fn in_memory(path: impl Into<PathBuf>, contents: &'static [u8]) -> Self {
        Self { path: path.into(), contents: Some(contents) }
    }

    /// What messages call it: its path, which is on no disk where the file is in memory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its contents, without a copy.
    ///
    /// # Errors
    /// [`Error::NotFound`], or [`Error::Io`], also for what is no regular file.
    pub fn bytes(&self) -> Result<FileBytes> {
        Ok(FileBytes(match self.contents {
            Some(contents) => Bytes::InMemory(contents),
            None => {
                let mapped = MappedFile::open(&self.path);
                Bytes::Mapped(mapped.map_err(|e| Error::read(&self.path, e))?)
            }
        }))
    }
}

impl Debug for SourceFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.path)?;
        self.contents.map_or(Ok(()), |contents| write!(f, " ({} bytes in memory)", contents.len()))
    }
}

impl From<&PathBuf> for SourceFile {
    fn from(path: &PathBuf) -> Self {
        Self::on_disk(path)
    }
}

impl From<&Path> for SourceFile {
    fn from(path: &Path) -> Self {
        Self::on_disk(path)
    }
}

impl From<&Self> for SourceFile {
    fn from(file: &Self) -> Self {
        file.clone()
    }
}

/// The contents of a [`SourceFile`]: a memory map, or memory of the program. Dereferences to them.
pub struct FileBytes(Bytes);

impl From<Vec<u8>> for FileBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Bytes::Made(bytes))
    }
}

enum Bytes {
    Mapped(MappedFile),
    InMemory(&'static [u8]),
    Made(Vec<u8>),
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Bytes::Mapped(map) => map,
            Bytes::InMemory(bytes) => bytes,
            Bytes::Made(bytes) => bytes,
        }
    }
}

/// A repository whose files can be had on this machine: a folder, one on a hub, or one in memory.
///
/// Names are those that configs use: relative, `/` between parts, never leaving the repository.
pub trait FileSource: Debug + Send + Sync {
    /// How messages call it: the folder's path, `owner/name`, or what it is.
    fn label(&self) -> String;
    /// Names of all its files.
    ///
    /// # Errors
    /// When the list cannot be had.
    fn list(&self) -> Result<Vec<String>>;
    /// One file, downloaded if need be; `None` when the repository has none of that name.
    ///
    /// # Errors
    /// When the file exists but cannot be had.
    fn find(&self, name: &str) -> Result<Option<SourceFile>>;
    /// The file `name` of another repository `owner/name`: what configs write as
    /// `hf://owner/name/file`.
    ///
    /// # Errors
    /// When it cannot be had.
    fn find_elsewhere(&self, repo: &str, name: &str) -> Result<SourceFile>;
    /// True for files of this machine, whose configs may name others of it, as `file://PATH`.
    fn is_local(&self) -> bool {
        false
    }
    /// What to do about a file that `find` has not found, starting with a separator, or empty.
    fn hint(&self, _name: &str) -> String {
        String::new()
    }
}

/// A folder on disk.
#[derive(Clone, Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// The folder `path`, which must exist.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn open(path: &Path) -> Result<Self> {
        // The folder of a plain file name.
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        if path.is_dir() {
            return Ok(Self(path.into()));
        }
        let hint = ": expected a model folder, a file in one, or the OWNER/NAME of a repository \
                    on a hub";
        Err(Error::NotFound { path: path.into(), hint: hint.into() })
    }
}

impl FileSource for Folder {
    fn is_local(&self) -> bool {
        true
    }

    fn label(&self) -> String {
        self.0.display().to_string()
    }

    fn list(&self) -> Result<Vec<String>> {
        let io = |source| Error::Io { path: self.0.clone(), source };
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.0).map_err(io)? {
            let entry = entry.map_err(io)?;
            if !entry.path().is_dir() {
                names.extend(entry.file_name().into_string().ok());
            }
        }
        names.sort();
        Ok(names)
    }

    fn find(&self, name: &str) -> Result<Option<SourceFile>> {
        let path = self.0.join(name);
        Ok(path.exists().then(|| SourceFile::on_disk(path)))
    }

    fn find_elsewhere(&self, repo: &str, name: &str) -> Result<SourceFile> {
        let path = self.0.join(file_part(name));
        if path.exists() {
            return Ok(SourceFile::on_disk(path));
        }
        let hint = format!(": it is {name} of {repo}; download it into the model folder");
        Err(Error::NotFound { path, hint })
    }
}

/// Files that a program carries, by name.
#[derive(Clone)]
pub struct InMemory {
    label: String,
    files: &'static [(&'static str, &'static [u8])],
}

impl InMemory {
    /// `files` as a repository that messages call `label`.
    pub fn new(label: impl Into<String>, files: &'static [(&'static str, &'static [u8])]) -> Self {
        Self { label: label.into(), files }
    }

    fn path(&self, name: &str) -> PathBuf {
        Path::new(&self.label).join(name)
    }
}

impl Debug for InMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} files in memory)", self.label, self.files.len())
    }
}

impl FileSource for InMemory {
    fn label(&self) -> String {
        self.label.clone()
    }

    fn list(&self) -> Result<Vec<String>> {
        let mut names: Vec<String> = self.files.iter().map(|(name, _)| (*name).into()).collect();
        names.sort();
        Ok(names)
    }

    fn find(&self, name: &str) -> Result<Option<SourceFile>> {
        let found = self.files.iter().find(|(own, _)| *own == name);
        Ok(found.map(|(name, contents)| SourceFile::in_memory(self.path(name), contents)))
    }

    fn find_elsewhere(&self, repo: &str, name: &str) -> Result<SourceFile> {
        let own = file_part(name);
        self.find(own)?.ok_or_else(|| {
            let hint = format!(": it is {name} of {repo}, which is not in memory");
            Error::NotFound { path: self.path(own), hint }
        })
    }
}

/// The last part of a name.
fn file_part(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// True for a name that cannot leave the repository.
pub fn is_plain(name: &str) -> bool {
    let inside = Path::new(name).components().all(|c| matches!(c, Component::Normal(_)));
    // Parts that `components` passes over.
    let odd = |part: &str| matches!(part, "" | ".");
    inside && !name.split('/').any(odd) && !name.contains('\\')
}
