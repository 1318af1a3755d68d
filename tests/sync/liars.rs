//! A malicious hub: whatever it says, a device stays small, writes little, says what is wrong, accepts likes, and goes on when an
//! honest hub answers again.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::wait_for;
use crate::proxy::{Lie, Mode, Proxy};
use crate::support::{Node, get, hub_behind_proxy, like, likes, new_id, wait_until_level};

/// How long a lie goes on at most, even if somebody still listens.
const LONGEST: Duration = Duration::from_secs(60);

/// How much memory a device may gain while it is lied to. An answer has at most 8 MiB, and is held twice while it is read.
const MEMORY: u64 = 64 << 20;

/// How much it may write meanwhile: a like and its logs, no more.
const WRITTEN: u64 = 4 << 20;

const STREAM: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";

/// What a lie knows about the device it is told to.
#[derive(Clone)]
struct Ear {
    log: String,
    /// How far it has pulled the log.
    head: u64,
    /// An event of its log.
    id: String,
    /// Of its log.
    digest: String,
}

impl Ear {
    /// As of this request.
    fn asking(&self, request: &str) -> Self {
        let parameter = |name: &str| {
            let (_, rest) = request.split_once(name)?;
            rest.split(['&', ' ']).next().map(str::to_owned)
        };
        let head = parameter("after=").and_then(|after| after.parse().ok()).unwrap_or(self.head);
        Self { head, digest: parameter("digest=").unwrap_or_default(), ..self.clone() }
    }
}

impl Ear {
    /// The start of a stream, as an honest hub would send it.
    fn hello(&self) -> String {
        self.hello_with("run", self.head)
    }

    fn hello_with(&self, run: &str, head: u64) -> String {
        format!("{STREAM}{}", event("hello", &json!({ "log": self.log, "run": run, "head": head })))
    }

    fn page(&self, events: &[Value], next: u64) -> String {
        event("page", &json!({ "log": self.log, "events": events, "next": next, "more": true }))
    }
}

fn event(name: &str, data: &Value) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}

fn entry(seq: u64, id: &str) -> Value {
    json!({ "seq": seq, "id": id, "name": "LikeAdded", "origin": "liar" })
}

fn answer(head: &str, body: &str) -> String {
    format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

fn problem(status: &str, body: &Value) -> String {
    answer(&format!("{status}\r\nContent-Type: application/problem+json"), &body.to_string())
}

/// Repeats it until nobody listens.
fn for_ever(client: &mut TcpStream, mut piece: impl FnMut() -> String) -> std::io::Result<()> {
    let start = Instant::now();
    while start.elapsed() < LONGEST {
        client.write_all(piece().as_bytes())?;
    }
    Ok(())
}

type Told = fn(&Ear, &mut TcpStream) -> std::io::Result<()>;

/// Each lie, and what the device says about it.
const LIES: &[(&str, &str, Told)] = &[
    ("the same empty page for ever", "brings nothing", |ear, client| {
        client.write_all(ear.hello().as_bytes())?;
        let pages = ear.page(&[], ear.head).repeat(100);
        for_ever(client, || pages.clone())
    }),
    ("empty pages that go on for ever", "brings nothing", |ear, client| {
        client.write_all(ear.hello().as_bytes())?;
        let mut next = ear.head;
        for_ever(client, || {
            next += 1;
            ear.page(&[], next)
        })
    }),
    ("one event for ever under new places", "brings nothing", |ear, client| {
        client.write_all(ear.hello().as_bytes())?;
        let mut next = ear.head;
        for_ever(client, || {
            let events: Vec<_> = (next + 1..=next + 1_000).map(|seq| entry(seq, &ear.id)).collect();
            next += 1_000;
            ear.page(&events, next)
        })
    }),
    ("places that go back", "places go back", |ear, client| {
        let page = ear.page(&[entry(ear.head, &new_id())], ear.head);
        client.write_all((ear.hello() + &page).as_bytes())
    }),
    ("a next place that goes back", "no hub does", |ear, client| {
        client.write_all((ear.hello() + &ear.page(&[], 0)).as_bytes())
    }),
    ("a place near the end of all numbers", "no log is so long", |ear, client| {
        let seq = (1 << 62) - 1;
        client.write_all((ear.hello() + &ear.page(&[entry(seq, &new_id())], seq)).as_bytes())
    }),
    ("a place beyond the end of all numbers", "not understood", |ear, client| {
        client.write_all((ear.hello() + &ear.page(&[entry(u64::MAX, &new_id())], u64::MAX)).as_bytes())
    }),
    ("a head that no log has", "no log is so long", |ear, client| {
        client.write_all(ear.hello_with("run", (1 << 62) - 1).as_bytes())
    }),
    ("a head that it doesn't come to", "doesn't send what it says", |ear, client| {
        client.write_all((ear.hello_with("run", 1 << 60) + &event("ping", &json!({})).repeat(20)).as_bytes())
    }),
    ("a run with a name of a megabyte", "its run has no name", |ear, client| {
        client.write_all(ear.hello_with(&"r".repeat(1 << 20), ear.head).as_bytes())
    }),
    ("pings for ever", "without pause", |ear, client| {
        client.write_all(ear.hello().as_bytes())?;
        let pings = event("ping", &json!({})).repeat(1_000);
        for_ever(client, || pings.clone())
    }),
    ("comments for ever", "longer than the 8 MiB", |ear, client| {
        client.write_all(ear.hello().as_bytes())?;
        for_ever(client, || ": so it is\n\n".repeat(5_000))
    }),
    ("a line for ever", "longer than the 8 MiB", |ear, client| {
        client.write_all((ear.hello() + "data: ").as_bytes())?;
        for_ever(client, || "x".repeat(1 << 16))
    }),
    ("no text", "not text", |ear, client| {
        client.write_all(ear.hello().as_bytes())?;
        client.write_all(b"event: page\ndata: \xff\xfe\n\n")
    }),
    ("a page of a million lists that nobody knows", "not understood", |ear, client| {
        let lists = "[],".repeat(2_500_000);
        let data = format!(r#"{{"log":"{}","events":[{{"more":[{lists}[]]}}],"next":1,"more":false}}"#, ear.log);
        client.write_all((ear.hello() + "event: page\ndata: " + &data + "\n\n").as_bytes())
    }),
    ("a page of a hundred thousand events", "not understood", |ear, client| {
        let events: Vec<_> = (1..=100_000).map(|n| entry(ear.head + n, "")).collect();
        client.write_all((ear.hello() + &ear.page(&events, ear.head + 100_000)).as_bytes())
    }),
    ("a page of another kind", "not understood", |ear, client| {
        let data = Value::from("x".repeat(7 << 20));
        client.write_all((ear.hello() + &event("page", &data)).as_bytes())
    }),
    ("an event that is none", "not understood", |ear, client| {
        let page = ear.page(&[entry(ear.head + 1, &"é".repeat(1 << 20))], ear.head + 1);
        client.write_all((ear.hello() + &page).as_bytes())
    }),
    ("another log in the middle", "changed its log", |ear, client| {
        let other = Ear { log: "8f3c9e0a-1b2d-4c3e-9f4a-5b6c7d8e9f00".to_owned(), ..ear.clone() };
        client.write_all((ear.hello() + &other.page(&[entry(ear.head + 1, &new_id())], ear.head + 1)).as_bytes())
    }),
    ("a million points", "too long for a hub's", |_, client| {
        let points = vec![json!({ "seq": 1, "digest": "0".repeat(64) }); 50_000];
        let body = json!({ "code": "diverged", "detail": "", "head": 1, "checkpoints": points });
        client.write_all(problem("409 Conflict", &body).as_bytes())
    }),
    ("a few hundred points", "409", |_, client| {
        let points = vec![json!({ "seq": 1, "digest": "0".repeat(64) }); 300];
        let body = json!({ "code": "diverged", "detail": "", "head": 1, "checkpoints": points });
        client.write_all(problem("409 Conflict", &body).as_bytes())
    }),
    ("points that are ours", "shows that it is ours", |ear, client| {
        let points = json!([{ "seq": ear.head, "digest": ear.digest }]);
        let body = json!({ "code": "diverged", "detail": "", "head": 1, "checkpoints": points });
        client.write_all(problem("409 Conflict", &body).as_bytes())
    }),
    ("a refusal of three megabytes", "too long for a hub's", |_, client| {
        let body = json!({ "code": "unauthorized", "detail": "no ".repeat(1_000_000) });
        client.write_all(problem("401 Unauthorized", &body).as_bytes())
    }),
    ("a refusal without end", "too long for a hub's", |_, client| {
        client.write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Type: application/problem+json\r\n\r\n")?;
        for_ever(client, || " ".repeat(1 << 16))
    }),
    ("a head without end", "", |_, client| {
        client.write_all(b"HTTP/1.1 200 OK\r\n")?;
        for_ever(client, || "X-So: so\r\n".repeat(5_000))
    }),
    ("a bomb", "", |_, client| {
        // The first bytes of a gzip stream. Nothing here unpacks them.
        client.write_all(STREAM.replace("\r\n\r\n", "\r\nContent-Encoding: gzip\r\n\r\n").as_bytes())?;
        client.write_all(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03")?;
        client.write_all(&[0; 4_096])
    }),
    ("a kind that goes on and on", "no event stream", |_, client| {
        let kind = format!("200 OK\r\nContent-Type: text/{}", "x".repeat(100_000));
        client.write_all(answer(&kind, "").as_bytes())
    }),
];

/// One device hears a part of the lies, one after the other, with an honest hub in between.
fn hears(part: usize, of: usize) {
    let (hub, proxy) = hub_behind_proxy();
    let phone = Node::client("phone", &proxy.url, &hub);
    phone.like();
    wait_until_level(&[&hub, &phone], 1);
    let mut count = 1;
    let ear = Ear {
        log: phone.status()["log"].as_str().unwrap().to_owned(),
        head: 1,
        id: phone.export()[0]["id"].as_str().unwrap().to_owned(),
        digest: String::new(),
    };
    for (name, words, tell) in LIES.iter().skip(part).step_by(of) {
        let (memory, written) = (phone.memory(), phone.written());
        phone.forget_peak();
        proxy.part();
        let told = Arc::new(AtomicU64::new(0));
        let (heard, ear) = (Arc::clone(&told), ear.clone());
        let lie = move |request: &str, client: &mut TcpStream| {
            if request.starts_with("POST ") {
                // No answer, because a push's answer would end the session before the lie does.
                return client.read(&mut [0]).map(drop);
            }
            heard.fetch_add(1, Ordering::SeqCst);
            tell(&ear.asking(request), client)
        };
        proxy.set(Mode::Lie(Lie(Arc::new(lie))));
        phone.like();
        count += 1;
        let status = wait_for(&format!("offline after {name}: {}", phone.status()), || {
            let status = phone.status();
            let error = status["upstream"]["error"].as_str().unwrap_or_default();
            let is_told = told.load(Ordering::SeqCst) >= 2;
            (is_told && status["upstream"]["state"] == "offline" && error.contains(words)).then_some(status)
        });
        let error = status["upstream"]["error"].as_str().unwrap();
        assert!(error.chars().count() <= 301, "{name}: {error}");
        assert_eq!((&status["pending"], &status["set_aside"]), (&1.into(), &0.into()), "{name}");
        assert_eq!(phone.count(), count, "{name}");
        let grown = phone.peak().saturating_sub(memory);
        assert!(grown < MEMORY, "{name}: it took {grown} bytes");
        let written = phone.written() - written;
        assert!(written < WRITTEN, "{name}: it wrote {written} bytes");
        proxy.part();
        proxy.set(Mode::Pass);
        wait_until_level(&[&hub, &phone], count);
    }
    phone.verify();
}

#[test]
fn trust_64_whatever_a_hub_says_costs_little_and_is_told_in_clear_words() {
    hears(0, 3);
}

#[test]
fn trust_64_whatever_a_hub_says_costs_little_and_is_told_in_clear_words_2() {
    hears(1, 3);
}

#[test]
fn trust_64_whatever_a_hub_says_costs_little_and_is_told_in_clear_words_3() {
    hears(2, 3);
}

/// The page shows a refusal's words: a sentence of them, and none of their tricks.
#[test]
fn trust_64_a_refusal_is_shown_short_and_harmless() {
    let (hub, proxy) = hub_behind_proxy();
    let phone = Node::client("phone", &proxy.url, &hub);
    phone.like();
    wait_until_level(&[&hub, &phone], 1);
    proxy.part();
    let detail = format!("<b>no</b>\n\u{202e}{}", "so ".repeat(20_000));
    let body = problem("401 Unauthorized", &json!({ "code": "unauthorized", "detail": detail }));
    proxy.set(Mode::Answer(body));
    let status = phone.wait_until_halted("unauthorized");
    let error = status["upstream"]["error"].as_str().unwrap();
    assert!(error.starts_with("<b>no</b>  so so ") && error.chars().count() == 301, "{error}");
    let (_, page) = get(phone.url());
    assert!(page.contains("&#60;b&#62;no") && !page.contains('\u{202e}') && page.len() < 20_000, "{page}");
    phone.like();
    assert_eq!(phone.count(), 2);
    assert!(phone.log().len() < 20_000);
}

/// The token goes only to its own hub, wherever an answer points.
#[test]
fn trust_64_a_redirect_takes_the_token_nowhere() {
    let (hub, proxy) = hub_behind_proxy();
    let phone = Node::client("phone", &proxy.url, &hub);
    phone.like();
    wait_until_level(&[&hub, &phone], 1);
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    let asked = Arc::new(AtomicU64::new(0));
    let (counting, address) = (Arc::clone(&asked), elsewhere.local_addr().unwrap());
    thread::spawn(move || {
        for _ in elsewhere.incoming() {
            counting.fetch_add(1, Ordering::SeqCst);
        }
    });
    for status in
        ["301 Moved Permanently", "302 Found", "303 See Other", "307 Temporary Redirect", "308 Permanent Redirect"]
    {
        proxy.part();
        let target = format!("{status}\r\nLocation: http://{address}/sync/v1/likes/events");
        let answered = proxy.answered();
        proxy.set(Mode::Answer(answer(&target, "")));
        phone.like();
        wait_for("two answers", || (proxy.answered() >= answered + 2).then_some(()));
        let error = phone.wait_until("offline")["upstream"]["error"].to_string();
        assert!(error.contains(&status[..3]), "{error}");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    proxy.set(Mode::Pass);
    wait_until_level(&[&hub, &phone], 6);
}

/// Taking a log back and rebuilding its state costs as much as the log is long. A hub can't demand it endlessly.
#[test]
fn trust_64_a_hub_that_says_diverged_for_ever_has_it_repaired_a_few_times() {
    let (hub, proxy) = hub_behind_proxy();
    hub.import(&likes(3_000));
    let phone = Node::client("phone", &proxy.url, &hub);
    wait_until_level(&[&hub, &phone], 3_000);
    proxy.part();
    let log = phone.status()["log"].clone();
    // It says `diverged`, lets the device in and sends the log again, and then says `diverged` again.
    let events = Arc::new(hub.export());
    let asked = AtomicU64::new(0);
    let lie = move |request: &str, client: &mut TcpStream| {
        if request.starts_with("POST ") || asked.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) {
            let body = json!({ "code": "diverged", "detail": "", "head": 1, "checkpoints": [{ "seq": 0, "digest": "0".repeat(64) }] });
            return client.write_all(problem("409 Conflict", &body).as_bytes());
        }
        let mut text = format!("{STREAM}{}", event("hello", &json!({ "log": log, "run": "run", "head": 3_000 })));
        for part in events.chunks(1_000) {
            let next = &part.last().unwrap()["seq"];
            text += &event("page", &json!({ "log": log, "events": part, "next": next, "more": true }));
        }
        client.write_all(text.as_bytes())?;
        thread::sleep(Duration::from_millis(500));
        Ok(())
    };
    proxy.set(Mode::Lie(Lie(Arc::new(lie))));
    let answered = proxy.answered();
    wait_for(&format!("many answers, and it is {}", phone.status()), || {
        drop(phone.status());
        (proxy.answered() >= answered + 14).then_some(())
    });
    let status = phone.wait_until("offline");
    phone.like();
    assert_eq!((phone.count(), &status["set_aside"]), (3_001, &0.into()));
    let repaired = phone.log().matches("they are pushed again").count();
    assert!((1..=3).contains(&repaired), "it took its log back {repaired} times");
    wait_for(&format!("its words: {}", phone.status()), || {
        let error = phone.status()["upstream"]["error"].to_string();
        error.contains("nothing more is taken back for some minutes").then_some(())
    });
    proxy.part();
    proxy.set(Mode::Pass);
    wait_until_level(&[&hub, &phone], 3_001);
}

/// Answers that send a device in circles are an obstacle, and are reported as one.
#[test]
fn trust_64_a_hub_that_keeps_a_device_from_going_on_is_called_offline() {
    let (hub, proxy) = hub_behind_proxy();
    let phone = Node::client("phone", &proxy.url, &hub);
    phone.like();
    wait_until_level(&[&hub, &phone], 1);
    let hello = |run: &'static str| {
        let log = phone.status()["log"].clone();
        format!("{STREAM}{}", event("hello", &json!({ "log": log, "run": run, "head": 1 })))
    };
    let pull_first = problem("409 Conflict", &json!({ "code": "pull-first", "detail": "" }));
    let many = answer(
        "200 OK\r\nContent-Type: application/json",
        &json!({ "log": null, "events": vec![json!({ "seq": 1 }); 9] }).to_string(),
    );
    let long = answer("200 OK\r\nContent-Type: application/json", &" ".repeat(5 << 20));
    let stored = |seq: u64| {
        let pushed = json!({ "log": null, "events": [{ "seq": seq }] });
        answer("200 OK\r\nContent-Type: application/json", &pushed.to_string())
    };
    let (mut count, memory) = (1, phone.memory());
    phone.forget_peak();
    for (pushed, words) in [
        (pull_first, "has to be pulled first"),
        (many, "other events than were pushed"),
        (long, "too long for a hub's"),
        (stored(100), "doesn't send what it says"),
        // The pull has been there, and the event was not.
        (stored(2), "has to be pulled first"),
    ] {
        proxy.part();
        let hello = hello("run");
        let lie = move |request: &str, client: &mut TcpStream| {
            if request.starts_with("POST ") {
                return client.write_all(pushed.as_bytes());
            }
            client.write_all(hello.as_bytes())?;
            let ping = event("ping", &json!({}));
            for_ever(client, || {
                thread::sleep(Duration::from_millis(200));
                ping.clone()
            })
        };
        proxy.set(Mode::Lie(Lie(Arc::new(lie))));
        phone.like();
        count += 1;
        wait_for(&format!("offline, {words}: {}", phone.status()), || {
            let status = phone.status();
            let error = status["upstream"]["error"].as_str().unwrap_or_default();
            (status["upstream"]["state"] == "offline" && error.contains(words)).then_some(())
        });
        assert_eq!((phone.count(), phone.pending()), (count, 1));
        proxy.part();
        proxy.set(Mode::Pass);
        wait_until_level(&[&hub, &phone], count);
    }
    let grown = phone.peak().saturating_sub(memory);
    assert!(grown < MEMORY, "it took {grown} bytes");
}

/// A page that brings nothing doesn't create a store.
#[test]
fn trust_64_a_hub_makes_no_store_by_saying_nothing() {
    let proxy = Proxy::start();
    let log = "8f3c9e0a-1b2d-4c3e-9f4a-5b6c7d8e9f00";
    let lie = move |_: &str, client: &mut TcpStream| {
        let ear = Ear { log: log.to_owned(), head: 0, id: new_id(), digest: String::new() };
        client.write_all(ear.hello().as_bytes())?;
        for_ever(client, || ear.page(&[], 0))
    };
    proxy.set(Mode::Lie(Lie(Arc::new(lie))));
    let mut phone = Node::unnamed(&proxy.url);
    phone.start();
    wait_for(&format!("its words: {}", phone.status()), || {
        phone.status()["upstream"]["error"].to_string().contains("brings nothing").then_some(())
    });
    assert!(phone.export_is_empty());
}

/// Whatever one device pushes, the log has each id once, with its first content, and the others hear only of that.
#[test]
fn trust_64_a_device_that_lies_harms_nobody_else() {
    let (hub, proxy) = hub_behind_proxy();
    let honest = Node::client("honest", &proxy.url, &hub);
    honest.like();
    wait_until_level(&[&hub, &honest], 1);
    let theirs = hub.export()[0]["id"].clone();
    let liar = crate::support::Wire::new(&hub, "liar");
    let hello = liar.hello();
    let (log, run) = (&hello["log"], &hello["run"]);
    // Somebody else's id with other content; one id twice in a push, with equal and with other content; what is no event.
    let twice = like();
    let other = json!({ "id": twice["id"], "name": "LikeAdded", "args": "[1]" });
    let events = [
        json!({ "id": theirs, "name": "LikeRemoved" }),
        json!({ "id": theirs, "name": "LikeAdded" }),
        twice.clone(),
        twice.clone(),
        other,
        json!({ "id": "x", "name": "LikeAdded" }),
        json!({ "id": new_id(), "name": "likewise.mine" }),
        json!({ "id": new_id(), "name": "x".repeat(101) }),
        json!({ "id": new_id(), "name": "LikeAdded", "args": "{" }),
        json!({ "id": new_id(), "name": "LikeAdded", "args": format!("\"{}\"", "x".repeat(65_536)) }),
        json!({ "id": new_id(), "name": "LikeAdded", "args": "[".repeat(60_000) }),
    ];
    let (status, answer) = liar.push(log, run, &events);
    assert_eq!(status, 200, "{answer}");
    let fate = |event: &Value| event["refused"].as_str().map_or_else(|| event["seq"].to_string(), str::to_owned);
    let fates: Vec<_> = answer["events"].as_array().unwrap().iter().map(fate).collect();
    let malformed = ["malformed"; 6];
    assert_eq!(fates, [&["id-taken", "1", "2", "2", "id-taken"][..], &malformed].concat());
    // Absurd batches change nothing, however often they arrive.
    let absurd = [
        json!({ "log": log, "run": run, "events": vec![like(); 1_001] }),
        json!({ "log": log, "run": run, "events": {} }),
        json!({ "log": log, "run": run, "events": [[[[]]]] }),
        json!({ "log": [log], "run": run, "events": [] }),
        json!({ "log": log, "run": "x".repeat(1 << 20), "events": [like()] }),
        json!({ "log": new_id(), "run": run, "events": [like()] }),
        json!([]),
    ];
    let before = hub.memory();
    for _ in 0..5 {
        for body in &absurd {
            let (status, answer) = liar.push_raw(body);
            assert!((400..500).contains(&status), "{status} {answer}");
            assert!(answer.to_string().len() < 2_000, "{answer}");
        }
    }
    assert!(hub.memory().saturating_sub(before) < MEMORY);
    honest.like();
    wait_until_level(&[&hub, &honest], 3);
    assert_eq!(honest.status()["set_aside"], 0);
}
