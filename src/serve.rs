//! One instance: its stores, and the server in front of them.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::Router;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::data_dir::DataDir;
use crate::engine::{Device, Health, SWEEP_EVERY, Setup, StoreLimits, Stores};
use crate::likes;
use crate::sync::{Clients, Hub, TokenFile, Tokens, Upstream};
use crate::web::live::Pages;
use crate::web::metrics::Metrics;
use crate::web::{self, AllowedHost, App, Policy, Services, Shares};

/// What an instance is made of.
pub(crate) struct Config {
    pub(crate) device: Device,
    pub(crate) allow_hosts: Vec<AllowedHost>,
    pub(crate) public: bool,
    pub(crate) stores: StoreLimits,
    /// The hub to follow, if any.
    pub(crate) upstream: Option<Upstream>,
    /// How long a store that the hub refuses waits before it tries again.
    pub(crate) retry_halted: Duration,
    /// Open event streams, of all stores together.
    pub(crate) streams: usize,
    /// Is told how far the rebuild of a state has come.
    pub(crate) progress: fn(u64, u64),
}

/// An instance that is ready to serve.
pub(crate) struct Instance {
    stores: Stores,
    shutdown: CancellationToken,
    router: Router,
    limits: web::Limits,
    listener: TcpListener,
    /// Where this machine reaches it.
    pub(crate) address: SocketAddr,
    /// Kept until the end, because with it goes the lock.
    _dir: DataDir,
}

/// The stores of the likes feature in the data directory `dir`, which the caller has. They `follow` an upstream, or are
/// what their eventlogs say.
pub(crate) fn open_stores(
    dir: &DataDir,
    device: &Device,
    limits: StoreLimits,
    follow: bool,
    progress: fn(u64, u64),
) -> anyhow::Result<Stores> {
    let setup = Setup { progress, ..Setup::new(likes::schema(), device.clone())? };
    let dir = DataDir::stores(dir.path());
    Ok(Stores::in_locked(&dir, setup, limits, follow)?)
}

impl Instance {
    /// Opens the stores of `dir`, and gets ready to serve them on `listener`. A store of the routes without prefix that
    /// can't be used is an error now, rather than a page that says so later.
    pub(crate) async fn prepare(
        mut config: Config,
        mut dir: DataDir,
        listener: TcpListener,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Self> {
        let open_files = web::raise_open_file_limit();
        let limits = web::Limits::default().within_open_files(open_files);
        config.stores.open = web::stores_within_open_files(config.stores.open, open_files);
        let stores = open_stores(&dir, &config.device, config.stores, config.upstream.is_some(), config.progress)?;
        let first = stores.get(&web::DEFAULT_STORE.parse().context("BUG: the default store has no valid name")?)?;
        if let Health::Failed(why) = first.healthy().await {
            bail!("the store {}: {why}", first.id());
        }
        let first = first.id().clone();
        let bound = listener.local_addr().context("cannot learn the address that is listened on")?;
        let address = reachable(bound);
        dir.announce(&format!("http://{address}"))?;
        if config.allow_hosts.is_empty() && !bound.ip().to_canonical().is_loopback() {
            tracing::warn!(
                "other machines can reach {bound}, and are refused. To let them sync, start likewise with --allow-host NAME, \
                 where NAME is the name or address under which they ask for it; to let them open the page, add --public"
            );
        }
        tokio::spawn(close_idle(stores.clone(), shutdown.clone()));
        let clients = Clients::new(stores.clone(), config.upstream, config.retry_halted, shutdown.clone());
        tokio::spawn(clients.clone().resume(first));
        let tokens = Tokens::follow(TokenFile::in_dir(dir.path()), shutdown.clone())?;
        let app = App::new(Services {
            stores: stores.clone(),
            device: config.device,
            pages: Pages::default(),
            shares: Shares::new(limits.streams(config.streams), config.stores),
            clients,
            data: dir.path().to_owned(),
            hub: Hub::new(tokens, dir.path().to_owned(), shutdown.clone()),
            control_key: dir.key().into(),
            metrics: Metrics::install(),
            shutdown: shutdown.clone(),
        });
        let policy = Policy { allow_hosts: config.allow_hosts, public: config.public, ..Policy::default() };
        let router = web::protect(web::routes(app), policy);
        Ok(Self { stores, shutdown, router, limits, listener, address, _dir: dir })
    }

    /// Serves until the shutdown that was given to [`prepare`](Self::prepare), then lets requests and stores finish.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let Self { stores, shutdown, router, limits, listener, .. } = self;
        web::serve(listener, router, limits, shutdown).await;
        tokio::task::spawn_blocking(move || stores.close()).await.context("closing the stores failed")
    }
}

/// Closes idle stores for as long as the instance runs, whether or not anybody asks for anything.
async fn close_idle(stores: Stores, shutdown: CancellationToken) {
    while shutdown.run_until_cancelled(tokio::time::sleep(SWEEP_EVERY)).await.is_some() {
        stores.close_idle();
    }
}

/// Where a program on this machine reaches a server that listens on `address`.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::likes::LikeAdded;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn trust_66_stores_that_nobody_uses_are_closed_though_nobody_asks_for_anything() {
        let data = tempfile::tempdir().expect("a directory");
        let config = Config {
            device: "test".parse().expect("a name"),
            allow_hosts: Vec::new(),
            public: false,
            stores: StoreLimits { idle: Duration::from_millis(1), ..StoreLimits::default() },
            upstream: None,
            retry_halted: Duration::ZERO,
            streams: 10,
            progress: |_, _| {},
        };
        let dir = DataDir::take(data.path()).expect("the directory");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let shutdown = CancellationToken::new();
        let instance = Instance::prepare(config, dir, listener, shutdown.clone()).await.expect("an instance");
        let ids: Vec<_> = (0..20).map(|n| format!("store-{n}").parse().expect("a name")).collect();
        for id in &ids {
            let store = instance.stores.get(id).expect("the store");
            store.commit(LikeAdded {}).await.expect("stored");
        }
        let start = Instant::now();
        while ids.iter().any(|id| instance.stores.opened(id).is_some()) {
            assert!(start.elapsed() < Duration::from_secs(180), "stores stay open");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        shutdown.cancel();
        instance.run().await.expect("an end");
    }
}
