//! The button that other sites embed, on pages of sites with unrelated names.

use std::collections::HashMap;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::chromium::{Browser, ENTER, SPACE, TAB, Tab};
use crate::common::{Server, code_block, data_dir, printed, run, wait_for};
use crate::firefox::{Firefox, FirefoxTab};
use crate::likewise::{fill, stored};
use crate::look::picture;
use crate::stage::read;

/// What the documents tell people to write.
const DOCUMENT: &str = include_str!("../../docs/embed.md");

/// Sites with pages, on one port under whatever name they are asked for.
struct Sites {
    port: u16,
    pages: Arc<Mutex<HashMap<String, (String, String)>>>,
}

impl Sites {
    fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let pages = Arc::<Mutex<HashMap<String, (String, String)>>>::default();
        let shared = pages.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, pages) = (stream.expect("a connection"), shared.clone());
                std::thread::spawn(move || answer(stream, &pages));
            }
        });
        Self { port, pages }
    }

    /// The origin of the site with this name.
    fn origin(&self, name: &str) -> String {
        format!("http://{name}:{}", self.port)
    }

    /// Puts a page with this head and body at `path` of all sites.
    fn page(&self, path: &str, head: &str, body: &str) {
        self.page_with(path, "", head, body);
    }

    fn page_with(&self, path: &str, header: &str, head: &str, body: &str) {
        let html = format!(
            "<!doctype html><html lang=en><head><meta charset=utf-8><title>Blog</title><link rel=icon href=data:,>{head}\
             </head><body>{body}</body></html>"
        );
        let page = (header.to_owned(), html);
        self.pages.lock().expect("BUG: a site panicked").insert(path.to_owned(), page);
    }
}

fn answer(mut stream: TcpStream, pages: &Mutex<HashMap<String, (String, String)>>) {
    let Some((_, path, _)) = read(&stream) else { return };
    let page = path.split('?').next().and_then(|path| pages.lock().expect("BUG: a site panicked").get(path).cloned());
    let (status, (header, html)) = page.map_or(("404 Not Found", Default::default()), |page| ("200 OK", page));
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: text/html\r\nCache-Control: no-store\r\n{header}");
    // The browser may be gone already.
    drop(write!(stream, "{head}Content-Length: {}\r\nConnection: close\r\n\r\n{html}", html.len()));
}

/// A hub whose button two sites may embed, and the sites.
struct World {
    data: TempDir,
    sites: Sites,
    port: u16,
}

impl World {
    fn new() -> (Self, Server) {
        let (data, sites) = (data_dir(), Sites::open());
        let world = Self { data, sites, port: 0 };
        let server = world.serve();
        (Self { port: server.port(), ..world }, server)
    }

    /// Starts the hub, at the same address as before.
    fn serve(&self) -> Server {
        serve(self.data.path(), &self.sites, self.port)
    }

    /// Two lines that put a button on a page, as the documents have them.
    fn script(&self) -> String {
        self.adapted(code_block(DOCUMENT, "## Two lines", "html").lines().next().expect("a line"))
    }

    /// What the documents have, for this hub and these sites.
    fn adapted(&self, text: &str) -> String {
        text.replace("https://likes.example.org", &format!("http://hub.example:{}", self.port))
            .replace("https://blog.example.org", &self.sites.origin("blog.example"))
    }

    /// A browser that takes the blog for secure, as if it had TLS.
    fn browser(&self) -> Browser {
        Browser::launch_trusting(&[&self.sites.origin("blog.example"), &self.sites.origin("shop.example")])
    }

    /// The blog's address with this path.
    fn blog(&self, path: &str) -> String {
        self.sites.origin("blog.example") + path
    }
}

fn serve(data: &Path, sites: &Sites, port: u16) -> Server {
    let (listen, blog, shop) =
        (format!("127.0.0.1:{port}"), sites.origin("blog.example"), sites.origin("shop.example"));
    let flags =
        ["--listen", &listen, "--allow-host", "hub.example", "--local-page", "--embed", &blog, "--embed", &shop];
    Server::start_with(data, &flags)
}

impl Tab<'_> {
    fn button(&self, script: &str) -> Value {
        self.eval(&format!("(() => {{ const it = document.querySelector('likewise-button'); return {script}; }})()"))
    }

    fn shows(&self, count: &str) {
        self.until(&format!("document.querySelector('likewise-button')?.count?.textContent === '{count}'"));
    }

    fn click_button(&self) {
        self.click("likewise-button");
    }

    /// Waits until everything that was clicked is stored.
    fn until_stored(&self) {
        self.until("!document.querySelector('likewise-button').button.classList.contains('late')");
    }
}

#[test]
fn trust_33_two_sites_have_a_live_button_and_a_third_has_none() {
    let (world, server) = World::new();
    world.sites.page("/", &world.script(), "<likewise-button item=my-post></likewise-button>");
    let browser = world.browser();
    browser.network_may_fail();
    browser.may_complain("CORS policy");
    let blog = browser.open(&world.blog("/"));
    blog.shows("0");
    let shop = browser.open(&world.sites.origin("shop.example"));
    shop.shows("0");
    shop.click_button();
    shop.shows("1");
    blog.shows("1");
    assert_eq!(blog.button("it.button.ariaPressed"), "false", "another site's visitor");
    let evil = browser.open(&world.sites.origin("evil.example"));
    evil.until("!!document.querySelector('likewise-button')?.button");
    evil.click_button();
    evil.until("document.querySelector('likewise-button').status.textContent.startsWith('No connection')");
    assert_eq!(evil.text("likewise-button"), "");
    blog.to_front();
    blog.click_button();
    shop.shows("2");
    assert_eq!(stored(server.data(), "item-my-post").len(), 2);
    let cookies = blog
        .call("Network.getCookies", json!({ "urls": [world.blog("/"), format!("http://hub.example:{}", world.port)] }));
    assert_eq!(cookies["cookies"], json!([]));
}

#[test]
fn a_visitor_likes_once_and_where_it_is_wanted_often() {
    let (world, server) = World::new();
    world.sites.page("/", &world.script(), "<likewise-button item=once></likewise-button>");
    world.sites.page("/many", &world.script(), "<likewise-button item=often many></likewise-button>");
    let browser = world.browser();
    let tab = browser.open(&world.blog("/"));
    tab.shows("0");
    assert_eq!(tab.button("it.button.ariaPressed"), "false");
    tab.click_button();
    tab.click_button();
    tab.shows("1");
    tab.until_stored();
    assert_eq!(
        tab.button("[it.button.ariaPressed, it.status.textContent, it.button.title].join()"),
        "true,You liked this.,You liked this."
    );
    tab.go(&world.blog("/"));
    tab.shows("1");
    tab.until("document.querySelector('likewise-button').button.ariaPressed === 'true'");
    tab.click_button();
    tab.go(&world.blog("/many"));
    tab.shows("0");
    (0..3).for_each(|_| tab.click_button());
    tab.shows("3");
    tab.until_stored();
    assert_eq!(tab.button("it.button.ariaPressed"), Value::Null);
    assert_eq!(stored(server.data(), "item-often").len(), 3);
    assert_eq!(stored(server.data(), "item-once").len(), 1);
}

#[test]
fn trust_69_a_click_without_a_connection_is_kept_over_a_reload_and_stored_once() {
    let (world, server) = World::new();
    world.sites.page("/", &world.script(), "<likewise-button item=my-post></likewise-button>");
    let browser = world.browser();
    browser.network_may_fail();
    browser.may_complain("CORS policy");
    let tab = browser.open(&world.blog("/"));
    tab.shows("0");
    server.kill();
    tab.click_button();
    tab.shows("1");
    tab.until("document.querySelector('likewise-button').status.textContent.startsWith('No connection')");
    // The script is in the browser's cache.
    tab.go(&world.blog("/"));
    tab.until("document.querySelector('likewise-button')?.button?.classList.contains('late')");
    let server = world.serve();
    tab.until_stored();
    tab.shows("1");
    assert_eq!(stored(server.data(), "item-my-post").len(), 1);
}

#[test]
fn one_stream_serves_all_tabs_of_a_site_and_goes_on_in_another_tab() {
    let (world, server) = World::new();
    let buttons = "<likewise-button item=a></likewise-button><likewise-button item=b id=b></likewise-button>";
    world.sites.page("/", &world.script(), buttons);
    world.sites.page("/other", &world.script(), "<likewise-button item=c></likewise-button>");
    let browser = world.browser();
    let first = browser.open(&world.blog("/"));
    first.shows("0");
    let second = browser.open(&world.blog("/other"));
    second.shows("0");
    let third = browser.open(&world.blog("/"));
    third.shows("0");
    assert_eq!(server.streams(), 1);
    server.like("/s/item-c");
    second.shows("1");
    server.like("/s/item-b");
    third.until("document.getElementById('b').count.textContent === '1'");
    assert_eq!(server.streams(), 1);
    first.close();
    server.like("/s/item-c");
    second.shows("2");
    server.like("/s/item-a");
    third.shows("1");
    assert_eq!(server.streams(), 1);
}

#[test]
fn names_that_every_object_has_are_items_like_any_other() {
    const NAMES: [&str; 4] = ["constructor", "toString", "__proto__", "hasOwnProperty"];
    let (world, server) = World::new();
    let buttons = NAMES.map(|name| format!("<likewise-button item={name}></likewise-button>")).concat();
    world.sites.page("/", &world.script(), &buttons);
    let browser = world.browser();
    let all_show = |tab: &Tab<'_>, count: u32| {
        let all = "Array.from(document.querySelectorAll('likewise-button'), (it) => it.count?.textContent)";
        tab.until(&format!("{all}.join() === '{count},{count},{count},{count}'"));
    };
    let (first, second) = (browser.open(&world.blog("/")), browser.open(&world.blog("/")));
    all_show(&first, 0);
    all_show(&second, 0);
    first.eval("document.querySelectorAll('likewise-button').forEach((it) => it.button.click())");
    first.until("!Array.from(document.querySelectorAll('likewise-button')).some((it) => it.button.matches('.late'))");
    // The second tab hears it from the one that reads the stream, or reads it itself.
    all_show(&first, 1);
    all_show(&second, 1);
    for name in NAMES {
        assert_eq!(stored(server.data(), &store_of(&server, name)).len(), 1, "{name}");
    }
    second.go(&world.blog("/"));
    all_show(&second, 1);
}

/// The store of the item with this name.
fn store_of(server: &Server, name: &str) -> String {
    let listed = printed(run(server.data(), &["items", "list", "--json"]));
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    let items = listed["items"].as_array().expect("items");
    let item = items.iter().find(|item| item["item"] == name).unwrap_or_else(|| panic!("{name} in {listed}"));
    item["store"].as_str().expect("a store").to_owned()
}

#[test]
fn who_gets_no_stream_asks_for_the_counts() {
    let (world, server) = World::new();
    server.like("/s/item-my-post");
    world.sites.page("/", &world.script(), "<likewise-button item=my-post></likewise-button>");
    let browser = world.browser();
    browser.network_may_fail();
    // All that one address may have.
    let _streams: Vec<_> = (0..50).map(|_| hold_stream(&world)).collect();
    server.until_streams(50);
    let tab = browser.open(&world.blog("/"));
    tab.shows("1");
    tab.click_button();
    tab.shows("2");
    tab.until_stored();
    assert_eq!(stored(server.data(), "item-my-post").len(), 2);
}

fn hold_stream(world: &World) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", world.port)).expect("a connection");
    let head = format!("GET /embed/v1/x/live HTTP/1.1\r\nHost: hub.example:{}\r\n\r\n", world.port);
    stream.write_all(head.as_bytes()).expect("a request");
    stream
}

#[test]
fn without_scripts_the_form_of_the_documents_likes_and_comes_back() {
    let (world, server) = World::new();
    let snippet = world.adapted(code_block(DOCUMENT, "## Without JavaScript", "html"));
    world.sites.page("/my-post", &world.script(), &snippet);
    let browser = world.browser();
    let tab = browser.blank();
    tab.without_scripts();
    tab.go(&world.blog("/my-post"));
    tab.leave_by(|tab| tab.click("likewise-button button"));
    assert_eq!(tab.eval("location.href"), world.blog("/my-post"));
    assert_eq!(stored(server.data(), "item-my-post").len(), 1);
    tab.with_scripts();
    tab.go(&world.blog("/my-post"));
    tab.shows("1");
    assert!(!tab.is_visible("likewise-button form"), "the button stands in its place");
}

#[test]
fn a_site_with_a_strict_policy_needs_the_lines_of_the_documents() {
    let (world, server) = World::new();
    let policy = world.adapted(code_block(DOCUMENT, "## Strict sites", "text"));
    let policy = format!("Content-Security-Policy: {}\r\n", policy.replace('\n', " "));
    let body = "<likewise-button item=my-post></likewise-button>";
    let badge = format!("<img src=http://hub.example:{}/embed/v1/my-post/badge.svg>", world.port);
    world.sites.page_with("/", &policy, &world.script(), &format!("{body}{badge}"));
    let browser = world.browser();
    let tab = browser.open(&world.blog("/"));
    tab.shows("0");
    tab.click_button();
    tab.shows("1");
    tab.until_stored();
    tab.until("document.querySelector('img').naturalWidth > 20");
    assert_eq!(tab.button("getComputedStyle(it.button).display"), "flex", "it has its style");
    assert_eq!(stored(server.data(), "item-my-post").len(), 1);
}

#[test]
fn without_a_name_an_item_is_the_canonical_address_of_the_page() {
    let (world, server) = World::new();
    let body = "<likewise-button></likewise-button>";
    let canonical = "<link rel=canonical href='https://blog.example.org/2026/hello,world?no#no'>";
    world.sites.page("/canonical", &(world.script() + canonical), body);
    world.sites.page("/plain", &world.script(), body);
    let browser = world.browser();
    for (path, item) in [
        ("/canonical?x", "blog.example.org/2026/hello%2Cworld".to_owned()),
        ("/plain?x#y", world.blog("/plain")[7..].to_owned()),
    ] {
        let tab = browser.open(&world.blog(path));
        tab.shows("0");
        assert_eq!(tab.button("it.item"), item);
        tab.click_button();
        tab.shows("1");
        tab.until_stored();
    }
    let listed = crate::common::printed(crate::common::run(server.data(), &["items", "list"]));
    assert!(listed.starts_with("blog.example.org/2026/hello%2Cworld\t1 like\topen\n"), "{listed}");
}

#[test]
fn nothing_moves_when_the_script_and_the_counts_come() {
    let (world, _server) = World::new();
    let style = code_block(DOCUMENT, "## Nothing jumps", "css");
    let snippet = world.adapted(code_block(DOCUMENT, "## Without JavaScript", "html"));
    let watch = "<script>window.shifts = [];
        new PerformanceObserver((list) => shifts.push(...list.getEntries().map(({ value }) => value)))
          .observe({ type: 'layout-shift', buffered: true });</script>";
    let bare = "<likewise-button item=my-post></likewise-button>";
    for (path, body, count) in [("/", bare, "0"), ("/form", &*snippet, "1")] {
        // The script comes when the page has long been drawn.
        let late = format!(
            "<script>addEventListener('load', () => setTimeout(() => {{
               const script = document.createElement('script');
               script.src = 'http://hub.example:{}/embed.js';
               document.head.append(script);
             }}, 300));</script>",
            world.port
        );
        let body = format!("<p>Before</p>{body}<p>After <b>all</b></p>");
        world.sites.page(path, &format!("<style>{style}</style>{watch}{late}"), &body);
        let browser = world.browser();
        let tab = browser.open(&world.blog(path));
        tab.until("document.querySelector('b') && performance.getEntriesByType('paint').length > 0");
        let before = (tab.place("likewise-button"), tab.place("b"));
        tab.shows(count);
        assert_eq!((tab.place("likewise-button"), tab.place("b")), before, "{path}");
        tab.eval("new Promise((painted) => requestAnimationFrame(() => requestAnimationFrame(painted)))");
        tab.click_button();
        tab.until_stored();
        assert_eq!((tab.place("likewise-button"), tab.place("b")), before, "{path}");
        assert_eq!(tab.eval("shifts"), json!([]), "{path}");
    }
}

#[test]
fn keyboards_and_screen_readers_have_a_button_with_a_state() {
    let (world, server) = World::new();
    server.like("/s/item-my-post");
    world.sites.page("/", &world.script(), "<likewise-button item=my-post label='Gefällt mir'></likewise-button>");
    let browser = world.browser();
    let tab = browser.open(&world.blog("/"));
    tab.shows("1");
    let named = |name: &str, pressed: &str| {
        let tree = tab.call("Accessibility.getFullAXTree", json!({}));
        let nodes = tree["nodes"].as_array().expect("nodes");
        let button = nodes.iter().find(|node| node["role"]["value"] == "button").expect("a button");
        assert_eq!(button["name"]["value"], name, "{button}");
        let is_pressed = |property: &&Value| property["name"] == "pressed";
        let state = button["properties"].as_array().expect("properties").iter().find(is_pressed);
        assert_eq!(state.map(|state| &state["value"]["value"]), Some(&json!(pressed)), "{button}");
        assert!(nodes.iter().any(|node| node["role"]["value"] == "status"), "words about what happens");
    };
    named("Gefällt mir 1", "false");
    tab.press(&TAB);
    assert_eq!(tab.button("getComputedStyle(it.shadowRoot.activeElement).outlineStyle"), "solid");
    tab.press(&ENTER);
    tab.shows("2");
    named("Gefällt mir 2", "true");
    tab.press(&SPACE);
    tab.until("document.querySelector('likewise-button').status.textContent === 'You liked this.'");
}

#[test]
fn counts_are_written_as_the_page_writes_numbers() {
    let (world, server) = World::new();
    drop(server);
    fill(world.data.path(), "item-my-post", 1_234);
    let _server = world.serve();
    world.sites.page("/", &world.script(), "<likewise-button item=my-post></likewise-button>");
    world.sites.page("/de", &world.script(), "<main lang=de><likewise-button item=my-post></likewise-button></main>");
    world.sites.page(
        "/odd",
        &world.script(),
        "<main lang='no-such_language'><likewise-button item=my-post></likewise-button></main>",
    );
    let browser = world.browser();
    let tab = browser.open(&world.blog("/"));
    tab.shows("1.2K");
    tab.go(&world.blog("/de"));
    tab.shows("1234");
    tab.go(&world.blog("/odd"));
    tab.shows("1234");
}

#[test]
fn the_button_fits_light_and_dark_pages() {
    let (world, server) = World::new();
    drop(server);
    fill(world.data.path(), "item-my-post", 1_234);
    let server = world.serve();
    let style = "<style>:root { color-scheme: light dark; font: 18px/1.6 Georgia, serif } body { max-width: 34em; margin: 2em auto }
                 .own { --likewise-heart: teal; --likewise-radius: .3em; --likewise-background: #eaf6f6; --likewise-border: teal }
                 .own { color: #123 } likewise-button::part(count) { font-weight: bold }</style>";
    let button = |more: &str| format!("<likewise-button item=my-post {more}></likewise-button>");
    let body = format!(
        "<h1>A post</h1><p>What people like. {} in a line of text.</p><p>{}</p><p>Badge: <img src=http://hub.example:{}/embed/v1/my-post/badge.svg></p>",
        button(""),
        button("class=own"),
        server.port()
    );
    world.sites.page("/", &(world.script() + style), &body);
    let browser = world.browser();
    let tab = browser.open(&world.blog("/"));
    for dark in [false, true] {
        tab.shown_as(640, 420, dark);
        tab.shows("1.2K");
        picture(&tab, &format!("embed-{}", if dark { "dark" } else { "light" }));
    }
    tab.click_button();
    tab.until_stored();
    tab.until("document.querySelector('img').naturalWidth > 0");
    picture(&tab, "embed-liked");
    tab.prefers("forced-colors", "active");
    picture(&tab, "embed-forced-colors");
    wait_for("the like", || (stored(server.data(), "item-my-post").len() == 1_235).then_some(()));
}

#[test]
fn firefox_likes_on_two_sites_and_keeps_a_click_while_the_hub_is_down() {
    let (data, sites) = (data_dir(), Sites::open());
    let (blog, shop) = (sites.origin("blog.example.org"), sites.origin("shop.example.net"));
    let serve = |port: u16| {
        let listen = format!("127.0.0.1:{port}");
        let flags = ["--listen", &listen, "--allow-host", "likes.example.org", "--embed", &blog, "--embed", &shop];
        Server::start_with(data.path(), &flags)
    };
    let server = serve(0);
    let port = server.port();
    let script = format!("<script async src=http://likes.example.org:{port}/embed.js></script>");
    sites.page("/", &script, "<likewise-button item=my-post></likewise-button>");
    let shows = |tab: &FirefoxTab<'_>, count: u64| {
        tab.until(&format!("document.querySelector('likewise-button')?.count?.textContent === '{count}'"));
    };
    let firefox = Firefox::launch();
    let [one, two] = [&blog, &shop].map(|site| firefox.open(site));
    shows(&one, 0);
    two.click("document.querySelector('likewise-button')");
    shows(&one, 1);
    let evil = firefox.open(&sites.origin("evil.example"));
    evil.until("!!document.querySelector('likewise-button')?.button");
    server.kill();
    one.click("document.querySelector('likewise-button')");
    shows(&one, 2);
    one.until("document.querySelector('likewise-button').button.classList.contains('late')");
    one.go(&blog);
    let server = serve(port);
    one.until("document.querySelector('likewise-button')?.button?.classList.contains('late') === false");
    shows(&one, 2);
    assert_eq!(stored(server.data(), "item-my-post").len(), 2);
}
