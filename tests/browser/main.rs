//! The page in a real Chromium, served by the real binary.

#[path = "../common/mod.rs"]
mod common;

mod access;
mod base_path;
mod chromium;
mod embed;
mod errors;
mod firefox;
mod forms;
mod impostor;
mod kept;
mod likewise;
mod live;
mod look;
mod numbers;
mod offline;
mod pairing;
mod plain;
mod stage;
mod status;
mod stores;
mod stories;
mod sync;
mod tabs;
mod todo;
mod tools;
mod upgrade;
