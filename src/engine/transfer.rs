//! Export and import of a store's events as lines of JSON. The export runs beside the thread that writes.

use std::collections::HashSet;
use std::io::{self, Write};
use std::path::Path;

use futures_util::{Stream, StreamExt};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};

use super::error::{Error, Fault, IoContext, LogFault, Malformed};
use super::event::{Args, Device, Envelope, EventId, EventName};
use super::eventlog::{CHECKPOINT_EVERY, Eventlog, PageSize, Rescued, Waiting};
use super::health::Health;
use super::place::{Entry, Seq};
use super::replica::{HistoryStanding, Outcome, Page, Replica};
use super::setup::Files;
use super::store::Store;
use crate::limits::engine::readers::{EXPORT_BYTES, EXPORT_EVENTS, MAX_LINE};
use crate::limits::engine::writer::MOST_TOGETHER;

/// How much is read at a time.
const PORTION: PageSize = PageSize { events: EXPORT_EVENTS, bytes: EXPORT_BYTES };

/// One line of an export: an event and its place.
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
    /// The device that added it to the log; null while it waits.
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

    /// Returns the event on this line.
    ///
    /// # Errors
    ///
    /// Fails if an event can't have that name or payload.
    pub fn event(&self) -> Result<Envelope, Malformed> {
        let name: EventName = self.name.parse()?;
        // An exported payload is a string that holds its bytes. A payload written by hand may be plain JSON.
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

/// What an export wrote, and what it could not write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// How many events it wrote.
    pub events: u64,
    /// How many events of the log are not here, because they are behind a snapshot.
    pub missing: u64,
}

/// Writes every event of the store to `out`, one per line: the log in order, then the pending events, then those set
/// aside. The export has every event that was there at its beginning, even while others come in and pending ones get their
/// place in the log. If the log begins at a snapshot, it has what is here of the history behind that; events of ours that the
/// history hasn't brought yet are among the pending ones.
///
/// # Errors
///
/// Fails if the store can't be read, or `out` can't be written.
pub fn export(files: &Files, out: &mut dyn Write) -> Result<Written, Fault> {
    let mut count = 0;
    let mut put = |line: Line| {
        count += 1;
        put(out, &line)
    };
    let first = Eventlog::snapshot(&files.eventlog())?;
    let missing = HistoryStanding::of(first.tip()).map_or(0, |history| history.missing());
    // Events may move from any place to the history, behind what is written. So while there is one, this snapshot is held.
    let held = (!first.tip().is_whole()).then_some(first);
    let mut after = (Seq::START, [(Waiting::Early, i64::MIN), (Waiting::Pending, i64::MIN)]);
    let mut pending = HashSet::new();
    let mut damaged = 0;
    loop {
        // A pending event may move into the log meanwhile. So read the outbox only from a snapshot whose log has been
        // read to its end.
        let lines = match &held {
            Some(log) => portion(log, &mut after, &mut pending, &mut damaged)?,
            None => portion(&Eventlog::snapshot(&files.eventlog())?, &mut after, &mut pending, &mut damaged)?,
        };
        let Some(lines) = lines else { break };
        lines.into_iter().try_for_each(&mut put)?;
    }
    drop(held);
    let mut after = i64::MIN;
    loop {
        let log = Eventlog::snapshot(&files.eventlog())?;
        let waiting = log.rescue(Waiting::SetAside, after, PORTION)?;
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
    Ok(Written { events: count, missing })
}

/// Returns the next lines of an export, or `None` at its end. `after` is how far it has come in the log, and in the tables of
/// events that have no place in it here.
fn portion(
    log: &Eventlog,
    (after, tables): &mut (Seq, [(Waiting, i64); 2]),
    pending: &mut HashSet<EventId>,
    damaged: &mut u64,
) -> Result<Option<Vec<Line>>, Fault> {
    let begin = *after;
    let mut lines = Vec::new();
    while lines.len() < PORTION.events {
        // Usually one interval between two checkpoints. So an altered event casts no doubt on other intervals.
        let last = log.entries_end(*after, CHECKPOINT_EVERY)?;
        let Some(last) = last else { break };
        let is_sound = log.is_sound(*after, last)?;
        log.each_entry(*after, CHECKPOINT_EVERY as usize, &mut |entry| {
            *damaged += u64::from(!is_sound);
            let why = (!is_sound).then(|| ALTERED.to_owned());
            let entry = entry.filter(|entry| !pending.contains(&entry.event.id));
            lines.extend(entry.map(|entry| Line::new(Some(entry.seq), &entry.event, Some(entry.origin), why)));
            Ok::<_, LogFault>(())
        })?;
        *after = last;
    }
    if *after > begin {
        return Ok(Some(lines));
    }
    for (which, after) in tables {
        if *which == Waiting::Early && log.tip().is_whole() {
            continue;
        }
        let waiting = log.rescue(*which, *after, PORTION)?;
        if let Some(last) = waiting.last() {
            *after = last.n;
            pending.extend(waiting.iter().filter_map(|rescued| rescued.event.as_ref()).map(|event| event.id));
            lines.extend(waiting.into_iter().filter_map(|rescued| rescued.line(damaged)));
            return Ok(Some(lines));
        }
    }
    Ok(None)
}

impl Rescued {
    /// Returns the line for an event that isn't in the log, if anything is left of it. Counts it in `damaged` if it
    /// isn't what was stored.
    fn line(self, damaged: &mut u64) -> Option<Line> {
        *damaged += u64::from(!self.is_as_stored);
        let why = if self.is_as_stored { self.why } else { Some(ALTERED.to_owned()) };
        Some(Line::new(None, &self.event?, None, why))
    }
}

/// The reason for setting aside an event that the disk may have changed, when it is imported elsewhere. Nobody should
/// take it for what was said.
const ALTERED: &str = "the disk changed it, or one of its neighbours: it may not be what was stored";

/// Writes the events that the authority refused to `out`, in the same form as [`export`].
///
/// # Errors
///
/// The same as for [`export`].
pub fn export_set_aside(files: &Files, out: &mut dyn Write) -> Result<(), Fault> {
    for (event, why) in set_aside(files)? {
        put(out, &Line::new(None, &event, None, Some(why)))?;
    }
    out.flush().doing("write", Path::new("the export"))
}

/// Returns the events that the authority refused, each with the reason, oldest first.
///
/// # Errors
///
/// Fails if the store can't be read.
pub fn set_aside(files: &Files) -> Result<Vec<(Envelope, String)>, Fault> {
    Ok(Eventlog::snapshot(&files.eventlog())?.all_set_aside()?)
}

fn put(out: &mut dyn Write, line: &Line) -> Result<(), Fault> {
    let written = serde_json::to_writer(&mut *out, line).map_err(io::Error::from).and_then(|()| out.write_all(b"\n"));
    written.doing("write", Path::new("the export"))
}

/// The result of an import.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Imported {
    /// Events that the import stored.
    pub(crate) added: u64,
    /// Events that were stored before.
    pub(crate) known: u64,
}

/// Why an import stopped. Everything before that line is stored. Importing again adds nothing twice.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImportError {
    #[error("line {0}: {1}")]
    Line(u64, String),
    #[error("after line {0}: {1}")]
    Store(u64, Error),
    /// There was nothing to store, and the store can't be used.
    #[error("{0}")]
    Unusable(String),
}

/// Adds the events of an export, as [`Line`]s, to `store`.
pub(crate) async fn import(
    store: &Store,
    device: &Device,
    input: impl AsyncRead + Unpin,
) -> Result<Imported, ImportError> {
    let mut input = BufReader::new(input);
    // If the input can't be read, reading its lines reports it.
    if let Some(why) = input.fill_buf().await.ok().and_then(other_than_text) {
        return Err(ImportError::Line(1, why.to_owned()));
    }
    let lines = FramedRead::new(input, LinesCodec::new_with_max_length(MAX_LINE));
    add_all(store, device, lines).await
}

/// Says what a file is, if its beginning shows that it isn't text in UTF-8.
fn other_than_text(start: &[u8]) -> Option<&'static str> {
    match start {
        [0x1f, 0x8b, ..] => Some("this is compressed with gzip; unpack it first, as with `gunzip --stdout FILE`"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some("this is compressed with zstd; unpack it first, as with `zstdcat FILE`"),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some("this is text in UTF-16; save it as UTF-8"),
        _ => None,
    }
}

async fn add_all(
    store: &Store,
    device: &Device,
    mut lines: impl Stream<Item = Result<String, LinesCodecError>> + Unpin,
) -> Result<Imported, ImportError> {
    let mut imported = Imported::default();
    let mut batch = Batch::default();
    let mut number = 0;
    while let Some(line) = lines.next().await {
        number += 1;
        let (event, line) = match parsed(line) {
            Ok(Some(parsed)) => parsed,
            Ok(None) => continue,
            Err(why) => {
                batch.flush(store, device, &mut imported).await?;
                return Err(ImportError::Line(number, why));
            }
        };
        match line.set_aside {
            Some(why) => {
                batch.flush(store, device, &mut imported).await?;
                let outcome =
                    store.set_aside(event, why).await.map_err(|error| ImportError::Store(number - 1, error))?;
                tally(&[outcome], &[number], &mut imported)?;
            }
            None => {
                batch.numbers.push(number);
                batch.events.push(Brought { event, seq: line.seq, origin: line.origin });
            }
        }
        if batch.events.len() >= MOST_TOGETHER {
            batch.flush(store, device, &mut imported).await?;
        }
    }
    batch.flush(store, device, &mut imported).await?;
    // The import may have completed the history behind a snapshot.
    store.prove().await.map_err(|error| ImportError::Store(number, error))?;
    // Without any event, nothing could have failed so far.
    if imported == Imported::default()
        && let Health::Failed(why) = store.healthy().await
    {
        return Err(ImportError::Unusable(why));
    }
    Ok(imported)
}

/// Parses the event on a line, if there is one.
fn parsed(line: Result<String, LinesCodecError>) -> Result<Option<(Envelope, Line)>, String> {
    let line = line.map_err(|why| why.to_string())?;
    // Some editors put a byte-order mark at the beginning of a text.
    let line = line.trim_start_matches('\u{feff}').trim();
    if line.is_empty() {
        return Ok(None);
    }
    let line: Line = serde_json::from_str(line).map_err(|why| format!("not an exported event: {why}"))?;
    let event = line.event().map_err(|why| why.to_string())?;
    Ok(Some((event, line)))
}

/// Events that are to be stored together, with the numbers of their lines.
#[derive(Default)]
struct Batch {
    numbers: Vec<u64>,
    events: Vec<Brought>,
}

/// An event of an export.
struct Brought {
    event: Envelope,
    /// Its place in the log that was exported, and the device that brought it there.
    seq: Option<Seq>,
    origin: Option<Device>,
}

/// Adds events of an export to a store. If its log begins at a snapshot, the export may be one of the same log, from a device
/// that has all of it: those behind the snapshot count as the history. If they are others, that comes out at its end.
fn add(replica: &mut Replica, events: Vec<Brought>, device: &Device) -> Result<Vec<Outcome>, Fault> {
    let mut outcomes = Vec::with_capacity(events.len());
    let (mut history, mut others) = (Vec::new(), Vec::new());
    for Brought { event, seq, origin } in events {
        let below = replica.history().and_then(|history| {
            let seq = seq.filter(|seq| *seq <= history.until)?;
            Some((seq, history.after, origin.clone()?))
        });
        match below {
            Some((seq, after, _)) if seq <= after && replica.find(event.id)?.is_some() => {
                outcomes.push(Some(Outcome::Known(Some(seq))));
            }
            Some((seq, after, origin)) if seq > after => {
                outcomes.push(Some(Outcome::Stored(Some(seq))));
                history.push(Entry { seq, event, origin });
            }
            _ => {
                outcomes.push(None);
                others.push((event, origin.unwrap_or_else(|| device.clone())));
            }
        }
    }
    if let Some(last) = history.last() {
        let next = last.seq;
        replica.arrive_history(&Page { entries: history, next, more: false })?;
    }
    let mut added = replica.add(&others)?.into_iter();
    let mut next = || added.next().expect("BUG: as many outcomes as events");
    Ok(outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(&mut next)).collect())
}

impl Batch {
    async fn flush(&mut self, store: &Store, device: &Device, imported: &mut Imported) -> Result<(), ImportError> {
        let Self { numbers, events } = std::mem::take(self);
        let Some(first) = numbers.first() else { return Ok(()) };
        let device = device.clone();
        let added = store.with(move |replica| add(replica, events, &device)).await;
        let outcomes = added.map_err(|error| ImportError::Store(first - 1, error))?;
        tally(&outcomes, &numbers, imported)
    }
}

fn tally(outcomes: &[Outcome], numbers: &[u64], imported: &mut Imported) -> Result<(), ImportError> {
    for (number, outcome) in numbers.iter().zip(outcomes) {
        match outcome {
            Outcome::Stored(_) => imported.added += 1,
            Outcome::Known(_) => imported.known += 1,
            Outcome::Conflict => {
                let why = "its id belongs to another event here, which stays; the rest of its batch is stored";
                return Err(ImportError::Line(*number, why.to_owned()));
            }
            Outcome::Refused(why) => return Err(ImportError::Line(*number, why.clone())),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::{fuzz, outcome};

    #[test]
    fn what_is_no_text_is_named_as_what_it_is() {
        for (start, named) in [(&b"\x1f\x8b\x08"[..], "gzip"), (b"\xff\xfe{\0", "UTF-16"), (b"\xfe\xff\0{", "UTF-16")] {
            assert!(other_than_text(start).is_some_and(|why| why.contains(named)), "{start:?}");
        }
        for text in [&b""[..], b"{", b"\xef\xbb\xbf{", b"\x1f"] {
            assert_eq!(other_than_text(text), None);
        }
    }

    #[test]
    fn trust_38_fuzzed_lines_of_an_import_are_events_or_refused() {
        fuzz("import", &["\"seq\":", "\"args\":", "\"origin\":", "\"set_aside\":", "\"id\":"], |input| {
            let line = serde_json::from_slice::<Line>(input);
            let Ok(line) = line else { return outcome(&line) };
            let event = line.event();
            if let Ok(event) = &event {
                // An imported event is exported unchanged, and can be imported again.
                let again = Line::new(line.seq, event, line.origin.clone(), line.set_aside.clone());
                let again = serde_json::to_string(&again).expect("a line");
                assert!(!again.contains('\n'));
                assert_eq!(serde_json::from_str::<Line>(&again).expect("a line").event().as_ref(), Ok(event));
            }
            outcome(&event)
        });
    }
}
