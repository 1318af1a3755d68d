//! The stores of one directory: opened at first use, closed when idle, bounded in number.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::error::{Error, Fault, IoContext};
use super::health::Health;
use super::live::Live;
use super::lock::Guard;
use super::schema::Schema;
use super::setup::{Files, Setup};
use super::state::State;
use super::store::{Inner, Store, StoreId, Unopened};
use super::writer::{Common, Work, Writer, Written, start_checkpoints};
use crate::limits::engine::stores::{ABSENT, IDLE, OPEN, QUEUE, STORES, SWEEP_EVERY};

/// The limits on what stores may use.
#[derive(Debug, Clone, Copy)]
pub struct StoreLimits {
    /// How many events may wait to be stored, per store.
    pub queue: usize,
    /// How many stores there may be.
    pub stores: u64,
    /// How many may be in use at the same time. Each has a thread.
    pub open: usize,
    /// How long an unused store stays open.
    pub idle: Duration,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self { queue: QUEUE, stores: STORES, open: OPEN, idle: IDLE }
    }
}

/// How much of the limits a caller has to leave to others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Spare {
    /// Out of the stores that there may be.
    pub(crate) stores: u64,
    /// Out of those that may be in use at the same time.
    pub(crate) open: usize,
}

/// How all stores are, in a few numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Census {
    /// Stores that exist.
    pub(crate) stores: u64,
    /// Those of them that are open. The other numbers are about these: a closed store has no work.
    pub(crate) open: u64,
    /// Stores that can't store anything.
    pub(crate) failing: u64,
    pub(crate) pending: u64,
    pub(crate) set_aside: u64,
    pub(crate) skipped: u64,
    pub(crate) unknown: u64,
    /// Events behind snapshots that are not here.
    pub(crate) missing: u64,
    /// Pieces of work that wait for the threads of all stores together.
    pub(crate) queued: u64,
    /// The most that wait for one store.
    pub(crate) longest_queue: u64,
}

/// The stores of one data directory: opened at first use, closed when idle.
#[derive(Clone)]
pub struct Stores {
    shared: Arc<Shared>,
}

pub(super) struct Shared {
    dir: PathBuf,
    limits: StoreLimits,
    common: Arc<Common>,
    /// The state shared by all stores without events. Created at the first look at one.
    empty: Mutex<Option<State>>,
    open: Mutex<OpenStores>,
}

#[derive(Default)]
pub(super) struct OpenStores {
    stores: HashMap<StoreId, OpenStore>,
    /// The stores without events that are being watched. All watchers share one, and so they learn of its first event.
    absent: HashMap<StoreId, Weak<Inner>>,
    /// How many of those were left after the last sweep.
    absent_after_sweep: usize,
    /// Changes with each change of a store. Kept while somebody listens, even if the store is closed.
    news: HashMap<StoreId, watch::Sender<u64>>,
    /// Threads that are closing their store. Opening it again waits for them.
    closing: HashMap<StoreId, JoinHandle<()>>,
    swept: Option<Instant>,
    is_closed: bool,
}

struct OpenStore {
    store: Store,
    thread: JoinHandle<()>,
    used: Instant,
}

impl Stores {
    /// Opens the stores under `dir`, each in a directory of its name. Nothing is created before a store has its first
    /// event.
    ///
    /// Only one process at a time holds the directory, from here to [`close`](Self::close).
    ///
    /// # Errors
    ///
    /// If the schema breaks a rule, `dir` can't be read, or another process holds it ([`Fault::InUse`]).
    pub fn open(dir: &Path, setup: Setup, limits: StoreLimits) -> Result<Self, Fault> {
        Self::checked(dir, setup, limits, false)
    }

    /// Works like [`open`](Self::open), for stores whose authority is an upstream. If a store's log is its own, its
    /// events go back to the outbox, to be pushed.
    ///
    /// # Errors
    ///
    /// The same as for [`open`](Self::open).
    pub fn following(dir: &Path, setup: Setup, limits: StoreLimits) -> Result<Self, Fault> {
        Self::checked(dir, setup, limits, true)
    }

    /// Works like [`open`](Self::open) or, if they are to `follow` an upstream, like [`following`](Self::following).
    /// For a caller that has checked the schema, and whose own lock keeps other processes out.
    pub(crate) fn in_locked(dir: &Path, setup: Setup, limits: StoreLimits, follow: bool) -> Result<Self, Fault> {
        Self::new(dir, setup, limits, follow, Guard::Caller)
    }

    fn checked(dir: &Path, setup: Setup, limits: StoreLimits, follows: bool) -> Result<Self, Fault> {
        setup.schema.check()?;
        Self::new(dir, setup, limits, follows, Guard::of(dir))
    }

    fn new(dir: &Path, setup: Setup, limits: StoreLimits, follows: bool, guard: Guard) -> Result<Self, Fault> {
        guard.claim()?;
        let existing = watch::channel(stores_in(dir)?.into_iter().collect()).0;
        let checkpoints = start_checkpoints().doing("start a thread for", dir)?;
        let common = Arc::new(Common {
            setup,
            follows,
            guard,
            existing,
            max: limits.stores,
            checked: Mutex::default(),
            checkpoints,
            measure: OnceLock::new(),
        });
        let (empty, open) = (Mutex::default(), Mutex::default());
        Ok(Self { shared: Arc::new(Shared { dir: dir.to_owned(), limits, common, empty, open }) })
    }

    /// Returns the store `id`, opened if it has events. A store without events works too: it shows an empty state, and
    /// costs nothing until its first event.
    ///
    /// # Errors
    ///
    /// If too many stores are in use, or all are being closed.
    pub fn get(&self, id: &StoreId) -> Result<Store, Error> {
        self.get_leaving(id, Spare::default())
    }

    /// Works like [`get`](Self::get), for a caller that has to leave `spare` to others.
    ///
    /// # Errors
    ///
    /// The same as for [`get`](Self::get).
    pub(crate) fn get_leaving(&self, id: &StoreId, spare: Spare) -> Result<Store, Error> {
        let mut open = self.shared.lock();
        if open.is_closed {
            return Err(Error::Closed);
        }
        let now = Instant::now();
        if open.swept.is_none_or(|swept| now.duration_since(swept) >= SWEEP_EVERY) {
            open.sweep(now, self.shared.limits.idle);
        }
        if let Some(known) = open.stores.get_mut(id) {
            known.used = now;
            return Ok(known.store.clone());
        }
        if let Some(inner) = open.absent.get(id).and_then(Weak::upgrade) {
            return Ok(Store::new(inner));
        }
        self.shared.common.guard.claim()?;
        let files = self.files(id);
        // A closing store may be about to get its files.
        let exists = open.closing.contains_key(id) || files.exist();
        let (tell_health, health) = watch::channel(if exists { Health::Opening } else { Health::Absent });
        let inner = Arc::new(Inner {
            id: id.clone(),
            files,
            schema: Arc::clone(&self.shared.common.setup.schema),
            live: Arc::default(),
            health,
            queue: OnceLock::new(),
            unopened: Mutex::new(Some(Unopened { tell_health })),
            stores: Arc::downgrade(&self.shared),
            counted: Mutex::default(),
        });
        if exists {
            self.shared.start(&mut open, &inner, spare)?;
        } else {
            if open.absent.len() >= ABSENT.max(2 * open.absent_after_sweep) {
                open.sweep_absent();
            }
            open.absent.insert(id.clone(), Arc::downgrade(&inner));
        }
        Ok(Store::new(inner))
    }

    /// Returns the store `id` if it is already open. This doesn't count as using it.
    pub(crate) fn opened(&self, id: &StoreId) -> Option<Store> {
        self.shared.lock().stores.get(id).map(|known| known.store.clone())
    }

    /// Returns whether unused stores should be closed because so many are open.
    pub(crate) fn are_crowded(&self) -> bool {
        self.shared.lock().stores.len() >= self.shared.limits.open.div_ceil(2)
    }

    /// Returns a counter that changes with each change of the store. Unlike a handle, it doesn't keep the store open.
    pub(crate) fn news(&self, id: &StoreId) -> watch::Receiver<u64> {
        self.shared.lock().news(id).subscribe()
    }

    /// Counts the stores, and what waits in the open ones. Waits for no store.
    pub(crate) fn census(&self) -> Census {
        let stores = self.shared.common.existing.borrow().len() as u64;
        let mut census = Census { stores, ..Census::default() };
        for OpenStore { store, .. } in self.shared.lock().stores.values() {
            let health = store.inner.health.borrow();
            let standing = health.standing().cloned().unwrap_or_default();
            let queued = store.inner.queue.get().map_or(0, |queue| queue.max_capacity() - queue.capacity()) as u64;
            census.open += 1;
            census.failing += u64::from(health.trouble().is_some());
            census.pending += standing.pending;
            census.set_aside += standing.set_aside;
            census.skipped += standing.skipped;
            census.unknown += standing.unknown;
            census.missing += standing.history.map_or(0, |history| history.missing());
            census.queued += queued;
            census.longest_queue = census.longest_queue.max(queued);
        }
        census
    }

    /// Has `measure` told of every write from now on. It is for the one that owns these stores: a second one isn't told.
    pub(crate) fn measure(&self, measure: impl Fn(Written) + Send + Sync + 'static) {
        let _ = self.shared.common.measure.set(Box::new(measure));
    }

    /// Returns the stores that have files, or are about to get them: now, and whenever one is added. Unlike a handle, it
    /// keeps no store open.
    pub(crate) fn existing(&self) -> watch::Receiver<HashSet<StoreId>> {
        self.shared.common.existing.subscribe()
    }

    /// Returns the schema that all the stores share.
    pub(crate) fn schema(&self) -> Arc<Schema> {
        Arc::clone(&self.shared.common.setup.schema)
    }

    /// Returns what all the stores need to know besides their directories.
    #[cfg(feature = "app")]
    pub(crate) fn setup(&self) -> &Setup {
        &self.shared.common.setup
    }

    /// Returns the limits on what the stores may use.
    pub(crate) fn limits(&self) -> StoreLimits {
        self.shared.limits
    }

    /// Closes the stores that nobody has used for a while. Call it every [`SWEEP_EVERY`]. Otherwise a store opened by a
    /// look stays open until the next look.
    pub(crate) fn close_idle(&self) {
        self.shared.lock().sweep(Instant::now(), self.shared.limits.idle);
    }

    /// Returns the files of the store `id`, which need not exist.
    pub fn files(&self, id: &StoreId) -> Files {
        Files::in_dir(self.shared.dir.join(id.as_str()))
    }

    /// Returns the names of the stores on disk, in order.
    ///
    /// # Errors
    ///
    /// If the directory can't be read.
    pub fn list(&self) -> Result<Vec<StoreId>, Fault> {
        stores_in(&self.shared.dir)
    }

    /// Lets every store finish its work, then closes it. This blocks, so async code calls it in `spawn_blocking`.
    pub fn close(&self) {
        let (stores, absent, closing) = {
            let mut open = self.shared.lock();
            open.is_closed = true;
            let OpenStores { stores, absent, closing, .. } = &mut *open;
            (std::mem::take(stores), std::mem::take(absent), std::mem::take(closing))
        };
        for inner in absent.into_values().filter_map(|inner| inner.upgrade()) {
            drop(inner.unopened().take());
            inner.live.close();
        }
        let mut threads: Vec<_> = closing.into_values().collect();
        for OpenStore { store, thread, .. } in stores.into_values() {
            drop(store.inner.queue.get().map(|queue| queue.blocking_send(Work::Close)));
            threads.push(thread);
        }
        threads.into_iter().for_each(|thread| drop(thread.join()));
        self.shared.common.guard.release();
    }
}

impl Shared {
    pub(super) fn setup(&self) -> &Setup {
        &self.common.setup
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, OpenStores> {
        self.open.lock().expect("BUG: opening a store panicked")
    }

    /// Starts the thread of a store, unless it has one. Leaves `spare` to others. Returns true if the store has no
    /// events yet.
    pub(super) fn start(&self, open: &mut OpenStores, inner: &Arc<Inner>, spare: Spare) -> Result<bool, Error> {
        let mut unopened = inner.unopened();
        if inner.queue.get().is_some() {
            return Ok(false);
        }
        if open.is_closed || unopened.is_none() {
            return Err(Error::Closed);
        }
        let now = Instant::now();
        let most = self.limits.open.saturating_sub(spare.open);
        if open.stores.len() >= most {
            open.sweep(now, Duration::ZERO);
        }
        if open.stores.len() >= most {
            return Err(Error::TooManyOpen);
        }
        let is_absent = matches!(*inner.health.borrow(), Health::Absent);
        // The thread itself counts when it creates the files. This check only saves a thread when there is no room.
        let most = self.limits.stores.saturating_sub(spare.stores);
        if is_absent && self.common.existing.borrow().len() as u64 >= most {
            return Err(Error::TooManyStores(most));
        }
        let (queue, work) = mpsc::channel(self.limits.queue);
        let Some(Unopened { tell_health }) = unopened.take() else { return Err(Error::Closed) };
        let (files, live, news) = (inner.files.clone(), Arc::clone(&inner.live), open.news(&inner.id).clone());
        let writer = Writer::new(inner.id.clone(), files, Arc::clone(&self.common), work, live, tell_health, news);
        let predecessor = open.closing.remove(&inner.id);
        let run = move || {
            if let Some(predecessor) = predecessor {
                drop(predecessor.join());
            }
            writer.run();
        };
        let thread = std::thread::Builder::new().name(format!("store {}", inner.id)).spawn(run);
        let thread = match thread {
            Ok(thread) => thread,
            Err(why) => {
                // The next caller gets another handle.
                open.absent.remove(&inner.id);
                return Err(Error::Unavailable(format!("cannot start a thread: {why}").into()));
            }
        };
        drop(inner.queue.set(queue));
        open.absent.remove(&inner.id);
        let store = Store::new(Arc::clone(inner));
        open.stores.insert(inner.id.clone(), OpenStore { store, thread, used: now });
        Ok(is_absent)
    }

    /// Runs the queries of a store without events.
    pub(super) fn answer_empty(&self, live: &Live) {
        // Another process may have made stores since this one looked.
        if let Err(fault) = self.common.guard.claim() {
            return live.fail(&Error::from(&fault));
        }
        let mut empty = self.empty.lock().unwrap_or_else(PoisonError::into_inner);
        let state = match empty.take().map_or_else(|| State::in_memory(&self.common.setup.schema), Ok) {
            Ok(state) => empty.insert(state),
            Err(fault) => return live.fail(&Error::from(fault)),
        };
        loop {
            live.tell(live.refresh(state), || false);
            if !live.has_more() {
                return;
            }
        }
    }
}

impl OpenStores {
    fn news(&mut self, id: &StoreId) -> &watch::Sender<u64> {
        self.news.entry(id.clone()).or_insert_with(|| watch::channel(0).0)
    }

    /// Closes the stores that nobody has used for `idle`.
    fn sweep(&mut self, now: Instant, idle: Duration) {
        self.swept = Some(now);
        self.closing.retain(|_, thread| !thread.is_finished());
        let is_idle =
            |open: &OpenStore| Arc::strong_count(&open.store.inner) == 1 && now.duration_since(open.used) >= idle;
        for (id, OpenStore { store, thread, .. }) in self.stores.extract_if(|_, open| is_idle(open)) {
            // The thread ends when the last handle drops the queue.
            drop(store);
            self.closing.insert(id, thread);
        }
        let Self { stores, news, .. } = self;
        news.retain(|id, news| news.receiver_count() > 0 || stores.contains_key(id));
        self.sweep_absent();
    }

    /// Forgets the stores without events that nobody watches anymore.
    fn sweep_absent(&mut self) {
        self.absent.retain(|_, inner| inner.strong_count() > 0);
        self.absent_after_sweep = self.absent.len();
    }
}

/// Returns the names of the stores under `dir`, in order, whether or not a process has them open.
///
/// # Errors
///
/// If the directory can't be read.
pub fn stores_in(dir: &Path) -> Result<Vec<StoreId>, Fault> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.doing("read", dir)?,
    };
    let mut stores = Vec::new();
    for entry in entries {
        let entry = entry.doing("read", dir)?;
        if let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok())
            && Files::in_dir(entry.path()).exist()
        {
            stores.push(id);
        }
    }
    stores.sort();
    Ok(stores)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::likes::{self, LikeAdded};

    fn stores_of_likes(dir: &Path) -> Stores {
        let setup = Setup {
            schema: Arc::new(likes::schema()),
            device: "test".parse().expect("a name"),
            executable: "test".to_owned(),
            progress: |_, _| {},
        };
        Stores::open(dir, setup, StoreLimits::default()).expect("stores")
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_caller_with_a_receipt_sees_the_event() {
        let dir = tempfile::tempdir().expect("a directory");
        let stores = stores_of_likes(dir.path());
        let store = stores.get(&"likes".parse().expect("a name")).expect("a store");
        let _watched = store.watch(likes::count());
        for expected in 1..=500 {
            let receipt = store.commit(LikeAdded {}).await.expect("a receipt");
            assert_eq!(store.read(likes::count()).await, Ok(expected));
            let Health::Open(standing) = store.healthy().await else { panic!("the store is not open") };
            assert_eq!(Some(standing.head), receipt.seq);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_authority_records_who_brings_an_event() {
        let dir = tempfile::tempdir().expect("a directory");
        let stores = stores_of_likes(dir.path());
        let id = "likes".parse().expect("a name");
        let named = |name: &str| {
            let store = stores.get(&id).expect("a store");
            store.on_behalf_of(Some(name.parse().expect("a name")))
        };
        let (phone, own) = (named("phone"), stores.get(&id).expect("a store"));
        // Those that wait are committed together.
        let (one, two, three) =
            tokio::join!(phone.commit(LikeAdded {}), own.commit(LikeAdded {}), phone.commit(LikeAdded {}));
        for receipt in [one, two, three] {
            receipt.expect("a receipt");
        }
        let mut lines = Vec::new();
        crate::engine::export(own.files(), &mut lines).expect("an export");
        let lines = String::from_utf8(lines).expect("text");
        let count = |name: &str| lines.matches(&format!("\"origin\":\"{name}\"")).count();
        assert_eq!((count("phone"), count("test")), (2, 1), "{lines}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn trust_62_a_panic_of_our_own_costs_what_was_being_done_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let stores = stores_of_likes(dir.path());
        let store = stores.get(&"likes".parse().expect("a name")).expect("a store");
        store.commit(LikeAdded {}).await.expect("a receipt");
        let mut watched = store.watch(likes::count());
        assert_eq!(watched.next().await, Ok(1));
        let failed = store.with(|_| -> Result<(), Fault> { panic!("a defect") }).await;
        assert!(matches!(&failed, Err(Error::Unavailable(why)) if why.contains("Try again")), "{failed:?}");
        let mut health = store.health();
        health.wait_for(|health| health.trouble().is_some_and(|why| why.contains("a defect"))).await.expect("a health");
        assert_eq!(store.read(likes::count()).await, Ok(1), "what is known stays");
        while store.commit(LikeAdded {}).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(watched.next().await, Ok(2));
        assert!(matches!(store.healthy().await, Health::Open(_)));
    }
}
