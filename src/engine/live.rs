//! Live queries. A query runs again when a commit touched a table that it reads, once however many watch it. Watchers are
//! told when the answer changed.
//!
//! Recent answers are kept up to date for a while after the last watcher left. So asking again doesn't wait for the
//! writer, which may be waiting for the disk, and works even when the store can't be opened.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::authorizer::Tables;
use super::error::Error;
use super::query::{Query, QueryKey};
use super::state::State;

/// How long an unwatched answer is kept up to date: a page that is loaded again asks within this time.
const REMEMBERED_FOR: Duration = Duration::from_secs(60);

/// How many unwatched answers are kept. Each costs a run of its query whenever a commit touches it.
const REMEMBERED: usize = 16;

/// The live queries of one store. Watchers add theirs; the thread that owns the state runs them.
#[derive(Default)]
pub(crate) struct Live {
    queries: Mutex<Queries>,
}

#[derive(Default)]
struct Queries {
    watched: HashMap<QueryKey, Arc<dyn LiveQuery>>,
    is_closed: bool,
}

/// One live query, whatever the type of its answer.
trait LiveQuery: Any + Send + Sync {
    /// Runs the query if it reads one of `touched` or has no answer yet, and tells who watches if the answer changed.
    fn refresh(&self, state: &State, touched: Tables);

    /// Says why there is no answer, unless there is one.
    fn fail(&self, why: &Error);

    fn is_watched(&self) -> bool;

    /// When it was last asked for.
    fn asked(&self) -> Instant;
}

pub(super) type Answer<T> = Option<Result<T, Error>>;

struct Watched<T> {
    query: Query<T>,
    reads: Mutex<Tables>,
    answer: watch::Sender<Answer<T>>,
    asked: Mutex<Instant>,
}

impl Live {
    /// The answers to `query`, now and from now on. True when it is new, so that the caller has to
    /// [refresh](Self::refresh) it.
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
            return (known.answer.subscribe(), known.answer.borrow().is_none());
        }
        let (answer, receiver) = watch::channel(None);
        if !queries.is_closed {
            let asked = Mutex::new(Instant::now());
            queries.watched.insert(key, Arc::new(Watched { query, reads: Mutex::default(), answer, asked }));
        }
        (receiver, true)
    }

    /// Runs every query that reads one of `touched`, and drops those that nobody needs.
    pub(crate) fn refresh(&self, state: &State, touched: Tables) {
        self.lock().forget(Instant::now());
        for query in self.all() {
            query.refresh(state, touched);
        }
    }

    /// Tells watchers without an answer why there is none. An answer that is known stays.
    pub(crate) fn fail(&self, why: &Error) {
        for query in self.all() {
            query.fail(why);
        }
    }

    /// Ends all watches, also future ones: nobody runs queries any more.
    pub(crate) fn close(&self) {
        let mut queries = self.lock();
        queries.is_closed = true;
        queries.watched.clear();
    }

    /// All queries, copied out: none may run under the lock that watchers wait for.
    fn all(&self) -> Vec<Arc<dyn LiveQuery>> {
        self.lock().watched.values().map(Arc::clone).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Queries> {
        self.queries.lock().expect("BUG: a live query panicked under the lock")
    }
}

impl Queries {
    /// Drops the queries that nobody watches, except for a few recent ones.
    fn forget(&mut self, now: Instant) {
        let mut unwatched: Vec<Instant> =
            self.watched.values().filter(|query| !query.is_watched()).map(|query| query.asked()).collect();
        if unwatched.is_empty() {
            return;
        }
        unwatched.sort_unstable_by(|one, other| other.cmp(one));
        let last = unwatched.get(REMEMBERED - 1).copied();
        let is_needed =
            |asked: Instant| now.duration_since(asked) < REMEMBERED_FOR && last.is_none_or(|last| asked >= last);
        self.watched.retain(|_, query| query.is_watched() || is_needed(query.asked()));
    }
}

impl<T: Clone + PartialEq + Send + Sync + 'static> LiveQuery for Watched<T> {
    fn refresh(&self, state: &State, touched: Tables) {
        let mut reads = self.reads.lock().expect("BUG: a live query panicked");
        let has_answer = matches!(*self.answer.borrow(), Some(Ok(_)));
        if has_answer && !reads.touches(touched) {
            return;
        }
        let answer = match state.read(&self.query) {
            Ok((answer, tables)) => {
                *reads = tables;
                Ok(answer)
            }
            Err(error) => Err(Error::Query(error.to_string())),
        };
        self.answer.send_if_modified(|last| {
            let is_new = last.as_ref() != Some(&answer);
            if is_new {
                *last = Some(answer);
            }
            is_new
        });
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
}
