//! The state: the tables that materializers derive from the eventlog, in `state.db` or in memory. It is disposable.
//!
//! The caller decides when a transaction is open. An authority opens one per commit. A replica with an upstream keeps
//! one open that holds the pending events.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::path::Path;
use std::result;
use std::sync::Arc;

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::changes::{Changes, Written};
use super::contents::{Contents, TableDigests, TableRows, digest_of, table_digests, table_rows};
use super::depends::{Depends, Key, KeyColumn};
use super::error::{Database, DbError, Fault, IoContext, StateFault, is_damage, is_of_machine};
use super::event::EventId;
use super::eventlog::BaseFile;
use super::files::open_private_file;
use super::materialize::Kind;
use super::opening::{Alone, copy_database, copy_file, make_database};
use super::place::{Cursor, Digest, Generation, Seq};
use super::query::Query;
use super::remote::{Answer, Question};
use super::sandbox::Sandbox;
use super::schema::Schema;
use super::snapshot::{SchemaRow, schema_rows};
use super::storage::{Beside, WalGauge, checkpoint_on_close, connect, open_in_memory, set_up};

type Result<T, E = StateFault> = result::Result<T, E>;

const TABLES: &str = "
    CREATE TABLE likewise_cursor (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        generation INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        digest BLOB NOT NULL,
        made_by TEXT NOT NULL,
        schema TEXT NOT NULL
    ) STRICT;
    CREATE TABLE likewise_skipped (id BLOB PRIMARY KEY, why TEXT) STRICT, WITHOUT ROWID;
";

/// The result of opening `state.db`.
pub(crate) struct Loaded {
    /// The cursor that the file claims, if it can be read.
    pub(crate) cursor: Option<Cursor>,
    /// The state, or why it has to be rebuilt.
    pub(crate) state: Result<State, String>,
}

pub(crate) struct State {
    pub(super) sandbox: Sandbox,
    pub(super) schema: Arc<Schema>,
    /// As of the last commit.
    cursor: Cursor,
    /// What was written since the last [`take_changes`](Self::take_changes).
    pub(super) touched: Cell<Written>,
    /// What the open transaction wrote and [`take_changes`](Self::take_changes) has reported. Undoing the transaction
    /// changes it again.
    taken: RefCell<Changes>,
    wal: Option<Arc<WalGauge>>,
    pub(super) skipped: RefCell<Counts>,
    /// The kinds of events without effect that have been logged.
    pub(super) told: RefCell<BTreeSet<(String, Kind)>>,
}

/// How many events have no effect. They are counted as they come, because the table that lists them may be as long as
/// the log. The counts are rolled back with the transaction.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Including the open transaction: the number of faulty events, and of events with an unknown name.
    pub(super) now: (u64, u64),
    /// As of the last commit.
    committed: (u64, u64),
    /// The counts at the beginning of each open part of the transaction.
    marks: Vec<(u64, u64)>,
}

impl Counts {
    /// Counts the whole table, once. Fails if a row of it can't be read.
    pub(super) fn load(conn: &Connection) -> rusqlite::Result<Self> {
        let mut statement = conn.prepare("SELECT id, why FROM likewise_skipped")?;
        let (mut rows, mut counted) = (statement.query(())?, (0, 0));
        while let Some(row) = rows.next()? {
            match skipped_row(row)? {
                (_, Some(_)) => counted.0 += 1,
                (_, None) => counted.1 += 1,
            }
        }
        Ok(Self { now: counted, committed: counted, marks: Vec::new() })
    }
}

impl State {
    /// Creates the state of an empty log, in memory.
    pub(crate) fn in_memory(schema: &Arc<Schema>) -> Result<Self> {
        let sandbox = Self::create(open_in_memory()?, schema, "", Generation(0))?;
        Ok(Self::over(sandbox, None, schema, Cursor::default(), Counts::default()))
    }

    /// Creates the state of an empty log in a file. Replaces whatever is there.
    pub(crate) fn new(
        path: &Path,
        schema: &Arc<Schema>,
        maker: &str,
        generation: Generation,
        alone: &Alone,
    ) -> Result<Self> {
        make_database(Database::State, path, alone, |conn| {
            Self::create(conn, schema, maker, generation)?;
            Ok(())
        })?;
        let mut conn = connect(path)?;
        let wal = set_up(&mut conn, path, Database::State)?;
        let sandbox = Sandbox::new(conn)?;
        sandbox.learn_tables()?;
        let cursor = Cursor { generation, ..Cursor::default() };
        Ok(Self::over(sandbox, Some(wal), schema, cursor, Counts::default()))
    }

    /// Creates the state at `base` in a file, from the snapshot `from`. Replaces whatever is there. Returns `None` if the
    /// snapshot's file isn't what it should be, of another schema, or has rows that can't be read.
    pub(crate) fn begun(
        path: &Path,
        from: (&Path, &BaseFile),
        schema: &Arc<Schema>,
        maker: &str,
        cursor: Cursor,
        alone: &Alone,
    ) -> Result<Option<Self>> {
        if from.1.schema != schema.fingerprint() {
            return Ok(None);
        }
        let is_right = copy_database(Database::State, path, from, alone, |conn| {
            let Cursor { generation, seq, digest } = cursor;
            let sql = "UPDATE likewise_cursor SET generation = ?1, seq = ?2, digest = ?3, made_by = ?4";
            conn.execute(sql, params![generation.0, seq.to_sql(), digest.0, made_by(maker)]).map_err(Fault::state)?;
            Ok(())
        })?;
        if !is_right {
            return Ok(None);
        }
        let mut conn = connect(path)?;
        let wal = set_up(&mut conn, path, Database::State)?;
        let sandbox = Sandbox::new(conn)?;
        sandbox.learn_tables()?;
        let skipped = if_readable(Counts::load(sandbox.engine()))?;
        Ok(skipped.map(|skipped| Self::over(sandbox, Some(wal), schema, cursor, skipped)))
    }

    /// Creates a state at `path` that is thrown away after a comparison: of an empty log, or of the snapshot whose file is
    /// `from`. Returns `None` if that file isn't what it should be.
    pub(crate) fn scratch(
        path: &Path,
        from: Option<(&Path, &BaseFile, Cursor)>,
        schema: &Arc<Schema>,
    ) -> Result<Option<Self>> {
        if let Some((from, file, _)) = from
            && !copy_file(path, (from, file))?
        {
            return Ok(None);
        }
        drop(open_private_file(path)?);
        let conn = connect(path)?;
        conn.query_row("PRAGMA journal_mode = TRUNCATE", (), |_| Ok(()))?;
        conn.execute_batch("PRAGMA synchronous = OFF")?;
        let Some((_, _, cursor)) = from else {
            let sandbox = Self::create(conn, schema, "", Generation(0))?;
            return Ok(Some(Self::over(sandbox, None, schema, Cursor::default(), Counts::default())));
        };
        let sandbox = Sandbox::new(conn)?;
        sandbox.learn_tables()?;
        let skipped = if_readable(Counts::load(sandbox.engine()))?;
        Ok(skipped.map(|skipped| Self::over(sandbox, None, schema, cursor, skipped)))
    }

    /// Returns what the database of an empty state consists of.
    pub(super) fn empty_schema(schema: &Schema) -> Result<Vec<SchemaRow>, Fault> {
        let sandbox = Self::create(open_in_memory().map_err(Fault::state)?, schema, "", Generation(0))?;
        schema_rows(sandbox.engine()).map_err(Fault::state)
    }

    fn create(conn: Connection, schema: &Schema, maker: &str, generation: Generation) -> Result<Sandbox> {
        let maker = made_by(maker);
        let sandbox = Sandbox::new(conn)?;
        let conn = sandbox.engine();
        conn.execute_batch("BEGIN IMMEDIATE")?;
        conn.execute_batch(TABLES)?;
        schema.create(&sandbox)?;
        sandbox.engine().execute(
            "INSERT INTO likewise_cursor VALUES (1, ?1, 0, ?2, ?3, ?4)",
            params![generation.0, Digest::EMPTY.0, maker, schema.fingerprint()],
        )?;
        sandbox.engine().execute_batch("COMMIT")?;
        Ok(sandbox)
    }

    /// Opens the state at `path`, if it can be used.
    pub(crate) fn load(path: &Path, schema: &Arc<Schema>, maker: &str) -> Result<Loaded> {
        let unusable = |why: &str| Loaded { cursor: None, state: Err(why.to_owned()) };
        if !path.try_exists().doing("look at", path)? {
            return Ok(unusable("it is missing"));
        }
        let open = || {
            let mut conn = connect(path)?;
            let wal = set_up(&mut conn, path, Database::State)?;
            Ok::<_, StateFault>((conn, wal))
        };
        let (conn, wal) = match open() {
            Err(StateFault(fault)) if fault.is_damaged_state() => return Ok(unusable("it is damaged")),
            other => other?,
        };
        // If SQLite finds no such row, table or database, the file isn't a state.
        let Some((cursor, maker_found, schema_found)) = if_readable(read_committed(&conn))? else {
            return Ok(unusable("it is damaged"));
        };
        if maker_found != made_by(maker) || schema_found != schema.fingerprint() {
            return Ok(Loaded {
                cursor: Some(cursor),
                state: Err("another version of the program made it".to_owned()),
            });
        }
        // If a bit of the header's format version is flipped, SQLite takes the file for a newer format and opens it
        // read-only.
        if conn.is_readonly("main")? || !is_sound(&conn)? {
            return Ok(Loaded { cursor: Some(cursor), state: Err("it is damaged".to_owned()) });
        }
        let sandbox = Sandbox::new(conn)?;
        sandbox.learn_tables()?;
        let state = match if_readable(Counts::load(sandbox.engine()))? {
            Some(skipped) => Ok(Self::over(sandbox, Some(wal), schema, cursor, skipped)),
            None => Err("it is damaged".to_owned()),
        };
        Ok(Loaded { cursor: Some(cursor), state })
    }

    fn over(
        sandbox: Sandbox,
        wal: Option<Arc<WalGauge>>,
        schema: &Arc<Schema>,
        cursor: Cursor,
        skipped: Counts,
    ) -> Self {
        let schema = Arc::clone(schema);
        Self {
            sandbox,
            schema,
            cursor,
            touched: Cell::default(),
            taken: RefCell::default(),
            wal,
            skipped: RefCell::new(skipped),
            told: RefCell::default(),
        }
    }

    pub(crate) fn wal(&self) -> Option<&Arc<WalGauge>> {
        self.wal.as_ref()
    }

    /// Checkpoints the WAL into the file if it is long.
    pub(crate) fn checkpoint_if_due(&self) -> Result<()> {
        Ok(self.wal.as_ref().map_or(Ok(()), |wal| wal.checkpoint_if_due())?)
    }

    /// Has SQLite checkpoint the WAL when this is closed. Only for an orderly shutdown.
    pub(crate) fn close_in_order(&self) -> Result<()> {
        Ok(checkpoint_on_close(self.sandbox.engine(), true)?)
    }

    /// Returns how far the committed state has come.
    pub(crate) fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Returns whether a transaction is open.
    pub(crate) fn is_open(&self) -> bool {
        !self.sandbox.is_autocommit()
    }

    pub(crate) fn begin(&self) -> Result<()> {
        self.run("BEGIN IMMEDIATE")
    }

    /// Commits the applied events together with the cursor.
    pub(crate) fn commit(&mut self, cursor: Cursor) -> Result<()> {
        let sql = "UPDATE likewise_cursor SET generation = ?1, seq = ?2, digest = ?3";
        let values = params![cursor.generation.0, cursor.seq.to_sql(), cursor.digest.0];
        self.sandbox.engine().prepare_cached(sql)?.execute(values)?;
        self.run("COMMIT")?;
        self.cursor = cursor;
        let skipped = self.skipped.get_mut();
        skipped.committed = skipped.now;
        *self.taken.get_mut() = Changes::default();
        Ok(())
    }

    /// Rolls back to the committed state, if a transaction is open.
    pub(crate) fn rollback(&self) -> Result<()> {
        {
            // An event may have ended the transaction already.
            let mut skipped = self.skipped.borrow_mut();
            skipped.now = skipped.committed;
            skipped.marks.clear();
        }
        let undone = self.taken.take();
        self.touched.set(self.touched.get() | undone.written());
        self.sandbox.add_rows(&undone);
        if self.sandbox.is_autocommit() { Ok(()) } else { self.run("ROLLBACK") }
    }

    /// Starts a part of the transaction that can be [undone](Self::undo) by itself.
    pub(crate) fn mark(&self) -> Result<()> {
        self.run("SAVEPOINT mark")?;
        let mut skipped = self.skipped.borrow_mut();
        let now = skipped.now;
        skipped.marks.push(now);
        Ok(())
    }

    /// Ends the part that began at the last mark, and keeps it.
    pub(crate) fn keep(&self) -> Result<()> {
        self.run("RELEASE mark")?;
        self.skipped.borrow_mut().marks.pop();
        Ok(())
    }

    /// Ends the part that began at the last mark, and undoes it.
    pub(crate) fn undo(&self) -> Result<()> {
        self.run("ROLLBACK TO mark")?;
        self.run("RELEASE mark")?;
        let mut skipped = self.skipped.borrow_mut();
        skipped.now = skipped.marks.pop().expect("BUG: a part is undone that wasn't begun");
        Ok(())
    }

    /// Returns how many events were skipped for a fault, and how many because nothing here knows their name.
    pub(crate) fn count_skipped(&self) -> (u64, u64) {
        self.skipped.borrow().now
    }

    /// Returns why the event `id` can't be applied, if that is so.
    pub(crate) fn why_skipped(&self, id: EventId) -> Result<Option<String>> {
        let sql = "SELECT why FROM likewise_skipped WHERE id = ?1";
        let why = self.sandbox.engine().query_row(sql, [id.as_bytes()], |row| row.get(0)).optional();
        Ok(why?.flatten())
    }

    /// Returns up to `most` events that have no effect, newest ids first. Each comes with the reason why it was
    /// skipped, or `None` if nothing here knows its name.
    pub(crate) fn skipped(&self, most: usize) -> Result<Vec<(EventId, Option<String>)>> {
        let sql = "SELECT id, why FROM likewise_skipped ORDER BY id DESC LIMIT ?1";
        let mut statement = self.sandbox.engine().prepare_cached(sql)?;
        let owned = |row: &Row<'_>| skipped_row(row).map(|(id, why)| (id, why.map(str::to_owned)));
        let skipped = statement.query_map([most], owned)?;
        Ok(skipped.collect::<rusqlite::Result<_>>()?)
    }

    /// Answers a query, including changes in the open transaction.
    pub(crate) fn read<T: 'static>(&self, query: &Query<T>) -> Result<T, DbError> {
        query.run(&self.sandbox).map(|(answer, _)| answer)
    }

    /// Answers a query, and returns what the answer depends on.
    pub(super) fn read_to_watch<T: 'static>(&self, query: &Query<T>) -> Result<(T, Depends), DbError> {
        let (answer, reads) = query.run(&self.sandbox)?;
        Ok((answer, query.depends(&self.sandbox, reads)?))
    }

    /// Returns the current value of `column` in `row`, if there is such a row and queries can look up such a value.
    pub(super) fn key_of(&self, column: &KeyColumn, row: i64) -> rusqlite::Result<Option<Key>> {
        column.key_of(&self.sandbox, row)
    }

    /// Returns how many steps queries took since the last call.
    pub(super) fn take_steps(&self) -> u32 {
        self.sandbox.take_steps()
    }

    /// Answers a question from another process.
    pub(crate) fn ask(&self, question: Question) -> Result<Answer, DbError> {
        question.ask(&self.sandbox)
    }

    /// Returns what was written since the last call, and what was written earlier but has been undone since.
    pub(crate) fn take_changes(&self) -> Changes {
        let Written { tables, whole } = self.touched.take();
        let mut changes = self.sandbox.take_rows();
        changes.add_tables(tables);
        changes.add_whole(if self.sandbox.is_recording() { whole } else { tables });
        if self.is_open() {
            self.taken.borrow_mut().add(&changes);
        }
        changes
    }

    /// Marks every query as touched.
    pub(crate) fn touch_all(&self) {
        self.touched.set(Written::ALL);
    }

    /// Sets whether written rows are reported one by one from now on, or only their tables.
    pub(crate) fn record_rows(&mut self, is_wanted: bool) -> rusqlite::Result<()> {
        if is_wanted != self.sandbox.is_recording() {
            let Written { tables, .. } = self.touched.get();
            self.touched.set(Written { tables, whole: tables });
        }
        self.sandbox.record_rows(is_wanted)
    }

    /// Returns the digest of the tables' contents, including the open transaction.
    pub(crate) fn digest(&self) -> Result<Digest> {
        Ok(digest_of(self.sandbox.engine())?)
    }

    /// Returns the digests of all that the state holds, including the open transaction.
    pub(super) fn contents(&self) -> Result<Contents> {
        Ok(Contents::of(self.sandbox.engine())?)
    }

    /// Returns the digest of each table, including the open transaction.
    pub(crate) fn table_digests(&self) -> Result<TableDigests> {
        Ok(table_digests(self.sandbox.engine())?)
    }

    /// Returns the rows of each table as text, including the open transaction.
    pub(crate) fn table_rows(&self) -> Result<TableRows> {
        Ok(table_rows(self.sandbox.engine())?)
    }

    /// Makes SQLite reverse the order of rows in statements that don't ask for an order. This exposes a materializer
    /// that relies on such an order.
    pub(crate) fn reverse_unordered(&self) -> Result<()> {
        self.sandbox.engine().execute_batch("PRAGMA reverse_unordered_selects = 1")?;
        Ok(())
    }

    fn run(&self, sql: &'static str) -> Result<()> {
        self.sandbox.engine().prepare_cached(sql)?.execute(())?;
        Ok(())
    }
}

impl Drop for State {
    fn drop(&mut self) {
        // The next step may replace the file.
        if let Some(wal) = &self.wal {
            wal.retire();
        }
    }
}

/// The committed state in a file.
#[derive(Debug)]
pub(crate) struct Committed {
    pub(crate) cursor: Cursor,
    pub(super) contents: Contents,
    made_by: String,
    schema: String,
}

impl Committed {
    /// Returns whether this program would continue with that state rather than rebuild it.
    pub(crate) fn is_made_by(&self, schema: &Schema, executable: &str) -> bool {
        self.made_by == made_by(executable) && self.schema == schema.fingerprint()
    }
}

/// Returns how far the state at `path` has come, and the digest of each of its tables. Reads it as [`committed`] does.
pub(crate) fn committed_tables(path: &Path) -> Result<(Cursor, TableDigests)> {
    let conn = Beside::open(path)?;
    conn.only_read()?;
    conn.execute_batch("BEGIN")?;
    let (cursor, _, _) = read_committed(&conn)?;
    Ok((cursor, table_digests(&conn)?))
}

/// Reads the state at `path` alongside the thread of this process that writes to it. Waits while it is being rebuilt.
pub(crate) fn committed(path: &Path) -> Result<Committed> {
    let conn = Beside::open(path)?;
    conn.only_read()?;
    conn.execute_batch("BEGIN")?;
    let (cursor, made_by, schema) = read_committed(&conn)?;
    Ok(Committed { cursor, contents: Contents::of(&conn)?, made_by, schema })
}

/// Returns the cursor of a state, what made it, and the fingerprint of its schema.
pub(super) fn read_committed(conn: &Connection) -> rusqlite::Result<(Cursor, String, String)> {
    conn.query_row("SELECT * FROM likewise_cursor", (), read_cursor)
}

fn read_cursor(row: &Row<'_>) -> rusqlite::Result<(Cursor, String, String)> {
    let digest = Digest::from_slice(row.get_ref("digest")?.as_blob()?).unwrap_or_default();
    let cursor = Cursor { generation: Generation(row.get("generation")?), seq: Seq::from_sql(row.get("seq")?), digest };
    Ok((cursor, row.get("made_by")?, row.get("schema")?))
}

/// Returns what makes a state: this executable and this SQLite. A schema's fingerprint can't cover the bodies of
/// closures.
fn made_by(executable: &str) -> String {
    let source: &str = rusqlite::version();
    format!("{executable} sqlite {source}")
}

/// Reads an event without effect: its id, and why, or `None` if nothing here knows its name.
fn skipped_row<'a>(row: &'a Row<'_>) -> rusqlite::Result<(EventId, Option<&'a str>)> {
    let id = EventId::from_bytes(row.get_ref(0)?.as_blob()?);
    let id = id.map_err(|why| rusqlite::Error::FromSqlConversionFailure(0, Type::Blob, why.into()))?;
    Ok((id, row.get_ref(1)?.as_str_or_null()?))
}

/// Returns what was read from a state, or `None` if that can't be read because the state isn't as this program makes it.
fn if_readable<T>(read: rusqlite::Result<T>) -> rusqlite::Result<Option<T>> {
    match read {
        Err(error) if is_damage(&error) || !is_of_machine(&error) => Ok(None),
        other => other.map(Some),
    }
}

fn is_sound(conn: &Connection) -> Result<bool> {
    match conn.query_row("PRAGMA quick_check(1)", (), |row| row.get::<_, String>(0)) {
        Ok(line) => Ok(line == "ok"),
        Err(error) if is_damage(&error) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
