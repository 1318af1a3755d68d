//! Tests for authors: your schema and your events on simulated devices, which crash, go offline, are cloned and restored.
//!
//! A materializer has to do the same on every device. [`converges`] shows when one doesn't, and says which event it was:
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
//! An event that speaks of another takes its id from [`Rng::earlier`].

mod cluster;
mod difference;
mod draft;
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
pub use rng::Rng;

/// The variable that names one seed to run.
const ONE_SEED: &str = "LIKEWISE_SEED";

/// The variable that says how many seeds to run.
const SEEDS: &str = "LIKEWISE_SEEDS";

/// So many refusals of a type of event, without one that was taken, are no chance.
const MANY: u64 = 20;

/// Tells one story for each of `seeds`: a hub and some devices, which commit what `events` makes, sync, crash, lose power,
/// go offline, are cloned, and are restored from backups. In the end everything works again, and all have to have the same
/// log and the same state. So has a state that is rebuilt from the log, also one in which each SELECT without ORDER BY gives
/// its rows in reverse.
///
/// A hundred seeds take some seconds, and show most mistakes. `LIKEWISE_SEED=7` runs that seed alone, and
/// `LIKEWISE_SEEDS=10000` so many from 0, whatever `seeds` is.
///
/// Events may be refused: that is the materializer's way to say no. But a type of event that is refused each time proves
/// nothing, so that counts as a failure.
///
/// It can't see what is the same on all simulated devices and not on real ones: a setting, a file, the day.
///
/// # Panics
///
/// When something differs. The message has the seed, the event after which states differ, and the rows.
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

/// What is simulated. [`converges`] is all that most tests need; this one also takes what has to hold in between.
pub struct Simulation {
    schema: Box<dyn Fn() -> Schema + Send + Sync>,
    events: Box<dyn Fn(&mut Rng) -> Draft + Send + Sync>,
    /// What holds after each step.
    always: Vec<Check>,
    /// What doesn't hold between the pages of a pull.
    at_rest: Vec<Check>,
    faults: Option<Faults>,
    is_wanted: fn(u64) -> bool,
}

impl Simulation {
    /// A simulation of what [`converges`] takes.
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

    /// Adds a check that panics when something doesn't hold for a device, or for the hub, whose files are in that directory.
    /// It runs after every step in which the device isn't in the middle of a pull.
    #[must_use]
    pub fn holds(mut self, check: impl Fn(&Replica, &Path) + Send + Sync + 'static) -> Self {
        self.at_rest.push(Box::new(check));
        self
    }

    /// As [`holds`](Self::holds), also in the middle of a pull. Queries lag behind the log then.
    #[must_use]
    pub fn always_holds(mut self, check: impl Fn(&Replica, &Path) + Send + Sync + 'static) -> Self {
        self.always.push(Box::new(check));
        self
    }

    /// Has machines fail in the middle of a write.
    #[doc(hidden)]
    #[must_use]
    pub fn faults(mut self, faults: Faults) -> Self {
        self.faults = Some(faults);
        self
    }

    /// Passes over the other seeds.
    #[doc(hidden)]
    #[must_use]
    pub fn only(mut self, is_wanted: fn(u64) -> bool) -> Self {
        self.is_wanted = is_wanted;
        self
    }

    /// Tells one story for each of `seeds`, on as many threads as the machine runs at once.
    ///
    /// # Panics
    ///
    /// When something doesn't hold, with the first of the seeds that were found to show it. Also when the schema has a
    /// mistake that can be known without events.
    pub fn run(&self, seeds: Range<u64>) {
        self.tell(seeds);
    }

    fn tell(&self, seeds: Range<u64>) -> Tally {
        if let Err(fault) = (self.schema)().check() {
            panic!("the schema can't be used: {fault}");
        }
        let seeds = asked_for(seeds);
        let run = Run {
            simulation: self,
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

/// The seeds to run: those of the test, unless the person who runs it wants others.
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

/// What to type to see one seed of the running test again. The harness names a test's thread after the test.
fn command(seed: u64) -> String {
    let thread = thread::current();
    let test = thread.name().filter(|name| *name != "main").map_or(String::new(), |name| format!(" {name}"));
    format!("{ONE_SEED}={seed} cargo test{test}")
}

/// The stories of one run.
struct Run<'s> {
    simulation: &'s Simulation,
    next: AtomicU64,
    end: u64,
    has_failed: AtomicBool,
    found: Mutex<Found>,
}

/// What the stories have shown.
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
                let told = catch_unwind(AssertUnwindSafe(|| Cluster::tell(self.simulation, seed)));
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

/// A replay from the beginning of a run, which is repeated at its end. Two replays in a row agree with each other when they
/// use a clock of seconds.
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

    /// Replays it once more, a second later, and gives its seed and what differs.
    fn repeat(&self, simulation: &Simulation) -> Option<(u64, String)> {
        wait_for_a_second_since(self.replayed);
        let again = Trace::of(simulation, &self.log, Order::Natural);
        Some((self.seed, not_deterministic(&self.log, &self.trace, &again)?))
    }
}

/// How a machine is made to fail. Only a test can do that: it needs a system that refuses syncs, and materializers that
/// know when to fail.
#[doc(hidden)]
#[derive(Clone, Copy)]
pub struct Faults {
    /// Runs something while these syncs fail. It gives whether it failed.
    pub while_syncs_fail: fn(&Syncs, &mut (dyn FnMut() -> bool + Send)),
    /// Makes the machine fail in the materializer after the next so many, with one of SQLite's codes.
    pub fail_after: fn(u32, i32),
    /// Mends the machine. True when it hadn't failed yet.
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
    /// Those of everything else.
    AllBut(PathBuf),
}
