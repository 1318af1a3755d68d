//! Live queries. When a commit may have changed an answer, the query runs again, once for all watchers, and they are told
//! if it did.
//!
//! A query runs again after a commit to a table that it reads. A query that looks rows up by a key runs again only after a
//! commit that wrote a row of that key, so thousands of them cost a commit next to nothing.
//!
//! Recent answers are kept up to date for a while after the last watcher left. So asking again doesn't wait for the
//! writer, which may be waiting for the disk, and works even when the store can't be opened.

mod index;

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::watch;

use self::index::{Again, Index};
use crate::engine::error::{DbError, Error};
use crate::engine::query::{Query, QueryKey};
use crate::engine::state::State;
use crate::limits::engine::live::{FORGET_EVERY, REMEMBERED, REMEMBERED_FOR, STEPS_IN_A_ROW};

/// The live queries of one store. Watchers add theirs; the thread that owns the state runs them.
#[derive(Default)]
pub(crate) struct Live {
    queries: Mutex<Queries>,
    /// Only for the thread that runs the queries. Nobody waits for it.
    index: Mutex<Index>,
    /// Grows whenever something is told. While it is borrowed nothing is told, so a holder sees all that a commit changed, or
    /// none of it.
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
    /// When unneeded ones were last dropped, and how many were left.
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

    /// What tells it from all others.
    fn key(&self) -> &QueryKey;
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

    /// Brings queries up to date whose answers may be others now, and forgets those that nobody needs. The watchers are
    /// [told](Self::tell) after that. Queries that would keep others from the thread for too long [wait](Self::has_more).
    pub(crate) fn refresh(&self, state: &mut State) -> News {
        let changes = state.take_changes();
        let mut index = self.index.lock().expect("BUG: running queries panicked");
        let mut due = {
            let mut queries = self.lock();
            for forgotten in queries.forget(Instant::now()) {
                index.forget(&forgotten);
            }
            std::mem::take(&mut queries.fresh)
        };
        due.extend(index.due(state, &changes));
        due.extend(index.refused_before(Instant::now()));
        index.wait(due);
        let mut news = News::default();
        let mut steps = 0;
        state.take_steps();
        while steps < STEPS_IN_A_ROW
            && let Some(query) = index.next()
        {
            let (again, tell) = Arc::clone(&query).run(state);
            index.insert(query, again);
            news.0.extend(tell);
            steps += state.take_steps();
        }
        if let Err(error) = state.record_rows(index.needs_rows()) {
            // Then each query counts as touched if a table that it reads was written.
            tracing::warn!(%error, "cannot learn which rows are written");
        }
        news
    }

    /// Whether queries wait to be run in another [refresh](Self::refresh).
    pub(crate) fn has_more(&self) -> bool {
        self.index.lock().expect("BUG: running queries panicked").has_more()
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
        // Copied, so nobody who begins to watch waits for this.
        let all: Vec<_> = self.lock().watched.values().map(Arc::clone).collect();
        for query in all {
            query.fail(why);
        }
        self.rounds.send_modify(|round| *round += 1);
    }

    /// Ends all watches, present and future: nobody runs queries any more.
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
    /// Drops the queries that nobody watches, except the few that were asked for last. Returns those dropped.
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
mod tests;
