//! Which queries a commit may have changed the answers of, found without looking at each.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::time::Instant;

use super::LiveQuery;
use crate::engine::changes::{Changes, Tables};
use crate::engine::depends::{Depends, Key, KeyColumn};
use crate::engine::query::QueryKey;
use crate::engine::state::State;
use crate::limits::engine::live::REFUSED_AGAIN;

/// When a query is to be run again.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// After a commit that changed what its answer depends on.
    After(Depends),
    /// Each time: it failed, and the cause may be gone.
    EachTime,
    /// [Seldom](REFUSED_AGAIN): it took too many steps.
    Seldom,
}

/// Finds the queries whose answers a commit may have changed, without looking at each.
#[derive(Default)]
pub(super) struct Index {
    queries: HashMap<QueryKey, (Arc<dyn LiveQuery>, Again)>,
    /// Those that are to be run, in this order.
    waiting: VecDeque<Arc<dyn LiveQuery>>,
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
    /// Adds queries to those that are to be run, unless they are among them.
    pub(super) fn wait(&mut self, due: Vec<Arc<dyn LiveQuery>>) {
        let known: HashSet<QueryKey> = self.waiting.iter().map(|query| query.key().clone()).collect();
        self.waiting.extend(due.into_iter().filter(|query| !known.contains(query.key())));
    }

    /// The next query that is to be run.
    pub(super) fn next(&mut self) -> Option<Arc<dyn LiveQuery>> {
        self.waiting.pop_front()
    }

    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn has_more(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Lets go of a query.
    pub(super) fn forget(&mut self, key: &QueryKey) {
        self.waiting.retain(|query| query.key() != key);
        self.remove(key);
    }

    pub(super) fn insert(&mut self, query: Arc<dyn LiveQuery>, again: Again) {
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
    pub(super) fn due(&self, state: &State, changes: &Changes) -> Vec<Arc<dyn LiveQuery>> {
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
    pub(super) fn refused_before(&self, now: Instant) -> Option<Arc<dyn LiveQuery>> {
        let is_time = self.tried.is_none_or(|tried| now.duration_since(tried) >= REFUSED_AGAIN);
        let first = self.refused.front().filter(|_| is_time)?;
        Some(Arc::clone(&self.queries[first].0))
    }

    pub(super) fn needs_rows(&self) -> bool {
        !self.by_key.is_empty()
    }
}

impl ByKey {
    /// The queries with a written row in their answers, or whose key a written row has now. `None` when that can't be told.
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

/// Removes `key` from the set at `place`, and the set if it is empty then.
fn take<K: Eq + Hash>(sets: &mut HashMap<K, HashSet<QueryKey>>, place: &K, key: &QueryKey) {
    if let Some(set) = sets.get_mut(place) {
        set.remove(key);
        if set.is_empty() {
            sets.remove(place);
        }
    }
}
