//! What a gateway decides, one decision at a time, before a stream that does what it is told. The simulation combines them
//! with a stream that doesn't.

use std::collections::{BTreeMap, BTreeSet};

use likewise::engine::{Digest, LogId, Outcome, Replica, Seq, StreamId, Whose};
use likewise::sync::gateway::{
    Answered, Ends, Gateway, Group, Home as Place, Judges, Message, Publication, Sequence, Step, log_in,
};
use likewise::sync::{Has, Incoming, Placed, Push, Pushed, PushedEvent, Refusal, WireEvent};

use crate::support::*;

const STREAM: &str = "7b1c2d3e-4f50-4a6b-8c9d-0e1f2a3b4c5d";

/// A stream with one subject.
#[derive(Default)]
struct Stream(BTreeMap<Sequence, Vec<u8>>);

impl Stream {
    fn ends(&self) -> Ends {
        Ends { last: self.0.keys().next_back().copied().unwrap_or_default(), messages: Some(self.0.len() as u64) }
    }

    fn publish(&mut self, expected: Sequence, bytes: &[u8]) -> Result<Sequence, Sequence> {
        let last = self.ends().last;
        if last != expected {
            return Err(last);
        }
        self.0.insert(last + 1, bytes.to_vec());
        Ok(last + 1)
    }
}

/// A gateway with its replica.
struct Gate {
    _home: Home,
    replica: Replica,
    gateway: Gateway,
}

fn place(name: &str) -> Place {
    let (stream, store) = (STREAM.parse().unwrap(), "likes".parse().unwrap());
    Place { log: log_in(stream, &store), stream, store, device: device(name) }
}

impl Gate {
    fn new(name: &str) -> Self {
        let home = Home::new();
        let mut replica = home.follow();
        let gateway = Gateway::begin(&mut replica, place(name)).unwrap();
        Self { _home: home, replica, gateway }
    }

    fn next(&mut self) -> Step {
        self.gateway.next(&mut self.replica).unwrap()
    }

    /// Does what the gateway asks for, until it rests.
    fn work(&mut self, stream: &mut Stream) {
        for _ in 0..10_000 {
            match self.next() {
                Step::Publish(publication) => self.publish(stream, &publication),
                Step::Rest => match stream.0.range(self.applied() + 1..).next() {
                    Some(_) => self.read(stream, self.applied()),
                    None => return,
                },
                other => self.step(stream, other),
            }
        }
        panic!("it doesn't come to rest");
    }

    fn step(&mut self, stream: &Stream, step: Step) {
        match step {
            Step::Ask(question) => self.gateway.heard(&mut self.replica, question, stream.ends()).unwrap(),
            Step::Get(sequence) => {
                let bytes = stream.0.get(&sequence).map(Vec::as_slice);
                self.gateway.found(&mut self.replica, sequence, bytes).unwrap();
            }
            Step::Read(after) => self.read(stream, after),
            Step::Publish(_) | Step::Rest => panic!("it is not to publish: {step:?}"),
        }
    }

    fn read(&mut self, stream: &Stream, after: Sequence) {
        match stream.0.range(after + 1..).next() {
            Some((sequence, bytes)) => self.gateway.arrive(&mut self.replica, after, *sequence, bytes).unwrap(),
            None => self.gateway.doubt(),
        }
    }

    fn publish(&mut self, stream: &mut Stream, publication: &Publication) {
        match stream.publish(publication.expected, &publication.bytes) {
            Ok(sequence) => self.gateway.acknowledged(publication.number, sequence),
            Err(last) => self.gateway.refused(&self.replica, publication.number, Some(last)).unwrap(),
        }
    }

    /// Goes on until it is to publish.
    fn until_publish(&mut self, stream: &Stream) -> Publication {
        loop {
            match self.next() {
                Step::Publish(publication) => return publication,
                other => self.step(stream, other),
            }
        }
    }

    fn applied(&self) -> Sequence {
        self.replica.applied().unwrap().map_or(0, |applied| applied.sequence)
    }

    fn push(&mut self, events: &[u64], part: bool) -> u64 {
        let events = events.iter().map(|n| WireEvent::from(&like(*n))).collect();
        self.push_events(events, part)
    }

    fn push_events(&mut self, events: Vec<WireEvent>, part: bool) -> u64 {
        let push = Push { log: None, run: "run".to_owned(), events, has: None, part };
        self.gateway.push(Incoming::check(push, "run", &device("phone")).unwrap()).unwrap()
    }

    fn answers(&mut self) -> Vec<Result<Pushed, Refusal>> {
        self.gateway.take_answers().into_iter().map(|Answered { result, .. }| result).collect()
    }
}

fn seqs(pushed: &Pushed) -> Vec<u64> {
    let seq = |event: &PushedEvent| match event {
        PushedEvent::Stored { seq, .. } => seq.0,
        PushedEvent::Refused { why, .. } => panic!("it is refused: {why}"),
    };
    pushed.events.iter().map(seq).collect()
}

#[test]
fn events_enter_the_log_of_every_gateway_through_the_stream() {
    let mut stream = Stream::default();
    let (mut one, mut other) = (Gate::new("one"), Gate::new("other"));
    one.replica.commit(&[like(1), like(2)]).unwrap();
    assert_eq!(one.replica.standing().unwrap().pending, 2, "a click waits in the outbox");
    other.push(&[2, 3], false);
    one.work(&mut stream);
    other.work(&mut stream);
    one.work(&mut stream);
    let log = log_of(&one.replica);
    let places: Vec<_> = log.iter().map(|entry| (entry.seq.0, entry.origin.as_str())).collect();
    assert_eq!(places, [(1_024, "one"), (1_025, "one"), (2_048, "phone")], "what the log has is left out");
    assert_eq!(log, log_of(&other.replica));
    assert_eq!(one.replica.served(), other.replica.served());
    let pushed = other.answers().remove(0).unwrap();
    assert_eq!((pushed.log, seqs(&pushed)), (one.replica.served(), vec![1_025, 2_048]));
}

#[test]
fn a_push_is_answered_after_the_acknowledgement_and_not_before() {
    let stream = Stream::default();
    let mut gate = Gate::new("one");
    gate.push(&[1], false);
    let publication = gate.until_publish(&stream);
    gate.gateway.answer_now();
    assert!(gate.answers().is_empty(), "nothing is acknowledged");
    gate.gateway.unanswered(publication.number);
    let again = gate.until_publish(&stream);
    assert_eq!((again.expected, &again.bytes), (publication.expected, &publication.bytes), "it is published as it was");
    gate.gateway.acknowledged(again.number, 7);
    assert!(gate.answers().is_empty(), "the reader brings the answer, if it comes soon");
    gate.gateway.answer_now();
    assert_eq!(seqs(&gate.answers().remove(0).unwrap()), [7 * 1_024]);
}

#[test]
fn a_lost_acknowledgement_is_made_up_for_by_the_leaders_word() {
    let mut stream = Stream::default();
    let mut gate = Gate::new("one");
    gate.push(&[1], false);
    let publication = gate.until_publish(&stream);
    stream.publish(publication.expected, &publication.bytes).unwrap();
    gate.gateway.unanswered(publication.number);
    gate.read(&stream, 0);
    assert!(gate.answers().is_empty(), "read is not acknowledged");
    gate.gateway.unanswered(publication.number);
    gate.work(&mut stream);
    assert_eq!(seqs(&gate.answers().remove(0).unwrap()), [1_024]);
    assert_eq!(stream.0.len(), 1);
}

#[test]
fn a_large_push_is_answered_in_part_if_the_device_takes_that() {
    // Each takes more bytes in a message than in a push.
    let wide = |n: u64| WireEvent::from(&append(n, &"\\\\".repeat(20_000)));
    for takes_part in [true, false] {
        let mut stream = Stream::default();
        let mut gate = Gate::new("one");
        gate.push_events((1..=40).map(wide).collect(), takes_part);
        gate.work(&mut stream);
        let pushed = gate.answers().remove(0).unwrap();
        assert_eq!(pushed.events.len() < 40, takes_part);
        assert_eq!(log_of(&gate.replica).len(), pushed.events.len(), "what isn't answered is the device's again");
        assert_eq!(stream.0.len() > 1, !takes_part);
        assert!(stream.0.values().all(|bytes| bytes.len() <= 1_000_000));
    }
}

#[test]
fn another_event_under_a_known_id_is_refused() {
    let mut stream = Stream::default();
    let mut gate = Gate::new("one");
    gate.replica.commit(&[like(1)]).unwrap();
    gate.work(&mut stream);
    let other = WireEvent { id: id(1).to_string(), ..WireEvent::from(&append(1, "x")) };
    gate.push_events(vec![other], false);
    gate.work(&mut stream);
    let pushed = gate.answers().remove(0).unwrap();
    assert!(matches!(&pushed.events[..], [PushedEvent::Refused { refused, .. }] if refused == "id-taken"));
    assert_eq!(stream.0.len(), 1);
}

#[test]
fn what_is_no_message_is_passed_over_alike_by_all() {
    let mut stream = Stream::default();
    let (mut one, mut other) = (Gate::new("one"), Gate::new("other"));
    one.replica.commit(&[like(1)]).unwrap();
    one.work(&mut stream);
    let last = stream.0.values().next_back().unwrap().clone();
    for junk in [b"hello".to_vec(), b"{\"v\":1}".to_vec(), last.clone(), vec![b' '; 1_000_001]] {
        stream.publish(stream.ends().last, &junk).unwrap();
    }
    let Ok(Message::Group(group)) = Message::read(&last) else { panic!("it is a message") };
    let foreign = Message::Group(Group { log: LogId::random(), events: vec![(like(5), device("x"))], ..group });
    stream.publish(stream.ends().last, &foreign.to_bytes()).unwrap();
    one.replica.commit(&[like(2)]).unwrap();
    one.work(&mut stream);
    other.work(&mut stream);
    assert_eq!(ids_of(&one.replica), [like(1).id, like(2).id]);
    assert_eq!(log_of(&one.replica), log_of(&other.replica));
    let notices = other.gateway.take_notices();
    assert_eq!(notices.len(), 4, "an event that comes again is no news: {notices:?}");
    assert!(notices.iter().all(|notice| notice.contains("is passed over: ")), "{notices:?}");
}

#[test]
fn a_message_of_a_later_version_halts_the_store_until_the_upgrade() {
    let mut stream = Stream::default();
    let mut gate = Gate::new("one");
    stream.publish(0, br#"{"v":2}"#).unwrap();
    gate.replica.commit(&[like(1)]).unwrap();
    gate.work_until_halted(&mut stream);
    let Judges::Halted(why) = gate.gateway.judges(&gate.replica, 0).unwrap() else { panic!("it goes on") };
    assert!(why.contains("Upgrade this gateway"), "{why}");
    assert_eq!(gate.replica.standing().unwrap().pending, 1);
}

impl Gate {
    fn work_until_halted(&mut self, stream: &mut Stream) {
        while !matches!(self.gateway.judges(&self.replica, 0).unwrap(), Judges::Halted(_)) {
            match self.next() {
                Step::Publish(publication) => self.publish(stream, &publication),
                Step::Rest => self.read(stream, self.applied()),
                other => self.step(stream, other),
            }
        }
    }
}

#[test]
fn another_stream_and_another_log_halt_the_store() {
    let mut stream = Stream::default();
    let mut gate = Gate::new("one");
    gate.replica.commit(&[like(1)]).unwrap();
    gate.work(&mut stream);
    let other = Place { stream: StreamId::random(), ..place("one") };
    let before = log_of(&gate.replica);
    let gateway = Gateway::begin(&mut gate.replica, other.clone()).unwrap();
    assert!(matches!(gateway.judges(&gate.replica, 0).unwrap(), Judges::Halted(why) if why.contains("adopt")));
    assert_eq!(log_of(&gate.replica), before);
    // Adopting takes everything back, to be published to the new stream.
    gate.replica.take_back(Seq::START, Whose::Upstream(None)).unwrap();
    gate.gateway = Gateway::begin(&mut gate.replica, other).unwrap();
    let mut new = Stream::default();
    gate.work(&mut new);
    assert_eq!((new.0.len(), ids_of(&gate.replica)), (1, vec![like(1).id]));

    // A device of another hub becomes a gateway: its log is not the stream's.
    let home = Home::new();
    let mut replica = home.follow();
    replica.meet(LogId::random()).unwrap();
    replica.arrive(&page(1, &[like(9)], false)).unwrap();
    let gateway = Gateway::begin(&mut replica, place("two")).unwrap();
    let mut two = Gate { _home: home, replica, gateway };
    two.work_until_halted(&mut stream);
    assert_eq!(ids_of(&two.replica), [like(9).id], "nothing was changed");
}

#[test]
fn a_cursor_is_judged_only_when_the_gateway_is_level() {
    let mut stream = Stream::default();
    let (mut one, mut other) = (Gate::new("one"), Gate::new("other"));
    one.replica.commit(&[like(1)]).unwrap();
    one.work(&mut stream);
    let last = stream.ends().last;
    assert_eq!(other.gateway.judges(&other.replica, last).unwrap(), Judges::NotYet);
    assert_eq!(
        other.gateway.judges(&other.replica, 0).unwrap(),
        Judges::NotYet,
        "it hasn't asked where the stream ends"
    );
    other.work(&mut stream);
    assert_eq!(other.gateway.judges(&other.replica, last).unwrap(), Judges::Yes);
}

#[test]
fn what_the_stream_lost_is_published_again_in_a_new_run() {
    let mut stream = Stream::default();
    let mut gate = Gate::new("one");
    for n in 1..=9 {
        gate.replica.commit(&[like(n)]).unwrap();
        gate.work(&mut stream);
    }
    let waits = gate.push(&[20], false);
    // The last three are gone.
    (7..=9).for_each(|sequence| drop(stream.0.remove(&sequence)));
    gate.gateway.reconnected();
    gate.work(&mut stream);
    assert!(gate.gateway.take_loss().is_some_and(|what| what.contains("has lost some")));
    let refused = gate.gateway.take_answers().remove(0);
    assert_eq!((refused.ticket, refused.result.unwrap_err()), (waits, Refusal::PullFirst));
    assert_eq!(ids_of(&gate.replica), (1..=9).map(|n| like(n).id).collect::<Vec<_>>());
    assert_eq!(gate.replica.standing().unwrap().pending, 0);

    // One in the middle is gone. The number of messages shows it.
    stream.0.remove(&3);
    gate.gateway.reconnected();
    gate.work(&mut stream);
    assert!(gate.gateway.take_loss().is_some());
    let ids: BTreeSet<_> = ids_of(&gate.replica).into_iter().collect();
    assert_eq!(ids, (1..=9).map(|n| like(n).id).collect());
    let mut fresh = Gate::new("fresh");
    fresh.work(&mut stream);
    assert_eq!(log_of(&fresh.replica), log_of(&gate.replica), "the stream is the log");
    gate.gateway.reconnected();
    gate.work(&mut stream);
    assert!(gate.gateway.take_loss().is_none(), "all is well now");
}

#[test]
fn a_push_that_rests_on_more_than_the_gateway_has_waits_for_it_or_is_refused() {
    let mut stream = Stream::default();
    let (mut one, mut other) = (Gate::new("one"), Gate::new("other"));
    other.work(&mut stream);
    one.replica.commit(&[like(1)]).unwrap();
    one.work(&mut stream);
    let position = one.replica.position().unwrap();
    let has = |answered| Some(Has { after: position.after, digest: position.digest, answered });
    let events = vec![WireEvent::from(&like(2))];
    let push = |has| Push { log: None, run: "run".to_owned(), events: events.clone(), has, part: false };
    let incoming = |has| Incoming::check(push(has), "run", &device("phone")).unwrap();

    // The stream has what the device has. The other gateway reads that first.
    other.gateway.push(incoming(has(None))).unwrap();
    assert!(matches!(other.next(), Step::Ask(_)), "it publishes nothing yet");
    other.work(&mut stream);
    assert_eq!(seqs(&other.answers().remove(0).unwrap()), [2_048]);

    // The stream doesn't have what was answered, or has another log than the device.
    let gone = Placed { id: like(3).id, seq: Seq(3_072) };
    let another = Some(Has { after: Seq(1_024), digest: Digest::EMPTY, answered: None });
    for has in [has(Some(gone)), another] {
        other.gateway.push(incoming(has)).unwrap();
        other.work(&mut stream);
        assert_eq!(other.answers().remove(0).unwrap_err(), Refusal::PullFirst);
        assert_eq!(stream.0.len(), 2);
    }
}

#[test]
fn only_so_much_waits() {
    let mut gate = Gate::new("one");
    for first in 0..20 {
        gate.push(&(first * 1_000..(first + 1) * 1_000).collect::<Vec<_>>(), false);
    }
    let push =
        Push { log: None, run: "run".to_owned(), events: vec![WireEvent::from(&like(99_999))], has: None, part: false };
    let incoming = Incoming::check(push, "run", &device("phone")).unwrap();
    assert!(gate.gateway.push(incoming).is_none());
}

#[test]
fn older_programs_leave_a_gateways_eventlog_alone_until_it_is_none() {
    let home = Home::new();
    let mut replica = home.follow();
    let version = || {
        let conn = rusqlite::Connection::open(home.path("eventlog.db")).unwrap();
        conn.query_row("PRAGMA user_version", (), |row| row.get::<_, i64>(0)).unwrap()
    };
    assert_eq!(version(), 2);
    let gateway = Gateway::begin(&mut replica, place("one")).unwrap();
    assert_eq!(version(), 3);
    drop((gateway, replica));
    let mut replica = home.open();
    assert!(replica.stream().is_some());
    replica.promote().unwrap();
    assert_eq!((version(), replica.stream()), (2, None));
}

#[test]
fn a_gateway_takes_nothing_into_its_log_but_from_the_stream() {
    let mut gate = Gate::new("one");
    gate.work(&mut Stream::default());
    let push = Push { log: None, run: "r".to_owned(), events: vec![(&like(1)).into()], has: None, part: false };
    let incoming = Incoming::check(push, "r", &device("phone")).unwrap();
    assert!(incoming.store(Some(&mut gate.replica)).is_err());
    assert!(matches!(gate.replica.commit(&[like(1)]).unwrap()[..], [Outcome::Stored(None)]));
}

/// Ten gateways have something to publish all the time. They are from one to ten milliseconds away from the leader.
#[test]
fn each_gateway_on_a_busy_store_makes_progress() {
    #[derive(PartialEq, Eq, PartialOrd, Ord)]
    enum What {
        Wake,
        Send(u64),
        Land(u64, Sequence, Vec<u8>),
        Outcome(u64, Result<Sequence, Sequence>),
        Arrives,
    }
    #[derive(PartialEq)]
    enum At {
        Rest,
        Pause(u64),
        Flight,
    }
    let away = |at: usize| 1_000 * (at as u64 + 1);
    let (mut rng, mut stream, mut made) = (Rng::new(7), Stream::default(), 0);
    let mut gates: Vec<_> = (0..10).map(|nth| (Gate::new(&format!("gate-{nth}")), At::Rest)).collect();
    // What happens when, in microseconds. The second number keeps things of the same time apart.
    let (mut queue, mut nth, mut taken) = (BTreeSet::new(), 0_u64, [0_u32; 10]);
    for (at, (gate, _)) in gates.iter_mut().enumerate() {
        gate.work(&mut stream);
        queue.insert((0, at as u64, at, What::Wake));
    }
    while let Some((now, _, at, what)) = queue.pop_first() {
        if now > 4_000_000 {
            break;
        }
        let mut then = |after: u64, at: usize, what: What| {
            nth += 1;
            queue.insert((now + after, 10 + nth, at, what));
        };
        let (gate, is) = &mut gates[at];
        match what {
            What::Wake => {}
            What::Send(token) if *is != At::Pause(token) => continue,
            What::Send(_) => {
                let Step::Publish(publication) = gate.next() else { panic!("it was about to publish") };
                then(away(at), at, What::Land(publication.number, publication.expected, publication.bytes));
                *is = At::Flight;
                continue;
            }
            What::Land(number, expected, bytes) => {
                let outcome = stream.publish(expected, &bytes);
                if outcome.is_ok() {
                    taken[at] += 1;
                    (0..10).for_each(|to| then(away(to), to, What::Arrives));
                }
                then(away(at), at, What::Outcome(number, outcome));
                continue;
            }
            What::Outcome(number, outcome) => {
                *is = At::Rest;
                match outcome {
                    Ok(sequence) => gate.gateway.acknowledged(number, sequence),
                    Err(last) => gate.gateway.refused(&gate.replica, number, Some(last)).unwrap(),
                }
            }
            What::Arrives => gate.read(&stream, gate.applied()),
        }
        if *is == At::Flight {
            continue;
        }
        if gate.replica.standing().unwrap().pending == 0 {
            made += 1;
            gate.replica.commit(&[like(made)]).unwrap();
        }
        match gate.next() {
            Step::Publish(publication) => {
                let pause = publication.turn.pause(rng.below(1_000) as f64 / 1_000.0);
                nth += 1;
                let token = nth;
                queue.insert((now + pause.as_micros() as u64, 10 + nth, at, What::Send(token)));
                *is = At::Pause(token);
            }
            Step::Ask(question) => {
                gate.gateway.heard(&mut gate.replica, question, stream.ends()).unwrap();
                nth += 1;
                queue.insert((now + 2 * away(at), 10 + nth, at, What::Wake));
            }
            _ => {}
        }
    }
    let all: u32 = taken.iter().sum();
    println!("of {all} messages in 4 s, each gateway published {taken:?}");
    assert!(taken.iter().all(|count| *count * 100 >= all), "each makes progress: {taken:?} of {all}");
}
