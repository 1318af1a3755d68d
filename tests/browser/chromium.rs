//! A real Chromium without a window, driven over the DevTools protocol.
//!
//! The protocol is JSON objects that end with a zero byte. It goes through a pipe, not a web socket. So the browser ends with the
//! test, however that ends, and no port is needed. That is simple enough to implement here. A client library would bring
//! generated code for the whole protocol, or a second program to install.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Instant;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{PATIENCE, wait_for};

/// How many browsers run at once. Each has a handful of processes, and shares the machine with the programs under test.
const AT_ONCE: usize = 2;

const FLAGS: [&str; 13] = [
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox", // it can't have one as root, and sees only our own pages
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--window-size=1000,800",
    "--host-resolver-rules=MAP *.example 127.0.0.1, MAP likes.example.org 127.0.0.1",
    // The certificates of the tests are their own.
    "--ignore-certificate-errors",
];

/// A browser with its own profile. When it goes out of scope, it must not have complained about anything.
pub(crate) struct Browser {
    process: Child,
    wire: Wire,
    expected: Mutex<Vec<&'static str>>,
    profile: Arc<TempDir>,
    _turn: Turn,
}

impl Browser {
    /// Starts one, when it is this test's turn.
    pub(crate) fn launch() -> Self {
        Self::launch_trusting(&[])
    }

    /// Starts one in which these sites have what others have only over TLS.
    pub(crate) fn launch_trusting(sites: &[&str]) -> Self {
        Self::with(Arc::new(tempfile::tempdir().expect("a directory for the browser's profile")), sites)
    }

    /// Ends it, and starts it again with all that it has kept.
    pub(crate) fn again(self) -> Self {
        let profile = Arc::clone(&self.profile);
        drop(self);
        Self::with(profile, &[])
    }

    fn with(profile: Arc<TempDir>, sites: &[&str]) -> Self {
        let turn = Turn::take();
        let log = profile.path().join("stderr");
        let log = std::fs::File::create(log).expect("a file for what the browser says");
        // The browser reads file descriptor 3 and writes 4.
        let mut process = Command::new("sh")
            .args(["-c", "exec \"$@\" 3<&0 4>&1 </dev/null >/dev/null", "sh", program()])
            .args(FLAGS)
            .arg(format!("--unsafely-treat-insecure-origin-as-secure={}", sites.join(",")))
            .arg(format!("--user-data-dir={}", profile.path().join("profile").display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("a shell");
        let requests = process.stdin.take().expect("its end of the pipe");
        let answers = process.stdout.take().expect("its end of the pipe");
        let browser =
            Self { process, wire: Wire::new(requests, answers), expected: Mutex::default(), profile, _turn: turn };
        let workers = json!([{ "type": "shared_worker" }, { "type": "service_worker" }]);
        browser.wire.call(
            None,
            "Target.setAutoAttach",
            json!({ "autoAttach": true, "waitForDebuggerOnStart": false, "flatten": true, "filter": workers }),
        );
        browser
    }

    /// A new tab in front of the others, which shows `url`.
    pub(crate) fn open(&self, url: &str) -> Tab<'_> {
        let tab = self.blank();
        tab.go(url);
        tab
    }

    /// A new empty tab in front of the others.
    pub(crate) fn blank(&self) -> Tab<'_> {
        self.create(false)
    }

    /// A new empty tab in a window of its own, beside the others.
    pub(crate) fn window(&self) -> Tab<'_> {
        self.create(true)
    }

    fn create(&self, window: bool) -> Tab<'_> {
        let new = json!({ "url": "about:blank", "newWindow": window });
        let target = self.wire.call(None, "Target.createTarget", new);
        let target = text(&target["targetId"]);
        let attach = json!({ "targetId": target, "flatten": true });
        let session = text(&self.wire.call(None, "Target.attachToTarget", attach)["sessionId"]);
        let tab = Tab { browser: self, target, session };
        for domain in ["Page", "Runtime", "Log"] {
            tab.call(&format!("{domain}.enable"), json!({}));
        }
        tab
    }

    /// Evaluates JavaScript in every shared worker.
    pub(crate) fn in_workers(&self, script: &str) {
        let attached = |event: &Value| {
            let is_worker = event["params"]["targetInfo"]["type"] == "shared_worker";
            (event["method"] == "Target.attachedToTarget" && is_worker).then(|| text(&event["params"]["sessionId"]))
        };
        let sessions: Vec<String> = self.wire.heard().events.iter().filter_map(attached).collect();
        for session in sessions {
            // The worker may have ended already, or this may end it before it answers.
            drop(self.wire.send(Some(&session), "Runtime.evaluate", json!({ "expression": script })));
        }
    }

    /// The test stops the server, or is refused, so the browser may say that a request failed.
    pub(crate) fn network_may_fail(&self) {
        self.may_complain(r#""source":"network""#);
    }

    /// The browser may complain in these words.
    pub(crate) fn may_complain(&self, words: &'static str) {
        self.expected.lock().expect("BUG: somebody panicked while it had this").push(words);
    }

    /// Errors and warnings of all tabs and workers: uncaught exceptions, the console, the content security policy.
    fn complaints(&self) -> Vec<String> {
        let expected = self.expected.lock().expect("BUG: somebody panicked while it had this");
        let heard = self.wire.heard();
        let of_event = |event: &Value| {
            let params = &event["params"];
            let entry = &params["entry"];
            match event["method"].as_str()? {
                "Runtime.exceptionThrown" => Some(params["exceptionDetails"].to_string()),
                "Runtime.consoleAPICalled" if params["type"] != "log" => Some(params.to_string()),
                "Log.entryAdded" if entry["level"] != "verbose" => Some(entry.to_string()),
                _ => None,
            }
        };
        let complaints = heard.events.iter().filter_map(of_event);
        complaints.filter(|complaint| !expected.iter().any(|words| complaint.contains(words))).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let complaints = self.complaints();
        self.wire.hang_up();
        drop(self.process.wait());
        if !std::thread::panicking() {
            assert!(complaints.is_empty(), "the browser complained: {complaints:#?}");
        }
    }
}

/// One tab of a [`Browser`]. It stays open when this goes out of scope.
pub(crate) struct Tab<'a> {
    browser: &'a Browser,
    target: String,
    session: String,
}

impl Tab<'_> {
    /// Sends one command of the DevTools protocol to this tab.
    pub(crate) fn call(&self, method: &str, params: Value) -> Value {
        self.browser.wire.call(Some(&self.session), method, params)
    }

    /// The contents of the last event of this name from this tab.
    pub(crate) fn event(&self, method: &str) -> Option<Value> {
        let heard = self.browser.wire.heard();
        let mine = |event: &&Value| event["sessionId"] == self.session.as_str() && event["method"] == method;
        heard.events.iter().rev().find(mine).map(|event| event["params"].clone())
    }

    /// Goes to an address and waits until the page there is complete, even if it is the browser's own error page.
    pub(crate) fn go(&self, url: &str) {
        self.call("Page.navigate", json!({ "url": url }));
        self.until("document.readyState === 'complete'");
    }

    /// Does `act`, which leads to another page, and waits until that page is complete.
    pub(crate) fn leave_by(&self, act: impl FnOnce(&Self)) {
        self.eval("window.leaving = true");
        act(self);
        self.until("!window.leaving && document.readyState === 'complete'");
    }

    /// Goes back in the history, and waits until the earlier page appears.
    pub(crate) fn back(&self) {
        let history = self.history().expect("a history");
        let here = history["currentIndex"].as_u64().expect("a place in the history");
        let before = usize::try_from(here).ok().and_then(|here| here.checked_sub(1)).expect("a page before");
        self.call("Page.navigateToHistoryEntry", json!({ "entryId": history["entries"][before]["id"] }));
        wait_for("the page before", || {
            let history = self.history().ok()?;
            (history["currentIndex"] == before).then_some(())
        });
        self.until("document.readyState === 'complete'");
    }

    fn history(&self) -> Result<Value, String> {
        self.browser.wire.try_call(Some(&self.session), "Page.getNavigationHistory", json!({}))
    }

    /// Evaluates JavaScript, even where pages may run none. Returns the value, or what the promise resolves to.
    pub(crate) fn eval(&self, script: &str) -> Value {
        self.try_eval(script).unwrap_or_else(|error| panic!("{script}: {error}"))
    }

    fn try_eval(&self, script: &str) -> Result<Value, String> {
        let params = json!({ "expression": script, "returnByValue": true, "awaitPromise": true });
        let answer = self.browser.wire.try_call(Some(&self.session), "Runtime.evaluate", params)?;
        match answer.get("exceptionDetails") {
            None => Ok(answer["result"]["value"].clone()),
            Some(exception) => Err(exception["exception"]["description"].to_string()),
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
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    /// Brings this tab to the front, where it gets keys and clicks.
    pub(crate) fn to_front(&self) {
        self.call("Page.bringToFront", json!({}));
        self.until("!document.hidden");
    }

    pub(crate) fn close(self) {
        self.browser.wire.call(None, "Target.closeTarget", json!({ "targetId": self.target }));
        wait_for("the tab to be closed", || {
            let targets = self.browser.wire.call(None, "Target.getTargets", json!({}));
            let targets = targets["targetInfos"].as_array().expect("a list").clone();
            targets.iter().all(|target| target["targetId"] != self.target.as_str()).then_some(())
        });
    }

    /// Presses and releases the mouse in the middle of an element.
    pub(crate) fn click(&self, selector: &str) {
        let [x, y, width, height] = self.place(selector);
        for kind in ["mousePressed", "mouseReleased"] {
            let (x, y) = (x + width / 2.0, y + height / 2.0);
            let click = json!({ "type": kind, "x": x, "y": y, "button": "left", "clickCount": 1 });
            self.call("Input.dispatchMouseEvent", click);
        }
    }

    /// Types into a field, replacing its text.
    pub(crate) fn type_into(&self, selector: &str, text: &str) {
        self.eval(&format!(
            "document.querySelector('{selector}').focus(); document.querySelector('{selector}').select()"
        ));
        self.call("Input.insertText", json!({ "text": text }));
    }

    /// Presses and releases a key.
    pub(crate) fn press(&self, key: &Key) {
        self.hold(key, 0);
    }

    /// Holds a key down until it has repeated this often.
    pub(crate) fn hold(&self, key: &Key, repeats: usize) {
        let (name, code, text) = *key;
        let event = |kind: &str| json!({ "type": kind, "key": if text == " " { " " } else { name }, "code": name, "windowsVirtualKeyCode": code });
        let mut down = event("keyDown");
        down["text"] = text.into();
        for repeat in 0..=repeats {
            down["autoRepeat"] = (repeat > 0).into();
            self.call("Input.dispatchKeyEvent", down.clone());
        }
        self.call("Input.dispatchKeyEvent", event("keyUp"));
    }

    /// Left, top, width and height of an element, in CSS pixels.
    pub(crate) fn place(&self, selector: &str) -> [f64; 4] {
        let place = self.eval(&format!(
            "(() => {{ const box = document.querySelector('{selector}').getBoundingClientRect();
                       return [box.x, box.y, box.width, box.height]; }})()"
        ));
        serde_json::from_value(place).expect("four numbers")
    }

    pub(crate) fn text(&self, selector: &str) -> String {
        text(&self.eval(&format!("document.querySelector('{selector}').textContent.trim()")))
    }

    pub(crate) fn is_visible(&self, selector: &str) -> bool {
        let visible = format!("document.querySelector('{selector}').checkVisibility({{ visibilityProperty: true }})");
        self.eval(&visible) == true
    }

    /// How the page is shown: width and height in CSS pixels, and whether in dark colours.
    pub(crate) fn shown_as(&self, width: u32, height: u32, dark: bool) {
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500 });
        self.call("Emulation.setDeviceMetricsOverride", metrics);
        self.prefers("prefers-color-scheme", if dark { "dark" } else { "light" });
    }

    /// Sets the language of the user, in pages from now on.
    pub(crate) fn speaks(&self, language: &str) {
        let agent = self.eval("navigator.userAgent");
        let agent = json!({ "userAgent": agent, "acceptLanguage": language });
        self.call("Emulation.setUserAgentOverride", agent);
    }

    /// Sets a preference of the user, as media queries see it, and takes back those set before.
    pub(crate) fn prefers(&self, name: &str, value: &str) {
        self.prefers_all(&[(name, value)]);
    }

    /// Sets several preferences of the user.
    pub(crate) fn prefers_all(&self, features: &[(&str, &str)]) {
        let features: Vec<_> = features.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
        self.call("Emulation.setEmulatedMedia", json!({ "features": features }));
    }

    /// Stops this tab's pages from running JavaScript from now on.
    pub(crate) fn without_scripts(&self) {
        self.call("Emulation.setScriptExecutionDisabled", json!({ "value": true }));
    }

    pub(crate) fn with_scripts(&self) {
        self.call("Emulation.setScriptExecutionDisabled", json!({ "value": false }));
    }

    /// What the page looks like, as a PNG.
    pub(crate) fn screenshot(&self) -> Vec<u8> {
        from_base64(&self.picture(json!({})))
    }

    /// What this part of the page looks like: left, top, width and height. As a PNG in base64.
    pub(crate) fn picture_of(&self, [x, y, width, height]: [f64; 4]) -> String {
        self.picture(json!({ "clip": { "x": x, "y": y, "width": width, "height": height, "scale": 1 } }))
    }

    fn picture(&self, mut params: Value) -> String {
        params["format"] = "png".into();
        text(&self.call("Page.captureScreenshot", params)["data"])
    }

    /// How much of two pictures of the same size is plainly different, from 0 to 1.
    pub(crate) fn difference(&self, before: &str, after: &str) -> f64 {
        let difference = self.eval(&format!(
            "(async () => {{
               const pixels = async (base64) => {{
                 const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
                 const picture = await createImageBitmap(new Blob([bytes]));
                 const canvas = new OffscreenCanvas(picture.width, picture.height).getContext('2d');
                 canvas.drawImage(picture, 0, 0);
                 return canvas.getImageData(0, 0, picture.width, picture.height).data;
               }};
               const [before, after] = await Promise.all(['{before}', '{after}'].map(pixels));
               let different = 0;
               for (let pixel = 0; pixel < before.length; pixel += 4) {{
                 const far = (part) => Math.abs(before[pixel + part] - after[pixel + part]) > 32;
                 if (far(0) || far(1) || far(2)) different += 1;
               }}
               return different / (before.length / 4);
             }})()"
        ));
        difference.as_f64().expect("a number")
    }
}

/// The name of a key, its Windows code, and the text that it types.
pub(crate) type Key = (&'static str, u32, &'static str);
pub(crate) const TAB: Key = ("Tab", 9, "");
pub(crate) const ENTER: Key = ("Enter", 13, "\r");
pub(crate) const ESCAPE: Key = ("Escape", 27, "");
pub(crate) const SPACE: Key = ("Space", 32, " ");

/// The conversation with the browser.
#[derive(Clone)]
struct Wire(Arc<WireEnds>);

struct WireEnds {
    requests: Mutex<Option<ChildStdin>>,
    last_id: AtomicU64,
    heard: Mutex<Heard>,
    news: Condvar,
}

#[derive(Default)]
struct Heard {
    answers: HashMap<u64, Value>,
    events: Vec<Value>,
    is_over: bool,
}

impl Wire {
    fn new(requests: ChildStdin, answers: ChildStdout) -> Self {
        let wire = Self(Arc::new(WireEnds {
            requests: Mutex::new(Some(requests)),
            last_id: AtomicU64::new(0),
            heard: Mutex::default(),
            news: Condvar::new(),
        }));
        let listener = wire.clone();
        std::thread::spawn(move || listener.listen(answers));
        wire
    }

    fn call(&self, session: Option<&str>, method: &str, params: Value) -> Value {
        self.try_call(session, method, params).unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    fn try_call(&self, session: Option<&str>, method: &str, params: Value) -> Result<Value, String> {
        let id = self.send(session, method, params)?;
        let waiting = |heard: &mut Heard| !heard.is_over && !heard.answers.contains_key(&id);
        let waited = self.0.news.wait_timeout_while(self.heard(), PATIENCE, waiting);
        let (mut heard, _) = waited.expect("BUG: somebody panicked while it had this");
        match heard.answers.remove(&id) {
            Some(mut answer) if answer.get("error").is_none() => Ok(answer["result"].take()),
            Some(answer) => Err(answer["error"].to_string()),
            None if heard.is_over => Err("the browser has ended".to_owned()),
            None => Err(format!("no answer within {PATIENCE:?}")),
        }
    }

    fn send(&self, session: Option<&str>, method: &str, params: Value) -> Result<u64, String> {
        let id = self.0.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let mut request = json!({ "id": id, "method": method, "params": params });
        if let Some(session) = session {
            request["sessionId"] = session.into();
        }
        let mut requests = self.0.requests.lock().expect("BUG: somebody panicked while it had this");
        let pipe = requests.as_mut().ok_or("the browser has ended")?;
        pipe.write_all(format!("{request}\0").as_bytes()).map_err(|error| format!("the browser has ended: {error}"))?;
        Ok(id)
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.0.heard.lock().expect("BUG: somebody panicked while it had this")
    }

    /// Reads what the browser says, until it ends.
    fn listen(&self, answers: ChildStdout) {
        let mut messages = BufReader::new(answers).split(0);
        while let Some(Ok(message)) = messages.next() {
            let message: Value = serde_json::from_slice(&message).expect("JSON from the browser");
            if message["method"] == "Target.attachedToTarget" && message["params"]["targetInfo"]["type"] != "page" {
                self.listen_to_worker(&text(&message["params"]["sessionId"]));
            }
            match message["id"].as_u64() {
                Some(id) => drop(self.heard().answers.insert(id, message)),
                None => self.heard().events.push(message),
            }
            self.0.news.notify_all();
        }
        self.heard().is_over = true;
        self.0.news.notify_all();
    }

    fn listen_to_worker(&self, session: &str) {
        for domain in ["Runtime", "Log"] {
            // If it has ended already, it has nothing more to say.
            drop(self.send(Some(session), &format!("{domain}.enable"), json!({})));
        }
    }

    /// The browser ends when nobody can ask it anything more.
    fn hang_up(&self) {
        drop(self.0.requests.lock().expect("BUG: somebody panicked while it had this").take());
    }
}

/// The right to run a browser.
pub(crate) struct Turn;

static RUNNING: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();

impl Turn {
    pub(crate) fn take() -> Self {
        let running = RUNNING.lock().expect("BUG: a turn was never given back");
        let mut running =
            ENDED.wait_while(running, |running| *running >= AT_ONCE).expect("BUG: a turn was never given back");
        *running += 1;
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *RUNNING.lock().expect("BUG: a turn was never given back") -= 1;
        ENDED.notify_one();
    }
}

/// The Chromium of this machine.
fn program() -> &'static str {
    let path = std::env::var_os("PATH").unwrap_or_default();
    ["chromium", "chromium-browser", "google-chrome"]
        .into_iter()
        .find(|name| std::env::split_paths(&path).any(|directory| directory.join(name).exists()))
        .expect(
            "these tests need Chromium: get it with `apt-get install chromium`, or run ./tests/all, which does that",
        )
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("not a text: {value}")).to_owned()
}

fn from_base64(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut buffer) = (0, 0_u32);
    for letter in text.bytes().take_while(|&letter| letter != b'=') {
        let value = ALPHABET.iter().position(|&known| known == letter).expect("base64");
        buffer = buffer << 6 | u32::try_from(value).expect("six bits");
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from(buffer >> bits & 0xff).expect("eight bits"));
        }
    }
    bytes
}
