//! A hub and two devices, with a page open on each.

use std::fs;
use std::path::Path;

use crate::chromium::Browser;
use crate::common::{Server, data_dir, likewise};

/// Lets a device sync with the hub whose data is in `hub`. Returns the file with the device's token.
pub(crate) fn token(hub: &Path, device: &str) -> String {
    let added = likewise().args(["token", "add", device, "--data"]).arg(hub).output().expect("the program runs");
    assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
    let file = hub.join(device);
    fs::write(&file, added.stdout).expect("the token is written");
    file.to_str().expect("a path in UTF-8").to_owned()
}

pub(crate) fn device(data: &Path, hub_url: &str, token: &str) -> Server {
    Server::start_with(data, &["--listen", "127.0.0.1:0", "--upstream", hub_url, "--token-file", token])
}

#[test]
fn two_devices_show_each_others_likes_count_alone_without_the_hub_and_agree_when_it_is_back() {
    let (hub_data, one_data, two_data) = (data_dir(), data_dir(), data_dir());
    let tokens = ["laptop", "phone"].map(|device| token(hub_data.path(), device));
    let hub = Server::start(hub_data.path());
    let listen = format!("127.0.0.1:{}", hub.port());
    let one = device(one_data.path(), &hub.url, &tokens[0]);
    let two = device(two_data.path(), &hub.url, &tokens[1]);
    let browser = Browser::launch();
    let [laptop, phone] = [&one, &two].map(|server| browser.open(&server.url));
    for page in [&laptop, &phone] {
        page.until_live();
        page.until("document.getElementById('status').dataset.state === 'online'");
    }
    laptop.to_front();
    laptop.like();
    phone.until_count(1);
    phone.to_front();
    phone.like();
    laptop.until_count(2);
    laptop.until("document.getElementById('status').textContent.includes('All synced')");

    hub.kill();
    for page in [&laptop, &phone] {
        page.to_front();
        page.until("document.getElementById('status').dataset.state === 'offline'");
    }
    laptop.to_front();
    laptop.like();
    phone.to_front();
    phone.like();
    phone.until_count(3);
    phone.like();
    laptop.until_count(3);
    phone.until_count(4);
    laptop.until("document.getElementById('status').textContent.includes('1 like waiting, offline since')");
    phone.until("document.getElementById('status').textContent.includes('2 likes waiting, offline since')");

    let _hub = Server::start_with(hub_data.path(), &["--listen", &listen]);
    for page in [&laptop, &phone] {
        page.until_count(5);
        page.until("document.getElementById('status').textContent.includes('All synced')");
    }
}

#[test]
fn a_page_whose_hub_was_replaced_says_so_and_moves_to_the_new_one() {
    let (old_data, new_data, data) = (data_dir(), data_dir(), data_dir());
    let old_token = token(old_data.path(), "laptop");
    let old = Server::start(old_data.path());
    let listen = format!("127.0.0.1:{}", old.port());
    let one = device(data.path(), &old.url, &old_token);
    let browser = Browser::launch();
    let page = browser.open(&one.url);
    page.until_live();
    page.like();
    let at_the_old_hub = browser.open(&old.url);
    at_the_old_hub.until_count(1);
    at_the_old_hub.close();
    page.to_front();
    page.until("document.getElementById('status').textContent.includes('All synced')");
    old.kill();

    // The new hub knows the device's token, but none of its likes.
    fs::copy(old_data.path().join("tokens.json"), new_data.path().join("tokens.json")).expect("the tokens move over");
    let new = Server::start_with(new_data.path(), &["--listen", &listen]);
    page.until("document.getElementById('status').dataset.state === 'halted'");
    page.until("document.getElementById('status').textContent.includes('Your likes are kept')");
    page.until_count(1);
    // It asks first, and names the hub.
    page.click("#status > details > summary");
    assert!(!page.is_visible("button.adopt"));
    page.click(".ask > summary");
    assert_eq!(page.text("button.adopt"), format!("Move to {}", new.url));
    page.leave_by(|page| page.click("button.adopt"));
    page.until_live();
    page.until("document.getElementById('status').textContent.includes('All synced')");
    page.until_count(1);
    let at_the_hub = browser.open(&new.url);
    at_the_hub.until_count(1);
}
