//! Verifies a store beside the thread that writes to it. Reads all of it, and compares it with what was stored.
//!
//! The state is read first and the eventlog second, so the eventlog is never behind the state.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::contents::TableDigests;
use super::error::{Fault, LogFault, StateFault};
use super::eventlog::{Checkpoint, Eventlog, Tip};
use super::materialize::{Enders, Stop};
use super::opening::remove_file;
use super::place::{Cursor, Digest, Generation, Seq};
use super::proof::Scratch;
use super::replica::{HistoryStanding, replay_log};
use super::schema::Schema;
use super::setup::{Files, Setup};
use super::state::{self, Committed, State};
use super::witness;

/// The result of verifying a store.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// How many events the log has.
    pub events: u64,
    /// How many events wait for a place in the log.
    pub pending: u64,
    /// The last event of the log.
    pub head: Seq,
    /// The digest of the log up to `head`.
    pub log_digest: Digest,
    /// The digest of a state rebuilt from the log up to the committed state's cursor.
    pub state_digest: Digest,
    /// What is wrong. Empty when all is well.
    pub problems: Vec<String>,
    /// What is not wrong, but good to know.
    pub notes: Vec<String>,
}

/// Reads the whole store. Compares the log with its digests, and the state with one rebuilt from the log.
///
/// During the rebuild, a SELECT without ORDER BY returns its rows in reverse. This exposes a materializer that depends
/// on an order it doesn't ask for.
///
/// # Errors
///
/// Fails if the store can't be read at all. Problems inside the store are in the [`Report`].
pub fn verify(files: &Files, setup: &Setup) -> Result<Report, Fault> {
    let Setup { schema, executable, .. } = setup;
    let mut report = Report::default();
    // Read the witness and the state first. Somebody may be adding to the eventlog, which must not seem to be behind.
    let testimony = witness::testimony(&files.witness());
    let committed = if files.state().exists() {
        match state::committed(&files.state()) {
            Ok(committed) => Some(committed),
            Err(StateFault(fault)) => {
                report.problems.push(format!(
                    "the state can't be read: {fault}. No event is lost: it is rebuilt at the next start"
                ));
                None
            }
        }
    } else {
        report.notes.push("there is no state; it is made at the next start".to_owned());
        None
    };
    let log = Eventlog::snapshot(&files.eventlog())?;
    let tip = *log.tip();
    report.events = tip.length;
    report.pending = tip.pending;
    report.head = tip.head;
    report.log_digest = tip.digest;
    report.problems.extend(check_log(&log)?);
    report.problems.extend(log.check_waiting()?);
    if let Some(lack) = testimony.and_then(|earlier| log.testimony().lacks(earlier)) {
        report.problems.push(Fault::LostTail(lack).to_string());
    }

    let cursor = committed.as_ref().map_or(Cursor { seq: tip.head, ..Cursor::default() }, |found| found.cursor);
    if let Some(history) = HistoryStanding::of(&tip) {
        report.notes.push(format!(
            "this store began with a snapshot: of the {} events behind it, {} are here. The state is compared with the \
             snapshot and what came after it",
            history.length, history.here
        ));
    }
    let scratch = Scratch::new(files);
    let replay = Replay { files, log: &log, schema, scratch: &scratch };
    let replayed = match replay.until(cursor.seq, Order::Reversed)? {
        Some(state) => state.contents()?,
        None => {
            report.notes.push(
                "the snapshot is missing, damaged or of another schema. No event is lost: the log is pulled again after \
                 the next start"
                    .to_owned(),
            );
            return Ok(report);
        }
    };
    report.state_digest = replayed.tables;
    let Some(found) = committed else { return Ok(report) };
    if cursor.generation != tip.generation {
        report.notes.push("events were taken back out of the log; the state is rebuilt at the next start".to_owned());
    } else if cursor.seq > tip.head {
        let lack = format!("it ends at {}, and its state has come to {}", tip.head, cursor.seq);
        report.problems.push(Fault::LostTail(lack).to_string());
    } else if log.digest_at(cursor.seq)? != Some(cursor.digest) {
        report.problems.push(format!(
            "the events up to {} are not those that the state was made from: one of the two was changed. \
             Restore a backup, or compare with another device",
            cursor.seq
        ));
    } else if !found.is_made_by(schema, executable) {
        report.notes.push("another version of the program made the state; it is rebuilt at the next start".to_owned());
    } else if !found.contents.follow_from_the_same(&replayed) {
        report.problems.push(difference(&replay, &found)?);
    }
    Ok(report)
}

const REBUILD: &str = "No event is lost: stop likewise and delete the file state.db of this store, and it is rebuilt \
                       at the next start";

/// Says why the state probably isn't the one that follows from the log, and what to do.
fn difference(replay: &Replay<'_>, found: &Committed) -> Result<String, Fault> {
    let tables = |order| match replay.until(found.cursor.seq, order)? {
        Some(state) => Ok(Some((state.contents()?, state.table_digests()?))),
        None => Ok::<_, Fault>(None),
    };
    let replays = (tables(Order::Natural)?, tables(Order::Natural)?, tables(Order::Reversed)?);
    let (Some((one, one_tables)), Some((other, other_tables)), Some((_, reversed_tables))) = replays else {
        return Ok("the snapshot was replaced or given up meanwhile. Verify it again".to_owned());
    };
    if !one.follow_from_the_same(&other) {
        let tables = differing(&one_tables, &other_tables);
        return Ok(format!(
            "a materializer is not deterministic: two replays of the same log differ in {tables}. Look in what writes there \
             for a clock, chance, a file, a static variable, or the order of a HashMap, and take it out; replicas differ \
             until then. The corrected program rebuilds the state"
        ));
    }
    if one.follow_from_the_same(&found.contents) {
        let tables = differing(&one_tables, &reversed_tables);
        return Ok(format!(
            "a materializer depends on the order of rows that it doesn't ask for: a state made with the rows the other way \
             round differs in {tables}. Add ORDER BY to its SELECTs"
        ));
    }
    // The state may have advanced meanwhile. Then its tables don't show where it differed.
    let (cursor, tables) = state::committed_tables(&replay.files.state())?;
    let place = if cursor == found.cursor { differing(&one_tables, &tables) } else { "its tables".to_owned() };
    Ok(format!(
        "the state differs from one that is rebuilt from the log, in {place}. Two replays agree, so either a materializer \
         used something then that has changed since (a setting, a file, a static variable), or another program wrote to \
         state.db. {REBUILD}"
    ))
}

/// Returns the names of the tables in which two states differ.
fn differing(one: &TableDigests, other: &TableDigests) -> String {
    let names: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    let differing = names.into_iter().filter(|name| one.get(*name) != other.get(*name));
    let names: Vec<String> = differing.map(|name| format!("`{name}`")).collect();
    if names.len() == 1 { format!("the table {}", names[0]) } else { format!("the tables {}", names.join(", ")) }
}

/// Hashes the whole log, compares it with each stored digest on the way, and returns what is wrong.
pub(super) fn check_log(log: &Eventlog) -> Result<Vec<String>, LogFault> {
    let lines = log.integrity_check()?.into_iter();
    let mut problems: Vec<String> = lines.map(|line| format!("the eventlog is damaged: {line}")).collect();
    let base = log.tip().base;
    let mut point = Checkpoint::default();
    for stored in log.checkpoints()? {
        if point.seq < base.seq && stored.seq > base.seq {
            point = base;
        }
        if log.walk(point, Some(stored.seq))? != stored {
            problems.push(format!(
                "of the events {} to {} some are not those that were stored. Restore a backup, or have the store made \
                 again from the other devices: docs/repair.md has the steps",
                point.seq.next(),
                stored.seq
            ));
        }
        point = stored;
    }
    Ok(problems)
}

/// The order in which a SELECT without ORDER BY returns its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Natural,
    Reversed,
}

/// Builds states from the log, and from the snapshot where it begins.
struct Replay<'a> {
    files: &'a Files,
    log: &'a Eventlog,
    schema: &'a Arc<Schema>,
    scratch: &'a Scratch,
}

impl Replay<'_> {
    /// Builds a state from the log up to `until`. Returns `None` if it can't be made, because the snapshot isn't what it
    /// should be.
    fn until(&self, until: Seq, order: Order) -> Result<Option<State>, Fault> {
        let mut enders = Enders::new();
        loop {
            let Some(mut state) = self.begin()? else { return Ok(None) };
            if order == Order::Reversed {
                state.reverse_unordered()?;
            }
            state.begin()?;
            match replay_log(self.log, &state, until, &enders) {
                Ok(()) => {
                    state.commit(Cursor { generation: Generation(0), seq: until, digest: Digest::EMPTY })?;
                    return Ok(Some(state));
                }
                Err(Stop::Ended(id, why)) => drop(enders.insert(id, why)),
                Err(Stop::Fault(fault)) => return Err(fault),
            }
        }
    }

    fn begin(&self) -> Result<Option<State>, Fault> {
        let Tip { base, generation, .. } = *self.log.tip();
        if self.log.tip().is_whole() {
            return Ok(Some(State::in_memory(self.schema)?));
        }
        let Some(file) = self.log.base_file()?.filter(|file| file.schema == self.schema.fingerprint()) else {
            return Ok(None);
        };
        remove_file(&self.scratch.0)?;
        let cursor = Cursor { generation, seq: base.seq, digest: base.digest };
        Ok(State::scratch(&self.scratch.0, Some((&self.files.base(), &file, cursor)), self.schema)?)
    }
}
