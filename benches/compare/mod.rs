//! Compares ways to do the same thing. They run in turns, so whatever else the machine does affects all of them alike.
//!
//! A time alone says little about a program on another machine. The ratio to a plain loop measured in the same minute says what
//! the program adds.
//!
//! Each row has an aim, and is *met* if even its worst round reaches it. It is *close* if only the median does, and otherwise
//! *MISSED*. Of ten rounds, the worst one doesn't count, because the machine has other things to do, too.

#![allow(dead_code, reason = "each benchmark uses a part of this")]

use std::env;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// How much to do: everything under `cargo bench`, and just enough to see that it runs under `cargo test`.
#[derive(Clone, Copy)]
pub(crate) struct Scale {
    size: Size,
    /// How long to go on with one comparison.
    time: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Size {
    Full,
    /// Everything in two minutes, with figures that mean little.
    Quick,
    Tested,
}

/// The fewest rounds, however long they take, and the most.
const ROUNDS: (usize, usize) = (3, 99);

/// The file to which rows and points are added, one line of JSON each, for `report`.
const RESULTS: &str = "BENCH_RESULTS";

impl Scale {
    /// What the command line asks for. Cargo passes `--bench` when it measures, and nothing when it tests.
    pub(crate) fn asked_for() -> Self {
        let size = match (env::args().any(|arg| arg == "--bench"), env::var_os("BENCH_QUICK")) {
            (true, None) => Size::Full,
            (true, Some(_)) => Size::Quick,
            (false, _) => Size::Tested,
        };
        let seconds = env::var("BENCH_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(8);
        Self { size, time: Duration::from_secs(if size == Size::Full { seconds } else { 0 }) }
    }

    /// Whether to measure, and not just to see that it runs.
    pub(crate) fn is_full(self) -> bool {
        self.size == Size::Full
    }

    /// How often to measure what takes long and needs a setup of its own.
    pub(crate) fn rounds(self) -> usize {
        if self.is_full() { ROUNDS.0 } else { 1 }
    }

    /// `full` when measuring, or a few when testing.
    pub(crate) fn of(self, full: usize) -> usize {
        match self.size {
            Size::Full => full,
            Size::Quick => (full / 100).max(full.min(20)),
            Size::Tested => full.div_ceil(1_000).min(20),
        }
    }

    /// `full` when measuring, or a moment when testing.
    pub(crate) fn time(self, full: Duration) -> Duration {
        match self.size {
            Size::Full => full,
            Size::Quick => full / 5,
            Size::Tested => Duration::from_millis(50),
        }
    }
}

/// Whether the command line asks for `name`: it names nothing, or a part of `name`.
pub(crate) fn is_wanted(name: &str) -> bool {
    let mut filters = env::args().skip(1).filter(|arg| !arg.starts_with("--")).peekable();
    filters.peek().is_none() || filters.any(|filter| name.contains(&filter))
}

/// A part of a benchmark, with its name.
type Part = (&'static str, fn(Scale));

/// Runs the parts of a benchmark that are [wanted](is_wanted), by their names.
pub(crate) fn run(parts: &[Part]) {
    let scale = Scale::asked_for();
    parts.iter().filter(|(name, _)| is_wanted(name)).for_each(|(_, part)| part(scale));
}

/// Calls all of `sides` in each round, and begins each round with another one, so none always finds the disk as the same other
/// left it. Returns what each said, round by round.
pub(crate) fn turns<T>(scale: Scale, sides: &mut [&mut dyn FnMut() -> T]) -> Vec<Vec<T>> {
    let mut said: Vec<_> = sides.iter().map(|_| Vec::new()).collect();
    let start = Instant::now();
    let (least, most) = if scale.is_full() { ROUNDS } else { (1, 1) };
    for round in 0..most {
        if round >= least && start.elapsed() >= scale.time {
            break;
        }
        for n in 0..sides.len() {
            let n = (round + n) % sides.len();
            said[n].push(sides[n]());
        }
    }
    said
}

/// What a row has to reach.
#[derive(Clone, Copy)]
pub(crate) enum Aim {
    /// At most this many times the plain way's figure: its time, or its bytes.
    Times(f64),
    /// At least this part of the plain way's speed. The figures are times.
    Speed(f64),
    /// At most this much, whatever the plain way has.
    Most(f64),
    /// At most this much more than the plain way has.
    Over(f64),
    /// Nothing; the ratio is that of the figures.
    None,
}

impl Aim {
    /// What counts of one round.
    fn figure(self, ours: f64, plain: f64) -> f64 {
        match self {
            Self::Speed(_) => plain / ours,
            Self::Times(_) | Self::None => ours / plain,
            Self::Most(_) => ours,
            Self::Over(_) => ours - plain,
        }
    }

    fn is_reached_by(self, figure: f64) -> bool {
        match self {
            Self::Speed(least) => figure >= least,
            Self::Times(most) | Self::Most(most) | Self::Over(most) => figure <= most,
            Self::None => true,
        }
    }

    /// Says what the figure is and what it should be.
    fn words(self, unit: Unit) -> String {
        match self {
            Self::Times(most) => format!("at most {most:.2} times"),
            Self::Speed(least) => format!("at least {least:.2} of the speed"),
            Self::Most(most) => format!("at most {}", unit.pretty(most)),
            Self::Over(most) => format!("at most {} more", unit.pretty(most)),
            Self::None => "times".to_owned(),
        }
    }

    /// Shows a figure.
    fn pretty(self, unit: Unit, figure: f64) -> String {
        match self {
            _ if figure.is_nan() => "–".to_owned(),
            Self::Most(_) | Self::Over(_) => unit.pretty(figure),
            _ => format!("{figure:.2}"),
        }
    }

    fn verdict(self, figures: &[f64]) -> &'static str {
        let mut reaching: Vec<_> = figures.iter().map(|figure| self.is_reached_by(*figure)).collect();
        reaching.sort_unstable();
        let median = spread(figures).median;
        match self {
            Self::None => "",
            _ if reaching[reaching.len() / 10] => "met",
            _ if self.is_reached_by(median) => "close",
            _ => "MISSED",
        }
    }
}

/// What the figures of a row are.
#[derive(Clone, Copy)]
pub(crate) enum Unit {
    Seconds,
    Bytes,
    Number,
}

impl Unit {
    fn pretty(self, value: f64) -> String {
        let size = value.abs();
        match self {
            Self::Seconds if size < 1e-3 => format!("{:.2} µs", value * 1e6),
            Self::Seconds if size < 1.0 => format!("{:.2} ms", value * 1e3),
            Self::Seconds => format!("{value:.2} s"),
            Self::Bytes if size < 1e3 => format!("{value:.1} B"),
            Self::Bytes if size < 1e6 => format!("{:.1} KB", value / 1e3),
            Self::Bytes => format!("{:.1} MB", value / 1e6),
            Self::Number => format!("{value:.0}"),
        }
    }
}

/// The rows about one thing, with the names of both sides.
pub(crate) struct Table<'a> {
    scale: Scale,
    of: &'a str,
    ours: &'a str,
    plain: &'a str,
}

impl<'a> Table<'a> {
    /// Prints the head.
    pub(crate) fn new(scale: Scale, of: &'a str, ours: &'a str, plain: &'a str) -> Self {
        println!("\n{of:<34} {ours:>9} {plain:>9}   ratio (min..max), median of several rounds");
        Self { scale, of, ours, plain }
    }

    /// Runs `ours` and `plain` in turns, and prints how they compare. Each does its work and returns how long one piece took.
    pub(crate) fn compare(
        &self,
        name: &str,
        aim: Aim,
        mut ours: impl FnMut() -> Duration,
        mut plain: impl FnMut() -> Duration,
    ) -> [f64; 2] {
        let said = turns(self.scale, &mut [&mut ours, &mut plain]);
        let [ours, plain] = [0, 1].map(|side| said[side].iter().map(Duration::as_secs_f64).collect::<Vec<_>>());
        self.row(name, Unit::Seconds, aim, &ours, &plain);
        [spread(&ours).median, spread(&plain).median]
    }

    /// Prints a row of what was measured round by round. Nothing may have been measured on the plain side.
    pub(crate) fn row(&self, name: &str, unit: Unit, aim: Aim, ours: &[f64], plain: &[f64]) {
        let beside = |round: usize| plain.get(round).copied().unwrap_or(f64::NAN);
        let figures: Vec<_> = ours.iter().enumerate().map(|(n, ours)| aim.figure(*ours, beside(n))).collect();
        let Spread { median, least, most } = spread(&figures);
        let verdict = if self.scale.is_full() { aim.verdict(&figures) } else { "(tested, not measured)" };
        let [our, their] = [ours, plain].map(|values| match values {
            [] => "–".to_owned(),
            values => unit.pretty(spread(values).median),
        });
        let [shown, least_shown, most_shown] = [median, least, most].map(|figure| aim.pretty(unit, figure));
        let (range, words) = (format!("({least_shown}..{most_shown})"), aim.words(unit));
        println!("{name:<34} {our:>9} {their:>9}   {shown:>5} {range:<15} {words}: {verdict}");
        record(&json!({
            "of": self.of, "name": name, "ours": self.ours, "plain": self.plain, "our": our, "their": their,
            "figure": shown, "range": format!("{least_shown} … {most_shown}"), "rounds": figures.len(),
            "aim": words, "has_aim": !matches!(aim, Aim::None), "verdict": verdict,
        }));
    }
}

/// Notes a point of a line in one of the plots that `report` draws.
pub(crate) fn point(plot: &str, line: &str, x: f64, y: f64) {
    record(&json!({ "plot": plot, "line": line, "x": x, "y": y }));
}

/// The middle value of several.
pub(crate) fn median(values: &[f64]) -> f64 {
    spread(values).median
}

fn record(result: &Value) {
    let Some(path) = env::var_os(RESULTS) else { return };
    let file = OpenOptions::new().append(true).create(true).open(path);
    writeln!(file.expect("the file for results"), "{result}").expect("write a result");
}

struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

fn spread(values: &[f64]) -> Spread {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    Spread { median: values[values.len() / 2], least: values[0], most: values[values.len() - 1] }
}

/// How long each of `pieces` took, all of which were done since `start`.
pub(crate) fn each(start: Instant, pieces: usize) -> Duration {
    start.elapsed().div_f64(pieces as f64)
}

/// A new directory in `BENCH_DIR`, or else on the disk that the program is built on. A temporary directory might be in memory,
/// where nothing is durable and an fsync costs nothing.
pub(crate) fn on_disk() -> TempDir {
    let parent = env::var_os("BENCH_DIR").map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    std::fs::create_dir_all(&parent).expect("make the directory");
    tempfile::tempdir_in(parent).expect("make a directory")
}
