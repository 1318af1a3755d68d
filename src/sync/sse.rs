//! Server-sent events for both ends of a pull stream: one `data` line per event, and a bound on everything. The format:
//! <https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream>.
//!
//! The reader may face a hostile hub, or something else that answers in its place. Even then it holds at most one
//! event, waits no longer than for a link of a few bytes a second, and takes no more than its share of the memory of
//! all streams.

use std::io;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures_util::{Stream, StreamExt, stream};
use serde::Serialize;
use tokio::time::Instant;

use super::ration::{Portion, Ration};
use crate::limits::sync::sse::{KEPT, LONG, MAX_EVENT, SLOWEST};

/// An event of a stream.
#[derive(Debug)]
pub(crate) struct SseEvent {
    pub(crate) event: String,
    pub(crate) data: String,
    /// The memory that it takes until it is handled.
    pub(crate) portion: Portion,
}

/// Returns the bytes of an event. JSON has no raw line breaks, so its data is one line.
pub(crate) fn frame(event: &str, data: &impl Serialize) -> Bytes {
    let data = serde_json::to_string(data).expect("BUG: what is sent is JSON");
    format!("event: {event}\ndata: {data}\n\n").into()
}

/// Why a stream can't be read any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Fault {
    #[error("an event is longer than the {} MiB that a hub's has at most", MAX_EVENT >> 20)]
    TooLong,
    #[error("it is not text in UTF-8")]
    NotText,
}

/// Returns the events in a stream of bytes. The result ends with the first error.
pub(crate) fn events<B>(
    bytes: B,
    ration: &Arc<Ration>,
) -> impl Stream<Item = io::Result<SseEvent>> + Unpin + Send + use<B>
where
    B: Stream<Item = io::Result<Bytes>> + Unpin + Send + 'static,
{
    let reader = Reader { bytes, chunk: Bytes::new(), parser: Parser::default(), portion: ration.portion() };
    let next = async |reader: Option<Reader<_>>| {
        let mut reader = reader?;
        match reader.next().await? {
            Ok(event) => Some((Ok(event), Some(reader))),
            Err(error) => Some((Err(error), None)),
        }
    };
    stream::unfold(Some(reader), next).boxed()
}

struct Reader<B> {
    bytes: B,
    /// The bytes that have arrived but are not parsed yet.
    chunk: Bytes,
    parser: Parser,
    portion: Portion,
}

impl<B: Stream<Item = io::Result<Bytes>> + Unpin> Reader<B> {
    async fn next(&mut self) -> Option<io::Result<SseEvent>> {
        let began = Instant::now();
        loop {
            match self.parser.take(&mut self.chunk) {
                Ok(Some((event, data))) => {
                    return Some(Ok(SseEvent { event, data, portion: self.portion.split() }));
                }
                Ok(None) => {}
                Err(fault) => return Some(Err(io::Error::other(fault))),
            }
            if let Err(error) = self.portion.grow_to(self.parser.size) {
                return Some(Err(io::Error::other(error)));
            }
            let waited = began.elapsed();
            if waited > LONG && (self.parser.size as u64) < SLOWEST * waited.as_secs() {
                return Some(Err(io::Error::other("it is slower than any link")));
            }
            match self.bytes.next().await? {
                Ok(chunk) => self.chunk = chunk,
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

/// The part of an event that was read so far.
#[derive(Debug, Default)]
struct Parser {
    /// A line without its end.
    line: Vec<u8>,
    event: String,
    data: String,
    /// How many bytes have come since the last event.
    size: usize,
}

impl Parser {
    /// Takes bytes until an event is complete, and returns its name and data.
    fn take(&mut self, bytes: &mut Bytes) -> Result<Option<(String, String)>, Fault> {
        while !bytes.is_empty() {
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let length = end.map_or(bytes.len(), |end| end + 1);
            self.size += length;
            if self.size > MAX_EVENT {
                return Err(Fault::TooLong);
            }
            self.line.extend_from_slice(&bytes[..end.unwrap_or(length)]);
            bytes.advance(length);
            if end.is_some()
                && let Some(event) = self.end_line()?
            {
                self.size = 0;
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    fn end_line(&mut self) -> Result<Option<(String, String)>, Fault> {
        if self.line.last() == Some(&b'\r') {
            self.line.pop();
        }
        if self.line.is_empty() {
            let (event, data) = (std::mem::take(&mut self.event), std::mem::take(&mut self.data));
            return Ok((!data.is_empty()).then_some((event, data)));
        }
        let line = std::str::from_utf8(&self.line).map_err(|_| Fault::NotText)?;
        if let Some((field, value)) = line.split_once(':') {
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => value.clone_into(&mut self.event),
                "data" => value.clone_into(&mut self.data),
                _ => {}
            }
        }
        self.line.clear();
        self.line.shrink_to(KEPT);
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt;

    use super::*;
    use crate::fuzz::{Random, fuzz};

    fn read(chunks: Vec<Bytes>) -> impl Stream<Item = io::Result<SseEvent>> + Unpin + Send {
        events(stream::iter(chunks.into_iter().map(Ok)), &Ration::new(64 << 20))
    }

    #[tokio::test]
    async fn events_are_read_back_however_the_bytes_are_cut() {
        let mut text = b": comment\r\n\r\nevent: hello\r\ndata: {}\r\n\r\n".to_vec();
        text.extend_from_slice(&frame("page", &"x\ny"));
        for size in 1..text.len() {
            let chunks = text.chunks(size).map(Bytes::copy_from_slice).collect();
            let read: Vec<SseEvent> = read(chunks).try_collect().await.unwrap();
            let expected = [("hello", "{}"), ("page", "\"x\\ny\"")];
            let read: Vec<_> = read.iter().map(|event| (event.event.as_str(), event.data.as_str())).collect();
            assert_eq!(read, expected);
        }
    }

    #[tokio::test]
    async fn trust_64_what_comes_without_end_is_given_up() {
        let piece = |text: &str| Bytes::from(text.repeat((1 << 20) / text.len()));
        for endless in ["x", "data: y\n", ": \r\n\r\n"] {
            let mut events = events(stream::repeat(piece(endless)).map(Ok), &Ration::new(64 << 20));
            let error = events.next().await.unwrap().unwrap_err();
            assert!(error.to_string().contains("longer than the 8 MiB"), "{endless:?}: {error}");
            assert!(events.next().await.is_none());
        }
    }

    #[tokio::test]
    async fn trust_64_all_streams_together_hold_no_more_than_their_ration() {
        let ration = Ration::new(4 << 20);
        let half = || stream::iter([Ok(Bytes::from(vec![b'x'; 3 << 20]))]).chain(stream::pending());
        let mut first = events(half(), &ration);
        assert!(futures_util::poll!(first.next()).is_pending());
        let mut second = events(half(), &ration);
        let error = second.next().await.unwrap().unwrap_err();
        assert!(error.to_string().contains("more at once"), "{error}");
        drop(first);
        let mut third = events(half(), &ration);
        assert!(futures_util::poll!(third.next()).is_pending(), "what is given up is free again");
    }

    #[tokio::test(start_paused = true)]
    async fn trust_64_drops_keep_no_stream_alive() {
        let drops = |pause: u64, text: &'static str| {
            Box::pin(stream::unfold((), move |()| async move {
                tokio::time::sleep(std::time::Duration::from_secs(pause)).await;
                Some((Ok(Bytes::from_static(text.as_bytes())), ()))
            }))
        };
        for (pause, text) in [(20, ":"), (20, "\n"), (1, "x"), (20, "event: ping\n\n")] {
            let error = events(drops(pause, text), &Ration::new(64 << 20)).next().await.unwrap().unwrap_err();
            assert!(error.to_string().contains("slower"), "{error}");
        }
        let mut pings = events(drops(20, "data: {}\n\n"), &Ration::new(64 << 20));
        for _ in 0..10 {
            pings.next().await.unwrap().unwrap();
        }
    }

    /// Parses `input` in pieces of up to `most` bytes.
    fn parsed(input: &[u8], most: usize) -> (Vec<(String, String)>, Option<Fault>) {
        let (mut parser, mut random, mut events) = (Parser::default(), Random(input.len() as u64 | 1), Vec::new());
        let mut rest = input;
        while !rest.is_empty() {
            let (piece, others) = rest.split_at(1 + random.below(most.min(rest.len())));
            rest = others;
            let mut piece = Bytes::copy_from_slice(piece);
            while !piece.is_empty() {
                match parser.take(&mut piece) {
                    Ok(event) => events.extend(event),
                    Err(fault) => return (events, Some(fault)),
                }
            }
            assert!(parser.line.len() + parser.data.len() + parser.event.len() <= parser.size);
        }
        (events, None)
    }

    #[test]
    fn trust_38_fuzzed_streams_are_read_alike_however_they_are_cut() {
        fuzz("sse", &["data: ", "event: ", ":", "\n\n", "\r", "id: ", "retry: ", "data"], |input| {
            let whole = parsed(input, usize::MAX);
            assert_eq!(parsed(input, 3), whole);
            assert!(
                whole.0.iter().all(|(event, data)| !data.is_empty() && !event.contains('\n') && !data.contains('\n'))
            );
            format!("{:?} {}", whole.1, whole.0.len().min(9))
        });
    }
}
