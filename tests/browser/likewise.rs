//! What tests ask the program directly, without the browser.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use crate::common::{Server, likewise, wait_for};

/// What tests do on the page of likes: like, and look at the count.
impl crate::chromium::Tab<'_> {
    pub(crate) fn like(&self) {
        self.click("#like button");
    }

    pub(crate) fn count(&self) -> u64 {
        self.text("#count").replace(|letter: char| !letter.is_ascii_digit(), "").parse().expect("a number")
    }

    /// Waits until the page shows this count.
    pub(crate) fn until_count(&self, count: u64) {
        self.until(&format!("document.getElementById('count')?.textContent.replace(/\\D/g, '') === '{count}'"));
    }

    /// Waits until the page hears the live stream.
    pub(crate) fn until_live(&self) {
        self.until("document.documentElement.dataset.live === 'open'");
    }

    /// Waits until the server has stored every click of the page.
    pub(crate) fn until_sent(&self) {
        self.until("document.documentElement.dataset.unsent === '0'");
    }
}

impl Server {
    /// Likes as another client.
    pub(crate) fn like(&self, store: &str) {
        let answer = self.ask(&format!("POST {store}/likes"));
        assert!(answer.starts_with("HTTP/1.1 303"), "{answer}");
    }

    /// How many live streams are open.
    pub(crate) fn streams(&self) -> u64 {
        self.metric("likewise_streams")
    }

    /// How many posted clicks had this result.
    pub(crate) fn clicks(&self, result: &str) -> u64 {
        self.metric(&format!("likewise_likes_total{{result=\"{result}\"}}"))
    }

    fn metric(&self, name: &str) -> u64 {
        let answer = self.ask("GET /metrics");
        let line = answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.trim().parse().ok()).unwrap_or_else(|| panic!("no {name} in {answer}"))
    }

    pub(crate) fn until_streams(&self, streams: u64) {
        wait_for(&format!("{streams} open streams"), || (self.streams() == streams).then_some(()));
    }

    /// Sends a request without a body, and returns the raw answer.
    fn ask(&self, request: &str) -> String {
        let host = self.url.strip_prefix("http://").expect("an address");
        let mut stream = TcpStream::connect(host).expect("it listens");
        let request = format!("{request} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("it takes the request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }
}

/// The ids of all events in a store, as `likewise export` writes them.
pub(crate) fn stored(data: &Path, store: &str) -> Vec<String> {
    let export = likewise().args(["export", "--store", store]).env("LIKEWISE_DATA", data).output().expect("it runs");
    assert!(export.status.success(), "{export:?}");
    let lines = String::from_utf8(export.stdout).expect("UTF-8");
    let id = |line: &str| {
        let event: serde_json::Value = serde_json::from_str(line).expect("JSON");
        event["id"].as_str().expect("an id").to_owned()
    };
    lines.lines().map(id).collect()
}

/// Puts `count` likes into a store that no process serves.
pub(crate) fn fill(data: &Path, store: &str, count: usize) {
    let line =
        || format!(r#"{{"seq":null,"id":"{}","name":"LikeAdded","args":null,"origin":null}}"#, uuid::Uuid::now_v7());
    let lines: Vec<String> = std::iter::repeat_with(line).take(count).collect();
    let mut import = likewise()
        .args(["import", "--store", store])
        .env("LIKEWISE_DATA", data)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("it runs");
    import.stdin.take().expect("its input").write_all(lines.join("\n").as_bytes()).expect("it reads");
    assert!(import.wait().expect("its end").success());
}
