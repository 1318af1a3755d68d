//! The page at many sizes, in light and dark. The pictures are in `target/screenshots/` for people to look at.

use std::path::Path;

use crate::chromium::{Browser, TAB, Tab};
use crate::common::{Server, data_dir};
use crate::likewise::fill;

const SIZES: [(u32, u32); 5] = [(320, 568), (390, 844), (768, 1024), (1280, 800), (740, 360)];

#[test]
fn the_page_fits_every_window_in_light_and_dark() {
    let data = data_dir();
    fill(data.path(), "likes", 42);
    let server = Server::start(data.path());
    let browser = Browser::launch();
    let tab = browser.open(&server.url);
    tab.until_live();
    let store =
        browser.open(&format!("{}/s/a-store-with-a-name-as-long-as-a-name-can-be-0123456789-0123456/", server.url));
    store.until_live();
    browser.network_may_fail();
    let error = browser.open(&format!("{}/nowhere", server.url));
    for (tab, name) in [(&tab, "page"), (&store, "store"), (&error, "error")] {
        tab.to_front();
        picture_every_size(tab, name);
    }
}

#[test]
fn every_count_fits_the_narrowest_window() {
    let data = data_dir();
    let server = Server::start(data.path());
    let browser = Browser::launch();
    let tab = browser.open(&server.url);
    tab.until_live();
    for width in [320, 768] {
        tab.shown_as(width, 568, false);
        for digits in 1..=20 {
            tab.eval(&format!(
                "document.getElementById('count').textContent = '9'.repeat({digits});
                 document.querySelector('.tally').dataset.digits = {digits};"
            ));
            fits(&tab, &format!("{digits} digits"));
            let [left, _, size, _] = tab.place("#count");
            assert!(left >= 0.0 && left + size <= f64::from(width), "{digits} digits from {left}, {size} px long");
        }
        picture(&tab, &format!("digits-{width}"));
    }
}

#[test]
fn words_about_trouble_fit_the_narrowest_window() {
    let data = data_dir();
    fill(data.path(), "likes", 42);
    let server = Server::start(data.path());
    let browser = Browser::launch();
    browser.network_may_fail();
    let tab = browser.open(&server.url);
    tab.until_live();
    server.kill();
    tab.like();
    tab.until("document.getElementById('message').textContent !== ''");
    picture_every_size(&tab, "offline");
}

#[test]
fn the_page_can_be_used_in_every_way_of_looking() {
    let data = data_dir();
    fill(data.path(), "likes", 12_345);
    let server = Server::start(data.path());
    let browser = Browser::launch();
    let tab = browser.open(&server.url);
    tab.until_live();
    tab.press(&TAB);
    for (width, height) in [(2560, 1440), (1280, 800), (320, 568), (320, 200)] {
        for scheme in ["light", "dark"] {
            tab.shown_as(width, height, scheme == "dark");
            for (feature, value) in
                [("forced-colors", "active"), ("prefers-contrast", "more"), ("forced-colors", "none")]
            {
                tab.prefers_all(&[("prefers-color-scheme", scheme), (feature, value)]);
                fits(&tab, &format!("{feature} {value} at {width} px"));
                picture(&tab, &format!("{feature}-{value}-{width}x{height}-{scheme}"));
            }
        }
        tab.eval("document.documentElement.dir = 'rtl'");
        fits(&tab, &format!("right to left at {width} px"));
        picture(&tab, &format!("rtl-{width}x{height}"));
        tab.eval("document.documentElement.dir = ''");
    }

    tab.shown_as(2560, 1440, false);
    let [_, _, _, height] = tab.place(".heart");
    assert!(height > 1440.0 / 3.0, "a heart of {height} px is lost on a large screen");

    // The lower edge of the focus ring is where the ground of the number would be, if that were in front.
    tab.shown_as(320, 200, false);
    tab.prefers("forced-colors", "active");
    let [left, top, width, height] = tab.place(".heart");
    let edge = || tab.picture_of([left + width / 3.0, top + height + 4.0, width / 3.0, 3.0]);
    let with_number = edge();
    tab.eval("document.querySelector('.tally').style.visibility = 'hidden'");
    assert_eq!(tab.difference(&with_number, &edge()), 0.0, "the number hides the focus ring");
}

#[test]
fn history_and_stores_fit_every_window_in_light_and_dark() {
    let data = data_dir();
    fill(data.path(), "likes", 12_345);
    for n in 0..60 {
        fill(data.path(), &format!("store-{n}"), 1);
    }
    fill(data.path(), "a-store-with-a-name-as-long-as-a-name-can-be-0123456789-0123456", 3);
    let server = Server::start(data.path());
    let browser = Browser::launch();
    let history = browser.open(&format!("{}/history", server.url));
    history.until("document.querySelector('h1').textContent === '12,345 likes'");
    let stores = browser.open(&format!("{}/stores?name=My+store", server.url));
    let store = browser
        .open(&format!("{}/s/a-store-with-a-name-as-long-as-a-name-can-be-0123456789-0123456/history", server.url));
    store.eval("document.querySelector('details').open = true");
    for (tab, name) in [(&history, "history"), (&stores, "stores"), (&store, "store-history")] {
        tab.to_front();
        picture_every_size(tab, name);
        tab.eval("document.documentElement.dir = 'rtl'");
        tab.shown_as(390, 844, false);
        fits(tab, &format!("{name} from right to left"));
        picture(tab, &format!("{name}-rtl"));
        if name == "history" {
            let (today, bar) = (tab.place(".ends span:last-child"), tab.place("g g:last-child .bar"));
            assert!(today[0] <= bar[0] && bar[0] + bar[2] <= today[0] + today[2], "{today:?} is not below {bar:?}");
        }
        tab.eval("document.documentElement.dir = ''");
        tab.prefers_all(&[("forced-colors", "active"), ("prefers-color-scheme", "dark")]);
        picture(tab, &format!("{name}-forced-colors"));
    }
}

pub(crate) fn picture_every_size(tab: &Tab<'_>, name: &str) {
    for (width, height) in SIZES {
        for (dark, scheme) in [(false, "light"), (true, "dark")] {
            tab.shown_as(width, height, dark);
            fits(tab, &format!("{name} at {width} px"));
            picture(tab, &format!("{name}-{width}-{scheme}"));
        }
    }
}

pub(crate) fn fits(tab: &Tab<'_>, what: &str) {
    let [shown, needed] = ["innerWidth", "document.scrollingElement.scrollWidth"]
        .map(|size| tab.eval(size).as_u64().expect("a whole number"));
    assert!(needed <= shown, "{what}: {needed} px wide in a window of {shown} px");
}

pub(crate) fn picture(tab: &Tab<'_>, name: &str) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/screenshots");
    std::fs::create_dir_all(&directory).expect("a directory for pictures");
    std::fs::write(directory.join(format!("{name}.png")), tab.screenshot()).expect("room for a picture");
}
