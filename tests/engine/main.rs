//! The engine through its public face, one level below HTTP.

mod replica;
mod support;
