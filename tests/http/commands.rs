//! The commands, on data that is being served and on data that isn't.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::client::{listing, new_id};
use crate::common::{Server, code_block, data_dir, errors, likewise, printed, run, run_with};

fn lines(export: &str) -> Vec<Value> {
    export.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|why| panic!("{why}: {line}"))).collect()
}

fn event(id: &str, more: &str) -> String {
    format!("{{\"id\":\"{id}\",\"name\":\"LikeAdded\"{more}}}\n")
}

#[test]
fn status_is_the_same_from_a_server_and_from_the_files() {
    let data = data_dir();
    let server = Server::start(data.path());
    server.like_times(2);
    server.like("/s/work", &new_id());
    let served = printed(run(data.path(), &["status", "--json"]));
    let by_url = printed(run(Path::new("/nonexistent"), &["status", "--json", "--url", &server.url]));
    assert_eq!(by_url, served);
    let bare = server.url.trim_start_matches("http://");
    assert_eq!(printed(run(data.path(), &["status", "--json", "--url", bare])), served);
    let slash = format!("{}/", server.url);
    assert_eq!(printed(run(data.path(), &["status", "--json", "--url", &slash])), served);
    let json: Value = serde_json::from_str(&served).expect("JSON");
    assert_eq!(json, server.get("/status?digests").json());
    assert_eq!((&json["count"], &json["digest_seq"]), (&2.into(), &2.into()));
    let work = printed(run(data.path(), &["status", "--store", "work", "--json"]));
    assert_eq!(serde_json::from_str::<Value>(&work).expect("JSON")["count"], 1);
    let words = printed(run(data.path(), &["status"]));
    assert!(words.contains("likes      2\n") && !words.contains("digests"), "{words}");
    let all = printed(run(data.path(), &["status", "--digests"]));
    assert!(all.contains(&format!("digests    at 2: log {}", json["log_digest"].as_str().expect("a digest"))), "{all}");
    assert!(server.terminate().success());

    let unserved: Value = serde_json::from_str(&printed(run(data.path(), &["status", "--json"]))).expect("JSON");
    assert_eq!(unserved, json);
    assert_eq!(printed(run(data.path(), &["status"])), words);
}

#[test]
fn a_token_goes_into_a_file_of_its_own_and_overwrites_nothing() {
    use std::os::unix::fs::PermissionsExt as _;

    let (data, place) = (data_dir(), data_dir());
    let file = place.path().join("laptop.token");
    let add = |name: &str| run(data.path(), &["token", "add", name, "--out", file.to_str().expect("a path")]);
    let added = add("laptop");
    let words = errors(&added);
    assert_eq!(printed(added), "", "the token is shown to nobody");
    assert!(words.contains(file.to_str().expect("a path")) && words.contains("Bring that file"), "{words}");
    let token = std::fs::read_to_string(&file).expect("the token");
    assert!(token.starts_with("lw_") && token.ends_with('\n'), "{token}");
    assert_eq!(std::fs::metadata(&file).expect("the file").permissions().mode() & 0o777, 0o600);
    let again = add("phone");
    assert_eq!(again.status.code(), Some(1));
    assert!(errors(&again).contains("is there already"), "{}", errors(&again));
    assert_eq!(std::fs::read_to_string(&file).expect("the token"), token);
    assert!(!printed(run(data.path(), &["token", "list"])).contains("phone"), "there is no token that nobody has");
    std::fs::remove_file(&file).expect("removed");
    let twice = add("laptop");
    assert!(errors(&twice).contains("has a token already"), "{}", errors(&twice));
    assert!(!file.exists(), "nor a file without a token");
}

#[test]
fn an_import_of_what_is_no_text_says_what_it_is() {
    let data = data_dir();
    let mut import = likewise();
    let import = import.arg("import").env("LIKEWISE_DATA", data.path()).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = import.spawn().expect("the program starts");
    child.stdin.take().expect("its input").write_all(b"\x1f\x8b\x08\0\0\0\0\0").expect("sent");
    let output = child.wait_with_output().expect("its end");
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("compressed with gzip"), "{}", errors(&output));
}

#[test]
fn status_of_what_is_not_there_says_so() {
    let data = data_dir();
    let missing = data.path().join("missing");
    for (arguments, needle) in [
        (&["status"][..], "there is no data"),
        (&["verify"], "there is no store likes"),
        (&["export"], "there is no store likes"),
        (&["export", "--store", "work"], "there is no store work"),
        (&["backup", "/nonexistent/copy"], "there is no data"),
        (
            &["status", "--url", "http://127.0.0.1:1"],
            "cannot ask http://127.0.0.1:1/status?digests: nobody listens there; is likewise running?\n",
        ),
        (&["status", "--url", "nonsense"], "cannot ask"),
    ] {
        let output = run(&missing, arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", errors(&output));
        assert!(errors(&output).contains(needle), "{arguments:?}: {}", errors(&output));
        assert!(output.stdout.is_empty(), "{arguments:?}");
        assert!(!missing.exists(), "{arguments:?} made something");
    }
    let empty = run(data.path(), &["status"]);
    assert_eq!(empty.status.code(), Some(1));
    assert!(errors(&empty).contains("there is no data"), "{}", errors(&empty));
    assert!(listing(data.path()).is_empty(), "a look makes nothing: {:?}", listing(data.path()));
    // Every program begins with a store that has no likes yet, and looking at it creates no files. Any other is misspelled.
    let server = Server::start(data.path());
    server.like("/s/work", &new_id());
    assert!(printed(run(data.path(), &["status"])).contains("likes      0"));
    let misspelled = run(data.path(), &["status", "--store", "wrok"]);
    assert_eq!(misspelled.status.code(), Some(1));
    assert!(errors(&misspelled).contains("there is no store wrok in"), "{}", errors(&misspelled));
    assert!(errors(&misspelled).contains("(there are work)"), "{}", errors(&misspelled));
    assert!(server.terminate().success());
    assert!(printed(run(data.path(), &["status"])).contains("likes      0"));
    assert!(!data.path().join("stores/likes").exists() && !data.path().join("stores/wrok").exists());
}

#[test]
fn status_of_an_address_that_is_no_likewise_says_so() {
    let data = data_dir();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("its address"));
    let answering = std::thread::spawn(move || {
        for answer in
            ["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno"]
        {
            let (mut stream, _) = listener.accept().expect("a connection");
            // An answer must not come before its request.
            let mut request = [0; 1_024];
            assert_ne!(stream.read(&mut request).expect("a request"), 0);
            stream.write_all(answer.as_bytes()).expect("sent");
            drop(std::io::copy(&mut stream, &mut std::io::sink()));
        }
    });
    for needle in ["is not the status of a store", "answered 404"] {
        let output = run(data.path(), &["status", "--url", &url]);
        assert_eq!(output.status.code(), Some(1));
        assert!(errors(&output).contains(needle), "{}", errors(&output));
    }
    answering.join().expect("no panic");
}

#[test]
fn events_that_were_set_aside_are_found_from_the_status() {
    let data = data_dir();
    let id = new_id();
    let refused = event(&id, ",\"set_aside\":\"refused there\"");
    assert!(run_with(data.path(), &["import", "--store", "work"], &refused).status.success());
    let status = printed(run(data.path(), &["status", "--store", "work"]));
    assert!(status.contains("1 set aside: see `likewise set-aside list`"), "{status}");
    // At the end, as in other commands, and where it could always be.
    for arguments in [&["set-aside", "list", "--store", "work"][..], &["set-aside", "--store", "work", "list"]] {
        let list = printed(run(data.path(), arguments));
        assert_eq!(list, format!("{id}\tLikeAdded\trefused there\n"), "{arguments:?}");
    }
    let mut command = likewise();
    command.args(["set-aside", "list"]).env("LIKEWISE_DATA", data.path()).env("LIKEWISE_STORE", "work");
    assert!(printed(command.output().expect("it starts")).contains(&id));
}

#[test]
fn a_list_of_no_devices_says_so_beside_its_empty_output() {
    let data = data_dir();
    let output = run(data.path(), &["token", "list"]);
    assert!(errors(&output).contains("no devices") && errors(&output).contains("likewise token add"), "{output:?}");
    assert_eq!(printed(output), "");
    printed(run(data.path(), &["token", "add", "phone"]));
    let output = run(data.path(), &["token", "list"]);
    assert_eq!(errors(&output), "");
    assert!(printed(output).starts_with("phone\t"));
}

#[test]
fn a_name_cannot_turn_the_list_of_tokens_around() {
    let data = data_dir();
    printed(run(data.path(), &["token", "add", "phone\u{202e}gnol"]));
    let list = printed(run(data.path(), &["token", "list"]));
    assert!(list.contains("phone gnol\tadded"), "{list}");
}

#[test]
fn a_line_for_import_written_by_hand_is_an_event() {
    let document = include_str!("../../docs/administration.md");
    let line = code_block(document, "## Bring events along, or take them out", "json");
    let data = data_dir();
    for _ in 0..2 {
        printed(run_with(data.path(), &["import"], line));
    }
    assert_eq!(lines(&printed(run(data.path(), &["export"]))).len(), 1);
    assert!(printed(run(data.path(), &["status"])).contains("likes      1"));
}

#[test]
fn an_export_has_every_event_with_its_place() {
    let data = data_dir();
    let server = Server::start_with(data.path(), &["--listen", "127.0.0.1:0", "--device", "laptop"]);
    let ids = server.like_times(3);
    let served = printed(run(data.path(), &["export"]));
    for ((line, id), seq) in lines(&served).iter().zip(&ids).zip(1..) {
        let expected = serde_json::json!({"seq": seq, "id": id, "name": "LikeAdded", "args": null, "origin": "laptop"});
        assert_eq!(*line, expected);
    }
    assert_eq!(served.lines().count(), 3);
    assert!(server.terminate().success());
    assert_eq!(printed(run(data.path(), &["export"])), served);
}

#[test]
fn trust_55_an_import_keeps_ids_bytes_and_devices_and_adds_nothing_twice() {
    let (data, other, third) = (data_dir(), data_dir(), data_dir());
    // Payloads that a parser would change, and names that HTML would change.
    let odd = [
        r#"{"b":1.0,"a":12345678901234567890,"a":1e2,"é":"\u0041😀 </script>"}"#,
        r#"  [ 1 , 2 ]  "#,
        r#"{"args":"\"\\"}"#,
        r#""text""#,
        "0.1000",
        r#"{"emoji":"\ud83d\ude00","cr":"\r\n"}"#,
    ];
    let device = r#"</script>\"><img src=x onerror=alert(1)>"#;
    let mut input = String::new();
    for args in odd {
        let quoted = serde_json::to_string(args).expect("a string is JSON");
        input += &event(&new_id(), &format!(",\"args\":{quoted},\"origin\":\"{device}\""));
    }
    input += &event(&new_id(), "");
    input += &event(&new_id(), ",\"args\":null,\"seq\":900");
    input += &event(&new_id(), ",\"args\":{}");
    input += &format!("{{\"id\":\"{}\",\"name\":\"FromTheFuture\",\"args\":\"[1]\"}}\n", new_id());
    input += &event(&new_id(), ",\"set_aside\":\"refused <b>there</b>\"");

    let unserved = run_with(data.path(), &["import"], &input);
    assert!(errors(&unserved).contains("11 events added to likes, 0 were there before"), "{}", errors(&unserved));
    let export = printed(run(data.path(), &["export"]));
    let exported = lines(&export);
    for (line, args) in exported.iter().zip(odd) {
        assert_eq!(line["args"], args, "the payload is kept byte for byte");
        assert_eq!(line["origin"], serde_json::from_str::<Value>(&format!("\"{device}\"")).expect("JSON"));
    }
    assert!(exported[6..9].iter().all(|line| line["args"] == Value::Null), "{export}");
    assert_eq!(exported[10]["set_aside"], "refused <b>there</b>");

    let again = run_with(data.path(), &["import"], &input);
    assert!(errors(&again).contains("0 events added to likes, 11 were there before"), "{}", errors(&again));
    assert_eq!(printed(run(data.path(), &["export"])), export);

    // Through a server, into another store, and on from there.
    let server = Server::start(other.path());
    let served = run_with(other.path(), &["import", "--store", "copy"], &export);
    assert!(errors(&served).contains("11 events added to copy"), "{}", errors(&served));
    let again = run_with(other.path(), &["import", "--store", "copy"], &export);
    assert!(errors(&again).contains("0 events added to copy, 11 were there before"), "{}", errors(&again));
    assert_eq!(printed(run(other.path(), &["export", "--store", "copy"])), export);
    let status = server.get("/s/copy/status").json();
    assert_eq!((&status["unknown"], &status["set_aside"], &status["head"]), (&1.into(), &1.into(), &10.into()));
    let page = server.get("/s/copy/").body;
    assert!(!page.contains("<img") && !page.contains("<b>there"), "{page}");
    assert!(printed(run(other.path(), &["verify", "--store", "copy"])).contains("all is well"));
    drop(server);
    assert!(run_with(third.path(), &["import"], &export).status.success());
    let digest = |dir: &Path, store: &str| {
        let status = printed(run(dir, &["status", "--json", "--store", store]));
        let status: Value = serde_json::from_str(&status).expect("JSON");
        (status["log_digest"].clone(), status["state_digest"].clone())
    };
    assert_eq!(digest(third.path(), "likes"), digest(data.path(), "likes"));
    assert_eq!(digest(other.path(), "copy"), digest(data.path(), "likes"));
}

#[test]
fn an_import_names_the_line_that_stopped_it_and_keeps_what_stood_before() {
    let taken = new_id();
    for served in [false, true] {
        let data = data_dir();
        let server = served.then(|| Server::start(data.path()));
        let mut count = 0;
        for (bad, needle) in [
            ("nonsense\n".to_owned(), "not an exported event"),
            (event("not-an-id", ""), "not an exported event"),
            (event(&uuid::Uuid::new_v4().to_string(), ""), "not an exported event"),
            (event(&new_id(), ",\"args\":\"{\""), "payload"),
            (event(&new_id(), ",\"args\":\"\\u0000\""), "payload"),
            (event(&new_id(), ",\"origin\":\"\""), "not an exported event"),
            (event(&new_id(), ",\"origin\":\"a\\nb\""), "not an exported event"),
            (format!("{{\"id\":\"{}\",\"name\":\"\"}}\n", new_id()), "name"),
            (event(&taken, ",\"args\":\"[2]\""), "belongs to another event"),
            (event(&new_id(), &format!(",\"args\":\"[{}]\"", "1,".repeat(40_000))), "bytes"),
            (event(&new_id(), &format!(",\"x\":\"{}\"", "y".repeat(500_000))), "line"),
        ] {
            let first = if count == 0 { taken.clone() } else { new_id() };
            // Lines without an event count, too: the number is the one that an editor shows.
            let input = format!("{}\n\n{}{bad}{}", event(&first, ""), event(&new_id(), ""), event(&new_id(), ""));
            let output = run_with(data.path(), &["import"], &input);
            let said = errors(&output);
            assert_eq!(output.status.code(), Some(1), "served: {served}, {bad:.100}: {said}");
            assert!(said.contains("Line 5: ") && said.contains(needle), "served: {served}, {bad:.100}: {said}");
            assert!(said.contains(". What stood before it is stored."), "served: {served}, {bad:.100}: {said}");
            let export = printed(run(data.path(), &["export"]));
            let found = export.lines().count();
            // A line that turns out bad only when it is stored also stops the lines after it in its batch.
            let expected = if needle.contains("belongs") { [2, 3] } else { [2, 2] };
            assert!(expected.contains(&(found - count)), "served: {served}, {bad:.100}: {found} after {count}");
            count = found;
        }
        drop(server);
    }
}

#[test]
fn export_into_a_closed_pipe_is_quiet() {
    let data = data_dir();
    let input: String = (0..5_000).map(|_| event(&new_id(), "")).collect();
    assert!(run_with(data.path(), &["import"], &input).status.success());
    for command in ["export", "verify", "status"] {
        let mut child = likewise()
            .arg(command)
            .env("LIKEWISE_DATA", data.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("its end");
        assert_eq!(errors(&output), "", "{command}");
        assert!(output.status.success(), "{command}");
    }
}

#[test]
fn export_to_a_full_device_fails() {
    let data = data_dir();
    assert!(run_with(data.path(), &["import"], &event(&new_id(), "")).status.success());
    for command in ["export", "verify", "status"] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
        let output = likewise()
            .arg(command)
            .env("LIKEWISE_DATA", data.path())
            .stdout(full)
            .stderr(Stdio::piped())
            .output()
            .expect("it starts");
        assert_eq!(output.status.code(), Some(1), "{command}: {}", errors(&output));
        assert!(!errors(&output).contains("panicked"), "{command}: {}", errors(&output));
    }
}

#[test]
fn commands_look_without_changing_anything() {
    let data = data_dir();
    let server = Server::start(data.path());
    server.like_times(3);
    assert!(server.terminate().success());
    let store = data.path().join("stores/likes");
    let before = listing(&store);
    printed(run(data.path(), &["verify"]));
    printed(run(data.path(), &["export"]));
    printed(run(data.path(), &["status"]));
    assert_eq!(listing(&store), before);
}

/// Likes as fast as possible on four connections while `act` runs. Returns the acknowledged ids.
fn under_load<T>(server: &Server, mut act: impl FnMut(&dyn Fn() -> Vec<String>) -> T) -> T {
    let stop = AtomicBool::new(false);
    let acknowledged = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let agent = crate::client::agent();
                while !stop.load(Ordering::Relaxed) {
                    let id = new_id();
                    let form = agent.post(format!("{}/likes", server.url)).send_form([("id", &id)]);
                    let answer = form.expect("an answer");
                    assert_eq!(answer.status(), 303);
                    acknowledged.lock().expect("no panic").push(id);
                }
            });
        }
        let snapshot = || acknowledged.lock().expect("no panic").clone();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| act(&snapshot)));
        stop.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn wait_for_more(acknowledged: &dyn Fn() -> Vec<String>, more: usize) {
    let enough = acknowledged().len() + more;
    crate::common::wait_for("likes to be acknowledged", || (acknowledged().len() >= enough).then_some(()));
}

#[test]
fn trust_11_export_and_backup_under_load_hold_every_like_acknowledged_before() {
    let (data, other) = (data_dir(), data_dir());
    let copies = data_dir();
    let server = Server::start(data.path());
    server.like("/s/work", &new_id());
    under_load(&server, |acknowledged| {
        for round in 0..3 {
            wait_for_more(acknowledged, 50);
            let before = acknowledged();
            let export = printed(run(data.path(), &["export"]));
            assert!(before.iter().all(|id| export.contains(id)), "{} before the export", before.len());

            let before = acknowledged();
            let copy = copies.path().join(round.to_string());
            printed(run(data.path(), &["backup", copy.to_str().expect("text")]));
            let copied = printed(run(&copy, &["export"]));
            assert!(before.iter().all(|id| copied.contains(id)), "{} before the backup", before.len());
            // Ids and seqs are those of the first.
            let later = printed(run(data.path(), &["export"]));
            assert!(later.starts_with(&copied), "the copy is the beginning of the log");
        }
        let before = acknowledged();
        let export = printed(run(data.path(), &["export"]));
        assert!(run_with(other.path(), &["import"], &export).status.success());
        let imported = printed(run(other.path(), &["export"]));
        assert!(before.iter().all(|id| imported.contains(id)));
    });
    let log = server.get("/status").json()["log"].clone();
    let work = server.get("/s/work/status?digests").json();
    let copy = copies.path().join("2");
    let head = printed(run(&copy, &["export"])).lines().count() as u64;
    assert!(printed(run(&copy, &["verify"])).contains("all is well"));
    let restored = Server::start(&copy);
    let status = restored.get("/status").json();
    assert_eq!((&status["log"], &status["head"], &status["count"]), (&log, &head.into(), &head.into()));
    assert_eq!(restored.get("/s/work/status?digests").json(), work, "all stores are copied");
    restored.like_times(1);
    assert_eq!(restored.count(), head + 1);
}

#[test]
fn verify_and_status_under_load_find_nothing_wrong() {
    let data = data_dir();
    let server = Server::start(data.path());
    under_load(&server, |acknowledged| {
        wait_for_more(acknowledged, 10);
        for _ in 0..15 {
            let verify = run(data.path(), &["verify"]);
            assert!(printed(verify).contains("all is well"));
            printed(run(data.path(), &["status"]));
        }
    });
}

#[test]
fn a_backup_goes_only_where_nothing_is() {
    let data = data_dir();
    let server = Server::start(data.path());
    server.like_times(1);
    let target = data_dir();
    printed(run(data.path(), &["backup", target.path().to_str().expect("text")]));
    let before = listing(target.path());
    for to in [target.path().to_str().expect("text"), data.path().to_str().expect("text"), "/proc/x", "/dev/null"] {
        let output = run(data.path(), &["backup", to]);
        assert_eq!(output.status.code(), Some(1), "{to}: {}", errors(&output));
        assert!(errors(&output).contains(to), "{to}: {}", errors(&output));
    }
    assert_eq!(listing(target.path()), before);
}

#[test]
fn a_backup_into_a_full_disk_fails_in_words_and_leaves_nothing() {
    let data = data_dir();
    // The small store comes first, so the copy is half done when the disk is full.
    assert!(run_with(data.path(), &["import", "--store", "a"], &event(&new_id(), "")).status.success());
    let input: String = (0..3_000).map(|_| event(&new_id(), "")).collect();
    assert!(run_with(data.path(), &["import"], &input).status.success());
    let target = data_dir();
    for (copy, is_there) in [(target.path().join("copy"), false), (target.path().join("made"), true)] {
        if is_there {
            std::fs::create_dir(&copy).expect("an empty directory");
        }
        let mut shell = Command::new("sh");
        shell.args(["-c", r#"trap '' XFSZ; ulimit -f 256; exec "$0" backup "$1""#, env!("CARGO_BIN_EXE_likewise")]);
        let output = shell.arg(&copy).env("LIKEWISE_DATA", data.path()).output().expect("a shell");
        assert_eq!(output.status.code(), Some(1), "{}", errors(&output));
        assert!(errors(&output).contains("the store likes was not copied"), "{}", errors(&output));
        assert!(errors(&output).ends_with("make room on it, or look into the system's log\n"), "{}", errors(&output));
        assert_eq!(copy.exists(), is_there, "what was there before stays, and nothing else");
        assert!(!is_there || listing(&copy).is_empty(), "{:?}", listing(&copy));
        printed(run(data.path(), &["backup", copy.to_str().expect("text")]));
        assert_eq!(printed(run(&copy, &["export"])), printed(run(data.path(), &["export"])));
        assert!(printed(run(&copy, &["verify", "--store", "a"])).contains("all is well"));
    }
}

#[test]
fn an_export_without_its_server_after_a_kill_is_whole() {
    let data = data_dir();
    let server = Server::start(data.path());
    let ids = server.like_times(20);
    server.kill();
    let export = printed(run(data.path(), &["export"]));
    assert_eq!(lines(&export).iter().map(|line| line["id"].as_str().expect("an id")).collect::<Vec<_>>(), ids);
    assert!(printed(run(data.path(), &["verify"])).contains("all is well"));
}

#[test]
fn stores_are_listed_with_their_counts() {
    let data = data_dir();
    let server = Server::start(data.path());
    server.like_times(2);
    server.like("/s/work", &new_id());
    let served = printed(run(data.path(), &["stores"]));
    assert_eq!(served, "likes\t2 likes\tnone\nwork\t1 like\tnone\n");
    let json: Value = serde_json::from_str(&printed(run(data.path(), &["stores", "--json"]))).expect("JSON");
    assert_eq!(json[1], server.get("/s/work/status").json());
    assert_eq!(json.as_array().map(Vec::len), Some(2));
    assert!(server.terminate().success());
    assert_eq!(printed(run(data.path(), &["stores"])), served);
}

#[test]
fn health_is_good_while_a_like_can_be_stored() {
    let data = data_dir();
    let nobody = run(data.path(), &["health"]);
    assert_eq!(nobody.status.code(), Some(1));
    let server = Server::start(data.path());
    server.like("", &new_id());
    assert_eq!(printed(run(data.path(), &["health"])), "");
    assert!(server.terminate().success());
    let over = run(data.path(), &["health"]);
    assert_eq!(over.status.code(), Some(1));
    assert!(errors(&over).contains("no likewise process serves"), "{}", errors(&over));
}

#[test]
fn the_command_line_is_told_to_shells_and_to_readers() {
    let data = data_dir();
    let script = data.path().join("completions");
    std::fs::write(&script, printed(run(data.path(), &["completions", "bash"]))).expect("written");
    let complete =
        "source $0; COMP_WORDS=(likewise set); COMP_CWORD=1; _likewise likewise set likewise; echo ${COMPREPLY[@]}";
    let completed = Command::new("bash").args(["-c", complete]).arg(&script).output().expect("bash runs");
    assert_eq!(String::from_utf8_lossy(&completed.stdout), "set-aside\n", "{}", errors(&completed));

    let page = printed(run(data.path(), &["man"]));
    let page = page.replace('\\', "");
    for word in [".TH likewise", "LIKEWISE TOKEN", "--allow-host", "LIKEWISE_TOKEN"] {
        assert!(page.contains(word), "no {word} in {page}");
    }
}
