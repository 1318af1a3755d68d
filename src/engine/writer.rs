//! The one thread that owns a store's replica. It takes work from a bounded queue, and commits waiting events together.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use super::error::{Error, Fault};
use super::event::{Device, Envelope};
use super::eventlog::{Checked, Progress};
use super::health::Health;
use super::live::{Live, News};
use super::lock::Guard;
use super::materialize::panic_message;
use super::place::Seq;
use super::replica::{Outcome, Replica, Standing};
use super::setup::{Files, Setup};
use super::state::State;
use super::storage::WalGauge;
use super::store::StoreId;
use crate::limits::engine::writer::{CHECKED_TOGETHER, LOOK_EVERY, MOST_TOGETHER, RETRY_AFTER};

/// The receipt of a stored event.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stored {
    /// Its place in the log, unless an upstream has yet to assign one.
    pub(super) seq: Option<Seq>,
    /// False if it was stored before.
    pub(super) is_new: bool,
}

/// A request to a store's thread.
pub(crate) enum Work {
    /// Commit an event, together with others that are waiting. The name is its origin, unless that is this device.
    Commit(Envelope, Option<Device>, oneshot::Sender<Result<Stored, Error>>),
    /// Run code on the replica. Creates the store if it has no events yet.
    With(Act),
    /// Run code on the replica, if there is one.
    Look(Act),
    /// Answer new queries, and retry a failed store.
    Refresh,
    /// Finish the earlier work, and end.
    Close,
}

/// Code to run on a replica. It gets `None` if the store has no events, and an error if it can't be opened. A fault
/// closes the replica. The [`Answer`] tells the caller how it went.
pub(crate) type Act = Box<dyn FnOnce(Result<Option<&mut Replica>, Error>) -> (Result<(), Fault>, Answer) + Send>;

/// Answers the caller. It runs after the watchers were told, so a caller who reads after the answer sees the change.
pub(crate) type Answer = Box<dyn FnOnce() + Send>;

/// What the thread holds.
enum Held {
    /// There are no files yet, only the state of an empty log to read from. Files are created with the first event.
    Absent(Box<State>),
    Open(Box<Replica>),
    /// The store can't be opened. Holds the reason, and since when.
    Failed(Error, Instant),
}

/// Whether the store accepts writes. If it doesn't, it can still be read.
enum Writes {
    Taken,
    /// The last write failed. Holds the reason, and when. Another is tried after [`RETRY_AFTER`].
    Failed(Error, Instant),
    /// The eventlog is damaged. Nothing is added, because a new event might have to be abandoned with the rest.
    Ended(Error),
}

impl Writes {
    fn trouble(&self) -> Option<&Error> {
        match self {
            Self::Taken => None,
            Self::Failed(why, _) | Self::Ended(why) => Some(why),
        }
    }

    /// Returns whether the next write may be tried.
    fn may_be_tried(&self) -> bool {
        match self {
            Self::Taken => true,
            Self::Failed(_, since) => since.elapsed() >= RETRY_AFTER,
            Self::Ended(_) => false,
        }
    }
}

/// What this thread knows of the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disk {
    /// There have been no files yet.
    Empty,
    /// There have been files, so it is a fault if they go missing. Some of their content may not be on the disk.
    Seen,
    /// All of their content is on the disk: this thread synced them at opening, and no sync has failed since.
    Durable,
}

/// The data shared by the stores of one directory.
pub(crate) struct Common {
    pub(crate) setup: Setup,
    /// Whether an upstream is the authority of every store.
    pub(crate) follows: bool,
    /// Keeps other processes out.
    pub(crate) guard: Guard,
    /// The stores that have files, or are about to get them.
    pub(crate) existing: watch::Sender<HashSet<StoreId>>,
    /// The most stores there may be.
    pub(crate) max: u64,
    /// The checks done on stores that are closed for now.
    pub(crate) checked: Mutex<HashMap<PathBuf, Checked>>,
    /// The thread that checkpoints.
    pub(crate) checkpoints: std::sync::mpsc::Sender<Arc<WalGauge>>,
    /// Is told of every write, once somebody wants to know.
    pub(crate) measure: OnceLock<Measure>,
}

/// How long it took to store what was waiting.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Written {
    /// From the first look at it until everybody was told.
    pub(crate) commit: Duration,
    /// The part of it in which the eventlog's file was written and synced.
    pub(crate) sync: Duration,
}

/// Counts writes. It runs on the threads of stores, so it must be quick.
pub(crate) type Measure = Box<dyn Fn(Written) + Send + Sync>;

pub(crate) struct Writer {
    id: StoreId,
    files: Files,
    common: Arc<Common>,
    queue: mpsc::Receiver<Work>,
    live: Arc<Live>,
    health: watch::Sender<Health>,
    /// Changes whenever `health` does. Watching it doesn't keep the store open.
    news: watch::Sender<u64>,
    held: Held,
    writes: Writes,
    disk: Disk,
    /// Where the store stood when it could last be read.
    standing: Option<Standing>,
    looked: Instant,
    /// Whether the background checks have covered everything that was there at opening.
    is_checked: bool,
}

impl Writer {
    pub(crate) fn new(
        id: StoreId,
        files: Files,
        common: Arc<Common>,
        queue: mpsc::Receiver<Work>,
        live: Arc<Live>,
        health: watch::Sender<Health>,
        news: watch::Sender<u64>,
    ) -> Self {
        let held = Held::Failed(Error::Closed, Instant::now());
        Self {
            id,
            files,
            common,
            queue,
            live,
            health,
            news,
            held,
            writes: Writes::Taken,
            disk: Disk::Empty,
            standing: None,
            looked: Instant::now(),
            is_checked: false,
        }
    }

    /// Works until every handle of the store is dropped, or the store is closed.
    pub(crate) fn run(mut self) {
        self.unless_panicked(|writer| {
            writer.open();
            writer.publish();
        });
        while let Some(work) = self.next() {
            let served = self.unless_panicked(|writer| {
                let began = Instant::now();
                let flow = writer.serve(work);
                writer.measure(began);
                writer.checkpoint();
                flow
            });
            if served.is_some_and(|flow| flow.is_break()) {
                break;
            }
        }
        self.remember_checks();
    }

    /// Runs `act`, and survives a panic in it. A bug of ours costs only the answers to the work in progress. The store
    /// is opened again.
    fn unless_panicked<T>(&mut self, act: impl FnOnce(&mut Self) -> T) -> Option<T> {
        match catch_unwind(AssertUnwindSafe(|| act(self))) {
            Ok(value) => Some(value),
            Err(panic) => {
                let fault = Fault::Panicked(panic_message(&*panic).to_owned());
                let again = catch_unwind(AssertUnwindSafe(|| {
                    self.recover(&fault);
                    self.publish();
                }));
                if again.is_err() {
                    self.held = Held::Failed(Error::from(&fault), Instant::now());
                }
                None
            }
        }
    }

    /// Waits for work. While there is none, runs queries that had to wait, and checks old events, a few at a time.
    fn next(&mut self) -> Option<Work> {
        loop {
            match self.queue.try_recv() {
                Ok(work) => return Some(work),
                Err(mpsc::error::TryRecvError::Disconnected) => return None,
                Err(mpsc::error::TryRecvError::Empty) if self.unless_panicked(Self::go_on) == Some(true) => {}
                Err(mpsc::error::TryRecvError::Empty) => return self.queue.blocking_recv(),
            }
        }
    }

    /// Does some of the work that can wait. Returns false if there is none.
    fn go_on(&mut self) -> bool {
        if !matches!(self.held, Held::Failed(..)) && self.live.has_more() {
            self.publish();
            return true;
        }
        self.check_some()
    }

    /// Checks some old events. Returns false if none are left to check.
    fn check_some(&mut self) -> bool {
        let Held::Open(replica) = &mut self.held else { return false };
        if self.is_checked || self.writes.trouble().is_some() {
            return false;
        }
        match replica.check_some(CHECKED_TOGETHER) {
            Ok(Progress::More) => return true,
            Ok(Progress::Done) => self.is_checked = true,
            Err(fault) => {
                self.recover(&fault);
                self.publish();
            }
        }
        false
    }

    /// Saves the checks done for the next thread of this store.
    fn remember_checks(&self) {
        if let Held::Open(replica) = &self.held
            && self.writes.trouble().is_none()
        {
            let mut all = self.common.checked.lock().expect("BUG: remembering what was checked panicked");
            all.insert(self.files.dir().to_owned(), replica.take_checked());
        }
    }

    /// Serves `first`, together with the commits waiting behind it.
    fn serve(&mut self, first: Work) -> ControlFlow<()> {
        let mut events = Vec::new();
        let mut replies = Vec::new();
        let mut next = Some(first);
        while let Some(Work::Commit(event, origin, reply)) = next {
            events.push((event, origin));
            replies.push(reply);
            next = if events.len() < MOST_TOGETHER { self.queue.try_recv().ok() } else { None };
        }
        if !events.is_empty() {
            let results = self.commit(&events, next.is_some());
            self.publish();
            for (reply, result) in replies.into_iter().zip(results) {
                // The caller may be gone. The event is stored anyway.
                drop(reply.send(result));
            }
        }
        if next.is_some() && self.rest().is_err() {
            self.publish();
        }
        match next {
            Some(Work::Refresh) => {
                self.reopen();
                self.publish();
            }
            None | Some(Work::Commit(..)) => {}
            Some(Work::With(act)) => self.act(act, true),
            Some(Work::Look(act)) => self.act(act, false),
            Some(Work::Close) => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    }

    /// Tells how long the work since `began` took, if anything was stored.
    fn measure(&mut self, began: Instant) {
        if let Held::Open(replica) = &mut self.held
            && let Some(sync) = replica.take_synced()
            && let Some(measure) = self.common.measure.get()
        {
            measure(Written { commit: began.elapsed(), sync });
        }
    }

    /// Commits events. `rests` says that something else than a commit comes next.
    fn commit(&mut self, events: &[(Envelope, Option<Device>)], rests: bool) -> Vec<Result<Stored, Error>> {
        let result = match self.replica() {
            Ok(replica) => replica.commit_from(events).map_err(|fault| self.recover(&fault)),
            // The store failed a moment ago and is not retried for a while. Asking doesn't prolong that.
            Err(error) => Err(error),
        };
        let is_last = rests || self.queue.is_empty();
        match result.and_then(|outcomes| if is_last { self.rest().map(|()| outcomes) } else { Ok(outcomes) }) {
            Ok(outcomes) => {
                self.writes = Writes::Taken;
                let receipt = |(outcome, (event, _)): (Outcome, &(Envelope, _))| match outcome {
                    Outcome::Stored(seq) => Ok(Stored { seq, is_new: true }),
                    Outcome::Known(seq) => Ok(Stored { seq, is_new: false }),
                    Outcome::Conflict => Err(Error::Conflict(event.id)),
                    Outcome::Refused(why) => Err(Error::Refused(why)),
                };
                outcomes.into_iter().zip(events).map(receipt).collect()
            }
            Err(error) => vec![Err(error); events.len()],
        }
    }

    /// Commits the state of the commits so far. It waits while one group of them follows the other, and is done before anything
    /// else, so nobody who looks sees a state that is behind.
    fn rest(&mut self) -> Result<(), Error> {
        let Held::Open(replica) = &mut self.held else { return Ok(()) };
        replica.rest().map_err(|fault| self.recover(&fault))
    }

    fn act(&mut self, act: Act, may_create: bool) {
        self.reopen();
        let (result, answer) = if !may_create && matches!(self.held, Held::Absent(_)) {
            act(Ok(None))
        } else {
            act(self.replica().map(Some))
        };
        if let Err(fault) = result {
            self.recover(&fault);
        }
        self.publish();
        answer();
    }

    /// Returns the replica. Reopens it if it failed a while ago, and creates it if there is none yet.
    fn replica(&mut self) -> Result<&mut Replica, Error> {
        self.reopen();
        if let Some(error) = self.writes.trouble().filter(|_| !self.writes.may_be_tried()) {
            return Err(error.clone());
        }
        if matches!(self.held, Held::Absent(_)) {
            self.create()?;
        }
        if self.looked.elapsed() >= LOOK_EVERY
            && let Held::Open(replica) = &self.held
        {
            self.looked = Instant::now();
            if let Err(fault) = replica.check_files() {
                self.fail(Error::from(&fault));
            }
        }
        match &mut self.held {
            Held::Open(replica) => Ok(replica),
            Held::Failed(error, _) => Err(error.clone()),
            Held::Absent(_) => Err(Error::Closed),
        }
    }

    /// Retries opening a store that failed a while ago, or writing to one that can only be read.
    fn reopen(&mut self) {
        if matches!(&self.held, Held::Failed(_, since) if since.elapsed() >= RETRY_AFTER) {
            self.open();
        }
        if let Held::Open(replica) = &mut self.held
            && self.writes.trouble().is_some()
            && self.writes.may_be_tried()
        {
            match replica.probe() {
                Ok(()) => self.writes = Writes::Taken,
                Err(fault) => drop(self.recover(&fault)),
            }
        }
    }

    /// Reopens the store after `fault`. It can then be read, for example while the disk is full.
    fn recover(&mut self, fault: &Fault) -> Error {
        self.doubt_after(fault);
        let error = Error::from(fault);
        self.fail(error.clone());
        self.open();
        self.writes = match (&self.writes, fault) {
            (Writes::Ended(_), _) | (_, Fault::Damaged(_)) => Writes::Ended(error.clone()),
            _ => Writes::Failed(error.clone(), Instant::now()),
        };
        error
    }

    /// Notes that the disk may lack some data, unless `fault` rules that out.
    fn doubt_after(&mut self, fault: &Fault) {
        if self.disk == Disk::Durable && !fault.leaves_synced() {
            self.disk = Disk::Seen;
        }
    }

    /// Opens the files on disk, or an empty state if there are none.
    fn open(&mut self) {
        // Drop the old replica first, so it closes its files.
        self.held = Held::Failed(Error::Closed, Instant::now());
        self.is_checked = false;
        let exists = self.files.exist();
        match self.disk {
            Disk::Seen | Disk::Durable if !exists => {
                return self.fail(Error::from(&Fault::Gone(self.files.dir().to_owned())));
            }
            Disk::Empty if exists => self.disk = Disk::Seen,
            _ => {}
        }
        let opened = if exists {
            self.open_replica().map(|replica| Held::Open(Box::new(replica)))
        } else {
            State::in_memory(&self.common.setup.schema).map(|state| Held::Absent(Box::new(state))).map_err(Fault::from)
        };
        match opened {
            Ok(mut held) => {
                if let Held::Open(replica) = &mut held {
                    // Watchers may have an older answer.
                    replica.state().touch_all();
                }
                self.held = held;
            }
            Err(fault) => self.fail(Error::from(&fault)),
        }
    }

    fn open_replica(&mut self) -> Result<Replica, Fault> {
        let Common { setup, follows, checked, guard, .. } = &*self.common;
        let checked = checked.lock().expect("BUG: remembering what was checked panicked").remove(self.files.dir());
        let open = || {
            guard.claim_for_files()?;
            let mut replica = Replica::open_found(self.files.clone(), setup.clone(), self.disk == Disk::Durable)?;
            if let Some(earlier) = checked {
                replica.go_on_checking(earlier)?;
            }
            if *follows {
                replica.follow()?;
            }
            Ok(replica)
        };
        let opened = open();
        match &opened {
            Ok(_) => self.disk = Disk::Durable,
            Err(fault) => self.doubt_after(fault),
        }
        opened
    }

    /// Creates the files of a store that gets its first event.
    fn create(&mut self) -> Result<(), Error> {
        let common = Arc::clone(&self.common);
        let Common { existing, max, .. } = &*common;
        let mut fits = true;
        existing.send_if_modified(|all| {
            // Somebody may have removed the files of a store that was there.
            fits = all.contains(&self.id) || (all.len() as u64) < *max;
            fits && all.insert(self.id.clone())
        });
        if !fits {
            return Err(Error::TooManyStores(*max));
        }
        match self.open_replica() {
            Ok(replica) => {
                self.held = Held::Open(Box::new(replica));
                Ok(())
            }
            Err(fault) => {
                if !self.files.exist() {
                    existing.send_if_modified(|all| all.remove(&self.id));
                }
                let error = Error::from(&fault);
                self.fail(error.clone());
                Err(error)
            }
        }
    }

    fn fail(&mut self, error: Error) {
        if !matches!(error, Error::Unavailable(_)) {
            return;
        }
        let is_news =
            !matches!(&self.held, Held::Failed(last, _) if *last == error) && self.writes.trouble() != Some(&error);
        if is_news {
            tracing::error!(store = %self.files.dir().display(), "{error}");
        }
        self.held = Held::Failed(error, Instant::now());
    }

    /// Tells all watchers what changed.
    fn publish(&mut self) {
        let news = match &mut self.held {
            Held::Absent(state) => self.live.refresh(state),
            Held::Open(replica) => self.live.refresh(replica.state()),
            Held::Failed(error, _) => {
                self.live.fail(error);
                News::default()
            }
        };
        let health = match &self.held {
            Held::Absent(_) => Health::Absent,
            Held::Open(replica) => match replica.standing() {
                Ok(standing) => {
                    self.standing = Some(standing.clone());
                    match self.writes.trouble() {
                        Some(error) => Health::ReadOnly(standing, error.to_string()),
                        None => Health::Open(standing),
                    }
                }
                Err(fault) => self.failed(&Error::from(&fault)),
            },
            Held::Failed(error, _) => self.failed(error),
        };
        let tell_health = || {
            let is_new = self.health.send_if_modified(|last| {
                let is_new = *last != health;
                if is_new {
                    *last = health;
                }
                is_new
            });
            if is_new {
                self.news.send_modify(|times| *times += 1);
            }
            is_new
        };
        self.live.tell(news, tell_health);
    }

    /// Returns the health of a store that can't be opened. The known answers can still be read.
    fn failed(&self, error: &Error) -> Health {
        match &self.standing {
            Some(standing) => Health::ReadOnly(standing.clone(), error.to_string()),
            None => Health::Failed(error.to_string()),
        }
    }

    /// Has the WALs checkpointed into their databases, by another thread as long as it keeps up.
    fn checkpoint(&self) {
        let Held::Open(replica) = &self.held else { return };
        for gauge in replica.wals() {
            if gauge.is_overdue() && !replica.is_writing(gauge) {
                // Commits came faster than the other thread could follow. Checkpoint here: nothing is written
                // meanwhile.
                if let Err(error) = gauge.checkpoint() {
                    tracing::warn!(path = %gauge.path().display(), %error, "cannot checkpoint");
                }
            } else if gauge.claim() && self.common.checkpoints.send(Arc::clone(gauge)).is_err() {
                gauge.release();
            }
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Without this, watchers would wait forever, because the store's handles keep its queries alive.
        self.live.close();
    }
}

/// Starts the thread that checkpoints for all stores. The thread ends when the last sender is dropped.
pub(crate) fn start_checkpoints() -> std::io::Result<std::sync::mpsc::Sender<Arc<WalGauge>>> {
    let (sender, receiver) = std::sync::mpsc::channel::<Arc<WalGauge>>();
    std::thread::Builder::new().name("checkpoints".to_owned()).spawn(move || {
        for gauge in receiver {
            if let Err(error) = gauge.checkpoint() {
                tracing::warn!(path = %gauge.path().display(), %error, "cannot checkpoint");
            }
            gauge.release();
        }
    })?;
    Ok(sender)
}
