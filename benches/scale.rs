//! What gateways before a NATS cluster carry, compared with the bare cluster in the same run, and what a hub with very many
//! devices does. docs/scale.md tells what came of it.
//!
//! ```sh
//! cargo bench --bench scale               # all; or a part: -- likes, -- seen, -- leader, -- fair, -- pulls, -- moving
//! BENCH_LIKES=10000000 cargo bench --bench scale -- moving
//! ```
//!
//! Three NATS servers with `sync_interval: always`, the gateways and the devices are processes of their own on one machine,
//! and share its processors with the programs that drive them.

mod compare;

#[path = "../tests/common/mod.rs"]
mod common;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::jetstream::stream::{Config, LastRawMessageErrorKind, StorageType};
use async_nats::jetstream::{self, Context};
use common::nats::{Nats, Plan};
use common::{Server, likewise, raise_open_file_limit, wait_for};
use compare::{Scale, on_disk, run};
use likewise::engine::EventId;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// The stream of all stores, and the prefix of its subjects.
const STREAM: &str = "likewise";

fn main() {
    raise_open_file_limit();
    run(&[("likes", likes), ("seen", seen), ("leader", leader), ("fair", fair), ("pulls", pulls), ("moving", moving)]);
}

/// A gateway, with tokens for those who push through it.
struct Gateway {
    server: Server,
    _dir: TempDir,
}

impl Gateway {
    fn start(nats: &Nats, n: usize) -> Self {
        let dir = on_disk();
        let mut command = likewise();
        command.args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--device",
            &format!("gateway-{n}"),
            "--upstream",
            &nats.url(),
        ]);
        command.env("LIKEWISE_LOG", "error");
        let server = Server::spawn(command, dir.path());
        wait_until(&server, "/status", |status| status["upstream"]["state"] == "online");
        Self { server, _dir: dir }
    }

    fn token(&self, name: &str) -> String {
        let added = common::run(self.server.data(), &["token", "add", name]);
        common::printed(added).trim().to_owned()
    }
}

/// A cluster as docs/scale.md has it, on the disk on which the benchmarks are.
fn cluster() -> Nats {
    Plan::new(3).in_dir(on_disk()).start()
}

/// Likes a second that devices push through gateways, into one store and into many, beside the same messages published to a
/// bare stream.
fn likes(scale: Scale) {
    println!("\nlikes a second, pushed by devices (1,000 a push) and liked one by one at the gateways' pages\n");
    println!("{:<44} {:>10} {:>12} {:>8}", "", "gateways", "bare stream", "ratio");
    for gateways in [1, 3] {
        for stores in [1, 100] {
            for a_push in [1_000, 1] {
                let rounds: Vec<_> =
                    (0..scale.rounds()).map(|_| likes_through(scale, gateways, stores, a_push)).collect();
                let what = if a_push == 1 { "clicks" } else { "pushes" };
                let name = format!("{gateways} gateway(s), {stores} store(s), {what}");
                print_rates(scale, &name, &rounds);
            }
        }
    }
}

/// Rates of one round: through gateways, and to the bare stream.
type Rates = (f64, f64);

fn likes_through(scale: Scale, gateways: usize, stores: usize, a_push: usize) -> Rates {
    let nats = cluster();
    let gateways: Vec<_> = (0..gateways).map(|n| Gateway::start(&nats, n)).collect();
    let likes = scale.of(if a_push == 1 { 60_000 } else { 400_000 }).max(stores * a_push.min(10));
    let writers = if a_push == 1 { 32 } else { stores.clamp(4, 16) };
    let each = likes / writers;
    let start = Instant::now();
    let threads: Vec<JoinHandle<usize>> = (0..writers)
        .map(|n| {
            let gateway = &gateways[n % gateways.len()];
            let url = gateway.server.url.clone();
            let token = (a_push > 1).then(|| gateway.token(&format!("device-{n}")));
            let mut pusher = token.map(|token| Pusher::new(&url, &token));
            thread::spawn(move || {
                let mut done = 0;
                while done < each {
                    let store = store(n + done / a_push.max(10) * writers, stores);
                    done += match &mut pusher {
                        Some(pusher) => pusher.push(&store, a_push.min(each - done)),
                        None => like(&url, &store),
                    };
                }
                done
            })
        })
        .collect();
    let liked: usize = threads.into_iter().map(|thread| thread.join().expect("all were taken")).sum();
    // Clicks are acknowledged from the gateway's own disk. They count when they are in the stream.
    let runtime = Runtime::new().expect("start tokio");
    let context = runtime.block_on(connect(&nats));
    for gateway in &gateways {
        for store in (0..stores).map(|n| store(n, stores)) {
            wait_until(&gateway.server, &format!("/s/{store}/status"), |status| status["pending"] == 0);
        }
    }
    let ours = liked as f64 / start.elapsed().as_secs_f64();
    let messages = runtime.block_on(messages(&context));
    let bare = runtime.block_on(publish_bare(&context, messages));
    (ours, liked as f64 / bare.as_secs_f64())
}

/// The name of a store of a benchmark.
fn store(n: usize, stores: usize) -> String {
    if stores == 1 { "likes".to_owned() } else { format!("store-{}", n % stores) }
}

/// A device that pushes to one store of one gateway.
struct Pusher {
    agent: ureq::Agent,
    url: String,
    token: String,
    /// The log and the run, by store, as pulls said.
    known: HashMap<String, Value>,
}

impl Pusher {
    fn new(url: &str, token: &str) -> Self {
        Self { agent: agent(), url: url.to_owned(), token: token.to_owned(), known: HashMap::new() }
    }

    /// Pushes new likes, again and again until the gateway takes them. Returns how many.
    fn push(&mut self, store: &str, likes: usize) -> usize {
        let events: Vec<_> = (0..likes).map(|_| json!({ "id": EventId::now(), "name": "LikeAdded" })).collect();
        let mut taken = 0;
        while taken < events.len() {
            let (url, token) = (&self.url, &self.token);
            let hello = self.known.entry(store.to_owned()).or_insert_with(|| hello(url, token, store));
            let body = json!({ "log": hello["log"], "run": hello["run"], "events": events[taken..] }).to_string();
            let sent = self
                .agent
                .post(format!("{url}/sync/v1/{store}/events"))
                .header("authorization", format!("Bearer {token}"))
                .content_type("application/json")
                .send(&body);
            match sent {
                Ok(mut answer) if answer.status() == 200 => {
                    let text = answer.body_mut().with_config().limit(8 << 20).read_to_string().expect("an answer");
                    let answer: Value = serde_json::from_str(&text).expect("JSON");
                    // A push larger than a message may be answered in part.
                    taken += answer["events"].as_array().map_or(0, Vec::len);
                }
                _ => {
                    self.known.remove(store);
                    thread::sleep(Duration::from_millis(20));
                }
            }
        }
        taken
    }
}

/// The first event of a pull: which log the gateway has, and in which run.
fn hello(url: &str, token: &str, store: &str) -> Value {
    let address = url.trim_start_matches("http://");
    loop {
        let mut stream = TcpStream::connect(address).expect("connect");
        write!(
            stream,
            "GET /sync/v1/{store}/events?after=0 HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n\r\n"
        )
        .expect("send");
        let lines = BufReader::new(stream).lines().map_while(Result::ok);
        let data = lines.take(40).find_map(|line| line.strip_prefix("data: ").map(str::to_owned));
        if let Some(hello) = data.and_then(|data| serde_json::from_str::<Value>(&data).ok()) {
            return hello;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Likes once on a gateway's page, until it is stored.
fn like(url: &str, store: &str) -> usize {
    thread_local!(static AGENT: ureq::Agent = agent());
    AGENT.with(|agent| {
        while !agent.post(format!("{url}/s/{store}/likes")).send_empty().is_ok_and(|answer| answer.status() == 303) {
            thread::sleep(Duration::from_millis(20));
        }
    });
    1
}

async fn connect(nats: &Nats) -> Context {
    let client = async_nats::ConnectOptions::new().connect(nats.urls()).await.expect("connect to the servers");
    jetstream::new(client)
}

/// The messages that gateways put into the stream, in order: subject and bytes.
async fn messages(context: &Context) -> Vec<(String, bytes::Bytes)> {
    let stream = context.get_stream(STREAM).await.expect("the stream of the gateways");
    let last = stream.cached_info().state.last_sequence;
    let mut messages = Vec::new();
    for sequence in 1..=last {
        match stream.get_raw_message(sequence).await {
            Ok(message) => messages.push((message.subject.to_string(), message.payload)),
            Err(error) => assert!(
                matches!(error.kind(), LastRawMessageErrorKind::NoMessageFound),
                "cannot read message {sequence}: {error}"
            ),
        }
    }
    messages
}

/// Publishes the same bytes to a stream of the same kind, one message of a subject at a time, and returns how long it took.
async fn publish_bare(context: &Context, messages: Vec<(String, bytes::Bytes)>) -> Duration {
    let config = Config {
        name: "bare".to_owned(),
        subjects: vec!["bare.>".to_owned()],
        storage: StorageType::File,
        num_replicas: 3,
        ..Config::default()
    };
    context.create_stream(config).await.expect("a stream");
    let mut subjects = std::collections::BTreeMap::<_, Vec<_>>::new();
    for (subject, payload) in messages {
        subjects.entry(subject).or_default().push(payload);
    }
    let start = Instant::now();
    let publishers = subjects.into_iter().map(|(subject, payloads)| {
        let context = context.clone();
        tokio::spawn(async move {
            let mut last = 0;
            for payload in payloads {
                // A leader that isn't sure of the condition yet refuses, and takes the same a moment later.
                last = loop {
                    let mut headers = HeaderMap::new();
                    headers.insert(async_nats::header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, last.to_string().as_str());
                    let sent = context.publish_with_headers(format!("bare.{subject}"), headers, payload.clone()).await;
                    if let Ok(acknowledged) = sent.expect("sent").await {
                        break acknowledged.sequence;
                    }
                };
            }
        })
    });
    for publisher in publishers.collect::<Vec<_>>() {
        publisher.await.expect("published");
    }
    start.elapsed()
}

fn print_rates(scale: Scale, name: &str, rounds: &[Rates]) {
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let ours = median(rounds.iter().map(|(ours, _)| *ours).collect());
    let bare = median(rounds.iter().map(|(_, bare)| *bare).collect());
    let ratios: Vec<_> = rounds.iter().map(|(ours, bare)| ours / bare).collect();
    let (least, most) = (ratios.iter().copied().fold(f64::MAX, f64::min), ratios.iter().copied().fold(0.0, f64::max));
    let note = if scale.is_full() { "" } else { "  (tested, not measured)" };
    println!("{name:<44} {ours:>10.0} {bare:>12.0} {:>8.2} ({least:.2}..{most:.2}){note}", median(ratios));
}

/// The time from a like on a device of one gateway to the event on the live stream of a device of another.
fn seen(scale: Scale) {
    let nats = cluster();
    let [one, two] = [0, 1].map(|n| Gateway::start(&nats, n));
    let (dir, likes) = (on_disk(), scale.of(1_000));
    let first = device(&one, &dir.path().join("one"), "one");
    let second = device(&two, &dir.path().join("two"), "two");
    let mut shown = Shown::open(&second);
    let agent = agent();
    let (mut times, mut bare) = (Vec::new(), Vec::new());
    for count in 1..=likes {
        let start = Instant::now();
        agent.post(format!("{}/likes", first.url)).send_empty().expect("like");
        shown.wait_for(count as u64);
        times.push(start.elapsed());
        let start = Instant::now();
        for server in [&first, &one.server, &two.server, &second] {
            agent.get(format!("{}/healthz", server.url)).call().expect("ask");
        }
        bare.push(start.elapsed());
        // Pages are updated at intervals. The next like should find the stream at rest.
        thread::sleep(Duration::from_millis(if likes > 20 { 30 } else { 0 }));
    }
    let [p50, p99] = percentiles(&mut times);
    let [bare50, bare99] = percentiles(&mut bare);
    println!("\nfrom a like on a device of one gateway to the page of a device of another, of {likes}:");
    println!("likewise:                p50 {p50:.2?}, p99 {p99:.2?}");
    println!("four bare round trips:   p50 {bare50:.2?}, p99 {bare99:.2?}");
}

/// The time from the death of the server that leads the stream until a like goes from device to device again.
fn leader(scale: Scale) {
    let mut nats = cluster();
    let [one, two] = [0, 1].map(|n| Gateway::start(&nats, n));
    let dir = on_disk();
    let first = device(&one, &dir.path().join("one"), "one");
    let second = device(&two, &dir.path().join("two"), "two");
    let mut shown = Shown::open(&second);
    let agent = agent();
    let mut count = 0;
    let mut times = Vec::new();
    for _ in 0..if scale.is_full() { 7 } else { 1 } {
        count += 1;
        agent.post(format!("{}/likes", first.url)).send_empty().expect("like");
        shown.wait_for(count);
        let leader = wait_for("a leader", || nats.leader_of(STREAM));
        nats.kill(leader);
        let start = Instant::now();
        count += 1;
        agent.post(format!("{}/likes", first.url)).send_empty().expect("like");
        shown.wait_for(count);
        times.push(start.elapsed());
        nats.start(leader);
        nats.wait_until_ready();
    }
    times.sort();
    println!("\nfrom the leader's death until a like goes from device to device again, {} times:", times.len());
    println!("median {:.1?}, least {:.1?}, most {:.1?}", times[times.len() / 2], times[0], times[times.len() - 1]);
}

/// Ten gateways whose people like in one store as fast as they can: how many likes of each are in the stream after a while.
fn fair(scale: Scale) {
    const GATEWAYS: usize = 10;
    let nats = cluster();
    let gateways: Vec<_> = (0..if scale.is_full() { GATEWAYS } else { 2 }).map(|n| Gateway::start(&nats, n)).collect();
    let tokens: Vec<_> = gateways.iter().map(|gateway| gateway.token(&gateway.server.port().to_string())).collect();
    let is_over = Arc::new(AtomicBool::new(false));
    let counts: Vec<_> = gateways.iter().map(|_| Arc::new(AtomicU64::new(0))).collect();
    let mut threads = Vec::new();
    for ((gateway, token), count) in gateways.iter().zip(&tokens).zip(&counts) {
        for _ in 0..2 {
            let mut pusher = Pusher::new(&gateway.server.url, token);
            let (count, is_over) = (Arc::clone(count), Arc::clone(&is_over));
            threads.push(thread::spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    count.fetch_add(pusher.push("likes", 20) as u64, Ordering::Relaxed);
                }
            }));
        }
    }
    thread::sleep(scale.time(Duration::from_secs(20)));
    let mut each: Vec<_> = counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
    is_over.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().expect("it ends"));
    each.sort_unstable();
    let (all, least) = (each.iter().sum::<u64>(), each[0]);
    let even = all as f64 / each.len() as f64;
    println!("\nlikes of each of {} gateways in one hot store: {each:?}", each.len());
    println!("the least one has {:.2} of an even share", least as f64 / even.max(1.0));
}

/// Devices that pull one store from one hub: what each costs in memory, and how long a like takes to reach all.
fn pulls(scale: Scale) {
    const OF_A_TOKEN: usize = 16;
    let wanted = scale.of(10_000).min(room());
    let dir = on_disk();
    let tokens: Vec<_> = (0..wanted.div_ceil(OF_A_TOKEN)).map(|n| format!("lw_bench{n}")).collect();
    let list: Vec<_> = tokens
        .iter()
        .enumerate()
        .map(|(n, token)| {
            let hash = blake3::hash(token.as_bytes()).to_hex().to_string();
            json!({ "device": format!("device-{n}"), "hash": hash, "created": 0 })
        })
        .collect();
    std::fs::write(dir.path().join("tokens.json"), Value::from(list).to_string()).expect("write the tokens");
    let mut command = likewise();
    command.args(["serve", "--listen", "127.0.0.1:0"]).env("LIKEWISE_LOG", "error");
    let hub = Server::spawn(command, dir.path());
    let agent = agent();
    agent.post(format!("{}/likes", hub.url)).send_empty().expect("a first like");
    let before = memory(hub.pid());

    let runtime = Runtime::new().expect("start tokio");
    let reached = Arc::new(AtomicU64::new(0));
    let pulls: Vec<_> = (0..wanted)
        .map(|n| {
            let (token, address) = (tokens[n / OF_A_TOKEN].clone(), hub.url.trim_start_matches("http://").to_owned());
            let reached = Arc::clone(&reached);
            runtime.spawn(async move { pull(&address, &token, &reached).await })
        })
        .collect();
    wait_for("all devices to be level", || (reached.load(Ordering::SeqCst) >= wanted as u64).then_some(()));
    let after = memory(hub.pid());
    let mut times = Vec::new();
    for round in 2..=if scale.is_full() { 12 } else { 2 } {
        let start = Instant::now();
        agent.post(format!("{}/likes", hub.url)).send_empty().expect("like");
        wait_for("a like at all devices", || (reached.load(Ordering::SeqCst) >= (round * wanted) as u64).then_some(()));
        times.push(start.elapsed());
    }
    assert!(pulls.iter().all(|pull| !pull.is_finished()), "no pull ended");
    times.sort();
    println!("\n{wanted} devices that pull from one hub:");
    println!(
        "memory of the hub: {} MB before, {} MB with all, {:.1} KB each",
        before >> 20,
        after >> 20,
        (after - before) as f64 / wanted as f64 / 1_024.0
    );
    println!(
        "a like reaches all: median {:.1?}, most {:.1?}, of {}",
        times[times.len() / 2],
        times[times.len() - 1],
        times.len()
    );
}

/// How many pulls a hub takes here. It keeps half of the files that it may open for stores, a sixth of the connections for
/// posts, and two elevenths of the streams for others than devices.
fn room() -> usize {
    use rustix::process::{Resource, getrlimit};
    let files = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX).min(1 << 20);
    usize::try_from(files / 2 * 5 / 6 * 9 / 11).expect("a number of files") - 50
}

/// Moves a hub's log into a stream, and starts a new gateway on an empty directory, beside a client that only reads all of it.
fn moving(scale: Scale) {
    let likes = std::env::var("BENCH_LIKES").ok().and_then(|likes| likes.parse().ok()).unwrap_or(1_000_000);
    let likes: usize = scale.of(likes);
    let nats = cluster();
    let dir = on_disk();
    let (hub, new) = (dir.path().join("hub"), dir.path().join("new"));
    fill(&hub, likes);
    let hub_bytes = size(&hub.join("stores"));
    let start = Instant::now();
    common::printed(common::run(&hub, &["move", "in", "--upstream", &nats.url()]));
    let moved = start.elapsed();
    let start = Instant::now();
    let mut command = likewise();
    command.args(["serve", "--listen", "127.0.0.1:0", "--upstream", &nats.url()]).env("LIKEWISE_LOG", "error");
    let gateway = Server::spawn(command, &new);
    wait_until(&gateway, "/status", |status| status["count"] == likes && status["upstream"]["state"] == "online");
    let took = start.elapsed();
    let bare = Runtime::new().expect("start tokio").block_on(read_all(&nats));
    println!("\n{likes} likes, moved from a hub into a stream: {moved:.1?}");
    println!("a new gateway has them after {took:.1?}; a client that only reads the messages after {bare:.1?}");
    let servers: u64 = (0..nats.len()).map(|n| size(&nats.data_of(n))).sum();
    let each = |bytes: u64| bytes as f64 / likes as f64;
    println!(
        "bytes of disk for a like: {:.0} at each gateway or hub, {:.0} at all three servers together",
        each(hub_bytes),
        each(servers)
    );
}

/// Reads all messages of the stream, and returns how long that took.
async fn read_all(nats: &Nats) -> Duration {
    use futures_util::StreamExt as _;
    let context = connect(nats).await;
    let start = Instant::now();
    let stream = context.get_stream(STREAM).await.expect("the stream");
    let left = stream.cached_info().state.messages;
    let config = jetstream::consumer::pull::OrderedConfig::default();
    let consumer = stream.create_consumer(config).await.expect("a consumer");
    let mut messages = consumer.messages().await.expect("messages").take(usize::try_from(left).expect("a number"));
    while let Some(message) = messages.next().await {
        assert!(!message.expect("a message").payload.is_empty());
    }
    start.elapsed()
}

/// Puts new likes into `data`, which no process serves.
fn fill(data: &Path, likes: usize) {
    let mut command = likewise();
    let command = command.args(["import", "--data"]).arg(data);
    let mut import = command.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().expect("start the import");
    let mut input = std::io::BufWriter::new(import.stdin.take().expect("its input"));
    for _ in 0..likes {
        writeln!(input, r#"{{"id":"{}","name":"LikeAdded"}}"#, EventId::now()).expect("write an event");
    }
    drop(input);
    assert!(import.wait().expect("the import ends").success());
}

/// The bytes of all files below a directory.
fn size(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(
            |entry| if entry.path().is_dir() { size(&entry.path()) } else { entry.metadata().map_or(0, |it| it.len()) },
        )
        .sum()
}

/// Pulls, and counts the events that arrive.
async fn pull(address: &str, token: &str, reached: &AtomicU64) {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
    let stream = loop {
        match tokio::net::TcpStream::connect(address).await {
            Ok(stream) => break stream,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    let mut stream = tokio::io::BufReader::with_capacity(1_024, stream);
    let request = format!(
        "GET /sync/v1/likes/events?after=0 HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n\r\n"
    );
    stream.get_mut().write_all(request.as_bytes()).await.expect("send");
    let mut line = Vec::new();
    while stream.read_until(b'\n', &mut line).await.is_ok_and(|read| read > 0) {
        if line.starts_with(b"event: page") {
            reached.fetch_add(1, Ordering::SeqCst);
        }
        let is_refused = line.starts_with(b"HTTP/1.1 ") && !line.starts_with(b"HTTP/1.1 200");
        assert!(!is_refused, "refused: {}", String::from_utf8_lossy(&line));
        line.clear();
    }
}

/// A device of a gateway, once it is level.
fn device(gateway: &Gateway, data: &Path, name: &str) -> Server {
    std::fs::create_dir_all(data).expect("a directory");
    let token = data.with_extension("token");
    std::fs::write(&token, gateway.token(name)).expect("write the token");
    let mut command = likewise();
    command.args(["serve", "--listen", "127.0.0.1:0", "--upstream", &gateway.server.url, "--token-file"]);
    command.arg(token).env("LIKEWISE_LOG", "error");
    let server = Server::spawn(command, data);
    wait_until(&server, "/status", |status| status["upstream"]["state"] == "online");
    server
}

/// The live stream of a page.
struct Shown {
    lines: std::io::Lines<BufReader<TcpStream>>,
}

impl Shown {
    fn open(server: &Server) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port())).expect("connect");
        write!(stream, "GET /live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").expect("send");
        Self { lines: BufReader::new(stream).lines() }
    }

    fn wait_for(&mut self, count: u64) {
        let wanted = format!("data-count=\"{count}\"");
        let found = self.lines.find(|line| line.as_ref().is_ok_and(|line| line.contains(&wanted)));
        assert!(found.is_some(), "the stream ended before {count} likes");
    }
}

fn percentiles(times: &mut [Duration]) -> [Duration; 2] {
    times.sort();
    [times[times.len() / 2], times[(times.len() * 99 / 100).min(times.len() - 1)]]
}

fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder().max_redirects(0).max_redirects_will_error(false);
    config.http_status_as_error(false).proxy(None).build().into()
}

fn wait_until(server: &Server, path: &str, reached: impl Fn(&Value) -> bool) {
    let agent = agent();
    wait_for(&format!("{path} of {}", server.url), || {
        let mut answer = agent.get(format!("{}{path}", server.url)).call().ok()?;
        let status: Value = serde_json::from_str(&answer.body_mut().read_to_string().ok()?).ok()?;
        reached(&status).then_some(())
    });
}

/// The resident memory of a process, in bytes.
fn memory(pid: u32) -> u64 {
    let mut text = String::new();
    let file = std::fs::File::open(format!("/proc/{pid}/status"));
    file.and_then(|mut file| file.read_to_string(&mut text)).expect("its status");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1_024
}
