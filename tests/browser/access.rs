//! Keyboards, screen readers, reduced motion, and a layout that doesn't jump.

use serde_json::{Value, json};

use crate::chromium::{Browser, ENTER, SPACE, TAB};
use crate::common::{Server, data_dir};
use crate::likewise::fill;

#[test]
fn the_keyboard_likes() {
    let data = data_dir();
    let server = Server::start(data.path());
    let browser = Browser::launch();
    let tab = browser.open(&server.url);
    tab.until_live();
    tab.press(&TAB);
    assert_eq!(tab.eval("document.activeElement.className"), "heart");
    assert_eq!(tab.eval("getComputedStyle(document.activeElement).outlineStyle"), "solid");
    tab.press(&ENTER);
    tab.until_count(1);
    tab.press(&SPACE);
    tab.until_count(2);
    tab.hold(&ENTER, 5);
    tab.until_count(3);
    tab.hold(&SPACE, 5);
    tab.until_count(4);
    tab.until_sent();
    assert_eq!(server.clicks("stored"), 4);
}

#[test]
fn the_accessibility_tree_names_the_button_and_the_count() {
    let data = data_dir();
    fill(data.path(), "likes", 42);
    let server = Server::start(data.path());
    let browser = Browser::launch();
    let tab = browser.open(&server.url);
    tab.until_live();
    let tree = tab.call("Accessibility.getFullAXTree", json!({}));
    let nodes = tree["nodes"].as_array().expect("nodes");
    let find = |role: &str, name: &str| {
        let fits = |node: &&Value| node["role"]["value"] == role && node["name"]["value"] == name;
        let found: Vec<&Value> = nodes.iter().filter(fits).collect();
        assert_eq!(found.len(), 1, "{role} {name:?} in {nodes:#?}");
        found[0]
    };
    find("button", "Like");
    find("heading", "Likewise");
    let count = find("status", "likes");
    let content = find("StaticText", "42");
    assert!(count["childIds"].as_array().is_some_and(|ids| ids.contains(&content["nodeId"])), "{count}");
    find("StaticText", "Saved on this device");
    assert_eq!(tab.eval("document.documentElement.lang"), "en");
}

#[test]
fn the_accessibility_tree_of_the_history_has_numbers_and_a_table() {
    let data = data_dir();
    fill(data.path(), "likes", 12_345);
    let server = Server::start_with(data.path(), &["--listen", "127.0.0.1:0", "--device", "phone"]);
    let browser = Browser::launch();
    let tab = browser.open(&server.url);
    tab.leave_by(|tab| drop(tab.eval("document.querySelector('.views a').click()")));
    assert_eq!(tab.eval("location.pathname"), "/history");
    tab.until("document.querySelector('h1').textContent === '12,345 likes'");
    assert_eq!(tab.eval("document.title"), "History · Likewise");
    assert!(!tab.text("main").contains("2,0"), "years are no counts: {}", tab.text("main"));
    tab.eval("document.querySelector('details').open = true");
    let tree = tab.call("Accessibility.getFullAXTree", json!({}));
    let nodes = tree["nodes"].as_array().expect("nodes");
    let has = |role: &str, name: &str| {
        let fits = |node: &&Value| node["role"]["value"] == role && node["name"]["value"] == name;
        assert_eq!(nodes.iter().filter(fits).count(), 1, "{role} {name:?} in {nodes:#?}");
    };
    has("heading", "12,345 likes");
    has("list", "Who brought them");
    has("image", "Bars, one a day. The table below has the numbers.");
    has("columnheader", "Likes");
    has("cell", "12,345");
    has("navigation", "Views");
}

#[test]
fn another_digit_moves_nothing() {
    let stores = [("n0", 0), ("n9", 9), ("n99", 99), ("n999", 999), ("n9999", 9_999), ("n99999", 99_999)];
    let data = data_dir();
    for (store, count) in stores {
        fill(data.path(), store, count);
    }
    let server = Server::start(data.path());
    let browser = Browser::launch();
    let tab = browser.blank();
    for (width, height) in [(320, 640), (1280, 800)] {
        tab.shown_as(width, height, false);
        for (store, count) in stores {
            tab.go(&format!("{}/s/{store}/", server.url));
            tab.until_live();
            let count = count as u64 + u64::from(width == 1280);
            assert_eq!(tab.count(), count);
            let places = || [".heart", ".tally", ".unit", "#status"].map(|selector| tab.place(selector));
            let before = places();
            tab.like();
            tab.until_sent();
            tab.until_count(count + 1);
            let after = places();
            let top_and_height = |places: [[f64; 4]; 4]| places.map(|[_, top, _, height]| [top, height]);
            assert_eq!(top_and_height(before), top_and_height(after), "{count} and one more at {width} px");
            assert_eq!(before[0], after[0], "the heart moved between {count} and one more at {width} px");
        }
    }
}

#[test]
fn who_wants_less_motion_gets_a_flash() {
    let data = data_dir();
    let server = Server::start(data.path());
    let browser = Browser::launch();
    let tab = browser.blank();
    let moves = |preference: &str, last: &str| -> Vec<String> {
        tab.prefers("prefers-reduced-motion", preference);
        tab.go(&server.url);
        tab.until_live();
        tab.eval(
            "window.moves = new Set();
             window.echoes = new Set();
             addEventListener('animationstart', (event) => moves.add(event.animationName));
             addEventListener('animationstart', (event) => echoes.add(event.target.getAttribute('class')));
             addEventListener('transitionrun', (event) => moves.add(event.propertyName)); 0",
        );
        tab.press(&TAB);
        tab.press(&ENTER);
        tab.until(&format!("moves.has('{last}')"));
        server.like("");
        tab.until("echoes.has('echo sent') && echoes.has('echo received')");
        tab.until("document.querySelectorAll('.echo').length === 0");
        serde_json::from_value(tab.eval("[...moves].sort()")).expect("names")
    };
    let all = moves("no-preference", "sent");
    assert!(["received", "sent", "transform"].iter().all(|name| all.iter().any(|known| known == name)), "{all:?}");
    assert!(all.iter().any(|name| name.starts_with("beat-")), "{all:?}");
    assert_eq!(moves("reduce", "flash"), ["flash"]);

    for direction in ["sent", "received"] {
        tab.until("document.querySelectorAll('.echo').length === 0");
        let [x, y, width, height] = tab.place(".heart");
        let around = [x - 20.0, y - 20.0, width + 40.0, height + 40.0];
        let still = tab.picture_of(around);
        // The flash is held at its start until a picture of it is taken.
        tab.eval(
            "addEventListener('animationstart', ({ target }) => {
               for (const flash of target.getAnimations()) { flash.pause(); flash.currentTime = 0; }
               window.paused = target;
             }, { once: true }); 0",
        );
        if direction == "sent" {
            tab.press(&ENTER);
        } else {
            server.like("");
        }
        tab.until(&format!("window.paused?.classList.contains('{direction}')"));
        let flash = tab.picture_of(around);
        tab.eval("window.paused.getAnimations()[0].play()");
        let difference = tab.difference(&still, &flash);
        assert!(difference > 0.01, "{difference} of the heart changed when a like was {direction}");
    }
}
