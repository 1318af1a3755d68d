//! Live queries: run again when a commit may have changed the answer, once however many watch, and told to the watchers
//! when it did change.
//!
//! A query is run again after a commit to a table that it reads. One that looks rows up by a key is run again only after a
//! commit that wrote a row of that key, so that thousands of them cost a commit next to nothing.
//!
//! Recent answers are kept up to date for a while after the last watcher left. So asking again doesn't wait for the
//! writer, which may be waiting for the disk, and works even when the store can't be opened.

use std::any::Any;
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::watch;

use super::changes::{Changes, Tables};
use super::depends::{Depends, Key, KeyColumn};
use super::error::{DbError, Error};
use super::query::{Query, QueryKey};
use super::state::State;
use crate::limits::engine::live::{FORGET_EVERY, REFUSED_AGAIN, REMEMBERED, REMEMBERED_FOR};

/// The live queries of one store. Watchers add theirs; the thread that owns the state runs them.
#[derive(Default)]
pub(crate) struct Live {
    queries: Mutex<Queries>,
    /// Only for the thread that runs the queries. Nobody waits for it.
    index: Mutex<Index>,
    /// Grows with each change of what is told. While it is borrowed nothing is told, so whoever holds it sees all that a
    /// commit changed, or nothing of it.
    rounds: watch::Sender<u64>,
}

/// What a commit changed about the answers, before anybody is told.
#[must_use]
#[derive(Default)]
pub(crate) struct News(Vec<Tell>);

/// Tells the watchers of one query its new answer.
type Tell = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queries {
    watched: HashMap<QueryKey, Arc<dyn LiveQuery>>,
    /// Those that were never run.
    fresh: Vec<Arc<dyn LiveQuery>>,
    /// When it was looked last which are needed, and how many were.
    looked: Option<(Instant, usize)>,
    is_closed: bool,
}

/// One live query, whatever the type of its answer.
trait LiveQuery: Any + Send + Sync {
    /// Runs the query. Says when to run it again, and gives what tells the watchers if the answer changed.
    fn run(self: Arc<Self>, state: &State) -> (Again, Option<Tell>);

    /// Says why there is no answer, unless there is one.
    fn fail(&self, why: &Error);

    fn is_watched(&self) -> bool;

    /// When it was last asked for.
    fn asked(&self) -> Instant;

    /// Tells it from all others.
    fn key(&self) -> &QueryKey;
}

/// When a query is to be run again.
#[derive(Debug, PartialEq, Eq)]
enum Again {
    /// After a commit that changed what its answer depends on.
    After(Depends),
    /// It failed. It is run again each time, for the cause may be gone.
    EachTime,
    /// It took too many steps. It is run again [seldom](REFUSED_AGAIN).
    Seldom,
}

pub(super) type Answer<T> = Option<Result<T, Error>>;

struct Watched<T> {
    query: Query<T>,
    key: QueryKey,
    answer: watch::Sender<Answer<T>>,
    asked: Mutex<Instant>,
}

impl Live {
    /// The answers to `query`, now and from now on. True when it has none yet, or failed: the caller then has the store
    /// [refresh](Self::refresh) its queries.
    pub(crate) fn watch<T>(&self, query: Query<T>) -> (watch::Receiver<Answer<T>>, bool)
    where
        T: Clone + PartialEq + Send + Sync + 'static,
    {
        let mut queries = self.lock();
        let key = query.key();
        if let Some(known) = queries.watched.get(&key) {
            let known: &dyn Any = known.as_ref();
            let known = known.downcast_ref::<Watched<T>>().expect("BUG: the key has the type of the answer in it");
            *known.asked.lock().expect("BUG: noting a moment panicked") = Instant::now();
            let is_due = !matches!(*known.answer.borrow(), Some(Ok(_)));
            return (known.answer.subscribe(), is_due);
        }
        let (answer, receiver) = watch::channel(None);
        if !queries.is_closed {
            let asked = Mutex::new(Instant::now());
            let watched = Arc::new(Watched { query, key: key.clone(), answer, asked });
            queries.fresh.push(Arc::clone(&watched) as Arc<dyn LiveQuery>);
            queries.watched.insert(key, watched);
        }
        (receiver, true)
    }

    /// Brings every query up to date whose answer may be another now, and forgets those that nobody needs.
    /// The watchers are [told](Self::tell) after that.
    pub(crate) fn refresh(&self, state: &mut State) -> News {
        let changes = state.take_changes();
        let mut index = self.index.lock().expect("BUG: running queries panicked");
        let mut due = {
            let mut queries = self.lock();
            for forgotten in queries.forget(Instant::now()) {
                index.remove(&forgotten);
            }
            std::mem::take(&mut queries.fresh)
        };
        due.extend(index.due(state, &changes));
        due.extend(index.refused_before(Instant::now()));
        let mut news = News::default();
        for query in due {
            let (again, tell) = Arc::clone(&query).run(state);
            index.insert(query, again);
            news.0.extend(tell);
        }
        if let Err(error) = state.record_rows(index.needs_rows()) {
            // Then every query counts as touched that reads a table that was written.
            tracing::warn!(%error, "cannot learn which rows are written");
        }
        news
    }

    /// Tells the watchers all of the news at once, and with it what `also` tells if it is something new.
    pub(crate) fn tell(&self, news: News, also: impl FnOnce() -> bool) {
        self.rounds.send_if_modified(|round| {
            let is_new = also() | !news.0.is_empty();
            news.0.into_iter().for_each(|tell| tell());
            *round += u64::from(is_new);
            is_new
        });
    }

    /// Changes whenever something was told. While it is borrowed, nothing is.
    pub(crate) fn rounds(&self) -> watch::Receiver<u64> {
        self.rounds.subscribe()
    }

    /// Tells watchers without an answer why there is none. An answer that is known stays.
    pub(crate) fn fail(&self, why: &Error) {
        // Copied out, so that nobody who watches waits for it.
        let all: Vec<_> = self.lock().watched.values().map(Arc::clone).collect();
        for query in all {
            query.fail(why);
        }
        self.rounds.send_modify(|round| *round += 1);
    }

    /// Ends all watches, also future ones: nobody runs queries any more.
    pub(crate) fn close(&self) {
        {
            let mut queries = self.lock();
            *queries = Queries { is_closed: true, ..Queries::default() };
        }
        // A thread that panicked while it ran queries is ending.
        *self.index.lock().unwrap_or_else(PoisonError::into_inner) = Index::default();
        self.rounds.send_modify(|round| *round += 1);
    }

    fn lock(&self) -> MutexGuard<'_, Queries> {
        self.queries.lock().expect("BUG: a live query panicked under the lock")
    }
}

impl Queries {
    /// Lets go of the queries that nobody watches, but for the few that were asked for last. Gives those that went.
    fn forget(&mut self, now: Instant) -> Vec<QueryKey> {
        let is_due = self.looked.is_none_or(|(looked, were)| {
            now.duration_since(looked) >= FORGET_EVERY || self.watched.len() > were + REMEMBERED
        });
        if !is_due {
            return Vec::new();
        }
        let mut unwatched: Vec<Instant> =
            self.watched.values().filter(|query| !query.is_watched()).map(|query| query.asked()).collect();
        unwatched.sort_unstable_by(|one, other| other.cmp(one));
        let last = unwatched.get(REMEMBERED - 1).copied();
        let is_needed =
            |asked: Instant| now.duration_since(asked) < REMEMBERED_FOR && last.is_none_or(|last| asked >= last);
        let goes = |_: &QueryKey, query: &mut Arc<dyn LiveQuery>| !query.is_watched() && !is_needed(query.asked());
        let gone: Vec<QueryKey> = self.watched.extract_if(goes).map(|(key, _)| key).collect();
        self.fresh.retain(|query| self.watched.contains_key(query.key()));
        self.looked = Some((now, self.watched.len()));
        gone
    }
}

/// Finds the queries whose answers a commit may have changed, without looking at each.
#[derive(Default)]
struct Index {
    queries: HashMap<QueryKey, (Arc<dyn LiveQuery>, Again)>,
    /// Those that depend on tables as a whole.
    by_table: HashMap<QueryKey, Tables>,
    /// Those that depend on the rows of a key.
    by_key: HashMap<Arc<KeyColumn>, ByKey>,
    /// Those that failed.
    failed: HashSet<QueryKey>,
    /// Those that took too many steps, in the order in which they are tried again.
    refused: VecDeque<QueryKey>,
    /// When one of these was tried last.
    tried: Option<Instant>,
}

/// The queries that look rows up in one column.
#[derive(Default)]
struct ByKey {
    keys: HashMap<Key, HashSet<QueryKey>>,
    /// By the rows that their answers were made of.
    rows: HashMap<i64, HashSet<QueryKey>>,
}

impl Index {
    fn insert(&mut self, query: Arc<dyn LiveQuery>, again: Again) {
        let key = query.key().clone();
        if matches!(again, Again::After(_)) && self.queries.get(&key).is_some_and(|(_, known)| *known == again) {
            return;
        }
        self.remove(&key);
        match &again {
            Again::EachTime => drop(self.failed.insert(key.clone())),
            Again::Seldom => {
                self.refused.push_back(key.clone());
                self.tried = Some(Instant::now());
            }
            Again::After(Depends::Tables(tables)) => drop(self.by_table.insert(key.clone(), *tables)),
            Again::After(Depends::Rows { column, key: value, rows }) => {
                let by_key = self.by_key.entry(Arc::clone(column)).or_default();
                by_key.keys.entry(value.clone()).or_default().insert(key.clone());
                for row in rows {
                    by_key.rows.entry(*row).or_default().insert(key.clone());
                }
            }
        }
        self.queries.insert(key, (query, again));
    }

    fn remove(&mut self, key: &QueryKey) {
        let Some((_, again)) = self.queries.remove(key) else { return };
        match again {
            Again::EachTime => drop(self.failed.remove(key)),
            Again::Seldom => self.refused.retain(|refused| refused != key),
            Again::After(Depends::Tables(_)) => drop(self.by_table.remove(key)),
            Again::After(Depends::Rows { column, key: value, rows }) => {
                let Some(by_key) = self.by_key.get_mut(&column) else { return };
                take(&mut by_key.keys, &value, key);
                for row in rows {
                    take(&mut by_key.rows, &row, key);
                }
                if by_key.keys.is_empty() {
                    self.by_key.remove(&column);
                }
            }
        }
    }

    /// The queries whose answers may be others after `changes`.
    fn due(&self, state: &State, changes: &Changes) -> Vec<Arc<dyn LiveQuery>> {
        let touched = self.by_table.iter().filter(|(_, reads)| reads.touches(changes.tables)).map(|(key, _)| key);
        let mut due: HashSet<&QueryKey> = self.failed.iter().chain(touched).collect();
        for (column, by_key) in &self.by_key {
            if !changes.tables.touches(Tables::nth(column.table)) {
                continue;
            }
            match by_key.due(column, state, changes) {
                Some(some) => due.extend(some),
                None => due.extend(by_key.keys.values().flatten()),
            }
        }
        due.into_iter().map(|key| Arc::clone(&self.queries[key].0)).collect()
    }

    /// One of the queries that took too many steps, if it is time to try one again.
    fn refused_before(&self, now: Instant) -> Option<Arc<dyn LiveQuery>> {
        let is_time = self.tried.is_none_or(|tried| now.duration_since(tried) >= REFUSED_AGAIN);
        let first = self.refused.front().filter(|_| is_time)?;
        Some(Arc::clone(&self.queries[first].0))
    }

    fn needs_rows(&self) -> bool {
        !self.by_key.is_empty()
    }
}

impl ByKey {
    /// Those whose rows were written, or that rows which were written belong to now. `None` when that can't be told.
    fn due<'a>(&'a self, column: &KeyColumn, state: &State, changes: &Changes) -> Option<HashSet<&'a QueryKey>> {
        if changes.whole.touches(Tables::nth(column.table)) {
            return None;
        }
        let mut due = HashSet::new();
        for row in changes.rows.get(&column.table).into_iter().flatten() {
            due.extend(self.rows.get(row).into_iter().flatten());
            if let Some(key) = state.key_of(column, *row).ok()? {
                due.extend(self.keys.get(&key).into_iter().flatten());
            }
        }
        Some(due)
    }
}

/// Takes `key` out of the set at `place`, and the set with it when that was the last.
fn take<K: Eq + Hash>(sets: &mut HashMap<K, HashSet<QueryKey>>, place: &K, key: &QueryKey) {
    if let Some(set) = sets.get_mut(place) {
        set.remove(key);
        if set.is_empty() {
            sets.remove(place);
        }
    }
}

impl<T: Clone + PartialEq + Send + Sync + 'static> LiveQuery for Watched<T> {
    fn run(self: Arc<Self>, state: &State) -> (Again, Option<Tell>) {
        let (answer, again) = match state.read_to_watch(&self.query) {
            Ok((answer, depends)) => (Ok(answer), Again::After(depends)),
            Err(error) => {
                let again = if matches!(error, DbError::TooManySteps(_)) { Again::Seldom } else { Again::EachTime };
                (Err(Error::from(error)), again)
            }
        };
        let is_new = self.answer.borrow().as_ref() != Some(&answer);
        let tell = is_new.then(|| Box::new(move || drop(self.answer.send_replace(Some(answer)))) as Tell);
        (again, tell)
    }

    fn fail(&self, why: &Error) {
        self.answer.send_if_modified(|last| {
            let is_open = !matches!(last, Some(Ok(_)));
            if is_open {
                *last = Some(Err(why.clone()));
            }
            is_open
        });
    }

    fn is_watched(&self) -> bool {
        self.answer.receiver_count() > 0
    }

    fn asked(&self) -> Instant {
        *self.asked.lock().expect("BUG: noting a moment panicked")
    }

    fn key(&self) -> &QueryKey {
        &self.key
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::TestCaseResult;
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::engine::{Entry, Envelope, Event, EventId, Files, Page, Replica, Schema, Seq, Setup};

    /// An event that says itself what it does.
    #[derive(Debug, Clone, Serialize, Deserialize)]
    struct Done {
        sql: String,
    }

    impl Event for Done {
        const NAME: &'static str = "Done";
    }

    fn schema() -> Schema {
        Schema::new(
            "CREATE TABLE item (k TEXT PRIMARY KEY, v INTEGER NOT NULL UNIQUE) STRICT;
             CREATE TABLE number (id INTEGER PRIMARY KEY, v INTEGER NOT NULL) STRICT;
             CREATE TABLE bare (k TEXT PRIMARY KEY, v INTEGER NOT NULL) STRICT, WITHOUT ROWID;
             CREATE TABLE many (post TEXT, v INTEGER NOT NULL);
             CREATE TABLE part (id INTEGER PRIMARY KEY, item TEXT REFERENCES item ON DELETE CASCADE ON UPDATE CASCADE);
             CREATE TRIGGER counted AFTER INSERT ON item BEGIN UPDATE number SET v = v + 1 WHERE id = new.v; END;
             INSERT INTO item VALUES ('a', 1), ('b', 2);
             INSERT INTO number VALUES (1, 1), (2, 2);
             INSERT INTO part VALUES (1, 'a'), (2, 'b');",
        )
        .on(|done: Done, db| db.execute(&done.sql, ()))
    }

    fn statement() -> impl Strategy<Value = String> {
        let key = || prop::sample::select(vec!["a", "b", "c", "d"]);
        let table = || prop::sample::select(vec!["item", "bare"]);
        let number = || 0..4_i64;
        prop_oneof![
            (table(), key(), number()).prop_map(|(table, k, v)| format!(
                "INSERT INTO {table} VALUES ('{k}', {v}) ON CONFLICT DO UPDATE SET v = excluded.v + 1"
            )),
            (table(), key(), number())
                .prop_map(|(table, k, v)| format!("INSERT OR REPLACE INTO {table} VALUES ('{k}', {v})")),
            (table(), key(), key()).prop_map(|(table, k, to)| format!("UPDATE {table} SET k = '{to}' WHERE k = '{k}'")),
            (table(), key()).prop_map(|(table, k)| format!("DELETE FROM {table} WHERE k = '{k}'")),
            prop::sample::select(vec!["item", "bare", "many"]).prop_map(|table| format!("DELETE FROM {table}")),
            // Does something or nothing, by what others did elsewhere.
            (number(), key()).prop_map(|(id, k)| format!(
                "UPDATE number SET v = v + 1 WHERE id = {id} AND EXISTS (SELECT 1 FROM item WHERE k = '{k}')"
            )),
            (number(), number()).prop_map(|(id, v)| format!("INSERT INTO number VALUES ({id}, {v})")),
            (number(), number()).prop_map(|(id, to)| format!("UPDATE number SET id = {to} WHERE id = {id}")),
            (number(), number())
                .prop_map(|(id, to)| format!("UPDATE OR REPLACE number SET rowid = {to} WHERE id = {id}")),
            (key(), number()).prop_map(|(k, v)| format!("INSERT INTO many VALUES ('{k}', {v})")),
            (key(), number()).prop_map(|(k, v)| format!("DELETE FROM many WHERE post = '{k}' AND v > {v}")),
            (key(), number()).prop_map(|(k, v)| format!("UPDATE many SET post = '{k}' WHERE v = {v}")),
            (number(), key()).prop_map(|(id, k)| format!("INSERT INTO part VALUES ({id}, '{k}')")),
        ]
    }

    /// What happens to a replica that follows an upstream.
    #[derive(Debug, Clone)]
    enum Step {
        /// It commits an event of its own, which is pending.
        Commit(String),
        /// An event of somebody else arrives.
        Arrive(String),
        /// The oldest event of its own arrives.
        Confirm,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => statement().prop_map(Step::Commit),
            2 => statement().prop_map(Step::Arrive),
            1 => Just(Step::Confirm),
        ]
    }

    const KEYED: [&str; 5] = [
        "SELECT v FROM item WHERE k = ?1",
        "SELECT v FROM bare WHERE k = ?1",
        "SELECT count(*) FROM many WHERE post = ?1",
        "SELECT max(v) FROM many AS m WHERE m.post = ?1 AND v < 3",
        "SELECT count(*) FROM part WHERE item = ?1",
    ];

    fn envelope(sql: &str) -> Envelope {
        Envelope::new(EventId::now(), &Done { sql: sql.to_owned() }).expect("an event")
    }

    fn all_are_told(steps: &[Step]) -> TestCaseResult {
        let dir = tempfile::tempdir().expect("a directory");
        let setup = Setup {
            schema: Arc::new(schema()),
            device: "test".parse().expect("a name"),
            executable: "test".to_owned(),
            progress: |_, _| {},
        };
        let mut replica = Replica::open(Files::in_dir(dir.path()), setup).expect("a replica");
        replica.follow().expect("it follows");
        let live = Live::default();
        fn read(row: &rusqlite::Row<'_>) -> Result<Option<i64>, crate::engine::DbError> {
            Ok(row.get(0)?)
        }
        let mut queries: Vec<Query<Vec<Option<i64>>>> = Vec::new();
        for key in ["a", "b", "c", "d"] {
            queries.extend(KEYED.map(|sql| Query::rows(sql, read).bind(key)));
        }
        for id in 0..4 {
            let sql = "SELECT v FROM number WHERE id = ?";
            queries.push(Query::rows(sql, read).bind(id));
        }
        let watches: Vec<_> = queries.iter().map(|query| live.watch(query.clone()).0).collect();
        live.tell(live.refresh(replica.state()), || false);
        let mut pending = Vec::new();
        let mut head = 0;
        for step in steps {
            let arriving = match step {
                Step::Commit(sql) => {
                    let event = envelope(sql);
                    let outcome = replica.commit(std::slice::from_ref(&event)).expect("no fault of the machine");
                    if outcome == [crate::engine::Outcome::Stored(None)] {
                        pending.push(event);
                    }
                    None
                }
                Step::Arrive(sql) => Some(envelope(sql)),
                Step::Confirm => (!pending.is_empty()).then(|| pending.remove(0)),
            };
            if let Some(event) = arriving {
                head += 1;
                let entry = Entry { seq: Seq(head), event, origin: "other".parse().expect("a name") };
                let page = Page { entries: vec![entry], next: Seq(head), more: false };
                replica.arrive(&page).expect("no fault of the machine");
            }
            live.tell(live.refresh(replica.state()), || false);
            for (query, watch) in queries.iter().zip(&watches) {
                let told = watch.borrow().clone().expect("an answer").expect("no fault");
                prop_assert_eq!(told, replica.query(query).expect("an answer"), "{:?} after {:?}", query, step);
            }
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

        #[test]
        fn who_watches_a_key_is_told_of_every_change_however_it_came(steps in prop::collection::vec(step(), 1..30)) {
            all_are_told(&steps)?;
        }
    }

    #[test]
    fn a_commit_runs_only_the_queries_whose_key_it_wrote() {
        static RUNS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let mut state = State::in_memory(&Arc::new(schema())).expect("a state");
        let live = Live::default();
        let query = |key: usize| {
            Query::rows("SELECT v FROM item WHERE k = ?1", |row| {
                RUNS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                Ok(row.get::<_, i64>(0)?)
            })
            .bind(key.to_string())
        };
        let watches: Vec<_> = (0..1_000).map(|key| live.watch(query(key)).0).collect();
        live.tell(live.refresh(&mut state), || false);
        let runs = || RUNS.swap(0, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(runs(), 0, "there are no rows to read");
        state.begin().expect("a transaction");
        let apply = |state: &mut State, sql: &str| {
            state.apply_alone(&envelope(sql), crate::engine::materialize::OnFault::Refuse).expect("it applies");
            live.tell(live.refresh(state), || false);
        };
        apply(&mut state, "INSERT INTO item VALUES ('7', 11), ('x', 12)");
        assert_eq!((runs(), watches[7].borrow().clone()), (1, Some(Ok(vec![11]))));
        apply(&mut state, "UPDATE item SET v = 15 WHERE k = '7'");
        assert_eq!((runs(), watches[7].borrow().clone()), (1, Some(Ok(vec![15]))));
        apply(&mut state, "UPDATE item SET k = '8' WHERE k = '7'");
        assert_eq!((runs(), watches[7].borrow().clone()), (1, Some(Ok(vec![]))));
        assert_eq!(watches[8].borrow().clone(), Some(Ok(vec![15])));
    }
}
