//! Materializing: an event goes through its materializer into the state.
//!
//! Read it from the bottom of the path to its top: [`Db`] is what a materializer sees; [`Schema::apply`] runs one and
//! says whose fault a failure is; [`State`] applies events one by one, together, or as they stand in an eventlog, and
//! undoes exactly what failed.

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
    /// Set by the first error after which nothing may run any more. Boxed, because it is looked at after each event.
    stopped: RefCell<Option<Box<Failure>>>,
    /// The first statement that could not be prepared, and why.
    unprepared: RefCell<Option<(Box<str>, String)>>,
}

impl<'a> Db<'a> {
    /// For the materializers of many events, one after the other. Adds the tables they write to `touched`.
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

    /// Runs a materializer for a made-up event with this id, and forgets what stopped it.
    pub(super) fn at<R>(&self, id: EventId, run: impl FnOnce() -> R) -> R {
        self.id.set(id);
        let result = run();
        self.stopped.take();
        result
    }

    /// The first statement since the last call that could not be prepared, and why.
    pub(super) fn take_unprepared(&self) -> Option<(Box<str>, String)> {
        self.unprepared.take()
    }

    /// The id of the event: unique wherever it was made, and so a good key. Each event of a batch has its own.
    pub fn id(&self) -> EventId {
        self.id.get()
    }

    /// When the event happened, in milliseconds since the Unix epoch, as its device's clock had it: the time of its
    /// [id](EventId). Without JavaScript that is when the page was drawn.
    pub fn millis(&self) -> u64 {
        self.id().millis()
    }

    /// Runs one INSERT, UPDATE or DELETE, and gives the number of rows that it changed.
    ///
    /// # Errors
    ///
    /// SQLite's own, and [`DbError::Forbidden`] for a statement that a materializer may not use. Return it with `?`:
    /// the event is then refused, or skipped where it is in a log already.
    pub fn execute(&self, sql: &str, params: impl Params) -> Result<usize, DbError> {
        self.attempt(sql, |statement| Ok(statement.execute(params)?))
    }

    /// All rows of a SELECT, each as `map` reads it, where `?` works on any error. Without ORDER BY their order is
    /// SQLite's whim.
    ///
    /// # Errors
    ///
    /// As [`execute`](Self::execute).
    pub fn rows<T>(
        &self,
        sql: &str,
        params: impl Params,
        map: impl FnMut(&Row<'_>) -> Result<T, DbError>,
    ) -> Result<Vec<T>, DbError> {
        self.attempt(sql, |statement| statement.query_and_then(params, map)?.collect())
    }

    /// The first row of a SELECT as `map` reads it, if it has one.
    ///
    /// # Errors
    ///
    /// As [`execute`](Self::execute).
    pub fn first<T>(
        &self,
        sql: &str,
        params: impl Params,
        map: impl FnOnce(&Row<'_>) -> Result<T, DbError>,
    ) -> Result<Option<T>, DbError> {
        self.attempt(sql, |statement| statement.query(params)?.next()?.map(map).transpose())
    }

    /// Runs one statement, unless an earlier error forbids it, and notes an error that forbids the next.
    fn attempt<T>(&self, sql: &str, run: impl FnOnce(&mut Statement<'a>) -> Result<T, DbError>) -> Result<T, DbError> {
        if self.stopped.borrow().is_some() {
            return Err(DbError::Stopped);
        }
        let ready = self.statements.ready(sql);
        let is_prepared = ready.is_ok();
        let result = ready.and_then(|ready| {
            // Also a statement that gives rows may write, by RETURNING.
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

/// What a materializer makes its event of.
pub(crate) enum Payload<'a> {
    /// What [`Args::as_text`](super::Args::as_text) gave.
    Stored(Option<&'a str>),
    /// Nothing real.
    MadeUp(MadeUp),
}

impl Payload<'_> {
    /// The event; `None` where none can be made up.
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

/// What became of an event in the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Its changes are made.
    Applied,
    /// Nothing here knows its name; a later version of the program may.
    Unknown,
    /// It can't be applied, here or anywhere: the reason.
    Skipped(String),
}

/// Why a materializer failed. What it did before is still in the transaction.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The event's own fault.
    Event(String),
    /// The event's own fault, and SQLite has ended the transaction over it.
    Ended(String),
    /// The machine's: nothing may be concluded about the event.
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
        // What the materializer returns does not decide alone: it may have swallowed an error.
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
        // Wholly or not at all: with one unknown event the batch waits for the upgrade as a whole.
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
    /// Refuse it: it isn't stored anywhere yet, and leaves no trace.
    Refuse,
    /// Skip it and note that: it is in an eventlog.
    Skip,
}

/// Why applying events stopped.
#[derive(Debug)]
pub(crate) enum Stop {
    /// This event ended the transaction. All of it has to be done again without the event.
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
    /// It failed. The caller undoes the others, and applies all of them one by one.
    Undo,
    /// As for an event alone.
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

/// What is done with each event that is read from an eventlog.
pub(crate) type Each<'a> = dyn FnMut(&EventRef<'_>) -> Result<(), Halt> + 'a;

/// Events that are known to end the transaction they run in, with the reason.
pub(crate) type Enders = HashMap<EventId, String>;

impl State {
    /// Applies events under the last mark, and says what became of each. When one fails, the caller undoes the mark.
    pub(crate) fn apply_together(&self, events: &[&Envelope], on_fault: OnFault) -> Result<Vec<Effect>, Halt> {
        let db = Db::new(&self.sandbox, &self.touched);
        let none = Enders::new();
        events.iter().map(|event| self.apply_among(&db, &event.borrowed(), on_fault, &none)).collect()
    }

    /// Applies one event inside the open transaction. When it fails, its changes are undone.
    pub(crate) fn apply_alone(&self, event: &Envelope, on_fault: OnFault) -> Result<Effect, Stop> {
        self.apply_marked(&Db::new(&self.sandbox, &self.touched), &event.borrowed(), on_fault, &Enders::new())
    }

    /// Applies events of an eventlog inside the open transaction, and passes over those that can't be applied. `read`
    /// shows its function the events after a place, [`CHUNK`](crate::limits::engine::replica::CHUNK) at most, and gives the place of the last.
    ///
    /// Faults are rare, so many events share a mark; when one of them fails, its chunk is read and applied again one by
    /// one, so that the fault hits only the event that has it.
    pub(crate) fn replay<P: Copy>(
        &self,
        after: P,
        enders: &Enders,
        read: impl Fn(P, &mut Each<'_>) -> Result<Option<P>, Halt>,
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

    /// Applies one event under a mark of its own.
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

    /// Applies one event among others, which the caller undoes when it fails.
    fn apply_among(
        &self,
        db: &Db<'_>,
        event: &EventRef<'_>,
        on_fault: OnFault,
        enders: &Enders,
    ) -> Result<Effect, Halt> {
        self.materialize(db, event, on_fault, enders)?.map_err(|_| Halt::Undo)
    }

    /// Runs the materializer. The inner error is the event's fault, with its changes still in the transaction.
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

    /// Notes that an event has no effect: why, or `None` when nothing here knows its name.
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

    /// Tells of an event without effect, once a kind: there may be as many of them as events.
    fn tell(&self, event: &EventRef<'_>, why: Option<&str>) {
        // What is replayed in memory is replayed to be compared.
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
