//! Starting and ending: flags, environment, signals, and the messages.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::client::{Answer, listing, new_id};
use crate::common::{PATIENCE, Server, data_dir, errors, likewise, printed, run, wait_for};

#[test]
fn the_ready_line_is_all_that_stands_on_standard_output() {
    let data = data_dir();
    let mut server = Server::start(data.path());
    assert_eq!(server.url, format!("http://127.0.0.1:{}", server.port()));
    assert_ne!(server.port(), 0);
    server.like_times(1);
    server.get("/nothing");
    server.send_term();
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    assert_eq!(server.rest_of_stdout(), "");
    assert!(server.log().contains(&data.path().display().to_string()), "where the data is: {}", server.log());
    assert!(!server.log().contains('\x1b'), "no colours in a file: {}", server.log());
}

#[test]
fn a_server_on_all_addresses_names_one_that_opens_the_page() {
    for (all, one) in [("0.0.0.0:0", "http://127.0.0.1:"), ("[::]:0", "http://[::1]:")] {
        if all.starts_with('[') && std::net::TcpListener::bind("[::1]:0").is_err() {
            continue; // This machine has no IPv6.
        }
        let data = data_dir();
        let server = Server::start_with(data.path(), &["--listen", all]);
        assert!(server.url.starts_with(one), "{all}: {}", server.url);
        assert_eq!(server.count(), 0);
    }
}

/// All pages connect at once when a server is back. What finds no place would be tried again only after seconds.
#[test]
fn hundreds_of_connections_find_a_place_while_the_server_is_busy() {
    let data = data_dir();
    let server = Server::start(data.path());
    let most = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap().trim().parse().unwrap();
    let pid = Pid::from_raw(server.pid().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    let address = ([127, 0, 0, 1], server.port()).into();
    let connect =
        |n| TcpStream::connect_timeout(&address, PATIENCE).unwrap_or_else(|error| panic!("number {n}: {error}"));
    let waiting: Vec<_> = (0..400.min(most)).map(connect).collect();
    kill_process(pid, Signal::CONT).unwrap();
    drop(waiting);
    assert_eq!(server.count(), 0);
}

#[test]
fn a_level_of_the_log_that_does_not_exist_is_an_error() {
    let data = data_dir();
    let mut command = likewise();
    let output = command.arg("status").env("LIKEWISE_DATA", data.path()).env("LIKEWISE_LOG", "warning").output();
    let output = output.expect("the program starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("LIKEWISE_LOG") && errors(&output).contains("warn,"), "{}", errors(&output));
}

#[test]
fn flags_and_environment_say_the_same() {
    let data = data_dir();
    let mut command = likewise();
    // Without a command the program serves. A flag outranks its variable.
    command.args(["--device", "by flag"]);
    command.env("LIKEWISE_LISTEN", "127.0.0.1:0").env("LIKEWISE_DEVICE", "by variable");
    command.env("LIKEWISE_ALLOW_HOST", "a.example , b.example, ").env("LIKEWISE_PUBLIC", "true");
    let server = Server::spawn(command, data.path());
    assert!(printed(run(data.path(), &["status"])).contains("likes on by flag\n"));
    for (host, expected) in [("a.example", 200), ("b.example", 200), ("c.example", 403)] {
        let answer = server.ask(&format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"));
        assert_eq!(answer.status, expected, "{host}");
    }
    drop(server);

    let mut command = likewise();
    command
        .args(["serve", "--listen=127.0.0.1:0"])
        .env("LIKEWISE_DEVICE", "by variable")
        .env("LIKEWISE_PUBLIC", "false");
    let server = Server::spawn(command, data.path());
    assert_eq!(server.get("/status").json()["device"], "by variable");
    drop(server);

    let named = data_dir();
    let mut command = likewise();
    command.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(named.path());
    let server = Server::spawn(command, data.path());
    server.like_times(1);
    assert!(named.path().join("stores/likes/eventlog.db").exists(), "--data outranks LIKEWISE_DATA");
}

#[test]
fn a_variable_says_yes_or_no_in_the_usual_words() {
    for (word, is_public) in
        [("1", true), ("yes", true), ("true", true), ("on", true), ("0", false), ("no", false), ("false", false)]
    {
        let data = data_dir();
        let mut command = likewise();
        command.args(["--listen", "127.0.0.1:0", "--allow-host", "hub.example"]).env("LIKEWISE_PUBLIC", word);
        let server = Server::spawn(command, data.path());
        let answer = server.ask("GET / HTTP/1.1\r\nHost: hub.example\r\nConnection: close\r\n\r\n");
        assert_eq!(answer.status == 200, is_public, "{word}: {answer:?}");
    }
    let output = likewise().env("LIKEWISE_PUBLIC", "perhaps").output().expect("it starts");
    assert_eq!(output.status.code(), Some(2), "{}", errors(&output));
    assert!(errors(&output).contains("perhaps") && errors(&output).contains("--public"), "{}", errors(&output));
}

#[test]
fn a_variable_that_is_empty_is_not_set() {
    let data = data_dir();
    let mut help = String::new();
    for command in ["serve", "status"] {
        help += &printed(run(data.path(), &[command, "--help"]));
    }
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    let shown = help.split("[env: ").filter_map(|rest| rest.split_once('=').map(|(name, _)| name));
    let names: Vec<_> = shown.filter(|name| name.starts_with("LIKEWISE_")).collect();
    for name in ["LIKEWISE_LISTEN", "LIKEWISE_UPSTREAM", "LIKEWISE_ALLOW_HOST", "LIKEWISE_PUBLIC", "LIKEWISE_URL"] {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
    let empty = || {
        let mut command = likewise();
        let hidden = ["LIKEWISE_TOKEN", "LIKEWISE_RETRY_HALTED", "LIKEWISE_LOG"];
        command.envs(names.iter().chain(&hidden).map(|name| (name, "")));
        command
    };
    let mut command = empty();
    command.args(["serve", "--listen", "127.0.0.1:0"]);
    let server = Server::spawn(command, data.path());
    server.like_times(1);
    assert!(server.log().contains("INFO"), "what is logged is as without it: {}", server.log());

    let status = empty().arg("status").env("LIKEWISE_DATA", data.path()).output().expect("it starts");
    assert!(printed(status).contains("likes      1\n"));
    let home = data.path().join("home");
    let status = empty().arg("status").env("HOME", &home).env_remove("XDG_DATA_HOME").output().expect("it starts");
    let nowhere = format!("there is no data in {}", home.display());
    assert!(errors(&status).contains(&nowhere), "{}", errors(&status));
}

#[test]
fn wrong_flags_are_refused_in_words() {
    let data = data_dir();
    let before = listing(data.path());
    for (arguments, needle) in [
        (&["serve", "--public"][..], "--allow-host"),
        (&["serve", "--allow-host", "http://x.example/"], "is not a host"),
        (&["serve", "--allow-host", "x.example."], "is not a host"),
        (&["serve", "--device", ""], "--device"),
        (&["serve", "--device", "two\nlines"], "--device"),
        (&["serve", "--device", &"x".repeat(1_000)], "--device"),
        (&["--listen", "127.0.0.1:0", "status"], "--listen is a flag of `serve`"),
        (&["status", "--store", "No"], "is not a store"),
        (&["serve", "--listen", "3000"], "write HOST:PORT"),
        (&["serve", "--listen", ":3000"], "write HOST:PORT"),
        (&["serve", "--listen", "::1:3000"], "write HOST:PORT"),
        (&["serve", "--listen", "127.0.0.1"], "write HOST:PORT"),
        (&["serve", "--listen", "127.0.0.1:99999"], "write HOST:PORT"),
        (&["dance"], "dance"),
    ] {
        let output = run(data.path(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?} {}", errors(&output));
        assert!(errors(&output).contains(needle), "{arguments:?}: {}", errors(&output));
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
    assert_eq!(listing(data.path()), before);
    for address in ["256.0.0.1:1", "198.51.100.1:0"] {
        let output = run(data.path(), &["serve", "--listen", address]);
        assert_eq!(output.status.code(), Some(1), "{address} {}", errors(&output));
        assert!(errors(&output).contains(address) && errors(&output).contains("--listen"), "{}", errors(&output));
    }
}

#[test]
fn the_help_shows_each_flag_with_its_variable() {
    let data = data_dir();
    for (arguments, needles) in [
        (&["--help"][..], &["serve", "status", "verify", "export", "import", "backup", "--data", "exit with"][..]),
        (
            &["serve", "--help"],
            &["LIKEWISE_LISTEN", "127.0.0.1:3000", "LIKEWISE_DATA", "LIKEWISE_DEVICE", "LIKEWISE_PUBLIC"],
        ),
        (&["status", "--help"], &["--json", "--url", "--store", "LIKEWISE_STORE"]),
        (&["verify", "--help"], &["Exits with 1"]),
        (&["backup", "--help"], &["<TO>"]),
        (&["--version"], &["likewise 0."]),
    ] {
        let help = printed(run(data.path(), arguments));
        for needle in needles {
            assert!(help.contains(needle), "{needle} is not in the help of {arguments:?}:\n{help}");
        }
    }
}

#[test]
fn a_port_in_use_is_named_with_a_way_out() {
    let (data, other) = (data_dir(), data_dir());
    let server = Server::start(data.path());
    let address = format!("127.0.0.1:{}", server.port());
    let output = run(other.path(), &["serve", "--listen", &address]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty(), "it was never ready");
    let said = errors(&output);
    for part in [&address, "in use", "--listen 127.0.0.1:0"] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
}

#[test]
fn trust_09_a_second_process_is_told_who_has_the_data() {
    let data = data_dir();
    let server = Server::start(data.path());
    let links = data_dir();
    let link = links.path().join("link");
    std::os::unix::fs::symlink(data.path(), &link).expect("a symlink");
    for dir in [data.path(), &link, &data.path().join("stores/.."), &data.path().join(".")] {
        if dir.ends_with("stores/..") {
            server.like_times(1);
        }
        let output = run(dir, &["serve", "--listen", "127.0.0.1:0"]);
        assert_eq!(output.status.code(), Some(1), "{}", errors(&output));
        let said = errors(&output);
        assert!(said.contains(&server.pid().to_string()) && said.contains(&server.url), "{said}");
        assert!(output.stdout.is_empty());
    }
    assert_eq!(server.count(), 1, "the first goes on");
    server.kill();
    let next = Server::start(&link);
    assert_eq!(next.count(), 1, "the lock is free after a kill");
}

#[test]
fn trust_45_data_is_private_whatever_the_umask() {
    let parent = data_dir();
    let data = parent.path().join("new/data");
    let mut shell = Command::new("sh");
    for name in ["LIKEWISE_DATA", "LIKEWISE_LISTEN", "LIKEWISE_DEVICE", "LIKEWISE_ALLOW_HOST", "LIKEWISE_PUBLIC"] {
        shell.env_remove(name);
    }
    shell.args(["-c", r#"umask 0; exec "$0" serve --listen 127.0.0.1:0"#, env!("CARGO_BIN_EXE_likewise")]);
    let server = Server::spawn(shell, &data);
    server.like_times(2);
    server.like("/s/work", &new_id());
    server.get("/status?digests");
    let all_private = |dir: &Path| {
        let all = listing(dir);
        assert!(all.len() > 2, "{all:?}");
        for (path, _) in all.iter().map(|(path, size)| (Path::new(path), size)).chain([(dir, &0)]) {
            let meta = std::fs::metadata(path).expect("its metadata");
            let expected = if meta.is_dir() { 0o700 } else { 0o600 };
            assert_eq!(meta.permissions().mode() & 0o777, expected, "{}", path.display());
        }
    };
    all_private(&data);
    let copy = parent.path().join("copy");
    let mut backup = Command::new("sh");
    backup.args(["-c", r#"umask 0; exec "$0" backup "$1""#, env!("CARGO_BIN_EXE_likewise")]);
    printed(backup.arg(&copy).env("LIKEWISE_DATA", &data).output().expect("a shell"));
    all_private(&copy);
    assert!(server.terminate().success());
    all_private(&data);
}

#[test]
fn data_that_cannot_be_used_is_named() {
    let parent = data_dir();
    let file = parent.path().join("file");
    std::fs::write(&file, "mine").expect("a file");
    let locked = parent.path().join("locked");
    std::fs::create_dir_all(locked.join("lock")).expect("a directory");
    for data in [file.clone(), file.join("below"), locked, "/proc/likewise".into(), "/dev/null".into()] {
        let output = run(&data, &["serve", "--listen", "127.0.0.1:0"]);
        assert_eq!(output.status.code(), Some(1), "{}", errors(&output));
        let said = errors(&output);
        assert!(said.contains(&data.display().to_string()) && said.contains("--data"), "{said}");
        assert!(!said.contains("panicked"), "{said}");
    }
    assert_eq!(std::fs::read_to_string(&file).expect("the file"), "mine");
}

#[test]
fn trust_47_sigterm_ends_streams_and_finishes_likes() {
    let data = data_dir();
    let mut server = Server::start(data.path());
    let mut streams: Vec<_> = (0..50).map(|_| server.live("/live")).collect();
    streams.iter_mut().for_each(|live| drop(live.until(0)));
    // Likes that are only partly sent when the signal comes.
    let ids: Vec<String> = (0..20).map(|_| new_id()).collect();
    let body = |id: &str| format!("id={id}");
    let mut in_flight: Vec<_> = ids
        .iter()
        .map(|id| {
            let mut stream = server.connect();
            let head = format!(
                "POST /likes HTTP/1.1\r\nHost: localhost:{}\r\nContent-Type: application/x-www-form-urlencoded\r\n\
                 Content-Length: {}\r\nExpect: 100-continue\r\n\r\n",
                server.port(),
                body(id).len()
            );
            stream.write_all(head.as_bytes()).expect("sent");
            // The server asks for the rest, so it is working on the like.
            let mut go_on = [0; 25];
            stream.read_exact(&mut go_on).expect("to be asked for the rest");
            assert!(go_on.starts_with(b"HTTP/1.1 100 "), "{}", String::from_utf8_lossy(&go_on));
            stream
        })
        .collect();

    let signalled = Instant::now();
    server.send_term();
    // The streams end at the shutdown. Once they have ended, it has begun.
    for live in &mut streams {
        while live.next().is_some() {}
    }
    for (stream, id) in in_flight.iter_mut().zip(&ids) {
        stream.write_all(body(id).as_bytes()).expect("sent");
    }
    for mut stream in in_flight {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).expect("an answer");
        let answer = Answer::parse(&bytes).expect("an answer");
        assert_eq!(answer.status, 303, "{answer:?}");
    }
    let status = server.wait();
    // Five seconds, and a few more for a busy machine.
    assert!(signalled.elapsed() < Duration::from_secs(30), "{:?}", signalled.elapsed());
    assert_eq!(status.code(), Some(0), "{}", server.log());
    let export = printed(run(data.path(), &["export"]));
    assert!(ids.iter().all(|id| export.contains(id)));
    assert_eq!(export.lines().count(), ids.len());
}

#[test]
fn a_signal_right_after_the_ready_line_ends_it_in_good_order() {
    let data = data_dir();
    for _ in 0..10 {
        let mut server = Server::start(data.path());
        server.send_term();
        assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    }
}

#[test]
fn a_peer_that_hangs_does_not_hold_up_the_end() {
    let data = data_dir();
    let mut server = Server::start(data.path());
    let mut half = server.connect();
    half.write_all(b"POST /likes HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nid").expect("sent");
    let _silent = server.connect();
    let _deaf: Vec<_> = (0..3).map(|_| server.live("/live")).collect();
    let signalled = Instant::now();
    server.send_term();
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    assert!(signalled.elapsed() < Duration::from_secs(30), "{:?}", signalled.elapsed());
}

#[test]
fn ctrl_c_ends_it_like_sigterm() {
    let data = data_dir();
    let mut server = Server::start(data.path());
    server.like_times(1);
    let pid = rustix::process::Pid::from_raw(i32::try_from(server.pid()).expect("a pid")).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it gets the signal");
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
}

#[test]
fn the_program_goes_on_when_nobody_reads_its_log() {
    let data = data_dir();
    let mut child = likewise()
        .args(["serve", "--listen", "127.0.0.1:0"])
        .env("LIKEWISE_DATA", data.path())
        .env("LIKEWISE_LOG", "trace")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    drop(child.stderr.take());
    let mut line = String::new();
    let mut stdout = std::io::BufReader::new(child.stdout.take().expect("its output"));
    std::io::BufRead::read_line(&mut stdout, &mut line).expect("its ready line");
    let url = line.trim().strip_prefix("listening on ").unwrap_or_else(|| panic!("{line:?}")).to_owned();
    for _ in 0..3 {
        let answer = crate::client::agent().post(format!("{url}/likes")).send_empty().expect("an answer");
        assert_eq!(answer.status(), 303);
    }
    assert!(child.try_wait().expect("its state").is_none());
    child.kill().expect("it can be killed");
    wait_for("its end", || child.try_wait().expect("its state"));
}
