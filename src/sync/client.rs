//! The client: keeps a store level with its upstream, for as long as that makes sense.
//!
//! A session is one pull stream. What this client believes to have pushed is the memory of that stream and dies with
//! it, so a hub that was replaced under us is noticed before anything of ours goes to it out of order.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::http::{End, PushAnswer, Upstream};
use super::protocol::{self, Hello, Push, PushedEvent, WireEvent, WirePage, code};
use super::{sse, tokens};
use crate::engine::{
    Digest, Error, Generation, Health, LogId, PageSize, Position, Seq, Standing, Store, StoreId, Stores,
};

/// How long a stream may be silent. The hub says something every ten seconds.
const SILENCE: Duration = Duration::from_secs(25);

/// The shortest and the longest wait before the next attempt.
const WAIT: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(15)];

/// How long a store is kept level after somebody used it last.
const IDLE: Duration = Duration::from_secs(600);

/// How often to look whether something changed that lets a halted store go on.
const LOOK_EVERY: Duration = Duration::from_secs(1);

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
    upstream: Option<Upstream>,
    /// How long a halted store waits before it tries again.
    retry_halted: Duration,
    shutdown: CancellationToken,
    links: Mutex<HashMap<StoreId, Link>>,
    none: watch::Sender<LinkStatus>,
}

struct Link {
    status: watch::Receiver<LinkStatus>,
    used: Arc<Mutex<Instant>>,
}

impl Clients {
    pub(crate) fn new(upstream: Option<Upstream>, retry_halted: Duration, shutdown: CancellationToken) -> Self {
        let none = watch::channel(LinkStatus::none()).0;
        Self { shared: Arc::new(Shared { upstream, retry_halted, shutdown, links: Mutex::default(), none }) }
    }

    /// Whether there is an upstream.
    pub(crate) fn follow(&self) -> bool {
        self.shared.upstream.is_some()
    }

    /// Keeps `store`, which somebody is using, level with the upstream, and gives how that goes.
    pub(crate) fn attend(&self, store: &Store) -> watch::Receiver<LinkStatus> {
        let Some(upstream) = &self.shared.upstream else { return self.shared.none.subscribe() };
        let mut links = self.shared.links.lock().expect("BUG: attending to a store panicked");
        if let Some(link) = links.get(store.id()) {
            *link.used.lock().expect("BUG: touching a link panicked") = Instant::now();
            return link.status.clone();
        }
        let first = LinkStatus {
            url: Some(upstream.url().into()),
            state: LinkState::Connecting,
            since: Some(tokens::now()),
            ..LinkStatus::none()
        };
        let (sender, status) = watch::channel(first);
        let used = Arc::new(Mutex::new(Instant::now()));
        let client = Client {
            store: store.clone(),
            upstream: upstream.clone(),
            status: sender,
            used: Arc::clone(&used),
            clients: self.clone(),
        };
        links.insert(store.id().clone(), Link { status: status.clone(), used });
        tokio::spawn(client.run());
        status
    }

    /// Attends from the start to `first`, and to every store in which an earlier process left something to be pushed,
    /// whether or not anybody visits them.
    pub(crate) async fn resume(self, stores: Stores, first: StoreId) {
        if !self.follow() {
            return;
        }
        for id in [first.clone()].iter().chain(&stores.list().unwrap_or_default()) {
            let mut found = stores.get(id);
            while matches!(found, Err(Error::TooManyOpen)) {
                sleep(LOOK_EVERY).await;
                found = stores.get(id);
            }
            let Ok(store) = found else { continue };
            let has_pending = matches!(store.healthy().await, Health::Open(standing) if standing.pending > 0);
            if has_pending || *id == first {
                drop(self.attend(&store));
            }
        }
    }
}

/// The client of one store.
struct Client {
    store: Store,
    upstream: Upstream,
    status: watch::Sender<LinkStatus>,
    used: Arc<Mutex<Instant>>,
    clients: Clients,
}

impl Client {
    async fn run(self) {
        let shared = &self.clients.shared;
        loop {
            let is_closed = shared.shutdown.run_until_cancelled(self.keep_level()).await;
            let mut links = shared.links.lock().expect("BUG: attending to a store panicked");
            // Under the lock nobody can begin to use the store.
            if is_closed.is_none_or(|is_closed| is_closed) || self.is_idle() {
                links.remove(self.store.id());
                return;
            }
        }
    }

    /// One session after the other, until nobody uses the store and nothing waits to be pushed, or until the store is
    /// closed: then it is true.
    async fn keep_level(&self) -> bool {
        let mut backoff = Backoff::default();
        loop {
            let (began, before, terms) = (Instant::now(), self.standing(), self.terms());
            let end = tokio::select! {
                end = self.session() => end,
                () = self.idle() => return false,
            };
            // Pages that were to be followed by more may have gone ahead of what queries see.
            drop(self.store.look(|replica| replica.settle_arrivals()).await);
            // A session that did all there was to do, or that lasted, owes nothing to the failures before it.
            let now = self.standing();
            if began.elapsed() > WAIT[1] || now.head > before.head && now.pending == 0 {
                backoff = Backoff::default();
            }
            match end {
                End::Closed => return true,
                End::PullFirst => sleep(backoff.next()).await,
                End::Diverged(points) => {
                    self.repair(points).await;
                    sleep(backoff.next()).await;
                }
                End::Offline(why) => {
                    self.tell(LinkState::Offline, None, Some(why));
                    tokio::select! {
                        () = sleep(backoff.next()) => {}
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
    async fn session(&self) -> End {
        let position = match self.store.look(|replica| replica.position()).await {
            Ok(position) => position,
            Err(error) => return here(&error),
        };
        let generation = position.map(|position| position.generation);
        let position = position.unwrap_or(Position {
            generation: Generation::default(),
            log: None,
            after: Seq::START,
            digest: Digest::EMPTY,
        });
        // A store that is offline or halted stays so until it is known to be otherwise.
        if self.status.borrow().state == LinkState::Online {
            self.tell(LinkState::Connecting, None, None);
        }
        let bytes = match timeout(SILENCE, self.upstream.pull(self.store.id(), position)).await {
            Ok(Ok(bytes)) => unless_silent(bytes),
            Ok(Err(end)) => return end,
            Err(_) => return silent(),
        };
        let mut events = pin!(sse::events(bytes));
        let hello: Hello = match timeout(SILENCE, events.next()).await {
            Err(_) => return silent(),
            Ok(Some(Ok(event))) if event.event == "hello" => match serde_json::from_str(&event.data) {
                Ok(hello) => hello,
                Err(why) => return not_understood(&why),
            },
            Ok(Some(Err(error))) => return End::Offline(format!("the stream broke: {error}")),
            Ok(_) => return End::Offline("the stream didn't begin as a hub's does".to_owned()),
        };
        if position.log.is_some() && hello.log != position.log {
            return End::Halted(code::WRONG_LOG, "The hub has another log than this store was synced with.".to_owned());
        }
        self.tell(LinkState::Online, None, None);
        let progress = watch::channel(Progress { log: hello.log, pulled: position.after }).0;
        tokio::select! {
            end = self.pull(events, &progress) => end,
            end = self.push(&hello, &progress) => end,
            () = self.other_generation(generation) => End::PullFirst,
        }
    }

    /// Returns when events were taken back out of the log by somebody else, so that the session has to begin anew.
    async fn other_generation(&self, first: Option<Generation>) {
        let mut first = first;
        let mut health = self.store.health();
        loop {
            if let Health::Open(Standing { generation, .. }) = &*health.borrow_and_update() {
                // A store that was made in this session begins with whatever generation it has then.
                if *first.get_or_insert(*generation) != *generation {
                    return;
                }
            }
            if health.changed().await.is_err() {
                return;
            }
        }
    }

    /// Takes in what the hub sends.
    async fn pull(
        &self,
        mut events: impl Stream<Item = std::io::Result<sse::SseEvent>> + Unpin,
        progress: &watch::Sender<Progress>,
    ) -> End {
        loop {
            let event = match events.next().await {
                None => return End::Offline("the hub ended the stream".to_owned()),
                Some(Err(error)) => return End::Offline(format!("the stream broke: {error}")),
                Some(Ok(event)) => event,
            };
            if event.event != "page" {
                continue;
            }
            let page: WirePage = match serde_json::from_str(&event.data) {
                Ok(page) => page,
                Err(why) => return not_understood(&why),
            };
            let log = page.log;
            if progress.borrow().log.is_some_and(|known| known != log) {
                return another_log();
            }
            let page = match page.into_page() {
                Ok(page) => page,
                Err(why) => return not_understood(&why),
            };
            let next = page.next;
            let after = progress.borrow().pulled;
            let arrived = self.store.with(move |replica| {
                // Unless events were taken back since, and the page is no longer what comes next.
                let is_next = replica.position()?.after == after;
                if is_next {
                    replica.meet(log)?;
                    replica.arrive(&page)?;
                }
                Ok(is_next)
            });
            match arrived.await {
                Ok(true) => {}
                Ok(false) => return End::PullFirst,
                Err(error) => return here(&error),
            }
            progress.send_replace(Progress { log: Some(log), pulled: next });
        }
    }

    /// Pushes what is pending, in its order, once all is pulled that the hub had when the session began.
    async fn push(&self, hello: &Hello, progress: &watch::Sender<Progress>) -> End {
        let mut progress_seen = progress.subscribe();
        if progress_seen.wait_for(|progress| progress.pulled >= hello.head).await.is_err() {
            return End::Closed;
        }
        let mut health = self.store.health();
        let mut pushed = i64::MIN;
        let mut size = protocol::PAGE;
        loop {
            health.mark_unchanged();
            let page = match self.store.look(move |replica| replica.pending(pushed, size)).await {
                Ok(page) => page.unwrap_or_default(),
                Err(error) => return here(&error),
            };
            let Some((last, _)) = page.last() else {
                if health.changed().await.is_err() {
                    return End::Closed;
                }
                continue;
            };
            let events: Vec<_> = page.iter().map(|(_, event)| WireEvent::from(event)).collect();
            let log = progress.borrow().log;
            let push = Push { log, run: hello.run.clone(), events };
            let refused: Vec<_> = match self.upstream.push(self.store.id(), &push).await {
                Err(end) => return end,
                Ok(PushAnswer::TooLarge(_)) if page.len() > 1 => {
                    size = PageSize { events: page.len() / 2, ..size };
                    continue;
                }
                Ok(PushAnswer::TooLarge(Some(end))) => return end,
                Ok(PushAnswer::TooLarge(None)) => vec![(page[0].1.id, "it is larger than the hub takes".to_owned())],
                Ok(PushAnswer::Pushed(answer)) => {
                    if let Err(end) = self.learn_log(answer.log, progress).await {
                        return end;
                    }
                    let answers = page.iter().zip(answer.events);
                    answers.filter_map(|((_, event), answer)| self.refusal(event.id, answer)).collect()
                }
            };
            pushed = *last;
            size = PageSize { events: (2 * size.events).min(protocol::PAGE.events), ..size };
            if !refused.is_empty()
                && let Err(error) = self.store.with(move |replica| replica.refuse(&refused)).await
            {
                return here(&error);
            }
        }
    }

    /// Why the hub refuses the event, if it does. Says what has no effect there.
    fn refusal(&self, id: crate::engine::EventId, answer: PushedEvent) -> Option<(crate::engine::EventId, String)> {
        let store = self.store.id().as_str();
        match answer {
            PushedEvent::Stored { no_effect, .. } => {
                if let Some(why) = no_effect {
                    tracing::warn!(store, %id, why, "an event has no effect");
                }
                None
            }
            PushedEvent::Refused { refused, why } => {
                tracing::warn!(store, %id, refused, why, "the hub refused an event; it is set aside");
                Some((id, format!("{refused}: {why}")))
            }
        }
    }

    /// Writes down which log the hub made for a store that it didn't have before.
    async fn learn_log(&self, log: LogId, progress: &watch::Sender<Progress>) -> Result<(), End> {
        let known = progress.borrow().log;
        match known {
            Some(known) if known == log => Ok(()),
            Some(_) => Err(another_log()),
            None => {
                self.store.with(move |replica| replica.meet(log)).await.map_err(|error| here(&error))?;
                progress.send_modify(|progress| progress.log = Some(log));
                Ok(())
            }
        }
    }

    /// Takes back what came after the last point that both logs share. All clients that hold it do so, and push it; by
    /// their ids the events become one again.
    async fn repair(&self, points: Vec<protocol::Point>) {
        let points: Vec<_> = points.into_iter().map(|point| (point.seq, point.digest)).collect();
        let repaired = self.store.with(move |replica| {
            let shared = replica.last_shared(&points)?;
            let Standing { whose, head, .. } = replica.standing()?;
            replica.take_back(shared, whose)?;
            Ok((shared, head))
        });
        match repaired.await {
            Ok((shared, head)) => {
                tracing::warn!(
                    store = self.store.id().as_str(),
                    "the hub lacks events {shared} to {head}; they are pushed again"
                );
            }
            Err(error) => tracing::error!(store = self.store.id().as_str(), %error, "cannot repair"),
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
        Terms { token: self.upstream.token_stamp(), log: self.standing().whose.log_id() }
    }

    /// Returns when nobody has used the store for a while and nothing waits to be pushed.
    async fn idle(&self) {
        while !self.is_idle() {
            sleep(IDLE / 10).await;
        }
    }

    fn is_idle(&self) -> bool {
        let used = *self.used.lock().expect("BUG: touching a link panicked");
        let is_level = match &*self.store.health().borrow() {
            Health::Open(standing) => standing.pending == 0,
            Health::Absent => true,
            Health::Opening | Health::Failed(_) => false,
        };
        // One receiver is in the list of links; another is an open page's.
        is_level && used.elapsed() > IDLE && self.status.receiver_count() <= 1
    }

    /// Where the store stands, if that is known.
    fn standing(&self) -> Standing {
        match &*self.store.health().borrow() {
            Health::Open(standing) => standing.clone(),
            _ => Standing::default(),
        }
    }

    fn tell(&self, state: LinkState, code: Option<&'static str>, error: Option<String>) {
        self.status.send_if_modified(|status| {
            if status.state == state && status.code == code && status.error == error {
                return false;
            }
            let store = self.store.id().as_str();
            match (&error, state) {
                (Some(why), LinkState::Halted) => tracing::error!(store, code, why, "sync stopped"),
                (Some(why), _) if status.state != state => tracing::warn!(store, why, "offline"),
                (None, LinkState::Online) => tracing::info!(store, "online"),
                _ => {}
            }
            if status.state != state {
                status.since = Some(tokens::now());
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

/// How far a session has come.
#[derive(Debug, Clone, Copy)]
struct Progress {
    /// The hub's log, once it has one.
    log: Option<LogId>,
    pulled: Seq,
}

/// Waits that grow, so that a hub that comes back isn't met by everybody at once.
#[derive(Default)]
struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// The next wait: random between half and the whole of a bound that doubles ("equal jitter").
    fn next(&mut self) -> Duration {
        let bound = WAIT[0].saturating_mul(1 << self.attempts.min(16)).min(WAIT[1]);
        self.attempts += 1;
        let random =
            f64::from(u16::from_le_bytes([uuid::Uuid::new_v4().as_bytes()[0], uuid::Uuid::new_v4().as_bytes()[1]]));
        bound.mul_f64(0.5 + 0.5 * random / f64::from(u16::MAX))
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

fn another_log() -> End {
    End::Offline("the hub changed its log in the middle of a session".to_owned())
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

fn not_understood(why: &dyn std::fmt::Display) -> End {
    End::Offline(format!("what the hub sent is not understood: {why}"))
}
