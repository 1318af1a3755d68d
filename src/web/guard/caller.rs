//! Who sends a request, and what they may see of the program.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;

use axum::extract::{FromRequestParts, Request};
use axum::http::header::{self, HeaderMap};
use axum::http::request::Parts;

use super::client::{ClientAddress, HidingProxy, is_proxied};
use super::host::{AddressedAs, addressed_as};
use super::{HEALTH, PAIR, Policy};
use crate::sync::Token;
use crate::web::Role;
use crate::web::problem::{Problem, storeless};
use crate::web::shares::Who;

/// The sender of a request. It decides what of the program they may see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// The owner of the data, or somebody on their machine.
    Owner,
    /// A program that monitors this one, with a token for that.
    Watcher,
    /// A paired browser, with its token.
    Browser(Token),
    /// Anybody else.
    Visitor,
}

impl Caller {
    pub(super) fn who(&self) -> Who {
        match self {
            Self::Owner => Who::Owner,
            Self::Browser(token) => Who::Token(token.device.clone()),
            Self::Watcher | Self::Visitor => Who::Visitor,
        }
    }

    pub(super) fn sees(&self) -> Sees {
        match self {
            Self::Owner | Self::Watcher => Sees::All,
            Self::Browser(_) => Sees::TheViews,
            Self::Visitor => Sees::ThePage,
        }
    }
}

/// Who asks, as far as the guard can tell. Every request that passes the guard carries it. One that didn't comes from a
/// visitor.
#[derive(Clone, Debug, Default)]
pub(in crate::web) struct Asker {
    pub(in crate::web) who: Who,
    pub(in crate::web) sees: Sees,
    /// Where they are.
    pub(in crate::web) client: Option<ClientAddress>,
    /// The proxy that doesn't say for whom it asks, where limits by client suffer from it.
    pub(in crate::web) hidden_by: Option<HidingProxy>,
}

impl Asker {
    /// Returns who sent the request.
    pub(in crate::web) fn of(parts: &Parts) -> Self {
        parts.extensions.get().cloned().unwrap_or_default()
    }
}

/// A handler gets who asks.
impl<S: Send + Sync> FromRequestParts<S> for Asker {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::of(parts))
    }
}

/// How much of itself the program shows to the sender of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Sees {
    /// What its owner sees.
    All,
    /// Its page, and the program's own views: who brought what, and all stores.
    TheViews,
    /// What is on its page.
    #[default]
    ThePage,
}

impl<S: Send + Sync> FromRequestParts<S> for Sees {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Asker::of(parts).sees)
    }
}

/// What a bearer token opens besides sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// Everything: this is the key that only the owner of the data can read.
    Owner,
    /// `/status` and `/metrics`.
    Watcher,
}

/// Looks up what a bearer token opens.
#[derive(Clone)]
pub(crate) struct Passes(Arc<PassOf>);

type PassOf = dyn Fn(&[u8]) -> Option<Pass> + Send + Sync;

impl Passes {
    pub(crate) fn new(of: impl Fn(&[u8]) -> Option<Pass> + Send + Sync + 'static) -> Self {
        Self(Arc::new(of))
    }

    /// Creates passes under which no token opens anything.
    pub(super) fn none() -> Self {
        Self::new(|_| None)
    }

    /// Returns what the token of a request opens.
    pub(super) fn of(&self, request: &Request) -> Option<Pass> {
        (self.0)(bearer_token(request.headers())?)
    }
}

/// Returns the token that a request shows, if it shows exactly one.
pub(in crate::web) fn bearer_token(headers: &HeaderMap) -> Option<&[u8]> {
    let mut shown = headers.get_all(header::AUTHORIZATION).iter();
    let shown = shown.next().filter(|_| shown.next().is_none())?;
    shown.as_bytes().strip_prefix(b"Bearer ")
}

impl fmt::Debug for Passes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passes")
    }
}

/// Returns who sends a request, if they may reach what it asks for.
pub(super) fn caller(policy: &Policy, request: &Request) -> Result<Caller, Problem> {
    let path = request.uri().path();
    let route = storeless(path);
    let is_watched = matches!(route, "/status" | "/metrics");
    // The page behind a pairing link, and the files that it is drawn with: the same for everybody, and nobody's data.
    let is_for_pairing = path == PAIR || path == "/favicon.ico" || path.starts_with("/static/");
    // A hub shows only its status and the health of its stores. What isn't there needs no protection.
    let is_nothing = policy.role == Role::Hub && !is_watched && route != HEALTH;
    let is_for_everybody = path.starts_with("/sync/") || path == HEALTH || is_nothing || is_for_pairing;
    let is_embedded = policy.embedded(path).is_some();
    let browser = paired(policy, request).filter(|_| !is_embedded);
    match addressed_as(policy, request)? {
        AddressedAs::HealthCheck => Ok(Caller::Visitor),
        AddressedAs::Loopback => {
            // A proxy on this machine connects from it, too, and may leave no sign of itself. So where a proxy is
            // expected, nobody under a loopback name counts as the owner.
            let expects_proxy = !policy.allow_hosts.is_empty() || is_proxied(&policy.proxies, request);
            let shows_key = policy.passes.of(request) == Some(Pass::Owner);
            if let Some(token) = browser.filter(|_| !shows_key) {
                return as_browser(token, route);
            }
            if !expects_proxy || policy.local_page || shows_key {
                // On their own machine, too, people who like something on a site are its visitors.
                return Ok(if is_embedded { Caller::Visitor } else { Caller::Owner });
            }
            // `/control/` needs the key, which is checked next.
            if is_for_everybody || path.starts_with("/control/") {
                return Ok(Caller::Visitor);
            }
            Err(Problem::forbidden(
                "no-local-page",
                "This program expects a proxy in front of it (--allow-host, --behind-proxy), so it shows nothing under this \
                 machine's own names: the proxy would let everybody in.",
                "Open it under its public name; a link that `pair NAME` makes lets a browser in. If no proxy passes this \
                 machine's names on, start the program with `--local-page`.",
            ))
        }
        AddressedAs::Allowed => {
            if path.starts_with("/control/") {
                return Err(Problem::forbidden(
                    "loopback-only",
                    "This address is only for commands on the machine that the program runs on.",
                    "Run the command there.",
                ));
            }
            if is_watched && policy.passes.of(request) == Some(Pass::Watcher) {
                return Ok(Caller::Watcher);
            }
            if is_embedded {
                return Ok(Caller::Visitor);
            }
            if let Some(token) = browser {
                return as_browser(token, route);
            }
            if !is_for_everybody && !policy.public {
                if policy.browsers.as_ref().is_some_and(|browsers| browsers.was_paired(request.headers())) {
                    return Err(Problem::forbidden(
                        "not-paired",
                        "This browser is no longer paired with this program.",
                        format!(
                            "Make a new link with `{} pair NAME` on the machine that it runs on.",
                            policy.face.name
                        ),
                    ));
                }
                let (detail, advice) = match policy.role {
                    Role::App => (
                        "Under this name the program only syncs; its page is not public.",
                        "Pair this browser, with a link that the command `pair NAME` makes on the program's own machine. To \
                         serve the page to everyone who can reach it, start the program with `--public`.",
                    ),
                    Role::Hub => (
                        "Under this name the hub only syncs.",
                        "Show a token that `token add NAME --read` made, or ask on the machine that the hub runs on.",
                    ),
                };
                return Err(Problem::forbidden("not-public", detail, advice));
            }
            if is_owners(route) || is_view(route) {
                return Err(owner_only());
            }
            Ok(Caller::Visitor)
        }
    }
}

/// Returns the token of the browser that sends a request, if it is paired. Devices and commands show no cookies.
fn paired(policy: &Policy, request: &Request) -> Option<Token> {
    let path = request.uri().path();
    let is_pages = policy.role == Role::App && !path.starts_with("/sync/") && !path.starts_with("/control/");
    policy.browsers.as_ref().filter(|_| is_pages)?.paired(request.headers())
}

/// Returns a paired browser, unless it asks for what is only the owner's. A browser that shows its cookie under a loopback
/// name is that browser, too.
fn as_browser(token: Token, route: &str) -> Result<Caller, Problem> {
    if is_owners(route) { Err(owner_only()) } else { Ok(Caller::Browser(token)) }
}

fn is_owners(route: &str) -> bool {
    matches!(route, "/metrics" | "/adopt" | "/sync-now")
}

/// Returns whether a route is a view for those whom the owner has let in.
fn is_view(route: &str) -> bool {
    matches!(route, "/history" | "/stores")
}

fn owner_only() -> Problem {
    Problem::forbidden(
        "owner-only",
        "This address is for the owner of the program.",
        "Use it on the program's own machine. A watcher shows a token that `token add NAME --read` made.",
    )
}
