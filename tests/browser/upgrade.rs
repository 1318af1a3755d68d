//! Pages that are open while their program is replaced by a newer one, as `docs/evolution.md` tells authors.

use std::path::Path;

use likewise::engine::{Event, Query, Schema};
use likewise::{App, Html, Options, Page};
use maud::{Markup, html};
use serde::{Deserialize, Serialize};

use crate::chromium::{Browser, ENTER, Tab};
use crate::common::data_dir;
use crate::common::served::Served;

#[derive(Serialize, Deserialize)]
struct ItemAdded {
    title: String,
}
impl Event for ItemAdded {
    const NAME: &'static str = "ItemAdded";
}

/// As pages of before know it.
#[derive(Serialize, Deserialize)]
struct DueSet {
    day: String,
}
impl Event for DueSet {
    const NAME: &'static str = "DueSet";
}

/// As the new program wants it.
#[derive(Serialize, Deserialize)]
struct DueAt {
    day: String,
    hour: u32,
}
impl Event for DueAt {
    const NAME: &'static str = "DueAt";
}

fn schema() -> Schema {
    Schema::new("CREATE TABLE item (n INTEGER PRIMARY KEY, title TEXT NOT NULL) STRICT")
        .on(|ItemAdded { title }, db| db.execute("INSERT INTO item (title) VALUES (?1)", [title]))
        .on(|DueSet { day }, db| db.execute("INSERT INTO item (title) VALUES (?1)", [day]))
        .on(|DueAt { day, .. }, db| db.execute("INSERT INTO item (title) VALUES (?1)", [day]))
}

fn titles() -> Query<Vec<String>> {
    Query::rows("SELECT title FROM item ORDER BY n", |row| Ok(row.get(0)?))
}

fn shared(app: App) -> App {
    app.nouns("item", "items").form::<ItemAdded>("add").live(
        "titles",
        |_| Ok(titles()),
        |titles, _| html! { p #titles { (titles.join(",")) } },
    )
}

fn old() -> App {
    shared(App::new("list", schema))
        .form::<DueSet>("due")
        .form::<ItemAdded>("jot")
        .live("first", |_| Ok(titles()), |titles, _| Html::text(titles.first().cloned().unwrap_or_default()))
        .page(|page: Page| {
            document(&page, html! {
                (page.live("first"))
                form method="post" action=(page.to("due")) { input name="day" autocomplete="off"; button { "Set" } }
                form method="post" action=(page.to("jot")) { input name="title" autocomplete="off"; button { "Jot" } }
            })
        })
}

/// Without the fragment `first` and the form `jot`, and with a field more in `due`.
fn new() -> App {
    shared(App::new("list", schema)).form::<DueAt>("due").page(|page: Page| document(&page, html! {}))
}

fn document(page: &Page, rest: Markup) -> Markup {
    html! { (maud::DOCTYPE) html { head { (page.head()) title { "List" } } body {
        form method="post" action=(page.to("add")) { input name="title" autocomplete="off"; button { "Add" } }
        ul data-waiting {}
        (page.live("titles")) (rest) (page.message()) (page.status())
    } } }
}

/// Serves a version of the app on `port`, or on a free one if that is 0.
fn serve(app: App, data: &Path, port: u16) -> Served {
    Served::start_on(port, app, Options { data: Some(data.to_owned()), ..Options::default() })
}

fn submit(tab: &Tab<'_>, field: &str, text: &str) {
    tab.to_front();
    tab.type_into(field, text);
    tab.press(&ENTER);
}

fn until_titles(tab: &Tab<'_>, titles: &str) {
    tab.until(&format!("document.getElementById('titles').textContent === '{titles}'"));
}

fn until_said(tab: &Tab<'_>, words: &str) {
    tab.until(&format!("document.querySelector('[data-message]').textContent.includes('{words}')"));
}

const ADD: &str = "form[action$=add] input";
const DUE: &str = "form[action$=due] input";
const JOT: &str = "form[action$=jot] input";

#[test]
fn an_open_page_outlives_an_update_of_its_program() {
    let data = data_dir();
    let served = serve(old(), data.path(), 0);
    let (port, url) = (served.port, served.url.clone());
    let browser = Browser::launch();
    browser.network_may_fail();
    let tab = browser.open(&url);
    tab.until_live();
    submit(&tab, ADD, "milk");
    until_titles(&tab, "milk");
    drop(served);
    let served = serve(new(), data.path(), port);
    tab.to_front();
    tab.until_live();

    // What both know goes on.
    submit(&tab, ADD, "bread");
    until_titles(&tab, "milk,bread");
    // A fragment that is no more stays as it was, and the page says so.
    until_said(&tab, "Part of this page can’t be kept up to date any more. Reload it.");
    assert_eq!(tab.text("[data-live=first]"), "milk");
    // What doesn't fit comes back, with the reason, and holds nothing up.
    submit(&tab, DUE, "Monday");
    tab.until(&format!("document.querySelector('{DUE}').value === 'Monday'"));
    until_said(&tab, "“Monday” was not saved.");
    until_said(&tab, "hour");
    submit(&tab, ADD, "eggs");
    until_titles(&tab, "milk,bread,eggs");
    tab.until_sent();

    // A form that is no more: the post is kept and holds nothing up, also in a page of the new program.
    submit(&tab, JOT, "tea");
    submit(&tab, ADD, "salt");
    until_titles(&tab, "milk,bread,eggs,salt");
    until_said(&tab, "1 item waiting to be saved. Trying again… This version has no form “jot”.");
    tab.close();
    let tab = browser.open(&url);
    tab.until_live();
    tab.until("document.documentElement.dataset.unsent === '1'");
    submit(&tab, ADD, "rice");
    until_titles(&tab, "milk,bread,eggs,salt,rice");
    // It arrives once there is a form of that name again.
    drop(served);
    let _served = serve(old(), data.path(), port);
    tab.to_front();
    until_titles(&tab, "milk,bread,eggs,salt,rice,tea");
    tab.until_sent();
}
