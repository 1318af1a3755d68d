//! A chart of how many events happened when: one bar a day, a month or a year, as fits the time that it covers.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use jiff::civil::Date;

use super::days::{date_of, number};
use crate::limits::web::history::{LEAST_DAYS, MOST_DAYS, MOST_MONTHS};

/// What one bar stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Day,
    Month,
    Year,
}

/// How many events happened when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chart {
    pub(super) unit: Unit,
    /// Without gaps, the oldest first.
    pub(super) bars: Vec<Bar>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bar {
    first_day: Date,
    unit: Unit,
    pub(super) count: u64,
}

impl Unit {
    fn of(days: &RangeInclusive<i32>) -> Self {
        let length = days.end() - days.start() + 1;
        match length {
            _ if length <= MOST_DAYS => Self::Day,
            _ if length <= MOST_MONTHS * 31 => Self::Month,
            _ => Self::Year,
        }
    }

    /// The unit as a word: "by day".
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Month => "month",
            Self::Year => "year",
        }
    }

    /// Returns the first day of the unit that contains `day`.
    fn first_day(self, day: i32) -> i32 {
        match self {
            Self::Day => day,
            Self::Month => number(date_of(day).first_of_month()),
            Self::Year => number(date_of(day).first_of_year()),
        }
    }

    /// Returns the first day of the next unit.
    fn next(self, first_day: i32) -> i32 {
        let date = date_of(first_day);
        first_day
            + match self {
                Self::Day => 1,
                Self::Month => i32::from(date.days_in_month()),
                Self::Year => i32::from(date.days_in_year()),
            }
    }
}

impl Chart {
    /// Returns the chart of how many events happened on each of the `days`, up to `today`. Returns `None` if there were
    /// none.
    pub(super) fn of(days: &BTreeMap<i32, u64>, today: i32) -> Option<Self> {
        let (first, _) = days.first_key_value()?;
        // One bar alone would look like a wall.
        let unit = Unit::of(&(*first..=today));
        let first = if unit == Unit::Day { *first.min(&(today - LEAST_DAYS + 1)) } else { *first };
        let mut bars = Vec::new();
        let mut first_day = unit.first_day(first);
        while first_day <= today {
            let next = unit.next(first_day);
            let count = days.range(first_day..next).map(|(_, count)| count).sum();
            bars.push(Bar { first_day: date_of(first_day), unit, count });
            first_day = next;
        }
        Some(Self { unit, bars })
    }

    /// The highest bar.
    pub(super) fn most(&self) -> &Bar {
        self.bars.iter().max_by_key(|bar| bar.count).expect("BUG: a chart without bars")
    }

    pub(super) fn first(&self) -> &Bar {
        &self.bars[0]
    }

    pub(super) fn last(&self) -> &Bar {
        &self.bars[self.bars.len() - 1]
    }

    /// The height of a bar, of 100.
    pub(super) fn height(&self, bar: &Bar) -> String {
        // The smallest count is still seen.
        let height = match bar.count {
            0 => 0.0,
            count => (count as f64 / self.most().count as f64 * 100.0).max(1.0),
        };
        format!("{height:.1}")
    }
}

impl Bar {
    /// When it is, for people.
    pub(super) fn when(&self) -> String {
        let format = match self.unit {
            Unit::Day => "%-d %B %Y",
            Unit::Month => "%B %Y",
            Unit::Year => "%Y",
        };
        self.first_day.strftime(format).to_string()
    }
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;

    use super::*;

    fn chart(days: &[(Date, u64)], today: Date) -> Chart {
        let days = days.iter().map(|(day, count)| (number(*day), *count)).collect();
        Chart::of(&days, number(today)).expect("a chart")
    }

    fn counts(chart: &Chart) -> Vec<(String, u64)> {
        chart.bars.iter().map(|bar| (bar.when(), bar.count)).filter(|(_, count)| *count > 0).collect()
    }

    #[test]
    fn a_new_store_has_some_days_and_no_wall() {
        let today = date(2026, 3, 1);
        let chart = chart(&[(today, 5)], today);
        assert_eq!((chart.unit, chart.bars.len()), (Unit::Day, 14));
        assert_eq!(counts(&chart), [("1 March 2026".to_owned(), 5)]);
        assert_eq!(chart.first().when(), "16 February 2026");
    }

    #[test]
    fn the_longer_the_time_the_longer_the_unit_and_nothing_is_left_out() {
        let today = date(2026, 3, 1);
        let days = [(date(2026, 1, 1), 1), (date(2026, 2, 28), 2), (today, 3)];
        let months = [(date(2024, 2, 29), 4), (date(2025, 12, 31), 5)];
        let years = [(date(2001, 1, 1), 6)];
        let by_day = chart(&days, today);
        assert_eq!((by_day.unit, by_day.bars.len()), (Unit::Day, 60));
        let by_month = chart(&[&days[..], &months].concat(), today);
        assert_eq!((by_month.unit, by_month.bars.len()), (Unit::Month, 26));
        assert_eq!(counts(&by_month)[0], ("February 2024".to_owned(), 4));
        let by_year = chart(&[&days[..], &months, &years].concat(), today);
        assert_eq!((by_year.unit, by_year.bars.len()), (Unit::Year, 26));
        let sum = |chart: &Chart| chart.bars.iter().map(|bar| bar.count).sum::<u64>();
        assert_eq!([sum(&by_day), sum(&by_month), sum(&by_year)], [6, 15, 21]);
        assert_eq!(
            counts(&by_year),
            [("2001".to_owned(), 6), ("2024".to_owned(), 4), ("2025".to_owned(), 5), ("2026".to_owned(), 6)]
        );
    }

    #[test]
    fn one_among_millions_is_still_seen() {
        let today = date(2026, 3, 1);
        let chart = chart(&[(date(2026, 2, 28), 1), (today, 3_000_000)], today);
        let heights: Vec<_> = chart.bars[12..].iter().map(|bar| chart.height(bar)).collect();
        assert_eq!(heights, ["1.0", "100.0"]);
        assert_eq!(chart.height(chart.first()), "0.0");
    }
}
