//! The sync floor: what a hub serves, and the client that follows one.
//!
//! The authority orders events and does not judge them, so a push can't come too late and two clients can't block each
//! other. An event is confirmed when it arrives in the log through the pull. The answer to a push only says that the
//! event need not be sent again for now.

pub(crate) mod access;
mod authority;
mod backfill;
#[cfg(feature = "app")]
mod backoff;
#[cfg(feature = "app")]
mod behind;
#[cfg(feature = "app")]
mod client;
#[cfg(feature = "app")]
mod download;
pub mod gateway;
#[cfg(feature = "app")]
mod http;
#[cfg(feature = "app")]
mod jetstream;
#[cfg(feature = "app")]
mod joined;
#[cfg(feature = "app")]
mod link;
#[cfg(feature = "app")]
mod pairings;
mod protocol;
#[cfg(feature = "app")]
mod ration;
mod session;
#[cfg(feature = "app")]
pub(crate) mod snapshot;
#[cfg(feature = "app")]
mod snapshots;
#[cfg(feature = "app")]
pub(crate) mod sse;
#[cfg(feature = "app")]
mod stay;
#[cfg(feature = "app")]
mod tls;
#[cfg(feature = "app")]
pub(crate) mod tokens;

pub use authority::{AuthorityError, Incoming, NextPage, Refusal, Start, judged};
pub use backfill::{Backfill, Backfilled};
#[cfg(feature = "app")]
pub use behind::HistoryWanted;
#[cfg(feature = "app")]
pub(crate) use behind::WAS_WRONG;
#[cfg(feature = "app")]
pub(crate) use client::{Authority, Clients, LinkState, LinkStatus};
pub use gateway::Gateway;
#[cfg(feature = "app")]
pub use http::{TokenSource, UpstreamOptions};
#[cfg(feature = "app")]
pub(crate) use http::{Upstream, is_local};
#[cfg(feature = "app")]
pub(crate) use jetstream::{
    Cluster, Desk, Examined, Moved, Mover, NotReady, Overview, Stand, is_cluster, look_before_moving,
};
#[cfg(feature = "app")]
pub use jetstream::{ClusterOptions, WithoutTls};
#[cfg(feature = "app")]
pub(crate) use joined::{Joined, Link, joined, joined_as, leave};
#[cfg(feature = "app")]
pub(crate) use pairings::{NotPaired, PairingFile, Shown};
#[cfg(feature = "app")]
pub(crate) use protocol::plain;
pub use protocol::{Has, Hello, Placed, Point, Push, Pushed, PushedEvent, WireEntry, WireEvent, WirePage};
pub(crate) use protocol::{PAGE, code};
pub use session::{End, Outgoing, PushAnswer, Session, SessionError, ended, repair};
#[cfg(feature = "app")]
pub(crate) use snapshots::{NoSnapshot, Snapshots};
#[cfg(feature = "app")]
pub(crate) use tls::{Trust, tls};
#[cfg(feature = "app")]
pub(crate) use tokens::{Purpose, Seen, Token, TokenFile, Tokens};
