//! The file `eventlog.db`: its format, its tables, and how it is opened, created and upgraded.

use std::cell::RefCell;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::checks::Checked;
use super::digests::read_checkpoint;
use super::names::Interned;
use super::read::Waiting;
use super::tally::Tally;
use super::{Eventlog, History, Link, Result, Tip, Whose, damaged, first};
use crate::engine::error::{Database, Fault, IoContext, LogFault};
use crate::engine::opening::{Alone, make_database, provide_wal};
use crate::engine::place::{Digest, Generation, LogId, Seq};
use crate::engine::storage::{Beside, WalGauge, connect, set_up};
use crate::limits::engine::eventlog::HASHED_AT_ONCE;

/// The format of the tables below.
pub(super) const FORMAT: i64 = 2;

/// The format of a file whose log begins at a snapshot, or that has messages of a stream. Older programs would take it for
/// something else, so they have to refuse it. Files of a higher format are left alone.
pub(super) const BEYOND: i64 = 3;

/// The first format whose rows have hashes.
pub(super) const HASHED: i64 = 2;

/// Marks the file as ours: "Like" in ASCII.
pub(super) const APPLICATION_ID: i64 = 0x4c69_6b65;

pub(super) const TABLES: &str = "
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

/// Adds an empty hash column to the tables of a format without hashes.
pub(super) const HASHLESS: &str = "
    CREATE TEMP VIEW outbox AS SELECT *, NULL AS hash FROM main.outbox;
    CREATE TEMP VIEW set_aside AS SELECT *, NULL AS hash FROM main.set_aside;
";

impl Eventlog {
    /// Opens the eventlog at `path`. If there is none and it `may_create` one, creates an empty one of our own.
    pub(crate) fn open(path: &Path, may_create: bool, alone: &Alone) -> Result<Self> {
        let mut found = None;
        if path.try_exists().doing("look at", path)? {
            let conn = connect(path)?;
            if !refuse_newer(&conn, path)? {
                found = Some(conn);
            }
        }
        let mut conn = match found {
            Some(conn) => conn,
            None if may_create => {
                make_database(Database::Eventlog, path, alone, |conn| Ok(create(conn)?))?;
                connect(path)?
            }
            None => return Err(lost()),
        };
        provide_wal(path, alone)?;
        let wal = set_up(&mut conn, path, Database::Eventlog)?;
        Self::over(Link::Writes(conn), Some(wal))
    }

    /// Opens a snapshot of an existing eventlog as of now. It reads beside this process's writing connection.
    pub(crate) fn snapshot(path: &Path) -> Result<Self> {
        let Some(conn) = look(path)? else { return Err(lost()) };
        conn.execute_batch("BEGIN")?;
        Self::over(Link::Reads(conn), None)
    }

    pub(super) fn over(conn: Link, wal: Option<Arc<WalGauge>>) -> Result<Self> {
        conn.set_prepared_statement_cache_capacity(64);
        let names = Interned::load(&conn, "SELECT id, text FROM name")?;
        let origins = Interned::load(&conn, "SELECT id, text FROM origin")?;
        let digests: Vec<u8> = meta(&conn, "digests")?.unwrap_or_default();
        let base = first(&mut conn.prepare("SELECT seq, digest, length FROM base")?, (), read_checkpoint)?;
        let base = base.unwrap_or_default();
        let tally = |nth: usize| Tally::from_slice(digests.get(32 * nth..32 * nth + 32).unwrap_or_default());
        let mut tip = Tip {
            head: Seq::START,
            digest: Digest::EMPTY,
            length: 0,
            generation: Generation(meta(&conn, "generation")?.unwrap_or_default()),
            whose: whose(&conn)?,
            pulled: Seq(meta(&conn, "pulled")?.unwrap_or_default()),
            stream: meta::<String>(&conn, "stream")?.and_then(|text| text.parse().ok()),
            pending: conn.query_row("SELECT count(*) FROM outbox", (), |row| row.get(0))?,
            n: conn.query_row("SELECT coalesce(max(seq), 0) FROM sqlite_sequence", (), |row| row.get(0))?,
            set_aside: conn.query_row("SELECT count(*) FROM set_aside", (), |row| row.get(0))?,
            commits: meta(&conn, "commits")?.unwrap_or_default(),
            outbox_tally: tally(1),
            set_aside_tally: tally(2),
            base,
            history: History::default(),
            early: 0,
            early_tally: Tally::default(),
            passed: None,
        };
        if !tip.is_whole() {
            tip.history = History::load(&conn)?;
            tip.passed = meta(&conn, "passed")?;
            tip.early = conn.query_row("SELECT count(*) FROM early", (), |row| row.get(0))?;
            tip.early_tally = tally(3);
        }
        let format = conn.query_row("PRAGMA user_version", (), |row| row.get(0))?;
        if let Link::Reads(conn) = &conn {
            if format < HASHED {
                // The file stays unchanged but can be read as if it had hashes.
                conn.execute_batch(HASHLESS)?;
            }
            // Create the views first. Afterwards not even a temporary view can be created.
            conn.only_read()?;
        }
        let checked = RefCell::default();
        let mut log = Self { conn, wal, tip, saved: None, names, origins, format, checked, synced: None };
        let last = log.checkpoint_before(Seq(i64::MAX as u64))?;
        let end = log.walk(last, None)?;
        log.checked = RefCell::new(Checked::nothing(last.seq, end.seq, log.tip.n));
        log.tip = Tip { head: end.seq, digest: end.digest, length: end.length, ..log.tip };
        Ok(log)
    }

    /// Upgrades an older format to the current one, completely or not at all.
    pub(crate) fn upgrade(&mut self) -> Result<()> {
        if self.format >= FORMAT {
            return Ok(());
        }
        self.begin()?;
        self.conn.execute_batch(
            "ALTER TABLE outbox ADD COLUMN hash INTEGER NOT NULL DEFAULT 0;
             ALTER TABLE set_aside ADD COLUMN hash INTEGER NOT NULL DEFAULT 0;",
        )?;
        for which in [Waiting::Pending, Waiting::SetAside] {
            let sql = format!("{} WHERE n > ?1 ORDER BY n LIMIT {HASHED_AT_ONCE}", which.select());
            let mut update = self.conn.prepare(&format!("UPDATE {} SET hash = ?2 WHERE n = ?1", which.table()))?;
            let mut after = i64::MIN;
            loop {
                let mut statement = self.conn.prepare_cached(&sql)?;
                let hash = |row: &Row<'_>| self.waiting(row).map(|(n, _, hash)| (n, hash));
                let hashes: Vec<_> = statement.query_and_then([after], hash)?.collect::<Result<_>>()?;
                let Some((last, _)) = hashes.last() else { break };
                after = *last;
                for (n, hash) in hashes {
                    update.execute(params![n, hash.short()])?;
                    self.tip.waiting(which).1.add(hash);
                }
            }
        }
        self.conn.execute_batch(&format!("PRAGMA user_version = {FORMAT}"))?;
        self.format = FORMAT;
        // The upgrade counts as a change, even if there was nothing to hash.
        self.saved = None;
        self.commit()
    }
}

/// Refuses a file of a later format. Reads the file's header directly, so not even its WAL is touched.
pub(crate) fn refuse_newer_header(path: &Path) -> Result<(), Fault> {
    // SQLite's file format has `user_version` and `application_id` here: <https://sqlite.org/fileformat2.html>.
    let mut header = [0; 72];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut header));
    match read {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof) => return Ok(()),
        other => other.doing("read", path)?,
    }
    let number = |at: usize| i32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (found, id) = (i64::from(number(60)), i64::from(number(68)));
    if id == APPLICATION_ID && found > BEYOND {
        return Err(Fault::NewerFormat { path: path.to_owned(), found, known: BEYOND });
    }
    Ok(())
}

/// Connects to the eventlog at `path` for reading. Returns `None` if the file is missing or empty.
pub(crate) fn look(path: &Path) -> Result<Option<Beside>> {
    if !path.try_exists().doing("look at", path)? {
        return Ok(None);
    }
    let conn = Beside::open(path)?;
    Ok(if refuse_newer(&conn, path)? { None } else { Some(conn) })
}

/// Whose a log is, as its file says.
#[cfg(feature = "app")]
#[derive(Debug, Default)]
pub(crate) struct Ownership {
    /// Whether the messages of a stream make it, because this is a gateway.
    pub(crate) is_of_stream: bool,
    /// Its id, if this instance is its authority and it has events.
    pub(crate) own: Option<LogId>,
}

#[cfg(feature = "app")]
impl Ownership {
    /// Reads it from the eventlog at `path`, which need not exist.
    pub(crate) fn of(path: &Path) -> Result<Self> {
        let Some(conn) = look(path)? else { return Ok(Self::default()) };
        let has_events = || conn.query_row("SELECT EXISTS (SELECT 1 FROM log)", (), |row| row.get(0));
        let own = match whose(&conn)? {
            Whose::Own(log) if has_events()? => Some(log),
            _ => None,
        };
        Ok(Self { is_of_stream: meta::<String>(&conn, "stream")?.is_some(), own })
    }
}

/// Refuses a file of a later format, or of another program, before anything is written to it. Returns whether the file
/// is still empty: older versions created it in steps and may have been interrupted.
pub(super) fn refuse_newer(conn: &Connection, path: &Path) -> Result<bool> {
    let pragma = |name: &str| conn.query_row(&format!("PRAGMA {name}"), (), |row| row.get::<_, i64>(0));
    let found = pragma("user_version")?;
    if found > BEYOND {
        return Err(Fault::NewerFormat { path: path.to_owned(), found, known: BEYOND }.into());
    }
    let tables: i64 = conn.query_row("SELECT count(*) FROM sqlite_schema", (), |row| row.get(0))?;
    if tables > 0 && pragma("application_id")? != APPLICATION_ID {
        return Err(Fault::Foreign(path.to_owned()).into());
    }
    Ok(tables == 0)
}

/// Returns the fault for an eventlog that had events and is missing or empty.
pub(super) fn lost() -> LogFault {
    Fault::LostTail("eventlog.db is missing or empty, and had events".to_owned()).into()
}

/// Creates the tables of an empty eventlog of our own.
pub(super) fn create(conn: Connection) -> Result<()> {
    conn.execute_batch("BEGIN IMMEDIATE")?;
    conn.execute_batch(TABLES)?;
    conn.execute("INSERT INTO base VALUES (0, ?1, 0)", [Digest::EMPTY.0])?;
    set_meta(&conn, "whose", "own")?;
    set_meta(&conn, "log_id", LogId::random().to_string())?;
    set_meta(&conn, "digests", vec![0; 3 * Tally::BYTES])?;
    conn.execute_batch(&format!("PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT}; COMMIT"))?;
    Ok(())
}

pub(super) fn meta<T: rusqlite::types::FromSql>(conn: &Connection, key: &str) -> Result<Option<T>> {
    let value = conn.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0)).optional()?;
    Ok(value.flatten())
}

pub(super) fn set_meta(conn: &Connection, key: &str, value: impl rusqlite::ToSql) -> Result<()> {
    let sql = "INSERT INTO meta VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
    conn.prepare_cached(sql)?.execute(params![key, value])?;
    Ok(())
}

pub(super) fn whose(conn: &Connection) -> Result<Whose> {
    let id = meta::<String>(conn, "log_id")?.and_then(|text| LogId::parse(&text));
    match (meta::<String>(conn, "whose")?.as_deref(), id) {
        (Some("own"), Some(id)) => Ok(Whose::Own(id)),
        (Some("upstream"), id) => Ok(Whose::Upstream(id)),
        (other, _) => Err(damaged(format!("it doesn't say whose log it is: {other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::engine::opening::{Alone, beside};

    #[test]
    fn a_snapshot_of_any_format_can_not_write() {
        let scratch = tempfile::tempdir().expect("a directory");
        let old = scratch.path().join("old.db");
        let found =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/format-1/lone-killed/stores/likes/eventlog.db");
        for suffix in ["", "-wal"] {
            fs::copy(beside(&found, suffix), beside(&old, suffix)).expect("a copy");
        }
        let new = scratch.path().join("new.db");
        let alone = Alone::in_dir(scratch.path()).expect("nobody else");
        drop(Eventlog::open(&new, true, &alone).expect("an eventlog"));
        drop(alone);
        for path in [old, new] {
            let log = Eventlog::snapshot(&path).expect("a snapshot");
            let written = log.conn.execute("DELETE FROM main.meta", ());
            let code = written.expect_err("a snapshot wrote").sqlite_error_code();
            assert_eq!(code, Some(rusqlite::ErrorCode::ReadOnly), "{}", path.display());
        }
    }
}
