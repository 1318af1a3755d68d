//! The view of who brought a store's events, and when.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::client::listing;
use crate::common::{Server, data_dir, printed, run_with};

const DAY: u64 = 24 * 60 * 60 * 1_000;

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_millis() as u64
}

/// `count` likes that `device` brought, as an export has them. Their clock said `millis`.
fn likes(device: &str, count: u64, millis: u64) -> String {
    let mut lines = String::new();
    for _ in 0..count {
        let time = uuid::Timestamp::from_unix(uuid::NoContext, millis / 1_000, (millis % 1_000) as u32 * 1_000_000);
        let id = uuid::Uuid::new_v7(time);
        writeln!(lines, r#"{{"seq":null,"id":"{id}","name":"LikeAdded","args":null,"origin":"{device}"}}"#)
            .expect("BUG: a String takes all text");
    }
    lines
}

/// The texts of the items of a list on the page.
fn items(page: &str, class: &str) -> Vec<String> {
    let Some((_, list)) = page.split_once(&format!("<ul class=\"{class}\"")) else { return Vec::new() };
    let (list, _) = list.split_once("</ul>").expect("the end of the list");
    let text = |item: &str| {
        let parts = item.split('<').map(|part| part.split_once('>').map_or(part, |(_, text)| text));
        parts.collect::<String>().trim().to_owned()
    };
    list.split("<li").skip(1).map(|item| text(&format!("<li{item}"))).collect()
}

#[test]
fn the_history_says_who_brought_how_many_and_when() {
    let data = data_dir();
    let lines = [
        likes("phone", 3, now()),
        likes("laptop", 2, now() - 10 * DAY),
        likes("laptop", 4, now() - 400 * DAY),
        likes("old <b>", 1, 0),
    ];
    let import = run_with(data.path(), &["import"], &lines.concat().replace("old <b>", "old"));
    printed(import);
    let server = Server::start_with(data.path(), &["--listen", "127.0.0.1:0", "--device", "desk"]);
    server.like_times(2);
    let page = server.get("/history");
    assert_eq!((page.status, page.header("cache-control")), (200, "no-store"), "{page:?}");
    assert!(page.body.contains("<h1 data-numbers>12 likes</h1>"), "{}", page.body);
    assert_eq!(
        items(&page.body, "devices"),
        ["6 from laptop", "3 from phone", "2 from desk (this device)", "1 from old"]
    );
    let sums = items(&page.body, "sums");
    assert_eq!(sums[..2], ["5 today", "7 in the last 30 days"]);
    assert!(sums[2].starts_with("11 since "), "{sums:?}");
    assert!(page.body.contains("1 like came from a clock that was wrong"), "{}", page.body);
    assert!(page.body.contains("By month. Most: "), "{}", page.body);

    // What is new is added to what was counted.
    server.like_times(1);
    let page = server.get("/history");
    assert!(
        page.body.contains("<h1 data-numbers>13 likes</h1>")
            && page.body.contains("<b data-numbers>3</b> from <bdi>desk"),
        "{}",
        page.body
    );
}

#[test]
fn a_look_at_the_history_of_nothing_makes_nothing() {
    let data = data_dir();
    let server = Server::start(data.path());
    let before = listing(data.path());
    for path in ["/history", "/s/work/history"] {
        let page = server.get(path);
        assert_eq!(page.status, 200, "{page:?}");
        assert!(page.body.contains("<h1 data-numbers>0 likes</h1>"), "{}", page.body);
    }
    assert_eq!(listing(data.path()), before);
}

#[test]
fn many_devices_are_named_up_to_a_number() {
    let data = data_dir();
    let lines: String = (0..60).map(|n| likes(&format!("device-{n}"), 1 + u64::from(n < 50), now())).collect();
    printed(run_with(data.path(), &["import"], &lines));
    let server = Server::start(data.path());
    let page = server.get("/history").body;
    let devices = items(&page, "devices");
    assert_eq!(devices.len(), 51);
    assert_eq!(devices[50], "10 from 10 other devices");
}

#[test]
fn strangers_see_neither_history_nor_stores_nor_links_to_them() {
    let data = data_dir();
    let flags = ["--listen", "127.0.0.1:0", "--allow-host", "likes.example", "--public", "--local-page"];
    let server = Server::start_with(data.path(), &flags);
    server.like_times(1);
    let ask = |host: &str, path: &str| {
        server.ask(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"))
    };
    for path in ["/history", "/s/likes/history", "/s/work/history", "/stores"] {
        let answer = ask("likes.example", path);
        assert_eq!(answer.status, 403, "{path}: {answer:?}");
        assert!(!answer.body.contains("from"), "{answer:?}");
        assert_eq!(ask("localhost", path).status, 200, "{path}");
    }
    for path in ["/", "/s/work/"] {
        assert!(!ask("likes.example", path).body.contains("history"), "{path}");
        assert!(!ask("likes.example", path).body.contains("/stores"), "{path}");
        assert!(ask("localhost", path).body.contains("/history\">History</a>"), "{path}");
        assert!(ask("localhost", path).body.contains("<a href=\"/stores\">Stores</a>"), "{path}");
    }
}
