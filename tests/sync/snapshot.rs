//! A new device begins with its hub's snapshot, and the history follows behind.

use crate::common::wait_for;
use crate::support::{Node, hub_behind_proxy, likes, wait_until_level};

/// More than a hub says is too short for a snapshot.
const LONG: usize = 12_000;

const BEGAN: &str = "began with the hub's snapshot";

/// Whether the device still lacks a part of the log.
fn has_history_to_come(node: &Node) -> bool {
    !node.status()["history"].is_null()
}

fn wait_for_all_of_the_log(node: &Node) {
    wait_for(&format!("its history; it is {}", node.status()), || (!has_history_to_come(node)).then_some(()));
}

#[test]
fn a_device_begins_with_a_snapshot_and_has_all_of_the_log_in_the_end() {
    let (hub, proxy) = hub_behind_proxy();
    hub.import(&likes(LONG));
    let mut phone = Node::prepared("phone", &proxy.url, &hub);
    phone.start();
    phone.wait_for_count(LONG as u64);
    assert!(phone.log().contains(BEGAN), "{}", phone.log());
    phone.like();
    wait_for_all_of_the_log(&phone);
    wait_until_level(&[&hub, &phone], LONG as u64 + 1);
    assert!(phone.log().contains("the snapshot is proven by it"), "{}", phone.log());
    assert!(!phone.data.join("stores/likes/base.db").exists());
    phone.verify();
    assert_eq!(phone.export(), hub.export());
}
