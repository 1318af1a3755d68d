//! The example app in the browser: to-dos, with parameters, several fragments, and forms inside them.

use likewise::Options;
use likewise::sync::{TokenSource, UpstreamOptions};
use tempfile::TempDir;

use crate::chromium::{Browser, ENTER, Tab};
use crate::common::{Server, data_dir, served};
use crate::look::picture_every_size;
use crate::sync::token;

#[path = "../../examples/todo/main.rs"]
mod app;

/// The titles of the open to-dos, in the order of the page.
const TITLES: &str = "[...document.querySelectorAll('#open summary')].map((title) => title.textContent.trim()).join()";

/// The app, served on data of its own until this goes out of scope.
struct Served {
    url: String,
    _app: served::Served,
    _data: TempDir,
}

impl Served {
    fn start() -> Self {
        Self::start_with(None)
    }

    /// As a device of a hub, or alone.
    fn start_with(upstream: Option<UpstreamOptions>) -> Self {
        let data = data_dir();
        let options = Options { data: Some(data.path().to_owned()), upstream, ..Options::default() };
        let app = served::Served::start(app::app(), options);
        Self { url: app.url.clone(), _app: app, _data: data }
    }

    /// Adds to-dos as a program would, in this order.
    fn fill(&self, titles: &[&str]) {
        for title in titles {
            let body = form_urlencoded::Serializer::new(String::new()).append_pair("title", title).finish();
            let request = ureq::post(format!("{}/add", self.url)).header("accept", "application/json");
            let answer = request.content_type("application/x-www-form-urlencoded").send(body);
            assert_eq!(answer.expect("it is added").status(), 204);
        }
    }
}

fn add(tab: &Tab<'_>, title: &str) {
    tab.to_front();
    tab.type_into(".add [name=title]", title);
    tab.press(&ENTER);
}

fn until_titles(tab: &Tab<'_>, titles: &str) {
    tab.until(&format!("{TITLES} === '{titles}'"));
}

#[test]
fn trust_41_to_dos_are_added_found_and_done_in_twelve_tabs_with_twelve_searches() {
    let app = Served::start();
    let browser = Browser::launch();
    let searches = ["milk", "bread", "ea", "m", "il", "b", "r", "e", "a", "d", "k", ""];
    let tabs = searches.map(|search| browser.open(&format!("{}/?q={search}", app.url)));
    add(&tabs[0], "milk");
    assert_eq!(tabs[0].eval("document.querySelector('[name=title]').value"), "");
    tabs[1].until("document.querySelector('h1 .left').textContent === '1'");
    add(&tabs[1], "bread");
    for (tab, search) in tabs.iter().zip(searches) {
        let expected: Vec<&str> = ["bread", "milk"].into_iter().filter(|title| title.contains(search)).collect();
        until_titles(tab, &expected.join(","));
        tab.until("document.querySelector('.left').textContent === '2'");
        tab.until_live();
        tab.until("document.querySelectorAll('[data-waiting] li').length === 0");
    }
    // A form inside a fragment has only the id that the script mints.
    assert_eq!(tabs[0].eval("document.querySelectorAll('#open [name=id]').length"), 0);
    tabs[0].to_front();
    tabs[0].click("#open .check");
    for (tab, search) in tabs.iter().zip(searches) {
        until_titles(tab, if "bread".contains(search) { "bread" } else { "" });
        tab.until(&format!("!!document.querySelector('#finished') === {}", "milk".contains(search)));
    }
    tabs[0].until_sent();
}

#[test]
fn trust_69_a_to_do_that_was_refused_comes_back_with_the_reason() {
    let app = Served::start();
    let browser = Browser::launch();
    browser.network_may_fail();
    let tab = browser.open(&app.url);
    tab.until_live();
    let long = "x".repeat(201);
    add(&tab, &long);
    tab.until(&format!("document.querySelector('[name=title]').value === '{long}'"));
    let said = tab.text("[data-message]");
    let short = "x".repeat(60);
    assert_eq!(said, format!("“{short}…” was not saved. This is 201 characters long. A title has at most 200."));
    add(&tab, "xylophone");
    until_titles(&tab, "xylophone");
    tab.until_sent();
    assert_eq!(tab.text("[data-message]"), "");
    assert_eq!(tab.eval("localStorage.length"), 0);
}

#[test]
fn a_text_that_is_longer_than_a_form_carries_comes_back_and_holds_up_nothing() {
    let app = Served::start();
    let browser = Browser::launch();
    browser.network_may_fail();
    let tab = browser.open(&app.url);
    tab.until_live();
    tab.eval("document.querySelector('.add [name=title]').value = 'x'.repeat(1_000_000)");
    tab.click(".add button");
    tab.until("document.querySelector('.add [name=title]').value.length === 1_000_000");
    let said = tab.text("[data-message]");
    assert!(said.contains("was not saved. What you wrote is too long") && said.len() < 400, "{said}");
    add(&tab, "xylophone");
    until_titles(&tab, "xylophone");
    tab.until_sent();
    assert_eq!(tab.eval("localStorage.length"), 0);
}

#[test]
fn without_javascript_to_dos_are_added_moved_and_done_on_the_page_that_posted() {
    let app = Served::start();
    let browser = Browser::launch();
    let tab = browser.blank();
    tab.without_scripts();
    tab.go(&format!("{}/?q=mi", app.url));
    for title in ["mint", "milk", "bread"] {
        tab.eval(&format!("document.querySelector('[name=title]').value = '{title}'"));
        tab.leave_by(|tab| tab.click(".add button"));
        assert_eq!(tab.eval("location.search"), "?q=mi");
    }
    assert_eq!(tab.eval(TITLES), "milk,mint");
    tab.leave_by(|tab| tab.click("#open li:first-child .moves form:last-child button"));
    assert_eq!(tab.eval(TITLES), "mint,milk");
    tab.leave_by(|tab| tab.click("#open .check"));
    assert_eq!(tab.eval(TITLES), "milk");
    tab.leave_by(|tab| tab.click("#finished .check"));
    assert_eq!(tab.eval(TITLES), "mint,milk");
}

#[test]
fn without_javascript_a_refusal_shows_what_was_typed_and_nothing_else() {
    let app = Served::start();
    app.fill(&["bread", "milk"]);
    let browser = Browser::launch();
    browser.network_may_fail();
    let tab = browser.blank();
    tab.without_scripts();
    tab.go(&format!("{}/?q=milk", app.url));
    tab.eval("document.querySelector('.rename [name=title]').value = 'x'.repeat(201)");
    tab.leave_by(|tab| drop(tab.eval("document.querySelector('.rename').submit()")));
    assert_eq!(
        tab.eval("[...document.querySelectorAll('label')].map((it) => it.textContent.trim().slice(0, 5)).join()"),
        "title"
    );
    assert_eq!(tab.eval("document.querySelector('textarea').value.length"), 201);
    picture_every_size(&tab, "todo-refused");
    tab.shown_as(1280, 800, false);
    tab.eval("document.querySelector('textarea').value = 'oat milk'");
    tab.leave_by(|tab| tab.click(".again button"));
    assert_eq!(tab.eval(TITLES), "oat milk");
    assert_eq!(tab.eval("location.search"), "?q=milk");

    // What has no text field can't be corrected.
    tab.eval("document.querySelector('#open [name=todo]').value = '01890a5d-ac96-774b-bcce-b302099a8057'");
    tab.leave_by(|tab| tab.click("#open .check"));
    assert!(tab.text("#detail").contains("isn't here"), "{}", tab.text("#detail"));
    assert_eq!(tab.eval("document.querySelectorAll('form, label').length"), 0);
}

#[test]
fn a_to_do_that_moves_takes_along_what_somebody_types_in_it() {
    let app = Served::start();
    app.fill(&["c", "b", "a"]);
    let browser = Browser::launch();
    let [one, two] = [browser.open(&app.url), browser.open(&app.url)];
    one.until_live();
    one.to_front();
    one.click("#open li:nth-child(2) summary");
    one.type_into("#open details[open] [name=title]", "b and mo");
    two.to_front();
    two.until_live();
    two.click("#open li:nth-child(2) .moves form:first-child button");
    until_titles(&two, "b,a,c");
    one.to_front();
    until_titles(&one, "b,a,c");
    assert_eq!(one.eval("document.querySelector('#open li:first-child [name=title]').value"), "b and mo");
    assert_eq!(one.eval("document.activeElement.value"), "b and mo");
    one.press(&ENTER);
    until_titles(&two, "b and mo,a,c");
    one.until_sent();
    assert_eq!(one.eval("document.querySelectorAll('#open details[open]').length"), 0, "it is closed once it is said");
}

#[test]
fn a_to_do_can_be_dragged_to_another_place() {
    let app = Served::start();
    app.fill(&["c", "b", "a"]);
    let browser = Browser::launch();
    let tab = browser.open(&app.url);
    tab.until_live();
    for (from, to, at, expected) in [(1, 3, "bottom - 1", "b,c,a"), (3, 1, "top + 1", "a,b,c")] {
        tab.eval(&format!(
            "(() => {{
               const item = (nth) => document.querySelector(`#open li:nth-child(${{nth}}) summary`);
               const box = item({to}).closest('li').getBoundingClientRect();
               const event = (name) => new DragEvent(name, {{
                 bubbles: true, cancelable: true, dataTransfer: new DataTransfer(), clientY: box.{at},
               }});
               item({from}).dispatchEvent(event('dragstart'));
               for (const name of ['dragover', 'drop', 'dragend']) item({to}).dispatchEvent(event(name));
             }})()"
        ));
        until_titles(&tab, expected);
    }
    assert_eq!(tab.eval("document.querySelectorAll('[data-drop]').length"), 0);
    tab.until_sent();
}

#[test]
fn two_devices_have_one_list_and_go_on_without_the_hub() {
    let hub_data = data_dir();
    let [laptop_token, phone_token] = ["laptop", "phone"].map(|device| token(hub_data.path(), device));
    let hub = Server::start(hub_data.path());
    let listen = format!("127.0.0.1:{}", hub.port());
    let device = |token: String| {
        let token = TokenSource::File(token.into());
        Served::start_with(Some(UpstreamOptions { url: hub.url.clone(), token, root_certificate: None }))
    };
    let (laptop_app, phone_app) = (device(laptop_token), device(phone_token));
    let browser = Browser::launch();
    let [laptop, phone] = [&laptop_app, &phone_app].map(|app| browser.open(&app.url));
    for page in [&laptop, &phone] {
        page.until_live();
        page.until("document.getElementById('status').dataset.state === 'online'");
    }
    add(&laptop, "milk");
    until_titles(&phone, "milk");
    hub.kill();
    for page in [&laptop, &phone] {
        page.to_front();
        page.until("document.getElementById('status').dataset.state === 'offline'");
    }
    add(&laptop, "bread");
    until_titles(&laptop, "bread,milk");
    laptop.until("document.getElementById('status').textContent.includes('1 to-do waiting, offline since')");
    phone.to_front();
    phone.click("#open .check");
    until_titles(&phone, "");
    let _hub = Server::start_with(hub_data.path(), &["--listen", &listen]);
    for page in [&laptop, &phone] {
        page.to_front();
        until_titles(page, "bread");
        page.until("document.querySelector('#finished li')?.textContent.trim() === 'milk'");
        page.until("document.getElementById('status').textContent.includes('All synced')");
    }
}

#[test]
fn the_list_fits_every_window_in_light_and_dark() {
    let app = Served::start();
    app.fill(&[
        "Write to Anna",
        "Return the library books, all four of them, before they close on Friday at six #town",
        "Buy oat milk #shop",
        "Water the plants #home",
        &"w".repeat(60),
        "Mend the reading lamp #home",
    ]);
    let browser = Browser::launch();
    let tab = browser.open(&app.url);
    tab.until_live();
    tab.click("#open li:last-child .check");
    tab.until("document.querySelectorAll('#finished li').length === 1");
    tab.click("#open li:nth-child(3) summary");
    picture_every_size(&tab, "todo");
    let found = browser.open(&format!("{}/?tag=home", app.url));
    found.until_live();
    picture_every_size(&found, "todo-found");
    browser.network_may_fail();
    let lost = browser.open(&format!("{}/nowhere", app.url));
    picture_every_size(&lost, "todo-error");
}
