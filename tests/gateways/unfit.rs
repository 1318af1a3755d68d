//! NATS servers that can't be trusted with events, or are in no state to take them, and messages that are none.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use crate::common::nats::{Nats, Plan};
use crate::common::wait_for;
use crate::stranger::Stranger;
use crate::support::{Node, Wire, exchange, open_page, wait_until_level};

fn gateway(url: &str) -> Node {
    let mut gateway = Node::gateway("gateway", url);
    gateway.flag("--retry-halted", "1");
    gateway.start();
    gateway
}

/// Waits until the gateway says this of its cluster.
fn wait_until_it_says(gateway: &Node, state: &str, words: &[&str]) -> Value {
    wait_for(&format!("{state} with {words:?}; it is {}", gateway.status()), || {
        let status = gateway.status();
        let why = status["upstream"]["error"].as_str().unwrap_or_default();
        (status["upstream"]["state"] == state && words.iter().all(|word| why.contains(word))).then_some(status)
    })
}

/// Its own likes are kept, and devices are told to come again.
fn works_otherwise(gateway: &Node) {
    gateway.like();
    assert!(gateway.pending() > 0);
    let token = gateway.command(&["token", "add", "phone"]).output().unwrap();
    let token = String::from_utf8(token.stdout).unwrap();
    let (status, answer) = Wire::with_token(gateway, token.trim()).pull("after=0").err().expect("no hub now");
    assert_eq!((status, answer["code"].as_str()), (503, Some("gateway-not-ready")), "{answer}");
}

#[test]
fn a_stream_with_a_weaker_setting_is_refused_by_its_name_until_it_is_gone() {
    let nats = Nats::single();
    let stranger = Stranger::new(&nats);
    stranger.makes(
        "likewise",
        json!({
            "subjects": ["likewise.*"], "discard": "new", "deny_delete": true, "deny_purge": true, "allow_direct": true,
            "max_age": 3_600_000_000_000_u64, "metadata": { "likewise-id": "0e1f2a3b-4c5d-4e6f-8a9b-0c1d2e3f4a5b" },
        }),
    );
    let gateway = gateway(&nats.url());
    let status = wait_until_it_says(&gateway, "halted", &["likewise has max_age: 3600000000000", "don't grow old"]);
    assert_eq!(status["upstream"]["code"], "unfit-cluster");
    assert!(gateway.log().contains("max_age"), "{}", gateway.log());
    works_otherwise(&gateway);
    stranger.deletes("likewise");
    wait_until_level(&[&gateway], 1);
}

#[test]
fn a_stream_or_bucket_that_becomes_unfit_stops_a_gateway_until_it_is_fit_again() {
    let nats = Nats::single();
    let stranger = Stranger::new(&nats);
    let gateway = gateway(&nats.url());
    gateway.like();
    wait_until_level(&[&gateway], 1);
    let device = Wire::new(&gateway, "phone");
    let address = gateway.url().trim_start_matches("http://").to_owned();
    let asked = format!("GET /healthz?sync HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    // Somebody watches, so the store is attended to all the while.
    let _page = open_page(&gateway);
    let settings = stranger.info("likewise")["config"].clone();
    let mut weaker = settings.clone();
    (weaker["discard"], weaker["max_msgs"]) = (json!("old"), json!(1_000));
    let last = stranger.asks("STREAM.MSG.GET.KV_likewise", &json!({ "last_by_subj": "$KV.likewise.gateways" }));
    let document = BASE64.decode(last["message"]["data"].as_str().unwrap()).unwrap();
    let stops = |spoil: &dyn Fn(), mend: &dyn Fn(), words: &[&str], likes: u64| {
        let mut pull = wait_for("a pull", || device.pull("after=0").ok());
        spoil();
        wait_until_it_says(&gateway, "halted", words);
        assert_eq!(exchange(&address, &asked).0, 503, "no device is sent here");
        let (status, answer) = device.pull("after=0").err().expect("no hub now");
        assert_eq!((status, answer["code"].as_str()), (503, Some("gateway-not-ready")), "{answer}");
        let began = Instant::now();
        while pull.next().is_some() {}
        assert!(began.elapsed() < Duration::from_secs(15), "open pulls end at once");
        let published = stranger.info("likewise")["state"]["messages"].clone();
        gateway.like();
        assert_eq!(gateway.pending(), 1);
        let found = gateway.command(&["doctor"]).output().unwrap();
        assert!(!found.status.success(), "{found:?}");
        assert_eq!(stranger.info("likewise")["state"]["messages"], published);
        mend();
        wait_until_level(&[&gateway], likes);
    };
    stops(
        &|| stranger.updates("likewise", &weaker),
        &|| stranger.updates("likewise", &settings),
        &["discard", "max_msgs: 1000"],
        2,
    );
    stops(
        &|| drop(stranger.publishes("$KV.likewise.gateways", "hello")),
        &|| drop(stranger.publishes("$KV.likewise.gateways", document.clone())),
        &["what the gateways share is not understood"],
        3,
    );
}

#[test]
fn somebody_elses_stream_of_the_same_name_stays_theirs() {
    let nats = Nats::single();
    let stranger = Stranger::new(&nats);
    stranger.makes(
        "likewise",
        json!({
            "subjects": ["likewise.*"], "discard": "new", "deny_delete": true, "deny_purge": true, "allow_direct": true,
        }),
    );
    let gateway = gateway(&nats.url());
    wait_until_it_says(&gateway, "halted", &["somebody else's", "prefix"]);
    gateway.like();
    assert_eq!(stranger.info("likewise")["state"]["messages"], 0);
    // With a prefix of its own, it has a stream of its own.
    let mut other = Node::gateway("other", &format!("{}/shop", nats.url()));
    other.start();
    other.like();
    wait_until_level(&[&other], 1);
    assert_eq!(stranger.info("shop")["state"]["messages"], 1);
    assert_eq!(stranger.info("likewise")["state"]["messages"], 0);
}

#[test]
fn servers_without_jetstream_say_so() {
    let nats = Plan::new(1).without_jetstream().start();
    let gateway = gateway(&nats.url());
    wait_until_it_says(&gateway, "offline", &["JetStream"]);
    works_otherwise(&gateway);
}

#[test]
fn a_user_without_rights_is_told_so_and_no_password_is_shown() {
    let rights = r#"authorization { users: [ { user: anna, password: secret, permissions: { publish: { deny: ["$JS.API.>"] } } } ] }"#;
    let nats = Plan::new(1).also(rights).start();
    let url = nats.url().replace("nats://", "nats://anna:secret@");
    let known = gateway(&url);
    wait_until_it_says(&known, "offline", &["ermissions", "SECURITY.md"]);
    let doctor = |url: &str| {
        let output = Node::alone().command(&["doctor", "--upstream", url]).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    let found = doctor(&url);
    assert!(found.contains("ermissions") && found.contains("SECURITY.md"), "{found}");
    let found = doctor(&nats.url());
    assert!(found.contains("--nats-credentials"), "{found}");
    works_otherwise(&known);
    assert_eq!(known.status()["upstream"]["url"], nats.url());
    assert!(!known.log().contains("secret"), "{}", known.log());
    let wrong = gateway(&url.replace("secret", "wrong"));
    wait_until_it_says(&wrong, "offline", &["uthorization", "--nats-credentials"]);
    works_otherwise(&wrong);
}

#[test]
fn a_stream_without_room_loses_nothing() {
    let nats = Plan::new(1).store_limit("4MB").start();
    let stranger = Stranger::new(&nats);
    let gateway = gateway(&nats.url());
    gateway.like();
    wait_until_level(&[&gateway], 1);
    let device = Node::client("phone", gateway.url(), &gateway);
    device.wait_until("online");
    stranger.makes("filler", json!({ "subjects": ["filler"] }));
    for size in [500_000, 50_000, 5_000, 500, 50, 1] {
        while stranger.publishes("filler", vec![b'x'; size])["error"].is_null() {}
    }
    gateway.like();
    device.like();
    wait_until_it_says(&gateway, "offline", &["no room"]);
    wait_for("the device to be offline", || (device.status()["upstream"]["state"] == "offline").then_some(()));
    assert_eq!((device.count(), device.pending()), (2, 1));
    stranger.asks("STREAM.PURGE.filler", &json!({}));
    wait_until_level(&[&gateway, &device], 3);
}

#[test]
fn messages_that_are_none_are_passed_over_alike_everywhere() {
    let nats = Nats::single();
    let stranger = Stranger::new(&nats);
    let first = gateway(&nats.url());
    first.like();
    wait_until_level(&[&first], 1);
    let long = format!(r#"{{"v":1,"events":[{}]}}"#, "0,".repeat(100_000));
    for text in ["hello", "", "{}", r#"{"v":1}"#, r#"{"v":1,"log":"x","events":[],"digest":"y"}"#, &long] {
        assert!(stranger.publishes("likewise.likes", text)["error"].is_null());
        first.like();
    }
    for subject in ["likewise.Odd", "likewise.-", "likewise.a_b"] {
        assert!(stranger.publishes(subject, "hello")["error"].is_null());
    }
    let second = gateway(&nats.url());
    second.like();
    wait_until_level(&[&first, &second], 8);
    assert_eq!(first.export(), second.export());
    for gateway in [&first, &second] {
        gateway.verify();
        wait_for("words on it", || gateway.log().contains("is passed over").then_some(()));
        wait_for("words on the subjects", || gateway.log().contains("likewise.Odd").then_some(()));
    }
}

#[test]
fn a_store_that_was_moved_out_is_served_by_no_gateway() {
    let nats = Nats::single();
    let stranger = Stranger::new(&nats);
    let gateway = gateway(&nats.url());
    gateway.like();
    wait_until_level(&[&gateway], 1);
    let device = Node::client("phone", gateway.url(), &gateway);
    wait_until_level(&[&gateway, &device], 1);
    stranger.publishes("likewise.likes", r#"{"v":1,"closed":"https://hub.example.org"}"#);
    wait_until_it_says(&gateway, "halted", &["hub.example.org"]);
    device.like();
    wait_for("the device to be told", || {
        let status = device.status();
        let why = status["upstream"]["error"].as_str().unwrap_or_default();
        (status["upstream"]["state"] == "offline" && why.contains("hub.example.org")).then_some(())
    });
    assert_eq!(device.pending(), 1, "it keeps what it has");
}

#[test]
fn another_stream_of_the_same_name_halts_a_store_until_it_is_adopted() {
    let nats = Nats::single();
    let stranger = Stranger::new(&nats);
    let gateway = gateway(&nats.url());
    gateway.like();
    wait_until_level(&[&gateway], 1);
    let log = gateway.status()["log"].clone();
    let mut settings = stranger.info("likewise")["config"].clone();
    settings["metadata"] = json!({ "likewise-id": "0e1f2a3b-4c5d-4e6f-8a9b-0c1d2e3f4a5b" });
    // Nobody looks in between.
    gateway.pause();
    stranger.deletes("likewise");
    stranger.makes("likewise", settings);
    gateway.resume();
    gateway.wait_until_halted("wrong-log");
    gateway.like();
    assert_eq!((gateway.count(), gateway.pending()), (2, 1));
    gateway.run(&["adopt", "--yes"]);
    wait_until_level(&[&gateway], 2);
    assert_ne!(gateway.status()["log"], log);
    gateway.verify();
}

#[test]
fn an_open_network_and_a_hub_that_follows_a_hub_are_refused_at_once() {
    let refused = Node::gateway("gateway", "nats://192.0.2.1").refuses_to_start();
    assert!(refused.contains("--nats-without-tls"), "{refused}");
    let refused = Node::gateway("gateway", "nats://localhost/a.b").refuses_to_start();
    assert!(refused.contains("prefix"), "{refused}");
    let mut other = Node::gateway("gateway", "nats://localhost");
    other.flag("--nats-credentials", "/nowhere");
    let refused = other.refuses_to_start();
    assert!(refused.contains("/nowhere"), "{refused}");
    let output = Node::alone().command(&["hub", "--upstream", "https://hub.example.org"]).output().unwrap();
    let refused = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && refused.contains("a hub follows no other hub"), "{refused}");
}
