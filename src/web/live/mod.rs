//! The live stream. Every change of a fragment is drawn and framed once, and sent to every page that has the fragment.

mod dialect;
mod publisher;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};

use askama::Template;
use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::time::{Interval, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use self::dialect::Dialect;
pub(crate) use self::publisher::Pages;
use self::publisher::{Following, Version, View};
use super::face::{Asked, Draw, Face, FragmentKey};
use super::problem::Problem;
use super::status::StatusLine;
use super::{App, Html, IntoHtml as _, Lease, Opened, Params, Render, STREAM_HEADERS, Sees, sentence};
use crate::limits::web::live::{PING_EVERY, RETRY, SETS};
use crate::random;

/// The ping. It has data, because a script sees neither comments nor events without data.
pub(crate) const PING: Bytes = Bytes::from_static(b"event: ping\ndata: ok\n\n");

/// The status line.
#[derive(Template)]
#[template(path = "status.html")]
struct StatusFragment {
    status: StatusLine,
}

/// Draws the status line as a fragment.
pub(crate) fn status_fragment(status: StatusLine) -> Result<Html, String> {
    Ok(STATUS.wrap(&StatusFragment { status }.into_html()?))
}

/// The fragment of the status line.
pub(crate) const STATUS: FragmentKey = FragmentKey { name: "status", query: None };

/// Draws a fragment in its wrapper. If an author's function panics, only this fragment fails.
pub(crate) fn drawn(key: &FragmentKey, draw: Box<Draw>, with: Render) -> Result<Html, String> {
    let drawn = catch_unwind(AssertUnwindSafe(|| draw(with)));
    drawn.unwrap_or_else(|_| Err("it panicked".to_owned())).map(|html| key.wrap(&html))
}

/// Returns the answer when there are too many pages, or too many stores or queries on them.
fn too_many() -> Problem {
    Problem::unavailable(
        "too-many-streams",
        "As many pages are open as this server can keep up to date.",
        "Close some of them. Posts are stored all the same; reload the page to see how things are.",
        5,
    )
}

/// Answers `GET /live`. The query has the parameters of one page, or one `live=` with the parameters of each of several
/// pages. With `as=`, the stream of one page is in another library's convention.
pub(crate) async fn live(
    State(app): State<App>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    sees: Sees,
    Opened { store, link, who, .. }: Opened,
) -> Result<Response, Problem> {
    let (dialect, asked) = asked(&app.face, query.as_deref().unwrap_or_default())?;
    let slot = app.shares.streams.lend(&who, 1).map_err(|_| too_many())?;
    let (following, view) = app.pages.subscribe(&app, &store, link, &who, sees, asked)?;
    let stream = LiveStream {
        sent: following.slots().iter().map(|slot| (*slot, 0)).collect(),
        dialect,
        view,
        waiting: VecDeque::new(),
        first: Some(First { known: known(&headers) }),
        alive: pings(),
        shutdown: app.shutdown.clone(),
        _following: following,
        _slot: slot,
        _open: app.metrics.stream_opened(),
    };
    let body = Body::from_stream(stream::unfold(stream, async |mut stream| {
        let bytes = stream.next().await?;
        Some((Ok::<_, Infallible>(bytes), stream))
    }));
    Ok((STREAM_HEADERS, body).into_response())
}

/// Returns the version that the client still has from an earlier stream, if it says so.
fn known(headers: &HeaderMap) -> Option<Version> {
    headers.get("last-event-id")?.to_str().ok()?.parse().ok()
}

/// Returns the fragments of the pages that a stream serves, and how they are framed.
fn asked(face: &Face, query: &str) -> Result<(Dialect, Vec<Box<dyn Asked>>), Problem> {
    let malformed = |detail: String| Problem::bad_request("malformed-parameter", detail, "Reload the page.");
    let (dialect, query) = dialect(query)?;
    let sets: Vec<String> = form_urlencoded::parse(query.as_bytes())
        .filter(|(name, _)| name == "live")
        .map(|(_, set)| set.into_owned())
        .collect();
    if sets.len() > SETS {
        return Err(malformed(format!("One stream serves {SETS} pages at most, and this asks for {}.", sets.len())));
    }
    if sets.is_empty() {
        let asked = face.ask(&Params::new(&query)).map_err(|why| malformed(sentence(why.why())))?;
        return Ok((dialect, asked));
    }
    if dialect != Dialect::Own {
        // In the other dialects, each fragment is one element of the page, whatever its parameters.
        return Err(malformed(
            "A stream with `as` serves one page, and this asks for pages with `live`, too.".to_owned(),
        ));
    }
    // A page whose parameters don't parse gets nothing. The other pages on the stream have done nothing wrong.
    Ok((dialect, sets.iter().filter_map(|set| face.ask(&Params::new(set)).ok()).flatten().collect()))
}

/// Returns the dialect that `query` asks for with `as`, and the rest of `query`.
fn dialect(query: &str) -> Result<(Dialect, String), Problem> {
    let mut dialect = Dialect::Own;
    let mut rest = Vec::new();
    for pair in query.split('&') {
        match form_urlencoded::parse(pair.as_bytes()).next() {
            Some((name, value)) if name == "as" => {
                dialect = Dialect::named(&value).ok_or_else(|| {
                    Problem::bad_request(
                        "malformed-parameter",
                        format!("There is no live stream as `{value}`."),
                        "Ask for it as `htmx`, `datastar` or `turbo`, or leave `as` out.",
                    )
                })?;
            }
            _ => rest.push(pair),
        }
    }
    Ok((dialect, rest.join("&")))
}

/// Returns the event that ends the fragments of one commit: a page puts all of them in place at once. `current` says
/// that nothing has changed since the version that the client knows.
fn closing(event: &str, version: Version, retry: Option<f64>) -> Bytes {
    let retry = retry.map(|millis| format!("retry: {millis:.0}\n")).unwrap_or_default();
    format!("event: {event}\nid: {version}\n{retry}data: ok\n\n").into()
}

/// Returns how long a browser's own `EventSource` should wait before it reconnects, in milliseconds.
pub(crate) fn retry() -> f64 {
    let (least, most) = RETRY;
    least + (most - least) * random::fraction()
}

pub(crate) fn pings() -> Interval {
    let mut alive = interval_at(tokio::time::Instant::now() + PING_EVERY, PING_EVERY);
    alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    alive
}

/// One stream. It holds no backlog: a slow reader gets the newest fragments when it reads again.
struct LiveStream {
    dialect: Dialect,
    view: View,
    /// For each of its fragments, the slot among the frames and the version that was sent last.
    sent: Vec<(usize, u64)>,
    /// The changes of one commit that are still to be sent.
    waiting: VecDeque<Bytes>,
    /// What to say with the first commit. `None` once that is said.
    first: Option<First>,
    alive: Interval,
    shutdown: CancellationToken,
    _following: Following,
    _slot: Lease,
    _open: super::metrics::OpenStream,
}

/// What a stream needs to know until it first says something.
struct First {
    /// The version that the client still has from an earlier stream.
    known: Option<Version>,
}

impl LiveStream {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(bytes) = self.waiting.pop_front() {
                return Some(bytes);
            }
            self.take_changes();
            if !self.waiting.is_empty() {
                continue;
            }
            tokio::select! {
                () = self.shutdown.cancelled() => return None,
                // The store was closed, or pages no longer keep it open. A page that connects again is told why.
                is_followed = self.view.changed() => if !is_followed { return None },
                _ = self.alive.tick() => return Some(PING),
            }
        }
    }

    fn take_changes(&mut self) {
        let frames = self.view.frames();
        for (slot, sent) in &mut self.sent {
            if let Some(bytes) = frames.newer(*slot, self.dialect, sent) {
                self.waiting.push_back(bytes);
            }
        }
        if self.waiting.is_empty() {
            return;
        }
        let version = frames.version(self.sent.iter().map(|(slot, _)| *slot));
        let first = self.first.take();
        let has_all = first.as_ref().is_some_and(|first| first.known == Some(version));
        if has_all {
            self.waiting.clear();
        }
        let event = if has_all { "current" } else { "done" };
        self.waiting.push_back(closing(event, version, first.map(|_| retry())));
    }
}

#[cfg(test)]
mod tests;
