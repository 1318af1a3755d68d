//! Queries: what a page asks of the state, and is told again whenever a commit touched it.

use std::any::TypeId;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rusqlite::types::{FromSql, Value};
use rusqlite::{Row, Rows, ToSql, params_from_iter};

use super::authorizer::Mode;
use super::changes::Tables;
use super::depends::Depends;
use super::error::DbError;
use super::materialize::panic_message;
use super::sandbox::Sandbox;

/// A question to the state whose answer is a `T`.
///
/// It only reads, and may call the same functions as a materializer. Two queries are the same when their text, their
/// parameters and what reads their rows are the same; the engine runs each once a change, whoever many watch it.
pub struct Query<T> {
    sql: &'static str,
    params: Vec<Value>,
    read: Arc<Reader<T>>,
    mapper: usize,
}

type Reader<T> = dyn Fn(&mut Rows<'_>) -> rusqlite::Result<T> + Send + Sync;

/// What makes two queries the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct QueryKey {
    sql: &'static str,
    params: Vec<Param>,
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
    /// The first column of the first row of `sql`. That there is such a row is the schema's business: a query without
    /// rows is an error.
    pub fn first(sql: &'static str) -> Self {
        let read = |rows: &mut Rows<'_>| match rows.next()? {
            Some(row) => row.get(0),
            None => Err(rusqlite::Error::QueryReturnedNoRows),
        };
        Self { sql, params: Vec::new(), read: Arc::new(read), mapper: 0 }
    }
}

impl<R: 'static> Query<Vec<R>> {
    /// All rows of `sql`, in its order, each as `map` reads it. Without ORDER BY the order is SQLite's whim, and may
    /// differ between replicas.
    pub fn rows(sql: &'static str, map: fn(&Row<'_>) -> rusqlite::Result<R>) -> Self {
        let read = move |rows: &mut Rows<'_>| {
            let mut answer = Vec::new();
            while let Some(row) = rows.next()? {
                answer.push(map(row)?);
            }
            Ok(answer)
        };
        Self { sql, params: Vec::new(), read: Arc::new(read), mapper: map as usize }
    }
}

impl<T: 'static> Query<T> {
    /// Binds `value` to the next parameter, the first time to `?1`.
    ///
    /// # Errors
    ///
    /// When the value has no form in SQLite, such as an integer above 2^63.
    pub fn bind(mut self, value: impl ToSql) -> Result<Self, DbError> {
        use rusqlite::types::{ToSqlOutput, ValueRef};
        let value = match value.to_sql()? {
            ToSqlOutput::Borrowed(borrowed @ (ValueRef::Text(_) | ValueRef::Blob(_) | ValueRef::Null)) => {
                borrowed.try_into().map_err(|why| rusqlite::Error::ToSqlConversionFailure(Box::new(why)))?
            }
            ToSqlOutput::Borrowed(ValueRef::Integer(value)) => Value::Integer(value),
            ToSqlOutput::Borrowed(ValueRef::Real(value)) => Value::Real(value),
            ToSqlOutput::Owned(value) => value,
            _ => return Err(DbError::refuse("a parameter of this type can't be compared, so it can't be watched")),
        };
        self.params.push(value);
        Ok(self)
    }

    pub(crate) fn key(&self) -> QueryKey {
        let params = self.params.iter().map(Param::from).collect();
        QueryKey { sql: self.sql, params, mapper: self.mapper, answer: TypeId::of::<T>() }
    }

    /// Its text and its parameters.
    pub(super) fn parts(&self) -> (&str, &[Value]) {
        (self.sql, &self.params)
    }

    /// Reads the rows of an answer. The author's own code does that, and a panic in it costs nothing but this answer.
    pub(super) fn read_rows(&self, rows: &mut Rows<'_>) -> Result<T, DbError> {
        let answer = catch_unwind(AssertUnwindSafe(|| (self.read)(rows)));
        let panicked = |panic: Box<dyn std::any::Any + Send>| {
            DbError::refuse(format!("what reads its rows panicked: {}", panic_message(&*panic)))
        };
        Ok(answer.map_err(panicked)??)
    }

    /// What the answer depends on, if it reads the tables `reads`.
    pub(super) fn depends(&self, sandbox: &Sandbox, reads: Tables) -> rusqlite::Result<Depends> {
        Depends::of(sandbox, self.sql, &self.params, reads)
    }

    /// Runs the query, and says which tables it read.
    pub(crate) fn run(&self, sandbox: &Sandbox) -> Result<(T, Tables), DbError> {
        sandbox.within(Mode::Query, || {
            let (mut statement, touched) = sandbox.prepare(Mode::Query, self.sql)?;
            let mut rows = statement.query(params_from_iter(&self.params))?;
            Ok((self.read_rows(&mut rows)?, touched.reads))
        })
    }
}

impl<T> Clone for Query<T> {
    fn clone(&self) -> Self {
        Self { sql: self.sql, params: self.params.clone(), read: Arc::clone(&self.read), mapper: self.mapper }
    }
}

impl<T> fmt::Debug for Query<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Query").field("sql", &self.sql).field("params", &self.params).finish_non_exhaustive()
    }
}
