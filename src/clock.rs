//! The clock of this machine, which may say anything: before 1970 when a battery is empty, or thousands of years ahead.
//!
//! Nothing is ordered or recognized by it. It dates what people read, so a time that can't be said is one at the edge.

use std::time::{SystemTime, UNIX_EPOCH};

/// The last millisecond that an event's id has room for, in the year 10889.
const LAST: u64 = (1 << 48) - 1;

/// What the clock says, in milliseconds since the Unix epoch; 0 before that.
pub(crate) fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).map_or(LAST, |millis| millis.min(LAST))
}

/// Whether the clock stands before the Unix epoch, which some of what others wrote doesn't survive.
pub(crate) fn is_before_epoch() -> bool {
    SystemTime::now() < UNIX_EPOCH
}
