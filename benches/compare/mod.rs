//! Compares two ways to do the same thing. They run in turns, so whatever else the machine does affects both alike.
//!
//! A time alone says little about a program on another machine. The ratio to a plain loop measured in the same minute says what
//! the program adds.

#![allow(dead_code, reason = "each benchmark uses a part of this")]

use std::env;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How much to do: everything under `cargo bench`, and just enough to see that it runs under `cargo test`.
#[derive(Clone, Copy)]
pub(crate) struct Scale {
    is_full: bool,
    /// How long to go on with one comparison.
    time: Duration,
}

/// The fewest rounds, however long they take, and the most.
const ROUNDS: (usize, usize) = (3, 99);

impl Scale {
    /// What the command line asks for. Cargo passes `--bench` when it measures, and nothing when it tests.
    pub(crate) fn asked_for() -> Self {
        let is_full = env::args().any(|arg| arg == "--bench");
        let seconds = env::var("BENCH_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(8);
        Self { is_full, time: Duration::from_secs(if is_full { seconds } else { 0 }) }
    }

    /// Whether to measure, and not just to see that it runs.
    pub(crate) fn is_full(self) -> bool {
        self.is_full
    }

    /// How often to measure what takes long and needs a setup of its own.
    pub(crate) fn rounds(self) -> usize {
        if self.is_full { ROUNDS.0 } else { 1 }
    }

    /// `full` when measuring, or a few when testing.
    pub(crate) fn of(self, full: usize) -> usize {
        if self.is_full { full } else { full.div_ceil(1_000).min(20) }
    }

    /// `full` when measuring, or a moment when testing.
    pub(crate) fn time(self, full: Duration) -> Duration {
        if self.is_full { full } else { Duration::from_millis(50) }
    }
}

/// Whether the command line asks for `name`: it names nothing, or a part of `name`.
pub(crate) fn is_wanted(name: &str) -> bool {
    let mut filters = env::args().skip(1).filter(|arg| !arg.starts_with("--")).peekable();
    filters.peek().is_none() || filters.any(|filter| name.contains(&filter))
}

/// How the two should compare.
#[derive(Clone, Copy)]
pub(crate) enum Aim {
    /// At most this many times the plain way's time.
    Time(f64),
    /// At least this part of the plain way's speed.
    Speed(f64),
    /// No aim; the ratio is of times.
    None,
}

/// Runs `ours` and `plain` in turns, and prints how they compare. Each does its work and returns how long one piece took.
pub(crate) fn compare(
    scale: Scale,
    name: &str,
    aim: Aim,
    mut ours: impl FnMut() -> Duration,
    mut plain: impl FnMut() -> Duration,
) {
    let (mut of_ours, mut of_plain, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let start = Instant::now();
    let (least, most) = if scale.is_full { ROUNDS } else { (1, 1) };
    for round in 0..most {
        if round >= least && start.elapsed() >= scale.time {
            break;
        }
        // The order changes, so neither always finds the disk as the other left it.
        let (our, their) = if round % 2 == 0 {
            let our = ours();
            (our, plain())
        } else {
            let their = plain();
            (ours(), their)
        };
        let (our, their) = (our.as_secs_f64(), their.as_secs_f64());
        of_ours.push(our);
        of_plain.push(their);
        ratios.push(if matches!(aim, Aim::Speed(_)) { their / our } else { our / their });
    }
    let (ratio, low, high) = spread(&mut ratios);
    let verdict = match aim {
        _ if !scale.is_full => "(tested, not measured)".to_owned(),
        Aim::Time(most) => format!("time, aim at most {most:.2}: {}", met(ratio <= most)),
        Aim::Speed(least) => format!("speed, aim at least {least:.2}: {}", met(ratio >= least)),
        Aim::None => "time".to_owned(),
    };
    println!(
        "{name:<34} {:>9} {:>9}   {ratio:>5.2} {:<15} {verdict}",
        pretty(spread(&mut of_ours).0),
        pretty(spread(&mut of_plain).0),
        format!("({low:.2}..{high:.2})"),
    );
}

/// Prints the head of the table that [`compare`] fills.
pub(crate) fn head(of: &str, ours: &str, plain: &str) {
    println!("\n{of:<34} {ours:>9} {plain:>9}   ratio (min..max), median of several rounds");
}

fn met(is_met: bool) -> &'static str {
    if is_met { "met" } else { "MISSED" }
}

/// The median, the least and the most.
fn spread(values: &mut [f64]) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[0], values[values.len() - 1])
}

fn pretty(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{:.2} µs", s * 1e6),
        s if s < 1.0 => format!("{:.2} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
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
