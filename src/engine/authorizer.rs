//! What SQL may do here, and what it touches: SQLite asks about everything a statement is going to do when it is prepared.
//!
//! The answers keep materializers and queries to what is deterministic, and tell which tables a statement reads and writes.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use rusqlite::hooks::{AuthAction, AuthContext, Authorization};

use super::changes::Tables;
use crate::limits::engine::sql::{QUERY_STEPS, STEPS_AT_ONCE};

/// Tables of the engine in `state.db`; nobody else may make, read or write one whose name begins so.
pub(crate) const OWN_PREFIX: &str = "likewise_";

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

/// SQLite's functions about dates and time.
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
    /// Those it writes in a way that SQLite's update hook doesn't tell row by row.
    pub(crate) whole: Tables,
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
pub(super) struct Gate {
    pub(super) mode: AtomicU8,
    pub(super) notes: Mutex<Notes>,
    /// What the query that runs may still take, in units of [`STEPS_AT_ONCE`].
    steps_left: AtomicU32,
    /// What queries took since somebody asked last, in the same units.
    steps_taken: AtomicU32,
}

#[derive(Default)]
pub(super) struct Notes {
    /// The schema's tables and views, each at the place that stands for it in [`Tables`].
    pub(super) tables: Vec<String>,
    /// What else SQLite has rows of: its modules, each of which may be read as a table.
    pub(super) modules: Vec<String>,
    /// Of each of the tables, the column that is another name for the row's number.
    pub(super) row_columns: Vec<Option<String>>,
    /// Tables whose rows can change without a word from SQLite's update hook.
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

    /// Lets the next query take as many steps as one may.
    pub(super) fn allow_steps(&self) {
        self.steps_left.store(QUERY_STEPS / STEPS_AT_ONCE, Ordering::Relaxed);
    }

    /// Counts [`STEPS_AT_ONCE`] steps, and says whether the statement has to end. Only queries are counted.
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

    /// How many steps queries took since the last call.
    pub(super) fn take_steps(&self) -> u32 {
        self.steps_taken.swap(0, Ordering::Relaxed).saturating_mul(STEPS_AT_ONCE)
    }

    /// What was written down since the last call.
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
            // To this answer SQLite deletes each row by itself, also where it would empty the table at once and tell no row.
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

    /// Whether rows get other numbers. The update hook tells only the new ones.
    fn moves_rows(&self, action: &AuthAction<'_>) -> bool {
        let AuthAction::Update { table_name, column_name } = action else { return false };
        let place = self.tables.iter().position(|table| table.eq_ignore_ascii_case(table_name));
        let row_column = place.and_then(|place| self.row_columns[place].as_deref());
        row_column.into_iter().chain(["rowid"]).any(|column| column.eq_ignore_ascii_case(column_name))
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

/// What to use in place of a function that isn't allowed, as the end of a sentence.
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
