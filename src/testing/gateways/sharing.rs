//! What gateways share through the bucket: their run, and who may sync.

use std::collections::BTreeSet;

use super::{Gateways, Role, WORKS};
use crate::engine::Device;
use crate::sync::access::{Purpose, Token};
use crate::sync::gateway::shared::{Merged, Own, Revision, Runs, Shared, SharedCopy};

/// What a gateway has of it on its disk.
#[derive(Debug, Clone, Default)]
pub(super) struct Access {
    copy: SharedCopy,
    own: Own,
}

impl Access {
    pub(super) fn begun(&self) -> Runs {
        self.copy.shared.as_ref().map(Shared::runs).unwrap_or_default()
    }

    /// All that the gateway knows.
    fn all(&self, now: u64) -> Shared {
        self.copy.merged(None, &self.own, now, String::new).shared
    }
}

impl Gateways<'_> {
    pub(super) fn poll_some_bucket(&mut self) {
        for at in self.gates() {
            if self.rng.chance(70) {
                self.poll_bucket(at, true);
            }
        }
    }

    /// Makes the bucket and a gateway level, and begins a run that is due.
    pub(super) fn poll_bucket(&mut self, at: usize, is_bad: bool) {
        if self.machines[at].is_cut_off || self.machines[at].replica.is_none() {
            return;
        }
        let end = self.bucket.end();
        let Access { copy, own } = &self.gate(at).access;
        let is_level = copy.is_of(&end) && copy.is_in(own);
        if !is_level && !self.swap(at, is_bad, None) {
            return;
        }
        if let Some(seen) = self.gate(at).lost {
            if !self.swap(at, is_bad, Some(seen)) {
                return;
            }
            self.gate(at).lost = None;
        }
        self.gate(at).is_heard = true;
        if !is_bad || self.rng.chance(70) {
            self.notice_run(at);
        }
    }

    /// Reads the document, and writes what comes of it. `lost` is the number of the run in which the stream lost something.
    /// Returns false if this has to be done again.
    fn swap(&mut self, at: usize, is_bad: bool, lost: Option<u64>) -> bool {
        let there = self.bucket.last();
        let mut revision = self.bucket.end();
        if is_bad && self.rng.chance(10) {
            // Another gateway may be faster.
            let other = *self.rng.pick(&self.gates());
            self.poll_bucket(other, false);
        }
        self.now += 1;
        let (now, store, runs) = (self.now, self.store.clone(), self.runs.clone());
        let new_id = || {
            runs.set(runs.get() + 1);
            format!("run-{}", runs.get())
        };
        let Access { copy, own } = &mut self.gate(at).access;
        copy.offer(own);
        let Merged { shared: mut next, .. } = copy.merged(there.as_ref(), own, now, new_id);
        next.visitors.get_or_insert_with(|| format!("visitors-{at}"));
        if let Some(seen) = lost {
            next.lose(&store, seen, new_id);
        }
        self.runs.set(runs.get());
        if there.as_ref() != Some(&next) {
            let Some(sequence) = self.bucket.write(revision.sequence, next.to_bytes()) else { return false };
            revision = Revision { sequence, time: String::new(), ..revision };
            if is_bad && self.rng.chance(10) {
                // Nobody heard that it was written.
                return false;
            }
        }
        let before = self.gate(at).access.copy.clone();
        if is_bad && self.rng.chance(10) {
            self.change_token(at);
        }
        let access = &mut self.gate(at).access;
        let kept = before.kept(&next, &access.own, now);
        let own = std::mem::replace(&mut access.own, kept.clone());
        // A token whose name another gateway gave to somebody meanwhile is gone before anybody heard of it.
        let is_kept = |token: &Token| kept.tokens.iter().flatten().any(|kept| kept.hash == token.hash);
        for token in own.tokens.iter().flatten() {
            if !is_kept(token) && !before.may_have_said(token) && !next.is_revoked(&token.hash) {
                self.tokens.remove(&token.hash);
            }
        }
        if is_bad && self.rng.chance(5) {
            // The files are as they are to be, and the copy isn't.
            self.crash(at);
            return false;
        }
        self.gate(at).access.copy.keep(next, revision);
        true
    }

    /// Tells a gateway's store of a new run.
    pub(super) fn notice_run(&mut self, at: usize) {
        let store = self.store.clone();
        let Some((_, gate)) = self.running(at) else { return };
        let (runs, seen) = (gate.access.begun(), gate.seen);
        gate.seen = runs.number;
        let Some(gateway) = gate.gateway.as_mut().filter(|_| runs.number != seen) else { return };
        gateway.begin_run();
        if runs.has_suspected(&store, seen) {
            gateway.suspect();
        }
        self.note(at);
    }

    /// Returns the run that a gateway names to devices.
    pub(super) fn run_of(&mut self, at: usize) -> Option<String> {
        let gate = self.gate(at);
        let shared = gate.access.copy.shared.as_ref().filter(|_| gate.is_heard && gate.lost.is_none());
        shared.map(|shared| shared.run.id.clone())
    }

    /// Whether a gateway and the bucket are level.
    pub(super) fn knows_bucket(&mut self, at: usize) -> bool {
        let end = self.bucket.end();
        let Access { copy, own } = &self.gate(at).access;
        copy.is_of(&end) && copy.is_in(own) && self.run_of(at).is_some()
    }

    pub(super) fn access_of(&self, at: usize) -> Access {
        match &self.machines[at].role {
            Role::Gate(gate) => gate.access.clone(),
            Role::Roamer(_) => Access::default(),
        }
    }

    /// A person revokes a device's token at a gateway, or adds one, whether or not it runs and hears the bucket.
    pub(super) fn change_token(&mut self, at: usize) {
        if !self.is_gate(at) {
            return;
        }
        self.now += 1;
        let (now, revokes, nth) = (self.now, self.rng.chance(50), self.rng.below(6));
        let Access { copy, own } = &mut self.gate(at).access;
        let tokens = own.tokens.get_or_insert_default();
        if revokes && !tokens.is_empty() {
            let revoked = tokens.remove(nth % tokens.len());
            if copy.may_have_said(&revoked) {
                self.revoked.insert(revoked.hash);
            } else {
                // It never left this machine.
                self.tokens.remove(&revoked.hash);
            }
            return;
        }
        let device: Device = format!("phone-{nth}").parse().expect(WORKS);
        if tokens.iter().all(|token| token.device != device) {
            let hash = format!("hash-{now}");
            tokens.push(Token { device, hash: hash.clone(), created: now, purpose: Purpose::Sync });
            self.tokens.insert(hash);
        }
    }

    /// The bucket loses its last documents, or is another.
    pub(super) fn bucket_forgets(&mut self) {
        match self.rng.below(8) {
            0 => self.bucket.recreate(),
            count => self.bucket.forget_last(1 + count / 3),
        }
        self.forget_what_no_gate_knows();
    }

    /// Forgets what no gateway and no document says any more: no one can bring it back.
    pub(super) fn forget_what_no_gate_knows(&mut self) {
        let now = self.now;
        let gates = self.machines.iter().filter_map(|machine| match &machine.role {
            Role::Gate(gate) => Some(gate.access.all(now)),
            Role::Roamer(_) => None,
        });
        let known: Vec<_> = gates.chain(self.bucket.last()).collect();
        self.revoked.retain(|hash| known.iter().any(|known| known.is_revoked(hash)));
        self.tokens.retain(|hash| known.iter().any(|known| known.has_token(hash)));
    }

    /// All gateways share the same. A revoked token stays revoked, as long as anybody remembers it, and no token is lost.
    pub(super) fn check_tokens(&mut self) {
        for at in self.gates() {
            self.poll_bucket(at, false);
        }
        let shared = self.bucket.last().expect("all gateways have seen it");
        for at in self.gates() {
            let Access { copy, own } = &self.gate(at).access;
            assert_eq!(copy.shared.as_ref(), Some(&shared), "gateway {at} has another document");
            assert!(copy.is_in(own), "gateway {at} has {own:?}");
        }
        let names: BTreeSet<_> = shared.tokens.iter().map(|token| token.device.as_str()).collect();
        assert_eq!(names.len(), shared.tokens.len(), "a name stands for one device");
        for hash in &self.tokens {
            let (is_valid, is_revoked) = (shared.has_token(hash), shared.is_revoked(hash));
            assert!(is_valid != is_revoked, "{hash}: {shared:?}");
            assert!(is_revoked || !self.revoked.contains(hash), "{hash} was revoked");
        }
    }
}
