//! An instance without a network, asked request by request.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse as _, Response};
use tower::{Service, ServiceExt as _};

use super::*;
use crate::engine::{Schema, Setup, Store, StoreLimits};
use crate::likes::{LikeAdded, count};
use crate::sync::{HistoryWanted, Snapshots, TokenFile, Tokens};

/// Likes without an upstream, on data of its own.
pub(crate) fn app(dir: &Path, schema: Schema, limits: StoreLimits, max_streams: usize) -> App {
    serving(crate::likes::app(), dir, schema, limits, max_streams)
}

/// An app without an upstream, on data of its own.
fn serving(app: crate::App, dir: &Path, schema: Schema, limits: StoreLimits, max_streams: usize) -> App {
    let face = Arc::clone(app.face());
    let device: Device = "test".parse().expect("a name");
    let setup =
        Setup { schema: Arc::new(schema), device: device.clone(), executable: "test".to_owned(), progress: |_, _| {} };
    let stores = Stores::open(dir, setup, limits).expect("stores");
    let shutdown = CancellationToken::new();
    let tokens = Tokens::follow(TokenFile::in_dir(dir), shutdown.clone()).expect("tokens");
    let cookies = PairingCookies::new(&face, None);
    App::new(Services {
        embedding: None,
        pairings: Pairings::new(dir, None, cookies),
        probes: Default::default(),
        metrics: metrics::Metrics::new(&face),
        public_url: None,
        faults: Vec::new(),
        visitors: VisitorKey::in_dir(dir, false),
        face,
        snapshots: Snapshots::new(stores.clone(), shutdown.clone()),
        stores: stores.clone(),
        device,
        data: dir.to_owned(),
        pages: live::Pages::default(),
        shares: Shares::new(max_streams, limits),
        clients: Clients::new(
            stores,
            "test".parse().unwrap(),
            None,
            HistoryWanted::Full,
            Duration::ZERO,
            shutdown.clone(),
        ),
        hub: Hub::new(tokens, dir.to_owned(), None, shutdown.clone()),
        shutdown,
        anew: CancellationToken::new(),
    })
}

/// Asks routes, with or without the guard around them.
pub(crate) async fn ask<S>(site: &S, method: &str, path: &str) -> Response
where
    S: Service<Request<Body>, Response = Response, Error = Infallible> + Clone,
{
    let peer: SocketAddr = "127.0.0.1:50000".parse().expect("an address");
    let request = Request::builder().method(method).uri(path).header("host", "localhost");
    let came_in = guard::CameIn::Port { peer, own: peer };
    let request = request.extension(came_in).body(Body::empty()).expect("a request");
    site.clone().oneshot(request).await.expect("an answer")
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
    let router = protect(routes(Arc::clone(&app)).expect("routes"), Policy::default());
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
    let store = app.stores.get(&"likes".parse().expect("a name")).expect("the store");
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

#[tokio::test]
async fn what_visitors_make_by_an_apps_own_routes_counts_as_well() {
    async fn add(store: Store) -> (StatusCode, String) {
        match store.commit(LikeAdded {}).await {
            Ok(_) => (StatusCode::OK, String::new()),
            Err(error) => (StatusCode::CONFLICT, error.to_string()),
        }
    }
    async fn look(store: Store) -> String {
        store.read(count()).await.map_or_else(|error| error.to_string(), |count| count.to_string())
    }
    let dir = tempfile::tempdir().expect("a directory");
    let likes = crate::likes::app().routes(Router::new().route("/own", get(look).post(add)));
    let app = serving(likes, dir.path(), crate::likes::schema(), StoreLimits::default(), 8);
    // Who doesn't come by the guard is a visitor.
    let (visitor, owner) = (routes(Arc::clone(&app)).expect("routes"), Policy::of(&app.face));
    let owner = protect(visitor.clone(), owner);
    let text = async |answer: Response| {
        let bytes = axum::body::to_bytes(answer.into_body(), 1 << 20).await.expect("a body in memory");
        String::from_utf8(bytes.to_vec()).expect("text")
    };
    assert_eq!(text(ask(&visitor, "POST", "/s/first/own").await).await, "");
    let saved = &app.shares.visitors_stores;
    for _ in 0..99 {
        assert!(saved.take(&Who::Visitor, 1.0).is_ok(), "one was made");
    }
    let refused = text(ask(&visitor, "POST", "/s/second/own").await).await;
    assert!(refused.contains("as many new stores"), "{refused}");
    assert!(!dir.path().join("second").exists());
    assert_eq!(text(ask(&visitor, "GET", "/s/second/own").await).await, "0", "a look is free");
    assert_eq!(text(ask(&visitor, "POST", "/s/first/own").await).await, "", "those that exist go on");
    assert_eq!(text(ask(&owner, "POST", "/s/second/own").await).await, "", "the owner may");
    assert_eq!(text(ask(&visitor, "POST", "/s/second/own").await).await, "");
    assert_eq!(text(ask(&visitor, "GET", "/s/second/own").await).await, "2");
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
