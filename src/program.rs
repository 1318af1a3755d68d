//! What a program is called and what it is about: all that the command line has to know of an app.

use std::future::Future;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;

use crate::cli::Context;
use crate::engine::{Query, Schema};

/// An app as the command line and the data directory see it.
pub(crate) struct Program {
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
    pub(crate) about: &'static str,
    /// What one event is called, and several.
    pub(crate) nouns: [&'static str; 2],
    pub(crate) store: &'static str,
    pub(crate) schema: Arc<dyn Fn() -> Schema + Send + Sync>,
    pub(crate) figures: Vec<(&'static str, Query<u64>)>,
    pub(crate) commands: Vec<AppCommand>,
}

/// A command that an app adds to its command line.
pub(crate) struct AppCommand {
    pub(crate) command: clap::Command,
    pub(crate) run: Arc<RunCommand>,
}

/// What runs an app's own command. It is given the matches of that command alone.
pub(crate) type RunCommand = dyn Fn(clap::ArgMatches, Context) -> Running + Send + Sync;

/// A command of an app while it runs.
pub(crate) type Running = Pin<Box<dyn Future<Output = Result<ExitCode, BoxError>> + Send>>;

/// Any error, as an app's own command may end with it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Program {
    /// What the program, its data directory and its environment variables are named after.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// The version that the program shows.
    pub(crate) fn version_text(&self) -> &'static str {
        self.version
    }

    /// What the help says about the program.
    pub(crate) fn about_text(&self) -> &'static str {
        self.about
    }

    /// The store whose routes have no prefix.
    pub(crate) fn store_name(&self) -> &'static str {
        self.store
    }

    /// The schema, made anew.
    pub(crate) fn schema(&self) -> Schema {
        (self.schema)()
    }

    /// The commands that the app adds.
    pub(crate) fn commands(&self) -> &[AppCommand] {
        &self.commands
    }

    /// The names of its figures.
    pub(crate) fn figure_names(&self) -> impl Iterator<Item = &'static str> {
        self.figures.iter().map(|(name, _)| *name)
    }

    /// What the names of the program's environment variables begin with, such as `TODO` of `TODO_LISTEN`.
    pub(crate) fn prefix(&self) -> String {
        self.name().to_ascii_uppercase().replace('-', "_")
    }

    /// What several of its events are called.
    pub(crate) fn events_text(&self) -> &'static str {
        self.nouns[1]
    }
}
