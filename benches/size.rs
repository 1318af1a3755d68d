//! How large the program is, of how many crates it is made, and how long it takes to build.
//!
//! ```sh
//! cargo bench --bench size                # all; or a part: -- binary, -- crates, -- build
//! BENCH_SINCE=COMMIT cargo bench --bench size -- build    # compared with the build of another commit
//! ```
//!
//! The program is built anew in a directory of its own, with every crate that it needs.

mod compare;

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use compare::{Aim, Scale, Table, Unit, on_disk, run};

fn main() {
    run(&[("binary", binary), ("crates", crates), ("build", build)]);
}

fn binary(scale: Scale) {
    let built = Path::new(env!("CARGO_BIN_EXE_likewise"));
    let dir = on_disk();
    let stripped = dir.path().join("stripped");
    let mut strip = Command::new("strip");
    strip.arg("-o").arg(&stripped).arg(built);
    let size = |file: &Path| fs::metadata(file).expect("the program").len() as f64;
    let table = Table::new(scale, "the program", "likewise", "–");
    table.row("as it is built", Unit::Bytes, Aim::Most(9e6), &[size(built)], &[]);
    match strip.status() {
        Ok(status) if status.success() => {
            table.row("stripped", Unit::Bytes, Aim::None, &[size(&stripped)], &[]);
        }
        _ => println!("there is no `strip` here (on Debian, `apt-get install binutils`)"),
    }
}

/// The crates that are linked or run in a build, on this system, with ours.
fn crates(scale: Scale) {
    let mut cargo = cargo("tree");
    cargo.args(["--edges", "normal,build", "--prefix", "none", "--no-dedupe", "--format", "{p}"]);
    let output = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("start cargo");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    let mut names: Vec<_> = text.lines().map(|line| line.trim_end_matches(" (proc-macro)")).collect();
    names.sort_unstable();
    names.dedup();
    let table = Table::new(scale, "crates", "likewise", "–");
    table.row("linked, or run in a build", Unit::Number, Aim::Most(189.0), &[names.len() as f64], &[]);
}

/// A clean release build with everything fetched, compared with that of another commit if one is named.
fn build(scale: Scale) {
    if !scale.is_full() {
        println!("\na clean build takes minutes, and was left out");
        return;
    }
    let since = env::var("BENCH_SINCE").ok();
    let table = Table::new(scale, "a clean release build", "this", since.as_deref().unwrap_or("–"));
    let ours = [seconds_to_build(Path::new(env!("CARGO_MANIFEST_DIR")))];
    let theirs = since.as_ref().map(|commit| {
        let sources = Sources::of(commit);
        seconds_to_build(sources.dir.path())
    });
    let aim = if theirs.is_some() { Aim::Times(1.0) } else { Aim::None };
    table.row("with all crates", Unit::Seconds, aim, &ours, theirs.as_slice());
}

fn seconds_to_build(sources: &Path) -> f64 {
    let target = on_disk();
    assert!(cargo("fetch").current_dir(sources).status().expect("start cargo").success(), "crates are missing");
    let mut cargo = cargo("build");
    cargo.arg("--offline");
    cargo.args(["--release", "--quiet", "--bin", "likewise", "--target-dir"]).arg(target.path()).current_dir(sources);
    let start = Instant::now();
    assert!(cargo.status().expect("start cargo").success(), "the build in {} failed", sources.display());
    start.elapsed().as_secs_f64()
}

/// Cargo, as somebody starts it: it tells what it runs, such as this, about the package and the profile by variables.
fn cargo(command: &str) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os() {
        let is_of_the_package = name.to_string_lossy().starts_with("CARGO_PKG_");
        if is_of_the_package || name == OsStr::new("CARGO_MANIFEST_DIR") {
            cargo.env_remove(name);
        }
    }
    cargo.args([command, "--locked"]).stdin(Stdio::null());
    cargo
}

/// The files of a commit, in a directory of their own.
struct Sources {
    dir: tempfile::TempDir,
}

impl Sources {
    fn of(commit: &str) -> Self {
        let dir = on_disk();
        let archive: PathBuf = dir.path().join("archive.tar");
        let mut git = Command::new("git");
        git.args(["archive", "--output"]).arg(&archive).arg(commit).current_dir(env!("CARGO_MANIFEST_DIR"));
        assert!(git.status().expect("start git").success(), "there is no commit {commit}");
        let unpack = Command::new("tar").arg("-xf").arg(&archive).current_dir(dir.path()).status();
        assert!(unpack.expect("start tar").success(), "the files of {commit} could not be unpacked");
        Self { dir }
    }
}
