//! Where a replica stands: how far it has come, which events wait, and which have no effect.

use serde::{Deserialize, Serialize};

use super::{HistoryStanding, Replica};
use crate::engine::contents::TableRows;
use crate::engine::error::Fault;
use crate::engine::event::EventId;
use crate::engine::eventlog::{Tip, Whose};
use crate::engine::place::{Cursor, Digest, Generation, Seq};
use crate::engine::setup::Files;
use crate::engine::state;
use crate::limits::engine::replica::MOST_SKIPPED;

/// Where a replica stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The authority of its log.
    pub whose: Whose,
    /// How often events were taken back out of the log.
    pub generation: Generation,
    /// The last event of the log.
    pub head: Seq,
    /// How many events the log has.
    pub length: u64,
    /// How far the committed state has come.
    pub cursor: Seq,
    /// How many events are waiting for a place in the log.
    pub pending: u64,
    /// How many events the authority refused.
    pub set_aside: u64,
    /// How many events can't be applied, here or anywhere.
    pub skipped: u64,
    /// How many events have no effect because nothing here knows their name.
    pub unknown: u64,
    /// What is here of the events behind the snapshot, if the log begins at one. None once all of the log is here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<HistoryStanding>,
}

/// An event that has no effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Its id.
    pub id: EventId,
    /// Its name.
    pub name: String,
    /// Why it has no effect.
    pub why: NoEffect,
}

/// Why an event has no effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum NoEffect {
    /// Nothing here knows its name. It takes effect once a program that knows it opens the store.
    UnknownName,
    /// It can't be applied, here or anywhere. Holds the reason.
    Failed(String),
}

impl Replica {
    /// Returns the digest of the state, including pending events.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn state_digest(&self) -> Result<Digest, Fault> {
        Ok(self.state.digest()?)
    }

    /// Returns the rows of the state's tables as text, including pending events.
    pub(crate) fn table_rows(&self) -> Result<TableRows, Fault> {
        Ok(self.state.table_rows()?)
    }

    /// Returns why the event `id` can't be applied, if that is so.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn why_skipped(&self, id: EventId) -> Result<Option<String>, Fault> {
        Ok(self.state.why_skipped(id)?)
    }

    /// Returns the events that have no effect, and why. The newest ids come first, up to [`MOST_SKIPPED`] of them.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn skipped(&self) -> Result<Vec<Skipped>, Fault> {
        let skipped = self.state.skipped(MOST_SKIPPED)?.into_iter().map(|(id, why)| {
            let found = self.log.find(id)?;
            let why = why.map_or(NoEffect::UnknownName, NoEffect::Failed);
            Ok(found.map(|found| Skipped { id, name: found.content().name.as_str().to_owned(), why }))
        });
        skipped.filter_map(Result::transpose).collect()
    }

    /// Returns where this replica stands.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn standing(&self) -> Result<Standing, Fault> {
        let (skipped, unknown) = self.state.count_skipped();
        let Tip { head, length, generation, whose, pending, set_aside, .. } = *self.log.tip();
        let cursor = self.state.cursor().seq;
        let history = HistoryStanding::of(self.log.tip());
        Ok(Standing { whose, generation, head, length, cursor, pending, set_aside, skipped, unknown, history })
    }
}

/// Returns the cursor and the digest of the committed state in `files`. Reads it alongside the thread that writes to
/// it.
///
/// # Errors
///
/// A fault of the machine.
pub fn committed_state(files: &Files) -> Result<(Cursor, Digest), Fault> {
    let found = state::committed(&files.state())?;
    Ok((found.cursor, found.contents.tables))
}
