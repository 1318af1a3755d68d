//! The connection that the author's SQL runs on.
//!
//! When a statement is prepared, SQLite asks its authorizer about everything the statement is going to do. Installing
//! an authorizer expires every prepared statement, so each connection gets one for good. That authorizer looks at what
//! the engine is doing right now. It serves two purposes: it restricts materializers and queries to deterministic
//! operations, and it reports which tables a statement reads and writes.

use std::cell::{RefCell, RefMut};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};

use rusqlite::hooks::AuthContext;
use rusqlite::{CachedStatement, Connection, ErrorCode, OptionalExtension};

use super::authorizer::{Gate, Mode, Notes, OWN_PREFIX, Touched};
use super::changes::{Changes, Tables};
use super::depends::KeyLookup;
use super::error::{DbError, one_line};
use super::lookup::says;
use crate::limits::engine::sql::{AT_HAND, STATEMENTS, STEPS_AT_ONCE};

/// A connection whose statements are checked, each in its role.
///
/// Code outside must not reach the statements that the engine itself prepares here. So a statement is taken from the
/// cache only if its text has passed the check in the same role.
pub(crate) struct Sandbox {
    conn: Connection,
    gate: Arc<Gate>,
    verdicts: [RefCell<HashMap<Box<str>, Touched>>; 2],
    /// The rows written since they were last taken, while somebody asks for them.
    rows: Arc<Mutex<Changes>>,
    is_recording: bool,
    /// The queries that look rows up by a key, by query text.
    lookups: RefCell<HashMap<&'static str, Option<Arc<KeyLookup>>>>,
}

impl Sandbox {
    pub(crate) fn new(mut conn: Connection) -> rusqlite::Result<Self> {
        let gate = Arc::new(Gate::new());
        let asked = Arc::clone(&gate);
        conn.authorizer(Some(move |context: AuthContext<'_>| asked.authorize(&context)))?;
        let counting = Arc::clone(&gate);
        conn.progress_handler(STEPS_AT_ONCE.cast_signed(), Some(move || counting.must_end()))?;
        conn.set_prepared_statement_cache_capacity(STATEMENTS);
        Ok(Self {
            conn,
            gate,
            verdicts: Default::default(),
            rows: Arc::default(),
            is_recording: false,
            lookups: RefCell::default(),
        })
    }

    /// Returns the connection, for the engine's own statements.
    pub(crate) fn engine(&self) -> &Connection {
        debug_assert_eq!(self.gate.mode(), Mode::Engine, "BUG: the engine speaks in another's role");
        &self.conn
    }

    /// Returns whether no transaction is open.
    pub(crate) fn is_autocommit(&self) -> bool {
        self.conn.is_autocommit()
    }

    /// Runs `act` in the role `mode`. Statements that SQLite re-prepares meanwhile are checked again.
    pub(crate) fn within<R>(&self, mode: Mode, act: impl FnOnce() -> R) -> R {
        /// Restores the engine's role, even if a materializer panics.
        struct Back<'a>(&'a AtomicU8);
        impl Drop for Back<'_> {
            fn drop(&mut self) {
                self.0.store(Mode::Engine as u8, Ordering::Relaxed);
            }
        }
        self.gate.mode.store(mode as u8, Ordering::Relaxed);
        let _back = Back(&self.gate.mode);
        act()
    }

    /// Runs a query in its role. A query that exceeds its step limit is interrupted. That costs only its answer,
    /// because a statement that only reads leaves an open transaction as it was.
    pub(crate) fn query<R>(&self, sql: &str, act: impl FnOnce() -> Result<R, DbError>) -> Result<R, DbError> {
        self.gate.allow_steps();
        self.within(Mode::Query, act).map_err(|error| match error {
            DbError::Sqlite { source, .. } if source.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => {
                DbError::TooManySteps(sql.into())
            }
            other => other.of_statement(sql),
        })
    }

    /// Returns how many steps queries took since the last call.
    pub(crate) fn take_steps(&self) -> u32 {
        self.gate.take_steps()
    }

    /// Learns which tables and views the schema has created.
    pub(crate) fn learn_tables(&self) -> rusqlite::Result<()> {
        let texts = |sql| self.conn.prepare(sql)?.query_map((), |row| row.get(0))?.collect::<Result<Vec<String>, _>>();
        let own = |name: &String| !name.starts_with(OWN_PREFIX) && !name.starts_with("sqlite_");
        let names = texts("SELECT name FROM sqlite_schema WHERE type IN ('table', 'view') ORDER BY name")?;
        let tables: Vec<String> = names.into_iter().filter(own).collect();
        // If the primary key is a single integer column, that column is another name for the rowid.
        let sql = "SELECT max(name) FROM pragma_table_info(?1) WHERE pk > 0
                   HAVING count(*) = 1 AND upper(max(type)) = 'INTEGER'";
        let row_column = |table: &String| self.conn.query_row(sql, [table], |row| row.get(0)).optional();
        let row_columns: Vec<Option<String>> = tables.iter().map(row_column).collect::<Result<_, _>>()?;
        // The update hook doesn't report views and tables without a rowid. `rowid` may also be an ordinary column.
        let mut silent = Tables::NONE;
        let unnumbered = texts(
            "SELECT name FROM pragma_table_list AS t
             WHERE schema = 'main' AND (type <> 'table' OR wr
                 OR EXISTS (SELECT 1 FROM pragma_table_xinfo(t.name) WHERE name = 'rowid' COLLATE NOCASE))",
        )?;
        for (place, table) in tables.iter().enumerate() {
            if unnumbered.contains(table) {
                silent |= Tables::nth(place);
            }
        }
        // Nor does it report a row that another one replaces.
        let definitions = texts("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")?;
        if definitions.iter().any(|sql| says(sql, "REPLACE")) {
            silent = Tables::ALL;
        }
        let modules = texts("SELECT name FROM pragma_module_list")?;
        let mut notes = self.gate.notes.lock().expect("BUG: the authorizer panicked");
        *notes = Notes { tables, modules, row_columns, silent, ..Notes::default() };
        Ok(())
    }

    /// Starts or stops recording which rows are written. Recording costs a few percent of each write.
    pub(crate) fn record_rows(&mut self, is_wanted: bool) -> rusqlite::Result<()> {
        if is_wanted == self.is_recording {
            return Ok(());
        }
        let tables = self.gate.notes.lock().expect("BUG: the authorizer panicked").tables.clone();
        let rows = Arc::clone(&self.rows);
        let hook = move |_, _: &str, table: &str, row| {
            if let Some(place) = tables.iter().position(|name| name.eq_ignore_ascii_case(table)) {
                rows.lock().expect("BUG: remembering a row panicked").add_row(place, row);
            }
        };
        self.conn.update_hook(is_wanted.then_some(hook))?;
        self.is_recording = is_wanted;
        Ok(())
    }

    /// Returns whether written rows are recorded.
    pub(crate) fn is_recording(&self) -> bool {
        self.is_recording
    }

    /// Has rows reported again whose changes were undone.
    pub(crate) fn add_rows(&self, undone: &Changes) {
        self.rows.lock().expect("BUG: remembering a row panicked").add(undone);
    }

    /// Returns the rows written since the last call.
    pub(crate) fn take_rows(&self) -> Changes {
        std::mem::take(&mut *self.rows.lock().expect("BUG: remembering a row panicked"))
    }

    /// Returns the name of the table at `place`, if all changes of its rows are reported by rowid.
    pub(super) fn table_with_rows(&self, place: usize) -> Option<String> {
        let notes = self.gate.notes.lock().expect("BUG: the authorizer panicked");
        let is_told = !notes.silent.touches(Tables::nth(place));
        notes.tables.get(place).filter(|_| is_told).cloned()
    }

    /// Returns how the query `sql` looks rows up by a key, if it does. `learn` finds out the first time.
    pub(super) fn key_lookup(
        &self,
        sql: &'static str,
        learn: impl FnOnce() -> rusqlite::Result<Option<KeyLookup>>,
    ) -> rusqlite::Result<Option<Arc<KeyLookup>>> {
        if let Some(known) = self.lookups.borrow().get(sql) {
            return Ok(known.clone());
        }
        let lookup = learn()?.map(Arc::new);
        let mut lookups = self.lookups.borrow_mut();
        if lookups.len() >= STATEMENTS {
            lookups.clear();
        }
        lookups.insert(sql, lookup.clone());
        Ok(lookup)
    }

    /// Runs a schema's script.
    pub(crate) fn run_script(&self, sql: &str) -> Result<(), DbError> {
        self.within(Mode::Schema, || self.told_why(|conn| conn.execute_batch(sql))).map(drop)
    }

    /// Prepares `sql`, and checks it in the role `mode` the first time. Call it [within](Self::within) that role.
    pub(crate) fn prepare(&self, mode: Mode, sql: &str) -> Result<(CachedStatement<'_>, Touched), DbError> {
        let verdicts = &self.verdicts[usize::from(mode == Mode::Query)];
        let known = verdicts.borrow().get(sql).copied();
        let touched = match known {
            Some(touched) => touched,
            None => {
                let (statement, mut touched) =
                    self.told_why(|conn| conn.prepare(sql)).map_err(|error| match error {
                        DbError::Forbidden(why) => {
                            DbError::Forbidden(format!("{why}, in the statement `{}`", one_line(sql)))
                        }
                        other => other,
                    })?;
                if says(sql, "REPLACE") {
                    touched.whole |= touched.writes;
                }
                if statement.is_explain() != 0 {
                    return Err(DbError::Forbidden("EXPLAIN can't be used here".to_owned()));
                }
                let mut verdicts = verdicts.borrow_mut();
                if verdicts.len() >= STATEMENTS {
                    verdicts.clear();
                }
                verdicts.insert(sql.into(), touched);
                touched
            }
        };
        Ok((self.conn.prepare_cached(sql)?, touched))
    }

    /// Returns a holder of materializer statements, to keep while many events are applied.
    pub(crate) fn statements(&self) -> Statements<'_> {
        Statements { sandbox: self, ready: RefCell::default() }
    }

    /// Has SQLite prepare something, and combines its answer with the authorizer's notes. Earlier notes are dropped:
    /// they are about statements that SQLite re-prepared while they ran.
    fn told_why<'a, T>(
        &'a self,
        prepare: impl FnOnce(&'a Connection) -> rusqlite::Result<T>,
    ) -> Result<(T, Touched), DbError> {
        drop(self.gate.take_notes());
        let result = prepare(&self.conn);
        let (touched, refused) = self.gate.take_notes();
        match (result, refused) {
            (Ok(value), _) => Ok((value, touched)),
            (Err(_), Some(why)) => Err(DbError::Forbidden(why)),
            (Err(error), None) => Err(error.into()),
        }
    }
}

/// Materializer statements that are kept from one event to the next. Fetching one from the connection's cache and
/// putting it back takes as long as running it.
pub(crate) struct Statements<'a> {
    sandbox: &'a Sandbox,
    ready: RefCell<Vec<Rc<Ready<'a>>>>,
}

/// A prepared statement of a materializer.
pub(crate) struct Ready<'a> {
    sql: Box<str>,
    touched: Touched,
    /// Borrowed while it runs.
    statement: RefCell<CachedStatement<'a>>,
}

impl<'a> Statements<'a> {
    pub(crate) fn sandbox(&self) -> &'a Sandbox {
        self.sandbox
    }

    /// Prepares `sql` as [`Sandbox::prepare`] does for a materializer. Give it [back](Self::keep) after running it.
    pub(crate) fn ready(&self, sql: &str) -> Result<Rc<Ready<'a>>, DbError> {
        let known = self.ready.borrow().iter().find(|ready| *ready.sql == *sql).map(Rc::clone);
        match known {
            Some(ready) if ready.statement.try_borrow_mut().is_ok() => Ok(ready),
            // It is not known yet, or is running: a mapper may run the same statement again for each row.
            _ => {
                let (statement, touched) = self.sandbox.prepare(Mode::Materialize, sql)?;
                Ok(Rc::new(Ready { sql: sql.into(), touched, statement: RefCell::new(statement) }))
            }
        }
    }

    /// Keeps a statement for reuse, unless it is kept already or enough others are.
    pub(crate) fn keep(&self, ready: Rc<Ready<'a>>) {
        if Rc::strong_count(&ready) > 1 {
            // It is one of those kept here.
            return;
        }
        let mut all = self.ready.borrow_mut();
        if all.len() < AT_HAND && !all.iter().any(|known| known.sql == ready.sql) {
            all.push(ready);
        }
    }
}

impl<'a> Ready<'a> {
    pub(crate) fn touched(&self) -> Touched {
        self.touched
    }

    pub(crate) fn statement(&self) -> RefMut<'_, CachedStatement<'a>> {
        self.statement.borrow_mut()
    }
}
