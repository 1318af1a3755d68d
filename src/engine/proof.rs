//! Proves a snapshot by the events behind it, beside the thread that writes: a state made from them has to be the
//! snapshot's.

use std::path::{Path, PathBuf};

use super::contents::Contents;
use super::error::{Fault, is_damage, is_of_machine};
use super::eventlog::{Checkpoint, Eventlog, Tip};
use super::materialize::{Enders, Stop};
use super::opening::{beside, remove_file};
use super::place::{Cursor, Generation, Seq};
use super::replica::replay_log;
use super::setup::{Files, Setup};
use super::snapshot::open_strangers;
use super::state::State;
use crate::limits::engine::replica::PER_COMMIT;

/// The result of replaying the events behind a snapshot. [`Replica::conclude`](super::Replica::conclude) acts on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proof {
    /// The generation of the eventlog whose events were replayed.
    pub(super) generation: Generation,
    /// The place of the snapshot.
    pub(super) base: Seq,
    /// The state that follows from the events.
    pub(super) replayed: Contents,
    /// The snapshot's state, if it can be read.
    pub(super) snapshot: Option<Contents>,
}

impl Proof {
    /// Returns whether the snapshot is the state that follows from the events.
    pub fn is_right(&self) -> bool {
        self.snapshot.is_some_and(|snapshot| snapshot.follow_from_the_same(&self.replayed))
    }

    /// Returns whether the snapshot is that state to the letter: it says why events have no effect in this program's words.
    pub(super) fn is_to_the_letter(&self) -> bool {
        self.snapshot == Some(self.replayed)
    }
}

/// Replays the events behind the snapshot of the store in `files`, and compares the state that they make with it. Takes
/// as long as rebuilding the state, so it belongs on a thread of its own. Returns `None` if there is nothing to prove
/// yet: the log is whole, or its history isn't complete.
///
/// # Errors
///
/// A fault of the machine.
pub fn prove(files: &Files, setup: &Setup) -> Result<Option<Proof>, Fault> {
    let begun = Eventlog::snapshot(&files.eventlog())?;
    let Tip { generation, base, history, .. } = *begun.tip();
    drop(begun);
    if base.seq == Seq::START || history.after < base.seq {
        return Ok(None);
    }
    let scratch = Scratch::new(files);
    let Some(mut state) = State::scratch(&scratch.0, None, &setup.schema)? else { return Ok(None) };
    let (mut enders, mut point) = (Enders::new(), Checkpoint::default());
    while point.seq < base.seq {
        // Each portion has a snapshot of its own: while one is held, the WAL can't start over.
        let log = Eventlog::snapshot(&files.eventlog())?;
        if (log.tip().generation, log.tip().base) != (generation, base) {
            return Ok(None);
        }
        let milestone = log.milestone_after(point.seq, PER_COMMIT)?;
        let milestone = if milestone.seq > base.seq { base } else { milestone };
        if log.walk(point, Some(milestone.seq))? != milestone {
            return Err(Fault::Damaged("some events of the history are not those that were stored".to_owned()));
        }
        state.begin()?;
        match replay_log(&log, &state, milestone.seq, &enders) {
            Ok(()) => {}
            Err(Stop::Ended(id, why)) => {
                state.rollback()?;
                enders.insert(id, why);
                continue;
            }
            Err(Stop::Fault(fault)) => return Err(fault),
        }
        state.commit(Cursor { generation, seq: milestone.seq, digest: milestone.digest })?;
        point = milestone;
    }
    let replayed = state.contents()?;
    let snapshot = snapshot_contents(&files.base()).map_err(Fault::state)?;
    Ok(Some(Proof { generation, base: base.seq, replayed, snapshot }))
}

/// Returns what a snapshot holds, or `None` if the file is damaged. Checks its indexes, too: no digest of rows covers them,
/// and the running state has the same ones.
fn snapshot_contents(path: &Path) -> rusqlite::Result<Option<Contents>> {
    let contents = || {
        let conn = open_strangers(path)?;
        let found: String = conn.query_row("PRAGMA integrity_check(1)", (), |row| row.get(0))?;
        if found == "ok" { Contents::of(&conn).map(Some) } else { Ok(None) }
    };
    match contents() {
        Err(error) if is_damage(&error) || !is_of_machine(&error) => Ok(None),
        other => other,
    }
}

/// The path of a state that is deleted when this value is dropped.
pub(super) struct Scratch(pub(super) PathBuf);

impl Scratch {
    pub(super) fn new(files: &Files) -> Self {
        Self(files.scratch())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Opening the store deletes what is left.
        for path in [self.0.clone(), beside(&self.0, "-journal")] {
            drop(remove_file(&path));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::engine::{
        Device, Envelope, Error, EventCursor, EventId, PageSize, Replica, Snapshot, StoreLimits, Stores, Told,
    };
    use crate::likes::{self, LikeAdded};

    #[tokio::test]
    async fn a_store_says_that_the_history_is_needed_first_and_goes_on_with_it() {
        let scratch = tempfile::tempdir().unwrap();
        let setup = || Setup {
            schema: Arc::new(likes::schema()),
            device: "hub".parse().unwrap(),
            executable: "one".to_owned(),
            progress: |_, _| {},
        };
        let files = Files::in_dir(scratch.path().join("hub"));
        let mut hub = Replica::open(files.clone(), setup()).unwrap();
        let likes: Vec<_> =
            (0..50).map(|n| Envelope::new(EventId::from_parts(n, [7; 10]), &LikeAdded {}).unwrap()).collect();
        hub.commit(&likes).unwrap();
        let path = scratch.path().join("snapshot");
        let snapshot = Snapshot::make(&files, &path).unwrap().unwrap();
        let checked = snapshot.check(&path, &setup().schema).unwrap();

        let stores = Stores::following(&scratch.path().join("device"), setup(), StoreLimits::default()).unwrap();
        let store = stores.get(&"likes".parse().unwrap()).unwrap();
        assert!(store.with(move |replica| replica.join(checked)).await.unwrap());
        assert_eq!(store.read(likes::count()).await.unwrap(), 50);
        let missing = Error::HistoryMissing { here: 0, length: 50 };
        assert_eq!(store.promote().await.unwrap_err(), missing);
        assert_eq!(store.adopt().await.unwrap_err(), missing);
        assert!(missing.to_string().contains("0 of the 50 events"), "{missing}");
        assert_eq!(store.history(|_| Some(0)).unwrap().missing, 50);
        assert_eq!(store.prove().await.unwrap(), None);
        // A stream of events waits for the history, and then tells it.
        let mut events = store.events(EventCursor::START);
        assert_eq!(events.next().await.unwrap_err(), missing);

        // Another device's export is the history, too.
        let mut exported = Vec::new();
        crate::engine::export(&files, &mut exported).unwrap();
        let here: Device = "here".parse().unwrap();
        let imported = crate::engine::import(&store, &here, &exported[..]).await.unwrap();
        assert_eq!((imported.added, imported.known), (50, 0));
        assert!(!store.files().base().exists(), "it is proven");
        for seq in 1..=50 {
            match events.next().await.unwrap() {
                Told::Confirmed { entry, .. } => assert_eq!((entry.seq, entry.origin.as_str()), (Seq(seq), "hub")),
                other => panic!("{other:?}"),
            }
        }
        let history = store.history(|_| Some(0)).unwrap();
        assert_eq!((history.missing, history.days[&0]), (0, 50));
        assert_eq!(store.prove().await.unwrap(), None);
        let imported = crate::engine::import(&store, &here, &exported[..]).await.unwrap();
        assert_eq!((imported.added, imported.known), (0, 50));
        store.promote().await.unwrap();
        let all = store.look(|replica| replica.entries(Seq::START, PageSize::events(100))).await.unwrap().unwrap();
        assert_eq!(all, hub.entries(Seq::START, PageSize::events(100)).unwrap());
        assert_eq!(store.read(likes::count()).await.unwrap(), 50);
    }
}
