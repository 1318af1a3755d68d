//! A node with a server in front of it.

use std::fmt;
use std::io;
use std::net::SocketAddr;
#[cfg(unix)]
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use axum::Router;
use subtle::ConstantTimeEq;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::engine::{Health, StoreLimits};
use crate::limits::web::live::STREAMS;
use crate::node::{Base, Node, Options};
use crate::sync::{Purpose, TokenFile, Tokens};
use crate::web::live::Pages;
use crate::web::metrics::Metrics;
use crate::web::{self, BasePath, Hub, Listener, Pass, Passes, Policy, Role, Services, Shares, VisitorKey};

/// A node with a server in front of it, ready to serve.
pub(crate) struct Server {
    node: Node,
    router: Router,
    limits: web::Limits,
    listener: Listener,
    /// Where programs on this machine reach it.
    pub(crate) address: String,
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
        let face = Arc::new(app.face().under(options.base_path));
        node.dir_mut().announce(&address, &face.base_path.to_string())?;
        if face.base_path != BasePath::default() {
            tracing::info!("all addresses are under {address}{}", face.base_path.home());
        }
        let mut faults = Vec::new();
        if options.allow_hosts.is_empty() && !bound.is_on_this_machine_alone() {
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
        let metrics = Metrics::new(&face, app.version_text());
        metrics.measure(&node.stores);
        let services = Arc::new(Services {
            metrics,
            version: app.version_text(),
            public_url: options.allow_hosts.iter().find_map(|host| host.url(&face.base_path)),
            faults,
            visitors: VisitorKey::in_dir(dir.path()),
            face: Arc::clone(&face),
            stores: node.stores.clone(),
            device: node.device.clone(),
            pages: Pages::default(),
            shares: Shares::new(limits.streams(STREAMS), stores),
            clients: node.clients.clone(),
            data: dir.path().to_owned(),
            hub: Hub::new(tokens.clone(), dir.path().to_owned(), shutdown.clone()),
            shutdown,
        });
        let routes = match role {
            Role::App => web::routes(services).map_err(|why| anyhow!("the app's own routes: {why}"))?,
            Role::Hub => web::hub_routes(services),
        };
        let policy = Policy {
            allow_hosts: options.allow_hosts,
            role,
            public: options.public,
            local_page: options.local_page,
            proxies: options.behind_proxies,
            passes: passes(dir.key(), tokens),
            ..Policy::of(&face)
        };
        let router = web::protect(routes, policy);
        Ok(Self { node, router, limits, listener, address })
    }

    /// Serves until the shutdown that [`prepare`](Self::prepare) was given, then lets requests and stores finish.
    pub(crate) async fn run(self) {
        let Self { node, router, limits, listener, .. } = self;
        web::serve(listener, router, limits, node.shutdown.clone()).await;
        node.close().await;
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

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use tokio::net::TcpListener;

    use crate::likes::LikeAdded;
    use crate::node::base;

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
