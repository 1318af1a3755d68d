//! The server goes away under an open page.

use std::path::Path;

use crate::chromium::Browser;
use crate::common::{Server, data_dir};
use crate::likewise::stored;

#[test]
fn trust_69_clicks_while_the_server_is_down_are_stored_exactly_once() {
    let data = data_dir();
    let server = Server::start(data.path());
    let (port, url) = (server.port(), server.url.clone());
    let browser = Browser::launch();
    browser.network_may_fail();
    let tab = browser.open(&url);
    tab.until_live();
    tab.like();
    tab.until_sent();

    server.kill();
    tab.until("document.documentElement.dataset.live === 'closed'");
    for count in 2..=6 {
        tab.like();
        tab.until_count(count);
    }
    tab.until(
        "document.getElementById('message').textContent
           === 'Reconnecting… your likes are kept. 5 likes waiting to be saved.'",
    );
    assert!(!tab.is_visible("#status"), "it must not say that everything is saved");

    let server = start_again(data.path(), port);
    tab.until_sent();
    tab.until_live();
    tab.until_count(6);
    tab.until("document.getElementById('message').textContent === ''");
    assert!(tab.is_visible("#status"));
    let mut ids = stored(data.path(), "likes");
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 6);
    server.like("");
    tab.until_count(7);
    assert_eq!(server.clicks("stored"), 6);
}

#[test]
fn trust_69_a_page_that_is_closed_while_the_server_is_down_leaves_its_clicks_to_the_next_one() {
    let data = data_dir();
    let server = Server::start(data.path());
    let (port, url) = (server.port(), server.url.clone());
    let browser = Browser::launch();
    browser.network_may_fail();
    let tab = browser.open(&url);
    tab.until_live();
    server.kill();
    for _ in 0..3 {
        tab.like();
    }
    tab.until_count(3);
    let next = browser.open(&url);
    tab.close();
    assert_eq!(next.eval("document.documentElement.dataset.live === 'open'"), false);

    let server = start_again(data.path(), port);
    next.go(&url);
    next.until_live();
    next.until_sent();
    next.until_count(3);
    assert_eq!(stored(data.path(), "likes").len(), 3);
    next.like();
    next.until_count(4);
    next.until_sent();
    assert_eq!(server.clicks("stored"), 4);
}

/// The server that was killed, on the port that the open page knows.
pub(crate) fn start_again(data: &Path, port: u16) -> Server {
    Server::start_with(data, &["--listen", &format!("127.0.0.1:{port}")])
}
