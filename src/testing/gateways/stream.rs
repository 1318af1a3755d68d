//! The simulated cluster that gateways stand before: a stream and a bucket, with JetStream's semantics and its faults.

use std::collections::BTreeMap;

use super::WORKS;
use crate::engine::{Envelope, EventId, StreamId};
use crate::sync::gateway::shared::{Revision, Shared};
use crate::sync::gateway::{Ends, Message, Sequence};

/// The id of every stream follows from its number, so a seed tells the same story each time.
pub(super) fn stream_id(number: u64) -> StreamId {
    format!("00000000-0000-4000-8000-{number:012x}").parse().expect("BUG: a UUID")
}

/// A stream with the subject of one store. Other stores' messages take numbers from it, too.
pub(super) struct Stream {
    pub(super) id: StreamId,
    /// The number of the last message, of any subject.
    last: Sequence,
    messages: BTreeMap<Sequence, Vec<u8>>,
    /// The events of messages that the leader forgot, while nothing else has their number.
    forgotten: BTreeMap<Sequence, Vec<EventId>>,
}

impl Stream {
    pub(super) fn new(id: StreamId) -> Self {
        Self { id, last: 0, messages: BTreeMap::new(), forgotten: BTreeMap::new() }
    }

    /// Stores a message if the subject's last one has that number. Otherwise returns the number that it has.
    pub(super) fn publish(&mut self, expected: Sequence, bytes: &[u8]) -> Result<Sequence, Sequence> {
        let last = self.ends().last;
        if last != expected {
            return Err(last);
        }
        self.last += 1;
        self.messages.insert(self.last, bytes.to_vec());
        Ok(self.last)
    }

    /// Another store gets a message.
    pub(super) fn publish_elsewhere(&mut self) {
        self.last += 1;
    }

    pub(super) fn ends(&self) -> Ends {
        let last = self.messages.keys().next_back().copied().unwrap_or_default();
        Ends { last, messages: Some(self.messages.len() as u64) }
    }

    pub(super) fn get(&self, sequence: Sequence) -> Option<&[u8]> {
        self.messages.get(&sequence).map(Vec::as_slice)
    }

    pub(super) fn next(&self, after: Sequence) -> Option<(Sequence, &[u8])> {
        self.messages.range(after + 1..).next().map(|(sequence, bytes)| (*sequence, bytes.as_slice()))
    }

    /// A new leader lacks the last messages, and gives their numbers to others.
    pub(super) fn forget_last(&mut self, count: u64) -> bool {
        self.last = self.last.saturating_sub(count);
        let lost = self.messages.split_off(&(self.last + 1));
        let has_lost = !lost.is_empty();
        self.forgotten.extend(lost.into_iter().map(|(sequence, bytes)| (sequence, ids_in(&bytes))));
        has_lost
    }

    /// Returns the events of forgotten messages whose numbers belong to others by now.
    pub(super) fn take_replaced(&mut self) -> Vec<EventId> {
        let kept = self.forgotten.split_off(&(self.last + 1));
        std::mem::replace(&mut self.forgotten, kept).into_values().flatten().collect()
    }

    /// A message in the middle is gone.
    pub(super) fn damage(&mut self, nth: usize) -> Vec<EventId> {
        let sequence = self.messages.keys().nth(nth).copied();
        let lost = sequence.and_then(|sequence| self.messages.remove(&sequence));
        lost.map(|bytes| ids_in(&bytes)).unwrap_or_default()
    }

    pub(super) fn count(&self) -> usize {
        self.messages.len()
    }

    /// Returns the events that it has.
    pub(super) fn events(&self) -> impl Iterator<Item = Envelope> {
        self.messages.values().flat_map(|bytes| events_in(bytes))
    }
}

fn ids_in(bytes: &[u8]) -> Vec<EventId> {
    events_in(bytes).into_iter().map(|event| event.id).collect()
}

/// Returns a message's events.
fn events_in(bytes: &[u8]) -> Vec<Envelope> {
    match Message::read(bytes) {
        Ok(Message::Group(group)) => group.events.into_iter().map(|(event, _)| event).collect(),
        _ => Vec::new(),
    }
}

/// The bucket, as a stream of documents.
#[derive(Default)]
pub(super) struct Bucket {
    made: u64,
    documents: Vec<Document>,
    /// Counts what was ever written, as a clock would.
    writes: u64,
}

struct Document {
    time: String,
    bytes: Vec<u8>,
}

impl Bucket {
    /// Where it ends.
    pub(super) fn end(&self) -> Revision {
        let last = self.documents.last();
        Revision {
            bucket: self.made.to_string(),
            sequence: self.documents.len() as u64,
            time: last.map(|document| document.time.clone()).unwrap_or_default(),
        }
    }

    /// The last document.
    pub(super) fn last(&self) -> Option<Shared> {
        self.documents.last().map(|document| Shared::read(&document.bytes).expect(WORKS))
    }

    /// Writes a document if the last one has that number. Returns its own.
    pub(super) fn write(&mut self, expected: u64, bytes: Vec<u8>) -> Option<u64> {
        if self.documents.len() as u64 != expected {
            return None;
        }
        self.writes += 1;
        self.documents.push(Document { time: self.writes.to_string(), bytes });
        Some(expected + 1)
    }

    /// A new leader lacks the last documents, and gives their numbers to others.
    pub(super) fn forget_last(&mut self, count: usize) {
        self.documents.truncate(self.documents.len().saturating_sub(count));
    }

    /// Another bucket stands under the name.
    pub(super) fn recreate(&mut self) {
        self.made += 1;
        self.documents.clear();
    }
}
