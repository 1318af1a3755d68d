//! One device's copy of a store: an eventlog and the state that follows from it.
//!
//! Plain synchronous code, without threads, clock or network: a test can drive a hundred of them by a seed. After a
//! [`Fault`] a replica changes nothing any more; drop it and open it again. What it acknowledged is in its eventlog.
//!
//! Two rules hold at every point where the process may die:
//!
//! - The eventlog commits before the state does, so the state on disk is behind the eventlog or level with it, never
//!   ahead; [opening](Replica::open) applies what is missing.
//! - The state on disk holds confirmed events alone. Pending ones are applied in a transaction on it that stays open,
//!   and reads go through it. Rolling that back is how pending events leave the state, and SQLite does it.

mod arrive;
mod authority;
mod settle;
mod standing;
mod write;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::Arc;

pub use arrive::{Page, Position};
pub(crate) use settle::replay_log;
pub use standing::{NoEffect, Skipped, Standing, committed_state};
pub use write::Outcome;

use super::error::{DbError, Fault};
use super::event::Envelope;
use super::eventlog::{self, Checked, Eventlog, PageSize, Progress, Tip};
use super::files::{create_private_dir, sync_dir};
use super::opening::{Alone, secure, secure_names};
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
    /// The caller makes sure that a directory has one replica, in all processes together.
    ///
    /// # Errors
    ///
    /// What keeps the store from being opened; nothing was changed then. [`Fault::LostTail`] says that the eventlog
    /// provably held more once.
    pub fn open(files: Files, setup: Setup) -> Result<Self, Fault> {
        Self::open_found(files, setup, false)
    }

    /// As [`open`](Self::open). If `is_synced`, this process made the files durable before, and no sync has failed since.
    /// They aren't written again then, so a store stays readable on a full disk.
    pub(crate) fn open_found(files: Files, setup: Setup, is_synced: bool) -> Result<Self, Fault> {
        check_sqlite()?;
        files.check()?;
        // The witness and the state come after the eventlog's first transaction. Where they are, there was an eventlog.
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

    /// Runs `act`, unless an earlier fault left log and state apart. To go on from there would commit a state that lacks
    /// events below its cursor.
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
    /// Of the query, or of SQLite.
    pub fn query<T: 'static>(&self, query: &Query<T>) -> Result<T, DbError> {
        self.state.read(query)
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

    /// What was checked so far, for the next replica of the same files in this process. Call it before closing.
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

    pub(crate) fn log(&self) -> &Eventlog {
        &self.log
    }

    pub(crate) fn state(&mut self) -> &mut State {
        &mut self.state
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
        // After a fault only the WALs are known to be right, so they stay as they are.
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
