//! What `verify` says about materializers that break the rules unnoticed, and what an export keeps open while its reader is
//! slow.

use std::collections::HashSet;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use likewise::engine::{Db, DbError, Files, Line, Replica, Schema, export, verify};
use rusqlite::{Connection, OpenFlags};

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

/// The problems of a store whose state was made by these materializers.
fn problems(schema: Schema) -> Vec<String> {
    let home = Home::new();
    let setup = setup(schema);
    let mut replica = home.try_open_as(setup.clone()).unwrap();
    let events = [append(1, "one"), append(2, "two"), append(3, "three"), like(4)];
    assert!(stored(&replica.commit(&events).unwrap()));
    drop(replica);
    verify(&home.files(), &setup).unwrap().problems
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
            let text = db.first(sql, (), |row| Ok(row.get::<_, String>(0)?))?;
            db.execute("INSERT INTO picked VALUES (?1)", [text])
        })
    };
    check(first("SELECT text FROM word"), first("SELECT text FROM word ORDER BY rowid"), "the first row");
    let all = |sql: &'static str| {
        words(move |db| {
            let texts = db.rows(sql, (), |row| Ok(row.get::<_, String>(0)?))?;
            db.execute("INSERT INTO picked VALUES (?1)", [texts.concat()])
        })
    };
    check(all("SELECT text FROM word"), all("SELECT text FROM word ORDER BY rowid"), "all rows");
}

/// A schema whose likes write down what `say` says.
fn saying(say: impl Fn() -> u64 + Send + Sync + 'static) -> Schema {
    words(move |db| db.execute("INSERT INTO picked VALUES (?1)", [say().to_string()]))
}

#[test]
fn a_materializer_that_is_not_deterministic_is_told_from_one_that_depends_on_the_order_of_rows() {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let found = problems(saying(|| CALLS.fetch_add(1, Ordering::Relaxed)));
    assert!(
        matches!(&*found, [problem] if problem.contains("not deterministic") && problem.contains("the table `picked`")),
        "{found:?}"
    );
    let found = problems(words(|db| db.execute("INSERT INTO picked SELECT text FROM word LIMIT 1", ())));
    assert!(matches!(&*found, [problem] if problem.contains("differs in the table `picked`")), "{found:?}");
}

#[test]
fn a_state_that_nothing_in_the_log_explains_is_told_with_its_tables() {
    let home = Home::new();
    let setup = setup(saying(|| 1));
    let mut replica = home.try_open_as(setup.clone()).unwrap();
    assert!(stored(&replica.commit(&[append(1, "one"), like(2)]).unwrap()));
    drop(replica);
    let conn = Connection::open(home.path("state.db")).unwrap();
    conn.execute_batch("UPDATE word SET text = 'won'; DELETE FROM picked").unwrap();
    drop(conn);
    let found = verify(&home.files(), &setup).unwrap().problems;
    let wanted = ["the state differs", "in the tables `picked`, `word`", "another program wrote to state.db"];
    assert!(matches!(&*found, [problem] if wanted.iter().all(|part| problem.contains(part))), "{found:?}");
}

/// A reader. Something happens to the store during its first read.
struct Slow<F> {
    bytes: Vec<u8>,
    meanwhile: Option<F>,
}

impl<F: FnOnce()> Write for Slow<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(meanwhile) = self.meanwhile.take() {
            meanwhile();
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn exported(files: &Files, meanwhile: impl FnOnce()) -> Vec<Line> {
    let mut out = Slow { bytes: Vec::new(), meanwhile: Some(meanwhile) };
    export(files, &mut out).unwrap();
    serde_json::Deserializer::from_slice(&out.bytes).into_iter().collect::<Result<_, _>>().unwrap()
}

/// Whether the eventlog's whole WAL can be moved into it. That needs nobody to be reading from it.
fn can_be_emptied(home: &Home) -> bool {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
    let conn = Connection::open_with_flags_and_vfs(home.path("eventlog.db"), flags, "unix-excl").unwrap();
    conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |row| row.get::<_, i64>(0)).unwrap() == 0
}

#[test]
fn trust_66_an_export_holds_nothing_while_its_reader_is_slow() {
    let home = Home::new();
    let mut replica = home.open();
    assert!(stored(&replica.commit(&(0..100).map(like).collect::<Vec<_>>()).unwrap()));
    let lines = exported(&home.files(), || {
        assert!(stored(&replica.commit(&[like(200)]).unwrap()));
        assert!(can_be_emptied(&home));
    });
    assert!(lines.len() >= 100);
}

#[test]
fn trust_11_an_export_has_each_event_once_though_pending_ones_get_their_place_meanwhile() {
    let ids = |lines: &[Line]| lines.iter().map(|line| line.id).collect::<Vec<_>>();
    let begin = || {
        let home = Home::new();
        let mut replica = home.follow();
        replica.arrive(&page(1, &[like(1), like(2)], false)).unwrap();
        assert!(stored(&replica.commit(&[like(3), like(4), like(5)]).unwrap()));
        (home, replica)
    };
    // Once while the log is written out, and once while the waiting events are.
    let arrive = |replica: &mut Replica| replica.arrive(&page(3, &[like(3), like(9), like(4)], false)).unwrap();
    let (home, mut replica) = begin();
    let lines = exported(&home.files(), || arrive(&mut replica));
    assert_eq!(ids(&lines), [1, 2, 3, 9, 4, 5].map(id));
    assert!(lines[5].seq.is_none());

    let (home, mut replica) = begin();
    replica.take_back(likewise::engine::Seq::START, replica.standing().unwrap().whose).unwrap();
    let lines = exported(&home.files(), || replica.arrive(&page(1, &[like(2), like(3), like(9)], false)).unwrap());
    let all: HashSet<_> = ids(&lines).into_iter().collect();
    assert_eq!((lines.len(), all), (6, [1, 2, 3, 4, 5, 9].map(id).into()));
}
