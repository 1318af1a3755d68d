//! Writes down what the other benchmarks have measured: their rows as a table, and plots of what grows.
//!
//! `benches/all` runs this last. It reads the file that `BENCH_RESULTS` names, and writes into the directory of documents that
//! `BENCH_DOCS` names: the table into `performance.md`, between two comments, and the plots into `performance/`.

mod plot;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use plot::{Axis, Plot};
use serde::Deserialize;

/// What stands around the table and the plots in `performance.md`.
const BEGIN: &str = "<!-- figures: written by benches/all -->\n";
const END: &str = "<!-- end of the figures -->";

/// The plots, by the names that the benchmarks give them.
const PLOTS: [(&str, Plot); 5] = [
    (
        "likes",
        Plot {
            title: "Likes a second against connections",
            x: Axis::log("connections"),
            y: Axis::linear("likes a second"),
        },
    ),
    (
        "latency",
        Plot {
            title: "From a click to its answer, against load",
            x: Axis::log("likes a second"),
            y: Axis::log("milliseconds"),
        },
    ),
    (
        "length",
        Plot {
            title: "To open a store, and to commit one like, against the length of its log",
            x: Axis::log("events in the log"),
            y: Axis::log("milliseconds"),
        },
    ),
    (
        "sync",
        Plot {
            title: "From an outbox to the hub and another device",
            x: Axis::log("likes in the outbox"),
            y: Axis::log("seconds"),
        },
    ),
    (
        "memory",
        Plot {
            title: "Memory of the server against open pages",
            x: Axis::linear("open pages"),
            y: Axis::linear("megabytes"),
        },
    ),
];

/// A line of the file.
#[derive(Deserialize)]
#[serde(untagged)]
enum Result {
    Row(Row),
    Point { plot: String, line: String, x: f64, y: f64 },
}

#[derive(Deserialize)]
struct Row {
    of: String,
    name: String,
    ours: String,
    plain: String,
    our: String,
    their: String,
    figure: String,
    range: String,
    rounds: usize,
    aim: String,
    has_aim: bool,
    verdict: String,
}

/// Points of lines, by the line's name, in the order in which the lines began.
type Lines = Vec<(String, Vec<(f64, f64)>)>;

fn main() {
    let Some(results) = std::env::var_os("BENCH_RESULTS") else {
        println!("BENCH_RESULTS names no file, so there is nothing to report");
        return;
    };
    let results = fs::read_to_string(results).expect("read the results");
    let (mut rows, mut plots) = (Vec::new(), BTreeMap::<String, Lines>::new());
    for line in results.lines() {
        match serde_json::from_str(line).unwrap_or_else(|why| panic!("{why}: {line}")) {
            Result::Row(row) => rows.push(row),
            Result::Point { plot, line, x, y } => {
                let lines = plots.entry(plot).or_default();
                match lines.iter_mut().find(|(name, _)| *name == line) {
                    Some((_, points)) => points.push((x, y)),
                    None => lines.push((line, vec![(x, y)])),
                }
            }
        }
    }
    let table = table(&rows);
    println!("{table}");
    if let Some(docs) = std::env::var_os("BENCH_DOCS") {
        write_into(&PathBuf::from(docs), &table, &plots);
    }
}

fn write_into(docs: &Path, table: &str, plots: &BTreeMap<String, Lines>) {
    let document = docs.join("performance.md");
    let text = fs::read_to_string(&document).expect("read performance.md");
    let (before, rest) = text.split_once(BEGIN).expect("the comment before the figures");
    let (_, after) = rest.split_once(END).expect("the comment after the figures");
    fs::create_dir_all(docs.join("performance")).expect("make the directory of plots");
    let mut shown = String::new();
    for (name, plot) in PLOTS {
        // A part of the benchmarks may have run.
        let Some(lines) = plots.get(name) else { continue };
        let file = docs.join(format!("performance/{name}.svg"));
        writeln!(shown, "![{}](performance/{name}.svg)\n", plot.title).expect("text");
        fs::write(&file, plot.draw(lines)).expect("write a plot");
        println!("{}", file.display());
    }
    fs::write(&document, format!("{before}{BEGIN}\n{table}\n{shown}{END}{after}")).expect("write performance.md");
}

/// All rows, below a line that says where and when.
fn table(rows: &[Row]) -> String {
    let mut text = format!("{}\n\n", about());
    let (aimed, others): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row.has_aim);
    let with = |verdict: &str| aimed.iter().filter(|row| row.verdict == verdict).count();
    let verdicts =
        [("met", "met"), ("close", "close"), ("MISSED", "missed")].map(|(verdict, word)| (with(verdict), word));
    let judged: Vec<_> = verdicts.iter().filter(|(rows, _)| *rows > 0).map(|(n, word)| format!("{n} {word}")).collect();
    let judged = if judged.is_empty() { "none measured".to_owned() } else { judged.join(", ") };
    writeln!(text, "{} aims: {judged}.\n", aimed.len()).expect("text");
    text += "| what | likewise | beside it | figure (least … most) | aim | |\n|---|---|---|---|---|---|\n";
    for row in aimed {
        let (cells, Row { aim, verdict, .. }) = (row.cells(), row);
        writeln!(text, "{cells} {aim} | {verdict} |").expect("text");
    }
    text += "\nAlso measured, without an aim; the figure is times:\n\n";
    text += "| what | likewise | beside it | figure (least … most) |\n|---|---|---|---|\n";
    for row in others {
        writeln!(text, "{}", row.cells()).expect("text");
    }
    text
}

impl Row {
    /// What was measured, without the aim.
    fn cells(&self) -> String {
        let Self { of, name, ours, plain, our, their, figure, range, rounds, .. } = self;
        let our = if ours == "likewise" { our.clone() } else { format!("{our} ({ours})") };
        let their = if their == "–" { String::new() } else { format!("{their} ({plain})") };
        let range = if *rounds > 1 { format!(" ({range})") } else { String::new() };
        format!("| {of}: {name} | {our} | {their} | {figure}{range} |")
    }
}

/// What machine this is, and what was measured when.
fn about() -> String {
    let said = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output().ok().filter(|output| output.status.success());
        output.and_then(|output| String::from_utf8(output.stdout).ok()).map(|text| text.trim().to_owned())
    };
    let read = |file: &str, name: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name)).map(str::to_owned);
        line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()))
    };
    let processor = read("/proc/cpuinfo", "model name").unwrap_or_else(|| "a processor of an unknown kind".to_owned());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = read("/proc/meminfo", "MemTotal").and_then(|memory| memory.strip_suffix(" kB")?.parse::<f64>().ok());
    let memory = memory.map_or_else(String::new, |memory| format!(", {:.0} GB of memory", memory * 1_024.0 / 1e9));
    let system = said("uname", &["-sr"]).unwrap_or_default();
    // What follows is its builder's.
    let system = system.split('-').next().unwrap_or_default();
    let rust = said("rustc", &["--version"]).unwrap_or_default();
    let date = said("date", &["-u", "+%Y-%m-%d"]).unwrap_or_default();
    let commit = said("git", &["rev-parse", "--short", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    let changed = said("git", &["status", "--porcelain", "--", "src", "benches", "Cargo.lock", "Cargo.toml"]);
    let changed = if changed.is_some_and(|changes| !changes.is_empty()) { ", with changes" } else { "" };
    format!("{processor}, {cores} cores{memory}, {system}, {rust}. Measured on {date}, commit {commit}{changed}.")
}
