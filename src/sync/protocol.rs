//! What goes over the wire between a hub and its clients: the bodies of requests, answers and stream events.
//!
//! `docs/wire.md` describes the protocol for authors of other clients. Its tests fix the bytes.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::engine::{Args, Device, Digest, Entry, Envelope, EventId, EventName, LogId, Malformed, Page, PageSize, Seq};
use crate::limits::sync::page;
use crate::limits::sync::wire::{MAX_POINTS, MAX_RUN, MAX_WORDS, SEQS};

/// The most that goes into one push or one page.
pub(crate) const PAGE: PageSize = PageSize { events: page::EVENTS, bytes: page::BYTES };

/// The codes of the hub's problems that a client acts on. Only these can stop a store.
pub(crate) mod code {
    /// The hub was restarted, so the client must pull before it may push.
    pub(crate) const PULL_FIRST: &str = "pull-first";
    /// The hub's log is not the one that the client knows.
    pub(crate) const WRONG_LOG: &str = "wrong-log";
    /// The hub's log and the client's differ before the place that the client names.
    pub(crate) const DIVERGED: &str = "diverged";
    /// This instance is no hub.
    pub(crate) const NOT_A_HUB: &str = "not-a-hub";
    /// The token is missing, wrong or revoked.
    pub(crate) const UNAUTHORIZED: &str = "unauthorized";
    /// This device can't read its own token. It is never sent; programs are told [`UNAUTHORIZED`].
    #[cfg(feature = "app")]
    pub(crate) const NO_TOKEN: &str = "no-token";
    /// The hub has no snapshot that is of use to the client.
    #[cfg(feature = "app")]
    pub(crate) const NO_SNAPSHOT: &str = "no-snapshot";
    /// The hub is still making its snapshot.
    #[cfg(feature = "app")]
    pub(crate) const SNAPSHOT_NOT_READY: &str = "snapshot-not-ready";
    /// The hub sends as many snapshots as it can.
    #[cfg(feature = "app")]
    pub(crate) const TOO_MANY_SNAPSHOTS: &str = "too-many-snapshots";
    /// The hub takes no more stores.
    pub(crate) const TOO_MANY_STORES: &str = "too-many-stores";
    /// The push has more events than a push may have.
    pub(crate) const TOO_LARGE: &str = "body-too-large";
    /// The store was moved to another hub. The detail says where it went.
    pub(crate) const MOVED: &str = "moved";
    /// The cluster behind a gateway can't be used until somebody acts. It is never sent; devices are told to come again.
    #[cfg(feature = "app")]
    pub(crate) const UNFIT: &str = "unfit-cluster";
}

/// The codes of refused events.
pub(crate) mod refused {
    /// The event's id belongs to another event in the log.
    pub(crate) const ID_TAKEN: &str = "id-taken";
    /// Its name is new, and the store already knows as many names as it may.
    pub(crate) const TOO_MANY_NAMES: &str = "too-many-names";
    /// It isn't an event.
    pub(crate) const MALFORMED: &str = "malformed";
}

/// An event on the wire. The payload is absent when it is empty, and otherwise a JSON string that holds its bytes,
/// because parsers on the way would change any other JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WireEvent {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The bytes of its payload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<String>,
}

impl From<&Envelope> for WireEvent {
    fn from(event: &Envelope) -> Self {
        Self {
            id: event.id.to_string(),
            name: event.name.as_str().to_owned(),
            args: event.args.as_text().map(str::to_owned),
        }
    }
}

impl TryFrom<WireEvent> for Envelope {
    type Error = Malformed;
    fn try_from(event: WireEvent) -> Result<Self, Malformed> {
        let id: EventId = event.id.parse()?;
        let name: EventName = event.name.parse()?;
        let args: Args = event.args.as_deref().unwrap_or_default().parse()?;
        Ok(Self { id, name, args })
    }
}

/// The body of a push.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Push {
    /// The log that the client knows; null before it knows one.
    #[serde(default)]
    pub log: Option<LogId>,
    /// The hub's run, as the pull stream said it.
    pub run: String,
    /// The events, in the order in which to append them.
    pub events: Vec<WireEvent>,
    /// What the client has of the log. A gateway that hasn't as much catches up first. Other hubs don't need it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub has: Option<Has>,
    /// Whether the client takes an answer to the first events alone, and pushes the others again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub part: bool,
}

/// What a client has of the log that it pushes to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Has {
    /// How far it has pulled.
    pub after: Seq,
    /// The digest of its log up to there.
    pub digest: Digest,
    /// The last event that it pushed and that was answered, if it has not arrived yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered: Option<Placed>,
}

/// An event with the place that it was given.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Placed {
    /// The event.
    pub id: EventId,
    /// Its place.
    pub seq: Seq,
}

/// The answer to a push.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pushed {
    /// The hub's log; null while the store has no events.
    pub log: Option<LogId>,
    /// The outcome of each event, in the order of the push.
    #[serde(deserialize_with = "at_most::<{ PAGE.events }, _, _>")]
    pub events: Vec<PushedEvent>,
}

/// The outcome of a pushed event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, try_from = "FlatAnswer")]
pub enum PushedEvent {
    /// It is in the log: stored just now, or earlier.
    Stored {
        /// Its place.
        seq: Seq,
        /// Why it has no effect, if it has none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        no_effect: Option<String>,
    },
    /// The log can't take it.
    Refused {
        /// The code of the reason.
        refused: String,
        /// The reason in words.
        why: String,
    },
}

/// The outcome of a pushed event, as it is read: without copying unknown fields.
#[derive(Deserialize)]
struct FlatAnswer {
    seq: Option<Seq>,
    no_effect: Option<String>,
    refused: Option<String>,
    why: Option<String>,
}

impl TryFrom<FlatAnswer> for PushedEvent {
    type Error = &'static str;
    fn try_from(answer: FlatAnswer) -> Result<Self, Self::Error> {
        match answer {
            FlatAnswer { seq: Some(seq), no_effect, .. } => Ok(Self::Stored { seq, no_effect }),
            FlatAnswer { refused: Some(refused), why: Some(why), .. } => Ok(Self::Refused { refused, why }),
            _ => Err("neither a place nor a refusal"),
        }
    }
}

/// The first event of a pull stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The hub's log; null while the store has no events.
    pub log: Option<LogId>,
    /// The hub's run, a new one with every start.
    pub run: String,
    /// The last event of the log.
    pub head: Seq,
}

/// A part of the log, in a pull stream.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WirePage {
    /// The hub's log.
    pub log: LogId,
    /// The events, in the order of their places.
    #[serde(deserialize_with = "at_most::<{ PAGE.events }, _, _>")]
    pub events: Vec<WireEntry>,
    /// Where the next page begins.
    pub next: Seq,
    /// Whether the next page is already there.
    pub more: bool,
}

/// An event with its place.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(from = "FlatEntry")]
pub struct WireEntry {
    /// Its place.
    pub seq: Seq,
    /// The event itself.
    #[serde(flatten)]
    pub event: WireEvent,
    /// The device that brought it to the log.
    pub origin: Device,
}

/// An event with its place, as it is read: without copying unknown fields. `flatten` would copy them, at twenty times
/// their size.
#[derive(Deserialize)]
struct FlatEntry {
    seq: Seq,
    id: String,
    name: String,
    #[serde(default)]
    args: Option<String>,
    origin: Device,
}

impl From<FlatEntry> for WireEntry {
    fn from(FlatEntry { seq, id, name, args, origin }: FlatEntry) -> Self {
        Self { seq, event: WireEvent { id, name, args }, origin }
    }
}

impl Hello {
    /// Returns what is wrong with it, if it can't be a hub's.
    pub(super) fn fault(&self) -> Option<&'static str> {
        let is_run =
            !self.run.is_empty() && self.run.len() <= MAX_RUN && self.run.bytes().all(|b| b.is_ascii_graphic());
        let is_place = self.head.0 < SEQS;
        (!is_run).then_some("its run has no name, or an odd one").or((!is_place).then_some("no log is so long"))
    }
}

impl WirePage {
    /// Returns what is wrong with it, if it can't follow `reached` in a log: places only go up.
    pub(super) fn fault(&self, reached: Seq) -> Option<&'static str> {
        let mut last = reached;
        for entry in &self.events {
            if entry.seq <= last {
                return Some("its places go back");
            }
            last = entry.seq;
        }
        if self.next < last {
            return Some("it says that the next one begins before its own end");
        }
        (self.next.0 >= SEQS).then_some("no log is so long")
    }

    /// Returns the part of the page up to `end`.
    pub(crate) fn until(mut self, end: Seq) -> Self {
        if self.next >= end {
            self.events.retain(|entry| entry.seq <= end);
            self.next = end;
            self.more = false;
        }
        self
    }

    pub(crate) fn new(log: LogId, entries: &[Entry], next: Seq, more: bool) -> Self {
        let wire = |entry: &Entry| WireEntry {
            seq: entry.seq,
            event: WireEvent::from(&entry.event),
            origin: entry.origin.clone(),
        };
        Self { log, events: entries.iter().map(wire).collect(), next, more }
    }

    /// Converts the page to the engine's form.
    pub(crate) fn into_page(self) -> Result<Page, Malformed> {
        let entry = |wire: WireEntry| Ok(Entry { seq: wire.seq, event: wire.event.try_into()?, origin: wire.origin });
        let entries = self.events.into_iter().map(entry).collect::<Result<_, Malformed>>()?;
        Ok(Page { entries, next: self.next, more: self.more })
    }
}

/// A point of the hub's log, in the problem `diverged`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// The place.
    pub seq: Seq,
    /// The digest of the log up to there.
    pub digest: Digest,
}

/// Reads the points in a problem, of which there are few.
pub(super) fn points<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Point>, D::Error> {
    at_most::<MAX_POINTS, _, _>(deserializer)
}

/// Reads a list of at most `N` items. One more is an error, before memory is taken for the rest.
pub(super) fn at_most<'de, const N: usize, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct List<const N: usize, T>(PhantomData<T>);
    impl<'de, const N: usize, T: Deserialize<'de>> Visitor<'de> for List<N, T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {N}")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
            let mut all = Vec::new();
            while let Some(next) = list.next_element()? {
                if all.len() == N {
                    return Err(A::Error::custom(format_args!("a list is longer than {N}")));
                }
                all.push(next);
            }
            Ok(all)
        }
    }
    deserializer.deserialize_seq(List::<N, T>(PhantomData))
}

/// Makes somebody else's text safe to keep, log or show: short, on one line, and without characters that reverse the
/// rest of the line or hide in it.
pub(super) fn words(text: &str) -> String {
    let mut chars = text.trim().chars().map(|c| if is_hidden(c) { ' ' } else { c });
    let mut short: String = chars.by_ref().take(MAX_WORDS).collect();
    if chars.next().is_some() {
        short.push('…');
    }
    short
}

/// Makes a text that may hold somebody else's words safe to show on a terminal. Its lines stay.
#[cfg(feature = "app")]
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if is_hidden(c) && !matches!(c, '\n' | '\t') { ' ' } else { c }).collect()
}

/// Whether a character does something to the text around it, rather than being shown.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests;
