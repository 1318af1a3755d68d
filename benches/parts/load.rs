//! A load of requests on a few connections, each of which is busy with one request at a time.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use likewise::engine::EventId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

use super::{Answered, Plan, What};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Carries out a plan, and prints what came of it.
pub(super) fn ask(plan: Plan) {
    let answered = runtime().block_on(ask_all(&plan));
    println!("{}", serde_json::to_string(&answered).expect("JSON"));
}

/// A runtime that needs no more than one of the machine's processors.
pub(super) fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("start tokio")
}

async fn ask_all(plan: &Plan) -> Answered {
    let address: SocketAddr = plan.address.parse().expect("an address");
    let mut connections = Vec::new();
    for _ in 0..plan.connections {
        connections.push(Connection::open(address).await);
    }
    let start = Instant::now();
    let (plan, sent) = (Arc::new(plan.clone()), Arc::new(AtomicU64::new(0)));
    let mut asking = JoinSet::new();
    for connection in connections {
        let (plan, sent) = (Arc::clone(&plan), Arc::clone(&sent));
        asking.spawn(async move { ask_until_the_end(connection, &plan, start, &sent).await });
    }
    let mut times = Vec::new();
    while let Some(of_one) = asking.join_next().await {
        times.extend(of_one.expect("no panic"));
    }
    let seconds = start.elapsed().as_secs_f64();
    let [p50, p99] = percentiles(&mut times);
    Answered { count: times.len() as u64, seconds, p50, p99 }
}

/// Sends one request after the other. Returns how long each took.
async fn ask_until_the_end(mut on: Connection, plan: &Plan, start: Instant, sent: &AtomicU64) -> Vec<Duration> {
    let mut times = Vec::new();
    let end = start + Duration::from_secs_f64(plan.seconds);
    loop {
        let n = sent.fetch_add(1, Ordering::Relaxed);
        let due = plan.rate.map(|rate| start + Duration::from_secs_f64(n as f64 / rate));
        if n >= plan.most || due.unwrap_or(start).max(Instant::now()) >= end {
            return times;
        }
        let begin = due_or_now(due).await;
        match plan.what {
            What::Likes => on.like().await,
            What::Page => on.page().await,
        }
        times.push(begin.elapsed());
    }
}

/// Waits until a request is due. Returns the time from which its answer is waited for: if all connections were busy when it was
/// due, it has waited for them, too.
pub(super) async fn due_or_now(due: Option<Instant>) -> Instant {
    match due {
        Some(due) if due <= Instant::now() => due,
        Some(due) => {
            sleep_until(due.into()).await;
            // That a timer is late is this program's doing.
            Instant::now()
        }
        None => Instant::now(),
    }
}

/// The middle, and what one in a hundred takes longer than, in seconds.
pub(super) fn percentiles(times: &mut [Duration]) -> [f64; 2] {
    assert!(!times.is_empty(), "nothing was answered");
    times.sort_unstable();
    [times[times.len() / 2], times[times.len() * 99 / 100]].map(|time| time.as_secs_f64())
}

/// A connection that stays open.
pub(super) struct Connection {
    stream: TcpStream,
    /// The head of a like, and its body as far as the id.
    like: Vec<u8>,
    page: Vec<u8>,
    answer: Vec<u8>,
}

impl Connection {
    pub(super) async fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("connect");
        stream.set_nodelay(true).expect("send at once");
        let like = format!(
            "POST /likes HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/x-www-form-urlencoded\r\n\
             Content-Length: 39\r\n\r\nid="
        );
        let page = format!("GET / HTTP/1.1\r\nHost: {address}\r\n\r\n");
        Self { stream, like: like.into_bytes(), page: page.into_bytes(), answer: vec![0; 64 * 1_024] }
    }

    /// Posts a like with a new id.
    pub(super) async fn like(&mut self) {
        let head = self.like.len();
        write!(self.like, "{}", EventId::now()).expect("write to memory");
        self.stream.write_all(&self.like).await.expect("send");
        self.like.truncate(head);
        self.answer_of(b"HTTP/1.1 303").await;
    }

    async fn page(&mut self) {
        self.stream.write_all(&self.page).await.expect("send");
        self.answer_of(b"HTTP/1.1 200").await;
    }

    /// Reads an answer to its end. It begins with `status`.
    async fn answer_of(&mut self, status: &[u8]) {
        let (mut length, mut whole) = (0, None);
        while whole.is_none_or(|whole| length < whole) {
            let read =
                timeout(PATIENCE, self.stream.read(&mut self.answer[length..])).await.expect("an answer in time");
            let read = read.expect("receive");
            length += read;
            let heard = &self.answer[..length];
            let is_fine = read > 0 && heard.starts_with(&status[..status.len().min(length)]);
            assert!(is_fine, "not the answer, or the server hung up: {}", String::from_utf8_lossy(heard));
            whole = whole.or_else(|| whole_length(heard));
        }
    }
}

/// The length of an answer with its body, once its head is there.
fn whole_length(heard: &[u8]) -> Option<usize> {
    let head = heard.windows(4).position(|end| end == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&heard[..head]).expect("a head of text");
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("content-length").then(|| value.parse::<usize>().expect("a length"))
    });
    Some(head + length.unwrap_or(0))
}
