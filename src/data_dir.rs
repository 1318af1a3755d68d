//! The data directory: where it is, and who has it.
//!
//! One process at a time has it, by a lock on the file `lock`. The file also says which process that is and how to reach
//! it, so that a second one can say who is in the way, and a command can ask the first instead.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::engine::{Files, StoreId, create_private_dir, open_private_file};

/// The data directory of this machine's user, unless `--data` names another.
pub(crate) fn default_path() -> anyhow::Result<PathBuf> {
    let dirs = directories::ProjectDirs::from("", "", "likewise");
    let dirs = dirs.context("this user has no home directory to keep data in; name a directory with --data DIR")?;
    Ok(dirs.data_dir().to_owned())
}

/// Who has a data directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Holder {
    /// Its process id.
    pub(crate) pid: u32,
    /// Where it listens, such as `http://127.0.0.1:3000`; nothing before it listens, and for commands that don't.
    pub(crate) address: Option<String>,
    /// What a command on this machine shows to be let into `/control`. Whoever can read the file owns the data anyway.
    pub(crate) key: String,
}

/// A data directory that this process has, until it drops this or ends in whatever way.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    lock: File,
    holder: Holder,
}

/// A data directory, free or not.
#[derive(Debug)]
pub(crate) enum Claim {
    /// It is ours now.
    Ours(DataDir),
    /// Another process has it. `None` when it hasn't said yet which it is.
    Taken(Option<Holder>),
}

impl DataDir {
    /// Makes the directory if need be, and takes it if it is free.
    pub(crate) fn claim(path: &Path) -> anyhow::Result<Claim> {
        let unusable = || format!("{} can't be used for data; name another directory with --data", path.display());
        create_private_dir(path).with_context(unusable)?;
        let lock_path = path.join("lock");
        let mut lock = open_private_file(&lock_path).with_context(unusable)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                lock.read_to_string(&mut text).with_context(|| format!("cannot read {}", lock_path.display()))?;
                return Ok(Claim::Taken(serde_json::from_str(&text).ok()));
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", lock_path.display()));
            }
        }
        let key = uuid::Uuid::new_v4().simple().to_string() + &uuid::Uuid::new_v4().simple().to_string();
        let holder = Holder { pid: std::process::id(), address: None, key };
        let mut dir = Self { path: path.to_owned(), lock, holder };
        dir.write()?;
        Ok(Claim::Ours(dir))
    }

    /// Whether anybody has ever used the directory at `path`, or put a copy there. To look at one that nobody has is no
    /// reason to claim it, which would make it.
    pub(crate) fn is_used(path: &Path) -> anyhow::Result<bool> {
        for path in [path.join("lock"), Self::stores(path)] {
            if path.try_exists().with_context(|| format!("cannot look at {}", path.display()))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// As [`claim`](Self::claim), for who can't go on without it.
    pub(crate) fn take(path: &Path) -> anyhow::Result<Self> {
        match Self::claim(path)? {
            Claim::Ours(dir) => Ok(dir),
            Claim::Taken(holder) => bail!(taken(path, holder.as_ref())),
        }
    }

    /// Tells others where this process listens.
    pub(crate) fn announce(&mut self, address: &str) -> anyhow::Result<()> {
        self.holder.address = Some(address.to_owned());
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

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What a command shows to be let into `/control`.
    pub(crate) fn key(&self) -> &str {
        &self.holder.key
    }

    /// The directory of all stores in the data directory at `path`.
    pub(crate) fn stores(path: &Path) -> PathBuf {
        path.join("stores")
    }

    /// The files of one store in the data directory at `path`.
    pub(crate) fn files(path: &Path, store: &StoreId) -> Files {
        Files::in_dir(Self::stores(path).join(store.as_str()))
    }
}

/// Says who has the directory, and what can be done about it.
fn taken(path: &Path, holder: Option<&Holder>) -> String {
    let path = path.display();
    match holder {
        Some(Holder { pid, address: Some(address), .. }) => format!(
            "{path} is in use by the likewise process {pid}, which listens on {address}. \
             Open that address, stop that process, or name another directory with --data"
        ),
        Some(Holder { pid, .. }) => format!(
            "{path} is in use by the likewise process {pid}. Wait for it to end, stop it, or name another directory with --data"
        ),
        None => format!("{path} is in use by another likewise process. Stop it, or name another directory with --data"),
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
