//! Queries: a page asks them of the state, and gets a new answer whenever a commit touches it.

use std::any::TypeId;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rusqlite::types::{FromSql, ToSqlOutput, Value, ValueRef};
use rusqlite::{Row, Rows, ToSql, params_from_iter};

use super::authorizer::Mode;
use super::changes::Tables;
use super::depends::Depends;
use super::error::{DbError, one_line};
use super::materialize::panic_message;
use super::sandbox::Sandbox;

/// A query of the state, with an answer of type `T`.
///
/// It only reads, and may call the same functions as a materializer. Two queries are the same if they have the same
/// text, parameters and row-reading function. The engine runs each query once per change, however many watch it.
///
/// It runs on the thread that stores events, so its number of steps is limited: to about what reading a few million
/// rows takes. A query that takes more fails, and needs an index or a LIMIT.
///
/// ```
/// # use likewise::engine::{EventId, Query};
/// struct Todo { id: EventId, title: String }
///
/// fn open() -> Query<u64> {
///     Query::first("SELECT count(*) FROM todo WHERE NOT done")
/// }
/// fn todo(id: EventId) -> Query<Option<Todo>> {
///     Query::optional("SELECT id, title FROM todo WHERE id = ?1", |row| {
///         Ok(Todo { id: row.get("id")?, title: row.get("title")? })
///     })
///     .bind(id)
/// }
/// ```
pub struct Query<T> {
    sql: &'static str,
    params: Vec<Value>,
    /// Why a parameter can't be bound, if that is so. Running the query then fails with it.
    unbound: Option<String>,
    read: Arc<Reader<T>>,
    mapper: usize,
}

type Reader<T> = dyn Fn(&mut Rows<'_>) -> Result<T, DbError> + Send + Sync;

/// Reads one row. `?` works on any error.
type Mapper<R> = fn(&Row<'_>) -> Result<R, DbError>;

/// The identity of a query: equal keys mean the same query.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct QueryKey {
    sql: &'static str,
    params: Vec<Param>,
    unbound: Option<String>,
    mapper: usize,
    answer: TypeId,
}

/// A parameter in a form that can be compared and hashed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Param {
    Null,
    Integer(i64),
    Real(u64),
    Text(String),
    Blob(Vec<u8>),
}

impl From<&Value> for Param {
    fn from(value: &Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Integer(value) => Self::Integer(*value),
            Value::Real(value) => Self::Real(value.to_bits()),
            Value::Text(value) => Self::Text(value.clone()),
            Value::Blob(value) => Self::Blob(value.clone()),
        }
    }
}

impl<T: FromSql + 'static> Query<T> {
    /// Asks for the first column of the first row of `sql`. A query that finds no row fails.
    pub fn first(sql: &'static str) -> Self {
        let read = |rows: &mut Rows<'_>| match rows.next()? {
            Some(row) => Ok(row.get(0)?),
            None => Err(rusqlite::Error::QueryReturnedNoRows.into()),
        };
        Self::new(sql, read, 0)
    }
}

impl<R: 'static> Query<Vec<R>> {
    /// Asks for all rows of `sql`, in its order, each as `map` reads it. Without ORDER BY, SQLite may return the rows
    /// in any order, and replicas may differ.
    pub fn rows(sql: &'static str, map: Mapper<R>) -> Self {
        let read = move |rows: &mut Rows<'_>| {
            let mut answer = Vec::new();
            while let Some(row) = rows.next()? {
                answer.push(map(row)?);
            }
            Ok(answer)
        };
        Self::new(sql, read, map as usize)
    }
}

impl<R: 'static> Query<Option<R>> {
    /// Asks for the first row of `sql` as `map` reads it, if there is one.
    pub fn optional(sql: &'static str, map: Mapper<R>) -> Self {
        Self::new(sql, move |rows| rows.next()?.map(map).transpose(), map as usize)
    }
}

impl<T: 'static> Query<T> {
    /// Asks for the first row of `sql` as `map` reads it. A query that finds no row fails; see
    /// [`optional`](Query::optional).
    pub fn row(sql: &'static str, map: Mapper<T>) -> Self {
        let read = move |rows: &mut Rows<'_>| match rows.next()? {
            Some(row) => map(row),
            None => Err(rusqlite::Error::QueryReturnedNoRows.into()),
        };
        Self::new(sql, read, map as usize)
    }

    fn new(
        sql: &'static str,
        read: impl Fn(&mut Rows<'_>) -> Result<T, DbError> + Send + Sync + 'static,
        mapper: usize,
    ) -> Self {
        Self { sql, params: Vec::new(), unbound: None, read: Arc::new(read), mapper }
    }

    /// Binds `value` to the next parameter, starting with `?1`.
    ///
    /// A value that SQLite can't represent, such as an integer above 2^63, makes the query fail when it runs.
    #[must_use]
    pub fn bind(mut self, value: impl ToSql) -> Self {
        match to_value(&value) {
            Ok(value) => self.params.push(value),
            Err(why) => {
                let number = self.params.len() + 1;
                self.unbound.get_or_insert(format!("the parameter ?{number} can't be bound: {why}"));
                self.params.push(Value::Null);
            }
        }
        self
    }

    /// Returns a short text that identifies the query and its bound values. Equal queries have the same text. Returns
    /// `None` for a query without bound values.
    pub(crate) fn fingerprint(&self) -> Option<String> {
        if self.params.is_empty() {
            return None;
        }
        let mut hasher = blake3::Hasher::new();
        let mut part = |kind: u8, bytes: &[u8]| {
            hasher.update(&[kind]);
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        part(b's', self.sql.as_bytes());
        for value in &self.params {
            match value {
                Value::Null => part(b'n', &[]),
                Value::Integer(value) => part(b'i', &value.to_le_bytes()),
                Value::Real(value) => part(b'r', &value.to_bits().to_le_bytes()),
                Value::Text(value) => part(b't', value.as_bytes()),
                Value::Blob(value) => part(b'b', value),
            }
        }
        Some(hasher.finalize().to_hex()[..16].to_owned())
    }

    pub(crate) fn key(&self) -> QueryKey {
        let params = self.params.iter().map(Param::from).collect();
        let unbound = self.unbound.clone();
        QueryKey { sql: self.sql, params, unbound, mapper: self.mapper, answer: TypeId::of::<T>() }
    }

    fn check_bound(&self) -> Result<(), DbError> {
        match &self.unbound {
            Some(why) => Err(DbError::refuse(format!("{why}, in the statement `{}`", one_line(self.sql)))),
            None => Ok(()),
        }
    }

    /// Returns its text and its parameters.
    pub(super) fn parts(&self) -> (&str, &[Value]) {
        (self.sql, &self.params)
    }

    /// Reads the rows of an answer. This runs the author's own code. A panic in it costs only this answer.
    pub(super) fn read_rows(&self, rows: &mut Rows<'_>) -> Result<T, DbError> {
        self.check_bound()?;
        let answer = catch_unwind(AssertUnwindSafe(|| (self.read)(rows)));
        let panicked = |panic: Box<dyn std::any::Any + Send>| {
            DbError::refuse(format!("what reads its rows panicked: {}", panic_message(&*panic)))
        };
        answer.map_err(panicked)?
    }

    /// Returns what the answer depends on, given that the query reads the tables `reads`.
    pub(super) fn depends(&self, sandbox: &Sandbox, reads: Tables) -> rusqlite::Result<Depends> {
        Depends::of(sandbox, self.sql, &self.params, reads)
    }

    /// Checks that SQLite can prepare the query, without running it.
    pub(super) fn prepare(&self, sandbox: &Sandbox) -> Result<(), DbError> {
        let prepared = sandbox.within(Mode::Query, || sandbox.prepare(Mode::Query, self.sql).map(drop));
        prepared.map_err(|error| error.of_statement(self.sql))
    }

    /// Runs the query, and returns which tables it read.
    pub(crate) fn run(&self, sandbox: &Sandbox) -> Result<(T, Tables), DbError> {
        self.check_bound()?;
        let run = || {
            let (mut statement, touched) = sandbox.prepare(Mode::Query, self.sql)?;
            let mut rows = statement.query(params_from_iter(&self.params))?;
            Ok((self.read_rows(&mut rows)?, touched.reads))
        };
        sandbox.query(self.sql, run)
    }
}

/// Converts `value` to a form that can be compared and hashed.
fn to_value(value: &impl ToSql) -> Result<Value, DbError> {
    Ok(match value.to_sql()? {
        ToSqlOutput::Borrowed(ValueRef::Integer(value)) => Value::Integer(value),
        ToSqlOutput::Borrowed(ValueRef::Real(value)) => Value::Real(value),
        ToSqlOutput::Borrowed(borrowed) => borrowed.try_into()?,
        ToSqlOutput::Owned(value) => value,
        _ => return Err(DbError::refuse("it is of a type that can't be compared")),
    })
}

impl<T> Clone for Query<T> {
    fn clone(&self) -> Self {
        Self {
            sql: self.sql,
            params: self.params.clone(),
            unbound: self.unbound.clone(),
            read: Arc::clone(&self.read),
            mapper: self.mapper,
        }
    }
}

impl<T> fmt::Debug for Query<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Query").field("sql", &self.sql).field("params", &self.params).finish_non_exhaustive()
    }
}
