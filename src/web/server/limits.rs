//! How much of the server its peers may use, fitted to the number of files that this process may open.

use std::time::Duration;

use crate::limits::web::server;

/// How much of the server one peer, or all of them, may use. The reasons stand beside the numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Open connections.
    pub(crate) connections: usize,
    /// The time for the head of a request, from its first byte. The first head of a connection has as long from its opening.
    pub(crate) header_read: Duration,
    /// How long a connection may rest after a request.
    pub(crate) idle: Duration,
    /// The size of a connection's buffer for reading, and of the one for writing, in bytes.
    pub(crate) buffer_bytes: usize,
    /// How long a peer may take nothing of what we send.
    pub(crate) write_stall: Duration,
    /// How long a peer may leave what we sent without acknowledgement.
    pub(crate) unacknowledged: Duration,
    /// How long we discard what a peer still sends after the last answer.
    pub(crate) linger: Duration,
    /// How long we still take requests after the shutdown began.
    pub(crate) last_call: Duration,
    /// How long the shutdown then waits for requests in flight.
    pub(crate) drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: server::CONNECTIONS,
            header_read: server::HEADER_READ,
            idle: server::IDLE,
            buffer_bytes: server::BUFFER_BYTES,
            write_stall: server::WRITE_STALL,
            unacknowledged: server::UNACKNOWLEDGED,
            linger: server::LINGER,
            last_call: server::LAST_CALL,
            drain: server::DRAIN,
        }
    }
}

impl Limits {
    /// Fits the connections into what [`raise_open_file_limit`] found. Half of it is left to the stores: without a free
    /// descriptor no store opens, and no connection can even be refused.
    pub(crate) fn within_open_files(mut self, open_files: Option<u64>) -> Self {
        if let Some(share) = share(open_files) {
            self.connections = self.connections.min(share.max(1));
        }
        self
    }

    /// At most `most` event streams, fewer if other connections need the room.
    pub(crate) fn streams(&self, most: usize) -> usize {
        most.min(self.connections - self.connections.div_ceil(server::STREAMS_LEAVE))
    }
}

/// At most `most` open stores, fewer if their half of the files has no room for them.
pub(crate) fn stores_within_open_files(most: usize, open_files: Option<u64>) -> usize {
    share(open_files).map_or(most, |share| most.min((share / server::FILES_OF_A_STORE).max(1)))
}

fn share(open_files: Option<u64>) -> Option<usize> {
    open_files.map(|open_files| usize::try_from(open_files / 2).unwrap_or(usize::MAX))
}

/// Lets this process open as many files as its hard limit allows, and returns how many that is. Connections and stores
/// are files, and the usual soft limit of 1,024 is meant for programs that use `select`. `None` means that there is no
/// limit, or that none is known.
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
