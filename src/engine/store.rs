//! The handle of a store, for everything above the engine. It is cheap, cloneable and async.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use tokio::sync::{mpsc, oneshot, watch};

use super::error::{Error, Fault, IoContext, Malformed};
use super::event::{Device, Envelope, Event, EventId};
use super::eventlog::Whose;
use super::health::Health;
use super::history::{Counted, History};
use super::live::{Answer, Live};
use super::place::{Cursor, Digest, Seq};
use super::proof::prove;
use super::query::Query;
use super::receipt::Receipt;
use super::remote::{Answer as RemoteAnswer, Question};
use super::replica::{Concluded, Outcome, Replica, Skipped, Standing};
use super::schema::Schema;
use super::setup::Files;
use super::state::State;
use super::stores::{Shared, Spare};
use super::writer::{Act, Stored, Work};

/// The name of a store: `[a-z0-9][a-z0-9-]{0,62}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StoreId(Arc<str>);

impl StoreId {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for StoreId {
    type Err = Malformed;
    fn from_str(name: &str) -> Result<Self, Malformed> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if name.is_empty() || name.len() > 63 || name.starts_with('-') || !name.bytes().all(allowed) {
            return Err(Malformed::Store(name.chars().take(80).collect()));
        }
        Ok(Self(name.into()))
    }
}

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A handle of one store. Cloning is cheap. The store stays open while a handle exists.
#[derive(Clone)]
pub struct Store {
    pub(super) inner: Arc<Inner>,
    /// Opens the store on behalf of this handle. It limits how many stores the handle's user can make.
    opener: Option<Arc<Opener>>,
    /// Who brings the events that are committed through this handle, unless this device does.
    origin: Option<Device>,
}

/// Opens a store for an event, as [`Store::begin`] does, if that is allowed.
type Opener = dyn Fn(&Store) -> Result<(), Error> + Send + Sync;

pub(super) struct Inner {
    pub(super) id: StoreId,
    pub(super) files: Files,
    pub(super) schema: Arc<Schema>,
    pub(super) live: Arc<Live>,
    pub(super) health: watch::Receiver<Health>,
    /// Work for the store's thread. A store without events has no thread, however many watch it.
    pub(super) queue: OnceLock<mpsc::Sender<Work>>,
    /// Present until the store is opened, or all stores are closed. Code that answers in place of the thread holds the
    /// lock, so its answer can't come after one from the thread.
    pub(super) unopened: Mutex<Option<Unopened>>,
    pub(super) stores: Weak<Shared>,
    /// What was counted so far.
    pub(super) counted: Mutex<Counted>,
}

/// What a store's thread gets when it starts.
pub(super) struct Unopened {
    pub(super) tell_health: watch::Sender<Health>,
}

impl Inner {
    pub(super) fn unopened(&self) -> MutexGuard<'_, Option<Unopened>> {
        // A query that panics leaves no partial change.
        self.unopened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    pub(super) fn new(inner: Arc<Inner>) -> Self {
        Self { inner, opener: None, origin: None }
    }

    /// Returns this handle, which now has to ask `opener` before it can create the store.
    pub(crate) fn opened_by(self, opener: impl Fn(&Self) -> Result<(), Error> + Send + Sync + 'static) -> Self {
        Self { opener: Some(Arc::new(opener)), ..self }
    }

    /// Returns this handle, whose commits now come from `origin`. It is recorded where this instance is the authority. An
    /// upstream names the device that pushed.
    pub(crate) fn on_behalf_of(self, origin: Option<Device>) -> Self {
        Self { origin, ..self }
    }

    /// Commits an event that happened now. It is on disk and applied when this returns.
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
    /// See [`Error`]. After [`Error::Unavailable`], it is not known whether the event is stored.
    pub async fn commit<E: Event>(&self, event: E) -> Result<Receipt, Error> {
        self.commit_envelope(Envelope::new(EventId::now(), &event)?).await
    }

    /// Works like [`commit`](Self::commit), for an event that already has an id. Repeating it is always safe: one id
    /// counts once, however often it comes.
    ///
    /// # Errors
    ///
    /// The same as for [`commit`](Self::commit).
    pub async fn commit_envelope(&self, event: Envelope) -> Result<Receipt, Error> {
        let (id, events) = (event.id, event.events());
        let (reply, stored) = oneshot::channel();
        self.queue()?.try_send(Work::Commit(event, self.origin.clone(), reply)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Error::Overloaded,
            mpsc::error::TrySendError::Closed(_) => Error::Closed,
        })?;
        let Stored { seq, is_new } = stored.await.map_err(|_| self.unanswered())??;
        Ok(Receipt { id, events, seq, is_new, store: self.clone() })
    }

    /// Adds events that happened elsewhere, with the devices they come from. They are not judged: an event that can't
    /// be applied is stored and skipped.
    ///
    /// # Errors
    ///
    /// The same as for [`commit`](Self::commit). Either none or all of them are stored then.
    pub async fn add(&self, events: Vec<(Envelope, Device)>) -> Result<Vec<Outcome>, Error> {
        self.with(move |replica| replica.add(&events)).await
    }

    /// Sets aside an event that its authority refused, with the reason.
    ///
    /// # Errors
    ///
    /// The same as for [`commit`](Self::commit).
    pub async fn set_aside(&self, event: Envelope, why: String) -> Result<Outcome, Error> {
        self.with(move |replica| replica.set_aside(&event, &why)).await
    }

    /// Returns the events that have no effect, and why. The newest ids come first, up to
    /// [`MOST_SKIPPED`](super::MOST_SKIPPED) of them.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub async fn skipped(&self) -> Result<Vec<Skipped>, Error> {
        Ok(self.look(|replica| replica.skipped()).await?.unwrap_or_default())
    }

    /// Moves the store to the log that its upstream has now. All events go back to the outbox, to be pushed there.
    /// Nothing is lost: events that the other log already has are recognized by their ids.
    ///
    /// # Errors
    ///
    /// The same as for [`commit`](Self::commit), [`Error::OwnLog`] and [`Error::HistoryMissing`].
    pub async fn adopt(&self) -> Result<Standing, Error> {
        self.prove().await?;
        let adopted = self.with(|replica| {
            let standing = replica.standing()?;
            if let Whose::Own(_) = standing.whose {
                return Ok(Err(Error::OwnLog));
            }
            if let Some(history) = standing.history {
                return Ok(Err(history.into()));
            }
            replica.take_back(Seq::START, Whose::Upstream(None))?;
            replica.standing().map(Ok)
        });
        adopted.await?
    }

    /// Makes this instance the authority of the store's log. Pending events get their places at its end.
    ///
    /// # Errors
    ///
    /// The same as for [`commit`](Self::commit), and [`Error::HistoryMissing`].
    pub async fn promote(&self) -> Result<Standing, Error> {
        self.prove().await?;
        let promoted = self.with(|replica| {
            let is_promoted = replica.promote()?;
            let standing = replica.standing()?;
            Ok(match standing.history {
                Some(history) if !is_promoted => Err(history.into()),
                _ => Ok(standing),
            })
        });
        promoted.await?
    }

    /// Proves the snapshot where the log begins, if all of the history behind it is here: the log is whole then. Returns `None`
    /// if there is nothing to prove. The events are replayed on a thread of their own, which takes as long as rebuilding the
    /// state. The store goes on meanwhile.
    ///
    /// # Errors
    ///
    /// The same as for [`commit`](Self::commit).
    pub async fn prove(&self) -> Result<Option<Concluded>, Error> {
        let is_complete = self.look(|replica| Ok(replica.history().is_some_and(|history| history.is_complete())));
        if is_complete.await? != Some(true) {
            return Ok(None);
        }
        let setup = self.inner.stores.upgrade().ok_or(Error::Closed)?.setup().clone();
        let files = self.inner.files.clone();
        let (reply, proof) = oneshot::channel();
        let prove = move || drop(reply.send(prove(&files, &setup)));
        let thread = std::thread::Builder::new().name("proof".to_owned()).spawn(prove);
        thread.doing("start a thread for", self.inner.files.dir())?;
        let proof = proof.await.map_err(|_| Error::from(&Fault::Panicked("the proof of a snapshot".to_owned())))??;
        let Some(proof) = proof else { return Ok(None) };
        self.with(move |replica| replica.conclude(proof)).await.map(Some)
    }

    /// Commits the set-aside events again, and returns how many there were.
    ///
    /// # Errors
    ///
    /// The same as for [`commit`](Self::commit).
    pub async fn retry_set_aside(&self) -> Result<usize, Error> {
        self.with(|replica| replica.retry_set_aside(EventId::now)).await
    }

    /// Returns the cursor and the digest of a state without events.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn empty_state(&self) -> Result<(Cursor, Digest), Error> {
        Ok((Cursor::default(), State::in_memory(&self.inner.schema)?.digest()?))
    }

    /// Watches `query`: returns its answers, the present one and every newer one.
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

    /// Has new queries answered.
    fn refresh(&self) {
        if self.inner.queue.get().is_none()
            && let Some(shared) = self.inner.stores.upgrade()
            && self.inner.unopened().as_ref().map(|_| shared.answer_empty(&self.inner.live)).is_some()
        {
            return;
        }
        if let Some(queue) = self.inner.queue.get() {
            // If the queue is full, the thread is busy, and answers queries after its next commit anyway.
            drop(queue.try_send(Work::Refresh));
        }
    }

    /// Returns the present answer to `query`.
    ///
    /// # Errors
    ///
    /// If the query or the store fails.
    pub async fn read<T>(&self, query: Query<T>) -> Result<T, Error>
    where
        T: Clone + PartialEq + Send + Sync + 'static,
    {
        self.watch(query).next().await
    }

    /// Returns the present answer to a question from another process.
    ///
    /// # Errors
    ///
    /// The same as for [`read`](Self::read).
    pub(crate) async fn answer(&self, question: Question) -> Result<RemoteAnswer, Error> {
        let schema = Arc::clone(&self.inner.schema);
        let answer = self.look_if_any(move |replica| match replica {
            Some(replica) => Ok(replica.state().ask(question)),
            None => Ok(State::in_memory(&schema)?.ask(question)),
        });
        answer.await?.map_err(|error| Error::Query(error.to_string()))
    }

    /// Returns a counter that changes whenever the store told something: answers to queries, or its health. While it is
    /// borrowed, nothing is told. So a holder sees all changes of a commit, or none.
    pub(crate) fn rounds(&self) -> watch::Receiver<u64> {
        self.inner.live.rounds()
    }

    /// Returns the schema's fingerprint. Replicas with the same fingerprint may compare their states.
    pub(crate) fn schema_fingerprint(&self) -> String {
        self.inner.schema.fingerprint()
    }

    /// Returns the store's health, now and as it changes.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.inner.health.clone()
    }

    /// Returns the store's health, once it is known. Asking makes a failed store retry.
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

    /// Counts who brought the store's events, and when. `day` returns the number of the day to which a time belongs, in
    /// milliseconds since the Unix epoch, or `None` if a clock that says so must be wrong. Each day has to have the same
    /// number in every call.
    ///
    /// The first call reads the whole log, which takes a fraction of a second for a million events. Later ones read what is
    /// new. This blocks, so async code calls it in `spawn_blocking`.
    ///
    /// # Errors
    ///
    /// A fault of the machine.
    pub fn history(&self, mut day: impl FnMut(u64) -> Option<i32>) -> Result<History, Error> {
        let mut kept = self.inner.counted.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_absent() {
            return Ok(History::default());
        }
        // If this fails half-way, the next call starts over.
        let mut counted = std::mem::take(&mut *kept);
        let history = counted.read_on(&self.inner.files, &mut day).map_err(|fault| Error::from(&fault))?;
        *kept = counted;
        Ok(history)
    }

    /// Returns the store's name.
    pub fn id(&self) -> &StoreId {
        &self.inner.id
    }

    /// Returns the store's files, which need not exist.
    pub fn files(&self) -> &Files {
        &self.inner.files
    }

    /// Runs `act` on the store's thread, which creates the store if needed. A fault closes the replica, which is then
    /// opened again.
    pub(crate) async fn with<R: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Replica) -> Result<R, Fault> + Send + 'static,
    ) -> Result<R, Error> {
        self.ask(self.queue()?, Work::With, |replica| replica.map(act).transpose()).await?.ok_or(Error::Closed)
    }

    /// Runs `act` on the store's thread if the store has events. Otherwise returns `None`, and creates nothing.
    pub(crate) async fn look<R: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Replica) -> Result<R, Fault> + Send + 'static,
    ) -> Result<Option<R>, Error> {
        self.look_if_any(|replica| replica.map(act).transpose()).await
    }

    /// Runs `act` on the store's thread, with the replica if the store has events. Creates nothing.
    pub(crate) async fn look_if_any<R: Send + 'static>(
        &self,
        act: impl FnOnce(Option<&mut Replica>) -> Result<R, Fault> + Send + 'static,
    ) -> Result<R, Error> {
        match self.inner.queue.get() {
            Some(queue) => self.ask(queue, Work::Look, act).await,
            None if self.inner.unopened().is_some() => act(None).map_err(|fault| Error::from(&fault)),
            // The store was opened just now, or is closed for good.
            None => self.ask(self.inner.queue.get().ok_or(Error::Closed)?, Work::Look, act).await,
        }
    }

    /// Returns whether the store has no events, as far as is known.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(*self.inner.health.borrow(), Health::Absent)
    }

    /// Opens the store for an event, if it isn't open, and leaves `spare` to others. Returns true if this call opened a
    /// store without events.
    ///
    /// # Errors
    ///
    /// If there is no room.
    pub(crate) fn begin(&self, spare: Spare) -> Result<bool, Error> {
        if self.inner.queue.get().is_some() {
            return Ok(false);
        }
        let shared = self.inner.stores.upgrade().ok_or(Error::Closed)?;
        let mut open = shared.lock();
        shared.start(&mut open, &self.inner, spare)
    }

    fn queue(&self) -> Result<&mpsc::Sender<Work>, Error> {
        match &self.opener {
            Some(open) if self.inner.queue.get().is_none() => open(self)?,
            Some(_) => {}
            None => drop(self.begin(Spare::default())?),
        }
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

    /// Returns why the thread dropped a request without an answer.
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

/// The answers to a query: the present one, then each newer one. A slow reader misses the ones in between.
pub struct Watch<T> {
    answers: watch::Receiver<Answer<T>>,
    /// Keeps the store open.
    _store: Store,
}

impl<T: Clone> Watch<T> {
    pub(crate) fn new(mut answers: watch::Receiver<Answer<T>>, store: Store) -> Self {
        answers.mark_changed();
        Self { answers, _store: store }
    }

    /// Waits until there is an answer. The newest one can then be taken, even if it was taken before.
    pub(crate) async fn answered(&mut self) -> Result<(), Error> {
        self.answers.wait_for(Option::is_some).await.map(drop).map_err(|_| Error::Closed)?;
        self.answers.mark_changed();
        Ok(())
    }

    /// Returns whether there is an answer, taken or not.
    pub(crate) fn is_answered(&self) -> bool {
        self.answers.borrow().is_some()
    }

    /// Takes the newest answer, unless it was taken before.
    pub(crate) fn take(&mut self) -> Option<Result<T, Error>> {
        match self.answers.has_changed() {
            Ok(false) => None,
            Ok(true) => self.answers.borrow_and_update().clone(),
            Err(_) => Some(Err(Error::Closed)),
        }
    }

    /// Returns the present answer at the first call. Later calls wait for one that differs from the last. Cancel safe.
    ///
    /// # Errors
    ///
    /// If the query or the store fails. A later call waits until that has changed.
    pub async fn next(&mut self) -> Result<T, Error> {
        loop {
            self.answers.changed().await.map_err(|_| Error::Closed)?;
            if let Some(answer) = self.answers.borrow_and_update().clone() {
                return answer;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::fuzz::{fuzz, outcome, text};

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
