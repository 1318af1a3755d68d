//! Limits of the web floor: what strangers may send, hold and keep us waiting for.

use std::time::Duration;

/// How much there is of something, and who can rely on which part of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quota {
    /// All of it.
    pub(crate) total: usize,
    /// What the owner, the tokens and the visitors can have whatever the others take.
    pub(crate) kept: [usize; 3],
    /// The most that one token can have.
    pub(crate) a_token: usize,
}

/// How often something may happen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    /// This many times at once.
    pub(crate) burst: f64,
    /// And then this many times a second.
    pub(crate) per_second: f64,
}

/// The server loop.
pub(crate) mod server {
    use super::Duration;

    /// Open connections. There are more than open event streams, so full streams leave room for posts. When all are taken,
    /// the one that keeps us waiting longest makes room for the next.
    pub(crate) const CONNECTIONS: usize = 17_000;

    /// Connections that wait in the system until they are accepted. When a server is back, all its pages connect at once;
    /// a connection that finds no place is tried again by the peer's system after a second, then after two more, and so on. The
    /// usual number is 128. The system may allow less than ours (on Linux, `net.core.somaxconn`).
    pub(crate) const BACKLOG: u32 = 4_096;

    /// How long the head of a request may take, from its first byte, or the first one of a connection from its opening. It
    /// bounds silent and half-sent connections alike.
    pub(crate) const HEADER_READ: Duration = Duration::from_secs(10);

    /// How long a connection may rest after a request. Longer than proxies keep theirs (Caddy two minutes, nginx one): if we
    /// hung up first, a post that was just on its way would be lost, and a proxy may not repeat it.
    pub(crate) const IDLE: Duration = Duration::from_secs(130);

    /// A connection's buffer for reading, and the one for writing, in bytes. A larger request head gets 431. This is twice
    /// what the guard allows, so the guard's page answers the common case.
    pub(crate) const BUFFER_BYTES: usize = 2 * super::guard::HEAD_BYTES;

    /// How long a peer may take nothing of what we send. Long, because an event stream to a suspended page stalls, too. Not
    /// for ever, because nothing else ends it.
    pub(crate) const WRITE_STALL: Duration = Duration::from_secs(300);

    /// How long a peer may leave what we sent without acknowledgement: the link is down, and nobody said goodbye. Event
    /// streams say something every few seconds, so a peer that is gone is noticed within this time. Where the system
    /// has no such limit, it gives up by itself after a quarter of an hour.
    pub(crate) const UNACKNOWLEDGED: Duration = Duration::from_secs(60);

    /// How long to discard what a peer still sends after the last answer. Closing at once would reset the connection, and
    /// the peer would lose the answer that says why.
    pub(crate) const LINGER: Duration = Duration::from_secs(1);

    /// How long requests are still taken after the shutdown began. Some were sent before it, and sit in a socket that
    /// the runtime hasn't looked at yet; dropping them would turn a stop into errors.
    pub(crate) const LAST_CALL: Duration = Duration::from_millis(100);

    /// How long the shutdown then waits for requests in flight. It leaves the stores the rest of the shutdown's time.
    pub(crate) const DRAIN: Duration = Duration::from_millis(3_900);

    /// Bytes of an event stream that are gathered to be written at once.
    pub(crate) const AT_ONCE: usize = 16 * 1024;

    /// Bytes that a peer may send behind its request for an event stream. Nobody asked for them, and they are ignored.
    pub(crate) const UNASKED: usize = 4 * 1024;

    /// Connections there may be beyond the limit while those that had to make room go away.
    pub(crate) const GOING: usize = 64;

    /// Bytes of a head that are nothing special, and may come in pieces.
    pub(crate) const LIGHT: usize = 4 * 1024;

    /// Bytes of larger heads that aren't whole yet, of all connections together. The buffers that hold them are up to twice
    /// as large. No browser sends such a head in more than a moment.
    pub(crate) const HEADS: usize = 8 << 20;

    /// Bytes that the system keeps for a peer until it takes them; Linux doubles it. By itself it would grow to several
    /// megabytes, which thousands of peers that read nothing would fill. This much goes out every round trip.
    pub(crate) const SEND_BUFFER: usize = 128 * 1024;

    /// Files of an open store: two databases, their WALs, the witness, and what a checkpoint or a reader opens for a moment.
    pub(crate) const FILES_OF_A_STORE: usize = 8;

    /// One in this many connections is kept free of event streams, and so free for posts.
    pub(crate) const STREAMS_LEAVE: usize = 6;
}

/// Static files.
pub(crate) mod assets {
    /// The largest file that is compressed, in bytes. The first one who asks for such a file waits 0.3 s for it. Larger
    /// files are pictures and sound, which are compressed as they are.
    pub(crate) const GZIP: usize = 4 << 20;

    /// A file is served compressed if that saves at least one byte in this many. Less isn't worth the browser's time.
    pub(crate) const WORTH: usize = 10;
}

/// The guard in front of every route.
pub(crate) mod guard {
    use super::Duration;
    use crate::limits::engine::event::MAX_ARGS;

    /// The longest URI, in bytes. Ours are shorter than 200; the rest is somebody trying.
    pub(crate) const URI_BYTES: usize = 8 * 1024;

    /// The names and values of all headers together, in bytes. Cookies of all programs on `localhost` end up here.
    /// The HTTP parser's own limit is higher, so a browser gets a page that says what to do.
    pub(crate) const HEAD_BYTES: usize = 32 * 1024;

    /// The largest form, in bytes, unless the app says otherwise. Any event that fits into an eventlog can be posted: a form
    /// sends most characters that aren't ASCII letters as three for each byte.
    pub(crate) const FORM_BYTES: u64 = 3 * MAX_ARGS as u64 + 4 * 1024;

    /// The most fields of a form. Each takes more room in memory and on the page of a refusal than it did in the request.
    pub(crate) const FORM_FIELDS: usize = 1_000;

    /// How long a form may take, all in all.
    pub(crate) const FORM_PATIENCE: Duration = Duration::from_secs(10);

    /// The largest body for sync, in bytes: a push of full size, and the largest event with its envelope that still fitted
    /// in.
    pub(crate) const SYNC_BODY_BYTES: u64 = crate::limits::sync::page::BYTES as u64 + 128 * 1024;

    /// How long such a body may stand still.
    pub(crate) const SYNC_PATIENCE: Duration = Duration::from_secs(10);

    /// How long an import may stand still. Its length has no limit, and it may be typed by hand into a pipe.
    pub(crate) const CONTROL_PATIENCE: Duration = Duration::from_secs(60);
}

/// What is shared out among the owner, the tokens and the visitors.
pub(crate) mod shares {
    use super::{Quota, Rate};

    /// Bytes of request bodies held at a time, until they are answered. A push of full size takes several times its bytes
    /// while it is decoded, so this is a tenth of what a small machine has.
    pub(crate) const BODIES: Quota = Quota { total: 48 << 20, kept: [4 << 20, 24 << 20, 4 << 20], a_token: 12 << 20 };

    /// Bytes of pages in pull streams that are larger than the least. Without a part of it a pull goes on in small pages. A
    /// client that reads nothing keeps what it was sent until it is disconnected.
    pub(crate) const PAGES: Quota = Quota { total: 64 << 20, kept: [0, 64 << 20, 0], a_token: 8 << 20 };

    /// New stores of all visitors together, or of one browser that an app's own routes let in: this many at once, and then
    /// this many an hour. Anyone who can post can make one, and a store is for good.
    pub(crate) const VISITORS_STORES: Rate = Rate { burst: 100.0, per_second: 100.0 / 3_600.0 };

    /// The part of all stores that one token can have made: one in this many.
    pub(crate) const TOKENS_STORES: u64 = 4;

    /// Pull streams that a token begins. A device begins one for each of its stores, so thousands at once are fine when a
    /// hub comes back. A hundred a second for ever are not.
    pub(crate) const PULLS: Rate = Rate { burst: 10_000.0, per_second: 100.0 };

    /// What a pull costs of [`PULLS`] if the answer is that the logs differ: it takes as long as this many others.
    pub(crate) const DIVERGED: f64 = 20.0;

    /// Names of events that a token brings to stores that didn't know them: this many at once, and then this many an hour. A
    /// name is kept in memory while its store is open, and an app has a few dozen.
    pub(crate) const NAMES: Rate = Rate { burst: 10_000.0, per_second: 1_000.0 / 3_600.0 };

    /// Snapshots that are sent at a time. Each holds a file open and a piece of it in memory. Whoever finds no place comes
    /// back in a moment.
    pub(crate) const DOWNLOADS: Quota = Quota { total: 64, kept: [0, 48, 0], a_token: 8 };

    /// Digests of states that are computed for visitors at a time. Each reads a whole state.
    pub(crate) const DIGESTS: Quota = Quota { total: 2, kept: [0, 0, 0], a_token: 0 };

    /// Stores that don't exist here, for which visitors can have an instance ask its upstream.
    pub(crate) const VISITORS_LINKS: usize = 256;
}

/// The streams of pages.
pub(crate) mod live {
    use super::Duration;

    /// Open event streams of all stores together. Someone who is alone can have 10,000, beside the parts that are kept for
    /// others. Each is a connection, and there are a few thousand more of those.
    pub(crate) const STREAMS: usize = 13_750;

    /// How often a stream says that it is alive, so both ends notice when the other is gone.
    pub(crate) const PING_EVERY: Duration = Duration::from_secs(8);

    /// How long a browser's own `EventSource` waits before it connects again, in milliseconds. Each stream says another time
    /// between these, so pages don't all come back at once after a restart. Our script has a way of its own.
    pub(crate) const RETRY: (f64, f64) = (1_000.0, 5_000.0);

    /// Pages that one stream may serve. A browser's shared worker joins its tabs in one.
    pub(crate) const SETS: usize = 64;

    /// The shortest pause between two updates of a page: a frame of most screens.
    pub(crate) const SHORTEST_PAUSE: Duration = Duration::from_millis(16);

    /// The longest pause between two updates of a page, while one change follows another. The first one after a rest comes at
    /// once.
    pub(crate) const LONGEST_PAUSE: Duration = Duration::from_millis(500);

    /// Open pages at which the pause is longest. To write to a page costs about as much as to store an event.
    pub(crate) const CROWD: u32 = 4_000;

    /// Pages that are woken together. Somebody who clicks meanwhile waits for less than a millisecond.
    pub(crate) const GROUP: usize = 64;

    /// Different fragments that the pages of one store may follow. A commit may run the query of each again, on the thread
    /// that stores, and anybody can open pages with parameters of their own.
    pub(crate) const FRAGMENTS: usize = 1_000;
}

/// The hub's pull streams and its notes about devices.
pub(crate) mod hub {
    use super::Duration;

    /// Events that a pull stream sends at once to a client that isn't known to read. They are in memory for each.
    pub(crate) const LEAST_EVENTS: usize = 128;

    /// Bytes of them.
    pub(crate) const LEAST_BYTES: usize = 16 * 1024;

    /// A client that takes a page within this time gets one four times as large next.
    pub(crate) const QUICK: Duration = Duration::from_secs(1);

    /// Pulls of one store that a token may have. A device needs one, and its earlier ones end when they are noticed to be
    /// dead. But each reads what is new on the store's thread, where posts wait.
    pub(crate) const PULLS_OF_A_STORE: usize = 16;

    /// Stores of a device for which it is noted how far it has pulled. People look at it, and it is written as a whole.
    pub(crate) const NOTED: usize = 500;

    /// How often the log says that a token was refused. The lines in between are counted: whoever has no token may try a
    /// thousand times a second, and the log is on the owner's disk.
    pub(crate) const REFUSED_EVERY: Duration = Duration::from_secs(10);

    /// How often it is written down which device was seen when.
    pub(crate) const NOTE_EVERY: Duration = Duration::from_secs(5);
}

/// What commands ask of the process that has the data.
pub(crate) mod control {
    /// Bytes of an export that are handed over at a time.
    pub(crate) const PIECE: usize = 64 * 1024;

    /// Such pieces that may wait.
    pub(crate) const PIECES: usize = 4;
}

/// What other sites embed.
pub(crate) mod embed {
    use super::{Duration, Rate};

    /// The longest name of an item, in bytes. Names are mostly addresses, and 100 of these fit into no address anyway.
    pub(crate) const ITEM_BYTES: usize = 400;

    /// Items that one request may ask for: more than a page of a list shows.
    pub(crate) const TOGETHER: usize = 100;

    /// The largest form, in bytes: an id and the address of a page.
    pub(crate) const FORM_BYTES: u64 = 4 * 1024;

    /// Items that visitors can have made, in all. It leaves half of all stores to others.
    pub(crate) const ITEMS: usize = 5_000;

    /// New items of all clients together. `Origin` binds only browsers, so anybody can make them, and each is for good. A
    /// site with more posts than this names them with `items add`, which nobody has to wait for.
    pub(crate) const NEW_ITEMS: Rate = Rate { burst: 200.0, per_second: 200.0 / 3_600.0 };

    /// New items of one client. Somebody who reads a whole site may be the first to like this many.
    pub(crate) const NEW_ITEMS_OF_A_CLIENT: Rate = Rate { burst: 20.0, per_second: 20.0 / 3_600.0 };

    /// Likes of one client. An office or a school may share one address.
    pub(crate) const LIKES_OF_A_CLIENT: Rate = Rate { burst: 100.0, per_second: 1.0 };

    /// Streams of one client. A browser has one for each site; those who get none ask for the counts now and then.
    pub(crate) const STREAMS_OF_A_CLIENT: usize = 50;

    /// How long clients are known under the same key. Nobody can tell afterwards who was there before.
    pub(crate) const KEY_LIVES: Duration = Duration::from_secs(3_600);

    /// Clients that are counted one by one. More share one allowance, so a stranger with many addresses fills no memory.
    pub(crate) const CLIENTS: usize = 50_000;

    /// Proxies that are noted because they hide their clients. Nobody has more, and whoever is in the same network could
    /// pose as many.
    pub(crate) const HIDING_PROXIES: usize = 16;

    /// Stores that are opened at a time to read counts.
    pub(crate) const READ_AT_ONCE: usize = 16;

    /// How long until a count that couldn't be read is tried again.
    pub(crate) const READ_AGAIN: Duration = Duration::from_secs(5);

    /// How long an answer may wait for counts.
    pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

    /// The shortest pause between two messages of a stream. People read counts, they don't play them.
    pub(crate) const SHORTEST_PAUSE: Duration = Duration::from_millis(50);

    /// The longest pause, which streams keep when there are as many as there can be: any change wakes all of them.
    pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(1);

    /// Streams at which the pause is longest.
    pub(crate) const CROWD: u32 = 10_000;

    /// How long caches may keep counts, in seconds. Lists of posts then cost the hub one answer in this time.
    pub(crate) const COUNTS_KEPT: u32 = 10;

    /// How long caches may keep a badge, in seconds.
    pub(crate) const BADGE_KEPT: u32 = 60;

    /// How long browsers may keep the script, in seconds. It has one address, so this is how long an update takes.
    pub(crate) const SCRIPT_KEPT: u32 = 3_600;

    /// The most that an import can bring for one item. More is a typing error, and would take hours.
    pub(crate) const MOST_IMPORTED: u64 = 10_000_000;
}

/// The test stream of `doctor`.
pub(crate) mod probe {
    use super::Duration;

    /// How long a test may wait to be made, and how long its stream then stays open. A command gives up before that.
    pub(crate) const LASTS: Duration = Duration::from_secs(30);

    /// How many tests may wait. Only the owner begins them.
    pub(crate) const OPEN: usize = 16;
}

/// Guesses at the code of a pairing, which has 40 bits. A code is good for ten minutes, so it sees two windows at most, with
/// 2,000 tries of all clients together. While 64 codes are good, a guesser's chance at any of them is 2,000 · 64 / 2^40, one
/// in 8 million; while one is, one in 500 million. One client alone has a hundredth of that. The secret in a link has 128
/// bits, so nobody counts guesses at that.
pub(crate) mod guesses {
    use super::Duration;

    /// After this time, everybody has all tries again.
    pub(crate) const WINDOW: Duration = Duration::from_secs(600);

    /// Tries of one client. A person who mistypes needs a few. IPv6 addresses count by /64.
    pub(crate) const OF_A_CLIENT: u32 = 10;

    /// Tries of all clients together. When they are used up, links go on working.
    pub(crate) const OF_ALL: u32 = 1_000;
}

/// The cookie of a paired browser.
pub(crate) mod browser {
    /// How long a browser keeps it after it last opened the page, in seconds: 400 days, the most that browsers allow.
    pub(crate) const KEPT: u32 = 400 * 24 * 60 * 60;
}

/// Who brought events, and when.
pub(crate) mod history {
    /// The first time that is believed, in milliseconds since the Unix epoch: the beginning of 2001. Clocks that were never
    /// set begin in 1970, 1980 or 2000.
    pub(crate) const EARLIEST: u64 = 978_307_200_000;

    /// The first time that is too late: the beginning of 2200. With it, days are few enough to keep their counts in memory.
    pub(crate) const LATEST: u64 = 7_258_118_400_000;

    /// Devices that are named. More are a list that nobody reads.
    pub(crate) const DEVICES: usize = 50;

    /// Days, today included, that count as recent.
    pub(crate) const RECENT: i32 = 30;

    /// The days that a chart shows at least, so that the first one is no wall.
    pub(crate) const LEAST_DAYS: i32 = 14;

    /// The days that a chart shows one by one: two months. More bars would be too narrow on a phone.
    pub(crate) const MOST_DAYS: i32 = 62;

    /// The months that a chart shows one by one.
    pub(crate) const MOST_MONTHS: i32 = 48;
}

/// The list of all stores.
pub(crate) mod stores {
    use super::Duration;

    /// Stores on one page of the list. Each is opened for its count, which takes milliseconds and some open files.
    pub(crate) const LISTED: usize = 50;

    /// How long a page of the list waits for a store that is slow to open, such as one whose state is rebuilt.
    pub(crate) const PATIENCE: Duration = Duration::from_secs(3);
}

/// Visitors of an app.
pub(crate) mod visitor {
    /// How long a browser keeps the cookie after the last post, in seconds: 400 days, the most that browsers allow.
    pub(crate) const KEPT: u32 = 400 * 24 * 60 * 60;
}
