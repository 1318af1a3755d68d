//! Random-looking choices that follow from a seed, so a failure can be repeated.

use crate::engine::{Envelope, EventId};

/// A source of choices. The same seed gives the same choices on every machine.
#[derive(Debug, Clone)]
pub struct Rng {
    state: u64,
    /// The ids of the events made so far.
    earlier: Vec<EventId>,
}

impl Rng {
    /// Creates a source whose choices follow from `seed`.
    pub fn new(seed: u64) -> Self {
        Self { state: seed, earlier: Vec::new() }
    }

    /// Returns any number.
    // `SplitMix64` is small, and gives the same output on every machine and in every version.
    #[expect(clippy::should_implement_trait, reason = "an endless iterator would offer a lot that nobody means")]
    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number below `end`.
    ///
    /// # Panics
    ///
    /// When `end` is 0.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("BUG: a number below a size")
    }

    /// Returns true `percent` times in a hundred.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    /// Returns one of `from`.
    ///
    /// # Panics
    ///
    /// When `from` is empty.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// Returns the id of an event that the simulation made earlier, for events that refer to others, such as one that
    /// completes a to-do. Before there are any, returns an id that no event has.
    pub fn earlier(&mut self) -> EventId {
        if self.earlier.is_empty() {
            return self.new_id();
        }
        let nth = self.below(self.earlier.len());
        self.earlier[nth]
    }

    /// Makes a new id. Its timestamp says nothing about when it was made, as on devices whose clocks are wrong.
    pub fn new_id(&mut self) -> EventId {
        let mut random = [0; 10];
        random[..8].copy_from_slice(&self.next().to_le_bytes());
        EventId::from_parts(self.next() >> 17, random)
    }

    /// Adds the ids of an event to those that [`earlier`](Self::earlier) returns.
    pub(super) fn remember(&mut self, event: &Envelope) {
        self.earlier.extend((0..event.events()).map(|nth| event.id.nth_of_batch(nth)));
    }
}
