//! All errors of the engine, grouped by whose fault they are.
//!
//! - The caller's: [`Malformed`] says why something is not an event, a store or a place.
//! - The event's: [`DbError`] says why a statement of a materializer or a query failed.
//! - The machine's: [`Fault`] stops a store. [`NotOurs`] rejects a directory or file.
//!
//! Users of a store see all of these as [`Error`]. The promise "same log, same state" rests on the line that
//! [`is_of_machine`] draws: a fault of the event skips the event, alike on every replica. A fault of the machine never
//! does.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::ErrorCode;
use rusqlite::types::FromSqlError;

use super::batch::BATCH;
use super::event::EventId;
use super::place::Seq;
use crate::limits::engine::event::{MAX_ARGS, MAX_DEVICE, MAX_NAME};
use crate::limits::engine::sql::{LONGEST_QUOTE, QUERY_STEPS};

/// Why something is not an event, a store or a place in a log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// Not a UUID of version 7 in its hyphenated form.
    #[error("`{0}` is not an event id: it must be a UUID of version 7 such as 0190d1e5-3f5c-7bb2-8a3e-5d4f6c7b8a90")]
    Id(String),
    /// Not a name that an event may have.
    #[error(
        "`{0}` is not an event name: use 1 to {MAX_NAME} ASCII letters, digits and `_ . : / -`, and not the prefix `likewise.`"
    )]
    Name(String),
    /// Not a name that a device may have.
    #[error("`{0}` is not a device name: use 1 to {MAX_DEVICE} bytes without control characters")]
    Device(String),
    /// A payload that is not JSON, or that holds a raw control character.
    #[error("the payload is not JSON text on one line: {0}")]
    Args(String),
    /// A payload above [`MAX_ARGS`].
    #[error("the payload has {0} bytes, more than the {MAX_ARGS} an event may have")]
    TooLarge(usize),
    /// A batch that is empty, or that contains something other than events.
    #[error("not a batch of events: {0}")]
    Batch(String),
    /// Not a name that a store may have.
    #[error("`{0}` is not a store: its name has 1 to 63 characters, a to z, 0 to 9 and -, and doesn't begin with -")]
    Store(String),
    /// Not a cursor from a stream of events.
    #[error("`{0}` is not a cursor of events: use one that was given with an event, or `start`")]
    Cursor(String),
    /// Not the id of a stream.
    #[error("`{0}` is not the id of a stream: it must be a UUID")]
    Stream(String),
    /// A number too large for a seq.
    #[error("{0} is no seq: a log ends before 2^62")]
    Seq(u64),
}

/// Why a store didn't do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The input is not an event.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The event can't be applied, so it was not stored.
    #[error("the event was refused: {0}")]
    Refused(String),
    /// The hub refused the event, which is set aside. Holds the hub's reason.
    #[error("the hub refused the event, which is set aside: {0}")]
    SetAside(String),
    /// Another event already has this id.
    #[error("the id {0} belongs to another event, which stays; use a new id")]
    Conflict(EventId),
    /// More events are waiting than the queue holds. This event was not stored.
    #[error("too many events are waiting to be stored; try again in a moment")]
    Overloaded,
    /// The store can't be used at present. Holds what is wrong and what to do.
    #[error("{0}")]
    Unavailable(Arc<str>),
    /// The limit on the number of stores is reached.
    #[error("there are {0} stores already, which is the limit; use one of them")]
    TooManyStores(u64),
    /// Visitors have made as many new stores as they may. They can make the next one after this time.
    #[error(
        "visitors have made as many new stores in the last hour as they may; use one that exists, or come back later"
    )]
    TooManyNewStores(Duration),
    /// More stores are in use than may be open at the same time.
    #[error("too many stores are in use at the same time; try again in a moment")]
    TooManyOpen,
    /// The store's log is its own, so there is no other log to adopt.
    #[error(
        "this store follows no hub: its log is its own. Start likewise with --upstream, and it moves to that hub's log by \
         itself"
    )]
    OwnLog,
    /// The log begins at a snapshot here, and the events behind it are needed first. Holds how many of how many are here.
    #[error(
        "this store began with a snapshot, and only {here} of the {length} events behind it are here. They are needed for this. \
         They come from the hub as long as it can be reached. If the hub is gone, take them from another device that has all of \
         its log: `likewise export` there, and `likewise import` here. If no device has it, go on with what is here: \
         `likewise export` here, and `likewise import` in a new data directory"
    )]
    HistoryMissing {
        /// How many events are here.
        here: u64,
        /// How many events the log has up to the snapshot.
        length: u64,
    },
    /// A query failed.
    #[error("the query failed: {0}")]
    Query(String),
    /// The store was closed because the program is ending.
    #[error("the store is closed, because likewise is shutting down")]
    Closed,
}

impl From<DbError> for Error {
    fn from(error: DbError) -> Self {
        Self::Query(error.to_string())
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        Self::from(&fault)
    }
}

impl From<&Fault> for Error {
    fn from(fault: &Fault) -> Self {
        Self::Unavailable(fault.to_string().into())
    }
}

/// Why a materializer or a query failed.
///
/// `?` converts any error of yours into one: from SQLite, from parsing, from any crate. That is why it isn't a
/// [`std::error::Error`] itself. A [`Fault`] or an [`Error`] made from it is one.
#[derive(Debug)]
#[non_exhaustive]
pub enum DbError {
    /// A materializer says that its event has no effect; see [`DbError::refuse`].
    Refused(String),
    /// The statement does something that is not deterministic, or accesses something that isn't the schema's.
    Forbidden(String),
    /// The query takes more steps than allowed. Holds its text.
    TooManySteps(Box<str>),
    /// Nothing more may run, because an earlier error ended the transaction or was the machine's.
    Stopped,
    /// An error from SQLite.
    Sqlite {
        /// The error.
        source: rusqlite::Error,
        /// The statement, if it is known.
        sql: Option<Box<str>>,
    },
    /// An error from the author's own code.
    Other(Box<dyn StdError + Send + Sync>),
}

impl DbError {
    /// Refuses the event, for materializers: it has no effect, and `why` explains that to the person who caused it.
    pub fn refuse(why: impl Into<String>) -> Self {
        Self::Refused(why.into())
    }

    /// Adds the statement that failed, unless it has one already.
    pub(crate) fn of_statement(self, text: &str) -> Self {
        match self {
            Self::Sqlite { source, sql: None } => Self::Sqlite { source, sql: Some(text.into()) },
            other => other,
        }
    }

    /// Adds the name of the event whose materializer failed, unless the text is the materializer's own, for people.
    pub(crate) fn of_event(self, name: &str) -> Self {
        match self {
            Self::Refused(_) | Self::Stopped => self,
            Self::Sqlite { ref source, .. } if is_of_machine(source) => self,
            other if name == BATCH => Self::Refused(format!("the batch can't be applied: {other}")),
            other => Self::Refused(format!("{name} can't be applied: {other}")),
        }
    }

    /// Returns whether a query failed because of how it is written, whatever the rows: its parameters, or the code that
    /// reads its columns.
    pub(crate) fn is_of_author(&self) -> bool {
        use rusqlite::Error as Cause;
        let Self::Sqlite { source, .. } = self else { return false };
        matches!(
            source,
            Cause::InvalidParameterCount(..)
                | Cause::InvalidColumnIndex(_)
                | Cause::InvalidColumnName(_)
                | Cause::InvalidColumnType(..)
        )
    }

    /// Returns SQLite's error if it is the machine's fault.
    pub(crate) fn of_machine(self) -> Result<rusqlite::Error, Self> {
        match self {
            Self::Sqlite { source, .. } if is_of_machine(&source) => Ok(source),
            other => Err(other),
        }
    }
}

impl fmt::Display for DbError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(why) | Self::Forbidden(why) => f.write_str(why),
            Self::TooManySteps(sql) => write!(
                f,
                "it was stopped after {QUERY_STEPS} steps, the most that a query may take. Add an index for what it looks \
                 up, or a LIMIT. The statement is `{}`",
                one_line(sql)
            ),
            Self::Stopped => f.write_str("an earlier error stopped this materializer"),
            // SQLite's own text would repeat the whole statement.
            Self::Sqlite { source: rusqlite::Error::SqlInputError { msg, sql, .. }, .. } => {
                write!(f, "{msg}, in the statement `{}`", one_line(sql))
            }
            Self::Sqlite { source, sql: Some(sql) } => write!(f, "{source}, in the statement `{}`", one_line(sql)),
            Self::Sqlite { source, sql: None } => source.fmt(f),
            Self::Other(why) => why.fmt(f),
        }
    }
}

impl<E: StdError + Send + Sync + 'static> From<E> for DbError {
    fn from(error: E) -> Self {
        let error: Box<dyn StdError + Send + Sync> = Box::new(error);
        match error.downcast::<rusqlite::Error>() {
            Ok(source) => Self::Sqlite { source: *source, sql: None },
            Err(other) => Self::Other(other),
        }
    }
}

impl From<DbError> for Box<dyn StdError + Send + Sync> {
    fn from(error: DbError) -> Self {
        Fault::Schema(error).into()
    }
}

/// Returns enough of a statement to recognize it in a message.
pub(crate) fn one_line(sql: &str) -> String {
    let mut line = sql.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = line.char_indices().nth(LONGEST_QUOTE) {
        line.truncate(end);
        line.push('…');
    }
    line
}

/// Returns whether the machine failed rather than the event. The same event may succeed later or elsewhere.
///
/// The faults of events are a closed list. Everything else is the machine's fault: skipping an event because of a full
/// disk would make replicas differ.
pub(crate) fn is_of_machine(error: &rusqlite::Error) -> bool {
    use rusqlite::ffi;
    let of_event = [
        ffi::SQLITE_ERROR,
        ffi::SQLITE_CONSTRAINT,
        ffi::SQLITE_MISMATCH,
        ffi::SQLITE_RANGE,
        ffi::SQLITE_TOOBIG,
        ffi::SQLITE_AUTH,
    ];
    error.sqlite_error().is_some_and(|code| !of_event.contains(&(code.extended_code & 0xff)))
}

/// Returns whether `error` says that the file itself is damaged.
pub(crate) fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// A fault that stops a store. None of these is an event's fault, and none loses acknowledged events.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The operating system refused something.
    #[error("cannot {doing} {}: {source}{}", path.display(), make_room(source))]
    Io {
        /// The attempted operation.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// SQLite failed, and the event is not to blame.
    #[error("{database}: {source}{}", what_to_do(source))]
    Sqlite {
        /// The database it comes from.
        database: Database,
        /// SQLite's error.
        source: rusqlite::Error,
    },
    /// The eventlog holds something that can't be right.
    #[error(
        "the eventlog is damaged: {0}. Nothing was changed, and nothing is added to it. Restore this store from a backup, \
         or have it made again from the other devices: docs/repair.md has the steps. `likewise export` writes out what can \
         still be read"
    )]
    Damaged(String),
    /// The eventlog ends before events that it provably held.
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
    /// The file is another program's database.
    #[error("{} is not an eventlog of likewise: nothing was changed. Move it away, or choose another directory with --data", .0.display())]
    Foreign(PathBuf),
    /// The program was linked with an SQLite that can corrupt our files.
    #[error("SQLite {0} can corrupt a database in WAL mode; likewise needs 3.51.3 or newer")]
    OldSqlite(&'static str),
    /// SQLite didn't accept a setting, so nothing can be guaranteed.
    #[error("{}: asked SQLite for {wanted}, and it says {found}", path.display())]
    Pragma {
        /// The file.
        path: PathBuf,
        /// The requested setting.
        wanted: &'static str,
        /// The actual setting.
        found: String,
    },
    /// Another process holds the directory of the stores.
    #[error(
        "the stores in {} are in use by {}. Stop that, or open stores in another directory", dir.display(),
        pid.map_or_else(|| "another process".to_owned(), |pid| format!("the process {pid}"))
    )]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// The process, if it has recorded its id yet.
        pid: Option<u32>,
    },
    /// Something needs events that are not here yet, because the log begins at a snapshot.
    #[error("not all events up to {0} are here: the store began with a snapshot, and they come later")]
    NotHere(Seq),
    /// The snapshot where the log begins was replaced or given up while it was copied, or is damaged.
    #[error(
        "the snapshot where the log in {} begins changed while it was copied, or is damaged: nothing was copied. Try it again",
        .0.display()
    )]
    Moved(PathBuf),
    /// The schema itself breaks a rule.
    #[error("the schema can't be used: {0}")]
    Schema(DbError),
    /// An earlier fault has stopped the store.
    #[error("an earlier fault stopped this store; it has to be opened again")]
    Stopped,
    /// A checkpoint could not sync, so the content of the disk is unknown.
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

impl From<DbError> for Fault {
    fn from(error: DbError) -> Self {
        // A full disk isn't the schema's fault.
        error.of_machine().map_or_else(Self::Schema, Self::state)
    }
}

/// One of the two databases of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Database {
    /// The truth: log and outbox.
    Eventlog,
    /// The state derived from it.
    State,
}

impl Database {
    /// Returns the name of its file.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Eventlog => "eventlog.db",
            Self::State => "state.db",
        }
    }
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.file_name().fmt(f)
    }
}

/// A [`Fault`] in the eventlog. It is its own type so `?` on an SQLite error records which database it came from.
#[derive(Debug)]
pub(crate) struct LogFault(pub(crate) Fault);

impl From<rusqlite::Error> for LogFault {
    fn from(source: rusqlite::Error) -> Self {
        Self(Fault::eventlog(source))
    }
}

impl From<FromSqlError> for LogFault {
    fn from(source: FromSqlError) -> Self {
        Self(Fault::eventlog(source.into()))
    }
}

impl From<Fault> for LogFault {
    fn from(fault: Fault) -> Self {
        Self(fault)
    }
}

impl From<LogFault> for Fault {
    fn from(LogFault(fault): LogFault) -> Self {
        fault
    }
}

/// A [`Fault`] in the state, as [`LogFault`] is one in the eventlog.
#[derive(Debug)]
pub(crate) struct StateFault(pub(crate) Fault);

impl From<rusqlite::Error> for StateFault {
    fn from(source: rusqlite::Error) -> Self {
        Self(Fault::state(source))
    }
}

impl From<Fault> for StateFault {
    fn from(fault: Fault) -> Self {
        Self(fault)
    }
}

impl From<DbError> for StateFault {
    fn from(error: DbError) -> Self {
        Self(error.into())
    }
}

impl From<StateFault> for Fault {
    fn from(StateFault(fault): StateFault) -> Self {
        fault
    }
}

impl From<StateFault> for Error {
    fn from(StateFault(fault): StateFault) -> Self {
        fault.into()
    }
}

impl Fault {
    pub(crate) fn eventlog(source: rusqlite::Error) -> Self {
        // An error that isn't SQLite's own means that a value can't be what was stored.
        if is_damage(&source) || source.sqlite_error().is_none() {
            return Self::Damaged(source.to_string());
        }
        Self::Sqlite { database: Database::Eventlog, source }
    }

    pub(crate) fn state(source: rusqlite::Error) -> Self {
        Self::Sqlite { database: Database::State, source }
    }

    /// Converts an SQLite error in `database`.
    pub(crate) fn sqlite(database: Database, source: rusqlite::Error) -> Self {
        match database {
            Database::Eventlog => Self::eventlog(source),
            Database::State => Self::state(source),
        }
    }

    /// Returns whether only a write failed, because there was no room or the disk refused it. Every sync succeeded
    /// then, so everything SQLite has committed is on the disk. After any other fault, that is unknown.
    pub(crate) fn leaves_synced(&self) -> bool {
        use rusqlite::ffi::{SQLITE_FULL, SQLITE_IOERR_WRITE};
        match self {
            Self::Sqlite { source, .. } => {
                source.sqlite_error().is_some_and(|code| matches!(code.extended_code, SQLITE_FULL | SQLITE_IOERR_WRITE))
            }
            _ => false,
        }
    }

    /// Returns whether there was no room on the disk.
    pub(crate) fn is_of_full_disk(&self) -> bool {
        match self {
            Self::Io { source, .. } => is_full(source),
            Self::Sqlite { source, .. } => source.sqlite_error_code() == Some(ErrorCode::DiskFull),
            _ => false,
        }
    }

    /// Returns whether the damage is in `state.db`. It then costs only the time to rebuild it.
    pub(crate) fn is_damaged_state(&self) -> bool {
        matches!(self, Self::Sqlite { database: Database::State, source } if is_damage(source) || !is_of_machine(source))
    }
}

/// Returns what to do if the system is out of room.
fn make_room(error: &io::Error) -> &'static str {
    if is_full(error) { ". Make room on the disk" } else { "" }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Returns what to do about an SQLite error. SQLite says "disk I/O error" for most failures on a full disk.
fn what_to_do(error: &rusqlite::Error) -> &'static str {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull | ErrorCode::SystemIoFailure) => {
            ". The disk may be full or failing: make room on it, or look into the system's log"
        }
        // To open a database, SQLite makes files beside it.
        Some(ErrorCode::CannotOpen) => {
            ". The disk may be full, or files can't be made in its directory: make room, or look at who may write there"
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            ". Another program has it open: end that, and this goes on by itself"
        }
        _ => "",
    }
}

/// Converts the operating system's errors into ours.
pub(crate) trait IoContext<T> {
    fn doing(self, doing: &'static str, path: &Path) -> Result<T, Fault>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn doing(self, doing: &'static str, path: &Path) -> Result<T, Fault> {
        self.map_err(|source| Fault::Io { doing, path: path.to_owned(), source })
    }
}

/// Returns whether a sync failed. After that, the page cache holds data that the disk doesn't.
pub(super) fn is_failed_sync(error: &rusqlite::Error) -> bool {
    use rusqlite::ffi::{SQLITE_IOERR, SQLITE_IOERR_WRITE};
    let is_io = |code: &rusqlite::ffi::Error| code.extended_code & 0xff == SQLITE_IOERR;
    error.sqlite_error().is_some_and(|code| is_io(code) && code.extended_code != SQLITE_IOERR_WRITE)
}

/// Why a directory or a file is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotOurs {
    /// A symbolic link, which could lead anywhere.
    #[error(
        "{path} is a symbolic link, and likewise follows no symbolic links inside a data directory: they could lead it to \
         any other file. Put what it leads to in its place", path = .0.display()
    )]
    Link(PathBuf),
    /// A pipe, a device, or a directory where a file should be.
    #[error("{} is not {wanted}. Move it away", path.display())]
    Kind {
        /// The path that was checked.
        path: PathBuf,
        /// What it should be.
        wanted: &'static str,
    },
    /// It belongs to another user.
    #[error(
        "{path} belongs to the user {owner}, and likewise acts as the user {us}. A data directory and all in it have to \
         belong to one user: give it to them with `chown -R USER DIRECTORY`, and run likewise as them", path = path.display()
    )]
    Owner {
        /// The path that was checked.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// The user we run as.
        us: u32,
    },
    /// Every user may change its content.
    #[error("every user may change what is in {path}. Take that away with `chmod o-w {path}`", path = .0.display())]
    Open(PathBuf),
    /// It has a second name, and a write would change the file under that name too.
    #[error(
        "{path} has another name elsewhere (a hard link), and what is written to one would change both. Make it a file of its \
         own: copy it, and put the copy in its place", path = .0.display()
    )]
    Shared(PathBuf),
}

#[cfg(test)]
mod tests {
    use rusqlite::ffi;

    use super::*;

    #[test]
    fn trust_61_each_error_that_a_full_disk_causes_says_that_it_may_be_full() {
        for code in [ffi::SQLITE_FULL, ffi::SQLITE_IOERR_WRITE, ffi::SQLITE_IOERR_SHMSIZE, ffi::SQLITE_CANTOPEN] {
            let error = rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
            let said = Fault::sqlite(Database::Eventlog, error).to_string();
            assert!(said.contains("The disk may be full"), "{said}");
        }
    }
}
