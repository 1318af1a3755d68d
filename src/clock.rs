//! This machine's clock. It may say anything: before 1970 when a battery is empty, or thousands of years ahead.
//!
//! Nothing is ordered or recognized by it. It only dates what people read, so a time out of range becomes the nearest
//! one in range.

use std::time::{SystemTime, UNIX_EPOCH};

/// The last millisecond that an event's id has room for, in the year 10889.
const LAST: u64 = (1 << 48) - 1;

/// Returns what the clock says, in milliseconds since the Unix epoch, or 0 before that.
pub(crate) fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).map_or(LAST, |millis| millis.min(LAST))
}

/// Returns whether the clock is before the Unix epoch. Some dependencies can't cope with that.
pub(crate) fn is_before_epoch() -> bool {
    SystemTime::now() < UNIX_EPOCH
}
