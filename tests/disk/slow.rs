//! A slow disk: readers don't wait for it, and see nothing that isn't safe yet.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::check::exported;
use crate::client::{agent, new_id};
use crate::common::{Server, wait_for};
use crate::shim::Recorder;

/// How long a page may take during a sync that ends only when the test says so. Long enough for a busy machine.
const SOON: Duration = Duration::from_secs(30);

#[test]
fn trust_65_pages_do_not_wait_for_a_sync_and_show_nothing_of_it() {
    let recorder = Recorder::new();
    let server = recorder.serve("data", &[]);
    server.like_times(3);
    let reader =
        ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(SOON)).build().new_agent();
    let read = |path: &str| {
        let answer = reader.get(format!("{}{path}", server.url)).call();
        let mut answer = answer.unwrap_or_else(|why| panic!("{path} waits for a sync: {why}"));
        (answer.status().as_u16(), answer.body_mut().read_to_string().expect("the answer"))
    };
    assert!(read("/").1.contains(r#"data-count="3""#));
    // Nobody watches this answer, but it is kept up to date all the same.
    server.like_times(2);
    recorder.only("eventlog.db");
    recorder.hold();
    let id = new_id();
    let posted = {
        let (url, id) = (format!("{}/likes", server.url), id.clone());
        std::thread::spawn(move || agent().post(url).send_form([("id", &id)]).expect("an answer").status().as_u16())
    };
    recorder.until_held();
    for _ in 0..3 {
        let (status, page) = read("/");
        assert_eq!(status, 200);
        assert!(page.contains(r#"data-count="5""#), "it shows what isn't safe yet: {page}");
        read("/healthz");
    }
    assert!(!posted.is_finished(), "the like was answered before its sync");
    recorder.release();
    assert_eq!(posted.join().expect("no panic"), 303);
    wait_for("the like to be shown", || read("/").1.contains(r#"data-count="6""#).then_some(()));
    assert!(server.terminate().success());
}

/// How many likes may wait for a store's thread.
const QUEUE: usize = 8_192;

/// How many more than that are posted, all at once.
const EXCESS: usize = 300;

/// A like posted on its own connection, and its answer so far.
struct Posted {
    id: String,
    stream: TcpStream,
    bytes: Vec<u8>,
}

impl Posted {
    fn new(server: &Server) -> Self {
        let id = new_id();
        let mut stream = server.connect();
        let body = format!("id={id}");
        let request = format!(
            "POST /likes HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-www-form-urlencoded\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).expect("a request");
        stream.set_nonblocking(true).expect("a socket that doesn't wait");
        Self { id, stream, bytes: Vec::new() }
    }

    /// The answer, once its head is there.
    fn answer(&mut self) -> Option<u16> {
        let mut piece = [0; 4_096];
        while let Ok(read @ 1..) = self.stream.read(&mut piece) {
            self.bytes.extend_from_slice(&piece[..read]);
        }
        let text = String::from_utf8_lossy(&self.bytes);
        let status = text.contains("\r\n\r\n").then(|| text[9..12].parse().expect("a status"))?;
        assert!(status != 503 || text.to_ascii_lowercase().contains("\r\nretry-after: "), "{text}");
        Some(status)
    }
}

#[test]
fn trust_46_likes_that_a_slow_disk_has_no_room_for_are_refused_at_once_and_the_others_stored() {
    // Each like is a connection, with a file at both ends.
    let files = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files }).expect("more files");
    let recorder = Recorder::new();
    let server = recorder.serve("data", &[]);
    server.like_times(1);
    assert_eq!(server.count(), 1);
    recorder.only("eventlog.db");
    recorder.hold();
    let mut waiting = vec![Posted::new(&server)];
    recorder.until_held();
    waiting.extend((0..QUEUE + EXCESS).map(|_| Posted::new(&server)));
    let mut refused = 0;
    wait_for("the excess to be refused while the disk is busy", || {
        waiting.retain_mut(|posted| match posted.answer() {
            None => true,
            Some(503) => {
                refused += 1;
                false
            }
            Some(other) => panic!("answered with {other} before the sync"),
        });
        (refused >= EXCESS).then_some(())
    });
    assert_eq!(refused, EXCESS, "as many wait as the queue has room for");
    assert_eq!(server.count(), 1, "nothing is shown that isn't safe");
    recorder.release();
    let mut stored = HashSet::new();
    wait_for("the others to be stored", || {
        waiting.retain_mut(|posted| match posted.answer() {
            None => true,
            Some(status) => {
                assert_eq!(status, 303);
                stored.insert(std::mem::take(&mut posted.id));
                false
            }
        });
        waiting.is_empty().then_some(())
    });
    assert_eq!(stored.len(), QUEUE + 1);
    assert_eq!(server.count(), QUEUE as u64 + 2);
    let log: HashSet<String> = exported(server.data()).expect("an export").into_iter().collect();
    assert!(stored.is_subset(&log) && log.len() == QUEUE + 2);
    assert!(server.terminate().success());
}

#[test]
fn trust_47_a_like_whose_sync_takes_its_time_is_finished_at_the_end() {
    let recorder = Recorder::new();
    let server = recorder.serve("data", &[]);
    server.like_times(3);
    recorder.only("eventlog.db");
    recorder.delay(1_000);
    let posted = {
        let url = format!("{}/likes", server.url);
        std::thread::spawn(move || {
            agent().post(url).send_form([("id", &new_id())]).expect("an answer").status().as_u16()
        })
    };
    recorder.until_held();
    assert!(server.terminate().success());
    assert_eq!(posted.join().expect("no panic"), 303);
    recorder.delay(0);
    assert_eq!(recorder.serve("data", &[]).count(), 4);
}
