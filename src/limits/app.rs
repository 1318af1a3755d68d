//! Limits of an app, and of the program that it becomes.

use std::time::Duration;

/// The longest name of an app, in bytes. It becomes a directory, a cookie and the prefix of environment variables.
pub(crate) const MAX_APP_NAME: usize = 32;

/// The longest name of a form, fragment, figure or command, in bytes.
pub(crate) const MAX_NAME: usize = 40;

/// How long a store that its hub refuses waits before it tries again by itself, in seconds: seldom enough not to be a
/// nuisance, often enough that a person who fixed it on the other side needn't come back here.
pub(crate) const RETRY_HALTED: u64 = 180;

/// How often a node says that its stores are still in use. Well below the time after which an unused one is no longer kept
/// in sync.
pub(crate) const ATTEND_EVERY: Duration = Duration::from_secs(60);

/// How long to wait for everything to end before ending anyway: well below the time after which service managers kill.
pub(crate) const SHUTDOWN: Duration = Duration::from_secs(5);

/// How long a program that begins anew tries to take its data directory again. Most commands have it for less.
pub(crate) const TAKEN_AGAIN: Duration = Duration::from_secs(10);

/// How long a command waits for an answer from the process that has the data, or from a hub.
pub(crate) const ANSWER: Duration = Duration::from_secs(30);

/// Kinds of events without effect that `status` shows. More of them usually have one cause.
pub(crate) const KINDS: usize = 8;

/// The longest path of a data directory, in bytes. SQLite takes paths of up to 512. The rest is for `stores`, the name of a
/// store (63), a database's name with SQLite's suffix, and one more directory in a backup under way.
#[cfg(unix)]
pub(crate) const LONGEST_PATH: usize = 400;

/// What `doctor` takes for a problem, and how long it looks.
pub(crate) mod doctor {
    use super::Duration;

    /// Less room than this on the disk is a problem, in bytes. A checkpoint and a rebuilt state need some of it at once.
    pub(crate) const FREE: u64 = 100_000_000;

    /// Bytes that are written to see whether that is possible.
    pub(crate) const PROBE: usize = 4 * 1024;

    /// How far two clocks may be apart. Answers take a second or two, and whoever sets clocks by a network is closer.
    pub(crate) const CLOCK: Duration = Duration::from_secs(60);

    /// How long a stream may take to begin. A hub sends its first message at once.
    pub(crate) const FIRST_EVENT: Duration = Duration::from_secs(10);

    /// How much of a stream is read for its first event, in bytes. A hub's has a few hundred.
    pub(crate) const EVENT_BYTES: usize = 16 * 1024;
}
