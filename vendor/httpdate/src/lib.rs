//! What hyper uses of the crate `httpdate`: a time as HTTP writes it (RFC 9110, section 5.6.7).
//!
//! hyper asks for it whenever it has to do with a connection, whether or not a `Date` header is to be sent, and the crate of
//! that name panics before 1970 and after 9999: with such a clock no request was answered at all. Here the clock may say
//! anything; what can't be written becomes the first or the last date that can.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

/// The last second of the year 9999, which is the last that four digits can tell.
const LAST: u64 = 253_402_300_799;

const DAY: u64 = 86_400;

/// A time, in whole seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HttpDate(u64);

impl From<SystemTime> for HttpDate {
    fn from(time: SystemTime) -> Self {
        Self(time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().min(LAST)))
    }
}

impl fmt::Display for HttpDate {
    /// Such as `Sun, 06 Nov 1994 08:49:37 GMT`; always of this length.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, time) = (self.0 / DAY, self.0 % DAY);
        // 1970 began with a Thursday.
        let weekday = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"][(days % 7) as usize];
        let (year, month, day) = date(days);
        let month = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"][month];
        let (hour, minute, second) = (time / 3_600, time / 60 % 60, time % 60);
        write!(f, "{weekday}, {day:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT")
    }
}

/// Year, month from 0, and day from 1, of the day that is so many days after 1 January 1970.
fn date(mut days: u64) -> (u64, usize, u64) {
    // Calendars repeat after 400 years, which have 146,097 days.
    let mut year = 1970 + days / 146_097 * 400;
    days %= 146_097;
    while days >= length_of(year) {
        days -= length_of(year);
        year += 1;
    }
    let february = if length_of(year) == 366 { 29 } else { 28 };
    let mut month = 0;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

fn length_of(year: u64) -> u64 {
    let leaps = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    if leaps { 366 } else { 365 }
}
