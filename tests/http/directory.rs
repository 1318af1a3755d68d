//! The data directory after something happened to it.

use std::fs;
use std::io::BufRead;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::client::new_id;
use crate::common::{Server, data_dir, errors, likewise, printed, run, run_with, wait_for};

/// Serving must fail, with a message that contains each of `needles`.
fn assert_refused(data: &Path, needles: &[&str]) {
    let output = refusal(data);
    let said = errors(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for needle in needles {
        assert!(said.contains(needle), "{needle} is not in: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

/// The message with which serving fails.
fn refusal(data: &Path) -> Output {
    let mut command = likewise();
    command.env("LIKEWISE_DATA", data);
    refusal_of(command)
}

/// The message with which serving by this command fails. The command has no arguments yet.
pub(crate) fn refusal_of(mut command: Command) -> Output {
    command.args(["serve", "--listen", "127.0.0.1:0"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    let mut ready = String::new();
    let mut stdout = std::io::BufReader::new(child.stdout.take().expect("its output"));
    stdout.read_line(&mut ready).expect("its output");
    if !ready.is_empty() {
        drop(child.kill());
    }
    let output = child.wait_with_output().expect("its end");
    assert_eq!(ready, "", "it should refuse to serve, and got ready");
    output
}

/// Everything in a store's directory, with its bytes.
fn contents(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = fs::read_dir(dir)
        .expect("the store's directory")
        .map(|entry| {
            let path = entry.expect("an entry").path();
            (path.display().to_string(), fs::read(&path).expect("a file"))
        })
        .collect();
    all.sort();
    all
}

/// SQLite may put an empty WAL beside a file that it reads. The file itself must be unchanged.
fn assert_untouched(before: &[(String, Vec<u8>)]) {
    for (path, bytes) in before {
        assert!(fs::read(path).expect("a file") == *bytes, "{path} was changed");
    }
}

fn database(path: &Path) -> rusqlite::Connection {
    rusqlite::Connection::open(path).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

/// Data with some likes that no process uses, and its status.
fn some_data(data: &Path, likes: usize) -> serde_json::Value {
    let server = Server::start(data);
    server.like_times(likes);
    let status = server.get("/status?digests").json();
    assert!(server.terminate().success());
    status
}

#[test]
fn trust_12_a_newer_format_is_left_untouched() {
    let data = data_dir();
    some_data(data.path(), 3);
    let store = data.path().join("stores/likes");
    database(&store.join("eventlog.db")).execute_batch("PRAGMA user_version = 99").expect("a newer format");
    let before = contents(&store);
    assert_refused(data.path(), &["format 99", "eventlog.db", "Upgrade likewise"]);
    for command in ["status", "verify", "export"] {
        let output = run(data.path(), &[command]);
        assert_eq!(output.status.code(), Some(1), "{command}");
        assert!(errors(&output).contains("format 99"), "{command}: {}", errors(&output));
    }
    for input in ["", "\n", &format!("{{\"id\":\"{}\",\"name\":\"LikeAdded\"}}\n", new_id())] {
        let output = run_with(data.path(), &["import"], input);
        assert_eq!(output.status.code(), Some(1), "{input:?}");
        assert!(errors(&output).contains("format 99"), "{input:?}: {}", errors(&output));
    }
    let to = data.path().join("copy");
    let output = run(data.path(), &["backup", to.to_str().expect("text")]);
    assert_eq!(output.status.code(), Some(1), "a backup of what is not understood: {}", errors(&output));
    let source = store.join("eventlog.db").display().to_string();
    assert!(errors(&output).contains("format 99") && errors(&output).contains(&source), "{}", errors(&output));
    assert!(!to.exists(), "half a copy would open as a store without likes");
    assert_untouched(&before);
}

#[test]
fn a_database_of_something_else_is_left_untouched() {
    let data = data_dir();
    let store = data.path().join("stores/likes");
    fs::create_dir_all(&store).expect("a directory");
    database(&store.join("eventlog.db"))
        .execute_batch("CREATE TABLE mine (x); INSERT INTO mine VALUES (1)")
        .expect("data");
    let before = contents(&store);
    assert_refused(data.path(), &["not an eventlog of likewise"]);
    assert_untouched(&before);
}

#[test]
fn trust_07_an_eventlog_without_its_wal_is_refused_with_what_to_do() {
    let data = data_dir();
    let server = Server::start(data.path());
    let ids = server.like_times(5);
    let store = server.store("likes");
    server.kill();
    let wal = store.join("eventlog.db-wal");
    let kept = fs::read(&wal).expect("a WAL after a kill");
    fs::remove_file(&wal).expect("deleted");
    assert_refused(data.path(), &["lost its end", "eventlog.db-wal", "backup", "witness"]);
    let verify = run(data.path(), &["verify"]);
    assert_eq!(verify.status.code(), Some(1));
    assert!(format!("{}{}", String::from_utf8_lossy(&verify.stdout), errors(&verify)).contains("lost its end"));

    fs::write(&wal, kept).expect("put back");
    let server = Server::start(data.path());
    assert_eq!(server.count(), 5, "the right one put back, all is there again");
    let export = printed(run(data.path(), &["export"]));
    assert!(ids.iter().all(|id| export.contains(id)), "{export}");
}

#[test]
fn trust_07_an_old_wal_or_eventlog_in_the_place_of_the_right_one_is_noticed() {
    let data = data_dir();
    let server = Server::start(data.path());
    server.like_times(2);
    let store = server.store("likes");
    let old = contents(&store);
    let find = |name: &str| &old.iter().find(|(path, _)| path.ends_with(name)).expect(name).1;
    server.like_times(3);
    server.kill();
    let right = contents(&store);
    fs::write(store.join("eventlog.db-wal"), find("eventlog.db-wal")).expect("an old WAL");
    assert_refused(data.path(), &["lost its end"]);

    for (path, bytes) in &right {
        fs::write(path, bytes).expect("put back");
    }
    // Without the state, the witness knows.
    for name in ["state.db", "state.db-wal", "eventlog.db-wal"] {
        fs::remove_file(store.join(name)).expect("deleted");
    }
    assert_refused(data.path(), &["lost its end"]);
    fs::write(store.join("eventlog.db-wal"), find("eventlog.db-wal")).expect("an old WAL");
    assert_refused(data.path(), &["lost its end"]);
    fs::remove_file(store.join("eventlog.db")).expect("deleted");
    assert_refused(data.path(), &["eventlog.db is missing"]);

    // The message's advice for people without a better copy works.
    for (path, bytes) in &old {
        fs::write(path, bytes).expect("put back");
    }
    for name in ["state.db", "state.db-wal", "witness"] {
        drop(fs::remove_file(store.join(name)));
    }
    assert_eq!(Server::start(data.path()).count(), 2);
}

#[test]
fn commands_that_read_an_eventlog_that_is_gone_say_what_serving_says() {
    let data = data_dir();
    some_data(data.path(), 1);
    let eventlog = data.path().join("stores/likes/eventlog.db");
    let copy = data.path().join("copy");
    for what in ["empty", "missing"] {
        match what {
            "empty" => fs::write(&eventlog, b"").expect("emptied"),
            _ => fs::remove_file(&eventlog).expect("deleted"),
        }
        assert_refused(data.path(), &["lost its end", "missing or empty", "restore a backup"]);
        for arguments in [&["verify"][..], &["export"], &["backup", copy.to_str().expect("text")]] {
            let output = run(data.path(), arguments);
            assert_eq!(output.status.code(), Some(1), "{what} {arguments:?}: {}", errors(&output));
            for needle in ["lost its end", "missing or empty", "restore a backup"] {
                assert!(errors(&output).contains(needle), "{what} {arguments:?}: {}", errors(&output));
            }
            assert!(!copy.exists(), "{what}");
        }
    }
}

#[test]
fn what_a_crash_leaves_before_the_first_event_is_no_loss() {
    let data = data_dir();
    some_data(data.path(), 1);
    let begun = data.path().join("stores/begun");
    fs::create_dir(&begun).expect("a directory");
    fs::write(begun.join("eventlog.db"), b"").expect("an empty file");
    for command in ["verify", "export"] {
        let output = run(data.path(), &[command, "--store", "begun"]);
        assert_eq!(output.status.code(), Some(1), "{command}: {}", errors(&output));
        assert!(errors(&output).contains("there is no store begun"), "{command}: {}", errors(&output));
    }
    let copy = data.path().join("copy");
    printed(run(data.path(), &["backup", copy.to_str().expect("text")]));
    assert_eq!(printed(run(&copy, &["export"])), printed(run(data.path(), &["export"])));
    let server = Server::start(data.path());
    server.like("/s/begun", &new_id());
}

#[test]
fn what_cannot_be_looked_at_is_not_said_to_be_missing() {
    let data = data_dir();
    some_data(data.path(), 1);
    let stores = data.path().join("stores");
    fs::rename(&stores, data.path().join("away")).expect("moved away");
    fs::remove_file(data.path().join("lock")).expect("deleted");
    // Nobody can follow a link that leads to itself, not even a user who may read every directory.
    std::os::unix::fs::symlink(&stores, &stores).expect("a link");
    for arguments in
        [&["verify"][..], &["export"], &["status"], &["backup", "/nonexistent/copy"], &["set-aside", "list"]]
    {
        let output = run(data.path(), arguments);
        let said = errors(&output);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains("symbolic links") && said.contains("stores"), "{arguments:?}: {said}");
        assert!(!said.contains("there is no"), "{arguments:?}: {said}");
    }
}

type Damage<'a> = Box<dyn Fn() + 'a>;

#[test]
fn trust_13_a_state_that_is_gone_or_damaged_is_made_anew() {
    let data = data_dir();
    let before = some_data(data.path(), 7);
    let store = data.path().join("stores/likes");
    let state = store.join("state.db");
    let good = fs::read(&state).expect("the state");
    let damages: [(&str, Damage<'_>); 6] = [
        ("deleted", Box::new(|| fs::remove_file(&state).expect("deleted"))),
        ("emptied", Box::new(|| fs::write(&state, b"").expect("emptied"))),
        ("nonsense", Box::new(|| fs::write(&state, vec![b'x'; 9_000]).expect("overwritten"))),
        ("cut short", Box::new(|| fs::write(&state, &good[..good.len() / 2]).expect("cut"))),
        (
            "flipped",
            Box::new(|| {
                let mut bytes = good.clone();
                bytes[4_100..4_200].iter_mut().for_each(|byte| *byte ^= 0xff);
                fs::write(&state, bytes).expect("flipped");
            }),
        ),
        (
            "of another program",
            Box::new(|| {
                database(&state).execute_batch("UPDATE likewise_cursor SET made_by = 'other'").expect("changed");
            }),
        ),
    ];
    for (what, damage) in damages {
        damage();
        let server = Server::start(data.path());
        assert_eq!(server.get("/status?digests").json(), before, "{what}");
        assert!(server.terminate().success(), "{what}");
        assert!(printed(run(data.path(), &["verify"])).contains("all is well"), "{what}");
        fs::write(&state, &good).expect("put back");
    }
}

#[test]
fn trust_08_a_changed_count_is_found_by_verify() {
    let data = data_dir();
    some_data(data.path(), 3);
    assert!(printed(run(data.path(), &["verify"])).contains("all is well"));
    let state = data.path().join("stores/likes/state.db");
    database(&state).execute_batch("UPDATE likes SET count = 4").expect("changed");
    let verify = run(data.path(), &["verify"]);
    assert_eq!(verify.status.code(), Some(1));
    let said = String::from_utf8_lossy(&verify.stdout).into_owned();
    assert!(said.contains("the state differs") && said.contains("delete the file state.db"), "{said}");
    fs::remove_file(state).expect("deleted, as it says");
    assert_eq!(Server::start(data.path()).count(), 3);
}

#[test]
fn trust_08_flipped_bits_of_the_eventlog_are_found_and_not_served() {
    let data = data_dir();
    let store = data.path().join("stores/likes");
    let eventlog = store.join("eventlog.db");
    let id = new_id();
    {
        let server = Server::start(data.path());
        server.like("", &id);
        server.like_times(40);
        assert!(server.terminate().success());
    }
    let good = contents(&store);
    let bytes = fs::read(&eventlog).expect("the eventlog");
    let needle = uuid::Uuid::parse_str(&id).expect("an id").into_bytes();
    // The id is in the table and in the index.
    let places: Vec<usize> = (0..bytes.len() - 16).filter(|at| bytes[*at..*at + 16] == needle).collect();
    assert_eq!(places.len(), 2, "{places:?}");
    let flips = [
        ("the header", 3, 0x01),
        ("the size of pages", 16, 0x02),
        ("the kind of the first page", 100, 0x40),
        ("an id", places[0] + 15, 0x01),
        ("its other copy", places[1] + 15, 0x01),
        ("an id's version", places[0] + 6, 0x10),
        ("its other copy's version", places[1] + 6, 0x10),
    ];
    for (what, at, bit) in flips {
        let mut flipped = bytes.clone();
        flipped[at] ^= bit;
        fs::write(&eventlog, flipped).expect("flipped");
        let verify = run(data.path(), &["verify"]);
        let said = format!("{}{}", String::from_utf8_lossy(&verify.stdout), errors(&verify));
        assert_eq!(verify.status.code(), Some(1), "{what}: {said}");
        assert!(!said.contains("panicked") && !said.contains("all is well"), "{what}: {said}");
        for (path, bytes) in &good {
            fs::write(path, bytes).expect("put back");
        }
        assert!(printed(run(data.path(), &["verify"])).contains("all is well"), "{what}");
    }

    let sql = "SELECT rootpage FROM sqlite_schema WHERE name = 'log'";
    let root: usize = database(&eventlog).query_row(sql, (), |row| row.get(0)).expect("the table's page");
    let in_table = places.into_iter().find(|at| at / 4_096 + 1 == root).expect("the id in the table");
    for (what, at, bit) in [("the header", 3, 0x01), ("an event", in_table + 15, 0x01)] {
        let mut flipped = bytes.clone();
        flipped[at] ^= bit;
        fs::write(&eventlog, &flipped).expect("flipped");
        let output = refusal(data.path());
        assert_eq!(output.status.code(), Some(1), "{what}: {}", errors(&output));
        assert!(errors(&output).contains("backup"), "{what}: {}", errors(&output));
        assert_eq!(fs::read(&eventlog).expect("the eventlog"), flipped, "{what}: left as it was");
        for (path, bytes) in &good {
            fs::write(path, bytes).expect("put back");
        }
    }
}

#[test]
fn trust_08_an_eventlog_of_garbage_is_refused_and_left_alone() {
    let data = data_dir();
    some_data(data.path(), 1);
    let eventlog = data.path().join("stores/likes/eventlog.db");
    fs::write(&eventlog, vec![b'x'; 8_192]).expect("overwritten");
    assert_refused(data.path(), &["damaged", "backup"]);
    assert_eq!(fs::read(&eventlog).expect("the eventlog"), vec![b'x'; 8_192]);
    fs::write(&eventlog, b"").expect("emptied");
    assert_refused(data.path(), &["missing or empty"]);
}

#[test]
fn a_damaged_store_does_not_take_the_others_down() {
    let data = data_dir();
    {
        let server = Server::start(data.path());
        server.like("/s/work", &new_id());
        server.like_times(1);
        assert!(server.terminate().success());
    }
    fs::write(data.path().join("stores/work/eventlog.db"), vec![b'x'; 8_192]).expect("overwritten");
    let server = Server::start(data.path());
    server.like_times(1);
    assert_eq!(server.count(), 2);
    assert_eq!(server.get("/healthz").status, 200);
    for path in ["/s/work/", "/s/work/status", "/s/work/healthz"] {
        let answer = server.get(path);
        assert_eq!(answer.status, 503, "{path} {answer:?}");
        assert!(answer.body.contains("damaged") && !answer.header("retry-after").is_empty(), "{path} {answer:?}");
    }
    assert_eq!(server.post("/s/work/likes", &format!("id={}", new_id())).status, 503);
}

#[test]
fn trust_10_likes_are_refused_once_the_files_are_gone() {
    let data = data_dir();
    let server = Server::start(data.path());
    server.like_times(2);
    let store = server.store("likes");
    let away = data.path().join("away");
    fs::rename(&store, &away).expect("moved away");
    let refusal = wait_for("likes to be refused", || {
        let answer = server.post("/likes", &format!("id={}", new_id()));
        (answer.status != 303).then_some(answer)
    });
    assert_eq!(refusal.status, 503, "{refusal:?}");
    assert!(refusal.body.contains("removed or replaced"), "{refusal:?}");
    assert_eq!(server.get("/healthz").status, 503);
    assert!(!store.exists(), "no new store in the place of the old one");
    fs::rename(&away, &store).expect("put back");
    wait_for("likes to be taken again", || {
        (server.post("/likes", &format!("id={}", new_id())).status == 303).then_some(())
    });
    assert_eq!(server.get("/healthz").status, 200);
}
