//! `serve`: the program in the foreground, until a signal ends it.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::arguments::ServeArgs;
use crate::app::App;
use crate::limits::app::SHUTDOWN;
use crate::node::{Options, base};
use crate::serve::Server;
use crate::sync::{TokenSource, UpstreamOptions};

pub(super) async fn serve(app: &App, data: &Path, args: ServeArgs) -> anyhow::Result<ExitCode> {
    let (listen, options) = options(app, data, args)?;
    let base = base(app, &options)?;
    let listener = TcpListener::bind(&listen).await.with_context(|| {
        format!(
            "cannot listen on {listen}; choose another address with --listen, or let the system choose a port with \
             --listen 127.0.0.1:0"
        )
    })?;
    let shutdown = CancellationToken::new();
    let server = Server::prepare(app, options, base, listener, shutdown.clone()).await?;
    // Before the ready line, after which a signal may come at any time.
    let signals = Signals::listen().context("cannot wait for signals")?;
    tokio::spawn(end_at_signal(signals, shutdown.clone()));
    writeln!(io::stdout(), "listening on http://{}", server.address).context("cannot write to standard output")?;
    tracing::info!("the data is in {}", data.display());
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

/// Where to listen, and how to run.
fn options(app: &App, data: &Path, args: ServeArgs) -> anyhow::Result<(String, Options)> {
    let name = app.name();
    let upstream = match (args.upstream, args.token_file, args.token) {
        (None, ..) => None,
        (Some(url), Some(path), _) => Some((url, TokenSource::File(path))),
        (Some(url), None, Some(token)) => Some((url, TokenSource::Given(token))),
        (Some(url), None, None) => bail!(
            "to sync with {url} takes a token: make one there with `{name} token add NAME`, put it into a file, and name \
             that with --token-file"
        ),
    };
    let root_certificate = args.root_certificate;
    let options = Options {
        data: Some(data.to_owned()),
        device: args.device,
        upstream: upstream.map(|(url, token)| UpstreamOptions { url, token, root_certificate }),
        retry_halted: Duration::from_secs(args.retry_halted),
        allow_hosts: args.allow_host,
        public: args.public,
    };
    Ok((args.listen, options))
}

/// Ends the program in good order at the first signal, and at once at the second.
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
