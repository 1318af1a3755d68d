//! Pages that follow the live stream with other people's libraries, as `docs/tools.md` shows them.

use likewise::engine::{Event, Query, Schema};
use likewise::{App, Html, Options, Page};
use maud::html;
use serde::{Deserialize, Serialize};

use crate::chromium::{Browser, ENTER};
use crate::common::served::Served;
use crate::common::{code_block, data_dir};

#[derive(Serialize, Deserialize)]
struct NoteAdded {
    text: String,
}
impl Event for NoteAdded {
    const NAME: &'static str = "NoteAdded";
}

fn schema() -> Schema {
    Schema::new("CREATE TABLE note (n INTEGER PRIMARY KEY, text TEXT NOT NULL) STRICT")
        .on(|NoteAdded { text }, db| db.execute("INSERT INTO note (text) VALUES (?1)", [text]))
}

fn notes() -> Query<Vec<(u64, String)>> {
    Query::rows("SELECT n, text FROM note ORDER BY n", |row| Ok((row.get(0)?, row.get(1)?)))
}

/// The page in the documentation under `heading`, with what the program fills in.
fn drawn(heading: &str, page: &Page) -> Html {
    let mut rest = code_block(include_str!("../../docs/tools.md"), &format!("\n## {heading}\n"), "html");
    let mut html = String::new();
    while let Some((before, after)) = rest.split_once("{{ page.") {
        let (call, after) = after.split_once(" }}").expect("the end of a placeholder");
        let (name, argument) = call.trim_end_matches(')').split_once('(').expect("a call");
        let argument = argument.trim_matches('"');
        html.push_str(before);
        html.push_str(&match name {
            "asset" => page.asset(argument),
            "to" => page.to(argument),
            "base" => page.base().to_owned(),
            "live" => page.live(argument).to_string(),
            "status" => page.status().to_string(),
            "id" => page.id().to_string(),
            other => panic!("{other} isn't known here"),
        });
        rest = after;
    }
    html.push_str(rest);
    Html::trusted(html)
}

/// Follows the store in two windows, and adds notes in one of them, with the page under `heading`. `morphs` says whether what
/// didn't change stays the same element.
fn follows(heading: &'static str, files: &[(&'static str, &'static [u8])], morphs: bool) {
    let mut app = App::new("notes", schema)
        .form::<NoteAdded>("add")
        .live(
            "notes",
            |_| Ok(notes()),
            |notes, _| html! { ul { @for (n, text) in notes { li id=(format!("note-{n}")) { (text) } } } },
        )
        .page(move |page: Page| drawn(heading, &page));
    for (name, bytes) in files {
        app = app.asset(name, "text/javascript", *bytes);
    }
    let data = data_dir();
    let options = Options { data: Some(data.path().to_owned()), ..Options::default() };
    let served = Served::start(app, options);
    let url = &served.url;

    let browser = Browser::launch();
    // The style of Turbo's progress bar, which the content security policy forbids.
    browser.may_complain("installStylesheetElement");
    // Windows, because Turbo may draw messages in the wrong order when its page is hidden between them.
    let [other, tab] = [browser.window(), browser.window()];
    other.go(url);
    tab.go(url);
    let texts = "[...document.querySelectorAll('#live-notes li')].map((note) => note.textContent).join()";
    let until = |expected: &str| {
        for tab in [&other, &tab] {
            tab.to_front();
            tab.until(&format!("{texts} === '{expected}'"));
            tab.until("document.querySelectorAll('#live-notes').length === 1");
        }
    };
    tab.to_front();
    tab.type_into("[name=text]", "milk");
    tab.press(&ENTER);
    until("milk");
    other.eval("document.querySelector('#note-1').isSeen = true");
    // From another page: a library may still be busy with what came back for the first.
    for (note, expected) in [("bread <b>", "milk,bread <b>"), ("ham", "milk,bread <b>,ham")] {
        let body = form_urlencoded::Serializer::new(String::new()).append_pair("text", note).finish();
        let request = ureq::post(format!("{url}/add")).header("accept", "application/json");
        let answer = request.content_type("application/x-www-form-urlencoded").send(body);
        assert_eq!(answer.expect("it is added").status(), 204);
        until(expected);
    }
    assert_eq!(other.eval("document.querySelector('#note-1').isSeen === true"), morphs, "whether it was replaced");
    assert_eq!(tab.text("#live-status .now"), "Saved on this device");
    drop(browser);
}

#[test]
fn htmx_4_follows_the_stream() {
    let htmx: &[u8] = include_bytes!("vendor/htmx-4.0.1.min.js");
    follows("htmx 4", &[("htmx.js", htmx), ("sse.js", include_bytes!("vendor/hx-sse-4.0.1.min.js"))], true);
}

#[test]
fn htmx_2_follows_the_stream() {
    let htmx: &[u8] = include_bytes!("vendor/htmx-2.0.11.min.js");
    follows("htmx 2", &[("htmx.js", htmx), ("sse.js", include_bytes!("vendor/htmx-ext-sse-2.2.4.min.js"))], false);
}

#[test]
fn turbo_8_follows_the_stream() {
    follows("Turbo 8", &[("turbo.js", include_bytes!("vendor/turbo-8.0.23.min.js"))], true);
}
