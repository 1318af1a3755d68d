//! The engine: events, an eventlog, the state that materializers make of it, and live queries.
//!
//! It knows SQLite; it knows neither a network nor HTTP, nor what any event means.

// What an author writes.
mod batch;
mod error;
mod event;
mod place;
mod query;
mod schema;

// From an event to the state.
mod authorizer;
mod changes;
mod contents;
mod materialize;
mod rehearsal;
mod sandbox;
mod state;

// What is on the disk.
mod eventlog;
mod files;
mod opening;
mod storage;
mod witness;

// One store: its replica, the thread that owns it, and the handles of it.
mod depends;
mod events;
mod health;
mod live;
mod lock;
mod lookup;
mod receipt;
mod replica;
mod setup;
mod store;
mod stores;
mod writer;

// Beside the thread that writes.
mod backup;
mod history;
mod proof;
mod remote;
mod snapshot;
mod transfer;
mod verify;

pub use crate::limits::engine::event::{MAX_ARGS, MAX_DEVICE, MAX_NAME};
pub use crate::limits::engine::replica::{MOST_SKIPPED, SETTLE_EVERY};
pub use crate::limits::engine::writer::MOST_TOGETHER;
pub use backup::backup;
pub use batch::Batch;
pub(crate) use contents::TableRows;
pub use error::{Database, DbError, Error, Fault, Malformed, NotOurs};
pub use event::{Args, Device, Envelope, Event, EventId, EventName};
pub use eventlog::{Applied, PageSize, Progress, Whose};
pub use events::{EventCursor, Events, Told};
#[cfg(feature = "app")]
pub(crate) use files::free_bytes;
pub(crate) use files::{Access, check_dir, create_private_dir, exists, open_private_file, open_to_read, sync_dir};
pub use health::Health;
pub use history::History;
pub use materialize::Db;
pub(crate) use materialize::panic_message;
pub use place::{Cursor, Digest, Entry, Generation, LogId, Seq, StreamId};
pub use proof::{Proof, prove};
pub use query::Query;
pub use receipt::Receipt;
#[cfg(feature = "app")]
pub(crate) use rehearsal::Rehearsed;
pub(crate) use remote::{Answer, Question};
pub use replica::{
    Arrival, Concluded, HistoryPosition, HistoryStanding, NoEffect, Outcome, Page, Position, Replica, Skipped,
    Standing, committed_state,
};
/// What an author's own code says to SQLite, in the version that the engine is built with.
pub use rusqlite::{self, Params, Row, ToSql, params, types::FromSql};
pub use schema::Schema;
#[cfg(feature = "app")]
pub(crate) use setup::ownership;
pub use setup::{Files, Setup, executable, is_blank};
pub use snapshot::{CheckedSnapshot, Snapshot, SnapshotError};
pub use store::{Store, StoreId, Watch};
pub(crate) use stores::Spare;
pub use stores::{StoreLimits, Stores, stores_in};
pub(crate) use transfer::{ImportError, Imported, import};
pub use transfer::{Line, Written, export, export_set_aside, set_aside};
pub use verify::{Report, verify};
