//! Who sends a request, and what they may see of the program.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;

use axum::extract::{FromRequestParts, Request};
use axum::http::header::{self, HeaderMap};
use axum::http::request::Parts;

use super::client::is_proxied;
use super::host::{AddressedAs, addressed_as};
use super::{HEALTH, Policy};
use crate::web::Role;
use crate::web::problem::{Problem, storeless};
use crate::web::shares::Who;

/// The sender of a request. It decides what of the program they may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// The owner of the data, or somebody on their machine.
    Owner,
    /// A program that monitors this one, with a token for that.
    Watcher,
    /// Anybody else.
    Visitor,
}

impl Caller {
    pub(super) fn who(self) -> Who {
        match self {
            Self::Owner => Who::Owner,
            Self::Watcher | Self::Visitor => Who::Visitor,
        }
    }

    pub(super) fn sees(self) -> Sees {
        match self {
            Self::Owner | Self::Watcher => Sees::All,
            Self::Visitor => Sees::ThePage,
        }
    }
}

/// How much of itself the program shows to the sender of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sees {
    /// What its owner sees.
    All,
    /// What is on its page.
    ThePage,
}

impl<S: Send + Sync> FromRequestParts<S> for Sees {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        // A request that didn't pass the guard is a stranger's.
        Ok(parts.extensions.get().copied().unwrap_or(Self::ThePage))
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
    // A hub shows only its status and the health of its stores. What isn't there needs no protection.
    let is_nothing = policy.role == Role::Hub && !is_watched && route != HEALTH;
    let is_for_everybody = path.starts_with("/sync/") || path == HEALTH || is_nothing;
    match addressed_as(policy, request)? {
        AddressedAs::HealthCheck => Ok(Caller::Visitor),
        AddressedAs::Loopback => {
            // A proxy on this machine connects from it, too, and may leave no sign of itself. So where a proxy is
            // expected, nobody under a loopback name counts as the owner.
            let expects_proxy = !policy.allow_hosts.is_empty() || is_proxied(&policy.proxies, request);
            if !expects_proxy || policy.local_page || policy.passes.of(request) == Some(Pass::Owner) {
                return Ok(Caller::Owner);
            }
            // `/control/` needs the key, which is checked next.
            if is_for_everybody || path.starts_with("/control/") {
                return Ok(Caller::Visitor);
            }
            Err(Problem::forbidden(
                "no-local-page",
                "This program expects a proxy in front of it (--allow-host, --behind-proxy), so it shows nothing under this \
                 machine's own names: the proxy would let everybody in.",
                "If no proxy passes these names on, start the program with `--local-page`.",
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
            if !is_for_everybody && !policy.public {
                let (detail, advice) = match policy.role {
                    Role::App => (
                        "Under this name the program only syncs; its page is not public.",
                        "To serve the page to everyone who can reach it, start the program with `--public`.",
                    ),
                    Role::Hub => (
                        "Under this name the hub only syncs.",
                        "Show a token that `token add NAME --read` made, or ask on the machine that the hub runs on.",
                    ),
                };
                return Err(Problem::forbidden("not-public", detail, advice));
            }
            if matches!(route, "/metrics" | "/adopt" | "/history" | "/stores") {
                return Err(Problem::forbidden(
                    "owner-only",
                    "This address is for the owner of the program.",
                    "Use it on the program's own machine. A watcher shows a token that `token add NAME --read` made.",
                ));
            }
            Ok(Caller::Visitor)
        }
    }
}
