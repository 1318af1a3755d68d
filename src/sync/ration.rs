//! Limits how much memory all of a hub's answers take together, and how often a hub may ask for something costly. A
//! limit for each stream alone would add up to five hundred times as much.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::limits::sync::http::FREE;

use tokio::time::Instant;

/// Memory that many answers share.
#[derive(Debug)]
pub(crate) struct Ration {
    left: AtomicUsize,
}

/// The answers under way need more memory than there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the hub sends more at once than is held here; it is asked again in a moment")]
pub(crate) struct TooMuch;

/// A part of a ration, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Portion {
    ration: Arc<Ration>,
    taken: usize,
}

impl Ration {
    /// Creates a ration of this many bytes.
    pub(crate) fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self { left: AtomicUsize::new(bytes) })
    }

    /// Creates an empty portion of it.
    pub(crate) fn portion(self: &Arc<Self>) -> Portion {
        Portion { ration: Arc::clone(self), taken: 0 }
    }
}

impl Portion {
    /// Grows the portion to hold an answer of this many bytes. It never waits: a portion that waited would hold the
    /// memory that the others wait for.
    pub(crate) fn grow_to(&mut self, bytes: usize) -> Result<(), TooMuch> {
        let more = bytes.saturating_sub(FREE).saturating_sub(self.taken);
        let take = |left: usize| left.checked_sub(more);
        self.ration.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).map_err(|_| TooMuch)?;
        self.taken += more;
        Ok(())
    }

    /// Returns all of it, and leaves an empty portion.
    pub(crate) fn split(&mut self) -> Self {
        let empty = self.ration.portion();
        std::mem::replace(self, empty)
    }
}

impl Drop for Portion {
    fn drop(&mut self) {
        self.ration.left.fetch_add(self.taken, Ordering::Relaxed);
    }
}

/// A limit on something that may happen a few times at once, and then only once in a while.
#[derive(Debug)]
pub(crate) struct Allowance {
    most: u32,
    every: Duration,
    left: u32,
    /// When it began to refill.
    since: Instant,
}

impl Allowance {
    /// Allows `most` times at once, and once more after each `every`.
    pub(crate) fn new(most: u32, every: Duration) -> Self {
        Self { most, every, left: most, since: Instant::now() }
    }

    /// Returns whether it may happen now. If so, uses up one time.
    pub(crate) fn spend(&mut self) -> bool {
        while self.left < self.most && self.since.elapsed() >= self.every {
            self.since += self.every;
            self.left += 1;
        }
        if self.left == self.most {
            self.since = Instant::now();
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_allowance_grows_again_and_not_beyond_itself() {
        let mut allowance = Allowance::new(2, Duration::from_secs(60));
        assert_eq!([allowance.spend(), allowance.spend(), allowance.spend()], [true, true, false]);
        tokio::time::advance(Duration::from_secs(59)).await;
        assert!(!allowance.spend());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!([allowance.spend(), allowance.spend()], [true, false]);
        tokio::time::advance(Duration::from_secs(3_600)).await;
        assert_eq!([allowance.spend(), allowance.spend(), allowance.spend()], [true, true, false]);
    }
}
