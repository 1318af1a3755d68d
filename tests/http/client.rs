//! The other side of the wire: an HTTP client for proper requests, and bare sockets for improper ones.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;

use crate::common::{PATIENCE, Server};

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names are in lower case. If a header came more than once, its values are joined by commas.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|why| panic!("not JSON, {why}: {self:?}"))
    }

    /// What is between `start` and the next `end` in the body.
    pub(crate) fn between(&self, start: &str, end: &str) -> &str {
        let (_, rest) = self.body.split_once(start).unwrap_or_else(|| panic!("no {start} in {}", self.body));
        rest.split_once(end).unwrap_or_else(|| panic!("no {end} after {start} in {}", self.body)).0
    }

    pub(crate) fn of(response: ureq::http::Response<ureq::Body>) -> Self {
        let (head, mut body) = response.into_parts();
        let mut headers = BTreeMap::new();
        for (name, value) in &head.headers {
            join(&mut headers, name.as_str(), value.to_str().expect("a header of text"));
        }
        let body = body.read_to_string().expect("the rest of the answer");
        Self { status: head.status.as_u16(), headers, body }
    }

    /// Parses the bytes that came over a socket until its end. `None` if they are no answer.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n")?;
        let mut lines = head.lines();
        let status = lines.next()?.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok()?;
        let mut headers = BTreeMap::new();
        for line in lines {
            let (name, value) = line.split_once(": ")?;
            join(&mut headers, &name.to_ascii_lowercase(), value);
        }
        Some(Self { status, headers, body: body.to_owned() })
    }
}

fn join(headers: &mut BTreeMap<String, String>, name: &str, value: &str) {
    headers
        .entry(name.to_owned())
        .and_modify(|all| {
            all.push(',');
            all.push_str(value);
        })
        .or_insert_with(|| value.to_owned());
}

/// A client that reports what it is told, follows no redirect, and keeps its connections.
pub(crate) fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(None)
        .timeout_global(Some(PATIENCE))
        .build()
        .new_agent()
}

impl Server {
    pub(crate) fn get(&self, path: &str) -> Answer {
        self.get_with(path, &[])
    }

    pub(crate) fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = agent().get(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Answer::of(request.call().unwrap_or_else(|why| panic!("GET {path}: {why}\n{}", self.log())))
    }

    /// Posts a form.
    pub(crate) fn post(&self, path: &str, form: &str) -> Answer {
        self.post_with(path, &[], form)
    }

    pub(crate) fn post_with(&self, path: &str, headers: &[(&str, &str)], form: &str) -> Answer {
        let mut request = agent().post(format!("{}{path}", self.url));
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
            request = request.header("content-type", "application/x-www-form-urlencoded");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Answer::of(request.send(form).unwrap_or_else(|why| panic!("POST {path}: {why}\n{}", self.log())))
    }

    /// Clicks on the page of `store`, with this id. The answer must be that the click is stored.
    pub(crate) fn like(&self, base: &str, id: &str) {
        let answer = self.post(&format!("{base}/likes"), &format!("id={id}"));
        assert_eq!(answer.status, 303, "{answer:?}");
    }

    /// Clicks this many times, in the default store.
    pub(crate) fn like_times(&self, times: usize) -> Vec<String> {
        let ids: Vec<String> = (0..times).map(|_| new_id()).collect();
        ids.iter().for_each(|id| self.like("", id));
        ids
    }

    /// How many likes the page of the default store shows.
    pub(crate) fn count(&self) -> u64 {
        self.get("/").between(r#"data-count=""#, "\"").parse().expect("a count")
    }

    /// A fresh connection.
    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port())).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        stream
    }

    /// Sends these bytes, and reads until the server closes the connection. The bytes should ask it to.
    pub(crate) fn send(&self, request: &[u8]) -> Vec<u8> {
        let mut stream = self.connect();
        // A server that refuses the request may close before it has read all of it.
        drop(stream.write_all(request));
        let mut bytes = Vec::new();
        drop(stream.read_to_end(&mut bytes));
        bytes
    }

    /// As [`send`](Self::send), for requests that get an answer.
    pub(crate) fn ask(&self, request: &str) -> Answer {
        let bytes = self.send(request.as_bytes());
        Answer::parse(&bytes).unwrap_or_else(|| panic!("{request:?} got {:?}", String::from_utf8_lossy(&bytes)))
    }

    /// Opens a live stream.
    pub(crate) fn live(&self, path: &str) -> Live {
        self.live_under(&format!("localhost:{}", self.port()), path)
    }

    /// The same, under another name.
    pub(crate) fn live_under(&self, host: &str, path: &str) -> Live {
        let mut stream = self.connect();
        // HTTP/1.0 would be easier to read, without chunks, but is refused.
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").expect("a request");
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(reader.read_line(&mut head).expect("the head of the stream"), 0, "{head}");
        }
        let answer = Answer::parse(head.as_bytes()).unwrap_or_else(|| panic!("no answer: {head}"));
        Live { answer, reader, text: String::new() }
    }
}

/// An open live stream.
pub(crate) struct Live {
    /// Its head.
    pub(crate) answer: Answer,
    reader: BufReader<TcpStream>,
    text: String,
}

impl Live {
    /// The next fragment, skipping pings and ends of commits. `None` if the stream ended properly.
    pub(crate) fn next(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.text.find("\n\n") {
                let frame: String = self.text.drain(..end + 2).collect();
                if !frame.lines().any(|line| matches!(line, "event: ping" | "event: done")) {
                    return Some(frame);
                }
                continue;
            }
            let mut size = String::new();
            self.reader.read_line(&mut size).expect("the size of a chunk");
            let size =
                usize::from_str_radix(size.trim(), 16).unwrap_or_else(|_| panic!("the stream broke off: {size:?}"));
            let mut chunk = vec![0; size + 2];
            self.reader.read_exact(&mut chunk).expect("a whole chunk");
            if size == 0 {
                assert_eq!(self.text, "", "the stream ended within a frame");
                return None;
            }
            chunk.truncate(size);
            self.text.push_str(&String::from_utf8(chunk).expect("text"));
        }
    }

    /// Reads on until the stream shows `count` likes. Returns the counts that it showed before.
    pub(crate) fn until(&mut self, count: u64) -> Vec<u64> {
        let mut before = Vec::new();
        loop {
            let frame = self.next().unwrap_or_else(|| panic!("the stream ended before it showed {count}: {before:?}"));
            if !frame.starts_with("event: likes\n") {
                continue;
            }
            let (_, rest) = frame.split_once(r#"data-count=""#).expect("a count");
            let shown = rest.split_once('"').and_then(|(count, _)| count.parse().ok()).expect("a count");
            if shown == count {
                return before;
            }
            before.push(shown);
        }
    }
}

/// A new id for a click.
pub(crate) fn new_id() -> String {
    uuid::Uuid::now_v7().to_string()
}

/// Everything in a directory, by its path, with sizes of files.
pub(crate) fn listing(dir: &Path) -> Vec<(String, u64)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap_or_else(|why| panic!("{}: {why}", dir.display())) {
        let path = entry.expect("an entry").path();
        let meta = std::fs::symlink_metadata(&path).expect("its metadata");
        if meta.is_dir() {
            all.push((path.display().to_string(), 0));
            all.extend(listing(&path));
        } else {
            all.push((path.display().to_string(), meta.len()));
        }
    }
    all.sort();
    all
}

/// The value without the parts that differ from run to run: ids, versions of assets, ports.
pub(crate) fn redacted(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(found) =
        rest.char_indices().find_map(|(at, _)| varying(&rest[at..]).map(|(len, name)| (at, len, name)))
    {
        let (at, length, name) = found;
        out.push_str(&rest[..at]);
        out.push_str(name);
        rest = &rest[at + length..];
    }
    out + rest
}

/// The length of the varying text at the start of `text`, and what to put in its place.
fn varying(text: &str) -> Option<(usize, &'static str)> {
    if text.get(..36).is_some_and(|head| uuid::Uuid::try_parse(head).is_ok() && head.contains('-')) {
        return Some((36, "[uuid]"));
    }
    let version = text.strip_prefix("/static/")?.split('/').next()?;
    version.bytes().all(|byte| byte.is_ascii_hexdigit()).then_some((8 + version.len(), "/static/[version]"))
}
