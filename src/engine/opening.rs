//! Creates, replaces and reopens a store's files. A power cut at any step leaves files that open. Nothing counts as
//! stored while it may not be on the disk.
//!
//! - *Existing files may never have been synced*: their writer may have been killed before it got that far. A sync of
//!   ours proves nothing either. Linux marks pages clean that it could not write, and the next sync succeeds without
//!   them (Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020). So whatever SQLite would
//!   take from a WAL is [rewritten](secure) into a new file before SQLite sees it.
//! - *A database is completed under another name*, and gets its own name once it is on the disk.
//! - *Files are replaced only while nobody has them open*: SQLite finds a WAL by its name. Also, opening and closing a
//!   database file beside SQLite's connections would drop their locks.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard};

use rusqlite::Connection;

use super::error::{Database, Fault, IoContext};
use super::eventlog::BaseFile;
use super::files::{open_private_file, open_to_read, sync_dir, sync_parent};
use super::place::Digest;
use super::storage::{checkpoint_on_close, connect};
use crate::limits::engine::files::{PATIENCE, PIECE};

/// The readers that have the databases of a directory open in this process, besides the writer.
#[derive(Debug, Default)]
struct Visits {
    visitors: usize,
    is_closed: bool,
}

static VISITS: LazyLock<(Mutex<HashMap<PathBuf, Visits>>, Condvar)> = LazyLock::new(Default::default);

fn visits() -> MutexGuard<'static, HashMap<PathBuf, Visits>> {
    VISITS.0.lock().expect("BUG: counting visitors panicked")
}

/// A reader of the databases of a directory, beside the writer. While there is one, no file is replaced.
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

/// Proof that nobody in this process has the databases of a directory open, and that readers have to wait.
#[derive(Debug)]
pub(crate) struct Alone(PathBuf);

impl Alone {
    /// Waits until the last visitor has left. The writer must have closed its databases before.
    ///
    /// # Errors
    ///
    /// Fails if somebody is still reading after half a minute.
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

/// Makes the existing files of the database at `path` durable, so whatever is read from it now survives a power cut.
/// Does nothing if there is no database.
///
/// The database file itself only needs a sync. SQLite discards a WAL only after it has synced all of it into the
/// database, so anything that a failed sync left out of the file is still in the WAL.
///
/// # Errors
///
/// Fails if a file can't be written or synced. The content is unchanged then, and may still not be on the disk.
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

/// Durably creates an empty WAL if there is none. SQLite would create it, too. But it ignores a failed sync of the
/// directory, and then takes the WAL's name to be on the disk when it isn't.
///
/// # Errors
///
/// Fails if the file or the directory can't be written or synced.
pub(crate) fn provide_wal(path: &Path, _alone: &Alone) -> Result<(), Fault> {
    let wal = beside(path, "-wal");
    if wal.try_exists().doing("look at", &wal)? {
        return Ok(());
    }
    open_private_file(&wal)?.sync_all().doing("make durable", &wal)?;
    sync_parent(&wal)
}

/// Rewrites a file with the same bytes, which are then certain to be on the disk.
///
/// A copy replaces the file. The copy also avoids a part of the disk that can't be written any more. If there is no
/// room for a copy, the file is overwritten in place. That does no harm: each sector keeps its old content or gets the
/// content that was read from it.
fn write_again(path: &Path) -> Result<(), Fault> {
    let new = beside(path, ".new");
    let mut written = copy(path, &new).and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        // The copy may be what fills the disk.
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

/// Calls `each` with every piece of a file and the offset at which it begins.
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

/// Creates a database at `path` and replaces any file that is there. `fill` writes its content and closes the
/// connection.
///
/// # Errors
///
/// Fails if `fill` does, or if a file can't be written or synced. Then `path` has the old database or none, and nothing is left
/// of the new one.
pub(crate) fn make_database(
    database: Database,
    path: &Path,
    _alone: &Alone,
    fill: impl FnOnce(Connection) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let new = beside(path, ".new");
    remove_files(&new)?;
    let made = open_private_file(&new).and_then(|_| complete(database, path, fill));
    made.inspect_err(|_| drop(remove_files(&new)))
}

/// Works like [`make_database`], with a database that begins as a copy of the file `from`. Returns false, and makes none, if
/// that file isn't what it should be.
///
/// # Errors
///
/// The same as for [`make_database`].
pub(crate) fn copy_database(
    database: Database,
    path: &Path,
    from: (&Path, &BaseFile),
    _alone: &Alone,
    fill: impl FnOnce(Connection) -> Result<(), Fault>,
) -> Result<bool, Fault> {
    let new = beside(path, ".new");
    remove_files(&new)?;
    let is_right = copy_file(&new, from)?;
    if is_right {
        complete(database, path, fill).inspect_err(|_| drop(remove_files(&new)))?;
    }
    Ok(is_right)
}

/// Copies a file of ours to the new file `to`. Returns false, and leaves no copy, if the file isn't what it should be.
///
/// # Errors
///
/// Fails if a file can't be read or written, and leaves no copy.
pub(crate) fn copy_file(to: &Path, (from, expected): (&Path, &BaseFile)) -> Result<bool, Fault> {
    match open_to_read(from)? {
        Some(source) => copy_opened(to, (source, from), expected),
        None => Ok(false),
    }
}

/// Does the same for a file that is open already, and may have been deleted since.
pub(crate) fn copy_opened(to: &Path, (mut source, from): (File, &Path), expected: &BaseFile) -> Result<bool, Fault> {
    let mut copy = open_private_file(to)?;
    let (mut hasher, mut bytes) = (blake3::Hasher::new(), 0);
    let copied = each_piece(&mut source, |_, piece| {
        hasher.update(piece);
        bytes += piece.len() as u64;
        copy.write_all(piece)
    });
    let copied = copied.and_then(|()| copy.sync_all()).doing("copy", from);
    drop(copy);
    // What is left of it may be what fills the disk.
    copied.inspect_err(|_| drop(remove_file(to)))?;
    let is_right = (bytes, Digest(*hasher.finalize().as_bytes())) == (expected.bytes, expected.digest);
    if !is_right {
        remove_file(to)?;
    }
    Ok(is_right)
}

/// Has `fill` write the database that is being made for `path`, and puts it there.
fn complete(database: Database, path: &Path, fill: impl FnOnce(Connection) -> Result<(), Fault>) -> Result<(), Fault> {
    let new = beside(path, ".new");
    // The whole file is synced once, below.
    let fault = |source| Fault::sqlite(database, source);
    let conn = connect(&new).map_err(fault)?;
    checkpoint_on_close(&conn, true).map_err(fault)?;
    conn.execute_batch("PRAGMA synchronous = OFF").map_err(fault)?;
    conn.query_row("PRAGMA journal_mode = WAL", (), |_| Ok(())).map_err(fault)?;
    fill(conn)?;
    // SQLite moves the WAL into the database on close, and reports no error if it can't.
    if beside(&new, "-wal").try_exists().doing("look at", &new)? {
        let full = io::Error::new(ErrorKind::StorageFull, "not all of it could be written; the disk may be full");
        return Err(full).doing("make", &new);
    }
    File::open(&new).and_then(|file| file.sync_all()).doing("make durable", &new)?;
    remove_database(path)?;
    fs::rename(&new, path).doing("put a new database in the place of", path)?;
    sync_parent(path)
}

/// Durably moves a file of ours to `to`, which it replaces.
///
/// # Errors
///
/// Fails if the file can't be synced or moved. It may be in either place then.
pub(crate) fn put_in_place(from: &Path, to: &Path) -> Result<(), Fault> {
    File::open(from).and_then(|file| file.sync_all()).doing("make durable", from)?;
    fs::rename(from, to).doing("put a file in the place of", to)?;
    sync_parent(to)
}

/// Deletes a file, if it is there.
///
/// # Errors
///
/// Fails if it can't be deleted.
pub(crate) fn remove_file(path: &Path) -> Result<(), Fault> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).doing("delete", path),
        _ => Ok(()),
    }
}

/// Deletes a database with everything that SQLite keeps beside it.
///
/// The database file is durably deleted first. Without its WAL it would mix content from different times.
///
/// # Errors
///
/// Fails if a file can't be deleted.
pub(crate) fn remove_database(path: &Path) -> Result<(), Fault> {
    remove_file(path)?;
    sync_parent(path)?;
    remove_files(path)?;
    sync_parent(path)
}

fn remove_files(path: &Path) -> Result<(), Fault> {
    ["", "-wal", "-shm", "-journal"].iter().try_for_each(|suffix| remove_file(&beside(path, suffix)))
}

/// Makes the names of `dir` and of the two directories above it durable. The process that created them may have died
/// before it could.
///
/// # Errors
///
/// Fails if a directory can't be synced.
pub(crate) fn secure_names(dir: &Path) -> Result<(), Fault> {
    dir.ancestors().take(3).filter(|dir| !dir.as_os_str().is_empty()).try_for_each(sync_dir)
}

/// Returns `path` with `suffix` appended to its name.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}
