//! The programs that a benchmark starts beside itself: peers that serve, and loads that ask. Each is this same executable in a
//! process of its own, so a peer has its own allocator and threads, as likewise has, and no load waits for another.
//!
//! Everything is on loopback, and each load is bounded in count and time.

#![allow(dead_code, unused_imports, reason = "each benchmark uses a part of this")]

mod load;
mod pages;
mod peers;

use std::env;
use std::process::{Command, Stdio};
use std::time::Duration;

pub(crate) use pages::{Pages, Seen};
use serde::{Deserialize, Serialize};

use crate::common::{Server, likewise};

/// What the command line begins with for such a program.
const PART: &str = "--part";

/// Plays a part if the command line asks for one, and returns whether it did. Each `main` begins with this.
pub(crate) fn play() -> bool {
    let args: Vec<_> = env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    // When the benchmark is killed, nothing goes on serving or asking.
    #[cfg(target_os = "linux")]
    if args.first() == Some(&PART) {
        use rustix::process::{Signal, set_parent_process_death_signal};
        set_parent_process_death_signal(Some(Signal::KILL)).expect("end with the benchmark");
    }
    match args[..] {
        [PART, "memory", listen] => peers::in_memory(listen),
        [PART, "grouped", dir] => peers::grouped(dir.as_ref()),
        [PART, "tasks"] => peers::tasks(),
        [PART, "file", path] => peers::file(path.as_ref()),
        [PART, "ask", plan] => load::ask(serde_json::from_str(plan).expect("a plan")),
        [PART, "pages", address, pages] => pages::follow_all(address, pages.parse().expect("a number")),
        _ => return false,
    }
    true
}

/// This program in one of its parts.
fn part(args: &[&str]) -> Command {
    let mut command = Command::new(env::current_exe().expect("the path of this program"));
    command.arg(PART).args(args);
    command
}

/// A peer of likewise.
#[derive(Clone, Copy)]
pub(crate) enum Peer<'a> {
    /// An axum handler that stores nothing, with axum's own event streams. It has no guard, no limits, and no headers except
    /// those that it needs.
    Memory,
    /// The same handler before one thread that commits posts in groups, as a first draft of likewise might: one SQLite file for
    /// the events and one for the count. It is as durable as likewise.
    Grouped(&'a str),
    /// Bare tasks of tokio that write to their sockets: the least that a stream can cost.
    Tasks,
    /// An axum handler that answers with the bytes of a file.
    File(&'a str),
}

impl Peer<'_> {
    /// Starts it on a free port.
    pub(crate) fn start(self) -> Server {
        self.start_at("127.0.0.1:0")
    }

    /// Starts it at an address. Only [`Memory`](Self::Memory) can be told where.
    pub(crate) fn start_at(self, listen: &str) -> Server {
        let command = match self {
            Self::Memory => part(&["memory", listen]),
            Self::Grouped(dir) => part(&["grouped", dir]),
            Self::Tasks => part(&["tasks"]),
            Self::File(path) => part(&["file", path]),
        };
        Server::spawn(command, "".as_ref())
    }
}

/// Starts likewise on the data in `data`.
pub(crate) fn serve(data: &std::path::Path) -> Server {
    serve_at(data, "127.0.0.1:0")
}

/// Starts likewise on the data in `data`, at an address.
pub(crate) fn serve_at(data: &std::path::Path, listen: &str) -> Server {
    let mut command = likewise();
    command.args(["serve", "--listen", listen]).env("LIKEWISE_LOG", "error");
    Server::spawn(command, data)
}

/// What a load asks for, and when it ends.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Plan {
    address: String,
    what: What,
    /// Each is busy with one request at a time.
    connections: usize,
    /// How long to go on, in seconds.
    seconds: f64,
    /// How many requests to send at most.
    most: u64,
    /// Requests a second, or as many as are answered.
    rate: Option<f64>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
enum What {
    /// Likes, each as a form with an id of its own.
    Likes,
    /// The page.
    Page,
}

/// What came of a load.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Answered {
    pub(crate) count: u64,
    /// All of it, in seconds.
    seconds: f64,
    /// From a request to its answer, in seconds. With a rate, from when the request was due.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

impl Answered {
    /// The time a request, if they came one after the other.
    pub(crate) fn each(&self) -> f64 {
        self.seconds / self.count as f64
    }
}

impl Plan {
    fn new(server: &Server, what: What, connections: usize, time: Duration) -> Self {
        let address = format!("127.0.0.1:{}", server.port());
        Self { address, what, connections, seconds: time.as_secs_f64(), most: 10_000_000, rate: None }
    }

    /// Posts likes.
    pub(crate) fn likes(server: &Server, connections: usize, time: Duration) -> Self {
        Self::new(server, What::Likes, connections, time)
    }

    /// Gets the page.
    pub(crate) fn page(server: &Server, connections: usize, time: Duration) -> Self {
        Self::new(server, What::Page, connections, time)
    }

    /// Ends after so many requests.
    pub(crate) fn at_most(self, requests: u64) -> Self {
        Self { most: requests, ..self }
    }

    /// Sends so many requests a second, as far as connections are free.
    pub(crate) fn a_second(self, requests: f64) -> Self {
        Self { rate: Some(requests), ..self }
    }

    /// Carries it out, in a process of its own.
    pub(crate) fn run(&self) -> Answered {
        let plan = serde_json::to_string(self).expect("JSON");
        let output = part(&["ask", &plan]).stderr(Stdio::inherit()).output().expect("start a load");
        assert!(output.status.success(), "a load failed");
        serde_json::from_slice(&output.stdout).expect("what came of it")
    }
}

/// What the status of likewise's store `likes` says.
pub(crate) fn status(server: &Server) -> serde_json::Value {
    let agent: ureq::Agent = ureq::Agent::config_builder().max_redirects(0).build().into();
    let body = agent.get(format!("{}/status", server.url)).call().expect("ask").body_mut().read_to_string();
    serde_json::from_str(&body.expect("read")).expect("JSON")
}

/// How many likes a server has.
pub(crate) fn count(server: &Server) -> u64 {
    status(server)["count"].as_u64().expect("a count")
}

/// The memory that a server uses, in bytes.
pub(crate) fn memory(server: &Server) -> f64 {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("a running process, on Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") * 1_024.0
}
