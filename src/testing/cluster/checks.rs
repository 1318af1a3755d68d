//! The invariants: after each step for the node that took it, and at the end for all nodes together.

use std::collections::BTreeSet;
use std::fs;

use super::{Below, Cluster, WORKS, device, open};
use crate::engine::{Entry, Envelope, EventId, PageSize, Replica, Seq, Standing, Whose};
use crate::testing::difference::{Order, Replay, check_order, compare};

impl Cluster<'_> {
    /// Checks what must hold for a node after every step.
    pub(super) fn look_at(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let Some(replica) = &node.replica else { return };
        check_places(replica);
        let at_rest = self.simulation.at_rest.iter().filter(|_| !node.is_between_pages);
        // An author's checks know the log, and not what a snapshot stands for.
        let is_whole = replica.base() == Seq::START;
        let all = self.simulation.always.iter().chain(at_rest).filter(|_| is_whole);
        all.for_each(|check| check(replica, &node.dir));
        let is_begun = replica.base() > Seq::START;
        let events = if node.is_between_pages { None } else { seen_by(replica, node.below.as_ref()) };
        if let Some(events) = events
            && self.rng.chance(if is_begun { 20 } else { 2 })
        {
            let replay = Replay::of(self.simulation, &events, Order::Natural);
            compare(self.simulation, &events, (&name(at), replica), ("a replay", &replay.replica));
        }
        let holds = all_of(replica);
        for event in &node.held {
            let copies = holds.iter().filter(|one| *one == event).count();
            assert_eq!(copies, 1, "{event:?} is held {copies} times by node {at}");
        }
        node.held = holds;
        let Standing { length, history, .. } = replica.standing().expect(WORKS);
        let is_missing = history.is_some_and(|history| history.missing() > 0);
        let above = is_missing.then(|| {
            let log = log_of(replica).into_iter().map(|entry| entry.event.id);
            let all = log.chain(outbox_of(replica).into_iter().map(|event| event.id));
            (length, all.filter(|id| !node.committed.contains(id)).collect())
        });
        if let Some((before, above)) = std::mem::replace(&mut node.above_gap, above)
            && history.is_none()
            && length < before
        {
            self.excused.extend(above);
        }
    }

    pub(super) fn look_at_authority(&self) {
        let replica = self.authority.as_ref().expect(WORKS);
        check_places(replica);
        let checks = self.simulation.always.iter().chain(&self.simulation.at_rest);
        checks.for_each(|check| check(replica, &self.authority_dir));
    }

    /// Makes everything work again. Then all nodes must soon agree.
    pub(super) fn heal(&mut self) {
        for at in 0..self.nodes.len() {
            self.nodes[at].is_cut_off = false;
            if self.nodes[at].replica.is_none() {
                self.crash(at);
            }
            let is_wrong = self.nodes[at].below.as_ref().is_some_and(|below| below.is_wrong);
            self.nodes[at].wants_no_history = !is_wrong && self.rng.chance(20);
        }
        let mut rounds = 0;
        while !self.is_quiet() {
            rounds += 1;
            assert!(rounds <= 4, "it does not come to rest");
            while !self.delayed.is_empty() {
                self.deliver_delayed();
            }
            for at in 0..self.nodes.len() {
                // Some devices never ask for the history.
                let stays_begun = self.nodes[at].wants_no_history;
                // A lost push is repeated. Each try gets through with better than even odds.
                let mut tries = 0;
                loop {
                    if !self.connect(at) {
                        self.adopt(at);
                        assert!(self.connect(at), "it was adopted");
                    }
                    while !self.pull_page(at, 5) {}
                    if !stays_begun {
                        self.fetch_all_history(at);
                    }
                    if self.replica(at).standing().expect(WORKS).pending == 0 {
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

    pub(super) fn is_quiet(&mut self) -> bool {
        let head = self.authority().standing().expect(WORKS).head;
        let digest = self.authority().digest_at(head).expect(WORKS);
        let head = Seq(head.0 * self.stride);
        self.delayed.is_empty()
            && self.nodes.iter().all(|node| {
                let replica = node.replica.as_ref().expect(WORKS);
                let standing = replica.standing().expect(WORKS);
                let is_level = standing.head == head && standing.pending == 0;
                let is_whole = standing.history.is_none() || node.wants_no_history;
                is_level && is_whole && replica.digest_at(head).expect(WORKS) == digest
            })
    }

    pub(super) fn agree(&mut self) {
        let stride = self.stride;
        let log = log_of(self.authority());
        let ids: BTreeSet<EventId> = log.iter().map(|entry| entry.event.id).collect();
        assert_eq!(ids.len(), log.len());
        let hub = self.authority.take().expect("BUG: the hub is up");
        for node in &self.nodes {
            let own: Vec<_> = node.committed.iter().filter(|id| !self.excused.contains(id)).copied().collect();
            let order: Vec<_> = log.iter().map(|entry| entry.event.id).filter(|id| own.contains(id)).collect();
            assert_eq!(order, own, "nothing overtakes what it may depend on");
        }
        let mut set_aside = Vec::new();
        for at in 0..self.nodes.len() {
            self.look_at(at);
            let replica = self.nodes[at].replica.take().expect(WORKS);
            let on_the_wire = |entry: &Entry| Entry { seq: Seq(entry.seq.0 * stride), ..entry.clone() };
            let base = replica.base();
            let here = log.iter().map(on_the_wire).filter(|entry| entry.seq > base).collect::<Vec<_>>();
            assert_eq!(log_of(&replica), here, "node {at}");
            compare(self.simulation, &log, (&name(at), &replica), ("the hub", &hub));
            set_aside.extend(set_aside_of(&replica));
            // The rebuilt state is the same.
            drop(replica);
            fs::remove_file(self.nodes[at].dir.join("state.db")).expect(WORKS);
            let replica = open(self.simulation, &self.nodes[at].dir).expect(WORKS);
            compare(self.simulation, &log, (&format!("{}, rebuilt,", name(at)), &replica), ("the hub", &hub));
        }
        let replay = Replay::of(self.simulation, &log, Order::Natural);
        compare(self.simulation, &log, ("the hub", &hub), ("a replay", &replay.replica));
        check_order(self.simulation, &log, &replay.replica);
        self.authority = Some(hub);
        for event in &self.acknowledged {
            let is_in_log = log.iter().any(|entry| entry.event == *event);
            assert!(is_in_log || set_aside.contains(event), "{event:?} was acknowledged, and is nowhere");
        }
    }
}

/// Returns the name of a device in messages.
fn name(at: usize) -> String {
    format!("device {at}")
}

pub(in crate::testing) fn log_of(replica: &Replica) -> Vec<Entry> {
    replica.entries(Seq::START, PageSize::events(usize::MAX >> 1)).expect(WORKS)
}

fn outbox_of(replica: &Replica) -> Vec<Envelope> {
    let pending = replica.pending(i64::MIN, PageSize::events(usize::MAX >> 1)).expect(WORKS);
    pending.into_iter().map(|(_, event)| event).collect()
}

pub(in crate::testing) fn set_aside_of(replica: &Replica) -> Vec<Envelope> {
    replica.all_set_aside().expect(WORKS).into_iter().map(|(event, _)| event).collect()
}

/// Returns the events that the view of a replica shows, in order, as far as a replay can apply them. `below` is behind the
/// snapshot that it began with. Returns `None` if the snapshot is wrong, or an event of the outbox is in the snapshot and
/// the replica doesn't know that yet: it counts twice for the time being.
fn seen_by(replica: &Replica, below: Option<&Below>) -> Option<Vec<Entry>> {
    let mut events = Vec::new();
    if replica.base() > Seq::START {
        let below = below.expect("it began with a snapshot");
        if below.is_wrong || below.entries.last()?.seq != replica.base() {
            return None;
        }
        events.extend_from_slice(&below.entries);
    }
    let ids: BTreeSet<EventId> = events.iter().map(|entry| entry.event.id).collect();
    let pending = outbox_of(replica);
    if pending.iter().any(|event| ids.contains(&event.id)) {
        return None;
    }
    events.extend(log_of(replica));
    events.extend(pending.into_iter().map(|event| Entry { seq: Seq(0), event, origin: device("here") }));
    Some(events)
}

/// Returns the ids of what is here below the base, as far as the replica knows that it is there, then those of the log and
/// of the rest of the outbox.
pub(in crate::testing) fn ids_of(replica: &Replica) -> Vec<EventId> {
    let (history, early) = replica.below_base().expect(WORKS);
    let pending = replica.pending(i64::MIN, PageSize::events(usize::MAX >> 1)).expect(WORKS);
    let is_passed = |(n, _): &(i64, Envelope)| replica.log().tip().passed.is_some_and(|passed| *n <= passed);
    let (passed, pending): (Vec<_>, Vec<_>) = pending.into_iter().partition(is_passed);
    let history = history.into_iter().map(|entry| entry.event.id);
    let below =
        history.chain(early.into_iter().chain(passed.into_iter().map(|(_, event)| event)).map(|event| event.id));
    let log = log_of(replica).into_iter().map(|entry| entry.event.id);
    below.chain(log).chain(pending.into_iter().map(|(_, event)| event.id)).collect()
}

/// Returns every event that a replica holds: in its log or the history of it, in its outbox, or set aside.
pub(in crate::testing) fn all_of(replica: &Replica) -> Vec<Envelope> {
    let (history, early) = replica.below_base().expect(WORKS);
    let log = history.into_iter().chain(log_of(replica)).map(|entry| entry.event);
    log.chain(early).chain(outbox_of(replica)).chain(set_aside_of(replica)).collect()
}

/// Panics unless every event of a replica is in exactly one place and the counts agree.
#[doc(hidden)]
pub fn check_places(replica: &Replica) {
    let (log, outbox) = (log_of(replica), outbox_of(replica));
    let mut seen = BTreeSet::new();
    for id in ids_of(replica) {
        assert!(seen.insert(id), "{id} is there twice");
    }
    let standing = replica.standing().expect(WORKS);
    let (history, early) = replica.below_base().expect(WORKS);
    let (length, here) = standing.history.map_or((0, 0), |history| (history.length, history.here));
    assert_eq!(here, history.len() as u64);
    assert!(here + early.len() as u64 <= length, "more events are below the base than there are in the log");
    assert_eq!(standing.length, length + log.len() as u64);
    assert_eq!(standing.pending, outbox.len() as u64);
    assert_eq!(standing.head, log.last().map_or(replica.base(), |entry| entry.seq));
    assert_eq!(standing.set_aside, set_aside_of(replica).len() as u64);
    if let Whose::Own(_) = standing.whose {
        assert_eq!(standing.history, None, "an authority has every id");
        assert_eq!(standing.pending, 0, "an authority has nothing pending");
        let is_level = standing.cursor == standing.head;
        assert!(is_level || replica.is_deferring(), "an authority commits its state with its log");
    }
}
