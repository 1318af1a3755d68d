//! Odd machines: clocks with any time, odd names of directories, no certificate authorities, no locks. Also what editors and
//! service files put around a value.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::client::new_id;
use crate::common::{Server, data_dir, errors, likewise, printed, run, run_with, wait_for};
use crate::directory::refusal_of;

/// Builds the library that makes a machine odd, and returns its path.
fn odd_machine(place: &Path) -> PathBuf {
    let (source, library) = (place.join("odd.c"), place.join("odd.so"));
    fs::write(&source, include_str!("odd.c")).expect("the source");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).output();
    let built = built.expect("this test needs a C compiler named cc; on Debian: apt-get install gcc libc6-dev");
    assert!(built.status.success(), "{}", errors(&built));
    library
}

fn upstream(status: &serde_json::Value) -> (&str, &str) {
    let text = |field: &str| status["upstream"][field].as_str().unwrap_or_default();
    (text("state"), text("error"))
}

/// The last second that a `Date` header has room for.
const END_OF_9999: i64 = 253_402_300_799;

#[test]
fn trust_72_any_clock_will_do() {
    let place = data_dir();
    let library = odd_machine(place.path());
    // The first time and those at an edge may pass the edge while this runs.
    for (n, start) in [
        -10_000_000_000,
        -100_000,
        0,
        7_258_118_400,
        END_OF_9999 - 1_000,
        END_OF_9999 + 1,
        1 << 55,
        i64::MAX - (1 << 40),
    ]
    .into_iter()
    .enumerate()
    {
        let at_that_time = |command: &mut Command| {
            command.env("LD_PRELOAD", &library).env("CLOCK_STARTS_AT", start.to_string());
        };
        let serve = |data: &Path, flags: &[&str]| {
            let mut command = likewise();
            command.args(["serve", "--listen", "127.0.0.1:0"]).args(flags);
            at_that_time(&mut command);
            Server::spawn(command, data)
        };
        let data = place.path().join(format!("hub{n}"));
        let hub = serve(&data, &[]);
        let mut token = likewise();
        token.args(["token", "add", "phone"]).env("LIKEWISE_DATA", &data);
        at_that_time(&mut token);
        let file = place.path().join("token");
        fs::write(&file, printed(token.output().expect("the program starts"))).expect("a token");
        let there = place.path().join(format!("device{n}"));
        let flags = ["--upstream", &hub.url, "--token-file", file.to_str().expect("text")];
        let device = serve(&there, &flags);

        hub.like_times(1);
        device.like_times(1);
        // An id that the page minted with its own clock.
        device.like("", &new_id());
        // An id that the server mints.
        assert_eq!(device.post("/likes", "").status, 303, "{start}");
        wait_for("the likes of the device at the hub", || (hub.count() == 4).then_some(()));
        wait_for("the like of the hub at the device", || (device.count() == 4).then_some(()));
        let date = hub.get("/").header("date").to_owned();
        let year = match start {
            ..1_000_000_000 => "1970",
            1_000_000_000..10_000_000_000 => "2200",
            _ => "9999",
        };
        assert!(date.ends_with(" GMT") && date[12..16] == *year, "{start}: {date}");
        for server in [&hub, &device] {
            for path in ["/", "/status?digests", "/metrics", "/healthz"] {
                assert_eq!(server.get(path).status, 200, "{start}: {path}");
            }
        }
        for server in [hub, device] {
            let log = server.log();
            assert!(!log.contains("panicked"), "{start}: {log}");
            assert!(server.terminate().success(), "{start}");
        }
        printed(run(&data, &["token", "list"]));
        for data in [&data, &there] {
            assert!(printed(run(data, &["verify"])).contains("all is well"), "{start}");
        }
    }
}

#[test]
fn trust_72_dates_are_those_of_the_calendar() {
    let at = |seconds: i64| {
        let epoch = std::time::SystemTime::UNIX_EPOCH;
        let distance = std::time::Duration::from_secs(seconds.unsigned_abs());
        let time = if seconds < 0 { epoch - distance } else { epoch + distance };
        httpdate::HttpDate::from(time).to_string()
    };
    let printer = jiff::fmt::rfc2822::DateTimePrinter::new();
    let said = |seconds: i64| {
        let time = jiff::Timestamp::from_second(seconds).expect("within the calendar");
        printer.timestamp_to_rfc9110_string(&time).expect("a year that can be said")
    };
    // Each day of four hundred years, each at another time of day, and then some days of each year.
    let days = (0..146_097).chain((146_097..2_932_890).step_by(97));
    for seconds in days.map(|day: i64| day * 86_400 + day % 86_400) {
        assert_eq!(at(seconds), said(seconds), "{seconds}");
    }
    assert_eq!(at(-1), said(0));
    for seconds in [END_OF_9999, END_OF_9999 + 1, i64::MAX] {
        assert_eq!(at(seconds), "Fri, 31 Dec 9999 23:59:59 GMT");
    }
}

#[test]
fn trust_72_a_hub_over_tls_is_offline_before_1970() {
    let place = data_dir();
    let library = odd_machine(place.path());
    let mut command = likewise();
    command.args(["serve", "--listen", "127.0.0.1:0", "--upstream", "https://localhost:1"]);
    command.env("LIKEWISE_TOKEN", "token").env("LD_PRELOAD", library).env("CLOCK_STARTS_AT", "-10000000000");
    let server = Server::spawn(command, &place.path().join("data"));
    server.like_times(1);
    let status = wait_for("the reason", || {
        let status = server.get("/status").json();
        (upstream(&status).0 == "offline").then_some(status)
    });
    assert!(upstream(&status).1.contains("clock"), "{status}");
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

#[test]
fn trust_72_without_locks_nothing_is_opened() {
    let place = data_dir();
    let library = odd_machine(place.path());
    let data = place.path().join("data");
    let mut command = likewise();
    command.env("LIKEWISE_DATA", &data).env("LD_PRELOAD", library).env("NO_LOCKS", "1");
    let output = refusal_of(command);
    assert_eq!(output.status.code(), Some(1));
    let said = errors(&output);
    assert!(said.contains("cannot lock") && said.contains("local disk"), "{said}");
    assert!(!data.join("stores").exists());
}

/// Runs a command in the directory `place`, on data named `data` from there.
fn run_in(place: &Path, data: &OsStr, arguments: &[&OsStr]) -> Output {
    let mut command = likewise();
    command.args(arguments).arg("--data").arg(data).current_dir(place).stdin(Stdio::null());
    command.output().expect("the program starts")
}

#[test]
fn trust_72_odd_names_are_names() {
    let long = "long-".repeat(45);
    let deep = format!("{}/{}", &long[..200], &long[..150]);
    let names: [&[u8]; 10] = [
        b"file:data",
        b"file:data?mode=memory",
        b":memory:",
        b"a?b#c%41&d",
        b" ",
        b"new\nline 'quoted\"",
        b"not UTF-8 \xff\xfe",
        b"slash/",
        b"./here/.",
        deep.as_bytes(),
    ];
    for name in names {
        let place = data_dir();
        let name = OsStr::from_bytes(name);
        let mut command = likewise();
        command.args(["serve", "--listen", "127.0.0.1:0"]).current_dir(place.path());
        // Given as a flag, because spaces around a variable's value don't count.
        command.arg("--data").arg(name);
        let server = Server::spawn(command, Path::new("elsewhere"));
        server.like_times(2);
        let there = place.path().join(name);
        assert!(there.join("stores/likes/eventlog.db").is_file(), "{name:?}");
        printed(run_in(place.path(), name, &[OsStr::new("status")]));
        let copy = [name.as_bytes().strip_suffix(b"/").unwrap_or(name.as_bytes()), b"-copy"].concat();
        let copy = OsString::from(OsStr::from_bytes(&copy));
        printed(run_in(place.path(), name, &[OsStr::new("backup"), &copy]));
        assert!(server.terminate().success(), "{name:?}");
        for data in [name, &copy] {
            let said = printed(run_in(place.path(), data, &[OsStr::new("verify")]));
            assert!(said.contains("2 events") && said.contains("all is well"), "{data:?}: {said}");
        }
        // Only the named directory was created, and those above it.
        let made: Vec<_> =
            fs::read_dir(place.path()).expect("the place").map(|entry| entry.expect("one").path()).collect();
        assert!(made.len() <= 2, "{name:?}: {made:?}");
    }
}

#[test]
fn trust_72_a_directory_that_cannot_be_used_is_refused_before_anything_is_made() {
    let place = data_dir();
    fs::write(place.path().join("file"), "").expect("a file");
    symlink("nowhere", place.path().join("link")).expect("a link");
    symlink("round", place.path().join("round")).expect("a link");
    let long = ["long-".repeat(40), "long-".repeat(40), "long".to_owned()].join("/");
    let longest = "x".repeat(5_000);
    for (name, needle) in [
        ("", "value is required"),
        ("file", "not a directory"),
        ("file/below", "ot a directory"),
        ("link", "symbolic link"),
        ("round", "symbolic link"),
        ("missing/../other", "isn't there"),
        (&long, "bytes"),
        (&longest, "too long"),
    ] {
        for command in ["serve", "import", "status", "export"] {
            let output = run_in(place.path(), OsStr::new(name), &[OsStr::new(command)]);
            let said = errors(&output);
            assert!(!output.status.success() && said.contains(needle), "{name} {command}: {said}");
            assert!(!said.contains("panicked"), "{said}");
        }
        assert_eq!(fs::read_dir(place.path()).expect("the place").count(), 3, "{name}");
    }
}

#[test]
fn trust_72_marks_and_spaces_around_a_value_do_not_count() {
    let place = data_dir();
    let hub = Server::start(&place.path().join("hub"));
    let token = printed(run(hub.data(), &["token", "add", "phone"]));
    for (n, text) in (1_u64..).zip([
        format!("\u{feff}{}", token.trim()),
        format!("\r\n  {}\t\r\n\r\n", token.trim()),
        format!("\u{feff}\r\n{}\r\n", token.trim()),
    ]) {
        let file = place.path().join("token");
        fs::write(&file, text).expect("a token");
        let mut command = likewise();
        command.arg("serve").env("LIKEWISE_LISTEN", " 127.0.0.1:0\r").env("LIKEWISE_DEVICE", "phone ");
        command.env("LIKEWISE_UPSTREAM", format!(" {}\t", hub.url));
        command.env("LIKEWISE_ALLOW_HOST", " a.example.org , b.example.org ").env("LIKEWISE_PUBLIC", " true ");
        command.env("LIKEWISE_LOCAL_PAGE", " true ");
        command.env("LIKEWISE_TOKEN_FILE", format!("{} ", file.display()));
        let device = Server::spawn(command, &place.path().join(format!("device{n}")));
        device.like_times(1);
        wait_for("the like at the hub", || (hub.count() == n).then_some(()));
        let status = device.get("/status").json();
        assert_eq!(status["device"], "phone", "{status}");
        for name in ["a.example.org", "b.example.org"] {
            assert_eq!(device.get_with("/", &[("host", name)]).status, 200, "{name}");
        }
        assert_eq!(status["upstream"]["url"], hub.url, "{status}");
    }

    let line = |id: &str| format!("{{\"id\":\"{id}\",\"name\":\"LikeAdded\"}}\r\n");
    let lines = format!("\u{feff}{}\r\n{}", line(&new_id()), line(&new_id()));
    let imported = run_with(&place.path().join("imported"), &["import"], &lines);
    assert!(errors(&imported).contains("2 events added"), "{}", errors(&imported));

    let tokens = hub.data().join("tokens.json");
    let text = fs::read_to_string(&tokens).expect("the tokens");
    fs::write(&tokens, format!("\u{feff}{text}")).expect("as an editor leaves it");
    assert!(printed(run(hub.data(), &["token", "list"])).contains("phone"));
}

#[test]
fn trust_72_a_token_file_without_a_token_is_said() {
    let place = data_dir();
    for (name, content, needle) in [
        ("missing", None, "cannot read the token"),
        ("empty", Some(&b""[..]), "is no token"),
        ("mark", Some(b"\xef\xbb\xbf\r\n"), "is no token"),
        ("two", Some(b"one two"), "is no token"),
        ("wide", Some(b"\xff\xfel\0w\0"), "cannot read the token"),
    ] {
        let file = place.path().join(name);
        if let Some(content) = content {
            fs::write(&file, content).expect("a file");
        }
        let flags = [
            "--listen",
            "127.0.0.1:0",
            "--upstream",
            "http://127.0.0.1:1",
            "--token-file",
            file.to_str().expect("text"),
        ];
        let server = Server::start_with(&place.path().join("data"), &flags);
        server.like_times(1);
        let status = wait_for("the reason", || {
            let status = server.get("/status").json();
            (upstream(&status).0 == "halted").then_some(status)
        });
        assert!(upstream(&status).1.contains(needle) && upstream(&status).1.contains(name), "{name}: {status}");
    }
}

#[test]
fn trust_72_only_tls_takes_certificate_authorities() {
    let place = data_dir();
    let without = |command: &mut Command| {
        command.env("SSL_CERT_FILE", "/nonexistent").env("SSL_CERT_DIR", "/nonexistent");
    };
    let hub = Server::start(&place.path().join("hub"));
    let token = printed(run(hub.data(), &["token", "add", "phone"]));
    let mut command = likewise();
    command.args(["serve", "--listen", "127.0.0.1:0", "--upstream", &hub.url]).env("LIKEWISE_TOKEN", &token);
    without(&mut command);
    let device = Server::spawn(command, &place.path().join("device"));
    device.like_times(1);
    wait_for("the like at the hub", || (hub.count() == 1).then_some(()));
    for (arguments, data) in [(vec!["status"], hub.data()), (vec!["status", "--url", &hub.url], Path::new("unused"))] {
        let mut command = likewise();
        command.args(arguments).env("LIKEWISE_DATA", data);
        without(&mut command);
        printed(command.output().expect("the program starts"));
    }

    let mut command = likewise();
    command.env("LIKEWISE_UPSTREAM", "https://localhost:1").env("LIKEWISE_TOKEN", &token);
    command.env("LIKEWISE_DATA", place.path().join("other"));
    without(&mut command);
    let said = errors(&refusal_of(command));
    assert!(said.contains("ca-certificates") && said.contains("--root-certificate"), "{said}");
}
