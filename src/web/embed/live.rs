//! The streams of embedded buttons: numbers, without anything around them.

use std::collections::HashSet;
use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::sync::watch;
use tokio::time::{Instant, Interval, sleep_until};
use tokio_util::sync::CancellationToken;

use super::board::{Board, Count, Counts, Slot};
use super::clients::OpenStream;
use super::item::Item;
use crate::engine::StoreId;
use crate::limits::web::embed::{CROWD, LONGEST_PAUSE, SHORTEST_PAUSE};
use crate::web::live::{PING, pings, retry};
use crate::web::{Lease, STREAM_HEADERS, metrics};

/// What a stream says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// The count of its one item.
    Number,
    /// The counts that changed, by item.
    Object,
}

/// What a stream takes up.
pub(super) struct Taken {
    pub(super) _of_all: Lease,
    pub(super) _of_client: OpenStream,
    pub(super) _open: metrics::OpenStream,
}

/// One stream. It holds no backlog: a slow reader gets the newest counts when it reads again.
struct CountStream {
    form: Form,
    board: Board,
    items: Vec<Followed>,
    counts: watch::Receiver<Counts>,
    existing: watch::Receiver<HashSet<StoreId>>,
    /// Whether stores were made since it was looked which of the items have one.
    may_exist: bool,
    is_first: bool,
    /// Nothing is said before this moment, except that the server ends.
    silent_until: Option<Instant>,
    alive: Interval,
    shutdown: CancellationToken,
    _taken: Taken,
}

/// An item that a stream follows.
struct Followed {
    item: Item,
    place: Place,
    sent: Option<u64>,
}

/// Where an item's count is.
enum Place {
    /// Nowhere: the item has no likes yet.
    Absent(StoreId),
    On(Slot),
}

/// Answers with the counts of `items`, now and as they change.
pub(super) fn answer(
    board: &Board,
    items: Vec<Item>,
    form: Form,
    taken: Taken,
    shutdown: CancellationToken,
) -> Response {
    let (counts, existing) = (board.counts(), board.existing());
    let followed = |item: Item| Followed { place: Place::Absent(item.store()), item, sent: None };
    let stream = CountStream {
        form,
        board: board.clone(),
        items: items.into_iter().map(followed).collect(),
        counts,
        existing,
        may_exist: true,
        is_first: true,
        silent_until: None,
        alive: pings(),
        shutdown,
        _taken: taken,
    };
    let body = Body::from_stream(stream::unfold(stream, async |mut stream| {
        let bytes = stream.next().await?;
        Some((Ok::<_, Infallible>(bytes), stream))
    }));
    (STREAM_HEADERS, body).into_response()
}

impl CountStream {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(until) = self.silent_until.take() {
                self.shutdown.run_until_cancelled(sleep_until(until)).await?;
            }
            if let Some(message) = self.message() {
                self.silent_until = Some(Instant::now() + pause(self.board.streams()));
                return Some(message);
            }
            tokio::select! {
                () = self.shutdown.cancelled() => return None,
                changed = self.counts.changed() => changed.ok()?,
                changed = self.existing.changed() => {
                    changed.ok()?;
                    self.may_exist = true;
                }
                _ = self.alive.tick() => return Some(PING),
            }
            // Most changes are other items'. To look at each at once would be much work in a crowd.
            self.silent_until = Some(Instant::now() + pause(self.board.streams()));
        }
    }

    /// The counts that changed since the last message. The first message has all of them.
    fn message(&mut self) -> Option<Bytes> {
        if std::mem::take(&mut self.may_exist) {
            for Followed { place, .. } in &mut self.items {
                if let Place::Absent(store) = place
                    && let Some(slot) = self.board.slot(store)
                {
                    *place = Place::On(slot);
                }
            }
        }
        let counts = self.counts.borrow_and_update();
        let now = |followed: &Followed| match followed.place {
            Place::On(slot) => counts.at(slot),
            Place::Absent(_) => Count::Known(0),
        };
        if self.is_first && self.items.iter().any(|followed| now(followed) == Count::Unread) {
            return None;
        }
        let mut changed = serde_json::Map::new();
        let mut number = None;
        for followed in &mut self.items {
            let count = now(followed).known();
            if count.is_some() && count != followed.sent {
                followed.sent = count;
                number = count;
                changed.insert(followed.item.as_str().to_owned(), count.into());
            }
        }
        let number = number?;
        let data = match self.form {
            Form::Number => number.to_string(),
            Form::Object => serde_json::Value::Object(changed).to_string(),
        };
        let retry = if std::mem::take(&mut self.is_first) { format!("retry: {:.0}\n", retry()) } else { String::new() };
        Some(format!("{retry}data: {data}\n\n").into())
    }
}

/// How long a stream is silent after it looked.
fn pause(streams: usize) -> Duration {
    let crowd = u32::try_from(streams).unwrap_or(CROWD).min(CROWD);
    SHORTEST_PAUSE + (LONGEST_PAUSE - SHORTEST_PAUSE) * crowd / CROWD
}
