//! Files: how a store's databases are made and opened, and what can be wrong with them.

use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::hooks::Wal;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::files::NotOurs;
use super::opening::Visitor;
use super::sandbox::{DbError, is_damage, is_of_machine};

/// The oldest SQLite that may touch our files, as `sqlite3_libversion_number` counts. Older ones can corrupt a
/// database in WAL mode: <https://sqlite.org/wal.html#walresetbug>.
const OLDEST_SQLITE: i32 = 3_051_003;

/// How long SQLite waits for another process that holds a lock, say the `sqlite3` shell of a curious person.
const BUSY: Duration = Duration::from_secs(2);

/// How much is written to a WAL, in pages of 4 KiB, before it is moved into its database: the more, the more often a page
/// was overwritten meanwhile and is moved once for all.
const CHECKPOINT_PAGES: u32 = 4_000;

/// How long it may get before that can't be left to another thread any more.
const OVERDUE_PAGES: u32 = 16_000;

/// How many bytes a WAL keeps when it begins again from its start. A reader can make it longer for a while; shorter, each
/// round would pay for making the file longer again.
const LONGEST_WAL: u64 = OVERDUE_PAGES as u64 * 4_096;

/// What stops a store. None of these is an event's fault, and none of them loses what was acknowledged.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The operating system refused something.
    #[error("cannot {doing} {}: {source}{}", path.display(), make_room(source))]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// SQLite refused something for a reason that is not an event's.
    #[error("{file}: {source}{}", what_to_do(source))]
    Sqlite {
        /// Which of the store's databases.
        file: &'static str,
        /// SQLite's answer.
        source: rusqlite::Error,
    },
    /// The eventlog holds what can't be right.
    #[error(
        "the eventlog is damaged: {0}. Nothing was changed, and nothing is added to it. Restore this store from a backup, \
         or have it made again from the other devices: docs/repair.md has the steps. `likewise export` writes out what can \
         still be read"
    )]
    Damaged(String),
    /// The eventlog ends before events that it is known to have held.
    #[error(
        "the eventlog has lost its end: {0}. Nothing was changed. If eventlog.db-wal was moved or an older file was put \
         in its place, put the right one back; otherwise restore a backup. To go on with what is left, delete the \
         files `witness` and `state.db` of this store"
    )]
    LostTail(String),
    /// A directory or file isn't ours to use.
    #[error(transparent)]
    NotOurs(#[from] NotOurs),
    /// The files were written by a later version of this program.
    #[error(
        "{} has format {found} and this version of likewise knows formats up to {known}: nothing was changed. \
         Upgrade likewise to open it", path.display()
    )]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// The newest that this program can read.
        known: i64,
    },
    /// The file is a database of something else.
    #[error("{} is not an eventlog of likewise: nothing was changed. Move it away, or choose another directory with --data", .0.display())]
    Foreign(PathBuf),
    /// The program was linked with an SQLite that can corrupt our files.
    #[error("SQLite {0} can corrupt a database in WAL mode; likewise needs 3.51.3 or newer")]
    OldSqlite(&'static str),
    /// SQLite did not do as it was told, so nothing can be promised.
    #[error("{}: asked SQLite for {wanted}, and it says {found}", path.display())]
    Pragma {
        /// The file.
        path: PathBuf,
        /// The setting that was asked for.
        wanted: &'static str,
        /// The setting that it has.
        found: String,
    },
    /// The schema itself breaks a rule.
    #[error("the schema can't be used: {0}")]
    Schema(#[from] DbError),
    /// An earlier fault has stopped the store.
    #[error("an earlier fault stopped this store; it has to be opened again")]
    Stopped,
    /// A checkpoint could not sync, so it isn't known what is on the disk.
    #[error(
        "a checkpoint of {} could not be synced, so the store is opened again. The disk may be failing: look into the \
         system's log", .0.display()
    )]
    Unsynced(PathBuf),
    /// The program's own code panicked.
    #[error(
        "likewise failed in the middle of its work ({0}), so the store is opened again. This is a bug: please report it"
    )]
    Panicked(String),
    /// The files are no longer where they were when they were opened.
    #[error(
        "the files of this store in {} were removed or replaced while it was open. Put them back, or restore a backup, \
         and start likewise again", .0.display()
    )]
    Gone(PathBuf),
}

impl Fault {
    pub(crate) fn eventlog(source: rusqlite::Error) -> Self {
        // What the engine itself finds comes wrapped, because SQLite's errors are all that its reading knows.
        if let rusqlite::Error::FromSqlConversionFailure(_, _, what) = &source {
            return Self::Damaged(what.to_string());
        }
        if is_damage(&source) || source.sqlite_error().is_none() {
            return Self::Damaged(source.to_string());
        }
        Self::Sqlite { file: "eventlog.db", source }
    }

    pub(crate) fn state(source: rusqlite::Error) -> Self {
        Self::Sqlite { file: "state.db", source }
    }

    /// What SQLite says of the database at `path`.
    pub(crate) fn sqlite(path: &Path, source: rusqlite::Error) -> Self {
        if path.ends_with("state.db") { Self::state(source) } else { Self::eventlog(source) }
    }

    /// Whether nothing failed but a write for which there was no room, or which the disk refused. Every sync succeeded
    /// then, so what SQLite has committed is on the disk; after any other fault nobody knows.
    pub(crate) fn leaves_synced(&self) -> bool {
        use rusqlite::ffi::{SQLITE_FULL, SQLITE_IOERR_WRITE};
        match self {
            Self::Sqlite { source, .. } => {
                source.sqlite_error().is_some_and(|code| matches!(code.extended_code, SQLITE_FULL | SQLITE_IOERR_WRITE))
            }
            _ => false,
        }
    }

    /// Whether `state.db` is what is damaged, which costs nothing but the time to rebuild it.
    pub(crate) fn is_damaged_state(&self) -> bool {
        matches!(self, Self::Sqlite { file: "state.db", source } if is_damage(source) || !is_of_machine(source))
    }
}

/// What to do about a system's answer that is about room.
fn make_room(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ". Make room on the disk",
        _ => "",
    }
}

/// SQLite says "disk I/O error" of most of what a full disk makes go wrong.
fn what_to_do(error: &rusqlite::Error) -> &'static str {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull | ErrorCode::SystemIoFailure) => {
            ". The disk may be full or failing: make room on it, or look into the system's log"
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            ". Another program has it open: end that, and this goes on by itself"
        }
        _ => "",
    }
}

/// Turns the operating system's errors into ours.
pub(crate) trait IoContext<T> {
    fn doing(self, doing: &'static str, path: &Path) -> Result<T, Fault>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn doing(self, doing: &'static str, path: &Path) -> Result<T, Fault> {
        self.map_err(|source| Fault::Io { doing, path: path.to_owned(), source })
    }
}

/// Refuses to go on with an SQLite that isn't safe.
pub(crate) fn check_sqlite() -> Result<(), Fault> {
    if rusqlite::version_number() < OLDEST_SQLITE {
        return Err(Fault::OldSqlite(rusqlite::version()));
    }
    Ok(())
}

/// Keeps SQLite from preparing a statement anew whenever another value is bound to it, in the hope of a better plan. So a
/// statement has one plan, on every replica.
fn keep_plans(conn: &Connection) -> rusqlite::Result<()> {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(drop)
}

/// Settings that decide what a statement does: the same wherever events are applied, or the states would differ.
const MEANING: &str = "PRAGMA foreign_keys = ON; PRAGMA temp_store = MEMORY; PRAGMA trusted_schema = OFF;";

/// How durable a database's commits are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// A commit is on disk when it returns.
    Full,
    /// A commit survives the process; a power cut may undo the last ones, never part of one.
    Normal,
}

/// Connects to a database that exists.
///
/// This process has it alone: other processes find it locked. So the index of the WAL is in this process's memory, and
/// not in a file that is mapped into it; on a full disk such a file kills whoever touches it. Connections of one
/// process share it all the same (<https://sqlite.org/vfs.html#unix_excl>); each of them has to be able to write, because
/// a read-only one would weaken the lock of all.
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

/// Says on a connection whether its closing, if it is the last, moves the WAL into the database and deletes it. That is
/// for an end in good order alone: after a fault, and while it isn't known whether the WAL is the right one, it has to
/// stay as it is.
pub(crate) fn checkpoint_on_close(conn: &Connection, does: bool) -> rusqlite::Result<()> {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, !does).map(drop)
}

/// Sets up a connection to write: in WAL mode, and so that SQLite does as it is told, which is checked. Nothing
/// checkpoints on its own: see [`checkpoint`] and [`checkpoint_on_close`].
pub(crate) fn set_up(conn: &mut Connection, path: &Path, durability: Durability) -> Result<Arc<WalGauge>, Fault> {
    let fault = |source| Fault::sqlite(path, source);
    let mode: String = conn.query_row("PRAGMA journal_mode = WAL", (), |row| row.get(0)).map_err(fault)?;
    expect(path, "journal_mode = wal", &mode)?;
    let (pragma, wanted) = match durability {
        Durability::Full => ("PRAGMA synchronous = FULL", "synchronous = 2"),
        Durability::Normal => ("PRAGMA synchronous = NORMAL", "synchronous = 1"),
    };
    conn.execute_batch(pragma).map_err(fault)?;
    conn.execute_batch("PRAGMA cell_size_check = ON; PRAGMA checkpoint_fullfsync = ON")
        .and_then(|()| conn.query_row(&format!("PRAGMA journal_size_limit = {LONGEST_WAL}"), (), |_| Ok(())))
        .map_err(fault)?;
    let found: i64 = conn.query_row("PRAGMA synchronous", (), |row| row.get(0)).map_err(fault)?;
    expect(path, wanted, &found.to_string())?;
    WalGauge::on(conn, path).map_err(fault)
}

/// Opens a database in memory in which statements mean what they mean in a file.
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
    /// Goes after the connection.
    _visitor: Visitor,
}

impl Beside {
    /// Connects to the database at `path`, which exists.
    pub(crate) fn open(path: &Path) -> rusqlite::Result<Self> {
        let visitor = Visitor::enter(path.parent().unwrap_or(Path::new("")));
        Ok(Self { conn: connect(path)?, _visitor: visitor })
    }

    /// Makes sure that nothing is written through this connection, since it is about to read.
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

/// Moves what is committed from the WAL into the database file, as far as that needs no waiting.
///
/// Through a connection of its own, so that it can run beside the thread that writes: inside the commit path it would
/// double the time of the slowest commits.
fn checkpoint(path: &Path) -> rusqlite::Result<()> {
    let conn = connect(path)?;
    conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", (), |_| Ok(()))
}

/// Whether a sync failed, after which the page cache holds what the disk doesn't.
fn is_failed_sync(error: &rusqlite::Error) -> bool {
    use rusqlite::ffi::{SQLITE_IOERR, SQLITE_IOERR_WRITE};
    let is_io = |code: &rusqlite::ffi::Error| code.extended_code & 0xff == SQLITE_IOERR;
    error.sqlite_error().is_some_and(|code| is_io(code) && code.extended_code != SQLITE_IOERR_WRITE)
}

/// How far a database's WAL has grown, as its connection sees it, and how much of that was moved into the database.
#[derive(Debug)]
pub(crate) struct WalGauge {
    path: PathBuf,
    pages: AtomicU32,
    /// How many pages it had when it was checkpointed last.
    checkpointed: AtomicU32,
    is_claimed: AtomicBool,
    has_failed: AtomicBool,
}

impl WalGauge {
    /// Measures the WAL of `conn` at each of its commits.
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
                // All of it was in the database, and it began again from its start.
                told.checkpointed.store(0, Ordering::Relaxed);
            }
            Ok(())
        }))?;
        Ok(gauge)
    }

    /// Checkpoints the database, on this thread, if there is enough to do.
    pub(crate) fn checkpoint_if_due(&self) -> rusqlite::Result<()> {
        if self.is_due() { self.checkpoint() } else { Ok(()) }
    }

    /// Checkpoints the database, on this thread.
    pub(crate) fn checkpoint(&self) -> rusqlite::Result<()> {
        self.checkpointed.store(self.pages.load(Ordering::Relaxed), Ordering::Relaxed);
        let result = checkpoint(&self.path);
        if result.as_ref().is_err_and(is_failed_sync) {
            self.has_failed.store(true, Ordering::Release);
        }
        result
    }

    /// Whether a checkpoint could not sync. It may have been the one to learn that what somebody else has written is not
    /// on the disk.
    pub(crate) fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Acquire)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether so much was written since the last checkpoint that the next is worth its fsyncs.
    fn is_due(&self) -> bool {
        let (pages, checkpointed) = (self.pages.load(Ordering::Relaxed), self.checkpointed.load(Ordering::Relaxed));
        pages.saturating_sub(checkpointed) >= CHECKPOINT_PAGES
    }

    /// True once when it is time to checkpoint, and then not before a [release](Self::release).
    pub(crate) fn claim(&self) -> bool {
        self.is_due() && !self.is_claimed.swap(true, Ordering::Relaxed)
    }

    pub(crate) fn release(&self) {
        self.is_claimed.store(false, Ordering::Relaxed);
    }

    /// Waits until no other thread checkpoints the database, and keeps it so. SQLite finds a WAL by its name, so a
    /// checkpoint that runs while the file is replaced would take the new one's WAL for the old one's.
    pub(crate) fn retire(&self) {
        while self.is_claimed.swap(true, Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether the WAL has grown so far that its writer has to pause for a checkpoint, so that it can begin again from
    /// its start.
    pub(crate) fn is_overdue(&self) -> bool {
        self.is_due() && self.pages.load(Ordering::Relaxed) >= OVERDUE_PAGES
    }
}
