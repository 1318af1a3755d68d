//! A hub moves its stores into a stream and out of it. Devices notice nothing.
//!
//! `LIKEWISE_LOAD=50 cargo test --release --test gateways moves` does it with a million events.

use std::process::Stdio;
use std::thread;
use std::time::Duration;

use crate::common::nats::{Nats, Plan};
use crate::common::{data_dir, errors, load, printed, run};
use crate::front::Front;
use crate::support::{Node, likes, wait_until_level};

/// Runs the command again and again, killed each time a little later, until it comes to its end. Returns how often it was
/// killed.
fn killed_until_done(node: &Node, arguments: &[&str]) -> u32 {
    for times in 0.. {
        let mut command = node.command(arguments);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        thread::sleep(Duration::from_millis(300) * times);
        match child.try_wait().unwrap() {
            Some(status) => {
                assert!(status.success(), "{status}; to see why, run it again");
                return times;
            }
            None => {
                child.kill().unwrap();
                child.wait().unwrap();
            }
        }
    }
    unreachable!("it never ends")
}

/// How many events a device was sent during its stay, as the hub says when it leaves.
fn pulled(hub: &Node, device: &str) -> u64 {
    let log = hub.log();
    let left = log.lines().rfind(|line| line.contains("a device left") && line.contains(device));
    let left = left.unwrap_or_else(|| panic!("no device left: {log}"));
    let (_, rest) = left.split_once("pulled=").expect("what it pulled");
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().expect("a number")
}

#[test]
fn a_hub_moves_in_and_out_and_a_level_device_pulls_nothing_anew() {
    let count = load(20_000) as u64;
    let nats = Nats::single();
    let url = nats.url();
    let front = Front::start();
    let mut hub = Node::hub();
    front.point_to([hub.url()]);
    hub.import(&likes(count as usize));
    let mut phone = Node::client("phone", &front.url, &hub);
    wait_until_level(&[&hub, &phone], count);
    let before = hub.export();
    let refused = hub.command(&["move", "in", "--upstream", &url]).output().unwrap();
    assert!(!refused.status.success() && errors(&refused).contains("in use by the process"), "{}", errors(&refused));
    hub.stop();

    // In, killed again and again.
    killed_until_done(&hub, &["move", "in", "--upstream", &url]);
    let told = hub.command(&["move", "in", "--upstream", &url]).output().unwrap();
    assert!(errors(&told).contains("likes: was moved before"), "{}", errors(&told));
    hub.flag("--upstream", &url);
    hub.start();
    assert_eq!(hub.export(), before, "ids, order, places and origins");
    front.point_to([hub.url()]);
    let mut other = Node::gateway("other", &url);
    other.start();
    other.wait_for_count(count);
    assert_eq!(other.export(), before, "another gateway has the same");

    // A level device goes on as if nothing had been, at either.
    phone.wait_until("online");
    hub.like();
    wait_until_level(&[&hub, &other, &phone], count + 1);
    front.point_to([other.url()]);
    phone.stop();
    assert_eq!(pulled(&hub, "phone"), 1, "only what was new");
    phone.start();
    phone.wait_until("online");
    phone.like();
    wait_until_level(&[&hub, &other, &phone], count + 2);

    // Out, from the directory of a gateway that is stopped. The other one refuses from then on.
    let before = other.export();
    hub.stop();
    let out = ["move", "out", "--upstream", &url, "--to", "https://hub.example.org"];
    killed_until_done(&hub, &out);
    let told = hub.command(&out).output().unwrap();
    assert!(told.status.success() && errors(&told).contains("likes: was moved before"), "{}", errors(&told));
    let refused = hub.command(&["move", "out", "--upstream", &url, "--to", "elsewhere"]).output().unwrap();
    let words = errors(&refused);
    assert!(!refused.status.success() && words.contains("to https://hub.example.org"), "{words}");
    other.wait_until("halted");
    assert!(other.status().to_string().contains("https://hub.example.org"), "{}", other.status());
    hub.unflag("--upstream");
    hub.start();
    assert_eq!(hub.export(), before);
    front.point_to([hub.url()]);
    phone.like();
    wait_until_level(&[&hub, &phone], count + 3);
    phone.stop();
    assert_eq!(pulled(&hub, "phone"), 1, "its own like");
    hub.verify();
    phone.verify();

    // A stream doesn't take a store back.
    hub.stop();
    let refused = hub.command(&["move", "in", "--upstream", &url]).output().unwrap();
    assert!(errors(&refused).contains("Use another prefix"), "{}", errors(&refused));
    hub.run(&["move", "in", "--upstream", &format!("{url}/second")]);
}

#[test]
fn a_new_directory_takes_all_stores_out_of_a_stream() {
    let nats = Nats::single();
    let mut gateway = Node::gateway("one", &nats.url());
    gateway.start();
    gateway.wait_until("online");
    let token = gateway.token("phone");
    for store in ["", "/s/other"] {
        for _ in 0..3 {
            gateway.like_in(store);
        }
    }
    gateway.wait_for_count(3);
    let dir = data_dir();
    let data = dir.path().join("data");
    printed(run(&data, &["move", "out", "--upstream", &nats.url(), "--to", "here"]));
    let exported = printed(run(&data, &["export", "--store", "other"]));
    assert_eq!(exported.lines().count(), 3);
    assert!(printed(run(&data, &["token", "list"])).contains("phone"), "the token {token} is known");
}

#[test]
fn what_cannot_be_moved_says_why_and_stays_what_it_is() {
    let nats = Nats::single();
    let hub = Node::stopped_hub();
    let words = |node: &Node, arguments: &[&str]| {
        let output = node.command(arguments).output().unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        errors(&output)
    };
    assert!(words(&hub, &["move", "in", "--upstream", &nats.url()]).contains("there is no data"), "an empty directory");
    hub.import(&likes(3));
    let before = hub.export();
    let refused = words(&hub, &["move", "in", "--upstream", "http://127.0.0.1:3000"]);
    assert!(refused.contains("NATS"), "{refused}");
    let refused = words(&hub, &["move", "out", "--upstream", &nats.url(), "--to", " "]);
    assert!(refused.contains("--to is empty"), "{refused}");
    assert_eq!(hub.export(), before);
    hub.verify();
}

#[test]
fn a_hub_is_not_mixed_with_another_installation_unasked() {
    let nats = Nats::single();
    let mut gateway = Node::gateway("one", &nats.url());
    gateway.start();
    gateway.wait_until("online");
    gateway.token("alice");
    gateway.like();
    gateway.wait_for_count(1);
    let there = tokens(&gateway);
    let refused = |hub: &Node, arguments: &[&str]| {
        let before = tokens(hub);
        let output = hub.command(arguments).output().unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        assert_eq!(tokens(hub), before);
        assert_eq!(tokens(&gateway), there, "nobody else was let in");
        errors(&output)
    };

    let hub = Node::stopped_hub();
    hub.import(&likes(3));
    hub.token("mallory");
    let why = refused(&hub, &["move", "in", "--upstream", &nats.url(), "--yes"]);
    assert!(why.contains("nothing was moved") && why.contains("stores already: likes"), "{why}");
    let why = refused(&hub, &["serve", "--listen", "127.0.0.1:0", "--upstream", &nats.url()]);
    assert!(why.contains("a hub that has devices") && why.contains("move in"), "{why}");

    let mut hub = Node::stopped_hub();
    hub.start();
    hub.like_in("/s/other");
    hub.stop();
    hub.token("mallory");
    let why = refused(&hub, &["move", "in", "--upstream", &nats.url()]);
    assert!(why.contains("devices of their own: alice") && why.contains("--yes"), "{why}");
    hub.run(&["move", "in", "--upstream", &nats.url(), "--yes"]);
    assert!(tokens(&hub).contains("alice"), "both are one now");
    hub.run(&["verify", "--store", "other"]);
}

fn tokens(node: &Node) -> String {
    node.run(&["token", "list"])
}

#[test]
fn a_move_ends_when_the_servers_refuse_it() {
    let rights = r#"authorization { users: [ { user: anna, password: secret, permissions: { publish: { deny: ["$KV.>"] } } } ] }"#;
    let nats = Plan::new(1).also(rights).start();
    let mut hub = Node::hub();
    hub.like();
    hub.stop();
    for (login, words) in [("anna:secret@", "ermissions Violation"), ("", "--nats-credentials")] {
        let url = nats.url().replace("nats://", &format!("nats://{login}"));
        let refused = hub.command(&["move", "in", "--upstream", &url]).output().unwrap();
        let why = errors(&refused);
        assert!(!refused.status.success() && why.contains("refuses it") && why.contains(words), "{why}");
    }
    hub.start();
    assert_eq!(hub.count(), 1);
}
