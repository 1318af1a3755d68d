//! The snapshots that a hub makes of its stores, and keeps for devices that join.
//!
//! A snapshot is a copy of the committed state, made beside the thread that writes. It is worth its cost for many devices,
//! so one is made at a time, and the same one is given out until the log has grown by much. The one before is kept, too: a
//! device whose download broke goes on with it. Snapshots are copies of what is here anyway. So no backup has them, and whatever
//! isn't as it was when it was made is deleted.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::authority::{Start, judged};
use super::snapshot::tag;
use crate::engine::{
    Digest, Error, Fault, Files, Replica, Snapshot, Store, StoreId, Stores, create_private_dir, free_bytes,
    open_private_file,
};
use crate::limits::sync::kept::{
    AFTER_FAILURE, BYTES_AN_EVENT, EVENTS, FOR, IN_ALL, LEFT_FREE, OF_A_STORE, SHORTEST, TIDY_EVERY, WAIT,
};

/// Where they are, in the directory of their store.
const DIR: &str = "snapshots";

/// The one that is being made.
const MAKING: &str = "making.db";

/// The snapshots of all stores.
#[derive(Clone)]
pub(crate) struct Snapshots {
    shared: Arc<Shared>,
}

struct Shared {
    stores: Stores,
    shelves: Mutex<HashMap<StoreId, Arc<tokio::sync::Mutex<Shelf>>>>,
    /// Held while one is made: two at a time would only share the disk.
    making: tokio::sync::Mutex<()>,
}

/// The snapshots of a store, the newest last.
#[derive(Default)]
struct Shelf {
    is_read: bool,
    kept: Vec<Kept>,
    /// When it last failed to make one, and why.
    failed: Option<(Instant, String)>,
}

/// A snapshot that is kept.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    pub(crate) snapshot: Snapshot,
    path: PathBuf,
}

impl Kept {
    /// Opens the file.
    pub(crate) fn open(&self) -> io::Result<File> {
        File::open(&self.path)
    }
}

/// What stands beside a snapshot, for the next process.
#[derive(Serialize, Deserialize)]
struct Label {
    snapshot: Snapshot,
    /// The program that made the state. Another one may make another state of the same log.
    made_by: String,
}

/// Why a device gets no snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NoSnapshot {
    /// The store is so short that pulling it is as quick. Or the device's schema is another.
    Useless(&'static str),
    /// One is being made, and takes longer than a device waits.
    NotYet,
    /// None can be made here now.
    Failed(String),
}

impl Snapshots {
    /// The snapshots of `stores`. Old ones are deleted until `shutdown`.
    pub(crate) fn new(stores: Stores, shutdown: CancellationToken) -> Self {
        let shared = Shared { stores, shelves: Mutex::default(), making: tokio::sync::Mutex::default() };
        let snapshots = Self { shared: Arc::new(shared) };
        let shared = Arc::downgrade(&snapshots.shared);
        tokio::spawn(async move {
            loop {
                let Some(shared) = shared.upgrade() else { return };
                let tidied = tokio::task::spawn_blocking(move || tidy(&shared.stores, FOR, IN_ALL)).await;
                if let Ok(Err(fault)) = tidied {
                    tracing::warn!("cannot delete old snapshots: {fault}");
                }
                if shutdown.run_until_cancelled(sleep(TIDY_EVERY)).await.is_none() {
                    return;
                }
            }
        });
        snapshots
    }

    /// Returns a snapshot of `store` for a device with this schema: the one with this tag, if it is still kept, and else
    /// one that is new enough. Makes it if need be.
    ///
    /// # Errors
    ///
    /// A fault of the machine. Nothing may be concluded about snapshots then.
    pub(crate) async fn get(
        &self,
        store: &Store,
        schema: &str,
        tag: Option<&str>,
    ) -> Result<Result<Kept, NoSnapshot>, Error> {
        if schema != store.schema_fingerprint() {
            return Ok(Err(NoSnapshot::Useless("This hub's state has another schema than the device's.")));
        }
        let long = store.look(|replica| Ok(replica.standing()?.length >= SHORTEST)).await?;
        if long != Some(true) {
            return Ok(Err(NoSnapshot::Useless("The log is short, so pulling it is as quick.")));
        }
        let shelf = Arc::clone(self.lock().entry(store.id().clone()).or_default());
        let Ok(mut shelf) = timeout(WAIT, shelf.lock_owned()).await else { return Ok(Err(NoSnapshot::NotYet)) };
        let (own, store, tag) = (self.clone(), store.clone(), tag.map(str::to_owned));
        // If the device leaves, the next one finds what was begun.
        let found = tokio::spawn(async move { own.find(&mut shelf, &store, tag.as_deref()).await });
        match timeout(WAIT, found).await {
            Ok(Ok(found)) => found,
            Ok(Err(panic)) => Ok(Err(NoSnapshot::Failed(panic.to_string()))),
            Err(_) => Ok(Err(NoSnapshot::NotYet)),
        }
    }

    async fn find(
        &self,
        shelf: &mut Shelf,
        store: &Store,
        wanted: Option<&str>,
    ) -> Result<Result<Kept, NoSnapshot>, Error> {
        let program = self.shared.stores.setup().executable.clone();
        // Until all of it is known again, the files are what counts.
        let (dir, kept) = (store.files().dir().join(DIR), std::mem::take(&mut shelf.kept));
        let is_read = std::mem::take(&mut shelf.is_read);
        let there = blocking(move || if is_read { still_there(kept) } else { read(&dir, &program) }).await?;
        let offers: Vec<Snapshot> = there.iter().map(|kept| kept.snapshot).collect();
        // A log that was restored from a backup may be another one than the log of a snapshot.
        let judge = move |replica: &mut Replica| {
            let vouch = |offer: &Snapshot| {
                let start = judged(Start::vouch(Some(replica), Some(offer.log), offer.seq, offer.digest))?;
                Ok::<_, Fault>(start.is_ok())
            };
            Ok((offers.iter().map(vouch).collect::<Result<Vec<_>, _>>()?, replica.standing()?.length))
        };
        let Some((good, length)) = store.look(judge).await? else {
            return Ok(Err(NoSnapshot::Useless("The store has no events.")));
        };
        shelf.is_read = true;
        for (kept, is_good) in there.into_iter().zip(good) {
            if is_good { shelf.kept.push(kept) } else { remove(&kept.path) }
        }
        if let Some(kept) = shelf.kept.iter().find(|kept| Some(&*tag(&kept.snapshot)) == wanted) {
            return Ok(Ok(kept.clone()));
        }
        if let Some(newest) = shelf.kept.last().filter(|kept| is_new_enough(&kept.snapshot, length)) {
            return Ok(Ok(newest.clone()));
        }
        if shelf.failed.as_ref().is_none_or(|(since, _)| since.elapsed() >= AFTER_FAILURE) {
            let _one_at_a_time = self.shared.making.lock().await;
            shelf.failed = self.make(shelf, store).await?.err().map(|why| (Instant::now(), why));
        }
        Ok(match (shelf.kept.last(), &shelf.failed) {
            (Some(newest), _) => Ok(newest.clone()),
            (None, Some((_, why))) => Err(NoSnapshot::Failed(why.clone())),
            (None, None) => Err(NoSnapshot::NotYet),
        })
    }

    /// Makes one, and deletes the oldest if there are too many.
    async fn make(&self, shelf: &mut Shelf, store: &Store) -> Result<Result<(), String>, Error> {
        let begun = Instant::now();
        let (files, program) = (store.files().clone(), self.shared.stores.setup().executable.clone());
        let store = store.id().as_str();
        let made = match blocking(move || make(&files, program)).await? {
            Ok(Some(made)) => made,
            Ok(None) => return Ok(Ok(())),
            Err(why) => {
                tracing::warn!(store, why, "no snapshot can be made, so devices that join pull the whole log");
                return Ok(Err(why));
            }
        };
        let (events, bytes, seconds) = (made.snapshot.length, made.snapshot.bytes, begun.elapsed().as_secs_f64());
        tracing::info!(store, events, bytes, seconds, "made a snapshot for devices that join");
        shelf.kept.push(made);
        while shelf.kept.len() > OF_A_STORE {
            remove(&shelf.kept.remove(0).path);
        }
        let stores = self.shared.stores.clone();
        if let Err(fault) = blocking(move || tidy(&stores, FOR, IN_ALL)).await? {
            tracing::warn!("cannot delete old snapshots: {fault}");
        }
        Ok(Ok(()))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<StoreId, Arc<tokio::sync::Mutex<Shelf>>>> {
        self.shared.shelves.lock().expect("BUG: looking for snapshots panicked")
    }
}

async fn blocking<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(act).await.map_err(|panic| Error::Unavailable(panic.to_string().into()))
}

/// Returns whether a device that gets this one has little left to pull of a log of `length` events.
fn is_new_enough(snapshot: &Snapshot, length: u64) -> bool {
    length.saturating_sub(snapshot.length) <= EVENTS.max(snapshot.bytes / BYTES_AN_EVENT)
}

/// Makes a snapshot of the store in `files`, if it can be had just now. The error is for people.
fn make(files: &Files, made_by: String) -> Result<Option<Kept>, String> {
    let dir = files.dir().join(DIR);
    let made = make_in(&dir, files, made_by);
    if made.is_err() {
        // It may be what fills the disk.
        remove(&dir.join(MAKING));
    }
    made.map_err(|fault| fault.to_string())
}

fn make_in(dir: &Path, files: &Files, made_by: String) -> Result<Option<Kept>, Fault> {
    create_private_dir(dir)?;
    let making = dir.join(MAKING);
    remove(&making);
    let size = fs::metadata(files.state()).map(|meta| meta.len()).unwrap_or_default();
    if free_bytes(dir).is_some_and(|free| free < size + LEFT_FREE) {
        let why = format!("a snapshot of {size} bytes would leave the disk without room for what is still to come");
        return Err(io(&making, io::Error::new(io::ErrorKind::StorageFull, why)));
    }
    let Some(snapshot) = Snapshot::make(files, &making)? else { return Ok(None) };
    let path = dir.join(format!("{}-{}.db", snapshot.seq, &snapshot.file_digest.to_string()[..16]));
    let label = serde_json::to_vec(&Label { snapshot, made_by }).expect("BUG: a label that is no JSON");
    let beside = path.with_extension("json");
    let write = |mut file: File| io::Write::write_all(&mut file, &label);
    remove(&path);
    open_private_file(&beside).and_then(|file| write(file).map_err(|error| io(&beside, error)))?;
    fs::rename(&making, &path).map_err(|error| io(&path, error))?;
    Ok(Some(Kept { snapshot, path }))
}

fn io(path: &Path, source: io::Error) -> Fault {
    Fault::Io { doing: "make the snapshot", path: path.to_owned(), source }
}

/// Returns the BLAKE3 digest of a file, and its size.
fn digest(path: &Path) -> io::Result<(Digest, u64)> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    Ok((Digest(*hasher.finalize().as_bytes()), hasher.count()))
}

/// Returns the snapshots in `dir` that are as they were made, by this `program`, the newest last. Deletes the others.
fn read(dir: &Path, program: &str) -> Vec<Kept> {
    let mut kept = Vec::new();
    for path in files_in(dir) {
        let is_label = path.extension().is_some_and(|extension| extension == "json");
        if is_label {
            if !path.with_extension("db").exists() {
                remove(&path);
            }
            continue;
        }
        let label = fs::read(path.with_extension("json")).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let label = label.filter(|Label { snapshot, made_by }| {
            made_by == program && digest(&path).is_ok_and(|found| found == (snapshot.file_digest, snapshot.bytes))
        });
        match label {
            Some(Label { snapshot, .. }) => kept.push(Kept { snapshot, path }),
            None => remove(&path),
        }
    }
    kept.sort_by_key(|kept| kept.snapshot.length);
    kept
}

fn still_there(mut kept: Vec<Kept>) -> Vec<Kept> {
    kept.retain(|kept| fs::metadata(&kept.path).is_ok_and(|meta| meta.len() == kept.snapshot.bytes));
    kept
}

fn files_in(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

/// Deletes a snapshot with its label. What can't be deleted now is looked at again later.
fn remove(path: &Path) {
    drop(fs::remove_file(path));
    drop(fs::remove_file(path.with_extension("json")));
}

/// Deletes the snapshots that are older than `age`, and the oldest of more than `most`.
fn tidy(stores: &Stores, age: Duration, most: usize) -> Result<(), Fault> {
    let mut all = Vec::new();
    for store in stores.list()? {
        for path in files_in(&stores.files(&store).dir().join(DIR)) {
            // A clock that went back makes none of them old.
            let made = fs::metadata(&path).and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            if path.extension().is_some_and(|extension| extension == "db") {
                all.push((made, path));
            }
        }
    }
    all.sort();
    let over = all.len().saturating_sub(most);
    let is_old = |made: &SystemTime| made.elapsed().is_ok_and(|elapsed| elapsed > age);
    for (place, (made, path)) in all.iter().enumerate() {
        if place < over || is_old(made) {
            remove(path);
        }
    }
    Ok(())
}
