//! `serve` and `hub`: the program in the foreground, until a signal ends it.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio_util::sync::CancellationToken;

use super::arguments::{HubArgs, ListenArgs, NatsArgs, ServeArgs, UpstreamArgs};
use super::listen::{Listen, Listening, tell_service_manager};
use crate::app::App;
use crate::data_dir::DataDir;
use crate::engine;
use crate::limits::app::SHUTDOWN;
use crate::node::{Options, base};
use crate::serve::{self, Server};
use crate::sync::{ClusterOptions, Purpose, TokenFile, TokenSource, UpstreamOptions, WithoutTls, is_cluster, joined};
use crate::web::Role;

/// Serves the app.
pub(super) async fn serve(app: &App, data: &Path, args: ServeArgs) -> anyhow::Result<ExitCode> {
    let (upstream, cluster) = match cluster(&args.hub) {
        Some(cluster) => {
            if let Some(joined) = joined(data)? {
                tell_of_joined(app, "a NATS cluster", &joined);
            }
            (None, Some(cluster))
        }
        None => (upstream(app, data, &args.hub)?, None),
    };
    let ServeArgs { listen, retry_halted, public, embed, history, .. } = args;
    let retry_halted = Duration::from_secs(retry_halted);
    let options = Options { upstream, history, cluster, retry_halted, public, embed, ..options(data, &listen) };
    run(app, Role::App, &listen.listen, options).await
}

/// Serves sync alone.
pub(super) async fn hub(app: &App, data: &Path, args: HubArgs) -> anyhow::Result<ExitCode> {
    let HubArgs { listen, upstream, root_certificate, nats } = args;
    if let Some(upstream) = upstream {
        if !is_cluster(&upstream) {
            bail!(
                "a hub follows no other hub; leave --upstream out, or name the servers of a NATS cluster (nats://… or tls://…)"
            );
        }
        if let Some(joined) = joined(data)? {
            tell_of_joined(app, "a NATS cluster", &joined);
        }
        let cluster = Some(cluster_at(&upstream, root_certificate, nats));
        return run(app, Role::Hub, &listen.listen, Options { cluster, ..options(data, &listen) }).await;
    }
    if let Some(UpstreamOptions { url, .. }) = joined(data)? {
        bail!(
            "{} is a device of the hub {url}, so it is no hub itself; name another directory with --data",
            data.display()
        );
    }
    run(app, Role::Hub, &listen.listen, options(data, &listen)).await
}

async fn run(app: &App, role: Role, listen: &Listen, options: Options) -> anyhow::Result<ExitCode> {
    let base = base(app, &options)?;
    if options.cluster.is_some() {
        must_not_be_a_hub(&base.dir)?;
    }
    let data = base.dir.path().display().to_string();
    // The socket's file goes when everything has ended.
    let Listening { listener, _file } = listen.open().await?;
    let shutdown = CancellationToken::new();
    let door = listener.into_door().context("cannot listen")?;
    let first = door.open().context("cannot listen")?;
    let server = Server::prepare(app, role, options.clone(), base, first, shutdown.child_token()).await?;
    // This comes before the ready line, after which a signal may come at any time.
    let signals = Signals::listen().context("cannot wait for signals")?;
    tokio::spawn(end_at_signal(signals, shutdown.clone()));
    writeln!(io::stdout(), "listening on {}", server.address).context("cannot write to standard output")?;
    tell_service_manager();
    tracing::info!("the data is in {data}");
    let mut running = pin!(serve::run(app, role, options, server, door, shutdown.clone()));
    tokio::select! {
        ended = &mut running => {
            ended?;
            return Ok(ExitCode::SUCCESS);
        }
        () = shutdown.cancelled() => {}
    }
    match tokio::time::timeout(SHUTDOWN, running).await {
        Ok(ended) => ended?,
        Err(_) => tracing::warn!("not everything ended within {SHUTDOWN:?}; what was acknowledged is stored"),
    }
    Ok(ExitCode::SUCCESS)
}

/// How to run on the data in `data`, without a hub.
fn options(data: &Path, listen: &ListenArgs) -> Options {
    let ListenArgs { device, allow_host, local_page, behind_proxy, base_path, public_url, .. } = listen.clone();
    Options {
        data: Some(data.to_owned()),
        device,
        allow_hosts: allow_host,
        local_page,
        behind_proxies: behind_proxy,
        base_path: base_path.unwrap_or_default(),
        public_url,
        ..Options::default()
    }
}

/// Fails if a directory that is to be a gateway's is a hub's. Its devices would be stopped: a log that merely goes to the
/// outbox begins anew in the stream, under another id.
fn must_not_be_a_hub(dir: &DataDir) -> anyhow::Result<()> {
    let data = dir.path();
    let has_devices = TokenFile::in_dir(data).list()?.iter().any(|token| token.purpose == Purpose::Sync);
    if !has_devices || DataDir::gateways(data).exists() {
        return Ok(());
    }
    for store in engine::stores_in(&DataDir::stores(data))? {
        if engine::ownership(&DataDir::files(data, &store))?.own.is_some() {
            bail!(
                "{} is the data of a hub that has devices. Move its stores into the cluster first, with `move in` and the same \
                 --upstream: then its devices notice nothing",
                data.display()
            );
        }
    }
    Ok(())
}

/// The cluster to be a gateway to, if the command line names one.
pub(super) fn cluster(args: &UpstreamArgs) -> Option<ClusterOptions> {
    let servers = args.upstream.as_ref().filter(|upstream| is_cluster(upstream))?;
    Some(cluster_at(servers, args.root_certificate.clone(), args.nats.clone()))
}

pub(super) fn cluster_at(servers: &str, root_certificate: Option<PathBuf>, nats: NatsArgs) -> ClusterOptions {
    let NatsArgs { nats_credentials, nats_without_tls } = nats;
    ClusterOptions {
        servers: servers.to_owned(),
        credentials: nats_credentials,
        root_certificate,
        without_tls: if nats_without_tls { WithoutTls::Anywhere } else { WithoutTls::Here },
    }
}

/// The hub to sync with, and the token for it: what the command line says, and else what the directory was joined to.
pub(super) fn upstream(app: &App, data: &Path, args: &UpstreamArgs) -> anyhow::Result<Option<UpstreamOptions>> {
    let joined = joined(data)?;
    let url = match (&args.upstream, &joined) {
        (Some(url), Some(joined)) if !is_same(url, joined) => {
            tell_of_joined(app, url, joined);
            url.clone()
        }
        (Some(url), _) => url.clone(),
        (None, Some(joined)) => joined.url.clone(),
        (None, None) => return Ok(None),
    };
    let joined = joined.filter(|joined| is_same(&url, joined));
    let token = match (&args.token_file, &args.token, &joined) {
        (Some(path), ..) => TokenSource::File(path.clone()),
        (None, Some(token), _) => TokenSource::Given(token.clone()),
        (None, None, Some(joined)) => joined.token.clone(),
        (None, None, None) => bail!(
            "syncing with {url} takes a token. Make a link there with `{0} pair NAME`, and use it here with `{0} join`. Or \
             make a token there with `{0} token add NAME`, put it into a file, and name that file with --token-file",
            app.name()
        ),
    };
    if joined.is_some() && (args.token_file.is_some() || args.token.is_some()) {
        tracing::info!("the token that is given takes the place of the one from joining {url}");
    }
    let root_certificate = args.root_certificate.clone().or_else(|| joined?.root_certificate);
    Ok(Some(UpstreamOptions { url, token, root_certificate }))
}

/// Says that the hub which the directory was joined to isn't followed. The variable may be left from other work in a shell.
fn tell_of_joined(app: &App, taken: &str, joined: &UpstreamOptions) {
    tracing::warn!(
        "{taken} takes the place of {}, which this directory was joined to: --upstream or {}_UPSTREAM says so. To follow that \
         hub, leave both out",
        joined.url,
        app.prefix()
    );
}

fn is_same(url: &str, joined: &UpstreamOptions) -> bool {
    url.trim_end_matches('/') == joined.url.trim_end_matches('/')
}

/// Shuts the program down at the first signal, and ends it at once at the second.
async fn end_at_signal(mut signals: Signals, shutdown: CancellationToken) {
    signals.next().await;
    tracing::info!("shutting down");
    shutdown.cancel();
    signals.next().await;
    std::process::exit(130);
}

/// Ctrl-C, and what service managers send.
struct Signals {
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(windows)]
    interrupt: tokio::signal::windows::CtrlC,
}

impl Signals {
    #[cfg(unix)]
    fn listen() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    #[cfg(windows)]
    fn listen() -> io::Result<Self> {
        Ok(Self { interrupt: tokio::signal::windows::ctrl_c()? })
    }

    #[cfg(unix)]
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    #[cfg(windows)]
    async fn next(&mut self) {
        self.interrupt.recv().await;
    }
}
