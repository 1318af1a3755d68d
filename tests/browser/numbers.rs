//! Numbers in the visitor's language, the title, and what a screen reader hears.

use serde_json::{Value, json};

use crate::chromium::Browser;
use crate::common::{Server, data_dir};
use crate::likewise::fill;

#[test]
fn long_numbers_are_grouped_as_the_visitors_language_does() {
    let data = data_dir();
    fill(data.path(), "likes", 12_345);
    let server = Server::start(data.path());
    let browser = Browser::launch();
    let tab = browser.blank();
    for (language, expected, next) in [
        ("en", "12,345", "12,346"),
        ("de", "12.346", "12.347"),
        ("ar-EG", "12,347", "12,348"),
        ("es", "12.348", "12.349"),
    ] {
        tab.speaks(language);
        tab.go(&server.url);
        tab.until_live();
        assert_eq!(tab.text("#count"), expected, "{language}");
        tab.like();
        tab.until_sent();
        tab.until(&format!("document.getElementById('count').textContent === '{next}'"));
        assert_eq!(tab.eval("/^\\d+$/.test(document.getElementById('count').dataset.count)"), true);
        tab.until(&format!("document.title === '{next} likes · Likewise'"));
    }
}

#[test]
fn the_title_shows_the_count_in_a_tab_that_nobody_looks_at() {
    let data = data_dir();
    let server = Server::start(data.path());
    let browser = Browser::launch();
    let tab = browser.open(&format!("{}/s/work/", server.url));
    tab.until_live();
    assert_eq!(tab.eval("document.title"), "0 likes · work · Likewise");
    let other = browser.open("about:blank");
    other.to_front();
    tab.until("document.hidden");
    server.like("/s/work");
    tab.until("document.title === '1 like · work · Likewise'");
    server.like("/s/work");
    tab.until("document.title === '2 likes · work · Likewise'");
}

#[test]
fn without_javascript_the_title_shows_the_count_too() {
    let data = data_dir();
    fill(data.path(), "likes", 42);
    let server = Server::start(data.path());
    let browser = Browser::launch();
    let tab = browser.blank();
    tab.without_scripts();
    tab.go(&server.url);
    assert_eq!(tab.eval("document.title"), "42 likes · Likewise");
}

#[test]
fn a_screen_reader_hears_many_likes_seldom_and_the_last_count_for_sure() {
    let data = data_dir();
    let server = Server::start(data.path());
    let browser = Browser::launch();
    let tab = browser.open(&server.url);
    tab.until_live();
    tab.eval(
        "window.heard = [];
         new MutationObserver(() => heard.push([performance.now(), document.querySelector('.voice').textContent]))
           .observe(document.querySelector('.voice'), { childList: true });
         window.shown = 0;
         new MutationObserver(() => shown++).observe(document.getElementById('count'), { childList: true }); 0",
    );
    for _ in 0..30 {
        server.like("");
        tab.eval("new Promise((done) => setTimeout(done, 100))");
    }
    tab.until("window.heard.some(([, text]) => text === '30 likes')");
    assert!(tab.eval("shown").as_u64() >= Some(10), "the count itself was late, so this shows nothing");
    let heard: Vec<(f64, String)> = serde_json::from_value(tab.eval("heard")).expect("what was heard");
    for pair in heard.windows(2) {
        assert!(pair[1].0 - pair[0].0 > 4_900.0, "{heard:?}");
    }
    let regions = live_regions(&tab);
    assert_eq!(regions, ["status: 30 likes"], "one place speaks");
}

#[test]
fn a_screen_reader_hears_what_was_refused() {
    let data = data_dir();
    let server = Server::start(data.path());
    let browser = Browser::launch();
    let tab = browser.open(&server.url);
    tab.until_live();
    tab.eval("document.querySelector('[data-message]').textContent = 'A like was not counted.'");
    tab.until("document.querySelector('.voice').textContent === 'A like was not counted.'");
}

/// The places that a screen reader reads aloud when they change: their role and text.
fn live_regions(tab: &crate::chromium::Tab<'_>) -> Vec<String> {
    let tree = tab.call("Accessibility.getFullAXTree", json!({}));
    let nodes = tree["nodes"].as_array().expect("nodes");
    let property = |node: &Value, name: &str| {
        let properties = node["properties"].as_array().cloned().unwrap_or_default();
        properties.iter().find(|property| property["name"] == name).map(|property| property["value"]["value"].clone())
    };
    let text = |node: &Value| {
        let ids = node["childIds"].as_array().cloned().unwrap_or_default();
        let children = nodes.iter().filter(|child| ids.contains(&child["nodeId"]));
        children.filter_map(|child| child["name"]["value"].as_str()).collect::<String>()
    };
    let speaks = |node: &&Value| property(node, "live").is_some_and(|live| live != "off");
    let region = |node: &Value| format!("{}: {}", node["role"]["value"].as_str().unwrap_or_default(), text(node));
    nodes.iter().filter(speaks).map(region).collect()
}
