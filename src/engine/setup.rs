//! What a replica is opened with: what its events mean, who it is, and where its files are.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::{Fault, IoContext};
use super::event::Device;
use super::files::check_files;
use super::schema::Schema;

/// What a replica needs to know besides its directory.
#[derive(Clone)]
pub struct Setup {
    /// What events mean.
    pub schema: Arc<Schema>,
    /// This instance's own name, the origin of what it adds to a log of its own.
    pub device: Device,
    /// Identifies the executable; a state made by another one is rebuilt.
    pub executable: String,
    /// Is told how far a rebuild has come: events applied, and events in all.
    pub progress: fn(u64, u64),
}

impl Setup {
    /// The setup of the running program, in which nobody is told how far a rebuild has come.
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
        check_files(&self.dir, &["eventlog.db", "state.db", "witness"])
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The log and the outbox.
    pub fn eventlog(&self) -> PathBuf {
        self.dir.join("eventlog.db")
    }

    /// What follows from them.
    pub fn state(&self) -> PathBuf {
        self.dir.join("state.db")
    }

    /// How far the eventlog had come.
    pub fn witness(&self) -> PathBuf {
        self.dir.join("witness")
    }

    /// Whether there is a store here, or what is left of one, or a link in its place.
    pub fn exist(&self) -> bool {
        let is_named = |path: &PathBuf| fs::symlink_metadata(path).is_ok();
        self.dir.is_symlink() || [self.eventlog(), self.state(), self.witness()].iter().any(is_named)
    }
}
