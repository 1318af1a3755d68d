//! Many events at once, and clients that take them slowly.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::wait_for;
use crate::proxy::Mode;
use crate::support::{Node, Pull, Wire, get, hub_behind_proxy, likes, new_id, post, wait_until_level};

const MANY: usize = 100_000;

#[test]
fn trust_30_a_hundred_thousand_likes_survive_being_killed_on_their_way() {
    let (hub, proxy) = hub_behind_proxy();
    let mut phone = Node::client("phone", &proxy.url, &hub);
    phone.wait_until("online");
    proxy.part();
    phone.import(&likes(MANY));
    assert_eq!(phone.pending(), MANY as u64);
    let before = phone.memory();
    proxy.set(Mode::Pass);
    let mut most = before;
    for share in [MANY / 10, MANY / 2] {
        wait_for(&format!("{share} likes at the hub"), || {
            most = most.max(phone.memory());
            (hub.count() >= share as u64).then_some(())
        });
        phone.kill();
        assert!(hub.count() < MANY as u64, "nothing was left to push");
        phone.start();
    }
    wait_until_level(&[&hub, &phone], MANY as u64);
    assert!(most - before < 200 << 20, "the client took {} bytes more", most - before);
    let ids: BTreeSet<_> = hub.export().iter().map(|event| event["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ids.len(), MANY);
    hub.verify();
    phone.verify();
}

#[test]
fn trust_57_many_pending_and_many_arriving_come_to_an_end() {
    let (hub, proxy) = hub_behind_proxy();
    let phone = Node::client("phone", &proxy.url, &hub);
    phone.wait_until("online");
    proxy.part();
    phone.import(&likes(MANY));
    hub.import(&likes(MANY));
    proxy.set(Mode::Pass);
    // If the work grew with the square of their number, it would take longer than anybody waits.
    wait_until_level(&[&hub, &phone], 2 * MANY as u64);
}

/// A client that reads a byte now and then takes up one page, not the log. It is cut off, and goes on from where it was.
#[test]
fn trust_31_slow_readers_cost_a_hub_no_memory() {
    const EVENTS: usize = 1_200;
    const READERS: usize = 8;
    let hub = Node::hub();
    let wire = Wire::new(&hub, "slow");
    let text = "x".repeat(60_000);
    let mut lines = String::new();
    for _ in 0..EVENTS {
        writeln!(lines, "{{\"id\":\"{}\",\"name\":\"NoteAdded\",\"args\":\"\\\"{text}\\\"\"}}", new_id()).unwrap();
    }
    hub.import(&lines);
    drop(lines);
    // First one page, to measure what a normal reader takes.
    drop(wire.pull("after=0").unwrap().page());
    let before = hub.memory();
    let mut readers: Vec<Pull> = (0..READERS).map(|_| wire.pull("after=0").unwrap()).collect();
    let start = Instant::now();
    let mut most = before;
    // Longer than the hub waits for a client to take what it was sent.
    while start.elapsed() < Duration::from_secs(27) {
        readers.iter_mut().for_each(Pull::sip);
        thread::sleep(Duration::from_millis(500));
        most = most.max(hub.memory());
    }
    let log = (EVENTS * text.len()) as u64;
    assert!((most - before) < log, "{READERS} readers took {} bytes", most - before);
    readers.truncate(1);
    let mut pull = readers.pop().unwrap();
    let mut digest = [0; 32];
    let mut seen = 0;
    let mut log_id = None;
    let mut take = |pull: &mut Pull| {
        while let Some((event, data)) = pull.next() {
            if event == "ping" {
                return;
            }
            log_id = Some(data["log"].as_str().unwrap().to_owned());
            for entry in data["events"].as_array().into_iter().flatten() {
                seen += 1;
                assert_eq!(entry["seq"], seen);
                digest = extended(digest, entry);
            }
        }
    };
    take(&mut pull);
    let (before, log_id) = (seen, log_id.expect("it read something"));
    assert!(before > 0 && before < EVENTS, "it was not disconnected, but got {before} events");
    let digest: String = digest.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    let mut pull = wire.pull(&format!("log={log_id}&after={before}&digest={digest}")).expect("it goes on");
    let mut next = before;
    while next < EVENTS {
        for entry in pull.page()["events"].as_array().unwrap() {
            next += 1;
            assert_eq!(entry["seq"], next);
        }
    }
}

/// The digest of a log with one more event, as `docs/wire.md` defines it.
fn extended(digest: [u8; 32], entry: &serde_json::Value) -> [u8; 32] {
    let text = |name: &str| entry[name].as_str().unwrap_or_default();
    let id = uuid::Uuid::parse_str(text("id")).unwrap();
    let mut hasher = blake3::Hasher::new();
    hasher.update(&digest);
    for part in [id.as_bytes().as_slice(), text("name").as_bytes(), text("args").as_bytes(), text("origin").as_bytes()]
    {
        hasher.update(&u32::try_from(part.len()).unwrap().to_le_bytes());
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

#[test]
fn looking_at_more_stores_than_may_be_open_locks_nobody_out() {
    let hub = Node::hub();
    let phone = Node::client("phone", hub.url(), &hub);
    let laptop = Node::client("laptop", hub.url(), &hub);
    for n in 0..520 {
        // Some are told to come back in a moment.
        get(&format!("{}/s/look-{n}/status", phone.url()));
    }
    wait_for("room for a like in another store", || {
        let (status, _) = post(&format!("{}/s/other/likes", phone.url()), "application/x-www-form-urlencoded", "");
        (status == 303).then_some(())
    });
    for node in [&phone, &hub, &laptop] {
        wait_for("the like", || {
            let (status, body) = get(&format!("{}/s/other/status", node.url()));
            (status == 200 && body.contains(r#""count":1,"#) && body.contains(r#""pending":0,"#)).then_some(())
        });
    }
    let stores: Vec<_> =
        fs::read_dir(hub.data.join("stores")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(stores, ["other"]);
}
