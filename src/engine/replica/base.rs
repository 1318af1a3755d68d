//! A log that begins at a base: the place of a snapshot, with which this replica has joined. The events behind it come
//! later, and prove it.

use serde::{Deserialize, Serialize};

use super::{Page, Replica};
use crate::engine::error::Fault;
use crate::engine::event::EventId;
use crate::engine::place::{Digest, LogId, Seq};
use crate::engine::proof::Proof;
use crate::engine::snapshot::CheckedSnapshot;

/// How far the history has come: the events behind the snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryPosition {
    /// The log.
    pub log: LogId,
    /// The next page begins after this place.
    pub after: Seq,
    /// The digest of the log up to there.
    pub digest: Digest,
    /// The place of the snapshot, where the history ends.
    pub until: Seq,
}

impl HistoryPosition {
    /// Returns whether all of the history is here. It then waits for its [proof](crate::engine::prove).
    pub fn is_complete(&self) -> bool {
        self.after >= self.until
    }
}

/// What a replica has of the events behind its snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryStanding {
    /// The place of the snapshot.
    pub base: Seq,
    /// How many events the log has up to there.
    pub length: u64,
    /// How many of them are here.
    pub here: u64,
}

/// What became of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Concluded {
    /// The events behind it prove it. The log is whole now.
    Proven,
    /// The events behind it make another state. They count: the log is whole now, and the state was rebuilt from it.
    Disproven,
    /// The proof is about a snapshot that is no longer in use. Nothing was changed.
    Outdated,
}

impl Replica {
    /// Returns whether this replica can join by a snapshot: it follows an upstream, and its log is empty. Its outbox need
    /// not be.
    pub fn can_join(&self) -> bool {
        false
    }

    /// Makes a snapshot the state, and its place the beginning of the log. Pending events are applied on top of it. Returns
    /// false, and changes nothing, if this replica [can't join](Self::can_join) or follows another log than the snapshot's.
    /// The snapshot's file is moved into the store in any case, or deleted.
    ///
    /// # Errors
    ///
    /// A fault of the machine. If a crash comes in between, opening the store finds it joined, or as it was.
    pub fn join(&mut self, snapshot: CheckedSnapshot) -> Result<bool, Fault> {
        drop(snapshot);
        Ok(false)
    }

    /// Returns the place where the log begins here: 0, or that of a snapshot.
    pub fn base(&self) -> Seq {
        Seq::START
    }

    /// Returns how far the history has come, if the log begins at a snapshot.
    pub fn history(&self) -> Option<HistoryPosition> {
        None
    }

    /// Takes in the next page of the history: what comes after [`history`](Self::history). Events above the base are passed
    /// over. Like [`arrive`](Self::arrive), this may leave it to [`settle_arrivals`](Self::settle_arrivals) to show its effect.
    ///
    /// If the log doesn't come out as the snapshot's, the history counts: the replica [drops](Self::drop_base) its base.
    /// [`history`](Self::history) returns `None` then.
    ///
    /// # Errors
    ///
    /// A fault of the machine. Fetch the page again then.
    pub fn arrive_history(&mut self, page: &Page) -> Result<(), Fault> {
        let _ = page;
        Ok(())
    }

    /// Takes events out of the outbox that the upstream has at these places, at or below the base: they are in the snapshot.
    /// They are kept until the history brings them. Returns false, and changes nothing, if that can't be true: a place is
    /// above the base, another event is there, or the history has passed it.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn are_in_snapshot(&mut self, events: &[(EventId, Seq)]) -> Result<bool, Fault> {
        let _ = events;
        Ok(false)
    }

    /// Gives up the base: what came by history is the log now, and what the log held above the base goes back to the front of
    /// the outbox. Nothing is lost. Does nothing if the log is whole.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn drop_base(&mut self) -> Result<(), Fault> {
        Ok(())
    }

    /// Acts on a [proof](crate::engine::prove): the log is whole from now on.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn conclude(&mut self, proof: Proof) -> Result<Concluded, Fault> {
        let _ = proof;
        Ok(Concluded::Outdated)
    }
}
