//! Paired browsers: a cookie shows that a browser may see the page, under a name of its own.

use axum::body::{Body, HttpBody as _};
use axum::http::header::{self, HeaderMap, HeaderValue};
use axum::response::Response;
use futures_util::StreamExt as _;

use super::host::Authority;
use crate::limits::web::browser::KEPT;
use crate::sync::{Purpose, Token, Tokens};
use crate::web::cookies::cookies;
use crate::web::face::Face;
use crate::web::public_url::PublicUrl;

/// The cookies of paired browsers.
#[derive(Clone, Debug)]
pub(crate) struct PairingCookies {
    /// The program.
    name: String,
    /// Where it is on its site, in characters that the name of a cookie may have.
    place: String,
    /// Whether every request comes over TLS, because the address at which others reach this has it.
    is_https: bool,
}

impl PairingCookies {
    /// The cookies of an app that others reach at `public`, if that is known.
    ///
    /// The base path is in the name rather than in the cookie's path. A cookie that has another path can't have the prefix
    /// that keeps the hosts beside this one from setting it.
    pub(crate) fn new(face: &Face, public: Option<&PublicUrl>) -> Self {
        let place = face.base_path.to_string().replace('/', "+");
        Self { name: format!("{}-paired", face.name), place, is_https: public.is_some_and(PublicUrl::is_https) }
    }

    /// The one cookie that counts in a request with these headers: to set, and to recognize a browser by.
    ///
    /// Links are made for TLS or for this machine. So whoever asks under a name that isn't this machine's own comes over
    /// TLS, whatever this server knows of the proxy that speaks it. If they don't, browsers refuse the cookie.
    pub(crate) fn of(&self, headers: &HeaderMap) -> PairingCookie {
        let host = headers.get(header::HOST).and_then(|host| Authority::parse(host.to_str().ok()?));
        let is_own_name = host.as_ref().is_some_and(|authority| authority.host.is_loopback());
        let is_https = self.is_https || !is_own_name;
        // Browsers send cookies to every port of a host. With the port in the name, the hubs of one machine don't overwrite
        // each other's.
        let port = host.and_then(|authority| authority.port).map(|port| format!("-{port}")).unwrap_or_default();
        // With this prefix, browsers take the cookie over TLS and from this very host alone. Over plain HTTP some would
        // refuse it altogether.
        let prefix = if is_https { "__Host-" } else { "" };
        PairingCookie { name: format!("{prefix}{}{port}{}", self.name, self.place), is_https }
    }
}

/// A cookie of paired browsers: its name, and what a browser is told about it.
#[derive(Clone, Debug)]
pub(crate) struct PairingCookie {
    name: String,
    is_https: bool,
}

impl PairingCookie {
    /// The header that gives `token` to a browser.
    pub(crate) fn set(&self, token: &str) -> Option<HeaderValue> {
        let secure = if self.is_https { "; Secure" } else { "" };
        format!("{}={token}; Path=/; Max-Age={KEPT}; HttpOnly; SameSite=Lax{secure}", self.name).try_into().ok()
    }
}

/// Recognizes paired browsers.
#[derive(Clone)]
pub(crate) struct Browsers {
    pub(crate) tokens: Tokens,
    pub(crate) cookies: PairingCookies,
}

impl Browsers {
    /// Returns the token that the sender of a request shows in a cookie, if it is valid.
    pub(super) fn paired(&self, headers: &HeaderMap) -> Option<Token> {
        self.valid(headers).map(|(_, token)| token)
    }

    /// Returns whether a browser shows that it was paired, valid or not.
    pub(super) fn was_paired(&self, headers: &HeaderMap) -> bool {
        cookies(headers, &self.cookies.of(headers).name).next().is_some()
    }

    /// Returns the header that makes a browser keep its cookie for a while longer.
    pub(super) fn renewed(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        self.cookies.of(headers).set(self.valid(headers)?.0)
    }

    /// The first of the tokens shown that is valid. Others may come from somebody who can set cookies for the same name.
    fn valid<'a>(&self, headers: &'a HeaderMap) -> Option<(&'a str, Token)> {
        if !headers.contains_key(header::COOKIE) {
            return None;
        }
        let cookie = self.cookies.of(headers);
        let mut shown = cookies(headers, &cookie.name);
        shown.find_map(|shown| Some((shown, self.tokens.find(shown.as_bytes(), Purpose::Browser)?)))
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
