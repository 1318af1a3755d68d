//! The connections that keep us waiting for their peer. When room is needed, those that have waited longest go.
//!
//! Refusing newcomers when all places are taken would leave the places to silent peers. So a connection is sure of its
//! place only while we are working on it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::limits::web::server::{HEADS, LIGHT};

use tokio::sync::Notify;
use tokio::time::Instant;

/// All connections that wait.
#[derive(Clone)]
pub(super) struct Lobby {
    shared: Arc<Shared>,
}

struct Shared {
    /// The moment from which times are counted.
    start: Instant,
    heads: usize,
    queues: Mutex<Queues>,
}

#[derive(Default)]
struct Queues {
    /// The next number to give out. Lower numbers came earlier.
    next: u64,
    /// The waiting connections from elsewhere, and those from this machine.
    waiting: [BTreeMap<u64, Arc<Notify>>; 2],
    /// The connections that have sent a large part of a head, with its size.
    heavy: BTreeMap<u64, (usize, Arc<Notify>)>,
    /// The bytes of all those heads together.
    weight: usize,
}

impl Lobby {
    pub(super) fn new() -> Self {
        Self::with_heads(HEADS)
    }

    fn with_heads(heads: usize) -> Self {
        Self { shared: Arc::new(Shared { start: Instant::now(), heads, queues: Mutex::default() }) }
    }

    /// Adds a connection that was just opened. It keeps us waiting at first.
    pub(super) fn enter(&self, is_local: bool) -> Connection {
        let connection = Connection {
            inner: Arc::new(Inner {
                shared: Arc::clone(&self.shared),
                is_local,
                let_go: Arc::default(),
                state: Mutex::new(State::default()),
                take_by: AtomicU64::new(u64::MAX),
            }),
        };
        connection.change(|state| state.is_whole = true);
        connection
    }

    /// Ends the connection that has waited longest, those from elsewhere first. Returns false if none waits.
    pub(super) fn make_room(&self) -> bool {
        let mut queues = self.shared.lock();
        let longest = queues.waiting.iter_mut().find_map(BTreeMap::pop_first);
        longest.map(|(_, let_go)| let_go.notify_one()).is_some()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().expect("BUG: waiting panicked")
    }
}

/// One connection, as seen by the code that works on it.
#[derive(Clone)]
pub(crate) struct Connection {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    is_local: bool,
    let_go: Arc<Notify>,
    state: Mutex<State>,
    /// The deadline for the peer to take what it was sent, in milliseconds since the start.
    take_by: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Whether everything that the peer has begun to send has arrived.
    is_whole: bool,
    is_answering: bool,
    /// Whether the peer takes nothing of what we send.
    is_stalled: bool,
    /// Its number while it waits.
    number: Option<u64>,
    /// Its number among those with large heads, and the size.
    heavy: Option<(u64, usize)>,
}

impl State {
    fn is_waiting(&self) -> bool {
        !self.is_answering || !self.is_whole || self.is_stalled
    }
}

impl Connection {
    /// Returns when the connection has to go, because it has waited longer than all others.
    pub(super) async fn let_go(&self) {
        loop {
            self.inner.let_go.notified().await;
            // What it waited for may have arrived meanwhile.
            if self.state().is_waiting() {
                return;
            }
        }
    }

    /// Records that a request arrived. It counts as being answered until the returned value is dropped.
    pub(super) fn answer(&self) -> Answering {
        // The deadline of the previous answer doesn't apply to this one.
        self.inner.take_by.store(u64::MAX, Ordering::Relaxed);
        self.change(|state| state.is_answering = true);
        Answering(self.clone())
    }

    /// Records how many bytes of an incomplete head have arrived, and whether anything is missing.
    pub(super) fn has_read(&self, head_bytes: usize, is_whole: bool) {
        self.change(|state| state.is_whole = is_whole);
        let weight = if head_bytes > LIGHT { head_bytes } else { 0 };
        let mut state = self.state();
        if state.heavy.map_or(0, |(_, weight)| weight) == weight {
            return;
        }
        let mut queues = self.inner.shared.lock();
        let number = state.heavy.take().map(|(number, _)| queues.lighten(number));
        if weight > 0 {
            let number = number.unwrap_or_else(|| queues.number());
            queues.heavy.insert(number, (weight, Arc::clone(&self.inner.let_go)));
            queues.weight += weight;
            state.heavy = Some((number, weight));
            while queues.weight > self.inner.shared.heads
                && let Some((_, (weight, let_go))) = queues.heavy.pop_first()
            {
                queues.weight -= weight;
                let_go.notify_one();
            }
        }
    }

    /// Records whether the peer takes nothing at present.
    pub(super) fn is_stalled(&self, is_stalled: bool) {
        self.change(|state| state.is_stalled = is_stalled);
    }

    /// Returns whether a request is being answered.
    pub(super) fn is_answering(&self) -> bool {
        self.state().is_answering
    }

    /// Returns whether the peer takes nothing at present.
    pub(super) fn is_kept_from_writing(&self) -> bool {
        self.state().is_stalled
    }

    /// Gives the peer this much time, from now on, to take what it is sent.
    pub(crate) fn must_take_within(&self, time: Duration) {
        let by = (self.inner.shared.start.elapsed() + time).as_millis();
        self.inner.take_by.store(u64::try_from(by).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Returns how much of that time is left.
    pub(super) fn time_to_take(&self) -> Duration {
        let by = Duration::from_millis(self.inner.take_by.load(Ordering::Relaxed));
        by.saturating_sub(self.inner.shared.start.elapsed())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().expect("BUG: a connection's state panicked")
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        change(&mut state);
        match (state.is_waiting(), state.number) {
            (true, None) => {
                let mut queues = self.inner.shared.lock();
                let number = queues.number();
                queues.waiting[usize::from(self.inner.is_local)].insert(number, Arc::clone(&self.inner.let_go));
                state.number = Some(number);
            }
            (false, Some(number)) => {
                self.inner.shared.lock().waiting[usize::from(self.inner.is_local)].remove(&number);
                state.number = None;
            }
            _ => {}
        }
    }
}

impl Queues {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Removes the head with this number from those that count, and returns the number.
    fn lighten(&mut self, number: u64) -> u64 {
        if let Some((weight, _)) = self.heavy.remove(&number) {
            self.weight -= weight;
        }
        number
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let state = self.state.get_mut().expect("BUG: a connection's state panicked");
        let mut queues = self.shared.lock();
        if let Some(number) = state.number {
            queues.waiting[usize::from(self.is_local)].remove(&number);
        }
        if let Some((number, _)) = state.heavy {
            queues.lighten(number);
        }
    }
}

/// Held while a request is being answered.
pub(super) struct Answering(Connection);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.change(|state| state.is_answering = false);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn has_to_go(connection: &Connection) -> bool {
        connection.let_go().now_or_never().is_some()
    }

    #[test]
    fn trust_64_whoever_waits_longest_makes_room_and_whoever_is_answered_stays() {
        let lobby = Lobby::new();
        let [local, first, second, third] = [true, false, false, false].map(|is_local| lobby.enter(is_local));
        let answering = first.answer();
        assert!(lobby.make_room() && has_to_go(&second), "the first is answered");
        assert!(lobby.make_room() && has_to_go(&third));
        assert!(lobby.make_room() && has_to_go(&local), "those from this machine come last");
        assert!(!lobby.make_room(), "nobody waits");
        assert!(!has_to_go(&first));

        first.has_read(0, false);
        assert!(lobby.make_room() && has_to_go(&first), "its request lacks the rest");
        first.has_read(0, true);
        first.is_stalled(true);
        assert!(lobby.make_room() && has_to_go(&first), "it takes nothing");
        first.is_stalled(false);
        drop(answering);
        assert!(lobby.make_room(), "it is idle");
        let answering = first.answer();
        assert!(!has_to_go(&first), "its request came in time");
        first.must_take_within(Duration::ZERO);
        assert_eq!(first.time_to_take(), Duration::ZERO);
        let next = first.answer();
        assert!(first.time_to_take() > Duration::from_secs(1), "the next answer has its own time");
        drop((next, answering, first, second, third, local));
        assert!(!lobby.make_room(), "nobody is left");
    }

    #[test]
    fn trust_64_large_heads_that_are_not_whole_are_bounded_together() {
        let lobby = Lobby::with_heads(30_000);
        let all: Vec<_> = (0..4).map(|_| lobby.enter(false)).collect();
        for connection in &all[..3] {
            connection.has_read(LIGHT, false);
            connection.has_read(10_000, false);
        }
        assert!(!all.iter().any(has_to_go));
        all[3].has_read(LIGHT, false);
        assert!(!all.iter().any(has_to_go), "small ones don't count");
        all[1].has_read(0, true);
        all[3].has_read(10_000, false);
        assert!(!all.iter().any(has_to_go), "a whole one doesn't count");
        all[3].has_read(10_001, false);
        assert!(has_to_go(&all[0]) && !has_to_go(&all[2]) && !has_to_go(&all[3]));
        drop(all);
        let queues = lobby.shared.lock();
        assert_eq!((queues.weight, queues.heavy.len(), queues.waiting[0].len()), (0, 0, 0));
    }
}
