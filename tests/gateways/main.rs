//! Gateways before real NATS servers, and what becomes of likes when machines die, stop, are cut off or lose their files.

#![allow(unreachable_pub, reason = "what modules of a test share")]

#[path = "../common/mod.rs"]
mod common;

mod servers;
