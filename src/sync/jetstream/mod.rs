//! A gateway's authority: a NATS JetStream cluster. Any number of hubs stand before one, and each is a gateway to the same
//! logs.

mod address;
mod api;
mod bucket;
mod cluster;
mod moving;
mod settings;
mod shared;

pub(crate) use address::is_cluster;
pub use address::{ClusterOptions, WithoutTls};
pub(crate) use cluster::{Cluster, Overview, Stand};
pub(crate) use moving::{Moved, Mover};
