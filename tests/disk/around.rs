//! The recorder sees everything: the system calls that strace sees are those in the trace.

use std::collections::BTreeMap;
use std::process::Command;

use crate::client::new_id;
use crate::common::{Server, printed, wait_for};
use crate::shim::{Recorder, library, program};
use crate::trace::{self, What};

/// The calls that change files or names, or make changes durable, and what the recorder calls them.
const CALLS: [(&str, &[&str]); 6] = [
    ("write", &["write", "writev", "pwrite64", "pwritev", "pwritev2"]),
    ("size", &["ftruncate", "truncate", "fallocate"]),
    ("remove", &["unlink", "unlinkat", "rmdir"]),
    ("rename", &["rename", "renameat", "renameat2"]),
    ("sync", &["fsync", "fdatasync"]),
    ("make", &["mkdir", "mkdirat", "link", "linkat"]),
];

/// Calls that the recorder can't follow, so our code may not make them.
const BEYOND: &[&str] = &[
    "msync",
    "sync",
    "syncfs",
    "sync_file_range",
    "copy_file_range",
    "sendfile",
    "splice",
    "symlink",
    "symlinkat",
    "io_uring_setup",
    "io_setup",
];

/// The successful calls below `root` that strace saw, by kind.
fn traced(text: &str, root: &str) -> BTreeMap<&'static str, usize> {
    let mut seen = BTreeMap::new();
    // If another thread's call interrupts a call in the text, the call ends where it is resumed.
    let mut begun: BTreeMap<&str, &str> = BTreeMap::new();
    for line in text.lines() {
        let (thread, rest) = line.split_once(char::is_whitespace).unwrap_or(("", line));
        let rest = rest.trim_start();
        let start = match rest.strip_prefix("<... ") {
            Some(_) => begun.remove(thread).unwrap_or_default(),
            None => rest,
        };
        if rest.ends_with("<unfinished ...>") {
            begun.insert(thread, start);
            continue;
        }
        let is_done = rest.rsplit_once(" = ").is_some_and(|(_, result)| !result.starts_with('-'));
        let call = start.split('(').next().unwrap_or_default();
        if !is_done || !start.contains(root) {
            continue;
        }
        assert!(!BEYOND.contains(&call), "nobody records this: {line}");
        if let Some((kind, _)) = CALLS.iter().find(|(_, calls)| calls.contains(&call)) {
            *seen.entry(*kind).or_default() += 1;
        }
    }
    seen
}

/// What the recorder saw.
fn recorded(recorder: &Recorder) -> BTreeMap<&'static str, usize> {
    let mut seen = BTreeMap::new();
    for record in trace::read(&recorder.trace()) {
        let kind = match record.what {
            What::Write { .. } => "write",
            What::Size { .. } => "size",
            What::Remove { .. } => "remove",
            What::Rename { .. } => "rename",
            What::SyncEnd { errno: 0, .. } => "sync",
            What::Add { is_dir: true, .. } => "make",
            _ => continue,
        };
        *seen.entry(kind).or_default() += 1;
    }
    seen
}

#[test]
fn nothing_is_written_or_synced_past_the_recorder() {
    if let Err(why) = Command::new("strace").arg("-V").output() {
        panic!("this test needs strace ({why}): install it, on Debian with `apt-get install strace`");
    }
    let recorder = Recorder::new();
    let file = |name: &str| recorder.aside(name).to_str().expect("a path").to_owned();
    let strace = |name: &str, arguments: &[&str]| {
        let calls: Vec<&str> = CALLS.iter().flat_map(|(_, calls)| calls.iter()).chain(BEYOND).copied().collect();
        // The tracer is detached (-D), so the process that this test starts and ends is the program itself. Calls marked with
        // `?` are left out if this machine's kernel doesn't have them.
        let mut strace = recorder.watch(Command::new("strace"));
        strace.env_remove("LD_PRELOAD");
        strace.args(["-D", "-f", "-y", "-s", "0", "-o", &file(name), "-E"]);
        strace.arg(format!("LD_PRELOAD={}", library().display()));
        strace.arg("-e").arg(format!("trace=?{}", calls.join(",?")));
        strace.arg(program().get_program()).args(arguments).env("LIKEWISE_DATA", recorder.root().join("data"));
        strace
    };
    printed(strace("added", &["token", "add", "phone"]).output().expect("strace"));
    let server = Server::spawn(strace("served", &["serve", "--listen", "127.0.0.1:0"]), &recorder.root().join("data"));
    for _ in 0..5 {
        server.like("", &new_id());
    }
    let copy = recorder.root().join("copy");
    printed(strace("copied", &["backup", copy.to_str().expect("a path")]).output().expect("strace"));
    assert!(server.terminate().success());

    let ours = recorded(&recorder);
    assert!(ours.values().all(|count| *count > 0) && ours.len() >= 4, "{ours:?}");
    let root = recorder.root().to_str().expect("a path").to_owned();
    let read = |name: &str| std::fs::read_to_string(file(name)).expect("what strace saw");
    let mut text = String::new();
    for name in ["added", "served", "copied"] {
        // The tracer records the last calls after the program has ended.
        text += &wait_for("strace to write down everything that it saw", || {
            let text = read(name);
            let first = text.split_whitespace().next().unwrap_or_default().to_owned();
            text.lines().any(|line| line.starts_with(&first) && line.contains("+++ exited")).then_some(text)
        });
    }
    assert_eq!(traced(&text, &root), ours, "strace saw the first, the recorder the second");
}
