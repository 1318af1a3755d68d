//! Places in a log: how far something has come, and in which log.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::error::Malformed;
use super::event::{Device, Envelope};

/// The place of an event in its log, assigned by the authority. Seqs only grow, and may have gaps. Zero is before the
/// first event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "u64")]
pub struct Seq(pub u64);

impl TryFrom<u64> for Seq {
    type Error = Malformed;
    fn try_from(number: u64) -> Result<Self, Malformed> {
        // This is far enough below 2^63, SQLite's limit, that a log can continue from any seq.
        if number < 1 << 62 { Ok(Self(number)) } else { Err(Malformed::Seq(number)) }
    }
}

impl Seq {
    /// The place before every event.
    pub const START: Self = Self(0);

    /// Returns the next place, without a gap.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// Converts the seq for SQLite. No log counts past 2^63.
    pub(crate) fn to_sql(self) -> i64 {
        i64::try_from(self.0).expect("BUG: a seq above 2^63")
    }

    pub(crate) fn from_sql(value: i64) -> Self {
        Self(u64::try_from(value).unwrap_or_default())
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Counts how often this eventlog took events back out of its log. A state of another generation than its eventlog may
/// hold events that the log no longer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Generation(pub u64);

/// Identifies a log, even among logs with the same events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LogId(Uuid);

impl LogId {
    /// Creates a new, random id.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// Returns the id that follows from these parts. The same parts give the same id everywhere.
    pub(crate) fn derived(parts: &[&[u8]]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self(uuid::Builder::from_custom_bytes(bytes).into_uuid())
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Uuid::try_parse(text).ok().map(Self)
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// Identifies a stream, even among streams of the same name. It is made with the stream and kept in its metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StreamId(Uuid);

impl StreamId {
    /// Creates a new, random id.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl FromStr for StreamId {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        Uuid::try_parse(text).map(Self).map_err(|_| Malformed::Stream(text.chars().take(80).collect()))
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// The digest of a log up to some place, or of a state.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of a log without events.
    pub const EMPTY: Self = Self([0; 32]);

    /// Returns the digest of the log with one more event.
    ///
    /// The digests form a chain: BLAKE3 over the digest so far, then the event's id, name, payload and origin. Each of
    /// these is preceded by its length in bytes as a 32-bit little-endian number; the empty payload has length zero.
    /// The seq is not covered: it is a place, and another authority may number the same events differently.
    pub fn extended(self, id: &[u8; 16], name: &str, args: Option<&str>, origin: &str) -> Self {
        // Hashing short input in one piece takes half the time of feeding it in parts.
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&self.0);
        for field in [id.as_slice(), name.as_bytes(), args.unwrap_or_default().as_bytes(), origin.as_bytes()] {
            let length = u32::try_from(field.len()).expect("BUG: a field of an event above 4 GiB");
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(field);
        }
        Self(*blake3::hash(&bytes).as_bytes())
    }

    pub(crate) fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Reads it as it is written, in hexadecimal.
    #[cfg(feature = "app")]
    pub(crate) fn parse(text: &str) -> Option<Self> {
        blake3::Hash::from_hex(text).ok().map(|hash| Self(*hash.as_bytes()))
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let hash = blake3::Hash::from_hex(&text).map_err(serde::de::Error::custom)?;
        Ok(Self(*hash.as_bytes()))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How far something has come in a log, and what it has seen so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cursor {
    /// The generation of the eventlog it was made from.
    pub generation: Generation,
    /// The last event seen.
    pub seq: Seq,
    /// The digest of the log up to there.
    pub digest: Digest,
}

/// An event with its place in a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the log.
    pub seq: Seq,
    /// The event itself.
    pub event: Envelope,
    /// The device that brought it to this log.
    pub origin: Device,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes under the digest are part of the format. A change here changes every log on disk.
    #[test]
    fn digest_of_a_log_is_fixed() {
        let id = |n| *crate::engine::EventId::from_parts(n, [n as u8; 10]).as_bytes();
        let one = Digest::EMPTY.extended(&id(1), "LikeAdded", None, "laptop");
        let two = one.extended(&id(2), "NoteAdded", Some(r#"{"text":"hi"}"#), "phone");
        assert_eq!(one.to_string(), "cb3b2c9c02559a0a8168d798a23997ab00e4d1e1dcb3206155d535c51036f585");
        assert_eq!(two.to_string(), "06aedc2c638ed70d898e0319788f678e6d1665978f2f00ab75cbcd08575d5f15");
    }

    #[test]
    fn a_seq_that_no_log_counts_up_to_is_refused() {
        assert_eq!(serde_json::from_str::<Seq>("4611686018427387903").unwrap(), Seq((1 << 62) - 1));
        assert!(serde_json::from_str::<Seq>("4611686018427387904").is_err());
        assert!(serde_json::from_str::<Seq>("-1").is_err());
    }

    #[test]
    fn length_prefixes_keep_neighbouring_fields_apart() {
        let id = [0; 16];
        let a = Digest::EMPTY.extended(&id, "ab", Some("c"), "d");
        let b = Digest::EMPTY.extended(&id, "a", Some("bc"), "d");
        assert_ne!(a, b);
    }
}
