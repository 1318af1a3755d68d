//! Another app in the browser: to-dos, with parameters, several fragments, and forms inside them.

use std::net::TcpListener;

use likewise::engine::{Event, Query, Schema};
use likewise::{App, Options, Page, Params, Refusal, Render};
use maud::{DOCTYPE, Markup, html};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::oneshot;

use crate::chromium::{Browser, ENTER, Tab};
use crate::common::data_dir;

#[derive(Serialize, Deserialize)]
struct TodoAdded {
    title: String,
}

impl Event for TodoAdded {
    const NAME: &'static str = "TodoAdded";
}

#[derive(Serialize, Deserialize)]
struct TodoDone {
    todo: String,
}

impl Event for TodoDone {
    const NAME: &'static str = "TodoDone";
}

#[derive(Deserialize)]
struct Search {
    #[serde(default)]
    q: String,
}

fn schema() -> Schema {
    Schema::new("CREATE TABLE todo (id TEXT PRIMARY KEY, title TEXT NOT NULL CHECK (length(title) > 1)) STRICT")
        .on(|TodoAdded { title }, db| db.execute("INSERT INTO todo VALUES (?1, ?2)", (db.id().to_string(), title)))
        .on(|TodoDone { todo }, db| db.execute("DELETE FROM todo WHERE id = ?1", [todo]))
}

fn open() -> Query<Vec<(String, String)>> {
    Query::rows("SELECT id, title FROM todo ORDER BY id", |row| Ok((row.get("id")?, row.get("title")?)))
}

fn found(params: &Params) -> Result<Query<Vec<String>>, Refusal> {
    let Search { q } = params.get()?;
    Ok(Query::rows("SELECT title FROM todo WHERE instr(title, ?1) ORDER BY id", |row| Ok(row.get("title")?)).bind(q))
}

fn list(todos: Vec<(String, String)>, r: Render) -> Markup {
    html! { ul #open { @for (id, title) in todos {
        li { (title) form method="post" action=(r.to("finish")) {
            (r.id()) input type="hidden" name="todo" value=(id); button { "Done" }
        } }
    } } }
}

fn page(page: Page) -> Markup {
    html! { (DOCTYPE) html { head { (page.head()) title { "To do" } link rel="icon" href=(page.asset("favicon.svg")); } body {
        (page.live("open")) (page.live("found"))
        form method="post" action=(page.to("add")) { (page.id()) input name="title" autocomplete="off"; button { "Add" } }
        ul data-waiting {} (page.message()) (page.status())
    } } }
}

fn todo() -> App {
    App::new("todo", schema)
        .nouns("to-do", "to-dos")
        .form::<TodoAdded>("add")
        .form::<TodoDone>("finish")
        .live("open", |_| Ok(open()), list)
        .live("found", found, |titles, _| html! { p #found { (titles.join(", ")) } })
        .page(page)
}

/// The app, served until this goes out of scope.
struct Served {
    url: String,
    end: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    _data: tempfile::TempDir,
}

impl Served {
    fn start() -> Self {
        let data = data_dir();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        listener.set_nonblocking(true).expect("a socket for Tokio");
        let options = Options { data: Some(data.path().to_owned()), ..Options::default() };
        let (end, ends) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().expect("a runtime");
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a socket of Tokio's");
                todo().serve(options, listener, async { drop(ends.await) }).await.expect("it serves");
            });
        });
        Self { url, end: Some(end), thread: Some(thread), _data: data }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.end.take());
        let ended = self.thread.take().map(std::thread::JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))), "the app ended badly");
    }
}

fn add(tab: &Tab<'_>, title: &str) {
    tab.to_front();
    tab.type_into("[name=title]", title);
    tab.press(&ENTER);
}

#[test]
fn to_dos_are_added_found_and_done_in_twelve_tabs_with_twelve_searches() {
    let app = Served::start();
    let browser = Browser::launch();
    let searches = ["milk", "bread", "ea", "m", "il", "b", "r", "e", "a", "d", "k", ""];
    let tabs = searches.map(|search| browser.open(&format!("{}/?q={search}", app.url)));
    add(&tabs[0], "milk");
    assert_eq!(tabs[0].eval("document.querySelector('[name=title]').value"), "");
    add(&tabs[1], "bread");
    for (tab, search) in tabs.iter().zip(searches) {
        let expected: Vec<&str> = ["milk", "bread"].into_iter().filter(|title| title.contains(search)).collect();
        tab.until(&format!("document.getElementById('found').textContent === '{}'", expected.join(", ")));
        tab.until("document.querySelectorAll('#open li').length === 2");
        tab.until_live();
        tab.until("document.querySelectorAll('[data-waiting] li').length === 0");
    }
    // A form inside a fragment has no id but the one that the script mints.
    assert_eq!(tabs[2].eval("document.querySelectorAll('#open [name=id]').length"), 0);
    tabs[2].to_front();
    tabs[2].click("#open button");
    for tab in &tabs {
        tab.until("[...document.querySelectorAll('#open li')].map((item) => item.firstChild.data).join() === 'bread'");
    }
    tabs[2].until_sent();
    assert_eq!(tabs[0].text("#found"), "");
}

#[test]
fn a_to_do_that_was_refused_comes_back_with_the_reason() {
    let app = Served::start();
    let browser = Browser::launch();
    browser.network_may_fail();
    let tab = browser.open(&app.url);
    tab.until_live();
    add(&tab, "x");
    tab.until("document.querySelector('[name=title]').value === 'x'");
    assert!(tab.text("[data-message]").starts_with("“x” was not saved. "), "{}", tab.text("[data-message]"));
    add(&tab, "xylophone");
    tab.until("document.querySelector('#open li')?.firstChild.data === 'xylophone'");
    tab.until_sent();
    assert_eq!(tab.text("[data-message]"), "");
    assert_eq!(tab.eval("localStorage.length"), 0);
}

#[test]
fn without_javascript_to_dos_are_added_and_done_on_the_page_that_posted() {
    let app = Served::start();
    let browser = Browser::launch();
    let tab = browser.blank();
    tab.without_scripts();
    tab.go(&format!("{}/?q=mi", app.url));
    for title in ["milk", "bread"] {
        tab.eval(&format!("document.querySelector('[name=title]').value = '{title}'"));
        tab.leave_by(|tab| tab.click("[name=title] + button"));
        assert_eq!(tab.eval("location.search"), "?q=mi");
    }
    assert_eq!(tab.text("#found"), "milk");
    tab.leave_by(|tab| tab.click("#open button"));
    assert_eq!(
        tab.eval("[...document.querySelectorAll('#open li')].map((item) => item.firstChild.data)"),
        json!(["bread"])
    );
}
