//! Servers to compare with: each does the least that its part of likewise could do on the same libraries.

use std::convert::Infallible;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Redirect};
use axum::routing::{get, post};
use futures_util::stream;
use likewise::engine::EventId;
use rusqlite::{Connection, params};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{mpsc, oneshot, watch};

/// As many posts as the prototype commits together, and as many as may wait for it.
const TOGETHER: usize = 1_024;
const QUEUE: usize = 8_192;

/// As many connections as may wait to be accepted, if the system allows it.
const BACKLOG: u32 = 8_192;

/// A like on its way to the prototype's thread, and whom to tell.
type Like = (EventId, oneshot::Sender<()>);

/// Keeps the number of likes in memory and tells it to every stream.
pub(super) fn in_memory(listen: &str) {
    let (counts, shown) = watch::channel(0);
    let like = move |body: Bytes| {
        let id = id(&body);
        if id.is_some() {
            counts.send_modify(|count| *count += 1);
        }
        async move { id.map(|_| Redirect::to("/")).ok_or(StatusCode::BAD_REQUEST) }
    };
    serve(listen, Router::new().route("/likes", post(like)).route("/live", get(move || live(shown.clone()))));
}

/// Stores likes by one thread, a group of them at a time.
pub(super) fn grouped(dir: &Path) {
    let (likes, waiting) = mpsc::channel::<Like>(QUEUE);
    let (counts, shown) = watch::channel(0);
    let (events, state) = (
        open(dir, "events.db", "FULL", "CREATE TABLE log (seq INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE,
            name INTEGER NOT NULL, origin INTEGER NOT NULL, args TEXT) STRICT"),
        open(dir, "state.db", "NORMAL", "CREATE TABLE likes (id INTEGER PRIMARY KEY, count INTEGER NOT NULL) STRICT;
            INSERT INTO likes VALUES (1, 0);
            CREATE TABLE cursor (id INTEGER PRIMARY KEY, seq INTEGER NOT NULL) STRICT; INSERT INTO cursor VALUES (1, 0);"),
    );
    std::thread::spawn(move || store(&events, &state, waiting, &counts));
    let like = move |body: Bytes| {
        let likes = likes.clone();
        async move {
            let id = id(&body).ok_or(StatusCode::BAD_REQUEST)?;
            let (tell, told) = oneshot::channel();
            likes.send((id, tell)).await.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
            told.await.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
            Ok::<_, StatusCode>(Redirect::to("/"))
        }
    };
    let router = Router::new().route("/likes", post(like)).route("/live", get(move || live(shown.clone())));
    serve("127.0.0.1:0", router);
}

fn store(events: &Connection, state: &Connection, mut waiting: mpsc::Receiver<Like>, counts: &watch::Sender<u64>) {
    let on = |conn: &Connection, sql| conn.execute_batch(sql).expect("begin or commit");
    let mut insert = events.prepare("INSERT INTO log (id, name, origin) VALUES (?1, 1, 1)").expect("prepare");
    let mut update = state.prepare("UPDATE likes SET count = count + 1 WHERE id = 1").expect("prepare");
    let mut advance = state.prepare("UPDATE cursor SET seq = ?1").expect("prepare");
    let mut query = state.prepare("SELECT count FROM likes WHERE id = 1").expect("prepare");
    let mut group: Vec<Like> = Vec::new();
    while waiting.blocking_recv_many(&mut group, TOGETHER) > 0 {
        on(events, "BEGIN IMMEDIATE");
        for (id, _) in &group {
            insert.execute(params![id.as_bytes()]).expect("insert");
        }
        on(events, "COMMIT");
        on(state, "BEGIN IMMEDIATE");
        for _ in &group {
            update.execute(()).expect("update");
        }
        advance.execute([events.last_insert_rowid()]).expect("update");
        on(state, "COMMIT");
        counts.send_replace(query.query_row((), |row| row.get(0)).expect("count"));
        for (_, tell) in group.drain(..) {
            // Whoever hung up needs no answer.
            let _ = tell.send(());
        }
    }
}

fn open(dir: &Path, file: &str, synchronous: &str, sql: &str) -> Connection {
    let conn = Connection::open(dir.join(file)).expect("open");
    conn.query_row("PRAGMA journal_mode = WAL", (), |_| Ok(())).expect("use a WAL");
    conn.pragma_update(None, "synchronous", synchronous).expect("set the durability");
    conn.execute_batch(sql).expect("make the tables");
    conn
}

/// The id in a form.
fn id(body: &[u8]) -> Option<EventId> {
    form_urlencoded::parse(body).find(|(name, _)| name == "id")?.1.parse().ok()
}

/// Shows a count as the page of likewise does.
fn shown(count: u64) -> String {
    format!(r#"<output id="count" data-count="{count}">{count}</output>"#)
}

/// Tells the count now, and whenever it is another one.
async fn live(counts: watch::Receiver<u64>) -> impl IntoResponse {
    let events = stream::unfold((counts, true), async |(mut counts, is_first)| {
        if !is_first {
            counts.changed().await.ok()?;
        }
        let count = *counts.borrow_and_update();
        Some((Ok::<_, Infallible>(Event::default().event("likes").data(shown(count))), (counts, false)))
    });
    Sse::new(events).keep_alive(KeepAlive::default())
}

/// Answers the page with the head and the body in a file.
pub(super) fn file(path: &Path) {
    let answer = std::fs::read_to_string(path).expect("read the answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let headers: Vec<(HeaderName, HeaderValue)> = head
        .lines()
        .filter_map(|line| line.split_once(": "))
        // The server adds these by itself.
        .filter(|(name, _)| !["connection", "content-length", "date"].contains(&name.to_ascii_lowercase().as_str()))
        .map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value")))
        .collect();
    let (headers, body) = (Arc::new(headers), Bytes::from(body.to_owned()));
    let page = move || {
        let (headers, body) = (Arc::clone(&headers), body.clone());
        async move {
            let mut answer = body.into_response();
            answer.headers_mut().extend(headers.iter().cloned());
            answer
        }
    };
    serve("127.0.0.1:0", Router::new().route("/", get(page)));
}

/// Keeps the number of likes in memory. Each connection has a task that reads requests only as far as these loads go.
pub(super) fn tasks() {
    let frame = |count| Arc::new(format!("event: likes\ndata: {}\n\n", shown(count)).into_bytes());
    let (frames, _) = watch::channel((0, frame(0)));
    run(async move {
        let listener = listen("127.0.0.1:0");
        loop {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let frames = frames.clone();
            tokio::spawn(async move {
                let mut request = [0; 512];
                loop {
                    let Ok(1..) = stream.read(&mut request).await else { return };
                    if !request.starts_with(b"POST") {
                        break;
                    }
                    frames.send_modify(|(count, bytes)| {
                        *count += 1;
                        *bytes = frame(*count);
                    });
                    let answer = b"HTTP/1.1 303 See Other\r\nlocation: /\r\ncontent-length: 0\r\n\r\n";
                    if stream.write_all(answer).await.is_err() {
                        return;
                    }
                }
                let mut frames = frames.subscribe();
                let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
                if stream.write_all(head).await.is_err() {
                    return;
                }
                loop {
                    let frame = Arc::clone(&frames.borrow_and_update().1);
                    if stream.write_all(&frame).await.is_err() || frames.changed().await.is_err() {
                        return;
                    }
                }
            });
        }
    });
}

fn serve(at: &str, router: Router) {
    run(async { axum::serve(listen(at), router).await.expect("serve") });
}

/// Listens, and says where, as likewise does.
fn listen(at: &str) -> TcpListener {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_reuseaddr(true).expect("the port of the one before");
    socket.bind(at.parse().expect("an address")).expect("a free port");
    let listener = socket.listen(BACKLOG).expect("listen");
    println!("listening on http://{}", listener.local_addr().expect("an address"));
    std::io::stdout().flush().expect("say it");
    listener
}

fn run(server: impl Future<Output = ()>) {
    tokio::runtime::Runtime::new().expect("start tokio").block_on(server);
}
