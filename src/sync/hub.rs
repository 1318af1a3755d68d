//! The hub: the routes through which other instances sync with this one.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{FromRef, FromRequestParts, Query, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Interval, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use super::authority::{Incoming, Refusal, Start};
use super::protocol::{Hello, PAGE, Push, Pushed, WirePage, code};
use super::sse;
use super::tokens::{self, Seen, Token, Tokens};
use crate::engine::{Device, Digest, LogId, Seq, StoreId, Stores};
use crate::web::{App, Opened, Problem};

/// How often a pull stream says that it is alive.
const PING_EVERY: Duration = Duration::from_secs(10);

/// How long a client may take to read what it was sent before it is disconnected: it would miss the pings anyway.
const SLOWEST: Duration = Duration::from_secs(25);

/// How often it is written down which device was seen when.
const NOTE_EVERY: Duration = Duration::from_secs(5);

/// Identifies the time from one start of a hub to its end.
pub(crate) type RunId = Arc<str>;

/// What a hub knows besides its stores.
#[derive(Clone)]
pub(crate) struct Hub {
    run: RunId,
    tokens: Tokens,
    devices: Arc<Mutex<BTreeMap<String, Seen>>>,
}

impl Hub {
    /// A hub with these tokens, which notes in `dir` what it sees of its devices.
    pub(crate) fn new(tokens: Tokens, dir: PathBuf, shutdown: CancellationToken) -> Self {
        let devices = Arc::new(Mutex::new(Seen::read(&dir)));
        tokio::spawn(note(Arc::clone(&devices), dir, shutdown));
        Self { run: uuid::Uuid::new_v4().to_string().into(), tokens, devices }
    }

    fn saw(&self, device: &Device, store: &StoreId, pulled: Option<Seq>) {
        let mut devices = self.devices.lock().expect("BUG: noting a device panicked");
        let seen = devices.entry(device.as_str().to_owned()).or_default();
        seen.at = tokens::now();
        if let Some(pulled) = pulled {
            seen.pulled.insert(store.to_string(), pulled);
        }
    }
}

/// Writes down now and then what was seen of the devices, if it changed.
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

/// A device that showed its token to an instance that is a hub.
pub(crate) struct Bearer(Token);

impl<S> FromRequestParts<S> for Bearer
where
    S: Send + Sync,
    App: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let app = App::from_ref(state);
        if app.clients.follow() {
            return Err(not_a_hub("This likewise follows a hub itself, so it is none."));
        }
        let mut shown = parts.headers.get_all(header::AUTHORIZATION).iter();
        let shown = shown.next().filter(|_| shown.next().is_none()).map(|value| value.as_bytes());
        let token = shown.and_then(|value| value.strip_prefix(b"Bearer ")).and_then(|token| app.hub.tokens.find(token));
        token.map(Self).ok_or_else(|| StatusCode::UNAUTHORIZED.into())
    }
}

/// `POST /sync/v1/{store}/events`
pub(crate) async fn push(
    State(app): State<App>,
    Bearer(token): Bearer,
    Opened { store, .. }: Opened,
    body: Bytes,
) -> Result<Json<Pushed>, Problem> {
    let push: Push = serde_json::from_slice(&body).map_err(|why| {
        Problem::bad_request("malformed-push", format!("This is not a push: {why}."), "See docs/wire.md for its form.")
    })?;
    let incoming = Incoming::check(push, &app.hub.run, &token.device)?;
    let pushed = if incoming.needs_log() {
        store.with(move |replica| incoming.store(Some(replica))).await?
    } else {
        store.look_if_any(move |replica| incoming.store(replica)).await?
    };
    app.hub.saw(&token.device, store.id(), None);
    Ok(Json(pushed?))
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotAHub => not_a_hub(
                "This likewise is not the authority of this store: its log is another hub's, which it doesn't follow now.",
            ),
            Refusal::WrongLog => Self::conflict(
                code::WRONG_LOG,
                "The hub has no log of this store, or another one than the client knows.",
                "Nothing was changed. Check the address of the hub. If this is meant to be its log from now on, run \
                 `likewise adopt` on the client.",
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

fn not_a_hub(detail: &'static str) -> Problem {
    let advice = "Sync with the hub itself. If that is gone for good, `likewise promote` makes this one the authority.";
    Problem::forbidden(code::NOT_A_HUB, detail, advice)
}

/// Where a client stands.
#[derive(Debug, Deserialize)]
pub(crate) struct Pull {
    log: Option<LogId>,
    #[serde(default)]
    after: Seq,
    digest: Option<Digest>,
    /// The last event that the client has; for authorities that have no digests.
    #[serde(rename = "last_id")]
    _last_id: Option<String>,
}

/// `GET /sync/v1/{store}/events`
pub(crate) async fn pull(
    State(app): State<App>,
    Bearer(token): Bearer,
    Opened { store, .. }: Opened,
    query: Result<Query<Pull>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Problem> {
    let Query(Pull { log, after, digest, .. }) = query.map_err(|why| {
        Problem::bad_request("malformed-pull", format!("{}.", why.body_text()), "See docs/wire.md for its parameters.")
    })?;
    let slot = app.pages.slot()?;
    let digest = digest.unwrap_or_default();
    let start = store.look_if_any(move |replica| Start::vouch(replica.as_deref(), log, after, digest)).await??;
    app.hub.saw(&token.device, store.id(), Some(after));
    let mut ping = interval_at(tokio::time::Instant::now() + PING_EVERY, PING_EVERY);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let stream = PullStream {
        hello: Some(start.hello(&app.hub.run)),
        start,
        after,
        news: app.stores.news(store.id()),
        is_level: false,
        stores: app.stores.clone(),
        store: store.id().clone(),
        token,
        hub: app.hub.clone(),
        ping,
        handed: None,
        shutdown: app.shutdown.clone(),
        _slot: slot,
    };
    let body = Body::from_stream(stream::unfold(stream, async |mut stream| {
        let bytes = stream.next().await?;
        stream.handed = Some(Instant::now());
        Some((Ok::<_, Infallible>(bytes), stream))
    }));
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, body).into_response())
}

/// One client's stream. It holds one page at most: the next is read when the client took the last. It has the store only
/// while it reads, so that a hub can serve more stores than it could have open.
struct PullStream {
    hello: Option<Hello>,
    start: Start,
    after: Seq,
    news: watch::Receiver<u64>,
    /// Whether there was no more at the last look.
    is_level: bool,
    stores: Stores,
    store: StoreId,
    token: Token,
    hub: Hub,
    ping: Interval,
    /// When the last piece was handed over.
    handed: Option<Instant>,
    shutdown: CancellationToken,
    _slot: OwnedSemaphorePermit,
}

impl PullStream {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(hello) = self.hello.take() {
            return Some(sse::frame("hello", &hello));
        }
        if self.handed.is_some_and(|handed| handed.elapsed() > SLOWEST) {
            tracing::info!(device = self.token.device.as_str(), "a client read too slowly and was disconnected");
            return None;
        }
        loop {
            // A client that lacks much takes page after page without a pause.
            if self.shutdown.is_cancelled() || !self.hub.tokens.is_valid(&self.token) {
                return None;
            }
            if !self.is_level {
                self.news.mark_unchanged();
                if let Some(page) = self.page().await? {
                    self.hub.saw(&self.token.device, &self.store, Some(self.after));
                    return Some(sse::frame("page", &page));
                }
                self.is_level = true;
            }
            tokio::select! {
                () = self.shutdown.cancelled() => return None,
                () = self.hub.tokens.revoked(&self.token) => return None,
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

    /// The next page, if there is more; the outer `None` when this stream can't go on.
    async fn page(&mut self) -> Option<Option<WirePage>> {
        let (mut start, after) = (self.start, self.after);
        let store = self.stores.get(&self.store).ok()?;
        let read = store.look(move |replica| Ok((start.page(replica, after)?, start)));
        let Some((page, start)) = read.await.ok()? else { return Some(None) };
        self.start = start;
        let page = page?;
        if let Some(page) = &page {
            self.after = page.next;
        }
        Some(page)
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
