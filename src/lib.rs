//! A local-first, event-sourced likes feature, and the engine that it is built on.
//!
//! ```text
//! click ─▶ LikeAdded ─▶ eventlog ─▶ materializer ─▶ SQLite state ─▶ live query ─▶ SSE ─▶ every open page
//! ```
//!
//! [`likes`] is the whole feature: one event, one materializer, one query. [`engine`] does the rest: it stores events
//! durably before it answers, derives the state from them, and tells who watches. A feature of your own is a file like
//! `likes.rs`; `examples/` has a larger one.
//!
//! Above the engine stands [`sync`], whose decisions are plain code that needs no network, and the web floor with the page,
//! its live stream and the guard around both; and above these the command line, which is all that the binary is.

#[cfg(panic = "abort")]
compile_error!(
    "likewise can't be built with `panic = \"abort\"`: a panic in a materializer or a query has to cost one event or one \
     answer, and not the process"
);

mod app;
pub mod cli;
mod clock;
mod data_dir;
pub mod engine;
#[cfg(test)]
mod fuzz;
pub mod likes;
mod node;
mod program;
mod random;
mod serve;
pub mod sync;
mod web;

pub use app::{App, AppError};
pub use cli::Context;
pub use node::{Node, NodeError, Options};
pub use program::BoxError;
pub use web::{AllowedHost, Html, IntoHtml, Page, Params, Refusal, Render, Visitor};

/// The README's code is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
