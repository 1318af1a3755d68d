//! A log that begins at a base: the place of a snapshot, with which this replica has joined. The events behind it come
//! later, and prove it.

use std::fs;
use std::io::ErrorKind;

use serde::{Deserialize, Serialize};

use super::{Page, Replica, View};
use crate::engine::error::{Error, Fault, IoContext};
use crate::engine::event::{Envelope, EventId};
use crate::engine::eventlog::{BaseFile, Brought, Checkpoint, Eventlog, Found, PageSize, Tip, Whose};
use crate::engine::opening::{Alone, put_in_place, remove_file};
use crate::engine::place::{Cursor, Digest, Entry, LogId, Seq};
use crate::engine::proof::Proof;
use crate::engine::setup::{Files, Setup};
use crate::engine::snapshot::{CheckedSnapshot, Snapshot};
use crate::engine::state::State;
use crate::engine::witness::Witness;

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
    /// How many events of this device are in the snapshot, as only the upstream says. The history will bring them.
    #[serde(default)]
    pub own: u64,
}

impl HistoryStanding {
    /// Returns what is here, if the log begins at a snapshot.
    pub(crate) fn of(tip: &Tip) -> Option<Self> {
        let Tip { base, history, early, .. } = *tip;
        (!tip.is_whole()).then_some(Self { base: base.seq, length: base.length, here: history.end.length, own: early })
    }

    /// Returns how many events are missing.
    pub fn missing(&self) -> u64 {
        self.length.saturating_sub(self.here)
    }
}

impl From<HistoryStanding> for Error {
    fn from(HistoryStanding { length, here, .. }: HistoryStanding) -> Self {
        Self::HistoryMissing { here, length }
    }
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
        let tip = self.log.tip();
        matches!(tip.whose, Whose::Upstream(_)) && tip.stream.is_none() && tip.is_whole() && tip.length == 0
    }

    /// Makes a snapshot the state, and its place the beginning of the log. Pending events are applied on top of it. Returns
    /// false, and changes nothing, if this replica [can't join](Self::can_join), follows another log than the snapshot's, or
    /// there is no room for the state. The snapshot's file is moved into the store, or deleted.
    ///
    /// # Errors
    ///
    /// A fault of the machine. If a crash comes in between, opening the store finds it joined, or as it was.
    pub fn join(&mut self, snapshot: CheckedSnapshot) -> Result<bool, Fault> {
        self.unless_broken(|replica| replica.try_join(&snapshot))
    }

    fn try_join(&mut self, CheckedSnapshot { snapshot, schema, path }: &CheckedSnapshot) -> Result<bool, Fault> {
        let known = self.log.tip().whose.log_id();
        let is_ours = known.is_none_or(|log| log == snapshot.log) && *schema == self.setup.schema.fingerprint();
        if !self.can_join() || !is_ours {
            remove_file(path)?;
            return Ok(false);
        }
        // The file goes first. Without the base, it is one that nobody needs.
        put_in_place(path, &self.files.base()).inspect_err(|_| drop(remove_file(path)))?;
        self.roll_back()?;
        let Snapshot { log, seq, length, digest, bytes, file_digest, .. } = *snapshot;
        let file = BaseFile { bytes, digest: file_digest, schema: schema.clone() };
        self.transact(|own| own.join(log, Checkpoint { seq, digest, length }, &file))?;
        self.rebuild()?;
        Ok(!self.log.tip().is_whole())
    }

    /// Returns the place where the log begins here: 0, or that of a snapshot.
    pub fn base(&self) -> Seq {
        self.log.tip().base.seq
    }

    /// Returns how far the history has come, if the log begins at a snapshot.
    pub fn history(&self) -> Option<HistoryPosition> {
        let Tip { whose, base, history, .. } = *self.log.tip();
        let log = whose.log_id().filter(|_| base.seq > Seq::START)?;
        Some(HistoryPosition { log, after: history.after, digest: history.end.digest, until: base.seq })
    }

    /// Takes in the next page of the history: what comes after [`history`](Self::history). Events above the base are passed
    /// over. Like [`arrive`](Self::arrive), this may leave it to [`settle_arrivals`](Self::settle_arrivals) to show its
    /// effect.
    ///
    /// If the log doesn't come out as the snapshot's, the history counts: the replica [drops](Self::drop_base) its base.
    /// [`history`](Self::history) returns `None` then.
    ///
    /// # Errors
    ///
    /// A fault of the machine. Fetch the page again then.
    pub fn arrive_history(&mut self, page: &Page) -> Result<(), Fault> {
        self.unless_broken(|replica| replica.try_arrive_history(page))
    }

    fn try_arrive_history(&mut self, page: &Page) -> Result<(), Fault> {
        if self.log.tip().is_whole() {
            return Ok(());
        }
        let (mut moved, mut is_wrong) = (0, false);
        self.log.begin()?;
        for entry in &page.entries {
            match self.log.add_history(entry)? {
                Brought::Events => {}
                Brought::Moved(count) => moved += count,
                Brought::Contradiction => {
                    is_wrong = true;
                    break;
                }
            }
        }
        if !is_wrong {
            moved += self.log.history_reaches(page.next)?;
            let Tip { base, history, .. } = *self.log.tip();
            let comes_out = (history.end.digest, history.end.length) == (base.digest, base.length);
            is_wrong = history.after >= base.seq && !comes_out;
        }
        if is_wrong {
            tracing::warn!(
                store = %self.files.dir().display(),
                "the hub's snapshot was wrong: its history is another one. The log is pulled from there on"
            );
            self.log.drop_base()?;
        }
        self.log.commit()?;
        self.witness.write(self.log.testimony())?;
        if is_wrong {
            return self.begin_again();
        }
        if moved > 0 {
            return self.outbox_changed(moved, page.more);
        }
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
        self.unless_broken(|replica| replica.try_are_in_snapshot(events))
    }

    fn try_are_in_snapshot(&mut self, events: &[(EventId, Seq)]) -> Result<bool, Fault> {
        let Tip { base, history, pending, .. } = *self.log.tip();
        self.log.begin()?;
        let mut are = true;
        for (id, seq) in events {
            // What isn't in the outbox any more has arrived in the meantime.
            if let Some(Found::Outbox(n, _)) = self.log.find(*id)? {
                are &= *seq > history.after && *seq <= base.seq && self.log.outbox_to_early(n, *seq)?;
            }
        }
        if !are {
            self.log.rollback()?;
            return Ok(false);
        }
        self.log.commit()?;
        self.witness.write(self.log.testimony())?;
        let moved = pending - self.log.tip().pending;
        if moved > 0 {
            self.outbox_changed(moved, false)?;
        }
        Ok(true)
    }

    /// Has the outbox applied again, now or later, because `moved` events left it or came back to it.
    fn outbox_changed(&mut self, moved: u64, more: bool) -> Result<(), Fault> {
        let earlier = if let View::Behind { lag } = self.view { lag } else { 0 };
        self.view = View::Behind { lag: earlier + moved };
        self.settle_if_due(more)
    }

    /// Gives up the base: what came by history is the log now, and what the log held above the base goes back to the front of
    /// the outbox. Nothing is lost. Does nothing if the log is whole.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn drop_base(&mut self) -> Result<(), Fault> {
        self.unless_broken(|replica| {
            if replica.log.tip().is_whole() {
                return Ok(());
            }
            replica.transact(Eventlog::drop_base)?;
            replica.begin_again()
        })
    }

    /// Rebuilds the state after the base was given up.
    fn begin_again(&mut self) -> Result<(), Fault> {
        self.forget_snapshot();
        self.roll_back()?;
        self.rebuild()
    }

    /// Deletes the snapshot's file if the log is whole. If that fails, opening the store tries it again.
    pub(super) fn forget_snapshot(&self) {
        if self.log.tip().is_whole()
            && let Err(error) = remove_file(&self.files.base())
        {
            tracing::warn!(store = %self.files.dir().display(), %error, "a snapshot that nobody needs is left");
        }
    }

    /// Acts on a [proof](crate::engine::prove): the log is whole from now on.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn conclude(&mut self, proof: Proof) -> Result<Concluded, Fault> {
        self.unless_broken(|replica| replica.try_conclude(proof))
    }

    fn try_conclude(&mut self, proof: Proof) -> Result<Concluded, Fault> {
        let Tip { base, history, generation, .. } = *self.log.tip();
        let is_ours = (proof.generation, proof.base) == (generation, base.seq) && base.seq > Seq::START;
        if !is_ours || history.after < base.seq {
            return Ok(Concluded::Outdated);
        }
        self.transact(|own| own.conclude(proof.is_to_the_letter()))?;
        if proof.is_to_the_letter() {
            self.forget_snapshot();
            return Ok(Concluded::Proven);
        }
        let store = self.files.dir().display();
        if proof.is_right() {
            tracing::info!(%store, "the snapshot says in other words why events have no effect. Those of this program count");
        } else {
            tracing::warn!(%store, "the hub's snapshot was wrong: the events behind it make another state, which counts");
        }
        self.begin_again()?;
        Ok(if proof.is_right() { Concluded::Proven } else { Concluded::Disproven })
    }

    /// Returns the events below the base that are here: those of the history, and then those of ours that the history hasn't
    /// brought yet.
    pub(crate) fn below_base(&self) -> Result<(Vec<Entry>, Vec<Envelope>), Fault> {
        let mut rows = self.log.rows(Seq::START, PageSize::events(usize::MAX >> 1))?;
        rows.retain(|entry| entry.seq <= self.base());
        Ok((rows, self.log.early()?))
    }
}

/// What it takes to begin a state anew.
pub(super) struct Parts<'a> {
    pub(super) files: &'a Files,
    pub(super) setup: &'a Setup,
    pub(super) log: &'a mut Eventlog,
    pub(super) witness: &'a mut Witness,
    /// Whether the state that was there before, if any, is of an earlier generation. Then nobody relies on the base yet.
    pub(super) is_new: bool,
}

impl Parts<'_> {
    /// Returns whether the snapshot's file is there, as far as a glance can tell, and of our schema. If not, the base is given
    /// up. Returns true if the log is whole.
    pub(super) fn has_base(&mut self) -> Result<bool, Fault> {
        if self.log.tip().is_whole() {
            return Ok(true);
        }
        let file = self.log.base_file()?;
        let size = match fs::metadata(self.files.base()) {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            found => Some(found.doing("look at", &self.files.base())?.len()),
        };
        let schema = self.setup.schema.fingerprint();
        if file.is_some_and(|file| Some(file.bytes) == size && file.schema == schema) {
            return Ok(true);
        }
        self.drop_base()?;
        Ok(false)
    }

    /// Makes the state at the place where the log begins. If there is no room for it and nobody relies on the base yet, gives
    /// that up: pulling the log needs no room at once.
    pub(super) fn begin_state(&mut self, alone: &Alone) -> Result<State, Fault> {
        let Setup { schema, executable, .. } = self.setup;
        if self.has_base()?
            && !self.log.tip().is_whole()
            && let Some(file) = self.log.base_file()?
        {
            let Tip { base, generation, .. } = *self.log.tip();
            let cursor = Cursor { generation, seq: base.seq, digest: base.digest };
            let from = (self.files.base(), &file);
            let begun = State::begun(&self.files.state(), (&from.0, from.1), schema, executable, cursor, alone);
            match begun.map_err(Fault::from) {
                Ok(Some(state)) => return Ok(state),
                Ok(None) => self.drop_base()?,
                Err(fault) if self.is_new && fault.is_of_full_disk() => {
                    tracing::warn!(store = %self.files.dir().display(), %fault, "there is no room for the snapshot");
                    // The room that it takes is needed for what comes next.
                    remove_file(&self.files.base())?;
                    self.drop_base()?;
                }
                Err(fault) => return Err(fault),
            }
        }
        Ok(State::new(&self.files.state(), schema, executable, self.log.tip().generation, alone)?)
    }

    /// Gives up the base, because the state can't be made from the snapshot.
    fn drop_base(&mut self) -> Result<(), Fault> {
        tracing::warn!(
            store = %self.files.dir().display(),
            "the snapshot is missing, damaged, of another schema or too large. Nothing is lost, and the log is pulled again"
        );
        self.log.begin()?;
        self.log.drop_base()?;
        self.log.commit()?;
        self.witness.write(self.log.testimony())
    }
}
