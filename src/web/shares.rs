//! Bounds what strangers can make the server hold, and shares it out. The owner, the tokens and the visitors each have
//! a part that nobody else can take. The rest is lent to whoever asks first.
//!
//! A share depends on what a request proves about its sender, not on its address: behind a proxy, everybody has the
//! same address.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use axum::http::StatusCode;

use super::problem::Problem;
use crate::engine::{Device, Spare, StoreLimits};
use crate::limits::web::{
    Quota, Rate,
    shares::{BODIES, DIGESTS, DOWNLOADS, NAMES, PAGES, PULLS, VISITORS_STORES},
};

/// Who sent a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Who {
    /// Somebody on this machine, under a loopback name.
    Owner,
    /// A device or a browser with a valid token.
    Token(Device),
    /// Anybody else.
    #[default]
    Visitor,
}

impl Who {
    fn class(&self) -> usize {
        match self {
            Self::Owner => 0,
            Self::Token(_) => 1,
            Self::Visitor => 2,
        }
    }

    /// The name that the log shows with what they post, if it isn't this instance's own.
    pub(crate) fn named(&self) -> Option<Device> {
        match self {
            Self::Token(device) => Some(device.clone()),
            Self::Owner | Self::Visitor => None,
        }
    }

    /// The room for stores that they have to leave to others. Tokens leave a part to the owner, and visitors leave one
    /// to both.
    pub(crate) fn spare(&self, limits: StoreLimits) -> Spare {
        let StoreLimits { stores, open, .. } = limits;
        match self {
            Self::Owner => Spare::default(),
            Self::Token(_) => Spare { stores: stores / 10, open: open / 8 },
            Self::Visitor => Spare { stores: stores / 5 * 2, open: open / 4 },
        }
    }
}

/// Something that is lent in parts.
#[derive(Clone)]
pub(crate) struct Pool {
    quota: Quota,
    used: Arc<Mutex<Used>>,
}

#[derive(Default)]
struct Used {
    by_class: [usize; 3],
    by_token: HashMap<Device, usize>,
}

/// Why nothing more is lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// The token has used up its share.
    Share,
    /// Nothing is left for this class of senders.
    All,
}

impl Full {
    /// The answer to the sender: `what` there is too much of, and what to do meanwhile.
    pub(crate) fn problem(self, code: &'static str, what: &'static str, advice: &'static str, wait: u32) -> Problem {
        match self {
            Self::Share => Problem::new(StatusCode::TOO_MANY_REQUESTS, code, share(what), advice).retry_after(wait),
            Self::All => Problem::unavailable(code, format!("{what} than this server takes at a time."), advice, wait),
        }
    }
}

fn share(what: &str) -> String {
    format!("{what} than one token may have.")
}

impl Pool {
    fn new(quota: Quota) -> Self {
        Self { quota, used: Arc::default() }
    }

    /// Lends `amount` until the returned lease is dropped.
    pub(crate) fn lend(&self, who: &Who, amount: usize) -> Result<Lease, Full> {
        let mut lease = Lease { pool: self.clone(), who: who.clone(), amount: 0 };
        lease.extend(amount)?;
        Ok(lease)
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().expect("BUG: lending panicked")
    }
}

/// A part that is lent.
pub(crate) struct Lease {
    pool: Pool,
    who: Who,
    amount: usize,
}

impl Lease {
    /// Lends more to the same sender.
    pub(crate) fn extend(&mut self, amount: usize) -> Result<(), Full> {
        let Quota { total, kept, a_token } = self.pool.quota;
        let mut used = self.pool.used();
        let class = self.who.class();
        // The unused parts of the others stay reserved for them.
        let unclaimed = (0..kept.len()).filter(|other| *other != class);
        let unclaimed: usize = unclaimed.map(|other| kept[other].saturating_sub(used.by_class[other])).sum();
        let after = used.by_class.iter().sum::<usize>() + amount;
        if after > total || used.by_class[class] + amount > kept[class] && after + unclaimed > total {
            return Err(Full::All);
        }
        if let Who::Token(device) = &self.who {
            let own = used.by_token.get(device).copied().unwrap_or_default() + amount;
            if own > a_token {
                return Err(Full::Share);
            }
            used.by_token.insert(device.clone(), own);
        }
        used.by_class[class] += amount;
        self.amount += amount;
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut used = self.pool.used();
        used.by_class[self.who.class()] -= self.amount;
        if let Who::Token(device) = &self.who
            && let Some(own) = used.by_token.get_mut(device)
        {
            *own -= self.amount;
            if *own == 0 {
                used.by_token.remove(device);
            }
        }
    }
}

/// What somebody has left of a [`Rate`], and as of when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    left: f64,
    since: Instant,
}

impl Bucket {
    /// Everything that `rate` allows at once.
    pub(crate) fn full(rate: Rate, now: Instant) -> Self {
        Self { left: rate.burst, since: now }
    }

    /// Takes `amount`. If that is too much, it takes nothing and returns how long to wait.
    pub(crate) fn take(&mut self, rate: Rate, amount: f64, now: Instant) -> Result<(), Duration> {
        self.fill(rate, now);
        if self.left < amount {
            return Err(Duration::from_secs_f64((amount - self.left) / rate.per_second));
        }
        self.left -= amount;
        Ok(())
    }

    /// Returns whether nothing is missing, so that forgetting this one changes nothing.
    pub(crate) fn is_full(&mut self, rate: Rate, now: Instant) -> bool {
        self.fill(rate, now);
        self.left >= rate.burst
    }

    fn fill(&mut self, rate: Rate, now: Instant) {
        let elapsed = now.saturating_duration_since(self.since).as_secs_f64();
        self.left = rate.burst.min(self.left + rate.per_second * elapsed);
        self.since = now;
    }
}

/// Counts how often each sender does something. The owner is not counted.
pub(crate) struct Meter {
    rate: Rate,
    /// What each sender has left. Tokens are few, because the owner makes them.
    left: Mutex<HashMap<Who, Bucket>>,
}

impl Meter {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, left: Mutex::default() }
    }

    /// Counts `amount`. If that is too much, it counts nothing and returns how long to wait.
    pub(crate) fn take(&self, who: &Who, amount: f64) -> Result<(), Duration> {
        self.take_at(who, amount, Instant::now())
    }

    fn take_at(&self, who: &Who, amount: f64, now: Instant) -> Result<(), Duration> {
        if *who == Who::Owner {
            return Ok(());
        }
        let mut all = self.left.lock().expect("BUG: counting panicked");
        all.entry(who.clone()).or_insert_with(|| Bucket::full(self.rate, now)).take(self.rate, amount, now)
    }

    /// Counts `amount` even if that is too much. What comes next then has to wait.
    pub(crate) fn charge(&self, who: &Who, amount: f64) {
        if let Some(bucket) = self.left.lock().expect("BUG: counting panicked").get_mut(who) {
            bucket.left = (bucket.left - amount).max(0.0);
        }
    }

    /// Takes back what turned out not to happen.
    pub(crate) fn give_back(&self, who: &Who, amount: f64) {
        if let Some(bucket) = self.left.lock().expect("BUG: counting panicked").get_mut(who) {
            bucket.left = self.rate.burst.min(bucket.left + amount);
        }
    }
}

/// Everything that is shared out.
pub(crate) struct Shares {
    /// Open event streams: pages of the owner and of visitors, pulls of tokens.
    pub(crate) streams: Pool,
    /// Stores that open pages keep open.
    pub(crate) held: Pool,
    pub(crate) bodies: Pool,
    pub(crate) pages: Pool,
    /// Snapshots that are being sent.
    pub(crate) downloads: Pool,
    pub(crate) digests: Pool,
    pub(crate) visitors_stores: Meter,
    pub(crate) pulls: Meter,
    pub(crate) names: Meter,
}

impl Shares {
    /// The shares of a server with at most `streams` streams, and stores within `limits`.
    pub(crate) fn new(streams: usize, limits: StoreLimits) -> Self {
        let part = streams / 11;
        let streams = Quota { total: streams, kept: [part, 2 * part, part], a_token: part.max(1) };
        // Less than all the room, so that requests and pulls find some. They need a store only for a moment.
        let total = limits.open - limits.open / 8;
        let held = Quota { total, kept: [total / 4, 0, total / 4], a_token: total / 4 };
        Self {
            streams: Pool::new(streams),
            held: Pool::new(held),
            bodies: Pool::new(BODIES),
            pages: Pool::new(PAGES),
            downloads: Pool::new(DOWNLOADS),
            digests: Pool::new(DIGESTS),
            visitors_stores: Meter::new(VISITORS_STORES),
            pulls: Meter::new(PULLS),
            names: Meter::new(NAMES),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(name: &str) -> Who {
        Who::Token(name.parse().expect("a name"))
    }

    fn pool() -> Pool {
        Pool::new(Quota { total: 100, kept: [10, 30, 20], a_token: 25 })
    }

    fn all(pool: &Pool, who: &Who) -> Vec<Lease> {
        std::iter::from_fn(|| pool.lend(who, 1).ok()).collect()
    }

    #[test]
    fn trust_64_whoever_comes_first_leaves_the_others_their_part() {
        let pool = pool();
        let visitors = all(&pool, &Who::Visitor);
        assert_eq!(visitors.len(), 60, "all but what is kept for the owner and for tokens");
        let phone = all(&pool, &token("phone"));
        assert_eq!(phone.len(), 25, "no more than a token's share");
        assert_eq!(pool.lend(&token("phone"), 1).err(), Some(Full::Share));
        assert_eq!(all(&pool, &token("laptop")).len(), 5);
        let owner = all(&pool, &Who::Owner);
        assert_eq!(owner.len(), 10);
        assert_eq!(pool.lend(&Who::Owner, 1).err(), Some(Full::All));
        drop((visitors, phone, owner));
        assert_eq!(all(&pool, &Who::Owner).len(), 50, "what nobody needs is lent");
    }

    #[test]
    fn what_is_lent_in_pieces_comes_back_whole() {
        let pool = pool();
        let mut lease = pool.lend(&token("phone"), 5).expect("room");
        lease.extend(20).expect("room");
        assert_eq!(lease.extend(1), Err(Full::Share));
        drop(lease);
        assert!(pool.used().by_token.is_empty());
        assert_eq!(pool.used().by_class, [0; 3]);
    }

    #[test]
    fn what_happens_too_often_has_to_wait_and_the_owner_never() {
        let meter = Meter::new(Rate { burst: 2.0, per_second: 0.5 });
        let start = Instant::now();
        for _ in 0..2 {
            assert_eq!(meter.take_at(&Who::Visitor, 1.0, start), Ok(()));
        }
        assert_eq!(meter.take_at(&Who::Visitor, 1.0, start), Err(Duration::from_secs(2)));
        assert_eq!(meter.take_at(&token("phone"), 1.0, start), Ok(()), "each is counted alone");
        assert_eq!(meter.take_at(&Who::Visitor, 1.0, start + Duration::from_secs(2)), Ok(()));
        meter.give_back(&Who::Visitor, 1.0);
        assert_eq!(meter.take_at(&Who::Visitor, 1.0, start + Duration::from_secs(2)), Ok(()));
        for _ in 0..100 {
            assert_eq!(meter.take_at(&Who::Owner, 1.0, start), Ok(()));
        }
    }
}
