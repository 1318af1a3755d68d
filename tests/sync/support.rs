//! Instances that sync with each other, and what tests ask of them.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{PATIENCE, Server, data_dir, likewise, wait_for};
use crate::proxy::Proxy;

/// An instance with its data, running or not. Its log is shown when its test fails.
pub struct Node {
    pub data: PathBuf,
    dir: TempDir,
    flags: Vec<String>,
    environment: Vec<(&'static str, String)>,
    server: Option<Server>,
    /// What earlier runs logged.
    earlier: String,
}

impl Node {
    fn new(flags: &[&str]) -> Self {
        let dir = data_dir();
        let flags = ["--listen", "127.0.0.1:0"].iter().chain(flags).map(|flag| (*flag).to_owned()).collect();
        Self {
            data: dir.path().join("data"),
            dir,
            flags,
            environment: Vec::new(),
            server: None,
            earlier: String::new(),
        }
    }

    /// An instance without an upstream.
    pub fn hub() -> Self {
        let mut hub = Self::stopped_hub();
        hub.start();
        hub
    }

    /// An instance without an upstream; not started.
    pub fn stopped_hub() -> Self {
        Self::new(&["--device", "hub"])
    }

    /// A hub before the NATS servers at `servers`; not started.
    pub fn gateway(name: &str, servers: &str) -> Self {
        Self::new(&["--device", name, "--upstream", servers])
    }

    /// An instance that says nothing of a hub; not started.
    pub fn alone() -> Self {
        Self::new(&["--retry-halted", "1"])
    }

    /// A client of the hub behind `url`, with a new token for `name`; not started.
    pub fn prepared(name: &str, url: &str, hub: &Self) -> Self {
        let mut client = Self::new(&["--upstream", url, "--retry-halted", "1"]);
        client.trust(&hub.token(name));
        client
    }

    /// A client of whatever is at `url`, with some token; not started.
    pub fn unnamed(url: &str) -> Self {
        let mut client = Self::new(&["--upstream", url]);
        client.trust("lw_0");
        client
    }

    /// A running client of the hub behind `url`.
    pub fn client(name: &str, url: &str, hub: &Self) -> Self {
        let mut client = Self::prepared(name, url, hub);
        client.start();
        client
    }

    /// A second instance with a copy of this one's data. This one must not be running.
    pub fn copy(&self) -> Self {
        let mut copy = Self::new(&[]);
        copy.flags.clone_from(&self.flags);
        copy_all(&self.data, &copy.data);
        copy
    }

    /// Writes a token to the file it is read from.
    pub fn trust(&mut self, token: &str) {
        let file = self.dir.path().join("token");
        fs::write(&file, token).unwrap();
        self.flag("--token-file", file.to_str().unwrap());
    }

    /// Adds a flag of `serve`, from the next start on.
    pub fn flag(&mut self, flag: &str, value: &str) {
        self.unflag(flag);
        self.flags.extend([flag.to_owned(), value.to_owned()]);
    }

    /// Adds a flag of `serve` that has no value, from the next start on.
    pub fn switch(&mut self, flag: &str) {
        self.flags.push(flag.to_owned());
    }

    /// Removes a flag.
    pub fn unflag(&mut self, flag: &str) {
        if let Some(at) = self.flags.iter().position(|known| known == flag) {
            self.flags.drain(at..at + 2);
        }
    }

    pub fn environment(&mut self, name: &'static str, value: &str) {
        self.environment.push((name, value.to_owned()));
    }

    pub fn start(&mut self) {
        assert!(self.server.is_none(), "it runs already");
        let mut command = likewise();
        command.arg("serve").args(&self.flags).envs(self.environment.iter().cloned());
        self.server = Some(Server::spawn(command, &self.data));
    }

    /// What it says if it can't start.
    pub fn refuses_to_start(&self) -> String {
        let mut command = likewise();
        command.arg("serve").args(&self.flags).env("LIKEWISE_DATA", &self.data).stdin(Stdio::null());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if !line.is_empty() {
            child.kill().unwrap();
        }
        let output = child.wait_with_output().unwrap();
        assert!(line.is_empty() && !output.status.success(), "it started");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Shuts it down.
    pub fn stop(&mut self) {
        let mut server = self.server.take().expect("it runs");
        server.send_term();
        let status = server.wait();
        self.earlier += &server.log();
        assert!(status.success(), "it ended with {status}");
    }

    /// Kills it.
    pub fn kill(&mut self) {
        let server = self.server.take().expect("it runs");
        self.earlier += &server.log();
        server.kill();
    }

    /// Stops it in the middle of whatever it does.
    #[allow(dead_code, reason = "the tests of gateways use it")]
    pub fn pause(&self) {
        self.server.as_ref().expect("it runs").signal(Signal::STOP);
    }

    /// Lets it go on.
    #[allow(dead_code, reason = "the tests of gateways use it")]
    pub fn resume(&self) {
        self.server.as_ref().expect("it runs").signal(Signal::CONT);
    }

    pub fn url(&self) -> &str {
        &self.server.as_ref().expect("it runs").url
    }

    pub fn pid(&self) -> u32 {
        self.server.as_ref().expect("it runs").pid()
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.earlier.clone() + &self.server.as_ref().map(Server::log).unwrap_or_default()
    }

    /// A file beside the data.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs a command on its data.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = likewise();
        command.args(arguments).env("LIKEWISE_DATA", &self.data).stdin(Stdio::null());
        command
    }

    /// Runs a command on its data, and returns what it prints.
    pub fn run(&self, arguments: &[&str]) -> String {
        succeeded(self.command(arguments).output().unwrap())
    }

    /// Imports these lines.
    pub fn import(&self, lines: &str) {
        let mut command = self.command(&["import"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        succeeded(child.wait_with_output().unwrap());
    }

    /// A new token of this hub.
    pub fn token(&self, name: &str) -> String {
        self.run(&["token", "add", name]).trim().to_owned()
    }

    /// Likes once.
    pub fn like(&self) {
        self.like_in("");
    }

    /// Likes in the store whose routes begin with `base`.
    pub fn like_in(&self, base: &str) {
        let (status, body) = post(&format!("{}{base}/likes", self.url()), "application/x-www-form-urlencoded", "");
        assert_eq!(status, 303, "{body}");
    }

    pub fn status(&self) -> Value {
        self.status_of("")
    }

    pub fn status_of(&self, base: &str) -> Value {
        let (status, body) = get(&format!("{}{base}/status?digests", self.url()));
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    pub fn count(&self) -> u64 {
        self.status()["count"].as_u64().unwrap()
    }

    pub fn pending(&self) -> u64 {
        self.status()["pending"].as_u64().unwrap()
    }

    /// Waits until its link is in this state.
    pub fn wait_until(&self, state: &str) -> Value {
        wait_for(&format!("{state}, and it is {}", self.status()), || {
            let status = self.status();
            (status["upstream"]["state"] == state).then_some(status)
        })
    }

    /// Waits until the hub has stopped it with this code.
    pub fn wait_until_halted(&self, code: &str) -> Value {
        wait_for(&format!("halted by {code}, and it is {}", self.status()), || {
            let status = self.status();
            (status["upstream"]["state"] == "halted" && status["upstream"]["code"] == code).then_some(status)
        })
    }

    /// Waits until it has this many likes, all of them confirmed.
    pub fn wait_for_count(&self, count: u64) {
        wait_for(&format!("{count} likes; it has {}", self.status()), || {
            let status = self.status();
            (status["count"] == count && status["pending"] == 0).then_some(())
        });
    }

    /// Whether it has no store yet.
    pub fn export_is_empty(&self) -> bool {
        !self.data.join("stores/likes").exists()
    }

    /// The events of its log in order, as it exports them.
    pub fn export(&self) -> Vec<Value> {
        let text = self.run(&["export"]);
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub fn verify(&self) {
        self.run(&["verify"]);
    }

    /// How much memory it uses, in bytes.
    pub fn memory(&self) -> u64 {
        self.in_status("VmRSS:")
    }

    fn in_status(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("its memory");
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1_024
    }

    /// Starts a new measurement of its peak memory.
    pub fn forget_peak(&self) {
        fs::write(format!("/proc/{}/clear_refs", self.pid()), "5").unwrap();
    }

    /// Its peak memory since then, in bytes.
    pub fn peak(&self) -> u64 {
        self.in_status("VmHWM:")
    }

    /// How many bytes it has written so far, anywhere.
    pub fn written(&self) -> u64 {
        let io = fs::read_to_string(format!("/proc/{}/io", self.pid())).unwrap();
        let line = io.lines().find_map(|line| line.strip_prefix("wchar: ")).expect("what it wrote");
        line.parse().unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let start = log.len().saturating_sub(8_000);
            eprintln!("---- log of {}:\n{}", self.flags.join(" "), log.get(start..).unwrap_or(&log));
        }
    }
}

/// A hub behind a proxy whose address stays the same when the hub restarts.
pub fn hub_behind_proxy() -> (Node, Proxy) {
    let hub = Node::hub();
    let proxy = Proxy::start();
    proxy.point_to(hub.url());
    (hub, proxy)
}

/// Waits until all have this many likes and nothing to push, and are equal down to the digests.
pub fn wait_until_level(nodes: &[&Node], count: u64) {
    let seen = || nodes.iter().map(|node| node.status()).collect::<Vec<_>>();
    let key = |status: &Value| {
        ["log", "head", "schema", "log_digest", "state_digest", "digest_seq"].map(|name| status[name].clone())
    };
    wait_for(&format!("{count} likes everywhere: {:?}", seen()), || {
        let seen = seen();
        let is_level = |status: &Value| {
            status["count"] == count && status["pending"] == 0 && status["head"] == status["digest_seq"]
        };
        (seen.iter().all(is_level) && seen.iter().all(|status| key(status) == key(&seen[0]))).then_some(())
    });
}

/// Lines for an import: new likes.
pub fn likes(count: usize) -> String {
    let mut lines = String::new();
    for _ in 0..count {
        writeln!(lines, r#"{{"id":"{}","name":"LikeAdded"}}"#, new_id()).unwrap();
    }
    lines
}

pub fn new_id() -> String {
    uuid::Uuid::now_v7().to_string()
}

/// A like as it appears in a push.
pub fn like() -> Value {
    json!({ "id": new_id(), "name": "LikeAdded" })
}

fn succeeded(output: Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Copies a directory.
pub fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_all(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder();
    let config = config.http_status_as_error(false).max_redirects(0).timeout_global(Some(PATIENCE)).proxy(None);
    config.build().new_agent()
}

fn answer(answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> (u16, String) {
    let mut answer = answer.expect("an answer");
    (answer.status().as_u16(), answer.body_mut().with_config().limit(64 << 20).read_to_string().expect("a text"))
}

pub fn get(url: &str) -> (u16, String) {
    answer(agent().get(url).call())
}

pub fn post(url: &str, kind: &str, body: &str) -> (u16, String) {
    answer(agent().post(url).header("content-type", kind).send(body))
}

/// The live stream of a page that is open on `node` until this is dropped.
pub fn open_page(node: &Node) -> TcpStream {
    let address = node.url().trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).expect("a connection");
    write!(stream, "GET /live HTTP/1.1\r\nHost: {address}\r\n\r\n").expect("a request");
    let mut first = [0; 1];
    stream.read_exact(&mut first).expect("the beginning of the stream");
    stream
}

/// A client of a hub that speaks its protocol by hand.
pub struct Wire {
    address: String,
    authorization: String,
}

impl Wire {
    /// With a new token for `name` that the hub knows.
    pub fn new(hub: &Node, name: &str) -> Self {
        Self::with_token(hub, &hub.token(name))
    }

    pub fn with_token(hub: &Node, token: &str) -> Self {
        let address = hub.url().trim_start_matches("http://").to_owned();
        Self { address, authorization: format!("Authorization: Bearer {token}\r\n") }
    }

    /// The same device at another address.
    pub fn at(&self, hub: &Node) -> Self {
        let address = hub.url().trim_start_matches("http://").to_owned();
        Self { address, authorization: self.authorization.clone() }
    }

    /// Pushes this body.
    pub fn push_raw(&self, body: &Value) -> (u16, Value) {
        let (status, _, body) = self.push_text(&body.to_string());
        (status, serde_json::from_str(&body).unwrap())
    }

    /// Pushes events within `run`.
    pub fn push(&self, log: &Value, run: &Value, events: &[Value]) -> (u16, Value) {
        self.push_raw(&json!({ "log": log, "run": run, "events": events }))
    }

    /// Status, head and body of the answer to a push.
    pub fn push_text(&self, body: &str) -> (u16, String, String) {
        let authorization = &self.authorization;
        exchange(
            &self.address,
            &format!(
                "POST /sync/v1/likes/events HTTP/1.1\r\nHost: {}\r\n{authorization}Connection: close\r\n\
                 Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                self.address,
                body.len()
            ),
        )
    }

    /// Starts a pull with these parameters.
    pub fn pull(&self, parameters: &str) -> Result<Pull, (u16, Value)> {
        let stream = TcpStream::connect(&self.address).unwrap();
        self.pull_over(stream, parameters)
    }

    /// Starts a pull on a connection.
    pub fn pull_over(&self, mut stream: TcpStream, parameters: &str) -> Result<Pull, (u16, Value)> {
        let Self { address, authorization } = self;
        write!(
            stream,
            "GET /sync/v1/likes/events?{parameters} HTTP/1.1\r\nHost: {address}\r\n{authorization}\
             Accept: text/event-stream\r\n\r\n"
        )
        .unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(reader.read_line(&mut head).unwrap(), 0, "an answer; it was {head:?}");
        }
        let status = head[9..12].parse().unwrap();
        if status != 200 {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse().unwrap();
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            return Err((status, serde_json::from_slice(&body).unwrap()));
        }
        Ok(Pull { head, body: Chunks { reader, left: 0 }, text: Vec::new(), searched: 0 })
    }

    /// The `hello` of a pull from the beginning.
    pub fn hello(&self) -> Value {
        let mut pull = self.pull("after=0").unwrap();
        let (event, hello) = pull.next().unwrap();
        assert_eq!(event, "hello");
        hello
    }
}

/// Sends a request and reads what comes back until the end: status, head and body.
pub fn exchange(address: &str, request: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // A server that refuses a body doesn't wait for its end.
    drop(stream.write_all(request.as_bytes()));
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer));
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    (head[9..12].parse().unwrap(), head.to_owned(), body.to_owned())
}

/// A pull stream, read event by event.
pub struct Pull {
    pub head: String,
    body: Chunks,
    text: Vec<u8>,
    /// How much of the text was already searched for the end of an event.
    searched: usize,
}

impl Pull {
    /// The bytes of the next event, or nothing at the end.
    pub fn next_bytes(&mut self) -> Option<String> {
        loop {
            let unsearched = &self.text[self.searched..];
            if let Some(end) = unsearched.windows(2).position(|window| window == b"\n\n") {
                let event = self.text.drain(..self.searched + end + 2).collect();
                self.searched = 0;
                return Some(String::from_utf8(event).unwrap());
            }
            self.searched = self.text.len().saturating_sub(1);
            let mut buffer = [0; 65_536];
            match self.body.read(&mut buffer) {
                Ok(0) | Err(_) => return None,
                Ok(length) => self.text.extend_from_slice(&buffer[..length]),
            }
        }
    }

    /// The next event and its data, or nothing at the end.
    pub fn next(&mut self) -> Option<(String, Value)> {
        let text = self.next_bytes()?;
        let (event, data) = text.trim_end().split_once('\n').expect("two lines");
        let event = event.strip_prefix("event: ").expect("an event").to_owned();
        Some((event, serde_json::from_str(data.strip_prefix("data: ").expect("its data")).unwrap()))
    }

    /// The next page.
    pub fn page(&mut self) -> Value {
        loop {
            match self.next().expect("the stream goes on") {
                (event, data) if event == "page" => return data,
                _ => {}
            }
        }
    }

    /// Reads one byte, and no more.
    pub fn sip(&mut self) {
        let mut byte = [0];
        if let Ok(1) = self.body.read(&mut byte) {
            self.text.push(byte[0]);
        }
    }
}

/// A chunked body.
struct Chunks {
    reader: BufReader<TcpStream>,
    left: usize,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.left == 0 {
            let mut line = String::new();
            while line.trim().is_empty() {
                line.clear();
                if self.reader.read_line(&mut line)? == 0 {
                    return Ok(0);
                }
            }
            self.left = usize::from_str_radix(line.trim(), 16).map_err(std::io::Error::other)?;
        }
        let most = buffer.len().min(self.left);
        let length = self.reader.read(&mut buffer[..most])?;
        self.left -= length;
        Ok(length)
    }
}
