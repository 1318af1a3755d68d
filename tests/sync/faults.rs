//! What networks and hubs do to a sync under way.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::wait_for;
use crate::proxy::{Lie, Mode, Proxy};
use crate::support::{Node, Wire, get, hub_behind_proxy, like, likes, wait_until_level};

/// An answer with this status and a body of this type.
fn answer(status: &str, kind: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// A hub's refusal.
fn problem(status: &str, code: &str) -> String {
    let body = json!({ "type": "about:blank", "code": code, "detail": "Because.", "advice": "Do so." });
    answer(status, "application/problem+json", &body.to_string())
}

#[test]
fn trust_15_lost_answers_to_pushes_count_nothing_twice() {
    let (hub, proxy) = hub_behind_proxy();
    let phone = Node::client("phone", &proxy.url, &hub);
    phone.wait_until("online");
    proxy.set(Mode::EatPushAnswers);
    phone.import(&likes(1_500));
    phone.like();
    wait_for("two lost answers", || (proxy.eaten() >= 2).then_some(()));
    proxy.set(Mode::Pass);
    wait_until_level(&[&hub, &phone], 1_501);
    assert_eq!(hub.export().len(), 1_501);
    phone.verify();
}

#[test]
fn trust_15_a_hub_killed_after_its_commit_has_each_like_once() {
    let (mut hub, proxy) = hub_behind_proxy();
    let phone = Node::client("phone", &proxy.url, &hub);
    for round in 1..=4 {
        phone.wait_until("online");
        let eaten = proxy.eaten();
        proxy.set(Mode::EatPushAnswers);
        phone.like();
        wait_for("a lost answer", || (proxy.eaten() > eaten).then_some(()));
        hub.kill();
        proxy.set(Mode::Pass);
        hub.start();
        proxy.point_to(hub.url());
        wait_until_level(&[&hub, &phone], round);
    }
    assert_eq!(hub.export().len(), 4);
}

#[test]
fn trust_18_a_push_repeated_after_a_restart_of_the_hub_adds_nothing() {
    let mut hub = Node::hub();
    let wire = Wire::new(&hub, "phone");
    let run = wire.hello()["run"].clone();
    // One has an id of a month ago, and one of the year 2600.
    let mut events: Vec<_> = (0..100).map(|_| like()).collect();
    events[0]["id"] = "0192a000-0000-7000-8000-000000000001".into();
    events[1]["id"] = "1200a000-0000-7000-8000-000000000001".into();
    let (_, first) = wire.push(&Value::Null, &run, &events);
    for _ in 0..2 {
        hub.kill();
        hub.start();
        let wire = wire.at(&hub);
        let hello = wire.hello();
        assert_eq!(hello["head"], 100);
        let (status, again) = wire.push(&hello["log"], &hello["run"], &events);
        assert_eq!((status, again), (200, first.clone()));
        assert_eq!(hub.count(), 100);
    }
    hub.verify();
}

/// The hub takes the push. Then the stream that should confirm it carries nothing more, and doesn't end.
#[test]
fn trust_25_a_pull_that_dies_silently_is_noticed_by_its_silence() {
    let (hub, proxy) = hub_behind_proxy();
    let phone = Node::client("phone", &proxy.url, &hub);
    phone.wait_until("online");
    proxy.freeze();
    let start = Instant::now();
    phone.like();
    wait_for("the push at the hub", || (hub.count() == 1).then_some(()));
    assert_eq!(phone.pending(), 1);
    wait_until_level(&[&hub, &phone], 1);
    let took = start.elapsed();
    assert!(took < Duration::from_secs(120), "it took {took:?}");
}

/// The connection for pushes died, too. The client doesn't wait for one after the other.
#[test]
fn trust_25_connections_that_died_together_are_given_up_together() {
    let (hub, proxy) = hub_behind_proxy();
    let phone = Node::client("phone", &proxy.url, &hub);
    phone.like();
    wait_until_level(&[&hub, &phone], 1);
    phone.wait_until("online");
    proxy.freeze();
    hub.like();
    wait_until_level(&[&hub, &phone], 2);
    assert_eq!(proxy.lost(), 0, "it asked on a dead connection");
}

/// A proxy that gathers the stream answers with the head, and keeps the rest. Nothing ever comes, so nothing breaks either.
#[test]
fn trust_71_a_head_without_a_first_event_points_at_the_proxy() {
    let (hub, proxy) = hub_behind_proxy();
    proxy.set(Mode::Lie(Lie(Arc::new(|_, client| {
        client
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        // Until the device gives up.
        client.read(&mut [0]).map(drop)
    }))));
    let phone = Node::client("phone", &proxy.url, &hub);
    phone.like();
    let status = phone.wait_until("offline");
    let error = status["upstream"]["error"].as_str().unwrap();
    assert!(error.contains("answered, but sent nothing: a proxy in front of the hub may hold"), "{error}");
    assert!(error.contains(&proxy.url) && error.contains("`proxy_buffering off;`"), "{error}");
    proxy.set(Mode::Pass);
    wait_until_level(&[&hub, &phone], 1);
}

/// A page may take longer than the longest silence and still arrive: while its bytes come, there is no silence.
#[test]
fn a_link_of_a_few_bytes_a_second_gets_somewhere() {
    let (hub, proxy) = hub_behind_proxy();
    hub.import(&likes(1_000));
    proxy.set(Mode::Slow(1_000, Duration::from_millis(300)));
    let phone = Node::client("phone", &proxy.url, &hub);
    phone.wait_until("online");
    let start = Instant::now();
    wait_until_level(&[&hub, &phone], 1_000);
    let took = start.elapsed();
    assert!(took > Duration::from_secs(26), "it took {took:?}, which proves nothing");
    assert_eq!(phone.log().matches("said nothing").count(), 0);
}

/// Only the hub's own answers can stop a store, and no answer costs an event.
#[test]
fn trust_32_56_what_is_no_word_of_the_hub_is_only_offline() {
    let html = "<html><body>Please log in</body></html>";
    let of_strangers = [
        ("302 Found", answer("302 Found\r\nLocation: http://127.0.0.1:1/login", "text/html", html)),
        ("200 HTML", answer("200 OK", "text/html", html)),
        ("200 JSON", answer("200 OK", "application/json", "{}")),
        ("200 stream", answer("200 OK", "text/event-stream", "event: hello\ndata: {\"log\":1}\n\n")),
        ("200 nothing", answer("200 OK", "text/event-stream", "")),
        ("204", answer("204 No Content", "text/plain", "")),
        ("400", answer("400 Bad Request", "text/html", html)),
        ("401", answer("401 Unauthorized\r\nWWW-Authenticate: Basic", "text/html", html)),
        ("401 JSON", answer("401 Unauthorized", "application/json", r#"{"code":"unauthorized","detail":"x"}"#)),
        ("403", answer("403 Forbidden", "text/html", html)),
        ("404", answer("404 Not Found", "text/html", html)),
        ("409", answer("409 Conflict", "text/html", html)),
        ("413", answer("413 Payload Too Large", "text/html", html)),
        ("429", answer("429 Too Many Requests\r\nRetry-After: 1", "text/html", html)),
        ("500", answer("500 Internal Server Error", "text/html", html)),
        ("502", answer("502 Bad Gateway", "text/html", html)),
        ("503", answer("503 Service Unavailable\r\nRetry-After: 1", "text/html", html)),
        ("garbage", "SSH-2.0-OpenSSH_9.6\r\n\r\n".to_owned()),
        // The hub's own words, but none of them about this device.
        ("429 problem", problem("429 Too Many Requests", "too-many-requests")),
        ("503 problem", problem("503 Service Unavailable", "overloaded")),
        ("500 problem", problem("500 Internal Server Error", "internal")),
        ("403 problem", problem("403 Forbidden", "host-not-allowed")),
        ("400 problem", problem("400 Bad Request", "malformed-push")),
    ];
    let hub = Node::hub();
    let cases: Vec<_> = of_strangers.iter().collect();
    for cases in cases.chunks(6) {
        thread::scope(|all| {
            for (name, text) in cases {
                all.spawn(|| only_offline(name, text, &hub));
            }
        });
    }
}

fn only_offline(name: &str, text: &str, hub: &Node) {
    let proxy = Proxy::start();
    proxy.point_to(hub.url());
    let device = name.to_lowercase().replace(' ', "-");
    let phone = Node::client(&device, &proxy.url, hub);
    phone.wait_until("online");
    for mode in [Mode::AnswerPush(text.to_owned()), Mode::Answer(text.to_owned())] {
        let is_of_pushes = matches!(mode, Mode::AnswerPush(_));
        proxy.part();
        phone.like();
        phone.like();
        let answered = proxy.answered();
        proxy.set(mode);
        wait_for(&format!("two answers {name}"), || (proxy.answered() >= answered + 2).then_some(()));
        let status = wait_for(&format!("offline after {name}: {}", phone.status()), || {
            let status = phone.status();
            assert_ne!(status["upstream"]["state"], "halted", "{name}: {status}");
            (status["upstream"]["state"] == "offline").then_some(status)
        });
        assert!(status["upstream"]["error"].is_string(), "{name}: {status}");
        assert_eq!((&status["pending"], &status["set_aside"]), (&2.into(), &0.into()), "{name} {is_of_pushes}");
        proxy.set(Mode::Pass);
        wait_for(&format!("all to be pushed after {name}: {}", phone.status()), || {
            let status = phone.status();
            (status["pending"] == 0 && status["upstream"]["state"] == "online").then_some(())
        });
        assert_eq!(phone.status()["set_aside"], 0);
    }
    let mine = hub.export().iter().filter(|event| event["origin"] == device.as_str()).count();
    assert_eq!(mine, 4, "{name}");
}

/// The hub's own word stops the store. The store goes on by itself when the reason is gone.
#[test]
fn trust_56_a_stopped_store_goes_on_when_the_reason_is_gone() {
    let hub = Node::hub();
    let codes = [
        ("401 Unauthorized", "unauthorized"),
        ("403 Forbidden", "not-a-hub"),
        ("409 Conflict", "wrong-log"),
        ("507 Insufficient Storage", "too-many-stores"),
    ];
    thread::scope(|all| {
        for (status, code) in codes {
            let hub = &hub;
            all.spawn(move || {
                let proxy = Proxy::start();
                proxy.point_to(hub.url());
                let phone = Node::client(code, &proxy.url, hub);
                phone.wait_until("online");
                for mode in [Mode::AnswerPush(problem(status, code)), Mode::Answer(problem(status, code))] {
                    proxy.part();
                    phone.like();
                    proxy.set(mode);
                    let status = phone.wait_until_halted(code);
                    assert_eq!(status["upstream"]["error"], "Because.");
                    assert_eq!((&status["pending"], &status["set_aside"]), (&1.into(), &0.into()));
                    let (_, page) = get(phone.url());
                    assert!(page.contains("Sync stopped") && page.contains("Your likes are kept"), "{page}");
                    proxy.set(Mode::Pass);
                    wait_for("it to go on", || {
                        let status = phone.status();
                        (status["pending"] == 0 && status["upstream"]["state"] == "online").then_some(())
                    });
                }
            });
        }
    });
    assert_eq!(hub.count(), 8);
}

/// A stopped store that tries again doesn't look mended meanwhile.
#[test]
fn a_stopped_store_says_so_also_while_it_tries_again() {
    let (hub, proxy) = hub_behind_proxy();
    let phone = Node::client("phone", &proxy.url, &hub);
    phone.wait_until("online");
    proxy.part();
    proxy.set(Mode::Answer(problem("401 Unauthorized", "unauthorized")));
    phone.wait_until_halted("unauthorized");
    proxy.set(Mode::Silent);
    let requests = proxy.requests();
    wait_for("another try", || (proxy.requests() > requests).then_some(()));
    let status = phone.status();
    assert_eq!((&status["upstream"]["state"], &status["upstream"]["code"]), (&"halted".into(), &"unauthorized".into()));
}

/// An endless answer doesn't fill the memory.
#[test]
fn trust_56_an_answer_without_end_is_cut_off() {
    let (hub, proxy) = hub_behind_proxy();
    let phone = Node::client("phone", &proxy.url, &hub);
    phone.like();
    wait_until_level(&[&hub, &phone], 1);
    let before = phone.memory();
    proxy.part();
    proxy.set(Mode::Endless);
    let requests = proxy.requests();
    wait_for("two tries", || (proxy.requests() >= requests + 2).then_some(()));
    let status = phone.wait_until("offline");
    assert!(status["upstream"]["error"].as_str().unwrap().contains("the stream broke"), "{status}");
    let grown = phone.memory().saturating_sub(before);
    assert!(grown < 100 << 20, "it took {grown} bytes");
    proxy.part();
    phone.like();
    proxy.set(Mode::Pass);
    wait_until_level(&[&hub, &phone], 2);
}

/// When something on the way limits the size of pushes, they become smaller.
#[test]
fn trust_32_a_push_that_is_too_large_for_a_proxy_is_divided() {
    let (hub, proxy) = hub_behind_proxy();
    let phone = Node::client("phone", &proxy.url, &hub);
    phone.wait_until("online");
    proxy.part();
    phone.import(&likes(1_000));
    proxy.set(Mode::Limit(9_000, answer("413 Payload Too Large", "text/html", "<html>no</html>")));
    wait_until_level(&[&hub, &phone], 1_000);
    assert_eq!(phone.status()["set_aside"], 0);
}
