//! Machine failures: processes are killed, the power is cut, syncs and writes fail.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Cluster, Deed, Stream, WORKS, device, is_kept, open, run_id};
use crate::engine::rusqlite::ffi;
use crate::engine::{Envelope, Fault, Outcome, Replica, Seq};
use crate::sync::{Incoming, NextPage, PushAnswer, WirePage, judged};
use crate::testing::scratch::copy_dir;
use crate::testing::{Faults, Rng, Syncs};

impl Cluster<'_> {
    /// Kills the process of a node, and usually restarts it.
    pub(super) fn crash(&mut self, at: usize) {
        let next = self.new_dir();
        let stays_down = self.rng.chance(30);
        let node = &mut self.nodes[at];
        let was_up = node.replica.is_some();
        if was_up {
            copy_dir(&node.dir, &next);
            node.replica = None;
            fs::remove_dir_all(&node.dir).expect(WORKS);
            node.dir = next;
        }
        node.stream = None;
        node.is_between_pages = false;
        if !was_up || !stays_down {
            node.replica = Some(open(self.simulation, &node.dir).expect(WORKS));
        }
    }

    /// Cuts the power of a node during a write. Nobody learns whether the write was stored.
    pub(super) fn cut_power(&mut self, at: usize) {
        if self.nodes[at].replica.is_none() {
            return;
        }
        let mut deed = self.choose_deed(at);
        let before = self.new_dir();
        let node = &mut self.nodes[at];
        copy_dir(&node.dir, &before);
        deed.run(node.replica.as_mut().expect(WORKS)).expect(WORKS);
        let after = self.new_dir();
        let left = self.new_dir();
        let node = &mut self.nodes[at];
        copy_dir(&node.dir, &after);
        let earlier = if self.rng.chance(30) { node.earlier.take() } else { None };
        leave_after_power_cut(&mut self.rng, &before, &after, earlier.as_deref(), &left);
        node.replica = None;
        node.stream = None;
        node.is_between_pages = false;
        fs::remove_dir_all(&node.dir).expect(WORKS);
        node.dir = left;
        node.replica = Some(open(self.simulation, &node.dir).expect(WORKS));
        if self.rng.chance(50) {
            node.earlier = Some(before);
        }
    }

    /// Chooses the next write of a node that is up. Afterwards the node has no stream, and may be between two pages.
    pub(super) fn choose_deed(&mut self, at: usize) -> Deed {
        if let Some(deed) = self.choose_deed_with_snapshot(at) {
            return deed;
        }
        let page = self.next_page(at);
        match (self.rng.below(5), page) {
            (0 | 1, Some((stream, page))) => Deed::Arrive(Box::new(stream), page),
            (2, _) => {
                let head = self.replica(at).standing().expect(WORKS).head;
                let base = if self.rng.chance(80) { self.replica(at).base() } else { Seq::START };
                Deed::TakeBack(Seq(base.0 + self.rng.next() % (head.0 - base.0 + 1)))
            }
            (3, _) => Deed::Settle,
            _ => Deed::Commit([self.new_event(), self.new_event()]),
        }
    }

    /// Chooses a step on the way from a snapshot to a whole log, sometimes, for a node that is up.
    fn choose_deed_with_snapshot(&mut self, at: usize) -> Option<Deed> {
        if self.rng.chance(50) {
            let snapshot = self.download(at)?;
            self.drop_stream(at);
            return Some(Deed::Join(Some(snapshot)));
        }
        if self.rng.chance(50) || self.replica(at).base() == Seq::START {
            return None;
        }
        let limit = 1 + self.rng.below(7);
        let proof = self.proof(at);
        let deed = match (self.rng.below(4), proof) {
            (0, _) => Some(Deed::DropBase),
            (_, Some(proof)) => Some(Deed::Conclude(proof)),
            _ => {
                let (backfill, page) = self.history_page(at, limit)?;
                Some(Deed::ArriveHistory(Box::new(backfill), page))
            }
        };
        self.drop_stream(at);
        deed
    }

    /// Records the outcomes of events that were committed at one node only. Some may have been stored earlier, without
    /// an answer. Those come first in the order. An event refused next to them is judged again, and comes after them if
    /// it passes.
    pub(super) fn acknowledge(&mut self, at: usize, events: &[Envelope], outcomes: &[Outcome]) {
        let kept = events.iter().zip(outcomes).filter(|(_, outcome)| is_kept(outcome));
        let (known, new): (Vec<_>, Vec<_>) = kept.partition(|(_, outcome)| matches!(outcome, Outcome::Known(_)));
        for (event, _) in known.into_iter().chain(new) {
            self.nodes[at].committed.push(event.id);
            self.acknowledged.push(event.clone());
        }
    }

    /// Makes syncs fail while a node writes. Then the process opens the store again, in one of three states: with all
    /// that it wrote, as the page cache still has it; without some of it, because the cache lost it; or after a power
    /// cut on top of that.
    pub(super) fn failed_sync(&mut self, at: usize, faults: Faults) {
        if self.nodes[at].replica.is_none() {
            return;
        }
        let mut deed = self.choose_deed(at);
        let before = self.new_dir();
        copy_dir(&self.nodes[at].dir, &before);
        let which = self.choose_syncs(&self.nodes[at].dir.clone());
        let node = &mut self.nodes[at];
        let result = while_syncs_fail(faults, &which, || deed.run(node.replica.as_mut().expect(WORKS)));
        let earlier = self.nodes[at].earlier.take();
        let left = self.leave_after_failed_sync(&which, &before, &self.nodes[at].dir.clone(), earlier.as_deref());
        self.nodes[at].replica = None;
        let replica = self.open_on_bad_disk(&left, faults);
        let node = &mut self.nodes[at];
        fs::remove_dir_all(&node.dir).expect(WORKS);
        node.dir = left;
        node.replica = Some(replica);
        node.stream = None;
        node.is_between_pages = false;
        let Deed::Commit(events) = deed else { return };
        match result {
            Ok(outcomes) => self.acknowledge(at, &events, &outcomes),
            // A client that got no answer posts the same events again.
            Err(_) if self.rng.chance(50) => {
                self.look_at(at);
                let outcomes = self.replica(at).commit(&events).expect(WORKS);
                self.acknowledge(at, &events, &outcomes);
            }
            Err(_) => {}
        }
    }

    /// Makes syncs fail at the authority, while a node pushes to it or it commits events of its own.
    pub(super) fn failed_sync_at_authority(&mut self, at: usize, faults: Faults) {
        let outgoing = if self.connect(at) { self.next_push(at) } else { None };
        let events = self.some_events();
        let before = self.new_dir();
        copy_dir(&self.authority_dir, &before);
        let which = self.choose_syncs(&self.authority_dir.clone());
        let (run, device) = (run_id(self.run), device(&format!("node-{at}")));
        match outgoing {
            Some(outgoing) => {
                let incoming =
                    Incoming::check(outgoing.push.clone(), &run, &device).expect("the stream is of this run");
                let authority = self.authority();
                if let Ok(pushed) = while_syncs_fail(faults, &which, || judged(incoming.store(Some(authority)))) {
                    let pushed = self.on_the_wire(pushed.expect("nobody else changes the log"));
                    let pushed = PushAnswer::Pushed(pushed);
                    assert_eq!(self.answer(at, &outgoing, pushed), Ok(()));
                }
            }
            None => {
                let authority = self.authority();
                if let Ok(outcomes) = while_syncs_fail(faults, &which, || authority.commit(&events)) {
                    let kept = events.into_iter().zip(outcomes).filter(|(_, outcome)| is_kept(outcome));
                    self.acknowledged.extend(kept.map(|(event, _)| event));
                }
            }
        }
        let earlier = self.authority_earlier.take();
        let left = self.leave_after_failed_sync(&which, &before, &self.authority_dir.clone(), earlier.as_deref());
        self.authority = None;
        drop(self.open_on_bad_disk(&left, faults));
        self.restart_authority(Some(left));
        // A process that has ended ends its streams, whatever the network does.
        self.drop_stream(at);
    }

    /// Chooses which syncs fail for the store in `dir`: usually those of the eventlog, otherwise all of them or those
    /// of all other files.
    pub(super) fn choose_syncs(&mut self, dir: &Path) -> Syncs {
        let wal = dir.join("eventlog.db-wal");
        match self.rng.below(4) {
            0 => Syncs::All,
            1 => Syncs::AllBut(wal),
            _ => Syncs::Of(wal),
        }
    }

    /// Creates the files that are left after such syncs have failed between `before` and `after`, and returns their
    /// directory.
    pub(super) fn leave_after_failed_sync(
        &mut self,
        which: &Syncs,
        before: &Path,
        after: &Path,
        earlier: Option<&Path>,
    ) -> PathBuf {
        let left = self.new_dir();
        match self.rng.below(3) {
            // The eventlog is on the disk, or at least in the page cache.
            _ if matches!(which, Syncs::AllBut(_)) => copy_dir(after, &left),
            0 => copy_dir(after, &left),
            1 => leave_after_power_cut(&mut self.rng, before, after, Some(after), &left),
            _ => leave_after_power_cut(&mut self.rng, before, after, earlier, &left),
        }
        left
    }

    /// Opens the store in `dir`, perhaps after a first attempt whose syncs fail, too.
    pub(super) fn open_on_bad_disk(&mut self, dir: &Path, faults: Faults) -> Replica {
        if self.rng.chance(30) {
            let opened = while_syncs_fail(faults, &Syncs::All, || open(self.simulation, dir));
            assert!(opened.is_err(), "it opened, and nothing that it found is known to be on the disk");
        }
        open(self.simulation, dir).expect(WORKS)
    }

    /// Takes away a node's stream, if it has one, and returns it with the page that would come next.
    pub(super) fn next_page(&mut self, at: usize) -> Option<(Stream, WirePage)> {
        if !self.connect(at) {
            return None;
        }
        let limit = 1 + self.rng.below(6);
        let mut stream = self.nodes[at].stream.take()?;
        let NextPage::Page(page) = self.wire(&mut stream.start, stream.sent, limit) else { return None };
        Some((stream, page))
    }

    /// Cuts the power of the authority during a write.
    pub(super) fn cut_power_of_authority(&mut self) {
        let (before, after, left) = (self.new_dir(), self.new_dir(), self.new_dir());
        copy_dir(&self.authority_dir, &before);
        let events = self.some_events();
        if self.rng.chance(50) {
            let pushed: Vec<_> = events.into_iter().map(|event| (event, device("elsewhere"))).collect();
            self.authority().add(&pushed).expect(WORKS);
        } else {
            self.authority().commit(&events).expect(WORKS);
        }
        copy_dir(&self.authority_dir, &after);
        let earlier = if self.rng.chance(30) { self.authority_earlier.take() } else { None };
        leave_after_power_cut(&mut self.rng, &before, &after, earlier.as_deref(), &left);
        self.restart_authority(Some(left));
        if self.rng.chance(50) {
            self.authority_earlier = Some(before);
        }
    }

    /// Makes the machine of a node fail in the middle of a write. Then the process restarts.
    pub(super) fn machine_fault(&mut self, at: usize, faults: Faults) {
        if self.nodes[at].replica.is_none() {
            return;
        }
        let mut deed = self.choose_deed(at);
        (faults.fail_after)(
            self.rng.next() as u32 % 8,
            *self.rng.pick(&[ffi::SQLITE_FULL, ffi::SQLITE_IOERR_FSYNC, ffi::SQLITE_NOMEM]),
        );
        let result = deed.run(self.replica(at));
        assert_eq!(result.is_ok(), (faults.mend)(), "{result:?}");
        if let (Deed::Commit(events), Ok(outcomes)) = (deed, result) {
            self.acknowledge(at, &events, &outcomes);
        }
        // A fault ends the process. If there was none, this is as good a moment to end it.
        self.nodes[at].is_between_pages = false;
        self.crash(at);
        if self.nodes[at].replica.is_none() {
            self.crash(at);
        }
    }

    /// Makes the machine of the authority fail in the middle of a write. Then the process restarts.
    pub(super) fn machine_fault_at_authority(&mut self, faults: Faults) {
        let events = [self.new_event(), self.new_event(), self.new_event()];
        let is_pushed = self.rng.chance(50);
        let after = self.rng.next() as u32 % 4;
        (faults.fail_after)(after, *self.rng.pick(&[ffi::SQLITE_FULL, ffi::SQLITE_IOERR_FSYNC, ffi::SQLITE_NOMEM]));
        let result = if is_pushed {
            let pushed: Vec<_> = events.iter().map(|event| (event.clone(), device("elsewhere"))).collect();
            self.authority().add(&pushed)
        } else {
            self.authority().commit(&events)
        };
        assert_eq!(result.is_ok(), (faults.mend)(), "{result:?}");
        if let Ok(outcomes) = result {
            let kept = events.into_iter().zip(outcomes).filter(|(_, outcome)| is_kept(outcome));
            self.acknowledged.extend(kept.map(|(event, _)| event));
        }
        self.restart_authority(None);
    }
}

/// Writes to `left` what a power cut may leave of a store, given its files before and after a write. The eventlog keeps
/// everything that it had synced, and any of the sectors that it was writing. The state and the witness are never
/// synced with a commit, so they are as they were before the write, or as in `earlier`. Neither is ever ahead of the
/// eventlog, which they follow only once it is synced. A snapshot's file is there before the eventlog needs it, and until it
/// needs it no more. Whatever opening finds counts as synced from then on. Nothing
/// here can show that opening makes sure of that; the recorder's tests do.
pub(in crate::testing) fn leave_after_power_cut(
    rng: &mut Rng,
    before: &Path,
    after: &Path,
    earlier: Option<&Path>,
    left: &Path,
) {
    fs::create_dir_all(left).expect(WORKS);
    fs::copy(before.join("eventlog.db"), left.join("eventlog.db")).expect(WORKS);
    let read = |dir: &Path| fs::read(dir.join("eventlog.db-wal")).unwrap_or_default();
    let (mut wal, written) = (read(before), read(after));
    let mut is_all_there = false;
    let is_same_file =
        fs::read(before.join("eventlog.db")).expect(WORKS) == fs::read(after.join("eventlog.db")).expect(WORKS);
    if is_same_file && written.starts_with(&wal) {
        let synced = wal.len();
        let kind = rng.below(4);
        is_all_there = kind == 3;
        for (nth, sector) in written[synced..].chunks(512).enumerate() {
            match kind {
                0 => break,
                1 if rng.chance(10) => break,
                // The file has grown beyond this sector, but the sector was never written.
                2 if rng.chance(30) => wal.resize(synced + nth * 512 + sector.len(), 0),
                _ => wal.extend_from_slice(sector),
            }
        }
    }
    let base = [after, before].map(|dir| dir.join("base.db"));
    let [is_after, is_before] = [base[0].exists(), base[1].exists()];
    if is_after || is_before && !(is_all_there && rng.chance(50)) {
        fs::copy(&base[usize::from(!is_after)], left.join("base.db")).expect(WORKS);
    }
    if !wal.is_empty() {
        fs::write(left.join("eventlog.db-wal"), wal).expect(WORKS);
    }
    let state = earlier.unwrap_or(before);
    for file in ["state.db", "state.db-wal"] {
        if state.join(file).exists() {
            fs::copy(state.join(file), left.join(file)).expect(WORKS);
        }
    }
    let witness = fs::read(rng.pick(&[before, state]).join("witness")).expect(WORKS);
    let end = if rng.chance(10) { rng.below(witness.len() + 1) } else { witness.len() };
    fs::write(left.join("witness"), &witness[..end]).expect(WORKS);
}

/// Runs `act` while these syncs fail.
fn while_syncs_fail<T: Send>(
    faults: Faults,
    which: &Syncs,
    act: impl FnOnce() -> Result<T, Fault> + Send,
) -> Result<T, Fault> {
    let (mut act, mut result) = (Some(act), None);
    (faults.while_syncs_fail)(which, &mut || {
        let act = act.take().expect("BUG: it is done once");
        result.insert(act()).is_err()
    });
    result.expect("BUG: it is done")
}
