//! The feature: what can happen to a to-do, what that does to the tables, and what the page asks of them.
//!
//! Every event says what a person did, and none says what the list is then. So the changes of two people who were offline
//! merge, whatever they were.

use likewise::engine::{Db, DbError, Event, EventId, Query, Schema};
use serde::{Deserialize, Serialize};

/// The most characters of a title. It has to fit on a phone.
const LONGEST: usize = 200;

/// How many finished to-dos the page shows.
const FINISHED: u32 = 20;

/// There is something to do. Words that begin with `#` are its tags.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TodoAdded {
    pub(crate) title: String,
}

/// It is done. With `undo`, it isn't after all.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TodoFinished {
    pub(crate) todo: EventId,
    #[serde(default)]
    pub(crate) undo: bool,
}

/// It goes next to another one.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TodoMoved {
    pub(crate) todo: EventId,
    pub(crate) side: Side,
    pub(crate) other: EventId,
}

/// On which side of another to-do.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Side {
    Before,
    After,
}

/// Its title is another one.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TodoRenamed {
    pub(crate) todo: EventId,
    pub(crate) title: String,
}

impl Event for TodoAdded {
    const NAME: &'static str = "TodoAdded";
}
impl Event for TodoFinished {
    const NAME: &'static str = "TodoFinished";
}
impl Event for TodoMoved {
    const NAME: &'static str = "TodoMoved";
}
impl Event for TodoRenamed {
    const NAME: &'static str = "TodoRenamed";
}

/// The tables, and what each event does to them.
pub(crate) fn schema() -> Schema {
    Schema::new(
        "CREATE TABLE todo (id TEXT PRIMARY KEY, title TEXT NOT NULL, place INTEGER NOT NULL) STRICT;
         CREATE TABLE tag (name TEXT, todo TEXT REFERENCES todo (id), PRIMARY KEY (name, todo)) STRICT, WITHOUT ROWID;
         CREATE TABLE finished (todo TEXT PRIMARY KEY REFERENCES todo (id), millis INTEGER NOT NULL) STRICT;
         CREATE INDEX todo_by_place ON todo (place);
         CREATE INDEX tag_by_todo ON tag (todo);",
    )
    .on(|TodoAdded { title }, db| {
        let title = checked(&title)?;
        db.execute("UPDATE todo SET place = place + 1", ())?;
        // An event's id is unique, and the same on every device: the best key there is.
        db.execute("INSERT INTO todo (id, title, place) VALUES (?1, ?2, 1)", (db.id(), title))?;
        write_tags(db, db.id(), title)
    })
    .on(|TodoFinished { todo, undo }, db| {
        place_of(db, todo)?;
        if undo {
            db.execute("DELETE FROM finished WHERE todo = ?1", [todo])
        } else {
            // Two people may finish the same one. The first did it.
            db.execute(
                "INSERT INTO finished (todo, millis) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
                (todo, db.millis()),
            )
        }
    })
    .on(|TodoMoved { todo, side, other }, db| {
        place_of(db, todo)?;
        let at = match side {
            Side::Before => place_of(db, other)?,
            Side::After => place_of(db, other)? + 1,
        };
        db.execute("UPDATE todo SET place = place + 1 WHERE place >= ?1", [at])?;
        db.execute("UPDATE todo SET place = ?2 WHERE id = ?1", (todo, at))
    })
    .on(|TodoRenamed { todo, title }, db| {
        let title = checked(&title)?;
        place_of(db, todo)?;
        db.execute("UPDATE todo SET title = ?2 WHERE id = ?1", (todo, title))?;
        db.execute("DELETE FROM tag WHERE todo = ?1", [todo])?;
        write_tags(db, todo, title)
    })
}

/// A title without the spaces around it. What is refused comes back into the form with these words.
fn checked(title: &str) -> Result<&str, DbError> {
    let title = title.trim();
    match title.chars().count() {
        0 => Err(DbError::refuse("A to-do needs a title.")),
        length if length > LONGEST => {
            Err(DbError::refuse(format!("This is {length} characters long. A title has at most {LONGEST}.")))
        }
        _ => Ok(title),
    }
}

/// Where a to-do stands in the list; one that nobody ever added is refused.
fn place_of(db: &Db<'_>, todo: EventId) -> Result<i64, DbError> {
    let place = db.first("SELECT place FROM todo WHERE id = ?1", [todo], |row| Ok(row.get(0)?))?;
    place.ok_or_else(|| DbError::refuse("This to-do isn't here. Reload the page."))
}

fn write_tags(db: &Db<'_>, todo: EventId, title: &str) -> Result<(), DbError> {
    for name in title.split_whitespace().filter_map(|word| word.strip_prefix('#')).filter(|name| !name.is_empty()) {
        // ASCII alone: what else is a lower-case letter may change with the version of Rust.
        let name = name.to_ascii_lowercase();
        db.execute("INSERT INTO tag (name, todo) VALUES (?1, ?2) ON CONFLICT DO NOTHING", (name, todo))?;
    }
    Ok(())
}

/// What the page's address asks for: the to-dos with this text, and with this tag.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Search {
    #[serde(default)]
    pub(crate) q: String,
    #[serde(default)]
    pub(crate) tag: String,
}

/// A to-do as the page shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Todo {
    pub(crate) id: EventId,
    pub(crate) title: String,
}

/// What is left to do, in the order that people gave it.
pub(crate) fn open(search: &Search) -> Query<Vec<Todo>> {
    Query::rows(
        "SELECT id, title FROM todo
         WHERE id NOT IN (SELECT todo FROM finished)
           AND instr(lower(title), lower(?1))
           AND (?2 = '' OR id IN (SELECT todo FROM tag WHERE name = ?2))
         ORDER BY place, id",
        |row| Ok(Todo { id: row.get("id")?, title: row.get("title")? }),
    )
    .bind(search.q.trim())
    .bind(&search.tag)
}

/// What was finished last.
pub(crate) fn finished(search: &Search) -> Query<Vec<Todo>> {
    Query::rows(
        "SELECT id, title FROM finished JOIN todo ON id = todo
         WHERE instr(lower(title), lower(?1))
           AND (?2 = '' OR id IN (SELECT todo FROM tag WHERE name = ?2))
         ORDER BY millis DESC, id LIMIT ?3",
        |row| Ok(Todo { id: row.get("id")?, title: row.get("title")? }),
    )
    .bind(search.q.trim())
    .bind(&search.tag)
    .bind(FINISHED)
}

/// How many are left.
pub(crate) fn left() -> Query<u64> {
    Query::first("SELECT count(*) FROM todo WHERE id NOT IN (SELECT todo FROM finished)")
}

/// The tags of what is left, and how many have each.
pub(crate) fn tags() -> Query<Vec<(String, u64)>> {
    Query::rows(
        "SELECT name, count(*) FROM tag WHERE todo NOT IN (SELECT todo FROM finished) GROUP BY name ORDER BY name",
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
}

#[cfg(test)]
mod tests {
    use likewise::engine::{Error, Setup, Store, StoreLimits, Stores};
    use likewise::testing::{Draft, Rng, converges};
    use tempfile::TempDir;

    use super::*;

    fn made_up(rng: &mut Rng) -> Draft {
        let title = (*rng.pick(&["Buy milk #shop", "Write", "Call Anna #phone #shop"])).to_owned();
        match rng.below(5) {
            0 | 1 => TodoAdded { title }.into(),
            2 => TodoFinished { todo: rng.earlier(), undo: rng.chance(30) }.into(),
            3 => {
                let (todo, other) = (rng.earlier(), rng.earlier());
                TodoMoved { todo, side: *rng.pick(&[Side::Before, Side::After]), other }.into()
            }
            _ => TodoRenamed { todo: rng.earlier(), title }.into(),
        }
    }

    #[test]
    fn all_devices_come_to_the_same_list() {
        converges(schema, made_up, 0..30);
    }

    /// A store of its own for a test, and what it is in.
    struct Desk {
        stores: Stores,
        store: Store,
        _dir: TempDir,
    }

    impl Desk {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let setup = Setup::new(schema(), "desk".parse().unwrap()).unwrap();
            let stores = Stores::open(dir.path(), setup, StoreLimits::default()).unwrap();
            let store = stores.get(&"todo".parse().unwrap()).unwrap();
            Self { stores, store, _dir: dir }
        }

        async fn add(&self, title: &str) -> EventId {
            self.store.commit(TodoAdded { title: title.to_owned() }).await.unwrap().id
        }

        async fn titles(&self, query: Query<Vec<Todo>>) -> Vec<String> {
            self.store.read(query).await.unwrap().into_iter().map(|todo| todo.title).collect()
        }

        async fn open(&self) -> Vec<String> {
            self.titles(open(&Search::default())).await
        }

        async fn refusal<E: Event>(&self, event: E) -> String {
            match self.store.commit(event).await {
                Err(Error::Refused(why)) => why,
                other => panic!("this should have been refused: {other:?}"),
            }
        }

        async fn close(self) {
            tokio::task::spawn_blocking(move || self.stores.close()).await.unwrap();
        }
    }

    #[test]
    fn the_schema_keeps_the_rules() {
        schema().check().unwrap();
    }

    #[test]
    fn the_app_keeps_the_rules() {
        super::super::app().check().unwrap();
    }

    #[tokio::test]
    async fn the_list_is_in_the_order_that_people_give_it() {
        let desk = Desk::new();
        let (c, b, a) = (desk.add("c").await, desk.add("b").await, desk.add("a").await);
        assert_eq!(desk.open().await, ["a", "b", "c"], "the newest stands first");
        desk.store.commit(TodoMoved { todo: a, side: Side::After, other: b }).await.unwrap();
        assert_eq!(desk.open().await, ["b", "a", "c"]);
        desk.store.commit(TodoMoved { todo: c, side: Side::Before, other: b }).await.unwrap();
        assert_eq!(desk.open().await, ["c", "b", "a"]);
        desk.store.commit(TodoMoved { todo: b, side: Side::Before, other: b }).await.unwrap();
        assert_eq!(desk.open().await, ["c", "b", "a"], "next to itself is where it was");
        desk.close().await;
    }

    #[tokio::test]
    async fn what_is_finished_leaves_the_list_and_comes_back_to_its_place() {
        let desk = Desk::new();
        let (_, b, _) = (desk.add("c").await, desk.add("b").await, desk.add("a").await);
        for _ in 0..2 {
            desk.store.commit(TodoFinished { todo: b, undo: false }).await.unwrap();
            assert_eq!(desk.open().await, ["a", "c"]);
        }
        assert_eq!(desk.titles(finished(&Search::default())).await, ["b"]);
        desk.store.commit(TodoFinished { todo: b, undo: true }).await.unwrap();
        assert_eq!(desk.open().await, ["a", "b", "c"]);
        assert_eq!(desk.store.read(left()).await.unwrap(), 3);
        desk.close().await;
    }

    #[tokio::test]
    async fn to_dos_are_found_by_text_and_by_tag() {
        let desk = Desk::new();
        let milk = desk.add("Buy milk #shop").await;
        desk.add("Mend the lamp #Home #home").await;
        desk.add("Buy 100% wool # #shop").await;
        let of = |q: &str, tag: &str| open(&Search { q: q.to_owned(), tag: tag.to_owned() });
        assert_eq!(desk.titles(of("buy", "")).await, ["Buy 100% wool # #shop", "Buy milk #shop"]);
        assert_eq!(desk.titles(of("0%", "")).await, ["Buy 100% wool # #shop"], "nothing has a special meaning");
        assert_eq!(desk.titles(of("milk", "shop")).await, ["Buy milk #shop"]);
        assert_eq!(desk.store.read(tags()).await.unwrap(), [("home".to_owned(), 1), ("shop".to_owned(), 2)]);
        desk.store.commit(TodoRenamed { todo: milk, title: " Buy oat milk ".to_owned() }).await.unwrap();
        assert_eq!(desk.titles(of("milk", "")).await, ["Buy oat milk"]);
        assert_eq!(desk.store.read(tags()).await.unwrap(), [("home".to_owned(), 1), ("shop".to_owned(), 1)]);
        desk.close().await;
    }

    #[tokio::test]
    async fn what_makes_no_sense_is_refused_in_words_for_people() {
        let desk = Desk::new();
        let nobody = EventId::now();
        assert_eq!(desk.refusal(TodoAdded { title: "  ".to_owned() }).await, "A to-do needs a title.");
        assert!(desk.refusal(TodoAdded { title: "x".repeat(201) }).await.contains("201 characters"));
        assert!(desk.refusal(TodoFinished { todo: nobody, undo: false }).await.contains("isn't here"));
        let milk = desk.add("milk").await;
        assert!(desk.refusal(TodoMoved { todo: milk, side: Side::After, other: nobody }).await.contains("isn't here"));
        desk.close().await;
    }
}
