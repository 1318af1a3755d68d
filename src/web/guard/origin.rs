//! Whether another website sent a request.

use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// Whether the headers name another site, or can't come from a browser that asks for one of our pages. Programs send
/// none of these headers.
pub(super) fn is_cross_site(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).map_or(&[][..], HeaderValue::as_bytes);
    let is_own_site = |site: &HeaderValue| site == "same-origin" || site == "none";
    let is_own_origin = |origin: &HeaderValue| is_authority_of(origin.as_bytes(), host);
    !one_at_most(headers, SEC_FETCH_SITE, is_own_site) || !one_at_most(headers, header::ORIGIN, is_own_origin)
}

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Whether a header occurs at most once, and has the expected value if it does.
fn one_at_most(headers: &HeaderMap, name: HeaderName, is_fine: impl Fn(&HeaderValue) -> bool) -> bool {
    let mut values = headers.get_all(name).iter();
    values.next().is_none_or(is_fine) && values.next().is_none()
}

fn is_authority_of(origin: &[u8], host: &[u8]) -> bool {
    [&b"http://"[..], b"https://"]
        .iter()
        .find_map(|scheme| origin.strip_prefix(*scheme))
        .is_some_and(|authority| authority.eq_ignore_ascii_case(host))
}
