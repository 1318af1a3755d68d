//! The same likes on likewise and on LiveStore's adapter for Node, a peer that somebody could pick instead.
//!
//! ```sh
//! cargo bench --bench livestore
//! ```
//!
//! Both are libraries in a process of their own, which makes likes one by one and prints what that took. Likewise has each like
//! on disk before the next one begins. LiveStore doesn't sync its files at all. `npm` installs it; without `npm` this says so,
//! and measures nothing.

#[path = "../compare/mod.rs"]
mod compare;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use compare::{Aim, Scale, Table, Unit, on_disk, turns};
use likewise::engine::{Setup, StoreLimits, Stores};
use likewise::likes::{self, LikeAdded};
use serde::{Deserialize, Serialize};

fn main() {
    let args: Vec<_> = env::args().skip(1).collect();
    if let ["--part", dir, likes] = args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        let took = like(dir.as_ref(), likes.parse().expect("a number"));
        println!("{}", serde_json::to_string(&took).expect("JSON"));
        return;
    }
    let scale = Scale::asked_for();
    match installed() {
        Ok(livestore) => measure(scale, &livestore),
        Err(why) => println!("\nLiveStore isn't measured: {why}"),
    }
}

/// What a process that made likes says of them. Times are in seconds.
#[derive(Serialize, Deserialize)]
struct Took {
    /// Until the store could be used.
    opened: f64,
    /// Until all likes were made and the store was closed.
    liked: f64,
    /// Bytes.
    memory: f64,
    count: usize,
}

fn measure(scale: Scale, livestore: &Path) {
    let likes = scale.of(1_000);
    let ours = |dir: &Path, likes: usize| {
        let mut command = Command::new(env::current_exe().expect("the path of this program"));
        said(command.arg("--part").arg(dir).arg(likes.to_string()))
    };
    let theirs = |dir: &Path, likes: usize| {
        said(Command::new("node").current_dir(livestore).arg("main.mjs").arg(dir).arg(likes.to_string()))
    };
    // Likes, then their state is deleted, and made again.
    let round = |program: &dyn Fn(&Path, usize) -> Took| {
        let dir = on_disk();
        let liked = program(dir.path(), likes);
        delete_states(dir.path());
        let rebuilt = program(dir.path(), 0);
        assert_eq!((liked.count, rebuilt.count), (likes, likes), "each like counts once");
        (liked, rebuilt)
    };
    let said = turns(scale, &mut [&mut || round(&ours), &mut || round(&theirs)]);
    let of = |side: usize, what: fn(&(Took, Took)) -> f64| said[side].iter().map(what).collect::<Vec<_>>();
    let title = format!("{likes} likes, one by one");
    let table = Table::new(scale, &title, "likewise", "LiveStore");
    let all = |side: usize| of(side, |(liked, _)| liked.liked / liked.count as f64);
    table.row("a like", Unit::Seconds, Aim::None, &all(0), &all(1));
    let rebuilt = |side: usize| of(side, |(_, rebuilt)| rebuilt.opened);
    table.row("open without a state", Unit::Seconds, Aim::None, &rebuilt(0), &rebuilt(1));
    let memory = |side: usize| of(side, |(liked, _)| liked.memory);
    table.row("memory of the process", Unit::Bytes, Aim::None, &memory(0), &memory(1));
}

fn said(command: &mut Command) -> Took {
    let output = command.stderr(Stdio::inherit()).output().expect("start it");
    assert!(output.status.success(), "{command:?}: {}", output.status);
    serde_json::from_slice(&output.stdout).expect("what it took")
}

/// Deletes what both keep beside the events.
fn delete_states(dir: &Path) {
    for entry in fs::read_dir(dir).expect("read the directory") {
        let path = entry.expect("read the directory").path();
        if path.is_dir() {
            delete_states(&path);
        } else if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("state")) {
            fs::remove_file(path).expect("delete a state");
        }
    }
}

/// Makes likes on likewise.
fn like(dir: &Path, likes: usize) -> Took {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("start tokio");
    let start = Instant::now();
    let setup = Setup::new(likes::schema(), "bench".parse().expect("a name")).expect("read the program");
    let stores = Stores::open(dir, setup, StoreLimits::default()).expect("open");
    let store = stores.get(&"likes".parse().expect("a name")).expect("open");
    let count = || runtime.block_on(store.read(likes::count())).expect("a count");
    count();
    let opened = start.elapsed().as_secs_f64();
    let start = Instant::now();
    for _ in 0..likes {
        runtime.block_on(store.commit(LikeAdded {})).expect("commit");
    }
    let count = usize::try_from(count()).expect("a small number");
    let memory = memory();
    stores.close();
    Took { opened, liked: start.elapsed().as_secs_f64(), memory, count }
}

/// The memory of this process, in bytes; 0 where that is not known.
fn memory() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    kilobytes.map_or(0.0, |number| number.parse::<f64>().expect("a number") * 1_024.0)
}

/// Installs LiveStore, once, and returns where.
fn installed() -> Result<PathBuf, String> {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("livestore");
    fs::create_dir_all(&dir).expect("make a directory");
    for file in ["package.json", "package-lock.json", "main.mjs"] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/livestore").join(file);
        fs::copy(from, dir.join(file)).expect("copy a file");
    }
    let has_node = Command::new("node").arg("--version").output().is_ok_and(|output| output.status.success());
    if !has_node {
        return Err("there is no `node` here (on Debian, `apt-get install nodejs npm`)".to_owned());
    }
    if !dir.join("node_modules/.package-lock.json").exists() {
        let mut npm = Command::new("npm");
        npm.current_dir(&dir).args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]);
        let output = npm.output().map_err(|why| format!("npm doesn't start: {why}"))?;
        if !output.status.success() {
            return Err(format!("npm could not install it: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
    }
    Ok(dir)
}
