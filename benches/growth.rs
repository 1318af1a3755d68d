//! What grows with the log, and what mustn't: bytes on disk, WALs, the time to open a store and to commit into it, and memory.
//!
//! ```sh
//! cargo bench --bench growth              # all; or a part: -- bytes, -- length, -- memory
//! ```
//!
//! Logs of other lengths are compared with one of ten thousand events, and bytes with a plain table whose ids are UNIQUE.

#[path = "../tests/common/mod.rs"]
mod common;
mod compare;
mod parts;

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{Server, likewise, wait_for};
use compare::{Aim, Scale, Table, Unit, is_wanted, median, on_disk, point, turns};
use likewise::engine::{Device, Envelope, EventId, Files, Replica, Setup};
use likewise::likes::{self, LikeAdded};
use parts::{Plan, count, memory, serve, status};
use rusqlite::{Connection, params};
use tempfile::TempDir;

/// The longest log, and the one that it is compared with.
const LONG: usize = 10_000_000;
const SHORT: usize = 10_000;

fn main() {
    if parts::play() {
        return;
    }
    common::raise_open_file_limit();
    let scale = Scale::asked_for();
    if is_wanted("bytes") {
        bytes(scale);
    }
    if is_wanted("length") || is_wanted("memory") {
        let logs: Vec<_> =
            [SHORT, 100_000, 1_000_000, LONG].into_iter().map(|events| Log::of(scale.of(events))).collect();
        if is_wanted("length") {
            length(scale, &logs);
        }
        if is_wanted("memory") {
            idle(scale, &logs);
        }
    }
}

/// What an event takes on disk, and how long WALs get.
fn bytes(scale: Scale) {
    let likes = scale.of(500_000);
    let plain = [plain_bytes(likes)];
    let table = Table::new(scale, "bytes on disk, an event", "likewise", "plain");

    let (data, [events, state]) = liked_at_the_page(scale, likes);
    table.row("made at the page", Unit::Bytes, Aim::Most(48.0), &[eventlog_bytes(data.path(), likes)], &plain);
    let synced = synced_in_bulk(likes);
    table.row("synced in bulk", Unit::Bytes, Aim::Most(40.0), &[eventlog_bytes(synced.path(), likes)], &plain);

    let table = Table::new(scale, "WAL files after a load", "likewise", "–");
    table.row("of the events", Unit::Bytes, Aim::Most(16e6), &[events], &[]);
    table.row("of the state", Unit::Bytes, Aim::Most(16e6), &[state], &[]);
}

/// Data with so many likes, posted over 64 connections, and the bytes of both WALs then.
fn liked_at_the_page(scale: Scale, likes: usize) -> (TempDir, [f64; 2]) {
    let data = on_disk();
    let server = serve(data.path());
    let patience = scale.time(Duration::from_secs(120)).max(Duration::from_secs(20));
    Plan::likes(&server, 64, patience).at_most(likes as u64).run();
    assert_eq!(count(&server), likes as u64, "all were posted in time");
    let wals = ["eventlog.db-wal", "state.db-wal"].map(|file| length_of(&server.store("likes").join(file)));
    assert!(server.terminate().success());
    (data, wals)
}

/// The data of a hub to which a device has brought so many likes.
fn synced_in_bulk(likes: usize) -> TempDir {
    let (hub_data, data) = (on_disk(), on_disk());
    fill(data.path(), likes);
    let token = hub_data.path().join("token");
    fs::write(&token, common::printed(common::run(hub_data.path(), &["token", "add", "device"])))
        .expect("write the token");
    let hub = serve(hub_data.path());
    let mut command = likewise();
    command.args(["serve", "--listen", "127.0.0.1:0", "--upstream", &hub.url, "--token-file"]).arg(&token);
    let device = Server::spawn(command, data.path());
    wait_for("the hub to have it all", || (status(&hub)["count"] == likes).then_some(()));
    assert!(device.terminate().success());
    assert!(hub.terminate().success());
    hub_data
}

/// Puts new likes into `data` as a device that was never online has them.
fn fill(data: &Path, likes: usize) {
    let mut lines = String::new();
    for _ in 0..likes {
        lines += &format!("{{\"id\":\"{}\",\"name\":\"LikeAdded\"}}\n", EventId::now());
    }
    let file = data.join("lines");
    fs::write(&file, lines).expect("write the lines");
    let mut command = likewise();
    command.args(["import", "--data"]).arg(data).stdin(fs::File::open(&file).expect("open")).stderr(Stdio::null());
    assert!(command.status().expect("start the import").success());
    fs::remove_file(file).expect("remove the lines");
}

/// The bytes of the eventlog of a server that has ended, an event.
fn eventlog_bytes(data: &Path, events: usize) -> f64 {
    let store = data.join("stores/likes");
    (length_of(&store.join("eventlog.db")) + length_of(&store.join("eventlog.db-wal"))) / events as f64
}

fn length_of(file: &Path) -> f64 {
    fs::metadata(file).map_or(0.0, |metadata| metadata.len() as f64)
}

/// The bytes a row of a plain table of events.
fn plain_bytes(events: usize) -> f64 {
    let dir = on_disk();
    let file = dir.path().join("plain.db");
    let conn = Connection::open(&file).expect("open");
    let table = "CREATE TABLE log (seq INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, name INTEGER NOT NULL,
                                   origin INTEGER NOT NULL, args TEXT) STRICT; BEGIN";
    conn.execute_batch(table).expect("make the table");
    let mut insert = conn.prepare("INSERT INTO log (id, name, origin) VALUES (?1, 1, 1)").expect("prepare");
    for _ in 0..events {
        insert.execute(params![EventId::now().as_bytes()]).expect("insert");
    }
    conn.execute_batch("COMMIT").expect("commit");
    length_of(&file) / events as f64
}

/// A data directory whose store has a log of this length.
struct Log {
    dir: TempDir,
    events: usize,
}

impl Log {
    fn of(events: usize) -> Self {
        let log = Self { dir: on_disk(), events };
        let mut replica = log.open();
        let device: Device = "bench".parse().expect("a name");
        for from in (0..events).step_by(10_000) {
            let group: Vec<_> = (from..events.min(from + 10_000)).map(|_| (like(), device.clone())).collect();
            replica.add(&group).expect("add");
        }
        log
    }

    fn open(&self) -> Replica {
        let setup = Setup::new(likes::schema(), "bench".parse().expect("a name")).expect("read the program");
        Replica::open(Files::in_dir(self.dir.path().join("stores/likes")), setup).expect("open")
    }
}

fn like() -> Envelope {
    Envelope::new(EventId::now(), &LikeAdded {}).expect("an event")
}

/// How long it takes to open a store, and to commit one like into it.
fn length(scale: Scale, logs: &[Log]) {
    /// Likes that are committed after each opening, one by one.
    const LIKES: usize = 50;
    let time = |log: &Log| {
        let start = Instant::now();
        let mut replica = log.open();
        let opened = start.elapsed().as_secs_f64();
        let commit = |_| {
            let event = [like()];
            let start = Instant::now();
            replica.commit(&event).expect("commit");
            start.elapsed().as_secs_f64()
        };
        (opened, median(&(0..LIKES).map(commit).collect::<Vec<_>>()))
    };
    let short = &logs[0];
    for log in logs {
        let said = turns(scale, &mut [&mut || time(log), &mut || time(short)]);
        let of = |side: usize, what: fn(&(f64, f64)) -> f64| said[side].iter().map(what).collect::<Vec<_>>();
        let (opened, committed) = (|side| of(side, |(opened, _)| *opened), |side| of(side, |(_, commit)| *commit));
        point("length", "open", log.events as f64, median(&opened(0)) * 1e3);
        point("length", "commit", log.events as f64, median(&committed(0)) * 1e3);
        if log.events == short.events {
            continue;
        }
        let aim = if log.events == scale.of(LONG) { Aim::Times(1.2) } else { Aim::None };
        let title = format!("a log of {} events", log.events);
        let name = short.events.to_string();
        let table = Table::new(scale, &title, "this", &name);
        table.row("open the store", Unit::Seconds, aim, &opened(0), &opened(1));
        table.row("commit into it", Unit::Seconds, aim, &committed(0), &committed(1));
    }
}

/// The memory of a server that has been asked for its count and its page, and has nothing to do.
fn idle(scale: Scale, logs: &[Log]) {
    let rest = || {
        let dir = on_disk();
        let server = serve(dir.path());
        std::thread::sleep(Duration::from_secs(1));
        memory(&server)
    };
    let with = |log: &Log| {
        let server = serve(log.dir.path());
        let has_all =
            |status: &serde_json::Value| status["count"].as_u64().is_some_and(|count| count >= log.events as u64);
        wait_for("the state", || has_all(&status(&server)).then_some(()));
        std::thread::sleep(Duration::from_secs(1));
        let used = memory(&server);
        assert!(server.terminate().success());
        used
    };
    let (short, long) = (&logs[0], logs.last().expect("a long log"));
    // The server is another program than this, so it makes states of its own first.
    with(short);
    with(long);
    let said = turns(scale, &mut [&mut || rest(), &mut || with(short), &mut || with(long)]);
    let table = Table::new(scale, "memory with nothing to do", "likewise", "empty");
    table.row("without events", Unit::Bytes, Aim::Most(10e6), &said[0], &[]);
    table.row(&format!("with {} events", short.events), Unit::Bytes, Aim::None, &said[1], &said[0]);
    table.row(&format!("with {} events", long.events), Unit::Bytes, Aim::Times(1.2), &said[2], &said[0]);
}
