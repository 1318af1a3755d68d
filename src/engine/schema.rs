//! A schema: the tables of a state, and the materializer of each type of event.

use std::collections::BTreeMap;
use std::fmt;

use super::authorizer::Mode;
use super::batch::{BATCH, BATCH_IDS};
use super::error::{DbError, Fault};
use super::event::{Event, EventName};
use super::materialize::{Db, Payload};
use super::rehearsal::Rehearsed;
use super::sandbox::Sandbox;
use super::storage::open_in_memory;

/// What events mean: the tables, and for each type of event the function that applies it to them.
///
/// ```
/// # use likewise::engine::{Event, Schema};
/// # #[derive(serde::Serialize, serde::Deserialize)]
/// # struct LikeAdded {}
/// # impl Event for LikeAdded { const NAME: &'static str = "LikeAdded"; }
/// let schema = Schema::new(
///     "CREATE TABLE likes (id INTEGER PRIMARY KEY, count INTEGER NOT NULL) STRICT;
///      INSERT INTO likes VALUES (1, 0);",
/// )
/// .on(|_: LikeAdded, db| db.execute("UPDATE likes SET count = count + 1 WHERE id = 1", ()));
/// # schema.check().unwrap();
/// ```
pub struct Schema {
    sql: &'static str,
    version: u32,
    pub(super) materializers: BTreeMap<&'static str, Materializer>,
}

type Materializer = Box<dyn Fn(Payload<'_>, &Db<'_>) -> Result<(), DbError> + Send + Sync>;

impl Schema {
    /// Creates a schema whose empty state is made by `sql`: CREATE TABLE, INDEX, VIEW or TRIGGER, and the first rows.
    pub fn new(sql: &'static str) -> Self {
        Self { sql, version: 0, materializers: BTreeMap::new() }
    }

    /// Sets the author's version. Raise it when the meaning of a materializer changes but the tables and event names
    /// stay the same. Replicas compare their states only if their schemas have the same version.
    #[must_use]
    pub fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    /// Adds the materializer for events of type `E`.
    ///
    /// It must be a pure function of the event, its id and time, and the state. [`Db`] offers nothing else, and the
    /// author must not use anything else: no clock, no file, no static variable. It also runs on made-up events when
    /// the app starts; see [`check`](Self::check).
    ///
    /// # Panics
    ///
    /// If `E` has an invalid event name, or already has a materializer. Both are mistakes of the program's author, and
    /// show at its first start.
    #[must_use]
    pub fn on<E, R, F>(mut self, materializer: F) -> Self
    where
        E: Event,
        F: Fn(E, &Db<'_>) -> Result<R, DbError> + Send + Sync + 'static,
    {
        if let Err(why) = EventName::of::<E>() {
            panic!("{why}");
        }
        let run = move |payload: Payload<'_>, db: &Db<'_>| match payload.event() {
            Some(event) => materializer(event?, db).map(drop),
            None => Ok(()),
        };
        let earlier = self.materializers.insert(E::NAME, Box::new(run));
        assert!(earlier.is_none(), "the event {} has two materializers", E::NAME);
        self
    }

    /// Creates an empty state in memory to verify that the script runs and keeps the rules. Then runs each materializer
    /// on made-up events there. Opening [`Stores`](super::Stores) does this first.
    ///
    /// # Errors
    ///
    /// What is wrong with the script, or with a materializer's statement that SQLite can't prepare.
    pub fn check(&self) -> Result<(), Fault> {
        self.rehearsed(|_| Ok(()))
    }

    /// Works like [`check`](Self::check), and shows `look` the state: first empty, then after each made-up event that
    /// was applied.
    ///
    /// # Errors
    ///
    /// The same as for [`check`](Self::check), and the errors of `look`.
    pub(crate) fn rehearsed<E: From<Fault>>(
        &self,
        mut look: impl FnMut(&Rehearsed<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let sandbox = open_in_memory().and_then(Sandbox::new).map_err(Fault::state)?;
        self.create(&sandbox).map_err(Fault::from)?;
        self.rehearse(&sandbox, &mut look)
    }

    /// Returns the fingerprint. Replicas with the same fingerprint may compare the digests of their states. It covers
    /// the tables, the event names, the author's version, SQLite's version and the rule for ids in a batch. It can't
    /// cover the bodies of the materializers.
    pub fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        let version = self.version.to_string();
        let names = self.materializers.keys().copied();
        for part in [self.sql, &version, rusqlite::version(), BATCH_IDS].into_iter().chain(names) {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.finalize().to_hex()[..32].to_owned()
    }

    /// Returns whether events of that name have a materializer.
    pub(crate) fn knows(&self, name: &str) -> bool {
        name == BATCH || self.materializers.contains_key(name)
    }

    /// Creates the tables of an empty state.
    pub(crate) fn create(&self, sandbox: &Sandbox) -> Result<(), DbError> {
        sandbox.run_script(self.sql)?;
        sandbox.learn_tables()?;
        refuse_deferred(sandbox)?;
        check_defaults(sandbox)
    }
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let events: Vec<_> = self.materializers.keys().collect();
        f.debug_struct("Schema").field("version", &self.version).field("events", &events).finish_non_exhaustive()
    }
}

/// Refuses deferred constraints. They fail at COMMIT, when it is too late to tell which event is at fault.
fn refuse_deferred(sandbox: &Sandbox) -> Result<(), DbError> {
    let scripts: Vec<String> = sandbox
        .engine()
        .prepare("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")?
        .query_map((), |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    let deferred = |sql: &String| {
        let words = bare_words(sql);
        words.windows(2).any(|pair| pair[0] == "INITIALLY" && pair[1] == "DEFERRED")
    };
    match scripts.iter().find(|sql| deferred(sql)) {
        Some(sql) => Err(DbError::Forbidden(format!(
            "a deferred constraint fails too late to tell which event is at fault; make it immediate in: {sql}"
        ))),
        None => Ok(()),
    }
}

/// Returns the words of a statement in capitals, without quoted text and comments.
fn bare_words(sql: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = sql;
    while let Some(first) = rest.chars().next() {
        let after = |end: &str, from: usize| rest[from..].find(end).map_or(rest.len(), |at| from + at + end.len());
        let length = match first {
            '-' if rest.starts_with("--") => after("\n", 2),
            '/' if rest.starts_with("/*") => after("*/", 2),
            // A doubled quote reads as the end of one string and the start of the next, with the same result.
            '\'' | '"' | '`' => after(&first.to_string(), 1),
            '[' => after("]", 1),
            _ => {
                let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
                let length = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
                if length > 0 {
                    words.push(rest[..length].to_ascii_uppercase());
                }
                length.max(first.len_utf8())
            }
        };
        rest = &rest[length..];
    }
    words
}

/// Checks the default values of columns. SQLite asks the authorizer about everything except these.
fn check_defaults(sandbox: &Sandbox) -> Result<(), DbError> {
    let defaults: Vec<String> = sandbox
        .engine()
        .prepare(
            "SELECT c.dflt_value FROM sqlite_schema AS t, pragma_table_xinfo(t.name) AS c
             WHERE t.type = 'table' AND c.dflt_value IS NOT NULL",
        )?
        .query_map((), |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    for default in defaults {
        sandbox.within(Mode::Query, || sandbox.prepare(Mode::Query, &format!("SELECT ({default})")).map(drop))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::engine::changes::Tables;
    use crate::engine::event::{EventId, EventRef};
    use crate::engine::materialize::{Effect, Failure};

    fn refusal(sql: &'static str) -> String {
        Schema::new(sql).check().expect_err(sql).to_string()
    }

    #[test]
    fn schemas_that_would_differ_between_replicas_are_refused() {
        for (sql, word) in [
            ("CREATE TABLE t (a DEFAULT (random()))", "random"),
            ("CREATE TABLE t (a DEFAULT CURRENT_TIMESTAMP)", "CURRENT_TIMESTAMP"),
            ("CREATE TABLE t (a CHECK (a > datetime('now')))", "datetime"),
            ("CREATE TABLE t (a); INSERT INTO t VALUES (randomblob(8))", "randomblob"),
            ("CREATE TEMP TABLE t (a)", "temporary"),
            ("CREATE TABLE likewise_t (a)", "likewise_"),
            ("CREATE VIRTUAL TABLE t USING fts5(a)", "CreateVtable"),
            ("ATTACH ':memory:' AS other", "Attach"),
            ("PRAGMA foreign_keys = OFF", "Pragma"),
            (
                "CREATE TABLE p (a PRIMARY KEY); CREATE TABLE t (a REFERENCES p DEFERRABLE INITIALLY DEFERRED)",
                "deferred",
            ),
        ] {
            assert!(refusal(sql).to_lowercase().contains(&word.to_lowercase()), "{sql}: {}", refusal(sql));
        }
    }

    #[test]
    fn ordinary_schemas_are_accepted() {
        Schema::new(
            "CREATE TABLE a (id INTEGER PRIMARY KEY AUTOINCREMENT, t TEXT DEFAULT ('x' || lower('Y')) CHECK (length(t) > 0)) STRICT;
             CREATE TABLE b (k TEXT PRIMARY KEY, a REFERENCES a(id) ON DELETE CASCADE) WITHOUT ROWID;
             CREATE INDEX b_a ON b(a) WHERE a IS NOT NULL;
             CREATE VIEW v AS SELECT count(*) AS n FROM a;
             CREATE TRIGGER tr AFTER INSERT ON a BEGIN UPDATE a SET t = 'z' WHERE id = new.id; END;
             INSERT INTO a (t) VALUES ('first');",
        )
        .check()
        .unwrap();
    }

    #[derive(Debug, serde::Serialize, serde::Deserialize)]
    struct Happened {}
    impl Event for Happened {
        const NAME: &'static str = "Happened";
    }

    /// Returns the outcome of one event on an empty state, and the tables it touches.
    fn happen(schema: &Schema) -> (Result<Effect, Failure>, Tables) {
        let sandbox = Sandbox::new(open_in_memory().unwrap()).unwrap();
        schema.create(&sandbox).unwrap();
        sandbox.engine().execute_batch("BEGIN").unwrap();
        let touched = Cell::default();
        let db = Db::new(&sandbox, &touched);
        let event = EventRef { id: EventId::from_parts(0, [0; 10]), name: "Happened", args: None };
        let effect = schema.apply(&db, &event);
        (effect, touched.get().tables)
    }

    const FAMILY: &str = "CREATE TABLE child (parent REFERENCES parent (id) ON DELETE CASCADE);
                          CREATE TABLE parent (id INTEGER PRIMARY KEY);
                          CREATE TABLE stranger (id INTEGER PRIMARY KEY);
                          INSERT INTO parent VALUES (1); INSERT INTO child VALUES (1);";

    #[test]
    fn statements_touch_what_they_write_also_when_they_give_rows_or_cascade() {
        let both = |first: usize, second: usize| Tables(1 << first | 1 << second);
        let sql = "INSERT INTO stranger VALUES (5) RETURNING id";
        let schema = Schema::new(FAMILY).on(move |_: Happened, db| db.first(sql, (), |row| Ok(row.get::<_, i64>(0)?)));
        assert_eq!(happen(&schema).1, both(2, 2));
        let schema = Schema::new(FAMILY).on(move |_: Happened, db| db.rows(sql, (), |row| Ok(row.get::<_, i64>(0)?)));
        assert_eq!(happen(&schema).1, both(2, 2));
        let schema = Schema::new(FAMILY).on(|_: Happened, db| db.execute("DELETE FROM parent", ()));
        assert_eq!(happen(&schema).1, both(0, 1));
    }

    #[test]
    fn foreign_keys_hold_in_memory_too() {
        let schema = Schema::new(FAMILY).on(|_: Happened, db| db.execute("INSERT INTO child VALUES (7)", ()));
        assert!(matches!(happen(&schema).0, Err(Failure::Event(_))));
    }
}
