//! The web floor: pages, forms and live streams over the stores, behind the guard.

mod assets;
mod control;
mod framing;
mod guard;
mod likes;
pub(crate) mod live;
mod lobby;
pub(crate) mod metrics;
mod problem;
mod server;
mod shares;
mod status;

use std::collections::HashMap;
use std::fmt::Display;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::extract::{FromRef, FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::Redirect;
use axum::routing::{get, post};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use shares::{TOKENS_STORES, VISITORS_LINKS};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::engine::{Device, Error, Store, StoreId, Stores};
use crate::sync::{self, Clients, Hub, LinkStatus, code};

pub(crate) use crate::engine::{Imported, import};
pub(crate) use assets::ASSETS_VERSION;
pub(crate) use control::{AFTER_IMPORT, Exported};
pub(crate) use guard::AllowedHost;
pub(crate) use guard::{Policy, protect};
pub(crate) use lobby::Connection;
pub(crate) use problem::Problem;
pub(crate) use server::{Limits, raise_open_file_limit, serve, stores_within_open_files};
pub(crate) use shares::{DIVERGED, Full, Lease, Shares, Who};
pub(crate) use status::{StatusReport, date_time, digests, what_to_do};

/// The store whose routes have no prefix.
pub(crate) const DEFAULT_STORE: &str = "likes";

/// What every handler may use. Handlers get it anew with each request, so all of it is behind one pointer.
pub(crate) type App = Arc<Services>;

/// The parts of an instance that requests are answered with.
pub(crate) struct Services {
    pub(crate) stores: Stores,
    pub(crate) device: Device,
    /// The data directory.
    pub(crate) data: PathBuf,
    pub(crate) pages: live::Pages,
    /// What strangers can make this instance hold, shared out.
    pub(crate) shares: Shares,
    /// Keep stores level with the upstream, if there is one.
    pub(crate) clients: Clients,
    /// Lets others be level with us.
    pub(crate) hub: Hub,
    pub(crate) control_key: Arc<str>,
    pub(crate) metrics: metrics::Metrics,
    pub(crate) shutdown: CancellationToken,
}

/// All routes, without the guard.
pub(crate) fn routes(app: App) -> Router {
    let of_a_store = Router::new()
        .route("/likes", post(likes::like))
        .route("/adopt", post(likes::adopt))
        .route("/live", get(live::live))
        .route("/status", get(status::status))
        .route("/healthz", get(status::healthz))
        .route("/metrics", get(metrics::metrics));
    Router::new()
        .route("/", get(likes::page))
        .merge(of_a_store.clone())
        .route("/s/{store}", get(async |page: Page| Redirect::permanent(&page.home())))
        .route("/s/{store}/", get(likes::page))
        .nest("/s/{store}", of_a_store)
        .route("/static/{file}", get(assets::asset))
        .route("/favicon.ico", get(assets::favicon))
        .route("/control/v1/backup", post(control::backup))
        .route("/control/v1/{store}/export", get(control::export))
        .route("/control/v1/{store}/import", post(control::import_route))
        .route("/control/v1/{store}/verify", post(control::verify))
        .route("/control/v1/{store}/adopt", post(control::adopt))
        .route("/control/v1/{store}/promote", post(control::promote))
        .route("/control/v1/{store}/set-aside", get(control::export_set_aside))
        .route("/control/v1/{store}/set-aside/retry", post(control::retry_set_aside))
        .route("/sync/v1/{store}/events", get(sync::pull).post(sync::push))
        .with_state(app)
}

/// What the routes of `store` begin with.
pub(crate) fn base(store: &StoreId) -> String {
    if store.as_str() == DEFAULT_STORE { String::new() } else { format!("/s/{store}") }
}

/// The store that a request is about, by name; not opened yet.
pub(crate) struct Page {
    id: StoreId,
}

impl Page {
    /// The store's name.
    pub(crate) fn id(&self) -> &StoreId {
        &self.id
    }

    /// What the routes of this store begin with.
    pub(crate) fn base(&self) -> String {
        base(&self.id)
    }

    /// Where the page is.
    pub(crate) fn home(&self) -> String {
        self.base() + "/"
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Page {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let params = RawPathParams::from_request_parts(parts, state).await.map_err(|error| {
            Problem::bad_request("malformed-store", error.to_string(), "Check the address for typing errors.")
        })?;
        let params: HashMap<&str, &str> = params.iter().collect();
        let name = params.get("store").copied();
        let id = name.unwrap_or(DEFAULT_STORE).parse().map_err(|error: crate::engine::Malformed| {
            Problem::new(
                StatusCode::NOT_FOUND,
                "no-such-store",
                format!("{error}."),
                "Check the address for typing errors. Any name of that form is a store, also one without likes yet.",
            )
        })?;
        Ok(Self { id })
    }
}

/// The store that a request is about, open.
pub(crate) struct Opened {
    pub(crate) page: Page,
    pub(crate) store: Store,
    /// How its connection to the upstream is.
    pub(crate) link: watch::Receiver<LinkStatus>,
    /// Who asks.
    pub(crate) who: Who,
}

impl<S> FromRequestParts<S> for Opened
where
    S: Send + Sync,
    App: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let page = Page::from_request_parts(parts, state).await?;
        let app = App::from_ref(state);
        let who = who(parts);
        let store = app.stores.get_leaving(&page.id, who.spare(app.stores.limits()))?;
        // An upstream may have a store that isn't here. For the owner it is asked about any; strangers could make up names
        // for ever.
        let most = if who == Who::Visitor && store.is_absent() { VISITORS_LINKS } else { usize::MAX };
        let link = app.clients.attend(&store, most);
        Ok(Self { page, store, link, who })
    }
}

/// Who sent the request. Whoever didn't come by the guard is nobody we know.
fn who(parts: &Parts) -> Who {
    parts.extensions.get().cloned().unwrap_or(Who::Visitor)
}

impl Services {
    /// Opens `store` for events from `who`. A new one takes up a part of what they may make.
    pub(crate) fn begin(&self, store: &Store, who: &Who) -> Result<(), Problem> {
        let limits = self.stores.limits();
        let spare = who.spare(limits);
        if !store.is_absent() {
            return Ok(store.begin(spare).map(drop)?);
        }
        if let Who::Token(device) = who {
            let most = limits.stores / TOKENS_STORES;
            if self.hub.stores_made_by(device) >= most {
                return Err(Problem::new(
                    StatusCode::INSUFFICIENT_STORAGE,
                    code::TOO_MANY_STORES,
                    format!("The device {} has made {most} stores here, which is the limit.", device.as_str()),
                    "Nothing was stored. Like in a store that exists.",
                ));
            }
            if store.begin(spare)? {
                self.hub.made(device);
            }
            return Ok(());
        }
        if *who == Who::Visitor
            && let Err(wait) = self.shares.visitors_stores.take(who, 1.0)
        {
            return Err(Problem::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too-many-new-stores",
                "Visitors have made as many new stores in the last hour as they may.",
                "Nothing was stored. Like in a store that exists, or come back later.",
            )
            .retry_after(u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1)));
        }
        let begun = store.begin(spare);
        if *who == Who::Visitor && !matches!(begun, Ok(true)) {
            self.shares.visitors_stores.give_back(who, 1.0);
        }
        Ok(begun.map(drop)?)
    }
}

/// The whole body of a request, as a part of what bodies may take.
pub(crate) struct Received {
    pub(crate) bytes: Bytes,
    /// Kept until the request is answered, for what is made of the body is larger than the body.
    _lease: Lease,
}

impl<S> FromRequest<S> for Received
where
    S: Send + Sync,
    App: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let busy = |full: Full| {
            let what = "More is being sent";
            full.problem("too-much-at-once", what, "Nothing was stored. Repeat it with the same ids.", 1)
        };
        let mut lease = App::from_ref(state).shares.bodies.lend(&who(&parts), 0).map_err(busy)?;
        drop(parts);
        let mut bytes = BytesMut::new();
        let mut pieces = body.into_data_stream();
        while let Some(piece) = pieces.next().await {
            // What is wrong with it says whoever bounds it.
            let piece = piece.map_err(|_| Problem::from(StatusCode::BAD_REQUEST))?;
            lease.extend(piece.len()).map_err(busy)?;
            bytes.extend_from_slice(&piece);
        }
        Ok(Self { bytes: bytes.freeze(), _lease: lease })
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let detail = sentence(&error);
        match error {
            Error::Malformed(_) => Self::bad_request(
                "malformed-event",
                detail,
                "Nothing was stored. Reload the page and click again; a program must send a new UUID of version 7.",
            ),
            Error::Refused(_) => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "event-refused",
                detail,
                "Nothing was stored, and the same event would be refused again.",
            ),
            Error::Conflict(_) => {
                Self::conflict("id-taken", detail, "Nothing was changed. Reload the page and click again.")
            }
            Error::Overloaded => {
                Self::unavailable("overloaded", detail, "Nothing was stored. Repeat it with the same id.", 1)
            }
            Error::TooManyOpen => {
                Self::unavailable("too-many-stores-open", detail, "Nothing was stored. Repeat it with the same id.", 5)
            }
            Error::TooManyStores(_) => Self::new(
                StatusCode::INSUFFICIENT_STORAGE,
                "too-many-stores",
                detail,
                "Nothing was stored. Like in a store that exists.",
            ),
            Error::Unavailable(_) => Self::unavailable(
                "store-unavailable",
                detail,
                "Nothing that was acknowledged is lost. Repeat the click when the cause is gone: one id counts once.",
                2,
            ),
            Error::OwnLog => Self::conflict("own-log", detail, "Nothing was changed."),
            Error::Closed => Self::unavailable("shutting-down", detail, "Try again when it has started again.", 1),
            Error::Query(_) => Self::internal(&error),
        }
    }
}

/// The message of an error as a sentence. A file's name at its start stays as it is.
pub(crate) fn sentence(error: impl Display) -> String {
    let text = error.to_string();
    let word = text.split_whitespace().next().unwrap_or_default().trim_end_matches(['.', ':', ',', ';']);
    let mut chars = text.chars();
    let start = match chars.next() {
        Some(first) if !word.contains(['.', '/', '\\']) => first.to_uppercase().to_string(),
        first => first.map(String::from).unwrap_or_default(),
    };
    let end = if text.ends_with('.') { "" } else { "." };
    format!("{start}{}{end}", chars.as_str())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::SocketAddr;
    use std::path::Path;
    use std::sync::{Mutex, mpsc};
    use std::time::Duration;

    use axum::body::Body;
    use axum::extract::ConnectInfo;
    use axum::http::Request;
    use axum::response::{IntoResponse as _, Response};
    use tower::ServiceExt as _;

    use super::*;
    use crate::engine::{Schema, Setup, StoreLimits};
    use crate::likes::{LikeAdded, count};
    use crate::sync::{TokenFile, Tokens};

    /// An instance without an upstream, on data of its own.
    pub(crate) fn app(dir: &Path, schema: Schema, limits: StoreLimits, max_streams: usize) -> App {
        let device: Device = "test".parse().expect("a name");
        let setup = Setup {
            schema: Arc::new(schema),
            device: device.clone(),
            executable: "test".to_owned(),
            progress: |_, _| {},
        };
        let stores = Stores::open(dir, setup, limits).expect("stores");
        let shutdown = CancellationToken::new();
        let tokens = Tokens::follow(TokenFile::in_dir(dir), shutdown.clone()).expect("tokens");
        App::new(Services {
            stores: stores.clone(),
            device,
            data: dir.to_owned(),
            pages: live::Pages::default(),
            shares: Shares::new(max_streams, limits),
            clients: Clients::new(stores, None, Duration::ZERO, shutdown.clone()),
            hub: Hub::new(tokens, dir.to_owned(), shutdown.clone()),
            control_key: "key".into(),
            metrics: metrics::Metrics::install(),
            shutdown,
        })
    }

    pub(crate) async fn ask(router: &Router, method: &str, path: &str) -> Response {
        let peer: SocketAddr = "127.0.0.1:50000".parse().expect("an address");
        let request = Request::builder().method(method).uri(path).header("host", "localhost");
        let request = request
            .extension(ConnectInfo(peer))
            .extension(guard::ReachedAt(peer))
            .body(Body::empty())
            .expect("a request");
        router.clone().oneshot(request).await.expect("an answer")
    }

    #[tokio::test]
    async fn a_like_that_finds_the_queue_full_is_told_when_to_come_again() {
        let (entered, is_busy) = mpsc::channel();
        let (gate, waits) = mpsc::channel::<()>();
        let waits = Mutex::new(waits);
        let schema = Schema::new(
            "CREATE TABLE likes (id INTEGER PRIMARY KEY, count INTEGER NOT NULL) STRICT;
             INSERT INTO likes VALUES (1, 0);",
        )
        .on(move |_: LikeAdded, db| {
            // The rehearsal at the start, whose events are of 1970, passes through.
            if db.millis() > 0 {
                let _ = entered.send(());
                // Until the gate is dropped.
                let _ = waits.lock().expect("one thread").recv();
            }
            db.execute("UPDATE likes SET count = count + 1", ())
        });
        let dir = tempfile::tempdir().expect("a directory");
        let app = app(dir.path(), schema, StoreLimits { queue: 1, ..StoreLimits::default() }, 1);
        let router = protect(routes(Arc::clone(&app)), Policy::default());
        let like = || {
            let router = router.clone();
            tokio::spawn(async move { ask(&router, "POST", "/likes").await })
        };

        let mut first = like();
        let is_busy = tokio::task::spawn_blocking(move || is_busy.recv());
        tokio::select! {
            is_busy = is_busy => is_busy.expect("no panic").expect("the store's thread at the gate"),
            answer = &mut first => panic!("it didn't wait: {answer:?}"),
        }
        // One of these two finds a place in the queue and waits, so the other is answered first.
        let (mut second, mut third) = (like(), like());
        let (refused, waiting) = tokio::select! {
            answer = &mut second => (answer, third),
            answer = &mut third => (answer, second),
        };
        let refused = refused.expect("no panic");
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(refused.headers()["retry-after"], "1");
        let words = axum::body::to_bytes(refused.into_body(), 1 << 20).await.expect("a body in memory");
        let words = String::from_utf8_lossy(&words);
        assert!(words.contains("Too many events are waiting to be stored"), "{words}");
        drop(gate);
        for stored in [first, waiting] {
            assert_eq!(stored.await.expect("no panic").status(), StatusCode::SEE_OTHER);
        }
        let store = app.stores.get(&DEFAULT_STORE.parse().expect("a name")).expect("the store");
        assert_eq!(store.read(count()).await, Ok(2));
        assert_eq!(ask(&router, "POST", "/likes").await.status(), StatusCode::SEE_OTHER);
    }

    #[tokio::test]
    async fn trust_64_new_stores_are_shared_out_and_a_part_is_kept_for_the_owner() {
        let dir = tempfile::tempdir().expect("a directory");
        let app = app(dir.path(), crate::likes::schema(), StoreLimits { stores: 20, ..StoreLimits::default() }, 8);
        let token = |name: &str| Who::Token(name.parse().expect("a name"));
        let make = async |name: String, who: &Who| {
            let store = app.stores.get(&name.parse().expect("a name")).expect("a store");
            app.begin(&store, who).map_err(|problem| problem.into_response().status())?;
            store.commit(LikeAdded {}).await.expect("stored");
            Ok::<_, StatusCode>(())
        };
        let full = Err(StatusCode::INSUFFICIENT_STORAGE);
        for n in 0..5 {
            assert_eq!(make(format!("phone-{n}"), &token("phone")).await, Ok(()));
        }
        assert_eq!(make("phone-5".to_owned(), &token("phone")).await, full, "a quarter is one token's share");
        assert_eq!(make("phone-4".to_owned(), &token("phone")).await, Ok(()), "those that exist go on");
        for n in 0..7 {
            assert_eq!(make(format!("visitor-{n}"), &Who::Visitor).await, Ok(()));
        }
        assert_eq!(make("visitor-7".to_owned(), &Who::Visitor).await, full, "two fifths are kept from visitors");
        assert_eq!(make("visitor-6".to_owned(), &Who::Visitor).await, Ok(()));
        for n in 0..3 {
            assert_eq!(make(format!("laptop-{n}"), &token("laptop")).await, Ok(()));
            assert_eq!(make(format!("tablet-{n}"), &token("tablet")).await, Ok(()));
        }
        assert_eq!(make("tablet-3".to_owned(), &token("tablet")).await, full, "a tenth is the owner's alone");
        for n in 0..2 {
            assert_eq!(make(format!("own-{n}"), &Who::Owner).await, Ok(()));
        }
        assert_eq!(make("own-2".to_owned(), &Who::Owner).await, full);
        let saved = &app.shares.visitors_stores;
        for _ in 0..93 {
            assert!(saved.take(&Who::Visitor, 1.0).is_ok(), "what was refused was not counted");
        }
        assert!(saved.take(&Who::Visitor, 1.0).is_err());
    }

    #[test]
    fn sentences_begin_with_a_capital_unless_that_would_rename_a_file() {
        for (text, expected) in [
            ("the store is closed", "The store is closed."),
            ("It is.", "It is."),
            ("ended. Try again", "Ended. Try again."),
            ("eventlog.db: disk I/O error", "eventlog.db: disk I/O error."),
            ("a/b is not an eventlog", "a/b is not an eventlog."),
            ("\u{e9}t\u{e9}", "\u{c9}t\u{e9}."),
            ("", "."),
        ] {
            assert_eq!(sentence(text), expected);
        }
    }
}
