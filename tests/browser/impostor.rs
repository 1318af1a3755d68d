//! Somebody else answers in the server's place: a network's login page, or a proxy.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crate::chromium::Browser;
use crate::common::{Server, data_dir, wait_for};
use crate::likewise::stored;
use crate::offline::start_again;
use crate::stage::read;

#[test]
fn trust_56_an_answer_of_somebody_else_is_neither_stored_nor_refused() {
    let data = data_dir();
    let server = Server::start(data.path());
    let (port, url) = (server.port(), server.url.clone());
    let browser = Browser::launch();
    browser.network_may_fail();
    let tab = browser.open(&url);
    tab.until_live();
    server.kill();

    let impostor = Impostor::start(
        port,
        &[
            "302 Found\r\nLocation: /login",
            "200 OK\r\nContent-Type: text/html",
            "204 No Content",
            "403 Forbidden\r\nContent-Type: text/html",
            "403 Forbidden\r\nContent-Type: application/problem+json",
        ],
    );
    tab.like();
    let posted = impostor.end();
    assert_eq!(tab.eval("document.documentElement.dataset.unsent"), "1");
    assert_eq!(tab.count(), 1);

    let server = start_again(data.path(), port);
    tab.until_sent();
    tab.until_live();
    tab.until_count(1);
    let ids = stored(data.path(), "likes");
    assert_eq!(ids.len(), 1);
    assert!(posted.iter().all(|form| *form == format!("id={}", ids[0])), "{posted:?} but stored {ids:?}");
    assert_eq!(server.clicks("stored"), 1);
}

/// A captive portal or a proxy in the server's place, which gives each post the next of its answers.
struct Impostor {
    posted: Arc<Mutex<Vec<String>>>,
    answers: usize,
    port: u16,
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Impostor {
    fn start(port: u16, answers: &'static [&'static str]) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("the server's port");
        let posted = Arc::<Mutex<Vec<String>>>::default();
        let is_over = Arc::<AtomicBool>::default();
        let (seen, end) = (posted.clone(), is_over.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().take_while(|_| !end.load(Ordering::Relaxed)) {
                let mut stream = stream.expect("a connection");
                // It hangs up on any other request.
                let Some((method, _, form)) = read(&stream) else { continue };
                if method != "POST" {
                    continue;
                }
                let mut seen = seen.lock().expect("BUG: a test panicked while it looked");
                let answer = answers[seen.len().min(answers.len() - 1)];
                let _ = write!(stream, "HTTP/1.1 {answer}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                seen.push(form);
            }
        });
        Self { posted, answers: answers.len(), port, is_over, thread }
    }

    /// Waits until it has given all of its answers, ends it, and returns what was posted.
    fn end(self) -> Vec<String> {
        let posts = || self.posted.lock().expect("BUG: the impostor panicked").clone();
        let posted = wait_for("every answer to be given", || Some(posts()).filter(|it| it.len() >= self.answers));
        self.is_over.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(("127.0.0.1", self.port)));
        self.thread.join().expect("it ends");
        posted
    }
}
