//! Connects to a store's databases through SQLite. Decides how durable commits are and when a WAL is checkpointed.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::hooks::Wal;
use rusqlite::{Connection, OpenFlags};

use super::error::{Database, Fault, is_failed_sync};
use super::opening::Visitor;
use crate::limits::engine::files::{BUSY, CHECKPOINT_PAGES, LONGEST_WAL, OVERDUE_PAGES};

/// The oldest SQLite that may open our files, as a `sqlite3_libversion_number`. Older versions can corrupt a database
/// in WAL mode: <https://sqlite.org/wal.html#walresetbug>.
const OLDEST_SQLITE: i32 = 3_051_003;

/// Refuses to run with a version of SQLite that isn't safe.
pub(crate) fn check_sqlite() -> Result<(), Fault> {
    if rusqlite::version_number() < OLDEST_SQLITE {
        return Err(Fault::OldSqlite(rusqlite::version()));
    }
    Ok(())
}

/// Keeps SQLite from re-preparing a statement for a better plan when another value is bound to it. So a statement has
/// the same plan on every replica.
fn keep_plans(conn: &Connection) -> rusqlite::Result<()> {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(drop)
}

/// Settings that decide what a statement does. They must be the same wherever events are applied, or states would
/// differ.
const MEANING: &str = "PRAGMA foreign_keys = ON; PRAGMA temp_store = MEMORY; PRAGMA trusted_schema = OFF;";

/// Connects to an existing database.
///
/// This process has exclusive access: other processes find the database locked. So the index of the WAL is in this
/// process's memory instead of a mapped file. On a full disk, touching a mapped file kills the process. Connections of
/// one process still share the index (<https://sqlite.org/vfs.html#unix_excl>). Each of them must be able to write,
/// because a read-only connection would weaken the lock of all.
pub(crate) fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = if cfg!(unix) {
        Connection::open_with_flags_and_vfs(path, flags, "unix-excl")?
    } else {
        Connection::open_with_flags(path, flags)?
    };
    conn.busy_timeout(BUSY)?;
    checkpoint_on_close(&conn, false)?;
    keep_plans(&conn)?;
    conn.execute_batch(MEANING)?;
    Ok(conn)
}

/// Sets whether closing this connection, if it is the last, moves the WAL into the database and deletes it. Only an
/// orderly end may do so. After a fault, and while the WAL may not be the right one, the WAL has to stay as it is.
pub(crate) fn checkpoint_on_close(conn: &Connection, does: bool) -> rusqlite::Result<()> {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, !does).map(drop)
}

/// Sets up a connection for writing in WAL mode, and checks that SQLite has applied the settings. There are no
/// automatic checkpoints: see [`checkpoint`] and [`checkpoint_on_close`].
pub(crate) fn set_up(conn: &mut Connection, path: &Path, database: Database) -> Result<Arc<WalGauge>, Fault> {
    let fault = |source| Fault::sqlite(database, source);
    let mode: String = conn.query_row("PRAGMA journal_mode = WAL", (), |row| row.get(0)).map_err(fault)?;
    expect(path, "journal_mode = wal", &mode)?;
    let (pragma, wanted) = match database {
        // A commit is on the disk when it returns.
        Database::Eventlog => ("PRAGMA synchronous = FULL", "synchronous = 2"),
        // A commit survives the process. A power cut may undo the last commits, but never part of one.
        Database::State => ("PRAGMA synchronous = NORMAL", "synchronous = 1"),
    };
    conn.execute_batch(pragma).map_err(fault)?;
    conn.execute_batch("PRAGMA cell_size_check = ON; PRAGMA checkpoint_fullfsync = ON")
        .and_then(|()| conn.query_row(&format!("PRAGMA journal_size_limit = {LONGEST_WAL}"), (), |_| Ok(())))
        .map_err(fault)?;
    let found: i64 = conn.query_row("PRAGMA synchronous", (), |row| row.get(0)).map_err(fault)?;
    expect(path, wanted, &found.to_string())?;
    WalGauge::on(conn, path).map_err(fault)
}

/// Opens an in-memory database in which statements mean the same as in a file.
pub(crate) fn open_in_memory() -> rusqlite::Result<Connection> {
    let conn = Connection::open_in_memory()?;
    keep_plans(&conn)?;
    conn.execute_batch(MEANING)?;
    Ok(conn)
}

fn expect(path: &Path, wanted: &'static str, found: &str) -> Result<(), Fault> {
    if wanted.split(" = ").last() == Some(found) {
        return Ok(());
    }
    Err(Fault::Pragma { path: path.to_owned(), wanted, found: found.to_owned() })
}

/// A connection that reads beside the one that writes, in the same process.
pub(crate) struct Beside {
    conn: Connection,
    /// Dropped after the connection.
    _visitor: Visitor,
}

impl Beside {
    /// Connects to the existing database at `path`.
    pub(crate) fn open(path: &Path) -> rusqlite::Result<Self> {
        let visitor = Visitor::enter(path.parent().unwrap_or(Path::new("")));
        Ok(Self { conn: connect(path)?, _visitor: visitor })
    }

    /// Forbids writes through this connection, which is only going to read.
    pub(crate) fn only_read(&self) -> rusqlite::Result<()> {
        self.conn.execute_batch("PRAGMA query_only = ON")
    }
}

impl Deref for Beside {
    type Target = Connection;
    fn deref(&self) -> &Connection {
        &self.conn
    }
}

/// Moves committed pages from the WAL into the database file, as far as possible without waiting.
///
/// This uses a connection of its own and can run beside the writer thread. Inside the commit path it would double the
/// time of the slowest commits.
fn checkpoint(path: &Path) -> rusqlite::Result<()> {
    let conn = connect(path)?;
    conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", (), |_| Ok(()))
}

/// The size of a database's WAL, as its connection sees it, and how much of it was moved into the database.
#[derive(Debug)]
pub(crate) struct WalGauge {
    path: PathBuf,
    pages: AtomicU32,
    /// How many pages the WAL had at the last checkpoint.
    checkpointed: AtomicU32,
    is_claimed: AtomicBool,
    has_failed: AtomicBool,
}

impl WalGauge {
    /// Measures the WAL of `conn` at each commit.
    pub(crate) fn on(conn: &mut Connection, path: &Path) -> rusqlite::Result<Arc<Self>> {
        let gauge = Arc::new(Self {
            path: path.to_owned(),
            pages: AtomicU32::new(0),
            checkpointed: AtomicU32::new(0),
            is_claimed: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
        });
        let told = Arc::clone(&gauge);
        conn.wal_hook(Some(move |_: &mut Wal, pages: i32| {
            let pages = u32::try_from(pages).unwrap_or_default();
            if pages < told.pages.swap(pages, Ordering::Relaxed) {
                // All of the WAL was in the database, and SQLite started over at its beginning.
                told.checkpointed.store(0, Ordering::Relaxed);
            }
            Ok(())
        }))?;
        Ok(gauge)
    }

    /// Checkpoints the database on this thread, if there is enough to do.
    pub(crate) fn checkpoint_if_due(&self) -> rusqlite::Result<()> {
        if self.is_due() { self.checkpoint() } else { Ok(()) }
    }

    /// Checkpoints the database on this thread.
    pub(crate) fn checkpoint(&self) -> rusqlite::Result<()> {
        self.checkpointed.store(self.pages.load(Ordering::Relaxed), Ordering::Relaxed);
        let result = checkpoint(&self.path);
        if result.as_ref().is_err_and(is_failed_sync) {
            self.has_failed.store(true, Ordering::Release);
        }
        result
    }

    /// Returns whether a checkpoint failed to sync. It may be the only one to learn that data written by somebody else
    /// is not on the disk.
    pub(crate) fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Acquire)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns whether enough was written since the last checkpoint to make the next one worth its fsyncs.
    fn is_due(&self) -> bool {
        let (pages, checkpointed) = (self.pages.load(Ordering::Relaxed), self.checkpointed.load(Ordering::Relaxed));
        pages.saturating_sub(checkpointed) >= CHECKPOINT_PAGES
    }

    /// Returns true once when a checkpoint is due, and then false until a [release](Self::release).
    pub(crate) fn claim(&self) -> bool {
        self.is_due() && !self.is_claimed.swap(true, Ordering::Relaxed)
    }

    pub(crate) fn release(&self) {
        self.is_claimed.store(false, Ordering::Relaxed);
    }

    /// Waits until no other thread checkpoints the database, and prevents further checkpoints. SQLite finds a WAL by
    /// its name, so a checkpoint that runs while the file is replaced would mistake the new file's WAL for the old
    /// one's.
    pub(crate) fn retire(&self) {
        while self.is_claimed.swap(true, Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Returns whether the WAL has grown so large that its writer has to pause for a checkpoint. After the checkpoint,
    /// the WAL can start over at its beginning.
    pub(crate) fn is_overdue(&self) -> bool {
        self.is_due() && self.pages.load(Ordering::Relaxed) >= OVERDUE_PAGES
    }
}
