//! What a store's thread tells those who use the store: that an event is stored, and how the store is.

use super::event::{Envelope, EventId};
use super::place::Seq;
use super::replica::Standing;

/// Says that an event is stored: on disk, and applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// The event's id; of a batch, the first event's.
    pub id: EventId,
    /// How many events it has: one, unless it is a batch.
    pub events: usize,
    /// Its place in the log, unless an upstream has yet to give it one.
    pub seq: Option<Seq>,
    /// False when it was stored before.
    pub is_new: bool,
}

impl Receipt {
    pub(super) fn new(event: &Envelope, seq: Option<Seq>, is_new: bool) -> Self {
        Self { id: event.id, events: event.events(), seq, is_new }
    }

    /// The id of each event, in order: what [`Db::id`](super::Db::id) gave their materializers.
    pub fn ids(&self) -> impl Iterator<Item = EventId> + use<> {
        let id = self.id;
        (0..self.events).map(move |nth| id.nth_of_batch(nth))
    }
}

/// How a store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Nobody has looked yet.
    Opening,
    /// It has no events yet, and no files.
    Absent,
    /// It works.
    Open(Standing),
    /// It can be read, but stores nothing at present: why, and what to do.
    ReadOnly(Standing, String),
    /// It can't be used at present: why, and what to do.
    Failed(String),
}

impl Health {
    /// Where the store stands, if that is known.
    pub fn standing(&self) -> Option<&Standing> {
        match self {
            Self::Open(standing) | Self::ReadOnly(standing, _) => Some(standing),
            Self::Opening | Self::Absent | Self::Failed(_) => None,
        }
    }

    /// Why nothing can be stored, if that is so.
    pub fn trouble(&self) -> Option<&str> {
        match self {
            Self::ReadOnly(_, why) | Self::Failed(why) => Some(why),
            Self::Opening | Self::Absent | Self::Open(_) => None,
        }
    }
}
