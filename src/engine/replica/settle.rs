//! Brings the state level with the eventlog: commits confirmed events, and applies pending events on top.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use super::ahead::Ahead;
use super::{Replica, View};
use crate::engine::error::{Fault, IoContext, StateFault};
use crate::engine::eventlog::{Checkpoint, Eventlog, Tip};
use crate::engine::materialize::{Enders, Stop};
use crate::engine::place::{Cursor, Entry, Generation, Seq};
use crate::engine::state::State;
use crate::limits::engine::replica::{CHUNK, PER_COMMIT};

impl Replica {
    /// Brings the committed state level with the log, and applies the pending events on top. On a full disk the state
    /// can still be read: events that can't be committed are applied in the open transaction too.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn settle(&mut self) -> Result<(), Fault> {
        self.unless_broken(Self::try_settle)
    }

    pub(super) fn try_settle(&mut self) -> Result<(), Fault> {
        self.roll_back()?;
        let is_level = self.catch_up()?;
        self.view = View::Level;
        if self.log.tip().pending > 0 || !is_level { self.restore(&mut Enders::new()) } else { Ok(()) }
    }

    /// Applies the events of the log after the state's cursor, and commits them. No transaction may be open. Returns
    /// false if the disk has no room to commit all of them.
    pub(super) fn catch_up(&mut self) -> Result<bool, Fault> {
        let mut enders = Enders::new();
        loop {
            let Tip { head, .. } = *self.log.tip();
            let cursor = self.state.cursor();
            if cursor.seq >= head {
                return Ok(true);
            }
            let milestone = self.log.milestone_after(cursor.seq, PER_COMMIT)?;
            let caught_up =
                if milestone.seq < head { self.catch_up_far(&enders) } else { self.catch_up_to(milestone, &enders) };
            match caught_up {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(Stop::Ended(id, why)) => {
                    self.state.rollback()?;
                    enders.insert(id, why);
                }
                Err(Stop::Fault(fault)) => return Err(fault),
            }
        }
    }

    /// Applies the events after the state's cursor up to `end` in one transaction, and commits it. Returns false if the disk has
    /// no room.
    fn catch_up_to(&mut self, end: Checkpoint, enders: &Enders) -> Result<bool, Stop> {
        self.state.begin()?;
        replay_log(&self.log, &self.state, end.seq, enders)?;
        Ok(commit_at(&mut self.state, self.log.tip().generation, end)?)
    }

    /// Does the same for more events than one transaction should have. Tells how far it has come.
    fn catch_up_far(&mut self, enders: &Enders) -> Result<bool, Stop> {
        let Self { log, state, setup, files, .. } = self;
        let Tip { head, generation, length, .. } = *log.tip();
        thread::scope(|scope| {
            let ahead = Ahead::begin(scope, log, state.cursor().seq);
            let mut ahead = ahead.doing("start a thread to read", &files.eventlog()).map_err(Stop::Fault)?;
            while state.cursor().seq < head {
                state.begin()?;
                state.replay(ahead.count(), enders, |count, each| ahead.each(count, each))?;
                let end = ahead.milestone();
                if !commit_at(state, generation, end)? {
                    return Ok(false);
                }
                // Reporting progress is a courtesy. A panic in it must not cost the store.
                let tell = || (setup.progress)(end.length, length);
                drop(catch_unwind(AssertUnwindSafe(tell)));
                state.checkpoint_if_due()?;
            }
            Ok(true)
        })
    }

    /// Applies and commits the events with which the log ends, behind `before`, as [`catch_up`](Self::catch_up) does, but without
    /// reading them again. Returns false, and applies nothing, if the state has yet to catch up with those before, if one of
    /// them ends the transaction, or if the disk has no room.
    pub(super) fn apply_end(&mut self, before: Seq, entries: &[Entry]) -> Result<bool, Fault> {
        if self.view != View::Level || self.state.is_open() || self.state.cursor().seq != before {
            return Ok(false);
        }
        self.state.begin()?;
        let applied = self.state.replay(0, &Enders::new(), |from, each| {
            let until = entries.len().min(from + CHUNK);
            entries[from..until].iter().try_for_each(|entry| each(&entry.event.borrowed()))?;
            Ok((from < until).then_some(until))
        });
        match applied.map(|()| self.commit_state()) {
            Ok(Ok(())) => return Ok(true),
            Ok(Err(fault)) if !fault.leaves_synced() => return Err(fault),
            Err(Stop::Fault(fault)) => return Err(fault),
            Ok(Err(_)) | Err(Stop::Ended(..)) => self.state.rollback()?,
        }
        Ok(false)
    }

    /// Restarts the state's transaction and applies all events after the state's cursor without committing: first the
    /// log, then the outbox. Skips `enders`, and adds those that it finds.
    pub(super) fn restore(&mut self, enders: &mut Enders) -> Result<(), Fault> {
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

    pub(super) fn replay_pending(&self, enders: &Enders) -> Result<(), Stop> {
        self.state.replay(i64::MIN, enders, |after, each| self.log.each_pending(after, CHUNK, each))
    }

    /// Rolls the state back to what is in its file.
    pub(super) fn roll_back(&mut self) -> Result<(), Fault> {
        self.state.rollback()?;
        (self.unsettled, self.deferred) = (0, 0);
        Ok(())
    }

    /// Commits the state's open transaction as the state of the whole log.
    pub(super) fn commit_state(&mut self) -> Result<(), Fault> {
        let Tip { head, digest, generation, .. } = *self.log.tip();
        self.state.commit(Cursor { generation, seq: head, digest })?;
        (self.unsettled, self.deferred) = (0, 0);
        Ok(())
    }

    /// Shows queries the events that [`arrive`](Self::arrive) left for later.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn settle_arrivals(&mut self) -> Result<(), Fault> {
        if self.is_behind() { self.settle() } else { Ok(()) }
    }

    /// Returns whether events have arrived that queries don't see yet.
    pub fn is_behind(&self) -> bool {
        matches!(self.view, View::Behind { .. })
    }
}

/// Commits the state's open transaction as the state of the log up to `end`. Returns false if the disk has no room.
fn commit_at(state: &mut State, generation: Generation, end: Checkpoint) -> Result<bool, StateFault> {
    match state.commit(Cursor { generation, seq: end.seq, digest: end.digest }) {
        Err(StateFault(fault)) if fault.leaves_synced() => Ok(false),
        committed => committed.map(|()| true),
    }
}

/// Applies the events of `log` after the cursor of `state`, up to `until`, inside its open transaction.
pub(crate) fn replay_log(log: &Eventlog, state: &State, until: Seq, enders: &Enders) -> Result<(), Stop> {
    state.replay(state.cursor().seq, enders, |after, each| log.each_in_log(after, until, CHUNK, each))
}
