//! A query from another process: the question as text, and the answer as rows.
//!
//! Only the process that holds a store can open its databases. So another process sends the question and gets the rows.
//! The author's row-reading code then runs in the process that made the query.

use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};
use serde::{Deserialize, Serialize};

use super::authorizer::Mode;
use super::error::DbError;
use super::query::Query;
use super::sandbox::Sandbox;

/// A question about the state of a store.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Question {
    sql: String,
    params: Vec<Cell>,
}

/// The rows of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answer {
    columns: Vec<String>,
    rows: Vec<Vec<Cell>>,
}

/// An SQLite value, kept bit for bit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Cell {
    #[serde(rename = "n")]
    Null,
    #[serde(rename = "i")]
    Integer(i64),
    /// The bits of a number, because JSON has no infinity.
    #[serde(rename = "r")]
    Real(u64),
    #[serde(rename = "t")]
    Text(String),
    #[serde(rename = "b")]
    Blob(Vec<u8>),
}

impl From<Value> for Cell {
    fn from(value: Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Integer(value) => Self::Integer(value),
            Value::Real(value) => Self::Real(value.to_bits()),
            Value::Text(value) => Self::Text(value),
            Value::Blob(value) => Self::Blob(value),
        }
    }
}

impl From<Cell> for Value {
    fn from(cell: Cell) -> Self {
        match cell {
            Cell::Null => Self::Null,
            Cell::Integer(value) => Self::Integer(value),
            Cell::Real(bits) => Self::Real(f64::from_bits(bits)),
            Cell::Text(value) => Self::Text(value),
            Cell::Blob(value) => Self::Blob(value),
        }
    }
}

impl Question {
    /// Creates the question that `query` asks.
    pub(crate) fn of<T: 'static>(query: &Query<T>) -> Self {
        let (sql, params) = query.parts();
        Self { sql: sql.to_owned(), params: params.iter().cloned().map(Cell::from).collect() }
    }

    /// Runs the question on a state. It may do what any query may, and no more.
    pub(super) fn ask(self, sandbox: &Sandbox) -> Result<Answer, DbError> {
        sandbox.query(&self.sql, || {
            let (mut statement, _) = sandbox.prepare(Mode::Query, &self.sql)?;
            let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
            let mut rows = statement.query(params_from_iter(self.params.iter().cloned().map(Value::from)))?;
            let mut answer = Vec::new();
            while let Some(row) = rows.next()? {
                let row = (0..columns.len()).map(|column| row.get::<_, Value>(column).map(Cell::from));
                answer.push(row.collect::<Result<_, _>>()?);
            }
            Ok(Answer { columns, rows: answer })
        })
    }
}

impl Answer {
    /// Reads the rows as `query` does. This has to be its answer.
    ///
    /// Only SQLite can make rows that the author's code can read, so these go through a database in memory.
    ///
    /// # Errors
    ///
    /// If the author's code can't read the rows, or they don't answer `query`.
    pub(crate) fn read<T: 'static>(self, query: &Query<T>) -> Result<T, DbError> {
        let Self { columns, rows } = self;
        if columns.is_empty() || rows.iter().any(|row| row.len() != columns.len()) {
            return Err(DbError::refuse("the rows don't have the columns that the answer names"));
        }
        let list =
            |of: fn((usize, &String)) -> String| columns.iter().enumerate().map(of).collect::<Vec<_>>().join(", ");
        let conn = Connection::open_in_memory()?;
        // Columns without a type leave values unchanged.
        conn.execute_batch(&format!("BEGIN; CREATE TABLE answer ({})", list(|(n, _)| format!("c{n}"))))?;
        let mut insert =
            conn.prepare(&format!("INSERT INTO answer VALUES ({})", list(|(n, _)| format!("?{}", n + 1))))?;
        for row in rows {
            insert.execute(params_from_iter(row.into_iter().map(Value::from)))?;
        }
        let named = list(|(n, name)| format!("c{n} AS \"{}\"", name.replace('"', "\"\"")));
        let mut select = conn.prepare(&format!("SELECT {named} FROM answer ORDER BY rowid"))?;
        query.read_rows(&mut select.raw_query())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Schema;
    use crate::engine::state::State;

    #[test]
    fn every_value_comes_through_another_process_as_it_was() {
        let schema = Schema::new(
            "CREATE TABLE t (id INTEGER PRIMARY KEY, r REAL, s TEXT, b BLOB, n INTEGER) STRICT;
             INSERT INTO t VALUES (-9223372036854775808, 9e999, 'a\"b', x'00ff', NULL), (7, 0.1, '', x'', 1);",
        );
        let state = State::in_memory(&schema.into()).expect("a state");
        type Row = (i64, f64, String, Vec<u8>, Option<i64>, i64);
        // Two columns have the same name, and one has a quote in its name.
        let query: Query<Vec<Row>> =
            Query::rows("SELECT id, r, s AS \"a\"\"b\", b, n, id FROM t WHERE id < ?1 ORDER BY id", |row| {
                Ok((row.get(0)?, row.get("r")?, row.get("a\"b")?, row.get(3)?, row.get("n")?, row.get(5)?))
            });
        let query = query.bind(100);
        let text = serde_json::to_string(&Question::of(&query)).expect("JSON");
        let question: Question = serde_json::from_str(&text).expect("a question");
        let answer = serde_json::to_string(&state.ask(question).expect("an answer")).expect("JSON");
        let answer: Answer = serde_json::from_str(&answer).expect("an answer");
        let expected = vec![
            (i64::MIN, f64::INFINITY, "a\"b".to_owned(), vec![0, 255], None, i64::MIN),
            (7, 0.1, String::new(), Vec::new(), Some(1), 7),
        ];
        assert_eq!(answer.read(&query).expect("rows"), expected);
    }

    #[test]
    fn a_question_that_never_ends_is_refused() {
        let state = State::in_memory(&Schema::new("CREATE TABLE t (id INTEGER PRIMARY KEY) STRICT").into());
        let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
        let question = Question { sql: sql.to_owned(), params: Vec::new() };
        let refused = state.expect("a state").ask(question);
        assert!(matches!(&refused, Err(DbError::TooManySteps(named)) if **named == *sql), "{refused:?}");
    }

    #[test]
    fn a_question_may_only_read() {
        let schema = Schema::new("CREATE TABLE t (id INTEGER PRIMARY KEY) STRICT").into();
        let state = State::in_memory(&schema).expect("a state");
        for sql in ["DELETE FROM t", "PRAGMA user_version = 1", "SELECT random()", "SELECT 1; DELETE FROM t"] {
            assert!(state.ask(Question { sql: sql.to_owned(), params: Vec::new() }).is_err(), "{sql}");
        }
    }
}
