//! Devices that pull from one gateway and push to another.

use super::{Gateways, Machine, Pull, Role, WORKS, device, log_of};
use crate::engine::{Entry, PageSize, Replica};
use crate::sync::{
    End, Incoming, NextPage, Point, Push, PushAnswer, Pushed, PushedEvent, Refusal, Session, Start, ended, judged,
    repair,
};
use crate::testing::cluster::ids_of;

/// What comes of a push.
enum Delivered {
    Answered(Pushed),
    /// The gateway refuses it: pull first.
    Refused,
    /// No answer came in time.
    Nothing,
}

impl Gateways<'_> {
    /// Makes sure that a device has a pull stream from some gateway. Returns false if it stays without one.
    pub(super) fn connect(&mut self, at: usize) -> bool {
        let gates = self.gates();
        let gate = *self.rng.pick(&gates);
        self.connect_to(at, gate, true)
    }

    pub(super) fn connect_to(&mut self, at: usize, gate: usize, is_bad: bool) -> bool {
        if self.machines[at].is_cut_off || self.machines[at].replica.is_none() {
            self.drop_pull(at);
            return false;
        }
        if let Some(pull) = &self.roamer(at).pull {
            let (gate, life) = (pull.gate, pull.life);
            if self.is_gate(gate) && self.gate(gate).life == life && self.machines[gate].replica.is_some() {
                return true;
            }
        }
        self.drop_pull(at);
        for _ in 0..2 {
            if !self.catch_up(gate, is_bad) {
                return false;
            }
            let Some(run) = self.run_of(gate) else { return false };
            let position = self.replica(at).position().expect(WORKS);
            let (replica, life) = (self.machines[gate].replica.as_ref(), self.gate_life(gate));
            match judged(Start::vouch(replica, position.log, position.after, position.digest)).expect(WORKS) {
                Ok(start) => {
                    let session = Session::begin(Some(position), start.hello(&run)).expect("the gateway has vouched");
                    self.roamer(at).pull =
                        Some(Pull { gate, life, session, start, sent: position.after, answered: Vec::new() });
                    return true;
                }
                Err(Refusal::Diverged { points, .. }) => {
                    assert!(self.has_lost, "device {at} diverged from gateway {gate}, and the stream has lost nothing");
                    self.repair(at, &points);
                }
                Err(Refusal::WrongLog) => {
                    assert!(self.has_lost, "the log is another, and the stream is the same");
                    return false;
                }
                Err(other) => panic!("{other:?}"),
            }
        }
        false
    }

    fn gate_life(&self, at: usize) -> u64 {
        match &self.machines[at].role {
            Role::Gate(gate) => gate.life,
            Role::Roamer(_) => 0,
        }
    }

    fn repair(&mut self, at: usize, points: &[Point]) {
        let replica = self.replica(at);
        let before = ids_of(replica);
        repair(replica, points).expect(WORKS);
        assert_eq!(ids_of(replica), before, "what is taken back keeps its place before what is newer");
        self.look_at(at);
    }

    pub(super) fn drop_pull(&mut self, at: usize) {
        let roamer = self.roamer(at);
        roamer.pull = None;
        let is_between = std::mem::take(&mut roamer.is_between_pages);
        if let Some(replica) = self.machines[at].replica.as_mut().filter(|_| is_between) {
            replica.settle().expect(WORKS);
        }
    }

    pub(super) fn pull(&mut self, at: usize) {
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
            self.drop_pull(at);
        }
    }

    /// Pulls one page. Returns true if there was none, or if the stream is over.
    pub(super) fn pull_page(&mut self, at: usize, limit: usize) -> bool {
        let Some(mut pull) = self.roamer(at).pull.take() else { return true };
        let Some(replica) = self.machines[pull.gate].replica.as_ref() else { return true };
        let mut page = match pull.start.page_of(replica, pull.sent, PageSize::events(limit)).expect(WORKS) {
            NextPage::Page(page) => page,
            NextPage::Level => {
                self.roamer(at).pull = Some(pull);
                return true;
            }
            NextPage::Over => {
                self.drop_pull(at);
                return true;
            }
        };
        page.more |= page.events.len() > limit;
        pull.sent = page.next;
        let more = page.more;
        let arrived = ended(pull.session.arrive(self.replica(at), page)).expect(WORKS);
        self.roamer(at).is_between_pages = more;
        match arrived {
            Ok(()) => {
                self.roamer(at).pull = Some(pull);
                self.check_answered(at);
            }
            Err(End::PullFirst) => {
                assert!(self.has_lost, "an answered event was passed over, and the stream has lost nothing");
                self.drop_pull(at);
                return true;
            }
            Err(other) => panic!("{other:?}"),
        }
        false
    }

    pub(super) fn push(&mut self, at: usize) {
        if !self.connect(at) {
            return;
        }
        let limit = 1 + self.rng.below(5);
        for _ in 0..=self.rng.below(3) {
            let pulls_at = self.roamer(at).pull.as_ref().map(|pull| pull.gate);
            let gates = self.gates();
            let gate = if self.rng.chance(50) { *self.rng.pick(&gates) } else { pulls_at.unwrap_or(gates[0]) };
            if !self.push_some(at, gate, limit, true) {
                break;
            }
        }
    }

    /// Pushes the next events, or as many of them as get through. Returns false if there are none, or if no answer came.
    pub(super) fn push_some(&mut self, at: usize, gate: usize, limit: usize, is_bad: bool) -> bool {
        let Some((replica, session)) = self.session(at) else { return false };
        let mut outgoing = match ended(session.next_push(replica)).expect(WORKS) {
            Ok(Some(outgoing)) => outgoing,
            Ok(None) => return false,
            Err(_) => {
                self.drop_pull(at);
                return false;
            }
        };
        while outgoing.ids().len() > limit {
            let too_much = PushAnswer::TooMuch(End::Offline("too slow".to_owned()));
            if is_bad && self.rng.chance(30) {
                let push = self.as_sent(at, outgoing.push.clone());
                self.delayed.push((at, push));
            }
            let (replica, session) = self.session(at).expect(WORKS);
            assert_eq!(ended(session.answer(replica, &outgoing, too_much)).expect(WORKS), Ok(()), "it can be less");
            outgoing = ended(session.next_push(replica)).expect(WORKS).expect("it is on").expect("it is still there");
        }
        let push = self.as_sent(at, outgoing.push.clone());
        match if is_bad { self.rng.below(10) } else { 9 } {
            0 => return self.hears_nothing(at),
            1 => {
                self.delayed.push((at, push));
                return self.hears_nothing(at);
            }
            2 => {
                self.deliver(at, gate, push, is_bad);
                return self.hears_nothing(at);
            }
            3 => self.delayed.push((at, push.clone())),
            _ => {}
        }
        let pushed = match self.deliver(at, gate, push, is_bad) {
            Delivered::Answered(pushed) => pushed,
            Delivered::Refused => {
                self.drop_pull(at);
                return false;
            }
            Delivered::Nothing => return self.hears_nothing(at),
        };
        let places = outgoing.ids().iter().zip(&pushed.events).filter_map(|(id, event)| match event {
            PushedEvent::Stored { seq, .. } => Some((*id, *seq)),
            PushedEvent::Refused { .. } => None,
        });
        let places: Vec<_> = places.collect();
        let Some((replica, session)) = self.session(at) else { return false };
        match ended(session.answer(replica, &outgoing, PushAnswer::Pushed(pushed))).expect(WORKS) {
            Ok(()) => {}
            Err(End::PullFirst) => {
                assert!(self.has_lost, "an answered event was passed over, and the stream has lost nothing");
                self.drop_pull(at);
                return false;
            }
            Err(other) => panic!("{other:?}"),
        }
        self.roamer(at).pull.as_mut().into_iter().for_each(|pull| pull.answered.extend(&places));
        self.check_answered(at);
        self.look_at(at);
        true
    }

    /// What was answered has come, or the pull hasn't come to its place. Otherwise the next push could overtake it.
    fn check_answered(&mut self, at: usize) {
        let Machine { replica, role: Role::Roamer(roamer), .. } = &mut self.machines[at] else { return };
        let (Some(replica), Some(pull)) = (replica, &mut roamer.pull) else { return };
        let pending = replica.pending(i64::MIN, PageSize::events(usize::MAX >> 1)).expect(WORKS);
        pull.answered.retain(|(id, _)| pending.iter().any(|(_, event)| event.id == *id));
        for (id, seq) in &pull.answered {
            // A page's last place counts once all of a push is behind it.
            let is_whole = pull.answered.iter().all(|(_, other)| *other <= pull.sent);
            assert!(*seq > pull.sent || !is_whole, "the pull has passed {seq}, and {id} didn't come");
        }
    }

    /// Returns a device's session, with its replica.
    fn session(&mut self, at: usize) -> Option<(&mut Replica, &mut Session)> {
        let Machine { replica, role, .. } = &mut self.machines[at];
        match role {
            Role::Roamer(roamer) => Some((replica.as_mut()?, &mut roamer.pull.as_mut()?.session)),
            Role::Gate(_) => None,
        }
    }

    /// A device of an earlier version says nothing of what it has.
    fn as_sent(&mut self, at: usize, push: Push) -> Push {
        if self.roamer(at).is_old { Push { has: None, part: false, ..push } } else { push }
    }

    /// Handles a push that gets no answer: usually the session ends with it.
    fn hears_nothing(&mut self, at: usize) -> bool {
        if self.rng.chance(70) {
            self.drop_pull(at);
        }
        false
    }

    /// Hands a push to a gateway, and waits for the answer for some time.
    fn deliver(&mut self, from: usize, at: usize, push: Push, is_bad: bool) -> Delivered {
        if !self.is_gate(at) || !self.wake(at, is_bad) {
            return Delivered::Nothing;
        }
        let Some(run) = self.run_of(at) else { return Delivered::Nothing };
        let incoming = match Incoming::check(push, &run, &device(&format!("device-{from}"))) {
            Ok(incoming) => incoming,
            Err(refusal) => return self.check_refusal(&refusal),
        };
        let ticket = self.gateway(at).1.push(incoming).expect("there is room");
        for _ in 0..if is_bad { 3 + self.rng.below(25) } else { 1_000 } {
            let answered = &mut self.gate(at).answered;
            if let Some(nth) = answered.iter().position(|answered| answered.ticket == ticket) {
                return match answered.remove(nth).result {
                    Ok(pushed) => Delivered::Answered(pushed),
                    Err(refusal) => self.check_refusal(&refusal),
                };
            }
            if is_bad && self.rng.chance(10) && self.gate(at).gateway.is_some() {
                let gateway = self.gateway(at).1;
                gateway.answer_now();
                let answers = gateway.take_answers();
                self.gate(at).answered.extend(answers);
                continue;
            }
            self.work(at, is_bad);
            self.look_at(at);
        }
        let is_noticed = self.rng.chance(50);
        if let Some(gateway) = self.running(at).and_then(|(_, gate)| gate.gateway.as_mut()).filter(|_| is_noticed) {
            gateway.give_up(ticket);
        }
        Delivered::Nothing
    }

    fn check_refusal(&self, refusal: &Refusal) -> Delivered {
        let is_expected = matches!(refusal, Refusal::PullFirst) || *refusal == Refusal::WrongLog && self.has_lost;
        assert!(is_expected, "{refusal:?}");
        Delivered::Refused
    }

    /// Something that was under way arrives after all: a publication, an answer to a gateway, or a push.
    pub(super) fn deliver_something(&mut self) {
        match self.rng.below(3) {
            0 if !self.in_flight.is_empty() => {
                let nth = self.rng.below(self.in_flight.len());
                let publishing = self.in_flight.remove(nth);
                let _ = self.land(publishing.expected, &publishing.bytes);
            }
            1 if !self.late.is_empty() => {
                let nth = self.rng.below(self.late.len());
                self.arrive_late(nth);
            }
            _ if !self.delayed.is_empty() => {
                let nth = self.rng.below(self.delayed.len());
                let (from, push) = self.delayed.remove(nth);
                let gates = self.gates();
                let gate = *self.rng.pick(&gates);
                drop(self.deliver(from, gate, push, true));
            }
            _ => {}
        }
    }

    /// Whether the logs of all machines are the same, and nothing waits.
    pub(super) fn is_quiet(&mut self) -> bool {
        let first = self.gates()[0];
        let log = log_of(self.replica(first));
        (0..self.machines.len()).all(|at| {
            let is_gate = self.is_gate(at);
            let replica = self.replica(at);
            replica.standing().expect(WORKS).pending == 0 && is_same(&log_of(replica), &log, is_gate)
        })
    }
}

/// Whether two logs are the same. A device may know places from before the stream lost messages, where the same events, in the
/// same order, have other places now.
pub(super) fn is_same(one: &[Entry], other: &[Entry], has_places: bool) -> bool {
    let is_same = |(one, other): (&Entry, &Entry)| {
        (&one.event, &one.origin) == (&other.event, &other.origin) && (!has_places || one.seq == other.seq)
    };
    one.len() == other.len() && one.iter().zip(other).all(is_same)
}
