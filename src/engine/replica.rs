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

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::checks::{Checked, Progress};
use super::error::{DbError, Fault, IoContext};
use super::event::{Device, Envelope, EventId};
use super::eventlog::{self, Content, Eventlog, Found, PageSize, Tip, Whose};
use super::files::{check_files, create_private_dir, sync_dir};
use super::opening::{Alone, secure, secure_names};
use super::place::{Cursor, Digest, Entry, Generation, LogId, Seq};
use super::query::Query;
use super::sandbox::Tables;
use super::schema::{Effect, Schema};
use super::state::{self, CHUNK, Enders, Halt, OnFault, State, Stop};
use super::storage::{WalGauge, check_sqlite};
use super::witness::Witness;

/// The next event alone.
const ONE: PageSize = PageSize { events: 1, bytes: 0 };

/// How many events a rebuild applies in one transaction of the state.
const PER_COMMIT: u64 = 10_000;

/// How many confirmed events may be in the open transaction alone before they are settled: what opening again after a
/// crash has to apply. As many as are pending, if these are more.
pub const SETTLE_EVERY: u64 = 10_000;

/// How many pending events are put back on top of others' at once, whatever it is worth: that takes a few milliseconds.
const PUT_BACK: u64 = 1_000;

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

/// What became of an event that was to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is stored now; with its seq, unless an upstream has yet to give it one.
    Stored(Option<Seq>),
    /// It was stored before.
    Known(Option<Seq>),
    /// Its id is taken by an event with another name or payload, which stays.
    Conflict,
    /// It can't be applied, and was not stored: the reason.
    Refused(String),
}

/// Where a replica stands in its upstream's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// When this changes, so does everything else here.
    pub generation: Generation,
    /// The upstream's log, if it was met before.
    pub log: Option<LogId>,
    /// How far it was pulled.
    pub after: Seq,
    /// Of our log up to there.
    pub digest: Digest,
}

/// A part of an upstream's log, in its order.
#[derive(Debug, Clone)]
pub struct Page {
    /// The events.
    pub entries: Vec<Entry>,
    /// Where the next page begins.
    pub next: Seq,
    /// Whether the upstream has more events waiting already.
    pub more: bool,
}

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

/// One device's copy of a store.
pub struct Replica {
    setup: Setup,
    files: Files,
    log: Eventlog,
    state: State,
    witness: Witness,
    /// How many confirmed events only the state's open transaction holds, not yet its file.
    unsettled: u64,
    /// Whether the log holds events that the open transaction doesn't.
    is_behind: bool,
    /// How many arrived since it does.
    lag: u64,
    identity: Option<Vec<FileId>>,
    /// Whether a fault has left it in the middle of something.
    is_broken: bool,
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
        create_private_dir(&files.dir)?;
        let alone = Alone::in_dir(&files.dir)?;
        if !is_synced {
            eventlog::refuse_newer_header(&files.eventlog())?;
            secure(&files.eventlog(), &alone)?;
            secure(&files.state(), &alone)?;
            secure_names(&files.dir)?;
        }
        let mut log = Eventlog::open(&files.eventlog(), may_create, &alone)?;
        let (witness, testimony) = Witness::open(&files.witness())?;
        if let Some(lack) = testimony.and_then(|earlier| log.testimony().lacks(earlier)) {
            return Err(Fault::LostTail(lack));
        }
        if let Some(problem) = log.check_waiting().map_err(Fault::eventlog)?.into_iter().next() {
            return Err(Fault::Damaged(problem));
        }
        let generation = log.tip().generation;
        let loaded = State::load(&files.state(), &setup.schema, &setup.executable)?;
        if let Some(cursor) = loaded.cursor.filter(|cursor| cursor.generation >= generation) {
            check_cursor(&log, cursor)?;
        }
        log.upgrade().map_err(Fault::eventlog)?;
        let state = match loaded.state {
            Ok(state) if state.cursor().generation == generation => state,
            other => {
                let why = other.err().unwrap_or_else(|| "events were taken back out of the log".to_owned());
                if log.tip().length > 0 {
                    tracing::info!(store = %files.dir.display(), why, "rebuilding the state");
                }
                State::new(&files.state(), &setup.schema, &setup.executable, generation, &alone)?
            }
        };
        sync_dir(&files.dir)?;
        drop(alone);
        let mut replica = Self {
            setup,
            files,
            log,
            state,
            witness,
            unsettled: 0,
            is_behind: false,
            lag: 0,
            identity: None,
            is_broken: false,
        };
        replica.settle()?;
        replica.witness.write(replica.log.testimony())?;
        replica.identity = replica.identify();
        Ok(replica)
    }

    /// Commits events that happened here: durable and applied when this returns, except for those it refuses.
    ///
    /// Each event is judged on its own; together they cost one fsync.
    ///
    /// # Errors
    ///
    /// A fault of the machine, after which nothing is known about any of `events`: they may be stored or not, and are
    /// to be committed again under the same ids.
    pub fn commit(&mut self, events: &[Envelope]) -> Result<Vec<Outcome>, Fault> {
        let device = self.setup.device.clone();
        let batch: Vec<_> = events.iter().map(|event| (event, &device)).collect();
        self.write(&batch, OnFault::Refuse)
    }

    /// Adds events that happened elsewhere, in this order, each with the device it comes from. They are not judged: one
    /// that can't be applied is stored and skipped, as it is on every other replica.
    ///
    /// # Errors
    ///
    /// As [`commit`](Self::commit).
    pub fn add(&mut self, events: &[(Envelope, Device)]) -> Result<Vec<Outcome>, Fault> {
        let batch: Vec<_> = events.iter().map(|(event, origin)| (event, origin)).collect();
        self.write(&batch, OnFault::Skip)
    }

    /// Runs `act` unless an earlier fault left log and state apart: whoever went on from there would commit a state that
    /// lacks events below its cursor.
    fn unless_broken<T>(&mut self, act: impl FnOnce(&mut Self) -> Result<T, Fault>) -> Result<T, Fault> {
        if self.is_broken {
            return Err(Fault::Stopped);
        }
        // Also when it panics.
        self.is_broken = true;
        let value = act(self)?;
        if let Some(wal) = self.wals().find(|wal| wal.has_failed()) {
            return Err(Fault::Unsynced(wal.path().to_owned()));
        }
        self.is_broken = false;
        Ok(value)
    }

    fn write(&mut self, batch: &[(&Envelope, &Device)], on_fault: OnFault) -> Result<Vec<Outcome>, Fault> {
        self.unless_broken(|replica| replica.try_write(batch, on_fault))
    }

    fn try_write(&mut self, batch: &[(&Envelope, &Device)], on_fault: OnFault) -> Result<Vec<Outcome>, Fault> {
        self.log.begin().map_err(Fault::eventlog)?;
        if !self.state.is_open() {
            self.state.begin()?;
        }
        let outcomes = match self.write_together(batch, on_fault)? {
            Some(outcomes) => outcomes,
            None => {
                let mut enders = Enders::new();
                let each = batch.iter().map(|(event, origin)| self.write_alone(event, origin, on_fault, &mut enders));
                each.collect::<Result<_, _>>()?
            }
        };
        self.log.commit().map_err(Fault::eventlog)?;
        if matches!(self.log.tip().whose, Whose::Own(_)) || self.log.tip().pending == 0 && self.unsettled == 0 {
            self.commit_state()?;
        }
        self.witness.write(self.log.testimony())?;
        Ok(outcomes)
    }

    /// Stores and applies the whole batch; nothing of it, and `None`, when an event in it needs a closer look.
    fn write_together(
        &mut self,
        batch: &[(&Envelope, &Device)],
        on_fault: OnFault,
    ) -> Result<Option<Vec<Outcome>>, Fault> {
        let mark = self.log.mark().map_err(Fault::eventlog)?;
        self.state.mark()?;
        let outcomes = self.store(batch)?;
        let stored = outcomes.iter().zip(batch).filter(|(outcome, _)| matches!(outcome, Outcome::Stored(_)));
        let fresh: Vec<_> = stored.map(|(_, (event, _))| *event).collect();
        match self.state.apply_together(&fresh, on_fault) {
            Ok(effects) if on_fault == OnFault::Skip || effects.iter().all(|effect| *effect == Effect::Applied) => {
                self.log.keep().map_err(Fault::eventlog)?;
                self.state.keep()?;
                Ok(Some(outcomes))
            }
            Ok(_) | Err(Halt::Undo) => {
                self.log.undo(mark).map_err(Fault::eventlog)?;
                self.state.undo()?;
                Ok(None)
            }
            Err(Halt::Stop(Stop::Ended(..))) => {
                self.log.undo(mark).map_err(Fault::eventlog)?;
                self.restore(&mut Enders::new())?;
                Ok(None)
            }
            Err(Halt::Stop(Stop::Fault(fault))) => Err(fault),
        }
    }

    /// Stores and applies one event of a batch in which something is wrong. Those before it that end the transaction
    /// are in `enders`, so that each makes the others be applied again once, and not once more for each that follows.
    fn write_alone(
        &mut self,
        event: &Envelope,
        origin: &Device,
        on_fault: OnFault,
        enders: &mut Enders,
    ) -> Result<Outcome, Fault> {
        let mark = self.log.mark().map_err(Fault::eventlog)?;
        let outcome = self.store(&[(event, origin)])?.remove(0);
        let refused = match outcome {
            Outcome::Stored(_) => match self.state.apply_alone(event, on_fault) {
                Ok(Effect::Skipped(why)) if on_fault == OnFault::Refuse => Some(why),
                Ok(Effect::Unknown) if on_fault == OnFault::Refuse => {
                    Some(format!("nothing here knows events named {}", event.name.as_str()))
                }
                Ok(_) => None,
                Err(Stop::Ended(_, why)) if on_fault == OnFault::Refuse => {
                    self.log.undo(mark).map_err(Fault::eventlog)?;
                    self.restore(enders)?;
                    return Ok(Outcome::Refused(why));
                }
                Err(Stop::Ended(id, why)) => {
                    self.log.keep().map_err(Fault::eventlog)?;
                    enders.insert(id, why);
                    self.restore(enders)?;
                    return Ok(outcome);
                }
                Err(Stop::Fault(fault)) => return Err(fault),
            },
            _ => None,
        };
        match refused {
            Some(why) => {
                self.log.undo(mark).map_err(Fault::eventlog)?;
                Ok(Outcome::Refused(why))
            }
            None => {
                self.log.keep().map_err(Fault::eventlog)?;
                Ok(outcome)
            }
        }
    }

    /// Puts each event where it belongs in the eventlog, unless its id is there.
    fn store(&mut self, batch: &[(&Envelope, &Device)]) -> Result<Vec<Outcome>, Fault> {
        let Tip { whose, set_aside, .. } = *self.log.tip();
        let places = match whose {
            Whose::Own(_) => self.log.append_all(batch).map_err(Fault::eventlog)?,
            Whose::Upstream(_) => vec![None; batch.len()],
        };
        let outcome = |((event, _), place): (&(&Envelope, _), _)| match place {
            Some(seq) => {
                if set_aside > 0 {
                    self.log.remove_set_aside(event).map_err(Fault::eventlog)?;
                }
                Ok(Outcome::Stored(Some(seq)))
            }
            None => self.store_pending(event),
        };
        batch.iter().zip(places).map(outcome).collect()
    }

    /// Puts `event` into the outbox, unless its id is anywhere in the eventlog.
    fn store_pending(&mut self, event: &Envelope) -> Result<Outcome, Fault> {
        match self.find(event.id)? {
            Some(found) if !found.is(event) => self.conflict(&found),
            Some(Found::Log(seq, _)) => Ok(Outcome::Known(Some(seq))),
            Some(_) => Ok(Outcome::Known(None)),
            None => {
                self.log.push(event).map_err(Fault::eventlog)?;
                Ok(Outcome::Stored(None))
            }
        }
    }

    /// What is said of an event whose id belongs to another, unless it was the disk that made another of it.
    fn conflict(&self, found: &Found) -> Result<Outcome, Fault> {
        if let Found::Log(seq, _) = found {
            self.log.ensure(Seq(seq.0 - 1), *seq).map_err(Fault::eventlog)?;
        }
        Ok(Outcome::Conflict)
    }

    fn find(&self, id: EventId) -> Result<Option<Found>, Fault> {
        self.log.find(id).map_err(Fault::eventlog)
    }

    /// Takes in a part of the upstream's log. What confirms a pending event is that it arrives here.
    ///
    /// The log may go [ahead](Self::is_behind) of what queries see, because to put the outbox back once a page would be
    /// quadratic: it is put back after as many arrivals as are pending, or at once when few are and no more arrives.
    /// Whoever has waited long enough for the next page, or stops, calls [`settle_arrivals`](Self::settle_arrivals).
    ///
    /// # Errors
    ///
    /// A fault of the machine; the page is to be pulled again.
    pub fn arrive(&mut self, page: &Page) -> Result<(), Fault> {
        self.unless_broken(|replica| replica.try_arrive(page))
    }

    fn try_arrive(&mut self, page: &Page) -> Result<(), Fault> {
        let before = *self.log.tip();
        let mut is_ours_in_order = !self.is_behind;
        self.log.begin().map_err(Fault::eventlog)?;
        for entry in &page.entries {
            is_ours_in_order &= self.admit(entry).map_err(Fault::eventlog)?;
        }
        if page.next > before.pulled {
            self.log.set_pulled(page.next).map_err(Fault::eventlog)?;
        }
        self.log.commit().map_err(Fault::eventlog)?;
        self.witness.write(self.log.testimony())?;

        let now = *self.log.tip();
        let added = now.length - before.length;
        if added == 0 && now.pending == before.pending {
            return if self.is_behind { self.settle_if_due(page.more) } else { Ok(()) };
        }
        if is_ours_in_order {
            // The open transaction has applied just these events, in this order.
            self.unsettled += added;
            if now.pending == 0 {
                return self.commit_state();
            }
            // Opening applies what is pending in any case, and to put that back as often as this costs as much each time:
            // with a million pending, every 10,000 would be a hundred times.
            let most = SETTLE_EVERY.max(now.pending);
            return if self.unsettled >= most { self.try_settle() } else { Ok(()) };
        }
        self.is_behind = true;
        self.lag += added;
        self.settle_if_due(page.more)
    }

    /// Shows queries what has arrived, if that is worth it: all that is pending is applied again for it.
    fn settle_if_due(&mut self, more: bool) -> Result<(), Fault> {
        let pending = self.log.tip().pending;
        let is_due = if more { self.lag >= SETTLE_EVERY.max(pending) } else { self.lag >= pending };
        if is_due || pending == 0 || !more && pending <= PUT_BACK { self.try_settle() } else { Ok(()) }
    }

    /// Whether events have arrived that queries don't see yet.
    pub fn is_behind(&self) -> bool {
        self.is_behind
    }

    /// Puts one event of the upstream's log into ours. True when it was the next of our own pending ones, so that the
    /// open transaction has it already.
    fn admit(&mut self, entry: &Entry) -> rusqlite::Result<bool> {
        let tip = *self.log.tip();
        let event = &entry.event;
        if entry.seq <= tip.head {
            // It came before.
            return Ok(true);
        }
        let found = if tip.pending > 0 || tip.set_aside > 0 { self.log.find(event.id)? } else { None };
        let is_same = found.as_ref().is_some_and(|found| found.is(event));
        let mut is_next = false;
        match found {
            Some(Found::Log(..)) => return Ok(true),
            Some(Found::Outbox(n, _)) => {
                let first = self.log.pending(i64::MIN, ONE)?;
                is_next = is_same && first.first().is_some_and(|(first, _)| *first == n);
                if !is_same && let Some((_, ours)) = self.log.pending(n - 1, ONE)?.first() {
                    self.log.set_aside(ours, "its id belongs to another event in the upstream's log")?;
                }
                self.log.remove_pending(n)?;
            }
            Some(Found::SetAside(_)) | None => {}
        }
        if tip.set_aside > 0 {
            self.log.remove_set_aside(event)?;
        }
        let added = self.log.append(entry.seq, event, &entry.origin)?;
        Ok(is_next || !added)
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
        self.is_behind = false;
        self.lag = 0;
        if self.log.tip().pending > 0 || !is_level { self.restore(&mut Enders::new()) } else { Ok(()) }
    }

    /// Shows queries what [`arrive`](Self::arrive) left for later.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn settle_arrivals(&mut self) -> Result<(), Fault> {
        if self.is_behind { self.settle() } else { Ok(()) }
    }

    /// Applies what the log has after the state's cursor, and commits it. No transaction may be open. False when there is no
    /// room on the disk to commit all of it.
    fn catch_up(&mut self) -> Result<bool, Fault> {
        let Tip { head, generation, length, .. } = *self.log.tip();
        let is_long =
            self.log.milestone_after(self.state.cursor().seq, PER_COMMIT).map_err(Fault::eventlog)?.seq < head;
        let mut enders = Enders::new();
        while self.state.cursor().seq < head {
            let cursor = self.state.cursor();
            let milestone = self.log.milestone_after(cursor.seq, PER_COMMIT).map_err(Fault::eventlog)?;
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
        self.is_behind = false;
        self.lag = 0;
        if self.state.cursor().seq < self.log.tip().head {
            self.unsettled = self.unsettled.max(1);
        }
        Ok(())
    }

    fn replay_pending(&self, enders: &Enders) -> Result<(), Stop> {
        self.state.replay(i64::MIN, enders, |after, each| {
            self.log.each_pending(after, CHUNK, each).map_err(|error| Stop::Fault(Fault::eventlog(error)))?
        })
    }

    /// Commits the state's open transaction as what the whole log amounts to.
    fn commit_state(&mut self) -> Result<(), Fault> {
        let Tip { head, digest, generation, .. } = *self.log.tip();
        self.state.commit(Cursor { generation, seq: head, digest })?;
        self.unsettled = 0;
        Ok(())
    }

    /// Takes everything in the log after `after` back to the front of the outbox, for a log whose authority is `whose`
    /// from now on. No event is lost: those taken back are pending again, under the same ids. When the log is our own
    /// from now on, nobody else gives places out, and everything pending gets its own at once.
    ///
    /// # Errors
    ///
    /// A fault of the machine. A crash between the eventlog's commit and the new state is mended by opening.
    pub fn take_back(&mut self, after: Seq, whose: Whose) -> Result<(), Fault> {
        self.unless_broken(|replica| replica.try_take_back(after, whose))
    }

    fn try_take_back(&mut self, after: Seq, whose: Whose) -> Result<(), Fault> {
        self.state.rollback()?;
        self.unsettled = 0;
        let device = self.setup.device.clone();
        self.transact(|own| {
            own.take_back(after)?;
            own.set_whose(whose)?;
            if let Whose::Own(_) = whose { own.place_pending(&device) } else { Ok(()) }
        })?;
        self.rebuild()
    }

    /// Makes the state anew from the log.
    fn rebuild(&mut self) -> Result<(), Fault> {
        // The old connection has to let go of the file first.
        self.state = State::in_memory(&self.setup.schema)?;
        let alone = Alone::in_dir(&self.files.dir)?;
        let Setup { schema, executable, .. } = &self.setup;
        self.state = State::new(&self.files.state(), schema, executable, self.log.tip().generation, &alone)?;
        drop(alone);
        self.state.take_touched();
        self.try_settle()?;
        self.state.touch_all();
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
        let entries = self.log.entries(after, size).map_err(Fault::eventlog)?;
        if let Some(last) = entries.last() {
            self.log.ensure(after, last.seq).map_err(Fault::eventlog)?;
        }
        Ok(entries)
    }

    /// What was checked of it, for whoever opens the same files again in this process, now that it is about to be closed.
    pub(crate) fn take_checked(&self) -> Checked {
        self.log.take_checked()
    }

    /// Goes on with the checks where an earlier replica of the same files left off, in this process.
    pub(crate) fn go_on_checking(&mut self, earlier: Checked) -> Result<(), Fault> {
        self.log.go_on_checking(earlier).map_err(Fault::eventlog)
    }

    /// Looks at some of the events that were there at opening, `most` of them: whether they are what was stored, and
    /// whether each is found under its id. Opening itself looks only at the end of the log and at what is pending.
    ///
    /// # Errors
    ///
    /// [`Fault::Damaged`], or another fault of the machine.
    pub fn check_some(&mut self, most: usize) -> Result<Progress, Fault> {
        self.unless_broken(|replica| replica.log.check_some(most).map_err(Fault::eventlog))
    }

    /// The events of the outbox whose number is above `after`, with their numbers, as many as fit into `size`.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn pending(&self, after: i64, size: PageSize) -> Result<Vec<(i64, Envelope)>, Fault> {
        self.log.pending(after, size).map_err(Fault::eventlog)
    }

    /// How far the upstream's log was pulled, and the digest of our log up to there.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn position(&self) -> Result<Position, Fault> {
        let Tip { generation, whose, pulled, .. } = *self.log.tip();
        Ok(Position { generation, log: whose.log_id(), after: pulled, digest: self.digest_at(pulled)? })
    }

    /// Whether the log up to `after` is the one that has this digest.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn vouches_for(&self, after: Seq, digest: Digest) -> Result<bool, Fault> {
        Ok(after <= self.log.tip().head && self.digest_at(after)? == digest)
    }

    /// Points of the log with their digests, from its end to its beginning: close together at first, then ever sparser,
    /// so that another replica finds one that both share not much before the place where they part.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn points(&self) -> Result<Vec<(Seq, Digest)>, Fault> {
        self.log.points().map_err(Fault::eventlog)
    }

    /// How many different names the events of the eventlog have.
    pub(crate) fn names(&self) -> usize {
        self.log.names()
    }

    /// Whether an event of that name is nothing new: one was here before, or the schema knows it.
    pub(crate) fn has_name(&self, name: &str) -> bool {
        self.log.has_name(name) || self.setup.schema.knows(name)
    }

    /// The last of `points` that this log shares; its beginning, if no other.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn last_shared(&self, points: &[(Seq, Digest)]) -> Result<Seq, Fault> {
        let mut shared = Seq::START;
        for (seq, digest) in points {
            if *seq > shared && self.vouches_for(*seq, *digest)? {
                shared = *seq;
            }
        }
        Ok(shared)
    }

    /// Begins to follow an upstream: a log of our own is taken back to the outbox, to be pushed. Does nothing where the
    /// log is an upstream's already.
    ///
    /// # Errors
    ///
    /// As [`take_back`](Self::take_back).
    pub fn follow(&mut self) -> Result<(), Fault> {
        match self.log.tip().whose {
            Whose::Own(_) => self.take_back(Seq::START, Whose::Upstream(None)),
            Whose::Upstream(_) => Ok(()),
        }
    }

    /// Records which log the upstream has, at the first meeting.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn meet(&mut self, log: LogId) -> Result<(), Fault> {
        if self.log.tip().whose == Whose::Upstream(Some(log)) {
            return Ok(());
        }
        self.change(|own| own.set_whose(Whose::Upstream(Some(log))))
    }

    /// Makes this replica the authority of the log: what is pending gets its place at the end.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn promote(&mut self) -> Result<(), Fault> {
        let Whose::Upstream(log) = self.log.tip().whose else { return Ok(()) };
        let device = self.setup.device.clone();
        self.change(|own| {
            own.set_whose(Whose::Own(log.unwrap_or_else(LogId::random)))?;
            own.place_pending(&device)
        })?;
        self.settle()
    }

    /// Takes pending events that the upstream refuses out of its way: each is kept, with the reason, and its effect is
    /// gone.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn refuse(&mut self, refused: &[(EventId, String)]) -> Result<(), Fault> {
        self.change(|own| {
            for (id, why) in refused {
                if let Some(Found::Outbox(n, Content { name, args })) = own.find(*id)? {
                    own.set_aside(&Envelope { id: *id, name, args }, why)?;
                    own.remove_pending(n)?;
                }
            }
            Ok(())
        })?;
        self.settle()
    }

    /// Puts the events set aside to those that are waiting, once more. One whose id belongs to another event by now gets
    /// the id that `new_id` gives. Returns how many there were.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn retry_set_aside(&mut self, mut new_id: impl FnMut() -> EventId) -> Result<usize, Fault> {
        let device = self.setup.device.clone();
        let mut count = 0;
        self.change(|own| {
            loop {
                let page = own.set_aside_first(PageSize { events: 1_024, bytes: 8 << 20 })?;
                if page.is_empty() {
                    return Ok(());
                }
                count += page.len();
                for event in page {
                    own.remove_set_aside(&event)?;
                    let id = if own.find(event.id)?.is_some() { new_id() } else { event.id };
                    let event = Envelope { id, ..event };
                    match own.tip().whose {
                        Whose::Own(_) => drop(own.append(own.tip().head.next(), &event, &device)?),
                        Whose::Upstream(_) => drop(own.push(&event)?),
                    }
                }
            }
        })?;
        self.settle()?;
        Ok(count)
    }

    /// The events set aside, each with the reason, oldest first.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn all_set_aside(&self) -> Result<Vec<(Envelope, String)>, Fault> {
        self.log.all_set_aside().map_err(Fault::eventlog)
    }

    /// Changes the eventlog alone, durably, unless an earlier fault left log and state apart. Where that changes what the
    /// state has to be, whoever calls this [settles](Self::settle) it.
    fn change(&mut self, change: impl FnOnce(&mut Eventlog) -> rusqlite::Result<()>) -> Result<(), Fault> {
        self.unless_broken(|replica| replica.transact(change))
    }

    fn transact(&mut self, change: impl FnOnce(&mut Eventlog) -> rusqlite::Result<()>) -> Result<(), Fault> {
        let done = self.log.begin().and_then(|()| change(&mut self.log)).and_then(|()| self.log.commit());
        done.map_err(Fault::eventlog)?;
        self.witness.write(self.log.testimony())
    }

    /// The digest of the log up to `seq`.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn digest_at(&self, seq: Seq) -> Result<Digest, Fault> {
        // Between two checkpoints it is made from the events themselves.
        if Seq::START < seq && seq < self.log.tip().head {
            self.log.ensure(Seq(seq.0 - 1), seq).map_err(Fault::eventlog)?;
        }
        self.log.digest_at(seq).map_err(Fault::eventlog)
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

    /// Keeps an event among those set aside, with the reason, unless this very event is here. Another one may have its id:
    /// that is how most come to be set aside.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn set_aside(&mut self, event: &Envelope, why: &str) -> Result<Outcome, Fault> {
        match self.find(event.id)? {
            Some(Found::Log(seq, content)) if content.is(event) => return Ok(Outcome::Known(Some(seq))),
            Some(found) if found.is(event) => return Ok(Outcome::Known(None)),
            _ => {}
        }
        let before = self.log.tip().set_aside;
        self.change(|own| own.set_aside(event, why))?;
        let is_new = self.log.tip().set_aside > before;
        Ok(if is_new { Outcome::Stored(None) } else { Outcome::Known(None) })
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
        self.log.try_write().map_err(Fault::eventlog)
    }

    /// Fails when the files are no longer those that were opened, so that nothing is acknowledged into the void.
    ///
    /// # Errors
    ///
    /// [`Fault::Gone`].
    pub fn check_files(&self) -> Result<(), Fault> {
        if self.identity == self.identify() { Ok(()) } else { Err(Fault::Gone(self.files.dir.clone())) }
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
        if !self.is_broken {
            for closed in [self.log.close_in_order(), self.state.close_in_order()] {
                if let Err(error) = closed {
                    tracing::warn!(store = %self.files.dir.display(), %error, "cannot close in good order");
                }
            }
        }
    }
}

/// Applies, inside the open transaction of `state`, what comes in `log` after its cursor and up to `until`.
pub(super) fn replay_log(log: &Eventlog, state: &State, until: Seq, enders: &Enders) -> Result<(), Stop> {
    state.replay(state.cursor().seq, enders, |after, each| {
        log.each_in_log(after, until, CHUNK, each).map_err(|error| Stop::Fault(Fault::eventlog(error)))?
    })
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
        log.ensure(Seq(cursor.seq.0 - 1), cursor.seq).map_err(Fault::eventlog)?;
    }
    if log.digest_at(cursor.seq).map_err(Fault::eventlog)? != cursor.digest {
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
