//! The command line that every app has. It knows an app by its name, words, figures and own commands alone.

mod arguments;
mod context;
mod log;
mod owner;
mod process;
mod serve;
mod set_aside;
mod status;
mod target;
mod tokens;
mod transfer;
mod verify;

use std::env;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;

use self::arguments::{Asked, Cli, Command};
use self::owner::act_as_owner;
use self::target::Target;
use crate::data_dir::{self, DataDir};
use crate::likes;
use crate::node::in_full;
use crate::program::Program;
use crate::web::Exported;

pub use context::Context;

/// Runs the program of likes.
pub fn main() -> ExitCode {
    run(&likes())
}

/// Likes, as a program.
pub(crate) fn likes() -> Program {
    Program {
        name: "likewise",
        version: env!("CARGO_PKG_VERSION"),
        about: "Likes that are always fast, always there and never wrong.\n\n\
                Run `likewise`, open the address that it prints in a browser, and click. Likes are stored on this machine \
                before the click is answered, and the count changes at once in every open tab.",
        nouns: ["like", "likes"],
        store: "likes",
        schema: Arc::new(likes::schema),
        figures: vec![("count", likes::count())],
        commands: Vec::new(),
    }
}

/// Runs a program: reads its command line, does what that says, and gives what to exit with.
pub(crate) fn run(program: &Program) -> ExitCode {
    if let Err(error) = arguments::check(program) {
        eprintln!("{}: {error}", program.name());
        return ExitCode::FAILURE;
    }
    let asked = match arguments::parse(program, env::args_os()) {
        Ok(asked) => asked,
        Err(error) => error.exit(),
    };
    log_to_stderr(program);
    let result = locate_data(program, asked).and_then(|(asked, data)| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let result = runtime.block_on(obey(program, asked, &data));
        // What still runs belongs to nobody any more.
        runtime.shutdown_timeout(Duration::from_millis(100));
        result
    });
    match result {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {}", program.name(), in_full(&error));
            ExitCode::FAILURE
        }
    }
}

/// Has what is logged written to standard error, as far as the program's own variable asks for it.
fn log_to_stderr(program: &Program) {
    let filter = env::var(arguments::log_variable(program)).ok().filter(|filter| !filter.is_empty());
    let filter = filter.and_then(|filter| filter.parse().ok()).unwrap_or_else(|| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        // They would go to standard error, too, and panic when that is what fails.
        .log_internal_errors(false)
        .init();
}

/// Finds the data directory. From here on, this process acts as its owner.
fn locate_data(program: &Program, mut asked: Asked) -> anyhow::Result<(Asked, PathBuf)> {
    let named = match asked.data.take() {
        Some(path) => path,
        None => data_dir::default_path(program.name())?,
    };
    let data = data_dir::locate(&named).with_context(|| data_dir::unusable(&named))?;
    let mut copy = match &mut asked.command {
        Command::Common(Cli::Backup { to }) => Some(to),
        _ => None,
    };
    act_as_owner(program.name(), &data, copy.as_deref().map(PathBuf::as_path))?;
    DataDir::check(&data)?;
    if let Some(to) = &mut copy {
        **to = data_dir::locate(to).with_context(|| format!("cannot copy to {}", to.display()))?;
    }
    Ok((asked, data))
}

async fn obey(program: &Program, asked: Asked, data: &Path) -> anyhow::Result<ExitCode> {
    let at = |store| Target { program, data, store };
    let command = match asked.command {
        Command::Common(command) => command,
        Command::Own { name, matches, store } => return context::run(&at(store), &name, matches).await,
    };
    match command {
        Cli::Serve(args) => serve::serve(program, data, args).await,
        Cli::Status { store, url, json } => status::status(&at(store.store), url, json).await,
        Cli::Verify { store } => verify::verify(&at(store.store)).await,
        Cli::Export { store } => transfer::export(&at(store.store), Exported::All).await,
        Cli::Import { store } => transfer::import(&at(store.store)).await,
        Cli::Backup { to } => transfer::backup(program, data, &to).await,
        Cli::Token { command } => tokens::token(program, data, command),
        Cli::Adopt { store, yes } => log::adopt(&at(store.store), yes).await,
        Cli::Promote { store, yes } => log::promote(&at(store.store), yes).await,
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
    use crate::node::Options;
    use crate::program::AppCommand;
    use crate::serve::Server;

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

    /// An own command that does nothing.
    pub(crate) fn own(command: clap::Command) -> AppCommand {
        AppCommand { command, run: Arc::new(|_, _| Box::pin(async { Ok(ExitCode::SUCCESS) })) }
    }

    /// Another app: to-dos, which `add` adds. What `list` lists is kept in `LISTED`.
    pub(crate) fn todo() -> Program {
        let add = clap::Command::new("add").about("Add a to-do").arg(clap::Arg::new("title").required(true));
        let add = AppCommand {
            command: add,
            run: Arc::new(|matches, context| {
                Box::pin(async move {
                    let title = matches.get_one::<String>("title").ok_or("no title")?.clone();
                    context.commit(TodoAdded { title }).await?;
                    Ok(ExitCode::SUCCESS)
                })
            }),
        };
        let list = AppCommand {
            command: clap::Command::new("list"),
            run: Arc::new(|_, context| {
                Box::pin(async move {
                    let titles = context.read(titles()).await?;
                    LISTED.lock().unwrap_or_else(PoisonError::into_inner).push(titles);
                    Ok(ExitCode::from(7))
                })
            }),
        };
        let schema = || {
            Schema::new("CREATE TABLE todo (n INTEGER PRIMARY KEY, title TEXT NOT NULL CHECK (title <> '')) STRICT")
                .on(|TodoAdded { title }, db| db.execute("INSERT INTO todo (title) VALUES (?1)", [title]))
        };
        Program {
            name: "to-do",
            version: "1.2.3",
            about: "What is to be done.\n\nAnd what is done.",
            nouns: ["to-do", "to-dos"],
            store: "to-do",
            schema: Arc::new(schema),
            figures: Vec::new(),
            commands: vec![add, list],
        }
    }

    static LISTED: Mutex<Vec<Vec<(i64, String)>>> = Mutex::new(Vec::new());

    async fn run(program: &Program, data: &Path, words: &[&str]) -> anyhow::Result<ExitCode> {
        let words = std::iter::once(program.name()).chain(words.iter().copied());
        let asked = arguments::parse(program, words.map(Into::into)).expect("a command line");
        obey(program, asked, data).await
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn own_commands_commit_and_read_whether_or_not_a_process_serves() {
        let (program, data) = (todo(), tempfile::tempdir().expect("a directory"));
        let data = data_dir::locate(data.path()).expect("a path");
        let add = |title: &'static str| ["add", title];
        run(&program, &data, &add("one")).await.expect("stored");
        let refused = run(&program, &data, &add("")).await.expect_err("a to-do without a title");
        assert!(in_full(&refused).contains("the event was refused: CHECK constraint failed"), "{}", in_full(&refused));

        let dir = DataDir::take(&data).expect("free again");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let shutdown = CancellationToken::new();
        let server = Server::prepare(&program, Options::default(), dir, listener, shutdown.clone());
        let serving = tokio::spawn(server.await.expect("a server").run());
        run(&program, &data, &add("two")).await.expect("stored by the server");
        let refused = run(&program, &data, &add("")).await.expect_err("a to-do without a title");
        assert!(in_full(&refused).contains("The event was refused: CHECK constraint failed"), "{}", in_full(&refused));
        let listed = run(&program, &data, &["list"]).await.expect("listed by the server");
        assert_eq!(listed, ExitCode::from(7), "the command's own code");
        run(&program, &data, &["list", "--store", "other"]).await.expect("an empty store, listed by the server");
        assert!(!DataDir::files(&data, &"other".parse().expect("a name")).exist(), "a look makes nothing");
        shutdown.cancel();
        serving.await.expect("an end");

        run(&program, &data, &["list"]).await.expect("listed from the files");
        let both = vec![(1, "one".to_owned()), (2, "two".to_owned())];
        assert_eq!(*LISTED.lock().expect("no panic"), [both.clone(), Vec::new(), both]);
    }
}
