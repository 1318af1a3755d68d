//! What a disk can do to data: power cuts, faults, and no room. The real program runs under a recorder of everything that
//! it writes and syncs, in which faults can be asked for; see `shim.c`.
//!
//! LIKEWISE_BINARY names another program than the one that was built with the tests.

#[path = "../common/mod.rs"]
mod common;

#[path = "../http/client.rs"]
#[allow(dead_code, reason = "another test uses the rest")]
mod client;

mod around;
mod check;
mod faults;
mod full;
mod image;
mod power;
mod read_only;
mod shim;
mod slow;
mod synced_faults;
mod trace;
