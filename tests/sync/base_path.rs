//! Hubs and devices under a path of a site.

use std::fs;

use crate::common::wait_for;
use crate::support::{Node, get, post};

/// The device at `/mine`, until its status is as `is_right` says.
fn wait_for_status(device: &Node, is_right: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
    wait_for("the status", || Some(device.status_of("/mine")).filter(&is_right))
}

#[test]
fn a_device_and_its_hub_are_each_under_a_path() {
    let mut hub = Node::stopped_hub();
    hub.flag("--base-path", "/tools/hub");
    hub.start();
    for end in ["", "/"] {
        let name = format!("phone{}", end.len());
        let mut phone = Node::prepared(&name, &format!("{}/tools/hub{end}", hub.url()), &hub);
        phone.flag("--base-path", "/mine");
        phone.start();
        phone.like_in("/mine");
        let count = 1 + end.len() as u64;
        let status = wait_for_status(&phone, |status| status["head"] == count && status["pending"] == 0);
        assert_eq!(status["upstream"]["url"], format!("{}/tools/hub", hub.url()), "without a slash at the end");
        hub.like_in("/tools/hub/s/other");
        assert_eq!(hub.status_of("/tools/hub")["count"], count);
        phone.run(&["verify"]);
    }
}

#[test]
fn a_device_with_the_wrong_path_is_told_the_right_one_and_goes_on_with_it() {
    let mut hub = Node::stopped_hub();
    hub.flag("--base-path", "/hub");
    hub.start();
    let mut phone = Node::prepared("phone", hub.url(), &hub);
    phone.flag("--base-path", "/mine");
    phone.start();
    phone.like_in("/mine");
    let status = wait_for_status(&phone, |status| status["upstream"]["state"] == "offline");
    assert_eq!(status["upstream"]["error"], "Everything of this program is under /hub/.");
    assert_eq!(status["pending"], 1);
    phone.stop();
    phone.flag("--upstream", &format!("{}/hub", hub.url()));
    phone.start();
    wait_for_status(&phone, |status| status["head"] == 1 && status["pending"] == 0);
}

#[test]
fn the_button_that_moves_to_another_hub_is_under_the_path() {
    let hub = Node::hub();
    let mut phone = Node::prepared("phone", hub.url(), &hub);
    phone.flag("--base-path", "/mine");
    phone.start();
    phone.like_in("/mine");
    wait_for_status(&phone, |status| status["head"] == 1);
    phone.stop();
    let other = Node::hub();
    fs::copy(hub.data.join("tokens.json"), other.data.join("tokens.json")).unwrap();
    other.like();
    phone.flag("--upstream", other.url());
    phone.start();
    wait_for_status(&phone, |status| status["upstream"]["code"] == "wrong-log");
    let (_, page) = get(&format!("{}/mine/", phone.url()));
    assert!(page.contains("method=\"post\" action=\"/mine/adopt\""), "{page}");
    let (status, body) = post(&format!("{}/mine/adopt", phone.url()), "application/x-www-form-urlencoded", "");
    assert_eq!(status, 303, "{body}");
    wait_for_status(&phone, |status| status["head"] == 2 && status["pending"] == 0);
}
