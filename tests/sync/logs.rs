//! Whose log it is: hubs and devices that die, go back in time, or are replaced.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use crate::common::wait_for;
use crate::proxy::Mode;
use crate::support::{Node, get, hub_behind_proxy, likes, post, wait_until_level};

fn ids(node: &Node) -> Vec<String> {
    node.export().iter().map(|event| event["id"].as_str().unwrap().to_owned()).collect()
}

fn put_back(node: &Node, backup: &std::path::Path) {
    fs::remove_dir_all(node.data.join("stores")).unwrap();
    crate::support::copy_all(&backup.join("stores"), &node.data.join("stores"));
}

#[test]
fn trust_20_two_copies_of_a_data_directory_are_two_devices() {
    let hub = Node::hub();
    let mut phone = Node::client("phone", hub.url(), &hub);
    phone.like();
    wait_until_level(&[&hub, &phone], 1);
    phone.stop();
    // This copy, too, has something to push.
    phone.import(&likes(3));
    let mut copy = phone.copy();
    phone.start();
    copy.start();
    phone.like();
    copy.like();
    copy.like();
    wait_until_level(&[&hub, &phone, &copy], 7);
    phone.verify();
    copy.verify();
}

#[test]
fn trust_21_a_device_restored_from_an_old_backup_goes_on() {
    let hub = Node::hub();
    let mut phone = Node::client("phone", hub.url(), &hub);
    phone.like();
    wait_until_level(&[&hub, &phone], 1);
    let backup = phone.file("backup");
    phone.run(&["backup", backup.to_str().unwrap()]);
    for _ in 0..4 {
        phone.like();
    }
    wait_until_level(&[&hub, &phone], 5);
    phone.stop();
    put_back(&phone, &backup);
    phone.start();
    phone.like();
    wait_until_level(&[&hub, &phone], 6);
    // This one lost everything.
    phone.stop();
    fs::remove_dir_all(phone.data.join("stores")).unwrap();
    phone.start();
    phone.like();
    wait_until_level(&[&hub, &phone], 7);
    phone.verify();
    assert_eq!(phone.status()["set_aside"], 0);
}

#[test]
fn trust_22_53_a_hub_restored_from_a_backup_gets_back_what_it_lacks_in_order() {
    let (mut hub, proxy) = hub_behind_proxy();
    let phone = Node::client("phone", &proxy.url, &hub);
    let laptop = Node::client("laptop", &proxy.url, &hub);
    phone.import(&likes(2_000));
    laptop.like();
    wait_until_level(&[&hub, &phone, &laptop], 2_001);
    let backup = hub.file("backup");
    hub.run(&["backup", backup.to_str().unwrap()]);
    phone.import(&likes(1_100));
    phone.like();
    laptop.like();
    wait_until_level(&[&hub, &phone, &laptop], 3_103);
    let before = ids(&phone);
    proxy.part();
    phone.like();
    let newest = phone.export().last().unwrap()["id"].as_str().unwrap().to_owned();
    hub.kill();
    put_back(&hub, &backup);
    hub.start();
    assert_eq!(hub.count(), 2_001);
    // In the meantime the hub has taken another path.
    hub.like();
    proxy.point_to(hub.url());
    proxy.set(Mode::Pass);
    wait_until_level(&[&hub, &phone, &laptop], 3_105);
    let after = ids(&hub);
    assert_eq!(after[..2_001], before[..2_001]);
    assert_eq!(after.iter().collect::<BTreeSet<_>>().len(), 3_105);
    // What was in the log still comes before what came later.
    let place = |id: &String| after.iter().position(|other| other == id).expect("it is there");
    let tail: Vec<_> = before[2_001..].iter().map(place).collect();
    assert!(tail.is_sorted(), "the order changed");
    assert!(tail.iter().all(|place| *place < self::place_of(&after, &newest)));
    for node in [&hub, &phone, &laptop] {
        node.verify();
        assert_eq!(node.status()["set_aside"], 0);
    }
}

fn place_of(ids: &[String], id: &str) -> usize {
    ids.iter().position(|other| other == id).expect("it is there")
}

/// The same for a hub that lost everything after a long shared beginning. The point where the logs part is found without
/// going through the whole log.
#[test]
fn trust_22_a_device_that_is_ahead_repairs_alone() {
    let (mut hub, proxy) = hub_behind_proxy();
    let phone = Node::client("phone", &proxy.url, &hub);
    phone.like();
    wait_until_level(&[&hub, &phone], 1);
    let backup = hub.file("backup");
    hub.run(&["backup", backup.to_str().unwrap()]);
    phone.like();
    phone.like();
    wait_until_level(&[&hub, &phone], 3);
    hub.stop();
    put_back(&hub, &backup);
    hub.start();
    proxy.point_to(hub.url());
    wait_until_level(&[&hub, &phone], 3);
    let log = phone.log();
    assert_eq!(log.matches("they are pushed again").count(), 1, "{log}");
    phone.verify();
}

#[test]
fn trust_23_an_emptied_hub_stops_the_store_until_somebody_adopts_it() {
    let (mut hub, proxy) = hub_behind_proxy();
    let phone = Node::client("phone", &proxy.url, &hub);
    let mut laptop = Node::client("laptop", &proxy.url, &hub);
    phone.like();
    laptop.like();
    wait_until_level(&[&hub, &phone, &laptop], 2);
    let log = phone.status()["log"].clone();
    hub.stop();
    fs::remove_dir_all(hub.data.join("stores")).unwrap();
    hub.start();
    proxy.point_to(hub.url());
    for node in [&phone, &laptop] {
        let status = node.wait_until_halted("wrong-log");
        assert!(status["upstream"]["error"].is_string(), "{status}");
        node.like();
        assert_eq!((node.count(), node.pending()), (3, 1));
        let (_, page) = get(node.url());
        for text in ["Sync stopped", "1 like kept here", "Your likes are kept", "adopt"] {
            assert!(page.contains(text), "{text}: {page}");
        }
    }
    assert_eq!(hub.status()["head"], 0);
    // One is served meanwhile, the other isn't.
    phone.run(&["adopt", "--yes"]);
    laptop.stop();
    laptop.run(&["adopt", "--yes"]);
    assert!(laptop.command(&["status"]).output().unwrap().status.success());
    wait_for("the first at the hub", || (hub.count() == 3).then_some(()));
    laptop.start();
    wait_until_level(&[&hub, &phone, &laptop], 4);
    assert_ne!(phone.status()["log"], log);
    for node in [&hub, &phone, &laptop] {
        node.verify();
    }
}

#[test]
fn trust_23_another_hub_stops_the_store_and_the_page_can_adopt_it() {
    let (mut hub, proxy) = hub_behind_proxy();
    let phone = Node::client("phone", &proxy.url, &hub);
    phone.like();
    wait_until_level(&[&hub, &phone], 1);
    let tokens = fs::read(hub.data.join("tokens.json")).unwrap();
    let other = Node::hub();
    fs::write(other.data.join("tokens.json"), tokens).unwrap();
    other.like();
    other.like();
    hub.stop();
    proxy.point_to(other.url());
    phone.wait_until_halted("wrong-log");
    phone.like();
    assert_eq!((phone.count(), phone.pending(), other.count()), (2, 1, 2));

    // Only the address was wrong, so it goes on by itself.
    hub.start();
    proxy.point_to(hub.url());
    proxy.cut();
    wait_until_level(&[&hub, &phone], 2);

    proxy.point_to(other.url());
    proxy.cut();
    phone.wait_until_halted("wrong-log");
    let (status, body) = post(&format!("{}/adopt", phone.url()), "application/x-www-form-urlencoded", "");
    assert_eq!(status, 303, "{body}");
    wait_until_level(&[&other, &phone], 4);
    phone.verify();
}

#[test]
fn trust_23_after_the_death_of_its_hub_a_device_takes_its_place() {
    let (mut hub, proxy) = hub_behind_proxy();
    let mut phone = Node::client("phone", &proxy.url, &hub);
    let laptop = Node::client("laptop", &proxy.url, &hub);
    phone.like();
    laptop.like();
    wait_until_level(&[&hub, &phone, &laptop], 2);
    let log = phone.status()["log"].clone();
    hub.kill();
    drop(hub);
    phone.wait_until("offline");
    phone.like();
    laptop.wait_until("offline");
    laptop.like();
    // Not while it follows a hub.
    let refused = phone.command(&["promote", "--yes"]).output().unwrap();
    let errors = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && errors.contains("without --upstream"), "{errors}");

    phone.stop();
    phone.unflag("--upstream");
    phone.unflag("--token-file");
    phone.start();
    let status = phone.status();
    assert_eq!((&status["pending"], &status["upstream"]["state"]), (&1.into(), &"none".into()));
    let (_, page) = get(phone.url());
    assert!(page.contains("1 like waiting for the hub"), "{page}");
    // It is no hub before it is promoted.
    let token = phone.token("laptop");
    let wire = crate::support::Wire::with_token(&phone, &token);
    wait_for("the refusal", || {
        let refused = wire.pull("after=0").err()?;
        (refused.0 == 403 && refused.1["code"] == "not-a-hub").then_some(())
    });
    phone.run(&["promote", "--yes"]);
    assert_eq!((&phone.status()["pending"], &phone.status()["log"]), (&Value::from(0), &log));

    let mut laptop = laptop;
    laptop.trust(&token);
    proxy.point_to(phone.url());
    wait_until_level(&[&phone, &laptop], 4);
    assert_eq!(laptop.status()["log"], log);
    phone.like();
    laptop.like();
    wait_until_level(&[&phone, &laptop], 6);
    for node in [&phone, &laptop] {
        node.verify();
    }
}

/// A device that was ahead of the hub's successor loses nothing either.
#[test]
fn trust_23_the_new_hub_may_be_behind() {
    let (mut hub, proxy) = hub_behind_proxy();
    let mut phone = Node::client("phone", &proxy.url, &hub);
    let mut laptop = Node::client("laptop", &proxy.url, &hub);
    phone.like();
    wait_until_level(&[&hub, &phone, &laptop], 1);
    phone.stop();
    laptop.like();
    laptop.like();
    wait_until_level(&[&hub, &laptop], 3);
    hub.kill();
    phone.run(&["promote", "--yes"]);
    phone.unflag("--upstream");
    phone.unflag("--token-file");
    phone.start();
    phone.like();
    laptop.trust(&phone.token("laptop"));
    proxy.point_to(phone.url());
    wait_until_level(&[&phone, &laptop], 4);
    phone.verify();
    laptop.verify();
}

#[test]
fn a_hub_adopts_no_other_log() {
    let mut hub = Node::hub();
    hub.like();
    let log = hub.status()["log"].clone();
    for is_running in [true, false] {
        if !is_running {
            hub.stop();
        }
        let output = hub.command(&["adopt", "--yes"]).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && errors.contains("follows no hub"), "{errors}");
    }
    hub.start();
    let status = hub.status();
    assert_eq!((&status["log"], &status["count"], &status["pending"]), (&log, &1.into(), &0.into()));
}
