//! Defines an event: an id, a name and a payload, and the rules for each.
//!
//! Raw strings are checked here: an [`Envelope`] is an event that may be stored.

use std::fmt;
use std::iter;
use std::str::FromStr;
use std::sync::Arc;

use rusqlite::ToSql;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSqlOutput, ValueRef};
use serde::de::DeserializeOwned;
use serde::de::value::MapDeserializer;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::batch::BATCH;
use super::error::Malformed;
use crate::limits::engine::event::{MAX_ARGS, MAX_DEVICE, MAX_NAME};
use crate::{clock, random};

/// A type of event. Its values are immutable facts. The payload is the value as `serde` writes it.
///
/// ```
/// # use likewise::engine::Event;
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct LikeAdded {}
///
/// impl Event for LikeAdded {
///     const NAME: &'static str = "LikeAdded";
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an event",
    label = "`{Self}` doesn't implement `Event`",
    note = "give it `impl Event for {Self} {{ const NAME: &'static str = \"…\"; }}`, and derive serde's `Serialize` and `Deserialize`"
)]
pub trait Event: Serialize + DeserializeOwned {
    /// The name under which events of this type are stored, forever. The type can be renamed freely, but this name
    /// can't change. ASCII letters, digits and `_ . : / -`, at most [`MAX_NAME`] bytes.
    const NAME: &'static str;
}

/// Identifies an event everywhere, forever: a UUIDv7 (RFC 9562, section 5.7), minted where the event happened.
///
/// A page with JavaScript mints it at the click. A page without posts the id it was drawn with, so the event is as old
/// as the page.
///
/// Ids sort by time, and randomly within a millisecond. `ORDER BY id` gives the same order on every device, so it suits
/// lists. It is not the order of the log, which is the order of arrival.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct EventId(Uuid);

impl EventId {
    /// Creates a new id from the system's clock and random source.
    pub fn now() -> Self {
        // Only the random bits tell two ids apart, because any clock may stand still.
        Self::from_parts(clock::unix_millis(), random::bytes())
    }

    /// Creates the id of an event that happened `millis` after the Unix epoch. `random` distinguishes it from others.
    pub fn from_parts(millis: u64, random: [u8; 10]) -> Self {
        Self(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
    }

    /// Returns when the id was minted, in milliseconds since the Unix epoch by that device's clock. It is for people:
    /// clocks are wrong, and the log isn't ordered by it.
    pub fn millis(self) -> u64 {
        let bytes = self.0.as_bytes();
        bytes[..6].iter().fold(0, |millis, byte| millis << 8 | u64::from(*byte))
    }

    /// Returns the sixteen bytes that are stored and hashed.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// Reads an id back from storage.
    #[inline]
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, Malformed> {
        let id = bytes.try_into().ok().map(Uuid::from_bytes_ref).copied().and_then(Self::from_uuid);
        id.ok_or_else(|| Malformed::Id(format!("{bytes:02x?}")))
    }

    #[inline]
    fn from_uuid(uuid: Uuid) -> Option<Self> {
        (uuid.get_version_num() == 7 && uuid.get_variant() == uuid::Variant::RFC4122).then_some(Self(uuid))
    }
}

impl FromStr for EventId {
    type Err = Malformed;

    /// Accepts only the hyphenated form. So an id has one spelling, apart from letter case.
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let hyphenated = text.len() == 36;
        let uuid = Uuid::try_parse(text).ok().filter(|_| hyphenated);
        uuid.and_then(Self::from_uuid).ok_or_else(|| Malformed::Id(excerpt(text)))
    }
}

impl TryFrom<String> for EventId {
    type Error = Malformed;
    fn try_from(text: String) -> Result<Self, Malformed> {
        text.parse()
    }
}

impl From<EventId> for String {
    fn from(id: EventId) -> String {
        id.to_string()
    }
}

/// Stores the id as the text that [`Display`](fmt::Display) gives, for columns of type TEXT.
impl ToSql for EventId {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.to_string().into())
    }
}

impl FromSql for EventId {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        value.as_str()?.parse().map_err(FromSqlError::other)
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The name of a type of event, as stored.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EventName(Arc<str>);

impl EventName {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the name of `E`.
    ///
    /// # Errors
    ///
    /// If [`Event::NAME`] isn't a valid event name.
    pub fn of<E: Event>() -> Result<Self, Malformed> {
        Self::check(E::NAME)?;
        Ok(Self(E::NAME.into()))
    }

    /// Wraps a name that was checked before it was stored.
    pub(crate) fn stored(name: Arc<str>) -> Self {
        Self(name)
    }

    fn check(name: &str) -> Result<(), Malformed> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:/-".contains(&byte);
        let own = name.starts_with("likewise.") && name != BATCH;
        if name.is_empty() || name.len() > MAX_NAME || own || !name.bytes().all(allowed) {
            return Err(Malformed::Name(excerpt(name)));
        }
        Ok(())
    }
}

impl FromStr for EventName {
    type Err = Malformed;
    fn from_str(name: &str) -> Result<Self, Malformed> {
        Self::check(name)?;
        Ok(Self(name.into()))
    }
}

/// The payload of an event: nothing, or JSON text that is kept byte for byte.
///
/// No payload, `null` and `{}` are the same empty payload, which takes no bytes. Raw control characters are refused
/// even between tokens. So a payload is always one line and can't break the frame it travels in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Args(Option<Box<str>>);

impl Args {
    /// The empty payload.
    pub const EMPTY: Self = Self(None);

    /// Returns the payload of `event`.
    ///
    /// # Errors
    ///
    /// If `serde` can't serialize it to JSON, or the JSON is too large.
    pub fn of<E: Event>(event: &E) -> Result<Self, Malformed> {
        serde_json::to_string(event).map_err(|why| Malformed::Args(why.to_string()))?.parse()
    }

    /// Wraps a payload that was checked before it was stored.
    pub(crate) fn stored(text: Option<&str>) -> Self {
        Self(text.map(Into::into))
    }

    /// Returns the JSON text, or `None` for the empty payload.
    pub fn as_text(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

impl FromStr for Args {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        if matches!(text, "" | "null" | "{}") {
            return Ok(Self::EMPTY);
        }
        if text.len() > MAX_ARGS {
            return Err(Malformed::TooLarge(text.len()));
        }
        if let Some(at) = text.bytes().position(|byte| byte < 0x20) {
            return Err(Malformed::Args(format!("a control character at byte {at}")));
        }
        serde_json::from_str::<&RawValue>(text).map_err(|why| Malformed::Args(why.to_string()))?;
        Ok(Self(Some(text.into())))
    }
}

/// Reads a payload back into its event. `text` comes from [`Args::as_text`].
pub(crate) fn decode<E: Event>(text: Option<&str>) -> Result<E, serde_json::Error> {
    match text {
        Some(text) => serde_json::from_str(text),
        // A struct deserializes from an empty map, which avoids the parser. Types of other shapes read `{}` or `null`.
        None => E::deserialize(MapDeserializer::new(iter::empty::<(&str, ())>()))
            .or_else(|_: serde_json::Error| serde_json::from_str("{}"))
            .or_else(|_| serde_json::from_str("null")),
    }
}

/// The name of the device that brought an event to its log. The log adds it; it is not part of the event.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Device(Arc<str>);

impl Device {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Device {
    /// Wraps a name that was checked before it was stored.
    pub(crate) fn stored(name: Arc<str>) -> Self {
        Self(name)
    }
}

impl FromStr for Device {
    type Err = Malformed;
    fn from_str(name: &str) -> Result<Self, Malformed> {
        if name.is_empty() || name.len() > MAX_DEVICE || name.chars().any(char::is_control) {
            return Err(Malformed::Device(excerpt(name)));
        }
        Ok(Self(name.into()))
    }
}

impl TryFrom<String> for Device {
    type Error = Malformed;
    fn try_from(name: String) -> Result<Self, Malformed> {
        name.parse()
    }
}

impl From<Device> for String {
    fn from(device: Device) -> String {
        device.0.as_ref().to_owned()
    }
}

/// An event as it is stored and carried. Equal envelopes are the same event everywhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// The one identity of the event.
    pub id: EventId,
    /// What kind of event it is.
    pub name: EventName,
    /// Its payload.
    pub args: Args,
}

/// An event as a materializer gets it, borrowed from wherever its text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EventRef<'a> {
    pub(crate) id: EventId,
    pub(crate) name: &'a str,
    pub(crate) args: Option<&'a str>,
}

impl Envelope {
    /// Borrows the event.
    pub(crate) fn borrowed(&self) -> EventRef<'_> {
        EventRef { id: self.id, name: self.name.as_str(), args: self.args.as_text() }
    }

    /// Returns whether its name and payload, which were read from somewhere, are valid for an event.
    pub(crate) fn is_well_formed(&self) -> bool {
        let args = self.args.as_text().unwrap_or_default().parse::<Args>();
        EventName::check(self.name.as_str()).is_ok() && args.as_ref() == Ok(&self.args)
    }

    /// Puts `event` under `id`.
    ///
    /// # Errors
    ///
    /// The same as for [`Args::of`] and [`EventName::of`].
    pub fn new<E: Event>(id: EventId, event: &E) -> Result<Self, Malformed> {
        Ok(Self { id, name: EventName::of::<E>()?, args: Args::of(event)? })
    }
}

/// Returns enough of a bad input to recognize it in a message.
fn excerpt(text: &str) -> String {
    let mut short: String = text.chars().take(60).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::batch::unseal;
    use crate::fuzz::{fuzz, outcome, text};

    #[derive(Serialize, Deserialize)]
    struct Empty {}
    impl Event for Empty {
        const NAME: &'static str = "Empty";
    }

    #[derive(Serialize, Deserialize)]
    struct Unit;
    impl Event for Unit {
        const NAME: &'static str = "Unit";
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Wrapped(Option<Defaults>);
    impl Event for Wrapped {
        const NAME: &'static str = "Wrapped";
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Defaults {
        #[serde(default)]
        n: u8,
    }
    impl Event for Defaults {
        const NAME: &'static str = "Defaults";
    }

    #[test]
    fn the_empty_payload_reads_as_json_reads_it() {
        assert_eq!(decode::<Wrapped>(None).unwrap(), serde_json::from_str("{}").unwrap());
        assert_eq!(decode::<Defaults>(None).unwrap(), serde_json::from_str("{}").unwrap());
    }

    #[test]
    fn empty_payloads_are_one() {
        for text in ["", "null", "{}"] {
            assert_eq!(text.parse(), Ok(Args::EMPTY));
        }
        assert_eq!(Args::of(&Empty {}), Ok(Args::EMPTY));
        assert_eq!(Args::of(&Unit), Ok(Args::EMPTY));
        assert!(decode::<Empty>(None).is_ok());
        assert!(decode::<Unit>(None).is_ok());
    }

    #[test]
    fn payloads_keep_their_bytes() {
        for text in ["{ }", "[1.0,1e2,123456789012345678901234567890]", r#"{"a":1,"a":2}"#, r#""\u000d🦀""#] {
            assert_eq!(text.parse::<Args>().unwrap().as_text(), Some(text));
        }
    }

    #[test]
    fn payloads_that_could_break_a_line_or_are_not_json_are_refused() {
        for text in ["{\n}", "[1,\r2]", "\u{0}", "{", "1 2", "'a'"] {
            assert!(matches!(text.parse::<Args>(), Err(Malformed::Args(_))), "{text:?}");
        }
        let large = format!("\"{}\"", "x".repeat(MAX_ARGS));
        assert_eq!(large.parse::<Args>(), Err(Malformed::TooLarge(MAX_ARGS + 2)));
    }

    #[test]
    fn ids_are_hyphenated_uuids_of_version_7() {
        let id = EventId::from_parts(1_700_000_000_123, [7; 10]);
        assert_eq!(id.millis(), 1_700_000_000_123);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(EventId::from_bytes(id.as_bytes()), Ok(id));
        let simple = id.to_string().replace('-', "");
        let v4 = "8f3c9e0a-1b2d-4c3e-9f4a-5b6c7d8e9f00";
        for bad in ["", "x", &simple, v4, "{0190d1e5-3f5c-7bb2-8a3e-5d4f6c7b8a9}"] {
            assert!(bad.parse::<EventId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn trust_38_fuzzed_ids_names_and_payloads_keep_their_rules() {
        fuzz("id", &["0190d1e5-3f5c-7bb2-8a3e-5d4f6c7b8a90", "-", "urn:uuid:"], |input| {
            let id = text(input).parse::<EventId>();
            if let Ok(id) = &id {
                assert_eq!(id.to_string().parse(), Ok(*id));
                assert_eq!(id.to_string(), text(input).to_lowercase());
                assert_eq!(EventId::from_bytes(id.as_bytes()), Ok(*id));
            }
            outcome(&id)
        });
        fuzz("name", &["likewise.", "likewise.batch", "."], |input| {
            let name = text(input).parse::<EventName>();
            if let Ok(name) = &name {
                assert_eq!(name.as_str().as_bytes(), input);
                assert!((1..=MAX_NAME).contains(&input.len()));
                assert!(!name.as_str().starts_with("likewise.") || name.as_str() == BATCH);
            }
            outcome(&name)
        });
        fuzz("device", &[], |input| {
            let device = text(input).parse::<Device>();
            if let Ok(device) = &device {
                assert!((1..=MAX_DEVICE).contains(&device.as_str().len()));
                let again = serde_json::to_string(device).map(|text| serde_json::from_str::<Device>(&text).unwrap());
                assert_eq!(again.unwrap(), *device);
            }
            outcome(&device)
        });
        fuzz("args", &["[[[[", "{\"a\":", "1e-400", "null", "{}"], |input| {
            let args = text(input).parse::<Args>();
            if let Ok(args) = &args {
                let kept = args.as_text().unwrap_or_default();
                assert!(kept.len() <= MAX_ARGS && kept.bytes().all(|byte| byte >= 0x20));
                assert_eq!(kept.parse(), Ok(args.clone()));
                assert!(kept.is_empty() || kept == text(input));
                drop(decode::<Wrapped>(args.as_text()));
                if let Ok(items) = unseal(args.as_text()) {
                    assert!(!items.is_empty() && items.len() <= kept.len());
                }
            }
            outcome(&args)
        });
    }

    #[test]
    fn names_of_the_engine_and_odd_names_are_refused() {
        for bad in ["", "a b", "é", "likewise.other", &"x".repeat(MAX_NAME + 1)] {
            assert!(bad.parse::<EventName>().is_err(), "{bad}");
        }
        assert!("todo/Item:Added_2.0-x".parse::<EventName>().is_ok());
    }
}
