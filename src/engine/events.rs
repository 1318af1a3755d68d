//! The events of a store as a stream: first those in its log, in order, then each new one as it arrives.
//!
//! A reader asks for a page at a time and waits in between, so a slow reader holds nothing up. It keeps a cursor, to
//! continue from after a restart.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::error::{Error, Fault, Malformed};
use super::event::{Envelope, EventId};
use super::eventlog::{PageSize, Tally};
use super::health::Health;
use super::place::{Entry, Generation, LogId, Seq};
use super::replica::{HistoryStanding, Replica};
use super::store::Store;
use crate::limits::engine::readers::{STREAM_BYTES, STREAM_EVENTS};

/// The events that a reader gets at a time from the store's thread.
const PAGE: PageSize = PageSize { events: STREAM_EVENTS, bytes: STREAM_BYTES };

/// How far a reader has read the events of a store. Its text form is `LOG:GENERATION:SEQ`, to keep for the next time.
///
/// A place in a log can be taken back if its hub was restored from a backup. The log may also be another one. So a
/// cursor names its log and the log's generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct EventCursor {
    log: Option<LogId>,
    generation: Generation,
    seq: Seq,
}

impl EventCursor {
    /// The cursor before the first event.
    pub const START: Self = Self { log: None, generation: Generation(0), seq: Seq::START };

    /// Returns the place of the last event before the cursor.
    pub fn seq(&self) -> Seq {
        self.seq
    }
}

impl fmt::Display for EventCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { log, generation, seq } = self;
        match log {
            Some(log) => write!(f, "{log}:{}:{}", generation.0, seq.0),
            None => f.write_str("start"),
        }
    }
}

impl FromStr for EventCursor {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        if text == "start" {
            return Ok(Self::START);
        }
        let parse = || {
            let mut parts = text.split(':');
            let (log, generation, seq) = (parts.next()?, parts.next()?, parts.next()?);
            let log = Some(LogId::parse(log)?);
            let cursor = Self { log, generation: Generation(generation.parse().ok()?), seq: Seq(seq.parse().ok()?) };
            parts.next().is_none().then_some(cursor)
        };
        parse().ok_or_else(|| Malformed::Cursor(text.chars().take(80).collect()))
    }
}

impl From<EventCursor> for String {
    fn from(cursor: EventCursor) -> Self {
        cursor.to_string()
    }
}

impl TryFrom<String> for EventCursor {
    type Error = Malformed;
    fn try_from(text: String) -> Result<Self, Malformed> {
        text.parse()
    }
}

/// News about the events of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Told {
    /// An event has its place in the log. Keep the cursor once the event is dealt with.
    Confirmed {
        /// The event, its place and its origin.
        entry: Entry,
        /// Where to continue after it.
        cursor: EventCursor,
    },
    /// The events after this place are no longer in the log: it was restored from a backup, or is another log now. The
    /// events are not lost. They are pending again, and may be confirmed again at another place.
    TakenBack {
        /// Where to continue.
        to: EventCursor,
    },
    /// An event was committed here and has no place in the log yet. Told only to readers who
    /// [asked](Events::with_pending).
    Pending(Envelope),
    /// The hub refused an event of this store, which is set aside. Told only to readers who
    /// [asked](Events::with_pending).
    SetAside {
        /// The event.
        event: Envelope,
        /// The hub's reason.
        why: String,
    },
}

/// The events of a store after a cursor, then each newer one.
///
/// ```
/// # use likewise::engine::{Error, EventCursor, Store, Told};
/// # async fn f(store: Store, send_mail: impl Fn(&str), saved: &str) -> Result<(), Box<dyn std::error::Error>> {
/// let mut events = store.events(saved.parse()?);
/// while let Ok(told) = events.next().await {
///     if let Told::Confirmed { entry, cursor } = told {
///         send_mail(entry.event.name.as_str());
///         println!("{cursor}");
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Events {
    store: Store,
    health: watch::Receiver<Health>,
    after: EventCursor,
    pending: Option<Marks>,
    /// Whether the reader knows that the next events are behind a snapshot.
    knows_of_history: bool,
    ready: VecDeque<Told>,
}

/// What a reader was told about the events without a place.
#[derive(Debug, Clone)]
struct Marks {
    /// The number of the last outbox event that was told.
    n: i64,
    /// The set-aside events that were told, and their tally at the last look.
    set_aside: HashSet<EventId>,
    tally: Tally,
}

impl Default for Marks {
    fn default() -> Self {
        Self { n: i64::MIN, set_aside: HashSet::new(), tally: Tally::default() }
    }
}

impl Store {
    /// Returns the events of the log after `after`, in order, then each newer one as it gets its place.
    ///
    /// Use it for effects outside the store: mail, hooks, exports. Delivery is at least once: a reader that stops after
    /// dealing with an event, but before keeping its cursor, is told again.
    pub fn events(&self, after: EventCursor) -> Events {
        let (store, health) = (self.clone(), self.health());
        Events { store, health, after, pending: None, knows_of_history: false, ready: VecDeque::new() }
    }
}

impl Events {
    /// Also tells the events that have no place yet, beginning with all that are pending or set aside now.
    #[must_use]
    pub fn with_pending(self) -> Self {
        Self { pending: Some(Marks::default()), ..self }
    }

    /// Waits for the next piece of news and returns it. Cancel safe: the call can be dropped and repeated without
    /// missing anything.
    ///
    /// # Errors
    ///
    /// If the store can't be read, or is closed. [`Error::HistoryMissing`], once, if the next events are behind a
    /// snapshot and not here yet: a later call waits for them. Unless the store is closed, a later call tries again.
    pub async fn next(&mut self) -> Result<Told, Error> {
        loop {
            if let Some(told) = self.ready.pop_front() {
                return Ok(told);
            }
            drop(self.health.borrow_and_update());
            let (after, pending) = (self.after, self.pending.clone());
            if let Some(found) = self.store.look(move |replica| replica.told_after(after, pending)).await? {
                match found {
                    Ok(found) => {
                        self.after = found.after;
                        self.pending = found.pending;
                        self.ready = found.told;
                        self.knows_of_history = false;
                    }
                    Err(_) if self.knows_of_history => {}
                    Err(history) => {
                        self.knows_of_history = true;
                        return Err(history.into());
                    }
                }
            }
            if self.ready.is_empty() {
                self.health.changed().await.map_err(|_| Error::Closed)?;
            }
        }
    }
}

/// The result of a look, and where the next one begins.
struct Look {
    told: VecDeque<Told>,
    after: EventCursor,
    pending: Option<Marks>,
}

impl Replica {
    fn told_after(
        &mut self,
        after: EventCursor,
        pending: Option<Marks>,
    ) -> Result<Result<Look, HistoryStanding>, Fault> {
        let (mut told, tip) = (VecDeque::new(), *self.log().tip());
        let log = tip.whose.log_id();
        let kept = match after.log == log {
            true => self.log().kept_since(after.generation)?.min(tip.head),
            false => Seq::START,
        };
        let here = |seq| EventCursor { log, generation: tip.generation, seq };
        let mut after = if after.seq > kept {
            told.push_back(Told::TakenBack { to: here(kept) });
            here(kept)
        } else {
            here(after.seq)
        };
        if let Some(history) = HistoryStanding::of(&tip).filter(|history| after.seq < history.base) {
            return Ok(Err(history));
        }
        for entry in self.entries(after.seq, PAGE)? {
            after = here(entry.seq);
            told.push_back(Told::Confirmed { entry, cursor: after });
        }
        let pending = match pending {
            // Events in the log come first.
            Some(marks) if after.seq == tip.head => Some(self.told_pending(marks, &mut told)?),
            other => other,
        };
        Ok(Ok(Look { told, after, pending }))
    }

    fn told_pending(&mut self, mut marks: Marks, told: &mut VecDeque<Told>) -> Result<Marks, Fault> {
        let tally = self.log().tip().set_aside_tally;
        if tally != marks.tally {
            let all = self.log().all_set_aside()?;
            let ids = all.iter().map(|(event, _)| event.id).collect();
            let new = all.into_iter().filter(|(event, _)| !marks.set_aside.contains(&event.id));
            told.extend(new.map(|(event, why)| Told::SetAside { event, why }));
            (marks.set_aside, marks.tally) = (ids, tally);
        }
        for (n, event) in self.pending(marks.n, PAGE)? {
            marks.n = n;
            told.push_back(Told::Pending(event));
        }
        Ok(marks)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::engine::{Device, Page, Setup, StoreLimits, Stores, Whose};
    use crate::likes::{self, LikeAdded};

    const PATIENCE: Duration = Duration::from_secs(180);

    /// Stores of likes that have their own log or follow an upstream.
    struct Shelf {
        _dir: tempfile::TempDir,
        stores: Stores,
    }

    impl Shelf {
        fn new(follows: bool) -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            let setup = Setup::new(likes::schema(), "test".parse().unwrap()).unwrap();
            let open = if follows { Stores::following } else { Stores::open };
            Self { stores: open(dir.path(), setup, StoreLimits::default()).unwrap(), _dir: dir }
        }

        fn store(&self) -> Store {
            self.stores.get(&"likes".parse().unwrap()).unwrap()
        }
    }

    fn id(n: u64) -> EventId {
        let [a, b, c, d, e, f, g, h] = n.to_be_bytes();
        EventId::from_parts(n, [0, 0, a, b, c, d, e, f, g, h])
    }

    fn like(n: u64) -> Envelope {
        Envelope::new(id(n), &LikeAdded {}).unwrap()
    }

    const LOG: &str = "3f0d3c52-6f4e-4d6e-9d1b-2f3a4b5c6d7e";

    async fn arrive(store: &Store, first: u64, likes: &[u64]) {
        let origin: Device = "other".parse().unwrap();
        let entry = |(n, like_n): (usize, &u64)| Entry {
            seq: Seq(first + n as u64),
            event: like(*like_n),
            origin: Device::clone(&origin),
        };
        let entries: Vec<_> = likes.iter().enumerate().map(entry).collect();
        let page = Page { next: entries.last().unwrap().seq, entries, more: false };
        store
            .with(move |replica| {
                if replica.standing()?.whose == Whose::Upstream(None) {
                    replica.take_back(Seq::START, Whose::Upstream(LogId::parse(LOG)))?;
                }
                replica.arrive(&page)
            })
            .await
            .unwrap();
    }

    async fn refuse(store: &Store, n: u64, why: &str) {
        let refused = [(id(n), why.to_owned())];
        store.with(move |replica| replica.refuse(&refused)).await.unwrap();
    }

    async fn take_back(store: &Store, after: Seq) {
        store.with(move |replica| replica.take_back(after, Whose::Upstream(LogId::parse(LOG)))).await.unwrap();
    }

    /// Waits for the next piece of news.
    async fn next(events: &mut Events) -> Told {
        tokio::time::timeout(PATIENCE, events.next())
            .await
            .expect("something is told")
            .expect("a store that can be read")
    }

    fn confirmed(told: &Told) -> (u64, &Entry, EventCursor) {
        let Told::Confirmed { entry, cursor } = told else { panic!("{told:?}") };
        (entry.seq.0, entry, *cursor)
    }

    #[tokio::test]
    async fn events_are_told_in_order_and_then_as_they_come() {
        let shelf = Shelf::new(false);
        let store = shelf.store();
        let mut early = store.events(EventCursor::START);
        for n in 1..=600 {
            store.commit_envelope(like(n)).await.unwrap();
        }
        let mut late = store.events(EventCursor::START);
        for events in [&mut early, &mut late] {
            for n in 1..=600 {
                let told = next(events).await;
                let (seq, entry, cursor) = confirmed(&told);
                assert_eq!((seq, entry.event.id, cursor.seq()), (n, id(n), Seq(n)));
            }
        }
        store.commit_envelope(like(601)).await.unwrap();
        assert_eq!(confirmed(&next(&mut late).await).1.event, like(601));
    }

    #[tokio::test]
    async fn a_reader_goes_on_after_a_restart_where_it_stopped() {
        let shelf = Shelf::new(false);
        let store = shelf.store();
        for n in 1..=3 {
            store.commit_envelope(like(n)).await.unwrap();
        }
        let mut events = store.events(EventCursor::START);
        next(&mut events).await;
        let saved = confirmed(&next(&mut events).await).2.to_string();
        let mut events = store.events(saved.parse().unwrap());
        assert_eq!(confirmed(&next(&mut events).await).0, 3);
        for text in ["", "1", "x:1:2", &format!("{saved}:1"), &saved.replace(':', " ")] {
            assert!(text.parse::<EventCursor>().is_err(), "{text}");
        }
        assert_eq!("start".parse(), Ok(EventCursor::START));
        assert_eq!(EventCursor::START.to_string(), "start");
    }

    #[tokio::test]
    async fn pending_events_are_told_with_their_later_fate() {
        let shelf = Shelf::new(true);
        let store = shelf.store();
        let receipt = store.commit_envelope(like(1)).await.unwrap();
        store.commit_envelope(like(2)).await.unwrap();
        let mut events = store.events(EventCursor::START).with_pending();
        assert_eq!(next(&mut events).await, Told::Pending(like(1)));
        assert_eq!(next(&mut events).await, Told::Pending(like(2)));
        arrive(&store, 1, &[9, 1]).await;
        assert_eq!(confirmed(&next(&mut events).await).1.event, like(9));
        assert_eq!(confirmed(&next(&mut events).await).1.event, like(1));
        assert_eq!(receipt.confirmed().await, Ok(Seq(2)));
        refuse(&store, 2, "too late").await;
        let refused = Told::SetAside { event: like(2), why: "too late".to_owned() };
        assert_eq!(next(&mut events).await, refused);
        let receipt = store.commit_envelope(like(3)).await.unwrap();
        refuse(&store, 3, "no").await;
        assert_eq!(receipt.confirmed().await, Err(Error::SetAside("no".to_owned())));
        assert_eq!(next(&mut events).await, Told::SetAside { event: like(3), why: "no".to_owned() });
        store.retry_set_aside().await.unwrap();
        assert_eq!(next(&mut events).await, Told::Pending(like(2)));
    }

    #[tokio::test]
    async fn a_reader_is_told_what_was_taken_back_also_after_a_restart() {
        let shelf = Shelf::new(true);
        let store = shelf.store();
        arrive(&store, 1, &[1, 2, 3, 4]).await;
        let mut events = store.events(EventCursor::START);
        let mut cursors = vec![EventCursor::START];
        for _ in 1..=4 {
            cursors.push(confirmed(&next(&mut events).await).2);
        }
        take_back(&store, Seq(2)).await;
        take_back(&store, Seq(1)).await;
        arrive(&store, 2, &[7, 2]).await;
        let Told::TakenBack { to } = next(&mut events).await else { panic!("nothing was taken back") };
        assert_eq!(to.seq(), Seq(1));
        let ids = |told: &Told| confirmed(told).1.event.id;
        assert_eq!(ids(&next(&mut events).await), id(7));
        assert_eq!(ids(&next(&mut events).await), id(2));
        // A reader that has read only events that stayed needn't go back.
        let mut behind = store.events(cursors[1]);
        assert_eq!(ids(&next(&mut behind).await), id(7));
        for cursor in &cursors[2..] {
            let mut ahead = store.events(*cursor);
            assert_eq!(next(&mut ahead).await, Told::TakenBack { to });
            assert_eq!(ids(&next(&mut ahead).await), id(7));
        }
        // Now move to another log.
        store.adopt().await.unwrap();
        let Told::TakenBack { to } = next(&mut events).await else { panic!("nothing was taken back") };
        assert_eq!(to.seq(), Seq::START);
    }

    #[tokio::test]
    async fn a_reader_that_does_not_read_holds_nobody_up() {
        let shelf = Shelf::new(false);
        let store = shelf.store();
        let mut slow = store.events(EventCursor::START);
        store.commit_envelope(like(1)).await.unwrap();
        assert_eq!(confirmed(&next(&mut slow).await).0, 1);
        for n in 2..=1_000 {
            store.commit_envelope(like(n)).await.unwrap();
        }
        for n in 2..=1_000 {
            assert_eq!(confirmed(&next(&mut slow).await).0, n);
        }
    }
}
