//! An event of any type, as a test makes it for the simulation.

use crate::engine::{Batch, Envelope, Event, EventId, Malformed};

/// An event of any type, usually without an id. `into()` makes one from an event or a [`Batch`], or from an
/// [`Envelope`], which keeps its id.
pub struct Draft(Kind);

enum Kind {
    Unsealed(Box<dyn FnOnce(EventId) -> Result<Envelope, Malformed>>),
    Sealed(Envelope),
}

impl Draft {
    /// Seals the event under an id from `id`, unless it already has one.
    pub(super) fn seal(self, id: impl FnOnce() -> EventId) -> Result<Envelope, Malformed> {
        match self.0 {
            Kind::Unsealed(seal) => seal(id()),
            Kind::Sealed(event) => Ok(event),
        }
    }
}

impl<E: Event + 'static> From<E> for Draft {
    fn from(event: E) -> Self {
        Self(Kind::Unsealed(Box::new(move |id| Envelope::new(id, &event))))
    }
}

impl From<Batch> for Draft {
    fn from(batch: Batch) -> Self {
        Self(Kind::Unsealed(Box::new(move |id| batch.seal(id))))
    }
}

impl From<Envelope> for Draft {
    fn from(event: Envelope) -> Self {
        Self(Kind::Sealed(event))
    }
}
