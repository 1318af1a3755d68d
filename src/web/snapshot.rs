//! The hub's route for snapshots, with which devices join without pulling the whole log.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::ops::Range;
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, Query, State};
use axum::http::header::{self, HeaderMap, HeaderValue};
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;

use super::hub::{Bearer, too_often};
use super::{App, Connection, Lease, Opened, Problem};
use crate::engine::Snapshot;
use crate::limits::sync::kept::{COME_BACK, PIECE};
use crate::limits::sync::stream::SILENCE;
use crate::sync::{NoSnapshot, Token, code, snapshot};

/// Headers of every snapshot. Nothing on the way may keep or pack it: its length is what the device counts.
const HEADERS: [(HeaderName, HeaderValue); 4] = [
    (header::CONTENT_TYPE, HeaderValue::from_static("application/vnd.sqlite3")),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform")),
    (header::ACCEPT_RANGES, HeaderValue::from_static("bytes")),
    (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
];

/// What a device asks for.
#[derive(Debug, Deserialize)]
pub(crate) struct Wanted {
    /// The fingerprint of its schema.
    schema: String,
}

/// `GET /sync/v1/{store}/snapshot`
pub(crate) async fn send(
    State(app): State<App>,
    Bearer(token): Bearer,
    Opened { store, who, .. }: Opened,
    connection: Option<Extension<Connection>>,
    headers: HeaderMap,
    query: Result<Query<Wanted>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Problem> {
    let Query(Wanted { schema }) = query.map_err(|why| {
        let detail = format!("{}.", why.body_text());
        Problem::bad_request("malformed-snapshot", detail, "See docs/wire.md for its parameters.")
    })?;
    app.shares
        .pulls
        .take(&who, 1.0)
        .map_err(|wait| too_often("too-many-pulls", "This token asks for snapshots too often.", wait))?;
    if let Some(problem) = app.hub.not_serving() {
        return Err(problem);
    }
    let lease = app.shares.downloads.lend(&who, 1).map_err(|full| {
        full.problem(code::TOO_MANY_SNAPSHOTS, "More snapshots are being sent", "Ask again in a moment.", COME_BACK)
    })?;
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let range = text(header::RANGE);
    let wanted = range.and(text(header::IF_RANGE));
    let kept = app.snapshots.get(&store, &schema, wanted).await?.map_err(|why| no_snapshot(&why))?;
    let offer = kept.snapshot;
    let part = match range.filter(|_| wanted.is_none_or(|wanted| wanted == snapshot::tag(&offer))) {
        Some(range) => part(range, offer.bytes).map_err(|()| unsatisfiable(&offer))?,
        None => None,
    };
    let bytes = part.clone().unwrap_or(0..offer.bytes);
    let file = tokio::task::spawn_blocking(move || {
        let mut file = kept.open()?;
        file.seek(SeekFrom::Start(bytes.start)).map(|_| file)
    });
    // Somebody may have deleted it a moment ago. The next one that asks gets a new one.
    let file = file.await.map_err(Problem::internal)?.map_err(|_| no_snapshot(&NoSnapshot::NotYet))?;
    app.hub.saw(&token.device, store.id(), None);
    let bytes = part.clone().unwrap_or(0..offer.bytes);
    let left = bytes.end - bytes.start;
    let (device, name) = (token.device.as_str(), store.id().as_str());
    // Who asks for one byte at a time gets no line of the log for each.
    if part.is_none() || left >= PIECE as u64 {
        tracing::info!(device, store = name, events = offer.length, bytes = left, "a device gets a snapshot");
    }
    let sending = Sending {
        file,
        left,
        token,
        app: App::clone(&app),
        connection: connection.map(|Extension(connection)| connection),
        handed: None,
        _lease: lease,
    };
    let body = Body::from_stream(stream::try_unfold(sending, Sending::next));
    let mut answer =
        (HEADERS, snapshot::headers(&offer), [(header::CONTENT_LENGTH, left.to_string())], body).into_response();
    if part.is_some() {
        let range = format!("bytes {}-{}/{}", bytes.start, bytes.end - 1, offer.bytes);
        let range = HeaderValue::try_from(range).map_err(Problem::internal)?;
        answer.headers_mut().insert(header::CONTENT_RANGE, range);
        *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(answer)
}

/// Returns the part of a file of `size` bytes that `range` asks for. None if it is to be ignored, as all is that isn't one
/// part from a first byte on (RFC 9110, section 14.2).
fn part(range: &str, size: u64) -> Result<Option<Range<u64>>, ()> {
    let read = || {
        let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
        let end = if last.is_empty() { size } else { last.parse::<u64>().ok()?.checked_add(1)?.min(size) };
        Some(first.parse::<u64>().ok()?..end)
    };
    match read() {
        Some(part) if part.start >= size => Err(()),
        Some(part) if part.is_empty() => Ok(None),
        part => Ok(part),
    }
}

fn unsatisfiable(offer: &Snapshot) -> Problem {
    Problem::new(
        StatusCode::RANGE_NOT_SATISFIABLE,
        "no-such-range",
        format!("The snapshot has {} bytes, and fewer than where this part begins.", offer.bytes),
        "Ask for all of it.",
    )
}

fn no_snapshot(why: &NoSnapshot) -> Problem {
    let advice = "Pull the log from its beginning.";
    let none = |detail: String| Problem::new(StatusCode::NOT_FOUND, code::NO_SNAPSHOT, detail, advice);
    match why {
        NoSnapshot::Useless(why) => none((*why).to_owned()),
        NoSnapshot::Failed(_) => none("This hub can't make a snapshot at present; its log says why.".to_owned()),
        NoSnapshot::NotYet => Problem::unavailable(
            code::SNAPSHOT_NOT_READY,
            "The snapshot is being made.",
            "Ask again in a moment.",
            COME_BACK,
        ),
    }
}

/// A snapshot on its way. It holds at most one piece, and reads the next only when the device has taken the last.
struct Sending {
    file: File,
    left: u64,
    token: Token,
    app: App,
    connection: Option<Connection>,
    /// When the last piece was handed to the connection.
    handed: Option<Instant>,
    _lease: Lease,
}

impl Sending {
    async fn next(mut self) -> io::Result<Option<(Bytes, Self)>> {
        if self.left == 0 {
            return Ok(None);
        }
        if self.handed.is_some_and(|handed| handed.elapsed() > SILENCE) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the device reads too slowly"));
        }
        let is_cut_off = self.app.hub.not_serving().is_some();
        if self.app.shutdown.is_cancelled() || is_cut_off || !self.app.hub.lets_in(&self.token) {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the download is over"));
        }
        let length = usize::try_from(self.left).unwrap_or(PIECE).min(PIECE);
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; length];
            self.file.read_exact(&mut piece).map(|()| (piece, self))
        });
        let (piece, mut sending) = read.await.map_err(io::Error::other)??;
        sending.left -= piece.len() as u64;
        sending.handed = Some(Instant::now());
        if let Some(connection) = &sending.connection {
            connection.must_take_within(SILENCE);
        }
        Ok(Some((piece.into(), sending)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::{fuzz, text};

    #[test]
    fn a_part_lies_within_the_file_or_is_refused_or_ignored() {
        assert_eq!(part("bytes=10-", 100), Ok(Some(10..100)));
        assert_eq!(part("bytes=10-19", 100), Ok(Some(10..20)));
        assert_eq!(part("bytes=99-1000", 100), Ok(Some(99..100)));
        assert_eq!([part("bytes=100-", 100), part("bytes=18446744073709551615-", 100)], [Err(()), Err(())]);
        for ignored in
            ["bytes=-5", "bytes=20-10", "bytes=0-18446744073709551615", "items=0-1", "bytes=0-1,4-5", "bytes", ""]
        {
            assert_eq!(part(ignored, 100), Ok(None), "{ignored}");
        }
    }

    #[test]
    fn trust_38_fuzzed_ranges_of_a_snapshot_stay_within_it() {
        fuzz("range", &["bytes=", "-", ",", "18446744073709551615"], |input| match part(&text(input), 100) {
            Ok(Some(part)) => {
                assert!(part.start < part.end && part.end <= 100);
                format!("{part:?}")
            }
            other => format!("{other:?}"),
        });
    }
}
