//! What all gateways share: their run, who may sync, links for pairing, and the key of the visitors' hashes. It is one
//! document in a bucket, and each gateway keeps a copy.
//!
//! Two of these documents merge into one that lacks nothing of either, in whichever order they meet. So a gateway that was
//! away adds what it knows, and what the bucket lost comes back from whoever still has it. Nothing is taken out: a revoked
//! token is one that stands among the revoked.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::super::pairings::Pairing;
use super::super::tokens::Token;
use crate::engine::{LogId, StoreId};
use crate::limits::sync::nats::{LOSSES, REVOKED};
use crate::limits::sync::pairing::{OPEN, REMEMBERED};
use crate::random;

/// The document.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shared {
    /// The version of its form.
    v: u32,
    /// The run that all gateways serve under. Each later one has a higher number.
    pub(super) run: Run,
    #[serde(default)]
    pub(super) tokens: Vec<Token>,
    /// Tokens that opened something once, and must never do so again.
    #[serde(default)]
    pub(super) revoked: Vec<Revoked>,
    /// Which runs began because the stream had lost something, and of which store.
    #[serde(default)]
    pub(super) losses: Vec<Loss>,
    /// The logs of stores that were moved here, and brought their ids along.
    #[serde(default)]
    pub(super) logs: BTreeMap<String, LogId>,
    #[serde(default)]
    pub(super) pairings: Vec<Pairing>,
    /// The key of the hashes by which apps tell visitors apart, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) visitors: Option<String>,
}

/// A run of all gateways, from one loss to the next.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Run {
    pub(super) number: u64,
    pub(super) id: String,
}

/// A run that began because the stream had lost something.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Loss {
    /// The number of the run.
    pub(super) run: u64,
    pub(super) store: String,
}

/// A revoked token.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Revoked {
    /// When that was, in milliseconds since the Unix epoch.
    pub(super) at: u64,
    /// The token's hash.
    pub(super) hash: String,
}

/// The version of the form that is written here.
const FORM: u32 = 1;

impl Run {
    pub(super) fn next(&self) -> Self {
        Self { number: self.number + 1, id: random::hex::<16>() }
    }
}

impl Shared {
    /// The document of a new installation.
    pub(super) fn new() -> Self {
        Self { v: FORM, run: Run::default().next(), ..Self::default() }
    }

    /// Reads one.
    ///
    /// # Errors
    ///
    /// When it is somebody else's, or of a newer version.
    pub(super) fn read(text: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Form {
            v: u32,
        }
        match serde_json::from_slice::<Form>(text) {
            Ok(Form { v }) if v > FORM => {
                return Err("what the gateways share was written by a newer version; update this one".to_owned());
            }
            Ok(_) => {}
            Err(error) => return Err(format!("what the gateways share is not understood: {error}")),
        }
        let read: Self = serde_json::from_slice(text)
            .map_err(|error| format!("what the gateways share is not understood: {error}"))?;
        if read.run.id.is_empty() || read.run.number == 0 {
            return Err("what the gateways share is not understood: it names no run".to_owned());
        }
        Ok(read)
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("BUG: a document that isn't JSON")
    }

    /// Begins a new run, because the stream lost something of `store`. Does nothing if another gateway did so after the run
    /// with the number `seen`.
    pub(super) fn lose(&mut self, store: &StoreId, seen: u64) {
        if !self.losses.iter().any(|loss| loss.run > seen && loss.store == store.as_str()) {
            self.run = self.run.next();
            self.losses.push(Loss { run: self.run.number, store: store.to_string() });
        }
    }

    /// Whether the token with this hash was revoked.
    pub(super) fn is_revoked(&self, hash: &str) -> bool {
        self.revoked.iter().any(|revoked| revoked.hash == hash)
    }

    /// Whether it has everything that `other` has, which no later document may lack.
    pub(super) fn includes(&self, other: &Self) -> bool {
        let has_token = |token: &Token| self.tokens.contains(token) || self.is_revoked(&token.hash);
        // The oldest revocations are forgotten where there are too many.
        let is_full = self.revoked.len() >= REVOKED;
        other.run <= self.run
            && other.tokens.iter().all(has_token)
            && (is_full || other.revoked.iter().all(|revoked| self.is_revoked(&revoked.hash)))
            && other.logs.keys().all(|store| self.logs.contains_key(store))
            && (other.visitors.is_none() || self.visitors == other.visitors)
    }

    /// Adds what `other` has. Of two tokens with one name, the one that was made first counts, and the other is revoked: a
    /// name stands for one device.
    pub(super) fn merge(&mut self, other: &Self, now: u64) {
        self.run = self.run.clone().max(other.run.clone());
        let known: BTreeSet<_> = self.revoked.iter().map(|revoked| revoked.hash.clone()).collect();
        self.revoked.extend(other.revoked.iter().filter(|revoked| !known.contains(&revoked.hash)).cloned());
        for token in &other.tokens {
            if !self.tokens.iter().any(|known| known.hash == token.hash) {
                self.tokens.push(token.clone());
            }
        }
        let revoked: BTreeSet<_> = self.revoked.iter().map(|revoked| revoked.hash.as_str()).collect();
        self.tokens.retain(|token| !revoked.contains(token.hash.as_str()));
        self.tokens.sort_by(|a, b| (a.created, &a.hash).cmp(&(b.created, &b.hash)));
        let mut names = BTreeSet::new();
        let mut second = Vec::new();
        self.tokens.retain(|token| {
            let is_first = names.insert(token.device.as_str().to_owned());
            if !is_first {
                second.push(Revoked { at: now, hash: token.hash.clone() });
            }
            is_first
        });
        self.revoked.extend(second);
        self.revoked.sort();
        let many = self.revoked.len().saturating_sub(REVOKED);
        self.revoked.drain(..many);
        for loss in &other.losses {
            if !self.losses.contains(loss) {
                self.losses.push(loss.clone());
            }
        }
        self.losses.sort();
        let many = self.losses.len().saturating_sub(LOSSES);
        self.losses.drain(..many);
        for (store, log) in &other.logs {
            self.logs.entry(store.clone()).or_insert(*log);
        }
        self.merge_pairings(&other.pairings);
        if self.visitors.is_none() {
            self.visitors.clone_from(&other.visitors);
        }
    }

    /// Adds pairings. One that led to a token led to that one. Of those of one name that are still open, the last counts.
    fn merge_pairings(&mut self, others: &[Pairing]) {
        for other in others {
            match self.pairings.iter_mut().find(|known| known.secret == other.secret) {
                Some(known) if known.token.is_none() => known.token.clone_from(&other.token),
                Some(_) => {}
                None => self.pairings.push(other.clone()),
            }
        }
        self.pairings.retain(|pairing| pairing.age() < REMEMBERED.as_millis());
        self.pairings.sort_by(|a, b| (b.made, &b.secret).cmp(&(a.made, &a.secret)));
        let mut open = BTreeSet::new();
        self.pairings.retain(|pairing| !pairing.is_open() || open.insert(pairing.name.as_str().to_owned()));
        self.pairings.truncate(2 * OPEN);
        self.pairings.reverse();
    }

    /// Takes in what was changed in this gateway's own files since the document was `before`. A token that is no longer in
    /// the file was revoked.
    pub(super) fn change(&mut self, before: &Self, tokens: &[Token], pairings: &[Pairing], now: u64) {
        let gone = before.tokens.iter().filter(|token| !tokens.iter().any(|kept| kept.hash == token.hash));
        let revoked = gone.map(|token| Revoked { at: now, hash: token.hash.clone() }).collect();
        let changes = Self {
            tokens: tokens.iter().filter(|token| !before.is_revoked(&token.hash)).cloned().collect(),
            revoked,
            pairings: pairings.to_vec(),
            run: self.run.clone(),
            ..Self::default()
        };
        self.merge(&changes, now);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::tokens::Purpose;
    use super::*;
    use crate::fuzz::{fuzz, outcome};

    fn token(name: &str, created: u64) -> Token {
        let hash = blake3::hash(format!("{name}{created}").as_bytes()).to_hex().to_string();
        Token { device: name.parse().expect("a name"), hash, created, purpose: Purpose::Sync }
    }

    fn names(shared: &Shared) -> Vec<&str> {
        shared.tokens.iter().map(|token| token.device.as_str()).collect()
    }

    #[test]
    fn what_was_added_and_revoked_at_two_gateways_is_alike_in_whichever_order_they_meet() {
        let mut base = Shared::new();
        base.tokens = vec![token("one", 1), token("two", 2)];
        let (mut here, mut there) = (base.clone(), base.clone());
        here.change(&base, &[token("one", 1), token("two", 2), token("three", 3)], &[], 10);
        there.change(&base, &[token("two", 2)], &[], 11);
        let (mut a, mut b) = (here.clone(), there.clone());
        a.merge(&there, 12);
        b.merge(&here, 12);
        assert_eq!(a, b);
        assert_eq!(names(&a), ["two", "three"]);
        assert!(a.is_revoked(&token("one", 1).hash));
        assert!(a.includes(&here) && a.includes(&there) && !here.includes(&there));
    }

    #[test]
    fn a_document_that_lost_its_newest_change_gets_it_back() {
        let mut before = Shared::new();
        before.tokens = vec![token("one", 1)];
        let mut after = before.clone();
        after.change(&before, &[], &[], 10);
        assert!(after.tokens.is_empty());
        assert!(!before.includes(&after), "the loss is noticed");
        before.merge(&after, 11);
        assert_eq!(before, after, "what was revoked stays so");

        let (mut lost, kept) = (after.clone(), Shared { run: after.run.next(), ..after.clone() });
        assert!(!lost.includes(&kept));
        lost.merge(&kept, 12);
        assert_eq!(lost.run, kept.run, "the later run");
    }

    #[test]
    fn each_loss_begins_a_run_and_two_who_find_it_begin_one() {
        let (likes, todo) = ("likes".parse().expect("a name"), "todo".parse().expect("a name"));
        let mut all = Shared::new();
        let seen = all.run.clone();
        all.lose(&likes, seen.number);
        let first = all.run.clone();
        assert!(first > seen && first.id != seen.id);
        all.lose(&likes, seen.number);
        assert_eq!(all.run, first, "another gateway found the same");
        all.lose(&todo, seen.number);
        all.lose(&likes, first.number);
        let stores: Vec<_> = all.losses.iter().map(|loss| (loss.run, loss.store.as_str())).collect();
        assert_eq!(stores, [(2, "likes"), (3, "todo"), (4, "likes")]);
        let mut other = Shared { run: seen, ..all.clone() };
        other.losses.clear();
        other.merge(&all, 0);
        assert_eq!((other.run, other.losses), (all.run, all.losses));
    }

    #[test]
    fn a_name_that_is_given_twice_stands_for_the_first() {
        let mut here = Shared::new();
        here.tokens = vec![token("phone", 5)];
        let mut there = here.clone();
        there.tokens = vec![token("phone", 4)];
        here.merge(&there, 6);
        assert_eq!(here.tokens, [token("phone", 4)]);
        assert!(here.is_revoked(&token("phone", 5).hash));
    }

    #[test]
    fn revocations_are_bounded() {
        let mut all = Shared::new();
        let many = (0..REVOKED as u64 + 10).map(|at| Revoked { at, hash: at.to_string() });
        let other = Shared { revoked: many.collect(), ..Shared::new() };
        all.merge(&other, 0);
        assert_eq!(all.revoked.len(), REVOKED);
        assert_eq!(all.revoked.last().map(|last| last.at), Some(REVOKED as u64 + 9), "the newest stay");
        assert!(all.includes(&other) || all.run < other.run);
    }

    #[test]
    fn trust_38_fuzzed_documents_of_gateways_are_read_or_refused() {
        fuzz("gateways", &["\"run\":", "\"tokens\":", "\"revoked\":", "\"pairings\":", "\"v\":"], |input| {
            outcome(&Shared::read(input))
        });
    }
}
