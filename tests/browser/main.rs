//! The page in a real Chromium, served by the real binary.

#[path = "../common/mod.rs"]
mod common;

mod access;
mod chromium;
mod errors;
mod impostor;
mod likewise;
mod look;
mod offline;
mod plain;
mod stores;
mod sync;
mod tabs;
