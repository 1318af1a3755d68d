//! Another app on the public face: a board of notes. Forms, parameters, visitors, own routes, and what its author does wrong.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read};

use likewise::engine::{DbError, Event, EventId, Query, Schema, Store};
use likewise::sync::UpstreamOptions;
use likewise::{App, Html, Options, Page, Refusal, Render, Visitor};
use maud::{Markup, html};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use crate::client::{Answer, agent, new_id};
use crate::common::data_dir;

#[derive(Serialize, Deserialize)]
struct NoteAdded {
    title: String,
    stars: Option<u32>,
}
impl Event for NoteAdded {
    const NAME: &'static str = "NoteAdded";
}

#[derive(Serialize, Deserialize)]
struct Seen {
    note: String,
    visitor: String,
}
impl Event for Seen {
    const NAME: &'static str = "Seen";
}

/// What the form `see` has.
#[derive(Deserialize)]
struct SeeFields {
    note: String,
}

/// The parameters of the page.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Search {
    q: String,
    stars: u32,
}

/// Parameters that a page can't do without.
#[derive(Deserialize)]
struct Needed {
    q: String,
}

impl From<Needed> for Search {
    fn from(Needed { q }: Needed) -> Self {
        Self { q, stars: 0 }
    }
}

/// An event without a materializer.
#[derive(Serialize, Deserialize)]
struct Burnt {
    note: String,
}
impl Event for Burnt {
    const NAME: &'static str = "Burnt";
}

fn schema() -> Schema {
    Schema::new(
        "CREATE TABLE note (n INTEGER PRIMARY KEY, title TEXT NOT NULL, stars INTEGER NOT NULL) STRICT;
         CREATE TABLE seen (note TEXT NOT NULL, visitor TEXT NOT NULL, PRIMARY KEY (note, visitor)) STRICT;",
    )
    .on(|NoteAdded { title, stars }, db| {
        if title.starts_with("no ") {
            return Err(DbError::refuse("Say what is, not what isn't."));
        }
        db.execute("INSERT INTO note (title, stars) VALUES (?1, ?2)", (title, stars.unwrap_or(0)))
    })
    .on(|Seen { note, visitor }, db| db.execute("INSERT OR IGNORE INTO seen VALUES (?1, ?2)", (note, visitor)))
}

fn notes() -> Query<Vec<String>> {
    Query::rows("SELECT title FROM note ORDER BY n", |row| Ok(row.get(0)?))
}

fn total() -> Query<u64> {
    Query::first("SELECT count(*) FROM note")
}

fn seen() -> Query<Vec<String>> {
    Query::rows("SELECT visitor FROM seen ORDER BY visitor", |row| Ok(row.get(0)?))
}

fn found(search: &Search) -> Query<Vec<String>> {
    let sql = "SELECT title FROM note WHERE title LIKE '%' || ?1 || '%' AND stars >= ?2 ORDER BY n";
    Query::rows(sql, |row| Ok(row.get(0)?)).bind(search.q.clone()).bind(search.stars)
}

fn list(notes: Vec<String>, r: Render) -> Markup {
    html! { ul { @for note in notes { li { (note) form method="post" action=(r.to("see")) {
        (r.id()) input type="hidden" name="note" value=(note); button { "Seen" }
    } } } } }
}

fn page(page: Page) -> Markup {
    html! { (maud::DOCTYPE) html { head { (page.head()) title { "Board " (page.param("q")) } } body {
        (page.live("notes")) (page.live("found")) (page.live("total")) (page.live("fragile")) (page.live("seen"))
        form method="post" action=(page.to("add")) { (page.id()) input name="title"; button { "Add" } }
        (page.message()) (page.status())
    } } }
}

pub(crate) fn board() -> App {
    App::new("board", schema)
        .nouns("note", "notes")
        .form::<NoteAdded>("add")
        .form_with("see", |SeeFields { note }, visitor: &Visitor| {
            if note == "secret" {
                return Err(Refusal::new("nobody sees that"));
            }
            Ok(Seen { note, visitor: visitor.hash().to_owned() })
        })
        .live("notes", |_| Ok(notes()), list)
        .live("found", |params| Ok(found(&params.get()?)), |titles, _| html! { p.found { (titles.join(", ")) } })
        .live("total", |_| Ok(total()), |total, _| Html::text(total))
        .live(
            "fragile",
            |_| Ok(notes()),
            |notes, _| {
                assert!(!notes.contains(&"boom".to_owned()), "as the test wants");
                Html::text(notes.len())
            },
        )
        .live("seen", |_| Ok(seen()), |visitors, _| Html::text(visitors.len()))
        .page(page)
        .figure("notes", total)
        .routes(axum::Router::new().route("/titles", axum::routing::get(titles)))
}

async fn titles(store: Store) -> String {
    store.read(notes()).await.map_or_else(|error| error.to_string(), |titles| titles.join(","))
}

/// An app that is being served by this process.
pub(crate) struct Board {
    pub(crate) url: String,
    runtime: Runtime,
    end: Option<oneshot::Sender<()>>,
    serving: Option<tokio::task::JoinHandle<Result<(), likewise::NodeError>>>,
    _data: TempDir,
}

impl Board {
    fn start(app: App) -> Result<Self, String> {
        Self::start_with(app, None)
    }

    /// As a device of a hub, or alone.
    pub(crate) fn start_with(app: App, upstream: Option<UpstreamOptions>) -> Result<Self, String> {
        Self::start_as(app, Options { upstream, ..Options::default() })
    }

    /// With these options, on data of its own.
    pub(crate) fn start_as(app: App, options: Options) -> Result<Self, String> {
        let data = data_dir();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let options = Options { data: Some(data.path().to_owned()), ..options };
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (end, ends) = oneshot::channel::<()>();
        let mut serving = runtime.spawn(async move { app.serve(options, listener, async { drop(ends.await) }).await });
        // The listener takes connections from the start: the answer comes when it is served, or never.
        let asked = {
            let url = url.clone();
            runtime.spawn_blocking(move || agent().get(format!("{url}/healthz")).call().map(|answer| answer.status()))
        };
        let ended = runtime.block_on(async {
            tokio::select! {
                ended = &mut serving => Some(ended.unwrap().map_err(|error| error.to_string())),
                asked = asked => match asked.unwrap() {
                    Ok(status) => { assert_eq!(status, 200); None }
                    // It was refused while this asked.
                    Err(_) => Some((&mut serving).await.unwrap().map_err(|error| error.to_string())),
                }
            }
        });
        match ended {
            Some(ended) => Err(ended.expect_err("it ended by itself")),
            None => Ok(Self { url, runtime, end: Some(end), serving: Some(serving), _data: data }),
        }
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        Answer::of(agent().get(format!("{}{path}", self.url)).call().unwrap())
    }

    pub(crate) fn post(&self, path: &str, headers: &[(&str, &str)], form: &str) -> Answer {
        let mut request = agent().post(format!("{}{path}", self.url));
        request = request.header("content-type", "application/x-www-form-urlencoded");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Answer::of(request.send(form).unwrap())
    }

    fn add(&self, title: &str) {
        let answer = self.post("/add", &[], &format!("title={title}"));
        assert_eq!(answer.status, 303, "{answer:?}");
    }

    fn titles(&self) -> String {
        self.get("/titles").body
    }

    fn live(&self, query: &str) -> Updates {
        let answer = agent().get(format!("{}/live?{query}", self.url)).call().unwrap();
        assert_eq!(answer.status(), 200);
        Updates(BufReader::new(Box::new(answer.into_body().into_reader())))
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(serving) = self.serving.take() {
            drop(self.runtime.block_on(serving));
        }
    }
}

/// A live stream, by commits.
struct Updates(BufReader<Box<dyn Read>>);

impl Updates {
    /// The next event that is no ping: its name and its data.
    fn event(&mut self) -> (String, String) {
        loop {
            let mut name = String::new();
            let mut data = Vec::new();
            loop {
                let mut line = String::new();
                assert_ne!(self.0.read_line(&mut line).unwrap(), 0, "the stream ended");
                let line = line.trim_end_matches('\n');
                if line.is_empty() {
                    break;
                }
                if let Some(text) = line.strip_prefix("event: ") {
                    name = text.to_owned();
                } else if let Some(text) = line.strip_prefix("data: ") {
                    data.push(text.to_owned());
                }
            }
            if name != "ping" {
                return (name, data.join("\n"));
            }
        }
    }

    /// What comes before the next `done`.
    fn update(&mut self) -> Vec<(String, String)> {
        let mut all = Vec::new();
        loop {
            let event = self.event();
            if event.0 == "done" {
                return all;
            }
            all.push(event);
        }
    }
}

fn texts(update: &[(String, String)], name: &str) -> BTreeSet<String> {
    update.iter().filter(|(event, _)| event == name).map(|(_, html)| html.clone()).collect()
}

const JSON: (&str, &str) = ("accept", "application/json");

#[test]
fn an_app_works_without_javascript_and_leads_back_to_the_page_that_posted() {
    let board = Board::start(board()).unwrap();
    let page = board.get("/?q=milk");
    assert_eq!((page.status, page.header("cache-control")), (200, "no-store"));
    assert!(page.body.contains(r#"<title>Board milk</title>"#), "{}", page.body);
    assert!(
        page.body.contains(r#"data-app="board" data-base="" data-forms="add see" data-noun="note" data-nouns="notes""#)
    );
    let id = page.between(r#"name="id" value=""#, "\"").to_owned();
    let referer = format!("{}/?q=milk", board.url);
    let form = format!("id={id}&title=buy+milk+%26+%C3%A9clairs&stars=3");
    for _ in 0..2 {
        let answer = board.post("/add", &[("referer", &referer)], &form);
        assert_eq!((answer.status, answer.header("location")), (303, "/?q=milk"), "{answer:?}");
    }
    assert_eq!(board.titles(), "buy milk & éclairs", "counted once");
    let page = board.get("/?q=milk").body;
    assert!(page.contains(r#"<p class="found">buy milk &amp; éclairs</p>"#), "{page}");
    let ids: BTreeSet<_> = page.split(r#"name="id" value=""#).skip(1).map(|rest| rest[..36].to_owned()).collect();
    assert_eq!(ids.len(), 2, "each form has an id of its own: {page}");
    let json = board.post("/add", &[JSON], "title=two");
    assert_eq!(json.status, 204);
    assert!(json.header("likewise-stored").parse::<EventId>().is_ok(), "{json:?}");
    assert_eq!(board.get("/s/other/titles").body, "", "each store has its own");
    assert_eq!(board.post("/s/other/add", &[], "title=there").header("location"), "/s/other/");
    assert_eq!(board.get("/s/other/titles").body, "there");
    assert_eq!(board.get("/status").json()["notes"], 2);
    let metrics = board.get("/metrics").body;
    for line in
        ["board_notes 2", r#"board_notes_total{result="stored"} 3"#, r#"board_notes_total{result="repeated"} 1"#]
    {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
    }
}

#[test]
fn a_refusal_comes_back_with_the_reason_and_with_what_was_typed() {
    let board = Board::start(board()).unwrap();
    let (id, referer) = (new_id(), format!("{}/?q=a%20b", board.url));
    let refused = board.post("/add", &[("referer", &referer)], &format!("id={id}&title=no+%3Cb%3E&stars=2"));
    assert_eq!(refused.status, 422);
    // The author's words stand alone.
    assert_eq!(refused.between(r#"<h1 id="title">"#, "</h1>"), "Not saved");
    assert_eq!(refused.between(r#"<p id="detail">"#, "</p>"), "Say what is, not what isn&#39;t.");
    assert!(!refused.body.contains(r#"id="advice""#), "{}", refused.body);
    let typed = refused.between("<textarea name=\"title\" rows=\"1\">\n", "</textarea>");
    assert_eq!(typed, "no &#60;b&#62;", "{}", refused.body);
    assert_eq!(refused.between("<textarea name=\"stars\" rows=\"1\">\n", "</textarea>"), "2");
    let fresh = refused.between(r#"name="id" value=""#, "\"").to_owned();
    assert_ne!(fresh, id);
    let action = refused.between(r#"<form class="again" method="post" action=""#, "\"").to_owned();
    let again = board.post(
        &action.replace("&#38;", "&"),
        &[("referer", &format!("{}/add", board.url))],
        &format!("id={fresh}&title=so+be+it"),
    );
    assert_eq!((again.status, again.header("location")), (303, "/?q=a%20b"), "{again:?}");

    let taken = board.post("/add", &[], &format!("id={fresh}&title=another+text"));
    assert_eq!(taken.status, 409);
    assert!(taken.body.contains("another text") && !taken.body.contains(&format!("value=\"{fresh}\"")), "{taken:?}");
    assert_eq!(board.titles(), "so be it");

    let whose = board.post("/see", &[], "note=secret");
    assert_eq!(whose.status, 422);
    assert!(whose.body.contains("nobody sees that"), "{whose:?}");
    assert!(!whose.body.contains("<form"), "there is nothing to correct where nothing was typed: {whose:?}");
    let misfit = board.post("/see", &[], "note=a&note=b&by=hand");
    assert!(misfit.body.contains(">\na</textarea>"), "the field that doesn't fit is shown: {misfit:?}");

    let script = board.post("/add", &[JSON], &format!("id={}&title=no+way", new_id()));
    let problem = script.json();
    assert_eq!((script.status, problem["code"].as_str()), (422, Some("event-refused")));
    assert_eq!((problem["detail"].as_str(), problem.get("advice")), (Some("Say what is, not what isn't."), None));
}

#[test]
fn forms_that_do_not_fit_name_the_field() {
    let board = Board::start(board()).unwrap();
    for (form, field) in [
        ("stars=3", "title"),
        ("title=a&title=b", "title"),
        ("title=a&stars=many", "stars"),
        ("title=%ff", "title"),
        ("", "title"),
    ] {
        let answer = board.post("/add", &[JSON], form);
        let problem = answer.json();
        assert_eq!((answer.status, problem["code"].as_str()), (400, Some("malformed-form")), "{form}: {problem}");
        assert_eq!(problem["field"].as_str(), Some(field), "{form}: {problem}");
    }
    let page = board.post("/add", &[], "title=a+text&stars=many");
    assert_eq!(page.status, 400);
    assert!(page.body.contains("`stars`") && page.body.contains("a text"), "{}", page.body);
    for (form, code) in [("id=1&title=a", "malformed-id"), ("id=1&id=2&title=a", "malformed-id")] {
        assert_eq!(board.post("/add", &[JSON], form).json()["code"], code);
    }
    let unknown = board.post("/remove", &[JSON], "title=a");
    assert_eq!((unknown.status, unknown.json()["code"].as_str()), (404, Some("not-found")));
    assert_eq!(board.titles(), "", "nothing of it was stored");
}

#[test]
fn a_form_takes_any_event_and_says_so_when_it_is_too_long() {
    let board = Board::start(board()).unwrap();
    // All of it is sent as three bytes for each.
    let title = "\u{e9}".repeat(32_000);
    board.add(&form_urlencoded::byte_serialize(title.as_bytes()).collect::<String>());
    assert_eq!(board.titles(), title);
    let event = board.post("/add", &[JSON], &format!("title={}", "x".repeat(70_000)));
    assert_eq!((event.status, event.json()["code"].as_str()), (400, Some("malformed-event")));
    let long = format!("title={}", "x".repeat(300_000));
    let script = board.post("/s/other/add", &[JSON], &long);
    assert_eq!((script.status, script.json()["code"].as_str()), (413, Some("malformed-form")));
    let page = board.post("/add", &[], &long);
    assert_eq!(page.status, 413);
    for words in ["What you wrote is too long: a form carries at most 200704 bytes.", "Nothing was stored."] {
        assert!(page.body.contains(words), "{}", page.body);
    }
    let elsewhere = board.post("/titles", &[JSON], &long);
    assert_eq!((elsewhere.status, elsewhere.json()["code"].as_str()), (413, Some("body-too-large")));
    assert_eq!(board.titles(), title);
}

#[test]
fn parameters_that_do_not_parse_are_refused_in_words() {
    let board = Board::start(board()).unwrap();
    for path in ["/?stars=many", "/live?stars=many", "/?q=a&q=b"] {
        let answer = board.get(path);
        assert_eq!(answer.status, 400, "{path}");
        assert!(answer.body.contains("`stars`") || answer.body.contains("`q`"), "{}", answer.body);
    }
    board.add("one");
    // Of several pages on a stream, one that means nothing doesn't take the others along.
    let mut live = board.live("live=stars%3Dmany&live=q%3Done");
    assert_eq!(texts(&live.update(), "found").len(), 1);
    let many: String = (0..65).map(|n| format!("live=q%3D{n}&")).collect();
    assert_eq!(board.get(&format!("/live?{many}")).status, 400);
}

#[test]
fn trust_62_a_fragment_that_panics_costs_that_fragment_alone() {
    let board = Board::start(board()).unwrap();
    let mut live = board.live("");
    let first = live.update();
    assert_eq!(texts(&first, "fragile").len(), 1);
    board.add("boom");
    let update = live.update();
    assert!(texts(&update, "total").iter().all(|html| html.contains(">1<")), "{update:?}");
    assert_eq!(texts(&update, "fragile").len(), 0, "it stays as it was");
    let page = board.get("/");
    assert_eq!(page.status, 200);
    assert!(page.body.contains(r#"data-live="total">1</likewise-live>"#), "{}", page.body);
    assert!(page.body.contains(r#"data-live="fragile"><span class="trouble">"#), "{}", page.body);
}

#[test]
fn trust_41_one_stream_serves_twelve_pages_and_only_sends_what_changed() {
    let board = Board::start(board()).unwrap();
    let sets: String = (0..12).map(|n| format!("&live=q%3Dword{n}x")).collect();
    // Twice the same page, and once in other words, are one.
    let mut live = board.live(&format!("{sets}&live=q%3Dword3x&live=stars%3D0%26q%3Dword3x"));
    let first = live.update();
    assert_eq!(texts(&first, "found").len(), 12, "{first:?}");
    assert_eq!(texts(&first, "notes").len(), 1, "what no parameter changes is shared");
    assert_eq!(first.last().map(|(name, _)| &**name), Some("status"));
    board.add("word3x");
    let update = live.update();
    let found = texts(&update, "found");
    assert_eq!(found.len(), 1, "{update:?}");
    let html = found.first().unwrap();
    assert!(
        html.starts_with(r#"<likewise-live class="live" id="live-found" data-live="found" data-key=""#)
            && html.contains("word3x"),
        "{html}"
    );
    assert!(board.get("/?q=word3x").body.contains(html), "the page has the same element");
}

#[test]
fn what_one_commit_changes_comes_before_one_done() {
    let board = Board::start(board()).unwrap();
    let mut live = board.live("q=note");
    let first = live.update();
    assert_eq!(first.len(), 6, "all fragments and the status: {first:?}");
    for n in 1..=20 {
        board.add(&format!("note+{n}"));
        let update = live.update();
        let names: BTreeSet<_> = update.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names, BTreeSet::from(["fragile", "found", "notes", "total"]), "{update:?}");
        for (_, html) in &update {
            let is_whole = html.contains(&format!("note {n}")) || html.contains(&format!(">{n}<"));
            assert!(is_whole, "{html} is not of commit {n}");
            assert!(!html.contains(r#"name="id""#), "an id in what everybody gets: {html}");
        }
    }
}

#[test]
fn a_visitor_counts_once_and_what_is_stored_is_not_the_cookie() {
    let board = Board::start(board()).unwrap();
    let first = board.post("/see", &[], "note=a");
    assert_eq!(first.status, 303);
    let cookie = first.header("set-cookie").to_owned();
    assert!(cookie.starts_with("board-visitor=") && cookie.contains("; Path=/; "), "{cookie}");
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Lax"), "{cookie}");
    let cookie = cookie.split(';').next().unwrap().to_owned();
    assert_eq!(board.post("/see", &[("cookie", &cookie)], "note=a").status, 303);
    let shown = |page: Answer| page.between(r#"data-live="seen">"#, "<").to_owned();
    assert_eq!(shown(board.get("/")), "1", "the same visitor");
    assert_eq!(board.post("/see", &[("cookie", "board-visitor=me")], "note=a").status, 303);
    assert_eq!(shown(board.get("/")), "2", "a cookie that isn't ours is nobody's");
    let added = board.post("/add", &[("cookie", &cookie)], "title=a");
    assert_eq!(added.header("set-cookie"), "", "who asks for nobody gets no cookie");
    let (_, id) = cookie.split_once('=').unwrap();
    assert_eq!(board.get("/").body.matches(id).count(), 0);
}

#[test]
fn an_apps_own_files_stand_beside_the_common_ones() {
    let plain = Board::start(board()).unwrap();
    let ours = Board::start(board().asset("board.css", "text/css", "h1 { color: teal }").asset(
        "favicon.svg",
        "image/svg+xml",
        b"<svg/>",
    ));
    let ours = ours.unwrap();
    let lost = ours.get("/nowhere");
    let styles: Vec<_> = lost.body.split(r#"<link rel="stylesheet" href=""#).skip(1).collect();
    let styles: Vec<_> = styles.iter().map(|rest| rest.split('"').next().unwrap()).collect();
    assert!(styles[0].ends_with("/app.css") && styles[1].ends_with("/board.css") && styles.len() == 2, "{styles:?}");
    let style = ours.get(styles[1]);
    assert_eq!((style.status, style.header("content-type"), &*style.body), (200, "text/css", "h1 { color: teal }"));
    assert_eq!(style.header("cache-control"), "public, max-age=31536000, immutable");
    assert_eq!(style.header("vary"), "accept-encoding");
    for old in ["/static/board.css", "/static/0123456789ab/board.css"] {
        let answer = ours.get(old);
        assert_eq!((answer.status, answer.header("location")), (307, styles[1]));
    }
    assert_eq!(ours.get(ours.get("/favicon.ico").header("location")).body, "<svg/>");
    let icon = plain.get(plain.get("/favicon.ico").header("location"));
    assert!(icon.status == 200 && icon.body.contains("<circle"), "{icon:?}");
    assert_ne!(plain.get("/favicon.ico").header("location"), ours.get("/favicon.ico").header("location"));
    for missing in ["/static/board.css", "/static/likes.js", "/static/likewise.css", "/static/0123456789ab/likes.js"] {
        assert_eq!(plain.get(missing).status, 404, "{missing}");
    }
    assert!(!plain.get("/nowhere").body.contains("likewise.css"));
}

#[test]
fn check_finds_parts_that_can_not_work_without_a_server() {
    let wrong = |app: App| app.check().expect_err("something is wrong").to_string();
    let says = |app: App, words: &[&str]| {
        let said = wrong(app);
        assert!(words.iter().all(|word| said.contains(word)), "{words:?} are not in: {said}");
    };
    board().check().expect("nothing is wrong");
    let live =
        |sql: &'static str| board().live("bad", move |_| Ok(Query::<u64>::first(sql)), |number, _| Html::text(number));
    says(live("SELECT count(*) FROM notes"), &["the fragment `bad`: ", "no such table: notes"]);
    says(live("SELECT random()"), &["the fragment `bad`: ", "random"]);
    says(live("SELECT count(*) FROM note WHERE title = ?1"), &["the fragment `bad`: ", "title = ?1", "needed 1"]);
    says(live("SELECT max(stars) FROM note"), &["the fragment `bad`: ", "Null"]);
    // What has no answer yet is fine, and so is what needs a parameter.
    live("SELECT stars FROM note ORDER BY n LIMIT 1").check().expect("a fragment may wait for its first row");
    let needs =
        board().live("bad", |params| Ok(found(&params.get::<Needed>()?.into())), |titles, _| Html::text(titles.len()));
    needs.check().expect("a page may need parameters");
    // These are found in rows of made-up events.
    let reads = |row: &likewise::engine::Row<'_>| Ok(row.get::<_, String>("titel")?);
    let column = board().live("bad", move |_| Ok(Query::rows("SELECT title FROM note", reads)), |_, _| Html::default());
    says(column, &["the fragment `bad`: ", "titel"]);
    let posts = |titles: Vec<String>, r: Render| html! { @for _ in titles { form action=(r.to("remove")) {} } };
    says(board().live("bad", |_| Ok(notes()), posts), &["the fragment `bad`: there is no form named `remove`"]);

    let figure = |sql: &'static str| board().figure("bad", move || Query::first(sql));
    says(figure("SELECT count(*) FROM notes"), &["the figure `bad`: ", "no such table: notes"]);
    says(figure("SELECT stars FROM note"), &["the figure `bad`: "]);

    says(board().form::<Burnt>("burn"), &["the form `burn`: no materializer takes its event Burnt"]);
    let burn = |SeeFields { note }: SeeFields, _: &Visitor| Ok(Burnt { note });
    says(board().form_with("burn", burn), &["the form `burn`: no materializer takes its event Burnt"]);

    says(board().page(|page| Html::text(page.live("typo"))), &["the page: there is no fragment named `typo`"]);
    says(board().page(|page| Html::text(page.to("typo"))), &["the page: there is no form named `typo`"]);
    says(board().page(|page| Html::text(page.asset("typo.css"))), &["the page: there is no asset named `typo.css`"]);
    let panics = board().page(|page| -> Html { panic!("as the test wants: {:?}", page.param("q")) });
    panics.check().expect("a page may need parameters");
}

#[test]
fn names_and_schemas_that_can_not_be_are_refused_at_start() {
    let wrong = |app: App| app.check().expect_err("something is wrong").to_string();
    for name in ["live", "status", "s", "sync", "static", "control", "adopt", "healthz", "metrics", "Add", "a/b", ""] {
        assert!(wrong(App::new("board", schema).form::<NoteAdded>(name)).contains(name), "{name}");
    }
    for name in ["status", "ping", "done", "live"] {
        let app = App::new("board", schema).live(name, |_| Ok(total()), |total, _| Html::text(total));
        assert!(wrong(app).contains(&format!("`{name}`")), "{name}");
    }
    for name in ["head", "pending", "upstream", "digest_seq", "streams"] {
        assert!(wrong(App::new("board", schema).figure(name, total)).contains(&format!("`{name}`")), "{name}");
    }
    assert!(wrong(board().form::<NoteAdded>("add")).contains("two forms named `add`"));
    assert!(
        wrong(board().live("notes", |_| Ok(total()), |_, _| Html::default())).contains("two fragments named `notes`")
    );
    assert!(wrong(board().figure("notes", total)).contains("two figures named `notes`"));
    for name in ["", "A board", "board!", "9"] {
        assert!(wrong(App::new(name, schema)).contains("name of an app"), "{name}");
    }
    let file = |name: &'static str, kind: &'static str| board().asset(name, kind, "");
    for name in ["", "a/b", "..", ".a", "a b", "app.css", "likewise.js", "\u{e9}"] {
        assert!(wrong(file(name, "text/css")).contains(&format!("`{name}` can't be the name of an asset")), "{name}");
    }
    for kind in ["css", "", "text/css\n"] {
        assert!(wrong(file("board.css", kind)).contains("no content type"), "{kind}");
    }
    assert!(wrong(file("b.css", "text/css").asset("b.css", "text/css", "")).contains("two assets named `b.css`"));
    let no_sql = App::new("board", || Schema::new("CREATE TABEL note (n)"));
    assert!(wrong(no_sql).starts_with("the schema: "));

    let refused = |app: App| Board::start(app).err().expect("it is refused");
    let unknown = refused(board().page(|page| Html::text(page.live("nowhere"))));
    assert!(unknown.contains("`nowhere`"), "{unknown}");
    let unknown = refused(board().page(|page| Html::text(page.to("remove"))));
    assert!(unknown.contains("`remove`"), "{unknown}");
    let unknown = refused(board().page(|page| Html::text(page.asset("likes.js"))));
    assert!(unknown.contains("`likes.js`"), "{unknown}");
    let twice = refused(board().routes(axum::Router::new().route("/live", axum::routing::get(titles))));
    assert!(twice.contains("/live"), "{twice}");
    let twice = refused(board().routes(axum::Router::new().route("/add", axum::routing::post(titles))));
    assert!(twice.contains("/add"), "{twice}");
}
