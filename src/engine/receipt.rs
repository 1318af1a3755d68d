//! What says that an event is stored, and can wait until it has its place in the log.

use super::error::{Error, Fault};
use super::event::EventId;
use super::eventlog::Found;
use super::place::Seq;
use super::replica::Replica;
use super::store::Store;

/// Says that an event is stored: on disk, and applied.
#[derive(Debug, Clone)]
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
    pub(super) store: Store,
}

impl PartialEq for Receipt {
    fn eq(&self, other: &Self) -> bool {
        let said = |it: &Self| (it.id, it.events, it.seq, it.is_new);
        said(self) == said(other) && self.store.id() == other.store.id()
    }
}

impl Eq for Receipt {}

impl Receipt {
    /// Waits until the event has its place in the log, and gives that. For a store that follows a hub this may take until
    /// there is a network again.
    ///
    /// # Errors
    ///
    /// [`Error::SetAside`] when the hub refused the event, and those of a store that can't be read.
    pub async fn confirmed(&self) -> Result<Seq, Error> {
        let (id, mut health) = (self.id, self.store.health());
        loop {
            drop(health.borrow_and_update());
            match self.store.look(move |replica| replica.place_of(id)).await? {
                Some(Some(Placed::At(seq))) => return Ok(seq),
                Some(Some(Placed::SetAside(why))) => return Err(Error::SetAside(why)),
                _ => health.changed().await.map_err(|_| Error::Closed)?,
            }
        }
    }

    /// The id of each event, in order: what [`Db::id`](super::Db::id) gave their materializers.
    pub fn ids(&self) -> impl Iterator<Item = EventId> + use<> {
        let id = self.id;
        (0..self.events).map(move |nth| id.nth_of_batch(nth))
    }
}

/// What became of an event that is stored.
enum Placed {
    /// It has its place in the log.
    At(Seq),
    /// The hub refused it, and said why.
    SetAside(String),
}

impl Replica {
    /// What became of the event `id`. Nothing, as long as it is pending.
    fn place_of(&mut self, id: EventId) -> Result<Option<Placed>, Fault> {
        // First, for the log may hold another event of that id.
        if let Some(why) = self.log().why_set_aside(id)? {
            return Ok(Some(Placed::SetAside(why)));
        }
        Ok(match self.log().find(id)? {
            Some(Found::Log(seq, _)) => Some(Placed::At(seq)),
            _ => None,
        })
    }
}
