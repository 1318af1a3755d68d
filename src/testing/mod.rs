//! Tests for authors. They run your schema and events on simulated devices that crash, go offline, are cloned and are
//! restored.
//!
//! A materializer must do the same on every device. When one doesn't, [`converges`] fails and names the event:
//!
//! ```
//! use likewise::engine::{Event, Schema};
//! use likewise::testing::converges;
//!
//! #[derive(serde::Serialize, serde::Deserialize)]
//! struct Said { word: String }
//! impl Event for Said { const NAME: &'static str = "Said"; }
//!
//! fn schema() -> Schema {
//!     Schema::new("CREATE TABLE said (id TEXT PRIMARY KEY, word TEXT NOT NULL) STRICT")
//!         .on(|Said { word }, db| db.execute("INSERT INTO said VALUES (?1, ?2)", (db.id(), word)))
//! }
//!
//! # let seeds = 0..5;
//! # if false {
//! let seeds = 0..100;
//! # }
//! converges(schema, |rng| Said { word: (*rng.pick(&["yes", "no"])).to_owned() }.into(), seeds);
//! ```
//!
//! An event that refers to another gets that event's id from [`Rng::earlier`].

mod cluster;
mod commits;
mod difference;
mod draft;
mod gateways;
mod rng;
mod scratch;

use std::any::Any;
use std::num::NonZero;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use crate::engine::{Entry, Replica, Schema, panic_message};

#[doc(hidden)]
pub use cluster::check_places;
use cluster::{Cluster, Story, Tally, Tried};
use difference::{Order, Trace, not_deterministic, wait_for_a_second_since};
pub use draft::Draft;
use gateways::Gateways;
pub use rng::Rng;

/// The environment variable that selects one seed to run.
const ONE_SEED: &str = "LIKEWISE_SEED";

/// The environment variable that sets how many seeds to run.
const SEEDS: &str = "LIKEWISE_SEEDS";

/// When a type of event is refused this often and never accepted, that is no coincidence.
const MANY: u64 = 20;

/// Runs one story for each of `seeds`. In a story, a hub and some devices commit events that `events` makes. They sync,
/// crash, lose power, go offline, are cloned, and are restored from backups. In the end everything works again, and all
/// of them must have the same log and the same state. A state rebuilt from the log must be the same, too, even if each
/// SELECT without ORDER BY returns its rows in reverse.
///
/// A hundred seeds take a few seconds and show most mistakes. `LIKEWISE_SEED=7` runs that seed alone, and
/// `LIKEWISE_SEEDS=10000` runs that many seeds from 0. Both override `seeds`.
///
/// Events may be refused: that is how a materializer says no. But a type of event that is always refused proves
/// nothing, so it counts as a failure.
///
/// It can't detect a dependency on something that all simulated devices share and real ones don't: a setting, a file,
/// the date.
///
/// # Panics
///
/// When something differs. The message contains the seed, the event after which the states differ, and the rows.
pub fn converges(
    schema: impl Fn() -> Schema + Send + Sync + 'static,
    events: impl Fn(&mut Rng) -> Draft + Send + Sync + 'static,
    seeds: Range<u64>,
) {
    let simulation = Simulation::new(schema, events);
    let tally = simulation.tell(seeds);
    let schema = (simulation.schema)();
    for (name, Tried { taken, refused, why }) in tally {
        assert!(schema.knows(&name), "the schema has no materializer for `{name}`, so nothing was tried with it");
        let is_refused = taken == 0 && refused >= MANY;
        assert!(!is_refused, "each `{name}` was refused, {refused} of them, so nothing was tried. The last one: {why}");
    }
}

type Check = Box<dyn Fn(&Replica, &Path) + Send + Sync>;

/// A simulation with its checks. [`converges`] is all that most tests need. This also takes checks that must hold
/// between steps.
pub struct Simulation {
    schema: Box<dyn Fn() -> Schema + Send + Sync>,
    events: Box<dyn Fn(&mut Rng) -> Draft + Send + Sync>,
    /// The checks that must hold after each step.
    always: Vec<Check>,
    /// The checks that need not hold between the pages of a pull.
    at_rest: Vec<Check>,
    faults: Option<Faults>,
    is_wanted: fn(u64) -> bool,
}

impl Simulation {
    /// Creates a simulation from the schema and events that [`converges`] takes.
    pub fn new(
        schema: impl Fn() -> Schema + Send + Sync + 'static,
        events: impl Fn(&mut Rng) -> Draft + Send + Sync + 'static,
    ) -> Self {
        Self {
            schema: Box::new(schema),
            events: Box::new(events),
            always: Vec::new(),
            at_rest: Vec::new(),
            faults: None,
            is_wanted: |_| true,
        }
    }

    /// Adds a check, which panics when something doesn't hold. It gets the replica of a device or of the hub, and the
    /// directory with its files. It runs after every step, except in the middle of a pull.
    #[must_use]
    pub fn holds(mut self, check: impl Fn(&Replica, &Path) + Send + Sync + 'static) -> Self {
        self.at_rest.push(Box::new(check));
        self
    }

    /// Adds a check like [`holds`](Self::holds), but it also runs in the middle of a pull. Queries lag behind the log
    /// then.
    #[must_use]
    pub fn always_holds(mut self, check: impl Fn(&Replica, &Path) + Send + Sync + 'static) -> Self {
        self.always.push(Box::new(check));
        self
    }

    /// Makes machines fail in the middle of a write.
    #[doc(hidden)]
    #[must_use]
    pub fn faults(mut self, faults: Faults) -> Self {
        self.faults = Some(faults);
        self
    }

    /// Skips the seeds that aren't wanted.
    #[doc(hidden)]
    #[must_use]
    pub fn only(mut self, is_wanted: fn(u64) -> bool) -> Self {
        self.is_wanted = is_wanted;
        self
    }

    /// Runs one story for each of `seeds`, on as many threads as the machine runs at once.
    ///
    /// # Panics
    ///
    /// When something doesn't hold. The message names the lowest failing seed that was found. Also when the schema has
    /// a mistake that shows without events.
    pub fn run(&self, seeds: Range<u64>) {
        self.tell(seeds);
    }

    /// Runs one story of gateways before a stream for each of `seeds`, like [`run`](Self::run).
    ///
    /// # Panics
    ///
    /// As [`run`](Self::run).
    #[doc(hidden)]
    pub fn run_gateways(&self, seeds: Range<u64>) {
        self.tell_by(|simulation, seed| Gateways::tell(simulation, seed), seeds);
    }

    fn tell(&self, seeds: Range<u64>) -> Tally {
        self.tell_by(|simulation, seed| Cluster::tell(simulation, seed), seeds)
    }

    fn tell_by(&self, teller: Teller, seeds: Range<u64>) -> Tally {
        if let Err(fault) = (self.schema)().check() {
            panic!("the schema can't be used: {fault}");
        }
        let seeds = asked_for(seeds);
        let run = Run {
            simulation: self,
            teller,
            next: AtomicU64::new(seeds.start),
            end: seeds.end,
            has_failed: AtomicBool::new(false),
            found: Mutex::default(),
        };
        let workers = thread::available_parallelism().map_or(1, NonZero::get);
        thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| run.work());
            }
        });
        let Found { failure, earliest, tally } = run.found.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some((seed, why)) = failure.or_else(|| earliest.as_ref()?.repeat(self)) {
            panic!("seed {seed}: {why}\nSee it again with: {}", command(seed));
        }
        tally
    }
}

/// Returns the seeds to run: those of the test, unless the environment asks for others.
fn asked_for(seeds: Range<u64>) -> Range<u64> {
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(text.parse::<u64>().unwrap_or_else(|_| panic!("{name} is {text:?}, and should be a number")))
    };
    match (number(ONE_SEED), number(SEEDS)) {
        (Some(seed), _) => seed..seed.saturating_add(1),
        (None, Some(count)) => 0..count,
        (None, None) => seeds,
    }
}

/// Returns the command that runs one seed of the running test again. The test harness names a test's thread after the
/// test.
fn command(seed: u64) -> String {
    let thread = thread::current();
    let test = thread.name().filter(|name| *name != "main").map_or(String::new(), |name| format!(" {name}"));
    format!("{ONE_SEED}={seed} cargo test{test}")
}

/// Tells the story of a seed.
type Teller = fn(&Simulation, u64) -> Story;

/// The stories of one run.
struct Run<'s> {
    simulation: &'s Simulation,
    teller: Teller,
    next: AtomicU64,
    end: u64,
    has_failed: AtomicBool,
    found: Mutex<Found>,
}

/// The results of the stories so far.
#[derive(Default)]
struct Found {
    /// The lowest seed that failed, and why.
    failure: Option<(u64, String)>,
    /// A replay from the beginning of the run.
    earliest: Option<Earliest>,
    tally: Tally,
}

impl Run<'_> {
    fn work(&self) {
        while !self.has_failed.load(Ordering::Relaxed) {
            let seed = self.next.fetch_add(1, Ordering::Relaxed);
            if seed >= self.end {
                return;
            }
            if (self.simulation.is_wanted)(seed) {
                let told = catch_unwind(AssertUnwindSafe(|| (self.teller)(self.simulation, seed)));
                self.note(seed, told);
            }
        }
    }

    fn note(&self, seed: u64, told: Result<Story, Box<dyn Any + Send>>) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        match told {
            Ok(Story { log, tally }) => {
                for (name, Tried { taken, refused, why }) in tally {
                    let sum = found.tally.entry(name).or_default();
                    sum.taken += taken;
                    sum.refused += refused;
                    if !why.is_empty() {
                        sum.why = why;
                    }
                }
                if found.earliest.is_none() && !log.is_empty() {
                    found.earliest = Some(Earliest::new(self.simulation, seed, log));
                }
            }
            Err(panic) => {
                self.has_failed.store(true, Ordering::Relaxed);
                if found.failure.as_ref().is_none_or(|(lowest, _)| seed < *lowest) {
                    found.failure = Some((seed, panic_message(&*panic).to_owned()));
                }
            }
        }
    }
}

/// A replay made at the beginning of a run and repeated at its end. Two replays in a row would agree even if they use a
/// clock that counts seconds.
struct Earliest {
    seed: u64,
    log: Vec<Entry>,
    trace: Trace,
    replayed: Instant,
}

impl Earliest {
    fn new(simulation: &Simulation, seed: u64, log: Vec<Entry>) -> Self {
        let trace = Trace::of(simulation, &log, Order::Natural);
        Self { seed, log, trace, replayed: Instant::now() }
    }

    /// Replays it once more, at least a second later. Returns its seed and what differs, if anything does.
    fn repeat(&self, simulation: &Simulation) -> Option<(u64, String)> {
        wait_for_a_second_since(self.replayed);
        let again = Trace::of(simulation, &self.log, Order::Natural);
        Some((self.seed, not_deterministic(&self.log, &self.trace, &again)?))
    }
}

/// The ways to make a machine fail. Only a test can provide them: they need a system that refuses syncs, and
/// materializers that know when to fail.
#[doc(hidden)]
#[derive(Clone, Copy)]
pub struct Faults {
    /// Runs a function while these syncs fail. The function returns whether it failed.
    pub while_syncs_fail: fn(&Syncs, &mut (dyn FnMut() -> bool + Send)),
    /// Lets this many materializers run, then makes the machine fail in the next one, with one of SQLite's error codes.
    pub fail_after: fn(u32, i32),
    /// Repairs the machine. Returns true if it hadn't failed yet.
    pub mend: fn() -> bool,
}

/// Which syncs fail.
#[doc(hidden)]
#[derive(Debug, Clone)]
pub enum Syncs {
    /// All of them.
    All,
    /// Those of this file.
    Of(PathBuf),
    /// All except those of this file.
    AllBut(PathBuf),
}
