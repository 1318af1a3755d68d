//! The status line: one line that never moves the page, and opens to say more.

use std::fs;

use serde_json::json;

use crate::chromium::{Browser, Tab};
use crate::common::{Server, data_dir, likewise, printed, run_with, wait_for};
use crate::look::{fits, picture};
use crate::stage::{Stage, fragment};
use crate::sync::{device, token};

/// Waits until the status line says this.
fn until_says(tab: &Tab<'_>, words: &str) {
    tab.until(&format!("document.getElementById('status').textContent.includes({})", json!(words)));
}

fn until_state(tab: &Tab<'_>, state: &str) {
    tab.until(&format!("document.getElementById('status').dataset.state === '{state}'"));
}

#[test]
fn the_heart_never_moves_and_the_opened_line_stays_open() {
    let (hub_data, data) = (data_dir(), data_dir());
    let token = token(hub_data.path(), "laptop");
    let hub = Server::start(hub_data.path());
    let listen = format!("127.0.0.1:{}", hub.port());
    let one = device(data.path(), &hub.url, &token);
    let browser = Browser::launch();
    browser.network_may_fail();
    let tab = browser.open(&one.url);
    tab.shown_as(390, 700, false);
    tab.until_live();
    until_says(&tab, "All synced");
    let heart = tab.place("#like");
    let stays = |what: &str| {
        assert_eq!(tab.place("#like"), heart, "{what}");
        fits(&tab, what);
        picture(&tab, &format!("status-{what}"));
    };
    stays("online");
    tab.click("#status summary");
    until_says(&tab, &format!("with the hub {}", hub.url));
    assert!(tab.is_visible("#status .more"));
    stays("online-open");
    tab.eval("document.querySelector('#status summary').focus()");

    hub.kill();
    until_state(&tab, "offline");
    tab.like();
    // A click beside it closes it.
    assert!(!tab.is_visible("#status .more"));
    until_says(&tab, "1 like waiting, offline since");
    stays("offline");
    tab.click("#status summary");
    tab.eval("document.querySelector('#status .try').focus()");
    one.like("");
    until_says(&tab, "2 likes waiting, offline since");
    assert!(tab.is_visible("#status .more"), "news closes it");
    assert_eq!(tab.eval("document.activeElement.className"), "try", "news takes the focus away");
    stays("offline-open");
    tab.click("#status .try");
    tab.until("document.querySelector('#status .try').textContent === 'Not yet. Try again'");
    stays("tried");

    // The hub is back, and no longer knows the device.
    fs::remove_file(hub_data.path().join("tokens.json")).expect("the tokens are gone");
    let hub = Server::start_with(hub_data.path(), &["--listen", &listen]);
    until_state(&tab, "halted");
    until_says(&tab, "Sync stopped: The hub no longer accepts this device's token.");
    until_says(&tab, "2 likes kept here until it goes on.");
    until_says(&tab, "likewise token add");
    assert!(tab.is_visible("#status .more"), "news closes it");
    stays("stopped-open");
    tab.press(&crate::chromium::ESCAPE);
    assert!(!tab.is_visible("#status .more"));
    stays("stopped");

    one.kill();
    tab.until("document.documentElement.dataset.live === 'closed'");
    for _ in 0..3 {
        tab.like();
    }
    tab.until("document.getElementById('message').textContent.includes('3 likes waiting to be saved')");
    stays("lost");
    drop(hub);
}

#[test]
fn a_like_that_no_disk_takes_leaves_the_status_line_there() {
    let line = |state: &str, words: &str| {
        let line = format!(
            "<div id=status class=status data-state={state} data-pending=0><span class=now>{words}</span></div>"
        );
        fragment("status", &line)
    };
    let saved = line("none", "Saved on this device");
    let body = "<form method=post action=/likes><button>Like</button></form>";
    let stage = Stage::start("likes", &format!("{body}{saved}"));
    stage.says(&format!("event: status\ndata: {saved}\n\nevent: done\ndata: ok\n\n"));
    stage.is_down(true);
    let browser = Browser::launch();
    browser.network_may_fail();
    let tab = browser.open(&stage.url);
    tab.until_live();
    tab.click("button");
    // Something waits, so "saved" isn't the whole truth.
    tab.until("document.documentElement.hasAttribute('data-trouble')");
    let failed = line("failed", "Likes can't be stored now: the disk is full");
    stage.says(&format!("event: status\ndata: {failed}\n\nevent: done\ndata: ok\n\n"));
    until_state(&tab, "failed");
    tab.until("!document.documentElement.hasAttribute('data-trouble')");
    assert_eq!(tab.eval("document.documentElement.dataset.unsent"), "1");
    stage.is_down(false);
}

#[test]
fn without_scripts_the_line_opens_asks_and_tries_again() {
    let (hub_data, data) = (data_dir(), data_dir());
    let token = token(hub_data.path(), "laptop");
    let hub = Server::start(hub_data.path());
    let listen = format!("127.0.0.1:{}", hub.port());
    let one = device(data.path(), &hub.url, &token);
    hub.kill();
    one.like("");
    let browser = Browser::launch();
    let tab = browser.blank();
    tab.without_scripts();
    tab.go(&one.url);
    wait_for("the device to be offline", || {
        tab.go(&one.url);
        tab.text("#status").contains("1 like waiting, offline since").then_some(())
    });
    tab.click("#status > details > summary");
    assert!(tab.is_visible("#status .try"));
    let _hub = Server::start_with(hub_data.path(), &["--listen", &listen]);
    tab.click("#status .try");
    tab.until("document.querySelector('#status')?.dataset.state === 'online'");
}

#[test]
fn the_opened_line_says_that_history_is_still_coming() {
    let (hub_data, data) = (data_dir(), data_dir());
    let token = token(hub_data.path(), "laptop");
    let hub = Server::start(hub_data.path());
    let likes: String =
        (0..12_000).map(|_| format!("{{\"id\":\"{}\",\"name\":\"LikeAdded\"}}\n", uuid::Uuid::now_v7())).collect();
    printed(run_with(hub_data.path(), &["import"], &likes));
    let flags = |more: &[&'static str]| {
        let flags = ["--listen", "127.0.0.1:0", "--upstream", &hub.url, "--token-file", &token];
        flags.iter().chain(more).map(|flag| (*flag).to_owned()).collect::<Vec<_>>()
    };
    let start = |more: &[&'static str]| {
        let flags = flags(more);
        Server::start_with(data.path(), &flags.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let browser = Browser::launch();
    browser.network_may_fail();
    let look = |device: &Server, words: &str, name: &str| {
        let tab = browser.open(&device.url);
        tab.shown_as(390, 700, false);
        tab.until_live();
        tab.until("document.getElementById('count').dataset.count === '12000'");
        tab.click("#status summary");
        until_says(&tab, words);
        fits(&tab, name);
        picture(&tab, name);
        tab.like();
        tab.until("document.getElementById('count').dataset.count !== '12000'");
        tab
    };
    let left_out = start(&["--history", "none"]);
    let tab = look(&left_out, "This device leaves the history out.", "status-history-left-out");
    tab.until("document.getElementById('status').textContent.includes('All synced')");
    left_out.kill();

    // The hub is away, so the history stays where it is.
    let (hub_port, upstream) = (hub.port(), hub.url.clone());
    hub.kill();
    let mut command = likewise();
    command.args(["serve", "--listen", "127.0.0.1:0", "--upstream", &upstream, "--token-file", &token]);
    let device = Server::spawn(command, data.path());
    let tab = browser.open(&device.url);
    tab.shown_as(390, 700, false);
    tab.until_live();
    tab.click("#status summary");
    until_says(&tab, "History is still coming.");
    fits(&tab, "status-history-coming");
    picture(&tab, "status-history-coming");
    let listen = format!("127.0.0.1:{hub_port}");
    let _hub = Server::start_with(hub_data.path(), &["--listen", &listen]);
    tab.until("!document.getElementById('status').textContent.includes('History')");
    tab.until("document.getElementById('status').textContent.includes('All synced')");
}
