//! Nonsense and malice: whatever comes, the program answers or hangs up, and goes on.

use std::io::Write;

use crate::client::{Answer, new_id};
use crate::common::{Server, data_dir};

/// A small generator. A failure can be repeated from its seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("it came from a usize")
    }

    fn pick<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.below(all.len())]
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        (0..self.below(most)).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

/// The same nonsense in each run. `LIKEWISE_SEED` gives other nonsense.
fn seed() -> u64 {
    std::env::var("LIKEWISE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_240_607)
}

#[test]
fn trust_38_fuzzed_requests_never_break_it() {
    let data = data_dir();
    let mut server = Server::start(data.path());
    let port = server.port();
    let seed = seed();
    let mut random = Random(seed);
    let paths = [
        "/",
        "/likes",
        "/live",
        "/status",
        "/healthz",
        "/metrics",
        "/s/work/",
        "/s/work/likes",
        "/s/work/status",
        "/s/-/",
        "/s//likes",
        "/static/likewise.js",
        "/static/../x",
        "/control/v1/likes/import",
        "/sync/v1/likes/events",
        "*",
        "//",
        "http://localhost/",
        "/%ff",
        "/s/%00/likes",
    ];
    let methods = ["GET", "POST", "HEAD", "PUT", "OPTIONS", "TRACE", "CONNECT", "BREW", "get"];
    let mut likes = 0;
    for round in 0..600 {
        let method = random.pick(&methods);
        let path = random.pick(&paths);
        let query = match random.below(4) {
            0 => format!("?{}", hex(&random.bytes(40))),
            1 => "?digests&digests=%".to_owned(),
            2 => format!("?after={}&last_id={}", random.next(), hex(&random.bytes(20))),
            _ => String::new(),
        };
        let id = new_id();
        let body: Vec<u8> = match random.below(7) {
            0 => random.bytes(6_000),
            1 => format!("id={id}").into_bytes(),
            2 => [b"id=".to_vec(), random.bytes(50)].concat(),
            3 => format!("id={}", hex(&random.bytes(30))).into_bytes(),
            4 => "&".repeat(random.below(4_096)).into_bytes(),
            5 => {
                let mut bytes = format!("id={id}").into_bytes();
                let at = random.below(bytes.len());
                bytes[at] = random.next().to_le_bytes()[0];
                bytes
            }
            _ => Vec::new(),
        };
        let mut request = format!("{method} {path}{query} HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n");
        request += &match random.below(5) {
            0 => format!("Content-Length: {}\r\n", random.next()),
            1 => format!("Content-Length: {}\r\n", random.below(5_000)),
            2 => "Transfer-Encoding: chunked\r\n".to_owned(),
            _ => format!("Content-Length: {}\r\n", body.len()),
        };
        request += random.pick(&[
            "Content-Type: application/x-www-form-urlencoded\r\n",
            "Content-Type: application/json\r\n",
            "Content-Type: \u{fe}\r\n",
            "Last-Event-ID: -1\r\n",
            "Authorization: Bearer \r\n",
            "Accept-Encoding: gzip, br;q=x\r\n",
            "Range: bytes=0-,5-1\r\n",
            "Upgrade: h2c\r\nConnection: upgrade\r\n",
            "",
        ]);
        let mut bytes = request.into_bytes();
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(&body);
        if random.below(8) == 0 {
            let at = random.below(bytes.len());
            bytes[at] = random.next().to_le_bytes()[0];
        }
        let answer = {
            let mut stream = server.connect();
            drop(stream.write_all(&bytes));
            // Nothing more will come, so a handler that waits for it must give up at once.
            drop(stream.shutdown(std::net::Shutdown::Write));
            head(&mut stream)
        };
        if let Some(answer) = answer {
            let shown = String::from_utf8_lossy(&bytes).into_owned();
            assert!(answer.status < 500 || answer.status == 503, "seed {seed}, round {round}: {shown} {answer:?}");
            likes += u64::from(answer.status == 303 && path == "/likes");
        }
        if round % 50 == 0 {
            assert!(server.is_running(), "seed {seed}, round {round}: {}", server.log());
            assert_eq!(server.get("/healthz").status, 200, "seed {seed}, round {round}");
        }
    }
    let log = server.log();
    assert!(!log.contains("panicked"), "seed {seed}: {log}");
    let count = server.count();
    assert!(count >= likes, "seed {seed}: {count} likes, {likes} acknowledged");
    server.like_times(1);
    assert_eq!(server.count(), count + 1);
}

/// The head of the answer on `stream`, if one comes. The rest isn't read, because live streams never end.
fn head(stream: &mut impl std::io::Read) -> Option<Answer> {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => bytes.push(byte[0]),
            _ => return None,
        }
    }
    Answer::parse(&bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("%{byte:02x}")).collect()
}

#[test]
fn trust_37_hostile_names_are_inert_wherever_they_are_shown() {
    let hostile = r#"</script>"><img src=x onerror=alert(1)>'&"#;
    let data = data_dir();
    let server = Server::start_with(data.path(), &["--listen", "127.0.0.1:0", "--device", hostile]);
    server.like_times(1);
    assert_eq!(server.get("/status").json()["device"], hostile, "JSON carries it as it is");
    let mut live = server.live("/live");
    let frames = [live.next().expect("a frame"), live.next().expect("a frame")].concat();
    for text in [server.get("/").body, server.get("/metrics").body, frames] {
        assert!(!text.contains("<img"), "{text}");
    }
    for path in ["/s/<img src=x>/", "/s/\"><img>/likes", "/<img>", "/s/%3Cimg%3E/", "/static/<img>", "/s/%0d%0aX:y/"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let bytes = server.send(request.as_bytes());
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains("<img"), "{path}: {text}");
        let (head, _) = text.split_once("\r\n\r\n").expect("a head");
        assert!(!head.to_ascii_lowercase().contains("\nx:"), "{path}: {text}");
    }
    let request = format!("GET / HTTP/1.1\r\nHost: {hostile}\r\nConnection: close\r\n\r\n");
    let bytes = server.send(request.as_bytes());
    assert!(!String::from_utf8_lossy(&bytes).contains("<img"), "{}", String::from_utf8_lossy(&bytes));
    let answer = server.post("/likes", "id=%3Cimg%20src%3Dx%3E");
    assert_eq!(answer.status, 400);
    assert!(!answer.body.contains("<img"), "{}", answer.body);
}

#[test]
fn trust_38_pipelined_and_split_requests_are_answered_in_order() {
    let data = data_dir();
    let server = Server::start(data.path());
    let host = format!("Host: localhost:{}\r\n", server.port());
    let mut requests = String::new();
    for _ in 0..20 {
        let body = format!("id={}", new_id());
        requests += &format!(
            "POST /likes HTTP/1.1\r\n{host}Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
    }
    requests += &format!("GET /status HTTP/1.1\r\n{host}Connection: close\r\n\r\n");
    let text = String::from_utf8_lossy(&server.send(requests.as_bytes())).into_owned();
    assert_eq!(text.matches("HTTP/1.1 303 ").count(), 20, "{text}");
    assert!(text.contains(r#""count":20"#), "{text}");

    // Two lengths, or a length and chunks, are how requests are smuggled.
    for lengths in ["Content-Length: 1\r\nContent-Length: 2\r\n", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"]
    {
        let smuggled = format!(
            "POST /likes HTTP/1.1\r\n{host}{lengths}\r\n0\r\n\r\nPOST /likes HTTP/1.1\r\n{host}Content-Length: 0\r\n\
             Connection: close\r\n\r\n"
        );
        let bytes = server.send(smuggled.as_bytes());
        let answers = String::from_utf8_lossy(&bytes).matches("HTTP/1.1 ").count();
        assert!(answers <= 1, "{lengths} got {answers} answers: {}", String::from_utf8_lossy(&bytes));
    }
}
