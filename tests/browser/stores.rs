//! Pages of many stores in one browser, which has six connections for all of them.

use serde_json::json;

use crate::chromium::{Browser, Tab};
use crate::common::{Server, data_dir};
use crate::likewise::stored;

/// How many streams a browser holds open at most. The rest of its connections are for pages and likes.
const STREAMS: u64 = 3;

#[test]
fn trust_41_eight_stores_in_one_browser_load_like_and_follow() {
    let data = data_dir();
    let server = Server::start(data.path());
    let browser = Browser::launch();
    let stores: Vec<String> = (1..=8).map(|number| format!("store-{number}")).collect();
    let mut tabs = Vec::new();
    for store in &stores {
        let tab = browser.open(&page(&server, store));
        tab.until_live();
        tab.like();
        tab.until_count(1);
        tab.until_sent();
        server.like(&format!("/s/{store}"));
        tab.until_count(2);
        tabs.push(tab);
        server.until_streams(STREAMS.min(tabs.len() as u64));
    }
    let (resting, live) = tabs.split_at(5);
    resting.iter().for_each(until_resting);
    live.iter().for_each(Tab::until_live);

    for (tab, store) in tabs.iter().zip(&stores) {
        server.like(&format!("/s/{store}"));
        tab.to_front();
        tab.until_count(3);
        tab.until_live();
        assert_eq!(tab.text("#message"), "");
        tab.like();
        tab.until_sent();
        server.like(&format!("/s/{store}"));
        tab.until_count(5);
        server.until_streams(STREAMS);
    }
    for store in &stores {
        assert_eq!(stored(data.path(), store).len(), 5, "{store}");
    }
}

#[test]
fn who_leaves_makes_room_for_whoever_was_seen_last() {
    let data = data_dir();
    let server = Server::start(data.path());
    let browser = Browser::launch();
    let [one, two, three, four, five] = ["one", "two", "three", "four", "five"].map(|store| {
        let tab = browser.open(&page(&server, store));
        tab.until_live();
        tab
    });
    let one_again = browser.open(&page(&server, "one"));
    // All tabs of a store are live when one of them is.
    for tab in [&one_again, &one, &four, &five] {
        tab.until_live();
    }
    until_resting(&two);
    until_resting(&three);
    server.until_streams(STREAMS);
    server.like("/s/one");
    one.until_count(1);

    five.close();
    three.until_live();
    server.like("/s/three");
    three.until_count(1);
    four.close();
    two.until_live();
    server.until_streams(STREAMS);
}

#[test]
fn of_many_windows_side_by_side_the_one_that_is_used_is_live() {
    let data = data_dir();
    let server = Server::start(data.path());
    let browser = Browser::launch();
    let windows = ["one", "two", "three", "four"].map(|store| {
        let window = browser.window();
        window.go(&page(&server, store));
        window.until_live();
        window
    });
    for window in &windows {
        assert_eq!(window.eval("document.hidden"), false);
    }
    until_resting(&windows[0]);
    windows[0].until("document.getElementById('message').textContent.startsWith('Other pages are live')");
    server.like("/s/one");
    windows[0].like();
    windows[0].until_live();
    windows[0].until_count(2);
    windows[0].until("document.getElementById('message').textContent === ''");
    until_resting(&windows[1]);
    server.until_streams(STREAMS);
}

#[test]
fn pages_of_two_versions_leave_room_for_each_other() {
    let data = data_dir();
    let server = Server::start(data.path());
    let browser = Browser::launch();
    let open = |versions: &str| {
        ["one", "two", "three", "four"].map(|store| {
            let tab = browser.blank();
            tab.call("Page.addScriptToEvaluateOnNewDocument", json!({ "source": versions }));
            tab.go(&page(&server, store));
            tab.until_live();
            tab
        })
    };
    let old = open("");
    server.until_streams(STREAMS);
    // As after an update: the script of a newly loaded page has another address, and so does its worker.
    let new = open(
        "const Worker = SharedWorker;
         window.SharedWorker = class extends Worker { constructor(url, options) { super(`${url}?next`, options); } };",
    );
    old.iter().for_each(until_resting);
    server.until_streams(STREAMS);
    new[3].like();
    new[3].until_sent();

    old[3].to_front();
    old[3].until_live();
    old[3].until_count(1);
    new.iter().for_each(until_resting);
    server.until_streams(STREAMS);
}

fn page(server: &Server, store: &str) -> String {
    format!("{}/s/{store}/", server.url)
}

/// Waits until the page has left its connection to others.
fn until_resting(tab: &Tab<'_>) {
    tab.until("document.documentElement.dataset.live === 'resting'");
}
