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
#[cfg(feature = "app")]
mod node;
mod random;
#[cfg(feature = "app")]
mod serve;
pub mod sync;
#[cfg(feature = "app")]
mod web;

#[cfg(feature = "app")]
pub use app::{App, AppError, BoxError};
#[cfg(feature = "app")]
pub use cli::Context;
#[cfg(feature = "app")]
pub use node::{Node, NodeError, Options};
#[cfg(feature = "app")]
pub use web::{AllowedHost, Html, IntoHtml, Page, Params, Refusal, Render, Visitor};

/// The README's code is compiled with the tests.
#[cfg(all(doctest, feature = "app"))]
#[doc = include_str!("../README.md")]
struct Readme;
