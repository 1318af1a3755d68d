//! What `verify` says of materializers that break the rules without anybody noticing.

use likewise::engine::{Db, DbError, Schema, verify};

use crate::support::*;

/// A schema in which `Appended` adds a word, and `Liked` has `pick` read the words.
fn words(pick: impl Fn(&Db<'_>) -> Result<usize, DbError> + Send + Sync + 'static) -> Schema {
    Schema::new(
        "CREATE TABLE word (text TEXT NOT NULL) STRICT;
         CREATE TABLE picked (text TEXT) STRICT;",
    )
    .on(|event: Appended, db| db.execute("INSERT INTO word VALUES (?1)", [event.text]))
    .on(move |_: Liked, db| pick(db))
}

/// What is wrong with a store whose state was made by these materializers.
fn problems(schema: Schema) -> Vec<String> {
    let home = Home::new();
    let setup = setup(schema);
    let mut replica = home.try_open_as(setup.clone()).unwrap();
    let events = [append(1, "one"), append(2, "two"), append(3, "three"), like(4)];
    assert!(stored(&replica.commit(&events).unwrap()));
    drop(replica);
    verify(&home.files(), &setup.schema, &setup.executable).unwrap().problems
}

fn check(unordered: Schema, ordered: Schema, what: &str) {
    let found = problems(unordered);
    assert!(matches!(&*found, [problem] if problem.contains("Add ORDER BY")), "{what}: {found:?}");
    assert_eq!(problems(ordered), [""; 0], "{what}");
}

#[test]
fn materializers_that_depend_on_an_order_they_do_not_ask_for_are_found() {
    for (unordered, ordered) in [
        (
            "INSERT INTO picked SELECT text FROM word LIMIT 1",
            "INSERT INTO picked SELECT text FROM word ORDER BY rowid LIMIT 1",
        ),
        (
            "INSERT INTO picked SELECT (SELECT text FROM word)",
            "INSERT INTO picked SELECT (SELECT text FROM word ORDER BY rowid)",
        ),
        (
            "INSERT INTO picked SELECT group_concat(text) FROM word",
            "INSERT INTO picked SELECT group_concat(text ORDER BY rowid) FROM word",
        ),
        ("INSERT INTO picked SELECT text FROM word", "INSERT INTO picked SELECT text FROM word ORDER BY text"),
    ] {
        let pick = |sql: &'static str| words(move |db| db.execute(sql, ()));
        check(pick(unordered), pick(ordered), unordered);
    }
}

#[test]
fn materializers_that_take_rows_as_they_come_are_found() {
    let first = |sql: &'static str| {
        words(move |db| {
            let text = db.first(sql, (), |row| row.get::<_, String>(0))?;
            db.execute("INSERT INTO picked VALUES (?1)", [text])
        })
    };
    check(first("SELECT text FROM word"), first("SELECT text FROM word ORDER BY rowid"), "the first row");
    let all = |sql: &'static str| {
        words(move |db| {
            let texts = db.rows(sql, (), |row| row.get::<_, String>(0))?;
            db.execute("INSERT INTO picked VALUES (?1)", [texts.concat()])
        })
    };
    check(all("SELECT text FROM word"), all("SELECT text FROM word ORDER BY rowid"), "all rows");
}
