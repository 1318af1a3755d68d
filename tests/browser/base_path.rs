//! Two programs under two paths of one site. To a browser they are of one origin, so only the path keeps them apart.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::Value;

use crate::chromium::{Browser, Tab};
use crate::common::{Server, data_dir};
use crate::likewise::stored;

/// A site whose parts are programs of their own: a proxy that passes requests on by the first part of their path.
struct Site {
    url: String,
    parts: Arc<Mutex<Vec<(&'static str, u16)>>>,
}

impl Site {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        let parts: Arc<Mutex<Vec<(&'static str, u16)>>> = Arc::default();
        let shared = Arc::clone(&parts);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let parts = shared.lock().expect("BUG: the site panicked").clone();
                thread::spawn(move || carry(client, &parts));
            }
        });
        Self { url, parts }
    }

    /// Has `server` answer for everything under `base`.
    fn part(&self, base: &'static str, server: &Server) {
        let mut parts = self.parts.lock().expect("BUG: the site panicked");
        parts.retain(|(known, _)| *known != base);
        parts.push((base, server.port()));
    }
}

/// Passes one request on, and the answer back. Nothing else comes over this connection: the next request may be for
/// another program.
fn carry(mut client: TcpStream, parts: &[(&str, u16)]) -> Option<()> {
    let mut lines = BufReader::new(client.try_clone().ok()?);
    let (mut head, mut line) = (String::new(), String::new());
    while line != "\r\n" {
        line.clear();
        lines.read_line(&mut line).ok().filter(|bytes| *bytes > 0)?;
        if !line.to_ascii_lowercase().starts_with("connection:") {
            head.push_str(&line);
        }
    }
    let head = head.replacen("\r\n", "\r\nConnection: close\r\n", 1);
    let path = head.split(' ').nth(1)?;
    let part = parts.iter().find(|(base, _)| path.strip_prefix(base).is_some_and(|rest| rest.starts_with('/')));
    let Some((_, port)) = part else {
        return client.write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").ok();
    };
    let mut server = TcpStream::connect(("127.0.0.1", *port)).ok()?;
    server.write_all(head.as_bytes()).ok()?;
    let mut to_server = server.try_clone().ok()?;
    thread::spawn(move || {
        drop(std::io::copy(&mut lines, &mut to_server));
        // The browser is gone, so the stream may end.
        drop(to_server.shutdown(Shutdown::Both));
    });
    let mut answer = [0; 4096];
    loop {
        let bytes = server.read(&mut answer).ok().filter(|bytes| *bytes > 0);
        let Some(bytes) = bytes else { break };
        client.write_all(&answer[..bytes]).ok()?;
    }
    client.shutdown(Shutdown::Both).ok()
}

fn serve(data: &Path, base: &str) -> Server {
    Server::start_with(data, &["--listen", "127.0.0.1:0", "--base-path", base])
}

/// The keys under which the site's pages keep clicks, without the clicks' ids.
fn kept(tab: &Tab<'_>) -> Value {
    tab.eval("[...new Set(Object.keys(localStorage).map((key) => key.replace(/[^:]*$/, '')))].sort()")
}

#[test]
fn two_programs_under_two_paths_of_a_site_have_nothing_in_common() {
    let (data, other_data) = (data_dir(), data_dir());
    let (one, two) = (serve(data.path(), "/one"), serve(other_data.path(), "/two"));
    let site = Site::start();
    site.part("/one", &one);
    site.part("/two", &two);
    let browser = Browser::launch();
    browser.network_may_fail();
    // Windows, so that both pages are seen.
    let (first, second) = (browser.window(), browser.window());
    first.go(&format!("{}/one/", site.url));
    second.go(&format!("{}/two/", site.url));
    let tabs = [(&first, &one, "/one"), (&second, &two, "/two")];
    for (tab, ..) in tabs {
        tab.until_live();
        assert_eq!(tab.eval("getComputedStyle(document.body).margin"), "0px", "its style is there");
    }
    for (tab, server, base) in tabs {
        tab.to_front();
        tab.like();
        tab.until_sent();
        tab.until_count(1);
        server.like(base);
        tab.until_count(2);
        tab.until_live();
    }
    assert_eq!((stored(data.path(), "likes").len(), stored(other_data.path(), "likes").len()), (2, 2));

    // One goes down. Its clicks wait, and the other's page neither shows nor posts them.
    one.kill();
    first.until("document.documentElement.dataset.live === 'closed'");
    first.to_front();
    for count in 3..=5 {
        first.like();
        first.until_count(count);
    }
    assert_eq!(kept(&first), serde_json::json!(["likewise:/one:"]));
    let beside = browser.window();
    beside.go(&format!("{}/two/", site.url));
    for tab in [&second, &beside] {
        tab.until_live();
        assert_eq!(tab.eval("document.documentElement.dataset.unsent"), "0");
    }
    second.to_front();
    second.like();
    second.until_sent();
    beside.until_count(3);
    assert_eq!(kept(&second), serde_json::json!(["likewise:/one:"]), "the click of the other has been stored");

    let one = serve(data.path(), "/one");
    site.part("/one", &one);
    first.until_sent();
    first.until_live();
    first.until_count(5);
    assert_eq!((stored(data.path(), "likes").len(), stored(other_data.path(), "likes").len()), (5, 3));
    assert_eq!(kept(&first), serde_json::json!([]));
}

#[test]
fn without_javascript_a_page_under_a_path_works_and_leads_back() {
    let data = data_dir();
    let server = serve(data.path(), "/one");
    let browser = Browser::launch();
    let tab = browser.blank();
    tab.without_scripts();
    for (path, count) in [("/one", 1), ("/one/s/work/", 1)] {
        tab.go(&format!("{}{path}", server.url));
        tab.leave_by(|page| page.click("#like button"));
        assert_eq!(tab.count(), count);
        let home = format!("{}/", path.trim_end_matches('/'));
        assert_eq!(tab.eval("location.pathname"), home);
    }
    browser.may_complain("404");
    tab.go(&format!("{}/", server.url));
    assert!(tab.text("#detail").contains("under /one/"));
    tab.leave_by(|page| page.click("a.back"));
    assert_eq!(tab.eval("location.pathname"), "/one/");
}
