//! The engine through its public face, one level below HTTP.

#[path = "../common/mod.rs"]
mod common;

mod bad_sync;
mod converges;
mod crashes;
mod damage;
mod evolution;
mod face;
mod faults;
mod formats;
mod gateway;
mod ledger;
mod live;
mod moving;
mod replica;
mod session;
mod simulation;
mod snapshots;
mod stores;
mod support;
mod verify;
