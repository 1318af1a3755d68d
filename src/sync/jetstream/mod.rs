//! A gateway's authority: a NATS JetStream cluster. Any number of hubs stand before one, and each is a gateway to the same
//! logs.

mod address;
mod api;
mod attendant;
mod bucket;
mod cluster;
mod feed;
mod moving;
mod settings;

pub(crate) use address::is_cluster;
pub use address::{ClusterOptions, WithoutTls};
pub(super) use attendant::Attendant;
pub(crate) use attendant::{Desk, NotReady};
pub(crate) use cluster::{Cluster, Examined, Overview, Stand};
pub(super) use feed::Feed;
pub(crate) use moving::{Moved, Mover, look_before_moving};
