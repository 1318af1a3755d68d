//! A server for tests of what the real one never does on purpose. It serves one page with the script from `static/`, gives each
//! post the next of its answers, and says on the live stream what the test tells it to.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

/// The version in `/static/VERSION/`. Any will do.
const VERSION: &str = "stage";

pub(crate) struct Stage {
    /// Where it listens, such as `http://127.0.0.1:40123`.
    pub(crate) url: String,
    scene: Arc<Mutex<Scene>>,
}

#[derive(Default)]
struct Scene {
    page: String,
    /// The answers to the next posts, in order. Later posts are stored.
    answers: Vec<&'static str>,
    posted: Vec<String>,
    /// Whether posts are hung up on.
    is_down: bool,
    /// The requests for the live stream, and when they came.
    streams: Vec<(Instant, String)>,
    ends_at_once: bool,
    /// The streams that are open.
    open: Vec<TcpStream>,
    /// What every stream begins with.
    opening: String,
}

impl Stage {
    /// Serves a page with this body, whose forms are `forms`.
    pub(crate) fn start(forms: &str, body: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        let page = format!(
            "<!doctype html><html lang=en><head><meta charset=utf-8><title>Stage</title><link rel=icon href=data:,>\
             <script type=module src=/static/{VERSION}/likewise.js data-app=stage data-forms='{forms}' data-noun=to-do \
             data-nouns=to-dos></script></head><body>{body}<p data-message></p></body></html>"
        );
        let scene = Arc::new(Mutex::new(Scene { page, ..Scene::default() }));
        let shared = scene.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, scene) = (stream.expect("a connection"), shared.clone());
                std::thread::spawn(move || answer(stream, &scene));
            }
        });
        Self { url, scene }
    }

    fn scene(&self) -> MutexGuard<'_, Scene> {
        self.scene.lock().expect("BUG: the stage panicked")
    }

    /// Says this on every open stream, and first on each stream that is opened later.
    pub(crate) fn says(&self, events: &str) {
        let mut scene = self.scene();
        scene.opening = events.to_owned();
        scene.open.retain_mut(|stream| stream.write_all(events.as_bytes()).is_ok());
    }

    /// Says this only on the streams that are open now.
    pub(crate) fn mutters(&self, events: &str) {
        self.scene().open.retain_mut(|stream| stream.write_all(events.as_bytes()).is_ok());
    }

    /// Says nothing more on the open streams, and this first on those that are opened later.
    pub(crate) fn falls_silent(&self, opening: &str) {
        self.scene().opening = opening.to_owned();
    }

    /// Ends every stream as soon as it has said its opening.
    pub(crate) fn ends_streams_at_once(&self) {
        let mut scene = self.scene();
        scene.ends_at_once = true;
        scene.open.clear();
    }

    /// Sets whether to hang up on every post.
    pub(crate) fn is_down(&self, is_down: bool) {
        self.scene().is_down = is_down;
    }

    /// Answers the next posts with these: a status and headers, an empty line, and a body.
    pub(crate) fn answers(&self, answers: &[&'static str]) {
        self.scene().answers = answers.to_vec();
    }

    /// The path and body of each answered post so far, in order.
    pub(crate) fn posted(&self) -> Vec<String> {
        self.scene().posted.clone()
    }

    /// When each live stream was asked for and how, in order.
    pub(crate) fn streams(&self) -> Vec<(Instant, String)> {
        self.scene().streams.clone()
    }
}

/// A commit that changes these fragments, each a name and its HTML, as the live stream says it.
pub(crate) fn commit(fragments: &[(&str, &str)]) -> String {
    let mut events = String::new();
    for (name, html) in fragments {
        events += &format!("event: {}\ndata: {}\n\n", name.split(' ').next().unwrap_or_default(), fragment(name, html));
    }
    events + "event: done\ndata: ok\n\n"
}

/// A fragment in its wrapper. The name may be followed by a key.
pub(crate) fn fragment(name: &str, html: &str) -> String {
    match name.split_once(' ') {
        Some((name, key)) => {
            format!("<likewise-live class=\"live\" data-live=\"{name}\" data-key=\"{key}\">{html}</likewise-live>")
        }
        None => format!("<likewise-live class=\"live\" data-live=\"{name}\">{html}</likewise-live>"),
    }
}

/// Answers one request.
fn answer(mut stream: TcpStream, scene: &Mutex<Scene>) {
    let Some((method, path, body)) = read(&stream) else { return };
    let mut scene = scene.lock().expect("BUG: the stage panicked");
    let file = path.strip_prefix(&format!("/static/{VERSION}/"));
    if path == "/live" || path.starts_with("/live?") {
        scene.streams.push((Instant::now(), path));
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";
        let said = write!(stream, "{head}{}", scene.opening);
        if said.is_ok() && !scene.ends_at_once {
            scene.open.push(stream);
        }
    } else if method == "POST" {
        if scene.is_down {
            return;
        }
        let answer = if scene.answers.is_empty() { None } else { Some(scene.answers.remove(0)) };
        let id = form_urlencoded::parse(body.as_bytes()).find(|(name, _)| name == "id").map(|(_, id)| id.into_owned());
        scene.posted.push(format!("{path} {body}"));
        match answer {
            None => respond(&mut stream, &format!("204 No Content\r\nLikewise-Stored: {}", id.unwrap_or_default()), ""),
            Some(answer) => {
                let (head, body) = answer.split_once("\n\n").unwrap_or((answer, ""));
                respond(&mut stream, head, body);
            }
        }
    } else if let Some(file) = file {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("static");
        let text = std::fs::read_to_string(directory.join(file)).unwrap_or_else(|why| panic!("{file}: {why}"));
        respond(&mut stream, "200 OK\r\nContent-Type: text/javascript", &text);
    } else {
        respond(&mut stream, "200 OK\r\nContent-Type: text/html\r\nCache-Control: no-store", &scene.page.clone());
    }
}

fn respond(stream: &mut TcpStream, head: &str, body: &str) {
    // The browser may be gone already.
    drop(write!(stream, "HTTP/1.1 {head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len()));
}

/// Method, path and body of a request. Nothing if it isn't whole.
pub(crate) fn read(stream: &TcpStream) -> Option<(String, String, String)> {
    let mut lines = BufReader::new(stream);
    let mut line = String::new();
    lines.read_line(&mut line).ok()?;
    let (method, path) = line.split_once(' ')?;
    let (method, path) = (method.to_owned(), path.split(' ').next()?.to_owned());
    let mut length = 0;
    while line != "\r\n" {
        line.clear();
        lines.read_line(&mut line).ok().filter(|&bytes| bytes > 0)?;
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    lines.read_exact(&mut body).ok()?;
    Some((method, path, String::from_utf8(body).ok()?))
}
