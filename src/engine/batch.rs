//! Batches: several events under one id, which travel, are stored and take effect as one.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::error::Malformed;
use super::event::{Args, Envelope, Event, EventId, EventName};

/// The name under which several events travel as one; see [`Batch`]. The prefix `likewise.` is the engine's own.
pub(crate) const BATCH: &str = "likewise.batch";

/// Names the rule by which the events of a batch get their ids. Part of a schema's fingerprint.
pub(crate) const BATCH_IDS: &str = "likewise batch ids 1";

/// Several events that are committed together: applied wholly or not at all, here and everywhere.
///
/// A batch is one event whose payload is the list, so log, outbox and wire know nothing of it. Each event in it has an
/// id of its own all the same, which follows from the batch's: see [`Receipt::ids`](super::Receipt::ids).
#[derive(Debug, Default)]
pub struct Batch {
    items: Vec<BatchItem>,
}

/// One event inside a batch, as it stands in the batch's payload.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BatchItem {
    pub(crate) name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) args: Option<Box<RawValue>>,
}

impl Batch {
    /// A batch without events yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `event` behind those already here.
    ///
    /// # Errors
    ///
    /// As [`Envelope::new`].
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
    /// When it is empty, or too large for one event.
    pub fn seal(self, id: EventId) -> Result<Envelope, Malformed> {
        if self.items.is_empty() {
            return Err(Malformed::Batch("it is empty".to_owned()));
        }
        let text = serde_json::to_string(&self.items).map_err(|why| Malformed::Args(why.to_string()))?;
        Ok(Envelope { id, name: EventName::stored(BATCH.into()), args: text.parse()? })
    }
}

impl Envelope {
    /// How many events it has: one, unless it is a batch.
    pub(crate) fn events(&self) -> usize {
        match self.name.as_str() {
            BATCH => unseal(self.args.as_text()).map_or(1, |items| items.len()),
            _ => 1,
        }
    }
}

impl EventId {
    /// The id of the `nth` event of a batch that has this id, counted from 0.
    ///
    /// The first keeps the batch's id. Each later one has the batch's time, and in place of chance a hash of the batch's
    /// id and its own index. So it is the same on every replica, and takes no bytes anywhere. Replicas with another rule
    /// would make other states of the same log: a change of it is a change of [`BATCH_IDS`].
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

/// The events inside the payload of a batch.
pub(crate) fn unseal(text: Option<&str>) -> Result<Vec<BatchItem>, Malformed> {
    let items: Vec<BatchItem> =
        serde_json::from_str(text.unwrap_or("[]")).map_err(|why| Malformed::Batch(why.to_string()))?;
    if items.is_empty() {
        return Err(Malformed::Batch("it is empty".to_owned()));
    }
    Ok(items)
}
