//! The address of a NATS cluster: its servers, and the prefix of everything that is stored there.

use std::fmt;
use std::path::PathBuf;

use anyhow::{Context, bail};
use async_nats::ServerAddr;
use percent_encoding::percent_decode_str;
use reqwest::Url;

use super::super::gateway::Prefix;
use super::super::http::is_local;
use crate::limits::sync::nats::SERVERS;

/// A NATS JetStream cluster, and how to be let in.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterOptions {
    /// Its servers, such as `nats://10.0.0.1,nats://10.0.0.2`. A path after the last one, such as `/shop`, is the prefix of
    /// the stream, its subjects and its bucket, so that several installations can share a cluster.
    pub servers: String,
    /// A credentials file, as `nsc` makes it. It is read again for each connection.
    pub credentials: Option<PathBuf>,
    /// A file of certificates in PEM form to trust for the servers, besides the system's.
    pub root_certificate: Option<PathBuf>,
    /// Which servers may be reached without TLS.
    pub without_tls: WithoutTls,
}

impl fmt::Debug for ClusterOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The address may hold a password.
        let servers = Address::parse(&self.servers, WithoutTls::Anywhere).map(|address| address.to_string());
        f.debug_struct("ClusterOptions")
            .field("servers", &servers.unwrap_or_default())
            .field("credentials", &self.credentials)
            .field("root_certificate", &self.root_certificate)
            .field("without_tls", &self.without_tls)
            .finish()
    }
}

/// Which NATS servers may be reached without TLS. Everything that is stored there goes over the connection: the events, the
/// hashes of the tokens, and the key of the visitors' hashes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WithoutTls {
    /// Those on this machine.
    #[default]
    Here,
    /// Any. The network to them is private.
    Anywhere,
}

/// How an address itself says to be let in.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Login {
    User(String, String),
    Token(String),
}

/// The servers of a cluster, and the prefix. Shown, it has no password in it.
#[derive(Clone)]
pub(super) struct Address {
    pub(super) servers: Vec<ServerAddr>,
    pub(super) login: Option<Login>,
    prefix: Prefix,
    pub(super) has_tls: bool,
    shown: String,
}

/// Whether an upstream's address is that of a cluster, rather than a hub's.
pub(crate) fn is_cluster(text: &str) -> bool {
    scheme(text).is_some()
}

/// Whether a server is reached over TLS, and its address without the scheme.
fn scheme(text: &str) -> Option<(bool, &str)> {
    let text = text.trim();
    let tls = text.strip_prefix("tls://").map(|rest| (true, rest));
    tls.or_else(|| text.strip_prefix("nats://").map(|rest| (false, rest)))
}

impl Address {
    /// Parses the addresses of servers, with commas between them.
    pub(super) fn parse(text: &str, without_tls: WithoutTls) -> anyhow::Result<Self> {
        let parts: Vec<_> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
        let Some(has_tls) = parts.first().and_then(|first| scheme(first)).map(|(has_tls, _)| has_tls) else {
            bail!("this names no NATS server; write it like nats://localhost or tls://nats.example.org:4222");
        };
        if parts.len() > SERVERS {
            bail!("these are more than {SERVERS} NATS servers; name those that the gateway connects to");
        }
        let (mut servers, mut shown, mut prefix, mut login) = (Vec::new(), Vec::new(), None, None);
        for part in parts {
            let server = Server::parse(part)?;
            if server.has_tls != has_tls {
                bail!("reach all NATS servers alike: over tls://, or all over nats://");
            }
            if !has_tls && without_tls == WithoutTls::Here && !is_local(&server.url) {
                bail!(
                    "events and the hashes of tokens would travel to {} for all to read; use tls://, or say with \
                     --nats-without-tls that the network to it is private",
                    server.shown()
                );
            }
            if let Some(named) = server.prefix()? {
                if prefix.as_ref().is_some_and(|prefix| *prefix != named) {
                    bail!("these addresses name two prefixes, and a gateway has one: {named} is another than before");
                }
                prefix = Some(named);
            }
            if let Some(named) = server.login() {
                if login.as_ref().is_some_and(|login| *login != named) {
                    bail!("these addresses name two users, and a gateway is one");
                }
                login = Some(named);
            }
            shown.push(server.shown());
            servers.push(server.address()?);
        }
        let mut shown = shown.join(",");
        if let Some(prefix) = &prefix {
            shown = format!("{shown}/{prefix}");
        }
        Ok(Self { servers, login, prefix: prefix.unwrap_or_default(), has_tls, shown })
    }

    /// What everything that is stored there begins with.
    pub(super) fn prefix(&self) -> &Prefix {
        &self.prefix
    }

    /// The name of the stream.
    pub(super) fn stream(&self) -> String {
        self.prefix.to_string()
    }

    /// The name of the bucket's stream. Tools know it as the bucket with the prefix as its name.
    pub(super) fn bucket(&self) -> String {
        format!("KV_{}", self.prefix)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// One server.
struct Server {
    has_tls: bool,
    /// With another scheme: names and numbers of hosts are told apart only for schemes that are known. This one's own port,
    /// which counts as none, is the least likely for a NATS server.
    url: Url,
}

impl Server {
    fn parse(text: &str) -> anyhow::Result<Self> {
        // What can't be parsed may hold a password, so it isn't repeated.
        let malformed = "this is not the address of a NATS server; write it like nats://localhost:4222";
        let (has_tls, rest) = scheme(text).context(malformed)?;
        let url = Url::parse(&format!("ftp://{rest}")).ok().filter(|url| url.host().is_some()).context(malformed)?;
        if url.query().is_some() || url.fragment().is_some() {
            bail!("{malformed}, with nothing after its prefix");
        }
        Ok(Self { has_tls, url })
    }

    fn prefix(&self) -> anyhow::Result<Option<Prefix>> {
        let path = self.url.path().trim_matches('/');
        let prefix = (!path.is_empty()).then(|| path.parse().map_err(anyhow::Error::msg));
        prefix.transpose()
    }

    /// Its address, without user and password.
    fn shown(&self) -> String {
        let scheme = if self.has_tls { "tls" } else { "nats" };
        let port = self.port().map(|port| format!(":{port}")).unwrap_or_default();
        format!("{scheme}://{}{port}", self.url.host_str().unwrap_or_default())
    }

    /// The port, if it is named.
    fn port(&self) -> Option<u16> {
        self.url.port()
    }

    fn login(&self) -> Option<Login> {
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        match (self.url.username(), self.url.password()) {
            ("", _) => None,
            (token, None) => Some(Login::Token(decoded(token))),
            (user, Some(password)) => Some(Login::User(decoded(user), decoded(password))),
        }
    }

    fn address(&self) -> anyhow::Result<ServerAddr> {
        let host = self.url.host_str().unwrap_or_default();
        let scheme = if self.has_tls { "tls" } else { "nats" };
        let port = self.port().unwrap_or(4222);
        format!("{scheme}://{host}:{port}").parse().with_context(|| format!("{} is no address", self.shown()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::{fuzz, text};

    fn parse(text: &str) -> Result<Address, String> {
        Address::parse(text, WithoutTls::Here).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn an_address_names_servers_and_a_prefix_and_shows_no_password() {
        let address = parse("nats://localhost, nats://me:secret@127.0.0.1:14222/shop").expect("an address");
        assert_eq!(address.to_string(), "nats://localhost,nats://127.0.0.1:14222/shop");
        assert_eq!((&*address.stream(), &*address.bucket(), address.has_tls), ("shop", "KV_shop", false));
        let ports: Vec<_> = address.servers.iter().map(ServerAddr::port).collect();
        assert_eq!(ports, [4222, 14222]);
        assert!(address.login == Some(Login::User("me".to_owned(), "secret".to_owned())));
        let address = parse("tls://nats.example.org").expect("an address");
        assert_eq!((&*address.stream(), address.has_tls), ("likewise", true));
        assert_eq!(address.to_string(), "tls://nats.example.org");
    }

    #[test]
    fn addresses_that_lead_nowhere_or_over_an_open_network_are_refused() {
        for (text, words) in [
            ("", "names no NATS server"),
            ("http://localhost", "names no NATS server"),
            ("nats://", "not the address"),
            ("nats://localhost,localhost", "not the address"),
            ("nats://localhost/a.b", "no prefix"),
            ("nats://localhost/a?b", "not the address"),
            ("nats://localhost/a,nats://localhost/b", "two prefixes"),
            ("nats://localhost,tls://localhost", "alike"),
            ("nats://a:secret@localhost,nats://b:secret@localhost", "two users"),
            ("nats://10.1.2.3", "--nats-without-tls"),
            ("nats://nats.example.org", "--nats-without-tls"),
            ("nats://me:secret@nats.example.org", "nats://nats.example.org"),
        ] {
            let why = parse(text).err().expect(text);
            assert!(why.contains(words) && !why.contains("secret"), "{text}: {why}");
        }
        assert!(Address::parse("nats://10.1.2.3", WithoutTls::Anywhere).is_ok());
    }

    #[test]
    fn trust_38_fuzzed_addresses_of_clusters_leave_this_machine_over_tls_alone() {
        fuzz("cluster", &["nats://", "tls://", "localhost", "127.0.0.1", "[::1]", "@", ":", ",", "/"], |input| {
            match parse(&text(input)) {
                Ok(address) => {
                    let is_here = |server: &ServerAddr| {
                        server
                            .host()
                            .parse::<std::net::IpAddr>()
                            .map_or(server.host() == "localhost", |ip| ip.is_loopback())
                    };
                    assert!(address.has_tls || address.servers.iter().all(is_here), "{address}");
                    assert!(!address.to_string().contains('@'), "{address}");
                    "right".to_owned()
                }
                Err(why) => why,
            }
        });
    }
}
