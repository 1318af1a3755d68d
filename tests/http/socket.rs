//! A server that listens on a socket file, or on a socket that the service manager passes.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::client::Answer;
use crate::common::{PATIENCE, Server, data_dir, errors, likewise, printed, run, wait_for};

/// Asks through a socket file, as a proxy or curl does.
fn ask(socket: &Path, request: &str, headers: &str) -> Answer {
    let mut stream = UnixStream::connect(socket).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
    write!(stream, "{request} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n").expect("asked");
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("an answer");
    Answer::parse(&bytes).expect("an answer")
}

fn on(socket: &Path, data: &Path, flags: &[&str]) -> Server {
    let listen = format!("unix:{}", socket.display());
    Server::start_with(data, &[&["--listen", &listen], flags].concat())
}

#[test]
fn a_socket_file_is_for_the_owners_commands_and_for_a_proxy() {
    let (data, place) = (data_dir(), data_dir());
    let socket = place.path().join("socket");
    let server = on(&socket, data.path(), &["--allow-host", "likes.example.org", "--public", "--base-path", "/likes"]);
    assert_eq!(server.url, format!("unix:{}", socket.display()));
    let meta = fs::symlink_metadata(&socket).expect("the file");
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.permissions().mode() & 0o777, 0o660);

    // Commands find it, and show the key.
    let lock = fs::read_to_string(data.path().join("lock")).expect("the lock file");
    assert!(lock.contains(&format!("unix:{}", socket.display())), "{lock}");
    let asked = |arguments: &[&str]| printed(run(data.path(), arguments));
    assert!(asked(&["status"]).contains("likes      0"));
    asked(&["health"]);
    asked(&["token", "add", "laptop"]);
    let examined = run(data.path(), &["doctor", "--public-url", "http://127.0.0.1:1"]);
    let said = String::from_utf8_lossy(&examined.stdout).into_owned();
    assert!(said.contains(&format!("serves the data on unix:{}", socket.display())), "{said}");
    let copy = place.path().join("copy");
    asked(&["backup", copy.to_str().expect("a path")]);
    assert_eq!(asked(&["stores"]), "");

    // Under its name it is as public as it is told to be.
    let public = "Host: likes.example.org\r\n";
    let page = ask(&socket, "GET /likes/", public);
    assert!(page.status == 200 && page.body.contains("data-count=\"0\""), "{page:?}");
    assert_eq!(ask(&socket, "GET /likes/metrics", public).status, 403);
    assert!(!ask(&socket, "GET /likes/status", public).body.contains("\"device\""));
    // A proxy that leaves the name out makes nobody the owner.
    for host in ["localhost", "127.0.0.1", "[::1]:3000"] {
        for path in ["", "live", "status", "metrics", "sync/v1/likes/events"] {
            let answer = ask(&socket, &format!("GET /likes/{path}"), &format!("Host: {host}\r\n"));
            assert_eq!(answer.status, 403, "{host} {path}: {answer:?}");
            assert!(answer.body.contains("proxy_set_header Host $http_host"), "{answer:?}");
        }
        assert_eq!(ask(&socket, "GET /healthz", &format!("Host: {host}\r\n")).status, 200);
    }
    assert_eq!(ask(&socket, "GET /likes/", "Host: evil.example\r\n").status, 403);

    assert!(server.terminate().success());
    assert!(!socket.exists(), "the file goes with the server");
}

#[test]
fn a_proxy_at_the_socket_file_that_says_no_address_is_named_once_where_sites_embed() {
    let (data, place) = (data_dir(), data_dir());
    let socket = place.path().join("socket");
    let server = on(&socket, data.path(), &["--allow-host", "likes.example.org", "--embed", "https://blog.example"]);
    let like = |more: &str| {
        let head = format!("Host: likes.example.org\r\nContent-Length: 0\r\nAccept: application/json\r\n{more}");
        assert_eq!(ask(&socket, "POST /embed/v1/a/likes", &head).status, 204);
    };
    let doctor = || {
        let examined = run(data.path(), &["doctor", "--public-url", "http://127.0.0.1:1"]);
        String::from_utf8_lossy(&examined.stdout).into_owned()
    };
    const SILENT: &str = "the proxy at the socket file doesn't say for whom it asks";
    like("X-Forwarded-For: 198.51.100.7\r\n");
    assert!(!server.log().contains(SILENT) && !doctor().contains(SILENT));
    for _ in 0..3 {
        like("");
    }
    assert_eq!(server.log().matches(SILENT).count(), 1, "{}", server.log());
    let said = doctor();
    assert!(said.contains(SILENT) && said.contains("proxy_set_header X-Forwarded-For $remote_addr"), "{said}");
    let listed = errors(&run(data.path(), &["items", "list"]));
    assert!(listed.contains(SILENT) && listed.contains("http-request set-header X-Forwarded-For %[src]"), "{listed}");
}

#[test]
fn a_socket_file_is_replaced_only_if_nobody_listens_and_it_is_one() {
    let (data, place) = (data_dir(), data_dir());
    let socket = place.path().join("socket");
    // What a killed server leaves.
    let server = on(&socket, data.path(), &[]);
    server.kill();
    assert!(socket.exists());
    drop(on(&socket, data.path(), &[]));

    let refused = |socket: &Path, words: &str| {
        let said = errors(&run(data.path(), &["serve", "--listen", &format!("unix:{}", socket.display())]));
        assert!(said.contains(words), "{said}");
    };
    fs::remove_file(&socket).expect("removed");
    let other = UnixListener::bind(&socket).expect("a listener");
    refused(&socket, "another program listens on");
    drop(other);
    let file = place.path().join("file");
    fs::write(&file, "precious").expect("a file");
    refused(&file, "is no socket");
    assert_eq!(fs::read_to_string(&file).expect("the file"), "precious");
    refused(&place.path().join("x".repeat(120)), "about 100 bytes");
    refused(Path::new("relative"), "a path from the root");

    // Somebody else's in its place stays.
    let server = on(&socket, data.path(), &[]);
    fs::remove_file(&socket).expect("removed");
    let other = UnixListener::bind(&socket).expect("a listener");
    assert!(server.terminate().success());
    assert!(socket.exists());
    drop(other);
}

/// Starts the program as a service manager does: with a listening socket as its file 3, and a word wanted when it is ready.
fn passed(data: &Path, listener: OwnedFd, notify: &Path) -> Server {
    let program: PathBuf = likewise().get_program().into();
    let mut command = Command::new("sh");
    // `$$` stays the same through `exec`.
    command
        .args(["-c", "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" \"$@\""])
        .arg(program)
        .arg("serve");
    command.env("NOTIFY_SOCKET", notify);
    Server::spawn_with(command, data, Stdio::from(listener))
}

#[test]
fn a_socket_that_the_service_manager_passes_is_used_and_stays() {
    let place = data_dir();
    let notify = place.path().join("notify");
    let manager = UnixDatagram::bind(&notify).expect("a socket");
    manager.set_read_timeout(Some(PATIENCE)).expect("a limit");
    let told_ready = || {
        let mut word = [0; 100];
        let length = manager.recv(&mut word).expect("a word");
        assert_eq!(&word[..length], b"READY=1\n");
    };

    let data = data_dir();
    let socket = place.path().join("socket");
    let listener = UnixListener::bind(&socket).expect("a listener");
    let server = passed(data.path(), listener.try_clone().expect("a copy").into(), &notify);
    told_ready();
    assert_eq!(server.url, format!("unix:{}", socket.display()));
    printed(run(data.path(), &["health"]));
    assert!(server.terminate().success());
    assert!(socket.exists(), "it is the service manager's");

    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let port = listener.local_addr().expect("an address").port();
    let server = passed(data.path(), listener.try_clone().expect("a copy").into(), &notify);
    told_ready();
    assert_eq!(server.url, format!("http://127.0.0.1:{port}"));
    assert_eq!(server.get("/healthz").status, 200);
    server.like_times(1);
    assert!(server.terminate().success());

    // What comes while nobody runs waits in the socket.
    let waiting = std::thread::spawn(move || {
        ureq::get(format!("http://127.0.0.1:{port}/status")).call().expect("an answer").body_mut().read_to_string()
    });
    let server =
        wait_for("a server", || Some(passed(data.path(), listener.try_clone().expect("a copy").into(), &notify)));
    assert!(waiting.join().expect("no panic").expect("a text").contains("\"count\":1"));
    drop(server);
}
