//! The messages of a stream: their subjects, their bytes, and the refusal of everything else.
//!
//! A message is one group of events, which every gateway applies in one transaction. Its place in the stream fixes the
//! places of its events in the log. All gateways have to read a message alike, whatever their version. So the rules for
//! messages of version 1 never change, and a later version gets another number.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::engine::{
    Args, Device, Digest, Entry, Envelope, EventId, EventName, LogId, Malformed, Seq, StoreId, StreamId,
};
use crate::limits::sync::gateway::{MESSAGE_BYTES, MOVED_TO, PLACES, PREFIX};
use crate::limits::sync::page;
use crate::limits::sync::wire::SEQS;
use crate::sync::protocol::{at_most, words};

/// The version of the messages that this program writes, and the only one that it understands.
const VERSION: u64 = 1;

/// The number of a message in its stream, from 1. All subjects of a stream share the numbers, so those of one subject
/// have gaps.
pub type Sequence = u64;

/// What all names of an installation in a NATS cluster begin with: the subjects, the stream and the bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix(String);

impl Default for Prefix {
    fn default() -> Self {
        Self("likewise".to_owned())
    }
}

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if text.is_empty() || text.len() > PREFIX || text.starts_with('-') || !text.bytes().all(allowed) {
            let text = words(text);
            return Err(format!(
                "`{text}` is no prefix: use 1 to {PREFIX} of a to z, 0 to 9 and -, not beginning with -"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Prefix {
    /// Returns the subject of a store's messages.
    pub fn subject(&self, store: &StoreId) -> String {
        format!("{self}.{store}")
    }

    /// Returns the subjects of all stores: what the stream takes in.
    pub fn subjects(&self) -> String {
        format!("{self}.*")
    }

    /// Returns the store that a subject belongs to.
    ///
    /// # Errors
    ///
    /// What is wrong with the subject, in words. Nobody who follows these rules publishes to it. It is passed over.
    pub fn store_of(&self, subject: &str) -> Result<StoreId, String> {
        let name = subject.strip_prefix(&self.0).and_then(|rest| rest.strip_prefix('.'));
        let store = name.and_then(|name| name.parse().ok());
        store.ok_or_else(|| format!("the subject `{}` names no store", words(subject)))
    }
}

/// A message of a store's subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Events.
    Group(Group),
    /// The store was moved out of the stream. No gateway takes anything for it from then on. Says where it went.
    Closed(String),
}

/// Events that get their places together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The log that the message belongs to.
    pub log: LogId,
    /// The events in their order, each with the device that brought it.
    pub events: Vec<(Envelope, Device)>,
    /// The digest of the log up to and with these events, as the publisher has it.
    pub digest: Digest,
    /// What is added to the places that follow from the number of a message. It isn't zero in a store that was moved
    /// into the stream: so its new places are above those it brought along.
    pub offset: u64,
    /// The places of the events, if they brought them along from another hub.
    pub seqs: Option<Vec<Seq>>,
}

/// Why a message isn't read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unread {
    /// It is none of ours. All gateways pass over it, and say so. Holds what is wrong, in words.
    Foreign(String),
    /// A later version wrote it. The store has to wait until this program is upgraded. Holds the version.
    Newer(u64),
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign(why) => write!(f, "it is not a message of this program: {why}"),
            Self::Newer(version) => write!(
                f,
                "a later version of this program wrote it, in format {version}, and this one knows format {VERSION}. \
                 Upgrade this gateway"
            ),
        }
    }
}

/// The part of a message that all versions share.
#[derive(Deserialize)]
struct Version {
    v: u64,
}

#[derive(Serialize, Deserialize)]
struct WireMessage {
    v: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    closed: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    log: Option<LogId>,
    #[serde(default, skip_serializing_if = "is_zero")]
    offset: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "at_most::<{ page::EVENTS }, _, _>")]
    seqs: Vec<Seq>,
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "at_most::<{ page::EVENTS }, _, _>")]
    events: Vec<StreamEvent>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    digest: Option<Digest>,
}

/// An event in a message. The payload is a string that holds its bytes, as everywhere on the wire.
#[derive(Serialize, Deserialize)]
struct StreamEvent {
    id: String,
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    args: Option<String>,
    origin: Device,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl StreamEvent {
    fn new(event: &Envelope, origin: &Device) -> Self {
        Self {
            id: event.id.to_string(),
            name: event.name.as_str().to_owned(),
            args: event.args.as_text().map(str::to_owned),
            origin: origin.clone(),
        }
    }

    fn into_event(self) -> Result<(Envelope, Device), Malformed> {
        let id: EventId = self.id.parse()?;
        let name: EventName = self.name.parse()?;
        let args: Args = self.args.as_deref().unwrap_or_default().parse()?;
        Ok((Envelope { id, name, args }, self.origin))
    }
}

impl Message {
    /// Reads the bytes of a message.
    ///
    /// # Errors
    ///
    /// Why it isn't read. Every gateway comes to the same result.
    pub fn read(bytes: &[u8]) -> Result<Self, Unread> {
        let foreign = |why: &dyn fmt::Display| Unread::Foreign(words(&why.to_string()));
        if bytes.len() > MESSAGE_BYTES {
            return Err(foreign(&format_args!("it has {} bytes, and ours have {MESSAGE_BYTES} at most", bytes.len())));
        }
        let Version { v } = serde_json::from_slice(bytes).map_err(|why| foreign(&why))?;
        if v > VERSION {
            return Err(Unread::Newer(v));
        }
        if v < VERSION {
            return Err(foreign(&"there is no such version"));
        }
        let wire: WireMessage = serde_json::from_slice(bytes).map_err(|why| foreign(&why))?;
        if let Some(to) = wire.closed {
            return Ok(Self::Closed(words(&to)));
        }
        let (Some(log), Some(digest)) = (wire.log, wire.digest) else {
            return Err(foreign(&"it names no log or no digest"));
        };
        if wire.events.is_empty() {
            return Err(foreign(&"it has no events"));
        }
        let events = wire.events.into_iter().map(StreamEvent::into_event).collect::<Result<Vec<_>, _>>();
        let events = events.map_err(|why| foreign(&why))?;
        let seqs = (!wire.seqs.is_empty()).then_some(wire.seqs);
        let group = Group { log, events, digest, offset: wire.offset, seqs };
        match group.fault() {
            Some(why) => Err(foreign(&why)),
            None => Ok(Self::Group(group)),
        }
    }

    /// Returns the bytes of the message.
    pub fn to_bytes(&self) -> Vec<u8> {
        let empty = WireMessage {
            v: VERSION,
            closed: None,
            log: None,
            offset: 0,
            seqs: Vec::new(),
            events: Vec::new(),
            digest: None,
        };
        let wire = match self {
            Self::Closed(to) => WireMessage { closed: Some(to.clone()), ..empty },
            Self::Group(group) => WireMessage {
                log: Some(group.log),
                offset: group.offset,
                seqs: group.seqs.clone().unwrap_or_default(),
                events: group.events.iter().map(|(event, origin)| StreamEvent::new(event, origin)).collect(),
                digest: Some(group.digest),
                ..empty
            },
        };
        serde_json::to_vec(&wire).expect("BUG: a message is JSON")
    }

    /// Returns the message that moves a store out of the stream. `to` tells people where it went.
    pub fn closing(to: &str) -> Self {
        Self::Closed(to.trim().chars().take(MOVED_TO).collect())
    }
}

impl Group {
    /// Returns the places of the events, if the message has that number in its stream.
    pub fn places(&self, sequence: Sequence) -> Vec<Seq> {
        match &self.seqs {
            Some(seqs) => seqs.clone(),
            None => (0..self.events.len() as u64).map(|nth| place(self.offset, sequence, nth)).collect(),
        }
    }

    /// Returns the events with their places, if the message has that number in its stream.
    pub fn entries(&self, sequence: Sequence) -> Vec<Entry> {
        let entry = |((event, origin), seq): (&(Envelope, Device), Seq)| Entry {
            seq,
            event: event.clone(),
            origin: origin.clone(),
        };
        self.events.iter().zip(self.places(sequence)).map(entry).collect()
    }

    fn fault(&self) -> Option<&'static str> {
        if self.offset >= SEQS / 2 {
            return Some("its places are beyond those of any log");
        }
        let Some(seqs) = &self.seqs else { return None };
        let grow = seqs.first().is_some_and(|first| *first > Seq::START) && seqs.is_sorted_by(|one, next| one < next);
        if seqs.len() != self.events.len() || !grow {
            return Some("it doesn't have one place for each event, in order");
        }
        let is_below = seqs.last().is_some_and(|last| last.0 <= self.offset);
        (!is_below).then_some("its places are not below those that follow")
    }
}

/// Returns the place of the `nth` event of a message.
pub(super) fn place(offset: u64, sequence: Sequence, nth: u64) -> Seq {
    Seq(sequence.saturating_mul(PLACES).saturating_add(offset).saturating_add(nth).min(SEQS - 1))
}

/// Gathers the events of one message, as many as it may have.
#[derive(Debug, Default)]
pub(super) struct Pack {
    pub(super) events: Vec<(Envelope, Device)>,
    bytes: usize,
}

impl Pack {
    /// Bytes of a message besides its events, and of an event's explicit place.
    const AROUND: usize = 512;
    const PLACE: usize = 21;

    /// Adds an event, unless it doesn't fit. The first one always fits.
    pub(super) fn add(&mut self, event: &Envelope, origin: &Device) -> bool {
        let wire = serde_json::to_vec(&StreamEvent::new(event, origin)).expect("BUG: an event is JSON");
        let bytes = self.bytes + wire.len() + 1 + Self::PLACE;
        if self.events.len() == page::EVENTS || !self.events.is_empty() && bytes + Self::AROUND > MESSAGE_BYTES {
            return false;
        }
        self.bytes = bytes;
        self.events.push((event.clone(), origin.clone()));
        true
    }
}

/// Returns the digest of a log with these events behind it.
pub(super) fn digest_with<'e>(digest: Digest, events: impl IntoIterator<Item = &'e (Envelope, Device)>) -> Digest {
    events.into_iter().fold(digest, |digest, (event, origin)| {
        digest.extended(event.id.as_bytes(), event.name.as_str(), event.args.as_text(), origin.as_str())
    })
}

/// The messages that move a store into a stream, one after another. They carry the log's id and each event's place and
/// origin along, so devices notice nothing.
///
/// The same log always makes the same messages, so a move that was interrupted can go on: what the subject has already is
/// compared with what comes next here.
#[derive(Debug, Clone)]
pub struct MovingIn {
    log: LogId,
    /// The last place of the log that is moved.
    head: Seq,
    digest: Digest,
}

impl MovingIn {
    /// Begins to move a log whose last event is at `head`.
    pub fn new(log: LogId, head: Seq) -> Self {
        Self { log, head, digest: Digest::EMPTY }
    }

    /// Makes the next message of the log's next entries: as many as fit. Returns it with their number. `entries` begin
    /// where the last message ended, and there are as many as a page has, unless the log ends.
    pub fn next(&mut self, entries: &[Entry]) -> Option<(Message, usize)> {
        let mut pack = Pack::default();
        let count = entries.iter().take_while(|entry| pack.add(&entry.event, &entry.origin)).count();
        if count == 0 {
            return None;
        }
        self.digest = digest_with(self.digest, &pack.events);
        let seqs = Some(entries[..count].iter().map(|entry| entry.seq).collect());
        let (log, digest, offset) = (self.log, self.digest, self.head.0);
        Some((Message::Group(Group { log, events: pack.events, digest, offset, seqs }), count))
    }

    /// Goes past a message that the subject has already, if it holds the log's next entries. Returns how many those are.
    pub fn pass(&mut self, group: &Group, entries: &[Entry]) -> Option<usize> {
        let seqs = group.seqs.as_ref().filter(|_| group.log == self.log)?;
        let entries = entries.get(..seqs.len())?;
        let digest = entries.iter().fold(self.digest, |digest, Entry { event, origin, .. }| {
            digest.extended(event.id.as_bytes(), event.name.as_str(), event.args.as_text(), origin.as_str())
        });
        if digest != group.digest || !entries.iter().map(|entry| entry.seq).eq(seqs.iter().copied()) {
            return None;
        }
        self.digest = digest;
        Some(seqs.len())
    }
}

/// Returns the id of a log that begins in a stream. All gateways come to the same.
pub fn log_in(stream: StreamId, store: &StoreId) -> LogId {
    LogId::derived(&[b"likewise log", stream.to_string().as_bytes(), store.as_str().as_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::{fuzz, outcome};

    fn event(n: u64, args: &str) -> (Envelope, Device) {
        let id = EventId::from_parts(n, [1; 10]);
        let event = Envelope { id, name: "NoteAdded".parse().unwrap(), args: args.parse().unwrap() };
        (event, "phone".parse().unwrap())
    }

    fn group() -> Group {
        let log = serde_json::from_str("\"7b1c2d3e-4f50-4a6b-8c9d-0e1f2a3b4c5d\"").unwrap();
        let events = vec![event(1, ""), event(2, r#"{"n":1.0,"s":"é"}"#)];
        let digest = digest_with(Digest::EMPTY, &events);
        Group { log, events, digest, offset: 0, seqs: None }
    }

    /// Messages stay in the stream for ever, and gateways of other versions read them.
    #[test]
    fn bytes_of_messages_are_fixed() {
        let plain = r#"{"v":1,"log":"7b1c2d3e-4f50-4a6b-8c9d-0e1f2a3b4c5d","events":[{"id":"00000000-0001-7101-8101-010101010101","name":"NoteAdded","origin":"phone"},{"id":"00000000-0002-7101-8101-010101010101","name":"NoteAdded","args":"{\"n\":1.0,\"s\":\"é\"}","origin":"phone"}],"digest":"DIGEST"}"#;
        let digest = group().digest.to_string();
        let moved = plain.replace(r#","events""#, r#","offset":7,"seqs":[3,7],"events""#);
        let closed = r#"{"v":1,"closed":"https://likes.example"}"#.to_owned();
        let messages = [
            (plain.to_owned(), Message::Group(group())),
            (moved, Message::Group(Group { offset: 7, seqs: Some(vec![Seq(3), Seq(7)]), ..group() })),
            (closed, Message::closing("https://likes.example")),
        ];
        for (text, message) in messages {
            let text = text.replace("DIGEST", &digest);
            assert_eq!(String::from_utf8(message.to_bytes()).unwrap(), text);
            assert_eq!(Message::read(text.as_bytes()), Ok(message));
        }
    }

    #[test]
    fn what_is_no_message_is_refused_in_words() {
        let text = String::from_utf8(Message::Group(group()).to_bytes()).unwrap();
        let foreign = [
            String::new(),
            "hello".to_owned(),
            "{}".to_owned(),
            r#"{"v":"1"}"#.to_owned(),
            r#"{"v":0}"#.to_owned(),
            r#"{"v":1}"#.to_owned(),
            text.replace("00000000-0001-7101", "00000000-0001-4101"),
            text.replace("phone", ""),
            text.replace("NoteAdded", "Note added"),
            text.replace(r#""events""#, r#""events_""#),
            text.replace(r#""events""#, r#""seqs":[3],"offset":9,"events""#),
            text.replace(r#""events""#, r#""seqs":[3,3],"offset":9,"events""#),
            text.replace(r#""events""#, r#""seqs":[3,9],"offset":8,"events""#),
            text.replace(r#""events""#, r#""seqs":[0,9],"offset":9,"events""#),
            text.replace(r#""events""#, r#""offset":1152921504606846976,"events""#),
            format!("{text}{}", " ".repeat(MESSAGE_BYTES)),
        ];
        for text in foreign {
            let read = Message::read(text.as_bytes());
            assert!(matches!(&read, Err(Unread::Foreign(why)) if !why.is_empty()), "{text:.300}: {read:?}");
        }
        assert_eq!(Message::read(br#"{"v":2,"events":7}"#), Err(Unread::Newer(2)));
        assert!(Message::read(text.replace("\"v\":1", "\"v\":1,\"more\":{}").as_bytes()).is_ok());
    }

    #[test]
    fn places_follow_from_the_number_of_the_message() {
        assert_eq!(group().places(5), [Seq(5 * 1_024), Seq(5 * 1_024 + 1)]);
        assert_eq!(Group { offset: 70, ..group() }.places(5), [Seq(5_190), Seq(5_191)]);
        let moved = Group { offset: 70, seqs: Some(vec![Seq(3), Seq(70)]), ..group() };
        assert_eq!(moved.places(5), [Seq(3), Seq(70)]);
        assert!(place(70, 1, 0) > Seq(70));
    }

    #[test]
    fn a_message_has_only_so_many_events_and_bytes() {
        let mut pack = Pack::default();
        assert_eq!((0..2_000).take_while(|n| pack.add(&event(*n, "").0, &event(*n, "").1)).count(), 1_000);
        let long = format!("\"{}\"", "\\\\".repeat(32_000));
        let mut pack = Pack::default();
        let count = (0..100).take_while(|n| pack.add(&event(*n, &long).0, &event(*n, &long).1)).count();
        assert!((2..100).contains(&count), "{count}");
        let message = Message::Group(Group {
            events: pack.events,
            seqs: Some((1..=count as u64).map(Seq).collect()),
            offset: 100,
            ..group()
        });
        assert_eq!(Message::read(&message.to_bytes()), Ok(message));
    }

    #[test]
    fn a_store_that_moves_in_keeps_its_places() {
        let entry = |n: u64| Entry { seq: Seq(3 * n), event: event(n, "").0, origin: "phone".parse().unwrap() };
        let entries: Vec<_> = (1..=2_500).map(entry).collect();
        let (mut moving, mut moved) = (MovingIn::new(group().log, Seq(7_500)), Vec::new());
        while let Some((Message::Group(group), _)) = moving.next(&entries[moved.len()..]) {
            moved.extend(group.entries(900));
        }
        assert_eq!(moved, entries);
    }

    #[test]
    fn subjects_name_stores() {
        let prefix = Prefix::default();
        let store: StoreId = "likes".parse().unwrap();
        assert_eq!(prefix.subject(&store), "likewise.likes");
        assert_eq!(prefix.store_of("likewise.likes"), Ok(store));
        for odd in
            ["likewise", "likewise.", "likewise.Likes", "likewise.a.b", "likewisexlikes", "other.likes", "likewise.ä"]
        {
            assert!(prefix.store_of(odd).is_err(), "{odd}");
        }
        for odd in ["", "-a", "a.b", "A", "a b", ">", "a*"] {
            assert!(odd.parse::<Prefix>().is_err(), "{odd}");
        }
    }

    #[test]
    fn the_id_of_a_log_follows_from_stream_and_store() {
        let stream: StreamId = "7b1c2d3e-4f50-4a6b-8c9d-0e1f2a3b4c5d".parse().unwrap();
        let other: StreamId = "7b1c2d3e-4f50-4a6b-8c9d-0e1f2a3b4c5e".parse().unwrap();
        let log = |stream, store: &str| log_in(stream, &store.parse().unwrap());
        assert_eq!(log(stream, "likes").to_string(), "c431003a-6ccf-851b-88d7-2ca6ec2d5595");
        assert_ne!(log(stream, "likes"), log(stream, "like"));
        assert_ne!(log(stream, "likes"), log(other, "likes"));
    }

    #[test]
    fn any_bytes_of_a_message_are_read_or_refused() {
        fuzz("message", &["\"v\"", "\"seqs\"", "\"closed\"", "\"offset\"", "1", "[", "]", "{", "}", ","], |input| {
            let read = Message::read(input);
            if let Ok(message) = &read {
                assert_eq!(Message::read(&message.to_bytes()).as_ref(), Ok(message));
            }
            outcome(&read)
        });
    }
}
