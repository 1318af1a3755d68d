//! A log that begins at a base, which is the place of a snapshot. The events below it are the history. They come later,
//! into the same table at their own places, and only then is the log whole.
//!
//! - *Rows of the log at or below the base are history*, as far as it has come. The history has a digest of its own, with
//!   checkpoints like the log's.
//! - *Early rows* are events of ours below the base that the history hasn't brought yet: the upstream has answered that
//!   they are there. If the upstream turns out to be another one than it was, they have to be here to be pushed again.
//! - *Passed events* are still in the outbox, and later ones of ours are in the log above the base. A log keeps the order of a
//!   device's events, so they are below the base, and the answer that said so was lost. When the log's events go back to the
//!   outbox, they go behind these.

use rusqlite::{Connection, Row, params};

use super::checks::Checked;
use super::digests::Checkpoint;
use super::file::{meta, set_meta};
use super::read::{Found, PageSize};
use super::tally::RowHash;
use super::{Eventlog, Result, Tally, Tip, Waiting, Whose, damaged, first};
use crate::engine::event::{Envelope, EventId, EventRef};
use crate::engine::place::{Digest, Entry, LogId, Seq};

/// The table of early rows. It is there while the log begins at a base.
const EARLY: &str = "
    CREATE TABLE early (
        n INTEGER PRIMARY KEY,
        id BLOB NOT NULL UNIQUE,
        name INTEGER NOT NULL,
        args TEXT,
        hash INTEGER NOT NULL
    ) STRICT;
";

/// Why an event of ours goes to those set aside when the upstream's log has another one under its id.
pub(crate) const ID_TAKEN: &str = "its id belongs to another event in the upstream's log";

/// The events below the base, as far as they are here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct History {
    /// The place after which the next page begins.
    pub(crate) after: Seq,
    /// The last event that is here.
    pub(crate) end: Checkpoint,
}

/// The file of the snapshot where the log begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BaseFile {
    /// Its size in bytes.
    pub(crate) bytes: u64,
    /// Its BLAKE3 hash.
    pub(crate) digest: Digest,
    /// The fingerprint of its schema.
    pub(crate) schema: String,
}

/// What a page of the history did besides bringing events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Brought {
    /// The outbox is what it was.
    Events,
    /// This many events left the outbox or came back to it.
    Moved(u64),
    /// The log above the base holds an event that the history has too, so one of the two is wrong.
    Contradiction,
}

impl History {
    /// Reads what is stored.
    pub(super) fn load(conn: &Connection) -> Result<Self> {
        let bytes: Vec<u8> = meta(conn, "history")?.unwrap_or_default();
        let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let read = || {
            let (after, seq, length) = (number(0)?, number(8)?, number(16)?);
            let end = Checkpoint { seq: Seq(seq), digest: Digest::from_slice(bytes.get(24..)?)?, length };
            Some(Self { after: Seq(after), end })
        };
        read().ok_or_else(|| damaged("it doesn't say how much of its history is here".to_owned()))
    }

    fn to_bytes(self) -> Vec<u8> {
        let Self { after, end: Checkpoint { seq, digest, length } } = self;
        let mut bytes: Vec<u8> = [after.0, seq.0, length].iter().flat_map(|number| number.to_le_bytes()).collect();
        bytes.extend(digest.0);
        bytes
    }
}

impl Eventlog {
    /// Begins the log at `base`, the place of a snapshot of `log`. The log has to be empty.
    pub(crate) fn join(&mut self, log: LogId, base: Checkpoint, file: &BaseFile) -> Result<()> {
        self.conn.execute_batch(EARLY)?;
        self.set_base(base)?;
        self.set_whose(Whose::Upstream(Some(log)))?;
        self.raise_generation(Seq::START)?;
        self.set_end(base);
        self.set_pulled(base.seq)?;
        self.set_history(History::default())?;
        self.set_passed(None)?;
        let mut stored = file.bytes.to_le_bytes().to_vec();
        stored.extend(file.digest.0);
        stored.extend(file.schema.as_bytes());
        set_meta(&self.conn, "base_file", stored)?;
        self.checked.replace(Checked::nothing(base.seq, base.seq, self.tip.n));
        Ok(())
    }

    /// Returns what the file of the snapshot has to be. Returns `None` if that can't be read.
    pub(crate) fn base_file(&self) -> Result<Option<BaseFile>> {
        let stored: Vec<u8> = meta(&self.conn, "base_file")?.unwrap_or_default();
        let read = || {
            let bytes = u64::from_le_bytes(stored.get(..8)?.try_into().ok()?);
            let schema = String::from_utf8(stored.get(40..)?.to_vec()).ok()?;
            Some(BaseFile { bytes, digest: Digest::from_slice(stored.get(8..40)?)?, schema })
        };
        Ok(read())
    }

    /// Adds one event to the history, unless it has arrived before or lies above the base.
    pub(crate) fn add_history(&mut self, entry: &Entry) -> Result<Brought> {
        let Tip { base, history, pending, set_aside, early, .. } = self.tip;
        let Entry { seq, event, origin } = entry;
        if *seq <= history.end.seq || *seq > base.seq {
            return Ok(Brought::Events);
        }
        let may_be_ours = pending > 0 || set_aside > 0 || early > 0;
        if !may_be_ours && self.append_history(*seq, event, origin)? {
            return Ok(Brought::Events);
        }
        let mut moved = self.early_to_outbox(*seq, Some(event.id))?;
        let found = self.find(event.id)?;
        let is_same = found.as_ref().is_some_and(|found| found.is(event));
        let is_here = match found {
            Some(Found::Log(at, _)) if at > base.seq => return Ok(Brought::Contradiction),
            Some(Found::Log(..)) => true,
            Some(Found::Early(at, content)) => {
                self.remove(Waiting::Early, at.to_sql())?;
                if !is_same {
                    self.set_aside(&content.of(event.id), ID_TAKEN)?;
                }
                false
            }
            Some(Found::Outbox(n, content)) => {
                if !is_same {
                    self.set_aside(&content.of(event.id), ID_TAKEN)?;
                }
                self.remove(Waiting::Pending, n)?;
                moved += 1;
                false
            }
            Some(Found::SetAside(_)) | None => false,
        };
        if !is_here {
            if self.tip.set_aside > 0 {
                self.remove_set_aside(event)?;
            }
            self.append_history(*seq, event, origin)?;
        }
        Ok(if moved > 0 { Brought::Moved(moved) } else { Brought::Events })
    }

    /// Records that the history is here up to `after`. Returns how many events went back to the outbox, because the history
    /// has passed their places without them.
    pub(crate) fn history_reaches(&mut self, after: Seq) -> Result<u64> {
        let after = after.min(self.tip.base.seq);
        let moved = self.early_to_outbox(Seq(after.0 + 1), None)?;
        self.set_history(History { after: after.max(self.tip.history.after), ..self.tip.history })?;
        Ok(moved)
    }

    /// Moves early rows below `before` back to the front of the outbox, and one at `before` that isn't the event `id`: the
    /// history has shown that they aren't where the upstream said. Returns how many there were.
    fn early_to_outbox(&mut self, before: Seq, id: Option<EventId>) -> Result<u64> {
        if self.tip.early == 0 {
            return Ok(0);
        }
        let id = id.map(|id| id.as_bytes().to_vec());
        let which = "n < ?1 OR n = ?1 AND id <> ?2";
        let key = params![before.to_sql(), id];
        let sql = format!("SELECT count(*) FROM early WHERE {which}");
        let count: u64 = self.conn.prepare_cached(&sql)?.query_row(key, |row| row.get(0))?;
        if count == 0 {
            return Ok(0);
        }
        let mut n = self.before_outbox(count)?;
        {
            let sql = format!("{} WHERE {which} ORDER BY n", Waiting::Early.select());
            let mut statement = self.conn.prepare_cached(&sql)?;
            let mut rows = statement.query(key)?;
            while let Some(row) = rows.next()? {
                let (_, _, hash) = self.waiting(row)?;
                self.tip.early_tally.take(hash);
                let hash = self.insert_pending(n, row)?;
                self.tip.outbox_tally.add(hash);
                n += 1;
            }
        }
        self.conn.prepare_cached(&format!("DELETE FROM early WHERE {which}"))?.execute(key)?;
        self.tip.early -= count;
        self.tip.pending += count;
        Ok(count)
    }

    /// Moves the event with the number `n` out of the outbox to the place `seq` below the base, where the upstream has it.
    /// Returns false if another event is there.
    pub(crate) fn outbox_to_early(&mut self, n: i64, seq: Seq) -> Result<bool> {
        let Some((_, event)) = self.pending(n - 1, PageSize::events(1))?.into_iter().next() else { return Ok(false) };
        let name = self.names.intern(&self.conn, "INSERT INTO name (text) VALUES (?1)", event.name.as_str())?;
        let args = event.args.as_text();
        let hash = RowHash::of(seq.to_sql(), event.id.as_bytes(), event.name.as_str(), args, "");
        let sql = "INSERT INTO early (n, id, name, args, hash) VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING";
        let values = params![seq.to_sql(), event.id.as_bytes(), name, args, hash.short()];
        if self.conn.prepare_cached(sql)?.execute(values)? == 0 {
            return Ok(false);
        }
        self.tip.early += 1;
        self.tip.early_tally.add(hash);
        self.remove(Waiting::Pending, n)?;
        Ok(true)
    }

    /// Records that the upstream has the event with the number `n` above the base. Events are pushed in order, so none behind
    /// it in the outbox is below the base, but those before it may be.
    pub(crate) fn passes(&mut self, n: i64) -> Result<()> {
        if self.tip.is_whole() || self.tip.passed.is_some_and(|passed| passed < n) {
            return Ok(());
        }
        self.set_passed(Some(n - 1))
    }

    fn set_passed(&mut self, passed: Option<i64>) -> Result<()> {
        self.tip.passed = passed;
        set_meta(&self.conn, "passed", passed)
    }

    /// Moves the passed events, which have numbers from `from` on, to the front of the outbox.
    pub(super) fn passed_to_front(&mut self, from: i64) -> Result<()> {
        let Some(until) = self.tip.passed else { return Ok(()) };
        let which = "n BETWEEN ?1 AND ?2";
        let sql = format!("SELECT count(*) FROM outbox WHERE {which}");
        let count = self.conn.prepare_cached(&sql)?.query_row([from, until], |row| row.get(0))?;
        let mut next = self.before_outbox(count)?;
        let mut moves = Vec::new();
        {
            let sql = format!("{} WHERE {which} ORDER BY n", Waiting::Pending.select());
            let mut statement = self.conn.prepare_cached(&sql)?;
            let mut rows = statement.query([from, until])?;
            while let Some(row) = rows.next()? {
                let (n, EventRef { id, name, args }, hash) = self.waiting(row)?;
                moves.push((n, hash, next, RowHash::of(next, id.as_bytes(), name, args, "")));
                next += 1;
            }
        }
        let mut statement = self.conn.prepare_cached("UPDATE outbox SET n = ?2, hash = ?3 WHERE n = ?1")?;
        for (n, hash, to, new_hash) in moves {
            statement.execute(params![n, to, new_hash.short()])?;
            self.tip.outbox_tally.take(hash);
            self.tip.outbox_tally.add(new_hash);
        }
        drop(statement);
        self.set_passed(Some(next - 1))
    }

    /// Removes an early row, because the upstream has brought its event above the base.
    pub(crate) fn remove_early(&mut self, seq: Seq) -> Result<()> {
        self.remove(Waiting::Early, seq.to_sql())
    }

    /// Removes the row with this number from a table outside the log.
    pub(super) fn remove(&mut self, which: Waiting, n: i64) -> Result<()> {
        let hash = |row: &Row<'_>| self.waiting(row).map(|(_, _, hash)| hash);
        if let Some(hash) = first(&mut *self.conn.prepare_cached(which.delete())?, [n], hash)? {
            let (count, tally) = self.tip.waiting(which);
            *count -= 1;
            tally.take(hash);
        }
        Ok(())
    }

    /// Gives up the base. The log is what came by history, and everything else goes back to the front of the outbox, in
    /// order.
    pub(crate) fn drop_base(&mut self) -> Result<()> {
        let Tip { base, history, .. } = self.tip;
        self.log_to_outbox(base.seq)?;
        self.early_to_outbox(base.seq.next(), None)?;
        self.raise_generation(history.end.seq)?;
        self.set_end(history.end);
        self.set_pulled(history.after.max(history.end.seq))?;
        self.become_whole()
    }

    /// Has the log begin at its beginning, because all of its history is here. Unless the state that was made from the
    /// snapshot is kept, it must not be taken for one of this log.
    pub(crate) fn conclude(&mut self, is_kept: bool) -> Result<()> {
        if !is_kept {
            self.raise_generation(self.tip.head)?;
        }
        self.become_whole()
    }

    fn become_whole(&mut self) -> Result<()> {
        if self.tip.early > 0 {
            return Err(damaged("an event below the base is missing in the history".to_owned()));
        }
        self.set_base(Checkpoint::default())?;
        self.tip.history = History::default();
        self.tip.early_tally = Tally::default();
        self.tip.passed = None;
        self.conn
            .execute_batch("DROP TABLE early; DELETE FROM meta WHERE key IN ('history', 'base_file', 'passed')")?;
        let known_from = self.checkpoint_before(self.tip.head)?.seq;
        self.checked.replace(Checked::nothing(known_from, self.tip.head, self.tip.n));
        Ok(())
    }

    fn set_base(&mut self, base: Checkpoint) -> Result<()> {
        self.conn.execute("DELETE FROM base", ())?;
        let Checkpoint { seq, digest, length } = base;
        self.conn.execute("INSERT INTO base VALUES (?1, ?2, ?3)", params![seq.to_sql(), digest.0, length])?;
        self.tip.base = base;
        self.mark_format()
    }

    fn set_history(&mut self, history: History) -> Result<()> {
        self.tip.history = history;
        set_meta(&self.conn, "history", history.to_bytes())
    }

    /// Returns the events of ours that are in the snapshot and not yet in the history, in the order of their places.
    pub(crate) fn early(&self) -> Result<Vec<Envelope>> {
        if self.tip.early == 0 {
            return Ok(Vec::new());
        }
        let sql = "SELECT n, id, name, args, '', hash FROM early ORDER BY n";
        self.conn
            .prepare_cached(sql)?
            .query_and_then((), |row| self.pending_row(row).map(|(_, event)| event))?
            .collect()
    }
}
