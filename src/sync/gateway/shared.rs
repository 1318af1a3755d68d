//! What all gateways share: their run, who may sync, links for pairing, and the key of the visitors' hashes. It is one
//! document in a bucket, and each gateway keeps a copy.
//!
//! Two of these documents merge into one that lacks nothing of either, in whichever order they meet. So a gateway that was
//! away adds what it knows, and what the bucket lost comes back from whoever still has it. Nothing is taken out: a revoked
//! token is one that stands among the revoked.
//!
//! # How to drive it
//!
//! Ask the bucket's leader every second where the bucket ends. If the copy [is of that](SharedCopy::is_of) and the files of
//! the data directory [are as the copy has it](SharedCopy::is_in), all are level. Otherwise read the document. Note in the
//! copy what is [offered](SharedCopy::offer), so that a token which is revoked before it is known whether the bucket has it
//! stays revoked. Write [what comes of both](SharedCopy::merged) under the condition that the document is still the last one,
//! and then keep that: first [in the files](SharedCopy::kept), then [as the copy](SharedCopy::keep). A crash in between makes
//! the next process find changes that the bucket has already. A gateway that hasn't heard the bucket for 30 seconds ends its pulls and answers 503: a device whose token
//! was revoked must not live on behind a partition.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::super::access::{Pairing, Token};
use crate::engine::{LogId, StoreId};
use crate::limits::sync::access::{OPEN, REMEMBERED};
use crate::limits::sync::gateway::{LOSSES, REVOKED};

/// Where a document is in the bucket. The bucket can lose its end, and then another document takes the number.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Revision {
    /// When the bucket was made, in its leader's words.
    pub(crate) bucket: String,
    /// The number of the message.
    pub(crate) sequence: u64,
    /// When the message was stored, in its leader's words. Empty if that isn't known.
    #[serde(default)]
    pub(crate) time: String,
}

/// What a gateway knows of its cluster, and keeps in its data directory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SharedCopy {
    /// The id of the stream.
    #[serde(default)]
    pub(crate) stream: Option<String>,
    /// Where the document was.
    #[serde(default)]
    pub(crate) revision: Revision,
    /// The document, once one was read.
    #[serde(default)]
    pub(crate) shared: Option<Shared>,
    /// Tokens that aren't in that, and that the bucket may have all the same: they were to be written, and it isn't known
    /// what came of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) offered: Vec<Token>,
}

/// What the files of a gateway's data directory hold of all this. Commands and pages change it there, with or without a
/// process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Own {
    /// `None` if there is no such file: then nothing was revoked by leaving it out.
    pub(crate) tokens: Option<Vec<Token>>,
    pub(crate) pairings: Vec<Pairing>,
    pub(crate) visitors: Option<String>,
}

/// What comes of the document in the bucket and of what a gateway knows.
#[derive(Debug)]
pub(crate) struct Merged {
    /// What the bucket is to hold.
    pub(crate) shared: Shared,
    /// Whether the bucket lost something that this gateway had seen there. Then the document has a new run.
    pub(crate) has_lost: bool,
}

impl SharedCopy {
    /// Whether it is of the document at this place.
    pub(crate) fn is_of(&self, place: &Revision) -> bool {
        self.shared.is_some() && self.revision == *place
    }

    /// Whether the files hold just what it has.
    pub(crate) fn is_in(&self, own: &Own) -> bool {
        self.shared.as_ref().is_some_and(|shared| {
            own.tokens.as_deref().unwrap_or_default() == shared.tokens
                && own.pairings == shared.pairings
                && own.visitors == shared.visitors
        })
    }

    /// Notes the tokens of the files that the document doesn't have. Returns whether any are new: then the copy has to be on
    /// disk before they are written anywhere else.
    pub(crate) fn offer(&mut self, own: &Own) -> bool {
        let known = self.known();
        let is_new = |token: &&Token| !known.has_token(&token.hash) && !known.is_revoked(&token.hash);
        let new: Vec<_> = own.tokens.iter().flatten().filter(is_new).cloned().collect();
        let has_new = !new.is_empty();
        self.offered.extend(new);
        has_new
    }

    /// The document as this gateway knows it, with what it offered.
    fn known(&self) -> Shared {
        let mut known = self.shared.clone().unwrap_or_default();
        known.tokens.extend(self.offered.iter().cloned());
        known
    }

    /// Whether others may know of a token from this gateway.
    pub(crate) fn may_have_said(&self, token: &Token) -> bool {
        self.known().has_token(&token.hash)
    }

    /// Takes in that the bucket has this document.
    pub(crate) fn keep(&mut self, shared: Shared, revision: Revision) {
        *self = Self { stream: self.stream.take(), revision, shared: Some(shared), offered: Vec::new() };
    }

    /// Merges the document that `is_there` with what is known here, and with what was changed in the files since. `new_id`
    /// makes up the id of a run.
    pub(crate) fn merged(&self, is_there: Option<&Shared>, own: &Own, now: u64, new_id: impl Fn() -> String) -> Merged {
        // The first document of a bucket that this gateway never knew is nobody's loss.
        let has_lost = self.shared.as_ref().is_some_and(|known| is_there.is_none_or(|there| !there.includes(known)));
        let mut shared = is_there.cloned().unwrap_or_else(|| Shared::new(new_id()));
        shared.merge(self.shared.as_ref().unwrap_or(&Shared::default()), now);
        shared.change(&self.known(), own, now);
        if has_lost {
            shared.run = shared.run.next(new_id());
        }
        Merged { shared, has_lost }
    }

    /// Returns what the files have to hold once `shared` is in the bucket. `own` is what they hold now, which may have
    /// changed since that was merged.
    pub(crate) fn kept(&self, shared: &Shared, own: &Own, now: u64) -> Own {
        let mut kept = shared.clone();
        kept.change(&self.known(), own, now);
        Own { tokens: Some(kept.tokens), pairings: kept.pairings, visitors: kept.visitors }
    }
}

/// The runs that have begun, as far as they matter to a store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Runs {
    /// The number of the run.
    pub(crate) number: u64,
    /// Which began because the stream had lost something.
    pub(crate) losses: Vec<Loss>,
}

impl Runs {
    /// Whether the stream lost something of `store` since the run with the number `before`, as far as is known.
    pub(crate) fn has_suspected(&self, store: &StoreId, before: u64) -> bool {
        let is_remembered = self.losses.len() < LOSSES || self.losses.first().is_some_and(|first| first.run <= before);
        before < self.number
            && (!is_remembered || self.losses.iter().any(|loss| loss.run > before && loss.store == store.as_str()))
    }
}

/// The document.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shared {
    /// The version of its form.
    v: u32,
    /// The run that all gateways serve under. Each later one has a higher number.
    pub(crate) run: Run,
    #[serde(default)]
    pub(crate) tokens: Vec<Token>,
    /// Tokens that opened something once, and must never do so again.
    #[serde(default)]
    pub(crate) revoked: Vec<Revoked>,
    /// There were too many of those to remember them all. Of the tokens that were made up to this time, in milliseconds since
    /// the Unix epoch, only those that are listed are good.
    #[serde(default, skip_serializing_if = "is_zero")]
    forgotten: u64,
    /// Which runs began because the stream had lost something, and of which store.
    #[serde(default)]
    pub(crate) losses: Vec<Loss>,
    /// The logs of stores that were moved here, and brought their ids along.
    #[serde(default)]
    pub(crate) logs: BTreeMap<String, LogId>,
    #[serde(default)]
    pub(crate) pairings: Vec<Pairing>,
    /// The key of the hashes by which apps tell visitors apart, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) visitors: Option<String>,
}

/// A run of all gateways, from one loss to the next.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) number: u64,
    pub(crate) id: String,
}

/// A run that began because the stream had lost something.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Loss {
    /// The number of the run.
    pub(crate) run: u64,
    pub(crate) store: String,
}

/// A revoked token.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Revoked {
    /// When that was, in milliseconds since the Unix epoch.
    pub(crate) at: u64,
    /// The token's hash.
    pub(crate) hash: String,
}

/// The version of the form that is written here.
const FORM: u32 = 1;

/// The highest number of a run that is believed. Nobody gets there, and whoever wrote a higher one would leave no next one.
const MOST_RUNS: u64 = 1 << 53;

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Run {
    fn next(&self, id: String) -> Self {
        Self { number: self.number + 1, id }
    }
}

impl Shared {
    /// The document of a new installation. `id` is that of its first run.
    pub(crate) fn new(id: String) -> Self {
        Self { v: FORM, run: Run::default().next(id), ..Self::default() }
    }

    /// Reads one.
    ///
    /// # Errors
    ///
    /// When it is somebody else's, or of a newer version.
    pub(crate) fn read(text: &[u8]) -> Result<Self, String> {
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
        if read.run.number > MOST_RUNS || read.losses.iter().any(|loss| loss.run > MOST_RUNS) {
            return Err("what the gateways share is not understood: no run has that number".to_owned());
        }
        Ok(read)
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("BUG: a document that isn't JSON")
    }

    /// The runs that have begun.
    pub(crate) fn runs(&self) -> Runs {
        Runs { number: self.run.number, losses: self.losses.clone() }
    }

    /// Begins a new run, because the stream lost something of `store`. Does nothing if another gateway did so after the run
    /// with the number `seen`. `new_id` makes up the run's id.
    pub(crate) fn lose(&mut self, store: &StoreId, seen: u64, new_id: impl Fn() -> String) {
        if !self.losses.iter().any(|loss| loss.run > seen && loss.store == store.as_str()) {
            self.run = self.run.next(new_id());
            self.losses.push(Loss { run: self.run.number, store: store.to_string() });
        }
    }

    /// Whether the token with this hash was revoked.
    pub(crate) fn is_revoked(&self, hash: &str) -> bool {
        self.revoked.iter().any(|revoked| revoked.hash == hash)
    }

    /// Whether a token was revoked, as far as is known: it may be one that was forgotten.
    fn has_revoked(&self, token: &Token) -> bool {
        self.is_revoked(&token.hash) || token.created <= self.forgotten && !self.has_token(&token.hash)
    }

    /// Whether the token with this hash is good.
    pub(crate) fn has_token(&self, hash: &str) -> bool {
        self.tokens.iter().any(|token| token.hash == hash)
    }

    /// Whether it has everything that `other` has, which no later document may lack.
    pub(crate) fn includes(&self, other: &Self) -> bool {
        let has_token = |token: &Token| self.tokens.contains(token) || self.has_revoked(token);
        let has_revoked = |revoked: &Revoked| revoked.at <= self.forgotten || self.is_revoked(&revoked.hash);
        other.run <= self.run
            && other.tokens.iter().all(has_token)
            && other.revoked.iter().all(has_revoked)
            && other.logs.keys().all(|store| self.logs.contains_key(store))
            && (other.visitors.is_none() || self.visitors == other.visitors)
    }

    /// Adds what `other` has. Of two tokens with one name, the one that was made first counts, and the other is revoked: a
    /// name stands for one device.
    pub(crate) fn merge(&mut self, other: &Self, now: u64) {
        self.run = self.run.clone().max(other.run.clone());
        let known: BTreeSet<_> = self.revoked.iter().map(|revoked| revoked.hash.clone()).collect();
        self.revoked.extend(other.revoked.iter().filter(|revoked| !known.contains(&revoked.hash)).cloned());
        let mut tokens = std::mem::take(&mut self.tokens);
        tokens.retain(|token| other.has_token(&token.hash) || !other.has_revoked(token));
        self.tokens = tokens;
        for token in &other.tokens {
            if !self.has_token(&token.hash) && !self.has_revoked(token) {
                self.tokens.push(token.clone());
            }
        }
        self.forgotten = self.forgotten.max(other.forgotten);
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
        for Revoked { at, .. } in self.revoked.drain(..many) {
            self.forgotten = self.forgotten.max(at);
        }
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
        self.merge_pairings(&other.pairings, now);
        if self.visitors.is_none() {
            self.visitors.clone_from(&other.visitors);
        }
    }

    /// Adds pairings. One that led to a token led to that one. Of those of one name that are still open, the last counts.
    fn merge_pairings(&mut self, others: &[Pairing], now: u64) {
        for other in others {
            match self.pairings.iter_mut().find(|known| known.secret == other.secret) {
                Some(known) if known.token.is_none() => known.token.clone_from(&other.token),
                Some(_) => {}
                None => self.pairings.push(other.clone()),
            }
        }
        self.pairings.retain(|pairing| pairing.age(now) < REMEMBERED.as_millis());
        self.pairings.sort_by(|a, b| (b.made, &b.secret).cmp(&(a.made, &a.secret)));
        let mut open = BTreeSet::new();
        self.pairings.retain(|pairing| !pairing.is_open(now) || open.insert(pairing.name.as_str().to_owned()));
        self.pairings.truncate(2 * OPEN);
        self.pairings.reverse();
    }

    /// Takes in what was changed in a gateway's own files since the document was `before`. A token that is no longer in the
    /// file was revoked.
    fn change(&mut self, before: &Self, own: &Own, now: u64) {
        let tokens = own.tokens.as_deref().unwrap_or(&before.tokens);
        let gone = before.tokens.iter().filter(|token| !tokens.iter().any(|kept| kept.hash == token.hash));
        let revoked = gone.map(|token| Revoked { at: now, hash: token.hash.clone() }).collect();
        let changes = Self {
            tokens: tokens.iter().filter(|token| !before.is_revoked(&token.hash)).cloned().collect(),
            revoked,
            pairings: own.pairings.clone(),
            visitors: own.visitors.clone(),
            run: self.run.clone(),
            ..Self::default()
        };
        self.merge(&changes, now);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::access::Purpose;
    use super::*;
    use crate::fuzz::{fuzz, outcome};

    fn token(name: &str, created: u64) -> Token {
        let hash = blake3::hash(format!("{name}{created}").as_bytes()).to_hex().to_string();
        Token { device: name.parse().expect("a name"), hash, created, purpose: Purpose::Sync }
    }

    fn new() -> Shared {
        Shared::new("first".to_owned())
    }

    /// The files with these tokens.
    fn own(tokens: &[Token]) -> Own {
        Own { tokens: Some(tokens.to_vec()), ..Own::default() }
    }

    fn another() -> String {
        crate::random::hex::<16>()
    }

    fn names(shared: &Shared) -> Vec<&str> {
        shared.tokens.iter().map(|token| token.device.as_str()).collect()
    }

    #[test]
    fn what_was_added_and_revoked_at_two_gateways_is_alike_in_whichever_order_they_meet() {
        let mut base = new();
        base.tokens = vec![token("one", 1), token("two", 2)];
        let (mut here, mut there) = (base.clone(), base.clone());
        here.change(&base, &own(&[token("one", 1), token("two", 2), token("three", 3)]), 10);
        there.change(&base, &own(&[token("two", 2)]), 11);
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
        let mut before = new();
        before.tokens = vec![token("one", 1)];
        let mut after = before.clone();
        after.change(&before, &own(&[]), 10);
        assert!(after.tokens.is_empty());
        assert!(!before.includes(&after), "the loss is noticed");
        before.merge(&after, 11);
        assert_eq!(before, after, "what was revoked stays so");

        let (mut lost, kept) = (after.clone(), Shared { run: after.run.next(another()), ..after.clone() });
        assert!(!lost.includes(&kept));
        lost.merge(&kept, 12);
        assert_eq!(lost.run, kept.run, "the later run");
    }

    #[test]
    fn each_loss_begins_a_run_and_two_who_find_it_begin_one() {
        let (likes, todo) = ("likes".parse().expect("a name"), "todo".parse().expect("a name"));
        let mut all = new();
        let seen = all.run.clone();
        all.lose(&likes, seen.number, another);
        let first = all.run.clone();
        assert!(first > seen && first.id != seen.id);
        all.lose(&likes, seen.number, another);
        assert_eq!(all.run, first, "another gateway found the same");
        all.lose(&todo, seen.number, another);
        all.lose(&likes, first.number, another);
        let stores: Vec<_> = all.losses.iter().map(|loss| (loss.run, loss.store.as_str())).collect();
        assert_eq!(stores, [(2, "likes"), (3, "todo"), (4, "likes")]);
        let mut other = Shared { run: seen, ..all.clone() };
        other.losses.clear();
        other.merge(&all, 0);
        assert_eq!((other.run, other.losses), (all.run, all.losses));
    }

    #[test]
    fn a_gateway_that_was_away_suspects_each_store_that_lost_something_or_else_all() {
        let loss = |run, store: &str| Loss { run, store: store.to_owned() };
        let (likes, todo) = ("likes".parse().expect("a name"), "todo".parse().expect("a name"));
        let few = Runs { number: 5, losses: vec![loss(3, "likes"), loss(5, "todo")] };
        assert!(few.has_suspected(&likes, 2) && few.has_suspected(&todo, 3));
        assert!(!few.has_suspected(&likes, 3) && !few.has_suspected(&todo, 5));
        let many = (100..).take(LOSSES).map(|run| loss(run, "likes")).collect();
        let many = Runs { number: 99 + LOSSES as u64, losses: many };
        assert!(many.has_suspected(&todo, 50), "what it was is no longer known");
        assert!(!many.has_suspected(&todo, 100));
    }

    #[test]
    fn a_name_that_is_given_twice_stands_for_the_first() {
        let mut here = new();
        here.tokens = vec![token("phone", 5)];
        let mut there = here.clone();
        there.tokens = vec![token("phone", 4)];
        here.merge(&there, 6);
        assert_eq!(here.tokens, [token("phone", 4)]);
        assert!(here.is_revoked(&token("phone", 5).hash));
    }

    #[test]
    fn a_token_that_is_revoked_before_it_is_known_to_be_in_the_bucket_stays_revoked() {
        let base = new();
        let mut copy = SharedCopy { shared: Some(base.clone()), ..SharedCopy::default() };
        let phone = token("phone", 1);
        let with_phone = own(std::slice::from_ref(&phone));
        assert!(copy.offer(&with_phone) && !copy.offer(&with_phone));
        let written = copy.merged(Some(&base), &with_phone, 2, another).shared;
        assert_eq!(names(&written), ["phone"]);
        let kept = copy.kept(&written, &own(&[]), 3);
        assert_eq!(kept.tokens, Some(Vec::new()), "revoked while it was written");
        let next = copy.merged(Some(&written), &own(&[]), 3, another).shared;
        assert!(next.is_revoked(&phone.hash) && next.tokens.is_empty(), "revoked when nobody knew of the write");
        copy.keep(next, Revision::default());
        assert!(copy.offered.is_empty());
    }

    #[test]
    fn a_token_whose_revocation_was_forgotten_stays_revoked() {
        let mut away = new();
        away.tokens = vec![token("thief", 5), token("phone", 6)];
        let mut all = away.clone();
        all.change(&away, &own(&[token("phone", 6)]), 10);
        let many = |from: u64| (from..from + REVOKED as u64).map(|at| Revoked { at, hash: at.to_string() });
        all.merge(&Shared { revoked: many(11).collect(), ..all.clone() }, 20_000);
        assert_eq!(all.revoked.len(), REVOKED);
        assert_eq!(all.revoked.last().map(|last| last.at), Some(REVOKED as u64 + 10), "the newest stay");
        assert!(!all.is_revoked(&token("thief", 5).hash), "there were too many since");

        let copy = SharedCopy { shared: Some(away.clone()), ..SharedCopy::default() };
        let Merged { shared, has_lost } = copy.merged(Some(&all), &own(&away.tokens), 20_001, another);
        assert!(!has_lost);
        assert_eq!(names(&shared), ["phone"]);
        assert_eq!(shared, all);
        assert_eq!(copy.kept(&shared, &own(&away.tokens), 20_002).tokens, Some(vec![token("phone", 6)]));
        let mut other = away.clone();
        other.merge(&all, 20_001);
        assert_eq!(other, all, "in whichever order they meet");

        // A list that is full of later times has no room for what is revoked now.
        all.revoked = many(30_000).collect();
        let before = all.clone();
        all.change(&before, &own(&[]), 20_003);
        assert!(all.tokens.is_empty() && !all.is_revoked(&token("phone", 6).hash));
        let copy = SharedCopy { shared: Some(before.clone()), ..SharedCopy::default() };
        assert!(copy.merged(Some(&all), &own(&before.tokens), 20_004, another).shared.tokens.is_empty());
        let later = token("tablet", 20_005);
        let added = SharedCopy::default().merged(Some(&all), &own(&[later]), 20_005, another).shared;
        assert_eq!(names(&added), ["tablet"], "a new token is good");
    }

    #[test]
    fn a_document_after_which_no_run_could_come_is_refused() {
        for number in [u64::MAX, MOST_RUNS + 1] {
            let last = Shared { run: Run { number, id: "last".to_owned() }, ..new() };
            assert!(Shared::read(&last.to_bytes()).is_err());
        }
    }

    #[test]
    fn trust_38_fuzzed_documents_of_gateways_are_read_or_refused() {
        fuzz("gateways", &["\"run\":", "\"tokens\":", "\"revoked\":", "\"pairings\":", "\"v\":"], |input| {
            outcome(&Shared::read(input))
        });
    }
}
