//! Decides what SQL may do, and notes what it touches. SQLite asks about everything a statement is going to do when the
//! statement is prepared.
//!
//! The answers restrict materializers and queries to deterministic operations. They also tell which tables a statement
//! reads and writes.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use rusqlite::hooks::{AuthAction, AuthContext, Authorization};

use super::changes::Tables;
use crate::limits::engine::sql::{QUERY_STEPS, STEPS_AT_ONCE};

/// The prefix of the engine's tables in `state.db`. No one else may create, read or write a table with this prefix.
pub(crate) const OWN_PREFIX: &str = "likewise_";

/// The functions that a materializer or a query may call: pure functions of their arguments. SQLite's own marking
/// doesn't help, because it calls `datetime` deterministic. Deliberately left out: everything about time, randomness
/// and the connection, and the transcendental functions, which differ between C libraries.
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

/// SQLite's date and time functions.
const DATES: &[&str] = &[
    "current_date",
    "current_time",
    "current_timestamp",
    "date",
    "datetime",
    "julianday",
    "strftime",
    "time",
    "timediff",
    "unixepoch",
];

/// The tables that one statement touches.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Touched {
    pub(crate) reads: Tables,
    pub(crate) writes: Tables,
    /// Those it writes in a way that SQLite's update hook doesn't report row by row.
    pub(crate) whole: Tables,
}

/// Whose statements are being prepared or run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Mode {
    /// The engine's own. They may do anything.
    Engine = 0,
    /// The schema's script.
    Schema = 1,
    /// A materializer's. They read and write rows of the schema's tables.
    Materialize = 2,
    /// A query's. They read those rows.
    Query = 3,
}

/// The authorizer's inputs and notes. They are shared with SQLite's callback, hence the lock. There is no contention.
pub(super) struct Gate {
    pub(super) mode: AtomicU8,
    pub(super) notes: Mutex<Notes>,
    /// The steps that the running query may still take, in units of [`STEPS_AT_ONCE`].
    steps_left: AtomicU32,
    /// The steps that queries took since the last [`take_steps`](Self::take_steps), in the same units.
    steps_taken: AtomicU32,
}

#[derive(Default)]
pub(super) struct Notes {
    /// The schema's tables and views, each at its place in [`Tables`].
    pub(super) tables: Vec<String>,
    /// SQLite's modules. Each may be read as a table.
    pub(super) modules: Vec<String>,
    /// For each table, the column that is another name for the rowid.
    pub(super) row_columns: Vec<Option<String>>,
    /// Tables whose rows can change without a call of SQLite's update hook.
    pub(super) silent: Tables,
    pub(super) touched: Touched,
    pub(super) refused: Option<String>,
}

impl Gate {
    pub(super) fn new() -> Self {
        Self {
            mode: AtomicU8::new(Mode::Engine as u8),
            notes: Mutex::default(),
            steps_left: AtomicU32::new(0),
            steps_taken: AtomicU32::new(0),
        }
    }

    /// Resets the step limit for the next query.
    pub(super) fn allow_steps(&self) {
        self.steps_left.store(QUERY_STEPS / STEPS_AT_ONCE, Ordering::Relaxed);
    }

    /// Counts [`STEPS_AT_ONCE`] steps, and returns whether the statement has to end. Only queries are counted.
    pub(super) fn must_end(&self) -> bool {
        if self.mode() != Mode::Query {
            return false;
        }
        self.steps_taken.fetch_add(1, Ordering::Relaxed);
        let take = |left: u32| left.checked_sub(1);
        self.steps_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err()
    }

    pub(super) fn mode(&self) -> Mode {
        match self.mode.load(Ordering::Relaxed) {
            0 => Mode::Engine,
            1 => Mode::Schema,
            2 => Mode::Materialize,
            _ => Mode::Query,
        }
    }

    /// Returns how many steps queries took since the last call.
    pub(super) fn take_steps(&self) -> u32 {
        self.steps_taken.swap(0, Ordering::Relaxed).saturating_mul(STEPS_AT_ONCE)
    }

    /// Returns the notes since the last call.
    pub(super) fn take_notes(&self) -> (Touched, Option<String>) {
        let mut notes = self.notes.lock().expect("BUG: the authorizer panicked");
        (std::mem::take(&mut notes.touched), notes.refused.take())
    }

    pub(super) fn authorize(&self, context: &AuthContext<'_>) -> Authorization {
        let mode = self.mode();
        if mode == Mode::Engine {
            return Authorization::Allow;
        }
        let mut notes = self.notes.lock().expect("BUG: the authorizer panicked");
        match notes.judge(mode, context) {
            // This answer makes SQLite delete each row individually. Otherwise it may empty the whole table at once and
            // report no row.
            Ok(()) if matches!(context.action, AuthAction::Delete { .. }) => Authorization::Ignore,
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
            // This may also be the name of a common table expression of which only the number of rows counts. SQLite
            // asks separately about the tables that the expression reads.
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
                if self.silent.touches(table) || self.moves_rows(&context.action) {
                    self.touched.whole |= table;
                }
                Ok(())
            }
            AuthAction::Function { function_name } => {
                if FUNCTIONS.iter().any(|allowed| allowed.eq_ignore_ascii_case(function_name)) {
                    Ok(())
                } else {
                    let way_out = instead_of(function_name);
                    Err(format!(
                        "the function {function_name}() can't be used here: its result is not a pure function of its \
                         arguments, so replicas would differ{way_out}"
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
            // CREATE INDEX fills the index it creates.
            AuthAction::Reindex { .. } if mode == Mode::Schema => Ok(()),
            other => Err(format!("{} can't be used here: {}", describe(&other), allowed_in(mode))),
        }
    }

    /// Returns whether neither the database nor SQLite itself uses this name.
    fn is_free(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        let is_own = [OWN_PREFIX, "sqlite_", "pragma_", "json_"].iter().any(|prefix| name.starts_with(prefix));
        !is_own && !self.tables.iter().chain(&self.modules).any(|taken| taken.eq_ignore_ascii_case(&name))
    }

    /// Returns whether rows get new rowids. The update hook reports only the new ones.
    fn moves_rows(&self, action: &AuthAction<'_>) -> bool {
        let AuthAction::Update { table_name, column_name } = action else { return false };
        let place = self.tables.iter().position(|table| table.eq_ignore_ascii_case(table_name));
        let row_column = place.and_then(|place| self.row_columns[place].as_deref());
        row_column.into_iter().chain(["rowid"]).any(|column| column.eq_ignore_ascii_case(column_name))
    }

    fn table(&self, mode: Mode, name: &str) -> Result<Tables, String> {
        if mode == Mode::Schema {
            // The tables are not known before the script has run. The script writes to SQLite's catalogue.
            return if name.to_ascii_lowercase().starts_with(OWN_PREFIX) {
                Err(format!("the table {name} is the engine's own"))
            } else {
                Ok(Tables::NONE)
            };
        }
        // SQLite usually passes the table's own name, but sometimes passes it as the statement spells it.
        let index = self.tables.iter().position(|table| table.eq_ignore_ascii_case(name));
        index.map(Tables::nth).ok_or_else(|| format!("the table {name} is not one of the schema's"))
    }
}

/// Returns what to use instead of a forbidden function, as the end of a sentence.
fn instead_of(function: &str) -> &'static str {
    let function = function.to_ascii_lowercase();
    if DATES.contains(&&*function) {
        "; for dates, use db.millis(), the time of the event"
    } else if ["random", "randomblob"].contains(&&*function) {
        "; for something unique, use db.id()"
    } else if ["changes", "total_changes"].contains(&&*function) {
        "; db.execute() gives the number of rows that it changed"
    } else if function == "last_insert_rowid" {
        "; use RETURNING, or db.id() as the key"
    } else {
        ""
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_lists_the_functions_that_may_be_called() {
        let rows = include_str!("../../docs/functions.md").lines().filter(|line| line.starts_with("| ")).skip(1);
        let mut listed: Vec<&str> = rows.flat_map(|row| row.split('`').skip(1).step_by(2)).collect();
        listed.sort_unstable();
        assert_eq!(listed, FUNCTIONS);
    }
}
