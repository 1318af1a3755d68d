//! What one replica promises when the machine fails, or when somebody changed its files.

use std::fs;
use std::path::Path;
use std::process::Command;

use likewise::engine::{Database, Entry, Envelope, EventId, Fault, LogId, Outcome, PageSize, Replica, Seq, Whose};
use rusqlite::Connection;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::*;

/// A store with `log` in its log and `outbox` in its outbox, and a bit of everything.
fn filled(home: &Home, log: usize, outbox: usize) -> Replica {
    let mut rng = Rng::new(99);
    let mut replica = home.follow();
    let events: Vec<_> = (0..log).map(|_| random_event(&mut rng)).collect();
    replica.arrive(&page(1, &events, false)).unwrap();
    let ours: Vec<_> = (0..outbox as u64).map(|n| append(1_000 + n, "o")).collect();
    assert!(stored(&replica.commit(&ours).unwrap()));
    home.check(&replica);
    replica
}

/// The name and the bytes of every file of a store.
fn bytes_of(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|file| file.unwrap())
        .map(|file| (file.file_name().into_string().unwrap(), fs::read(file.path()).unwrap()))
        .collect();
    files.sort();
    files
}

/// Moves a database's whole WAL into its file, as a checkpoint beside the running store does.
fn checkpoint(path: &Path) {
    let conn = Connection::open(path).unwrap();
    conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |_| Ok(())).unwrap();
}

#[test]
fn trust_13_a_state_that_is_missing_or_foreign_is_made_anew_with_the_same_digest() {
    type Harm = fn(&Path);
    let harms: [(&str, Harm); 8] = [
        ("missing", |state| fs::remove_file(state).unwrap()),
        ("empty", |state| fs::write(state, b"").unwrap()),
        ("garbage", |state| fs::write(state, [0xa5; 9_000]).unwrap()),
        ("short garbage", |state| fs::write(state, b"SQLite format 3\0").unwrap()),
        ("cut", |state| fs::OpenOptions::new().write(true).open(state).unwrap().set_len(4_096 * 3 + 100).unwrap()),
        ("one page", |state| fs::OpenOptions::new().write(true).open(state).unwrap().set_len(4_096).unwrap()),
        ("another database", |state| {
            fs::remove_file(state).unwrap();
            Connection::open(state).unwrap().execute_batch("CREATE TABLE t (a)").unwrap();
        }),
        ("no cursor", |state| Connection::open(state).unwrap().execute_batch("DELETE FROM likewise_cursor").unwrap()),
    ];
    for (name, harm) in harms {
        let home = Home::new();
        let replica = filled(&home, 60, 5);
        let digest = replica.state_digest().unwrap();
        drop(replica);
        harm(&home.path("state.db"));
        let replica = home.open();
        assert_eq!(replica.state_digest().unwrap(), digest, "{name}");
    }
    // While it was open.
    let mut home = Home::new();
    let replica = filled(&home, 60, 5);
    let digest = replica.state_digest().unwrap();
    home.crash(replica);
    for file in ["state.db", "state.db-wal"] {
        fs::remove_file(home.path(file)).unwrap();
    }
    assert_eq!(home.open().state_digest().unwrap(), digest);
}

#[test]
fn a_state_of_another_executable_or_schema_is_made_anew_with_the_same_digest() {
    let home = Home::new();
    let replica = filled(&home, 60, 5);
    let digest = replica.state_digest().unwrap();
    drop(replica);
    let spoil = || {
        let conn = Connection::open(home.path("state.db")).unwrap();
        conn.execute_batch("UPDATE likes SET count = 12345").unwrap();
    };
    for (executable, version) in [("two", 0), ("two", 1), ("one", 1), ("one", 0)] {
        spoil();
        let mut setup = setup(bank().version(version));
        setup.executable = executable.to_owned();
        let replica = home.try_open_as(setup.clone()).unwrap();
        assert_eq!(replica.state_digest().unwrap(), digest);
        drop(replica);
        // The same executable keeps it.
        assert_eq!(home.try_open_as(setup).unwrap().state_digest().unwrap(), digest);
    }
}

#[test]
fn a_state_with_a_flipped_bit_in_its_header_never_keeps_the_store_from_opening() {
    let home = Home::new();
    let replica = filled(&home, 40, 3);
    let digest = replica.state_digest().unwrap();
    drop(replica);
    let state = home.path("state.db");
    let sound = fs::read(&state).unwrap();
    for at in 0..100 {
        let mut bytes = sound.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(&state, &bytes).unwrap();
        let replica = home.try_open().unwrap_or_else(|fault| panic!("byte {at}: {fault}"));
        assert_eq!(replica.state_digest().unwrap(), digest, "byte {at}");
        drop(replica);
        for file in ["state.db-wal", "state.db-shm", "state.db-journal"] {
            drop(fs::remove_file(home.path(file)));
        }
    }
}

#[test]
fn trust_08_a_flipped_bit_in_the_eventlogs_structure_fails_closed_or_harms_nothing() {
    let home = Home::new();
    let replica = filled(&home, 60, 5);
    let (log, outbox, digest) = (log_of(&replica), outbox_of(&replica), replica.state_digest().unwrap());
    drop(replica);
    let sound = bytes_of(&home.dir);
    let restore = || {
        fs::remove_dir_all(&home.dir).unwrap();
        fs::create_dir(&home.dir).unwrap();
        sound.iter().for_each(|(name, bytes)| fs::write(home.path(name), bytes).unwrap());
    };
    let mut rng = Rng::new(5);
    let mut refused = 0;
    for nth in 0..250 {
        restore();
        let mut bytes = fs::read(home.path("eventlog.db")).unwrap();
        let at = if nth < 100 { nth } else { rng.below(bytes.len()) };
        bytes[at] ^= 1 << rng.below(8);
        fs::write(home.path("eventlog.db"), &bytes).unwrap();
        let found = home.try_open().and_then(|replica| {
            let log = replica.entries(Seq::START, PageSize::events(1_000))?;
            Ok((log, replica.pending(i64::MIN, PageSize::events(1_000))?))
        });
        match found {
            Ok((found, pending)) => {
                // The places may differ: the digest doesn't cover them.
                let unplaced = |entry: &Entry| (entry.event.clone(), entry.origin.clone());
                assert!(found.iter().map(unplaced).eq(log.iter().map(unplaced)), "byte {at}");
                assert!(pending.iter().map(|(_, event)| event).eq(&outbox), "byte {at}");
            }
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 20, "{refused}");
    restore();
    assert_eq!(home.open().state_digest().unwrap(), digest);
}

/// The eventlog is removed first, so a crash may leave the old state beside it.
#[test]
fn trust_51_a_crash_between_taking_back_and_making_the_state_anew_is_mended_by_opening() {
    type Act = fn(&mut Replica);
    let then: [Act; 3] = [
        |_| {},
        |replica| drop(replica.commit(&[append(8, "n")]).unwrap()),
        |replica| {
            replica.arrive(&page(2, &[append(20, "x"), append(21, "y"), append(22, "z")], false)).unwrap();
        },
    ];
    for whose in [Whose::Upstream(None), Whose::Own(LogId::random())] {
        for act in then.iter().take(if matches!(whose, Whose::Own(_)) { 2 } else { 3 }) {
            let mut home = Home::new();
            let mut replica = home.follow();
            replica.arrive(&page(1, &[append(1, "1"), append(2, "2"), append(3, "3")], false)).unwrap();
            replica.commit(&[append(4, "4")]).unwrap();
            let old = home.scratch.path().join("old");
            copy_dir(&home.dir, &old);
            replica.take_back(Seq(1), whose).unwrap();
            act(&mut replica);
            let digest = replica.state_digest().unwrap();
            home.crash(replica);
            for file in ["state.db", "state.db-wal", "witness"] {
                fs::copy(old.join(file), home.path(file)).unwrap();
            }
            let replica = home.open();
            assert_eq!(replica.state_digest().unwrap(), digest);
        }
    }
}

fn lost_tail(home: &Home) -> bool {
    match home.try_open() {
        Err(Fault::LostTail(_)) => true,
        Err(other) => panic!("{other}"),
        Ok(_) => false,
    }
}

#[test]
fn trust_07_a_deleted_wal_is_noticed_for_the_log_and_for_the_outbox() {
    for follows in [false, true] {
        for without in ["", "state.db", "witness"] {
            let mut home = Home::new();
            let mut replica = if follows { home.follow() } else { home.open() };
            replica.commit(&[like(1), like(2)]).unwrap();
            home.crash(replica);
            let wal = fs::read(home.path("eventlog.db-wal")).unwrap();
            fs::remove_file(home.path("eventlog.db-wal")).unwrap();
            match without {
                "" => {}
                // Only the witness knows of pending events.
                "witness" if follows => continue,
                file => {
                    fs::remove_file(home.path(file)).unwrap();
                    drop(fs::remove_file(home.path(&format!("{file}-wal"))));
                }
            }
            for _ in 0..2 {
                assert!(lost_tail(&home), "follows: {follows}, without: {without}");
            }
            // Following the advice, put it back.
            fs::write(home.path("eventlog.db-wal"), wal).unwrap();
            let replica = home.open();
            assert_eq!(likes(&replica), 2);
        }
    }
}

#[test]
fn trust_07_a_missing_or_emptied_eventlog_is_noticed() {
    for empties in [false, true] {
        let home = Home::new();
        let mut replica = home.open();
        replica.commit(&[like(1)]).unwrap();
        drop(replica);
        if empties {
            fs::write(home.path("eventlog.db"), b"").unwrap();
        } else {
            fs::remove_file(home.path("eventlog.db")).unwrap();
        }
        assert!(lost_tail(&home));
        assert!(lost_tail(&home));
    }
}

#[test]
fn trust_07_an_older_eventlog_in_its_place_is_noticed() {
    type Act = fn(&mut Replica);
    let acts: [(&str, Act); 5] = [
        ("commit", |replica| drop(replica.commit(&[like(50)]).unwrap())),
        ("confirm", |replica| replica.arrive(&page(2, &[like(1)], false)).unwrap()),
        ("arrive", |replica| replica.arrive(&page(2, &[like(60)], false)).unwrap()),
        ("take back", |replica| replica.take_back(Seq::START, Whose::Upstream(None)).unwrap()),
        ("take back and confirm", |replica| {
            replica.take_back(Seq::START, Whose::Upstream(None)).unwrap();
            replica.arrive(&page(1, &[like(7), like(1)], false)).unwrap();
        }),
    ];
    for (name, act) in acts {
        for without_witness in [false, true] {
            let mut home = Home::new();
            let mut replica = home.follow();
            replica.arrive(&page(1, &[like(7)], false)).unwrap();
            replica.commit(&[like(1), like(2)]).unwrap();
            let old = home.scratch.path().join("old");
            copy_dir(&home.dir, &old);
            act(&mut replica);
            home.crash(replica);
            for file in ["eventlog.db", "eventlog.db-wal"] {
                fs::copy(old.join(file), home.path(file)).unwrap();
            }
            if without_witness {
                // Then only the state can tell, and it knows the confirmed events.
                if name == "commit" || name == "confirm" {
                    continue;
                }
                fs::remove_file(home.path("witness")).unwrap();
            }
            assert!(lost_tail(&home), "{name}, without witness: {without_witness}");
        }
    }
}

/// A WAL from before a checkpoint, over a database from after it, is a mixture that SQLite accepts.
#[test]
fn trust_07_an_older_wal_over_a_newer_database_is_noticed_and_not_written_into_it() {
    type Act = fn(&mut Replica, u64);
    let acts: [(&str, Act); 4] = [
        ("commit", |replica, n| drop(replica.commit(&[like(n)]).unwrap())),
        ("arrive", |replica, n| replica.arrive(&page(n, &[like(n)], false)).unwrap()),
        ("confirm", |replica, n| {
            let (_, first) = replica.pending(i64::MIN, PageSize::events(1)).unwrap().remove(0);
            replica.arrive(&page(n, &[first], false)).unwrap();
        }),
        ("cursor", |replica, n| {
            let page = likewise::engine::Page { entries: Vec::new(), next: Seq(n), more: false };
            replica.arrive(&page).unwrap();
        }),
    ];
    let mut rng = Rng::new(11);
    for _ in 0..80 {
        let [old, between, new] = [(); 3].map(|()| *rng.pick(&acts));
        let story = [old, between, new].map(|(name, _)| name);
        let mut home = Home::new();
        let mut replica = home.follow();
        let ours: Vec<_> = (5_000..*rng.pick(&[5_045, 5_600])).map(like).collect();
        replica.commit(&ours).unwrap();
        replica.arrive(&page(100, &(100..700).map(like).collect::<Vec<_>>(), false)).unwrap();
        checkpoint(&home.path("eventlog.db"));
        old.1(&mut replica, 1_000);
        let older = fs::read(home.path("eventlog.db-wal")).unwrap();
        let last = *rng.pick(&[1_002, 1_003, 1_040]);
        (1_001..last).for_each(|n| between.1(&mut replica, n));
        checkpoint(&home.path("eventlog.db"));
        (1_040..1_043).for_each(|n| new.1(&mut replica, n));
        let all = (log_of(&replica), outbox_of(&replica));
        home.crash(replica);
        let right = fs::read(home.path("eventlog.db-wal")).unwrap();
        fs::write(home.path("eventlog.db-wal"), &older).unwrap();
        let before = fs::read(home.path("eventlog.db")).unwrap();
        if let Ok(replica) = home.try_open() {
            assert_eq!((log_of(&replica), outbox_of(&replica)), all, "{story:?}");
            continue;
        }
        assert!(fs::read(home.path("eventlog.db")).unwrap() == before, "{story:?}: the database was written to");
        // With the right one back in place, everything is there again.
        fs::write(home.path("eventlog.db-wal"), &right).unwrap();
        let replica = home.try_open().unwrap_or_else(|fault| panic!("{story:?}: {fault}"));
        home.check(&replica);
        assert_eq!((log_of(&replica), outbox_of(&replica)), all, "{story:?}");
    }
}

#[test]
fn trust_12_a_newer_format_is_left_as_it_is() {
    for crashes in [false, true] {
        let mut home = Home::new();
        let replica = filled(&home, 10, 2);
        let raise = |home: &Home| {
            let conn = Connection::open(home.path("eventlog.db")).unwrap();
            conn.execute_batch("PRAGMA user_version = 4; CREATE TABLE later (a)").unwrap();
        };
        if crashes {
            // The format's number is still in the WAL.
            raise(&home);
            home.crash(replica);
        } else {
            drop(replica);
            raise(&home);
        }
        let before = bytes_of(&home.dir);
        for _ in 0..2 {
            assert!(matches!(home.try_open(), Err(Fault::NewerFormat { found: 4, known: 3, .. })));
            let mut after = bytes_of(&home.dir);
            // SQLite may need its index of the WAL to look. The index holds no data of its own.
            let is_index = |(name, bytes): &(String, Vec<u8>)| {
                name.ends_with("-shm") || name.ends_with("-wal") && bytes.is_empty()
            };
            let mut expected = before.clone();
            after.retain(|file| !is_index(file));
            expected.retain(|file| !is_index(file));
            assert!(after == expected, "a file changed");
        }
    }
}

#[test]
fn a_foreign_database_is_left_as_it_is() {
    let home = Home::new();
    fs::create_dir_all(&home.dir).unwrap();
    Connection::open(home.path("eventlog.db")).unwrap().execute_batch("CREATE TABLE t (a)").unwrap();
    let before = bytes_of(&home.dir);
    assert!(matches!(home.try_open(), Err(Fault::Foreign(_))));
    assert_eq!(bytes_of(&home.dir), before);
    fs::write(home.path("eventlog.db"), "dear diary").unwrap();
    assert!(home.try_open().is_err());
    assert_eq!(fs::read(home.path("eventlog.db")).unwrap(), b"dear diary");
}

#[test]
fn trust_01_both_databases_are_in_wal_mode() {
    let home = Home::new();
    let mut replica = home.open();
    replica.commit(&[like(1)]).unwrap();
    for file in ["eventlog.db", "state.db"] {
        let header = fs::read(home.path(file)).unwrap();
        assert_eq!(header[18..20], [2, 2], "{file}");
    }
    // What a commit adds is only in the WAL so far.
    let (file, wal) = (home.path("eventlog.db"), home.path("eventlog.db-wal"));
    let before = (fs::read(&file).unwrap(), fs::metadata(&wal).unwrap().len());
    replica.commit(&[like(2)]).unwrap();
    assert_eq!(fs::read(&file).unwrap(), before.0);
    assert!(fs::metadata(&wal).unwrap().len() > before.1);
}

#[test]
#[cfg(unix)]
fn trust_45_files_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::new();
    let mut replica = home.open();
    replica.commit(&[like(1)]).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&home.dir), 0o700);
    for file in fs::read_dir(&home.dir).unwrap() {
        let path = file.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}

#[test]
fn trust_10_files_that_are_gone_are_noticed() {
    type Harm = fn(&Home);
    let harms: [Harm; 4] = [
        |home| fs::remove_dir_all(&home.dir).unwrap(),
        |home| fs::remove_file(home.path("eventlog.db")).unwrap(),
        |home| fs::remove_file(home.path("eventlog.db-wal")).unwrap(),
        |home| {
            let other = home.scratch.path().join("other");
            copy_dir(&home.dir, &other);
            fs::remove_dir_all(&home.dir).unwrap();
            fs::rename(other, &home.dir).unwrap();
        },
    ];
    for harm in harms {
        let home = Home::new();
        let replica = home.open();
        replica.check_files().unwrap();
        harm(&home);
        assert!(matches!(replica.check_files(), Err(Fault::Gone(_))));
    }
}

/// Runs `act` while the machine fails in the materializer after `after` others. Returns the fault, if there is one.
fn failing_after(after: u32, code: i32, act: impl FnOnce() -> Result<(), Fault>) -> Option<Fault> {
    fail_after(after, code);
    let result = act();
    let unhurt = mend();
    assert_eq!(result.is_ok(), unhurt, "a fault of the machine must not be swallowed: {result:?}");
    result.err()
}

#[test]
fn trust_50_a_machine_fault_in_a_commit_stops_and_a_retry_counts_once() {
    for follows in [false, true] {
        for code in MACHINE_FAULTS {
            for after in [0, 1, 2, 4] {
                let mut home = Home::new();
                let mut replica = if follows { home.follow() } else { home.open() };
                replica.commit(&[append(1, "a")]).unwrap();
                // The second event is refused, so the others are applied again, each alone.
                let batch = [append(2, "b"), event(id(3), "Panicked", ""), append(4, "c")];
                let fault = failing_after(after, code, || replica.commit(&batch).map(drop));
                if fault.is_none() {
                    continue;
                }
                let mut replica = home.crash_and_open(replica);
                assert_eq!(note(&replica), "a");
                let outcomes = replica.commit(&batch).unwrap();
                assert!(matches!(&outcomes[1], Outcome::Refused(why) if why.contains("panicked")), "{outcomes:?}");
                assert_eq!(note(&replica), "abc");
                home.check(&replica);
            }
        }
    }
}

#[test]
fn trust_50_a_machine_fault_never_makes_an_event_skipped() {
    type Act = fn(&mut Replica) -> Result<(), Fault>;
    let arriving = || -> Vec<Envelope> {
        vec![append(20, "x"), event(id(21), "Guarded", r#"{"by":21}"#), append(22, "y"), append(2, "b")]
    };
    let acts: [(&str, Act); 3] = [
        ("arrive", |replica| {
            let events = [append(20, "x"), event(id(21), "Guarded", r#"{"by":21}"#), append(22, "y"), append(2, "b")];
            replica.arrive(&page(2, &events, false))
        }),
        ("take back", |replica| replica.take_back(Seq::START, Whose::Upstream(None))),
        ("settle", |replica| replica.settle()),
    ];
    for (name, act) in acts {
        for code in MACHINE_FAULTS {
            let mut hurt = 0;
            for after in 0..12 {
                let mut home = Home::new();
                let mut replica = home.follow();
                replica.arrive(&page(1, &[append(9, "w")], false)).unwrap();
                replica.commit(&[append(1, "a"), append(2, "b"), append(3, "c")]).unwrap();
                if failing_after(after, code, || act(&mut replica)).is_none() {
                    break;
                }
                hurt += 1;
                home.crash(replica);
                // The machine fails again while the store opens.
                if failing_after(after / 2, code, || home.try_open().map(drop)).is_none() {
                    continue;
                }
                let mut replica = home.open();
                assert_eq!(replica.standing().unwrap().skipped, u64::from(name == "arrive"));
                if name == "take back" {
                    assert_eq!(ids_of(&replica), [id(9), id(1), id(2), id(3)]);
                    replica.arrive(&page(1, &[append(9, "w")], false)).unwrap();
                }
                replica.arrive(&page(2, &arriving(), false)).unwrap();
                home.check(&replica);
                assert_eq!(note(&replica), "wxybac");
            }
            assert!(hurt >= 3, "{name}: {hurt}");
        }
    }
}

#[test]
fn trust_50_a_machine_fault_while_others_events_are_added_stops_and_they_can_be_added_again() {
    for after in 0..6 {
        let mut home = Home::new();
        let mut replica = home.open();
        replica.commit(&[append(1, "a")]).unwrap();
        let events: Vec<_> = [append(2, "b"), event(id(3), "Guarded", r#"{"by":21}"#), append(4, "c")]
            .map(|event| (event, device("elsewhere")))
            .into();
        let Some(_) = failing_after(after, rusqlite::ffi::SQLITE_FULL, || replica.add(&events).map(drop)) else {
            break;
        };
        let mut replica = home.crash_and_open(replica);
        assert!(stored(&replica.add(&events).unwrap()));
        home.check(&replica);
        assert_eq!(note(&replica), "abc");
    }
}

#[test]
fn a_replica_that_met_a_fault_changes_nothing_any_more() {
    for follows in [false, true] {
        let mut home = Home::new();
        let mut replica = if follows { home.follow() } else { home.open() };
        let arrived = page(1, &[append(1, "a")], false);
        let result = failing_after(0, rusqlite::ffi::SQLITE_FULL, || match follows {
            true => replica.arrive(&arrived),
            false => replica.commit(&[append(1, "a")]).map(drop),
        });
        assert!(matches!(result, Some(Fault::Sqlite { .. })));
        let denied = event(id(2), "Panicked", "");
        for result in [
            replica.commit(&[denied]).map(drop),
            replica.commit(&[append(3, "b")]).map(drop),
            replica.add(&[(append(3, "b"), device("x"))]).map(drop),
            replica.arrive(&arrived),
            replica.settle(),
            replica.take_back(Seq::START, Whose::Upstream(None)),
            replica.meet(LogId::random()),
            replica.refuse(&[(id(1), "no".to_owned())]),
            replica.set_aside(&append(4, "c"), "no").map(drop),
            replica.retry_set_aside(|| id(5)).map(drop),
        ] {
            assert!(matches!(result, Err(Fault::Stopped)), "{result:?}");
        }
        if follows {
            assert!(matches!(replica.promote(), Err(Fault::Stopped)));
        }
        let replica = home.crash_and_open(replica);
        assert_eq!(note(&replica), if follows { "a" } else { "" });
        assert_eq!(replica.standing().unwrap().set_aside, 0);
    }
}

#[test]
fn a_database_that_another_process_holds_is_a_fault_of_the_machine() {
    let home = Home::new();
    let mut replica = home.open();
    replica.commit(&[like(1)]).unwrap();
    let shell = Connection::open(home.path("state.db")).unwrap();
    shell.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert!(matches!(replica.commit(&[like(2)]), Err(Fault::Sqlite { database: Database::State, .. })));
    shell.execute_batch("ROLLBACK").unwrap();
    drop(replica);
    let mut replica = home.open();
    assert_eq!(replica.commit(&[like(2)]).unwrap(), [Outcome::Stored(Some(Seq(2)))]);
    assert_eq!(likes(&replica), 2);
}

/// Where a child process finds its store.
const CHILD_DIR: &str = "LIKEWISE_TEST_CHILD_DIR";

/// Runs an ignored test of this file as a process in which a write beyond the limit is an error, not a signal.
#[cfg(unix)]
fn run_child(name: &str, dir: &Path) {
    let output = Command::new("sh")
        .args(["-c", r#"trap '' XFSZ; exec "$0" --exact "faults::$1" --ignored --nocapture"#])
        .arg(std::env::current_exe().unwrap())
        .arg(name)
        .env(CHILD_DIR, dir)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("1 passed"), "{said}");
}

/// How large this process's files may get.
fn limit_files(bytes: Option<u64>) {
    let maximum = getrlimit(Resource::Fsize).maximum;
    setrlimit(Resource::Fsize, Rlimit { current: bytes, maximum }).unwrap();
}

/// A real write fails inside a materializer, in all the ways that events can arrive.
#[test]
#[cfg(unix)]
fn trust_50_a_file_that_cannot_grow_is_a_fault_of_the_machine() {
    run_child("child_whose_files_cannot_grow", &Home::new().dir);
}

/// A real write of the eventlog fails, while the state could still be written.
#[test]
#[cfg(unix)]
fn trust_06_an_eventlog_that_cannot_grow_acknowledges_nothing_and_is_not_overtaken_by_its_state() {
    run_child("child_whose_eventlog_cannot_grow", &Home::new().dir);
}

#[test]
#[ignore = "a process of its own, started by another test"]
fn child_whose_eventlog_cannot_grow() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    for way in ["commit", "commit-pending", "add", "arrive", "confirm", "take-back"] {
        let mut home = Home::new();
        home.dir = Path::new(&dir).join(way);
        let mut replica = if way == "commit" || way == "add" { home.open() } else { home.follow() };
        // Many small transactions of the eventlog and as few as possible of the state, so the eventlog's WAL is longer.
        if way == "commit" || way == "add" {
            let large = format!("\"{}\"", "x".repeat(60_000));
            let large: Vec<_> = (10..20).map(|n| event(id(n), "Future", &large)).map(|e| (e, device("x"))).collect();
            assert!(stored(&replica.add(&large).unwrap()));
        } else {
            (10..40).for_each(|n| assert!(stored(&replica.commit(&[append(n, "x")]).unwrap())));
        }
        let size = |file: &str| fs::metadata(home.path(file)).unwrap().len();
        assert!(size("eventlog.db-wal") > size("state.db-wal") + 100_000, "{way}");
        let (before, digest) = (ids_of(&replica), replica.state_digest().unwrap());
        limit_files(Some(size("eventlog.db-wal")));
        let events = [like(1), like(2)];
        let result = match way {
            "add" => replica.add(&events.clone().map(|event| (event, device("x")))).map(drop),
            "arrive" => replica.arrive(&page(1, &events, false)),
            "confirm" => replica.arrive(&page(1, &outbox_of(&replica), false)),
            "take-back" => replica.take_back(Seq::START, Whose::Upstream(None)),
            _ => replica.commit(&events).map(drop),
        };
        assert!(matches!(result, Err(Fault::Sqlite { database: Database::Eventlog, .. })), "{way}: {result:?}");
        limit_files(None);
        let killed = home.scratch.path().join("killed");
        copy_dir(&home.dir, &killed);
        drop(replica);
        for dir in [home.dir.clone(), killed] {
            home.dir = dir;
            let mut replica = home.open();
            assert_eq!((ids_of(&replica), replica.state_digest().unwrap()), (before.clone(), digest), "{way}");
            assert!(stored(&replica.commit(&events).unwrap()), "{way}");
            home.check(&replica);
        }
    }
}

#[test]
#[ignore = "a process of its own, started by another test"]
fn child_whose_files_cannot_grow() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let bloat = |n: u64| event(id(n), "Bloated", r#"{"megabytes":6}"#);
    for way in ["commit", "commit pending", "add", "arrive"] {
        let mut home = Home::new();
        home.dir = Path::new(&dir).join(way.replace(' ', "-"));
        let mut replica = if way == "commit" || way == "add" { home.open() } else { home.follow() };
        replica.commit(&[like(1)]).unwrap();
        limit_files(Some(2 << 20));
        let result = match way {
            "add" => replica.add(&[(like(2), device("x")), (bloat(3), device("x"))]).map(drop),
            "arrive" => replica.arrive(&page(1, &[like(2), bloat(3)], false)),
            _ => replica.commit(&[like(2), bloat(3)]).map(drop),
        };
        assert!(matches!(result, Err(Fault::Sqlite { database: Database::State, .. })), "{way}: {result:?}");
        assert!(way != "arrive" || home.try_open().is_err());
        limit_files(None);
        drop(replica);
        let mut replica = home.try_open().unwrap();
        assert_eq!(likes(&replica), if way == "arrive" { 2 } else { 1 }, "{way}");
        if way != "arrive" {
            assert!(stored(&replica.commit(&[like(2), bloat(3)]).unwrap()));
        }
        let standing = replica.standing().unwrap();
        assert_eq!((likes(&replica), standing.skipped), (2, 0), "{way}");
        assert_eq!(
            replica.query(&likewise::engine::Query::<i64>::first("SELECT count(*) FROM bulk")).unwrap(),
            6 << 10
        );
        let ids: Vec<EventId> = ids_of(&replica);
        assert!([1, 2, 3].iter().all(|n| ids.contains(&id(*n))), "{way}");
    }
}
