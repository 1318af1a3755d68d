//! Two versions of an app among devices, a hub and open pages: what `docs/evolution.md` promises, tried.

use std::path::Path;

use likewise::engine::{Batch, DbError, Event, EventId, Query, Schema, Store};
use likewise::sync::{TokenSource, UpstreamOptions};
use likewise::{App, Html, Node, Options};
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;

use crate::client::{Answer, agent, new_id};
use crate::common::served::Served;
use crate::common::{Server, data_dir, printed, run, wait_for};

/// Last year's program.
mod old {
    use super::*;

    #[derive(Serialize, Deserialize)]
    pub(super) struct TodoAdded {
        pub(super) title: String,
    }
    impl Event for TodoAdded {
        const NAME: &'static str = "TodoAdded";
    }

    /// A note about any event. The old program has none but to-dos to write one about.
    #[derive(Serialize, Deserialize)]
    pub(super) struct Noted {
        pub(super) about: String,
    }
    impl Event for Noted {
        const NAME: &'static str = "Noted";
    }

    pub(super) fn app() -> App {
        let schema = || {
            Schema::new(
                "CREATE TABLE todo (n INTEGER PRIMARY KEY, id TEXT UNIQUE, title TEXT NOT NULL) STRICT;
                 CREATE TABLE note (about TEXT NOT NULL) STRICT;",
            )
            .on(|TodoAdded { title }, db| db.execute("INSERT INTO todo (id, title) VALUES (?1, ?2)", (db.id(), title)))
            .on(|Noted { about }, db| {
                match db.execute("INSERT INTO note SELECT id FROM todo WHERE id = ?1", [about])? {
                    0 => Err(DbError::refuse("there is nothing to write a note about")),
                    _ => Ok(()),
                }
            })
        };
        App::new("to-do", schema)
            .form::<TodoAdded>("add")
            .form::<Noted>("note")
            .page(|page| Html::text(page.to("add")))
            .figure("todos", || Query::first("SELECT count(*) FROM todo"))
            .figure("notes", || Query::first("SELECT count(*) FROM note"))
    }
}

/// The new program: other tables, a new field, a new event, and no form for notes.
mod new {
    use super::*;

    #[derive(Serialize, Deserialize)]
    pub(super) struct TodoAdded {
        pub(super) title: String,
        #[serde(default)]
        pub(super) urgent: bool,
    }
    impl Event for TodoAdded {
        const NAME: &'static str = "TodoAdded";
    }

    #[derive(Serialize, Deserialize)]
    pub(super) struct ListAdded {}
    impl Event for ListAdded {
        const NAME: &'static str = "ListAdded";
    }

    /// What the form `due` has: a field that pages of before don't.
    #[derive(Serialize, Deserialize)]
    pub(super) struct DueSet {
        pub(super) day: String,
        pub(super) hour: u32,
    }
    impl Event for DueSet {
        const NAME: &'static str = "DueSet";
    }

    pub(super) fn app() -> App {
        let schema = || {
            Schema::new(
                "CREATE TABLE thing (n INTEGER PRIMARY KEY, id TEXT UNIQUE, title TEXT, urgent INTEGER NOT NULL) STRICT;
                 CREATE TABLE note (about TEXT NOT NULL) STRICT;",
            )
            .on(|TodoAdded { title, urgent }, db| {
                db.execute("INSERT INTO thing (id, title, urgent) VALUES (?1, ?2, ?3)", (db.id(), title, urgent))
            })
            .on(|_: ListAdded, db| db.execute("INSERT INTO thing (id, urgent) VALUES (?1, 0)", [db.id()]))
            .on(|_: DueSet, _| Ok(()))
            .on(|old::Noted { about }, db| {
                match db.execute("INSERT INTO note SELECT id FROM thing WHERE id = ?1", [about])? {
                    0 => Err(DbError::refuse("there is nothing to write a note about")),
                    _ => Ok(()),
                }
            })
        };
        App::new("to-do", schema)
            .form::<TodoAdded>("add")
            .form::<DueSet>("due")
            .page(|page| Html::text(page.to("add")))
            .figure("todos", || Query::first("SELECT count(*) FROM thing WHERE title IS NOT NULL"))
            .figure("notes", || Query::first("SELECT count(*) FROM note"))
    }
}

fn serve(app: App, data: &Path) -> Served {
    Served::start(app, Options { data: Some(data.to_owned()), ..Options::default() })
}

impl Served {
    fn post(&self, form: &str, accept: &str, fields: &str) -> Answer {
        let request = agent().post(format!("{}/{form}", self.url)).header("accept", accept);
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        Answer::of(request.send(fields).unwrap())
    }

    fn status(&self) -> serde_json::Value {
        Answer::of(agent().get(format!("{}/status", self.url)).call().unwrap()).json()
    }
}

/// A device with a version of the app, in sync with a hub.
struct Device {
    data: tempfile::TempDir,
    upstream: UpstreamOptions,
    runtime: Runtime,
    running: Option<(Node, Store)>,
}

impl Device {
    fn new(hub: &Server, name: &str) -> Self {
        let token = printed(run(hub.data(), &["token", "add", name])).trim().to_owned();
        let token = TokenSource::Given(token);
        let upstream = UpstreamOptions { url: hub.url.clone(), token, root_certificate: None };
        Self { data: data_dir(), upstream, runtime: Runtime::new().unwrap(), running: None }
    }

    /// Ends the version that runs, and starts `app`.
    fn runs(&mut self, app: &App) {
        self.ends();
        let _in_runtime = self.runtime.enter();
        let options = Options {
            data: Some(self.data.path().to_owned()),
            upstream: Some(self.upstream.clone()),
            ..Options::default()
        };
        let node = app.open(options).expect("the data opens");
        let store = node.store("to-do").expect("the store");
        self.running = Some((node, store));
    }

    fn ends(&mut self) {
        if let Some((node, store)) = self.running.take() {
            drop(store);
            self.runtime.block_on(node.close());
        }
    }

    fn store(&self) -> &Store {
        &self.running.as_ref().expect("a version that runs").1
    }

    fn commit(&self, event: impl Event) -> EventId {
        self.runtime.block_on(self.store().commit(event)).expect("stored").id
    }

    fn texts(&self, sql: &'static str) -> Vec<String> {
        self.runtime.block_on(self.store().read(Query::rows(sql, |row| Ok(row.get(0)?)))).expect("an answer")
    }

    /// Waits until all `events` have their places here, and gives how many are skipped, and how many unknown.
    fn without_effect(&self, events: u64) -> (u64, u64) {
        wait_for("all events", || {
            let health = self.runtime.block_on(self.store().healthy());
            let standing = health.standing()?.clone();
            (standing.length == events && standing.pending == 0).then_some((standing.skipped, standing.unknown))
        })
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.ends();
    }
}

/// The hub is the likes program, which knows none of these events. A hub's own schema decides nothing.
#[test]
fn trust_28_old_and_new_devices_share_a_hub_and_are_alike_after_the_update() {
    let hub_data = data_dir();
    let hub = Server::start(hub_data.path());
    let [mut ann, mut bob] = ["ann", "bob"].map(|name| Device::new(&hub, name));
    ann.runs(&old::app());
    bob.runs(&new::app());

    ann.commit(old::TodoAdded { title: "milk".into() });
    ann.without_effect(1);
    bob.without_effect(1);
    bob.commit(new::TodoAdded { title: "bread".into(), urgent: true });
    let list = bob.commit(new::ListAdded {});
    let both = Batch::new().with(&old::TodoAdded { title: "eggs".into() }).unwrap();
    let both = both.with(&new::ListAdded {}).unwrap().seal(EventId::now()).unwrap();
    bob.runtime.block_on(bob.store().commit_envelope(both)).expect("stored");
    // It only makes sense where the list is known.
    bob.commit(old::Noted { about: list.to_string() });

    let old_titles = "SELECT title FROM todo ORDER BY n";
    let new_titles = "SELECT title FROM thing WHERE title IS NOT NULL ORDER BY n";
    assert_eq!(bob.without_effect(5), (0, 0));
    assert_eq!(ann.without_effect(5), (1, 2), "the note; the list, and the batch as a whole");
    assert_eq!(ann.texts(old_titles), ["milk", "bread"]);
    assert_eq!(bob.texts(new_titles), ["milk", "bread", "eggs"]);
    let status: serde_json::Value = hub.get("/s/to-do/status").json();
    assert_eq!((&status["head"], &status["unknown"]), (&5.into(), &5.into()), "{status}");

    // The update.
    ann.runs(&new::app());
    assert_eq!(ann.without_effect(5), (0, 0));
    assert_eq!(ann.texts(new_titles), bob.texts(new_titles));
    assert_eq!(ann.texts("SELECT about FROM note"), [list.to_string()]);
    ann.ends();
    bob.ends();
    assert_eq!(digests(&new::app(), &ann), digests(&new::app(), &bob));

    // And back, on the other one.
    bob.runs(&old::app());
    bob.commit(old::TodoAdded { title: "tea".into() });
    assert_eq!(bob.without_effect(6), (1, 2));
    assert_eq!(bob.texts(old_titles), ["milk", "bread", "tea"]);
    ann.runs(&new::app());
    ann.without_effect(6);
    bob.runs(&new::app());
    assert_eq!(bob.without_effect(6), (0, 0));
    assert_eq!(bob.texts(new_titles), ann.texts(new_titles));
}

/// The digests of log and tables of a device that has ended.
fn digests(app: &App, device: &Device) -> String {
    let runtime = Runtime::new().unwrap();
    let _in_runtime = runtime.enter();
    let options = Options { data: Some(device.data.path().to_owned()), ..Options::default() };
    let node = app.open(options).expect("the data opens");
    let store = node.store("to-do").expect("the store");
    runtime.block_on(store.healthy());
    let (cursor, digest) = likewise::engine::committed_state(store.files()).expect("a state");
    drop(store);
    runtime.block_on(node.close());
    format!("{cursor:?} {digest}")
}

#[test]
fn a_page_of_before_posts_to_the_new_program() {
    let data = data_dir();
    let form = format!("id={}&title=milk", new_id());
    drop(serve(old::app(), data.path()));
    let served = serve(new::app(), data.path());
    let stored = served.post("add", "text/html", &form);
    assert_eq!(stored.status, 303, "what is missing has a default: {stored:?}");
    assert_eq!(served.status()["todos"], 1);

    // A field that it needs, and that the page doesn't have.
    let script = served.post("due", "application/json", "day=Monday");
    assert_eq!((script.status, script.json()["code"].as_str()), (400, Some("malformed-form")));
    let page = served.post("due", "text/html", "day=Monday");
    assert_eq!(page.status, 400);
    assert!(page.body.contains("`hour`") && page.body.contains("Monday"), "{}", page.body);

    // A form that is no more. The answer is no word about the event, so a script goes on trying.
    let gone = served.post("note", "application/json", "about=milk");
    assert_eq!((gone.status, gone.json()["code"].as_str()), (404, Some("not-found")));
    drop(served);

    // The way back, with a field that the old program doesn't know.
    let served = serve(old::app(), data.path());
    assert_eq!(served.post("add", "text/html", "title=bread&urgent=true").status, 303);
    assert_eq!(served.status()["todos"], 2);
}
