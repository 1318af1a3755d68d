//! Many replicas and one authority over a bad network, driven by a seed: the same seed, the same story.
//!
//! `LIKEWISE_SEEDS=100000 cargo test --release --test engine simulation` runs many of them, `LIKEWISE_SEED=…` one.

use std::collections::BTreeSet;
use std::fs;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use likewise::engine::{Entry, Envelope, EventId, Fault, Files, Outcome, Replica, Schema, Seq, Whose};
use likewise::sync::{
    End, Hello, Incoming, Outgoing, Point, Push, PushAnswer, Pushed, Refusal, Session, Start, WireEntry, WirePage,
    repair,
};
use rusqlite::ffi;
use tempfile::TempDir;

use crate::bad_sync::{Syncs, while_syncs_fail};
use crate::ledger;
use crate::support::*;

/// How many seeds an ordinary run takes.
const SEEDS: u64 = 2_000;

#[test]
fn trust_14_whatever_the_network_and_the_machines_do_all_replicas_agree_in_the_end() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    let seeds = match (number("LIKEWISE_SEED"), number("LIKEWISE_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, seeds) => 0..seeds.unwrap_or(SEEDS),
    };
    let (next, has_failed) = (AtomicU64::new(seeds.start), AtomicBool::new(false));
    let failed_syncs = AtomicU64::new(0);
    let run = || {
        while !has_failed.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            let _story = Story(seed, &has_failed);
            let mut cluster = Cluster::new(seed);
            for _ in 0..60 {
                cluster.step();
            }
            cluster.heal();
            failed_syncs.fetch_add(cluster.failed_syncs, Ordering::Relaxed);
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(run);
        }
    });
    // A single seed may have none.
    assert!(seeds.end - seeds.start < SEEDS || failed_syncs.into_inner() > 0, "no sync has failed");
}

/// Says how to see a failure again.
struct Story<'a>(u64, &'a AtomicBool);

impl Drop for Story<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.1.store(true, Ordering::Relaxed);
            eprintln!("to see it again: LIKEWISE_SEED={} cargo test --test engine simulation", self.0);
        }
    }
}

/// What is simulated: events, what they mean, and what has to hold after every step.
struct World {
    schema: fn() -> Schema,
    event: fn(&mut Rng) -> Envelope,
    check: fn(&Replica, &Path),
    /// The part of it that also holds between the pages of a pull.
    check_between_pages: fn(&Replica, &Path),
}

const BANK: World = World { schema: bank, event: random_event, check, check_between_pages: check_files };

/// Without a model in plain Rust; what it comes to is compared with a replay, now and then and in the end.
const LEDGER: World = World {
    schema: ledger::schema,
    event: ledger::random_event,
    check: |replica, _| check_places(replica),
    check_between_pages: |replica, _| check_places(replica),
};

/// One pull stream.
struct Stream {
    /// The authority's run that it speaks to.
    run: u64,
    session: Session,
    /// What the authority remembers of it.
    start: Start,
    /// How far it has sent its log.
    sent: Seq,
}

struct Node {
    dir: PathBuf,
    /// None while its process is down.
    replica: Option<Replica>,
    stream: Option<Stream>,
    is_cut_off: bool,
    /// Whether the last page said that more are waiting, so that queries lag behind the log.
    is_between_pages: bool,
    /// What it has to hold, in whatever place: all it ever held.
    held: Vec<Envelope>,
    /// What was committed here and nowhere else, in that order.
    committed: Vec<EventId>,
    /// What it had earlier, of which a power cut may leave what was never synced.
    earlier: Option<PathBuf>,
}

impl Node {
    fn new(dir: PathBuf, replica: Replica) -> Self {
        Self {
            dir,
            replica: Some(replica),
            stream: None,
            is_cut_off: false,
            is_between_pages: false,
            held: Vec::new(),
            committed: Vec::new(),
            earlier: None,
        }
    }
}

/// Something that a node writes.
enum Deed {
    Commit([Envelope; 2]),
    Arrive(Box<Stream>, WirePage),
    TakeBack(Seq),
    Settle,
}

impl Deed {
    /// Does it, and gives what became of the events to be committed.
    fn run(&mut self, replica: &mut Replica) -> Result<Vec<Outcome>, Fault> {
        match self {
            Self::Commit(events) => return replica.commit(events.as_slice()),
            Self::Arrive(stream, page) => {
                assert_eq!(stream.session.arrive(replica, page.clone())?, Ok(()), "nobody else changes the log");
            }
            Self::TakeBack(back) => replica.take_back(*back, Whose::Upstream(None))?,
            Self::Settle => replica.settle()?,
        }
        Ok(Vec::new())
    }
}

/// A push on its way.
#[derive(Clone)]
struct Letter {
    from: usize,
    push: Push,
}

struct Cluster {
    world: &'static World,
    rng: Rng,
    scratch: TempDir,
    dirs: u32,
    authority: Option<Replica>,
    authority_dir: PathBuf,
    authority_earlier: Option<PathBuf>,
    /// New whenever the authority starts.
    run: u64,
    backups: Vec<PathBuf>,
    nodes: Vec<Node>,
    /// Copies of pushes that the network delivers some time, or never.
    delayed: Vec<Letter>,
    /// The places on the wire are this many times the authority's own, so that there are gaps.
    stride: u64,
    /// What was acknowledged and no restored backup has undone.
    acknowledged: Vec<Envelope>,
    /// How often something failed because a sync did.
    failed_syncs: u64,
}

impl Cluster {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let scratch = scratch();
        let authority_dir = scratch.path().join("authority");
        let world = if seed % 4 == 3 { &LEDGER } else { &BANK };
        let authority = open(world, &authority_dir).unwrap();
        let stride = 1 + rng.next() % 3;
        let mut cluster = Self {
            world,
            rng,
            scratch,
            dirs: 0,
            authority: Some(authority),
            authority_dir,
            authority_earlier: None,
            run: 1,
            backups: Vec::new(),
            nodes: Vec::new(),
            delayed: Vec::new(),
            stride,
            acknowledged: Vec::new(),
            failed_syncs: 0,
        };
        for _ in 0..2 + cluster.rng.below(2) {
            cluster.add_node();
        }
        cluster
    }

    fn new_dir(&mut self) -> PathBuf {
        self.dirs += 1;
        self.scratch.path().join(self.dirs.to_string())
    }

    fn add_node(&mut self) {
        let dir = self.new_dir();
        let mut replica = open(self.world, &dir).unwrap();
        // Some have worked alone before they were given an upstream.
        let events = self.some_events();
        let outcomes = replica.commit(&events).unwrap();
        let alone: Vec<_> = events.into_iter().zip(outcomes).filter(|(_, outcome)| is_kept(outcome)).collect();
        let committed = alone.iter().map(|(event, _)| event.id).collect();
        self.acknowledged.extend(alone.into_iter().map(|(event, _)| event));
        replica.take_back(Seq::START, Whose::Upstream(None)).unwrap();
        self.nodes.push(Node { committed, ..Node::new(dir, replica) });
        self.look_at(self.nodes.len() - 1);
    }

    fn some_events(&mut self) -> Vec<Envelope> {
        (0..self.rng.below(4)).map(|_| (self.world.event)(&mut self.rng)).collect()
    }

    fn step(&mut self) {
        let at = self.rng.below(self.nodes.len());
        match self.rng.below(100) {
            0..=28 => self.commit(at),
            29 if self.rng.chance(30) => self.failed_sync_at_authority(at),
            29 => self.failed_sync(at),
            30..=34 => self.commit_at_authority(),
            35..=59 => self.pull(at),
            60..=76 => self.push(at),
            77..=79 => self.deliver_delayed(),
            80..=81 => self.crash(at),
            82..=84 => self.cut_power(at),
            85 => self.clone_node(at),
            86..=87 => self.restore_node(at),
            88..=90 => self.nodes[at].is_cut_off ^= true,
            91 => self.drop_stream(at),
            92..=94 => self.back_up_authority(),
            95 => self.restart_authority(None),
            96 => self.cut_power_of_authority(),
            97 if self.rng.chance(15) => self.recreate_authority(),
            97 => self.restore_authority(),
            _ if self.rng.chance(25) => self.machine_fault_at_authority(),
            _ => self.machine_fault(at),
        }
        self.look_at(at);
    }

    /// Commits at a node: mostly new events, now and then one again, or another one under a known id.
    fn commit(&mut self, at: usize) {
        let mut events = self.some_events();
        if self.rng.chance(20) && !self.acknowledged.is_empty() {
            let mut known = self.rng.pick(&self.acknowledged).clone();
            if self.rng.chance(30) {
                let other = (self.world.event)(&mut self.rng);
                known = Envelope { id: known.id, ..other };
            }
            // Where it stands is another's business from now on.
            self.nodes.iter_mut().for_each(|node| node.committed.retain(|id| *id != known.id));
            events.push(known);
        }
        let known: Vec<_> = self.acknowledged.iter().map(|event| event.id).collect();
        let Some(replica) = self.nodes[at].replica.as_mut() else { return };
        let outcomes = replica.commit(&events).unwrap();
        for (event, outcome) in events.into_iter().zip(outcomes) {
            if is_kept(&outcome) && !self.acknowledged.contains(&event) {
                if !known.contains(&event.id) {
                    self.nodes[at].committed.push(event.id);
                }
                self.acknowledged.push(event);
            }
        }
    }

    fn commit_at_authority(&mut self) {
        let events = self.some_events();
        let outcomes = self.authority().commit(&events).unwrap();
        let kept = events.into_iter().zip(outcomes).filter(|(_, outcome)| is_kept(outcome));
        self.acknowledged.extend(kept.map(|(event, _)| event));
        self.look_at_authority();
    }

    fn authority(&mut self) -> &mut Replica {
        self.authority.as_mut().unwrap()
    }

    /// The authority's log as it stands on the wire after a place there, with gaps, and here and there an event for the
    /// second time. None when the stream is no longer of the log that it began with.
    fn wire(&mut self, start: &mut Start, after: Seq, limit: usize) -> Option<Option<WirePage>> {
        let stride = self.stride;
        let page = start.page(self.authority(), Seq(after.0 / stride)).unwrap()?;
        let Some(mut page) = page else { return Some(None) };
        page.more |= page.events.len() > limit;
        page.events.truncate(limit);
        page.events.iter_mut().for_each(|entry| entry.seq.0 *= stride);
        if stride > 1 {
            let again: Vec<WireEntry> = page
                .events
                .iter()
                .filter(|entry| entry.seq.0 % 5 == 0)
                .map(|entry| WireEntry { seq: Seq(entry.seq.0 + 1), ..entry.clone() })
                .collect();
            page.events.extend(again);
            page.events.sort_by_key(|entry| entry.seq);
        }
        page.next = page.events.last().unwrap().seq;
        Some(Some(page))
    }

    /// Has a stream to the run that the authority is in, made now if need be: says hello, and repairs what diverged.
    /// False when the node stays without.
    fn connect(&mut self, at: usize) -> bool {
        if self.nodes[at].is_cut_off || self.nodes[at].replica.is_none() {
            self.drop_stream(at);
            return false;
        }
        if self.nodes[at].stream.as_ref().is_some_and(|stream| stream.run == self.run) {
            return true;
        }
        self.drop_stream(at);
        for _ in 0..2 {
            let position = self.replica(at).position().unwrap();
            let after = Seq(position.after.0 / self.stride);
            match Start::vouch(Some(self.authority()), position.log, after, position.digest).unwrap() {
                Ok(start) => {
                    let hello = start.hello(&run_id(self.run));
                    let hello = Hello { head: Seq(hello.head.0 * self.stride), ..hello };
                    let session = Session::begin(Some(position), hello).expect("the authority has vouched for its log");
                    let stream = Stream { run: self.run, session, start, sent: position.after };
                    self.nodes[at].stream = Some(stream);
                    return true;
                }
                Err(Refusal::Diverged { points, .. }) => self.repair(at, points),
                // The authority was made anew: it has to be adopted.
                Err(Refusal::WrongLog) => return false,
                Err(other) => panic!("{other:?}"),
            }
        }
        panic!("what is repaired is vouched for");
    }

    fn repair(&mut self, at: usize, points: Vec<Point>) {
        let stride = self.stride;
        let points: Vec<_> =
            points.into_iter().map(|point| Point { seq: Seq(point.seq.0 * stride), ..point }).collect();
        let replica = self.replica(at);
        let before = ids_of(replica);
        repair(replica, &points).unwrap();
        assert_eq!(ids_of(replica), before, "what is taken back keeps its place before what is newer");
        self.look_at(at);
    }

    fn replica(&mut self, at: usize) -> &mut Replica {
        self.nodes[at].replica.as_mut().unwrap()
    }

    fn drop_stream(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        node.stream = None;
        if let Some(replica) = node.replica.as_mut().filter(|_| node.is_between_pages) {
            replica.settle().unwrap();
            node.is_between_pages = false;
        }
    }

    fn pull(&mut self, at: usize) {
        if !self.connect(at) {
            return;
        }
        let limit = 1 + self.rng.below(7);
        for _ in 0..=self.rng.below(4) {
            if self.pull_page(at, limit) {
                break;
            }
            self.look_at(at);
        }
        if self.rng.chance(20) {
            self.drop_stream(at);
        }
    }

    /// Pulls one page. True when there was none, or the stream is over.
    fn pull_page(&mut self, at: usize, limit: usize) -> bool {
        let Some(mut stream) = self.nodes[at].stream.take() else { return true };
        let Some(page) = self.wire(&mut stream.start, stream.sent, limit) else {
            self.drop_stream(at);
            return true;
        };
        let Some(page) = page else {
            self.nodes[at].stream = Some(stream);
            return true;
        };
        stream.sent = page.next;
        let more = page.more;
        let node = &mut self.nodes[at];
        let arrived = stream.session.arrive(node.replica.as_mut().unwrap(), page).unwrap();
        assert_eq!(arrived, Ok(()), "nobody else changes the log");
        node.is_between_pages = more;
        node.stream = Some(stream);
        false
    }

    fn push(&mut self, at: usize) {
        if !self.connect(at) {
            return;
        }
        let limit = 1 + self.rng.below(5);
        for _ in 0..=self.rng.below(3) {
            if !self.push_some(at, limit) {
                break;
            }
        }
    }

    /// Pushes what comes next, or as much of it as passes. False when there is nothing, or no answer came.
    fn push_some(&mut self, at: usize, limit: usize) -> bool {
        let Some(mut outgoing) = self.next_push(at) else { return false };
        while outgoing.ids().len() > limit {
            let too_much = match self.rng.below(2) {
                0 => PushAnswer::TooLarge,
                _ => PushAnswer::TooMuch(End::Offline("too slow".to_owned())),
            };
            if self.rng.chance(30) {
                // It came too late to be answered in time.
                self.delayed.push(Letter { from: at, push: outgoing.push.clone() });
            }
            assert_eq!(self.answer(at, &outgoing, too_much), Ok(()), "it can be less");
            outgoing = self.next_push(at).expect("what was too much is still there");
        }
        let letter = Letter { from: at, push: outgoing.push.clone() };
        match self.rng.below(10) {
            // Lost on its way, or late, perhaps after its own repetition.
            0 => return self.hears_nothing(at),
            1 => {
                self.delayed.push(letter);
                return self.hears_nothing(at);
            }
            // The answer is lost.
            2 => {
                self.deliver(letter).expect("the stream is of this run");
                return self.hears_nothing(at);
            }
            // Twice, and once more some time.
            3 => {
                self.deliver(letter.clone()).expect("the stream is of this run");
                self.delayed.push(letter.clone());
            }
            _ => {}
        }
        let pushed = self.deliver(letter).expect("the stream is of this run");
        assert_eq!(self.answer(at, &outgoing, PushAnswer::Pushed(pushed)), Ok(()));
        self.look_at(at);
        true
    }

    /// No answer comes to a push: mostly the session ends with it.
    fn hears_nothing(&mut self, at: usize) -> bool {
        if self.rng.chance(70) {
            self.drop_stream(at);
        }
        false
    }

    fn next_push(&mut self, at: usize) -> Option<Outgoing> {
        let node = &mut self.nodes[at];
        let session = &mut node.stream.as_mut()?.session;
        session.next_push(node.replica.as_ref().unwrap()).unwrap().expect("nobody else changes the log")
    }

    fn answer(&mut self, at: usize, outgoing: &Outgoing, answer: PushAnswer) -> Result<(), End> {
        let node = &mut self.nodes[at];
        let session = &mut node.stream.as_mut().unwrap().session;
        session.answer(node.replica.as_mut().unwrap(), outgoing, answer).unwrap()
    }

    /// Hands a push to the authority.
    fn deliver(&mut self, letter: Letter) -> Result<Pushed, Refusal> {
        let device = device(&format!("node-{}", letter.from));
        let incoming = Incoming::check(letter.push, &run_id(self.run), &device)?;
        let pushed = incoming.store(Some(self.authority())).unwrap();
        self.look_at_authority();
        pushed
    }

    fn deliver_delayed(&mut self) {
        if !self.delayed.is_empty() {
            let nth = self.rng.below(self.delayed.len());
            let letter = self.delayed.remove(nth);
            match self.deliver(letter) {
                Ok(_) | Err(Refusal::PullFirst | Refusal::WrongLog) => {}
                Err(refusal) => panic!("{refusal:?}"),
            }
        }
    }

    /// Kills the process of a node, and mostly starts it again.
    fn crash(&mut self, at: usize) {
        let next = self.new_dir();
        let stays_down = self.rng.chance(30);
        let node = &mut self.nodes[at];
        let was_up = node.replica.is_some();
        if was_up {
            copy_dir(&node.dir, &next);
            node.replica = None;
            fs::remove_dir_all(&node.dir).unwrap();
            node.dir = next;
        }
        node.stream = None;
        node.is_between_pages = false;
        if !was_up || !stays_down {
            node.replica = Some(open(self.world, &node.dir).unwrap());
        }
    }

    /// The power of a node is cut while it writes something, of which nobody hears whether it was stored.
    fn cut_power(&mut self, at: usize) {
        if self.nodes[at].replica.is_none() {
            return;
        }
        let mut deed = self.choose_deed(at);
        let before = self.new_dir();
        let node = &mut self.nodes[at];
        copy_dir(&node.dir, &before);
        deed.run(node.replica.as_mut().unwrap()).unwrap();
        let after = self.new_dir();
        let left = self.new_dir();
        let node = &mut self.nodes[at];
        copy_dir(&node.dir, &after);
        let earlier = if self.rng.chance(30) { node.earlier.take() } else { None };
        leave_after_power_cut(&mut self.rng, &before, &after, earlier.as_deref(), &left);
        node.replica = None;
        node.stream = None;
        node.is_between_pages = false;
        fs::remove_dir_all(&node.dir).unwrap();
        node.dir = left;
        node.replica = Some(open(self.world, &node.dir).unwrap());
        if self.rng.chance(50) {
            node.earlier = Some(before);
        }
    }

    /// What a node, which is up, writes next. It has no stream then, and may be between two pages.
    fn choose_deed(&mut self, at: usize) -> Deed {
        let page = self.next_page(at);
        match (self.rng.below(5), page) {
            (0 | 1, Some((stream, page))) => Deed::Arrive(Box::new(stream), page),
            (2, _) => {
                let head = self.replica(at).standing().unwrap().head;
                Deed::TakeBack(Seq(self.rng.next() % (head.0 + 1)))
            }
            (3, _) => Deed::Settle,
            _ => Deed::Commit([(self.world.event)(&mut self.rng), (self.world.event)(&mut self.rng)]),
        }
    }

    /// Notes what came of events that were committed at a node, and at no other. Some may have been stored without an
    /// answer before. Those come first: what was refused next to them is judged again, and stands behind them if it passes.
    fn acknowledge(&mut self, at: usize, events: &[Envelope], outcomes: &[Outcome]) {
        let kept = events.iter().zip(outcomes).filter(|(_, outcome)| is_kept(outcome));
        let (known, new): (Vec<_>, Vec<_>) = kept.partition(|(_, outcome)| matches!(outcome, Outcome::Known(_)));
        for (event, _) in known.into_iter().chain(new) {
            self.nodes[at].committed.push(event.id);
            self.acknowledged.push(event.clone());
        }
    }

    /// Syncs fail while a node writes something. Then the process opens the store again: with all that it wrote, as the
    /// page cache still has it; without some of it, because that was forgotten; or after a power cut on top of it.
    fn failed_sync(&mut self, at: usize) {
        if self.nodes[at].replica.is_none() {
            return;
        }
        let mut deed = self.choose_deed(at);
        let before = self.new_dir();
        copy_dir(&self.nodes[at].dir, &before);
        let which = self.choose_syncs(&self.nodes[at].dir.clone());
        let node = &mut self.nodes[at];
        let result = while_syncs_fail(&which, || deed.run(node.replica.as_mut().unwrap()));
        self.failed_syncs += u64::from(result.is_err());
        let earlier = self.nodes[at].earlier.take();
        let left = self.leave_after_failed_sync(&which, &before, &self.nodes[at].dir.clone(), earlier.as_deref());
        self.nodes[at].replica = None;
        let replica = self.open_on_bad_disk(&left);
        let node = &mut self.nodes[at];
        fs::remove_dir_all(&node.dir).unwrap();
        node.dir = left;
        node.replica = Some(replica);
        node.stream = None;
        node.is_between_pages = false;
        let Deed::Commit(events) = deed else { return };
        match result {
            Ok(outcomes) => self.acknowledge(at, &events, &outcomes),
            // Whoever got no answer posts the same again.
            Err(_) if self.rng.chance(50) => {
                self.look_at(at);
                let outcomes = self.replica(at).commit(&events).unwrap();
                self.acknowledge(at, &events, &outcomes);
            }
            Err(_) => {}
        }
    }

    /// The same at the authority, while a node pushes to it or it commits events of its own.
    fn failed_sync_at_authority(&mut self, at: usize) {
        let outgoing = if self.connect(at) { self.next_push(at) } else { None };
        let events = self.some_events();
        let before = self.new_dir();
        copy_dir(&self.authority_dir, &before);
        let which = self.choose_syncs(&self.authority_dir.clone());
        let (run, device) = (run_id(self.run), device(&format!("node-{at}")));
        match outgoing {
            Some(outgoing) => {
                let incoming =
                    Incoming::check(outgoing.push.clone(), &run, &device).expect("the stream is of this run");
                let authority = self.authority();
                match while_syncs_fail(&which, || incoming.store(Some(authority))) {
                    Ok(pushed) => {
                        let pushed = PushAnswer::Pushed(pushed.expect("nobody else changes the log"));
                        assert_eq!(self.answer(at, &outgoing, pushed), Ok(()));
                    }
                    Err(_) => self.failed_syncs += 1,
                }
            }
            None => {
                let authority = self.authority();
                match while_syncs_fail(&which, || authority.commit(&events)) {
                    Ok(outcomes) => {
                        let kept = events.into_iter().zip(outcomes).filter(|(_, outcome)| is_kept(outcome));
                        self.acknowledged.extend(kept.map(|(event, _)| event));
                    }
                    Err(_) => self.failed_syncs += 1,
                }
            }
        }
        let earlier = self.authority_earlier.take();
        let left = self.leave_after_failed_sync(&which, &before, &self.authority_dir.clone(), earlier.as_deref());
        self.authority = None;
        drop(self.open_on_bad_disk(&left));
        self.restart_authority(Some(left));
        // Whatever the network does, a process that has ended ends its streams.
        self.drop_stream(at);
    }

    /// Mostly the syncs of the eventlog of the store in `dir` fail, and otherwise those of whatever else is made.
    fn choose_syncs(&mut self, dir: &Path) -> Syncs {
        let wal = dir.join("eventlog.db-wal");
        match self.rng.below(4) {
            0 => Syncs::All,
            1 => Syncs::AllBut(wal),
            _ => Syncs::Of(wal),
        }
    }

    /// What is there to be opened again after such syncs have failed between `before` and `after`.
    fn leave_after_failed_sync(
        &mut self,
        which: &Syncs,
        before: &Path,
        after: &Path,
        earlier: Option<&Path>,
    ) -> PathBuf {
        let left = self.new_dir();
        match self.rng.below(3) {
            // The eventlog is on the disk, or at least in the page cache.
            _ if matches!(which, Syncs::AllBut(_)) => copy_dir(after, &left),
            0 => copy_dir(after, &left),
            1 => leave_after_power_cut(&mut self.rng, before, after, Some(after), &left),
            _ => leave_after_power_cut(&mut self.rng, before, after, earlier, &left),
        }
        left
    }

    /// Opens the store in `dir`, perhaps after a first try whose syncs fail, too.
    fn open_on_bad_disk(&mut self, dir: &Path) -> Replica {
        if self.rng.chance(30) {
            let opened = while_syncs_fail(&Syncs::All, || open(self.world, dir));
            assert!(opened.is_err(), "it opened, and nothing that it found is known to be on the disk");
        }
        open(self.world, dir).unwrap()
    }

    /// The stream of a node, if it has one, with the page that would come next. The node is without it then.
    fn next_page(&mut self, at: usize) -> Option<(Stream, WirePage)> {
        if !self.connect(at) {
            return None;
        }
        let limit = 1 + self.rng.below(6);
        let mut stream = self.nodes[at].stream.take()?;
        let page = self.wire(&mut stream.start, stream.sent, limit).flatten()?;
        Some((stream, page))
    }

    /// The same at the authority.
    fn cut_power_of_authority(&mut self) {
        let (before, after, left) = (self.new_dir(), self.new_dir(), self.new_dir());
        copy_dir(&self.authority_dir, &before);
        let events = self.some_events();
        if self.rng.chance(50) {
            let pushed: Vec<_> = events.into_iter().map(|event| (event, device("elsewhere"))).collect();
            self.authority().add(&pushed).unwrap();
        } else {
            self.authority().commit(&events).unwrap();
        }
        copy_dir(&self.authority_dir, &after);
        let earlier = if self.rng.chance(30) { self.authority_earlier.take() } else { None };
        leave_after_power_cut(&mut self.rng, &before, &after, earlier.as_deref(), &left);
        self.restart_authority(Some(left));
        if self.rng.chance(50) {
            self.authority_earlier = Some(before);
        }
    }

    /// Somebody copies a data directory, and both go on.
    fn clone_node(&mut self, at: usize) {
        if self.nodes.len() >= 5 {
            return;
        }
        let dir = self.new_dir();
        let node = &self.nodes[at];
        copy_dir(&node.dir, &dir);
        let held = node.held.clone();
        let replica = open(self.world, &dir).unwrap();
        self.nodes.push(Node { held, ..Node::new(dir, replica) });
        self.look_at(self.nodes.len() - 1);
    }

    /// A node is set up anew from a copy of another, older or empty: what only it held is gone.
    fn restore_node(&mut self, at: usize) {
        let dir = self.new_dir();
        let from = self.rng.below(self.nodes.len());
        if from != at && self.rng.chance(50) {
            copy_dir(&self.nodes[from].dir, &dir);
        }
        let mut replica = open(self.world, &dir).unwrap();
        if let Whose::Own(_) = replica.standing().unwrap().whose {
            replica.take_back(Seq::START, Whose::Upstream(None)).unwrap();
        }
        let node = &mut self.nodes[at];
        node.replica = None;
        fs::remove_dir_all(&node.dir).unwrap();
        // Its new life has nothing of the earlier one.
        *node = Node { is_cut_off: node.is_cut_off, ..Node::new(dir, replica) };
        self.forget_what_nobody_holds();
    }

    fn back_up_authority(&mut self) {
        let dir = self.new_dir();
        copy_dir(&self.authority_dir, &dir);
        self.backups.push(dir);
    }

    /// Kills the authority and starts it, on its own files or on others.
    fn restart_authority(&mut self, from: Option<PathBuf>) {
        let next = self.new_dir();
        copy_dir(from.as_ref().unwrap_or(&self.authority_dir), &next);
        self.authority = None;
        fs::remove_dir_all(&self.authority_dir).unwrap();
        self.authority_dir = next;
        self.authority = Some(open(self.world, &self.authority_dir).unwrap());
        self.run += 1;
        self.look_at_authority();
    }

    fn restore_authority(&mut self) {
        if self.backups.is_empty() {
            return;
        }
        self.authority_earlier = None;
        let backup = self.rng.pick(&self.backups).clone();
        self.restart_authority(Some(backup));
        self.forget_what_nobody_holds();
    }

    /// Somebody deletes the authority's data, and starts it anew: another log, which its clients have to adopt.
    fn recreate_authority(&mut self) {
        self.authority_earlier = None;
        self.authority = None;
        fs::remove_dir_all(&self.authority_dir).unwrap();
        self.authority_dir = self.new_dir();
        self.authority = Some(open(self.world, &self.authority_dir).unwrap());
        self.run += 1;
        self.forget_what_nobody_holds();
    }

    /// The person at a node says that another log is meant to be its hub's from now on.
    fn adopt(&mut self, at: usize) {
        let replica = self.replica(at);
        let before = ids_of(replica);
        replica.take_back(Seq::START, Whose::Upstream(None)).unwrap();
        assert_eq!(ids_of(replica), before);
        self.look_at(at);
    }

    fn forget_what_nobody_holds(&mut self) {
        let mut held: Vec<Envelope> = log_of(self.authority()).into_iter().map(|entry| entry.event).collect();
        for node in &self.nodes {
            match &node.replica {
                Some(replica) => held.extend(all_of(replica)),
                None => held.extend(node.held.iter().cloned()),
            }
        }
        self.acknowledged.retain(|event| held.contains(event));
    }

    /// The machine fails in the middle of something; then the process starts anew.
    fn machine_fault(&mut self, at: usize) {
        if self.nodes[at].replica.is_none() {
            return;
        }
        let mut deed = self.choose_deed(at);
        fail_after(
            self.rng.next() as u32 % 8,
            *self.rng.pick(&[ffi::SQLITE_FULL, ffi::SQLITE_IOERR_FSYNC, ffi::SQLITE_NOMEM]),
        );
        let result = deed.run(self.replica(at));
        assert_eq!(result.is_ok(), mend(), "{result:?}");
        if let (Deed::Commit(events), Ok(outcomes)) = (deed, result) {
            self.acknowledge(at, &events, &outcomes);
        }
        // A fault is the end of the process, and what else happened is as good a moment for it.
        self.nodes[at].is_between_pages = false;
        self.crash(at);
        if self.nodes[at].replica.is_none() {
            self.crash(at);
        }
    }

    /// The same at the authority.
    fn machine_fault_at_authority(&mut self) {
        let events =
            [(self.world.event)(&mut self.rng), (self.world.event)(&mut self.rng), (self.world.event)(&mut self.rng)];
        let is_pushed = self.rng.chance(50);
        let after = self.rng.next() as u32 % 4;
        fail_after(after, *self.rng.pick(&[ffi::SQLITE_FULL, ffi::SQLITE_IOERR_FSYNC, ffi::SQLITE_NOMEM]));
        let result = if is_pushed {
            let pushed: Vec<_> = events.iter().map(|event| (event.clone(), device("elsewhere"))).collect();
            self.authority().add(&pushed)
        } else {
            self.authority().commit(&events)
        };
        assert_eq!(result.is_ok(), mend(), "{result:?}");
        if let Ok(outcomes) = result {
            let kept = events.into_iter().zip(outcomes).filter(|(_, outcome)| is_kept(outcome));
            self.acknowledged.extend(kept.map(|(event, _)| event));
        }
        self.restart_authority(None);
    }

    /// What holds for a node after every step.
    fn look_at(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let Some(replica) = &node.replica else { return };
        if node.is_between_pages {
            (self.world.check_between_pages)(replica, &node.dir);
        } else {
            (self.world.check)(replica, &node.dir);
        }
        if !node.is_between_pages && self.rng.chance(2) {
            let log = log_of(replica);
            let pending =
                outbox_of(replica).into_iter().map(|event| Entry { seq: Seq(0), event, origin: device("here") });
            let (_home, replayed) = replay((self.world.schema)(), &log.into_iter().chain(pending).collect::<Vec<_>>());
            assert_eq!(
                replica.state_digest().unwrap(),
                replayed.state_digest().unwrap(),
                "not the replay of log and outbox"
            );
        }
        let holds = all_of(replica);
        for event in &node.held {
            let copies = holds.iter().filter(|one| *one == event).count();
            assert_eq!(copies, 1, "{event:?} is held {copies} times by node {at}");
        }
        node.held = holds;
    }

    fn look_at_authority(&self) {
        (self.world.check)(self.authority.as_ref().unwrap(), &self.authority_dir);
    }

    /// Everything works from now on; then everybody has to agree, soon.
    fn heal(&mut self) {
        for at in 0..self.nodes.len() {
            self.nodes[at].is_cut_off = false;
            if self.nodes[at].replica.is_none() {
                self.crash(at);
            }
        }
        let mut rounds = 0;
        while !self.is_quiet() {
            rounds += 1;
            assert!(rounds <= 4, "it does not come to rest");
            while !self.delayed.is_empty() {
                self.deliver_delayed();
            }
            for at in 0..self.nodes.len() {
                // What is lost on the way is pushed again: each try gets through with more than even odds.
                let mut tries = 0;
                loop {
                    if !self.connect(at) {
                        self.adopt(at);
                        assert!(self.connect(at), "it was adopted");
                    }
                    while !self.pull_page(at, 5) {}
                    if self.replica(at).standing().unwrap().pending == 0 {
                        break;
                    }
                    self.push_some(at, 4);
                    tries += 1;
                    assert!(tries < 1_000, "a push never gets through");
                }
                self.look_at(at);
            }
        }
        self.agree();
    }

    fn is_quiet(&mut self) -> bool {
        let head = self.authority().standing().unwrap().head;
        let digest = self.authority().digest_at(head).unwrap();
        let head = Seq(head.0 * self.stride);
        self.delayed.is_empty()
            && self.nodes.iter().all(|node| {
                let replica = node.replica.as_ref().unwrap();
                let standing = replica.standing().unwrap();
                standing.head == head && standing.pending == 0 && replica.digest_at(head).unwrap() == digest
            })
    }

    fn agree(&mut self) {
        let stride = self.stride;
        let log = log_of(self.authority());
        let ids: BTreeSet<EventId> = log.iter().map(|entry| entry.event.id).collect();
        assert_eq!(ids.len(), log.len());
        let state = self.authority().state_digest().unwrap();
        for node in &self.nodes {
            let own: BTreeSet<EventId> = node.committed.iter().copied().collect();
            let order: Vec<_> = log.iter().map(|entry| entry.event.id).filter(|id| own.contains(id)).collect();
            assert_eq!(order, node.committed, "nothing overtakes what it may depend on");
        }
        let mut set_aside = Vec::new();
        for at in 0..self.nodes.len() {
            self.look_at(at);
            let replica = self.nodes[at].replica.take().unwrap();
            let on_the_wire = |entry: &Entry| Entry { seq: Seq(entry.seq.0 * stride), ..entry.clone() };
            assert_eq!(log_of(&replica), log.iter().map(on_the_wire).collect::<Vec<_>>(), "node {at}");
            assert_eq!(replica.state_digest().unwrap(), state, "node {at}");
            set_aside.extend(set_aside_of(&replica));
            // Made anew, it is the same.
            drop(replica);
            fs::remove_file(self.nodes[at].dir.join("state.db")).unwrap();
            let replica = open(self.world, &self.nodes[at].dir).unwrap();
            assert_eq!(replica.state_digest().unwrap(), state, "node {at}, made anew");
        }
        let (_home, replayed) = replay((self.world.schema)(), &log);
        assert_eq!(replayed.state_digest().unwrap(), state);
        for event in &self.acknowledged {
            let is_in_log = log.iter().any(|entry| entry.event == *event);
            assert!(is_in_log || set_aside.contains(event), "{event:?} was acknowledged, and is nowhere");
        }
    }
}

fn open(world: &World, dir: &Path) -> Result<Replica, Fault> {
    Replica::open(Files::in_dir(dir), setup((world.schema)()))
}

/// Makes of a store's files, as they were before a write and after it, what a power cut may leave in `left`: the eventlog
/// with all that it had synced, and of what it was writing any of its sectors; the state and the witness, which are never
/// synced with a commit, as they were before the write, or `earlier`. Neither is ever ahead of the eventlog, which they
/// follow only when it is synced. What opening finds counts as synced from then on: that it sees to that is shown by the
/// recorder's tests, for nothing here can.
fn leave_after_power_cut(rng: &mut Rng, before: &Path, after: &Path, earlier: Option<&Path>, left: &Path) {
    fs::create_dir_all(left).unwrap();
    fs::copy(before.join("eventlog.db"), left.join("eventlog.db")).unwrap();
    let read = |dir: &Path| fs::read(dir.join("eventlog.db-wal")).unwrap_or_default();
    let (mut wal, written) = (read(before), read(after));
    let is_same_file = fs::read(before.join("eventlog.db")).unwrap() == fs::read(after.join("eventlog.db")).unwrap();
    if is_same_file && written.starts_with(&wal) {
        let synced = wal.len();
        let kind = rng.below(4);
        for (nth, sector) in written[synced..].chunks(512).enumerate() {
            match kind {
                0 => break,
                1 if rng.chance(10) => break,
                // Behind it the file has grown, and this was never written.
                2 if rng.chance(30) => wal.resize(synced + nth * 512 + sector.len(), 0),
                _ => wal.extend_from_slice(sector),
            }
        }
    }
    if !wal.is_empty() {
        fs::write(left.join("eventlog.db-wal"), wal).unwrap();
    }
    let state = earlier.unwrap_or(before);
    for file in ["state.db", "state.db-wal"] {
        if state.join(file).exists() {
            fs::copy(state.join(file), left.join(file)).unwrap();
        }
    }
    let witness = fs::read(rng.pick(&[before, state]).join("witness")).unwrap();
    let end = if rng.chance(10) { rng.below(witness.len() + 1) } else { witness.len() };
    fs::write(left.join("witness"), &witness[..end]).unwrap();
}

fn run_id(run: u64) -> String {
    format!("run-{run}")
}

fn is_kept(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Stored(_) | Outcome::Known(_))
}

/// All that a replica holds, wherever.
fn all_of(replica: &Replica) -> Vec<Envelope> {
    let log = log_of(replica).into_iter().map(|entry| entry.event);
    log.chain(outbox_of(replica)).chain(set_aside_of(replica)).collect()
}
