//! Materializes events: runs each through its materializer into the state.
//!
//! Read the path from the bottom up. [`Db`] is what a materializer sees. [`Schema::apply`] runs one and says whose
//! fault a failure is. [`State`] applies events one by one, together, or as an eventlog holds them, and undoes exactly
//! the ones that failed.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use rusqlite::{Params, Row, Statement, params};

use super::authorizer::Mode;
use super::batch::{self, BATCH};
use super::changes::Written;
use super::error::{DbError, Fault, LogFault, StateFault};
use super::event::{self, Envelope, Event, EventId, EventRef};
use super::rehearsal::MadeUp;
use super::sandbox::{Sandbox, Statements};
use super::schema::Schema;
use super::state::State;
use crate::limits::engine::replica::{KINDS_TOLD, LONGEST_WHY};

/// Why an event may have no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Faulty,
    Unknown,
}

/// What a materializer sees of the world: its event's id and time, and the state.
#[doc = include_str!("../../docs/functions.md")]
pub struct Db<'a> {
    statements: Statements<'a>,
    id: Cell<EventId>,
    touched: &'a Cell<Written>,
    /// The first error after which nothing more may run. Boxed, because it is looked at after each event.
    stopped: RefCell<Option<Box<Failure>>>,
    /// The first statement that could not be prepared, and why.
    unprepared: RefCell<Option<(Box<str>, String)>>,
}

impl<'a> Db<'a> {
    /// Creates a `Db` for the materializers of many events, one after the other. Adds the tables they write to
    /// `touched`.
    pub(crate) fn new(sandbox: &'a Sandbox, touched: &'a Cell<Written>) -> Self {
        let nobody = Cell::new(EventId::from_parts(0, [0; 10]));
        Self {
            statements: sandbox.statements(),
            id: nobody,
            touched,
            stopped: RefCell::default(),
            unprepared: RefCell::default(),
        }
    }

    /// Runs a materializer for a made-up event with this id, and forgets the error that stopped it.
    pub(super) fn at<R>(&self, id: EventId, run: impl FnOnce() -> R) -> R {
        self.id.set(id);
        let result = run();
        self.stopped.take();
        result
    }

    /// Returns the first statement since the last call that could not be prepared, and why.
    pub(super) fn take_unprepared(&self) -> Option<(Box<str>, String)> {
        self.unprepared.take()
    }

    /// Returns the id of the event. It is unique across devices, so it makes a good key. Each event of a batch has its
    /// own.
    pub fn id(&self) -> EventId {
        self.id.get()
    }

    /// Returns when the event happened, in milliseconds since the Unix epoch by its device's clock. It is the time of
    /// its [id](EventId). Without JavaScript, that is when the page was drawn.
    pub fn millis(&self) -> u64 {
        self.id().millis()
    }

    /// Runs one INSERT, UPDATE or DELETE, and returns the number of rows it changed.
    ///
    /// # Errors
    ///
    /// SQLite's errors, and [`DbError::Forbidden`] for a statement that a materializer may not use. Return it with `?`:
    /// the event is then refused, or skipped if it is already in a log.
    pub fn execute(&self, sql: &str, params: impl Params) -> Result<usize, DbError> {
        self.attempt(sql, |statement| Ok(statement.execute(params)?))
    }

    /// Returns all rows of a SELECT, each as `map` reads it. `?` works on any error in `map`. Without ORDER BY, SQLite
    /// may return the rows in any order.
    ///
    /// # Errors
    ///
    /// The same as for [`execute`](Self::execute).
    pub fn rows<T>(
        &self,
        sql: &str,
        params: impl Params,
        map: impl FnMut(&Row<'_>) -> Result<T, DbError>,
    ) -> Result<Vec<T>, DbError> {
        self.attempt(sql, |statement| statement.query_and_then(params, map)?.collect())
    }

    /// Returns the first row of a SELECT as `map` reads it, if there is one.
    ///
    /// # Errors
    ///
    /// The same as for [`execute`](Self::execute).
    pub fn first<T>(
        &self,
        sql: &str,
        params: impl Params,
        map: impl FnOnce(&Row<'_>) -> Result<T, DbError>,
    ) -> Result<Option<T>, DbError> {
        self.attempt(sql, |statement| statement.query(params)?.next()?.map(map).transpose())
    }

    /// Runs one statement, unless an earlier error forbids it. Notes an error that forbids further statements.
    fn attempt<T>(&self, sql: &str, run: impl FnOnce(&mut Statement<'a>) -> Result<T, DbError>) -> Result<T, DbError> {
        if self.stopped.borrow().is_some() {
            return Err(DbError::Stopped);
        }
        let ready = self.statements.ready(sql);
        let is_prepared = ready.is_ok();
        let result = ready.and_then(|ready| {
            // A statement that returns rows may also write, through RETURNING.
            let touched = ready.touched();
            let written = Written { tables: touched.writes, whole: touched.whole };
            self.touched.set(self.touched.get() | written);
            let result = run(&mut ready.statement());
            self.statements.keep(ready);
            result
        });
        let failure = match result.map_err(DbError::of_machine) {
            Ok(value) => return Ok(value),
            Err(Ok(error)) => Failure::Machine(error),
            Err(Err(error)) => {
                let error = error.of_statement(sql);
                if !is_prepared {
                    self.unprepared.borrow_mut().get_or_insert_with(|| (sql.into(), error.to_string()));
                }
                if !self.statements.sandbox().is_autocommit() {
                    return Err(error);
                }
                Failure::Ended(error.to_string())
            }
        };
        self.stopped.replace(Some(Box::new(failure)));
        Err(DbError::Stopped)
    }
}

/// The source of a materializer's event.
pub(crate) enum Payload<'a> {
    /// The stored payload, as [`Args::as_text`](super::Args::as_text) returns it.
    Stored(Option<&'a str>),
    /// A made-up payload, for the rehearsal.
    MadeUp(MadeUp),
}

impl Payload<'_> {
    /// Returns the event, or `None` if none can be made up.
    pub(super) fn event<E: Event>(self) -> Option<Result<E, DbError>> {
        match self {
            Self::Stored(args) => {
                let event = event::decode(args).map_err(|why| format!("its payload can't be read: {why}"));
                Some(event.map_err(|why| DbError::Other(why.into())))
            }
            Self::MadeUp(made_up) => E::deserialize(made_up).ok().map(Ok),
        }
    }
}

/// The effect of an event on the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Its changes were made.
    Applied,
    /// Nothing here knows its name. A later version of the program may.
    Unknown,
    /// It can't be applied, here or anywhere. Holds the reason.
    Skipped(String),
}

/// Why a materializer failed. Its earlier changes are still in the transaction.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The event's own fault.
    Event(String),
    /// The event's own fault, and SQLite ended the transaction over it.
    Ended(String),
    /// The machine's fault. It says nothing about the event.
    Machine(rusqlite::Error),
}

impl Schema {
    /// Runs the materializer of one event inside the open transaction.
    pub(crate) fn apply(&self, db: &Db<'_>, event: &EventRef<'_>) -> Result<Effect, Failure> {
        let sandbox = db.statements.sandbox();
        assert!(!sandbox.is_autocommit(), "BUG: a materializer outside a transaction");
        db.id.set(event.id);
        let run = || sandbox.within(Mode::Materialize, || self.dispatch(event.name, event.args, db));
        let result = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
            let why = format!("its materializer panicked: {}", panic_message(&*panic));
            Err(DbError::Other(why.into()).of_event(event.name))
        });
        // Don't rely on the materializer's result alone: it may have swallowed an error.
        if let Some(failure) = db.stopped.take() {
            return Err(match *failure {
                Failure::Ended(why) => Failure::Ended(DbError::Other(why.into()).of_event(event.name).to_string()),
                other => other,
            });
        }
        result.map_err(|error| match error.of_machine() {
            Ok(error) => Failure::Machine(error),
            Err(error) => Failure::Event(error.to_string()),
        })
    }

    fn dispatch(&self, name: &str, args: Option<&str>, db: &Db<'_>) -> Result<Effect, DbError> {
        if name != BATCH {
            let Some(materializer) = self.materializers.get(name) else { return Ok(Effect::Unknown) };
            return materializer(Payload::Stored(args), db).map(|()| Effect::Applied).map_err(|why| why.of_event(name));
        }
        let items = batch::unseal(args).map_err(|why| DbError::refuse(why.to_string()))?;
        // A batch is all or nothing. With one unknown event, the whole batch waits for the upgrade.
        if items.iter().any(|item| !self.materializers.contains_key(item.name.as_str())) {
            return Ok(Effect::Unknown);
        }
        let batch = db.id();
        for (nth, item) in items.iter().enumerate() {
            db.id.set(batch.nth_of_batch(nth));
            let args = item.args.as_ref().map(|raw| raw.get()).filter(|text| !matches!(*text, "null" | "{}"));
            let name = item.name.as_str();
            self.materializers[name](Payload::Stored(args), db).map_err(|why| why.of_event(name))?;
        }
        Ok(Effect::Applied)
    }
}

/// What to do with an event that can't be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnFault {
    /// Refuse it. It isn't stored anywhere yet, and leaves no trace.
    Refuse,
    /// Skip it and record that. It is already in an eventlog.
    Skip,
}

/// Why applying events stopped.
#[derive(Debug)]
pub(crate) enum Stop {
    /// This event ended the transaction. The transaction has to be redone without it.
    Ended(EventId, String),
    /// The machine failed.
    Fault(Fault),
}

impl From<rusqlite::Error> for Stop {
    fn from(error: rusqlite::Error) -> Self {
        StateFault::from(error).into()
    }
}

impl From<StateFault> for Stop {
    fn from(StateFault(fault): StateFault) -> Self {
        Self::Fault(fault)
    }
}

/// Why one event among others wasn't applied.
#[derive(Debug)]
pub(crate) enum Halt {
    /// The event failed. The caller undoes the others and applies all of them one by one.
    Undo,
    /// The same reasons as for a single event.
    Stop(Stop),
}

impl From<LogFault> for Halt {
    fn from(LogFault(fault): LogFault) -> Self {
        Self::Stop(Stop::Fault(fault))
    }
}

impl From<Stop> for Halt {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

/// A function called with each event read from an eventlog.
pub(crate) type Each<'a> = dyn FnMut(&EventRef<'_>) -> Result<(), Halt> + 'a;

/// Events known to end the transaction they run in, with the reason.
pub(crate) type Enders = HashMap<EventId, String>;

impl State {
    /// Applies events under the last mark and returns the effect of each. If one fails, the caller undoes the mark.
    pub(crate) fn apply_together(&self, events: &[&Envelope], on_fault: OnFault) -> Result<Vec<Effect>, Halt> {
        let db = Db::new(&self.sandbox, &self.touched);
        let none = Enders::new();
        events.iter().map(|event| self.apply_among(&db, &event.borrowed(), on_fault, &none)).collect()
    }

    /// Applies one event inside the open transaction. If it fails, its changes are undone.
    pub(crate) fn apply_alone(&self, event: &Envelope, on_fault: OnFault) -> Result<Effect, Stop> {
        self.apply_marked(&Db::new(&self.sandbox, &self.touched), &event.borrowed(), on_fault, &Enders::new())
    }

    /// Applies events of an eventlog inside the open transaction, and skips those that can't be applied. `read` calls
    /// the function with the events after a place, at most [`CHUNK`](crate::limits::engine::replica::CHUNK) of them,
    /// and returns the place of the last.
    ///
    /// Faults are rare, so many events share a mark. If one of them fails, the chunk is read and applied again one by
    /// one, and only the faulty event is skipped.
    pub(crate) fn replay<P: Copy>(
        &self,
        after: P,
        enders: &Enders,
        mut read: impl FnMut(P, &mut Each<'_>) -> Result<Option<P>, Halt>,
    ) -> Result<(), Stop> {
        let db = Db::new(&self.sandbox, &self.touched);
        let mut after = after;
        loop {
            self.mark()?;
            let mut among = |event: &EventRef<'_>| self.apply_among(&db, event, OnFault::Skip, enders).map(drop);
            let last = match read(after, &mut among) {
                Ok(last) => {
                    self.keep()?;
                    last
                }
                Err(Halt::Undo) => {
                    self.undo()?;
                    let mut alone =
                        |event: &EventRef<'_>| Ok(self.apply_marked(&db, event, OnFault::Skip, enders).map(drop)?);
                    match read(after, &mut alone) {
                        Ok(last) => last,
                        Err(Halt::Undo) => unreachable!("BUG: an event alone has nothing else to undo"),
                        Err(Halt::Stop(stop)) => return Err(stop),
                    }
                }
                Err(Halt::Stop(stop)) => return Err(stop),
            };
            match last {
                Some(last) => after = last,
                None => return Ok(()),
            }
        }
    }

    /// Applies one event under its own mark.
    fn apply_marked(
        &self,
        db: &Db<'_>,
        event: &EventRef<'_>,
        on_fault: OnFault,
        enders: &Enders,
    ) -> Result<Effect, Stop> {
        self.mark()?;
        match self.materialize(db, event, on_fault, enders)? {
            Ok(effect) => {
                self.keep()?;
                Ok(effect)
            }
            Err(why) => {
                self.undo()?;
                self.skip(event, Some(&why), on_fault)?;
                Ok(Effect::Skipped(why))
            }
        }
    }

    /// Applies one event of several. If it fails, the caller undoes them all.
    fn apply_among(
        &self,
        db: &Db<'_>,
        event: &EventRef<'_>,
        on_fault: OnFault,
        enders: &Enders,
    ) -> Result<Effect, Halt> {
        self.materialize(db, event, on_fault, enders)?.map_err(|_| Halt::Undo)
    }

    /// Runs the materializer. The inner error is the event's own fault. Its changes are still in the transaction then.
    fn materialize(
        &self,
        db: &Db<'_>,
        event: &EventRef<'_>,
        on_fault: OnFault,
        enders: &Enders,
    ) -> Result<Result<Effect, String>, Stop> {
        if !enders.is_empty()
            && let Some(why) = enders.get(&event.id)
        {
            self.skip(event, Some(why), on_fault)?;
            return Ok(Ok(Effect::Skipped(why.clone())));
        }
        match self.schema.apply(db, event) {
            Ok(Effect::Unknown) => {
                self.skip(event, None, on_fault)?;
                Ok(Ok(Effect::Unknown))
            }
            Ok(effect) => Ok(Ok(effect)),
            Err(Failure::Event(why)) => Ok(Err(shortened(why))),
            Err(Failure::Ended(why)) => Err(Stop::Ended(event.id, shortened(why))),
            Err(Failure::Machine(error)) => Err(error.into()),
        }
    }

    /// Records that an event has no effect. `why` is the reason, or `None` if nothing here knows its name.
    fn skip(&self, event: &EventRef<'_>, why: Option<&str>, on_fault: OnFault) -> rusqlite::Result<()> {
        if on_fault == OnFault::Refuse {
            return Ok(());
        }
        let sql = "INSERT INTO likewise_skipped VALUES (?1, ?2) ON CONFLICT DO NOTHING";
        let added = self.sandbox.engine().prepare_cached(sql)?.execute(params![event.id.as_bytes(), why])? as u64;
        let mut skipped = self.skipped.borrow_mut();
        let (faulty, unknown) = &mut skipped.now;
        *if why.is_some() { faulty } else { unknown } += added;
        self.tell(event, why);
        Ok(())
    }

    /// Logs an event without effect, once per kind. There may be as many of them as there are events.
    fn tell(&self, event: &EventRef<'_>, why: Option<&str>) {
        // A state in memory is only replayed for comparison, so it logs nothing.
        let Some(wal) = self.wal() else { return };
        let kind = if why.is_some() { Kind::Faulty } else { Kind::Unknown };
        let mut told = self.told.borrow_mut();
        if told.len() >= KINDS_TOLD || !told.insert((event.name.to_owned(), kind)) {
            return;
        }
        let (state, name, id) = (wal.path().display(), event.name, event.id);
        match why {
            Some(why) => tracing::warn!(
                %state, name, %id, why,
                "this event has no effect. It stays in the log; others of its name are counted and not told"
            ),
            None => tracing::warn!(
                %state, name,
                "events of this name have no effect, because nothing here knows it. They stay in the log, and take effect \
                 when a program that knows it opens the store"
            ),
        }
    }
}

fn shortened(mut why: String) -> String {
    if why.len() > LONGEST_WHY {
        let end = (0..=LONGEST_WHY).rev().find(|at| why.is_char_boundary(*at)).unwrap_or_default();
        why.truncate(end);
        why.push('…');
    }
    why
}

pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}
