//! A node with a server in front of it.

use std::fmt;
use std::io;
use std::net::SocketAddr;
#[cfg(unix)]
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, anyhow, bail};
use subtle::ConstantTimeEq;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::engine::{Health, StoreLimits};
use crate::limits::app::TAKEN_AGAIN;
use crate::limits::web::live::STREAMS;
use crate::node::{Base, Node, Options, base};
use crate::sync::{Purpose, Snapshots, TokenFile, Tokens};
use crate::web::embed::Embedding;
use crate::web::live::Pages;
use crate::web::metrics::Metrics;
use crate::web::{
    self, BasePath, Browsers, Door, Guarded, Hub, Listener, PairingCookies, Pairings, Pass, Passes, Policy, PublicUrl,
    Role, Services, Shares, Sites, VisitorKey,
};

/// A node with a server in front of it, ready to serve.
pub(crate) struct Server {
    node: Node,
    site: Guarded,
    limits: web::Limits,
    listener: Listener,
    /// Where programs on this machine reach it.
    pub(crate) address: String,
    anew: CancellationToken,
}

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    ForGood,
    /// Its data directory was joined to a hub. A new server in its place follows that hub.
    ToBeginAnew,
}

impl Server {
    /// Opens the stores, and prepares to serve them on `listener`. If the store whose routes have no prefix can't be
    /// used, this fails now, rather than serving a page that says so later.
    pub(crate) async fn prepare(
        app: &App,
        role: Role,
        options: Options,
        base: Base,
        listener: impl Into<Listener>,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Self> {
        Self::prepare_within(app, role, options, StoreLimits::default(), base, listener, shutdown).await
    }

    async fn prepare_within(
        app: &App,
        role: Role,
        options: Options,
        mut stores: StoreLimits,
        base: Base,
        listener: impl Into<Listener>,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Self> {
        if !options.embed.is_empty() && (role == Role::Hub || app.face().embed.is_none()) {
            bail!("{} has nothing that other sites could embed; leave --embed out", app.name());
        }
        let open_files = web::raise_open_file_limit();
        let limits = web::Limits::default().within_open_files(open_files);
        stores.open = web::stores_within_open_files(stores.open, open_files);
        let mut node = Node::start(app, base, &options, stores, shutdown.clone())?;
        let first = node.stores.get(&app.store_name().parse()?)?;
        if let Health::Failed(why) = first.healthy().await {
            bail!("the store {}: {why}", first.id());
        }
        let listener = listener.into();
        let bound = Bound::of(&listener).context("cannot learn the address that is listened on")?;
        let address = bound.to_string();
        let given_url = options.public_url.as_ref().map(ToString::to_string);
        let public_url = public_url(options.public_url, &bound, &options.base_path)?;
        // Whoever names the server's own address doesn't have to repeat its name.
        let mut allow_hosts = options.allow_hosts;
        allow_hosts.extend(public_url.as_ref().and_then(PublicUrl::host).filter(|host| !allow_hosts.contains(host)));
        let face = Arc::new(app.face().under(options.base_path));
        node.dir_mut().announce(&address, &face.base_path.to_string())?;
        if face.base_path != BasePath::default() {
            tracing::info!("all addresses are under {address}{}", face.base_path.home());
        }
        let mut faults = Vec::new();
        if allow_hosts.is_empty() && !bound.is_on_this_machine_alone() {
            let page = match role {
                Role::App => "; to let them open the page, add --public",
                Role::Hub => "",
            };
            let found = format!("other machines can reach {address}, and are refused");
            let advice = format!(
                "To let them sync, start {} with --allow-host NAME, where NAME is the name or address under which they ask \
                 for it{page}",
                app.name()
            );
            tracing::warn!("{found}. {advice}");
            faults.push((found, advice));
        }
        let dir = node.dir();
        let tokens = Tokens::follow(TokenFile::in_dir(dir.path()), shutdown.clone())?;
        let sites = Sites(options.embed);
        let embed = |embed| Embedding::new(embed, sites.clone(), node.stores.clone(), dir.path(), shutdown.clone());
        let embedding = face.embed.clone().map(embed).transpose()?;
        let anew = CancellationToken::new();
        let cookies = PairingCookies::new(&face, public_url.as_ref());
        let metrics = Metrics::new(&face);
        metrics.measure(&node.stores);
        let front = given_url.or_else(|| allow_hosts.iter().find_map(|host| host.url(&face.base_path)));
        let services = Arc::new(Services {
            embedding,
            pairings: Pairings::new(dir.path(), public_url, cookies.clone()),
            metrics,
            probes: Default::default(),
            public_url: front,
            faults,
            visitors: VisitorKey::in_dir(dir.path(), node.clients.cluster().is_some()),
            face: Arc::clone(&face),
            stores: node.stores.clone(),
            device: node.device.clone(),
            pages: Pages::default(),
            shares: Shares::new(limits.streams(STREAMS), stores),
            clients: node.clients.clone(),
            data: dir.path().to_owned(),
            snapshots: Snapshots::new(node.stores.clone(), shutdown.clone()),
            hub: Hub::new(tokens.clone(), dir.path().to_owned(), node.clients.cluster().cloned(), shutdown.clone()),
            shutdown,
            anew: anew.clone(),
        });
        let routes = match role {
            Role::App => web::routes(services).map_err(|why| anyhow!("the app's own routes: {why}"))?,
            Role::Hub => web::hub_routes(services),
        };
        let policy = Policy {
            allow_hosts,
            role,
            public: options.public,
            local_page: options.local_page,
            proxies: options.behind_proxies,
            sites,
            passes: passes(dir.key(), tokens.clone()),
            browsers: Some(Browsers { tokens, cookies }),
            ..Policy::of(&face)
        };
        let site = web::protect(routes, policy);
        Ok(Self { node, site, limits, listener, address, anew })
    }

    /// Serves until the shutdown that [`prepare`](Self::prepare) was given, then lets requests and stores finish.
    pub(crate) async fn run(self) -> Ended {
        let Self { node, site, limits, listener, anew, .. } = self;
        web::serve(listener, site, limits, node.shutdown.clone()).await;
        node.close().await;
        if anew.is_cancelled() { Ended::ToBeginAnew } else { Ended::ForGood }
    }
}

/// Runs `server` until `shutdown`, and a new one in its place, on the same listener, each time that it is to begin anew. The
/// server was prepared with a child of `shutdown`.
///
/// # Errors
///
/// When there can be no new one.
pub(crate) async fn run(
    app: &App,
    role: Role,
    options: Options,
    mut server: Server,
    door: Door,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut door = Some(door);
    loop {
        let mut running = pin!(server.run());
        let ended = tokio::select! {
            ended = &mut running => ended,
            () = shutdown.cancelled() => {
                // Whoever connects from now on is refused, rather than left waiting.
                drop(door.take());
                running.await
            }
        };
        let Some(door) = door.as_ref().filter(|_| ended == Ended::ToBeginAnew) else { return Ok(()) };
        tracing::info!("the data directory was joined to a hub; following it");
        let base = base_soon(app, &options).await?;
        let child = shutdown.child_token();
        server =
            Server::prepare(app, role, options.clone(), base, door.open().context("cannot keep listening")?, child)
                .await?;
    }
}

/// Takes the data directory again. A command may have it for a moment.
async fn base_soon(app: &App, options: &Options) -> anyhow::Result<Base> {
    let start = Instant::now();
    loop {
        match base(app, options) {
            Err(_) if start.elapsed() < TAKEN_AGAIN => tokio::time::sleep(TAKEN_AGAIN / 100).await,
            result => return result,
        }
    }
}

/// Returns what the key of a data directory and its tokens for reading open.
fn passes(key: &str, tokens: Tokens) -> Passes {
    let key = key.as_bytes().to_owned();
    Passes::new(move |shown| {
        if shown.ct_eq(&key).into() {
            return Some(Pass::Owner);
        }
        tokens.find(shown, Purpose::Read).map(|_| Pass::Watcher)
    })
}

/// Where a server listens. Shown, it is where a program on this machine reaches it.
enum Bound {
    Port(SocketAddr),
    #[cfg(unix)]
    File(PathBuf),
}

impl Bound {
    fn of(listener: &Listener) -> io::Result<Self> {
        match listener {
            Listener::Tcp(listener) => listener.local_addr().map(Self::Port),
            #[cfg(unix)]
            Listener::File(listener) => {
                let address = listener.local_addr()?;
                let path = address.as_pathname().ok_or(io::ErrorKind::AddrNotAvailable)?;
                Ok(Self::File(path.to_owned()))
            }
        }
    }

    fn is_on_this_machine_alone(&self) -> bool {
        match self {
            Self::Port(address) => address.ip().to_canonical().is_loopback(),
            #[cfg(unix)]
            Self::File(_) => true,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(address) => {
                let mut address = *address;
                if address.ip().is_unspecified() {
                    address.set_ip(match address {
                        SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                        SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
                    });
                }
                write!(f, "http://{address}")
            }
            #[cfg(unix)]
            Self::File(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Returns where others reach a server that listens on `bound`, if that is known. Without an address that its owner gives,
/// only this machine reaches it for certain.
fn public_url(given: Option<PublicUrl>, bound: &Bound, base: &BasePath) -> anyhow::Result<Option<PublicUrl>> {
    let url = match (given, bound) {
        (Some(url), _) => Some(url),
        (None, Bound::Port(address)) if bound.is_on_this_machine_alone() => {
            Some(format!("http://{address}").parse().context("BUG: an address that is none")?)
        }
        (None, _) => None,
    };
    url.map(|url| url.under(base)).transpose()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use tokio::net::TcpListener;

    use crate::likes::LikeAdded;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn trust_66_stores_that_nobody_uses_are_closed_though_nobody_asks_for_anything() {
        let data = tempfile::tempdir().expect("a directory");
        let limits = StoreLimits { idle: Duration::from_millis(1), ..StoreLimits::default() };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let shutdown = CancellationToken::new();
        let (app, options) =
            (crate::likes::app(), Options { data: Some(data.path().to_owned()), ..Options::default() });
        let base = base(&app, &options).expect("the directory");
        let server = Server::prepare_within(&app, Role::App, options, limits, base, listener, shutdown.clone());
        let server = server.await.expect("a server");
        let ids: Vec<_> = (0..20).map(|n| format!("store-{n}").parse().expect("a name")).collect();
        for id in &ids {
            let store = server.node.stores.get(id).expect("the store");
            store.commit(LikeAdded {}).await.expect("stored");
        }
        let start = Instant::now();
        while ids.iter().any(|id| server.node.stores.opened(id).is_some()) {
            assert!(start.elapsed() < Duration::from_secs(180), "stores stay open");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        shutdown.cancel();
        server.run().await;
    }
}
