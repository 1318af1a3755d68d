//! More than the program can take, from outside. What is too much is refused at once and in words, others are served meanwhile,
//! and afterwards everything is as before. `LIKEWISE_LOAD=10` makes each load ten times as large.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::thread;

use crate::client::{Answer, new_id};
use crate::common::{Server, data_dir, load, raise_open_file_limit, wait_for};

/// The name that visitors use for the server.
const PUBLIC: &str = "likes.example";

fn public(data: &Path) -> Server {
    raise_open_file_limit();
    Server::start_with(data, &["--listen", "127.0.0.1:0", "--allow-host", PUBLIC, "--public", "--local-page"])
}

impl Server {
    fn proc(&self, file: &str, name: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/{file}", self.pid())).expect("a running process");
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("the line");
        line.trim().trim_end_matches(" kB").trim().parse().expect("a number")
    }

    fn threads(&self) -> u64 {
        self.proc("status", "Threads:")
    }

    /// How much memory it uses, in bytes.
    fn memory(&self) -> u64 {
        self.proc("status", "VmRSS:") * 1_024
    }

    fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("its files").count()
    }

    /// Sends a request as a visitor, and returns the connection.
    fn visit(&self, request: &str) -> TcpStream {
        let mut stream = self.connect();
        write!(stream, "{request} HTTP/1.1\r\nHost: {PUBLIC}\r\nContent-Length: 0\r\n\r\n").expect("sent");
        stream
    }

    /// The answer to a visitor's like in a store.
    fn visitors_like(&self, store: &str) -> Answer {
        let request = format!(
            "POST /s/{store}/likes HTTP/1.1\r\nHost: {PUBLIC}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        self.ask(&request)
    }

    /// Checks that the owner gets in, whatever the others do.
    fn serves_its_owner(&self, store: &str) {
        self.like(store, &new_id());
        assert_eq!(self.get(&format!("{store}/")).status, 200);
        assert_eq!(self.get("/healthz").status, 200);
    }
}

/// The head of the answer that comes on `stream`.
fn head(stream: &mut impl Read) -> String {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => bytes.push(byte[0]),
            _ => break,
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn trust_64_streams_of_stores_that_do_not_exist_cost_no_thread_and_lock_nobody_out() {
    let data = data_dir();
    let server = public(data.path());
    server.serves_its_owner("");
    let before = (server.threads(), server.open_files());
    let streams: Vec<_> = (0..load(600)).map(|n| server.visit(&format!("GET /s/made-up-{n}/live"))).collect();
    let mut readers: Vec<_> = streams.into_iter().map(BufReader::new).collect();
    for reader in &mut readers {
        let head = head(reader);
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    }
    assert!(server.threads() <= before.0 + 4, "{} threads, {} before", server.threads(), before.0);
    assert!(server.open_files() <= before.1 + readers.len() + 8, "{} files", server.open_files());
    server.serves_its_owner("");
    server.serves_its_owner("/s/new");
    assert_eq!(server.visitors_like("made-up-7").status, 303, "a visitor's like, too");

    // A page that looked at it before its first like sees the like.
    let mut line = String::new();
    while !line.contains(r#"data-count="1""#) {
        line.clear();
        assert_ne!(readers[7].read_line(&mut line).expect("the stream"), 0, "the stream ended");
    }
    let mut stores: Vec<_> =
        std::fs::read_dir(data.path().join("stores")).unwrap().map(|e| e.unwrap().file_name()).collect();
    stores.sort();
    assert_eq!(stores, ["likes", "made-up-7", "new"]);
    drop(readers);
    wait_for("the connections to be gone", || (server.open_files() <= before.1 + 24).then_some(()));
}

#[test]
fn trust_64_visitors_make_so_many_new_stores_and_the_others_go_on() {
    let data = data_dir();
    let server = public(data.path());
    let mut made = 0;
    let refused = loop {
        let answer = server.visitors_like(&format!("store-{made}"));
        if answer.status != 303 {
            break answer;
        }
        made += 1;
        // On a busy machine a few more are allowed meanwhile.
        assert!(made < 200, "there is no end");
    };
    assert!(made >= 100, "a hundred an hour: {made}");
    assert_eq!(refused.status, 429, "{refused:?}");
    let wait: u64 = refused.header("retry-after").parse().expect("when to come again");
    assert!((1..=3_600).contains(&wait), "{wait}");
    assert!(refused.body.contains("Visitors have made as many new stores"), "{}", refused.body);
    assert_eq!(server.visitors_like("store-0").status, 303, "those that exist go on");
    assert_eq!(server.get("/s/store-0/status").json()["count"], 2);
    server.serves_its_owner("/s/new");
    assert!(!data.path().join(format!("stores/store-{made}")).exists());
}

#[test]
fn trust_64_with_few_descriptors_a_like_gets_in() {
    raise_open_file_limit();
    let data = data_dir();
    let mut command = Command::new("sh");
    command.args(["-c", r#"ulimit -n 256 && exec "$0" serve --listen 127.0.0.1:0"#, env!("CARGO_BIN_EXE_likewise")]);
    let server = Server::spawn(command, data.path());
    let mut streams: Vec<_> = (0..load(300))
        .map(|_| {
            let mut stream = server.connect();
            write!(stream, "GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("sent");
            stream
        })
        .collect();
    let silent: Vec<_> = (0..load(300)).map(|_| server.connect()).collect();
    // While every place is one whose request is just being answered, the door says "in a moment".
    let like = || server.post("/likes", &format!("id={}", new_id()));
    wait_for("the requests for streams to be answered", || (like().status == 303).then_some(()));
    for round in 0..20 {
        server.serves_its_owner(if round % 2 == 0 { "" } else { "/s/other" });
    }
    let answers: Vec<_> = streams.iter_mut().map(head).collect();
    let live = answers.iter().filter(|head| head.starts_with("HTTP/1.1 200")).count();
    assert!((50..=106).contains(&live), "{live} streams");
    assert!(answers.iter().any(|head| head.starts_with("HTTP/1.1 503") && head.contains("retry-after")));
    drop((streams, silent));
    wait_for("a place for a stream", || server.live("/live").answer.status.eq(&200).then_some(()));
}

#[test]
fn trust_64_heads_that_are_never_whole_take_little_memory_and_no_place() {
    let data = data_dir();
    let server = public(data.path());
    server.serves_its_owner("");
    let before = server.memory();
    let half = format!("GET / HTTP/1.1\r\nHost: localhost\r\nCookie: {}", "x".repeat(50_000));
    let mut held = Vec::new();
    for n in 0..load(1_500) {
        let mut stream = server.connect();
        // A connection that had to make room takes nothing more.
        drop(stream.write_all(half.as_bytes()));
        held.push(stream);
        if n % 300 == 0 {
            server.serves_its_owner("");
        }
    }
    server.serves_its_owner("");
    let took = server.memory().saturating_sub(before);
    eprintln!("{} half heads of {} bytes took {took} bytes", held.len(), half.len());
    assert!(took < 64 << 20, "{} half heads of {} bytes took {took} bytes", held.len(), half.len());
}

#[test]
fn trust_48_streams_that_never_read_get_the_newest_when_they_do() {
    const STREAMS: usize = 200;
    const WRITERS: usize = 4;
    let likes = load(4_000);
    let data = data_dir();
    let server = public(data.path());
    server.serves_its_owner("");
    let mut deaf: Vec<_> = (0..STREAMS).map(|_| BufReader::new(server.visit("GET /live"))).collect();
    let before = server.memory();
    let port = server.port();
    let request = format!("POST /likes HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Length: 0\r\n\r\n");
    thread::scope(|scope| {
        for _ in 0..WRITERS {
            scope.spawn(|| {
                let mut stream = server.connect();
                for _ in 0..likes / WRITERS / 100 {
                    stream.write_all(request.repeat(100).as_bytes()).expect("sent");
                    for _ in 0..100 {
                        assert!(head(&mut stream).starts_with("HTTP/1.1 303"));
                    }
                }
            });
        }
    });
    let took = server.memory().saturating_sub(before);
    eprintln!("{STREAMS} streams and {likes} likes took {took} bytes");
    assert!(took < 64 << 20, "{STREAMS} streams and {likes} likes took {took} bytes");
    let count = format!(r#"data-count="{}""#, server.count());
    for reader in deaf.iter_mut().step_by(50) {
        let mut line = String::new();
        while !line.contains(&count) {
            line.clear();
            assert_ne!(reader.read_line(&mut line).expect("the stream"), 0, "the stream ended before {count}");
        }
    }
}

#[test]
fn trust_46_clients_that_hang_up_leave_nothing_behind() {
    let data = data_dir();
    let server = public(data.path());
    server.serves_its_owner("");
    let (files, threads, count) = (server.open_files(), server.threads(), server.count());
    let clients = load(3_000);
    for n in 0..clients {
        let mut stream = server.connect();
        let request = ["POST /likes", "GET /live", "GET /", "GET /s/other/live"][n % 4];
        drop(write!(stream, "{request} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"));
        drop(stream);
    }
    wait_for("what the clients held to be let go of", || {
        (server.open_files() <= files + 8 && server.threads() <= threads + 2).then_some(())
    });
    server.serves_its_owner("");
    let count = server.count() - count;
    assert!(count <= clients as u64 / 4 + 1, "{count} likes of {clients} clients");
    wait_for("the streams to be gone", || server.get("/metrics").body.contains("likewise_streams 0").then_some(()));
}
