//! Decides who may talk to us, and how much. Every website that the user opens can reach a server on a loopback
//! address. So can every host on the network once the server listens wider. A request that is refused here never
//! reaches a route.

mod body;
mod browser;
mod caller;
mod client;
mod host;
mod origin;
mod sites;

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use axum::{BoxError, Router};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tower::Service;

use self::body::bound_body;
pub(crate) use self::body::{BodyRule, Patience};
use self::browser::with_cookie;
pub(crate) use self::browser::{Browsers, PairingCookies};
pub(super) use self::caller::Asker;
pub(super) use self::caller::bearer_token;
use self::caller::caller;
pub(crate) use self::caller::{Caller, Pass, Passes, Sees};
pub use self::client::TrustedProxy;
pub(super) use self::client::{ClientAddress, HidingProxy};
pub use self::host::AllowedHost;
pub(super) use self::host::{CameIn, with_connect_info};
pub use self::sites::EmbeddingSite;
pub(crate) use self::sites::Sites;
use super::Role;
use super::base_path::Place;
use super::face::Face;
use super::install::MARK;
use super::problem::{self, Problem, storeless};
use crate::limits::web::embed;
use crate::limits::web::guard::{
    CONTROL_PATIENCE, FORM_PATIENCE, HEAD_BYTES, SYNC_BODY_BYTES, SYNC_PATIENCE, URI_BYTES,
};

/// What the guard lets through.
#[derive(Clone)]
pub(crate) struct Policy {
    /// The names, besides the loopback names, under which this server answers.
    pub(crate) allow_hosts: Vec<AllowedHost>,
    pub(crate) role: Role,
    /// Whether those names also open pages, and not only the sync routes and `/healthz`.
    pub(crate) public: bool,
    /// Whether pages are served under loopback names even though `allow_hosts` gives others.
    pub(crate) local_page: bool,
    /// The proxies that say for whom they ask.
    pub(crate) proxies: Vec<TrustedProxy>,
    /// The sites whose pages may embed what is counted here.
    pub(crate) sites: Sites,
    /// What a bearer token opens besides sync. The sync routes check tokens themselves.
    pub(crate) passes: Passes,
    /// Recognizes paired browsers.
    pub(crate) browsers: Option<Browsers>,
    /// The longest URI, in bytes.
    pub(crate) uri_bytes: usize,
    /// The largest sum of names and values of the headers, in bytes.
    pub(crate) head_bytes: usize,
    /// The rule for bodies of every route that `bodies` doesn't name: forms, and the app's own routes.
    pub(crate) form: BodyRule,
    /// The rules for bodies by the beginning of the path, below the base path. The first match applies.
    pub(crate) bodies: Vec<(&'static str, BodyRule)>,
    /// The app: its forms, and what its error pages look like.
    pub(crate) face: Arc<Face>,
}

impl Policy {
    /// Returns what an app with this `face` lets through, under loopback names alone.
    pub(crate) fn of(face: &Arc<Face>) -> Self {
        Self {
            allow_hosts: Vec::new(),
            face: Arc::clone(face),
            role: Role::App,
            public: false,
            local_page: false,
            proxies: Vec::new(),
            sites: Sites::default(),
            passes: Passes::none(),
            browsers: None,
            uri_bytes: URI_BYTES,
            head_bytes: HEAD_BYTES,
            form: BodyRule { max_bytes: Some(face.form_bytes), patience: Patience::Total(FORM_PATIENCE) },
            bodies: vec![
                ("/sync/", BodyRule { max_bytes: Some(SYNC_BODY_BYTES), patience: Patience::Idle(SYNC_PATIENCE) }),
                ("/embed/", BodyRule { max_bytes: Some(embed::FORM_BYTES), patience: Patience::Total(FORM_PATIENCE) }),
                ("/control/", BodyRule { max_bytes: None, patience: Patience::Idle(CONTROL_PATIENCE) }),
            ],
        }
    }
}

/// Puts the guard around all routes, fallbacks and errors of `router`.
///
/// From the outside in, the guard strips the base path; adds security headers and the program's mark to every answer; renders errors as
/// problems; catches panics; checks the `Host`, reach, size and encoding of the request; refuses cross-site requests;
/// and limits the body. It needs [`CameIn`] in the extensions of each request: without it nobody counts as local.
pub(crate) fn protect(router: Router, policy: Policy) -> Guarded {
    let headers = SECURITY_HEADERS.into_iter().chain([(MARK, policy.face.name)]);
    let headers = headers.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
    Guarded { guard: Arc::new(Guard { headers: headers.collect(), policy }), router }
}

/// Routes behind the guard. It stands before any routing, and before the layers that a router would put around it.
#[derive(Clone)]
pub(crate) struct Guarded {
    guard: Arc<Guard>,
    router: Router,
}

impl<B> Service<Request<B>> for Guarded
where
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let Self { guard, router } = self.clone();
        async move { Ok(guard.answer(request.map(Body::new), router).await) }.boxed()
    }
}

/// Sent with every answer. The referrer policy is `same-origin`, because `no-referrer` would make browsers send
/// `Origin: null` with our own forms.
pub(super) const SECURITY_HEADERS: [(&str, &str); 7] = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
         worker-src 'self'; manifest-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "same-origin"),
    ("x-frame-options", "DENY"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("permissions-policy", "camera=(), microphone=(), geolocation=(), payment=(), usb=()"),
];

struct Guard {
    policy: Policy,
    headers: HeaderMap,
}

impl Guard {
    /// Takes the outermost step. Every answer that leaves is rendered and has the security headers, whatever happens further
    /// in. From here on, a request has the path that it would have without a base path.
    async fn answer(&self, mut request: Request, router: Router) -> Response {
        let Self { policy, headers } = self;
        let face = &policy.face;
        let elsewhere = match face.base_path.place(request.uri()) {
            Place::Within(uri) => {
                *request.uri_mut() = uri;
                None
            }
            // A load balancer may know the machine and not the site.
            Place::Outside if request.uri().path() == HEALTH => None,
            Place::Door => {
                let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
                Some(Redirect::permanent(&(face.base_path.home() + &query)).into_response())
            }
            Place::Outside => Some(outside(face).into_response()),
        };
        let method = request.method().clone();
        let uri = request.uri().clone();
        let embedded = policy.embedded(uri.path());
        let origin = request.headers().get(header::ORIGIN).cloned();
        let asks_for_json = policy.role == Role::Hub
            || problem::asks_for_json(request.headers())
            || embedded.is_some() && !is_navigation(request.headers());
        let answer = match check(policy, &request) {
            Err(problem) => problem.into_response(),
            Ok(_) if let Some(answer) = elsewhere => answer,
            Ok(_)
                if embedded.is_some()
                    && let Some(answer) = sites::preflight(&request) =>
            {
                answer
            }
            Ok(_) if lacks_the_key(policy, &request) => Problem::from(StatusCode::UNAUTHORIZED).into_response(),
            Ok(caller) => {
                let client = ClientAddress::of(&policy.proxies, &request);
                // Only limits by client suffer from it, and those are on what other sites embed.
                let hidden_by = embedded.and_then(|_| HidingProxy::of(&policy.proxies, &request));
                let asker = Asker { who: caller.who(), sees: caller.sees(), client, hidden_by };
                request.extensions_mut().insert(asker);
                let renewed = self.renewed(&caller, &request);
                let answer = AssertUnwindSafe(bound_body(policy, request, router)).catch_unwind();
                let answer = answer.await.unwrap_or_else(|_| {
                    // The panic hook has already printed the message and its place.
                    Problem::internal(format_args!("{method} {} panicked", uri.path())).into_response()
                });
                with_cookie(self.until_revoked(caller, answer), renewed)
            }
        };
        let mut answer = problem::render(face, &method, &uri, asks_for_json, answer);
        answer.headers_mut().reserve(headers.len());
        for (name, value) in headers {
            answer.headers_mut().insert(name, value.clone());
        }
        if let Some(route) = embedded {
            sites::open(policy, route, origin.as_ref(), &mut answer);
        }
        answer
    }

    /// Returns the cookie that a paired browser is to keep longer, because it opens a page.
    fn renewed(&self, caller: &Caller, request: &Request) -> Option<HeaderValue> {
        let opens_page = request.method() == Method::GET && storeless(request.uri().path()) == "/";
        let browsers = self.policy.browsers.as_ref().filter(|_| opens_page && matches!(caller, Caller::Browser(_)))?;
        browsers.renewed(request.headers())
    }

    /// Ends what a paired browser listens to when its token is revoked.
    fn until_revoked(&self, caller: Caller, answer: Response) -> Response {
        match (caller, &self.policy.browsers) {
            (Caller::Browser(token), Some(browsers)) => browsers.until_revoked(token, answer),
            _ => answer,
        }
    }
}

/// Returns whether a browser goes to an address, and shows a person the answer. Scripts, pictures and programs don't.
fn is_navigation(headers: &HeaderMap) -> bool {
    let accepts_pages = || {
        let accepted = headers.get_all(header::ACCEPT).iter();
        accepted.filter_map(|value| value.to_str().ok()).any(|value| value.contains("text/html"))
    };
    // Older browsers say only what they take.
    headers.get(SEC_FETCH_MODE).map_or_else(accepts_pages, |mode| mode == "navigate")
}

/// How a browser uses an answer.
pub(super) const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// Returns the answer to a request for an address that isn't under the base path. Its code differs from that of a
/// missing form: after a missing form, a page still lets its other posts pass.
fn outside(face: &Face) -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "outside-base-path",
        format!("Everything of this program is under {}.", face.base_path.home()),
        "Check the address. If a proxy passes requests on, have it leave the path as it is (nginx: no path and no slash at the \
         end of `proxy_pass`).",
    )
}

/// Returns whether a request is a command's and lacks the key. This is known before any of the body is read or a store
/// is opened.
fn lacks_the_key(policy: &Policy, request: &Request) -> bool {
    request.uri().path().starts_with("/control/") && policy.passes.of(request) != Some(Pass::Owner)
}

/// The path at which the program says whether it can store anything.
const HEALTH: &str = "/healthz";

/// The path of the page behind a pairing link, and of what its button posts.
const PAIR: &str = "/pair";

/// Checks everything that the head of a request alone decides. `Host` comes first: until it is known to be ours,
/// nothing else in the request means anything. Returns the sender, as far as it is known before a sync token is
/// checked.
fn check(policy: &Policy, request: &Request) -> Result<Caller, Problem> {
    let caller = caller(policy, request)?;
    if request.uri().path_and_query().is_some_and(|uri| uri.as_str().len() > policy.uri_bytes) {
        return Err(StatusCode::URI_TOO_LONG.into());
    }
    let head_bytes: usize = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if head_bytes > policy.head_bytes {
        return Err(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE.into());
    }
    // Decompression turns a few bytes into many. Nothing that talks to us needs it.
    if request
        .headers()
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .any(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity"))
    {
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "content-encoding",
            "The request carries compressed data.",
            "Send it as it is, without Content-Encoding.",
        ));
    }
    if let Some(route) = policy.embedded(request.uri().path()) {
        sites::check(policy, route, request)?;
    } else if is_guarded(request) {
        origin::check(policy, request.headers())?;
    }
    Ok(caller)
}

/// Returns whether a request does what no other site may do: change something, read something, or hold a stream open.
/// Browsers let any site send such a request.
fn is_guarded(request: &Request) -> bool {
    let path = storeless(request.uri().path());
    !request.method().is_safe()
        || matches!(*request.method(), Method::GET | Method::HEAD)
            && (matches!(path, "/live" | "/status" | "/metrics")
                || path.starts_with("/sync/")
                || path.starts_with("/control/"))
}

impl Policy {
    fn body_rule(&self, path: &str) -> BodyRule {
        self.bodies.iter().find(|(prefix, _)| path.starts_with(prefix)).map_or(self.form, |(_, rule)| *rule)
    }

    /// Returns whether one of the app's forms posts to `path`.
    fn is_form(&self, path: &str) -> bool {
        storeless(path).strip_prefix('/').is_some_and(|name| self.face.forms.iter().any(|form| form.name == name))
    }
}

#[cfg(test)]
mod tests;
