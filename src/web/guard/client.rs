//! For whom a request is made, where a proxy makes it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use axum::extract::Request;
use axum::http::HeaderMap;
use ipnet::IpNet;

use super::host::{CameIn, is_by_file};

/// A value of `--behind-proxy`: the address of a proxy that says for whom it asks, or a network of such proxies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrustedProxy(IpNet);

/// The value of `--behind-proxy` isn't an address.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0:?} is not the address of a proxy: write the one from which it connects, like `127.0.0.1`, `fd00::2`, or a network \
     like `10.0.0.0/8`; no name, no port"
)]
pub struct InvalidProxy(String);

impl FromStr for TrustedProxy {
    type Err = InvalidProxy;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let one = || text.parse::<IpAddr>().map(|address| IpNet::from(address.to_canonical()));
        one().or_else(|_| text.parse()).map(Self).map_err(|_| InvalidProxy(text.to_owned()))
    }
}

impl fmt::Display for TrustedProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.prefix_len() == self.0.max_prefix_len() {
            true => write!(f, "{}", self.0.addr()),
            false => write!(f, "{}", self.0),
        }
    }
}

/// The address of the client that a request comes from, which limits by client go by. Every request that passes the guard
/// carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::web) struct ClientAddress(pub(in crate::web) IpAddr);

impl ClientAddress {
    /// Returns the peer of the connection. If that is one of the `proxies`, or came in by a socket file, it returns the last address in
    /// `X-Forwarded-For` that isn't: each proxy adds the peer that it saw at the end, and everything before an address
    /// that no trusted proxy added is the client's own claim.
    ///
    /// `Forwarded` (RFC 7239) doesn't count. A proxy that writes only one of the two passes on what a client wrote into
    /// the other.
    pub(super) fn of(proxies: &[TrustedProxy], request: &Request) -> Option<Self> {
        // A socket file is there for a proxy, and its rights say who may connect. So that proxy needs no name.
        let by_file = is_by_file(request);
        let mut client = peer(request).or(by_file.then_some(IpAddr::V4(Ipv4Addr::LOCALHOST)))?;
        let mut is_proxy = by_file || is_one_of(proxies, client);
        let claims = claims(request.headers());
        let mut claims = claims.iter().rev();
        while is_proxy {
            // A proxy that says nothing, or nothing that makes sense, asks for itself.
            let Some(Some(address)) = claims.next() else { break };
            client = *address;
            is_proxy = is_one_of(proxies, client);
        }
        Some(Self(client))
    }

    /// Returns what counts as one client: an IPv4 address, or the network that an IPv6 user has to themselves.
    pub(in crate::web) fn network(self) -> IpAddr {
        match self.0.to_canonical() {
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
            address => address,
        }
    }
}

/// A proxy that makes all of its clients count as one: it isn't trusted to say who they are, or it doesn't say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::web) enum HidingProxy {
    /// A peer that asks for others, as proxies do, although nobody named it.
    Unnamed(IpAddr),
    /// A named proxy that doesn't say for whom it asks.
    Silent(IpAddr),
    /// One that comes by the socket file and doesn't say it.
    SilentByFile,
}

impl HidingProxy {
    /// Returns the proxy that a request came through, if it hides its clients.
    pub(super) fn of(proxies: &[TrustedProxy], request: &Request) -> Option<Self> {
        let is_silent = || !matches!(claims(request.headers()).last(), Some(Some(_)));
        let Some(peer) = peer(request) else {
            return (is_by_file(request) && is_silent()).then_some(Self::SilentByFile);
        };
        if is_one_of(proxies, peer) {
            return is_silent().then_some(Self::Silent(peer));
        }
        let is_sign = |name: &&str| request.headers().contains_key(*name);
        let shows_sign = ["x-forwarded-for", "forwarded", "x-real-ip"].iter().any(is_sign);
        // From anywhere, a client can send such a header without a proxy. Nobody should trust it for that.
        (is_near(peer) && shows_sign).then_some(Self::Unnamed(peer))
    }

    /// What is wrong with it, and what to do.
    pub(in crate::web) fn fault(self) -> (String, String) {
        const LINE: &str = "Have it write X-Forwarded-For (nginx: `proxy_set_header X-Forwarded-For $remote_addr;`, HAProxy: \
                            `http-request set-header X-Forwarded-For %[src]`)";
        let (wrong, advice) = match self {
            Self::Unnamed(proxy) => (
                format!("a proxy at {proxy} asks for others, and nobody named it"),
                format!("If it is yours, start this server with `--behind-proxy {proxy}`"),
            ),
            Self::Silent(proxy) => (format!("the proxy at {proxy} doesn't say for whom it asks"), LINE.to_owned()),
            Self::SilentByFile => {
                ("the proxy at the socket file doesn't say for whom it asks".to_owned(), LINE.to_owned())
            }
        };
        (format!("{wrong}: all readers of --embed count as one client"), advice)
    }
}

/// Returns whether an address is this machine's or one of a network that isn't the internet.
fn is_near(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [first, second, ..] = address.octets();
            let is_shared = first == 100 && second & 0xc0 == 64;
            address.is_loopback() || address.is_private() || address.is_link_local() || is_shared
        }
        IpAddr::V6(address) => address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local(),
    }
}

/// Returns whether the connection comes from one of the `proxies`.
pub(super) fn is_proxied(proxies: &[TrustedProxy], request: &Request) -> bool {
    is_by_file(request) || peer(request).is_some_and(|peer| is_one_of(proxies, peer))
}

fn peer(request: &Request) -> Option<IpAddr> {
    match CameIn::of(request)? {
        CameIn::Port { peer, .. } => Some(peer.ip().to_canonical()),
        CameIn::File => None,
    }
}

fn is_one_of(proxies: &[TrustedProxy], address: IpAddr) -> bool {
    proxies.iter().any(|proxy| proxy.0.contains(&address))
}

/// The addresses in all `X-Forwarded-For` headers, in order; `None` for what isn't one. Some proxies add a port.
fn claims(headers: &HeaderMap) -> Vec<Option<IpAddr>> {
    let address = |text: &str| {
        let address = text.parse().or_else(|_| text.parse().map(|with_port: SocketAddr| with_port.ip()));
        address.ok().map(|address| address.to_canonical())
    };
    let values = headers.get_all("x-forwarded-for").iter();
    values.flat_map(|value| value.to_str().unwrap_or("?").split(',').map(|part| address(part.trim()))).collect()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn client(proxies: &[&str], peer: &str, forwarded_for: &[&str]) -> String {
        let proxies: Vec<_> = proxies.iter().map(|proxy| proxy.parse().expect("a proxy")).collect();
        let mut request = Request::new(Body::empty());
        for value in forwarded_for {
            request.headers_mut().append("x-forwarded-for", value.parse().expect("a header"));
        }
        request.headers_mut().insert("forwarded", "for=203.0.113.66".parse().expect("a header"));
        let peer = SocketAddr::new(peer.parse().expect("an address"), 50_000);
        request.extensions_mut().insert(CameIn::Port { peer, own: peer });
        ClientAddress::of(&proxies, &request).expect("a peer").0.to_string()
    }

    #[test]
    fn only_a_named_proxy_says_for_whom_it_asks() {
        assert_eq!(client(&[], "127.0.0.1", &["198.51.100.7"]), "127.0.0.1");
        assert_eq!(client(&["127.0.0.1"], "127.0.0.1", &["198.51.100.7"]), "198.51.100.7");
        assert_eq!(client(&["127.0.0.1"], "192.0.2.9", &["198.51.100.7"]), "192.0.2.9");
        assert_eq!(client(&["127.0.0.1"], "::ffff:127.0.0.1", &["::ffff:198.51.100.7"]), "198.51.100.7");
        assert_eq!(client(&["10.0.0.0/8", "fd00::/16"], "10.1.2.3", &["2001:db8::7"]), "2001:db8::7");
    }

    #[test]
    fn whoever_comes_by_a_socket_file_is_a_proxy_and_needs_no_name() {
        let client = |proxies: &[TrustedProxy], forwarded_for: &'static str| {
            let mut request = Request::new(Body::empty());
            request.extensions_mut().insert(CameIn::File);
            request.headers_mut().append("x-forwarded-for", forwarded_for.parse().expect("a header"));
            assert!(is_proxied(proxies, &request));
            ClientAddress::of(proxies, &request).expect("a client").0.to_string()
        };
        assert_eq!(client(&[], "203.0.113.66, 198.51.100.7"), "198.51.100.7");
        let cdn = "198.51.100.0/24".parse().expect("a network");
        assert_eq!(client(&[cdn], "203.0.113.66, 198.51.100.7"), "203.0.113.66");
        assert_eq!(client(&[], "unknown"), "127.0.0.1");
    }

    #[test]
    fn a_proxy_that_hides_its_clients_is_noticed_and_a_client_elsewhere_is_none() {
        let proxies = ["10.0.0.2".parse().expect("a proxy")];
        let hiding = |peer: Option<&str>, header: &'static str, value: &'static str| {
            let mut request = Request::new(Body::empty());
            request.headers_mut().append(header, value.parse().expect("a value"));
            match peer {
                Some(peer) => {
                    let peer = SocketAddr::new(peer.parse().expect("an address"), 50_000);
                    request.extensions_mut().insert(CameIn::Port { peer, own: peer });
                }
                None => drop(request.extensions_mut().insert(CameIn::File)),
            }
            HidingProxy::of(&proxies, &request)
        };
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        for near in ["127.0.0.1", "::1", "10.0.0.3", "172.17.0.1", "192.168.1.9", "100.64.0.1", "fd00::2", "fe80::2"] {
            for sign in ["x-forwarded-for", "x-real-ip", "forwarded"] {
                assert_eq!(hiding(Some(near), sign, "198.51.100.7"), Some(HidingProxy::Unnamed(address(near))));
            }
            assert_eq!(hiding(Some(near), "accept", "*/*"), None, "a client");
        }
        for elsewhere in ["203.0.113.66", "100.128.0.1", "2001:db8::66"] {
            assert_eq!(hiding(Some(elsewhere), "x-real-ip", "198.51.100.7"), None, "{elsewhere}");
            assert_eq!(hiding(Some(elsewhere), "x-forwarded-for", "198.51.100.7"), None, "{elsewhere}");
        }
        for (peer, silent) in
            [(Some("10.0.0.2"), HidingProxy::Silent(address("10.0.0.2"))), (None, HidingProxy::SilentByFile)]
        {
            assert_eq!(hiding(peer, "x-forwarded-for", "198.51.100.7"), None);
            assert_eq!(hiding(peer, "x-forwarded-for", "unknown"), Some(silent));
            assert_eq!(hiding(peer, "x-real-ip", "198.51.100.7"), Some(silent));
        }
    }

    #[test]
    fn what_a_client_claims_about_itself_does_not_count() {
        let ours = ["127.0.0.1", "10.0.0.0/8"];
        assert_eq!(client(&ours, "127.0.0.1", &["203.0.113.66, 198.51.100.7"]), "198.51.100.7");
        assert_eq!(client(&ours, "127.0.0.1", &["203.0.113.66", "198.51.100.7, 10.0.0.2"]), "198.51.100.7");
        assert_eq!(client(&ours, "127.0.0.1", &["127.0.0.1, 198.51.100.7:4711,10.0.0.2"]), "198.51.100.7");
        // Whoever asked the last proxy of ours is known by nothing but that proxy.
        for odd in ["", "unknown", "198.51.100.7, _hidden", "\u{e9}"] {
            assert_eq!(client(&ours, "127.0.0.1", &[odd]), "127.0.0.1", "{odd:?}");
        }
        assert_eq!(client(&ours, "127.0.0.1", &["nonsense, 10.0.0.2"]), "10.0.0.2");
        assert_eq!(client(&ours, "127.0.0.1", &[]), "127.0.0.1");
        assert_eq!(client(&ours, "127.0.0.1", &["10.0.0.2, 10.0.0.3"]), "10.0.0.2");
    }

    #[test]
    fn a_proxy_is_an_address_or_a_network() {
        for (text, shown) in [("127.0.0.1", "127.0.0.1"), ("10.0.0.0/8", "10.0.0.0/8"), ("::ffff:10.0.0.1", "10.0.0.1")]
        {
            assert_eq!(text.parse::<TrustedProxy>().expect("a proxy").to_string(), shown);
        }
        for wrong in ["", "localhost", "127.0.0.1:80", "10.0.0.0/33", "10.0.0.0/", "*", "[::1]"] {
            let why = wrong.parse::<TrustedProxy>().expect_err(wrong).to_string();
            assert!(why.contains("not the address of a proxy"), "{why}");
        }
    }
}
