//! A client's session with its upstream: its decisions, on a replica, without network, clock or thread.
//!
//! A session is one pull stream. The client remembers what it has pushed for that stream only. So it notices a replaced
//! hub before anything of ours reaches that hub out of order.

use std::collections::VecDeque;
use std::time::Duration;

use super::protocol::{self, Has, Hello, PAGE, Placed, Point, Push, Pushed, PushedEvent, WireEvent, WirePage, words};
use crate::engine::{EventId, Fault, Generation, LogId, PageSize, Position, Replica, Seq};
use crate::limits::sync::session::{BEFORE_GROWTH, IN_VAIN, REFUSED_TOGETHER};

/// Why a session ended, or can't begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The network, a proxy or a captive portal is in the way, or the hub is in trouble. The hub has said nothing about
    /// us.
    Offline(String),
    /// The same, and whoever answered asks to be left alone for a time.
    Later(String, Duration),
    /// The hub refuses us until somebody acts. Holds its code and the reason.
    Halted(&'static str, String),
    /// The session's knowledge of the hub or of our log is out of date. Pull before pushing anything more.
    PullFirst,
    /// The hub's log and ours differ. These are points of the hub's log.
    Diverged(Vec<Point>),
    /// The store was closed here.
    Closed,
}

/// Why a session can't do a step.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The session is over; the replica is sound.
    #[error("the session is over: {0:?}")]
    End(End),
    /// The machine failed. Nothing may be concluded about the hub.
    #[error(transparent)]
    Fault(#[from] Fault),
}

impl From<End> for SessionError {
    fn from(end: End) -> Self {
        Self::End(end)
    }
}

/// Separates the two kinds of errors: a fault goes to the owner of the replica, an end to the code that runs the session.
///
/// # Errors
///
/// The fault.
pub fn ended<T>(result: Result<T, SessionError>) -> Result<Result<T, End>, Fault> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(SessionError::End(end)) => Ok(Err(end)),
        Err(SessionError::Fault(fault)) => Err(fault),
    }
}

/// Events that are pushed together.
#[derive(Debug)]
pub struct Outgoing {
    /// The body to send.
    pub push: Push,
    ids: Vec<EventId>,
    /// The numbers of these events in the outbox.
    numbers: Vec<i64>,
}

impl Outgoing {
    /// Returns the ids of the events, in order.
    pub fn ids(&self) -> &[EventId] {
        &self.ids
    }
}

/// The outcome of a push.
#[derive(Debug)]
pub enum PushAnswer {
    /// The hub's answer.
    Pushed(Pushed),
    /// No answer came in time, or something on the way takes less at once. If the push can't be smaller, the session
    /// ends with this.
    TooMuch(End),
    /// The hub itself says that the push is too large.
    TooLarge,
}

/// The memory of one pull stream.
#[derive(Debug)]
pub struct Session {
    /// The hub's run. Each push names it.
    run: String,
    /// The hub's log, once it has one.
    log: Option<LogId>,
    /// The end of the hub's log when the session began. Nothing is pushed until everything up to here is pulled.
    target: Seq,
    /// How far the replica has pulled the hub's log.
    pulled: Seq,
    /// How far the hub's pages have come. Pages at the end that bring nothing aren't worth a write to the replica.
    reached: Seq,
    /// How many pages in a row brought nothing.
    in_vain: u32,
    /// The outbox number of the last event that was pushed and answered.
    pushed: i64,
    /// The pushes whose answers the pull hasn't come to yet: the last event of each in the outbox, and its last place.
    answered: VecDeque<(i64, Seq)>,
    /// The last event that was answered.
    last_answered: Option<Placed>,
    /// How much is pushed at once.
    size: PageSize,
    /// How many pushes of that size got through.
    got_through: u32,
    /// The events that the hub refused and that are still pending.
    refused: Vec<(EventId, String)>,
    /// The generation of our eventlog, if there is one.
    generation: Option<Generation>,
}

impl Session {
    /// Starts a session with the hub's first message. The replica is at `position`, if it exists yet.
    ///
    /// # Errors
    ///
    /// When the hub has another log than the replica was synced with.
    pub fn begin(position: Option<Position>, hello: Hello) -> Result<Self, End> {
        if position.is_some_and(|position| position.log.is_some() && position.log != hello.log) {
            let why = "The hub has another log than this store was synced with.";
            return Err(End::Halted(protocol::code::WRONG_LOG, why.to_owned()));
        }
        if let Some(why) = hello.fault() {
            return Err(no_hubs(why));
        }
        let pulled = position.map_or(Seq::START, |position| position.after);
        Ok(Self {
            run: hello.run,
            log: hello.log,
            target: hello.head,
            pulled,
            reached: pulled,
            in_vain: 0,
            pushed: i64::MIN,
            answered: VecDeque::new(),
            last_answered: None,
            size: PAGE,
            got_through: 0,
            refused: Vec::new(),
            generation: position.map(|position| position.generation),
        })
    }

    /// Returns whether events were taken back out of the replica's log. Then the session is about a log that no longer
    /// exists.
    fn is_over(&mut self, replica: &Replica) -> Result<bool, Fault> {
        let Position { generation, after, .. } = replica.position()?;
        // A store made during this session starts with the generation it has then.
        let begun_in = *self.generation.get_or_insert(generation);
        Ok(begun_in != generation || after != self.pulled)
    }

    /// Takes in a page of the hub's log.
    ///
    /// # Errors
    ///
    /// What ends the session, or a fault of the machine.
    pub fn arrive(&mut self, replica: &mut Replica, page: WirePage) -> Result<(), SessionError> {
        let log = page.log;
        self.check_log(log)?;
        if let Some(why) = page.fault(self.reached) {
            return Err(no_hubs(why).into());
        }
        let page = page.into_page().map_err(|why| not_understood(&why))?;
        self.check_is_on(replica)?;
        let brought = if page.entries.is_empty() {
            // If more pages follow, the next one stores its events together with its starting point.
            if !page.more {
                replica.settle_arrivals()?;
            }
            false
        } else {
            replica.meet(log)?;
            self.log = Some(log);
            let before = replica.standing()?;
            replica.arrive(&page)?;
            self.pulled = replica.position()?.after;
            let now = replica.standing()?;
            (before.length, before.pending, before.set_aside) != (now.length, now.pending, now.set_aside)
        };
        self.reached = page.next;
        self.in_vain = if brought { 0 } else { self.in_vain + 1 };
        if self.in_vain > IN_VAIN {
            return Err(End::Offline("the hub sends page after page that brings nothing".to_owned()).into());
        }
        self.check_passed(replica)?;
        Ok(self.put_aside(replica, false)?)
    }

    /// Ends the session if the pull has passed the places of events that were pushed, and they didn't come: the log lost
    /// them after it had answered. Whatever is pushed next could overtake them.
    fn check_passed(&mut self, replica: &Replica) -> Result<(), SessionError> {
        while let Some((last, seq)) = self.answered.front().copied() {
            if seq > self.reached {
                break;
            }
            // What was refused is pending until it is set aside.
            let first = replica.pending(i64::MIN, PageSize::events(self.refused.len() + 1))?;
            let is_refused = |id: EventId| self.refused.iter().any(|(refused, _)| *refused == id);
            if first.iter().any(|(n, event)| *n <= last && !is_refused(event.id)) {
                return Err(End::PullFirst.into());
            }
            self.answered.pop_front();
        }
        Ok(())
    }

    /// Returns whether the hub owes something: pages up to the head it named, or a place in its log for events it has
    /// taken. An honest hub sends them before anything else.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn is_owed(&self, replica: Option<&Replica>) -> Result<bool, Fault> {
        if self.reached < self.target {
            return Ok(true);
        }
        let first = replica.map_or(Ok(Vec::new()), |replica| replica.pending(i64::MIN, PageSize::events(1)))?;
        Ok(first.first().is_some_and(|(first, _)| *first <= self.pushed))
    }

    /// Returns the next push: the pending events in order, once everything is pulled that the hub had when the session
    /// began. There is one push at a time: [pass in its answer](Self::answer) before asking for the next.
    ///
    /// # Errors
    ///
    /// As [`arrive`](Self::arrive).
    pub fn next_push(&mut self, replica: &Replica) -> Result<Option<Outgoing>, SessionError> {
        self.check_is_on(replica)?;
        if self.reached < self.target {
            return Ok(None);
        }
        let page = replica.pending(self.pushed, self.size)?;
        if page.is_empty() {
            return Ok(None);
        }
        let Position { after, digest, .. } = replica.position()?;
        let answered = self.last_answered.clone().filter(|last| last.seq > self.reached);
        let push = Push {
            log: self.log,
            run: self.run.clone(),
            events: page.iter().map(|(_, event)| WireEvent::from(event)).collect(),
            has: Some(Has { after, digest, answered }),
            part: true,
        };
        let (numbers, ids) = page.into_iter().map(|(n, event)| (n, event.id)).unzip();
        Ok(Some(Outgoing { push, ids, numbers }))
    }

    /// Takes in the answer to a push. Sets aside what the hub refuses.
    ///
    /// # Errors
    ///
    /// As [`arrive`](Self::arrive).
    pub fn answer(
        &mut self,
        replica: &mut Replica,
        outgoing: &Outgoing,
        answer: PushAnswer,
    ) -> Result<(), SessionError> {
        self.check_is_on(replica)?;
        let mut early = Vec::new();
        let mut count = outgoing.ids.len();
        let refused = match answer {
            PushAnswer::TooMuch(_) | PushAnswer::TooLarge if outgoing.ids.len() > 1 => {
                self.size.events = outgoing.ids.len() / 2;
                self.got_through = 0;
                return Ok(());
            }
            PushAnswer::TooMuch(end) => return Err(end.into()),
            // Only the hub itself can say that one event is too large.
            PushAnswer::TooLarge => vec![(outgoing.ids[0], "it is larger than the hub takes".to_owned())],
            PushAnswer::Pushed(answer) => {
                // A gateway may have taken only the first events. The others are pushed again.
                count = answer.events.len();
                if count == 0 || count > outgoing.ids.len() {
                    return Err(End::Offline("the hub answered for other events than were pushed".to_owned()).into());
                }
                // A hub makes its log with the first event that it stores.
                if let Some(log) = answer.log {
                    self.check_log(log)?;
                    replica.meet(log)?;
                    self.log = Some(log);
                }
                // The pull begins after the base, so it never brings what the snapshot has.
                let base = replica.base();
                let places = outgoing.ids.iter().zip(&answer.events);
                early.extend(places.filter_map(|(id, answer)| Some((*id, answer.seq().filter(|seq| *seq <= base)?))));
                self.note_places(outgoing, &answer);
                let answers = outgoing.ids.iter().zip(answer.events);
                answers.filter_map(|(id, answer)| answer.refusal().map(|why| (*id, why))).collect()
            }
        };
        if !early.is_empty() && !replica.are_in_snapshot(&early)? {
            return Err(no_hubs("it has events in places where others are").into());
        }
        self.pushed = outgoing.numbers[count - 1];
        self.got_through += 1;
        if self.got_through >= BEFORE_GROWTH {
            self.size.events = (2 * self.size.events).min(PAGE.events);
            self.got_through = 0;
        }
        self.refused.extend(refused);
        self.check_passed(replica)?;
        Ok(self.put_aside(replica, false)?)
    }

    /// Remembers where the hub says that the events of a push are.
    fn note_places(&mut self, outgoing: &Outgoing, answer: &Pushed) {
        let places = outgoing.ids.iter().zip(&answer.events);
        let places: Vec<_> = places.filter_map(|(id, answer)| Some(Placed { id: *id, seq: answer.seq()? })).collect();
        if let Some(highest) = places.iter().map(|place| place.seq).max() {
            self.answered.push_back((outgoing.numbers[answer.events.len() - 1], highest));
            self.last_answered = places.into_iter().next_back();
        }
    }

    /// Sets aside what the hub refused, once nothing more is left to push or many refusals have gathered. Suppose each
    /// refusal were written at once: a hub that refuses one event of each push would then cause everything pending to
    /// be re-applied each time.
    fn put_aside(&mut self, replica: &mut Replica, is_over: bool) -> Result<(), Fault> {
        if self.refused.is_empty() {
            return Ok(());
        }
        let is_time = is_over || self.refused.len() >= REFUSED_TOGETHER;
        if is_time || replica.pending(self.pushed, PageSize::events(1))?.is_empty() {
            replica.refuse(&std::mem::take(&mut self.refused))?;
        }
        Ok(())
    }

    /// Ends the session: stores what it has learned, and lets queries see everything that arrived.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn end(&mut self, replica: &mut Replica) -> Result<(), Fault> {
        if !self.is_over(replica)? {
            self.put_aside(replica, true)?;
        }
        replica.settle_arrivals()
    }

    /// Ends the session if events were taken back out of the replica's log.
    fn check_is_on(&mut self, replica: &Replica) -> Result<(), SessionError> {
        if self.is_over(replica)? { Err(End::PullFirst.into()) } else { Ok(()) }
    }

    fn check_log(&self, log: LogId) -> Result<(), End> {
        if self.log.is_some_and(|known| known != log) {
            return Err(End::Offline("the hub changed its log in the middle of a session".to_owned()));
        }
        Ok(())
    }
}

/// Takes back what comes after the last of the hub's `points` that both logs share. It will be pushed again. All
/// clients that hold those events do the same, and the ids remove the duplicates. Returns the first and the last place
/// taken back. Does nothing if the hub's own points say that its log is ours: the hub contradicts itself, and taking
/// back nothing changes nothing.
///
/// A log that begins at a snapshot is first taken back to that. Points are few, and there may be none between the snapshot
/// and the place where the logs part. If the hub doesn't know the snapshot's place either, the snapshot is given up.
///
/// # Errors
///
/// A fault of the machine.
pub fn repair(replica: &mut Replica, points: &[Point]) -> Result<Option<(Seq, Seq)>, Fault> {
    let points: Vec<_> = points.iter().map(|point| (point.seq, point.digest)).collect();
    let (base, head) = (replica.base(), replica.standing()?.head);
    let mut shared = replica.last_shared(&points)?.max(base);
    if shared >= replica.position()?.after {
        if base == Seq::START || shared > base {
            return Ok(None);
        }
        replica.drop_base()?;
        shared = replica.last_shared(&points)?;
    }
    if shared < replica.position()?.after {
        replica.take_back(shared, replica.standing()?.whose)?;
    }
    Ok(Some((shared.next(), head)))
}

pub(super) fn not_understood(why: &dyn std::fmt::Display) -> End {
    End::Offline(format!("what the hub sent is not understood: {why}"))
}

/// Returns the end of a session whose hub says something that can't be true.
pub(super) fn no_hubs(why: &str) -> End {
    End::Offline(format!("the hub sent what no hub does: {why}"))
}

impl PushedEvent {
    /// Returns its place in the hub's log, if it is there.
    fn seq(&self) -> Option<Seq> {
        match self {
            Self::Stored { seq, .. } => Some(*seq),
            Self::Refused { .. } => None,
        }
    }

    /// Returns why the hub refuses the event, if it does.
    fn refusal(self) -> Option<String> {
        match self {
            Self::Stored { .. } => None,
            Self::Refused { refused, why } => Some(words(&format!("{refused}: {why}"))),
        }
    }
}
