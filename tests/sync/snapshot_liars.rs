//! A hub that lies about its snapshot, or whose disk is bad: whatever it sends, the device pulls the log from its beginning, and
//! asks no more than a few times.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use rusqlite::Connection;

use crate::common::wait_for;
use crate::proxy::{Lie, Mode, Proxy};
use crate::support::{Node, hub_behind_proxy, likes, wait_until_level};

const LONG: usize = 12_000;

/// A hub's answer with a snapshot.
#[derive(Clone)]
struct Answer {
    status: &'static str,
    head: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    /// The honest one.
    fn of(hub: &Node) -> Self {
        let schema = hub.status()["schema"].as_str().unwrap().replace(' ', "%20");
        let url = format!("{}/sync/v1/likes/snapshot?schema={schema}", hub.url());
        let agent = ureq::Agent::config_builder().proxy(None).build().new_agent();
        let mut answer =
            agent.get(url).header("authorization", format!("Bearer {}", hub.token("liar"))).call().unwrap();
        let head = answer.headers().iter().filter(|(name, _)| {
            name.as_str().starts_with("likewise-") || ["etag", "content-length"].contains(&name.as_str())
        });
        let head = head.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
        Self { status: "200 OK", head, body: answer.body_mut().read_to_vec().unwrap() }
    }

    fn set(mut self, name: &str, value: impl ToString) -> Self {
        self.head.retain(|(known, _)| known != name);
        self.head.push((name.to_owned(), value.to_string()));
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.head.retain(|(known, _)| known != name);
        self
    }

    /// The same with another file, about whose bytes it doesn't lie.
    fn with_body(mut self, body: Vec<u8>) -> Self {
        let digest = blake3::hash(&body).to_hex();
        let length = body.len();
        self.body = body;
        self.set("likewise-file-digest", digest).set("etag", format!("\"{digest}\"")).set("content-length", length)
    }

    /// The same with a file in which `change` was made.
    fn forged(self, change: impl FnOnce(&Connection)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("forged.db");
        std::fs::write(&path, &self.body).unwrap();
        let conn = Connection::open(&path).unwrap();
        change(&conn);
        conn.close().unwrap();
        self.with_body(std::fs::read(&path).unwrap())
    }

    fn tell(&self, client: &mut TcpStream) -> std::io::Result<()> {
        write!(client, "HTTP/1.1 {}\r\n", self.status)?;
        for (name, value) in &self.head {
            write!(client, "{name}: {value}\r\n")?;
        }
        client.write_all(b"connection: close\r\n\r\n")?;
        client.write_all(&self.body)
    }
}

fn run(sql: &'static str) -> impl FnOnce(&Connection) {
    move |conn| conn.execute_batch(sql).unwrap()
}

/// Answers every request for a snapshot with `tell`, and counts them.
fn lie(
    proxy: &Proxy,
    tell: impl Fn(u32, &str, &mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
) -> Arc<AtomicU32> {
    let asked = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&asked);
    let lie = move |request: &str, client: &mut TcpStream| tell(count.fetch_add(1, Ordering::SeqCst), request, client);
    proxy.set(Mode::On("/snapshot", Box::new(Mode::Lie(Lie(Arc::new(lie))))));
    asked
}

type Change = fn(Answer) -> Answer;

/// Each lie, and what the device says of it; nothing if it doesn't take the answer for a hub's.
const LIES: &[(&str, &str, Change)] = &[
    ("no length", "doesn't say how long it is", |answer| {
        answer.without("content-length").set("transfer-encoding", "x")
    }),
    ("no end", "the disk has no room", |answer| answer.set("content-length", 1_u64 << 40)),
    ("a length that no file has", "its size is none", |answer| answer.set("content-length", (1_u64 << 40) + 1)),
    ("nothing", "its size is none", |answer| answer.with_body(Vec::new())),
    ("no log", "", |answer| answer.without("likewise-log")),
    ("a log that is none", "doesn't say which log", |answer| answer.set("likewise-log", "log")),
    ("another log than the hub's", "doesn't have its place", |answer| {
        answer.set("likewise-log", "8f3c9e0a-1b2d-4c3e-9f4a-5b6c7d8e9f00")
    }),
    ("another log's digest", "doesn't have its place", |answer| {
        let to = "unhex(replace(hex(zeroblob(32)), '00', 'ab'))";
        let change = format!("UPDATE likewise_cursor SET digest = {to}");
        answer.forged(|conn| conn.execute_batch(&change).unwrap()).set("likewise-log-digest", "ab".repeat(32))
    }),
    ("a place that the hub hasn't come to", "doesn't have its place", |answer| {
        let change = "UPDATE likewise_cursor SET seq = 1000000";
        answer.forged(run(change)).set("likewise-seq", 1_000_000)
    }),
    ("a tag of its own", "its tag is not", |answer| answer.set("etag", "\"1\"")),
    ("a place that no log has", "no log is like that", |answer| answer.set("likewise-seq", (1_u64 << 62) - 1)),
    ("packed", "packed on the way", |answer| answer.set("content-encoding", "gzip")),
    ("a part instead of the whole", "the whole was asked for", |mut answer| {
        answer.status = "206 Partial Content";
        let (length, range) = (answer.body.len(), format!("bytes 0-{}/{0}", answer.body.len() - 1));
        answer.set("content-range", range).set("content-length", length)
    }),
    ("another file than the digest's", "its hash is another", |mut answer| {
        answer.body[5_000] ^= 1;
        answer
    }),
    ("no database", "no database", |answer| answer.with_body(b"<html>".repeat(2_000))),
    ("another schema", "tables are not those", |answer| {
        answer.forged(run("DROP TABLE likes; CREATE TABLE likes (id, count)"))
    }),
    ("a trigger", "tables are not those", |answer| {
        answer.forged(run("CREATE TRIGGER more AFTER UPDATE ON likes BEGIN DELETE FROM likes; END"))
    }),
    ("a view", "tables are not those", |answer| {
        answer.forged(run(
            "CREATE VIEW bomb AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT * FROM n",
        ))
    }),
    ("another place", "another place in the log", |answer| {
        answer.forged(run("UPDATE likewise_cursor SET seq = seq - 1"))
    }),
    ("an event without an id", "SQLite says", |answer| {
        answer.forged(run("INSERT INTO likewise_skipped VALUES (x'00', 'made up')"))
    }),
    ("a count that is none", "what the page shows can't be read", |answer| {
        answer.forged(run("UPDATE likes SET count = -1000000"))
    }),
    ("no count", "what the page shows can't be read", |answer| answer.forged(run("DELETE FROM likes"))),
    ("more tables than can be looked at", "tables are not those", |answer| {
        answer.forged(run("PRAGMA writable_schema = ON;
             INSERT INTO sqlite_schema WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 50000)
             SELECT 'view', 'v' || x, 'v' || x, 0, 'CREATE VIEW v' || x || ' AS SELECT 1' FROM n"))
    }),
    ("no place", "doesn't say what it stands for", |answer| answer.forged(run("DELETE FROM likewise_cursor"))),
    ("damaged pages", "the snapshot can't be used", |answer| {
        let mut body = answer.body.clone();
        let end = body.len();
        body[4_096..end].fill(0xff);
        answer.with_body(body)
    }),
    ("a WAL", "no database of the kind", |answer| {
        let mut body = answer.body.clone();
        body[18..20].fill(2);
        answer.with_body(body)
    }),
    ("a page of a hotel", "", |_| Answer {
        status: "200 OK",
        head: vec![("content-length".to_owned(), "6".to_owned())],
        body: b"Hello!".to_vec(),
    }),
    ("the way to a hotel", "", |_| Answer {
        status: "302 Found",
        head: vec![
            ("location".to_owned(), "http://127.0.0.1:1/".to_owned()),
            ("content-length".to_owned(), "0".to_owned()),
        ],
        body: Vec::new(),
    }),
    ("a fault", "", |_| Answer {
        status: "500 Internal Server Error",
        head: vec![("content-length".to_owned(), "0".to_owned())],
        body: Vec::new(),
    }),
];

/// Lets a device begin that is told this, and returns it once it has everything.
fn begins(hub: &Node, proxy: &Proxy, name: &str, asked: &AtomicU32) -> Node {
    let phone = Node::client(name, &proxy.url, hub);
    phone.like();
    let count = hub.count() + phone.pending();
    wait_for(&format!("what the hub has; it is {}", phone.status()), || {
        (phone.count() >= LONG as u64 && phone.pending() == 0).then_some(())
    });
    wait_until_level(&[hub, &phone], count.max(hub.count()));
    wait_for("its history", || phone.status()["history"].is_null().then_some(()));
    for left in ["base.db", "snapshot.part", "snapshot.json"] {
        assert!(!phone.data.join("stores/likes").join(left).exists(), "{left}");
    }
    let asked = asked.load(Ordering::SeqCst);
    assert!((1..=30).contains(&asked), "it asked {asked} times");
    phone
}

#[test]
fn trust_76_a_snapshot_that_is_not_what_it_should_be_is_not_used() {
    let (hub, proxy) = hub_behind_proxy();
    hub.import(&likes(LONG));
    let honest = Answer::of(&hub);
    for (place, (name, words, change)) in LIES.iter().enumerate() {
        let answer = change(honest.clone());
        let asked = lie(&proxy, move |_, _, client| answer.tell(client));
        let phone = begins(&hub, &proxy, &format!("phone-{place}"), &asked);
        let log = phone.log();
        let said: Vec<_> = log.lines().filter(|line| line.contains("the hub's snapshot is not used")).collect();
        match *words {
            "" => assert!(said.is_empty(), "{name}: {log}"),
            words => assert!(said.len() == 1 && said[0].contains(words), "{name}: {log}"),
        }
    }
}

#[test]
fn trust_76_a_download_that_always_breaks_ends_in_pulling() {
    let (hub, proxy) = hub_behind_proxy();
    hub.import(&likes(LONG));
    let honest = Answer::of(&hub);
    let told = honest.clone();
    let asked = lie(&proxy, move |_, _, client| {
        let mut answer = told.clone();
        answer.body.truncate(1_000);
        answer.tell(client)
    });
    let phone = begins(&hub, &proxy, "one", &asked);
    assert!(
        phone.log().contains("it is another one each time") || phone.log().contains("breaks again"),
        "{}",
        phone.log()
    );

    // Another one each time.
    let told = honest.clone();
    let asked = lie(&proxy, move |n, _, client| {
        let mut answer = told.clone().forged(move |conn| {
            conn.execute("UPDATE likes SET count = ?1", [n]).unwrap();
        });
        answer.body.truncate(12_000);
        answer.tell(client)
    });
    let phone = begins(&hub, &proxy, "two", &asked);
    assert!(phone.log().contains("the hub's snapshot is not used"), "{}", phone.log());

    // Another part than was asked for.
    let told = honest.clone();
    let asked = lie(&proxy, move |n, _, client| {
        let mut answer = told.clone();
        if n == 0 {
            answer.body.truncate(5_000);
            return answer.tell(client);
        }
        answer.status = "206 Partial Content";
        let length = answer.body.len();
        answer.set("content-range", format!("bytes 0-{}/{length}", length - 1)).tell(client)
    });
    let phone = begins(&hub, &proxy, "three", &asked);
    assert!(phone.log().contains("another part than was asked for"), "{}", phone.log());
    assert_eq!(asked.load(Ordering::SeqCst), 2);

    // Never ready.
    let body = r#"{"code":"snapshot-not-ready","detail":""}"#;
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 0\r\nContent-Type: application/problem+json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let asked = lie(&proxy, move |_, _, client| client.write_all(answer.as_bytes()));
    let phone = begins(&hub, &proxy, "four", &asked);
    assert!(phone.log().contains("never has it ready"), "{}", phone.log());
    assert_eq!(asked.load(Ordering::SeqCst), 21);
}

#[test]
fn trust_76_a_download_that_comes_too_slowly_ends_in_pulling() {
    let (hub, proxy) = hub_behind_proxy();
    hub.import(&likes(LONG));
    let honest = Answer::of(&hub);
    let asked = lie(&proxy, move |_, _, client| {
        let Answer { status, head, body } = &honest;
        Answer { status, head: head.clone(), body: Vec::new() }.tell(client)?;
        for byte in body {
            client.write_all(&[*byte])?;
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    });
    let phone = begins(&hub, &proxy, "phone", &asked);
    assert!(phone.log().contains("comes too slowly"), "{}", phone.log());
}

#[test]
fn trust_76_a_hub_whose_history_never_fits_its_snapshots_is_pulled_from_in_the_end() {
    let (hub, proxy) = hub_behind_proxy();
    hub.import(&likes(LONG));
    let body = r#"{"code":"diverged","detail":"","checkpoints":[]}"#;
    let answer = format!(
        "HTTP/1.1 409 Conflict\r\nContent-Type: application/problem+json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    proxy.set(Mode::On("until=", Box::new(Mode::Answer(answer))));
    let phone = Node::client("phone", &proxy.url, &hub);
    phone.like();
    wait_for("the snapshots to end", || phone.log().contains("it had to be given up 2 times").then_some(()));
    wait_until_level(&[&hub, &phone], LONG as u64 + 1);
    assert_eq!(phone.log().matches("began with the hub's snapshot").count(), 2, "{}", phone.log());
    assert_eq!(hub.log().matches("a device gets a snapshot").count(), 2, "{}", hub.log());
    phone.verify();
}

#[test]
fn trust_76_what_a_hub_makes_up_of_events_without_effect_is_found_out_by_its_history() {
    let (hub, proxy) = hub_behind_proxy();
    hub.import(&likes(LONG));
    let forged = Answer::of(&hub)
        .forged(run("INSERT INTO likewise_skipped VALUES (unhex('0190d1e53f5c7bb28a3e5d4f6c7b8a90'), 'made up')"));
    let asked = lie(&proxy, move |_, _, client| forged.tell(client));
    let phone = begins(&hub, &proxy, "phone", &asked);
    assert_eq!(
        (&phone.status()["skipped"], &phone.status()["upstream"]["snapshot_was_wrong"]),
        (&0.into(), &true.into())
    );
    phone.verify();
}

#[test]
fn trust_76_a_state_that_does_not_follow_from_the_log_is_found_out_by_its_history() {
    let (hub, proxy) = hub_behind_proxy();
    hub.import(&likes(LONG));
    let forged = Answer::of(&hub).forged(run("UPDATE likes SET count = 1000000"));
    let asked = lie(&proxy, move |_, _, client| forged.tell(client));
    let phone = begins(&hub, &proxy, "phone", &asked);
    assert_eq!(phone.status()["upstream"]["snapshot_was_wrong"], true);
    assert!(phone.log().contains("snapshot"), "{}", phone.log());
    let words = phone.run(&["status"]);
    assert!(words.contains("The hub's snapshot, with which this device began, was not"), "{words}");
    phone.verify();
}
