//! The state: tables that materializers derive from the eventlog, in `state.db` or in memory. Disposable.
//!
//! The transaction that is open here is the caller's business: an authority opens one a commit, a replica with an
//! upstream keeps one open that holds what is pending.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::authorizer::Tables;
use super::error::{Database, DbError, Fault, IoContext, is_damage, is_of_machine};
use super::event::EventId;
use super::opening::{Alone, make_database};
use super::place::{Cursor, Digest, Generation, Seq};
use super::query::Query;
use super::remote::{Answer, Question};
use super::sandbox::Sandbox;
use super::schema::Schema;
use super::storage::{Beside, WalGauge, checkpoint_on_close, connect, open_in_memory, set_up};

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

/// What `state.db` is found to be at opening.
pub(crate) struct Loaded {
    /// How far it says to have come, if that can be read.
    pub(crate) cursor: Option<Cursor>,
    /// The state, or why it has to be made anew.
    pub(crate) state: Result<State, String>,
}

pub(crate) struct State {
    pub(super) sandbox: Sandbox,
    pub(super) schema: Arc<Schema>,
    /// As the last commit left it.
    cursor: Cursor,
    pub(super) touched: Cell<Tables>,
    wal: Option<Arc<WalGauge>>,
    pub(super) skipped: RefCell<Skipped>,
}

/// How many events have no effect, counted as they come: the table that names them may be as long as the log. It goes
/// back wherever the transaction does.
#[derive(Debug, Default)]
pub(super) struct Skipped {
    /// With what is in the open transaction: for a fault of theirs, and because nothing here knows their name.
    pub(super) now: (u64, u64),
    /// As the last commit left it.
    committed: (u64, u64),
    /// As each part of the transaction found it that is not ended yet.
    marks: Vec<(u64, u64)>,
}

impl Skipped {
    /// Reads the whole table, once.
    fn load(conn: &Connection) -> rusqlite::Result<Self> {
        let sql = "SELECT count(why), count(*) - count(why) FROM likewise_skipped";
        let counted = conn.query_row(sql, (), |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(Self { now: counted, committed: counted, marks: Vec::new() })
    }
}

impl State {
    /// The state of an empty log, in memory.
    pub(crate) fn in_memory(schema: &Arc<Schema>) -> Result<Self, Fault> {
        let sandbox = Self::create(open_in_memory().map_err(Fault::state)?, schema, "", Generation(0))?;
        Ok(Self::over(sandbox, None, schema, Cursor::default(), Skipped::default()))
    }

    /// A new state of an empty log in a file, in the place of whatever is there.
    pub(crate) fn new(
        path: &Path,
        schema: &Arc<Schema>,
        maker: &str,
        generation: Generation,
        alone: &Alone,
    ) -> Result<Self, Fault> {
        make_database(Database::State, path, alone, |conn| Self::create(conn, schema, maker, generation).map(drop))?;
        let mut conn = connect(path).map_err(Fault::state)?;
        let wal = set_up(&mut conn, path, Database::State)?;
        let sandbox = Sandbox::new(conn).map_err(Fault::state)?;
        sandbox.learn_tables().map_err(Fault::state)?;
        let cursor = Cursor { generation, ..Cursor::default() };
        Ok(Self::over(sandbox, Some(wal), schema, cursor, Skipped::default()))
    }

    fn create(conn: Connection, schema: &Schema, maker: &str, generation: Generation) -> Result<Sandbox, Fault> {
        let maker = made_by(maker);
        let sandbox = Sandbox::new(conn).map_err(Fault::state)?;
        let conn = sandbox.engine();
        conn.execute_batch("BEGIN IMMEDIATE").map_err(Fault::state)?;
        conn.execute_batch(TABLES).map_err(Fault::state)?;
        schema.create(&sandbox)?;
        sandbox
            .engine()
            .execute(
                "INSERT INTO likewise_cursor VALUES (1, ?1, 0, ?2, ?3, ?4)",
                params![generation.0, Digest::EMPTY.0, maker, schema.fingerprint()],
            )
            .map_err(Fault::state)?;
        sandbox.engine().execute_batch("COMMIT").map_err(Fault::state)?;
        Ok(sandbox)
    }

    /// Opens the state at `path` and looks whether it can be used.
    pub(crate) fn load(path: &Path, schema: &Arc<Schema>, maker: &str) -> Result<Loaded, Fault> {
        let unusable = |why: &str| Loaded { cursor: None, state: Err(why.to_owned()) };
        if !path.try_exists().doing("look at", path)? {
            return Ok(unusable("it is missing"));
        }
        let open = || {
            let mut conn = connect(path).map_err(Fault::state)?;
            let wal = set_up(&mut conn, path, Database::State)?;
            Ok((conn, wal))
        };
        let (conn, wal) = match open() {
            Err(fault) if Fault::is_damaged_state(&fault) => return Ok(unusable("it is damaged")),
            other => other?,
        };
        let row = conn.query_row("SELECT * FROM likewise_cursor", (), read_cursor);
        let (cursor, maker_found, schema_found) = match row {
            Ok(row) => row,
            // SQLite found no such row, table or database: whatever the file is, it is no state.
            Err(error) if is_damage(&error) || !is_of_machine(&error) => {
                return Ok(unusable("it is damaged"));
            }
            Err(error) => return Err(Fault::state(error)),
        };
        if maker_found != made_by(maker) || schema_found != schema.fingerprint() {
            return Ok(Loaded {
                cursor: Some(cursor),
                state: Err("another version of the program made it".to_owned()),
            });
        }
        // A flipped bit in the header's format version reads as a file of the future, not to be written to.
        if conn.is_readonly("main").map_err(Fault::state)? || !is_sound(&conn)? {
            return Ok(Loaded { cursor: Some(cursor), state: Err("it is damaged".to_owned()) });
        }
        let sandbox = Sandbox::new(conn).map_err(Fault::state)?;
        sandbox.learn_tables().map_err(Fault::state)?;
        let skipped = Skipped::load(sandbox.engine()).map_err(Fault::state)?;
        let state = Self::over(sandbox, Some(wal), schema, cursor, skipped);
        Ok(Loaded { cursor: Some(cursor), state: Ok(state) })
    }

    fn over(
        sandbox: Sandbox,
        wal: Option<Arc<WalGauge>>,
        schema: &Arc<Schema>,
        cursor: Cursor,
        skipped: Skipped,
    ) -> Self {
        let schema = Arc::clone(schema);
        Self { sandbox, schema, cursor, touched: Cell::default(), wal, skipped: RefCell::new(skipped) }
    }

    pub(crate) fn wal(&self) -> Option<&Arc<WalGauge>> {
        self.wal.as_ref()
    }

    /// Says that this is an end in good order, so that the WAL is to be moved into the file.
    pub(crate) fn close_in_order(&self) -> Result<(), Fault> {
        checkpoint_on_close(self.sandbox.engine(), true).map_err(Fault::state)
    }

    /// How far the committed state has come.
    pub(crate) fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Whether a transaction is open.
    pub(crate) fn is_open(&self) -> bool {
        !self.sandbox.is_autocommit()
    }

    pub(crate) fn begin(&self) -> Result<(), Fault> {
        self.run("BEGIN IMMEDIATE")
    }

    /// Commits what was applied, together with how far that is.
    pub(crate) fn commit(&mut self, cursor: Cursor) -> Result<(), Fault> {
        let sql = "UPDATE likewise_cursor SET generation = ?1, seq = ?2, digest = ?3";
        let set = |conn: &Connection| {
            let values = params![cursor.generation.0, cursor.seq.to_sql(), cursor.digest.0];
            conn.prepare_cached(sql)?.execute(values)
        };
        set(self.sandbox.engine()).map_err(Fault::state)?;
        self.run("COMMIT")?;
        self.cursor = cursor;
        let skipped = self.skipped.get_mut();
        skipped.committed = skipped.now;
        Ok(())
    }

    /// Goes back to the committed state, if a transaction is open.
    pub(crate) fn rollback(&self) -> Result<(), Fault> {
        {
            // An event may have ended the transaction already.
            let mut skipped = self.skipped.borrow_mut();
            skipped.now = skipped.committed;
            skipped.marks.clear();
        }
        if self.sandbox.is_autocommit() {
            return Ok(());
        }
        // What the transaction wrote, and what it overwrote, reads otherwise now.
        self.touched.set(Tables::ALL);
        self.run("ROLLBACK")
    }

    /// Starts a part of the transaction that can be [undone](Self::undo) alone.
    pub(crate) fn mark(&self) -> Result<(), Fault> {
        self.run("SAVEPOINT mark")?;
        let mut skipped = self.skipped.borrow_mut();
        let now = skipped.now;
        skipped.marks.push(now);
        Ok(())
    }

    /// Ends the part that began with the last mark, and keeps it.
    pub(crate) fn keep(&self) -> Result<(), Fault> {
        self.run("RELEASE mark")?;
        self.skipped.borrow_mut().marks.pop();
        Ok(())
    }

    /// Ends the part that began with the last mark, and undoes it.
    pub(crate) fn undo(&self) -> Result<(), Fault> {
        self.run("ROLLBACK TO mark")?;
        self.run("RELEASE mark")?;
        let mut skipped = self.skipped.borrow_mut();
        skipped.now = skipped.marks.pop().expect("BUG: a part is undone that wasn't begun");
        Ok(())
    }

    /// How many events were skipped for a fault, and how many because nothing here knows their name.
    pub(crate) fn count_skipped(&self) -> (u64, u64) {
        self.skipped.borrow().now
    }

    /// Why the event `id` has no effect, if it has none for a fault of its own.
    pub(crate) fn why_skipped(&self, id: EventId) -> Result<Option<String>, Fault> {
        let sql = "SELECT why FROM likewise_skipped WHERE id = ?1";
        let why = self.sandbox.engine().query_row(sql, [id.as_bytes()], |row| row.get(0)).optional();
        Ok(why.map_err(Fault::state)?.flatten())
    }

    /// Answers a query, with what is in the open transaction.
    pub(crate) fn read<T: 'static>(&self, query: &Query<T>) -> Result<(T, Tables), DbError> {
        query.run(&self.sandbox)
    }

    /// Answers a question from another process.
    pub(crate) fn ask(&self, question: Question) -> Result<Answer, DbError> {
        question.ask(&self.sandbox)
    }

    /// The tables that were written since the last call.
    pub(crate) fn take_touched(&self) -> Tables {
        self.touched.replace(Tables::NONE)
    }

    /// Makes every query count as touched.
    pub(crate) fn touch_all(&self) {
        self.touched.set(Tables::ALL);
    }

    /// The digest of what the tables hold, with what is in the open transaction.
    pub(crate) fn digest(&self) -> Result<Digest, Fault> {
        digest_of(self.sandbox.engine()).map_err(Fault::state)
    }

    /// Makes SQLite give rows in the reverse of its natural order wherever a statement doesn't order them itself: a
    /// materializer that relies on that order then shows itself.
    pub(crate) fn reverse_unordered(&self) -> Result<(), Fault> {
        self.sandbox.engine().execute_batch("PRAGMA reverse_unordered_selects = 1").map_err(Fault::state)
    }

    fn run(&self, sql: &'static str) -> Result<(), Fault> {
        let run = |conn: &Connection| conn.prepare_cached(sql)?.execute(()).map(drop);
        run(self.sandbox.engine()).map_err(Fault::state)
    }
}

impl Drop for State {
    fn drop(&mut self) {
        // Whoever lets go of a state may be about to replace its file.
        if let Some(wal) = &self.wal {
            wal.retire();
        }
    }
}

/// What a file holds as its committed state.
#[derive(Debug)]
pub(crate) struct Committed {
    pub(crate) cursor: Cursor,
    pub(crate) digest: Digest,
    made_by: String,
    schema: String,
}

impl Committed {
    /// Whether this program would go on with that state, rather than make it anew.
    pub(crate) fn is_made_by(&self, schema: &Schema, executable: &str) -> bool {
        self.made_by == made_by(executable) && self.schema == schema.fingerprint()
    }
}

/// Reads the state at `path` beside the one that writes to it in this process. Whoever makes it anew lets nobody in
/// meanwhile.
pub(crate) fn committed(path: &Path) -> Result<Committed, Fault> {
    let read = || {
        let conn = Beside::open(path)?;
        conn.only_read()?;
        conn.execute_batch("BEGIN")?;
        let (cursor, made_by, schema) = conn.query_row("SELECT * FROM likewise_cursor", (), read_cursor)?;
        Ok(Committed { cursor, digest: digest_of(&conn)?, made_by, schema })
    };
    read().map_err(Fault::state)
}

fn read_cursor(row: &Row<'_>) -> rusqlite::Result<(Cursor, String, String)> {
    let digest = Digest::from_slice(row.get_ref("digest")?.as_blob()?).unwrap_or_default();
    let cursor = Cursor { generation: Generation(row.get("generation")?), seq: Seq::from_sql(row.get("seq")?), digest };
    Ok((cursor, row.get("made_by")?, row.get("schema")?))
}

/// The digest of all tables that aren't the engine's: of their names, and of each row with its rowid, in the order of
/// their keys. It depends on what the tables hold, not on where SQLite put it.
fn digest_of(conn: &Connection) -> rusqlite::Result<Digest> {
    // `sqlite_sequence` decides about future rowids, so it is content too.
    let tables: Vec<(String, bool)> = conn
        .prepare(
            "SELECT name, wr FROM pragma_table_list
             WHERE schema = 'main' AND type = 'table' AND name NOT LIKE 'likewise~_%' ESCAPE '~'
               AND (name NOT LIKE 'sqlite~_%' ESCAPE '~' OR name = 'sqlite_sequence')
             ORDER BY name",
        )?
        .query_map((), |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    let mut hasher = blake3::Hasher::new();
    for (table, without_rowid) in tables {
        feed(&mut hasher, b'T', table.as_bytes());
        let quoted = table.replace('"', "\"\"");
        let sql = if table == "sqlite_sequence" {
            "SELECT name, seq FROM sqlite_sequence ORDER BY name".to_owned()
        } else if without_rowid {
            let keys: Vec<String> = conn
                .prepare("SELECT name FROM pragma_table_info(?1) WHERE pk > 0 ORDER BY pk")?
                .query_map([&table], |row| row.get::<_, String>(0))?
                .map(|name| name.map(|name| format!("\"{}\"", name.replace('"', "\"\""))))
                .collect::<Result<_, _>>()?;
            format!("SELECT * FROM \"{quoted}\" ORDER BY {}", keys.join(", "))
        } else {
            format!("SELECT rowid, * FROM \"{quoted}\" ORDER BY rowid")
        };
        let mut statement = conn.prepare(&sql)?;
        let columns = statement.column_count();
        let mut rows = statement.query(())?;
        while let Some(row) = rows.next()? {
            feed(&mut hasher, b'R', &[]);
            for column in 0..columns {
                use rusqlite::types::ValueRef;
                match row.get_ref(column)? {
                    ValueRef::Null => feed(&mut hasher, b'N', &[]),
                    ValueRef::Integer(value) => feed(&mut hasher, b'I', &value.to_le_bytes()),
                    ValueRef::Real(value) => feed(&mut hasher, b'F', &value.to_bits().to_le_bytes()),
                    ValueRef::Text(value) => feed(&mut hasher, b'S', value),
                    ValueRef::Blob(value) => feed(&mut hasher, b'B', value),
                }
            }
        }
    }
    Ok(Digest(*hasher.finalize().as_bytes()))
}

fn feed(hasher: &mut blake3::Hasher, kind: u8, bytes: &[u8]) {
    hasher.update(&[kind]);
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

/// Who makes a state: this executable and this SQLite. No fingerprint of a schema can see the body of a closure.
fn made_by(executable: &str) -> String {
    let source: &str = rusqlite::version();
    format!("{executable} sqlite {source}")
}

fn is_sound(conn: &Connection) -> Result<bool, Fault> {
    match conn.query_row("PRAGMA quick_check(1)", (), |row| row.get::<_, String>(0)) {
        Ok(line) => Ok(line == "ok"),
        Err(error) if is_damage(&error) => Ok(false),
        Err(error) => Err(Fault::state(error)),
    }
}
