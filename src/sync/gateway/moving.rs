//! Moving a hub's own log into a stream. No network, clock or thread.
//!
//! The subject gets the log's events with their ids, order, places and origins. So a device that was level with the hub is
//! level with every gateway, and pulls nothing again. A move that was interrupted goes on: what the subject has already is
//! read first, and compared with the log here.

use super::message::{Message, MovingIn, Sequence, Unread};
use crate::engine::{Fault, LogId, PageSize, Replica, Seq, StreamId, Whose};
use crate::limits::sync::page;

/// As much of the log as a message may hold.
const NEXT: PageSize = PageSize { events: page::EVENTS, bytes: page::BYTES };

/// Why a log can't be moved. The store is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MoveError {
    /// The log here is not this instance's own.
    #[error(
        "it follows another instance. Move the hub that has the log, or `promote` this store first if that is gone"
    )]
    NotOwn,
    /// The subject has events that the log here doesn't have, or has in another order.
    #[error(
        "the stream has another log of this store already: message {0} is not what comes next here. Use another prefix"
    )]
    Differs(Sequence),
    /// Gateways went on with the log before all of it was there.
    #[error(
        "gateways have added to this store (message {0}) before all of it was moved. Start this directory with the stream \
         as its upstream: it pushes what the stream lacks, and devices mend themselves. Nothing is lost, but the order"
    )]
    GoneOn(Sequence),
    /// It was moved out of this stream before.
    #[error("it was moved out of this stream to {0}, and does not go back into the same one. Use another prefix")]
    Closed(String),
    /// A later version of this program wrote to the subject.
    #[error("message {0}: {1}")]
    Newer(Sequence, Unread),
    /// A fault of the machine.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum MoveStep {
    /// Read the subject's messages after this number. Pass each to [`MoveIn::arrive`], and call [`MoveIn::level`] when there
    /// are no more for now.
    Read(Sequence),
    /// Publish, under the condition that the subject's last message has the number `expected`. Pass the number that it gets
    /// to [`MoveIn::published`]. If it is refused, or no answer comes, call [`MoveIn::unsure`].
    Publish {
        /// The number of the subject's last message.
        expected: Sequence,
        /// The message.
        bytes: Vec<u8>,
    },
    /// The subject has all of it.
    Done,
}

/// A move of one store's log.
#[derive(Debug)]
pub struct MoveIn {
    log: LogId,
    moving: MovingIn,
    /// The last event of the log.
    head: Seq,
    /// How much of the log the subject has.
    after: Seq,
    /// The subject's last message that is known.
    last: Sequence,
    is_level: bool,
    /// A message with which gateways went on with the log before the subject had all of it.
    gone_on: Option<Sequence>,
    /// What is published: how the move stands with it, and the last place in it.
    next: Option<(MovingIn, Seq)>,
}

impl MoveIn {
    /// Begins to move the log of a store, which nobody may add to meanwhile.
    ///
    /// # Errors
    ///
    /// When it isn't the store's own, or a fault of the machine.
    pub fn new(replica: &Replica) -> Result<Self, MoveError> {
        let standing = replica.standing()?;
        let Whose::Own(log) = standing.whose else { return Err(MoveError::NotOwn) };
        Ok(Self::of(log, standing.head))
    }

    fn of(log: LogId, head: Seq) -> Self {
        Self {
            log,
            moving: MovingIn::new(log, head),
            head,
            after: Seq::START,
            last: 0,
            is_level: false,
            gone_on: None,
            next: None,
        }
    }

    /// Returns how far the log has been moved.
    pub fn after(&self) -> Seq {
        self.after
    }

    /// Says what to do next.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn next(&mut self, replica: &Replica) -> Result<MoveStep, MoveError> {
        if !self.is_level {
            return Ok(MoveStep::Read(self.last));
        }
        if let Some(sequence) = self.gone_on {
            return Err(MoveError::GoneOn(sequence));
        }
        let entries = replica.entries(self.after, NEXT)?;
        let mut moving = self.moving.clone();
        let Some((message, count)) = moving.next(&entries) else { return Ok(MoveStep::Done) };
        self.next = Some((moving, entries[count - 1].seq));
        Ok(MoveStep::Publish { expected: self.last, bytes: message.to_bytes() })
    }

    /// Takes in the subject's next message.
    ///
    /// # Errors
    ///
    /// When the log can't be moved there, or a fault of the machine.
    pub fn arrive(&mut self, replica: &Replica, sequence: Sequence, bytes: &[u8]) -> Result<(), MoveError> {
        if sequence <= self.last {
            return Ok(());
        }
        match Message::read(bytes) {
            Ok(Message::Closed(to)) => return Err(MoveError::Closed(to)),
            Err(newer @ Unread::Newer(_)) => return Err(MoveError::Newer(sequence, newer)),
            // Gateways pass over it as well.
            Err(Unread::Foreign(_)) => {}
            // Gateways go on with the log. What they added to all of it is theirs.
            Ok(Message::Group(group)) if group.seqs.is_none() && self.after > Seq::START => {
                if self.after < self.head {
                    self.gone_on.get_or_insert(sequence);
                }
            }
            Ok(Message::Group(group)) => {
                let entries = replica.entries(self.after, NEXT)?;
                let count = self.moving.pass(&group, &entries).ok_or(MoveError::Differs(sequence))?;
                self.after = entries[count - 1].seq;
            }
        }
        self.last = sequence;
        Ok(())
    }

    /// The subject has no more messages for now.
    pub fn level(&mut self) {
        self.is_level = true;
    }

    /// The stream has taken what [`MoveStep::Publish`] said, as this message.
    pub fn published(&mut self, sequence: Sequence) {
        if let Some((moving, after)) = self.next.take() {
            (self.moving, self.after, self.last) = (moving, after, sequence);
        }
    }

    /// Nobody knows whether the stream has taken it. The subject is read again.
    pub fn unsure(&mut self) {
        (self.next, self.is_level) = (None, false);
    }

    /// Makes the store a gateway's, once the subject has all of its log. The gateway compares what it has with the stream
    /// when it starts, and reads nothing anew.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn conclude(self, replica: &mut Replica, stream: StreamId) -> Result<(), Fault> {
        debug_assert_eq!(self.after, self.head, "BUG: not all of it was moved");
        replica.follow_stream(stream, self.log)
    }
}
