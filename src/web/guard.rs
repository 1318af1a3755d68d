//! Who may talk to us, and how much. A server on a loopback address is within reach of every website its user opens,
//! and of every host on the network once it listens wider: what is refused here never reaches a route.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Request, State};
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::{Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::FutureExt;
use hyper::body::{Body as _, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};
use tower::ServiceBuilder;
use tower_http::csrf::CsrfLayer;

use super::problem::{self, Problem, storeless};
use super::shares::Who;

/// What the guard lets through.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    /// Names besides the loopback ones under which this server may be addressed.
    pub(crate) allow_hosts: Vec<AllowedHost>,
    /// Whether pages are served under those names, too, and not only the sync routes and `/healthz`.
    pub(crate) public: bool,
    /// Longest URI, in bytes. Ours are shorter than 200; the rest is somebody trying.
    pub(crate) uri_bytes: usize,
    /// Largest sum of names and values of the headers, in bytes. Cookies of all programs on `localhost` end up here.
    /// The HTTP parser's own limit is higher, so that a browser gets a page that says what to do.
    pub(crate) head_bytes: usize,
    /// Bodies of every route that `bodies` doesn't name: forms.
    pub(crate) form: BodyRule,
    /// Bodies of routes by the beginning of their path; the first that fits holds.
    pub(crate) bodies: Vec<(&'static str, BodyRule)>,
}

/// How large the body of a request may be, and how slow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BodyRule {
    /// In bytes; `None` only where the route reads the body as a stream.
    pub(crate) max_bytes: Option<u64>,
    pub(crate) patience: Patience,
}

/// How long to wait for the body of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Patience {
    /// For the whole body. A byte now and then doesn't extend it.
    Total(Duration),
    /// For the next piece of a body whose length says nothing about how long it takes.
    Idle(Duration),
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            allow_hosts: Vec::new(),
            public: false,
            uri_bytes: 8 * 1024,
            head_bytes: 32 * 1024,
            form: BodyRule { max_bytes: Some(4 * 1024), patience: Patience::Total(Duration::from_secs(10)) },
            bodies: vec![
                // A push of 1 MiB of events, and the largest event with its envelope that still fitted in.
                (
                    "/sync/",
                    BodyRule {
                        max_bytes: Some((1024 + 128) * 1024),
                        patience: Patience::Idle(Duration::from_secs(10)),
                    },
                ),
                // An import is as long as it is, and may be typed by hand into a pipe.
                ("/control/", BodyRule { max_bytes: None, patience: Patience::Idle(Duration::from_secs(60)) }),
            ],
        }
    }
}

/// Puts the guard around all routes, fallbacks and errors of `router`.
///
/// From the outside in: security headers on every answer; errors rendered as problems; panics caught; `Host`, reach,
/// size and encoding of the request; cross-site requests; the body's limits. Needs `ConnectInfo<SocketAddr>` and
/// [`ReachedAt`] in the extensions of each request: without them nobody counts as local.
pub(crate) fn protect(router: Router, policy: Policy) -> Router {
    let guard = Arc::new(Guard {
        policy,
        headers: SECURITY_HEADERS
            .iter()
            .map(|&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect(),
    });
    let csrf = CsrfLayer::new().with_rejection_response(|_| cross_site().into_response());
    let guarded = ServiceBuilder::new()
        .layer(from_fn_with_state(guard.clone(), admit))
        .layer(csrf)
        .layer(from_fn_with_state(guard, bound_body))
        .service(router);
    // As the fallback of a router without routes, the guard runs before any routing.
    Router::new().fallback_service(guarded)
}

/// Sent with every answer. `same-origin` and not `no-referrer`, which would make browsers send `Origin: null` with our
/// own forms.
pub(super) const SECURITY_HEADERS: [(&str, &str); 7] = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
         worker-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "same-origin"),
    ("x-frame-options", "DENY"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("permissions-policy", "camera=(), microphone=(), geolocation=(), payment=(), usb=()"),
];

/// A host that `--allow-host` names: a domain name or an address; with a port it holds for that port only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedHost(Authority);

/// `--allow-host` got something that isn't a host.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0:?} is not a host: write a name or an address as browsers send it, with or without a port, like \
     `likes.example.org`, `192.168.1.20:3000` or `[fd00::1]`; no scheme, no path, no dot at the end"
)]
pub struct InvalidHost(String);

impl FromStr for AllowedHost {
    type Err = InvalidHost;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Authority::parse(text).map(Self).ok_or_else(|| InvalidHost(text.to_owned()))
    }
}

impl fmt::Display for AllowedHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.host {
            Host::V4(address) => write!(f, "{address}")?,
            Host::V6(address) => write!(f, "[{address}]")?,
            Host::Name(name) => f.write_str(name)?,
        }
        self.0.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl AllowedHost {
    fn covers(&self, authority: &Authority) -> bool {
        self.0.host == authority.host && (self.0.port.is_none() || self.0.port == authority.port)
    }
}

/// The address of ours at which a connection came in.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReachedAt(pub(super) SocketAddr);

struct Guard {
    policy: Policy,
    headers: HeaderMap,
}

/// The outermost step: whatever happens further in, the answer that leaves is rendered and carries the headers.
async fn admit(State(guard): State<Arc<Guard>>, mut request: Request, next: Next) -> Response {
    let method = request.method().clone();
    let uri = request.uri().clone();
    let asks_for_json = problem::asks_for_json(request.headers());
    let answer = match check(&guard.policy, &request) {
        Err(problem) => problem.into_response(),
        Ok(who) => {
            request.extensions_mut().insert(who);
            AssertUnwindSafe(next.run(request)).catch_unwind().await.unwrap_or_else(|_| {
                // The panic hook has printed the message and where it came from.
                Problem::internal(format_args!("{method} {} panicked", uri.path())).into_response()
            })
        }
    };
    let mut answer = problem::render(&method, &uri, asks_for_json, answer);
    for (name, value) in &guard.headers {
        answer.headers_mut().insert(name, value.clone());
    }
    answer
}

/// Everything that the head of a request alone decides. `Host` comes first: until it is known to be ours, nothing else
/// of the request means anything. Says who sent it, as far as that is known before a token is looked at.
fn check(policy: &Policy, request: &Request) -> Result<Who, Problem> {
    let path = request.uri().path();
    let addressed_as = addressed_as(policy, request)?;
    let who = match addressed_as {
        AddressedAs::Loopback => Who::Owner,
        AddressedAs::Allowed => Who::Visitor,
    };
    match addressed_as {
        AddressedAs::Loopback => {}
        AddressedAs::Allowed if path.starts_with("/control/") => {
            return Err(Problem::forbidden(
                "loopback-only",
                "This address is only for commands on the machine that the program runs on.",
                "Run the command there.",
            ));
        }
        AddressedAs::Allowed if policy.public || path.starts_with("/sync/") || path == "/healthz" => {}
        AddressedAs::Allowed => {
            return Err(Problem::forbidden(
                "not-public",
                "Under this name the program only syncs; its page is not public.",
                "To serve the page to everyone who can reach it, start the program with `--public`.",
            ));
        }
    }

    if request.uri().path_and_query().is_some_and(|uri| uri.as_str().len() > policy.uri_bytes) {
        return Err(StatusCode::URI_TOO_LONG.into());
    }
    let head_bytes: usize = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if head_bytes > policy.head_bytes {
        return Err(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE.into());
    }
    // Decompressing is how a few bytes become many. Nothing that talks to us needs it.
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
    if is_guarded(request) && is_cross_site(request.headers()) {
        return Err(cross_site());
    }
    Ok(who)
}

fn cross_site() -> Problem {
    Problem::forbidden(
        "cross-site",
        "Another website sent this request, so it was not carried out.",
        "If you meant to do this, do it on the program's own page.",
    )
}

enum AddressedAs {
    /// By a program on this machine, under a name that only means this machine.
    Loopback,
    /// Under a name that `--allow-host` gives.
    Allowed,
}

/// By which name the client knows us. A page that rebinds its own domain to a loopback address passes every same-origin
/// check of the browser, but it can't send a loopback name; and a client elsewhere that sends one is lying.
fn addressed_as(policy: &Policy, request: &Request) -> Result<AddressedAs, Problem> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err(Problem::bad_request(
            "bad-host",
            "A request needs exactly one Host header.",
            "Use a client that speaks HTTP/1.1.",
        ));
    };
    let named = recognize(policy, request, host.as_bytes())?;
    if let Some(target) = request.uri().authority() {
        recognize(policy, request, target.as_str().as_bytes())?;
        if !target.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes()) {
            return Err(Problem::bad_request(
                "bad-host",
                "The request names one host in its first line and another in its Host header.",
                "Send the same in both.",
            ));
        }
    }
    Ok(named)
}

fn recognize(policy: &Policy, request: &Request, host: &[u8]) -> Result<AddressedAs, Problem> {
    if let Some(authority) = std::str::from_utf8(host).ok().and_then(Authority::parse) {
        if authority.host.is_loopback() && is_local(request) {
            return Ok(AddressedAs::Loopback);
        }
        if policy.allow_hosts.iter().any(|allowed| allowed.covers(&authority)) {
            return Ok(AddressedAs::Allowed);
        }
    }
    let shown = String::from_utf8_lossy(&host[..host.len().min(100)]);
    Err(Problem::forbidden(
        "host-not-allowed",
        format!("This program doesn't answer to the host {shown:?} from where you are."),
        "Open it as localhost on its own machine, or start it with `--allow-host NAME` to let it answer to another name.",
    ))
}

/// Whether the connection comes from this machine. A `Host` is only a claim. Whoever connects to an address of the
/// network from the machine that has it comes from that same address, and nobody else can: answers to them would not
/// leave the machine.
fn is_local(request: &Request) -> bool {
    let extensions = request.extensions();
    let (Some(ConnectInfo(peer)), Some(ReachedAt(own))) =
        (extensions.get::<ConnectInfo<SocketAddr>>(), extensions.get::<ReachedAt>())
    else {
        return false;
    };
    let (peer, own) = (peer.ip().to_canonical(), own.ip().to_canonical());
    peer.is_loopback() || peer == own
}

/// The content of a `Host` header or of an authority: what RFC 3986 allows there, less what no browser sends.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Authority {
    host: Host,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    V4(Ipv4Addr),
    V6(Ipv6Addr),
    /// In lower case.
    Name(String),
}

impl Authority {
    /// `None` for everything that isn't exactly a host with an optional port: userinfo, a dot at the end, spaces.
    fn parse(text: &str) -> Option<Self> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (address, port) = rest.split_once(']')?;
                (Host::V6(address.parse().ok()?), port)
            }
            None => {
                let (host, port) = text.split_at(text.find(':').unwrap_or(text.len()));
                (Host::parse(host)?, port)
            }
        };
        let port = match port.strip_prefix(':') {
            Some(digits) => Some(parse_port(digits)?),
            None if port.is_empty() => None,
            None => return None,
        };
        Some(Self { host, port })
    }
}

impl Host {
    fn parse(text: &str) -> Option<Self> {
        if let Ok(address) = text.parse() {
            return Some(Self::V4(address));
        }
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        };
        // A last label of digits is an IPv4 address in one of its odd spellings, which browsers never send.
        let last = text.rsplit('.').next()?;
        let is_name =
            text.len() <= 253 && text.split('.').all(is_label) && !last.bytes().all(|byte| byte.is_ascii_digit());
        is_name.then(|| Self::Name(text.to_ascii_lowercase()))
    }

    fn is_loopback(&self) -> bool {
        match self {
            Self::V4(address) => IpAddr::V4(*address).is_loopback(),
            Self::V6(address) => address.is_loopback(),
            Self::Name(name) => name == "localhost",
        }
    }
}

/// `1` to `65535`, without sign or leading zeros.
fn parse_port(digits: &str) -> Option<u16> {
    let port: u16 = digits.parse().ok()?;
    (port != 0 && port.to_string() == digits).then_some(port)
}

/// What no other site may do: change something, or read what shows something or holds a stream open. Browsers let any
/// site send it, `csrf` lets every read pass, and of a write it believes the first header that says something.
fn is_guarded(request: &Request) -> bool {
    let path = storeless(request.uri().path());
    !request.method().is_safe()
        || matches!(*request.method(), Method::GET | Method::HEAD)
            && (matches!(path, "/live" | "/status" | "/metrics")
                || path.starts_with("/sync/")
                || path.starts_with("/control/"))
}

/// Whether the headers name another site, or can't be those of a browser that asks for a page of ours. Programs send none
/// of them.
fn is_cross_site(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).map_or(&[][..], HeaderValue::as_bytes);
    let is_own_site = |site: &HeaderValue| site == "same-origin" || site == "none";
    let is_own_origin = |origin: &HeaderValue| is_authority_of(origin.as_bytes(), host);
    !one_at_most(headers, SEC_FETCH_SITE, is_own_site) || !one_at_most(headers, header::ORIGIN, is_own_origin)
}

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Whether a header is there at most once, and then is as it should be.
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

/// The innermost step. A declared length that is too large is refused at once, an undeclared one when it is exceeded.
async fn bound_body(State(guard): State<Arc<Guard>>, mut request: Request, next: Next) -> Response {
    let rule = guard.policy.body_rule(request.uri().path());
    // axum's own limit for extractors would cut in between.
    DefaultBodyLimit::disable().apply(&mut request);
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let max_bytes = rule.max_bytes.unwrap_or(u64::MAX);
    if request.body().size_hint().lower() > max_bytes {
        return BodyFault::TooLarge.problem(&rule).into_response();
    }

    let fault = Arc::new(OnceLock::new());
    let request = request.map(|inner| {
        Body::new(BoundedBody {
            inner,
            left: max_bytes,
            patience: rule.patience,
            deadline: Instant::now() + rule.patience.duration(),
            timer: None,
            fault: fault.clone(),
        })
    });
    let answer = next.run(request).await;
    match fault.get() {
        // To the handler it looked like malformed content. The cause is the better answer.
        Some(fault) if answer.status().is_client_error() => fault.problem(&rule).into_response(),
        _ => answer,
    }
}

impl Policy {
    fn body_rule(&self, path: &str) -> BodyRule {
        self.bodies.iter().find(|(prefix, _)| path.starts_with(prefix)).map_or(self.form, |(_, rule)| *rule)
    }
}

impl Patience {
    fn duration(self) -> Duration {
        match self {
            Self::Total(duration) | Self::Idle(duration) => duration,
        }
    }
}

/// Why a body broke off.
#[derive(Clone, Copy, Debug, thiserror::Error)]
enum BodyFault {
    #[error("the body of the request is larger than this address takes")]
    TooLarge,
    #[error("the body of the request did not arrive in time")]
    TooSlow,
}

impl BodyFault {
    fn problem(self, rule: &BodyRule) -> Problem {
        match (self, rule.max_bytes) {
            (Self::TooLarge, Some(max_bytes)) => Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "body-too-large",
                format!("The request carries more than the {max_bytes} bytes that this address takes."),
                "Send less at once.",
            ),
            (Self::TooLarge, None) => StatusCode::PAYLOAD_TOO_LARGE.into(),
            (Self::TooSlow, _) => StatusCode::REQUEST_TIMEOUT.into(),
        }
    }
}

/// A request body that fails when it gets too large or too slow, and notes which for the answer.
struct BoundedBody {
    inner: Body,
    left: u64,
    patience: Patience,
    deadline: Instant,
    /// Only made once the body lets us wait: most arrive with their head.
    timer: Option<Pin<Box<Sleep>>>,
    fault: Arc<OnceLock<BodyFault>>,
}

impl BoundedBody {
    fn fail(&self, fault: BodyFault) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        // Only the first counts; a body that is polled on stays failed.
        let fault = self.fault.get_or_init(|| fault);
        Poll::Ready(Some(Err(axum::Error::new(*fault))))
    }
}

impl hyper::body::Body for BoundedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let Some(fault) = self.fault.get() {
            return self.fail(*fault);
        }
        let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) else {
            let deadline = self.deadline;
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
            ready!(timer.as_mut().poll(cx));
            return self.fail(BodyFault::TooSlow);
        };
        if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
            match self.left.checked_sub(data.len() as u64) {
                Some(left) => self.left = left,
                None => return self.fail(BodyFault::TooLarge),
            }
        }
        if let Patience::Idle(duration) = self.patience {
            self.deadline = Instant::now() + duration;
            let deadline = self.deadline;
            if let Some(timer) = &mut self.timer {
                timer.as_mut().reset(deadline);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::routing::{any, get, post};
    use tower::ServiceExt as _;

    use super::*;
    use crate::fuzz::{self, fuzz, outcome};

    const HOST: &str = "localhost:3000";

    /// The routes of the program, with handlers that only count.
    struct Site {
        router: Router,
        handled: Arc<AtomicUsize>,
    }

    impl Site {
        fn new(policy: Policy) -> Self {
            let handled = Arc::new(AtomicUsize::new(0));
            let count = handled.clone();
            let hit = move || {
                count.fetch_add(1, Ordering::Relaxed);
                std::future::ready("handled")
            };
            let store = Router::new()
                .route("/", get(hit.clone()))
                .route("/live", get(hit.clone()))
                .route("/status", get(hit.clone()))
                .route("/metrics", get(hit.clone()))
                .route("/healthz", get(hit.clone()))
                .route("/panic", get(panics))
                .route("/likes", post(takes_all));
            let router = store
                .clone()
                .route("/s/{store}/", get(hit.clone()))
                .nest("/s/{store}", store)
                .route("/any", any(hit))
                .route("/sync/v1/{store}/events", get("events").post(takes_all))
                .route("/control/import", get("import").post(takes_all));
            Self { router: protect(router, policy), handled }
        }

        async fn answer(&self, request: Request) -> Response {
            let never = self.router.clone().oneshot(request).await;
            never.unwrap_or_else(|never| match never {})
        }

        fn handled(&self) -> usize {
            self.handled.swap(0, Ordering::Relaxed)
        }
    }

    async fn panics() -> &'static str {
        panic!("as the test wants")
    }

    async fn takes_all(body: Bytes) -> String {
        body.len().to_string()
    }

    fn request(method: &str, uri: &str, headers: &[(&str, &str)]) -> Request {
        request_from("127.0.0.1:50000", method, uri, headers)
    }

    fn request_from(peer: &str, method: &str, uri: &str, headers: &[(&str, &str)]) -> Request {
        request_between(peer, "192.168.1.1:3000", method, uri, headers)
    }

    fn request_between(peer: &str, own: &str, method: &str, uri: &str, headers: &[(&str, &str)]) -> Request {
        let mut request = Request::builder().method(method).uri(uri);
        for &(name, value) in headers {
            request = request.header(name, value);
        }
        let mut request = request.body(Body::empty()).expect("a valid request");
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        request.extensions_mut().insert(ConnectInfo(address(peer)));
        request.extensions_mut().insert(ReachedAt(address(own)));
        request
    }

    fn with_body(path: &str, headers: &[(&str, &str)], body: Body) -> Request {
        let mut request = request("POST", path, &[&[("host", HOST)], headers].concat());
        *request.body_mut() = body;
        request
    }

    /// A body without a length, as chunked ones are.
    fn pieces(count: usize, size: usize) -> Body {
        let pieces = (0..count).map(move |_| Ok::<_, Infallible>(Bytes::from(vec![b'x'; size])));
        Body::from_stream(futures_util::stream::iter(pieces))
    }

    fn allowing(hosts: &[&str], public: bool) -> Policy {
        Policy {
            allow_hosts: hosts.iter().map(|host| host.parse().expect("a host")).collect(),
            public,
            ..Policy::default()
        }
    }

    async fn text(response: Response) -> String {
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.expect("a body in memory");
        String::from_utf8(bytes.to_vec()).expect("UTF-8")
    }

    /// Pages hide the code, so this asks what only JSON shows.
    async fn code(response: Response) -> String {
        let json: serde_json::Value = serde_json::from_str(&text(response).await).expect("problem details");
        json["code"].as_str().expect("a code").to_owned()
    }

    fn has_security_headers(response: &Response) -> bool {
        let headers = response.headers();
        let complete = SECURITY_HEADERS.iter().all(|(name, value)| headers.get_all(*name).iter().eq([value]));
        let no_cors = !headers.keys().any(|name| name.as_str().starts_with("access-control-"));
        complete && no_cors
    }

    #[tokio::test]
    async fn trust_33_cross_site_writes_and_reads_are_refused() {
        let site = Site::new(Policy::default());
        let fetch_sites: [&[&str]; 8] = [
            &[],
            &["none"],
            &["same-origin"],
            &["same-site"],
            &["cross-site"],
            &[""],
            &["same-origin", "cross-site"],
            &["same-origin", "same-origin"],
        ];
        let origins: [&[&str]; 9] = [
            &[],
            &["http://localhost:3000"],
            &["null"],
            &["http://localhost:3001"],
            &["https://evil.example"],
            &["http://localhost:3000.evil.example"],
            &[""],
            &["http://localhost:3000", "https://evil.example"],
            &["http://localhost:3000", "http://localhost:3000"],
        ];
        let guarded_reads = ["/live", "/status", "/metrics", "/s/work/live", "/s/work/status"];
        let open_reads = ["/", "/healthz", "/s/work/"];
        for method in ["GET", "HEAD", "POST", "PUT", "DELETE"] {
            for fetch_site in fetch_sites {
                for origin in origins {
                    let mut headers = vec![("host", HOST)];
                    headers.extend(fetch_site.iter().map(|site| ("sec-fetch-site", *site)));
                    headers.extend(origin.iter().map(|origin| ("origin", *origin)));

                    // Programs send neither. A browser's headers have to agree, and it sends each of them once.
                    let is_ours = matches!(fetch_site, [] | ["none" | "same-origin"])
                        && matches!(origin, [] | ["http://localhost:3000"]);

                    let reads = matches!(method, "GET" | "HEAD");
                    let paths = if reads { [&guarded_reads[..], &open_reads].concat() } else { vec!["/any"] };
                    for path in paths {
                        let case = format!("{method} {path} {fetch_site:?} {origin:?}");
                        let passes = is_ours || open_reads.contains(&path);
                        let answer = site.answer(request(method, path, &headers)).await;
                        assert!(has_security_headers(&answer), "{case}");
                        if passes {
                            assert_eq!(answer.status(), StatusCode::OK, "{case}");
                        } else {
                            assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{case}");
                        }
                        assert_eq!(site.handled(), usize::from(passes), "{case}");
                    }
                }
            }
        }
        let foreign = request("GET", "/status", &[("host", HOST), ("sec-fetch-site", "cross-site")]);
        assert_eq!(code(site.answer(foreign).await).await, "cross-site");
        let foreign = request("POST", "/control/import", &[("host", HOST), ("origin", "null")]);
        assert_eq!(code(site.answer(foreign).await).await, "cross-site");
    }

    const ROUTES: [(&str, &str); 9] = [
        ("GET", "/"),
        ("POST", "/likes"),
        ("GET", "/live"),
        ("GET", "/s/work/status"),
        ("GET", "/healthz"),
        ("GET", "/metrics"),
        ("POST", "/sync/v1/likes/events"),
        ("POST", "/control/import"),
        ("GET", "/nothing/here"),
    ];

    #[tokio::test]
    async fn trust_34_foreign_hosts_are_refused_on_every_route() {
        let site = Site::new(Policy::default());
        let foreign = [
            "evil.example",
            "evil.example:3000",
            "localhost.evil.example",
            "evil-localhost",
            "localhost.",
            "localhost.:3000",
            "127.0.0.1.",
            "127.0.0.1.evil.example",
            "foo.localhost",
            "user@localhost",
            "localhost:3000@evil.example",
            "localhost:",
            "localhost:0",
            "localhost:+80",
            "localhost:080",
            "localhost:65536",
            "localhost:80:80",
            "localhost/",
            "localhost, evil.example",
            "localhost evil.example",
            "",
            ":3000",
            "0.0.0.0",
            "127.1",
            "2130706433",
            "0x7f.0.0.1",
            "128.0.0.1",
            "192.168.1.20",
            "::1",
            "[::1",
            "[::1]x",
            "[::1]3000",
            "[::]",
            "[::2]",
            "[::1%lo]",
            "[::ffff:127.0.0.1]",
            "[localhost]",
            "xn--lcalhost-54a",
        ];
        for (method, path) in ROUTES {
            for host in foreign {
                let answer = site.answer(request(method, path, &[("host", host)])).await;
                assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{method} {path} {host:?}");
                assert!(has_security_headers(&answer));
                assert!(text(answer).await.contains("--allow-host"));
            }
            let bad = [vec![], vec![("host", HOST), ("host", HOST)], vec![("host", HOST), ("host", "evil.example")]];
            for headers in bad {
                let answer = site.answer(request(method, path, &headers)).await;
                assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{method} {path} {headers:?}");
            }
            let absolute = [
                ("http://evil.example", HOST, StatusCode::FORBIDDEN),
                ("http://localhost:3000", "evil.example", StatusCode::FORBIDDEN),
                ("http://localhost.", "localhost.", StatusCode::FORBIDDEN),
                ("http://a@localhost:3000", HOST, StatusCode::FORBIDDEN),
                ("http://localhost:3001", HOST, StatusCode::BAD_REQUEST),
                ("http://127.0.0.1:3000", HOST, StatusCode::BAD_REQUEST),
            ];
            for (target, host, status) in absolute {
                let uri = format!("{target}{path}");
                let answer = site.answer(request(method, &uri, &[("host", host)])).await;
                assert_eq!(answer.status(), status, "{method} {uri} {host:?}");
            }
        }
        assert_eq!(site.handled(), 0);
    }

    #[tokio::test]
    async fn loopback_names_open_everything_to_local_peers_only() {
        let site = Site::new(Policy::default());
        for host in [
            "localhost",
            "localhost:3000",
            "LocalHost:80",
            "127.0.0.1",
            "127.8.9.1:65535",
            "[::1]",
            "[::1]:3000",
            "[0:0::1]",
        ] {
            for peer in ["127.0.0.1:1", "127.3.4.5:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
                for path in ["/", "/live", "/control/import"] {
                    let answer = site.answer(request_from(peer, "GET", path, &[("host", host)])).await;
                    assert_eq!(answer.status(), StatusCode::OK, "{path} {host} {peer}");
                }
            }
            for peer in ["192.168.1.20:1", "[fd00::2]:1", "0.0.0.0:1"] {
                let answer = site.answer(request_from(peer, "GET", "/", &[("host", host)])).await;
                assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{host} {peer}");
            }
        }
        let absolute = request("GET", "http://LOCALHOST:3000/", &[("host", HOST)]);
        assert_eq!(site.answer(absolute).await.status(), StatusCode::OK);

        let mut unknown = request("GET", "/", &[("host", HOST)]);
        unknown.extensions_mut().remove::<ConnectInfo<SocketAddr>>();
        assert_eq!(site.answer(unknown).await.status(), StatusCode::FORBIDDEN);
    }

    #[tokio::test]
    async fn a_peer_with_our_own_address_is_local_and_still_has_to_name_a_loopback_host() {
        let site = Site::new(Policy::default());
        for (peer, own, host, status) in [
            ("192.0.2.2:5000", "192.0.2.2:3000", "localhost", StatusCode::OK),
            ("[::ffff:192.0.2.2]:5000", "192.0.2.2:3000", "127.0.0.1:3000", StatusCode::OK),
            ("[fd00::2]:5000", "[fd00::2]:3000", "[::1]:3000", StatusCode::OK),
            ("192.0.2.3:5000", "192.0.2.2:3000", "localhost", StatusCode::FORBIDDEN),
            ("[fd00::3]:5000", "[fd00::2]:3000", "localhost", StatusCode::FORBIDDEN),
            ("192.0.2.2:5000", "192.0.2.2:3000", "192.0.2.2:3000", StatusCode::FORBIDDEN),
            ("192.0.2.2:5000", "192.0.2.2:3000", "evil.example", StatusCode::FORBIDDEN),
        ] {
            for path in ["/status", "/control/import"] {
                let answer = site.answer(request_between(peer, own, "GET", path, &[("host", host)])).await;
                assert_eq!(answer.status(), status, "{path} {host} {peer} {own}");
            }
        }
    }

    #[tokio::test]
    async fn an_allowed_host_opens_sync_and_the_page_only_when_public() {
        let hub = Site::new(allowing(&["Hub.example", "10.0.0.7:8443"], false));
        let open = Site::new(allowing(&["hub.example"], true));
        let ask = |path, host| request_from("10.0.0.9:1", "GET", path, &[("host", host)]);
        for host in ["hub.example", "HUB.EXAMPLE:443", "10.0.0.7:8443"] {
            for (path, hub_status) in [
                ("/sync/v1/likes/events", StatusCode::OK),
                ("/healthz", StatusCode::OK),
                ("/", StatusCode::FORBIDDEN),
                ("/status", StatusCode::FORBIDDEN),
                ("/s/work/healthz", StatusCode::FORBIDDEN),
                ("/s/sync/", StatusCode::FORBIDDEN),
                ("/control/import", StatusCode::FORBIDDEN),
            ] {
                let answer = hub.answer(ask(path, host)).await;
                assert_eq!(answer.status(), hub_status, "{path} {host}");
            }
        }
        for host in ["10.0.0.7", "10.0.0.7:8444", "sub.hub.example", "localhost"] {
            for path in ["/sync/v1/likes/events", "/healthz"] {
                let answer = hub.answer(ask(path, host)).await;
                assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{path} {host}");
            }
        }
        for path in ["/", "/live", "/s/work/status"] {
            let answer = open.answer(ask(path, "hub.example")).await;
            assert_eq!(answer.status(), StatusCode::OK, "{path}");
        }
        let refused = |answer| async { code(answer).await };
        let answer = open.answer(ask("/control/import", "hub.example")).await;
        assert_eq!(refused(answer).await, "loopback-only");
        let answer = hub.answer(ask("/status", "hub.example")).await;
        assert_eq!(refused(answer).await, "not-public");
        let answer = hub.answer(ask("/status", "evil.example")).await;
        assert_eq!(refused(answer).await, "host-not-allowed");
    }

    #[test]
    fn allowed_hosts_are_checked_where_they_enter() {
        for (text, shown) in [
            ("Likes.Example.org", "likes.example.org"),
            ("likes:8443", "likes:8443"),
            ("192.168.1.20:3000", "192.168.1.20:3000"),
            ("[FD00::1]:3000", "[fd00::1]:3000"),
            ("a_b-c.d", "a_b-c.d"),
        ] {
            let host: AllowedHost = text.parse().expect(text);
            assert_eq!(host.to_string(), shown);
        }
        for text in [
            "",
            "*",
            "*.example.org",
            "https://likes.example.org",
            "likes.example.org/",
            "likes.example.org.",
            "a..b",
            "-a.b",
            "a b",
            "me@likes",
            "likes:",
            "likes:http",
            "fd00::1",
            "1.2.3",
        ] {
            let error = text.parse::<AllowedHost>().expect_err(text);
            assert!(error.to_string().contains("is not a host"), "{error}");
        }
    }

    #[tokio::test]
    async fn trust_36_every_answer_carries_the_security_headers() {
        let site = Site::new(Policy::default());
        let long = format!("/?{}", "x".repeat(8 * 1024));
        for (method, uri, headers, status) in [
            ("GET", "/", vec![("host", HOST)], 200),
            ("GET", "/nothing", vec![("host", HOST)], 404),
            ("DELETE", "/likes", vec![("host", HOST)], 405),
            ("GET", "/panic", vec![("host", HOST)], 500),
            ("GET", "/", vec![], 400),
            ("GET", "/", vec![("host", "evil.example")], 403),
            ("GET", &long, vec![("host", HOST)], 414),
            ("POST", "/likes", vec![("host", HOST), ("content-encoding", "gzip")], 415),
            ("POST", "/likes", vec![("host", HOST), ("origin", "null")], 403),
        ] {
            let answer = site.answer(request(method, uri, &headers)).await;
            assert_eq!(answer.status().as_u16(), status, "{method} {uri}");
            assert!(has_security_headers(&answer), "{method} {uri}");
            if status >= 400 {
                assert_eq!(answer.headers()[header::CACHE_CONTROL], "no-store");
                let page = text(answer).await;
                assert!(!page.contains("<script") && !page.contains("<style"));
            }
        }
    }

    #[tokio::test]
    async fn routers_own_refusals_become_problems() {
        let site = Site::new(Policy::default());
        let wrong = site.answer(request("PUT", "/healthz", &[("host", HOST)])).await;
        assert_eq!(wrong.headers()[header::ALLOW], "GET,HEAD");
        assert_eq!(code(wrong).await, "method-not-allowed");

        let missing = site.answer(request("GET", "/sync/v2/x", &[("host", HOST)])).await;
        assert_eq!(code(missing).await, "not-found");

        let get = site.answer(request("GET", "/x", &[("host", HOST)])).await;
        let head = site.answer(request("HEAD", "/x", &[("host", HOST)])).await;
        let lengths = [&get, &head].map(|answer| answer.headers()[header::CONTENT_LENGTH].clone());
        assert_eq!(lengths[0], lengths[1]);
        assert_ne!(lengths[0], "0");
        assert_eq!(text(head).await, "");
    }

    #[tokio::test]
    async fn trust_38_a_panicking_handler_leaves_the_server_alive() {
        let site = Site::new(Policy::default());
        let answer = site.answer(request("GET", "/panic", &[("host", HOST)])).await;
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(!text(answer).await.contains("as the test wants"));
        let next = site.answer(request("GET", "/", &[("host", HOST)])).await;
        assert_eq!(next.status(), StatusCode::OK);
    }

    #[tokio::test]
    async fn trust_40_too_large_and_compressed_requests_are_refused() {
        let site = Site::new(Policy::default());
        let (kib, mib) = (1024, 1024 * 1024);
        for (path, body, status) in [
            ("/likes", Body::from(vec![b'x'; 4 * kib]), 200),
            ("/likes", Body::from(vec![b'x'; 4 * kib + 1]), 413),
            ("/likes", pieces(4, kib), 200),
            ("/likes", pieces(5, kib), 413),
            ("/s/work/likes", pieces(5, kib), 413),
            ("/sync/v1/likes/events", pieces(1, mib), 200),
            ("/sync/v1/likes/events", Body::from(vec![b'x'; 2 * mib]), 413),
            ("/sync/v1/likes/events", pieces(2, mib), 413),
            ("/control/import", pieces(5, mib), 200),
        ] {
            let answer = site.answer(with_body(path, &[], body)).await;
            assert_eq!(answer.status().as_u16(), status, "{path}");
            assert!(has_security_headers(&answer));
            if status == 413 {
                assert_eq!(answer.headers()[header::CONNECTION], "close");
            }
        }
        for (encodings, status) in [
            (vec!["identity"], 200),
            (vec!["Identity"], 200),
            (vec!["gzip"], 415),
            (vec!["identity, gzip"], 415),
            (vec!["identity", "br"], 415),
            (vec![""], 415),
        ] {
            for path in ["/likes", "/sync/v1/likes/events", "/control/import"] {
                let headers: Vec<_> = encodings.iter().map(|encoding| ("content-encoding", *encoding)).collect();
                let answer = site.answer(with_body(path, &headers, pieces(1, 10))).await;
                assert_eq!(answer.status().as_u16(), status, "{path} {encodings:?}");
            }
        }

        let cookie = "x".repeat(33 * kib);
        let heavy = request("GET", "/status", &[("host", HOST), ("cookie", &cookie)]);
        let answer = site.answer(heavy).await;
        assert_eq!(answer.status().as_u16(), 431);
        assert_eq!(code(answer).await, "headers-too-large");
    }

    #[tokio::test(start_paused = true)]
    async fn slow_bodies_are_given_up() {
        let site = Site::new(Policy::default());
        let dripping = |pause: u64, count: usize| {
            let drops = futures_util::stream::unfold(0, move |sent| async move {
                tokio::time::sleep(Duration::from_secs(pause)).await;
                (sent < count).then(|| (Ok::<_, Infallible>(Bytes::from_static(b"x")), sent + 1))
            });
            Body::from_stream(drops)
        };
        for (path, body, status) in [
            ("/likes", dripping(1, 5), 200),
            // Each byte is in time, the whole is not.
            ("/likes", dripping(1, 20), 408),
            ("/sync/v1/likes/events", dripping(9, 20), 200),
            ("/sync/v1/likes/events", dripping(11, 1), 408),
            ("/control/import", dripping(50, 20), 200),
            ("/control/import", dripping(61, 1), 408),
        ] {
            let answer = site.answer(with_body(path, &[], body)).await;
            assert_eq!(answer.status().as_u16(), status, "{path}");
            assert!(has_security_headers(&answer));
        }
    }

    #[test]
    fn trust_38_fuzzed_hosts_have_one_spelling() {
        fuzz("host", &["localhost", "127.0.0.1", "[::1]", ":80", ".", "@", "xn--", "0x7f.1"], |input| {
            let host = fuzz::text(input).parse::<AllowedHost>();
            if let Ok(host) = &host {
                assert_eq!(host.to_string().parse::<AllowedHost>().as_ref().ok(), Some(host));
                assert!(input.len() <= 300 && fuzz::text(input).is_ascii());
                assert!(host.0.host.is_loopback() == Authority::parse(&host.to_string()).unwrap().host.is_loopback());
            }
            outcome(&host.as_ref().map_err(|_| "no host"))
        });
    }
}
