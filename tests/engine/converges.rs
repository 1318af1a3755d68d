//! What `converges` tells an author whose materializer breaks the rules. A right one passes without a word.

use std::collections::HashMap;
use std::panic::catch_unwind;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use likewise::engine::{Batch, Db, DbError, Event, EventId, Query, Schema};
use likewise::testing::{Draft, Rng, Simulation, converges};
use serde::{Deserialize, Serialize};

/// As many seeds as an author would use.
const SEEDS: std::ops::Range<u64> = 0..100;

#[derive(Serialize, Deserialize)]
struct PostAdded {
    title: String,
    tags: Vec<String>,
}
impl Event for PostAdded {
    const NAME: &'static str = "PostAdded";
}

#[derive(Serialize, Deserialize)]
struct PostPinned {
    post: EventId,
}
impl Event for PostPinned {
    const NAME: &'static str = "PostPinned";
}

const TABLES: &str = "
    CREATE TABLE post (id TEXT PRIMARY KEY, title TEXT NOT NULL) STRICT;
    CREATE TABLE tag (n INTEGER PRIMARY KEY, post TEXT NOT NULL REFERENCES post (id), tag TEXT NOT NULL) STRICT;
    CREATE TABLE pin (post TEXT NOT NULL REFERENCES post (id), note TEXT NOT NULL) STRICT;
";

/// Posts with tags. `pin` writes the note when a post is pinned.
fn posts(pin: impl Fn(&Db<'_>, EventId) -> Result<usize, DbError> + Send + Sync + 'static) -> Schema {
    Schema::new(TABLES)
        .on(|PostAdded { title, tags }, db| {
            db.execute("INSERT INTO post VALUES (?1, ?2)", (db.id(), title))?;
            tags.iter()
                .try_for_each(|tag| db.execute("INSERT INTO tag (post, tag) VALUES (?1, ?2)", (db.id(), tag)).map(drop))
        })
        .on(move |PostPinned { post }, db| pin(db, post))
}

fn note(db: &Db<'_>, post: EventId, note: &str) -> Result<usize, DbError> {
    db.execute("INSERT INTO pin VALUES (?1, ?2)", (post, note))
}

fn tags_of(db: &Db<'_>, sql: &str, post: EventId) -> Result<Vec<String>, DbError> {
    db.rows(sql, [post], |row| Ok(row.get(0)?))
}

fn right() -> Schema {
    posts(|db, post| {
        let tags = tags_of(db, "SELECT tag FROM tag WHERE post = ?1 ORDER BY n DESC", post)?;
        note(db, post, &format!("{} at {}", tags.concat(), db.millis()))
    })
}

fn add(rng: &mut Rng) -> PostAdded {
    let tags = ["art", "bread", "cats", "dogs", "elms"].iter().filter(|_| rng.chance(60)).map(|tag| (*tag).to_owned());
    let tags = tags.collect();
    PostAdded { title: format!("post {}", rng.below(10)), tags }
}

fn events(rng: &mut Rng) -> Draft {
    match rng.below(5) {
        0..=2 => add(rng).into(),
        3 => PostPinned { post: rng.earlier() }.into(),
        _ => Batch::new().with(&add(rng)).and_then(|batch| batch.with(&add(rng))).expect("a small batch").into(),
    }
}

/// The message of a run that is expected to fail.
fn failure(run: impl FnOnce() + std::panic::UnwindSafe) -> String {
    let panic = catch_unwind(run).expect_err("nothing was found");
    *panic.downcast::<String>().expect("a message")
}

#[track_caller]
fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
}

#[test]
fn a_right_schema_converges() {
    converges(right, events, 0..30);
}

#[test]
fn the_order_of_a_hash_map_is_found_with_event_table_and_rows() {
    let schema = || {
        posts(|db, post| {
            let tags = tags_of(db, "SELECT tag FROM tag WHERE post = ?1 ORDER BY n", post)?;
            let lengths: HashMap<String, usize> = tags.into_iter().map(|tag| (tag.clone(), tag.len())).collect();
            note(db, post, &format!("{lengths:?}"))
        })
    };
    let said = failure(move || converges(schema, events, SEEDS));
    assert_says(
        &said,
        &["seed ", "not deterministic", "`PostPinned`", r#"with the payload {"post":""#, "table `pin`", "note='{"],
    );
    assert_says(&said, &["one replay: ", "another: ", "LIKEWISE_SEED="]);
    assert_says(&said, &["cargo test converges::the_order_of_a_hash_map_is_found_with_event_table_and_rows"]);
}

#[test]
fn a_clock_in_a_static_is_found() {
    static BEGIN: OnceLock<Instant> = OnceLock::new();
    let schema = || posts(|db, post| note(db, post, &BEGIN.get_or_init(Instant::now).elapsed().as_nanos().to_string()));
    let said = failure(move || converges(schema, events, SEEDS));
    assert_says(&said, &["not deterministic", "`PostPinned`", "table `pin`", "a clock"]);
}

#[test]
fn a_clock_of_seconds_is_found_though_a_story_takes_less() {
    static BEGIN: OnceLock<Instant> = OnceLock::new();
    let schema = || posts(|db, post| note(db, post, &BEGIN.get_or_init(Instant::now).elapsed().as_secs().to_string()));
    let said = failure(move || converges(schema, events, 0..3));
    assert_says(&said, &["not deterministic", "`PostPinned`", "table `pin`"]);
}

#[test]
fn a_counter_in_a_static_is_found() {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let schema = || posts(|db, post| note(db, post, &CALLS.fetch_add(1, Ordering::Relaxed).to_string()));
    let said = failure(move || converges(schema, events, SEEDS));
    assert_says(&said, &["not deterministic", "`PostPinned`", "table `pin`"]);
}

#[test]
fn rows_without_order_by_are_found() {
    let schema = || {
        posts(|db, post| {
            let tags = tags_of(db, "SELECT tag FROM tag WHERE post = ?1", post)?;
            note(db, post, &tags.concat())
        })
    };
    let said = failure(move || converges(schema, events, SEEDS));
    assert_says(
        &said,
        &["order of rows", "`PostPinned`", "table `pin`", "Add ORDER BY", "a plain replay: ", "in reverse: "],
    );
}

#[test]
fn what_does_not_hold_is_told_with_its_seed() {
    let simulation = Simulation::new(right, events).holds(|replica, _| {
        let pins = replica.query(&Query::<u64>::first("SELECT count(*) FROM pin")).unwrap();
        assert!(pins < 3, "there are {pins} pins");
    });
    let said = failure(std::panic::AssertUnwindSafe(|| simulation.run(SEEDS)));
    assert_says(&said, &["seed ", "there are 3 pins", "LIKEWISE_SEED="]);
}

#[test]
fn a_type_of_event_that_never_takes_effect_proves_nothing() {
    // A column of the wrong type.
    let schema = || {
        Schema::new("CREATE TABLE post (id BLOB) STRICT")
            .on(|_: PostAdded, db| db.execute("INSERT INTO post VALUES (?1)", [db.id()]))
    };
    let said = failure(move || converges(schema, |rng| add(rng).into(), 0..5));
    assert_says(&said, &["each `PostAdded` was refused", "cannot store TEXT value in BLOB column"]);
    let schema = || Schema::new("CREATE TABLE post (id TEXT) STRICT");
    let said = failure(move || converges(schema, |rng| add(rng).into(), 0..5));
    assert_says(&said, &["no materializer for `PostAdded`"]);
}

#[test]
fn a_schema_that_can_not_be_used_is_told_before_any_story() {
    let said = failure(|| converges(|| Schema::new("CREATE TABEL post (id)"), events, SEEDS));
    assert_says(&said, &["the schema can't be used", "TABEL"]);
}
