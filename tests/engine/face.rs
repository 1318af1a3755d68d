//! What the author of a feature writes (ids in tables, queries for one row, errors of any crate), and what the engine says when
//! something is wrong.

use std::io;
use std::sync::{Arc, Mutex};

use likewise::engine::{
    Batch, DbError, Error, Event, EventId, Malformed, Query, Row, Schema, StoreId, StoreLimits, Stores,
};
use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use crate::support::*;

#[derive(Debug, Serialize, Deserialize)]
struct TodoAdded {
    title: String,
}
impl Event for TodoAdded {
    const NAME: &'static str = "TodoAdded";
}

#[derive(Debug, Serialize, Deserialize)]
struct TodoDone {
    todo: EventId,
}
impl Event for TodoDone {
    const NAME: &'static str = "TodoDone";
}

fn todos() -> Schema {
    Schema::new("CREATE TABLE todo (id TEXT PRIMARY KEY, title TEXT NOT NULL, done INTEGER NOT NULL DEFAULT 0) STRICT")
        .on(|TodoAdded { title }, db| db.execute("INSERT INTO todo (id, title) VALUES (?1, ?2)", (db.id(), title)))
        .on(|TodoDone { todo }, db| db.execute("UPDATE todo SET done = 1 WHERE id = ?1", [todo]))
}

#[derive(Debug, Clone, PartialEq)]
struct Todo {
    id: EventId,
    words: usize,
    done: bool,
}

fn todo(row: &Row<'_>) -> Result<Todo, DbError> {
    let title: String = row.get("title")?;
    Ok(Todo { id: row.get("id")?, words: title.split(' ').count(), done: row.get("done")? })
}

#[tokio::test]
async fn an_id_goes_into_a_column_and_comes_out_of_it() {
    let shelf = Shelf::new(todos(), StoreLimits::default());
    let store = shelf.store("todo");
    let id = store.commit(TodoAdded { title: "buy tea".to_owned() }).await.unwrap().id;
    store.commit(TodoDone { todo: id }).await.unwrap();

    let by_id = Query::optional("SELECT * FROM todo WHERE id = ?1", todo).bind(id);
    assert_eq!(store.read(by_id).await, Ok(Some(Todo { id, words: 2, done: true })));
    assert_eq!(store.read(Query::<EventId>::first("SELECT id FROM todo")).await, Ok(id));
    let stranger = Query::optional("SELECT * FROM todo WHERE id = ?1", todo).bind(crate::support::id(7));
    assert_eq!(store.read(stranger).await, Ok(None));
    assert_eq!(store.read(Query::row("SELECT * FROM todo", todo)).await.unwrap().id, id);
}

#[test]
fn an_id_in_a_column_is_the_text_that_people_see() {
    let conn = Connection::open_in_memory().unwrap();
    let id = id(1);
    let text: String = conn.query_row("SELECT ?1", [id], |row| row.get(0)).unwrap();
    assert_eq!(text, id.to_string());
    let read: EventId = conn.query_row("SELECT ?1", [text.to_uppercase()], |row| row.get(0)).unwrap();
    assert_eq!(read, id);
    for bad in ["'x'", "7", "NULL", "x'00'"] {
        assert!(conn.query_row(&format!("SELECT {bad}"), (), |row| row.get::<_, EventId>(0)).is_err(), "{bad}");
    }
}

#[tokio::test]
async fn a_mapper_and_a_materializer_pass_on_errors_of_any_crate() {
    let schema = Schema::new("CREATE TABLE note (text TEXT NOT NULL) STRICT").on(|event: Appended, db| {
        let number: u64 = event.text.parse()?;
        db.execute("INSERT INTO note VALUES (?1)", [number.to_string() + "!"])
    });
    let shelf = Shelf::new(schema, StoreLimits::default());
    let store = shelf.store("notes");
    assert!(store.commit_envelope(append(1, "5")).await.is_ok());
    let refused = store.commit_envelope(append(2, "five")).await;
    assert!(matches!(&refused, Err(Error::Refused(why)) if why.contains("invalid digit")), "{refused:?}");
    let number = |row: &Row<'_>| Ok(row.get::<_, String>(0)?.parse::<u64>()?);
    let read = store.read(Query::rows("SELECT text FROM note", number)).await;
    assert!(matches!(&read, Err(Error::Query(why)) if why.contains("invalid digit")), "{read:?}");
}

#[tokio::test]
async fn a_parameter_that_cannot_be_bound_fails_the_query_and_not_the_building_of_it() {
    let shelf = Shelf::new(todos(), StoreLimits::default());
    let store = shelf.store("todo");
    let query = Query::<u64>::first("SELECT count(*) FROM todo WHERE done > ?1 AND title > ?2").bind(u64::MAX).bind("");
    let read = store.read(query).await;
    assert!(
        matches!(&read, Err(Error::Query(why)) if why.contains("?1 can't be bound") && why.contains("FROM todo")),
        "{read:?}"
    );
}

#[tokio::test]
async fn errors_convert_into_what_the_users_of_a_store_see() {
    async fn add(shelf: &Shelf, store: &str, title: &str) -> Result<EventId, Error> {
        let id: StoreId = store.parse()?;
        let title = title.parse::<u64>().map_err(DbError::from)?.to_string();
        Ok(shelf.stores.get(&id)?.commit(TodoAdded { title }).await?.id)
    }
    let shelf = Shelf::new(todos(), StoreLimits::default());
    assert!(add(&shelf, "todo", "7").await.is_ok());
    assert!(matches!(add(&shelf, "To Do", "7").await, Err(Error::Malformed(Malformed::Store(_)))));
    assert!(matches!(add(&shelf, "todo", "seven").await, Err(Error::Query(_))));
}

#[tokio::test]
async fn an_error_of_sqlite_names_the_statement() {
    let shelf = Shelf::new(todos(), StoreLimits::default());
    let store = shelf.store("todo");
    let read = store.read(Query::<u64>::first("SELECT count(*)\n     FROM  tood")).await;
    let Err(Error::Query(why)) = read else { panic!("{read:?}") };
    assert_eq!(why, "no such table: tood, in the statement `SELECT count(*) FROM tood`");
}

/// Two events together, under one id.
fn pair(id: EventId) -> likewise::engine::Envelope {
    let todo = |title: &str| TodoAdded { title: title.to_owned() };
    Batch::new().with(&todo("one")).unwrap().with(&todo("two")).unwrap().seal(id).unwrap()
}

fn ids() -> Query<Vec<EventId>> {
    Query::rows("SELECT id FROM todo ORDER BY title", |row| Ok(row.get(0)?))
}

#[tokio::test]
async fn each_event_of_a_batch_has_an_id_of_its_own_and_the_receipt_gives_them() {
    let shelf = Shelf::new(todos(), StoreLimits::default());
    let store = shelf.store("todo");
    let receipt = store.commit_envelope(pair(id(1))).await.unwrap();
    let given: Vec<EventId> = receipt.ids().collect();
    assert_eq!(store.read(ids()).await, Ok(given.clone()));
    assert_eq!((given[0], given[1].millis()), (id(1), id(1).millis()));
    assert_ne!(given[0], given[1]);
    assert_eq!(store.commit_envelope(pair(id(1))).await.unwrap().ids().collect::<Vec<_>>(), given, "whenever it comes");
    let single = store.commit(TodoAdded { title: "three".to_owned() }).await.unwrap();
    assert_eq!(single.ids().collect::<Vec<_>>(), [single.id]);
}

/// Every replica and every later version must derive the same ids, or states of the same log would differ.
#[test]
fn the_ids_in_a_batch_are_fixed() {
    let home = Home::new();
    let mut replica = home.try_open_as(setup(todos())).unwrap();
    replica.commit(&[pair("0190d1e5-3f5c-7bb2-8a3e-5d4f6c7b8a90".parse().unwrap())]).unwrap();
    let texts: Vec<String> = replica.query(&ids()).unwrap().iter().map(EventId::to_string).collect();
    assert_eq!(texts, ["0190d1e5-3f5c-7bb2-8a3e-5d4f6c7b8a90", "0190d1e5-3f5c-7f7c-9707-7cedb201d07b"]);
}

/// What opening says about a schema in which `TodoAdded` runs this.
fn refused(sql: &'static str) -> String {
    let schema = todos().on(move |_: Appended, db| db.execute(sql, ()));
    let opened = Stores::open(&scratch().path().join("stores"), setup(schema), StoreLimits::default());
    opened.err().map(|fault| fault.to_string()).unwrap_or_default()
}

#[test]
fn wrong_sql_in_a_materializer_is_found_when_the_stores_are_opened() {
    for (sql, why) in [
        ("UPDATE tood SET done = 1", "no such table: tood"),
        ("UPDATE todo SET dnoe = 1", "no such column: dnoe"),
        ("UPDAT todo SET done = 1", "near \"UPDAT\": syntax error"),
        ("UPDATE todo SET title = datetime('now')", "use db.millis()"),
        ("UPDATE todo SET title = hex(randomblob(8))", "use db.id()"),
        ("CREATE TABLE other (a)", "is not one of the schema's"),
    ] {
        let said = refused(sql);
        assert!(said.contains("the materializer of Appended") && said.contains(why) && said.contains(sql), "{said}");
    }
}

#[test]
fn sql_that_only_a_real_event_makes_is_left_alone_when_the_stores_are_opened() {
    let schema = Schema::new("CREATE TABLE todo (id TEXT PRIMARY KEY, title TEXT NOT NULL CHECK (title = 'x')) STRICT")
        // Fails while the table is empty, and swallows the error.
        .on(|_: Liked, db| {
            db.first("SELECT title FROM todo", (), |row| Ok(row.get::<_, String>(0)?))?.ok_or(Malformed::Seq(1))?;
            db.execute("UPDATE todo SET title = 'y'", ())
        })
        .on(|event: Appended, db| db.execute("INSERT INTO todo VALUES (?1, ?2)", (db.id(), event.text)))
        // The SQL is made from the payload, so a made-up payload proves nothing.
        .on(|event: Put, db| db.execute(&format!("UPDATE todo SET {} = ?1", event.key), [event.value]))
        .on(|_: Committed, _| -> Result<(), DbError> {
            std::panic::resume_unwind(Box::new("a mistake that costs one event"))
        });
    drop(Stores::open(&scratch().path().join("stores"), setup(schema), StoreLimits::default()).unwrap());
}

#[test]
fn a_statement_is_found_behind_what_other_made_up_events_have_stored() {
    let schema = todos().on(|_: Liked, db| {
        let done: Option<i64> = db.first("SELECT done FROM todo WHERE done", (), |row| Ok(row.get(0)?))?;
        if done.is_some() { db.execute("DELETE FROM tood", ()) } else { Ok(0) }
    });
    let fault = schema.check().unwrap_err().to_string();
    assert!(fault.contains("no such table: tood"), "{fault}");
}

#[tokio::test]
async fn a_refusal_names_the_event_and_the_statement_unless_the_words_are_the_authors() {
    let schema = todos().on(|event: Appended, db| -> Result<(), DbError> {
        db.execute("INSERT INTO todo VALUES (NULL, NULL, NULL)", ())?;
        Err(DbError::refuse(event.text))
    });
    let shelf = Shelf::new(schema, StoreLimits::default());
    let store = shelf.store("todo");
    let refused = store.commit_envelope(append(1, "no")).await;
    let Err(Error::Refused(why)) = refused else { panic!("{refused:?}") };
    let wanted = "Appended can't be applied: NOT NULL constraint failed: todo.id, in the statement `INSERT INTO todo \
                  VALUES (NULL, NULL, NULL)`";
    assert_eq!(why, wanted);
    let refused = store.commit_envelope(event(id(2), "TodoAdded", r#"{"titel":"x"}"#)).await;
    let Err(Error::Refused(why)) = refused else { panic!("{refused:?}") };
    assert!(why.starts_with("TodoAdded can't be applied: its payload can't be read: missing field `title`"), "{why}");
}

#[tokio::test]
async fn a_refused_batch_names_the_event_in_it_or_itself() {
    let schema =
        todos().on(|_: Panicked, _| -> Result<(), DbError> { std::panic::resume_unwind(Box::new("a mistake")) }).on(
            |event: Claimed, db| db.execute("INSERT OR ROLLBACK INTO todo (id, title) VALUES (?1, NULL)", [event.name]),
        );
    let shelf = Shelf::new(schema, StoreLimits::default());
    let store = shelf.store("todo");
    let batch = |item: &str| {
        event(id(1), "likewise.batch", &format!(r#"[{{"name":"TodoAdded","args":{{"title":"x"}}}},{item}]"#))
    };
    for (item, wanted) in [
        (r#"{"name":"TodoAdded","args":{"title":7}}"#, "TodoAdded can't be applied: its payload can't be read"),
        (r#"{"name":"Panicked"}"#, "the batch can't be applied: its materializer panicked: a mistake"),
        (
            r#"{"name":"Claimed","args":{"name":"x","by":"y"}}"#,
            "the batch can't be applied: NOT NULL constraint failed",
        ),
    ] {
        let refused = store.commit_envelope(batch(item)).await;
        assert!(matches!(&refused, Err(Error::Refused(why)) if why.starts_with(wanted)), "{refused:?}");
    }
    assert_eq!(store.read(ids()).await, Ok(Vec::new()));
}

/// What is logged while `act` runs.
fn logged(act: impl FnOnce()) -> String {
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let lines = Lines::default();
    let writer = lines.clone();
    let logger = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(logger, act);
    String::from_utf8(lines.0.lock().unwrap().clone()).unwrap()
}

#[test]
fn events_without_effect_are_told_once_a_kind() {
    let home = Home::new();
    let mut replica = home.try_open_as(setup(todos())).unwrap();
    let bad = |n| (event(id(n), "TodoAdded", r#"{"title":7}"#), device("phone"));
    let unknown = |n| (event(id(n), "TodoMoved", ""), device("phone"));
    let lines = logged(|| {
        replica.add(&[bad(1), unknown(2), bad(3), unknown(4)]).unwrap();
        replica.add(&[bad(5), unknown(6)]).unwrap();
    });
    let of = |name: &str| lines.lines().filter(|line| line.contains(name)).count();
    assert_eq!((of("TodoAdded"), of("TodoMoved"), lines.lines().count()), (1, 1, 2), "{lines}");
    assert!(lines.contains("its payload can't be read") && lines.contains("nothing here knows it"), "{lines}");
    let standing = replica.standing().unwrap();
    assert_eq!((standing.skipped, standing.unknown), (3, 3));
}
