//! A real Firefox without a window, driven over WebDriver BiDi, which is JSON over a web socket.
//!
//! It speaks that by itself, so no driver has to be installed. <https://w3c.github.io/webdriver-bidi/>

use std::collections::VecDeque;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use tungstenite::{Message, WebSocket};

use crate::chromium::Turn;
use crate::common::PATIENCE;

/// Names of sites that the tests serve on this machine, and what would otherwise ask the network.
const PREFERENCES: &str = r#"
user_pref("network.dns.localDomains", "likes.example.org,blog.example.org,shop.example.net,evil.example");
user_pref("browser.shell.checkDefaultBrowser", false);
user_pref("browser.startup.homepage", "about:blank");
user_pref("app.update.disabledForTesting", true);
user_pref("datareporting.policy.dataSubmissionEnabled", false);
user_pref("app.normandy.enabled", false);
user_pref("services.settings.server", "data:,#remote-settings-dummy/v1");
user_pref("browser.safebrowsing.malware.enabled", false);
user_pref("browser.safebrowsing.phishing.enabled", false);
user_pref("dom.push.connection.enabled", false);
user_pref("network.captive-portal-service.enabled", false);
user_pref("network.connectivity-service.enabled", false);
"#;

/// What Firefox writes beside the errors of scripts when a server is gone or refuses a page of another site.
const ABOUT_THE_NETWORK: [&str; 3] =
    ["Firefox can\u{2019}t establish a connection", "The connection to http", "Cross-Origin Request Blocked"];

/// A browser with its own profile. When it goes out of scope, no script may have failed in it.
pub(crate) struct Firefox {
    process: Child,
    wire: Mutex<Wire>,
    _profile: TempDir,
    _turn: Turn,
}

impl Firefox {
    /// Starts one, when it is this test's turn. It accepts the certificates that tests make.
    pub(crate) fn launch() -> Self {
        let turn = Turn::take();
        let profile = tempfile::tempdir().expect("a directory for the browser's profile");
        fs::write(profile.path().join("user.js"), PREFERENCES).expect("its preferences");
        let mut process = Command::new(program())
            .args([
                "--headless",
                "--no-remote",
                "--width=1000",
                "--height=800",
                "--remote-debugging-port=0",
                "--profile",
            ])
            .arg(profile.path())
            // As root, it wants a home that is root's.
            .env("HOME", profile.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut lines = BufReader::new(process.stderr.take().expect("its standard error")).lines();
        let address = lines.by_ref().map_while(Result::ok).find_map(|line| {
            let address = line.strip_prefix("WebDriver BiDi listening on ws://")?;
            Some(address.trim().to_owned())
        });
        // It must never wait for somebody to read what it says.
        std::thread::spawn(move || lines.for_each(drop));
        let mut wire = Wire::connect(&address.expect("a Firefox that can be driven"));
        let certificates = json!({ "capabilities": { "alwaysMatch": { "acceptInsecureCerts": true } } });
        wire.call("session.new", &certificates);
        wire.call("session.subscribe", &json!({ "events": ["log.entryAdded"] }));
        Self { process, wire: Mutex::new(wire), _profile: profile, _turn: turn }
    }

    /// A new tab in front of the others, which shows `url`.
    pub(crate) fn open(&self, url: &str) -> FirefoxTab<'_> {
        let context = self.call("browsingContext.create", json!({ "type": "tab" }))["context"].take();
        let tab = FirefoxTab { browser: self, context };
        tab.go(url);
        tab
    }

    fn call(&self, method: &str, params: Value) -> Value {
        self.wire.lock().expect("BUG: somebody panicked while it had this").call(method, &params)
    }
}

impl Drop for Firefox {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let wire = self.wire.lock();
        if let (Ok(wire), false) = (wire, std::thread::panicking()) {
            let is_of_a_script = |event: &&Value| {
                let text = event["params"]["text"].as_str().unwrap_or_default();
                event["params"]["type"] == "javascript"
                    && !ABOUT_THE_NETWORK.iter().any(|words| text.starts_with(words))
            };
            let uncaught: Vec<_> = wire.events.iter().filter(is_of_a_script).collect();
            assert!(uncaught.is_empty(), "scripts failed: {uncaught:#?}");
        }
    }
}

/// One tab of a [`Firefox`]. It stays open when this goes out of scope.
pub(crate) struct FirefoxTab<'a> {
    browser: &'a Firefox,
    context: Value,
}

impl FirefoxTab<'_> {
    fn call(&self, method: &str, mut params: Value) -> Value {
        params["context"] = self.context.clone();
        self.browser.call(method, params)
    }

    /// Goes to an address and waits until the page there is complete.
    pub(crate) fn go(&self, url: &str) {
        self.call("browsingContext.navigate", json!({ "url": url, "wait": "complete" }));
    }

    /// Evaluates JavaScript. Returns the value, or what the promise resolves to.
    pub(crate) fn eval(&self, script: &str) -> Value {
        self.try_eval(script).unwrap_or_else(|error| panic!("{script}: {error}"))
    }

    fn try_eval(&self, script: &str) -> Result<Value, String> {
        let expression = format!("Promise.resolve({script}).then((value) => JSON.stringify(value) ?? 'null')");
        let params = json!({ "expression": expression, "awaitPromise": true, "target": { "context": self.context } });
        let answer = self.browser.wire.lock().expect("BUG: somebody panicked").try_call("script.evaluate", &params)?;
        match answer["result"]["value"].as_str() {
            Some(json) => Ok(serde_json::from_str(json).expect("JSON")),
            None => Err(answer["exceptionDetails"]["text"].to_string()),
        }
    }

    /// Waits until this JavaScript returns true.
    pub(crate) fn until(&self, condition: &str) {
        let start = Instant::now();
        loop {
            // Between two pages, nothing can evaluate it.
            let now = self.try_eval(condition);
            if now == Ok(Value::Bool(true)) {
                return;
            }
            if start.elapsed() > PATIENCE {
                let page = self.try_eval("document.documentElement.outerHTML");
                panic!("waited {PATIENCE:?} for {condition}, got {now:?}; the page: {page:?}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Presses and releases the mouse in the middle of an element. `element` is JavaScript for it.
    pub(crate) fn click(&self, element: &str) {
        let place = self.eval(&format!(
            "(() => {{ const {{ x, y, width, height }} = {element}.getBoundingClientRect();
                       return [Math.round(x + width / 2), Math.round(y + height / 2)]; }})()"
        ));
        let moves = json!({ "type": "pointerMove", "x": place[0], "y": place[1] });
        let actions = json!([moves, { "type": "pointerDown", "button": 0 }, { "type": "pointerUp", "button": 0 }]);
        let mouse = json!({ "type": "pointer", "id": "mouse", "actions": actions });
        self.call("input.performActions", json!({ "actions": [mouse] }));
    }
}

/// The conversation with the browser.
struct Wire {
    socket: WebSocket<TcpStream>,
    last_id: u64,
    events: VecDeque<Value>,
}

impl Wire {
    fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let (socket, _) = tungstenite::client(format!("ws://{address}/session"), stream).expect("a web socket");
        Self { socket, last_id: 0, events: VecDeque::new() }
    }

    fn call(&mut self, method: &str, params: &Value) -> Value {
        self.try_call(method, params).unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    fn try_call(&mut self, method: &str, params: &Value) -> Result<Value, String> {
        self.last_id += 1;
        let request = json!({ "id": self.last_id, "method": method, "params": params });
        self.socket.send(Message::text(request.to_string())).map_err(|error| error.to_string())?;
        loop {
            let message = self.read().map_err(|error| error.to_string())?;
            if message["id"] != self.last_id {
                self.events.push_back(message);
                continue;
            }
            return match message["type"].as_str() {
                Some("success") => Ok(message["result"].clone()),
                _ => Err(message["message"].to_string()),
            };
        }
    }

    fn read(&mut self) -> io::Result<Value> {
        loop {
            let message = self.socket.read().map_err(io::Error::other)?;
            if let Message::Text(text) = message {
                return Ok(serde_json::from_str(&text).expect("JSON from the browser"));
            }
        }
    }
}

/// The Firefox of this machine.
fn program() -> &'static str {
    let path = std::env::var_os("PATH").unwrap_or_default();
    ["firefox-esr", "firefox"]
        .into_iter()
        .find(|name| std::env::split_paths(&path).any(|directory| directory.join(name).exists()))
        .expect(
            "these tests need Firefox: get it with `apt-get install firefox-esr`, or run ./tests/all, which does that",
        )
}
