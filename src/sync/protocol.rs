//! What goes over the wire between a hub and its clients: the bodies of requests, answers and stream events.
//!
//! `docs/wire.md` describes the protocol for those who write another client; the tests below fix its bytes.

use serde::{Deserialize, Serialize};

use crate::engine::{Args, Device, Digest, Entry, Envelope, EventId, EventName, LogId, Malformed, Page, PageSize, Seq};

/// The most that goes into one push or one page.
pub(crate) const PAGE: PageSize = PageSize { events: 1_000, bytes: 1 << 20 };

/// The codes of the hub's problems that a client acts on. Only these can stop a store.
pub(crate) mod code {
    /// The client must pull before it may push: the hub was started anew since.
    pub(crate) const PULL_FIRST: &str = "pull-first";
    /// The hub's log is not the one that the client knows.
    pub(crate) const WRONG_LOG: &str = "wrong-log";
    /// The hub's log parts from the client's before the place that the client names.
    pub(crate) const DIVERGED: &str = "diverged";
    /// This instance is no hub.
    pub(crate) const NOT_A_HUB: &str = "not-a-hub";
    /// The token is missing, wrong or revoked.
    pub(crate) const UNAUTHORIZED: &str = "unauthorized";
    /// The hub takes no more stores.
    pub(crate) const TOO_MANY_STORES: &str = "too-many-stores";
    /// More events at once than a push may have.
    pub(crate) const TOO_LARGE: &str = "body-too-large";
}

/// The codes of refused events.
pub(crate) mod refused {
    /// The event's id belongs to another event in the log.
    pub(crate) const ID_TAKEN: &str = "id-taken";
    /// It would be the first of its name in the store, which knows as many names as it may.
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
    /// In the order in which they are to be appended.
    pub events: Vec<WireEvent>,
}

/// The answer to a push.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pushed {
    /// The hub's log; null while the store has no events.
    pub log: Option<LogId>,
    /// For each event, in their order.
    pub events: Vec<PushedEvent>,
}

/// What became of a pushed event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PushedEvent {
    /// It is in the log, since now or since long ago.
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

/// The first event of a pull stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The hub's log; null while the store has no events.
    pub log: Option<LogId>,
    /// New whenever the hub starts.
    pub run: String,
    /// The last event of the log.
    pub head: Seq,
}

/// A part of the log, in a pull stream.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WirePage {
    /// The hub's log.
    pub log: LogId,
    /// In the order of their places.
    pub events: Vec<WireEntry>,
    /// Where the next page begins.
    pub next: Seq,
    /// Whether the next page is there already.
    pub more: bool,
}

/// An event with its place.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WireEntry {
    /// Its place.
    pub seq: Seq,
    /// The event itself.
    #[serde(flatten)]
    pub event: WireEvent,
    /// The device that brought it to the log.
    pub origin: Device,
}

impl WirePage {
    pub(crate) fn new(log: LogId, entries: &[Entry], next: Seq, more: bool) -> Self {
        let wire = |entry: &Entry| WireEntry {
            seq: entry.seq,
            event: WireEvent::from(&entry.event),
            origin: entry.origin.clone(),
        };
        Self { log, events: entries.iter().map(wire).collect(), next, more }
    }

    /// The page as the engine takes it.
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
    /// Of the log up to there.
    pub digest: Digest,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(args: &str) -> Envelope {
        let id = EventId::from_parts(1_700_000_000_000, [1; 10]);
        Envelope { id, name: "NoteAdded".parse().unwrap(), args: args.parse().unwrap() }
    }

    /// The bytes on the wire are a contract with every other version and every other client.
    #[test]
    fn wire_bytes_are_fixed() {
        let log: LogId = serde_json::from_str("\"7b1c2d3e-4f50-4a6b-8c9d-0e1f2a3b4c5d\"").unwrap();
        let push = Push {
            log: None,
            run: "r1".to_owned(),
            events: vec![WireEvent::from(&event("")), WireEvent::from(&event(r#"{"n":1.0,"s":"é\u000d"}"#))],
        };
        assert_eq!(
            serde_json::to_string(&push).unwrap(),
            r#"{"log":null,"run":"r1","events":[{"id":"018bcfe5-6800-7101-8101-010101010101","name":"NoteAdded"},{"id":"018bcfe5-6800-7101-8101-010101010101","name":"NoteAdded","args":"{\"n\":1.0,\"s\":\"é\\u000d\"}"}]}"#
        );
        let pushed = Pushed {
            log: Some(log),
            events: vec![
                PushedEvent::Stored { seq: Seq(7), no_effect: None },
                PushedEvent::Stored { seq: Seq(8), no_effect: Some("no such item".to_owned()) },
                PushedEvent::Refused { refused: refused::ID_TAKEN.to_owned(), why: "taken".to_owned() },
            ],
        };
        assert_eq!(
            serde_json::to_string(&pushed).unwrap(),
            r#"{"log":"7b1c2d3e-4f50-4a6b-8c9d-0e1f2a3b4c5d","events":[{"seq":7},{"seq":8,"no_effect":"no such item"},{"refused":"id-taken","why":"taken"}]}"#
        );
        let hello = Hello { log: Some(log), run: "r1".to_owned(), head: Seq(9) };
        assert_eq!(
            serde_json::to_string(&hello).unwrap(),
            r#"{"log":"7b1c2d3e-4f50-4a6b-8c9d-0e1f2a3b4c5d","run":"r1","head":9}"#
        );
        let entry = Entry { seq: Seq(9), event: event("[1]"), origin: "phone".parse().unwrap() };
        assert_eq!(
            serde_json::to_string(&WirePage::new(log, &[entry], Seq(9), false)).unwrap(),
            r#"{"log":"7b1c2d3e-4f50-4a6b-8c9d-0e1f2a3b4c5d","events":[{"seq":9,"id":"018bcfe5-6800-7101-8101-010101010101","name":"NoteAdded","args":"[1]","origin":"phone"}],"next":9,"more":false}"#
        );
    }

    #[test]
    fn payload_bytes_survive_the_wire() {
        for args in ["", r#"{"a":1.0,"a":2}"#, "123456789012345678901234567890", r#""\u2028🦀\ud83e""#] {
            let before = event(args);
            let text = serde_json::to_string(&WireEvent::from(&before)).unwrap();
            let after: Envelope = serde_json::from_str::<WireEvent>(&text).unwrap().try_into().unwrap();
            assert_eq!(after, before, "{text}");
        }
    }
}
