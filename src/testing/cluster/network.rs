//! The network: pulls and pushes, which get lost, arrive late, or arrive twice.

use super::checks::ids_of;
use super::{Cluster, Letter, Stream, WORKS, device, run_id};
use crate::engine::{Replica, Seq};
use crate::sync::{
    End, Hello, Incoming, NextPage, Outgoing, Point, PushAnswer, Pushed, PushedEvent, Refusal, Session, Start,
    WireEntry, ended, judged, repair,
};

impl Cluster<'_> {
    /// Returns the authority's log after a place, as the wire shows it: with gaps, and with some events repeated.
    pub(super) fn wire(&mut self, start: &mut Start, after: Seq, limit: usize) -> NextPage {
        let stride = self.stride;
        let mut page = match start.page(self.authority(), Seq(after.0 / stride)).expect(WORKS) {
            NextPage::Page(page) => page,
            other => return other,
        };
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
        page.next = page.events.last().expect(WORKS).seq;
        NextPage::Page(page)
    }

    /// Makes sure that the node has a stream to the authority's current run. A new stream says hello and repairs a
    /// diverged log. Returns false if the node stays without one.
    pub(super) fn connect(&mut self, at: usize) -> bool {
        if self.nodes[at].is_cut_off || self.nodes[at].replica.is_none() {
            self.drop_stream(at);
            return false;
        }
        if self.nodes[at].stream.as_ref().is_some_and(|stream| stream.run == self.run) {
            return true;
        }
        self.drop_stream(at);
        // A log that begins at a snapshot is repaired in two steps.
        for _ in 0..3 {
            let position = self.replica(at).position().expect(WORKS);
            let after = Seq(position.after.0 / self.stride);
            match judged(Start::vouch(Some(self.authority()), position.log, after, position.digest)).expect(WORKS) {
                Ok(start) => {
                    let hello = start.hello(&run_id(self.run));
                    let hello = Hello { head: Seq(hello.head.0 * self.stride), ..hello };
                    let session = Session::begin(Some(position), hello).expect("the authority has vouched for its log");
                    let stream = Stream { run: self.run, session, start, sent: position.after };
                    self.nodes[at].stream = Some(stream);
                    return true;
                }
                Err(Refusal::Diverged { points, .. }) => self.repair(at, points),
                // The authority was recreated, so the node has to adopt its log.
                Err(Refusal::WrongLog) => return false,
                Err(other) => panic!("{other:?}"),
            }
        }
        panic!("what is repaired is vouched for");
    }

    pub(super) fn repair(&mut self, at: usize, points: Vec<Point>) {
        let stride = self.stride;
        let points: Vec<_> =
            points.into_iter().map(|point| Point { seq: Seq(point.seq.0 * stride), ..point }).collect();
        let replica = self.replica(at);
        let before = ids_of(replica);
        repair(replica, &points).expect(WORKS);
        assert_eq!(ids_of(replica), before, "what is taken back keeps its place before what is newer");
        self.look_at(at);
    }

    pub(super) fn replica(&mut self, at: usize) -> &mut Replica {
        self.nodes[at].replica.as_mut().expect(WORKS)
    }

    pub(super) fn drop_stream(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        node.stream = None;
        if let Some(replica) = node.replica.as_mut().filter(|_| node.is_between_pages) {
            replica.settle().expect(WORKS);
            node.is_between_pages = false;
        }
    }

    pub(super) fn pull(&mut self, at: usize) {
        if self.rng.chance(50) {
            self.join(at);
        }
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

    /// Pulls one page. Returns true if there was none, or if the stream is over.
    pub(super) fn pull_page(&mut self, at: usize, limit: usize) -> bool {
        let Some(mut stream) = self.nodes[at].stream.take() else { return true };
        let page = match self.wire(&mut stream.start, stream.sent, limit) {
            NextPage::Page(page) => page,
            NextPage::Level => {
                self.nodes[at].stream = Some(stream);
                return true;
            }
            NextPage::Over => {
                self.drop_stream(at);
                return true;
            }
        };
        stream.sent = page.next;
        let more = page.more;
        let node = &mut self.nodes[at];
        let arrived = ended(stream.session.arrive(node.replica.as_mut().expect(WORKS), page)).expect(WORKS);
        assert_eq!(arrived, Ok(()), "nobody else changes the log");
        node.is_between_pages = more;
        node.stream = Some(stream);
        false
    }

    pub(super) fn push(&mut self, at: usize) {
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

    /// Pushes the next events, or as many of them as get through. Returns false if there are none, or if no answer
    /// came.
    pub(super) fn push_some(&mut self, at: usize, limit: usize) -> bool {
        let Some(mut outgoing) = self.next_push(at) else { return false };
        while outgoing.ids().len() > limit {
            let too_much = match self.rng.below(2) {
                0 => PushAnswer::TooLarge,
                _ => PushAnswer::TooMuch(End::Offline("too slow".to_owned())),
            };
            if self.rng.chance(30) {
                // The push arrives, but too late for an answer in time.
                self.delayed.push(Letter { from: at, push: outgoing.push.clone() });
            }
            assert_eq!(self.answer(at, &outgoing, too_much), Ok(()), "it can be less");
            outgoing = self.next_push(at).expect("what was too much is still there");
        }
        let letter = Letter { from: at, push: outgoing.push.clone() };
        match self.rng.below(10) {
            // Lost on the way, or late, perhaps later than its own repetition.
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
            // Arrives twice now, and once more later.
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

    /// Handles a push that gets no answer: usually the session ends with it.
    pub(super) fn hears_nothing(&mut self, at: usize) -> bool {
        if self.rng.chance(70) {
            self.drop_stream(at);
        }
        false
    }

    pub(super) fn next_push(&mut self, at: usize) -> Option<Outgoing> {
        let node = &mut self.nodes[at];
        let session = &mut node.stream.as_mut()?.session;
        ended(session.next_push(node.replica.as_ref().expect(WORKS)))
            .expect(WORKS)
            .expect("nobody else changes the log")
    }

    pub(super) fn answer(&mut self, at: usize, outgoing: &Outgoing, answer: PushAnswer) -> Result<(), End> {
        let node = &mut self.nodes[at];
        let session = &mut node.stream.as_mut().expect(WORKS).session;
        ended(session.answer(node.replica.as_mut().expect(WORKS), outgoing, answer)).expect(WORKS)
    }

    /// Hands a push to the authority.
    pub(super) fn deliver(&mut self, letter: Letter) -> Result<Pushed, Refusal> {
        let device = device(&format!("node-{}", letter.from));
        let incoming = Incoming::check(letter.push, &run_id(self.run), &device)?;
        let pushed = judged(incoming.store(Some(self.authority()))).expect(WORKS);
        self.look_at_authority();
        pushed.map(|pushed| self.on_the_wire(pushed))
    }

    /// Returns an answer with the places as the wire shows them.
    pub(super) fn on_the_wire(&self, mut pushed: Pushed) -> Pushed {
        for event in &mut pushed.events {
            if let PushedEvent::Stored { seq, .. } = event {
                seq.0 *= self.stride;
            }
        }
        pushed
    }

    pub(super) fn deliver_delayed(&mut self) {
        if !self.delayed.is_empty() {
            let nth = self.rng.below(self.delayed.len());
            let letter = self.delayed.remove(nth);
            match self.deliver(letter) {
                Ok(_) | Err(Refusal::PullFirst | Refusal::WrongLog) => {}
                Err(refusal) => panic!("{refusal:?}"),
            }
        }
    }
}
