//! What all gateways of a cluster share: a bucket of keys and values, with the run and the tokens.
//!
//! The bucket is a stream, too, and can lose its tail. A revision that goes back shows that. Then a new run begins, and
//! whoever remembers more writes it again. A value that is *final*, as a revoked token is, wins over every other, so no
//! loss brings a revoked device back.

use std::collections::BTreeMap;

use crate::engine::Digest;

use super::hash;

/// The key of the run.
pub const RUN: &str = "run";

/// A value of the bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// The number of the write that stored it.
    pub revision: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// A value that is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// The key.
    pub key: String,
    /// The bytes. `None` for a new run, whose id whoever writes makes up.
    pub bytes: Option<Vec<u8>>,
    /// The revision that the key's value must have for it to be written; 0 if there must be none. If it has another one,
    /// [read](Bucket::read) again.
    pub expected: u64,
}

/// What one gateway knows of the bucket.
///
/// Ask the bucket's leader every second for its last revision and for what that wrote. If that
/// [is the same](Self::is_current), the bucket was heard and nothing is new. Otherwise read all keys from the leader and pass
/// them to [`read`](Self::read). A gateway that hasn't heard the bucket for 30 seconds ends its pulls and answers 503: a
/// device whose token was revoked must not live on behind a partition.
#[derive(Debug, Default)]
pub struct Bucket {
    last: u64,
    /// What the last revision wrote.
    newest: Option<Digest>,
    values: BTreeMap<String, Value>,
    /// Whether a new run is due.
    is_run_due: bool,
}

impl Bucket {
    /// Returns whether nothing was written since the bucket was read. `newest` is what the last revision wrote, as
    /// [`fingerprint`] gives it.
    pub fn is_current(&self, last: u64, newest: Option<Digest>) -> bool {
        self.last == last && self.newest == newest
    }

    /// Takes in all that the bucket holds now. `is_final` says which values are never replaced. Returns whether it has lost
    /// something.
    pub fn read(
        &mut self,
        last: u64,
        newest: Option<Digest>,
        values: BTreeMap<String, Value>,
        is_final: impl Fn(&[u8]) -> bool,
    ) -> bool {
        let is_there = |key: &String, known: &Value| {
            let is_written = known.revision > 0;
            !is_written || values.get(key).is_some_and(|value| value.revision > known.revision || value == known)
        };
        let has_lost = last < self.last || !self.values.iter().all(|(key, known)| is_there(key, known));
        self.is_run_due |= has_lost;
        let mut next = values;
        for (key, known) in std::mem::take(&mut self.values) {
            let is_kept = match next.get(&key) {
                // It is lost. The run of an earlier time is of no use to anybody.
                None => key != RUN,
                Some(value) => is_final(&known.bytes) && !is_final(&value.bytes),
            };
            if is_kept {
                // A revision that the bucket doesn't have: it is to be written.
                next.insert(key, Value { revision: 0, ..known });
            }
        }
        (self.last, self.newest, self.values) = (last, newest, next);
        has_lost
    }

    /// Notes that a new run is due, because a stream has lost something.
    pub fn begin_run(&mut self) {
        self.is_run_due = true;
    }

    /// Returns the current run, unless a new one is due. Without one, pulls and pushes are answered with 503.
    pub fn run(&self) -> Option<&Value> {
        self.values.get(RUN).filter(|_| !self.is_run_due)
    }

    /// Returns the value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// Returns what has to be written, given what was [read](Self::read) last.
    pub fn writes(&self, current: &BTreeMap<String, Value>) -> Vec<Write> {
        let expected = |key: &str| current.get(key).map_or(0, |value| value.revision);
        let run = (self.is_run_due || !self.values.contains_key(RUN)).then(|| Write {
            key: RUN.to_owned(),
            bytes: None,
            expected: expected(RUN),
        });
        let lost = self.values.iter().filter(|(_, value)| value.revision == 0);
        let lost = lost.map(|(key, value)| Write {
            key: key.clone(),
            bytes: Some(value.bytes.clone()),
            expected: expected(key),
        });
        lost.chain(run).collect()
    }

    /// Notes that a value was written, at this revision.
    pub fn written(&mut self, key: &str, value: Value) {
        self.is_run_due &= key != RUN;
        // What others wrote in between is read first.
        if value.revision == self.last + 1 {
            (self.last, self.newest) = (value.revision, Some(fingerprint(key, &value.bytes)));
        }
        self.values.insert(key.to_owned(), value);
    }
}

/// Returns what stands for a write in comparisons.
pub fn fingerprint(key: &str, bytes: &[u8]) -> Digest {
    hash(&[key.as_bytes(), b"\0", bytes].concat())
}
