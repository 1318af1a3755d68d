//! Moving a hub's log into a stream and out of it, one decision at a time. Devices notice nothing.

use likewise::engine::{Device, Digest, Envelope, LogId, Replica, Seq, StreamId, Whose};
use likewise::sync::gateway::{Ends, Home as GatewayHome, Judges, Message, MoveError, MoveIn, MoveStep, Step};
use likewise::sync::{Gateway, Start};

use crate::support::*;

/// One subject of a stream, whose other subjects take sequences, too.
#[derive(Default)]
struct Subject {
    messages: Vec<(u64, Vec<u8>)>,
}

impl Subject {
    fn last(&self) -> u64 {
        self.messages.last().map_or(0, |(sequence, _)| *sequence)
    }

    fn publish(&mut self, expected: u64, bytes: Vec<u8>) -> Option<u64> {
        (expected == self.last()).then(|| {
            self.messages.push((self.last() + 3, bytes));
            self.last()
        })
    }

    fn after(&self, after: u64) -> impl Iterator<Item = &(u64, Vec<u8>)> {
        self.messages.iter().filter(move |(sequence, _)| *sequence > after)
    }
}

/// Moves the log of `replica`, at most `most` messages of it. Every second answer gets lost.
fn move_in(replica: &Replica, subject: &mut Subject, most: usize) -> Result<Option<MoveIn>, MoveError> {
    let mut moving = MoveIn::new(replica)?;
    let mut published = 0;
    loop {
        match moving.next(replica)? {
            MoveStep::Read(after) => {
                let messages: Vec<_> = subject.after(after).cloned().collect();
                for (sequence, bytes) in messages {
                    moving.arrive(replica, sequence, &bytes)?;
                }
                moving.level();
            }
            MoveStep::Publish { .. } if published == most => return Ok(None),
            MoveStep::Publish { expected, bytes } => {
                published += 1;
                match subject.publish(expected, bytes) {
                    Some(sequence) if published % 2 == 0 => moving.published(sequence),
                    _ => moving.unsure(),
                }
            }
            MoveStep::Done => return Ok(Some(moving)),
        }
    }
}

/// Serves the store from the stream until there is nothing to do.
fn serve(replica: &mut Replica, subject: &mut Subject, stream: StreamId, log: LogId) -> Gateway {
    let home = GatewayHome { stream, store: "likes".parse().unwrap(), log, device: device("gateway") };
    let mut gateway = Gateway::begin(replica, home).unwrap();
    run(&mut gateway, replica, subject);
    gateway
}

fn run(gateway: &mut Gateway, replica: &mut Replica, subject: &mut Subject) {
    for _ in 0..100_000 {
        match gateway.next(replica).unwrap() {
            Step::Ask(question) => {
                let ends = Ends { last: subject.last(), messages: Some(subject.messages.len() as u64) };
                gateway.heard(replica, question, ends).unwrap();
            }
            Step::Get(sequence) => {
                let found = subject.messages.iter().find(|(at, _)| *at == sequence).map(|(_, bytes)| bytes.clone());
                gateway.found(replica, sequence, found.as_deref()).unwrap();
            }
            Step::Read(after) => match subject.after(after).next().cloned() {
                Some((sequence, bytes)) => gateway.arrive(replica, after, sequence, &bytes).unwrap(),
                None if gateway.judges(replica, subject.last()).unwrap() == Judges::MovingIn => return,
                None => gateway.doubt(),
            },
            Step::Publish(publication) => match subject.publish(publication.expected, publication.bytes) {
                Some(sequence) => gateway.acknowledged(publication.number, sequence),
                None => gateway.refused(replica, publication.number, None).unwrap(),
            },
            Step::Rest => return,
        }
    }
    panic!("it comes to no end");
}

/// A hub with a log of `count` events from several devices, with gaps between their places.
fn hub(home: &Home, count: u64) -> (Replica, LogId) {
    let mut replica = home.open();
    add(&mut replica, 0, count);
    let Whose::Own(log) = replica.standing().unwrap().whose else { panic!("not its own") };
    (replica, log)
}

fn add(replica: &mut Replica, from: u64, count: u64) {
    let event = |n: u64| if n.is_multiple_of(7) { append(n, &"x".repeat(300)) } else { like(n) };
    let events: Vec<(Envelope, Device)> =
        (from..from + count).map(|n| (event(n), device(["phone", "laptop"][(n % 2) as usize]))).collect();
    for events in events.chunks(1_000) {
        replica.add(events).unwrap();
    }
}

/// The place and digest that a device has which is level.
fn level(replica: &Replica) -> (Seq, Digest) {
    let head = replica.standing().unwrap().head;
    (head, replica.digest_at(head).unwrap())
}

#[test]
fn a_moved_log_keeps_ids_order_places_and_origins_and_a_level_device_pulls_nothing() {
    let (old, new) = (Home::new(), Home::new());
    let (mut replica, log) = hub(&old, 4_321);
    let (stream, mut subject) = (StreamId::random(), Subject::default());
    let (after, digest) = level(&replica);
    let moved = move_in(&replica, &mut subject, usize::MAX).unwrap().expect("all of it");
    let before = log_of(&replica);
    moved.conclude(&mut replica, stream).unwrap();
    let fresh = LogId::random();
    let gateway = serve(&mut replica, &mut subject, stream, fresh);
    assert_eq!(log_of(&replica), before, "the hub's own directory goes on as it is");
    assert_eq!(gateway.judges(&replica, subject.last()).unwrap(), Judges::Yes);
    let mut other = new.open();
    serve(&mut other, &mut subject, stream, fresh);
    assert_eq!(log_of(&other), before, "another gateway has the same");
    for replica in [&replica, &other] {
        let mut start = Start::vouch(Some(replica), Some(log), after, digest).expect("it knows the device's log");
        assert!(matches!(start.page(replica, after).unwrap(), likewise::sync::NextPage::Level), "nothing to pull");
    }
    // What comes next comes behind.
    other.commit(&[like(1_000_000)]).unwrap();
    serve(&mut other, &mut subject, stream, fresh);
    serve(&mut replica, &mut subject, stream, fresh);
    assert_eq!(log_of(&other), log_of(&replica));
    assert!(log_of(&other).last().unwrap().seq > after);
    assert_eq!(log_of(&other).len(), before.len() + 1);
}

#[test]
fn a_move_goes_on_after_an_interruption_anywhere_and_a_second_one_adds_nothing() {
    let home = Home::new();
    let (mut replica, _) = hub(&home, 6_500);
    let mut subject = Subject::default();
    subject.messages.push((1, b"somebody else's".to_vec()));
    for most in [0, 1, 1, 2] {
        assert!(move_in(&replica, &mut subject, most).unwrap().is_none(), "interrupted");
    }
    // The hub was started again meanwhile.
    add(&mut replica, 6_500, 100);
    assert!(move_in(&replica, &mut subject, usize::MAX).unwrap().is_some());
    let messages = subject.messages.len();
    assert!(move_in(&replica, &mut subject, usize::MAX).unwrap().is_some());
    assert_eq!(subject.messages.len(), messages);
    let (new, before) = (Home::new(), log_of(&replica));
    let mut other = new.open();
    serve(&mut other, &mut subject, StreamId::random(), LogId::random());
    assert_eq!(log_of(&other), before);
}

#[test]
fn a_gateway_waits_until_all_is_moved() {
    let (old, new) = (Home::new(), Home::new());
    let (mut replica, log) = hub(&old, 3_000);
    let (stream, mut subject) = (StreamId::random(), Subject::default());
    assert!(move_in(&replica, &mut subject, 1).unwrap().is_none());
    let mut other = new.open();
    let mut gateway = serve(&mut other, &mut subject, stream, LogId::random());
    assert_eq!(gateway.judges(&other, subject.last()).unwrap(), Judges::MovingIn, "a level device is ahead of it");
    let moved = move_in(&replica, &mut subject, usize::MAX).unwrap().expect("all of it");
    let (after, digest) = level(&replica);
    moved.conclude(&mut replica, stream).unwrap();
    gateway.doubt();
    run(&mut gateway, &mut other, &mut subject);
    assert_eq!(gateway.judges(&other, subject.last()).unwrap(), Judges::Yes);
    Start::vouch(Some(&other), Some(log), after, digest).expect("it has the device's log");
}

#[test]
fn a_moved_log_whose_end_is_lost_for_good_goes_on_with_a_gateways_own_event() {
    let (old, new) = (Home::new(), Home::new());
    let (replica, log) = hub(&old, 3_000);
    let (stream, mut subject) = (StreamId::random(), Subject::default());
    assert!(move_in(&replica, &mut subject, 1).unwrap().is_none(), "nobody moves the rest");
    let mut other = new.open();
    let mut gateway = serve(&mut other, &mut subject, stream, LogId::random());
    assert_eq!(gateway.judges(&other, subject.last()).unwrap(), Judges::MovingIn);
    let (after, digest) = level(&other);
    other.commit(&[like(5_000)]).unwrap();
    run(&mut gateway, &mut other, &mut subject);
    assert_eq!(gateway.judges(&other, subject.last()).unwrap(), Judges::Yes);
    Start::vouch(Some(&other), Some(log), after, digest).expect("it has the log of a device that had as much");
    assert!(level(&other).0 > level(&replica).0, "behind all places that the hub gave");
}

#[test]
fn another_log_is_not_moved_over_the_one_that_is_there() {
    let (one, two) = (Home::new(), Home::new());
    let mut subject = Subject::default();
    let (first, _) = hub(&one, 10);
    move_in(&first, &mut subject, usize::MAX).unwrap().expect("all of it");
    let (second, _) = hub(&two, 10);
    let refused = move_in(&second, &mut subject, usize::MAX).unwrap_err();
    assert!(matches!(refused, MoveError::Differs(_)), "{refused}");
    subject.publish(subject.last(), Message::closing("hub.example.org").to_bytes()).unwrap();
    let refused = move_in(&first, &mut subject, usize::MAX).unwrap_err();
    assert!(matches!(&refused, MoveError::Closed(to) if to == "hub.example.org"), "{refused}");
    let follower = Home::new();
    let refused = MoveIn::new(&follower.follow()).unwrap_err();
    assert!(matches!(refused, MoveError::NotOwn), "{refused}");
}

#[test]
fn a_log_that_gateways_went_on_with_is_not_moved_behind_theirs() {
    let (old, new) = (Home::new(), Home::new());
    let (mut replica, _) = hub(&old, 2_500);
    let (stream, mut subject) = (StreamId::random(), Subject::default());
    move_in(&replica, &mut subject, usize::MAX).unwrap().expect("all of it");
    let mut other = new.open();
    serve(&mut other, &mut subject, stream, LogId::random());
    other.commit(&[like(1_000_000)]).unwrap();
    serve(&mut other, &mut subject, stream, LogId::random());
    assert!(move_in(&replica, &mut subject, usize::MAX).unwrap().is_some(), "all of it was there before");
    add(&mut replica, 2_500, 1);
    let messages = subject.messages.len();
    let refused = move_in(&replica, &mut subject, usize::MAX).unwrap_err();
    assert!(matches!(refused, MoveError::GoneOn(_)), "{refused}");
    assert_eq!(subject.messages.len(), messages, "nothing is published");
}

#[test]
fn a_log_that_went_through_a_stream_comes_out_as_a_hubs() {
    let (old, new) = (Home::new(), Home::new());
    let (replica, log) = hub(&old, 2_500);
    let (stream, mut subject) = (StreamId::random(), Subject::default());
    move_in(&replica, &mut subject, usize::MAX).unwrap().expect("all of it");
    let mut out = new.open();
    serve(&mut out, &mut subject, stream, LogId::random());
    out.commit(&[like(1_000_000)]).unwrap();
    let mut gateway = serve(&mut out, &mut subject, stream, LogId::random());
    subject.publish(subject.last(), Message::closing("hub.example.org").to_bytes()).unwrap();
    gateway.doubt();
    run(&mut gateway, &mut out, &mut subject);
    assert_eq!(out.closed().unwrap().as_deref(), Some("hub.example.org"));
    let (after, digest) = level(&out);
    let before = log_of(&out);
    out.promote().unwrap();
    assert_eq!(out.standing().unwrap().whose, Whose::Own(log));
    assert_eq!(log_of(&out), before);
    Start::vouch(Some(&out), Some(log), after, digest).expect("a level device stays level");
    assert!(stored(&out.commit(&[like(1_000_001)]).unwrap()));
    assert_eq!(log_of(&out).last().unwrap().seq, after.next());
}
