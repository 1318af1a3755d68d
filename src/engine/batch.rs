//! Batches: several events under one id. They travel, are stored and take effect as one.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::error::Malformed;
use super::event::{Args, Envelope, Event, EventId, EventName};

/// The name under which several events travel as one; see [`Batch`]. The prefix `likewise.` is the engine's own.
pub(crate) const BATCH: &str = "likewise.batch";

/// The name of the rule that gives the events of a batch their ids. Part of a schema's fingerprint.
pub(crate) const BATCH_IDS: &str = "likewise batch ids 1";

/// Several events that are committed together. They are applied all or not at all, on every replica.
///
/// A batch is one event whose payload is the list, so the log, the outbox and the wire format know nothing of it.
/// Still, each event in it has its own id, derived from the batch's: see [`Receipt::ids`](super::Receipt::ids).
#[derive(Debug, Default)]
pub struct Batch {
    items: Vec<BatchItem>,
}

/// One event of a batch, as stored in the batch's payload.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BatchItem {
    pub(crate) name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) args: Option<Box<RawValue>>,
}

impl Batch {
    /// Creates a batch without events.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `event` at the end.
    ///
    /// # Errors
    ///
    /// The same as for [`Envelope::new`].
    pub fn with<E: Event>(mut self, event: &E) -> Result<Self, Malformed> {
        let name = EventName::of::<E>()?.as_str().to_owned();
        let args = match Args::of(event)?.as_text() {
            Some(text) => Some(RawValue::from_string(text.to_owned()).map_err(|why| Malformed::Args(why.to_string()))?),
            None => None,
        };
        self.items.push(BatchItem { name, args });
        Ok(self)
    }

    /// Puts the whole batch under one id.
    ///
    /// # Errors
    ///
    /// If the batch is empty, or too large for one event.
    pub fn seal(self, id: EventId) -> Result<Envelope, Malformed> {
        if self.items.is_empty() {
            return Err(Malformed::Batch("it is empty".to_owned()));
        }
        let text = serde_json::to_string(&self.items).map_err(|why| Malformed::Args(why.to_string()))?;
        Ok(Envelope { id, name: EventName::stored(BATCH.into()), args: text.parse()? })
    }
}

impl Envelope {
    /// Returns how many events it has: one, unless it is a batch.
    pub(crate) fn events(&self) -> usize {
        match self.name.as_str() {
            BATCH => unseal(self.args.as_text()).map_or(1, |items| items.len()),
            _ => 1,
        }
    }
}

impl EventId {
    /// Returns the id of the `nth` event of a batch that has this id, counted from 0.
    ///
    /// The first event has the batch's id. Each later one has the batch's time and, instead of random bits, a hash of
    /// the batch's id and the event's index. So it is the same on every replica, and takes up no bytes. Replicas with
    /// another rule would derive other states from the same log, so a change of the rule is a change of [`BATCH_IDS`].
    pub(crate) fn nth_of_batch(self, nth: usize) -> Self {
        if nth == 0 {
            return self;
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(BATCH_IDS.as_bytes()).update(self.as_bytes()).update(&(nth as u64).to_le_bytes());
        let mut rest = [0; 10];
        rest.copy_from_slice(&hasher.finalize().as_bytes()[..10]);
        Self::from_parts(self.millis(), rest)
    }
}

/// Returns the events inside the payload of a batch.
pub(crate) fn unseal(text: Option<&str>) -> Result<Vec<BatchItem>, Malformed> {
    let items: Vec<BatchItem> =
        serde_json::from_str(text.unwrap_or("[]")).map_err(|why| Malformed::Batch(why.to_string()))?;
    if items.is_empty() {
        return Err(Malformed::Batch("it is empty".to_owned()));
    }
    Ok(items)
}
