//! A disk changes an old event: it is served to nobody, the person is told, and the steps of docs/repair.md end with equal
//! digests over the true events, not over what the disk made of them.

use std::fs;
use std::io::Write as _;
use std::process::Stdio;

use serde_json::Value;

use crate::common::wait_for;
use crate::proxy::Mode;
use crate::support::{Node, get, hub_behind_proxy, likes, new_id, post, wait_until_level};

const SAID: &str = "what was said once";

/// A line for an import: a note whose meaning nothing here knows.
fn note(text: &str) -> String {
    format!("{{\"id\":\"{}\",\"name\":\"NoteAdded\",\"args\":{{\"text\":\"{text}\"}}}}\n", new_id())
}

/// Changes a bit of `text` wherever it occurs in the eventlog of `node`, which is not running.
fn flip(node: &Node, text: &str) {
    let path = node.data.join("stores/likes/eventlog.db");
    let mut bytes = fs::read(&path).unwrap();
    let places: Vec<_> = (0..bytes.len() - text.len()).filter(|at| bytes[*at..].starts_with(text.as_bytes())).collect();
    assert!(!places.is_empty(), "{text} is in the file");
    places.iter().for_each(|at| bytes[at + 2] ^= 1);
    fs::write(path, bytes).unwrap();
}

/// The first steps for an instance with a damaged store: stop it, write out what can be read, and move the store away.
fn set_away(node: &Node) -> String {
    let output = node.command(&["export"]).stderr(Stdio::piped()).output().unwrap();
    assert!(!output.status.success(), "it says that not all of it is what was stored");
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(words.contains("the eventlog is damaged") && words.contains("docs/repair.md"), "{words}");
    fs::rename(node.data.join("stores/likes"), node.file("damaged")).unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until the instance says of itself that it is damaged.
fn wait_until_damaged(node: &Node) {
    wait_for("the damage to be noticed", || {
        let (status, body) = get(&format!("{}/healthz", node.url()));
        (status == 503 && body.contains("damaged")).then_some(())
    });
    let (status, _) = post(&format!("{}/likes", node.url()), "application/x-www-form-urlencoded", "");
    assert_eq!(status, 503, "nothing is added to a damaged log");
}

fn notes(node: &Node) -> Vec<String> {
    let notes = node.export().into_iter().filter(|event| event["name"] == "NoteAdded" && event["set_aside"].is_null());
    notes.map(|event| event["args"].as_str().unwrap().to_owned()).collect()
}

fn set_aside(node: &Node) -> Value {
    node.status()["set_aside"].clone()
}

#[test]
fn trust_63_a_hub_whose_old_event_was_altered_serves_it_to_nobody_and_gets_the_true_one_back() {
    let (mut hub, proxy) = hub_behind_proxy();
    let phone = Node::client("phone", &proxy.url, &hub);
    let laptop = Node::client("laptop", &proxy.url, &hub);
    phone.import(&(likes(100) + &note(SAID) + &likes(1_500)));
    laptop.like();
    wait_until_level(&[&hub, &phone, &laptop], 1_601);
    // Only the hub has these.
    proxy.part();
    hub.import(&likes(2));
    hub.stop();
    flip(&hub, SAID);
    hub.start();
    wait_until_damaged(&hub);
    proxy.point_to(hub.url());
    proxy.set(Mode::Pass);
    let tablet = Node::client("tablet", &proxy.url, &hub);
    tablet.wait_until("offline");
    assert!(tablet.export_is_empty(), "nothing of the log is served");
    phone.like();

    hub.stop();
    let rescued = set_away(&hub);
    assert_eq!(rescued.lines().count(), 1_604);
    hub.start();
    proxy.point_to(hub.url());
    hub.like();
    for device in [&phone, &laptop] {
        device.wait_until_halted("wrong-log");
        device.run(&["adopt", "--yes"]);
    }
    wait_until_level(&[&hub, &phone, &laptop, &tablet], 1_603);
    hub.import(&rescued);
    wait_until_level(&[&hub, &phone, &laptop, &tablet], 1_605);
    for node in [&hub, &phone, &laptop, &tablet] {
        assert_eq!(notes(node), [format!("{{\"text\":\"{SAID}\"}}")]);
        node.verify();
    }
    // What the disk made of it is kept for people to look at, without effect.
    assert_eq!((set_aside(&hub), set_aside(&phone)), (1.into(), 0.into()));
    assert!(hub.run(&["set-aside", "list"]).contains("the disk changed it"));
}

#[test]
fn trust_63_a_device_whose_log_or_outbox_was_altered_pushes_none_of_it_and_gets_well() {
    for is_pending in [false, true] {
        let (hub, proxy) = hub_behind_proxy();
        let mut phone = Node::client("phone", &proxy.url, &hub);
        phone.import(&(likes(100) + &note(if is_pending { "another" } else { SAID }) + &likes(1_500)));
        wait_until_level(&[&hub, &phone], 1_600);
        proxy.part();
        phone.wait_until("offline");
        phone.import(&(likes(3) + &note(if is_pending { SAID } else { "another" }) + &likes(4)));
        phone.stop();
        flip(&phone, SAID);
        proxy.set(Mode::Pass);
        if is_pending {
            // The whole outbox is checked before anything else.
            assert!(phone.refuses_to_start().contains("the eventlog is damaged"));
            assert_eq!(hub.count(), 1_600, "nothing is pushed from a damaged outbox");
        } else {
            phone.start();
            wait_until_damaged(&phone);
            phone.stop();
        }

        let rescued = set_away(&phone);
        phone.start();
        phone.like();
        wait_for("the hub's log", || (phone.count() >= 1_600 && phone.pending() == 0).then_some(()));
        phone.import(&rescued);
        wait_until_level(&[&hub, &phone], 1_608);
        // Of an event that only the outbox had, nothing more is left than this.
        let expected = if is_pending { vec!["another"] } else { vec![SAID, "another"] };
        let expected: Vec<_> = expected.into_iter().map(|text| format!("{{\"text\":\"{text}\"}}")).collect();
        assert_eq!((notes(&hub), notes(&phone)), (expected.clone(), expected));
        assert_eq!((set_aside(&hub), set_aside(&phone)), (0.into(), 1.into()));
        phone.verify();
    }
}

#[test]
fn a_command_that_reads_a_damaged_store_says_so() {
    let mut hub = Node::hub();
    hub.import(&(note(SAID) + &likes(1_500)));
    hub.stop();
    flip(&hub, SAID);
    let output = hub.command(&["verify"]).output().unwrap();
    assert!(!output.status.success());
    let words = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    assert!(words.contains("1 to 1024"), "{words}");
    // It goes into another instance as far as it can be trusted.
    let other = Node::hub();
    let output = hub.command(&["export"]).output().unwrap();
    let mut import = other.command(&["import"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    import.stdin.take().unwrap().write_all(&output.stdout).unwrap();
    assert!(import.wait_with_output().unwrap().status.success());
    assert_eq!((other.count(), set_aside(&other)), (1_500 - 1_023, 1_024.into()));
}
