//! The command line's commands and flags, and the environment variables that may stand in for flags.
//!
//! The words are written once for all apps. `{app}` stands for the app's name, `{APP}` for the prefix of its variables,
//! `{events}` for its word for events, and `{data}` for the place of its data. Variables are written without their
//! prefix.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{BoolishValueParser, Resettable, StyledStr};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use super::listen::Listen;
use super::logging::LogFormat;
use crate::app::{App, AppCommand, AppError};
use crate::data_dir;
use crate::engine::{Device, StoreId};
use crate::limits::app::RETRY_HALTED;
use crate::sync::HistoryWanted;
use crate::web::{AllowedHost, BasePath, EmbeddingSite, PublicUrl, TrustedProxy};

/// What a command line asks for.
pub(super) struct Asked {
    pub(super) data: Option<PathBuf>,
    pub(super) command: Command,
}

pub(super) enum Command {
    /// A command that every program has.
    Common(Cli),
    /// A command of the app's own, with its arguments and its store.
    Own { name: String, matches: ArgMatches, store: StoreId },
}

impl Command {
    /// The form of the log. Commands that don't serve log next to nothing, and people read it.
    pub(super) fn log_format(&self) -> LogFormat {
        match self {
            Self::Common(Cli::Serve(args)) => args.listen.log_format,
            Self::Common(Cli::Hub(args)) => args.listen.log_format,
            Self::Common(_) | Self::Own { .. } => LogFormat::Text,
        }
    }
}

#[derive(Parser)]
#[command(after_help = AFTER_HELP)]
struct Top {
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    serve: ServeArgs,
    #[command(subcommand)]
    command: Option<Cli>,
}

const AFTER_HELP: &str = "\
Without a command, {app} serves. Each flag can also be given as an environment variable, which its description names. An \
empty variable counts as unset, and spaces around a value don't count. {APP}_LOG sets what is logged on standard error, \
for example `debug` or `likewise=trace`.

Commands work on the data directory whether or not a {app} process is serving it. They exit with 0 when they did what \
they say, with 1 when they could not (`verify` also when it found a difference), and with 2 when the command line is wrong.";

/// The variable that sets what is logged.
pub(super) fn log_variable(app: &App) -> String {
    app.prefix() + "_LOG"
}

#[derive(Args)]
struct DataArgs {
    /// Directory of all data, made if need be [default: {data}]
    #[arg(long, value_name = "DIR", env = "DATA", global = true)]
    data: Option<PathBuf>,
}

#[derive(Subcommand)]
pub(super) enum Cli {
    /// Serve the page, until Ctrl-C or SIGTERM
    Serve(Box<ServeArgs>),
    /// Serve sync alone, for devices of any app
    ///
    /// A hub puts the events of its devices in one order and need not know what they mean, so {app} can be the hub of any
    /// app. It answers /sync, /healthz, /status and /metrics, and has no page.
    Hub(Box<HubArgs>),
    /// Show the state of a store
    Status {
        #[command(flatten)]
        store: StoreArgs,
        /// Ask the server at this address, rather than the data directory
        #[arg(long, value_name = "URL|HOST:PORT", env = "URL")]
        url: Option<String>,
        /// Print JSON, as `GET /status` answers it
        #[arg(long)]
        json: bool,
        /// Show the digests of log and state as well, by which replicas are compared; JSON always has them
        #[arg(long)]
        digests: bool,
    },
    /// List the stores, with their counts and how they stand with the hub
    Stores {
        /// Print JSON: an array of what `status --json` prints, without digests
        #[arg(long)]
        json: bool,
    },
    /// List, add and close the items that other sites embed, and import their counts
    Items {
        #[command(subcommand)]
        command: ItemsCommand,
    },
    /// Say whether an event can be stored: exits with 0 if so, for containers and supervisors
    ///
    /// Asks the {app} process that serves the data directory. Without one the answer is no.
    Health {
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Say what is wrong with this setup, and what to do: files, disk, hub, clock, and the proxy in front
    ///
    /// Prints a line for each thing that it looks at, and exits with 1 if one of them is a problem. It asks the {app} process
    /// that serves the data how it is set up. To look at a hub as a device would, name it with --upstream and --token-file.
    Doctor {
        #[command(flatten)]
        hub: UpstreamArgs,
        /// Where a server of the NATS cluster tells about itself, such as http://10.0.0.1:8222, to learn whether it syncs each
        /// message to its disk (repeatable)
        #[arg(long, value_name = "URL", env = "NATS_MONITOR", value_delimiter = ',')]
        nats_monitor: Vec<String>,
        /// Where others reach this server, through the proxy in front of it [default: what the server was told]
        #[arg(long, value_name = "URL", env = "PUBLIC_URL")]
        public_url: Option<String>,
        /// Print JSON: an array of what was found
        #[arg(long)]
        json: bool,
    },
    /// Check the log against its digests, and the state against one rebuilt from the log
    ///
    /// Reads everything and changes nothing. Exits with 1 when it finds a difference.
    Verify {
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Write every event to standard output, one JSON object a line
    ///
    /// First comes the log in its order, then the events that wait for a place in it (their seq is null), then those
    /// that were set aside (with the reason). The payload is a string that holds its bytes, or null. Exits with 3 if events of
    /// the log are not here, because this device began with its hub's snapshot.
    Export {
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Add the events of an export from standard input
    ///
    /// Ids are kept, so importing twice adds nothing.
    Import {
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Manage the devices and browsers that may use this hub
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Make a link that pairs a browser or another machine with this hub, and print it
    ///
    /// The link is good once, within ten minutes. Opened in a browser, it shows this hub's page there from then on. Given to
    /// `{app} join` on another machine, it lets that machine sync. Opening it uses nothing up: only the button on the page
    /// that it leads to does. Standard output gets the link alone; the QR code, a short code to type instead of the link, and
    /// words for people go to standard error.
    Pair {
        /// Name of the device or browser, which the log shows with its {events}
        name: Device,
        /// Address under which others reach this hub, such as https://hub.example.org [default: what the running hub says]
        #[arg(long, value_name = "URL", env = "PUBLIC_URL")]
        public_url: Option<PublicUrl>,
        /// Draw the QR code even if standard output is no terminal
        #[arg(long)]
        qr: bool,
    },
    /// Make this data directory a device of the hub that a link of `pair` names
    ///
    /// From then on `{app}` alone syncs with that hub: its address and this device's token are kept in the data directory.
    /// What is in the directory already is brought along.
    Join {
        /// The link, in quotes. Without it, or with `-`, it is read from standard input, so that other users of this machine
        /// don't see it among its commands
        link: Option<String>,
        /// Certificates in PEM form to trust for the hub, besides the system's; they are kept, too
        #[arg(long, value_name = "FILE", env = "ROOT_CERTIFICATE")]
        root_certificate: Option<PathBuf>,
    },
    /// Move a store to the log that its hub has now, after the hub was replaced
    ///
    /// Everything here goes back to the outbox and is pushed to the hub. Nothing is lost, and nothing that the hub
    /// already has counts twice.
    Adopt {
        #[command(flatten)]
        store: StoreArgs,
        /// Don't ask
        #[arg(long)]
        yes: bool,
    },
    /// Make this instance the authority of a store's log, when its hub is gone for good
    ///
    /// Stop {app} first, and start it without --upstream afterwards. Other devices can then follow this one. A directory that
    /// was joined to a hub, or is a gateway's, leaves it, so promote its other stores, too.
    Promote {
        #[command(flatten)]
        store: StoreArgs,
        /// Don't ask
        #[arg(long)]
        yes: bool,
    },
    /// Move a hub's stores into a NATS JetStream stream, for gateways to serve, or back out of it
    ///
    /// Ids, order, places and origins are kept, and so are the tokens: devices notice nothing. A move that was interrupted goes
    /// on when the same command is given again.
    Move {
        #[command(subcommand)]
        command: MoveCommand,
    },
    /// List, retry or export events that the hub refused
    SetAside {
        #[command(flatten)]
        store: StoreArgs,
        #[command(subcommand)]
        command: SetAsideCommand,
    },
    /// Copy all stores and device tokens to a new directory, even while they are in use
    ///
    /// The copy of a device doesn't have its token for the hub, because copies go to other disks: join the hub again with it.
    ///
    /// To go back to a backup, stop {app}, move the data directory away, and put a copy of the backup in its place
    /// (`cp -a BACKUP DATA`). Started on the backup itself, {app} would change it, and there would be no backup left. A hub
    /// then has the tokens of that time again, so revoke again those that were revoked since.
    Backup {
        /// Directory of the copy; it must not exist, or be empty
        to: PathBuf,
    },
    /// Print completions of {app}'s commands for a shell
    ///
    /// For bash: `{app} completions bash > ~/.local/share/bash-completion/completions/{app}`.
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    ///
    /// To read it: `{app} man | man -l -`.
    Man,
}

#[derive(Subcommand)]
pub(super) enum TokenCommand {
    /// Let a device sync, and print its token, which is not shown again
    Add {
        /// Name of the device, which the log shows with its {events}
        name: Device,
        /// Make a token that opens /status and /metrics, for a program that watches over this one; it can't sync
        #[arg(long)]
        read: bool,
        /// Write the token into this new file, which only its owner can read, rather than to standard output
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Show devices, browsers and readers, when each was last seen, and how far it has pulled
    List,
    /// Stop a device from syncing, or a browser from seeing the page
    Revoke {
        /// Name of the device or browser
        name: Device,
    },
}

#[derive(Subcommand)]
pub(super) enum MoveCommand {
    /// Put all stores of this hub into a stream; afterwards, start {app} with the same --upstream
    ///
    /// Stop the hub first. Its data directory becomes a gateway's. Start other gateways when all is moved.
    In {
        #[command(flatten)]
        cluster: ClusterArgs,
        /// Make one installation of this hub and of the gateways that are there already: each then lets the other's devices in
        #[arg(long)]
        yes: bool,
    },
    /// Make this data directory the one hub of all stores of a stream; afterwards, start {app} without --upstream
    ///
    /// Name the directory of a gateway that is stopped, or a new one, which then reads all events. Each store is closed in the
    /// stream first: all gateways refuse it from then on, and say where it went.
    Out {
        #[command(flatten)]
        cluster: ClusterArgs,
        /// Address of the hub that has the stores from now on, such as https://hub.example.org: gateways and devices are told it
        #[arg(long, value_name = "URL")]
        to: String,
    },
}

/// A NATS cluster.
#[derive(Args)]
pub(super) struct ClusterArgs {
    /// The servers of the NATS cluster, such as tls://nats1.example.org,tls://nats2.example.org, with a prefix of its own
    /// (/PREFIX) if others share the cluster
    #[arg(long, value_name = "URL", env = "UPSTREAM", required = true)]
    pub(super) upstream: String,
    /// Certificates in PEM form to trust for the NATS servers, besides the system's
    #[arg(long, value_name = "FILE", env = "ROOT_CERTIFICATE")]
    pub(super) root_certificate: Option<PathBuf>,
    #[command(flatten)]
    pub(super) nats: NatsArgs,
}

#[derive(Subcommand)]
pub(super) enum ItemsCommand {
    /// Show the items with their counts, and which of them take {events}
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Put items on the list: they take {events} whatever the limits on new items, and while the list is closed
    Add {
        /// Names, as the buttons have them in `item`
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Take items off the list; what they have stays
    Remove {
        /// Names, as the buttons have them in `item`
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Take {events} only for what is on the list: what there is now, and what is added
    Close,
    /// Take {events} for anything, which makes an item of it
    Open,
    /// Add counts from elsewhere, a line `NAME,COUNT` for each item, from standard input
    ///
    /// Importing again adds nothing twice; of a higher count it adds the difference.
    Import {
        /// Where the counts come from; counts from another source are added to these
        #[arg(long, value_name = "NAME")]
        source: String,
    },
}

#[derive(Subcommand)]
pub(super) enum SetAsideCommand {
    /// List them, with the reasons
    List,
    /// Commit them again; one whose id belongs to another event gets a new id
    Retry,
    /// Write them to standard output, as `export` does
    Export,
}

#[derive(Args)]
pub(super) struct StoreArgs {
    /// The store, as in the address `/s/STORE/`
    #[arg(long, env = "STORE", global = true, default_value = "")]
    pub(super) store: StoreId,
}

/// Where a server is, and what it is called.
#[derive(Args, Clone)]
pub(super) struct ListenArgs {
    /// Address and port to listen on, where port 0 takes a free one; or a socket file for a proxy on this machine. A socket
    /// that systemd passes is used in its place
    #[arg(long, value_name = "HOST:PORT|unix:PATH", env = "LISTEN", default_value = "127.0.0.1:3000")]
    pub(super) listen: Listen,
    /// Name of this device, which the log shows with its {events} [default: the host's name]
    #[arg(long, value_name = "NAME", env = "DEVICE")]
    pub(super) device: Option<Device>,
    /// Name or address besides the loopback ones under which this server answers, for sync and `/healthz` (repeatable)
    #[arg(long, value_name = "HOST", env = "ALLOW_HOST", value_delimiter = ',')]
    pub(super) allow_host: Vec<AllowedHost>,
    /// Serve the page, /status and /metrics under localhost although --allow-host gives other names. Not behind a proxy on
    /// this machine that passes such names on. Without --allow-host, this lets text browsers in that speak HTTP/1.0
    #[arg(long, env = "LOCAL_PAGE", value_parser = BoolishValueParser::new())]
    pub(super) local_page: bool,
    /// Address of a proxy, or network of proxies, that says in X-Forwarded-For for whom it asks, so that limits count each
    /// client by itself (repeatable)
    #[arg(long, value_name = "ADDRESS", env = "BEHIND_PROXY", value_delimiter = ',')]
    pub(super) behind_proxy: Vec<TrustedProxy>,
    /// Path of a site, such as /{app}, under which everything is. A proxy in front has to pass the path on unchanged
    #[arg(long, value_name = "/PATH", env = "BASE_PATH")]
    pub(super) base_path: Option<BasePath>,
    /// How the log is written on standard error
    #[arg(long, value_name = "FORMAT", env = "LOG_FORMAT", value_enum, default_value_t)]
    pub(super) log_format: LogFormat,
    /// Address under which others reach this server, such as https://hub.example.org: what the links of `pair` begin with.
    /// Its name needs no --allow-host [default: the address of --listen, if only this machine has it]
    #[arg(long, value_name = "URL", env = "PUBLIC_URL")]
    pub(super) public_url: Option<PublicUrl>,
}

/// The hub to sync with, or the cluster to be a gateway to.
#[derive(Args)]
pub(super) struct UpstreamArgs {
    /// The hub to sync with, such as https://hub.example.org; or the servers of the NATS cluster to be a gateway to, such as
    /// tls://nats1.example.org,tls://nats2.example.org, with a prefix of its own (/PREFIX) if others share the cluster
    #[arg(long, value_name = "URL", env = "UPSTREAM")]
    pub(super) upstream: Option<String>,
    /// File that holds this device's token for the hub; it is read again when it changes. {APP}_TOKEN may hold the token
    /// itself instead
    #[arg(long, value_name = "FILE", env = "TOKEN_FILE")]
    pub(super) token_file: Option<PathBuf>,
    #[arg(long, env = "TOKEN", hide = true, hide_env_values = true)]
    pub(super) token: Option<String>,
    /// Certificates in PEM form to trust for the hub or the NATS servers, besides the system's
    #[arg(long, value_name = "FILE", env = "ROOT_CERTIFICATE")]
    pub(super) root_certificate: Option<PathBuf>,
    #[command(flatten)]
    pub(super) nats: NatsArgs,
}

/// How to be let in at a NATS cluster.
#[derive(Args, Clone)]
pub(super) struct NatsArgs {
    /// Credentials file for the NATS servers, as `nsc generate creds` makes it
    #[arg(long, value_name = "FILE", env = "NATS_CREDENTIALS")]
    pub(super) nats_credentials: Option<PathBuf>,
    /// Talk to NATS servers on other machines without TLS, because the network between is private: all events and the hashes
    /// of all tokens can be read there
    #[arg(long, env = "NATS_WITHOUT_TLS", value_parser = BoolishValueParser::new())]
    pub(super) nats_without_tls: bool,
}

#[derive(Args)]
pub(super) struct HubArgs {
    #[command(flatten)]
    pub(super) listen: ListenArgs,
    /// The servers of the NATS cluster to be a gateway to, such as tls://nats1.example.org,tls://nats2.example.org, with a
    /// prefix of its own (/PREFIX) if others share the cluster
    #[arg(long, value_name = "URL", env = "UPSTREAM")]
    pub(super) upstream: Option<String>,
    /// Certificates in PEM form to trust for the NATS servers, besides the system's
    #[arg(long, value_name = "FILE", env = "ROOT_CERTIFICATE")]
    pub(super) root_certificate: Option<PathBuf>,
    #[command(flatten)]
    pub(super) nats: NatsArgs,
}

#[derive(Args)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    pub(super) listen: ListenArgs,
    #[command(flatten)]
    pub(super) hub: UpstreamArgs,
    /// What this device has of a log in the end, if it begins with the hub's snapshot: all of it, which follows behind, or
    /// only what comes after the snapshot. Without its history, a device can't take the hub's place
    #[arg(long, value_name = "full|none", env = "HISTORY", value_enum, default_value_t, hide_possible_values = true)]
    pub(super) history: HistoryWanted,
    /// Seconds until a store that the hub refuses tries again
    #[arg(long, env = "RETRY_HALTED", default_value_t = RETRY_HALTED, hide = true)]
    pub(super) retry_halted: u64,
    /// Serve the page under the names of --allow-host, too: anyone who can reach this server can then post
    #[arg(long, env = "PUBLIC", value_parser = BoolishValueParser::new())]
    pub(super) public: bool,
    /// Origin of a site, such as https://blog.example.org, whose pages may embed a button under this machine's names or those
    /// of --allow-host (repeatable)
    #[arg(long, value_name = "ORIGIN", env = "EMBED", value_delimiter = ',')]
    pub(super) embed: Vec<EmbeddingSite>,
}

/// The flags that may stand without a command.
const SERVE_FLAGS: [&str; 18] = [
    "public_url",
    "listen",
    "device",
    "allow_host",
    "public",
    "embed",
    "local_page",
    "behind_proxy",
    "base_path",
    "log_format",
    "upstream",
    "token_file",
    "token",
    "root_certificate",
    "nats_credentials",
    "nats_without_tls",
    "retry_halted",
    "history",
];

/// Reads a command line of the program.
///
/// # Errors
///
/// When it is wrong, or only asks for help.
pub(super) fn parse(app: &App, line: impl IntoIterator<Item = OsString>) -> Result<Asked, clap::Error> {
    let mut command = with_tidy_variables(command_line(app));
    let mut matches = command.try_get_matches_from_mut(line)?;
    // The flags of `serve` may stand without a command, but not before another command.
    let is_given = |id: &&'static str| matches.value_source(id) == Some(ValueSource::CommandLine);
    if let (Some(name), Some(flag)) = (matches.subcommand_name(), SERVE_FLAGS.into_iter().find(is_given)) {
        let flag = flag.replace('_', "-");
        let message = format!("--{flag} is a flag of `serve`; it can't stand before `{name}`");
        return Err(command.error(ErrorKind::ArgumentConflict, message));
    }
    let is_own = |name: &str| app.commands().iter().any(|own| own.command.get_name() == name);
    if matches.subcommand_name().is_some_and(is_own)
        && let Some((name, mut matches)) = matches.remove_subcommand()
    {
        let DataArgs { data } = DataArgs::from_arg_matches_mut(&mut matches)?;
        let StoreArgs { store } = StoreArgs::from_arg_matches_mut(&mut matches)?;
        return Ok(Asked { data, command: Command::Own { name, matches, store } });
    }
    let top = Top::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))?;
    let asked = top.command.unwrap_or(Cli::Serve(Box::new(top.serve)));
    if let Cli::Serve(args) = &asked
        && args.public
        && args.listen.allow_host.is_empty()
        && args.listen.public_url.as_ref().and_then(PublicUrl::host).is_none()
    {
        let message = "--public is about the names of --allow-host and --public-url, and none is given";
        return Err(command.error(ErrorKind::MissingRequiredArgument, message));
    }
    Ok(Asked { data: top.data.data, command: Command::Common(asked) })
}

/// All commands of the app, in its own words.
pub(super) fn command_line(app: &App) -> clap::Command {
    let about = app.about_text();
    let summary = about.split_once("\n\n").map_or(about, |(summary, _)| summary);
    let common = in_words_of(app, Top::command());
    let store = in_words_of(app, StoreArgs::augment_args(clap::Command::new("store")));
    // The app's own commands come first in the list, since they are what it is for.
    let own = app.commands().iter().map(|own| own.command.clone().args(store.get_arguments()).display_order(0));
    let own: Vec<_> = own.collect();
    common
        .name(app.name())
        .bin_name(app.name())
        .version(app.version_text())
        .about(summary)
        .long_about(about)
        .subcommands(own)
}

/// Refuses commands of the app that would hide a common command or each other, and arguments that every command has.
///
/// # Errors
///
/// When there is one.
pub(crate) fn check(app: &App) -> Result<(), AppError> {
    let refuse = |what, name: &str, why: &str| {
        Err(AppError::Name { what, name: name.to_owned(), why: format!("there is {why} already; choose another") })
    };
    let common = Top::command();
    let mut names = BTreeSet::from(["help"]);
    names.extend(common.get_subcommands().map(clap::Command::get_name));
    for AppCommand { command, .. } in app.commands() {
        for name in std::iter::once(command.get_name()).chain(command.get_all_aliases()) {
            if !names.insert(name) {
                return refuse("a command", name, "a command of that name");
            }
        }
        if let Some(taken) = common_flag(command) {
            return refuse("an argument", taken, "one of that name for every command");
        }
    }
    Ok(())
}

/// A flag of every command, if `command` or one below it has an argument of that name.
fn common_flag(command: &clap::Command) -> Option<&'static str> {
    let is_taken = |name: &str| command.get_arguments().any(|arg| arg.get_id() == name || arg.get_long() == Some(name));
    let taken = ["data", "store"].into_iter().find(|name| is_taken(name));
    taken.or_else(|| command.get_subcommands().find_map(common_flag))
}

/// Puts the program's name, variables and words into the common ones.
fn in_words_of(app: &App, mut command: clap::Command) -> clap::Command {
    let data = data_dir::default_path(app.name())
        .map_or("none: there is no home".to_owned(), |path| path.display().to_string());
    let words = |text: &StyledStr| {
        let text = text.to_string().replace("{app}", app.name()).replace("{APP}", &app.prefix());
        text.replace("{events}", app.face().nouns.many).replace("{data}", &data)
    };
    if let Some(about) = command.get_about().map(words) {
        command = command.about(about);
    }
    if let Some(about) = command.get_long_about().map(words) {
        command = command.long_about(about);
    }
    if let Some(after) = command.get_after_help().map(words) {
        command = command.after_help(after);
    }
    let arg = |mut arg: Arg| {
        if let Some(help) = arg.get_help().map(words) {
            arg = arg.help(help);
        }
        if let Some(help) = arg.get_long_help().map(words) {
            arg = arg.long_help(help);
        }
        if arg.get_id() == "store" {
            arg = arg.default_value(app.store_name());
        }
        match arg.get_env().and_then(|name| name.to_str()) {
            Some(name) => {
                let name = format!("{}_{name}", app.prefix());
                arg.env(name)
            }
            None => arg,
        }
    };
    command.mut_args(arg).mut_subcommands(|command| in_words_of(app, command))
}

/// Takes an empty variable for unset, which is what `LIKEWISE_UPSTREAM=` in a service's file means. Trims the spaces
/// around other values.
fn with_tidy_variables(command: clap::Command) -> clap::Command {
    let tidy = |arg: Arg| {
        let value = arg.get_env().and_then(env::var_os).and_then(|value| value.into_string().ok());
        let Some(value) = value else { return arg };
        let tidy = match arg.get_value_delimiter() {
            Some(comma) => {
                let parts = value.split(comma).map(str::trim).filter(|part| !part.is_empty());
                parts.collect::<Vec<_>>().join(&comma.to_string())
            }
            None => value.trim().to_owned(),
        };
        if tidy.is_empty() {
            arg.env(Resettable::Reset)
        } else if tidy == value {
            arg
        } else {
            let takes_value = arg.get_action().takes_values();
            arg.env(Resettable::Reset).default_value(tidy).hide_default_value(takes_value)
        }
    };
    command.mut_args(tidy).mut_subcommands(with_tidy_variables)
}

#[cfg(test)]
mod tests {
    use std::process::ExitCode;

    use super::super::tests::todo;
    use super::*;
    use crate::BoxError;

    /// Parses these words as the app would.
    fn asked(app: &App, words: &[&str]) -> Result<Asked, clap::Error> {
        let words = std::iter::once(app.name()).chain(words.iter().copied());
        parse(app, words.map(OsString::from))
    }

    /// Calls `act` for a command and for all below it.
    fn every(command: &clap::Command, act: &mut dyn FnMut(&clap::Command)) {
        act(command);
        command.get_subcommands().for_each(|command| every(command, act));
    }

    #[test]
    fn the_command_line_is_consistent() {
        command_line(&crate::likes::app()).debug_assert();
        command_line(&todo()).debug_assert();
    }

    #[test]
    fn help_and_variables_have_the_apps_own_names() {
        let app = todo();
        every(&command_line(&app), &mut |command| {
            let mut command = command.clone();
            let name = command.get_name().to_owned();
            let help = command.render_long_help().to_string();
            let help = help.replace("`likewise=trace`", "");
            assert!(!help.contains("likewise") && !help.contains("LIKEWISE"), "{name}: {help}");
            assert!(!help.contains("likes") && !help.contains(['{', '}']), "{name}: {help}");
            for arg in command.get_arguments() {
                if let Some(variable) = arg.get_env() {
                    let expected = format!("TO_DO_{}", arg.get_id().as_str().to_uppercase());
                    assert_eq!(variable.to_str(), Some(&*expected), "{name}");
                }
            }
        });
        let mut command = command_line(&app);
        let help = command.render_long_help().to_string();
        for words in ["What is to be done.", "to-do serves", "TO_DO_LOG", "TO_DO_DATA", "with its to-dos", "add"] {
            assert!(help.contains(words), "{words}: {help}");
        }
        assert_eq!(command_line(&app).get_version(), Some("1.2.3"));
        let Ok(Asked { command: Command::Common(Cli::Status { store, .. }), .. }) = asked(&app, &["status"]) else {
            panic!("not a status")
        };
        assert_eq!(store.store.as_str(), "to-do");
    }

    #[test]
    fn own_commands_get_their_arguments_and_the_common_flags() {
        let app = todo();
        for words in
            [&["--data", "d", "add", "Milk", "--store", "home"][..], &["add", "--data", "d", "--store", "home", "Milk"]]
        {
            let Ok(Asked { data, command: Command::Own { name, matches, store } }) = asked(&app, words) else {
                panic!("not an own command")
            };
            assert_eq!((name.as_str(), store.as_str()), ("add", "home"));
            assert_eq!(matches.get_one::<String>("title").map(String::as_str), Some("Milk"));
            assert_eq!(data, Some("d".into()));
        }
        let wrong = asked(&app, &["add"]).err().expect("a title is missing");
        assert_eq!(wrong.kind(), ErrorKind::MissingRequiredArgument);
        let wrong = asked(&app, &["--listen", "127.0.0.1:0", "add", "x"]).err().expect("a flag of serve");
        assert!(wrong.to_string().contains("it can't stand before `add`"), "{wrong}");
    }

    #[test]
    fn own_commands_with_a_name_that_is_taken_are_refused() {
        todo().check().expect("all is well");
        let with = |command| todo().command(command, async |_, _| Ok::<_, BoxError>(ExitCode::SUCCESS)).check();
        for name in ["status", "help", "set-aside", "serve", "add"] {
            let error = with(clap::Command::new(name)).expect_err(name).to_string();
            assert!(error.contains(&format!("`{name}`")), "{error}");
        }
        let other = || clap::Command::new("other");
        for (command, needle) in [
            (other().alias("verify"), "`verify` can't be the name of a command"),
            (other().arg(Arg::new("mine").long("store")), "`store` can't be the name of an argument"),
            (other().subcommand(other().arg(Arg::new("data"))), "`data` can't be the name of an argument"),
        ] {
            let error = with(command).expect_err(needle).to_string();
            assert!(error.contains(needle), "{error}");
        }
    }
}
