//! A hub and some devices on a bad network, driven by a seed. The same seed gives the same story.
//!
//! This file has the nodes and the steps of a story. [`network`] has pulls and pushes, [`faults`] has machine failures,
//! [`copies`] has what people do with files, [`snapshots`] has what devices begin with, and [`checks`] has the invariants.

mod checks;
mod copies;
mod faults;
mod network;
mod snapshots;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use checks::check_places;
pub(super) use checks::{all_of, ids_of, log_of, set_aside_of};
pub(super) use faults::leave_after_power_cut;
use snapshots::{Below, Kept};

use super::scratch::Scratch;
use super::{Rng, Simulation, commits};
use crate::engine::{
    CheckedSnapshot, Device, Entry, Envelope, EventId, Fault, Files, Outcome, Proof, Replica, Seq, Setup, Whose,
};
use crate::sync::{Backfill, Push, Session, Start, WirePage, ended};

/// How many steps a story has before everything works again: enough for each kind of step, and few enough to read.
const STEPS: usize = 60;

/// The message of every `expect` in a story.
pub(super) const WORKS: &str = "a simulated machine fails only where it is made to";

/// The result of a story that ended well.
pub(super) struct Story {
    /// The hub's log.
    pub(super) log: Vec<Entry>,
    /// The outcomes of the events at the node that committed them first.
    pub(super) tally: Tally,
}

/// The outcomes of events, by name.
pub(super) type Tally = BTreeMap<String, Tried>;

/// The outcomes of the events with one name.
#[derive(Default)]
pub(super) struct Tried {
    pub(super) taken: u64,
    pub(super) refused: u64,
    /// Why the last of them was refused.
    pub(super) why: String,
}

/// One pull stream.
struct Stream {
    /// The run of the authority at the other end.
    run: u64,
    session: Session,
    /// What the authority remembers of the stream.
    start: Start,
    /// How far the authority has sent its log.
    sent: Seq,
}

struct Node {
    dir: PathBuf,
    /// None while its process is down.
    replica: Option<Replica>,
    stream: Option<Stream>,
    is_cut_off: bool,
    /// Whether the last page announced another one. Queries lag behind the log then.
    is_between_pages: bool,
    /// All events that it has ever held. It must still hold each of them somewhere.
    held: Vec<Envelope>,
    /// The events committed here and nowhere else, in commit order.
    committed: Vec<EventId>,
    /// What is behind the snapshot that it began with last.
    below: Option<Below>,
    /// The length of its log, and what it has of other devices above its snapshot, if some of the history behind that is missing.
    above_gap: Option<(u64, Vec<EventId>)>,
    /// Whether a page of its history was not what the hub has.
    is_lied_to: bool,
    /// Whether it stays at its snapshot for good.
    wants_no_history: bool,
    /// An earlier copy of its files. After a power cut, files that were never synced may be back in this state.
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
            below: None,
            above_gap: None,
            is_lied_to: false,
            wants_no_history: false,
            earlier: None,
        }
    }
}

/// A write by a node.
enum Deed {
    Commit([Envelope; 2]),
    Arrive(Box<Stream>, WirePage),
    TakeBack(Seq),
    Settle,
    Join(Option<CheckedSnapshot>),
    ArriveHistory(Box<Backfill>, WirePage),
    Conclude(Proof),
    DropBase,
}

impl Deed {
    /// Performs the write, and returns the outcomes of the committed events.
    fn run(&mut self, replica: &mut Replica) -> Result<Vec<Outcome>, Fault> {
        match self {
            Self::Commit(events) => return replica.commit(events.as_slice()),
            Self::Arrive(stream, page) => {
                assert_eq!(ended(stream.session.arrive(replica, page.clone()))?, Ok(()), "nobody else changes the log");
            }
            Self::TakeBack(back) => {
                // Who adopts another log has all of the last one.
                let whose = replica.standing()?.whose;
                let whose = if replica.base() > Seq::START { whose } else { Whose::Upstream(None) };
                replica.take_back(*back, whose)?;
            }
            Self::Settle => replica.settle()?,
            Self::Join(snapshot) => {
                replica.join(snapshot.take().expect("BUG: it is done once"))?;
            }
            Self::ArriveHistory(backfill, page) => {
                ended(backfill.arrive(replica, page.clone()))?.expect("nobody else changes the history");
            }
            Self::Conclude(proof) => drop(replica.conclude(*proof)?),
            Self::DropBase => replica.drop_base()?,
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

pub(super) struct Cluster<'s> {
    simulation: &'s Simulation,
    rng: Rng,
    scratch: Scratch,
    dirs: u32,
    authority: Option<Replica>,
    authority_dir: PathBuf,
    authority_earlier: Option<PathBuf>,
    /// The authority's run, a new one with every start.
    run: u64,
    backups: Vec<PathBuf>,
    /// The snapshots that the authority made, and still serves.
    snapshots: Vec<Kept>,
    nodes: Vec<Node>,
    /// Copies of pushes that the network delivers later, or never.
    delayed: Vec<Letter>,
    /// The places on the wire are this many times the authority's own. That makes gaps.
    stride: u64,
    /// The acknowledged events that no restored backup has undone.
    acknowledged: Vec<Envelope>,
    /// The events whose order can't be kept, because a device gave up a snapshot and never had all that is behind it. If the
    /// hub has lost that too, a device that has it brings it later than these.
    excused: BTreeSet<EventId>,
    tally: Tally,
}

impl<'s> Cluster<'s> {
    /// Tells the story of one seed to its end. Panics when something doesn't hold.
    pub(super) fn tell(simulation: &'s Simulation, seed: u64) -> Story {
        let mut cluster = Self::new(simulation, seed);
        for _ in 0..STEPS {
            cluster.step();
        }
        cluster.heal();
        Story { log: checks::log_of(cluster.authority()), tally: cluster.tally }
    }

    fn new(simulation: &'s Simulation, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let scratch = Scratch::new();
        let authority_dir = scratch.path().join("authority");
        let authority = open(simulation, &authority_dir).expect(WORKS);
        let stride = 1 + rng.next() % 3;
        let mut cluster = Self {
            simulation,
            rng,
            scratch,
            dirs: 0,
            authority: Some(authority),
            authority_dir,
            authority_earlier: None,
            run: 1,
            backups: Vec::new(),
            snapshots: Vec::new(),
            nodes: Vec::new(),
            delayed: Vec::new(),
            stride,
            acknowledged: Vec::new(),
            excused: BTreeSet::new(),
            tally: Tally::new(),
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
        let mut replica = open(self.simulation, &dir).expect(WORKS);
        // Some nodes worked alone before they got an upstream.
        let events = self.some_events();
        let outcomes = replica.commit(&events).expect(WORKS);
        let alone: Vec<_> = events.into_iter().zip(outcomes).filter(|(_, outcome)| is_kept(outcome)).collect();
        let committed = alone.iter().map(|(event, _)| event.id).collect();
        self.acknowledged.extend(alone.into_iter().map(|(event, _)| event));
        replica.take_back(Seq::START, Whose::Upstream(None)).expect(WORKS);
        self.nodes.push(Node { committed, ..Node::new(dir, replica) });
        self.look_at(self.nodes.len() - 1);
    }

    fn some_events(&mut self) -> Vec<Envelope> {
        commits::some_events(self.simulation, &mut self.rng)
    }

    fn new_event(&mut self) -> Envelope {
        commits::new_event(self.simulation, &mut self.rng)
    }

    fn step(&mut self) {
        let at = self.rng.below(self.nodes.len());
        let faults = self.simulation.faults;
        match (self.rng.below(100), faults) {
            (0..=28, _) => self.commit(at),
            (29, Some(faults)) if self.rng.chance(30) => self.failed_sync_at_authority(at, faults),
            (29, Some(faults)) => self.failed_sync(at, faults),
            (30..=34, _) => self.commit_at_authority(),
            (35, _) => self.make_snapshot(),
            (36..=38, _) => self.join(at),
            (39..=42, _) => self.fetch_history(at),
            (43..=59, _) => self.pull(at),
            (60, _) if self.rng.chance(30) => self.drop_base(at),
            (60..=76, _) => self.push(at),
            (77..=79, _) => self.deliver_delayed(),
            (80..=81, _) => self.crash(at),
            (82..=84, _) => self.cut_power(at),
            (85, _) => self.clone_node(at),
            (86..=87, _) => self.restore_node(at),
            (88..=90, _) => self.nodes[at].is_cut_off ^= true,
            (91, _) if self.rng.chance(50) => self.restore_node(at),
            (91, _) => self.drop_stream(at),
            (92..=94, _) => self.back_up_authority(),
            (95, _) => self.restart_authority(None),
            (96, _) => self.cut_power_of_authority(),
            (97, _) if self.rng.chance(15) => self.recreate_authority(),
            (97, _) if self.rng.chance(30) => self.promote(at),
            (97, _) => self.restore_authority(),
            (_, Some(faults)) if self.rng.chance(25) => self.machine_fault_at_authority(faults),
            (_, Some(faults)) => self.machine_fault(at, faults),
            (_, None) => self.crash(at),
        }
        // A promoted device is no device any more.
        self.look_at(at.min(self.nodes.len() - 1));
    }

    /// Commits at a node: mostly new events, sometimes a known event again, or another event under a known id.
    fn commit(&mut self, at: usize) {
        let (events, known) = commits::choose(self.simulation, &mut self.rng, &self.acknowledged);
        if let Some(known) = known {
            self.nodes.iter_mut().for_each(|node| node.committed.retain(|id| *id != known));
        }
        let Some(replica) = self.nodes[at].replica.as_mut() else { return };
        let outcomes = replica.commit(&events).expect(WORKS);
        let committed = commits::note(events, outcomes, &mut self.acknowledged, &mut self.tally);
        self.nodes[at].committed.extend(committed);
    }

    fn commit_at_authority(&mut self) {
        let events = self.some_events();
        // A store's thread has the state wait while commits follow each other. It settles that before it does anything else.
        let is_deferred = events.first().is_some_and(|event| event.id.as_bytes()[0].is_multiple_of(2));
        let outcomes = if is_deferred {
            let events: Vec<_> = events.iter().map(|event| (event.clone(), None)).collect();
            self.authority().commit_from(&events).expect(WORKS)
        } else {
            self.authority().rest().expect(WORKS);
            self.authority().commit(&events).expect(WORKS)
        };
        let kept = events.into_iter().zip(outcomes).filter(|(_, outcome)| is_kept(outcome));
        self.acknowledged.extend(kept.map(|(event, _)| event));
        self.look_at_authority();
    }

    fn authority(&mut self) -> &mut Replica {
        self.authority.as_mut().expect("BUG: the hub is always up between steps")
    }
}

/// Opens the store in `dir`, as a device does.
pub(super) fn open(simulation: &Simulation, dir: &Path) -> Result<Replica, Fault> {
    Replica::open(Files::in_dir(dir), setup(simulation))
}

fn setup(simulation: &Simulation) -> Setup {
    let schema = Arc::new((simulation.schema)());
    Setup { schema, device: device("here"), executable: "one".to_owned(), progress: |_, _| {} }
}

pub(super) fn device(name: &str) -> Device {
    name.parse().expect("BUG: a name that a device may have")
}

fn run_id(run: u64) -> String {
    format!("run-{run}")
}

pub(super) fn is_kept(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Stored(_) | Outcome::Known(_))
}
