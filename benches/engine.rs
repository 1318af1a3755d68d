//! What the engine costs, compared with a plain loop over SQLite that runs the two statements of a like: INSERT into a log with
//! a unique id, and UPDATE of the count.
//!
//! ```sh
//! cargo bench --bench engine              # all; or a part: -- commit, -- rebuild, -- import, -- live, -- keys
//! BENCH_SECONDS=60 cargo bench --bench engine   # more rounds, when the machine is busy
//! ```
//!
//! In each table both sides do the same work in turns: the same rows, the same durability (WAL, `synchronous=FULL`, one COMMIT
//! per group), the same disk.

#[path = "../tests/common/mod.rs"]
mod common;
mod compare;

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use compare::{Aim, Scale, Table, each, on_disk, run};
use likewise::engine::{Envelope, Event, EventId, Files, Query, Replica, Schema, Setup, StoreLimits, Stores};
use likewise::likes::{self, LikeAdded};
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

fn main() {
    run(&[("commit", commit), ("rebuild", rebuild), ("import", import), ("live", live), ("keys", keys)]);
}

/// Commits in groups. Neither side checkpoints: the store does that on another thread, beside its commits.
fn commit(scale: Scale) {
    let table = Table::new(scale, "commit, per event", "engine", "plain");
    for (group, events) in [(1, 200), (10, 2_000), (100, 20_000), (1_000, 50_000)] {
        let groups = scale.of(events / group);
        let ours = || {
            let dir = on_disk();
            let mut replica = Replica::open(Files::in_dir(dir.path()), setup()).expect("open");
            let groups = grouped(groups, group);
            let start = Instant::now();
            for group in &groups {
                replica.commit(group).expect("commit");
            }
            let time = each(start, groups.len() * group);
            let count = replica.query(&likes::count()).expect("count");
            assert_eq!(count, (groups.len() * group) as u64);
            time
        };
        let plain = || {
            let dir = on_disk();
            let plain = Plain::new(dir.path());
            let groups = grouped(groups, group);
            let start = Instant::now();
            for group in &groups {
                plain.commit(group);
            }
            each(start, groups.len() * group)
        };
        let aim = if group == 1 { Aim::None } else { Aim::Times(1.15) };
        table.compare(&format!("in groups of {group}"), aim, ours, plain);
    }
}

/// Rebuilds the state from the log. The plain side reads the same log, and updates a fresh table in transactions of the same
/// size.
fn rebuild(scale: Scale) {
    let events = scale.of(1_000_000);
    let dir = on_disk();
    let files = Files::in_dir(dir.path());
    let setup = setup();
    let mut replica = Replica::open(files.clone(), setup.clone()).expect("open");
    for group in grouped(events.div_ceil(1_000), events.min(1_000)) {
        replica.commit(&group).expect("commit");
    }
    drop(replica);

    let ours = || {
        std::fs::remove_file(files.state()).expect("delete the state");
        let start = Instant::now();
        let replica = Replica::open(files.clone(), setup.clone()).expect("open");
        let time = each(start, events);
        assert_eq!(replica.query(&likes::count()).expect("count"), events as u64);
        time
    };
    let plain = || {
        let dir = on_disk();
        let start = Instant::now();
        let log = Connection::open(files.eventlog()).expect("open");
        let state = open_plain(&dir.path().join("state.db"), "NORMAL");
        let mut read = log.prepare("SELECT seq, id, name, origin, args FROM log ORDER BY seq").expect("prepare");
        let mut update = state.prepare(UPDATE).expect("prepare");
        let mut rows = read.query(()).expect("query");
        let mut count = 0;
        state.execute_batch("BEGIN").expect("begin");
        while let Some(row) = rows.next().expect("read") {
            // What a materializer needs to know of its event.
            assert!(row.get::<_, [u8; 16]>(1).is_ok() && row.get::<_, i64>(2).is_ok() && row.get_ref(4).is_ok());
            update.execute(()).expect("update");
            count += 1;
            if count % 10_000 == 0 {
                state.execute_batch("COMMIT; BEGIN").expect("commit");
            }
        }
        state.execute_batch("COMMIT").expect("commit");
        let time = each(start, events);
        assert_eq!(count, events);
        time
    };
    let table = Table::new(scale, "rebuild, per event", "engine", "plain");
    table.compare(&format!("of {events} events"), Aim::Speed(1.0), ours, plain);
}

/// Imports events from lines of JSON, by the command. The plain side reads the same lines into the plain loop.
fn import(scale: Scale) {
    let events = scale.of(1_000_000);
    let dir = on_disk();
    let lines = dir.path().join("events");
    let mut out = BufWriter::new(File::create(&lines).expect("a file"));
    for _ in 0..events {
        writeln!(out, r#"{{"id":"{}","name":"LikeAdded"}}"#, EventId::now()).expect("write an event");
    }
    out.into_inner().expect("write the events");

    let ours = || {
        let data = on_disk();
        let mut command = common::likewise();
        command
            .args(["import", "--data"])
            .arg(data.path())
            .stdin(File::open(&lines).expect("open"))
            .stderr(Stdio::null());
        let start = Instant::now();
        assert!(command.status().expect("start the import").success());
        each(start, events)
    };
    let plain = || {
        let dir = on_disk();
        let start = Instant::now();
        let plain = Plain::new(dir.path());
        let mut lines = BufReader::new(File::open(&lines).expect("open")).lines();
        loop {
            let group: Vec<_> = lines.by_ref().take(1_000).map(|line| parsed(&line.expect("read"))).collect();
            if group.is_empty() {
                break;
            }
            plain.commit(&group);
        }
        each(start, events)
    };
    let table = Table::new(scale, "import, per event", "likewise", "plain");
    table.compare(&format!("of {events} events"), Aim::Times(1.5), ours, plain);
}

/// What a line of an export says.
#[derive(Deserialize)]
struct Line {
    id: EventId,
    name: String,
}

fn parsed(line: &str) -> Envelope {
    let Line { id, name } = serde_json::from_str(line).expect("JSON");
    assert_eq!(name, LikeAdded::NAME);
    Envelope::new(id, &LikeAdded {}).expect("an event")
}

/// The time from a click to the last watcher: commit, run the query again, wake the watchers. The plain side commits and runs
/// its query again, but wakes nobody.
fn live(scale: Scale) {
    let table = Table::new(scale, "a change, watched", "engine", "plain");
    let runtime = Runtime::new().expect("start tokio");
    for (watchers, changes) in [(1, 100), (100, 100), (10_000, 20)] {
        let (watchers, changes) = (scale.of(watchers), scale.of(changes));
        let ours = || {
            let dir = on_disk();
            let stores = Stores::open(dir.path(), setup(), StoreLimits::default()).expect("open");
            let time = runtime.block_on(time_changes(&stores, watchers, changes));
            stores.close();
            time
        };
        let plain = || {
            let dir = on_disk();
            let plain = Plain::new(dir.path());
            let mut query = plain.conn.prepare("SELECT count FROM likes WHERE id = 1").expect("prepare");
            let groups = grouped(changes, 1);
            let start = Instant::now();
            for group in &groups {
                plain.commit(group);
                let _: u64 = query.query_row((), |row| row.get(0)).expect("query");
            }
            each(start, changes)
        };
        let aim = if watchers == scale.of(10_000) { Aim::Times(10.0) } else { Aim::None };
        table.compare(&format!("by {watchers}"), aim, ours, plain);
    }
}

/// How long a change takes until all of `watchers` have it.
async fn time_changes(stores: &Stores, watchers: usize, changes: usize) -> Duration {
    let store = stores.get(&"bench".parse().expect("a name")).expect("open");
    let (tell, mut told) = mpsc::channel(watchers);
    for _ in 0..watchers {
        let (mut watch, tell) = (store.watch(likes::count()), tell.clone());
        tokio::spawn(async move {
            while let Ok(count) = watch.next().await {
                if tell.send(count).await.is_err() {
                    break;
                }
            }
        });
    }
    let mut all_have = async |count: u64| {
        for _ in 0..watchers {
            assert_eq!(told.recv().await, Some(count));
        }
    };
    all_have(0).await;
    // The first like creates the files, which isn't measured here.
    store.commit(LikeAdded {}).await.expect("commit");
    all_have(1).await;
    let start = Instant::now();
    for change in 0..changes {
        store.commit(LikeAdded {}).await.expect("commit");
        all_have(change as u64 + 2).await;
    }
    each(start, changes)
}

/// A vote for one of many things.
#[derive(Serialize, Deserialize)]
struct Voted {
    item: u32,
}

impl Event for Voted {
    const NAME: &'static str = "Voted";
}

/// A commit that changes one row while many rows are watched by key, compared with one while nobody watches.
fn keys(scale: Scale) {
    let table = Table::new(scale, "a commit of one row", "watched", "alone");
    let runtime = Runtime::new().expect("start a runtime");
    for (watched, commits) in [(1, 500), (1_000, 500), (10_000, 500)] {
        let (watched, commits) = (scale.of(watched), scale.of(commits));
        let ours = || runtime.block_on(time_votes(watched, commits));
        let alone = || runtime.block_on(time_votes(0, commits));
        table.compare(&format!("of {watched} watched"), Aim::None, ours, alone);
    }
}

/// How long a vote takes while `watched` rows are watched.
async fn time_votes(watched: usize, votes: usize) -> Duration {
    let dir = on_disk();
    let schema = Schema::new("CREATE TABLE item (id INTEGER PRIMARY KEY, votes INTEGER NOT NULL) STRICT").on(
        |Voted { item }, db| {
            let sql = "INSERT INTO item VALUES (?1, 1) ON CONFLICT DO UPDATE SET votes = votes + 1";
            db.execute(sql, [item])
        },
    );
    let setup = Setup::new(schema, "bench".parse().expect("a name")).expect("read the program");
    let stores = Stores::open(dir.path(), setup, StoreLimits::default()).expect("open");
    let store = stores.get(&"bench".parse().expect("a name")).expect("open");
    store.commit(Voted { item: 0 }).await.expect("commit");
    let query = Query::rows("SELECT votes FROM item WHERE id = ?1", |row| Ok(row.get::<_, u64>(0)?));
    let mut watches = Vec::new();
    for item in 0..watched {
        let mut watch = store.watch(query.clone().bind(item as u64));
        watch.next().await.expect("an answer");
        watches.push(watch);
    }
    let start = Instant::now();
    for vote in 0..votes {
        let item = u32::try_from(vote % watched.max(1)).expect("a small number");
        store.commit(Voted { item }).await.expect("commit");
    }
    let time = each(start, votes);
    drop(watches);
    tokio::task::spawn_blocking(move || stores.close()).await.expect("close");
    time
}

fn setup() -> Setup {
    Setup::new(likes::schema(), "bench".parse().expect("a name")).expect("read the program")
}

/// New likes, made before the measurement.
fn grouped(groups: usize, group: usize) -> Vec<Vec<Envelope>> {
    let like = |_| Envelope::new(EventId::now(), &LikeAdded {}).expect("an event");
    (0..groups).map(|_| (0..group).map(like).collect()).collect()
}

const INSERT: &str = "INSERT INTO log (id, name, origin, args) VALUES (?1, ?2, ?3, ?4)";
const UPDATE: &str = "UPDATE likes SET count = count + 1 WHERE id = 1";

/// The plain loop's database: log and count in one file.
struct Plain {
    conn: Connection,
}

impl Plain {
    fn new(dir: &Path) -> Self {
        let conn = open_plain(&dir.join("plain.db"), "FULL");
        let log = "CREATE TABLE log (seq INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, name INTEGER NOT NULL,
                                     origin INTEGER NOT NULL, args TEXT) STRICT";
        conn.execute_batch(log).expect("make the table");
        Self { conn }
    }

    fn commit(&self, group: &[Envelope]) {
        let prepare = |sql| self.conn.prepare_cached(sql).expect("prepare");
        let (mut insert, mut update) = (prepare(INSERT), prepare(UPDATE));
        prepare("BEGIN IMMEDIATE").execute(()).expect("begin");
        for event in group {
            insert.execute(params![event.id.as_bytes(), 1, 1, event.args.as_text()]).expect("insert");
            update.execute(()).expect("update");
        }
        prepare("COMMIT").execute(()).expect("commit");
    }
}

fn open_plain(path: &Path, synchronous: &str) -> Connection {
    let conn = Connection::open(path).expect("open");
    conn.query_row("PRAGMA journal_mode = WAL", (), |_| Ok(())).expect("use a WAL");
    conn.pragma_update(None, "synchronous", synchronous).expect("set the durability");
    conn.pragma_update(None, "wal_autocheckpoint", 0).expect("leave checkpoints away");
    let likes = "CREATE TABLE likes (id INTEGER PRIMARY KEY, count INTEGER NOT NULL) STRICT;
                 INSERT INTO likes VALUES (1, 0);";
    conn.execute_batch(likes).expect("make the table");
    conn
}
