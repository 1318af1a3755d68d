//! What was written to the state: the tables and, where known for certain, the rows.

use std::collections::{HashMap, HashSet};
use std::ops::{BitOr, BitOrAssign};

use crate::limits::engine::live::WRITTEN_ROWS;

/// A set of a schema's tables. The tables from the 64th on share one place. That costs at most a needless re-run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Tables(pub(super) u64);

impl Tables {
    pub(crate) const NONE: Self = Self(0);
    pub(crate) const ALL: Self = Self(u64::MAX);

    pub(super) fn nth(index: usize) -> Self {
        Self(1 << index.min(63))
    }

    /// Returns the place of the only table in the set, unless that place may stand for several tables.
    pub(super) fn only(self) -> Option<usize> {
        let place = self.0.trailing_zeros() as usize;
        (self.0.count_ones() == 1 && place < 63).then_some(place)
    }

    pub(crate) fn touches(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl BitOr for Tables {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Tables {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// The tables that statements wrote. In those in `whole`, other rows may have changed than the ones reported one by
/// one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Written {
    pub(super) tables: Tables,
    pub(super) whole: Tables,
}

impl Written {
    pub(super) const ALL: Self = Self { tables: Tables::ALL, whole: Tables::ALL };
}

impl BitOr for Written {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self { tables: self.tables | other.tables, whole: self.whole | other.whole }
    }
}

/// What commits and undone transactions have changed.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// The tables that were written.
    pub(super) tables: Tables,
    /// Those of them in which any row may have changed.
    pub(super) whole: Tables,
    /// The rows that were written, by the place of their table.
    pub(super) rows: HashMap<usize, HashSet<i64>>,
}

impl Changes {
    pub(super) fn written(&self) -> Written {
        Written { tables: self.tables, whole: self.whole }
    }

    /// Adds `tables`. Only the rows reported one by one changed in them.
    pub(super) fn add_tables(&mut self, tables: Tables) {
        self.tables |= tables;
    }

    /// Adds `tables`, in which any row may have changed.
    pub(super) fn add_whole(&mut self, tables: Tables) {
        self.tables |= tables;
        self.whole |= tables;
        self.rows.retain(|place, _| !tables.touches(Tables::nth(*place)));
    }

    /// Adds the written row `row` of the table at `place`.
    pub(super) fn add_row(&mut self, place: usize, row: i64) {
        let table = Tables::nth(place);
        self.tables |= table;
        if self.whole.touches(table) {
            return;
        }
        let rows = self.rows.entry(place).or_default();
        rows.insert(row);
        if rows.len() > WRITTEN_ROWS {
            self.add_whole(table);
        }
    }

    /// Adds the changes in `other`.
    pub(super) fn add(&mut self, other: &Self) {
        self.tables |= other.tables;
        self.add_whole(other.whole);
        for (place, rows) in &other.rows {
            for row in rows {
                self.add_row(*place, *row);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_remembered_until_there_are_too_many_or_all_of_them_changed() {
        let mut changes = Changes::default();
        changes.add_row(1, 7);
        changes.add_row(1, 7);
        changes.add_row(2, 8);
        assert_eq!((changes.tables, changes.whole), (Tables::nth(1) | Tables::nth(2), Tables::NONE));
        assert_eq!(changes.rows[&1], HashSet::from([7]));
        for row in 0..=WRITTEN_ROWS {
            changes.add_row(2, i64::try_from(row).expect("a small number"));
        }
        assert_eq!(changes.whole, Tables::nth(2));
        assert!(!changes.rows.contains_key(&2));
        let mut both = Changes::default();
        both.add_row(1, 9);
        both.add(&changes);
        assert_eq!((both.whole, both.rows[&1].len()), (Tables::nth(2), 2));
        both.add_whole(Tables::nth(1));
        both.add_row(1, 10);
        assert!(both.rows.is_empty());
    }

    #[test]
    fn tables_that_share_a_place_are_never_the_only_one() {
        assert_eq!(Tables::nth(3).only(), Some(3));
        for tables in [Tables::NONE, Tables::nth(1) | Tables::nth(2), Tables::nth(63), Tables::nth(80)] {
            assert_eq!(tables.only(), None);
        }
    }
}
