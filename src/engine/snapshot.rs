//! Snapshots: a committed state as one file, with the place in the log that it stands for. A device whose log is empty
//! begins with one, and fetches the events behind it later.
//!
//! A snapshot is a stranger's database. [`Snapshot::check`] believes nothing of it that it can't compare: its length and
//! hash with what its hub says, its tables with those that our own schema makes, its structure with SQLite's rules. What
//! the rows say is believed until the events behind it [prove](super::prove) it.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, ErrorCode, OpenFlags, Row};
use serde::{Deserialize, Serialize};

use super::contents::digest_of;
use super::error::{Fault, IoContext};
use super::eventlog::Eventlog;
use super::files::{open_private_file, open_to_read};
use super::opening::remove_file;
use super::place::{Cursor, Digest, LogId, Seq};
use super::schema::Schema;
use super::setup::Files;
use super::state::{Counts, State, read_committed};
use super::storage::Beside;
use crate::limits::engine::replica::LONGEST_WHY;
use crate::limits::engine::snapshot::{SCHEMA_ROW, SCHEMA_STEPS};

/// What a snapshot stands for, and what its file is. A hub says this of its snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The log.
    pub log: LogId,
    /// The last event that is in the state.
    pub seq: Seq,
    /// How many events the log has up to there.
    pub length: u64,
    /// The digest of the log up to there.
    pub digest: Digest,
    /// The digest of the state's content.
    pub state_digest: Digest,
    /// The size of the file in bytes.
    pub bytes: u64,
    /// The BLAKE3 hash of the file.
    pub file_digest: Digest,
}

/// A snapshot's file that has passed [`Snapshot::check`]. [`Replica::join`](super::Replica::join) takes the file away.
#[derive(Debug)]
pub struct CheckedSnapshot {
    pub(super) snapshot: Snapshot,
    /// The fingerprint of its schema.
    pub(super) schema: String,
    pub(super) path: PathBuf,
}

impl CheckedSnapshot {
    /// Returns what the snapshot stands for.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }
}

/// Why a snapshot is not used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The file isn't the snapshot that it should be. Pull the log instead. Holds the reason.
    #[error("the snapshot can't be used: {0}")]
    Wrong(String),
    /// The machine failed. Nothing may be concluded about the snapshot.
    #[error(transparent)]
    Fault(#[from] Fault),
}

impl Snapshot {
    /// Copies the committed state of the store in `files` to the new file `to`, beside the thread that writes. Returns
    /// `None`, and leaves no file, if there is nothing to begin with: the log is empty, has no id yet, or had events
    /// taken back a moment ago.
    ///
    /// # Errors
    ///
    /// A fault of the machine. No file is left then.
    pub fn make(files: &Files, to: &Path) -> Result<Option<Self>, Fault> {
        if !files.state().try_exists().doing("look at", &files.state())? {
            return Ok(None);
        }
        let made = copy_state(files, to).and_then(|()| Self::measure(files, to));
        if !matches!(made, Ok(Some(_))) {
            drop(remove_file(to));
        }
        made
    }

    /// Returns what the file at `path`, a copy of the committed state of the store in `files`, stands for.
    fn measure(files: &Files, path: &Path) -> Result<Option<Self>, Fault> {
        let conn = open_strangers(path).map_err(Fault::state)?;
        let (cursor, _, _) = read_committed(&conn).map_err(Fault::state)?;
        // The state was read first, so the eventlog isn't behind it.
        let eventlog = Eventlog::snapshot(&files.eventlog())?;
        let tip = *eventlog.tip();
        let (Some(log), Some(point)) = (tip.whose.log_id(), eventlog.point_at(cursor.seq)?) else { return Ok(None) };
        let is_of_log = tip.generation == cursor.generation && point.digest == cursor.digest;
        if !is_of_log || !tip.is_whole() || point.length == 0 {
            return Ok(None);
        }
        drop(eventlog);
        let state_digest = digest_of(&conn).map_err(Fault::state)?;
        drop(conn);
        let (bytes, file_digest) = hash(path)?;
        let Cursor { seq, digest, .. } = cursor;
        Ok(Some(Self { log, seq, length: point.length, digest, state_digest, bytes, file_digest }))
    }

    /// Checks that the file at `path` is this snapshot, and a state of `schema`. Reads all of it.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Wrong`] if it isn't. The file stays, and the caller deletes it.
    pub fn check(&self, path: &Path, schema: &Schema) -> Result<CheckedSnapshot, SnapshotError> {
        if self.seq == Seq::START || self.length == 0 || self.length > self.seq.0 {
            return Err(wrong("no log has that many events up to that place"));
        }
        let (bytes, file_digest) = hash(path)?;
        if bytes != self.bytes {
            return Err(wrong(format!("it has {bytes} bytes, and should have {}", self.bytes)));
        }
        if file_digest != self.file_digest {
            return Err(wrong("its hash is another one"));
        }
        check_header(path)?;
        let expected = State::empty_schema(schema)?;
        let checked = open_strangers(path).and_then(|mut conn| self.check_content(&mut conn, schema, &expected));
        match checked {
            Ok(None) => Ok(CheckedSnapshot { snapshot: *self, schema: schema.fingerprint(), path: path.to_owned() }),
            Ok(Some(why)) => Err(wrong(why)),
            Err(error) if is_of_disk(&error) => Err(Fault::state(error).into()),
            Err(error) => Err(wrong(format!("SQLite says: {error}"))),
        }
    }

    /// Returns what is wrong with the content of a snapshot's file, if anything is. `expected` is the schema of an empty
    /// state.
    fn check_content(
        &self,
        conn: &mut Connection,
        schema: &Schema,
        expected: &[SchemaRow],
    ) -> rusqlite::Result<Option<String>> {
        // A view, a trigger or an index of a stranger's would act on our own statements.
        if !has_schema(conn, expected)? {
            return Ok(Some("its tables are not those of this program".to_owned()));
        }
        let found: String = conn.query_row("PRAGMA quick_check(1)", (), |row| row.get(0))?;
        if found != "ok" {
            return Ok(Some(format!("it is damaged: {found}")));
        }
        let cursors: u64 = conn.query_row("SELECT count(*) FROM likewise_cursor", (), |row| row.get(0))?;
        if cursors != 1 {
            return Ok(Some("it doesn't say what it stands for".to_owned()));
        }
        let sql = "SELECT count(*) FROM likewise_skipped WHERE octet_length(why) > ?1";
        let too_long: u64 = conn.query_row(sql, [LONGEST_WHY + '…'.len_utf8()], |row| row.get(0))?;
        if too_long > 0 {
            return Ok(Some("it says at too much length why events have no effect".to_owned()));
        }
        // A row that can't be read fails here.
        Counts::load(conn)?;
        let (cursor, _, fingerprint) = read_committed(conn)?;
        if fingerprint != schema.fingerprint() {
            return Ok(Some("it is of another schema".to_owned()));
        }
        let is_it = (cursor.seq, cursor.digest) == (self.seq, self.digest);
        Ok((!is_it).then(|| "it stands for another place in the log".to_owned()))
    }
}

/// Copies the committed state beside the thread that writes.
fn copy_state(files: &Files, to: &Path) -> Result<(), Fault> {
    open_private_file(to)?;
    let conn = Beside::open(&files.state()).map_err(Fault::state)?;
    // SQLite takes the bytes of a path as they are, whether or not they are UTF-8. It keeps the rowids, which count.
    let path = ToSqlOutput::Borrowed(ValueRef::Text(to.as_os_str().as_encoded_bytes()));
    conn.execute("VACUUM INTO ?1", [path]).map_err(Fault::state)?;
    File::open(to).and_then(|file| file.sync_all()).doing("make durable", to)
}

/// Opens a snapshot's file for reading. Nothing that is in it runs.
pub(super) fn open_strangers(path: &Path) -> rusqlite::Result<Connection> {
    let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    conn.execute_batch("PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON; PRAGMA query_only = ON")?;
    Ok(conn)
}

/// A table, index, view or trigger: its kind, its name, its table's name and its text.
pub(super) type SchemaRow = (String, String, String, Option<String>);

/// Returns what a database consists of.
pub(super) fn schema_rows(conn: &Connection) -> rusqlite::Result<Vec<SchemaRow>> {
    let row = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?));
    conn.prepare("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name, tbl_name, sql")?
        .query_map((), row)?
        .collect()
}

/// Returns whether a stranger's database consists of exactly this. SQLite reads and parses the whole schema before it answers
/// anything, so it is stopped as soon as that takes more than the expected schema can: by the length of a row, and by the steps
/// for all rows.
fn has_schema(conn: &mut Connection, expected: &[SchemaRow]) -> rusqlite::Result<bool> {
    let longest =
        expected.iter().map(|(_, name, table, sql)| name.len() + table.len() + sql.as_ref().map_or(0, String::len));
    let longest = i32::try_from(longest.max().unwrap_or_default()).unwrap_or(i32::MAX);
    let steps = i32::try_from(expected.len()).unwrap_or(i32::MAX).saturating_mul(SCHEMA_STEPS.1);
    // SQLite's own statements about the schema have to fit, too.
    let usual = conn.set_limit(Limit::SQLITE_LIMIT_LENGTH, longest.saturating_add(SCHEMA_ROW))?;
    conn.progress_handler(steps.saturating_add(SCHEMA_STEPS.0), Some(|| true))?;
    let found = schema_rows(conn);
    conn.progress_handler(0, None::<fn() -> bool>)?;
    conn.set_limit(Limit::SQLITE_LIMIT_LENGTH, usual)?;
    let is_too_much = |error: &rusqlite::Error| {
        matches!(error.sqlite_error_code(), Some(ErrorCode::TooBig | ErrorCode::OperationInterrupted))
    };
    match found {
        Err(error) if is_too_much(&error) => Ok(false),
        found => Ok(found? == expected),
    }
}

/// Checks what a database's header says of how the rest is to be read: that it needs no WAL, which would be read instead of
/// it, that text is compared as in our own databases, and that SQLite takes no more memory and does no more work than for them.
fn check_header(path: &Path) -> Result<(), SnapshotError> {
    // <https://sqlite.org/fileformat2.html#the_database_header>
    let mut header = [0; 100];
    if let Err(error) = File::open(path).and_then(|mut file| file.read_exact(&mut header)) {
        return match error.kind() {
            ErrorKind::UnexpectedEof => Err(wrong("it is no database")),
            _ => Err(Err::<(), _>(error).doing("read", path).expect_err("BUG: it is an error").into()),
        };
    }
    let number = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (journal, schema_format, encoding) = ([header[18], header[19]], number(44), number(56));
    // A cache as large as the file, and a file that moves its own pages around.
    let (cache, vacuum) = (number(48), [number(52), number(64)]);
    let is_usual = (schema_format, encoding, cache, vacuum) == (4, 1, 0, [0, 0]);
    if !header.starts_with(b"SQLite format 3\0") || journal != [1, 1] || !is_usual {
        return Err(wrong("it is no database of the kind that likewise makes"));
    }
    Ok(())
}

/// Returns the size and the BLAKE3 hash of a file of ours.
fn hash(path: &Path) -> Result<(u64, Digest), Fault> {
    let missing = || io::Error::from(ErrorKind::NotFound);
    let file = match open_to_read(path)? {
        Some(file) => file,
        None => return Err(missing()).doing("open", path),
    };
    let mut hasher = blake3::Hasher::new();
    let hashed = hasher.update_reader(file).map(|hasher| (hasher.count(), hasher.finalize()));
    let (bytes, hash) = hashed.doing("read", path)?;
    Ok((bytes, Digest(*hash.as_bytes())))
}

/// Returns whether the disk failed, or memory ran out. A file that a stranger made causes every other error.
fn is_of_disk(error: &rusqlite::Error) -> bool {
    use rusqlite::ffi::{SQLITE_IOERR_READ, SQLITE_NOMEM};
    error.sqlite_error().is_some_and(|code| matches!(code.extended_code, SQLITE_IOERR_READ | SQLITE_NOMEM))
}

fn wrong(why: impl Into<String>) -> SnapshotError {
    SnapshotError::Wrong(why.into())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use super::*;
    use crate::engine::{Envelope, EventId, Page, Replica, Setup, prove};
    use crate::fuzz::{fuzz, outcome};
    use crate::likes::{self, LikeAdded};

    /// How many of the files that are believed are tried. Each takes a device that joins by it, and its proof.
    const MOST_JOINED: usize = 150;

    /// Few pages, so that a fuzzer meets all of them.
    fn setup() -> Setup {
        Setup {
            schema: Arc::new(likes::schema()),
            device: "test".parse().unwrap(),
            executable: "one".to_owned(),
            progress: |_, _| {},
        }
    }

    fn open(dir: &Path) -> Replica {
        Replica::open(Files::in_dir(dir), setup()).unwrap()
    }

    /// The input is not a file of its own: each program's SQLite makes another one. It is what is done to the file.
    #[test]
    fn trust_38_fuzzed_snapshots_are_refused_or_proven_wrong() {
        let memory = Path::new("/dev/shm");
        let scratch = tempfile::tempdir_in(if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() });
        let scratch = scratch.unwrap();
        let mut believed = 0;
        let mut hub = open(&scratch.path().join("hub"));
        let like = |n| Envelope::new(EventId::from_parts(n, [7; 10]), &LikeAdded {}).unwrap();
        hub.commit(&(0..30).map(like).collect::<Vec<_>>()).unwrap();
        let entries = hub.entries(Seq::START, crate::engine::PageSize::events(100)).unwrap();
        let path = scratch.path().join("snapshot");
        let snapshot = Snapshot::make(&Files::in_dir(scratch.path().join("hub")), &path).unwrap().unwrap();
        let right = fs::read(&path).unwrap();
        fuzz("snapshot", &[], |input| {
            // Each six bytes change one byte of the file, cut it, or repeat a part.
            let mut file = right.clone();
            for change in input.chunks_exact(6) {
                let at = u32::from_le_bytes([change[1], change[2], change[3], 0]) as usize % file.len().max(1);
                match change[0] % 16 {
                    0 => file.truncate(at),
                    1 => file.extend_from_slice(&right[..at.min(right.len())]),
                    // The header says how all of the rest is read.
                    2..=5 if file.len() > 100 => file[at % 100] = change[4],
                    _ if at < file.len() => file[at] ^= change[4] | change[5],
                    _ => {}
                }
            }
            fs::write(&path, &file).unwrap();
            let (bytes, file_digest) = hash(&path).unwrap();
            let claimed = Snapshot { bytes, file_digest, ..snapshot };
            let checked = claimed.check(&path, &setup().schema);
            let said = outcome(&checked);
            let Ok(checked) = checked else { return said };
            believed += 1;
            if believed > MOST_JOINED {
                return said;
            }
            // What is believed can be used, and history tells whether it was right.
            let dir = scratch.path().join("device");
            let mut device = open(&dir);
            device.follow().unwrap();
            assert!(device.join(checked).unwrap());
            drop(device.query(&likes::count()));
            let page = Page { entries: entries.clone(), next: snapshot.seq, more: false };
            device.arrive_history(&page).unwrap();
            let proof = prove(&Files::in_dir(&dir), &setup()).unwrap().unwrap();
            device.conclude(proof).unwrap();
            assert_eq!(device.query(&likes::count()).unwrap(), 30);
            drop(device);
            assert_eq!(open(&dir).query(&likes::count()).unwrap(), 30);
            fs::remove_dir_all(&dir).unwrap();
            format!("{said}, {}", proof.is_right())
        });
    }
}
