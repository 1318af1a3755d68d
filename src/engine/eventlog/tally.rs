//! A digest of rows that come and go: those in the outbox, and those set aside.
//!
//! The log grows only at its end, so a chain of hashes covers it. Pending events leave from anywhere and come back at
//! the front. Re-hashing all that remain each time would be quadratic. So each row is hashed with its number, and the
//! digest is the sum of these hashes modulo 2^256 (Bellare and Micciancio's AdHash). A row can be added or removed by
//! itself. A row that is changed, missing, duplicated or in another place leaves a sum that doesn't match.
//!
//! The sum detects a disk's mistakes. It doesn't stop an attacker who searches for rows with the same sum: anybody who
//! can write to the file can also replace the stored sum.

/// The sum of the hashes of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Tally([u64; 4]);

impl Tally {
    /// The number of bytes in which it is stored.
    pub(crate) const BYTES: usize = 32;

    /// Adds a row.
    pub(crate) fn add(&mut self, row: RowHash) {
        let mut carry = false;
        for (sum, part) in self.0.iter_mut().zip(row.0) {
            let (more, first) = sum.overflowing_add(part);
            let (more, second) = more.overflowing_add(u64::from(carry));
            (*sum, carry) = (more, first || second);
        }
    }

    /// Removes a row that was added before.
    pub(crate) fn take(&mut self, row: RowHash) {
        let mut borrow = false;
        for (sum, part) in self.0.iter_mut().zip(row.0) {
            let (less, first) = sum.overflowing_sub(part);
            let (less, second) = less.overflowing_sub(u64::from(borrow));
            (*sum, borrow) = (less, first || second);
        }
    }

    /// Reads a stored sum. Returns the sum of no rows if the number of bytes is wrong.
    pub(crate) fn from_slice(bytes: &[u8]) -> Self {
        bytes.try_into().map(|bytes: [u8; Self::BYTES]| Self(parts(&bytes))).unwrap_or_default()
    }

    pub(crate) fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes.chunks_exact_mut(8).zip(self.0).for_each(|(bytes, part)| bytes.copy_from_slice(&part.to_le_bytes()));
        bytes
    }
}

/// The hash of one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RowHash([u64; 4]);

impl RowHash {
    /// Hashes a row with BLAKE3: its number, the event's id, name and payload, and why it was set aside, if it was.
    /// Each field after the number is preceded by its length in bytes, as a 32-bit little-endian number.
    pub(crate) fn of(n: i64, id: &[u8], name: &str, args: Option<&str>, why: &str) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&n.to_le_bytes());
        for field in [id, name.as_bytes(), args.unwrap_or_default().as_bytes(), why.as_bytes()] {
            let length = u32::try_from(field.len()).expect("BUG: a field of an event above 4 GiB");
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(field);
        }
        Self(parts(blake3::hash(&bytes).as_bytes()))
    }

    /// Returns the part of the hash that is stored in the row itself. With it, a row shows by itself whether it is
    /// unchanged.
    pub(crate) fn short(self) -> i64 {
        self.0[0].cast_signed()
    }
}

fn parts(bytes: &[u8; 32]) -> [u64; 4] {
    let mut parts = [0; 4];
    let (words, _) = bytes.as_chunks::<8>();
    parts.iter_mut().zip(words).for_each(|(part, word)| *part = u64::from_le_bytes(*word));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(n: i64) -> RowHash {
        RowHash::of(n, &[n as u8; 16], "LikeAdded", None, "")
    }

    fn sum(rows: &[RowHash]) -> Tally {
        let mut sum = Tally::default();
        rows.iter().for_each(|row| sum.add(*row));
        sum
    }

    #[test]
    fn rows_leave_in_any_order() {
        let rows: Vec<_> = (-50..50).map(row).collect();
        let mut all = sum(&rows);
        for at in (0..100).step_by(3) {
            all.take(rows[at]);
        }
        let left: Vec<_> = (0..100).filter(|at| at % 3 != 0).map(|at| rows[at]).collect();
        assert_eq!(all, sum(&left));
        left.iter().rev().for_each(|row| all.take(*row));
        assert_eq!(all, Tally::default());
    }

    #[test]
    fn carries_go_through() {
        let most = RowHash([u64::MAX; 4]);
        let one = RowHash([1, 0, 0, 0]);
        assert_eq!(sum(&[most, one]), Tally::default());
        let mut none = Tally::default();
        none.take(one);
        assert_eq!(none, sum(&[most]));
    }

    #[test]
    fn content_order_and_number_of_rows_count() {
        let (one, two) = (row(1), row(2));
        assert_ne!(sum(&[one, two]), sum(&[one]));
        assert_ne!(sum(&[one, two]), sum(&[one, two, two]));
        let swapped =
            [RowHash::of(2, &[1; 16], "LikeAdded", None, ""), RowHash::of(1, &[2; 16], "LikeAdded", None, "")];
        assert_ne!(sum(&[one, two]), sum(&swapped));
        assert_ne!(RowHash::of(1, &[1; 16], "a", Some("b"), ""), RowHash::of(1, &[1; 16], "ab", None, ""));
        assert_ne!(RowHash::of(1, &[1; 16], "a", Some("b"), ""), RowHash::of(1, &[1; 16], "a", None, "b"));
    }

    /// The hash is stored in every eventlog that has pending events.
    #[test]
    fn the_hash_of_a_row_is_fixed() {
        let row = RowHash::of(7, &[7; 16], "NoteAdded", Some(r#"{"text":"hi"}"#), "");
        assert_eq!(row.short(), 3_438_752_000_861_448_234);
    }
}
