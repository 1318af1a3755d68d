//! Two versions of an app on one device: what `docs/evolution.md` promises when tables, events and fields change.

use std::path::Path;

use likewise::engine::{
    Device, Envelope, Error, Event, EventId, Files, NoEffect, Query, Schema, Setup, Store, StoreLimits, Stores, verify,
};
use serde::{Deserialize, Serialize};

/// Last year's program.
mod old {
    use super::*;

    #[derive(Serialize, Deserialize)]
    pub(super) struct ItemOrdered {
        pub(super) text: String,
    }
    impl Event for ItemOrdered {
        const NAME: &'static str = "ItemOrdered";
    }

    /// Has a field whose type the new program changes.
    #[derive(Serialize, Deserialize)]
    pub(super) struct ItemMoved {
        pub(super) to: String,
    }
    impl Event for ItemMoved {
        const NAME: &'static str = "ItemMoved";
    }

    /// Gets another name in the new program.
    #[derive(Serialize, Deserialize)]
    pub(super) struct Noted {
        pub(super) text: String,
    }
    impl Event for Noted {
        const NAME: &'static str = "Noted";
    }

    const TABLES: &str = "CREATE TABLE item (id TEXT PRIMARY KEY, text TEXT NOT NULL, cents INTEGER NOT NULL) STRICT;
         CREATE TABLE place (name TEXT NOT NULL) STRICT;
         CREATE TABLE note (text TEXT NOT NULL) STRICT;";

    /// Its prices are `cents`. Nothing but the materializer's body depends on them.
    pub(super) fn schema(cents: u32) -> Schema {
        Schema::new(TABLES)
            .on(move |ItemOrdered { text }, db| {
                db.execute("INSERT INTO item VALUES (?1, ?2, ?3)", (db.id(), text, cents))
            })
            .on(|ItemMoved { to }, db| db.execute("INSERT INTO place VALUES (?1)", [to]))
            .on(|Noted { text }, db| db.execute("INSERT INTO note VALUES (?1)", [text]))
    }
}

/// The new program.
mod new {
    use super::*;

    /// The Rust type has another name, a field was renamed, and one was added.
    #[derive(Serialize, Deserialize)]
    pub(super) struct Ordered {
        #[serde(rename = "text", alias = "title")]
        pub(super) title: String,
        #[serde(default)]
        pub(super) urgent: bool,
    }
    impl Event for Ordered {
        const NAME: &'static str = "ItemOrdered";
    }

    #[derive(Serialize, Deserialize)]
    pub(super) struct ItemMoved {
        pub(super) to: u32,
    }
    impl Event for ItemMoved {
        const NAME: &'static str = "ItemMoved";
    }

    #[derive(Serialize, Deserialize)]
    pub(super) struct NoteTaken {
        pub(super) text: String,
    }
    impl Event for NoteTaken {
        const NAME: &'static str = "NoteTaken";
    }

    #[derive(Serialize, Deserialize)]
    pub(super) struct ItemDropped {
        pub(super) item: EventId,
    }
    impl Event for ItemDropped {
        const NAME: &'static str = "ItemDropped";
    }

    pub(super) fn schema() -> Schema {
        Schema::new(
            "CREATE TABLE goods (id TEXT PRIMARY KEY, title TEXT NOT NULL CHECK (title <> ''), urgent INTEGER NOT NULL)
             STRICT;
             CREATE TABLE place (number INTEGER NOT NULL) STRICT;
             CREATE TABLE note (text TEXT NOT NULL) STRICT;",
        )
        .on(|Ordered { title, urgent }, db| {
            db.execute("INSERT INTO goods VALUES (?1, ?2, ?3)", (db.id(), title, urgent))
        })
        .on(|ItemMoved { to }, db| db.execute("INSERT INTO place VALUES (?1)", [to]))
        .on(|NoteTaken { text }, db| db.execute("INSERT INTO note VALUES (?1)", [text]))
        .on(|ItemDropped { item }, db| db.execute("DELETE FROM goods WHERE id = ?1", [item]))
    }
}

/// As the old program, but strict about fields.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StrictlyOrdered {
    text: String,
}
impl Event for StrictlyOrdered {
    const NAME: &'static str = "ItemOrdered";
}

/// Opens the store in `dir` with the program called `executable`, has `act` use it, and closes it.
async fn with<R>(dir: &Path, executable: &str, schema: Schema, act: impl AsyncFnOnce(Store) -> R) -> R {
    let stores = Stores::open(dir, setup(executable, schema), StoreLimits::default()).expect("stores");
    used(stores, act).await
}

async fn used<R>(stores: Stores, act: impl AsyncFnOnce(Store) -> R) -> R {
    let result = act(stores.get(&"shop".parse().expect("a name")).expect("a store")).await;
    tokio::task::spawn_blocking(move || stores.close()).await.expect("closed");
    result
}

fn setup(executable: &str, schema: Schema) -> Setup {
    let device: Device = "desk".parse().expect("a name");
    Setup { executable: executable.to_owned(), ..Setup::new(schema, device).expect("a setup") }
}

async fn texts(store: &Store, sql: &'static str) -> Vec<String> {
    store.read(Query::rows(sql, |row| Ok(row.get(0)?))).await.expect("an answer")
}

async fn number(store: &Store, sql: &'static str) -> u64 {
    store.read(Query::first(sql)).await.expect("an answer")
}

/// What has no effect: how many events were skipped, and how many are unknown.
async fn without_effect(store: &Store) -> (u64, u64) {
    let health = store.healthy().await;
    let standing = health.standing().expect("a store with events");
    (standing.skipped, standing.unknown)
}

#[tokio::test]
async fn a_new_body_of_a_materializer_is_about_the_past_as_well() {
    let dir = tempfile::tempdir().expect("a directory");
    let cents = "SELECT sum(cents) FROM item";
    let ordered = || old::ItemOrdered { text: "tea".into() };
    with(dir.path(), "last year's", old::schema(450), async |store| {
        store.commit(ordered()).await.expect("stored");
        assert_eq!(number(&store, cents).await, 450);
    })
    .await;
    with(dir.path(), "this year's", old::schema(500), async |store| {
        assert_eq!(number(&store, cents).await, 500, "yesterday's order, too");
        store.commit(ordered()).await.expect("stored");
        assert_eq!(number(&store, cents).await, 1_000);
    })
    .await;
    let files = Files::in_dir(dir.path().join("shop"));
    let report = verify(&files, &setup("this year's", old::schema(500))).expect("a report");
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    // Nobody but the author sees that the insides differ.
    assert_eq!(old::schema(450).fingerprint(), old::schema(500).fingerprint());
    assert_ne!(old::schema(450).fingerprint(), old::schema(500).version(2).fingerprint());
}

#[tokio::test]
async fn trust_28_events_of_before_are_read_with_the_new_types_and_the_other_way_round() {
    let dir = tempfile::tempdir().expect("a directory");
    with(dir.path(), "old", old::schema(1), async |store| {
        for text in ["milk", ""] {
            store.commit(old::ItemOrdered { text: text.into() }).await.expect("stored");
        }
        store.commit(old::ItemMoved { to: "the shed".into() }).await.expect("stored");
        store.commit(old::Noted { text: "closed on Monday".into() }).await.expect("stored");
    })
    .await;
    with(dir.path(), "new", new::schema(), async |store| {
        assert_eq!(texts(&store, "SELECT title FROM goods WHERE NOT urgent").await, ["milk"]);
        assert_eq!(number(&store, "SELECT count(*) FROM place").await, 0);
        assert_eq!(number(&store, "SELECT count(*) FROM note").await, 0);
        // The title that is forbidden now, the place that is no number; the name that nobody knows any more.
        assert_eq!(without_effect(&store).await, (2, 1));
        let why: Vec<_> = store.skipped().await.expect("reasons").into_iter().map(|skipped| skipped.why).collect();
        let has = |words: &str| why.iter().any(|why| matches!(why, NoEffect::Failed(why) if why.contains(words)));
        assert!(has("title <> ''") && has("invalid type: string"), "{why:?}");
        assert!(why.contains(&NoEffect::UnknownName), "{why:?}");

        store.commit(new::Ordered { title: "bread".into(), urgent: true }).await.expect("stored");
        let titled = Envelope {
            id: EventId::now(),
            name: "ItemOrdered".parse().expect("a name"),
            args: r#"{"title":"eggs"}"#.parse().expect("a payload"),
        };
        store.commit_envelope(titled).await.expect("the alias");
        store.commit(new::ItemMoved { to: 7 }).await.expect("stored");
        store.commit(new::NoteTaken { text: "and on Sunday".into() }).await.expect("stored");
    })
    .await;
    with(dir.path(), "old", old::schema(1), async |store| {
        let items = texts(&store, "SELECT text FROM item ORDER BY rowid").await;
        assert_eq!(items, ["milk", "", "bread"], "what is new in an event is passed over");
        assert_eq!(texts(&store, "SELECT name FROM place").await, ["the shed"]);
        assert_eq!(texts(&store, "SELECT text FROM note").await, ["closed on Monday"]);
        // The title under another name and the place that is a number; the new name.
        assert_eq!(without_effect(&store).await, (2, 1));
        // A version that doesn't know an event doesn't make it, either.
        let refused = store.commit(new::NoteTaken { text: "never".into() }).await;
        assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
    })
    .await;
    with(dir.path(), "strict", strict(), async |store| {
        assert_eq!(texts(&store, "SELECT text FROM item ORDER BY rowid").await, ["milk", ""], "bread has a field more");
    })
    .await;
    with(dir.path(), "new", new::schema(), async |store| {
        assert_eq!(texts(&store, "SELECT title FROM goods ORDER BY rowid").await, ["milk", "bread", "eggs"]);
        assert_eq!(texts(&store, "SELECT text FROM note").await, ["and on Sunday"]);
    })
    .await;
}

fn strict() -> Schema {
    Schema::new("CREATE TABLE item (id TEXT PRIMARY KEY, text TEXT NOT NULL) STRICT")
        .on(|StrictlyOrdered { text }, db| db.execute("INSERT INTO item VALUES (?1, ?2)", (db.id(), text)))
}

/// An event of the new program that waits for its hub, while the old one is back.
#[tokio::test]
async fn trust_28_what_waits_for_the_hub_waits_through_a_downgrade() {
    let dir = tempfile::tempdir().expect("a directory");
    let following = |executable: &str, schema| {
        Stores::following(dir.path(), setup(executable, schema), StoreLimits::default()).expect("stores")
    };
    let pending = async |store: &Store| store.healthy().await.standing().expect("events").pending;
    let milk = used(following("new", new::schema()), async |store| {
        let milk = store.commit(new::Ordered { title: "milk".into(), urgent: false }).await.expect("stored");
        store.commit(new::Ordered { title: "bread".into(), urgent: false }).await.expect("stored");
        store.commit(new::ItemDropped { item: milk.id }).await.expect("stored");
        milk.id
    })
    .await;
    used(following("old", old::schema(1)), async |store| {
        assert_eq!(texts(&store, "SELECT text FROM item ORDER BY rowid").await, ["milk", "bread"]);
        assert_eq!((pending(&store).await, without_effect(&store).await), (3, (0, 1)));
        store.commit(old::ItemOrdered { text: "eggs".into() }).await.expect("stored");
    })
    .await;
    used(following("new", new::schema()), async |store| {
        assert_eq!(
            texts(&store, "SELECT title FROM goods ORDER BY rowid").await,
            ["bread", "eggs"],
            "{milk} is dropped"
        );
        assert_eq!((pending(&store).await, without_effect(&store).await), (4, (0, 0)));
    })
    .await;
}
