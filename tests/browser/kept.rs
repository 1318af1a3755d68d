//! The page opens while its program is away, and makes room for another program in its place.

use std::io::Write;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use serde_json::json;

use crate::chromium::{Browser, Tab};
use crate::common::{Server, data_dir, wait_for};
use crate::likewise::stored;
use crate::look::picture_every_size;
use crate::offline::start_again;
use crate::stage::read;

const STOPPED: &str = "Likewise isn't running on this computer. Your clicks are kept.";

impl Tab<'_> {
    /// Waits until the browser has kept this page, with the count that it shows now.
    fn until_kept(&self, count: u64) {
        self.until(&format!(
            "(async () => {{
               const text = async (href) => (await caches.match(href, {{ ignoreVary: true }}))?.text();
               const [page, news] = await Promise.all([text(location.href), text(new URL('live', location.href).href)]);
               return page !== undefined && `${{page}}${{news}}`.match(/data-count=.?\"(\\d+)/g).at(-1).endsWith('\"{count}');
             }})()"
        ));
    }

    fn until_says(&self, text: &str) {
        self.until(&format!("document.getElementById('message')?.textContent === {}", json!(text)));
    }
}

#[test]
fn the_page_opens_while_the_program_is_stopped_and_its_clicks_are_stored_once() {
    let data = data_dir();
    let server = Server::start(data.path());
    let (port, url) = (server.port(), server.url.clone());
    let browser = Browser::launch();
    browser.network_may_fail();
    let tab = browser.open(&url);
    tab.until_live();
    let work = browser.open(&format!("{url}/s/work/"));
    work.until_live();
    work.like();
    work.until_sent();
    work.until_kept(1);
    // The page was kept when it was opened. What it has heard since then is known, too.
    tab.to_front();
    for count in 1..=3 {
        server.like("");
        tab.until_count(count);
    }
    tab.until_kept(3);
    server.kill();

    // The browser is started again, and opens the page for the first time.
    let browser = browser.again();
    browser.network_may_fail();
    let tab = browser.open(&url);
    tab.until_says(STOPPED);
    assert_eq!(tab.count(), 3);
    assert!(tab.text("#status").starts_with("As of "), "{}", tab.text("#status"));
    assert!(tab.is_visible("#status"));
    tab.like();
    tab.like();
    tab.until_count(5);
    tab.until_says(&format!("{STOPPED} 2 likes waiting to be saved."));
    picture_every_size(&tab, "kept");
    tab.leave_by(|tab| drop(tab.call("Page.reload", json!({}))));
    tab.until_count(5);
    tab.like();
    tab.until_count(6);
    let work = browser.open(&format!("{url}/s/work/"));
    work.until_says(STOPPED);
    assert_eq!(work.count(), 1);
    work.like();
    work.until_count(2);
    assert_eq!(tab.eval("document.querySelectorAll('input[name=id]').length"), 0, "an id that was used already");

    let server = start_again(data.path(), port);
    for (tab, count) in [(&work, 2), (&tab, 6)] {
        tab.to_front();
        tab.until_live();
        tab.until_sent();
        tab.until_count(count);
        tab.until_says("");
        tab.until("document.getElementById('status').textContent.includes('Saved on this device')");
    }
    assert_eq!([stored(data.path(), "likes").len(), stored(data.path(), "work").len()], [6, 2]);
    assert_eq!(server.clicks("stored"), 4);
    server.like("");
    tab.until_count(7);
}

#[test]
fn a_browser_that_ends_while_it_keeps_a_page_anew_still_has_it() {
    let data = data_dir();
    let mut server = Server::start(data.path());
    let (port, url) = (server.port(), server.url.clone());
    let mut browser = Browser::launch();
    for round in 1..=6 {
        browser.network_may_fail();
        let tab = browser.open(&url);
        tab.until_kept(round - 1);
        tab.until_live();
        server.like("");
        tab.until_kept(round);
        tab.until("caches.match('live').then(Boolean)");
        // The computer shuts down. As seldom as that moment is, it comes two thousand times here.
        let message =
            ["{ heard: location.href, news: { ...news, at: Date.now() } }", "{ keep: location.href, files: [] }"];
        tab.eval(&format!(
            "(async () => {{
               const news = await (await caches.match('live')).json();
               const {{ active }} = await navigator.serviceWorker.ready;
               for (let i = 0; i < 2000; i++) active.postMessage({});
             }})()",
            message[round as usize % 2],
        ));
        server.kill();
        browser = browser.again();
        browser.network_may_fail();
        let tab = browser.open(&url);
        tab.until_says(STOPPED);
        assert_eq!(tab.count(), round);
        server = start_again(data.path(), port);
        tab.until_live();
    }
}

#[test]
fn a_page_that_is_gone_for_good_isnt_shown_from_what_was_kept() {
    let data = data_dir();
    let server = Server::start(data.path());
    let (port, url) = (server.port(), server.url.clone());
    let browser = Browser::launch();
    browser.network_may_fail();
    let tab = browser.open(&url);
    tab.until_live();
    tab.until_kept(0);
    server.kill();

    let other = Somebody::listens(port);
    tab.go(&url);
    assert_eq!(tab.text("h1"), "Somebody else");
    tab.until("navigator.serviceWorker.getRegistrations().then((all) => all.length === 0)");
    tab.until("caches.keys().then((all) => all.length === 0)");
    other.end();
    // The browser's own page says that nothing is there.
    tab.go(&url);
    assert_eq!(tab.eval("document.querySelector('#like, h1.name')"), serde_json::Value::Null);

    let _server = start_again(data.path(), port);
    tab.go(&url);
    tab.until_live();
    tab.until_kept(0);
}

#[test]
fn a_proxy_that_misses_its_program_is_no_other_program() {
    let data = data_dir();
    let server = Server::start(data.path());
    let (port, url) = (server.port(), server.url.clone());
    let browser = Browser::launch();
    browser.network_may_fail();
    let tab = browser.open(&url);
    tab.until_live();
    tab.until_kept(0);
    server.kill();
    browser.may_complain("Manifest fetch");
    let proxy = Somebody::says(port, "502 Bad Gateway");
    tab.go(&url);
    tab.until_says(STOPPED);
    proxy.end();
}

#[test]
fn what_waits_is_counted_once_in_every_tab() {
    let data = data_dir();
    let server = Server::start(data.path());
    let (port, url) = (server.port(), server.url.clone());
    let browser = Browser::launch();
    browser.network_may_fail();
    let [one, two] = [(); 2].map(|()| browser.open(&url));
    for tab in [&one, &two] {
        tab.until_live();
    }
    two.like();
    one.until_count(1);
    two.until_sent();
    server.kill();
    for tab in [&one, &two] {
        tab.until("document.documentElement.dataset.live === 'closed'");
    }
    for _ in 0..3 {
        two.like();
    }
    one.to_front();
    one.until_count(4);
    one.like();
    for tab in [&one, &two] {
        tab.until_count(5);
        tab.until("document.documentElement.dataset.unsent === '4'");
    }

    let server = start_again(data.path(), port);
    for tab in [&one, &two] {
        tab.to_front();
        tab.until_live();
        tab.until_sent();
        tab.until_count(5);
    }
    server.like("");
    for tab in [&one, &two] {
        tab.until_count(6);
    }
    assert_eq!(stored(data.path(), "likes").len(), 6);
}

#[test]
fn the_page_can_be_installed() {
    let data = data_dir();
    let server = Server::start(data.path());
    let browser = Browser::launch();
    for (path, name) in [("/", "Likewise"), ("/s/work/", "work · Likewise")] {
        let tab = browser.open(&format!("{}{path}", server.url));
        tab.until_live();
        let errors = tab.call("Page.getInstallabilityErrors", json!({}));
        assert_eq!(errors["installabilityErrors"], json!([]), "{path}");
        let manifest = tab.call("Page.getAppManifest", json!({}));
        assert_eq!(manifest["errors"], json!([]), "{path}");
        let said: serde_json::Value =
            serde_json::from_str(manifest["data"].as_str().expect("a manifest")).expect("JSON");
        assert_eq!((&said["name"], &said["scope"], &said["start_url"]), (&name.into(), &path.into(), &path.into()));
    }
}

/// Another program in the place of ours.
struct Somebody {
    port: u16,
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Somebody {
    fn listens(port: u16) -> Self {
        Self::says(port, "200 OK")
    }

    fn says(port: u16, status: &'static str) -> Self {
        let listener = wait_for("the server's port", || TcpListener::bind(("127.0.0.1", port)).ok());
        let is_over = Arc::<AtomicBool>::default();
        let end = is_over.clone();
        let thread = std::thread::spawn(move || {
            let body = "<!doctype html><title>Else</title><link rel=icon href=data:,><h1>Somebody else</h1>";
            for stream in listener.incoming().take_while(|_| !end.load(Ordering::Relaxed)) {
                let (mut stream, end) = (stream.expect("a connection"), end.clone());
                // A browser also opens connections that it uses later, or never.
                std::thread::spawn(move || {
                    if read(&stream).is_some() && !end.load(Ordering::Relaxed) {
                        let head = format!("HTTP/1.1 {status}\r\nContent-Type: text/html\r\nConnection: close");
                        let _ = write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                    }
                });
            }
        });
        Self { port, is_over, thread }
    }

    fn end(self) {
        self.is_over.store(true, Ordering::Relaxed);
        drop(std::net::TcpStream::connect(("127.0.0.1", self.port)));
        self.thread.join().expect("it ends");
    }
}
