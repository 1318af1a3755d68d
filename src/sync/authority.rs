//! The decisions of a hub, on the replica that has its log, without network, clock or thread.
//!
//! The authority orders events, and does not judge them. It refuses an event only for what it is, and a client only for
//! what it believes about the log.

use std::collections::BTreeSet;

use super::protocol::{Has, Hello, PAGE, Point, Push, Pushed, PushedEvent, WirePage, refused};
use crate::engine::{
    Device, Digest, Envelope, Fault, Generation, LogId, Outcome, PageSize, Replica, Seq, Standing, Whose,
};
use crate::limits::sync::authority::MAX_NAMES;

/// Why a hub refuses a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It has no log of its own to serve.
    NotAHub,
    /// Its log is not the one the client knows, or it has none.
    WrongLog,
    /// It was restarted since the client pulled.
    PullFirst,
    /// The push has more events than a push may have. Holds their number.
    TooMany(usize),
    /// The store was moved to another hub. Says where it went.
    Moved(String),
    /// Its log and the client's differ.
    Diverged {
        /// The last event of its log.
        head: Seq,
        /// Points of its log. The client looks for the last one that both share.
        points: Vec<Point>,
    },
}

/// Why a hub doesn't do what a client asks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// The client is told why. Nothing of what it sent is stored.
    #[error("the client is refused: {0:?}")]
    Refused(Refusal),
    /// The machine failed. Nothing may be concluded about the client.
    #[error(transparent)]
    Fault(#[from] Fault),
}

impl From<Refusal> for AuthorityError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Separates the two kinds of errors: a fault goes to the store that owns the replica, a refusal to the client.
///
/// # Errors
///
/// The fault.
pub fn judged<T>(result: Result<T, AuthorityError>) -> Result<Result<T, Refusal>, Fault> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(AuthorityError::Refused(refusal)) => Ok(Err(refusal)),
        Err(AuthorityError::Fault(fault)) => Err(fault),
    }
}

/// What comes next in a pull.
#[derive(Debug)]
pub enum NextPage {
    /// More of the log.
    Page(WirePage),
    /// Nothing for now: the client has all of the log.
    Level,
    /// The pull is over: this is no longer the log that it began with, so the client has to start over.
    Over,
}

/// The state of the hub's log when a pull begins.
#[derive(Debug, Clone, Copy, Default)]
pub struct Start {
    /// None while the store has no events.
    log: Option<LogId>,
    generation: Generation,
    head: Seq,
}

impl Start {
    /// Checks that the client has the beginning of the hub's log. The client says which log it knows, how far it has
    /// pulled, and its digest up to there. There is no replica while the store has no events.
    ///
    /// # Errors
    ///
    /// When the hub has another log, or the machine fails.
    ///
    /// A gateway asks only once its log is [level](super::Gateway::judges) with its stream.
    pub fn vouch(
        replica: Option<&Replica>,
        known: Option<LogId>,
        after: Seq,
        digest: Digest,
    ) -> Result<Self, AuthorityError> {
        let Some(replica) = replica else {
            let knows_more = known.is_some() || after > Seq::START;
            return if knows_more { Err(Refusal::WrongLog.into()) } else { Ok(Self::default()) };
        };
        let Standing { generation, head, .. } = replica.standing()?;
        let log = served(replica, known)?;
        if !replica.vouches_for(after, digest)? {
            let points = replica.points()?.into_iter().map(|(seq, digest)| Point { seq, digest }).collect();
            return Err(Refusal::Diverged { head, points }.into());
        }
        Ok(Self { log: Some(log), generation, head })
    }

    /// Works like [`vouch`](Self::vouch) at a gateway that has caught up with its stream. While the stream has nothing of
    /// the store, its log has not begun, and will have the id `begins`.
    ///
    /// # Errors
    ///
    /// As [`vouch`](Self::vouch).
    pub fn vouch_before(
        replica: Option<&Replica>,
        known: Option<LogId>,
        after: Seq,
        digest: Digest,
        begins: LogId,
    ) -> Result<Self, AuthorityError> {
        if replica.is_some_and(|replica| replica.served().is_some()) {
            return Self::vouch(replica, known, after, digest);
        }
        match known {
            Some(known) if known != begins => Err(Refusal::WrongLog.into()),
            // The stream lost all of the store.
            _ if after > Seq::START => Err(Refusal::Diverged { head: Seq::START, points: Vec::new() }.into()),
            log => Ok(Self { log, ..Self::default() }),
        }
    }

    /// Returns the hub's first message.
    pub fn hello(&self, run: &str) -> Hello {
        Hello { log: self.log, run: run.to_owned(), head: self.head }
    }

    /// Returns what comes after `after`.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn page(&mut self, replica: &Replica, after: Seq) -> Result<NextPage, Fault> {
        self.page_of(replica, after, PAGE)
    }

    /// Returns the same as [`page`](Self::page), but no more than `size`.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub(crate) fn page_of(&mut self, replica: &Replica, after: Seq, size: PageSize) -> Result<NextPage, Fault> {
        let Standing { generation, head, .. } = replica.standing()?;
        let Some(log) = replica.served() else {
            // A gateway's log begins with the first message of the stream.
            return Ok(if replica.stream().is_some() { NextPage::Level } else { NextPage::Over });
        };
        if self.log.is_some_and(|known| known != log || self.generation != generation) {
            return Ok(NextPage::Over);
        }
        // If the store was made after the pull began, the pull continues with its log.
        *self = Self { log: Some(log), generation, ..*self };
        let entries = replica.entries(after, size)?;
        let page = entries.last().map(|last| WirePage::new(log, &entries, last.seq, last.seq < head));
        Ok(page.map_or(NextPage::Level, NextPage::Page))
    }
}

/// Returns the id of the log. Fails unless the replica may serve it, and it is the one that the client knows, if it knows
/// one.
fn served(replica: &Replica, known: Option<LogId>) -> Result<LogId, Refusal> {
    match replica.served() {
        None => Err(Refusal::NotAHub),
        Some(log) if known.is_some_and(|known| known != log) => Err(Refusal::WrongLog),
        Some(log) => Ok(log),
    }
}

/// Returns the id of the log, if events may be added to it here. Events for a stream's log go through the stream.
fn own(replica: &Replica, known: Option<LogId>) -> Result<LogId, AuthorityError> {
    match replica.standing()?.whose {
        Whose::Own(_) => Ok(served(replica, known)?),
        Whose::Upstream(_) => Err(Refusal::NotAHub.into()),
    }
}

/// A push whose events the hub has checked one by one.
#[derive(Debug)]
pub struct Incoming {
    pub(super) known: Option<LogId>,
    pub(super) events: Vec<(Envelope, Device)>,
    /// The answer for each item that isn't an event, and `None` for each that is.
    pub(super) answers: Vec<Option<PushedEvent>>,
    /// What the device has of the log.
    pub(super) has: Option<Has>,
    /// Whether the device takes an answer to a part of the push.
    pub(super) takes_part: bool,
}

impl Incoming {
    /// Checks what `device` pushes to the hub that runs as `run`.
    ///
    /// # Errors
    ///
    /// The refusal for the client. Nothing of the push is stored.
    pub fn check(push: Push, run: &str, device: &Device) -> Result<Self, Refusal> {
        if push.events.len() > PAGE.events {
            return Err(Refusal::TooMany(push.events.len()));
        }
        if push.run != run {
            return Err(Refusal::PullFirst);
        }
        let mut incoming =
            Self { known: push.log, events: Vec::new(), answers: Vec::new(), has: push.has, takes_part: push.part };
        for event in push.events {
            incoming.answers.push(match Envelope::try_from(event) {
                Ok(event) => {
                    incoming.events.push((event, device.clone()));
                    None
                }
                Err(why) => Some(malformed(why.to_string())),
            });
        }
        Ok(incoming)
    }

    /// Returns whether storing it needs a log. A log is made with the first event.
    pub fn needs_log(&self) -> bool {
        !self.events.is_empty() && self.known.is_none()
    }

    /// Returns how many events it has.
    pub(crate) fn count(&self) -> usize {
        self.events.len()
    }

    /// Returns how many different names its events have that `replica` doesn't know.
    pub(crate) fn new_names(&self, replica: Option<&Replica>) -> usize {
        let names = self.events.iter().map(|(event, _)| event.name.as_str());
        let is_new = |name: &&str| replica.is_none_or(|replica| !replica.has_name(name));
        names.filter(is_new).collect::<BTreeSet<_>>().len()
    }

    /// Returns how many different names its events have.
    pub(crate) fn names(&self) -> usize {
        self.events.iter().map(|(event, _)| event.name.as_str()).collect::<BTreeSet<_>>().len()
    }

    /// Adds the events to the log in order, in one transaction, and returns the outcome of each. Repeating it is always
    /// safe. There is no replica while the store has no events. Then only a push that [needs no log](Self::needs_log)
    /// is answered.
    ///
    /// # Errors
    ///
    /// When the hub has another log, or the machine fails. Nothing of the push is stored then.
    pub fn store(self, replica: Option<&mut Replica>) -> Result<Pushed, AuthorityError> {
        let Self { known, events, answers, .. } = self;
        let (log, outcomes) = match replica {
            None if known.is_some() || !events.is_empty() => return Err(Refusal::WrongLog.into()),
            None => (None, Vec::new()),
            Some(replica) => (Some(own(replica, known)?), add_known(replica, events)?),
        };
        let mut outcomes = outcomes.into_iter();
        let answer = |answer: Option<PushedEvent>| {
            answer.unwrap_or_else(|| outcomes.next().expect("BUG: as many outcomes as events"))
        };
        Ok(Pushed { log, events: answers.into_iter().map(answer).collect() })
    }
}

/// Adds the events whose names the store knows or has room for.
fn add_known(replica: &mut Replica, events: Vec<(Envelope, Device)>) -> Result<Vec<PushedEvent>, Fault> {
    let room = MAX_NAMES.saturating_sub(replica.names());
    let mut fresh = BTreeSet::new();
    let is_welcome: Vec<bool> = events
        .iter()
        .map(|(event, _)| {
            let name = event.name.as_str();
            replica.has_name(name) || fresh.contains(name) || fresh.len() < room && fresh.insert(name.to_owned())
        })
        .collect();
    let mut welcome = is_welcome.iter();
    let events: Vec<_> = events.into_iter().filter(|_| welcome.next().is_some_and(|is_welcome| *is_welcome)).collect();
    let mut added = add(replica, &events)?.into_iter();
    let answer = |is_welcome| {
        if is_welcome {
            return added.next().expect("BUG: as many answers as events");
        }
        too_many_names()
    };
    Ok(is_welcome.into_iter().map(answer).collect())
}

fn add(replica: &mut Replica, events: &[(Envelope, Device)]) -> Result<Vec<PushedEvent>, Fault> {
    let outcomes = replica.add(events)?;
    let has_skipped = replica.standing()?.skipped > 0;
    let answer = |(outcome, (event, _)): (Outcome, &(Envelope, Device))| {
        Ok(match outcome {
            Outcome::Stored(Some(seq)) | Outcome::Known(Some(seq)) => {
                let no_effect = if has_skipped { replica.why_skipped(event.id)? } else { None };
                PushedEvent::Stored { seq, no_effect }
            }
            Outcome::Conflict => taken("its id belongs to another event in the log"),
            Outcome::Stored(None) | Outcome::Known(None) => taken("the hub has set aside an event with this id"),
            Outcome::Refused(why) => malformed(why),
        })
    };
    outcomes.into_iter().zip(events).map(answer).collect()
}

pub(super) fn taken(why: &str) -> PushedEvent {
    PushedEvent::Refused { refused: refused::ID_TAKEN.to_owned(), why: why.to_owned() }
}

pub(super) fn too_many_names() -> PushedEvent {
    let why = format!("its name is new here, and the store knows {MAX_NAMES} names already");
    PushedEvent::Refused { refused: refused::TOO_MANY_NAMES.to_owned(), why }
}

pub(super) fn malformed(why: String) -> PushedEvent {
    PushedEvent::Refused { refused: refused::MALFORMED.to_owned(), why }
}
