//! The connection that other people's SQL runs on, and who may do what there.
//!
//! SQLite asks its authorizer about everything a statement is going to do when the statement is prepared. One
//! authorizer a connection is installed once, for good (installing one expires every prepared statement), and it
//! looks at what the engine is doing right now. It serves two purposes: it keeps materializers and queries to what is
//! deterministic, and it tells which tables a statement reads and writes.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::{BitOr, BitOrAssign};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};

use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::{CachedStatement, Connection, Statement};

use super::error::DbError;

/// Tables of the engine in `state.db`; nobody else may make, read or write one whose name begins so.
pub(crate) const OWN_PREFIX: &str = "likewise_";

/// How many prepared statements, and how many verdicts on them, a connection keeps.
const STATEMENTS: usize = 256;

/// What a materializer or a query may call: pure functions of their arguments. SQLite's own marking is of no use here,
/// as it calls `datetime` deterministic. Left out on purpose: everything about time, chance, the connection, and the
/// transcendental functions, which differ between C libraries.
const FUNCTIONS: &[&str] = &[
    "->",
    "->>",
    "abs",
    "avg",
    "ceil",
    "ceiling",
    "char",
    "coalesce",
    "concat",
    "concat_ws",
    "count",
    "cume_dist",
    "dense_rank",
    "first_value",
    "floor",
    "format",
    "glob",
    "group_concat",
    "hex",
    "if",
    "ifnull",
    "iif",
    "instr",
    "json",
    "json_array",
    "json_array_length",
    "json_error_position",
    "json_extract",
    "json_group_array",
    "json_group_object",
    "json_insert",
    "json_object",
    "json_patch",
    "json_pretty",
    "json_quote",
    "json_remove",
    "json_replace",
    "json_set",
    "json_type",
    "json_valid",
    "lag",
    "last_value",
    "lead",
    "length",
    "like",
    "likelihood",
    "likely",
    "lower",
    "ltrim",
    "max",
    "min",
    "mod",
    "nth_value",
    "ntile",
    "nullif",
    "octet_length",
    "percent_rank",
    "printf",
    "quote",
    "rank",
    "replace",
    "round",
    "row_number",
    "rtrim",
    "sign",
    "string_agg",
    "substr",
    "substring",
    "subtype",
    "sum",
    "total",
    "trim",
    "trunc",
    "typeof",
    "unhex",
    "unicode",
    "unlikely",
    "upper",
];

/// A set of a schema's tables. The tables from the 64th on share one place, which costs at most a needless re-run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Tables(pub(super) u64);

impl Tables {
    pub(crate) const NONE: Self = Self(0);
    pub(crate) const ALL: Self = Self(u64::MAX);

    fn nth(index: usize) -> Self {
        Self(1 << index.min(63))
    }

    pub(crate) fn touches(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl BitOr for Tables {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Tables {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// Whose statements are being prepared or run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Mode {
    /// The engine's own: anything.
    Engine = 0,
    /// The schema's script.
    Schema = 1,
    /// A materializer's: reads and writes rows of the schema's tables.
    Materialize = 2,
    /// A query's: reads them.
    Query = 3,
}

/// What the authorizer looks at and writes down. Shared with SQLite's callback, which is why it locks; nobody contends.
struct Gate {
    mode: AtomicU8,
    notes: Mutex<Notes>,
}

#[derive(Default)]
struct Notes {
    /// The schema's tables and views, each at the place that stands for it in [`Tables`].
    tables: Vec<String>,
    /// What else SQLite has rows of: its modules, each of which may be read as a table.
    modules: Vec<String>,
    touched: Touched,
    refused: Option<String>,
}

/// The tables that one statement touches.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Touched {
    pub(crate) reads: Tables,
    pub(crate) writes: Tables,
}

impl Gate {
    fn mode(&self) -> Mode {
        match self.mode.load(Ordering::Relaxed) {
            0 => Mode::Engine,
            1 => Mode::Schema,
            2 => Mode::Materialize,
            _ => Mode::Query,
        }
    }

    /// What was written down since the last call.
    fn take_notes(&self) -> (Touched, Option<String>) {
        let mut notes = self.notes.lock().expect("BUG: the authorizer panicked");
        (std::mem::take(&mut notes.touched), notes.refused.take())
    }

    fn authorize(&self, context: &AuthContext<'_>) -> Authorization {
        let mode = self.mode();
        if mode == Mode::Engine {
            return Authorization::Allow;
        }
        let mut notes = self.notes.lock().expect("BUG: the authorizer panicked");
        match notes.judge(mode, context) {
            Ok(()) => Authorization::Allow,
            Err(why) => {
                notes.refused.get_or_insert(why);
                Authorization::Deny
            }
        }
    }
}

impl Notes {
    fn judge(&mut self, mode: Mode, context: &AuthContext<'_>) -> Result<(), String> {
        if context.database_name.is_some_and(|name| name != "main") {
            return Err("temporary and attached databases can't be used here".to_owned());
        }
        let writes = mode != Mode::Query;
        match context.action {
            AuthAction::Select | AuthAction::Recursive => Ok(()),
            // Also the name of a common table expression, where only the number of its rows counts. What it reads itself
            // is asked about as well.
            AuthAction::Read { table_name, column_name: "" } if mode != Mode::Schema && self.is_free(table_name) => {
                Ok(())
            }
            AuthAction::Read { table_name, .. } => {
                let table = self.table(mode, table_name)?;
                self.touched.reads |= table;
                Ok(())
            }
            AuthAction::Insert { table_name }
            | AuthAction::Update { table_name, .. }
            | AuthAction::Delete { table_name }
                if writes =>
            {
                let table = self.table(mode, table_name)?;
                self.touched.writes |= table;
                Ok(())
            }
            AuthAction::Function { function_name } => {
                if FUNCTIONS.iter().any(|allowed| allowed.eq_ignore_ascii_case(function_name)) {
                    Ok(())
                } else {
                    Err(format!(
                        "the function {function_name}() can't be used here: its result is not a pure function of its \
                         arguments, so replicas would differ"
                    ))
                }
            }
            AuthAction::CreateTable { table_name: name }
            | AuthAction::CreateIndex { index_name: name, .. }
            | AuthAction::CreateTrigger { trigger_name: name, .. }
            | AuthAction::CreateView { view_name: name }
                if mode == Mode::Schema =>
            {
                if name.to_ascii_lowercase().starts_with(OWN_PREFIX) {
                    return Err(format!("the name {name} is taken: `{OWN_PREFIX}` is the engine's own prefix"));
                }
                Ok(())
            }
            // CREATE INDEX fills the index it makes.
            AuthAction::Reindex { .. } if mode == Mode::Schema => Ok(()),
            other => Err(format!("{} can't be used here: {}", describe(&other), allowed_in(mode))),
        }
    }

    /// Whether nothing in the database has this name, and nothing that SQLite itself offers.
    fn is_free(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        let is_own = [OWN_PREFIX, "sqlite_", "pragma_", "json_"].iter().any(|prefix| name.starts_with(prefix));
        !is_own && !self.tables.iter().chain(&self.modules).any(|taken| taken.eq_ignore_ascii_case(&name))
    }

    fn table(&self, mode: Mode, name: &str) -> Result<Tables, String> {
        if mode == Mode::Schema {
            // The tables are not known before the script has run; SQLite's catalogue is what it writes to.
            return if name.to_ascii_lowercase().starts_with(OWN_PREFIX) {
                Err(format!("the table {name} is the engine's own"))
            } else {
                Ok(Tables::NONE)
            };
        }
        // Mostly SQLite gives the name that the table has, but sometimes as the statement spells it.
        let index = self.tables.iter().position(|table| table.eq_ignore_ascii_case(name));
        index.map(Tables::nth).ok_or_else(|| format!("the table {name} is not one of the schema's"))
    }
}

fn describe(action: &AuthAction<'_>) -> String {
    let text = format!("{action:?}");
    text.split(['{', ' ', '(']).next().unwrap_or("this").to_owned()
}

fn allowed_in(mode: Mode) -> &'static str {
    match mode {
        Mode::Engine => "",
        Mode::Schema => "a schema creates tables, indexes, views and triggers, and fills them with rows",
        Mode::Materialize => "a materializer reads and writes rows of the schema's tables, and nothing else",
        Mode::Query => "a query only reads",
    }
}

/// A connection whose statements are checked, each in the role it plays.
///
/// What the engine itself prepares here must not be reachable from outside: a statement is only taken from the cache
/// when its text has passed the check in the same role before.
pub(crate) struct Sandbox {
    conn: Connection,
    gate: Arc<Gate>,
    verdicts: [RefCell<HashMap<Box<str>, Touched>>; 2],
}

impl Sandbox {
    pub(crate) fn new(mut conn: Connection) -> rusqlite::Result<Self> {
        let gate = Arc::new(Gate { mode: AtomicU8::new(Mode::Engine as u8), notes: Mutex::default() });
        let asked = Arc::clone(&gate);
        conn.authorizer(Some(move |context: AuthContext<'_>| asked.authorize(&context)))?;
        conn.set_prepared_statement_cache_capacity(STATEMENTS);
        Ok(Self { conn, gate, verdicts: Default::default() })
    }

    /// The connection, for the engine's own statements.
    pub(crate) fn engine(&self) -> &Connection {
        debug_assert_eq!(self.gate.mode(), Mode::Engine, "BUG: the engine speaks in another's role");
        &self.conn
    }

    /// Whether no transaction is open.
    pub(crate) fn is_autocommit(&self) -> bool {
        self.conn.is_autocommit()
    }

    /// Runs `act` in the role `mode`; statements that SQLite prepares again meanwhile are checked again.
    pub(crate) fn within<R>(&self, mode: Mode, act: impl FnOnce() -> R) -> R {
        /// Gives the role back, also when a materializer panics.
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

    /// Learns which tables and views the schema made.
    pub(crate) fn learn_tables(&self) -> rusqlite::Result<()> {
        let sql = "SELECT name FROM sqlite_schema WHERE type IN ('table', 'view') ORDER BY name";
        let names = |sql| self.conn.prepare(sql)?.query_map((), |row| row.get(0))?.collect::<Result<Vec<String>, _>>();
        let (tables, modules) = (names(sql)?, names("SELECT name FROM pragma_module_list")?);
        let own = |name: &String| !name.starts_with(OWN_PREFIX) && !name.starts_with("sqlite_");
        let mut notes = self.gate.notes.lock().expect("BUG: the authorizer panicked");
        notes.tables = tables.into_iter().filter(own).collect();
        notes.modules = modules;
        Ok(())
    }

    /// Runs a schema's script.
    pub(crate) fn run_script(&self, sql: &str) -> Result<(), DbError> {
        self.within(Mode::Schema, || self.told_why(|conn| conn.execute_batch(sql))).map(drop)
    }

    /// Checks `sql` in the role `mode`, once, and prepares it. To be called [within](Self::within) that role.
    pub(crate) fn prepare(&self, mode: Mode, sql: &str) -> Result<(CachedStatement<'_>, Touched), DbError> {
        let verdicts = &self.verdicts[usize::from(mode == Mode::Query)];
        let known = verdicts.borrow().get(sql).copied();
        let touched = match known {
            Some(touched) => touched,
            None => {
                let (statement, touched) = self.told_why(|conn| conn.prepare(sql))?;
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

    /// Statements of materializers, to be held while many events are applied.
    pub(crate) fn statements(&self) -> Statements<'_> {
        Statements { sandbox: self, ready: RefCell::default() }
    }

    /// Has SQLite prepare something, and joins what it says of it with what the authorizer wrote down about it. What is
    /// written down already is of statements that SQLite prepared again when they were run.
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

/// Statements of materializers that stay at hand from one event to the next: to look one up among all that the
/// connection knows, and to put it back, takes as long as to run it.
pub(crate) struct Statements<'a> {
    sandbox: &'a Sandbox,
    ready: RefCell<Vec<Rc<Ready<'a>>>>,
}

struct Ready<'a> {
    sql: Box<str>,
    touched: Touched,
    /// Borrowed while it runs.
    statement: RefCell<CachedStatement<'a>>,
}

impl<'a> Statements<'a> {
    /// As many are at hand at most, because they are searched one by one.
    const MOST: usize = 16;

    pub(crate) fn sandbox(&self) -> &'a Sandbox {
        self.sandbox
    }

    /// Prepares `sql` as [`Sandbox::prepare`] does for a materializer, and has `run` run it. Afterwards it is at hand
    /// again.
    pub(crate) fn with<R>(
        &self,
        sql: &str,
        run: impl FnOnce(&mut Statement<'a>, Touched) -> Result<R, DbError>,
    ) -> Result<R, DbError> {
        let known = self.ready.borrow().iter().find(|ready| *ready.sql == *sql).map(Rc::clone);
        let (ready, may_be_kept) = match known {
            Some(ready) if ready.statement.try_borrow_mut().is_ok() => (ready, false),
            // Not known yet, or just running: who reads its rows runs it once more for each of them.
            other => {
                let (statement, touched) = self.sandbox.prepare(Mode::Materialize, sql)?;
                let ready = Ready { sql: sql.into(), touched, statement: RefCell::new(statement) };
                (Rc::new(ready), other.is_none())
            }
        };
        let result = run(&mut ready.statement.borrow_mut(), ready.touched);
        if may_be_kept && self.ready.borrow().len() < Self::MOST {
            self.ready.borrow_mut().push(ready);
        }
        result
    }
}
