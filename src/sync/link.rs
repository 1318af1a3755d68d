//! The link of one store to its upstream: one session after the other. A [`Session`] decides what to do. The link does
//! it, with a network, a clock and a store.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout, timeout_at};

use super::backoff::{Backoff, at_least, may_try_again, while_watched};
use super::behind::Behind;
use super::client::{Clients, LinkState, Shared};
use super::download::Beginning;
use super::http::Upstream;
use super::protocol::{Hello, Point, PushedEvent, WirePage, words};
use super::ration::Allowance;
use super::session::{self, End, Outgoing, PushAnswer, Session, ended, not_understood};
use super::sse;
use super::stay::{Stay, standing};
use crate::engine::{Error, LogId, Position, Replica, Store};
use crate::limits::sync::client::{
    LOGGED, LONGEST_WAIT, LOOK_EVERY, NO_PAGE_EVERY, NO_PAGES, OWING, RESTARTS, SEEN_AFTER, SEEN_AFTER_TIMES,
};
use crate::limits::sync::stream::SILENCE;

/// The client of one store. It holds the store only during a session: stores that wait for their hub must not keep others
/// from being opened.
pub(super) struct Client {
    pub(super) stay: Stay,
    pub(super) upstream: Upstream,
    pub(super) repairs: Allowance,
    /// How far the store has come with its hub's snapshot, while its log is empty.
    pub(super) beginning: Beginning,
    /// Whether a session is under way.
    pub(super) is_online: watch::Sender<bool>,
}

impl Client {
    pub(super) async fn run(mut self) {
        let shutdown = self.stay.clients.shared.shutdown.clone();
        let behind = Behind {
            id: self.stay.id.clone(),
            upstream: self.upstream.clone(),
            clients: self.stay.clients.clone(),
            is_online: self.is_online.subscribe(),
            status: self.stay.status.clone(),
        };
        let mut behind = pin!(behind.run());
        loop {
            let level = async {
                tokio::select! {
                    is_closed = self.keep_level() => is_closed,
                    () = &mut behind => true,
                }
            };
            let is_closed = shutdown.run_until_cancelled(level).await;
            if self.stay.ends(is_closed.is_none_or(|is_closed| is_closed)) {
                return;
            }
        }
    }

    /// Runs one session after the other, until nobody uses the store and nothing waits to be pushed. Returns true if
    /// the store was closed instead.
    async fn keep_level(&mut self) -> bool {
        let mut backoff = Backoff::default();
        // How many sessions in a row ended for a reason that lets the next one go better.
        let mut hopeful = 0;
        loop {
            let (before, terms) = (self.stay.standing(), self.terms());
            // When the session itself began, after the snapshot.
            let mut began = None;
            let end = match self.stay.clients.shared.stores.get(&self.stay.id) {
                Ok(store) => {
                    self.stay.health = store.health();
                    let mut beginning = std::mem::take(&mut self.beginning);
                    let end = tokio::select! {
                        end = self.session(&store, &mut beginning, &mut began) => Some(end),
                        () = self.stay.idle() => None,
                    };
                    self.beginning = beginning;
                    let Some(end) = end else { return false };
                    // Queries may still lag behind the last pages.
                    drop(store.look(|replica| replica.settle_arrivals()).await);
                    match end {
                        End::Diverged(points) => self.repair(&store, points).await,
                        end => end,
                    }
                }
                Err(error) => here(&error),
            };
            // A session that lasted, or that did all there was to do, ends the series of failures before it.
            let now = self.stay.standing();
            let lasted = began.is_some_and(|began| began.elapsed() > LONGEST_WAIT);
            if lasted || now.head > before.head && now.pending == 0 {
                backoff = Backoff::default();
                hopeful = 0;
            }
            let wait = backoff.next(self.stay.clients.count());
            let end = match end {
                End::PullFirst if hopeful == RESTARTS => {
                    End::Offline("the hub says again and again that this store has to be pulled first".to_owned())
                }
                end => end,
            };
            hopeful = if matches!(end, End::PullFirst | End::Diverged(_)) { hopeful + 1 } else { 0 };
            match end {
                End::Closed => return true,
                End::PullFirst | End::Diverged(_) => {
                    sleep(wait).await;
                    continue;
                }
                End::Offline(why) => {
                    self.stay.tell(LinkState::Offline, None, Some(why));
                    let wait = if self.stay.is_watched() {
                        wait.min(while_watched(self.stay.clients.watched()))
                    } else {
                        wait
                    };
                    let found = self.stay.clients.shared.found.subscribe();
                    tokio::select! {
                        () = may_try_again(wait, &self.stay.usage.again, found) => {}
                        () = self.stay.is_asked_now() => {}
                        () = self.stay.idle() => return false,
                    }
                }
                End::Later(why, least) => {
                    self.stay.tell(LinkState::Offline, None, Some(why));
                    tokio::select! {
                        () = sleep(at_least(least)) => {}
                        () = self.stay.is_asked_now() => {}
                        () = self.stay.idle() => return false,
                    }
                }
                End::Halted(code, why) => {
                    self.stay.tell(LinkState::Halted, Some(code), Some(why));
                    tokio::select! {
                        () = sleep(self.stay.clients.shared.retry_halted) => {}
                        () = self.mended(terms) => {}
                        () = self.stay.is_asked_now() => {}
                        () = self.stay.idle() => return false,
                    }
                }
            }
        }
    }

    /// Runs one pull stream, with pushes beside it. An empty log begins with the hub's snapshot before.
    async fn session(&self, store: &Store, beginning: &mut Beginning, began: &mut Option<Instant>) -> End {
        let begun = || {
            self.stay.tell(LinkState::Connecting, None, None);
            self.stay.usage.tried.send_modify(|times| *times += 1);
            self.stay.clients.hear();
        };
        let Shared { stores, begun: counts, .. } = &*self.stay.clients.shared;
        if let Err(end) = beginning.attempt(store, stores, &self.upstream, counts, begun).await {
            return end;
        }
        *began = Some(Instant::now());
        let position = match store.look(|replica| replica.position()).await {
            Ok(position) => position,
            Err(error) => return here(&error),
        };
        // An offline or halted store keeps that state until it is known to be online.
        if self.stay.status.borrow().state == LinkState::Online {
            self.stay.tell(LinkState::Connecting, None, None);
        }
        let position_or_start = position.unwrap_or_else(Position::start);
        let mut bytes = match timeout(SILENCE, self.upstream.pull(&self.stay.id, position_or_start)).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(end)) => return end,
            Err(_) => return held_back("took the request, but gave no answer", &self.upstream),
        };
        let Ok(first) = timeout(SILENCE, StreamExt::next(&mut bytes)).await else {
            return held_back("answered, but sent nothing", &self.upstream);
        };
        let bytes = unless_silent(stream::iter(first).chain(bytes));
        let mut events = pin!(sse::events(bytes, self.upstream.ration()));
        let hello = match hello(&mut events).await {
            Ok(hello) => hello,
            Err(end) => return end,
        };
        let running = match Session::begin(position, hello) {
            Ok(session) => Running { session: Arc::new(Mutex::new(session)), arrived: Notify::new() },
            Err(end) => return end,
        };
        self.stay.tell(LinkState::Online, None, None);
        self.stay.usage.tried.send_modify(|times| *times += 1);
        self.stay.clients.hear();
        let _online = Online::begin(&self.is_online);
        let end = tokio::select! {
            end = pull(store, events, &running, &self.stay.clients) => end,
            end = self.push(store, &running) => end,
        };
        let session = running.session;
        drop(store.look(move |replica| lock(&session).end(replica)).await);
        end
    }

    /// Pushes what the session says, one push after the other.
    async fn push(&self, store: &Store, running: &Running) -> End {
        let mut health = store.health();
        loop {
            health.mark_unchanged();
            let session = Arc::clone(&running.session);
            let next = store.look(move |replica| ended(lock(&session).next_push(replica))).await;
            let outgoing = match next.map(Option::transpose) {
                Ok(Ok(outgoing)) => outgoing.flatten(),
                Ok(Err(end)) => return end,
                Err(error) => return here(&error),
            };
            let Some(outgoing) = outgoing else {
                tokio::select! {
                    changed = health.changed() => if changed.is_err() { return End::Closed },
                    () = running.arrived.notified() => {}
                }
                continue;
            };
            let answer = match self.upstream.push(&self.stay.id, &outgoing.push).await {
                Ok(answer) => answer,
                Err(end) => return end,
            };
            self.log(&outgoing, &answer);
            let session = Arc::clone(&running.session);
            match store.with(move |replica| ended(lock(&session).answer(replica, &outgoing, answer))).await {
                Ok(Ok(())) => {}
                Ok(Err(end)) => return end,
                Err(error) => return here(&error),
            }
        }
    }

    /// Logs the events that the hub refuses, and those that have no effect there.
    fn log(&self, outgoing: &Outgoing, answer: &PushAnswer) {
        let PushAnswer::Pushed(pushed) = answer else { return };
        let store = self.stay.id.as_str();
        let is_plain = |answer: &PushedEvent| matches!(answer, PushedEvent::Stored { no_effect: None, .. });
        let mut odd = outgoing.ids().iter().zip(&pushed.events).filter(|(_, answer)| !is_plain(answer));
        for (id, answer) in odd.by_ref().take(LOGGED) {
            match answer {
                PushedEvent::Stored { no_effect, .. } => {
                    let why = words(no_effect.as_deref().unwrap_or_default());
                    tracing::warn!(store, %id, why, "an event has no effect");
                }
                PushedEvent::Refused { refused, why } => {
                    let (refused, why) = (words(refused), words(why));
                    tracing::warn!(store, %id, refused, why, "the hub refused an event; it is set aside");
                }
            }
        }
        let more = odd.count();
        if more > 0 {
            tracing::warn!(store, more, "and more of the same push have no effect, or are set aside");
        }
    }

    /// Reconciles our log with the hub's, unless that has happened too often.
    async fn repair(&mut self, store: &Store, points: Vec<Point>) -> End {
        if !self.repairs.spend() {
            let why =
                "the hub says again and again that its log is another; nothing more is taken back for some minutes";
            return End::Offline(why.to_owned());
        }
        let asked = points.clone();
        let repair = move |replica: &mut Replica| {
            let base = replica.base();
            Ok((session::repair(replica, &asked)?, base != replica.base()))
        };
        let store_name = self.stay.id.as_str();
        match store.with(repair).await {
            Ok((Some(_), true)) => {
                tracing::warn!(
                    store = store_name,
                    "the hub doesn't know the place of the snapshot with which this device began; it begins anew"
                );
                End::Diverged(points)
            }
            Ok((Some((first, last)), false)) => {
                tracing::warn!(store = store_name, "the hub lacks events {first} to {last}; they are pushed again");
                End::Diverged(points)
            }
            Ok((None, _)) => End::Offline("the hub says that its log is another, and shows that it is ours".to_owned()),
            Err(error) => {
                tracing::error!(store = store_name, %error, "cannot repair");
                here(&error)
            }
        }
    }

    /// Returns when the terms have changed, so a halted store may be able to go on.
    async fn mended(&self, terms: Terms) {
        loop {
            sleep(LOOK_EVERY).await;
            if self.terms() != terms {
                return;
            }
        }
    }

    /// Returns the terms on which the hub is asked now.
    fn terms(&self) -> Terms {
        // The store is open while somebody adopts another log.
        let health = self.stay.clients.shared.stores.opened(&self.stay.id).map(|store| store.health());
        let standing = standing(health.as_ref().unwrap_or(&self.stay.health));
        Terms { token: self.upstream.token_stamp(), log: standing.whose.log_id() }
    }
}

/// Says that a session is under way, until it is dropped.
struct Online<'a>(&'a watch::Sender<bool>);

impl<'a> Online<'a> {
    fn begin(told: &'a watch::Sender<bool>) -> Self {
        told.send_replace(true);
        Self(told)
    }
}

impl Drop for Online<'_> {
    fn drop(&mut self) {
        self.0.send_replace(false);
    }
}

/// What may have to change before the hub stops refusing a store.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Terms {
    token: Option<SystemTime>,
    log: Option<LogId>,
}

/// A running session. It decides on the store's thread.
struct Running {
    session: Arc<Mutex<Session>>,
    /// Wakes the pushes when a page has arrived.
    arrived: Notify,
}

fn lock(session: &Mutex<Session>) -> MutexGuard<'_, Session> {
    session.lock().expect("BUG: a session panicked")
}

/// Returns the first event of a stream.
pub(super) async fn hello(
    events: &mut (impl Stream<Item = std::io::Result<sse::SseEvent>> + Unpin),
) -> Result<Hello, End> {
    match timeout(SILENCE, events.next()).await {
        Err(_) => Err(silent()),
        Ok(Some(Ok(event))) if event.event == "hello" => {
            serde_json::from_str(&event.data).map_err(|why| not_understood(&why))
        }
        Ok(Some(Err(error))) => Err(End::Offline(format!("the stream broke: {error}"))),
        Ok(_) => Err(End::Offline("the stream didn't begin as a hub's does".to_owned())),
    }
}

/// Takes in what the hub sends.
async fn pull(
    store: &Store,
    mut events: impl Stream<Item = std::io::Result<sse::SseEvent>> + Unpin,
    running: &Running,
    clients: &Clients,
) -> End {
    let mut others = Allowance::new(NO_PAGES, NO_PAGE_EVERY);
    // How many pings came since the last page while the hub owed one.
    let mut owing = 0;
    // When to show open pages what has arrived, and how long to wait before the next time.
    let (mut due_at, mut pause) = (None, SEEN_AFTER);
    loop {
        let next = match due_at {
            None => events.next().await,
            Some(due) if due <= tokio::time::Instant::now() => {
                (due_at, pause) = (None, show(store).await);
                continue;
            }
            Some(due) => match timeout_at(due, events.next()).await {
                Ok(next) => next,
                Err(_) => continue,
            },
        };
        let event = match next {
            None => return End::Offline("the hub ended the stream".to_owned()),
            Some(Err(error)) => return End::Offline(format!("the stream broke: {error}")),
            Some(Ok(event)) => event,
        };
        clients.hear();
        let session = Arc::clone(&running.session);
        if event.event != "page" {
            if !others.spend() {
                return End::Offline("the hub sends without pause what is no page".to_owned());
            }
            match store.look_if_any(move |replica| lock(&session).is_owed(replica.as_deref())).await {
                Ok(is_owed) => owing = if is_owed { owing + 1 } else { 0 },
                Err(error) => return here(&error),
            }
            if owing >= OWING {
                return End::Offline("the hub doesn't send what it says it has".to_owned());
            }
            continue;
        }
        let page: WirePage = match serde_json::from_str(&event.data) {
            Ok(page) => page,
            Err(why) => return not_understood(&why),
        };
        let sse::SseEvent { data, portion: _portion, .. } = event;
        drop(data);
        let brings_nothing = page.events.is_empty();
        let arrive =
            move |replica: &mut Replica| Ok((ended(lock(&session).arrive(replica, page))?, replica.is_behind()));
        let arrived = if brings_nothing {
            if !others.spend() {
                return End::Offline("the hub sends page after page that brings nothing".to_owned());
            }
            // An empty page creates no store.
            store.look(arrive).await.map(|arrived| arrived.unwrap_or((Ok(()), false)))
        } else {
            owing = 0;
            store.with(arrive).await
        };
        match arrived {
            Ok((Ok(()), is_behind)) => {
                running.arrived.notify_one();
                due_at = is_behind.then(|| due_at.unwrap_or_else(|| tokio::time::Instant::now() + pause));
            }
            Ok((Err(end), _)) => return end,
            Err(error) => return here(&error),
        }
    }
}

/// Lets open pages see what has arrived, and returns how long to wait before the next time.
async fn show(store: &Store) -> Duration {
    let begun = Instant::now();
    drop(store.look(|replica| replica.settle_arrivals()).await);
    SEEN_AFTER.max(begun.elapsed() * SEEN_AFTER_TIMES)
}

/// Returns the end of a session after a fault on this side. The store itself says what is wrong with it.
pub(super) fn here(error: &Error) -> End {
    match error {
        Error::Closed => End::Closed,
        error => End::Offline(error.to_string()),
    }
}

pub(super) fn silent() -> End {
    End::Offline(silence())
}

/// Returns the end of a session in which the hub's first message never came, though a hub sends it at once. A proxy
/// that buffers the stream keeps it. nginx even keeps the head of the answer.
fn held_back(what: &str, upstream: &Upstream) -> End {
    End::Offline(format!(
        "{} {what}: a proxy in front of the hub may hold the stream back. Let it obey the header X-Accel-Buffering, or turn \
         its buffering off (nginx: `proxy_buffering off;`)",
        upstream.url()
    ))
}

fn silence() -> String {
    format!("the hub said nothing for {} seconds", SILENCE.as_secs())
}

/// Returns the stream until it is silent for too long. Bytes count, not events: on a slow link a page takes its time.
pub(super) fn unless_silent(
    bytes: impl Stream<Item = std::io::Result<Bytes>> + Unpin + Send + 'static,
) -> impl Stream<Item = std::io::Result<Bytes>> + Unpin + Send + 'static {
    let next = async |mut bytes| match timeout(SILENCE, StreamExt::next(&mut bytes)).await {
        Ok(chunk) => chunk.map(|chunk| (chunk, bytes)),
        Err(_) => Some((Err(std::io::Error::other(silence())), bytes)),
    };
    Box::pin(stream::unfold(bytes, next))
}
