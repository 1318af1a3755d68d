use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;
use serde::{Deserialize, Serialize};

use super::*;
use crate::engine::{Entry, Envelope, Event, EventId, Files, Page, Replica, Schema, Seq, Setup};

/// An event that says itself what it does.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Done {
    sql: String,
}

impl Event for Done {
    const NAME: &'static str = "Done";
}

fn schema() -> Schema {
    Schema::new(
        "CREATE TABLE item (k TEXT PRIMARY KEY, v INTEGER NOT NULL UNIQUE) STRICT;
         CREATE TABLE number (id INTEGER PRIMARY KEY, v INTEGER NOT NULL) STRICT;
         CREATE TABLE bare (k TEXT PRIMARY KEY, v INTEGER NOT NULL) STRICT, WITHOUT ROWID;
         CREATE TABLE many (post TEXT, v INTEGER NOT NULL);
         CREATE TABLE part (id INTEGER PRIMARY KEY, item TEXT REFERENCES item ON DELETE CASCADE ON UPDATE CASCADE);
         CREATE TRIGGER counted AFTER INSERT ON item BEGIN UPDATE number SET v = v + 1 WHERE id = new.v; END;
         INSERT INTO item VALUES ('a', 1), ('b', 2);
         INSERT INTO number VALUES (1, 1), (2, 2);
         INSERT INTO part VALUES (1, 'a'), (2, 'b');",
    )
    .on(|done: Done, db| db.execute(&done.sql, ()))
}

fn statement() -> impl Strategy<Value = String> {
    let key = || prop::sample::select(vec!["a", "b", "c", "d"]);
    let table = || prop::sample::select(vec!["item", "bare"]);
    let number = || 0..4_i64;
    prop_oneof![
        (table(), key(), number()).prop_map(|(table, k, v)| format!(
            "INSERT INTO {table} VALUES ('{k}', {v}) ON CONFLICT DO UPDATE SET v = excluded.v + 1"
        )),
        (table(), key(), number())
            .prop_map(|(table, k, v)| format!("INSERT OR REPLACE INTO {table} VALUES ('{k}', {v})")),
        (table(), key(), key()).prop_map(|(table, k, to)| format!("UPDATE {table} SET k = '{to}' WHERE k = '{k}'")),
        (table(), key()).prop_map(|(table, k)| format!("DELETE FROM {table} WHERE k = '{k}'")),
        prop::sample::select(vec!["item", "bare", "many"]).prop_map(|table| format!("DELETE FROM {table}")),
        // Does something or nothing, by what others did elsewhere.
        (number(), key()).prop_map(|(id, k)| format!(
            "UPDATE number SET v = v + 1 WHERE id = {id} AND EXISTS (SELECT 1 FROM item WHERE k = '{k}')"
        )),
        (number(), number()).prop_map(|(id, v)| format!("INSERT INTO number VALUES ({id}, {v})")),
        (number(), number()).prop_map(|(id, to)| format!("UPDATE number SET id = {to} WHERE id = {id}")),
        (number(), number()).prop_map(|(id, to)| format!("UPDATE OR REPLACE number SET rowid = {to} WHERE id = {id}")),
        (key(), number()).prop_map(|(k, v)| format!("INSERT INTO many VALUES ('{k}', {v})")),
        (key(), number()).prop_map(|(k, v)| format!("DELETE FROM many WHERE post = '{k}' AND v > {v}")),
        (key(), number()).prop_map(|(k, v)| format!("UPDATE many SET post = '{k}' WHERE v = {v}")),
        (number(), key()).prop_map(|(id, k)| format!("INSERT INTO part VALUES ({id}, '{k}')")),
    ]
}

/// What happens to a replica that follows an upstream.
#[derive(Debug, Clone)]
enum Step {
    /// It commits an event of its own, which is pending.
    Commit(String),
    /// An event of somebody else arrives.
    Arrive(String),
    /// The oldest event of its own arrives.
    Confirm,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => statement().prop_map(Step::Commit),
        2 => statement().prop_map(Step::Arrive),
        1 => Just(Step::Confirm),
    ]
}

const KEYED: [&str; 5] = [
    "SELECT v FROM item WHERE k = ?1",
    "SELECT v FROM bare WHERE k = ?1",
    "SELECT count(*) FROM many WHERE post = ?1",
    "SELECT max(v) FROM many AS m WHERE m.post = ?1 AND v < 3",
    "SELECT count(*) FROM part WHERE item = ?1",
];

fn envelope(sql: &str) -> Envelope {
    Envelope::new(EventId::now(), &Done { sql: sql.to_owned() }).expect("an event")
}

fn all_are_told(steps: &[Step]) -> TestCaseResult {
    let dir = tempfile::tempdir().expect("a directory");
    let setup = Setup {
        schema: Arc::new(schema()),
        device: "test".parse().expect("a name"),
        executable: "test".to_owned(),
        progress: |_, _| {},
    };
    let mut replica = Replica::open(Files::in_dir(dir.path()), setup).expect("a replica");
    replica.follow().expect("it follows");
    let live = Live::default();
    fn read(row: &rusqlite::Row<'_>) -> Result<Option<i64>, crate::engine::DbError> {
        Ok(row.get(0)?)
    }
    let mut queries: Vec<Query<Vec<Option<i64>>>> = Vec::new();
    for key in ["a", "b", "c", "d"] {
        queries.extend(KEYED.map(|sql| Query::rows(sql, read).bind(key)));
    }
    for id in 0..4 {
        let sql = "SELECT v FROM number WHERE id = ?";
        queries.push(Query::rows(sql, read).bind(id));
    }
    let watches: Vec<_> = queries.iter().map(|query| live.watch(query.clone()).0).collect();
    live.tell(live.refresh(replica.state()), || false);
    let mut pending = Vec::new();
    let mut head = 0;
    for step in steps {
        let arriving = match step {
            Step::Commit(sql) => {
                let event = envelope(sql);
                let outcome = replica.commit(std::slice::from_ref(&event)).expect("no fault of the machine");
                if outcome == [crate::engine::Outcome::Stored(None)] {
                    pending.push(event);
                }
                None
            }
            Step::Arrive(sql) => Some(envelope(sql)),
            Step::Confirm => (!pending.is_empty()).then(|| pending.remove(0)),
        };
        if let Some(event) = arriving {
            head += 1;
            let entry = Entry { seq: Seq(head), event, origin: "other".parse().expect("a name") };
            let page = Page { entries: vec![entry], next: Seq(head), more: false };
            replica.arrive(&page).expect("no fault of the machine");
        }
        live.tell(live.refresh(replica.state()), || false);
        for (query, watch) in queries.iter().zip(&watches) {
            let told = watch.borrow().clone().expect("an answer").expect("no fault");
            prop_assert_eq!(told, replica.query(query).expect("an answer"), "{:?} after {:?}", query, step);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn who_watches_a_key_is_told_of_every_change_however_it_came(steps in prop::collection::vec(step(), 1..30)) {
        all_are_told(&steps)?;
    }
}

#[test]
fn a_commit_runs_only_the_queries_whose_key_it_wrote() {
    static RUNS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let mut state = State::in_memory(&Arc::new(schema())).expect("a state");
    let live = Live::default();
    let query = |key: usize| {
        Query::rows("SELECT v FROM item WHERE k = ?1", |row| {
            RUNS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Ok(row.get::<_, i64>(0)?)
        })
        .bind(key.to_string())
    };
    let watches: Vec<_> = (0..1_000).map(|key| live.watch(query(key)).0).collect();
    live.tell(live.refresh(&mut state), || false);
    let runs = || RUNS.swap(0, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(runs(), 0, "there are no rows to read");
    state.begin().expect("a transaction");
    let apply = |state: &mut State, sql: &str| {
        state.apply_alone(&envelope(sql), crate::engine::materialize::OnFault::Refuse).expect("it applies");
        live.tell(live.refresh(state), || false);
    };
    apply(&mut state, "INSERT INTO item VALUES ('7', 11), ('x', 12)");
    assert_eq!((runs(), watches[7].borrow().clone()), (1, Some(Ok(vec![11]))));
    apply(&mut state, "UPDATE item SET v = 15 WHERE k = '7'");
    assert_eq!((runs(), watches[7].borrow().clone()), (1, Some(Ok(vec![15]))));
    apply(&mut state, "UPDATE item SET k = '8' WHERE k = '7'");
    assert_eq!((runs(), watches[7].borrow().clone()), (1, Some(Ok(vec![]))));
    assert_eq!(watches[8].borrow().clone(), Some(Ok(vec![15])));
}

#[test]
fn many_costly_queries_let_others_have_the_thread_in_between() {
    const COUNT_UP: &str =
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1) SELECT count(*) FROM n, number";
    let mut state = State::in_memory(&Arc::new(schema())).expect("a state");
    let live = Live::default();
    let watches: Vec<_> = (0..6_i64).map(|n| live.watch(Query::<i64>::first(COUNT_UP).bind(500_000 + n)).0).collect();
    let is_answered = |watch: &watch::Receiver<Answer<i64>>| matches!(*watch.borrow(), Some(Ok(_)));
    let answered = || watches.iter().filter(|watch| is_answered(watch)).count();
    let mut before = 0;
    while before < watches.len() {
        live.tell(live.refresh(&mut state), || false);
        assert!((1..=3).contains(&(answered() - before)), "{} at once after {before}", answered() - before);
        before = answered();
        assert_eq!(live.has_more(), before < watches.len());
    }
    // What waits is not queued once more when it is due again.
    state.touch_all();
    live.tell(live.refresh(&mut state), || false);
    assert!(live.has_more());
    state.touch_all();
    live.tell(live.refresh(&mut state), || false);
    let waiting = live.index.lock().expect("the index").waiting();
    assert!((1..=watches.len()).contains(&waiting), "{waiting} wait");
}
