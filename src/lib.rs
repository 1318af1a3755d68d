//! Local-first apps. You write an event, a materializer and a query. Likewise stores the events, shows the answers, keeps
//! every page live, and syncs.
//!
//! ```text
//! post ─▶ event ─▶ eventlog ─▶ materializer ─▶ SQLite state ─▶ live query ─▶ SSE ─▶ every open page
//!                    ▲  │
//!         pull       │  ▼  push
//!                  sync ◀──▶ hub
//! ```
//!
//! # A feature
//!
//! ```
//! use likewise::engine::{Event, Query, Schema};
//!
//! #[derive(serde::Serialize, serde::Deserialize)]
//! struct LikeAdded {}
//! impl Event for LikeAdded { const NAME: &'static str = "LikeAdded"; }
//!
//! fn schema() -> Schema {
//!     Schema::new("CREATE TABLE likes (count INTEGER NOT NULL) STRICT; INSERT INTO likes VALUES (0);")
//!         .on(|_: LikeAdded, db| db.execute("UPDATE likes SET count = count + 1", ()))
//! }
//! fn count() -> Query<u64> { Query::first("SELECT count FROM likes") }
//! # schema().check().unwrap();
//! ```
//!
//! [`engine`] does the rest. An event is on disk when its commit returns, and counts once however often it arrives. The state
//! is a function of the log: it can be thrown away and rebuilt, and all devices arrive at the same state. Whoever watches a
//! query gets the new answer whenever a commit changes it.
//!
//! # A program
//!
//! An [`App`] adds what people see. Its `main` is the whole program: pages, live updates, offline work, sync with a hub, and a
//! command line with backups, exports and tokens.
//!
//! ```no_run
//! use likewise::engine::{Event, Query, Schema};
//! use likewise::{App, Page, Render};
//! use maud::{DOCTYPE, Markup, html};
//! use serde::{Deserialize, Serialize};
//! use std::process::ExitCode;
//!
//! #[derive(Serialize, Deserialize)]
//! struct TodoAdded { title: String }
//! impl Event for TodoAdded { const NAME: &'static str = "TodoAdded"; }
//!
//! #[derive(Serialize, Deserialize)]
//! struct TodoDone { todo: String }
//! impl Event for TodoDone { const NAME: &'static str = "TodoDone"; }
//!
//! fn schema() -> Schema {
//!     Schema::new("CREATE TABLE todo (id TEXT PRIMARY KEY, title TEXT NOT NULL CHECK (title <> '')) STRICT")
//!         .on(|TodoAdded { title }, db| db.execute("INSERT INTO todo VALUES (?1, ?2)", (db.id().to_string(), title)))
//!         .on(|TodoDone { todo }, db| db.execute("DELETE FROM todo WHERE id = ?1", [todo]))
//! }
//! fn open() -> Query<Vec<(String, String)>> {
//!     Query::rows("SELECT id, title FROM todo ORDER BY id", |row| Ok((row.get(0)?, row.get(1)?)))
//! }
//! fn list(todos: Vec<(String, String)>, r: Render) -> Markup {
//!     html! { ul { @for (id, title) in &todos { li { (title)
//!         form method="post" action=(r.to("done")) { (r.id()) input type="hidden" name="todo" value=(id); button { "Done" } }
//!     } } } }
//! }
//! fn page(page: Page) -> Markup {
//!     html! { (DOCTYPE) html { head { (page.head()) title { "To do" } } body {
//!         form method="post" action=(page.to("add")) { (page.id()) input name="title" required; button { "Add" } }
//!         (page.live("open")) (page.message()) (page.status())
//!     } } }
//! }
//! fn main() -> ExitCode {
//!     App::new("todo", schema)
//!         .nouns("to-do", "to-dos")
//!         .form::<TodoAdded>("add")
//!         .form::<TodoDone>("done")
//!         .live("open", |_| Ok(open()), list)
//!         .page(page)
//!         .main()
//! }
//! ```
//!
//! [`App::open`] gives you the stores without a server, for a desktop program or a test. [`App::serve`] runs the server inside
//! a program of your own.
//!
//! # The floors
//!
//! [`App`] and its command line stand on the web floor: forms, fragments, streams, and the guard in front of them. The web
//! floor stands on [`sync`], which holds what a client and a hub decide as plain code without a network. [`sync`] stands on
//! [`engine`]. Each floor knows only those below. [`testing`] tries a schema on simulated devices. With
//! `default-features = false` you get the engine and the decisions of sync, and no network at all.
//!
//! # In a crate of your own
//!
//! Two things are up to the program that is built. No library can set them for it.
//!
//! - **How SQLite syncs.** SQLite is compiled from source, and uses `fdatasync` only if it is told that the system has it.
//!   Otherwise it uses `fsync`, which is just as safe, but makes each commit slower. Put this into the `.cargo/config.toml` of
//!   your workspace. `cargo install` reads that file only with `--path`; otherwise set the variable in its environment.
//!
//!   ```toml
//!   [env]
//!   LIBSQLITE3_FLAGS = "-DHAVE_FDATASYNC=1"
//!   ```
//! - **Dates outside the calendar.** The `httpdate` that hyper uses panics while the clock is before 1970 or after 9999, so no
//!   request is answered then. The repository has one in `vendor/` that doesn't panic. A `[patch.crates-io]` applies only to
//!   the workspace that has it, so add it to yours if your machines may lose their time:
//!
//!   ```toml
//!   [patch.crates-io]
//!   httpdate = { path = "likewise/vendor/httpdate" }
//!   ```
//!
//! The library sets nothing up for the whole process: no TLS provider, no logger, no panic hook. Only [`App::main`] sets up a
//! log, on standard error. The library needs unwinding, because a panic in a materializer must cost one event and not the
//! process.

// The engine has parts that only the floors above it use.
#![cfg_attr(not(feature = "app"), allow(dead_code, unused_imports))]
#![warn(missing_docs)]

#[cfg(panic = "abort")]
compile_error!(
    "likewise can't be built with `panic = \"abort\"`: a panic in a materializer or a query has to cost one event or one \
     answer, and not the process"
);

#[cfg(feature = "app")]
mod app;
#[cfg(feature = "app")]
mod cli;
mod clock;
#[cfg(feature = "app")]
mod data_dir;
pub mod engine;
#[cfg(test)]
mod fuzz;
#[cfg(feature = "app")]
pub mod likes;
mod limits;
#[cfg(feature = "app")]
mod node;
mod random;
#[cfg(feature = "app")]
mod serve;
pub mod sync;
pub mod testing;
#[cfg(feature = "app")]
mod web;

#[cfg(feature = "app")]
pub use app::{App, AppError, BoxError};
/// The axum that [`App::routes`] takes its router from.
#[cfg(feature = "app")]
pub use axum;
/// The clap that [`App::command`] takes its command from.
#[cfg(feature = "app")]
pub use clap;
#[cfg(feature = "app")]
pub use cli::Context;
#[cfg(feature = "app")]
pub use node::{Node, NodeError, Options};
#[cfg(feature = "app")]
pub use web::{
    AllowedHost, BasePath, EmbeddingSite, Html, IntoHtml, Page, Params, PublicUrl, Refusal, Render, TrustedProxy,
    Visitor,
};

/// The code in the documents is run with the tests. The tutorial's is that of an example.
#[cfg(all(doctest, feature = "app"))]
mod documents {
    #[doc = include_str!("../README.md")]
    struct Readme;
    #[doc = include_str!("../docs/evolution.md")]
    struct Evolution;
    #[doc = include_str!("../docs/determinism.md")]
    struct Determinism;
    #[doc = include_str!("../docs/offline.md")]
    struct Offline;
}
