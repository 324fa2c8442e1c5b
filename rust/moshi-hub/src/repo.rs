//! A repository on a hub as a source of files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use moshi_core::checkpoint::{FileSource, SourceFile};
use moshi_core::{Error, Result};

use crate::cache::RepoCache;
use crate::client::{Client, is_commit, is_safe};
use crate::download::Download;
use crate::failure::{Failure, Place};
use crate::is_repo_name;
use crate::options::HubOptions;

/// A repository `owner/name` at one revision.
///
/// The revision is resolved once, to a commit: all files come from that commit, whatever is
/// pushed meanwhile. When the hub cannot be reached, or with [`HubOptions::offline`], the files of
/// the commit that the cache knows are the repository.
#[derive(Debug)]
pub struct HubRepo {
    name: String,
    revision: String,
    options: HubOptions,
    client: Arc<Client>,
    cache: RepoCache,
    snapshot: Mutex<Option<Arc<Snapshot>>>,
    others: Mutex<BTreeMap<String, Arc<Self>>>,
}

/// What the repository is for as long as it is open.
#[derive(Debug)]
struct Snapshot {
    commit: String,
    files: BTreeSet<String>,
    /// The list is the cache's, and may lack files.
    cached: bool,
}

const DEFAULT_REVISION: &str = "main";

impl HubRepo {
    /// The repository `name`, `owner/name`. Asks nobody yet.
    ///
    /// # Errors
    /// [`Error::Input`] for a name or revision that cannot be, [`Error::Io`] for unreadable
    /// certificates.
    pub fn new(name: &str, options: &HubOptions) -> Result<Self> {
        if !is_repo_name(name) {
            let reason = format!("\"{name}\" is not the OWNER/NAME of a repository on a hub");
            return Err(Error::input("repository", reason));
        }
        let revision = options.revision.as_deref().unwrap_or(DEFAULT_REVISION);
        if !is_safe(revision) {
            let reason = format!("\"{revision}\" is not a branch, a tag or a commit");
            return Err(Error::input("revision", reason));
        }
        let repo = |client| Self {
            name: name.into(),
            revision: revision.into(),
            options: options.clone(),
            client,
            cache: RepoCache::new(&options.cache, name),
            snapshot: Mutex::default(),
            others: Mutex::default(),
        };
        match Client::new(options) {
            Ok(client) => Ok(repo(Arc::new(client))),
            Err(failure) => Err(failure.into_error(Place {
                endpoint: &options.endpoint,
                repo: name,
                revision,
                file: None,
                has_token: options.token.is_some(),
                cache: &options.cache,
            })),
        }
    }

    /// The account that the repository belongs to.
    pub fn owner(&self) -> &str {
        self.name.split('/').next().unwrap_or_default()
    }

    fn place<'a>(&'a self, file: Option<&'a str>) -> Place<'a> {
        Place {
            endpoint: &self.options.endpoint,
            repo: &self.name,
            revision: &self.revision,
            file,
            has_token: self.options.token.is_some(),
            cache: &self.options.cache,
        }
    }

    fn snapshot(&self) -> Result<Arc<Snapshot>> {
        let mut slot = self.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(snapshot) = &*slot {
            return Ok(snapshot.clone());
        }
        let snapshot = Arc::new(self.resolve()?);
        Ok(slot.insert(snapshot).clone())
    }

    fn resolve(&self) -> Result<Snapshot> {
        if self.options.offline {
            return self.cached().ok_or_else(|| {
                let hint = format!(
                    ": not in the cache {} at revision \"{}\", and HF_HUB_OFFLINE forbids to ask \
                     the hub; unset it once, to download",
                    self.options.cache.display(),
                    self.revision
                );
                Error::NotFound { path: PathBuf::from(&self.name), hint }
            });
        }
        match self.client.list(&self.name, &self.revision) {
            Ok(listing) => {
                if let Err(error) = self.cache.note_commit(&self.revision, &listing.commit) {
                    let failure = Failure::disk(&self.options.cache, error);
                    return Err(failure.into_error(self.place(None)));
                }
                let files = listing.files.into_iter().collect();
                Ok(Snapshot { commit: listing.commit, files, cached: false })
            }
            Err(failure) if failure.is_outage() => {
                let error = failure.into_error(self.place(None));
                let snapshot = self.cached().ok_or_else(|| error.to_string());
                snapshot.map_or(Err(error), |snapshot| {
                    log::warn!(
                        "{}: cannot reach {}; using commit {} from the cache",
                        self.name,
                        self.options.endpoint,
                        snapshot.commit
                    );
                    Ok(snapshot)
                })
            }
            Err(failure) => Err(failure.into_error(self.place(None))),
        }
    }

    /// What the cache has.
    fn cached(&self) -> Option<Snapshot> {
        let commit = self.cache.commit_of(&self.revision)?;
        let files = self.cache.list(&commit)?.into_iter().collect();
        Some(Snapshot { commit, files, cached: true })
    }
}

impl FileSource for HubRepo {
    fn label(&self) -> String {
        self.name.clone()
    }

    fn list(&self) -> Result<Vec<String>> {
        Ok(self.snapshot()?.files.iter().cloned().collect())
    }

    fn find(&self, name: &str) -> Result<Option<SourceFile>> {
        if !is_safe(name) {
            return Ok(None);
        }
        // A commit does not change: what the cache has of it needs no request.
        if is_commit(&self.revision) {
            let path = self.cache.pointer(&self.revision, name);
            if path.exists() {
                return Ok(Some(SourceFile::on_disk(path)));
            }
        }
        let snapshot = self.snapshot()?;
        let path = self.cache.pointer(&snapshot.commit, name);
        if path.exists() {
            return Ok(Some(SourceFile::on_disk(path)));
        }
        let leave = self.options.skip_weights && is_weights(name);
        if leave || snapshot.cached || !snapshot.files.contains(name) {
            return Ok(None);
        }
        let download = Download {
            client: &self.client,
            cache: &self.cache,
            options: &self.options,
            repo: &self.name,
            commit: &snapshot.commit,
            file: name,
        };
        match download.run() {
            Ok(path) => Ok(Some(SourceFile::on_disk(path))),
            Err(failure) => Err(failure.into_error(self.place(Some(name)))),
        }
    }

    fn find_elsewhere(&self, repo: &str, name: &str) -> Result<SourceFile> {
        let other = {
            let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
            match others.get(repo) {
                Some(other) => other.clone(),
                None => {
                    let options = HubOptions { revision: None, ..self.options.clone() };
                    let other = Arc::new(Self::new(repo, &options)?);
                    others.insert(repo.into(), other.clone());
                    other
                }
            }
        };
        let path = PathBuf::from(format!("{repo}/{name}"));
        other.find(name)?.ok_or_else(|| Error::NotFound { path, hint: other.hint(name) })
    }

    fn hint(&self, name: &str) -> String {
        let Ok(snapshot) = self.snapshot() else { return String::new() };
        let revision = &self.revision;
        if snapshot.files.contains(name) {
            ": on the hub, but not in the cache".into()
        } else if snapshot.cached {
            format!(
                ": not in the cache {}, and the hub is not asked while offline; load once with a \
                 connection",
                self.options.cache.display()
            )
        } else {
            format!(": the repository has no such file at revision \"{revision}\"")
        }
    }
}

/// True for the large files of a repository.
fn is_weights(name: &str) -> bool {
    [".safetensors", ".gguf"].iter().any(|ending| name.ends_with(ending))
}
