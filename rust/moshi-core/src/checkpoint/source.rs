//! Where the files of a model repository come from.

use std::fmt::Debug;
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};

/// A repository whose files can be had as local paths: a folder, or one on a hub.
///
/// Names are those that configs use: relative, `/` between parts, never leaving the repository.
pub trait FileSource: Debug + Send + Sync {
    /// How messages call it: the folder's path, or `owner/name`.
    fn label(&self) -> String;
    /// Names of all its files.
    ///
    /// # Errors
    /// When the list cannot be had.
    fn list(&self) -> Result<Vec<String>>;
    /// Local path of one file, downloaded if need be; `None` when the repository has none of
    /// that name.
    ///
    /// # Errors
    /// When the file exists but cannot be had.
    fn find(&self, name: &str) -> Result<Option<PathBuf>>;
    /// Local path of the file `name` of another repository `owner/name`: what configs write as
    /// `hf://owner/name/file`.
    ///
    /// # Errors
    /// When it cannot be had.
    fn find_elsewhere(&self, repo: &str, name: &str) -> Result<PathBuf>;
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

    fn find(&self, name: &str) -> Result<Option<PathBuf>> {
        let path = self.0.join(name);
        Ok(path.exists().then_some(path))
    }

    fn find_elsewhere(&self, repo: &str, name: &str) -> Result<PathBuf> {
        let path = self.0.join(name.rsplit('/').next().unwrap_or(name));
        if path.exists() {
            return Ok(path);
        }
        let hint = format!(": it is {name} of {repo}; download it into the model folder");
        Err(Error::NotFound { path, hint })
    }
}

/// True for a name that cannot leave the repository.
pub fn is_plain(name: &str) -> bool {
    let inside = Path::new(name).components().all(|c| matches!(c, Component::Normal(_)));
    // Parts that `components` passes over.
    let odd = |part: &str| matches!(part, "" | ".");
    inside && !name.split('/').any(odd) && !name.contains('\\')
}
