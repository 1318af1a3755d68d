//! Copies a store beside the thread that writes to it.

use std::fs::{self, File};
use std::io;

use rusqlite::types::{ToSqlOutput, ValueRef};

use super::error::{Fault, IoContext, LogFault};
use super::eventlog::Eventlog;
use super::files::{create_private_dir, open_private_file, open_to_read, sync_dir, sync_parent};
use super::opening::{copy_opened, remove_database, remove_file};
use super::setup::Files;
use super::storage::Beside;
use super::verify::check_log;
use super::witness::Witness;

/// Copies the store as of now to the directory `to`, which must not have one. The copy has the same log with the same
/// seqs. The state is left out, because it follows from the eventlog. A store that holds something other than what was
/// stored is not copied. If this fails, nothing is left at `to`.
///
/// # Errors
///
/// Fails if the store can't be read, or the copy can't be written.
pub fn backup(files: &Files, to: &Files) -> Result<(), Fault> {
    files.check()?;
    // Find faults of the store itself before anything is created. Their messages have the store's own path.
    drop(Eventlog::snapshot(&files.eventlog())?);
    if to.exist() {
        return Err(io::Error::from(io::ErrorKind::AlreadyExists)).doing("copy a store to", to.dir());
    }
    let is_new = !to.dir().exists();
    let copied = copy(files, to).map_err(Fault::from);
    if copied.is_err() {
        // A partial copy would open as a store that lacks some or all events.
        drop(remove_database(&to.eventlog()));
        drop(remove_file(&to.base()));
        drop(fs::remove_file(to.witness()));
        if is_new {
            drop(fs::remove_dir(to.dir()));
        }
    }
    copied
}

fn copy(files: &Files, to: &Files) -> Result<(), LogFault> {
    create_private_dir(to.dir())?;
    let target = to.eventlog();
    open_private_file(&target)?;
    let snapshot = open_to_read(&files.base())?;
    let conn = Beside::open(&files.eventlog())?;
    // SQLite takes the bytes of a path as they are, whether or not they are UTF-8.
    let path = ToSqlOutput::Borrowed(ValueRef::Text(target.as_os_str().as_encoded_bytes()));
    conn.execute("VACUUM INTO ?1", [path])?;
    File::open(&target).and_then(|file| file.sync_all()).doing("make durable", &target)?;
    // The copy gets a witness of its own. So the loss of its tail would be noticed, as in any store.
    let copy = Eventlog::snapshot(&target)?;
    // Data that the disk has changed must not replace an older copy that is right.
    let problems = check_log(&copy)?.into_iter().chain(copy.check_waiting()?);
    if let Some(problem) = problems.into_iter().next() {
        return Err(Fault::Damaged(problem).into());
    }
    // The state is left out, and can't be made without the snapshot where the log begins. The thread that writes deletes the
    // snapshot once it needs it no more.
    if let Some(file) = copy.base_file()?.filter(|_| !copy.tip().is_whole()) {
        let is_copied = match snapshot {
            Some(snapshot) => copy_opened(&to.base(), (snapshot, &files.base()), &file)?,
            None => false,
        };
        if !is_copied {
            return Err(Fault::Moved(files.dir().to_owned()).into());
        }
    }
    Witness::open(&to.witness())?.0.write(copy.testimony())?;
    sync_dir(to.dir())?;
    Ok(sync_parent(to.dir())?)
}
