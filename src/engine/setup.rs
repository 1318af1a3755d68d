//! What a replica needs at opening: what its events mean, who it is, and where its files are.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::{Database, Fault, IoContext};
use super::event::Device;
use super::eventlog;
use super::files::check_files;
use super::schema::Schema;

/// The name of the witness.
const WITNESS: &str = "witness";

/// The name of the snapshot where the log begins.
const BASE: &str = "base.db";

/// The beginning of the names of states that are made for a comparison and thrown away.
const SCRATCH: &str = "scratch-";

/// What a replica needs to know besides its directory.
#[derive(Clone)]
pub struct Setup {
    /// What events mean.
    pub schema: Arc<Schema>,
    /// This instance's own name, the origin of what it adds to a log of its own.
    pub device: Device,
    /// Identifies the executable. A state made by another executable is rebuilt.
    pub executable: String,
    /// Called while the state is rebuilt, with the number of events applied so far and the total.
    pub progress: fn(u64, u64),
}

impl Setup {
    /// Returns the setup of the running program, without progress reports on rebuilds.
    ///
    /// # Errors
    ///
    /// Fails if the program's own file can't be read.
    pub fn new(schema: Schema, device: Device) -> Result<Self, Fault> {
        Ok(Self { schema: Arc::new(schema), device, executable: executable()?, progress: |_, _| {} })
    }
}

/// Returns an identifier of the running executable. A state made by another executable is rebuilt.
///
/// # Errors
///
/// Fails if the program's own file can't be found or read.
pub fn executable() -> Result<String, Fault> {
    // Linux opens the running program itself, even if its file was replaced or is where this user has no access.
    let path = match cfg!(target_os = "linux") {
        true => PathBuf::from("/proc/self/exe"),
        false => std::env::current_exe().doing("find the path of this program, started in", Path::new("."))?,
    };
    let mut hasher = blake3::Hasher::new();
    let hash = fs::File::open(&path).and_then(|file| hasher.update_reader(file).map(|hasher| hasher.finalize()));
    Ok(hash.doing("read this program at", &path)?.to_hex()[..32].to_owned())
}

/// The files of one store.
#[derive(Debug, Clone)]
pub struct Files {
    dir: PathBuf,
}

impl Files {
    /// Returns the files in `dir`, which need not exist.
    ///
    /// SQLite takes a relative path that begins with `file:` for a URI, so `dir` is made absolute.
    pub fn in_dir(dir: impl Into<PathBuf>) -> Self {
        let dir = dir.into();
        Self { dir: std::path::absolute(&dir).unwrap_or(dir) }
    }

    /// Refuses a store whose directory or files are links. Where this process can write, also refuses other users'.
    pub(crate) fn check(&self) -> Result<(), Fault> {
        check_files(&self.dir, &[Database::Eventlog.file_name(), Database::State.file_name(), BASE, WITNESS])
    }

    /// Returns the directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the path of the eventlog, which holds the log and the outbox.
    pub fn eventlog(&self) -> PathBuf {
        self.dir.join(Database::Eventlog.file_name())
    }

    /// Returns the path of the state, which follows from the eventlog.
    pub fn state(&self) -> PathBuf {
        self.dir.join(Database::State.file_name())
    }

    /// Returns the path of the witness, which says how far the eventlog had come.
    pub fn witness(&self) -> PathBuf {
        self.dir.join(WITNESS)
    }

    /// Returns the path of the snapshot where the log begins. It is there until the events behind it have proven it.
    pub fn base(&self) -> PathBuf {
        self.dir.join(BASE)
    }

    /// Returns a path for a state that is made for a comparison and thrown away.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.dir.join(format!("{SCRATCH}{}.db", crate::random::hex::<8>()))
    }

    /// Deletes what an interrupted comparison has left.
    pub(crate) fn remove_scratch(&self) -> Result<(), Fault> {
        for entry in fs::read_dir(&self.dir).doing("read", &self.dir)? {
            let entry = entry.doing("read", &self.dir)?;
            if entry.file_name().as_encoded_bytes().starts_with(SCRATCH.as_bytes()) {
                fs::remove_file(entry.path()).doing("delete", &entry.path())?;
            }
        }
        Ok(())
    }

    /// Returns whether there is a store here, the remains of one, or a link in its place.
    pub fn exist(&self) -> bool {
        let is_named = |path: &PathBuf| fs::symlink_metadata(path).is_ok();
        self.dir.is_symlink() || [self.eventlog(), self.state(), self.witness()].iter().any(is_named)
    }
}

/// Returns whether the store is still blank: it has no files, or only an empty eventlog. A crash before the first event
/// leaves an empty eventlog. Nothing is lost then, and opening the store continues from there.
///
/// # Errors
///
/// Fails if the files can't be inspected, or are not an eventlog that this program understands.
pub fn is_blank(files: &Files) -> Result<bool, Fault> {
    files.check()?;
    // The other two files are created only after the eventlog has its tables, so they prove that there was more.
    for path in [files.witness(), files.state()] {
        if path.try_exists().doing("look at", &path)? {
            return Ok(false);
        }
    }
    Ok(eventlog::look(&files.eventlog())?.is_none())
}

/// Returns whose the store's log is. Opens nothing for writing.
///
/// # Errors
///
/// Fails if the eventlog can't be read, or isn't one that this program understands.
#[cfg(feature = "app")]
pub(crate) fn ownership(files: &Files) -> Result<eventlog::Ownership, Fault> {
    files.check()?;
    Ok(eventlog::Ownership::of(&files.eventlog())?)
}
