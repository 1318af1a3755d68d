//! What a disk can do to data: power cuts, faults, and no room. The real program runs under a recorder of everything it writes
//! and syncs. The recorder can also inject faults; see `shim.c`.
//!
//! LIKEWISE_BINARY names a program to test instead of the one built with the tests.

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
