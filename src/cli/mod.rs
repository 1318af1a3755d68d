//! The command line that every app has. It knows only an app's name, words, figures and own commands.

mod arguments;
mod context;
mod doctor;
mod health;
mod items;
mod join;
mod listen;
mod log;
mod logging;
mod manual;
mod moving;
mod owner;
mod pair;
mod process;
mod serve;
mod set_aside;
mod status;
mod stores;
mod target;
mod tokens;
mod transfer;
mod verify;

use std::env;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;

use self::arguments::{Asked, Cli, Command};
use self::logging::{log_to_stderr, say_last};
use self::owner::act_as_owner;
use self::target::Target;
use crate::app::App;
use crate::data_dir::{self, DataDir};
use crate::node::in_full;
use crate::web::Exported;

pub(crate) use arguments::check;
pub use context::Context;

/// Runs a program: reads its command line, does what that says, and returns the exit code.
pub(crate) fn run(app: &App) -> ExitCode {
    if let Err(error) = app.check() {
        eprintln!("{}: {error}", app.name());
        return ExitCode::FAILURE;
    }
    let asked = match arguments::parse(app, env::args_os()) {
        Ok(asked) => asked,
        Err(error) => error.exit(),
    };
    let format = asked.command.log_format();
    if let Err(error) = log_to_stderr(app, format) {
        eprintln!("{}: {}", app.name(), in_full(&error));
        return ExitCode::FAILURE;
    }
    let result = locate_data(app, asked).and_then(|(asked, data)| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let result = runtime.block_on(obey(app, asked, &data));
        // Nothing waits for what still runs.
        runtime.shutdown_timeout(Duration::from_millis(100));
        result
    });
    match result {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            say_last(app, format, &in_full(&error));
            ExitCode::FAILURE
        }
    }
}

/// Finds the data directory. From here on, this process acts as its owner.
fn locate_data(app: &App, mut asked: Asked) -> anyhow::Result<(Asked, PathBuf)> {
    let named = match asked.data.take() {
        Some(path) => path,
        None => data_dir::default_path(app.name())?,
    };
    let data = data_dir::locate(&named).with_context(|| data_dir::unusable(&named))?;
    // It says so beside what else is wrong.
    let finds_out = matches!(asked.command, Command::Common(Cli::Doctor { .. }));
    let mut copy = match &mut asked.command {
        Command::Common(Cli::Backup { to }) => Some(to),
        _ => None,
    };
    act_as_owner(app.name(), &data, copy.as_deref().map(PathBuf::as_path))?;
    if !finds_out {
        DataDir::check(&data)?;
    }
    if let Some(to) = &mut copy {
        **to = data_dir::locate(to).with_context(|| format!("cannot copy to {}", to.display()))?;
    }
    Ok((asked, data))
}

async fn obey(app: &App, asked: Asked, data: &Path) -> anyhow::Result<ExitCode> {
    let at = |store| Target { app, data, store };
    let command = match asked.command {
        Command::Common(command) => command,
        Command::Own { name, matches, store } => return context::run(&at(store), &name, matches).await,
    };
    match command {
        Cli::Serve(args) => serve::serve(app, data, *args).await,
        Cli::Hub(args) => serve::hub(app, data, *args).await,
        Cli::Status { store, url, json, digests } => {
            status::status(&at(store.store), url, status::Shown { json, digests }).await
        }
        Cli::Stores { json } => stores::stores(app, data, json).await,
        Cli::Items { command } => items::items(app, data, command).await,
        Cli::Health { store } => health::health(&at(store.store)).await,
        Cli::Doctor { hub, nats_monitor, public_url, json } => {
            let cluster = serve::cluster(&hub);
            let upstream = if cluster.is_some() { None } else { serve::upstream(app, data, &hub)? };
            let (monitors, root_certificate) = (nats_monitor, hub.root_certificate);
            let told = doctor::Told { upstream, cluster, monitors, root_certificate, public_url, json };
            doctor::doctor(app, data, told).await
        }
        Cli::Verify { store } => verify::verify(&at(store.store)).await,
        Cli::Export { store } => transfer::export(&at(store.store), Exported::All).await,
        Cli::Import { store } => transfer::import(&at(store.store)).await,
        Cli::Backup { to } => transfer::backup(app, data, &to).await,
        Cli::Token { command } => tokens::token(app, data, command).await,
        Cli::Pair { name, public_url, qr } => pair::pair(app, data, name, pair::Asked { public_url, qr }).await,
        Cli::Join { link, root_certificate } => join::join(app, data, link, root_certificate.as_deref()).await,
        Cli::Adopt { store, yes } => log::adopt(&at(store.store), yes).await,
        Cli::Promote { store, yes } => log::promote(&at(store.store), yes).await,
        Cli::Move { command } => moving::go(app, data, command).await,
        Cli::Completions { shell } => manual::completions(app, shell),
        Cli::Man => manual::page(app),
        Cli::SetAside { store, command } => set_aside::set_aside(&at(store.store), &command).await,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::{Mutex, PoisonError};

    use serde::{Deserialize, Serialize};
    use tokio::net::TcpListener;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::engine::{Event, Query, Schema};
    use crate::node::{Options, base};
    use crate::serve::Server;
    use crate::web::Role;
    use crate::{App, BoxError, NodeError};

    #[derive(Serialize, Deserialize)]
    struct TodoAdded {
        title: String,
    }

    impl Event for TodoAdded {
        const NAME: &'static str = "TodoAdded";
    }

    fn titles() -> Query<Vec<(i64, String)>> {
        Query::rows("SELECT n, title FROM todo ORDER BY n", |row| Ok((row.get("n")?, row.get("title")?)))
    }

    /// Another app: to-dos, which `add` adds. What `list` lists is kept in `LISTED`.
    pub(crate) fn todo() -> App {
        let schema = || {
            Schema::new("CREATE TABLE todo (n INTEGER PRIMARY KEY, title TEXT NOT NULL CHECK (title <> '')) STRICT")
                .on(|TodoAdded { title }, db| db.execute("INSERT INTO todo (title) VALUES (?1)", [title]))
        };
        let add = clap::Command::new("add").about("Add a to-do").arg(clap::Arg::new("title").required(true));
        App::new("to-do", schema)
            .version("1.2.3")
            .about("What is to be done.\n\nAnd what is done.")
            .nouns("to-do", "to-dos")
            .figure("left", || Query::first("SELECT count(*) FROM todo"))
            .command(add, async |matches, context: Context| {
                let title = matches.get_one::<String>("title").ok_or("no title")?.clone();
                context.commit(TodoAdded { title }).await?;
                Ok::<_, BoxError>(ExitCode::SUCCESS)
            })
            .command(clap::Command::new("list"), async |_, context: Context| {
                let titles = context.read(titles()).await?;
                LISTED.lock().unwrap_or_else(PoisonError::into_inner).push(titles);
                Ok::<_, NodeError>(ExitCode::from(7))
            })
    }

    static LISTED: Mutex<Vec<Vec<(i64, String)>>> = Mutex::new(Vec::new());

    async fn run(app: &App, data: &Path, words: &[&str]) -> anyhow::Result<ExitCode> {
        let words = std::iter::once(app.name()).chain(words.iter().copied());
        let asked = arguments::parse(app, words.map(Into::into)).expect("a command line");
        obey(app, asked, data).await
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn own_commands_commit_and_read_whether_or_not_a_process_serves() {
        let (app, data) = (todo(), tempfile::tempdir().expect("a directory"));
        let data = data_dir::locate(data.path()).expect("a path");
        let add = |title: &'static str| ["add", title];
        run(&app, &data, &add("one")).await.expect("stored");
        let refused = run(&app, &data, &add("")).await.expect_err("a to-do without a title");
        assert!(in_full(&refused).starts_with("TodoAdded can't be applied: "), "{}", in_full(&refused));

        let options = Options { data: Some(data.clone()), ..Options::default() };
        let base = base(&app, &options).expect("free again");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let shutdown = CancellationToken::new();
        let server = Server::prepare(&app, Role::App, options, base, listener, shutdown.clone());
        let serving = tokio::spawn(server.await.expect("a server").run());
        run(&app, &data, &add("two")).await.expect("stored by the server");
        let refused = run(&app, &data, &add("")).await.expect_err("a to-do without a title");
        assert!(in_full(&refused).starts_with("TodoAdded can't be applied: "), "{}", in_full(&refused));
        let listed = run(&app, &data, &["list"]).await.expect("listed by the server");
        assert_eq!(listed, ExitCode::from(7), "the command's own code");
        run(&app, &data, &["list", "--store", "other"]).await.expect("an empty store, listed by the server");
        assert!(!DataDir::files(&data, &"other".parse().expect("a name")).exist(), "a look makes nothing");
        shutdown.cancel();
        serving.await.expect("an end");

        run(&app, &data, &["list"]).await.expect("listed from the files");
        let both = vec![(1, "one".to_owned()), (2, "two".to_owned())];
        assert_eq!(*LISTED.lock().expect("no panic"), [both.clone(), Vec::new(), both]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_app_without_anything_to_embed_says_so() {
        let (app, dir) = (todo(), tempfile::tempdir().expect("a directory"));
        let data = data_dir::locate(dir.path()).expect("a path");
        for words in [
            &["serve", "--listen", "127.0.0.1:0", "--embed", "https://blog.example.org"][..],
            &["items", "list"],
            &["items", "add", "a"],
        ] {
            let refused = run(&app, &data, words).await.expect_err("nothing to embed");
            let refused = in_full(&refused);
            assert!(refused.starts_with("to-do has nothing that other sites could embed"), "{refused}");
        }
    }
}
