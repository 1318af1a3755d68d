//! What the answer to a query depends on: whole tables, or the rows of one table that have one key.
//!
//! A commit reports the rowids of the rows it wrote. An answer by key has changed only if it used one of these rows, or
//! if one of them has its key now. So a commit is looked up among the watched keys, and watchers of other keys cost it
//! nothing.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use rusqlite::OptionalExtension;
use rusqlite::types::Value;

use super::changes::Tables;
use super::lookup::Lookup;
use super::sandbox::Sandbox;
use crate::limits::engine::live::ROWS_OF_A_KEY;

/// What the answer to a query depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Depends {
    /// All rows of these tables.
    Tables(Tables),
    /// The rows of one table whose `column` is `key`.
    Rows {
        column: Arc<KeyColumn>,
        key: Key,
        /// The rowids of the rows that have the key now.
        rows: Vec<i64>,
    },
}

/// A lookup value, of a kind that SQLite compares byte by byte.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Key {
    Integer(i64),
    Text(String),
    Blob(Vec<u8>),
}

/// A column by which queries look rows up.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct KeyColumn {
    /// The place of its table in [`Tables`].
    pub(super) table: usize,
    name: String,
    /// The statements that read the rows of a key, and the key of a row.
    rows_of: String,
    key_of: String,
}

impl Hash for KeyColumn {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.table.hash(state);
        self.name.hash(state);
    }
}

/// A lookup of rows by a key, learned once from a query's text.
#[derive(Debug)]
pub(super) struct KeyLookup {
    column: Arc<KeyColumn>,
    affinity: Affinity,
    /// The index of the parameter that is the key.
    param: usize,
}

impl Depends {
    /// Returns what the answer to `sql` depends on, given that it reads the tables `reads`.
    pub(super) fn of(sandbox: &Sandbox, sql: &'static str, params: &[Value], reads: Tables) -> rusqlite::Result<Self> {
        let lookup = sandbox.key_lookup(sql, || KeyLookup::of(sandbox, sql, reads))?;
        let by_key = lookup.map_or(Ok(None), |lookup| lookup.depends(sandbox, params))?;
        Ok(by_key.unwrap_or(Self::Tables(reads)))
    }
}

impl KeyLookup {
    /// Returns what `sql` looks up, if that is all it does and it reads the tables `reads`.
    fn of(sandbox: &Sandbox, sql: &str, reads: Tables) -> rusqlite::Result<Option<Self>> {
        // The authorizer has seen everything that is read. So the rest of the text doesn't matter.
        let Some(place) = reads.only() else { return Ok(None) };
        let Some(lookup) = Lookup::in_sql(sql) else { return Ok(None) };
        let Some(table) = sandbox.table_with_rows(place) else { return Ok(None) };
        if !table.eq_ignore_ascii_case(lookup.table) {
            return Ok(None);
        }
        let Some((name, affinity)) = affinity(sandbox, &table, lookup.column)? else { return Ok(None) };
        let (quoted_table, quoted) = (quote(&table), quote(&name));
        let column = Arc::new(KeyColumn {
            table: place,
            rows_of: format!("SELECT rowid FROM {quoted_table} WHERE {quoted} = ?1 LIMIT {}", ROWS_OF_A_KEY + 1),
            key_of: format!("SELECT {quoted} FROM {quoted_table} WHERE rowid = ?1"),
            name,
        });
        Ok(Some(Self { column, affinity, param: lookup.param }))
    }

    /// Returns the rows that now have the key in `params`, unless they are too many or the value is no key of that
    /// column.
    fn depends(&self, sandbox: &Sandbox, params: &[Value]) -> rusqlite::Result<Option<Depends>> {
        let Some(value) = params.get(self.param) else { return Ok(None) };
        let key = match (self.affinity, value) {
            (Affinity::Integer, Value::Integer(value)) => Key::Integer(*value),
            (Affinity::Text, Value::Text(value)) => Key::Text(value.clone()),
            (Affinity::Blob, Value::Blob(value)) => Key::Blob(value.clone()),
            _ => return Ok(None),
        };
        let rows = self.column.rows_of(sandbox, value)?;
        Ok((rows.len() <= ROWS_OF_A_KEY).then(|| Depends::Rows { column: Arc::clone(&self.column), key, rows }))
    }
}

impl KeyColumn {
    fn rows_of(&self, sandbox: &Sandbox, key: &Value) -> rusqlite::Result<Vec<i64>> {
        let mut statement = sandbox.engine().prepare_cached(&self.rows_of)?;
        statement.query_map([key], |row| row.get(0))?.collect()
    }

    /// Returns the current key of `row`.
    pub(super) fn key_of(&self, sandbox: &Sandbox, row: i64) -> rusqlite::Result<Option<Key>> {
        let mut statement = sandbox.engine().prepare_cached(&self.key_of)?;
        let value = statement.query_row([row], |row| row.get::<_, Value>(0)).optional()?;
        Ok(value.and_then(|value| match value {
            Value::Integer(value) => Some(Key::Integer(value)),
            Value::Text(value) => Some(Key::Text(value)),
            Value::Blob(value) => Some(Key::Blob(value)),
            Value::Null | Value::Real(_) => None,
        }))
    }
}

/// What a column converts values to. Only for columns where values of one kind are equal only if they are identical.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Affinity {
    Integer,
    Text,
    Blob,
}

/// Returns the spelling of the column's name in `table`, and its affinity by the rules of
/// <https://sqlite.org/datatype3.html>. Returns `None` if its values may be equal without being identical.
fn affinity(sandbox: &Sandbox, table: &str, column: &str) -> rusqlite::Result<Option<(String, Affinity)>> {
    let conn = sandbox.engine();
    let sql = "SELECT name, upper(type) FROM pragma_table_xinfo(?1) WHERE name = ?2 COLLATE NOCASE";
    let mut found = conn.prepare_cached(sql)?;
    let found = found.query_row([table, column], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)));
    let Some((name, kind)) = found.optional()? else { return Ok(None) };
    let affinity = if kind.contains("INT") {
        Affinity::Integer
    } else if ["CHAR", "CLOB", "TEXT"].iter().any(|part| kind.contains(part)) {
        Affinity::Text
    } else if kind.contains("BLOB") {
        Affinity::Blob
    } else {
        return Ok(None);
    };
    // The column may have a collation, which decides when two texts are equal.
    let sql = "SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = ?1 COLLATE NOCASE";
    let definition: String = conn.prepare_cached(sql)?.query_row([table], |row| row.get(0))?;
    Ok((!super::lookup::says(&definition, "COLLATE")).then_some((name, affinity)))
}

fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
