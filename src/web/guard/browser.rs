//! Paired browsers: a cookie shows that a browser may see the page, under a name of its own.

use axum::body::{Body, HttpBody as _};
use axum::http::header::{self, HeaderMap, HeaderValue};
use axum::response::Response;
use futures_util::StreamExt as _;

use crate::limits::web::browser::KEPT;
use crate::sync::{Purpose, Token, Tokens};
use crate::web::cookies::cookie;
use crate::web::face::Face;
use crate::web::public_url::PublicUrl;

/// The cookie of paired browsers: its name, and what a browser is told about it.
#[derive(Clone, Debug)]
pub(crate) struct PairingCookie {
    name: String,
    attributes: String,
}

impl PairingCookie {
    /// The cookie of an app that others reach at `public`.
    ///
    /// Browsers send cookies to every port of a host, so the name has the port: hubs on one machine don't overwrite each
    /// other's. Over TLS a prefix of the name makes browsers refuse the cookie from anybody but this very host. Over plain
    /// HTTP, which only this machine is reached by, some browsers would refuse a cookie with these attributes.
    pub(crate) fn new(face: &Face, public: Option<&PublicUrl>) -> Self {
        let path = face.base_path.home();
        let (prefix, secure) = match public.is_some_and(PublicUrl::is_https) {
            true if path == "/" => ("__Host-", "; Secure"),
            true => ("__Secure-", "; Secure"),
            false => ("", ""),
        };
        let port = public.and_then(PublicUrl::port).map(|port| format!("-{port}")).unwrap_or_default();
        Self {
            name: format!("{prefix}{}-paired{port}", face.name),
            attributes: format!("Path={path}; Max-Age={KEPT}; HttpOnly; SameSite=Lax{secure}"),
        }
    }

    /// The header that gives `token` to a browser.
    pub(crate) fn set(&self, token: &str) -> Option<HeaderValue> {
        format!("{}={token}; {}", self.name, self.attributes).try_into().ok()
    }

    /// The token that a browser shows, if it shows one.
    fn shown<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        cookie(headers, &self.name)
    }
}

/// Recognizes paired browsers.
#[derive(Clone)]
pub(crate) struct Browsers {
    pub(crate) tokens: Tokens,
    pub(crate) cookie: PairingCookie,
}

impl Browsers {
    /// Returns the token that the sender of a request shows in a cookie, if it is valid.
    pub(super) fn paired(&self, headers: &HeaderMap) -> Option<Token> {
        self.tokens.find(self.cookie.shown(headers)?.as_bytes(), Purpose::Browser)
    }

    /// Returns whether a browser shows that it was paired, valid or not.
    pub(super) fn was_paired(&self, headers: &HeaderMap) -> bool {
        self.cookie.shown(headers).is_some()
    }

    /// Returns the header that makes a browser keep its cookie for a while longer.
    pub(super) fn renewed(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        self.cookie.set(self.cookie.shown(headers)?)
    }

    /// Ends an answer that has no end of its own, such as a live stream, when `token` is revoked.
    pub(super) fn until_revoked(&self, token: Token, answer: Response) -> Response {
        if answer.body().size_hint().exact().is_some() {
            return answer;
        }
        let tokens = self.tokens.clone();
        let revoked = Box::pin(async move { tokens.revoked(&token).await });
        answer.map(|body| Body::from_stream(body.into_data_stream().take_until(revoked)))
    }
}

/// Adds a cookie to an answer.
pub(super) fn with_cookie(mut answer: Response, cookie: Option<HeaderValue>) -> Response {
    if let Some(cookie) = cookie {
        answer.headers_mut().append(header::SET_COOKIE, cookie);
    }
    answer
}
