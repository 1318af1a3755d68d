//! Several tabs of one browser, and what reaches them.

use serde_json::{Value, json};

use crate::chromium::Browser;
use crate::common::{Server, data_dir};
use crate::likewise::stored;

#[test]
fn a_click_in_one_tab_shows_in_the_others() {
    let data = data_dir();
    let server = Server::start(data.path());
    let browser = Browser::launch();
    let [one, two, three] = [(); 3].map(|()| browser.open(&server.url));
    for tab in [&one, &two, &three] {
        tab.until_live();
    }
    three.like();
    for tab in [&one, &two, &three] {
        tab.until_count(1);
    }
    one.to_front();
    one.like();
    for tab in [&one, &two, &three] {
        tab.until_count(2);
    }
}

#[test]
fn a_like_of_another_client_arrives_in_the_open_page() {
    let data = data_dir();
    let server = Server::start(data.path());
    let browser = Browser::launch();
    let tab = browser.open(&server.url);
    tab.until_live();
    for count in 1..=3 {
        server.like("");
        tab.until_count(count);
    }
    assert_eq!(tab.eval("document.getElementById('count').dataset.count"), "3");
    assert_eq!(tab.text("label"), "likes");
}

#[test]
fn trust_41_twelve_tabs_are_live_over_one_stream() {
    let data = data_dir();
    let server = Server::start(data.path());
    let browser = Browser::launch();
    let tabs = [(); 12].map(|()| browser.open(&server.url));
    for tab in &tabs {
        tab.until_live();
    }
    assert_eq!(server.streams(), 1);
    tabs[11].like();
    for tab in &tabs {
        tab.until_count(1);
    }
    server.like("");
    for tab in &tabs {
        tab.until_count(2);
    }
    assert_eq!(server.streams(), 1);

    let _another_site = browser.blank();
    for tab in tabs {
        tab.close();
    }
    server.until_streams(0);
}

#[test]
fn without_shared_workers_the_tab_that_is_seen_has_a_stream_of_its_own() {
    // The browser has no shared workers, or can't load modules in them.
    let classic = "const Worker = SharedWorker;
                   window.SharedWorker = class extends Worker { constructor(url) { super(url); } };";
    for source in ["delete window.SharedWorker", classic] {
        let data = data_dir();
        let server = Server::start(data.path());
        let browser = Browser::launch();
        browser.may_complain("Cannot use import statement outside a module");
        let open = || {
            let tab = browser.blank();
            tab.call("Page.addScriptToEvaluateOnNewDocument", json!({ "source": source }));
            tab.go(&server.url);
            tab.until_live();
            tab
        };
        let one = open();
        let two = open();
        server.until_streams(1);
        two.like();
        two.until_count(1);
        one.to_front();
        one.until_count(1);
        one.until_live();
        server.until_streams(1);
    }
}

#[test]
fn thirty_rapid_clicks_are_thirty_likes_and_the_count_only_grows() {
    let data = data_dir();
    let server = Server::start(data.path());
    let browser = Browser::launch();
    let tab = browser.open(&server.url);
    let watching = browser.open(&server.url);
    for tab in [&tab, &watching] {
        tab.until_live();
        tab.eval(
            "window.seen = [];
             new MutationObserver(() => seen.push(Number(document.getElementById('count').textContent)))
               .observe(document.querySelector('.tally'), { childList: true, characterData: true, subtree: true });",
        );
    }
    tab.to_front();
    for _ in 0..30 {
        tab.like();
    }
    assert_eq!(tab.count(), 30, "a click shows at once");
    tab.until_sent();
    watching.until_count(30);
    // After this, the page shows the server's count and no longer its own.
    server.like("");
    for tab in [&tab, &watching] {
        tab.until_count(31);
        let seen: Vec<u64> = serde_json::from_value(tab.eval("seen")).expect("numbers");
        assert!(seen.is_sorted(), "the count went back: {seen:?}");
        assert_eq!(seen.last(), Some(&31), "the count went too far: {seen:?}");
    }
    assert_eq!(stored(data.path(), "likes").len(), 31);
    assert_eq!(server.clicks("stored"), 31);
    assert_eq!(server.clicks("repeated"), 0);
}

#[test]
fn a_page_from_the_back_forward_cache_shows_the_present_count() {
    let data = data_dir();
    let server = Server::start(data.path());
    let browser = Browser::launch();
    let tab = browser.open(&server.url);
    tab.until_live();
    tab.eval("window.is_the_same = true");
    tab.go(&format!("{}/s/other/", server.url));
    server.like("");
    tab.back();
    let why_not = tab.event("Page.backForwardCacheNotUsed");
    assert_eq!(tab.eval("window.is_the_same"), true, "not from the cache: {why_not:?}");
    tab.until_count(1);
    tab.until_live();
    tab.like();
    tab.until_count(2);
    tab.until_sent();
    server.like("");
    tab.until_count(3);
}

#[test]
fn a_tab_that_was_hidden_or_frozen_shows_the_present_count() {
    let data = data_dir();
    let server = Server::start(data.path());
    let browser = Browser::launch();
    let tab = browser.open(&server.url);
    tab.until_live();
    let other = browser.open(&format!("{}/s/other/", server.url));
    assert_eq!(tab.eval("document.hidden"), true);
    server.like("");
    tab.to_front();
    tab.until_count(1);

    other.to_front();
    tab.call("Page.setWebLifecycleState", json!({ "state": "frozen" }));
    server.like("");
    tab.call("Page.setWebLifecycleState", json!({ "state": "active" }));
    tab.to_front();
    tab.until_count(2);
    tab.until_live();
}

#[test]
fn another_store_has_its_own_page_count_and_stream() {
    let data = data_dir();
    let server = Server::start(data.path());
    let browser = Browser::launch();
    let ours = browser.open(&server.url);
    let work = browser.open(&format!("{}/s/work/", server.url));
    for tab in [&ours, &work] {
        tab.until_live();
    }
    assert_eq!(server.streams(), 2);
    assert_eq!(work.eval("document.title"), "0 likes · work · Likewise");
    work.like();
    work.until_count(1);
    work.until_sent();
    server.like("/s/work");
    work.until_count(2);
    server.like("");
    ours.until_count(1);
    assert_eq!(work.count(), 2);
    assert_eq!([stored(data.path(), "likes").len(), stored(data.path(), "work").len()], [1, 2]);
}

#[test]
fn trust_57_looking_makes_nothing() {
    let data = data_dir();
    let server = Server::start(data.path());
    let browser = Browser::launch();
    let tab = browser.open(&format!("{}/s/work/", server.url));
    tab.until_live();
    tab.go(&server.url);
    tab.until_live();
    assert!(!server.store("work").exists() && !server.store("likes").exists());
    tab.like();
    tab.until_sent();
    assert!(!server.store("work").exists() && server.store("likes").exists());
    assert_eq!(tab.eval("document.cookie"), Value::String(String::new()));
}

#[test]
fn a_stream_that_goes_on_where_another_ended_leaves_the_page_whole() {
    let data = data_dir();
    let server = Server::start(data.path());
    let browser = Browser::launch();
    let [tab, other] = [(); 2].map(|()| browser.open(&server.url));
    tab.until_live();
    other.until_live();
    for count in 1..=3 {
        // Whoever comes back to a page that has heard nothing for two seconds begins a new stream. It has nothing new.
        tab.eval("new Promise((resolve) => setTimeout(resolve, 2_200))");
        if count % 2 == 0 {
            tab.to_front()
        } else {
            other.to_front()
        }
        tab.until_live();
        server.like("");
        tab.until_count(count);
        other.until_count(count);
    }
    for tab in [&tab, &other] {
        tab.eval("new Promise((resolve) => setTimeout(resolve, 2_200))");
        assert_eq!(tab.text("#message"), "");
    }
}
