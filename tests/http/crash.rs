//! What is left when the program dies, or the disk is full.

use std::collections::HashSet;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::client::{Answer, agent, new_id};
use crate::common::{Server, data_dir, errors, printed, run, run_with, wait_for};

/// The ids in the log, in order.
fn exported(data: &std::path::Path) -> Vec<String> {
    printed(run(data, &["export"]))
        .lines()
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|why| panic!("{why}: {line}"));
            line["id"].as_str().expect("an id").to_owned()
        })
        .collect()
}

#[test]
fn trust_03_a_kill_under_eight_writers_loses_nothing_and_doubles_nothing() {
    let rounds = std::env::var("LIKEWISE_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(200);
    let data = data_dir();
    let acknowledged = Mutex::new(Vec::new());
    let mut server = Server::start(data.path());
    for round in 0..rounds {
        let before = acknowledged.lock().expect("no panic").len();
        let is_dead = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let agent = agent();
                    let url = format!("{}/likes", server.url);
                    while !is_dead.load(Ordering::Relaxed) {
                        let id = new_id();
                        // Post some twice, like a page that got no answer.
                        for _ in 0..1 + id.bytes().last().map_or(0, |byte| byte % 2) {
                            match agent.post(&url).send_form([("id", &id)]) {
                                Ok(answer) if answer.status() == 303 => {
                                    acknowledged.lock().expect("no panic").push(id.clone());
                                }
                                Ok(answer) => panic!("{answer:?}"),
                                Err(_) => break,
                            }
                        }
                    }
                });
            }
            // Each round dies at another moment.
            let enough = before + 20 + round * 7 % 60;
            wait_for("likes to be acknowledged", || {
                (acknowledged.lock().expect("no panic").len() >= enough).then_some(())
            });
            let pid = rustix::process::Pid::from_raw(i32::try_from(server.pid()).expect("a pid")).expect("a pid");
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
            is_dead.store(true, Ordering::Relaxed);
        });
        // It holds its lock until it is gone, and a sync that is under way has to return first.
        server.wait();
        server = Server::start(data.path());
        let log = exported(data.path());
        let distinct: HashSet<&String> = log.iter().collect();
        assert_eq!(distinct.len(), log.len(), "round {round}: an id is there twice");
        let acknowledged = acknowledged.lock().expect("no panic");
        let lost: Vec<_> = acknowledged.iter().filter(|id| !distinct.contains(id)).collect();
        assert!(lost.is_empty(), "round {round}: acknowledged and lost: {lost:?}");
        assert_eq!(server.count(), log.len() as u64, "round {round}");
    }
    assert!(printed(run(data.path(), &["verify"])).contains("all is well"));
    assert!(server.terminate().success());
    assert!(printed(run(data.path(), &["verify"])).contains("all is well"));
}

#[test]
fn a_retry_after_a_kill_counts_once() {
    let data = data_dir();
    let server = Server::start(data.path());
    let ids = server.like_times(10);
    server.kill();
    let server = Server::start(data.path());
    ids.iter().for_each(|id| server.like("", id));
    assert_eq!(server.count(), 10);
}

#[test]
fn trust_02_every_acknowledgement_comes_after_an_fsync_of_the_eventlog() {
    if let Err(why) = Command::new("strace").arg("-V").output() {
        panic!("this test needs strace ({why}): install it, on Debian with `apt-get install strace`");
    }
    let data = data_dir();
    let traces = data_dir();
    let trace = traces.path().join("trace");
    // The tracer is detached (-D), so the process that this test starts and ends is the program itself.
    let mut strace = Command::new("strace");
    strace.args([
        "-D",
        "-f",
        "-y",
        "-s",
        "64",
        "-e",
        "trace=fsync,fdatasync,pwrite64,write,sendto,writev,sendmsg",
        "-o",
    ]);
    strace.arg(&trace).args([env!("CARGO_BIN_EXE_likewise"), "serve", "--listen", "127.0.0.1:0"]);
    let server = Server::spawn(strace, data.path());
    let likes = 8;
    for _ in 0..likes {
        server.like("", &new_id());
    }
    // The last answer may arrive before strace has recorded it.
    let text = wait_for("the trace to show every answer", || {
        let text = std::fs::read_to_string(&trace).expect("a trace");
        (text.matches("HTTP/1.1 303").count() >= likes).then_some(text)
    });
    let mut syncs = 0;
    let mut writes_unsynced = 0;
    let mut answers = 0;
    // If another thread's call interrupts a call in the trace, it ends where it is resumed. It is a sync of the file that
    // its thread named at the start.
    let mut unfinished: HashSet<String> = HashSet::new();
    for line in text.lines() {
        let thread = line.split_whitespace().next().unwrap_or_default().to_owned();
        let is_sync = line.contains(" fsync(") || line.contains(" fdatasync(");
        if line.contains("pwrite64(") && line.contains("/likes/eventlog.db-wal>") {
            writes_unsynced += 1;
        } else if is_sync && line.contains("/likes/eventlog.db") {
            if line.contains("<unfinished") {
                unfinished.insert(thread);
            } else if line.trim_end().ends_with("= 0") {
                syncs += 1;
                writes_unsynced = 0;
            }
        } else if line.contains("resumed>") && line.trim_end().ends_with("= 0") && unfinished.remove(&thread) {
            syncs += 1;
            writes_unsynced = 0;
        } else if line.contains("HTTP/1.1 303") {
            answers += 1;
            assert!(syncs >= answers, "answer {answers} came after {syncs} syncs of the eventlog:\n{text}");
            assert_eq!(writes_unsynced, 0, "answer {answers} came before its like was synced:\n{text}");
        }
    }
    assert_eq!(answers, likes);
    assert!(server.terminate().success());
}

/// How many events there are before the disk gets small. Their file is then larger than the disk allows, so nothing more can be
/// moved into it.
const EARLIER: usize = 8_000;

fn with_earlier_events() -> tempfile::TempDir {
    let data = data_dir();
    let events: String =
        (0..EARLIER).map(|_| format!("{{\"id\":\"{}\",\"name\":\"LikeAdded\"}}\n", new_id())).collect();
    printed(run_with(data.path(), &["import"], &events));
    data
}

/// No file can grow beyond 256 KiB, as on a full disk. The signal that goes with this is ignored.
fn start_on_a_small_disk(data: &std::path::Path) -> Server {
    let mut shell = Command::new("sh");
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LIKEWISE_") {
            shell.env_remove(name);
        }
    }
    // Counted in blocks of 512 bytes.
    let script = r#"trap '' XFSZ; ulimit -S -f 512; exec "$0" serve --listen 127.0.0.1:0"#;
    shell.args(["-c", script, env!("CARGO_BIN_EXE_likewise")]);
    Server::spawn(shell, data)
}

/// Likes until one is refused. Returns the ids of the others, and the refusal.
fn fill(server: &Server) -> (Vec<String>, Answer) {
    let mut acknowledged = Vec::new();
    let refusal = wait_for("the disk to be full", || {
        let id = new_id();
        let answer = server.post("/likes", &format!("id={id}"));
        if answer.status == 303 {
            acknowledged.push(id);
            return None;
        }
        Some(answer)
    });
    assert!(acknowledged.len() > 10, "{}", acknowledged.len());
    (acknowledged, refusal)
}

/// No acknowledged like is lost, none is there twice, and new likes are accepted.
fn assert_whole(server: &Server, acknowledged: &[String]) {
    let log = exported(server.data());
    let distinct: HashSet<&String> = log.iter().collect();
    assert_eq!(distinct.len(), log.len());
    assert!(acknowledged.iter().all(|id| distinct.contains(id)), "acknowledged and lost");
    assert_eq!(server.count(), log.len() as u64);
    server.like_times(3);
    assert!(printed(run(server.data(), &["verify"])).contains("all is well"));
}

#[test]
fn a_full_disk_refuses_likes_in_words_and_loses_none() {
    let data = with_earlier_events();
    let mut server = start_on_a_small_disk(data.path());
    let mut live = server.live("/live");
    let (acknowledged, refusal) = fill(&server);
    assert_eq!(refusal.status, 503, "{refusal:?}");
    assert!(!refusal.header("retry-after").is_empty(), "{refusal:?}");
    assert!(refusal.body.contains("The disk may be full"), "{refusal:?}");
    let stored = (EARLIER + acknowledged.len()) as u64;
    live.until(stored);
    drop(live);

    // Whatever is tried now, pages show what is there, and programs aren't told that all is well.
    let full = Instant::now();
    let mut tries = 0;
    while tries < 10 || full.elapsed() < Duration::from_secs(3) {
        tries += 1;
        let answer = server.post("/likes", &format!("id={}", new_id()));
        assert_eq!(answer.status, 503, "{answer:?}");
        assert_eq!(server.get("/healthz").status, 503);
        let page = server.get("/");
        assert_eq!(page.status, 200, "{page:?}\n{}", server.log());
        let shown: u64 = page.between(r#"data-count=""#, "\"").parse().expect("a count");
        assert!(shown >= stored, "{shown} of {stored}");
        assert!(page.body.contains(r#"data-state="failed""#), "the page says so: {page:?}");
        assert!(server.count() >= stored, "the status says where it stands");
    }
    assert!(server.is_running());
    assert!(!server.log().contains("panicked"), "{}", server.log());
    assert!(server.log().matches("ERROR").count() < 5, "one fault is logged once: {}", server.log());
    assert!(server.terminate().success());

    // While the disk is still full, the program can be started and looked at.
    let server = start_on_a_small_disk(data.path());
    assert!(server.count() >= stored);
    server.kill();

    assert_whole(&Server::start(data.path()), &acknowledged);
}

#[test]
fn a_start_on_a_full_disk_says_that_it_may_be_full() {
    let data = with_earlier_events();
    // The state has to be rebuilt, and there is no room for it.
    std::fs::remove_file(data.path().join("stores/likes/state.db")).expect("deleted");
    let mut shell = Command::new("sh");
    let script = r#"trap '' XFSZ; ulimit -f 8; exec "$0" serve --listen 127.0.0.1:0"#;
    shell.args(["-c", script, env!("CARGO_BIN_EXE_likewise")]).env("LIKEWISE_DATA", data.path());
    let output = shell.output().expect("a shell");
    assert_eq!(output.status.code(), Some(1), "{}", errors(&output));
    assert!(errors(&output).contains("The disk may be full or failing: make room"), "{}", errors(&output));
    assert_eq!(Server::start(data.path()).count(), EARLIER as u64);
}

#[test]
fn likes_go_on_by_themselves_once_the_disk_has_room() {
    use rustix::process::{Pid, Resource, getrlimit, prlimit};

    let data = with_earlier_events();
    let server = start_on_a_small_disk(data.path());
    let (acknowledged, _) = fill(&server);
    assert_eq!(server.get("/healthz").status, 503);
    let pid = Pid::from_raw(i32::try_from(server.pid()).expect("a pid"));
    prlimit(pid, Resource::Fsize, getrlimit(Resource::Fsize)).expect("a larger disk");
    wait_for("the program to notice", || (server.get("/healthz").status == 200).then_some(()));
    assert_whole(&server, &acknowledged);
    assert!(server.get("/").body.contains(r#"data-state="none""#));
}
