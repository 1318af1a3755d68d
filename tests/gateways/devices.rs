//! Devices that ask now this gateway and now that one, and what all gateways share.

use std::fs;
use std::io::Write as _;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::common::nats::Nats;
use crate::common::wait_for;
use crate::support::{Node, Wire, exchange, get, like, likes, wait_until_level};

/// As many gateways before one server.
fn gateways<const N: usize>(nats: &Nats) -> [Node; N] {
    std::array::from_fn(|n| {
        let mut gateway = Node::gateway(&format!("gateway-{n}"), &nats.url());
        gateway.start();
        gateway.wait_until("online");
        gateway
    })
}

/// Waits until a gateway answers a pull of this device at all.
fn hello(device: &Wire) -> Value {
    wait_for("a hello", || {
        let (event, hello) = device.pull("after=0").ok()?.next()?;
        (event == "hello").then_some(hello)
    })
}

fn code(answer: (u16, Value)) -> (u16, String) {
    (answer.0, answer.1["code"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn a_device_pulls_at_one_gateway_pushes_at_another_and_is_revoked_at_a_third() {
    let nats = Nats::single();
    let [one, two, three] = gateways(&nats);
    // Nobody waits until the others know of it.
    let at_one = Wire::new(&one, "phone");
    let at_two = at_one.at(&two);
    let (here, there) = (at_one.hello(), at_two.hello());
    assert_eq!(here["run"], there["run"], "all gateways serve under one run");
    assert_eq!((&here["log"], &here["head"]), (&Value::Null, &json!(0)));

    let mut pull = at_one.pull("after=0").unwrap();
    let event = like();
    let (status, pushed) = at_two.push(&Value::Null, &there["run"], std::slice::from_ref(&event));
    assert_eq!((status, &pushed["events"]), (200, &json!([{ "seq": 1_024 }])), "{pushed}");
    let page = pull.page();
    assert_eq!(page["log"], pushed["log"]);
    assert_eq!((&page["events"][0]["id"], &page["events"][0]["origin"]), (&event["id"], &json!("phone")));
    let (status, again) = at_one.push(&pushed["log"], &here["run"], std::slice::from_ref(&event));
    assert_eq!((status, &again), (200, &pushed), "the same at any gateway");
    let (_, taken) = at_one.push(&pushed["log"], &here["run"], &[json!({ "id": event["id"], "name": "Other" })]);
    assert_eq!(taken["events"][0]["refused"], "id-taken", "{taken}");
    wait_until_level(&[&one, &two, &three], 1);

    three.run(&["token", "revoke", "phone"]);
    while pull.next().is_some() {}
    wait_for("the others to refuse it", || {
        let refused = |device: &Wire| device.pull("after=0").err().map(code);
        [&at_one, &at_two].iter().all(|device| refused(device) == Some((401, "unauthorized".to_owned()))).then_some(())
    });
    assert!(!one.run(&["token", "list"]).contains("phone"));
}

#[test]
fn what_is_changed_while_a_gateway_is_stopped_all_know_once_it_starts() {
    let nats = Nats::single();
    let [mut one, two] = gateways(&nats);
    one.stop();
    let at_two = Wire::with_token(&two, &one.token("phone"));
    assert_eq!(code(at_two.pull("after=0").err().unwrap()), (401, "unauthorized".to_owned()));
    one.start();
    wait_for("the other gateway to know the token", || at_two.pull("after=0").ok().map(drop));
    one.stop();
    one.run(&["token", "revoke", "phone"]);
    one.start();
    wait_for("the other gateway to refuse it", || at_two.pull("after=0").err().filter(|(status, _)| *status == 401));
    two.run(&["token", "add", "phone"]);
    let message = one.command(&["token", "add", "phone"]).output().unwrap();
    assert!(!message.status.success(), "the name has a token at the other gateway");
}

#[test]
fn a_link_that_is_made_at_one_gateway_is_good_once_at_another() {
    let nats = Nats::single();
    let [one, two] = gateways(&nats);
    let link = one.run(&["pair", "laptop", "--public-url", two.url()]);
    let join = |device: &Node| {
        let mut command = device.command(&["join"]);
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(link.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let (mut first, second) = (Node::alone(), Node::alone());
    let joined = join(&first);
    assert!(joined.status.success(), "{}", String::from_utf8_lossy(&joined.stderr));
    let refused = join(&second);
    assert!(!refused.status.success());
    wait_for("the other gateway to know it", || one.run(&["token", "list"]).contains("laptop").then_some(()));
    first.start();
    first.like();
    wait_until_level(&[&one, &two, &first], 1);
    // A link that is used up at the one is so at the other.
    let link = two.run(&["pair", "tablet", "--public-url", one.url()]);
    assert!(link.starts_with(one.url()), "{link}");
}

#[test]
fn a_gateway_without_its_cluster_keeps_its_own_likes_and_sends_devices_elsewhere() {
    let mut nats = Nats::single();
    let [one, two] = gateways(&nats);
    one.like();
    let mut device = Node::client("phone", one.url(), &one);
    wait_until_level(&[&one, &two, &device], 1);
    let at_one = Wire::new(&two, "wire").at(&one);
    hello(&at_one);
    nats.kill(0);
    one.like();
    device.like();
    assert_eq!((one.count(), one.pending(), device.count()), (2, 1, 2));
    let offline = one.wait_until("offline");
    assert!(!offline["upstream"]["error"].as_str().unwrap().is_empty(), "{offline}");
    let address = one.url().trim_start_matches("http://").to_owned();
    let asked = format!("GET /healthz?sync HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    wait_for("the gateway to be no hub for a while", || (exchange(&address, &asked).0 == 503).then_some(()));
    assert_eq!(get(&format!("{}/healthz", one.url())).0, 200, "likes are stored all the same");
    let (status, answer) = wait_for("a refusal", || at_one.pull("after=0").err());
    assert_eq!((status, answer["code"].as_str()), (503, Some("gateway-not-ready")), "{answer}");
    device.wait_until("offline");

    nats.start(0);
    wait_until_level(&[&one, &two, &device], 3);
    device.stop();
    assert_eq!(two.export(), one.export());
}

#[test]
fn a_run_outlasts_gateways_and_ends_when_the_stream_has_lost_something() {
    let mut nats = Nats::single();
    let [mut one, two] = gateways(&nats);
    let at_two = Wire::new(&two, "wire");
    let run = hello(&at_two)["run"].clone();
    one.like();
    wait_until_level(&[&one, &two], 1);
    one.kill();
    one.start();
    one.wait_until("online");
    assert_eq!((&hello(&at_two.at(&one))["run"], &hello(&at_two)["run"]), (&run, &run));

    nats.kill(0);
    let saved = nats.save(0);
    nats.start(0);
    one.like();
    two.like();
    wait_until_level(&[&one, &two], 3);
    nats.kill(0);
    nats.set_back(0, &saved);
    nats.start(0);
    wait_for("a new run", || (hello(&at_two)["run"] != run).then_some(()));
    wait_until_level(&[&one, &two], 3);
    // Each gateway that finds the loss may begin a run. The other one hears of it within a second.
    wait_for("one run at both", || (hello(&at_two.at(&one))["run"] == hello(&at_two)["run"]).then_some(()));
    assert_eq!(one.export(), two.export());
    one.verify();
}

#[test]
fn the_whole_stream_and_the_bucket_come_back_from_the_gateways() {
    let mut nats = Nats::single();
    let [one, two] = gateways(&nats);
    let mut device = Node::client("phone", two.url(), &one);
    let revoked = Wire::new(&one, "lost");
    hello(&revoked);
    one.run(&["token", "revoke", "lost"]);
    for _ in 0..3 {
        one.like();
        device.like();
    }
    wait_until_level(&[&one, &two, &device], 6);
    let log = one.status()["log"].clone();
    nats.kill(0);
    nats.lose(0);
    nats.start(0);
    device.like();
    wait_until_level(&[&one, &two, &device], 7);
    assert_eq!(one.status()["log"], log, "it is the same log");
    for gateway in [&one, &two] {
        let refused =
            wait_for("an answer", || revoked.at(gateway).pull("after=0").err().filter(|(status, _)| *status != 503));
        assert_eq!(refused.0, 401, "what was revoked stays so");
    }
    device.stop();
}

#[test]
fn all_gateways_tell_visitors_apart_alike() {
    let nats = Nats::single();
    let [one, two] = gateways(&nats);
    let key = |node: &Node| wait_for("a key", || fs::read_to_string(node.data.join("visitor.key")).ok());
    assert_eq!(key(&one), key(&two));
}

#[test]
fn a_new_gateway_takes_the_whole_log_of_every_store() {
    let nats = Nats::single();
    let [one] = gateways(&nats);
    one.import(&crate::support::likes(2_500));
    one.like_in("/s/other");
    wait_until_level(&[&one], 2_500);
    let [two] = gateways(&nats);
    wait_until_level(&[&one, &two], 2_500);
    // Nobody visits the other store.
    wait_for("the other store", || {
        let stores: Value = serde_json::from_str(&two.run(&["stores", "--json"])).unwrap();
        let other = stores.as_array().unwrap().iter().find(|store| store["store"] == "other")?;
        (other["count"] == 1).then_some(())
    });
    assert_eq!(one.export(), two.export());
    two.verify();
}

#[test]
fn a_device_begins_with_one_gateways_snapshot_and_has_its_history_from_another() {
    let nats = Nats::single();
    let [one, two] = gateways(&nats);
    one.import(&likes(12_000));
    wait_until_level(&[&one, &two], 12_000);
    let mut phone = Node::prepared("phone", one.url(), &one);
    phone.flag("--history", "none");
    phone.start();
    wait_until_level(&[&one, &two, &phone], 12_000);
    assert!(phone.log().contains("began with the hub's snapshot"), "{}", phone.log());
    assert_eq!(phone.status()["history"]["state"], "left-out");
    phone.stop();
    phone.unflag("--history");
    phone.flag("--upstream", two.url());
    phone.start();
    phone.like();
    wait_until_level(&[&one, &two, &phone], 12_001);
    wait_for("the history", || phone.status()["history"].is_null().then_some(()));
    wait_until_level(&[&one, &two, &phone], 12_001);
    assert!(phone.status()["upstream"].get("snapshot_was_wrong").is_none());
    phone.verify();
}
