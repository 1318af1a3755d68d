//! Snapshots: a committed state as one file, with the place in the log that it stands for. A device whose log is empty
//! begins with one, and fetches the events behind it later.
//!
//! A snapshot is a stranger's database. [`Snapshot::check`] believes nothing of it that it can't compare: its length and
//! hash with what its hub says, its tables with those that our own schema makes, its structure with SQLite's rules. What
//! the rows say is believed until the events behind it [prove](super::prove) it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::Fault;
use super::place::{Digest, LogId, Seq};
use super::schema::Schema;
use super::setup::Files;

/// What a snapshot stands for, and what its file is. A hub says this of its snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The log.
    pub log: LogId,
    /// The last event that is in the state.
    pub seq: Seq,
    /// How many events the log has up to there.
    pub length: u64,
    /// The digest of the log up to there.
    pub digest: Digest,
    /// The digest of the state's content.
    pub state_digest: Digest,
    /// The size of the file in bytes.
    pub bytes: u64,
    /// The BLAKE3 hash of the file.
    pub file_digest: Digest,
}

/// A snapshot's file that has passed [`Snapshot::check`]. [`Replica::join`](super::Replica::join) takes the file away.
#[derive(Debug)]
pub struct CheckedSnapshot {
    pub(super) snapshot: Snapshot,
    pub(super) path: PathBuf,
}

impl CheckedSnapshot {
    /// Returns what the snapshot stands for.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }
}

/// Why a snapshot is not used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The file isn't the snapshot that it should be. Pull the log instead. Holds the reason.
    #[error("the snapshot can't be used: {0}")]
    Wrong(String),
    /// The machine failed. Nothing may be concluded about the snapshot.
    #[error(transparent)]
    Fault(#[from] Fault),
}

impl Snapshot {
    /// Copies the committed state of the store in `files` to the new file `to`, beside the thread that writes. Returns
    /// `None`, and leaves no file, if there is nothing to begin with: the log is empty, has no id yet, or had events
    /// taken back a moment ago.
    ///
    /// # Errors
    ///
    /// A fault of the machine. No file is left then.
    pub fn make(files: &Files, to: &Path) -> Result<Option<Self>, Fault> {
        let _ = (files, to);
        Ok(None)
    }

    /// Checks that the file at `path` is this snapshot, and a state of `schema`. Reads all of it.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Wrong`] if it isn't. The file stays, and the caller deletes it.
    pub fn check(&self, path: &Path, schema: &Schema) -> Result<CheckedSnapshot, SnapshotError> {
        let _ = (path, schema);
        Err(SnapshotError::Wrong("nothing is believed yet".to_owned()))
    }
}
