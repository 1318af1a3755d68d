//! What a client and a hub decide, one decision at a time. The simulation combines them.

use likewise::engine::{Digest, Envelope, LogId, Replica, Seq, Whose};
use likewise::sync::{
    AuthorityError, End, Hello, Incoming, NextPage, Point, Push, PushAnswer, Refusal, Session, Start, WireEntry,
    WireEvent, WirePage, ended, judged, repair,
};

use crate::support::*;

fn hello(log: Option<LogId>, head: u64) -> Hello {
    Hello { log, run: "run".to_owned(), head: Seq(head) }
}

fn wire_page(log: LogId, first: u64, events: &[Envelope]) -> WirePage {
    let page = page(first, events, false);
    let entry =
        |(event, seq): (&Envelope, u64)| WireEntry { seq: Seq(seq), event: event.into(), origin: device("elsewhere") };
    WirePage { log, events: events.iter().zip(first..).map(entry).collect(), next: page.next, more: false }
}

/// A client with pending events, in a session with a hub whose log ends at `head`.
fn client(home: &Home, pending: u64, log: LogId, head: u64) -> (Replica, Session) {
    let mut replica = home.follow();
    let events: Vec<_> = (0..pending).map(|n| like(100 + n)).collect();
    replica.commit(&events).unwrap();
    let session = Session::begin(Some(replica.position().unwrap()), hello(Some(log), head)).unwrap();
    (replica, session)
}

/// The ids that the session would push next.
fn next_ids(session: &mut Session, replica: &Replica) -> usize {
    ended(session.next_push(replica)).unwrap().unwrap().map_or(0, |outgoing| outgoing.ids().len())
}

#[test]
fn nothing_is_pushed_before_all_is_pulled_that_the_hub_had() {
    let home = Home::new();
    let log = LogId::random();
    let (mut replica, mut session) = client(&home, 2, log, 3);
    for (first, events) in [(1, vec![like(1), like(2)]), (3, vec![like(3)])] {
        assert_eq!(next_ids(&mut session, &replica), 0);
        assert_eq!(ended(session.arrive(&mut replica, wire_page(log, first, &events))).unwrap(), Ok(()));
    }
    assert_eq!(next_ids(&mut session, &replica), 2);
}

#[test]
fn a_session_ends_when_events_are_taken_back_by_somebody_else() {
    let home = Home::new();
    let log = LogId::random();
    let (mut replica, mut session) = client(&home, 1, log, 0);
    assert_eq!(ended(session.arrive(&mut replica, wire_page(log, 1, &[like(1)]))).unwrap(), Ok(()));
    let outgoing = ended(session.next_push(&replica)).unwrap().unwrap().unwrap();
    replica.take_back(Seq::START, Whose::Upstream(None)).unwrap();
    let refused = serde_json::json!({ "log": log, "events": [{ "refused": "malformed", "why": "so" }] });
    let answer = PushAnswer::Pushed(serde_json::from_value(refused).unwrap());
    assert_eq!(ended(session.answer(&mut replica, &outgoing, answer)).unwrap(), Err(End::PullFirst));
    let standing = replica.standing().unwrap();
    assert_eq!((standing.set_aside, standing.whose), (0, Whose::Upstream(None)), "another log may take it");
    assert_eq!(ended(session.next_push(&replica)).unwrap().unwrap_err(), End::PullFirst);
    let before = ids_of(&replica);
    assert_eq!(ended(session.arrive(&mut replica, wire_page(log, 2, &[like(2)]))).unwrap(), Err(End::PullFirst));
    assert_eq!(ids_of(&replica), before, "the page no longer comes next");
}

#[test]
fn a_session_is_with_one_log() {
    let home = Home::new();
    let (log, other) = (LogId::random(), LogId::random());
    let (mut replica, mut session) = client(&home, 1, log, 0);
    let arrived = ended(session.arrive(&mut replica, wire_page(other, 1, &[like(1)]))).unwrap();
    assert!(matches!(arrived, Err(End::Offline(_))), "{arrived:?}");
    let outgoing = ended(session.next_push(&replica)).unwrap().unwrap().unwrap();
    let pushed = serde_json::json!({ "log": other, "events": [{ "seq": 1 }] });
    let answer = PushAnswer::Pushed(serde_json::from_value(pushed).unwrap());
    let answered = ended(session.answer(&mut replica, &outgoing, answer)).unwrap();
    assert!(matches!(answered, Err(End::Offline(_))), "{answered:?}");
    assert!(log_of(&replica).is_empty());

    // It has to be the same from one session to the next.
    replica.meet(log).unwrap();
    let position = replica.position().unwrap();
    for hello in [hello(Some(other), 0), hello(None, 0)] {
        let begun = Session::begin(Some(position), hello);
        assert!(matches!(begun, Err(End::Halted("wrong-log", _))), "{begun:?}");
    }
    assert!(Session::begin(Some(position), hello(Some(log), 0)).is_ok());
}

#[test]
fn what_is_too_much_is_halved_and_grows_again_after_a_while() {
    let home = Home::new();
    let log = LogId::random();
    let (mut replica, mut session) = client(&home, 50, log, 0);
    let too_slow = || PushAnswer::TooMuch(End::Offline("too slow".to_owned()));
    for (answer, size) in
        [(too_slow(), 25), (PushAnswer::TooLarge, 12), (too_slow(), 6), (too_slow(), 3), (too_slow(), 1)]
    {
        let outgoing = ended(session.next_push(&replica)).unwrap().unwrap().unwrap();
        assert_eq!(ended(session.answer(&mut replica, &outgoing, answer)).unwrap(), Ok(()));
        assert_eq!(next_ids(&mut session, &replica), size);
    }
    for n in 0..16 {
        let outgoing = ended(session.next_push(&replica)).unwrap().unwrap().unwrap();
        assert_eq!(outgoing.ids(), [like(100 + n).id], "what was answered is not pushed again");
        let pushed = serde_json::json!({ "log": log, "events": [{ "seq": 1 + n }] });
        let answer = PushAnswer::Pushed(serde_json::from_value(pushed).unwrap());
        assert_eq!(ended(session.answer(&mut replica, &outgoing, answer)).unwrap(), Ok(()));
    }
    assert_eq!(next_ids(&mut session, &replica), 2);
    assert_eq!(replica.standing().unwrap().pending, 50, "only what arrives is confirmed");
}

#[test]
fn one_event_that_is_too_much_is_set_aside_only_on_the_hubs_own_word() {
    let home = Home::new();
    let log = LogId::random();
    let (mut replica, mut session) = client(&home, 1, log, 0);
    let outgoing = ended(session.next_push(&replica)).unwrap().unwrap().unwrap();
    let end = End::Offline("a proxy answered 413".to_owned());
    assert_eq!(ended(session.answer(&mut replica, &outgoing, PushAnswer::TooMuch(end.clone()))).unwrap(), Err(end));
    assert_eq!(replica.standing().unwrap().pending, 1);
    assert_eq!(ended(session.answer(&mut replica, &outgoing, PushAnswer::TooLarge)).unwrap(), Ok(()));
    assert_eq!(set_aside_of(&replica), [like(100)]);
    assert_eq!(next_ids(&mut session, &replica), 0);
    assert_eq!(likes(&replica), 0, "what is set aside has no effect");
}

#[test]
fn an_answer_for_other_events_is_not_believed() {
    let home = Home::new();
    let log = LogId::random();
    let (mut replica, mut session) = client(&home, 2, log, 0);
    let outgoing = ended(session.next_push(&replica)).unwrap().unwrap().unwrap();
    let refused = serde_json::json!({ "refused": "malformed", "why": "so" });
    for count in [0, 3] {
        let pushed = serde_json::json!({ "log": log, "events": vec![refused.clone(); count] });
        let answer = PushAnswer::Pushed(serde_json::from_value(pushed).unwrap());
        let answered = ended(session.answer(&mut replica, &outgoing, answer)).unwrap();
        assert!(matches!(answered, Err(End::Offline(_))), "{answered:?}");
        assert_eq!(replica.standing().unwrap().pending, 2);
    }
}

/// The answer of a hub that has stored the pushed events at these places.
fn stored(log: LogId, seqs: &[u64]) -> PushAnswer {
    let events: Vec<_> = seqs.iter().map(|seq| serde_json::json!({ "seq": seq })).collect();
    PushAnswer::Pushed(serde_json::from_value(serde_json::json!({ "log": log, "events": events })).unwrap())
}

#[test]
fn after_an_answer_to_a_part_the_rest_is_pushed() {
    let home = Home::new();
    let log = LogId::random();
    let (mut replica, mut session) = client(&home, 5, log, 0);
    let outgoing = ended(session.next_push(&replica)).unwrap().unwrap().unwrap();
    assert!(outgoing.push.part && outgoing.ids().len() == 5);
    assert_eq!(ended(session.answer(&mut replica, &outgoing, stored(log, &[7, 8]))).unwrap(), Ok(()));
    let outgoing = ended(session.next_push(&replica)).unwrap().unwrap().unwrap();
    assert_eq!(outgoing.ids(), [102, 103, 104].map(|n| like(n).id));
    let answered = outgoing.push.has.and_then(|has| has.answered).map(|place| (place.id, place.seq));
    assert_eq!(answered, Some((like(101).id, Seq(8))), "the hub has to have what it answered for");
}

#[test]
fn a_pull_that_passes_an_answered_event_without_it_ends_the_session() {
    let home = Home::new();
    let log = LogId::random();
    let (mut replica, mut session) = client(&home, 2, log, 0);
    let outgoing = ended(session.next_push(&replica)).unwrap().unwrap().unwrap();
    assert_eq!(ended(session.answer(&mut replica, &outgoing, stored(log, &[3, 4]))).unwrap(), Ok(()));
    assert_eq!(ended(session.arrive(&mut replica, wire_page(log, 2, &[like(1), like(100)]))).unwrap(), Ok(()));
    let passed = ended(session.arrive(&mut replica, wire_page(log, 4, &[like(2)]))).unwrap();
    assert_eq!(passed, Err(End::PullFirst));
    assert_eq!(replica.standing().unwrap().pending, 1, "it is kept, and pushed again by the next session");

    // An answer that names a place which was passed before is no better.
    let (mut replica, mut session) = client(&Home::new(), 1, log, 0);
    assert_eq!(ended(session.arrive(&mut replica, wire_page(log, 5, &[like(1)]))).unwrap(), Ok(()));
    let outgoing = ended(session.next_push(&replica)).unwrap().unwrap().unwrap();
    assert_eq!(ended(session.answer(&mut replica, &outgoing, stored(log, &[4]))).unwrap(), Err(End::PullFirst));
}

/// What the client is told instead of an answer.
fn refusal<T: std::fmt::Debug>(result: Result<T, AuthorityError>) -> Refusal {
    judged(result).expect("no fault of the machine").expect_err("a refusal")
}

#[test]
fn a_hub_without_a_log_makes_one_only_for_events() {
    let push = |log, events| Push { log, run: "run".to_owned(), events, has: None, part: false };
    let check = |push| Incoming::check(push, "run", &device("phone")).unwrap();
    let bad = WireEvent { id: "no id".to_owned(), name: "Liked".to_owned(), args: None };

    let nothing = check(push(None, vec![bad.clone()]));
    assert!(!nothing.needs_log());
    let pushed = nothing.store(None).unwrap();
    let json = serde_json::to_value(&pushed).unwrap();
    assert_eq!((&json["log"], &json["events"][0]["refused"]), (&serde_json::Value::Null, &"malformed".into()));

    assert!(check(push(None, vec![bad, (&like(1)).into()])).needs_log());
    let known = check(push(Some(LogId::random()), vec![(&like(1)).into()]));
    assert!(!known.needs_log());
    assert_eq!(refusal(known.store(None)), Refusal::WrongLog);
    assert_eq!(refusal(Start::vouch(None, Some(LogId::random()), Seq::START, Digest::EMPTY)), Refusal::WrongLog);
}

#[test]
fn a_hub_answers_only_under_its_run_and_for_its_log() {
    let home = Home::new();
    let mut replica = home.open();
    let log = replica.standing().unwrap().whose.log_id();
    let push =
        |log, run: &str| Push { log, run: run.to_owned(), events: vec![(&like(1)).into()], has: None, part: false };
    let refused = Incoming::check(push(log, "earlier"), "run", &device("phone")).unwrap_err();
    assert_eq!(refused, Refusal::PullFirst);
    let other = Incoming::check(push(Some(LogId::random()), "run"), "run", &device("phone")).unwrap();
    assert_eq!(refusal(other.store(Some(&mut replica))), Refusal::WrongLog);
    let many = Push { events: vec![(&like(1)).into(); 1_001], ..push(log, "run") };
    assert_eq!(Incoming::check(many, "run", &device("phone")).unwrap_err(), Refusal::TooMany(1_001));
    assert!(log_of(&replica).is_empty());

    let mut start = Start::vouch(Some(&replica), log, Seq::START, Digest::EMPTY).unwrap();
    assert!(matches!(start.page(&replica, Seq::START), Ok(NextPage::Level)));
    replica.commit(&[like(1)]).unwrap();
    assert!(matches!(start.page(&replica, Seq::START), Ok(NextPage::Page(_))));
    // It becomes a replica of another log, or its events are taken back. What was sent may not be what it has.
    replica.take_back(Seq::START, Whose::Own(log.unwrap())).unwrap();
    assert!(matches!(start.page(&replica, Seq::START), Ok(NextPage::Over)));
    replica.take_back(Seq::START, Whose::Upstream(None)).unwrap();
    assert!(matches!(start.page(&replica, Seq::START), Ok(NextPage::Over)));
    assert_eq!(refusal(Start::vouch(Some(&replica), log, Seq::START, Digest::EMPTY)), Refusal::NotAHub);
}

/// Removing a refused event from under the others re-applies everything that is pending. If a hub refused one event of each
/// push, that would be quadratic.
#[test]
fn what_the_hub_refuses_is_set_aside_when_all_is_pushed() {
    let home = Home::new();
    let log = LogId::random();
    let (mut replica, mut session) = client(&home, 2_500, log, 0);
    for (events, set_aside) in [(1_000, 0), (1_000, 0), (500, 3)] {
        let outgoing = ended(session.next_push(&replica)).unwrap().unwrap().unwrap();
        assert_eq!(outgoing.ids().len(), events);
        let mut answers = vec![serde_json::json!({ "seq": 1 }); events];
        answers[7] = serde_json::json!({ "refused": "malformed", "why": "so\n".repeat(1_000) });
        let answer = serde_json::from_value(serde_json::json!({ "log": log, "events": answers })).unwrap();
        assert_eq!(ended(session.answer(&mut replica, &outgoing, PushAnswer::Pushed(answer))).unwrap(), Ok(()));
        assert_eq!(replica.standing().unwrap().set_aside, set_aside);
    }
    let (_, why) = &replica.all_set_aside().unwrap()[0];
    assert!(why.starts_with("malformed: so so ") && why.chars().count() == 301, "{why}");
}

#[test]
fn what_the_hub_refused_is_set_aside_also_when_the_session_ends() {
    let home = Home::new();
    let log = LogId::random();
    let (mut replica, mut session) = client(&home, 1_500, log, 0);
    let outgoing = ended(session.next_push(&replica)).unwrap().unwrap().unwrap();
    let refused = serde_json::json!({ "log": log, "events": vec![serde_json::json!({ "refused": "malformed", "why": "" }); 1_000] });
    let answer = PushAnswer::Pushed(serde_json::from_value(refused).unwrap());
    assert_eq!(ended(session.answer(&mut replica, &outgoing, answer)).unwrap(), Ok(()));
    session.end(&mut replica).unwrap();
    let standing = replica.standing().unwrap();
    assert_eq!((standing.set_aside, standing.pending), (1_000, 500));
}

#[test]
fn pages_that_bring_nothing_are_not_written_and_have_an_end() {
    let home = Home::new();
    let log = LogId::random();
    let (mut replica, mut session) = client(&home, 1, log, 9);
    assert_eq!(ended(session.arrive(&mut replica, wire_page(log, 1, &[like(1)]))).unwrap(), Ok(()));
    let before = (replica.position().unwrap(), std::fs::read(home.files().witness()).unwrap());
    let empty = |next| WirePage { log, events: Vec::new(), next: Seq(next), more: true };
    assert_eq!(next_ids(&mut session, &replica), 0);
    for next in 2..=33 {
        assert_eq!(ended(session.arrive(&mut replica, empty(next))).unwrap(), Ok(()));
    }
    assert_eq!(next_ids(&mut session, &replica), 1, "the end of the log was reached all the same");
    let Err(End::Offline(why)) = ended(session.arrive(&mut replica, empty(34))).unwrap() else { panic!("it goes on") };
    assert!(why.contains("brings nothing"), "{why}");
    assert_eq!((replica.position().unwrap(), std::fs::read(home.files().witness()).unwrap()), before);
}

#[test]
fn places_that_go_back_or_end_all_logs_end_the_session() {
    let home = Home::new();
    let log = LogId::random();
    let (mut replica, mut session) = client(&home, 1, log, 0);
    assert_eq!(ended(session.arrive(&mut replica, wire_page(log, 5, &[like(1)]))).unwrap(), Ok(()));
    for first in [4, 5, (1 << 62) - 1] {
        let arrived = ended(session.arrive(&mut replica, wire_page(log, first, &[like(2)]))).unwrap();
        assert!(matches!(arrived, Err(End::Offline(_))), "{first}: {arrived:?}");
    }
    let position = replica.position().unwrap();
    for (run, head) in [("", 1), ("a b", 1), (&"r".repeat(101), 1), ("run", (1 << 62) - 1)] {
        let hello = Hello { log: Some(log), run: run.to_owned(), head: Seq(head) };
        assert!(matches!(Session::begin(Some(position), hello), Err(End::Offline(_))), "{run} {head}");
    }
}

#[test]
fn a_hub_owes_the_pages_that_it_named_and_the_events_that_it_took() {
    let home = Home::new();
    let log = LogId::random();
    let (mut replica, mut session) = client(&home, 1, log, 1);
    assert!(session.is_owed(Some(&replica)).unwrap());
    assert_eq!(ended(session.arrive(&mut replica, wire_page(log, 1, &[like(1)]))).unwrap(), Ok(()));
    assert!(!session.is_owed(Some(&replica)).unwrap());
    let outgoing = ended(session.next_push(&replica)).unwrap().unwrap().unwrap();
    let answer = serde_json::json!({ "log": log, "events": [{ "seq": 2 }] });
    let answer = PushAnswer::Pushed(serde_json::from_value(answer).unwrap());
    assert_eq!(ended(session.answer(&mut replica, &outgoing, answer)).unwrap(), Ok(()));
    assert!(session.is_owed(Some(&replica)).unwrap());
    assert_eq!(ended(session.arrive(&mut replica, wire_page(log, 2, &[like(100)]))).unwrap(), Ok(()));
    assert!(!session.is_owed(Some(&replica)).unwrap());
}

/// When a hub says that its log is another, and then names our own place in it, nothing is taken back.
#[test]
fn a_hub_that_contradicts_itself_has_nothing_repaired() {
    let home = Home::new();
    let log = LogId::random();
    let (mut replica, mut session) = client(&home, 1, log, 0);
    assert_eq!(ended(session.arrive(&mut replica, wire_page(log, 1, &[like(1), like(2)]))).unwrap(), Ok(()));
    let before = replica.position().unwrap();
    let point = |seq| Point { seq: Seq(seq), digest: replica.digest_at(Seq(seq)).unwrap() };
    let (first, last) = (point(1), point(2));
    assert_eq!(repair(&mut replica, &[first, last]).unwrap(), None);
    assert_eq!(replica.position().unwrap(), before);
    assert_eq!(repair(&mut replica, &[first]).unwrap(), Some((Seq(2), Seq(2))));
}
