//! Server-sent events, as both ends of a pull stream need them: one `data` line an event, and a bound on its length.
//! The format: <https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream>.

use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt};
use serde::Serialize;
use tokio_util::codec::{FramedRead, LinesCodec};
use tokio_util::io::StreamReader;

/// The longest line that is read: a page of 1 MiB in which every byte is escaped, and its events' ids.
const MAX_LINE: usize = 8 << 20;

/// An event of a stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SseEvent {
    pub(crate) event: String,
    pub(crate) data: String,
}

/// The bytes of an event. JSON has no raw line breaks, so its data is one line.
pub(crate) fn frame(event: &str, data: &impl Serialize) -> Bytes {
    let data = serde_json::to_string(data).expect("BUG: what is sent is JSON");
    format!("event: {event}\ndata: {data}\n\n").into()
}

/// The events in a stream of bytes. A line that is too long is an error, so that whoever answers instead of a hub can't
/// fill the memory.
pub(crate) fn events(
    bytes: impl Stream<Item = std::io::Result<Bytes>> + Unpin + Send + 'static,
) -> impl Stream<Item = std::io::Result<SseEvent>> + Unpin + Send {
    let lines = FramedRead::new(StreamReader::new(bytes), LinesCodec::new_with_max_length(MAX_LINE));
    let mut event = SseEvent { event: String::new(), data: String::new() };
    let events = lines.map_err(std::io::Error::other).try_filter_map(move |line| {
        let line = line.strip_suffix('\r').unwrap_or(&line);
        let mut complete = None;
        if line.is_empty() {
            let done = std::mem::replace(&mut event, SseEvent { event: String::new(), data: String::new() });
            complete = (!done.data.is_empty()).then_some(done);
        } else if let Some((field, value)) = line.split_once(':') {
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => value.clone_into(&mut event.event),
                "data" => value.clone_into(&mut event.data),
                _ => {}
            }
        }
        std::future::ready(Ok(complete))
    });
    events.boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn events_are_read_back_however_the_bytes_are_cut() {
        let mut text = b": comment\r\n\r\nevent: hello\r\ndata: {}\r\n\r\n".to_vec();
        text.extend_from_slice(&frame("page", &"x\ny"));
        for size in 1..text.len() {
            let chunks: Vec<_> = text.chunks(size).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
            let read: Vec<SseEvent> = events(futures_util::stream::iter(chunks)).try_collect().await.unwrap();
            let expected = [("hello", "{}"), ("page", "\"x\\ny\"")];
            let read: Vec<_> = read.iter().map(|event| (event.event.as_str(), event.data.as_str())).collect();
            assert_eq!(read, expected);
        }
    }
}
