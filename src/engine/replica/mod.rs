//! One device's copy of a store: an eventlog and the state that follows from it.
//!
//! Plain synchronous code without threads, clock or network, so that a test can drive a hundred of them by a seed.
//! After a [`Fault`] a replica changes nothing any more: it is to be dropped and opened again. What it had
//! acknowledged is in its eventlog.
//!
//! Two rules hold at every point where the process may die:
//!
//! - The eventlog commits before the state does, so the state on disk is behind the eventlog or level with it, never
//!   ahead; [opening](Replica::open) applies what is missing.
//! - The state on disk holds confirmed events alone. Pending ones are applied in a transaction on it that stays open,
//!   and reads go through it. Rolling that back is how pending events leave the state, and SQLite does it.

mod arrive;
mod authority;
mod write;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::engine::authorizer::Tables;
use crate::engine::error::{DbError, Fault};
use crate::engine::event::{Envelope, EventId};
use crate::engine::eventlog::{self, Eventlog, PageSize, Tip, Whose};
use crate::engine::eventlog::{Checked, Progress};
use crate::engine::files::{create_private_dir, sync_dir};
use crate::engine::materialize::{CHUNK, Enders, Stop};
use crate::engine::opening::{Alone, secure, secure_names};
use crate::engine::place::{Cursor, Digest, Entry, Generation, Seq};
use crate::engine::query::Query;
use crate::engine::setup::{Files, Setup};
use crate::engine::state::{self, State};

use crate::engine::storage::{WalGauge, check_sqlite};
use crate::engine::witness::Witness;
pub use arrive::{Page, Position, SETTLE_EVERY};
pub use write::Outcome;

/// How many events a rebuild applies in one transaction of the state.
const PER_COMMIT: u64 = 10_000;

/// Where a replica stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Whose log it holds.
    pub whose: Whose,
    /// How often events were taken back out of it.
    pub generation: Generation,
    /// The last event of the log.
    pub head: Seq,
    /// How many events the log has.
    pub length: u64,
    /// How far the committed state has come.
    pub cursor: Seq,
    /// How many events wait for a place in the log.
    pub pending: u64,
    /// How many events the authority refused.
    pub set_aside: u64,
    /// How many events have no effect because of a fault of theirs.
    pub skipped: u64,
    /// How many events have no effect because nothing here knows their name.
    pub unknown: u64,
}

/// How many events without effect are listed at most. Their number is in the [`Standing`].
pub const MOST_SKIPPED: usize = 1_000;

/// An event that has no effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Its id.
    pub id: EventId,
    /// Its name.
    pub name: String,
    /// Why it has none.
    pub why: NoEffect,
}

/// Why an event has no effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum NoEffect {
    /// Nothing here knows its name. It takes effect when a program that does opens the store.
    UnknownName,
    /// It can't be applied, here or anywhere: the reason.
    Failed(String),
}

/// One device's copy of a store.
pub struct Replica {
    setup: Setup,
    files: Files,
    log: Eventlog,
    state: State,
    witness: Witness,
    /// How many confirmed events only the state's open transaction holds, not yet its file.
    unsettled: u64,
    view: View,
    identity: Option<Vec<FileId>>,
}

/// What queries see of the eventlog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum View {
    /// All of it: the open transaction holds log and outbox.
    Level,
    /// All but the last `lag` events that arrived: the outbox has yet to be put back on top of them.
    Behind { lag: u64 },
    /// Unknown. A fault came in the middle of something, so nothing more is done.
    Broken,
}

impl Replica {
    /// Opens the store in `files`, or makes an empty one whose log is its own. Makes durable what it finds, applies what a
    /// crash left to be applied, and rebuilds the state when it is missing, damaged or another program's.
    ///
    /// One replica a directory, in all processes together: that is the caller's business.
    ///
    /// # Errors
    ///
    /// What keeps the store from being opened; then nothing was changed. In particular [`Fault::LostTail`] when there
    /// is proof that the eventlog once held more than it does.
    pub fn open(files: Files, setup: Setup) -> Result<Self, Fault> {
        Self::open_found(files, setup, false)
    }

    /// As [`open`](Self::open). What `is_synced` was found durable by this process already, and no sync failed since: not
    /// to write it again keeps a store readable on a disk without room.
    pub(crate) fn open_found(files: Files, setup: Setup, is_synced: bool) -> Result<Self, Fault> {
        check_sqlite()?;
        files.check()?;
        // The witness and the state come after the first transaction of the eventlog, so where they are, it was.
        let may_create = !files.witness().exists() && !files.state().exists();
        create_private_dir(files.dir())?;
        let alone = Alone::in_dir(files.dir())?;
        if !is_synced {
            eventlog::refuse_newer_header(&files.eventlog())?;
            secure(&files.eventlog(), &alone)?;
            secure(&files.state(), &alone)?;
            secure_names(files.dir())?;
        }
        let mut log = Eventlog::open(&files.eventlog(), may_create, &alone)?;
        let (witness, testimony) = Witness::open(&files.witness())?;
        if let Some(lack) = testimony.and_then(|earlier| log.testimony().lacks(earlier)) {
            return Err(Fault::LostTail(lack));
        }
        if let Some(problem) = log.check_waiting()?.into_iter().next() {
            return Err(Fault::Damaged(problem));
        }
        let generation = log.tip().generation;
        let loaded = State::load(&files.state(), &setup.schema, &setup.executable)?;
        if let Some(cursor) = loaded.cursor.filter(|cursor| cursor.generation >= generation) {
            check_cursor(&log, cursor)?;
        }
        log.upgrade()?;
        let state = match loaded.state {
            Ok(state) if state.cursor().generation == generation => state,
            other => {
                let why = other.err().unwrap_or_else(|| "events were taken back out of the log".to_owned());
                if log.tip().length > 0 {
                    tracing::info!(store = %files.dir().display(), why, "rebuilding the state");
                }
                State::new(&files.state(), &setup.schema, &setup.executable, generation, &alone)?
            }
        };
        sync_dir(files.dir())?;
        drop(alone);
        let mut replica = Self { setup, files, log, state, witness, unsettled: 0, view: View::Level, identity: None };
        replica.settle()?;
        replica.witness.write(replica.log.testimony())?;
        replica.identity = replica.identify();
        Ok(replica)
    }

    /// Runs `act` unless an earlier fault left log and state apart: whoever went on from there would commit a state that
    /// lacks events below its cursor.
    fn unless_broken<T>(&mut self, act: impl FnOnce(&mut Self) -> Result<T, Fault>) -> Result<T, Fault> {
        if self.view == View::Broken {
            return Err(Fault::Stopped);
        }
        let result = catch_unwind(AssertUnwindSafe(|| {
            let value = act(self)?;
            match self.wals().find(|wal| wal.has_failed()) {
                Some(wal) => Err(Fault::Unsynced(wal.path().to_owned())),
                None => Ok(value),
            }
        }));
        if !matches!(result, Ok(Ok(_))) {
            self.view = View::Broken;
        }
        result.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Makes the committed state level with the log, and puts the pending events on top of it again. On a disk without room
    /// for that the state can be read all the same: what its file lacks is put into the open transaction, too.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn settle(&mut self) -> Result<(), Fault> {
        self.unless_broken(Self::try_settle)
    }

    fn try_settle(&mut self) -> Result<(), Fault> {
        self.state.rollback()?;
        let is_level = self.catch_up()?;
        self.unsettled = 0;
        self.view = View::Level;
        if self.log.tip().pending > 0 || !is_level { self.restore(&mut Enders::new()) } else { Ok(()) }
    }

    /// Applies what the log has after the state's cursor, and commits it. No transaction may be open. False when there is no
    /// room on the disk to commit all of it.
    fn catch_up(&mut self) -> Result<bool, Fault> {
        let Tip { head, generation, length, .. } = *self.log.tip();
        let is_long = self.log.milestone_after(self.state.cursor().seq, PER_COMMIT)?.seq < head;
        let mut enders = Enders::new();
        while self.state.cursor().seq < head {
            let cursor = self.state.cursor();
            let milestone = self.log.milestone_after(cursor.seq, PER_COMMIT)?;
            self.state.begin()?;
            match replay_log(&self.log, &self.state, milestone.seq, &enders) {
                Ok(()) => {}
                Err(Stop::Ended(id, why)) => {
                    self.state.rollback()?;
                    enders.insert(id, why);
                    continue;
                }
                Err(Stop::Fault(fault)) => return Err(fault),
            }
            match self.state.commit(Cursor { generation, seq: milestone.seq, digest: milestone.digest }) {
                Err(fault) if fault.leaves_synced() => return Ok(false),
                committed => committed?,
            }
            if is_long {
                // A courtesy to people, which must not cost the store.
                let tell = || (self.setup.progress)(milestone.length, length);
                drop(catch_unwind(AssertUnwindSafe(tell)));
                self.state.wal().map_or(Ok(()), |wal| wal.checkpoint_if_due()).map_err(Fault::state)?;
            }
        }
        Ok(true)
    }

    /// Opens the state's transaction anew and applies, without committing, all that the eventlog has after the state's
    /// cursor: first the log, then the outbox. Passes over `enders`, and adds those that it finds.
    fn restore(&mut self, enders: &mut Enders) -> Result<(), Fault> {
        loop {
            self.state.rollback()?;
            self.state.begin()?;
            let log = replay_log(&self.log, &self.state, self.log.tip().head, enders);
            match log.and_then(|()| self.replay_pending(enders)) {
                Ok(()) => break,
                Err(Stop::Ended(id, why)) => drop(enders.insert(id, why)),
                Err(Stop::Fault(fault)) => return Err(fault),
            }
        }
        self.view = View::Level;
        if self.state.cursor().seq < self.log.tip().head {
            self.unsettled = self.unsettled.max(1);
        }
        Ok(())
    }

    fn replay_pending(&self, enders: &Enders) -> Result<(), Stop> {
        self.state.replay(i64::MIN, enders, |after, each| self.log.each_pending(after, CHUNK, each))
    }

    /// Commits the state's open transaction as what the whole log amounts to.
    fn commit_state(&mut self) -> Result<(), Fault> {
        let Tip { head, digest, generation, .. } = *self.log.tip();
        self.state.commit(Cursor { generation, seq: head, digest })?;
        self.unsettled = 0;
        Ok(())
    }

    /// Answers a query from confirmed and pending events.
    ///
    /// # Errors
    ///
    /// Of the query, or of SQLite.
    pub fn query<T: 'static>(&self, query: &Query<T>) -> Result<T, DbError> {
        self.read(query).map(|(answer, _)| answer)
    }

    /// As [`query`](Self::query), with the tables that were read.
    pub(crate) fn read<T: 'static>(&self, query: &Query<T>) -> Result<(T, Tables), DbError> {
        self.state.read(query)
    }

    /// The tables that changed since the last call.
    pub(crate) fn take_touched(&self) -> Tables {
        self.state.take_touched()
    }

    /// The events of the log after `after`, as many as fit into `size`: those that were stored, or none.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn entries(&self, after: Seq, size: PageSize) -> Result<Vec<Entry>, Fault> {
        let entries = self.log.entries(after, size)?;
        if let Some(last) = entries.last() {
            self.log.ensure(after, last.seq)?;
        }
        Ok(entries)
    }

    /// What was checked of it, for whoever opens the same files again in this process, now that it is about to be closed.
    pub(crate) fn take_checked(&self) -> Checked {
        self.log.take_checked()
    }

    /// Goes on with the checks where an earlier replica of the same files left off, in this process.
    pub(crate) fn go_on_checking(&mut self, earlier: Checked) -> Result<(), Fault> {
        Ok(self.log.go_on_checking(earlier)?)
    }

    /// Looks at some of the events that were there at opening, `most` of them: whether they are what was stored, and
    /// whether each is found under its id. Opening itself looks only at the end of the log and at what is pending.
    ///
    /// # Errors
    ///
    /// [`Fault::Damaged`], or another fault of the machine.
    pub fn check_some(&mut self, most: usize) -> Result<Progress, Fault> {
        self.unless_broken(|replica| Ok(replica.log.check_some(most)?))
    }

    /// The events of the outbox whose number is above `after`, with their numbers, as many as fit into `size`.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn pending(&self, after: i64, size: PageSize) -> Result<Vec<(i64, Envelope)>, Fault> {
        Ok(self.log.pending(after, size)?)
    }

    /// How many different names the events of the eventlog have.
    pub(crate) fn names(&self) -> usize {
        self.log.names()
    }

    /// Whether an event of that name is nothing new: one was here before, or the schema knows it.
    pub(crate) fn has_name(&self, name: &str) -> bool {
        self.log.has_name(name) || self.setup.schema.knows(name)
    }

    /// The digest of the log up to `seq`.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn digest_at(&self, seq: Seq) -> Result<Digest, Fault> {
        // Between two checkpoints it is made from the events themselves.
        if Seq::START < seq && seq < self.log.tip().head {
            self.log.ensure(Seq(seq.0 - 1), seq)?;
        }
        Ok(self.log.digest_at(seq)?)
    }

    /// The digest of the state, with what is pending.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn state_digest(&self) -> Result<Digest, Fault> {
        self.state.digest()
    }

    /// Why the event `id` has no effect, if it has none for a fault of its own.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn why_skipped(&self, id: EventId) -> Result<Option<String>, Fault> {
        self.state.why_skipped(id)
    }

    /// The events that have no effect, and why: those with the newest ids first, up to [`MOST_SKIPPED`] of them.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn skipped(&self) -> Result<Vec<Skipped>, Fault> {
        let skipped = self.state.skipped(MOST_SKIPPED)?.into_iter().map(|(id, why)| {
            let found = self.log.find(id)?;
            let why = why.map_or(NoEffect::UnknownName, NoEffect::Failed);
            Ok(found.map(|found| Skipped { id, name: found.content().name.as_str().to_owned(), why }))
        });
        skipped.filter_map(Result::transpose).collect()
    }

    /// Where this replica stands.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn standing(&self) -> Result<Standing, Fault> {
        let (skipped, unknown) = self.state.count_skipped();
        let Tip { head, length, generation, whose, pending, set_aside, .. } = *self.log.tip();
        let cursor = self.state.cursor().seq;
        Ok(Standing { whose, generation, head, length, cursor, pending, set_aside, skipped, unknown })
    }

    /// Tries whether the machine takes writes again, after it didn't.
    pub(crate) fn probe(&mut self) -> Result<(), Fault> {
        Ok(self.log.try_write()?)
    }

    /// Fails when the files are no longer those that were opened, so that nothing is acknowledged into the void.
    ///
    /// # Errors
    ///
    /// [`Fault::Gone`].
    pub fn check_files(&self) -> Result<(), Fault> {
        if self.identity == self.identify() { Ok(()) } else { Err(Fault::Gone(self.files.dir().to_owned())) }
    }

    fn identify(&self) -> Option<Vec<FileId>> {
        let mut wal = self.files.eventlog().into_os_string();
        wal.push("-wal");
        [self.files.eventlog(), wal.into()].iter().map(|path| FileId::of(path)).collect()
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// The WALs of both databases.
    pub(crate) fn wals(&self) -> impl Iterator<Item = &Arc<WalGauge>> {
        self.log.wal().into_iter().chain(self.state.wal())
    }

    /// Whether a transaction is open on the database of `wal`, so that its WAL can't be emptied.
    pub(crate) fn is_writing(&self, wal: &Arc<WalGauge>) -> bool {
        self.state.is_open() && self.state.wal().is_some_and(|own| Arc::ptr_eq(own, wal))
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        // After a fault the WALs are all that is known to be right, and have to stay as they are.
        if self.view != View::Broken {
            for closed in [self.log.close_in_order().map_err(Fault::from), self.state.close_in_order()] {
                if let Err(error) = closed {
                    tracing::warn!(store = %self.files.dir().display(), %error, "cannot close in good order");
                }
            }
        }
    }
}

/// Applies, inside the open transaction of `state`, what comes in `log` after its cursor and up to `until`.
pub(super) fn replay_log(log: &Eventlog, state: &State, until: Seq, enders: &Enders) -> Result<(), Stop> {
    state.replay(state.cursor().seq, enders, |after, each| log.each_in_log(after, until, CHUNK, each))
}

/// Fails when the state has seen what the eventlog does not hold.
fn check_cursor(log: &Eventlog, cursor: Cursor) -> Result<(), Fault> {
    let Tip { head, generation, .. } = *log.tip();
    if cursor.generation > generation {
        return Err(Fault::LostTail(format!(
            "it is of generation {}, and its state is of generation {}",
            generation.0, cursor.generation.0
        )));
    }
    if cursor.seq > head {
        return Err(Fault::LostTail(format!("it ends at {head}, and its state has come to {}", cursor.seq)));
    }
    if cursor.seq > Seq::START {
        // Whatever the disk has changed is no lost end.
        log.ensure(Seq(cursor.seq.0 - 1), cursor.seq)?;
    }
    if log.digest_at(cursor.seq)? != cursor.digest {
        return Err(Fault::LostTail(format!(
            "its events up to {} are not those that its state was made from",
            cursor.seq
        )));
    }
    Ok(())
}

/// What tells a file from another that stands at the same path later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileId(u64, u64);

impl FileId {
    #[cfg(unix)]
    fn of(path: &Path) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(path).ok().map(|meta| Self(meta.dev(), meta.ino()))
    }

    #[cfg(not(unix))]
    fn of(path: &Path) -> Option<Self> {
        fs::metadata(path).ok().map(|_| Self(0, 0))
    }
}

/// The cursor and the digest of the state that is committed in `files`, read beside whoever writes to it.
///
/// # Errors
///
/// A fault of the machine.
pub fn committed_state(files: &Files) -> Result<(Cursor, Digest), Fault> {
    state::committed(&files.state()).map(|found| (found.cursor, found.digest))
}
