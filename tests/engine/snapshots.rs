//! A device that begins with a snapshot: what it believes, what it keeps, and what comes of the history behind it.

use std::fs;
use std::path::Path;

use likewise::engine::{
    CheckedSnapshot, Concluded, Digest, Entry, Envelope, Fault, Files, LogId, Outcome, Page, PageSize, Progress,
    Replica, Schema, Seq, Setup, Snapshot, SnapshotError, Whose, backup, export, prove, verify,
};
use likewise::sync::{End, Hello, Point, PushAnswer, Pushed, PushedEvent, Session, ended, repair};
use likewise::testing::check_places;
use rusqlite::Connection;

use crate::ledger;
use crate::support::*;

/// A hub with events of every kind, and the snapshots it makes.
struct Hub {
    home: Home,
    replica: Replica,
}

impl Hub {
    fn new(events: usize) -> Self {
        Self::of(&Self::events(events))
    }

    fn of(events: &[Envelope]) -> Self {
        let home = Home::new();
        let mut replica = home.try_open().unwrap();
        let events: Vec<_> = events.iter().map(|event| (event.clone(), device("phone"))).collect();
        events.chunks(1_000).for_each(|some| drop(replica.add(some).unwrap()));
        Self { home, replica }
    }

    fn events(count: usize) -> Vec<Envelope> {
        let mut rng = Rng::new(7);
        (0..count).map(|_| random_event(&mut rng)).collect()
    }

    fn add(&mut self, events: &[Envelope]) {
        let events: Vec<_> = events.iter().map(|event| (event.clone(), device("phone"))).collect();
        assert!(stored(&self.replica.add(&events).unwrap()));
    }

    fn log(&self) -> LogId {
        self.replica.standing().unwrap().whose.log_id().unwrap()
    }

    /// Has it make a snapshot, in a device's directory.
    fn snapshot(&self, home: &Home) -> CheckedSnapshot {
        fs::create_dir_all(&home.dir).unwrap();
        let to = home.path("snapshot.part");
        let snapshot = Snapshot::make(&self.home.files(), &to).unwrap().expect("it has events");
        snapshot.check(&to, &bank()).unwrap()
    }

    /// Its log after `after`, up to `until`.
    fn page(&self, after: u64, until: u64) -> Page {
        let mut entries = self.replica.entries(Seq(after), PageSize::events(usize::MAX >> 1)).unwrap();
        entries.retain(|entry| entry.seq.0 <= until);
        Page { next: entries.last().unwrap().seq, entries, more: false }
    }
}

/// A device that has joined by a snapshot of everything that `hub` has.
fn joined(hub: &Hub) -> (Home, Replica) {
    let home = Home::new();
    let mut replica = home.follow();
    assert!(replica.join(hub.snapshot(&home)).unwrap());
    (home, replica)
}

fn is_wrong(checked: Result<CheckedSnapshot, SnapshotError>) -> String {
    match checked {
        Err(SnapshotError::Wrong(why)) => why,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it is believed"),
    }
}

/// The claims of a hub whose file is this one.
fn about(path: &Path, snapshot: Snapshot) -> Snapshot {
    let bytes = fs::read(path).unwrap();
    Snapshot { bytes: bytes.len() as u64, file_digest: Digest(*blake3::hash(&bytes).as_bytes()), ..snapshot }
}

fn pragma(home: &Home, name: &str) -> i64 {
    let conn = Connection::open(home.path("eventlog.db")).unwrap();
    conn.query_row(&format!("PRAGMA {name}"), (), |row| row.get(0)).unwrap()
}

/// Opens a device of another program with the same schema, or with another one.
fn reopen(home: &Home, schema: Schema, executable: &str) -> Replica {
    let setup = Setup { executable: executable.to_owned(), ..setup(schema) };
    home.try_open_as(setup).unwrap()
}

#[test]
fn a_snapshot_is_the_state_with_its_rowids_and_no_pending_event() {
    let mut hub = Hub::new(300);
    // Holes in the rowids of a table without a key of its own.
    for nth in 0..20 {
        let put = event(id(9_000 + nth), "Put", &format!(r#"{{"key":"k{}","value":"v"}}"#, nth % 3));
        hub.add(&[put]);
    }
    let home = Home::new();
    let checked = hub.snapshot(&home);
    let snapshot = checked.snapshot();
    let standing = hub.replica.standing().unwrap();
    assert_eq!((snapshot.log, snapshot.seq, snapshot.length), (hub.log(), standing.head, standing.length));
    assert_eq!(snapshot.digest, hub.replica.digest_at(standing.head).unwrap());
    assert_eq!(snapshot.state_digest, hub.replica.state_digest().unwrap());
    // A device's pending events are in its open transaction, which is nobody else's.
    let (home, mut replica) = joined(&hub);
    replica.arrive_history(&hub.page(0, 400)).unwrap();
    let proof = prove(&home.files(), &setup(bank())).unwrap().unwrap();
    assert_eq!(replica.conclude(proof).unwrap(), Concluded::Proven);
    assert!(stored(&replica.commit(&[like(5_000)]).unwrap()));
    let again = Snapshot::make(&home.files(), &home.path("again")).unwrap().unwrap();
    assert_eq!((again.seq, again.state_digest), (snapshot.seq, snapshot.state_digest));
}

#[test]
fn there_is_no_snapshot_of_nothing() {
    let home = Home::new();
    let to = home.scratch.path().join("snapshot");
    assert_eq!(Snapshot::make(&home.files(), &to).unwrap(), None);
    drop(home.open());
    assert_eq!(Snapshot::make(&home.files(), &to).unwrap(), None);
    assert!(!to.exists());
    // Nor of a log that isn't whole.
    let (home, _replica) = joined(&Hub::new(10));
    assert_eq!(Snapshot::make(&home.files(), &to).unwrap(), None);
}

#[test]
fn a_device_sees_the_hubs_state_at_once_with_its_own_events_on_top() {
    let mut hub = Hub::new(500);
    let mut home = Home::new();
    let mut replica = home.follow();
    assert!(stored(&replica.commit(&[append(1, "mine"), like(2)]).unwrap()));
    let (before, generation) = (view(&hub.replica), replica.standing().unwrap().generation);
    assert!(replica.can_join());
    assert!(replica.join(hub.snapshot(&home)).unwrap());
    let expected = {
        let mut model = Model::of(&Hub::events(500));
        model.apply(&append(1, "mine"));
        model.apply(&like(2));
        model.lines()
    };
    assert_ne!(before, expected);
    assert_eq!(view(&replica), expected);
    let standing = replica.standing().unwrap();
    assert_eq!((standing.head, standing.length, standing.pending), (Seq(500), 500, 2));
    assert!(standing.generation > generation);
    assert_eq!((replica.base(), replica.can_join()), (Seq(500), false));
    let position = replica.position().unwrap();
    assert_eq!((position.log, position.after), (Some(hub.log()), Seq(500)));
    assert!(hub.replica.vouches_for(position.after, position.digest).unwrap());
    // It goes on from there like any other.
    hub.add(&[append(3, "theirs")]);
    replica.arrive(&hub.page(500, 501)).unwrap();
    hub.add(&[append(1, "mine"), like(2)]);
    replica.arrive(&hub.page(501, 503)).unwrap();
    assert_eq!(view(&replica), view(&hub.replica));
    let replica = home.crash_and_open(replica);
    assert_eq!(view(&replica), view(&hub.replica));
    assert_eq!(replica.position().unwrap().after, Seq(503));
}

#[test]
fn who_has_a_log_or_follows_another_one_does_not_join() {
    let hub = Hub::new(20);
    let home = Home::new();
    let mut replica = home.try_open().unwrap();
    assert!(!replica.join(hub.snapshot(&home)).unwrap(), "its log is its own");
    assert!(!home.path("snapshot.part").exists(), "nobody needs it");
    replica.follow().unwrap();
    replica.arrive(&page(1, &[like(1)], false)).unwrap();
    assert!(!replica.join(hub.snapshot(&home)).unwrap(), "it has events");
    replica.take_back(Seq::START, Whose::Upstream(Some(LogId::random()))).unwrap();
    assert!(!replica.join(hub.snapshot(&home)).unwrap(), "it follows another log");
    home.check(&replica);
}

#[test]
fn history_proves_the_snapshot_and_the_log_is_whole() {
    let mut hub = Hub::new(2_200);
    let (home, mut replica) = joined(&hub);
    assert_eq!(pragma(&home, "user_version"), 3, "older programs have to refuse it");
    hub.add(&[append(1, "later")]);
    replica.arrive(&hub.page(2_200, 2_201)).unwrap();
    assert!(prove(&home.files(), &setup(bank())).unwrap().is_none(), "there is nothing to prove yet");
    for after in (0..2_200).step_by(550) {
        let position = replica.history().unwrap();
        assert_eq!((position.log, position.after, position.until), (hub.log(), Seq(after), Seq(2_200)));
        assert!(hub.replica.vouches_for(position.after, position.digest).unwrap());
        // What is above the snapshot is passed over.
        replica.arrive_history(&hub.page(after, after + 550)).unwrap();
    }
    assert!(replica.history().unwrap().is_complete());
    let mut replica = reopen(&home, bank(), "one");
    let proof = prove(&home.files(), &setup(bank())).unwrap().unwrap();
    assert!(proof.is_right());
    let generation = replica.standing().unwrap().generation;
    assert_eq!(replica.conclude(proof).unwrap(), Concluded::Proven);
    assert_eq!(replica.conclude(proof).unwrap(), Concluded::Outdated);
    let standing = replica.standing().unwrap();
    assert_eq!((standing.history, standing.generation, standing.length), (None, generation, 2_201));
    assert!(!home.path("base.db").exists());
    assert_eq!(pragma(&home, "user_version"), 2);
    assert_eq!(log_of(&replica), log_of(&hub.replica));
    home.check(&replica);
    // The background looks at all of it, from its beginning.
    let mut portions = 0;
    while replica.check_some(128).unwrap() == Progress::More {
        portions += 1;
    }
    assert!(portions > 2_200 / 128, "{portions}");
    drop(replica);
    let replica = home.open();
    assert_eq!(log_of(&replica), log_of(&hub.replica));
    assert_eq!(verify(&home.files(), &setup(bank())).unwrap().problems, [""; 0]);
}

#[test]
fn an_event_that_the_history_brings_leaves_the_outbox_and_counts_once() {
    let mut hub = Hub::new(10);
    hub.add(&[like(1), append(2, "theirs"), append(3, "x")]);
    let home = Home::new();
    let mut replica = home.follow();
    // The answer to the push of the first was lost. The second has another event's id.
    replica.commit(&[like(1), append(2, "mine"), append(4, "y")]).unwrap();
    replica.join(hub.snapshot(&home)).unwrap();
    replica.arrive_history(&hub.page(0, 11)).unwrap();
    assert_eq!(outbox_of(&replica), [append(2, "mine"), append(4, "y")]);
    replica.arrive_history(&hub.page(11, 13)).unwrap();
    assert_eq!(outbox_of(&replica), [append(4, "y")]);
    assert_eq!(set_aside_of(&replica), [append(2, "mine")]);
    let mut model = Model::of(log_of(&hub.replica).iter().map(|entry| &entry.event));
    model.apply(&append(4, "y"));
    assert_eq!(view(&replica), model.lines());
    // An id that the history has is known.
    assert!(matches!(
        replica.commit(&[like(1), append(3, "z")]).unwrap()[..],
        [Outcome::Known(Some(Seq(11))), Outcome::Conflict]
    ));
    check_places(&replica);
}

/// A device with three pending events of which the hub has the first two below the device's base.
fn with_early() -> (Hub, Home, Replica) {
    let mut hub = Hub::new(10);
    hub.add(&[append(1, "a"), like(50), append(2, "b"), like(51)]);
    let home = Home::new();
    let mut replica = home.follow();
    replica.commit(&[append(1, "a"), append(2, "b"), append(3, "c")]).unwrap();
    replica.join(hub.snapshot(&home)).unwrap();
    (hub, home, replica)
}

#[test]
fn an_event_that_is_in_the_snapshot_leaves_the_outbox_and_is_kept_until_the_history_brings_it() {
    let (hub, mut home, mut replica) = with_early();
    assert!(replica.are_in_snapshot(&[(id(1), Seq(11)), (id(2), Seq(13))]).unwrap());
    assert_eq!(outbox_of(&replica), [append(3, "c")]);
    assert_eq!(replica.standing().unwrap().history.unwrap().own, 2, "only the hub says so");
    let mut model = Model::of(log_of(&hub.replica).iter().map(|entry| &entry.event));
    model.apply(&append(3, "c"));
    assert_eq!(view(&replica), model.lines());
    // It is known under its place, also after a crash.
    let mut replica = home.crash_and_open(replica);
    let known = |seq| Outcome::Known(Some(Seq(seq)));
    assert_eq!(replica.commit(&[append(1, "a"), append(2, "b")]).unwrap(), [known(11), known(13)]);
    assert_eq!(replica.commit(&[append(1, "other")]).unwrap(), [Outcome::Conflict]);
    check_places(&replica);
    // The true row, with its origin, takes its place.
    replica.arrive_history(&hub.page(0, 14)).unwrap();
    assert_eq!(outbox_of(&replica), [append(3, "c")]);
    let proof = prove(&home.files(), &setup(bank())).unwrap().unwrap();
    assert_eq!(replica.conclude(proof).unwrap(), Concluded::Proven);
    assert_eq!(log_of(&replica), log_of(&hub.replica));
    home.check(&replica);
}

#[test]
fn events_of_a_snapshot_that_is_given_up_are_pushed_again_in_their_order() {
    let (hub, home, mut replica) = with_early();
    replica.arrive(&page(15, &[append(60, "above")], false)).unwrap();
    assert!(replica.are_in_snapshot(&[(id(1), Seq(11)), (id(2), Seq(13))]).unwrap());
    replica.arrive_history(&hub.page(0, 5)).unwrap();
    let before = view(&replica);
    let generation = replica.standing().unwrap().generation;
    replica.drop_base().unwrap();
    assert_eq!(replica.standing().unwrap().generation.0, generation.0 + 1);
    assert_eq!(outbox_of(&replica), [append(1, "a"), append(2, "b"), append(60, "above"), append(3, "c")]);
    assert_eq!(log_of(&replica), hub.page(0, 5).entries);
    assert_eq!(replica.position().unwrap().after, Seq(5));
    assert!(!home.path("base.db").exists());
    assert_eq!(pragma(&home, "user_version"), 2);
    home.check(&replica);
    assert_ne!(view(&replica), before);
    assert!(!replica.can_join(), "it has a log");
    drop(replica);
    home.open();
}

/// The answer to a push of all three was lost, and the third comes back: the first two must be below the base.
#[test]
fn events_of_the_snapshot_that_later_ones_have_passed_stay_before_them() {
    let (hub, mut home, mut replica) = with_early();
    let later = [append(61, "after that"), append(62, "and that")];
    replica.arrive(&page(15, &[append(60, "theirs"), append(3, "c")], false)).unwrap();
    replica.commit(&later).unwrap();
    let mut replica = home.crash_and_open(replica);
    let own = [append(1, "a"), append(2, "b"), append(60, "theirs"), append(3, "c")];
    // The hub lost what came after the snapshot.
    replica.take_back(Seq(15), Whose::Upstream(Some(hub.log()))).unwrap();
    assert_eq!(outbox_of(&replica), [&own[..2], &own[3..], &later].concat());
    replica.take_back(replica.base(), Whose::Upstream(Some(hub.log()))).unwrap();
    assert_eq!(outbox_of(&replica), [&own[..], &later].concat());
    home.check(&replica);
    let mut replica = home.crash_and_open(replica);
    // Then the hub is another one.
    replica.drop_base().unwrap();
    assert_eq!(outbox_of(&replica), [&own[..], &later].concat());
    home.check(&replica);
    home.crash_and_open(replica);
}

/// The third was made elsewhere, too. That shows only when the first comes back: it wasn't below the base, and so the second,
/// which was pushed after it, wasn't either.
#[test]
fn what_comes_back_above_the_snapshot_keeps_its_place_before_what_was_pushed_later() {
    let (hub, mut home, mut replica) = with_early();
    replica.arrive(&page(15, &[append(3, "c"), append(1, "a")], false)).unwrap();
    replica.take_back(replica.base(), Whose::Upstream(Some(hub.log()))).unwrap();
    let own = [append(3, "c"), append(1, "a"), append(2, "b")];
    assert_eq!(outbox_of(&replica), own);
    // That is still known when they come back, and the hub is another one again.
    let mut replica = home.crash_and_open(replica);
    replica.arrive(&page(15, &[append(3, "c"), append(60, "theirs")], false)).unwrap();
    replica.take_back(replica.base(), Whose::Upstream(Some(hub.log()))).unwrap();
    assert_eq!(outbox_of(&replica), [append(3, "c"), append(60, "theirs"), append(1, "a"), append(2, "b")]);
    home.check(&replica);
    home.crash_and_open(replica);
}

#[test]
fn a_hub_that_names_places_which_can_not_be_is_not_believed() {
    let (hub, home, mut replica) = with_early();
    let before = (outbox_of(&replica), view(&replica));
    for lie in
        [vec![(id(1), Seq(15))], vec![(id(1), Seq(12)), (id(2), Seq(12))], vec![(id(1), Seq(11)), (id(2), Seq(99))]]
    {
        assert!(!replica.are_in_snapshot(&lie).unwrap(), "{lie:?}");
        assert_eq!((outbox_of(&replica), view(&replica)), before, "nothing is changed");
    }
    replica.arrive_history(&hub.page(0, 10)).unwrap();
    assert!(!replica.are_in_snapshot(&[(id(1), Seq(7))]).unwrap(), "the history has another event there");
    // The session ends over it.
    let position = replica.position().unwrap();
    let hello = Hello { log: Some(hub.log()), run: "run".to_owned(), head: Seq(14) };
    let mut session = Session::begin(Some(position), hello).unwrap();
    let outgoing = ended(session.next_push(&replica)).unwrap().unwrap().unwrap();
    let stored = |seq| PushedEvent::Stored { seq: Seq(seq), no_effect: None };
    let pushed = Pushed { log: Some(hub.log()), events: vec![stored(12), stored(12), stored(15)] };
    let end = ended(session.answer(&mut replica, &outgoing, PushAnswer::Pushed(pushed))).unwrap();
    assert!(matches!(end, Err(End::Offline(_))), "{end:?}");
    assert_eq!((outbox_of(&replica), view(&replica)), before);
    // One that it believes, and the history doesn't bring: it waits again.
    assert!(replica.are_in_snapshot(&[(id(3), Seq(12))]).unwrap());
    assert_eq!(outbox_of(&replica), [append(1, "a"), append(2, "b")]);
    replica.arrive_history(&hub.page(10, 12)).unwrap();
    assert_eq!(outbox_of(&replica), [append(3, "c"), append(2, "b")]);
    check_places(&replica);
    drop(replica);
    home.open();
}

#[test]
fn an_event_that_comes_above_the_snapshot_though_it_was_said_to_be_in_it_counts_there() {
    let (_hub, home, mut replica) = with_early();
    assert!(replica.are_in_snapshot(&[(id(3), Seq(12))]).unwrap());
    replica.arrive(&page(15, &[append(3, "c")], false)).unwrap();
    assert_eq!(log_of(&replica).len(), 1);
    check_places(&replica);
    drop(replica);
    let replica = home.open();
    assert!(note(&replica).ends_with("abc") || note(&replica).contains('c'), "{}", note(&replica));
}

#[test]
fn history_of_another_log_counts_and_the_snapshot_is_given_up() {
    for more in [0, 1] {
        let hub = Hub::new(20);
        let (home, mut replica) = joined(&hub);
        replica.arrive(&page(21, &[append(60, "above")], false)).unwrap();
        // As many events as the snapshot says, or one less.
        let other = Hub::of(&Hub::events(40)[20 + more..]);
        let page = other.page(0, 20 - more as u64);
        let next = Seq(20);
        replica.arrive_history(&Page { next, ..page.clone() }).unwrap();
        assert_eq!((replica.base(), replica.history()), (Seq::START, None));
        assert_eq!(log_of(&replica), page.entries);
        assert_eq!(outbox_of(&replica), [append(60, "above")]);
        home.check(&replica);
    }
}

#[test]
fn history_that_brings_an_id_of_the_log_above_it_disproves_the_snapshot() {
    let hub = Hub::new(20);
    let (home, mut replica) = joined(&hub);
    let twice = Hub::events(20)[7].clone();
    replica.arrive(&page(21, &[append(60, "above"), twice.clone()], false)).unwrap();
    replica.arrive_history(&hub.page(0, 20)).unwrap();
    assert_eq!(replica.base(), Seq::START);
    assert_eq!(log_of(&replica), hub.page(0, 7).entries);
    assert_eq!(outbox_of(&replica), [append(60, "above"), twice]);
    assert_eq!(replica.position().unwrap().after, Seq(7));
    home.check(&replica);
}

#[test]
fn a_wrong_snapshot_is_replaced_by_what_follows_from_its_history() {
    let hub = Hub::new(200);
    let home = Home::new();
    let mut replica = home.follow();
    let path = home.path("snapshot.part");
    let snapshot = Snapshot::make(&hub.home.files(), &path).unwrap().unwrap();
    Connection::open(&path).unwrap().execute("UPDATE likes SET count = count + 1", ()).unwrap();
    assert!(replica.join(about(&path, snapshot).check(&path, &bank()).unwrap()).unwrap());
    replica.arrive_history(&hub.page(0, 200)).unwrap();
    let proof = prove(&home.files(), &setup(bank())).unwrap().unwrap();
    assert!(!proof.is_right());
    let generation = replica.standing().unwrap().generation;
    assert_eq!(replica.conclude(proof).unwrap(), Concluded::Disproven);
    assert!(replica.standing().unwrap().generation > generation);
    assert_eq!(replica.state_digest().unwrap(), hub.replica.state_digest().unwrap());
    home.check(&replica);
    drop(replica);
    assert_eq!(log_of(&home.open()), log_of(&hub.replica));
}

/// What becomes of a hub's snapshot in which this was changed, and of a device that could join by it.
fn forged(hub: &Hub, sql: &str) -> (Home, Replica, Result<CheckedSnapshot, SnapshotError>) {
    let home = Home::new();
    let replica = home.follow();
    let path = home.path("snapshot.part");
    let snapshot = Snapshot::make(&hub.home.files(), &path).unwrap().unwrap();
    Connection::open(&path).unwrap().execute_batch(sql).unwrap();
    let checked = about(&path, snapshot).check(&path, &bank());
    (home, replica, checked)
}

/// A hub with events that have no effect: one of an unknown name, and one that fails.
fn with_events_without_effect() -> Hub {
    Hub::of(&[like(1), event(id(2), "Future", ""), event(id(3), "Deposited", r#"{"to":7}"#), like(4)])
}

#[test]
fn what_a_snapshot_says_of_events_without_effect_is_proven_too() {
    let hub = with_events_without_effect();
    let truth = hub.replica.skipped().unwrap();
    assert_eq!(truth.len(), 2, "{truth:?}");
    let made_up = "INSERT INTO likewise_skipped VALUES (unhex('0190d1e53f5c7bb28a3e5d4f6c7b8a90'), ";
    for (sql, concluded) in [
        ("", Concluded::Proven),
        (&format!("{made_up} 'made up')")[..], Concluded::Disproven),
        (&format!("{made_up} NULL)")[..], Concluded::Disproven),
        ("DELETE FROM likewise_skipped WHERE why IS NULL", Concluded::Disproven),
        ("UPDATE likewise_skipped SET why = 'no reason at all' WHERE why IS NULL", Concluded::Disproven),
        // Another version of the program may say it in other words. Ours count.
        ("UPDATE likewise_skipped SET why = 'send money' WHERE why IS NOT NULL", Concluded::Proven),
    ] {
        let (mut home, mut replica, checked) = forged(&hub, sql);
        assert!(replica.join(checked.unwrap()).unwrap());
        replica.arrive_history(&hub.page(0, 4)).unwrap();
        let proof = prove(&home.files(), &setup(bank())).unwrap().unwrap();
        assert_eq!(replica.conclude(proof).unwrap(), concluded, "{sql}");
        assert_eq!(replica.skipped().unwrap(), truth, "{sql}");
        let standing = replica.standing().unwrap();
        assert_eq!((standing.skipped, standing.unknown, standing.history), (1, 1, None), "{sql}");
        home.check(&replica);
        let replica = home.crash_and_open(replica);
        assert_eq!(replica.skipped().unwrap(), truth, "{sql}");
    }
}

#[test]
fn rows_of_events_without_effect_that_can_not_be_read_are_refused() {
    let hub = with_events_without_effect();
    for sql in [
        "INSERT INTO likewise_skipped VALUES (x'00', 'an id of one byte')",
        "INSERT INTO likewise_skipped VALUES (zeroblob(16), 'an id of another version')",
        "UPDATE likewise_skipped SET why = CAST(x'ff' AS TEXT)",
        "UPDATE likewise_skipped SET why = replace(hex(zeroblob(10000)), '0', 'ä')",
    ] {
        let (_home, _replica, checked) = forged(&hub, sql);
        is_wrong(checked);
    }
}

#[test]
fn a_state_with_rows_of_events_without_effect_that_can_not_be_read_is_made_again() {
    let hub = with_events_without_effect();
    let truth = hub.replica.skipped().unwrap();
    let unreadable = "UPDATE likewise_skipped SET why = CAST(x'ff' AS TEXT)";
    let spoil = |home: &Home| {
        Connection::open(home.path("state.db")).unwrap().execute(unreadable, ()).unwrap();
    };
    let Hub { home, replica } = hub;
    drop(replica);
    spoil(&home);
    assert_eq!(home.open().skipped().unwrap(), truth);
    // From the snapshot, if the log begins at one.
    let hub = Hub { replica: home.open(), home };
    let (home, replica) = joined(&hub);
    drop(replica);
    spoil(&home);
    assert_eq!(home.open().standing().unwrap().skipped, 1);
    // The file of a snapshot that an earlier version believed may have such rows. It is given up.
    let base = Seq(4);
    assert_eq!(home.open().base(), base);
    Connection::open(home.path("base.db")).unwrap().execute(unreadable, ()).unwrap();
    let bytes = fs::read(home.path("base.db")).unwrap();
    let mut file = (bytes.len() as u64).to_le_bytes().to_vec();
    file.extend(blake3::hash(&bytes).as_bytes());
    file.extend(bank().fingerprint().as_bytes());
    let log = Connection::open(home.path("eventlog.db")).unwrap();
    assert_eq!(log.execute("UPDATE meta SET value = ?1 WHERE key = 'base_file'", [file]).unwrap(), 1);
    drop(log);
    spoil(&home);
    let mut replica = home.open();
    assert_eq!((replica.base(), replica.standing().unwrap().skipped), (Seq::START, 0));
    replica.arrive(&hub.page(0, 4)).unwrap();
    assert_eq!(replica.skipped().unwrap(), truth);
}

#[test]
fn the_schema_of_a_snapshot_is_read_only_as_far_as_it_can_be_ours() {
    let hub = Hub::new(20);
    let schema = |insert: &str| format!("PRAGMA writable_schema = ON; {insert}; PRAGMA writable_schema = OFF");
    // SQLite would fail at the last row, which is not even SQL.
    let wrong = "INSERT INTO sqlite_schema VALUES ('view', 'last', 'last', 0, 'CREATE VIEW last AS !')";
    let many =
        "INSERT INTO sqlite_schema WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 20000)
                SELECT 'view', 'v' || x, 'v' || x, 0, 'CREATE VIEW v' || x || ' AS SELECT 1' FROM n";
    let long = "INSERT INTO sqlite_schema VALUES ('view', 'v', 'v', 0,
                'CREATE VIEW v AS SELECT 1 --' || hex(zeroblob(1000000)) || char(10) || '!')";
    for insert in [format!("{many}; {wrong}"), long.to_owned()] {
        let (_home, _replica, checked) = forged(&hub, &schema(&insert));
        assert_eq!(is_wrong(checked), "its tables are not those of this program");
    }
    // Nor does it take as much memory as the file would like.
    let (_home, _replica, checked) = forged(&hub, "PRAGMA default_cache_size = 1000000000");
    assert!(is_wrong(checked).contains("no database of the kind"));
}

/// A hub with account books, and its snapshot in the directory of a device that can join by it.
fn book_keepers(entries: u64) -> ([Home; 2], [Replica; 2], Snapshot) {
    let homes = [Home::new(), Home::new()];
    let [mut hub, mut device_here] = [0, 1].map(|nth| homes[nth].try_open_as(setup(ledger::schema())).unwrap());
    let opened = event(id(1), "ledger.Opened", r#"{"account":"a"}"#);
    let posts = (0..entries).map(|n| event(id(2 + n), "ledger.Posted", r#"{"from":"a","to":"a","cents":7}"#));
    let events: Vec<_> = std::iter::once(opened).chain(posts).map(|event| (event, device("phone"))).collect();
    hub.add(&events).unwrap();
    device_here.follow().unwrap();
    let snapshot = Snapshot::make(&homes[0].files(), &homes[1].path("snapshot.part")).unwrap().unwrap();
    (homes, [hub, device_here], snapshot)
}

/// Has the device fetch all of the history, and prove it.
fn proven(home: &Home, hub: &Replica, device: &mut Replica) -> Concluded {
    let entries: Vec<Entry> = hub.entries(Seq::START, PageSize::events(10_000)).unwrap();
    let next = entries.last().unwrap().seq;
    device.arrive_history(&Page { entries, next, more: false }).unwrap();
    let proof = prove(&home.files(), &setup(ledger::schema())).unwrap().unwrap();
    device.conclude(proof).unwrap()
}

#[test]
fn a_snapshot_whose_index_does_not_find_the_rows_is_disproven() {
    let ([_there, home], [hub, mut device], snapshot) = book_keepers(20);
    let path = home.path("snapshot.part");
    let sql = "SELECT rootpage, sql FROM sqlite_schema WHERE name = 'entry_by_account'";
    let (root, text): (i64, String) = {
        let conn = Connection::open(&path).unwrap();
        let found = conn.query_row(sql, (), |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        conn.execute_batch(
            "PRAGMA foreign_keys = OFF; UPDATE entry SET account = 'b'; PRAGMA writable_schema = ON;
             DELETE FROM sqlite_schema WHERE name = 'entry_by_account'",
        )
        .unwrap();
        found
    };
    // SQLite doesn't know the index now, and leaves it as it is.
    let conn = Connection::open(&path).unwrap();
    conn.execute_batch("PRAGMA foreign_keys = OFF; UPDATE entry SET account = 'a'; PRAGMA writable_schema = ON")
        .unwrap();
    let sql = "INSERT INTO sqlite_schema VALUES ('index', 'entry_by_account', 'entry', ?1, ?2)";
    conn.execute(sql, (root, text)).unwrap();
    drop(conn);
    let checked = about(&path, snapshot).check(&path, &ledger::schema()).unwrap();
    assert!(device.join(checked).unwrap());
    assert_eq!(proven(&home, &hub, &mut device), Concluded::Disproven);
    let query = likewise::engine::Query::<u64>::first("SELECT count(*) FROM entry WHERE account = 'a'");
    assert_eq!(device.query(&query).unwrap(), 40);
}

#[test]
fn a_repair_takes_back_to_the_snapshot_first_and_then_gives_it_up() {
    let hub = Hub::new(40);
    let (home, mut replica) = joined(&hub);
    replica.arrive(&page(41, &[append(60, "above")], false)).unwrap();
    let points = |hub: &Hub| -> Vec<Point> {
        let points = hub.replica.points().unwrap();
        points.into_iter().map(|(seq, digest)| Point { seq, digest }).collect()
    };
    // A hub that has the snapshot's place.
    assert_eq!(repair(&mut replica, &points(&hub)).unwrap(), Some((Seq(41), Seq(41))));
    assert_eq!((replica.base(), outbox_of(&replica).len()), (Seq(40), 1));
    // One that was restored to before it, and went on.
    let mut restored = Hub::of(&Hub::events(15));
    restored.add(&(100..150).map(like).collect::<Vec<_>>());
    replica.arrive_history(&hub.page(0, 20)).unwrap();
    replica.arrive(&page(41, &[append(60, "above")], false)).unwrap();
    repair(&mut replica, &points(&restored)).unwrap();
    assert_eq!((replica.base(), outbox_of(&replica).len()), (Seq(40), 1));
    repair(&mut replica, &points(&restored)).unwrap();
    assert_eq!(replica.base(), Seq::START);
    let position = replica.position().unwrap();
    assert!(position.after.0 <= 15, "{position:?}");
    assert!(restored.replica.vouches_for(position.after, position.digest).unwrap());
    home.check(&replica);
}

#[test]
fn what_is_taken_back_from_below_the_snapshot_gives_it_up() {
    let hub = Hub::new(30);
    let (home, mut replica) = joined(&hub);
    replica.arrive(&page(31, &[append(60, "above")], false)).unwrap();
    replica.arrive_history(&hub.page(0, 20)).unwrap();
    replica.take_back(Seq(10), Whose::Upstream(Some(hub.log()))).unwrap();
    assert_eq!((replica.base(), log_of(&replica).len()), (Seq::START, 10));
    assert_eq!(outbox_of(&replica).len(), 11);
    home.check(&replica);
}

#[test]
fn the_state_is_made_again_from_the_snapshot_and_what_came_after_it() {
    let mut hub = Hub::new(100);
    let (home, mut replica) = joined(&hub);
    hub.add(&Hub::events(150)[100..]);
    replica.arrive(&hub.page(100, 150)).unwrap();
    assert!(stored(&replica.commit(&[append(1, "mine")]).unwrap()));
    let expected = view(&replica);
    replica.arrive_history(&hub.page(0, 50)).unwrap();
    drop(replica);
    // Another executable with the same tables.
    let replica = reopen(&home, bank(), "two");
    assert_eq!((view(&replica), replica.base()), (expected.clone(), Seq(100)));
    drop(replica);
    for file in ["state.db", "state.db-wal"] {
        drop(fs::remove_file(home.path(file)));
    }
    let mut replica = reopen(&home, bank(), "two");
    assert_eq!((view(&replica), replica.base()), (expected, Seq(100)));
    // A repair, too.
    replica.take_back(Seq(120), Whose::Upstream(Some(hub.log()))).unwrap();
    replica.arrive(&hub.page(120, 150)).unwrap();
    assert_eq!(replica.base(), Seq(100));
    let mut model = Model::of(&Hub::events(150));
    model.apply(&append(1, "mine"));
    assert_eq!(view(&replica), model.lines());
}

#[test]
fn a_snapshot_that_is_no_use_any_more_is_given_up_and_nothing_is_lost() {
    for why in ["another schema", "missing", "shorter", "damaged"] {
        let mut hub = Hub::new(100);
        let (home, mut replica) = joined(&hub);
        hub.add(&Hub::events(120)[100..]);
        replica.arrive(&hub.page(100, 120)).unwrap();
        replica.arrive_history(&hub.page(0, 60)).unwrap();
        replica.commit(&[append(1, "mine")]).unwrap();
        drop(replica);
        let base = home.path("base.db");
        let bytes = fs::read(&base).unwrap();
        match why {
            "missing" => fs::remove_file(&base).unwrap(),
            "shorter" => fs::write(&base, &bytes[..bytes.len() - 1]).unwrap(),
            "damaged" => {
                let mut bytes = bytes;
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                fs::write(&base, bytes).unwrap();
                fs::remove_file(home.path("state.db")).unwrap();
            }
            _ => {}
        }
        let replica = if why == "another schema" { reopen(&home, later_bank(), "two") } else { home.open() };
        assert_eq!(replica.base(), Seq::START, "{why}");
        assert_eq!(log_of(&replica), hub.page(0, 60).entries, "{why}");
        let mut above: Vec<_> = hub.page(100, 120).entries.into_iter().map(|entry| entry.event).collect();
        above.push(append(1, "mine"));
        assert_eq!(outbox_of(&replica), above, "{why}");
        assert!(!base.exists());
        if why != "another schema" {
            home.check(&replica);
        }
    }
}

#[test]
fn a_snapshot_without_a_base_is_deleted_at_opening() {
    let home = Home::new();
    drop(home.open());
    fs::write(home.path("base.db"), "left by a join that was interrupted").unwrap();
    fs::write(home.path("scratch-0123.db"), "left by a proof that was interrupted").unwrap();
    drop(home.open());
    assert!(!home.path("base.db").exists() && !home.path("scratch-0123.db").exists());
}

#[test]
fn verify_and_backup_work_on_a_log_that_begins_at_a_snapshot() {
    let mut hub = Hub::new(2_200);
    let (home, mut replica) = joined(&hub);
    hub.add(&Hub::events(2_250)[2_200..]);
    replica.arrive(&hub.page(2_200, 2_250)).unwrap();
    replica.arrive_history(&hub.page(0, 1_500)).unwrap();
    replica.commit(&[append(1, "mine")]).unwrap();
    let report = verify(&home.files(), &setup(bank())).unwrap();
    assert_eq!(report.problems, [""; 0]);
    assert!(report.notes.iter().any(|note| note.contains("2200") && note.contains("1500")), "{:?}", report.notes);
    assert_eq!((report.events, report.pending), (2_250, 1));
    assert_eq!(report.state_digest, hub.replica.state_digest().unwrap());
    let copy = Home::new();
    backup(&home.files(), &copy.files()).unwrap();
    let copied = copy.open();
    assert_eq!((view(&copied), copied.base()), (view(&replica), Seq(2_200)));
    assert_eq!(copied.history(), replica.history());
    drop(copied);
    // A state that isn't what follows is noticed.
    drop(replica);
    let conn = Connection::open(home.path("state.db")).unwrap();
    conn.execute("UPDATE likes SET count = count + 1", ()).unwrap();
    drop(conn);
    let problems = verify(&home.files(), &setup(bank())).unwrap().problems;
    assert!(problems.len() == 1 && problems[0].contains("`likes`"), "{problems:?}");
    let conn = Connection::open(home.path("state.db")).unwrap();
    conn.execute("UPDATE likes SET count = count - 1", ()).unwrap();
    conn.execute("INSERT INTO likewise_skipped VALUES (unhex('0190d1e53f5c7bb28a3e5d4f6c7b8a90'), 'x')", ()).unwrap();
    drop(conn);
    let problems = verify(&home.files(), &setup(bank())).unwrap().problems;
    assert!(problems.len() == 1 && problems[0].contains("`likewise_skipped`"), "{problems:?}");
    // And a row of the history that the disk has changed.
    let conn = Connection::open(home.path("eventlog.db")).unwrap();
    conn.execute("UPDATE log SET args = '{\"text\":\"!\"}' WHERE seq = 700", ()).unwrap();
    drop(conn);
    let problems = verify(&home.files(), &setup(bank())).unwrap().problems;
    assert!(problems.iter().any(|problem| problem.contains("of the events 1 to 1024")), "{problems:?}");
    let copy = Home::new();
    assert!(matches!(backup(&home.files(), &copy.files()), Err(Fault::Damaged(_))));
}

#[test]
fn an_early_event_that_the_disk_has_changed_is_noticed() {
    let (_hub, home, mut replica) = with_early();
    assert!(replica.are_in_snapshot(&[(id(1), Seq(11))]).unwrap());
    drop(replica);
    for sql in ["UPDATE early SET args = '{\"text\":\"!\"}'", "DELETE FROM early"] {
        let copy = home.scratch.path().join("copy");
        copy_dir(&home.dir, &copy);
        let conn = Connection::open(copy.join("eventlog.db")).unwrap();
        assert_eq!(conn.execute(sql, ()).unwrap(), 1);
        drop(conn);
        let opened = Replica::open(Files::in_dir(&copy), setup(bank()));
        assert!(matches!(opened, Err(Fault::Damaged(_))), "{sql}");
        fs::remove_dir_all(copy).unwrap();
    }
}

#[test]
fn an_export_has_what_is_here_and_says_what_is_missing() {
    let (hub, home, mut replica) = with_early();
    assert!(replica.are_in_snapshot(&[(id(1), Seq(11))]).unwrap());
    replica.arrive(&page(15, &[append(60, "above")], false)).unwrap();
    replica.arrive_history(&hub.page(0, 4)).unwrap();
    let mut lines = Vec::new();
    let written = export(&home.files(), &mut lines).unwrap();
    assert_eq!((written.events, written.missing), (4 + 1 + 1 + 2, 10));
    let places: Vec<_> = String::from_utf8(lines)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["seq"].as_u64())
        .collect();
    assert_eq!(places, [Some(1), Some(2), Some(3), Some(4), Some(15), None, None, None]);
    let mut lines = Vec::new();
    assert_eq!(export(&hub.home.files(), &mut lines).unwrap().missing, 0);
}

#[test]
fn files_that_are_no_snapshots_are_refused() {
    let hub = Hub::new(200);
    let home = Home::new();
    let right = home.scratch.path().join("right");
    let snapshot = Snapshot::make(&hub.home.files(), &right).unwrap().unwrap();
    snapshot.check(&right, &bank()).unwrap();
    let bytes = fs::read(&right).unwrap();
    let path = home.scratch.path().join("wrong");
    // A file that isn't the one that the hub has promised.
    fs::write(&path, [bytes.as_slice(), b"x"].concat()).unwrap();
    is_wrong(snapshot.check(&path, &bank()));
    // Nor one of which a hostile hub says the truth.
    for wrong in [&bytes[..bytes.len() / 2], &bytes[1..], b""] {
        fs::write(&path, wrong).unwrap();
        is_wrong(snapshot.check(&path, &bank()));
        is_wrong(about(&path, snapshot).check(&path, &bank()));
    }
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 3] ^= 4;
    fs::write(&path, flipped).unwrap();
    assert!(is_wrong(snapshot.check(&path, &bank())).contains("hash"));
    // A database that does more than our own, or less.
    for sql in [
        "CREATE INDEX extra ON note (text)",
        "CREATE TRIGGER extra AFTER UPDATE ON likes BEGIN DELETE FROM note; END",
        "CREATE VIEW extra AS SELECT 1",
        "CREATE TABLE extra (a)",
        "DROP TRIGGER guard",
        "DROP TABLE bulk; CREATE TABLE bulk (id INTEGER PRIMARY KEY, text TEXT NOT NULL) ",
        "DROP TABLE likewise_skipped",
        "DELETE FROM likewise_cursor",
        "UPDATE likewise_cursor SET seq = seq - 1",
        "UPDATE likewise_cursor SET digest = zeroblob(32)",
        "UPDATE likewise_cursor SET schema = 'another'",
        "PRAGMA journal_mode = WAL",
        "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET rootpage = 2 WHERE name = 'note'",
        "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET rootpage = 9999 WHERE name = 'note'",
        "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = 'CREATE TABLE' WHERE name = 'note'",
    ] {
        fs::write(&path, &bytes).unwrap();
        Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        let checked = about(&path, snapshot).check(&path, &bank());
        assert!(matches!(checked, Err(SnapshotError::Wrong(_))), "{sql}");
        for suffix in ["-wal", "-shm"] {
            drop(fs::remove_file(home.scratch.path().join(format!("wrong{suffix}"))));
        }
    }
    // Text in another encoding is compared in another way.
    let conn = Connection::open_in_memory().unwrap();
    conn.execute_batch("PRAGMA encoding = 'UTF-16'; CREATE TABLE t (a)").unwrap();
    fs::remove_file(&path).unwrap();
    conn.execute("VACUUM INTO ?1", [path.to_str().unwrap()]).unwrap();
    assert!(is_wrong(about(&path, snapshot).check(&path, &bank())).contains("of the kind"));
    // Another program's, and another schema's.
    let other = Hub::new(1);
    fs::copy(other.home.path("eventlog.db"), &path).unwrap();
    is_wrong(about(&path, snapshot).check(&path, &bank()));
    is_wrong(snapshot.check(&right, &later_bank()));
    is_wrong(snapshot.check(&right, &ledger::schema()));
    // Places that no log has.
    for (seq, length) in [(0, 0), (200, 0), (199, 200)] {
        is_wrong(Snapshot { seq: Seq(seq), length, ..snapshot }.check(&right, &bank()));
    }
}

#[test]
fn a_state_of_one_row_an_event_travels_too() {
    let ([_there, home], [hub, mut device], snapshot) = book_keepers(1_500);
    let checked = snapshot.check(&home.path("snapshot.part"), &ledger::schema()).unwrap();
    assert!(device.join(checked).unwrap());
    assert_eq!(device.state_digest().unwrap(), hub.state_digest().unwrap());
    assert_eq!(proven(&home, &hub, &mut device), Concluded::Proven);
}
