//! Limits of sync, at both ends.

use std::time::Duration;

/// What goes into one push, or into one page of a pull.
pub(crate) mod page {
    /// Events.
    pub(crate) const EVENTS: usize = 1_000;

    /// Bytes of their names and payloads.
    pub(crate) const BYTES: usize = 1 << 20;
}

/// What a client believes of a hub.
pub(crate) mod wire {
    /// The longest name of a run, in bytes. It goes back to the hub with every push. Ours are UUIDs.
    pub(crate) const MAX_RUN: usize = 100;

    /// Places in a log that a client takes from a hub are below this. It is half of what a
    /// [`Seq`](crate::engine::Seq) may be, so a log that was led to its end can still be promoted and go on.
    pub(crate) const SEQS: u64 = 1 << 61;

    /// Points of its log that a hub names. Each costs the client the digests of up to 1,024 events. Ours names one for each
    /// power of two, at most 65.
    pub(crate) const MAX_POINTS: usize = 256;

    /// How much of a hub's words is kept, logged or shown, in characters.
    pub(crate) const MAX_WORDS: usize = 300;
}

/// What a hub takes.
pub(crate) mod authority {
    /// Different names of events that a store takes from devices. Each is kept in memory while the store is open. A hub
    /// orders events it doesn't understand, but no app has so many kinds.
    pub(crate) const MAX_NAMES: usize = 10_000;
}

/// What a session decides.
pub(crate) mod session {
    /// Pages in a row that may bring nothing. A log that was written twice has some. More of them waste time, and disk
    /// where they name events.
    pub(crate) const IN_VAIN: u32 = 32;

    /// Refusals that are written down together. Each time, what is pending is re-applied on top of the log.
    pub(crate) const REFUSED_TOGETHER: usize = 10_000;

    /// Pushes of one size that have to get through before a larger one is tried. What was too much once is usually too much
    /// again, and to learn that may take as long as waiting for an answer.
    pub(crate) const BEFORE_GROWTH: u32 = 16;
}

/// A stream of messages, and a gateway in front of it.
pub(crate) mod gateway {
    use super::Duration;

    /// The longest message, in bytes. A NATS server takes 1 MiB at a time unless it is told otherwise, with the headers. Every
    /// gateway refuses a longer one alike, so this can't change.
    pub(crate) const MESSAGE_BYTES: usize = 1_000_000;

    /// Places in a log that a message has for itself. A message has fewer events, and this can't change either: the places
    /// of all events follow from it.
    pub(crate) const PLACES: u64 = 1_024;

    /// The longest prefix of names in a cluster, in bytes.
    pub(crate) const PREFIX: usize = 32;

    /// How much a closing message tells of where a store went, in characters.
    pub(crate) const MOVED_TO: usize = 200;

    /// Events of devices that wait for their turn at one store. They are in memory, and their devices have them, too. Those
    /// that come beyond it are told to come again.
    pub(crate) const WAITING: usize = 20_000;

    /// Things for people that wait to be said. Anybody who may publish could cause them.
    pub(crate) const NOTICES: usize = 20;

    /// How long a gateway waits for the next message of others whose turn it is. They may have nothing more to publish. A
    /// message takes a few milliseconds each way.
    pub(crate) const TURN: Duration = Duration::from_millis(50);

    /// The longest gap that a busy gateway leaves behind its own message, for others that were never fast enough.
    pub(crate) const GAP: Duration = Duration::from_millis(40);

    /// Revoked tokens that are remembered. Only as long do they stay revoked where the bucket lost that.
    pub(crate) const REVOKED: usize = 4_096;

    /// Losses that the bucket remembers with their stores, so that gateways which were away look at the same ones.
    pub(crate) const LOSSES: usize = 64;
}

/// A pull stream, as both ends see it.
#[cfg(feature = "app")]
pub(crate) mod stream {
    use super::Duration;

    /// How often a hub says that a pull stream is alive. Some proxies cut what is silent for ten seconds.
    pub(crate) const PING_EVERY: Duration = Duration::from_secs(8);

    /// How long a stream may be silent before a client gives it up, and how long a client may take to read what it was sent
    /// before a hub does.
    pub(crate) const SILENCE: Duration = Duration::from_secs(25);
}

/// A client of a hub.
#[cfg(feature = "app")]
pub(crate) mod client {
    use super::Duration;

    /// The shortest wait before the next attempt, of a few stores.
    pub(crate) const SHORTEST_WAIT: Duration = Duration::from_millis(250);

    /// The longest wait before the next attempt, of a few stores.
    pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(15);

    /// Stores that try as often as that. More of them wait longer, or together they would keep the machine busy with a hub
    /// that is away. The first to get through tells the others.
    pub(crate) const FEW: usize = 32;

    /// The shortest wait of a store that somebody is using.
    pub(crate) const WANTED: Duration = Duration::from_secs(1);

    /// The longest wait of a store that a page shows, of a few such stores. A hub that comes back is noticed within two
    /// seconds while somebody looks. Only devices with an open page ask that often, and none that was told to wait.
    pub(crate) const WATCHED: Duration = Duration::from_millis(1_500);

    /// How long a person who asks for an attempt at once waits for what comes of it. Longer than a hub takes to answer.
    pub(crate) const TRY_NOW: Duration = Duration::from_secs(5);

    /// How long a store is kept level after its last use.
    pub(crate) const IDLE_AFTER: Duration = Duration::from_secs(600);

    /// The same, while other stores need the room.
    pub(crate) const IDLE_WHEN_CROWDED: Duration = Duration::from_secs(5);

    /// How often to check whether anybody still uses a store that is level.
    pub(crate) const IDLE_CHECK: Duration = Duration::from_secs(5);

    /// How often to check whether something changed that lets a halted store go on.
    pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(1);

    /// How long events of others wait until pages see them, at least, while more arrive and many of ours are pending.
    pub(crate) const SEEN_AFTER: Duration = Duration::from_millis(250);

    /// They also wait this many times as long as it took last to re-apply the pending ones, so re-applying takes at most
    /// a fifth of the time.
    pub(crate) const SEEN_AFTER_TIMES: u32 = 4;

    /// Repairs of a store in a row. To take back a log and rebuild its state costs as much as the log is long, and a hub
    /// could ask for it without end.
    pub(crate) const REPAIRS: u32 = 3;

    /// One more repair is allowed after each such time.
    pub(crate) const REPAIR_EVERY: Duration = Duration::from_secs(300);

    /// Events of a stream in a row that may bring no page.
    pub(crate) const NO_PAGES: u32 = 32;

    /// One more is allowed after each such time. Pings come far less often.
    pub(crate) const NO_PAGE_EVERY: Duration = Duration::from_secs(1);

    /// Pings that may come while the hub owes something: pages up to the head it named, or a place for what it took. An
    /// honest hub sends what it has before the next ping.
    pub(crate) const OWING: u32 = 6;

    /// Sessions in a row that may end with the hub's word that it was restarted.
    pub(crate) const RESTARTS: u32 = 3;

    /// Refusals of a push that are logged one by one.
    pub(crate) const LOGGED: usize = 10;
}

/// The snapshots that a hub makes and keeps.
#[cfg(feature = "app")]
pub(crate) mod kept {
    use super::Duration;

    /// Events of a log below which there is no snapshot of it. To pull that many takes a fraction of a second.
    pub(crate) const SHORTEST: u64 = 10_000;

    /// Events that may follow a snapshot before the next device gets a newer one. It pulls them afterwards, so they are no
    /// more than what would have been too short for a snapshot.
    pub(crate) const EVENTS: u64 = 10_000;

    /// The same for a large snapshot: an event for this many of its bytes. To copy a state of a gigabyte takes as long as to
    /// pull a million events, so there is no point in doing it more often.
    pub(crate) const BYTES_AN_EVENT: u64 = 1_000;

    /// Snapshots of a store that are kept: the one that devices get, and the one before, which some may still be
    /// downloading.
    pub(crate) const OF_A_STORE: usize = 2;

    /// Snapshots of all stores together. Each takes as much disk as its state.
    pub(crate) const IN_ALL: usize = 16;

    /// How long a snapshot is kept. Whoever asks later gets a new one.
    pub(crate) const FOR: Duration = Duration::from_secs(24 * 3_600);

    /// How often it is checked whether one is older.
    pub(crate) const TIDY_EVERY: Duration = Duration::from_secs(3_600);

    /// How long a device waits for a snapshot that is being made. Less than a device or a proxy waits for an answer. It
    /// comes back for it.
    pub(crate) const WAIT: Duration = Duration::from_secs(15);

    /// When it comes back, in seconds.
    pub(crate) const COME_BACK: u32 = 5;

    /// How long no snapshot of a store is made after that failed. Devices pull meanwhile.
    pub(crate) const AFTER_FAILURE: Duration = Duration::from_secs(300);

    /// Bytes of the disk that making a snapshot leaves free. They belong to the events that are still to come.
    pub(crate) const LEFT_FREE: u64 = 16 << 20;

    /// Bytes that are read and sent at a time, and held in memory for each download.
    pub(crate) const PIECE: usize = 64 << 10;
}

/// The snapshot that a device gets from a hub.
#[cfg(feature = "app")]
pub(crate) mod snapshot {
    use super::Duration;

    /// The largest snapshot that a device takes, in bytes.
    pub(crate) const LARGEST: u64 = 1 << 40;

    /// Bytes of the disk that a download leaves free. They belong to what is committed here meanwhile.
    pub(crate) const LEFT_FREE: u64 = 16 << 20;

    /// How long a hub may take to begin its answer: longer than ours waits for a snapshot that is being made.
    pub(crate) const ANSWER: Duration = Duration::from_secs(40);

    /// Bytes a second that a download has to bring. A modem of 1994 had more. Slower than that, the log itself is sooner
    /// there than nothing.
    pub(crate) const SLOWEST: u64 = 1_024;

    /// How long its speed is averaged.
    pub(crate) const MEASURED_OVER: Duration = Duration::from_secs(30);

    /// How long one snapshot may take, all attempts together. Then the log is pulled, of which every page is good at once.
    pub(crate) const LASTS: Duration = Duration::from_secs(4 * 3_600);

    /// Attempts in a row that may bring nothing.
    pub(crate) const IN_VAIN: u32 = 3;

    /// Bytes that an attempt has to bring to count as something.
    pub(crate) const SOMETHING: u64 = 64 << 10;

    /// Snapshots that may be begun. Each is another one than the one before, as its tag says.
    pub(crate) const BEGUN: u32 = 4;

    /// How often a store begins with a snapshot, as long as the process runs. Each after the first follows one that was given
    /// up. A hub that was restored takes one more.
    pub(crate) const TIMES: u32 = 2;

    /// How often a hub may say that its snapshot is not ready yet.
    pub(crate) const NOT_READY: u32 = 20;

    /// The longest that it can have a device wait each time.
    pub(crate) const LONGEST_REST: Duration = Duration::from_secs(30);

    /// Bytes that are written at a time.
    pub(crate) const PIECE: usize = 64 << 10;

    /// Pages of the history that a stream has to bring for the next one to begin at once.
    pub(crate) const SOME_PAGES: usize = 16;

    /// How long the history waits after an attempt that failed, at least and at most. It is in no hurry.
    pub(crate) const HISTORY_WAITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
}

/// Requests to a hub.
#[cfg(feature = "app")]
pub(crate) mod http {
    use super::Duration;

    /// How long a hub may take to accept a connection.
    pub(crate) const CONNECT: Duration = Duration::from_secs(10);

    /// How long a connection is kept for the next request. A hub keeps it longer, so no request goes out on one that is just
    /// closing. It is also shorter than the silence after which a stream is given up: the next attempt must not go out on a
    /// connection that died with the stream.
    pub(crate) const KEEP: Duration = Duration::from_secs(8);

    /// How long a connection is quiet before the system asks whether the hub is still there.
    pub(crate) const KEEPALIVE: Duration = Duration::from_secs(15);

    /// The longest time that a hub, or a proxy in front of it, can have a device wait with `Retry-After`.
    pub(crate) const LONGEST_REST: Duration = Duration::from_secs(300);

    /// How long a hub may take to answer a push.
    pub(crate) const ANSWER: Duration = Duration::from_secs(30);

    /// The largest answer to a push that is read, in bytes. The answer to 1,000 refused events has about 200 KB.
    pub(crate) const MAX_ANSWER: usize = 4 << 20;

    /// The largest problem that is read, in bytes. One with all points of a log has about 8 KB.
    pub(crate) const MAX_PROBLEM: usize = 64 << 10;

    /// Bytes that all answers and streams may hold together while they come. Enough for the largest pages of fifty stores.
    pub(crate) const MAX_UNDER_WAY: usize = 64 << 20;

    /// Bytes of each answer that don't count towards that. Hundreds of streams hold a short line now and then.
    pub(crate) const FREE: usize = 64 << 10;

    /// Stores that share a connection where it carries many requests at once (HTTP/2). Servers should allow a hundred
    /// requests (RFC 9113, section 6.5.2), and a store has up to three of them under way: a pull, a push and its history.
    /// One more than a server allows would wait for ever behind those that pull.
    pub(crate) const STORES_IN_A_LANE: usize = 32;
}

/// A stream of events, as it is read.
#[cfg(feature = "app")]
pub(crate) mod sse {
    use super::Duration;

    /// The longest event that is read, in bytes, with all that stands before it since the last one: a page of 1 MiB whose
    /// every byte is escaped, and its events' ids. Comments and lines without meaning count, or they could come without end.
    pub(crate) const MAX_EVENT: usize = 8 << 20;

    /// The line's buffer that is kept for the next line, in bytes. Memory past that is given back.
    pub(crate) const KEPT: usize = 64 << 10;

    /// Bytes a second that an event has to bring if it isn't whole after [`LONG`]. A modem of 1980 had more.
    pub(crate) const SLOWEST: u64 = 16;

    /// How long an event may be unfinished before its speed is looked at. Longer than the silence after which a stream is
    /// given up, so one that stands still for a moment may go on.
    pub(crate) const LONG: Duration = Duration::from_secs(30);
}

/// Who may sync, as it is stored.
pub(crate) mod access {
    use super::Duration;

    /// How long a link and its code are good: long enough to find the phone and type an address, short enough that a link
    /// that stays in a chat is soon worth nothing.
    pub(crate) const LASTS: Duration = Duration::from_secs(600);

    /// How long a link that is no longer good is remembered, so that its holder is told why.
    pub(crate) const REMEMBERED: Duration = Duration::from_secs(3_600);

    /// Links that are good at a time. The owner makes them, so this is only a bound on what a guess can hit.
    pub(crate) const OPEN: usize = 64;
}

/// Links that pair a device or a browser with a hub.
#[cfg(feature = "app")]
pub(crate) mod pairing {
    use super::Duration;

    /// The shortest nonce, in characters: 128 bits in hexadecimal. The token of a browser that types the code rests on it.
    pub(crate) const SHORTEST_NONCE: usize = 32;

    /// The longest nonce, in characters.
    pub(crate) const LONGEST_NONCE: usize = 128;

    /// How often `join` asks, in all, when no answer comes.
    pub(crate) const ASKED: u32 = 4;

    /// How long it waits before it asks again.
    pub(crate) const PAUSE: Duration = Duration::from_secs(2);

    /// How much of standard input is read for a link, in bytes. No browser takes a longer address.
    pub(crate) const LONGEST_LINK: u64 = 8 * 1024;

    /// The longest answer of a hub that is read, in bytes. A token with its name has 200.
    pub(crate) const ANSWER_BYTES: usize = 16 * 1024;
}

/// The tokens of a hub.
#[cfg(feature = "app")]
pub(crate) mod tokens {
    use super::Duration;

    /// How often a hub checks whether the file of tokens was changed.
    pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(500);

    /// The longest token that is looked at, in bytes. Ours have 67.
    pub(crate) const MAX_TOKEN: usize = 200;
}

/// A gateway and its NATS cluster.
#[cfg(feature = "app")]
pub(crate) mod nats {
    use super::Duration;

    /// The oldest nats-server that is trusted with events. 2.10.23 fixed that killed servers could forget a stream, and
    /// 2.12.3 that removing servers from a cluster could lose acknowledged messages.
    pub(crate) const OLDEST_SERVER: (u32, u32, u32) = (2, 12, 3);

    /// Copies of a stream that is made on a cluster: one server may die, and the others still agree.
    pub(crate) const REPLICAS: u64 = 3;

    /// Servers that an address may name. A cluster has three or five.
    pub(crate) const SERVERS: usize = 16;

    /// How long a server may take to be connected to.
    pub(crate) const CONNECT: Duration = Duration::from_secs(3);

    /// How often a connection is tried. A third try without an answer ends it.
    pub(crate) const PING: Duration = Duration::from_secs(2);

    /// The shortest wait before the next try to connect.
    pub(crate) const SHORTEST_WAIT: Duration = Duration::from_millis(50);

    /// The longest wait before the next try to connect. Gateways are few, and people wait behind them.
    pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(2);

    /// How long a leader may take to answer. Electing one takes a few seconds, and it is asked again.
    pub(crate) const ANSWER: Duration = Duration::from_secs(4);

    /// How often a gateway looks at stream and bucket. A token that is revoked elsewhere opens nothing here after as long.
    pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(1);

    /// Looks in a row without an answer, after which another server is connected to.
    pub(crate) const UNANSWERED: u32 = 3;

    /// How long what was heard of the bucket is believed. After that, pulls end: a device that was revoked meanwhile must not
    /// go on behind a partition. Electing a leader takes less.
    pub(crate) const BELIEVED: Duration = Duration::from_secs(30);

    /// How long a leader may go without a majority of its stream's servers. After as long, nats-server itself takes its lead away.
    pub(crate) const QUORUM: Duration = Duration::from_secs(10);

    /// Messages that are read at once.
    pub(crate) const READ_MESSAGES: usize = 256;

    /// Bytes that are read at once, beyond which the next message is left for later.
    pub(crate) const READ_BYTES: usize = 4 << 20;

    /// The largest document of what gateways share, in bytes: about five thousand tokens. A message of a NATS server has a
    /// megabyte.
    pub(crate) const BUCKET_MESSAGE: usize = 1_000_000;

    /// Earlier documents that a bucket keeps, for people who look into it.
    pub(crate) const HISTORY: u32 = 16;

    /// Requests of devices that wait for one store's turn. Each is a push or a pull that begins, and those have limits of their
    /// own.
    pub(crate) const REQUESTS: usize = 4_096;

    /// How long a device waits for a gateway to catch up or to publish, before it is told to come again. It gives up itself
    /// after 25 s, which would tell it less.
    pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

    /// Messages that are applied in one go. What else waits for the store, such as a click, comes in between.
    pub(crate) const AT_ONCE: usize = 64;

    /// How long to wait before a message is read again that a replica doesn't have yet.
    pub(crate) const READ_AGAIN: Duration = Duration::from_millis(5);

    /// How long a message may be late until the leader is asked whether there is one.
    pub(crate) const DOUBT_AFTER: Duration = Duration::from_secs(1);

    /// How long devices wait for an acknowledged message to be read, too.
    pub(crate) const ANSWER_WITHOUT_READING: Duration = Duration::from_millis(500);

    /// How long a store rests after it found the cluster in trouble, unless that is over sooner.
    pub(crate) const REST_AFTER_TROUBLE: Duration = Duration::from_secs(2);

    /// Stores that are made level with the stream at once, when a gateway starts. Each takes a thread and memory.
    pub(crate) const WARMING: usize = 16;

    /// How often the server says that it still tells what is new in the stream. After three times without it, it is asked anew.
    pub(crate) const HEARTBEAT: Duration = Duration::from_secs(2);

    /// Subjects that name no store, of which people are told. Whoever may publish could make up more.
    pub(crate) const ODD_SUBJECTS: usize = 100;

    /// How often a gateway tries in a row to change the bucket. Each time another one was faster.
    pub(crate) const SWAPS: u32 = 32;

    /// How long a move waits for a cluster that doesn't answer. Electing a leader takes less, and the move goes on when the
    /// command is given again.
    pub(crate) const MOVE_PATIENCE: Duration = Duration::from_secs(60);

    /// How long a move waits before it asks again.
    pub(crate) const MOVE_PAUSE: Duration = Duration::from_millis(250);
}
