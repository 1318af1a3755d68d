//! Any sequence of commits, arrivals, crashes and openings gives the result of a plain replay of the acknowledged events. Shown
//! as a property over copies of the files, and with processes that are really killed.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::process::{Command, Stdio};

use likewise::engine::{Concluded, Envelope, EventId, Outcome, Replica, Seq, Snapshot, Whose, prove};
use proptest::prelude::*;
use proptest::test_runner::Config;

use crate::support::{Rng, *};

/// What may happen to a replica. The numbers are seeds and places; their users bring them into range.
#[derive(Debug, Clone)]
enum Step {
    Commit { seed: u64, events: usize },
    CommitAgain { of: usize },
    CommitOther { of: usize, seed: u64 },
    ArriveOurs { events: usize, more: bool, swaps: bool },
    ArriveTheirs { seed: u64, events: usize, more: bool },
    ArriveMixed { seed: u64, events: usize, more: bool },
    Settle,
    TakeBack { after: usize },
    Crash,
    Close,
    LoseState,
    MachineFault { after: u32, seed: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (any::<u64>(), 1..5_usize).prop_map(|(seed, events)| Step::Commit { seed, events }),
        1 => any::<usize>().prop_map(|of| Step::CommitAgain { of }),
        1 => (any::<usize>(), any::<u64>()).prop_map(|(of, seed)| Step::CommitOther { of, seed }),
        3 => (1..5_usize, any::<bool>(), prop::bool::weighted(0.2))
            .prop_map(|(events, more, swaps)| Step::ArriveOurs { events, more, swaps }),
        2 => (any::<u64>(), 1..4_usize, any::<bool>())
            .prop_map(|(seed, events, more)| Step::ArriveTheirs { seed, events, more }),
        2 => (any::<u64>(), 1..6_usize, any::<bool>())
            .prop_map(|(seed, events, more)| Step::ArriveMixed { seed, events, more }),
        1 => Just(Step::Settle),
        1 => any::<usize>().prop_map(|after| Step::TakeBack { after }),
        2 => Just(Step::Crash),
        1 => Just(Step::Close),
        1 => Just(Step::LoseState),
        1 => (0..6_u32, any::<u64>()).prop_map(|(after, seed)| Step::MachineFault { after, seed }),
    ]
}

/// A replica, what its upstream sent, and what the replica acknowledged.
struct World {
    home: Home,
    replica: Option<Replica>,
    follows: bool,
    head: u64,
    acknowledged: Vec<Envelope>,
    is_between_pages: bool,
}

impl World {
    fn new(follows: bool) -> Self {
        let home = Home::new();
        let replica = if follows { home.follow() } else { home.open() };
        let acknowledged = Vec::new();
        Self { home, replica: Some(replica), follows, head: 0, acknowledged, is_between_pages: false }
    }

    fn replica(&mut self) -> &mut Replica {
        self.replica.as_mut().unwrap()
    }

    fn crash(&mut self) {
        let replica = self.replica.take().unwrap();
        self.replica = Some(self.home.crash_and_open(replica));
        self.is_between_pages = false;
    }

    fn commit(&mut self, events: &[Envelope]) {
        let outcomes = self.replica().commit(events).unwrap();
        let kept = events.iter().zip(outcomes).filter(|(_, outcome)| matches!(outcome, Outcome::Stored(_)));
        self.acknowledged.extend(kept.map(|(event, _)| event.clone()));
    }

    fn arrive(&mut self, events: &[Envelope], more: bool) {
        if !self.follows || events.is_empty() {
            return;
        }
        // Now and then the authority leaves a gap.
        let first = self.head + 1 + self.head % 3;
        self.head = first + events.len() as u64 - 1;
        self.replica().arrive(&page(first, events, more)).unwrap();
        self.is_between_pages = more;
    }

    fn events(seed: u64, events: usize) -> Vec<Envelope> {
        let mut rng = Rng::new(seed);
        (0..events).map(|_| random_event(&mut rng)).collect()
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Commit { seed, events } => self.commit(&Self::events(seed, events)),
            Step::CommitAgain { of } => {
                if let Some(event) = pick(&self.acknowledged, of) {
                    let outcomes = self.replica().commit(&[event.clone(), event]).unwrap();
                    assert!(matches!(outcomes[..], [Outcome::Known(_), Outcome::Known(_)]), "{outcomes:?}");
                }
            }
            Step::CommitOther { of, seed } => {
                if let Some(event) = pick(&self.acknowledged, of) {
                    let mut other = Self::events(seed, 1).remove(0);
                    other.id = event.id;
                    if other != event {
                        assert_eq!(self.replica().commit(&[other]).unwrap(), [Outcome::Conflict]);
                    }
                }
            }
            Step::ArriveOurs { events, more, swaps } => {
                let mut ours = outbox_of(self.replica());
                ours.truncate(events);
                if swaps {
                    ours.reverse();
                }
                self.arrive(&ours, more);
            }
            Step::ArriveTheirs { seed, events, more } => self.arrive(&Self::events(seed, events), more),
            Step::ArriveMixed { seed, events, more } => {
                let mut rng = Rng::new(seed);
                let mut mixed = Self::events(seed, events);
                for event in outbox_of(self.replica()) {
                    if rng.chance(30) {
                        mixed.insert(rng.below(mixed.len() + 1), event);
                    }
                }
                self.arrive(&mixed, more);
            }
            Step::Settle => {
                self.replica().settle().unwrap();
                self.is_between_pages = false;
            }
            Step::TakeBack { after } if self.follows => {
                let places: Vec<Seq> = log_of(self.replica()).iter().map(|entry| entry.seq).collect();
                let after = pick(&places, after).unwrap_or(Seq::START);
                let before = ids_of(self.replica());
                self.replica().take_back(after, Whose::Upstream(None)).unwrap();
                assert_eq!(ids_of(self.replica()), before);
                self.head = after.0;
                self.is_between_pages = false;
            }
            Step::TakeBack { .. } => {}
            Step::Crash => self.crash(),
            Step::Close => {
                self.replica = None;
                self.replica = Some(self.home.open());
                self.is_between_pages = false;
            }
            Step::LoseState => {
                self.replica = None;
                std::fs::remove_file(self.home.path("state.db")).unwrap();
                self.replica = Some(self.home.open());
                self.is_between_pages = false;
            }
            Step::MachineFault { after, seed } => {
                let events = Self::events(seed, 4);
                fail_after(after, rusqlite::ffi::SQLITE_IOERR);
                let result = self.replica().commit(&events).map(drop);
                assert_eq!(result.is_ok(), mend());
                if result.is_err() {
                    self.crash();
                }
                // What was acknowledged, if anything, is acknowledged again.
                let outcomes = self.replica().commit(&events).unwrap();
                let kept = |outcome: &Outcome| matches!(outcome, Outcome::Stored(_) | Outcome::Known(_));
                let kept = events.iter().zip(&outcomes).filter(|(_, outcome)| kept(outcome));
                self.acknowledged.extend(kept.map(|(event, _)| event.clone()));
            }
        }
    }

    fn check(&mut self) {
        let dir = self.home.dir.clone();
        let is_between_pages = self.is_between_pages;
        let replica = self.replica();
        if is_between_pages {
            check_files(replica, &dir);
        } else {
            check(replica, &dir);
        }
        let mut held: Vec<_> = log_of(replica).into_iter().map(|entry| entry.event).collect();
        held.extend(outbox_of(replica));
        held.extend(set_aside_of(replica));
        for event in &self.acknowledged {
            let copies = self.held_copies(&held, event);
            assert_eq!(copies, 1, "{event:?} is held {copies} times");
        }
    }

    fn held_copies(&self, held: &[Envelope], event: &Envelope) -> usize {
        held.iter().filter(|one| *one == event).count()
    }
}

fn pick<T: Clone>(from: &[T], place: usize) -> Option<T> {
    if from.is_empty() { None } else { Some(from[place % from.len()].clone()) }
}

proptest! {
    #![proptest_config(Config { cases: 100, failure_persistence: None, max_shrink_iters: 2_000, ..Config::default() })]

    #[test]
    fn whatever_happens_the_state_is_the_replay_of_what_was_acknowledged(
        follows in prop::bool::weighted(0.75),
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let mut world = World::new(follows);
        for step in &steps {
            world.take(step);
            world.check();
        }
        // Another replica makes the same state from the same log, from nothing.
        world.replica().settle().unwrap();
        let pending = outbox_of(world.replica());
        world.arrive(&pending, false);
        world.check();
        let log = log_of(world.replica());
        let (_home, replayed) = replay(bank(), &log);
        prop_assert_eq!(world.replica().state_digest().unwrap(), replayed.state_digest().unwrap());
        let head = log.last().map_or(Seq::START, |entry| entry.seq);
        let last = replayed.standing().unwrap().head;
        prop_assert_eq!(world.replica().digest_at(head).unwrap(), replayed.digest_at(last).unwrap());
    }
}

/// What tells a child process what to do: its directory, whether it follows, and its seed.
const CHILD: &str = "LIKEWISE_TEST_CRASHING_CHILD";

/// A process is killed at random moments of its work, again and again on the same files.
#[test]
fn trust_03_a_killed_process_loses_nothing_that_it_acknowledged() {
    for follows in [false, true] {
        let home = Home::new();
        let mut rng = Rng::new(if follows { 31 } else { 32 });
        let mut acknowledged = BTreeSet::new();
        for round in 0..12 {
            let seed = rng.next();
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "crashes::child_that_is_killed", "--ignored", "--nocapture"])
                .env(CHILD, format!("{} {follows} {seed}", home.dir.display()))
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let enough = 1 + rng.below(40);
            let acked = |line: String| line.strip_prefix("acknowledged ").map(|id| id.parse::<EventId>().unwrap());
            acknowledged.extend(lines.by_ref().map_while(Result::ok).filter_map(acked).take(enough));
            child.kill().unwrap();
            child.wait().unwrap();
            // What it said before it died, and nobody had read yet.
            acknowledged.extend(lines.map_while(Result::ok).filter(|line| line.len() >= 49).filter_map(acked));

            let replica = home.open();
            let ids = ids_of(&replica);
            let lost: Vec<_> = acknowledged.iter().filter(|id| !ids.contains(id)).collect();
            assert!(lost.is_empty(), "follows: {follows}, round {round}: {lost:?}");
        }
        assert!(acknowledged.len() > 100, "{}", acknowledged.len());
    }
}

#[test]
#[ignore = "a process of its own, started by another test"]
fn child_that_is_killed() {
    let Ok(told) = std::env::var(CHILD) else { return };
    let told: Vec<_> = told.split(' ').collect();
    let home = Home::of_child(told[0].into());
    let follows = told[1] == "true";
    let mut rng = Rng::new(told[2].parse().unwrap());
    let mut replica = if follows { home.follow() } else { home.open() };
    loop {
        let events: Vec<_> = (0..=rng.below(4)).map(|_| random_event(&mut rng)).collect();
        let outcomes = replica.commit(&events).unwrap();
        let mut said = String::new();
        for (event, outcome) in events.iter().zip(outcomes) {
            if let Outcome::Stored(_) = outcome {
                writeln!(said, "acknowledged {}", event.id).unwrap();
            }
        }
        // The reader is gone, so this process ends, too.
        if std::io::stdout().write_all(said.as_bytes()).and_then(|()| std::io::stdout().flush()).is_err() {
            return;
        }
        let standing = replica.standing().unwrap();
        match rng.below(12) {
            0..=2 if follows => {
                let ours = outbox_of(&replica);
                let ours = &ours[..rng.below(ours.len() + 1)];
                if !ours.is_empty() {
                    replica.arrive(&page(standing.head.0 + 1, ours, false)).unwrap();
                }
            }
            3 if follows => {
                let theirs = [random_event(&mut rng), random_event(&mut rng)];
                replica.arrive(&page(standing.head.0 + 1, &theirs, rng.chance(50))).unwrap();
            }
            4 if follows && rng.chance(30) => {
                let after = Seq(rng.next() % (standing.head.0 + 1));
                replica.take_back(after, Whose::Upstream(None)).unwrap();
            }
            _ => {}
        }
    }
}

/// Tells a child process which story to play, and where.
const KILLED_AT: &str = "LIKEWISE_TEST_KILLED_AT";

/// A process is killed just before each write to a database or the witness, and before each deletion of a file, one after the
/// other. This covers the moments between append, materialize and the cursor, and between any two pages of a transaction.
#[test]
fn trust_19_killed_at_any_write_the_state_is_never_ahead_and_nothing_is_lost() {
    if let Err(why) = Command::new("strace").arg("-V").output() {
        panic!("this test needs strace ({why}): install it, on Debian with `apt-get install strace`");
    }
    let mut kills = 0;
    for story in ["own", "synced", "proven", "given up"] {
        for call in ["pwrite64", "write", "unlink", "rename"] {
            // strace counts the calls of each name.
            let mut nth = 1;
            while was_killed(story, call, nth) {
                nth += 1;
                kills += 1;
            }
        }
    }
    assert!(kills > 100, "only {kills} kills");
}

/// Has a process play `story` and be killed at its `nth` call. Afterwards all must be well. False when the story reached its
/// end.
fn was_killed(story: &str, call: &str, nth: u32) -> bool {
    let home = Home::new();
    // The beginning is not part of the story: the process that is killed has a past.
    drop(prologue(&home, story));
    let output = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}")])
        .args(["-e", &format!("inject={call}:signal=KILL:when={nth}")])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "crashes::child_that_is_killed_at_a_write", "--ignored", "--nocapture"])
        .env(KILLED_AT, format!("{} {story}", home.dir.display()))
        .stderr(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    if begins_at_a_snapshot(&home) {
        assert!(home.path("base.db").exists(), "{story}, killed at {call} {nth}: the log begins at nothing");
    }
    let mut replica = home.open();
    assert!(matches!(replica.commit(&[like(1)]).unwrap()[..], [Outcome::Known(_)]), "{story}, {call} {nth}");
    // What it has of a snapshot is given up, so that all that it holds is in log and outbox.
    replica.drop_base().unwrap();
    home.check(&replica);
    let ids = ids_of(&replica);
    assert!(ids.contains(&id(1)), "{story}, killed at {call} {nth}");
    for line in said.lines().filter_map(|line| line.strip_prefix("acknowledged ")) {
        assert!(ids.contains(&line.parse().unwrap()), "{story}, killed at {call} {nth}: {line} is lost");
    }
    !said.contains("the end")
}

/// Whether the log begins at a snapshot, as the files say that a killed process has left.
fn begins_at_a_snapshot(home: &Home) -> bool {
    let copy = home.scratch.path().join("copy");
    copy_dir(&home.dir, &copy);
    let conn = rusqlite::Connection::open(copy.join("eventlog.db")).unwrap();
    let base: i64 = conn.query_row("SELECT seq FROM base", (), |row| row.get(0)).unwrap();
    drop(conn);
    std::fs::remove_dir_all(copy).unwrap();
    base > 0
}

/// The log of the hub with whose snapshot a device begins. The third event is the device's.
fn of_the_hub() -> Vec<Envelope> {
    let others = (100..107).map(|n| append(n, "h"));
    let mut events: Vec<_> = others.collect();
    events.insert(2, like(1));
    events
}

/// Has a hub make a snapshot for the device in `home`, and writes down what it says of it.
fn make_snapshot(home: &Home) {
    let hub = Home::new();
    let events: Vec<_> = of_the_hub().into_iter().map(|event| (event, device("elsewhere"))).collect();
    hub.open().add(&events).unwrap();
    let snapshot = Snapshot::make(&hub.files(), &home.path("snapshot.part")).unwrap().unwrap();
    let said = serde_json::to_vec(&snapshot).unwrap();
    std::fs::write(home.path("snapshot.json"), said).unwrap();
}

/// A replica with something in log and outbox.
fn prologue(home: &Home, story: &str) -> Replica {
    let mut replica = if story == "own" { home.open() } else { home.follow() };
    replica.commit(&[like(1), append(2, "a"), like(3)]).unwrap();
    if story == "synced" {
        replica.arrive(&page(1, &[like(1)], false)).unwrap();
    }
    if matches!(story, "proven" | "given up") {
        make_snapshot(home);
    }
    replica
}

#[test]
#[ignore = "a process of its own, started by another test"]
fn child_that_is_killed_at_a_write() {
    let Ok(told) = std::env::var(KILLED_AT) else { return };
    let (dir, story) = told.split_once(' ').unwrap();
    let home = Home::of_child(dir.into());
    let mut replica = home.try_open().unwrap();
    let commit = |replica: &mut Replica, events: &[Envelope]| {
        assert!(stored(&replica.commit(events).unwrap()));
        for event in events {
            println!("acknowledged {}", event.id);
        }
    };
    commit(&mut replica, &[like(10), append(11, "b")]);
    if story == "own" {
        commit(&mut replica, &[append(12, "c")]);
        replica
            .add(&[(append(13, "d"), device("elsewhere")), (event(id(14), "Panicked", ""), device("elsewhere"))])
            .unwrap();
        replica.take_back(Seq(2), Whose::Upstream(None)).unwrap();
        commit(&mut replica, &[like(15)]);
        replica.promote().unwrap();
    } else if matches!(story, "proven" | "given up") {
        let said = std::fs::read(home.path("snapshot.json")).unwrap();
        let snapshot: Snapshot = serde_json::from_slice(&said).unwrap();
        let checked = snapshot.check(&home.path("snapshot.part"), &bank()).unwrap();
        assert!(replica.join(checked).unwrap());
        commit(&mut replica, &[append(12, "c")]);
        assert!(replica.are_in_snapshot(&[(id(1), Seq(3))]).unwrap());
        replica.arrive(&page(9, &[append(20, "x"), append(2, "a")], false)).unwrap();
        let history = of_the_hub();
        replica.arrive_history(&page(1, &history[..2], true)).unwrap();
        if story == "proven" {
            replica.arrive_history(&page(3, &history[2..], false)).unwrap();
            let proof = prove(&home.files(), &setup(bank())).unwrap().unwrap();
            assert_eq!(replica.conclude(proof).unwrap(), Concluded::Proven);
        } else {
            replica.drop_base().unwrap();
        }
        commit(&mut replica, &[like(15)]);
    } else {
        // Our own events and others', a confirmation of everything pending, and a repair.
        replica.arrive(&page(2, &[append(20, "x"), append(2, "a")], true)).unwrap();
        replica.arrive(&page(4, &[append(21, "y")], false)).unwrap();
        replica.arrive(&page(5, &[like(3), like(10), append(11, "b")], false)).unwrap();
        commit(&mut replica, &[append(12, "c")]);
        replica.take_back(Seq(3), Whose::Upstream(None)).unwrap();
        replica.arrive(&page(4, &[append(21, "y"), like(3)], false)).unwrap();
        commit(&mut replica, &[like(15)]);
    }
    drop(replica);
    println!("the end");
    // Skip the test harness's destructors: they are not part of the story.
    std::process::exit(0);
}
