//! What a like costs over HTTP, and how soon all pages are live again after a restart, compared with the least that a server on
//! the same libraries can do: an axum handler that reads the form, stores nothing, and answers with the same redirect; and one
//! whose streams say one thing.
//!
//! ```sh
//! cargo bench --bench http
//! cargo bench --bench http -- restart
//! BENCH_CONNECTIONS=8 BENCH_SECONDS=60 cargo bench --bench http
//! ```
//!
//! Each server is its own process: the release binary with its guard and limits, and this program again, which has neither. The
//! same client asks them in turns, and shares the machine with them. For likes, it keeps 64 connections busy with one request
//! each. For restarts, it follows the live stream of 6,000 pages, and comes back as the page's script does.

mod compare;

use std::convert::Infallible;
use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::response::Redirect;
use axum::response::sse::{Event, Sse};
use axum::routing::{get, post};
use compare::{Aim, Scale, compare, head, is_wanted, on_disk};
use futures_util::StreamExt as _;
use likewise::engine::EventId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

/// Set for the child process that serves without storing: where it listens.
const BE_EMPTY: &str = "BENCH_BE_EMPTY";

fn main() {
    if let Ok(listen) = env::var(BE_EMPTY) {
        return serve_nothing(&listen);
    }
    if is_wanted("http") {
        likes_over_http(Scale::asked_for());
    }
    if is_wanted("restart") {
        pages_after_a_restart(Scale::asked_for());
    }
}

fn likes_over_http(scale: Scale) {
    let connections = env::var("BENCH_CONNECTIONS").ok().and_then(|number| number.parse().ok()).unwrap_or(64);
    head("POST /likes, per like", "likewise", "nothing");
    let dir = on_disk();
    let mut likewise = Command::new(env!("CARGO_BIN_EXE_likewise"));
    likewise.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(dir.path()).env("LIKEWISE_LOG", "warn");
    let likewise = Server::start(&mut likewise);
    let this = env::current_exe().expect("the path of this program");
    let nothing = Server::start(Command::new(this).env(BE_EMPTY, "127.0.0.1:0"));

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("start tokio");
    let slice = scale.time(Duration::from_secs(1));
    let post = |server: &Server| runtime.block_on(post_likes(server.address, connections, slice));
    let mut likes = 0;
    let ours = || {
        let (posted, time) = post(&likewise);
        likes += posted;
        time.div_f64(posted as f64)
    };
    let plain = || {
        let (posted, time) = post(&nothing);
        time.div_f64(posted as f64)
    };
    compare(scale, &format!("over {connections} connections"), Aim::Speed(0.5), ours, plain);
    assert_eq!(likewise.count(), likes, "each answered like counts once");
}

fn pages_after_a_restart(scale: Scale) {
    raise_open_file_limit();
    head("kill, start, all pages are live", "likewise", "one event");
    // As many as one kind of reader may have where a process may open 20,000 files.
    let pages = scale.of(6_000);
    let dir = on_disk();
    let this = env::current_exe().expect("the path of this program");
    let mut likewise = |listen: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_likewise"));
        command.args(["serve", "--listen", listen, "--data"]).arg(dir.path()).env("LIKEWISE_LOG", "error");
        Server::start(&mut command)
    };
    let mut plain = |listen: &str| Server::start(Command::new(&this).env(BE_EMPTY, listen));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("start tokio");
    compare(
        scale,
        &format!("{pages} pages"),
        Aim::None,
        || runtime.block_on(live_again(&mut likewise, pages)),
        || runtime.block_on(live_again(&mut plain, pages)),
    );
}

/// Has `pages` follow a server, kills that, and starts it again. Returns the time from then until the last page is live.
async fn live_again(serve: &mut impl FnMut(&str) -> Server, pages: usize) -> Duration {
    let server = serve("127.0.0.1:0");
    let address = server.address;
    let mut following: JoinSet<TcpStream> = (0..pages).map(|_| follow(address)).collect();
    let mut streams = Vec::with_capacity(pages);
    while let Some(stream) = following.join_next().await {
        streams.push(stream.expect("a page"));
    }
    drop(server);
    let start = Instant::now();
    let mut back: JoinSet<TcpStream> = JoinSet::new();
    for mut stream in streams {
        back.spawn(async move {
            while matches!(stream.read(&mut [0; 4096]).await, Ok(1..)) {}
            follow(address).await
        });
    }
    let _server = serve(&address.to_string());
    let mut streams = Vec::with_capacity(pages);
    while let Some(stream) = back.join_next().await {
        streams.push(stream.expect("a page"));
    }
    start.elapsed()
}

/// Opens the live stream as the page's script does: after each failure it waits twice as long as before, less up to a half by
/// chance. Returns the stream after its first event.
async fn follow(address: SocketAddr) -> TcpStream {
    let request = format!("GET /live HTTP/1.1\r\nHost: {address}\r\nAccept: text/event-stream\r\n\r\n");
    let begin = async || {
        let mut stream = TcpStream::connect(address).await.ok()?;
        stream.write_all(request.as_bytes()).await.ok()?;
        let (mut heard, mut piece) = (Vec::new(), [0; 4096]);
        while !heard.windows(2).any(|pair| pair == b"\n\n") {
            let read = stream.read(&mut piece).await.ok().filter(|read| *read > 0)?;
            heard.extend_from_slice(&piece[..read]);
            assert!(heard.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&heard));
        }
        Some(stream)
    };
    let mut pause: f64 = 300.0;
    loop {
        if let Ok(Some(stream)) = tokio::time::timeout(Duration::from_secs(5), begin()).await {
            return stream;
        }
        let chance = f64::from(uuid::Uuid::new_v4().as_bytes()[0]) / 255.0;
        tokio::time::sleep(Duration::from_secs_f64(pause / 1e3 * (1.0 - chance / 2.0))).await;
        pause = (2.0 * pause).min(5_000.0);
    }
}

/// Lets this program, and the servers that it starts, have as many files open as the system allows.
fn raise_open_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).expect("more open files");
}

/// Posts likes over `connections` for the time of `slice`. Returns how many were answered, and how long that took.
async fn post_likes(address: SocketAddr, connections: usize, slice: Duration) -> (u64, Duration) {
    let mut streams = Vec::new();
    for _ in 0..connections {
        let stream = TcpStream::connect(address).await.expect("connect");
        stream.set_nodelay(true).expect("send at once");
        streams.push(stream);
    }
    let start = Instant::now();
    let end = start + slice;
    let mut workers: JoinSet<u64> = streams.into_iter().map(|stream| post_until(stream, address, end)).collect();
    let mut posted = 0;
    while let Some(of_one) = workers.join_next().await {
        posted += of_one.expect("a worker");
    }
    (posted, start.elapsed())
}

/// Posts one like after the other until `end`, each as a form with its own id. Returns how many.
async fn post_until(mut stream: TcpStream, address: SocketAddr, end: Instant) -> u64 {
    let mut request = format!(
        "POST /likes HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/x-www-form-urlencoded\r\n\
         Content-Length: 39\r\n\r\nid="
    )
    .into_bytes();
    let at = request.len();
    let mut answer = [0; 2048];
    let mut posted = 0;
    while Instant::now() < end {
        request.truncate(at);
        write!(request, "{}", EventId::now()).expect("write to memory");
        stream.write_all(&request).await.expect("send");
        // The answer is a redirect without a body, so it ends with its head.
        let mut length = 0;
        while !answer[..length].ends_with(b"\r\n\r\n") {
            let read = stream.read(&mut answer[length..]).await.expect("receive");
            assert!(read > 0, "the server hung up: {}", String::from_utf8_lossy(&answer[..length]));
            length += read;
        }
        assert!(answer.starts_with(b"HTTP/1.1 303"), "{}", String::from_utf8_lossy(&answer[..length]));
        posted += 1;
    }
    posted
}

/// A server in its own process, which ends when this value is dropped.
struct Server {
    process: Child,
    address: SocketAddr,
}

impl Server {
    /// Starts it, and waits for the line that says where it listens.
    fn start(command: &mut Command) -> Self {
        let mut process = command.stdout(Stdio::piped()).spawn().expect("start a server");
        let mut line = String::new();
        let stdout = process.stdout.take().expect("its output");
        BufReader::new(stdout).read_line(&mut line).expect("read its output");
        let address = line.trim().strip_prefix("listening on http://").and_then(|address| address.parse().ok());
        Self { process, address: address.unwrap_or_else(|| panic!("not an address: {line}")) }
    }

    /// How many likes it says there are.
    fn count(&self) -> u64 {
        let mut stream = std::net::TcpStream::connect(self.address).expect("connect");
        let request = format!("GET /status HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address);
        stream.write_all(request.as_bytes()).expect("send");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("receive");
        let (_, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status: serde_json::Value = serde_json::from_str(body).expect("JSON");
        status["count"].as_u64().unwrap_or_else(|| panic!("no count: {answer}"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// The server that stores nothing, and whose streams say one thing. It has no guard, no limits, and no headers except those that
/// it needs.
fn serve_nothing(listen: &str) {
    let like = async |body: Bytes| match form_urlencoded::parse(&body).find(|(name, _)| name == "id") {
        Some((_, id)) if id.parse::<EventId>().is_ok() => Ok(Redirect::to("/")),
        _ => Err(StatusCode::BAD_REQUEST),
    };
    let live = async || {
        let once = futures_util::stream::once(async { Ok::<_, Infallible>(Event::default().data("0")) });
        Sse::new(once.chain(futures_util::stream::pending()))
    };
    let router = Router::new().route("/likes", post(like)).route("/live", get(live));
    let serve = async {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("the port of the one before");
        socket.bind(listen.parse().expect("an address")).expect("a free port");
        let listener = socket.listen(4_096).expect("listen");
        println!("listening on http://{}", listener.local_addr().expect("an address"));
        axum::serve(listener, router).await.expect("serve");
    };
    tokio::runtime::Runtime::new().expect("start tokio").block_on(serve);
}
