//! The counts of all items that somebody asked for, kept up to date without keeping a store open.
//!
//! Each store that is asked for has a slot for its count, and a task that reads the count again when the store changes.
//! There are at most as many as there are stores. An item without likes has neither: its count is 0 until its store
//! exists, however many look at it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::engine::{Error, Query, StoreId, Stores};
use crate::limits::web::embed::{PATIENCE, READ_AGAIN, READ_AT_ONCE, SHORTEST_PAUSE};
use crate::web::shares::Who;

/// Makes the query that counts.
pub(crate) type CountQuery = dyn Fn() -> Query<u64> + Send + Sync;

/// The counts of items.
#[derive(Clone)]
pub(crate) struct Board {
    shared: Arc<Shared>,
}

struct Shared {
    stores: Stores,
    query: Arc<CountQuery>,
    counts: watch::Sender<Counts>,
    /// Bounds how many stores are opened at a time.
    turns: Semaphore,
    shutdown: CancellationToken,
}

/// A count, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Count {
    /// It is being read for the first time.
    Unread,
    Known(u64),
    /// The store can't be read. It is tried again.
    Unreadable,
}

impl Count {
    /// The number, if it is known.
    pub(super) fn known(self) -> Option<u64> {
        match self {
            Self::Known(count) => Some(count),
            Self::Unread | Self::Unreadable => None,
        }
    }
}

/// All counts, by slot.
#[derive(Debug, Default)]
pub(super) struct Counts {
    slots: HashMap<StoreId, usize>,
    counts: Vec<Count>,
}

/// Where the count of a store stands on the board.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot(usize);

impl Counts {
    pub(super) fn at(&self, slot: Slot) -> Count {
        self.counts[slot.0]
    }
}

impl Board {
    pub(crate) fn new(stores: Stores, query: Arc<CountQuery>, shutdown: CancellationToken) -> Self {
        let (counts, turns) = (watch::channel(Counts::default()).0, Semaphore::new(READ_AT_ONCE));
        Self { shared: Arc::new(Shared { stores, query, counts, turns, shutdown }) }
    }

    /// The counts, now and as they change.
    pub(super) fn counts(&self) -> watch::Receiver<Counts> {
        self.shared.counts.subscribe()
    }

    /// How many streams show counts.
    pub(super) fn streams(&self) -> usize {
        self.shared.counts.receiver_count()
    }

    /// The stores that exist, now and as they are made.
    pub(super) fn existing(&self) -> watch::Receiver<HashSet<StoreId>> {
        self.shared.stores.existing()
    }

    /// The slot of a store, whose count is kept from now on. Nothing if there is no such store: it has no likes.
    pub(super) fn slot(&self, id: &StoreId) -> Option<Slot> {
        if let Some(slot) = self.shared.counts.borrow().slots.get(id) {
            return Some(Slot(*slot));
        }
        if !self.shared.stores.existing().borrow().contains(id) {
            return None;
        }
        let mut is_new = false;
        let mut slot = Slot(0);
        self.shared.counts.send_if_modified(|Counts { slots, counts }| {
            slot = Slot(*slots.entry(id.clone()).or_insert_with(|| {
                is_new = true;
                counts.push(Count::Unread);
                counts.len() - 1
            }));
            // Nobody has this slot yet.
            false
        });
        if is_new {
            let (shared, id) = (Arc::clone(&self.shared), id.clone());
            tokio::spawn(async move { shared.shutdown.run_until_cancelled(shared.follow(&id, slot)).await });
        }
        Some(slot)
    }

    /// The present counts of these stores, in their order. Nothing for one that can't be read.
    pub(crate) async fn read(&self, ids: &[StoreId]) -> Vec<Option<u64>> {
        let slots: Vec<_> = ids.iter().map(|id| self.slot(id)).collect();
        let mut counts = self.counts();
        let all_read = |counts: &Counts| slots.iter().flatten().all(|slot| counts.at(*slot) != Count::Unread);
        // What isn't known by then is left out.
        drop(timeout(PATIENCE, counts.wait_for(all_read)).await);
        let counts = counts.borrow();
        slots.iter().map(|slot| slot.map_or(Some(0), |slot| counts.at(slot).known())).collect()
    }
}

impl Shared {
    /// Keeps the count of a store up to date.
    async fn follow(&self, id: &StoreId, slot: Slot) {
        let mut news = self.stores.news(id);
        loop {
            let read = match self.turns.acquire().await {
                Ok(_turn) => self.count(id, &mut news).await,
                Err(_) => return,
            };
            let is_read = read.is_ok();
            self.counts.send_if_modified(|Counts { counts, .. }| {
                let count = &mut counts[slot.0];
                let new = match (read, *count) {
                    (Ok(number), _) => Count::Known(number),
                    // What is known stays.
                    (Err(_), Count::Known(number)) => Count::Known(number),
                    (Err(_), _) => Count::Unreadable,
                };
                std::mem::replace(count, new) != new
            });
            if is_read {
                if news.changed().await.is_err() {
                    return;
                }
                sleep(SHORTEST_PAUSE).await;
            } else {
                sleep(READ_AGAIN).await;
            }
        }
    }

    /// Reads the count of a store, and marks the news up to this count as seen.
    async fn count(&self, id: &StoreId, news: &mut watch::Receiver<u64>) -> Result<u64, Error> {
        let store = self.stores.get_leaving(id, Who::Visitor.spare(self.stores.limits()))?;
        let mut counts = store.watch((self.query)());
        counts.answered().await?;
        let rounds = store.rounds();
        // News and answers are told together. In between, a count could seem newer than it is.
        let _nothing_is_told = rounds.borrow();
        news.mark_unchanged();
        counts.take().unwrap_or(Err(Error::Closed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Setup, StoreLimits};
    use crate::likes::{self, LikeAdded};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn trust_66_more_stores_are_counted_than_may_be_open_and_none_stays_open() {
        let dir = tempfile::tempdir().expect("a directory");
        let setup = Setup {
            schema: Arc::new(likes::schema()),
            device: "test".parse().expect("a name"),
            executable: "test".to_owned(),
            progress: |_, _| {},
        };
        // Visitors leave a quarter of the open ones to others.
        let limits = StoreLimits { open: 8, ..StoreLimits::default() };
        let stores = Stores::open(dir.path(), setup, limits).expect("stores");
        let ids: Vec<StoreId> = (0..30).map(|n| format!("item-{n}").parse().expect("a name")).collect();
        for (n, id) in ids.iter().enumerate() {
            let store = stores.get(id).expect("a store");
            for _ in 0..n % 3 + 1 {
                store.commit(LikeAdded {}).await.expect("stored");
            }
        }
        let shutdown = CancellationToken::new();
        let board = Board::new(stores.clone(), Arc::new(likes::count), shutdown.clone());
        let absent: StoreId = "item-none".parse().expect("a name");
        assert_eq!(board.read(std::slice::from_ref(&absent)).await, [Some(0)]);
        let mut counts = board.read(&ids).await;
        // A store that found no room is tried again.
        while counts.contains(&None) {
            sleep(SHORTEST_PAUSE).await;
            counts = board.read(&ids).await;
        }
        assert!(counts.iter().enumerate().all(|(n, count)| *count == Some(n as u64 % 3 + 1)), "{counts:?}");
        assert!(ids.iter().filter(|id| stores.opened(id).is_some()).count() <= 8);

        // The board learns of every change, whoever made it, and of a store that is made.
        for id in [&ids[0], &absent] {
            stores.get(id).expect("a store").commit(LikeAdded {}).await.expect("stored");
        }
        let slot = board.slot(&absent).expect("it exists now");
        let is_told = |counts: &Counts| {
            counts.at(slot) == Count::Known(1) && counts.at(Slot(counts.slots[&ids[0]])) == Count::Known(2)
        };
        board.counts().wait_for(is_told).await.expect("told");
        shutdown.cancel();
        tokio::task::spawn_blocking(move || stores.close()).await.expect("closed");
    }
}
