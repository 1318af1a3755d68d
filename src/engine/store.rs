//! Stores: the cheap, cloneable, async handle that everything above the engine uses, and the directory of them.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use super::error::{Error, Fault, IoContext, MalformedStoreId};
use super::event::{Device, Envelope, Event, EventId};
use super::eventlog::Whose;
use super::live::{Live, Watch};
use super::place::{Cursor, Digest, Seq};
use super::query::Query;
use super::replica::{Outcome, Replica, Standing};
use super::sandbox::Tables;
use super::schema::Schema;
use super::setup::{Files, Setup};
use super::state::State;
use super::writer::{Act, Common, Work, Writer, start_checkpoints};

/// How often idle stores are looked for. Often enough that what many looks opened is closed soon after its time is over.
pub(crate) const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// So many handles of stores without events are known before the first look for those that are gone.
const ABSENT: usize = 64;

/// The name of a store: `[a-z0-9][a-z0-9-]{0,62}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StoreId(Arc<str>);

impl StoreId {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for StoreId {
    type Err = MalformedStoreId;
    fn from_str(name: &str) -> Result<Self, MalformedStoreId> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if name.is_empty() || name.len() > 63 || name.starts_with('-') || !name.bytes().all(allowed) {
            return Err(MalformedStoreId(name.chars().take(80).collect()));
        }
        Ok(Self(name.into()))
    }
}

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// That an event is stored: on disk, and applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// Its place in the log, unless an upstream has yet to give it one.
    pub seq: Option<Seq>,
    /// False when it was stored before.
    pub is_new: bool,
}

/// How a store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Nobody has looked yet.
    Opening,
    /// It has no events yet, and no files.
    Absent,
    /// It works.
    Open(Standing),
    /// It can be read, but stores nothing at present: why, and what to do.
    ReadOnly(Standing, String),
    /// It can't be used at present: why, and what to do.
    Failed(String),
}

impl Health {
    /// Where the store stands, if that is known.
    pub fn standing(&self) -> Option<&Standing> {
        match self {
            Self::Open(standing) | Self::ReadOnly(standing, _) => Some(standing),
            Self::Opening | Self::Absent | Self::Failed(_) => None,
        }
    }

    /// Why nothing can be stored, if that is so.
    pub fn trouble(&self) -> Option<&str> {
        match self {
            Self::ReadOnly(_, why) | Self::Failed(why) => Some(why),
            Self::Opening | Self::Absent | Self::Open(_) => None,
        }
    }
}

/// A handle of one store. Cloning is cheap; the store stays open as long as a handle is used.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    id: StoreId,
    files: Files,
    schema: Arc<Schema>,
    live: Arc<Live>,
    health: watch::Receiver<Health>,
    /// Work for the store's thread. A store without events has neither, however many look at it.
    queue: OnceLock<mpsc::Sender<Work>>,
    /// There until the store is opened, or all stores are closed. Whoever answers in the place of the thread holds this, so
    /// that no answer of theirs comes after one of the thread's.
    unopened: Mutex<Option<Unopened>>,
    stores: Weak<Shared>,
}

/// What the thread of a store gets when it starts.
struct Unopened {
    tell_health: watch::Sender<Health>,
}

impl Inner {
    fn unopened(&self) -> MutexGuard<'_, Option<Unopened>> {
        // A query that panicked while it was answered left nothing half done.
        self.unopened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Commits an event that happened now: on disk and applied when this returns.
    ///
    /// ```
    /// # use likewise::engine::{Error, Store};
    /// # use likewise::likes::{self, LikeAdded};
    /// # async fn f(store: Store) -> Result<(), Error> {
    /// store.commit(LikeAdded {}).await?;
    /// let mut likes = store.watch(likes::count());
    /// println!("{} likes", likes.next().await?);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// See [`Error`]. After [`Error::Unavailable`] it is not known whether the event is stored.
    pub async fn commit<E: Event>(&self, event: E) -> Result<Receipt, Error> {
        self.commit_envelope(Envelope::new(EventId::now(), &event)?).await
    }

    /// As [`commit`](Self::commit), for an event that has an id already. Repeating it is always safe: one id counts
    /// once, however often it comes.
    ///
    /// # Errors
    ///
    /// As [`commit`](Self::commit).
    pub async fn commit_envelope(&self, event: Envelope) -> Result<Receipt, Error> {
        let (reply, receipt) = oneshot::channel();
        self.queue()?.try_send(Work::Commit(event, reply)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Error::Overloaded,
            mpsc::error::TrySendError::Closed(_) => Error::Closed,
        })?;
        receipt.await.map_err(|_| self.unanswered())?
    }

    /// Adds events that happened elsewhere, with the devices they come from. They are not judged: one that can't be
    /// applied is stored and skipped.
    ///
    /// # Errors
    ///
    /// As [`commit`](Self::commit); then none or all of them are stored.
    pub async fn add(&self, events: Vec<(Envelope, Device)>) -> Result<Vec<Outcome>, Error> {
        self.with(move |replica| replica.add(&events)).await
    }

    /// Keeps an event that its authority refused, with the reason.
    ///
    /// # Errors
    ///
    /// As [`commit`](Self::commit).
    pub async fn set_aside(&self, event: Envelope, why: String) -> Result<Outcome, Error> {
        self.with(move |replica| replica.set_aside(&event, &why)).await
    }

    /// Moves the store to whatever log its upstream has: everything goes back to the outbox, to be pushed there. Nothing
    /// is lost; what the other log has already is recognized by its id.
    ///
    /// # Errors
    ///
    /// As [`commit`](Self::commit), and [`Error::OwnLog`].
    pub async fn adopt(&self) -> Result<Standing, Error> {
        let adopted = self.with(|replica| {
            if let Whose::Own(_) = replica.standing()?.whose {
                return Ok(None);
            }
            replica.take_back(Seq::START, Whose::Upstream(None))?;
            replica.standing().map(Some)
        });
        adopted.await?.ok_or(Error::OwnLog)
    }

    /// Makes this instance the authority of the store's log. What is pending gets its place at the end.
    ///
    /// # Errors
    ///
    /// As [`commit`](Self::commit).
    pub async fn promote(&self) -> Result<Standing, Error> {
        self.with(|replica| {
            replica.promote()?;
            replica.standing()
        })
        .await
    }

    /// Puts the events set aside to those that wait, once more. Gives how many there were.
    ///
    /// # Errors
    ///
    /// As [`commit`](Self::commit).
    pub async fn retry_set_aside(&self) -> Result<usize, Error> {
        self.with(|replica| replica.retry_set_aside(EventId::now)).await
    }

    /// The cursor and the digest of a state without events.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn empty_state(&self) -> Result<(Cursor, Digest), Error> {
        let digest = State::in_memory(&self.inner.schema).and_then(|state| state.digest());
        Ok((Cursor::default(), digest.map_err(|fault| Error::from(&fault))?))
    }

    /// The answers to `query`: the present one, and every newer one.
    pub fn watch<T>(&self, query: Query<T>) -> Watch<T>
    where
        T: Clone + PartialEq + Send + Sync + 'static,
    {
        let (answers, is_new) = self.inner.live.watch(query);
        if is_new {
            self.refresh();
        }
        Watch::new(answers, self.clone())
    }

    /// Has those queries answered that have no answer yet.
    fn refresh(&self) {
        if self.inner.queue.get().is_none()
            && let Some(shared) = self.inner.stores.upgrade()
            && self.inner.unopened().as_ref().map(|_| shared.answer_empty(&self.inner.live)).is_some()
        {
            return;
        }
        if let Some(queue) = self.inner.queue.get() {
            // With a full queue the thread is busy, and will come by here after its next batch.
            drop(queue.try_send(Work::Refresh));
        }
    }

    /// The present answer to `query`.
    ///
    /// # Errors
    ///
    /// When the query or the store fails.
    pub async fn read<T>(&self, query: Query<T>) -> Result<T, Error>
    where
        T: Clone + PartialEq + Send + Sync + 'static,
    {
        self.watch(query).next().await
    }

    /// How the store is, now and from now on.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.inner.health.clone()
    }

    /// How the store is, once that is known. A look at a store that failed makes it try again.
    pub async fn healthy(&self) -> Health {
        let mut health = self.health();
        if health.borrow().trouble().is_some() {
            self.refresh();
        }
        match health.wait_for(|health| *health != Health::Opening).await {
            Ok(health) => health.clone(),
            Err(_) => Health::Failed(Error::Closed.to_string()),
        }
    }

    /// The store's name.
    pub fn id(&self) -> &StoreId {
        &self.inner.id
    }

    /// The store's files, which need not exist.
    pub fn files(&self) -> &Files {
        &self.inner.files
    }

    /// Runs `act` on the store's thread, which makes the store if need be. A fault closes the replica, to be opened again.
    pub(crate) async fn with<R: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Replica) -> Result<R, Fault> + Send + 'static,
    ) -> Result<R, Error> {
        self.ask(self.queue()?, Work::With, |replica| replica.map(act).transpose()).await?.ok_or(Error::Closed)
    }

    /// Runs `act` on the store's thread if the store has events; otherwise gives nothing, and makes nothing.
    pub(crate) async fn look<R: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Replica) -> Result<R, Fault> + Send + 'static,
    ) -> Result<Option<R>, Error> {
        self.look_if_any(|replica| replica.map(act).transpose()).await
    }

    /// Runs `act` on the store's thread, with the replica if the store has events, and makes nothing.
    pub(crate) async fn look_if_any<R: Send + 'static>(
        &self,
        act: impl FnOnce(Option<&mut Replica>) -> Result<R, Fault> + Send + 'static,
    ) -> Result<R, Error> {
        match self.inner.queue.get() {
            Some(queue) => self.ask(queue, Work::Look, act).await,
            None if self.inner.unopened().is_some() => act(None).map_err(|fault| Error::from(&fault)),
            // Opened at this moment, or closed for good.
            None => self.ask(self.inner.queue.get().ok_or(Error::Closed)?, Work::Look, act).await,
        }
    }

    /// Whether the store has no events, as far as is known.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(*self.inner.health.borrow(), Health::Absent)
    }

    /// Opens the store if it isn't open, for an event of somebody who has to leave `spare` to others. True when it is a
    /// store without events that was opened by this call.
    ///
    /// # Errors
    ///
    /// When there is no room.
    pub(crate) fn begin(&self, spare: Spare) -> Result<bool, Error> {
        if self.inner.queue.get().is_some() {
            return Ok(false);
        }
        let shared = self.inner.stores.upgrade().ok_or(Error::Closed)?;
        let mut open = shared.lock();
        shared.start(&mut open, &self.inner, spare)
    }

    fn queue(&self) -> Result<&mpsc::Sender<Work>, Error> {
        self.begin(Spare::default())?;
        self.inner.queue.get().ok_or(Error::Closed)
    }

    async fn ask<R: Send + 'static>(
        &self,
        queue: &mpsc::Sender<Work>,
        work: fn(Act) -> Work,
        act: impl FnOnce(Option<&mut Replica>) -> Result<R, Fault> + Send + 'static,
    ) -> Result<R, Error> {
        let (reply, answer) = oneshot::channel();
        let act: Act = Box::new(move |replica| {
            let (answer, result) = match replica.map(act) {
                Ok(Ok(value)) => (Ok(value), Ok(())),
                Ok(Err(fault)) => (Err(Error::from(&fault)), Err(fault)),
                Err(error) => (Err(error), Ok(())),
            };
            (result, Box::new(move || drop(reply.send(answer))))
        });
        queue.send(work(act)).await.map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| self.unanswered())?
    }

    /// Why the thread let go of something without an answer.
    fn unanswered(&self) -> Error {
        if self.inner.queue.get().is_none_or(mpsc::Sender::is_closed) {
            return Error::Closed;
        }
        let why = "likewise failed in the middle of this; its log says more. Try again: one id counts once";
        Error::Unavailable(why.into())
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.inner.id).finish()
    }
}

/// The bounds of what stores may use. The program's own are in `cli.rs`.
#[derive(Debug, Clone, Copy)]
pub struct StoreLimits {
    /// How many events may wait to be stored, a store.
    pub queue: usize,
    /// How many stores there may be.
    pub stores: u64,
    /// How many of them may be in use at the same time; each has a thread.
    pub open: usize,
    /// How long a store stays open without anybody using it.
    pub idle: Duration,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self { queue: 8_192, stores: 10_000, open: 512, idle: Duration::from_secs(60) }
    }
}

/// What whoever asks has to leave to others of the room for stores.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Spare {
    /// Of the stores that there may be.
    pub(crate) stores: u64,
    /// Of those that may be in use at the same time.
    pub(crate) open: usize,
}

/// The stores of one data directory: opened at first use, closed when idle.
#[derive(Clone)]
pub struct Stores {
    shared: Arc<Shared>,
}

struct Shared {
    dir: PathBuf,
    limits: StoreLimits,
    common: Arc<Common>,
    /// The state that all stores without events share, once somebody looked at one.
    empty: Mutex<Option<State>>,
    open: Mutex<OpenStores>,
}

#[derive(Default)]
struct OpenStores {
    stores: HashMap<StoreId, OpenStore>,
    /// The stores without events that somebody looks at, so that all who look have the same one, and are told when it gets
    /// its first event.
    absent: HashMap<StoreId, Weak<Inner>>,
    /// How many of those there were after the last look for such as nobody has any more.
    absent_after_sweep: usize,
    /// Tells that something about a store is new; kept while somebody listens, also when the store is closed.
    news: HashMap<StoreId, watch::Sender<u64>>,
    /// Threads that are closing their store; whoever opens it again has to wait for them.
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
    /// The stores under `dir`, each in a directory of its name. Nothing is made before a store has its first event.
    ///
    /// The caller sees to it that no other process has them open.
    ///
    /// # Errors
    ///
    /// When the schema breaks a rule, or `dir` can't be read.
    pub fn open(dir: &Path, setup: Setup, limits: StoreLimits) -> Result<Self, Fault> {
        Self::new(dir, setup, limits, false)
    }

    /// As [`open`](Self::open), for stores whose authority is an upstream. One whose log is its own is taken back to its
    /// outbox, to be pushed.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn following(dir: &Path, setup: Setup, limits: StoreLimits) -> Result<Self, Fault> {
        Self::new(dir, setup, limits, true)
    }

    fn new(dir: &Path, setup: Setup, limits: StoreLimits, follows: bool) -> Result<Self, Fault> {
        setup.schema.check()?;
        let count = stores_in(dir)?.len() as u64;
        let checkpoints = start_checkpoints().doing("start a thread for", dir)?;
        let common = Arc::new(Common {
            setup,
            follows,
            count: AtomicU64::new(count),
            max: limits.stores,
            checked: Mutex::default(),
            checkpoints,
        });
        let (empty, open) = (Mutex::default(), Mutex::default());
        Ok(Self { shared: Arc::new(Shared { dir: dir.to_owned(), limits, common, empty, open }) })
    }

    /// The store `id`, opened if it has events. One that has none is just as good: it shows an empty state, and costs
    /// nothing until it gets its first event.
    ///
    /// # Errors
    ///
    /// When too many stores are in use, or all are being closed.
    pub fn get(&self, id: &StoreId) -> Result<Store, Error> {
        self.get_leaving(id, Spare::default())
    }

    /// As [`get`](Self::get), for somebody who has to leave `spare` to others.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
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
            return Ok(Store { inner });
        }
        let files = self.files(id);
        // One that is just being closed may be about to get its files.
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
        });
        if exists {
            self.shared.start(&mut open, &inner, spare)?;
        } else {
            if open.absent.len() >= ABSENT.max(2 * open.absent_after_sweep) {
                open.sweep_absent();
            }
            open.absent.insert(id.clone(), Arc::downgrade(&inner));
        }
        Ok(Store { inner })
    }

    /// The store `id` if it is open already. This is no use of it.
    pub(crate) fn opened(&self, id: &StoreId) -> Option<Store> {
        self.shared.lock().stores.get(id).map(|known| known.store.clone())
    }

    /// Whether so many stores are open that those which nobody needs had better be closed.
    pub(crate) fn are_crowded(&self) -> bool {
        self.shared.lock().stores.len() >= self.shared.limits.open.div_ceil(2)
    }

    /// Changes whenever something about the store is new. Unlike a handle, it doesn't keep the store open.
    pub(crate) fn news(&self, id: &StoreId) -> watch::Receiver<u64> {
        self.shared.lock().news(id).subscribe()
    }

    /// The bounds of what the stores may use.
    pub(crate) fn limits(&self) -> StoreLimits {
        self.shared.limits
    }

    /// Lets go of the stores that nobody has used for a while. To be called every [`SWEEP_EVERY`]: a store that was opened
    /// by a look would otherwise stay until the next.
    pub(crate) fn close_idle(&self) {
        self.shared.lock().sweep(Instant::now(), self.shared.limits.idle);
    }

    /// The files of the store `id`, which need not exist.
    pub fn files(&self, id: &StoreId) -> Files {
        Files::in_dir(self.shared.dir.join(id.as_str()))
    }

    /// The names of the stores on disk, in order.
    ///
    /// # Errors
    ///
    /// When the directory can't be read.
    pub fn list(&self) -> Result<Vec<StoreId>, Fault> {
        stores_in(&self.shared.dir)
    }

    /// Lets every store finish what it has been given, and closes it. Blocks until that is done, so async code leaves it
    /// to a thread that may wait (`spawn_blocking`).
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
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, OpenStores> {
        self.open.lock().expect("BUG: opening a store panicked")
    }

    /// Starts the thread of a store, unless it has one, and leaves `spare`. True when the store has no events yet.
    fn start(&self, open: &mut OpenStores, inner: &Arc<Inner>, spare: Spare) -> Result<bool, Error> {
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
        // The thread counts when it makes the files; here a store that can't be made is spared the thread.
        let most = self.limits.stores.saturating_sub(spare.stores);
        if is_absent && self.common.count.load(Ordering::Relaxed) >= most {
            return Err(Error::TooManyStores(most));
        }
        let (queue, work) = mpsc::channel(self.limits.queue);
        let Some(Unopened { tell_health }) = unopened.take() else { return Err(Error::Closed) };
        let (files, live, news) = (inner.files.clone(), Arc::clone(&inner.live), open.news(&inner.id).clone());
        let writer = Writer::new(files, Arc::clone(&self.common), work, live, tell_health, news);
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
                // The next who asks gets another handle.
                open.absent.remove(&inner.id);
                return Err(Error::Unavailable(format!("cannot start a thread: {why}").into()));
            }
        };
        drop(inner.queue.set(queue));
        open.absent.remove(&inner.id);
        let store = Store { inner: Arc::clone(inner) };
        open.stores.insert(inner.id.clone(), OpenStore { store, thread, used: now });
        Ok(is_absent)
    }

    /// Answers queries of a store without events.
    fn answer_empty(&self, live: &Live) {
        let mut empty = self.empty.lock().unwrap_or_else(PoisonError::into_inner);
        let state = match empty.take().map_or_else(|| State::in_memory(&self.common.setup.schema), Ok) {
            Ok(state) => empty.insert(state),
            Err(fault) => return live.fail(&Error::from(&fault)),
        };
        live.refresh(state, Tables::default());
    }
}

impl OpenStores {
    fn news(&mut self, id: &StoreId) -> &watch::Sender<u64> {
        self.news.entry(id.clone()).or_insert_with(|| watch::channel(0).0)
    }

    /// Lets go of the stores that nobody has used for `idle`.
    fn sweep(&mut self, now: Instant, idle: Duration) {
        self.swept = Some(now);
        self.closing.retain(|_, thread| !thread.is_finished());
        let is_idle =
            |open: &OpenStore| Arc::strong_count(&open.store.inner) == 1 && now.duration_since(open.used) >= idle;
        for (id, OpenStore { store, thread, .. }) in self.stores.extract_if(|_, open| is_idle(open)) {
            // With its last handle goes its queue, and the thread ends.
            drop(store);
            self.closing.insert(id, thread);
        }
        let Self { stores, news, .. } = self;
        news.retain(|id, news| news.receiver_count() > 0 || stores.contains_key(id));
        self.sweep_absent();
    }

    /// Forgets the stores without events that nobody looks at any more.
    fn sweep_absent(&mut self) {
        self.absent.retain(|_, inner| inner.strong_count() > 0);
        self.absent_after_sweep = self.absent.len();
    }
}

/// The names of the stores under `dir`, in order, whoever has them open.
///
/// # Errors
///
/// When the directory can't be read.
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
    use crate::fuzz::{fuzz, outcome, text};
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
    async fn whoever_has_a_receipt_sees_the_event() {
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

    #[test]
    fn trust_38_fuzzed_names_of_stores_are_names_of_directories() {
        fuzz("store", &["likes", "..", "/", "-", "%2e", "con", "é"], |input| {
            let id = text(input).parse::<StoreId>();
            if let Ok(id) = &id {
                assert_eq!(id.as_str().as_bytes(), input);
                let mut parts = Path::new(id.as_str()).components();
                assert!(matches!(parts.next(), Some(std::path::Component::Normal(_))) && parts.next().is_none());
                assert!(id.as_str().len() <= 63);
            }
            if let Err(why) = &id {
                assert!(why.to_string().chars().count() < 250, "{why}");
            }
            outcome(&id)
        });
    }
}
