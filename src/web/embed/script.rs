//! The script that makes a `<likewise-button>` a button. It is written for people and sent for machines: without comments
//! and indentation, and compressed.

use std::sync::LazyLock;

use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;

use super::{cached, prefers_gzip};
use crate::limits::web::embed::SCRIPT_KEPT;
use crate::web::assets::gzip;

const SOURCE: &str = include_str!("../../../static/embed.js");

/// The script as it is sent, and the same in gzip.
static SENT: LazyLock<(String, Option<Bytes>)> = LazyLock::new(|| {
    let plain = stripped(SOURCE);
    let gzipped = gzip(plain.as_bytes());
    (plain, gzipped)
});

/// `GET /embed.js`
pub(super) async fn script(headers: HeaderMap) -> Response {
    let (plain, gzipped) = &*SENT;
    let mut answer = cached(&headers, "text/javascript; charset=utf-8", SCRIPT_KEPT, plain.clone());
    answer.headers_mut().append(header::VARY, HeaderValue::from_static("accept-encoding"));
    if let Some(gzipped) = gzipped.clone().filter(|_| answer.status().is_success() && prefers_gzip(&headers)) {
        answer.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        *answer.body_mut() = gzipped.into();
    }
    answer
}

/// The script without indentation, empty lines, and comments that have a line of their own. Lines stay lines, so nothing
/// else has to be known of the language.
fn stripped(source: &str) -> String {
    let lines = source.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//"));
    lines.fold(String::new(), |text, line| text + line + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_takes_three_kilobytes_at_most() {
        let (plain, gzipped) = &*SENT;
        let gzipped = gzipped.as_ref().expect("worth it");
        assert!(gzipped.len() <= 3 * 1024, "{} of {} bytes", gzipped.len(), plain.len());
    }

    #[test]
    fn comments_and_indentation_stay_at_home() {
        assert_eq!(stripped("// a\n  b;\n\n  // c\n  d('// e');\n"), "b;\nd('// e');\n");
    }
}
