//! The client: keeps a store level with its upstream, for as long as that makes sense. What to do is decided by a
//! [`Session`]; here it is done, with a network, a clock and a store.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::http::Upstream;
use super::protocol::{Hello, Point, PushedEvent, WirePage, words};
use super::ration::Allowance;
use super::session::{self, End, Outgoing, PushAnswer, Session, ended, not_understood};
use super::{sse, tokens};
use crate::engine::{
    Digest, Error, Generation, Health, LogId, Position, Replica, Seq, Standing, Store, StoreId, Stores,
};
use crate::limits::sync::client::{
    FEW, IDLE_AFTER, IDLE_CHECK, IDLE_WHEN_CROWDED, LOGGED, LONGEST_WAIT, LOOK_EVERY, NO_PAGE_EVERY, NO_PAGES, OWING,
    REPAIR_EVERY, REPAIRS, RESTARTS, SEEN_AFTER, SEEN_AFTER_TIMES, SHORTEST_WAIT, WANTED,
};
use crate::limits::sync::stream::SILENCE;
use crate::random;

/// How the connection of a store to its upstream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkState {
    /// There is no upstream.
    None,
    Connecting,
    Online,
    /// Not connected; it tries again by itself.
    Offline,
    /// The upstream refuses this store; somebody has to act.
    Halted,
}

impl LinkState {
    /// As the status spells it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Connecting => "connecting",
            Self::Online => "online",
            Self::Offline => "offline",
            Self::Halted => "halted",
        }
    }
}

/// The connection of a store to its upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LinkStatus {
    pub(crate) url: Option<Arc<str>>,
    pub(crate) state: LinkState,
    /// The hub's code, when it halted the store.
    pub(crate) code: Option<&'static str>,
    /// Why it is not online.
    pub(crate) error: Option<String>,
    /// Since when it is in this state, in milliseconds since the Unix epoch.
    pub(crate) since: Option<u64>,
}

impl LinkStatus {
    pub(crate) fn none() -> Self {
        Self { url: None, state: LinkState::None, code: None, error: None, since: None }
    }
}

/// The clients of all stores that follow one upstream.
#[derive(Clone)]
pub(crate) struct Clients {
    shared: Arc<Shared>,
}

struct Shared {
    stores: Stores,
    upstream: Option<Upstream>,
    /// How long a halted store waits before it tries again.
    retry_halted: Duration,
    shutdown: CancellationToken,
    links: Mutex<HashMap<StoreId, Link>>,
    none: watch::Sender<LinkStatus>,
    /// How often a store that was offline has come to be online.
    found: watch::Sender<u64>,
}

struct Link {
    status: watch::Receiver<LinkStatus>,
    usage: Arc<Usage>,
    lane: usize,
}

/// That somebody uses a store.
struct Usage {
    last: Mutex<Instant>,
    again: Notify,
}

impl Clients {
    pub(crate) fn new(
        stores: Stores,
        upstream: Option<Upstream>,
        retry_halted: Duration,
        shutdown: CancellationToken,
    ) -> Self {
        let (none, found) = (watch::channel(LinkStatus::none()).0, watch::channel(0).0);
        let links = Mutex::default();
        Self { shared: Arc::new(Shared { stores, upstream, retry_halted, shutdown, links, none, found }) }
    }

    /// Whether there is an upstream.
    pub(crate) fn follow(&self) -> bool {
        self.shared.upstream.is_some()
    }

    /// Keeps `store`, which somebody is using, level with the upstream, and gives how that goes. One that isn't yet is left
    /// alone when there are `most` others already.
    pub(crate) fn attend(&self, store: &Store, most: usize) -> watch::Receiver<LinkStatus> {
        let Some(upstream) = &self.shared.upstream else { return self.shared.none.subscribe() };
        if most < usize::MAX && self.count() >= most && self.status(store.id()).is_none() {
            return self.shared.none.subscribe();
        }
        self.link(upstream, store, Instant::now())
    }

    fn status(&self, id: &StoreId) -> Option<watch::Receiver<LinkStatus>> {
        let links = self.shared.links.lock().expect("BUG: attending to a store panicked");
        links.get(id).map(|link| link.status.clone())
    }

    /// The link of a store that was used last at `used`.
    fn link(&self, upstream: &Upstream, store: &Store, used: Instant) -> watch::Receiver<LinkStatus> {
        let mut links = self.shared.links.lock().expect("BUG: attending to a store panicked");
        if let Some(link) = links.get(store.id()) {
            let mut last = link.usage.last.lock().expect("BUG: touching a link panicked");
            *last = used.max(*last);
            link.usage.again.notify_one();
            return link.status.clone();
        }
        let first = LinkStatus {
            url: Some(upstream.url().into()),
            state: LinkState::Connecting,
            since: Some(tokens::now()),
            ..LinkStatus::none()
        };
        let (sender, status) = watch::channel(first);
        let usage = Arc::new(Usage { last: Mutex::new(used), again: Notify::new() });
        let lane = Upstream::lane_beside(links.values().map(|link| link.lane));
        let client = Client {
            id: store.id().clone(),
            health: store.health(),
            upstream: upstream.in_lane(lane),
            status: sender,
            usage: Arc::clone(&usage),
            repairs: Allowance::new(REPAIRS, REPAIR_EVERY),
            clients: self.clone(),
        };
        links.insert(store.id().clone(), Link { status: status.clone(), usage, lane });
        tokio::spawn(client.run());
        status
    }

    fn count(&self) -> usize {
        self.shared.links.lock().expect("BUG: attending to a store panicked").len()
    }

    /// Attends from the start to `first`, and to every store in which an earlier process left something to be pushed,
    /// whether or not anybody visits them.
    pub(crate) async fn resume(self, first: StoreId) {
        let Shared { stores, upstream, .. } = &*self.shared;
        let Some(upstream) = upstream else { return };
        // Nobody uses the others, so they are let go of as soon as they are level.
        let long_ago = Instant::now().checked_sub(IDLE_AFTER).unwrap_or_else(Instant::now);
        for id in [first.clone()].iter().chain(&stores.list().unwrap_or_default()) {
            let mut found = stores.get(id);
            while matches!(found, Err(Error::TooManyOpen)) {
                sleep(LOOK_EVERY).await;
                found = stores.get(id);
            }
            let Ok(store) = found else { continue };
            if *id == first {
                drop(self.attend(&store, usize::MAX));
            } else if store.healthy().await.standing().is_some_and(|standing| standing.pending > 0) {
                drop(self.link(upstream, &store, long_ago));
            }
        }
    }
}

/// The client of one store. It has the store only during a session, so that those which wait for their hub don't keep
/// others from being opened.
struct Client {
    id: StoreId,
    /// How the store was when it was had last.
    health: watch::Receiver<Health>,
    upstream: Upstream,
    status: watch::Sender<LinkStatus>,
    usage: Arc<Usage>,
    repairs: Allowance,
    clients: Clients,
}

impl Client {
    async fn run(mut self) {
        let shared = Arc::clone(&self.clients.shared);
        loop {
            let is_closed = shared.shutdown.run_until_cancelled(self.keep_level()).await;
            let mut links = shared.links.lock().expect("BUG: attending to a store panicked");
            // Under the lock nobody can begin to use the store.
            if is_closed.is_none_or(|is_closed| is_closed) || self.is_idle() {
                links.remove(&self.id);
                return;
            }
        }
    }

    /// One session after the other, until nobody uses the store and nothing waits to be pushed, or until the store is
    /// closed: then it is true.
    async fn keep_level(&mut self) -> bool {
        let mut backoff = Backoff::default();
        // How many sessions in a row ended so that the next one has a reason to go better.
        let mut hopeful = 0;
        loop {
            let (began, before, terms) = (Instant::now(), self.standing(), self.terms());
            let end = match self.clients.shared.stores.get(&self.id) {
                Ok(store) => {
                    self.health = store.health();
                    let end = tokio::select! {
                        end = self.session(&store) => end,
                        () = self.idle() => return false,
                    };
                    // Pages that were to be followed by more may have gone ahead of what queries see.
                    drop(store.look(|replica| replica.settle_arrivals()).await);
                    match end {
                        End::Diverged(points) => self.repair(&store, points).await,
                        end => end,
                    }
                }
                Err(error) => here(&error),
            };
            // A session that did all there was to do, or that lasted, owes nothing to the failures before it.
            let now = self.standing();
            if began.elapsed() > LONGEST_WAIT || now.head > before.head && now.pending == 0 {
                backoff = Backoff::default();
                hopeful = 0;
            }
            let wait = backoff.next(self.clients.count());
            let end = match end {
                End::PullFirst if hopeful == RESTARTS => {
                    End::Offline("the hub says again and again that this store has to be pulled first".to_owned())
                }
                end => end,
            };
            hopeful = if matches!(end, End::PullFirst | End::Diverged(_)) { hopeful + 1 } else { 0 };
            match end {
                End::Closed => return true,
                End::PullFirst | End::Diverged(_) => sleep(wait).await,
                End::Offline(why) => {
                    self.tell(LinkState::Offline, None, Some(why));
                    let found = self.clients.shared.found.subscribe();
                    tokio::select! {
                        () = may_try_again(wait, &self.usage.again, found) => {}
                        () = self.idle() => return false,
                    }
                }
                End::Halted(code, why) => {
                    self.tell(LinkState::Halted, Some(code), Some(why));
                    tokio::select! {
                        () = sleep(self.clients.shared.retry_halted) => {}
                        () = self.mended(terms) => {}
                        () = self.idle() => return false,
                    }
                }
            }
        }
    }

    /// One pull stream, with pushes beside it.
    async fn session(&self, store: &Store) -> End {
        let position = match store.look(|replica| replica.position()).await {
            Ok(position) => position,
            Err(error) => return here(&error),
        };
        // A store that is offline or halted stays so until it is known to be otherwise.
        if self.status.borrow().state == LinkState::Online {
            self.tell(LinkState::Connecting, None, None);
        }
        let start = Position { generation: Generation::default(), log: None, after: Seq::START, digest: Digest::EMPTY };
        let bytes = match timeout(SILENCE, self.upstream.pull(&self.id, position.unwrap_or(start))).await {
            Ok(Ok(bytes)) => unless_silent(bytes),
            Ok(Err(end)) => return end,
            Err(_) => return silent(),
        };
        let mut events = pin!(sse::events(bytes, self.upstream.ration()));
        let hello: Hello = match timeout(SILENCE, events.next()).await {
            Err(_) => return silent(),
            Ok(Some(Ok(event))) if event.event == "hello" => match serde_json::from_str(&event.data) {
                Ok(hello) => hello,
                Err(why) => return not_understood(&why),
            },
            Ok(Some(Err(error))) => return End::Offline(format!("the stream broke: {error}")),
            Ok(_) => return End::Offline("the stream didn't begin as a hub's does".to_owned()),
        };
        let running = match Session::begin(position, hello) {
            Ok(session) => Running { session: Arc::new(Mutex::new(session)), arrived: Notify::new() },
            Err(end) => return end,
        };
        self.tell(LinkState::Online, None, None);
        let end = tokio::select! {
            end = pull(store, events, &running) => end,
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
            let answer = match self.upstream.push(&self.id, &outgoing.push).await {
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

    /// Says what the hub refuses, and what has no effect there.
    fn log(&self, outgoing: &Outgoing, answer: &PushAnswer) {
        let PushAnswer::Pushed(pushed) = answer else { return };
        let store = self.id.as_str();
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

    /// Brings our log and the hub's together again, unless that was done too often.
    async fn repair(&mut self, store: &Store, points: Vec<Point>) -> End {
        if !self.repairs.spend() {
            let why =
                "the hub says again and again that its log is another; nothing more is taken back for some minutes";
            return End::Offline(why.to_owned());
        }
        let asked = points.clone();
        match store.with(move |replica| session::repair(replica, &asked)).await {
            Ok(Some((first, last))) => {
                tracing::warn!(
                    store = self.id.as_str(),
                    "the hub lacks events {first} to {last}; they are pushed again"
                );
                End::Diverged(points)
            }
            Ok(None) => End::Offline("the hub says that its log is another, and shows that it is ours".to_owned()),
            Err(error) => {
                tracing::error!(store = self.id.as_str(), %error, "cannot repair");
                here(&error)
            }
        }
    }

    /// Returns when something changed since these `terms` that may let a halted store go on.
    async fn mended(&self, terms: Terms) {
        loop {
            sleep(LOOK_EVERY).await;
            if self.terms() != terms {
                return;
            }
        }
    }

    /// On what the hub is asked now.
    fn terms(&self) -> Terms {
        // Whoever adopts another log has the store open.
        let health = self.clients.shared.stores.opened(&self.id).map(|store| store.health());
        let standing = standing(health.as_ref().unwrap_or(&self.health));
        Terms { token: self.upstream.token_stamp(), log: standing.whose.log_id() }
    }

    /// Returns when nobody has used the store for a while and nothing waits to be pushed.
    async fn idle(&self) {
        while !self.is_idle() {
            sleep(IDLE_CHECK).await;
        }
    }

    fn is_idle(&self) -> bool {
        let used = *self.usage.last.lock().expect("BUG: touching a link panicked");
        let patience = if self.clients.shared.stores.are_crowded() { IDLE_WHEN_CROWDED } else { IDLE_AFTER };
        let is_level = match &*self.health.borrow() {
            Health::Absent => true,
            health => health.standing().is_some_and(|standing| standing.pending == 0),
        };
        // One receiver is in the list of links; another is an open page's.
        is_level && used.elapsed() > patience && self.status.receiver_count() <= 1
    }

    /// Where the store stood when that was known last.
    fn standing(&self) -> Standing {
        standing(&self.health)
    }

    fn tell(&self, state: LinkState, code: Option<&'static str>, error: Option<String>) {
        // Most of what is wrong is told in a hub's own words.
        let error = error.map(|why| words(&why));
        self.status.send_if_modified(|status| {
            if status.state == state && status.code == code && status.error == error {
                return false;
            }
            let store = self.id.as_str();
            match (&error, state) {
                (Some(why), LinkState::Halted) => tracing::error!(store, code, why, "sync stopped"),
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

/// What may have to change before the hub stops refusing a store.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Terms {
    token: Option<SystemTime>,
    log: Option<LogId>,
}

/// A session at work: its decisions are taken on the store's thread.
struct Running {
    session: Arc<Mutex<Session>>,
    /// Tells the pushes that a page has arrived.
    arrived: Notify,
}

fn lock(session: &Mutex<Session>) -> MutexGuard<'_, Session> {
    session.lock().expect("BUG: a session panicked")
}

/// Takes in what the hub sends.
async fn pull(
    store: &Store,
    mut events: impl Stream<Item = std::io::Result<sse::SseEvent>> + Unpin,
    running: &Running,
) -> End {
    let mut others = Allowance::new(NO_PAGES, NO_PAGE_EVERY);
    // How many pings came since the last page while the hub owed one.
    let mut owing = 0;
    // When pages are to see what they don't yet, and how long that was left to wait.
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
            // It makes no store where there is none.
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

/// Lets pages see what has arrived, and says how long to wait before the next time.
async fn show(store: &Store) -> Duration {
    let begun = Instant::now();
    drop(store.look(|replica| replica.settle_arrivals()).await);
    SEEN_AFTER.max(begun.elapsed() * SEEN_AFTER_TIMES)
}

fn standing(health: &watch::Receiver<Health>) -> Standing {
    health.borrow().standing().cloned().unwrap_or_default()
}

/// Waits that grow, so that a hub that comes back isn't met by everybody at once.
#[derive(Default)]
struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// The next wait of one among so many stores: random between half and the whole of a bound that doubles ("equal
    /// jitter").
    fn next(&mut self, stores: usize) -> Duration {
        let crowd = u32::try_from(stores / FEW).unwrap_or(u32::MAX).max(1);
        let longest = LONGEST_WAIT.saturating_mul(crowd);
        let bound = SHORTEST_WAIT.saturating_mul(1 << self.attempts.min(16)).min(longest);
        self.attempts += 1;
        bound.mul_f64(0.5 + 0.5 * random::fraction())
    }
}

/// Returns after `wait`, or sooner when somebody uses the store, or when another store has `found` the hub.
async fn may_try_again(wait: Duration, used: &Notify, mut found: watch::Receiver<u64>) {
    let least = wait.min(WANTED);
    sleep(least).await;
    tokio::select! {
        () = sleep(wait - least) => {}
        () = used.notified() => {}
        // Not all at once.
        _ = found.changed() => sleep(WANTED.mul_f64(random::fraction())).await,
    }
}

/// A fault on this side: the session is over, and the store says itself what is wrong with it.
fn here(error: &Error) -> End {
    match error {
        Error::Closed => End::Closed,
        error => End::Offline(error.to_string()),
    }
}

fn silent() -> End {
    End::Offline(silence())
}

fn silence() -> String {
    format!("the hub said nothing for {} seconds", SILENCE.as_secs())
}

/// The stream until it is silent for too long. Bytes count, and not events, for on a slow link a page takes its time.
fn unless_silent(
    bytes: impl Stream<Item = std::io::Result<Bytes>> + Unpin + Send + 'static,
) -> impl Stream<Item = std::io::Result<Bytes>> + Unpin + Send + 'static {
    let next = async |mut bytes| match timeout(SILENCE, StreamExt::next(&mut bytes)).await {
        Ok(chunk) => chunk.map(|chunk| (chunk, bytes)),
        Err(_) => Some((Err(std::io::Error::other(silence())), bytes)),
    };
    Box::pin(stream::unfold(bytes, next))
}

#[cfg(test)]
mod tests {
    use super::super::http::{TokenSource, UpstreamOptions};
    use super::*;
    use crate::engine::{Setup, StoreLimits};
    use crate::likes::{self, LikeAdded};

    /// Clients of a hub that isn't there.
    fn clients(dir: &std::path::Path, open: usize) -> Clients {
        let setup = Setup {
            schema: Arc::new(likes::schema()),
            device: "test".parse().expect("a name"),
            executable: "test".to_owned(),
            progress: |_, _| {},
        };
        let limits = StoreLimits { open, ..StoreLimits::default() };
        let stores = Stores::following(dir, setup, limits).expect("stores");
        let upstream = UpstreamOptions {
            url: "http://127.0.0.1:1".to_owned(),
            token: TokenSource::Given("lw_0".to_owned()),
            root_certificate: None,
        };
        let upstream = Upstream::new(upstream).expect("an upstream");
        Clients::new(stores, Some(upstream), Duration::from_secs(60), CancellationToken::new())
    }

    async fn open(stores: &Stores, name: &str) -> Store {
        let id = name.parse().expect("a name");
        loop {
            match stores.get(&id) {
                Ok(store) => return store,
                Err(Error::TooManyOpen) => sleep(Duration::from_millis(10)).await,
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn stores_that_wait_for_their_hub_leave_room_for_others() {
        let dir = tempfile::tempdir().expect("a directory");
        let clients = clients(dir.path(), 2);
        let stores = &clients.shared.stores;
        let names = ["one", "two", "three", "four", "five"];
        for name in names {
            let store = open(stores, name).await;
            store.commit(LikeAdded {}).await.expect("a receipt");
            let mut link = clients.attend(&store, usize::MAX);
            link.wait_for(|link| link.state == LinkState::Offline).await.expect("a status");
        }
        assert_eq!(clients.shared.links.lock().expect("links").len(), names.len(), "each is tried again");
        for name in names {
            let store = open(stores, name).await;
            assert_eq!(store.read(likes::count()).await, Ok(1));
        }
        clients.shared.shutdown.cancel();
        let stores = stores.clone();
        tokio::task::spawn_blocking(move || stores.close()).await.expect("closed");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_clients_of_closed_stores_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let clients = clients(dir.path(), 8);
        let store = open(&clients.shared.stores, "one").await;
        store.commit(LikeAdded {}).await.expect("a receipt");
        let mut link = clients.attend(&store, usize::MAX);
        let stores = clients.shared.stores.clone();
        tokio::task::spawn_blocking(move || stores.close()).await.expect("closed");
        while link.changed().await.is_ok() {}
        assert!(clients.shared.links.lock().expect("links").is_empty());
    }

    #[test]
    fn trust_26_waits_grow_and_no_two_devices_wait_alike() {
        let waits = |stores| {
            let mut backoff = Backoff::default();
            std::iter::repeat_with(|| backoff.next(stores)).take(12).collect::<Vec<_>>()
        };
        let (one, other, many) = (waits(1), waits(1), waits(320));
        assert_ne!(one, other);
        for (n, wait) in one.iter().enumerate() {
            let bound = (SHORTEST_WAIT * (1 << n)).min(LONGEST_WAIT);
            assert!((bound / 2..=bound).contains(wait), "{n}: {wait:?}");
        }
        assert!(many[11] >= LONGEST_WAIT * 5, "{many:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_uses_a_store_or_finds_the_hub_makes_the_wait_short() {
        let (used, found) = (Notify::new(), watch::channel(0).0);
        let hour = Duration::from_secs(3_600);
        let waited = async |wait| {
            let start = tokio::time::Instant::now();
            may_try_again(wait, &used, found.subscribe()).await;
            start.elapsed()
        };
        assert_eq!(waited(hour).await, hour);
        assert_eq!(waited(SHORTEST_WAIT).await, SHORTEST_WAIT);
        used.notify_one();
        assert_eq!(waited(hour).await, WANTED);
        let (waited, ()) = tokio::join!(waited(hour), async {
            sleep(Duration::from_secs(60)).await;
            found.send_modify(|times| *times += 1);
        });
        assert!(waited <= Duration::from_secs(60) + WANTED, "{waited:?}");
    }

    #[test]
    fn stores_share_lanes_up_to_a_number() {
        let mut taken = Vec::new();
        for _ in 0..70 {
            taken.push(Upstream::lane_beside(taken.iter().copied()));
        }
        assert_eq!((taken[0], taken[31], taken[32], taken[69]), (0, 0, 1, 2));
        taken.remove(5);
        assert_eq!(Upstream::lane_beside(taken.iter().copied()), 0, "a free place is taken first");
    }
}
