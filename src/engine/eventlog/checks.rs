//! Checks old events against their digests before anybody relies on them. Opening checks only the end of the log, and
//! the disk may have changed the rest.
//!
//! Each process hashes an interval between two checkpoints once, before it serves any event of that interval. It also
//! hashes all intervals in the background, in portions. The background check covers the index that finds an event by
//! its id, too: an event that the index has lost would be counted a second time, and no digest of the log can show
//! that. Events that this process appends itself are not read again.

use std::collections::BTreeSet;

use rusqlite::{OptionalExtension, params};

use super::digests::{Checkpoint, read_checkpoint};
use super::{Eventlog, Result, Tip, damaged, first};
use crate::engine::error::{Fault, LogFault};
use crate::engine::place::{Generation, LogId, Seq};

/// Whether there is more to check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Some events are still unchecked.
    More,
    /// Everything that was there when the store was opened is what was stored.
    Done,
}

/// What this process has checked and found right.
#[derive(Debug, Default)]
pub(crate) struct Checked {
    /// The intervals of the log, each by the checkpoint at its end.
    intervals: BTreeSet<Seq>,
    /// The checkpoint after which the log is known to be right. Opening hashed the events that followed it, and the
    /// rest was written since.
    known_from: Seq,
    /// The end of the log at opening. The index is on other pages than the log, so it is checked up to here.
    opened_at: Seq,
    /// The end of the outbox at opening. Its rows were hashed then.
    opened_at_n: i64,
    /// Which eventlog was checked, where its log began, and how many transactions had changed it.
    of: (Option<LogId>, Generation, Seq, u64),
    /// How far the background check has come in the log.
    swept: Option<Sweep>,
    /// How far the background check has come in the outbox.
    swept_n: i64,
}

/// A place inside an interval.
#[derive(Debug, Clone, Copy)]
struct Sweep {
    at: Checkpoint,
    /// The end of the interval, unless it is the last interval.
    end: Option<Checkpoint>,
}

impl Checked {
    /// Returns the state before any check, for a log whose last checkpoint is at `known_from`.
    pub(super) fn nothing(known_from: Seq, opened_at: Seq, opened_at_n: i64) -> Self {
        Self { known_from, opened_at, opened_at_n, swept_n: i64::MIN, ..Self::default() }
    }

    /// Forgets everything after a place, because those events are taken out of the log. Taking them out hashed the part
    /// before the place.
    pub(super) fn forget_after(&mut self, place: Checkpoint, last_checkpoint: Seq) {
        self.intervals.split_off(&place.seq.next());
        self.known_from = self.known_from.min(last_checkpoint);
        self.opened_at = self.opened_at.min(place.seq);
        if let Some(sweep) = &mut self.swept {
            sweep.end = sweep.end.filter(|end| end.seq <= place.seq);
            if sweep.at.seq > place.seq {
                *sweep = Sweep { at: place, end: None };
            }
        }
    }
}

impl Eventlog {
    /// Fails unless the events after `after` and up to `until` are those that were stored.
    pub(crate) fn ensure(&self, after: Seq, until: Seq) -> Result<()> {
        let known_from = self.checked.borrow().known_from;
        if after >= known_from {
            return Ok(());
        }
        let Tip { base, history, .. } = *self.tip();
        // Opening hashed the events behind the last checkpoint of the history, or they were written since.
        self.hash_intervals(after, until.min(history.end.seq))?;
        self.hash_intervals(after.max(base.seq), until.min(known_from))
    }

    /// Hashes the intervals that touch the events after `after` and up to `until` and were not hashed yet.
    fn hash_intervals(&self, after: Seq, until: Seq) -> Result<()> {
        if after >= until {
            return Ok(());
        }
        let mut from = self.checkpoint_before(after)?;
        while from.seq < until {
            let Some(end) = self.checkpoint_after(from.seq)? else { break };
            if !self.checked.borrow().intervals.contains(&end.seq) {
                if self.walk(from, Some(end.seq))? != end {
                    return Err(altered(from, end));
                }
                self.checked.borrow_mut().intervals.insert(end.seq);
            }
            from = end;
        }
        Ok(())
    }

    /// Returns whether the events after `after` and up to `until` are those that were stored. For callers that read on
    /// in either case.
    pub(crate) fn is_sound(&self, after: Seq, until: Seq) -> Result<bool> {
        let known_from = self.checked.borrow().known_from;
        match self.ensure(after, until) {
            Ok(()) => Ok(until <= known_from || self.ends_as_stored()?),
            Err(LogFault(Fault::Damaged(_))) => Ok(false),
            Err(other) => Err(other),
        }
    }

    /// Checks up to `most` of the next events that were there at opening. Fails unless they are those that were stored
    /// and each is found under its id.
    pub(crate) fn check_some(&self, most: usize) -> Result<Progress> {
        let looked_at = self.check_log(most)?;
        if looked_at == 0 && self.check_outbox(most)? == 0 {
            return Ok(Progress::Done);
        }
        Ok(Progress::More)
    }

    /// Takes what was found right so far, for the next replica of the same files in this process.
    pub(crate) fn take_checked(&self) -> Checked {
        let Tip { whose, generation, base, commits, .. } = *self.tip();
        Checked { of: (whose.log_id(), generation, base.seq, commits), ..self.checked.take() }
    }

    /// Continues where an earlier check stopped, unless the files were replaced in between.
    pub(crate) fn go_on_checking(&self, earlier: Checked) -> Result<()> {
        let Tip { whose, generation, base, commits, .. } = *self.tip();
        let (log, generation_then, base_then, commits_then) = earlier.of;
        let is_other = (log, generation_then, base_then) != (whose.log_id(), generation, base.seq);
        if is_other || commits_then > commits {
            return Ok(());
        }
        let end = earlier.swept.map(|sweep| self.checkpoint_after(sweep.at.seq)).transpose()?;
        let mut checked = self.checked.borrow_mut();
        checked.intervals = earlier.intervals;
        checked.swept = earlier.swept.map(|sweep| Sweep { end: end.flatten(), ..sweep });
        checked.swept_n = earlier.swept_n;
        Ok(())
    }

    fn check_log(&self, most: usize) -> Result<usize> {
        let (swept, opened_at) = {
            let checked = self.checked.borrow();
            (checked.swept, checked.opened_at)
        };
        let Sweep { mut at, mut end } = match swept {
            Some(sweep) => sweep,
            None => {
                // The proof of a snapshot reads all of the history, and once the log is whole, this starts over.
                let base = self.tip().base;
                Sweep { at: base, end: self.checkpoint_after(base.seq)? }
            }
        };
        let mut interval = self.checkpoint_before(at.seq)?;
        let sql = "SELECT seq, id, name, args, origin FROM log WHERE seq > ?1 AND seq <= ?2 ORDER BY seq LIMIT ?3";
        let mut statement = self.conn.prepare_cached(sql)?;
        let mut rows = statement.query(params![at.seq.to_sql(), opened_at.to_sql(), most])?;
        let sql = "SELECT seq FROM log INDEXED BY sqlite_autoindex_log_1 WHERE id = ?1";
        let mut by_id = self.conn.prepare_cached(sql)?;
        let mut looked_at = 0;
        while let Some(row) = rows.next()? {
            let before = at.seq;
            self.step(&mut at, row)?;
            let found: Option<i64> = by_id.query_row([row.get_ref(1)?.as_blob()?], |row| row.get(0)).optional()?;
            if at.seq <= before || found != Some(at.seq.to_sql()) {
                return Err(damaged(format!(
                    "the event at {} is not found under its id, so that it could be counted a second time",
                    at.seq
                )));
            }
            if let Some(stored) = end.filter(|end| at.seq >= end.seq) {
                if at != stored {
                    return Err(altered(interval, stored));
                }
                self.checked.borrow_mut().intervals.insert(stored.seq);
                (interval, end) = (stored, self.checkpoint_after(stored.seq)?);
            }
            looked_at += 1;
        }
        if let Some(stored) = end.filter(|end| looked_at == 0 && end.seq <= opened_at) {
            return Err(altered(interval, stored));
        }
        self.checked.borrow_mut().swept = Some(Sweep { at, end });
        Ok(looked_at)
    }

    fn check_outbox(&self, most: usize) -> Result<usize> {
        let (after, until) = {
            let checked = self.checked.borrow();
            (checked.swept_n, checked.opened_at_n)
        };
        let sql = "SELECT n, id FROM outbox WHERE n > ?1 AND n <= ?2 ORDER BY n LIMIT ?3";
        let mut statement = self.conn.prepare_cached(sql)?;
        let mut rows = statement.query(params![after, until, most])?;
        let sql = "SELECT n FROM outbox INDEXED BY sqlite_autoindex_outbox_1 WHERE id = ?1";
        let mut by_id = self.conn.prepare_cached(sql)?;
        let mut looked_at = 0;
        while let Some(row) = rows.next()? {
            let n: i64 = row.get(0)?;
            let found: Option<i64> = by_id.query_row([row.get_ref(1)?.as_blob()?], |row| row.get(0)).optional()?;
            if found != Some(n) {
                let what = "an event that waits is not found under its id, so that it could be counted a second time";
                return Err(damaged(what.to_owned()));
            }
            self.checked.borrow_mut().swept_n = n;
            looked_at += 1;
        }
        Ok(looked_at)
    }

    /// Returns the first point after `seq` whose digest is stored. No interval reaches across the base.
    fn checkpoint_after(&self, seq: Seq) -> Result<Option<Checkpoint>> {
        let base = self.tip().base.seq;
        let end = if seq < base { base.to_sql() } else { i64::MAX };
        let sql = "SELECT seq, digest, length FROM checkpoint WHERE seq > ?1 AND seq <= ?2 ORDER BY seq LIMIT 1";
        first(&mut *self.conn.prepare_cached(sql)?, [seq.to_sql(), end], read_checkpoint)
    }
}

fn altered(from: Checkpoint, to: Checkpoint) -> LogFault {
    damaged(format!("of the events {} to {} some are not those that were stored", from.seq.next(), to.seq))
}
