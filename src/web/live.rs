//! The live stream: every change of the page's fragments, rendered and framed once, sent to every open page.

use std::collections::HashMap;
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use askama::Template;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior, interval_at, sleep};
use tokio_util::sync::CancellationToken;

use super::problem::Problem;
use super::status::StatusLine;
use super::{App, Full, Lease, Opened, Services, Who, base};
use crate::engine::{Error, Store, StoreId};
use crate::likes::count;
use crate::sync::LinkStatus;

/// How often a stream says that it is alive, so that both ends notice when the other is gone.
const COMMENT_EVERY: Duration = Duration::from_secs(15);

/// The shortest and the longest pause between two updates of a page.
const PAUSE: [Duration; 2] = [Duration::from_millis(16), Duration::from_millis(100)];

/// How many open pages make the pause its longest. To wake a page costs about as much as to store a like.
const CROWD: u32 = 1_000;

/// The fragment that holds the count.
#[derive(Template)]
#[template(path = "likes.html")]
struct LikesFragment {
    count: u64,
}

/// The fragment that says how the store is.
#[derive(Template)]
#[template(path = "status.html")]
struct StatusFragment {
    status: StatusLine,
}

/// What is on every open page of a store at present, each fragment as the frame that puts it there.
#[derive(Debug, Clone, Default)]
struct Frames {
    likes: Frame,
    status: Frame,
}

/// A framed fragment, and how many there were before it.
#[derive(Debug, Clone, Default)]
struct Frame {
    version: u64,
    bytes: Bytes,
}

impl Frame {
    fn set(&mut self, event: &str, html: &str) {
        let mut text = format!("event: {event}\n");
        // To an event stream a carriage return alone ends a line, too.
        for line in html.trim_end().split(['\r', '\n']) {
            text.push_str("data: ");
            text.push_str(line);
            text.push('\n');
        }
        text.push('\n');
        if self.bytes != text.as_bytes() {
            *self = Self { version: self.version + 1, bytes: text.into() };
        }
    }
}

/// The open pages, a store.
#[derive(Clone, Default)]
pub(crate) struct Pages {
    stores: Arc<Mutex<HashMap<StoreId, watch::Sender<Frames>>>>,
}

/// What is said when there are more pages, or more stores on pages, than there may be.
fn too_many() -> Problem {
    Problem::unavailable(
        "too-many-streams",
        "As many pages are open as this server can keep up to date.",
        "Close some of them. Likes are stored all the same; reload the page to see the present count.",
        5,
    )
}

impl Pages {
    /// The frames of `store`, kept up to date as long as somebody has them. The store has its place among those that pages
    /// keep open from whoever opens the first.
    fn subscribe(
        &self,
        app: &Services,
        store: &Store,
        link: watch::Receiver<LinkStatus>,
        who: &Who,
    ) -> Result<watch::Receiver<Frames>, Problem> {
        let mut stores = self.stores.lock().expect("BUG: subscribing panicked");
        if let Some(known) = stores.get(store.id()) {
            return Ok(known.subscribe());
        }
        let place = app.shares.held.lend(who, 0).and_then(|lease| Place::of(lease, store)).map_err(|_| too_many())?;
        let (frames, receiver) = watch::channel(Frames::default());
        stores.insert(store.id().clone(), frames.clone());
        tokio::spawn(self.clone().publish(store.clone(), link, frames, place));
        Ok(receiver)
    }

    /// Renders each change of `store` once, until nobody is there to see it.
    async fn publish(
        self,
        store: Store,
        mut link: watch::Receiver<LinkStatus>,
        frames: watch::Sender<Frames>,
        mut place: Place,
    ) {
        let mut likes = store.watch(count());
        let mut health = store.health();
        loop {
            // It may have got its first event just now.
            if place.take(&store).is_err() {
                break;
            }
            let status = StatusLine::of(&health.borrow_and_update(), &link.borrow_and_update(), &base(store.id()));
            send(&frames, |frames| &mut frames.status, "status", &StatusFragment { status });
            tokio::select! {
                // A like changes both, and the status can wait for the pause that follows.
                biased;
                count = likes.next() => match count {
                    Ok(count) => send(&frames, |frames| &mut frames.likes, "likes", &LikesFragment { count }),
                    Err(Error::Closed) => break,
                    // What is wrong with the store is in its status.
                    Err(_) => {}
                },
                changed = health.changed() => if changed.is_err() { break },
                changed = link.changed() => if changed.is_err() { break },
                () = frames.closed() => {
                    let mut stores = self.stores.lock().expect("BUG: subscribing panicked");
                    if frames.receiver_count() == 0 {
                        stores.remove(store.id());
                        return;
                    }
                }
            }
            sleep(pause(frames.receiver_count())).await;
        }
        self.stores.lock().expect("BUG: subscribing panicked").remove(store.id());
    }
}

/// The place that a store takes among those that pages keep open: none while it has no events, for then it has neither a
/// thread nor files.
struct Place {
    lease: Lease,
    is_taken: bool,
}

impl Place {
    fn of(lease: Lease, store: &Store) -> Result<Self, Full> {
        let mut place = Self { lease, is_taken: false };
        place.take(store)?;
        Ok(place)
    }

    fn take(&mut self, store: &Store) -> Result<(), Full> {
        if !self.is_taken && !store.is_absent() {
            self.lease.extend(1)?;
            self.is_taken = true;
        }
        Ok(())
    }
}

fn send(frames: &watch::Sender<Frames>, which: fn(&mut Frames) -> &mut Frame, event: &str, fragment: &impl Template) {
    // A fragment that can't be rendered stays as it was. A panic in one must not end the task that renders all others.
    let rendered = catch_unwind(AssertUnwindSafe(|| fragment.render().map_err(|error| error.to_string())));
    match rendered.unwrap_or_else(|_| Err("it panicked".to_owned())) {
        Ok(html) => frames.send_if_modified(|frames| {
            let frame = which(frames);
            let before = frame.version;
            frame.set(event, &html);
            frame.version != before
        }),
        Err(error) => {
            tracing::error!(%error, "cannot render the fragment {event}");
            false
        }
    };
}

/// How long to wait after an update before the next: the more pages it woke, the longer.
fn pause(pages: usize) -> Duration {
    let crowd = u32::try_from(pages).unwrap_or(CROWD).min(CROWD);
    PAUSE[0] + (PAUSE[1] - PAUSE[0]) * crowd / CROWD
}

/// `GET /live`
pub(crate) async fn live(State(app): State<App>, Opened { store, link, who, .. }: Opened) -> Result<Response, Problem> {
    let slot = app.shares.streams.lend(&who, 1).map_err(|_| too_many())?;
    let stream = LiveStream {
        frames: app.pages.subscribe(&app, &store, link, &who)?,
        sent: [0, 0],
        waiting: Vec::new(),
        alive: comments(),
        shutdown: app.shutdown.clone(),
        _slot: slot,
        _open: app.metrics.stream_opened(),
    };
    let body = Body::from_stream(stream::unfold(stream, async |mut stream| {
        let bytes = stream.next().await?;
        Some((Ok::<_, Infallible>(bytes), stream))
    }));
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, body).into_response())
}

fn comments() -> Interval {
    let mut alive = interval_at(tokio::time::Instant::now() + COMMENT_EVERY, COMMENT_EVERY);
    alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    alive
}

/// One page's stream. It holds no backlog: whoever reads slowly gets what is newest when it reads again.
struct LiveStream {
    frames: watch::Receiver<Frames>,
    /// The versions of the fragments that were sent.
    sent: [u64; 2],
    waiting: Vec<Bytes>,
    alive: Interval,
    shutdown: CancellationToken,
    _slot: Lease,
    _open: super::metrics::OpenStream,
}

impl LiveStream {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            {
                let frames = self.frames.borrow_and_update();
                for (sent, frame) in self.sent.iter_mut().zip([&frames.likes, &frames.status]) {
                    if *sent != frame.version {
                        *sent = frame.version;
                        self.waiting.push(frame.bytes.clone());
                    }
                }
            }
            if !self.waiting.is_empty() {
                return Some(self.waiting.drain(..).flatten().collect());
            }
            tokio::select! {
                () = self.shutdown.cancelled() => return None,
                changed = self.frames.changed() => {
                    // The store was closed, or its pages keep it open no longer: whoever comes again is told.
                    if changed.is_err() {
                        return None;
                    }
                }
                _ = self.alive.tick() => return Some(Bytes::from_static(b":\n\n")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;
    use crate::engine::StoreLimits;
    use crate::web::Shares;
    use crate::web::metrics::Metrics;
    use crate::web::tests::{app, ask};

    fn stream(frames: watch::Receiver<Frames>, shutdown: &CancellationToken) -> LiveStream {
        LiveStream {
            frames,
            sent: [0, 0],
            waiting: Vec::new(),
            alive: comments(),
            shutdown: shutdown.clone(),
            _slot: Shares::new(8, StoreLimits::default()).streams.lend(&Who::Owner, 1).expect("a slot"),
            _open: Metrics::new().stream_opened(),
        }
    }

    #[tokio::test]
    async fn trust_41_when_all_streams_are_taken_the_next_is_told_and_likes_go_on() {
        let dir = tempfile::tempdir().expect("a directory");
        let router = crate::web::routes(app(dir.path(), crate::likes::schema(), StoreLimits::default(), 2));
        let first = ask(&router, "GET", "/live").await;
        let second = ask(&router, "GET", "/s/work/live").await;
        assert_eq!([first.status(), second.status()], [StatusCode::OK; 2]);
        assert_eq!(ask(&router, "GET", "/live").await.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(ask(&router, "POST", "/likes").await.status(), StatusCode::SEE_OTHER);
        assert_eq!(ask(&router, "GET", "/").await.status(), StatusCode::OK);
        drop(first);
        assert_eq!(ask(&router, "GET", "/live").await.status(), StatusCode::OK, "a place is free again");
        drop(second);
    }

    #[tokio::test]
    async fn trust_64_pages_of_visitors_keep_so_many_stores_open_and_leave_room_for_others() {
        let dir = tempfile::tempdir().expect("a directory");
        let limits = StoreLimits { open: 8, ..StoreLimits::default() };
        let app = app(dir.path(), crate::likes::schema(), limits, 100);
        let strangers = crate::web::routes(Arc::clone(&app));
        let owners = crate::web::protect(crate::web::routes(app), crate::web::Policy::default());
        for store in 0..8 {
            assert_eq!(ask(&owners, "POST", &format!("/s/{store}/likes")).await.status(), StatusCode::SEE_OTHER);
        }
        let mut streams = Vec::new();
        for store in 0..8 {
            streams.push(ask(&strangers, "GET", &format!("/s/{store}/live")).await);
        }
        let live = streams.iter().filter(|stream| stream.status() == StatusCode::OK).count();
        assert_eq!(live, 6, "one place is the owner's, and one is for those who need a store for a moment");
        assert_eq!(ask(&strangers, "GET", "/s/0/live").await.status(), StatusCode::OK, "the same store takes no other");
        for store in 0..10 {
            assert_eq!(ask(&owners, "POST", &format!("/s/{store}/likes")).await.status(), StatusCode::SEE_OTHER);
        }
        assert_eq!(ask(&owners, "GET", "/s/7/live").await.status(), StatusCode::OK);
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_stream_says_every_15_seconds_that_it_is_alive() {
        let (frames, receiver) = watch::channel(Frames::default());
        let shutdown = CancellationToken::new();
        let mut stream = stream(receiver, &shutdown);
        let start = tokio::time::Instant::now();
        for seconds in [15, 30, 45] {
            assert_eq!(stream.next().await.as_deref(), Some(&b":\n\n"[..]));
            assert_eq!(start.elapsed().as_secs(), seconds);
        }
        frames.send_modify(|frames| frames.likes.set("likes", "<p>1</p>"));
        assert_eq!(stream.next().await.as_deref(), Some(&b"event: likes\ndata: <p>1</p>\n\n"[..]));
        shutdown.cancel();
        assert_eq!(stream.next().await, None);
    }

    #[tokio::test]
    async fn trust_48_who_reads_seldom_gets_the_newest_of_each_fragment() {
        let (frames, receiver) = watch::channel(Frames::default());
        let mut stream = stream(receiver, &CancellationToken::new());
        for count in 0..1_000 {
            frames.send_modify(|frames| frames.likes.set("likes", &count.to_string()));
            frames.send_modify(|frames| frames.status.set("status", &format!("{} pending", count / 10)));
        }
        let all = stream.next().await.expect("frames");
        assert_eq!(all, "event: likes\ndata: 999\n\nevent: status\ndata: 99 pending\n\n");
        frames.send_modify(|frames| frames.likes.set("likes", "1000"));
        assert_eq!(stream.next().await.expect("a frame"), "event: likes\ndata: 1000\n\n", "only what changed");
    }

    #[test]
    fn trust_37_no_text_can_break_out_of_its_frame() {
        let mut frame = Frame::default();
        frame.set("status", "one\n\nevent: likes\r\rdata: two\r\n\r\nid: 3\n");
        let text = String::from_utf8(frame.bytes.to_vec()).expect("text");
        let (body, rest) = text.split_once("\n\n").expect("an end");
        assert_eq!(rest, "");
        let mut lines = body.split(['\r', '\n']);
        assert_eq!(lines.next(), Some("event: status"));
        assert!(lines.all(|line| line.starts_with("data: ")), "{text:?}");
    }

    #[test]
    fn the_pause_between_updates_grows_with_the_pages() {
        assert_eq!([0, 1_000, 1_000_000].map(|pages| pause(pages).as_millis()), [16, 100, 100]);
        assert!(pause(10) < pause(500));
    }
}
