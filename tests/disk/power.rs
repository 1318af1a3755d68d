//! Power cuts at any moment of the program's work: nothing acknowledged is lost or doubled, and everything opens.
//!
//! Each acknowledgement has a name: an id, preceded by the data directory that must have it, or something about tokens.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::check::{
    Cuts, Findings, Opened, Outcome, Wrong, check_likes, copy, exported, power_cuts, run, text, until_level,
};
use crate::client::{agent, new_id};
use crate::common::{self, Server, printed, wait_for};
use crate::shim::{Recorder, Swallow, scratch};

/// Several writers like at once, this many times each. Returns the ids.
fn like_from(recorder: &Recorder, server: &Server, writers: usize, likes: usize) -> Vec<String> {
    let data = name_of(server.data());
    let like = || {
        let agent = agent();
        let like = |_| {
            let id = new_id();
            let answer = agent.post(format!("{}/likes", server.url)).send_form([("id", &id)]);
            assert_eq!(answer.expect("an answer").status(), 303);
            recorder.acknowledge(&format!("{data} {id}"));
            id
        };
        (0..likes).map(like).collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..writers).map(|_| scope.spawn(like)).collect();
        writers.into_iter().flat_map(|writer| writer.join().expect("no panic")).collect()
    })
}

fn name_of(data: &Path) -> String {
    data.file_name().expect("a name").to_string_lossy().into_owned()
}

/// Records that all these ids are acknowledged in the data directory `data` from now on.
fn acknowledge(recorder: &Recorder, data: &str, ids: &[String]) {
    ids.iter().for_each(|id| recorder.acknowledge(&format!("{data} {id}")));
}

/// Likes once, and kills the program after it has written the like and before it syncs it. Returns the id.
fn like_and_die_in_the_sync(recorder: &Recorder, server: Server) -> String {
    let id = new_id();
    recorder.only("eventlog.db-wal");
    recorder.hold();
    let posted = {
        let (url, id) = (format!("{}/likes", server.url), id.clone());
        std::thread::spawn(move || drop(agent().post(url).send_form([("id", &id)])))
    };
    recorder.until_held();
    recorder.kill(server);
    posted.join().expect("no panic");
    recorder.release();
    recorder.only("");
    id
}

/// Runs a watched command of the program, which must succeed.
fn command(recorder: &Recorder, data: &str, arguments: &[&str]) -> String {
    printed(recorder.command(data, arguments).output().expect("the program starts"))
}

/// An export with this many new likes, and their ids.
fn new_export(likes: usize) -> (Vec<String>, String) {
    let ids: Vec<String> = (0..likes).map(|_| new_id()).collect();
    let lines = ids.iter().map(|id| format!("{{\"id\":\"{id}\",\"name\":\"LikeAdded\"}}\n")).collect();
    (ids, lines)
}

/// Imports what `new_export` made, watched.
fn import(recorder: &Recorder, data: &str, lines: &str) {
    let file = recorder.aside("export");
    fs::write(&file, lines).expect("an export");
    let mut command = recorder.command(data, &["import"]);
    command.stdin(Stdio::from(fs::File::open(&file).expect("an export")));
    printed(command.output().expect("the program starts"));
}

/// What is due in the data directory `data`.
fn due_in(due: &[String], data: &str) -> Vec<String> {
    due.iter().filter_map(|what| what.strip_prefix(data)?.strip_prefix(' ')).map(str::to_owned).collect()
}

/// Checks only the data directory `data`.
fn one(image: &Path, due: &[String]) -> Findings {
    check_likes(&image.join("data"), &due_in(due, "data"))
}

/// The first start, a few likes, a clean end, and the next start.
fn first_likes(recorder: &Recorder) {
    let server = recorder.serve("data", &[]);
    like_from(recorder, &server, 1, 3);
    assert!(server.terminate().success());
    let server = recorder.serve("data", &[]);
    like_from(recorder, &server, 1, 1);
    recorder.kill(server);
}

#[test]
fn trust_60_a_power_cut_at_each_step_of_the_first_start_and_of_a_clean_end() {
    power_cuts("first-likes", Cuts::EachOf(4), first_likes, one).assert_well("first-likes");
}

fn several_writers(recorder: &Recorder) {
    let server = recorder.serve("data", &[]);
    like_from(recorder, &server, 4, 20);
    assert!(server.terminate().success());
    let server = recorder.serve("data", &[]);
    like_from(recorder, &server, 4, 5);
    recorder.kill(server);
    let server = recorder.serve("data", &[]);
    like_from(recorder, &server, 1, 1);
}

#[test]
fn trust_04_a_power_cut_under_several_writers() {
    power_cuts("commits", Cuts::Random(40), several_writers, one).assert_well("commits");
}

fn kill_and_retry(recorder: &Recorder) {
    let mut server = recorder.serve("data", &[]);
    like_from(recorder, &server, 1, 1);
    for _ in 0..6 {
        let id = like_and_die_in_the_sync(recorder, server);
        server = recorder.serve("data", &[]);
        server.like("", &id);
        acknowledge(recorder, "data", &[id]);
        like_from(recorder, &server, 1, 2);
    }
    let id = like_and_die_in_the_sync(recorder, server);
    // Every answer shows only what is on the disk.
    let server = recorder.serve("data", &[]);
    let shown = server.count();
    acknowledge(recorder, "data", &[id]);
    assert_eq!(shown, 1 + 6 * 3 + 1);
    recorder.kill(server);
}

#[test]
fn trust_58_a_like_whose_sync_a_kill_ended_and_that_was_posted_again() {
    power_cuts("kill-and-retry", Cuts::Random(40), kill_and_retry, one).assert_well("kill-and-retry");
}

/// Whether the checker notices that something acknowledged is gone. If the program notices it, the program refuses.
fn assert_noticed(outcome: &Outcome) {
    let (lost, refused) = (outcome.count(Wrong::Lost), outcome.count(Wrong::Refused));
    eprintln!("of {} images {lost} lack something acknowledged, and {refused} are refused", outcome.images);
    assert!(lost + refused > 0, "syncs were skipped, but none of {} images lacks anything", outcome.images);
}

#[test]
fn trust_04_the_checker_notices_when_logs_are_not_synced() {
    let scenario = |recorder: &Recorder| {
        recorder.swallow(Swallow::Wal);
        several_writers(recorder);
        assert!(recorder.swallowed() > 0);
    };
    assert_noticed(&power_cuts("control-wal", Cuts::Random(15), scenario, one));
}

#[test]
fn trust_58_the_checker_notices_when_what_is_found_is_not_synced() {
    let scenario = |recorder: &Recorder| {
        recorder.swallow(Swallow::First);
        kill_and_retry(recorder);
        assert!(recorder.swallowed() > 0);
    };
    assert_noticed(&power_cuts("control-first", Cuts::Random(15), scenario, one));
}

/// A process dies at each of its steps, and the power is cut soon after the next process starts to answer.
#[test]
fn trust_60_a_kill_at_each_step_of_the_first_start_and_then_a_power_cut() {
    let steps = {
        let recorder = Recorder::new();
        first_likes(&recorder);
        usize::try_from(recorder.changes()).expect("a number of steps")
    };
    let stride = if common::is_asked_for_all() { 1 } else { steps / 10 };
    for step in (1..=steps).step_by(stride) {
        let scenario = |recorder: &Recorder| {
            recorder.kill_at(step as u64);
            let id = new_id();
            if let Ok(server) = Opened::spawn(recorder.command("data", &["serve", "--listen", "127.0.0.1:0"])) {
                drop(server.try_like(&id));
                drop(server.stop());
            }
            recorder.kill_at(0);
            let server = recorder.serve("data", &[]);
            server.like("", &id);
            acknowledge(recorder, "data", &[id]);
            recorder.kill(server);
        };
        let name = format!("kill-at-{step}");
        power_cuts(&name, Cuts::Random(2), scenario, one).assert_well(&name);
    }
}

fn rebuild(recorder: &Recorder) {
    let (ids, lines) = new_export(300);
    import(recorder, "data", &lines);
    acknowledge(recorder, "data", &ids);
    // Made by another executable.
    let mut other = recorder.watch(common::likewise());
    other.args(["serve", "--listen", "127.0.0.1:0"]);
    let server = Server::spawn(other, &recorder.root().join("data"));
    assert_eq!(server.count(), 300);
    like_from(recorder, &server, 1, 2);
    recorder.kill(server);
    // Deleted.
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(r#"rm "$0"/state.db*"#).arg(recorder.root().join("data/stores/likes"));
    assert!(recorder.watch(shell).status().expect("a shell").success());
    let server = recorder.serve("data", &[]);
    assert_eq!(server.count(), 302);
    like_from(recorder, &server, 1, 2);
    assert!(server.terminate().success());
}

#[test]
fn trust_60_a_power_cut_while_the_state_is_made_anew() {
    power_cuts("rebuild", Cuts::Random(30), rebuild, one).assert_well("rebuild");
}

#[test]
fn trust_60_a_power_cut_while_data_of_an_older_format_is_moved_on() {
    let old = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/format-1").join(name);
    for name in ["lone-killed", "hub"] {
        let copied = scratch();
        copy(&old(name), &copied.path().join("data"));
        let ids = exported(&copied.path().join("data")).expect("an export");
        assert!(!ids.is_empty());
        let scenario = |recorder: &Recorder| {
            recorder.bring(&old(name), "data");
            acknowledge(recorder, "data", &ids);
            let server = recorder.serve("data", &[]);
            like_from(recorder, &server, 1, 2);
            assert!(server.terminate().success());
        };
        let name = format!("older-{name}");
        power_cuts(&name, Cuts::Random(12), scenario, one).assert_well(&name);
    }
}

#[test]
fn trust_60_a_power_cut_during_an_import() {
    let scenario = |recorder: &Recorder| {
        let (ids, lines) = new_export(2_000);
        import(recorder, "data", &lines);
        acknowledge(recorder, "data", &ids);
        let server = recorder.serve("data", &[]);
        let (ids, lines) = new_export(200);
        import(recorder, "data", &lines);
        acknowledge(recorder, "data", &ids);
        recorder.kill(server);
    };
    power_cuts("import", Cuts::Random(20), scenario, one).assert_well("import");
}

#[test]
fn trust_60_a_power_cut_during_a_backup() {
    let scenario = |recorder: &Recorder| {
        command(recorder, "data", &["token", "add", "phone"]);
        let server = recorder.serve("data", &[]);
        let ids = like_from(recorder, &server, 2, 10);
        let to = recorder.root().join("copy");
        // From here on, any copy must be whole.
        acknowledge(recorder, "if-any", &ids);
        command(recorder, "data", &["backup", to.to_str().expect("a path")]);
        acknowledge(recorder, "copy", &ids);
        like_from(recorder, &server, 1, 1);
        recorder.kill(server);
    };
    let check = |image: &Path, due: &[String]| {
        let copy = image.join("copy");
        let mut expected = due_in(due, "copy");
        if expected.is_empty() && copy.join("stores").exists() {
            expected = due_in(due, "if-any");
        }
        let mut findings = one(image, due);
        if !expected.is_empty() {
            findings.extend(check_likes(&copy, &expected));
        }
        if !due_in(due, "copy").is_empty() {
            let tokens = run(&copy, &["token", "list"]);
            if !tokens.status.success() || !text(&tokens).contains("phone") {
                findings.push((Wrong::Lost, format!("the copy has no token: {}", text(&tokens))));
            }
        }
        findings
    };
    power_cuts("backup", Cuts::Random(30), scenario, check).assert_well("backup");
}

#[test]
fn trust_60_a_power_cut_while_tokens_come_and_go() {
    let scenario = |recorder: &Recorder| {
        let add = |name: &str| {
            let token = command(recorder, "data", &["token", "add", name]).trim().to_owned();
            recorder.acknowledge(&format!("valid {token}"));
            token
        };
        let revoke = |name: &str, token: &str| {
            recorder.acknowledge(&format!("doubtful {token}"));
            command(recorder, "data", &["token", "revoke", name]);
            recorder.acknowledge(&format!("revoked {token}"));
        };
        let first = add("first");
        add("second");
        revoke("first", &first);
        let server = recorder.serve("data", &[]);
        let third = add("third");
        like_from(recorder, &server, 1, 1);
        revoke("third", &third);
        add("fourth");
        recorder.kill(server);
    };
    let check = |image: &Path, due: &[String]| {
        let data = image.join("data");
        let mut findings = Findings::new();
        let listed = run(&data, &["token", "list"]);
        if !listed.status.success() {
            findings.push((Wrong::Refused, text(&listed)));
        }
        match Opened::start(&data, &[]) {
            Err(why) => findings.push((Wrong::Refused, why)),
            Ok(hub) => {
                let (doubtful, revoked) = (due_in(due, "doubtful"), due_in(due, "revoked"));
                for token in due_in(due, "valid") {
                    let is_known = hub.knows(&token);
                    if revoked.contains(&token) && is_known {
                        findings.push((Wrong::Doubled, "a revoked token is back".to_owned()));
                    } else if !doubtful.contains(&token) && !is_known {
                        findings.push((Wrong::Lost, "a token is gone".to_owned()));
                    }
                }
            }
        }
        let added = run(&data, &["token", "add", "new"]);
        if !added.status.success() {
            findings.push((Wrong::Stuck, text(&added)));
        }
        findings.extend(one(image, due));
        findings
    };
    power_cuts("tokens", Cuts::Random(30), scenario, check).assert_well("tokens");
}

/// The status of a watched instance.
fn status(server: &Server) -> Value {
    server.get("/status").json()
}

fn until_confirmed(server: &Server) {
    wait_for("everything to be confirmed", || (status(server)["pending"] == 0).then_some(()));
}

/// A device with its hub: confirmed likes, waiting likes, kills of either, and at last a hub that is lost and comes back from a
/// copy.
fn hub_and_device(recorder: &Recorder) {
    let token = command(recorder, "hub", &["token", "add", "phone"]);
    let file = recorder.aside("token");
    fs::write(&file, &token).expect("a file for the token");
    recorder.acknowledge(&format!("token {}", token.trim()));
    let device_of = |hub: &Server| {
        let url = hub.url.clone();
        let flags = ["--upstream", &url, "--token-file", file.to_str().expect("a path"), "--retry-halted", "1"];
        recorder.serve("device", &flags)
    };
    let hub = recorder.serve("hub", &[]);
    let device = device_of(&hub);
    let ids = like_from(recorder, &device, 2, 5);
    until_confirmed(&device);
    acknowledge(recorder, "hub", &ids);
    like_from(recorder, &hub, 1, 3);
    let copy = recorder.root().join("restored");
    let ids = exported(&recorder.root().join("hub")).expect("an export");
    command(recorder, "hub", &["backup", copy.to_str().expect("a path")]);
    acknowledge(recorder, "restored", &ids);

    // The device dies as it commits, and another time while likes wait.
    let id = like_and_die_in_the_sync(recorder, device);
    let device = device_of(&hub);
    device.like("", &id);
    acknowledge(recorder, "device", &[id]);
    let ids = like_from(recorder, &device, 2, 4);
    until_confirmed(&device);
    acknowledge(recorder, "hub", &ids);
    recorder.kill(hub);
    let waiting = like_from(recorder, &device, 1, 4);
    recorder.kill(device);
    let hub = recorder.serve("hub", &[]);
    let device = device_of(&hub);
    until_confirmed(&device);
    acknowledge(recorder, "hub", &waiting);

    // The hub comes back from a copy. The device takes back what the copy lacks, and pushes it.
    assert!(device.terminate().success());
    recorder.kill(hub);
    recorder.acknowledge("moved");
    let hub = recorder.serve("restored", &[]);
    let device = device_of(&hub);
    like_from(recorder, &device, 1, 2);
    wait_for("the hub to have everything", || {
        let of = |server: &Server| (status(server)["count"].clone(), status(server)["pending"].clone());
        (of(&device) == of(&hub) && of(&device).1 == 0).then_some(())
    });
    let ids = exported(&recorder.root().join("device")).expect("an export");
    acknowledge(recorder, "restored", &ids);
    recorder.kill(device);
}

#[test]
fn trust_60_a_power_cut_of_a_device_and_its_hub() {
    let check = |image: &Path, due: &[String]| {
        let hub = if due.iter().any(|what| what == "moved") { "restored" } else { "hub" };
        let mut findings = Findings::new();
        for data in ["hub", "restored", "device"] {
            let ids = due_in(due, data);
            if data == hub || !ids.is_empty() {
                findings.extend(check_likes(&image.join(data), &ids));
            }
        }
        if let Some(token) = due_in(due, "token").first()
            && findings.is_empty()
        {
            findings.extend(until_level(&image.join(hub), &image.join("device"), token));
        }
        findings
    };
    power_cuts("hub-and-device", Cuts::Random(24), hub_and_device, check).assert_well("hub-and-device");
}
