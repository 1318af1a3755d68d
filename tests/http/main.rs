//! The whole program: the real binary on a free port, asked over HTTP and by its command line.

#[path = "../common/mod.rs"]
mod common;

mod app;
mod base_path;
mod client;
mod commands;
mod contract;
mod crash;
mod directory;
mod embed;
mod evolution;
mod guard;
mod history;
mod hostile;
mod hub;
mod installed;
mod odd;
mod overload;
mod owners;
mod pairing;
mod readme;
mod serving;
mod socket;
mod stores;
