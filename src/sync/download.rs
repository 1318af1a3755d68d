//! Begins a store whose log is empty with its hub's snapshot: downloads it to a file beside, checks it, and has the store
//! join by it. Where that can't be done, the log is pulled from its beginning.
//!
//! A download goes on where it broke, also after a restart. Likes are taken all the while.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::StreamExt as _;
use reqwest::Response;
use tokio::time::{Instant, timeout};

use super::http::{Upstream, offline, retry_after};
use super::link::{hello, here, unless_silent};
use super::protocol::{code, words};
use super::session::End;
use super::snapshot::{Fetch, Not, Part, Take};
use super::sse;
use crate::engine::{
    CheckedSnapshot, Error, Fault, Files, Position, Query, Replica, Schema, Snapshot, SnapshotError, Store, StoreId,
    Stores, free_bytes, open_private_file,
};
use crate::limits::sync::snapshot::{ANSWER, LASTS, LEFT_FREE, LONGEST_REST, MEASURED_OVER, PIECE, SLOWEST, TIMES};
use crate::limits::sync::stream::SILENCE;

/// The attempts of a store to begin with its hub's snapshot.
#[derive(Default)]
pub(super) struct Beginning {
    fetch: Option<Fetch>,
    /// When the first attempt began.
    since: Option<Instant>,
    /// Whether a part was found that an earlier process left. A power cut may have changed it.
    was_found: bool,
    /// Whether the last attempt got no answer that is a hub's.
    is_unanswered: bool,
    /// Whether nothing is left of earlier attempts.
    is_tidy: bool,
}

/// A number that the app shows of each store.
pub(crate) type Shown = Arc<dyn Fn() -> Query<u64> + Send + Sync>;

/// How often each store has begun with its hub's snapshot, as long as this process runs. A snapshot that was given up again
/// may be followed by another one, but not without end.
#[derive(Default)]
pub(super) struct Begun {
    times: Mutex<HashMap<StoreId, u32>>,
    /// What has to have an answer in each snapshot.
    pub(super) shown: Vec<Shown>,
}

impl Begun {
    /// The log is pulled instead.
    const NEVER_AGAIN: u32 = u32::MAX;

    fn times(&self, id: &StoreId) -> u32 {
        self.lock().get(id).copied().unwrap_or_default()
    }

    fn set(&self, id: &StoreId, times: u32) {
        self.lock().insert(id.clone(), times);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<StoreId, u32>> {
        self.times.lock().expect("BUG: counting beginnings panicked")
    }
}

/// Held while a store joins: two at a time would both count on the same room.
static JOINING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Why an attempt is over without a snapshot.
enum Failed {
    /// The session ends. Another attempt may go better.
    Now(End),
    /// The log is pulled in this session. The hub may have a snapshot another time.
    NotOffered,
    /// The log is pulled from now on.
    ForGood(String),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Now(here(&error))
    }
}

impl Beginning {
    /// Has `store` join by the snapshot of `upstream`, if its log is empty. Returns the end of the session if the hub should
    /// be asked again rather than pulled from. Calls `begun` when the hub has answered.
    pub(super) async fn attempt(
        &mut self,
        store: &Store,
        stores: &Stores,
        upstream: &Upstream,
        counts: &Begun,
        begun: impl Fn(),
    ) -> Result<(), End> {
        let times = counts.times(store.id());
        if times == Begun::NEVER_AGAIN {
            return Ok(());
        }
        let can_join = store.look_if_any(|replica| Ok(replica.is_none_or(|replica| replica.can_join()))).await;
        if !can_join.map_err(|error| here(&error))? {
            // An earlier process may have left something, too.
            if self.fetch.take().is_some() || !std::mem::replace(&mut self.is_tidy, true) {
                drop(Beside::of(store.files()).remove().await);
            }
            return Ok(());
        }
        let name = store.id().as_str();
        let joined = if times < TIMES {
            self.try_to_join(store, stores, upstream, counts, begun).await
        } else {
            Err(Failed::ForGood(format!("it had to be given up {times} times")))
        };
        match joined {
            Ok(Snapshot { length, seq, .. }) => {
                tracing::info!(store = name, events = length, "began with the hub's snapshot, which goes up to {seq}");
                counts.set(store.id(), times + 1);
                *self = Self::default();
                Ok(())
            }
            Err(Failed::Now(end)) => Err(end),
            Err(Failed::NotOffered) => Ok(()),
            Err(Failed::ForGood(why)) => {
                let why = words(&why);
                tracing::warn!(
                    store = name,
                    why,
                    "the hub's snapshot is not used; the log is pulled from its beginning"
                );
                drop(Beside::of(store.files()).remove().await);
                counts.set(store.id(), Begun::NEVER_AGAIN);
                *self = Self::default();
                Ok(())
            }
        }
    }

    /// Whoever answered can't send a snapshot now. Only the hub itself can say that it is still making one.
    async fn put_off(&mut self, upstream: &Upstream, answer: Response) -> Failed {
        let (rest, status) = (retry_after(&answer), answer.status());
        let problem = upstream.problem(answer).await.ok().flatten();
        let rest = rest.map(|rest| rest.min(LONGEST_REST));
        let code = problem.as_ref().map(|problem| problem.code.as_str());
        if matches!(code, Some(code::SNAPSHOT_NOT_READY | code::TOO_MANY_SNAPSHOTS)) {
            let why = "the hub has no snapshot ready yet for this device to begin with".to_owned();
            let is_put_off = self.fetch.as_mut().is_some_and(Fetch::is_put_off);
            return if is_put_off {
                Failed::Now(End::Later(why, rest.unwrap_or(LONGEST_REST)))
            } else {
                Failed::ForGood("the hub never has it ready".to_owned())
            };
        }
        let why = problem.map_or_else(|| format!("{} answered {status}", upstream.url()), |problem| problem.detail);
        self.unanswered(match rest {
            Some(rest) => End::Later(why, rest),
            None => End::Offline(why),
        })
    }

    /// Something may be in the way of this route alone. So after every other request without an answer, the pull has its
    /// turn.
    fn unanswered(&mut self, why: End) -> Failed {
        self.is_unanswered = !self.is_unanswered;
        if self.is_unanswered { Failed::Now(why) } else { Failed::NotOffered }
    }

    async fn try_to_join(
        &mut self,
        store: &Store,
        stores: &Stores,
        upstream: &Upstream,
        counts: &Begun,
        begun: impl Fn(),
    ) -> Result<Snapshot, Failed> {
        let beside = Beside::of(store.files());
        if self.fetch.is_none() {
            let part = beside.clone().find().await?;
            self.was_found = part.is_some();
            self.fetch = Some(Fetch::with(part));
        }
        loop {
            let fetch = self.fetch.as_mut().expect("BUG: an attempt without a count of attempts");
            let since = *self.since.get_or_insert_with(Instant::now);
            if !fetch.is_whole() {
                let schema = store.schema_fingerprint();
                let answer = match timeout(ANSWER, upstream.snapshot(store.id(), &schema, fetch.range())).await {
                    Ok(Ok(answer)) => answer,
                    Ok(Err(why)) => return Err(self.unanswered(why)),
                    Err(_) => return Err(self.unanswered(held_up())),
                };
                let taken = fetch.judge(answer.status(), answer.headers());
                match taken {
                    Ok(take) => {
                        self.is_unanswered = false;
                        begun();
                        download(store, fetch, take, answer, &beside, since).await?;
                    }
                    Err(Not::Offered) => return Err(Failed::NotOffered),
                    Err(Not::Now) => return Err(self.put_off(upstream, answer).await),
                    Err(Not::Right(why)) => return Err(Failed::ForGood(why.to_owned())),
                }
            }
            let Some(Part { snapshot, .. }) = fetch.part else { return Err(Failed::NotOffered) };
            let (checking, schema) = (beside.clone(), stores.schema());
            let checked = blocking(move || checking.check(&snapshot, &schema)).await?;
            let checked = match checked {
                Ok(checked) => checked,
                Err(SnapshotError::Wrong(_)) if self.was_found => {
                    // It may have been right before the machine went down. Once more, from its beginning.
                    self.was_found = false;
                    fetch.part = None;
                    continue;
                }
                Err(SnapshotError::Fault(fault)) => return Err(Error::from(&fault).into()),
                Err(why) => return Err(Failed::ForGood(why.to_string())),
            };
            confirm(store, upstream, &snapshot).await?;
            let _one_at_a_time = JOINING.lock().await;
            // The state is made from a copy of it. What else the disk had room for may have been used meanwhile.
            if free_bytes(&beside.part).is_some_and(|free| free < snapshot.bytes.saturating_add(LEFT_FREE)) {
                return Err(unwritten(&io::Error::from(ErrorKind::StorageFull)));
            }
            drop(fs::remove_file(&beside.label));
            let shown = counts.shown.clone();
            return match store.with(move |replica| join(replica, checked, &shown)).await? {
                None => Ok(snapshot),
                Some(why) => Err(Failed::ForGood(why.to_owned())),
            };
        }
    }
}

/// Has `replica` join by a snapshot from which all of `shown` can be read. Returns why it doesn't, if so.
fn join(replica: &mut Replica, snapshot: CheckedSnapshot, shown: &[Shown]) -> Result<Option<&'static str>, Fault> {
    if !replica.join(snapshot)? {
        return Ok(Some("it is of another log, or the disk has no room for it"));
    }
    if shown.iter().all(|query| replica.query(&query()).is_ok()) {
        return Ok(None);
    }
    replica.drop_base()?;
    Ok(Some("what the page shows can't be read from it"))
}

/// Asks the hub whether its log has the snapshot's place, as every session does that begins there. A device that had joined
/// could do nothing more by itself if the hub's log was another one.
async fn confirm(store: &Store, upstream: &Upstream, snapshot: &Snapshot) -> Result<(), Failed> {
    let Snapshot { log, seq, digest, .. } = *snapshot;
    let position = Position { log: Some(log), after: seq, digest, ..Position::start() };
    let contradicts = || Failed::ForGood("the hub's log doesn't have its place".to_owned());
    let bytes = match timeout(SILENCE, upstream.pull(store.id(), position)).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(End::Diverged(_) | End::Halted(code::WRONG_LOG, _))) => return Err(contradicts()),
        Ok(Err(end)) => return Err(Failed::Now(end)),
        Err(_) => return Err(Failed::Now(held_up())),
    };
    let mut events = pin!(sse::events(unless_silent(bytes), upstream.ration()));
    let hello = hello(&mut events).await.map_err(Failed::Now)?;
    if hello.log == Some(log) { Ok(()) } else { Err(contradicts()) }
}

/// Writes the body of an answer to the file beside.
async fn download(
    store: &Store,
    fetch: &mut Fetch,
    take: Take,
    answer: Response,
    beside: &Beside,
    since: Instant,
) -> Result<(), Failed> {
    if let Take::Whole(snapshot) = take {
        // This makes the store, if it has no files yet.
        if !store.with(|replica| Ok(replica.can_join())).await? {
            return Err(Failed::NotOffered);
        }
        beside.clone().begin(snapshot).await?;
        fetch.part = Some(Part { snapshot, bytes: 0 });
    }
    let Some(Part { snapshot, bytes: mut here }) = fetch.part else { return Err(Failed::NotOffered) };
    let (name, bytes) = (store.id().as_str(), snapshot.bytes);
    tracing::info!(store = name, events = snapshot.length, bytes, here, "downloading the hub's snapshot");
    let mut file = beside.clone().open(here).await?;
    let mut buffer = Vec::with_capacity(PIECE);
    let mut body = answer.bytes_stream();
    let begun_with = here;
    let (mut measured, mut brought) = (Instant::now(), 0);
    let broke = loop {
        let next = match timeout(SILENCE, body.next()).await {
            Ok(Some(Ok(chunk))) => Some(chunk),
            Ok(None) => None,
            Ok(Some(Err(error))) => break Some(offline(error)),
            Err(_) => break Some(held_up()),
        };
        let is_over = next.is_none();
        let chunk = next.unwrap_or_default();
        if here + (buffer.len() + chunk.len()) as u64 > bytes {
            return Err(Failed::ForGood("it is longer than the hub says".to_owned()));
        }
        brought += chunk.len() as u64;
        buffer.extend_from_slice(&chunk);
        if buffer.len() >= PIECE || is_over {
            (file, buffer) = beside.clone().write(file, buffer).await?;
            here += buffer.len() as u64;
            fetch.part = Some(Part { snapshot, bytes: here });
            buffer.clear();
        }
        if is_over {
            break None;
        }
        if since.elapsed() > LASTS {
            return Err(Failed::ForGood("it takes too long".to_owned()));
        }
        if measured.elapsed() > MEASURED_OVER {
            if brought < SLOWEST * MEASURED_OVER.as_secs() {
                return Err(Failed::ForGood("it comes too slowly".to_owned()));
            }
            (measured, brought) = (Instant::now(), 0);
        }
    };
    if broke.is_some() {
        let length = buffer.len() as u64;
        drop(beside.clone().write(file, buffer).await?);
        here += length;
        fetch.part = Some(Part { snapshot, bytes: here });
    }
    if fetch.is_whole() {
        return Ok(());
    }
    if !fetch.ended(here - begun_with) {
        return Err(Failed::ForGood("the download breaks again and again".to_owned()));
    }
    Err(Failed::Now(broke.unwrap_or_else(|| End::Offline("the snapshot ended before its end".to_owned()))))
}

fn held_up() -> End {
    End::Offline(format!("the hub sent nothing of its snapshot for {} seconds", SILENCE.as_secs()))
}

/// The files of a download, beside those of its store.
#[derive(Clone)]
struct Beside {
    part: PathBuf,
    /// What it is a part of.
    label: PathBuf,
    /// The label while the file is checked.
    checking: PathBuf,
}

impl Beside {
    fn of(files: &Files) -> Self {
        let path = |name| files.dir().join(name);
        Self { part: path("snapshot.part"), label: path("snapshot.json"), checking: path("snapshot.checking") }
    }

    /// Returns what an earlier process left. Fails if that process ended while it checked a snapshot: the file may have been
    /// the cause.
    async fn find(self) -> Result<Option<Part>, Failed> {
        let find = move || {
            if self.checking.exists() {
                return Err(Failed::ForGood("an earlier process ended while it checked it".to_owned()));
            }
            let find = || {
                let snapshot: Snapshot = serde_json::from_slice(&fs::read(&self.label).ok()?).ok()?;
                let bytes = fs::symlink_metadata(&self.part).ok().filter(|meta| meta.is_file())?.len();
                (bytes <= snapshot.bytes).then_some(Part { snapshot, bytes })
            };
            Ok(find())
        };
        blocking(find).await?
    }

    /// Checks the file. If the process ends meanwhile, the next one knows.
    fn check(&self, snapshot: &Snapshot, schema: &Schema) -> Result<CheckedSnapshot, SnapshotError> {
        drop(fs::rename(&self.label, &self.checking));
        let checked = snapshot.check(&self.part, schema);
        drop(fs::rename(&self.checking, &self.label));
        checked
    }

    /// Makes the files of a new download, if there is room for it.
    async fn begin(self, snapshot: Snapshot) -> Result<(), Failed> {
        let begin = move || {
            self.remove_all()?;
            // The state is made from a copy of it.
            let needed = snapshot.bytes.saturating_mul(2).saturating_add(LEFT_FREE);
            if free_bytes(&self.part).or_else(|| free_bytes(self.part.parent()?)).is_some_and(|free| free < needed) {
                return Err(io::Error::from(ErrorKind::StorageFull));
            }
            let label = serde_json::to_vec(&snapshot)?;
            private(&self.label)?.write_all(&label)?;
            private(&self.part).map(drop)
        };
        blocking(begin).await?.map_err(|error| unwritten(&error))
    }

    /// Opens the part, which has this many bytes.
    async fn open(self, bytes: u64) -> Result<File, Failed> {
        let open = move || {
            let mut file = private(&self.part)?;
            file.set_len(bytes)?;
            file.seek(SeekFrom::Start(bytes))?;
            Ok(file)
        };
        blocking(open).await?.map_err(|error| unwritten(&error))
    }

    /// Appends to the part, unless that would fill the disk. Returns what it was given.
    async fn write(self, mut file: File, bytes: Vec<u8>) -> Result<(File, Vec<u8>), Failed> {
        let write = move || {
            if free_bytes(&self.part).is_some_and(|free| free < LEFT_FREE) {
                return Err(io::Error::from(ErrorKind::StorageFull));
            }
            file.write_all(&bytes)?;
            Ok((file, bytes))
        };
        blocking(write).await?.map_err(|error| unwritten(&error))
    }

    async fn remove(self) -> Result<(), Failed> {
        blocking(move || self.remove_all()).await?.map_err(|error| unwritten(&error))
    }

    fn remove_all(&self) -> io::Result<()> {
        for path in [&self.part, &self.label, &self.checking] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

fn unwritten(error: &io::Error) -> Failed {
    Failed::ForGood(match error.kind() {
        ErrorKind::StorageFull => "the disk has no room for it".to_owned(),
        _ => format!("it can't be written: {error}"),
    })
}

fn private(path: &Path) -> io::Result<File> {
    open_private_file(path).map_err(|fault| match fault {
        Fault::Io { source, .. } => source,
        other => io::Error::other(other),
    })
}

async fn blocking<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(act).await.map_err(|panic| Error::Unavailable(panic.to_string().into()))
}
