//! Finds out why two states of one log differ: which event made the difference, and what it wrote.
//!
//! The log is replayed on fresh stores, event by event. If two plain replays differ, a materializer isn't
//! deterministic. If a plain replay differs from one in which SQLite reverses every unspecified order, an ORDER BY is
//! missing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use super::Simulation;
use super::cluster::{WORKS, open};
use super::scratch::Scratch;
use crate::engine::{Entry, Outcome, Replica, TableRows};

/// How often to replay a log to find a difference that came up by chance.
const TRIES: usize = 20;

/// After this time, any clock that counts seconds shows a new value, wherever its seconds begin.
const SECOND: Duration = Duration::from_millis(1_010);

/// The most tables that a message shows, and the most rows of each. One difference is enough to find its cause.
const SHOWN: usize = 3;

/// The most characters of a row or payload that a message shows.
const LONGEST: usize = 200;

/// The order in which a SELECT without ORDER BY returns its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Natural,
    Reversed,
}

/// A fresh store to which the events of a log were added in log order.
pub(super) struct Replay {
    pub(super) replica: Replica,
    _scratch: Scratch,
}

impl Replay {
    fn begin(simulation: &Simulation, order: Order) -> Self {
        let scratch = Scratch::new();
        let mut replica = open(simulation, &scratch.path().join("replay")).expect(WORKS);
        if order == Order::Reversed {
            replica.state().reverse_unordered().expect(WORKS);
        }
        Self { replica, _scratch: scratch }
    }

    /// Replays all of `log`.
    pub(super) fn of(simulation: &Simulation, log: &[Entry], order: Order) -> Self {
        let mut replay = Self::begin(simulation, order);
        replay.add(log);
        replay
    }

    fn add(&mut self, log: &[Entry]) {
        let events: Vec<_> = log.iter().map(|entry| (entry.event.clone(), entry.origin.clone())).collect();
        let outcomes = self.replica.add(&events).expect(WORKS);
        let are_stored = outcomes.iter().all(|outcome| matches!(outcome, Outcome::Stored(_)));
        assert!(are_stored, "BUG: a log has an event that can't be stored: {outcomes:?}");
    }
}

/// The contents of the tables after each event of a log.
pub(super) struct Trace(Vec<TableRows>);

impl Trace {
    pub(super) fn of(simulation: &Simulation, log: &[Entry], order: Order) -> Self {
        let mut replay = Replay::begin(simulation, order);
        let step = |entry: &Entry| {
            replay.add(std::slice::from_ref(entry));
            replay.replica.table_rows().expect(WORKS)
        };
        Self(log.iter().map(step).collect())
    }

    /// Returns the first place in the log after which the two differ.
    fn parts_from(&self, other: &Self) -> Option<usize> {
        self.0.iter().zip(&other.0).position(|(one, other)| one != other)
    }
}

/// Panics when two stores that hold the same events have different states. `log` holds those events in order.
pub(super) fn compare(simulation: &Simulation, log: &[Entry], one: (&str, &Replica), other: (&str, &Replica)) {
    let ((one_name, one), (other_name, other)) = (one, other);
    if one.state_digest().expect(WORKS) == other.state_digest().expect(WORKS) {
        return;
    }
    let they = format!("{one_name} and {other_name} have the same events, and their states differ");
    let first = Trace::of(simulation, log, Order::Natural);
    let again = || not_deterministic(log, &first, &Trace::of(simulation, log, Order::Natural));
    let reversed = || depends_on_order(log, &first, &Trace::of(simulation, log, Order::Reversed));
    // Chance makes two replays agree now and then. Only when many agree is it the order of rows that can differ.
    let often = || (0..TRIES).find_map(|_| again());
    let later = || {
        wait_for_a_second_since(Instant::now());
        often()
    };
    if let Some(why) = often().or_else(reversed).or_else(later) {
        panic!("{they}: {why}");
    }
    let names = [one_name.to_owned(), other_name.to_owned()];
    let rows = rows(&one.table_rows().expect(WORKS), &other.table_rows().expect(WORKS), &names);
    let events = log.len();
    panic!(
        "{they}, after {events} events.{rows}\nReplays of these events agree with each other now. So a materializer used \
         something that isn't in its event or the state, and that was different then: a static variable, a setting, a \
         file, a clock"
    );
}

/// Panics when a replay with reversed rows ends in a different state than `plain`.
pub(super) fn check_order(simulation: &Simulation, log: &[Entry], plain: &Replica) {
    let reversed = Replay::of(simulation, log, Order::Reversed);
    compare(simulation, log, ("a plain replay", plain), ("one with rows in reverse", &reversed.replica));
}

/// Describes how two plain replays differ, if they do.
pub(super) fn not_deterministic(log: &[Entry], one: &Trace, other: &Trace) -> Option<String> {
    let (name, where_it_is) = first_difference(log, ("one replay", one), ("another", other))?;
    Some(format!(
        "a materializer is not deterministic. Two replays of the same log differ {where_it_is}\nLook in what `{name}` runs \
         for a clock, chance, a file, a static variable, or the order of a HashMap, and take it out"
    ))
}

/// Describes how a replay with reversed rows differs from a plain one, if it does.
fn depends_on_order(log: &[Entry], plain: &Trace, reversed: &Trace) -> Option<String> {
    let (name, where_it_is) = first_difference(log, ("a plain replay", plain), ("in reverse", reversed))?;
    Some(format!(
        "a materializer depends on an order of rows that it doesn't ask for. A replay with the rows the other way round \
         differs {where_it_is}\nAdd ORDER BY to the SELECTs of `{name}`"
    ))
}

/// Finds the first event after which two replays of `log` differ. Returns its name, and a description of it and the
/// rows.
fn first_difference<'l>(log: &'l [Entry], one: (&str, &Trace), other: (&str, &Trace)) -> Option<(&'l str, String)> {
    let ((one_name, one), (other_name, other)) = (one, other);
    let place = one.parts_from(other)?;
    let rows = rows(&one.0[place], &other.0[place], &[one_name.to_owned(), other_name.to_owned()]);
    Some((log[place].event.name.as_str(), format!("after {}.{rows}", event(log, place))))
}

/// Waits until a second has passed since `then`. Two replays a second apart can differ where two in a row agree.
pub(super) fn wait_for_a_second_since(then: Instant) {
    thread::sleep(SECOND.saturating_sub(then.elapsed()));
}

/// Describes the event at a place of the log.
fn event(log: &[Entry], place: usize) -> String {
    let event = &log[place].event;
    let payload = match event.args.as_text() {
        Some(text) => format!(" with the payload {}", shortened(text)),
        None => String::new(),
    };
    format!("event {} of {}, `{}` {}{payload}", place + 1, log.len(), event.name.as_str(), event.id)
}

/// Describes the rows that two states don't share, by table.
fn rows(one: &TableRows, other: &TableRows, names: &[String; 2]) -> String {
    let tables: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    let differing: Vec<_> = tables.into_iter().filter(|table| one.get(*table) != other.get(*table)).collect();
    let mut text = String::new();
    for table in differing.iter().take(SHOWN) {
        write!(text, "\nIn the table `{table}`:").expect("BUG: a String takes all text");
        let sides = [(one, other, &names[0]), (other, one, &names[1])];
        for (has, lacks, name) in sides {
            let others: BTreeMap<&String, usize> = counted(lacks.get(*table));
            let alone = counted(has.get(*table)).into_iter();
            let alone: Vec<_> = alone.filter(|(row, count)| others.get(row) != Some(count)).collect();
            for (row, _) in alone.iter().take(SHOWN) {
                write!(text, "\n  {name}: {}", shortened(row)).expect("BUG: a String takes all text");
            }
            match alone.len() {
                0 => write!(text, "\n  {name}: nothing that the other lacks"),
                more if more > SHOWN => write!(text, "\n  {name}: {} rows more", more - SHOWN),
                _ => Ok(()),
            }
            .expect("BUG: a String takes all text");
        }
    }
    if differing.len() > SHOWN {
        write!(text, "\n{} tables more differ.", differing.len() - SHOWN).expect("BUG: a String takes all text");
    }
    text
}

fn counted(rows: Option<&Vec<String>>) -> BTreeMap<&String, usize> {
    let mut counts = BTreeMap::new();
    for row in rows.into_iter().flatten() {
        *counts.entry(row).or_default() += 1;
    }
    counts
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}
