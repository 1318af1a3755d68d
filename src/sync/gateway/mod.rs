//! The decisions of a gateway: a hub whose log is made by the messages of a JetStream stream. No network, clock or thread.
//!
//! Events enter the log in one way: they are read from the stream. So all gateways have the same log. What a gateway has
//! to publish (events of its own outbox, and events that devices push) goes to the end of the stream under a condition:
//! that the last message of the subject is the last one that this gateway has applied. What the log has already is left
//! out. So an event enters the stream once, however many gateways are brought it.
//!
//! # How to drive it
//!
//! There is one [`Gateway`] for each store in use. Ask [`next`](Gateway::next) what to do, do it, pass in what came of it,
//! and ask again. At most one [`Step`] is under way, except that the message which comes next behind the last one may be
//! passed in at any time, as a consumer brings it.
//!
//! - After each connect, and after each time that the connection may have been another: [`reconnected`](Gateway::reconnected).
//! - A pull of a device, or a push: ask the stream's leader where the subject ends, pass that to
//!   [`heard`](Gateway::heard) with a [`question`](Gateway::question) from before, go on with steps until
//!   [`judges`](Gateway::judges) says yes, and only then look at the device's cursor. If that takes too long, answer 503.
//! - A push: [`push`](Gateway::push), and later its answer from [`take_answers`](Gateway::take_answers). If the answer
//!   waits for the reader alone and that takes long, [`answer_now`](Gateway::answer_now).
//! - [`take_loss`](Gateway::take_loss) after each call. If there is one, write a new run into the bucket, naming the
//!   store. Until that is written, this gateway has no run: it answers pulls and pushes with 503.
//! - A new run in the bucket, whoever wrote it: [`begin_run`](Gateway::begin_run) for all stores, and
//!   [`suspect`](Gateway::suspect) for the store that it names.

mod message;
mod moving;
pub(crate) mod shared;

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

pub use message::{Group, Message, MovingIn, Prefix, Sequence, Unread, log_in};
use message::{Pack, digest_with};
pub use moving::{MoveError, MoveIn, MoveStep};

use super::authority::{Incoming, Refusal, taken, too_many_names};
use super::protocol::{Has, Pushed, PushedEvent};
use crate::engine::{
    Applied, Arrival, Device, Digest, Envelope, EventId, Fault, LogId, Page, PageSize, Replica, Seq, StoreId, StreamId,
};
use crate::limits::sync::authority::MAX_NAMES;
use crate::limits::sync::gateway::{GAP, NOTICES, TURN, WAITING};
use crate::limits::sync::page;

/// What a gateway is told about itself and its store.
#[derive(Debug, Clone)]
pub struct Home {
    /// The stream, by the id in its metadata.
    pub stream: StreamId,
    /// The store.
    pub store: StoreId,
    /// The id of the log if it begins now. Usually [`log_in`] the stream. For a store that was moved into the stream, the
    /// id that the bucket remembers.
    pub log: LogId,
    /// The name of this gateway, the origin of its own events.
    pub device: Device,
}

/// Where a subject ends, as the stream's leader says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// The number of the last message of the subject; 0 if it has none.
    pub last: Sequence,
    /// How many messages the subject has, if that was asked. Then a hole in the middle is noticed.
    pub messages: Option<u64>,
}

/// A question to the leader, made before it is sent.
#[derive(Debug, Clone, Copy)]
pub struct Question {
    /// The last message that the stream is known to have had by then.
    least: Sequence,
}

/// What to do next.
#[derive(Debug)]
pub enum Step {
    /// Ask the stream's leader where the subject ends. Pass the answer to [`Gateway::heard`].
    Ask(Question),
    /// Get the message with this number, if the stream has it in this subject, from the leader. Pass it to
    /// [`Gateway::found`].
    Get(Sequence),
    /// Read the subject's next message after this number. Pass it to [`Gateway::arrive`]. If none comes for a while, call
    /// [`Gateway::doubt`].
    Read(Sequence),
    /// Wait for the gateway's [turn](Turn), and then, if `next` still says so, publish. Pass what came of it to
    /// [`Gateway::acknowledged`], [`Gateway::refused`] or [`Gateway::unanswered`].
    Publish(Publication),
    /// There is nothing to do until a message, a push or an event of this gateway's own comes.
    Rest,
}

/// A message to publish.
#[derive(Debug, Clone)]
pub struct Publication {
    /// Which one it is. It goes back with the outcome.
    pub number: u64,
    /// The number that the subject's last message must have (`Nats-Expected-Last-Subject-Sequence`).
    pub expected: Sequence,
    /// The message.
    pub bytes: Vec<u8>,
    /// How long to wait before it is sent.
    pub turn: Turn,
}

/// Whose turn it is where several gateways publish to one subject. Otherwise the one nearest to the leader would always win.
///
/// Who was served lets those publish who published between its last two messages. Who was never fast enough gets its turn when
/// one of the others leaves a gap, and counts from then on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Turn {
    /// Others are to publish first.
    is_theirs: bool,
    /// Another gateway was faster the last time.
    is_refused: bool,
    /// There was always something to publish since this gateway's last message.
    is_busy: bool,
}

impl Turn {
    /// Returns how long to wait for other gateways' messages, given a random number from 0 to 1. When one comes, ask
    /// [`Gateway::next`] again.
    pub fn pause(self, chance: f64) -> Duration {
        match self {
            Self { is_theirs: true, .. } => TURN,
            // Most gaps are short, and a few are long enough for somebody far away.
            Self { is_busy: true, is_refused: false, .. } => GAP.mul_f64(chance.clamp(0.0, 1.0).powi(16)),
            _ => Duration::ZERO,
        }
    }
}

/// Who publishes to the subject besides this gateway.
#[derive(Debug, Default)]
struct Others {
    /// How many messages others have published since our last one.
    since: u32,
    /// How many they published between our last two.
    before: u32,
    is_refused: bool,
    is_busy: bool,
}

impl Others {
    fn turn(&self) -> Turn {
        Turn { is_theirs: self.since < self.before, is_refused: self.is_refused, is_busy: self.is_busy }
    }

    fn have_published(&mut self) {
        self.since += 1;
    }

    /// Counts a message of ours. One gateway may have published all that came before it, so the others that are waited for
    /// grow in number only little by little.
    fn let_us(&mut self) {
        let before = self.since.min(2 * self.before + 1);
        *self = Self { since: 0, before, is_refused: false, is_busy: true };
    }
}

/// Identifies a push that waits.
pub type Ticket = u64;

/// The answer to a push.
#[derive(Debug)]
pub struct Answered {
    /// The push.
    pub ticket: Ticket,
    /// What its device is told.
    pub result: Result<Pushed, Refusal>,
}

/// Whether a device may be judged by this gateway's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judges {
    /// Yes: the log is what the stream had when it was asked.
    Yes,
    /// Not yet. Answer 503 if it takes too long; never *diverged*.
    NotYet,
    /// Not yet, and it may take long: the rest of a log that is moved into the stream is still to come. If it never comes
    /// because it is lost, an event of a gateway's own goes in its place.
    MovingIn,
    /// No, until somebody acts. Says why.
    Halted(String),
    /// No longer: the store was moved. Says where to.
    Moved(String),
}

/// What a gateway is at.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    /// It has just connected, and asks where the subject ends.
    Asking,
    /// It compares the last message that it has applied with the stream's.
    Comparing {
        /// The next message doesn't follow from our log.
        is_amiss: bool,
    },
    /// It looks further back for a message that both have.
    Searching { nth: u64, step: u64 },
    /// It compares all messages that it has applied. Those up to this number are well.
    Auditing { after: Sequence },
    /// It reads on.
    Reading,
    /// Nothing goes on until somebody acts.
    Halted(String),
}

/// The message that was published last.
#[derive(Debug)]
struct Flight {
    publication: Publication,
    hash: Digest,
    /// The number that it has in the stream, once that is known.
    sequence: Option<Sequence>,
    /// Whether the stream has acknowledged it.
    is_acknowledged: bool,
    /// Which events of which pushes are in it, and where.
    events: Vec<(Ticket, usize, u64)>,
    offset: u64,
    log: Option<LogId>,
}

/// A push that waits.
#[derive(Debug)]
struct Waiting {
    ticket: Ticket,
    known: Option<LogId>,
    has: Option<Has>,
    /// How often the leader had been heard when `has` could not be confirmed.
    doubted: Option<u64>,
    is_believed: bool,
    takes_part: bool,
    events: Vec<(Envelope, Device)>,
    /// The answer for each item of the push, if it is known. The events belong to the items that had none at first.
    answers: Vec<Option<PushedEvent>>,
    /// For each event, which item it is.
    items: Vec<usize>,
}

/// A gateway, for one store.
#[derive(Debug)]
pub struct Gateway {
    home: Home,
    phase: Phase,
    /// The end of the subject, until it is applied.
    ends: Option<Ends>,
    wants_ends: bool,
    /// How often the leader was heard.
    heard: u64,
    /// Whether it began with nothing, and has not yet come to the end of the subject.
    is_new: bool,
    /// Whether each message that was applied has been compared with the stream since there was reason to.
    is_compared: bool,
    /// The next message may be applied although it doesn't follow from our log.
    takes_any: bool,
    flight: Option<Flight>,
    number: u64,
    others: Others,
    ticket: Ticket,
    waiting: VecDeque<Waiting>,
    answered: Vec<Answered>,
    loss: Option<String>,
    notices: Vec<String>,
    /// Where the store is to be moved.
    closing: Option<String>,
}

impl Gateway {
    /// Begins to serve a store from a stream. Takes the store's own log back to the outbox, unless the stream has it.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn begin(replica: &mut Replica, home: Home) -> Result<Self, Fault> {
        let mut phase = Phase::Asking;
        let log = replica.standing()?.whose.log_id();
        match (replica.stream(), log) {
            (Some(stream), Some(_)) if stream == home.stream => {}
            (Some(_), Some(_)) => phase = Phase::Halted(OTHER_STREAM.to_owned()),
            _ => {
                replica.follow()?;
                replica.follow_stream(home.stream, home.log)?;
            }
        }
        let is_compared = replica.applied()?.is_none();
        Ok(Self {
            home,
            phase,
            ends: None,
            wants_ends: false,
            heard: 0,
            is_new: is_compared,
            is_compared,
            takes_any: false,
            flight: None,
            number: 0,
            others: Others::default(),
            ticket: 0,
            waiting: VecDeque::new(),
            answered: Vec::new(),
            loss: None,
            notices: Vec::new(),
            closing: None,
        })
    }

    /// Says what to do next.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn next(&mut self, replica: &mut Replica) -> Result<Step, Fault> {
        let applied = replica.applied()?;
        if self.phase == Phase::Asking || self.wants_ends && self.phase.reads() {
            return Ok(Step::Ask(self.question(replica)?));
        }
        match (&self.phase, applied) {
            (Phase::Halted(_), _) => Ok(Step::Rest),
            (Phase::Comparing { .. }, Some(applied)) => Ok(Step::Get(applied.sequence)),
            (Phase::Searching { nth, .. }, Some(_)) => {
                let nth = *nth;
                match replica.nth_applied(nth)? {
                    Some(message) => Ok(Step::Get(message.sequence)),
                    None => {
                        self.give_up_after(replica, 0)?;
                        self.next(replica)
                    }
                }
            }
            (Phase::Auditing { after }, Some(_)) => Ok(Step::Read(*after)),
            _ => {
                self.phase = Phase::Reading;
                self.read_on(replica, applied)
            }
        }
    }

    /// Returns the id that the log has if it begins in the stream.
    pub fn log(&self) -> LogId {
        self.home.log
    }

    /// Returns a question to the leader, to be asked from now on.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn question(&self, replica: &Replica) -> Result<Question, Fault> {
        let applied = replica.applied()?.map_or(0, |applied| applied.sequence);
        let flown = self.flight.as_ref().and_then(|flight| flight.sequence);
        Ok(Question { least: applied.max(flown.unwrap_or_default()) })
    }

    /// Takes in where the subject ends.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn heard(&mut self, replica: &mut Replica, question: Question, ends: Ends) -> Result<(), Fault> {
        self.heard += 1;
        self.wants_ends = false;
        let applied = replica.applied()?;
        if self.phase == Phase::Asking {
            self.phase = if applied.is_some() { Phase::Comparing { is_amiss: false } } else { Phase::Reading };
        }
        if let Phase::Auditing { after } = self.phase
            && ends.last <= after
            && replica.applied_after(after)?.is_some()
        {
            // The stream ends before what is left to compare.
            return self.give_up_after(replica, after);
        }
        if ends.last < question.least {
            if let Some(flight) = self.flight.take_if(|flight| flight.is_acknowledged) {
                let sequence = flight.sequence.unwrap_or_default();
                self.lose(format!("message {sequence}, which the stream had acknowledged, is gone"));
            }
            if self.phase == Phase::Reading && applied.is_some() {
                self.phase = Phase::Comparing { is_amiss: false };
            }
        }
        // What was published without an answer, and was read since, is the stream's own word now.
        self.flight.take_if(|flight| {
            let is_read = applied.is_some_and(|applied| flight.sequence.is_some_and(|at| applied.sequence >= at));
            is_read && flight.sequence.is_some_and(|at| ends.last >= at)
        });
        self.ends = Some(ends);
        Ok(())
    }

    /// The next message is late: the leader is asked whether there is one.
    pub fn doubt(&mut self) {
        self.wants_ends = true;
        if let Phase::Auditing { .. } = self.phase {
            return;
        }
        self.ends = None;
    }

    /// Starts over with a connection that may lead to another leader, or to another stream of the same name.
    pub fn reconnected(&mut self) {
        if !matches!(self.phase, Phase::Halted(_)) {
            (self.phase, self.ends, self.is_compared, self.takes_any) = (Phase::Asking, None, false, false);
        }
    }

    /// Compares all messages that were applied with those of the stream, because some gateway found that the stream has
    /// lost some.
    pub fn suspect(&mut self) {
        if !matches!(self.phase, Phase::Halted(_)) {
            (self.is_compared, self.takes_any) = (false, false);
            self.phase = Phase::Auditing { after: 0 };
        }
    }

    /// Takes in a message that [`Step::Get`] asked for. `None` if the stream doesn't have it.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn found(&mut self, replica: &mut Replica, sequence: Sequence, bytes: Option<&[u8]>) -> Result<(), Fault> {
        let Some(message) = replica.applied_until(sequence)?.filter(|message| message.sequence == sequence) else {
            return Ok(());
        };
        let is_shared = bytes.is_some_and(|bytes| hash(bytes) == message.hash);
        match self.phase {
            Phase::Comparing { is_amiss } if is_shared => {
                self.phase = match is_amiss {
                    true if !self.is_compared => Phase::Auditing { after: 0 },
                    _ => Phase::Reading,
                };
                self.takes_any = is_amiss && self.is_compared;
            }
            Phase::Comparing { .. } => self.phase = Phase::Searching { nth: message.nth - 1, step: 1 },
            Phase::Searching { nth, .. } if is_shared && nth == message.nth => {
                self.is_compared = false;
                self.give_up_after(replica, sequence)?;
                self.is_compared = false;
            }
            Phase::Searching { nth, step } if nth == message.nth => {
                self.phase = Phase::Searching { nth: nth.saturating_sub(2 * step), step: 2 * step };
            }
            _ => {}
        }
        Ok(())
    }

    /// Takes in the subject's next message after `after`.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn arrive(
        &mut self,
        replica: &mut Replica,
        after: Sequence,
        sequence: Sequence,
        bytes: &[u8],
    ) -> Result<(), Fault> {
        if sequence <= after {
            return Ok(());
        }
        match self.phase {
            Phase::Auditing { after: audited } if audited == after => self.audit(replica, after, sequence, hash(bytes)),
            Phase::Reading => {
                let applied = replica.applied()?;
                if applied.map_or(0, |applied| applied.sequence) != after {
                    return Ok(());
                }
                self.read(replica, applied, sequence, bytes)
            }
            _ => Ok(()),
        }
    }

    /// Compares one message with the one that was applied in its place.
    fn audit(&mut self, replica: &mut Replica, after: Sequence, sequence: Sequence, hash: Digest) -> Result<(), Fault> {
        let Some(expected) = replica.applied_after(after)? else {
            (self.phase, self.is_compared) = (Phase::Reading, true);
            return Ok(());
        };
        if (expected.sequence, expected.hash) != (sequence, hash) {
            return self.give_up_after(replica, after);
        }
        if replica.applied_after(sequence)?.is_some() {
            self.phase = Phase::Auditing { after: sequence };
        } else {
            (self.phase, self.is_compared) = (Phase::Reading, true);
        }
        Ok(())
    }

    /// Takes back what the stream doesn't have: everything after a message that both have. It is in the outbox then, and
    /// what the stream has of it leaves that again as it is read.
    fn give_up_after(&mut self, replica: &mut Replica, sequence: Sequence) -> Result<(), Fault> {
        let last = replica.applied()?.map_or(0, |applied| applied.sequence);
        replica.take_back_messages(sequence)?;
        self.lose(format!("of the messages {} to {last} that were read, the stream has lost some", sequence + 1));
        (self.phase, self.is_compared, self.takes_any) = (Phase::Reading, true, false);
        Ok(())
    }

    /// Notes that the stream lost something. What devices believe to have pushed may be gone, so they have to pull first.
    fn lose(&mut self, what: String) {
        self.loss.get_or_insert(what);
        self.flight = None;
        self.ends = None;
        self.wants_ends = true;
        self.begin_run();
    }

    /// Returns what the stream has lost, if that was found since this was last asked: it is time for a new run.
    pub fn take_loss(&mut self) -> Option<String> {
        self.loss.take()
    }

    /// Refuses the pushes that wait: they belong to an earlier run.
    pub fn begin_run(&mut self) {
        for Waiting { ticket, .. } in self.waiting.drain(..) {
            self.answered.push(Answered { ticket, result: Err(Refusal::PullFirst) });
        }
    }

    /// Applies the next message, or notes why it isn't applied.
    fn read(
        &mut self,
        replica: &mut Replica,
        applied: Option<Applied>,
        sequence: Sequence,
        bytes: &[u8],
    ) -> Result<(), Fault> {
        let end = applied.map_or(Seq::START, |applied| applied.seq);
        let mut arrival = Arrival {
            sequence,
            offset: applied.map_or(0, |applied| applied.offset),
            hash: hash(bytes),
            page: Page { entries: Vec::new(), next: end, more: self.has_more(sequence) },
            closed: None,
        };
        let standing = replica.standing()?;
        let known = standing.whose.log_id();
        let log = known.unwrap_or(self.home.log);
        // As long as it is empty, the log may turn out to be another: one that was moved into the stream.
        let is_in_stream = end > Seq::START;
        let group = match Message::read(bytes) {
            Err(Unread::Newer(version)) => {
                self.phase = Phase::Halted(format!("message {sequence}: {}", Unread::Newer(version)));
                return Ok(());
            }
            Err(why) => Err(why.to_string()),
            Ok(_) if replica.closed()?.is_some() => Err("the store was moved out of the stream before it".to_owned()),
            Ok(Message::Closed(to)) => {
                arrival.closed = Some(to);
                replica.arrive_message(log, &arrival, None)?;
                self.begin_run();
                return Ok(());
            }
            Ok(Message::Group(group)) if is_in_stream && known.is_some_and(|known| known != group.log) => {
                Err(format!("it belongs to the log {}", group.log))
            }
            Ok(Message::Group(group)) if group.places(sequence).first().is_some_and(|first| *first <= end) => {
                Err("its places go back".to_owned())
            }
            Ok(Message::Group(group)) => Ok(group),
        };
        let group = match group {
            Ok(group) => group,
            Err(why) => {
                self.notice(format!("message {sequence} is passed over: {why}"));
                replica.arrive_message(log, &arrival, None)?;
                return self.has_read(applied, sequence, arrival.hash);
            }
        };
        if standing.length > 0 && known.is_some_and(|known| known != group.log) {
            self.phase = Phase::Halted(OTHER_LOG.to_owned());
            return Ok(());
        }
        arrival.offset = group.offset;
        arrival.page.entries = group.entries(sequence);
        arrival.page.next = arrival.page.entries.last().map_or(end, |last| last.seq);
        // The log may have come here in another way. Then it has to be the stream's, place by place.
        let is_kept = standing.head > end;
        let size = PageSize { events: arrival.page.entries.len(), bytes: usize::MAX };
        let is_amiss = is_kept && replica.entries(end, size)? != arrival.page.entries;
        if !is_amiss && replica.arrive_message(group.log, &arrival, Some(group.digest))? {
            self.has_read(applied, sequence, arrival.hash)?;
            // No gateway publishes what the log has. So the stream may have lost it and taken it anew, in another place.
            let brought = replica.standing()?.length - standing.length;
            let has_again = !is_kept && brought < arrival.page.entries.len() as u64;
            if has_again && !self.is_new && self.phase == Phase::Reading {
                (self.phase, self.is_compared) = (Phase::Auditing { after: 0 }, false);
            }
            return Ok(());
        }
        if is_kept {
            replica.take_back(end, standing.whose)?;
            return Ok(());
        }
        if self.takes_any || applied.is_none() {
            replica.arrive_message(group.log, &arrival, None)?;
            self.takes_any = false;
            self.has_read(applied, sequence, arrival.hash)?;
            let what = format!(
                "message {sequence} doesn't follow from those before it: the stream has lost some, or it is no gateway's"
            );
            // A new gateway has promised nothing to anybody. But if this is the last message, its publisher has another log, and
            // may have no reason of its own to compare it.
            if self.is_new && self.has_more(sequence) {
                self.notice(what)
            } else {
                self.lose(what)
            }
            return Ok(());
        }
        self.phase = Phase::Comparing { is_amiss: true };
        Ok(())
    }

    fn has_more(&self, sequence: Sequence) -> bool {
        self.ends.is_some_and(|ends| ends.last > sequence)
    }

    /// Notes that a message was read, which may be the one that was published last.
    fn has_read(&mut self, applied: Option<Applied>, sequence: Sequence, hash: Digest) -> Result<(), Fault> {
        let Some(flight) = &mut self.flight else {
            self.others.have_published();
            return Ok(());
        };
        let is_it = flight.hash == hash && applied.map_or(0, |applied| applied.sequence) == flight.publication.expected;
        if is_it {
            flight.sequence = Some(sequence);
            self.others.let_us();
            self.flight.take_if(|flight| flight.is_acknowledged);
            return Ok(());
        }
        self.others.have_published();
        if flight.is_acknowledged && flight.sequence.is_some_and(|at| sequence >= at) {
            self.lose(format!("message {sequence} is not the one that the stream had acknowledged"));
        } else if !flight.is_acknowledged {
            // Its condition can't be met any more.
            self.flight = None;
        }
        Ok(())
    }

    /// Reads on to the end of the subject, and publishes then.
    fn read_on(&mut self, replica: &mut Replica, applied: Option<Applied>) -> Result<Step, Fault> {
        let last = applied.map_or(0, |applied| applied.sequence);
        if let Some(ends) = self.ends {
            if last < ends.last {
                return Ok(Step::Read(last));
            }
            (self.ends, self.is_new) = (None, false);
            let count = replica.applied_until(ends.last)?.map_or(0, |message| message.nth);
            if ends.messages.is_some_and(|messages| messages != count) {
                self.is_compared = false;
                if applied.is_some() {
                    self.phase = Phase::Auditing { after: 0 };
                    return self.next(replica);
                }
            }
            let end = applied.map_or(Seq::START, |applied| applied.seq);
            let standing = replica.standing()?;
            if standing.head > end {
                replica.take_back(end, standing.whose)?;
                self.lose("the log had events that the stream has lost".to_owned());
                return self.next(replica);
            }
        }
        match &self.flight {
            Some(flight) if flight.sequence.is_some() => return Ok(Step::Read(last)),
            Some(flight) => {
                return Ok(Step::Publish(Publication { turn: self.others.turn(), ..flight.publication.clone() }));
            }
            None => {}
        }
        if let Some(to) = replica.closed()? {
            self.refuse_moved(&to);
            // The closing message is the last one, or the stream has lost it.
            let closing = Message::closing(&to).to_bytes();
            if applied.is_some_and(|applied| applied.hash == hash(&closing)) {
                return Ok(Step::Rest);
            }
            self.launch(last, closing, Contents::default());
        } else if let Some(to) = self.closing.as_ref().filter(|_| replica.log().tip().pending == 0) {
            self.launch(last, Message::closing(to).to_bytes(), Contents::default());
        } else {
            self.compose(replica, applied)?;
        }
        if self.wants_ends {
            return Ok(Step::Ask(self.question(replica)?));
        }
        Ok(match &self.flight {
            Some(flight) => Step::Publish(flight.publication.clone()),
            None => {
                // Whoever else has something can publish it now.
                self.others = Others::default();
                Step::Rest
            }
        })
    }

    /// The stream has taken the publication, as this message.
    pub fn acknowledged(&mut self, number: u64, sequence: Sequence) {
        let Some(flight) = self.flight.as_mut().filter(|flight| flight.publication.number == number) else { return };
        match flight.sequence {
            Some(read) if read == sequence => self.flight = None,
            Some(read) => self.lose(format!("message {sequence}, which the stream acknowledges, is message {read}")),
            None => (flight.sequence, flight.is_acknowledged) = (Some(sequence), true),
        }
    }

    /// The stream refuses the publication: its condition isn't met. `last` is the number of the subject's last message, if
    /// the leader says it.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn refused(&mut self, replica: &Replica, number: u64, last: Option<Sequence>) -> Result<(), Fault> {
        if self.flight.take_if(|flight| flight.publication.number == number).is_none() {
            return Ok(());
        }
        self.others.is_refused = true;
        let applied = replica.applied()?.map_or(0, |applied| applied.sequence);
        match last.filter(|last| *last > applied) {
            Some(last) => self.ends = Some(Ends { last, messages: None }),
            None => self.wants_ends = true,
        }
        Ok(())
    }

    /// No answer came to the publication. It is published again, as it was: its condition decides whether it is taken.
    pub fn unanswered(&mut self, number: u64) {
        // If it was read, the leader's own word on the end of the subject stands for the answer.
        let is_read = |flight: &Flight| flight.publication.number == number && flight.sequence.is_some();
        self.wants_ends |= self.flight.as_ref().is_some_and(is_read);
    }

    /// Takes a push, to be published. Its answer comes later, under the ticket that is returned. The events are kept
    /// nowhere but in memory: the device has them until they arrive. Returns `None` if as much waits as may: tell the device
    /// to come again.
    pub fn push(&mut self, incoming: Incoming) -> Option<Ticket> {
        let waiting: usize = self.waiting.iter().map(|push| push.events.len()).sum();
        if waiting > 0 && waiting + incoming.count() > WAITING {
            return None;
        }
        self.ticket += 1;
        let items = (0..incoming.answers.len()).filter(|nth| incoming.answers[*nth].is_none()).collect();
        let Incoming { known, events, answers, has, takes_part } = incoming;
        self.waiting.push_back(Waiting {
            ticket: self.ticket,
            known,
            has,
            doubted: None,
            is_believed: false,
            takes_part,
            events,
            answers,
            items,
        });
        Some(self.ticket)
    }

    /// Nobody waits for the answer to a push any more. What isn't on its way to the stream is let go of: the device has it.
    pub fn give_up(&mut self, ticket: Ticket) {
        self.waiting.retain(|push| push.ticket != ticket);
    }

    /// Moves the store out of the stream, once the outbox is empty: a closing message is published, after which every gateway
    /// refuses the store. `to` tells people where it went. It is done when [`Replica::closed`] says so. Then
    /// [`promote`](Replica::promote) the replica that goes on with the log.
    pub fn close(&mut self, to: &str) {
        self.closing = Some(to.to_owned());
    }

    /// Answers what the stream has acknowledged, though it was not read yet. For when that takes long.
    pub fn answer_now(&mut self) {
        let Some(flight) = self.flight.as_mut().filter(|flight| flight.is_acknowledged) else { return };
        let sequence = flight.sequence.unwrap_or_default();
        for (ticket, item, nth) in flight.events.drain(..) {
            if let Some(push) = self.waiting.iter_mut().find(|push| push.ticket == ticket) {
                let seq = message::place(flight.offset, sequence, nth);
                push.answers[item] = Some(PushedEvent::Stored { seq, no_effect: None });
            }
        }
        let log = flight.log;
        self.answer(log);
    }

    /// Returns the answers to pushes that are there now.
    pub fn take_answers(&mut self) -> Vec<Answered> {
        std::mem::take(&mut self.answered)
    }

    /// Returns what people should be told, and wasn't yet.
    pub fn take_notices(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notices)
    }

    /// Returns whether devices may be judged by the log here, given the end of the subject that a leader named after they
    /// came.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn judges(&self, replica: &Replica, last: Sequence) -> Result<Judges, Fault> {
        if let Phase::Halted(why) = &self.phase {
            return Ok(Judges::Halted(why.clone()));
        }
        if let Some(to) = replica.closed()? {
            return Ok(Judges::Moved(to));
        }
        let applied = replica.applied()?;
        let is_level = applied.map_or(0, |applied| applied.sequence) >= last;
        let is_whole = replica.standing()?.head <= applied.map_or(Seq::START, |applied| applied.seq);
        Ok(match self.phase {
            Phase::Reading if is_level && is_whole && is_moving_in(applied) => Judges::MovingIn,
            Phase::Reading if is_level && is_whole => Judges::Yes,
            _ => Judges::NotYet,
        })
    }

    /// Gives answers to the pushes whose events all have one, or to the beginning of a push whose device takes a part.
    fn answer(&mut self, log: Option<LogId>) {
        let answered = &mut self.answered;
        self.waiting.retain_mut(|push| {
            let known = push.answers.iter().take_while(|answer| answer.is_some()).count();
            let is_done = known == push.answers.len() || push.takes_part && known > 0 && push.is_believed;
            if is_done {
                let events = push.answers.drain(..known).flatten().collect();
                answered.push(Answered { ticket: push.ticket, result: Ok(Pushed { log, events }) });
            }
            !is_done
        });
    }

    fn refuse_moved(&mut self, to: &str) {
        for Waiting { ticket, .. } in self.waiting.drain(..) {
            self.answered.push(Answered { ticket, result: Err(Refusal::Moved(to.to_owned())) });
        }
    }

    /// Readies a message to be published behind the message `expected`.
    fn launch(&mut self, expected: Sequence, bytes: Vec<u8>, contents: Contents) {
        let Contents { events, offset, log } = contents;
        self.number += 1;
        self.flight = Some(Flight {
            hash: hash(&bytes),
            publication: Publication { number: self.number, expected, bytes, turn: self.others.turn() },
            sequence: None,
            is_acknowledged: false,
            events,
            offset,
            log,
        });
    }

    /// Makes the next message to publish, if there is anything: of what devices push and of the outbox, without what the log
    /// has.
    fn compose(&mut self, replica: &mut Replica, applied: Option<Applied>) -> Result<(), Fault> {
        let standing = replica.standing()?;
        let log = standing.whose.log_id().unwrap_or(self.home.log);
        self.believe(replica, log)?;
        let mut pack = Composition { pack: Pack::default(), ids: BTreeSet::new(), events: Vec::new() };
        // If both wait, each has half of the message.
        let most = if standing.pending > 0 { page::EVENTS / 2 } else { page::EVENTS };
        self.look_up(replica)?;
        self.answer(Some(log));
        let mut names = MAX_NAMES.saturating_sub(replica.names());
        let mut fresh = BTreeSet::new();
        let may_push = !is_moving_in(applied);
        'all: for push in self.waiting.iter_mut().filter(|push| push.is_believed && may_push) {
            for ((event, origin), item) in push.events.iter().zip(&push.items) {
                if push.answers[*item].is_some() {
                    continue;
                }
                let name = event.name.as_str();
                if !replica.has_name(name) && !fresh.contains(name) {
                    if names == 0 {
                        push.answers[*item] = Some(too_many_names());
                        continue;
                    }
                    names -= 1;
                    fresh.insert(name.to_owned());
                }
                if pack.pack.events.len() >= most || !pack.add(event, origin, Some((push.ticket, *item))) {
                    break 'all;
                }
            }
        }
        self.answer(Some(log));
        let size = PageSize { events: page::EVENTS, bytes: page::BYTES };
        for (_, event) in if standing.pending > 0 { replica.pending(i64::MIN, size)? } else { Vec::new() } {
            if !pack.add(&event, &self.home.device, None) {
                break;
            }
        }
        if pack.pack.events.is_empty() {
            return Ok(());
        }
        let offset = applied.map_or(0, |applied| applied.offset);
        let digest = digest_with(replica.digest_at(standing.head)?, &pack.pack.events);
        let message = Message::Group(Group { log, events: pack.pack.events, digest, offset, seqs: None });
        let expected = applied.map_or(0, |applied| applied.sequence);
        self.launch(expected, message.to_bytes(), Contents { events: pack.events, offset, log: Some(log) });
        Ok(())
    }

    /// Finds out which events of the pushes that wait are in the log by now.
    fn look_up(&mut self, replica: &Replica) -> Result<(), Fault> {
        for push in self.waiting.iter_mut().filter(|push| push.is_believed) {
            for ((event, _), item) in push.events.iter().zip(&push.items) {
                if push.answers[*item].is_none() {
                    push.answers[*item] = in_log(replica, event)?;
                }
            }
        }
        Ok(())
    }

    /// Looks at the pushes that came: whether they are for this log, and whether it holds what their devices have of it. A
    /// device may have seen more at another gateway, and what it pushes may rest on that.
    fn believe(&mut self, replica: &Replica, log: LogId) -> Result<(), Fault> {
        let mut at = 0;
        while let Some(push) = self.waiting.get_mut(at) {
            let mut refusal = None;
            if push.known.is_some_and(|known| known != log) {
                refusal = Some(Refusal::WrongLog);
            } else if !push.is_believed {
                push.is_believed = match &push.has {
                    None => true,
                    Some(has) => {
                        let answered = has.answered.as_ref();
                        replica.vouches_for(has.after, has.digest)?
                            && answered.map_or(Ok(true), |place| replica.has_at(place.id, place.seq))?
                    }
                };
                if !push.is_believed {
                    match push.doubted {
                        Some(heard) if heard < self.heard => refusal = Some(Refusal::PullFirst),
                        Some(_) => {}
                        None => push.doubted = Some(self.heard),
                    }
                    self.wants_ends |= refusal.is_none();
                }
            }
            match refusal {
                Some(refusal) => {
                    let ticket = self.waiting.remove(at).map(|push| push.ticket).unwrap_or_default();
                    self.answered.push(Answered { ticket, result: Err(refusal) });
                }
                None => at += 1,
            }
        }
        Ok(())
    }

    fn notice(&mut self, what: String) {
        if self.notices.len() < NOTICES {
            self.notices.push(what);
        }
    }
}

/// Whether a store is halted because its log is not the stream's. Then it can adopt that.
#[cfg(feature = "app")]
pub(crate) fn is_other_log(why: &str) -> bool {
    why == OTHER_STREAM || why == OTHER_LOG
}

/// Said when a directory was made from the messages of another stream.
const OTHER_STREAM: &str = "This store's log comes from another stream: the one under this name was made anew, or is another \
                            cluster's. Nothing was changed. If it is meant to be its stream from now on, run `likewise adopt`.";

/// Said when the stream has another log of this store.
const OTHER_LOG: &str = "The stream has another log of this store than the one here. Nothing was changed. If it is meant to be \
                         its log from now on, run `likewise adopt`.";

impl Phase {
    /// Whether the subject is read, so that its next message may be late.
    fn reads(&self) -> bool {
        matches!(self, Self::Reading | Self::Auditing { .. })
    }
}

/// What a publication holds for pushes that wait.
#[derive(Default)]
struct Contents {
    events: Vec<(Ticket, usize, u64)>,
    offset: u64,
    log: Option<LogId>,
}

/// A message in the making.
struct Composition {
    pack: Pack,
    ids: BTreeSet<EventId>,
    /// Which events of which pushes are in it, and where.
    events: Vec<(Ticket, usize, u64)>,
}

impl Composition {
    /// Adds an event, unless the message is full. One whose id is in it already waits for the next message: it is known then.
    fn add(&mut self, event: &Envelope, origin: &Device, push: Option<(Ticket, usize)>) -> bool {
        if self.ids.contains(&event.id) {
            return true;
        }
        let nth = self.pack.events.len() as u64;
        if !self.pack.add(event, origin) {
            return false;
        }
        self.ids.insert(event.id);
        self.events.extend(push.map(|(ticket, item)| (ticket, item, nth)));
        true
    }
}

/// Returns the answer for an event whose id is in the log.
fn in_log(replica: &Replica, event: &Envelope) -> Result<Option<PushedEvent>, Fault> {
    Ok(match replica.find_in_log(event)? {
        Some((seq, true)) => Some(PushedEvent::Stored { seq, no_effect: replica.why_skipped(event.id)? }),
        Some(_) => Some(taken("its id belongs to another event in the log")),
        None => None,
    })
}

/// Returns whether part of a log that is moved into the stream is still to come. Devices that were level with its hub are
/// ahead of it till then, and what they push belongs behind the rest.
///
/// What a gateway has of its own is published all the same: it may be the rest itself, after the stream lost it.
fn is_moving_in(applied: Option<Applied>) -> bool {
    applied.is_some_and(|applied| applied.seq.0 < applied.offset)
}

fn hash(bytes: &[u8]) -> Digest {
    Digest(*blake3::hash(bytes).as_bytes())
}
