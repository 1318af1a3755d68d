//! What open pages cost: their memory, how soon all have a change, and what clicks pay for pages that watch. Compared with axum's
//! own event streams, with bare tasks that write to their sockets, and with nobody watching.
//!
//! ```sh
//! cargo bench --bench pages               # all; or a part: -- open, -- likes, -- seen, -- restart
//! ```
//!
//! Each server is its own process, and so are the pages and those who like. How many pages there can be depends on how many files
//! a process may open: 6,000 pages where there may be 20,000 files, and 9,900 from 33,000 files on.

#[path = "../tests/common/mod.rs"]
mod common;
mod compare;
mod parts;

use std::time::{Duration, Instant};

use common::Server;
use compare::{Aim, Scale, Table, Unit, median, on_disk, point, run, turns};
use parts::{Answered, Pages, Peer, Plan, memory, serve, serve_at};
use tempfile::TempDir;

/// As many pages as one kind of reader may have, less a few: 10,000, or fewer where the server may not open so many files.
fn most_pages() -> usize {
    use rustix::process::{Resource, getrlimit};
    getrlimit(Resource::Nofile).current.map_or(9_900, |files| 9_900.min(files as usize * 3 / 10))
}

fn main() {
    if parts::play() {
        return;
    }
    common::raise_open_file_limit();
    run(&[("open", open), ("likes", likes), ("seen", seen), ("restart", restart)]);
}

/// What it took one server to have all pages open.
struct Opened {
    /// Until the last page had its first count, in seconds.
    connected: f64,
    again: f64,
    /// Bytes of memory a page.
    memory: f64,
    /// From one like until the last page had it, in seconds.
    reached: f64,
}

fn open(scale: Scale) {
    // The first like makes the store, and doesn't count.
    let likes = if scale.is_full() { 6 } else { 2 };
    for full in [1_000, 2_500, 5_000, most_pages()] {
        let pages = scale.of(full);
        let ours = || {
            let dir = on_disk();
            opened(&serve(dir.path()), pages, likes)
        };
        let said = turns(
            scale,
            &mut [&mut { ours }, &mut || opened(&Peer::Memory.start(), pages, likes), &mut || {
                opened(&Peer::Tasks.start(), pages, likes)
            }],
        );
        let of = |side: usize, what: fn(&Opened) -> f64| said[side].iter().map(what).collect::<Vec<_>>();
        for (side, line) in ["likewise", "axum", "bare tasks"].into_iter().enumerate() {
            point("memory", line, pages as f64, median(&of(side, |opened| opened.memory)) * pages as f64 / 1e6);
        }
        let title = format!("{pages} open pages");
        let aim = |aim: Aim| if full == most_pages() { aim } else { Aim::None };
        let axum = Table::new(scale, &title, "likewise", "axum");
        let memory = |side: usize| of(side, |opened| opened.memory);
        axum.row("memory a page", Unit::Bytes, aim(Aim::Most(6e3)), &memory(0), &memory(1));
        let connected = |side: usize| of(side, |opened| opened.connected);
        axum.row("all connect at once", Unit::Seconds, aim(Aim::Times(1.2)), &connected(0), &connected(1));
        let again = |side: usize| of(side, |opened| opened.again);
        axum.row("of these began anew", Unit::Number, aim(Aim::Most(0.0)), &again(0), &again(1));
        let reached = |side: usize| of(side, |opened| opened.reached);
        axum.row("all have a like", Unit::Seconds, Aim::None, &reached(0), &reached(1));
        let tasks = Table::new(scale, &title, "likewise", "tasks");
        tasks.row("memory a page", Unit::Bytes, Aim::None, &memory(0), &memory(2));
        tasks.row("all have a like", Unit::Seconds, aim(Aim::Times(1.15)), &reached(0), &reached(2));
    }
}

fn opened(server: &Server, pages: usize, likes: usize) -> Opened {
    // What a server needs for its first page is no page's.
    Pages::open(server, 1).wait_until_live();
    let before = memory(server);
    let mut all = Pages::open(server, pages);
    let (connected, again) = all.wait_until_live();
    std::thread::sleep(Duration::from_millis(800));
    let memory = (memory(server) - before) / pages as f64;
    let likes: Vec<_> = (0..likes).map(|_| all.like()).collect();
    Opened { connected, again: again as f64, memory, reached: median(&likes[1..]) }
}

/// Likewise while pages watch.
struct Watched {
    server: Server,
    _dir: TempDir,
    pages: Option<Pages>,
}

impl Watched {
    fn by(pages: usize) -> Self {
        let dir = on_disk();
        let server = serve(dir.path());
        let pages = (pages > 0).then(|| {
            let mut pages = Pages::open(&server, pages);
            pages.wait_until_live();
            pages
        });
        Self { server, _dir: dir, pages }
    }
}

/// As many likes as the server takes over 64 connections, while pages watch and while nobody does.
fn likes(scale: Scale) {
    let slice = scale.time(Duration::from_secs(2));
    for (pages, speed, p99) in [(1_000, 0.9, 5e-3), (4_000, 0.8, 8e-3), (9_000, 0.6, 15e-3)] {
        let pages = scale.of(most_pages().min(pages));
        let (watched, alone) = (Watched::by(pages), Watched::by(0));
        let post = |server: &Server| Plan::likes(server, 64, slice).run();
        let said = turns(scale, &mut [&mut || post(&watched.server), &mut || post(&alone.server)]);
        let of = |side: usize, what: fn(&Answered) -> f64| said[side].iter().map(what).collect::<Vec<_>>();
        let title = format!("POST /likes, {pages} pages watch");
        let table = Table::new(scale, &title, "watched", "alone");
        table.row("a like", Unit::Seconds, Aim::Speed(speed), &of(0, Answered::each), &of(1, Answered::each));
        table.row("p99", Unit::Seconds, Aim::Most(p99), &of(0, |a| a.p99), &of(1, |a| a.p99));
    }
}

/// How soon pages show what others do, at 5,000 likes a second.
fn seen(scale: Scale) {
    let (pages, rate) = (scale.of(2_000), 5_000.0);
    let mut watched = Watched::by(pages);
    let pages_of = watched.pages.as_mut().expect("there are pages");
    let time = scale.time(Duration::from_secs(5));
    let rounds: Vec<_> = (0..scale.rounds()).map(|_| pages_of.follow_likes(rate, 64, time)).collect();
    let title = format!("{rate} likes a second, {pages} pages");
    let table = Table::new(scale, &title, "likewise", "its pause");
    let of = |what: fn(&parts::Seen) -> f64| rounds.iter().map(what).collect::<Vec<_>>();
    table.row("p50 from a click to a page", Unit::Seconds, Aim::None, &of(|seen| seen.p50), &of(|seen| seen.pause));
    table.row(
        "p99 from a click to a page",
        Unit::Seconds,
        Aim::Over(0.04),
        &of(|seen| seen.p99),
        &of(|seen| seen.pause),
    );
}

/// How soon all pages are live again after a server was killed and started.
fn restart(scale: Scale) {
    let pages = scale.of(6_000.min(most_pages()));
    let dir = on_disk();
    let table = Table::new(scale, "kill, start, all pages are live", "likewise", "axum");
    table.compare(
        &format!("{pages} pages"),
        Aim::None,
        || live_again(|listen| serve_at(dir.path(), listen), pages),
        || live_again(|listen| Peer::Memory.start_at(listen), pages),
    );
}

/// Has `pages` follow a server, kills that, and starts it again. Returns the time from then until the last page is live.
fn live_again(serve: impl Fn(&str) -> Server, pages: usize) -> Duration {
    let server = serve("127.0.0.1:0");
    let mut following = Pages::open(&server, pages);
    following.wait_until_live();
    let address = format!("127.0.0.1:{}", server.port());
    server.kill();
    following.wait_until_gone();
    let start = Instant::now();
    let _server = serve(&address);
    following.wait_until_live();
    start.elapsed()
}
