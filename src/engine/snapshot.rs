//! Reading a store beside the thread that writes to it, in the process that has the data directory: verify, export,
//! backup.
//!
//! A snapshot takes the state first and the eventlog second, so that the eventlog it sees is never behind the state.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use rusqlite::types::{ToSqlOutput, ValueRef};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::event::{Args, Device, Envelope, EventId, EventName, Malformed};
use super::eventlog::{self, CHECKPOINT_EVERY, Eventlog, PageSize, Rescued, Waiting};
use super::files::{create_private_dir, open_private_file, sync_dir, sync_parent};
use super::opening::remove_database;
use super::place::{Cursor, Digest, Generation, Seq};
use super::replica::{Files, replay_log};
use super::schema::Schema;
use super::state::{self, Enders, State, Stop};
use super::storage::{Beside, Fault, IoContext};
use super::witness::{self, Witness};

/// Whether there is nothing here yet: no files, or the mere beginning of an eventlog, which is what a crash leaves that
/// comes before the first event. That is no loss, and opening the store goes on from there.
///
/// # Errors
///
/// When the files can't be looked at, or are not an eventlog that this program understands.
pub fn is_blank(files: &Files) -> Result<bool, Fault> {
    files.check()?;
    // The other two only come after the eventlog has its tables, so they prove that there was more.
    for path in [files.witness(), files.state()] {
        if path.try_exists().doing("look at", &path)? {
            return Ok(false);
        }
    }
    Ok(eventlog::look(&files.eventlog())?.is_none())
}

/// What is read at a time. Between two looks nothing is held open: whoever is given the events may be slow, and a snapshot
/// that stays open keeps the WAL from beginning again.
const PORTION: PageSize = PageSize { events: 8_192, bytes: 4 << 20 };

/// What a look at the whole store found.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// How many events the log has.
    pub events: u64,
    /// How many events wait for a place in it.
    pub pending: u64,
    /// The last event of the log.
    pub head: Seq,
    /// Of the log, up to `head`.
    pub log_digest: Digest,
    /// Of a state made anew from the log, up to the committed state's cursor.
    pub state_digest: Digest,
    /// What is wrong. Empty when all is well.
    pub problems: Vec<String>,
    /// What is not wrong, but good to know.
    pub notes: Vec<String>,
}

/// Reads everything: the log against its digests, and the state against one that is made anew from the log.
///
/// The new state is made with every SELECT that leaves the order of its rows open giving them in reverse, so that a
/// materializer that depends on such an order shows itself.
///
/// # Errors
///
/// When the store can't be read at all; what is wrong inside it is in the [`Report`].
pub fn verify(files: &Files, schema: &Arc<Schema>, executable: &str) -> Result<Report, Fault> {
    let mut report = Report::default();
    // What others say about the eventlog comes before a look at it, for somebody may be adding to it meanwhile.
    let testimony = witness::testimony(&files.witness());
    let committed = if files.state().exists() {
        match state::committed(&files.state()) {
            Ok(committed) => Some(committed),
            Err(fault) => {
                report.problems.push(format!("the state can't be read: {fault}. {REBUILD}"));
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
    check_log(&log, &mut report).map_err(Fault::eventlog)?;
    report.problems.extend(log.check_waiting().map_err(Fault::eventlog)?);
    if let Some(lack) = testimony.and_then(|earlier| log.testimony().lacks(earlier)) {
        report.problems.push(Fault::LostTail(lack).to_string());
    }

    let cursor = committed.as_ref().map_or(Cursor { seq: tip.head, ..Cursor::default() }, |found| found.cursor);
    report.state_digest = replayed(&log, schema, cursor.seq, true)?;
    let Some(found) = committed else { return Ok(report) };
    if cursor.generation != tip.generation {
        report.notes.push("events were taken back out of the log; the state is made anew at the next start".to_owned());
    } else if cursor.seq > tip.head {
        let lack = format!("it ends at {}, and its state has come to {}", tip.head, cursor.seq);
        report.problems.push(Fault::LostTail(lack).to_string());
    } else if log.digest_at(cursor.seq).map_err(Fault::eventlog)? != cursor.digest {
        report.problems.push(format!(
            "the events up to {} are not those that the state was made from: one of the two was changed. \
             Restore a backup, or compare with another device",
            cursor.seq
        ));
    } else if !found.is_made_by(schema, executable) {
        report
            .notes
            .push("another version of the program made the state; it is made anew at the next start".to_owned());
    } else if found.digest != report.state_digest {
        if replayed(&log, schema, cursor.seq, false)? == found.digest {
            report.problems.push(
                "a materializer depends on the order of rows that it doesn't ask for: a state made with the rows the \
                 other way round differs. Add ORDER BY to its SELECTs"
                    .to_owned(),
            );
        } else {
            report.problems.push(format!("the state differs from one that is made anew from the log. {REBUILD}"));
        }
    }
    Ok(report)
}

const REBUILD: &str = "No event is lost: stop likewise and delete the file state.db of this store, and it is made anew \
                       at the next start";

/// Hashes the whole log, and compares it with each digest that was stored on the way.
fn check_log(log: &Eventlog, report: &mut Report) -> rusqlite::Result<()> {
    report.problems.extend(log.integrity_check()?.into_iter().map(|line| format!("the eventlog is damaged: {line}")));
    let mut point = log.base()?;
    for stored in log.checkpoints()? {
        let walked = log.walk(point, Some(stored.seq))?;
        if walked != stored {
            report.problems.push(format!(
                "of the events {} to {} some are not those that were stored. Restore a backup, or have the store made \
                 again from the other devices: docs/repair.md has the steps",
                point.seq.next(),
                stored.seq
            ));
        }
        point = stored;
    }
    Ok(())
}

/// The digest of a state that is made from the log up to `until`.
fn replayed(log: &Eventlog, schema: &Arc<Schema>, until: Seq, reverse: bool) -> Result<Digest, Fault> {
    let mut enders = Enders::new();
    loop {
        let mut state = State::in_memory(schema)?;
        if reverse {
            state.reverse_unordered()?;
        }
        state.begin()?;
        match replay_log(log, &state, until, &enders) {
            Ok(()) => {
                state.commit(Cursor { generation: Generation(0), seq: until, digest: Digest::EMPTY })?;
                return state.digest();
            }
            Err(Stop::Ended(id, why)) => drop(enders.insert(id, why)),
            Err(Stop::Fault(fault)) => return Err(fault),
        }
    }
}

/// One line of an export: an event, and where it stands.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Line {
    /// Its place in the log; null while it waits for one.
    #[serde(default)]
    pub seq: Option<Seq>,
    /// Its id.
    pub id: EventId,
    /// Its name.
    pub name: String,
    /// The bytes of its payload as a JSON string; null when it is empty.
    #[serde(default)]
    pub args: Option<Box<RawValue>>,
    /// The device that brought it to the log; null while it waits.
    #[serde(default)]
    pub origin: Option<Device>,
    /// Why the authority refused it, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set_aside: Option<String>,
}

impl Line {
    fn new(seq: Option<Seq>, event: &Envelope, origin: Option<Device>, set_aside: Option<String>) -> Self {
        let quote = |text: &str| serde_json::to_string(text).and_then(RawValue::from_string);
        let args = event.args.as_text().map(|text| quote(text).expect("BUG: a string is JSON"));
        Self { seq, id: event.id, name: event.name.as_str().to_owned(), args, origin, set_aside }
    }

    /// The event on this line.
    ///
    /// # Errors
    ///
    /// When its name or payload is not one that an event may have.
    pub fn event(&self) -> Result<Envelope, Malformed> {
        let name: EventName = self.name.parse()?;
        // A payload stands here as a string that holds its bytes; one that was written by hand may stand as it is.
        let args: Args = match self.args.as_ref().map(|raw| raw.get()) {
            None => Args::EMPTY,
            Some(raw) if raw.starts_with('"') => {
                let text: String = serde_json::from_str(raw).map_err(|why| Malformed::Args(why.to_string()))?;
                text.parse()?
            }
            Some(raw) => raw.parse()?,
        };
        Ok(Envelope { id: self.id, name, args })
    }
}

/// Writes every event of the store to `out`, one a line: the log in its order, then what is pending, then what was set
/// aside. Gives how many there were. Each event that was there at the beginning is there, also while others come in and
/// pending ones get their place in the log.
///
/// # Errors
///
/// When the store can't be read, or `out` can't be written.
pub fn export(files: &Files, out: &mut dyn Write) -> Result<u64, Fault> {
    let mut count = 0;
    let mut put = |line: Line| {
        count += 1;
        put(out, &line)
    };
    let (mut after, mut after_pending) = (Seq::START, i64::MIN);
    let mut pending = HashSet::new();
    let mut damaged = 0;
    loop {
        // A pending event may be on its way into the log, so each look at the outbox is one at the log's end, too.
        let log = Eventlog::snapshot(&files.eventlog())?;
        let begin = after;
        let mut lines = Vec::new();
        while lines.len() < PORTION.events {
            // An interval between two checkpoints, as a rule: what is altered in one makes the others no suspects.
            let last = log.entries_end(after, CHECKPOINT_EVERY).map_err(Fault::eventlog)?;
            let Some(last) = last else { break };
            let is_sound = log.is_sound(after, last).map_err(Fault::eventlog)?;
            let read = log.each_entry(after, CHECKPOINT_EVERY as usize, &mut |entry| {
                damaged += u64::from(!is_sound);
                let why = (!is_sound).then(|| ALTERED.to_owned());
                let entry = entry.filter(|entry| !pending.contains(&entry.event.id));
                lines.extend(entry.map(|entry| Line::new(Some(entry.seq), &entry.event, Some(entry.origin), why)));
                Ok::<_, Fault>(())
            });
            read.map_err(Fault::eventlog)??;
            after = last;
        }
        if after == begin {
            let waiting = log.rescue(Waiting::Pending, after_pending, PORTION).map_err(Fault::eventlog)?;
            let Some(last) = waiting.last() else { break };
            after_pending = last.n;
            pending.extend(waiting.iter().filter_map(|rescued| rescued.event.as_ref()).map(|event| event.id));
            lines.extend(waiting.into_iter().filter_map(|rescued| rescued.line(&mut damaged)));
        }
        drop(log);
        lines.into_iter().try_for_each(&mut put)?;
    }
    let mut after = i64::MIN;
    loop {
        let log = Eventlog::snapshot(&files.eventlog())?;
        let waiting = log.rescue(Waiting::SetAside, after, PORTION).map_err(Fault::eventlog)?;
        drop(log);
        let Some(last) = waiting.last() else { break };
        after = last.n;
        waiting.into_iter().filter_map(|rescued| rescued.line(&mut damaged)).try_for_each(&mut put)?;
    }
    out.flush().doing("write", Path::new("the export"))?;
    if damaged > 0 {
        return Err(Fault::Damaged(format!(
            "among {damaged} events are some that are not what was stored. The others were written out, and of these what \
             can still be read, as events to be set aside"
        )));
    }
    Ok(count)
}

impl Rescued {
    /// What is written out of an event that isn't in the log, if there is anything left. Counts what was not stored so.
    fn line(self, damaged: &mut u64) -> Option<Line> {
        *damaged += u64::from(!self.is_as_stored);
        let why = if self.is_as_stored { self.why } else { Some(ALTERED.to_owned()) };
        Some(Line::new(None, &self.event?, None, why))
    }
}

/// Why an event that the disk may have changed is set aside when it is imported elsewhere: nobody is to take it for what was
/// said.
const ALTERED: &str = "the disk changed it, or one of its neighbours: it may not be what was stored";

/// The events that the authority refused, each with the reason, oldest first.
///
/// # Errors
///
/// When the store can't be read.
pub fn set_aside(files: &Files) -> Result<Vec<(Envelope, String)>, Fault> {
    Eventlog::snapshot(&files.eventlog())?.all_set_aside().map_err(Fault::eventlog)
}

/// Writes the events that the authority refused to `out`, as [`export`] does.
///
/// # Errors
///
/// As [`export`].
pub fn export_set_aside(files: &Files, out: &mut dyn Write) -> Result<(), Fault> {
    for (event, why) in set_aside(files)? {
        put(out, &Line::new(None, &event, None, Some(why)))?;
    }
    out.flush().doing("write", Path::new("the export"))
}

fn put(out: &mut dyn Write, line: &Line) -> Result<(), Fault> {
    let written = serde_json::to_writer(&mut *out, line).map_err(io::Error::from).and_then(|()| out.write_all(b"\n"));
    written.doing("write", Path::new("the export"))
}

/// Copies the store to the directory `to`, which must not have one, as of now: the same log with the same seqs. The
/// state is left out, because it follows from the eventlog. When it fails, nothing is left at `to`;
/// it also does when something in the store is not what was stored.
///
/// # Errors
///
/// When the store can't be read, or the copy can't be written.
pub fn backup(files: &Files, to: &Files) -> Result<(), Fault> {
    files.check()?;
    // Whatever is wrong with the store itself is found before anything is made, and named by its own path.
    drop(Eventlog::snapshot(&files.eventlog())?);
    if to.exist() {
        return Err(io::Error::from(io::ErrorKind::AlreadyExists)).doing("copy a store to", to.dir());
    }
    let is_new = !to.dir().exists();
    let copied = copy(files, to);
    if copied.is_err() {
        // Half a copy would open as a store that lacks likes, or has none.
        drop(remove_database(&to.eventlog()));
        drop(fs::remove_file(to.witness()));
        if is_new {
            drop(fs::remove_dir(to.dir()));
        }
    }
    copied
}

fn copy(files: &Files, to: &Files) -> Result<(), Fault> {
    create_private_dir(to.dir())?;
    let target = to.eventlog();
    open_private_file(&target)?;
    let conn = Beside::open(&files.eventlog()).map_err(Fault::eventlog)?;
    // SQLite takes the bytes of a name as they are, whether or not they are UTF-8.
    let path = ToSqlOutput::Borrowed(ValueRef::Text(target.as_os_str().as_encoded_bytes()));
    conn.execute("VACUUM INTO ?1", [path]).map_err(Fault::eventlog)?;
    File::open(&target).and_then(|file| file.sync_all()).doing("make durable", &target)?;
    // The copy bears witness to itself, so that a loss of its tail is noticed like any other.
    let copy = Eventlog::snapshot(&target)?;
    // What the disk has changed is not to take the place of an older copy that is right.
    let mut found = Report::default();
    check_log(&copy, &mut found).map_err(Fault::eventlog)?;
    found.problems.extend(copy.check_waiting().map_err(Fault::eventlog)?);
    if let Some(problem) = found.problems.into_iter().next() {
        return Err(Fault::Damaged(problem));
    }
    Witness::open(&to.witness())?.0.write(copy.testimony())?;
    sync_dir(to.dir())?;
    sync_parent(to.dir())
}

#[cfg(test)]
mod tests {
    use super::super::opening::{Alone, beside};
    use super::*;
    use crate::fuzz::{fuzz, outcome};

    #[test]
    fn a_snapshot_of_any_format_can_not_write() {
        let scratch = tempfile::tempdir().expect("a directory");
        let old = scratch.path().join("old.db");
        let found =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/format-1/lone-killed/stores/likes/eventlog.db");
        for suffix in ["", "-wal"] {
            fs::copy(beside(&found, suffix), beside(&old, suffix)).expect("a copy");
        }
        let new = scratch.path().join("new.db");
        let alone = Alone::in_dir(scratch.path()).expect("nobody else");
        drop(Eventlog::open(&new, true, &alone).expect("an eventlog"));
        drop(alone);
        for path in [old, new] {
            let log = Eventlog::snapshot(&path).expect("a snapshot");
            let written = log.conn.execute("DELETE FROM main.meta", ());
            let code = written.expect_err("a snapshot wrote").sqlite_error_code();
            assert_eq!(code, Some(rusqlite::ErrorCode::ReadOnly), "{}", path.display());
        }
    }

    #[test]
    fn trust_38_fuzzed_lines_of_an_import_are_events_or_refused() {
        fuzz("import", &["\"seq\":", "\"args\":", "\"origin\":", "\"set_aside\":", "\"id\":"], |input| {
            let line = serde_json::from_slice::<Line>(input);
            let Ok(line) = line else { return outcome(&line) };
            let event = line.event();
            if let Ok(event) = &event {
                // What comes in goes out as it was, and comes in again.
                let again = Line::new(line.seq, event, line.origin.clone(), line.set_aside.clone());
                let again = serde_json::to_string(&again).expect("a line");
                assert!(!again.contains('\n'));
                assert_eq!(serde_json::from_str::<Line>(&again).expect("a line").event().as_ref(), Ok(event));
            }
            outcome(&event)
        });
    }
}
