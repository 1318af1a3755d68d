//! What one replica promises when only the order of things goes wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use likewise::engine::{
    Batch, DbError, Digest, Envelope, Files, LogId, Outcome, Page, Query, Replica, SETTLE_EVERY, Schema, Seq, Whose,
    committed_state,
};
use rusqlite::Connection;

use crate::support::*;

fn add(replica: &mut Replica, events: &[Envelope]) -> Vec<Outcome> {
    let events: Vec<_> = events.iter().map(|event| (event.clone(), device("elsewhere"))).collect();
    replica.add(&events).unwrap()
}

#[test]
fn an_event_counts_once_within_a_batch_and_across_batches_and_openings() {
    for follows in [false, true] {
        let mut home = Home::new();
        let mut replica = if follows { home.follow() } else { home.open() };
        let outcomes = replica.commit(&[like(1), like(2), like(1)]).unwrap();
        let place = |seq| if follows { None } else { Some(Seq(seq)) };
        assert_eq!(outcomes, [Outcome::Stored(place(1)), Outcome::Stored(place(2)), Outcome::Known(place(1))]);
        assert_eq!(replica.commit(&[like(2), like(3)]).unwrap()[0], Outcome::Known(place(2)));
        let mut replica = home.crash_and_open(replica);
        assert_eq!(replica.commit(&[like(3), like(1)]).unwrap(), [Outcome::Known(place(3)), Outcome::Known(place(1))]);
        drop(replica);
        let mut replica = home.open();
        assert_eq!(replica.commit(&[like(3)]).unwrap(), [Outcome::Known(place(3))]);
        assert_eq!(add(&mut replica, &[like(2)]), [Outcome::Known(place(2))]);
        assert_eq!(likes(&replica), 3);
        home.check(&replica);
    }
}

#[test]
fn the_same_id_with_other_content_is_a_conflict_and_the_first_stays() {
    for follows in [false, true] {
        let mut home = Home::new();
        let mut replica = if follows { home.follow() } else { home.open() };
        let outcomes = replica.commit(&[append(1, "a"), append(1, "b"), like(1)]).unwrap();
        assert!(stored(&outcomes[..1]));
        assert_eq!(outcomes[1..], [Outcome::Conflict, Outcome::Conflict]);
        let mut replica = home.crash_and_open(replica);
        assert_eq!(replica.commit(&[append(1, "c")]).unwrap(), [Outcome::Conflict]);
        assert_eq!(add(&mut replica, &[like(1)]), [Outcome::Conflict]);
        assert_eq!(note(&replica), "a");
        home.check(&replica);
    }
}

#[test]
fn empty_payloads_of_every_spelling_are_the_same_event() {
    let home = Home::new();
    let mut replica = home.open();
    assert!(stored(&replica.commit(&[event(id(1), "Liked", "{}")]).unwrap()));
    for args in ["", "null", "{}"] {
        assert_eq!(replica.commit(&[event(id(1), "Liked", args)]).unwrap(), [Outcome::Known(Some(Seq(1)))]);
    }
    assert_eq!(replica.commit(&[event(id(1), "Liked", "{ }")]).unwrap(), [Outcome::Conflict]);
}

/// How many transactions a WAL holds: a frame that says how large the database is afterwards ends one.
fn transactions(home: &Home, file: &str) -> usize {
    let wal = std::fs::read(home.path(file)).unwrap();
    if wal.is_empty() {
        return 0;
    }
    let number = |at: usize| u32::from_be_bytes(wal[at..at + 4].try_into().unwrap());
    let frame = 24 + number(8) as usize;
    (32..=wal.len() - frame).step_by(frame).filter(|at| number(at + 4) > 0).count()
}

#[test]
fn a_batch_is_one_transaction_of_the_eventlog_and_one_of_the_state_with_its_cursor() {
    for follows in [false, true] {
        let home = Home::new();
        let mut replica = if follows { home.follow() } else { home.open() };
        replica.commit(&[like(1)]).unwrap();
        let count = || (transactions(&home, "eventlog.db-wal"), transactions(&home, "state.db-wal"));
        let (log, state) = count();
        let bad = event(id(3), "Panicked", "");
        replica.commit(&[like(2), bad, like(4), like(2)]).unwrap();
        assert_eq!(count(), (log + 1, state + usize::from(!follows)));
        // A commit that changes nothing costs no fsync.
        replica.commit(&[like(2)]).unwrap();
        assert_eq!(count().0, log + 1);
        if follows {
            replica.arrive(&page(1, &[like(1), like(2), like(4), like(9)], false)).unwrap();
            assert_eq!(count(), (log + 2, state + 1));
        }
    }
}

/// Each event fails in its own way, after it has written something or ended the transaction.
fn failing(n: u64) -> Vec<Envelope> {
    let next = |more: u64| id(n + more);
    vec![
        event(next(0), "Withdrawn", r#"{"from":"ann","amount":5}"#),
        event(next(1), "Claimed", r#"{"name":"taken","by":"bob"}"#),
        event(next(2), "Guarded", r#"{"by":21}"#),
        event(next(3), "Panicked", ""),
        event(next(4), "Deposited", r#"{"to":7}"#),
        event(next(5), "ClockRead", ""),
        event(next(6), "Committed", ""),
        event(next(7), "Reckless", r#"{"name":"taken"}"#),
        event(next(8), "Transferred", r#"{"from":"ann","to":"bob","amount":5}"#),
        event(
            next(9),
            "likewise.batch",
            r#"[{"name":"Liked"},{"name":"Claimed","args":{"name":"taken","by":"x"}},{"name":"Liked"}]"#,
        ),
        event(next(10), "likewise.batch", "[]"),
        event(next(11), "likewise.batch", r#"{"name":"Liked"}"#),
    ]
}

fn ground() -> Vec<Envelope> {
    vec![
        event(id(1), "Deposited", r#"{"to":"ann","amount":1}"#),
        event(id(2), "Claimed", r#"{"name":"taken","by":"ann"}"#),
        append(3, "g"),
    ]
}

#[test]
fn a_failing_event_costs_only_itself_its_place_in_a_commit() {
    for follows in [false, true] {
        for bad in failing(10) {
            let mut home = Home::new();
            let mut replica = if follows { home.follow() } else { home.open() };
            assert!(stored(&replica.commit(&ground()).unwrap()));
            let outcomes = replica.commit(&[append(30, "x"), bad.clone(), append(31, "y"), bad.clone()]).unwrap();
            assert!(stored(&[outcomes[0].clone(), outcomes[2].clone()]), "{bad:?}: {outcomes:?}");
            for outcome in [&outcomes[1], &outcomes[3]] {
                assert!(matches!(outcome, Outcome::Refused(why) if !why.is_empty()), "{bad:?}: {outcome:?}");
            }
            assert_eq!(note(&replica), "gxy");
            assert!(!ids_of(&replica).contains(&bad.id));
            home.check(&replica);
            let replica = home.crash_and_open(replica);
            assert_eq!(note(&replica), "gxy");
        }
    }
}

#[test]
fn failing_events_one_after_another_in_a_commit_are_each_refused() {
    for follows in [false, true] {
        let mut home = Home::new();
        let mut replica = if follows { home.follow() } else { home.open() };
        replica.commit(&ground()).unwrap();
        let mut events = vec![append(30, "x")];
        for bad in failing(10) {
            events.extend([bad.clone(), append(40 + events.len() as u64, "y")]);
        }
        let outcomes = replica.commit(&events).unwrap();
        let refused = outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Refused(_))).count();
        assert_eq!(refused, failing(10).len());
        home.check(&replica);
        home.crash_and_open(replica);
    }
}

#[test]
fn trust_29_failing_events_of_others_are_stored_and_skipped_and_the_rest_flows() {
    let mut home = Home::new();
    let mut replica = home.open();
    let mut events = ground();
    for (place, bad) in failing(10).into_iter().enumerate() {
        events.extend([bad, append(30 + place as u64, "x")]);
    }
    assert!(stored(&add(&mut replica, &events)));
    home.check(&replica);
    let standing = replica.standing().unwrap();
    assert_eq!((standing.length, standing.skipped), (events.len() as u64, failing(10).len() as u64));
    for bad in failing(10) {
        assert!(replica.why_skipped(bad.id).unwrap().is_some_and(|why| !why.is_empty()), "{bad:?}");
    }
    let digest = replica.state_digest().unwrap();
    let replica = home.crash_and_open(replica);
    assert_eq!(replica.state_digest().unwrap(), digest);

    // One by one, together, or arriving at a follower: the result is the same.
    let one_by_one = Home::new();
    let mut other = one_by_one.open();
    events.iter().for_each(|event| assert!(stored(&add(&mut other, std::slice::from_ref(event)))));
    assert_eq!(other.state_digest().unwrap(), digest);
    let following = Home::new();
    let mut other = following.follow();
    other.commit(&[like(90)]).unwrap();
    let mut arriving = events.clone();
    arriving.push(like(90));
    other.arrive(&page(1, &arriving[..7], true)).unwrap();
    other.arrive(&page(8, &arriving[7..], false)).unwrap();
    following.check(&other);
    assert_eq!(log_of(&other).len(), arriving.len());
    assert_eq!(other.standing().unwrap().skipped, failing(10).len() as u64);
}

#[test]
fn a_batch_is_applied_wholly_or_not_at_all() {
    let home = Home::new();
    let mut replica = home.open();
    let deposit = Deposited { to: "ann".to_owned(), amount: 3 };
    let pay = |amount| Transferred { from: "ann".to_owned(), to: "bob".to_owned(), amount };
    let good = Batch::new().with(&deposit).unwrap().with(&pay(2)).unwrap().with(&Liked {}).unwrap();
    let bad = Batch::new().with(&Liked {}).unwrap().with(&pay(1)).unwrap().with(&pay(1)).unwrap();
    let (good, bad) = (good.seal(id(1)).unwrap(), bad.seal(id(2)).unwrap());
    assert_eq!(replica.commit(std::slice::from_ref(&good)).unwrap(), [Outcome::Stored(Some(Seq(1)))]);
    assert!(matches!(replica.commit(std::slice::from_ref(&bad)).unwrap()[..], [Outcome::Refused(_)]));
    home.check(&replica);
    assert!(stored(&add(&mut replica, std::slice::from_ref(&bad))));
    home.check(&replica);
    assert_eq!(likes(&replica), 1);
    assert_eq!(replica.commit(&[good]).unwrap(), [Outcome::Known(Some(Seq(1)))]);
    assert!(Batch::new().seal(id(3)).is_err());
}

#[test]
fn trust_28_unknown_events_are_kept_and_applied_after_the_upgrade() {
    let mut home = Home::new();
    let mut replica = home.open();
    let future = |n| event(id(n), "Future", "");
    let batch = event(id(5), "likewise.batch", r#"[{"name":"Liked"},{"name":"Future"}]"#);
    assert!(matches!(&replica.commit(&[future(1)]).unwrap()[..], [Outcome::Refused(why)] if why.contains("Future")));
    assert!(stored(&add(&mut replica, &[like(2), future(3), like(4), batch])));
    home.check(&replica);
    assert_eq!((replica.standing().unwrap().unknown, likes(&replica)), (2, 2));
    home.crash(replica);

    let mut later = setup(later_bank());
    later.executable = "two".to_owned();
    let replica = home.try_open_as(later.clone()).unwrap();
    assert_eq!((replica.standing().unwrap().unknown, likes(&replica)), (0, 2 + 10 + 11));
    assert_eq!(log_of(&replica)[1].event, future(3));
    drop(replica);

    // The schema alone tells too, and so does going back.
    let mut same_executable = setup(bank());
    same_executable.executable = "two".to_owned();
    let replica = home.try_open_as(same_executable).unwrap();
    assert_eq!((replica.standing().unwrap().unknown, likes(&replica)), (2, 2));
}

#[test]
fn payloads_come_back_byte_for_byte() {
    let home = Home::new();
    let mut replica = home.follow();
    let odd = [
        r#"{ "to" : "ann", "amount" : 1 }"#,
        r#"{"amount":2,"to":"bob","amount2":12345678901234567890123}"#,
        r#"{"to":"🦀\r\u0000","amount":3}"#,
    ];
    let events: Vec<_> = odd.iter().zip(1..).map(|(args, n)| event(id(n), "Deposited", args)).collect();
    assert!(stored(&replica.commit(&events).unwrap()));
    assert_eq!(outbox_of(&replica), events);
    replica.arrive(&page(1, &events, false)).unwrap();
    assert_eq!(log_of(&replica).into_iter().map(|entry| entry.event).collect::<Vec<_>>(), events);
    assert_eq!(replica.standing().unwrap().set_aside, 0);
}

#[test]
fn trust_54_a_pure_confirm_then_others_events_then_a_crash_is_the_replay() {
    let mut home = Home::new();
    let mut replica = home.follow();
    let ours: Vec<_> = (1..=6).map(|n| append(n, &n.to_string())).collect();
    replica.commit(&ours).unwrap();
    replica.arrive(&page(1, &ours[..2], false)).unwrap();
    home.check(&replica);
    assert_eq!(replica.standing().unwrap().cursor, Seq::START, "nothing is settled yet");
    let mut replica = home.crash_and_open(replica);
    replica.arrive(&page(3, &ours[2..4], false)).unwrap();
    home.check(&replica);
    replica.arrive(&page(5, &[append(9, "z")], false)).unwrap();
    home.check(&replica);
    assert_eq!(note(&replica), "1234z56");
    let mut replica = home.crash_and_open(replica);
    assert_eq!(note(&replica), "1234z56");
    replica.arrive(&page(6, &ours[4..], false)).unwrap();
    let standing = replica.standing().unwrap();
    assert_eq!((standing.pending, standing.cursor), (0, Seq(7)), "an empty outbox settles at once");
    home.check(&replica);
    assert_eq!(note(&replica), "1234z56");
}

#[test]
fn own_events_that_arrive_in_another_order_are_replayed_in_that_order() {
    for (order, text) in [([1, 2, 3], "123"), ([2, 1, 3], "213"), ([3, 2, 1], "321"), ([1, 3, 2], "132")] {
        let home = Home::new();
        let mut replica = home.follow();
        let ours: Vec<_> = (1..=3).map(|n| append(n, &n.to_string())).collect();
        replica.commit(&ours).unwrap();
        let theirs: Vec<_> = order.iter().map(|n| ours[n - 1].clone()).collect();
        for (place, event) in theirs.iter().enumerate() {
            replica.arrive(&page(place as u64 + 1, std::slice::from_ref(event), false)).unwrap();
            home.check(&replica);
        }
        assert_eq!(note(&replica), text);
    }
}

#[test]
fn a_page_that_begins_as_ours_and_ends_as_anothers_is_no_shortcut() {
    let home = Home::new();
    let mut replica = home.follow();
    replica.commit(&[append(1, "a"), append(2, "b")]).unwrap();
    replica.arrive(&page(1, &[append(1, "a"), append(8, "x"), append(2, "b")], false)).unwrap();
    home.check(&replica);
    assert_eq!(note(&replica), "axb");
    assert_eq!(replica.standing().unwrap().pending, 0);
}

#[test]
fn pages_that_repeat_and_events_that_repeat_change_nothing() {
    let home = Home::new();
    let mut replica = home.follow();
    replica.commit(&[append(1, "a")]).unwrap();
    let first = page(1, &[append(7, "x"), append(1, "a")], false);
    for _ in 0..3 {
        replica.arrive(&first).unwrap();
        home.check(&replica);
    }
    // A plain log may hold one event at two places; the first counts.
    replica.arrive(&page(3, &[append(7, "x"), append(8, "y"), append(8, "y"), append(7, "other")], false)).unwrap();
    home.check(&replica);
    assert_eq!(note(&replica), "xay");
    assert_eq!(log_of(&replica).iter().map(|entry| entry.seq.0).collect::<Vec<_>>(), [1, 2, 4]);
    replica.arrive(&Page { entries: Vec::new(), next: Seq(40), more: false }).unwrap();
    home.check(&replica);
}

#[test]
fn trust_17_ours_is_set_aside_and_without_effect_when_another_event_has_its_id() {
    let mut home = Home::new();
    let mut replica = home.follow();
    replica.commit(&[append(1, "a"), append(2, "ours"), append(3, "c")]).unwrap();
    replica.arrive(&page(1, &[append(1, "a"), append(2, "theirs")], false)).unwrap();
    home.check(&replica);
    assert_eq!(note(&replica), "atheirsc");
    assert_eq!(set_aside_of(&replica), [append(2, "ours")]);
    let mut replica = home.crash_and_open(replica);
    assert_eq!(set_aside_of(&replica), [append(2, "ours")]);
    assert_eq!(replica.commit(&[append(2, "ours")]).unwrap(), [Outcome::Conflict]);
    replica.arrive(&page(3, &[append(3, "c")], false)).unwrap();
    home.check(&replica);
}

#[test]
fn ids_decide_nothing_without_the_content() {
    // The next pending event has the id that arrives, and another payload: no shortcut.
    let home = Home::new();
    let mut replica = home.follow();
    replica.commit(&[append(1, "ours")]).unwrap();
    replica.arrive(&page(1, &[append(1, "theirs")], false)).unwrap();
    home.check(&replica);
    assert_eq!(note(&replica), "theirs");
    // Another name and the same payload.
    replica.commit(&[event(id(2), "Panicked", ""), like(3)]).unwrap();
    replica.arrive(&page(2, &[event(id(3), "JournalEmptied", "")], false)).unwrap();
    home.check(&replica);
    assert_eq!(likes(&replica), 0);
    assert_eq!(set_aside_of(&replica), [append(1, "ours"), like(3)]);
}

#[test]
fn three_contents_under_one_id_are_all_kept() {
    let mut home = Home::new();
    let mut replica = home.follow();
    replica.commit(&[append(1, "ours")]).unwrap();
    replica.arrive(&page(1, &[append(1, "theirs")], false)).unwrap();
    // The upstream comes back from a backup without it, and somebody else takes the id.
    replica.take_back(Seq::START, Whose::Upstream(None)).unwrap();
    home.check(&replica);
    replica.arrive(&page(1, &[append(1, "third")], false)).unwrap();
    home.check(&replica);
    assert_eq!(set_aside_of(&replica), [append(1, "ours"), append(1, "theirs")]);
    // Or ours comes first now.
    replica.take_back(Seq::START, Whose::Upstream(None)).unwrap();
    replica.arrive(&page(1, &[append(1, "ours")], false)).unwrap();
    home.check(&replica);
    assert_eq!(set_aside_of(&replica), [append(1, "theirs"), append(1, "third")]);
    let replica = home.crash_and_open(replica);
    assert_eq!(set_aside_of(&replica), [append(1, "theirs"), append(1, "third")]);
}

#[test]
fn an_event_set_aside_leaves_when_it_arrives_after_all() {
    let home = Home::new();
    let mut replica = home.follow();
    replica.commit(&[append(1, "ours")]).unwrap();
    replica.arrive(&page(1, &[append(1, "theirs")], false)).unwrap();
    replica.take_back(Seq::START, Whose::Upstream(None)).unwrap();
    assert_eq!(outbox_of(&replica), [append(1, "theirs")]);
    replica.arrive(&page(1, &[append(1, "ours")], false)).unwrap();
    home.check(&replica);
    assert_eq!(note(&replica), "ours");
    assert_eq!(set_aside_of(&replica), [append(1, "theirs")]);
}

#[test]
fn trust_53_events_taken_back_stand_before_newer_pending_ones_in_log_order() {
    let mut home = Home::new();
    let mut replica = home.follow();
    replica.arrive(&page(1, &[append(1, "1"), append(2, "2"), append(3, "3"), append(4, "4")], false)).unwrap();
    replica.commit(&[append(5, "5"), append(6, "6")]).unwrap();
    let generation = replica.standing().unwrap().generation;
    replica.take_back(Seq(2), Whose::Upstream(None)).unwrap();
    home.check(&replica);
    assert!(replica.standing().unwrap().generation > generation);
    assert_eq!(outbox_of(&replica), [append(3, "3"), append(4, "4"), append(5, "5"), append(6, "6")]);
    replica.commit(&[append(7, "7")]).unwrap();
    // Once more: what is taken back now comes before what was taken back earlier.
    replica.take_back(Seq::START, Whose::Upstream(None)).unwrap();
    home.check(&replica);
    assert_eq!(note(&replica), "1234567");
    let mut replica = home.crash_and_open(replica);
    let all: Vec<_> = (1..=7).map(|n| append(n, &n.to_string())).collect();
    assert_eq!(outbox_of(&replica), all);
    replica.arrive(&page(10, &all, false)).unwrap();
    home.check(&replica);
    assert_eq!(note(&replica), "1234567");
}

#[test]
fn a_log_that_was_taken_back_takes_the_authoritys_order() {
    let mut home = Home::new();
    let mut replica = home.open();
    replica.commit(&[append(1, "1"), append(2, "2")]).unwrap();
    replica.take_back(Seq::START, Whose::Upstream(None)).unwrap();
    home.check(&replica);
    assert_eq!(log_of(&replica), []);
    replica.arrive(&page(1, &[append(2, "2"), append(9, "x")], false)).unwrap();
    home.check(&replica);
    assert_eq!(note(&replica), "2x1");
    home.crash_and_open(replica);
}

#[test]
fn a_replica_that_becomes_the_authority_gives_its_pending_events_their_places() {
    let mut home = Home::new();
    let mut replica = home.follow();
    replica.arrive(&page(3, &[append(1, "1"), append(2, "2")], false)).unwrap();
    replica.commit(&[append(3, "3"), append(4, "4")]).unwrap();
    let log = LogId::random();
    let head = replica.standing().unwrap().head;
    replica.take_back(head, Whose::Own(log)).unwrap();
    home.check(&replica);
    assert_eq!(replica.commit(&[append(3, "3"), append(5, "5")]).unwrap()[0], Outcome::Known(Some(Seq(5))));
    home.check(&replica);
    assert_eq!(note(&replica), "12345");
    assert_eq!(log_of(&replica)[2].origin, device("here"));
    let replica = home.crash_and_open(replica);
    assert_eq!(note(&replica), "12345");
    assert_eq!(replica.standing().unwrap().whose, Whose::Own(log));
}

#[test]
fn the_digest_at_a_seq_covers_what_stands_up_to_there_gaps_or_not() {
    let home = Home::new();
    let mut replica = home.follow();
    let events: Vec<_> = (0..3_000).map(like).collect();
    let mut digests = vec![(Seq::START, Digest::EMPTY)];
    for (place, event) in events.iter().enumerate() {
        let seq = Seq(5 + 7 * place as u64);
        let (_, before) = digests[place];
        digests.push((seq, before.extended(event.id.as_bytes(), "Liked", None, "elsewhere")));
    }
    for chunk in events.chunks(700).zip(0..) {
        let (events, nth) = chunk;
        let mut page = page(0, events, false);
        for (entry, place) in page.entries.iter_mut().zip(700 * nth..) {
            entry.seq = Seq(5 + 7 * place);
        }
        page.next = page.entries.last().unwrap().seq;
        replica.arrive(&page).unwrap();
    }
    let check = |replica: &Replica| {
        for (place, (seq, digest)) in digests.iter().enumerate().filter(|(place, _)| place % 97 == 0 || *place > 2_998)
        {
            assert_eq!(replica.digest_at(*seq).unwrap(), *digest, "{seq}");
            let between = if place == 0 { 4 } else { 6 };
            assert_eq!(replica.digest_at(Seq(seq.0 + between)).unwrap(), *digest, "after {seq}");
        }
    };
    check(&replica);
    drop(replica);
    let mut replica = home.try_open().unwrap();
    check(&replica);
    // The same after the end was taken back.
    let (middle, digest) = digests[2_000];
    replica.take_back(Seq(middle.0 + 3), Whose::Upstream(None)).unwrap();
    assert_eq!(replica.digest_at(Seq(u64::MAX >> 1)).unwrap(), digest);
    assert_eq!(replica.standing().unwrap().head, middle);
    drop(replica);
    let mut replica = home.try_open().unwrap();
    assert_eq!(replica.digest_at(middle).unwrap(), digest);
    // Other events have those places now.
    let others: Vec<_> = (5_000..5_200).map(like).collect();
    replica.arrive(&page(middle.0 + 1, &others, false)).unwrap();
    let extended = |digest: Digest, event: &Envelope| digest.extended(event.id.as_bytes(), "Liked", None, "elsewhere");
    assert_eq!(replica.digest_at(Seq(middle.0 + 150)).unwrap(), others[..150].iter().fold(digest, extended));
    drop(replica);
    let replica = home.try_open().unwrap();
    assert_eq!(replica.digest_at(Seq(middle.0 + 200)).unwrap(), others.iter().fold(digest, extended));
}

#[test]
fn the_digest_of_a_state_is_of_its_content_and_not_of_its_pages() {
    let home = Home::new();
    let mut replica = home.open();
    let mut rng = Rng::new(7);
    let events: Vec<_> = (0..200).map(|_| (random_event(&mut rng), device("elsewhere"))).collect();
    replica.add(&events).unwrap();
    let digest = replica.state_digest().unwrap();
    assert_eq!(committed_state(&home.files()).unwrap().1, digest);
    let (_other, replayed) = replay(bank(), &log_of(&replica));
    assert_eq!(replayed.state_digest().unwrap(), digest);
    drop(replica);
    let conn = rusqlite::Connection::open(home.path("state.db")).unwrap();
    conn.execute_batch("PRAGMA journal_mode = DELETE; PRAGMA page_size = 1024; VACUUM; PRAGMA journal_mode = WAL")
        .unwrap();
    drop(conn);
    let replica = home.open();
    assert_eq!(replica.state_digest().unwrap(), digest);
}

#[test]
fn a_settled_replica_has_its_log_on_disk_and_the_outbox_above_it() {
    let home = Home::new();
    let mut replica = home.follow();
    replica.commit(&[append(1, "a")]).unwrap();
    replica.arrive(&page(1, &[append(2, "x"), append(3, "y")], true)).unwrap();
    check_files(&replica, &home.dir);
    assert_eq!(note(&replica), "a", "between the pages of a pull, queries see what they saw");
    // Somebody clicks in the meantime.
    assert!(stored(&replica.commit(&[append(4, "b")]).unwrap()));
    check_files(&replica, &home.dir);
    assert_eq!(note(&replica), "ab");
    replica.arrive(&page(3, &[append(1, "a")], true)).unwrap();
    check_files(&replica, &home.dir);
    // The stream dies, so the announced page never comes.
    replica.settle().unwrap();
    home.check(&replica);
    assert_eq!(note(&replica), "xyab");
    assert_eq!(replica.standing().unwrap().cursor, Seq(3));
}

#[test]
fn a_last_page_without_events_lets_queries_see_those_before_it() {
    let home = Home::new();
    let mut replica = home.follow();
    replica.commit(&[append(1, "a")]).unwrap();
    replica.arrive(&page(1, &[append(2, "x")], true)).unwrap();
    assert_eq!(note(&replica), "a");
    for page in [Page { entries: Vec::new(), next: Seq(9), more: true }, page(1, &[append(2, "x")], true)] {
        replica.arrive(&page).unwrap();
        assert_eq!(note(&replica), "a");
    }
    replica.arrive(&Page { entries: Vec::new(), next: Seq(9), more: false }).unwrap();
    home.check(&replica);
    assert_eq!(note(&replica), "xa");
}

#[test]
fn an_event_that_ends_the_transaction_between_two_pages_leaves_log_and_outbox_in_the_state() {
    let mut home = Home::new();
    let mut replica = home.follow();
    replica.commit(&ground()).unwrap();
    replica.arrive(&page(1, &[append(20, "x")], true)).unwrap();
    let taken = event(id(5), "Claimed", r#"{"name":"taken","by":"bob"}"#);
    assert!(matches!(replica.commit(&[taken]).unwrap()[..], [Outcome::Refused(_)]));
    home.check(&replica);
    replica.arrive(&page(2, &ground()[..1], false)).unwrap();
    home.check(&replica);
    replica.arrive(&page(3, &ground()[1..], false)).unwrap();
    home.check(&replica);
    assert_eq!(note(&replica), "xg");
    home.crash_and_open(replica);
}

#[test]
fn trust_49_events_that_end_the_transaction_never_let_pending_ones_reach_the_disk() {
    let mut home = Home::new();
    let mut replica = home.follow();
    let guard = |n, by: i64| event(id(n), "Guarded", &format!("{{\"by\":{by}}}"));
    let claim = |n, by: &str| event(id(n), "Claimed", &format!("{{\"name\":\"k\",\"by\":\"{by}\"}}"));
    // Both are fine here. After what arrives, neither is.
    replica.commit(&[append(1, "a"), claim(2, "ours"), append(3, "b"), guard(4, 15), append(5, "c")]).unwrap();
    home.check(&replica);
    let theirs = [claim(20, "theirs"), claim(21, "late"), guard(22, 10), guard(23, 30), append(24, "x")];
    for (place, event) in theirs.iter().enumerate() {
        replica.arrive(&page(place as u64 + 1, std::slice::from_ref(event), false)).unwrap();
        home.check(&replica);
    }
    assert_eq!(note(&replica), "xabc");
    assert_eq!(replica.standing().unwrap().skipped, 4);
    assert!(matches!(replica.commit(&[claim(6, "again"), append(7, "d")]).unwrap()[0], Outcome::Refused(_)));
    home.check(&replica);
    let mut replica = home.crash_and_open(replica);
    // Our events arrive unchanged, and are skipped as on every other replica.
    let mut ours = outbox_of(&replica);
    replica.arrive(&page(6, &ours[..3], false)).unwrap();
    home.check(&replica);
    replica.arrive(&page(9, &ours.split_off(3), false)).unwrap();
    home.check(&replica);
    let (_other, replayed) = replay(bank(), &log_of(&replica));
    assert_eq!(replica.state_digest().unwrap(), replayed.state_digest().unwrap());
}

#[test]
fn a_push_of_events_that_all_end_the_transaction_takes_seconds() {
    let home = Home::new();
    let mut replica = home.open();
    let guard = |n| event(id(n), "Guarded", r#"{"by":30}"#);
    let events: Vec<_> = (0..500).flat_map(|n| [guard(2 * n), append(2 * n + 1, "x")]).collect();
    assert!(stored(&add(&mut replica, &events)));
    assert_eq!(replica.standing().unwrap().skipped, 500);
    assert_eq!(note(&replica).len(), 500);
}

#[test]
fn pure_confirms_settle_after_a_while_although_something_is_always_pending() {
    let home = Home::new();
    let mut replica = home.follow();
    let ours: Vec<_> = (0..SETTLE_EVERY + 2_000).map(like).collect();
    ours.chunks(1_000).for_each(|chunk| assert!(stored(&replica.commit(chunk).unwrap())));
    for (chunk, nth) in ours.chunks(1_000).zip(0..).take(11) {
        replica.arrive(&page(nth * 1_000 + 1, chunk, true)).unwrap();
    }
    let standing = replica.standing().unwrap();
    assert_eq!((standing.pending, standing.cursor), (1_000, Seq(SETTLE_EVERY)));
    assert_eq!(likes(&replica), 12_000);
}

#[test]
fn the_more_is_pending_the_more_is_settled_at_once() {
    let home = Home::new();
    let mut replica = home.follow();
    let ours: Vec<_> = (0..2 * SETTLE_EVERY + 6_000).map(like).collect();
    ours.chunks(1_000).for_each(|chunk| assert!(stored(&replica.commit(chunk).unwrap())));
    let mut cursors = Vec::new();
    for (chunk, nth) in ours.chunks(1_000).zip(0..) {
        replica.arrive(&page(nth * 1_000 + 1, chunk, true)).unwrap();
        cursors.push(replica.standing().unwrap().cursor.0);
    }
    cursors.dedup();
    assert_eq!(cursors, [0, 13_000, 23_000, 26_000]);
    home.check(&replica);
}

#[test]
fn trust_57_many_pending_and_many_arriving_take_seconds() {
    let home = Home::new();
    let mut replica = home.follow();
    // The state's cursor is between two of the log's checkpoints.
    let early: Vec<_> = (100_000..100_300).map(like).collect();
    replica.arrive(&page(1, &early, false)).unwrap();
    let many = 20_000;
    let ours: Vec<_> = (0..many).map(like).collect();
    ours.chunks(1_024).for_each(|chunk| assert!(stored(&replica.commit(chunk).unwrap())));
    let theirs: Vec<_> = (many..2 * many).map(like).collect();
    let all: Vec<_> = theirs.into_iter().zip(ours).flat_map(|(a, b)| [a, b]).collect();
    let pages = all.chunks(500);
    let last = pages.len() - 1;
    for (nth, events) in pages.enumerate() {
        replica.arrive(&page(nth as u64 * 500 + 301, events, nth < last)).unwrap();
    }
    let standing = replica.standing().unwrap();
    assert_eq!((standing.length, standing.pending, standing.cursor), (2 * many + 300, 0, Seq(2 * many + 300)));
    assert_eq!(likes(&replica), 2 * many as i64 + 300);
}

/// Leaves a store of so many likes whose state is gone.
fn leave_without_state(home: &Home, count: u64) {
    let mut replica = home.open();
    let many: Vec<_> = (0..count).map(|n| (like(n), device("elsewhere"))).collect();
    many.chunks(3_000).for_each(|chunk| assert!(stored(&replica.add(chunk).unwrap())));
    drop(replica);
    std::fs::remove_file(home.path("state.db")).unwrap();
}

#[test]
fn a_rebuild_tells_how_far_it_has_come() {
    use std::sync::atomic::{AtomicU64, Ordering};
    static TOLD: AtomicU64 = AtomicU64::new(0);
    let home = Home::new();
    leave_without_state(&home, 21_000);
    let mut setup = setup(bank());
    setup.progress = |applied, all| {
        assert!(applied > TOLD.swap(applied, Ordering::Relaxed) && applied <= all && all == 21_000);
        assert!(applied < 20_000, "a panic here is nobody's concern");
    };
    let replica = home.try_open_as(setup).unwrap();
    assert_eq!(TOLD.load(Ordering::Relaxed), 21_000);
    assert_eq!(likes(&replica), 21_000);
}

#[test]
fn a_long_rebuild_skips_what_an_ordinary_one_skips() {
    let home = Home::new();
    let mut replica = home.follow();
    let mut rng = Rng::new(1);
    // Some fail, end the transaction, or have a name that nobody knows, wherever chunks and portions end.
    let mut event = |n| if n % 301 == 0 { random_event(&mut rng) } else { like(n) };
    let many: Vec<_> = (0..23_000).map(&mut event).collect();
    for (nth, events) in many.chunks(500).enumerate() {
        replica.arrive(&page(nth as u64 * 500 + 1, events, nth < 45)).unwrap();
    }
    let standing = replica.standing().unwrap();
    assert!(standing.skipped > 0 && standing.unknown > 0, "{standing:?}");
    drop(replica);
    std::fs::remove_file(home.path("state.db")).unwrap();
    let replica = home.follow();
    assert_eq!(replica.standing().unwrap(), standing);
    home.check(&replica);
}

#[test]
fn a_long_rebuild_says_what_of_the_log_it_cant_read() {
    let home = Home::new();
    leave_without_state(&home, 23_000);
    Connection::open(home.path("eventlog.db"))
        .unwrap()
        .execute("UPDATE log SET name = 99 WHERE seq = 15000", ())
        .unwrap();
    let why = home.try_open_as(setup(bank())).err().expect("a log that can't be read").to_string();
    assert!(why.contains("the eventlog is damaged") && why.contains("number 99"), "{why}");
}

#[test]
fn schemas_with_deferred_constraints_are_refused_however_they_are_written() {
    for constraint in [
        "DEFERRABLE INITIALLY DEFERRED",
        "deferrable initially\n\tdeferred",
        "DEFERRABLE INITIALLY/* now */DEFERRED",
        "DEFERRABLE INITIALLY -- now\n DEFERRED",
        "DEFERRABLE/**/INITIALLY /* a -- */ DEFERRED)--",
    ] {
        let sql =
            format!("CREATE TABLE a (id INTEGER PRIMARY KEY); CREATE TABLE b (a REFERENCES a (id) {constraint}\n)");
        let sql: &'static str = sql.replace("--\n)", "--\n").leak();
        let why = Schema::new(sql).check().expect_err(sql).to_string();
        assert!(why.contains("deferred"), "{why}");
    }
    let fine =
        "CREATE TABLE a (id INTEGER PRIMARY KEY, word TEXT DEFAULT 'initially deferred' /* INITIALLY DEFERRED */);
                CREATE TABLE b (a REFERENCES a (id) DEFERRABLE INITIALLY IMMEDIATE) -- initially deferred";
    Schema::new(fine).check().unwrap();
}

#[test]
fn queries_only_read() {
    let home = Home::new();
    let mut replica = home.follow();
    replica.commit(&[like(1)]).unwrap();
    for sql in [
        "UPDATE likes SET count = 7 RETURNING count",
        "DELETE FROM likes RETURNING 1",
        "COMMIT",
        "ROLLBACK",
        "SAVEPOINT mark",
        "RELEASE mark",
        "PRAGMA user_version",
        "VACUUM",
        "SELECT seq FROM likewise_cursor",
        "SELECT count(*) FROM likewise_cursor",
        "SELECT count(*) FROM sqlite_schema",
        "SELECT count(*) FROM SQLITE_MASTER",
        "SELECT count(*) FROM pragma_table_list",
        "WITH n AS (SELECT seq FROM likewise_cursor LIMIT 1) SELECT count(*) FROM n",
        "SELECT random()",
        "EXPLAIN SELECT count FROM likes",
    ] {
        assert!(replica.query(&Query::<i64>::first(sql)).is_err(), "{sql}");
        home.check(&replica);
    }
    assert_eq!(likes(&replica), 1);
}

#[test]
fn queries_may_name_what_they_ask_on_the_way() {
    let home = Home::new();
    let replica = home.open();
    for (sql, expected) in [
        ("WITH n AS (SELECT count FROM likes) SELECT count(*) FROM n", 1),
        ("WITH n AS (SELECT count FROM likes LIMIT 1) SELECT count(*) FROM n", 1),
        ("WITH n AS (SELECT name FROM account GROUP BY name) SELECT EXISTS (SELECT 1 FROM n)", 0),
        ("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5) SELECT count(*) FROM n", 5),
        ("SELECT count(*) FROM (SELECT count FROM likes LIMIT 1) AS n", 1),
    ] {
        let answer = replica.query(&Query::<i64>::first(sql));
        assert_eq!(answer.unwrap_or_else(|why| panic!("{sql}: {why}")), expected, "{sql}");
    }
    let offered = replica.query(&Query::<i64>::first("SELECT count(*) FROM dbstat"));
    assert!(matches!(offered, Err(DbError::Forbidden(_))), "what SQLite offers is nobody's name: {offered:?}");
}

/// The best of many tries, to make a busy machine matter less.
#[test]
fn what_many_unknown_events_cost_does_not_grow_with_their_number() {
    let home = Home::new();
    let mut replica = home.open();
    let unknown = |n| (event(id(n), "Future", ""), device("elsewhere"));
    let best = |replica: &mut Replica, from: u64| {
        let one = |n| {
            let begun = Instant::now();
            replica.add(&[unknown(n)]).unwrap();
            assert_eq!(replica.standing().unwrap().unknown, n + 1);
            begun.elapsed()
        };
        (from..from + 50).map(one).min().unwrap()
    };
    let few = best(&mut replica, 0);
    replica.add(&(50..50_000).map(unknown).collect::<Vec<_>>()).unwrap();
    let many = best(&mut replica, 50_000);
    assert!(many < 3 * few, "with few {few:?}, with many {many:?}");
}

/// How often materializers run while a device with `pending` likes takes in as many likes of another device. They arrive mixed
/// with its own, a page at a time, and the hub never says that more wait.
fn runs_while_two_arrive_at_once(pending: u64) -> u64 {
    let runs = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&runs);
    let schema = Schema::new("CREATE TABLE likes (count INTEGER NOT NULL) STRICT; INSERT INTO likes VALUES (0);").on(
        move |_: Liked, db| {
            counted.fetch_add(1, Ordering::Relaxed);
            db.execute("UPDATE likes SET count = count + 1", ())
        },
    );
    let home = Home::new();
    let mut replica = home.try_open_as(setup(schema)).unwrap();
    replica.follow().unwrap();
    let ours: Vec<_> = (0..pending).map(like).collect();
    ours.chunks(1_024).for_each(|some| assert!(stored(&replica.commit(some).unwrap())));
    let theirs: Vec<_> = (pending..2 * pending).map(like).collect();
    let before = runs.load(Ordering::Relaxed);
    for (nth, (a, b)) in theirs.chunks(100).zip(ours.chunks(100)).enumerate() {
        replica.arrive(&page(nth as u64 * 200 + 1, &[a, b].concat(), false)).unwrap();
    }
    replica.settle_arrivals().unwrap();
    assert_eq!((likes(&replica), replica.standing().unwrap().pending), (2 * pending as i64, 0));
    runs.load(Ordering::Relaxed) - before
}

#[test]
fn trust_24_many_of_ours_and_many_of_anothers_at_once_cost_no_more_than_in_proportion() {
    let [some, twice] = [10_000, 20_000].map(runs_while_two_arrive_at_once);
    assert!(twice < 5 * 2 * 20_000, "{twice}");
    assert!(twice < some * 5 / 2, "{some}, {twice}");
}

#[test]
fn what_arrives_among_many_pending_is_seen_when_somebody_asks_for_it() {
    let home = Home::new();
    let mut replica = home.follow();
    let ours: Vec<_> = (0..3_000).map(like).collect();
    assert!(stored(&replica.commit(&ours).unwrap()));
    replica.arrive(&page(1, &[like(9_001), like(9_002)], false)).unwrap();
    assert!(replica.is_behind());
    assert_eq!(likes(&replica), 3_000);
    assert!(stored(&replica.commit(&[like(3_001)]).unwrap()));
    // Opening mends a crash at this moment. A caller that has waited long enough settles the arrivals itself.
    let killed = home.scratch.path().join("killed");
    copy_dir(&home.dir, &killed);
    replica.settle_arrivals().unwrap();
    assert!(!replica.is_behind());
    home.check(&replica);
    assert_eq!(likes(&replica), 3_003);
    drop(replica);
    let opened = Replica::open(Files::in_dir(&killed), setup(bank())).unwrap();
    check(&opened, &killed);
    assert_eq!(likes(&opened), 3_003);
    // When few of ours are pending, they are re-applied at once.
    let home = Home::new();
    let mut replica = home.follow();
    assert!(stored(&replica.commit(&ours[..900]).unwrap()));
    replica.arrive(&page(1, &[like(9_001)], false)).unwrap();
    assert_eq!(likes(&replica), 901);
}

#[test]
fn an_event_is_set_aside_beside_another_that_has_its_id_and_once() {
    let home = Home::new();
    let mut replica = home.open();
    replica.commit(&[append(1, "this")]).unwrap();
    assert_eq!(replica.set_aside(&append(1, "this"), "so").unwrap(), Outcome::Known(Some(Seq(1))));
    assert_eq!(replica.set_aside(&append(1, "that"), "so").unwrap(), Outcome::Stored(None));
    assert_eq!(replica.set_aside(&append(1, "that"), "so again").unwrap(), Outcome::Known(None));
    assert_eq!(set_aside_of(&replica), [append(1, "that")]);
    home.check(&replica);
}
