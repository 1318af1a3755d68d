//! The eventlog: the log and the outbox of one store in `eventlog.db`, the source of truth.

mod checks;
mod digests;
mod file;
mod names;
mod read;
mod taken;
mod tally;
mod write;

use std::cell::RefCell;
use std::ops::Deref;
use std::result;
use std::sync::Arc;

use rusqlite::{Connection, Params, Row, Statement};
use serde::{Deserialize, Serialize};

pub(crate) use checks::Checked;
pub use checks::Progress;
pub(crate) use digests::CHECKPOINT_EVERY;
use file::set_meta;
pub(crate) use file::{look, refuse_newer_header};
use names::Interned;
pub use read::PageSize;
pub(crate) use read::{Content, Found, Rescued, Waiting};
pub(crate) use tally::Tally;

use super::error::{Fault, LogFault};
use super::place::{Digest, Generation, LogId, Seq};
use super::storage::{Beside, WalGauge, checkpoint_on_close};
use super::witness::Testimony;
use crate::limits::engine::event::MAX_ARGS;

type Result<T, E = LogFault> = result::Result<T, E>;

/// Whose log the eventlog's log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Whose {
    /// Ours: this instance is the authority, and what is committed here gets its seq at once.
    Own(LogId),
    /// An upstream's, which gives out the seqs. Its log's id is known once it was met.
    Upstream(Option<LogId>),
}

impl Default for Whose {
    /// Of a log that isn't there yet.
    fn default() -> Self {
        Self::Upstream(None)
    }
}

impl Whose {
    /// The log's id, if it is known.
    pub fn log_id(self) -> Option<LogId> {
        match self {
            Self::Own(id) => Some(id),
            Self::Upstream(id) => id,
        }
    }
}

/// What the eventlog knows about its own end. Kept in memory, and restored when a transaction is rolled back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tip {
    /// The last event of the log.
    pub(crate) head: Seq,
    /// Of the whole log.
    pub(crate) digest: Digest,
    /// How many events the log has.
    pub(crate) length: u64,
    pub(crate) generation: Generation,
    pub(crate) whose: Whose,
    /// How far the upstream's log was pulled.
    pub(crate) pulled: Seq,
    /// How many events wait in the outbox.
    pub(crate) pending: u64,
    /// The highest number that the outbox has ever given.
    pub(crate) n: i64,
    /// How many events are set aside.
    pub(crate) set_aside: u64,
    /// How many transactions have changed anything.
    pub(crate) commits: u64,
    /// Of the rows of the outbox.
    pub(crate) outbox_tally: Tally,
    /// Of the rows of what was set aside.
    pub(crate) set_aside_tally: Tally,
}

impl Tip {
    /// The number of events in a table outside of the log, and the sum of their hashes.
    fn waiting(&mut self, which: Waiting) -> (&mut u64, &mut Tally) {
        match which {
            Waiting::Pending => (&mut self.pending, &mut self.outbox_tally),
            Waiting::SetAside => (&mut self.set_aside, &mut self.set_aside_tally),
        }
    }

    /// Stored with each commit. By these, opening can tell whether the end of the log, the outbox and what was set aside
    /// are as they were left.
    fn digests(&self) -> Vec<u8> {
        [self.digest.0, self.outbox_tally.to_bytes(), self.set_aside_tally.to_bytes()].concat()
    }
}

/// What was in memory when a part of a transaction began.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark {
    tip: Tip,
    /// The last number that a name had.
    name: i64,
    /// The last number that an origin had.
    origin: i64,
}

pub(crate) struct Eventlog {
    pub(super) conn: Link,
    wal: Option<Arc<WalGauge>>,
    tip: Tip,
    /// The tip as the transaction found it.
    saved: Option<Tip>,
    names: Interned,
    origins: Interned,
    /// As the file has it.
    format: i64,
    pub(super) checked: RefCell<Checked>,
}

/// How an eventlog is connected to its file.
pub(super) enum Link {
    /// As the one that writes.
    Writes(Connection),
    /// Beside it.
    Reads(Beside),
}

impl Deref for Link {
    type Target = Connection;
    fn deref(&self) -> &Connection {
        match self {
            Self::Writes(conn) => conn,
            Self::Reads(conn) => conn,
        }
    }
}

impl Eventlog {
    /// Has SQLite move the WAL into the file when this is closed. Only for an orderly end.
    pub(crate) fn close_in_order(&self) -> Result<()> {
        Ok(checkpoint_on_close(&self.conn, true)?)
    }

    /// What is known about the end.
    pub(crate) fn tip(&self) -> &Tip {
        &self.tip
    }

    pub(crate) fn wal(&self) -> Option<&Arc<WalGauge>> {
        self.wal.as_ref()
    }

    pub(crate) fn testimony(&self) -> Testimony {
        let Tip { generation, head, n, commits, .. } = self.tip;
        Testimony { generation, seq: head, n, commits }
    }

    pub(crate) fn begin(&mut self) -> Result<()> {
        self.conn.prepare_cached("BEGIN IMMEDIATE")?.execute(())?;
        self.saved = Some(self.tip);
        Ok(())
    }

    /// Makes the transaction durable: after this returns, its events survive a power cut.
    pub(crate) fn commit(&mut self) -> Result<()> {
        if self.saved != Some(self.tip) {
            self.tip.commits += 1;
            set_meta(&self.conn, "commits", self.tip.commits)?;
            set_meta(&self.conn, "digests", self.tip.digests())?;
        }
        self.conn.prepare_cached("COMMIT")?.execute(())?;
        Ok(())
    }

    /// Starts a part of the transaction that can be [undone](Self::undo) alone.
    pub(crate) fn mark(&mut self) -> Result<Mark> {
        self.conn.prepare_cached("SAVEPOINT mark")?.execute(())?;
        Ok(Mark { tip: self.tip, name: self.names.last(), origin: self.origins.last() })
    }

    /// Ends the part that began with the last mark, and keeps it.
    pub(crate) fn keep(&mut self) -> Result<()> {
        self.conn.prepare_cached("RELEASE mark")?.execute(())?;
        Ok(())
    }

    /// Ends the part that began at `mark`, and undoes it.
    pub(crate) fn undo(&mut self, mark: Mark) -> Result<()> {
        self.conn.execute_batch("ROLLBACK TO mark; RELEASE mark")?;
        self.tip = mark.tip;
        self.names.forget_after(mark.name);
        self.origins.forget_after(mark.origin);
        Ok(())
    }

    /// How many different names events have.
    pub(crate) fn names(&self) -> usize {
        self.names.ids.len()
    }

    /// Whether an event of that name is here, or was.
    pub(crate) fn has_name(&self, name: &str) -> bool {
        self.names.ids.contains_key(name)
    }

    /// Tries a durable write as large as an event, and removes it again.
    pub(crate) fn try_write(&mut self) -> Result<()> {
        set_meta(&self.conn, "room", vec![0; MAX_ARGS])?;
        self.conn.execute("DELETE FROM meta WHERE key = 'room'", ())?;
        Ok(())
    }

    /// Records whose log this is from now on.
    pub(crate) fn set_whose(&mut self, whose: Whose) -> Result<()> {
        let (kind, id) = match whose {
            Whose::Own(id) => ("own", Some(id)),
            Whose::Upstream(id) => ("upstream", id),
        };
        set_meta(&self.conn, "whose", kind)?;
        set_meta(&self.conn, "log_id", id.map(|id| id.to_string()))?;
        self.tip.whose = whose;
        Ok(())
    }

    /// Records how far the upstream's log was pulled.
    pub(crate) fn set_pulled(&mut self, seq: Seq) -> Result<()> {
        set_meta(&self.conn, "pulled", seq.to_sql())?;
        self.tip.pulled = seq;
        Ok(())
    }
}

impl Drop for Eventlog {
    fn drop(&mut self) {
        // The next step may be to write its WAL again.
        if let Some(wal) = &self.wal {
            wal.retire();
        }
    }
}

/// The first row that `statement` gives, as `read` reads it, if it gives one.
fn first<T>(
    statement: &mut Statement<'_>,
    params: impl Params,
    read: impl FnOnce(&Row<'_>) -> Result<T>,
) -> Result<Option<T>> {
    statement.query(params)?.next()?.map(read).transpose()
}

/// Says that the eventlog holds something other than what was stored.
fn damaged(what: String) -> LogFault {
    Fault::Damaged(what).into()
}
