//! How a store's files are made, replaced and found again. A power cut at any step leaves something that opens, and
//! nothing is believed that may not be on the disk.
//!
//! - *What is found may never have been synced*: its writer may have been killed before it came to that. Nor does a
//!   sync of ours prove anything, because Linux marks pages clean that it could not write, and the next sync succeeds
//!   without them (Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020). So what SQLite
//!   would take from a WAL is [written again](secure), into a new file, before SQLite sees it.
//! - *A database is made whole under another name*, and gets its own when it is on the disk.
//! - *Files are replaced while nobody has them open*: SQLite finds a WAL by its name, and an open and a close of a
//!   database beside its connections would drop their locks.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard};

use rusqlite::Connection;

use super::error::{Database, Fault, IoContext};
use super::files::{open_private_file, sync_dir, sync_parent};
use super::storage::{checkpoint_on_close, connect};
use crate::limits::engine::files::{PATIENCE, PIECE};

/// Who has the databases of a directory open in this process, besides the one that writes to them.
#[derive(Debug, Default)]
struct Visits {
    visitors: usize,
    is_closed: bool,
}

static VISITS: LazyLock<(Mutex<HashMap<PathBuf, Visits>>, Condvar)> = LazyLock::new(Default::default);

fn visits() -> MutexGuard<'static, HashMap<PathBuf, Visits>> {
    VISITS.0.lock().expect("BUG: counting visitors panicked")
}

/// Somebody who reads the databases of a directory beside the one that writes. While there is one, no file is replaced.
#[derive(Debug)]
pub(crate) struct Visitor(PathBuf);

impl Visitor {
    /// Waits while files of `dir` are being replaced.
    pub(crate) fn enter(dir: &Path) -> Self {
        let is_closed = |all: &mut HashMap<PathBuf, Visits>| all.get(dir).is_some_and(|found| found.is_closed);
        let mut all = VISITS.1.wait_while(visits(), is_closed).expect("BUG: counting visitors panicked");
        all.entry(dir.to_owned()).or_default().visitors += 1;
        Self(dir.to_owned())
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        leave(&self.0, |found| found.visitors -= 1);
    }
}

/// That nobody has the databases of a directory open in this process, and nobody is going to.
#[derive(Debug)]
pub(crate) struct Alone(PathBuf);

impl Alone {
    /// Waits until the last visitor has left. The writer has closed its databases before.
    ///
    /// # Errors
    ///
    /// When somebody is still reading after half a minute.
    pub(crate) fn in_dir(dir: &Path) -> Result<Self, Fault> {
        let is_taken = |all: &mut HashMap<PathBuf, Visits>| all.contains_key(dir);
        let waited = VISITS.1.wait_timeout_while(visits(), PATIENCE, is_taken);
        let (mut all, timed_out) = waited.expect("BUG: counting visitors panicked");
        if timed_out.timed_out() {
            let busy = io::Error::other("somebody is still reading its databases; this is tried again");
            return Err(busy).doing("replace files in", dir);
        }
        all.insert(dir.to_owned(), Visits { visitors: 0, is_closed: true });
        Ok(Self(dir.to_owned()))
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        leave(&self.0, |found| found.is_closed = false);
    }
}

fn leave(dir: &Path, change: impl FnOnce(&mut Visits)) {
    let mut all = visits();
    if let Some(found) = all.get_mut(dir) {
        change(found);
        if found.visitors == 0 && !found.is_closed {
            all.remove(dir);
        }
    }
    VISITS.1.notify_all();
}

/// Makes durable whatever is found of the database at `path`, so that what is read from it now is there after a power
/// cut. Nothing is done where there is no database.
///
/// The database file itself needs no more than a sync. SQLite gives up a WAL only after it has synced all of it into the
/// database, so what a failed sync may have left out of the file is in the WAL still.
///
/// # Errors
///
/// When a file can't be written or synced. All is as it was then, and still may not be on the disk.
pub(crate) fn secure(path: &Path, _alone: &Alone) -> Result<(), Fault> {
    if !path.try_exists().doing("look at", path)? {
        return Ok(());
    }
    let wal = beside(path, "-wal");
    if wal.try_exists().doing("look at", &wal)? {
        write_again(&wal)?;
    }
    File::open(path).and_then(|file| file.sync_all()).doing("make durable", path)?;
    sync_parent(path)
}

/// Makes an empty WAL where there is none, durably. SQLite would make it, too, but believe that its name is on the disk
/// when it isn't: it ignores that the directory could not be synced.
///
/// # Errors
///
/// When the file or the directory can't be written or synced.
pub(crate) fn provide_wal(path: &Path, _alone: &Alone) -> Result<(), Fault> {
    let wal = beside(path, "-wal");
    if wal.try_exists().doing("look at", &wal)? {
        return Ok(());
    }
    open_private_file(&wal)?.sync_all().doing("make durable", &wal)?;
    sync_parent(&wal)
}

/// Writes a file again: the same bytes, but surely on the disk.
///
/// A copy takes its place, which also gets away from a part of the disk that takes no writes any more. Where there is no room
/// for one, the file is written over itself: each sector is what it was or what was found in it, so that does no harm.
fn write_again(path: &Path) -> Result<(), Fault> {
    let new = beside(path, ".new");
    let mut written = copy(path, &new).and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        // It may be what fills the disk.
        drop(fs::remove_file(&new));
    }
    if written.as_ref().is_err_and(|error| matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)) {
        written = write_over(path);
    }
    written.doing("write again what was found in", path)?;
    sync_parent(path)
}

fn copy(path: &Path, to: &Path) -> io::Result<()> {
    let mut to = open_private_file(to).map_err(|fault| match fault {
        Fault::Io { source, .. } => source,
        other => io::Error::other(other),
    })?;
    to.set_len(0)?;
    each_piece(&mut File::open(path)?, |_, piece| to.write_all(piece))?;
    to.sync_all()
}

fn write_over(path: &Path) -> io::Result<()> {
    let mut to = OpenOptions::new().write(true).open(path)?;
    each_piece(&mut File::open(path)?, |at, piece| {
        to.seek(SeekFrom::Start(at))?;
        to.write_all(piece)
    })?;
    to.sync_all()
}

/// Shows `each` of the pieces of a file, and where it begins.
fn each_piece(file: &mut File, mut each: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<()> {
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(PIECE);
    let mut piece = vec![0; length.clamp(1, PIECE)];
    let mut at = 0;
    loop {
        let read = file.read(&mut piece)?;
        if read == 0 {
            return Ok(());
        }
        each(at, &piece[..read])?;
        at += read as u64;
    }
}

/// Makes a database at `path` and replaces whatever is there. `fill` makes its content, and closes the
/// connection.
///
/// # Errors
///
/// Those of `fill`, and when a file can't be written or synced. Then there is no database at `path`, or the old one.
pub(crate) fn make_database(
    database: Database,
    path: &Path,
    _alone: &Alone,
    fill: impl FnOnce(Connection) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let new = beside(path, ".new");
    remove_files(&new)?;
    open_private_file(&new)?;
    // It is synced below, once, as a whole.
    let fault = |source| Fault::sqlite(database, source);
    let conn = connect(&new).map_err(fault)?;
    checkpoint_on_close(&conn, true).map_err(fault)?;
    conn.execute_batch("PRAGMA synchronous = OFF").map_err(fault)?;
    conn.query_row("PRAGMA journal_mode = WAL", (), |_| Ok(())).map_err(fault)?;
    fill(conn)?;
    // SQLite moves the WAL into the database as it closes that, and tells nobody when it can't.
    if beside(&new, "-wal").try_exists().doing("look at", &new)? {
        return Err(io::Error::other("not all of it could be written; the disk may be full")).doing("make", &new);
    }
    File::open(&new).and_then(|file| file.sync_all()).doing("make durable", &new)?;
    remove_database(path)?;
    fs::rename(&new, path).doing("put a new database in the place of", path)?;
    sync_parent(path)
}

/// Deletes a database with everything that SQLite keeps beside it.
///
/// The database goes first, durably: without its WAL it would be a mixture of what it was at different times.
///
/// # Errors
///
/// When a file can't be deleted.
pub(crate) fn remove_database(path: &Path) -> Result<(), Fault> {
    remove_file(path)?;
    sync_parent(path)?;
    remove_files(path)?;
    sync_parent(path)
}

fn remove_files(path: &Path) -> Result<(), Fault> {
    ["", "-wal", "-shm", "-journal"].iter().try_for_each(|suffix| remove_file(&beside(path, suffix)))
}

fn remove_file(path: &Path) -> Result<(), Fault> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).doing("delete", path),
        _ => Ok(()),
    }
}

/// Makes durable the names of `dir` and of the two directories above it. Whatever made them may have died before it
/// could.
///
/// # Errors
///
/// When a directory can't be synced.
pub(crate) fn secure_names(dir: &Path) -> Result<(), Fault> {
    dir.ancestors().take(3).filter(|dir| !dir.as_os_str().is_empty()).try_for_each(sync_dir)
}

/// The file that has the name of `path` with `suffix` behind it.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}
