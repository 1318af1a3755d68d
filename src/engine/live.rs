//! Live queries: run again when a commit touched a table they read, once however many watch, and told to the watchers
//! when the answer changed.
//!
//! The answers that were asked for last are kept up to date a while longer. So who asks again need not wait for the
//! thread that writes, which may be waiting for the disk, and has an answer even when the store can't be opened.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::authorizer::Tables;
use super::error::Error;
use super::query::{Query, QueryKey};
use super::state::State;

/// How long an answer is kept up to date after it was asked for last.
const REMEMBERED_FOR: Duration = Duration::from_secs(60);

/// How many answers are kept that nobody watches: each commit that touches them runs them again.
const REMEMBERED: usize = 16;

/// The live queries of one store. Watchers add theirs; the thread that owns the state runs them.
#[derive(Default)]
pub(crate) struct Live {
    queries: Mutex<Queries>,
    /// Grows with each change of what is told. While it is borrowed nothing is told, so whoever holds it sees all that a
    /// commit changed, or nothing of it.
    rounds: watch::Sender<u64>,
}

/// What a commit changed about the answers, before anybody is told.
#[must_use]
#[derive(Default)]
pub(crate) struct News(Vec<Box<dyn FnOnce() + Send>>);

#[derive(Default)]
struct Queries {
    watched: HashMap<QueryKey, Arc<dyn LiveQuery>>,
    is_closed: bool,
}

/// One live query, whatever the type of its answer.
trait LiveQuery: Any + Send + Sync {
    /// Runs the query if it reads one of `touched` or has no answer yet. If the answer changed, this gives what tells the
    /// watchers.
    fn refresh(self: Arc<Self>, state: &State, touched: Tables) -> Option<Box<dyn FnOnce() + Send>>;

    /// Says why there is no answer, unless there is one, which then stands.
    fn fail(&self, why: &Error);

    fn is_watched(&self) -> bool;

    /// When somebody began to watch it last.
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
    /// The answers to `query`, now and from now on. True when nobody asked for them before, so that somebody has to
    /// [refresh](Self::refresh) them.
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

    /// Brings every query up to date that reads one of `touched`, and forgets those that nobody needs.
    /// The watchers are [told](Self::tell) after that.
    pub(crate) fn refresh(&self, state: &State, touched: Tables) -> News {
        self.lock().forget(Instant::now());
        News(self.all().into_iter().filter_map(|query| query.refresh(state, touched)).collect())
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

    /// Tells those who have no answer yet why there is none. What is known stays known.
    pub(crate) fn fail(&self, why: &Error) {
        for query in self.all() {
            query.fail(why);
        }
        self.rounds.send_modify(|round| *round += 1);
    }

    /// Ends all watches, and those that are still to begin: nobody will run a query any more.
    pub(crate) fn close(&self) {
        let mut queries = self.lock();
        queries.is_closed = true;
        queries.watched.clear();
        self.rounds.send_modify(|round| *round += 1);
    }

    /// All queries, copied out so that none of them runs under the lock that watchers wait for.
    fn all(&self) -> Vec<Arc<dyn LiveQuery>> {
        self.lock().watched.values().map(Arc::clone).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Queries> {
        self.queries.lock().expect("BUG: a live query panicked under the lock")
    }
}

impl Queries {
    /// Lets go of the queries that nobody watches, but for the few that were asked for last.
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
    fn refresh(self: Arc<Self>, state: &State, touched: Tables) -> Option<Box<dyn FnOnce() + Send>> {
        let mut reads = self.reads.lock().expect("BUG: a live query panicked");
        let has_answer = matches!(*self.answer.borrow(), Some(Ok(_)));
        if has_answer && !reads.touches(touched) {
            return None;
        }
        let answer = match state.read(&self.query) {
            Ok((answer, tables)) => {
                *reads = tables;
                Ok(answer)
            }
            Err(error) => Err(Error::Query(error.to_string())),
        };
        drop(reads);
        let is_new = self.answer.borrow().as_ref() != Some(&answer);
        is_new.then(|| Box::new(move || drop(self.answer.send_replace(Some(answer)))) as Box<_>)
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
