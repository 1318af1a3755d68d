//! Servers that are too few to agree. Whoever stands before those knows nothing that is new, and says so.

use std::time::Instant;

use crate::common::nats::{Course, Nats, Plan};
use crate::common::{PATIENCE, wait_for};
use crate::support::{Node, Wire, exchange, wait_until_level};

fn gateway(name: &str, servers: &str) -> Node {
    let mut gateway = Node::gateway(name, servers);
    gateway.start();
    gateway.wait_until("online");
    gateway
}

/// Whether a load balancer sends devices there.
fn takes_devices(gateway: &Node) -> bool {
    let address = gateway.url().trim_start_matches("http://");
    let asked = format!("GET /healthz?sync HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    exchange(address, &asked).0 == 200
}

fn wait_until_it_takes_none(gateway: &Node) {
    wait_for("the gateway to be no hub for a while", || (!takes_devices(gateway)).then_some(()));
}

/// Whether `doctor` finds the cluster well, and what it says.
fn doctor(node: &Node, more: &[&str]) -> (bool, String) {
    let output = node.command(&[&["doctor"], more].concat()).output().unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn a_gateway_beside_a_minority_ends_its_pulls_and_serves_nobody_who_was_revoked() {
    let nats = Plan::new(3).with_links().start();
    let first = gateway("first", &nats.url());
    // The server that leads the bucket is the one that believes longest that it does.
    let parted = wait_for("a leader", || nats.leader_of("KV_likewise"));
    let others: Vec<_> = (0..3).filter(|n| *n != parted).map(|n| nats.url_of(n)).collect();
    let there = gateway("there", &nats.url_of(parted));
    let here = gateway("here", &others.join(","));
    here.like();
    wait_until_level(&[&first, &here, &there], 1);
    let eve_here = Wire::new(&here, "eve");
    let eve_there = eve_here.at(&there);
    let mut pull = wait_for("a pull", || eve_there.pull("after=0").ok());
    assert!(takes_devices(&there));

    nats.set_links_of(parted, Course::Cut);
    let began = Instant::now();
    // While a leader is elected, the command can't say that all know.
    here.command(&["token", "revoke", "eve"]).output().unwrap();
    wait_for("the token to be revoked", || eve_here.pull("after=0").err().filter(|(status, _)| *status == 401));
    wait_until_it_takes_none(&there);
    while pull.next().is_some() {
        assert!(began.elapsed() < PATIENCE, "the pull goes on");
    }
    let refused = eve_there.pull("after=0").err().expect("nobody is served").0;
    assert!([401, 503].contains(&refused), "{refused}");
    assert!(!takes_devices(&there));
    there.wait_until("offline");

    nats.set_links_of(parted, Course::Pass);
    here.like();
    there.like();
    wait_until_level(&[&first, &here, &there], 3);
    wait_for("devices to be taken again", || takes_devices(&there).then_some(()));
    assert_eq!(eve_there.pull("after=0").err().expect("she is revoked").0, 401);
}

#[test]
fn servers_that_are_missing_are_named_and_one_of_three_serves_nobody() {
    let mut nats = Nats::cluster();
    let gateway = gateway("gateway", &nats.url());
    let mut pull = wait_for("a pull", || Wire::new(&gateway, "phone").pull("after=0").ok());
    let url = nats.url();
    let looks: [&[&str]; 2] = [&[], &["--upstream", &url]];
    for look in looks {
        let (is_well, found) = doctor(&gateway, look);
        assert!(is_well, "{found}");
    }
    nats.kill(0);
    for look in looks {
        wait_for("doctor to miss a server", || {
            let (is_well, found) = doctor(&gateway, look);
            (!is_well && found.contains("the server n1 doesn't answer") && found.contains("n1 is missing"))
                .then_some(())
        });
    }
    assert!(takes_devices(&gateway), "two of three agree");
    nats.kill(1);
    let began = Instant::now();
    wait_until_it_takes_none(&gateway);
    while pull.next().is_some() {
        assert!(began.elapsed() < PATIENCE, "the pull goes on");
    }
    let away = gateway.wait_until("offline");
    assert!(away["upstream"].get("copies").is_none_or(serde_json::Value::is_null), "{away}");
    for look in looks {
        let (is_well, found) = doctor(&gateway, look);
        assert!(!is_well && !found.contains("leads,"), "{found}");
    }
    assert!(!takes_devices(&gateway));
    nats.start(0);
    nats.start(1);
    gateway.like();
    wait_until_level(&[&gateway], 1);
    wait_for("devices to be taken again", || takes_devices(&gateway).then_some(()));
}
