//! Live means heard from: what a page says about itself when its worker ends, its stream falls silent, or no stream lasts.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::chromium::{Browser, Tab};
use crate::common::{Server, data_dir, wait_for};
use crate::likewise::stored;
use crate::stage::{Stage, commit, fragment};

/// How long a page may show old content and still say that it is live.
const OLD_FOR: Duration = Duration::from_secs(40);

#[test]
fn trust_68_a_worker_that_ended_is_replaced_and_no_click_disappears() {
    let data = data_dir();
    let server = Server::start(data.path());
    let browser = Browser::launch();
    let tab = browser.open(&server.url);
    tab.until_live();
    watch_the_count(&tab);
    browser.in_workers("self.close()");
    server.until_streams(0);

    let end = Instant::now();
    tab.like();
    tab.until_sent();
    for _ in 0..2 {
        server.like("");
    }
    tab.until(
        "document.getElementById('count').textContent === '3' || document.documentElement.dataset.live !== 'open'",
    );
    assert!(end.elapsed() < OLD_FOR, "live and wrong for {:?}", end.elapsed());
    tab.until_count(3);
    tab.until_live();
    let seen: Vec<u64> = serde_json::from_value(tab.eval("seen")).expect("numbers");
    assert!(seen.is_sorted(), "a click disappeared: {seen:?}");
}

#[test]
fn trust_68_a_worker_that_begins_finds_the_pages_that_nobody_sees() {
    let data = data_dir();
    let server = Server::start(data.path());
    let browser = Browser::launch();
    let hidden = browser.open(&server.url);
    hidden.until_live();
    let seen = browser.open(&server.url);
    seen.until_live();
    browser.in_workers("self.close()");
    server.until_streams(0);
    server.like("");
    for tab in [&seen, &hidden] {
        tab.until_count(1);
        tab.until_live();
    }
    assert_eq!(hidden.eval("document.hidden"), true);
    assert_eq!(server.streams(), 1);
}

#[test]
fn trust_68_a_stream_that_falls_silent_is_opened_again() {
    let stage = Stage::start("add", &fragment("left", "<p id=left>1</p>"));
    stage.says(&commit(&[("left", "<p id=left>1</p>")]));
    let browser = Browser::launch();
    let tab = browser.open(&stage.url);
    tab.until_live();
    let silence = Instant::now();
    stage.falls_silent(&commit(&[("left", "<p id=left>2</p>")]));
    tab.until(
        "document.getElementById('left').textContent === '2' || document.documentElement.dataset.live !== 'open'",
    );
    assert!(silence.elapsed() < OLD_FOR, "live and wrong for {:?}", silence.elapsed());
    tab.until("document.getElementById('left').textContent === '2'");
    tab.until_live();
}

#[test]
fn trust_68_a_stream_that_was_accepted_and_says_nothing_is_not_live() {
    let stage = Stage::start("add", "");
    let browser = Browser::launch();
    let tab = browser.open(&stage.url);
    wait_for("the stream", || (!stage.streams().is_empty()).then_some(()));
    stage.mutters("event: ping\ndata: ok\n\n");
    tab.until("document.querySelector('[data-message]').textContent.startsWith('Reconnecting… your to-dos are kept.')");
    assert_eq!(tab.eval("document.documentElement.dataset.live"), "closed");
    stage.mutters(&commit(&[]));
    tab.until_live();
}

#[test]
fn a_server_that_ends_streams_at_once_is_asked_ever_more_seldom() {
    let stage = Stage::start("add", "");
    stage.says(&commit(&[]));
    stage.ends_streams_at_once();
    let browser = Browser::launch();
    browser.network_may_fail();
    let _tab = browser.open(&stage.url);
    let streams = wait_for("ten streams", || Some(stage.streams()).filter(|streams| streams.len() >= 10));
    let took = streams[9].0 - streams[0].0;
    // The pauses only grow, so this is less than 15 in 15 s.
    assert!(took > Duration::from_secs(10), "ten streams within {took:?}");
}

#[test]
fn an_address_with_user_and_password_stores_and_follows() {
    let data = data_dir();
    let server = Server::start(data.path());
    let browser = Browser::launch();
    for (likes, script) in [(0, ""), (2, "delete window.SharedWorker")] {
        let tab = browser.blank();
        tab.call("Page.addScriptToEvaluateOnNewDocument", json!({ "source": script }));
        tab.go(&server.url.replace("http://", "http://user:pw@"));
        tab.until_live();
        tab.like();
        tab.until_sent();
        server.like("");
        tab.until_count(likes + 2);
    }
    assert_eq!(stored(data.path(), "likes").len(), 4);
}

#[test]
fn trust_68_a_page_whose_fragment_is_no_longer_sent_says_so() {
    let stage = Stage::start("add", &fragment("found k1", "<i>milk</i>"));
    stage.says(&commit(&[("found k2", "<i>bread</i>")]));
    let browser = Browser::launch();
    let tab = browser.open(&stage.url);
    tab.until_live();
    tab.until(
        "document.querySelector('[data-message]').textContent
           === 'Part of this page can’t be kept up to date any more. Reload it.'",
    );
    assert_eq!(tab.text("i"), "milk");
    stage.mutters(&commit(&[("found k1", "<i>oat milk</i>")]));
    tab.until("document.querySelector('i').textContent === 'oat milk'");
    tab.until("document.querySelector('[data-message]').textContent === ''");
}

/// Records every number that the page shows.
fn watch_the_count(tab: &Tab<'_>) {
    tab.eval(
        "window.seen = [];
         new MutationObserver(() => seen.push(Number(document.getElementById('count').textContent)))
           .observe(document.querySelector('.tally'), { childList: true, characterData: true, subtree: true });",
    );
}
