//! When a link tries again: the waits grow, and some events cut them short.

use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use crate::limits::sync::client::{FEW, LONGEST_WAIT, SHORTEST_WAIT, WANTED, WATCHED};
use crate::random;

/// Waits that grow and vary, so a hub that comes back doesn't meet everybody at once.
#[derive(Default)]
pub(super) struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// Returns the next wait for one of this many stores: random between half and all of a bound that doubles ("equal
    /// jitter").
    pub(super) fn next(&mut self, stores: usize) -> Duration {
        let bound = SHORTEST_WAIT.saturating_mul(1 << self.attempts.min(16)).min(of_many(LONGEST_WAIT, stores));
        self.attempts += 1;
        random_part(bound)
    }
}

/// Returns the longest wait for one of this many stores that open pages show.
pub(super) fn while_watched(stores: usize) -> Duration {
    random_part(of_many(WATCHED, stores))
}

/// Returns how long to wait after being asked to wait for `least`. Never less, and not everybody alike.
pub(super) fn at_least(least: Duration) -> Duration {
    least.mul_f64(1.0 + 0.5 * random::fraction())
}

/// Returns what `wait` is for one of so many stores that they would keep the machine busy.
fn of_many(wait: Duration, stores: usize) -> Duration {
    wait.saturating_mul(u32::try_from(stores / FEW).unwrap_or(u32::MAX).max(1))
}

fn random_part(bound: Duration) -> Duration {
    bound.mul_f64(0.5 + 0.5 * random::fraction())
}

/// Returns after `wait`, or sooner when somebody uses the store, or when another store has `found` the hub.
pub(super) async fn may_try_again(wait: Duration, used: &Notify, mut found: watch::Receiver<u64>) {
    let least = wait.min(WANTED);
    sleep(least).await;
    tokio::select! {
        () = sleep(wait - least) => {}
        () = used.notified() => {}
        // Not all at once.
        _ = found.changed() => sleep(WANTED.mul_f64(random::fraction())).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trust_26_waits_grow_and_no_two_devices_wait_alike() {
        let waits = |stores| {
            let mut backoff = Backoff::default();
            std::iter::repeat_with(|| backoff.next(stores)).take(12).collect::<Vec<_>>()
        };
        let (one, other, many) = (waits(1), waits(1), waits(320));
        assert_ne!(one, other);
        for (n, wait) in one.iter().enumerate() {
            let bound = (SHORTEST_WAIT * (1 << n)).min(LONGEST_WAIT);
            assert!((bound / 2..=bound).contains(wait), "{n}: {wait:?}");
        }
        assert!(many[11] >= LONGEST_WAIT * 5, "{many:?}");
    }

    #[test]
    fn an_open_page_keeps_the_waits_short_and_a_hub_can_make_them_long() {
        for _ in 0..1_000 {
            assert!((WATCHED / 2..=WATCHED).contains(&while_watched(3)));
            let asked = Duration::from_secs(20);
            assert!((asked..=asked * 3 / 2).contains(&at_least(asked)));
        }
        assert!(while_watched(320) >= WATCHED * 5, "visitors can't have a device ask without end");
    }

    #[tokio::test(start_paused = true)]
    async fn who_uses_a_store_or_finds_the_hub_makes_the_wait_short() {
        let (used, found) = (Notify::new(), watch::channel(0).0);
        let hour = Duration::from_secs(3_600);
        let waited = async |wait| {
            let start = tokio::time::Instant::now();
            may_try_again(wait, &used, found.subscribe()).await;
            start.elapsed()
        };
        assert_eq!(waited(hour).await, hour);
        assert_eq!(waited(SHORTEST_WAIT).await, SHORTEST_WAIT);
        used.notify_one();
        assert_eq!(waited(hour).await, WANTED);
        let (waited, ()) = tokio::join!(waited(hour), async {
            sleep(Duration::from_secs(60)).await;
            found.send_modify(|times| *times += 1);
        });
        assert!(waited <= Duration::from_secs(60) + WANTED, "{waited:?}");
    }
}
