//! Gateways before real NATS servers, and what becomes of likes when machines die, stop, are cut off or lose their files.

#![allow(unreachable_pub, reason = "what modules of a test share")]

#[path = "../common/mod.rs"]
mod common;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../sync/proxy.rs"]
mod proxy;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../sync/support.rs"]
mod support;

mod devices;
mod document;
mod fire;
mod fleet;
mod front;
mod left;
mod moving;
mod people;
mod quorum;
mod servers;
mod stranger;
mod tls;
mod unfit;
mod words;
