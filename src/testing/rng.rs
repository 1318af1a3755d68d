//! Choices that look random and follow from a seed, so that a failure can be seen again.

use crate::engine::{Envelope, EventId};

/// A source of choices: the same seed gives the same ones on every machine.
#[derive(Debug, Clone)]
pub struct Rng {
    state: u64,
    /// The ids of the events that were made with it.
    earlier: Vec<EventId>,
}

impl Rng {
    /// A source whose choices follow from `seed`.
    pub fn new(seed: u64) -> Self {
        Self { state: seed, earlier: Vec::new() }
    }

    /// Any number.
    // `SplitMix64`: small, and the same everywhere and for ever.
    #[expect(clippy::should_implement_trait, reason = "an endless iterator would offer a lot that nobody means")]
    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    ///
    /// # Panics
    ///
    /// When `end` is 0.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("BUG: a number below a size")
    }

    /// True `percent` times in a hundred.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    /// One of `from`.
    ///
    /// # Panics
    ///
    /// When `from` is empty.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// The id of an event that the simulation made before, for events that speak of others: the to-do that is done. Before
    /// there is any, an id that no event has.
    pub fn earlier(&mut self) -> EventId {
        if self.earlier.is_empty() {
            return self.new_id();
        }
        let nth = self.below(self.earlier.len());
        self.earlier[nth]
    }

    /// A new id. Its time says nothing about when it was made, as on devices whose clocks are wrong.
    pub fn new_id(&mut self) -> EventId {
        let mut random = [0; 10];
        random[..8].copy_from_slice(&self.next().to_le_bytes());
        EventId::from_parts(self.next() >> 17, random)
    }

    /// Makes the ids of an event part of those that [`earlier`](Self::earlier) gives.
    pub(super) fn remember(&mut self, event: &Envelope) {
        self.earlier.extend((0..event.events()).map(|nth| event.id.nth_of_batch(nth)));
    }
}
