//! A hub behind TLS: whom a client trusts with its token.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::common::authority::Authority;
use crate::common::wait_for;
use crate::doctor::doctor;
use crate::proxy::read_request;
use crate::support::{Node, wait_until_level};

/// Terminates TLS in front of a hub.
pub struct Terminator {
    pub url: String,
    connections: Arc<AtomicU64>,
    /// Requests that came through.
    requests: Arc<AtomicU64>,
}

impl Terminator {
    pub fn start(config: Arc<ServerConfig>, hub: &Node) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let (connections, requests) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let counters = (Arc::clone(&connections), Arc::clone(&requests));
        let target = hub.url().trim_start_matches("http://").to_owned();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                counters.0.fetch_add(1, Ordering::SeqCst);
                let (config, target, requests) = (Arc::clone(&config), target.clone(), Arc::clone(&counters.1));
                thread::spawn(move || drop(converse(config, client, &target, &requests)));
            }
        });
        Self { url, connections, requests }
    }
}

/// Carries one request and its answer.
fn converse(config: Arc<ServerConfig>, client: TcpStream, target: &str, requests: &AtomicU64) -> std::io::Result<()> {
    let connection = ServerConnection::new(config).map_err(std::io::Error::other)?;
    let mut client = StreamOwned::new(connection, client);
    let Some(request) = read_request(&mut client)? else { return Ok(()) };
    requests.fetch_add(1, Ordering::SeqCst);
    let mut hub = TcpStream::connect(target)?;
    // The hub closes after its answer, so this needs no parser.
    let line = request.windows(2).position(|window| window == b"\r\n").expect("a first line") + 2;
    hub.write_all(&request[..line])?;
    hub.write_all(b"Connection: close\r\n")?;
    hub.write_all(&request[line..])?;
    let mut buffer = [0; 65_536];
    loop {
        let length = hub.read(&mut buffer)?;
        if length == 0 {
            client.conn.send_close_notify();
            return client.flush();
        }
        client.write_all(&buffer[..length])?;
        client.flush()?;
    }
}

#[test]
fn trust_44_only_the_right_certificate_gets_the_token() {
    let hub = Node::hub();
    let authority = Authority::new();
    let right = Terminator::start(authority.sign("localhost", 2100), &hub);
    let mut phone = Node::prepared("phone", &right.url, &hub);
    let roots = phone.file("roots.pem");
    std::fs::write(&roots, &authority.pem).unwrap();
    phone.flag("--root-certificate", roots.to_str().unwrap());
    phone.start();
    phone.like();
    wait_until_level(&[&hub, &phone], 1);
    assert_eq!(phone.status()["upstream"]["url"], right.url.as_str());

    let wrong = [
        ("expired", authority.sign("localhost", 2021), true),
        ("misnamed", authority.sign("likes.example.org", 2100), true),
        ("of-a-stranger", Authority::new().sign("localhost", 2100), true),
        ("not-trusted", authority.sign("localhost", 2100), false),
    ];
    for (name, config, has_root) in wrong {
        let proxy = Terminator::start(config, &hub);
        let mut tablet = Node::prepared(name, &proxy.url, &hub);
        if has_root {
            tablet.flag("--root-certificate", roots.to_str().unwrap());
        }
        tablet.start();
        tablet.like();
        let status = tablet.wait_until("offline");
        wait_for("two attempts", || (proxy.connections.load(Ordering::SeqCst) >= 2).then_some(()));
        let error = status["upstream"]["error"].as_str().unwrap();
        assert!(error.contains("certificate"), "{name}: {error}");
        let token = tablet.file("token");
        let mut flags = vec!["--upstream", &proxy.url, "--token-file", token.to_str().unwrap()];
        if has_root {
            flags.extend(["--root-certificate", roots.to_str().unwrap()]);
        }
        doctor(&tablet, &flags, &[]).has_only("hub", &["the certificate of", "is not trusted here", "renew it"]);
        assert_eq!(proxy.requests.load(Ordering::SeqCst), 0, "{name}: something was sent");
        assert_eq!((tablet.pending(), hub.count()), (1, 1), "{name}");
    }
}

#[test]
fn trust_44_a_token_doesnt_travel_in_the_open() {
    let hub = Node::hub();
    let refused = [
        ("http://likes.example.org", "https://"),
        ("http://192.0.2.1:3000", "https://"),
        ("http://[2001:db8::1]:3000", "https://"),
        ("http://0.0.0.0:3000", "https://"),
        ("http://localhost.example.org", "https://"),
        ("http://127.0.0.1.example.org", "https://"),
        ("HTTP://LIKES.EXAMPLE.ORG", "https://"),
        ("http://127.0.0.1@likes.example.org", "https://"),
        ("ftp://127.0.0.1", "over https"),
        ("https://name:word@likes.example.org/path", "host, port and base path"),
        ("https://likes.example.org/path#part", "host, port and base path"),
        ("https://likes.example.org/?query", "host, port and base path"),
        ("likes.example.org", "https://likes.example.org"),
        ("", "https://likes.example.org"),
    ];
    for (url, words) in refused {
        let phone = Node::unnamed(url);
        let errors = phone.refuses_to_start();
        assert!(errors.contains(words), "{url}: {errors}");
        assert!(!phone.data.exists(), "{url}: it made its data directory");
    }
    let mut phone = Node::prepared("phone", "https://localhost:1", &hub);
    let roots = phone.file("roots.pem");
    phone.flag("--root-certificate", roots.to_str().unwrap());
    assert!(phone.refuses_to_start().contains("roots.pem"));
    std::fs::write(&roots, "nothing").unwrap();
    assert!(phone.refuses_to_start().contains("no certificate"));
}
