//! A gateway's replica: its log is made by the messages of a stream.

use super::Replica;
use super::arrive::Page;
use crate::engine::error::Fault;
use crate::engine::event::{Envelope, EventId};
use crate::engine::eventlog::{Applied, Found, Whose};
use crate::engine::place::{Digest, LogId, Seq, StreamId};

/// A message of a stream, as it is applied to the log.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// Its number in the stream.
    pub sequence: u64,
    /// What is added to the places that follow from its number.
    pub offset: u64,
    /// The BLAKE3 hash of its bytes.
    pub hash: Digest,
    /// Its events with their places. `next` is the last of these, or zero if it has none.
    pub page: Page,
    /// Where the store went, if the message closes it.
    pub closed: Option<String>,
}

impl Replica {
    /// Returns the stream whose messages make this log, if this is a gateway's replica.
    pub fn stream(&self) -> Option<StreamId> {
        self.log.stream()
    }

    /// Records that messages of this stream make the log from now on. `log` is its id if there is none yet.
    ///
    /// A log of our own stays what it is, under its id, if the stream has it already: then its messages are compared with
    /// it as they are read. Otherwise [`take it back`](Self::follow) first.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn follow_stream(&mut self, stream: StreamId, log: LogId) -> Result<(), Fault> {
        // A gateway needs every id, and its stream has all of them.
        self.drop_base()?;
        let log = self.log.tip().whose.log_id().unwrap_or(log);
        self.change(|own| {
            own.set_whose(Whose::Upstream(Some(log)))?;
            own.set_pulled(Seq::START)?;
            own.set_stream(Some(stream))
        })
    }

    /// Forgets the stream. The log stays. Does nothing if this is no gateway's replica.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn leave_stream(&mut self) -> Result<(), Fault> {
        if self.log.stream().is_none() {
            return Ok(());
        }
        self.change(|own| {
            own.set_pulled(own.tip().head)?;
            own.set_stream(None)
        })
    }

    /// Returns the log that devices are served: our own, or the one that a stream's messages make.
    pub fn served(&self) -> Option<LogId> {
        match self.log.tip().whose {
            Whose::Own(log) => Some(log),
            Whose::Upstream(log) => log.filter(|_| self.log.stream().is_some()),
        }
    }

    /// Returns the last message that was applied.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn applied(&self) -> Result<Option<Applied>, Fault> {
        self.applied_until(u64::MAX)
    }

    /// Returns the last message that was applied and whose number is at most `sequence`.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn applied_until(&self, sequence: u64) -> Result<Option<Applied>, Fault> {
        Ok(self.log.message_until(sequence)?)
    }

    /// Returns the first message that was applied and whose number is above `sequence`.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn applied_after(&self, sequence: u64) -> Result<Option<Applied>, Fault> {
        Ok(self.log.message_after(sequence)?)
    }

    /// Returns the `nth` message that was applied, from 1.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn nth_applied(&self, nth: u64) -> Result<Option<Applied>, Fault> {
        Ok(self.log.nth_message(nth)?)
    }

    /// Returns where the store went, if its closing message was read.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn closed(&self) -> Result<Option<String>, Fault> {
        Ok(self.log.closed()?)
    }

    /// Applies a message, in one transaction with the memory of it. If the log's digest doesn't come out as `digest`, this
    /// changes nothing and returns false. Without a `digest`, the log becomes what the message makes of it.
    ///
    /// # Errors
    ///
    /// A fault of the machine. Read the message again then.
    pub fn arrive_message(&mut self, log: LogId, arrival: &Arrival, digest: Option<Digest>) -> Result<bool, Fault> {
        self.unless_broken(|replica| {
            replica.try_arrive_with(&arrival.page, |own, end| {
                if let Some(digest) = digest
                    && own.digest_at(end)? != Some(digest)
                {
                    return Ok(false);
                }
                let last = own.message_until(u64::MAX)?;
                let nth = last.map_or(1, |last| last.nth + 1);
                let seq = last.map_or(Seq::START, |last| last.seq).max(end);
                let Arrival { sequence, offset, hash, .. } = *arrival;
                own.add_message(&Applied { sequence, nth, seq, offset, hash })?;
                if !arrival.page.entries.is_empty() && own.tip().whose.log_id() != Some(log) {
                    own.set_whose(Whose::Upstream(Some(log)))?;
                }
                if let Some(to) = &arrival.closed {
                    own.set_closed(to)?;
                }
                Ok(true)
            })
        })
    }

    /// Takes back what the messages after `sequence` brought, and forgets them.
    ///
    /// # Errors
    ///
    /// As [`take_back`](Self::take_back). After a crash in between, the log has more than its messages brought. It is compared
    /// with the messages that are read next, as a log is that came here in another way.
    pub fn take_back_messages(&mut self, sequence: u64) -> Result<(), Fault> {
        let after = self.applied_until(sequence)?.map_or(Seq::START, |last| last.seq);
        let whose = self.log.tip().whose;
        self.change(|own| own.forget_messages_beyond(sequence))?;
        self.take_back(after, whose)
    }

    /// Returns the place of an event in the log, and whether it is this very event. `None` if the log has no such id.
    pub(crate) fn find_in_log(&self, event: &Envelope) -> Result<Option<(Seq, bool)>, Fault> {
        Ok(match self.find(event.id)? {
            Some(Found::Log(seq, content)) => Some((seq, content.is(event))),
            _ => None,
        })
    }

    /// Returns whether the log has this id at this place.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn has_at(&self, id: EventId, seq: Seq) -> Result<bool, Fault> {
        Ok(matches!(self.find(id)?, Some(Found::Log(found, _)) if found == seq))
    }
}
