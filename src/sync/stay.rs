//! How long a store is kept level with its upstream, and what is told of its link meanwhile: what clients of a hub and a
//! gateway to a cluster have in common.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::sleep;

use super::client::{Clients, LinkState, LinkStatus, Usage};
use super::protocol::words;
use super::tokens;
use crate::engine::{Health, Standing, StoreId};
use crate::limits::sync::client::{IDLE_AFTER, IDLE_CHECK, IDLE_WHEN_CROWDED};

/// A store's stay among those that are kept level.
pub(super) struct Stay {
    pub(super) id: StoreId,
    /// The store's health when it was last open.
    pub(super) health: watch::Receiver<Health>,
    pub(super) status: watch::Sender<LinkStatus>,
    pub(super) usage: Arc<Usage>,
    pub(super) clients: Clients,
}

impl Stay {
    /// Ends the stay if the store or the program was closed, or nobody uses the store. While it is looked at, nobody can begin
    /// to use it. Returns whether the stay is over.
    pub(super) fn ends(&self, is_closed: bool) -> bool {
        let mut links = self.clients.shared.links.lock().expect("BUG: attending to a store panicked");
        let is_over = is_closed || self.is_idle();
        if is_over {
            links.remove(&self.id);
        }
        is_over
    }

    /// Tells whoever waits for the attempt that was just made, and returns when somebody asks for one at once.
    pub(super) async fn is_asked_now(&self) {
        self.usage.tried.send_modify(|times| *times += 1);
        self.usage.now.notified().await;
    }

    /// Returns when nobody has used the store for a while and nothing waits to be pushed.
    pub(super) async fn idle(&self) {
        while !self.is_idle() {
            sleep(IDLE_CHECK).await;
        }
    }

    fn is_idle(&self) -> bool {
        let used = *self.usage.last.lock().expect("BUG: touching a link panicked");
        let patience = if self.clients.shared.stores.are_crowded() { IDLE_WHEN_CROWDED } else { IDLE_AFTER };
        let is_level = match &*self.health.borrow() {
            Health::Absent => true,
            health => health.standing().is_some_and(|standing| !self.clients.has_work(standing)),
        };
        is_level && used.elapsed() > patience && !self.is_watched()
    }

    /// Returns whether a page shows the store.
    pub(super) fn is_watched(&self) -> bool {
        self.status.receiver_count() > 0
    }

    /// Returns the last known standing of the store.
    pub(super) fn standing(&self) -> Standing {
        standing(&self.health)
    }

    pub(super) fn tell(&self, state: LinkState, code: Option<&'static str>, error: Option<String>) {
        // Most errors are in the hub's own words.
        let error = error.map(|why| words(&why));
        self.status.send_if_modified(|status| {
            if status.state == state && status.code == code && status.error == error {
                return false;
            }
            let store = self.id.as_str();
            match (&error, state) {
                (Some(why), LinkState::Halted) => tracing::error!(store, code, why, "sync stopped"),
                (Some(why), LinkState::Online) => tracing::warn!(store, why, "online, and not ready for devices"),
                (Some(why), _) if status.state != state => tracing::warn!(store, why, "offline"),
                (None, LinkState::Online) => tracing::info!(store, "online"),
                _ => {}
            }
            if status.state != state {
                status.since = Some(tokens::now());
                if (status.state, state) == (LinkState::Offline, LinkState::Online) {
                    self.clients.shared.found.send_modify(|times| *times += 1);
                }
            }
            status.state = state;
            status.code = code;
            status.error = error;
            true
        });
    }
}

pub(super) fn standing(health: &watch::Receiver<Health>) -> Standing {
    health.borrow().standing().cloned().unwrap_or_default()
}
