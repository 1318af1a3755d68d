//! What gateways decide is carried out here, on a bad network.

use super::{Gateways, Late, Outcomes, Publishing, WORKS, stream_id};
use crate::sync::gateway::{Gateway, Judges, Publication, Sequence, Step};

impl Gateways<'_> {
    /// Makes sure that a gateway runs and is connected. Returns false otherwise.
    pub(super) fn wake(&mut self, at: usize, is_bad: bool) -> bool {
        let home = self.home(at);
        if self.machines[at].is_cut_off {
            return false;
        }
        if !self.gate(at).is_heard {
            self.poll_bucket(at, is_bad);
        }
        let Some((replica, gate)) = self.running(at) else { return false };
        if gate.gateway.is_none() {
            gate.gateway = Some(Gateway::begin(replica, home).expect(WORKS));
            gate.life += 1;
            gate.outstanding = None;
            gate.answered.clear();
            gate.seen = gate.access.begun().number;
        }
        self.notice_run(at);
        true
    }

    pub(super) fn work_some(&mut self, at: usize) {
        for _ in 0..=self.rng.below(10) {
            if !self.work(at, true) {
                break;
            }
            self.look_at(at);
        }
    }

    /// Does the next thing that a gateway asks for. Returns false if there is none.
    pub(super) fn work(&mut self, at: usize, is_bad: bool) -> bool {
        if !self.wake(at, is_bad) {
            return false;
        }
        let chance = |story: &mut Self, percent| is_bad && story.rng.chance(percent);
        let (replica, gate) = self.running(at).expect(WORKS);
        let (life, gateway) = (gate.life, gate.gateway.as_mut().expect(WORKS));
        let outstanding = gate.outstanding;
        let step = gateway.next(replica).expect(WORKS);
        let applied = replica.applied().expect(WORKS).map_or(0, |applied| applied.sequence);
        let mut goes_on = true;
        match step {
            Step::Ask(question) => {
                let ends = self.stream.ends();
                if chance(self, 10) {
                    self.late.push(Late { gate: at, life, what: Outcomes::Heard(question, ends) });
                } else if !chance(self, 10) {
                    let (replica, gateway) = self.gateway(at);
                    gateway.heard(replica, question, ends).expect(WORKS);
                }
            }
            Step::Get(sequence) => {
                if !chance(self, 10) {
                    let found = self.stream.get(sequence).map(<[u8]>::to_vec);
                    let (replica, gateway) = self.gateway(at);
                    gateway.found(replica, sequence, found.as_deref()).expect(WORKS);
                }
            }
            Step::Read(after) => self.read(at, after, is_bad),
            Step::Publish(_) | Step::Rest if outstanding.is_some() || matches!(step, Step::Rest) => {
                // A consumer brings what comes next at any time.
                let before = applied;
                if !chance(self, 30) && self.stream.next(before).is_some() {
                    self.read(at, before, is_bad);
                } else {
                    goes_on = outstanding.is_some() && self.resolve(at);
                }
            }
            Step::Publish(publication) => self.publish(at, life, &publication, is_bad),
            Step::Rest => goes_on = false,
        }
        self.note(at);
        goes_on
    }

    /// Brings a gateway the message that comes next, unless it is late.
    fn read(&mut self, at: usize, after: Sequence, is_bad: bool) {
        let next = self.stream.next(after).map(|(sequence, bytes)| (sequence, bytes.to_vec()));
        let is_late = is_bad && self.rng.chance(20);
        let (replica, gateway) = self.gateway(at);
        match next {
            Some((sequence, bytes)) if !is_late => gateway.arrive(replica, after, sequence, &bytes).expect(WORKS),
            _ => gateway.doubt(),
        }
    }

    /// Sends a publication to the stream. It may be lost, late or doubled, and so may its acknowledgement.
    fn publish(&mut self, at: usize, life: u64, publication: &Publication, is_bad: bool) {
        let Publication { number, expected, bytes, .. } = publication;
        let (number, expected) = (*number, *expected);
        let copy = || Publishing { expected, bytes: bytes.clone() };
        let fate = if is_bad { self.rng.below(10) } else { 9 };
        match fate {
            0 => return self.gateway(at).1.unanswered(number),
            1 => {
                self.in_flight.push(copy());
                return self.gateway(at).1.unanswered(number);
            }
            2 => self.in_flight.push(copy()),
            _ => {}
        }
        let outcome = self.land(expected, bytes);
        match (fate, outcome) {
            (3 | 4, Ok(_)) => self.gateway(at).1.unanswered(number),
            (5 | 6, outcome) => {
                let what = match outcome {
                    Ok(sequence) => Outcomes::Acknowledged(number, sequence),
                    Err(last) => Outcomes::Refused(number, last),
                };
                self.gate(at).outstanding = Some(number);
                self.late.push(Late { gate: at, life, what });
            }
            (_, Ok(sequence)) => self.gateway(at).1.acknowledged(number, sequence),
            (fate, Err(last)) => {
                let (replica, gateway) = self.gateway(at);
                gateway.refused(replica, number, (fate != 7).then_some(last)).expect(WORKS);
            }
        }
    }

    /// The stream takes a publication or refuses it.
    pub(super) fn land(&mut self, expected: Sequence, bytes: &[u8]) -> Result<Sequence, Sequence> {
        let landed = self.stream.publish(expected, bytes);
        let replaced = self.stream.take_replaced();
        self.excused.extend(replaced);
        landed
    }

    /// Ends the wait for an outcome: it comes now, or the gateway gives up waiting.
    fn resolve(&mut self, at: usize) -> bool {
        let life = self.gate(at).life;
        let is_its = |late: &Late| late.gate == at && late.life == life && !matches!(late.what, Outcomes::Heard(..));
        match self.late.iter().position(is_its) {
            Some(nth) if self.rng.chance(70) => self.arrive_late(nth),
            _ => {
                let number = self.gate(at).outstanding.take();
                number.into_iter().for_each(|number| self.gateway(at).1.unanswered(number));
            }
        }
        true
    }

    /// An answer arrives that was late, unless nobody waits for it any more.
    pub(super) fn arrive_late(&mut self, nth: usize) {
        let Late { gate: at, life, what } = self.late.remove(nth);
        if self.machines[at].is_cut_off || !self.is_gate(at) || self.gate(at).life != life {
            return;
        }
        let Some((replica, gate)) = self.running(at) else { return };
        let Some(gateway) = gate.gateway.as_mut() else { return };
        match what {
            Outcomes::Heard(question, ends) => gateway.heard(replica, question, ends).expect(WORKS),
            Outcomes::Acknowledged(number, sequence) => gateway.acknowledged(number, sequence),
            Outcomes::Refused(number, last) => gateway.refused(replica, number, Some(last)).expect(WORKS),
        }
        gate.outstanding = gate.outstanding.filter(|_| matches!(what, Outcomes::Heard(..)));
        self.note(at);
    }

    pub(super) fn gateway(&mut self, at: usize) -> (&mut crate::engine::Replica, &mut Gateway) {
        let (replica, gate) = self.running(at).expect(WORKS);
        (replica, gate.gateway.as_mut().expect(WORKS))
    }

    /// Takes from a gateway what it has to say.
    pub(super) fn note(&mut self, at: usize) {
        let Some((_, gate)) = self.running(at) else { return };
        let Some(gateway) = gate.gateway.as_mut() else { return };
        gate.answered.extend(gateway.take_answers());
        drop(gateway.take_notices());
        if let Some(what) = gateway.take_loss() {
            gate.lost = Some(gate.access.begun().number);
            assert!(self.has_lost, "gateway {at}: {what}; and the stream has lost nothing");
        }
    }

    /// Brings a gateway level with the stream as of now. Returns false if it doesn't get there soon.
    pub(super) fn catch_up(&mut self, at: usize, is_bad: bool) -> bool {
        if !self.wake(at, is_bad) {
            return false;
        }
        let ends = self.stream.ends();
        let (replica, gateway) = self.gateway(at);
        let question = gateway.question(replica).expect(WORKS);
        gateway.heard(replica, question, ends).expect(WORKS);
        for _ in 0..if is_bad { 25 } else { 1_000 } {
            let (replica, gateway) = self.gateway(at);
            match gateway.judges(replica, ends.last).expect(WORKS) {
                Judges::Yes => return true,
                Judges::NotYet | Judges::MovingIn => drop(self.work(at, is_bad)),
                Judges::Halted(_) | Judges::Moved(_) => return false,
            }
            if self.machines[at].replica.is_none() {
                return false;
            }
        }
        false
    }

    /// Another stream stands under the name: the old one was deleted.
    pub(super) fn recreate_stream(&mut self) {
        self.streams += 1;
        self.stream = super::Stream::new(stream_id(self.streams));
        (self.moved, self.has_lost) = (None, true);
        self.in_flight.clear();
        self.late.clear();
        for at in self.gates() {
            self.gate(at).gateway = None;
        }
        self.forget_what_nobody_holds();
    }
}
