//! What a like and the page cost over HTTP, compared with the least that a server on the same libraries can do: an axum handler
//! that reads the form, stores nothing, and answers with the same redirect; and the same handler before a bare thread that commits
//! likes in groups.
//!
//! ```sh
//! cargo bench --bench http                # all; or a part: -- likes, -- click, -- page, -- latency
//! BENCH_CONNECTIONS=8 BENCH_SECONDS=60 cargo bench --bench http -- likes
//! ```
//!
//! Each server is its own process: the release binary with its guard and limits, and this program again, which has neither. The
//! same load asks them in turns, also from a process of its own, and shares the machine with them.

#[path = "../tests/common/mod.rs"]
mod common;
mod compare;
mod parts;

use std::env;
use std::time::Duration;

use common::Server;
use compare::{Aim, Scale, Table, Unit, median, on_disk, point, run, turns};
use parts::{Answered, Peer, Plan, count, serve};
use tempfile::TempDir;

fn main() {
    if parts::play() {
        return;
    }
    common::raise_open_file_limit();
    run(&[("likes", likes), ("click", click), ("page", page), ("latency", latency)]);
}

/// Likewise and the bare prototype, on directories of their own.
struct Storing {
    likewise: Server,
    grouped: Server,
    _dirs: [TempDir; 2],
}

impl Storing {
    fn start() -> Self {
        let dirs = [on_disk(), on_disk()];
        let likewise = serve(dirs[0].path());
        let grouped = Peer::Grouped(dirs[1].path().to_str().expect("a path of text")).start();
        Self { likewise, grouped, _dirs: dirs }
    }
}

/// As many likes as the servers take, over few connections and many.
fn likes(scale: Scale) {
    let asked = env::var("BENCH_CONNECTIONS").ok().and_then(|number| number.parse().ok());
    let numbers = asked.map_or_else(|| vec![1, 4, 16, 64, 256, 1_024], |number| vec![number]);
    let (storing, memory) = (Storing::start(), Peer::Memory.start());
    let slice = scale.time(Duration::from_secs(1));
    let mut posted = 0;
    for connections in numbers {
        let post = |server: &Server| Plan::likes(server, connections, slice).run();
        let mut ours = || {
            let answered = post(&storing.likewise);
            posted += answered.count;
            answered
        };
        let said = turns(scale, &mut [&mut ours, &mut || post(&memory), &mut || post(&storing.grouped)]);
        let of = |side: usize, what: fn(&Answered) -> f64| said[side].iter().map(what).collect::<Vec<_>>();
        let [ours, nothing, grouped] = [0, 1, 2].map(|side| of(side, Answered::each));
        for (line, each) in [("likewise", &ours), ("axum, storing nothing", &nothing), ("bare group commit", &grouped)]
        {
            point("likes", line, connections as f64, 1.0 / median(each));
        }
        let (beside_nothing, beside_grouped, p99) = match connections {
            64 => (Aim::Speed(0.75), Aim::Speed(1.0), Aim::Times(1.0)),
            256 => (Aim::Speed(0.85), Aim::None, Aim::None),
            _ => (Aim::None, Aim::None, Aim::None),
        };
        let of = format!("POST /likes, {connections} at a time");
        Table::new(scale, &of, "likewise", "nothing").row("a like", Unit::Seconds, beside_nothing, &ours, &nothing);
        let table = Table::new(scale, &of, "likewise", "grouped");
        table.row("a like", Unit::Seconds, beside_grouped, &ours, &grouped);
        let [ours, grouped] = [0, 2].map(|side| said[side].iter().map(|answered| answered.p99).collect::<Vec<_>>());
        table.row("p99", Unit::Seconds, p99, &ours, &grouped);
    }
    assert_eq!(count(&storing.likewise), posted, "each answered like counts once");
}

/// One click alone.
fn click(scale: Scale) {
    let storing = Storing::start();
    let slice = scale.time(Duration::from_secs(1));
    let post = |server: &Server| Plan::likes(server, 1, slice).run();
    let said = turns(scale, &mut [&mut || post(&storing.likewise), &mut || post(&storing.grouped)]);
    let of = |side: usize, what: fn(&Answered) -> f64| said[side].iter().map(what).collect::<Vec<_>>();
    let table = Table::new(scale, "one click, nothing else", "likewise", "grouped");
    table.row("p50 to the redirect", Unit::Seconds, Aim::Times(1.1), &of(0, |a| a.p50), &of(1, |a| a.p50));
    table.row("p99 to the redirect", Unit::Seconds, Aim::None, &of(0, |a| a.p99), &of(1, |a| a.p99));
}

/// The page, compared with a handler that has its bytes ready.
fn page(scale: Scale) {
    let dir = on_disk();
    let likewise = serve(dir.path());
    // A store is created with its first like.
    Plan::likes(&likewise, 1, Duration::from_secs(10)).at_most(1).run();
    let answer = dir.path().join("answer");
    std::fs::write(&answer, bytes_of_the_page(&likewise)).expect("write the answer");
    let bytes = Peer::File(answer.to_str().expect("a path of text")).start();
    let slice = scale.time(Duration::from_secs(1));
    let get = |server: &Server| Duration::from_secs_f64(Plan::page(server, 64, slice).run().each());
    let table = Table::new(scale, "GET /, 64 at a time", "likewise", "its bytes");
    table.compare("a page", Aim::Speed(0.9), || get(&likewise), || get(&bytes));
}

fn bytes_of_the_page(server: &Server) -> Vec<u8> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", server.port())).expect("connect");
    write!(stream, "GET / HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\n\r\n", server.port()).expect("send");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("receive");
    answer
}

/// How long a like takes when so many a second come in, over 64 connections.
fn latency(scale: Scale) {
    let storing = Storing::start();
    let slice = scale.time(Duration::from_secs(2));
    for rate in [1_000.0, 2_000.0, 5_000.0, 10_000.0, 20_000.0, 30_000.0, 40_000.0] {
        let post = |server: &Server| Plan::likes(server, 64, slice).a_second(rate).run();
        let said = turns(scale, &mut [&mut || post(&storing.likewise), &mut || post(&storing.grouped)]);
        let of = |side: usize, what: fn(&Answered) -> f64| said[side].iter().map(what).collect::<Vec<_>>();
        let of_table = format!("{rate} likes a second");
        let table = Table::new(scale, &of_table, "likewise", "grouped");
        for (name, what) in [("p50", (|a| a.p50) as fn(&Answered) -> f64), ("p99", |a| a.p99)] {
            let [ours, grouped] = [of(0, what), of(1, what)];
            table.row(name, Unit::Seconds, Aim::None, &ours, &grouped);
            point("latency", &format!("likewise, {name}"), rate, median(&ours) * 1e3);
            point("latency", &format!("bare group commit, {name}"), rate, median(&grouped) * 1e3);
        }
    }
}
