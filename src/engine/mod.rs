//! The engine: events, an eventlog, the state that materializers make of it, and live queries.
//!
//! It knows SQLite; it knows neither a network nor HTTP, nor what any event means.

mod checks;
mod error;
mod event;
mod eventlog;
mod files;
mod live;
mod materialize;
mod opening;
mod place;
mod query;
mod replica;
mod sandbox;
mod schema;
mod setup;
mod snapshot;
mod state;
mod storage;
mod store;
mod tally;
mod witness;
mod writer;

pub use checks::Progress;
pub use error::{DbError, Error, Fault, Malformed, MalformedSeq, MalformedStoreId, NotOurs};
pub use event::{Args, Batch, Device, Envelope, Event, EventId, EventName, MAX_ARGS, MAX_DEVICE, MAX_NAME};
pub use eventlog::{PageSize, Whose};
pub(crate) use files::{Access, check_dir, create_private_dir, exists, open_private_file, open_to_read, sync_dir};
pub use live::Watch;
pub use materialize::Db;
pub use place::{Cursor, Digest, Entry, Generation, LogId, Seq};
pub use query::Query;
pub use replica::{Outcome, Page, Position, Replica, SETTLE_EVERY, Standing, committed_state};
pub use schema::Schema;
pub use setup::{Files, Setup, executable};
pub use snapshot::{Line, Report, backup, export, export_set_aside, is_blank, set_aside, verify};
pub use store::{Health, Receipt, Store, StoreId, StoreLimits, Stores, stores_in};
pub(crate) use store::{SWEEP_EVERY, Spare};
pub use writer::BATCH;
