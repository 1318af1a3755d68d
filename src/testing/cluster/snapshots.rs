//! Snapshots: the hub makes and keeps them, devices begin with one, fetch the history behind it and prove it.

use std::fs;
use std::path::PathBuf;
use std::rc::Rc;

use rusqlite::Connection;

use super::checks::{ids_of, log_of};
use super::{Cluster, WORKS, device, setup};
use crate::engine::{
    CheckedSnapshot, Concluded, Digest, Entry, Files, HistoryPosition, Page, Proof, Seq, Snapshot, SnapshotError, prove,
};
use crate::sync::{Backfill, Backfilled, NextPage, Start, WirePage, ended, judged};
use crate::testing::Rng;

/// How many snapshots a hub keeps.
const KEPT: usize = 8;

/// A snapshot that a hub made at some time, maybe before it was restored.
pub(super) struct Kept {
    snapshot: Snapshot,
    path: PathBuf,
    below: Below,
}

/// What a snapshot was made from, which a device that joins by it doesn't have.
#[derive(Clone)]
pub(super) struct Below {
    /// The hub's log up to the snapshot, with the places on the wire.
    pub(super) entries: Rc<[Entry]>,
    /// Whether the state that it holds isn't the one that follows from them.
    pub(super) is_wrong: bool,
}

impl Cluster<'_> {
    /// Has the hub make a snapshot. A hostile hub's is of another state, or says that it is of another log.
    pub(super) fn make_snapshot(&mut self) {
        let path = self.new_dir();
        let files = Files::in_dir(&self.authority_dir);
        let Some(mut snapshot) = Snapshot::make(&files, &path).expect(WORKS) else { return };
        let stride = self.stride;
        snapshot.seq.0 *= stride;
        let entries = log_of(self.authority()).into_iter();
        let entries = entries.map(|entry| Entry { seq: Seq(entry.seq.0 * stride), ..entry });
        let entries: Rc<[Entry]> = entries.filter(|entry| entry.seq <= snapshot.seq).collect();
        assert_eq!(entries.len() as u64, snapshot.length);
        let conn = Connection::open(&path).expect(WORKS);
        if self.rng.chance(5) {
            snapshot.digest = Digest([7; 32]);
        }
        let is_wrong = self.rng.chance(10) && spoil(&conn);
        let sql = "UPDATE likewise_cursor SET seq = ?1, digest = ?2";
        conn.execute(sql, (snapshot.seq.0, snapshot.digest.0)).expect(WORKS);
        drop(conn);
        let bytes = fs::read(&path).expect(WORKS);
        snapshot.bytes = bytes.len() as u64;
        snapshot.file_digest = Digest(*blake3::hash(&bytes).as_bytes());
        if self.snapshots.len() == KEPT {
            self.snapshots.remove(0);
        }
        self.snapshots.push(Kept { snapshot, path, below: Below { entries, is_wrong } });
    }

    /// Has a device without a log begin with one of the hub's snapshots, usually of its present log.
    pub(super) fn join(&mut self, at: usize) {
        if self.rng.chance(5) && self.nodes[at].replica.is_some() {
            // The machine of a device fails in the middle of a download.
            fs::write(self.nodes[at].dir.join("snapshot.part"), "SQLite format 3").expect(WORKS);
            self.crash(at);
        }
        if let Some(snapshot) = self.download(at) {
            self.drop_stream(at);
            let joined = self.replica(at).join(snapshot).expect(WORKS);
            let known = self.nodes[at].below.as_ref().and_then(|below| below.entries.last()).expect(WORKS).seq;
            assert_eq!(self.replica(at).base(), if joined { known } else { Seq::START });
            self.look_at(at);
        }
    }

    /// Downloads a snapshot to a device that can join by it, if there is one. The download may break, and bits may flip.
    pub(super) fn download(&mut self, at: usize) -> Option<CheckedSnapshot> {
        if self.nodes[at].is_cut_off || !self.nodes[at].replica.as_ref().is_some_and(|replica| replica.can_join()) {
            return None;
        }
        if self.snapshots.is_empty() || self.rng.chance(40) {
            self.make_snapshot();
        }
        let log = self.authority().standing().expect(WORKS).whose.log_id();
        let known = self.replica(at).standing().expect(WORKS).whose.log_id();
        let is_any_log = self.rng.chance(5);
        let fitting = |kept: &&Kept| {
            known.is_none_or(|known| known == kept.snapshot.log) && (is_any_log || Some(kept.snapshot.log) == log)
        };
        let fitting: Vec<&Kept> = self.snapshots.iter().filter(fitting).collect();
        if fitting.is_empty() {
            return None;
        }
        let Kept { snapshot, path, below } = *self.rng.pick(&fitting);
        let (snapshot, below) = (*snapshot, below.clone());
        let mut bytes = fs::read(path).expect(WORKS);
        let to = self.nodes[at].dir.join("snapshot.part");
        let is_right = damage(&mut self.rng, &mut bytes);
        fs::write(&to, &bytes).expect(WORKS);
        match snapshot.check(&to, &(self.simulation.schema)()) {
            Ok(checked) => {
                assert!(is_right, "a damaged file is believed");
                self.nodes[at].below = Some(below);
                Some(checked)
            }
            Err(SnapshotError::Wrong(_)) if !is_right => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Fetches all of a device's history.
    pub(super) fn fetch_all_history(&mut self, at: usize) {
        while self.replica(at).base() > Seq::START {
            self.fetch_history(at);
            if self.nodes[at].replica.is_none() {
                self.crash(at);
            }
            if !self.connect(at) {
                return;
            }
        }
    }

    /// Returns how far a device's history has come, if it has one and the hub has vouched for its log.
    pub(super) fn history(&mut self, at: usize) -> Option<HistoryPosition> {
        if !self.connect(at) {
            return None;
        }
        self.replica(at).history()
    }

    /// Returns the next page of a device's history.
    pub(super) fn history_page(&mut self, at: usize, limit: usize) -> Option<(Backfill, WirePage)> {
        let position = self.history(at).filter(|position| !position.is_complete())?;
        let after = Seq(position.after.0 / self.stride);
        let start = judged(Start::vouch(Some(self.authority()), Some(position.log), after, position.digest));
        let mut start = match start.expect(WORKS) {
            Ok(start) => start,
            Err(_) => {
                assert!(self.nodes[at].is_lied_to, "the hub has vouched for the base");
                self.drop_base(at);
                return None;
            }
        };
        let backfill = Backfill::begin(position, &start.hello("any")).expect("it is the same log");
        let NextPage::Page(mut page) = self.wire(&mut start, position.after, limit) else { return None };
        if self.rng.chance(2)
            && let Some(entry) = page.events.first_mut()
        {
            // Another origin makes another log of it, whose digest doesn't come out as the snapshot's.
            entry.origin = device("liar");
            self.nodes[at].is_lied_to = true;
        }
        Some((backfill, page))
    }

    /// Fetches some of a device's history, and proves it once all of it is here.
    pub(super) fn fetch_history(&mut self, at: usize) {
        let base = self.nodes[at].replica.as_ref().map_or(Seq::START, |replica| replica.base());
        self.nodes[at].is_lied_to &= base > Seq::START;
        let limit = 1 + self.rng.below(7);
        for _ in 0..=self.rng.below(2) {
            let Some((mut backfill, page)) = self.history_page(at, limit) else { break };
            let arrived = ended(backfill.arrive(self.replica(at), page)).expect(WORKS).expect("nobody else changes it");
            self.replica(at).settle_arrivals().expect(WORKS);
            self.look_at(at);
            match arrived {
                Backfilled::More => {}
                Backfilled::Complete => break,
                Backfilled::Disproven => {
                    assert!(self.nodes[at].is_lied_to, "the hub has vouched for the base");
                    self.drop_stream(at);
                }
            }
        }
        self.conclude(at);
    }

    /// Replays a device's history, if all of it is here.
    pub(super) fn proof(&self, at: usize) -> Option<Proof> {
        let node = &self.nodes[at];
        node.replica.as_ref()?;
        prove(&Files::in_dir(&node.dir), &setup(self.simulation)).expect(WORKS)
    }

    /// Proves a device's history, if all of it is here. The device may crash before it acts on the proof.
    pub(super) fn conclude(&mut self, at: usize) {
        let Some(proof) = self.proof(at) else { return };
        if self.rng.chance(20) {
            self.crash(at);
            if self.nodes[at].replica.is_none() {
                return;
            }
        }
        let is_wrong = self.nodes[at].below.as_ref().expect(WORKS).is_wrong;
        let concluded = self.replica(at).conclude(proof).expect(WORKS);
        assert_eq!(concluded, if is_wrong { Concluded::Disproven } else { Concluded::Proven });
        if is_wrong {
            self.drop_stream(at);
        }
        self.look_at(at);
    }

    /// Gives a device the history behind its snapshot from a device that has it, as an import does. Returns whether there is one.
    pub(super) fn import_history(&mut self, at: usize) -> bool {
        let Some(position) = self.replica(at).history() else { return self.replica(at).base() == Seq::START };
        let Some(below) = self.nodes[at].below.clone() else { return false };
        let has_it = |node: &super::Node| {
            let replica = node.replica.as_ref()?;
            let log = log_of(replica);
            log.starts_with(&below.entries).then_some(log)
        };
        let Some(mut entries) = self.nodes.iter().find_map(has_it) else { return false };
        entries.retain(|entry| entry.seq > position.after && entry.seq <= position.until);
        if let Some(last) = entries.last() {
            let next = last.seq;
            self.replica(at).arrive_history(&Page { entries, next, more: false }).expect(WORKS);
        }
        self.conclude(at);
        if self.nodes[at].replica.is_none() {
            self.crash(at);
            self.conclude(at);
        }
        self.nodes[at].replica.is_some() && self.replica(at).base() == Seq::START
    }

    /// Gives up a device's base.
    pub(super) fn drop_base(&mut self, at: usize) {
        if self.nodes[at].replica.is_none() {
            return;
        }
        self.drop_stream(at);
        let replica = self.replica(at);
        let before = ids_of(replica);
        replica.drop_base().expect(WORKS);
        assert_eq!(ids_of(replica), before, "what is given up keeps its place before what is newer");
        self.look_at(at);
    }
}

/// Damages a download, sometimes. Returns whether it is right.
fn damage(rng: &mut Rng, bytes: &mut Vec<u8>) -> bool {
    match rng.below(20) {
        0 => bytes.truncate(rng.below(bytes.len())),
        1 => {
            let at = rng.below(bytes.len());
            bytes[at] ^= 1 << rng.below(8);
        }
        2 => bytes.push(0),
        _ => return true,
    }
    false
}

/// Changes the state that a snapshot holds. Returns whether it held anything.
fn spoil(conn: &Connection) -> bool {
    let sql = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'likewise~_%' ESCAPE '~'
               AND name NOT LIKE 'sqlite~_%' ESCAPE '~'";
    let tables: Vec<String> = conn
        .prepare(sql)
        .and_then(|mut statement| statement.query_map((), |row| row.get(0))?.collect())
        .expect("BUG: a snapshot has tables");
    let emptied = tables.iter().map(|table| conn.execute(&format!("DELETE FROM \"{table}\""), ()).unwrap_or_default());
    let made_up = "INSERT INTO likewise_skipped VALUES (unhex('0190d1e53f5c7bb28a3e5d4f6c7b8a90'), 'made up')";
    emptied.sum::<usize>() + conn.execute(made_up, ()).expect("BUG: a snapshot lists skipped events") > 0
}
