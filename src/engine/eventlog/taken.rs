//! A record of how far back the log was cut each time events were taken back out of it.
//!
//! A reader that stopped at some place comes back with the generation of that time. This record tells it which of the
//! places it has seen are still what they were.

use super::file::{meta, set_meta};
use super::{Eventlog, Result};
use crate::engine::place::{Generation, Seq};
use crate::limits::engine::eventlog::CUTS;

/// The cuts that still matter, over a range of generations without gaps. A cut that goes at least as far back as an
/// earlier one replaces it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Cuts {
    /// The oldest generation of the range, before the first cut.
    since: u64,
    /// The generation after the last cut.
    until: u64,
    /// For each cut, the generation that began with it and the place after which events were taken back.
    cuts: Vec<(u64, u64)>,
}

impl Cuts {
    /// Parses the stored text. Returns `None` if it isn't such a text.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(' ');
        let pair = |part: &str| {
            let (one, other) = part.split_once(':')?;
            Some((one.parse().ok()?, other.parse().ok()?))
        };
        let (since, until) = pair(parts.next()?)?;
        Some(Self { since, until, cuts: parts.map(pair).collect::<Option<_>>()? })
    }

    fn text(&self) -> String {
        let pairs = [(self.since, self.until)].into_iter().chain(self.cuts.iter().copied());
        pairs.map(|(one, other)| format!("{one}:{other}")).collect::<Vec<_>>().join(" ")
    }

    /// Records that events after `after` are taken back, which ends `generation`.
    fn cut(&mut self, generation: u64, after: u64) {
        if self.until != generation {
            // A version of the program that keeps no such record was here.
            *self = Self { since: generation, until: generation, cuts: Vec::new() };
        }
        self.until += 1;
        self.cuts.retain(|(_, earlier)| *earlier < after);
        self.cuts.push((self.until, after));
        if self.cuts.len() > CUTS {
            let (began, _) = self.cuts.remove(0);
            self.since = began;
        }
    }

    /// Returns the place up to which the log is what it was in `generation`. `now` is the current generation. Returns 0
    /// if it isn't the one after the last cut, or if `generation` is before the range.
    fn kept(&self, generation: u64, now: u64) -> u64 {
        if self.until != now || generation < self.since {
            return 0;
        }
        let later = self.cuts.iter().filter(|(began, _)| *began > generation);
        later.map(|(_, after)| *after).min().unwrap_or(u64::MAX)
    }
}

impl Eventlog {
    /// Records that the events after `after` are taken back. Has to run before the generation is raised.
    pub(super) fn remember_cut(&self, after: Seq) -> Result<()> {
        let mut cuts = self.cuts()?;
        cuts.cut(self.tip.generation.0, after.0);
        set_meta(&self.conn, "cuts", cuts.text())
    }

    /// Returns the place up to which the log is what it was in that generation. Whatever came after it was taken back
    /// since.
    pub(crate) fn kept_since(&self, generation: Generation) -> Result<Seq> {
        let now = self.tip.generation;
        if generation == now {
            return Ok(Seq(u64::MAX));
        }
        Ok(Seq(self.cuts()?.kept(generation.0, now.0)))
    }

    fn cuts(&self) -> Result<Cuts> {
        let text: Option<String> = meta(&self.conn, "cuts")?;
        Ok(text.and_then(|text| Cuts::parse(&text)).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_learns_how_much_of_what_it_saw_is_left() {
        let mut cuts = Cuts::default();
        for (generation, after) in [(0, 50), (1, 20), (2, 30), (3, 40)] {
            cuts.cut(generation, after);
        }
        assert_eq!([0, 1, 2, 3, 4].map(|generation| cuts.kept(generation, 4)), [20, 20, 30, 40, u64::MAX]);
        assert_eq!(Cuts::parse(&cuts.text()), Some(cuts));
    }

    #[test]
    fn who_comes_from_a_time_without_an_account_begins_anew() {
        let mut cuts = Cuts::default();
        cuts.cut(0, 50);
        assert_eq!(cuts.kept(0, 2), 0, "another version took events back and kept no account");
        cuts.cut(2, 60);
        assert_eq!([0, 1, 2, 3].map(|generation| cuts.kept(generation, 3)), [0, 0, 60, u64::MAX]);
        for text in ["", "1", "1:2:3", "a:b", "0:1 x:y"] {
            assert_eq!(Cuts::parse(text), None, "{text}");
        }
    }

    #[test]
    fn there_are_only_so_many_cuts() {
        let mut cuts = Cuts::default();
        for generation in 0..100 {
            cuts.cut(generation, 1_000 + generation);
        }
        assert_eq!(cuts.cuts.len(), CUTS);
        assert_eq!([0, 35, 36, 99].map(|generation| cuts.kept(generation, 100)), [0, 0, 1_036, 1_099]);
    }
}
