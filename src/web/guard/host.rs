//! The name under which a request reaches us, and where it comes from.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use axum::extract::{ConnectInfo, Request};
use axum::http::Version;
use axum::http::header::{self, HeaderName};

use super::{HEALTH, Pass, Policy};
use crate::web::base_path::BasePath;
use crate::web::problem::Problem;

/// A host given by `--allow-host`: a domain name or an address. With a port, it holds for that port only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedHost(pub(super) Authority);

/// The value of `--allow-host` isn't a host.
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

impl Policy {
    /// Returns whether the owner says that there is no proxy: nothing that a proxy needs is set up, and loopback names are
    /// to open the page.
    fn is_without_proxy(&self) -> bool {
        self.local_page && self.allow_hosts.is_empty() && self.proxies.is_empty()
    }

    /// Returns whether `--allow-host` gives that name, with that port.
    pub(super) fn allows(&self, authority: &Authority) -> bool {
        self.allow_hosts.iter().any(|allowed| allowed.covers(authority))
    }
}

impl AllowedHost {
    /// Returns the address under which a proxy that speaks TLS most likely serves this host. An address of a machine has no
    /// certificate.
    pub(crate) fn url(&self, base: &BasePath) -> Option<String> {
        matches!(self.0.host, Host::Name(_)).then(|| format!("https://{self}{base}"))
    }

    fn covers(&self, authority: &Authority) -> bool {
        self.0.host == authority.host && (self.0.port.is_none() || self.0.port == authority.port)
    }
}

/// How a connection came in.
#[derive(Clone, Copy, Debug)]
pub(in crate::web) enum CameIn {
    /// From this address, at one of ours.
    Port { peer: SocketAddr, own: SocketAddr },
    /// By a socket file, and so from a proxy or a command on this machine.
    File,
}

impl CameIn {
    /// Returns how a request came in. One that didn't come through the server has no such thing.
    pub(super) fn of(request: &Request) -> Option<Self> {
        request.extensions().get().copied()
    }
}

/// Adds the peer's address to a request, as axum's extractors expect it.
pub(in crate::web) async fn with_connect_info(mut request: Request) -> Request {
    if let Some(CameIn::Port { peer, .. }) = CameIn::of(&request) {
        request.extensions_mut().insert(ConnectInfo(peer));
    }
    request
}

/// Returns whether a request came in by a socket file.
pub(super) fn is_by_file(request: &Request) -> bool {
    matches!(CameIn::of(request), Some(CameIn::File))
}

/// The name by which a client asks for us, and where it asks from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AddressedAs {
    /// By a program on this machine, under a loopback name.
    Loopback,
    /// Under a name that `--allow-host` gives.
    Allowed,
    /// Under no meaningful name, by something that only asks whether we are alive.
    HealthCheck,
}

/// Returns the name under which the client knows us. A page that rebinds its own domain to a loopback address passes
/// every same-origin check of the browser, but it can't send a loopback name. A client elsewhere that sends one is
/// lying.
pub(super) fn addressed_as(policy: &Policy, request: &Request) -> Result<AddressedAs, Problem> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host,
        (None, _) if is_health_check(request) => return Ok(AddressedAs::HealthCheck),
        _ => {
            return Err(Problem::bad_request(
                "bad-host",
                "A request needs exactly one Host header.",
                "Use a client that speaks HTTP/1.1.",
            ));
        }
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
    if named == AddressedAs::Loopback
        && let Some(sign) = sign_of_a_proxy(request)
        && !(sign == Sign::OldHttp && policy.is_without_proxy())
    {
        return Err(unnamed_by_proxy(&sign));
    }
    Ok(named)
}

fn recognize(policy: &Policy, request: &Request, host: &[u8]) -> Result<AddressedAs, Problem> {
    if let Some(authority) = std::str::from_utf8(host).ok().and_then(Authority::parse) {
        let is_loopback = authority.host.is_loopback();
        if is_loopback && is_local(policy, request) {
            return Ok(AddressedAs::Loopback);
        }
        if policy.allows(&authority) {
            return Ok(AddressedAs::Allowed);
        }
        // Load balancers and containers ask under an address.
        if is_health_check(request) && (authority.host.is_address_of_a_machine() || is_loopback && is_by_file(request))
        {
            return Ok(AddressedAs::HealthCheck);
        }
        if is_loopback && is_by_file(request) {
            return Err(unnamed_by_proxy(&Sign::File));
        }
    }
    let shown = String::from_utf8_lossy(&host[..host.len().min(100)]);
    Err(Problem::forbidden(
        "host-not-allowed",
        format!("This program doesn't answer to the host {shown:?} from where you are."),
        "Open it as localhost on its own machine, or start it with `--allow-host NAME` to let it answer to another name.",
    ))
}

fn is_health_check(request: &Request) -> bool {
    request.method().is_safe() && request.uri().path() == HEALTH
}

/// Returns the sign that a proxy passed a request on, if there is one: a header that only proxies add, or the old
/// version of HTTP that some of them speak to their backend. Under a loopback name, this means that the proxy drops the
/// name that was asked for. A stranger would then count as somebody on this machine.
fn sign_of_a_proxy(request: &Request) -> Option<Sign> {
    let is_sign = |name: &str| matches!(name, "forwarded" | "via" | "x-real-ip") || name.starts_with("x-forwarded-");
    let header = request.headers().keys().find(|name| is_sign(name.as_str()));
    let is_old = request.version() <= Version::HTTP_10;
    header.map(|name| Sign::Header(name.clone())).or(is_old.then_some(Sign::OldHttp))
}

/// What shows that a proxy passed a request on.
#[derive(Debug, PartialEq, Eq)]
enum Sign {
    /// A header that only proxies add.
    Header(HeaderName),
    /// HTTP/1.0. Text browsers such as w3m speak it, too. Nothing that they send tells them from nginx, which passes on
    /// whatever a stranger sends, so the owner has to say that there is no proxy.
    OldHttp,
    /// The socket file, which is there for a proxy.
    File,
}

fn unnamed_by_proxy(sign: &Sign) -> Problem {
    let (shown, without_proxy) = match sign {
        Sign::Header(name) => (format!("the header {name}"), ""),
        Sign::File => ("it came by the socket file".to_owned(), ""),
        Sign::OldHttp => (
            "HTTP/1.0".to_owned(),
            " If it was a text browser on this machine, and there is no proxy: start the program with `--local-page`, and \
             without `--allow-host`.",
        ),
    };
    Problem::forbidden(
        "proxy-host",
        format!("A proxy sent this request ({shown}), and didn't say under which name it was asked."),
        format!(
            "Have the proxy pass the name on (nginx: `proxy_set_header Host $http_host;`, Apache: `ProxyPreserveHost On`), \
             and start the program with `--allow-host NAME`.{without_proxy}"
        ),
    )
}

/// Returns whether the connection comes from this machine. A `Host` is only a claim. A command that asks a program at one
/// of its network addresses comes from that same address, but so does everybody where a container's port is forwarded by
/// a program. So such a command has to show the key. A socket file is there for a proxy, so it is the same there.
fn is_local(policy: &Policy, request: &Request) -> bool {
    let shows_key = || policy.passes.of(request) == Some(Pass::Owner);
    match CameIn::of(request) {
        Some(CameIn::Port { peer, own }) => {
            let (peer, own) = (peer.ip().to_canonical(), own.ip().to_canonical());
            peer.is_loopback() || peer == own && shows_key()
        }
        Some(CameIn::File) => shows_key(),
        None => false,
    }
}

/// The content of a `Host` header or of an authority: what RFC 3986 allows, less what no browser sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Authority {
    pub(super) host: Host,
    pub(super) port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Host {
    V4(Ipv4Addr),
    V6(Ipv6Addr),
    /// In lower case.
    Name(String),
}

impl Authority {
    /// Parses a host with an optional port. Returns `None` for everything else: userinfo, a dot at the end, spaces.
    pub(super) fn parse(text: &str) -> Option<Self> {
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
        // If the last label is digits, this is an IPv4 address in one of its odd spellings, which browsers never send.
        let last = text.rsplit('.').next()?;
        let is_name =
            text.len() <= 253 && text.split('.').all(is_label) && !last.bytes().all(|byte| byte.is_ascii_digit());
        is_name.then(|| Self::Name(text.to_ascii_lowercase()))
    }

    fn is_address_of_a_machine(&self) -> bool {
        match self {
            Self::V4(address) => !address.is_unspecified(),
            Self::V6(address) => !address.is_unspecified(),
            Self::Name(_) => false,
        }
    }

    pub(super) fn is_loopback(&self) -> bool {
        match self {
            Self::V4(address) => IpAddr::V4(*address).is_loopback(),
            Self::V6(address) => address.is_loopback(),
            Self::Name(name) => name == "localhost",
        }
    }
}

/// Parses a port from `1` to `65535`, without sign or leading zeros.
fn parse_port(digits: &str) -> Option<u16> {
    let port: u16 = digits.parse().ok()?;
    (port != 0 && port.to_string() == digits).then_some(port)
}
