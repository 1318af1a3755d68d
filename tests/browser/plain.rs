//! The form, with and without JavaScript, and the browser's history.

use crate::chromium::{Browser, Tab};
use crate::common::{Server, data_dir};
use crate::likewise::stored;

#[test]
fn without_javascript_a_click_posts_the_form_and_shows_the_page_again() {
    let data = data_dir();
    let server = Server::start(data.path());
    let browser = Browser::launch();
    let tab = browser.blank();
    tab.without_scripts();
    tab.go(&server.url);
    assert_eq!(tab.count(), 0);
    assert!(tab.text("noscript").contains("Without JavaScript"), "{}", tab.text("noscript"));
    for count in 1..=3 {
        tab.leave_by(Tab::like);
        assert_eq!(tab.count(), count);
        assert_eq!(tab.eval("location.pathname"), "/");
    }
    tab.leave_by(|tab| drop(tab.eval("location.reload()")));
    assert_eq!(tab.count(), 3, "a reload posts nothing");
    assert_eq!(stored(data.path(), "likes").len(), 3);
    assert_eq!(server.clicks("repeated"), 0);
}

#[test]
fn without_javascript_the_list_of_stores_leads_to_a_new_one_and_back() {
    let data = data_dir();
    let server = Server::start(data.path());
    let browser = Browser::launch();
    let tab = browser.blank();
    tab.without_scripts();
    tab.go(&server.url);
    let follow = |tab: &Tab<'_>, words: &str| {
        tab.leave_by(|tab| {
            let link = format!("[...document.links].find((link) => link.textContent.trim() === '{words}').click()");
            drop(tab.eval(&link));
        });
    };
    let open = |tab: &Tab<'_>, name: &str| {
        tab.type_into("#name", name);
        tab.leave_by(|tab| tab.click(".ask button"));
    };
    follow(&tab, "Stores");
    open(&tab, "My Store");
    assert!(tab.text("#rule").contains("“My Store” can’t be the name of a store."), "{}", tab.text("#rule"));
    open(&tab, "my-store");
    assert_eq!(tab.eval("location.pathname"), "/s/my-store/");
    assert!(!server.store("my-store").exists(), "looking makes nothing");
    tab.leave_by(Tab::like);
    follow(&tab, "History");
    assert_eq!(tab.eval("location.pathname"), "/s/my-store/history");
    assert_eq!(tab.text("h1"), "1 like");
    follow(&tab, "Stores");
    assert!(tab.text(".stores").contains("my-store 1 like"), "{}", tab.text(".stores"));
    follow(&tab, "my-store");
    assert_eq!(tab.count(), 1);
}

#[test]
fn trust_57_without_javascript_back_and_a_click_is_a_new_like() {
    let data = data_dir();
    let server = Server::start(data.path());
    let browser = Browser::launch();
    for address in ["/", "/?from=mail", "/s/work/", "/s/work/?from=mail#top"] {
        let tab = browser.blank();
        tab.without_scripts();
        tab.go(&format!("{}{address}", server.url));
        let before = tab.count();
        for clicks in 1..=3 {
            tab.leave_by(Tab::like);
            assert_eq!(tab.count(), before + clicks, "{address}");
            tab.back();
        }
    }
    assert_eq!(server.clicks("repeated"), 0);
    assert_eq!(server.clicks("stored"), 12);
}

#[test]
fn trust_57_back_and_a_click_is_a_new_like() {
    let data = data_dir();
    let server = Server::start(data.path());
    let browser = Browser::launch();
    let tab = browser.open(&format!("{}/?from=mail", server.url));
    let elsewhere = format!("{}/s/other/", server.url);
    for count in 1..=3 {
        tab.until_live();
        tab.like();
        tab.until_sent();
        tab.until_count(count);
        tab.go(&elsewhere);
        tab.back();
    }
    tab.until_count(3);
    let ids = stored(data.path(), "likes");
    assert_eq!(ids.len(), 3);
    assert_eq!(server.clicks("repeated"), 0);
}

#[test]
fn a_click_before_the_script_runs_and_clicks_after_it_all_count() {
    let data = data_dir();
    let server = Server::start(data.path());
    let browser = Browser::launch();
    let tab = browser.blank();
    tab.without_scripts();
    tab.go(&server.url);
    tab.leave_by(Tab::like);
    tab.with_scripts();
    tab.leave_by(Tab::like);
    assert_eq!(tab.count(), 2);
    tab.until_live();
    tab.like();
    tab.until_sent();
    tab.until_count(3);
    assert_eq!(server.clicks("stored"), 3);
}
