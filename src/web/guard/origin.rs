//! Checks whether another website sent a request.

use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::Policy;
use super::host::Authority;
use crate::web::problem::Problem;

pub(super) const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Refuses a request whose headers name another site, or can't come from a browser that asks for a page of ours.
/// Programs send none of these headers.
pub(super) fn check(policy: &Policy, headers: &HeaderMap) -> Result<(), Problem> {
    let (site, origin) = (one_at_most(headers, &SEC_FETCH_SITE), one_at_most(headers, &header::ORIGIN));
    let (Ok(site), Ok(origin)) = (site, origin) else { return Err(cross_site()) };
    if site.is_some_and(|site| site != "same-origin" && site != "none") {
        return Err(cross_site());
    }
    let Some(origin) = origin else { return Ok(()) };
    let host = headers.get(header::HOST).map_or(&[][..], HeaderValue::as_bytes);
    let Some(asked) = authority_of(origin) else { return Err(cross_site()) };
    if asked.as_bytes().eq_ignore_ascii_case(host) {
        return Ok(());
    }
    // A proxy that passes the name on without its port makes our own origin look foreign. The browser knows better, but
    // it is believed only about names that are ours.
    let Some(page) = Authority::parse(asked).filter(|page| policy.allows(page)) else { return Err(cross_site()) };
    if site.is_some_and(|site| site == "same-origin") {
        return Ok(());
    }
    let named = std::str::from_utf8(host).ok().and_then(Authority::parse);
    let has_lost_its_port = named.is_some_and(|named| named.host == page.host);
    Err(if has_lost_its_port { port_lost(origin, host) } else { cross_site() })
}

fn cross_site() -> Problem {
    Problem::forbidden(
        "cross-site",
        "Another website sent this request, so it was not carried out.",
        "If you meant to do this, do it on the program's own page.",
    )
}

fn port_lost(origin: &HeaderValue, host: &[u8]) -> Problem {
    let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Problem::forbidden(
        "cross-site",
        format!(
            "The page is at {}, but the request names the host {:?}, so it may be another website's.",
            shown(origin.as_bytes()),
            shown(host)
        ),
        "If a proxy stands in front, have it pass the port on, too (nginx: `proxy_set_header Host $http_host;`).",
    )
}

/// Returns the value of a header that may appear once.
pub(super) fn one_at_most<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a HeaderValue>, Doubled> {
    let mut values = headers.get_all(name).iter();
    let value = values.next();
    if values.next().is_some() { Err(Doubled) } else { Ok(value) }
}

/// A header that may appear once appears twice.
pub(super) struct Doubled;

/// Returns the host and port that an origin names.
fn authority_of(origin: &HeaderValue) -> Option<&str> {
    let origin = origin.to_str().ok()?;
    origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"))
}
