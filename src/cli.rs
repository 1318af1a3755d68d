//! The command line: commands, flags, environment variables, and every default and limit of the program.

use std::env;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::builder::{BoolishValueParser, Resettable};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use reqwest::{Method, RequestBuilder};
use tokio::net::TcpListener;
use tokio_util::io::ReaderStream;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::access::{Access, Process, as_local, control, http_client, no_store, unanswered, understood};
use crate::backup;
use crate::data_dir::{self, Claim, DataDir, read_only};
use crate::engine::{self, Device, Line, Report, Setup, Standing, StoreId, StoreLimits, Stores};
use crate::likes;
use crate::owner::act_as_owner;
use crate::serve::{Config, Instance, open_stores};
use crate::sync::{LinkStatus, Seen, TokenFile, TokenSource, Upstream, UpstreamOptions};
use crate::web::{self, AllowedHost, Exported, Imported, StatusReport};

/// Events that may wait to be stored, a store. More than a second's worth at full speed; beyond that a quick "try again"
/// serves a person better than a slow answer.
const WRITE_QUEUE: usize = 8_192;

/// Stores in a data directory. Anyone who can like can make one, so there has to be an end.
const STORES: u64 = 10_000;

/// Stores that are in use at the same time. Each has a thread and some open files.
const OPEN_STORES: usize = 512;

/// How long a store stays open without anybody using it. A visitor who comes back within a minute finds it open; what many
/// looked at once has let go of its threads and files soon after.
const IDLE_STORE: Duration = Duration::from_secs(60);

/// Open event streams, of all stores together: so many that whoever is alone can have 10,000, beside the parts that are kept
/// for others. Each is a connection, and there are a few thousand more of those.
const STREAMS: usize = 13_750;

/// Seconds until a store that its hub refuses tries again by itself: seldom enough not to be a nuisance, often enough that
/// a person who mended it on the other side needs not come back here.
const RETRY_HALTED: u64 = 180;

/// How long to wait for everything to end before ending anyway.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// Likes that are always fast, always there and never wrong.
///
/// Run `likewise`, open the address that it prints in a browser, and click. Likes are stored on this machine before the
/// click is answered, and the count changes at once in every open tab.
#[derive(Parser)]
#[command(name = "likewise", version, after_help = AFTER_HELP)]
struct Cli {
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    serve: ServeArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

const AFTER_HELP: &str = "\
Without a command, likewise serves. Each flag can also be given as an environment variable, which its description \
names; an empty one counts as unset, and spaces around a value don't count. LIKEWISE_LOG sets what is logged on standard error, for example `debug` or `likewise=trace`.

Commands work on the data directory whether or not a likewise process is serving it. They exit with 0 when they did \
what they say, with 1 when they could not (and `verify` also when it found a difference), and with 2 when the command \
line is wrong.";

#[derive(Args)]
struct DataArgs {
    /// Directory of all data, made if need be [default: this platform's place for applications]
    #[arg(long, value_name = "DIR", env = "LIKEWISE_DATA", global = true)]
    data: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the page, until Ctrl-C or SIGTERM
    Serve(ServeArgs),
    /// Show how a store is
    Status {
        #[command(flatten)]
        store: StoreArgs,
        /// Ask the likewise at this address, rather than the data directory
        #[arg(long, env = "LIKEWISE_URL")]
        url: Option<String>,
        /// Print JSON, as `GET /status` answers it
        #[arg(long)]
        json: bool,
    },
    /// Check the log against its digests, and the state against one that is made anew from the log
    ///
    /// Reads everything and changes nothing. Exits with 1 when it finds a difference.
    Verify {
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Write every event to standard output, one JSON object a line
    ///
    /// First the log in its order, then events that wait for a place in it (their seq is null), then events that were set
    /// aside (with the reason). The payload is a string that holds its bytes, or null.
    Export {
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Add the events of an export from standard input
    ///
    /// Ids are kept, so to import the same events twice adds nothing.
    Import {
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Say who may sync with this likewise as their hub
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Move a store to whatever log its hub has, after the hub was replaced
    ///
    /// Everything here goes back to the outbox and is pushed to the hub. Nothing is lost, and what the hub has already is
    /// not counted twice.
    Adopt {
        #[command(flatten)]
        store: StoreArgs,
        /// Don't ask
        #[arg(long)]
        yes: bool,
    },
    /// Make this likewise the authority of a store's log, when its hub is gone for good
    ///
    /// Stop likewise and start it without --upstream first. Other devices can then follow this one.
    Promote {
        #[command(flatten)]
        store: StoreArgs,
        /// Don't ask
        #[arg(long)]
        yes: bool,
    },
    /// Look after events that the hub refused
    SetAside {
        #[command(flatten)]
        store: StoreArgs,
        #[command(subcommand)]
        command: SetAsideCommand,
    },
    /// Copy all stores and device tokens to a new directory, also while they are in use
    ///
    /// To go back to a backup, stop likewise and start it with `--data` naming the copy, or put the copy in the place of
    /// the data directory. A hub then has the tokens of that time again: revoke once more what was revoked since.
    Backup {
        /// Directory of the copy; it must not exist, or be empty
        to: PathBuf,
    },
}

#[derive(Subcommand)]
enum TokenCommand {
    /// Let a device sync; prints its token, which is shown only now
    Add {
        /// Name of the device, which the log shows with its likes
        name: Device,
    },
    /// Show the devices, when each was last seen, and how far it has pulled
    List,
    /// Let a device sync no more
    Revoke {
        /// Name of the device
        name: Device,
    },
}

#[derive(Subcommand)]
enum SetAsideCommand {
    /// Show them, with the reason
    List,
    /// Commit them once more; one whose id belongs to another event gets a new one
    Retry,
    /// Write them to standard output, as `likewise export` does
    Export,
}

#[derive(Args)]
struct StoreArgs {
    /// The store, as in the address `/s/STORE/`
    #[arg(long, env = "LIKEWISE_STORE", default_value = web::DEFAULT_STORE, global = true)]
    store: StoreId,
}

#[derive(Args)]
struct ServeArgs {
    /// Address and port to listen on; port 0 takes a free one
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "LIKEWISE_LISTEN",
        default_value = "127.0.0.1:3000",
        value_parser = host_and_port
    )]
    listen: String,
    /// Name of this device, which the log shows with its likes [default: the host's name]
    #[arg(long, value_name = "NAME", env = "LIKEWISE_DEVICE")]
    device: Option<Device>,
    /// Name or address besides the loopback ones under which this server may be asked, for sync and `/healthz`
    /// (repeatable)
    #[arg(long, value_name = "HOST", env = "LIKEWISE_ALLOW_HOST", value_delimiter = ',')]
    allow_host: Vec<AllowedHost>,
    /// The hub to sync with, such as https://likes.example.org
    #[arg(long, value_name = "URL", env = "LIKEWISE_UPSTREAM")]
    upstream: Option<String>,
    /// File that holds this device's token for the hub; it is read again when it changes. LIKEWISE_TOKEN may hold the
    /// token itself instead
    #[arg(long, value_name = "FILE", env = "LIKEWISE_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    #[arg(long, env = "LIKEWISE_TOKEN", hide = true, hide_env_values = true)]
    token: Option<String>,
    /// Certificates in PEM form to trust for the hub, besides the system's
    #[arg(long, value_name = "FILE", env = "LIKEWISE_ROOT_CERTIFICATE")]
    root_certificate: Option<PathBuf>,
    /// Seconds until a store that the hub refuses tries again
    #[arg(long, env = "LIKEWISE_RETRY_HALTED", default_value_t = RETRY_HALTED, hide = true)]
    retry_halted: u64,
    /// Serve the page, too, under the names of --allow-host: whoever reaches this server can then like
    #[arg(long, env = "LIKEWISE_PUBLIC", value_parser = BoolishValueParser::new())]
    public: bool,
}

/// Checks the form of what `--listen` names, of which the resolver's own words would say little.
fn host_and_port(text: &str) -> Result<String, &'static str> {
    let is_host =
        |host: &str| !host.is_empty() && (!host.contains(':') || host.starts_with('[') && host.ends_with(']'));
    match text.rsplit_once(':') {
        Some((host, port)) if is_host(host) && port.parse::<u16>().is_ok() => Ok(text.to_owned()),
        _ => Err("write HOST:PORT, such as 127.0.0.1:3000 or [::1]:3000"),
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    let mut cli = parse();
    // Whoever makes TLS connections finds it there.
    drop(rustls::crypto::ring::default_provider().install_default());
    let filter = env::var("LIKEWISE_LOG").ok().filter(|filter| !filter.is_empty());
    let filter = filter.and_then(|filter| filter.parse().ok()).unwrap_or_else(|| EnvFilter::new("info"));
    let is_terminal = io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(is_terminal)
        .with_target(false)
        // They would go to standard error, too, and panic when that is what fails.
        .log_internal_errors(false)
        .init();
    let result = data_of(&mut cli).and_then(|data| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let result = runtime.block_on(run(cli, data));
        // Whatever still runs belongs to nobody any more.
        runtime.shutdown_timeout(Duration::from_millis(100));
        result
    });
    match result {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("likewise: {}", in_full(&error));
            ExitCode::FAILURE
        }
    }
}

/// The flags that may stand without a command.
const SERVE_FLAGS: [&str; 9] =
    ["listen", "device", "allow_host", "public", "upstream", "token_file", "token", "root_certificate", "retry_halted"];

/// Reads the command line. The flags of `serve` may stand alone, but not before another command.
fn parse() -> Cli {
    let matches = with_tidy_variables(Cli::command()).get_matches();
    let is_given = |id: &&'static str| matches.value_source(id) == Some(ValueSource::CommandLine);
    if let (Some(command), Some(flag)) = (matches.subcommand_name(), SERVE_FLAGS.into_iter().find(is_given)) {
        let flag = flag.replace('_', "-");
        let message = format!("--{flag} is a flag of `serve`; it can't stand before `{command}`");
        Cli::command().error(ErrorKind::ArgumentConflict, message).exit();
    }
    Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// Takes variables that are empty for unset, as who writes `LIKEWISE_UPSTREAM=` into a service's file means it, and leaves
/// out the spaces around the values of others.
fn with_tidy_variables(command: clap::Command) -> clap::Command {
    let tidy = |arg: Arg| {
        let value = arg.get_env().and_then(env::var_os).and_then(|value| value.into_string().ok());
        let Some(value) = value else { return arg };
        let tidy = match arg.get_value_delimiter() {
            Some(comma) => value.split(comma).map(str::trim).collect::<Vec<_>>().join(&comma.to_string()),
            None => value.trim().to_owned(),
        };
        if tidy.is_empty() {
            arg.env(Resettable::Reset)
        } else if tidy == value {
            arg
        } else {
            // The command line lives as long as the program.
            let tidy: &'static str = tidy.leak();
            let takes_value = arg.get_action().takes_values();
            arg.env(Resettable::Reset).default_value(tidy).hide_default_value(takes_value)
        }
    };
    command.mut_args(tidy).mut_subcommands(with_tidy_variables)
}

/// The data directory, whose owner this process acts as from here on.
fn data_of(cli: &mut Cli) -> anyhow::Result<PathBuf> {
    let named = match cli.data.data.take() {
        Some(path) => path,
        None => data_dir::default_path()?,
    };
    let data = data_dir::locate(&named).with_context(|| data_dir::unusable(&named))?;
    let mut copy = match &mut cli.command {
        Some(Command::Backup { to }) => Some(to),
        _ => None,
    };
    act_as_owner(&data, copy.as_deref().map(PathBuf::as_path))?;
    DataDir::check(&data)?;
    if let Some(to) = &mut copy {
        **to = data_dir::locate(to).with_context(|| format!("cannot copy to {}", to.display()))?;
    }
    Ok(data)
}

async fn run(cli: Cli, data: PathBuf) -> anyhow::Result<ExitCode> {
    match cli.command {
        None => serve(&data, cli.serve).await,
        Some(Command::Serve(args)) => serve(&data, args).await,
        Some(Command::Status { store, url, json }) => status(&data, &store.store, url, json).await,
        Some(Command::Verify { store }) => verify(&data, &store.store).await,
        Some(Command::Export { store }) => export(&data, &store.store, Exported::All).await,
        Some(Command::Import { store }) => import(&data, &store.store).await,
        Some(Command::Backup { to }) => backup(&data, &to).await,
        Some(Command::Token { command }) => token(&data, command),
        Some(Command::Adopt { store, yes }) => adopt(&data, &store.store, yes).await,
        Some(Command::Promote { store, yes }) => promote(&data, &store.store, yes).await,
        Some(Command::SetAside { store, command }) => set_aside(&data, &store.store, &command).await,
    }
}

async fn serve(data: &Path, args: ServeArgs) -> anyhow::Result<ExitCode> {
    let upstream = args.upstream.map(|url| {
        let token = match (args.token_file, args.token) {
            (Some(path), _) => TokenSource::File(path),
            (None, Some(token)) => TokenSource::Given(token),
            (None, None) => bail!(
                "to sync with {url} takes a token: make one there with `likewise token add NAME`, put it into a file, and \
                 name that with --token-file"
            ),
        };
        Upstream::new(UpstreamOptions { url, token, root_certificate: args.root_certificate })
    });
    let upstream = upstream.transpose()?;
    if args.public && args.allow_host.is_empty() {
        let message = "--public is about the names of --allow-host, and none is given";
        Cli::command().error(ErrorKind::MissingRequiredArgument, message).exit();
    }
    let dir = DataDir::take(data)?;
    let listener = TcpListener::bind(&args.listen).await.with_context(|| {
        format!(
            "cannot listen on {}; choose another address with --listen, or let the system choose a port with \
             --listen 127.0.0.1:0",
            args.listen
        )
    })?;
    let shutdown = CancellationToken::new();
    let config = Config {
        device: args.device.unwrap_or_else(host_name),
        allow_hosts: args.allow_host,
        public: args.public,
        stores: store_limits(),
        streams: STREAMS,
        retry_halted: Duration::from_secs(args.retry_halted),
        upstream,
        progress: show_progress,
    };
    let instance = Instance::prepare(config, dir, listener, shutdown.clone()).await?;
    // Before anybody can know that it runs, so that no signal comes too early to be heard.
    let signals = Signals::listen().context("cannot wait for signals")?;
    tokio::spawn(end_at_signal(signals, shutdown.clone()));
    writeln!(io::stdout(), "listening on http://{}", instance.address).context("cannot write to standard output")?;
    tracing::info!("the data is in {}", data.display());
    let mut running = tokio::spawn(instance.run());
    tokio::select! {
        ended = &mut running => {
            ended.context("the server failed")??;
            return Ok(ExitCode::SUCCESS);
        }
        () = shutdown.cancelled() => {}
    }
    match tokio::time::timeout(SHUTDOWN, running).await {
        Ok(ended) => ended.context("the server failed")??,
        Err(_) => tracing::warn!("not everything ended within {SHUTDOWN:?}; what was acknowledged is stored"),
    }
    Ok(ExitCode::SUCCESS)
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

async fn status(data: &Path, store: &StoreId, url: Option<String>, json: bool) -> anyhow::Result<ExitCode> {
    let report = match url {
        Some(url) => ask_status(&url, store, |request| request).await?,
        None => match Access::to(data)? {
            Access::Asked(process) => ask_status(&process.address, store, as_local).await?,
            Access::Here(here) => {
                let device = host_name();
                let stores = open_stores(&here.dir, &device, store_limits(), false, show_progress)?;
                let opened = stores.get(store)?;
                let mut report = StatusReport::of(&opened, &device, &LinkStatus::none()).await?;
                report.digests = Some(web::digests(&opened)?);
                close(stores).await?;
                report
            }
        },
    };
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        show_status(&mut out, &report)?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn ask_status(
    url: &str,
    store: &StoreId,
    prepare: fn(RequestBuilder) -> RequestBuilder,
) -> anyhow::Result<StatusReport> {
    let url = format!("{}{}/status?digests", url.trim_end_matches('/'), web::base(store));
    let answer = prepare(http_client(&url)?.get(&url)).send().await.map_err(|error| unanswered(error, &url))?;
    understood(answer, &url).await?.json().await.with_context(|| format!("{url} is not the status of a likewise"))
}

fn show_status(out: &mut impl Write, report: &StatusReport) -> io::Result<()> {
    let StatusReport { store, device, count, head, cursor, pending, set_aside, skipped, unknown, log, .. } = report;
    writeln!(out, "store      {store} on {device}", device = device.as_str())?;
    writeln!(out, "likes      {count}")?;
    writeln!(out, "log        {} up to {head}", log.as_deref().unwrap_or("none yet,"))?;
    writeln!(out, "state      up to {cursor}")?;
    let upstream = &report.upstream;
    let url = upstream.url.as_ref().map(|url| format!(", {url}")).unwrap_or_default();
    let since = upstream.since.map(|since| format!(" since {}", web::date_time(since))).unwrap_or_default();
    writeln!(out, "upstream   {}{since}{url}", upstream.state)?;
    if let Some(error) = &upstream.error {
        writeln!(out, "           {error}")?;
    }
    if let Some(advice) = upstream.code.as_deref().and_then(web::what_to_do) {
        writeln!(out, "           {advice}")?;
    }
    for (count, what) in [
        (pending, "waiting for a place in the log"),
        (set_aside, "set aside: see `likewise set-aside list`"),
        (skipped, "without effect, for a fault of their own"),
        (unknown, "of kinds that a newer likewise knows"),
    ] {
        if *count > 0 {
            writeln!(out, "events     {count} {what}")?;
        }
    }
    if let Some(digests) = &report.digests {
        writeln!(
            out,
            "digests    at {}: log {}, state {}",
            digests.digest_seq, digests.log_digest, digests.state_digest
        )?;
    }
    Ok(())
}

async fn verify(data: &Path, store: &StoreId) -> anyhow::Result<ExitCode> {
    let report: Report = match Access::to_store(data, store)? {
        Access::Asked(process) => {
            let request = process.request(Method::POST, &format!("{store}/verify"))?;
            process.answer_about(data, store, request).await?.json().await.context("the answer is not understood")?
        }
        Access::Here(here) => engine::verify(&here.files(store)?, &Setup::new(likes::schema(), host_name())?)?,
    };
    let mut out = io::stdout().lock();
    writeln!(out, "store {store}: {} events in the log, {} pending", report.events, report.pending)?;
    writeln!(out, "log digest   {} at {}", report.log_digest, report.head)?;
    writeln!(out, "state digest {}", report.state_digest)?;
    for note in &report.notes {
        writeln!(out, "note: {note}")?;
    }
    for problem in &report.problems {
        writeln!(out, "problem: {problem}")?;
    }
    writeln!(out, "{}", if report.problems.is_empty() { "all is well" } else { "something is wrong" })?;
    Ok(if report.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn export(data: &Path, store: &StoreId, which: Exported) -> anyhow::Result<ExitCode> {
    let mut out = BufWriter::new(io::stdout().lock());
    export_to(&mut out, data, store, which).await?;
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// Writes the events of a store to `out`, whoever has it.
async fn export_to(out: &mut impl Write, data: &Path, store: &StoreId, which: Exported) -> anyhow::Result<()> {
    match Access::to_store(data, store)? {
        Access::Asked(process) => {
            let request = process.request(Method::GET, &format!("{store}/{}", which.route()))?;
            let mut answer = process.answer_about(data, store, request).await?;
            while let Some(piece) =
                answer.chunk().await.context("the export broke off; what is missing is not known")?
            {
                out.write_all(&piece)?;
            }
        }
        Access::Here(here) => which.write(&here.files(store)?, out)?,
    }
    Ok(())
}

async fn import(data: &Path, store: &StoreId) -> anyhow::Result<ExitCode> {
    let imported = match DataDir::claim(data)? {
        Claim::Taken(holder) => {
            let process = Process::new(data, holder)?;
            let body = reqwest::Body::wrap_stream(ReaderStream::new(tokio::io::stdin()));
            let request = process.request(Method::POST, &format!("{store}/import"))?.body(body);
            process.answer(request).await?.json::<Imported>().await.context("the answer is not understood")?
        }
        Claim::ReadOnly(_) => bail!(read_only(data)),
        Claim::Ours(dir) => {
            let device = host_name();
            let stores = open_stores(&dir, &device, store_limits(), false, show_progress)?;
            let result = web::import(&stores.get(store)?, &device, tokio::io::stdin()).await;
            close(stores).await?;
            result.map_err(|error| anyhow!("{} {}", web::sentence(error), web::AFTER_IMPORT))?
        }
    };
    let Imported { added, known } = imported;
    eprintln!("{added} events added to {store}, {known} were there before");
    Ok(ExitCode::SUCCESS)
}

async fn backup(data: &Path, to: &Path) -> anyhow::Result<ExitCode> {
    // Another process has another directory that it is in.
    let to = std::path::absolute(to).with_context(|| format!("cannot find {}", to.display()))?;
    let count: usize = match Access::to(data)? {
        Access::Asked(process) => {
            let request = process.request(Method::POST, "backup")?.body(to.as_os_str().as_encoded_bytes().to_vec());
            let count = process.answer(request).await?.json().await.context("the answer is not understood")?;
            if !to.exists() {
                bail!(
                    "the likewise process {} says that it copied everything to {}, but there is nothing here: it sees \
                     other files than you do. Name a directory that both can see",
                    process.holder.pid,
                    to.display()
                );
            }
            count
        }
        Access::Here(here) => backup::backup(here.dir.path(), &to)?,
    };
    eprintln!("{count} {} copied to {}", if count == 1 { "store" } else { "stores" }, to.display());
    Ok(ExitCode::SUCCESS)
}

fn token(data: &Path, command: TokenCommand) -> anyhow::Result<ExitCode> {
    let file = TokenFile::in_dir(data);
    let mut out = io::stdout().lock();
    match command {
        TokenCommand::Add { name } => {
            engine::create_private_dir(data)?;
            let token = file.add(name.clone())?;
            writeln!(out, "{token}")?;
            eprintln!(
                "this is the token of {}; it is shown only now. Put it into a file on that device, and start likewise there \
                 with --upstream URL --token-file FILE",
                name.as_str()
            );
        }
        TokenCommand::Revoke { name } => {
            file.revoke(&name)?;
            eprintln!("{} can no longer sync; what it pushed stays", name.as_str());
        }
        TokenCommand::List => {
            let seen = Seen::read(data);
            let tokens = file.list()?;
            if tokens.is_empty() {
                eprintln!("there are no devices in {}; `likewise token add NAME` adds one", data.display());
            }
            for token in tokens {
                let device = token.device.as_str();
                let made = web::date_time(token.created);
                match seen.get(device) {
                    Some(seen) => {
                        let pulled = seen.pulled.iter().map(|(store, seq)| format!("{store} up to {seq}"));
                        let pulled = pulled.collect::<Vec<_>>().join(", ");
                        writeln!(out, "{device}\tadded {made}\tseen {}\tpulled {pulled}", web::date_time(seen.at))?;
                    }
                    None => writeln!(out, "{device}\tadded {made}\tnever seen")?,
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn adopt(data: &Path, store: &StoreId, yes: bool) -> anyhow::Result<ExitCode> {
    existing(data, store)?;
    confirm(yes, &format!("Move the store {store} to the log that its hub has, and push everything there?"))?;
    let standing: Standing = match DataDir::claim(data)? {
        Claim::Taken(holder) => control(data, holder, &format!("{store}/adopt")).await?,
        Claim::ReadOnly(_) => bail!(read_only(data)),
        Claim::Ours(dir) => {
            let stores = open_stores(&dir, &host_name(), store_limits(), false, show_progress)?;
            let adopted = stores.get(store)?.adopt().await;
            close(stores).await?;
            adopted?
        }
    };
    eprintln!("{} events of {store} wait to be pushed", standing.pending);
    Ok(ExitCode::SUCCESS)
}

async fn promote(data: &Path, store: &StoreId, yes: bool) -> anyhow::Result<ExitCode> {
    existing(data, store)?;
    confirm(yes, &format!("Make this likewise the authority of the store {store}? Its hub must be gone for good."))?;
    let standing: Standing = match DataDir::claim(data)? {
        Claim::Taken(holder) => control(data, holder, &format!("{store}/promote")).await?,
        Claim::ReadOnly(_) => bail!(read_only(data)),
        Claim::Ours(dir) => {
            let stores = open_stores(&dir, &host_name(), store_limits(), false, show_progress)?;
            let promoted = stores.get(store)?.promote().await;
            close(stores).await?;
            promoted?
        }
    };
    eprintln!("the log of {store} is this instance's own now, up to {}", standing.head);
    Ok(ExitCode::SUCCESS)
}

async fn set_aside(data: &Path, store: &StoreId, command: &SetAsideCommand) -> anyhow::Result<ExitCode> {
    match command {
        SetAsideCommand::Export => return export(data, store, Exported::SetAside).await,
        SetAsideCommand::List => {
            let mut lines = Vec::new();
            export_to(&mut lines, data, store, Exported::SetAside).await?;
            let mut out = io::stdout().lock();
            for line in serde_json::Deserializer::from_slice(&lines).into_iter::<Line>() {
                let Line { id, name, set_aside, .. } = line.context("the answer is not understood")?;
                writeln!(out, "{id}\t{name}\t{}", set_aside.unwrap_or_default())?;
            }
        }
        SetAsideCommand::Retry => {
            let count: usize = match DataDir::claim(data)? {
                Claim::Taken(holder) => control(data, holder, &format!("{store}/set-aside/retry")).await?,
                Claim::ReadOnly(_) => bail!(read_only(data)),
                Claim::Ours(dir) => {
                    let stores = open_stores(&dir, &host_name(), store_limits(), false, show_progress)?;
                    let retried = stores.get(store)?.retry_set_aside().await;
                    close(stores).await?;
                    retried?
                }
            };
            eprintln!("{count} events are committed once more");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks the person at the terminal, unless they said yes already.
fn confirm(yes: bool, question: &str) -> anyhow::Result<()> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        bail!("{question} Nobody is there to ask; give --yes to do it");
    }
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") { Ok(()) } else { bail!("nothing was changed") }
}

/// Fails unless there are files of the store.
fn existing(data: &Path, store: &StoreId) -> anyhow::Result<()> {
    if DataDir::files(data, store).exist() { Ok(()) } else { bail!(no_store(data, store)) }
}

async fn close(stores: Stores) -> anyhow::Result<()> {
    tokio::task::spawn_blocking(move || stores.close()).await.context("closing the stores failed")
}

fn store_limits() -> StoreLimits {
    StoreLimits { queue: WRITE_QUEUE, stores: STORES, open: OPEN_STORES, idle: IDLE_STORE }
}

/// This machine's name, if it can be the name of a device.
fn host_name() -> Device {
    #[cfg(unix)]
    let name = rustix::system::uname().nodename().to_str().map(str::to_owned).ok();
    #[cfg(not(unix))]
    let name = env::var("COMPUTERNAME").ok();
    let named = name.as_deref().and_then(|name| name.parse().ok());
    named.unwrap_or_else(|| "likewise".parse().expect("BUG: not the name of a device"))
}

fn show_progress(done: u64, total: u64) {
    let mut err = io::stderr();
    if err.is_terminal() {
        let end = if done >= total { "\n" } else { "" };
        // Only a courtesy: what can't be shown is not missed.
        drop(write!(err, "\rmaking the state from the log: {done} of {total} events{end}"));
    }
}

/// An error with its causes, but for those that its own words name already.
fn in_full(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // SQLite's innermost is what stands there already, behind a number; after an advice it would only confuse.
        let words =
            cause.strip_prefix("Error code ").and_then(|cause| cause.split_once(": ")).map_or(&*cause, |it| it.1);
        if !text.contains(words) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
