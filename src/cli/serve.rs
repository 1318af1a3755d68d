//! `serve` and `hub`: the program in the foreground, until a signal ends it.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio_util::sync::CancellationToken;

use super::arguments::{ListenArgs, ServeArgs, UpstreamArgs};
use super::listen::{Listen, Listening, tell_service_manager};
use crate::app::App;
use crate::limits::app::SHUTDOWN;
use crate::node::{Options, base};
use crate::serve::Server;
use crate::sync::{TokenSource, UpstreamOptions};
use crate::web::Role;

/// Serves the app.
pub(super) async fn serve(app: &App, data: &Path, args: ServeArgs) -> anyhow::Result<ExitCode> {
    let upstream = upstream(app, &args.hub)?;
    let ServeArgs { listen, retry_halted, public, .. } = args;
    let retry_halted = Duration::from_secs(retry_halted);
    let options = Options { upstream, retry_halted, public, ..options(data, &listen) };
    run(app, Role::App, &listen.listen, options).await
}

/// Serves sync alone.
pub(super) async fn hub(app: &App, data: &Path, listen: ListenArgs) -> anyhow::Result<ExitCode> {
    run(app, Role::Hub, &listen.listen, options(data, &listen)).await
}

async fn run(app: &App, role: Role, listen: &Listen, options: Options) -> anyhow::Result<ExitCode> {
    let base = base(app, &options)?;
    let data = base.dir.path().display().to_string();
    // The socket's file goes when everything has ended.
    let Listening { listener, _file } = listen.open().await?;
    let shutdown = CancellationToken::new();
    let server = Server::prepare(app, role, options, base, listener, shutdown.clone()).await?;
    // This comes before the ready line, after which a signal may come at any time.
    let signals = Signals::listen().context("cannot wait for signals")?;
    tokio::spawn(end_at_signal(signals, shutdown.clone()));
    writeln!(io::stdout(), "listening on {}", server.address).context("cannot write to standard output")?;
    tell_service_manager();
    tracing::info!("the data is in {data}");
    let mut running = tokio::spawn(server.run());
    tokio::select! {
        ended = &mut running => {
            ended.context("the server failed")?;
            return Ok(ExitCode::SUCCESS);
        }
        () = shutdown.cancelled() => {}
    }
    match tokio::time::timeout(SHUTDOWN, running).await {
        Ok(ended) => ended.context("the server failed")?,
        Err(_) => tracing::warn!("not everything ended within {SHUTDOWN:?}; what was acknowledged is stored"),
    }
    Ok(ExitCode::SUCCESS)
}

/// How to run on the data in `data`, without a hub.
fn options(data: &Path, listen: &ListenArgs) -> Options {
    let ListenArgs { device, allow_host, local_page, behind_proxy, base_path, .. } = listen.clone();
    Options {
        data: Some(data.to_owned()),
        device,
        allow_hosts: allow_host,
        local_page,
        behind_proxies: behind_proxy,
        base_path: base_path.unwrap_or_default(),
        ..Options::default()
    }
}

/// The hub to sync with, and the token for it.
pub(super) fn upstream(app: &App, args: &UpstreamArgs) -> anyhow::Result<Option<UpstreamOptions>> {
    let Some(url) = args.upstream.clone() else { return Ok(None) };
    let token = match (&args.token_file, &args.token) {
        (Some(path), _) => TokenSource::File(path.clone()),
        (None, Some(token)) => TokenSource::Given(token.clone()),
        (None, None) => bail!(
            "syncing with {url} takes a token. Make one there with `{} token add NAME`, put it into a file, and name that \
             file with --token-file",
            app.name()
        ),
    };
    Ok(Some(UpstreamOptions { url, token, root_certificate: args.root_certificate.clone() }))
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
