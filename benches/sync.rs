//! What sync costs, compared with the bare work: the same events inserted and applied with plain SQLite, once per machine.
//!
//! ```sh
//! cargo bench --bench sync                # all; or a part: -- bulk, -- join, -- rebase, -- click
//! BENCH_EVENTS=10000,10000000 cargo bench --bench sync -- join    # logs of other lengths
//! ```
//!
//! Hub and devices are the release binary on one machine, each in its own process with its own directory.

mod compare;

#[path = "../tests/common/mod.rs"]
mod common;

use std::env;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{Server, likewise, wait_for};
use compare::{Aim, Scale, Table, each, on_disk, point, run};
use likewise::engine::{Device, Entry, Envelope, EventId, Files, Page, Replica, Seq, Setup, Whose};
use likewise::likes::{self, LikeAdded};
use rusqlite::{Connection, params};
use serde_json::Value;

fn main() {
    run(&[("bulk", bulk), ("join", join), ("rebase", rebase), ("click", click)]);
}

/// Likes made offline reach the hub and a second device. In the end three machines have them.
fn bulk(scale: Scale) {
    let table = Table::new(scale, "offline likes, per event", "sync", "plain");
    for full in [1_000, 10_000, 100_000, 1_000_000] {
        let likes = scale.of(full);
        let ours = || {
            let dir = on_disk();
            let offline = dir.path().join("one");
            let hub = Hub::start(&dir.path().join("hub"), &["one", "two"]);
            hub.like_while_away(&offline, "one");
            fill(&offline, likes - 1);
            let two = hub.device(&dir.path().join("two"), "two");
            let start = Instant::now();
            let one = hub.device(&offline, "one");
            wait_until(&two, |status| status["count"] == likes);
            wait_until(&one, |status| status["pending"] == 0);
            each(start, likes)
        };
        let aim = if full == 100_000 { Aim::Times(2.0) } else { Aim::None };
        let name = format!("{likes} to hub and device");
        let [ours, plain] = table.compare(&name, aim, ours, || plain(likes, 3));
        point("sync", "likewise", likes as f64, ours * likes as f64);
        point("sync", "plain SQLite, three times", likes as f64, plain * likes as f64);
    }
}

/// A new device joins a log, and shows the right count: by a snapshot, compared with the bare download of the snapshot's bytes
/// and one start on data that is there already. Then all of the log is there and proven: compared with a device that pulls it.
/// Such a device, which inserts and applies all of the log, is compared with one plain loop that does.
fn join(scale: Scale) {
    let logs: Vec<usize> = match env::var("BENCH_EVENTS") {
        Ok(list) => list.split(',').map(|events| events.parse().expect("a number of events")).collect(),
        Err(_) => vec![10_000, 100_000, 1_000_000, 10_000_000],
    };
    for full in logs {
        let likes = scale.of(full);
        let dir = on_disk();
        let data = dir.path().join("hub");
        fill_fast(&data, 1);
        // A device that has a part of the log pulls the rest.
        let seed = dir.path().join("seed");
        let hub = Hub::start(&data, &["one"]);
        let device = hub.device(&seed, "one");
        wait_until(&device, |status| status["count"] == 1);
        drop((device, hub));
        fill_fast(&data, likes);
        let hub = Hub::start(&data, &[]);
        wait_until(&hub.server, |status| status["count"] == likes + 1);

        let title = format!("a new device on a log of {likes}");
        let table = Table::new(scale, &title, "likewise", "plain");
        let joined = dir.path().join("joined");
        let has_all = |status: &Value| status["count"] == likes + 1;
        let is_whole = |status: &Value| has_all(status) && status["history"].is_null() && status["head"] == likes + 1;
        let start = Instant::now();
        let device = hub.device(&joined, "one");
        wait_until(&device, has_all);
        println!("the first one, for which the snapshot is made: {:.2?}", start.elapsed());
        wait_until(&device, is_whole);
        drop(device);

        // Runs a device on `dir` until it is `done`, since `start`. Its end doesn't count.
        let time = |start: Instant, dir: &Path, done: &dyn Fn(&Value) -> bool| {
            let device = hub.device(dir, "one");
            wait_until(&device, done);
            let took = start.elapsed();
            drop(device);
            took
        };
        let begin = || {
            let dir = on_disk();
            time(Instant::now(), dir.path(), &has_all)
        };
        let download_and_open = || {
            let dir = on_disk();
            let start = Instant::now();
            let bytes = hub.snapshot("one");
            let mut file = File::create(dir.path().join("snapshot")).expect("a file");
            file.write_all(&bytes).and_then(|()| file.sync_all()).expect("written");
            time(start, &joined, &has_all)
        };
        table.compare("shows the right count", Aim::Times(1.5), begin, download_and_open);

        let whole = || {
            let dir = on_disk();
            time(Instant::now(), dir.path(), &is_whole)
        };
        let pull = || {
            let dir = on_disk();
            copy_all(&seed, dir.path());
            time(Instant::now(), dir.path(), &is_whole)
        };
        Table::new(scale, &title, "snapshot", "pull").compare(
            "has all of the log, proven",
            Aim::Times(1.3),
            whole,
            pull,
        );
        let aim = if full == 1_000_000 { Aim::Times(1.4) } else { Aim::None };
        table.compare("pulls and applies all of the log", aim, pull, || plain(likes, 1).mul_f64(likes as f64));
    }
}

/// Another device's event arrives while many are pending. All pending ones have to be re-applied on top of it.
fn rebase(scale: Scale) {
    let pending = scale.of(100_000);
    let dir = on_disk();
    let files = Files::in_dir(dir.path());
    let setup = Setup::new(likes::schema(), "bench".parse().expect("a name")).expect("read the program");
    let mut replica = Replica::open(files.clone(), setup).expect("open");
    replica.take_back(Seq::START, Whose::Upstream(None)).expect("follow");
    for _ in 0..pending.div_ceil(1_000) {
        let group: Vec<_> = (0..pending.min(1_000)).map(|_| like()).collect();
        replica.commit(&group).expect("commit");
    }
    let mut seq = Seq::START;
    let ours = || {
        seq = seq.next();
        let entry = Entry { seq, event: like(), origin: "other".parse().expect("a name") };
        let start = Instant::now();
        replica.arrive(&Page { entries: vec![entry], next: seq, more: false }).expect("arrive");
        each(start, pending)
    };
    let plain = || {
        let state = open_plain(&on_disk().path().join("state.db"));
        let outbox = Connection::open(files.eventlog()).expect("open");
        let start = Instant::now();
        state.execute_batch("BEGIN").expect("begin");
        let mut read = outbox.prepare("SELECT n, id, name, args FROM outbox ORDER BY n").expect("prepare");
        let mut update = state.prepare(UPDATE).expect("prepare");
        let mut rows = read.query(()).expect("query");
        while let Some(row) = rows.next().expect("read") {
            assert!(row.get::<_, [u8; 16]>(1).is_ok() && row.get::<_, i64>(2).is_ok() && row.get_ref(3).is_ok());
            update.execute(()).expect("update");
        }
        each(start, pending)
    };
    let table = Table::new(scale, "rebase, per pending event", "engine", "plain");
    table.compare(&format!("{pending} pending"), Aim::Times(2.0), ours, plain);
}

/// The time from a click on one device to the event on the other's stream, compared with the round trips that this takes at
/// least: to the one device, to the hub, and to the other.
fn click(scale: Scale) {
    let clicks = scale.of(100);
    let dir = on_disk();
    let hub = Hub::start(&dir.path().join("hub"), &["one", "two"]);
    let one = hub.device(&dir.path().join("one"), "one");
    let two = hub.device(&dir.path().join("two"), "two");
    for device in [&one, &two] {
        wait_until(device, |status| status["upstream"]["state"] == "online");
    }
    let stream = request(&two, "GET /live HTTP/1.1\r\n");
    let mut shown = BufReader::new(stream).lines().map(|line| line.expect("the stream goes on"));
    let agent = agent();
    let mut count = 0;
    let click = || {
        let mut times: Vec<_> = (0..clicks)
            .map(|_| {
                // Pages are updated at intervals. The next click should find the stream at rest.
                std::thread::sleep(REST);
                count += 1;
                let start = Instant::now();
                agent.post(format!("{}/likes", one.url)).send_empty().expect("like");
                let wanted = format!("data-count=\"{count}\"");
                shown.find(|line| line.contains(&wanted)).expect("the like arrives");
                start.elapsed()
            })
            .collect();
        middle(&mut times)
    };
    let ask = || {
        let mut times: Vec<_> = (0..clicks)
            .map(|_| {
                let start = Instant::now();
                for server in [&one, &hub.server, &two] {
                    agent.get(format!("{}/healthz", server.url)).call().expect("ask");
                }
                start.elapsed()
            })
            .collect();
        middle(&mut times)
    };
    let table = Table::new(scale, "a click on another device's stream", "likewise", "3 asked");
    table.compare(&format!("p50 of {clicks}"), Aim::Times(4.0), click, ask);
}

/// Longer than the pause between two updates of one page.
const REST: Duration = Duration::from_millis(30);

fn middle(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// A hub with its devices' tokens.
struct Hub {
    server: Server,
    data: std::path::PathBuf,
}

impl Hub {
    fn start(data: &Path, devices: &[&str]) -> Self {
        for device in devices {
            let added = likewise().args(["token", "add", device, "--data"]).arg(data).output().expect("add a token");
            std::fs::write(data.join(device), added.stdout).expect("write the token");
        }
        let mut command = likewise();
        command.args(["serve", "--listen", "127.0.0.1:0"]).env("LIKEWISE_LOG", "error");
        Self { server: Server::spawn(command, data), data: data.to_owned() }
    }

    /// The bytes of its snapshot, or of its refusal.
    fn snapshot(&self, name: &str) -> Vec<u8> {
        let agent = agent();
        let status = agent.get(format!("{}/status", self.server.url)).call().expect("ask").body_mut().read_to_string();
        let status: Value = serde_json::from_str(&status.expect("read")).expect("JSON");
        let schema = status["schema"].as_str().expect("its schema").replace(' ', "%20");
        let url = format!("{}/sync/v1/likes/snapshot?schema={schema}", self.server.url);
        let token = std::fs::read_to_string(self.data.join(name)).expect("the token");
        let request = agent.get(url).header("authorization", format!("Bearer {}", token.trim()));
        let request = request.config().http_status_as_error(false).build();
        request.call().expect("ask").into_body().into_with_config().limit(u64::MAX).read_to_vec().expect("read")
    }

    /// A device that syncs with this hub.
    fn device(&self, data: &Path, name: &str) -> Server {
        self.device_of(&self.server.url, data, name)
    }

    fn device_of(&self, upstream: &str, data: &Path, name: &str) -> Server {
        let mut command = likewise();
        command.args(["serve", "--listen", "127.0.0.1:0", "--upstream", upstream, "--token-file"]);
        command.arg(self.data.join(name)).env("LIKEWISE_LOG", "error");
        Server::spawn(command, data)
    }

    /// Makes one like on a device that can't reach its hub. From then on, its likes wait in its outbox.
    fn like_while_away(&self, data: &Path, name: &str) {
        let device = self.device_of("http://127.0.0.1:9", data, name);
        agent().post(format!("{}/likes", device.url)).send_empty().expect("like");
        assert!(device.terminate().success());
    }
}

/// Puts new likes into `data`, which no process serves.
fn fill(data: &Path, likes: usize) {
    let mut command = likewise();
    let mut import = command.args(["import", "--data"]).arg(data).stdin(Stdio::piped()).stderr(Stdio::null()).spawn();
    let import = import.as_mut().expect("start the import");
    let mut input = std::io::BufWriter::new(import.stdin.take().expect("its input"));
    for _ in 0..likes {
        writeln!(input, r#"{{"id":"{}","name":"LikeAdded"}}"#, EventId::now()).expect("write an event");
    }
    drop(input);
    assert!(import.wait().expect("the import ends").success());
}

/// The same, without a process: the quickest way to a log of ten million.
fn fill_fast(data: &Path, likes: usize) {
    let files = Files::in_dir(data.join("stores/likes"));
    let setup = Setup::new(likes::schema(), "bench".parse().expect("a name")).expect("read the program");
    let mut replica = Replica::open(files, setup).expect("open");
    let device: Device = "bench".parse().expect("a name");
    for from in (0..likes).step_by(10_000) {
        let events: Vec<_> = (from..likes.min(from + 10_000)).map(|_| (like(), device.clone())).collect();
        replica.add(&events).expect("add");
    }
}

fn copy_all(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("make a directory");
    for entry in std::fs::read_dir(from).expect("read") {
        let entry = entry.expect("read");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("look").is_dir() {
            copy_all(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copy");
        }
    }
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().max_redirects(0).max_redirects_will_error(false).build().into()
}

fn wait_until(server: &Server, reached: impl Fn(&Value) -> bool) {
    let agent = agent();
    wait_for("the devices to be level", || {
        let status = agent.get(format!("{}/status", server.url)).call().expect("ask").body_mut().read_to_string();
        let status: Value = serde_json::from_str(&status.expect("read")).expect("JSON");
        reached(&status).then_some(())
    });
}

fn request(server: &Server, line: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", server.port())).expect("connect");
    write!(stream, "{line}Host: 127.0.0.1\r\n\r\n").expect("send");
    stream
}

fn like() -> Envelope {
    Envelope::new(EventId::now(), &LikeAdded {}).expect("an event")
}

const UPDATE: &str = "UPDATE likes SET count = count + 1 WHERE id = 1";

/// The time per event to insert and apply as many events on as many machines, one after the other.
fn plain(events: usize, machines: usize) -> Duration {
    let ids: Vec<_> = (0..events).map(|_| EventId::now()).collect();
    let dirs: Vec<_> = (0..machines).map(|_| on_disk()).collect();
    let start = Instant::now();
    for dir in &dirs {
        let conn = open_plain(&dir.path().join("plain.db"));
        conn.pragma_update(None, "synchronous", "FULL").expect("set the durability");
        let insert = "INSERT INTO log (id, name, origin, args) VALUES (?1, 1, 1, NULL)";
        let (mut insert, mut update) = (conn.prepare(insert).expect("prepare"), conn.prepare(UPDATE).expect("prepare"));
        for page in ids.chunks(1_000) {
            conn.execute_batch("BEGIN IMMEDIATE").expect("begin");
            for id in page {
                insert.execute(params![id.as_bytes()]).expect("insert");
                update.execute(()).expect("update");
            }
            conn.execute_batch("COMMIT").expect("commit");
        }
    }
    each(start, events)
}

fn open_plain(path: &Path) -> Connection {
    let conn = Connection::open(path).expect("open");
    conn.query_row("PRAGMA journal_mode = WAL", (), |_| Ok(())).expect("use a WAL");
    conn.execute_batch(
        "CREATE TABLE log (seq INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, name INTEGER NOT NULL,
                           origin INTEGER NOT NULL, args TEXT) STRICT;
         CREATE TABLE likes (id INTEGER PRIMARY KEY, count INTEGER NOT NULL) STRICT;
         INSERT INTO likes VALUES (1, 0);",
    )
    .expect("make the tables");
    conn
}
