//! A load of open pages: each follows the live stream as the page's script does.
//!
//! The process that has them is told what to do by lines on its standard input, and answers each with a line.

use std::cell::{Cell, RefCell};
use std::io::{BufRead, BufReader, Lines, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{sleep, timeout};

use super::load::{Connection, due_or_now, percentiles, runtime};
use super::part;
use crate::common::Server;

/// How long anything may take that all pages wait for.
const PATIENCE: Duration = Duration::from_secs(180);

/// How long a page takes to rest: longer than the pause between two updates of it.
const REST: Duration = Duration::from_millis(700);

/// Open pages, which follow a server until this is dropped.
pub(crate) struct Pages {
    process: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

/// What to do.
#[derive(Clone, Copy, Serialize, Deserialize)]
enum Order {
    /// Say when all pages are live.
    Live,
    /// Say when none is.
    Gone,
    /// Like once, and say when all pages show it.
    Like,
    /// Like for a while, and say how long it took until pages showed it.
    Follow { rate: f64, connections: usize, seconds: f64 },
}

/// From a like to a page that shows it, in seconds.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Seen {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// Between one update of a page and the next, in the middle.
    pub(crate) pause: f64,
}

/// What all pages waited for.
#[derive(Serialize, Deserialize)]
struct Waited {
    seconds: f64,
    /// How often a connection was begun anew so far.
    again: u64,
}

impl Pages {
    /// Begins to open as many pages of a server at once.
    pub(crate) fn open(server: &Server, pages: usize) -> Self {
        let address = format!("127.0.0.1:{}", server.port());
        let mut command = part(&["pages", &address, &pages.to_string()]);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start the pages");
        let input = process.stdin.take().expect("its input");
        let output = BufReader::new(process.stdout.take().expect("its output")).lines();
        Self { process, input, output }
    }

    fn order<T: for<'a> Deserialize<'a>>(&mut self, order: Order) -> T {
        writeln!(self.input, "{}", serde_json::to_string(&order).expect("JSON")).expect("ask the pages");
        let line = self.output.next().expect("an answer of the pages").expect("text");
        serde_json::from_str(&line).expect("what the pages have to say")
    }

    /// Waits until all are live. Returns how long they took since they began, in seconds, and how many had to begin anew.
    pub(crate) fn wait_until_live(&mut self) -> (f64, u64) {
        let Waited { seconds, again } = self.order(Order::Live);
        (seconds, again)
    }

    /// Waits until none is live: the server is gone.
    pub(crate) fn wait_until_gone(&mut self) {
        let _: Waited = self.order(Order::Gone);
    }

    /// Likes once. Returns how long it took until all pages had it, in seconds.
    pub(crate) fn like(&mut self) -> f64 {
        self.order::<Waited>(Order::Like).seconds
    }

    /// Likes so often a second over a few connections.
    pub(crate) fn follow_likes(&mut self, rate: f64, connections: usize, time: Duration) -> Seen {
        self.order(Order::Follow { rate, connections, seconds: time.as_secs_f64() })
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// What the pages have seen, in the process that has them.
struct Watched {
    address: SocketAddr,
    pages: usize,
    live: Cell<usize>,
    again: Cell<u64>,
    /// What each page shows.
    shown: Vec<Cell<u64>>,
    /// What all pages are to show, and how many of them do.
    wanted: Cell<u64>,
    reached: Cell<usize>,
    /// Something of the above has changed for the last page.
    changed: Notify,
    /// Every update while likes are followed: the page, the count and when.
    updates: RefCell<Option<Vec<(usize, u64, Instant)>>>,
}

/// Opens pages and does what it is told until its standard input ends.
pub(super) fn follow_all(address: &str, pages: usize) {
    let watched = Rc::new(Watched {
        address: address.parse().expect("an address"),
        pages,
        live: Cell::new(0),
        again: Cell::new(0),
        shown: vec![Cell::new(0); pages],
        wanted: Cell::new(u64::MAX),
        reached: Cell::new(0),
        changed: Notify::new(),
        updates: RefCell::new(None),
    });
    let local = LocalSet::new();
    local.block_on(&runtime(), async {
        let start = Instant::now();
        for page in 0..pages {
            tokio::task::spawn_local(follow(Rc::clone(&watched), page));
        }
        let mut orders = tokio::io::BufReader::new(tokio::io::stdin()).lines();
        while let Some(order) = orders.next_line().await.expect("orders") {
            let answer = match serde_json::from_str(&order).expect("an order") {
                Order::Live => watched.until(start, || watched.live.get() == pages).await,
                Order::Gone => watched.until(start, || watched.live.get() == 0).await,
                Order::Like => watched.like().await,
                Order::Follow { rate, connections, seconds } => watched.follow(rate, connections, seconds).await,
            };
            println!("{answer}");
            std::io::stdout().flush().expect("say it");
        }
    });
}

impl Watched {
    async fn until(&self, start: Instant, holds: impl Fn() -> bool) -> String {
        let wait = async {
            while !holds() {
                self.changed.notified().await;
            }
        };
        let waited = timeout(PATIENCE, wait).await;
        assert!(waited.is_ok(), "{} of {} pages are live", self.live.get(), self.pages);
        serde_json::to_string(&Waited { seconds: start.elapsed().as_secs_f64(), again: self.again.get() })
            .expect("JSON")
    }

    async fn like(&self) -> String {
        sleep(REST).await;
        let mut connection = Connection::open(self.address).await;
        self.reached.set(0);
        self.wanted.set(self.count() + 1);
        let start = Instant::now();
        connection.like().await;
        self.until(start, || self.reached.get() == self.pages).await
    }

    /// The highest count that a page shows.
    fn count(&self) -> u64 {
        self.shown.iter().map(Cell::get).max().unwrap_or(0)
    }

    /// A page shows a count.
    fn shows(&self, page: usize, count: u64) {
        let before = self.shown[page].replace(count);
        if before < self.wanted.get() && count >= self.wanted.get() {
            self.reached.set(self.reached.get() + 1);
            if self.reached.get() == self.pages {
                self.changed.notify_one();
            }
        }
        if count > before
            && let Some(updates) = &mut *self.updates.borrow_mut()
        {
            updates.push((page, count, Instant::now()));
        }
    }

    /// A page is live, or it isn't any more.
    fn counts_live(&self, live: usize) {
        self.live.set(live);
        if live == 0 || live == self.pages {
            self.changed.notify_one();
        }
    }

    async fn follow(&self, rate: f64, connections: usize, seconds: f64) -> String {
        // At so few likes a page has nothing to wait for but its own pause.
        let (_, calm) = self.updates_while(rate.min(200.0), connections, seconds.min(3.0)).await;
        let (likes, updates) = self.updates_while(rate, connections, seconds).await;
        let [p50, p99] = percentiles(&mut times_to_pages(&likes, &updates));
        let [pause, _] = percentiles(&mut pauses(&calm));
        serde_json::to_string(&Seen { p50, p99, pause }).expect("JSON")
    }

    /// Likes for a while. Returns when each like was sent and the count that has it for certain, and for each page its updates.
    async fn updates_while(&self, rate: f64, connections: usize, seconds: f64) -> (Vec<(Instant, u64)>, Vec<Updates>) {
        sleep(REST).await;
        *self.updates.borrow_mut() = Some(Vec::new());
        let (start, before, sent) = (Instant::now(), self.count(), Rc::new(Cell::new(0)));
        let end = start + Duration::from_secs_f64(seconds);
        let taken = Rc::new(Cell::new(0_u64));
        let mut liking = JoinSet::new();
        for _ in 0..connections {
            let mut connection = Connection::open(self.address).await;
            let (taken, sent) = (Rc::clone(&taken), Rc::clone(&sent));
            liking.spawn_local(async move {
                let mut likes = Vec::new();
                loop {
                    let due = start + Duration::from_secs_f64(taken.replace(taken.get() + 1) as f64 / rate);
                    if due.max(Instant::now()) >= end {
                        return likes;
                    }
                    let begin = due_or_now(Some(due)).await;
                    sent.set(sent.get() + 1);
                    connection.like().await;
                    // Likes that were sent at the same time may be stored in any order. Whatever the order, this one is among
                    // those that were sent until it was answered.
                    likes.push((begin, before + sent.get()));
                }
            });
        }
        let mut likes = Vec::new();
        while let Some(of_one) = liking.join_next().await {
            likes.extend(of_one.expect("no panic"));
        }
        let last = before + sent.get();
        let all_have_it = async {
            while self.shown.iter().any(|shown| shown.get() < last) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, all_have_it).await.expect("each like reaches each page");
        let mut updates = vec![Vec::new(); self.pages];
        for (page, count, when) in self.updates.take().expect("they were noted") {
            updates[page].push((count, when));
        }
        (likes, updates)
    }
}

/// The updates of one page, in order: a count, and when it was there.
type Updates = Vec<(u64, Instant)>;

/// From each of some likes to each page.
fn times_to_pages(likes: &[(Instant, u64)], updates: &[Updates]) -> Vec<Duration> {
    let mut likes: Vec<_> = likes.iter().step_by(likes.len().div_ceil(2_000)).collect();
    likes.sort_unstable_by_key(|(_, count)| *count);
    let mut times = Vec::new();
    for updates in updates {
        let mut updates = updates.iter().peekable();
        for (sent, count) in &likes {
            while updates.next_if(|(shown, _)| shown < count).is_some() {}
            let (_, when) = updates.peek().expect("each like reaches each page");
            times.push(when.saturating_duration_since(*sent));
        }
    }
    times
}

/// Between the updates of each page.
fn pauses(updates: &[Updates]) -> Vec<Duration> {
    updates.iter().flat_map(|updates| updates.windows(2).map(|pair| pair[1].1 - pair[0].1)).collect()
}

/// Follows a server as one page.
async fn follow(watched: Rc<Watched>, page: usize) {
    let mut heard = Heard::new();
    loop {
        let mut stream = begin_until_it_works(&watched, &mut heard, page).await;
        watched.counts_live(watched.live.get() + 1);
        while heard.read(&mut stream, &watched, page).await {}
        watched.counts_live(watched.live.get() - 1);
        watched.again.set(watched.again.get() + 1);
    }
}

/// Opens the live stream as the page's script does: after each failure it waits twice as long as before, less up to a half by
/// chance. Returns the stream after its first count.
async fn begin_until_it_works(watched: &Watched, heard: &mut Heard, page: usize) -> TcpStream {
    let address = watched.address;
    let request = format!("GET /live HTTP/1.1\r\nHost: {address}\r\nAccept: text/event-stream\r\n\r\n");
    let mut begin = async || {
        let mut stream = TcpStream::connect(address).await.ok()?;
        stream.write_all(request.as_bytes()).await.ok()?;
        heard.count = None;
        while heard.count.is_none() {
            heard.read(&mut stream, watched, page).await.then_some(())?;
        }
        Some(stream)
    };
    let mut pause: f64 = 300.0;
    loop {
        if let Ok(Some(stream)) = timeout(Duration::from_secs(5), begin()).await {
            return stream;
        }
        watched.again.set(watched.again.get() + 1);
        let chance = f64::from(uuid::Uuid::new_v4().as_bytes()[0]) / 255.0;
        sleep(Duration::from_secs_f64(pause / 1e3 * (1.0 - chance / 2.0))).await;
        pause = (2.0 * pause).min(5_000.0);
    }
}

/// What a page has heard.
struct Heard {
    bytes: Vec<u8>,
    /// The bytes that may be the beginning of a count.
    kept: usize,
    count: Option<u64>,
}

/// What stands before a count, and the most that one takes with it.
const COUNT: &str = "data-count=\"";
const LONGEST: usize = 40;

impl Heard {
    fn new() -> Self {
        Self { bytes: vec![0; 2_048], kept: 0, count: None }
    }

    /// Reads what there is, and returns whether the stream goes on.
    async fn read(&mut self, stream: &mut TcpStream, watched: &Watched, page: usize) -> bool {
        let Ok(read @ 1..) = stream.read(&mut self.bytes[self.kept..]).await else {
            self.kept = 0;
            return false;
        };
        let length = self.kept + read;
        let text = String::from_utf8_lossy(&self.bytes[..length]);
        assert!(!text.starts_with("HTTP/1.1 4"), "{text}");
        if text.starts_with("HTTP/1.1 5") {
            self.kept = 0;
            return false;
        }
        if let Some(count) = last_count(&text) {
            watched.shows(page, count);
            self.count = Some(count);
        }
        self.kept = length.min(LONGEST);
        self.bytes.copy_within(length - self.kept..length, 0);
        true
    }
}

fn last_count(text: &str) -> Option<u64> {
    text.rmatch_indices(COUNT).find_map(|(at, _)| {
        let (count, _) = text[at + COUNT.len()..].split_once('"')?;
        count.parse().ok()
    })
}
