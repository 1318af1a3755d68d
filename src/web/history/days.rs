//! The days of this machine's time zone, as numbers.

use std::collections::BTreeMap;

use jiff::civil::{Date, date};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use crate::limits::web::history::{EARLIEST, LATEST};

/// Day number 0.
const EPOCH: Date = date(1970, 1, 1);

/// Tells which day a time belongs to.
pub(super) struct Calendar {
    zone: TimeZone,
    /// The days that were asked for, each by its first millisecond, with its last one: looking one up takes a tenth of the
    /// time that a calendar takes.
    known: BTreeMap<i64, (i64, i32)>,
}

impl Calendar {
    /// Returns the calendar of this machine's time zone.
    pub(super) fn here() -> Self {
        Self::of(TimeZone::system())
    }

    fn of(zone: TimeZone) -> Self {
        Self { zone, known: BTreeMap::new() }
    }

    /// Returns the number of the day of a time in milliseconds since the Unix epoch. Returns `None` for a time that no
    /// clock that was ever set would tell.
    pub(super) fn day(&mut self, millis: u64) -> Option<i32> {
        if !(EARLIEST..LATEST).contains(&millis) {
            return None;
        }
        let millis = i64::try_from(millis).ok()?;
        if let Some((_, (last, day))) = self.known.range(..=millis).next_back()
            && millis <= *last
        {
            return Some(*day);
        }
        let time = Timestamp::from_millisecond(millis).ok()?.to_zoned_datetime(self.zone.clone());
        let day = number(time.date());
        let millis_of = |time: jiff::ZonedDateTime| time.timestamp().as_millisecond();
        if let (Ok(first), Ok(last)) = (time.start_of_day(), time.end_of_day()) {
            self.known.insert(millis_of(first), (millis_of(last), day));
        }
        Some(day)
    }
}

/// Returns the number of a date.
pub(super) fn number(date: Date) -> i32 {
    i32::try_from(date.duration_since(EPOCH).as_hours() / 24).expect("BUG: a calendar of millions of years")
}

/// Returns the date with that number.
pub(super) fn date_of(day: i32) -> Date {
    EPOCH.saturating_add(SignedDuration::from_hours(i64::from(day) * 24))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_begins_at_midnight_where_the_machine_is() {
        // 2026-03-01 23:30 in UTC.
        let late = 1_772_407_800_000;
        for (hours, expected) in [(0, date(2026, 3, 1)), (1, date(2026, 3, 2)), (-8, date(2026, 3, 1))] {
            let mut calendar = Calendar::of(TimeZone::fixed(jiff::tz::offset(hours)));
            for _ in 0..2 {
                assert_eq!(calendar.day(late).map(date_of), Some(expected), "{hours}");
                let next = calendar.day(late + 24 * 60 * 60 * 1_000).map(date_of);
                assert_eq!(next, expected.tomorrow().ok(), "{hours}");
            }
        }
    }

    #[test]
    fn a_clock_that_was_never_set_tells_no_day() {
        let mut calendar = Calendar::of(TimeZone::UTC);
        for millis in [0, 1, EARLIEST - 1, LATEST, (1 << 48) - 1] {
            assert_eq!(calendar.day(millis), None, "{millis}");
        }
        assert_eq!(calendar.day(EARLIEST).map(date_of), Some(date(2001, 1, 1)));
        assert_eq!(calendar.day(LATEST - 1).map(date_of), Some(date(2199, 12, 31)));
    }
}
