//! What one token can make a hub hold, while the others go on. `LIKEWISE_LOAD=10` makes each load ten times as large.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::common::{load, raise_open_file_limit, wait_for};
use crate::support::{Node, Wire, exchange, like, likes, new_id};

/// A client of a hub that sends raw bytes.
struct Raw {
    address: String,
    token: String,
}

impl Raw {
    fn new(hub: &Node, name: &str) -> Self {
        Self { address: hub.url().trim_start_matches("http://").to_owned(), token: hub.token(name) }
    }

    fn wire(&self, hub: &Node) -> Wire {
        Wire::with_token(hub, &self.token)
    }

    fn head(&self, request: &str, more: &str) -> String {
        let Self { address, token } = self;
        format!("{request} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n{more}\r\n")
    }

    /// Sends these bytes, and returns the connection.
    fn send(&self, text: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(crate::common::PATIENCE)).unwrap();
        // A server that refuses early doesn't take the rest.
        drop(stream.write_all(text.as_bytes()));
        stream
    }

    /// The status and the problem of a pull that is refused, or 200.
    fn pull(&self, store: &str, parameters: &str) -> (TcpStream, u16) {
        let mut stream = self.send(&self.head(&format!("GET /sync/v1/{store}/events?{parameters}"), ""));
        let status = status(&mut stream);
        (stream, status)
    }
}

/// The status of the answer that comes on `stream`.
fn status(stream: &mut TcpStream) -> u16 {
    let mut start = [0; 12];
    stream.read_exact(&mut start).expect("an answer");
    std::str::from_utf8(&start[9..]).unwrap().parse().unwrap()
}

fn named(name: &str) -> Value {
    json!({ "id": new_id(), "name": name })
}

#[test]
fn trust_64_open_pushes_of_one_token_take_their_share_and_no_more() {
    raise_open_file_limit();
    let hub = Node::hub();
    let (many, other) = (Raw::new(&hub, "many"), Wire::new(&hub, "other"));
    let run = other.hello()["run"].clone();
    hub.like();
    let log = other.hello()["log"].clone();
    assert_eq!(other.push(&log, &run, &[like()]).0, 200);
    let before = hub.memory();
    let body = " ".repeat((1_024 + 100) * 1_024);
    let push = many.head("POST /sync/v1/likes/events", &format!("Content-Length: {}\r\n", body.len() + 1)) + &body;
    let mut open: Vec<_> = (0..load(60)).map(|_| many.send(&push)).collect();
    assert_eq!(other.push(&log, &run, &[like()]).0, 200, "another token goes on");
    hub.like();
    let took = hub.memory().saturating_sub(before);
    eprintln!("{} open pushes took {took} bytes", open.len());
    assert!(took < 96 << 20, "{} open pushes took {took} bytes", open.len());
    let statuses: Vec<_> = open.iter_mut().map(status).collect();
    assert!(statuses.contains(&429), "{statuses:?}");
    // The others never get their end. What they held is free again.
    assert!(statuses.iter().all(|status| [408, 429].contains(status)), "{statuses:?}");
    assert_eq!(many.wire(&hub).push(&log, &run, &[like()]).0, 200);
}

#[test]
fn trust_64_pulls_that_never_read_take_little_and_are_ended() {
    raise_open_file_limit();
    let hub = Node::hub();
    let text = "x".repeat(60_000);
    let mut lines = String::new();
    for _ in 0..300 {
        writeln!(lines, "{{\"id\":\"{}\",\"name\":\"NoteAdded\",\"args\":\"\\\"{text}\\\"\"}}", new_id()).unwrap();
    }
    hub.import(&lines);
    let deaf: Vec<_> = (0..load(5)).map(|n| Raw::new(&hub, &format!("deaf-{n}"))).collect();
    let other = Wire::new(&hub, "other");
    let read_all = || {
        let mut pull = other.pull("after=0").unwrap();
        let mut events = 0;
        while events < 300 {
            events += pull.page()["events"].as_array().unwrap().len();
        }
    };
    read_all();
    let before = hub.memory();
    let files = || fs::read_dir(format!("/proc/{}/fd", hub.pid())).unwrap().count();
    let files_before = files();
    let pulls: Vec<_> = deaf.iter().flat_map(|deaf| (0..16).map(|_| deaf.pull("likes", "after=0"))).collect();
    assert!(pulls.iter().all(|(_, status)| *status == 200));
    read_all();
    let took = hub.memory().saturating_sub(before);
    eprintln!("{} pulls took {took} bytes", pulls.len());
    assert!(took < (24 << 20) + 400_000 * pulls.len() as u64, "{} pulls took {took} bytes", pulls.len());
    wait_for("those that don't read to be disconnected", || (files() <= files_before + 8).then_some(()));
    drop(pulls);
}

#[test]
fn trust_64_pulls_of_one_token_leave_streams_to_others_and_made_up_stores_are_not_noted() {
    raise_open_file_limit();
    let mut hub = Node::hub();
    hub.like();
    let (many, other) = (Raw::new(&hub, "many"), Raw::new(&hub, "other"));
    let mut pulls = Vec::new();
    let refused = (0..1_400).find_map(|n| {
        let (stream, status) = many.pull(&format!("made-up-{n}"), "after=0");
        pulls.push(stream);
        (status != 200).then_some((n, status))
    });
    let (taken, status) = refused.expect("an end");
    assert_eq!(status, 429);
    // Fewer if the system allows fewer files.
    assert!((100..=1_250).contains(&taken), "an eighth of the streams, not {taken}");
    assert_eq!(other.pull("likes", "after=0").1, 200);
    hub.like();
    assert!(hub.status()["count"] == 2);
    drop(pulls);
    wait_for("its places to be free again", || (many.pull("likes", "after=0").1 == 200).then_some(()));
    hub.stop();
    let noted = fs::read_to_string(hub.data.join("devices.json")).unwrap();
    assert!(!noted.contains("made-up") && noted.len() < 1_000, "{noted}");
}

#[test]
fn trust_64_of_too_many_pulls_of_a_store_the_oldest_end() {
    let hub = Node::hub();
    hub.like();
    let (device, other) = (Wire::new(&hub, "device"), Wire::new(&hub, "other"));
    let mut before = other.pull("after=0").unwrap();
    let mut pulls: Vec<_> = (0..20).map(|_| device.pull("after=0").unwrap()).collect();
    for pull in &mut pulls[..4] {
        while pull.next().is_some() {}
    }
    hub.like();
    for pull in pulls[4..].iter_mut().chain([&mut before]) {
        while pull.page()["next"] != 2 {}
    }
}

#[test]
fn trust_64_a_store_takes_so_many_names_and_a_token_brings_so_many() {
    let hub = Node::hub();
    hub.like();
    let (first, second) = (Wire::new(&hub, "first"), Wire::new(&hub, "second"));
    let hello = first.hello();
    let (log, run) = (hello["log"].clone(), hello["run"].clone());
    let new_names =
        |from: usize, count: usize| -> Vec<_> { (from..from + count).map(|n| named(&format!("Made{n}"))).collect() };
    for from in (0..9_000).step_by(1_000) {
        let (status, answer) = first.push(&log, &run, &new_names(from, 1_000));
        assert_eq!((status, answer["events"][999]["refused"].clone()), (200, Value::Null), "{from}");
    }
    // `LikeAdded` is one of the names.
    let (status, answer) = first.push(&log, &run, &new_names(9_000, 1_000));
    assert_eq!((status, answer["events"][998]["refused"].clone()), (200, Value::Null));
    assert_eq!(answer["events"][999]["refused"], "too-many-names", "{}", answer["events"][999]);
    let (status, answer) = second.push(&log, &run, &[named("Unheard"), like(), named("Made7")]);
    assert_eq!(status, 200);
    assert_eq!(answer["events"][0]["refused"], "too-many-names");
    assert!(
        answer["events"][1]["seq"].is_u64() && answer["events"][2]["seq"].is_u64(),
        "names that are known: {answer}"
    );
    let (status, answer) = first.push(&log, &run, &new_names(20_000, 100));
    assert_eq!((status, answer["code"].clone()), (429, json!("too-many-new-names")), "{answer}");
    assert_eq!(second.push(&log, &run, &new_names(20_000, 100)).0, 200);
    hub.verify();
}

#[test]
fn trust_64_a_token_is_told_so_often_that_logs_differ_and_then_has_to_wait() {
    let hub = Node::hub();
    hub.import(&likes(3_000));
    let (often, other) = (Raw::new(&hub, "often"), Raw::new(&hub, "other"));
    let digest = "11".repeat(32);
    let asked = format!("log={}&after=1500&digest={digest}", hub.status()["log"].as_str().unwrap());
    let last = (0..2_000).map(|_| often.pull("likes", &asked).1).find(|status| *status != 409);
    assert_eq!(last, Some(429));
    let request = often.head(&format!("GET /sync/v1/likes/events?{asked}"), "Connection: close\r\n");
    let (_, head, body) = exchange(&often.address, &request);
    assert!(head.contains("retry-after: ") && body.contains("too-many-pulls"), "{head} {body}");
    assert_eq!(other.pull("likes", &asked).1, 409, "another token is told");
    assert_eq!(other.pull("likes", "after=0").1, 200);
}

#[test]
fn trust_42_a_push_whose_token_is_revoked_while_it_comes_is_not_stored() {
    let hub = Node::hub();
    hub.like();
    let (phone, other) = (Raw::new(&hub, "phone"), Wire::new(&hub, "other"));
    let hello = other.hello();
    let body = json!({ "log": hello["log"], "run": hello["run"], "events": [like()] }).to_string();
    let (start, end) = body.split_at(body.len() / 2);
    let more = format!("Content-Length: {}\r\n", body.len());
    let mut stream = phone.send(&(phone.head("POST /sync/v1/likes/events", &more) + start));
    // It came before this request, so it has been let in once this is answered.
    assert_eq!(phone.pull("likes", "after=0").1, 200);
    hub.run(&["token", "revoke", "phone"]);
    stream.write_all(end.as_bytes()).unwrap();
    assert_eq!(status(&mut stream), 401);
    assert_eq!(hub.count(), 1);
}

#[test]
fn trust_64_snapshots_that_nobody_reads_leave_room_for_other_tokens() {
    let hub = Node::hub();
    let mut lines = likes(10_000);
    for _ in 0..40_000 {
        writeln!(lines, r#"{{"id":"{}","name":"Other"}}"#, new_id()).unwrap();
    }
    hub.import(&lines);
    let schema = hub.status()["schema"].as_str().unwrap().replace(' ', "%20");
    let (phone, laptop) = (Raw::new(&hub, "phone"), Raw::new(&hub, "laptop"));
    let ask = |raw: &Raw| {
        let mut stream = raw.send(&raw.head(&format!("GET /sync/v1/likes/snapshot?schema={schema}"), ""));
        let status = status(&mut stream);
        (stream, status)
    };
    let (memory, mut open) = (hub.memory(), Vec::new());
    for _ in 0..8 {
        let (stream, status) = ask(&phone);
        assert_eq!(status, 200);
        open.push(stream);
    }
    assert_eq!(ask(&phone).1, 429, "a token has its share");
    assert_eq!(ask(&laptop).1, 200, "and others have theirs");
    let grown = hub.memory().saturating_sub(memory);
    assert!(grown < 32 << 20, "{grown} bytes");
    drop(open);
    wait_for("room for the phone again", || (ask(&phone).1 == 200).then_some(()));
    let wrong = phone.head("GET /sync/v1/likes/snapshot", "");
    assert_eq!(status(&mut phone.send(&wrong)), 400);
    let foreign = phone.head("GET /sync/v1/likes/snapshot?schema=todo", "");
    assert_eq!(status(&mut phone.send(&foreign)), 404);
    let absent = phone.head(&format!("GET /sync/v1/nothing/snapshot?schema={schema}"), "");
    assert_eq!(status(&mut phone.send(&absent)), 404);
    assert!(!hub.data.join("stores/nothing").exists());
}

/// A part of a snapshot, and what is asked for in odd ways.
#[test]
fn a_snapshot_is_sent_in_parts_by_its_tag() {
    let hub = Node::hub();
    hub.import(&likes(10_000));
    let schema = hub.status()["schema"].as_str().unwrap().replace(' ', "%20");
    let phone = Raw::new(&hub, "phone");
    let ask = |more: &str| {
        let request = format!("GET /sync/v1/likes/snapshot?schema={schema}");
        let mut stream = phone.send(&phone.head(&request, &format!("Connection: close\r\n{more}")));
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("an answer");
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8(answer[..end].to_vec()).expect("a text");
        (head, answer[end + 4..].to_vec())
    };
    let header = |head: &str, name: &str| {
        let line = head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
        line.unwrap_or_else(|| panic!("no {name}: {head}")).to_owned()
    };
    let (head, whole) = ask("");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert_eq!(header(&head, "content-length"), whole.len().to_string());
    assert_eq!(header(&head, "likewise-length"), "10000");
    assert_eq!(header(&head, "likewise-log-digest"), hub.status()["log_digest"]);
    assert_eq!(header(&head, "likewise-state-digest"), hub.status()["state_digest"]);
    assert!(whole.starts_with(b"SQLite format 3\0"));
    let tag = header(&head, "etag");
    let (head, rest) = ask(&format!("Range: bytes=5000-\r\nIf-Range: {tag}\r\n"));
    assert!(head.starts_with("HTTP/1.1 206 "), "{head}");
    assert_eq!(header(&head, "content-range"), format!("bytes 5000-{}/{}", whole.len() - 1, whole.len()));
    assert_eq!(rest, whole[5_000..]);
    let (head, all) = ask("Range: bytes=5000-\r\nIf-Range: \"another\"\r\n");
    assert!(head.starts_with("HTTP/1.1 200 ") && all == whole, "{head}");
    let (head, _) = ask(&format!("Range: bytes={}-\r\nIf-Range: {tag}\r\n", whole.len()));
    assert!(head.starts_with("HTTP/1.1 416 "), "{head}");
    let (head, all) = ask("Accept-Encoding: gzip\r\nRange: bytes=-5\r\n");
    assert!(head.starts_with("HTTP/1.1 200 ") && all == whole && !head.contains("content-encoding"), "{head}");
}
