//! What a disk changes behind our back is noticed before it is pushed, served or counted twice, and the rest is rescued.

use std::fs;

use likewise::engine::{
    Envelope, Fault, Files, Outcome, PageSize, Progress, Replica, Seq, Whose, backup, export, verify,
};
use likewise::sync::{AuthorityError, Incoming, Push, Start, WireEvent};
use rusqlite::Connection;

use crate::support::*;

/// A note that is long enough to find its text in the file.
fn note_of(n: u64) -> Envelope {
    append(n, &format!("the note with the number {n:06}"))
}

/// A closed device with events in its log, in its outbox and set aside.
fn device_with_pending() -> Home {
    let home = Home::new();
    let mut replica = home.follow();
    let theirs: Vec<_> = (1..=5).map(note_of).collect();
    replica.arrive(&page(1, &theirs, false)).unwrap();
    let ours: Vec<_> = (100..140).map(note_of).collect();
    assert!(stored(&replica.commit(&ours).unwrap()));
    replica.refuse(&[(id(103), "so".to_owned()), (id(107), "it says".to_owned())]).unwrap();
    replica.arrive(&page(6, &[note_of(100)], false)).unwrap();
    home.check(&replica);
    drop(replica);
    home
}

/// A closed hub with more events than opening looks at.
fn hub(events: u64) -> Home {
    let home = Home::new();
    let mut replica = home.open();
    let all: Vec<_> = (0..events).map(|n| (note_of(n), device("phone"))).collect();
    all.chunks(1_000).for_each(|some| assert!(stored(&replica.add(some).unwrap())));
    drop(replica);
    home
}

/// Changes a byte of `text` wherever it occurs in the eventlog's file.
fn flip_in(home: &Home, text: &[u8]) {
    let path = home.path("eventlog.db");
    let mut bytes = fs::read(&path).unwrap();
    let places: Vec<_> = (0..bytes.len() - text.len()).filter(|at| bytes[*at..].starts_with(text)).collect();
    assert!(!places.is_empty(), "it is in the file");
    places.iter().for_each(|at| bytes[at + text.len() - 1] ^= 1);
    fs::write(path, bytes).unwrap();
}

fn change(home: &Home, sql: &str) {
    let conn = Connection::open(home.path("eventlog.db")).unwrap();
    conn.execute_batch(sql).unwrap();
}

fn damage(home: &Home) -> String {
    match home.try_open() {
        Err(fault @ Fault::Damaged(_)) => fault.to_string(),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it opens"),
    }
}

fn problems(home: &Home) -> Vec<String> {
    let setup = setup(bank());
    verify(&home.files(), &setup).unwrap().problems
}

/// Looks at everything, as the background does.
fn check_all(replica: &mut Replica) -> Result<u32, Fault> {
    let mut portions = 1;
    while replica.check_some(128)? == Progress::More {
        portions += 1;
    }
    Ok(portions)
}

#[test]
fn trust_63_a_flipped_bit_in_what_waits_is_noticed_at_opening_and_by_verify() {
    for n in [101, 139, 103] {
        let home = device_with_pending();
        flip_in(&home, format!("the note with the number {n:06}").as_bytes());
        let words = damage(&home);
        assert!(words.contains(&id(n).to_string()), "{words}");
        let problems = problems(&home);
        assert!(problems.iter().any(|problem| problem.contains(&id(n).to_string())), "{problems:?}");
    }
}

#[test]
fn trust_63_what_is_missing_doubled_or_elsewhere_in_the_outbox_is_noticed() {
    let swap = "UPDATE outbox SET n = -1 WHERE n = 5; UPDATE outbox SET n = 5 WHERE n = 6; UPDATE outbox SET n = 6 WHERE n = -1;";
    let double =
        "INSERT INTO outbox (id, name, args, hash) SELECT randomblob(16), name, args, hash FROM outbox LIMIT 1;";
    for sql in [
        "DELETE FROM outbox WHERE n = 9",
        "DELETE FROM outbox",
        "DELETE FROM set_aside WHERE n = 1",
        "UPDATE set_aside SET why = 'because' WHERE n = 1",
        "UPDATE outbox SET n = 1000 WHERE n = 9",
        swap,
        double,
        "UPDATE outbox SET hash = 0 WHERE n = 9",
        "DELETE FROM meta WHERE key = 'digests'",
        "UPDATE name SET text = 'Appendee' WHERE text = 'Appended'",
    ] {
        let home = device_with_pending();
        change(&home, sql);
        damage(&home);
        assert_ne!(problems(&home), [""; 0], "{sql}");
    }
}

#[test]
fn trust_63_no_flipped_bit_anywhere_changes_what_is_pushed() {
    let home = device_with_pending();
    let sound = fs::read(home.path("eventlog.db")).unwrap();
    let replica = home.open();
    let (log, outbox, set_aside) = (log_of(&replica), outbox_of(&replica), set_aside_of(&replica));
    drop(replica);
    let (mut rng, mut noticed) = (Rng::new(17), 0);
    for _ in 0..400 {
        let mut bytes = sound.clone();
        let at = rng.below(bytes.len());
        bytes[at] ^= 1 << rng.below(8);
        fs::write(home.path("eventlog.db"), &bytes).unwrap();
        let pages = PageSize::events(1_000);
        let read = home.try_open().and_then(|replica| {
            Ok((replica.entries(Seq::START, pages)?, replica.pending(i64::MIN, pages)?, replica.all_set_aside()?))
        });
        match read {
            Ok((found, pending, aside)) => {
                assert!(found.iter().map(|entry| &entry.event).eq(log.iter().map(|entry| &entry.event)), "byte {at}");
                assert!(pending.iter().map(|(_, event)| event).eq(&outbox), "byte {at}");
                assert!(aside.iter().map(|(event, _)| event).eq(&set_aside), "byte {at}");
            }
            Err(_) => noticed += 1,
        }
        for file in ["eventlog.db-wal", "eventlog.db-shm"] {
            drop(fs::remove_file(home.path(file)));
        }
    }
    assert!(noticed > 30, "{noticed}");
}

#[test]
fn what_is_left_of_a_damaged_outbox_is_exported_and_the_damaged_event_never_taken_for_itself() {
    let home = device_with_pending();
    let before = {
        let replica = home.open();
        (ids_of(&replica).len(), set_aside_of(&replica).len())
    };
    flip_in(&home, b"the note with the number 000110");
    let mut lines = Vec::new();
    let fault = export(&home.files(), &mut lines).unwrap_err();
    assert!(matches!(fault, Fault::Damaged(_)), "{fault}");
    let lines = String::from_utf8(lines).unwrap();
    assert_eq!(lines.lines().count(), before.0 + before.1, "all of it is written out");
    let altered: Vec<_> = lines.lines().filter(|line| line.contains("the disk changed it")).collect();
    assert!(matches!(*altered, [line] if line.contains(&id(110).to_string())), "{altered:?}");
}

#[test]
fn trust_63_an_old_event_that_was_altered_is_noticed_before_it_is_served_and_in_the_background() {
    let home = hub(4_000);
    flip_in(&home, b"the note with the number 000957");
    // Opening looks only at the end, and what is sound is served.
    let mut replica = home.try_open().unwrap();
    let all = PageSize::events(500);
    assert_eq!(replica.entries(Seq(2_000), all).unwrap().len(), 500);
    assert_eq!(replica.entries(Seq(1_024), all).unwrap().len(), 500);
    for after in [0, 100, 900, 956, 1_023] {
        let fault = replica.entries(Seq(after), all).unwrap_err();
        assert!(fault.to_string().contains("of the events 1 to 1024 some are not"), "{fault}");
    }
    // A device that is right is not told that it is wrong.
    let log = replica.standing().unwrap().whose.log_id();
    let good = hub(970);
    let digest = good.open().digest_at(Seq(970)).unwrap();
    let fault = Start::vouch(Some(&replica), log, Seq(970), digest).unwrap_err();
    assert!(matches!(fault, AuthorityError::Fault(Fault::Damaged(_))), "{fault}");
    // Nor is it told that its event is somebody else's.
    let incoming = |n| {
        let push =
            Push { log, run: "run".to_owned(), events: vec![WireEvent::from(&note_of(n))], has: None, part: false };
        Incoming::check(push, "run", &device("phone")).unwrap()
    };
    let fault = incoming(957).store(Some(&mut replica)).unwrap_err();
    assert!(matches!(fault, AuthorityError::Fault(Fault::Damaged(_))), "{fault}");
    drop(replica);
    // The background finds it, too, without anybody asking.
    let mut replica = home.try_open().unwrap();
    let fault = check_all(&mut replica).unwrap_err();
    assert!(fault.to_string().contains("of the events 1 to 1024 some are not"), "{fault}");
    assert!(matches!(replica.commit(&[like(1)]), Err(Fault::Stopped)), "nothing is added to a damaged log");
}

#[test]
fn trust_63_an_id_that_the_index_has_lost_is_noticed_in_the_background() {
    for (table, text) in [("log", "sqlite_autoindex_log_1"), ("outbox", "sqlite_autoindex_outbox_1")] {
        let home = if table == "log" { hub(3_000) } else { device_with_pending() };
        check_all(&mut home.open()).unwrap();
        // The index has each id's bytes a second time. Those in the table stay.
        let path = home.path("eventlog.db");
        let wanted = if table == "log" { id(700) } else { id(120) };
        let root: usize = {
            let conn = Connection::open(&path).unwrap();
            let sql = "SELECT count(*) FROM sqlite_schema WHERE name = ?1";
            conn.query_row(sql, [text], |row| row.get(0)).unwrap()
        };
        assert_eq!(root, 1);
        let mut bytes = fs::read(&path).unwrap();
        let needle = wanted.as_bytes();
        let places: Vec<_> = (0..bytes.len() - 16).filter(|at| bytes[*at..*at + 16] == needle[..]).collect();
        // In a leaf of the index, the row's number follows the id. In a row of the table, the number of its name does.
        let in_index = |at: &&usize| bytes[(**at / 4_096) * 4_096 + usize::from(**at < 4_096) * 100] == 0x0a;
        let at = *places.iter().find(in_index).expect("the index has it");
        bytes[at + 15] ^= 1;
        fs::write(&path, bytes).unwrap();
        let mut replica = home.try_open().unwrap();
        let fault = check_all(&mut replica).unwrap_err();
        assert!(fault.to_string().contains("could be counted a second time"), "{table}: {fault}");
    }
}

#[test]
fn the_background_looks_at_everything_once_and_goes_on_beside_changes() {
    let home = hub(3_000);
    let mut replica = home.open();
    assert_eq!(check_all(&mut replica).unwrap(), 3_000_u32.div_ceil(128) + 1);
    assert_eq!(check_all(&mut replica).unwrap(), 1);
    drop(replica);
    // Events are added, taken back and placed again in the middle of it.
    for (portions, after) in [(0, 10), (3, 10), (3, 2_000), (12, 1_024), (20, 2_999), (30, 5)] {
        let mut replica = home.open();
        for _ in 0..portions {
            replica.check_some(128).unwrap();
        }
        replica.commit(&[like(9_000 + portions)]).unwrap();
        replica.take_back(Seq(after), Whose::Upstream(None)).unwrap();
        replica.check_some(128).unwrap();
        replica.promote().unwrap();
        check_all(&mut replica).unwrap();
        assert_eq!(
            replica.entries(Seq::START, PageSize::events(10_000)).unwrap().len() as u64,
            replica.standing().unwrap().length
        );
        assert_eq!(replica.add(&[(note_of(3), device("phone"))]).unwrap(), [Outcome::Known(Some(Seq(4)))]);
    }
    check_all(&mut home.open()).unwrap();
    assert_eq!(problems(&home), [""; 0]);
}

#[test]
fn events_that_are_taken_back_are_those_that_were_stored() {
    let home = hub(3_000);
    flip_in(&home, b"the note with the number 001500");
    let mut replica = home.try_open().unwrap();
    let fault = replica.take_back(Seq(1_100), Whose::Upstream(None)).unwrap_err();
    assert!(matches!(fault, Fault::Damaged(_)), "{fault}");
    drop(replica);
    let mut replica = home.try_open().unwrap();
    assert_eq!(replica.standing().unwrap().pending, 0, "nothing was changed");
    replica.take_back(Seq(2_500), Whose::Upstream(None)).unwrap();
}

#[test]
fn a_damaged_store_is_not_backed_up() {
    let home = hub(3_000);
    flip_in(&home, b"the note with the number 000700");
    let to = Files::in_dir(home.scratch.path().join("backup"));
    let fault = backup(&home.files(), &to).unwrap_err();
    assert!(fault.to_string().contains("of the events 1 to 1024 some are not"), "{fault}");
    assert!(!to.dir().exists());
}
