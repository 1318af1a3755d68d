//! A local-first, event-sourced likes feature, and the engine that it is built on.

pub mod engine;
pub mod likes;
