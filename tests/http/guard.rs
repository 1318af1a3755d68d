//! Who may talk to the program, on its real routes and over real sockets.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use crate::client::{Answer, listing, new_id};
use crate::common::{Server, data_dir, errors, printed, run, run_with, wait_for};

const ROUTES: [(&str, &str); 21] = [
    ("GET", "/"),
    ("POST", "/likes"),
    ("GET", "/live"),
    ("GET", "/status"),
    ("GET", "/healthz"),
    ("GET", "/metrics"),
    ("GET", "/history"),
    ("GET", "/stores"),
    ("GET", "/s/work/history"),
    ("GET", "/s/work"),
    ("GET", "/s/work/"),
    ("POST", "/s/work/likes"),
    ("GET", "/s/work/live"),
    ("GET", "/s/work/status"),
    ("GET", "/static/likewise.js"),
    ("GET", "/favicon.ico"),
    ("POST", "/control/v1/likes/import"),
    ("GET", "/embed.js"),
    ("POST", "/embed/v1/a/likes"),
    ("GET", "/embed/v1/a/live"),
    ("GET", "/nothing"),
];

/// Checks the headers that every answer must have.
fn assert_guarded(answer: &Answer, what: &str) {
    let policy = answer.header("content-security-policy");
    for part in ["default-src 'none'", "frame-ancestors 'none'", "script-src 'self'", "base-uri 'none'"] {
        assert!(policy.contains(part), "{what}: {policy}");
    }
    assert!(!policy.contains("unsafe"), "{what}: {policy}");
    assert_eq!(answer.header("x-content-type-options"), "nosniff", "{what}");
    assert_eq!(answer.header("x-frame-options"), "DENY", "{what}");
    assert_eq!(answer.header("referrer-policy"), "same-origin", "{what}");
    assert!(!answer.headers.keys().any(|name| name.starts_with("access-control-")), "{what}: {answer:?}");
}

#[test]
fn trust_34_other_hosts_are_refused_on_every_route() {
    let data = data_dir();
    let server = Server::start(data.path());
    let before = listing(data.path());
    let port = server.port();
    for (method, path) in ROUTES {
        for (head, expected) in [
            (format!("{method} {path} HTTP/1.1\r\nHost: evil.example\r\n"), 403),
            (format!("{method} {path} HTTP/1.1\r\nHost: evil.example:{port}\r\n"), 403),
            (format!("{method} {path} HTTP/1.1\r\nHost: localhost.evil.example\r\n"), 403),
            (format!("{method} {path} HTTP/1.1\r\nHost: localhost.:{port}\r\n"), 403),
            (format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1.:{port}\r\n"), 403),
            (format!("{method} {path} HTTP/1.1\r\nHost: 0.0.0.0:{port}\r\n"), 403),
            (format!("{method} {path} HTTP/1.1\r\nHost: 2130706433\r\n"), 403),
            (format!("{method} {path} HTTP/1.1\r\nHost: user@localhost\r\n"), 403),
            (format!("{method} {path} HTTP/1.1\r\nHost: localhost, evil.example\r\n"), 403),
            (format!("{method} {path} HTTP/1.1\r\nHost: \r\n"), 403),
            (format!("{method} {path} HTTP/1.1\r\n"), 400),
            (format!("{method} {path} HTTP/1.0\r\n"), 400),
            (format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n"), 400),
            (format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n"), 400),
            (format!("{method} http://evil.example{path} HTTP/1.1\r\nHost: localhost\r\n"), 403),
            (format!("{method} http://evil.example{path} HTTP/1.1\r\nHost: evil.example\r\n"), 403),
            (format!("{method} http://127.0.0.1{path} HTTP/1.1\r\nHost: localhost\r\n"), 400),
        ] {
            let answer = server.ask(&format!("{head}Connection: close\r\n\r\n"));
            // Whether the program is alive may be asked without a name.
            let expected = if path == "/healthz" && !head.contains("Host") { 200 } else { expected };
            assert_eq!(answer.status, expected, "{head}{answer:?}");
            assert_guarded(&answer, &head);
        }
    }
    assert_eq!(listing(data.path()), before);
    assert_eq!(server.count(), 0);

    for host in ["localhost", "LOCALHOST", "127.0.0.1", "127.1.2.3", "[::1]", &format!("localhost:{port}")] {
        let answer = server.ask(&format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"));
        assert_eq!(answer.status, 200, "{host}");
        let absolute = format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        assert_eq!(server.ask(&absolute).status, 200, "{host}");
    }
}

#[test]
fn trust_33_no_other_site_can_like() {
    let data = data_dir();
    let server = Server::start(data.path());
    let before = listing(data.path());
    let port = server.port();
    let own = format!("http://localhost:{port}");
    let neighbour = format!("http://localhost:{}", port ^ 1);
    let by_number = format!("http://127.0.0.1:{port}");
    let sites = [None, Some("same-origin"), Some("none"), Some("same-site"), Some("cross-site"), Some("nonsense")];
    let origins =
        [None, Some(own.as_str()), Some(&by_number), Some(&neighbour), Some("null"), Some("https://evil.example")];
    let mut likes = 0;
    for path in ["/likes", "/s/work/likes"] {
        for method in ["POST", "PUT", "DELETE", "PATCH", "GET", "HEAD", "OPTIONS"] {
            for site in sites {
                for origin in origins {
                    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: localhost:{port}\r\n");
                    if let Some(site) = site {
                        request += &format!("Sec-Fetch-Site: {site}\r\n");
                    }
                    if let Some(origin) = origin {
                        request += &format!("Origin: {origin}\r\n");
                    }
                    let answer = server.ask(&format!("{request}Content-Length: 0\r\nConnection: close\r\n\r\n"));
                    let is_ours = matches!(site, None | Some("same-origin" | "none"))
                        && origin.is_none_or(|origin| origin == own);
                    assert_guarded(&answer, &request);
                    match (method, is_ours) {
                        ("POST", true) => {
                            assert_eq!(answer.status, 303, "{request}{answer:?}");
                            likes += u64::from(path == "/likes");
                        }
                        ("GET" | "HEAD" | "OPTIONS", _) => assert_eq!(answer.status, 405, "{request}{answer:?}"),
                        (_, true) => assert_eq!(answer.status, 405, "{request}{answer:?}"),
                        (_, false) => assert_eq!(answer.status, 403, "{request}{answer:?}"),
                    }
                    if likes == 0 {
                        assert_eq!(listing(data.path()), before, "{request}");
                    }
                }
            }
        }
    }
    for headers in [
        format!("Origin: {own}\r\nOrigin: https://evil.example\r\n"),
        "Origin:\r\n".to_owned(),
        "Sec-Fetch-Site: same-origin\r\nSec-Fetch-Site: cross-site\r\n".to_owned(),
    ] {
        let request = format!("POST /likes HTTP/1.1\r\nHost: localhost:{port}\r\n{headers}Content-Length: 0\r\n");
        let answer = server.ask(&format!("{request}Connection: close\r\n\r\n"));
        assert_eq!(answer.status, 403, "{request}{answer:?}");
    }
    assert!(likes > 0);
    assert_eq!(server.count(), likes, "only posts of our own pages count");
}

#[test]
fn trust_35_no_other_site_can_read_or_hold_a_stream_open() {
    let data = data_dir();
    let server = Server::start(data.path());
    let port = server.port();
    for path in ["/live", "/status", "/metrics", "/s/work/live", "/s/work/status", "/s/work/metrics"] {
        for header in [
            "Origin: https://evil.example".to_owned(),
            "Origin: null".to_owned(),
            format!("Origin: http://localhost:{}", port ^ 1),
            format!("Origin: https://localhost.evil.example:{port}"),
            "Sec-Fetch-Site: cross-site".to_owned(),
            "Sec-Fetch-Site: same-site".to_owned(),
        ] {
            let answer = server.ask(&format!(
                "GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\n{header}\r\nConnection: close\r\n\r\n"
            ));
            assert_eq!(answer.status, 403, "{path} {header}");
            assert_guarded(&answer, path);
        }
    }
    let metrics = server.get("/metrics").body;
    assert!(metrics.contains("\nlikewise_streams 0\n"), "a refused stream takes no slot: {metrics}");
    let own = format!("http://127.0.0.1:{port}");
    assert_eq!(server.get_with("/status", &[("origin", &own), ("sec-fetch-site", "same-origin")]).status, 200);
}

#[test]
fn trust_36_every_answer_carries_the_headers_that_keep_browsers_in_bounds() {
    let data = data_dir();
    let server = Server::start(data.path());
    let mut live = server.live("/live");
    assert_guarded(&live.answer, "/live");
    assert!(live.next().is_some());
    for (_, path) in ROUTES.into_iter().filter(|(method, path)| *method == "GET" && !path.ends_with("/live")) {
        assert_guarded(&server.get(path), path);
    }
    for (what, answer) in [
        ("liked", server.post("/likes", "")),
        ("malformed", server.post("/likes", "id=x")),
        ("bad store", server.get("/s/No/")),
        ("wrong method", server.post("/status", "")),
        ("too large", server.post("/likes", &"x".repeat(5_000))),
        ("long", server.get(&format!("/{}", "x".repeat(9_000)))),
        ("no key", server.post("/control/v1/likes/import", "")),
    ] {
        assert_guarded(&answer, what);
    }
    for path in ["/", "/nothing"] {
        let page = server.get(path).body;
        assert!(!page.contains("<style") && !page.contains(" style="), "{page}");
        let has_handler = page.split_whitespace().any(|part| part.starts_with("on") && part.contains('='));
        assert!(!page.contains("javascript:") && !has_handler, "{page}");
        assert!(
            page.matches("<script").count() == page.matches("<script type=\"module\" src=\"/static/").count(),
            "{page}"
        );
    }
}

#[test]
fn trust_40_too_much_gets_an_answer_that_says_so() {
    let data = data_dir();
    let server = Server::start(data.path());
    let port = server.port();
    let head = |line: &str, more: &str| {
        format!("{line} HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n{more}\r\n")
    };
    let big = "x".repeat(1 << 20);
    for (what, request, expected) in [
        ("declared body", head("POST /likes", "Content-Length: 5000\r\n") + &big[..5_000], 413),
        ("huge body", head("POST /likes", &format!("Content-Length: {}\r\n", big.len())) + &big, 413),
        (
            "chunked body",
            head("POST /likes", "Content-Type: application/x-www-form-urlencoded\r\nTransfer-Encoding: chunked\r\n")
                + &format!("{:x}\r\n{big}\r\n0\r\n\r\n", big.len()),
            413,
        ),
        (
            "body that is only announced",
            head("POST /likes", "Content-Length: 5000000\r\nExpect: 100-continue\r\n"),
            413,
        ),
        ("address", head(&format!("GET /?{}", &big[..9_000]), ""), 414),
        ("cookies", head("GET /", &format!("Cookie: {}\r\n", &big[..40_000])), 431),
        ("endless cookies", head("GET /", &format!("Cookie: {big}\r\n")), 431),
        ("many headers", head("GET /", &"A: b\r\n".repeat(200)), 431),
        ("bomb", head("POST /likes", "Content-Encoding: gzip\r\nContent-Length: 3\r\n") + "abc", 415),
        (
            "bomb in a chain",
            head("POST /likes", "Content-Encoding: identity, br\r\nContent-Length: 3\r\n") + "abc",
            415,
        ),
        ("fits", head("POST /likes", "Content-Length: 4096\r\nContent-Type: text/plain\r\n") + &big[..4096], 415),
    ] {
        let answer = server.ask(&request);
        assert_eq!(answer.status, expected, "{what}: {answer:?}");
    }
    assert_eq!(server.count(), 0);
}

#[test]
fn an_allowed_host_opens_health_only_unless_public() {
    let (data, other) = (data_dir(), data_dir());
    let hub = ["--listen", "127.0.0.1:0", "--local-page", "--allow-host", "hub.example", "--allow-host", "10.0.0.9:80"];
    let server = Server::start_with(data.path(), &hub);
    let ask = |server: &Server, method: &str, path: &str, host: &str| {
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        server.ask(&request)
    };
    for host in ["hub.example", "HUB.example:8080", "10.0.0.9:80"] {
        for (method, path) in ROUTES {
            // The page behind a pairing link is drawn with static files.
            let expected = match path {
                "/healthz" => 200,
                "/static/likewise.js" | "/favicon.ico" => 307,
                _ => 403,
            };
            assert_eq!(ask(&server, method, path, host).status, expected, "{host} {method} {path}");
        }
    }
    assert_eq!(ask(&server, "GET", "/healthz", "10.0.0.9").status, 200);
    assert_eq!(ask(&server, "GET", "/healthz", "www.hub.example").status, 403);
    assert_eq!(server.count(), 0);

    let public = Server::start_with(other.path(), &[&hub[..], &["--public"]].concat());
    assert_eq!(ask(&public, "GET", "/", "hub.example").status, 200);
    assert_eq!(ask(&public, "POST", "/likes", "hub.example").status, 303);
    assert_eq!(ask(&public, "POST", "/control/v1/likes/import", "hub.example").status, 403);
    assert_eq!(ask(&public, "GET", "/", "evil.example").status, 403);
    assert_eq!(public.count(), 1);
}

/// An address of this machine on a network, if it is on one. Nothing is sent to find out.
fn network_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("198.51.100.1:9").ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|address| !address.is_loopback())
}

#[test]
fn a_server_on_the_network_is_there_for_commands_and_says_how_to_open_it_to_others() {
    // Without a network, only the warning can be seen.
    let address = network_address().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let data = data_dir();
    let server = Server::start_with(data.path(), &["--listen", &format!("{address}:0")]);
    assert_eq!(server.log().matches("--allow-host").count(), 1, "{}", server.log());
    assert!(server.log().contains("--public"), "{}", server.log());
    let line = format!(r#"{{"id":"{}","name":"LikeAdded"}}"#, new_id());
    assert!(errors(&run_with(data.path(), &["import"], &line)).contains("1 events added"));
    assert!(printed(run(data.path(), &["status"])).contains("likes      1\n"));
    assert!(errors(&run(data.path(), &["adopt", "--yes"])).contains("follows no hub"));
    if network_address().is_some() {
        assert_eq!(server.get("/").status, 403, "its address is a name that it was not told");
        // What forwards a container's port connects from there, for everybody. Commands show the key.
        assert_eq!(server.get_with("/", &[("host", "localhost")]).status, 403);
        let by_url = run(data.path(), &["status", "--url", &server.url]);
        assert!(errors(&by_url).contains("--allow-host"), "{}", errors(&by_url));
    }
    drop(server);

    let named = ["--listen", "0.0.0.0:0", "--allow-host", "hub.example"];
    for flags in [&named[..], &["--listen", "127.0.0.1:0"]] {
        let server = Server::start_with(data.path(), flags);
        assert!(!server.log().contains("--allow-host"), "{flags:?}: {}", server.log());
    }
}

#[test]
fn commands_of_this_machine_need_the_key_of_the_data() {
    let data = data_dir();
    let server = Server::start(data.path());
    let line = format!(r#"{{"id":"{}","name":"LikeAdded"}}"#, new_id());
    for header in ["", "Bearer ", "Bearer x", "Basic x"] {
        let answer = server.post_with("/control/v1/likes/import", &[("authorization", header)], &line);
        assert_eq!(answer.status, 401, "{header}");
    }
    assert!(!server.store("likes").exists());
    let lock = std::fs::read_to_string(data.path().join("lock")).expect("the lock file");
    let key =
        serde_json::from_str::<serde_json::Value>(&lock).expect("JSON")["key"].as_str().expect("a key").to_owned();
    assert!(!server.log().contains(&key), "no key in the log");
    let key = format!("Bearer {key}");
    let answer = server.post_with("/control/v1/likes/import", &[("authorization", &key)], &line);
    assert_eq!((answer.status, answer.json()["added"].as_u64()), (200, Some(1)));
}

#[test]
fn trust_39_sockets_that_stall_are_closed_while_others_are_answered() {
    let data = data_dir();
    let server = Server::start(data.path());
    let port = server.port();
    let openings = [
        String::new(),
        "\r\n".to_owned(),
        "GET / HT".to_owned(),
        format!("GET / HTTP/1.1\r\nHost: localhost:{port}\r\nX: y"),
        format!("POST /likes HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Length: 10\r\n\r\nid"),
        format!("POST /likes HTTP/1.1\r\nHost: localhost:{port}\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nid\r\n"),
    ];
    let mut held: Vec<_> = (0..120)
        .map(|n| {
            let mut stream = server.connect();
            std::io::Write::write_all(&mut stream, openings[n % openings.len()].as_bytes()).expect("sent");
            stream
        })
        .collect();
    let opened = std::time::Instant::now();
    // While any of them is open, an honest client gets its answers.
    let mut slowest = std::time::Duration::ZERO;
    wait_for("all sockets to be closed", || {
        let asked = std::time::Instant::now();
        server.like("", &new_id());
        slowest = slowest.max(asked.elapsed());
        held.retain_mut(|stream| {
            stream.set_nonblocking(true).expect("a socket");
            let mut scratch = [0; 4_096];
            loop {
                match stream.read(&mut scratch) {
                    Ok(0) => return false,
                    Ok(_) => {}
                    Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
                }
            }
        });
        held.is_empty().then_some(())
    });
    // The limit is 10 seconds; the rest is for a busy machine.
    assert!(opened.elapsed() < std::time::Duration::from_secs(90), "{:?}", opened.elapsed());
    assert!(slowest < std::time::Duration::from_secs(30), "an honest client waited {slowest:?}");
}
