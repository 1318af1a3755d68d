//! People who like, each at one page, and what they were told.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::common::PATIENCE;
use crate::support::new_id;

/// Somebody at the page of one instance, who likes again and again until told to stop. A like that isn't answered is
/// repeated under the same id, as the page's script does.
pub struct Person {
    page: Arc<Mutex<Option<String>>>,
    is_done: Arc<AtomicBool>,
    thread: Option<JoinHandle<BTreeSet<String>>>,
}

impl Person {
    /// Likes at `url`, with a pause after each like.
    pub fn start(url: &str, pause: Duration) -> Self {
        let page = Arc::new(Mutex::new(Some(url.to_owned())));
        let is_done = Arc::new(AtomicBool::new(false));
        let (at, ends) = (Arc::clone(&page), Arc::clone(&is_done));
        let thread = thread::spawn(move || {
            let config = ureq::Agent::config_builder().http_status_as_error(false).max_redirects(0).proxy(None);
            let agent = config.timeout_global(Some(Duration::from_secs(5))).build().new_agent();
            let mut liked = BTreeSet::new();
            while !ends.load(Ordering::SeqCst) {
                let id = new_id();
                let began = Instant::now();
                loop {
                    let page = at.lock().unwrap().clone();
                    if page.as_ref().is_some_and(|url| is_taken(&agent, url, &id)) {
                        break;
                    }
                    // Nobody is ever going to take it.
                    if page.is_none() && ends.load(Ordering::SeqCst) {
                        return liked;
                    }
                    assert!(began.elapsed() < 2 * PATIENCE, "nobody at {page:?} takes the like {id}");
                    thread::sleep(Duration::from_millis(100));
                }
                assert!(liked.insert(id), "ids are unique");
                thread::sleep(pause);
            }
            liked
        });
        Self { page, is_done, thread: Some(thread) }
    }

    /// Goes to the page at `url`, where the same instance is now.
    pub fn go_to(&self, url: &str) {
        *self.page.lock().unwrap() = Some(url.to_owned());
    }

    /// Keeps the present like until [`go_to`](Self::go_to) says where. The port of an instance that ended may be another
    /// test's soon.
    pub fn wait(&self) {
        *self.page.lock().unwrap() = None;
    }

    /// Stops after the present like. [`liked`](Self::liked) waits for that.
    pub fn stop(&self) {
        self.is_done.store(true, Ordering::SeqCst);
    }

    /// The ids of all likes, each of which was acknowledged.
    pub fn liked(mut self) -> BTreeSet<String> {
        self.stop();
        self.thread.take().expect("it is asked once").join().expect("all likes were taken")
    }
}

/// Whoever goes away doesn't repeat a like that nobody took: a stranger might take it.
impl Drop for Person {
    fn drop(&mut self) {
        self.stop();
        self.wait();
    }
}

fn is_taken(agent: &ureq::Agent, url: &str, id: &str) -> bool {
    let form = agent.post(format!("{url}/likes")).content_type("application/x-www-form-urlencoded");
    form.send(format!("id={id}")).is_ok_and(|answer| answer.status() == 303)
}
