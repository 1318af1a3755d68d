//! The eventlog: one store's log and outbox, in `eventlog.db`. It is the source of truth.

mod base;
mod checks;
mod digests;
mod file;
mod messages;
mod names;
mod read;
mod taken;
mod tally;
mod write;

use std::cell::RefCell;
use std::ops::Deref;
use std::result;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::{Connection, Params, Row, Statement};
use serde::{Deserialize, Serialize};

pub(crate) use base::{BaseFile, Brought, History, ID_TAKEN};
pub(crate) use checks::Checked;
pub use checks::Progress;
pub(crate) use digests::{CHECKPOINT_EVERY, Checkpoint};
#[cfg(feature = "app")]
pub(crate) use file::Ownership;
use file::set_meta;
pub(crate) use file::{look, refuse_newer_header};
pub use messages::Applied;
use names::Interned;
pub use read::PageSize;
pub(crate) use read::{Content, Found, Rescued, Waiting};
pub(crate) use tally::Tally;

use super::error::{Fault, LogFault};
use super::place::{Digest, Generation, LogId, Seq, StreamId};
use super::storage::{Beside, WalGauge, checkpoint_on_close};
use super::witness::Testimony;
use crate::limits::engine::event::MAX_ARGS;

type Result<T, E = LogFault> = result::Result<T, E>;

/// The owner of the log in an eventlog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Whose {
    /// The log is ours. This instance is the authority, and an event committed here gets its seq at once.
    Own(LogId),
    /// The log is an upstream's, which assigns the seqs. Its id is known after the first contact.
    Upstream(Option<LogId>),
}

impl Default for Whose {
    /// Returns the owner of a log that doesn't exist yet.
    fn default() -> Self {
        Self::Upstream(None)
    }
}

impl Whose {
    /// Returns the log's id, if it is known.
    pub fn log_id(self) -> Option<LogId> {
        match self {
            Self::Own(id) => Some(id),
            Self::Upstream(id) => id,
        }
    }
}

/// What the eventlog knows about its own end. It is kept in memory and restored when a transaction is rolled back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tip {
    /// The last event of the log.
    pub(crate) head: Seq,
    /// The digest of the whole log.
    pub(crate) digest: Digest,
    /// How many events the log has, with those below the base.
    pub(crate) length: u64,
    /// Where the log begins here: at its beginning, or at the place of a snapshot.
    pub(crate) base: Checkpoint,
    /// The events below the base, as far as they are here.
    pub(crate) history: History,
    /// How many events of ours are in the snapshot, as the upstream says, and not yet in the history.
    pub(crate) early: u64,
    pub(crate) generation: Generation,
    pub(crate) whose: Whose,
    /// The last place of the upstream's log that was pulled.
    pub(crate) pulled: Seq,
    /// The stream whose messages make the log, if this is a gateway's.
    pub(crate) stream: Option<StreamId>,
    /// How many events wait in the outbox.
    pub(crate) pending: u64,
    /// The highest number that the outbox has ever assigned.
    pub(crate) n: i64,
    /// The number up to which events of the outbox may be below the base, although the upstream has yet to say so. Those with
    /// higher numbers are not, because it has one of them, or one before them, above the base. Unknown until it brings the
    /// first of ours.
    pub(crate) passed: Option<i64>,
    /// How many events are set aside.
    pub(crate) set_aside: u64,
    /// How many transactions have changed anything.
    pub(crate) commits: u64,
    /// The sum over the outbox's rows.
    pub(crate) outbox_tally: Tally,
    /// The sum over the rows set aside.
    pub(crate) set_aside_tally: Tally,
    /// The sum over the early rows.
    pub(crate) early_tally: Tally,
}

impl Tip {
    /// Returns the number of events in a table outside the log, and the sum of their hashes.
    fn waiting(&mut self, which: Waiting) -> (&mut u64, &mut Tally) {
        match which {
            Waiting::Pending => (&mut self.pending, &mut self.outbox_tally),
            Waiting::SetAside => (&mut self.set_aside, &mut self.set_aside_tally),
            Waiting::Early => (&mut self.early, &mut self.early_tally),
        }
    }

    /// Returns whether the log begins at its beginning.
    pub(crate) fn is_whole(&self) -> bool {
        self.base.seq == Seq::START
    }

    /// Returns the tables outside the log that this eventlog has.
    fn tables(&self) -> &'static [Waiting] {
        let all = &[Waiting::Pending, Waiting::SetAside, Waiting::Early];
        if self.is_whole() { &all[..2] } else { all }
    }

    /// Returns the digests that are stored with each commit. They show at opening whether the end of the log and the
    /// events outside it are unchanged.
    fn digests(&self) -> Vec<u8> {
        let mut digests = self.digest.0.to_vec();
        let mut tip = *self;
        for which in self.tables() {
            digests.extend(tip.waiting(*which).1.to_bytes());
        }
        digests
    }
}

/// The in-memory values at the start of a transaction, or of a part of one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark {
    tip: Tip,
    /// The highest number of a name.
    name: i64,
    /// The highest number of an origin.
    origin: i64,
}

pub(crate) struct Eventlog {
    pub(super) conn: Link,
    wal: Option<Arc<WalGauge>>,
    tip: Tip,
    /// What was so at the start of the transaction.
    saved: Option<Mark>,
    names: Interned,
    origins: Interned,
    /// The format of the file.
    format: i64,
    pub(super) checked: RefCell<Checked>,
    /// How long the last commit took. It is measured for people, and nothing is decided by it.
    synced: Option<Duration>,
}

/// An eventlog's connection to its file.
pub(super) enum Link {
    /// The connection that writes.
    Writes(Connection),
    /// A connection that reads beside the writing one.
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
    /// Makes SQLite move the WAL into the file when this is closed. Call it only for an orderly end.
    pub(crate) fn close_in_order(&self) -> Result<()> {
        Ok(checkpoint_on_close(&self.conn, true)?)
    }

    /// Returns what is known about the end.
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
        self.saved = Some(self.now());
        Ok(())
    }

    /// Undoes the transaction.
    pub(crate) fn rollback(&mut self) -> Result<()> {
        self.conn.execute_batch("ROLLBACK")?;
        self.go_back(self.saved.expect("BUG: no transaction is undone"));
        Ok(())
    }

    /// Makes the transaction durable. Once this has returned, its events survive a power cut.
    pub(crate) fn commit(&mut self) -> Result<()> {
        if self.saved.is_none_or(|saved| saved.tip != self.tip) {
            self.tip.commits += 1;
            set_meta(&self.conn, "commits", self.tip.commits)?;
            set_meta(&self.conn, "digests", self.tip.digests())?;
        }
        let began = Instant::now();
        self.conn.prepare_cached("COMMIT")?.execute(())?;
        self.synced = Some(began.elapsed());
        Ok(())
    }

    /// Returns how long the last [commit](Self::commit) took since this was last asked.
    pub(crate) fn take_synced(&mut self) -> Option<Duration> {
        self.synced.take()
    }

    /// Starts a part of the transaction that can be [undone](Self::undo) on its own. SQLite then keeps a copy of each page
    /// that the part changes.
    pub(crate) fn mark(&mut self) -> Result<Mark> {
        self.conn.prepare_cached("SAVEPOINT mark")?.execute(())?;
        Ok(self.now())
    }

    /// Ends the part that began at the last mark, and keeps it.
    pub(crate) fn keep(&mut self) -> Result<()> {
        self.conn.prepare_cached("RELEASE mark")?.execute(())?;
        Ok(())
    }

    /// Ends the part that began at `mark`, and undoes it.
    pub(crate) fn undo(&mut self, mark: Mark) -> Result<()> {
        self.conn.execute_batch("ROLLBACK TO mark; RELEASE mark")?;
        self.go_back(mark);
        Ok(())
    }

    fn now(&self) -> Mark {
        Mark { tip: self.tip, name: self.names.last(), origin: self.origins.last() }
    }

    fn go_back(&mut self, mark: Mark) {
        self.tip = mark.tip;
        self.names.forget_after(mark.name);
        self.origins.forget_after(mark.origin);
    }

    /// Returns how many different names events have.
    pub(crate) fn names(&self) -> usize {
        self.names.ids.len()
    }

    /// Returns whether an event of that name is here, or ever was.
    pub(crate) fn has_name(&self, name: &str) -> bool {
        self.names.ids.contains_key(name)
    }

    /// Tries a durable write as large as the largest payload, and removes it again.
    pub(crate) fn try_write(&mut self) -> Result<()> {
        set_meta(&self.conn, "room", vec![0; MAX_ARGS])?;
        self.conn.execute("DELETE FROM meta WHERE key = 'room'", ())?;
        Ok(())
    }

    /// Records who owns the log from now on.
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

    /// Records the last place of the upstream's log that was pulled.
    pub(crate) fn set_pulled(&mut self, seq: Seq) -> Result<()> {
        set_meta(&self.conn, "pulled", seq.to_sql())?;
        self.tip.pulled = seq;
        Ok(())
    }
}

impl Drop for Eventlog {
    fn drop(&mut self) {
        // The WAL may be rewritten next.
        if let Some(wal) = &self.wal {
            wal.retire();
        }
    }
}

/// Returns the first row of `statement`, read by `read`, if there is one.
fn first<T>(
    statement: &mut Statement<'_>,
    params: impl Params,
    read: impl FnOnce(&Row<'_>) -> Result<T>,
) -> Result<Option<T>> {
    statement.query(params)?.next()?.map(read).transpose()
}

/// Returns the fault for an eventlog that holds something other than what was stored.
fn damaged(what: String) -> LogFault {
    Fault::Damaged(what).into()
}
