//! Gateways before a stream that loses messages, with devices that roam between them, driven by a seed.
//!
//! This file has the machines and the steps of a story. [`stream`] is the cluster that the gateways stand before, [`gate`]
//! carries out what they decide, [`sharing`] has what they share through a bucket, [`roaming`] has the devices' pulls and
//! pushes, [`faults`] has what breaks, and [`checks`] has the invariants.

mod checks;
mod faults;
mod gate;
mod roaming;
mod sharing;
mod stream;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::PathBuf;

use sharing::Access;
use stream::{Bucket, Stream, stream_id};

use super::cluster::{Story, Tally, WORKS, device, is_kept, log_of, open};
use super::scratch::Scratch;
use super::{Rng, Simulation, commits};
use crate::engine::{Envelope, EventId, LogId, Replica, Seq, StoreId, Whose};
use crate::sync::gateway::{Answered, Ends, Gateway, Home, MovingIn, Question, Sequence, log_in};
use crate::sync::{Push, Session, Start};

/// How many steps a story has before everything works again.
const STEPS: usize = 70;

/// A machine with a replica: a gateway or a device.
struct Machine {
    dir: PathBuf,
    /// None while its process is down.
    replica: Option<Replica>,
    is_cut_off: bool,
    /// All events that it has ever held. It must still hold each of them somewhere.
    held: Vec<Envelope>,
    /// The events committed here and nowhere else, in commit order.
    committed: Vec<EventId>,
    role: Role,
}

enum Role {
    Gate(Box<Gate>),
    Roamer(Box<Roamer>),
}

/// What a gateway's process has in memory, and what it shares with others, which is on its disk.
#[derive(Default)]
struct Gate {
    gateway: Option<Gateway>,
    access: Access,
    /// Whether its process has heard the bucket.
    is_heard: bool,
    /// The number of the last run that its store was told of.
    seen: u64,
    /// It found that the stream had lost something. This is the number of the run at that time.
    lost: Option<u64>,
    /// Counts its processes and connections. What comes late for an earlier one has no effect.
    life: u64,
    /// The publication whose outcome is under way.
    outstanding: Option<u64>,
    /// Answers to pushes whose devices may still wait.
    answered: Vec<Answered>,
}

/// What a device's process has in memory.
#[derive(Default)]
struct Roamer {
    pull: Option<Pull>,
    /// Whether the last page announced another one.
    is_between_pages: bool,
    /// It is of a version that doesn't say what it has of the log.
    is_old: bool,
}

/// A pull stream of a device.
struct Pull {
    gate: usize,
    life: u64,
    session: Session,
    start: Start,
    sent: Seq,
    /// The places that were answered for events that haven't come yet.
    answered: Vec<(EventId, Seq)>,
}

/// A publication on its way to the stream, perhaps for the second time.
struct Publishing {
    expected: Sequence,
    bytes: Vec<u8>,
}

/// An answer on its way to a gateway.
struct Late {
    gate: usize,
    life: u64,
    what: Outcomes,
}

enum Outcomes {
    Heard(Question, Ends),
    Acknowledged(u64, Sequence),
    Refused(u64, Sequence),
}

pub(super) struct Gateways<'s> {
    simulation: &'s Simulation,
    rng: Rng,
    scratch: Scratch,
    dirs: u32,
    store: StoreId,
    stream: Stream,
    /// The id of the log if it was moved into the stream.
    moved: Option<LogId>,
    bucket: Bucket,
    machines: Vec<Machine>,
    /// Publications that arrive later, or never.
    in_flight: Vec<Publishing>,
    late: Vec<Late>,
    /// Copies of pushes that the network delivers later, or never.
    delayed: Vec<(usize, Push)>,
    backups: Vec<(PathBuf, Access)>,
    acknowledged: Vec<Envelope>,
    /// Events whose order can't be kept: the stream lost them, and kept what came later.
    excused: BTreeSet<EventId>,
    has_lost: bool,
    streams: u64,
    /// Counts the runs, so that a seed tells the same story each time.
    runs: Cell<u64>,
    /// The hashes of all tokens, as long as some gateway or the bucket knows them.
    tokens: BTreeSet<String>,
    /// Those of them that were revoked, as long as some gateway or the bucket knows that.
    revoked: BTreeSet<String>,
    /// Goes up with each change of tokens.
    now: u64,
    tally: Tally,
}

impl<'s> Gateways<'s> {
    /// Tells the story of one seed to its end. Panics when something doesn't hold.
    pub(super) fn tell(simulation: &'s Simulation, seed: u64) -> Story {
        let mut story = Self::new(simulation, seed);
        for _ in 0..STEPS {
            story.step();
        }
        story.heal();
        let mut log = story.agree();
        if !story.newcomer_agrees(&log) {
            story.heal();
            log = story.agree();
        }
        story.roam();
        if story.rng.chance(25) {
            story.move_out();
        }
        Story { log, tally: story.tally }
    }

    fn new(simulation: &'s Simulation, seed: u64) -> Self {
        let mut story = Self {
            simulation,
            rng: Rng::new(seed),
            scratch: Scratch::new(),
            dirs: 0,
            store: "likes".parse().expect("BUG: a store"),
            stream: Stream::new(stream_id(1)),
            moved: None,
            bucket: Bucket::default(),
            machines: Vec::new(),
            in_flight: Vec::new(),
            late: Vec::new(),
            delayed: Vec::new(),
            backups: Vec::new(),
            acknowledged: Vec::new(),
            excused: BTreeSet::new(),
            has_lost: false,
            streams: 1,
            runs: Cell::new(0),
            tokens: BTreeSet::new(),
            revoked: BTreeSet::new(),
            now: 0,
            tally: Tally::new(),
        };
        if story.rng.chance(30) {
            story.move_in();
        }
        for _ in 0..2 + story.rng.below(2) {
            story.add(true);
        }
        for _ in 0..2 + story.rng.below(2) {
            story.add(false);
        }
        story
    }

    fn new_dir(&mut self) -> PathBuf {
        self.dirs += 1;
        self.scratch.path().join(self.dirs.to_string())
    }

    /// Adds a gateway or a device that was alone until now.
    fn add(&mut self, is_gate: bool) {
        let dir = self.new_dir();
        let mut replica = open(self.simulation, &dir).expect(WORKS);
        let events = self.some_events();
        let outcomes = replica.commit(&events).expect(WORKS);
        let alone: Vec<_> = events.into_iter().zip(outcomes).filter(|(_, outcome)| is_kept(outcome)).collect();
        let committed = alone.iter().map(|(event, _)| event.id).collect();
        self.acknowledged.extend(alone.into_iter().map(|(event, _)| event));
        replica.follow().expect(WORKS);
        let is_old = self.rng.chance(25);
        let role = if is_gate {
            Role::Gate(Box::default())
        } else {
            Role::Roamer(Box::new(Roamer { is_old, ..Roamer::default() }))
        };
        self.push_machine(Machine {
            dir,
            replica: Some(replica),
            is_cut_off: false,
            held: Vec::new(),
            committed,
            role,
        });
    }

    fn push_machine(&mut self, machine: Machine) {
        self.machines.push(machine);
        self.look_at(self.machines.len() - 1);
    }

    /// Begins with a hub and its device, and moves the hub's store into the stream. The hub becomes a gateway.
    fn move_in(&mut self) {
        let (dir, of_device) = (self.new_dir(), self.new_dir());
        let mut hub = open(self.simulation, &dir).expect(WORKS);
        for _ in 0..1 + self.rng.below(4) {
            let events: Vec<_> = self.some_events().into_iter().map(|event| (event, device("before"))).collect();
            hub.add(&events).expect(WORKS);
        }
        let log = log_of(&hub);
        let standing = hub.standing().expect(WORKS);
        let Whose::Own(id) = standing.whose else { panic!("it is a hub") };
        let mut follower = open(self.simulation, &of_device).expect(WORKS);
        follower.follow().expect(WORKS);
        let pulled = self.rng.below(log.len() + 1);
        if pulled > 0 {
            let page = crate::engine::Page { next: log[pulled - 1].seq, entries: log[..pulled].to_vec(), more: false };
            follower.meet(id).expect(WORKS);
            follower.arrive(&page).expect(WORKS);
        }
        let (mut moving, mut done, mut last) = (MovingIn::new(id, standing.head), 0, 0);
        // Small pieces make more messages.
        let piece = 1 + self.rng.below(4);
        while let Some((message, count)) = moving.next(&log[done..(done + piece).min(log.len())]) {
            if self.rng.chance(20) {
                self.stream.publish_elsewhere();
            }
            last = self.stream.publish(last, &message.to_bytes()).expect("nobody else publishes");
            done += count;
        }
        hub.follow_stream(self.stream.id, id).expect(WORKS);
        if done > 0 {
            self.moved = Some(id);
            self.acknowledged.extend(log.into_iter().map(|entry| entry.event));
        }
        let machine = |dir, replica, role| Machine {
            dir,
            replica: Some(replica),
            is_cut_off: false,
            held: Vec::new(),
            committed: Vec::new(),
            role,
        };
        if done > 0 {
            self.push_machine(machine(dir, hub, Role::Gate(Box::default())));
            let before = follower.position().expect(WORKS);
            self.push_machine(machine(of_device, follower, Role::Roamer(Box::default())));
            // The device notices nothing.
            assert!(self.connect_to(1, 0, false), "the device can go on with a gateway");
            let after = self.replica(1).position().expect(WORKS);
            assert_eq!(before.generation, after.generation, "its places are still those of the log");
        }
    }

    fn home(&self, at: usize) -> Home {
        let log = self.moved.unwrap_or_else(|| log_in(self.stream.id, &self.store));
        Home { stream: self.stream.id, store: self.store.clone(), log, device: device(&format!("gate-{at}")) }
    }

    fn some_events(&mut self) -> Vec<Envelope> {
        commits::some_events(self.simulation, &mut self.rng)
    }

    fn new_event(&mut self) -> Envelope {
        commits::new_event(self.simulation, &mut self.rng)
    }

    fn step(&mut self) {
        let at = self.rng.below(self.machines.len());
        let is_gate = self.is_gate(at);
        match self.rng.below(100) {
            0..=19 => self.commit(at),
            20..=49 if is_gate => self.work_some(at),
            20..=32 => self.pull(at),
            33..=49 => self.push(at),
            50..=55 => self.poll_some_bucket(),
            56..=61 => self.deliver_something(),
            62..=65 => self.crash(at),
            66..=69 => self.cut_power(at),
            70..=73 => self.cut_off(at),
            74..=75 => self.back_up(at),
            76..=77 => self.restore(at),
            78 => self.clone_machine(at),
            79..=82 => self.forget_tail(),
            83..=84 => self.damage(),
            85 if self.rng.chance(25) => self.recreate_stream(),
            85..=86 => self.bucket_forgets(),
            87..=89 => self.stream.publish_elsewhere(),
            90 => self.publish_junk(),
            91..=92 => self.change_token(at),
            _ if is_gate => self.work_some(at),
            _ => self.push(at),
        }
        self.look_at(at);
    }

    /// Commits at a machine: mostly new events, sometimes a known event again, or another event under a known id.
    fn commit(&mut self, at: usize) {
        let (events, known) = commits::choose(self.simulation, &mut self.rng, &self.acknowledged);
        if let Some(known) = known {
            self.machines.iter_mut().for_each(|machine| machine.committed.retain(|id| *id != known));
        }
        let Some(replica) = self.machines[at].replica.as_mut() else { return };
        let outcomes = replica.commit(&events).expect(WORKS);
        let committed = commits::note(events, outcomes, &mut self.acknowledged, &mut self.tally);
        self.machines[at].committed.extend(committed);
    }

    fn is_gate(&self, at: usize) -> bool {
        matches!(self.machines[at].role, Role::Gate(_))
    }

    fn gates(&self) -> Vec<usize> {
        (0..self.machines.len()).filter(|at| self.is_gate(*at)).collect()
    }

    fn gate(&mut self, at: usize) -> &mut Gate {
        match &mut self.machines[at].role {
            Role::Gate(gate) => gate,
            Role::Roamer(_) => panic!("BUG: a device is no gateway"),
        }
    }

    fn roamer(&mut self, at: usize) -> &mut Roamer {
        match &mut self.machines[at].role {
            Role::Roamer(roamer) => roamer,
            Role::Gate(_) => panic!("BUG: a gateway is no device"),
        }
    }

    fn replica(&mut self, at: usize) -> &mut Replica {
        self.machines[at].replica.as_mut().expect(WORKS)
    }

    /// Returns a gateway that is up, with its replica and its other memory.
    fn running(&mut self, at: usize) -> Option<(&mut Replica, &mut Gate)> {
        let Machine { replica, role, .. } = &mut self.machines[at];
        match role {
            Role::Gate(gate) => replica.as_mut().map(|replica| (replica, &mut **gate)),
            Role::Roamer(_) => None,
        }
    }
}
