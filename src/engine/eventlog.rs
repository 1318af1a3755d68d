//! The eventlog: the log and the outbox of one store in `eventlog.db`, the source of truth.
//!
//! Its methods speak SQLite's errors; [`Replica`](super::replica::Replica) says what they mean.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use rusqlite::types::Type;
use rusqlite::{CachedStatement, Connection, OptionalExtension, Params, Row, params};
use serde::{Deserialize, Serialize};

use super::checks::Checked;
use super::event::{Args, Device, Envelope, EventId, EventName, EventRef};
use super::opening::{Alone, make_database, provide_wal};
use super::place::{Digest, Entry, Generation, LogId, Seq};
use super::storage::{Beside, Durability, Fault, IoContext, WalGauge, checkpoint_on_close, connect, set_up};
use super::tally::{RowHash, Tally};
use super::witness::Testimony;

/// The format of the tables below. Higher ones are left alone.
const FORMAT: i64 = 2;

/// The first format whose rows have hashes.
const HASHED: i64 = 2;

/// Marks the file as ours: "Like" in ASCII.
const APPLICATION_ID: i64 = 0x4c69_6b65;

/// How many events stand between two checkpoints of the log's digest: what opening a store hashes at most.
pub(crate) const CHECKPOINT_EVERY: u64 = 1_024;

const TABLES: &str = "
    CREATE TABLE meta (
        key TEXT PRIMARY KEY,
        value ANY
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE name (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE) STRICT;
    CREATE TABLE origin (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE) STRICT;
    CREATE TABLE log (
        seq INTEGER PRIMARY KEY,
        id BLOB NOT NULL UNIQUE,
        name INTEGER NOT NULL,
        origin INTEGER NOT NULL,
        args TEXT
    ) STRICT;
    CREATE TABLE outbox (
        n INTEGER PRIMARY KEY AUTOINCREMENT,
        id BLOB NOT NULL UNIQUE,
        name INTEGER NOT NULL,
        args TEXT,
        hash INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE TABLE set_aside (
        n INTEGER PRIMARY KEY,
        id BLOB NOT NULL,
        name INTEGER NOT NULL,
        args TEXT,
        why TEXT NOT NULL,
        hash INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE UNIQUE INDEX set_aside_content ON set_aside (id, name, coalesce(args, ''));
    CREATE TABLE checkpoint (seq INTEGER PRIMARY KEY, digest BLOB NOT NULL, length INTEGER NOT NULL) STRICT;
    CREATE TABLE base (seq INTEGER PRIMARY KEY, digest BLOB NOT NULL, length INTEGER NOT NULL) STRICT;
";

/// What waits outside of the log: each table, and how its rows are read.
const WAITING: [(&str, &str); 2] = [
    ("outbox", "SELECT n, id, name, args, '', hash FROM outbox"),
    ("set_aside", "SELECT n, id, name, args, why, hash FROM set_aside"),
];

/// A table of events that aren't in the log, as its place in [`WAITING`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waiting {
    Pending = 0,
    SetAside = 1,
}

/// What is left of an event that isn't in the log.
pub(crate) struct Rescued {
    pub(crate) n: i64,
    /// None where there is nothing left to read.
    pub(crate) event: Option<Envelope>,
    /// Why it was set aside, if it was.
    pub(crate) why: Option<String>,
    /// Whether it is what was stored.
    pub(crate) is_as_stored: bool,
}

/// Gives tables of a format without hashes a column where they would stand.
const HASHLESS: &str = "
    CREATE TEMP VIEW outbox AS SELECT *, NULL AS hash FROM main.outbox;
    CREATE TEMP VIEW set_aside AS SELECT *, NULL AS hash FROM main.set_aside;
";

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

/// What the eventlog knows about its own end; kept in memory, and put back when a transaction is rolled back.
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
    /// What is stored with each commit, so that opening can tell whether the end of the log, the outbox and what was set
    /// aside are as they were left.
    fn digests(&self) -> Vec<u8> {
        [self.digest.0, self.outbox_tally.to_bytes(), self.set_aside_tally.to_bytes()].concat()
    }
}

/// What is kept in memory, as it was when a part of a transaction began.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark {
    tip: Tip,
    /// The last number that a name had.
    name: i64,
    /// The last number that an origin had.
    origin: i64,
}

/// Where the eventlog has an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// In the log.
    Log(Seq, Content),
    /// In the outbox, under this number.
    Outbox(i64, Content),
    /// Among the events that the authority refused.
    SetAside(Content),
}

/// What must be equal for two events of one id to be the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) name: EventName,
    pub(crate) args: Args,
}

impl Found {
    pub(crate) fn is(&self, event: &Envelope) -> bool {
        let (Self::Log(_, content) | Self::Outbox(_, content) | Self::SetAside(content)) = self;
        content.is(event)
    }
}

impl Content {
    pub(crate) fn is(&self, event: &Envelope) -> bool {
        self.name == event.name && self.args == event.args
    }
}

/// How much is read from the eventlog at a time, so that memory stays bounded however long it is.
#[derive(Debug, Clone, Copy)]
pub struct PageSize {
    /// Events.
    pub events: usize,
    /// Bytes of their names and payloads. A page has one event at least, however large that is.
    pub bytes: usize,
}

impl PageSize {
    /// So many events, however large.
    pub const fn events(events: usize) -> Self {
        Self { events, bytes: usize::MAX }
    }

    fn fill<T>(
        self,
        rows: impl Iterator<Item = rusqlite::Result<T>>,
        event: impl Fn(&T) -> &Envelope,
    ) -> rusqlite::Result<Vec<T>> {
        let mut page = Vec::new();
        let mut bytes = 0;
        for row in rows {
            let row = row?;
            let Envelope { name, args, .. } = event(&row);
            bytes += name.as_str().len() + args.as_text().map_or(0, str::len);
            if bytes > self.bytes && !page.is_empty() {
                break;
            }
            page.push(row);
        }
        Ok(page)
    }
}

/// A point of the log whose digest is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    pub(crate) seq: Seq,
    pub(crate) digest: Digest,
    pub(crate) length: u64,
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
    /// Opens the eventlog at `path`. Where there is none, makes an empty one of our own if it `may_create` one.
    pub(crate) fn open(path: &Path, may_create: bool, alone: &Alone) -> Result<Self, Fault> {
        let mut found = None;
        if path.try_exists().doing("look at", path)? {
            let conn = connect(path).map_err(Fault::eventlog)?;
            if !refuse_newer(&conn, path)? {
                found = Some(conn);
            }
        }
        let mut conn = match found {
            Some(conn) => conn,
            None if may_create => {
                make_database(path, alone, create)?;
                connect(path).map_err(Fault::eventlog)?
            }
            None => return Err(lost()),
        };
        provide_wal(path, alone)?;
        let wal = set_up(&mut conn, path, Durability::Full)?;
        Self::over(Link::Writes(conn), Some(wal)).map_err(Fault::eventlog)
    }

    /// Opens an existing eventlog for reading, beside the one that writes to it in this process: a snapshot as of now.
    pub(crate) fn snapshot(path: &Path) -> Result<Self, Fault> {
        let Some(conn) = look(path)? else { return Err(lost()) };
        conn.execute_batch("BEGIN").map_err(Fault::eventlog)?;
        Self::over(Link::Reads(conn), None).map_err(Fault::eventlog)
    }

    fn over(conn: Link, wal: Option<Arc<WalGauge>>) -> rusqlite::Result<Self> {
        conn.set_prepared_statement_cache_capacity(64);
        let names = Interned::load(&conn, "SELECT id, text FROM name")?;
        let origins = Interned::load(&conn, "SELECT id, text FROM origin")?;
        let digests: Vec<u8> = meta(&conn, "digests")?.unwrap_or_default();
        let tip = Tip {
            head: Seq::START,
            digest: Digest::EMPTY,
            length: 0,
            generation: Generation(meta(&conn, "generation")?.unwrap_or_default()),
            whose: whose(&conn)?,
            pulled: Seq(meta(&conn, "pulled")?.unwrap_or_default()),
            pending: conn.query_row("SELECT count(*) FROM outbox", (), |row| row.get(0))?,
            n: conn.query_row("SELECT coalesce(max(seq), 0) FROM sqlite_sequence", (), |row| row.get(0))?,
            set_aside: conn.query_row("SELECT count(*) FROM set_aside", (), |row| row.get(0))?,
            commits: meta(&conn, "commits")?.unwrap_or_default(),
            outbox_tally: Tally::from_slice(digests.get(32..64).unwrap_or_default()),
            set_aside_tally: Tally::from_slice(digests.get(64..96).unwrap_or_default()),
        };
        let format = conn.query_row("PRAGMA user_version", (), |row| row.get(0))?;
        if let Link::Reads(conn) = &conn {
            if format < HASHED {
                // The file stays as it is, and looks as if it had hashes.
                conn.execute_batch(HASHLESS)?;
            }
            // The views come first: even a view in memory can't be made afterwards.
            conn.only_read()?;
        }
        let mut log = Self { conn, wal, tip, saved: None, names, origins, format, checked: RefCell::default() };
        let last = log.checkpoint_before(Seq(i64::MAX as u64))?;
        let end = log.walk(last, None)?;
        log.checked = RefCell::new(Checked::nothing(last.seq, end.seq, log.tip.n));
        log.tip = Tip { head: end.seq, digest: end.digest, length: end.length, ..log.tip };
        Ok(log)
    }

    /// Says that this is an end in good order, so that the WAL is to be moved into the file.
    pub(crate) fn close_in_order(&self) -> rusqlite::Result<()> {
        checkpoint_on_close(&self.conn, true)
    }

    /// Moves an older format on to the present one, whole or not at all.
    pub(crate) fn upgrade(&mut self) -> rusqlite::Result<()> {
        if self.format >= FORMAT {
            return Ok(());
        }
        self.begin()?;
        self.conn.execute_batch(
            "ALTER TABLE outbox ADD COLUMN hash INTEGER NOT NULL DEFAULT 0;
             ALTER TABLE set_aside ADD COLUMN hash INTEGER NOT NULL DEFAULT 0;",
        )?;
        for (table, sql) in WAITING {
            let mut update = self.conn.prepare(&format!("UPDATE {table} SET hash = ?2 WHERE n = ?1"))?;
            let mut after = i64::MIN;
            loop {
                let mut statement = self.conn.prepare_cached(&format!("{sql} WHERE n > ?1 ORDER BY n LIMIT 1024"))?;
                let hash = |row: &Row<'_>| self.waiting(row).map(|(n, _, hash)| (n, hash));
                let hashes: Vec<_> = statement.query_map([after], hash)?.collect::<rusqlite::Result<_>>()?;
                let Some((last, _)) = hashes.last() else { break };
                after = *last;
                for (n, hash) in hashes {
                    update.execute(params![n, hash.short()])?;
                    let Tip { outbox_tally, set_aside_tally, .. } = &mut self.tip;
                    if table == "outbox" { outbox_tally.add(hash) } else { set_aside_tally.add(hash) }
                }
            }
        }
        self.conn.execute_batch(&format!("PRAGMA user_version = {FORMAT}"))?;
        self.format = FORMAT;
        // It has changed something, even if there was nothing to hash.
        self.saved = None;
        self.commit()
    }

    /// Whether the digest of the whole log is the one that was stored with its last event.
    pub(super) fn ends_as_stored(&self) -> rusqlite::Result<bool> {
        let stored: Vec<u8> = meta(&self.conn, "digests")?.unwrap_or_default();
        Ok(self.format < HASHED || stored.get(..32) == Some(&self.tip.digest.0))
    }

    /// What is not as it was stored: at the end of the log, in the outbox, and among what was set aside.
    pub(crate) fn check_waiting(&self) -> rusqlite::Result<Vec<String>> {
        if self.format < HASHED {
            return Ok(Vec::new());
        }
        let mut tip = Tip { outbox_tally: Tally::default(), set_aside_tally: Tally::default(), ..self.tip };
        let mut problems = Vec::new();
        let (mut pending, mut set_aside) = (0, 0);
        for (table, sql) in WAITING {
            let (tally, count) = match table {
                "outbox" => (&mut tip.outbox_tally, &mut pending),
                _ => (&mut tip.set_aside_tally, &mut set_aside),
            };
            let mut statement = self.conn.prepare_cached(&format!("{sql} ORDER BY n"))?;
            let mut rows = statement.query(())?;
            while let Some(row) = rows.next()? {
                *count += 1;
                match self.waiting(row) {
                    Ok((_, _, hash)) => tally.add(hash),
                    Err(rusqlite::Error::FromSqlConversionFailure(_, _, why)) => problems.push(why.to_string()),
                    Err(other) => return Err(other),
                }
            }
        }
        if !problems.is_empty() {
            return Ok(problems);
        }
        let stored: Vec<u8> = meta(&self.conn, "digests")?.unwrap_or_default();
        if (pending, set_aside) != (self.tip.pending, self.tip.set_aside) || stored != tip.digests() {
            let parts = [
                (tip.digest.0, "the events at the end of the log"),
                (tip.outbox_tally.to_bytes(), "the events that wait for a place in the log"),
                (tip.set_aside_tally.to_bytes(), "the events that were set aside"),
            ];
            let differs =
                |(nth, (digest, _)): &(usize, &([u8; 32], _))| stored.get(32 * nth..32 * nth + 32) != Some(digest);
            let what = parts.iter().enumerate().find(differs).map_or("what waits", |(_, (_, what))| what);
            problems.push(format!("{what} are not those that were stored"));
        }
        Ok(problems)
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

    pub(crate) fn begin(&mut self) -> rusqlite::Result<()> {
        self.conn.prepare_cached("BEGIN IMMEDIATE")?.execute(())?;
        self.saved = Some(self.tip);
        Ok(())
    }

    /// Makes the transaction durable: after this returns, its events survive a power cut.
    pub(crate) fn commit(&mut self) -> rusqlite::Result<()> {
        if self.saved != Some(self.tip) {
            self.tip.commits += 1;
            set_meta(&self.conn, "commits", self.tip.commits)?;
            set_meta(&self.conn, "digests", self.tip.digests())?;
        }
        self.conn.prepare_cached("COMMIT")?.execute(())?;
        Ok(())
    }

    /// Starts a part of the transaction that can be [undone](Self::undo) alone.
    pub(crate) fn mark(&mut self) -> rusqlite::Result<Mark> {
        self.conn.prepare_cached("SAVEPOINT mark")?.execute(())?;
        Ok(Mark { tip: self.tip, name: self.names.last(), origin: self.origins.last() })
    }

    /// Ends the part that began with the last mark, and keeps it.
    pub(crate) fn keep(&mut self) -> rusqlite::Result<()> {
        self.conn.prepare_cached("RELEASE mark")?.execute(()).map(drop)
    }

    /// Ends the part that began at `mark`, and undoes it.
    pub(crate) fn undo(&mut self, mark: Mark) -> rusqlite::Result<()> {
        self.conn.execute_batch("ROLLBACK TO mark; RELEASE mark")?;
        self.tip = mark.tip;
        self.names.forget_after(mark.name);
        self.origins.forget_after(mark.origin);
        Ok(())
    }

    /// Puts `event` at the end of the log, as `seq`. False when the log has its id already; then nothing changed.
    pub(crate) fn append(&mut self, seq: Seq, event: &Envelope, origin: &Device) -> rusqlite::Result<bool> {
        self.appender()?.append(seq, event, origin)
    }

    /// Puts `events` at the end of the log, in the next places. Gives the place of each, or `None` where the log has its
    /// id already.
    pub(crate) fn append_all(&mut self, events: &[(&Envelope, &Device)]) -> rusqlite::Result<Vec<Option<Seq>>> {
        let mut appender = self.appender()?;
        let append = |(event, origin): &(&Envelope, &Device)| {
            let seq = appender.tip.head.next();
            Ok(appender.append(seq, event, origin)?.then_some(seq))
        };
        events.iter().map(append).collect()
    }

    fn appender(&mut self) -> rusqlite::Result<Appender<'_>> {
        let Self { conn, tip, names, origins, .. } = self;
        let conn: &Connection = conn;
        let sql =
            "INSERT INTO log (seq, id, name, origin, args) VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (id) DO NOTHING";
        Ok(Appender { insert: conn.prepare_cached(sql)?, conn, tip, names, origins })
    }

    /// Puts `event` at the end of the outbox. False when the outbox has its id already.
    pub(crate) fn push(&mut self, event: &Envelope) -> rusqlite::Result<bool> {
        let name = self.names.intern(&self.conn, "INSERT INTO name (text) VALUES (?1)", event.name.as_str())?;
        let (n, args) = (self.tip.n + 1, event.args.as_text());
        let hash = RowHash::of(n, event.id.as_bytes(), event.name.as_str(), args, "");
        let sql =
            "INSERT INTO outbox (n, id, name, args, hash) VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (id) DO NOTHING";
        let values = params![n, event.id.as_bytes(), name, args, hash.short()];
        if self.conn.prepare_cached(sql)?.execute(values)? == 0 {
            return Ok(false);
        }
        self.tip.n = n;
        self.tip.pending += 1;
        self.tip.outbox_tally.add(hash);
        Ok(true)
    }

    /// Takes the event with number `n` out of the outbox.
    pub(crate) fn remove_pending(&mut self, n: i64) -> rusqlite::Result<()> {
        let sql = "DELETE FROM outbox WHERE n = ?1 RETURNING n, id, name, args, '', hash";
        let hash = |row: &Row<'_>| self.waiting(row).map(|(_, _, hash)| hash);
        if let Some(hash) = self.conn.prepare_cached(sql)?.query_row([n], hash).optional()? {
            self.tip.pending -= 1;
            self.tip.outbox_tally.take(hash);
        }
        Ok(())
    }

    /// Keeps `event` among those that the authority refused. One that is there already stays as it is; another that has
    /// its id, and came off worse against a third, is kept beside it.
    pub(crate) fn set_aside(&mut self, event: &Envelope, why: &str) -> rusqlite::Result<()> {
        let name = self.names.intern(&self.conn, "INSERT INTO name (text) VALUES (?1)", event.name.as_str())?;
        let sql = "SELECT coalesce(max(n), 0) + 1 FROM set_aside";
        let n = self.conn.prepare_cached(sql)?.query_row((), |row| row.get(0))?;
        let args = event.args.as_text();
        let hash = RowHash::of(n, event.id.as_bytes(), event.name.as_str(), args, why);
        let sql = "INSERT INTO set_aside (n, id, name, args, why, hash) VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO NOTHING";
        let values = params![n, event.id.as_bytes(), name, args, why, hash.short()];
        if self.conn.prepare_cached(sql)?.execute(values)? > 0 {
            self.tip.set_aside += 1;
            self.tip.set_aside_tally.add(hash);
        }
        Ok(())
    }

    /// Takes `event` out of those set aside, if it is among them. Another with its id stays.
    pub(crate) fn remove_set_aside(&mut self, event: &Envelope) -> rusqlite::Result<()> {
        let Some(name) = self.names.ids.get(event.name.as_str()) else { return Ok(()) };
        let sql = "DELETE FROM set_aside WHERE id = ?1 AND name = ?2 AND args IS ?3
                   RETURNING n, id, name, args, why, hash";
        let key = params![event.id.as_bytes(), name, event.args.as_text()];
        let hash = |row: &Row<'_>| self.waiting(row).map(|(_, _, hash)| hash);
        if let Some(hash) = self.conn.prepare_cached(sql)?.query_row(key, hash).optional()? {
            self.tip.set_aside -= 1;
            self.tip.set_aside_tally.take(hash);
        }
        Ok(())
    }

    /// Where `id` is, if it is anywhere. The log comes first, then the outbox.
    pub(crate) fn find(&self, id: EventId) -> rusqlite::Result<Option<Found>> {
        let key = [id.as_bytes()];
        let in_log = |row: &Row<'_>| {
            let name = EventName::stored(Arc::clone(self.names.text(row.get(1)?)?));
            Ok(Found::Log(Seq::from_sql(row.get(0)?), Content { name, args: args(row, 2)? }))
        };
        let sql = "SELECT seq, name, args FROM log WHERE id = ?1";
        if let Some(found) = self.conn.prepare_cached(sql)?.query_row(key, in_log).optional()? {
            return Ok(Some(found));
        }
        let waiting =
            |row: &Row<'_>| self.pending_row(row).map(|(n, Envelope { name, args, .. })| (n, Content { name, args }));
        if self.tip.pending > 0 {
            let sql = "SELECT n, id, name, args, '', hash FROM outbox WHERE id = ?1";
            if let Some((n, content)) = self.conn.prepare_cached(sql)?.query_row(key, waiting).optional()? {
                return Ok(Some(Found::Outbox(n, content)));
            }
        }
        if self.tip.set_aside > 0 {
            let sql = "SELECT n, id, name, args, why, hash FROM set_aside WHERE id = ?1";
            if let Some((_, content)) = self.conn.prepare_cached(sql)?.query_row(key, waiting).optional()? {
                return Ok(Some(Found::SetAside(content)));
            }
        }
        Ok(None)
    }

    /// The events of the log after `after`, as many as fit into `size`.
    pub(crate) fn entries(&self, after: Seq, size: PageSize) -> rusqlite::Result<Vec<Entry>> {
        let sql = "SELECT seq, id, name, args, origin FROM log WHERE seq > ?1 ORDER BY seq LIMIT ?2";
        let mut statement = self.conn.prepare_cached(sql)?;
        let most = i64::try_from(size.events).unwrap_or(i64::MAX);
        let rows = statement.query_map(params![after.to_sql(), most], |row| self.entry(row))?;
        size.fill(rows, |entry| &entry.event)
    }

    /// The place of the last of the next `most` events after `after`, if there is one.
    pub(crate) fn entries_end(&self, after: Seq, most: u64) -> rusqlite::Result<Option<Seq>> {
        let sql = "SELECT max(seq) FROM (SELECT seq FROM log WHERE seq > ?1 ORDER BY seq LIMIT ?2)";
        let last: Option<i64> =
            self.conn.prepare_cached(sql)?.query_row(params![after.to_sql(), most], |row| row.get(0))?;
        Ok(last.map(Seq::from_sql))
    }

    fn entry(&self, row: &Row<'_>) -> rusqlite::Result<Entry> {
        let origin = Device::stored(Arc::clone(self.origins.text(row.get(4)?)?));
        Ok(Entry { seq: Seq::from_sql(row.get(0)?), event: self.envelope(row, 1)?, origin })
    }

    /// Shows `each` the events of the log after `after`, `most` of them, for whoever rescues what is left: none where there
    /// is nothing left to read. Gives the place of the last, if there was one.
    pub(crate) fn each_entry<E>(
        &self,
        after: Seq,
        most: usize,
        each: &mut dyn FnMut(Option<Entry>) -> Result<(), E>,
    ) -> rusqlite::Result<Result<Option<Seq>, E>> {
        let sql = "SELECT seq, id, name, args, origin FROM log WHERE seq > ?1 ORDER BY seq LIMIT ?2";
        let last = self.each(sql, params![after.to_sql(), most], |row| {
            Ok(each(self.entry(row).ok().filter(|entry| entry.event.is_well_formed())))
        })?;
        Ok(last.map(|last| last.map(Seq::from_sql)))
    }

    /// Shows `each` of the events of the log after `after` and up to `until`, in order and `most` of them, without
    /// copying them. Gives the place of the last, if there was one. What `each` fails with ends it, and is the inner
    /// error.
    pub(crate) fn each_in_log<E>(
        &self,
        after: Seq,
        until: Seq,
        most: usize,
        each: &mut dyn FnMut(&EventRef<'_>) -> Result<(), E>,
    ) -> rusqlite::Result<Result<Option<Seq>, E>> {
        let sql = "SELECT seq, id, name, args FROM log WHERE seq > ?1 AND seq <= ?2 ORDER BY seq LIMIT ?3";
        let event = |row: &'_ Row<'_>| {
            let event = EventRef {
                id: id(row, 1)?,
                name: self.names.text(row.get(2)?)?,
                args: row.get_ref(3)?.as_str_or_null()?,
            };
            Ok(each(&event))
        };
        let last = self.each(sql, params![after.to_sql(), until.to_sql(), most], event)?;
        Ok(last.map(|last| last.map(Seq::from_sql)))
    }

    /// As [`each_in_log`](Self::each_in_log), of the events of the outbox whose number is above `after`.
    pub(crate) fn each_pending<E>(
        &self,
        after: i64,
        most: usize,
        each: &mut dyn FnMut(&EventRef<'_>) -> Result<(), E>,
    ) -> rusqlite::Result<Result<Option<i64>, E>> {
        let sql = "SELECT n, id, name, args, '', hash FROM outbox WHERE n > ?1 ORDER BY n LIMIT ?2";
        self.each(sql, params![after, most], |row| self.waiting(row).map(|(_, event, _)| each(&event)))
    }

    /// Shows `each` the rows of a query that begin with a place, and gives the last one's.
    fn each<E>(
        &self,
        sql: &str,
        params: impl Params,
        mut each: impl FnMut(&Row<'_>) -> rusqlite::Result<Result<(), E>>,
    ) -> rusqlite::Result<Result<Option<i64>, E>> {
        let mut statement = self.conn.prepare_cached(sql)?;
        let mut rows = statement.query(params)?;
        let mut last = None;
        while let Some(row) = rows.next()? {
            if let Err(error) = each(row)? {
                return Ok(Err(error));
            }
            last = Some(row.get(0)?);
        }
        Ok(Ok(last))
    }

    /// The events of the outbox whose number is above `after`, with their numbers, as many as fit into `size`.
    pub(crate) fn pending(&self, after: i64, size: PageSize) -> rusqlite::Result<Vec<(i64, Envelope)>> {
        let sql = "SELECT n, id, name, args, '', hash FROM outbox WHERE n > ?1 ORDER BY n LIMIT ?2";
        let mut statement = self.conn.prepare_cached(sql)?;
        let most = i64::try_from(size.events).unwrap_or(i64::MAX);
        let rows = statement.query_map(params![after, most], |row| self.pending_row(row))?;
        size.fill(rows, |(_, event)| event)
    }

    /// The events that were set aside first, as many as fit into `size`.
    pub(crate) fn set_aside_first(&self, size: PageSize) -> rusqlite::Result<Vec<Envelope>> {
        let sql = "SELECT n, id, name, args, why, hash FROM set_aside ORDER BY n LIMIT ?1";
        let mut statement = self.conn.prepare_cached(sql)?;
        let rows = statement.query_map([size.events], |row| self.pending_row(row).map(|(_, event)| event))?;
        size.fill(rows, |event| event)
    }

    /// The events set aside, each with the reason, oldest first.
    pub(crate) fn all_set_aside(&self) -> rusqlite::Result<Vec<(Envelope, String)>> {
        let sql = "SELECT n, id, name, args, why, hash FROM set_aside ORDER BY n";
        let event = |row: &Row<'_>| Ok((self.pending_row(row)?.1, row.get(4)?));
        self.conn.prepare_cached(sql)?.query_map((), event)?.collect()
    }

    /// What stands in a table of events that aren't in the log, with numbers above `after`, as much as fits into `size`:
    /// for whoever rescues what is left of it.
    pub(crate) fn rescue(&self, which: Waiting, after: i64, size: PageSize) -> rusqlite::Result<Vec<Rescued>> {
        let (_, sql) = WAITING[which as usize];
        let mut statement = self.conn.prepare_cached(&format!("{sql} WHERE n > ?1 ORDER BY n LIMIT ?2"))?;
        let mut rows = statement.query(params![after, size.events])?;
        let (mut all, mut bytes) = (Vec::new(), 0);
        while let Some(row) = rows.next()? {
            let n = row.get(0)?;
            let why = match which {
                Waiting::Pending => None,
                Waiting::SetAside => Some(row.get_ref(4)?.as_str().unwrap_or_default().to_owned()),
            };
            let (event, is_as_stored) = match self.pending_row(row) {
                Ok((_, event)) => (Some(event), true),
                Err(_) => (self.envelope(row, 1).ok().filter(Envelope::is_well_formed), false),
            };
            bytes += event.as_ref().and_then(|event| event.args.as_text()).map_or(0, str::len);
            all.push(Rescued { n, event, why, is_as_stored });
            if bytes > size.bytes {
                break;
            }
        }
        Ok(all)
    }

    /// The last point at or before `seq` whose digest is stored.
    pub(crate) fn checkpoint_before(&self, seq: Seq) -> rusqlite::Result<Checkpoint> {
        let sql = "SELECT seq, digest, length FROM
                       (SELECT * FROM checkpoint WHERE seq <= ?1 UNION ALL SELECT * FROM base WHERE seq <= ?1)
                   ORDER BY seq DESC LIMIT 1";
        let row = self.conn.prepare_cached(sql)?.query_row([seq.to_sql()], read_checkpoint).optional()?;
        Ok(row.unwrap_or(Checkpoint { seq: Seq::START, digest: Digest::EMPTY, length: 0 }))
    }

    /// The first stored point that is at least `events` events behind the place with `length` events, or the end.
    pub(crate) fn milestone_after(&self, seq: Seq, events: u64) -> rusqlite::Result<Checkpoint> {
        let from = self.checkpoint_before(seq)?.length;
        let sql = "SELECT seq, digest, length FROM checkpoint WHERE seq > ?1 AND length >= ?2 ORDER BY seq LIMIT 1";
        let found = self
            .conn
            .prepare_cached(sql)?
            .query_row(params![seq.to_sql(), from.saturating_add(events)], read_checkpoint)
            .optional()?;
        let Tip { head, digest, length, .. } = self.tip;
        Ok(found.unwrap_or(Checkpoint { seq: head, digest, length }))
    }

    /// Where the log begins.
    pub(crate) fn base(&self) -> rusqlite::Result<Checkpoint> {
        let row = self.conn.query_row("SELECT seq, digest, length FROM base", (), read_checkpoint).optional()?;
        Ok(row.unwrap_or(Checkpoint { seq: Seq::START, digest: Digest::EMPTY, length: 0 }))
    }

    /// Every stored point, for who wants to check them all.
    pub(crate) fn checkpoints(&self) -> rusqlite::Result<Vec<Checkpoint>> {
        self.conn
            .prepare("SELECT seq, digest, length FROM checkpoint ORDER BY seq")?
            .query_map((), read_checkpoint)?
            .collect()
    }

    /// The digest of the log up to `seq`, whether or not an event stands there.
    pub(crate) fn digest_at(&self, seq: Seq) -> rusqlite::Result<Digest> {
        if seq >= self.tip.head {
            return Ok(self.tip.digest);
        }
        Ok(self.walk(self.checkpoint_before(seq)?, Some(seq))?.digest)
    }

    /// Points of the log with their digests, from its end to its beginning. Those near the end stand at distances that
    /// double, and cost one walk together; the others are points whose digests are stored.
    pub(crate) fn points(&self) -> rusqlite::Result<Vec<(Seq, Digest)>> {
        let head = self.tip.head;
        let back = |distance: u64| Seq(head.0.saturating_sub(distance));
        let distances = (0..64).map(|power| 1 << power).take_while(|distance| *distance < head.0);
        let (near, far): (Vec<u64>, Vec<u64>) = distances.partition(|distance| *distance < CHECKPOINT_EVERY);
        let mut point = self.checkpoint_before(back(near.last().copied().unwrap_or_default()))?;
        let mut points = Vec::new();
        for distance in near.into_iter().rev().chain([0]) {
            point = self.walk(point, Some(back(distance)))?;
            points.push((back(distance), point.digest));
        }
        points.reverse();
        for distance in far {
            let Checkpoint { seq, digest, .. } = self.checkpoint_before(back(distance))?;
            if points.last().is_some_and(|(last, _)| *last > seq) {
                points.push((seq, digest));
            }
        }
        points.push((Seq::START, self.digest_at(Seq::START)?));
        Ok(points)
    }

    /// How many different names events have.
    pub(crate) fn names(&self) -> usize {
        self.names.ids.len()
    }

    /// Whether an event of that name is here, or was.
    pub(crate) fn has_name(&self, name: &str) -> bool {
        self.names.ids.contains_key(name)
    }

    /// Hashes on from a known point, to `until` or to the end.
    pub(crate) fn walk(&self, from: Checkpoint, until: Option<Seq>) -> rusqlite::Result<Checkpoint> {
        let mut point = from;
        let sql = "SELECT seq, id, name, args, origin FROM log WHERE seq > ?1 AND seq <= ?2 ORDER BY seq";
        let mut statement = self.conn.prepare_cached(sql)?;
        let until = until.map_or(i64::MAX, Seq::to_sql);
        let mut rows = statement.query([from.seq.to_sql(), until])?;
        while let Some(row) = rows.next()? {
            self.step(&mut point, row)?;
        }
        Ok(point)
    }

    /// Hashes the next event of the log, whose columns are seq, id, name, args, origin.
    pub(super) fn step(&self, point: &mut Checkpoint, row: &Row<'_>) -> rusqlite::Result<()> {
        let (name, origin) = (self.names.text(row.get(2)?)?, self.origins.text(row.get(4)?)?);
        point.seq = Seq::from_sql(row.get(0)?);
        point.digest = point.digest.extended(id(row, 1)?.as_bytes(), name, row.get_ref(3)?.as_str_or_null()?, origin);
        point.length += 1;
        Ok(())
    }

    /// SQLite's own check of the file's structure: what is wrong, line by line.
    pub(crate) fn integrity_check(&self) -> rusqlite::Result<Vec<String>> {
        let lines: Vec<String> =
            self.conn.prepare("PRAGMA integrity_check")?.query_map((), |row| row.get(0))?.collect::<Result<_, _>>()?;
        Ok(lines.into_iter().filter(|line| line != "ok").collect())
    }

    /// Takes every event of the log after `after` back to the front of the outbox, in log order, under the same ids,
    /// and raises the generation: the state may hold what the log no longer does.
    pub(crate) fn take_back(&mut self, after: Seq) -> rusqlite::Result<()> {
        let from = self.walk(self.checkpoint_before(after)?, Some(after))?;
        let taken = self.tip.length - from.length;
        let first: Option<i64> = self.conn.query_row("SELECT min(n) FROM outbox", (), |row| row.get(0))?;
        // Numbers below every one that the outbox gave or gives, so that what is newer stays behind.
        let mut n = first.unwrap_or(1).min(1) - i64::try_from(taken).expect("BUG: a log of 2^63 events");
        let mut point = from;
        {
            let mut insert =
                self.conn.prepare_cached("INSERT INTO outbox (n, id, name, args, hash) VALUES (?1, ?2, ?3, ?4, ?5)")?;
            let sql = "SELECT seq, id, name, args, origin FROM log WHERE seq > ?1 ORDER BY seq";
            let mut statement = self.conn.prepare_cached(sql)?;
            let mut rows = statement.query([after.to_sql()])?;
            while let Some(row) = rows.next()? {
                self.step(&mut point, row)?;
                let (id, name, args) = (id(row, 1)?, row.get::<_, i64>(2)?, row.get_ref(3)?.as_str_or_null()?);
                let hash = RowHash::of(n, id.as_bytes(), self.names.text(name)?, args, "");
                insert.execute(params![n, id.as_bytes(), name, args, hash.short()])?;
                self.tip.outbox_tally.add(hash);
                n += 1;
            }
        }
        if point.digest != self.tip.digest {
            // What has been changed would get a hash of its own now, and nothing could tell any more.
            return Err(damaged(format!("of the events after {after} some are not those that were stored")));
        }
        self.conn.execute("DELETE FROM log WHERE seq > ?1", [after.to_sql()])?;
        self.conn.execute("DELETE FROM checkpoint WHERE seq > ?1", [after.to_sql()])?;
        let last = self.checkpoint_before(after)?;
        self.checked.borrow_mut().forget_after(from, last.seq);
        self.tip.head = from.seq;
        self.tip.digest = from.digest;
        self.tip.length = from.length;
        self.tip.pending += taken;
        self.tip.generation.0 += 1;
        set_meta(&self.conn, "generation", self.tip.generation.0)?;
        if self.tip.pulled > after {
            self.set_pulled(after)?;
        }
        Ok(())
    }

    /// Gives every event of the outbox its place at the end of the log, in order.
    pub(crate) fn place_pending(&mut self, origin: &Device) -> rusqlite::Result<()> {
        loop {
            let page = self.pending(i64::MIN, PageSize { events: 1_024, bytes: 8 << 20 })?;
            if page.is_empty() {
                return Ok(());
            }
            for (n, event) in page {
                self.remove_pending(n)?;
                self.append(self.tip.head.next(), &event, origin)?;
            }
        }
    }

    /// Writes more than an event takes, durably, and takes it away again.
    pub(crate) fn try_write(&mut self) -> rusqlite::Result<()> {
        set_meta(&self.conn, "room", vec![0; 64 * 1024])?;
        self.conn.execute("DELETE FROM meta WHERE key = 'room'", ()).map(drop)
    }

    /// Records whose log this is from now on.
    pub(crate) fn set_whose(&mut self, whose: Whose) -> rusqlite::Result<()> {
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
    pub(crate) fn set_pulled(&mut self, seq: Seq) -> rusqlite::Result<()> {
        set_meta(&self.conn, "pulled", seq.to_sql())?;
        self.tip.pulled = seq;
        Ok(())
    }

    /// A row of the outbox or of what was set aside, whose columns are n, id, name, args, why and hash. An error when it
    /// isn't what was stored.
    fn waiting<'r>(&'r self, row: &'r Row<'_>) -> rusqlite::Result<(i64, EventRef<'r>, RowHash)> {
        let read = || {
            let (n, bytes) = (row.get(0)?, row.get_ref(1)?.as_blob()?);
            let (name, args) = (self.names.text(row.get(2)?)?, row.get_ref(3)?.as_str_or_null()?);
            let hash = RowHash::of(n, bytes, name, args, row.get_ref(4)?.as_str()?);
            let is_stored = self.format < HASHED || row.get::<_, i64>(5)? == hash.short();
            Ok::<_, rusqlite::Error>((n, EventRef { id: id(row, 1)?, name, args }, hash, is_stored))
        };
        match read() {
            Ok((n, event, hash, true)) => Ok((n, event, hash)),
            _ => {
                let id = id(row, 1).map_or_else(|_| "whose id can't be read".to_owned(), |id| id.to_string());
                Err(damaged(format!("an event that isn't in the log yet is not what was stored: {id}")))
            }
        }
    }

    /// As [`waiting`](Self::waiting), with the event on its own.
    fn pending_row(&self, row: &Row<'_>) -> rusqlite::Result<(i64, Envelope)> {
        let (n, event, _) = self.waiting(row)?;
        let name = self.names.text(row.get(2)?)?;
        Ok((n, Envelope { id: event.id, name: EventName::stored(Arc::clone(name)), args: Args::stored(event.args) }))
    }

    fn envelope(&self, row: &Row<'_>, at: usize) -> rusqlite::Result<Envelope> {
        Ok(Envelope {
            id: id(row, at)?,
            name: EventName::stored(Arc::clone(self.names.text(row.get(at + 1)?)?)),
            args: args(row, at + 2)?,
        })
    }
}

impl Drop for Eventlog {
    fn drop(&mut self) {
        // Whoever lets go of an eventlog may be about to write its WAL again.
        if let Some(wal) = &self.wal {
            wal.retire();
        }
    }
}

/// The end of the log while events are added to it, with the statement at hand that adds one: to fetch it anew for each
/// takes a tenth of the time.
struct Appender<'a> {
    insert: CachedStatement<'a>,
    conn: &'a Connection,
    tip: &'a mut Tip,
    names: &'a mut Interned,
    origins: &'a mut Interned,
}

impl Appender<'_> {
    /// As [`Eventlog::append`].
    fn append(&mut self, seq: Seq, event: &Envelope, origin: &Device) -> rusqlite::Result<bool> {
        let Self { insert, conn, tip, names, origins } = self;
        debug_assert!(seq > tip.head, "BUG: {seq} is not behind {}", tip.head);
        let name = names.intern(conn, "INSERT INTO name (text) VALUES (?1)", event.name.as_str())?;
        let origin_id = origins.intern(conn, "INSERT INTO origin (text) VALUES (?1)", origin.as_str())?;
        let args = event.args.as_text();
        if insert.execute(params![seq.to_sql(), event.id.as_bytes(), name, origin_id, args])? == 0 {
            return Ok(false);
        }
        tip.head = seq;
        tip.digest = tip.digest.extended(event.id.as_bytes(), event.name.as_str(), args, origin.as_str());
        tip.length += 1;
        if tip.length.is_multiple_of(CHECKPOINT_EVERY) {
            conn.prepare_cached("INSERT INTO checkpoint (seq, digest, length) VALUES (?1, ?2, ?3)")?
                .execute(params![seq.to_sql(), tip.digest.0, tip.length])?;
        }
        Ok(true)
    }
}

/// Refuses a file of a later format as the file itself says it, so that not even its WAL is touched.
pub(crate) fn refuse_newer_header(path: &Path) -> Result<(), Fault> {
    // Where SQLite's file format has `user_version` and `application_id`: <https://sqlite.org/fileformat2.html>.
    let mut header = [0; 72];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut header));
    match read {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof) => return Ok(()),
        other => other.doing("read", path)?,
    }
    let number = |at: usize| i32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (found, id) = (i64::from(number(60)), i64::from(number(68)));
    if id == APPLICATION_ID && found > FORMAT {
        return Err(Fault::NewerFormat { path: path.to_owned(), found, known: FORMAT });
    }
    Ok(())
}

/// Connects to the eventlog at `path` for reading, unless there is nothing in it, or nothing at all.
pub(crate) fn look(path: &Path) -> Result<Option<Beside>, Fault> {
    if !path.try_exists().doing("look at", path)? {
        return Ok(None);
    }
    let conn = Beside::open(path).map_err(Fault::eventlog)?;
    Ok(if refuse_newer(&conn, path)? { None } else { Some(conn) })
}

/// Refuses a file of a later format, or of another program, before anything is written to it. Says whether there is
/// nothing in it yet: older versions made it in steps, and may have been interrupted.
fn refuse_newer(conn: &Connection, path: &Path) -> Result<bool, Fault> {
    let pragma = |name: &str| conn.query_row(&format!("PRAGMA {name}"), (), |row| row.get::<_, i64>(0));
    let found = pragma("user_version").map_err(Fault::eventlog)?;
    if found > FORMAT {
        return Err(Fault::NewerFormat { path: path.to_owned(), found, known: FORMAT });
    }
    let tables: i64 =
        conn.query_row("SELECT count(*) FROM sqlite_schema", (), |row| row.get(0)).map_err(Fault::eventlog)?;
    if tables > 0 && pragma("application_id").map_err(Fault::eventlog)? != APPLICATION_ID {
        return Err(Fault::Foreign(path.to_owned()));
    }
    Ok(tables == 0)
}

/// That there is nothing where events were.
fn lost() -> Fault {
    Fault::LostTail("eventlog.db is missing or empty, and had events".to_owned())
}

/// Makes the tables of an empty eventlog of our own.
fn create(conn: Connection) -> Result<(), Fault> {
    let make = |conn: &Connection| {
        conn.execute_batch("BEGIN IMMEDIATE")?;
        conn.execute_batch(TABLES)?;
        conn.execute("INSERT INTO base VALUES (0, ?1, 0)", [Digest::EMPTY.0])?;
        set_meta(conn, "whose", "own")?;
        set_meta(conn, "log_id", LogId::random().to_string())?;
        set_meta(conn, "digests", vec![0; 3 * Tally::BYTES])?;
        conn.execute_batch(&format!("PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT}; COMMIT"))
    };
    make(&conn).map_err(Fault::eventlog)
}

fn meta<T: rusqlite::types::FromSql>(conn: &Connection, key: &str) -> rusqlite::Result<Option<T>> {
    conn.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0)).optional().map(Option::flatten)
}

fn set_meta(conn: &Connection, key: &str, value: impl rusqlite::ToSql) -> rusqlite::Result<()> {
    let sql = "INSERT INTO meta VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
    conn.prepare_cached(sql)?.execute(params![key, value]).map(drop)
}

fn whose(conn: &Connection) -> rusqlite::Result<Whose> {
    let id = meta::<String>(conn, "log_id")?.and_then(|text| LogId::parse(&text));
    match (meta::<String>(conn, "whose")?.as_deref(), id) {
        (Some("own"), Some(id)) => Ok(Whose::Own(id)),
        (Some("upstream"), id) => Ok(Whose::Upstream(id)),
        (other, _) => Err(unreadable(0, format!("the eventlog doesn't say whose log it is: {other:?}"))),
    }
}

pub(super) fn read_checkpoint(row: &Row<'_>) -> rusqlite::Result<Checkpoint> {
    let digest = Digest::from_slice(row.get_ref(1)?.as_blob()?);
    Ok(Checkpoint {
        seq: Seq::from_sql(row.get(0)?),
        digest: digest.ok_or_else(|| unreadable(1, "a digest has 32 bytes"))?,
        length: row.get(2)?,
    })
}

fn id(row: &Row<'_>, at: usize) -> rusqlite::Result<EventId> {
    EventId::from_bytes(row.get_ref(at)?.as_blob()?).map_err(|why| unreadable(at, why))
}

fn args(row: &Row<'_>, at: usize) -> rusqlite::Result<Args> {
    Ok(Args::stored(row.get_ref(at)?.as_str_or_null()?))
}

/// That something isn't what was stored.
pub(super) fn damaged(what: String) -> rusqlite::Error {
    unreadable(0, what)
}

fn unreadable(at: usize, why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(at, Type::Null, why.into())
}

/// Strings that occur often, each stored once and known by a number.
#[derive(Default)]
struct Interned {
    ids: BTreeMap<Arc<str>, i64>,
    texts: BTreeMap<i64, Arc<str>>,
}

impl Interned {
    fn load(conn: &Connection, sql: &str) -> rusqlite::Result<Self> {
        let mut all = Self::default();
        let mut statement = conn.prepare_cached(sql)?;
        let mut rows = statement.query(())?;
        while let Some(row) = rows.next()? {
            all.add(row.get(0)?, row.get::<_, String>(1)?.into());
        }
        Ok(all)
    }

    fn add(&mut self, id: i64, text: Arc<str>) {
        self.ids.insert(Arc::clone(&text), id);
        self.texts.insert(id, text);
    }

    /// The highest number.
    fn last(&self) -> i64 {
        self.texts.last_key_value().map_or(0, |(id, _)| *id)
    }

    /// Forgets the strings whose numbers are above `last`.
    fn forget_after(&mut self, last: i64) {
        while let Some(entry) = self.texts.last_entry().filter(|entry| *entry.key() > last) {
            self.ids.remove(&entry.remove());
        }
    }

    /// The number of `text`, given now if it has none yet.
    fn intern(&mut self, conn: &Connection, insert: &str, text: &str) -> rusqlite::Result<i64> {
        if let Some(id) = self.ids.get(text) {
            return Ok(*id);
        }
        conn.prepare_cached(insert)?.execute([text])?;
        let id = conn.last_insert_rowid();
        self.add(id, text.into());
        Ok(id)
    }

    fn text(&self, id: i64) -> rusqlite::Result<&Arc<str>> {
        self.texts.get(&id).ok_or_else(|| damaged(format!("a name that events refer to, number {id}, is gone")))
    }
}
