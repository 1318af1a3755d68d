//! Finds where each request on a connection begins and ends, before the parser sees a byte of it.
//!
//! If a proxy and we disagree about where a request ends, a stranger's request can be passed off as part of another. So
//! anything ambiguous is refused: a line that ends without a carriage return, a line that continues in the next, two
//! lengths, a length together with chunks, a transfer encoding other than `chunked`. We spoil the byte that ends the
//! offending line. The parser then answers 400 and closes, as it does with anything that isn't HTTP.

/// The bytes of a line that are enough to recognize a header with the length of the body.
const LINE: usize = 64;

/// A byte that is valid in no head and no chunk size, so every parser refuses it.
const SPOILED: u8 = 0;

/// What comes next on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// A line of a head, with its number.
    Head(usize),
    /// This many bytes of a body.
    Body(u64),
    /// The line with the size of a chunk.
    Size,
    /// This many bytes of a chunk and of the line end after it.
    Chunk(u64),
    /// A line after the last chunk.
    Trailer,
    /// Something unreadable, which the parser is going to refuse.
    Lost,
}

/// What a head says about the length of its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    None,
    Bytes(u64),
    Chunks,
}

/// Follows the bytes that a peer sends.
#[derive(Debug)]
pub(super) struct Framing {
    place: Place,
    length: Length,
    line: [u8; LINE],
    /// The length of the whole line. [`line`](Self::line) has its beginning.
    line_length: usize,
    last: u8,
    head_bytes: usize,
    heads: u64,
}

impl Framing {
    pub(super) fn new() -> Self {
        Self {
            place: Place::Head(0),
            length: Length::None,
            line: [0; LINE],
            line_length: 0,
            last: 0,
            head_bytes: 0,
            heads: 0,
        }
    }

    /// Returns the number of bytes of a head that isn't complete yet.
    pub(super) fn head_bytes(&self) -> usize {
        self.head_bytes
    }

    /// Returns how many requests have begun: their first line has arrived. Empty lines before it don't count.
    pub(super) fn heads(&self) -> u64 {
        self.heads
    }

    /// Returns whether everything that has begun is complete.
    pub(super) fn is_between_requests(&self) -> bool {
        self.head_bytes == 0 && matches!(self.place, Place::Head(_))
    }

    /// Follows the next bytes, and spoils them where they are ambiguous.
    pub(super) fn pass(&mut self, bytes: &mut [u8]) {
        let mut at = 0;
        while at < bytes.len() {
            match &mut self.place {
                Place::Lost => return,
                Place::Body(left) | Place::Chunk(left) => {
                    let here = (bytes.len() - at).min(usize::try_from(*left).unwrap_or(usize::MAX));
                    at += here;
                    *left -= here as u64;
                    if *left == 0 {
                        self.place = if let Place::Body(_) = self.place { Place::Head(0) } else { Place::Size };
                    }
                }
                Place::Head(_) | Place::Size | Place::Trailer => {
                    let rest = &bytes[at..];
                    let text = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
                    self.take_text(&rest[..text]);
                    at += text;
                    if let Some(end) = bytes.get_mut(at) {
                        self.end_line(end);
                        at += 1;
                    }
                }
            }
        }
    }

    /// Takes more of a line, but not its end.
    fn take_text(&mut self, text: &[u8]) {
        let known = self.line_length.min(LINE);
        let kept = text.len().min(LINE - known);
        self.line[known..known + kept].copy_from_slice(&text[..kept]);
        self.line_length += text.len();
        self.last = text.last().copied().unwrap_or(self.last);
        if let Place::Head(_) = self.place {
            self.head_bytes += text.len();
        }
    }

    /// Takes the byte that ends a line.
    fn end_line(&mut self, byte: &mut u8) {
        if let Place::Head(_) = self.place {
            self.head_bytes += 1;
        }
        let last = std::mem::replace(&mut self.last, *byte);
        let begins = matches!(self.place, Place::Head(0));
        let next = if last == b'\r' { self.after_line() } else { None };
        self.place = next.unwrap_or(Place::Lost);
        if self.place == Place::Lost {
            *byte = SPOILED;
        }
        self.line_length = 0;
        match self.place {
            Place::Head(1..) if begins => self.heads += 1,
            Place::Head(1..) => {}
            _ => self.head_bytes = 0,
        }
    }

    /// Returns what comes after the line that has just ended, or `None` if that is ambiguous.
    fn after_line(&mut self) -> Option<Place> {
        let length = self.line_length - 1;
        let known = &self.line[..length.min(LINE)];
        match self.place {
            // The parser skips empty lines before a request, and so do we.
            Place::Head(0) if known.is_empty() => Some(Place::Head(0)),
            Place::Head(0) => {
                self.length = Length::None;
                Some(Place::Head(1))
            }
            Place::Head(_) if known.is_empty() => Some(match self.length {
                Length::None | Length::Bytes(0) => Place::Head(0),
                Length::Bytes(bytes) => Place::Body(bytes),
                Length::Chunks => Place::Size,
            }),
            Place::Head(line) => {
                let is_whole = length <= LINE;
                if let Some(said) = body_length(known, is_whole)? {
                    if self.length != Length::None {
                        return None;
                    }
                    self.length = said;
                }
                Some(Place::Head(line + 1))
            }
            Place::Size => {
                let digits = known.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
                let size = std::str::from_utf8(&known[..digits]).ok()?;
                match u64::from_str_radix(size, 16).ok()? {
                    0 => Some(Place::Trailer),
                    size => Some(Place::Chunk(size.checked_add(2)?)),
                }
            }
            Place::Trailer if known.is_empty() => Some(Place::Head(0)),
            Place::Trailer => Some(Place::Trailer),
            Place::Body(_) | Place::Chunk(_) | Place::Lost => None,
        }
    }
}

/// Returns what a line of a head says about the length of the body, if anything. The outer `None` means that the line
/// is ambiguous.
fn body_length(line: &[u8], is_whole: bool) -> Option<Option<Length>> {
    if line.first().is_some_and(|byte| matches!(byte, b' ' | b'\t')) {
        return None;
    }
    let Some(colon) = line.iter().position(|byte| *byte == b':') else { return Some(None) };
    let (name, value) = (line[..colon].trim_ascii(), line[colon + 1..].trim_ascii());
    let said = if name.eq_ignore_ascii_case(b"transfer-encoding") {
        value.eq_ignore_ascii_case(b"chunked").then_some(Length::Chunks)
    } else if name.eq_ignore_ascii_case(b"content-length") {
        let is_number = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
        let number = std::str::from_utf8(value).ok().filter(|_| is_number);
        number.and_then(|number| number.parse().ok()).map(Length::Bytes)
    } else {
        return Some(None);
    };
    said.filter(|_| is_whole).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POST: &str = "POST /likes HTTP/1.1\r\nHost: localhost\r\n";

    /// Returns the result for `text`, cut into pieces of every size.
    fn passed(text: &str) -> (String, Framing) {
        let whole = in_pieces(text, text.len().max(1));
        for size in 1..8 {
            let (bytes, framing) = in_pieces(text, size);
            assert_eq!(bytes, whole.0, "in pieces of {size}: {text:?}");
            assert_eq!(framing.place, whole.1.place, "in pieces of {size}: {text:?}");
        }
        whole
    }

    fn in_pieces(text: &str, size: usize) -> (String, Framing) {
        let mut framing = Framing::new();
        let mut bytes = text.as_bytes().to_vec();
        bytes.chunks_mut(size).for_each(|piece| framing.pass(piece));
        (String::from_utf8(bytes).expect("text"), framing)
    }

    #[test]
    fn whole_requests_pass_as_they_are() {
        for request in [
            format!("{POST}\r\n"),
            format!("\r\n\r\n{POST}\r\n"),
            format!("{POST}Content-Length: 5\r\n\r\n\n\n\n\n\n"),
            format!("{POST}content-length:0\r\n\r\n"),
            format!(
                "{POST}Transfer-Encoding: Chunked\r\n\r\n3;a=b\r\na\nb\r\nA\r\n0123456789\r\n0\r\nTrailer: 1\r\n\r\n"
            ),
            format!("{POST}Cookie: {}\r\nContent-Length: 2\r\n\r\n\n\n", "x".repeat(1_000)),
            format!("{POST}X-Content-Length: 7\r\nContent-Length-X: 8\r\n\r\n"),
        ] {
            let twice = request.repeat(2);
            let (bytes, framing) = passed(&twice);
            assert_eq!(bytes, twice);
            assert!(framing.is_between_requests(), "{request:?} {framing:?}");
        }
    }

    #[test]
    fn trust_64_what_can_be_read_in_two_ways_is_spoiled() {
        for fault in [
            "Host: localhost\n",
            "A: b\n\r\n",
            "\n",
            " folded: 1\r\n",
            "\tfolded: 1\r\n",
            "Content-Length: 1\r\nContent-Length: 1\r\n",
            "Content-Length: 1\r\ncontent-length: 2\r\n",
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: identity\r\n",
            "Transfer-Encoding : chunked\r\nContent-Length: 1\r\n",
            "Content-Length: +1\r\n",
            "Content-Length: 1, 1\r\n",
            "Content-Length:\r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Transfer-Encoding: chunked\r\n\r\n1\na\r\n",
            "Transfer-Encoding: chunked\r\n\r\nx\r\n",
            "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
            "Transfer-Encoding: chunked\r\n\r\n0\r\nTrailer: 1\n",
        ] {
            let request = format!("{POST}{fault}");
            let (bytes, framing) = passed(&request);
            assert_eq!(framing.place, Place::Lost, "{fault:?}");
            assert!(bytes.contains('\0'), "{fault:?} {bytes:?}");
        }
        let padded = format!("Content-Length: {}1\r\n", " ".repeat(LINE));
        assert_eq!(passed(&format!("{POST}{padded}")).1.place, Place::Lost, "too long to be understood");
    }

    #[test]
    fn what_is_not_whole_is_known() {
        for (part, head_bytes) in [("", 0), ("POST", 4), ("\r\nPOST", 4), (POST, POST.len())] {
            let (_, framing) = passed(part);
            assert_eq!(framing.head_bytes(), head_bytes, "{part:?}");
            assert_eq!(framing.heads(), u64::from(part == POST), "{part:?}");
            assert_eq!(framing.is_between_requests(), head_bytes == 0, "{part:?}");
        }
        let (_, framing) = passed(&format!("{POST}Content-Length: 3\r\n\r\nab"));
        assert_eq!(framing.head_bytes(), 0);
        assert!(!framing.is_between_requests());
    }
}
