//! Receipts: they confirm that an event is stored, and can wait until it has its place in the log.

use super::error::{Error, Fault};
use super::event::EventId;
use super::eventlog::Found;
use super::place::Seq;
use super::replica::Replica;
use super::store::Store;

/// Confirms that an event is stored: on disk and applied.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Receipt {
    /// The event's id. For a batch, it is the first event's.
    pub id: EventId,
    /// How many events it has: one, unless it is a batch.
    pub events: usize,
    /// Its place in the log, unless an upstream has yet to assign one.
    pub seq: Option<Seq>,
    /// False if it was stored before.
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
    /// Waits until the event has its place in the log, and returns the place. In a store that follows a hub, this may
    /// take until the network is back.
    ///
    /// # Errors
    ///
    /// [`Error::SetAside`] if the hub refused the event, and the errors of a store that can't be read.
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

    /// Returns the id of each event, in order: the ids that [`Db::id`](super::Db::id) gave their materializers.
    pub fn ids(&self) -> impl Iterator<Item = EventId> + use<> {
        let id = self.id;
        (0..self.events).map(move |nth| id.nth_of_batch(nth))
    }
}

/// The outcome of a stored event.
enum Placed {
    /// It has its place in the log.
    At(Seq),
    /// The hub refused it. Holds the hub's reason.
    SetAside(String),
}

impl Replica {
    /// Returns the outcome of the event `id`, or `None` while it is pending.
    fn place_of(&mut self, id: EventId) -> Result<Option<Placed>, Fault> {
        // Look here first, because the log may hold another event with that id.
        if let Some(why) = self.log().why_set_aside(id)? {
            return Ok(Some(Placed::SetAside(why)));
        }
        Ok(match self.log().find(id)? {
            Some(Found::Log(seq, _) | Found::Early(seq, _)) => Some(Placed::At(seq)),
            _ => None,
        })
    }
}
