//! Fetches the events behind a store's snapshot, and has them prove it. This is in no hurry: it takes one page at a time,
//! behind the clicks that wait, and beside the sessions that keep the store level.

use std::pin::pin;
use std::sync::{Arc, Mutex};

use futures_util::StreamExt as _;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::backfill::{Backfill, Backfilled};
use super::backoff::at_least;
use super::client::{Clients, LinkStatus};
use super::http::Upstream;
use super::link::{hello, here, silent, unless_silent};
use super::protocol::{WirePage, words};
use super::ration::Allowance;
use super::session::{End, ended, not_understood};
use super::sse;
use crate::engine::{Concluded, HistoryPosition, Replica, Store, StoreId};
use crate::limits::sync::client::{NO_PAGE_EVERY, NO_PAGES};
use crate::limits::sync::snapshot::{HISTORY_WAITS, SOME_PAGES};
use crate::limits::sync::stream::SILENCE;

/// How much of a log a device has in the end that began with a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum HistoryWanted {
    /// All of it: what is behind the snapshot follows, and proves it
    #[default]
    Full,
    /// What came after the snapshot
    None,
}

/// What the status says of a snapshot that its history disproved.
pub(crate) const WAS_WRONG: &str = "The hub's snapshot, with which this device began, was not what follows from the hub's \
                                    log. The log counts, and what is here was made from it.";

/// The fetching of one store.
pub(super) struct Behind {
    pub(super) id: StoreId,
    pub(super) upstream: Upstream,
    pub(super) clients: Clients,
    /// Whether a session with the hub is under way. It changes with each session.
    pub(super) is_online: watch::Receiver<bool>,
    pub(super) status: watch::Sender<LinkStatus>,
}

/// What there is to do.
enum ToDo {
    Nothing,
    Fetch(HistoryPosition),
    Prove,
}

impl Behind {
    /// Fetches and proves whenever there is something behind the store's log. Never returns.
    pub(super) async fn run(mut self) {
        let mut wait = HISTORY_WAITS.0;
        loop {
            // The store is open only while there is something to do.
            let found = match self.clients.shared.stores.get(&self.id) {
                Ok(store) => self.look(&store).await.map(|todo| (todo, store)),
                Err(error) => Err(here(&error)),
            };
            let end = match found {
                Ok((ToDo::Nothing, store)) => {
                    drop(store);
                    self.next_session().await;
                    continue;
                }
                Ok((ToDo::Fetch(_), store)) if !*self.is_online.borrow_and_update() => {
                    drop(store);
                    self.next_session().await;
                    continue;
                }
                Ok((ToDo::Fetch(position), store)) => match self.fetch(&store, position).await {
                    Ok(()) => {
                        wait = HISTORY_WAITS.0;
                        continue;
                    }
                    Err(end) => end,
                },
                Ok((ToDo::Prove, store)) => match self.prove(&store).await {
                    Ok(()) => continue,
                    Err(end) => end,
                },
                Err(end) => end,
            };
            match end {
                End::Later(_, least) => sleep(at_least(least)).await,
                end => {
                    tracing::debug!(store = self.id.as_str(), ?end, "the history of the store waits");
                    sleep(at_least(wait)).await;
                    wait = (2 * wait).min(HISTORY_WAITS.1);
                }
            }
        }
    }

    /// Waits until a session begins, in which the store may have begun with a snapshot.
    async fn next_session(&mut self) {
        if self.is_online.changed().await.is_err() {
            // The client has ended, and this with it.
            std::future::pending().await
        }
    }

    async fn look(&self, store: &Store) -> Result<ToDo, End> {
        let history = store.look(|replica| Ok(replica.history())).await.map_err(|error| here(&error))?.flatten();
        Ok(match history {
            None => ToDo::Nothing,
            Some(position) if position.is_complete() => ToDo::Prove,
            Some(_) if self.clients.shared.history == HistoryWanted::None => ToDo::Nothing,
            Some(position) => ToDo::Fetch(position),
        })
    }

    /// Fetches one stream of pages. Returns without error if it has brought some, or all that will come.
    async fn fetch(&self, store: &Store, position: HistoryPosition) -> Result<(), End> {
        let bytes = match timeout(SILENCE, self.upstream.history(&self.id, position)).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(End::Diverged(_))) => {
                // What came so far is not the hub's log. As a log of its own it can be compared with the hub's.
                tracing::warn!(store = self.id.as_str(), "the hub has another history than what came so far");
                store.with(|replica| replica.drop_base()).await.map_err(|error| here(&error))?;
                return Err(End::PullFirst);
            }
            Ok(Err(end)) => return Err(end),
            Err(_) => return Err(silent()),
        };
        let mut events = pin!(sse::events(unless_silent(bytes), self.upstream.ration()));
        let backfill = Arc::new(Mutex::new(Backfill::begin(position, &hello(&mut events).await?)?));
        let mut others = Allowance::new(NO_PAGES, NO_PAGE_EVERY);
        let mut pages = 0;
        let end = loop {
            let event = match events.next().await {
                Some(Ok(event)) => event,
                Some(Err(error)) => break End::Offline(format!("the stream broke: {error}")),
                None => break End::Offline("the hub ended the stream".to_owned()),
            };
            if event.event != "page" {
                if !others.spend() {
                    break End::Offline("the hub sends without pause what is no page".to_owned());
                }
                continue;
            }
            let page: WirePage = match serde_json::from_str(&event.data) {
                Ok(page) => page,
                Err(why) => break not_understood(&why),
            };
            let backfill = Arc::clone(&backfill);
            let arrive = move |replica: &mut Replica| {
                ended(backfill.lock().expect("BUG: a backfill panicked").arrive(replica, page))
            };
            match store.with(arrive).await.map_err(|error| here(&error))?? {
                Backfilled::More => pages += 1,
                Backfilled::Complete => return Ok(()),
                Backfilled::Disproven => {
                    self.say_that_it_was_wrong();
                    return Ok(());
                }
            }
        };
        if pages >= SOME_PAGES { Ok(()) } else { Err(end) }
    }

    /// Proves the snapshot by its history.
    async fn prove(&self, store: &Store) -> Result<(), End> {
        match store.prove().await {
            Ok(Some(Concluded::Proven)) => {
                tracing::info!(store = self.id.as_str(), "all of the log is here, and the snapshot is proven by it");
                Ok(())
            }
            Ok(Some(Concluded::Disproven)) => {
                self.say_that_it_was_wrong();
                Ok(())
            }
            // Something changed meanwhile.
            Ok(Some(Concluded::Outdated) | None) => Err(End::PullFirst),
            Err(error) => {
                tracing::warn!(store = self.id.as_str(), %error, "cannot prove the snapshot by its history now");
                Err(here(&error))
            }
        }
    }

    fn say_that_it_was_wrong(&self) {
        tracing::error!(store = self.id.as_str(), "{}", words(WAS_WRONG));
        self.status.send_modify(|status| status.was_wrong = true);
    }
}
