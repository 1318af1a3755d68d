//! What an administrator sees of a hub and its devices: numbers, and lines in the log.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::common::nats::Nats;
use crate::common::wait_for;
use crate::support::{Node, Wire, get, hub_behind_proxy, likes};

const DOCUMENT: &str = include_str!("../../docs/metrics.md");
const ALERTS: &str = include_str!("../../packaging/alerts.yml");
const DASHBOARD: &str = include_str!("../../packaging/dashboard.json");

fn metrics(node: &Node) -> String {
    let (status, body) = get(&format!("{}/metrics", node.url()));
    assert_eq!(status, 200, "{body}");
    body
}

/// The value of one series.
fn value(metrics: &str, series: &str) -> f64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(&format!("{series} ")));
    line.unwrap_or_else(|| panic!("no {series} in\n{metrics}")).parse().unwrap()
}

/// The names in a text that metrics have. A histogram has several, and counts by its own.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|other: char| !other.is_ascii_alphanumeric() && other != '_');
    let names = words.filter(|word| word.starts_with("likewise_"));
    let own = |name: &str| {
        let part = ["_bucket", "_sum", "_count"].into_iter().find_map(|part| name.strip_suffix(part));
        part.filter(|name| name.ends_with("_duration_seconds")).unwrap_or(name).to_owned()
    };
    names.map(own).collect()
}

#[test]
fn every_metric_is_in_the_document_and_every_documented_one_is_there() {
    let (hub, proxy) = hub_behind_proxy();
    let device = Node::client("laptop", &proxy.url, &hub);
    device.wait_until("online");
    let nats = Nats::single();
    let mut gateway = Node::gateway("gateway", &nats.url());
    gateway.start();
    gateway.wait_until("online");
    let shown = metrics(&hub) + &metrics(&device) + &metrics(&gateway);
    let shown: BTreeSet<_> = shown.lines().filter(|line| !line.starts_with('#')).flat_map(names).collect();
    assert_eq!(names(DOCUMENT), shown);
    for (what, text) in [("alerts", ALERTS), ("dashboard", DASHBOARD)] {
        let used = names(text);
        assert!(used.len() > 5 && used.is_subset(&shown), "{what}: {:?}", used.difference(&shown));
    }
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    assert!(dashboard["panels"].as_array().is_some_and(|panels| panels.len() > 8));
}

#[test]
fn numbers_follow_what_happens_on_a_device_and_its_hub() {
    let (mut hub, proxy) = hub_behind_proxy();
    let device = Node::client("laptop", &proxy.url, &hub);
    device.wait_until("online");
    device.like();
    device.like_in("/s/work");
    hub.wait_for_count(1);
    wait_for("the other store", || (hub.status_of("/s/work")["count"] == 1).then_some(()));
    let of_hub = metrics(&hub);
    for (series, expected) in [
        ("likewise_healthy", 1.0),
        ("likewise_stores", 2.0),
        ("likewise_devices", 1.0),
        ("likewise_devices_connected", 1.0),
        ("likewise_devices_refused_total", 0.0),
        ("likewise_count", 1.0),
    ] {
        assert_eq!(value(&of_hub, series), expected, "{series}");
    }
    let writes = value(&of_hub, "likewise_commit_duration_seconds_count");
    assert!(writes >= 1.0);
    assert_eq!(value(&of_hub, "likewise_fsync_duration_seconds_count"), writes);
    let spent = value(&of_hub, "likewise_commit_duration_seconds_sum");
    assert!(spent > 0.0 && spent >= value(&of_hub, "likewise_fsync_duration_seconds_sum"));
    assert!(of_hub.contains("likewise_build_info{version=\""), "{of_hub}");

    let of_device = metrics(&device);
    assert_eq!(value(&of_device, "likewise_likes_total{result=\"stored\"}"), 2.0);
    assert_eq!(value(&of_device, "likewise_upstream_stores{state=\"online\"}"), 2.0);
    let heard = value(&of_device, "likewise_upstream_last_sync_timestamp_seconds");
    let started = value(&of_device, "likewise_start_time_seconds");
    assert!(heard >= started && started > 1.7e9, "{heard} {started}");

    // Nothing grows with the number of stores.
    let series = of_device.lines().count();
    for store in ["a", "b", "c"] {
        device.like_in(&format!("/s/{store}"));
    }
    assert_eq!(metrics(&device).lines().count(), series);

    hub.stop();
    device.wait_until("offline");
    device.like();
    wait_for("the device to count what waits", || {
        let now = metrics(&device);
        let waits = value(&now, "likewise_events_pending") >= 1.0;
        (waits && value(&now, "likewise_upstream_stores{state=\"offline\"}") >= 1.0).then_some(())
    });
}

/// Each line of the log that has these words.
fn lines(node: &Node, words: &str) -> Vec<String> {
    node.log().lines().filter(|line| line.contains(words)).map(str::to_owned).collect()
}

#[test]
fn the_log_has_one_line_when_a_device_comes_leaves_or_is_refused() {
    let hub = Node::hub();
    let mut device = Node::client("laptop", hub.url(), &hub);
    device.wait_until("online");
    device.import(&likes(3));
    for store in ["work", "home"] {
        device.like_in(&format!("/s/{store}"));
    }
    hub.wait_for_count(3);
    wait_for("three pulls", || (value(&metrics(&hub), "likewise_pulls") == 3.0).then_some(()));
    device.stop();
    let left = wait_for("the device to leave", || lines(&hub, "a device left").pop());
    for part in ["device=\"laptop\"", "seconds=", "pushed="] {
        assert!(left.contains(part), "{part}: {left}");
    }
    assert_eq!(lines(&hub, "a device connected").len(), 1, "{}", hub.log());
    assert_eq!(lines(&hub, "a device left").len(), 1, "{}", hub.log());

    let stranger = Wire::with_token(&hub, "lw_not-a-token");
    for _ in 0..20 {
        assert_eq!(stranger.push_text("{}").0, 401);
    }
    let refused = lines(&hub, "a device was refused");
    assert_eq!(refused.len(), 1, "a stranger doesn't fill the log: {}", hub.log());
    assert!(refused[0].contains("client=\"127.0.0.1\""), "{refused:?}");
    assert_eq!(value(&metrics(&hub), "likewise_devices_refused_total"), 20.0);
}

#[test]
fn logs_are_json_where_that_is_asked_for_and_versions_are_shown() {
    let mut hub = Node::stopped_hub();
    hub.flag("--log-format", "json");
    hub.start();
    let device = Node::client("laptop", hub.url(), &hub);
    device.wait_until("online");
    let line = wait_for("the device in the log", || lines(&hub, "a device connected").pop());
    let line: Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!((&line["level"], &line["device"]), (&"INFO".into(), &"laptop".into()), "{line}");
    for line in hub.log().lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|why| panic!("{why}: {line}"));
    }
    let mut second = Node::stopped_hub();
    second.flag("--data", hub.data.to_str().unwrap());
    second.flag("--log-format", "json");
    let why = second.refuses_to_start();
    let why: Value = serde_json::from_str(why.lines().last().expect("a line")).expect("JSON");
    assert!(why["message"].as_str().is_some_and(|why| why.contains("is in use by the process")), "{why}");

    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(hub.status()["version"], version);
    assert!(hub.run(&["status"]).contains(&format!("version    {version}\n")));
}
