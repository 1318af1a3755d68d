//! When live queries run, and what their watchers are told. Watchers are told before a commit returns, so only first answers
//! need waiting for here.

use std::sync::atomic::{AtomicU64, Ordering};

use likewise::engine::{DbError, Error, Event, Health, Query, Schema, StoreLimits, Stores, Watch};
use rusqlite::Row;
use serde::{Deserialize, Serialize};

use crate::support::*;

fn bank_shelf() -> Shelf {
    Shelf::new(bank(), StoreLimits::default())
}

fn deposit(n: u64, to: &str, amount: i64) -> likewise::engine::Envelope {
    event(id(n), "Deposited", &format!(r#"{{"to":"{to}","amount":{amount}}}"#))
}

/// The answer that a watcher has been told, if it is a new one.
fn told<T: Clone>(watch: &mut Watch<T>) -> Option<Result<T, Error>> {
    at_once(watch.next())
}

#[tokio::test]
async fn a_change_runs_a_query_once_however_many_watch_it() {
    static RUNS: AtomicU64 = AtomicU64::new(0);
    let shelf = bank_shelf();
    let store = shelf.store("likes");
    let query = Query::rows("SELECT count FROM likes", |row| {
        RUNS.fetch_add(1, Ordering::Relaxed);
        Ok(row.get::<_, i64>(0)?)
    });
    let mut watches: Vec<_> = (0..50).map(|_| store.watch(query.clone())).collect();
    for watch in &mut watches {
        assert_eq!(watch.next().await, Ok(vec![0]));
    }
    assert_eq!(RUNS.load(Ordering::Relaxed), 1);
    store.commit_envelope(like(1)).await.unwrap();
    assert_eq!(RUNS.load(Ordering::Relaxed), 2);
    store.add((2..10).map(|n| (like(n), device("phone"))).collect()).await.unwrap();
    assert_eq!(RUNS.load(Ordering::Relaxed), 3, "events that are committed together are one change");
    for watch in &mut watches {
        assert_eq!(told(watch), Some(Ok(vec![9])));
    }
    assert_eq!(store.read(query).await, Ok(vec![9]));
    assert_eq!(RUNS.load(Ordering::Relaxed), 3, "a reader gets the answer that is there");
}

#[tokio::test]
async fn a_commit_runs_only_the_queries_that_read_what_it_wrote() {
    static RUNS: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];
    fn count<const N: usize>(row: &Row<'_>) -> Result<String, DbError> {
        RUNS[N].fetch_add(1, Ordering::Relaxed);
        Ok(row.get(0)?)
    }
    let runs = || [0, 1, 2].map(|n| RUNS[n].load(Ordering::Relaxed));
    let shelf = bank_shelf();
    let store = shelf.store("likes");
    let mut likes = store.watch(Query::rows("SELECT format('%d', count) FROM likes", count::<0>));
    assert_eq!(likes.next().await, Ok(vec!["0".to_owned()]));
    let mut note = store.watch(Query::rows("SELECT text FROM note", count::<1>));
    assert_eq!(note.next().await, Ok(vec![String::new()]));
    let sql = "SELECT count || ' ' || n FROM likes, changes";
    let mut both = store.watch(Query::rows(sql, count::<2>));
    assert_eq!(both.next().await, Ok(vec!["0 0".to_owned()]));
    assert_eq!(runs(), [1, 1, 1]);
    for (event, expected) in [
        (append(1, "a"), [1, 2, 1]),
        (like(2), [2, 2, 2]),
        (append(3, "b"), [2, 3, 2]),
        (like(4), [3, 3, 3]),
        (event(id(5), "Put", r#"{"key":"k","value":"v"}"#), [3, 3, 4]),
        (deposit(6, "ann", 5), [3, 3, 4]),
        (like(4), [3, 3, 4]),
    ] {
        let name = event.name.clone();
        store.commit_envelope(event).await.unwrap();
        assert_eq!(runs(), expected, "after {name:?}");
    }
}

#[tokio::test]
async fn an_answer_that_is_equal_is_not_told_again() {
    static RUNS: AtomicU64 = AtomicU64::new(0);
    let shelf = bank_shelf();
    let store = shelf.store("likes");
    let mut watch = store.watch(Query::rows("SELECT count >= 2 FROM likes", |row| {
        RUNS.fetch_add(1, Ordering::Relaxed);
        Ok(row.get::<_, bool>(0)?)
    }));
    assert_eq!(watch.next().await, Ok(vec![false]));
    for (n, expected) in [(1, None), (2, Some(Ok(vec![true]))), (3, None), (4, None)] {
        store.commit_envelope(like(n)).await.unwrap();
        assert_eq!(RUNS.load(Ordering::Relaxed), n + 1);
        assert_eq!(told(&mut watch), expected, "after {n} likes");
    }
}

#[tokio::test]
async fn a_slow_watcher_gets_the_newest_answer_and_not_the_backlog() {
    let shelf = bank_shelf();
    let store = shelf.store("likes");
    let query = || Query::<i64>::first("SELECT count FROM likes");
    let (mut slow, mut quick) = (store.watch(query()), store.watch(query()));
    assert_eq!((slow.next().await, quick.next().await), (Ok(0), Ok(0)));
    for n in 1..=20 {
        store.commit_envelope(like(n as u64)).await.unwrap();
        assert_eq!(told(&mut quick), Some(Ok(n)));
    }
    assert_eq!(told(&mut slow), Some(Ok(20)));
    assert_eq!(told(&mut slow), None);
}

#[tokio::test]
async fn queries_are_the_same_by_their_text_parameters_and_reader() {
    static RUNS: AtomicU64 = AtomicU64::new(0);
    fn balance(row: &Row<'_>) -> Result<i64, DbError> {
        RUNS.fetch_add(1, Ordering::Relaxed);
        Ok(row.get(0)?)
    }
    fn negative(row: &Row<'_>) -> Result<i64, DbError> {
        balance(row).map(|balance| -balance)
    }
    const SQL: &str = "SELECT balance FROM account WHERE name = ?1";
    let shelf = bank_shelf();
    let store = shelf.store("bank");
    store.commit_envelope(deposit(1, "ann", 1)).await.unwrap();
    store.commit_envelope(deposit(2, "bob", 2)).await.unwrap();

    let of = |name: &str| Query::rows(SQL, balance).bind(name);
    let mut watches = vec![store.watch(of("ann")), store.watch(of("ann")), store.watch(of("bob"))];
    watches.push(store.watch(Query::rows(SQL, negative).bind("ann")));
    let mut answers = Vec::new();
    for watch in &mut watches {
        answers.push(watch.next().await.unwrap()[0]);
    }
    assert_eq!(answers, [1, 1, 2, -1]);
    assert_eq!(RUNS.load(Ordering::Relaxed), 3, "two of the four are the same");
    store.commit_envelope(deposit(3, "ann", 10)).await.unwrap();
    assert_eq!(RUNS.load(Ordering::Relaxed), 6);
    let told: Vec<_> = watches.iter_mut().map(|watch| told(watch).map(Result::unwrap)).collect();
    assert_eq!(told, [Some(vec![11]), Some(vec![11]), None, Some(vec![-11])]);
}

#[tokio::test]
async fn parameters_and_answers_of_other_types_make_other_queries() {
    let shelf = bank_shelf();
    let store = shelf.store("types");
    let kind = || Query::<String>::first("SELECT typeof(?1)");
    let queries =
        [kind().bind(1), kind().bind(1.0), kind().bind("1"), kind().bind(b"1".as_slice()), kind().bind(None::<i64>)];
    // All are watched at the same time, so none is forgotten before the next is added.
    let mut watches = queries.map(|query| store.watch(query));
    let mut kinds = Vec::new();
    for watch in &mut watches {
        kinds.push(watch.next().await.unwrap());
    }
    assert_eq!(kinds, ["integer", "real", "text", "blob", "null"]);

    const SQL: &str = "SELECT count FROM likes";
    let mut number = store.watch(Query::<u64>::first(SQL));
    let mut flag = store.watch(Query::<bool>::first(SQL));
    assert_eq!((number.next().await, flag.next().await), (Ok(0), Ok(false)));
    store.commit_envelope(like(1)).await.unwrap();
    assert_eq!((told(&mut number), told(&mut flag)), (Some(Ok(1)), Some(Ok(true))));
}

#[tokio::test]
async fn a_query_that_fails_says_why_once_and_answers_when_it_can() {
    let shelf = bank_shelf();
    let store = shelf.store("bank");
    let mut watch = store.watch(Query::<i64>::first("SELECT balance FROM account WHERE name = 'ann'"));
    assert!(matches!(watch.next().await, Err(Error::Query(_))));
    store.commit_envelope(like(1)).await.unwrap();
    assert_eq!(told(&mut watch), None);
    store.commit_envelope(deposit(2, "ann", 5)).await.unwrap();
    assert_eq!(told(&mut watch), Some(Ok(5)));
}

#[tokio::test]
async fn a_query_that_nobody_watches_any_more_is_forgotten_once_others_were_asked() {
    static RUNS: AtomicU64 = AtomicU64::new(0);
    let shelf = bank_shelf();
    let store = shelf.store("likes");
    let query = Query::rows("SELECT count FROM likes", |row| {
        RUNS.fetch_add(1, Ordering::Relaxed);
        Ok(row.get::<_, i64>(0)?)
    });
    let runs = || RUNS.load(Ordering::Relaxed);
    let [mut first, second] = [store.watch(query.clone()), store.watch(query.clone())];
    assert_eq!(first.next().await, Ok(vec![0]));
    drop((first, second));
    store.commit_envelope(like(1)).await.unwrap();
    assert_eq!(runs(), 2, "it was asked for a moment ago");
    assert_eq!(store.read(query.clone()).await, Ok(vec![1]));
    assert_eq!(runs(), 2, "the answer is known");
    for n in 0..100_i64 {
        let other = Query::<i64>::first("SELECT count + ?1 FROM likes").bind(n);
        assert_eq!(store.read(other).await, Ok(1 + n));
    }
    for n in 2..5 {
        store.commit_envelope(like(n)).await.unwrap();
    }
    assert_eq!(runs(), 2);
    assert_eq!(store.read(query).await, Ok(vec![4]), "not the answer from before");
    assert_eq!(runs(), 3);
}

#[tokio::test]
async fn trust_62_a_panic_in_what_reads_the_rows_costs_that_answer_alone() {
    let shelf = bank_shelf();
    let store = shelf.store("likes");
    let mut picky = store.watch(Query::rows("SELECT count FROM likes", |row| {
        let count: i64 = row.get(0)?;
        assert!(count != 1, "there is no such thing as one like");
        Ok(count)
    }));
    let mut calm = store.watch(Query::<i64>::first("SELECT count FROM likes"));
    assert_eq!(picky.next().await, Ok(vec![0]));
    assert_eq!(calm.next().await, Ok(0));
    // It comes from another device, so nobody could have refused it.
    store.add(vec![(like(1), device("phone"))]).await.unwrap();
    let Some(Err(Error::Query(why))) = told(&mut picky) else { panic!("the answer doesn't tell of the panic") };
    assert!(why.contains("panicked: there is no such thing as one like"), "{why}");
    assert_eq!(told(&mut calm), Some(Ok(1)));
    store.commit_envelope(like(2)).await.unwrap();
    assert_eq!(told(&mut picky), Some(Ok(vec![2])));
    assert_eq!(told(&mut calm), Some(Ok(2)));
    assert!(matches!(store.healthy().await, Health::Open(_)));
}

/// Counts up to `?1`, row by row, and reads a table on the way.
const COUNT_UP: &str =
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1) SELECT i FROM n, likes";

const FOR_EVER: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";

fn assert_refused<T: std::fmt::Debug>(answer: Result<T, Error>) {
    let Err(Error::Query(why)) = answer else { panic!("{answer:?}") };
    assert!(why.contains("steps") && why.contains("Add an index") && why.contains("WITH RECURSIVE n(i)"), "{why}");
}

#[tokio::test]
async fn a_query_that_never_ends_is_refused_and_the_store_goes_on() {
    let scratch = scratch();
    let schema = bank();
    // Pending events of a store that follows are in a transaction that stays open. It must outlive the refusal.
    let stores = Stores::following(scratch.path(), setup(schema), StoreLimits::default()).unwrap();
    let store = stores.get(&"likes".parse().unwrap()).unwrap();
    for n in 1..=3 {
        store.commit_envelope(like(n)).await.unwrap();
        assert_refused(store.read(Query::<i64>::first(FOR_EVER)).await);
        assert_eq!(store.read(Query::<u64>::first("SELECT count FROM likes")).await, Ok(n));
    }
    let Health::Open(standing) = store.healthy().await else { panic!("the store was opened again") };
    assert_eq!(standing.pending, 3);
}

#[tokio::test]
async fn a_watched_query_is_refused_by_its_parameter_and_no_commit_waits_for_it_again() {
    static RUNS: AtomicU64 = AtomicU64::new(0);
    fn noted(row: &Row<'_>) -> Result<(), DbError> {
        if row.get::<_, i64>(0)? == 1 {
            RUNS.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
    let shelf = bank_shelf();
    let store = shelf.store("likes");
    let mut costly = store.watch(Query::rows(COUNT_UP, noted).bind(i64::MAX));
    let mut cheap = store.watch(Query::rows(COUNT_UP, |row| Ok(row.get::<_, i64>(0)?)).bind(2));
    let mut likes = store.watch(Query::<u64>::first("SELECT count FROM likes"));
    assert_eq!((cheap.next().await, likes.next().await), (Ok(vec![1, 2]), Ok(0)));
    assert_refused(costly.next().await);
    for n in 1..=20 {
        store.commit_envelope(like(n)).await.unwrap();
        assert_eq!(told(&mut likes), Some(Ok(n)));
    }
    assert_eq!(told(&mut costly), None);
    // Now and then it is tried again.
    let runs = RUNS.load(Ordering::Relaxed);
    assert!(runs < 10, "it ran {runs} times in 20 commits");
    assert!(matches!(store.healthy().await, Health::Open(_)));
}

#[tokio::test]
async fn a_materializer_may_take_as_many_steps_as_it_needs() {
    let schema = Schema::new("CREATE TABLE total (n INTEGER NOT NULL) STRICT; INSERT INTO total VALUES (0);")
        .on(|Ran { sql }, db| db.execute(&sql, ()));
    let shelf = Shelf::new(schema, StoreLimits::default());
    let store = shelf.store("likes");
    let event = Ran { sql: format!("UPDATE total SET n = ({FOUR_MILLION})") };
    store.commit(event).await.unwrap();
    assert_eq!(store.read(Query::<i64>::first("SELECT n FROM total")).await, Ok(4_000_000));
    assert_refused(store.read(Query::<i64>::first(FOUR_MILLION)).await);
}

const FOUR_MILLION: &str =
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 4000000) SELECT count(*) FROM n";

/// Runs the statement in its payload.
#[derive(Debug, Serialize, Deserialize)]
struct Ran {
    sql: String,
}

impl Event for Ran {
    const NAME: &'static str = "Ran";
}

fn zoo() -> Schema {
    Schema::new(
        "CREATE TABLE plain (id INTEGER PRIMARY KEY, word TEXT UNIQUE) STRICT;
         INSERT INTO plain VALUES (1, 'one'), (2, 'two');
         CREATE TABLE keyed (word TEXT PRIMARY KEY, n INTEGER) STRICT, WITHOUT ROWID;
         INSERT INTO keyed VALUES ('one', 1), ('two', 2);
         CREATE TABLE parent (id INTEGER PRIMARY KEY, name TEXT UNIQUE) STRICT;
         INSERT INTO parent VALUES (1, 'ann'), (2, 'bob');
         CREATE TABLE child (parent INTEGER REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE) STRICT;
         INSERT INTO child VALUES (1), (2);
         CREATE TABLE orphan (parent INTEGER REFERENCES parent ON DELETE SET NULL ON UPDATE SET NULL) STRICT;
         INSERT INTO orphan VALUES (1), (2);
         CREATE TABLE grandchild (parent INTEGER) STRICT;
         CREATE TRIGGER child_goes AFTER DELETE ON child BEGIN INSERT INTO grandchild VALUES (old.parent); END;
         CREATE TABLE source (n INTEGER) STRICT;
         CREATE TABLE tally (n INTEGER) STRICT;
         INSERT INTO tally VALUES (0);
         CREATE TABLE total (n INTEGER) STRICT;
         INSERT INTO total VALUES (0);
         CREATE TRIGGER source_tally AFTER INSERT ON source BEGIN UPDATE tally SET n = n + new.n; END;
         CREATE TRIGGER tally_total AFTER UPDATE ON tally BEGIN UPDATE total SET n = n + 100; END;
         CREATE VIEW words AS SELECT word FROM plain UNION SELECT word FROM keyed;
         CREATE TRIGGER words_insert INSTEAD OF INSERT ON words BEGIN INSERT INTO keyed VALUES (new.word, 0); END;",
    )
    .on(|event: Ran, db| db.rows(&event.sql, (), |_| Ok(())))
}

const PLAIN: &str = "SELECT group_concat(id || word, ' ' ORDER BY id) FROM plain";
const KEYED: &str = "SELECT group_concat(word || n, ' ' ORDER BY word) FROM keyed";
const CHILD: &str = "SELECT group_concat(parent, ' ' ORDER BY parent) FROM child";
const ORPHAN: &str = "SELECT group_concat(ifnull(parent, '-'), ' ' ORDER BY parent) FROM orphan";
const GRANDCHILD: &str = "SELECT group_concat(parent, ' ' ORDER BY parent) FROM grandchild";
const TALLY: &str = "SELECT format('%d', n) FROM tally";
const TOTAL: &str = "SELECT format('%d', n) FROM total";
const WORDS: &str = "SELECT group_concat(word, ' ' ORDER BY word) FROM words";
const MANY: &str = "SELECT format('%d', count(*)) FROM plain";
const MANY_SHOUTED: &str = "SELECT format('%d', count(*)) FROM PLAIN";
const MANY_NAMED: &str = "WITH n AS (SELECT id FROM plain LIMIT 9) SELECT format('%d', count(*)) FROM n";
const WITHIN: &str = "SELECT format('%d %d', EXISTS (SELECT 1 FROM grandchild), 7 IN (SELECT n FROM source))";

#[tokio::test]
async fn however_rows_change_those_who_watch_them_are_told() {
    let shelf = Shelf::new(zoo(), StoreLimits::default());
    for (number, (sql, watched, before, after)) in [
        ("INSERT INTO keyed VALUES ('six', 6)", KEYED, "one1 two2", "one1 six6 two2"),
        ("UPDATE keyed SET n = 9 WHERE word = 'one'", KEYED, "one1 two2", "one9 two2"),
        ("DELETE FROM keyed WHERE word = 'one'", KEYED, "one1 two2", "two2"),
        ("INSERT OR REPLACE INTO keyed VALUES ('one', 7)", KEYED, "one1 two2", "one7 two2"),
        ("INSERT OR REPLACE INTO plain VALUES (3, 'one')", PLAIN, "1one 2two", "2two 3one"),
        ("UPDATE OR REPLACE plain SET word = 'two' WHERE id = 1", PLAIN, "1one 2two", "1two"),
        (
            "INSERT INTO plain VALUES (1, 'uno') ON CONFLICT DO UPDATE SET word = excluded.word",
            PLAIN,
            "1one 2two",
            "1uno 2two",
        ),
        ("INSERT INTO plain VALUES (3, 'three') RETURNING id", PLAIN, "1one 2two", "1one 2two 3three"),
        ("DELETE FROM plain", PLAIN, "1one 2two", ""),
        ("DELETE FROM plain", MANY, "2", "0"),
        ("DELETE FROM Plain", MANY_SHOUTED, "2", "0"),
        ("DELETE FROM plain", MANY_NAMED, "2", "0"),
        ("DELETE FROM keyed", KEYED, "one1 two2", ""),
        ("INSERT INTO source VALUES (5)", TALLY, "0", "5"),
        ("INSERT INTO source VALUES (5)", TOTAL, "0", "100"),
        ("INSERT INTO source VALUES (7)", WITHIN, "0 0", "0 1"),
        ("DELETE FROM parent WHERE id = 1", CHILD, "1 2", "2"),
        ("DELETE FROM parent", CHILD, "1 2", ""),
        ("UPDATE parent SET id = 5 WHERE id = 1", CHILD, "1 2", "2 5"),
        ("INSERT OR REPLACE INTO parent VALUES (3, 'ann')", CHILD, "1 2", "2"),
        ("DELETE FROM parent WHERE id = 1", ORPHAN, "1 2", "- 2"),
        ("UPDATE parent SET id = 5 WHERE id = 1", ORPHAN, "1 2", "- 2"),
        ("INSERT OR REPLACE INTO parent VALUES (3, 'ann')", ORPHAN, "1 2", "- 2"),
        ("DELETE FROM parent WHERE id = 1", GRANDCHILD, "", "1"),
        ("DELETE FROM parent WHERE id = 1", WITHIN, "0 0", "1 0"),
        ("DELETE FROM child", GRANDCHILD, "", "1 2"),
        ("INSERT INTO plain VALUES (3, 'three')", WORDS, "one two", "one three two"),
        ("INSERT INTO words VALUES ('six')", WORDS, "one two", "one six two"),
        ("INSERT INTO words VALUES ('six')", KEYED, "one1 two2", "one1 six0 two2"),
    ]
    .into_iter()
    .enumerate()
    {
        let store = shelf.store(&number.to_string());
        let mut watch = store.watch(Query::rows(watched, |row| Ok(row.get::<_, Option<String>>(0)?)));
        let answer = |text: &str| vec![Some(text.to_owned()).filter(|text| !text.is_empty())];
        assert_eq!(watch.next().await, Ok(answer(before)), "{watched}");
        store.commit(Ran { sql: sql.to_owned() }).await.unwrap();
        assert_eq!(told(&mut watch), Some(Ok(answer(after))), "{sql}; {watched}");
    }
}
