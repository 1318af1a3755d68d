//! Many replicas and one authority over a bad network, driven by a seed: the same seed, the same story.
//!
//! `LIKEWISE_SEEDS=100000 cargo test --release --test engine simulation` runs many of them, `LIKEWISE_SEED=…` one.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use likewise::engine::{Entry, Envelope, EventId, Fault, Files, Outcome, Page, PageSize, Replica, Seq, Whose};
use rusqlite::ffi;
use tempfile::TempDir;

use crate::support::*;

/// How many seeds an ordinary run takes.
const SEEDS: u64 = 100;

#[test]
fn trust_14_whatever_the_network_and_the_machines_do_all_replicas_agree_in_the_end() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    let seeds = match (number("LIKEWISE_SEED"), number("LIKEWISE_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, seeds) => 0..seeds.unwrap_or(SEEDS),
    };
    for seed in seeds {
        let _story = Story(seed);
        let mut cluster = Cluster::new(seed);
        for _ in 0..60 {
            cluster.step();
        }
        cluster.heal();
    }
}

/// Says how to see a failure again.
struct Story(u64);

impl Drop for Story {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("to see it again: LIKEWISE_SEED={} cargo test --test engine simulation", self.0);
        }
    }
}

/// The memory of one pull stream, which dies with it.
struct Stream {
    /// The authority's run that it speaks to.
    run: u64,
    /// The number of the last event of the outbox that was pushed and answered on this stream.
    pushed: i64,
    /// Whether it has pulled to the head once, and may push.
    is_level: bool,
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
}

/// A push on its way.
#[derive(Clone)]
struct Push {
    run: u64,
    from: usize,
    events: Vec<Envelope>,
}

struct Cluster {
    rng: Rng,
    scratch: TempDir,
    dirs: u32,
    authority: Option<Replica>,
    authority_dir: PathBuf,
    /// New whenever the authority starts.
    run: u64,
    backups: Vec<PathBuf>,
    nodes: Vec<Node>,
    /// Copies of pushes that the network delivers some time, or never.
    delayed: Vec<Push>,
    /// The places on the wire are this many times the authority's own, so that there are gaps.
    stride: u64,
    /// What was acknowledged and no restored backup has undone.
    acknowledged: Vec<Envelope>,
}

impl Cluster {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let scratch = scratch();
        let authority_dir = scratch.path().join("authority");
        let authority = open(&authority_dir).unwrap();
        let stride = 1 + rng.next() % 3;
        let mut cluster = Self {
            rng,
            scratch,
            dirs: 0,
            authority: Some(authority),
            authority_dir,
            run: 1,
            backups: Vec::new(),
            nodes: Vec::new(),
            delayed: Vec::new(),
            stride,
            acknowledged: Vec::new(),
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
        let mut replica = open(&dir).unwrap();
        // Some have worked alone before they were given an upstream.
        let events = self.some_events();
        let outcomes = replica.commit(&events).unwrap();
        let alone: Vec<_> = events.into_iter().zip(outcomes).filter(|(_, outcome)| is_kept(outcome)).collect();
        let committed = alone.iter().map(|(event, _)| event.id).collect();
        self.acknowledged.extend(alone.into_iter().map(|(event, _)| event));
        replica.take_back(Seq::START, Whose::Upstream(None)).unwrap();
        self.nodes.push(Node {
            dir,
            replica: Some(replica),
            stream: None,
            is_cut_off: false,
            is_between_pages: false,
            held: Vec::new(),
            committed,
        });
        self.look_at(self.nodes.len() - 1);
    }

    fn some_events(&mut self) -> Vec<Envelope> {
        (0..self.rng.below(4)).map(|_| random_event(&mut self.rng)).collect()
    }

    fn step(&mut self) {
        let at = self.rng.below(self.nodes.len());
        match self.rng.below(100) {
            0..=29 => self.commit(at),
            30..=34 => self.commit_at_authority(),
            35..=59 => self.pull(at),
            60..=76 => self.push(at),
            77..=79 => self.deliver_delayed(),
            80..=84 => self.crash(at),
            85 => self.clone_node(at),
            86..=87 => self.restore_node(at),
            88..=90 => self.nodes[at].is_cut_off ^= true,
            91 => self.drop_stream(at),
            92..=94 => self.back_up_authority(),
            95..=96 => self.restart_authority(None),
            97 => self.restore_authority(),
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
                let other = random_event(&mut self.rng);
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

    /// The digest of the authority's log at a place on the wire, if the log reaches so far.
    fn vouch(&mut self, wire: Seq) -> Option<likewise::engine::Digest> {
        let seq = Seq(wire.0 / self.stride);
        let authority = self.authority();
        (seq <= authority.standing().unwrap().head).then(|| authority.digest_at(seq).unwrap())
    }

    /// The authority's log as it stands on the wire, with gaps, and here and there an event for the second time.
    fn wire(&mut self, after: Seq, limit: usize) -> Page {
        let stride = self.stride;
        let authority = self.authority();
        let after = Seq(after.0 / stride);
        let mut entries = authority.entries(after, PageSize::events(limit)).unwrap();
        let next = entries.last().map_or(after, |entry| entry.seq);
        let more = next < authority.standing().unwrap().head;
        entries.iter_mut().for_each(|entry| entry.seq.0 *= stride);
        if stride > 1 {
            let again: Vec<Entry> = entries
                .iter()
                .filter(|entry| entry.seq.0 % 5 == 0)
                .map(|entry| Entry { seq: Seq(entry.seq.0 + 1), ..entry.clone() })
                .collect();
            entries.extend(again);
            entries.sort_by_key(|entry| entry.seq);
        }
        let next = entries.last().map_or(Seq(next.0 * stride), |entry| entry.seq);
        Page { entries, next, more }
    }

    /// Has a stream to the run that the authority is in, made now if need be: says hello, and repairs what diverged.
    fn connect(&mut self, at: usize) -> bool {
        if self.nodes[at].is_cut_off || self.nodes[at].replica.is_none() {
            self.drop_stream(at);
            return false;
        }
        if self.nodes[at].stream.as_ref().is_some_and(|stream| stream.run == self.run) {
            return true;
        }
        self.drop_stream(at);
        let Some(mut replica) = self.nodes[at].replica.take() else { return false };
        let head = replica.standing().unwrap().head;
        let mut is_repaired = false;
        if self.vouch(head) != Some(replica.digest_at(head).unwrap()) {
            let mut places = vec![Seq::START];
            places.extend(log_of(&replica).iter().map(|entry| entry.seq));
            let mut shared = places.into_iter().rev();
            let shared = shared.find(|seq| self.vouch(*seq) == Some(replica.digest_at(*seq).unwrap())).unwrap();
            let before = ids_of(&replica);
            replica.take_back(shared, Whose::Upstream(None)).unwrap();
            assert_eq!(ids_of(&replica), before, "what is taken back keeps its place before what is newer");
            is_repaired = true;
        }
        let node = &mut self.nodes[at];
        node.replica = Some(replica);
        // After a repair, what is left is pushed when all was pulled; else at once.
        node.stream = Some(Stream { run: self.run, pushed: i64::MIN, is_level: !is_repaired });
        self.look_at(at);
        true
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
            self.pull_page(at, limit);
            self.look_at(at);
        }
        if self.rng.chance(20) {
            self.drop_stream(at);
        }
    }

    /// Pulls one page. True when that was all.
    fn pull_page(&mut self, at: usize, limit: usize) -> bool {
        let head = self.nodes[at].replica.as_ref().unwrap().standing().unwrap().head;
        let page = self.wire(head, limit);
        let node = &mut self.nodes[at];
        node.replica.as_mut().unwrap().arrive(&page).unwrap();
        node.is_between_pages = page.more;
        node.stream.as_mut().unwrap().is_level |= !page.more;
        !page.more
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

    /// Pushes what comes next. False when there is nothing, or no answer came.
    fn push_some(&mut self, at: usize, limit: usize) -> bool {
        let node = &self.nodes[at];
        let stream = node.stream.as_ref().unwrap();
        let next = node.replica.as_ref().unwrap().pending(stream.pushed, PageSize::events(limit)).unwrap();
        let Some(last) = next.last().map(|(n, _)| *n) else { return false };
        if !stream.is_level {
            return false;
        }
        let events: Vec<Envelope> = next.into_iter().map(|(_, event)| event).collect();
        let push = Push { run: stream.run, from: at, events };
        match self.rng.below(10) {
            // Lost on its way, or late, perhaps after its own repetition.
            0 => return false,
            1 => {
                self.delayed.push(push);
                return false;
            }
            // The answer is lost.
            2 => {
                self.deliver(&push);
                return false;
            }
            // Twice, and once more some time.
            3 => {
                self.deliver(&push);
                self.delayed.push(push.clone());
            }
            _ => {}
        }
        let is_accepted = self.deliver(&push);
        assert!(is_accepted, "the stream is of this run");
        self.nodes[at].stream.as_mut().unwrap().pushed = last;
        true
    }

    /// Hands a push to the authority, unless it is for another run.
    fn deliver(&mut self, push: &Push) -> bool {
        if push.run != self.run {
            return false;
        }
        let origin = device(&format!("node-{}", push.from));
        let events: Vec<_> = push.events.iter().map(|event| (event.clone(), origin.clone())).collect();
        let outcomes = self.authority().add(&events).unwrap();
        assert!(outcomes.iter().all(|outcome| is_kept(outcome) || *outcome == Outcome::Conflict), "{outcomes:?}");
        self.look_at_authority();
        true
    }

    fn deliver_delayed(&mut self) {
        if !self.delayed.is_empty() {
            let nth = self.rng.below(self.delayed.len());
            let push = self.delayed.remove(nth);
            self.deliver(&push);
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
            node.replica = Some(open(&node.dir).unwrap());
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
        let replica = Some(open(&dir).unwrap());
        self.nodes.push(Node {
            dir,
            replica,
            stream: None,
            is_cut_off: false,
            is_between_pages: false,
            held,
            committed: Vec::new(),
        });
        self.look_at(self.nodes.len() - 1);
    }

    /// A node is set up anew from a copy of another, older or empty: what only it held is gone.
    fn restore_node(&mut self, at: usize) {
        let dir = self.new_dir();
        let from = self.rng.below(self.nodes.len());
        if from != at && self.rng.chance(50) {
            copy_dir(&self.nodes[from].dir, &dir);
        }
        let mut replica = open(&dir).unwrap();
        if let Whose::Own(_) = replica.standing().unwrap().whose {
            replica.take_back(Seq::START, Whose::Upstream(None)).unwrap();
        }
        let node = &mut self.nodes[at];
        node.replica = None;
        fs::remove_dir_all(&node.dir).unwrap();
        *node = Node {
            dir,
            replica: Some(replica),
            stream: None,
            is_cut_off: node.is_cut_off,
            is_between_pages: false,
            held: Vec::new(),
            committed: Vec::new(),
        };
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
        self.authority = Some(open(&self.authority_dir).unwrap());
        self.run += 1;
        self.look_at_authority();
    }

    fn restore_authority(&mut self) {
        if self.backups.is_empty() {
            return;
        }
        let backup = self.rng.pick(&self.backups).clone();
        self.restart_authority(Some(backup));
        self.forget_what_nobody_holds();
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
        if self.nodes[at].replica.is_none() || !self.connect(at) {
            return;
        }
        let (after, limit) = (self.rng.next() as u32 % 8, 1 + self.rng.below(6));
        let events = [random_event(&mut self.rng), random_event(&mut self.rng)];
        let kind = self.rng.below(4);
        let head = self.nodes[at].replica.as_ref().unwrap().standing().unwrap().head;
        let page = self.wire(head, limit);
        let back = Seq(self.rng.next() % (head.0 + 1));
        let replica = self.nodes[at].replica.as_mut().unwrap();
        fail_after(after, *self.rng.pick(&[ffi::SQLITE_FULL, ffi::SQLITE_IOERR_FSYNC, ffi::SQLITE_NOMEM]));
        let result: Result<(), Fault> = match kind {
            0 => replica.commit(&events).map(drop),
            1 => replica.arrive(&page),
            2 => replica.take_back(back, Whose::Upstream(None)),
            _ => replica.settle(),
        };
        assert_eq!(result.is_ok(), mend(), "{result:?}");
        if kind == 0 && result.is_ok() {
            let kept = |event: &Envelope| all_of(replica).contains(event) && !self.acknowledged.contains(event);
            let kept: Vec<_> = events.iter().filter(|event| kept(event)).cloned().collect();
            self.nodes[at].committed.extend(kept.iter().map(|event| event.id));
            self.acknowledged.extend(kept);
        }
        // A fault is the end of the process, and what else happened is as good a moment for it.
        self.nodes[at].is_between_pages = false;
        self.crash(at);
        if self.nodes[at].replica.is_none() {
            self.crash(at);
        }
    }

    /// What holds for a node after every step.
    fn look_at(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let Some(replica) = &node.replica else { return };
        if node.is_between_pages {
            check_files(replica, &node.dir);
        } else {
            check(replica, &node.dir);
        }
        let holds = all_of(replica);
        for event in &node.held {
            let copies = holds.iter().filter(|one| *one == event).count();
            assert_eq!(copies, 1, "{event:?} is held {copies} times by node {at}");
        }
        node.held = holds;
    }

    fn look_at_authority(&self) {
        check(self.authority.as_ref().unwrap(), &self.authority_dir);
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
                assert!(self.connect(at));
                while !self.pull_page(at, 5) {}
                // What is lost on the way is pushed again: each try gets through with more than even odds.
                let mut tries = 0;
                while self.has_to_push(at) {
                    self.push_some(at, 4);
                    tries += 1;
                    assert!(tries < 1_000, "a push never gets through");
                }
                while !self.pull_page(at, 5) {}
                self.look_at(at);
            }
        }
        self.agree();
    }

    fn has_to_push(&self, at: usize) -> bool {
        let node = &self.nodes[at];
        let pushed = node.stream.as_ref().unwrap().pushed;
        !node.replica.as_ref().unwrap().pending(pushed, PageSize::events(1)).unwrap().is_empty()
    }

    fn is_quiet(&mut self) -> bool {
        let head = Seq(self.authority().standing().unwrap().head.0 * self.stride);
        let digest = self.vouch(head);
        self.delayed.is_empty()
            && self.nodes.iter().all(|node| {
                let replica = node.replica.as_ref().unwrap();
                let standing = replica.standing().unwrap();
                standing.head == head && standing.pending == 0 && Some(replica.digest_at(head).unwrap()) == digest
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
            let replica = open(&self.nodes[at].dir).unwrap();
            assert_eq!(replica.state_digest().unwrap(), state, "node {at}, made anew");
        }
        let (_home, replayed) = replay(&log);
        assert_eq!(replayed.state_digest().unwrap(), state);
        for event in &self.acknowledged {
            let is_in_log = log.iter().any(|entry| entry.event == *event);
            assert!(is_in_log || set_aside.contains(event), "{event:?} was acknowledged, and is nowhere");
        }
    }
}

fn open(dir: &std::path::Path) -> Result<Replica, Fault> {
    Replica::open(Files::in_dir(dir), setup(bank()))
}

fn is_kept(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Stored(_) | Outcome::Known(_))
}

/// All that a replica holds, wherever.
fn all_of(replica: &Replica) -> Vec<Envelope> {
    let log = log_of(replica).into_iter().map(|entry| entry.event);
    log.chain(outbox_of(replica)).chain(set_aside_of(replica)).collect()
}
