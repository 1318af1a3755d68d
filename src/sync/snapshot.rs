//! What a hub says of a snapshot, in the head of its answer, and what a device makes of it: decisions, without network,
//! disk or clock.
//!
//! A hub may be hostile, and a link bad. So a device counts what its attempts bring, and has an end in mind: after a few
//! attempts in vain it pulls the log from its beginning, which needs no snapshot.

use reqwest::StatusCode;
use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::engine::{Digest, LogId, Seq, Snapshot};
use crate::limits::sync::snapshot::{BEGUN, IN_VAIN, LARGEST, NOT_READY, SOMETHING};
use crate::limits::sync::wire::SEQS;

/// The headers of an answer with a snapshot.
mod name {
    use super::HeaderName;

    pub(super) const LOG: HeaderName = HeaderName::from_static("likewise-log");
    pub(super) const SEQ: HeaderName = HeaderName::from_static("likewise-seq");
    pub(super) const LENGTH: HeaderName = HeaderName::from_static("likewise-length");
    pub(super) const LOG_DIGEST: HeaderName = HeaderName::from_static("likewise-log-digest");
    pub(super) const STATE_DIGEST: HeaderName = HeaderName::from_static("likewise-state-digest");
    pub(super) const FILE_DIGEST: HeaderName = HeaderName::from_static("likewise-file-digest");
}

/// Returns the tag by which a device that goes on with a download names the file.
pub(crate) fn tag(snapshot: &Snapshot) -> String {
    format!("\"{}\"", snapshot.file_digest)
}

/// Returns the headers of an answer with a snapshot, without the length of the body.
pub(crate) fn headers(snapshot: &Snapshot) -> [(HeaderName, HeaderValue); 7] {
    let value = |text: String| HeaderValue::try_from(text).expect("BUG: a number or digest that is no header");
    [
        (name::LOG, value(snapshot.log.to_string())),
        (name::SEQ, value(snapshot.seq.to_string())),
        (name::LENGTH, value(snapshot.length.to_string())),
        (name::LOG_DIGEST, value(snapshot.digest.to_string())),
        (name::STATE_DIGEST, value(snapshot.state_digest.to_string())),
        (name::FILE_DIGEST, value(snapshot.file_digest.to_string())),
        (header::ETAG, value(tag(snapshot))),
    ]
}

/// Reads what the head of an answer says of a file of this many bytes.
fn read(headers: &HeaderMap, bytes: u64) -> Result<Snapshot, &'static str> {
    let text = |name: &HeaderName| headers.get(name)?.to_str().ok();
    let number = |name: &HeaderName| text(name)?.parse::<u64>().ok();
    let digest = |name: &HeaderName| Digest::parse(text(name)?);
    let read = || {
        Some(Snapshot {
            log: LogId::parse(text(&name::LOG)?)?,
            seq: Seq(number(&name::SEQ)?),
            length: number(&name::LENGTH)?,
            digest: digest(&name::LOG_DIGEST)?,
            state_digest: digest(&name::STATE_DIGEST)?,
            file_digest: digest(&name::FILE_DIGEST)?,
            bytes,
        })
    };
    let snapshot = read().ok_or("it doesn't say which log, how far, and with which digests")?;
    if snapshot.seq >= Seq(SEQS) || snapshot.length == 0 || snapshot.length > snapshot.seq.0 {
        return Err("no log is like that");
    }
    if text(&header::ETAG) != Some(&*tag(&snapshot)) {
        return Err("its tag is not the digest of the file");
    }
    if bytes == 0 || bytes > LARGEST {
        return Err("its size is none that a snapshot has");
    }
    Ok(snapshot)
}

/// The part of a snapshot that is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) snapshot: Snapshot,
    /// How many of its bytes, from the first on.
    pub(crate) bytes: u64,
}

/// What to do with the body of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Take {
    /// It is a snapshot from its beginning. What was here of another is worth nothing now.
    Whole(Snapshot),
    /// It is the rest of the part that is here.
    Rest,
}

/// Why there is nothing to take.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Not {
    /// The hub has none for this device, and says so, or something else has to be done first. The pull will tell.
    Offered,
    /// Whoever answered is in trouble, or busy. Its words say with what.
    Now,
    /// The hub's answer can't be right.
    Right(&'static str),
}

/// The attempts to get one snapshot.
#[derive(Debug, Default)]
pub(crate) struct Fetch {
    /// What is here of it.
    pub(crate) part: Option<Part>,
    begun: u32,
    in_vain: u32,
    not_ready: u32,
}

impl Fetch {
    /// The attempts of a device that found this part of an earlier one.
    pub(crate) fn with(part: Option<Part>) -> Self {
        Self { part, ..Self::default() }
    }

    /// Returns whether all of the file is here.
    pub(crate) fn is_whole(&self) -> bool {
        self.part.is_some_and(|part| part.bytes == part.snapshot.bytes)
    }

    /// Returns the headers of a request that goes on with the part that is here: the range, and the tag of the file that
    /// it is a part of.
    pub(crate) fn range(&self) -> Option<[(HeaderName, String); 2]> {
        let part = self.part.filter(|part| part.bytes > 0)?;
        Some([(header::RANGE, format!("bytes={}-", part.bytes)), (header::IF_RANGE, tag(&part.snapshot))])
    }

    /// Judges an answer by its head.
    pub(crate) fn judge(&mut self, status: StatusCode, headers: &HeaderMap) -> Result<Take, Not> {
        let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        if text(header::CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
            return Err(Not::Right("it was packed on the way"));
        }
        let length = text(header::CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
        match status {
            // Something else than a hub answers like that, such as the network of a hotel.
            StatusCode::OK if !headers.contains_key(name::LOG) => Err(Not::Offered),
            StatusCode::OK => {
                let bytes = length.ok_or(Not::Right("it doesn't say how long it is"))?;
                let offer = read(headers, bytes).map_err(Not::Right)?;
                self.begun += 1;
                if self.begun > BEGUN {
                    return Err(Not::Right("it is another one each time"));
                }
                Ok(Take::Whole(offer))
            }
            StatusCode::PARTIAL_CONTENT => {
                let part = self.part.filter(|part| part.bytes > 0);
                let Part { snapshot: offer, bytes } =
                    part.ok_or(Not::Right("it is a part, and the whole was asked for"))?;
                let range = format!("bytes {bytes}-{}/{}", offer.bytes - 1, offer.bytes);
                if text(header::CONTENT_RANGE) != Some(&*range) || read(headers, offer.bytes) != Ok(offer) {
                    return Err(Not::Right("it is another part than was asked for"));
                }
                Ok(Take::Rest)
            }
            StatusCode::TOO_MANY_REQUESTS => Err(Not::Now),
            status if status.is_server_error() => Err(Not::Now),
            _ => Err(Not::Offered),
        }
    }

    /// Notes that the hub itself says that its snapshot is not ready yet. Returns whether to believe that it will be.
    pub(crate) fn is_put_off(&mut self) -> bool {
        self.not_ready += 1;
        self.not_ready <= NOT_READY
    }

    /// Notes that an attempt is over, and how many bytes it brought. Returns whether another one is worth it.
    pub(crate) fn ended(&mut self, brought: u64) -> bool {
        self.in_vain = if brought >= SOMETHING { 0 } else { self.in_vain + 1 };
        self.in_vain < IN_VAIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::{fuzz, text};

    fn digest(byte: u8) -> Digest {
        Digest([byte; 32])
    }

    fn offer() -> Snapshot {
        Snapshot {
            log: LogId::random(),
            seq: Seq(20_000),
            length: 19_999,
            digest: digest(1),
            state_digest: digest(2),
            file_digest: digest(3),
            bytes: 1 << 20,
        }
    }

    fn head(offer: &Snapshot, more: &[(HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::from_iter(headers(offer));
        headers.insert(header::CONTENT_LENGTH, offer.bytes.into());
        for (name, value) in more {
            headers.insert(name, HeaderValue::try_from(*value).expect("a header"));
        }
        headers
    }

    #[test]
    fn an_offer_is_read_as_it_was_written() {
        let offer = offer();
        let mut fetch = Fetch::default();
        assert_eq!(fetch.range(), None);
        assert_eq!(fetch.judge(StatusCode::OK, &head(&offer, &[])), Ok(Take::Whole(offer)));
    }

    #[test]
    fn trust_38_fuzzed_heads_of_snapshots_are_offers_or_none() {
        let names = ["likewise-seq: ", "likewise-length: ", "likewise-log: ", "content-length: ", "etag: \""];
        fuzz("offer", &names, |input| {
            let text = text(input);
            let lines = text.lines().filter_map(|line| line.split_once(": "));
            let headers = lines.filter_map(|(name, value)| Some((name.parse().ok()?, value.parse().ok()?)));
            match Fetch::default().judge(StatusCode::OK, &HeaderMap::from_iter(headers)) {
                Ok(Take::Whole(snapshot)) => {
                    assert!(snapshot.seq.0 < SEQS && snapshot.length <= snapshot.seq.0 && snapshot.length > 0);
                    assert!(snapshot.bytes > 0 && snapshot.bytes <= LARGEST);
                    "right".to_owned()
                }
                judged => format!("{judged:?}"),
            }
        });
    }

    #[test]
    fn an_offer_that_can_not_be_right_is_not_taken() {
        let mut headers = head(&offer(), &[]);
        headers.remove(header::CONTENT_LENGTH);
        let mut fetch = Fetch::default();
        assert_eq!(fetch.judge(StatusCode::OK, &headers), Err(Not::Right("it doesn't say how long it is")));
        let wrong = [
            (name::LOG, "log"),
            (name::SEQ, "0"),
            (name::SEQ, "-1"),
            (name::SEQ, "2305843009213693952"),
            (name::LENGTH, "20001"),
            (name::LENGTH, "0"),
            (name::LOG_DIGEST, "00"),
            (name::STATE_DIGEST, ""),
            (name::FILE_DIGEST, &*digest(4).to_string()),
            (header::ETAG, "\"1\""),
            (header::CONTENT_LENGTH, "0"),
            (header::CONTENT_LENGTH, "1099511627777"),
            (header::CONTENT_ENCODING, "gzip"),
        ]
        .map(|(name, value)| (name, value.to_owned()));
        for (name, value) in wrong {
            let headers = head(&offer(), &[(name.clone(), &value)]);
            let judged = Fetch::default().judge(StatusCode::OK, &headers);
            assert!(matches!(judged, Err(Not::Right(_))), "{name}: {value}: {judged:?}");
        }
    }

    #[test]
    fn the_rest_of_a_part_is_taken_and_no_other() {
        let offer = offer();
        let mut fetch = Fetch::with(Some(Part { snapshot: offer, bytes: 100 }));
        let [(_, range), (_, named)] = fetch.range().expect("a range");
        assert_eq!((range.as_str(), named), ("bytes=100-", tag(&offer)));
        let right = format!("bytes 100-{}/{}", offer.bytes - 1, offer.bytes);
        let answer = |range: &str| head(&offer, &[(header::CONTENT_RANGE, range)]);
        assert_eq!(fetch.judge(StatusCode::PARTIAL_CONTENT, &answer(&right)), Ok(Take::Rest));
        for wrong in ["", "bytes 0-1048575/1048576", "bytes 100-200/1048576", "bytes 100-1048575/2097152"] {
            let judged = fetch.judge(StatusCode::PARTIAL_CONTENT, &answer(wrong));
            assert_eq!(judged, Err(Not::Right("it is another part than was asked for")), "{wrong}");
        }
        let other = Snapshot { state_digest: digest(9), ..offer };
        let judged = fetch.judge(StatusCode::PARTIAL_CONTENT, &head(&other, &[(header::CONTENT_RANGE, &right)]));
        assert_eq!(judged, Err(Not::Right("it is another part than was asked for")));
        let judged = Fetch::default().judge(StatusCode::PARTIAL_CONTENT, &answer(&right));
        assert_eq!(judged, Err(Not::Right("it is a part, and the whole was asked for")));
    }

    #[test]
    fn attempts_end_that_bring_nothing_begin_anew_each_time_or_are_put_off_for_ever() {
        let mut fetch = Fetch::default();
        assert_eq!([fetch.ended(0), fetch.ended(0), fetch.ended(0)], [true, true, false]);
        let mut fetch = Fetch::default();
        assert!((0..100).all(|_| fetch.ended(1 << 20)), "each brings something");
        let mut fetch = Fetch::default();
        for n in 0..100 {
            let other = Snapshot { file_digest: digest(n), ..offer() };
            match fetch.judge(StatusCode::OK, &head(&other, &[])) {
                Ok(Take::Whole(_)) => assert!(u32::from(n) < BEGUN),
                judged => {
                    assert_eq!(judged, Err(Not::Right("it is another one each time")));
                    assert!(u32::from(n) >= BEGUN);
                }
            }
        }
        let mut fetch = Fetch::default();
        for status in [StatusCode::SERVICE_UNAVAILABLE, StatusCode::BAD_GATEWAY, StatusCode::TOO_MANY_REQUESTS] {
            assert_eq!(fetch.judge(status, &HeaderMap::new()), Err(Not::Now));
        }
        assert!((0..NOT_READY).all(|_| fetch.is_put_off()));
        assert!(!fetch.is_put_off());
    }
}
