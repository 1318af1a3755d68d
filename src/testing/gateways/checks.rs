//! The invariants: after each step for the machine that took it, and at the end for all machines together.

use std::collections::BTreeSet;
use std::fs;

use super::roaming::is_same;
use super::{Gateways, Role, WORKS, log_of, open};
use crate::engine::{Entry, Envelope, EventId, Outcome, Replica, Standing, Whose};
use crate::sync::gateway::{Judges, Message, Step};
use crate::testing::cluster::{all_of, check_places, set_aside_of};
use crate::testing::difference::{Order, Replay, check_order, compare};

impl Gateways<'_> {
    /// Checks what must hold for a machine after every step.
    pub(super) fn look_at(&mut self, at: usize) {
        let machine = &mut self.machines[at];
        let Some(replica) = &machine.replica else { return };
        check_places(replica);
        check_messages(replica);
        let is_between =
            matches!(&machine.role, Role::Roamer(roamer) if roamer.is_between_pages) || replica.is_behind();
        let at_rest = self.simulation.at_rest.iter().filter(|_| !is_between);
        self.simulation.always.iter().chain(at_rest).for_each(|check| check(replica, &machine.dir));
        let holds = all_of(replica);
        for event in &machine.held {
            let copies = holds.iter().filter(|one| *one == event).count();
            assert_eq!(copies, 1, "{event:?} is held {copies} times by machine {at}");
        }
        machine.held = holds;
    }

    /// Makes everything work again. Then all machines must soon agree.
    pub(super) fn heal(&mut self) {
        for at in 0..self.machines.len() {
            self.machines[at].is_cut_off = false;
            self.start_if_down(at);
            self.reconnect(at);
        }
        while !(self.late.is_empty() && self.in_flight.is_empty() && self.delayed.is_empty()) {
            self.deliver_something();
        }
        // What is delivered may meet a gateway that crashes over it.
        (0..self.machines.len()).for_each(|at| self.start_if_down(at));
        let mut rounds = 0;
        loop {
            rounds += 1;
            assert!(rounds <= 12, "it does not come to rest: {}", self.describe());
            for at in 0..self.machines.len() {
                if self.is_gate(at) {
                    self.settle_gate(at)
                } else {
                    self.settle_device(at)
                }
                self.look_at(at);
            }
            let is_told = self.gates().into_iter().all(|at| self.knows_bucket(at));
            if is_told && self.is_quiet() {
                break;
            }
        }
    }

    /// Describes where the machines stand.
    fn describe(&mut self) -> String {
        let mut lines = vec![format!("the stream ends at {:?}", self.stream.ends())];
        for (at, machine) in self.machines.iter().enumerate() {
            let Some(replica) = &machine.replica else { continue };
            let Standing { whose, head, length, pending, .. } = replica.standing().expect(WORKS);
            let applied = (1..).map_while(|nth| replica.nth_applied(nth).expect(WORKS));
            let applied: Vec<_> = applied.map(|one| format!("{}:{:.6}", one.sequence, one.hash.to_string())).collect();
            let digest = replica.digest_at(head).expect(WORKS);
            lines.push(match &machine.role {
                Role::Gate(gate) => format!(
                    "gateway {at}: {length} to {head}, {digest:?}, {pending} wait, {applied:?}, {:?}, {:?}",
                    gate.gateway, gate.access
                ),
                Role::Roamer(_) => format!("device {at}: {length} to {head}, {digest:?}, {pending} wait, {whose:?}"),
            });
        }
        lines.join("\n")
    }

    fn settle_gate(&mut self, at: usize) {
        self.poll_bucket(at, false);
        if !self.catch_up(at, false) && self.is_halted(at) {
            self.adopt(at);
        }
        for _ in 0..1_000 {
            if !self.work(at, false) && self.replica(at).standing().expect(WORKS).pending == 0 {
                break;
            }
        }
        self.poll_bucket(at, false);
    }

    fn is_halted(&mut self, at: usize) -> bool {
        let (replica, gateway) = self.gateway(at);
        matches!(gateway.judges(replica, 0).expect(WORKS), Judges::Halted(_))
    }

    fn settle_device(&mut self, at: usize) {
        let gates = self.gates();
        self.drop_pull(at);
        for tries in 0..30 {
            let gate = *self.rng.pick(&gates);
            if self.is_halted_log(at, gate) {
                self.adopt(at);
            }
            if !self.connect_to(at, gate, false) {
                self.poll_bucket(gate, false);
                continue;
            }
            while !self.pull_page(at, 5) {}
            if self.replica(at).standing().expect(WORKS).pending == 0 {
                return;
            }
            self.push_some(at, *gates.get(tries % gates.len()).unwrap_or(&gate), 4, false);
        }
    }

    /// Whether a device knows another log than the gateway serves.
    fn is_halted_log(&mut self, at: usize, gate: usize) -> bool {
        let served = self.replica(gate).served();
        let known = self.replica(at).position().expect(WORKS).log;
        served.is_some() && known.is_some() && served != known
    }

    pub(super) fn agree(&mut self) -> Vec<Entry> {
        let first = self.gates()[0];
        let log = log_of(self.replica(first));
        let ids: BTreeSet<EventId> = log.iter().map(|entry| entry.event.id).collect();
        assert_eq!(ids.len(), log.len());
        for (at, machine) in self.machines.iter().enumerate() {
            if self.has_lost && matches!(&machine.role, Role::Roamer(roamer) if roamer.is_old) {
                // It can't tell a gateway what it has, so the gateway may not know what the stream lost.
                continue;
            }
            let own: Vec<_> = machine.committed.iter().filter(|id| !self.excused.contains(id)).copied().collect();
            let order: Vec<_> = log.iter().map(|entry| entry.event.id).filter(|id| own.contains(id)).collect();
            assert_eq!(order, own, "nothing of machine {at} overtakes what it may depend on");
        }
        let replay = Replay::of(self.simulation, &log, Order::Natural);
        check_order(self.simulation, &log, &replay.replica);
        let mut set_aside = Vec::new();
        for at in 0..self.machines.len() {
            self.look_at(at);
            let replica = self.machines[at].replica.take().expect(WORKS);
            let has_places = !self.has_lost || self.is_gate(at);
            assert!(is_same(&log_of(&replica), &log, has_places), "machine {at} has another log");
            compare(self.simulation, &log, (&format!("machine {at}"), &replica), ("a replay", &replay.replica));
            set_aside.extend(set_aside_of(&replica));
            drop(replica);
            fs::remove_file(self.machines[at].dir.join("state.db")).expect(WORKS);
            let replica = open(self.simulation, &self.machines[at].dir).expect(WORKS);
            compare(
                self.simulation,
                &log,
                (&format!("machine {at}, rebuilt,"), &replica),
                ("a replay", &replay.replica),
            );
            self.machines[at].replica = Some(replica);
        }
        for event in &self.acknowledged {
            let is_in_log = log.iter().any(|entry| entry.event == *event);
            assert!(is_in_log || set_aside.contains(event), "{event:?} was acknowledged, and is nowhere");
        }
        if !self.has_lost {
            let mut entered = BTreeSet::new();
            let is_new = |event: Envelope| entered.insert(event.id);
            assert!(self.stream.events().all(is_new), "an event enters the stream once");
        }
        self.check_tokens();
        log
    }

    /// Nothing holds a device to one gateway: it pulls from one and pushes to another, and its event comes back.
    pub(super) fn roam(&mut self) {
        let gates = self.gates();
        let (one, other) = (gates[0], gates[1]);
        let Some(at) = (0..self.machines.len()).find(|at| !self.is_gate(*at)) else { return };
        self.drop_pull(at);
        let event = self.new_event();
        let before = self.replica(at).standing().expect(WORKS).length;
        if !matches!(self.replica(at).commit(&[event]).expect(WORKS)[..], [Outcome::Stored(_)]) {
            return;
        }
        assert!(self.connect_to(at, one, false), "the device can pull");
        assert!(self.push_some(at, other, 1, false), "another gateway takes what the device pushes");
        assert!(self.catch_up(one, false));
        while !self.pull_page(at, 5) {}
        let standing = self.replica(at).standing().expect(WORKS);
        assert_eq!((standing.length, standing.pending), (before + 1, 0), "it is confirmed by the first gateway");
    }

    /// A gateway that begins now, with nothing, comes to the same log. Returns false if it finds that the stream may not be
    /// what the others have their log from, which nobody else could see. Then all of them have to compare it.
    pub(super) fn newcomer_agrees(&mut self, log: &[Entry]) -> bool {
        let dir = self.new_dir();
        let replica = open(self.simulation, &dir).expect(WORKS);
        self.push_machine(super::Machine {
            dir,
            replica: Some(replica),
            is_cut_off: false,
            held: Vec::new(),
            committed: Vec::new(),
            role: Role::Gate(Box::default()),
        });
        let at = self.machines.len() - 1;
        self.poll_bucket(at, false);
        assert!(self.catch_up(at, false), "it comes level with the stream");
        if self.gate(at).lost.is_some() {
            return false;
        }
        assert_eq!(log_of(self.replica(at)), log, "the stream has the log");
        true
    }

    /// Moves the store out of the stream: one gateway becomes the hub of the log, and the others refuse it.
    pub(super) fn move_out(&mut self) {
        let gates = self.gates();
        let first = gates[0];
        assert!(self.catch_up(first, false));
        let before = log_of(self.replica(first));
        let id = self.replica(first).served();
        self.gateway(first).1.close("https://elsewhere.example");
        while self.replica(first).closed().expect(WORKS).is_none() {
            self.work(first, false);
        }
        let bytes = self.stream.get(self.stream.ends().last).map(<[u8]>::to_vec).unwrap_or_default();
        assert!(matches!(Message::read(&bytes), Ok(Message::Closed(_))));
        for at in gates {
            let event = self.new_event();
            let is_kept = self.replica(at).commit(&[event]).is_ok();
            assert!(is_kept, "what happens at a gateway waits");
            for _ in 0..50 {
                self.work(at, false);
            }
            let (replica, gateway) = self.gateway(at);
            assert!(matches!(gateway.judges(replica, 0).expect(WORKS), Judges::Moved(_)));
            assert!(matches!(gateway.next(replica).expect(WORKS), Step::Rest));
            assert_eq!(log_of(replica), before);
        }
        let hub = self.replica(first);
        hub.promote().expect(WORKS);
        assert_eq!(hub.served(), id, "devices know the log");
        assert!(matches!(hub.standing().expect(WORKS).whose, Whose::Own(_)));
        assert_eq!(log_of(hub)[..before.len()], before);
        check_places(hub);
    }
}

/// Panics unless the messages that a gateway remembers fit its log.
fn check_messages(replica: &Replica) {
    let (mut last, mut seq, mut nth) = (0, crate::engine::Seq::START, 0);
    while let Some(message) = replica.applied_after(last).expect(WORKS) {
        assert!(message.seq >= seq && message.nth == nth + 1, "{message:?}");
        (last, seq, nth) = (message.sequence, message.seq, message.nth);
    }
}
