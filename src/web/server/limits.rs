//! How much of the server its peers may take, fitted to the files that this process may open.

use std::time::Duration;

/// How much of the server one peer, or all of them, may take up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Open connections. More than the open event streams, so that full streams leave room for posts. When all are taken,
    /// the one that keeps us waiting longest makes room for the next.
    pub(crate) connections: usize,
    /// For the head of a request, from its first byte. The first head of a connection has as long from its opening.
    pub(crate) header_read: Duration,
    /// How long a connection is kept that has brought a request and now brings nothing. Longer than proxies keep theirs
    /// (Caddy two minutes, nginx one): if we hung up first, a request that was on its way would be lost, and a proxy may not
    /// repeat a post.
    pub(crate) idle: Duration,
    /// Buffer of a connection for reading and for writing, in bytes; a request head that is larger gets 431. Twice what
    /// the guard allows, so that its page answers the common case.
    pub(crate) buffer_bytes: usize,
    /// How long a peer may take nothing of what we send. Long, because an event stream to a suspended page stalls, too;
    /// but not for ever, because nothing else ends it.
    pub(crate) write_stall: Duration,
    /// How long what we sent may stay without the peer's acknowledgement: the link is down, and nobody said goodbye. Event
    /// streams say something every few seconds, so a peer that is gone is noticed within this time. Where the system
    /// has no such limit, it gives up by itself after a quarter of an hour.
    pub(crate) unacknowledged: Duration,
    /// How long to discard what a peer still sends after the last answer. Closing at once would reset the connection,
    /// and the peer would lose the answer that says why.
    pub(crate) linger: Duration,
    /// How long requests are still taken after the shutdown began. Some were sent before it, and sit in a socket that
    /// the runtime hasn't looked at yet; dropping them would turn a stop into errors.
    pub(crate) last_call: Duration,
    /// How long the shutdown then waits for requests in flight. Leaves the stores the rest of five seconds to close.
    pub(crate) drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 17_000,
            header_read: Duration::from_secs(10),
            idle: Duration::from_secs(130),
            buffer_bytes: 64 * 1024,
            write_stall: Duration::from_secs(300),
            unacknowledged: Duration::from_secs(60),
            linger: Duration::from_secs(1),
            last_call: Duration::from_millis(100),
            drain: Duration::from_millis(3_900),
        }
    }
}

/// Files of an open store: two databases, their WALs, the witness, and what a checkpoint or a reader opens for a moment.
const FILES_OF_A_STORE: usize = 8;

/// Of so many connections, one is kept free of event streams, and so for posts.
const STREAMS_LEAVE: usize = 6;

impl Limits {
    /// Fits the connections into what [`raise_open_file_limit`] found, and leaves half of it to the stores: without a
    /// free descriptor no store opens, and no connection is even refused.
    pub(crate) fn within_open_files(mut self, open_files: Option<u64>) -> Self {
        if let Some(share) = share(open_files) {
            self.connections = self.connections.min(share.max(1));
        }
        self
    }

    /// As many event streams as leave connections to others, of `most`.
    pub(crate) fn streams(&self, most: usize) -> usize {
        most.min(self.connections - self.connections.div_ceil(STREAMS_LEAVE))
    }
}

/// As many open stores, of `most`, as the half of the files that is theirs has room for.
pub(crate) fn stores_within_open_files(most: usize, open_files: Option<u64>) -> usize {
    share(open_files).map_or(most, |share| most.min((share / FILES_OF_A_STORE).max(1)))
}

fn share(open_files: Option<u64>) -> Option<usize> {
    open_files.map(|open_files| usize::try_from(open_files / 2).unwrap_or(usize::MAX))
}

/// Lets this process open as many files as its hard limit allows, and returns how many that is: connections and
/// stores are files, and the usual soft limit of 1,024 is for programs that use `select`. `None` means no limit, or
/// none known.
pub(crate) fn raise_open_file_limit() -> Option<u64> {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        if current == maximum {
            return current;
        }
        // macOS reports no hard limit, but refuses more than this.
        const WITHOUT_HARD_LIMIT: u64 = 10_240;
        let raised = maximum.or(current.max(Some(WITHOUT_HARD_LIMIT)));
        match setrlimit(Resource::Nofile, Rlimit { current: raised, maximum }) {
            Ok(()) => raised,
            Err(error) => {
                tracing::warn!(
                    %error,
                    "the limit of open files stays at {current:?}; raise it with `ulimit -n` to serve more connections"
                );
                current
            }
        }
    }
    #[cfg(not(unix))]
    None
}
