//! Limits of the engine.

use std::time::Duration;

/// What an event may be.
pub(crate) mod event {
    /// The largest payload of one event, in bytes of its JSON text. An event is a fact, not a file: store larger
    /// bytes elsewhere, and their hash here.
    pub const MAX_ARGS: usize = 64 * 1024;

    /// The longest name of an event, in bytes.
    pub const MAX_NAME: usize = 100;

    /// The longest name of a device, in bytes.
    pub const MAX_DEVICE: usize = 64;
}

/// The schema of a stranger's database.
pub(crate) mod snapshot {
    /// Bytes that a row of the schema has beside its texts, with room to spare.
    pub(crate) const SCHEMA_ROW: i32 = 1_000;

    /// Steps that SQLite takes to read a schema, in all and for each row, with room to spare. It takes some seven to load a
    /// row and fifteen to return it.
    pub(crate) const SCHEMA_STEPS: (i32, i32) = (1_000, 100);
}

/// The directory of stores.
pub(crate) mod stores {
    use super::Duration;

    /// Events of one store that may wait to be written. More than a second's worth at full speed; past that, a quick "try
    /// again" serves people better than a slow answer.
    pub(crate) const QUEUE: usize = 8_192;

    /// Stores in a data directory. Anyone who can post can make one, so there has to be an end.
    pub(crate) const STORES: u64 = 10_000;

    /// Stores open at the same time. Each has a thread and some open files.
    pub(crate) const OPEN: usize = 512;

    /// How long a store stays open without being used. A visitor who comes back within a minute finds it open; the thread
    /// and files of a store that was only looked at are free soon after.
    pub(crate) const IDLE: Duration = Duration::from_secs(60);

    /// How often idle stores are looked for: soon after their time is over, even when a mere look opened many.
    pub(crate) const SWEEP_EVERY: Duration = Duration::from_secs(5);

    /// Handles of stores without events that are kept before dropped ones are looked for.
    pub(crate) const ABSENT: usize = 64;
}

/// Counting who brought the events of a log.
pub(crate) mod history {
    /// Events that are counted with one look at the log, in a fraction of a second. While the look lasts, the WAL grows.
    pub(crate) const PORTION: usize = 500_000;
}

/// The thread that owns a replica.
pub(crate) mod writer {
    use super::Duration;

    /// Events committed together. One fsync serves all of them, and no event waits for more than these.
    pub const MOST_TOGETHER: usize = 1_024;

    /// How long a store that failed is left alone before it is opened again.
    pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(1);

    /// How often to check that the files are still there.
    pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(500);

    /// Events that the background checks in one go. A commit that comes meanwhile waits for about a millisecond.
    pub(crate) const CHECKED_TOGETHER: usize = 128;
}

/// A replica: events that arrive, and the state they make.
pub(crate) mod replica {
    /// Confirmed events that may be in the open transaction alone before they are settled. After a crash, opening has to
    /// apply this many again. If more are pending, that many.
    pub const SETTLE_EVERY: u64 = 10_000;

    /// Pending events that are re-applied at once, without waiting for more arrivals. It takes a few milliseconds.
    pub(crate) const PUT_BACK: u64 = 1_000;

    /// Events that a rebuild applies in one transaction of the state.
    pub(crate) const PER_COMMIT: u64 = 10_000;

    /// Events that share a savepoint when they are applied from an eventlog. When one of them fails, this many are applied
    /// again one by one.
    pub(crate) const CHUNK: usize = 1_024;

    /// Chunks of a long log that are read before the state is ready for them.
    pub(crate) const AHEAD: usize = 2;

    /// The bytes of payloads after which such a chunk ends, however few events it has.
    pub(crate) const AHEAD_BYTES: usize = 256 * 1_024;

    /// Events without effect that are listed at most. Their number is in the [`Standing`](crate::engine::Standing).
    pub const MOST_SKIPPED: usize = 1_000;

    /// The longest reason that is stored with a skipped event, in bytes.
    pub(crate) const LONGEST_WHY: usize = 300;

    /// Kinds of events without effect that a store logs. Strangers may invent names.
    pub(crate) const KINDS_TOLD: usize = 100;
}

/// The eventlog.
pub(crate) mod eventlog {
    /// Events read at a time, unless a caller asks for fewer: few enough to hold in memory, enough that the number of reads
    /// doesn't matter.
    pub(crate) const EVENTS: usize = 1_024;

    /// Bytes of events read at a time.
    pub(crate) const BYTES: usize = 8 << 20;

    /// Rows that an upgrade gives their hashes at once. It bounds the memory that an upgrade takes.
    pub(crate) const HASHED_AT_ONCE: usize = 1_024;

    /// Cuts of the log that are remembered. A reader who comes from before the oldest starts over.
    pub(crate) const CUTS: usize = 64;
}

/// An author's SQL.
pub(crate) mod sql {
    /// Prepared statements, and verdicts on them, that a connection keeps.
    pub(crate) const STATEMENTS: usize = 256;

    /// Statements of materializers that stay at hand from one event to the next. They are searched one by one.
    pub(crate) const AT_HAND: usize = 16;

    /// Steps that one query may take, in instructions of SQLite's virtual machine: about a second's work on a slow machine.
    /// Queries run on the thread that stores, and strangers may choose their parameters. Steps and not time, so a query that
    /// is refused is refused everywhere. Materializers have no such bound: replicas would differ.
    pub(crate) const QUERY_STEPS: u32 = 20_000_000;

    /// Steps of a query between two looks at how many it took. So few are no wait, and the look costs nothing beside them.
    pub(crate) const STEPS_AT_ONCE: u32 = 10_000;

    /// How much of a statement a message quotes, in characters: one line of a terminal, and its table and columns.
    pub(crate) const LONGEST_QUOTE: usize = 160;
}

/// Live queries.
pub(crate) mod live {
    use super::Duration;

    /// How long an unwatched answer is kept up to date. A page that is loaded again asks within this time.
    pub(crate) const REMEMBERED_FOR: Duration = Duration::from_secs(60);

    /// Unwatched answers that are kept. Each costs a run of its query whenever a commit touches it.
    pub(crate) const REMEMBERED: usize = 16;

    /// How often unneeded queries are looked for, unless many new ones came.
    pub(crate) const FORGET_EVERY: Duration = Duration::from_secs(1);

    /// Steps that live queries may take in a row, before what else waits for the store's thread has its turn. The rest of
    /// them run after that. So a commit waits for no more than this and one query, however many a stranger watches.
    pub(crate) const STEPS_IN_A_ROW: u32 = super::sql::QUERY_STEPS;

    /// How often one of the queries that took too many steps is tried again. All of them together take no more of the store's
    /// thread than one query a time.
    pub(crate) const REFUSED_AGAIN: Duration = Duration::from_secs(10);

    /// Rows of one table that a commit is known to have written one by one. A commit that wrote more counts as having
    /// written all of them.
    pub(crate) const WRITTEN_ROWS: usize = 4_096;

    /// Rows of one key that are remembered. A query by a key of more rows runs whenever its table changes.
    pub(crate) const ROWS_OF_A_KEY: usize = 64;
}

/// Readers of a store's events.
pub(crate) mod readers {
    /// Events that a stream of a store's events gets at a time from the store's thread.
    pub(crate) const STREAM_EVENTS: usize = 256;

    /// Bytes of events that such a stream gets at a time.
    pub(crate) const STREAM_BYTES: usize = 1 << 20;

    /// Events that an export reads at a time. Nothing stays open in between: the reader may be slow, and an open snapshot
    /// keeps the WAL from starting over.
    pub(crate) const EXPORT_EVENTS: usize = 8_192;

    /// Bytes of events that an export reads at a time.
    pub(crate) const EXPORT_BYTES: usize = 4 << 20;

    /// The longest line of an import, in bytes: a payload whose every byte is escaped, and the rest of the line.
    pub(crate) const MAX_LINE: usize = 6 * super::event::MAX_ARGS + 1_024;
}

/// The rehearsal of a schema when an app starts.
pub(crate) mod rehearsal {
    /// Events of each type that are made up. From one to the next, numbers grow, options come and go, and enums take their
    /// next variant, so most branches are reached.
    pub(crate) const ROUNDS: u32 = 4;

    /// The depth down to which the options and lists of a made-up value hold something. Types may hold themselves.
    pub(crate) const DEEPEST: u32 = 4;

    /// The depth at which a type that holds itself in other ways is given up.
    pub(crate) const BOTTOM: u32 = 16;
}

/// The files of a store.
pub(crate) mod files {
    use super::Duration;

    /// How long to wait for somebody in this process who reads files that are to be replaced.
    pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

    /// Bytes of a WAL that are copied at a time.
    pub(crate) const PIECE: usize = 1 << 20;

    /// How long SQLite waits for another process that holds a lock, such as the `sqlite3` shell of a curious person.
    pub(crate) const BUSY: Duration = Duration::from_secs(2);

    /// How long a WAL gets before it is moved into its database, in pages of 4 KiB. Longer is cheaper: a page that was
    /// overwritten many times is moved once.
    pub(crate) const CHECKPOINT_PAGES: u32 = 1_000;

    /// How long a WAL may get before the checkpoint can't be left to another thread any more, in pages.
    pub(crate) const OVERDUE_PAGES: u32 = 3_800;

    /// Bytes that a WAL keeps when it starts over. A reader can make it longer for a while. If it kept less, each round would
    /// pay for making the file longer again.
    pub(crate) const LONGEST_WAL: u64 = OVERDUE_PAGES as u64 * 4_096;
}
