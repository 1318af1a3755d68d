//! What a like may allocate. This is a guard against slipping back: unlike a time, the number of allocations is the same on a busy
//! machine and in a debug build, and a copy too many shows in it.
//!
//! The bounds are a quarter above what was needed when they were set. Whoever saves some should lower them. SQLite has an
//! allocator of its own, which isn't counted.

mod common;

use std::alloc::System;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Mutex, MutexGuard};

use alloc_tracker::{Allocator, Session};
use common::data_dir;
use common::served::Served;
use likewise::Options;
use likewise::engine::{Envelope, EventId, Files, Replica, Setup};
use likewise::likes::{self, LikeAdded};

#[global_allocator]
static ALLOCATOR: Allocator<System> = Allocator::system();

/// The whole process is counted, so one test runs at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// What one like takes.
#[derive(Debug)]
struct Allocated {
    times: f64,
    bytes: f64,
}

impl Allocated {
    /// Does the same over and over, each time `likes` likes, and returns the least that it took: now and then something else
    /// happens meanwhile, such as a checkpoint.
    fn by(likes: u64, mut work: impl FnMut()) -> Self {
        let rounds = (0..10).map(|_| {
            let session = Session::new().no_stdout().no_file();
            let operation = session.operation("likes");
            {
                let _span = operation.measure_process().iterations(likes);
                work();
            }
            let report = session.to_report();
            let (_, measured) = report.operations().next().expect("one operation");
            (measured.allocations().expect("a number"), measured.bytes().expect("a number"))
        });
        let (times, bytes): (Vec<_>, Vec<_>) = rounds.collect();
        let least = |values: Vec<f64>| values.into_iter().fold(f64::MAX, f64::min);
        Self { times: least(times), bytes: least(bytes) }
    }

    /// Fails if it is more than the bounds.
    fn must_be_within(&self, times: f64, bytes: f64) {
        eprintln!("{:.2} allocations and {:.0} bytes a like", self.times, self.bytes);
        assert!(self.times <= times && self.bytes <= bytes, "{self:?}; the bounds are {times} and {bytes} bytes");
    }
}

#[test]
fn a_like_over_http_allocates_no_more_than_it_did() {
    let _alone = alone();
    let data = data_dir();
    let served = Served::start(likes::app(), Options { data: Some(data.path().to_owned()), ..Options::default() });
    let mut visitor = Visitor::new(served.port);
    // The first ones open the store, and fill what is kept for later.
    visitor.like(300);
    Allocated::by(100, || visitor.like(100)).must_be_within(88.0, 24_700.0);
}

/// A client that allocates nothing itself while it likes.
struct Visitor {
    stream: TcpStream,
    request: Vec<u8>,
}

/// The characters of an id.
const ID: usize = 36;

impl Visitor {
    fn new(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("connect");
        stream.set_nodelay(true).expect("send at once");
        let request = format!(
            "POST /likes HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/x-www-form-urlencoded\r\n\
             Content-Length: 39\r\n\r\nid={:ID$}",
            ""
        );
        Self { stream, request: request.into_bytes() }
    }

    /// Posts likes, one after the other.
    fn like(&mut self, likes: usize) {
        for _ in 0..likes {
            let id = self.request.len() - ID;
            write!(&mut self.request[id..], "{}", EventId::now()).expect("room for an id");
            self.stream.write_all(&self.request).expect("send");
            let (mut answer, mut length) = ([0; 2_048], 0);
            while !answer[..length].ends_with(b"\r\n\r\n") {
                let read = self.stream.read(&mut answer[length..]).expect("receive");
                assert!(read > 0, "the server hung up");
                length += read;
            }
            assert!(answer.starts_with(b"HTTP/1.1 303"), "{}", String::from_utf8_lossy(&answer[..length]));
        }
    }
}

#[test]
fn an_event_of_a_group_allocates_no_more_than_it_did() {
    let _alone = alone();
    let dir = data_dir();
    let setup = Setup::new(likes::schema(), "test".parse().expect("a name")).expect("read the program");
    let mut replica = Replica::open(Files::in_dir(dir.path()), setup).expect("open");
    let like = || Envelope::new(EventId::now(), &LikeAdded {}).expect("an event");
    let group = || (0..100).map(|_| like()).collect::<Vec<_>>();
    let mut groups: Vec<_> = (0..110).map(|_| group()).collect();
    let mut commit_ten = || {
        for _ in 0..10 {
            replica.commit(&groups.pop().expect("groups enough")).expect("commit");
        }
    };
    commit_ten();
    Allocated::by(1_000, commit_ten).must_be_within(1.95, 590.0);
}
