//! What a replica is opened with: what its events mean, who it is, and where its files are.

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

/// What a replica needs to know besides its directory.
#[derive(Clone)]
pub struct Setup {
    /// What events mean.
    pub schema: Arc<Schema>,
    /// This instance's own name, the origin of what it adds to a log of its own.
    pub device: Device,
    /// Identifies the executable; a state made by another one is rebuilt.
    pub executable: String,
    /// Called while the state is rebuilt, with the events applied so far, and the events in all.
    pub progress: fn(u64, u64),
}

impl Setup {
    /// The setup of the running program, without a report on rebuilds.
    ///
    /// # Errors
    ///
    /// When the program's own file can't be read.
    pub fn new(schema: Schema, device: Device) -> Result<Self, Fault> {
        Ok(Self { schema: Arc::new(schema), device, executable: executable()?, progress: |_, _| {} })
    }
}

/// Identifies the running executable, so that a state made by another one is rebuilt.
///
/// # Errors
///
/// When the program's own file can't be found or read.
pub fn executable() -> Result<String, Fault> {
    // Linux hands over the very program that runs, though it was replaced or stands where this user can't go.
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
    /// The files in `dir`, which need not exist.
    ///
    /// SQLite takes a relative path that begins with `file:` for a URI, so `dir` is made absolute.
    pub fn in_dir(dir: impl Into<PathBuf>) -> Self {
        let dir = dir.into();
        Self { dir: std::path::absolute(&dir).unwrap_or(dir) }
    }

    /// Refuses a store whose directory or files are links or, where this process can write, other users'.
    pub(crate) fn check(&self) -> Result<(), Fault> {
        check_files(&self.dir, &[Database::Eventlog.file_name(), Database::State.file_name(), WITNESS])
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The log and the outbox.
    pub fn eventlog(&self) -> PathBuf {
        self.dir.join(Database::Eventlog.file_name())
    }

    /// What follows from them.
    pub fn state(&self) -> PathBuf {
        self.dir.join(Database::State.file_name())
    }

    /// How far the eventlog had come.
    pub fn witness(&self) -> PathBuf {
        self.dir.join(WITNESS)
    }

    /// Whether there is a store here, or what is left of one, or a link in its place.
    pub fn exist(&self) -> bool {
        let is_named = |path: &PathBuf| fs::symlink_metadata(path).is_ok();
        self.dir.is_symlink() || [self.eventlog(), self.state(), self.witness()].iter().any(is_named)
    }
}

/// Whether there is nothing here yet: no files, or the mere beginning of an eventlog. A crash before the first event
/// leaves that. It is no loss, and opening the store goes on from there.
///
/// # Errors
///
/// When the files can't be looked at, or are not an eventlog that this program understands.
pub fn is_blank(files: &Files) -> Result<bool, Fault> {
    files.check()?;
    // The other two only come after the eventlog has its tables, so they prove that there was more.
    for path in [files.witness(), files.state()] {
        if path.try_exists().doing("look at", &path)? {
            return Ok(false);
        }
    }
    Ok(eventlog::look(&files.eventlog())?.is_none())
}
