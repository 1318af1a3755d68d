//! The server under peers that are slow, many, silent or gone.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::header::{self, HeaderName};
use axum::routing::{get, post};
use futures_util::stream::{self, Stream, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::*;
use crate::web::guard::{BodyRule, Patience, Policy, protect};

const GET: &str = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
const GET_AND_CLOSE: &str = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
const GET_LIVE: &str = "GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// More bytes than go out at once.
const LARGE: usize = 2 << 20;

/// A server on a port of its own, behind the real guard.
struct Server {
    address: SocketAddr,
    shutdown: CancellationToken,
    serving: JoinHandle<()>,
    /// Lets the handlers of `/wait` answer.
    release: Arc<Notify>,
    /// Requests that arrived at `/wait`.
    waiting: Arc<AtomicUsize>,
    /// Endless bodies that are still held.
    bodies: Arc<AtomicUsize>,
}

impl Server {
    async fn start(limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let shutdown = CancellationToken::new();
        let release = Arc::new(Notify::new());
        let waiting = Arc::new(AtomicUsize::new(0));
        let bodies = Arc::new(AtomicUsize::new(0));

        let live = {
            let (bodies, shutdown) = (bodies.clone(), shutdown.clone());
            move || {
                let ended = shutdown.clone().cancelled_owned();
                let updates = stream::iter([&b"data: 1\n\n"[..]]).chain(stream::pending());
                std::future::ready(event_stream(body(&bodies, updates.take_until(ended))))
            }
        };
        let deaf = {
            let bodies = bodies.clone();
            move || {
                let endless = stream::iter([&b"on and on"[..]]).chain(stream::pending());
                std::future::ready(event_stream(body(&bodies, endless)))
            }
        };
        let download = {
            let bodies = bodies.clone();
            move || std::future::ready(body(&bodies, stream::repeat(&[b'x'; 65_536][..])))
        };
        let flood = {
            let download = download.clone();
            move || std::future::ready(event_stream(download().into_inner()))
        };
        let wait = {
            let (release, waiting) = (release.clone(), waiting.clone());
            move || async move {
                let released = release.notified();
                waiting.fetch_add(1, Ordering::SeqCst);
                released.await;
                "waited"
            }
        };
        let router = Router::new()
            .route("/", get(|| async { "hello" }))
            .route("/live", get(live))
            .route("/deaf", get(deaf))
            .route("/flood", get(flood))
            .route("/download", get(download))
            .route("/large", get(|| async { Bytes::from_static(&[b'y'; LARGE]) }))
            .route("/wait", get(wait))
            .route("/likes", post(|body: Bytes| async move { body.len().to_string() }));
        let policy = Policy {
            form: BodyRule { max_bytes: Some(4096), patience: Patience::Total(limits.header_read) },
            ..Policy::default()
        };
        let serving = tokio::spawn(serve(listener.into(), protect(router, policy), limits, shutdown.clone()));
        Self { address, shutdown, serving, release, waiting, bodies }
    }

    async fn connect(&self) -> TcpStream {
        within(TcpStream::connect(self.address)).await.expect("a connection")
    }

    async fn connect_and_send(&self, text: &str) -> TcpStream {
        let mut stream = self.connect().await;
        stream.write_all(text.as_bytes()).await.expect("sent");
        stream
    }

    /// Sends everything, then reads to the end, as a simple client does.
    async fn ask(&self, text: &str) -> String {
        read_to_end(self.connect_and_send(text).await).await
    }

    async fn stop(self) {
        self.shutdown.cancel();
        within(self.serving).await.expect("no panic");
        assert_eq!(self.bodies.load(Ordering::SeqCst), 0, "bodies leaked");
    }
}

fn event_stream(body: Body) -> ([(HeaderName, &'static str); 1], Body) {
    ([(header::CONTENT_TYPE, "text/event-stream")], body)
}

fn body(held: &Arc<AtomicUsize>, pieces: impl Stream<Item = &'static [u8]> + Send + 'static) -> Body {
    struct Held(Arc<AtomicUsize>);
    impl Drop for Held {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
    held.fetch_add(1, Ordering::SeqCst);
    let held = Held(held.clone());
    Body::from_stream(pieces.map(move |piece| {
        let _held = &held;
        Ok::<_, Infallible>(Bytes::from_static(piece))
    }))
}

/// Far more than anything here takes, so that only a hang fails.
async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(60), future).await.expect("this should not take a minute")
}

async fn until(condition: impl Fn() -> bool) {
    within(async {
        while !condition() {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// What the server says until it closes. A reset counts as a close, because to the client it is one.
async fn read_to_end(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = within(stream.read_to_end(&mut bytes)).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn read_until(stream: &mut TcpStream, ending: &str) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(ending.as_bytes()) {
        let byte = within(stream.read_u8()).await;
        bytes.push(byte.unwrap_or_else(|error| panic!("{error} after {}", String::from_utf8_lossy(&bytes))));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn status(answer: &str) -> &str {
    answer.get(9..12).unwrap_or("no answer")
}

/// Short where a test waits for a limit, long where reaching one would be a failure.
fn short() -> Limits {
    let brief = Duration::from_millis(300);
    Limits { header_read: brief, idle: brief, drain: Duration::from_secs(60), ..Limits::default() }
}

fn patient() -> Limits {
    Limits { header_read: Duration::from_secs(60), drain: Duration::from_secs(60), ..Limits::default() }
}

#[tokio::test]
async fn a_connection_that_has_asked_may_rest_longer_than_a_head_may_take() {
    let server = Server::start(Limits { idle: Duration::from_secs(60), ..short() }).await;
    let mut resting = server.connect_and_send(GET).await;
    assert_eq!(status(&read_until(&mut resting, "hello").await), "200");
    assert_eq!(server.ask("").await, "", "one that never asks is given up");
    let mut slow = server.connect_and_send(GET).await;
    read_until(&mut slow, "hello").await;
    slow.write_all(b"GET / HTTP/1.1\r\n").await.expect("sent");
    assert_eq!(read_to_end(slow).await, "", "so is one that begins to ask and stops");
    resting.write_all(GET.as_bytes()).await.expect("sent");
    assert_eq!(status(&read_until(&mut resting, "hello").await), "200");
    server.stop().await;
}

#[tokio::test]
async fn a_connection_serves_one_request_after_the_other() {
    let server = Server::start(patient()).await;
    let mut stream = server.connect().await;
    for _ in 0..3 {
        stream.write_all(GET.as_bytes()).await.expect("sent");
        assert_eq!(status(&read_until(&mut stream, "hello").await), "200");
    }
    let head = "HEAD /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("sent");
    let answer = read_until(&mut stream, "\r\n\r\n").await;
    assert_eq!(status(&answer), "404");
    assert!(!answer.contains("content-length: 0"), "{answer}");
    stream.write_all(GET_AND_CLOSE.as_bytes()).await.expect("sent");
    let answer = read_to_end(stream).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    server.stop().await;
}

#[tokio::test]
async fn trust_34_hosts_are_checked_on_the_wire() {
    let server = Server::start(patient()).await;
    for (request, expected) in [
        ("GET / HTTP/1.1\r\nHost: evil.example\r\n", "403"),
        ("GET / HTTP/1.1\r\nHost:\r\n", "403"),
        ("GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n", "400"),
        ("GET / HTTP/1.1\r\n", "400"),
        ("GET / HTTP/1.0\r\n", "400"),
        ("GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n", "403"),
        ("GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\n", "200"),
        ("CONNECT evil.example:80 HTTP/1.1\r\nHost: evil.example:80\r\n", "403"),
        ("CONNECT localhost:80 HTTP/1.1\r\nHost: localhost:80\r\n", "404"),
        ("OPTIONS * HTTP/1.1\r\nHost: localhost\r\n", "404"),
        ("TRACE / HTTP/1.1\r\nHost: localhost\r\n", "405"),
    ] {
        let answer = server.ask(&format!("{request}Connection: close\r\n\r\n")).await;
        assert_eq!(status(&answer), expected, "{request} {answer}");
        for (name, value) in SECURITY_HEADERS {
            let header = format!("{name}: {value}\r\n");
            assert!(answer.contains(&header), "{request} {answer}");
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trust_39_sockets_that_say_nothing_are_closed_and_honest_clients_served() {
    raise_open_file_limit();
    let server = Server::start(short()).await;
    let slow_body = "POST /likes HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nxx";
    let slow_chunks = "POST /likes HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nxx\r\n";
    let mut held = Vec::new();
    for opening in ["", "\r\n\r\n", "GET / HT", &GET[..GET.len() - 2], GET, slow_body, slow_chunks] {
        for _ in 0..30 {
            held.push((opening, server.connect_and_send(opening).await));
        }
    }
    // Some keep sending, a byte at a time, and get no more time for it.
    let mut dripping = server.connect_and_send("GET /").await;
    let drip = tokio::spawn(async move {
        while dripping.write_all(b"x").await.is_ok() {
            sleep(Duration::from_millis(20)).await;
        }
    });

    assert_eq!(status(&server.ask(GET_AND_CLOSE).await), "200");
    for (opening, stream) in held {
        let answer = read_to_end(stream).await;
        let expected = match opening {
            GET => "200",
            opening if opening.starts_with("POST") => "408",
            _ => "no answer",
        };
        assert_eq!(status(&answer), expected, "{opening:?} {answer}");
    }
    within(drip).await.expect("no panic");
    assert_eq!(status(&server.ask(GET_AND_CLOSE).await), "200");
    server.stop().await;
}

#[tokio::test]
async fn trust_40_what_is_too_large_gets_an_answer_that_arrives() {
    let server = Server::start(Limits { linger: Duration::from_secs(60), ..patient() }).await;
    let big = "x".repeat(5 << 20);
    let head = |more: &str| format!("POST /likes HTTP/1.1\r\nHost: localhost\r\n{more}\r\n");
    let declared = head(&format!("Content-Length: {}\r\n", big.len())) + &big;
    let chunked = head("Transfer-Encoding: chunked\r\n") + &format!("{:x}\r\n{big}\r\n0\r\n\r\n", big.len());
    let unsent = head("Content-Length: 5000\r\nExpect: 100-continue\r\n");
    let long_uri = format!("GET /?{} HTTP/1.1\r\nHost: localhost\r\n\r\n", &big[..9000]);
    let cookies = head(&format!("Cookie: {}\r\n", &big[..40_000]));
    let endless = head(&format!("Cookie: {big}\r\n"));
    let many = head(&"A: b\r\n".repeat(101));
    for (name, request, expected) in [
        ("declared", declared, "413"),
        ("chunked", chunked, "413"),
        ("unsent", unsent, "413"),
        ("long URI", long_uri, "414"),
        ("cookies", cookies, "431"),
        ("endless", endless, "431"),
        ("many", many, "431"),
    ] {
        let mut stream = server.connect().await;
        // A reset would fail the sending, and some systems then also throw away the answer.
        let sent = within(stream.write_all(request.as_bytes())).await;
        assert!(sent.is_ok(), "{name} {sent:?}");
        let answer = read_until(&mut stream, "\r\n\r\n").await;
        assert_eq!(status(&answer), expected, "{name}");
    }
    server.stop().await;
}

#[tokio::test]
async fn full_means_a_clear_refusal_until_there_is_room() {
    let server = Server::start(Limits { connections: 2, ..patient() }).await;
    let wait = "GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut first = server.connect_and_send(wait).await;
    let mut second = server.connect_and_send(wait).await;
    until(|| server.waiting.load(Ordering::SeqCst) == 2).await;

    let refusal = read_to_end(server.connect().await).await;
    assert_eq!(status(&refusal), "503");
    assert!(refusal.contains("retry-after: 1\r\n") && refusal.contains("nosniff"));
    server.release.notify_waiters();
    for stream in [&mut first, &mut second] {
        assert_eq!(status(&read_until(stream, "waited").await), "200");
    }

    // Both are idle now, and so they make room for whoever comes.
    for _ in 0..3 {
        assert_eq!(status(&server.ask(GET_AND_CLOSE).await), "200");
    }
    assert_eq!(read_to_end(first).await, "");
    drop(second);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trust_39_who_keeps_us_waiting_makes_room_for_who_does_not() {
    let server = Server::start(Limits { connections: 30, ..patient() }).await;
    let slow_body = "POST /likes HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nxx";
    let flood = "GET /flood HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut live = server.connect_and_send(GET_LIVE).await;
    read_until(&mut live, "data: 1\n\n\r\n").await;
    let mut held = Vec::new();
    for round in 0..20 {
        for opening in ["", "GET / HT", GET, slow_body, flood] {
            held.push(server.connect_and_send(opening).await);
        }
        assert_eq!(status(&server.ask(GET_AND_CLOSE).await), "200", "round {round}");
    }
    server.shutdown.cancel();
    assert_eq!(read_to_end(live).await, "0\r\n\r\n", "a stream that reads was never in the way");
    drop(held);
    server.stop().await;
}

#[tokio::test]
async fn trust_64_what_can_be_read_in_two_ways_is_refused_and_nothing_behind_it_is_read() {
    let server = Server::start(patient()).await;
    let head = "POST /likes HTTP/1.1\r\nHost: localhost\r\n";
    let behind = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    for fault in [
        "A: b\n\r\n",
        "\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Content-Length: 0\r\nContent-Length: 0\r\n\r\n",
        "Transfer-Encoding: identity\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n0\n\r\n",
    ] {
        let answer = server.ask(&format!("{head}{fault}{behind}")).await;
        assert_eq!(status(&answer), "400", "{fault:?} {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{fault:?} {answer}");
    }
    let whole = format!("{head}Transfer-Encoding: chunked\r\n\r\n2\r\nxx\r\n0\r\n\r\n{behind}");
    assert_eq!(server.ask(&whole).await.matches("HTTP/1.1 200 ").count(), 2);
    server.stop().await;
}

#[tokio::test]
async fn trust_64_what_is_to_be_taken_within_a_time_is_taken_or_the_connection_ends() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let deaf = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("a connection");
    let (stream, _) = listener.accept().await.expect("a connection");
    let connection = Lobby::new().enter(false);
    let mut socket = Socket::new(listener::of_port(stream), connection.clone(), Limits::default());
    connection.must_take_within(Duration::from_millis(100));
    let block = [0; 65_536];
    let error = within(async {
        loop {
            if let Err(error) = socket.write_all(&block).await {
                return error;
            }
        }
    });
    assert_eq!(error.await.kind(), io::ErrorKind::TimedOut);
    drop(deaf);
}

#[tokio::test]
async fn trust_47_shutdown_ends_streams_and_lets_requests_finish() {
    let server = Server::start(patient()).await;
    let mut streams = Vec::new();
    for _ in 0..50 {
        let mut stream = server.connect_and_send(GET_LIVE).await;
        read_until(&mut stream, "data: 1\n\n\r\n").await;
        streams.push(stream);
    }
    let mut in_flight = Vec::new();
    for _ in 0..20 {
        let request = "GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n";
        in_flight.push(server.connect_and_send(request).await);
    }
    let idle = {
        let mut idle = server.connect_and_send(GET).await;
        read_until(&mut idle, "hello").await;
        idle
    };
    let silent = server.connect().await;
    until(|| server.waiting.load(Ordering::SeqCst) == 20).await;

    server.shutdown.cancel();
    for stream in streams {
        assert_eq!(read_to_end(stream).await, "0\r\n\r\n");
    }
    assert_eq!(read_to_end(idle).await, "");
    assert_eq!(read_to_end(silent).await, "");
    assert!(!server.serving.is_finished());
    server.release.notify_waiters();
    for stream in in_flight {
        assert!(read_to_end(stream).await.ends_with("waited"));
    }
    let address = server.address;
    server.stop().await;
    TcpStream::connect(address).await.expect_err("nobody listens");
}

#[tokio::test]
async fn shutdown_answers_what_was_sent_before_it() {
    let server = Server::start(Limits { last_call: Duration::from_secs(2), ..patient() }).await;
    let mut sent = Vec::new();
    for _ in 0..20 {
        sent.push(server.connect_and_send(GET_AND_CLOSE).await);
    }
    server.shutdown.cancel();
    for stream in sent {
        assert_eq!(status(&read_to_end(stream).await), "200");
    }
    server.stop().await;
}

#[tokio::test]
async fn shutdown_cuts_off_whoever_does_not_end() {
    let server = Server::start(Limits { drain: Duration::from_millis(200), ..patient() }).await;
    let mut streams = Vec::new();
    for path in ["/deaf", "/flood", "/download", "/live"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        streams.push(server.connect_and_send(&request).await);
    }
    streams.push(server.connect_and_send("GET / HTTP/1.1\r\nHo").await);
    until(|| server.bodies.load(Ordering::SeqCst) == 4).await;
    server.stop().await;
    drop(streams);
}

#[tokio::test]
async fn a_stream_begins_after_all_earlier_answers_and_nothing_is_answered_behind_it() {
    let server = Server::start(patient()).await;
    let large = "GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut stream = server.connect_and_send(&[GET, large, GET_LIVE, GET].concat()).await;
    let answers = read_until(&mut stream, "data: 1\n\n\r\n").await;
    assert_eq!(answers.matches("hello").count(), 1);
    let large = "y".repeat(LARGE);
    assert!(answers.contains(&large), "the earlier answer is whole");
    stream.write_all(GET.as_bytes()).await.expect("sent");
    // What it sends is ignored, but not for ever.
    while stream.write_all(&[b'x'; 1_024]).await.is_ok() && server.bodies.load(Ordering::SeqCst) > 0 {}
    until(|| server.bodies.load(Ordering::SeqCst) == 0).await;
    let rest = read_to_end(stream).await;
    assert!(!rest.contains("hello"), "{rest}");
    server.stop().await;
}

#[tokio::test]
async fn peers_that_take_nothing_or_hang_up_hold_nothing() {
    let server = Server::start(Limits { write_stall: Duration::from_millis(200), ..patient() }).await;
    let deaf = "GET /deaf HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut stalled = Vec::new();
    for path in ["/flood", "/download"] {
        stalled.push(server.connect_and_send(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await);
    }
    let mut quiet = server.connect_and_send(deaf).await;
    read_until(&mut quiet, "on and on\r\n").await;
    // Nothing to send is no stall: the quiet stream stays.
    until(|| server.bodies.load(Ordering::SeqCst) == 1).await;
    drop(quiet);
    until(|| server.bodies.load(Ordering::SeqCst) == 0).await;
    drop(stalled);
    server.stop().await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn trust_26_the_system_gives_up_a_link_that_is_down() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let stream = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("a connection");
    let stream = listener::of_port(stream);
    set_up(&stream, Limits::default()).expect("a connection that is set up");
    let stream = tcp(&stream).expect("a port's");
    let millis = rustix::net::sockopt::tcp_user_timeout(stream).expect("the limit");
    assert_eq!(Duration::from_millis(millis.into()), Limits::default().unacknowledged);
}

#[tokio::test(start_paused = true)]
async fn accept_errors_are_logged_seldom_and_slept_over() {
    let mut errors = AcceptErrors::default();
    let start = Instant::now();
    errors.pause_after(&io::Error::from_raw_os_error(24)).await;
    assert!(start.elapsed() >= Duration::from_millis(50));
    let logged = errors.last_logged;
    errors.pause_after(&io::ErrorKind::ConnectionAborted.into()).await;
    assert_eq!(errors.last_logged, logged);
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[test]
fn connections_leave_files_to_the_stores() {
    for (open_files, connections) in [(None, 17_000), (Some(1 << 20), 17_000), (Some(1_024), 512), (Some(1), 1)] {
        let limits = Limits::default().within_open_files(open_files);
        assert_eq!(limits.connections, connections);
    }
    for (open_files, stores, streams) in
        [(None, 512, 13_750), (Some(1 << 20), 512, 13_750), (Some(256), 16, 106), (Some(1), 1, 0)]
    {
        assert_eq!(stores_within_open_files(512, open_files), stores);
        assert_eq!(Limits::default().within_open_files(open_files).streams(13_750), streams);
    }
    let raised = raise_open_file_limit();
    assert_eq!(raise_open_file_limit(), raised);
}
