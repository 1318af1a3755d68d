//! One device's copy of a store: an eventlog and the state derived from it.
//!
//! The code is synchronous and uses no clock or network, and no thread but one that reads ahead in a long rebuild. So a test
//! can drive a hundred replicas from one seed.
//! After a [`Fault`], a replica makes no more changes: drop it and open it again. Everything it acknowledged is in its
//! eventlog.
//!
//! Two rules hold at every point where the process may die:
//!
//! - The eventlog commits before the state. So the state on disk is behind the eventlog or level with it, but never
//!   ahead. [Opening](Replica::open) applies the missing events.
//! - The state on disk holds only confirmed events. Pending events are applied on top of it in a transaction that stays
//!   open, and reads go through that transaction. To remove pending events from the state, SQLite rolls it back.

mod ahead;
mod arrive;
mod authority;
mod base;
mod settle;
mod standing;
mod stream;
mod write;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub use arrive::{Page, Position};
use base::Parts;
pub use base::{Concluded, HistoryPosition, HistoryStanding};
pub(crate) use settle::replay_log;
pub use standing::{NoEffect, Skipped, Standing, committed_state};
pub use stream::Arrival;
pub use write::Outcome;

use super::error::{DbError, Fault};
use super::event::Envelope;
use super::eventlog::{self, Checked, Eventlog, PageSize, Progress, Tip};
use super::files::{create_private_dir, sync_dir};
use super::opening::{Alone, remove_file, secure, secure_names};
use super::place::{Cursor, Digest, Entry, Seq};
use super::query::Query;
use super::setup::{Files, Setup};
use super::state::State;
use super::storage::{WalGauge, check_sqlite};
use super::witness::Witness;

/// One device's copy of a store.
pub struct Replica {
    setup: Setup,
    files: Files,
    log: Eventlog,
    state: State,
    witness: Witness,
    /// The number of confirmed events that are in the state's open transaction but not yet in its file.
    unsettled: u64,
    /// The number of an authority's own events whose effect is in the state's open transaction but not yet in its file.
    deferred: u64,
    view: View,
    identity: Option<Vec<FileId>>,
}

/// How much of the eventlog queries see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum View {
    /// All of it: the open transaction holds the log and the outbox.
    Level,
    /// All but the last `lag` events that arrived. The outbox has yet to be re-applied on top of them.
    Behind { lag: u64 },
    /// Unknown. A fault interrupted a change, so the replica does nothing more.
    Broken,
}

impl Replica {
    /// Opens the store in `files`, or creates an empty one with a log of its own. Syncs the files it finds and applies
    /// the events that a crash left unapplied. Rebuilds the state if it is missing, damaged or made by another program.
    ///
    /// The caller ensures that each directory has only one replica, across all processes.
    ///
    /// # Errors
    ///
    /// Whatever keeps the store from being opened. Nothing was changed then. [`Fault::LostTail`] means that the
    /// eventlog provably held more events before.
    pub fn open(files: Files, setup: Setup) -> Result<Self, Fault> {
        Self::open_found(files, setup, false)
    }

    /// Works like [`open`](Self::open). `is_synced` says that this process has already synced the files and that no
    /// sync has failed since. They aren't written again then, so a store stays readable on a full disk.
    pub(crate) fn open_found(files: Files, setup: Setup, is_synced: bool) -> Result<Self, Fault> {
        check_sqlite()?;
        files.check()?;
        // The witness and the state are created after the eventlog's first transaction. If they exist, there was an
        // eventlog.
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
        let (mut witness, testimony) = Witness::open(&files.witness())?;
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
        let is_new = loaded.cursor.is_some_and(|cursor| cursor.generation < generation);
        let mut parts = Parts { files: &files, setup: &setup, log: &mut log, witness: &mut witness, is_new };
        let state = match loaded.state {
            Ok(state) if state.cursor().generation == generation && parts.has_base()? => state,
            other => {
                let why = other.err().unwrap_or_else(|| "events were taken back out of the log".to_owned());
                if parts.log.tip().length > 0 {
                    tracing::info!(store = %files.dir().display(), why, "rebuilding the state");
                }
                parts.begin_state(&alone)?
            }
        };
        if log.tip().is_whole() {
            // A join, a proof or a drop was interrupted.
            remove_file(&files.base())?;
        }
        files.remove_scratch()?;
        sync_dir(files.dir())?;
        drop(alone);
        let mut replica =
            Self { setup, files, log, state, witness, unsettled: 0, deferred: 0, view: View::Level, identity: None };
        replica.settle()?;
        replica.witness.write(replica.log.testimony())?;
        replica.identity = replica.identify();
        Ok(replica)
    }

    /// Runs `act`, unless an earlier fault left the log and the state out of step. Continuing from there would commit a
    /// state that lacks events below its cursor.
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

    /// Answers a query from confirmed and pending events.
    ///
    /// # Errors
    ///
    /// An error of the query or of SQLite.
    pub fn query<T: 'static>(&self, query: &Query<T>) -> Result<T, DbError> {
        self.state.read(query)
    }

    /// Returns the events of the log after `after`, as many as fit into `size`. They are verified to be the events that
    /// were stored; otherwise this fails.
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

    /// Returns what was checked so far, for the next replica of the same files in this process. Call it before closing.
    pub(crate) fn take_checked(&self) -> Checked {
        self.log.take_checked()
    }

    /// Resumes the checks where an earlier replica of the same files in this process left off.
    pub(crate) fn go_on_checking(&mut self, earlier: Checked) -> Result<(), Fault> {
        Ok(self.log.go_on_checking(earlier)?)
    }

    /// Checks up to `most` of the events that were there at opening: that each is what was stored, and that it is found
    /// under its id. Opening itself checks only the end of the log and the pending events.
    ///
    /// # Errors
    ///
    /// [`Fault::Damaged`], or another fault of the machine.
    pub fn check_some(&mut self, most: usize) -> Result<Progress, Fault> {
        self.unless_broken(|replica| Ok(replica.log.check_some(most)?))
    }

    /// Returns the events of the outbox with a number above `after`, with their numbers, as many as fit into `size`.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn pending(&self, after: i64, size: PageSize) -> Result<Vec<(i64, Envelope)>, Fault> {
        Ok(self.log.pending(after, size)?)
    }

    /// Returns how many different event names the eventlog holds.
    pub(crate) fn names(&self) -> usize {
        self.log.names()
    }

    /// Returns whether this event name is known: the eventlog has held one, or the schema knows it.
    pub(crate) fn has_name(&self, name: &str) -> bool {
        self.log.has_name(name) || self.setup.schema.knows(name)
    }

    /// Returns the digest of the log up to `seq`.
    ///
    /// # Errors
    ///
    /// A fault of the machine, and [`Fault::NotHere`] if not all events up to there are here.
    pub fn digest_at(&self, seq: Seq) -> Result<Digest, Fault> {
        self.known_digest(seq)?.ok_or(Fault::NotHere(seq))
    }

    /// Returns the digest of the log up to `seq`, or `None` if not all events up to there are here.
    pub(super) fn known_digest(&self, seq: Seq) -> Result<Option<Digest>, Fault> {
        // Between two checkpoints the digest is computed from the events themselves.
        if Seq::START < seq && seq < self.log.tip().head {
            self.log.ensure(Seq(seq.0 - 1), seq)?;
        }
        Ok(self.log.digest_at(seq)?)
    }

    /// Tries whether the machine accepts writes again after a failure.
    pub(crate) fn probe(&mut self) -> Result<(), Fault> {
        Ok(self.log.try_write()?)
    }

    /// Fails if the files are no longer the ones that were opened. Without this check, events could be acknowledged
    /// into files that are gone.
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

    pub(crate) fn log(&self) -> &Eventlog {
        &self.log
    }

    pub(crate) fn state(&mut self) -> &mut State {
        &mut self.state
    }

    /// Returns how long the disk took for the last events that were stored, since this was last asked.
    pub(crate) fn take_synced(&mut self) -> Option<Duration> {
        self.log.take_synced()
    }

    /// Returns the WALs of both databases.
    pub(crate) fn wals(&self) -> impl Iterator<Item = &Arc<WalGauge>> {
        self.log.wal().into_iter().chain(self.state.wal())
    }

    /// Returns whether a transaction is open on the database of `wal`. Its WAL can't be emptied then.
    pub(crate) fn is_writing(&self, wal: &Arc<WalGauge>) -> bool {
        self.state.is_open() && self.state.wal().is_some_and(|own| Arc::ptr_eq(own, wal))
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        // After a fault only the WALs are known to be right, so they are left as they are.
        if self.view != View::Broken {
            let (log, state) = (self.log.close_in_order(), self.state.close_in_order());
            for closed in [log.map_err(Fault::from), state.map_err(Fault::from)] {
                if let Err(error) = closed {
                    tracing::warn!(store = %self.files.dir().display(), %error, "cannot close in good order");
                }
            }
        }
    }
}

/// Fails if the state has seen events that the eventlog doesn't hold.
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
        // Report a change made by the disk as damage, not as a lost tail.
        log.ensure(Seq(cursor.seq.0 - 1), cursor.seq)?;
    }
    if log.digest_at(cursor.seq)? != Some(cursor.digest) {
        return Err(Fault::LostTail(format!(
            "its events up to {} are not those that its state was made from",
            cursor.seq
        )));
    }
    Ok(())
}

/// Distinguishes a file from another one that later takes the same path.
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
