//! The sync floor: what a hub serves, and the client that follows one.
//!
//! The authority orders and does not judge, so a push can't come too late and two clients can't block each other. What
//! confirms an event is its arrival in the log through the pull; the answer to a push only says that it need not be
//! sent again for now.

mod authority;
mod client;
mod http;
mod protocol;
mod ration;
mod session;
pub(crate) mod sse;
mod tls;
pub(crate) mod tokens;

pub use authority::{Incoming, Refusal, Start};
pub(crate) use client::{Clients, LinkState, LinkStatus};
pub(crate) use http::Upstream;
pub use http::{TokenSource, UpstreamOptions};
pub use protocol::{Hello, Point, Push, Pushed, PushedEvent, WireEntry, WireEvent, WirePage};
pub(crate) use protocol::{PAGE, code};
pub use session::{End, Outgoing, PushAnswer, Session, repair};
pub(crate) use tls::{Trust, tls};
pub(crate) use tokens::{Seen, Token, TokenFile, Tokens};
