//! What a person sees of a gateway: its page, `status`, `doctor` and its numbers.

use std::process::Output;

use serde_json::json;

use crate::common::nats::{Nats, Plan};
use crate::common::wait_for;
use crate::stranger::Stranger;
use crate::support::{Node, get, open_page, wait_until_level};

fn said(Output { status, stdout, .. }: &Output) -> (bool, String) {
    (status.success(), String::from_utf8(stdout.clone()).unwrap())
}

#[test]
fn a_gateway_says_which_servers_it_has_and_whether_it_has_caught_up() {
    let nats = Nats::cluster();
    let mut gateway = Node::gateway("gateway", &nats.url());
    gateway.start();
    gateway.like();
    wait_until_level(&[&gateway], 1);
    let _page = open_page(&gateway);
    let text = wait_for("all copies to be current", || {
        let text = gateway.run(&["status"]);
        (text.matches("is current").count() == 2).then_some(text)
    });
    assert!(text.contains("online since") && text.contains(&nats.url()), "{text}");
    assert!(text.contains("3 copies of the stream: n"), "{text}");
    let (_, page) = get(gateway.url());
    assert!(page.contains("with the cluster") && page.contains("3 copies of the stream"), "{page}");

    let monitors = [0, 1, 2].map(|n| nats.monitor_of(n)).join(",");
    let (is_well, found) = said(&gateway.command(&["doctor", "--nats-monitor", &monitors]).output().unwrap());
    assert!(is_well, "{found}");
    let (_, of_one) = said(&gateway.command(&["doctor", "--nats-monitor", &nats.monitor_of(0)]).output().unwrap());
    assert!(of_one.contains("3 servers, and 1 of them can be asked"), "{of_one}");
    for words in ["this one is a gateway to", "level with its stream", "nats-server 2.", "sync_interval: always"] {
        assert!(found.contains(words), "{words}: {found}");
    }
    let (_, metrics) = get(&format!("{}/metrics", gateway.url()));
    for line in [
        "likewise_gateway_ready 1",
        "likewise_gateway_replicas 3",
        "likewise_gateway_published_total 1",
        "likewise_devices 0",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
}

#[test]
fn doctor_looks_at_a_cluster_before_there_is_a_gateway_and_changes_nothing() {
    let nats = Plan::new(1).start();
    let node = Node::alone();
    let doctor = |more: &[&str]| {
        let mut words = vec!["doctor", "--upstream"];
        let url = nats.url();
        words.push(&url);
        words.extend(more);
        said(&node.command(&words).output().unwrap())
    };
    for _ in 0..2 {
        let (_, found) = doctor(&[]);
        assert!(found.contains("has none yet") && found.contains("--nats-monitor"), "{found}");
    }
    let mut gateway = Node::gateway("gateway", &nats.url());
    gateway.start();
    gateway.wait_until("online");
    let (_, found) = doctor(&["--nats-monitor", &nats.monitor_of(0)]);
    assert!(found.contains("the stream likewise is on 1 server") && found.contains("sync_interval: always"), "{found}");
    let (is_well, found) = doctor(&["--nats-monitor", "http://127.0.0.1:1"]);
    assert!(!is_well && found.contains("doesn't tell how it is set up"), "{found}");
    let (is_well, found) = doctor(&["--nats-monitor", "127.0.0.1:1"]);
    assert!(!is_well && found.contains("no http:// before it"), "{found}");
    let (is_well, found) =
        said(&node.command(&["doctor", "--upstream", &nats.url().replace("nats", "tls")]).output().unwrap());
    assert!(!is_well && found.contains("speaks no TLS"), "{found}");
}

#[test]
fn doctor_finds_a_cluster_with_too_few_copies_or_too_little_room() {
    let nats = Plan::new(3).store_limit("3MB").start();
    let stranger = Stranger::new(&nats);
    let mut gateway = Node::gateway("gateway", &nats.url());
    gateway.start();
    gateway.wait_until("online");
    let finds = |words: &str| {
        wait_for(&format!("doctor to find {words}"), || {
            let monitor = nats.monitor_of(0);
            let (is_well, found) = said(&gateway.command(&["doctor", "--nats-monitor", &monitor]).output().unwrap());
            (!is_well && found.contains(words)).then_some(())
        });
    };
    let mut settings = stranger.info("KV_likewise")["config"].clone();
    settings["num_replicas"] = json!(1);
    stranger.updates("KV_likewise", &settings);
    finds("nats stream edit KV_likewise --replicas 3");
    settings["num_replicas"] = json!(3);
    stranger.updates("KV_likewise", &settings);
    stranger.makes("filler", json!({ "subjects": ["filler"], "num_replicas": 3 }));
    while stranger.publishes("filler", vec![b'x'; 100_000])["error"].is_null() {}
    finds("of the 3 MB that it may");
}
