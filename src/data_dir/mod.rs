//! The data directory: where it is, and which process holds it.
//!
//! One process at a time holds it, with a lock on the file `lock`. The file also says which process that is and how to
//! reach it. A second process can then say who is in the way, and a command can ask the first process instead.

mod backup;

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

pub(crate) use backup::backup;

use crate::engine::{
    self, Access, Files, StoreId, check_dir, create_private_dir, exists, open_private_file, open_to_read,
};
use crate::limits::app::LONGEST_PATH;

/// Returns the directory where this user has the data of the program `name`, unless `--data` names another one.
pub(crate) fn default_path(name: &str) -> anyhow::Result<PathBuf> {
    let dirs = directories::ProjectDirs::from("", "", name);
    let dirs = dirs.context("this user has no home directory to keep data in; name a directory with --data DIR")?;
    Ok(dirs.data_dir().to_owned())
}

/// Returns the absolute path of the data directory `path`, without links, whether or not it exists yet. The user may
/// name the directory by a link, but nothing below it is one.
///
/// Every later access is then to the same directory, however it was named and wherever this process goes. SQLite also
/// can't mistake an absolute path for a URI.
pub(crate) fn locate(path: &Path) -> anyhow::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    #[cfg(unix)]
    let absolute = without_links(&absolute)?;
    #[cfg(unix)]
    if absolute.as_os_str().len() > LONGEST_PATH {
        bail!("its path has {} bytes, and SQLite has room for {LONGEST_PATH}", absolute.as_os_str().len());
    }
    if absolute.exists() && !absolute.is_dir() {
        bail!("it is not a directory");
    }
    Ok(absolute)
}

/// Returns the text that precedes the reason why the directory `path` can't be used.
pub(crate) fn unusable(path: &Path) -> String {
    format!("{} can't be used for data; name another directory with --data", path.display())
}

/// Follows the links in the path, as far as the path exists.
#[cfg(unix)]
fn without_links(path: &Path) -> anyhow::Result<PathBuf> {
    use std::fs;

    let mut missing = Vec::new();
    let mut ancestor = path;
    let mut found = loop {
        match fs::canonicalize(ancestor) {
            Ok(found) => break found,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot look at {}", ancestor.display())),
        }
        if fs::symlink_metadata(ancestor).is_ok() {
            bail!("{} is a symbolic link to what isn't there", ancestor.display());
        }
        let (Some(name), Some(parent)) = (ancestor.file_name(), ancestor.parent()) else {
            bail!("{} isn't there, so nothing is above it", ancestor.parent().unwrap_or(ancestor).display());
        };
        missing.push(name);
        ancestor = parent;
    };
    found.extend(missing.iter().rev());
    Ok(found)
}

/// The process that holds a data directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Holder {
    /// Its process id.
    pub(crate) pid: u32,
    /// The address that it listens on, such as `http://127.0.0.1:3000/likes`, or `unix:/run/likewise.sock`. `None` before
    /// it listens, and for commands, which never do.
    pub(crate) address: Option<String>,
    /// The base path, beside an address that has no room for it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) base_path: String,
    /// The key that lets a command on this machine into `/control`. Only the owner of the data can read the file.
    pub(crate) key: String,
}

/// A data directory that this process holds, until this is dropped or the process ends in any way.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    lock: File,
    holder: Holder,
}

/// A data directory that nobody holds and that this process can only read. If it has a lock file, processes that could
/// write wait until this is dropped.
#[derive(Debug)]
pub(crate) struct Reading {
    _lock: Option<File>,
}

/// The result of a claim to a data directory.
#[derive(Debug)]
pub(crate) enum Claim {
    /// This process holds it now.
    Ours(DataDir),
    /// Another process holds it. `None` if that process hasn't said yet which one it is.
    Taken(Option<Holder>),
    /// Nobody holds it, and this process can't write there: it is on read-only media, or nobody has the right to write.
    ReadOnly(#[allow(dead_code, reason = "its use is to be dropped")] Reading),
}

impl DataDir {
    /// Refuses an existing directory at `path` that belongs to another user, or that another user could replace.
    pub(crate) fn check(path: &Path) -> anyhow::Result<()> {
        for dir in [path, &Self::stores(path)] {
            if exists(dir)? {
                check_dir(dir)?;
            }
        }
        Ok(())
    }

    /// Creates the directory if needed, and takes it if it is free.
    pub(crate) fn claim(path: &Path) -> anyhow::Result<Claim> {
        let unusable = || unusable(path);
        Self::check(path).with_context(unusable)?;
        let lock_path = path.join("lock");
        if exists(path)? && Access::to(path) == Access::Read {
            let lock = open_to_read(&lock_path).with_context(unusable)?;
            return match lock.as_ref().map(File::try_lock_shared) {
                None | Some(Ok(())) => Ok(Claim::ReadOnly(Reading { _lock: lock })),
                Some(Err(TryLockError::WouldBlock)) => Self::taken(&lock_path, lock),
                // Media without locks have no writers.
                Some(Err(TryLockError::Error(_))) => Ok(Claim::ReadOnly(Reading { _lock: None })),
            };
        }
        create_private_dir(path).with_context(unusable)?;
        let lock = open_private_file(&lock_path).with_context(unusable)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Self::taken(&lock_path, Some(lock)),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| {
                    format!(
                        "cannot lock {}: without locks two processes could write at once and lose events. Name a directory \
                         on a local disk with --data",
                        lock_path.display()
                    )
                });
            }
        }
        let key = crate::random::hex::<32>();
        let holder = Holder { pid: std::process::id(), address: None, base_path: String::new(), key };
        let mut dir = Self { path: path.to_owned(), lock, holder };
        dir.write()?;
        Ok(Claim::Ours(dir))
    }

    fn taken(path: &Path, lock: Option<File>) -> anyhow::Result<Claim> {
        let mut text = Vec::new();
        let read = lock.map_or(Ok(0), |mut lock| lock.read_to_end(&mut text));
        read.with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Claim::Taken(serde_json::from_slice(&text).ok()))
    }

    /// Returns whether anybody has ever used the directory at `path`, or put a copy there. A claim would create the
    /// directory, and a look should create nothing.
    pub(crate) fn is_used(path: &Path) -> anyhow::Result<bool> {
        Ok(exists(&path.join("lock"))? || exists(&Self::stores(path))?)
    }

    /// Claims the directory like [`claim`](Self::claim), but fails unless this process holds it then.
    pub(crate) fn take(path: &Path) -> anyhow::Result<Self> {
        match Self::claim(path)? {
            Claim::Ours(dir) => Ok(dir),
            Claim::Taken(holder) => bail!(taken(path, holder.as_ref())),
            Claim::ReadOnly(_) => bail!(read_only(path)),
        }
    }

    /// Tells others where this process listens.
    pub(crate) fn announce(&mut self, address: &str, base_path: &str) -> anyhow::Result<()> {
        if address.starts_with("unix:") {
            self.holder.address = Some(address.to_owned());
            self.holder.base_path = base_path.to_owned();
        } else {
            self.holder.address = Some(format!("{address}{base_path}"));
        }
        self.write()
    }

    fn write(&mut self) -> anyhow::Result<()> {
        let text = serde_json::to_string(&self.holder)?;
        let write = |file: &mut File| {
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
            file.write_all(text.as_bytes())
        };
        write(&mut self.lock).with_context(|| format!("cannot write {}", self.path.join("lock").display()))
    }

    /// Returns its path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the key that lets commands into `/control`.
    pub(crate) fn key(&self) -> &str {
        &self.holder.key
    }

    /// Returns the path of the key with which visitors are hashed.
    pub(crate) fn visitor_key(data: &Path) -> PathBuf {
        data.join("visitor.key")
    }

    /// Returns the path of what a gateway knows of its cluster.
    pub(crate) fn gateways(data: &Path) -> PathBuf {
        data.join("gateways.json")
    }

    /// Returns whether a cluster has the logs of the stores in the data directory, or is to give them: it is a gateway's, or a
    /// move was interrupted in the middle. A hub that only tried to move in, or whose move didn't begin, is none.
    pub(crate) fn is_gateways(data: &Path) -> anyhow::Result<bool> {
        if !exists(&Self::gateways(data))? {
            return Ok(false);
        }
        let mut has_own = false;
        for store in engine::stores_in(&Self::stores(data))? {
            let log = engine::ownership(&Self::files(data, &store))?;
            if log.is_of_stream {
                return Ok(true);
            }
            has_own |= log.own.is_some();
        }
        Ok(!has_own)
    }

    /// Removes what a gateway knows of its cluster: the directory is no gateway's any more. Returns whether it was one.
    pub(crate) fn forget_gateways(data: &Path) -> anyhow::Result<bool> {
        let path = Self::gateways(data);
        match std::fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).with_context(|| format!("cannot remove {}", path.display())),
        }
    }

    /// Returns the path of the list of items that other sites embed.
    pub(crate) fn items(data: &Path) -> PathBuf {
        data.join("items.json")
    }

    /// Returns the directory of all stores in the data directory at `path`.
    pub(crate) fn stores(path: &Path) -> PathBuf {
        path.join("stores")
    }

    /// Returns the files of one store in the data directory at `path`.
    pub(crate) fn files(path: &Path, store: &StoreId) -> Files {
        Files::in_dir(Self::stores(path).join(store.as_str()))
    }
}

/// Says that nothing can be changed in the directory, and what to do about it.
pub(crate) fn read_only(path: &Path) -> String {
    format!(
        "{} can only be read: it is on read-only media, or nobody may write to it. Copy it to where you can write, and name the copy with --data",
        path.display()
    )
}

/// Says who holds the directory, and what to do about it.
fn taken(path: &Path, holder: Option<&Holder>) -> String {
    let path = path.display();
    match holder {
        Some(Holder { pid, address: Some(address), .. }) => format!(
            "{path} is in use by the process {pid}, which listens on {address}. \
             Open that address, stop that process, or name another directory with --data"
        ),
        Some(Holder { pid, .. }) => format!(
            "{path} is in use by the process {pid}. Wait for it to end, stop it, or name another directory with --data"
        ),
        None => format!("{path} is in use by another process. Stop it, or name another directory with --data"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::{fuzz, outcome};

    #[test]
    fn trust_38_fuzzed_lock_files_name_a_holder_or_nobody() {
        fuzz("holder", &["\"pid\":", "\"address\":", "\"key\":"], |input| {
            let holder = serde_json::from_slice::<Holder>(input);
            if let Ok(holder) = &holder {
                assert!(!taken(Path::new("/data"), Some(holder)).is_empty());
            }
            outcome(&holder)
        });
    }
}
