//! A node: one running app without a server. It has the data directory, the stores in it, and their sync with a hub.
//!
//! A desktop program, a test or a command line needs no more than this; a server stands on top of it.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::data_dir::DataDir;
use crate::engine::{Device, Schema, Setup, Store, StoreId, StoreLimits, Stores};
use crate::limits::app::{ATTEND_EVERY, RETRY_HALTED};
use crate::limits::engine::stores::SWEEP_EVERY;
use crate::sync::{Authority, Clients, Cluster, ClusterOptions, HistoryWanted, Upstream, UpstreamOptions, joined};
use crate::web::{AllowedHost, BasePath, EmbeddingSite, PublicUrl, TrustedProxy};

/// How an app runs. [`Options::default`] is what the program does without flags.
#[derive(Debug, Clone)]
pub struct Options {
    /// The data directory, which is created if it is missing. By default, this platform's place for the app's data.
    pub data: Option<PathBuf>,
    /// The name of this device, which the log shows with its events. By default, the host's name.
    pub device: Option<Device>,
    /// The hub to sync with, if any. By default, the one that the data directory was joined to.
    pub upstream: Option<UpstreamOptions>,
    /// The NATS cluster to be a gateway to, if any. Devices sync with a gateway as with any hub, and all gateways to one
    /// cluster serve the same logs. It takes the place of `upstream`.
    pub cluster: Option<ClusterOptions>,
    /// How much of a log this device has in the end, if it begins with the hub's snapshot.
    pub history: HistoryWanted,
    /// How long a store that the hub refuses waits before it tries again.
    pub retry_halted: Duration,
    /// The names, besides the loopback names, under which a server answers requests for sync and `/healthz`.
    pub allow_hosts: Vec<AllowedHost>,
    /// The path of a site under which a server has all of its addresses. A proxy in front passes it on unchanged.
    pub base_path: BasePath,
    /// The address under which others reach a server, such as `https://likes.example.org`: what links for pairing begin with.
    /// Its name is one of `allow_hosts` without being repeated there. By default it is the address that is listened on, if
    /// that is a loopback address.
    pub public_url: Option<PublicUrl>,
    /// Whether a server shows the page under those names, too. Anyone who can reach it can then post.
    pub public: bool,
    /// Whether a server shows the page under loopback names even though `allow_hosts` gives others. Such a server is
    /// expected behind a proxy. If a proxy on this machine passes a loopback name on, everybody who asks it for that
    /// name counts as the owner.
    pub local_page: bool,
    /// The proxies that say in `X-Forwarded-For` for whom they ask, so that limits count each client by itself. Nobody
    /// counts as the owner for connecting from one of these addresses.
    pub behind_proxies: Vec<TrustedProxy>,
    /// The sites whose pages may embed what the app counts, see [`App::embed`]. Nothing else opens to them.
    pub embed: Vec<EmbeddingSite>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            data: None,
            device: None,
            upstream: None,
            cluster: None,
            history: HistoryWanted::Full,
            retry_halted: Duration::from_secs(RETRY_HALTED),
            allow_hosts: Vec::new(),
            base_path: BasePath::default(),
            public_url: None,
            public: false,
            local_page: false,
            behind_proxies: Vec::new(),
            embed: Vec::new(),
        }
    }
}

/// Why an app can't run, or why one of its stores isn't available: what happened, and what to do next.
pub struct NodeError(anyhow::Error);

impl fmt::Display for NodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&in_full(&self.0))
    }
}

impl fmt::Debug for NodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for NodeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // The text already holds the causes.
        None
    }
}

impl From<anyhow::Error> for NodeError {
    fn from(error: anyhow::Error) -> Self {
        Self(error)
    }
}

/// The stores of an app, locked against other processes and in sync with a hub if there is one. Ends with
/// [`close`](Self::close), or when it is dropped.
pub struct Node {
    pub(crate) stores: Stores,
    pub(crate) clients: Clients,
    pub(crate) device: Device,
    pub(crate) shutdown: CancellationToken,
    /// The stores that somebody asked for by name.
    named: Arc<Mutex<BTreeSet<StoreId>>>,
    /// `None` once the node is closed. It holds the lock, so it is dropped after the stores are closed.
    dir: Option<DataDir>,
}

impl Node {
    /// Opens the stores and begins to sync. Must be called in a Tokio runtime.
    pub(crate) fn start(
        app: &App,
        Base { dir, upstream }: Base,
        options: &Options,
        limits: StoreLimits,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Self> {
        let device = options.device.clone().unwrap_or_else(|| host_name(app));
        let stores = open_stores(&dir, app.schema(), &device, limits, upstream.is_some(), show_progress)?;
        let clients = Clients::new(
            stores.clone(),
            device.clone(),
            upstream,
            options.history,
            options.retry_halted,
            shutdown.clone(),
        )
        .showing(app.face().figures.iter().map(|figure| Arc::clone(&figure.query)).collect());
        if let Some(cluster) = clients.cluster() {
            tokio::spawn(cluster.clone().look_after(shutdown.clone()));
            tokio::spawn(clients.clone().follow_stream());
        }
        tokio::spawn(close_idle(stores.clone(), shutdown.clone()));
        tokio::spawn(clients.clone().resume(app.store_name().parse()?));
        let named = Arc::default();
        if clients.have_upstream() {
            tokio::spawn(attend(stores.clone(), clients.clone(), Arc::clone(&named), shutdown.clone()));
        }
        Ok(Self { stores, clients, device, shutdown, named, dir: Some(dir) })
    }

    /// Returns the store `name`, and keeps it in sync from now on. A store costs nothing until its first event.
    ///
    /// # Errors
    ///
    /// When `name` is no store's name, or too many stores are in use.
    pub fn store(&self, name: &str) -> Result<Store, NodeError> {
        let get = || -> anyhow::Result<Store> {
            let id: StoreId = name.parse()?;
            let store = self.stores.get(&id)?;
            drop(self.clients.attend(&store, usize::MAX));
            self.named.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
            Ok(store)
        };
        Ok(get()?)
    }

    /// Stores everything that was committed, closes the stores, and releases the data directory.
    pub async fn close(mut self) {
        let closed = self.close_in_background();
        // No answer means that the thread panicked. The node is closed all the same.
        drop(closed.await);
    }

    /// Returns the data directory.
    pub(crate) fn dir(&self) -> &DataDir {
        self.dir.as_ref().expect("BUG: a node is used after it was closed")
    }

    /// Returns the data directory, to change what its lock file says.
    pub(crate) fn dir_mut(&mut self) -> &mut DataDir {
        self.dir.as_mut().expect("BUG: a node is used after it was closed")
    }

    /// Closes the node on a thread of its own: closing waits for the stores' threads, and async code must not wait.
    fn close_in_background(&mut self) -> tokio::sync::oneshot::Receiver<()> {
        self.shutdown.cancel();
        let (tell, closed) = tokio::sync::oneshot::channel();
        if let Some(dir) = self.dir.take() {
            let stores = self.stores.clone();
            std::thread::spawn(move || {
                stores.close();
                drop(dir);
                let _ = tell.send(());
            });
        }
        closed
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.close_in_background());
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("dir", &self.dir).field("device", &self.device).finish_non_exhaustive()
    }
}

/// Opens the stores of an app in the data directory `dir`, which the caller has locked. With `follow`, they follow an
/// upstream. Without it, they are what their eventlogs say.
pub(crate) fn open_stores(
    dir: &DataDir,
    schema: Schema,
    device: &Device,
    limits: StoreLimits,
    follow: bool,
    progress: fn(u64, u64),
) -> anyhow::Result<Stores> {
    let setup = Setup { progress, ..Setup::new(schema, device.clone())? };
    let dir = DataDir::stores(dir.path());
    Ok(Stores::in_locked(&dir, setup, limits, follow)?)
}

/// Returns this machine's name, or the program's name if the machine's can't be the name of a device.
pub(crate) fn host_name(app: &App) -> Device {
    #[cfg(unix)]
    let name = rustix::system::uname().nodename().to_str().map(str::to_owned).ok();
    #[cfg(not(unix))]
    let name = std::env::var("COMPUTERNAME").ok();
    let named = name.as_deref().and_then(|name| name.parse().ok());
    named.unwrap_or_else(|| app.name().parse().expect("BUG: not the name of a device"))
}

/// Closes idle stores for as long as the node runs, whether or not anybody asks for anything.
async fn close_idle(stores: Stores, shutdown: CancellationToken) {
    while shutdown.run_until_cancelled(tokio::time::sleep(SWEEP_EVERY)).await.is_some() {
        stores.close_idle();
    }
}

/// Keeps the stores that were asked for by name in sync.
async fn attend(stores: Stores, clients: Clients, named: Arc<Mutex<BTreeSet<StoreId>>>, shutdown: CancellationToken) {
    while shutdown.run_until_cancelled(tokio::time::sleep(ATTEND_EVERY)).await.is_some() {
        let named = named.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for store in named.iter().filter_map(|id| stores.get(id).ok()) {
            drop(clients.attend(&store, usize::MAX));
        }
    }
}

/// What a node must check or take before anything else happens.
pub(crate) struct Base {
    pub(crate) dir: DataDir,
    upstream: Option<Authority>,
}

/// Checks the hub or the cluster that the options name, or the hub that the data directory was joined to, and takes the data
/// directory: the one in the options, or the app's own.
///
/// # Errors
///
/// When one of them can't be used, or another process has the directory. A wrong hub leaves no new directory behind.
pub(crate) fn base(app: &App, options: &Options) -> anyhow::Result<Base> {
    let named = match &options.data {
        Some(path) => path.clone(),
        None => crate::data_dir::default_path(app.name())?,
    };
    let path = crate::data_dir::locate(&named).with_context(|| crate::data_dir::unusable(&named))?;
    let upstream = match (&options.cluster, &options.upstream) {
        (Some(cluster), _) => Some(Authority::Cluster(Cluster::new(cluster, &path)?)),
        (None, Some(given)) => Some(Authority::Hub(Box::new(Upstream::new(given.clone())?))),
        (None, None) => joined(&path)?.map(Upstream::new).transpose()?.map(Box::new).map(Authority::Hub),
    };
    if options.history == HistoryWanted::None && !matches!(upstream, Some(Authority::Hub(_))) {
        bail!(
            "only a device of a hub can do without its history, because a hub or gateway needs every event: name the hub with \
             --upstream, or leave --history none out"
        );
    }
    let dir = DataDir::take(&path)?;
    // It may have a part of the log alone, and whatever it has is the stream's.
    if upstream.is_none() && DataDir::is_gateways(&path)? {
        bail!(
            "{} is a gateway's, or a move into a cluster or out of it was interrupted here. Start {name} with --upstream and the \
             servers of that cluster (nats://… or tls://…), or give the command of the move again. `{name} move out` makes a hub \
             of it. If the cluster is gone for good, `{name} promote` does so with what is here",
            path.display(),
            name = app.name()
        );
    }
    Ok(Base { dir, upstream })
}

/// Shows a person at a terminal how far the rebuild of a state is.
pub(crate) fn show_progress(done: u64, total: u64) {
    let mut err = io::stderr();
    if err.is_terminal() {
        let end = if done >= total { "\n" } else { "" };
        // This is only a courtesy. If it can't be shown, nothing is lost.
        drop(write!(err, "\rrebuilding the state from the log: {done} of {total} events{end}"));
    }
}

/// Formats an error with its causes, without those that its text already names.
pub(crate) fn in_full(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // SQLite's innermost cause is a number and a repetition of what is already said. After advice, it would only
        // confuse.
        let words =
            cause.strip_prefix("Error code ").and_then(|cause| cause.split_once(": ")).map_or(&*cause, |it| it.1);
        if !text.contains(words) {
            text = format!("{text}: {cause}");
        }
    }
    text
}
