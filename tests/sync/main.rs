//! Sync between real processes over real sockets, with a proxy between them that does what networks do.

#![allow(unreachable_pub, reason = "what modules of a test share")]

#[path = "../common/mod.rs"]
mod common;

mod base_path;
mod damage;
mod doctor;
mod doors;
mod faults;
mod history;
mod http2;
mod joining;
mod liars;
mod logs;
mod masses;
mod proxies;
mod proxy;
mod shares;
mod snapshot;
mod snapshot_liars;
mod snapshot_rows;
mod story;
mod support;
mod tls;
mod watching;
mod wire;
