//! What people see: likes that arrive at once, a hub that goes and comes back, many stores.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use likewise::engine::EventId;

use crate::common::wait_for;
use crate::proxy::{Mode, Proxy};
use crate::support::{Node, get, hub_behind_proxy, likes, open_page, post, wait_until_level};

#[test]
fn likes_cross_at_once_and_wait_for_a_hub_that_is_away() {
    let (mut hub, proxy) = hub_behind_proxy();
    let phone = Node::client("phone", &proxy.url, &hub);
    let laptop = Node::client("laptop", &proxy.url, &hub);
    phone.like();
    wait_until_level(&[&hub, &phone, &laptop], 1);
    // The fastest of several, because another process may have had the machine in between.
    let crossings = (2..7).map(|count| {
        let start = Instant::now();
        phone.like();
        laptop.wait_for_count(count);
        start.elapsed()
    });
    let fastest = crossings.min().unwrap();
    assert!(fastest < Duration::from_millis(400), "a like took {fastest:?} to the other device");

    hub.stop();
    phone.wait_until("offline");
    laptop.wait_until("offline");
    phone.like();
    phone.like();
    laptop.like();
    let (of_phone, of_laptop) = (phone.status(), laptop.status());
    assert_eq!((&of_phone["count"], &of_phone["pending"]), (&8.into(), &2.into()));
    assert_eq!((&of_laptop["count"], &of_laptop["pending"]), (&7.into(), &1.into()));
    assert!(of_phone["upstream"]["error"].is_string() && of_phone["upstream"]["since"].is_u64(), "{of_phone}");
    let (_, page) = get(phone.url());
    assert!(page.contains("2 likes waiting, offline since"), "{page}");

    hub.start();
    proxy.point_to(hub.url());
    wait_until_level(&[&hub, &phone, &laptop], 9);
    for node in [&hub, &phone, &laptop] {
        node.verify();
        assert_eq!(node.status()["set_aside"], 0);
    }

    let origins: Vec<_> = hub.export().iter().map(|event| event["origin"].clone()).collect();
    assert_eq!(origins.iter().filter(|origin| *origin == "phone").count(), 8, "{origins:?}");
    assert_eq!(origins.iter().filter(|origin| *origin == "laptop").count(), 1, "{origins:?}");
    let pulled = wait_for("the hub to note how far its devices are", || {
        let list = hub.run(&["token", "list"]);
        list.lines().all(|line| line.contains("likes up to 9")).then_some(list)
    });
    assert!(pulled.contains("phone\tadded ") && pulled.contains("laptop\tadded ") && pulled.contains("\tseen "));
}

#[test]
fn trust_24_two_devices_come_back_at_the_same_moment_and_both_drain() {
    let (hub, proxy) = hub_behind_proxy();
    let phone = Node::client("phone", &proxy.url, &hub);
    let laptop = Node::client("laptop", &proxy.url, &hub);
    let mut count = 0;
    for round in 0..12 {
        proxy.part();
        for _ in 0..3 {
            phone.like();
            laptop.like();
        }
        // Enough for several pushes in one round.
        let more = if round % 4 == 0 { 2_500 } else { 40 };
        thread::scope(|both| {
            both.spawn(|| phone.import(&likes(more)));
            both.spawn(|| laptop.import(&likes(more)));
        });
        count += 6 + 2 * more as u64;
        proxy.set(Mode::Pass);
        wait_until_level(&[&hub, &phone, &laptop], count);
    }
    for node in [&hub, &phone, &laptop] {
        node.verify();
    }
}

/// A store that its hub refuses doesn't hold up the others.
#[test]
fn stores_sync_independently() {
    let (mut hub, proxy) = hub_behind_proxy();
    let phone = Node::client("phone", &proxy.url, &hub);
    phone.like();
    phone.like_in("/s/other");
    phone.like_in("/s/other");
    wait_until_level(&[&hub, &phone], 1);
    wait_for("the other store to have met the hub's log", || {
        let status = phone.status_of("/s/other");
        (status["head"] == 2 && status["pending"] == 0).then_some(())
    });
    hub.stop();
    fs::remove_dir_all(hub.data.join("stores/other")).unwrap();
    hub.start();
    proxy.point_to(hub.url());
    wait_for("the refused store to stop", || {
        let upstream = phone.status_of("/s/other")["upstream"].clone();
        (upstream["state"] == "halted" && upstream["code"] == "wrong-log").then_some(())
    });
    phone.like();
    phone.like_in("/s/other");
    phone.like_in("/s/third");
    wait_until_level(&[&hub, &phone], 2);
    wait_for("the third store at the hub", || (hub.status_of("/s/third")["count"] == 1).then_some(()));
    let other = phone.status_of("/s/other");
    assert_eq!((&other["count"], &other["pending"]), (&3.into(), &1.into()));
    assert_eq!(phone.wait_until("online")["upstream"]["code"], serde_json::Value::Null);
    let (_, page) = get(&format!("{}/s/other/", phone.url()));
    assert!(page.contains("Sync stopped") && page.contains("Your likes are kept"), "{page}");

    phone.run(&["adopt", "--yes", "--store", "other"]);
    wait_for("all of the other store at the hub", || (hub.status_of("/s/other")["count"] == 3).then_some(()));
    hub.run(&["verify", "--store", "other"]);
}

#[test]
fn a_store_that_nobody_visits_is_pushed_after_a_restart() {
    let (hub, proxy) = hub_behind_proxy();
    let mut phone = Node::client("phone", &proxy.url, &hub);
    phone.wait_until("online");
    proxy.part();
    phone.like_in("/s/other");
    wait_for("the like to wait", || (phone.status_of("/s/other")["pending"] == 1).then_some(()));
    phone.stop();
    proxy.set(Mode::Pass);
    phone.start();
    wait_for("the like at the hub", || (hub.status_of("/s/other")["count"] == 1).then_some(()));
}

/// Likes from before there was a hub are pushed to the first one.
#[test]
fn likes_from_before_there_was_a_hub_are_kept() {
    let hub = Node::hub();
    let mut phone = Node::prepared("phone", hub.url(), &hub);
    phone.unflag("--upstream");
    let token_file = phone.file("token");
    phone.unflag("--token-file");
    phone.start();
    phone.like();
    phone.like();
    phone.stop();
    hub.like();
    phone.flag("--upstream", hub.url());
    phone.flag("--token-file", token_file.to_str().unwrap());
    phone.start();
    wait_until_level(&[&hub, &phone], 3);
    // The hub's own likes come first in its log.
    let origins: Vec<_> = phone.export().iter().map(|event| event["origin"].clone()).collect();
    assert_eq!(origins, ["hub", "phone", "phone"]);
}

/// A hub that answers slowly is only slow, and not offline.
#[test]
fn a_slow_network_only_takes_longer() {
    let (hub, proxy) = hub_behind_proxy();
    let phone = Node::client("phone", &proxy.url, &hub);
    let laptop = Node::client("laptop", &proxy.url, &hub);
    phone.wait_until("online");
    proxy.part();
    phone.like();
    laptop.like();
    proxy.set(Mode::Slow(1, Duration::from_millis(2)));
    wait_until_level(&[&hub, &phone, &laptop], 2);
    proxy.part();
    phone.like();
    laptop.like();
    proxy.set(Mode::Delay(Duration::from_millis(500)));
    wait_until_level(&[&hub, &phone, &laptop], 4);
}

#[test]
fn who_follows_a_hub_is_none() {
    let hub = Node::hub();
    let phone = Node::client("phone", hub.url(), &hub);
    phone.like();
    wait_until_level(&[&hub, &phone], 1);
    let tablet = Node::client("tablet", phone.url(), &phone);
    tablet.wait_until_halted("not-a-hub");
    tablet.like();
    assert_eq!((tablet.count(), phone.count()), (1, 1));
}

#[test]
fn the_fault_proxy_passes_what_it_should() {
    let hub = Node::hub();
    let proxy = Proxy::start();
    proxy.point_to(hub.url());
    assert_eq!(get(&format!("{}/healthz", proxy.url)), (200, "ok\n".to_owned()));
}

/// Clicks carry the time of their device's clock. Nothing is ordered, counted or recognized by it.
#[test]
fn trust_27_clocks_that_are_off_or_run_backwards_change_neither_order_nor_count() {
    let hub = Node::hub();
    let phone = Node::client("phone", hub.url(), &hub);
    let laptop = Node::client("laptop", hub.url(), &hub);
    let year = 31_557_600_000;
    let click = |n: u64, years: u64| EventId::from_parts(years * year, [n as u8; 10]).to_string();
    let clicks = [
        (&phone, click(1, 66)),
        (&laptop, click(2, 46)),
        (&phone, click(3, 65)),
        (&hub, click(4, 0)),
        (&laptop, click(5, 56)),
        (&phone, click(6, 20)),
    ];
    let like = |node: &Node, id: &str| {
        let form = "application/x-www-form-urlencoded";
        let (status, body) = post(&format!("{}/likes", node.url()), form, &format!("id={id}"));
        assert_eq!(status, 303, "{body}");
    };
    for (count, (node, id)) in (1..).zip(&clicks) {
        like(node, id);
        wait_until_level(&[&hub, &phone, &laptop], count);
    }
    // Each like once more on another device, whose clock disagrees.
    for (_, id) in &clicks {
        like(&laptop, id);
        like(&hub, id);
    }
    like(&phone, &click(7, 10));
    wait_until_level(&[&hub, &phone, &laptop], clicks.len() as u64 + 1);
    let order: Vec<_> = hub.export().iter().map(|event| event["id"].as_str().unwrap().to_owned()).collect();
    assert!(order.iter().eq(clicks.iter().map(|(_, id)| id).chain([&click(7, 10)])), "{order:?}");
}

/// Somebody who looks at a page sees within two seconds that the hub is back. The waits between attempts are what makes
/// it so; without a page they are soon longer.
#[test]
fn a_device_asks_often_while_a_page_is_open() {
    let (hub, proxy) = hub_behind_proxy();
    let phone = Node::client("phone", &proxy.url, &hub);
    phone.wait_until("online");
    let _page = open_page(&phone);
    proxy.part();
    phone.wait_until("offline");
    let (start, before) = (Instant::now(), proxy.requests());
    // Eight waits take at most 8 x 1.5 s then, and at least 22 s if they go on growing.
    wait_for("eight attempts", || (proxy.requests() >= before + 8).then_some(()));
    let took = start.elapsed();
    assert!(took < Duration::from_secs(20), "eight attempts took {took:?}");
    proxy.set(Mode::Pass);
    phone.wait_until("online");
}

/// Who is told to wait does, even while somebody looks, unless a person asks.
#[test]
fn a_device_that_is_told_to_wait_does_until_somebody_asks() {
    let (hub, proxy) = hub_behind_proxy();
    let phone = Node::client("phone", &proxy.url, &hub);
    phone.wait_until("online");
    let _page = open_page(&phone);
    proxy.set(Mode::Answer("HTTP/1.1 503 Busy\r\nRetry-After: 250\r\nContent-Length: 0\r\n\r\n".to_owned()));
    proxy.cut();
    wait_for("the answer", || (proxy.answered() == 1).then_some(()));
    phone.wait_until("offline");
    phone.like();
    proxy.set(Mode::Pass);
    // Attempts of a watched device are never further apart than this.
    thread::sleep(Duration::from_millis(1_800));
    assert_eq!((proxy.answered(), phone.pending()), (1, 1));
    let (status, _) = post(&format!("{}/sync-now", phone.url()), "application/x-www-form-urlencoded", "");
    assert_eq!(status, 303);
    wait_until_level(&[&hub, &phone], 1);
}
