//! The hub: the routes through which other instances sync with this one.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Extension, FromRef, FromRequestParts, Query, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use super::guard::{Asker, ClientAddress, bearer_token};
use super::{App, Connection, Lease, Opened, Problem, Received, STREAM_HEADERS, Who};
use crate::engine::{Device, Digest, LogId, PageSize, Replica, Seq, Spare, Store, StoreId, Stores};
use crate::limits::sync::stream::{PING_EVERY, SILENCE};
use crate::limits::web::hub::{LEAST_BYTES, LEAST_EVENTS, NOTE_EVERY, NOTED, PULLS_OF_A_STORE, QUICK, REFUSED_EVERY};
use crate::limits::web::shares::DIVERGED;
use crate::sync::{
    Cluster, Desk, Hello, Incoming, NextPage, NotReady, PAGE, Purpose, Push, Pushed, Refusal, Seen, Start, Token,
    Tokens, code, judged, sse, tokens,
};

/// What a pull stream sends at once to a client that isn't known to read.
const LEAST: PageSize = PageSize { events: LEAST_EVENTS, bytes: LEAST_BYTES };

/// Identifies one run of a hub, from its start to its end.
pub(crate) type RunId = Arc<str>;

/// Where a hub has its run from.
#[derive(Clone)]
enum Runs {
    /// It is one with its process.
    Own(RunId),
    /// It shares one with all gateways to its cluster.
    Shared(Cluster),
}

/// What a hub knows besides its stores.
#[derive(Clone)]
pub(crate) struct Hub {
    runs: Runs,
    tokens: Tokens,
    devices: Arc<Mutex<BTreeMap<String, Seen>>>,
    pullers: Arc<Mutex<Pullers>>,
    refusals: Arc<Refusals>,
}

/// Who was turned away, for the log. Anybody can try as often as they like, so not each try is a line of its own.
#[derive(Default)]
struct Refusals(Mutex<(Option<Instant>, u64)>);

impl Refusals {
    /// Logs that a token was refused, with how many more were since the last line.
    fn log(&self, client: Option<ClientAddress>) {
        let mut all = self.0.lock().expect("BUG: counting refusals panicked");
        let (last, more) = &mut *all;
        if last.is_some_and(|last| last.elapsed() < REFUSED_EVERY) {
            *more += 1;
            return;
        }
        let client = client.map(|ClientAddress(address)| address.to_string()).unwrap_or_default();
        tracing::warn!(client, more = *more, "a device was refused: its token is none of this hub's, or was revoked");
        *all = (Some(Instant::now()), 0);
    }
}

/// The open pulls of each device and store, oldest first.
#[derive(Default)]
struct Pullers {
    next: u64,
    of: HashMap<(Device, StoreId), VecDeque<(u64, CancellationToken)>>,
    visits: HashMap<Device, Visit>,
}

/// A device's stay, from its first open pull to the end of its last one.
struct Visit {
    since: Instant,
    pulls: usize,
    /// Events that it was sent, and events that it sent.
    pulled: usize,
    pushed: usize,
}

impl Pullers {
    /// Logs once that a device is there, however many stores it pulls.
    fn enter(&mut self, device: &Device) {
        let visit = self.visits.entry(device.clone()).or_insert_with(|| {
            tracing::info!(device = device.as_str(), "a device connected");
            Visit { since: Instant::now(), pulls: 0, pulled: 0, pushed: 0 }
        });
        visit.pulls += 1;
    }

    fn leave(&mut self, device: &Device) {
        let Entry::Occupied(mut visit) = self.visits.entry(device.clone()) else { return };
        visit.get_mut().pulls -= 1;
        if visit.get().pulls == 0 {
            let Visit { since, pulled, pushed, .. } = visit.remove();
            let seconds = since.elapsed().as_secs();
            tracing::info!(device = device.as_str(), seconds, pulled, pushed, "a device left");
        }
    }
}

impl Hub {
    /// A hub with these tokens, which may be a gateway to a cluster. It records in `dir` what it sees of its devices.
    pub(crate) fn new(tokens: Tokens, dir: PathBuf, cluster: Option<Cluster>, shutdown: CancellationToken) -> Self {
        let devices = Arc::new(Mutex::new(Seen::read(&dir)));
        tokio::spawn(note(Arc::clone(&devices), dir, shutdown));
        Self {
            runs: cluster.map_or_else(|| Runs::Own(uuid::Uuid::new_v4().to_string().into()), Runs::Shared),
            tokens,
            devices,
            pullers: Arc::default(),
            refusals: Arc::default(),
        }
    }

    /// The run that devices are served under now. A gateway has none while it is cut off from its cluster.
    fn run(&self) -> Result<RunId, Problem> {
        match &self.runs {
            Runs::Own(run) => Ok(Arc::clone(run)),
            Runs::Shared(cluster) => cluster.run().ok_or_else(|| {
                not_ready(&cluster.not_serving().unwrap_or_else(|| "a new run has just begun".to_owned()))
            }),
        }
    }

    /// Why devices can't be served at present, if they can't. Pulls that are open may outlast that for a while.
    pub(super) fn not_serving(&self) -> Option<Problem> {
        match &self.runs {
            Runs::Own(_) => None,
            Runs::Shared(cluster) => cluster.not_serving().map(|why| not_ready(&why)),
        }
    }

    /// Returns when a run is over. A hub's own ends with its process.
    async fn run_ends(&self, run: &str) {
        match &self.runs {
            Runs::Own(_) => std::future::pending().await,
            Runs::Shared(cluster) => cluster.run_ends(run).await,
        }
    }

    /// Has what is in this gateway's files known to all gateways, and the other way round. A hub that is no gateway has
    /// nothing to share.
    pub(crate) async fn share(&self) -> Result<(), Problem> {
        match &self.runs {
            Runs::Own(_) => Ok(()),
            Runs::Shared(cluster) => cluster.share().await.map_err(|why| not_ready(&why)),
        }
    }

    /// Whether this token, which was just made, is one of the hub's. Another gateway may have given one for the same link.
    pub(super) fn knows(&self, token: &str, purpose: Purpose) -> bool {
        self.tokens.find(token.as_bytes(), purpose).is_some()
    }

    /// Why the hub may not know its tokens as they are in the file.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.tokens.trouble()
    }

    /// Notes that a device or a browser is there, and how far it has pulled a store.
    pub(super) fn saw(&self, device: &Device, store: &StoreId, pulled: Option<Seq>) {
        let mut devices = self.devices.lock().expect("BUG: noting a device panicked");
        let seen = devices.entry(device.as_str().to_owned()).or_default();
        seen.at = tokens::now();
        let is_noted = |seen: &Seen| seen.pulled.len() < NOTED || seen.pulled.contains_key(store.as_str());
        if let Some(pulled) = pulled.filter(|_| is_noted(seen)) {
            seen.pulled.insert(store.to_string(), pulled);
        }
    }

    /// Counts a pull until the returned value is dropped. If the device has too many pulls of that store, its oldest
    /// one ends.
    fn begin_pull(&self, device: &Device, store: &StoreId) -> Puller {
        let (key, is_over) = ((device.clone(), store.clone()), CancellationToken::new());
        let mut pullers = self.lock_pullers();
        pullers.enter(device);
        pullers.next += 1;
        let number = pullers.next;
        let open = pullers.of.entry(key.clone()).or_default();
        open.push_back((number, is_over.clone()));
        if open.len() > PULLS_OF_A_STORE
            && let Some((_, oldest)) = open.pop_front()
        {
            oldest.cancel();
        }
        drop(pullers);
        Puller { hub: self.clone(), key, number, is_over }
    }

    /// How many devices may sync, how many of them pull now, and in how many streams.
    pub(crate) fn devices(&self) -> (usize, usize, usize) {
        let pullers = self.lock_pullers();
        let pulls = pullers.visits.values().map(|visit| visit.pulls).sum();
        (self.tokens.count(Purpose::Sync), pullers.visits.len(), pulls)
    }

    /// Counts events that a device pulled or pushed during its visit.
    fn carried(&self, device: &Device, pulled: usize, pushed: usize) {
        if let Some(visit) = self.lock_pullers().visits.get_mut(device) {
            visit.pulled += pulled;
            visit.pushed += pushed;
        }
    }

    /// Returns whether a token that was shown is still valid.
    pub(super) fn lets_in(&self, token: &Token) -> bool {
        self.tokens.is_valid(token)
    }

    fn lock_pullers(&self) -> MutexGuard<'_, Pullers> {
        self.pullers.lock().expect("BUG: counting pulls panicked")
    }

    /// How many stores a device has made.
    pub(crate) fn stores_made_by(&self, device: &Device) -> u64 {
        let devices = self.devices.lock().expect("BUG: noting a device panicked");
        devices.get(device.as_str()).map(|seen| seen.made).unwrap_or_default()
    }

    /// Records that a device makes a store.
    pub(crate) fn made(&self, device: &Device) {
        let mut devices = self.devices.lock().expect("BUG: noting a device panicked");
        devices.entry(device.as_str().to_owned()).or_default().made += 1;
    }
}

/// A pull that is counted.
struct Puller {
    hub: Hub,
    key: (Device, StoreId),
    number: u64,
    /// Ends the pull when the device has newer ones instead.
    is_over: CancellationToken,
}

impl Drop for Puller {
    fn drop(&mut self) {
        let mut pullers = self.hub.lock_pullers();
        pullers.leave(&self.key.0);
        if let Some(open) = pullers.of.get_mut(&self.key) {
            open.retain(|(number, _)| *number != self.number);
            if open.is_empty() {
                pullers.of.remove(&self.key);
            }
        }
    }
}

/// Writes down from time to time what was seen of the devices, if it changed.
async fn note(devices: Arc<Mutex<BTreeMap<String, Seen>>>, dir: PathBuf, shutdown: CancellationToken) {
    let copy = || devices.lock().expect("BUG: noting a device panicked").clone();
    let mut noted = copy();
    loop {
        let is_over = shutdown.run_until_cancelled(tokio::time::sleep(NOTE_EVERY)).await.is_none();
        let now = copy();
        if now != noted
            && let Err(error) = Seen::write(&dir, &now)
        {
            tracing::warn!("cannot note when devices were seen: {error:#}");
        }
        noted = now;
        if is_over {
            return;
        }
    }
}

/// A device that showed a valid token to a hub.
pub(crate) struct Bearer(pub(super) Token);

impl<S> FromRequestParts<S> for Bearer
where
    S: Send + Sync,
    App: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let app = App::from_ref(state);
        if app.clients.follow_hub() {
            return Err(not_a_hub("This program follows a hub itself, so it is none."));
        }
        let find = || bearer_token(&parts.headers).and_then(|token| app.hub.tokens.find(token, Purpose::Sync));
        let mut token = find();
        if token.is_none() && bearer_token(&parts.headers).is_some() {
            // It may have been added at another gateway a moment ago, and a device that is told to go away does so.
            app.hub.share().await?;
            token = find();
        }
        let token = token.ok_or_else(|| {
            app.metrics.refused();
            app.hub.refusals.log(Asker::of(parts).client);
            StatusCode::UNAUTHORIZED
        })?;
        parts.extensions.get_or_insert_default::<Asker>().who = Who::Token(token.device.clone());
        Ok(Self(token))
    }
}

/// `POST /sync/v1/{store}/events`
pub(crate) async fn push(
    State(app): State<App>,
    Bearer(token): Bearer,
    Opened { store, who, .. }: Opened,
    body: Received,
) -> Result<Json<Pushed>, Problem> {
    let push: Push = serde_json::from_slice(&body.bytes).map_err(|why| {
        Problem::bad_request("malformed-push", format!("This is not a push: {why}."), "See docs/wire.md for its form.")
    })?;
    let incoming = Incoming::check(push, &app.hub.run()?, &token.device)?;
    if app.clients.cluster().is_some() {
        return publish(&app, &token, &store, &who, incoming).await;
    }
    let names = incoming.names() as f64;
    let events = incoming.count();
    app.shares
        .names
        .take(&who, names)
        .map_err(|wait| too_often("too-many-new-names", "This token brings new names of events too fast.", wait))?;
    let needs_log = incoming.needs_log();
    if needs_log && let Err(problem) = app.begin(&store, &who) {
        app.shares.names.give_back(&who, names);
        return Err(problem);
    }
    let (tokens, shown) = (app.hub.tokens.clone(), token.clone());
    let act = move |replica: Option<&mut Replica>| {
        // The token may have been revoked while the push was on its way.
        if !tokens.is_still_valid(&shown) {
            return Ok(None);
        }
        let Some(replica) = replica else { return Ok(Some((judged(incoming.store(None))?, 0))) };
        let before = replica.names();
        let pushed = judged(incoming.store(Some(replica)))?;
        Ok(Some((pushed, replica.names().saturating_sub(before))))
    };
    let stored =
        if needs_log { store.with(move |replica| act(Some(replica))).await } else { store.look_if_any(act).await };
    let new_names = stored.as_ref().ok().and_then(|stored| stored.as_ref()).map_or(0, |(_, new)| *new);
    app.shares.names.give_back(&who, names - new_names as f64);
    let (pushed, _) = stored?.ok_or(StatusCode::UNAUTHORIZED)?;
    app.hub.saw(&token.device, store.id(), None);
    app.hub.carried(&token.device, 0, events);
    Ok(Json(pushed?))
}

/// Has a gateway publish what a device pushed. The answer comes once the stream has it.
async fn publish(
    app: &App,
    token: &Token,
    store: &Store,
    who: &Who,
    incoming: Incoming,
) -> Result<Json<Pushed>, Problem> {
    let events = incoming.count();
    if events > 0 {
        app.begin(store, who)?;
    }
    let count = move |replica: Option<&mut Replica>| {
        let new = incoming.new_names(replica.as_deref());
        Ok((incoming, new))
    };
    let (incoming, new) = store.look_if_any(count).await?;
    app.shares
        .names
        .take(who, new as f64)
        .map_err(|wait| too_often("too-many-new-names", "This token brings new names of events too fast.", wait))?;
    // The token may have been revoked while the push was on its way.
    if !app.hub.tokens.is_still_valid(token) {
        return Err(StatusCode::UNAUTHORIZED.into());
    }
    let pushed = desk(app, store)?.push(incoming).await??;
    app.hub.saw(&token.device, store.id(), None);
    app.hub.carried(&token.device, 0, events);
    Ok(Json(pushed))
}

fn desk(app: &App, store: &Store) -> Result<Desk, Problem> {
    app.clients.desk(store).ok_or_else(|| not_ready("the store was just let go of"))
}

/// A gateway can't serve at present. Devices come again, and lose nothing.
fn not_ready(why: &str) -> Problem {
    Problem::unavailable(
        "gateway-not-ready",
        format!("This gateway is not level with its cluster: {why}."),
        "Nothing is lost. Come again, here or at another gateway.",
        2,
    )
    .ends_connection()
}

impl From<NotReady> for Problem {
    fn from(why: NotReady) -> Self {
        match why {
            NotReady::Later(why) => not_ready(&why),
            NotReady::Moved(to) => Refusal::Moved(to).into(),
        }
    }
}

/// Says that a token did something too often, and when it may do so again.
pub(super) fn too_often(code: &'static str, detail: &'static str, wait: Duration) -> Problem {
    let advice = "Nothing was changed. Wait, and repeat it.";
    Problem::new(StatusCode::TOO_MANY_REQUESTS, code, detail, advice).retry_in(wait)
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotAHub => not_a_hub(
                "This program is not the authority of this store: its log is another hub's, which it doesn't follow now.",
            ),
            Refusal::WrongLog => Self::conflict(
                code::WRONG_LOG,
                "The hub has no log of this store, or another one than the client knows.",
                "Nothing was changed. Check the address of the hub. If this is meant to be its log from now on, run \
                 `adopt` on the client.",
            ),
            Refusal::PullFirst => Self::conflict(
                code::PULL_FIRST,
                "The hub was started anew since this client pulled.",
                "Nothing was stored. Pull first, and push again what is not in the log.",
            ),
            Refusal::TooMany(events) => Self::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                code::TOO_LARGE,
                format!("A push has at most {} events, and this one has {events}.", PAGE.events),
                "Nothing was stored. Push fewer at once.",
            ),
            Refusal::Moved(to) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                code::MOVED,
                format!("The store was moved to another hub: {to}."),
                "Nothing was stored. Sync with the hub that has it now.",
            )
            .ends_connection(),
            Refusal::Diverged { head, points } => Self::conflict(
                code::DIVERGED,
                "The hub's log is not the one that the client has up to where it has pulled.",
                "Take back what comes after the last checkpoint that both share, pull, and push it again.",
            )
            .with("head", head.0)
            .with("checkpoints", serde_json::to_value(points).unwrap_or_default()),
        }
    }
}

/// Any other address of a hub that has no pages.
pub(crate) async fn no_page() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "not-found",
        "This is a hub. It has no pages, only /sync, /healthz, /status and /metrics.",
        "Open the page of a device that syncs with it.",
    )
}

fn not_a_hub(detail: &'static str) -> Problem {
    let advice = "Sync with the hub itself. If that is gone for good, `promote` makes this one the authority.";
    Problem::forbidden(code::NOT_A_HUB, detail, advice)
}

/// Where a client stands.
#[derive(Debug, Deserialize)]
pub(crate) struct Pull {
    log: Option<LogId>,
    #[serde(default)]
    after: Seq,
    digest: Option<Digest>,
    /// Where the stream ends, if it isn't to stay open: a client fetches what is behind its snapshot.
    until: Option<Seq>,
    /// The client's last event. Only authorities without digests need it.
    #[serde(rename = "last_id")]
    _last_id: Option<String>,
}

/// `GET /sync/v1/{store}/events`
pub(crate) async fn pull(
    State(app): State<App>,
    Bearer(token): Bearer,
    Opened { store, who, .. }: Opened,
    connection: Option<Extension<Connection>>,
    query: Result<Query<Pull>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Problem> {
    let Query(Pull { log, after, digest, until, .. }) = query.map_err(|why| {
        Problem::bad_request("malformed-pull", format!("{}.", why.body_text()), "See docs/wire.md for its parameters.")
    })?;
    app.shares
        .pulls
        .take(&who, 1.0)
        .map_err(|wait| too_often("too-many-pulls", "This token begins to pull too often.", wait))?;
    let slot = app.shares.streams.lend(&who, 1).map_err(|full| {
        full.problem("too-many-streams", "More streams are open", "Pull fewer stores, or come back later.", 5)
    })?;
    let digest = digest.unwrap_or_default();
    let run = app.hub.run()?;
    // A gateway judges a device only by what the stream has by now.
    let begins = match app.clients.cluster() {
        Some(_) => Some(desk(&app, &store)?.level().await?),
        None => None,
    };
    let vouch = move |replica: Option<&mut Replica>| {
        judged(match begins {
            Some(begins) => Start::vouch_before(replica.as_deref(), log, after, digest, begins),
            None => Start::vouch(replica.as_deref(), log, after, digest),
        })
    };
    let start = store.look_if_any(vouch).await?;
    if app.hub.run()? != run {
        return Err(not_ready("a new run has just begun"));
    }
    let is_to_repair = matches!(start, Err(Refusal::Diverged { .. }));
    if is_to_repair {
        app.shares.pulls.charge(&who, DIVERGED);
    }
    let start = start.map_err(Problem::from).inspect_err(|problem| {
        if !is_to_repair {
            let (device, store) = (token.device.as_str(), store.id().as_str());
            tracing::warn!(device, store, why = problem.code(), "a device was refused");
        }
    })?;
    let hello = start.hello(&run);
    // A store that doesn't exist is not recorded: there are as many as there are names.
    app.hub.saw(&token.device, store.id(), hello.log.map(|_| after));
    let mut ping = interval_at(tokio::time::Instant::now() + PING_EVERY, PING_EVERY);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let stream = PullStream {
        hello: Some(hello),
        start,
        after,
        until: until.unwrap_or(Seq(u64::MAX)),
        news: app.stores.news(store.id()),
        is_level: false,
        stores: app.stores.clone(),
        store: store.id().clone(),
        puller: app.hub.begin_pull(&token.device, store.id()),
        token,
        run,
        hub: app.hub.clone(),
        ping,
        handed: None,
        size: LEAST,
        room: None,
        spare: who.spare(app.stores.limits()),
        who,
        app: Arc::clone(&app),
        connection: connection.map(|Extension(connection)| connection),
        shutdown: app.shutdown.clone(),
        _slot: slot,
    };
    let body = Body::from_stream(stream::unfold(stream, async |mut stream| {
        let bytes = stream.next().await?;
        stream.handed = Some(Instant::now());
        if let Some(connection) = &stream.connection {
            connection.must_take_within(SILENCE);
        }
        Some((Ok::<_, Infallible>(bytes), stream))
    }));
    Ok((STREAM_HEADERS, body).into_response())
}

/// One client's stream. It holds at most one page and reads the next only when the client has taken the last. It has
/// the store open only while it reads, so a hub can serve more stores than it can have open.
struct PullStream {
    hello: Option<Hello>,
    start: Start,
    after: Seq,
    until: Seq,
    news: watch::Receiver<u64>,
    /// Whether the last look found nothing more.
    is_level: bool,
    stores: Stores,
    store: StoreId,
    puller: Puller,
    token: Token,
    /// The run that the device was told. The pull ends with it.
    run: RunId,
    hub: Hub,
    ping: Interval,
    /// When the last piece was handed to the connection.
    handed: Option<Instant>,
    /// The size of the last page.
    size: PageSize,
    /// The memory of the page that the client is taking, if it is larger than the smallest.
    room: Option<Lease>,
    who: Who,
    spare: Spare,
    app: App,
    connection: Option<Connection>,
    shutdown: CancellationToken,
    _slot: Lease,
}

impl PullStream {
    async fn next(&mut self) -> Option<Bytes> {
        // The client has taken the last page.
        self.room = None;
        if let Some(hello) = self.hello.take() {
            return Some(sse::frame("hello", &hello));
        }
        if self.handed.is_some_and(|handed| handed.elapsed() > SILENCE) {
            tracing::info!(device = self.token.device.as_str(), "a client read too slowly and was disconnected");
            return None;
        }
        loop {
            // A client that lacks a lot takes page after page without a pause.
            if self.shutdown.is_cancelled()
                || self.puller.is_over.is_cancelled()
                || !self.hub.tokens.is_valid(&self.token)
                || self.hub.run().ok().as_ref() != Some(&self.run)
            {
                return None;
            }
            if self.after >= self.until {
                return None;
            }
            if !self.is_level {
                self.news.mark_unchanged();
                match self.page().await {
                    NextPage::Page(page) => {
                        self.hub.saw(&self.token.device, &self.store, Some(self.after));
                        self.hub.carried(&self.token.device, page.events.len(), 0);
                        return Some(sse::frame("page", &page));
                    }
                    NextPage::Level => self.is_level = true,
                    NextPage::Over => return None,
                }
            }
            tokio::select! {
                () = self.shutdown.cancelled() => return None,
                () = self.puller.is_over.cancelled() => return None,
                () = self.hub.tokens.revoked(&self.token) => return None,
                () = self.hub.run_ends(&self.run) => return None,
                changed = self.news.changed() => {
                    changed.ok()?;
                    self.is_level = false;
                }
                _ = self.ping.tick() => {
                    self.hub.saw(&self.token.device, &self.store, None);
                    return Some(sse::frame("ping", &serde_json::json!({})));
                }
            }
        }
    }

    /// How large the next page may be: larger than the last if the client took that quickly and there is room.
    fn next_size(&mut self) -> PageSize {
        let is_quick = self.handed.is_some_and(|handed| handed.elapsed() < QUICK);
        let PageSize { events, bytes } = self.size;
        let larger = PageSize { events: PAGE.events.min(4 * events), bytes: PAGE.bytes.min(4 * bytes) };
        // Text can take twice the bytes of its payload.
        self.room = if is_quick { self.app.shares.pages.lend(&self.who, 2 * larger.bytes).ok() } else { None };
        self.size = if self.room.is_some() { larger } else { LEAST };
        self.size
    }

    /// The next piece. The stream also ends where the store can't be read; the client then comes back.
    async fn page(&mut self) -> NextPage {
        let size = self.next_size();
        let (mut start, after) = (self.start, self.after);
        let Ok(store) = self.stores.get_leaving(&self.store, self.spare) else { return NextPage::Over };
        let read = store.look(move |replica| Ok((start.page_of(replica, after, size)?, start)));
        let (page, start) = match read.await {
            Ok(Some(read)) => read,
            Ok(None) => return NextPage::Level,
            Err(_) => return NextPage::Over,
        };
        self.start = start;
        match page {
            NextPage::Page(page) => {
                let page = page.until(self.until);
                self.after = page.next;
                NextPage::Page(page)
            }
            page => page,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::{fuzz, text};

    #[test]
    fn trust_38_fuzzed_parameters_of_a_pull_are_places_or_refused() {
        fuzz("pull", &["after=", "digest=", "log=", "last_id=", "&", "%"], |input| {
            let Ok(uri) = format!("http://localhost/?{}", text(input)).parse() else { return "no address".to_owned() };
            match Query::<Pull>::try_from_uri(&uri) {
                Ok(Query(pull)) => {
                    assert!(pull.after.0 < 1 << 62);
                    format!("{} {}", pull.log.is_some(), pull.digest.is_some())
                }
                Err(why) => why.body_text(),
            }
        });
    }
}
