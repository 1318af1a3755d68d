//! What goes over the wire between a hub and its clients: the bodies of requests, answers and stream events.
//!
//! `docs/wire.md` describes the protocol for those who write another client; the tests below fix its bytes.

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
    #[serde(deserialize_with = "at_most::<{ PAGE.events }, _, _>")]
    pub events: Vec<PushedEvent>,
}

/// What became of a pushed event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, try_from = "FlatAnswer")]
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

/// What became of a pushed event, as it is read: without a copy of what nobody knows.
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
    #[serde(deserialize_with = "at_most::<{ PAGE.events }, _, _>")]
    pub events: Vec<WireEntry>,
    /// Where the next page begins.
    pub next: Seq,
    /// Whether the next page is there already.
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

/// An event with its place, as it is read: without a copy of what nobody knows, which `flatten` would make, at twenty times
/// its size.
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
    /// What is wrong with it, if it can't be a hub's.
    pub(super) fn fault(&self) -> Option<&'static str> {
        let is_run =
            !self.run.is_empty() && self.run.len() <= MAX_RUN && self.run.bytes().all(|b| b.is_ascii_graphic());
        let is_place = self.head.0 < SEQS;
        (!is_run).then_some("its run has no name, or an odd one").or((!is_place).then_some("no log is so long"))
    }
}

impl WirePage {
    /// What is wrong with it, if it can't be what comes after `reached` in a log: places only go up.
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

/// The points in a problem, which are few.
pub(super) fn points<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Point>, D::Error> {
    at_most::<MAX_POINTS, _, _>(deserializer)
}

/// A list of `N` at most. The first one more is an error, before there is memory for the rest.
fn at_most<'de, const N: usize, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
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

/// What somebody else says, as far as it is kept, logged or shown: not long, on one line, and without characters that
/// turn the rest of the line around or hide in it.
pub(super) fn words(text: &str) -> String {
    let is_hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
            || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
    };
    let mut chars = text.trim().chars().map(|c| if is_hidden(c) { ' ' } else { c });
    let mut short: String = chars.by_ref().take(MAX_WORDS).collect();
    if chars.next().is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::{fuzz, outcome, text};

    #[test]
    fn trust_64_lists_of_a_hub_have_an_end() {
        let log = LogId::random();
        let page = |count: usize| {
            let event = r#"{"seq":1,"id":"","name":"","origin":"x","more":[[[]]]}"#;
            format!(r#"{{"log":"{log}","events":[{}],"next":1,"more":false}}"#, vec![event; count].join(","))
        };
        assert_eq!(serde_json::from_str::<WirePage>(&page(1_000)).unwrap().events.len(), 1_000);
        let error = serde_json::from_str::<WirePage>(&page(1_001)).unwrap_err();
        assert!(error.to_string().contains("longer than 1000"), "{error}");
        let answer = format!(r#"{{"log":null,"events":[{}]}}"#, vec![r#"{"seq":1}"#; 1_001].join(","));
        assert!(serde_json::from_str::<Pushed>(&answer).is_err());
    }

    #[test]
    fn places_of_a_page_only_go_up() {
        let entry = |seq| Entry { seq: Seq(seq), event: event(""), origin: "phone".parse().unwrap() };
        let fault = |reached, seqs: &[u64], next| {
            let entries: Vec<_> = seqs.iter().map(|seq| entry(*seq)).collect();
            WirePage::new(LogId::random(), &entries, Seq(next), false).fault(Seq(reached))
        };
        assert_eq!(fault(3, &[4, 9], 9), None);
        assert_eq!(fault(3, &[], 3), None);
        for (reached, seqs, next) in [
            (3, &[3][..], 3),
            (3, &[4, 4], 4),
            (3, &[5, 4], 5),
            (3, &[4, 5], 4),
            (3, &[], 2),
            (3, &[4, 1 << 61], 1 << 61),
        ] {
            assert!(fault(reached, seqs, next).is_some(), "{reached} {seqs:?} {next}");
        }
    }

    #[test]
    fn words_of_a_hub_are_short_and_harmless() {
        assert_eq!(words(" Because. "), "Because.");
        assert_eq!(words("a\r\nb\u{202e}c\u{1b}[2J"), "a  b c [2J");
        assert_eq!(words(&"é".repeat(3_000_000)), "é".repeat(300) + "…");
    }

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
    fn trust_38_fuzzed_messages_of_a_hub_keep_their_bounds() {
        let words =
            ["\"seq\":", "\"events\":", "\"next\":", "\"more\":true", "\"log\":null", "\"args\":", "\"origin\":"];
        fuzz("page", &words, |input| {
            let page = serde_json::from_slice::<WirePage>(input);
            let Ok(page) = page else { return outcome(&page) };
            let again: WirePage = serde_json::from_slice(&serde_json::to_vec(&page).unwrap()).unwrap();
            assert!(page.events.len() <= PAGE.events);
            if let Some(fault) = page.fault(Seq(3)) {
                return fault.to_owned();
            }
            assert!(page.next.0 < SEQS && page.next >= Seq(3));
            assert!(page.events.iter().all(|entry| (4..=page.next.0).contains(&entry.seq.0)));
            let (page, again) = (page.into_page(), again.into_page());
            if let Ok(page) = &page {
                assert_eq!(page.entries, again.unwrap().entries);
            }
            outcome(&page)
        });
        fuzz("hello", &words, |input| {
            let hello = serde_json::from_slice::<Hello>(input);
            let Ok(hello) = hello else { return outcome(&hello) };
            assert!(hello.fault().is_some() || hello.run.len() <= MAX_RUN && hello.head.0 < SEQS);
            assert_eq!(serde_json::from_slice::<Hello>(&serde_json::to_vec(&hello).unwrap()).unwrap(), hello);
            hello.fault().unwrap_or("right").to_owned()
        });
        fuzz("pushed", &["\"refused\":", "\"why\":", "\"no_effect\":", "\"seq\":"], |input| {
            let pushed = serde_json::from_slice::<Pushed>(input);
            if let Ok(pushed) = &pushed {
                assert!(pushed.events.len() <= PAGE.events);
                let again: Pushed = serde_json::from_slice(&serde_json::to_vec(pushed).unwrap()).unwrap();
                assert_eq!(again.events, pushed.events);
            }
            outcome(&pushed)
        });
        fuzz("words", &["\u{202e}", "\u{1b}[", "\u{200b}", "\u{e0041}"], |input| {
            let words = words_of(input);
            assert!(words.chars().count() <= MAX_WORDS + 1 && !words.chars().any(char::is_control));
            assert_eq!(super::words(&words).trim_end_matches('…'), words.trim().trim_end_matches('…'));
            String::new()
        });
    }

    fn words_of(input: &[u8]) -> String {
        words(&text(input))
    }

    #[test]
    fn trust_38_fuzzed_pushes_are_events_or_refused() {
        let words = ["\"run\":", "\"events\":", "\"args\":", "\"log\":null", "\"name\":"];
        fuzz("push", &words, |input| {
            let push = serde_json::from_slice::<Push>(input);
            let Ok(push) = push else { return outcome(&push) };
            let mut outcomes = String::new();
            for event in push.events.into_iter().take(9) {
                let event = Envelope::try_from(event);
                if let Ok(event) = &event {
                    let again: WireEvent =
                        serde_json::from_str(&serde_json::to_string(&WireEvent::from(event)).unwrap()).unwrap();
                    assert_eq!(Envelope::try_from(again).as_ref(), Ok(event));
                }
                if let Err(why) = &event {
                    assert!(why.to_string().chars().count() < 300, "{why}");
                }
                outcomes += &outcome(&event);
            }
            outcomes
        });
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
