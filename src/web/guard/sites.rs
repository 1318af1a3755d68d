//! The sites that may embed what this program counts, and what their pages may read of the answers.
//!
//! Only the routes of `/embed` open to them. What a browser keeps from other sites' pages by default stays as it is
//! everywhere else.

use std::fmt;
use std::str::FromStr;

use axum::extract::Request;
use axum::http::header::{self, HeaderName, HeaderValue};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use url::Url;

use super::Policy;
use super::origin::{SEC_FETCH_SITE, one_at_most};
use crate::web::problem::Problem;

/// A value of `--embed`: the origin of a site, as browsers write it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddingSite(Box<str>);

/// The value of `--embed` isn't an origin.
#[derive(Debug, thiserror::Error)]
#[error("{given:?} is not the origin of a site: {advice}")]
pub struct InvalidSite {
    given: String,
    advice: String,
}

impl FromStr for EmbeddingSite {
    type Err = InvalidSite;

    /// Accepts an origin only as browsers send it. Anything else would never match, and nobody would know why.
    fn from_str(text: &str) -> Result<Self, InvalidSite> {
        let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let origin = url.map(|url| url.origin().ascii_serialization());
        match origin {
            Some(origin) if origin == text => Ok(Self(text.into())),
            Some(origin) => Err(InvalidSite { given: text.to_owned(), advice: format!("write {origin}") }),
            None => {
                let advice = "write scheme, name and, unless it is the usual one, port, like `https://blog.example.org` or \
                              `http://localhost:8080`; no path";
                Err(InvalidSite { given: text.to_owned(), advice: advice.to_owned() })
            }
        }
    }
}

impl fmt::Display for EmbeddingSite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The sites of a server, as its handlers need them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sites(pub(crate) Vec<EmbeddingSite>);

impl Sites {
    /// Returns whether this is the origin of one of the sites.
    pub(in crate::web) fn have(&self, origin: &[u8]) -> bool {
        self.0.iter().any(|site| site.0.as_bytes() == origin)
    }
}

/// A route that other sites may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Embedded {
    /// For anybody, without a word about who asks: the script and pictures. A browser sends no `Origin` for these.
    Open,
    /// For pages of the sites: counts for lists of posts.
    Counts,
    /// For pages of the sites.
    Page,
}

impl Policy {
    /// Returns what kind of embedded route `path` is. It is none where nothing is embedded.
    pub(super) fn embedded(&self, path: &str) -> Option<Embedded> {
        if self.sites.0.is_empty() {
            return None;
        }
        let below = path.strip_prefix("/embed/v1/");
        match below {
            _ if path == "/embed.js" => Some(Embedded::Open),
            Some(below) if below.ends_with("/badge.svg") => Some(Embedded::Open),
            Some("counts") => Some(Embedded::Counts),
            _ => path.starts_with("/embed/").then_some(Embedded::Page),
        }
    }
}

/// Refuses a request that another website sent. Programs send none of the headers that say so.
pub(super) fn check(policy: &Policy, route: Embedded, request: &Request) -> Result<(), Problem> {
    if route == Embedded::Open && request.method().is_safe() {
        return Ok(());
    }
    let headers = request.headers();
    let (site, origin) = (one_at_most(headers, &SEC_FETCH_SITE), one_at_most(headers, &header::ORIGIN));
    let (Ok(site), Ok(origin)) = (site, origin) else { return Err(not_a_site(None)) };
    match origin {
        Some(origin) if policy.sites.have(origin.as_bytes()) => Ok(()),
        // A page can make a browser send this, and would get no answer, but would take up a stream.
        None if site.is_none_or(|site| site == "same-origin" || site == "none") => Ok(()),
        other => Err(not_a_site(other)),
    }
}

fn not_a_site(origin: Option<&HeaderValue>) -> Problem {
    let origin = origin.map(|origin| String::from_utf8_lossy(origin.as_bytes()).chars().take(200).collect::<String>());
    let (detail, advice) = match origin {
        Some(origin) if origin == "null" => (
            "The page hides where it is, so nobody can tell whether it may embed this.".to_owned(),
            "Give the page the referrer policy that browsers have by default, `strict-origin-when-cross-origin`."
                .to_owned(),
        ),
        Some(origin) => (
            format!("Pages of {origin:?} may not embed this."),
            "If they should, the owner of this program starts it with `--embed` and that origin.".to_owned(),
        ),
        None => (
            "Another website sent this request, so it was not carried out.".to_owned(),
            "Use it on a page of a site that may embed this.".to_owned(),
        ),
    };
    Problem::forbidden("site-not-allowed", detail, advice)
}

/// Answers a browser that asks beforehand whether a page may send a request. Ours don't need that.
pub(super) fn preflight(request: &Request) -> Option<Response> {
    let asks = *request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
        && request.headers().contains_key(header::ORIGIN);
    let allowed = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST"),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, "accept, content-type, last-event-id"),
        (header::ACCESS_CONTROL_MAX_AGE, "600"),
    ];
    asks.then(|| (StatusCode::NO_CONTENT, allowed).into_response())
}

/// Lets the pages of the sites read an answer, errors included.
pub(super) fn open(policy: &Policy, route: Embedded, origin: Option<&HeaderValue>, answer: &mut Response) {
    const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
    const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");
    let is_way_back = answer.status().is_redirection();
    let answer = answer.headers_mut();
    if is_way_back {
        // The site's page would lose the page that opened it.
        answer.remove(OPENER_POLICY);
    }
    // A cache must not give one site the answer for another.
    answer.append(header::VARY, HeaderValue::from_static("origin"));
    if let Some(origin) = origin.filter(|origin| policy.sites.have(origin.as_bytes())) {
        answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        answer.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("likewise-stored, retry-after"));
    }
    if route != Embedded::Page {
        answer.insert(RESOURCE_POLICY, HeaderValue::from_static("cross-origin"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_is_an_origin_as_browsers_write_it() {
        for text in
            ["https://blog.example.org", "http://localhost:8080", "https://[fd00::1]:8443", "http://192.168.1.20"]
        {
            assert_eq!(text.parse::<EmbeddingSite>().expect(text).to_string(), text);
        }
        for (text, advice) in [
            ("https://blog.example.org/", "write https://blog.example.org"),
            ("https://blog.example.org/posts?x#y", "write https://blog.example.org"),
            ("https://Blog.Example.org", "write https://blog.example.org"),
            ("https://blog.example.org:443", "write https://blog.example.org"),
            ("https://me:secret@blog.example.org", "write https://blog.example.org"),
            ("https://bücher.example", "write https://xn--bcher-kva.example"),
            (" https://blog.example.org", "write https://blog.example.org"),
        ] {
            let why = text.parse::<EmbeddingSite>().expect_err(text).to_string();
            assert!(why.ends_with(advice), "{why}");
        }
        for text in [
            "",
            "*",
            "null",
            "blog.example.org",
            "//blog.example.org",
            "ftp://blog.example.org",
            "file:///x",
            "https://",
        ] {
            let why = text.parse::<EmbeddingSite>().expect_err(text).to_string();
            assert!(why.contains("is not the origin of a site") && why.contains("no path"), "{why}");
        }
    }
}
